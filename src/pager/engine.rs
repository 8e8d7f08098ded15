//! The contract of a copy engine: what moves bytes between the backing store and the
//! arena while the inner backend computes.

use std::sync::Arc;

use super::memory::HostMemory;
use super::storage::StoreFile;
use crate::ggml::{DeviceBuffer, Fence};

/// Names a request; tickets grow, and a smaller one finishes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// Which way a request moves bytes, seen from the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the backing store into the arena.
    In,
    /// From the arena into the backing store (write-back).
    Out,
}

/// Where the bytes of a copy come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file, at an offset in bytes.
    File {
        /// The file.
        file: Arc<StoreFile>,
        /// Where the bytes begin in it.
        offset: u64,
    },
    /// Host memory, at an offset in bytes.
    Memory {
        /// The memory.
        memory: Arc<HostMemory>,
        /// Where the bytes begin in it.
        offset: usize,
    },
    /// Memory of the inner device, at an offset in bytes.
    Device {
        /// The memory.
        memory: Arc<DeviceBuffer>,
        /// Where the bytes begin in it.
        offset: usize,
    },
    /// No bytes at all: the destination is filled with this value. Not counted as moved.
    Pattern(u8),
}

/// Where the bytes of a copy go to.
#[derive(Clone, Debug)]
pub enum Target {
    /// Host memory, at an offset in bytes.
    Memory {
        /// The memory.
        memory: Arc<HostMemory>,
        /// Where the bytes begin in it.
        offset: usize,
    },
    /// Memory of the inner device, at an offset in bytes.
    Device {
        /// The memory.
        memory: Arc<DeviceBuffer>,
        /// Where the bytes begin in it.
        offset: usize,
    },
    /// A file, at an offset in bytes.
    File {
        /// The file.
        file: Arc<StoreFile>,
        /// Where the bytes begin in it.
        offset: u64,
    },
}

/// An object and an offset in it. Two that live at the same time have different addresses,
/// which tell them apart.
fn place_in<T>(object: &Arc<T>, offset: u64) -> (usize, u64) {
    (Arc::as_ptr(object).addr(), offset)
}

impl Source {
    /// Which object the bytes lie in, and where; None when there are none.
    pub(super) fn place(&self) -> Option<(usize, u64)> {
        match self {
            Self::File { file, offset } => Some(place_in(file, *offset)),
            Self::Memory { memory, offset } => Some(place_in(memory, *offset as u64)),
            Self::Device { memory, offset } => Some(place_in(memory, *offset as u64)),
            Self::Pattern(_) => None,
        }
    }
}

impl Target {
    /// Which object the bytes go to, and where in it.
    pub(super) fn place(&self) -> (usize, u64) {
        match self {
            Self::File { file, offset } => place_in(file, *offset),
            Self::Memory { memory, offset } => place_in(memory, *offset as u64),
            Self::Device { memory, offset } => place_in(memory, *offset as u64),
        }
    }
}

/// One contiguous copy.
#[derive(Clone, Debug)]
pub struct Copy {
    /// Where the bytes come from.
    pub from: Source,
    /// Where they go to.
    pub to: Target,
    /// How many there are.
    pub bytes: usize,
    /// The rest of the blocks (of `BLOCK_BYTES`) that the destination's first and last
    /// byte lie in belongs to the copy too, and may be overwritten with anything. A file
    /// read past the page cache then needs no second copy, if destination and source lie
    /// at the same place in their blocks. Where the rest is a neighbour's (an expert's in
    /// the cache), both lie like in the file, so that what comes is what is there; nobody
    /// may use the neighbour meanwhile either.
    pub whole_blocks: bool,
}

/// Copies that belong together. The request owns, by reference counts, everything it
/// touches until it is done.
#[derive(Debug)]
pub struct Request {
    /// Which counter the bytes belong to.
    pub direction: Direction,
    /// The copies; they appear to be done in this order.
    pub copies: Vec<Copy>,
    /// What the device computes before this comes first: it uses what the copies write, or
    /// makes what they read. None when nothing computes meanwhile.
    pub after: Option<Fence>,
}

/// A request that was submitted and could not be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct Failure {
    /// Which request.
    pub ticket: Ticket,
    /// Which way it was to move bytes; a failed write-back has lost bytes.
    pub direction: Direction,
    /// What happened.
    pub sentence: String,
}

/// What an engine has done so far.
///
/// *Storage* is `Direction::In` from files, *link* is `Direction::In` from memory,
/// *write-back* is `Direction::Out`. Where a link leads to the arena, what comes from a
/// file crosses it too: such bytes are *link* each time, and *storage* when they are read,
/// which is once if the engine keeps them. Bytes are those that requests asked for, counted when
/// their request is done without failure. Seconds are the time during which at least one
/// such copy was being done, so bytes divided by seconds is a rate.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counters {
    /// Bytes read from files.
    pub storage_bytes: u64,
    /// Bytes copied into the arena from host memory.
    pub link_bytes: u64,
    /// Bytes that are counted as both: they were read from files and then crossed the link.
    pub staged_bytes: u64,
    /// Bytes copied out of the arena.
    pub write_back_bytes: u64,
    /// Time spent reading files, in seconds.
    pub storage_seconds: f64,
    /// Time spent copying from host memory, in seconds; on a device, with the time that
    /// copies wait in its stream for what computes.
    pub link_seconds: f64,
    /// Time spent writing back, in seconds.
    pub write_back_seconds: f64,
    /// Requests that failed.
    pub failed: u64,
}

/// Moves bytes asynchronously, like a stream of a GPU:
///
/// - requests appear to run in the order of submission, and so do the copies of one: a
///   copy begins before an earlier one has finished only if neither writes what the other
///   reads or writes (the same `HostMemory` or `StoreFile` object and an overlapping
///   range, with whole blocks where the copy says so). So a write-back and the fetch that
///   reuses its slot need no wait between them, and fetches of different slots overlap;
/// - tickets complete in the order of submission;
/// - between `submit` and the completion of its ticket the destination of a request is
///   undefined and may not be touched by anybody else, nor may its source be written;
/// - a failed request leaves its destination undefined; later requests still run. The
///   failure is reported by every `wait` for its ticket or a later one, until
///   `forget_failures` is called;
/// - an engine that dies fails everything that is not done, at once and for good;
/// - `drop` finishes what was submitted.
pub trait CopyEngine: Send + std::fmt::Debug {
    /// Queues `request`.
    ///
    /// # Errors
    /// Gives the request back, with a sentence, when it cannot be queued.
    fn submit(&mut self, request: Request) -> Result<Ticket, (String, Request)>;

    /// Blocks until `ticket` is done.
    ///
    /// # Errors
    /// The oldest failure up to `ticket` that has not been forgotten.
    fn wait(&self, ticket: Ticket) -> Result<(), Failure>;

    /// What a computation on the device has to wait for, so that `ticket` and all before it
    /// in its direction are done before; None when they are. Those of the other direction
    /// are waited for only where they conflict with these. Blocks only until that is known:
    /// an engine whose copies the device itself can wait for gives a fence as soon as they
    /// are queued.
    ///
    /// # Errors
    /// As for `wait`, as far as failures are known by then.
    fn arrival(&self, ticket: Ticket) -> Result<Option<Fence>, Failure> {
        self.wait(ticket).map(|()| None)
    }

    /// Blocks until what `arrival` tells of has come, which may be sooner than `wait` says.
    ///
    /// # Errors
    /// As for `arrival`.
    fn await_arrival(&self, ticket: Ticket) -> Result<(), Failure> {
        self.wait(ticket)
    }

    /// Whether what `arrival` tells of has come, or will never. Never blocks.
    fn has_arrived(&self, ticket: Ticket) -> bool {
        self.is_done(ticket)
    }

    /// Whether `wait` for `ticket` would return without blocking: it is done, or will
    /// never be. Never blocks.
    fn is_done(&self, ticket: Ticket) -> bool;

    /// The newest ticket given out; waiting for it drains the engine.
    fn newest(&self) -> Ticket;

    /// Forgets all failures; gives the oldest failed write-back, whose bytes are lost.
    fn forget_failures(&mut self) -> Option<Failure>;

    /// A vector for the next request's copies, recycled from a finished one where there
    /// is one, so that a pass allocates nothing.
    fn recycled(&mut self) -> Vec<Copy>;

    /// What has been done so far.
    fn counters(&self) -> Counters;

    /// Whether copies over a link begin and end in pinned memory; None where there is no link.
    fn is_pinned(&self) -> Option<bool> {
        None
    }

    /// Sentences about what works in another way than was asked for, each given once: a
    /// file system that refuses to be read past the page cache.
    fn notices(&mut self) -> Vec<String>;
}
