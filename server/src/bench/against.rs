//! `frugal bench --against COMMAND`: the same figures of two engines, measured in turns.
//!
//! A machine's speed can change by half within minutes, so rounds alternate who begins, each is shown beside what the
//! machine gave at that moment, and what is compared is the two figures of a round: the ratio is the median of the
//! rounds' ratios, not the ratio of the medians. An hour of rounds is not lost to the one that fails, nor to Ctrl-C: those before it are
//! printed.

use std::process::{Command, Stdio};

use anyhow::Context as _;
use frugal_config::Config;
use frugal_config::cli::Bench;
use frugal_models::cpu::probe::{Probe, probe};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::{Figure, Measured, conditions, machine, measure, median, print, rounded};
use crate::lifecycle::{EXIT_INTERRUPTED, Signals};
use crate::load;
use crate::terminal::{printable_line, table};

/// Of a failing command's words, the last.
const COMPLAINT_BYTES_MAX: usize = 2000;

/// One turn of each.
struct Round {
    probe: Probe,
    ours: Measured,
    /// In the order of our figures; None if the command does not measure that.
    theirs: Vec<Option<f64>>,
}

/// Measures in turns and prints text or a line of JSON, of what there is when nothing more will come.
pub(super) fn run(config: &Config, bench: &Bench, command: &str) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let runtime = runtime.context("cannot start a runtime")?;
    let mut signals = runtime.block_on(async { Signals::new() })?;
    let (sender, mut measured) = mpsc::channel(1);
    let mut rounds = Vec::new();
    let show = |rounds: &[Round]| match rounds {
        [] => Ok(()),
        [first, ..] if bench.json => {
            print(&line(command, load::threads(config), conditions(config, bench, &first.ours), rounds))
        }
        [first, ..] => print(&text(command, first, rounds)),
    };
    std::thread::scope(|scope| {
        // Signals are heard here while it computes there.
        scope.spawn(move || {
            for i in 0..bench.rounds {
                let round = round(config, bench, command, i);
                let failed = round.is_err();
                if sender.blocking_send(round).is_err() || failed {
                    break;
                }
            }
        });
        let result: anyhow::Result<()> = runtime.block_on(async {
            loop {
                match signals.unless(measured.recv()).await {
                    Some(Some(round)) => rounds.push(round?),
                    Some(None) => return Ok(()),
                    None => {
                        // What is being measured would be waited for.
                        show(&rounds).ok();
                        std::process::exit(EXIT_INTERRUPTED);
                    }
                }
                tracing::info!(round = rounds.len(), of = bench.rounds, "measured");
            }
        });
        show(&rounds).and(result)
    })
}

/// One turn of each; whoever begins has the cooler machine.
fn round(config: &Config, bench: &Bench, command: &str, i: u32) -> anyhow::Result<Round> {
    let probe = probe(load::threads(config)).context("cannot probe the machine")?;
    let before = if i % 2 == 1 { Some(output(command)?) } else { None };
    let ours = measure(config, bench)?;
    let line = before.map_or_else(|| output(command), Ok)?;
    let theirs = figures(&line, &ours.figures).with_context(|| format!("`{command}`"))?;
    Ok(Round { probe, ours, theirs })
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
    let ours = |round: &Round| Some(round.ours.figures.get(figure)?.1);
    let pairs = || rounds.iter().filter_map(|round| Some((ours(round)?, (*round.theirs.get(figure)?)?)));
    let theirs = median(pairs().map(|(_, theirs)| theirs).collect());
    let ratio = median(pairs().map(|(ours, theirs)| ours / theirs).collect());
    (median(rounds.iter().filter_map(ours).collect()).unwrap_or(0.0), theirs, ratio)
}

fn text(command: &str, first: &Round, rounds: &[Round]) -> String {
    let names = first.ours.names();
    let shown = |rate: Option<f64>| rate.map_or("-".to_owned(), |rate| format!("{rate:.1}"));
    let pair = |ours: f64, theirs: Option<f64>| format!("{ours:.1} / {}", shown(theirs));
    let mut rows = Vec::new();
    for (i, round) in rounds.iter().enumerate() {
        let mut row = vec![(i + 1).to_string()];
        row.extend([round.probe.additions, round.probe.read].map(|rate| format!("{:.1}", rate / 1e9)));
        row.extend(
            round.ours.figures.iter().zip(&round.theirs).map(|((_, ours), theirs)| pair(*ours, *theirs)),
        );
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
    let Measured { model, device, .. } = &first.ours;
    let title = printable_line(&format!("{model}, {device}: frugal / {command}, tokens/s"));
    format!("{title}\n\n{}", table(&headings, &rows))
}

/// With the conditions of the first round, and of the time to load the median.
fn line(command: &str, threads: usize, conditions: Map<String, Value>, rounds: &[Round]) -> String {
    let names: Vec<&str> = rounds.first().map_or(Vec::new(), |round| round.ours.names());
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
            let ours = object(round.ours.figures.iter().map(|(_, rate)| Some(*rate)).collect());
            json!({ "machine": machine(threads, round.probe), "frugal": ours, "against": object(round.theirs.clone()) })
        })
        .collect();
    let all: Vec<_> = (0..names.len()).map(|figure| medians(rounds, figure)).collect();
    let load_s = median(rounds.iter().map(|round| round.ours.load_s).collect()).map(rounded);
    let mut line = conditions;
    line.extend(
        [
            ("load_s", json!(load_s)),
            ("command", json!(command)),
            ("rounds", json!(each)),
            ("frugal", object(all.iter().map(|median| Some(median.0)).collect())),
            ("against", object(all.iter().map(|median| median.1).collect())),
            ("ratio", object(all.iter().map(|median| median.2).collect())),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    format!("{}\n", Value::Object(line))
}

#[cfg(test)]
mod tests {
    use super::super::Device;
    use super::*;

    fn ours(pp: f64, tg: f64) -> Vec<Figure> {
        vec![("pp8".to_owned(), pp), ("tg1".to_owned(), tg)]
    }

    fn rounds() -> Vec<Round> {
        let measured = |fast: f64| Measured {
            model: "m.gguf".to_owned(),
            device: Device::Threads(2),
            load_s: 10.0 / fast,
            figures: ours(fast * 4.0, fast),
        };
        let round = |fast: f64, theirs: Option<f64>| Round {
            probe: Probe { additions: fast * 1e9, read: fast * 2e9 },
            ours: measured(fast),
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
        let rounds = rounds();
        insta::assert_snapshot!("against", text("peer --json", &rounds[0], &rounds));
        let conditions =
            Map::from_iter([("model".to_owned(), json!("m.gguf")), ("load_s".to_owned(), json!(1.0))]);
        let line: Value = serde_json::from_str(&line("peer --json", 2, conditions, &rounds)).unwrap();
        insta::assert_json_snapshot!("against_json", line);
    }

    #[test]
    fn a_command_that_fails_is_quoted() {
        assert_eq!(output("echo a; echo b >&2").unwrap(), "a\n");
        let error = output("echo broken >&2; exit 7").unwrap_err().to_string();
        assert!(error.contains("exit status: 7") && error.ends_with("broken"), "{error}");
    }
}
