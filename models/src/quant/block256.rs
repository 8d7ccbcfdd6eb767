//! What formats with blocks of 256 share: sub-blocks of 16 or 32 with a small integer scale each.
//!
//! A file block has an f16 d, `SUBS` scales and 256 codes, which stand for small integers w, and may have an f16 dmin
//! and as many mins; its value is `d * scale * w`, `- dmin * min` if there are mins. How blocks of the file and of a
//! panel hold these [`Fields`] is the format's business.
//!
//! Product: `isum = sum of scale * w * a` and `msum = sum of min * a`, exact integers, then
//! `acc = fma(isum * d, d_act, acc)`, or with mins `acc = fma(fma(-msum, dmin, isum * d), d_act, acc)`.

use super::act::{Q8X256_BYTES, Q8X256_D};
use super::block32::dot4;
use super::{Format, PANEL, blocks, half_at, single_at};

/// What one row has in a block.
#[derive(Clone, Copy)]
pub(super) struct Fields {
    /// In order of k, four to a word.
    pub(super) codes: [u32; 64],
    /// As in the file; those beyond `SUBS` are 0.
    pub(super) scales: [u8; 16],
    /// Likewise.
    pub(super) mins: [u8; 16],
    /// The f16's bytes.
    pub(super) d: [u8; 2],
    /// Likewise.
    pub(super) dmin: [u8; 2],
}

/// A format with blocks of 256.
pub(super) trait Block256 {
    /// Its row of the table.
    const FORMAT: Format;
    /// Sub-blocks: 16 or 8.
    const SUBS: usize;
    /// Whether there are dmin and mins.
    const MINS: bool;
    /// What a scale stands for.
    fn scale(scale: u8) -> i8;
    /// What a code stands for.
    fn value(code: u8) -> i8;
    /// Reads a file block.
    fn fields(block: &[u8]) -> Fields;
    /// The inverse of [`Block256::fields`]: writes every byte.
    fn put_fields(fields: &Fields, block: &mut [u8]);
    /// Reads one row of a panel block.
    fn panel_fields(panel: &[u8], row: usize) -> Fields;
    /// The inverse of [`Block256::panel_fields`]: writes every byte of the row.
    fn put_panel_fields(fields: &Fields, row: usize, panel: &mut [u8]);
}

/// Where four vectors of one byte per sub-block of 16 have row `row`'s of sub-block `sub`: half `r / 4` of a vector has
/// row r's byte of sub-block j of four at `4j + r % 4`.
pub(super) const fn place(row: usize, sub: usize) -> usize {
    32 * (sub / 4) + 16 * (row / 4) + 4 * (sub % 4) + row % 4
}

/// A row's sixteen 6-bit values in three vectors: 0-3, 4-7 and 8-11 are the low six bits of bytes placed as in [`place`],
/// 12-15 are spread over the upper two, lowest bits first.
pub(super) fn panel_sixes(panel: &[u8], row: usize) -> [u8; 16] {
    std::array::from_fn(|i| match i {
        0..12 => panel[place(row, i)] & 63,
        _ => (0..3).fold(0, |six, v| six | panel[place(row, 4 * v + i - 12)] >> 6 << (2 * v)),
    })
}

/// The inverse of [`panel_sixes`].
pub(super) fn put_panel_sixes(sixes: [u8; 16], row: usize, panel: &mut [u8]) {
    for i in 0..12 {
        panel[place(row, i)] = sixes[i] | (sixes[12 + i % 4] >> (2 * (i / 4)) & 3) << 6;
    }
}

pub(super) fn dequantize<B: Block256>(src: &[u8], dst: &mut [f32]) {
    for (block, values) in blocks::<256>(src, B::FORMAT.block_bytes, dst) {
        let fields = B::fields(block);
        let (d, dmin) = (half_at(&fields.d, 0), half_at(&fields.dmin, 0));
        for (i, (values, word)) in values.as_chunks_mut::<4>().0.iter_mut().zip(fields.codes).enumerate() {
            let sub = i * B::SUBS / 64;
            let scale = d * f32::from(B::scale(fields.scales[sub]));
            *values = word.to_le_bytes().map(|code| scale * f32::from(B::value(code)));
            if B::MINS {
                let min = dmin * f32::from(fields.mins[sub]);
                values.iter_mut().for_each(|v| *v -= min);
            }
        }
    }
}

pub(super) fn pack<B: Block256>(rows: &[&[u8]; PANEL], panel: &mut [u8]) {
    assert!(rows.iter().all(|row| row.len() * PANEL == panel.len()), "a panel holds eight rows");
    let bytes = B::FORMAT.block_bytes;
    for (b, panel) in panel.chunks_exact_mut(PANEL * bytes).enumerate() {
        for (r, row) in rows.iter().enumerate() {
            B::put_panel_fields(&B::fields(&row[b * bytes..(b + 1) * bytes]), r, panel);
        }
    }
}

pub(super) fn unpack<B: Block256>(panel: &[u8], row: usize, dst: &mut [u8]) {
    assert!(row < PANEL && dst.len() * PANEL == panel.len(), "a panel holds eight rows");
    let bytes = B::FORMAT.block_bytes;
    for (panel, block) in panel.chunks_exact(PANEL * bytes).zip(dst.chunks_exact_mut(bytes)) {
        B::put_fields(&B::panel_fields(panel, row), block);
    }
}

pub(super) fn scalar<B: Block256>(
    panels: &[u8],
    cols: usize,
    acts: &[&[u8]],
    next: &[u8],
    out: &mut [[f32; PANEL]],
) {
    for (panel, _, out) in B::FORMAT.in_turn(panels, cols, acts, next, out) {
        out.fill([0.0; PANEL]);
        for (b, block) in panel.chunks_exact(PANEL * B::FORMAT.block_bytes).enumerate() {
            for r in 0..PANEL {
                let fields = B::panel_fields(block, r);
                let weights = fields.codes.map(|w| w.to_le_bytes().map(|code| i32::from(B::value(code))));
                let (d, dmin) = (half_at(&fields.d, 0), half_at(&fields.dmin, 0));
                for (act, out) in acts.iter().zip(&mut *out) {
                    let act = &act[b * Q8X256_BYTES..(b + 1) * Q8X256_BYTES];
                    let (mut isum, mut msum) = (0, 0);
                    for (i, (w, q)) in weights.iter().zip(act.as_chunks().0).enumerate() {
                        let sub = i * B::SUBS / 64;
                        isum += i32::from(B::scale(fields.scales[sub])) * dot4(w, q);
                        msum += i32::from(fields.mins[sub]) * dot4(&[1; 4], q);
                    }
                    let mut value = isum as f32 * d;
                    if B::MINS {
                        value = (-(msum as f32)).mul_add(dmin, value);
                    }
                    out[r] = value.mul_add(single_at(act, Q8X256_D), out[r]);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::{Kernel, Rest, Sums, block_value_with_mins, pair, product, sixes, twice, twice_signed};

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "SIMD loads by pointer")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::*;
    use crate::act::{Q8X256_PAIRS, Q8X256_SUMS};
    use crate::avx2::{add_products, available, dword, load, single};
    use crate::by_columns;
    use crate::prefetch::{Ahead, prefetch};

    /// How many words of codes a 16-bit sum takes before it meets its scale.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Sums {
        /// Eight, of unsigned codes.
        Run,
        /// Four, of unsigned codes.
        Half,
        /// Four, of unsigned codes that stand for `code - 32`: the sum starts at the pair sums of 16.
        Biased,
        /// One, of signed codes.
        Word,
    }

    /// What [`Kernel::block_value`] needs of one panel's block.
    #[derive(Clone, Copy)]
    pub(crate) struct Rest {
        /// d of eight rows.
        pub(crate) d: __m256,
        /// dmin of eight rows.
        pub(crate) dmin: __m256,
        /// Mins as pairs of 16-bit values, as the format uses them.
        pub(crate) mins: [__m256i; 16],
    }

    impl Rest {
        /// Nothing yet.
        #[inline]
        #[target_feature(enable = "avx2")]
        pub(crate) fn new() -> Self {
            let zero = _mm256_setzero_ps();
            Self { d: zero, dmin: zero, mins: [_mm256_setzero_si256(); 16] }
        }
    }

    /// A format whose panel block is a header and eight runs of 32 codes. Pointers `p` are to the block, `run` to the run.
    pub(crate) trait Kernel: Block256 {
        /// How its sums are taken.
        const SUMS: Sums;
        /// Bytes before the first run.
        const HEADER: usize;
        /// Bytes of a run.
        const RUN: usize = (PANEL * Self::FORMAT.block_bytes - Self::HEADER) / 8;
        /// What scales come from.
        type Header: Copy;
        /// # Safety
        /// The processor has AVX2; `p` is readable for the block.
        unsafe fn header(p: *const u8) -> Self::Header;
        /// Each row's scale of sub-block `sub` of sixteen, twice, as 16-bit values.
        ///
        /// # Safety
        /// The processor has AVX2; the header's block is readable.
        unsafe fn scales(header: &Self::Header, sub: usize) -> __m256i;
        /// Four vectors of codes, one for each word of half `half` of a run.
        ///
        /// # Safety
        /// The processor has AVX2; `run` is readable.
        unsafe fn codes(run: *const u8, half: usize) -> [__m256i; 4];
        /// Factors of the float step.
        ///
        /// # Safety
        /// The processor has AVX2 and F16C; `p` is readable for the block, of which `header` is.
        unsafe fn rest(p: *const u8, header: &Self::Header, to: &mut Rest);
        /// The block's value before the activations' d.
        ///
        /// # Safety
        /// The processor has AVX2 and FMA; `act` is an activation block.
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn block_value(isum: __m256i, rest: &Rest, _act: *const u8) -> __m256 {
            _mm256_mul_ps(_mm256_cvtepi32_ps(isum), rest.d)
        }
    }

    pub(crate) fn product<K: Kernel>(
        panels: &[u8],
        cols: usize,
        acts: &[&[u8]],
        next: &[u8],
        out: &mut [[f32; PANEL]],
    ) {
        const { assert!(K::HEADER + 8 * K::RUN == PANEL * K::FORMAT.block_bytes) };
        let count = cols / K::FORMAT.block;
        assert!(available(), "no AVX2 on this processor");
        if const { matches!(K::SUMS, Sums::Run) }
            && let [act] = acts
        {
            let (twos, rest) = K::FORMAT.in_twos(panels, cols, acts, next, out);
            for (panels, next, out) in twos {
                // SAFETY: the processor has the features; `in_twos` asserted the lengths.
                unsafe { column::<K, 2>(panels.map(<[u8]>::as_ptr), next, count, act.as_ptr(), out) };
            }
            for (panel, next, out) in rest {
                // SAFETY: as above.
                unsafe { tile::<K, 1>(panel.as_ptr(), next, count, acts, out) };
            }
            return;
        }
        for (panel, next, out) in K::FORMAT.in_turn(panels, cols, acts, next, out) {
            // SAFETY: the processor has the features; `in_turn` asserted the lengths.
            unsafe { by_columns!(acts, tile[K](panel.as_ptr(), next, count, acts, out)) }
        }
    }

    /// [`tile`] of one column and P panels, a run of the one after a run of the next. (In loops, which the compiler leaves as they are:
    /// written out for two panels it takes a third longer.)
    ///
    /// # Safety
    /// As there, for each of the panels.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn column<K: Kernel, const P: usize>(
        panels: [*const u8; P],
        next: [*const u8; P],
        count: usize,
        act: *const u8,
        out: [&mut [[f32; PANEL]]; P],
    ) {
        let (mut sums, mut rest) = ([_mm256_setzero_ps(); P], Rest::new());
        let bytes = PANEL * K::FORMAT.block_bytes;
        let mut aheads = [Ahead::new(panels[0], next[0], count, bytes); P];
        for t in 1..P {
            aheads[t] = Ahead::new(panels[t], next[t], count, bytes);
        }
        for b in 0..count {
            // SAFETY: b < count, which bounds the panels and the column.
            unsafe {
                let mut p = panels;
                for t in 0..P {
                    p[t] = panels[t].add(b * bytes);
                }
                let act = act.add(b * Q8X256_BYTES);
                let mut headers = [K::header(p[0]); P];
                for t in 1..P {
                    headers[t] = K::header(p[t]);
                }
                let mut isums = [_mm256_setzero_si256(); P];
                for ahead in aheads {
                    prefetch(ahead.of(b), K::HEADER);
                }
                for j in 0..8 {
                    for t in 0..P {
                        let run = K::HEADER + K::RUN * j;
                        prefetch(aheads[t].of(b).wrapping_add(run), K::RUN);
                        add_run::<K, 1>(
                            p[t].add(run),
                            &headers[t],
                            j,
                            &[act],
                            std::array::from_mut(&mut isums[t]),
                        );
                    }
                }
                for t in 0..P {
                    K::rest(p[t], &headers[t], &mut rest);
                    let value = K::block_value(isums[t], &rest, act);
                    sums[t] = _mm256_fmadd_ps(value, single(act.add(Q8X256_D)), sums[t]);
                }
            }
        }
        for (out, sum) in out.into_iter().zip(sums) {
            // SAFETY: eight values; the store may be unaligned.
            unsafe { _mm256_storeu_ps(out[0].as_mut_ptr(), sum) };
        }
    }

    /// # Safety
    /// The features; `p` is a panel of `count` blocks, so is each of the N `acts`; N results.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn tile<K: Kernel, const N: usize>(
        p: *const u8,
        next: *const u8,
        count: usize,
        acts: &[&[u8]],
        out: &mut [[f32; PANEL]],
    ) {
        let mut x = [std::ptr::null(); N];
        for (x, act) in x.iter_mut().zip(acts) {
            *x = act.as_ptr();
        }
        let mut sums = [_mm256_setzero_ps(); N];
        let mut rest = Rest::new();
        let bytes = PANEL * K::FORMAT.block_bytes;
        let ahead = Ahead::new(p, next, count, bytes);
        for b in 0..count {
            // SAFETY: b < count, which bounds the panel and every column.
            unsafe {
                let (p, ahead) = (p.add(b * bytes), ahead.of(b));
                prefetch(ahead, K::HEADER);
                let header = K::header(p);
                let mut isums = [_mm256_setzero_si256(); N];
                for j in 0..8 {
                    let run = p.add(K::HEADER + K::RUN * j);
                    prefetch(ahead.wrapping_add(K::HEADER + K::RUN * j), K::RUN);
                    add_run::<K, N>(
                        run,
                        &header,
                        j,
                        &x.map(|x: *const u8| x.add(b * Q8X256_BYTES)),
                        &mut isums,
                    );
                }
                K::rest(p, &header, &mut rest);
                for ((x, isum), total) in x.iter().zip(isums).zip(&mut sums) {
                    let act = x.add(b * Q8X256_BYTES);
                    let value = K::block_value(isum, &rest, act);
                    *total = _mm256_fmadd_ps(value, single(act.add(Q8X256_D)), *total);
                }
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            // SAFETY: eight values; the store may be unaligned.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sum) };
        }
    }

    /// Adds run `j` of a block times its scales.
    ///
    /// # Safety
    /// AVX2; `run` is readable, each of `acts` an activation block.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add_run<K: Kernel, const N: usize>(
        run: *const u8,
        header: &K::Header,
        j: usize,
        acts: &[*const u8; N],
        isums: &mut [__m256i; N],
    ) {
        // SAFETY: the caller's promise; all offsets lie within the activation block.
        unsafe {
            if K::SUMS == Sums::Run {
                let codes = [K::codes(run, 0), K::codes(run, 1)];
                let sums = add_products(codes.as_flattened(), 32 * j, acts, [_mm256_setzero_si256(); N]);
                add_scaled(K::scales(header, 2 * j), sums, isums);
                return;
            }
            for half in 0..2 {
                let sub = 2 * j + half;
                let (codes, scale) = (K::codes(run, half), K::scales(header, sub));
                if K::SUMS == Sums::Word {
                    for (i, &w) in codes.iter().enumerate() {
                        let size = _mm256_abs_epi8(w);
                        for (act, isum) in acts.iter().zip(&mut *isums) {
                            let q = _mm256_sign_epi8(dword(act.add(16 * sub + 4 * i)), w);
                            let pairs = _mm256_maddubs_epi16(size, q);
                            *isum = _mm256_add_epi32(*isum, _mm256_madd_epi16(pairs, scale));
                        }
                    }
                    continue;
                }
                let mut sums = [_mm256_setzero_si256(); N];
                if K::SUMS == Sums::Biased {
                    for (act, sum) in acts.iter().zip(&mut sums) {
                        *sum = dword(act.add(Q8X256_PAIRS + 4 * sub));
                    }
                }
                add_scaled(scale, add_products(&codes, 16 * sub, acts, sums), isums);
            }
        }
    }

    /// Adds 16-bit sums times their rows' scales.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn add_scaled<const N: usize>(scale: __m256i, sums: [__m256i; N], isums: &mut [__m256i; N]) {
        for (isum, sum) in isums.iter_mut().zip(sums) {
            *isum = _mm256_add_epi32(*isum, _mm256_madd_epi16(sum, scale));
        }
    }

    /// [`panel_sixes`] of eight rows, a byte each: values 0-3, 4-7, 8-11 and 12-15.
    ///
    /// # Safety
    /// The three vectors at `p` are readable.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(crate) unsafe fn sixes(p: *const u8) -> [__m256i; 4] {
        // SAFETY: the caller's promise.
        let (a, b, c) = unsafe { (load(p), load(p.add(32)), load(p.add(64))) };
        let six = _mm256_set1_epi8(63);
        // Shifts of 16-bit lanes; what crosses bytes is masked away.
        let low = _mm256_and_si256(_mm256_srli_epi16::<6>(a), _mm256_set1_epi8(0x03));
        let middle = _mm256_and_si256(_mm256_srli_epi16::<4>(b), _mm256_set1_epi8(0x0c));
        let high = _mm256_and_si256(_mm256_srli_epi16::<2>(c), _mm256_set1_epi8(0x30));
        [
            _mm256_and_si256(a, six),
            _mm256_and_si256(b, six),
            _mm256_and_si256(c, six),
            _mm256_or_si256(_mm256_or_si256(low, middle), high),
        ]
    }

    /// Of bytes placed as in [`place`], each row's of sub-blocks `first` and `second` of four, as a pair of 16-bit values.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(crate) fn pair(bytes: __m256i, first: usize, second: usize) -> __m256i {
        let rows = _mm256_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3);
        // The upper byte of each value has its sign bit set in the pattern, which gives zero.
        let pattern = 0x8000_8000_u32.cast_signed() | (4 * first as i32) | (4 * second as i32) << 16;
        let row_in_both = _mm256_or_si256(rows, _mm256_slli_epi32::<16>(rows));
        _mm256_shuffle_epi8(bytes, _mm256_or_si256(_mm256_set1_epi32(pattern), row_in_both))
    }

    /// [`pair`] of one sub-block.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(crate) fn twice(bytes: __m256i, j: usize) -> __m256i {
        pair(bytes, j, j)
    }

    /// [`twice`] of signed bytes.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(crate) fn twice_signed(bytes: __m256i, j: usize) -> __m256i {
        let rows = _mm256_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3);
        // Bytes go to the upper halves; a sign bit in the pattern gives zero below them.
        let pattern = _mm256_set1_epi32(0x0080_0080 | (4 * j as i32) << 8 | (4 * j as i32) << 24);
        let both = _mm256_or_si256(_mm256_slli_epi32::<8>(rows), _mm256_slli_epi32::<24>(rows));
        _mm256_srai_epi16::<8>(_mm256_shuffle_epi8(bytes, _mm256_or_si256(pattern, both)))
    }

    /// [`Kernel::block_value`] with mins of sub-blocks of 32, in pairs. Sums of 32 are at most 4064; times a min of 63, eight of
    /// them: 2.1 million.
    ///
    /// # Safety
    /// `act` is an activation block.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(crate) unsafe fn block_value_with_mins(isum: __m256i, rest: &Rest, act: *const u8) -> __m256 {
        let mut msum = _mm256_setzero_si256();
        for (i, &min) in rest.mins[..4].iter().enumerate() {
            // SAFETY: the sums lie within the activation block.
            let sums = unsafe { dword(act.add(Q8X256_SUMS + 4 * i)) };
            msum = _mm256_add_epi32(msum, _mm256_madd_epi16(sums, min));
        }
        let value = _mm256_mul_ps(_mm256_cvtepi32_ps(isum), rest.d);
        _mm256_fnmadd_ps(_mm256_cvtepi32_ps(msum), rest.dmin, value)
    }
}
