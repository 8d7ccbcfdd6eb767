//! What the machine gives at this moment, for figures to be read against: neighbours on the same hardware can take half
//! of it away and give it back within minutes.
//!
//! Two probes with all threads: additions in registers alone, and reading memory once. Each is the median of several
//! short runs.

use std::hint::black_box;
use std::io;
use std::time::Instant;

use super::memory::Bytes;
use super::pool::Pool;
use crate::quant::Isa;

/// Runs of each probe.
const RUNS: usize = 5;
/// Independent sums: enough to hide an addition's latency, few enough to stay in 16 registers.
const SUMS: usize = 12;
/// 16-bit lanes of a sum.
const LANES: usize = 16;
/// Turns of all sums in one run: about 10 ms.
const TURNS: usize = 8_000_000;
/// Read in one run, unless memory is short: more than the largest caches of today.
const READ_BYTES: u64 = 512 << 20;
/// Bytes that are read at once.
const WORD: usize = 8;
/// Of what is available, the part that may be taken.
const AVAILABLE_PART: u64 = 4;

/// Rates of all threads together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Probe {
    /// 16-bit integer additions a second.
    pub additions: f64,
    /// Bytes read a second.
    pub read: f64,
}

/// Measures for about half a second.
///
/// # Errors
/// If threads or memory cannot be had.
pub fn probe(threads: usize) -> io::Result<Probe> {
    let room = crate::memory::available().map_or(READ_BYTES, |bytes| bytes / AVAILABLE_PART);
    measure(threads.max(1), TURNS, room.min(READ_BYTES))
}

fn measure(threads: usize, turns: usize, read_bytes: u64) -> io::Result<Probe> {
    let pool = Pool::new(threads, false)?;
    let additions = median(|| {
        let begin = Instant::now();
        pool.run(&|_| {
            black_box(additions(Isa::detect(), turns));
        });
        (threads * SUMS * LANES * turns) as f64 / begin.elapsed().as_secs_f64()
    });
    let part = usize::try_from(read_bytes).unwrap_or(usize::MAX) / threads / WORD * WORD;
    let mut bytes = Bytes::new(part * threads)?;
    // Pages of zeros that were never written would all be one.
    pool.for_each_part(&mut bytes, part.max(1), |worker, _, part| part.fill(worker as u8 + 1));
    let read = median(|| {
        let begin = Instant::now();
        pool.for_each(threads, |_, i| {
            black_box(sum(&bytes[i * part..][..part]));
        });
        (part * threads) as f64 / begin.elapsed().as_secs_f64()
    });
    Ok(Probe { additions, read })
}

fn median(mut run: impl FnMut() -> f64) -> f64 {
    let mut rates: Vec<f64> = (0..RUNS).map(|_| run()).collect();
    rates.sort_by(f64::total_cmp);
    rates[RUNS / 2]
}

/// All lanes of all sums, added up.
fn additions(isa: Isa, turns: usize) -> u16 {
    match isa {
        Isa::Scalar => additions_portable(turns),
        // All arm64 has what the plain additions are compiled for.
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => additions_portable(turns),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: either is only named where the processor was found to have it; AVX-512 comes with AVX2.
        Isa::Avx2 | Isa::Avx512 => unsafe { additions_avx2(turns) },
    }
}

/// Each sum grows by its neighbour: no turn can be left out or folded into another.
fn additions_portable(turns: usize) -> u16 {
    let mut sums: [[u16; LANES]; SUMS] = black_box([[1; LANES]; SUMS]);
    for _ in 0..turns {
        for i in 0..SUMS {
            let by = sums[(i + 1) % SUMS];
            for (lane, by) in sums[i].iter_mut().zip(by) {
                *lane = lane.wrapping_add(by);
            }
        }
    }
    sums.iter().flatten().fold(0, |sum, &lane| sum.wrapping_add(lane))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn additions_avx2(turns: usize) -> u16 {
    use std::arch::x86_64::{_mm256_add_epi16, _mm256_extract_epi16, _mm256_set1_epi16};
    let mut sums = [_mm256_set1_epi16(black_box(1)); SUMS];
    for _ in 0..turns {
        for i in 0..SUMS {
            sums[i] = _mm256_add_epi16(sums[i], sums[(i + 1) % SUMS]);
        }
    }
    // All lanes are alike.
    let lane = sums.iter().map(|&sum| _mm256_extract_epi16::<0>(sum) as u16).fold(0, u16::wrapping_add);
    lane.wrapping_mul(LANES as u16)
}

fn sum(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks::<WORD>();
    words.iter().fold(0, |sum, &word| sum.wrapping_add(u64::from_le_bytes(word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instruction_sets_add_the_same() {
        for turns in [0, 1, 2, 1000] {
            assert_eq!(additions(Isa::detect(), turns), additions_portable(turns));
        }
        assert_ne!(additions_portable(2), additions_portable(3));
    }

    #[test]
    fn rates_are_rates() {
        for threads in [1, 2, 3] {
            let probe = measure(threads, 1000, 1 << 16).unwrap();
            assert!(probe.additions > 0.0 && probe.additions.is_finite());
            assert!(probe.read > 0.0 && probe.read.is_finite());
        }
        let bytes: Vec<u8> = (0..20).collect();
        let words = [0x0706_0504_0302_0100u64, 0x0f0e_0d0c_0b0a_0908];
        assert_eq!(sum(&bytes), words[0].wrapping_add(words[1]));
    }
}
