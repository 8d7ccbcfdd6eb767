//! `frugal load --against URL`: the same load on two servers, in turns.
//!
//! As with `frugal bench --against`, rounds alternate who begins, and what is compared is the two figures of a round: the ratio
//! is the median of the rounds' ratios, not the ratio of the medians. Both get the same prompts and each round new ones, so
//! that nobody's prefix cache knows them; two URLs of one server would have it know half.

use serde_json::{Map, Value, json};

use super::figures::{Figures, shown};
use crate::bench::{median, rounded};
use crate::terminal::table;

/// One turn of each.
pub(super) struct Round {
    pub(super) ours: Figures,
    pub(super) theirs: Figures,
}

/// A figure that is compared: its heading, its name in JSON, and where it is.
type Compared = (&'static str, &'static str, fn(&Figures) -> Option<f64>);

const COMPARED: [Compared; 2] = [
    ("output tokens/s", "output_tokens_per_second", |figures| figures.output_tokens_per_second),
    ("first token p50, ms", "ttft_ms_p50", |figures| figures.ttft_ms_p50),
];

/// Medians of a figure over all rounds: ours, theirs, and the ratio.
fn medians(rounds: &[Round], of: fn(&Figures) -> Option<f64>) -> [Option<f64>; 3] {
    let ratio = |round: &Round| Some(of(&round.ours)? / of(&round.theirs).filter(|&theirs| theirs > 0.0)?);
    [
        median(rounds.iter().filter_map(|round| of(&round.ours)).collect()),
        median(rounds.iter().filter_map(|round| of(&round.theirs)).collect()),
        median(rounds.iter().filter_map(ratio).collect()),
    ]
}

/// A row for each round, then the medians and the ratios.
pub(super) fn text(rounds: &[Round]) -> String {
    let pair = |ours, theirs| format!("{} / {}", shown(ours, 1), shown(theirs, 1));
    let mut rows = Vec::new();
    for (i, Round { ours, theirs }) in rounds.iter().enumerate() {
        let mut row = vec![(i + 1).to_string()];
        row.extend(COMPARED.map(|(.., of)| pair(of(ours), of(theirs))));
        row.push(format!("{} / {}", ours.failed, theirs.failed));
        rows.push(row);
    }
    let (mut middle, mut ratios) = (vec!["median".to_owned()], vec!["ratio".to_owned()]);
    for (.., of) in COMPARED {
        let [ours, theirs, ratio] = medians(rounds, of);
        middle.push(pair(ours, theirs));
        ratios.push(shown(ratio, 2));
    }
    rows.extend([middle, ratios]);
    let [rate, first] = COMPARED.map(|(heading, ..)| heading);
    table(&["round", rate, first, "failed"], &rows)
}

/// The same for programs, with all figures of all rounds.
pub(super) fn json(rounds: &[Round]) -> Map<String, Value> {
    let all = COMPARED.map(|(_, name, of)| (name, medians(rounds, of).map(|figure| figure.map(rounded))));
    let of = |which: usize| {
        let figures = all.iter().map(|(name, figures)| ((*name).to_owned(), json!(figures.get(which))));
        Value::Object(figures.collect())
    };
    let each: Vec<Value> =
        rounds.iter().map(|Round { ours, theirs }| json!({ "ours": ours, "theirs": theirs })).collect();
    let (ours, theirs, ratio) = (of(0), of(1), of(2));
    Map::from_iter(
        [("rounds", each.into()), ("ours", ours), ("theirs", theirs), ("ratio", ratio)]
            .map(|(name, value)| (name.to_owned(), value)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(rate: Option<f64>, first: Option<f64>, failed: usize) -> Figures {
        let mut figures = Figures::default();
        (figures.output_tokens_per_second, figures.ttft_ms_p50, figures.failed) = (rate, first, failed);
        figures
    }

    fn rounds() -> Vec<Round> {
        let round = |fast: f64, first, failed| Round {
            ours: figures(Some(fast * 2.0), Some(1000.0 / fast), 0),
            theirs: figures(Some(fast), first, failed),
        };
        // The machine slows down to half in the middle: ratios do not.
        vec![round(10.0, Some(50.0), 0), round(5.0, Some(100.0), 0), round(12.0, None, 3)]
    }

    #[test]
    fn ratios_are_of_rounds() {
        let [(.., rate), (.., first)] = COMPARED;
        assert_eq!(medians(&rounds(), rate), [Some(20.0), Some(10.0), Some(2.0)]);
        assert_eq!(medians(&rounds(), first), [Some(100.0), Some(75.0), Some(2.0)]);
        assert_eq!(medians(&[], first), [None; 3]);
        insta::assert_snapshot!("against", text(&rounds()));
        let json = Value::Object(json(&rounds()));
        assert_eq!(json["ratio"], json!({ "output_tokens_per_second": 2.0, "ttft_ms_p50": 2.0 }));
        assert_eq!(json["theirs"], json!({ "output_tokens_per_second": 10.0, "ttft_ms_p50": 75.0 }));
        assert_eq!(json["rounds"][2]["theirs"]["failed"], 3);
    }

    #[test]
    fn a_turn_without_answers_has_no_part_in_the_medians() {
        let round = |theirs| Round { ours: figures(Some(20.0), Some(100.0), 0), theirs };
        let rounds = [round(figures(Some(10.0), Some(50.0), 0)), round(figures(None, None, 3))];
        for (.., of) in COMPARED {
            assert_eq!(medians(&rounds, of), medians(&rounds[..1], of));
        }
        insta::assert_snapshot!("against_failed", text(&rounds));
    }
}
