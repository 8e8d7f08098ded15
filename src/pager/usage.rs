//! Sizes and counters of a pager, and what a change of its plan did.

use std::time::Duration;

use super::GroupKey;
use super::engine_host::progress::Kind;

/// Bytes moved and time spent, by where they went.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Bytes read from the model's files and from the KV cache's spill file.
    pub storage_bytes: u64,
    /// Bytes copied into the arena from host memory (over a GPU's link). What is read from
    /// a file for a GPU crosses its link too, and counts as both.
    pub link_bytes: u64,
    /// Bytes that count as both.
    pub staged_bytes: u64,
    /// Bytes written back from the arena: rows of the KV cache, recurrent states.
    pub write_back_bytes: u64,
    /// Time the copy engine spent reading files, in seconds.
    pub storage_seconds: f64,
    /// Time it spent copying from host memory, in seconds.
    pub link_seconds: f64,
    /// Time it spent writing back, in seconds.
    pub write_back_seconds: f64,
}

impl Traffic {
    /// Bytes that came into the arena, each time they did.
    pub fn bytes_in(&self) -> u64 {
        (self.storage_bytes + self.link_bytes).saturating_sub(self.staged_bytes)
    }

    /// Time it took to bring them, in seconds. Where bytes are staged, files are read while
    /// others cross the link.
    pub fn seconds_in(&self) -> f64 {
        match self.staged_bytes {
            0 => self.storage_seconds + self.link_seconds,
            _ => self.storage_seconds.max(self.link_seconds),
        }
    }
}

/// Time that the computation waited, by what it waited for, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stalls {
    /// For bytes from the model's files or the spill file.
    pub storage_seconds: f64,
    /// For bytes from host memory.
    pub link_seconds: f64,
    /// For a write-back to end.
    pub write_back_seconds: f64,
}

impl Stalls {
    /// All of it.
    pub fn seconds(&self) -> f64 {
        self.storage_seconds + self.link_seconds + self.write_back_seconds
    }

    /// Adds time spent waiting for copies of a kind.
    pub(super) fn add(&mut self, kind: Kind, spent: Duration) {
        let seconds = match kind {
            Kind::Storage => &mut self.storage_seconds,
            Kind::Link => &mut self.link_seconds,
            Kind::WriteBack => &mut self.write_back_seconds,
        };
        *seconds += spent.as_secs_f64();
    }
}

/// Fetches ahead of use, in tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefetches {
    /// On their way at this moment.
    pub pending: u64,
    /// That arrived, since the first graph.
    pub completed: u64,
    /// That failed, since the first graph.
    pub failed: u64,
}

/// The KV cache in pages of `--kv-page-size` tokens of one tensor; a recurrent state is
/// one page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvPages {
    /// In the arena, always.
    pub resident: u64,
    /// In the backing store; in the ring while in use.
    pub stored: u64,
    /// Moved from the arena to the store by changes of the plan, since the first graph.
    pub evicted: u64,
    /// Fetched ahead of use, since the first graph.
    pub prefetched: u64,
}

/// Sizes and counters of a pager at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// The bound, in bytes.
    pub budget_bytes: u64,
    /// The smallest budget that would do, in bytes.
    pub minimum_bytes: u64,
    /// Bytes of the budget in use: resident tensors, the ring, the experts that are there,
    /// and what lies outside.
    pub arena_bytes: u64,
    /// Weight bytes that stay in the arena, and those of cached experts that are there.
    pub resident_weight_bytes: u64,
    /// Weight bytes that each pass moves through the ring, and those of cached experts that
    /// are absent.
    pub streamed_weight_bytes: u64,
    /// State bytes in use that stay in the arena.
    pub resident_state_bytes: u64,
    /// State bytes in use that live in the backing store.
    pub streamed_state_bytes: u64,
    /// Bytes of the ring.
    pub ring_bytes: u64,
    /// Bytes that the budget covers and the pager does not hold.
    pub outside_bytes: u64,
    /// Bytes that the driver of the arena's device takes of the budget.
    pub driver_bytes: u64,
    /// Bytes of these that are a guess.
    pub guessed_bytes: u64,
    /// Bytes of the budget that are kept free for what the driver may take soon.
    pub reserve_bytes: u64,
    /// Layers (the output counted as one) of which everything stays.
    pub resident_layers: u32,
    /// Layers, the output counted as one.
    pub layers: u32,
    /// Layers that lost a tensor to a change of the plan, summed over all changes.
    pub layers_evicted: u64,
    /// Layers that got a tensor back by a change of the plan, summed over all changes.
    pub layers_loaded: u64,
    /// The KV cache in pages.
    pub kv_pages: KvPages,
    /// Fetches ahead of use.
    pub prefetches: Prefetches,
    /// Experts of one tensor that a segment needed and that were there, since the first
    /// graph.
    pub expert_hits: u64,
    /// Experts of one tensor that were fetched, since the first graph.
    pub expert_misses: u64,
    /// What the copy engine has moved.
    pub traffic: Traffic,
    /// Time the computation waited.
    pub stalls: Stalls,
}

/// What a change of the plan did to the tensors of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The group.
    pub group: GroupKey,
    /// Whether the bytes are states and not weights.
    pub states: bool,
    /// Whether they left the arena; otherwise they came into it.
    pub evicted: bool,
    /// How many bytes.
    pub bytes: u64,
}
