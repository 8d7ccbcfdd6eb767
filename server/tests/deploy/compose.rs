//! `compose.yaml`, read by docker-compose.

use std::process::Command;

use crate::tools::{have, path, run, text};

#[test]
fn the_composition_is_valid_and_mounts_what_is_there() {
    // What it mounts and builds from, whoever reads it.
    let compose = text("compose.yaml");
    for file in
        ["prometheus/prometheus.yml", "grafana/provisioning", "grafana/dashboards/frugal.json", "Dockerfile"]
    {
        assert!(path(file).exists(), "{file}");
    }
    for mount in [
        "./prometheus:/etc/prometheus",
        "./grafana/provisioning:",
        "./grafana/dashboards:",
        "deploy/Dockerfile",
    ] {
        assert!(compose.contains(mount), "{mount}");
    }
    if !have("docker-compose", "compose.yaml") {
        return;
    }
    let file = path("compose.yaml");
    let compose = |price: Option<&str>| {
        let mut command = Command::new("docker-compose");
        command.arg("--file").arg(&file).arg("config");
        for variable in ["FRUGAL_COST__CURRENCY", "FRUGAL_MODEL__SOURCE", "HF_TOKEN"] {
            command.env_remove(variable);
        }
        match price {
            Some(price) => command.env("FRUGAL_COST__INSTANCE_PER_HOUR", price),
            None => command.env_remove("FRUGAL_COST__INSTANCE_PER_HOUR"),
        };
        run(&mut command)
    };
    let config = compose(Some("0.25"));
    assert!(config.contains("FRUGAL_COST__INSTANCE_PER_HOUR: '0.25'"), "{config}");
    for service in ["frugal:", "prometheus:", "grafana:"] {
        assert!(config.contains(service), "{service} is not in\n{config}");
    }
    assert!(!compose(None).contains("FRUGAL_COST__INSTANCE_PER_HOUR: '"), "a price out of nowhere");
}
