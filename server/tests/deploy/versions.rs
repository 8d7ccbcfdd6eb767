//! What files of `deploy/` repeat of the product: its version, and times that supervisors have to know.

use crate::tools::text;

/// The number behind the first `name` in `text`.
fn number(text: &str, name: &str) -> u32 {
    let (_, rest) = text.split_once(name).unwrap_or_else(|| panic!("no {name} in\n{text}"));
    let digits = rest.trim_start_matches([' ', ':', '=']).split(|c: char| !c.is_ascii_digit()).next();
    digits.and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("no number behind {name}"))
}

#[test]
fn the_image_and_the_chart_have_the_products_version() {
    let version = env!("CARGO_PKG_VERSION");
    let repeated = [
        ("Dockerfile", format!("ARG VERSION={version}\n")),
        ("Dockerfile.cuda", format!("ARG VERSION={version}\n")),
        ("helm/frugal/Chart.yaml", format!("appVersion: \"{version}\"\n")),
        ("../README.md", format!("docker build --tag REGISTRY/frugal:{version} ")),
    ];
    for (file, line) in repeated {
        assert!(text(file).contains(&line), "{file} has no line {line}");
    }
}

#[test]
fn supervisors_are_more_patient_than_the_server() {
    let defaults = frugal_config::DEFAULT_TOML;
    let drain = number(defaults, "\ndrain_timeout_s");
    for (file, name) in [
        ("compose.yaml", "stop_grace_period"),
        ("frugal.service", "TimeoutStopSec"),
        ("helm/frugal/values.yaml", "\nterminationGracePeriodSeconds"),
    ] {
        // Clients may take what is left of their answers after that.
        assert!(number(&text(file), name) > drain + 5, "{file}: {name}");
    }
    assert!(number(&text("frugal.service"), "WatchdogSec") > number(defaults, "\nstall_timeout_s"));
    let minutes = number(&text("haproxy/haproxy.cfg"), "timeout server");
    assert!(minutes * 60 > number(defaults, "\nrequest_timeout_s"));
}
