//! `frugal bench --against COMMAND`: the same figures of two engines, measured in turns.
//!
//! A machine's speed can change by half within minutes, so rounds alternate who begins, each is shown beside what the
//! machine gave at that moment, and what is compared is the two figures of a round: the ratio is the median of the
//! rounds' ratios, not the ratio of the medians.

use std::process::{Command, Stdio};

use anyhow::Context as _;
use frugal_config::Config;
use frugal_config::cli::Bench;
use frugal_models::cpu::probe::{Probe, probe};
use serde_json::{Map, Value, json};

use super::{Device, Figure, Measured, machine, measure, median, rounded};
use crate::load;
use crate::terminal::{printable_line, table};

/// Of a failing command's words, the last.
const COMPLAINT_BYTES_MAX: usize = 2000;

/// One turn of each.
struct Round {
    probe: Probe,
    ours: Vec<Figure>,
    /// In the order of `ours`; None if the command does not measure that.
    theirs: Vec<Option<f64>>,
}

/// Measures in turns; text or a line of JSON.
pub(super) fn run(config: &Config, bench: &Bench, command: &str) -> anyhow::Result<String> {
    let threads = load::threads(config);
    let mut rounds = Vec::new();
    for i in 0..bench.rounds {
        let probe = probe(threads).context("cannot probe the machine")?;
        // Whoever begins has the cooler machine.
        let before = if i % 2 == 1 { Some(output(command)?) } else { None };
        let Measured { figures: ours, .. } = measure(config, bench)?;
        let line = before.map_or_else(|| output(command), Ok)?;
        let theirs = figures(&line, &ours).with_context(|| format!("`{command}`"))?;
        rounds.push(Round { probe, ours, theirs });
        tracing::info!(round = i + 1, of = bench.rounds, "measured");
    }
    Ok(match bench.json {
        true => line(command, threads, &rounds),
        false => text(command, &Device::new(load::backend(config), threads), &rounds),
    })
}

/// What a command prints.
fn output(command: &str) -> anyhow::Result<String> {
    let output = Command::new("sh").args(["-c", command]).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run `{command}`"))?;
    if !output.status.success() {
        let from = output.stderr.len().saturating_sub(COMPLAINT_BYTES_MAX);
        let complaint = String::from_utf8_lossy(&output.stderr[from..]);
        anyhow::bail!("`{command}` failed ({}): {}", output.status, complaint.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command's figures: its last line is a JSON object, in which they have our names.
fn figures(output: &str, ours: &[Figure]) -> anyhow::Result<Vec<Option<f64>>> {
    let last = output.lines().rfind(|line| !line.trim().is_empty()).context("printed nothing")?;
    let object: Map<String, Value> =
        serde_json::from_str(last).context("did not print a JSON object as its last line")?;
    let figure = |(name, _): &Figure| object.get(name).and_then(Value::as_f64).filter(|&rate| rate > 0.0);
    let theirs: Vec<Option<f64>> = ours.iter().map(figure).collect();
    anyhow::ensure!(theirs.iter().any(Option::is_some), "has none of our figures: {}", printable_line(last));
    Ok(theirs)
}

/// Medians of one figure over all rounds: ours, theirs, and the ratio.
fn medians(rounds: &[Round], figure: usize) -> (f64, Option<f64>, Option<f64>) {
    let ours = median(rounds.iter().filter_map(|round| Some(round.ours.get(figure)?.1)).collect());
    let pairs =
        || rounds.iter().filter_map(|round| Some((round.ours.get(figure)?.1, (*round.theirs.get(figure)?)?)));
    let theirs = median(pairs().map(|(_, theirs)| theirs).collect());
    (ours.unwrap_or(0.0), theirs, median(pairs().map(|(ours, theirs)| ours / theirs).collect()))
}

fn names(rounds: &[Round]) -> Vec<&str> {
    rounds.first().map_or(Vec::new(), |round| round.ours.iter().map(|(name, _)| name.as_str()).collect())
}

fn text(command: &str, device: &Device, rounds: &[Round]) -> String {
    let names = names(rounds);
    let shown = |rate: Option<f64>| rate.map_or("-".to_owned(), |rate| format!("{rate:.1}"));
    let pair = |ours: f64, theirs: Option<f64>| format!("{ours:.1} / {}", shown(theirs));
    let mut rows = Vec::new();
    for (i, round) in rounds.iter().enumerate() {
        let mut row = vec![(i + 1).to_string()];
        row.extend([round.probe.additions, round.probe.read].map(|rate| format!("{:.1}", rate / 1e9)));
        row.extend(round.ours.iter().zip(&round.theirs).map(|((_, ours), theirs)| pair(*ours, *theirs)));
        rows.push(row);
    }
    let mut middle = vec!["median".to_owned()];
    let probes = [|probe: &Probe| probe.additions, |probe: &Probe| probe.read];
    middle
        .extend(probes.map(|of| shown(median(rounds.iter().map(|round| of(&round.probe) / 1e9).collect()))));
    let mut ratios = vec!["ratio".to_owned(), String::new(), String::new()];
    for figure in 0..names.len() {
        let (ours, theirs, ratio) = medians(rounds, figure);
        middle.push(pair(ours, theirs));
        ratios.push(ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")));
    }
    rows.extend([middle, ratios]);
    let headings = [&["round", "Gadd/s", "GB/s"], names.as_slice()].concat();
    format!("frugal / {}, {device}, tokens/s\n\n{}", printable_line(command), table(&headings, &rows))
}

fn line(command: &str, threads: usize, rounds: &[Round]) -> String {
    let names = names(rounds);
    let object = |rates: Vec<Option<f64>>| -> Value {
        let rates = names
            .iter()
            .zip(rates)
            .filter_map(|(name, rate)| Some(((*name).to_owned(), json!(rounded(rate?)))));
        Value::Object(rates.collect())
    };
    let each: Vec<Value> = rounds
        .iter()
        .map(|round| {
            let ours = object(round.ours.iter().map(|(_, rate)| Some(*rate)).collect());
            json!({ "machine": machine(threads, round.probe), "frugal": ours, "against": object(round.theirs.clone()) })
        })
        .collect();
    let all: Vec<_> = (0..names.len()).map(|figure| medians(rounds, figure)).collect();
    let object = json!({
        "command": command,
        "threads": threads,
        "rounds": each,
        "frugal": object(all.iter().map(|median| Some(median.0)).collect()),
        "against": object(all.iter().map(|median| median.1).collect()),
        "ratio": object(all.iter().map(|median| median.2).collect()),
    });
    format!("{object}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(pp: f64, tg: f64) -> Vec<Figure> {
        vec![("pp8".to_owned(), pp), ("tg1".to_owned(), tg)]
    }

    fn rounds() -> Vec<Round> {
        let round = |fast: f64, theirs: Option<f64>| Round {
            probe: Probe { additions: fast * 1e9, read: fast * 2e9 },
            ours: ours(fast * 4.0, fast),
            theirs: vec![Some(fast), theirs],
        };
        // The machine slows down to half in the middle: ratios do not.
        vec![round(10.0, Some(20.0)), round(5.0, Some(10.0)), round(12.0, None)]
    }

    #[test]
    fn a_commands_last_line_has_the_figures() {
        let read = |output: &str| figures(output, &ours(1.0, 1.0));
        let line = r#"{"engine":"x","pp8":2.5,"tg1":3,"tg8":9}"#;
        assert_eq!(read(&format!("loading\n{line}\n\n")).unwrap(), [Some(2.5), Some(3.0)]);
        assert_eq!(read(r#"{"tg1":3,"pp8":"fast"}"#).unwrap(), [None, Some(3.0)]);
        assert_eq!(read(r#"{"tg1":3,"pp8":0}"#).unwrap(), [None, Some(3.0)]);
        for (wrong, said) in
            [("", "nothing"), ("[1]", "JSON object"), ("x", "JSON object"), ("{}", "none of our figures")]
        {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn ratios_are_of_rounds() {
        assert_eq!(medians(&rounds(), 0), (40.0, Some(10.0), Some(4.0)));
        assert_eq!(medians(&rounds(), 1), (10.0, Some(15.0), Some(0.5)));
        insta::assert_snapshot!("against", text("peer --json", &Device::Threads(2), &rounds()));
        let line: Value = serde_json::from_str(&line("peer --json", 2, &rounds())).unwrap();
        insta::assert_json_snapshot!("against_json", line);
    }

    #[test]
    fn a_command_that_fails_is_quoted() {
        assert_eq!(output("echo a; echo b >&2").unwrap(), "a\n");
        let error = output("echo broken >&2; exit 7").unwrap_err().to_string();
        assert!(error.contains("exit status: 7") && error.ends_with("broken"), "{error}");
    }
}
