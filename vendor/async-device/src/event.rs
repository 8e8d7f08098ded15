//! Events, and the recordings behind them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A point in a stream, which comes once.
#[derive(Debug, Default)]
pub struct Recording {
    done: Mutex<bool>,
    came: Condvar,
    // Streams that have not come past their wait for it.
    waiting: AtomicUsize,
}

impl Recording {
    /// It has come.
    pub fn complete(&self) {
        *lock(&self.done) = true;
        self.came.notify_all();
    }

    /// A stream will wait for it.
    pub fn join(&self) {
        self.waiting.fetch_add(1, Ordering::AcqRel);
    }

    /// That stream has come past its wait.
    pub fn leave(&self) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
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
    /// A new recording, for a stream to complete. Earlier ones stay with who waits for them.
    pub fn record(&self) -> Arc<Recording> {
        let recording = Arc::new(Recording::default());
        let before = lock(&self.newest).replace(Arc::clone(&recording));
        lock(&self.earlier).extend(before);
        recording
    }

    /// Takes earlier recordings back; whether a stream still waits for one.
    pub fn forget_earlier(&self) -> bool {
        let earlier = std::mem::take(&mut *lock(&self.earlier));
        let waiting = |recording: &Arc<Recording>| recording.waiting.load(Ordering::Acquire) > 0;
        earlier.iter().any(waiting)
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
        let first = event.record();
        let waiting = event.newest().expect("just recorded");
        let second = event.record();
        first.complete();
        assert!(!waiting.wait(), "the second recording is nothing to it");
        second.complete();
        assert!(!second.wait());
    }

    #[test]
    fn an_earlier_recording_that_is_waited_for_is_found() {
        let event = Event::default();
        let first = event.record();
        first.join();
        assert!(!event.forget_earlier(), "it is the newest");
        event.record();
        assert!(event.forget_earlier(), "taken back too early");
        event.record();
        assert!(!event.forget_earlier(), "nobody waits for the second");
        first.leave();
    }
}
