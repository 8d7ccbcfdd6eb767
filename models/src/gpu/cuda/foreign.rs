//! Kernels of mistral.rs that its crates link but offer only through calls that synchronise or choose another kernel.
//!
//! Signatures: mistralrs-paged-attn 0.8.1, src/cuda/ffi.rs. Their launchers end the process on a bad launch, so callers check first.

#![expect(unsafe_code, reason = "declarations of linked functions")]

use std::ffi::{c_int, c_void};

// The static library that has them comes with this crate.
use mistralrs_paged_attn as _;

unsafe extern "C" {
    /// Copies keys and values of whole sequences out of pages; a row of `block_table` per sequence, `cu_seq_lens` from 0.
    pub(super) fn gather_kv_cache(
        key_cache: *const c_void,
        value_cache: *const c_void,
        k_out: *const c_void,
        v_out: *const c_void,
        k_scale: *const f32,
        v_scale: *const f32,
        block_table: *const c_int,
        cu_seq_lens: *const c_int,
        num_tokens: c_int,
        num_seqs: c_int,
        block_size: c_int,
        block_table_stride: c_int,
        num_kv_heads: c_int,
        head_size: c_int,
        x: c_int,
        stream: *mut c_void,
        out_dtype: u32,
        cache_dtype: u32,
    );
}

/// Functions of one signature, and its type.
macro_rules! functions {
    (@type $(#[$doc:meta])* $type:ident ($($arg:ident: $of:ty,)*)) => {
        $(#[$doc])*
        pub(super) type $type = unsafe extern "C" fn($($arg: $of),*);
    };
    (@function $name:ident ($($arg:ident: $of:ty,)*)) => {
        unsafe extern "C" {
            pub(super) fn $name($($arg: $of),*);
        }
    };
    ($(#[$doc:meta])* $type:ident: $($name:ident)*, $args:tt) => {
        functions!(@type $(#[$doc])* $type $args);
        $(functions!(@function $name $args);)*
    };
}

functions! {
    /// The version of paged attention that splits a context into parts of 512 keys, whatever the batch.
    PagedAttentionV2: paged_attention_v2_f16 paged_attention_v2_f32, (
        out: *const c_void,
        exp_sums: *const f32,
        max_logits: *const f32,
        tmp_out: *const c_void,
        query: *const c_void,
        key_cache: *const c_void,
        value_cache: *const c_void,
        alibi_slopes: *const c_void,
        num_kv_heads: c_int,
        scale: f32,
        softcapping: f32,
        block_tables: *const c_int,
        context_lens: *const c_int,
        block_size: c_int,
        max_context_len: c_int,
        num_seqs: c_int,
        num_heads: c_int,
        head_size: c_int,
        max_num_blocks_per_seq: c_int,
        q_stride: c_int,
        kv_block_stride: c_int,
        kv_head_stride: c_int,
        stream: *mut c_void,
        cache_dtype: u32,
        k_scale: *const f32,
        v_scale: *const f32,
        sinks: *const f32,
    )
}
