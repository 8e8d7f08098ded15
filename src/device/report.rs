//! What a device says about itself: sizes and counters at one moment, and what changed.

use crate::pager::GroupKey;
use crate::pager::usage;
pub use crate::pager::usage::{KvPages, Prefetches, Stalls, Traffic};

/// Sizes, and counters since the first graph.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Report {
    /// Bytes of all tensors in the model's files.
    pub model_bytes: u64,
    /// The bound of the arena, in bytes, as it is now.
    pub budget_bytes: u64,
    /// The smallest budget that would do for what is loaded, in bytes.
    pub minimum_bytes: u64,
    /// Bytes in use of the budget: resident tensors, KV pages, the ring, scratch, the driver's.
    pub arena_bytes_used: u64,
    /// Weight bytes that stay in the arena, and those of cached experts that are there.
    pub resident_bytes: u64,
    /// Weight bytes that travel in each pass over the model, and those of cached experts
    /// that are absent: of these a token reads a few.
    pub streamed_bytes: u64,
    /// State bytes (KV cache, recurrent states) in use that stay in the arena.
    pub kv_resident_bytes: u64,
    /// State bytes in use that live in the backing store.
    pub kv_streamed_bytes: u64,
    /// Bytes (weights and states) that a pass over the last graph moves in: what is
    /// streamed, but for tensors that have a place in the ring to themselves, and pages
    /// that were never written; and the experts that were absent when it ran.
    pub pass_bytes: u64,
    /// Bytes of the ring.
    pub ring_bytes: u64,
    /// Bytes of the inner device's own buffers: compute scratch, unpaged tensors; and of
    /// weights that llama.cpp keeps to itself (the token embedding).
    pub scratch_bytes: u64,
    /// Bytes that the driver of the inner device takes of its memory for this process (the
    /// context, kernels, workspaces); 0 where that is not counted.
    pub driver_bytes: u64,
    /// Bytes of these that are a guess.
    pub guessed_bytes: u64,
    /// Bytes of the budget that are kept free for what that driver may take soon.
    pub reserve_bytes: u64,
    /// Bytes of a draft model: its weights, KV cache and scratch.
    pub draft_bytes: u64,
    /// Layers of which everything stays in the arena, the output counted as one.
    pub resident_layers: u32,
    /// Layers of the model, the output counted as one.
    pub layers: u32,
    /// Layers that lost a tensor to a change of the plan, summed over all changes.
    pub layers_evicted: u64,
    /// Layers that got a tensor back by a change of the plan, summed over all changes.
    pub layers_loaded: u64,
    /// The KV cache in pages.
    pub kv_pages: KvPages,
    /// Fetches ahead of use.
    pub prefetches: Prefetches,
    /// Experts (of one tensor each) that a segment needed and that were in the cache, since
    /// the first graph.
    pub expert_hits: u64,
    /// Experts (of one tensor each) that were fetched, since the first graph.
    pub expert_misses: u64,
    /// Bytes moved and time spent since the first graph.
    pub traffic: Traffic,
    /// Time the computation waited since the first graph.
    pub stalls: Stalls,
    /// Time spent inside the inner backend since the first graph, in seconds.
    pub compute_seconds: f64,
    /// Bytes of weights that the processor computes with in a pass over the last graph: they
    /// have no room in the device's memory, and do not cross the link for it.
    pub host_pass_bytes: u64,
    /// Layers of whose weights the processor computes with some in decode.
    pub host_layers: u32,
    /// Bytes of host memory that copies of weights take, for the processor to compute with or
    /// the link to fetch from.
    pub host_copy_bytes: u64,
    /// Bytes of weights that the processor has computed with since the first graph.
    pub host_bytes: u64,
    /// Time spent on that, in seconds; not part of `compute_seconds`.
    pub host_seconds: f64,
    /// Bytes read from storage while loading, and the time that took, in seconds: the
    /// first estimate of the storage's rate. Zero when nothing was read.
    pub load_bytes: u64,
    /// See `load_bytes`.
    pub load_seconds: f64,
    /// Whether files are read past the page cache (direct I/O).
    pub direct: bool,
    /// Whether what crosses the link to a device does so from pinned memory; None where there
    /// is no link.
    pub pinned: Option<bool>,
    /// Graphs computed: one per ubatch.
    pub graphs: u64,
}

impl Report {
    /// Whether nothing has to travel: all layers stay in the arena.
    pub fn is_all_resident(&self) -> bool {
        self.resident_layers == self.layers
    }

    /// Bytes copied into the arena since the first graph.
    pub fn bytes_in(&self) -> u64 {
        self.traffic.bytes_in()
    }

    /// Bytes per second over the link to a device since the first graph, by the time that copies
    /// were at work or waited in its stream; None where nothing crossed one.
    #[allow(clippy::cast_precision_loss, reason = "a rate")]
    pub fn link_rate(&self) -> Option<f64> {
        let (bytes, seconds) = (self.traffic.link_bytes, self.traffic.link_seconds);
        let crossed = self.pinned.is_some() && bytes > 0 && seconds > 0.0;
        crossed.then(|| bytes as f64 / seconds)
    }

    /// Bytes written back from the arena since the first graph.
    pub fn bytes_out(&self) -> u64 {
        self.traffic.write_back_bytes
    }
}

/// Why a plan was made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The model's weights came.
    Weights,
    /// A context came or went: its KV cache, its scratch.
    Context,
    /// The context grew by pages of the KV cache.
    Growth,
    /// The inner device's driver takes more of its memory, or will not soon.
    Driver,
    /// The budget was changed from outside.
    Budget,
    /// Memory became scarce.
    Pressure,
    /// Memory became free again.
    Calm,
}

/// What a change of the plan did to the tensors of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The layer; None for the output.
    pub layer: Option<u32>,
    /// Whether the bytes are states (KV cache) and not weights.
    pub states: bool,
    /// Whether they left the arena; otherwise they came into it.
    pub evicted: bool,
    /// How many bytes.
    pub bytes: u64,
}

impl From<usage::Move> for Move {
    fn from(moved: usage::Move) -> Self {
        Self {
            layer: match moved.group {
                GroupKey::EncoderLayer(layer) | GroupKey::Layer(layer) => Some(layer),
                GroupKey::Shared | GroupKey::Output => None,
            },
            states: moved.states,
            evicted: moved.evicted,
            bytes: moved.bytes,
        }
    }
}

/// A plan that took effect.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Why it was made.
    pub reason: Reason,
    /// What moved, by layer; nothing while the model loads.
    pub moves: Vec<Move>,
    /// How things stand with it.
    pub report: Report,
}
