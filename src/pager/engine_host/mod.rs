#![allow(unsafe_code, reason = "copies go to memory that is shared by address")]
//! The copy engine of a machine without a GPU: reads files, past the page cache where
//! that is asked for, and copies between host memories.
//!
//! ```text
//!  HostEngine       what the pager sees: submit, wait, counters; tickets.rs, its books
//!    │ mailbox (crew.rs)                    ▲ progress.rs
//!  Coordinator      one thread; takes requests in order, says when they are done
//!    │ order.rs     which copies may be done now
//!    ├─ ring.rs     direct reads by the kernel (io_uring); direct.rs is one of them
//!    ├─ crew.rs     threads: for direct reads without a ring, and for large copies
//!    └─ piece.rs    a piece of a copy, done at a stretch
//! ```

mod coordinator;
mod crew;
mod direct;
pub(super) mod faults;
pub(super) mod order;
pub(super) mod piece;
pub(super) mod progress;
#[cfg(target_os = "linux")]
mod ring;
#[cfg(not(target_os = "linux"))]
#[path = "no_ring.rs"]
mod ring;
#[cfg(test)]
mod tests;
pub(super) mod tickets;

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::unbounded;

use self::coordinator::{Coordinator, Parts};
use self::crew::{Event, Mailbox};
pub use self::faults::Faults;
use self::progress::Progress;
use self::ring::Ring;
use self::tickets::Tickets;
use super::engine::{Copy, CopyEngine, Counters, Failure, Request, Ticket};
use super::storage::BLOCK_BYTES;

/// Copies are cut into pieces of this size. A fast disk reads no faster in larger ones,
/// and each direct read that is not in place takes a buffer as large.
const PIECE_BYTES: usize = 1 << 20;
/// How many direct reads are under way at once. Two keep a disk busy if this thread is
/// woken at once; these do so, too, for the milliseconds in which all cores compute.
const READS_MAX: usize = 8;

/// Sizes that an engine works with; tests take small ones.
#[derive(Clone, Copy, Debug)]
struct Tuning {
    /// Bytes of a piece, a multiple of `BLOCK_BYTES`.
    piece_bytes: usize,
    /// Direct reads under way at once, at least one.
    reads_max: usize,
}

const TUNING: Tuning = Tuning {
    piece_bytes: PIECE_BYTES,
    reads_max: READS_MAX,
};

/// Threads that copy between files and host memory.
#[derive(Debug)]
pub struct HostEngine {
    mailbox: Mailbox,
    coordinator: Option<JoinHandle<()>>,
    tickets: Tickets,
}

impl HostEngine {
    /// Starts an engine with `workers` threads that copy, at least one. Direct reads do
    /// not count: they are the kernel's work, or of threads that mostly sleep.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn new(workers: usize, faults: Faults) -> std::io::Result<Self> {
        Self::tuned(workers, faults, TUNING)
    }

    fn tuned(workers: usize, faults: Faults, tuning: Tuning) -> std::io::Result<Self> {
        assert!(tuning.piece_bytes.is_multiple_of(BLOCK_BYTES) && tuning.piece_bytes > 0);
        let (events, inbox) = unbounded();
        let progress = Arc::new(Progress::default());
        let (tickets, recycle) = Tickets::new(Arc::clone(&progress), faults);
        // Not there in many containers: nobody is told, threads do the same.
        let ring = Ring::new(tuning.reads_max).ok().filter(|_| !faults.no_ring);
        let mailbox = Mailbox {
            events,
            bell: ring.as_ref().map(|ring| Arc::clone(ring.bell())),
        };
        let parts = Parts {
            inbox,
            mailbox: mailbox.clone(),
            ring,
            recycle,
            progress,
            faults,
            tuning,
        };
        let coordinator = Coordinator::new(parts, workers.max(1) - 1)?;
        let coordinator = std::thread::Builder::new()
            .name("rpaged-copy".to_owned())
            .spawn(move || coordinator.run())?;
        Ok(Self {
            mailbox,
            coordinator: Some(coordinator),
            tickets,
        })
    }

    /// Whether the kernel does the direct reads (io_uring), and not threads.
    pub fn has_ring(&self) -> bool {
        self.mailbox.bell.is_some()
    }

    /// What its threads tell, for those that wait for single requests elsewhere.
    pub(super) fn progress(&self) -> Arc<Progress> {
        Arc::clone(self.tickets.progress())
    }
}

impl CopyEngine for HostEngine {
    fn submit(&mut self, request: Request) -> Result<Ticket, (String, Request)> {
        self.tickets.submit(request, |ticket, request| {
            let posted = self.mailbox.post(Event::Submit(ticket, request));
            posted.map_err(|event| {
                let Event::Submit(_, request) = event else {
                    unreachable!("what was posted comes back");
                };
                ("the copy thread has ended".to_owned(), request)
            })
        })
    }

    fn wait(&self, ticket: Ticket) -> Result<(), Failure> {
        self.tickets.wait(ticket)
    }

    fn is_done(&self, ticket: Ticket) -> bool {
        self.tickets.is_done(ticket)
    }

    fn newest(&self) -> Ticket {
        self.tickets.newest()
    }

    fn forget_failures(&mut self) -> Option<Failure> {
        self.tickets.forget_failures()
    }

    fn recycled(&mut self) -> Vec<Copy> {
        self.tickets.recycled()
    }

    fn counters(&self) -> Counters {
        self.tickets.progress().lock().counters()
    }

    fn notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.tickets.progress().lock().notices)
    }
}

impl Drop for HostEngine {
    fn drop(&mut self) {
        // Refused only when there is no coordinator to be told.
        let _ = self.mailbox.post(Event::Close);
        if let Some(coordinator) = self.coordinator.take() {
            // A panic there has been turned into failures already.
            let _ = coordinator.join();
        }
    }
}
