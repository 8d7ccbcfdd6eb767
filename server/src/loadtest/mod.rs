//! `frugal load`: a running server, loaded as many clients would.
//!
//! A closed loop: `--clients` requests are under way at any time, each over a connection of its own, and the next begins when
//! one ends. Before the first level each server answers one request that is not counted. One thread does all of it, as the other
//! cores may belong to the server. A signal ends it with what was measured until then, but for the level or the round that is under way.

mod against;
mod figures;
mod measure;
mod prompts;

use std::io::{IsTerminal as _, Write as _};

use anyhow::Context as _;
use frugal_config::cli::Load;
use serde_json::{Map, Value, json};

use self::against::Round;
use self::figures::{Figures, HEADINGS, LEGEND, clients};
use self::measure::Server;
use self::prompts::Prompts;
use crate::lifecycle::{EXIT_INTERRUPTED, Signals};
use crate::serve::allow_descriptors;
use crate::terminal::{printable_line, table};

/// Measures and prints.
pub(crate) fn run(load: &Load) -> anyhow::Result<()> {
    allow_descriptors(load.clients.iter().copied().max().unwrap_or(1) as usize);
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().context("cannot start a runtime")?;
    runtime.block_on(async {
        let mut signals = Signals::new()?;
        let seed = load.seed.map_or_else(random_seed, Ok)?;
        let Some(ready) = signals.unless(servers(load, seed)).await else { interrupted() };
        let (ours, theirs) = ready?;
        let test = Test { load, seed, ours, prompts: Prompts::new(seed, load.prompt, load.prefix) };
        match &theirs {
            None => test.alone(&mut signals).await,
            Some(theirs) => test.against(theirs, &mut signals).await,
        }
    })
}

/// Both, or the one there is, once they have answered.
async fn servers(load: &Load, seed: u64) -> anyhow::Result<(Server, Option<Server>)> {
    let ours = Server::new("--url", &load.url, load).await?;
    let theirs = match &load.against {
        None => None,
        Some(url) => Some(Server::new("--against", url, load).await?),
    };
    for server in [&ours].into_iter().chain(&theirs) {
        progress(&format!("{}: one request that is not counted", server.url()));
        // Without the words that all share, which the first level brings.
        server.warm_up(Prompts::new(seed, load.prompt, 0).at([u32::MAX; 3])).await;
    }
    Ok((ours, theirs))
}

/// All that was measured has been printed.
fn interrupted() -> ! {
    std::process::exit(EXIT_INTERRUPTED)
}

/// So that a second run does not find its prompts in a server's cache. Short, as it may be typed again.
fn random_seed() -> anyhow::Result<u64> {
    let mut random = [0; 4];
    getrandom::fill(&mut random).context("the system gives no random numbers")?;
    Ok(u32::from_le_bytes(random).into())
}

/// What is measured, and with what.
struct Test<'a> {
    load: &'a Load,
    seed: u64,
    ours: Server,
    prompts: Prompts,
}

impl Test<'_> {
    /// Lines as they come, or a table of what there is when nothing more will.
    async fn alone(&self, signals: &mut Signals) -> anyhow::Result<()> {
        let mut levels: Vec<Figures> = Vec::new();
        let (mut result, mut whole) = (Ok(()), true);
        for level in 0..self.load.clients.len() {
            let Some(figures) = signals.unless(self.measure(&self.ours, level, 0)).await else {
                whole = false;
                break;
            };
            result = figures.check(self.ours.url());
            if self.load.json {
                let own = json!({ "url": self.ours.url(), "model": self.ours.model });
                print(&self.line(&[own, json!(figures)]))?;
            }
            levels.push(figures);
            if result.is_err() {
                break;
            }
        }
        if !self.load.json && !levels.is_empty() {
            let rows: Vec<_> = levels.iter().map(Figures::row).collect();
            let notes = levels.iter().flat_map(|level| level.notes(self.load.output));
            let notes: String = notes.map(|note| format!("{note}\n")).collect();
            let title = self.title(&[&self.ours]);
            print(&format!("{title}\n\n{}\n{LEGEND}\n{notes}", table(&HEADINGS, &rows)))?;
        }
        if whole { result } else { interrupted() }
    }

    /// A table or a line for each level, of what there is.
    async fn against(&self, theirs: &Server, signals: &mut Signals) -> anyhow::Result<()> {
        if !self.load.json {
            print(&format!("{}\n", self.title(&[&self.ours, theirs])))?;
        }
        for (level, &count) in self.load.clients.iter().enumerate() {
            let (mut rounds, mut result, mut whole) = (Vec::new(), Ok(()), true);
            for round in 0..self.load.rounds {
                let Some(turn) = signals.unless(self.round(theirs, level, round)).await else {
                    whole = false;
                    break;
                };
                result = turn.ours.check(self.ours.url()).and(turn.theirs.check(theirs.url()));
                rounds.push(turn);
                if result.is_err() {
                    break;
                }
            }
            if !rounds.is_empty() {
                self.show(theirs, count, &rounds)?;
            }
            if !whole {
                interrupted();
            }
            result?;
        }
        Ok(())
    }

    /// A table or a line of a level's rounds.
    fn show(&self, theirs: &Server, count: u32, rounds: &[Round]) -> anyhow::Result<()> {
        if self.load.json {
            let own = json!({
                "url": self.ours.url(), "model": self.ours.model,
                "against": theirs.url(), "against_model": theirs.model,
                "clients": count,
            });
            return print(&self.line(&[own, Value::Object(against::json(rounds))]));
        }
        let notes = rounds.iter().enumerate().flat_map(|(i, Round { ours, theirs })| {
            let of = [("ours", ours), ("theirs", theirs)].map(|(whose, figures)| {
                let notes = figures.notes(self.load.output).into_iter();
                notes.map(move |note| format!("round {}, {whose}, {note}\n", i + 1))
            });
            of.into_iter().flatten()
        });
        let notes: String = notes.collect();
        print(&format!("\n{}\n{}{notes}", clients(count), against::text(rounds)))
    }

    /// Both servers, with the same prompts. Whoever begins has the cooler machine.
    async fn round(&self, theirs: &Server, level: usize, round: u32) -> Round {
        if round.is_multiple_of(2) {
            let ours = self.measure(&self.ours, level, round).await;
            Round { ours, theirs: self.measure(theirs, level, round).await }
        } else {
            let theirs = self.measure(theirs, level, round).await;
            Round { ours: self.measure(&self.ours, level, round).await, theirs }
        }
    }

    async fn measure(&self, server: &Server, level: usize, round: u32) -> Figures {
        let Load { requests, output, .. } = self.load;
        let count = self.load.clients.get(level).copied().unwrap_or(1);
        progress(&format!("{}: {}, {requests} requests", server.url(), clients(count)));
        let prompts = (0..*requests).map(|i| self.prompts.at([level as u32, round, i]));
        Figures::new(&server.level(count, prompts).await, *output)
    }

    fn title(&self, servers: &[&Server]) -> String {
        let Load { requests, prompt, prefix, output, .. } = self.load;
        let servers: Vec<String> =
            servers.iter().map(|server| format!("{} ({})", server.url(), server.model)).collect();
        let shared = if *prefix > 0 { format!("{prefix} shared words and ") } else { String::new() };
        printable_line(&format!(
            "{}: {requests} requests a level, prompts of {shared}{prompt} words, {output} tokens of output, --seed {}",
            servers.join(" / "),
            self.seed
        ))
    }

    /// One line of all these objects' fields, and of what was asked for.
    fn line(&self, objects: &[Value]) -> String {
        let Load { requests, prompt, prefix, output, .. } = self.load;
        let asked = json!({
            "requests": requests, "prompt_words": prompt, "prefix_words": prefix, "answer_tokens": output,
            "seed": self.seed,
        });
        let mut line = Map::new();
        for object in objects.iter().chain([&asked]) {
            line.extend(object.as_object().cloned().unwrap_or_default());
        }
        format!("{}\n", Value::Object(line))
    }
}

/// At once: a level takes minutes.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// For whoever waits.
fn progress(what: &str) {
    let mut error = std::io::stderr();
    if error.is_terminal() {
        // Nobody who does not read it misses it.
        let _ = writeln!(error, "{}", printable_line(what));
    }
}
