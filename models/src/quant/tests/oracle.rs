//! What blocks of a file stand for, element by element, from the file format's definition.

use super::GgmlType;

/// Values of IQ4's codes.
const IQ4: [i32; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// Values of MXFP4's codes without sign.
const E2M1: [f64; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

fn half(bytes: &[u8]) -> f64 {
    half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f64()
}

/// The value of element `i` of a file block as the two terms it is the sum of, exact in f64.
pub(super) fn oracle(ty: GgmlType, b: &[u8], i: usize) -> [f64; 2] {
    let nibble = |qs: &[u8]| f64::from(qs[i % 16] >> (4 * (i / 16)) & 15);
    match ty {
        GgmlType::F32 => [f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])), 0.0],
        GgmlType::F16 => [half(b), 0.0],
        GgmlType::BF16 => [half::bf16::from_le_bytes([b[0], b[1]]).to_f64(), 0.0],
        GgmlType::Q4_0 => [half(b) * (nibble(&b[2..]) - 8.0), 0.0],
        GgmlType::Q4_1 => [half(b) * nibble(&b[4..]), half(&b[2..])],
        GgmlType::Q5_0 => {
            let fifth = f64::from(b[2 + i / 8] >> (i % 8) & 1);
            [half(b) * (nibble(&b[6..]) + 16.0 * fifth - 16.0), 0.0]
        }
        GgmlType::Q5_1 => {
            let fifth = f64::from(b[4 + i / 8] >> (i % 8) & 1);
            [half(b) * (nibble(&b[8..]) + 16.0 * fifth), half(&b[2..])]
        }
        GgmlType::Q8_0 => [half(b) * f64::from(b[2 + i].cast_signed()), 0.0],
        GgmlType::Q4_K | GgmlType::Q5_K => {
            let (s, j) = (&b[4..16], i / 32);
            let (scale, min) = if j < 4 {
                (s[j] & 63, s[j + 4] & 63)
            } else {
                ((s[j + 4] & 15) | (s[j - 4] >> 6) << 4, (s[j + 4] >> 4) | (s[j] >> 6) << 4)
            };
            let (qs, fifth) = match ty {
                GgmlType::Q4_K => (&b[16..], 0),
                _ => (&b[48..], b[16 + i % 32] >> j & 1),
            };
            let q = qs[32 * (j / 2) + i % 32] >> (4 * (j % 2)) & 15 | fifth << 4;
            [half(b) * f64::from(scale) * f64::from(q), -half(&b[2..]) * f64::from(min)]
        }
        GgmlType::Q2_K => {
            let (run, l) = (i / 32, i % 32);
            let q = b[16 + 32 * (run / 4) + l] >> (2 * (run % 4)) & 3;
            let (scale, min) = (b[i / 16] & 15, b[i / 16] >> 4);
            [half(&b[80..]) * f64::from(scale) * f64::from(q), -half(&b[82..]) * f64::from(min)]
        }
        GgmlType::Q3_K => {
            let (run, l, s) = (i / 32, i % 32, i / 16);
            let low = b[32 + 32 * (run / 4) + l] >> (2 * (run % 4)) & 3;
            let less = if b[l] >> run & 1 == 0 { 4.0 } else { 0.0 };
            let scale = b[96 + s % 8] >> (4 * (s / 8)) & 15 | (b[104 + s % 4] >> (2 * (s / 4)) & 3) << 4;
            [half(&b[108..]) * (f64::from(scale) - 32.0) * (f64::from(low) - less), 0.0]
        }
        GgmlType::Q6_K => {
            let (h, e) = (i / 128, i % 128);
            let (run, l) = (e / 32, e % 32);
            let low = b[64 * h + l + 32 * (run % 2)] >> (4 * (run / 2)) & 15;
            let high = b[128 + 32 * h + l] >> (2 * run) & 3;
            let scale = b[192 + 8 * h + e / 16].cast_signed();
            [half(&b[208..]) * f64::from(scale) * (f64::from(low | high << 4) - 32.0), 0.0]
        }
        GgmlType::IQ4_NL => [half(b) * f64::from(IQ4[nibble(&b[2..]) as usize]), 0.0],
        GgmlType::IQ4_XS => {
            let j = i / 32;
            let upper = u16::from_le_bytes([b[2], b[3]]) >> (2 * j) & 3;
            let scale = f64::from(b[4 + j / 2] >> (4 * (j % 2)) & 15) + 16.0 * f64::from(upper) - 32.0;
            let q = b[8 + 16 * j + i % 16] >> (4 * (i % 32 / 16)) & 15;
            [half(b) * scale * f64::from(IQ4[usize::from(q)]), 0.0]
        }
        GgmlType::MXFP4 => {
            let q = nibble(&b[1..]) as usize;
            let sign = if q < 8 { 1.0 } else { -1.0 };
            [sign * E2M1[q % 8] * 2f64.powi(i32::from(b[0]) - 127), 0.0]
        }
    }
}

/// Where a block's half-precision factors lie.
pub(super) fn factors(ty: GgmlType) -> &'static [usize] {
    match ty {
        GgmlType::F32 | GgmlType::BF16 | GgmlType::MXFP4 => &[],
        GgmlType::F16 | GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 => &[0],
        GgmlType::IQ4_NL | GgmlType::IQ4_XS => &[0],
        GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4_K | GgmlType::Q5_K => &[0, 2],
        GgmlType::Q2_K => &[80, 82],
        GgmlType::Q3_K => &[108],
        GgmlType::Q6_K => &[208],
    }
}
