//! The thread that owns the link: queues what the reader hands on, in that order, and says
//! when it has come.
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
//! belongs to the recording stream when somebody has blocked for its event.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, TryRecvError};

use super::super::engine::{Copy, Direction, Failure, Source, Target, Ticket};
use super::super::engine_host::faults::{Delays, Fault, Faults, Link as Throttle, pause};
use super::super::engine_host::piece::Piece;
use super::super::engine_host::progress::{Kind, Progress};
use super::super::memory::HostMemory;
use super::arrivals::Arrivals;
use super::landings::Landings;
use super::link::Link;
use super::step::{Done, Landing, Move, Step};
use crate::ggml::{Events, Fence};

/// What a queue is made from.
pub struct Parts {
    pub link: Box<dyn Link>,
    pub steps: Receiver<Step>,
    /// What the reader's requests come to.
    pub reads: Arc<Progress>,
    pub failed_reads: Sender<Ticket>,
    pub free_places: Sender<usize>,
    /// Places that may be on their way at once, at least one.
    pub uploads_max: usize,
    pub landings: Arc<Landings>,
    pub arrivals: Arc<Arrivals>,
    pub progress: Arc<Progress>,
    pub recycle: Sender<Vec<Copy>>,
    pub faults: Faults,
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
    // Why what has landed since the last request that was done has not.
    not_landed: Option<String>,
    parts: Rest,
    // Last: the end is told when nobody touches memory any more.
    end: End,
}

/// What is left of the parts.
struct Rest {
    steps: Receiver<Step>,
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
    /// Bytes go from the staging memory to where they belong; None when they never came.
    Land(Option<(Arc<HostMemory>, usize, usize)>, Landing, Ticket),
    /// The request is done.
    Complete(Done, Option<Kind>, Option<Instant>),
}

/// Tells the end when it is dropped, and why it came.
struct End {
    why: String,
    progress: Arc<Progress>,
    arrivals: Arc<Arrivals>,
    landings: Arc<Landings>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.progress.end(&self.why);
        self.arrivals.end();
        self.landings.end();
    }
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
            not_landed: None,
            parts: Rest {
                steps: parts.steps,
                reads: parts.reads,
                failed_reads: parts.failed_reads,
                free_places: parts.free_places,
                uploads_max: parts.uploads_max,
                recycle: parts.recycle,
                faults: parts.faults,
            },
            end: End {
                why: "the copy thread died".to_owned(),
                progress: parts.progress,
                arrivals: parts.arrivals,
                landings: parts.landings,
            },
        }
    }

    /// Works until it is told to finish, and has; or until the device fails.
    pub fn run(mut self) {
        if let Err(sentence) = self.work() {
            let name = self.link.name();
            self.end.why = format!("copies of {name} failed: {sentence}");
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
                Step::Release(place) => {
                    self.uploads += 1;
                    self.pend(Then::Free(place))?;
                    while self.uploads > self.parts.uploads_max {
                        self.settle_oldest()?;
                    }
                }
                Step::Forget(read) => self.parts.reads.forget_failure(read),
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
        if let Some(fence) = after {
            self.link.wait(&fence)?;
            // It is not recorded again while it is held.
            self.keep(Move::After(fence));
        }
        Ok(())
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
            return self.skip(&step, landing);
        }
        // SAFETY:
        // - the move owns both sides, and is kept until the next event has come;
        // - its ranges lie in them (asserted by the reader);
        // - nobody else touches them until the ticket is done (contract of `CopyEngine`),
        //   but what computes, which the link was told to wait for; the staging memory's
        //   places and what is kept are written by nobody until then.
        let has_moved = unsafe { self.tell_link(&step) }?;
        if !has_moved {
            return match step {
                Move::Host(copy, number) => self.copy_on_host(&copy, number),
                _ => Ok(()),
            };
        }
        let place = match &step {
            Move::Out { to, at, bytes, .. } => Some((Arc::clone(to), *at, *bytes)),
            _ => None,
        };
        self.keep(step);
        match landing {
            Some(landing) => self.pend(Then::Land(place, landing, self.current.ticket)),
            None => Ok(()),
        }
    }

    /// Leaves a move of a failed request out.
    fn skip(&mut self, step: &Move, landing: Option<Landing>) -> Result<(), String> {
        match (step, landing) {
            (_, Some(landing)) => self.pend(Then::Land(None, landing, self.current.ticket)),
            (Move::Host(_, number), None) => {
                self.settle_all()?;
                self.end.landings.note(*number);
                Ok(())
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
            self.end.progress.begin(kind);
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
            Move::Host(..) | Move::Read(_) | Move::After(_) => return Ok(false),
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

    /// A copy of which neither side is the device's: when all before it is done.
    fn copy_on_host(&mut self, copy: &Copy, number: u64) -> Result<(), String> {
        self.settle_all()?;
        let fault = self.fault_of(&copy.to, self.current.ticket);
        let piece = Piece::whole(copy, fault);
        let unchanged = match &copy.from {
            Source::File { file, .. } => file.check_unchanged(),
            _ => Ok(()),
        };
        let outcome = unchanged.and_then(|()| piece.transfer(&mut self.spare, &self.end.progress));
        self.current.failed = outcome.err();
        self.end.landings.note(number);
        Ok(())
    }

    /// What tests want to go wrong with a copy to `to` of this request.
    fn fault_of(&self, to: &Target, ticket: Ticket) -> Option<Fault> {
        let is_full = self.parts.faults.full_disk == Some(ticket.0 - 1);
        (is_full && matches!(to, Target::File { .. })).then_some(Fault::FullDisk)
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

    fn finish(&mut self, mut done: Done) -> Result<(), String> {
        let current = std::mem::take(&mut self.current);
        done.failed = current.failed.or(done.failed);
        let (ticket, direction) = (done.ticket, done.request.direction);
        if let Some(sentence) = &done.failed {
            // Known now, for those that ask for the arrival.
            self.fail(ticket, direction, sentence.clone());
        }
        let bytes = done.request.copies.iter().map(|copy| copy.bytes);
        let bytes = bytes.fold(0, usize::saturating_add);
        let into_arena = direction == Direction::In;
        let throttle = self.throttle.as_mut().filter(|_| into_arena);
        let due = throttle.map(|throttle| throttle.take(bytes));
        self.pend(Then::Complete(done, current.clock, due))?;
        if let Some(newest) = self.pending.back() {
            self.end.arrivals.note(ticket, Fence::clone(&newest.fence));
        }
        Ok(())
    }

    fn fail(&self, ticket: Ticket, direction: Direction, sentence: String) {
        self.end.progress.lock().note_failure(Failure {
            ticket,
            direction,
            sentence,
        });
    }

    fn settle_all(&mut self) -> Result<(), String> {
        if self.unrecorded > 0 {
            // Parts of a request that has not ended.
            self.link_is_idle()?;
        }
        while !self.pending.is_empty() {
            self.settle_oldest()?;
        }
        Ok(())
    }

    /// Blocks until all that was queued has come.
    fn link_is_idle(&mut self) -> Result<(), String> {
        let fence = self.events.free()?;
        self.link.record(&fence)?;
        self.link.synchronize(&fence)?;
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
            Then::Land(bytes, landing, ticket) => self.land(bytes, &landing, ticket),
            Then::Complete(done, clock, due) => self.complete(done, clock, due),
        }
        Ok(())
    }

    fn land(
        &mut self,
        bytes: Option<(Arc<HostMemory>, usize, usize)>,
        landing: &Landing,
        ticket: Ticket,
    ) {
        if let Some((memory, offset, bytes)) = bytes {
            let copy = Copy {
                from: Source::Memory { memory, offset },
                to: landing.to.clone(),
                bytes,
                whole_blocks: false,
            };
            let piece = Piece::whole(&copy, self.fault_of(&copy.to, ticket));
            let outcome = piece.transfer(&mut self.spare, &self.end.progress);
            if let Err(sentence) = outcome {
                self.not_landed.get_or_insert(sentence);
            }
        }
        self.end.landings.note(landing.number);
    }

    fn complete(&mut self, done: Done, clock: Option<Kind>, due: Option<Instant>) {
        if let Some(due) = due {
            pause(due.saturating_duration_since(Instant::now()));
        }
        self.end.progress.finish(clock);
        let Done {
            ticket,
            mut request,
            failed,
            bytes,
        } = done;
        let late = self.not_landed.take().filter(|_| failed.is_none());
        let has_failed = failed.is_some() || late.is_some();
        if let Some(sentence) = late {
            self.fail(ticket, request.direction, sentence);
        }
        // Frees what the request owned before its ticket says that it is done.
        request.copies.clear();
        let _ = self.parts.recycle.try_send(request.copies);
        self.end.progress.complete(ticket, |state| {
            let moved = bytes.iter().filter(|_| !has_failed);
            for (sum, bytes) in state.bytes.iter_mut().zip(moved) {
                *sum += bytes;
            }
        });
        self.end.arrivals.forget_oldest();
    }
}
