#![allow(unsafe_code, reason = "copies go to memory that is shared by address")]
//! The copy engine of a machine without a GPU: reads files, past the page cache where
//! that is asked for, and copies between host memories.
//!
//! ```text
//!  HostEngine       what the pager sees: submit, wait, counters
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

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, bounded, unbounded};

use self::coordinator::{Coordinator, Parts};
use self::crew::{Event, Mailbox};
pub use self::faults::Faults;
use self::progress::Progress;
use self::ring::Ring;
use super::engine::{Copy, CopyEngine, Counters, Direction, Failure, Request, Ticket};
use super::storage::BLOCK_BYTES;

/// Copies are cut into pieces of this size. A fast disk reads no faster in larger ones,
/// and each direct read that is not in place takes a buffer as large.
const PIECE_BYTES: usize = 1 << 20;
/// How many direct reads are under way at once. Two keep a disk busy if this thread is
/// woken at once; these do so, too, for the milliseconds in which all cores compute.
const READS_MAX: usize = 8;
/// How many finished requests' vectors are kept for reuse.
pub(super) const RECYCLED_MAX: usize = 64;

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
    progress: Arc<Progress>,
    recycled: Receiver<Vec<Copy>>,
    submitted: u64,
    // The newest request that writes back; zero when there was none.
    written_back: Ticket,
    faults: Faults,
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
        let (recycle, recycled) = bounded(RECYCLED_MAX);
        let progress = Arc::new(Progress::default());
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
            progress: Arc::clone(&progress),
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
            progress,
            recycled,
            submitted: 0,
            written_back: Ticket(0),
            faults,
        })
    }

    /// Whether the kernel does the direct reads (io_uring), and not threads.
    pub fn has_ring(&self) -> bool {
        self.mailbox.bell.is_some()
    }

    /// What its threads tell, for those that wait for single requests elsewhere.
    pub(super) fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }
}

impl CopyEngine for HostEngine {
    fn submit(&mut self, request: Request) -> Result<Ticket, (String, Request)> {
        let ticket = Ticket(self.submitted + 1);
        if self.faults.refuse_request == Some(self.submitted) {
            self.faults.refuse_request = None;
            let sentence = "the copy engine refused a request, as it was told to";
            return Err((sentence.to_owned(), request));
        }
        let direction = request.direction;
        if let Err(event) = self.mailbox.post(Event::Submit(ticket, request)) {
            let Event::Submit(_, request) = event else {
                unreachable!("what was posted comes back");
            };
            return Err(("the copy thread has ended".to_owned(), request));
        }
        self.submitted += 1;
        if direction == Direction::Out {
            self.written_back = ticket;
        }
        Ok(ticket)
    }

    fn wait(&self, ticket: Ticket) -> Result<(), Failure> {
        let state = self.progress.wait(ticket);
        state.outcome(ticket, self.written_back)
    }

    fn is_done(&self, ticket: Ticket) -> bool {
        self.progress.is_settled(ticket)
    }

    fn newest(&self) -> Ticket {
        Ticket(self.submitted)
    }

    fn forget_failures(&mut self) -> Option<Failure> {
        self.progress.lock().forget_failures(self.written_back)
    }

    fn recycled(&mut self) -> Vec<Copy> {
        self.recycled.try_recv().unwrap_or_default()
    }

    fn counters(&self) -> Counters {
        self.progress.lock().counters()
    }

    fn notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.progress.lock().notices)
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
