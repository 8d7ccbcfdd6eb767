//! Prompts of random words.
//!
//! Law: the same seed and place give the same prompt, another place one that begins otherwise, so that a prefix cache helps
//! with the prefix alone that all prompts of a seed may have.

use crate::random::SplitMix64;

/// About a token each in most vocabularies.
const WORDS: &str = "\
    about after again air all also and any are as back be because been before but by came can come \
    could day did different do does down each end even find first for from get give go good great \
    had has have he help her here him his home house how if in into is it just know large last left \
    life like line little long look made make man many may me men more most much must my name never \
    new next no not now number of off old on one only or other our out over own part people place \
    right same say small some still such take than that the their them then there these they thing";
/// Numbers that prompts begin with.
const NUMBERS: u64 = 1_000_000;

/// All prompts of a seed.
pub(super) struct Prompts {
    seed: u64,
    words: u32,
    /// With a space behind it, or empty.
    prefix: String,
}

impl Prompts {
    /// Of `words` words each, behind `prefix` words that all have.
    pub(super) fn new(seed: u64, words: u32, prefix: u32) -> Self {
        let shared: String = drawn(random(seed, &[]), prefix).map(|word| format!("{word} ")).collect();
        Self { seed, words, prefix: shared }
    }

    /// The prompt of a request, by its level, round and number.
    pub(super) fn at(&self, place: [u32; 3]) -> String {
        let mut random = random(self.seed, &place);
        let mut text = format!("{}{}", self.prefix, random.below(NUMBERS));
        for word in drawn(random, self.words) {
            text.push(' ');
            text.push_str(word);
        }
        text
    }
}

/// Numbers of a place, which a seed and what leads there choose.
fn random(seed: u64, place: &[u32]) -> SplitMix64 {
    place.iter().fold(SplitMix64(seed), |mut random, &number| SplitMix64(random.next() ^ u64::from(number)))
}

fn drawn(mut random: SplitMix64, count: u32) -> impl Iterator<Item = &'static str> {
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    (0..count).filter_map(move |_| words.get(random.below(words.len() as u64) as usize).copied())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_same_seed_and_place_give_the_same_prompt_and_no_others_do() {
        let prompts = |seed| Prompts::new(seed, 8, 0);
        let places: Vec<[u32; 3]> =
            (0..5).flat_map(|l| (0..5).flat_map(move |r| (0..40).map(move |i| [l, r, i]))).collect();
        let of = |seed| places.iter().map(|&place| prompts(seed).at(place)).collect::<Vec<_>>();
        assert_eq!(of(1), of(1));
        let all: HashSet<String> = of(1).into_iter().chain(of(2)).chain(of(u64::MAX)).collect();
        assert_eq!(all.len(), 3 * places.len());
        // A cache of blocks finds nothing: even the first word is one of very many.
        let first: HashSet<&str> = all.iter().filter_map(|prompt| prompt.split(' ').next()).collect();
        assert!(first.len() > all.len() * 99 / 100, "{} of {}", first.len(), all.len());
    }

    #[test]
    fn a_prompt_is_a_number_and_words() {
        let prompt = Prompts::new(1, 3, 0).at([0, 0, 0]);
        let words: Vec<&str> = prompt.split(' ').collect();
        assert!(words[0].parse::<u64>().expect("a number") < NUMBERS);
        assert_eq!(words.len(), 4);
        let known: HashSet<&str> = WORDS.split_whitespace().collect();
        assert!(words[1..].iter().all(|word| known.contains(word)), "{prompt}");
        assert_eq!(known.len(), 120);
        assert!(known.iter().all(|word| word.bytes().all(|b| b.is_ascii_lowercase())));
    }

    #[test]
    fn a_prefix_is_all_that_prompts_share() {
        let prompts = Prompts::new(1, 3, 50);
        let prefix = |prompt: &str| prompt.split(' ').take(50).collect::<Vec<_>>().join(" ");
        let (a, b) = (prompts.at([0, 0, 0]), prompts.at([2, 7, 1]));
        assert_eq!(prefix(&a), prefix(&b));
        assert_eq!(a.split(' ').count(), 54);
        assert_ne!(a.split(' ').nth(50), b.split(' ').nth(50));
        assert_ne!(prefix(&a), prefix(&Prompts::new(2, 3, 50).at([0, 0, 0])));
        // Without the prefix, they are the prompts that they would be without one.
        assert!(a.ends_with(&Prompts::new(1, 3, 0).at([0, 0, 0])));
    }
}
