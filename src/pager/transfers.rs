//! What moves while a graph runs: fetches into the ring, and write-backs out of it.

use std::sync::Arc;
use std::time::Instant;

use super::engine::{Copy, Direction, Failure, Request, Source, Target, Ticket};
use super::engine_host::progress::Kind;
use super::underway::Underway;
use super::{Backing, Need, PagedTensor, Pager, TensorId};
use crate::error::{Error, Result};
use crate::ggml::Fence;
use std::ops::Range;

/// The byte with which a place of the ring is filled: NaN in every floating-point type.
pub(super) const POISON: u8 = 0xFF;
/// How many needs a search for something to fetch ahead looks at.
const SEARCH_MAX: usize = 32;

impl Pager {
    /// Has the bytes in `needs` fetched: their places are Filling or Clean, and pinned,
    /// when this returns. The places do not overlap.
    ///
    /// # Errors
    /// `Failed` when the engine refuses the copies.
    pub fn require(&mut self, needs: &[Need]) -> Result<()> {
        for need in needs {
            if !self.ring.pin(need) {
                let place = need.place();
                assert!(
                    self.ring.is_unpinned(&place),
                    "two needs of a segment overlap"
                );
                self.fetch(need)?;
                self.ring.pin(need);
            }
        }
        Ok(())
    }

    /// Has what is needed next fetched, as far as its places are free: neither in use, nor
    /// holding what is needed sooner. `upcoming` is in the order of need.
    ///
    /// # Errors
    /// `Failed` when the engine refuses the copies.
    pub fn prefetch<'a>(&mut self, upcoming: impl Iterator<Item = &'a Need>) -> Result<()> {
        self.ring.begin_search();
        for need in upcoming.take(SEARCH_MAX) {
            if self.ring.reserve(need) {
                continue;
            }
            let place = need.place();
            if !self.ring.is_free(&place) {
                // What comes after it may still have a place of its own.
                self.ring.want(place);
                continue;
            }
            self.fetch(need)?;
            self.prefetches.pending += 1;
            if self.is_state(need.tensor) {
                self.kv_pages.prefetched += self.pages_in(need);
            }
            self.ahead.push_back((self.engine.newest(), 1));
        }
        self.count_arrivals();
        Ok(())
    }

    /// Moves what has arrived from pending to completed.
    fn count_arrivals(&mut self) {
        while let Some(&(ticket, count)) = self.ahead.front() {
            if !self.engine.is_done(ticket) {
                break;
            }
            self.prefetches.pending -= count.min(self.prefetches.pending);
            self.prefetches.completed += count;
            self.ahead.pop_front();
        }
    }

    /// Bytes that a fetch of `need` moves.
    pub fn bytes_moved(&self, need: &Need) -> u64 {
        let tensor = self.tensor(need.tensor);
        match &tensor.state {
            None => tensor.spec.span_bytes as u64,
            Some(state) => {
                let written = state.runs(&need.range).filter(|(written, _)| *written);
                written.map(|(_, run)| run.len() as u64).sum()
            }
        }
    }

    fn pages_in(&self, need: &Need) -> u64 {
        let state = self.tensor(need.tensor).state.as_ref();
        let runs = state.map(|state| state.runs(&need.range));
        runs.map_or(0, |runs| {
            runs.filter(|(written, _)| *written).count() as u64
        })
    }

    /// Submits the fetch of `need`.
    fn fetch(&mut self, need: &Need) -> Result<()> {
        let place = need.place();
        let block = Arc::clone(self.ring.block().expect("a plan that streams has a ring"));
        let mut copies = self.engine.recycled();
        if self.config.poison {
            copies.push(Copy {
                from: Source::Pattern(POISON),
                to: block.target(place.start),
                bytes: place.len(),
                whole_blocks: false,
            });
        }
        self.take_copy(need.tensor);
        let filling = self.filling_of(need.tensor);
        let fills = filling.is_some();
        copies.extend(filling);
        let from_file = self.copies_of(need, place.start, &mut copies) || fills;
        // Segments that use other places are nothing to it.
        let after = self.ring.last_use(&place).map(Fence::clone);
        let ticket = self.submit_in(copies, after)?;
        if fills {
            self.note_filling(need.tensor, ticket);
        }
        self.ring.hold(need, ticket, from_file);
        Ok(())
    }

    /// The copies that bring `need` to `at`; whether they read a file.
    fn copies_of(&self, need: &Need, at: usize, copies: &mut Vec<Copy>) -> bool {
        let block = self.ring.block().expect("a plan that streams has a ring");
        let to = |offset| block.target(offset);
        let tensor = self.tensor(need.tensor);
        let (location, state) = match (&tensor.spec.backing, &tensor.state) {
            (Backing::Weight(location), _) => (Some(location), None),
            (Backing::State { .. }, state) => (None, state.as_ref()),
        };
        if let Some(location) = location {
            let copied = self.source_of_copy(need.tensor);
            let from_file = copied.is_none();
            copies.push(Copy {
                from: copied.unwrap_or_else(|| Source::File {
                    file: Arc::clone(&location.file),
                    offset: location.offset,
                }),
                to: to(at + self.lead(&tensor.spec)),
                bytes: tensor.spec.span_bytes,
                whole_blocks: self.reads_whole_blocks(),
            });
            let start = at + self.lead(&tensor.spec);
            copies.extend(self.padding_of(tensor, |offset| to(start + offset)));
            return from_file;
        }
        let state = state.expect("what is no weight is a state");
        let store = state.store.as_ref().expect("a streamed state has a store");
        let mut from_file = false;
        for (written, run) in state.runs(&need.range) {
            let from = match written {
                true => store.source(run.start),
                false => Source::Pattern(0),
            };
            from_file |= matches!(from, Source::File { .. });
            copies.push(Copy {
                from,
                to: to(at + run.start - need.range.start),
                bytes: run.len(),
                whole_blocks: false,
            });
        }
        if tensor.spec.read_behind_bytes > 0 {
            // Other tensors have been there.
            copies.push(Copy {
                from: Source::Pattern(0),
                to: to(at + need.range.len()),
                bytes: tensor.spec.read_behind_bytes,
                whole_blocks: false,
            });
        }
        from_file
    }

    /// What a device reads behind a tensor's own bytes, and expects to be zero: other
    /// tensors have been in its place.
    pub(super) fn padding_of(
        &self,
        tensor: &PagedTensor,
        to: impl Fn(usize) -> Target,
    ) -> Option<Copy> {
        let (own, all) = (tensor.spec.span_bytes, tensor.spec.bytes);
        let is_padded = self.config.arena.has_padding() && own < all;
        is_padded.then(|| Copy {
            from: Source::Pattern(0),
            to: to(own),
            bytes: all - own,
            whole_blocks: false,
        })
    }

    /// Whether the blocks around a weight in the arena are its own.
    pub(super) fn reads_whole_blocks(&self) -> bool {
        let alignment = self.config.alignment;
        self.config.arena.is_read_into() && alignment.is_multiple_of(super::storage::BLOCK_BYTES)
    }

    /// Submits copies into the arena that come after a fence. The places that they write
    /// are not those of the segment that is launched next.
    pub(super) fn submit_in(&mut self, copies: Vec<Copy>, after: Option<Fence>) -> Result<Ticket> {
        let direction = Direction::In;
        let request = Request {
            direction,
            copies,
            after,
        };
        self.engine.submit(request).map_err(|(sentence, _refused)| {
            Error::Failed(format!("could not fetch a tensor: {sentence}"))
        })
    }

    /// Notes what was launched last, on a device that computes by itself; None when it has
    /// been waited for.
    pub fn note_launched(&mut self, fence: Option<Fence>) {
        match &fence {
            Some(fence) => {
                self.underway.push(Underway::Segment(Fence::clone(fence)));
                self.ring.note_launched(fence);
            }
            None => {
                self.underway.clear();
                self.ring.note_computed();
            }
        }
        self.launched = fence;
    }

    /// Waits until everything that was required is there: all pinned places are Clean, or
    /// will be when the fences come, for which the device has to wait. What the segment
    /// `writes` in its place it may write then: what was written there before is back in
    /// its store.
    ///
    /// # Errors
    /// `Failed` when a copy failed; ring and cache are empty afterwards.
    pub fn wait_ready(
        &mut self,
        writes: &[(TensorId, Range<usize>)],
    ) -> Result<[Option<Fence>; 2]> {
        let kind = |from_file| match from_file {
            true => Kind::Storage,
            false => Kind::Link,
        };
        let pinned = self.ring.all_pinned();
        let in_ring = pinned.map(|held| (held.ticket, held.from_file));
        let in_cache = self.cache.pinned_ticket().map(|ticket| (ticket, true));
        let fetched = in_ring.chain(in_cache).max();
        let fetched = fetched.map(|(ticket, from_file)| (ticket, kind(from_file)));
        let written = self.ring.written_back(writes.iter().map(|(id, _)| *id));
        let written = written.map(|ticket| (ticket, Kind::WriteBack));
        Ok([self.arrival(fetched)?, self.arrival(written)?])
    }

    /// What a segment has to wait for of copies of this kind, up to this ticket.
    fn arrival(&mut self, awaited: Option<(Ticket, Kind)>) -> Result<Option<Fence>> {
        let Some((ticket, kind)) = awaited else {
            return Ok(None);
        };
        // Failures are looked at, even if nothing is to be waited for.
        let is_there = self.engine.has_arrived(ticket);
        let start = Instant::now();
        let outcome = self.engine.arrival(ticket);
        if !is_there {
            self.stalls.add(kind, start.elapsed());
        }
        if let Ok(Some(_)) = &outcome {
            self.underway.push(Underway::Copies(ticket, kind));
        }
        outcome.map_err(|failure| self.fail(&failure))
    }

    /// Queues the write-back of what a segment wrote to streamed states, which are pinned:
    /// Dirty becomes Clean when the engine gets there, before anything that conflicts.
    ///
    /// # Errors
    /// `Failed` when the engine refuses; the states are lost then.
    pub fn write_back(&mut self, writes: &[(TensorId, Range<usize>)]) -> Result<()> {
        if writes.is_empty() {
            return Ok(());
        }
        let mut copies = self.engine.recycled();
        let block = Arc::clone(self.ring.block().expect("a plan that streams has a ring"));
        for (id, range) in writes {
            let held = self.ring.pinned(*id).expect("what was written is pinned");
            let at = held.need.at + range.start - held.need.range.start;
            self.ring.invalidate(*id);
            let Some(state) = &mut self.tensor_mut(*id).state else {
                return Err(Error::Bug("a graph writes to a weight".to_owned()));
            };
            state.mark_written(range);
            let store = state.store.as_ref().expect("a streamed state has a store");
            copies.push(Copy {
                from: block.source(at),
                to: store.target(range.start),
                bytes: range.len(),
                whole_blocks: false,
            });
        }
        let direction = Direction::Out;
        let submitted = self.engine.submit(Request {
            direction,
            copies,
            after: self.launched.clone(),
        });
        let ticket = submitted.map_err(|(sentence, _refused)| {
            let sentence = format!("could not write the KV cache back: {sentence}");
            self.lost = Some(sentence.clone());
            Error::Failed(sentence)
        })?;
        // What stays in its place must not be written again before this is done.
        writes
            .iter()
            .for_each(|(id, _)| self.ring.delay(*id, ticket));
        Ok(())
    }

    /// Lets the whole ring be overwritten again, and all of the cache go.
    pub fn unpin(&mut self) {
        self.ring.unpin();
        self.cache.unpin();
        // Whatever was asked for and never fetched.
        self.wanted.clear();
    }

    /// Whether states were lost by a failed write-back.
    ///
    /// # Errors
    /// `Failed` with what happened.
    pub fn check_states(&self) -> Result<()> {
        match &self.lost {
            Some(sentence) => Err(Error::Failed(sentence.clone())),
            None => Ok(()),
        }
    }

    /// Drains the engine.
    ///
    /// # Errors
    /// `Failed` when a copy failed; ring and cache are empty afterwards.
    pub fn drain(&mut self) -> Result<()> {
        let start = Instant::now();
        let outcome = self.engine.wait(self.engine.newest());
        self.stalls.write_back_seconds += start.elapsed().as_secs_f64();
        outcome.map_err(|failure| self.fail(&failure))
    }

    /// After a failed copy: nothing in ring and cache is trusted any more.
    pub(super) fn fail(&mut self, failure: &Failure) -> Error {
        // Waits for whatever is still in flight; its failures are looked at below.
        let _ = self.engine.wait(self.engine.newest());
        self.ring.clear();
        self.empty_cache();
        self.distrust_copies();
        self.prefetches.failed += self.prefetches.pending;
        self.prefetches.pending = 0;
        self.ahead.clear();
        if let Some(lost) = self.engine.forget_failures() {
            self.lost = Some(lost.sentence);
        }
        Error::Failed(failure.sentence.clone())
    }
}

/// The error of an operation that reads more than the budget can hold at once.
pub fn ring_too_small(bytes: usize) -> Error {
    let mib = (bytes >> 20) + 1;
    Error::Memory(format!(
        "one operation reads {mib} MiB of streamed tensors at once, more than the budget leaves \
         for them; raise --vram-budget"
    ))
}
