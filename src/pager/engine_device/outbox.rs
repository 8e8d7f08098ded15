//! What the reader hands on, to the stream that copies in or the one that copies out; with
//! the waits between the two, which know nothing of each other otherwise.
//!
//! ```text
//!            in: copy 1 ── copy 2 ──────── await out 1 ── copy 3 ──►
//!  reader ─┤                                 ▲
//!            out:      copy 1 ── mark 1 ─────┘ copy 2 ─────────────►
//! ```
//!
//! Copies of one stream keep their order. A copy that conflicts with an earlier one of the
//! other stream (one writes what the other reads or writes, on the device or the host)
//! comes after the first event that is recorded behind that one: at the end of its request,
//! or at a mark. Where the device has one stream of copies, all are its.

use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam_channel::Sender;

use super::super::engine::{Copy, Direction, Request, Ticket};
use super::super::engine_host::order::Footprint;
use super::lane::Lane;
use super::requests::Requests;
use super::staging::Gone;
use super::step::{Done, Move, Step};
use crate::ggml::Fence;

/// A stream, seen from here.
#[derive(Debug)]
pub struct Sink {
    /// Takes what it has to do, in order.
    pub steps: Sender<Step>,
    /// How far it is.
    pub lane: Arc<Lane>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Outbox {
    tracks: Vec<Track>,
    requests: Arc<Requests>,
    current: Current,
}

/// What was handed to a stream.
#[derive(Debug)]
struct Track {
    sink: Sink,
    // Copies that may not be done yet, oldest first.
    open: VecDeque<Handed>,
    // The newest copy, and the newest with an event behind it.
    newest: u64,
    marked: u64,
    // The newest copy of the other stream that this one waits for.
    awaited: u64,
    // It has a part in the request at hand.
    has_part: bool,
}

#[derive(Debug)]
struct Handed {
    number: u64,
    footprint: Footprint,
    comes_out: bool,
}

/// The request that is being handed on.
#[derive(Debug, Default)]
struct Current {
    ticket: Ticket,
    home: usize,
    after: Option<Fence>,
}

impl Outbox {
    /// For a device with these streams: one that copies in, and one that copies out, where
    /// there are two.
    pub fn new(sinks: Vec<Sink>, requests: Arc<Requests>) -> Self {
        assert!((1..=2).contains(&sinks.len()));
        let track = |sink| Track {
            sink,
            open: VecDeque::new(),
            newest: 0,
            marked: 0,
            awaited: 0,
            has_part: false,
        };
        Self {
            tracks: sinks.into_iter().map(track).collect(),
            requests,
            current: Current::default(),
        }
    }

    /// Which stream copies in this direction.
    fn track_of(&self, direction: Direction) -> usize {
        match direction {
            Direction::In => 0,
            Direction::Out => self.tracks.len() - 1,
        }
    }

    /// The other stream, where there is one.
    fn other_than(&self, track: usize) -> Option<usize> {
        (self.tracks.len() == 2).then_some(1 - track)
    }

    fn send(&self, track: usize, step: Step) -> Result<(), Gone> {
        self.tracks[track].sink.steps.send(step).map_err(|_| Gone)
    }

    /// What follows belongs to this request, and comes after the fence.
    pub fn begin(&mut self, ticket: Ticket, direction: Direction, after: Option<Fence>) {
        self.requests.begin(ticket, direction);
        self.current = Current {
            ticket,
            home: self.track_of(direction),
            after,
        };
    }

    /// Has a stream take part in the request.
    fn join(&mut self, track: usize, after: Option<Fence>) -> Result<(), Gone> {
        if !self.tracks[track].has_part {
            self.tracks[track].has_part = true;
            if track != self.current.home {
                self.requests.add_part(self.current.ticket);
            }
            self.send(track, Step::Begin(self.current.ticket, after))?;
        }
        Ok(())
    }

    /// What is sent next in this direction is this copy, or a part of it.
    pub fn announce(&mut self, direction: Direction, copy: &Copy) -> Result<(), Gone> {
        let footprint = Footprint::of(copy);
        let track = self.track_of(direction);
        self.follow_conflicts(track, &footprint)?;
        self.note(track, footprint, direction == Direction::Out);
        Ok(())
    }

    /// What is sent next, in both directions, are the parts of this copy.
    pub fn announce_both(&mut self, copy: &Copy) -> Result<(), Gone> {
        let footprint = Footprint::of(copy);
        (0..self.tracks.len()).try_for_each(|track| self.follow_conflicts(track, &footprint))
    }

    /// A part of a copy in both directions was sent out, and comes in next.
    pub fn turn(&mut self) -> Result<(), Gone> {
        let out = self.track_of(Direction::Out);
        self.tracks[out].newest += 1;
        match self.other_than(out) {
            Some(inwards) => self.follow(inwards, self.tracks[out].newest),
            None => Ok(()),
        }
    }

    /// All parts of a copy in both directions were sent.
    pub fn note_both(&mut self, copy: &Copy) {
        let footprint = Footprint::of(copy);
        (0..self.tracks.len()).for_each(|track| self.note(track, footprint, false));
    }

    fn note(&mut self, track: usize, footprint: Footprint, comes_out: bool) {
        let track = &mut self.tracks[track];
        track.newest += 1;
        let done = track.sink.lane.done();
        while track.open.front().is_some_and(|copy| copy.number <= done) {
            track.open.pop_front();
        }
        track.open.push_back(Handed {
            number: track.newest,
            footprint,
            comes_out,
        });
    }

    /// Has a stream wait for what conflicts with a copy on the other.
    fn follow_conflicts(&mut self, track: usize, footprint: &Footprint) -> Result<(), Gone> {
        self.join(track, self.current.after.clone())?;
        let Some(other) = self.other_than(track) else {
            return Ok(());
        };
        let newest_first = self.tracks[other].open.iter().rev();
        let mut conflicts = newest_first.filter(|copy| copy.footprint.conflicts(footprint));
        match conflicts.next().map(|copy| copy.number) {
            Some(number) => self.follow(track, number),
            None => Ok(()),
        }
    }

    /// Has a stream wait for a copy of the other one.
    fn follow(&mut self, track: usize, number: u64) -> Result<(), Gone> {
        if number <= self.tracks[track].awaited {
            return Ok(());
        }
        self.tracks[track].awaited = number;
        self.mark(1 - track, number)?;
        self.send(track, Step::Await(number))
    }

    /// Has an event recorded behind a copy, where there is none.
    fn mark(&mut self, track: usize, number: u64) -> Result<(), Gone> {
        let newest = self.tracks[track].newest;
        if self.tracks[track].marked < number {
            self.tracks[track].marked = newest;
            self.send(track, Step::Mark(newest))?;
        }
        Ok(())
    }

    /// Hands on a copy that was announced, or a part of it.
    pub fn copy(&self, direction: Direction, step: Move) -> Result<(), Gone> {
        self.send(self.track_of(direction), Step::Move(step))
    }

    /// No later copy in this direction uses this place of the staging memory.
    pub fn release(&self, direction: Direction, place: usize) -> Result<(), Gone> {
        self.send(self.track_of(direction), Step::Release(place))
    }

    /// No later copy is of what this request of the reader's was to bring, which failed.
    pub fn forget(&self, read: Ticket) -> Result<(), Gone> {
        self.send(self.track_of(Direction::In), Step::Forget(read))
    }

    /// Blocks until what `copy`, which is announced only then, reads past the streams has
    /// landed: a mark is behind all that was announced.
    pub fn await_landings(&mut self, copy: &Copy) -> Result<(), Gone> {
        let reads = Footprint::of(copy);
        let track = self.track_of(Direction::Out);
        let newest_first = self.tracks[track].open.iter().rev();
        let mut awaited = newest_first
            .filter(|earlier| earlier.comes_out && reads.reads_from(&earlier.footprint));
        match awaited.next().map(|earlier| earlier.number) {
            Some(number) => {
                self.mark(track, number)?;
                self.tracks[track].sink.lane.wait(number)
            }
            None => Ok(()),
        }
    }

    /// Blocks until everything that was handed on is done, and what the request comes after.
    pub fn settle(&mut self) -> Result<(), Gone> {
        self.join(self.current.home, self.current.after.clone())?;
        for track in 0..self.tracks.len() {
            self.tracks[track].newest += 1;
            self.mark(track, self.tracks[track].newest)?;
        }
        let mut tracks = self.tracks.iter();
        tracks.try_for_each(|track| track.sink.lane.wait(track.newest))
    }

    /// Whether the request is known to have failed.
    pub fn has_failed(&self) -> bool {
        self.requests.has_failed(self.current.ticket)
    }

    /// All of the request was handed on.
    pub fn end(
        &mut self,
        request: Request,
        failed: Option<String>,
        bytes: [u64; 3],
    ) -> Result<(), Gone> {
        let (ticket, home) = (self.current.ticket, self.current.home);
        self.join(home, None)?;
        if let Some(other) = self.other_than(home)
            && self.tracks[other].has_part
        {
            // Who waits for the one waits for both.
            self.follow(home, self.tracks[other].newest)?;
            self.tracks[other].has_part = false;
            self.send(other, Step::Leave)?;
        }
        let track = &mut self.tracks[home];
        track.has_part = false;
        track.marked = track.newest;
        let number = track.newest;
        self.current.after = None;
        self.send(
            home,
            Step::End(Done {
                ticket,
                request,
                failed,
                bytes,
                number,
            }),
        )
    }

    /// No more requests come.
    pub fn close(&self) -> Result<(), Gone> {
        (0..self.tracks.len()).try_for_each(|track| self.send(track, Step::Close))
    }
}
