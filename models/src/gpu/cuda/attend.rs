//! Attention on CUDA: mistral.rs's kernels for heads that they know, ours for the others.
//!
//! | rows | heads | kernel |
//! |---|---|---|
//! | spans of one token | of 64 to 512 values, no window | `paged_attention_v2`, one row each |
//! | longer spans | of 64 or 128 values, pages of halves | `flash_*` of own.cu: tensor cores, straight from the pages |
//! | long spans | of other sizes up to 256, or pages of F32 | `flash_attn_sinks_varlen` over fresh keys, or over keys copied out of the pages |
//! | all | latent, windowed with single tokens, of other sizes | `attend` of own.cu |

use std::ffi::{c_int, c_void};

use candle_core::{DType, Result, Tensor, bail};
use half::f16;

use super::CudaKernels;
use super::foreign::{self, PagedAttentionV2};
use super::launch::{Address, Arg, GRID_MAX, address, address_or_null, unwritten};
use crate::backend::AttendSpec;
use crate::gpu::BLOCK_TOKENS;
use crate::gpu::index::SpanPlace;
use crate::gpu::kernels::{Attention, Forms};

/// Keys in a part of `paged_attention_v2`'s work (mistralrs-paged-attn 0.8.1, pagedattention.cuh).
const PARTITION: usize = 512;
/// Head sizes it is compiled for.
const PAGED_DIMS: [u32; 8] = [64, 80, 96, 112, 128, 192, 256, 512];
/// Head sizes of its flash attention.
const FLASH_DIMS: [u32; 7] = [64, 80, 96, 112, 128, 192, 256];
/// Shorter spans are as well off with a row per token.
const FLASH_TOKENS: usize = 16;
/// Rows per block of threads and keys per tile of `flash_*` (own.cu).
const TENSOR_ROWS: usize = 64;
const TENSOR_KEYS: usize = 64;
/// Blocks of threads that occupy a large GPU.
const BUSY: usize = 264;
/// Most values of scratch in one call of `paged_attention_v2`, which counts them in 32 bits: 128 MiB of halves, or 256
/// of floats.
const SCRATCH_VALUES: usize = 1 << 26;
/// Query heads and values per thread of our kernel (own.cu).
const OWN_HEADS: usize = 8;
const OWN_TILE: usize = 16;
const OWN_VALUES: usize = 512;

/// A kernel for some spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Paged,
    Tensor,
    Flash,
    Own,
}

fn way(call: &Attention<'_>, span: &SpanPlace) -> Way {
    let spec = call.spec;
    let plain = call.v.is_some() && spec.key_dim == spec.value_dim;
    let halves = call.pages.keys.dtype() == DType::F16 && call.block_tokens.is_multiple_of(8);
    if plain && span.len > 1 && halves && [64, 128].contains(&spec.key_dim) {
        return Way::Tensor;
    }
    if plain && span.len >= FLASH_TOKENS && FLASH_DIMS.contains(&spec.key_dim) {
        return Way::Flash;
    }
    match plain && span.len == 1 && spec.window.is_none() && PAGED_DIMS.contains(&spec.key_dim) {
        true => Way::Paged,
        false => Way::Own,
    }
}

/// How many of the rows, one at least, fit one call: each has as many partitions as the longest.
fn paged_rows(spec: &AttendSpec, spans: &[SpanPlace]) -> usize {
    let (mut rows, mut longest) = (0_usize, 0);
    for span in spans {
        longest = span.context().max(longest);
        let per_row = longest.div_ceil(PARTITION) * spec.heads as usize * spec.key_dim as usize;
        if rows > 0 && (rows + 1).saturating_mul(per_row) > SCRATCH_VALUES || rows == GRID_MAX {
            break;
        }
        rows += 1;
    }
    rows
}

impl CudaKernels {
    /// `[tokens, heads * value_dim]`.
    pub(super) fn attend_all(&self, call: &Attention<'_>) -> Result<(Tensor, Forms)> {
        let mut parts = Vec::new();
        let spans = &call.step.spans;
        let mut first = 0;
        while first < spans.len() {
            let this = way(call, &spans[first]);
            let alike = spans[first..].iter().take_while(|s| way(call, s) == this).count();
            let count = match this {
                // One span at a time: then queries need no padding.
                Way::Flash | Way::Tensor => 1,
                Way::Paged => paged_rows(call.spec, &spans[first..first + alike]),
                Way::Own => alike,
            };
            parts.push(match this {
                Way::Paged => self.paged(call, first, count)?,
                Way::Tensor => self.tensor(call, first)?,
                Way::Flash => self.flash(call, first)?,
                Way::Own => self.own_attention(call, first, count)?,
            });
            first += count;
        }
        let all = match parts.len() {
            1 => parts.swap_remove(0),
            _ => {
                let wide: Vec<Tensor> =
                    parts.iter().map(|p| p.to_dtype(DType::F32)).collect::<Result<_>>()?;
                Tensor::cat(&wide, 0)?
            }
        };
        match all.dtype() {
            DType::F32 => Ok((all, Forms::default())),
            _ => self.widened(&all),
        }
    }

    /// Spans of one token each.
    fn paged(&self, call: &Attention<'_>, first: usize, count: usize) -> Result<Tensor> {
        let (spec, spans) = (call.spec, &call.step.spans[first..first + count]);
        let (heads, dim) = (spec.heads as usize, spec.key_dim as usize);
        let pages = &call.pages.keys;
        let (blocks, kv_heads, parts, block, x) = pages.dims5()?;
        if !BLOCK_TOKENS.contains(&(block as u32)) {
            bail!("paged attention has no kernel for blocks of {block} tokens");
        }
        if parts * x != dim || kv_heads != spec.kv_heads as usize || !heads.is_multiple_of(kv_heads) {
            bail!("pages {:?} for heads {heads} of {dim}", pages.dims());
        }
        if count == 0 || count > GRID_MAX {
            bail!("paged attention over {count} rows");
        }
        self.lost()?;
        let Some(values) = &call.pages.values else { bail!("paged attention without values") };
        let longest = spans.iter().map(SpanPlace::context).max().unwrap_or(0);
        let dtype = pages.dtype();
        let q = call.q.narrow(0, spans[0].begin, count)?.to_dtype(dtype)?.contiguous()?;
        let tables = call.group.tables.narrow(0, first, count)?;
        let lens = call.group.held.narrow(0, first, count)?;
        let partitions = longest.div_ceil(PARTITION);
        let per = (count, heads, partitions);
        let (sums, maxima) = (unwritten::<f32>(&self.device, per)?, unwritten::<f32>(&self.device, per)?);
        let (out, scratch, kernel, code) = match dtype {
            DType::F16 => (
                unwritten::<f16>(&self.device, (count, heads, dim))?,
                unwritten::<f16>(&self.device, (count, heads, partitions, dim))?,
                foreign::paged_attention_v2_f16 as PagedAttentionV2,
                0,
            ),
            DType::F32 => (
                unwritten::<f32>(&self.device, (count, heads, dim))?,
                unwritten::<f32>(&self.device, (count, heads, partitions, dim))?,
                foreign::paged_attention_v2_f32 as PagedAttentionV2,
                2,
            ),
            other => bail!("paged attention over {other:?}"),
        };
        let at = |t: &Tensor| address(t).map(|a| a.0 as *const c_void);
        // A null pointer is none.
        let sinks = address_or_null(call.sinks)?.0 as *const f32;
        let null = std::ptr::null::<f32>();
        // SAFETY: all tensors are contiguous, on the device and of the checked shapes; `StepIndex` checked that tables cover lengths
        // and name blocks of the pool; `count` is a grid's size; head and block size have kernels.
        #[expect(unsafe_code, reason = "a kernel's launch")]
        unsafe {
            kernel(
                at(&out)?,
                at(&sums)?.cast(),
                at(&maxima)?.cast(),
                at(&scratch)?,
                at(&q)?,
                at(pages)?,
                at(values)?,
                std::ptr::null(),
                kv_heads as c_int,
                spec.scale,
                1.0,
                at(&tables)?.cast(),
                at(&lens)?.cast(),
                block as c_int,
                longest as c_int,
                count as c_int,
                heads as c_int,
                dim as c_int,
                tables.dim(1)? as c_int,
                (heads * dim) as c_int,
                (values.elem_count() / blocks) as c_int,
                (dim * block) as c_int,
                self.stream(),
                code,
                null,
                null,
                sinks,
            );
        }
        out.reshape((count, heads * dim))
    }

    /// One span, by our kernel on tensor cores.
    fn tensor(&self, call: &Attention<'_>, index: usize) -> Result<Tensor> {
        let (spec, span) = (call.spec, &call.step.spans[index]);
        let (heads, kv_heads, dim) = (spec.heads as usize, spec.kv_heads as usize, spec.key_dim as usize);
        let Some(values) = &call.pages.values else { bail!("no pages of values") };
        let (_, page_heads, parts, block, x) = call.pages.keys.dims5()?;
        if page_heads != kv_heads || parts * x != dim || x != 8 || !heads.is_multiple_of(kv_heads) {
            bail!("pages {:?} for {heads} heads of {dim}", call.pages.keys.dims());
        }
        let q = call.q.narrow(0, span.begin, span.len)?;
        let table = call.group.tables.narrow(0, index, 1)?;
        let out = unwritten::<f32>(&self.device, (span.len, heads * dim))?;
        let args = [
            Arg::At(address(&q)?),
            Arg::At(address(&call.pages.keys)?),
            Arg::At(address(values)?),
            Arg::At(address(&table)?),
            Arg::At(address_or_null(call.sinks)?),
            Arg::At(address(&out)?),
            Arg::Int(span.len as i32),
            Arg::Int(span.start as i32),
            Arg::Int((call.group.gone[index] / block) as i32),
            Arg::Int(heads as i32),
            Arg::Int(kv_heads as i32),
            Arg::Int(block as i32),
            Arg::Float(spec.scale),
            Arg::Int(spec.window.map_or(0, |w| w as i32)),
        ];
        let name = if dim == 64 { "flash_64" } else { "flash_128" };
        let rows = span.len * (heads / kv_heads);
        // Two stages of keys and values.
        let shared = 2 * 2 * TENSOR_KEYS * dim * 2;
        self.own.launch(name, (rows.div_ceil(TENSOR_ROWS), kv_heads, 1), (128, 1), shared, &args)?;
        Ok(out)
    }

    /// One span of many tokens, by mistral.rs's.
    fn flash(&self, call: &Attention<'_>, index: usize) -> Result<Tensor> {
        let (spec, span) = (call.spec, &call.step.spans[index]);
        let (heads, dim) = (spec.heads as usize, spec.key_dim as usize);
        let dtype = call.pages.keys.dtype();
        let Some(v) = call.v else { bail!("flash attention without values") };
        self.lost()?;
        let own = |t: &Tensor| t.narrow(0, span.begin, span.len)?.to_dtype(dtype)?.contiguous();
        let (keys, values) = match span.start {
            0 => (own(call.k)?, own(v)?),
            _ => self.copied_out(call, index)?,
        };
        let held = keys.dim(0)?;
        if held < span.len {
            bail!("{held} keys for a span of {}", span.len);
        }
        let q = call.q.narrow(0, span.begin, span.len)?.to_dtype(dtype)?.transpose(0, 1)?.contiguous()?;
        let lengths = match held == span.context() {
            true => call.step.lengths.get(index)?,
            false => Tensor::new(&[0, span.len as u32, 0, held as u32], call.q.device())?,
        };
        let out = mistralrs_paged_attn::flash_attn_sinks_varlen(
            &q.unsqueeze(0)?,
            &keys,
            &values,
            call.sinks,
            &lengths.narrow(0, 0, 2)?,
            &lengths.narrow(0, 2, 2)?,
            spec.scale,
            spec.window.map_or(0, |w| w as usize),
        )?;
        out.squeeze(0)?.transpose(0, 1)?.contiguous()?.reshape((span.len, heads * dim))
    }

    /// Keys and values that a span's table holds: `[held, kv_heads, dim]` each.
    fn copied_out(&self, call: &Attention<'_>, index: usize) -> Result<(Tensor, Tensor)> {
        let pages = &call.pages.keys;
        let (_, kv_heads, parts, block, x) = pages.dims5()?;
        let Some(values) = &call.pages.values else { bail!("no pages of values") };
        let dim = parts * x;
        // What is before the table has gone.
        let gone = call.group.gone[index];
        let held = call.step.spans[index].context() - gone;
        let table = call.group.tables.narrow(0, index, 1)?;
        let lengths = Tensor::new(&[0, held as u32], call.q.device())?;
        let shape = (held, kv_heads, dim);
        let (k_out, v_out, code) = match pages.dtype() {
            DType::F16 => (unwritten::<f16>(&self.device, shape)?, unwritten::<f16>(&self.device, shape)?, 0),
            DType::F32 => (unwritten::<f32>(&self.device, shape)?, unwritten::<f32>(&self.device, shape)?, 2),
            other => bail!("pages of {other:?}"),
        };
        let at = |t: &Tensor| address(t).map(|a| a.0 as *const c_void);
        // SAFETY: as in `paged`; `held` is at least the span's length, so not 0, and the table's blocks cover it.
        #[expect(unsafe_code, reason = "a kernel's launch")]
        unsafe {
            foreign::gather_kv_cache(
                at(pages)?,
                at(values)?,
                at(&k_out)?,
                at(&v_out)?,
                std::ptr::null(),
                std::ptr::null(),
                at(&table)?.cast(),
                at(&lengths)?.cast(),
                held as c_int,
                1,
                block as c_int,
                table.dim(1)? as c_int,
                kv_heads as c_int,
                dim as c_int,
                x as c_int,
                self.stream(),
                code,
                code,
            );
        }
        Ok((k_out, v_out))
    }

    /// Any spans, by our own kernel.
    fn own_attention(&self, call: &Attention<'_>, first: usize, count: usize) -> Result<Tensor> {
        let (spec, spans) = (call.spec, &call.step.spans[first..first + count]);
        let (heads, kv_heads) = (spec.heads as usize, spec.kv_heads as usize);
        let (key_dim, value_dim) = (spec.key_dim as usize, spec.value_dim as usize);
        let begin = spans[0].begin;
        let tokens: usize = spans.iter().map(|s| s.len).sum();
        if value_dim > OWN_VALUES || !heads.is_multiple_of(kv_heads) {
            bail!("attention of {heads} heads of {value_dim} values: at most {OWN_VALUES}");
        }
        let seen = |s: &SpanPlace| s.context() - spec.first_seen(s.start as u32) as usize;
        let longest = spans.iter().map(seen).max().unwrap_or(0);
        let tile_groups = (heads / kv_heads).div_ceil(OWN_HEADS);
        let rows = tokens * kv_heads * tile_groups;
        // As many parts of the context as occupy the GPU, but none of less than four tiles.
        let parts = BUSY.div_ceil(rows).min(longest.div_ceil(4 * OWN_TILE)).max(1);
        let q = call.q.narrow(0, begin, tokens)?;
        let positions = call.step.positions.narrow(0, begin, tokens)?;
        let span_of = call.step.span_of.narrow(0, begin, tokens)?;
        let out = unwritten::<f32>(&self.device, (tokens, heads * value_dim))?;
        let kernel = match call.pages.keys.dtype() {
            DType::F16 => "attend_f16",
            _ => "attend_f32",
        };
        let scratch = match parts {
            1 => None,
            _ => Some([
                unwritten::<f32>(&self.device, (tokens, heads, parts, value_dim))?,
                unwritten::<f32>(&self.device, (tokens, heads, parts))?,
                unwritten::<f32>(&self.device, (tokens, heads, parts))?,
            ]),
        };
        let scratch = match &scratch {
            None => [Address::NULL; 3],
            Some([out, maxima, sums]) => [address(out)?, address(maxima)?, address(sums)?],
        };
        let values = address_or_null(call.pages.values.as_ref())?;
        let held = if call.pages.values.is_some() { OWN_TILE * value_dim } else { 0 };
        let floats =
            OWN_HEADS * key_dim + OWN_TILE * (key_dim + 1) + held + OWN_HEADS * OWN_TILE + 3 * OWN_HEADS;
        let sinks = address_or_null(call.sinks)?;
        self.own.launch(
            kernel,
            (tokens, kv_heads * tile_groups, parts),
            (128, 1),
            floats * 4,
            &[
                Arg::At(address(&q)?),
                Arg::At(address(&call.pages.keys)?),
                Arg::At(values),
                Arg::At(address(&call.group.tables)?),
                Arg::At(address(&call.group.firsts)?),
                Arg::At(address(&span_of)?),
                Arg::At(address(&positions)?),
                Arg::At(sinks),
                Arg::At(address(&out)?),
                Arg::At(scratch[0]),
                Arg::At(scratch[1]),
                Arg::At(scratch[2]),
                Arg::Int(heads as i32),
                Arg::Int(kv_heads as i32),
                Arg::Int(key_dim as i32),
                Arg::Int(value_dim as i32),
                Arg::Int(call.block_tokens as i32),
                Arg::Int(call.group.tables.dim(1)? as i32),
                Arg::Float(spec.scale),
                Arg::Int(spec.window.map_or(0, |w| w as i32)),
                Arg::Int(tile_groups as i32),
            ],
        )?;
        match parts {
            1 => Ok(out),
            _ => self.join(scratch, sinks, out, [tokens * heads, heads, value_dim, parts]),
        }
    }

    /// Puts together what parts of the context gave for each row: values, maxima and sums.
    fn join(
        &self,
        scratch: [Address; 3],
        sinks: Address,
        out: Tensor,
        [rows, heads, value_dim, parts]: [usize; 4],
    ) -> Result<Tensor> {
        let [values, maxima, sums] = scratch.map(Arg::At);
        let sizes = [heads, value_dim, parts].map(|n| Arg::Int(n as i32));
        let args =
            [values, maxima, sums, Arg::At(sinks), Arg::At(address(&out)?), sizes[0], sizes[1], sizes[2]];
        self.own.launch("attend_join", (rows, 1, 1), (128, 1), 0, &args)?;
        Ok(out)
    }
}
