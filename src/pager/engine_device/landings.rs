//! Which bytes have arrived in files and memories that no stream of the device writes: who
//! reads them there has to wait for that.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Counts landings, whose numbers grow in the order in which they happen.
#[derive(Debug, Default)]
pub struct Landings {
    landed: Mutex<u64>,
    changed: Condvar,
}

impl Landings {
    fn lock(&self) -> MutexGuard<'_, u64> {
        self.landed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest one.
    pub fn landed(&self) -> u64 {
        *self.lock()
    }

    /// Notes that this one, and all before it, have landed.
    pub fn note(&self, number: u64) {
        *self.lock() = number;
        self.changed.notify_all();
    }

    /// No more will land: nobody waits for any.
    pub fn end(&self) {
        self.note(u64::MAX);
    }

    /// Blocks until this one has landed.
    pub fn wait(&self, number: u64) {
        let mut landed = self.lock();
        while *landed < number {
            let woken = self.changed.wait(landed);
            landed = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }
}
