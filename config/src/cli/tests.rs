use std::path::Path;

use super::*;

/// The configuration from a file's text, variables and arguments.
fn config(file: &str, env: &[(&str, &str)], args: &[&str]) -> Result<Config, ConfigError> {
    let cli = Cli::try_parse_from([&["frugal"], args].concat()).expect("valid usage");
    let mut layers = Layers::new();
    layers.file_text(Path::new("frugal.toml"), file)?;
    layers.environment(env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))?;
    for (key, value) in &cli.serve.common.set {
        layers.flag("--set", key, value)?;
    }
    let port = &cli.serve.port;
    apply(&mut layers, &[("--port", "server.port", port)])?;
    Config::resolve(&layers)
}

fn help(path: &[&str]) -> String {
    let mut command = Cli::command().term_width(100);
    command.build();
    let mut at = &mut command;
    for name in path {
        at = at.find_subcommand_mut(name).expect("a subcommand");
    }
    at.render_long_help().to_string()
}

#[test]
fn help_texts() {
    insta::assert_snapshot!("help", help(&[]));
    insta::assert_snapshot!("help_serve", help(&["serve"]));
    insta::assert_snapshot!("help_chat", help(&["chat"]));
    insta::assert_snapshot!("help_bench", help(&["bench"]));
    insta::assert_snapshot!("help_load", help(&["load"]));
    insta::assert_snapshot!("help_inspect", help(&["inspect"]));
    insta::assert_snapshot!("help_health", help(&["health"]));
    insta::assert_snapshot!("help_key", help(&["key"]));
    insta::assert_snapshot!("help_upcycle", help(&["upcycle"]));
    insta::assert_snapshot!("help_pack", help(&["pack"]));
    insta::assert_snapshot!("help_config", help(&["config"]));
}

#[test]
fn a_model_that_stands_alone_is_told_its_flag() {
    let refused = |args: &[&str]| {
        let error = parse([&["frugal"], args].concat()).expect_err("no such usage");
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    };
    for args in [
        &["m.gguf"][..],
        &["serve", "m.gguf"],
        &["serve", "--port", "0", "m.gguf"],
        &["bench", "m.gguf"],
        &["config", "m.gguf"],
    ] {
        let error = refused(args);
        assert!(error.contains("a model is given as '--model m.gguf'"), "{args:?}: {error}");
    }
    assert!(refused(&["serve", "hf:o/r"]).contains("'--model hf:o/r'"));
    assert!(!refused(&["serve", "x"]).contains("--model x"));
    assert!(refused(&["chta"]).contains("'chat'"));
}

#[test]
fn a_model_to_look_at_may_be_named_by_the_flag() {
    let model = |args: &[&str]| match asked(&[&["inspect"], args].concat(), &[]) {
        Ok(Command::Inspect(config, _)) => config.model.source,
        other => panic!("{other:?}"),
    };
    assert_eq!(model(&["--model", "x"]).as_deref(), Some("x"));
    assert_eq!(model(&["x"]), model(&["--model", "x"]));
    assert!(parse(["frugal", "inspect", "x", "--model", "x"]).is_err());
}

#[test]
fn a_clients_key_does_not_protect_a_server() {
    let keys = ("FRUGAL_AUTH__KEYS", r#"[{ name = "a", key = "sk-1" }]"#);
    let client = ("FRUGAL_API_KEY", "s3cret");
    for serve in [&[][..], &["serve"]] {
        let error = asked(serve, &[client]).unwrap_err().to_string();
        assert!(error.contains("FRUGAL_API_KEY") && error.contains("auth.keys_file"), "{error}");
        assert!(!error.contains("s3cret"));
        asked(serve, &[client, keys]).unwrap();
        asked(serve, &[("FRUGAL_API_KEY", "")]).unwrap();
    }
    for other in ["bench", "inspect", "config"] {
        asked(&[other], &[client]).unwrap();
    }
}

#[test]
fn the_table_of_commands_has_them_all() {
    let table = reference();
    assert_eq!(table.lines().count(), 2 + Cli::command().get_subcommands().count());
    assert!(table.contains("| `frugal chat` | Talk to a running server in the terminal |"), "{table}");
}

#[test]
fn later_layers_override_earlier_ones() {
    let file = "[server]\nport = 1111\nhost = \"::1\"\n[scheduler]\nmax_seqs = 7\n";
    let env = [("FRUGAL_SERVER__PORT", "2222"), ("FRUGAL_SCHEDULER__MAX_SEQS", "8"), ("OTHER", "x")];
    let port = |file, env: &[_], args: &[_]| config(file, env, args).unwrap().listen.port;
    assert_eq!(port("", &[], &[]), 8000);
    assert_eq!(port(file, &[], &[]), 1111);
    assert_eq!(port(file, &env, &[]), 2222);
    assert_eq!(port(file, &env, &["--set", "server.port=3333"]), 3333);
    assert_eq!(port(file, &env, &["--set", "server.port=3333", "--port", "4444"]), 4444);
    let all = config(file, &env, &[]).unwrap();
    assert_eq!((all.listen.host.to_string().as_str(), all.scheduler.seqs_max), ("::1", 8));
}

#[test]
fn the_cache_holds_what_is_asked_for() {
    use crate::raw::KvType;
    assert_eq!(config("", &[], &[]).unwrap().kv.dtype, KvType::F16);
    for (name, dtype) in [("f16", KvType::F16), ("f32", KvType::F32), ("q8_0", KvType::Q8_0)] {
        let set = format!("kv.dtype={name}");
        assert_eq!(config("", &[], &["--set", &set]).unwrap().kv.dtype, dtype);
        assert_eq!(config("", &[("FRUGAL_KV__DTYPE", name)], &[]).unwrap().kv.dtype, dtype);
    }
}

/// What is to be done for arguments and variables.
fn asked(args: &[&str], env: &[(&str, &str)]) -> Result<Command, ConfigError> {
    let cli = Cli::try_parse_from([&["frugal"], args].concat()).expect("valid usage");
    command(cli, env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
}

fn load(args: &[&str], env: &[(&str, &str)]) -> Result<Load, ConfigError> {
    match asked(&[&["load"], args].concat(), env)? {
        Command::Load(load) => Ok(load),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_clients_key_comes_from_the_flag_or_the_environment() {
    let key = |args: &[&str], env: &[(&str, &str)]| {
        let chat = match asked(&[&["chat"], args].concat(), env) {
            Ok(Command::Chat(chat)) => chat.access.api_key,
            other => panic!("{other:?}"),
        };
        assert_eq!(load(args, env).expect("valid usage").access.api_key, chat);
        chat.map(|key| key.expose().to_owned())
    };
    let env = [("FRUGAL_API_KEY", "sk-1")];
    assert_eq!(key(&[], &[]), None);
    assert_eq!(key(&[], &[("FRUGAL_API_KEY", "")]), None);
    assert_eq!(key(&[], &env).as_deref(), Some("sk-1"));
    assert_eq!(key(&["--api-key", "sk-2"], &env).as_deref(), Some("sk-2"));
}

#[test]
fn authorities_are_for_https() {
    let file = |args: &[&str], env: &[(&str, &str)]| match asked(args, env) {
        Ok(Command::Chat(Chat { access, .. }) | Command::Load(Load { access, .. })) => {
            Ok(access.ca_file.map(|path| path.display().to_string()))
        }
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.to_string()),
    };
    let (env, flag) = ([("SSL_CERT_FILE", "v.crt")], ["--ca-file", "f.crt"]);
    let with = |args: &[&str]| file(&[args, &flag].concat(), &env);
    for name in ["chat", "load"] {
        assert_eq!(file(&[name], &env), Ok(Some("v.crt".to_owned())));
        assert_eq!(file(&[name], &[("SSL_CERT_FILE", "")]), Ok(None));
        assert_eq!(with(&[name, "--url", "https://box"]), Ok(Some("f.crt".to_owned())));
        // What is wrong with it is said where it is read.
        assert_eq!(with(&[name, "--url", "box"]), Ok(Some("f.crt".to_owned())));
        let refused = "--ca-file f.crt: http://127.0.0.1:8000 is not https, and shows no certificate";
        assert_eq!(with(&[name]), Err(refused.to_owned()));
        assert!(with(&[name, "--url", "HTTP://box"]).is_err());
    }
    assert!(with(&["load", "--against", "http://box"]).unwrap_err().contains("127.0.0.1:8000 or http://box"));
    assert_eq!(with(&["load", "--against", "https://box"]), Ok(Some("f.crt".to_owned())));
}

#[test]
fn a_load_is_bounded() {
    let defaults = load(&[], &[]).unwrap();
    assert_eq!(
        (defaults.clients, defaults.requests, defaults.prompt, defaults.output),
        (vec![1, 4, 16], 32, 128, 64)
    );
    assert_eq!(load(&["--clients", "3,64", "--requests", "64"], &[]).unwrap().clients, [3, 64]);
    let error = load(&["--clients", "4,64", "--requests", "63"], &[]).unwrap_err().to_string();
    assert_eq!(error, "--clients 64: more than there are requests (--requests 63)");
    let against = ["--against", "http://box"];
    assert_eq!(load(&[&against[..], &["--rounds", "100"]].concat(), &[]).unwrap().rounds, 100);
    for wrong in [
        &["--clients", "0"][..],
        &["--clients", "1,1025"],
        &["--clients", ""],
        &["--requests", "0"],
        &["--requests", "100001"],
        &["--prompt", "0"],
        &["--prompt", "65537"],
        &["--prefix", "65537"],
        &["--output", "0"],
        &["--timeout", "0"],
        &["--rounds", "5"],
        &["--rounds", "4", "--against", "http://box"],
        &["--rounds", "101", "--against", "http://box"],
        &["--seed", "-1"],
    ] {
        assert!(Cli::try_parse_from([&["frugal", "load"], wrong].concat()).is_err(), "{wrong:?}");
    }
}

#[test]
fn variables_have_the_type_of_their_key() {
    let env = [
        ("FRUGAL_MODEL__ID", "123"),
        ("FRUGAL_CPU__THREADS", "2"),
        ("FRUGAL_SERVER__SELFCHECK", "true"),
        ("FRUGAL_KV__MEMORY", "2GiB"),
        ("FRUGAL_COST__INSTANCE_PER_HOUR", "0.1"),
        (
            "FRUGAL_COST__HOSTED",
            "{ a = { input = 0.15, output = \"0.60\" }, b = { input = 2, cached = 0.5, output = 8 } }",
        ),
        ("FRUGAL_AUTH__KEYS", "[{ name = \"a\", key = \"s3cret\" }]"),
    ];
    let c = config("", &env, &[]).unwrap();
    assert_eq!(c.model.id.as_deref(), Some("123"));
    assert_eq!(c.cpu.threads.map(|n| n.get()), Some(2));
    assert!(c.selfcheck);
    assert_eq!(c.kv.memory_bytes, Some(2 << 30));
    assert_eq!(c.cost.per_hour.map(|p| p.0), Some(100_000_000_000));
    // Without a price of their own, cached tokens have that of the others.
    let listed = |name: &str| {
        let list = c.cost.hosted[name];
        [list.input, list.cached, list.output].map(|price| price.0 / 10_000_000_000)
    };
    assert_eq!((listed("a"), listed("b")), ([15, 15, 60], [200, 50, 800]));
    assert_eq!(c.auth.keys, [crate::auth::Key::new("a", "s3cret")]);
}

#[test]
fn an_idle_hour_has_less_electricity_in_it() {
    let hours = |file: &str| {
        let cost = config(file, &[], &[]).unwrap().cost;
        [cost.per_hour, cost.idle_per_hour].map(|price| price.map(|price| price.0 / 1_000_000_000))
    };
    let all = "[cost]\ngpu_per_hour = 2\nelectricity_per_kwh = 0.5\npower_watts = 400\n";
    assert_eq!(hours(all), [Some(2200), None]);
    assert_eq!(hours(&format!("{all}idle_watts = 100\n")), [Some(2200), Some(2050)]);
    // Electricity is not a part of this price, which no hour is spared.
    assert_eq!(
        hours("[cost]\ninstance_per_hour = 1\npower_watts = 400\nidle_watts = 100\n"),
        [Some(1000), None]
    );
}

#[test]
fn what_orchestrators_inject_is_left_alone() {
    let env = [
        ("FRUGAL_SERVICE_HOST", "10.0.0.1"),
        ("FRUGAL_SERVICE_PORT_HTTP", "8000"),
        ("FRUGAL_PORT", "tcp://10.0.0.1:8000"),
        ("FRUGAL_SERVER_PORT_8000_TCP_ADDR", "10.0.0.1"),
        ("FRUGAL_CONFIG", "elsewhere.toml"),
        ("FRUGAL_API_KEY", "sk-1"),
    ];
    assert_eq!(config("", &env, &[]).unwrap(), config("", &[], &[]).unwrap());
}

#[test]
fn an_empty_variable_is_as_if_unset() {
    let file = "[server]\nport = 9000\n";
    let empty = ["FRUGAL_MODEL__SOURCE", "FRUGAL_SERVER__PORT", "FRUGAL_COST__INSTANCE_PER_HOUR"]
        .map(|name| (name, ""));
    assert_eq!(config(file, &empty, &[]).unwrap(), config(file, &[], &[]).unwrap());
    config("", &[("FRUGAL_SERVER__PROT", "")], &[]).expect_err("there is no such key");
}

#[test]
fn an_empty_name_of_a_file_names_none() {
    let named = |path: &str| asked(&["config"], &[("FRUGAL_CONFIG", path)]);
    assert!(matches!(named(""), Ok(Command::Config(_))));
    named("/nonexistent.toml").expect_err("there is no such file");
}

#[test]
fn a_probe_and_a_conversion_look_at_what_they_need() {
    let env = [
        ("FRUGAL_SERVER__PORT", "9000"),
        ("FRUGAL_AUTH__KEYS_FILE", "/nonexistent/keys"),
        ("FRUGAL_TLS__CERTIFICATE", "/nonexistent/tls.crt"),
        ("FRUGAL_LOG__FORMAT", "json"),
    ];
    let wrong = ("FRUGAL_NO_SUCH_KEY", "1");
    asked(&[], &env).expect_err("a server needs all of it");
    match asked(&["health"], &env) {
        Ok(Command::Health(Probe { listen, certificate })) => {
            assert_eq!((listen.port, certificate), (9000, Some("/nonexistent/tls.crt".into())));
        }
        other => panic!("{other:?}"),
    }
    // What a server has read by now may have become wrong, in sections that say nothing of where it is.
    let file = std::env::temp_dir().join(format!("frugal-probe-{}.toml", std::process::id()));
    std::fs::write(&file, "[kv]\nmemory = 7.5\nno_such = 1\n[nowhere]\na = 1\n[server]\nport = 9001\n")
        .unwrap();
    let config = ("FRUGAL_CONFIG", file.to_str().unwrap());
    let elsewhere = [config, wrong, ("FRUGAL_KV__MEMORY", "lots"), ("FRUGAL_SCHEDULER__MAX_SEQS", "-1")];
    let flags = ["health", "--set", "kv.memory=lots"];
    match asked(&flags, &elsewhere) {
        Ok(Command::Health(Probe { listen, .. })) => assert_eq!(listen.port, 9001),
        other => panic!("{other:?}"),
    }
    asked(&["health", "--set", "kv.memroy=1"], &[]).expect_err("a flag of no key");
    asked(&["health"], &[("FRUGAL_SERVER_PORT", "9000")]).expect_err("no variable of a section that counts");
    std::fs::write(&file, "[server]\nprot = 9001\n").unwrap();
    asked(&["health"], &[config]).expect_err("a section that counts");
    std::fs::remove_file(&file).unwrap();
    // What converts files has no configuration: it logs as a server without one would.
    for args in [["pack", "in", "out"], ["upcycle", "in", "out"]] {
        match asked(&args, &[&env[..], &[wrong]].concat()) {
            Ok(Command::Pack(.., log) | Command::Upcycle(.., log)) => {
                assert_eq!(log.format, crate::raw::LogFormat::Text);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn errors_name_key_value_and_origin() {
    let mut all = String::new();
    let mut check = |file: &str, env: &[(&str, &str)], args: &[&str]| {
        let error = config(file, env, args).expect_err("must be refused");
        let source = std::error::Error::source(&error).map(|s| format!(": {s}")).unwrap_or_default();
        let error = format!("{error}{source}");
        assert!(!error.contains('\n') && !error.contains("s3cret"), "{error}");
        all += &format!("{error}\n");
    };
    check("[server]\nprot = 1\n", &[], &[]);
    check("\n[sever]\nport = 1\n", &[], &[]);
    check("port = 1\n", &[], &[]);
    check("[server]\nport = \"http\"\n", &[], &[]);
    check("[server]\nport = 65536\n", &[], &[]);
    check("[server\n", &[], &[]);
    check("[server]\nport = 1\nport = 2\n", &[], &[]);
    check("[cost.hosted.x]\ninput = 1\noutput = \"dear\"\n", &[], &[]);
    check("[cost.hosted.x]\ninput = 1\n", &[], &[]);
    check("", &[("FRUGAL_SERVER__PROT", "1")], &[]);
    check("", &[("FRUGAL_PORT", "9000")], &[]);
    check("", &[("FRUGAL_SERVER_PORT", "9000")], &[]);
    check("", &[("FRUGAL_MODEL", "m.gguf")], &[]);
    check("", &[("FRUGAL_SERVER", "::1")], &[]);
    check("", &[("FRUGAL_KV__MEMORY", "lots")], &[]);
    check("", &[("FRUGAL_CPU__THREADS", "0")], &[]);
    check("", &[], &["--port", "http"]);
    check("", &[], &["--set", "cpu.isa=sse9"]);
    check("", &[], &["--set", "kv.block_tokens=12"]);
    check("", &[], &["--set", "kv.dtype=q8"]);
    check("", &[], &["--set", "server.host=example.com"]);
    check("[scheduler]\nmax_seqs = 100\n", &[], &["--set", "scheduler.step_tokens=50"]);
    check("[cost]\ninstance_per_hour = 1\n", &[("FRUGAL_COST__GPU_PER_HOUR", "2")], &[]);
    check("", &[("FRUGAL_COST__INSTANCE_PER_HOUR", "1000001")], &[]);
    check("[cost]\nelectricity_per_kwh = 0.3\n", &[], &[]);
    check("[cost]\nidle_watts = 20\n", &[], &[]);
    check("[cost]\npower_watts = 65\nidle_watts = 65.1\n", &[], &[]);
    check("[cost]\npower_watts = 65\nidle_watts = 0.0001\n", &[], &[]);
    check("[cost]\ninstance_per_hour = -1\n", &[], &[]);
    check("[cost]\ninstance_per_hour = 1e-15\n", &[], &[]);
    check("[auth]\nkeys = [\"s3cret\"]\n", &[], &[]);
    check("[auth]\nkeys = [{ name = \"a\", key = \"s3cret\", admin = true }]\n", &[], &[]);
    check("", &[("FRUGAL_AUTH__KEYS", "s3cret")], &[]);
    check(
        "",
        &[],
        &["--set", "auth.keys=[{name = \"a\", key = \"s3cret\"}, {name = \"b\", key = \"s3cret\"}]"],
    );
    check("[auth]\nmax_requests_per_key = 3\n", &[], &[]);
    check("[auth]\ntokens_per_minute = 3\n", &[], &[]);
    check("", &[("FRUGAL_AUTH__REQUESTS_PER_MINUTE", "0")], &[]);
    check("[auth]\nkeys = [{ name = \"a\", key = \"sha256:s3cret\" }]\n", &[], &[]);
    check("[auth]\nkeys = [{ name = \"a\", key = \"s3cret\", tokens_per_minute = 0 }]\n", &[], &[]);
    check("[server]\nadmin_listen = \"9000\"\n", &[], &[]);
    check("[server]\ncors_origins = [\"https://example.com/\"]\n", &[], &[]);
    check("[server]\ncors_origins = [\"*\", \"https://example.com\"]\n", &[], &[]);
    check("[tls]\ncertificate = \"tls.crt\"\n", &[], &[]);
    check("[tls]\nkey = \"tls.key\"\n", &[], &[]);
    check("[tls]\ncertificate = \"/nonexistent/tls.crt\"\nkey = \"/nonexistent/tls.key\"\n", &[], &[]);
    check("", &[("FRUGAL_TRACES__ENDPOINT", "localhost:4318")], &[]);
    check("", &[("FRUGAL_TRACES__RATIO", "2")], &[]);
    check("[auth]\nkeys_file = \"/nonexistent/keys\"\n", &[], &[]);
    check("", &[("FRUGAL_MODEL__CHAT_TEMPLATE", "/nonexistent/t.jinja")], &[]);
    check("", &[("FRUGAL_LOG__LEVEL", "infoo")], &[]);
    insta::assert_snapshot!("errors", all);
}

#[test]
fn log_levels_are_levels_alone_or_by_target() {
    let accepted = |level: &str| config(&format!("[log]\nlevel = \"{level}\"\n"), &[], &[]).is_ok();
    for good in ["info", "OFF", "warn,frugal_scheduler=debug", "frugal::request=trace,error"] {
        assert!(accepted(good), "{good}");
    }
    // `tracing` would take the first for a module of that name, and log nothing else.
    for bad in ["infoo", "", "info,", "=info", "a=b=c", "info, warn", "frugal=", "[span]=info", "3"] {
        assert!(!accepted(bad), "{bad}");
    }
}

#[test]
fn the_effective_configuration_reads_back_without_secrets() {
    let file = "[auth]\nkeys = [{ name = \"a\", key = \"s3cret\" }]\n[cost]\ninstance_per_hour = 0.35\n";
    let mut layers = Layers::new();
    layers.file_text(Path::new("frugal.toml"), file).unwrap();
    layers.environment([("FRUGAL_SERVER__PORT".to_owned(), "9000".to_owned())]).unwrap();
    let text = layers.to_toml();
    assert!(!text.contains("s3cret"));
    Layers::new().file_text(Path::new("again.toml"), &text).expect("reads back");
    insta::assert_snapshot!("effective", text);
}

#[test]
fn the_defaults_file_has_every_key_and_no_other() {
    let layers = Layers::new();
    for key in layers.keys() {
        let (section, name) = key.split_once('.').unwrap();
        let body = crate::DEFAULT_TOML.split(&format!("\n[{section}]\n")).nth(1).unwrap();
        let body = body.split("\n[").next().unwrap();
        let lines: Vec<&str> = body.lines().collect();
        let at = lines
            .iter()
            .position(|l| l.trim_start_matches("# ").starts_with(&format!("{name} = ")))
            .unwrap_or_else(|| panic!("default.toml lacks {key}"));
        assert!(at > 0 && lines[at - 1].starts_with("# "), "{key} has no reason");
    }
    Config::resolve(&layers).expect("the defaults are valid");
}

#[test]
fn the_commented_keys_of_the_defaults_file_are_valid_together_or_name_why_not() {
    let layers = Layers::new();
    let mut section = String::new();
    let mut tried = 0;
    for line in crate::DEFAULT_TOML.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = name.to_owned();
        }
        let Some((name, value)) = line.strip_prefix("# ").and_then(|l| l.split_once(" = ")) else { continue };
        let key = format!("{section}.{name}");
        if !layers.keys().any(|k| k == key) {
            continue;
        }
        let mut with = Layers::new();
        with.file_text(Path::new("f"), &format!("[{section}]\n{name} = {value}\n")).unwrap();
        with.parse().unwrap_or_else(|e| panic!("{e}"));
        tried += 1;
    }
    assert!(tried >= 10, "only {tried} optional keys found");
}

proptest::proptest! {
    #[test]
    fn no_file_panics(text in "(\\[(server|cost|x)\\]\n)?([a-z_]{1,8} = [0-9a-z\"{}\\[\\]., =-]{0,12}\n){0,3}") {
        let mut layers = Layers::new();
        let _ = layers.file_text(Path::new("f"), &text).and_then(|()| Config::resolve(&layers));
    }
}

#[test]
fn the_cache_folder_follows_xdg() {
    let check = |env: &[(&str, &str)], folder: Option<&str>| {
        let env: Vec<_> = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        assert_eq!(cache_dir(&env).as_deref(), folder.map(Path::new));
    };
    check(&[("HOME", "/home/u")], Some("/home/u/.cache/frugal"));
    check(&[("HOME", "/home/u"), ("XDG_CACHE_HOME", "/c")], Some("/c/frugal"));
    check(&[("HOME", "/home/u"), ("XDG_CACHE_HOME", "c")], Some("/home/u/.cache/frugal"));
    check(&[], None);
}
