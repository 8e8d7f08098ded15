//! The ring: slots that streamed groups take turns in.
//!
//! ```text
//!   Absent ──claim──► Filling ──ticket done──► Clean ──segment wrote──► Dirty
//!     ▲                                          ▲                        │
//!     └──────── claimed by another group ────────┴──── written back ◄─────┘
//! ```
//! A slot knows which byte ranges of which tensors are valid in it, or will be once its
//! ticket is done. Write-back is submitted as soon as a segment has written; the engine
//! runs in order, so whatever claims the slot next is queued behind it.

use std::ops::Range;
use std::sync::Arc;

use super::block::Block;
use super::engine::Ticket;
use super::{GroupId, TensorId};

/// One slot of the ring.
#[derive(Debug)]
pub struct Slot {
    /// Its memory, large enough for any group that streams.
    pub block: Arc<Block>,
    /// The group whose tensors it holds.
    pub group: Option<GroupId>,
    /// In use by the segment at hand: must not be claimed.
    pub pinned: bool,
    /// Holds what is needed sooner than the group being fetched ahead.
    pub reserved: bool,
    /// The valid range of each tensor in it, once `ticket` is done.
    pub valid: Vec<(TensorId, Range<usize>)>,
    /// The newest fetch into it.
    pub ticket: Ticket,
}

impl Slot {
    /// A slot with `block` as its memory, empty.
    pub fn new(block: Arc<Block>) -> Self {
        Self {
            block,
            group: None,
            pinned: false,
            reserved: false,
            valid: Vec::new(),
            ticket: Ticket(0),
        }
    }

    /// Forgets what it holds.
    pub fn clear(&mut self) {
        self.group = None;
        self.valid.clear();
    }

    /// Declares `need` of `tensor` valid; gives the parts of it that must be fetched.
    /// A tensor keeps one valid range: a gap between old and new is fetched too.
    pub fn extend(&mut self, tensor: TensorId, need: &Range<usize>) -> [Range<usize>; 2] {
        let Some((_, valid)) = self.valid.iter_mut().find(|(id, _)| *id == tensor) else {
            self.valid.push((tensor, need.clone()));
            return [need.clone(), 0..0];
        };
        if need.is_empty() {
            return [0..0, 0..0];
        }
        let missing = [
            need.start..valid.start.max(need.start),
            valid.end..need.end.max(valid.end),
        ];
        *valid = valid.start.min(need.start)..valid.end.max(need.end);
        missing
    }

    /// Declares nothing of `tensor` valid: its bytes changed in the backing store.
    pub fn invalidate(&mut self, tensor: TensorId) {
        self.valid.retain(|(id, _)| *id != tensor);
    }
}

/// The slot to use for a group: the one that holds it, else its home, else any other;
/// never a pinned or reserved one that holds something else.
pub fn choose(slots: &[Slot], group: GroupId, home: usize) -> Option<usize> {
    let holds = slots.iter().position(|slot| slot.group == Some(group));
    let usable = |index: &usize| !slots[*index].pinned && !slots[*index].reserved;
    holds
        .or_else(|| Some(home).filter(usable))
        .or_else(|| (0..slots.len()).find(usable))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TENSOR: TensorId = TensorId(3);

    fn slot() -> Slot {
        Slot::new(Arc::new(Block::new(64).unwrap()))
    }

    #[test]
    fn a_first_need_is_fetched_whole_and_a_second_not_at_all() {
        let mut slot = slot();
        assert_eq!(slot.extend(TENSOR, &(10..20)), [10..20, 0..0]);
        let missing = slot.extend(TENSOR, &(12..18));
        assert!(missing.iter().all(|range| range.is_empty()), "{missing:?}");
    }

    #[test]
    fn a_pinned_slot_is_not_claimed_by_another_group() {
        let mut slots = [slot(), slot()];
        slots[0].pinned = true;
        assert_eq!(choose(&slots, GroupId(1), 0), Some(1));
        slots[1].pinned = true;
        assert_eq!(choose(&slots, GroupId(1), 0), None);
        slots[0].group = Some(GroupId(1));
        assert_eq!(choose(&slots, GroupId(1), 0), Some(0));
    }

    proptest! {
        #[test]
        fn every_byte_needed_is_fetched_exactly_once(
            needs in prop::collection::vec((0usize..60, 1usize..30), 1..12),
        ) {
            let mut slot = slot();
            let mut fetched = [0u32; 100];
            for (start, length) in needs {
                let need = start..start + length;
                for range in slot.extend(TENSOR, &need) {
                    range.for_each(|byte| fetched[byte] += 1);
                }
                prop_assert!(need.clone().all(|byte| fetched[byte] == 1), "{need:?}");
            }
        }
    }
}
