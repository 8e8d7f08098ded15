//! Threads that do pieces of copies, and the mailbox through which they and the engine's
//! user talk to the coordinator.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::super::engine::{Request, Ticket};
use super::direct::Read;
use super::order::JobId;
use super::progress::Progress;
use super::ring::Bell;

/// What the coordinator is told.
#[derive(Debug)]
pub enum Event {
    /// A request was submitted.
    Submit(Ticket, Request),
    /// No more requests will come: finish what there is.
    Close,
    /// A piece of this copy is done, well or not.
    Done(JobId, Result<(), String>),
    /// This piece is to be read through the page cache.
    Cached {
        read: Read,
        /// Whether that is because the file system refused.
        refused: bool,
    },
}

/// Where events for the coordinator go.
#[derive(Clone, Debug)]
pub struct Mailbox {
    pub events: Sender<Event>,
    // Wakes a coordinator that sleeps in the kernel's ring and not at the channel.
    pub bell: Option<Arc<Bell>>,
}

impl Mailbox {
    /// Posts `event`; gives it back when there is no coordinator any more.
    pub fn post(&self, event: Event) -> Result<(), Event> {
        self.events.send(event).map_err(|refused| refused.0)?;
        if let Some(bell) = &self.bell {
            bell.ring();
        }
        Ok(())
    }
}

/// What a crew does.
pub trait Work: Send + 'static {
    /// What a thread keeps from one piece of work to the next.
    type Spare: Default;

    /// The copy that it belongs to.
    fn job(&self) -> JobId;

    /// Does it; what it owned is dropped by then.
    fn perform(self, spare: &mut Self::Spare, progress: &Progress) -> Event;
}

/// Threads that take work from one queue.
pub struct Crew<W: Work> {
    // Closed first on drop, which ends the threads.
    queue: Option<Sender<W>>,
    taken: Receiver<W>,
    threads: Vec<JoinHandle<()>>,
    tally: Arc<Tally>,
    name: &'static str,
    mailbox: Mailbox,
    progress: Arc<Progress>,
}

#[derive(Debug, Default)]
struct Tally {
    // Threads that have not died.
    alive: AtomicUsize,
    // Pieces of work that were begun with `hand` and are not done.
    open: AtomicUsize,
}

impl<W: Work> Crew<W> {
    /// A crew without threads.
    pub fn new(name: &'static str, mailbox: Mailbox, progress: Arc<Progress>) -> Self {
        let (queue, taken) = unbounded();
        Self {
            queue: Some(queue),
            taken,
            threads: Vec::new(),
            tally: Arc::default(),
            name,
            mailbox,
            progress,
        }
    }

    /// Threads that can take work.
    pub fn alive(&self) -> usize {
        self.tally.alive.load(Ordering::Acquire)
    }

    /// Pieces of work that are not done.
    pub fn open(&self) -> usize {
        self.tally.open.load(Ordering::Acquire)
    }

    /// Starts threads until `count` are alive.
    ///
    /// # Errors
    /// When the system refuses a thread; those that were started stay.
    pub fn grow(&mut self, count: usize) -> std::io::Result<()> {
        while self.alive() < count {
            let hand = Hand {
                taken: self.taken.clone(),
                tally: Arc::clone(&self.tally),
                mailbox: self.mailbox.clone(),
                progress: Arc::clone(&self.progress),
            };
            let name = format!("{}-{}", self.name, self.threads.len() + 1);
            let thread = std::thread::Builder::new().name(name);
            self.tally.alive.fetch_add(1, Ordering::AcqRel);
            match thread.spawn(move || hand.work()) {
                Ok(thread) => self.threads.push(thread),
                Err(error) => {
                    self.tally.alive.fetch_sub(1, Ordering::AcqRel);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Queues work for whoever takes it first.
    pub fn hand(&self, work: W) {
        self.tally.open.fetch_add(1, Ordering::AcqRel);
        if let Some(queue) = &self.queue {
            // The receiver lives in `self`: sending cannot fail.
            let _ = queue.send(work);
        }
    }

    /// Does one piece of work that nobody has taken yet, on this thread.
    pub fn help(&self, spare: &mut W::Spare) -> Option<Event> {
        let work = self.taken.try_recv().ok()?;
        let event = work.perform(spare, &self.progress);
        self.tally.open.fetch_sub(1, Ordering::AcqRel);
        Some(event)
    }
}

impl<W: Work> Drop for Crew<W> {
    fn drop(&mut self) {
        self.queue = None;
        // Work that nobody has begun is dropped; after a death there may be some.
        while self.taken.try_recv().is_ok() {}
        for thread in self.threads.drain(..) {
            // A panic there has been reported already.
            let _ = thread.join();
        }
    }
}

/// What a thread of a crew has.
struct Hand<W: Work> {
    taken: Receiver<W>,
    tally: Arc<Tally>,
    mailbox: Mailbox,
    progress: Arc<Progress>,
}

impl<W: Work> Hand<W> {
    fn work(self) {
        let mut spare = W::Spare::default();
        for work in &self.taken {
            let death = Death {
                tally: &self.tally,
                mailbox: &self.mailbox,
                job: work.job(),
            };
            let event = work.perform(&mut spare, &self.progress);
            std::mem::forget(death);
            self.tally.open.fetch_sub(1, Ordering::AcqRel);
            if self.mailbox.post(event).is_err() {
                break;
            }
        }
    }
}

/// Reports, when dropped, that its thread died with a piece of work in hand.
struct Death<'a> {
    tally: &'a Tally,
    mailbox: &'a Mailbox,
    job: JobId,
}

impl Drop for Death<'_> {
    fn drop(&mut self) {
        self.tally.alive.fetch_sub(1, Ordering::AcqRel);
        self.tally.open.fetch_sub(1, Ordering::AcqRel);
        let sentence = "a copy worker died".to_owned();
        // Without a coordinator nobody wants to know.
        let _ = self.mailbox.post(Event::Done(self.job, Err(sentence)));
    }
}
