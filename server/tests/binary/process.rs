//! The binary under test, and a client of a few lines.
#![allow(dead_code, reason = "part of several test programs, each of which uses what it needs")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

/// Longest silence before a test gives up; no test waits for it to pass.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The binary with these arguments and no other configuration around.
pub(crate) fn frugal(args: &[&str], env: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_frugal"));
    command.args(args).env_clear().envs(env.iter().copied());
    command
}

/// Says that something was not tested. Not by `eprintln`, which the test harness keeps to itself when a test passes.
pub(crate) fn skip(what: &str) {
    writeln!(std::io::stderr(), "\n*** SKIPPED: {what}\n").expect("stderr");
}

/// The path of a model.
pub(crate) fn fixture(name: &str) -> String {
    format!("{}/../tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A server that has announced itself. Killed if the test fails before it ends.
pub(crate) struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// Host and port.
    pub(crate) address: String,
}

impl Running {
    /// Serves a tiny mixture of experts.
    pub(crate) fn start(args: &[&str], env: &[(&str, &str)]) -> Self {
        Self::serve(&fixture("qwen3moe-Q4_K_M.gguf"), args, env)
    }

    /// Serves a model.
    pub(crate) fn serve(model: &str, args: &[&str], env: &[(&str, &str)]) -> Self {
        let fixed = ["serve", "--model", model, "--port", "0", "--threads", "1", "--kv-memory", "64MiB"];
        Self::launch(frugal(&[&fixed[..], args].concat(), env))
    }

    /// A command that becomes a server, whose log is kept.
    pub(crate) fn launch(mut command: Command) -> Self {
        command.stderr(Stdio::piped());
        Self::start_with(command)
    }

    /// A command that becomes a server.
    pub(crate) fn start_with(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the binary runs");
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        stdout.read_line(&mut line).expect("a line");
        let Some((_, address)) = line.trim().rsplit_once("://") else {
            let mut log = String::new();
            if let Some(stderr) = &mut child.stderr {
                stderr.read_to_string(&mut log).expect("the log");
            }
            panic!("no announcement: {line}{log}");
        };
        Self { address: address.to_owned(), child, stdout }
    }

    /// The next line that it prints.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("a line");
        line
    }

    /// Reads the log until it has these words.
    pub(crate) fn log_until(&mut self, words: &str) {
        let stderr = self.child.stderr.as_mut().expect("a pipe");
        let (mut log, mut byte) = (Vec::new(), [0]);
        while !String::from_utf8_lossy(&log).contains(words) {
            let len = stderr.read(&mut byte).expect("the log");
            assert!(len == 1, "it ended without: {words}\n{}", String::from_utf8_lossy(&log));
            log.extend(byte);
        }
    }

    /// Of the process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM.
    pub(crate) fn signal(&self) {
        self.send_signal("TERM");
    }

    /// Any signal, by its name without `SIG`.
    pub(crate) fn send_signal(&self, name: &str) {
        let mut kill = Command::new("kill");
        let killed = kill.args(["-s", name, &self.child.id().to_string()]).status().expect("kill runs");
        assert!(killed.success());
    }

    /// The exit code.
    pub(crate) fn wait(mut self) -> i32 {
        self.child.wait().expect("an end").code().expect("no signal")
    }

    /// How it ended, by a signal too.
    pub(crate) fn status(mut self) -> ExitStatus {
        self.child.wait().expect("an end")
    }

    /// SIGTERM, then the exit code.
    pub(crate) fn terminate(self) -> i32 {
        self.signal();
        self.wait()
    }

    /// The exit code and the log.
    pub(crate) fn wait_log(mut self, log: &mut String) -> i32 {
        self.child.stderr.as_mut().expect("a pipe").read_to_string(log).expect("the log");
        self.wait()
    }

    /// SIGTERM, then the log.
    pub(crate) fn stop(mut self) -> String {
        self.signal();
        let mut log = String::new();
        self.child.stderr.as_mut().expect("a pipe").read_to_string(&mut log).expect("the log");
        log
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A response.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// Sends a request whose response ends with the connection.
pub(crate) fn send(
    address: &str,
    method: &str,
    path: &str,
    body: &str,
    headers: &[(&str, &str)],
) -> TcpStream {
    try_send(address, method, path, body, headers).expect("a connection")
}

fn try_send(
    address: &str,
    method: &str,
    path: &str,
    body: &str,
    headers: &[(&str, &str)],
) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    head += &format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n{body}").as_bytes())?;
    Ok(stream)
}

fn answer(mut stream: TcpStream) -> Option<Answer> {
    let mut bytes = Vec::new();
    // A server that refuses a request half-read may reset the connection behind its answer.
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8(bytes).expect("UTF-8");
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, body: body.to_owned() })
}

/// GET.
pub(crate) fn get(address: &str, path: &str) -> Answer {
    try_get(address, path).expect("a response")
}

/// GET, if the server is still there.
pub(crate) fn try_get(address: &str, path: &str) -> Option<Answer> {
    answer(try_send(address, "GET", path, "", &[]).ok()?)
}

/// POST.
pub(crate) fn post(address: &str, path: &str, body: &str, headers: &[(&str, &str)]) -> Answer {
    answer(send(address, "POST", path, body, headers)).expect("a response")
}

/// GET with a key.
pub(crate) fn get_as(address: &str, path: &str, key: &str) -> Answer {
    let bearer = format!("Bearer {key}");
    answer(send(address, "GET", path, "", &[("authorization", &bearer)])).expect("a response")
}
