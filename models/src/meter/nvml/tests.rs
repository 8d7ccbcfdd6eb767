use std::io::Write;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::*;

const UUID: [u8; 16] =
    [0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff];

/// Where a log's lines go.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What comes of it, and the lines in the log.
fn logged<T>(run: impl FnOnce() -> T) -> (T, Vec<String>) {
    let lines = Lines::default();
    let log = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || log.clone()).finish();
    let result = tracing::subscriber::with_default(subscriber, run);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    (result, text.lines().map(str::to_owned).collect())
}

#[test]
fn without_the_library_one_line_says_that_nothing_is_measured() {
    let (meter, lines) = logged(|| opened("libnvidia-ml-is-not-here.so.1".as_ref(), UUID));
    assert!(meter.is_none());
    assert_eq!(lines.len(), 1, "{lines:?}");
    for part in ["energy and load are not measured", "GPU-00112233-4455", "libnvidia-ml-is-not-here.so.1"] {
        assert!(lines[0].contains(part), "{part}: {}", lines[0]);
    }
    let real = std::path::Path::new("/dev/nvidiactl").exists();
    let (meter, lines) = logged(|| of_nvidia(UUID));
    assert!(meter.is_none(), "no GPU has this UUID");
    assert!(lines.len() == 1 && (real || lines[0].contains(LIBRARY)), "{lines:?}");
}

/// The calls, through a library that is loaded as the driver's is.
#[test]
fn a_library_that_answers_is_asked_and_one_that_ceases_is_said_to() {
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("libnvidia-ml.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/meter/nvml/stand_in.c");
    let mut compile = Command::new("cc");
    compile.args(["-shared", "-fPIC", "-Wall", "-Werror", source, "-o"]).arg(&library);
    match compile.status() {
        Ok(status) => assert!(status.success(), "cc {source}"),
        // Not `eprintln`, which the test harness keeps to itself when a test passes.
        Err(error) => {
            return writeln!(std::io::stderr(), "\n*** SKIPPED: NVML's calls: cc: {error}\n").unwrap();
        }
    }
    let mut other = UUID;
    other[15] = 0;
    let (meter, lines) = logged(|| opened(library.as_os_str(), other));
    assert!(meter.is_none() && lines.len() == 1 && lines[0].contains("no such GPU"), "{lines:?}");
    let (meter, lines) = logged(|| opened(library.as_os_str(), UUID));
    let meter = meter.expect("it answers");
    assert!(
        lines.len() == 1 && lines[0].contains("Stand-in") && lines[0].contains("energy=true"),
        "{lines:?}"
    );
    let sample = Sample {
        energy_millijoules: Some(1_000_000_025_000),
        power_milliwatts: Some(250_000),
        busy_percent: Some(87),
        memory_used: Some(30 << 30),
        memory: Some(80 << 30),
        celsius: None,
    };
    assert_eq!(meter.sample(), Some(sample));
    let begun = Instant::now();
    while meter.sample().is_some() && begun.elapsed() < Duration::from_secs(60) {
        std::thread::yield_now();
    }
    assert_eq!(meter.sample(), None, "the GPU was lost");
    assert_eq!(meter.energy_seen(), Some(50_000_000_000_000), "two answers of 25 J each");
}
