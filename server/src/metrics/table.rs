//! The table of metrics: name, type, meaning, labels, and where its samples are read.
//!
//! Names that begin with `vllm:` are those that dashboards, autoscalers and inference gateways already read, with
//! vLLM's labels and buckets; the others are ours.

use frugal_config::prices::PicoPerMillion;
use frugal_models::meter::Sample;
use frugal_scheduler::snapshot::{Account, Snapshot, UnitCost, UnitCosts};

use super::{Kind, Metric, Read, Samples};

const PICO: f64 = 1e12;
const NANO: f64 = 1e9;

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    read: Read,
) -> Metric {
    Metric { name, kind: Kind::Counter, help, labels, read }
}

const fn gauge(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    read: Read,
) -> Metric {
    Metric { name, kind: Kind::Gauge, help, labels, read }
}

const fn histogram(name: &'static str, help: &'static str, read: Read) -> Metric {
    Metric { name, kind: Kind::Histogram, help, labels: &[], read }
}

/// Every metric there is.
pub const METRICS: &[Metric] = &[
    gauge(
        "frugal_build_info",
        &["version"],
        "1; the build is in the label.",
        Read::Server(|_, out| out.put(&[env!("CARGO_PKG_VERSION")], 1.0)),
    ),
    gauge(
        "frugal_ready",
        &[],
        "Whether the model is loaded and requests are taken: 1 or 0.",
        Read::Server(|v, out| {
            out.put(&[], v.engine.map_or(0.0, |(s, _)| if s.gauges.draining { 0.0 } else { 1.0 }));
        }),
    ),
    counter(
        "frugal_http_responses_total",
        &["route", "status"],
        "HTTP responses by route and status.",
        Read::Server(|v, out| {
            for (route, status, n) in v.http.all() {
                out.put(&[&route, &status.to_string()], n as f64);
            }
        }),
    ),
    gauge(
        "frugal_kept_responses",
        &[],
        "Responses of /v1/responses that can be retrieved and continued.",
        Read::Server(|v, out| out.put(&[], v.kept.0 as f64)),
    ),
    gauge(
        "frugal_kept_responses_bytes",
        &[],
        "Memory that they and their conversations take.",
        Read::Server(|v, out| out.put(&[], v.kept.1 as f64)),
    ),
    // The process, under the names that every exporter has for it.
    gauge(
        "process_start_time_seconds",
        &[],
        "When the process began, in seconds since 1970. This and the others named `process_` are the system's, and absent \
         but on Linux.",
        Read::Process,
    ),
    counter(
        "process_cpu_seconds_total",
        &[],
        "Processor time that it used, in user and system mode.",
        Read::Process,
    ),
    gauge(
        "process_resident_memory_bytes",
        &[],
        "Memory that it has, weights mapped from a packed file included.",
        Read::Process,
    ),
    gauge("process_virtual_memory_bytes", &[], "Addresses that it has reserved.", Read::Process),
    gauge(
        "process_open_fds",
        &[],
        "File descriptors that it has open, connections among them.",
        Read::Process,
    ),
    gauge("process_max_fds", &[], "File descriptors that it may have open.", Read::Process),
    // Cost.
    counter(
        "frugal_cost_total",
        &["account", "currency"],
        "Money by account; all accounts together are price times time since start, idle time at its own price, and measured energy at \
         its price. Absent without a price.",
        Read::Both(|s, v, out| {
            for account in priced_accounts(s) {
                let amount = s.cost.accounts[account as usize];
                out.put(&[account.name(), &v.facts.currency], amount.pico as f64 / PICO);
            }
        }),
    ),
    counter(
        "frugal_cost_seconds_total",
        &["account"],
        "Machine time by account; all accounts together are the time since start.",
        Read::Engine(|s, out| {
            for account in Account::ALL {
                out.put(&[account.name()], s.cost.accounts[account as usize].ns as f64 / NANO);
            }
        }),
    ),
    counter(
        "frugal_joules_total",
        &["account"],
        "Energy by account: what the GPU measured, and the configured power times the time, idle or not. Absent without either.",
        Read::Engine(|s, out| {
            for account in Account::ALL {
                if let Some(joules) = s.cost.joules(account) {
                    out.put(&[account.name()], joules);
                }
            }
        }),
    ),
    gauge(
        "frugal_joules_per_token",
        &["tokens", "basis", "window"],
        "Energy per token, with basis and window as for money. Absent where no energy is known.",
        Read::Engine(|s, out| {
            unit_costs(s, |labels, cost, loaded| {
                let joules = if loaded { cost.joules_loaded } else { cost.joules_marginal };
                if let Some(per_million) = joules {
                    out.put(&labels, per_million / 1e6);
                }
            });
        }),
    ),
    gauge(
        "frugal_cost_per_million_tokens",
        &["tokens", "basis", "window", "currency"],
        "Money per million tokens; basis `marginal` is the accounts prefill and decode, `loaded` spreads idle time and \
         all else over them; window `5m` or `start`. Absent without a price or without tokens.",
        Read::Both(|s, v, out| {
            unit_costs(s, |labels, cost, loaded| {
                let money = if loaded { cost.money_loaded } else { cost.money_marginal };
                if let Some(money) = money {
                    let [tokens, basis, window] = labels;
                    out.put(&[tokens, basis, window, &v.facts.currency], money);
                }
            });
        }),
    ),
    gauge(
        "frugal_seconds_per_million_tokens",
        &["tokens", "basis", "window"],
        "Machine time per million tokens, with or without a price.",
        Read::Engine(|s, out| {
            unit_costs(s, |labels, cost, loaded| {
                let seconds = if loaded { cost.seconds_loaded } else { cost.seconds_marginal };
                if let Some(seconds) = seconds {
                    out.put(&labels, seconds);
                }
            });
        }),
    ),
    counter(
        "frugal_saved_cost_total",
        &["currency"],
        "Money that prefix cache hits saved, estimated. Absent without a price.",
        Read::Both(|s, v, out| {
            if s.cost.price_per_hour.is_some() {
                out.put(&[&v.facts.currency], s.cost.saved.pico as f64 / PICO);
            }
        }),
    ),
    counter(
        "frugal_saved_seconds_total",
        &[],
        "Machine time that prefix cache hits saved, estimated.",
        Read::Engine(|s, out| out.put(&[], s.cost.saved.ns as f64 / NANO)),
    ),
    gauge(
        "frugal_price_per_hour",
        &["currency"],
        "Configured price of this machine with work to do, measured energy apart. Absent without one.",
        Read::Both(|s, v, out| {
            if let Some(pico) = s.cost.price_per_hour {
                out.put(&[&v.facts.currency], pico as f64 / PICO);
            }
        }),
    ),
    counter(
        "frugal_hosted_cost_total",
        &["api", "currency"],
        "What the same tokens would have cost at the configured list prices of a hosted API, if it had cached what is cached here.",
        Read::Both(|s, v, out| {
            let c = &s.counters;
            for (api, list) in &v.facts.hosted {
                let of = |tokens: u64, price: PicoPerMillion| tokens as f64 * price.0 as f64;
                let pico = of(c.prompt_tokens.saturating_sub(c.cached_tokens), list.input)
                    + of(c.cached_tokens, list.cached)
                    + of(c.generated_tokens, list.output);
                out.put(&[api, &v.facts.currency], pico / PICO / 1e6);
            }
        }),
    ),
    // The GPU, by its own account.
    gauge(
        "frugal_gpu_info",
        &["name", "uuid"],
        "1; the labels say which GPU the model runs on. It and the others named `frugal_gpu_` are absent without a GPU, \
         and each without the GPU's word on it.",
        Read::Engine(|s, out| {
            if let Some(gpu) = &s.gpu {
                out.put(&[&gpu.device.name, &gpu.device.uuid], 1.0);
            }
        }),
    ),
    counter(
        "frugal_gpu_joules_total",
        &[],
        "Energy that the GPU measured since the model began to load, whoever used it.",
        Read::Engine(|s, out| {
            if let Some(energy) = s.gpu.as_ref().and_then(|gpu| gpu.energy) {
                out.put(&[], energy as f64 / PICO);
            }
        }),
    ),
    gauge(
        "frugal_gpu_power_watts",
        &[],
        "Power that the GPU draws.",
        Read::Engine(|s, out| said(s, out, |gpu| gpu.power_milliwatts.map(|mw| mw as f64 / 1e3))),
    ),
    gauge(
        "frugal_gpu_utilization",
        &[],
        "Share of time in which the GPU computed, 0 to 1.",
        Read::Engine(|s, out| said(s, out, |gpu| gpu.busy_percent.map(|percent| f64::from(percent) / 1e2))),
    ),
    gauge(
        "frugal_gpu_memory_used_bytes",
        &[],
        "Memory of the GPU that is taken, by whomever.",
        Read::Engine(|s, out| said(s, out, |gpu| gpu.memory_used.map(|bytes| bytes as f64))),
    ),
    gauge(
        "frugal_gpu_memory_bytes",
        &[],
        "Memory of the GPU.",
        Read::Engine(|s, out| said(s, out, |gpu| gpu.memory.map(|bytes| bytes as f64))),
    ),
    gauge(
        "frugal_gpu_temperature_celsius",
        &[],
        "Temperature of the GPU.",
        Read::Engine(|s, out| said(s, out, |gpu| gpu.celsius.map(f64::from))),
    ),
    // Tokens and requests.
    counter(
        "frugal_tokens_total",
        &["kind"],
        "Tokens: `prompt` (each request's once), `cached` (of these, from the prefix cache), `generated`, and \
         `recomputed` after a preemption.",
        Read::Engine(|s, out| {
            let c = &s.counters;
            out.put(&["prompt"], c.prompt_tokens as f64);
            out.put(&["cached"], c.cached_tokens as f64);
            out.put(&["generated"], c.generated_tokens as f64);
            out.put(&["recomputed"], c.recomputed_tokens as f64);
        }),
    ),
    counter(
        "frugal_requests_total",
        &[],
        "Requests that the engine accepted.",
        Read::Engine(|s, out| out.put(&[], s.counters.requests as f64)),
    ),
    counter(
        "frugal_choices_finished_total",
        &["reason"],
        "Choices that ended, by the exact reason.",
        Read::Engine(|s, out| {
            let reasons = [
                "end_token",
                "stop_string",
                "length",
                "cancelled",
                "timeout",
                "fault",
                "shutdown",
                "impossible",
            ];
            for (reason, n) in reasons.iter().zip(s.counters.finished) {
                out.put(&[reason], n as f64);
            }
        }),
    ),
    counter(
        "frugal_steps_total",
        &[],
        "Engine steps.",
        Read::Engine(|s, out| out.put(&[], s.counters.steps as f64)),
    ),
    counter(
        "frugal_faults_total",
        &["kind"],
        "Steps and rows that failed.",
        Read::Engine(|s, out| {
            out.put(&["step"], s.counters.step_faults as f64);
            out.put(&["row"], s.counters.row_faults as f64);
        }),
    ),
    // Work.
    counter(
        "frugal_work_bytes_total",
        &["kind"],
        "Bytes that steps read: `dense` and `expert` weights, and `kv`.",
        Read::Engine(|s, out| {
            out.put(&["dense"], s.work.dense_bytes as f64);
            out.put(&["expert"], s.work.expert_bytes as f64);
            out.put(&["kv"], s.work.kv_bytes as f64);
        }),
    ),
    counter(
        "frugal_work_macs_total",
        &[],
        "Multiply-adds.",
        Read::Engine(|s, out| out.put(&[], s.work.macs as f64)),
    ),
    counter(
        "frugal_experts_read_total",
        &[],
        "Experts read, counted once per layer and step however many tokens share them.",
        Read::Engine(|s, out| out.put(&[], s.work.experts_used as f64)),
    ),
    counter(
        "frugal_expert_tokens_total",
        &[],
        "Assignments of tokens to experts; over `frugal_experts_read_total` it says how well batches share experts.",
        Read::Engine(|s, out| out.put(&[], s.work.expert_tokens as f64)),
    ),
    gauge(
        "frugal_cost_coefficient_ns",
        &["per"],
        "Fitted nanoseconds per `byte` read and per `mac` (multiply-add): how work is turned into shares of a step.",
        Read::Engine(|s, out| {
            out.put(&["byte"], s.gauges.coefficients.ns_per_byte);
            out.put(&["mac"], s.gauges.coefficients.ns_per_mac);
        }),
    ),
    // State.
    gauge(
        "frugal_kv_blocks",
        &["group", "state"],
        "Cache blocks by group: `referenced` by sequences, `cached` for prefixes, `free`.",
        Read::Engine(|s, out| {
            for (i, group) in s.gauges.groups.iter().enumerate() {
                let name = i.to_string();
                out.put(&[&name, "referenced"], f64::from(group.referenced));
                out.put(&[&name, "cached"], f64::from(group.cached));
                out.put(&[&name, "free"], f64::from(group.free));
            }
        }),
    ),
    gauge(
        "frugal_queue_requests",
        &[],
        "Requests that were not scheduled yet.",
        Read::Engine(|s, out| out.put(&[], f64::from(s.gauges.queue_requests))),
    ),
    gauge(
        "frugal_queue_tokens",
        &[],
        "Prompt tokens of requests that were not scheduled yet.",
        Read::Engine(|s, out| out.put(&[], s.gauges.queue_tokens as f64)),
    ),
    // Names that other tools read.
    gauge(
        "vllm:num_requests_running",
        &[],
        "Sequences that hold cache blocks.",
        Read::Engine(|s, out| out.put(&[], f64::from(s.gauges.running))),
    ),
    gauge(
        "vllm:num_requests_waiting",
        &[],
        "Sequences that wait for cache blocks, and requests that are being prepared.",
        Read::Engine(|s, out| out.put(&[], f64::from(s.gauges.waiting))),
    ),
    gauge(
        "vllm:kv_cache_usage_perc",
        &[],
        "Share of cache blocks that sequences hold, 0 to 1.",
        Read::Engine(|s, out| out.put(&[], s.gauges.kv_usage)),
    ),
    gauge(
        "vllm:cache_config_info",
        &["block_size", "num_gpu_blocks"],
        "1; the labels say the cache's shape (its blocks, wherever they are).",
        Read::Both(|s, v, out| {
            let blocks = s.gauges.groups.iter().map(|g| g.referenced + g.cached + g.free).max().unwrap_or(0);
            let size = v.engine.map_or(0, |(_, block_tokens)| block_tokens);
            out.put(&[&size.to_string(), &blocks.to_string()], 1.0);
        }),
    ),
    counter(
        "vllm:prompt_tokens_total",
        &[],
        "Prompt tokens.",
        Read::Engine(|s, out| out.put(&[], s.counters.prompt_tokens as f64)),
    ),
    counter(
        "vllm:prompt_tokens_cached_total",
        &[],
        "Prompt tokens taken from the prefix cache.",
        Read::Engine(|s, out| out.put(&[], s.counters.cached_tokens as f64)),
    ),
    counter(
        "vllm:generation_tokens_total",
        &[],
        "Output tokens.",
        Read::Engine(|s, out| out.put(&[], s.counters.generated_tokens as f64)),
    ),
    counter(
        "vllm:request_success_total",
        &["finished_reason"],
        "Choices that ended: `stop`, `length`, `abort` or `error`.",
        Read::Engine(|s, out| {
            let [end, stop, length, cancelled, timeout, fault, shutdown, impossible] = s.counters.finished;
            out.put(&["stop"], (end + stop) as f64);
            out.put(&["length"], length as f64);
            out.put(&["abort"], (cancelled + timeout + shutdown + impossible) as f64);
            out.put(&["error"], fault as f64);
        }),
    ),
    counter(
        "vllm:num_preemptions_total",
        &[],
        "Sequences that lost their blocks to an older one.",
        Read::Engine(|s, out| out.put(&[], s.counters.preemptions as f64)),
    ),
    counter(
        "vllm:spec_decode_num_drafts_total",
        &[],
        "Rows of steps that had draft tokens.",
        Read::Engine(|s, out| out.put(&[], s.counters.drafts as f64)),
    ),
    counter(
        "vllm:spec_decode_num_draft_tokens_total",
        &[],
        "Draft tokens: computed on the guess that they would be chosen.",
        Read::Engine(|s, out| out.put(&[], s.counters.draft_tokens as f64)),
    ),
    counter(
        "vllm:spec_decode_num_accepted_tokens_total",
        &[],
        "Draft tokens that were chosen.",
        Read::Engine(|s, out| out.put(&[], s.counters.accepted_tokens as f64)),
    ),
    counter(
        "vllm:prefix_cache_queries_total",
        &[],
        "Prompt tokens looked up in the prefix cache.",
        Read::Engine(|s, out| out.put(&[], s.counters.prefix_queries as f64)),
    ),
    counter(
        "vllm:prefix_cache_hits_total",
        &[],
        "Prompt tokens found there.",
        Read::Engine(|s, out| out.put(&[], s.counters.cached_tokens as f64)),
    ),
    counter(
        "vllm:admission_rejections_total",
        &["reason"],
        "Requests that were not taken.",
        Read::Engine(|s, out| {
            let r = s.counters.rejections;
            out.put(&["queue_full"], r.queue_full as f64);
            out.put(&["tenant_limit"], r.tenant_limit as f64);
            out.put(&["too_long"], r.too_long as f64);
            out.put(&["shutting_down"], r.shutting_down as f64);
        }),
    ),
    histogram(
        "vllm:time_to_first_token_seconds",
        "From submission to the first token.",
        Read::Engine(|s, out| out.histogram(&[], &s.histograms.first_token)),
    ),
    histogram(
        "vllm:inter_token_latency_seconds",
        "Between two steps that gave a choice tokens: what was guessed rightly comes with the token before.",
        Read::Engine(|s, out| out.histogram(&[], &s.histograms.inter_token)),
    ),
    histogram(
        "vllm:e2e_request_latency_seconds",
        "From submission to the end. This and those below, but for the last, are of requests that were answered: what a client gave up or \
         a deadline ended is in none.",
        Read::Engine(|s, out| out.histogram(&[], &s.histograms.total)),
    ),
    histogram(
        "vllm:request_queue_time_seconds",
        "From submission to the first planned step.",
        Read::Engine(|s, out| out.histogram(&[], &s.histograms.queue)),
    ),
    histogram(
        "vllm:request_prefill_time_seconds",
        "From the first planned step to the first token.",
        Read::Engine(|s, out| out.histogram(&[], &s.histograms.prefill)),
    ),
    histogram(
        "vllm:request_decode_time_seconds",
        "From the first token to the end.",
        Read::Engine(|s, out| out.histogram(&[], &s.histograms.decode)),
    ),
    histogram(
        "vllm:request_prompt_tokens",
        "Prompt tokens of a request.",
        Read::Engine(|s, out| out.histogram(&[], &s.histograms.prompt_tokens)),
    ),
    histogram(
        "vllm:request_generation_tokens",
        "Output tokens of a request.",
        Read::Engine(|s, out| out.histogram(&[], &s.histograms.generation_tokens)),
    ),
    histogram(
        "vllm:request_inference_time_seconds",
        "From the first planned step to the end.",
        Read::Engine(|s, out| out.histogram(&[], &s.histograms.inference)),
    ),
    histogram(
        "vllm:request_time_per_output_token_seconds",
        "From the first token to the end, over the tokens of the longest choice but its first. Of requests with more than one.",
        Read::Engine(|s, out| out.histogram(&[], &s.histograms.output_token)),
    ),
    histogram(
        "vllm:request_max_num_generation_tokens",
        "Output tokens of a request's longest choice.",
        Read::Engine(|s, out| out.histogram(&[], &s.histograms.longest_choice)),
    ),
    histogram(
        "vllm:request_params_max_tokens",
        "Output tokens that a choice could have had: what was asked for, and the context left room for.",
        Read::Engine(|s, out| out.histogram(&[], &s.histograms.output_limit)),
    ),
    histogram(
        "vllm:iteration_tokens_total",
        "Tokens of a step.",
        Read::Engine(|s, out| out.histogram(&[], &s.histograms.step_tokens)),
    ),
];

/// What the GPU said last, if it said that.
fn said(s: &Snapshot, out: &mut Samples, value: fn(&Sample) -> Option<f64>) {
    if let Some(value) = s.gpu.as_ref().and_then(|gpu| gpu.sample.as_ref()).and_then(value) {
        out.put(&[], value);
    }
}

/// All accounts if there is a price, none otherwise.
fn priced_accounts(s: &Snapshot) -> impl Iterator<Item = Account> {
    let priced = s.cost.price_per_hour.is_some();
    Account::ALL.into_iter().filter(move |_| priced)
}

/// Calls `put([tokens, basis, window], cost, loaded)` for each combination.
fn unit_costs(s: &Snapshot, mut put: impl FnMut([&str; 3], UnitCost, bool)) {
    let windows: [(&str, &UnitCosts); 2] = [("5m", &s.cost.recent), ("start", &s.cost.total)];
    for (window, costs) in windows {
        for (tokens, cost) in [("input", costs.input), ("output", costs.output), ("all", costs.all)] {
            put([tokens, "marginal", window], cost, false);
            put([tokens, "loaded", window], cost, true);
        }
    }
}
