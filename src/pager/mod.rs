//! The pager: keeps the bytes of paged tensors in the arena (resident, in the ring while a
//! segment of the graph uses them, or expert by expert in the cache) and in the backing
//! store (the model's files for weights; a spill file or host memory for states).
//!
//! It knows nothing of graphs: the device tells it which ranges of which tensors a
//! segment needs and writes.
//!
//! ```text
//!  add_tensors, set_budget, settle ─► replan: planner's plan ─► what leaves, what comes
//!  require, prefetch, wait_ready, locate, write_back, unpin   ─► transfers, in the ring
//!  want, fetch_wanted, prefetch_range ─► slices, in the cache of experts
//!  write, fill, clear, read ─► access from outside a graph
//! ```

mod access;
pub mod block;
mod cache;
mod copies;
pub mod engine;
pub mod engine_device;
pub mod engine_host;
mod growth;
mod limits;
pub mod memory;
pub mod model_index;
pub mod outlook;
mod replan;
pub mod ring;
pub mod room;
mod slices;
mod state;
pub mod storage;
mod stores;
#[cfg(test)]
mod tests;
mod transfers;
mod underway;
pub mod usage;

use std::collections::VecDeque;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use self::block::{Arena, Block};
use self::cache::{Cache, SliceId};
pub use self::copies::CopyMemory;
use self::copies::{Copies, HostPart};
use self::engine::{CopyEngine, Counters, Ticket};
pub use self::limits::mib;
use self::model_index::TensorLocation;
pub use self::ring::Need;
use self::ring::Ring;
use self::state::State;
use self::storage::StoreFile;
pub use self::transfers::ring_too_small;
use self::underway::Underway;
use self::usage::{KvPages, Move, Prefetches, Stalls, Traffic, Usage};
use crate::cuda::Holding;
use crate::ggml::{Fence, RawBuffer};
use crate::planner::LookAhead;

/// Names a paged tensor for as long as its buffer lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TensorId(pub u32);

/// What belongs together. The order is the order of use in a pass.
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
    /// Where states live: written back by each pass, in pages of this many bytes.
    State {
        /// Bytes of a page.
        page_bytes: usize,
    },
}

/// A tensor to be paged.
#[derive(Clone, Debug)]
pub struct TensorSpec {
    /// What it belongs to.
    pub group: GroupKey,
    /// What it is to its group: its name without the layer.
    pub role: String,
    /// Bytes that the inner device wants for it, padding included.
    pub bytes: usize,
    /// Its own bytes.
    pub span_bytes: usize,
    /// Bytes behind whatever part of it is in use that the inner device may read as well,
    /// and that must be numbers then.
    pub read_behind_bytes: usize,
    /// Bytes of one expert, when it is made of experts.
    pub slice_bytes: Option<usize>,
    /// Where its bytes are when they are not in the arena.
    pub backing: Backing,
}

/// Where streamed states live.
#[derive(Clone, Debug)]
pub enum StatesIn {
    /// In host memory: the arena is elsewhere.
    Memory,
    /// In a file without a name in this folder: the arena is host memory itself.
    Folder(PathBuf),
}

/// How the pager is set up; fixed at start.
#[derive(Clone, Debug)]
pub struct PagerConfig {
    /// Bytes that tensors, ring and what lies outside may take together.
    pub budget_bytes: u64,
    /// Upper bound on resident layers, the output counted as one.
    pub resident_groups_max: Option<u32>,
    /// What the ring should hold.
    pub look_ahead: LookAhead,
    /// Layers whose weights stay.
    pub pinned_layers: Vec<u32>,
    /// Where streamed states live.
    pub states_in: StatesIn,
    /// Fill a place of the ring with a poison pattern before it is fetched into.
    pub poison: bool,
    /// Alignment of tensors in the arena, in bytes: the unit in which the model's files
    /// are read. A weight lies as far from it as its bytes do in the file, so that whole
    /// blocks can be read into place.
    pub alignment: usize,
    /// States will be paged too: a minimum stated before they are known is not the last.
    pub states_follow: bool,
    /// Lock the memory of weights, so that the system does not swap it out.
    pub lock: bool,
    /// Whose memory the arena is made of.
    pub arena: Arena,
}

#[cfg(test)]
impl PagerConfig {
    /// The simplest there is, with all that fits.
    fn of_test(arena: Arena) -> Self {
        Self {
            budget_bytes: 1 << 30,
            resident_groups_max: None,
            look_ahead: LookAhead::Layers(1),
            pinned_layers: Vec::new(),
            states_in: StatesIn::Memory,
            poison: false,
            alignment: 64,
            states_follow: false,
            lock: false,
            arena,
        }
    }
}

#[derive(Debug)]
struct PagedTensor {
    spec: TensorSpec,
    place: Place,
    // Its page table; None for a weight.
    state: Option<State>,
    // Its bytes have been given by the model's loader; a plan may reload them.
    loaded: bool,
    // Its copy in host memory.
    host: HostPart,
}

/// Where a tensor's bytes are while a segment uses them.
#[derive(Clone, Debug)]
enum Place {
    /// No plan yet.
    Nowhere,
    /// In this block of the arena, at this offset.
    Resident(Arc<Block>, usize),
    /// In the ring.
    Streamed,
    /// In this block, at this offset, as far as it is there.
    Cached(Arc<Block>, usize),
}

/// What the driver of the arena's device takes of the budget, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriverPart {
    /// What it takes now.
    pub bytes: u64,
    /// What it is taken to need where that is not measured. Left as far as the smallest plan
    /// does not need it.
    pub guessed_bytes: u64,
    /// What it may take soon. Left free in the same way.
    pub reserve_bytes: u64,
}

impl DriverPart {
    /// All of it.
    fn most_bytes(self) -> u64 {
        self.bytes + self.guessed_bytes + self.reserve_bytes
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Pager {
    config: PagerConfig,
    // Before the memory it copies to and from; drained on drop.
    engine: Box<dyn CopyEngine>,
    tensors: Vec<Option<PagedTensor>>,
    ring: Ring,
    cache: Cache,
    // How weights are copied to host memory; None when none is.
    copies: Option<Copies>,
    // Slices to be fetched next; kept so that a pass allocates nothing.
    wanted: Vec<SliceId>,
    // The ring's slots, one of which a segment takes.
    slot_bytes: usize,
    // What one operation is known to read at once, though the plan did not foresee it.
    ring_bytes_min: u64,
    spill: Option<(Arc<StoreFile>, u64)>,
    // Bytes that the budget covers and that lie outside.
    outside_bytes: u64,
    driver: DriverPart,
    // By so much the smallest plan may exceed the user's budget, since the driver took more,
    // and the most of it that the user was told of.
    overrun_bytes: u64,
    overrun_told_bytes: u64,
    // Sizes have changed since the plan was made.
    stale: bool,
    // The user's budget, of which the one in effect may be a part.
    allowed_bytes: u64,
    // The smallest budget for the tensors as they were at the last plan, tried or made.
    least_bytes: u64,
    // The largest of those that were made.
    minimum_bytes: u64,
    // What has happened, since the first graph where not said otherwise.
    baseline: Counters,
    stalls: Stalls,
    prefetches: Prefetches,
    kv_pages: KvPages,
    ahead: VecDeque<(Ticket, u64)>,
    moves: Vec<Move>,
    layers_moved: (u64, u64),
    // Sentences for the user that nobody has asked for yet.
    notes: Vec<String>,
    // The system refuses to lock memory: said once, then not tried again.
    lock_refused: bool,
    // What was launched last on a device that computes by itself, until it is waited for.
    launched: Option<Fence>,
    // What the graph has under way there, in its order.
    underway: Vec<Underway>,
    // A write-back failed: states are no longer what the graph computed.
    lost: Option<String>,
    // What others of this process are told that it holds of a card. After the memory.
    holding: Option<Holding>,
}

impl Pager {
    /// A pager without tensors.
    pub fn new(config: PagerConfig, engine: Box<dyn CopyEngine>) -> Self {
        let allowed_bytes = config.budget_bytes;
        Self {
            config,
            engine,
            tensors: Vec::new(),
            ring: Ring::default(),
            cache: Cache::default(),
            copies: None,
            wanted: Vec::new(),
            slot_bytes: 0,
            ring_bytes_min: 0,
            spill: None,
            outside_bytes: 0,
            driver: DriverPart::default(),
            overrun_bytes: 0,
            overrun_told_bytes: 0,
            stale: false,
            allowed_bytes,
            least_bytes: 0,
            minimum_bytes: 0,
            baseline: Counters::default(),
            stalls: Stalls::default(),
            prefetches: Prefetches::default(),
            kv_pages: KvPages::default(),
            ahead: VecDeque::new(),
            moves: Vec::new(),
            layers_moved: (0, 0),
            notes: Vec::new(),
            lock_refused: false,
            launched: None,
            underway: Vec::new(),
            lost: None,
            holding: None,
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

    /// Whether the tensor is streamed.
    pub fn is_streamed(&self, id: TensorId) -> bool {
        matches!(self.tensor(id).place, Place::Streamed)
    }

    fn is_state(&self, id: TensorId) -> bool {
        self.tensor(id).state.is_some()
    }

    /// The group of a state; None for a weight.
    pub fn state_group(&self, id: TensorId) -> Option<GroupKey> {
        let tensor = self.tensor(id);
        tensor.state.as_ref().map(|_| tensor.spec.group)
    }

    /// The range of bytes that must be there for a use of `range`: weights travel whole,
    /// states in the pages that are used.
    pub fn unit_of_transfer(&self, id: TensorId, range: &Range<usize>) -> Range<usize> {
        let tensor = self.tensor(id);
        match &tensor.state {
            None => 0..tensor.spec.span_bytes,
            Some(state) => state.pages_around(range),
        }
    }

    /// Whether the inner device cannot be told of a tensor that begins before its buffer,
    /// even if the rows in use are in there.
    pub fn counts_from_base(&self) -> bool {
        self.config.arena.counts_from_base()
    }

    /// Bytes of the ring that a range of a tensor takes.
    pub fn ring_bytes_of(&self, id: TensorId, range: &Range<usize>) -> usize {
        let tensor = self.tensor(id);
        match &tensor.state {
            None => self.arena_bytes(&tensor.spec),
            Some(_) => {
                let bytes = range.len() + tensor.spec.read_behind_bytes;
                bytes.next_multiple_of(self.config.alignment)
            }
        }
    }

    /// The ring's size, and how much of it one segment should take at most, so that the
    /// next one fits beside it.
    pub fn ring_shape(&self) -> (usize, usize) {
        let bytes = self.ring.bytes();
        (bytes, self.slot_bytes.min(bytes))
    }

    /// How far from a multiple of the alignment the tensor begins.
    fn lead(&self, spec: &TensorSpec) -> usize {
        match &spec.backing {
            Backing::Weight(location) if self.config.arena.is_read_into() => {
                let alignment = self.config.alignment as u64;
                usize::try_from(location.offset % alignment).expect("less than the alignment")
            }
            Backing::Weight(_) | Backing::State { .. } => 0,
        }
    }

    /// Bytes that a tensor takes in the arena: of a state, when it is in use as a whole.
    fn arena_bytes(&self, spec: &TensorSpec) -> usize {
        let unit = match spec.slice_bytes {
            // In the cache, memory comes and goes in pages.
            Some(_) => slices::page_bytes(),
            None => self.config.alignment,
        };
        let bytes = self.lead(spec) + spec.bytes.max(spec.span_bytes);
        bytes.next_multiple_of(unit.max(self.config.alignment))
    }

    /// Bytes that a tensor takes of the budget.
    fn budget_bytes_of(&self, tensor: &PagedTensor) -> u64 {
        let (arena, alignment) = (&self.config.arena, self.config.alignment);
        let bytes = self.arena_bytes(&tensor.spec);
        let bytes = match &tensor.state {
            Some(state) if !state.whole => {
                let needed = arena.state_bytes(bytes, state.bytes_in_use(), alignment);
                match &tensor.place {
                    // There may be more: of a growth that failed elsewhere.
                    Place::Resident(block, _) => needed.max(block.mapped_bytes()),
                    _ => needed,
                }
            }
            _ => arena.own_block_bytes(bytes),
        };
        bytes as u64
    }

    /// Notes that a graph uses the tensor up to `end`, in bytes from its start.
    pub fn note_use(&mut self, id: TensorId, end: usize) {
        let grew = match &mut self.tensor_mut(id).state {
            Some(state) => state.extend(end),
            None => false,
        };
        self.stale |= grew;
    }

    /// Notes that a graph writes a range of a resident state.
    pub fn note_written(&mut self, id: TensorId, range: &Range<usize>) {
        if let Some(state) = &mut self.tensor_mut(id).state {
            state.mark_written(range);
        }
    }

    /// Where the tensor's first byte is now (or would be, when only a part of it is in the
    /// ring), and the inner buffer it lies in.
    ///
    /// # Panics
    /// When the tensor is streamed and nobody has required it.
    pub fn locate(&self, id: TensorId) -> (usize, RawBuffer) {
        let tensor = self.tensor(id);
        match &tensor.place {
            Place::Nowhere => panic!("a tensor is used before it was planned"),
            Place::Resident(block, offset) | Place::Cached(block, offset) => {
                (block.address(*offset), block.buffer())
            }
            Place::Streamed => {
                let held = self.ring.pinned(id);
                let held = held.expect("a streamed tensor in use is in the ring");
                let block = self.ring.block().expect("what is held is in a block");
                let place = held.need.at + self.lead(&tensor.spec);
                let start = block.address(place);
                (start.wrapping_sub(held.need.range.start), block.buffer())
            }
        }
    }

    /// Counts from now on; what was before belongs to loading.
    pub fn start_counting(&mut self) {
        self.baseline = self.engine.counters();
        self.stalls = Stalls::default();
        self.prefetches = Prefetches::default();
        self.kv_pages = KvPages::default();
        self.layers_moved = (0, 0);
    }

    /// Sentences that the user should read, each given once.
    pub fn notices(&mut self) -> Vec<String> {
        let mut notices = self.engine.notices();
        notices.append(&mut self.notes);
        notices
    }

    /// What the plans made since this was last asked did.
    pub fn take_moves(&mut self) -> Vec<Move> {
        std::mem::take(&mut self.moves)
    }

    /// Whether copies over a link begin and end in pinned memory; None where there is no link.
    pub fn is_pinned(&self) -> Option<bool> {
        self.engine.is_pinned()
    }

    /// Sizes and counters at this moment.
    pub fn usage(&self) -> Usage {
        let mut usage = Usage {
            budget_bytes: self.config.budget_bytes,
            minimum_bytes: self.minimum_bytes,
            arena_bytes: (self.ring.bytes() + self.cache.used_bytes()) as u64
                + self.outside_bytes
                + self.driver.bytes,
            ring_bytes: self.ring.bytes() as u64,
            outside_bytes: self.outside_bytes,
            driver_bytes: self.driver.bytes,
            layers_evicted: self.layers_moved.0,
            layers_loaded: self.layers_moved.1,
            kv_pages: self.kv_pages,
            prefetches: self.prefetches,
            expert_hits: self.cache.counts.hits,
            expert_misses: self.cache.counts.misses,
            stalls: self.stalls,
            traffic: since(self.engine.counters(), self.baseline),
            ..Usage::default()
        };
        let done = |(ticket, _): &&(Ticket, u64)| self.engine.is_done(*ticket);
        let arrived: u64 = self
            .ahead
            .iter()
            .take_while(done)
            .map(|(_, count)| count)
            .sum();
        usage.prefetches.pending -= arrived.min(usage.prefetches.pending);
        usage.prefetches.completed += arrived;
        let mut layers: Vec<(GroupKey, bool)> = Vec::new();
        for id in self.ids() {
            let tensor = self.tensor(id);
            let streamed = match tensor.place {
                Place::Streamed => true,
                Place::Cached(..) => self.count_cached(id, &mut usage),
                Place::Nowhere | Place::Resident(..) => false,
            };
            if !self.is_cached(id) {
                self.count_tensor(tensor, streamed, &mut usage);
            }
            layers.push((tensor.spec.group, streamed));
        }
        self.count_left_for_driver(&mut usage);
        layers.retain(|(key, _)| *key != GroupKey::Shared);
        layers.sort_unstable();
        for layer in layers.chunk_by(|a, b| a.0 == b.0) {
            usage.layers += 1;
            usage.resident_layers += u32::from(layer.iter().all(|(_, streamed)| !streamed));
        }
        usage
    }

    /// Counts a cached tensor; whether any of it is absent.
    fn count_cached(&self, id: TensorId, usage: &mut Usage) -> bool {
        let there = self.cache.bytes_there(id);
        let absent = self.tensor(id).spec.span_bytes - there;
        usage.resident_weight_bytes += there as u64;
        usage.streamed_weight_bytes += absent as u64;
        absent > 0
    }

    fn count_tensor(&self, tensor: &PagedTensor, streamed: bool, usage: &mut Usage) {
        if !streamed {
            usage.arena_bytes += self.budget_bytes_of(tensor);
        }
        let (bytes, pages) = match &tensor.state {
            None => (tensor.spec.span_bytes as u64, 0),
            Some(state) => (state.bytes_in_use() as u64, state.pages_written()),
        };
        let sum = match (tensor.state.is_some(), streamed) {
            (false, false) => &mut usage.resident_weight_bytes,
            (false, true) => &mut usage.streamed_weight_bytes,
            (true, false) => &mut usage.resident_state_bytes,
            (true, true) => &mut usage.streamed_state_bytes,
        };
        *sum += bytes;
        if streamed {
            usage.kv_pages.stored += pages;
        } else {
            usage.kv_pages.resident += pages;
        }
    }
}

fn since(now: Counters, then: Counters) -> Traffic {
    Traffic {
        storage_bytes: now.storage_bytes - then.storage_bytes,
        link_bytes: now.link_bytes - then.link_bytes,
        staged_bytes: now.staged_bytes - then.staged_bytes,
        write_back_bytes: now.write_back_bytes - then.write_back_bytes,
        storage_seconds: now.storage_seconds - then.storage_seconds,
        link_seconds: now.link_seconds - then.link_seconds,
        write_back_seconds: now.write_back_seconds - then.write_back_seconds,
    }
}
