//! Streams: a thread each, which does what is queued in order, with delays.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::report::violation;
use crate::settings::settings;
use crate::state::{self, State};

/// A function of the program's that a stream calls.
pub type HostFunction = unsafe extern "C" fn(*mut c_void);

/// What was queued on a stream up to a number.
#[derive(Clone, Debug)]
pub struct Point {
    stream: Arc<Stream>,
    number: u64,
}

impl Point {
    /// Whether all of it is done.
    pub fn is_done(&self) -> bool {
        self.stream.lock().done >= self.number
    }

    /// Blocks until all of it is done.
    pub fn wait(&self) {
        let mut queue = self.stream.lock();
        while queue.done < self.number {
            let waited = self.stream.changed.wait(queue);
            queue = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Host memory of a copy.
#[derive(Debug)]
pub enum HostSide {
    /// Pinned: used when the copy is done.
    Pinned(usize, Arc<()>),
    /// Pageable memory that the caller waits for.
    Waited(usize),
    /// What was there when the copy was queued.
    Snapshot(Vec<u8>),
}

impl HostSide {
    fn address(&self) -> usize {
        match self {
            Self::Pinned(address, _) | Self::Waited(address) => *address,
            Self::Snapshot(bytes) => bytes.as_ptr() as usize,
        }
    }
}

/// A piece of work.
#[derive(Debug)]
pub enum Work {
    /// Host memory to a card.
    ToDevice(usize, HostSide, usize),
    /// A card's memory to the host.
    ToHost(HostSide, usize, usize),
    /// Within the cards.
    Within(usize, usize, usize),
    /// One value everywhere.
    Fill(usize, u8, usize),
    /// A call of the program's, with its argument.
    Call(HostFunction, usize),
    /// Takes the time.
    Mark(Arc<Mutex<Option<Instant>>>),
    /// Only waits.
    Nothing,
}

#[derive(Debug)]
struct Entry {
    after: Vec<Point>,
    work: Work,
}

#[derive(Debug, Default)]
struct Queue {
    entries: VecDeque<Entry>,
    submitted: u64,
    done: u64,
    is_closed: bool,
}

/// A stream.
#[derive(Debug)]
pub struct Stream {
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Whether it waits for the default stream, and that for it.
    pub is_blocking: bool,
}

static COPIES: AtomicU64 = AtomicU64::new(0);

impl Stream {
    /// Starts a stream.
    pub fn start(is_blocking: bool, index: u64) -> Arc<Self> {
        let stream = Arc::new(Self {
            queue: Mutex::default(),
            changed: Condvar::new(),
            is_blocking,
        });
        let worker = Arc::clone(&stream);
        let delays = Delays(settings().seed ^ index.wrapping_mul(0x9E37_79B9));
        std::thread::spawn(move || worker.run(delays));
        stream
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything queued so far.
    pub fn tail(self: &Arc<Self>) -> Point {
        let number = self.lock().submitted;
        let stream = Arc::clone(self);
        Point { stream, number }
    }

    /// Queues work that comes after what is queued here and after `after`.
    pub fn push(self: &Arc<Self>, after: Vec<Point>, work: Work) -> Point {
        let mut queue = self.lock();
        queue.entries.push_back(Entry { after, work });
        queue.submitted += 1;
        let number = queue.submitted;
        drop(queue);
        self.changed.notify_all();
        let stream = Arc::clone(self);
        Point { stream, number }
    }

    /// Ends the thread when everything is done.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    fn next(&self) -> Option<Entry> {
        let mut queue = self.lock();
        loop {
            if let Some(entry) = queue.entries.pop_front() {
                return Some(entry);
            }
            if queue.is_closed {
                return None;
            }
            let waited = self.changed.wait(queue);
            queue = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn run(&self, mut delays: Delays) {
        while let Some(entry) = self.next() {
            for point in &entry.after {
                point.wait();
            }
            delays.wait();
            if let Some(state) = state::started() {
                state.perform(&entry.work);
            }
            // What it holds is let go before anybody learns that it is done.
            drop(entry);
            self.lock().done += 1;
            self.changed.notify_all();
        }
    }
}

/// Random numbers, seeded.
struct Delays(u64);

impl Delays {
    fn wait(&mut self) {
        let longest = settings().delay_us_max;
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        if longest > 0 {
            std::thread::sleep(Duration::from_micros((mixed >> 31) % (longest + 1)));
        }
    }
}

impl State {
    /// Does a piece of work; nothing at all once the card is lost.
    fn perform(&self, work: &Work) {
        let is_copy = matches!(
            work,
            Work::ToDevice(..) | Work::ToHost(..) | Work::Within(..)
        );
        if is_copy {
            let number = COPIES.fetch_add(1, Ordering::SeqCst) + 1;
            if let Some((_, code)) = settings().fail_copy.filter(|(copy, _)| number >= *copy) {
                self.lose(code);
            }
        }
        if self.lost().is_err() {
            return;
        }
        match work {
            Work::ToDevice(to, from, bytes) => self.copy(*to, true, from.address(), false, *bytes),
            Work::ToHost(to, from, bytes) => self.copy(to.address(), false, *from, true, *bytes),
            Work::Within(to, from, bytes) => self.copy(*to, true, *from, true, *bytes),
            Work::Fill(to, value, bytes) => self.fill(*to, *value, *bytes),
            Work::Call(function, argument) => state::in_host_function(|| {
                // SAFETY: the program's promise when it queued the call.
                unsafe { function(*argument as *mut c_void) }
            }),
            Work::Mark(time) => {
                *time.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            }
            Work::Nothing => {}
        }
    }

    fn copy(&self, to: usize, to_card: bool, from: usize, from_card: bool, bytes: usize) {
        let memory = self.memory();
        for (address, is_card) in [(to, to_card), (from, from_card)] {
            if let Err(sentence) = if is_card {
                memory.check(address, bytes)
            } else {
                Ok(())
            } {
                violation(format!("a copy touches what it must not: {sentence}"));
                return;
            }
        }
        let place = |address: usize, is_card: bool| {
            if is_card {
                memory.host(address)
            } else {
                address as *mut u8
            }
        };
        // SAFETY:
        // - a card's side was checked just now, and cannot be freed while the lock is held;
        // - the host's side is valid until the copy is done: the program's promise.
        unsafe { std::ptr::copy(place(from, from_card), place(to, to_card), bytes) };
    }

    fn fill(&self, to: usize, value: u8, bytes: usize) {
        let memory = self.memory();
        match memory.check(to, bytes) {
            // SAFETY: checked just now, and cannot be freed while the lock is held.
            Ok(()) => unsafe { memory.host(to).write_bytes(value, bytes) },
            Err(sentence) => violation(format!("a fill touches what it must not: {sentence}")),
        }
    }
}
