//! Events, and the recordings behind them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Whose stream waits for a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiter {
    /// One of the backend that recorded.
    Own,
    /// Another's: nothing but the event orders the two.
    Other,
}

/// A point in a stream, which comes once.
#[derive(Debug, Default)]
pub struct Recording {
    done: Mutex<bool>,
    came: Condvar,
    // Streams that have not come past their wait for it, and those of them that are of
    // other backends.
    waiting: AtomicUsize,
    others: AtomicUsize,
    // Which backend recorded; zero when nobody wants to know.
    recorder: usize,
}

impl Recording {
    /// It has come.
    pub fn complete(&self) {
        *lock(&self.done) = true;
        self.came.notify_all();
    }

    /// What a backend is that waits for it.
    pub fn waiter(&self, backend: usize) -> Waiter {
        match backend == self.recorder {
            true => Waiter::Own,
            false => Waiter::Other,
        }
    }

    /// A stream will wait for it.
    pub fn join(&self, waiter: Waiter) {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        self.others
            .fetch_add(usize::from(waiter == Waiter::Other), Ordering::AcqRel);
    }

    /// That stream has come past its wait.
    pub fn leave(&self, waiter: Waiter) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        self.others
            .fetch_sub(usize::from(waiter == Waiter::Other), Ordering::AcqRel);
    }

    /// Whether a stream has not come past its wait for it.
    pub fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// Blocks until it has come; whether that took any waiting.
    pub fn wait(&self) -> bool {
        let mut done = lock(&self.done);
        let waited = !*done;
        while !*done {
            done = self.came.wait(done).unwrap_or_else(PoisonError::into_inner);
        }
        waited
    }
}

/// What an event of ggml's points to: its newest recording. One that was never recorded
/// has come.
#[derive(Debug, Default)]
pub struct Event {
    newest: Mutex<Option<Arc<Recording>>>,
    // Recordings before the newest, since somebody has blocked for the event.
    earlier: Mutex<Vec<Arc<Recording>>>,
}

impl Event {
    /// A new recording, for a stream of that backend to complete. Earlier ones stay with
    /// who waits for them.
    pub fn record(&self, recorder: usize) -> Arc<Recording> {
        let recording = Arc::new(Recording {
            recorder,
            ..Recording::default()
        });
        let before = lock(&self.newest).replace(Arc::clone(&recording));
        lock(&self.earlier).extend(before);
        recording
    }

    /// Whether a stream of another backend still waits for the newest recording.
    pub fn is_waited_for(&self) -> bool {
        let newest = lock(&self.newest);
        let others = |recording: &Arc<Recording>| recording.others.load(Ordering::Acquire) > 0;
        newest.as_ref().is_some_and(others)
    }

    /// Takes earlier recordings back; whether a stream still waits for one.
    pub fn forget_earlier(&self) -> bool {
        let earlier = std::mem::take(&mut *lock(&self.earlier));
        earlier.iter().any(|recording| recording.is_waited_for())
    }

    /// The newest recording.
    pub fn newest(&self) -> Option<Arc<Recording>> {
        lock(&self.newest).clone()
    }
}

/// A lock that nobody leaves in a bad state, panic or not.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_for_the_recording_of_its_time() {
        let event = Event::default();
        assert!(event.newest().is_none(), "never recorded: it has come");
        let first = event.record(1);
        let waiting = event.newest().expect("just recorded");
        let second = event.record(1);
        first.complete();
        assert!(!waiting.wait(), "the second recording is nothing to it");
        second.complete();
        assert!(!second.wait());
    }

    #[test]
    fn who_waits_behind_its_own_recording_is_no_other() {
        let event = Event::default();
        let first = event.record(7);
        assert_eq!(
            [7, 8].map(|backend| first.waiter(backend)),
            [Waiter::Own, Waiter::Other]
        );
        first.join(Waiter::Own);
        assert!(!event.is_waited_for());
        first.join(Waiter::Other);
        assert!(event.is_waited_for());
        first.leave(Waiter::Other);
        assert!(!event.is_waited_for());
    }

    #[test]
    fn an_earlier_recording_that_is_waited_for_is_found() {
        let event = Event::default();
        let first = event.record(1);
        assert!(!event.is_waited_for());
        first.join(Waiter::Other);
        assert!(event.is_waited_for(), "as long as it is the newest");
        assert!(!event.forget_earlier(), "it is the newest");
        event.record(1);
        assert!(event.forget_earlier(), "taken back too early");
        event.record(1);
        assert!(!event.forget_earlier(), "nobody waits for the second");
        first.leave(Waiter::Other);
    }
}
