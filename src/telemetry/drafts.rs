//! What drafting did: counted where it happens, read where records are made.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counters that a generation adds to.
#[derive(Debug, Default)]
pub struct Tally {
    passes: AtomicU64,
    drafted: AtomicU64,
    accepted: AtomicU64,
    nanoseconds: AtomicU64,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Drafts {
    /// Passes over the model that computed what follows a generated token.
    pub passes: u64,
    /// Tokens that were drafted, and computed in those passes.
    pub drafted: u64,
    /// Those of them that were right.
    pub accepted: u64,
    /// Time that drafting took, in seconds; a draft model's most of all.
    pub seconds: f64,
}

impl Tally {
    /// A draft of so many tokens took so long; none is a draft as well.
    pub fn draft(&self, tokens: usize, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.drafted.fetch_add(tokens as u64, Ordering::Relaxed);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// A generated token was computed, with its draft.
    pub fn pass(&self) {
        self.passes.fetch_add(1, Ordering::Relaxed);
    }

    /// A drafted token was right.
    pub fn accept(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    /// The counters now.
    pub fn read(&self) -> Drafts {
        Drafts {
            passes: self.passes.load(Ordering::Relaxed),
            drafted: self.drafted.load(Ordering::Relaxed),
            accepted: self.accepted.load(Ordering::Relaxed),
            seconds: Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed)).as_secs_f64(),
        }
    }
}

impl Drafts {
    /// What was added since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            passes: self.passes.saturating_sub(earlier.passes),
            drafted: self.drafted.saturating_sub(earlier.drafted),
            accepted: self.accepted.saturating_sub(earlier.accepted),
            seconds: (self.seconds - earlier.seconds).max(0.0),
        }
    }
}
