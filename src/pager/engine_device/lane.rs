//! How far a stream of copies is: what others wait for, on the device or on the host.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::staging::Gone;
use crate::ggml::Fence;

/// A stream's copies, counted from 1 on in the order in which they are handed to it.
#[derive(Debug, Default)]
pub struct Lane {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    // Events that have not come, oldest first, each with the copies that are done then.
    recorded: VecDeque<(u64, Fence)>,
    done: u64,
    ended: bool,
}

impl Lane {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that all copies up to `number` are done when `fence` comes.
    pub fn note_recorded(&self, number: u64, fence: Fence) {
        self.lock().recorded.push_back((number, fence));
        self.changed.notify_all();
    }

    /// Notes that all copies up to `number` are done, and have landed.
    pub fn note_done(&self, number: u64) {
        let mut state = self.lock();
        state.done = state.done.max(number);
        while state
            .recorded
            .front()
            .is_some_and(|(covered, _)| *covered <= number)
        {
            state.recorded.pop_front();
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Nothing more will be queued, and nobody waits for any of it.
    pub fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// The newest copy that is done with all before it.
    pub fn done(&self) -> u64 {
        self.lock().done
    }

    /// What a stream has to wait for, so that copy `number` is done before; None when it
    /// is. Blocks until an event has been recorded behind it.
    ///
    /// # Errors
    /// When that will never be.
    pub fn fence_behind(&self, number: u64) -> Result<Option<Fence>, Gone> {
        let mut state = self.lock();
        loop {
            if state.done >= number {
                return Ok(None);
            }
            let mut recorded = state.recorded.iter();
            if let Some((_, fence)) = recorded.find(|(covered, _)| *covered >= number) {
                return Ok(Some(Fence::clone(fence)));
            }
            if state.ended {
                return Err(Gone);
            }
            let woken = self.changed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Blocks until copy `number`, behind which an event is recorded sooner or later, is
    /// done and has landed.
    ///
    /// # Errors
    /// When that will never be.
    pub fn wait(&self, number: u64) -> Result<(), Gone> {
        let mut state = self.lock();
        while state.done < number {
            if state.ended {
                return Err(Gone);
            }
            let woken = self.changed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }
}
