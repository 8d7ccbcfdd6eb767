//! What `deploy/` holds, run: the alerts and the dashboard by Prometheus, three servers behind HAProxy, the unit by systemd, the
//! chart by Helm. Where such a program is not installed, its test says SKIPPED and passes.

#[path = "../binary/process.rs"]
mod process;

mod compose;
mod haproxy;
mod helm;
mod image;
mod prometheus;
mod systemd;
mod tools;
mod versions;
