//! Calls pip, which knows the user's proxies, mirrors and certificates.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use super::{SourceFault, Stop};

/// How often the size of the download is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// How much of the end of stderr is kept.
const STDERR_BYTES_MAX: usize = 2000;

/// A way to call pip: a program and its first arguments.
#[derive(Clone, Debug)]
pub(super) struct Pip(pub(super) Vec<OsString>);

impl fmt::Display for Pip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = self.0.iter().map(|w| w.to_string_lossy()).collect();
        write!(f, "`{}`", words.join(" "))
    }
}

impl Pip {
    /// Found on the path, the surest first.
    pub(super) fn known() -> Vec<Self> {
        let words = [&["python3", "-m", "pip"][..], &["pip3"], &["pip"], &["python", "-m", "pip"]];
        words.iter().map(|w| Self(w.iter().map(OsString::from).collect())).collect()
    }

    /// Whether it is there: a Python without pip, or a name without a program, is not.
    pub(super) fn works(&self) -> bool {
        let mut command = self.command();
        command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    /// Fetches the wheel of `requirement`, alone, into `folder`, for as long as it is wanted. `report` is told its size so far.
    pub(super) fn download(
        &self,
        requirement: &str,
        folder: &Path,
        stop: &Stop,
        report: &mut dyn FnMut(u64),
    ) -> Result<(), SourceFault> {
        let run = |source| SourceFault::Run { command: self.to_string(), source };
        let mut command = self.command();
        command.args(["download", "--no-deps", "--only-binary=:all:", "--ignore-requires-python"]);
        command.args(["--no-input", "--disable-pip-version-check", "--progress-bar=off"]);
        // A machine without network should hear so in seconds.
        command.args(["--retries=2", "--timeout=15", "--dest"]).arg(folder).arg(requirement);
        // Nothing is installed, so no virtual environment is needed.
        command.env("PIP_REQUIRE_VIRTUALENV", "false");
        // pip downloads here first: where there is room, and where its progress can be seen.
        command.env("TMPDIR", folder);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = Running(command.spawn().map_err(run)?);
        let stderr = child.0.stderr.take().expect("it is piped");
        let stderr = thread::spawn(move || tail(stderr));
        let status = child.wait(stop, || report(largest_file(folder))).map_err(run)?;
        let Some(status) = status else { return Err(SourceFault::Stopped { command: self.to_string() }) };
        let message = stderr.join().expect("reading does not panic");
        if status.success() {
            return Ok(());
        }
        let command = format!("{self} download {requirement}");
        Err(SourceFault::Pip { command, status, message })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.0[0]);
        command.args(&self.0[1..]).stdin(Stdio::null());
        command
    }
}

/// A child that does not outlive this value.
struct Running(Child);

impl Running {
    /// How it ended; None if it is not wanted any more.
    fn wait(&mut self, stop: &Stop, mut meanwhile: impl FnMut()) -> io::Result<Option<ExitStatus>> {
        while !stop.asked() {
            if let Some(status) = self.0.try_wait()? {
                return Ok(Some(status));
            }
            meanwhile();
            thread::sleep(LOOK);
        }
        Ok(None)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail if it has ended, which is as well.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The last lines of a stream, read to its end.
fn tail(mut stream: impl Read) -> String {
    let mut kept = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(len @ 1..) = stream.read(&mut chunk) {
        kept.extend_from_slice(&chunk[..len]);
        kept.drain(..kept.len().saturating_sub(STDERR_BYTES_MAX));
    }
    String::from_utf8_lossy(&kept).trim().to_owned()
}

/// Bytes of the largest file in `folder` and the folders in it. Files may come and go meanwhile.
fn largest_file(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(data) if data.is_dir() => largest_file(&entry.path()),
        Ok(data) => data.len(),
        Err(_) => 0,
    };
    entries.map(size).max().unwrap_or(0)
}
