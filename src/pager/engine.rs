//! The contract of a copy engine: what moves bytes between the backing store and the
//! arena while the inner backend computes.

use std::ops::Range;
use std::sync::Arc;

use super::memory::{HostMemory, ModelFile};

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
    /// A part of the model, at an offset in bytes.
    File {
        /// The part.
        file: Arc<ModelFile>,
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
    /// No bytes at all: the destination is filled with this value. Not counted as moved.
    Pattern(u8),
}

/// One contiguous copy.
#[derive(Clone, Debug)]
pub struct Copy {
    /// Where the bytes come from.
    pub from: Source,
    /// The memory they go to.
    pub to: Arc<HostMemory>,
    /// The range they go to, in bytes; its length is the length of the copy.
    pub range: Range<usize>,
}

/// Copies that belong together. The request owns, by reference counts, everything it
/// touches until it is done.
#[derive(Debug)]
pub struct Request {
    /// Which counter the bytes belong to.
    pub direction: Direction,
    /// The copies, done in this order.
    pub copies: Vec<Copy>,
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
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counters {
    /// Bytes copied into the arena.
    pub bytes_in: u64,
    /// Bytes copied out of the arena.
    pub bytes_out: u64,
    /// Time spent copying, in seconds.
    pub copy_seconds: f64,
    /// Requests that failed.
    pub failed: u64,
}

/// Moves bytes asynchronously, like a stream of a GPU:
///
/// - requests run in the order of submission: a request begins after the one before it
///   has finished, so a write-back and the fetch that reuses its slot need no wait
///   between them;
/// - between `submit` and the completion of its ticket the destination of a request is
///   undefined, and neither side may be touched by anybody else;
/// - a failed request leaves its destination undefined; later requests still run. The
///   failure is reported by every `wait` for its ticket or a later one, until
///   `forget_failures` is called;
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

    /// The newest ticket given out; waiting for it drains the engine.
    fn newest(&self) -> Ticket;

    /// Forgets all failures; gives the oldest failed write-back, whose bytes are lost.
    fn forget_failures(&mut self) -> Option<Failure>;

    /// A vector for the next request's copies, recycled from a finished one where there
    /// is one, so that a pass allocates nothing.
    fn recycled(&mut self) -> Vec<Copy>;

    /// What has been done so far.
    fn counters(&self) -> Counters;
}
