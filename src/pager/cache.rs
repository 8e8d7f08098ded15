//! The cache of experts: which slices of which tensors are in the arena, which of them are
//! worth the most, and which go when there is no room. Pure: it moves no bytes.
//!
//! ```text
//!   absent ──insert──► there, in flight ──ticket done──► there ◄──pin, unpin──► pinned
//!     ▲                                                    │
//!     └───────────────────── discard ──────────────────────┘
//! ```
//!
//! A slice lies where the tensor has it: the address of a tensor never changes, and only
//! the pages of slices that are there take memory. A page that two slices share is
//! counted, and kept, while either of them is there.
//!
//! # Who goes first
//!
//! A slice is worth the number of steps that named it, each half as much as one that is
//! [`HALF_LIFE_STEPS`] younger; absent slices keep what they are worth. The least worth
//! goes first, of equals the one that was loaded last: whoever passes over more than there
//! is room for, again and again, finds what came first still there. Passes over whole
//! tensors say nothing of what will be named next, and count for nothing.

use std::cmp::Ordering;
use std::ops::Range;

use super::TensorId;
use super::engine::Ticket;

/// After this many steps a use counts half.
const HALF_LIFE_STEPS: f64 = 128.0;
/// How many slices are put in order at first when room is made.
const ORDERED_FIRST: usize = 16;

/// How the slices of a tensor lie in its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Where the first one begins, in bytes from the start of a page.
    pub lead: usize,
    /// Bytes of a slice.
    pub slice_bytes: usize,
    /// Bytes of all slices.
    pub bytes: usize,
    /// Bytes of a page, in which memory is taken and given back.
    pub page: usize,
}

impl Layout {
    /// How many slices there are.
    pub fn count(&self) -> usize {
        self.bytes.div_ceil(self.slice_bytes)
    }

    /// The slices that the tensor's bytes `range` lie in.
    pub fn slices_of(&self, range: &Range<usize>) -> Range<usize> {
        let end = range.end.min(self.bytes).div_ceil(self.slice_bytes);
        (range.start / self.slice_bytes).min(end)..end
    }

    /// The tensor's bytes that `slices` are.
    pub fn bytes_of(&self, slices: &Range<usize>) -> Range<usize> {
        slices.start * self.slice_bytes..(slices.end * self.slice_bytes).min(self.bytes)
    }

    /// The whole pages that `slices` lie in, in bytes from the memory's start.
    pub fn pages_of(&self, slices: &Range<usize>) -> Range<usize> {
        let bytes = self.bytes_of(slices);
        let start = (self.lead + bytes.start) / self.page * self.page;
        start..(self.lead + bytes.end).next_multiple_of(self.page)
    }

    /// Bytes of the arena that any `count` slices take at most.
    pub fn arena_bytes_max(&self, count: usize) -> usize {
        let pages = self.slice_bytes.next_multiple_of(self.page) + self.page;
        let all = self.pages_of(&(0..self.count())).len();
        pages.saturating_mul(count).min(all)
    }
}

/// Names a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SliceId {
    /// The tensor.
    pub tensor: TensorId,
    /// Which of its slices.
    pub index: usize,
}

#[derive(Clone, Copy, Debug)]
struct Slice {
    is_there: bool,
    pinned: bool,
    // Fetched ahead, and not used yet.
    fresh: bool,
    // The search that has found it to be needed soon.
    mark: u64,
    // Logarithm (base 2) of what it is worth, in units of the first step's use.
    worth: f64,
    loaded: u64,
    // Nothing writes its bytes once this is done.
    ticket: Ticket,
}

const ABSENT: Slice = Slice {
    is_there: false,
    pinned: false,
    fresh: false,
    mark: 0,
    worth: f64::NEG_INFINITY,
    loaded: 0,
    ticket: Ticket(0),
};

#[derive(Debug)]
struct Table {
    tensor: TensorId,
    layout: Layout,
    slices: Vec<Slice>,
    there: usize,
}

impl Table {
    /// The pages of a slice that no other slice which is there lies in.
    fn own_pages(&self, index: usize) -> Range<usize> {
        let mut pages = self.layout.pages_of(&(index..index + 1));
        let of = |other: usize| self.layout.pages_of(&(other..other + 1));
        for other in (0..index).rev() {
            let theirs = of(other);
            if theirs.end <= pages.start {
                break;
            }
            if self.slices[other].is_there {
                pages.start = theirs.end.min(pages.end);
                break;
            }
        }
        for other in index + 1..self.slices.len() {
            let theirs = of(other);
            if theirs.start >= pages.end {
                break;
            }
            if self.slices[other].is_there {
                pages.end = theirs.start.max(pages.start);
                break;
            }
        }
        pages
    }
}

/// Slices that may go, with what decides who goes first.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    worth: f64,
    loaded: u64,
    slice: SliceId,
}

impl Candidate {
    fn order(&self, other: &Self) -> Ordering {
        let by_worth = self.worth.total_cmp(&other.worth);
        by_worth.then(other.loaded.cmp(&self.loaded))
    }
}

/// Slices that were asked for, since the counting began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// That were there.
    pub hits: u64,
    /// That were fetched, ahead of use or when it came.
    pub misses: u64,
    /// Bytes of those that were fetched.
    pub missed_bytes: u64,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Cache {
    tables: Vec<Table>,
    pool_bytes: usize,
    used_bytes: usize,
    pinned: Vec<SliceId>,
    candidates: Vec<Candidate>,
    search: u64,
    loads: u64,
    // Steps so far, in half-lives: the logarithm of what a use is worth now.
    now: f64,
    /// Hits and misses.
    pub counts: Counts,
}

impl Cache {
    /// Takes a tensor in, with all of its slices or none of them.
    pub fn add(&mut self, tensor: TensorId, layout: Layout, is_there: bool) {
        let slice = Slice { is_there, ..ABSENT };
        let count = layout.count();
        let there = if is_there { count } else { 0 };
        self.tables.push(Table {
            tensor,
            layout,
            slices: vec![slice; count],
            there,
        });
        if is_there {
            self.used_bytes += layout.pages_of(&(0..count)).len();
        }
        self.tables.sort_by_key(|table| table.tensor);
    }

    /// Forgets a tensor.
    pub fn remove(&mut self, tensor: TensorId) {
        let Ok(at) = self.find(tensor) else { return };
        for index in 0..self.tables[at].slices.len() {
            if self.tables[at].slices[index].is_there {
                self.discard(SliceId { tensor, index });
            }
        }
        self.pinned.retain(|slice| slice.tensor != tensor);
        self.tables.remove(at);
    }

    fn find(&self, tensor: TensorId) -> Result<usize, usize> {
        self.tables
            .binary_search_by_key(&tensor, |table| table.tensor)
    }

    fn table(&self, tensor: TensorId) -> &Table {
        let at = self.find(tensor).expect("a cached tensor has a table");
        &self.tables[at]
    }

    fn slice_mut(&mut self, slice: SliceId) -> &mut Slice {
        let at = self
            .find(slice.tensor)
            .expect("a cached tensor has a table");
        &mut self.tables[at].slices[slice.index]
    }

    /// How a tensor's slices lie.
    pub fn layout(&self, tensor: TensorId) -> &Layout {
        &self.table(tensor).layout
    }

    /// Bounds the pages of all slices; what is too much goes with the next `make_room`.
    pub fn set_pool(&mut self, bytes: usize) {
        self.pool_bytes = bytes;
    }

    /// The bound, in bytes.
    pub fn pool_bytes(&self) -> usize {
        self.pool_bytes
    }

    /// Bytes of the pages of slices that are there.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// Bytes of the largest tensor's pages.
    pub fn largest_bytes(&self) -> usize {
        let all = |table: &Table| table.layout.pages_of(&(0..table.slices.len())).len();
        self.tables.iter().map(all).max().unwrap_or(0)
    }

    /// Bytes of a tensor that are there.
    pub fn bytes_there(&self, tensor: TensorId) -> usize {
        let table = self.table(tensor);
        match table.there == table.slices.len() {
            true => table.layout.bytes,
            false => (table.there * table.layout.slice_bytes).min(table.layout.bytes),
        }
    }

    /// Whether a slice is there, or on its way.
    pub fn is_there(&self, slice: SliceId) -> bool {
        self.table(slice.tensor).slices[slice.index].is_there
    }

    /// Notes that a step begins: uses from now on are worth more than those before.
    pub fn begin_step(&mut self) {
        self.now += 1.0 / HALF_LIFE_STEPS;
    }

    /// Notes that a step named a slice.
    pub fn note_named(&mut self, slice: SliceId) {
        let now = self.now;
        let slice = self.slice_mut(slice);
        let (low, high) = (slice.worth.min(now), slice.worth.max(now));
        slice.worth = high + (low - high).exp2().ln_1p() / std::f64::consts::LN_2;
    }

    /// Pins a slice that is there; whether it is.
    pub fn pin(&mut self, id: SliceId) -> bool {
        let slice = self.slice_mut(id);
        if !slice.is_there {
            return false;
        }
        let (fresh, pinned) = (slice.fresh, slice.pinned);
        (slice.fresh, slice.pinned) = (false, true);
        if !pinned {
            self.pinned.push(id);
        }
        self.counts.hits += u64::from(!fresh);
        true
    }

    /// Lets all slices go again.
    pub fn unpin(&mut self) {
        while let Some(id) = self.pinned.pop() {
            self.slice_mut(id).pinned = false;
        }
    }

    /// The newest ticket of what is pinned.
    pub fn pinned_ticket(&self) -> Option<Ticket> {
        let ticket = |id: &SliceId| self.table(id.tensor).slices[id.index].ticket;
        self.pinned.iter().map(ticket).max()
    }

    /// Begins a search for something to fetch ahead: what was marked is marked no more.
    pub fn begin_search(&mut self) {
        self.search += 1;
    }

    /// Marks a slice as needed soon if it is there; whether it is.
    pub fn mark(&mut self, slice: SliceId) -> bool {
        let search = self.search;
        let slice = self.slice_mut(slice);
        slice.mark = search;
        slice.is_there
    }

    /// Takes an absent slice in, pinned or, when fetched ahead, marked.
    pub fn insert(&mut self, id: SliceId, pinned: bool) {
        let own = self.table(id.tensor).own_pages(id.index);
        self.used_bytes += own.len();
        self.loads += 1;
        let (search, loaded) = (self.search, self.loads);
        let at = self.find(id.tensor).expect("a cached tensor has a table");
        let table = &mut self.tables[at];
        let bytes = table.layout.bytes_of(&(id.index..id.index + 1));
        let slice = &mut table.slices[id.index];
        assert!(!slice.is_there, "a slice that is there is inserted");
        *slice = Slice {
            is_there: true,
            pinned,
            fresh: !pinned,
            mark: search,
            worth: slice.worth,
            loaded,
            ticket: Ticket(0),
        };
        table.there += 1;
        if pinned {
            self.pinned.push(id);
        }
        self.counts.misses += 1;
        self.counts.missed_bytes += bytes.len() as u64;
    }

    /// Takes back that a slice was counted as fetched: it was not.
    pub fn uncount(&mut self, id: SliceId) {
        let bytes = self.layout(id.tensor).bytes_of(&(id.index..id.index + 1));
        self.counts.misses = self.counts.misses.saturating_sub(1);
        let missed = self.counts.missed_bytes;
        self.counts.missed_bytes = missed.saturating_sub(bytes.len() as u64);
    }

    /// The pages of a slice that no other slice which is there lies in.
    pub fn own_pages(&self, id: SliceId) -> Range<usize> {
        self.table(id.tensor).own_pages(id.index)
    }

    /// Nothing may read or write a slice before `ticket` is done.
    pub fn delay(&mut self, slice: SliceId, ticket: Ticket) {
        let slice = self.slice_mut(slice);
        slice.ticket = slice.ticket.max(ticket);
    }

    /// The slices beside `slices` that are there and that one of the pages of `slices`
    /// holds a part of; and whether any of them is pinned.
    pub fn neighbours(&self, tensor: TensorId, slices: &Range<usize>) -> (Range<usize>, bool) {
        let table = self.table(tensor);
        let pages = table.layout.pages_of(slices);
        let shares = |other: &usize| {
            let theirs = table.layout.pages_of(&(*other..*other + 1));
            theirs.start < pages.end && pages.start < theirs.end
        };
        let before = (0..slices.start).rev().take_while(shares).count();
        let after = (slices.end..table.slices.len()).take_while(shares).count();
        let around = slices.start - before..slices.end + after;
        let beside = |index: &usize| !slices.contains(index);
        let mut others = around.clone().filter(beside);
        let pinned = others.any(|other| table.slices[other].pinned);
        (around, pinned)
    }

    /// Lets a slice go; the pages that hold nothing else any more.
    pub fn discard(&mut self, id: SliceId) -> Range<usize> {
        let at = self.find(id.tensor).expect("a cached tensor has a table");
        let table = &mut self.tables[at];
        let slice = &mut table.slices[id.index];
        assert!(slice.is_there, "an absent slice is let go");
        slice.is_there = false;
        slice.fresh = false;
        table.there -= 1;
        let own = table.own_pages(id.index);
        self.used_bytes -= own.len();
        own
    }

    /// Lets everything go, pinned or not; nothing is in flight.
    pub fn clear(&mut self, mut gone: impl FnMut(TensorId, Range<usize>)) {
        self.unpin();
        for at in 0..self.tables.len() {
            let tensor = self.tables[at].tensor;
            for index in 0..self.tables[at].slices.len() {
                if self.tables[at].slices[index].is_there {
                    gone(tensor, self.discard(SliceId { tensor, index }));
                }
            }
        }
    }

    /// Lets slices go until the rest fits, the least worth first, but none that is pinned,
    /// marked by the search at hand, or in flight; whether the rest fits. `gone` gets
    /// the pages that hold nothing any more.
    pub fn make_room(
        &mut self,
        is_done: impl Fn(Ticket) -> bool,
        mut gone: impl FnMut(TensorId, Range<usize>),
    ) -> bool {
        if self.used_bytes <= self.pool_bytes {
            return true;
        }
        self.find_candidates(is_done);
        let mut candidates = std::mem::take(&mut self.candidates);
        let (mut start, mut step) = (0, ORDERED_FIRST);
        while self.used_bytes > self.pool_bytes && start < candidates.len() {
            let rest = &mut candidates[start..];
            let count = step.min(rest.len());
            if count < rest.len() {
                rest.select_nth_unstable_by(count, Candidate::order);
            }
            rest[..count].sort_unstable_by(Candidate::order);
            for candidate in &rest[..count] {
                if self.used_bytes <= self.pool_bytes {
                    break;
                }
                gone(candidate.slice.tensor, self.discard(candidate.slice));
            }
            start += count;
            step *= 2;
        }
        self.candidates = candidates;
        self.used_bytes <= self.pool_bytes
    }

    /// Whether `make_room` would surely do, without letting anything go.
    pub fn has_room(&mut self, is_done: impl Fn(Ticket) -> bool) -> bool {
        if self.used_bytes <= self.pool_bytes {
            return true;
        }
        self.find_candidates(is_done);
        let inside = |candidate: &Candidate| {
            let layout = self.layout(candidate.slice.tensor);
            let index = candidate.slice.index;
            let pages = layout.pages_of(&(index..index + 1)).len();
            pages.saturating_sub(2 * layout.page)
        };
        let free: usize = self.candidates.iter().map(inside).sum();
        self.used_bytes.saturating_sub(free) <= self.pool_bytes
    }

    fn find_candidates(&mut self, is_done: impl Fn(Ticket) -> bool) {
        self.candidates.clear();
        // Tickets finish in order: an engine is asked for each of the newest ones only.
        let mut done = Ticket(0);
        for table in &self.tables {
            for (index, slice) in table.slices.iter().enumerate() {
                if !slice.is_there || slice.pinned || slice.mark == self.search {
                    continue;
                }
                if slice.ticket > done {
                    if !is_done(slice.ticket) {
                        continue;
                    }
                    done = slice.ticket;
                }
                self.candidates.push(Candidate {
                    worth: slice.worth,
                    loaded: slice.loaded,
                    slice: SliceId {
                        tensor: table.tensor,
                        index,
                    },
                });
            }
        }
    }
}

#[cfg(test)]
mod tests;
