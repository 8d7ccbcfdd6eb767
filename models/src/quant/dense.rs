//! F32, F16 and BF16: values as they are. Block: one value.
//!
//! Panel: for each k the eight rows' values.

use super::{ActKind, Format, GgmlType, PANEL, half_at, single_at};

pub(super) const F32: Format = Format {
    ty: GgmlType::F32,
    name: "F32",
    ggml_id: 0,
    block: 1,
    block_bytes: 4,
    act: ActKind::F32,
    dequantize: dequantize::<Single>,
    pack: pack::<Single, 4>,
    #[cfg(target_arch = "x86_64")]
    avx2_pack: None,
    unpack: unpack::<Single, 4>,
    scalar: scalar::<Single>,
    #[cfg(target_arch = "aarch64")]
    neon: neon::product::<Single>,
    #[cfg(target_arch = "x86_64")]
    avx2: avx2::product::<Single>,
    #[cfg(target_arch = "x86_64")]
    avx2_wide: None,
    #[cfg(target_arch = "x86_64")]
    avx512: None,
    #[cfg(target_arch = "x86_64")]
    avx512_wide: None,
};

pub(super) const F16: Format = Format {
    ty: GgmlType::F16,
    name: "F16",
    ggml_id: 1,
    block: 1,
    block_bytes: 2,
    act: ActKind::F32,
    dequantize: dequantize::<Half>,
    pack: pack::<Half, 2>,
    #[cfg(target_arch = "x86_64")]
    avx2_pack: None,
    unpack: unpack::<Half, 2>,
    scalar: scalar::<Half>,
    #[cfg(target_arch = "aarch64")]
    neon: neon::product::<Half>,
    #[cfg(target_arch = "x86_64")]
    avx2: avx2::product::<Half>,
    #[cfg(target_arch = "x86_64")]
    avx2_wide: None,
    #[cfg(target_arch = "x86_64")]
    avx512: None,
    #[cfg(target_arch = "x86_64")]
    avx512_wide: None,
};

pub(super) const BF16: Format = Format {
    ty: GgmlType::BF16,
    name: "BF16",
    ggml_id: 30,
    block: 1,
    block_bytes: 2,
    act: ActKind::F32,
    dequantize: dequantize::<Brain>,
    pack: pack::<Brain, 2>,
    #[cfg(target_arch = "x86_64")]
    avx2_pack: None,
    unpack: unpack::<Brain, 2>,
    scalar: scalar::<Brain>,
    #[cfg(target_arch = "aarch64")]
    neon: neon::product::<Brain>,
    #[cfg(target_arch = "x86_64")]
    avx2: avx2::product::<Brain>,
    #[cfg(target_arch = "x86_64")]
    avx2_wide: None,
    #[cfg(target_arch = "x86_64")]
    avx512: None,
    #[cfg(target_arch = "x86_64")]
    avx512_wide: None,
};

/// A kind of value.
trait Dense {
    const FORMAT: Format;
    fn at(bytes: &[u8], at: usize) -> f32;
}

struct Single;
struct Half;
struct Brain;

impl Dense for Single {
    const FORMAT: Format = F32;
    fn at(bytes: &[u8], at: usize) -> f32 {
        single_at(bytes, at)
    }
}

impl Dense for Half {
    const FORMAT: Format = F16;
    fn at(bytes: &[u8], at: usize) -> f32 {
        half_at(bytes, at)
    }
}

impl Dense for Brain {
    const FORMAT: Format = BF16;
    fn at(bytes: &[u8], at: usize) -> f32 {
        // The upper half of a single.
        f32::from_bits(u32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]])) << 16)
    }
}

fn dequantize<D: Dense>(src: &[u8], dst: &mut [f32]) {
    let bytes = D::FORMAT.block_bytes;
    assert!(src.len() == dst.len() * bytes, "as many values as there is room for");
    for (to, from) in dst.iter_mut().zip(src.chunks_exact(bytes)) {
        *to = D::at(from, 0);
    }
}

fn pack<D: Dense, const B: usize>(rows: &[&[u8]; PANEL], panel: &mut [u8]) {
    assert!(rows.iter().all(|row| row.len() * PANEL == panel.len()), "a panel holds eight rows");
    for (r, row) in rows.iter().enumerate() {
        for (to, from) in panel.as_chunks_mut::<B>().0[r..].iter_mut().step_by(PANEL).zip(row.as_chunks().0) {
            *to = *from;
        }
    }
}

fn unpack<D: Dense, const B: usize>(panel: &[u8], row: usize, dst: &mut [u8]) {
    assert!(row < PANEL && dst.len() * PANEL == panel.len(), "a panel holds eight rows");
    for (to, from) in
        dst.as_chunks_mut().0.iter_mut().zip(panel.as_chunks::<B>().0[row..].iter().step_by(PANEL))
    {
        *to = *from;
    }
}

fn scalar<D: Dense>(panels: &[u8], cols: usize, acts: &[&[u8]], next: &[u8], out: &mut [[f32; PANEL]]) {
    for (panel, _, out) in D::FORMAT.in_turn(panels, cols, acts, next, out) {
        for (act, out) in acts.iter().zip(out) {
            let mut sums = [[0f32; PANEL]; 2];
            for (k, weights) in panel.chunks_exact(PANEL * D::FORMAT.block_bytes).enumerate() {
                let x = single_at(act, 4 * k);
                for (r, sum) in sums[k % 2].iter_mut().enumerate() {
                    *sum = D::at(weights, r * D::FORMAT.block_bytes).mul_add(x, *sum);
                }
            }
            let [even, odd] = sums;
            for (out, (even, odd)) in out.iter_mut().zip(even.iter().zip(odd)) {
                *out = even + odd;
            }
        }
    }
}

/// A panel, which another follows, times a number of columns.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
type Tile = unsafe fn(*const u8, *const u8, usize, &[&[u8]], &mut [[f32; PANEL]]);

/// A product by tiles for one to six columns: of six the registers hold the sums, even and odd, of either instruction set.
///
/// # Safety
/// The processor has what the tiles ask for.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[expect(unsafe_code, reason = "calls kernels")]
unsafe fn by_six<D: Dense>(
    tiles: [Tile; 6],
    panels: &[u8],
    cols: usize,
    acts: &[&[u8]],
    next: &[u8],
    out: &mut [[f32; PANEL]],
) {
    let (first, rest) = acts.split_at(if acts.len() > tiles.len() { 4 } else { acts.len() });
    for (panel, next, out) in D::FORMAT.in_turn(panels, cols, acts, next, out) {
        let (out, tail) = out.split_at_mut(first.len());
        for (acts, out) in [(first, out), (rest, tail)] {
            if let Some(last) = acts.len().checked_sub(1) {
                // SAFETY: the caller's promise; `in_turn` asserted the lengths.
                unsafe { tiles[last](panel.as_ptr(), next, cols, acts, out) }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "SIMD loads by pointer")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::*;
    use crate::avx2::{available, halves, single};
    use crate::prefetch::{Ahead, prefetch};

    /// Eight values from `p`.
    pub(super) trait Load: Dense {
        /// # Safety
        /// The processor has AVX2 and F16C; `p` is readable for eight values.
        unsafe fn load(p: *const u8) -> __m256;
    }

    impl Load for Single {
        #[inline]
        #[target_feature(enable = "avx2,f16c")]
        unsafe fn load(p: *const u8) -> __m256 {
            // SAFETY: the caller's promise; the load may be unaligned.
            unsafe { _mm256_loadu_ps(p.cast()) }
        }
    }

    impl Load for Half {
        #[inline]
        #[target_feature(enable = "avx2,f16c")]
        unsafe fn load(p: *const u8) -> __m256 {
            // SAFETY: the caller's promise.
            unsafe { halves(p) }
        }
    }

    impl Load for Brain {
        #[inline]
        #[target_feature(enable = "avx2,f16c")]
        unsafe fn load(p: *const u8) -> __m256 {
            // SAFETY: the caller's promise; the load may be unaligned.
            let upper = _mm256_cvtepu16_epi32(unsafe { _mm_loadu_si128(p.cast()) });
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(upper))
        }
    }

    pub(super) fn product<D: Load>(
        panels: &[u8],
        cols: usize,
        acts: &[&[u8]],
        next: &[u8],
        out: &mut [[f32; PANEL]],
    ) {
        assert!(available(), "no AVX2 on this processor");
        let tiles = [tile::<D, 1>, tile::<D, 2>, tile::<D, 3>, tile::<D, 4>, tile::<D, 5>, tile::<D, 6>];
        // SAFETY: the processor has the features.
        unsafe { by_six::<D>(tiles, panels, cols, acts, next, out) }
    }

    /// # Safety
    /// The features; `p` is a panel of `cols`, each of the N `acts` has `cols` values; N results.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn tile<D: Load, const N: usize>(
        p: *const u8,
        next: *const u8,
        cols: usize,
        acts: &[&[u8]],
        out: &mut [[f32; PANEL]],
    ) {
        const UNROLL: usize = 4;
        let step = PANEL * D::FORMAT.block_bytes;
        let mut x = [std::ptr::null(); N];
        for (x, act) in x.iter_mut().zip(acts) {
            *x = act.as_ptr();
        }
        let mut sums = [[_mm256_setzero_ps(); 2]; N];
        let ahead = Ahead::new(p, next, cols / UNROLL, UNROLL * step);
        let mut k = 0;
        // SAFETY: k < cols, which bounds the panel and every column.
        unsafe {
            while k + UNROLL <= cols {
                let p = p.add(k * step);
                prefetch(ahead.of(k / UNROLL), UNROLL * step);
                for i in 0..UNROLL {
                    let w = D::load(p.add(i * step));
                    for (x, sums) in x.iter().zip(&mut sums) {
                        sums[i % 2] = _mm256_fmadd_ps(w, single(x.add(4 * (k + i))), sums[i % 2]);
                    }
                }
                k += UNROLL;
            }
            // Unrolled, with constant indices, so that the sums stay in registers; k is even here.
            for i in 0..UNROLL - 1 {
                if k + i < cols {
                    let w = D::load(p.add((k + i) * step));
                    for (x, sums) in x.iter().zip(&mut sums) {
                        sums[i % 2] = _mm256_fmadd_ps(w, single(x.add(4 * (k + i))), sums[i % 2]);
                    }
                }
            }
            for (out, [even, odd]) in out.iter_mut().zip(sums) {
                _mm256_storeu_ps(out.as_mut_ptr(), _mm256_add_ps(even, odd));
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
#[expect(unsafe_code, reason = "SIMD loads by pointer")]
mod neon {
    use std::arch::aarch64::*;

    use super::*;
    use crate::neon::{available, halves, load, single};
    use crate::prefetch::{Ahead, prefetch};

    /// Four values from `p`.
    pub(super) trait Load: Dense {
        /// # Safety
        /// `p` is readable for four values.
        unsafe fn load(p: *const u8) -> float32x4_t;
    }

    impl Load for Single {
        #[inline]
        #[target_feature(enable = "neon")]
        unsafe fn load(p: *const u8) -> float32x4_t {
            // SAFETY: the caller's promise.
            vreinterpretq_f32_u8(unsafe { load(p) })
        }
    }

    impl Load for Half {
        #[inline]
        #[target_feature(enable = "neon")]
        unsafe fn load(p: *const u8) -> float32x4_t {
            // SAFETY: the caller's promise.
            unsafe { halves(p) }
        }
    }

    impl Load for Brain {
        #[inline]
        #[target_feature(enable = "neon")]
        unsafe fn load(p: *const u8) -> float32x4_t {
            // SAFETY: the caller's promise; loads of bytes may be unaligned.
            let upper = vreinterpret_u16_u8(unsafe { vld1_u8(p) });
            vreinterpretq_f32_u32(vshll_n_u16::<16>(upper))
        }
    }

    pub(super) fn product<D: Load>(
        panels: &[u8],
        cols: usize,
        acts: &[&[u8]],
        next: &[u8],
        out: &mut [[f32; PANEL]],
    ) {
        assert!(available(), "no dot products of bytes on this processor");
        let tiles = [tile::<D, 1>, tile::<D, 2>, tile::<D, 3>, tile::<D, 4>, tile::<D, 5>, tile::<D, 6>];
        // SAFETY: the processor has the features.
        unsafe { by_six::<D>(tiles, panels, cols, acts, next, out) }
    }

    /// # Safety
    /// `p` is a panel of `cols`, each of the N `acts` has `cols` values; N results.
    #[inline(never)]
    #[target_feature(enable = "neon")]
    unsafe fn tile<D: Load, const N: usize>(
        p: *const u8,
        next: *const u8,
        cols: usize,
        acts: &[&[u8]],
        out: &mut [[f32; PANEL]],
    ) {
        let step = PANEL * D::FORMAT.block_bytes;
        let mut sums = [[[vdupq_n_f32(0.0); 2]; 2]; N];
        // SAFETY: k < cols, which bounds the panel and every column.
        let mut add = |k: usize, parity: usize| unsafe {
            let p = p.add(k * step);
            let (first, second) = (D::load(p), D::load(p.add(step / 2)));
            for (act, sums) in acts.iter().zip(&mut sums) {
                let x = single(act.as_ptr().add(4 * k));
                let [a, b] = &mut sums[parity];
                *a = vfmaq_n_f32(*a, first, x);
                *b = vfmaq_n_f32(*b, second, x);
            }
        };
        let ahead = Ahead::new(p, next, cols / 2, 2 * step);
        for k in (1..cols).step_by(2) {
            prefetch(ahead.of(k / 2), 2 * step);
            add(k - 1, 0);
            add(k, 1);
        }
        if !cols.is_multiple_of(2) {
            add(cols - 1, 0);
        }
        for (out, [even, odd]) in out.iter_mut().zip(sums) {
            for (half, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                // SAFETY: four values.
                unsafe { vst1q_f32(out.as_mut_ptr(), vaddq_f32(even[half], odd[half])) };
            }
        }
    }
}
