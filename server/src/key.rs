//! `frugal key`: an API key that only its holder will know.

use std::io::Write as _;

use anyhow::Context as _;
use frugal_config::auth::Key;

/// Prints the line for the file of keys, and beside it, for people, the key itself.
pub(crate) fn run(name: &str) -> anyhow::Result<()> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).context("the system gives no random numbers")?;
    let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let key = format!("sk-{digits}");
    writeln!(std::io::stdout(), "{}", Key::new(name, &key).line())?;
    writeln!(std::io::stderr(), "The key of {name}, which is kept nowhere: {key}")?;
    Ok(())
}
