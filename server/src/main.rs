//! The binary `frugal`: what to do, and how it ended.

mod bench;
mod chat;
mod client;
mod health;
mod inspect;
mod key;
mod lifecycle;
mod load;
mod loadtest;
mod logging;
mod misuse;
mod notify;
mod random;
mod reload;
mod selftest;
mod serve;
mod terminal;
mod tls;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use frugal_config::cli::{self, Command, Pack, Upcycle};
use frugal_config::hub::Hub;
use frugal_models::Target;
use frugal_models::cpu::available_threads;
use frugal_models::gguf::answer_file_signals;
use frugal_models::source::{Folders, Progress, Source, Stage, Stop, progress_bar};

use crate::misuse::{Misuse, OrMisuse as _};

/// Usage or configuration is wrong.
const EXIT_USAGE: u8 = 2;
/// The inspected model cannot be served.
const EXIT_NOT_SERVABLE: u8 = 3;

fn main() -> ExitCode {
    let started = Instant::now();
    answer_file_signals();
    let command = match cli::from_process() {
        Ok(command) => command,
        Err(error) => return fail(&error.into(), EXIT_USAGE),
    };
    match run(command, started) {
        Ok(code) => code,
        Err(error) if reader_left(&error) => ExitCode::SUCCESS,
        Err(error) => fail(&error, if error.is::<Misuse>() { EXIT_USAGE } else { 1 }),
    }
}

fn run(command: Command, started: Instant) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(config) => {
            let _written = logging::init(&config.log);
            serve::run(&config, started)?;
        }
        Command::Chat(chat) => chat::run(&chat)?,
        Command::Bench(config, bench) => {
            let _written = logging::init(&config.log);
            bench::run(&config, &bench)?;
        }
        Command::Load(load) => loadtest::run(&load)?,
        Command::Inspect(config, how) => {
            let _written = logging::init(&config.log);
            if !inspect::run(&config, &how)? {
                return Ok(ExitCode::from(EXIT_NOT_SERVABLE));
            }
        }
        Command::Health(probe) => health::run(&probe)?,
        Command::Key(name) => key::run(&name)?,
        Command::GpuSelftest(config) => {
            let _written = logging::init(&config.log);
            if !selftest::run(&config)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Upcycle(job, hub, log) => {
            let _written = logging::init(&log);
            upcycle(&job, &hub)?;
        }
        Command::Pack(job, hub, log) => {
            let _written = logging::init(&log);
            pack(&job, &hub)?;
        }
        Command::Config(text) => io::stdout().write_all(text.as_bytes())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn upcycle(job: &Upcycle, hub: &Hub) -> anyhow::Result<()> {
    let output = target(&job.output, job.force)?;
    let mut bar = progress_bar();
    let input = input(&job.input, hub, &mut bar)?;
    let progress = |done, total| bar(Progress { stage: Stage::Upcycle, done, total });
    frugal_models::upcycle::upcycle(&input, output, (job.experts, job.top_k, job.seed), &[], progress)
        .with_context(|| format!("cannot upcycle {}", job.input))?;
    made(&job.output)
}

fn pack(job: &Pack, hub: &Hub) -> anyhow::Result<()> {
    let output = target(&job.output, job.force)?;
    let mut bar = progress_bar();
    let input = input(&job.input, hub, &mut bar)?;
    let progress = |done, total| bar(Progress { stage: Stage::Pack, done, total });
    frugal_models::pack::pack(&input, output, available_threads(), progress)
        .with_context(|| format!("cannot pack {}", job.input))?;
    made(&job.output)
}

/// Where to write, known to be possible before anything is fetched.
fn target(output: &Path, force: bool) -> anyhow::Result<Target<'_>> {
    let target = Target::new(output, force);
    target.check().or_misuse()?;
    Ok(target)
}

/// The file of a model that is to be converted.
fn input(model: &str, hub: &Hub, progress: &mut dyn FnMut(Progress)) -> anyhow::Result<PathBuf> {
    let folders = Folders { cache: None, hub: load::hub(hub) };
    load::obtain(&Source::parse(model).or_misuse()?, &folders, &Stop::default(), progress)
}

/// Prints what there is now.
fn made(output: &Path) -> anyhow::Result<()> {
    let size = std::fs::metadata(output).with_context(|| format!("cannot find {}", output.display()))?.len();
    let line = terminal::printable_line(&format!("{}, {}", output.display(), terminal::bytes(size)));
    Ok(writeln!(io::stdout(), "{line}")?)
}

/// Whether stdout's reader has had enough, as `head` soon has: there is nobody to tell. What breaks elsewhere has a context.
fn reader_left(error: &anyhow::Error) -> bool {
    let broken = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error.chain().count() == 1 && error.downcast_ref().is_some_and(broken)
}

/// One line: what was attempted and why it did not work. Files and servers have a say in it.
fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    let line = terminal::printable_line(&format!("frugal: {error:#}"));
    // A closed stderr is no reason to panic.
    let _ = writeln!(io::stderr(), "{line}");
    ExitCode::from(code)
}
