//! OpenAI's own client against the server.

use std::path::Path;
use std::process::Command;

use crate::harness::Server;

/// What `run.sh` exits with if there is no client to run.
const NOT_TESTED: i32 = 77;

#[tokio::test]
async fn openais_python_client() {
    let server = Server::new().await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/run.sh");
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("openai-venv");
    let mut command = Command::new(script);
    command.arg(&server.url).env("OPENAI_VENV", venv);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(NOT_TESTED) {
        // Past the test harness, which would swallow it.
        std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes()).unwrap();
        return;
    }
    assert!(output.status.success(), "{text}");
    assert!(text.contains("all good"), "{text}");
    server.settle().await;
}
