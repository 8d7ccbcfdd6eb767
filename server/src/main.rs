//! The binary `frugal`: what to do, and how it ended.

use std::io::Write as _;
use std::process::ExitCode;

use frugal_config::cli::{self, Command};

/// Usage or configuration is wrong.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let command = match cli::from_process() {
        Ok(command) => command,
        Err(error) => return fail(&error.into(), EXIT_USAGE),
    };
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Config(text) => Ok(std::io::stdout().write_all(text.as_bytes())?),
        Command::Serve(_) | Command::Bench(..) | Command::Upcycle(_) => anyhow::bail!("not in this build"),
    }
}

/// One line: what was attempted and why it did not work.
fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("frugal: {error:#}");
    ExitCode::from(code)
}
