//! The thread that takes requests in order, starts their copies as soon as no earlier one
//! stands in the way, and says when they are done.
//!
//! ```text
//!  inbox ──► open requests ──► window ──┬─► direct reads: ring, or readers (threads)
//!                 ▲                     ├─► large copies: copiers (threads), and this one
//!                 │                     └─► small copies: here and now
//!                 └───── done ◄─────────────────┘
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};

use super::super::engine::{Copy, Direction, Failure, Source, Ticket};
use super::Tuning;
use super::crew::{Crew, Event, Mailbox, Work};
use super::direct::{Buffers, Read};
use super::faults::{Delays, Faults, Link, Script, pause};
use super::order::{Footprint, JobId, Window};
use super::piece::{Piece, misfit};
use super::progress::{Kind, Progress};
use super::ring::Ring;

/// In a request that is shared out, copies up to this size are still done by this thread:
/// handing one over takes about as long as copying it.
const SMALL_BYTES: usize = 1 << 14;

/// See the module's documentation.
pub struct Coordinator {
    inbox: Receiver<Event>,
    // Before the requests: these finish with the memory that those own.
    reads: Reads,
    copiers: Crew<Piece>,
    recycle: Sender<Vec<Copy>>,
    // Requests that are not done, oldest first; `first` is the number of the first one.
    open: VecDeque<Open>,
    first: u64,
    // The next copy to be admitted: its request's number, and its place in there.
    next: (u64, usize),
    window: Window,
    // Copies in the window that nothing stands in the way of any more.
    ready: VecDeque<JobId>,
    // Direct reads that wait until one that is under way is over.
    waiting: VecDeque<Read>,
    buffers: Arc<Buffers>,
    events: Vec<Event>,
    spare: Vec<u8>,
    faults: Faults,
    delays: Option<Delays>,
    link: Option<Link>,
    tuning: Tuning,
    progress: Arc<Progress>,
    closing: bool,
    // Last: when nobody touches memory any more, the end is told.
    end: End,
}

/// How direct reads are done.
pub enum Reads {
    /// By the kernel, from this thread.
    Ring(Box<Ring>),
    /// By threads, which are started when there is something to read.
    Crew(Crew<Read>),
}

/// A request that is not done.
struct Open {
    direction: Direction,
    copies: Vec<Copy>,
    // Copies that are not done, those that are not admitted yet included.
    left: usize,
    begun: bool,
    // Small enough that waking others is not worth it.
    inline: bool,
    // What tests want of its first piece.
    script: Script,
    // When a link as slow as tests want would be done with it.
    due: Option<Instant>,
    failed: Option<String>,
}

/// Tells the end when it is dropped, and why it came.
struct End {
    progress: Arc<Progress>,
    why: String,
}

impl Drop for End {
    fn drop(&mut self) {
        self.progress.end(&self.why);
    }
}

/// What a coordinator is made from.
pub struct Parts {
    pub inbox: Receiver<Event>,
    pub mailbox: Mailbox,
    pub ring: Option<Ring>,
    pub recycle: Sender<Vec<Copy>>,
    pub progress: Arc<Progress>,
    pub faults: Faults,
    pub tuning: Tuning,
}

impl Coordinator {
    /// A coordinator with `helpers` threads that copy besides it.
    ///
    /// # Errors
    /// When the system refuses a thread, or address space.
    pub fn new(parts: Parts, helpers: usize) -> std::io::Result<Self> {
        let Parts {
            mailbox,
            progress,
            tuning,
            ..
        } = parts;
        let mut copiers = Crew::new("rpaged-copy", mailbox.clone(), Arc::clone(&progress));
        copiers.grow(helpers)?;
        let reads = match parts.ring {
            Some(ring) => Reads::Ring(Box::new(ring)),
            None => Reads::Crew(Crew::new("rpaged-read", mailbox, Arc::clone(&progress))),
        };
        Ok(Self {
            inbox: parts.inbox,
            reads,
            copiers,
            recycle: parts.recycle,
            open: VecDeque::new(),
            first: 1,
            next: (1, 0),
            window: Window::default(),
            ready: VecDeque::new(),
            waiting: VecDeque::new(),
            buffers: Arc::new(Buffers::new(tuning.reads_max, tuning.piece_bytes)?),
            events: Vec::new(),
            spare: Vec::new(),
            delays: Delays::of(&parts.faults),
            link: Link::of(&parts.faults),
            faults: parts.faults,
            tuning,
            end: End {
                progress: Arc::clone(&progress),
                why: "the copy thread died".to_owned(),
            },
            progress,
            closing: false,
        })
    }

    /// Works until it is told to finish, and has.
    pub fn run(mut self) {
        loop {
            while let Ok(event) = self.inbox.try_recv() {
                self.take(event);
            }
            self.collect();
            let mut more = self.start_what_can_be();
            match self.feed() {
                Ok(over) => more |= over,
                Err(error) => return self.give_up(&error),
            }
            self.retire();
            if more || self.help() {
                continue;
            }
            if self.closing && self.open.is_empty() {
                return;
            }
            if let Err(error) = self.sleep() {
                return self.give_up(&error);
            }
        }
    }

    fn give_up(&mut self, error: &std::io::Error) {
        self.end.why = format!("the kernel's ring for reads failed ({error})");
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Submit(ticket, request) => {
                assert_eq!(ticket.0, self.first + self.open.len() as u64);
                self.open.push_back(Open {
                    direction: request.direction,
                    left: request.copies.len(),
                    copies: request.copies,
                    begun: false,
                    inline: false,
                    script: Script::default(),
                    due: None,
                    failed: None,
                });
            }
            Event::Close => self.closing = true,
            Event::Done(job, outcome) => self.piece_done(job, outcome),
            Event::Cached { read, refused } => {
                if refused && let Some(file) = read.refuse_direct() {
                    let sentence = format!(
                        "{} cannot be read past the page cache; reading it through the cache",
                        file.name()
                    );
                    self.progress.lock().notices.push(sentence);
                }
                self.copiers.hand(read.into_cached());
            }
        }
    }

    /// Takes what the ring has to tell.
    fn collect(&mut self) {
        if let Reads::Ring(ring) = &mut self.reads {
            ring.collect(&self.progress, &mut self.events);
            self.take_events();
        }
    }

    fn take_events(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            self.take(event);
        }
        self.events = events;
    }

    /// Starts ready copies and admits new ones, until there are none or it took a while:
    /// true then.
    fn start_what_can_be(&mut self) -> bool {
        let mut copied = 0;
        while copied < self.tuning.piece_bytes {
            if let Some(job) = self.ready.pop_front() {
                copied += self.start(job);
            } else if !self.admit() {
                return false;
            }
        }
        true
    }

    /// Moves the next copy into the window; false when there is none, or no room.
    fn admit(&mut self) -> bool {
        let (number, place) = self.next;
        let is_full = self.window.is_full();
        let Some(request) = self.open.get_mut(place_of(number, self.first)) else {
            return false;
        };
        if !request.begun {
            self.begin(number);
        } else if place == request.copies.len() {
            self.next = (number + 1, 0);
        } else if request.failed.is_some() {
            // What is left of it need not be done.
            request.left -= request.copies.len() - place;
            self.next = (number + 1, 0);
        } else if is_full {
            return false;
        } else {
            let footprint = Footprint::of(&request.copies[place]);
            let (job, is_ready) = self.window.admit(number, place, footprint);
            self.next.1 += 1;
            if is_ready {
                self.ready.push_back(job);
            }
        }
        true
    }

    fn begin(&mut self, number: u64) {
        let index = number - 1;
        let script = Script {
            pause: self.delays.as_mut().map(Delays::draw).unwrap_or_default(),
            fault: self.faults.of(index),
        };
        let fails = self.faults.fail_request == Some(index);
        let inline_bytes = self.tuning.piece_bytes;
        let request = &mut self.open[place_of(number, self.first)];
        request.begun = true;
        request.script = script;
        let bytes = request.copies.iter().map(|copy| copy.bytes);
        let bytes = bytes.fold(0, usize::saturating_add);
        request.inline = bytes <= inline_bytes;
        let into_arena = request.direction == Direction::In;
        request.due = self
            .link
            .as_mut()
            .filter(|_| into_arena)
            .map(|link| link.take(bytes));
        if fails {
            let sentence = "a copy failed, as the copy engine was told to";
            request.failed = Some(sentence.to_owned());
        }
    }

    /// Starts a copy; how many bytes this thread copied itself.
    fn start(&mut self, job: JobId) -> usize {
        let (number, place) = {
            let job = self.window.job(job);
            (job.request, job.copy)
        };
        let request = &mut self.open[place_of(number, self.first)];
        let copy = &request.copies[place];
        let refusal = request.failed.clone().or_else(|| refusal_of(copy));
        if let Some(sentence) = refusal {
            self.job_done(job, Err(sentence));
            return 0;
        }
        let kind = Kind::of(request.direction, &copy.from);
        let script = request.script.for_copy(copy);
        let piece_bytes = self.tuning.piece_bytes;
        let is_small = request.inline || copy.bytes <= SMALL_BYTES;
        let count = if let Some(reads) = Read::cut(job, kind, copy, piece_bytes) {
            queue_reads(&mut self.waiting, reads, script)
        } else if is_small || Footprint::of(copy).overlaps_itself() {
            // In one piece: what is small, and what is right only in one go.
            let bytes = copy.bytes;
            let pieces = Piece::cut(job, kind, copy, bytes.max(1), script);
            let mut outcome = Ok(());
            for piece in pieces {
                outcome = piece.transfer(&mut self.spare, &self.progress);
            }
            self.job_done(job, outcome);
            return bytes;
        } else {
            let pieces = Piece::cut(job, kind, copy, piece_bytes, script);
            pieces.map(|piece| self.copiers.hand(piece)).count()
        };
        self.window.job(job).pieces = count;
        if count == 0 {
            self.job_done(job, Ok(()));
        }
        0
    }

    fn piece_done(&mut self, id: JobId, outcome: Result<(), String>) {
        let job = self.window.job(id);
        job.pieces -= 1;
        let (number, is_done) = (job.request, job.pieces == 0);
        if let Err(sentence) = outcome {
            self.fail(number, sentence);
        }
        if is_done {
            self.job_done(id, Ok(()));
        }
    }

    fn job_done(&mut self, id: JobId, outcome: Result<(), String>) {
        let job = self.window.remove(id, &mut self.ready);
        if let Err(sentence) = outcome {
            self.fail(job.request, sentence);
        }
        self.open[place_of(job.request, self.first)].left -= 1;
    }

    /// Notes the first failure of a request.
    fn fail(&mut self, number: u64, sentence: String) {
        let request = &mut self.open[place_of(number, self.first)];
        request.failed.get_or_insert(sentence);
    }

    /// Begins direct reads, as many as may be under way. True when some are over already:
    /// others may have waited for them.
    fn feed(&mut self) -> std::io::Result<bool> {
        let depth = self.tuning.reads_max;
        let mut is_over = false;
        while !self.waiting.is_empty() && self.reads.has_room(depth) {
            let Some(mut read) = self.waiting.pop_front() else {
                break;
            };
            let number = self.window.job(read.job()).request;
            if self.open[place_of(number, self.first)].failed.is_some() {
                self.piece_done(read.job(), Ok(()));
                is_over = true;
                continue;
            }
            read.prepare(&self.buffers);
            match &mut self.reads {
                Reads::Ring(ring) => self.events.extend(ring.begin(read, &self.progress)),
                Reads::Crew(crew) => self.events.extend(hand_to_readers(crew, read, depth)),
            }
        }
        is_over |= !self.events.is_empty();
        self.take_events();
        match &mut self.reads {
            Reads::Ring(ring) => ring.submit()?,
            Reads::Crew(_) => {}
        }
        Ok(is_over)
    }

    /// Does a piece of a large copy that no helper has taken yet; whether there was one.
    fn help(&mut self) -> bool {
        let event = self.copiers.help(&mut self.spare);
        let helped = event.is_some();
        event.into_iter().for_each(|event| self.take(event));
        helped
    }

    /// Completes the requests that are done, in their order.
    fn retire(&mut self) {
        while self
            .open
            .front()
            .is_some_and(|open| open.begun && open.left == 0)
        {
            let Some(mut open) = self.open.pop_front() else {
                break;
            };
            pause(self.delays.as_mut().map(Delays::draw).unwrap_or_default());
            if let (Some(due), Some(copy)) = (open.due, open.copies.first()) {
                let _busy = self.progress.busy(Kind::of(open.direction, &copy.from));
                pause(due.saturating_duration_since(Instant::now()));
            }
            let ticket = Ticket(self.first);
            self.first += 1;
            self.next = self.next.max((self.first, 0));
            let mut bytes = [0; 3];
            for copy in open.copies.iter().filter(|_| open.failed.is_none()) {
                if let Some(kind) = Kind::of(open.direction, &copy.from) {
                    bytes[kind as usize] += copy.bytes as u64;
                }
            }
            // Frees what the request owned before its ticket says that it is done.
            open.copies.clear();
            let _ = self.recycle.try_send(open.copies);
            self.progress.complete(ticket, |state| {
                for (sum, bytes) in state.bytes.iter_mut().zip(bytes) {
                    *sum += bytes;
                }
                if let Some(sentence) = open.failed {
                    state.note_failure(Failure {
                        ticket,
                        direction: open.direction,
                        sentence,
                    });
                }
            });
        }
    }

    /// Waits for news.
    fn sleep(&mut self) -> std::io::Result<()> {
        match &mut self.reads {
            Reads::Ring(ring) => ring.sleep(&self.inbox),
            Reads::Crew(_) => {
                // Never closed: the crews hold the other end.
                if let Ok(event) = self.inbox.recv() {
                    self.take(event);
                }
                Ok(())
            }
        }
    }
}

impl Reads {
    fn has_room(&self, depth: usize) -> bool {
        match self {
            Self::Ring(ring) => ring.has_room(),
            Self::Crew(crew) => crew.open() < depth,
        }
    }
}

/// The place of a request among the open ones.
fn place_of(number: u64, first: u64) -> usize {
    usize::try_from(number - first).expect("the open requests fit in memory")
}

/// Why a copy is not done at all.
fn refusal_of(copy: &Copy) -> Option<String> {
    if let Some(sentence) = misfit(copy) {
        return Some(sentence.to_owned());
    }
    match &copy.from {
        Source::File { file, .. } => file.check_unchanged().err(),
        Source::Memory { .. } | Source::Device { .. } | Source::Pattern(_) => None,
    }
}

/// Queues the pieces of a direct read, the first one with `script`; how many they are.
fn queue_reads(
    waiting: &mut VecDeque<Read>,
    reads: impl Iterator<Item = Read>,
    script: Script,
) -> usize {
    let before = waiting.len();
    waiting.extend(reads);
    if let Some(first) = waiting.get_mut(before) {
        first.script = script;
    }
    waiting.len() - before
}

/// Has a thread do a direct read; this one does it when the system refuses threads.
fn hand_to_readers(crew: &mut Crew<Read>, read: Read, depth: usize) -> Option<Event> {
    // As many threads as there are reads under way.
    let refused = crew.grow((crew.open() + 1).min(depth)).is_err();
    crew.hand(read);
    if refused && crew.alive() == 0 {
        return crew.help(&mut ());
    }
    None
}
