//! What a server streams is hostile to its clients `frugal chat` and `frugal load`: however it is cut, it is the same events,
//! and each is read or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../../server/src/client/sse.rs"]
mod sse;

use sse::{Delta, Events};

fuzz_target!(|input: &[u8]| {
    // The first quarter says where the rest is cut.
    let (sizes, bytes) = input.split_at(input.len() / 4);
    let whole = Events::default().push(bytes).expect("shorter than the longest event");
    let (mut events, mut pieces, mut rest) = (Events::default(), Vec::new(), bytes);
    for &size in sizes {
        let (piece, after) = rest.split_at(usize::from(size % 8).min(rest.len()));
        pieces.extend(events.push(piece).expect("shorter than the longest event"));
        rest = after;
    }
    pieces.extend(events.push(rest).expect("shorter than the longest event"));
    assert_eq!(pieces, whole);
    for event in whole {
        if let Err(error) = Delta::parse(&event) {
            assert!(!error.to_string().is_empty());
        }
    }
    let _ = Delta::parse(&String::from_utf8_lossy(bytes));
});
