//! A model file's vocabulary is hostile: it is refused or encodes any text, and text never gives control tokens.
//!
//! The input is a file; what follows its header is text of users too.
#![no_main]

use frugal_models::gguf::Gguf;
use frugal_models::step::TokenId;
use frugal_models::tokenizer::Tokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = Gguf::from_bytes(bytes.to_vec()) else { return };
    let tokenizer = match Tokenizer::from_gguf(&file) {
        Ok(tokenizer) => tokenizer,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let within = |id: &TokenId| (id.0 as usize) < tokenizer.vocab_size();
    let text = String::from_utf8_lossy(bytes);
    // All of it, and its end, where fuzzers append.
    let end = text.char_indices().rev().nth(40).map_or(0, |(at, _)| at);
    for text in [&text, &text[end..]] {
        let plain = tokenizer.encode_plain(text).expect("all text can be encoded");
        assert!(plain.iter().all(|id| within(id) && !tokenizer.is_control(*id)));
        tokenizer.decode(&plain);
        let special = tokenizer.encode_special(text).expect("all text can be encoded");
        assert!(special.iter().all(within));
        tokenizer.decode(&special);
        assert!(tokenizer.encode_prompt(text).expect("all text can be encoded").iter().all(within));
    }
    assert!(tokenizer.end_tokens().iter().all(within));
});
