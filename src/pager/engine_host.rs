#![allow(unsafe_code, reason = "copies go to memory that is shared by address")]
//! The copy engine of a machine without a GPU: threads that read the model's files and
//! copy between host memories. One thread takes the requests in order; it shares out
//! the pieces of a request among the workers, itself included.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::engine::{
    Copy, CopyEngine, Counters, Direction, Failure, Request, Source, Target, Ticket,
};

/// Delays and failures that an engine is told to have; none by default.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// Seed of random delays before and after each request; None: no delays.
    pub delay_seed: Option<u64>,
    /// Upper bound of one delay, in microseconds.
    pub delay_us_max: u32,
    /// The request (counted from 0) that fails.
    pub fail_request: Option<u64>,
    /// The request (counted from 0) that is refused at submission.
    pub refuse_request: Option<u64>,
}

/// A copy is cut into pieces of this size when there are several workers.
const PIECE_BYTES: usize = 1 << 20;
/// How many finished requests' vectors are kept for reuse.
const RECYCLED_MAX: usize = 64;

/// Worker threads copying between files and host memory.
#[derive(Debug)]
pub struct HostEngine {
    // Closed first on drop, which ends the coordinator after what is queued.
    requests: Option<Sender<(Ticket, Request)>>,
    coordinator: Option<JoinHandle<()>>,
    progress: Arc<Progress>,
    recycled: Receiver<Vec<Copy>>,
    submitted: u64,
    faults: Faults,
}

#[derive(Debug, Default)]
struct Progress {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    done: Ticket,
    failures: Vec<Failure>,
    counters: Counters,
    // Set when the coordinator ends: nobody will finish what is left.
    ended: bool,
}

impl Progress {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while holding the lock is impossible: nothing in there calls out.
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl HostEngine {
    /// Starts an engine with `workers` threads, at least one.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn new(workers: usize, faults: Faults) -> std::io::Result<Self> {
        let (requests, queue) = unbounded();
        let (recycle, recycled) = bounded(RECYCLED_MAX);
        let progress = Arc::new(Progress::default());
        let team = Team::start(workers.max(1) - 1)?;
        let mut coordinator = Coordinator {
            queue,
            recycle,
            progress: Arc::clone(&progress),
            team,
            delays: faults
                .delay_seed
                .map(|seed| Delays::new(seed, faults.delay_us_max)),
            fail_request: faults.fail_request,
        };
        let coordinator = std::thread::Builder::new()
            .name("rpaged-copy".to_owned())
            .spawn(move || coordinator.run())?;
        Ok(Self {
            requests: Some(requests),
            coordinator: Some(coordinator),
            progress,
            recycled,
            submitted: 0,
            faults,
        })
    }
}

impl CopyEngine for HostEngine {
    fn submit(&mut self, request: Request) -> Result<Ticket, (String, Request)> {
        let ticket = Ticket(self.submitted + 1);
        if self.faults.refuse_request == Some(self.submitted) {
            self.faults.refuse_request = None;
            return Err((
                "the copy engine refused a request, as it was told to".into(),
                request,
            ));
        }
        let Some(requests) = &self.requests else {
            return Err(("the copy engine has ended".into(), request));
        };
        if let Err(refused) = requests.send((ticket, request)) {
            return Err(("the copy thread has ended".into(), refused.into_inner().1));
        }
        self.submitted += 1;
        Ok(ticket)
    }

    fn wait(&self, ticket: Ticket) -> Result<(), Failure> {
        let mut state = self.progress.lock();
        while state.done < ticket {
            if state.ended {
                let sentence = "the copy thread died".to_owned();
                return Err(Failure {
                    ticket,
                    direction: Direction::Out,
                    sentence,
                });
            }
            state = self
                .progress
                .changed
                .wait(state)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        match state
            .failures
            .first()
            .filter(|failure| failure.ticket <= ticket)
        {
            Some(failure) => Err(failure.clone()),
            None => Ok(()),
        }
    }

    fn newest(&self) -> Ticket {
        Ticket(self.submitted)
    }

    fn forget_failures(&mut self) -> Option<Failure> {
        let failures = std::mem::take(&mut self.progress.lock().failures);
        let mut failures = failures.into_iter();
        failures.find(|failure| failure.direction == Direction::Out)
    }

    fn notices(&mut self) -> Vec<String> {
        Vec::new()
    }

    fn is_done(&self, ticket: Ticket) -> bool {
        self.progress.lock().done >= ticket
    }

    fn recycled(&mut self) -> Vec<Copy> {
        self.recycled.try_recv().unwrap_or_default()
    }

    fn counters(&self) -> Counters {
        self.progress.lock().counters
    }
}

impl Drop for HostEngine {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(coordinator) = self.coordinator.take() {
            // A panic there has been turned into failures already.
            let _ = coordinator.join();
        }
    }
}

struct Coordinator {
    queue: Receiver<(Ticket, Request)>,
    recycle: Sender<Vec<Copy>>,
    progress: Arc<Progress>,
    team: Team,
    delays: Option<Delays>,
    fail_request: Option<u64>,
}

impl Coordinator {
    fn run(&mut self) {
        while let Ok((ticket, request)) = self.queue.recv() {
            let outcome = self.serve(ticket, &request);
            let from_file = request
                .copies
                .iter()
                .any(|copy| matches!(copy.from, Source::File { .. }));
            let bytes: usize = request
                .copies
                .iter()
                .filter(|copy| !matches!(copy.from, Source::Pattern(_)))
                .map(|copy| copy.bytes)
                .sum();
            let mut copies = request.copies;
            // Frees what the request owned before its ticket says that it is done.
            copies.clear();
            let _ = self.recycle.try_send(copies);
            self.finish(ticket, request.direction, bytes as u64, from_file, outcome);
        }
    }

    /// Does all copies of a request; the time it took, or the first failure.
    fn serve(&mut self, ticket: Ticket, request: &Request) -> Result<Duration, String> {
        if let Some(delays) = &mut self.delays {
            delays.pause();
        }
        if self.fail_request == Some(ticket.0 - 1) {
            return Err("a copy failed, as the copy engine was told to".to_owned());
        }
        let start = Instant::now();
        let outcome = self.team.perform(&request.copies);
        let spent = start.elapsed();
        if let Some(delays) = &mut self.delays {
            delays.pause();
        }
        outcome.map(|()| spent)
    }

    fn finish(
        &self,
        ticket: Ticket,
        direction: Direction,
        bytes: u64,
        from_file: bool,
        outcome: Result<Duration, String>,
    ) {
        let mut state = self.progress.lock();
        state.done = ticket;
        match outcome {
            Ok(spent) => {
                let seconds = spent.as_secs_f64();
                let counters = &mut state.counters;
                match (direction, from_file) {
                    (Direction::In, true) => {
                        counters.storage_bytes += bytes;
                        counters.storage_seconds += seconds;
                    }
                    (Direction::In, false) => {
                        counters.link_bytes += bytes;
                        counters.link_seconds += seconds;
                    }
                    (Direction::Out, _) => {
                        counters.write_back_bytes += bytes;
                        counters.write_back_seconds += seconds;
                    }
                }
            }
            Err(sentence) => {
                state.counters.failed += 1;
                state.failures.push(Failure {
                    ticket,
                    direction,
                    sentence,
                });
            }
        }
        drop(state);
        self.progress.changed.notify_all();
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.progress.lock().ended = true;
        self.progress.changed.notify_all();
    }
}

/// Helpers that take pieces of the request in hand.
struct Team {
    pieces: Option<Sender<Copy>>,
    taken: Receiver<Copy>,
    outcomes: Receiver<Result<(), String>>,
    helpers: Vec<JoinHandle<()>>,
}

impl Team {
    fn start(count: usize) -> std::io::Result<Self> {
        let (pieces, taken) = unbounded::<Copy>();
        let (report, outcomes) = unbounded();
        let helpers = (0..count)
            .map(|index| {
                let (taken, report) = (taken.clone(), report.clone());
                std::thread::Builder::new()
                    .name(format!("rpaged-copy-{}", index + 1))
                    .spawn(move || {
                        for piece in taken {
                            if report.send(perform(&piece)).is_err() {
                                break;
                            }
                        }
                    })
            })
            .collect::<std::io::Result<_>>()?;
        Ok(Self {
            pieces: Some(pieces),
            taken,
            outcomes,
            helpers,
        })
    }

    /// Does all copies, the small ones and those of a team of one here and now.
    fn perform(&self, copies: &[Copy]) -> Result<(), String> {
        let bytes: usize = copies.iter().map(|copy| copy.bytes).sum();
        let Some(pieces) = &self.pieces else {
            return Ok(());
        };
        if self.helpers.is_empty() || bytes <= PIECE_BYTES {
            return copies.iter().try_for_each(perform);
        }
        // A pattern is what the bytes behind it in the request overwrite: it comes first,
        // and alone.
        let is_pattern = |copy: &&Copy| matches!(copy.from, Source::Pattern(_));
        copies.iter().filter(is_pattern).try_for_each(perform)?;
        let mut left = 0usize;
        for copy in copies.iter().filter(|copy| !is_pattern(copy)) {
            for piece in cut(copy) {
                // The receiver lives in `self`: sending cannot fail.
                let _ = pieces.send(piece);
                left += 1;
            }
        }
        // All outcomes are taken, also after a failure: the next request starts clean.
        let mut outcome = Ok(());
        while let Ok(piece) = self.taken.try_recv() {
            outcome = outcome.and(perform(&piece));
            left -= 1;
        }
        for _ in 0..left {
            let piece = self
                .outcomes
                .recv()
                .unwrap_or_else(|_| Err("a copy worker died".into()));
            outcome = outcome.and(piece);
        }
        outcome
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.pieces = None;
        for helper in self.helpers.drain(..) {
            let _ = helper.join();
        }
    }
}

/// The pieces of a copy, of at most [`PIECE_BYTES`] each.
fn cut(copy: &Copy) -> impl Iterator<Item = Copy> + '_ {
    (0..copy.bytes).step_by(PIECE_BYTES).map(|done| {
        let from = match &copy.from {
            Source::File { file, offset } => Source::File {
                file: Arc::clone(file),
                offset: offset + done as u64,
            },
            Source::Memory { memory, offset } => Source::Memory {
                memory: Arc::clone(memory),
                offset: offset + done,
            },
            Source::Pattern(value) => Source::Pattern(*value),
        };
        let to = match &copy.to {
            Target::File { file, offset } => Target::File {
                file: Arc::clone(file),
                offset: offset + done as u64,
            },
            Target::Memory { memory, offset } => Target::Memory {
                memory: Arc::clone(memory),
                offset: offset + done,
            },
        };
        Copy {
            from,
            to,
            bytes: PIECE_BYTES.min(copy.bytes - done),
            whole_blocks: false,
        }
    })
}

/// Does one copy here and now. A panic is a failure like any other.
fn perform(copy: &Copy) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| perform_unguarded(copy)))
        .unwrap_or_else(|_| Err("a copy worker panicked".to_owned()))
}

fn perform_unguarded(copy: &Copy) -> Result<(), String> {
    let bytes = copy.bytes;
    let (memory, offset) = match &copy.to {
        Target::Memory { memory, offset } => (memory, *offset),
        Target::File { file, offset } => {
            let Source::Memory {
                memory,
                offset: start,
            } = &copy.from
            else {
                return Err("only memory is written to files".into());
            };
            let mut buffer = vec![0; bytes];
            // SAFETY: thin stand-in.
            unsafe { memory.read(*start, &mut buffer) };
            return file
                .write_all_at(&buffer, *offset)
                .map_err(|error| error.to_string());
        }
    };
    assert!(offset + bytes <= memory.bytes(), "copy past the end");
    let to = memory.address(offset);
    // SAFETY:
    // - the destination is inside its mapping (asserted), which the copy keeps alive;
    // - nobody else touches it until the ticket is done (contract of `CopyEngine`).
    let to = unsafe { std::slice::from_raw_parts_mut(to, bytes) };
    match &copy.from {
        Source::File { file, offset } => file.read_exact_at(to, *offset).map_err(|error| {
            format!(
                "could not read {bytes} bytes at offset {offset} of '{}' ({error}); \
                 was the model file changed while it is in use?",
                file.path().display()
            )
        }),
        Source::Memory { memory, offset } => {
            // SAFETY:
            // - source and destination are different mappings: store and arena;
            // - nobody writes the source until the ticket is done (same contract).
            unsafe { memory.read(*offset, to) };
            Ok(())
        }
        Source::Pattern(value) => {
            to.fill(*value);
            Ok(())
        }
    }
}

/// Seeded random pauses (xorshift64*).
struct Delays {
    state: u64,
    us_max: u32,
}

impl Delays {
    fn new(seed: u64, us_max: u32) -> Self {
        Self {
            state: seed | 1,
            us_max,
        }
    }

    fn pause(&mut self) {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let drawn = self.state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
        let us = drawn % (u64::from(self.us_max) + 1);
        // Half of the pauses are none at all, so that both orders of a race occur.
        if drawn & 1 == 0 {
            std::thread::sleep(Duration::from_micros(us));
        }
    }
}
