#![allow(unsafe_code, reason = "copies of a device are told of addresses")]
//! The copy engine of an arena in a device's memory: copies cross the link on two streams
//! of their own, one in each direction, while the device computes, and neither the host nor
//! those streams wait for what need not be waited for.
//!
//! ```text
//!  DeviceEngine     what the pager sees: submit, arrival, wait, counters
//!    │ requests                              ▲ progress, requests.rs: tickets and fences
//!  Reader           one thread; has files read (engine_host) into staging.rs or kept.rs
//!    │ outbox.rs: steps, and the waits between the streams
//!    ├──────────────────────────┐            ▲ free places, lane.rs: how far each one is
//!  Queue (in)                 Queue (out)    a thread each; owns a link, queues in order,
//!    │ link.rs                  │            says what has come
//!  a stream of the device     another one    ggml_link.rs, cuda_link.rs
//! ```
//!
//! - **Order** is that of each stream, and between the two that of events, where copies
//!   conflict: what is fetched into a place that is still being written back waits for that
//!   and what is fetched elsewhere does not. Bytes that come out of the device and go to a
//!   file, or to memory that the device cannot write while it computes, *land* when their
//!   event has come; who reads them there waits for that. A device that gives no further
//!   stream has one for both directions.
//! - **Tickets** complete in order. What a fetch brings may be there before an earlier
//!   write-back is done, and `arrival` says so.
//! - **Files** are read into staging memory, or, as long as there is room, once and for all
//!   into memory that keeps them (`kept.rs`): later copies of the same bytes only cross the
//!   link.
//! - **Counters**: bytes from a file count as *storage* when they are read and as *link*
//!   each time they cross it. The time a copy waits in the stream for what computes is time
//!   of the link.

pub mod cuda_link;
mod ending;
mod ggml_link;
mod kept;
mod lane;
pub mod link;
mod outbox;
mod queue;
mod reader;
mod requests;
mod staging;
mod step;
#[cfg(test)]
mod tests;
mod words;

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

pub use self::cuda_link::CudaLink;
use self::ending::Ending;
pub use self::ggml_link::GgmlLink;
use self::kept::{Kept, SLAB_BYTES};
use self::lane::Lane;
use self::link::Link;
use self::outbox::{Outbox, Sink};
use self::queue::Queue;
use self::reader::Reader;
use self::requests::Requests;
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
/// Places for what comes out: rows that were just written are few bytes.
const PLACES_OUT: usize = 2;
/// How many steps the reader may be ahead of a queue.
const STEPS_MAX: usize = 256;

/// Sizes that an engine works with; tests take small ones.
#[derive(Clone, Copy, Debug)]
struct Tuning {
    /// Bytes of a place, a multiple of `BLOCK_BYTES`, at least two of them.
    place_bytes: usize,
    /// Places, at least two.
    places: usize,
    /// Further places, for what comes out on a stream of its own, at least two.
    places_out: usize,
    /// Bytes of memory taken at once for what is kept, a multiple of `BLOCK_BYTES`.
    slab_bytes: usize,
}

const TUNING: Tuning = Tuning {
    place_bytes: PLACE_BYTES,
    places: PLACES,
    places_out: PLACES_OUT,
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
    open: Arc<Requests>,
    is_pinned: bool,
}

/// Places of the staging memory that one stream uses.
struct Places {
    count: usize,
    free: Receiver<usize>,
    freed: Sender<usize>,
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
        assert!(tuning.places_out >= 2);
        let faults = setup.faults;
        let progress = Arc::new(Progress::default());
        let links = links_of(link, &progress);
        let (memory, places) = staging_of(&links, &tuning, &progress)?;
        let is_pinned = memory.is_pinned();
        let host = HostEngine::new(setup.workers, faults_of_reads(faults)).map_err(no_thread)?;
        let reads = host.progress();
        let open = Arc::new(Requests::new(Arc::clone(&progress)));
        let (requests, inbox) = unbounded();
        let (tickets, recycle) = Tickets::new(Arc::clone(&progress), faults);
        let (failed_reads, failed) = unbounded();
        let (has_ended, ended) = bounded(1);
        let lanes: Vec<Arc<Lane>> = links.iter().map(|_| Arc::default()).collect();
        let endings = Ending::of(&lanes, &progress, &open, has_ended);
        let pinning = links[0].pinning();
        let mut staging = places
            .iter()
            .map(|places| Staging::new(&memory, tuning.place_bytes, places.free.clone()));
        let (staging, staging_out) = (staging.next(), staging.next());
        let (mut queues, mut sinks) = (Vec::new(), Vec::new());
        let parts = links.into_iter().zip(places).zip(endings);
        for (index, ((link, places), ending)) in parts.enumerate() {
            let (steps, handed) = bounded(STEPS_MAX);
            let lane = Arc::clone(&lanes[index]);
            let other = lanes.get(1 - index).filter(|_| lanes.len() > 1);
            sinks.push(Sink {
                steps,
                lane: Arc::clone(&lane),
            });
            queues.push(Queue::new(queue::Parts {
                link,
                steps: handed,
                lane,
                other: other.map(Arc::clone),
                reads: Arc::clone(&reads),
                failed_reads: failed_reads.clone(),
                free_places: places.freed,
                uploads_max: places.count / 2,
                recycle: recycle.clone(),
                faults: faults_of_stream(faults, index),
                ending,
            }));
        }
        let reader = Reader::new(reader::Parts {
            inbox,
            ended,
            outbox: Outbox::new(sinks, Arc::clone(&open)),
            host,
            staging: staging.ok_or("no stream copies")?,
            staging_out,
            kept: Kept::new(setup.keep, tuning.slab_bytes),
            pinning,
            failed_reads: failed,
            progress,
            faults,
        });
        let threads = start(queues, reader)?;
        Ok(Self {
            requests: Some(requests),
            threads,
            tickets,
            reads,
            open,
            is_pinned,
        })
    }
}

/// Starts the threads of an engine.
fn start(queues: Vec<Queue>, reader: Reader) -> Result<Vec<JoinHandle<()>>, String> {
    let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
    let mut threads = Vec::new();
    for (queue, name) in queues.into_iter().zip(["rpaged-link", "rpaged-back"]) {
        let running = thread(name).spawn(move || queue.run());
        threads.push(running.map_err(no_thread)?);
    }
    let running = thread("rpaged-stage").spawn(move || reader.run());
    threads.push(running.map_err(no_thread)?);
    Ok(threads)
}

fn no_thread(error: std::io::Error) -> String {
    format!("could not start a copy thread ({error})")
}

/// The link, for what comes in, and another one for what goes out, where there is one.
fn links_of(link: Box<dyn Link>, progress: &Progress) -> Vec<Box<dyn Link>> {
    match link.another() {
        Ok(another) => vec![link, another],
        Err(why) => {
            progress.lock().notices.push(words::one_stream(&why));
            vec![link]
        }
    }
}

/// Staging memory, pinned where the device has such, and the places in it for each link.
fn staging_of(
    links: &[Box<dyn Link>],
    tuning: &Tuning,
    progress: &Progress,
) -> Result<(Arc<HostMemory>, Vec<Places>), String> {
    let counts = &[tuning.places, tuning.places_out][..links.len()];
    let all: usize = counts.iter().sum();
    let memory = staging_memory(links[0].as_ref(), tuning.place_bytes * all, progress)?;
    let mut next = 0;
    let mut places = Vec::new();
    for &count in counts {
        let (freed, free) = bounded(count);
        (next..next + count)
            .try_for_each(|place| freed.send(place))
            .map_err(|error| error.to_string())?;
        next += count;
        places.push(Places { count, free, freed });
    }
    Ok((memory, places))
}

/// Memory for the staging, pinned where the device has such.
fn staging_memory(
    link: &dyn Link,
    bytes: usize,
    progress: &Progress,
) -> Result<Arc<HostMemory>, String> {
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

/// What may go wrong on a stream: each dawdles in its own way.
fn faults_of_stream(faults: Faults, index: usize) -> Faults {
    let seed = faults.delay_seed;
    Faults {
        delay_seed: seed.map(|seed| seed.rotate_left(17 * u32::from(index > 0))),
        ..faults
    }
}

impl CopyEngine for DeviceEngine {
    fn submit(&mut self, request: Request) -> Result<Ticket, (String, Request)> {
        let requests = self.requests.as_ref().expect("it is not being dropped");
        let open = &self.open;
        self.tickets.submit(request, |ticket, request| {
            requests.send((ticket, request)).map_err(|refused| {
                let why = open.why_ended();
                let why = why.unwrap_or_else(|| "the copy thread has ended".to_owned());
                (why, refused.0.1)
            })
        })
    }

    fn wait(&self, ticket: Ticket) -> Result<(), Failure> {
        self.tickets.wait(ticket)
    }

    fn arrival(&self, ticket: Ticket) -> Result<Option<Fence>, Failure> {
        self.open.arrival(ticket, self.tickets.written_back())
    }

    fn is_pinned(&self) -> Option<bool> {
        Some(self.is_pinned)
    }

    fn await_arrival(&self, ticket: Ticket) -> Result<(), Failure> {
        self.open.wait(ticket, self.tickets.written_back())
    }

    fn has_arrived(&self, ticket: Ticket) -> bool {
        self.open.has_arrived(ticket)
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
        // The reader ends when no more requests can come, and the queues after it.
        drop(self.requests.take());
        for thread in self.threads.drain(..) {
            // A panic there has been turned into failures already.
            let _ = thread.join();
        }
    }
}
