//! The pager: keeps the bytes of paged tensors in the arena (resident, or in a ring
//! slot while a segment of the graph uses them) and in the backing store (the model's
//! files for weights, host memory for states).
//!
//! It knows nothing of graphs: the device tells it which ranges of which tensors a
//! segment needs and writes.

mod access;
mod block;
pub mod engine;
pub mod engine_host;
pub mod memory;
pub mod model_index;
mod replan;
mod ring;
pub mod storage;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::block::Block;
use self::engine::{Copy, CopyEngine, Counters, Direction, Failure, Request, Source, Target};
use self::memory::HostMemory;
use self::model_index::TensorLocation;
use self::ring::Slot;
use crate::error::{Error, Result};
use crate::ggml::HostBuffer;
use crate::planner::{Limits, Placement};

/// Names a paged tensor for as long as its buffer lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TensorId(pub u32);

/// Names a group: its place in the order in which a pass uses the groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u32);

/// What travels together. The order is the order of use in a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GroupKey {
    /// Tensors used all over the graph: always resident.
    Shared,
    /// Weights of one layer of an encoder.
    EncoderLayer(u32),
    /// Weights and states of one layer.
    Layer(u32),
    /// What turns the last layer's output into logits.
    Output,
}

/// Where the truth about a tensor's bytes is when they are not in the arena.
#[derive(Clone, Debug)]
pub enum Backing {
    /// In the model's files: never written.
    Weight(TensorLocation),
    /// In host memory at an offset: written back by each pass.
    State(Arc<HostMemory>, usize),
}

impl Backing {
    /// Whether the tensor is a state: what passes write, and must not be lost.
    fn is_state(&self) -> bool {
        matches!(self, Self::State(..))
    }
}

/// A tensor to be paged.
#[derive(Clone, Debug)]
pub struct TensorSpec {
    /// What it travels with.
    pub group: GroupKey,
    /// Bytes that it takes in the arena, the inner device's padding included.
    pub bytes: usize,
    /// Its own bytes.
    pub span_bytes: usize,
    /// Where its bytes are when they are not in the arena.
    pub backing: Backing,
}

/// What a segment needs of a streamed tensor: these bytes, in the arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// The tensor.
    pub tensor: TensorId,
    /// The range, in bytes from the tensor's start.
    pub range: Range<usize>,
}

/// How the pager is set up; fixed at start.
#[derive(Clone, Debug)]
pub struct PagerConfig {
    /// Bytes of the arena and bound on resident layers.
    pub limits: Limits,
    /// Fill a slot with a poison pattern when another group claims it.
    pub poison: bool,
    /// Alignment of tensors in the arena, in bytes.
    pub alignment: usize,
    /// States will be paged too: a minimum stated before they are known is not the last.
    pub states_follow: bool,
}

#[derive(Debug)]
struct PagedTensor {
    spec: TensorSpec,
    group: GroupId,
    place: Place,
    // Its bytes have been given by the model's loader; a plan may reload them.
    loaded: bool,
    // Nobody has written to it: it is zero, and clearing it need not touch memory.
    untouched: bool,
}

/// Where a tensor's bytes are while a segment uses them.
#[derive(Clone, Debug)]
enum Place {
    /// No plan yet.
    Nowhere,
    /// In this block of the arena, at this offset.
    Resident(Arc<Block>, usize),
    /// At this offset in whichever slot holds the group.
    Streamed(usize),
}

#[derive(Clone, Debug)]
struct Group {
    key: GroupKey,
    placement: Placement,
    home_slot: usize,
}

/// Sizes and counters of a pager at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Bytes of the arena in use: resident blocks and ring slots.
    pub arena_bytes: u64,
    /// The smallest budget that would do.
    pub minimum_bytes: u64,
    /// Weight bytes that stay in the arena.
    pub resident_weight_bytes: u64,
    /// Weight bytes that each pass moves through the ring.
    pub streamed_weight_bytes: u64,
    /// Layers (the output counted as one) that stay, and all.
    pub resident_layers: u32,
    /// Layers, the output counted as one.
    pub layers: u32,
    /// Time a segment waited for its copies.
    pub stalled: Duration,
    /// What the copy engine has done.
    pub engine: Counters,
}

/// The byte with which a claimed slot is filled: NaN in every floating-point type.
const POISON: u8 = 0xFF;

/// See the module's documentation.
#[derive(Debug)]
pub struct Pager {
    config: PagerConfig,
    // Before the memory it copies to and from; drained on drop.
    engine: Box<dyn CopyEngine>,
    tensors: Vec<Option<PagedTensor>>,
    groups: Vec<Group>,
    slots: Vec<Slot>,
    minimum_bytes: u64,
    stalled: Duration,
    // A vector that a request did not need after all.
    spare: Option<Vec<Copy>>,
    // Copies before the first pass belong to loading.
    baseline: Counters,
    // A write-back failed: states are no longer what the graph computed.
    lost: Option<String>,
}

impl Pager {
    /// A pager without tensors.
    pub fn new(config: PagerConfig, engine: Box<dyn CopyEngine>) -> Self {
        Self {
            config,
            engine,
            tensors: Vec::new(),
            groups: Vec::new(),
            slots: Vec::new(),
            minimum_bytes: 0,
            stalled: Duration::ZERO,
            spare: None,
            baseline: Counters::default(),
            lost: None,
        }
    }

    fn tensor(&self, id: TensorId) -> &PagedTensor {
        self.tensors[id.0 as usize]
            .as_ref()
            .expect("a tensor id outlived its buffer")
    }

    fn tensor_mut(&mut self, id: TensorId) -> &mut PagedTensor {
        self.tensors[id.0 as usize]
            .as_mut()
            .expect("a tensor id outlived its buffer")
    }

    /// The group of a tensor when it is streamed; None for a resident one.
    pub fn streamed_group(&self, id: TensorId) -> Option<GroupId> {
        let tensor = self.tensor(id);
        matches!(tensor.place, Place::Streamed(_)).then_some(tensor.group)
    }

    /// The range of bytes that must be there for a use of `range`: weights travel
    /// whole, states only where they are used.
    pub fn unit_of_transfer(&self, id: TensorId, range: Range<usize>) -> Range<usize> {
        let spec = &self.tensor(id).spec;
        match spec.backing {
            Backing::Weight(_) => 0..spec.span_bytes,
            Backing::State(..) => range,
        }
    }

    /// Has the bytes in `needs` fetched for the group: a slot is Filling or Clean, and
    /// pinned, when this returns. All needs belong to `group`.
    ///
    /// # Errors
    /// `Memory` when all slots are pinned; `Failed` when the engine refuses the copies.
    pub fn require(&mut self, group: GroupId, needs: &[Need]) -> Result<()> {
        let home = self.groups[group.0 as usize].home_slot;
        let Some(index) = ring::choose(&self.slots, group, home) else {
            return Err(ring_too_small());
        };
        self.fetch(index, group, needs)?;
        self.slots[index].pinned = true;
        Ok(())
    }

    /// Has the first group in `upcoming` that is not there yet fetched, as far as a slot
    /// is free: neither pinned, nor holding a group that is needed sooner.
    ///
    /// # Errors
    /// `Failed` when the engine refuses the copies.
    pub fn prefetch<'a>(
        &mut self,
        upcoming: impl Iterator<Item = (GroupId, &'a [Need])>,
    ) -> Result<()> {
        let mut outcome = Ok(false);
        for (group, needs) in upcoming {
            let home = self.groups[group.0 as usize].home_slot;
            let Some(index) = ring::choose(&self.slots, group, home) else {
                break;
            };
            outcome = self.fetch(index, group, needs);
            self.slots[index].reserved = true;
            if !matches!(outcome, Ok(false)) {
                break;
            }
        }
        self.slots.iter_mut().for_each(|slot| slot.reserved = false);
        outcome.map(drop)
    }

    /// A vector for the copies of a request.
    fn new_copies(&mut self) -> Vec<Copy> {
        let spare = self.spare.take();
        spare.unwrap_or_else(|| self.engine.recycled())
    }

    /// Submits what is missing of `needs`; whether anything was.
    fn fetch(&mut self, index: usize, group: GroupId, needs: &[Need]) -> Result<bool> {
        let mut copies = self.new_copies();
        let slot = &mut self.slots[index];
        let block = Arc::clone(&slot.block);
        if slot.group != Some(group) {
            slot.clear();
            slot.group = Some(group);
            if self.config.poison {
                copies.push(Copy {
                    from: Source::Pattern(POISON),
                    to: in_memory(block.memory(), 0),
                    bytes: block.bytes(),
                    whole_blocks: false,
                });
            }
        }
        for need in needs {
            let tensor = self.tensors[need.tensor.0 as usize].as_ref();
            let tensor = tensor.expect("a need names a live tensor");
            let Place::Streamed(place) = tensor.place else {
                continue;
            };
            for missing in slot.extend(need.tensor, &need.range) {
                if !missing.is_empty() {
                    copies.push(Copy {
                        from: source_of(&tensor.spec.backing, missing.start),
                        to: in_memory(block.memory(), place + missing.start),
                        bytes: missing.len(),
                        whole_blocks: false,
                    });
                }
            }
        }
        if copies.is_empty() {
            self.spare = Some(copies);
            return Ok(false);
        }
        match self.engine.submit(Request {
            direction: Direction::In,
            copies,
        }) {
            Ok(ticket) => {
                self.slots[index].ticket = ticket;
                Ok(true)
            }
            Err((sentence, _refused)) => {
                self.slots[index].clear();
                Err(Error::Failed(format!(
                    "could not fetch a layer: {sentence}"
                )))
            }
        }
    }

    /// Notes that a graph writes to the tensor.
    pub fn touch(&mut self, id: TensorId) {
        self.tensor_mut(id).untouched = false;
    }

    /// Waits until everything fetched for `group` is there: its slot is Clean.
    ///
    /// # Errors
    /// `Failed` when a copy failed; the ring is empty afterwards.
    pub fn wait_ready(&mut self, group: GroupId) -> Result<()> {
        let ticket = self.slot_of(group).ticket;
        let start = Instant::now();
        let outcome = self.engine.wait(ticket);
        self.stalled += start.elapsed();
        outcome.map_err(|failure| self.fail(&failure))
    }

    /// Where the tensor's first byte is now, and the inner buffer it lies in.
    ///
    /// # Panics
    /// When the tensor is streamed and no slot holds its group.
    pub fn locate(&self, id: TensorId) -> (usize, &HostBuffer) {
        let tensor = self.tensor(id);
        let (block, offset) = match &tensor.place {
            Place::Nowhere => panic!("a tensor is used before it was planned"),
            Place::Resident(block, offset) => (block, *offset),
            Place::Streamed(offset) => (&self.slot_of(tensor.group).block, *offset),
        };
        (block.memory().address(offset) as usize, block.buffer())
    }

    /// Queues the write-back of what a segment wrote to streamed states: Dirty becomes
    /// Clean when the engine gets there, before anything that is queued later.
    ///
    /// # Errors
    /// `Failed` when the engine refuses; the states are lost then.
    pub fn write_back(&mut self, writes: &[Need]) -> Result<()> {
        if writes.is_empty() {
            return Ok(());
        }
        let mut copies = self.new_copies();
        for write in writes {
            let tensor = self.tensor(write.tensor);
            let Place::Streamed(place) = tensor.place else {
                continue;
            };
            let Backing::State(store, base) = &tensor.spec.backing else {
                return Err(Error::Bug("a graph writes to a weight".to_owned()));
            };
            let memory = self.slot_of(tensor.group).block.memory();
            let offset = place + write.range.start;
            copies.push(Copy {
                from: Source::Memory {
                    memory: Arc::clone(memory),
                    offset,
                },
                to: in_memory(store, base + write.range.start),
                bytes: write.range.len(),
                whole_blocks: false,
            });
        }
        let request = Request {
            direction: Direction::Out,
            copies,
        };
        let ticket = self
            .engine
            .submit(request)
            .map_err(|(sentence, _refused)| {
                let sentence = format!("could not write the KV cache back: {sentence}");
                self.lost = Some(sentence.clone());
                Error::Failed(sentence)
            })?;
        // A group that stays in its slot must not be written again before this is done.
        for slot in self.slots.iter_mut().filter(|slot| slot.pinned) {
            slot.ticket = ticket;
        }
        Ok(())
    }

    /// The slot that holds a group.
    ///
    /// # Panics
    /// When none does: the group has not been required.
    fn slot_of(&self, group: GroupId) -> &Slot {
        let slot = self.slots.iter().find(|slot| slot.group == Some(group));
        slot.expect("a group in use is in a slot")
    }

    /// Lets all slots be claimed again.
    pub fn unpin(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.pinned = false);
    }

    /// Whether states were lost by a failed write-back.
    ///
    /// # Errors
    /// `Failed` with what happened.
    pub fn check_states(&self) -> Result<()> {
        match &self.lost {
            Some(sentence) => Err(Error::Failed(sentence.clone())),
            None => Ok(()),
        }
    }

    /// Drains the engine.
    ///
    /// # Errors
    /// `Failed` when a copy failed; the ring is empty afterwards.
    pub fn drain(&mut self) -> Result<()> {
        self.engine
            .wait(self.engine.newest())
            .map_err(|failure| self.fail(&failure))
    }

    /// After a failed copy: nothing in the ring is trusted any more.
    fn fail(&mut self, failure: &Failure) -> Error {
        // Waits for whatever is still in flight; its failures are looked at below.
        let _ = self.engine.wait(self.engine.newest());
        self.slots.iter_mut().for_each(Slot::clear);
        if let Some(lost) = self.engine.forget_failures() {
            self.lost = Some(lost.sentence);
        }
        Error::Failed(failure.sentence.clone())
    }

    /// Counts copies from now on; those before belong to loading.
    pub fn start_counting(&mut self) {
        self.baseline = self.engine.counters();
        self.stalled = Duration::ZERO;
    }

    /// Sizes and counters at this moment.
    pub fn usage(&self) -> Usage {
        let mut usage = Usage {
            minimum_bytes: self.minimum_bytes,
            stalled: self.stalled,
            engine: since(self.engine.counters(), self.baseline),
            arena_bytes: self
                .slots
                .iter()
                .map(|slot| slot.block.bytes() as u64)
                .sum(),
            ..Usage::default()
        };
        for tensor in self.tensors.iter().flatten() {
            let weight = match tensor.spec.backing {
                Backing::Weight(_) => tensor.spec.span_bytes as u64,
                Backing::State(..) => 0,
            };
            match tensor.place {
                Place::Streamed(_) => usage.streamed_weight_bytes += weight,
                Place::Resident(..) | Place::Nowhere => {
                    usage.arena_bytes += tensor.spec.bytes as u64;
                    usage.resident_weight_bytes += weight;
                }
            }
        }
        let layers = self
            .groups
            .iter()
            .filter(|group| group.key != GroupKey::Shared);
        for group in layers {
            usage.layers += 1;
            usage.resident_layers += u32::from(group.placement == Placement::Resident);
        }
        usage
    }
}

/// The error of an operation that reads more groups than the ring has slots.
pub fn ring_too_small() -> Error {
    let sentence = "one operation reads more streamed layers than the ring has slots; \
                    raise --vram-budget";
    Error::Memory(sentence.to_owned())
}

fn since(now: Counters, then: Counters) -> Counters {
    Counters {
        storage_bytes: now.storage_bytes - then.storage_bytes,
        link_bytes: now.link_bytes - then.link_bytes,
        write_back_bytes: now.write_back_bytes - then.write_back_bytes,
        storage_seconds: now.storage_seconds - then.storage_seconds,
        link_seconds: now.link_seconds - then.link_seconds,
        write_back_seconds: now.write_back_seconds - then.write_back_seconds,
        failed: now.failed - then.failed,
    }
}

/// The bytes of `memory` from `offset` on.
fn in_memory(memory: &Arc<HostMemory>, offset: usize) -> Target {
    Target::Memory {
        memory: Arc::clone(memory),
        offset,
    }
}

/// The bytes of a backing store from `start` on.
fn source_of(backing: &Backing, start: usize) -> Source {
    match backing {
        Backing::Weight(location) => Source::File {
            file: Arc::clone(&location.file),
            offset: location.offset + start as u64,
        },
        Backing::State(memory, base) => Source::Memory {
            memory: Arc::clone(memory),
            offset: base + start,
        },
    }
}
