//! Tensors come and go, contexts grow, budgets change; each time the plan is made anew
//! and the arena follows it.

use std::sync::Arc;

use super::block::Block;
use super::copies::HostPart;
use super::engine::{Copy, Direction, Request, Source};
use super::growth::{NoRoom, Retreat, grow};
use super::limits::mib;
use super::state::State;
use super::usage::Move;
use super::{Backing, GroupKey, PagedTensor, Pager, Place, TensorId, TensorSpec};
use crate::error::{Error, Result};
use crate::planner::{Item, Placement, Plan, WhenStreamed, cold};

/// Why a plan could not be put into effect.
#[derive(Debug)]
pub(super) enum Halt {
    /// A state cannot leave the arena, or cannot grow there: another plan has to know that.
    Refused,
    /// The device has less memory than the budget says: a smaller plan has to do.
    NoRoom(NoRoom),
    /// Something failed.
    Failed(Error),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Pager {
    /// Takes tensors in and plans for all that there are. Resident weights are empty
    /// until `write` gives their bytes; states are zero.
    ///
    /// # Errors
    /// `Memory` when no plan fits the budget: nothing has been taken in then. `Memory`
    /// also when the system does not give the memory that the plan needs; the tensors
    /// that were there before can then only be removed.
    pub fn add_tensors(&mut self, specs: Vec<TensorSpec>) -> Result<Vec<TensorId>> {
        let mut ids = Vec::with_capacity(specs.len());
        for spec in specs {
            let state = match spec.backing {
                Backing::Weight(_) => None,
                Backing::State { page_bytes } => Some(State::new(spec.span_bytes, page_bytes)),
            };
            let tensor = PagedTensor {
                spec,
                place: Place::Nowhere,
                state,
                loaded: false,
                host: HostPart::default(),
            };
            let free = self.tensors.iter().position(Option::is_none);
            let index = free.unwrap_or(self.tensors.len());
            if index == self.tensors.len() {
                self.tensors.push(None);
            }
            self.tensors[index] = Some(tensor);
            ids.push(TensorId(
                u32::try_from(index).expect("fewer than 2^32 tensors"),
            ));
        }
        let outcome = self.replan_within_what_is_allowed();
        if outcome.is_err() {
            self.remove_tensors(&ids);
        }
        outcome.map(|()| ids)
    }

    /// Forgets tensors whose buffer is gone, and gives their memory back.
    pub fn remove_tensors(&mut self, ids: &[TensorId]) {
        // A failed copy of a tensor that nobody will use again is no failure.
        let _ = self.drain();
        self.ring.clear();
        for id in ids {
            self.cache.remove(*id);
            self.release_store(*id);
            self.tensors[id.0 as usize] = None;
        }
        if !self.has_states() {
            // The states that were lost are gone, and what they needed.
            self.lost = None;
            self.spill = None;
            self.minimum_bytes = 0;
            self.ring_bytes_min = 0;
        }
        self.stale = true;
        self.note_held();
    }

    /// Plans anew for another budget: the user's, or a part of it that is left for a while.
    ///
    /// # Errors
    /// `Memory` when no plan fits it, or its memory is not given: the budget stays.
    pub fn set_budget(&mut self, bytes: u64, part: bool) -> Result<()> {
        let before = std::mem::replace(&mut self.config.budget_bytes, bytes);
        self.forget_stuck();
        // Who asks for too little hears so.
        let overrun = std::mem::take(&mut self.overrun_bytes);
        let outcome = self.replan();
        if outcome.is_err() {
            self.config.budget_bytes = before;
            self.overrun_bytes = overrun;
            self.forget_stuck();
            // If that fails too, the next graph tries again and says why.
            let _ = self.replan();
        } else if !part {
            self.allowed_bytes = bytes;
        }
        outcome
    }

    /// Has the ring hold at least what one operation reads at once.
    ///
    /// # Errors
    /// `Memory` when no plan leaves that much.
    pub fn need_ring(&mut self, bytes: usize) -> Result<()> {
        let before = self.ring_bytes_min;
        self.ring_bytes_min = before.max(bytes as u64);
        let outcome = self.replan_within_what_is_allowed();
        if outcome.is_err() {
            self.ring_bytes_min = before;
        }
        outcome
    }

    /// Plans anew if sizes have changed; whether they had.
    ///
    /// # Errors
    /// As for `add_tensors`; what a graph wanted to use beyond what there was is forgotten
    /// then.
    pub fn settle(&mut self) -> Result<bool> {
        let stale = self.stale;
        if stale && let Err(error) = self.replan_within_what_is_allowed() {
            let tensors = self.tensors.iter_mut().flatten();
            for state in tensors.filter_map(|tensor| tensor.state.as_mut()) {
                state.retract();
            }
            return Err(error);
        }
        Ok(stale)
    }

    /// Plans anew. When only a part of the user's budget is left and does not do, as much
    /// more of it is taken as has to be.
    pub(super) fn replan_within_what_is_allowed(&mut self) -> Result<()> {
        let part = self.config.budget_bytes;
        let outcome = self.replan();
        if !matches!(outcome, Err(Error::Memory(_))) || part >= self.allowed_bytes {
            return outcome;
        }
        self.config.budget_bytes = self.least_bytes.clamp(part, self.allowed_bytes);
        let again = self.replan();
        if again.is_err() {
            self.config.budget_bytes = part;
        }
        again
    }

    pub(super) fn has_states(&self) -> bool {
        let mut tensors = self.tensors.iter().flatten();
        tensors.any(|tensor| tensor.state.is_some())
    }

    pub(super) fn replan(&mut self) -> Result<()> {
        self.check_states()?;
        // Until all is where the plan wants it.
        self.stale = true;
        let budget_bytes = self.config.budget_bytes;
        let mut retreat = None;
        let outcome = self.find_plan(&mut retreat);
        let outcome = self.end_retreat(retreat, budget_bytes, outcome);
        self.note_held();
        outcome?;
        self.tell_overrun();
        self.minimum_bytes = self.minimum_bytes.max(self.least_bytes);
        let tensors = self.tensors.iter_mut().flatten();
        for state in tensors.filter_map(|tensor| tensor.state.as_mut()) {
            state.agree();
        }
        self.stale = false;
        Ok(())
    }

    /// Puts a plan into effect, or the next one that may do.
    fn find_plan(&mut self, retreat: &mut Option<Retreat>) -> Result<()> {
        loop {
            let plan = self.plan()?;
            match self.apply(&plan) {
                Ok(()) => return Ok(()),
                // One more state has to stay, or takes all of its memory.
                Err(Halt::Refused) => {}
                Err(Halt::NoRoom(room)) => self.retreat(retreat, &plan, room),
                Err(Halt::Failed(error)) => return Err(error),
            }
        }
    }

    pub(super) fn item_of<'a>(&self, tensor: &'a PagedTensor, keys: &[GroupKey]) -> Item<'a> {
        let spec = &tensor.spec;
        let group = keys
            .binary_search(&spec.group)
            .expect("all keys are listed");
        let is_state = tensor.state.is_some();
        let pinned_layer = match spec.group {
            GroupKey::Layer(layer) => !is_state && self.config.pinned_layers.contains(&layer),
            _ => false,
        };
        let stuck = tensor
            .state
            .as_ref()
            .is_some_and(|state| state.stuck.is_some());
        let known = is_state || tensor.loaded;
        Item {
            group,
            role: match spec.group {
                GroupKey::Output => "output",
                _ => &spec.role,
            },
            bytes: self.budget_bytes_of(tensor),
            state: is_state,
            pinned: spec.group == GroupKey::Shared || pinned_layer || stuck,
            streamed: known && matches!(tensor.place, Place::Streamed),
            experts: spec.slice_bytes.is_some(),
            cold: match self.copies.is_some() && !is_state {
                true => cold::use_of(&spec.role),
                false => WhenStreamed::Fetched,
            },
        }
    }

    /// Moves the tensors to where `plan` wants them.
    fn apply(&mut self, plan: &Plan) -> std::result::Result<(), Halt> {
        let wanted: Vec<(TensorId, Placement)> = self.ids().zip(plan.placements.clone()).collect();
        let moves = |(id, placement): &&(TensorId, Placement)| match self.tensor(*id).place {
            Place::Nowhere => true,
            Place::Resident(..) => *placement != Placement::Resident,
            Place::Streamed => *placement != Placement::Streamed,
            Place::Cached(..) => *placement != Placement::Cached,
        };
        let moving: Vec<(TensorId, Placement)> = wanted.iter().filter(moves).copied().collect();
        let ring_bytes = usize::try_from(plan.ring_bytes).expect("a ring fits the address space");
        let cache_bytes = usize::try_from(plan.cache_bytes).unwrap_or(usize::MAX);
        self.reserve_stores(&wanted)?;
        self.slot_bytes = usize::try_from(plan.slot_bytes).expect("a slot fits the ring");
        if moving.is_empty() && ring_bytes == self.ring.bytes() {
            self.choose_copies();
            self.resize_cache(cache_bytes)?;
            return self.grow_states();
        }
        self.drain()?;
        let before = self.moves.len();
        let fellows = self.fellows_of_leaving(&moving);
        // What leaves makes room before anything new is taken.
        for (id, _) in moving.iter().filter(|(_, to)| *to == Placement::Streamed) {
            self.stream_out(*id)?;
        }
        for id in &fellows {
            self.tensor_mut(*id).place = Place::Nowhere;
        }
        self.cache_out(&moving, cache_bytes)?;
        if ring_bytes != self.ring.bytes() {
            self.ring.remove();
            if ring_bytes > 0 {
                let block = self.new_block(ring_bytes)?;
                self.lock(&block);
                self.ring.replace(block);
            }
        }
        self.ring.clear();
        let coming = moving.iter().filter(|(_, to)| *to == Placement::Resident);
        let coming = coming.map(|(id, _)| *id).chain(fellows);
        let coming: Vec<TensorId> = coming.collect();
        let outcome = self.bring_in(&coming);
        self.choose_copies();
        self.count_layers(before);
        outcome?;
        self.grow_states()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = TensorId> {
        let indexed = self.tensors.iter().enumerate();
        let live: Vec<usize> = indexed
            .filter(|(_, tensor)| tensor.is_some())
            .map(|(index, _)| index)
            .collect();
        live.into_iter()
            .map(|index| TensorId(u32::try_from(index).expect("fewer than 2^32 tensors")))
    }

    /// Moves one tensor out of the arena; a state's pages go to its store.
    fn stream_out(&mut self, id: TensorId) -> std::result::Result<(), Halt> {
        let bytes = self.budget_bytes_of(self.tensor(id));
        let place = self.tensor(id).place.clone();
        if let (Place::Resident(block, offset), Some(state)) = (&place, &self.tensor(id).state) {
            let mut copies = Vec::new();
            let store = state.store.as_ref().expect("a streamed state has a store");
            for (_, run) in state
                .runs(&(0..state.bytes_in_use()))
                .filter(|(written, _)| *written)
            {
                copies.push(Copy {
                    from: block.source(offset + run.start),
                    to: store.target(run.start),
                    bytes: run.len(),
                    whole_blocks: false,
                });
            }
            let pages = state.pages_written();
            let lost = self.lost.take();
            if let Err(error) = self.copy_now(Direction::Out, copies) {
                // The arena still has the bytes.
                self.lost = lost;
                self.set_stuck(id, Some(error.to_string()));
                return Err(Halt::Refused);
            }
            self.lost = lost;
            self.kv_pages.evicted += pages;
        }
        self.cache.remove(id);
        if let Place::Resident(block, offset) = &place {
            let spec = &self.tensor(id).spec;
            let start = offset - self.lead(spec);
            block.release(start..start + self.arena_bytes(spec));
            self.note_move(id, true, bytes);
        }
        self.tensor_mut(id).place = Place::Streamed;
        Ok(())
    }

    pub(super) fn note_move(&mut self, id: TensorId, evicted: bool, bytes: u64) {
        let tensor = self.tensor(id);
        let (group, states) = (tensor.spec.group, tensor.state.is_some());
        let of_layer = |known: &&mut Move| {
            (known.group, known.states, known.evicted) == (group, states, evicted)
        };
        match self.moves.iter_mut().find(of_layer) {
            Some(known) => known.bytes += bytes,
            None => self.moves.push(Move {
                group,
                states,
                evicted,
                bytes,
            }),
        }
    }

    /// Counts the layers that the moves since `before` touch.
    fn count_layers(&mut self, before: usize) {
        for evicted in [true, false] {
            let moved = self.moves[before.min(self.moves.len())..].iter();
            let mut layers: Vec<GroupKey> = moved
                .filter(|moved| moved.evicted == evicted)
                .map(|moved| moved.group)
                .collect();
            layers.sort_unstable();
            layers.dedup();
            match evicted {
                true => self.layers_moved.0 += layers.len() as u64,
                false => self.layers_moved.1 += layers.len() as u64,
            }
        }
    }

    /// Takes memory for what is now resident, and fills it from the backing store. When
    /// that fails, all is where it was before.
    fn bring_in(&mut self, coming: &[TensorId]) -> std::result::Result<(), Halt> {
        let before: Vec<Place> = coming
            .iter()
            .map(|id| self.tensor(*id).place.clone())
            .collect();
        let mut copies = Vec::new();
        let filled = self
            .place_all(coming, &mut copies)
            .and_then(|()| Ok(self.copy_now(Direction::In, copies)?));
        for (id, place) in coming.iter().zip(before) {
            if filled.is_err() {
                self.tensor_mut(*id).place = place;
                if self.is_cached(*id) {
                    self.release_absent(*id);
                }
                continue;
            }
            if matches!(place, Place::Cached(..)) {
                let there = self.cache.bytes_there(*id);
                let bytes = self.tensor(*id).spec.span_bytes - there;
                self.cache.remove(*id);
                self.note_move(*id, false, bytes as u64);
            }
            if matches!(place, Place::Streamed) {
                let bytes = self.budget_bytes_of(self.tensor(*id));
                self.note_move(*id, false, bytes);
            }
            self.release_store(*id);
        }
        filled
    }

    /// Makes tensors resident, the small ones of a group in one block.
    fn place_all(
        &mut self,
        coming: &[TensorId],
        copies: &mut Vec<Copy>,
    ) -> std::result::Result<(), Halt> {
        let mut small: Vec<TensorId> = Vec::new();
        for id in coming {
            let tensor = self.tensor(*id);
            let bytes = self.arena_bytes(&tensor.spec);
            if let Place::Cached(block, offset) = tensor.place.clone() {
                self.copies_of_absent(*id, copies);
                self.lock(&block);
                self.tensor_mut(*id).place = Place::Resident(block, offset);
            } else if let Some(state) = &tensor.state {
                let in_use = state.bytes_in_use();
                let block = Arc::new(self.state_block(*id, bytes)?);
                grow(&block, in_use)?;
                self.place(*id, &block, 0, copies);
            } else if self.config.arena.has_own_block(bytes) || tensor.spec.slice_bytes.is_some() {
                let block = Arc::new(self.new_block(bytes)?);
                self.lock(&block);
                self.place(*id, &block, 0, copies);
            } else {
                small.push(*id);
            }
        }
        let group = |id: &TensorId| self.tensor(*id).spec.group;
        small.sort_by_key(group);
        let same = |a: &TensorId, b: &TensorId| group(a) == group(b);
        let groups: Vec<Vec<TensorId>> = small.chunk_by(same).map(<[TensorId]>::to_vec).collect();
        for group in groups {
            let sizes = group
                .iter()
                .map(|id| self.arena_bytes(&self.tensor(*id).spec));
            let sizes: Vec<usize> = sizes.collect();
            let block = Arc::new(self.new_block(sizes.iter().sum())?);
            self.lock(&block);
            let mut start = 0;
            for (id, bytes) in group.iter().zip(sizes) {
                self.place(*id, &block, start, copies);
                start += bytes;
            }
        }
        Ok(())
    }

    /// A block for a state. Memory comes page by page, as it is written; where it cannot, the
    /// plan has to know first.
    fn state_block(&mut self, id: TensorId, bytes: usize) -> std::result::Result<Block, Halt> {
        if self.tensor(id).state.as_ref().is_some_and(|it| it.whole) {
            return Ok(self.new_block(bytes)?);
        }
        let block = self.config.arena.sparse_block(bytes);
        if let Some(block) = block.map_err(Error::Memory)? {
            return Ok(block);
        }
        if let Some(state) = &mut self.tensor_mut(id).state {
            state.whole = true;
        }
        Err(Halt::Refused)
    }

    /// Keeps the weights in `block` in memory, where that is asked for. As in llama.cpp it
    /// is no failure when the system refuses, but the user is told.
    fn lock(&mut self, block: &Block) {
        if !self.config.lock || self.lock_refused {
            return;
        }
        let Some(memory) = block.host() else { return };
        if let Err(error) = memory.lock() {
            self.lock_refused = true;
            self.notes.push(format!(
                "the weights are not all locked in memory: the system refused {} ({error}); raise \
                 its limit (ulimit -l), or leave out --load-mode mlock",
                mib(block.bytes() as u64)
            ));
        }
    }

    /// Makes a tensor resident at `start` of `block`, and adds what fills it.
    fn place(&mut self, id: TensorId, block: &Arc<Block>, start: usize, copies: &mut Vec<Copy>) {
        let was_streamed = self.is_streamed(id);
        let whole_blocks = self.reads_whole_blocks();
        let tensor = self.tensor(id);
        let at = start + self.lead(&tensor.spec);
        let mut add = |from, offset: usize, bytes| {
            copies.push(Copy {
                from,
                to: block.target(at + offset),
                bytes,
                whole_blocks,
            });
        };
        match (&tensor.spec.backing, &tensor.state) {
            (Backing::Weight(location), _) if tensor.loaded => add(
                Source::File {
                    file: Arc::clone(&location.file),
                    offset: location.offset,
                },
                0,
                tensor.spec.span_bytes,
            ),
            (_, Some(state)) if was_streamed => {
                let store = state.store.as_ref().expect("a streamed state has a store");
                let in_use = 0..state.bytes_in_use();
                let runs = state.runs(&in_use);
                for (_, run) in runs.filter(|(written, _)| *written) {
                    add(store.source(run.start), run.start, run.len());
                }
            }
            _ => {}
        }
        self.tensor_mut(id).place = Place::Resident(Arc::clone(block), at);
    }

    /// Does copies and waits for them.
    fn copy_now(&mut self, direction: Direction, copies: Vec<Copy>) -> Result<()> {
        if copies.is_empty() {
            return Ok(());
        }
        self.engine
            .submit(Request {
                direction,
                copies,
                after: None,
            })
            .map_err(|(sentence, _refused)| Error::Failed(sentence))?;
        self.drain()
    }

    pub(super) fn new_block(&self, bytes: usize) -> Result<Block> {
        self.config.arena.block(bytes).map_err(Error::Memory)
    }
}
