//! Copies in host memory of weights that are streamed: the processor computes from them in
//! decode, and the link fetches from them otherwise.
//!
//! ```text
//!  a plan takes effect ─► choose: which weights have a copy, and which of them the
//!                         processor computes with (the share, spread over the layers)
//!  fetch, require_copies ─► memory is taken, and filled once from the model's file
//! ```
//!
//! Memory is taken when it is first needed, as long as there is room; a weight for which
//! there is none is streamed like any other.

use std::sync::Arc;

use super::block::Block;
use super::engine::{Copy, Direction, Request, Source, Ticket};
use super::engine_device::link::Pinning;
use super::memory::HostMemory;
use super::room::{Part, Room};
use super::storage::BLOCK_BYTES;
use super::{Backing, GroupKey, Pager, Place, TensorId};
use crate::error::{Error, Result};
use crate::ggml::RawBuffer;
use crate::planner::cold::{self, Reach};
use crate::planner::spread;
use crate::telemetry::memory::share_of;

/// Where memory for copies comes from.
#[derive(Debug)]
pub struct CopyMemory {
    /// How much of it there is, with what the engine keeps.
    pub room: Arc<Room>,
    /// What pins it for the link; None where nothing does.
    pub pinning: Option<Arc<dyn Pinning>>,
}

/// How weights are copied; see the module's documentation.
#[derive(Debug)]
pub(super) struct Copies {
    memory: CopyMemory,
    // Which weights the processor may compute with.
    reach: Reach,
    // Of their bytes the part that it does compute with; 0 to 1.
    share: f64,
    // The system gave no more memory since the last choice.
    refused: bool,
}

/// A weight's part in that.
#[derive(Debug, Default)]
pub(super) struct HostPart {
    /// It is to have a copy.
    keeps: bool,
    /// In decode the processor computes with it.
    computes: bool,
    copy: Option<HostCopy>,
}

/// A weight in host memory.
#[derive(Debug)]
struct HostCopy {
    block: Block,
    // Where its bytes begin: as far from a block's start as in the file.
    lead: usize,
    filled: Filled,
    _part: Part,
}

/// Whether a copy has the weight's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filled {
    No,
    /// When this is done without failure.
    With(Ticket),
    Yes,
}

/// What a layer has of weights that may have copies, of one reach.
struct Layer {
    reach: Reach,
    group: GroupKey,
    bytes: u64,
    weights: Vec<TensorId>,
}

impl Pager {
    /// Has weights that are streamed, of feed-forward blocks, copied into host memory, and
    /// the processor compute with all of them in decode.
    pub fn keep_copies(&mut self, memory: CopyMemory) {
        self.copies = Some(Copies {
            memory,
            reach: Reach::default(),
            share: 1.0,
            refused: false,
        });
        self.choose_copies();
    }

    /// Says which weights the processor may compute with. Between graphs only; nothing is
    /// moved.
    pub fn set_host_reach(&mut self, reach: Reach) {
        if let Some(copies) = &mut self.copies {
            copies.reach = reach;
            self.choose_copies();
        }
    }

    /// Says which part of the bytes that may be computed with on the processor is, 0 to 1.
    /// Between graphs only; nothing is moved.
    pub fn set_host_share(&mut self, share: f64) {
        if let Some(copies) = &mut self.copies {
            copies.share = share.clamp(0.0, 1.0);
            self.choose_copies();
        }
    }

    /// The part of the bytes that may be computed with on the processor that is, 0 to 1: not
    /// what was asked for, but whole layers, and those that have copies or will have. None where
    /// all are streamed, or there are none.
    #[allow(clippy::cast_precision_loss, reason = "a share of a size")]
    pub fn host_share(&self) -> Option<f64> {
        let refused = self.copies.as_ref()?.refused;
        let is_done = |id: &TensorId| {
            let host = &self.tensor(*id).host;
            host.computes && (host.copy.is_some() || !refused)
        };
        let (mut all, mut done) = (0, 0);
        for layer in self.layers_to_copy() {
            all += layer.bytes;
            let ids = layer.weights.iter().filter(|id| is_done(id));
            done += ids
                .map(|id| self.tensor(*id).spec.span_bytes as u64)
                .sum::<u64>();
        }
        (all > 0).then(|| done as f64 / all as f64)
    }

    /// Whether the processor computes with the weight in decode.
    pub fn is_on_host(&self, id: TensorId) -> bool {
        self.tensor(id).host.computes
    }

    /// Whether the processor computes with any weight in decode.
    pub fn has_host_weights(&self) -> bool {
        let mut tensors = self.tensors.iter().flatten();
        self.copies.is_some() && tensors.any(|tensor| tensor.host.computes)
    }

    /// Whether the tensor is a weight that stays in the arena.
    pub fn is_resident_weight(&self, id: TensorId) -> bool {
        let tensor = self.tensor(id);
        tensor.state.is_none() && matches!(tensor.place, Place::Resident(..))
    }

    /// Bytes of the weights of which there are copies.
    pub fn copied_bytes(&self) -> u64 {
        let tensors = self.tensors.iter().flatten();
        let copied = tensors.filter(|tensor| tensor.host.copy.is_some());
        copied.map(|tensor| tensor.spec.span_bytes as u64).sum()
    }

    /// The layers of whose weights the processor computes with some in decode, in order.
    pub fn host_layers(&self) -> Vec<GroupKey> {
        let tensors = self.tensors.iter().flatten();
        let on_host = tensors.filter(|tensor| tensor.host.computes);
        let mut layers: Vec<GroupKey> = on_host.map(|tensor| tensor.spec.group).collect();
        layers.sort_unstable();
        layers.dedup();
        layers
    }

    /// Decides which weights have copies and which of them the processor computes with, for
    /// the places that tensors have now.
    ///
    /// The unit is a layer: its products follow each other, so that activations cross the
    /// link twice and not with each of them. What is beyond feed-forward blocks comes after
    /// all of these.
    pub(super) fn choose_copies(&mut self) {
        let Some(copies) = &mut self.copies else {
            return;
        };
        copies.refused = false;
        let share = copies.share;
        let layers = self.layers_to_copy();
        let all: u64 = layers.iter().map(|layer| layer.bytes).sum();
        let held = self.copied_bytes();
        let left = self.copies.as_ref().map_or(0, |copies| {
            // What the blocks around them take is little, but not nothing.
            copies.memory.room.left_bytes() / 100 * 99
        });
        let room = held + left;
        let mut wanted = share_of(all, share);
        if all > room {
            wanted = wanted.min(room);
        }
        let of_blocks = layers.partition_point(|layer| layer.reach == Reach::FeedForward);
        let indices: Vec<usize> = (0..layers.len()).collect();
        let (blocks, others) = indices.split_at(of_blocks);
        let mut parts = vec![(false, false); layers.len()];
        let mut sum = 0;
        for index in spread(blocks).chain(spread(others)) {
            let bytes = layers[index].bytes;
            let ends = sum + bytes;
            let computes = wanted > 0 && ends.saturating_sub(bytes / 2) <= wanted;
            // Copies as far as there is room; the processor, to the nearest whole layer. What
            // is seldom its own is not kept for that.
            if ends <= room && (computes || index < of_blocks) {
                parts[index] = (true, computes);
                sum = ends;
            }
        }
        for tensor in self.tensors.iter_mut().flatten() {
            (tensor.host.keeps, tensor.host.computes) = (false, false);
        }
        for (layer, (keeps, computes)) in layers.iter().zip(parts) {
            for id in &layer.weights {
                let host = &mut self.tensor_mut(*id).host;
                (host.keeps, host.computes) = (keeps, computes);
            }
        }
        let tensors = self.tensors.iter_mut().flatten();
        for tensor in tensors.filter(|tensor| !tensor.host.keeps) {
            // What is still being copied from it holds the memory itself.
            tensor.host.copy = None;
        }
    }

    /// Bytes of the weights that the processor may compute with, and how many times a pass
    /// goes to it and back for them.
    pub fn copyable(&self) -> (u64, u32) {
        let layers = self.layers_to_copy();
        let bytes = layers.iter().map(|layer| layer.bytes).sum();
        let units = layers.iter().map(|layer| (layer.reach, layer.group));
        (bytes, cold::segments(units))
    }

    /// What layers have of weights that may be copied, by reach and then in the order of a
    /// pass.
    fn layers_to_copy(&self) -> Vec<Layer> {
        let Some(most) = self.copies.as_ref().map(|copies| copies.reach) else {
            return Vec::new();
        };
        let mut found: Vec<((Reach, GroupKey), TensorId, u64)> = Vec::new();
        for id in self.ids() {
            let tensor = self.tensor(id);
            let spec = &tensor.spec;
            let is_one = matches!(tensor.place, Place::Streamed)
                && matches!(spec.backing, Backing::Weight(_))
                && spec.slice_bytes.is_none();
            let reach = Reach::of(&spec.role).filter(|reach| is_one && *reach <= most);
            if let Some(reach) = reach {
                found.push(((reach, spec.group), id, spec.span_bytes as u64));
            }
        }
        found.sort_by_key(|(unit, ..)| *unit);
        let layers = found.chunk_by(|a, b| a.0 == b.0).map(|layer| Layer {
            reach: layer[0].0.0,
            group: layer[0].0.1,
            bytes: layer.iter().map(|(.., bytes)| bytes).sum(),
            weights: layer.iter().map(|(_, id, _)| *id).collect(),
        });
        layers.collect()
    }

    /// Takes memory for the copy of a weight that is to have one; whether it has one.
    pub fn take_copy(&mut self, id: TensorId) -> bool {
        let tensor = self.tensor(id);
        if tensor.host.copy.is_some() {
            return true;
        }
        let (Some(copies), Backing::Weight(location)) = (&self.copies, &tensor.spec.backing) else {
            return false;
        };
        if !tensor.host.keeps || copies.refused {
            return false;
        }
        let lead = usize::try_from(location.offset % BLOCK_BYTES as u64).expect("below a block");
        let bytes = (lead + tensor.spec.span_bytes).next_multiple_of(BLOCK_BYTES);
        let part = copies.memory.room.take(bytes as u64);
        let block = part.and_then(|part| Some((copies.memory.block(bytes).ok()?, part)));
        let Some((block, part)) = block else {
            self.copies
                .iter_mut()
                .for_each(|copies| copies.refused = true);
            return false;
        };
        self.tensor_mut(id).host.copy = Some(HostCopy {
            block,
            lead,
            filled: Filled::No,
            _part: part,
        });
        true
    }

    /// Where the copy of a weight is, for a copy over the link; None when it has none.
    pub(super) fn source_of_copy(&self, id: TensorId) -> Option<Source> {
        let copy = self.tensor(id).host.copy.as_ref()?;
        Some(copy.block.source(copy.lead))
    }

    /// What fills the copy of a weight; None when it has none, or has its bytes.
    pub(super) fn filling_of(&self, id: TensorId) -> Option<Copy> {
        let spec = &self.tensor(id).spec;
        let copy = self.tensor(id).host.copy.as_ref()?;
        let Backing::Weight(location) = &spec.backing else {
            return None;
        };
        (copy.filled == Filled::No).then(|| Copy {
            from: Source::File {
                file: Arc::clone(&location.file),
                offset: location.offset,
            },
            to: copy.block.target(copy.lead),
            bytes: spec.span_bytes,
            // The blocks around it are the copy's own.
            whole_blocks: true,
        })
    }

    /// Notes that `ticket` fills the copy of a weight.
    pub(super) fn note_filling(&mut self, id: TensorId, ticket: Ticket) {
        if let Some(copy) = &mut self.tensor_mut(id).host.copy {
            copy.filled = Filled::With(ticket);
        }
    }

    /// After a failed copy: only copies that are known to be whole are trusted.
    pub(super) fn distrust_copies(&mut self) {
        let tensors = self.tensors.iter_mut().flatten();
        for copy in tensors.filter_map(|tensor| tensor.host.copy.as_mut()) {
            if copy.filled != Filled::Yes {
                copy.filled = Filled::No;
            }
        }
    }

    /// Has the copies of weights filled that are not yet.
    ///
    /// # Errors
    /// `Failed` when the engine refuses.
    pub fn require_copies(&mut self, ids: &[TensorId]) -> Result<()> {
        let empty = ids.iter().copied();
        let empty: Vec<TensorId> = empty.filter(|id| self.filling_of(*id).is_some()).collect();
        if empty.is_empty() {
            return Ok(());
        }
        let mut copies = self.engine.recycled();
        copies.extend(empty.iter().filter_map(|id| self.filling_of(*id)));
        let submitted = self.engine.submit(Request {
            direction: Direction::In,
            copies,
            after: None,
        });
        let ticket = submitted.map_err(|(sentence, _refused)| {
            Error::Failed(format!("could not read a tensor: {sentence}"))
        })?;
        empty.iter().for_each(|id| self.note_filling(*id, ticket));
        Ok(())
    }

    /// Waits until the copies of weights, which were required, have their bytes.
    ///
    /// # Errors
    /// `Failed` when a copy failed; ring and cache are empty afterwards.
    pub fn wait_copies(&mut self, ids: &[TensorId]) -> Result<()> {
        let tickets = ids.iter().filter_map(|id| {
            let copy = self.tensor(*id).host.copy.as_ref()?;
            match copy.filled {
                Filled::With(ticket) => Some(ticket),
                Filled::No | Filled::Yes => None,
            }
        });
        let Some(newest) = tickets.max() else {
            return Ok(());
        };
        let start = std::time::Instant::now();
        let outcome = self.engine.await_arrival(newest);
        self.stalls.storage_seconds += start.elapsed().as_secs_f64();
        outcome.map_err(|failure| self.fail(&failure))?;
        for id in ids {
            if let Some(copy) = &mut self.tensor_mut(*id).host.copy
                && matches!(copy.filled, Filled::With(_))
            {
                copy.filled = Filled::Yes;
            }
        }
        Ok(())
    }

    /// Where the processor finds a weight of which it has a copy, and the buffer that is in.
    ///
    /// # Panics
    /// When there is none.
    pub fn locate_copy(&self, id: TensorId) -> (usize, RawBuffer) {
        let copy = self.tensor(id).host.copy.as_ref();
        let copy = copy.expect("a weight that the processor computes with has a copy");
        (copy.block.address(copy.lead), copy.block.buffer())
    }
}

impl CopyMemory {
    /// Takes memory: pinned, or else ordinary.
    fn block(&self, bytes: usize) -> std::result::Result<Block, String> {
        let pinned = self.pinning.as_ref().map(|pinning| pinning.pinned(bytes));
        let memory = match pinned {
            Some(Ok(memory)) => memory,
            _ => HostMemory::new(bytes).map_err(|error| error.to_string())?,
        };
        Block::over(memory)
    }
}
