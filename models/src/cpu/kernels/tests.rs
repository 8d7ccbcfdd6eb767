//! Rows of pages by every instruction set against the definition.

use frugal_quant::Isa;
use proptest::prelude::*;

use crate::lanes;
use crate::page::PageType;

/// Seeded numbers (xorshift64*).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    /// In -1..1.
    pub(crate) fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Writes rows of `dim` values and reads them back, by the definition and by every instruction set.
fn check(page: PageType, values: &[f32], dim: usize) {
    let bytes = page.row_bytes(dim);
    let mut expected = vec![0x55; values.len() / dim * bytes];
    let mut expected_values = vec![0.0; values.len()];
    for (i, row) in expected.chunks_exact_mut(bytes).enumerate() {
        page.write(&values[i * dim..][..dim], row);
        page.widen(row, &mut expected_values[i * dim..][..dim]);
    }
    for &isa in Isa::ALL.iter().filter(|isa| isa.available()) {
        let mut written = vec![0xaa; expected.len()];
        for (row, values) in written.chunks_exact_mut(bytes).zip(values.chunks_exact(dim)) {
            lanes::write(isa, page, values, row);
        }
        assert_eq!(written, expected, "{page:?} {isa:?} {dim}");
        let mut found = vec![7.0; values.len()];
        lanes::widen(isa, page, &written, &mut found, dim);
        assert_eq!(bits(&found), bits(&expected_values), "{page:?} {isa:?} {dim}");
    }
}

/// In release builds too: anything else would be undefined.
#[test]
fn a_set_that_the_processor_lacks_is_a_panic() {
    for &isa in Isa::ALL.iter().filter(|isa| !isa.available()) {
        let scaled = std::panic::catch_unwind(|| crate::math::scale(isa, &mut [1.0; 16], 2.0));
        let written = std::panic::catch_unwind(|| lanes::write(isa, PageType::F16, &[1.0; 8], &mut [0; 16]));
        assert!(scaled.is_err() && written.is_err(), "{isa:?}");
    }
}

#[test]
fn adversarial_rows_are_the_same_by_every_instruction_set() {
    let bad = [f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 8.4e6, f32::NAN];
    let small = [0.0, -0.0, 1e-45, -1e-40, f32::MIN_POSITIVE, 2.9e-8, 3.7e-6, 3.9e-6, 1e-5, 6e-8];
    // Halves of a step, and magnitudes around the largest half.
    let ties = (0..64).map(|i| (i - 32) as f32 + 0.5).chain([127.0, 65504.0, 65520.0, 8.3e6]);
    let all: Vec<f32> = small.into_iter().chain(ties).collect();
    let mut random = Random(3);
    for dim in [1, 7, 8, 31, 32, 33, 64, 96, 100, 576] {
        let mut values: Vec<f32> = (0..9 * dim).map(|_| all[random.below(all.len())]).collect();
        values[..dim].fill(0.0);
        values[dim..2 * dim].iter_mut().for_each(|v| *v = small[random.below(small.len())]);
        for page in PageType::ALL {
            check(page, &values, dim);
            for bad in bad {
                let mut values = values.clone();
                values[random.below(9 * dim)] = bad;
                check(page, &values, dim);
            }
        }
    }
}

proptest! {
    #[test]
    fn rows_are_the_same_by_every_instruction_set(
        dim in 1_usize..150, rows in 1_usize..5, exponent in -30_i32..30, seed in 1_u64..,
    ) {
        let scale = 2.0_f32.powi(exponent);
        let values: Vec<f32> = Random(seed).values(rows * dim).into_iter().map(|v| v * scale).collect();
        for page in PageType::ALL {
            check(page, &values, dim);
        }
    }
}
