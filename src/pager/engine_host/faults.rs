//! Delays and failures that an engine is told to have, so that tests can see what they
//! lead to.

use std::time::{Duration, Instant};

use super::super::engine::{Copy, Source, Target};

/// Delays and failures that an engine is told to have; none by default. Requests are
/// counted from 0; a request that has no copy which could fail in this way does not.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// Seed of random delays before and after each request; None: no delays.
    pub delay_seed: Option<u64>,
    /// Upper bound of one delay, in microseconds.
    pub delay_us_max: u32,
    /// The request that fails.
    pub fail_request: Option<u64>,
    /// The request that is refused at submission.
    pub refuse_request: Option<u64>,
    /// The request of which a read from a file brings fewer bytes than it could, which
    /// is no failure.
    pub short_read: Option<u64>,
    /// The request of which a read from a file fails (EIO).
    pub failed_read: Option<u64>,
    /// The request of which a direct read is refused by the file system (EINVAL), which
    /// then is read through the page cache.
    pub refused_direct_read: Option<u64>,
    /// The request of which a write to a file fails: the disk is full (ENOSPC).
    pub full_disk: Option<u64>,
    /// The request in which the thread that does the first piece of it dies.
    pub dead_worker: Option<u64>,
    /// Has direct reads done by threads, as on systems without io_uring.
    pub no_ring: bool,
    /// What copies into the arena take at most together, in bytes per second: a request is
    /// done no sooner than a link as slow would have done it. None: no such bound.
    pub bytes_per_second: Option<u64>,
    /// Host memory for weights that stream to a device, in bytes; None: as much as the
    /// machine has to spare.
    pub keep_bytes_max: Option<u64>,
}

/// What goes wrong with one piece of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    ShortRead,
    FailedRead,
    RefusedDirectRead,
    FullDisk,
    DeadWorker,
}

impl Fault {
    /// Whether `copy` can fail in this way.
    pub fn concerns(self, copy: &Copy) -> bool {
        let reads = matches!(copy.from, Source::File { .. });
        match self {
            Self::ShortRead | Self::FailedRead => reads,
            Self::RefusedDirectRead => {
                matches!(&copy.from, Source::File { file, .. } if file.is_direct())
                    && matches!(copy.to, Target::Memory { .. })
            }
            Self::FullDisk => matches!(copy.to, Target::File { .. }),
            Self::DeadWorker => true,
        }
    }

    /// What is to go wrong with bytes of this request that are written to `to`.
    pub fn of_target(faults: &Faults, request: u64, to: &Target) -> Option<Self> {
        let is_full = faults.full_disk == Some(request);
        (is_full && matches!(to, Target::File { .. })).then_some(Self::FullDisk)
    }

    /// Ends this thread when that is the fault, without a message: it is not news.
    pub fn strike_worker(fault: Option<Self>) {
        if fault == Some(Self::DeadWorker) {
            std::panic::resume_unwind(Box::new("told to die"));
        }
    }
}

impl Faults {
    /// What is to go wrong with a piece of this request.
    pub fn of(&self, request: u64) -> Option<Fault> {
        let plan = [
            (self.short_read, Fault::ShortRead),
            (self.failed_read, Fault::FailedRead),
            (self.refused_direct_read, Fault::RefusedDirectRead),
            (self.full_disk, Fault::FullDisk),
            (self.dead_worker, Fault::DeadWorker),
        ];
        let strikes = |(when, fault)| (when == Some(request)).then_some(fault);
        plan.into_iter().find_map(strikes)
    }
}

/// What a piece of a copy is told to do besides its work; nothing by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Script {
    /// How long to wait before it.
    pub pause: Duration,
    /// What goes wrong with it.
    pub fault: Option<Fault>,
}

impl Script {
    /// What of it a copy takes over: the pause, and the fault if it can have it.
    pub fn for_copy(&mut self, copy: &Copy) -> Self {
        Self {
            pause: std::mem::take(&mut self.pause),
            fault: self.fault.take_if(|fault| fault.concerns(copy)),
        }
    }
}

/// Seeded random pauses (xorshift64*).
pub struct Delays {
    state: u64,
    us_max: u32,
}

impl Delays {
    /// The delays that `faults` ask for.
    pub fn of(faults: &Faults) -> Option<Self> {
        faults.delay_seed.map(|seed| Self {
            state: seed | 1,
            us_max: faults.delay_us_max,
        })
    }

    /// The next pause.
    pub fn draw(&mut self) -> Duration {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let drawn = self.state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
        let us = drawn % (u64::from(self.us_max) + 1);
        // Half of the pauses are none at all, so that both orders of a race occur.
        if drawn & 1 == 0 {
            Duration::from_micros(us)
        } else {
            Duration::ZERO
        }
    }
}

/// A link of a given speed, which takes one request after the other.
pub struct Link {
    bytes_per_second: u64,
    free_at: Instant,
}

impl Link {
    /// The link that `faults` ask for.
    pub fn of(faults: &Faults) -> Option<Self> {
        faults.bytes_per_second.map(|rate| Self {
            bytes_per_second: rate.max(1),
            free_at: Instant::now(),
        })
    }

    /// When a request of `bytes` that begins now is done.
    pub fn take(&mut self, bytes: usize) -> Instant {
        #[allow(clippy::cast_precision_loss, reason = "a time")]
        let seconds = bytes as f64 / self.bytes_per_second as f64;
        let start = self.free_at.max(Instant::now());
        self.free_at = start + Duration::from_secs_f64(seconds);
        self.free_at
    }
}

/// Sleeps, unless there is nothing to sleep for: a sleep of nothing costs 50 us.
pub fn pause(duration: Duration) {
    if !duration.is_zero() {
        std::thread::sleep(duration);
    }
}
