use super::*;

/// The byte alphabet, then `extra`, whose merges are `merges`; control tokens last.
fn spec(extra: &[&str], merges: &[&str], control: &[&str]) -> TokenizerSpec {
    let alphabet = (0..=255).map(|b| bytes::char_of(b).to_string());
    let rest = extra.iter().chain(control).map(|t| (*t).to_owned());
    let tokens: Vec<String> = alphabet.chain(rest).collect();
    let types = (0..tokens.len()).map(|i| if i < 256 + extra.len() { 1 } else { 3 }).collect();
    TokenizerSpec {
        model: "gpt2".to_owned(),
        pre: "gpt-2".to_owned(),
        types: Some(types),
        merges: merges.iter().map(|m| (*m).to_owned()).collect(),
        tokens,
        ..Default::default()
    }
}

fn small() -> TokenizerSpec {
    spec(&["he", "ll", "hell"], &["h e", "l l", "he ll"], &["<|im_start|>", "<|im_end|>"])
}

fn id(value: u32) -> TokenId {
    TokenId(value)
}

fn refused(change: impl FnOnce(&mut TokenizerSpec)) -> String {
    let mut spec = small();
    change(&mut spec);
    Tokenizer::new(spec).unwrap_err().to_string()
}

#[test]
fn merges_apply_in_order() {
    let tokenizer = Tokenizer::new(small()).unwrap();
    assert_eq!(tokenizer.encode_plain("hello").unwrap(), [id(258), id(u32::from(b'o'))]);
    assert_eq!(tokenizer.decode(&tokenizer.encode_plain("héllo 😀").unwrap()), "héllo 😀");
}

#[test]
fn bad_metadata_is_refused_by_name() {
    let contains = |error: String, what: &str| assert!(error.contains(what), "{error}");
    contains(refused(|s| s.model = "llama".into()), "\"llama\"");
    contains(refused(|s| s.pre = "nosuch".into()), "\"nosuch\"");
    contains(refused(|s| s.tokens.clear()), "0 entries");
    contains(refused(|s| s.tokens[300 - 42] = "he".into()), "tokens 256 and 258 are both \"he\"");
    contains(refused(|s| s.types = Some(vec![1; 3])), "3 entries for 261 tokens");
    contains(refused(|s| s.types.as_mut().unwrap()[7] = 6), "token 7 has type 6");
    contains(refused(|s| s.types.as_mut().unwrap()[7] = -1), "token 7 has type -1");
    contains(refused(|s| s.merges[1] = "ll".into()), "merge 1, \"ll\", is not two tokens");
    contains(refused(|s| s.merges[1] = "l ".into()), "merge 1");
    contains(refused(|s| s.merges[1] = "l x".into()), "merge 1, \"l x\", makes");
    contains(refused(|s| s.merges[1] = "zz l".into()), "merge 1, \"zz l\", joins");
    contains(refused(|s| s.ids.eos = Some(261)), "eos_token_id is 261, but there are 261 tokens");
    contains(refused(|s| s.add_bos = Some(true)), "bos_token_id");
}
