//! The thread that owns a link: queues what the reader hands on, in that order, and says
//! when it has come. There is one for each stream of copies.
//!
//! ```text
//!  steps ──► wait for the read ──► link ──► in flight ──► record ──► pending ──► settled
//!                                                │                      │
//!                                        arrival: the fence     wait: ticket is done
//! ```
//!
//! It blocks for the oldest event only when there is nothing to queue, or when half of the
//! staging memory is on its way, so that the device has work while this thread sleeps.
//! Only this thread records its events and blocks for them: ggml-vulkan takes back what
//! belongs to the recording stream when somebody has blocked for its event. What the other
//! stream recorded, this one's waits for on the device.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, TryRecvError};

use super::super::engine::{Copy, Direction, Source, Target, Ticket};
use super::super::engine_host::faults::{Delays, Fault, Faults, Link as Throttle, pause};
use super::super::engine_host::piece::Piece;
use super::super::engine_host::progress::{Kind, Progress};
use super::ending::Ending;
use super::lane::Lane;
use super::link::Link;
use super::step::{Done, Move, Step};
use crate::ggml::{Events, Fence};

/// What a queue is made from.
pub struct Parts {
    pub link: Box<dyn Link>,
    pub steps: Receiver<Step>,
    /// How far this stream is, and the other, where there is one.
    pub lane: Arc<Lane>,
    pub other: Option<Arc<Lane>>,
    /// What the reader's requests come to.
    pub reads: Arc<Progress>,
    pub failed_reads: Sender<Ticket>,
    pub free_places: Sender<usize>,
    /// Places that may be on their way at once, at least one.
    pub uploads_max: usize,
    pub recycle: Sender<Vec<Copy>>,
    pub faults: Faults,
    pub ending: Ending,
}

/// See the module's documentation.
pub struct Queue {
    // First: when it is dropped, nothing touches memory any more.
    link: Box<dyn Link>,
    // Moves whose event has not come, oldest first: they own what the link touches.
    in_flight: VecDeque<Move>,
    pending: VecDeque<Pending>,
    // Moves that no event was recorded for.
    unrecorded: usize,
    // The newest recording, as long as nothing was queued after it.
    newest: Option<Fence>,
    uploads: usize,
    events: Events,
    current: Current,
    // Bytes on their way between files and memories of which neither is the device's.
    spare: Vec<u8>,
    delays: Option<Delays>,
    throttle: Option<Throttle>,
    parts: Rest,
    // Last: the end is told when nobody touches memory any more.
    ending: Ending,
}

/// What is left of the parts.
struct Rest {
    steps: Receiver<Step>,
    lane: Arc<Lane>,
    other: Option<Arc<Lane>>,
    reads: Arc<Progress>,
    failed_reads: Sender<Ticket>,
    free_places: Sender<usize>,
    uploads_max: usize,
    recycle: Sender<Vec<Copy>>,
    faults: Faults,
}

/// The request that is being queued.
#[derive(Debug, Default)]
struct Current {
    ticket: Ticket,
    clock: Option<Kind>,
    failed: Option<String>,
}

/// What happens when an event has come.
struct Pending {
    fence: Fence,
    // How many of the moves in flight are over then.
    moves: usize,
    then: Then,
}

enum Then {
    /// The place may be filled again.
    Free(usize),
    /// Bytes go from the staging memory to where they belong.
    Land(Source, Target, usize, Ticket),
    /// All copies up to this one are done.
    Reach(u64),
    /// A part of the request is done, the rest being the other stream's.
    Leave(Ticket, Option<Kind>),
    /// The request is done.
    Complete(Done, Option<Kind>, Option<Instant>),
}

impl Queue {
    pub fn new(parts: Parts) -> Self {
        Self {
            events: Events::new(parts.link.device()),
            link: parts.link,
            in_flight: VecDeque::new(),
            pending: VecDeque::new(),
            unrecorded: 0,
            newest: None,
            uploads: 0,
            current: Current::default(),
            spare: Vec::new(),
            delays: Delays::of(&parts.faults),
            throttle: Throttle::of(&parts.faults),
            parts: Rest {
                steps: parts.steps,
                lane: parts.lane,
                other: parts.other,
                reads: parts.reads,
                failed_reads: parts.failed_reads,
                free_places: parts.free_places,
                uploads_max: parts.uploads_max,
                recycle: parts.recycle,
                faults: parts.faults,
            },
            ending: parts.ending,
        }
    }

    /// Works until it is told to finish, and has; or until the device fails.
    pub fn run(mut self) {
        match self.work() {
            Ok(()) => self.ending.is_due(),
            Err(sentence) => {
                let name = self.link.name();
                let why = format!("copies of {name} failed: {sentence}");
                self.ending.say(&why);
            }
        }
    }

    fn work(&mut self) -> Result<(), String> {
        loop {
            let step = match self.parts.steps.try_recv() {
                Ok(step) => step,
                Err(TryRecvError::Empty) if !self.pending.is_empty() => {
                    self.settle_oldest()?;
                    continue;
                }
                Err(_) => match self.parts.steps.recv() {
                    Ok(step) => step,
                    Err(_) => return Err("the thread that reads files died".to_owned()),
                },
            };
            self.stumble();
            match step {
                Step::Begin(ticket, after) => self.begin(ticket, after)?,
                Step::Move(step) => self.queue(step)?,
                Step::Await(number) => self.follow(number)?,
                Step::Mark(number) => self.mark(number, Then::Reach(number))?,
                Step::Release(place) => {
                    self.uploads += 1;
                    self.pend(Then::Free(place))?;
                    while self.uploads > self.parts.uploads_max {
                        self.settle_oldest()?;
                    }
                }
                Step::Forget(read) => self.parts.reads.forget_failure(read),
                Step::Leave => {
                    let Current {
                        ticket,
                        clock,
                        failed,
                    } = std::mem::take(&mut self.current);
                    if let Some(sentence) = failed {
                        self.ending.requests.fail(ticket, sentence);
                    }
                    self.pend(Then::Leave(ticket, clock))?;
                }
                Step::End(done) => self.finish(done)?,
                Step::Close => return self.settle_all(),
            }
        }
    }

    /// A pause, where tests want one.
    fn stumble(&mut self) {
        pause(self.delays.as_mut().map(Delays::draw).unwrap_or_default());
    }

    fn begin(&mut self, ticket: Ticket, after: Option<Fence>) -> Result<(), String> {
        self.current = Current {
            ticket,
            ..Current::default()
        };
        after.map_or(Ok(()), |fence| self.come_after(fence))
    }

    /// Has what is queued from now on come after a fence.
    fn come_after(&mut self, fence: Fence) -> Result<(), String> {
        self.link.wait(&fence)?;
        // It is not recorded again while it is held.
        self.keep(Move::After(fence));
        Ok(())
    }

    /// Has what is queued from now on come after a copy of the other stream.
    fn follow(&mut self, number: u64) -> Result<(), String> {
        let Some(other) = &self.parts.other else {
            return Ok(());
        };
        let fence = other.fence_behind(number);
        let fence = fence.map_err(|_| "the device's other copies have ended".to_owned())?;
        fence.map_or(Ok(()), |fence| self.come_after(fence))
    }

    /// Holds what the link was told until the next event has come.
    fn keep(&mut self, step: Move) {
        self.newest = None;
        self.unrecorded += 1;
        self.in_flight.push_back(step);
    }

    fn queue(&mut self, mut step: Move) -> Result<(), String> {
        if let Move::In {
            read: Some(read), ..
        }
        | Move::Read(read) = &step
            && let Err(sentence) = self.await_read(*read)
        {
            self.current.failed.get_or_insert(sentence);
        }
        let landing = match &mut step {
            Move::Out { landing, .. } => landing.take(),
            _ => None,
        };
        if self.current.failed.is_some() {
            return Ok(());
        }
        // SAFETY:
        // - the move owns both sides, and is kept until the next event has come;
        // - its ranges lie in them (asserted by the reader);
        // - nobody else touches them until the ticket is done (contract of `CopyEngine`),
        //   but what computes, which the link was told to wait for; the staging memory's
        //   places and what is kept are written by nobody until then.
        let has_moved = unsafe { self.tell_link(&step) }?;
        if !has_moved {
            return Ok(());
        }
        let staged = match &step {
            Move::Out { to, at, bytes, .. } => Some((Arc::clone(to), *at, *bytes)),
            _ => None,
        };
        self.keep(step);
        match (landing, staged) {
            (Some(to), Some((memory, offset, bytes))) => {
                let from = Source::Memory { memory, offset };
                self.pend(Then::Land(from, to, bytes, self.current.ticket))
            }
            _ => Ok(()),
        }
    }

    /// Queues a move on the link; false when that is not the link's.
    ///
    /// # Safety
    /// - as for the link's copies: until an event has come that is recorded afterwards, the
    ///   move is kept, and nobody else touches what it does but as the link's contract says.
    unsafe fn tell_link(&mut self, step: &Move) -> Result<bool, String> {
        let kind = match step {
            Move::In { .. } => Some(Kind::Link),
            Move::Out { .. } => Some(Kind::WriteBack),
            _ => None,
        };
        if self.current.clock.is_none() && kind.is_some() {
            self.current.clock = kind;
            self.ending.progress.begin(kind);
        }
        match step {
            Move::In {
                from,
                at,
                to,
                offset,
                bytes,
                ..
            } => {
                let from = from.address(*at);
                // SAFETY: the caller's promise.
                unsafe { self.link.copy_in(to, *offset, from, *bytes) }?;
            }
            Move::Out {
                from,
                offset,
                to,
                at,
                bytes,
                ..
            } => {
                let to = to.address(*at);
                // SAFETY: the caller's promise.
                unsafe { self.link.copy_out(from, *offset, to, *bytes) }?;
            }
            Move::Fill(to, range, value) => {
                // SAFETY: the caller's promise.
                unsafe { self.link.fill(to, range.clone(), *value) }?;
            }
            Move::Read(_) | Move::After(_) => return Ok(false),
        }
        Ok(true)
    }

    /// Blocks until the reader's request `read` is done.
    fn await_read(&self, read: Ticket) -> Result<(), String> {
        let state = self.parts.reads.wait(read);
        let failed = state.failures.iter().find(|failure| failure.ticket == read);
        let sentence = match (failed, &state.ended) {
            (Some(failure), _) => failure.sentence.clone(),
            (None, Some(why)) if read > state.done => why.clone(),
            _ => return Ok(()),
        };
        drop(state);
        // The reader may have gone already: it needs to know of nothing then.
        let _ = self.parts.failed_reads.send(read);
        Err(sentence)
    }

    /// Has something happen when all that was queued so far has come.
    fn pend(&mut self, then: Then) -> Result<(), String> {
        let fence = match &self.newest {
            Some(fence) => Fence::clone(fence),
            None => {
                let fence = self.events.free()?;
                self.link.record(&fence)?;
                self.newest.insert(fence).clone()
            }
        };
        self.pending.push_back(Pending {
            fence,
            moves: std::mem::take(&mut self.unrecorded),
            then,
        });
        Ok(())
    }

    /// Has something happen when all copies up to this one are done.
    fn mark(&mut self, number: u64, then: Then) -> Result<(), String> {
        self.pend(then)?;
        if let Some(newest) = self.pending.back() {
            let fence = Fence::clone(&newest.fence);
            self.parts.lane.note_recorded(number, fence);
        }
        Ok(())
    }

    fn finish(&mut self, mut done: Done) -> Result<(), String> {
        let current = std::mem::take(&mut self.current);
        done.failed = current.failed.or(done.failed);
        let (ticket, direction) = (done.ticket, done.request.direction);
        if let Some(sentence) = done.failed.take() {
            // Known now, for those that ask for the arrival.
            self.ending.requests.fail(ticket, sentence);
        }
        let bytes = done.request.copies.iter().map(|copy| copy.bytes);
        let bytes = bytes.fold(0, usize::saturating_add);
        let into_arena = direction == Direction::In;
        let throttle = self.throttle.as_mut().filter(|_| into_arena);
        let due = throttle.map(|throttle| throttle.take(bytes));
        self.mark(done.number, Then::Complete(done, current.clock, due))?;
        if let Some(newest) = self.pending.back() {
            let fence = Fence::clone(&newest.fence);
            self.ending.requests.note_queued(ticket, fence);
        }
        Ok(())
    }

    fn settle_all(&mut self) -> Result<(), String> {
        while !self.pending.is_empty() {
            self.settle_oldest()?;
        }
        Ok(())
    }

    /// Blocks until the oldest event has come, and does what was to happen then.
    fn settle_oldest(&mut self) -> Result<(), String> {
        let Some(oldest) = self.pending.front() else {
            return Ok(());
        };
        self.link.synchronize(&oldest.fence)?;
        self.stumble();
        let Some(Pending { fence, moves, then }) = self.pending.pop_front() else {
            return Ok(());
        };
        self.in_flight.drain(..moves);
        drop(fence);
        match then {
            Then::Free(place) => {
                self.uploads -= 1;
                // Nobody fills it when the reader has gone.
                let _ = self.parts.free_places.send(place);
            }
            Then::Land(from, to, bytes, ticket) => self.land(from, to, bytes, ticket),
            Then::Reach(number) => self.parts.lane.note_done(number),
            Then::Leave(ticket, clock) => {
                self.ending.progress.finish(clock);
                self.ending.requests.finish_part(ticket, None);
            }
            Then::Complete(done, clock, due) => self.complete(done, clock, due),
        }
        Ok(())
    }

    fn land(&mut self, from: Source, to: Target, bytes: usize, ticket: Ticket) {
        let fault = Fault::of_target(&self.parts.faults, ticket.0 - 1, &to);
        let copy = Copy {
            from,
            to,
            bytes,
            whole_blocks: false,
        };
        let piece = Piece::whole(&copy, fault);
        let outcome = piece.transfer(&mut self.spare, &self.ending.progress);
        if let Err(sentence) = outcome {
            self.ending.requests.fail(ticket, sentence);
        }
    }

    fn complete(&mut self, done: Done, clock: Option<Kind>, due: Option<Instant>) {
        if let Some(due) = due {
            pause(due.saturating_duration_since(Instant::now()));
        }
        self.ending.progress.finish(clock);
        self.parts.lane.note_done(done.number);
        let mut request = done.request;
        // Frees what the request owned before its ticket says that it is done.
        request.copies.clear();
        let _ = self.parts.recycle.try_send(request.copies);
        let Done { ticket, bytes, .. } = done;
        self.ending.requests.finish_part(ticket, Some(bytes));
    }
}
