//! Memory under load, in a process of its own. `tests/benches/overhead.rs` does the same for longer, and measures time.

use anyhow::Result;
use frugal_tests::load::{FakeServer, every_kind, resident_kib};

/// Pools, caches and kept responses have reached their sizes after so many requests.
const WARM: u64 = 3000;
const THEN: u64 = 6000;

/// A leak of two kilobytes a request is more, what allocators hold back is far less.
const GROWTH_KIB: u64 = 8192;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_leave_nothing_behind() -> Result<()> {
    let server = FakeServer::start(100).await?;
    every_kind(server.address, WARM, 8).await?;
    let warm = resident_kib()?;
    every_kind(server.address, THEN, 8).await?;
    let grown = resident_kib()?.saturating_sub(warm);
    assert!(grown < GROWTH_KIB, "{THEN} requests left {grown} KiB behind");
    Ok(())
}
