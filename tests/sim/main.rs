//! The engine under a fake runner and a virtual clock: thousands of seeded worlds, each checked after every step.
//!
//! `FRUGAL_SIM_SEED=17 cargo sim` replays one world and prints its trace.

mod client;
mod expect;
mod grammar;
mod params;
mod rng;
mod scripts;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::world::{Tally, World};

const SEEDS: u64 = 10_000;
const THREADS: usize = 2;

#[test]
fn ten_thousand_worlds() {
    if let Some(seed) = replayed_seed() {
        World::run(seed, true);
        return;
    }
    let next = AtomicU64::new(0);
    let total = Mutex::new(Tally::default());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut sum = Tally::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= SEEDS {
                        break;
                    }
                    sum.add(&run(seed));
                }
                total.lock().expect("a failed world ends the test").add(&sum);
            });
        }
    });
    let total = total.into_inner().expect("no thread panicked");
    eprintln!("{total:#?}");
    total.assert_everything_happened();
}

/// I8: the same seed gives the same trace, down to every block table.
#[test]
fn the_same_seed_gives_the_same_trace() {
    if replayed_seed().is_some() {
        return;
    }
    for seed in (0..SEEDS).step_by(101) {
        let (first, second) = (World::trace(seed), World::trace(seed));
        assert_eq!(first, second, "I8: seed {seed}");
    }
}

fn run(seed: u64) -> Tally {
    match std::panic::catch_unwind(|| World::run(seed, false)) {
        Ok(tally) => tally,
        Err(panic) => {
            eprintln!("replay with: FRUGAL_SIM_SEED={seed} cargo sim -- --nocapture");
            std::panic::resume_unwind(panic);
        }
    }
}

fn replayed_seed() -> Option<u64> {
    let seed = std::env::var("FRUGAL_SIM_SEED").ok()?;
    Some(seed.parse().expect("FRUGAL_SIM_SEED is a number"))
}
