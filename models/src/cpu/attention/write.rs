//! Writing a step's keys and values into their pages.

use super::{Attend, Core, Disjoint, Pages};
use frugal_kernels::lanes;

impl Core {
    /// Every token's key, and its value unless the pages hold keys alone.
    pub(super) fn write_pages(&self, input: &Attend<'_>, pages: &mut Pages) {
        let Attend { k, v, spec, .. } = *input;
        let (key_dim, value_dim) = (spec.key_dim as usize, v.map_or(0, |_| spec.value_dim as usize));
        let (heads, layer) = (spec.kv_heads as usize, spec.slot as usize);
        let layout = *pages.layout();
        assert!(layer < layout.layers && heads == layout.kv_heads, "the group's layers and heads");
        assert!(key_dim == layout.key_dim && value_dim == layout.value_dim, "the group's dimensions");
        // Each token's block, and where in it.
        let mut places = Vec::with_capacity(k.rows);
        for span in &input.batch.spans {
            let table = &span.tables[spec.group as usize];
            for position in (span.start as usize..).take((span.end - span.begin) as usize) {
                let block = table.blocks[position / input.block_tokens - table.first as usize];
                assert!((block.0 as usize) < layout.blocks, "a block of the pool");
                places.push((block, position % input.block_tokens));
            }
        }
        let ([key_bytes, value_bytes], page, isa) = (pages.row_bytes(), pages.page(), self.env.isa);
        let mut at = Vec::with_capacity(heads * places.len());
        for head in 0..heads {
            at.extend(places.iter().map(|&(block, slot)| {
                let key = pages.keys_at(block, layer, head).start + slot * key_bytes;
                (key, pages.values_at(block, layer, head).start + slot * value_bytes)
            }));
        }
        let all = Disjoint::new(pages.all_mut());
        self.rows(heads, places.len() * (key_dim + value_dim), |_, head| {
            for (token, &(key, value)) in at[head * places.len()..][..places.len()].iter().enumerate() {
                // SAFETY: an item writes only its head's parts of the pages, one place after the other, and no
                // two heads share a place.
                unsafe {
                    let from = &k.row(token)[head * key_dim..][..key_dim];
                    lanes::write(isa, page, from, all.slice(key, key_bytes));
                    if let Some(v) = v {
                        let from = &v.row(token)[head * value_dim..][..value_dim];
                        lanes::write(isa, page, from, all.slice(value, value_bytes));
                    }
                }
            }
        });
    }
}
