//! The ring: memory that streamed tensors take turns in.
//!
//! ```text
//!   Absent ──fetch──► Filling ──ticket done──► Clean ──segment wrote──► Dirty
//!     ▲                                          ▲                        │
//!     └──────── another tensor's fetch ──────────┴──── written back ◄─────┘
//! ```
//! Where in the ring a tensor goes is the schedule's decision; the ring only knows what
//! it holds. Write-back is submitted as soon as a segment has written; the engine keeps
//! the order of what conflicts, so whatever claims the place next is behind it.

use std::ops::Range;
use std::sync::Arc;

use super::TensorId;
use super::block::Block;
use super::engine::Ticket;
use crate::ggml::Fence;

/// What a segment needs of a streamed tensor: these bytes, at this place of the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// The tensor.
    pub tensor: TensorId,
    /// The bytes, from the tensor's start.
    pub range: Range<usize>,
    /// The place, in bytes from the ring's start.
    pub at: usize,
    /// Bytes of the ring that it takes.
    pub bytes: usize,
}

impl Need {
    /// The part of the ring that it takes.
    pub fn place(&self) -> Range<usize> {
        self.at..self.at + self.bytes
    }

    /// Whether the two cannot be in the ring at once.
    pub fn overlaps(&self, place: &Range<usize>) -> bool {
        self.at < place.end && place.start < self.at + self.bytes
    }
}

/// Bytes of a tensor in the ring, or on their way.
#[derive(Clone, Debug)]
pub struct Holding {
    /// Which bytes, and where.
    pub need: Need,
    /// Its fetch.
    pub ticket: Ticket,
    /// The newest write-back of what was written to it in its place.
    pub written_back: Option<Ticket>,
    /// Whether the fetch reads a file.
    pub from_file: bool,
    /// In use by the segment at hand: must not be overwritten.
    pub pinned: bool,
    // The search for something to fetch ahead that has found it to be needed sooner.
    mark: u64,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Ring {
    block: Option<Arc<Block>>,
    holdings: Vec<Holding>,
    // Places that segments use which were launched and may not be done, oldest first.
    uses: Vec<(Range<usize>, Fence)>,
    search: u64,
    // Places that the search has found to be needed, and in use.
    wanted: Vec<Range<usize>>,
}

impl Ring {
    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        self.block.as_ref().map_or(0, |block| block.bytes())
    }

    /// Its memory; None while nothing is streamed.
    pub fn block(&self) -> Option<&Arc<Block>> {
        self.block.as_ref()
    }

    /// Forgets everything and gives the memory back.
    pub fn remove(&mut self) {
        self.holdings.clear();
        self.block = None;
    }

    /// Takes memory; empty afterwards.
    pub fn replace(&mut self, block: Block) {
        self.holdings.clear();
        self.block = Some(Arc::new(block));
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.holdings.clear();
    }

    /// Pins what is held for `need`; whether anything was.
    pub fn pin(&mut self, need: &Need) -> bool {
        let held = self.holdings.iter_mut().find(|held| held.need == *need);
        held.map(|held| held.pinned = true).is_some()
    }

    /// Lets everything be overwritten again.
    pub fn unpin(&mut self) {
        self.holdings
            .iter_mut()
            .for_each(|held| held.pinned = false);
    }

    /// Begins a search for something to fetch ahead.
    pub fn begin_search(&mut self) {
        self.search += 1;
        self.wanted.clear();
    }

    /// Whether `need` is held; it is needed sooner than whatever the search asks next.
    pub fn reserve(&mut self, need: &Need) -> bool {
        let held = self.holdings.iter_mut().find(|held| held.need == *need);
        held.map(|held| held.mark = self.search).is_some()
    }

    /// Notes that `place` is needed sooner than whatever the search asks next.
    pub fn want(&mut self, place: Range<usize>) {
        self.wanted.push(place);
    }

    /// Whether `place` holds nothing in use, nor anything the search found to be needed
    /// sooner, nor is itself needed sooner.
    pub fn is_free(&self, place: &Range<usize>) -> bool {
        let crosses = |wanted: &Range<usize>| wanted.start < place.end && place.start < wanted.end;
        if self.wanted.iter().any(crosses) {
            return false;
        }
        let taken = |held: &Holding| held.pinned || held.mark == self.search;
        !self
            .holdings
            .iter()
            .any(|held| held.need.overlaps(place) && taken(held))
    }

    /// Whether `place` holds nothing in use.
    pub fn is_unpinned(&self, place: &Range<usize>) -> bool {
        !self
            .holdings
            .iter()
            .any(|held| held.need.overlaps(place) && held.pinned)
    }

    /// Notes a fetch; what was in its place is gone.
    pub fn hold(&mut self, need: &Need, ticket: Ticket, from_file: bool) {
        let place = need.place();
        self.holdings.retain(|held| !held.need.overlaps(&place));
        self.holdings.push(Holding {
            need: need.clone(),
            ticket,
            written_back: None,
            from_file,
            pinned: false,
            mark: self.search,
        });
    }

    /// What is held of a tensor that is in use.
    pub fn pinned(&self, tensor: TensorId) -> Option<&Holding> {
        let mut holdings = self.holdings.iter();
        holdings.find(|held| held.pinned && held.need.tensor == tensor)
    }

    /// All that is in use.
    pub fn all_pinned(&self) -> impl Iterator<Item = &Holding> {
        self.holdings.iter().filter(|held| held.pinned)
    }

    /// Forgets a tensor, but for what is in use: its bytes changed.
    pub fn invalidate(&mut self, tensor: TensorId) {
        self.holdings
            .retain(|held| held.need.tensor != tensor || held.pinned);
    }

    /// Nothing may write what `tensor` holds before `ticket` is done.
    pub fn delay(&mut self, tensor: TensorId, ticket: Ticket) {
        let mut holdings = self.holdings.iter_mut();
        if let Some(held) = holdings.find(|held| held.pinned && held.need.tensor == tensor) {
            held.written_back = Some(ticket);
        }
    }

    /// The newest write-back from where these tensors are in use.
    pub fn written_back(&self, tensors: impl Iterator<Item = TensorId>) -> Option<Ticket> {
        let of = |id| self.pinned(id)?.written_back;
        tensors.filter_map(of).max()
    }

    /// Notes that a segment was launched, which uses what is in use until the fence comes.
    pub fn note_launched(&mut self, fence: &Fence) {
        let pinned = self.holdings.iter().filter(|held| held.pinned);
        self.uses
            .extend(pinned.map(|held| (held.need.place(), Fence::clone(fence))));
    }

    /// Notes that all segments are done.
    pub fn note_computed(&mut self) {
        self.uses.clear();
    }

    /// What has to come before anything of `place` may be overwritten: segments are done in
    /// their order.
    pub fn last_use(&self, place: &Range<usize>) -> Option<&Fence> {
        let mut newest_first = self.uses.iter().rev();
        let last = newest_first.find(|(used, _)| used.start < place.end && place.start < used.end);
        last.map(|(_, fence)| fence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(tensor: u32, at: usize) -> Need {
        Need {
            tensor: TensorId(tensor),
            range: 0..10,
            at,
            bytes: 10,
        }
    }

    #[test]
    fn what_is_in_use_or_needed_sooner_is_not_free() {
        let mut ring = Ring::default();
        ring.hold(&need(1, 0), Ticket(1), true);
        ring.hold(&need(2, 10), Ticket(2), true);
        assert!(ring.pin(&need(1, 0)) && !ring.pin(&need(1, 5)));
        ring.begin_search();
        assert!(!ring.is_free(&(5..15)) && ring.is_free(&(10..30)));
        assert!(ring.reserve(&need(2, 10)) && !ring.is_free(&(15..25)));
        ring.unpin();
        assert!(ring.is_free(&(0..10)));
    }

    #[test]
    fn what_is_written_again_in_its_place_waits_for_its_write_back() {
        let mut ring = Ring::default();
        for tensor in [1, 2, 3] {
            let need = need(tensor, 100 + 10 * usize::try_from(tensor).unwrap());
            ring.hold(&need, Ticket(u64::from(tensor)), true);
            ring.pin(&need);
        }
        ring.delay(TensorId(1), Ticket(8));
        ring.delay(TensorId(2), Ticket(9));
        let of = |ring: &Ring, ids: &[u32]| {
            let ids = ids.iter().map(|id| TensorId(*id));
            ring.written_back(ids)
        };
        assert_eq!(of(&ring, &[1, 3]), Some(Ticket(8)));
        assert_eq!(of(&ring, &[1, 2]), Some(Ticket(9)));
        assert_eq!(of(&ring, &[3]), None, "it was never written here");
        assert_eq!(ring.all_pinned().map(|held| held.ticket.0).max(), Some(3));
        // A later fetch is another matter.
        ring.unpin();
        ring.hold(&need(1, 20), Ticket(10), true);
        ring.pin(&need(1, 20));
        assert_eq!(of(&ring, &[1, 2]), None);
    }

    #[test]
    fn a_fetch_takes_the_place_of_whatever_it_overlaps() {
        let mut ring = Ring::default();
        ring.hold(&need(1, 0), Ticket(1), true);
        ring.hold(&need(2, 10), Ticket(2), true);
        ring.hold(&need(3, 8), Ticket(3), true);
        assert!(!ring.pin(&need(1, 0)) && !ring.pin(&need(2, 10)) && ring.pin(&need(3, 8)));
        ring.invalidate(TensorId(3));
        assert!(ring.pinned(TensorId(3)).is_some(), "what is in use stays");
        ring.unpin();
        ring.invalidate(TensorId(3));
        assert!(!ring.pin(&need(3, 8)));
    }
}
