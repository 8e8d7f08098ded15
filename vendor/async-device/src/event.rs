//! Events, and the recordings behind them.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A point in a stream, which comes once.
#[derive(Debug, Default)]
pub struct Recording {
    done: Mutex<bool>,
    came: Condvar,
}

impl Recording {
    /// It has come.
    pub fn complete(&self) {
        *lock(&self.done) = true;
        self.came.notify_all();
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
}

impl Event {
    /// A new recording, for a stream to complete. Earlier ones stay with who waits for them.
    pub fn record(&self) -> Arc<Recording> {
        let recording = Arc::new(Recording::default());
        *lock(&self.newest) = Some(Arc::clone(&recording));
        recording
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
}
