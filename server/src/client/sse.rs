//! A streamed chat completion, from bytes to what a client wants of it.
//!
//! Law: how the bytes are cut changes nothing. What a server sends is bounded by event, and what of it is not understood
//! is passed over, as servers add fields.

use serde_json::Value;

/// Longest event.
const EVENT_BYTES_MAX: usize = 4 << 20;

/// Cuts server-sent events out of a stream.
#[derive(Debug, Default)]
pub(crate) struct Events {
    line: Vec<u8>,
    data: Option<Vec<u8>>,
    /// The last byte ended a line as the first of two may.
    after_return: bool,
}

impl Events {
    /// The data of the events that `bytes` complete.
    ///
    /// # Errors
    /// If an event is too long.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> anyhow::Result<Vec<String>> {
        let mut complete = Vec::new();
        for &byte in bytes {
            let after_return = std::mem::replace(&mut self.after_return, byte == b'\r');
            match byte {
                b'\n' if after_return => {}
                b'\n' | b'\r' => complete.extend(self.end_line()),
                _ => self.line.push(byte),
            }
            let held = self.line.len() + self.data.as_ref().map_or(0, Vec::len);
            anyhow::ensure!(
                held <= EVENT_BYTES_MAX,
                "the server sent an event of more than {EVENT_BYTES_MAX} bytes"
            );
        }
        Ok(complete)
    }

    /// An empty line ends an event.
    fn end_line(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            let data = self.data.take()?;
            return Some(String::from_utf8_lossy(&data).into_owned());
        }
        let value = line.strip_prefix(b"data:")?;
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &mut self.data {
            None => self.data = Some(value.to_vec()),
            Some(data) => {
                data.push(b'\n');
                data.extend_from_slice(value);
            }
        }
        None
    }
}

/// What an event says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Delta {
    /// More of the answer.
    pub(crate) text: String,
    /// More of what precedes it.
    pub(crate) reasoning: String,
    /// Why the answer ended.
    pub(crate) finish: Option<String>,
    /// What it took.
    pub(crate) usage: Option<Usage>,
    /// Nothing follows.
    pub(crate) done: bool,
}

/// What an answer took.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Usage {
    /// Tokens of the answer.
    pub(crate) tokens: u64,
    /// Tokens of what was asked, if the server counts them.
    pub(crate) prompt: Option<u64>,
    /// Of those, the ones that it did not have to compute, if it tells.
    pub(crate) cached: Option<u64>,
    /// Amount and currency, if the server has a price.
    pub(crate) cost: Option<(f64, String)>,
}

impl Delta {
    /// Reads an event's data.
    ///
    /// # Errors
    /// If it is an error, or no JSON.
    pub(crate) fn parse(data: &str) -> anyhow::Result<Self> {
        if data.trim() == "[DONE]" {
            return Ok(Self { done: true, ..Self::default() });
        }
        let Ok(event) = serde_json::from_str::<Value>(data) else {
            anyhow::bail!("the server sent an event that is not JSON");
        };
        if let Some(message) = error_message(&event) {
            anyhow::bail!("{message}");
        }
        let choice = event.get("choices").and_then(|choices| choices.get(0));
        let field = |name: &str| choice?.get("delta")?.get(name)?.as_str().map(str::to_owned);
        Ok(Self {
            text: field("content").unwrap_or_default(),
            reasoning: field("reasoning_content").or_else(|| field("reasoning")).unwrap_or_default(),
            finish: choice.and_then(|choice| choice.get("finish_reason")?.as_str().map(str::to_owned)),
            usage: event.get("usage").and_then(usage),
            done: false,
        })
    }
}

fn usage(usage: &Value) -> Option<Usage> {
    let currency = || usage.get("cost_details")?.get("currency")?.as_str().map(str::to_owned);
    // OpenRouter's credits, which are what servers without a currency mean, are US dollars.
    let cost = |amount: f64| (amount, currency().unwrap_or_else(|| "USD".to_owned()));
    Some(Usage {
        tokens: usage.get("completion_tokens")?.as_u64()?,
        prompt: usage.get("prompt_tokens").and_then(Value::as_u64),
        cached: usage.get("prompt_tokens_details").and_then(|of| of.get("cached_tokens")?.as_u64()),
        cost: usage.get("cost").and_then(Value::as_f64).map(cost),
    })
}

/// The message of an error body or event.
pub(crate) fn error_message(body: &Value) -> Option<String> {
    let error = body.get("error")?;
    let message = error.get("message").and_then(Value::as_str).or_else(|| error.as_str());
    let message = message.filter(|message| !message.trim().is_empty());
    (!error.is_null()).then(|| message.unwrap_or("the server reported an error").to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn events(bytes: &[u8]) -> Vec<String> {
        Events::default().push(bytes).unwrap()
    }

    #[test]
    fn events_are_what_empty_lines_separate() {
        assert_eq!(events(b"data: a\n\ndata:b\n\n"), ["a", "b"]);
        assert_eq!(events(b"data: a\r\n\r\ndata: b\r\rdata: c\n\r\n"), ["a", "b", "c"]);
        assert_eq!(events(b": keep-alive\n\nevent: x\nid: 1\n\ndata: a\ndata:  b\n\n"), ["a\n b"]);
        assert_eq!(events(b"data\n\ndata: unfinished\n"), [""; 0]);
        assert_eq!(events(b"data: \xff\n\n"), ["\u{fffd}"]);
    }

    #[test]
    fn events_are_bounded() {
        let mut stream = Events::default();
        let line = [b"data: ".as_slice(), &vec![b'x'; 1 << 20], b"\n"].concat();
        let error = (0..5).find_map(|_| stream.push(&line).err()).expect("a limit");
        assert!(error.to_string().contains("more than 4194304 bytes"));
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(
            lines in proptest::collection::vec("(data: ?[a-zé中]{0,4}|: c|)(\r\n|\n|\r)", 0..20),
            cuts in proptest::collection::vec(0usize..200, 0..8),
        ) {
            let bytes = lines.concat().into_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut stream = Events::default();
            let pieces: Vec<String> =
                cuts.windows(2).flat_map(|cut| stream.push(&bytes[cut[0]..cut[1]]).unwrap()).collect();
            prop_assert_eq!(pieces, events(&bytes));
        }

        #[test]
        fn no_event_panics(data in ".{0,60}") {
            let _ = Delta::parse(&data);
        }
    }

    #[test]
    fn a_delta_is_read_field_by_field() {
        let delta = |event: Value| Delta::parse(&event.to_string()).unwrap();
        let of = |delta: Value| json!({"choices": [{"index": 0, "delta": delta, "finish_reason": null}], "usage": null});
        assert_eq!(delta(of(json!({"role": "assistant", "content": ""}))), Delta::default());
        assert_eq!(delta(of(json!({"content": "Hi"}))).text, "Hi");
        assert_eq!(delta(of(json!({"content": null, "reasoning_content": "Hm"}))).reasoning, "Hm");
        let end = delta(json!({"choices": [{"delta": {}, "finish_reason": "length"}]}));
        assert_eq!(end.finish.as_deref(), Some("length"));
        let cost = json!({
            "prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens": 7,
            "cost": 1e-6, "cost_details": {"currency": "EUR"},
        });
        let usage = delta(json!({"choices": [], "usage": cost})).usage.unwrap();
        let cost = Some((1e-6, "EUR".to_owned()));
        assert_eq!(usage, Usage { tokens: 7, prompt: Some(3), cached: Some(2), cost });
        for details in [json!(null), json!({}), json!(3), json!({"cached_tokens": null})] {
            let usage = json!({"completion_tokens": 7, "prompt_tokens_details": details});
            let free = delta(json!({"choices": [], "usage": usage})).usage.unwrap();
            assert_eq!(free, Usage { tokens: 7, ..Usage::default() });
        }
        assert!(Delta::parse("[DONE]").unwrap().done);
        // Not of the expected types: passed over.
        assert_eq!(delta(json!({"choices": {"a": 1}, "usage": 3})), Delta::default());
        assert_eq!(delta(json!([1])), Delta::default());
    }

    #[test]
    fn errors_are_the_servers_words() {
        let error = |data: &str| Delta::parse(data).unwrap_err().to_string();
        assert_eq!(error(r#"{"error": {"message": "too long", "code": "x"}}"#), "too long");
        assert_eq!(error(r#"{"error": "plain"}"#), "plain");
        for without in [r#"{"error": {}}"#, r#"{"error": {"message": ""}}"#, r#"{"error": " "}"#] {
            assert_eq!(error(without), "the server reported an error");
        }
        assert_eq!(error("{"), "the server sent an event that is not JSON");
        assert!(Delta::parse(r#"{"error": null}"#).is_ok());
    }
}
