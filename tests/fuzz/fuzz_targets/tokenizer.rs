//! A model file's vocabulary is hostile: it is refused or encodes any text, and text never gives control tokens.
#![no_main]

use frugal_models::gguf::Gguf;
use frugal_models::tokenizer::Tokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = Gguf::from_bytes(bytes.to_vec()) else { return };
    let tokenizer = match Tokenizer::from_gguf(&file) {
        Ok(tokenizer) => tokenizer,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let text = String::from_utf8_lossy(bytes);
    let control = tokenizer.template_tokens().control;
    for id in tokenizer.encode_plain(&text).expect("all text can be encoded") {
        assert!((id.0 as usize) < tokenizer.vocab_size());
        assert!(!control.contains(&tokenizer.token_text(id)));
    }
    assert!(tokenizer.end_tokens().iter().all(|id| (id.0 as usize) < tokenizer.vocab_size()));
    for id in tokenizer.encode_special(&text).expect("all text can be encoded") {
        assert!((id.0 as usize) < tokenizer.vocab_size());
    }
});
