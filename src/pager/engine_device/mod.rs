#![allow(unsafe_code, reason = "copies of a device are told of addresses")]
//! The copy engine of an arena in a device's memory: copies cross the link on a stream of
//! their own while the device computes, and neither the host nor that stream waits for
//! what need not be waited for.
//!
//! ```text
//!  DeviceEngine     what the pager sees: submit, arrival, wait, counters
//!    │ requests                              ▲ progress, arrivals.rs: tickets and fences
//!  Reader           one thread; has files read (engine_host) into staging.rs or kept.rs
//!    │ step.rs                               ▲ free places, landings.rs
//!  Queue            one thread; owns the link, queues in order, says what has come
//!    │ link.rs
//!  a stream of the device: ggml_link.rs, cuda_link.rs
//! ```
//!
//! - **Order** is the order of the stream. What passes it by is waited for: bytes that come
//!   out of the device and go to a file, or to memory that the device cannot write while it
//!   computes, *land* when their event has come, and who reads them there waits for that.
//! - **Files** are read into staging memory, or, as long as there is room, once and for all
//!   into memory that keeps them (`kept.rs`): later copies of the same bytes only cross the
//!   link.
//! - **Counters**: bytes from a file count as *storage* when they are read and as *link*
//!   each time they cross it. The time a copy waits in the stream for what computes is time
//!   of the link.

mod arrivals;
pub mod cuda_link;
mod ggml_link;
mod kept;
mod landings;
pub mod link;
mod queue;
mod reader;
mod staging;
mod step;
#[cfg(test)]
mod tests;
mod words;

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, bounded, unbounded};

use self::arrivals::Arrivals;
pub use self::cuda_link::CudaLink;
pub use self::ggml_link::GgmlLink;
use self::kept::{Kept, SLAB_BYTES};
use self::landings::Landings;
use self::link::Link;
use self::queue::Queue;
use self::reader::Reader;
use self::staging::Staging;
use super::engine::{Copy, CopyEngine, Counters, Failure, Request, Ticket};
use super::engine_host::progress::Progress;
use super::engine_host::tickets::Tickets;
use super::engine_host::{Faults, HostEngine};
use super::memory::HostMemory;
use super::room::Room;
use super::storage::BLOCK_BYTES;
use crate::ggml::Fence;

/// Bytes of a place of the staging memory: long enough that a copy is at the link's full
/// speed, and as much as the reader of files has under way at once.
const PLACE_BYTES: usize = 8 << 20;
/// Places: half of them are being filled while the other half is on its way.
const PLACES: usize = 8;
/// How many steps the reader may be ahead of the queue.
const STEPS_MAX: usize = 256;

/// Sizes that an engine works with; tests take small ones.
#[derive(Clone, Copy, Debug)]
struct Tuning {
    /// Bytes of a place, a multiple of `BLOCK_BYTES`, at least two of them.
    place_bytes: usize,
    /// Places, at least two.
    places: usize,
    /// Bytes of memory taken at once for what is kept, a multiple of `BLOCK_BYTES`.
    slab_bytes: usize,
}

const TUNING: Tuning = Tuning {
    place_bytes: PLACE_BYTES,
    places: PLACES,
    slab_bytes: SLAB_BYTES,
};

/// How an engine is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Threads that copy between host memories, at least one.
    pub workers: usize,
    /// What goes wrong.
    pub faults: Faults,
    /// Room in host memory for bytes of the model that were read once.
    pub keep: Arc<Room>,
}

/// Threads that copy over a link to a device.
#[derive(Debug)]
pub struct DeviceEngine {
    // None only while it is dropped.
    requests: Option<Sender<(Ticket, Request)>>,
    threads: Vec<JoinHandle<()>>,
    tickets: Tickets,
    reads: Arc<Progress>,
    arrivals: Arc<Arrivals>,
}

impl DeviceEngine {
    /// Starts an engine on `link`.
    ///
    /// # Errors
    /// A sentence, when the system refuses memory or a thread.
    pub fn new(link: Box<dyn Link>, setup: Setup) -> Result<Self, String> {
        Self::tuned(link, setup, TUNING)
    }

    fn tuned(link: Box<dyn Link>, setup: Setup, tuning: Tuning) -> Result<Self, String> {
        assert!(tuning.places >= 2 && tuning.place_bytes >= 2 * BLOCK_BYTES);
        let no_thread = |error| format!("could not start a copy thread ({error})");
        let faults = setup.faults;
        let progress = Arc::new(Progress::default());
        let memory = staging_memory(link.as_ref(), &tuning, &progress)?;
        let host = HostEngine::new(setup.workers, faults_of_reads(faults)).map_err(no_thread)?;
        let reads = host.progress();
        let arrivals = Arc::new(Arrivals::default());
        let landings = Arc::new(Landings::default());
        let (requests, inbox) = unbounded();
        let (step_sender, steps) = bounded(STEPS_MAX);
        let (tickets, recycle) = Tickets::new(Arc::clone(&progress), faults);
        let (free_places, free) = bounded(tuning.places);
        let (failed_reads, failed) = unbounded();
        (0..tuning.places)
            .try_for_each(|place| free_places.send(place))
            .map_err(|error| error.to_string())?;
        let reader = Reader::new(reader::Parts {
            inbox,
            steps: step_sender,
            host,
            staging: Staging::new(memory, tuning.place_bytes, free),
            kept: Kept::new(setup.keep, tuning.slab_bytes),
            pinning: link.pinning(),
            landings: Arc::clone(&landings),
            failed_reads: failed,
            progress: Arc::clone(&progress),
            faults,
        });
        let queue = Queue::new(queue::Parts {
            link,
            steps,
            reads: Arc::clone(&reads),
            failed_reads,
            free_places,
            uploads_max: tuning.places / 2,
            landings,
            arrivals: Arc::clone(&arrivals),
            progress,
            recycle,
            faults,
        });
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let threads = vec![
            thread("rpaged-link")
                .spawn(move || queue.run())
                .map_err(no_thread)?,
            thread("rpaged-stage")
                .spawn(move || reader.run())
                .map_err(no_thread)?,
        ];
        Ok(Self {
            requests: Some(requests),
            threads,
            tickets,
            reads,
            arrivals,
        })
    }
}

/// Memory for the staging, pinned where the device has such.
fn staging_memory(
    link: &dyn Link,
    tuning: &Tuning,
    progress: &Progress,
) -> Result<Arc<HostMemory>, String> {
    let bytes = tuning.place_bytes * tuning.places;
    let memory = link.pinning().pinned(bytes).or_else(|why| {
        progress.lock().notices.push(words::not_pinned(&why));
        let mib = bytes >> 20;
        HostMemory::new(bytes).map_err(|error| {
            format!(
                "could not get {mib} MiB to stage copies in ({error}); free some, or add --device \
                 none"
            )
        })
    });
    memory.map(Arc::new)
}

/// What may go wrong with reads; the rest is told to others, by request.
fn faults_of_reads(faults: Faults) -> Faults {
    Faults {
        fail_request: None,
        refuse_request: None,
        failed_read: None,
        full_disk: None,
        bytes_per_second: None,
        ..faults
    }
}

impl CopyEngine for DeviceEngine {
    fn submit(&mut self, request: Request) -> Result<Ticket, (String, Request)> {
        let requests = self.requests.as_ref().expect("it is not being dropped");
        let ended = Arc::clone(self.tickets.progress());
        self.tickets.submit(request, |ticket, request| {
            requests.send((ticket, request)).map_err(|refused| {
                let state = ended.lock();
                let sentence = state.ended.as_deref();
                let sentence = sentence.unwrap_or("the copy thread has ended");
                (sentence.to_owned(), refused.0.1)
            })
        })
    }

    fn wait(&self, ticket: Ticket) -> Result<(), Failure> {
        self.tickets.wait(ticket)
    }

    fn arrival(&self, ticket: Ticket) -> Result<Option<Fence>, Failure> {
        let (progress, written_back) = (self.tickets.progress(), self.tickets.written_back());
        self.arrivals.wait(progress, ticket, written_back)
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
        let counters = self.tickets.progress().lock().counters();
        Counters {
            // What comes from files crosses the link, then or later: it comes into the arena
            // as that.
            staged_bytes: counters.storage_bytes,
            storage_seconds: self.reads.lock().counters().storage_seconds,
            ..counters
        }
    }

    fn notices(&mut self) -> Vec<String> {
        let mut notices = std::mem::take(&mut self.tickets.progress().lock().notices);
        notices.append(&mut self.reads.lock().notices);
        notices
    }
}

impl Drop for DeviceEngine {
    fn drop(&mut self) {
        // The reader ends when no more requests can come, and the queue after it.
        drop(self.requests.take());
        for thread in self.threads.drain(..) {
            // A panic there has been turned into failures already.
            let _ = thread.join();
        }
    }
}
