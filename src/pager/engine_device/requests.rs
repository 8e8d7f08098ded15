//! The requests that are not done: which are queued on the device and the fences with which
//! they come, and which have to wait for earlier ones before it is said that they are done.
//!
//! ```text
//!  begun ──► queued: its fence ──► come ──► done, when all before it are
//! ```
//!
//! Requests of one direction come in their order. One of the other may come sooner than an
//! earlier one, which computations need not wait for.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::super::engine::{Direction, Failure, Ticket};
use super::super::engine_host::progress::Progress;
use crate::ggml::Fence;

/// See the module's documentation.
#[derive(Debug)]
pub struct Requests {
    state: Mutex<State>,
    changed: Condvar,
    progress: Arc<Progress>,
}

#[derive(Debug, Default)]
struct State {
    // By ticket, from this one on; those before are done.
    first: u64,
    open: VecDeque<Open>,
    // Why nothing more will be queued.
    ended: Option<String>,
}

/// A request that is not done.
#[derive(Debug)]
struct Open {
    direction: Direction,
    // Streams that have not done their part of it.
    parts: usize,
    arrival: Arrival,
    has_failed: bool,
    bytes: [u64; 3],
}

/// What is known of a request's copies.
#[derive(Clone, Debug)]
enum Arrival {
    Unknown,
    Queued(Fence),
    Come,
}

impl State {
    /// The request; None when it is done, or has not begun.
    fn of(&mut self, ticket: Ticket) -> Option<&mut Open> {
        let index = ticket.0.checked_sub(self.first)?;
        self.open.get_mut(usize::try_from(index).ok()?)
    }

    fn arrival(&mut self, ticket: Ticket) -> Arrival {
        if ticket.0 < self.first {
            return Arrival::Come;
        }
        let open = self.of(ticket);
        open.map_or(Arrival::Unknown, |open| open.arrival.clone())
    }
}

impl Requests {
    /// No requests yet; those that are done are told to `progress`.
    pub fn new(progress: Arc<Progress>) -> Self {
        Self {
            state: Mutex::new(State {
                first: 1,
                ..State::default()
            }),
            changed: Condvar::new(),
            progress,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next request begins. One stream will do a part of it at least.
    pub fn begin(&self, ticket: Ticket, direction: Direction) {
        let mut state = self.lock();
        assert_eq!(ticket.0, state.first + state.open.len() as u64);
        state.open.push_back(Open {
            direction,
            parts: 1,
            arrival: Arrival::Unknown,
            has_failed: false,
            bytes: [0; 3],
        });
    }

    /// One more stream does a part of a request that is being handed on.
    pub fn add_part(&self, ticket: Ticket) {
        if let Some(open) = self.lock().of(ticket) {
            open.parts += 1;
        }
    }

    /// Notes that all of a request is queued, and comes with `fence`.
    pub fn note_queued(&self, ticket: Ticket, fence: Fence) {
        if let Some(open) = self.lock().of(ticket) {
            open.arrival = Arrival::Queued(fence);
        }
        self.changed.notify_all();
    }

    /// Notes that a request has failed, unless that is known.
    pub fn fail(&self, ticket: Ticket, sentence: String) {
        let mut state = self.lock();
        let Some(open) = state.of(ticket).filter(|open| !open.has_failed) else {
            return;
        };
        open.has_failed = true;
        let direction = open.direction;
        self.progress.lock().note_failure(Failure {
            ticket,
            direction,
            sentence,
        });
    }

    /// Whether a request that is not done is known to have failed.
    pub fn has_failed(&self, ticket: Ticket) -> bool {
        self.lock().of(ticket).is_some_and(|open| open.has_failed)
    }

    /// A stream has done its part of a request; `come` has the bytes that it moved, by kind
    /// of counter, when that is all that computations wait for.
    pub fn finish_part(&self, ticket: Ticket, come: Option<[u64; 3]>) {
        let mut state = self.lock();
        if let Some(open) = state.of(ticket) {
            open.parts -= 1;
            if let Some(bytes) = come {
                open.bytes = bytes;
                open.arrival = Arrival::Come;
            }
        }
        while state.open.front().is_some_and(|open| open.parts == 0) {
            let Some(done) = state.open.pop_front() else {
                break;
            };
            let ticket = Ticket(state.first);
            state.first += 1;
            self.progress.complete(ticket, |state| {
                let moved = done.bytes.iter().filter(|_| !done.has_failed);
                for (sum, bytes) in state.bytes.iter_mut().zip(moved) {
                    *sum += bytes;
                }
            });
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Nothing more will be queued, for this reason unless there is one already.
    pub fn end(&self, why: &str) {
        self.lock().ended.get_or_insert_with(|| why.to_owned());
        self.changed.notify_all();
    }

    /// Why nothing more will be queued.
    pub fn why_ended(&self) -> Option<String> {
        self.lock().ended.clone()
    }

    /// See `CopyEngine::arrival`.
    pub fn arrival(&self, ticket: Ticket, written_back: Ticket) -> Result<Option<Fence>, Failure> {
        let is_known = |arrival: &Arrival| !matches!(arrival, Arrival::Unknown);
        self.outcome(ticket, written_back, is_known)
    }

    /// See `CopyEngine::await_arrival`.
    pub fn wait(&self, ticket: Ticket, written_back: Ticket) -> Result<(), Failure> {
        let has_come = |arrival: &Arrival| matches!(arrival, Arrival::Come);
        self.outcome(ticket, written_back, has_come).map(|_| ())
    }

    /// See `CopyEngine::has_arrived`.
    pub fn has_arrived(&self, ticket: Ticket) -> bool {
        let has_come = matches!(self.lock().arrival(ticket), Arrival::Come);
        has_come || self.progress.is_settled(ticket)
    }

    /// Blocks until enough is known of a request, and says how it is with it.
    fn outcome(
        &self,
        ticket: Ticket,
        written_back: Ticket,
        is_enough: impl Fn(&Arrival) -> bool,
    ) -> Result<Option<Fence>, Failure> {
        let mut state = self.lock();
        let mut arrival = state.arrival(ticket);
        while !is_enough(&arrival) && state.ended.is_none() {
            let woken = self.changed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
            arrival = state.arrival(ticket);
        }
        let has_ended = state.ended.is_some();
        drop(state);
        if has_ended {
            // Soon nothing is in flight any more.
            let settled = self.progress.wait(ticket);
            return settled.outcome(ticket, written_back).map(|()| None);
        }
        // A failure that is known by now.
        let state = self.progress.lock();
        let known = state.failures.first();
        if let Some(failure) = known.filter(|failure| failure.ticket <= ticket) {
            return Err(failure.clone());
        }
        Ok(match arrival {
            Arrival::Queued(fence) => Some(fence),
            Arrival::Unknown | Arrival::Come => None,
        })
    }
}
