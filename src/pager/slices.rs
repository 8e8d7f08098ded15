//! What moves between the model's files and the cache of experts.
//!
//! A slice is read to where its tensor has it. Under direct I/O the covering blocks are
//! read into place: their edges hold bytes of the neighbours, and what comes there is what
//! is there already. Even so nobody may write them while a segment computes on them
//! (invariant 3): a fetch ahead leaves the edges of pinned neighbours alone, and a slice
//! is waited for until no neighbour's fetch writes its edges any more.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::cache::{Layout, SliceId};
use super::engine::{Copy, Source, Target};
use super::storage::BLOCK_BYTES;
use super::transfers::POISON;
use super::{Backing, PagedTensor, Pager, Place, TensorId, TensorSpec};
use crate::error::{Error, Result};
use crate::planner::Placement;

/// Bytes of a page, in which memory of the cache is taken and given back: whole blocks of
/// direct I/O.
pub(super) fn page_bytes() -> usize {
    region::page::size().max(BLOCK_BYTES)
}

impl Pager {
    /// Whether the tensor's slices are in the cache, as far as they are there.
    pub fn is_cached(&self, id: TensorId) -> bool {
        matches!(self.tensor(id).place, Place::Cached(..))
    }

    /// The cache's size, and how much of it one segment should take of tensors that are
    /// needed as a whole, so that the next one's fit beside.
    pub fn cache_shape(&self) -> (usize, usize) {
        let bytes = self.cache.pool_bytes();
        (bytes, self.cache.largest_bytes().max(bytes / 4))
    }

    /// Bytes of the cache that a use takes at most: of a range of a tensor, or of this
    /// many of its slices.
    pub fn cache_bytes_of(
        &self,
        id: TensorId,
        range: &Range<usize>,
        named: Option<usize>,
    ) -> usize {
        let layout = self.cache.layout(id);
        match named {
            Some(count) => layout.arena_bytes_max(count),
            None => layout.pages_of(&layout.slices_of(range)).len(),
        }
    }

    pub(super) fn cache_layout(&self, spec: &TensorSpec) -> Layout {
        Layout {
            lead: self.lead(spec),
            slice_bytes: spec.slice_bytes.unwrap_or(spec.span_bytes).max(1),
            bytes: spec.span_bytes,
            page: page_bytes(),
        }
    }

    /// Notes that a graph begins which names slices: a step of those that uses are
    /// counted in.
    pub fn begin_step(&mut self) {
        self.cache.begin_step();
    }

    /// Asks for slices of a tensor that a graph has named. They are pinned if they are
    /// there, and otherwise fetched by `fetch_wanted`, which is to be called before
    /// anything else.
    pub fn want_named(&mut self, id: TensorId, named: &[usize]) {
        for index in named {
            let slice = SliceId {
                tensor: id,
                index: *index,
            };
            self.cache.note_named(slice);
            self.want(slice);
        }
    }

    /// Asks for the slices that a range of a tensor lies in, as `want_named` does.
    pub fn want_range(&mut self, id: TensorId, range: &Range<usize>) {
        for index in self.cache.layout(id).slices_of(range) {
            self.want(SliceId { tensor: id, index });
        }
    }

    fn want(&mut self, slice: SliceId) {
        if !self.cache.pin(slice) {
            self.wanted.push(slice);
        }
    }

    /// Has the slices that were asked for and are absent fetched: all that were asked for
    /// are pinned, and there or on their way, when this returns.
    ///
    /// # Errors
    /// `Failed` when the engine refuses the copies, or an earlier copy failed.
    pub fn fetch_wanted(&mut self) -> Result<()> {
        self.wanted.sort_unstable();
        self.wanted.dedup();
        if self.wanted.is_empty() {
            return Ok(());
        }
        self.cache.begin_search();
        for slice in &self.wanted {
            self.cache.insert(*slice, true);
        }
        if !self.make_room() {
            // What is in flight cannot go before it is there.
            let start = Instant::now();
            let outcome = self.engine.wait(self.engine.newest());
            self.stalls.storage_seconds += start.elapsed().as_secs_f64();
            outcome.map_err(|failure| self.fail(&failure))?;
            if !self.make_room() {
                self.forget_wanted();
                let sentence = "a segment needs more experts than the cache holds";
                return Err(Error::Bug(sentence.to_owned()));
            }
        }
        self.fetch_slices(true)
    }

    /// Has ranges of tensors fetched ahead of use, as far as there is room without what the
    /// segment at hand and the ranges themselves need.
    ///
    /// # Errors
    /// `Failed` when the engine refuses the copies.
    pub fn prefetch_ranges<'a>(
        &mut self,
        upcoming: impl Iterator<Item = (TensorId, &'a Range<usize>)>,
    ) -> Result<()> {
        self.cache.begin_search();
        for (id, range) in upcoming {
            if !self.prefetch_range(id, range)? {
                break;
            }
        }
        Ok(())
    }

    fn prefetch_range(&mut self, id: TensorId, range: &Range<usize>) -> Result<bool> {
        for index in self.cache.layout(id).slices_of(range) {
            let slice = SliceId { tensor: id, index };
            if !self.cache.mark(slice) {
                self.wanted.push(slice);
            }
        }
        if self.wanted.is_empty() {
            return Ok(true);
        }
        for slice in &self.wanted {
            self.cache.insert(*slice, false);
        }
        let engine = &self.engine;
        if !self.cache.has_room(|ticket| engine.has_arrived(ticket)) || !self.make_room() {
            self.forget_wanted();
            return Ok(false);
        }
        self.fetch_slices(false)?;
        self.prefetches.pending += 1;
        self.ahead.push_back((self.engine.newest(), 1));
        Ok(true)
    }

    /// Bytes of slices that have been fetched, since the counting began.
    pub fn missed_bytes(&self) -> u64 {
        self.cache.counts.missed_bytes
    }

    /// Lets slices go until the rest fits; whether it does.
    fn make_room(&mut self) -> bool {
        let Self {
            cache,
            engine,
            tensors,
            ..
        } = self;
        cache.make_room(
            |ticket| engine.has_arrived(ticket),
            |id, pages| give_back(tensors, id, pages),
        )
    }

    /// Takes back that the wanted slices were inserted. Nothing was fetched.
    fn forget_wanted(&mut self) {
        for slice in self.wanted.drain(..) {
            if self.cache.is_there(slice) {
                let pages = self.cache.discard(slice);
                give_back(&self.tensors, slice.tensor, pages);
                self.cache.uncount(slice);
            }
        }
    }

    /// Bounds the cache anew. What is too much for it goes.
    pub(super) fn resize_cache(&mut self, bytes: usize) -> Result<()> {
        self.cache.set_pool(bytes);
        if self.cache.used_bytes() <= bytes {
            return Ok(());
        }
        self.drain()?;
        self.cache.begin_search();
        assert!(self.make_room(), "between graphs, every expert can go");
        Ok(())
    }

    /// Nothing in the cache is trusted any more. Nothing is in flight.
    pub(super) fn empty_cache(&mut self) {
        let Self { cache, tensors, .. } = self;
        cache.clear(|id, pages| give_back(tensors, id, pages));
        self.wanted.clear();
    }

    /// Submits the fetch of the wanted slices, which are inserted and in order.
    fn fetch_slices(&mut self, pinned: bool) -> Result<()> {
        if self.config.poison {
            let mut copies = self.engine.recycled();
            let bytes = self.wanted.iter().map(|slice| {
                let bytes = self.cache.layout(slice.tensor);
                (
                    slice.tensor,
                    bytes.bytes_of(&(slice.index..slice.index + 1)),
                )
            });
            copies.extend(bytes.map(|(id, bytes)| Copy {
                from: Source::Pattern(POISON),
                to: target(self.tensor(id), bytes.start),
                bytes: bytes.len(),
                whole_blocks: false,
            }));
            if let Err(error) = self.submit_in(copies, self.launched.clone()) {
                self.forget_wanted();
                return Err(error);
            }
        }
        let wanted = std::mem::take(&mut self.wanted);
        let mut copies = self.engine.recycled();
        let next = |a: &SliceId, b: &SliceId| a.tensor == b.tensor && a.index + 1 == b.index;
        for run in wanted.chunk_by(next) {
            let (id, slices) = run_of(run);
            let (_, beside_pinned) = self.cache.neighbours(id, &slices);
            let whole_blocks = self.reads_whole_blocks() && (pinned || !beside_pinned);
            copies.push(self.copy_of(id, &slices, whole_blocks));
        }
        let submitted = self.submit_in(copies, self.launched.clone());
        if let Ok(ticket) = submitted {
            for run in wanted.chunk_by(next) {
                let (id, slices) = run_of(run);
                let (around, beside_pinned) = self.cache.neighbours(id, &slices);
                let delayed = match pinned || !beside_pinned {
                    true => around,
                    false => slices,
                };
                for index in delayed {
                    self.cache.delay(SliceId { tensor: id, index }, ticket);
                }
            }
        }
        self.wanted = wanted;
        if let Err(error) = submitted {
            self.forget_wanted();
            return Err(error);
        }
        self.wanted.clear();
        Ok(())
    }

    /// The copy that brings slices of a tensor to where they lie.
    fn copy_of(&self, id: TensorId, slices: &Range<usize>, whole_blocks: bool) -> Copy {
        let tensor = self.tensor(id);
        let bytes = self.cache.layout(id).bytes_of(slices);
        let Backing::Weight(location) = &tensor.spec.backing else {
            unreachable!("only weights are cached");
        };
        Copy {
            from: Source::File {
                file: Arc::clone(&location.file),
                offset: location.offset + bytes.start as u64,
            },
            to: target(tensor, bytes.start),
            bytes: bytes.len(),
            whole_blocks,
        }
    }

    /// The copies that bring the absent slices of a cached tensor.
    pub(super) fn copies_of_absent(&self, id: TensorId, copies: &mut Vec<Copy>) {
        if !self.tensor(id).loaded {
            return;
        }
        let mut start = 0;
        let count = self.cache.layout(id).count();
        for index in 0..=count {
            let ends = index == count || self.cache.is_there(SliceId { tensor: id, index });
            if ends && start < index {
                copies.push(self.copy_of(id, &(start..index), self.reads_whole_blocks()));
            }
            if ends {
                start = index + 1;
            }
        }
    }

    /// Gives the memory of the absent slices of a cached tensor back, which something may
    /// have been read into.
    pub(super) fn release_absent(&mut self, id: TensorId) {
        for index in 0..self.cache.layout(id).count() {
            let slice = SliceId { tensor: id, index };
            if !self.cache.is_there(slice) {
                give_back(&self.tensors, id, self.cache.own_pages(slice));
            }
        }
    }

    /// Has tensors share the cache with those that do already, and bounds it.
    pub(super) fn cache_out(
        &mut self,
        moving: &[(TensorId, Placement)],
        bytes: usize,
    ) -> Result<()> {
        let mut coming: Vec<(TensorId, usize)> = Vec::new();
        let cached = moving.iter().filter(|(_, to)| *to == Placement::Cached);
        for (id, _) in cached {
            self.place_in_cache(*id)?;
            coming.push((*id, self.cache.bytes_there(*id)));
        }
        let leaves =
            |(id, to): &(TensorId, Placement)| *to == Placement::Resident && self.is_cached(*id);
        let kept = match moving.iter().any(leaves) {
            // What is to stay is not let go first.
            true => bytes.max(self.cache.used_bytes()),
            false => bytes,
        };
        self.resize_cache(kept)?;
        for (id, before) in coming {
            let gone = before - self.cache.bytes_there(id);
            if gone > 0 {
                self.note_move(id, true, gone as u64);
            }
        }
        Ok(())
    }

    /// Makes a tensor cached: with what of it is resident, or else with nothing.
    fn place_in_cache(&mut self, id: TensorId) -> Result<()> {
        let tensor = self.tensor(id);
        let (layout, loaded) = (self.cache_layout(&tensor.spec), tensor.loaded);
        let (block, is_there) = match &tensor.place {
            // Such a tensor has a block of its own.
            Place::Resident(block, _) if loaded => {
                if let Some(memory) = block.host() {
                    memory.unlock();
                    memory.take_small_pages();
                }
                (Arc::clone(block), true)
            }
            _ => {
                let bytes = self.arena_bytes(&tensor.spec);
                let block = self.config.arena.sparse_block(bytes);
                let block = match block.map_err(Error::Memory)? {
                    Some(block) => block,
                    None => self.new_block(bytes)?,
                };
                (Arc::new(block), false)
            }
        };
        self.cache.add(id, layout, is_there);
        self.tensor_mut(id).place = Place::Cached(block, layout.lead);
        Ok(())
    }
}

fn run_of(run: &[SliceId]) -> (TensorId, Range<usize>) {
    (run[0].tensor, run[0].index..run[0].index + run.len())
}

/// Where a cached tensor has its byte `start`.
fn target(tensor: &PagedTensor, start: usize) -> Target {
    let Place::Cached(block, lead) = &tensor.place else {
        unreachable!("the slices of a cached tensor are fetched");
    };
    block.target(lead + start)
}

/// Gives whole pages of a cached tensor back to the system.
fn give_back(tensors: &[Option<PagedTensor>], id: TensorId, pages: Range<usize>) {
    let tensor = tensors[id.0 as usize].as_ref();
    if let Some(Place::Cached(block, _)) = tensor.map(|tensor| &tensor.place) {
        block.release(pages.start.min(block.bytes())..pages.end.min(block.bytes()));
    }
}

#[cfg(test)]
mod tests;
