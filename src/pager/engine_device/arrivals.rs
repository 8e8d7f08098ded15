//! Which requests are queued on the link, and the fences with which they come.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::super::engine::{Failure, Ticket};
use super::super::engine_host::progress::Progress;
use crate::ggml::Fence;

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Arrivals {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queued: Ticket,
    // Queued and not done, oldest first.
    fences: VecDeque<(Ticket, Fence)>,
    ended: bool,
}

impl Arrivals {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that all of a request is queued, and comes with `fence`.
    pub fn note(&self, ticket: Ticket, fence: Fence) {
        let mut state = self.lock();
        state.queued = ticket;
        state.fences.push_back((ticket, fence));
        drop(state);
        self.changed.notify_all();
    }

    /// Forgets the fence of the oldest request, which is done. Its ticket is settled
    /// before, so that nobody misses both.
    pub fn forget_oldest(&self) {
        self.lock().fences.pop_front();
    }

    /// Nothing more will be queued.
    pub fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// See `CopyEngine::arrival`.
    pub fn wait(
        &self,
        progress: &Progress,
        ticket: Ticket,
        written_back: Ticket,
    ) -> Result<Option<Fence>, Failure> {
        let mut state = self.lock();
        while state.queued < ticket && !state.ended {
            let woken = self.changed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
        let held = state.fences.iter().find(|(held, _)| *held == ticket);
        let fence = held.map(|(_, fence)| fence.clone());
        drop(state);
        let Some(fence) = fence else {
            // Done meanwhile, or never.
            let settled = progress.wait(ticket);
            return settled.outcome(ticket, written_back).map(|()| None);
        };
        // A failure that is known by now; whatever ended the engine is one.
        let state = progress.lock();
        let known = state.failures.first();
        if let Some(failure) = known.filter(|failure| failure.ticket <= ticket) {
            return Err(failure.clone());
        }
        if state.ended.is_some() {
            return state.outcome(ticket, written_back).map(|()| None);
        }
        Ok(Some(fence))
    }
}
