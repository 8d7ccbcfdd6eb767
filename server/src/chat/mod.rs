//! `frugal chat`: a conversation with a running server, on a terminal or through pipes.
//!
//! On a terminal there is a prompt, and Ctrl-C ends the answer that is coming. Otherwise all of stdin is one message,
//! stdout gets its answer alone, and the exit code says whether there is one.

mod show;

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::time::Instant;

use anyhow::Context as _;
use frugal_config::cli::Chat;
use rustyline::error::ReadlineError;
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use self::show::{Reader, Show, Times, summary};
use crate::client::Target;
use crate::client::sse::{Delta, Events, Usage};
use crate::misuse::OrMisuse as _;
use crate::terminal::has_colours;

/// Longest message from a pipe.
const MESSAGE_BYTES_MAX: u64 = 16 << 20;
/// Lines that the arrow keys bring back.
const LINES_MAX: usize = 1000;

const HELP: &str =
    "/clear begins anew, /system TEXT sets the system prompt, Ctrl-C stops an answer, Ctrl-D ends";

/// Talks until the user ends it.
pub(crate) fn run(chat: &Chat) -> anyhow::Result<()> {
    let mut conversation = Conversation::new(chat)?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().build().context("cannot start threads")?;
    if io::stdin().is_terminal() && io::stdout().is_terminal() {
        interactive(&mut conversation, &runtime)
    } else {
        conversation.messages.push(message("user", &piped()?));
        let answer =
            runtime.block_on(conversation.answer(&mut Show::new(io::stdout(), Reader::Program), false))?;
        anyhow::ensure!(answer.finish.is_some(), "the server ended the answer before its end");
        let cut = answer.finish.as_deref() == Some("length");
        let why = if cut { ": it was cut off at the limit of tokens" } else { "" };
        anyhow::ensure!(!answer.text.is_empty(), "the answer is empty{why}");
        if cut {
            writeln!(io::stderr(), "frugal: the answer was cut off at the limit of tokens").ok();
        }
        Ok(())
    }
}

/// All of stdin.
fn piped() -> anyhow::Result<String> {
    let mut text = String::new();
    let read = io::stdin().take(MESSAGE_BYTES_MAX + 1).read_to_string(&mut text);
    let read = read.context("cannot read a message from stdin")?;
    anyhow::ensure!(read as u64 <= MESSAGE_BYTES_MAX, "the message has more than {MESSAGE_BYTES_MAX} bytes");
    let text = text.trim_end_matches(['\n', '\r']);
    anyhow::ensure!(!text.is_empty(), "there is no message on stdin");
    Ok(text.to_owned())
}

fn interactive(conversation: &mut Conversation, runtime: &Runtime) -> anyhow::Result<()> {
    let settings = rustyline::Config::builder().max_history_size(LINES_MAX)?.auto_add_history(true).build();
    let mut editor = rustyline::DefaultEditor::with_config(settings)?;
    let colours = has_colours(&io::stdout());
    let mut show = Show::new(io::stdout(), Reader::Person { colours });
    show.note(HELP)?;
    loop {
        let line = match editor.readline("> ") {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        match Input::new(&line) {
            Input::Nothing => {}
            Input::Quit => return Ok(()),
            Input::Clear => {
                conversation.messages.clear();
                show.note("the conversation begins anew")?;
            }
            Input::System(text) => {
                conversation.system = (!text.is_empty()).then(|| text.to_owned());
                show.note(if text.is_empty() { "no system prompt" } else { "the system prompt is set" })?;
            }
            Input::Help => show.note(HELP)?,
            Input::Message(text) => {
                if let Err(error) = conversation.turn(text, &mut show, runtime) {
                    show.note(&format!("{error:#}"))?;
                }
            }
        }
    }
}

/// A line of the user's.
#[derive(Debug, PartialEq, Eq)]
enum Input<'a> {
    Nothing,
    Quit,
    Clear,
    System(&'a str),
    Help,
    Message(&'a str),
}

impl<'a> Input<'a> {
    fn new(line: &'a str) -> Self {
        let line = line.trim();
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match (word, rest.trim()) {
            ("", _) => Self::Nothing,
            ("/quit" | "/exit", "") => Self::Quit,
            ("/clear", "") => Self::Clear,
            ("/system", text) => Self::System(text),
            ("/help", "") => Self::Help,
            _ => Self::Message(line),
        }
    }
}

/// What was said, and to whom.
struct Conversation {
    target: Target,
    api_key: Option<String>,
    /// Model and sampling.
    fields: Map<String, Value>,
    system: Option<String>,
    messages: Vec<Value>,
}

/// An answer, or what came of it.
#[derive(Debug, Default)]
struct Answer {
    text: String,
    finish: Option<String>,
    usage: Option<Usage>,
    times: Times,
}

fn message(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

impl Conversation {
    fn new(chat: &Chat) -> anyhow::Result<Self> {
        let mut fields = Map::new();
        let mut set = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                fields.insert(name.to_owned(), value);
            }
        };
        set("model", chat.model.as_deref().map(Value::from));
        set("temperature", chat.temperature.map(Value::from));
        set("top_p", chat.top_p.map(Value::from));
        set("top_k", chat.top_k.map(Value::from));
        set("min_p", chat.min_p.map(Value::from));
        set("max_tokens", chat.max_tokens.map(Value::from));
        set("seed", chat.seed.map(Value::from));
        set("stream", Some(true.into()));
        set("stream_options", Some(json!({ "include_usage": true })));
        Ok(Self {
            target: Target::new("--url", &chat.url, chat.access.ca_file.as_deref()).or_misuse()?,
            api_key: chat.access.api_key.as_ref().map(|key| key.expose().to_owned()),
            fields,
            system: chat.system.clone(),
            messages: Vec::new(),
        })
    }

    fn request(&self) -> Value {
        let system = self.system.iter().map(|text| message("system", text));
        let messages: Vec<Value> = system.chain(self.messages.iter().cloned()).collect();
        let mut request = Map::from_iter([("messages".to_owned(), Value::from(messages))]);
        request.extend(self.fields.clone());
        request.into()
    }

    /// A message and its answer. One that got no answer is forgotten; what came of one that was stopped is kept.
    fn turn(&mut self, text: &str, show: &mut Show<io::Stdout>, runtime: &Runtime) -> anyhow::Result<()> {
        self.messages.push(message("user", text));
        let answer = runtime.block_on(self.answer(show, true));
        let answer = match answer {
            Ok(answer) if !answer.text.is_empty() => answer,
            other => {
                self.messages.pop();
                other?
            }
        };
        if !answer.text.is_empty() {
            self.messages.push(message("assistant", &answer.text));
        }
        let end = match answer.finish.as_deref() {
            Some("length") => "cut off at the limit of tokens",
            Some(_) => "",
            None => "stopped",
        };
        Ok(show.note(&summary(answer.usage.as_ref(), answer.times, end))?)
    }

    /// Sends what was said and shows what comes, until its end or, if `stoppable`, Ctrl-C.
    async fn answer<W: io::Write>(&self, show: &mut Show<W>, stoppable: bool) -> anyhow::Result<Answer> {
        let mut interrupts = match stoppable {
            true => Some(signal(SignalKind::interrupt()).context("cannot watch for Ctrl-C")?),
            false => None,
        };
        let interrupt = async {
            match &mut interrupts {
                Some(interrupts) => interrupts.recv().await,
                None => std::future::pending().await,
            }
        };
        let mut answer = Answer::default();
        let result = tokio::select! {
            result = self.receive(&mut answer, show) => result,
            _ = interrupt => Ok(()),
        };
        show.end()?;
        result.map(|()| answer)
    }

    async fn receive<W: io::Write>(&self, answer: &mut Answer, show: &mut Show<W>) -> anyhow::Result<()> {
        let begin = Instant::now();
        let mut stream = self.target.chat(&self.request(), self.api_key.as_deref()).await?;
        let mut events = Events::default();
        while let Some(bytes) = stream.next().await? {
            for data in events.push(&bytes)? {
                let delta = Delta::parse(&data)?;
                if !(delta.text.is_empty() && delta.reasoning.is_empty()) {
                    answer.times.last = begin.elapsed();
                    answer.times.first.get_or_insert(answer.times.last);
                }
                show.reasoning(&delta.reasoning)?;
                show.text(&delta.text)?;
                answer.text += &delta.text;
                answer.finish = answer.finish.take().or(delta.finish);
                // Some servers tell in every event what it took so far.
                answer.usage = delta.usage.or(answer.usage.take());
                if delta.done {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use frugal_config::cli::Access;

    use super::*;

    #[test]
    fn commands_are_whole_words() {
        assert_eq!(Input::new("  \t"), Input::Nothing);
        assert_eq!(Input::new("/quit "), Input::Quit);
        assert_eq!(Input::new("/clear"), Input::Clear);
        assert_eq!(Input::new("/system Be brief. "), Input::System("Be brief."));
        assert_eq!(Input::new("/system"), Input::System(""));
        assert_eq!(Input::new("/help"), Input::Help);
        assert_eq!(Input::new("/etc/hosts is what?"), Input::Message("/etc/hosts is what?"));
        assert_eq!(Input::new(" /clear the table"), Input::Message("/clear the table"));
    }

    #[test]
    fn a_request_has_what_was_said_and_asked_for() {
        let chat = Chat {
            url: "http://box".to_owned(),
            model: Some("m".to_owned()),
            access: Access::default(),
            system: Some("Be brief.".to_owned()),
            temperature: Some(0.5),
            top_p: None,
            top_k: Some(7),
            min_p: None,
            max_tokens: Some(9),
            seed: None,
        };
        let mut conversation = Conversation::new(&chat).unwrap();
        conversation.messages.push(message("user", "Hi"));
        let request = json!({
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
            "model": "m", "temperature": 0.5, "top_k": 7, "max_tokens": 9,
            "stream": true, "stream_options": {"include_usage": true},
        });
        assert_eq!(conversation.request(), request);
        conversation.system = None;
        assert_eq!(conversation.request()["messages"], json!([{"role": "user", "content": "Hi"}]));
    }
}
