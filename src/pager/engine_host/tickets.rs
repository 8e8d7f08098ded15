//! The books of an engine's user: which tickets were given out, and what is asked of those
//! that do the work.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::super::engine::{Copy, Direction, Failure, Request, Ticket};
use super::Faults;
use super::progress::Progress;

/// How many finished requests' vectors are kept for reuse.
const RECYCLED_MAX: usize = 64;

/// See the module's documentation.
#[derive(Debug)]
pub struct Tickets {
    progress: Arc<Progress>,
    recycled: Receiver<Vec<Copy>>,
    submitted: u64,
    // The newest request that writes back; zero when there was none.
    written_back: Ticket,
    // The request that is refused once, counted from 0.
    refused: Option<u64>,
}

impl Tickets {
    /// Books of an engine that tells `progress`; and where it puts the vectors of requests
    /// that are done.
    pub fn new(progress: Arc<Progress>, faults: Faults) -> (Self, Sender<Vec<Copy>>) {
        let (recycle, recycled) = bounded(RECYCLED_MAX);
        let tickets = Self {
            progress,
            recycled,
            submitted: 0,
            written_back: Ticket(0),
            refused: faults.refuse_request,
        };
        (tickets, recycle)
    }

    /// Has `queue` queue `request` under the next ticket, which is given out when that was
    /// done.
    ///
    /// # Errors
    /// What `queue` says, or the refusal that was asked for.
    pub fn submit(
        &mut self,
        request: Request,
        queue: impl FnOnce(Ticket, Request) -> Result<(), (String, Request)>,
    ) -> Result<Ticket, (String, Request)> {
        if self.refused == Some(self.submitted) {
            self.refused = None;
            let sentence = "the copy engine refused a request, as it was told to";
            return Err((sentence.to_owned(), request));
        }
        let ticket = Ticket(self.submitted + 1);
        let direction = request.direction;
        queue(ticket, request)?;
        self.submitted = ticket.0;
        if direction == Direction::Out {
            self.written_back = ticket;
        }
        Ok(ticket)
    }

    /// What the engine's threads tell.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// The newest request that writes back; zero when there was none.
    pub fn written_back(&self) -> Ticket {
        self.written_back
    }

    /// See `CopyEngine::wait`.
    ///
    /// # Errors
    /// As there.
    pub fn wait(&self, ticket: Ticket) -> Result<(), Failure> {
        let state = self.progress.wait(ticket);
        state.outcome(ticket, self.written_back)
    }

    /// See `CopyEngine::is_done`.
    pub fn is_done(&self, ticket: Ticket) -> bool {
        self.progress.is_settled(ticket)
    }

    /// See `CopyEngine::newest`.
    pub fn newest(&self) -> Ticket {
        Ticket(self.submitted)
    }

    /// See `CopyEngine::forget_failures`.
    pub fn forget_failures(&mut self) -> Option<Failure> {
        self.progress.lock().forget_failures(self.written_back)
    }

    /// See `CopyEngine::recycled`.
    pub fn recycled(&mut self) -> Vec<Copy> {
        self.recycled.try_recv().unwrap_or_default()
    }
}
