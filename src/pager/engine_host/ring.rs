//! Direct reads through Linux's io_uring: one thread has many of them under way, and
//! sleeps until one is done or somebody rings.
//!
//! The bell is a counter (eventfd) that the ring watches. Whoever has news for the
//! coordinator counts it up, but only when the coordinator sleeps: awake, it looks for
//! news by itself before it goes to sleep again.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Duration;

use crossbeam_channel::Receiver;
use io_uring::{IoUring, Probe, opcode, squeue, types};
use rustix::event::{EventfdFlags, eventfd};

use super::crew::Event;
use super::direct::{End, Read};
use super::faults::{Fault, pause};
use super::progress::Progress;

/// Marks the completion that says that somebody rang.
const RUNG: u64 = u64::MAX;

/// What is expected of a slot that the kernel names.
const IN_SLOT: &str = "a read under way is in its slot";

/// Wakes a coordinator that sleeps in the ring.
#[derive(Debug)]
pub struct Bell {
    counter: OwnedFd,
    asleep: AtomicBool,
}

impl Bell {
    /// Wakes the coordinator if it sleeps. What it is to see then comes first.
    pub fn ring(&self) {
        // Pairs with the fence in `Ring::sleep`: either the coordinator sees the news
        // before it sleeps, or we see that it sleeps.
        fence(Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            // Fails only if the counter is about to overflow, which wakes too.
            let _ = rustix::io::write(&self.counter, &1u64.to_ne_bytes());
        }
    }
}

/// Direct reads under way.
pub struct Ring {
    ring: IoUring,
    // The kernel names a read by its slot.
    slots: Vec<Option<Read>>,
    free: Vec<usize>,
    bell: Arc<Bell>,
    // Whether the ring watches the bell.
    watches: bool,
    // What the kernel said, until it is looked at.
    outcomes: Vec<(u64, i32)>,
}

impl Ring {
    /// A ring for `depth` reads at once.
    ///
    /// # Errors
    /// When the kernel has none, or does not allow it (containers).
    pub fn new(depth: usize) -> io::Result<Self> {
        // One more for the bell.
        let entries = u32::try_from(depth + 1).map_err(|_| io::ErrorKind::InvalidInput)?;
        let ring = IoUring::new(entries)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if !probe.is_supported(opcode::Read::CODE) || !probe.is_supported(opcode::PollAdd::CODE) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let counter = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self {
            ring,
            slots: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            bell: Arc::new(Bell {
                counter,
                asleep: AtomicBool::new(false),
            }),
            watches: false,
            outcomes: Vec::with_capacity(depth + 1),
        })
    }

    /// What wakes `sleep`.
    pub fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    /// Whether another read can be begun.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Begins a read, of which the kernel hears with the next `submit` or `sleep`. Gives
    /// an event when it cannot.
    ///
    /// # Panics
    /// When there is no room.
    pub fn begin(&mut self, read: Read, progress: &Progress) -> Option<Event> {
        pause(read.script.pause);
        Fault::strike_worker(read.script.fault);
        let index = self.free.pop().expect("there is room");
        progress.begin(read.kind);
        self.slots[index] = Some(read);
        self.attempt(index, progress)
    }

    /// Queues the next attempt at the read in a slot.
    fn attempt(&mut self, index: usize, progress: &Progress) -> Option<Event> {
        let read = self.slots[index].as_ref().expect(IN_SLOT);
        let (start, address, left) = read.place();
        let Some(file) = read.file().direct() else {
            let end = End::Cached { refused: false };
            return Some(self.take(index, progress).report(end));
        };
        let descriptor = types::Fd(file.as_raw_fd());
        let left = u32::try_from(left).expect("pieces are small");
        let entry = opcode::Read::new(descriptor, address, left)
            .offset(start)
            .build()
            .user_data(index as u64);
        self.push(&entry);
        None
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY:
        // - descriptor and memory of a read stay in its slot until it is complete, also
        //   when this ring is dropped; its bytes are the read's alone;
        // - the bell's counter lives as long as the ring watches it.
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.expect("the queue has an entry for each slot and one for the bell");
    }

    /// Takes a read out of its slot.
    fn take(&mut self, index: usize, progress: &Progress) -> Read {
        let read = self.slots[index].take().expect(IN_SLOT);
        self.free.push(index);
        progress.finish(read.kind);
        read
    }

    /// Tells the kernel of reads that were begun.
    ///
    /// # Errors
    /// When the ring does not work any more.
    pub fn submit(&mut self) -> io::Result<()> {
        if self.ring.submission().is_empty() {
            return Ok(());
        }
        tolerate(self.ring.submit())
    }

    /// Appends what is to be told about reads that are over.
    pub fn collect(&mut self, progress: &Progress, events: &mut Vec<Event>) {
        let complete = self.ring.completion();
        self.outcomes
            .extend(complete.map(|entry| (entry.user_data(), entry.result())));
        let mut outcomes = std::mem::take(&mut self.outcomes);
        for (name, result) in outcomes.drain(..) {
            if name == RUNG {
                self.watches = false;
                // Empty when the coordinator had woken by itself.
                let _ = rustix::io::read(&self.bell.counter, &mut [0u8; 8]);
                continue;
            }
            let index = usize::try_from(name).expect("reads are named by their slots");
            events.extend(self.advance(index, result, progress));
        }
        self.outcomes = outcomes;
    }

    fn advance(&mut self, index: usize, result: i32, progress: &Progress) -> Option<Event> {
        let outcome = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
        let read = self.slots[index].as_mut().expect(IN_SLOT);
        match read.advance(outcome) {
            None => self.attempt(index, progress),
            Some(end) => Some(self.take(index, progress).report(end)),
        }
    }

    /// Sleeps until a read is complete or somebody rings; not at all when there is
    /// something in `inbox`.
    ///
    /// # Errors
    /// When the ring does not work any more.
    pub fn sleep(&mut self, inbox: &Receiver<Event>) -> io::Result<()> {
        if !self.watches {
            let counter = types::Fd(self.bell.counter.as_raw_fd());
            let events = u32::from(libc::POLLIN.unsigned_abs());
            let entry = opcode::PollAdd::new(counter, events).build();
            self.push(&entry.user_data(RUNG));
            self.watches = true;
        }
        self.bell.asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let outcome = if inbox.is_empty() {
            tolerate(self.ring.submit_and_wait(1))
        } else {
            Ok(())
        };
        self.bell.asleep.store(false, Ordering::SeqCst);
        outcome
    }

    fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel writes to the memory of reads under way: it must be done first.
        while !self.is_idle() {
            if tolerate(self.ring.submit_and_wait(1)).is_err() {
                // It may write for ever: the memory is never given back.
                std::mem::forget(std::mem::take(&mut self.slots));
                return;
            }
            let complete = self.ring.completion();
            self.outcomes
                .extend(complete.map(|entry| (entry.user_data(), entry.result())));
            for (name, _) in std::mem::take(&mut self.outcomes) {
                if let Ok(index) = usize::try_from(name)
                    && let Some(slot) = self.slots.get_mut(index)
                {
                    *slot = None;
                    self.free.push(index);
                }
            }
        }
    }
}

/// What the kernel says of a call that submits or waits, without what passes by itself.
fn tolerate(outcome: io::Result<usize>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy
            ) =>
        {
            // The kernel is short of memory for requests: time passes for the others.
            std::thread::sleep(Duration::from_millis(1));
            Ok(())
        }
        outcome => outcome.map(drop),
    }
}
