//! Signals, clocks, descriptors and threads that fail while requests run.

use std::io::Read as _;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::process::{Running, fixture, frugal, get, post, send, skip};
use crate::watch::{LONG, WATCHED, answer, settled, to_end, until};

/// Streams that have begun.
fn load(address: &str, streams: usize) -> Vec<TcpStream> {
    let begin = |_| {
        let mut stream = send(address, "POST", "/v1/completions", LONG, &[]);
        let mut first = [0; 12];
        stream.read_exact(&mut first).expect("a stream");
        assert_eq!(&first, b"HTTP/1.1 200");
        stream
    };
    (0..streams).map(begin).collect()
}

/// A command under a shell that prepares its ground; the process becomes the command.
fn after(preparation: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{preparation} && exec \"$@\""), "sh"]).arg(command.get_program());
    shell.args(command.get_args()).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    shell
}

fn serve(args: &[&str]) -> Command {
    let model = fixture("qwen3moe-Q4_K_M.gguf");
    let serve = ["serve", "--model", &model, "--kv-memory", "64MiB", "--set", "server.port=0"];
    let quick = ["--set", "cpu.threads=1", "--set", "server.drain_timeout_s=1"];
    frugal(&[&serve[..], &WATCHED, &quick, args].concat(), &[])
}

#[test]
fn killed_under_load_it_starts_again() {
    let server = Running::launch(serve(&[]));
    let (address, text) = (server.address.clone(), answer(&server.address));
    let streams = load(&address, 16);
    server.send_signal("KILL");
    assert_eq!(server.status().code(), None, "killed");
    streams.into_iter().for_each(|stream| drop(to_end(stream)));
    // On the same port, whose old connections the system still remembers.
    let port = address.rsplit_once(':').expect("a port").1;
    let server = Running::launch(serve(&["--set", &format!("server.port={port}")]));
    assert_eq!((&server.address, answer(&server.address)), (&address, text));
    settled(&address);
    assert_eq!(server.terminate(), 0);
}

#[test]
fn terminated_under_load_every_stream_is_told() {
    let server = Running::launch(serve(&[]));
    let streams = load(&server.address, 32);
    server.signal();
    for stream in streams {
        let text = to_end(stream);
        assert!(text.contains("data: [DONE]") || text.contains("shutting_down"), "{text}");
    }
    assert_eq!(server.wait(), 0);
}

#[test]
fn stopped_and_continued_it_goes_on() {
    let server = Running::launch(serve(&["--set", "scheduler.stall_timeout_s=1"]));
    let streams = load(&server.address, 4);
    server.send_signal("STOP");
    // Longer than the engine may be silent; and longer than looks at it are apart.
    let mut silent = TcpStream::connect(&server.address).expect("the system still accepts");
    silent.set_read_timeout(Some(Duration::from_secs(3))).expect("a timeout");
    assert!(silent.read(&mut [0]).is_err(), "a stopped process says nothing");
    server.send_signal("CONT");
    complete(streams);
    goes_on(server);
}

/// Each stream gets to its end.
fn complete(streams: Vec<TcpStream>) {
    for stream in streams {
        let text = to_end(stream);
        assert!(text.contains("data: [DONE]"), "{text}");
    }
}

/// As if nothing had been.
fn goes_on(server: Running) {
    assert_eq!(get(&server.address, "/livez").status, 200);
    settled(&server.address);
    assert_eq!(server.terminate(), 0);
}

/// The library that the tests' `gcc` makes of `clock.c`.
fn clock(folder: &Path) -> String {
    let library = folder.join("clock.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/siege/clock.c");
    let built =
        Command::new("gcc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).status();
    assert!(built.expect("gcc, which the build needs too").success());
    library.to_string_lossy().into_owned()
}

#[test]
fn the_wall_clock_may_jump() {
    let folder = tempfile::tempdir().expect("a folder");
    let offset = folder.path().join("offset");
    std::fs::write(&offset, "0").expect("a file");
    let mut command =
        serve(&["--set", "scheduler.stall_timeout_s=5", "--set", "server.request_timeout_s=100"]);
    command.env("LD_PRELOAD", clock(folder.path())).env("CLOCK_OFFSET_FILE", &offset);
    let server = Running::launch(command);
    let created = || {
        let chat = post(&server.address, "/v1/chat/completions", crate::watch::CHAT, &[]);
        let body: serde_json::Value = serde_json::from_str(&chat.body).expect("JSON");
        body["created"].as_i64().expect("a time")
    };
    let now = created();
    for jump in [-1_000_000_000, 1_000_000_000, 0] {
        let streams = load(&server.address, 1);
        std::fs::write(&offset, jump.to_string()).expect("a file");
        // The jump is seen, so the test tests something.
        assert!((created() - now - jump).abs() < 10_000, "the clock did not jump");
        complete(streams);
        assert_eq!(get(&server.address, "/livez").status, 200);
    }
    goes_on(server);
}

#[test]
fn without_descriptors_it_waits_and_recovers() {
    let server = Running::launch(after("ulimit -n 40", &serve(&[])));
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.id())).expect("it lives");
        let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
        fields[11].parse::<u64>().expect("a number") + fields[12].parse::<u64>().expect("a number")
    };
    let idle: Vec<_> =
        (0..100).map(|_| TcpStream::connect(&server.address).expect("accepted or queued")).collect();
    let mut late = send(&server.address, "GET", "/livez", "", &[]);
    let before = ticks();
    late.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
    assert!(late.read(&mut [0]).is_err(), "there is no descriptor for it");
    let spent = ticks() - before;
    assert!(spent < 100, "{spent} hundredths of a second were spent on waiting for 2 seconds");
    drop(idle);
    assert_eq!(get(&server.address, "/livez").status, 200);
    answer(&server.address);
    settled(&server.address);
    let log = server.stop();
    // Ten attempts a second fail for two seconds; what is logged are changes.
    assert!((1..=8).contains(&log.matches("cannot accept connections").count()), "{log}");
    assert!(log.contains("connections are accepted again"), "{log}");
}

/// A thread of a server that a debugger has stopped, until the value is dropped.
struct Frozen(Pid);

impl Frozen {
    /// One that computes, of which the engine's step then waits. None, said aloud, where the system forbids it.
    fn computing(server: &Running) -> Option<Self> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", server.id())).expect("it lives");
        let named = tasks.flatten().find(|task| {
            std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == "frugal-cpu-1")
        });
        let id = named.expect("it computes on two threads").file_name().to_string_lossy().parse();
        let thread = Pid::from_raw(id.expect("a number"));
        if let Err(error) = ptrace::seize(thread, ptrace::Options::empty()) {
            skip(&format!("a step that hangs: cannot stop a thread: {error}"));
            return None;
        }
        ptrace::interrupt(thread).expect("our thread");
        waitpid(thread, Some(WaitPidFlag::__WALL)).expect("it stops");
        Some(Self(thread))
    }

    /// Waits for its end, which the process's own waits for.
    fn end(self) {
        waitpid(self.0, Some(WaitPidFlag::__WALL)).expect("it ends with its process");
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // It has ended already, unless the test failed.
        let _ = ptrace::detach(self.0, None);
    }
}

#[test]
fn a_step_that_hangs_is_given_up() {
    let server = Running::launch(serve(&["--set", "scheduler.stall_timeout_s=1", "--set", "cpu.threads=2"]));
    let mut streams = load(&server.address, 3);
    let Some(frozen) = Frozen::computing(&server) else { return };
    streams.push(send(&server.address, "POST", "/v1/completions", LONG, &[]));
    // Not alive, by its own word, before it ends.
    until("stalled", || get(&server.address, "/livez").status == 503);
    for stream in streams {
        let text = to_end(stream);
        assert!(text.contains("no step was committed for") && !text.contains("[DONE]"), "{text}");
    }
    frozen.end();
    let mut log = String::new();
    assert_eq!(server.wait_log(&mut log), 1, "{log}");
    assert!(log.contains("frugal: the engine has stopped: no step was committed for"), "{log}");
}

#[test]
fn a_step_that_outlasts_the_drain_is_an_error() {
    let server = Running::launch(serve(&["--set", "cpu.threads=2"]));
    let streams = load(&server.address, 3);
    let Some(frozen) = Frozen::computing(&server) else { return };
    server.signal();
    for stream in streams {
        let text = to_end(stream);
        assert!(text.contains("its last step did not end") && !text.contains("[DONE]"), "{text}");
    }
    frozen.end();
    assert_eq!(server.wait(), 1);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let patient = ["--set", "cpu.threads=2", "--set", "server.drain_timeout_s=600"];
    let server = Running::launch(serve(&patient));
    let streams = load(&server.address, 1);
    let Some(frozen) = Frozen::computing(&server) else { return };
    server.signal();
    until("drained", || get(&server.address, "/readyz").status == 503);
    server.signal();
    frozen.end();
    let mut log = String::new();
    assert_eq!(server.wait_log(&mut log), 1, "{log}");
    assert!(log.contains("frugal: stopped at once by a second signal"), "{log}");
    streams.into_iter().for_each(|stream| drop(to_end(stream)));
}
