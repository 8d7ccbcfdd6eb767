//! `frugal inspect`: a model file in tables or JSON.

use std::io::Write as _;

use anyhow::Context as _;
use frugal_config::Config;
use frugal_config::cli::Inspect;
use frugal_models::inspect::{CacheKind, Experts, InspectOptions, Report, inspect};
use frugal_models::memory;

use crate::load;
use crate::terminal::{bytes, parameters, printable_line, table};

/// Prints the report; whether the model can be served.
pub(crate) fn run(config: &Config, how: &Inspect) -> anyhow::Result<bool> {
    let path = load::file(config)?;
    let mut gguf = load::read(&path)?;
    let options = InspectOptions {
        kv: load::kv(config),
        available: memory::available(),
        template: config.model.chat_template.as_deref(),
    };
    let report = inspect(&mut gguf, &options);
    let text = match how.json {
        true => format!("{}\n", serde_json::to_string_pretty(&report).context("the report is plain data")?),
        false => render(&report),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(report.servable)
}

fn render(report: &Report) -> String {
    let mut text = facts(report);
    text += "\n";
    text += &weights(report);
    if !report.cache.is_empty() {
        text += "\n";
        text += &cache(report);
        // Else the last line says it.
        if report.fits || !report.servable {
            text += "\n";
            text += &fit(report);
        }
    }
    text += "\n";
    match report.problems.as_slice() {
        [] if report.fits => text += "Frugal serves this model.\n",
        [] => {
            let why = report.fit.error.as_deref().unwrap_or("it does not fit");
            let why = printable_line(why);
            text += &format!("Frugal can serve this model, but not here as configured: {why}\n");
        }
        problems => {
            text += "Frugal cannot serve this model:\n";
            for problem in problems {
                text += &format!("- {}\n", printable_line(&problem.message));
            }
        }
    }
    text
}

fn facts(report: &Report) -> String {
    let unknown = || "not given".to_owned();
    let said = |text: &Option<String>| text.as_deref().map_or_else(unknown, printable_line);
    let tokenizer = &report.tokenizer;
    let all = &report.parameters;
    let rows = [
        ("name", said(&report.name)),
        ("license", said(&report.license)),
        ("architecture", said(&report.architecture)),
        ("layers", report.layers.map_or_else(unknown, |layers| layers.to_string())),
        ("experts", report.experts.map_or("none".to_owned(), experts)),
        ("parameters", parameters(all.total)),
        ("  per token", format!("{} (embedding and output included)", parameters(all.active))),
        ("weights", format!("{} in {}", bytes(report.weight_bytes), files(report))),
        (
            "  per token",
            format!(
                "{} read to decode one sequence, and {} per position it sees",
                bytes(report.decode.weight_bytes),
                bytes(report.decode.cache_bytes_per_position)
            ),
        ),
        ("context", report.context.map_or_else(unknown, |context| format!("{context} tokens"))),
        (
            "tokenizer",
            format!("{}, pre {}, {} tokens", said(&tokenizer.model), said(&tokenizer.pre), tokenizer.tokens),
        ),
        ("chat template", template(report)),
    ];
    rows.iter().map(|(name, value)| format!("{name:<14} {value}\n")).collect()
}

fn files(report: &Report) -> String {
    match report.files {
        1 => format!("a file of {}", bytes(report.file_bytes)),
        count => format!("{count} files of {}", bytes(report.file_bytes)),
    }
}

fn experts(experts: Experts) -> String {
    let Experts { count, used, shared } = experts;
    let shared = if shared > 0 { format!(", and {shared} shared") } else { String::new() };
    format!("{count} in a layer, {used} for a token{shared}")
}

fn template(report: &Report) -> String {
    let Some(template) = &report.template else { return "none that can be used".to_owned() };
    let tools = if template.tools { "tools" } else { "no tools" };
    match template.thinking.as_slice() {
        [] => tools.to_owned(),
        switches => format!("{tools}, thinking ({})", switches.join(", ")),
    }
}

fn weights(report: &Report) -> String {
    let row = |row: &frugal_models::inspect::WeightRow| {
        let also_output = row.kind.name() == "embedding" && report.parameters.tied_output;
        vec![
            if also_output { "embedding, output".to_owned() } else { row.kind.name().to_owned() },
            row.tensors.to_string(),
            row.format.clone() + if row.supported { "" } else { " (not supported)" },
            parameters(row.parameters),
            row.bytes.map_or("?".to_owned(), bytes),
            row.bits_per_weight.map_or("?".to_owned(), |bits| format!("{bits:.2}")),
        ]
    };
    let rows: Vec<_> = report.weights.iter().map(row).collect();
    table(&["weights", "tensors", "format", "parameters", "bytes", "bits/weight"], &rows)
}

fn cache(report: &Report) -> String {
    let row = |row: &frugal_models::inspect::CacheRow| {
        let kind = match row.kind {
            CacheKind::Full => "every position",
            CacheKind::Window => "sliding window",
            CacheKind::State => "one state",
        };
        vec![
            kind.to_owned(),
            row.layers.to_string(),
            row.window.map_or("-".to_owned(), |window| window.to_string()),
            bytes(row.f16_bytes),
            bytes(row.f32_bytes),
            bytes(row.q8_0_bytes),
        ]
    };
    let rows: Vec<_> = report.cache.iter().map(row).collect();
    table(&["cache", "layers", "window", "f16/position", "f32/position", "q8_0/position"], &rows)
}

fn fit(report: &Report) -> String {
    let fit = &report.fit;
    if let Some(error) = &fit.error {
        return format!("Does not fit here: {}\n", printable_line(error));
    }
    let available = fit.available_bytes.map_or("an unknown amount".to_owned(), bytes);
    let cache = bytes(fit.cache_bytes.unwrap_or(0));
    let room = match fit.reserve_bytes {
        Some(reserve) => format!("With {} of it left free", bytes(reserve)),
        None => format!("In the {cache} configured"),
    };
    let row = |row: &frugal_models::inspect::FitRow| vec![row.context.to_string(), row.sequences.to_string()];
    let rows: Vec<_> = fit.sequences.iter().map(row).collect();
    format!(
        "Memory here: {available}. A server would take {cache} for its cache ({}) beside the weights.\n\
         {room}, so many sequences fit at a time:\n\n{}",
        fit.page,
        table(&["context", "sequences"], &rows)
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use frugal_models::gguf::Gguf;
    use frugal_models::kv::PageType;
    use frugal_models::memory::{KvOptions, KvSize};

    use super::*;

    fn report(name: &str) -> Report {
        report_in(name, 1 << 30)
    }

    fn report_in(name: &str, memory: u64) -> Report {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
        let mut gguf = Gguf::open(&fixtures.join(name)).unwrap();
        let size = KvSize::Available { reserve: 512 << 20, threads: None };
        let page = PageType::F16;
        let kv = KvOptions { block_tokens: 16, page, size, context: None, sequences: 64, step_tokens: 512 };
        inspect(&mut gguf, &InspectOptions { kv, available: Some(memory), template: None })
    }

    #[test]
    fn reports_as_text_and_json() {
        for name in ["qwen3moe-Q4_K_M", "llama-Q4_K_M", "gpt-oss-MXFP4_MOE", "deepseek2-v3-Q4_K_M"] {
            let report = report(&format!("{name}.gguf"));
            insta::assert_snapshot!(format!("{name}"), render(&report));
            insta::assert_json_snapshot!(format!("{name}_json"), report);
        }
    }

    #[test]
    fn what_cannot_be_served_is_said_at_the_end() {
        // A tokenizer without a model.
        let text = render(&report("tokenizer-fixture.gguf"));
        let (_, problems) = text.split_once("Frugal cannot serve this model:\n").expect("a verdict");
        assert!(
            problems.lines().count() >= 1 && problems.lines().all(|line| line.starts_with("- ")),
            "{text}"
        );
    }

    #[test]
    fn what_does_not_fit_here_is_not_served_here() {
        let report = report_in("qwen3moe-Q4_K_M.gguf", 1 << 20);
        assert!(report.servable && !report.fits);
        let text = render(&report);
        let last = "\nFrugal can serve this model, but not here as configured: ";
        assert_eq!(text.matches(last).count(), 1, "{text}");
        assert!(!text.contains("Frugal serves") && !text.contains("Does not fit"), "{text}");
        let unusable = report_in("tokenizer-fixture.gguf", 1 << 30);
        assert!(!unusable.servable && !unusable.fits);
    }

    #[test]
    fn a_files_own_words_cannot_steer_the_terminal() {
        let mut report = report("qwen3moe-Q4_K_M.gguf");
        let hostile = || Some("\u{1b}]0;x\u{7}\n\n".to_owned());
        report.name = hostile();
        report.license = hostile();
        report.architecture = hostile();
        (report.tokenizer.model, report.tokenizer.pre) = (hostile(), hostile());
        report.fit.error = hostile();
        let text = render(&report);
        report.fits = false;
        let text = text + &render(&report);
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        assert!(text.contains("name           \\u{1b}]0;x\\u{7}"), "{text}");
    }
}
