//! What the threads of an engine tell those that wait for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::super::engine::{Counters, Direction, Failure, Source, Ticket};

/// Which counter a copy belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Storage,
    Link,
    WriteBack,
}

impl Kind {
    /// The kind of a copy; None when it is not counted.
    pub fn of(direction: Direction, from: &Source) -> Option<Self> {
        match (direction, from) {
            (_, Source::Pattern(_)) => None,
            (Direction::Out, _) => Some(Self::WriteBack),
            (Direction::In, Source::File { .. }) => Some(Self::Storage),
            (Direction::In, Source::Memory { .. } | Source::Device { .. }) => Some(Self::Link),
        }
    }
}

/// What an engine has done, shared by its threads and its user.
#[derive(Debug, Default)]
pub struct Progress {
    // The newest ticket that need not be waited for; all of them once the engine ended.
    // Written with the lock held, so that nobody who looks at it there misses a change.
    settled: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
pub struct State {
    /// The newest ticket that is done.
    pub done: Ticket,
    /// What failed, oldest first.
    pub failures: Vec<Failure>,
    /// Bytes that were moved, by kind.
    pub bytes: [u64; 3],
    /// Requests that failed.
    pub failed: u64,
    /// See `CopyEngine::notices`.
    pub notices: Vec<String>,
    /// Why nobody will finish what is left; None as long as somebody will.
    pub ended: Option<String>,
    clocks: [Clock; 3],
}

/// Time during which something is going on, however much of it at once.
#[derive(Clone, Copy, Debug, Default)]
struct Clock {
    active: u32,
    since: Option<Instant>,
    spent: Duration,
}

impl Clock {
    fn seconds(&self) -> f64 {
        let running = self.since.map_or(Duration::ZERO, |since| since.elapsed());
        (self.spent + running).as_secs_f64()
    }
}

impl State {
    /// The state as the engine's user sees it.
    pub fn counters(&self) -> Counters {
        Counters {
            storage_bytes: self.bytes[Kind::Storage as usize],
            link_bytes: self.bytes[Kind::Link as usize],
            staged_bytes: 0,
            write_back_bytes: self.bytes[Kind::WriteBack as usize],
            storage_seconds: self.clocks[Kind::Storage as usize].seconds(),
            link_seconds: self.clocks[Kind::Link as usize].seconds(),
            write_back_seconds: self.clocks[Kind::WriteBack as usize].seconds(),
            failed: self.failed,
        }
    }

    /// Notes a failure, in the order of tickets.
    pub fn note_failure(&mut self, failure: Failure) {
        let is_older = |other: &Failure| other.ticket <= failure.ticket;
        let place = self.failures.partition_point(is_older);
        self.failures.insert(place, failure);
        self.failed += 1;
    }

    /// What `CopyEngine::wait` says of `ticket`, which is settled, when the newest request
    /// that writes back is `written_back`.
    pub fn outcome(&self, ticket: Ticket, written_back: Ticket) -> Result<(), Failure> {
        let oldest = self.failures.first();
        if let Some(failure) = oldest.filter(|failure| failure.ticket <= ticket) {
            return Err(failure.clone());
        }
        match &self.ended {
            Some(sentence) if ticket > self.done => Err(Failure {
                ticket,
                // Whatever was to be written back by then is lost.
                direction: if written_back > self.done {
                    Direction::Out
                } else {
                    Direction::In
                },
                sentence: sentence.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// See `CopyEngine::forget_failures`.
    pub fn forget_failures(&mut self, written_back: Ticket) -> Option<Failure> {
        let failures = std::mem::take(&mut self.failures);
        let mut failures = failures.into_iter();
        let lost = failures.find(|failure| failure.direction == Direction::Out);
        // What a dead engine was to write back is lost for good.
        let sentence = self.ended.as_ref().filter(|_| written_back > self.done);
        lost.or_else(|| {
            sentence.map(|sentence| Failure {
                ticket: written_back,
                direction: Direction::Out,
                sentence: sentence.clone(),
            })
        })
    }
}

impl Progress {
    pub fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while holding the lock is impossible: nothing in there calls out.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether waiting for `ticket` would not block.
    pub fn is_settled(&self, ticket: Ticket) -> bool {
        self.settled.load(Ordering::Acquire) >= ticket.0
    }

    /// Blocks until `ticket` is done, or will never be.
    pub fn wait(&self, ticket: Ticket) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        while !self.is_settled(ticket) {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state
    }

    /// Forgets that a request failed, of which nobody will ask any more.
    pub fn forget_failure(&self, ticket: Ticket) {
        self.lock()
            .failures
            .retain(|failure| failure.ticket != ticket);
    }

    /// Changes the state in a way that completes `ticket`.
    pub fn complete(&self, ticket: Ticket, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        state.done = ticket;
        self.settled.store(ticket.0, Ordering::Release);
        drop(state);
        self.changed.notify_all();
    }

    /// Tells everybody that nothing more will be done.
    pub fn end(&self, why: &str) {
        let mut state = self.lock();
        state.ended.get_or_insert_with(|| why.to_owned());
        self.settled.store(u64::MAX, Ordering::Release);
        drop(state);
        self.changed.notify_all();
    }

    /// Has the clock of `kind` run until the guard is dropped.
    pub fn busy(&self, kind: Option<Kind>) -> Busy<'_> {
        self.begin(kind);
        Busy(self, kind)
    }

    /// A copy of this kind begins.
    pub fn begin(&self, kind: Option<Kind>) {
        let Some(kind) = kind else { return };
        let clock = &mut self.lock().clocks[kind as usize];
        clock.active += 1;
        clock.since.get_or_insert_with(Instant::now);
    }

    /// A copy of this kind that had begun is over.
    pub fn finish(&self, kind: Option<Kind>) {
        let Some(kind) = kind else { return };
        let clock = &mut self.lock().clocks[kind as usize];
        clock.active -= 1;
        if clock.active == 0 {
            clock.spent += clock
                .since
                .take()
                .map_or(Duration::ZERO, |since| since.elapsed());
        }
    }
}

/// See `Progress::busy`.
pub struct Busy<'a>(&'a Progress, Option<Kind>);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.finish(self.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_runs_while_anything_goes_on() {
        let progress = Progress::default();
        let seconds = || progress.lock().counters().link_seconds;
        let first = progress.busy(Some(Kind::Link));
        let second = progress.busy(Some(Kind::Link));
        drop(first);
        let (now, then) = (seconds(), seconds());
        assert!(then > now, "the second one still runs");
        drop(second);
        assert_eq!(seconds(), seconds());
        drop(progress.busy(None));
        assert_eq!(progress.lock().counters().storage_seconds, 0.0);
    }

    #[test]
    fn the_end_settles_everything() {
        let progress = Progress::default();
        assert!(!progress.is_settled(Ticket(7)));
        progress.end("over");
        assert!(progress.is_settled(Ticket(7)));
        assert_eq!(progress.wait(Ticket(7)).ended.as_deref(), Some("over"));
    }
}
