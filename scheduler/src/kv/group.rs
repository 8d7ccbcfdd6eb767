//! Arithmetic of cache groups: which blocks a sequence's positions need.

use frugal_models::step::{Geometry, GroupKind};

/// Index within the sequence of the first block that a query at position `next` can see.
pub(crate) fn first_needed(kind: GroupKind, block_tokens: u32, next: u32) -> u32 {
    match kind {
        GroupKind::Full | GroupKind::State => 0,
        GroupKind::Window { window } => next.saturating_add(1).saturating_sub(window) / block_tokens,
    }
}

/// Positions of the longest sequence that can run to its end with the pools to itself.
pub(crate) fn capacity(geometry: &Geometry) -> u32 {
    let bt = geometry.block_tokens;
    let groups = geometry.groups.iter().map(|g| match g.kind {
        GroupKind::Full => g.blocks.saturating_mul(bt),
        // A query's window may begin anywhere in a block, so it can touch one block more.
        GroupKind::Window { window } if g.blocks > (window.max(1) - 1).div_ceil(bt) => u32::MAX,
        GroupKind::Window { .. } => g.blocks.saturating_mul(bt),
        GroupKind::State if g.blocks > 0 => u32::MAX,
        GroupKind::State => 0,
    });
    groups.fold(geometry.context_max, u32::min)
}

#[cfg(test)]
mod tests {
    use super::*;
    use frugal_models::step::CacheGroup;

    #[test]
    fn a_window_of_one_sees_its_own_block_only() {
        let kind = GroupKind::Window { window: 1 };
        assert_eq!([0, 3, 4, 7, 8].map(|p| first_needed(kind, 4, p)), [0, 0, 1, 1, 2]);
    }

    #[test]
    fn the_first_needed_block_holds_the_oldest_visible_position() {
        for window in 1..20 {
            for next in 0..60u32 {
                let oldest = (0..=next).find(|p| next - p < window).expect("a query sees itself");
                assert_eq!(first_needed(GroupKind::Window { window }, 4, next), oldest / 4);
            }
        }
    }

    #[test]
    fn capacity_is_what_one_sequence_can_reach() {
        let capacity = |kind, blocks| {
            capacity(&Geometry {
                vocab: 8,
                context_max: 100,
                block_tokens: 4,
                groups: vec![CacheGroup { kind, block_bytes: 1, blocks }],
                digest: [0; 32],
            })
        };
        assert_eq!(capacity(GroupKind::Full, 3), 12);
        assert_eq!(capacity(GroupKind::Full, 30), 100);
        assert_eq!(capacity(GroupKind::Window { window: 6 }, 2), 8);
        assert_eq!(capacity(GroupKind::Window { window: 6 }, 3), 100);
        assert_eq!(capacity(GroupKind::Window { window: 1 }, 1), 100);
        assert_eq!(capacity(GroupKind::State, 1), 100);
        assert_eq!(capacity(GroupKind::State, 0), 0);
    }
}
