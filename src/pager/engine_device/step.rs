//! What the reader hands to a queue, in the order in which it appears to be done.

use std::ops::Range;
use std::sync::Arc;

use super::super::engine::{Request, Target, Ticket};
use super::super::memory::HostMemory;
use crate::ggml::{DeviceBuffer, Fence};

/// See the module's documentation.
#[derive(Debug)]
pub enum Step {
    /// What follows belongs to this request, and comes after the fence.
    Begin(Ticket, Option<Fence>),
    /// A copy, or a part of one.
    Move(Move),
    /// An event is to be recorded behind what was handed on, which are the copies up to
    /// this number.
    Mark(u64),
    /// What follows comes after this copy of the other stream.
    Await(u64),
    /// No later move uses this place of the staging memory.
    Release(usize),
    /// No later move is of what this request of the reader's was to bring, which failed.
    Forget(Ticket),
    /// All that is this stream's part of the request was handed on; the rest of it is the
    /// other's.
    Leave,
    /// All of the request was handed on.
    End(Done),
    /// No more requests come.
    Close,
}

/// A copy, or a part of one. It owns what it touches.
#[derive(Debug)]
pub enum Move {
    /// Into the device's memory.
    In {
        /// Where the bytes are, or will be when `read` is done.
        from: Arc<HostMemory>,
        /// Where they begin in there.
        at: usize,
        /// Where they go to.
        to: Arc<DeviceBuffer>,
        /// Where they begin there.
        offset: usize,
        /// How many there are.
        bytes: usize,
        /// The reader's request that brings them to `from`.
        read: Option<Ticket>,
    },
    /// Out of the device's memory.
    Out {
        /// Where the bytes are.
        from: Arc<DeviceBuffer>,
        /// Where they begin in there.
        offset: usize,
        /// Where they go to.
        to: Arc<HostMemory>,
        /// Where they begin there.
        at: usize,
        /// How many there are.
        bytes: usize,
        /// Where they go from there.
        landing: Option<Target>,
    },
    /// The range of the device's memory becomes this value.
    Fill(Arc<DeviceBuffer>, Range<usize>, u8),
    /// Bytes of a file come into memory that nothing before has touched, by this request of
    /// the reader's.
    Read(Ticket),
    /// Everything later comes after this fence, which is held until then.
    After(#[expect(dead_code, reason = "it is only held")] Fence),
}

/// A request of which everything was handed on.
#[derive(Debug)]
pub struct Done {
    /// Its ticket.
    pub ticket: Ticket,
    /// The request itself: it owns what it touches until it is done.
    pub request: Request,
    /// Why not all of it was handed on.
    pub failed: Option<String>,
    /// Bytes it moves, by kind of counter.
    pub bytes: [u64; 3],
    /// The newest copy of the stream.
    pub number: u64,
}
