//! What a row of a page, one head's key or value of one token, is as bytes.
//!
//! Law: a row's bytes depend on its values alone, and every instruction set reads the same values from them. This is the
//! definition; the CPU backend writes by it and reads what [`PageType::widen`] reads.
//!
//! Q8_0 is GGUF's: for 32 values an f16 scale d and 32 signed bytes q, the value is `q * d`. The last block of a row is shorter if
//! the row's width is no multiple of 32. d is `max|x| / 127` rounded to nearest even, q is `x / d` rounded to nearest even
//! and at most 127 in magnitude, which only matters where d is subnormal. A block whose largest magnitude is below
//! 3.8e-6 is zeros. One with a value that is not finite, or so large that d is not (8.3e6), is NaN: the fault shows in
//! every sum.

use half::f16;
use half::slice::HalfFloatSliceExt;

/// Values that share a scale in [`PageType::Q8_0`].
pub(crate) const BLOCK: usize = 32;
/// Bytes of a scale.
pub(crate) const SCALE: usize = 2;

/// How cache pages hold keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageType {
    /// Two bytes a value; keys and values are rounded once, when written.
    F16,
    /// Exact.
    F32,
    /// 34 bytes for 32 values, rounded once, when written.
    Q8_0,
}

impl PageType {
    /// Every type.
    pub const ALL: [Self; 3] = [Self::F16, Self::F32, Self::Q8_0];

    /// As the configuration calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::Q8_0 => "q8_0",
        }
    }

    /// Bytes of a row of so many values.
    pub fn row_bytes(self, values: usize) -> usize {
        match self {
            Self::F16 => values.saturating_mul(2),
            Self::F32 => values.saturating_mul(4),
            Self::Q8_0 => values.saturating_add(SCALE * values.div_ceil(BLOCK)),
        }
    }

    /// Rounds a row to the type, to nearest, ties to even; `to` has [`PageType::row_bytes`].
    ///
    /// Inlined, so that who calls it for a row at a time has it compiled for their instruction set.
    #[inline(always)]
    pub fn write(self, row: &[f32], to: &mut [u8]) {
        debug_assert_eq!(to.len(), self.row_bytes(row.len()), "room for exactly the row");
        match self {
            Self::F16 => {
                for (x, to) in row.chunks(BLOCK).zip(to.chunks_mut(2 * BLOCK)) {
                    let mut halves = [f16::ZERO; BLOCK];
                    halves[..x.len()].convert_from_f32_slice(x);
                    for (to, half) in to.as_chunks_mut().0.iter_mut().zip(halves) {
                        *to = half.to_le_bytes();
                    }
                }
            }
            Self::F32 => {
                for (to, x) in to.as_chunks_mut().0.iter_mut().zip(row) {
                    *to = x.to_le_bytes();
                }
            }
            Self::Q8_0 => {
                let (blocks, rest) = row.as_chunks::<BLOCK>();
                let (places, place) = to.as_chunks_mut::<{ SCALE + BLOCK }>();
                for (x, to) in blocks.iter().zip(places) {
                    quantize(x, to);
                }
                if !rest.is_empty() {
                    quantize(rest, place);
                }
            }
        }
    }

    /// The values of one row, exactly.
    pub fn widen(self, from: &[u8], to: &mut [f32]) {
        debug_assert_eq!(from.len(), self.row_bytes(to.len()), "exactly the row");
        match self {
            Self::F16 => {
                for (to, from) in to.iter_mut().zip(from.as_chunks().0) {
                    *to = f16::from_le_bytes(*from).to_f32();
                }
            }
            Self::F32 => {
                for (to, from) in to.iter_mut().zip(from.as_chunks().0) {
                    *to = f32::from_le_bytes(*from);
                }
            }
            Self::Q8_0 => {
                for (from, to) in from.chunks(SCALE + BLOCK).zip(to.chunks_mut(BLOCK)) {
                    widen_block(from, to);
                }
            }
        }
    }
}

/// One block of [`PageType::Q8_0`], of any length.
#[inline(always)]
fn quantize(x: &[f32], to: &mut [u8]) {
    // Magnitudes compare as integers: then NaN is the largest of all.
    let max = x.iter().fold(0, |max, v| (v.to_bits() & 0x7fff_ffff).max(max));
    let d = f16::from_f32(f32::from_bits(max) / 127.0);
    let d = if d.is_finite() { d } else { f16::NAN };
    // A factor of 0 makes every code 0: casting takes NaN to 0.
    let factor = if d > f16::ZERO { 1.0 / d.to_f32() } else { 0.0 };
    let (scale, codes) = to.split_at_mut(SCALE);
    scale.copy_from_slice(&d.to_le_bytes());
    for (code, v) in codes.iter_mut().zip(x) {
        *code = ((v * factor).round_ties_even().clamp(-127.0, 127.0) as i8).cast_unsigned();
    }
}

/// The values of one block of [`PageType::Q8_0`], of any length.
pub(crate) fn widen_block(from: &[u8], to: &mut [f32]) {
    if let Some((scale, codes)) = from.split_first_chunk::<SCALE>() {
        let d = f16::from_le_bytes(*scale).to_f32();
        for (to, code) in to.iter_mut().zip(codes) {
            *to = f32::from(code.cast_signed()) * d;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(page: PageType, row: &[f32]) -> Vec<f32> {
        let mut bytes = vec![0x55; page.row_bytes(row.len())];
        page.write(row, &mut bytes);
        let mut back = vec![0.0; row.len()];
        page.widen(&bytes, &mut back);
        back
    }

    #[test]
    fn half_precision_rounds_to_nearest_even() {
        let from = [1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, -65504.0, 1e-8, 5.9604645e-8, f32::INFINITY];
        let back = through(PageType::F16, &from);
        assert_eq!(back, [1.0, 1.0 + 2.0 / 1024.0, -65504.0, 0.0, 5.9604645e-8, f32::INFINITY]);
    }

    #[test]
    fn rows_have_the_bytes_that_are_said() {
        let bytes = |values| PageType::ALL.map(|page| page.row_bytes(values));
        assert_eq!(bytes(64), [128, 256, 68]);
        assert_eq!(bytes(576), [1152, 2304, 612]);
        assert_eq!(bytes(33), [66, 132, 37]);
        assert_eq!(bytes(0), [0, 0, 0]);
        assert_eq!(bytes(usize::MAX), [usize::MAX; 3]);
    }

    #[test]
    fn eight_bits_are_ggufs() {
        // d = 2; ties go to even; the second block is shorter.
        let mut row = [0.0; 34];
        row[..8].copy_from_slice(&[254.0, -254.0, 1.0, 3.0, -5.0, 2.1, -0.9, 253.0]);
        row[32] = -0.5;
        let mut bytes = [0; 38];
        PageType::Q8_0.write(&row, &mut bytes);
        assert_eq!(bytes[..2], f16::from_f32(2.0).to_le_bytes());
        assert_eq!(
            bytes[2..10].iter().map(|c| c.cast_signed()).collect::<Vec<_>>(),
            [127, -127, 0, 2, -2, 1, 0, 126]
        );
        assert_eq!(bytes[10..34], [0; 24]);
        assert_eq!(bytes[34..36], f16::from_f32(0.5 / 127.0).to_le_bytes());
        assert_eq!(bytes[36..], [(-127_i8).cast_unsigned(), 0]);
        // As the weights' format reads it.
        let mut ours = [0.0; 32];
        let mut ggufs = [0.0; 32];
        widen_block(&bytes[..34], &mut ours);
        (frugal_quant::format(frugal_quant::GgmlType::Q8_0).dequantize)(&bytes[..34], &mut ggufs);
        assert_eq!(ours, ggufs);
    }

    /// Half a step, and the scale's own rounding: 2^-11 of a value of at most 127 steps.
    #[test]
    fn eight_bits_are_near() {
        let mut random = crate::tests::Random(77);
        for exponent in -8..16 {
            let scale = 2.0_f32.powi(exponent);
            let row: Vec<f32> = random.values(32).into_iter().map(|v| v * scale).collect();
            let max = row.iter().fold(0.0_f32, |max, v| max.max(v.abs()));
            for (x, back) in row.iter().zip(through(PageType::Q8_0, &row)) {
                assert!((x - back).abs() <= 0.57 * max / 127.0, "{x} became {back}, of at most {max}");
            }
        }
    }

    #[test]
    fn what_eight_bits_cannot_hold_is_defined() {
        let q8 = |row: &[f32]| through(PageType::Q8_0, row);
        assert_eq!(q8(&[0.0, -0.0, 0.0]).iter().map(|v| v.to_bits()).collect::<Vec<_>>(), [0; 3]);
        // Below half of the smallest scale, subnormals among them, nothing is left.
        assert_eq!(q8(&[1e-40, -3e-6, f32::MIN_POSITIVE]), [0.0; 3]);
        // Where the scale is subnormal it is coarse: codes stay within their bounds.
        let tiny = f16::from_bits(1).to_f32();
        assert_eq!(q8(&[1.4 * 127.0 * tiny, -1.4 * 127.0 * tiny, tiny]), [127.0 * tiny, -127.0 * tiny, tiny]);
        assert_eq!(q8(&[8.2e6, 0.0])[1], 0.0);
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 8.4e6] {
            let mut row = [1.0; 70];
            row[33] = bad;
            let back = q8(&row);
            assert!(back[32..64].iter().all(|v| v.is_nan()), "{bad}: its block is not a number");
            assert!(back[..32].iter().chain(&back[64..]).all(|v| v.is_finite()), "{bad}: the others are");
        }
    }
}
