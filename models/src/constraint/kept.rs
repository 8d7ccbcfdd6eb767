//! Grammars that were compiled lately: what is asked for again, as tools are at every turn, is not compiled again.
//!
//! Invariant: no more than so many, and of no more bytes together; where there is no room, the one goes that was not asked for longest.

use std::collections::HashMap;
use std::sync::Arc;

use crate::mask::Grammar;

const GRAMMARS_MAX: usize = 128;

const BYTES_MAX: usize = 64 << 20;

#[derive(Default)]
pub(super) struct Kept {
    grammars: HashMap<[u8; 32], Entry>,
    bytes: usize,
    /// Counts what is asked for.
    now: u64,
}

struct Entry {
    grammar: Arc<dyn Grammar>,
    bytes: usize,
    asked: u64,
}

impl Kept {
    pub(super) fn get(&mut self, digest: &[u8; 32]) -> Option<Arc<dyn Grammar>> {
        self.now += 1;
        let entry = self.grammars.get_mut(digest)?;
        entry.asked = self.now;
        Some(entry.grammar.clone())
    }

    pub(super) fn put(&mut self, digest: [u8; 32], grammar: Arc<dyn Grammar>, bytes: usize) {
        if bytes > BYTES_MAX {
            return;
        }
        self.now += 1;
        let entry = Entry { grammar, bytes, asked: self.now };
        self.bytes += bytes;
        let before = self.grammars.insert(digest, entry);
        self.bytes -= before.map_or(0, |entry| entry.bytes);
        while self.grammars.len() > GRAMMARS_MAX || self.bytes > BYTES_MAX {
            let oldest = self.grammars.iter().min_by_key(|(_, entry)| entry.asked).map(|(&digest, _)| digest);
            let Some(entry) = oldest.and_then(|digest| self.grammars.remove(&digest)) else { return };
            self.bytes -= entry.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::Matcher;

    #[derive(Debug)]
    struct Named(usize);

    impl Grammar for Named {
        fn matcher(&self) -> Box<dyn Matcher> {
            unreachable!("nobody follows {}", self.0)
        }
    }

    #[test]
    fn what_was_not_asked_for_longest_goes_first() {
        let key = |i: usize| [u8::try_from(i).expect("few"); 32];
        let mut kept = Kept::default();
        for i in 0..GRAMMARS_MAX {
            kept.put(key(i), Arc::new(Named(i)), 1);
        }
        assert!(kept.get(&key(0)).is_some());
        kept.put(key(200), Arc::new(Named(200)), 1);
        let there = |kept: &mut Kept| [0, 1, 2, 200].map(|i| kept.get(&key(i)).is_some());
        assert_eq!(there(&mut kept), [true, false, true, true]);
        // The same again takes no more; one that leaves no room for others is kept, one that has none is not.
        kept.put(key(200), Arc::new(Named(200)), 2);
        assert_eq!((kept.grammars.len(), kept.bytes), (GRAMMARS_MAX, GRAMMARS_MAX + 1));
        kept.put(key(201), Arc::new(Named(201)), BYTES_MAX);
        assert_eq!((kept.grammars.len(), kept.bytes), (1, BYTES_MAX));
        kept.put(key(202), Arc::new(Named(202)), BYTES_MAX + 1);
        assert!(kept.get(&key(201)).is_some() && kept.get(&key(202)).is_none());
    }
}
