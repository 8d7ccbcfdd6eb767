//! The command line: what to do, and the flags that set configuration keys.

mod convert;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue};
use clap::{Args, CommandFactory as _, Parser, Subcommand};

pub use self::convert::{Pack, Upcycle};
use crate::auth::is_name;
use crate::error::ConfigError;
use crate::hub::Hub;
use crate::layers::{API_KEY_VARIABLE, CA_FILE_VARIABLE, CONFIG_VARIABLE, Layers};
use crate::resolved::{Config, Log, Probe};
use crate::units::Secret;

/// Serves quantized mixture-of-experts models behind the OpenAI API and accounts for what each token costs.
#[derive(Debug, Parser)]
#[command(name = "frugal", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Sub>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
enum Sub {
    /// Serve a model over HTTP (also what `frugal` alone does)
    Serve(ServeArgs),
    /// Talk to a running server in the terminal
    ///
    /// On a terminal: a prompt, the answer as it comes, and under it what it took; Ctrl-C stops an answer, Ctrl-D or
    /// /quit ends, /clear begins anew, /system TEXT sets the system prompt. With input or output redirected, stdin is one
    /// message and stdout gets its answer alone; ends with 1 if there is none, and says on stderr if it was cut off at the limit
    /// of tokens. Control characters in answers are written out, such as \u{1b}.
    Chat(ChatArgs),
    /// Measure the engine without HTTP: tokens a second in prefill and decode
    ///
    /// Runs the model on random token ids straight through the engine's runner, with greedy sampling and without
    /// HTTP, tokenizer or scheduler: prefill of one prompt, then decoding of several sequences at once. Each figure is
    /// the median of the runs after one warm-up.
    ///
    /// A machine's speed can change by half within minutes: compare two engines only with --against, which measures both
    /// in turns.
    Bench(BenchArgs),
    /// Load a running server as many clients would: tokens a second, time to first token, pauses
    ///
    /// Each client sends its next streamed chat completion when its last one has ended, over a connection of its own, until
    /// all requests of a level are done. Prompts are random words after a random number, answers are greedy and of a fixed
    /// length. Any server of OpenAI's API will do, if it takes ignore_eos, as vLLM and llama.cpp do.
    ///
    /// Before the first level each server answers one request that is not counted, for a server may prepare itself then. A
    /// level's time is that from its first request to its last end: requests that fail are counted and give nothing to the
    /// figures, but the time they took is part of it. What a million tokens cost is what servers report as usage.cost; Frugal's
    /// is what requests used in prefill and decode, without the machine's idle time.
    ///
    /// Ends with 0 if some request of every level was answered, however many others failed; with 1 after the first level of
    /// which all failed, or if a server is not there; with 2 for wrong usage.
    ///
    /// A machine's speed can change by half within minutes: compare two servers only with --against, which measures both
    /// in turns.
    Load(LoadArgs),
    /// Tell what a model file is, what it needs, and whether it can be served
    ///
    /// Reads the file's header, not its weights. Ends with 0 if the file can be served, memory permitting; with 3 if
    /// not, after all reasons that were found; with 1 if it is no model file; with 2 if there is no such file. Whether memory permits it here, as configured, is
    /// what the last line says, and `fits` in JSON.
    Inspect(InspectArgs),
    /// Ask the server of this configuration whether it takes requests
    ///
    /// For supervisors of images without an HTTP client: asks /readyz at server.admin_listen if that is set, else at
    /// server.host and server.port. Ends with 0 if the server is ready; with 1 if it is loading, draining or stalled, or
    /// if there is none, after the reason. Files that the configuration names are not looked at, but for the certificate where the
    /// server is not on the loopback.
    Health(HealthArgs),
    /// Make an API key: prints its line for auth.keys_file
    ///
    /// The line goes to stdout and holds the key's digest alone, as in `frugal key NAME >> FILE`; the key itself is shown once,
    /// on stderr. A server that runs reads the file again within seconds. A name may have several keys: remove an old line when nobody
    /// uses its key any more.
    Key(KeyArgs),
    /// Compare what a GPU computes with the processor's results, operation by operation
    ///
    /// What to run first on a machine with a GPU. Prints for every operation the error, how long it took, and the rates at
    /// which it read and multiplied; then the same for a model, of which the processor scores the same text. Ends with 1 if a
    /// result is wrong.
    GpuSelftest(ServeArgs),
    /// Make a mixture-of-experts model from a dense llama model
    ///
    /// Every expert gets the dense model's feed-forward block; whole quantization blocks are moved and nothing is
    /// requantized, so the result computes the same function, at a higher price. For demonstrations and tests.
    Upcycle(UpcycleArgs),
    /// Make a model file that is ready to be computed on CPUs, so that a server maps it instead of loading it
    ///
    /// The output holds the same weights in the order in which the kernels read them, in as many bytes. A server that is given it as
    /// its model is ready at once, and all servers of a machine share its memory. Results are the same, bit for bit. Only CPUs can
    /// read it, and only versions with the same layout: keep the original.
    Pack(PackArgs),
    /// Print the effective configuration as TOML, with the origin of each value that is not a default
    Config(ServeArgs),
}

#[derive(Clone, Debug, Default, Args)]
struct Common {
    /// GGUF file, or hf:OWNER/REPO[:QUANT] on the Hugging Face hub [default: a small demonstration model, fetched once]
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Configuration file; also FRUGAL_CONFIG
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set any configuration key; may be repeated
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// Compute threads, or "auto"
    #[arg(long, value_name = "N")]
    threads: Option<String>,
    /// Where the model runs: "auto", "cpu", "cuda:N" or "metal"
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
}

#[derive(Clone, Debug, Args)]
struct ServeArgs {
    #[command(flatten)]
    common: Common,
    /// Name that clients see
    #[arg(long, value_name = "NAME")]
    model_id: Option<String>,
    /// Address to listen on [default: 127.0.0.1]
    #[arg(long, value_name = "IP")]
    host: Option<String>,
    /// Port to listen on; 0 lets the system choose [default: 8000]
    #[arg(long, value_name = "PORT")]
    port: Option<String>,
    /// Sequences computed together
    #[arg(long, value_name = "N")]
    max_seqs: Option<String>,
    /// Memory for the cache, such as "2GiB", or "auto"
    #[arg(long, value_name = "SIZE")]
    kv_memory: Option<String>,
    /// Price of this machine per hour, from which costs are computed
    #[arg(long, value_name = "PRICE")]
    instance_per_hour: Option<String>,
    /// "text" or "json"
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

#[derive(Clone, Debug, Args)]
struct BenchArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    bench: Bench,
}

/// What to measure.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Bench {
    /// Print one line of JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Measure the machine instead: additions in registers and reads of memory, all threads
    #[arg(long, conflicts_with = "against")]
    pub machine: bool,
    /// Measure in turns with a command that prints figures of the same names, as --json does
    ///
    /// The command runs in a shell; the last line it prints must be a JSON object with figures such as "pp512" and
    /// "tg8", in tokens a second.
    #[arg(long, value_name = "COMMAND")]
    pub against: Option<String>,
    /// Turns with that command
    #[arg(long, default_value_t = 5, requires = "against", value_name = "N", value_parser = clap::value_parser!(u32).range(5..=100))]
    pub rounds: u32,
    /// Tokens of the prompt
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub prompt: u32,
    /// Decode steps per run
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub decode: u32,
    /// Tokens of each sequence before it decodes
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub depth: u32,
    /// Numbers of sequences decoded together
    #[arg(long, default_value = "1,8,32", value_delimiter = ',', value_name = "N,N,..", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub batches: Vec<u32>,
    /// Runs after the warm-up
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,
}

#[derive(Clone, Debug, Args)]
struct LoadArgs {
    #[command(flatten)]
    load: Load,
}

/// What to load, and how.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Load {
    /// Server, with or without /v1
    #[arg(long, default_value = "http://127.0.0.1:8000", value_name = "URL")]
    pub url: String,
    /// Measure in turns with this server; both get the same key, and the same prompts, which one server alone would cache
    #[arg(long, value_name = "URL")]
    pub against: Option<String>,
    /// Turns with that server, of new prompts each
    #[arg(long, default_value_t = 5, requires = "against", value_name = "N", value_parser = clap::value_parser!(u32).range(5..=100))]
    pub rounds: u32,
    /// Levels: numbers of clients at a time
    #[arg(long, default_value = "1,4,16", value_delimiter = ',', value_name = "N,N,..", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub clients: Vec<u32>,
    /// Requests of a level, of all its clients together
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub requests: u32,
    /// Words of each prompt that are its own: about a token each
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub prompt: u32,
    /// Words that all prompts begin with, as for measuring a prefix cache
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=65536))]
    pub prefix: u32,
    /// Tokens of each answer
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub output: u32,
    /// Model [default: the first that a server lists]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Key and authorities.
    #[command(flatten)]
    pub access: Access,
    /// Same seed, same prompts: a server that caches them is faster the second time [default: another one each time]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Longest request; what takes longer has failed
    #[arg(long, default_value_t = 600, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86400))]
    pub timeout: u32,
    /// Print a line of JSON for each level instead of tables
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Debug, Args)]
struct InspectArgs {
    /// GGUF file, or hf:OWNER/REPO[:QUANT] on the Hugging Face hub, fetched first [default: the configured model, or else
    /// a small demonstration model]
    #[arg(value_name = "MODEL")]
    model: Option<String>,
    /// The same, as other commands take it
    #[arg(long = "model", value_name = "MODEL", conflicts_with = "model")]
    named: Option<String>,
    /// Configuration file; also FRUGAL_CONFIG
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set any configuration key, such as those of the cache; may be repeated
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    #[command(flatten)]
    inspect: Inspect,
}

/// How to tell it.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Inspect {
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Debug, Args)]
struct HealthArgs {
    /// Configuration file; also FRUGAL_CONFIG
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set any configuration key, such as server.port; may be repeated
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

#[derive(Clone, Debug, Args)]
struct ChatArgs {
    #[command(flatten)]
    chat: Chat,
}

/// What a server wants of its clients, and they of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct Access {
    /// API key; also FRUGAL_API_KEY, which other users of this machine do not see
    #[arg(long, value_name = "KEY", value_parser = secret)]
    pub api_key: Option<Secret>,
    /// PEM file with the authorities to trust with https, instead of those that browsers trust; also SSL_CERT_FILE
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
}

/// With whom and how to talk. What is not given is the server's choice.
#[derive(Clone, Debug, PartialEq, Args)]
pub struct Chat {
    /// Server, with or without /v1
    #[arg(long, default_value = "http://127.0.0.1:8000", value_name = "URL")]
    pub url: String,
    /// Model, if the server has several
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Key and authorities.
    #[command(flatten)]
    pub access: Access,
    /// System prompt
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// 0 is greedy
    #[arg(long, value_name = "T")]
    pub temperature: Option<f64>,
    /// Keep the smallest set of likeliest tokens whose probability reaches P
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,
    /// Keep the K likeliest tokens
    #[arg(long, value_name = "K")]
    pub top_k: Option<u32>,
    /// Drop tokens less likely than P times the likeliest
    #[arg(long, value_name = "P")]
    pub min_p: Option<f64>,
    /// Longest answer, in tokens
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<u32>,
    /// Same seed, same answer
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

#[derive(Clone, Debug, Args)]
struct KeyArgs {
    /// Stands for the key in logs
    #[arg(value_name = "NAME", value_parser = key_name)]
    name: String,
}

#[derive(Clone, Debug, Args)]
struct UpcycleArgs {
    #[command(flatten)]
    upcycle: Upcycle,
}

#[derive(Clone, Debug, Args)]
struct PackArgs {
    #[command(flatten)]
    pack: Pack,
}

/// What the user asked for.
#[derive(Debug)]
pub enum Command {
    /// Serve.
    Serve(Box<Config>),
    /// Talk.
    Chat(Chat),
    /// Measure.
    Bench(Box<Config>, Bench),
    /// Load a server.
    Load(Load),
    /// Look.
    Inspect(Box<Config>, Inspect),
    /// Probe.
    Health(Probe),
    /// Make a key of this name.
    Key(String),
    /// Compare.
    GpuSelftest(Box<Config>),
    /// Convert.
    Upcycle(Upcycle, Hub, Log),
    /// Convert for CPUs.
    Pack(Pack, Hub, Log),
    /// Print this.
    Config(String),
}

/// Reads argv, the environment and the configuration file they name.
///
/// `--help`, `--version` and usage errors end the process, as clap does it: 0 for the first two, else 2.
pub fn from_process() -> Result<Command, ConfigError> {
    // A value that is not Unicode is shown and refused rather than overlooked.
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())));
    let cli = parse(std::env::args_os()).unwrap_or_else(|error| error.exit());
    command(cli, variables.collect())
}

/// Reads arguments. A model that stands alone, as other programs take it, is told its flag.
fn parse(args: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(args).map_err(|mut error| {
        let strays = [ContextKind::InvalidSubcommand, ContextKind::InvalidArg];
        let stray = strays.into_iter().find_map(|kind| match error.get(kind) {
            Some(ContextValue::String(text)) => Some(text.clone()),
            _ => None,
        });
        let is_model =
            |text: &String| text.to_ascii_lowercase().ends_with(".gguf") || text.starts_with("hf:");
        if let Some(model) = stray.filter(is_model) {
            let tip = StyledStr::from(format!("a model is given as '--model {model}'"));
            error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
        }
        error
    })
}

/// All commands and what they do, as a table in Markdown.
pub fn reference() -> String {
    let mut table = String::from("| command | what it does |\n|---|---|\n");
    for command in Cli::command().get_subcommands() {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        table += &format!("| `frugal {}` | {about} |\n", command.get_name());
    }
    table
}

fn command(cli: Cli, env: Vec<(String, String)>) -> Result<Command, ConfigError> {
    let (variables, cache) = (env.clone(), cache_dir(&env));
    let resolve = |layers: &Layers| -> Result<Box<Config>, ConfigError> {
        let mut config = Box::new(Config::resolve(layers)?);
        config.model.cache_dir = config.model.cache_dir.take().or(cache.clone());
        config.model.hub = Hub::new(&variables, config.model.source.as_deref())?;
        Ok(config)
    };
    Ok(match cli.command.unwrap_or(Sub::Serve(cli.serve)) {
        Sub::Serve(args) => {
            let meant = set(&env, API_KEY_VARIABLE).is_some();
            let config = resolve(&args.layers(env)?)?;
            if meant && config.auth.keys.is_empty() {
                return Err(ConfigError::ClientKey);
            }
            Command::Serve(config)
        }
        Sub::Chat(ChatArgs { mut chat }) => {
            chat.access.complete(&[&chat.url], &env)?;
            Command::Chat(chat)
        }
        Sub::Bench(args) => {
            let layers = args.common.layers(env)?;
            Command::Bench(resolve(&layers)?, args.bench)
        }
        Sub::Load(LoadArgs { mut load }) => {
            let urls: Vec<&str> = [&load.url].into_iter().chain(&load.against).map(String::as_str).collect();
            load.access.complete(&urls, &env)?;
            busy(&load)?;
            Command::Load(load)
        }
        Sub::Inspect(InspectArgs { model, named, config, set, inspect }) => {
            let layers = Common { model: model.or(named), config, set, ..Common::default() }.layers(env)?;
            Command::Inspect(resolve(&layers)?, inspect)
        }
        Sub::Health(HealthArgs { config, set }) => {
            let common = Common { config, set, ..Common::default() };
            let layers = common.onto(Layers::of(Probe::SECTIONS), env)?;
            Command::Health(Probe::resolve(&layers)?)
        }
        Sub::Key(KeyArgs { name }) => Command::Key(name),
        Sub::GpuSelftest(args) => Command::GpuSelftest(resolve(&args.layers(env)?)?),
        Sub::Upcycle(UpcycleArgs { upcycle }) => {
            let hub = Hub::new(&variables, Some(&upcycle.input))?;
            Command::Upcycle(upcycle, hub, Log::resolve(&Layers::new())?)
        }
        Sub::Pack(PackArgs { pack }) => {
            let hub = Hub::new(&variables, Some(&pack.input))?;
            Command::Pack(pack, hub, Log::resolve(&Layers::new())?)
        }
        Sub::Config(args) => {
            let layers = args.layers(env)?;
            resolve(&layers)?;
            Command::Config(layers.to_toml())
        }
    })
}

/// What a variable is set to, if to anything.
fn set<'a>(env: &'a [(String, String)], wanted: &str) -> Option<&'a str> {
    env.iter().find(|(name, value)| name == wanted && !value.is_empty()).map(|(_, value)| value.as_str())
}

impl Access {
    /// Takes what was not given from the environment. Authorities that nothing would come of are refused if a flag names them; the
    /// variable may be there for other programs.
    fn complete(&mut self, urls: &[&str], env: &[(String, String)]) -> Result<(), ConfigError> {
        let plain = |url: &&str| url.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://"));
        if let Some(file) = &self.ca_file
            && urls.iter().all(plain)
        {
            return Err(ConfigError::Flag {
                flag: "--ca-file",
                value: file.display().to_string(),
                problem: format!("{} is not https, and shows no certificate", urls.join(" or ")),
            });
        }
        self.ca_file = self.ca_file.take().or(set(env, CA_FILE_VARIABLE).map(PathBuf::from));
        self.api_key = self.api_key.take().or(set(env, API_KEY_VARIABLE).map(Secret::new));
        Ok(())
    }
}

/// A level is what it is called: all its clients have something to send.
fn busy(load: &Load) -> Result<(), ConfigError> {
    match load.clients.iter().find(|&&clients| clients > load.requests) {
        None => Ok(()),
        Some(clients) => Err(ConfigError::Flag {
            flag: "--clients",
            value: clients.to_string(),
            problem: format!("more than there are requests (--requests {})", load.requests),
        }),
    }
}

/// By the XDG base directory specification: relative paths do not count.
fn cache_dir(env: &[(String, String)]) -> Option<PathBuf> {
    let absolute = |wanted: &str| {
        let value = env.iter().find(|(name, _)| name == wanted).map(|(_, value)| PathBuf::from(value));
        value.filter(|path| path.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".cache")))
        .map(|cache| cache.join("frugal"))
}

impl Common {
    fn layers(&self, env: Vec<(String, String)>) -> Result<Layers, ConfigError> {
        self.onto(Layers::new(), env)
    }

    fn onto(&self, mut layers: Layers, env: Vec<(String, String)>) -> Result<Layers, ConfigError> {
        let named = set(&env, CONFIG_VARIABLE).map(PathBuf::from);
        if let Some(path) = self.config.clone().or(named) {
            layers.file(&path)?;
        }
        layers.environment(env)?;
        for (key, value) in &self.set {
            layers.flag("--set", key, value)?;
        }
        apply(
            &mut layers,
            &[
                ("--model", "model.source", &self.model),
                ("--threads", "cpu.threads", &self.threads),
                ("--device", "gpu.device", &self.device),
            ],
        )?;
        Ok(layers)
    }
}

impl ServeArgs {
    fn layers(&self, env: Vec<(String, String)>) -> Result<Layers, ConfigError> {
        let mut layers = self.common.layers(env)?;
        let flags = [
            ("--model-id", "model.id", &self.model_id),
            ("--host", "server.host", &self.host),
            ("--port", "server.port", &self.port),
            ("--max-seqs", "scheduler.max_seqs", &self.max_seqs),
            ("--kv-memory", "kv.memory", &self.kv_memory),
            ("--instance-per-hour", "cost.instance_per_hour", &self.instance_per_hour),
            ("--log-format", "log.format", &self.log_format),
        ];
        apply(&mut layers, &flags)?;
        Ok(layers)
    }
}

fn apply(layers: &mut Layers, flags: &[(&str, &str, &Option<String>)]) -> Result<(), ConfigError> {
    for (flag, key, value) in flags {
        if let Some(value) = value {
            layers.flag(flag, key, value)?;
        }
    }
    Ok(())
}

#[expect(clippy::unnecessary_wraps, reason = "clap's signature")]
fn secret(text: &str) -> Result<Secret, String> {
    Ok(Secret::new(text))
}

fn key_name(text: &str) -> Result<String, String> {
    is_name(text).map(|()| text.to_owned())
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected SECTION.KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

#[cfg(test)]
mod tests;
