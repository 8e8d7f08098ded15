#![allow(
    unsafe_code,
    reason = "states move between memories that are shared by address"
)]
//! Tensors come and go; each time the plan is made anew and the arena follows it.

use std::sync::Arc;

use super::block::Block;
use super::engine::{Copy, Direction, Request};
use super::ring::Slot;
use super::{
    Backing, Group, GroupId, GroupKey, PagedTensor, Pager, Place, TensorId, TensorSpec, in_memory,
    source_of,
};
use crate::error::{Error, Result};
use crate::planner::{self, GroupSize, Placement, Plan, RING_SLOTS, Shortfall};

impl Pager {
    /// Takes tensors in and plans for all that there are. Resident weights are empty
    /// until `write` gives their bytes; states are zero.
    ///
    /// # Errors
    /// `Memory` when no plan fits the budget: nothing has been taken in then. `Memory`
    /// also when the system does not give the memory that the plan needs; the tensors
    /// that were there before can then only be removed.
    pub fn add_tensors(&mut self, specs: Vec<TensorSpec>) -> Result<Vec<TensorId>> {
        self.drain()?;
        let mut ids = Vec::with_capacity(specs.len());
        for mut spec in specs {
            spec.bytes = spec.bytes.next_multiple_of(self.config.alignment);
            let tensor = PagedTensor {
                spec,
                group: GroupId(0),
                place: Place::Nowhere,
                loaded: false,
                untouched: true,
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
        let outcome = self.replan();
        if outcome.is_err() {
            self.remove_tensors(&ids);
        }
        outcome.map(|()| ids)
    }

    /// Forgets tensors whose buffer is gone, and gives their memory back.
    pub fn remove_tensors(&mut self, ids: &[TensorId]) {
        // A failed copy of a tensor that nobody will use again is no failure.
        let _ = self.drain();
        self.slots.iter_mut().for_each(Slot::clear);
        for id in ids {
            self.tensors[id.0 as usize] = None;
        }
        if !self.has_states() {
            // The states that were lost are gone.
            self.lost = None;
        }
    }

    /// Plans anew for another budget.
    ///
    /// # Errors
    /// `Memory` when no plan fits it, or its memory is not given: the budget stays.
    pub fn set_budget(&mut self, bytes: u64) -> Result<()> {
        self.drain()?;
        let before = std::mem::replace(&mut self.config.limits.budget_bytes, bytes);
        let outcome = self.replan();
        if outcome.is_err() {
            self.config.limits.budget_bytes = before;
            self.replan()?;
        }
        outcome
    }

    fn has_states(&self) -> bool {
        let mut tensors = self.tensors.iter().flatten();
        tensors.any(|tensor| tensor.spec.backing.is_state())
    }

    fn replan(&mut self) -> Result<()> {
        let mut keys: Vec<GroupKey> = self
            .tensors
            .iter()
            .flatten()
            .map(|tensor| tensor.spec.group)
            .collect();
        keys.sort_unstable();
        keys.dedup();
        let mut sizes: Vec<GroupSize> = keys
            .iter()
            .map(|key| GroupSize {
                bytes: 0,
                pinned: *key == GroupKey::Shared,
            })
            .collect();
        for tensor in self.tensors.iter().flatten() {
            let group = keys
                .binary_search(&tensor.spec.group)
                .expect("all keys are listed");
            sizes[group].bytes += tensor.spec.bytes as u64;
        }
        let limits = self.config.limits;
        let count_max = limits
            .resident_groups_max
            .map_or(usize::MAX, |max| max as usize);
        let shortfall = planner::shortfall(&sizes, count_max);
        // What is loaded in between may need more than what is loaded in the end.
        self.minimum_bytes = self.minimum_bytes.max(shortfall.minimum_bytes);
        let plan = planner::plan(&sizes, &limits).map_err(|shortfall| {
            let states_follow = self.config.states_follow && !self.has_states();
            too_small(limits.budget_bytes, &shortfall, states_follow)
        })?;
        self.apply(&keys, &plan)
    }

    fn apply(&mut self, keys: &[GroupKey], plan: &Plan) -> Result<()> {
        let mut rank = 0;
        self.groups.clear();
        for (key, placement) in keys.iter().zip(&plan.placements) {
            let home_slot = planner::home_slot(rank);
            rank += usize::from(*placement == Placement::Streamed);
            self.groups.push(Group {
                key: *key,
                placement: *placement,
                home_slot,
            });
        }
        // What leaves makes room before anything new is taken.
        self.slots.clear();
        self.stream_out(keys);
        self.bring_in()?;
        let bytes = usize::try_from(plan.slot_bytes).expect("a slot fits the address space");
        let count = if bytes == 0 { 0 } else { RING_SLOTS };
        for _ in 0..count {
            self.slots.push(Slot::new(Arc::new(new_block(bytes)?)));
        }
        Ok(())
    }

    /// Gives each tensor its group, and each streamed one its place in a slot.
    fn stream_out(&mut self, keys: &[GroupKey]) {
        let mut ends = vec![0usize; keys.len()];
        for tensor in self.tensors.iter_mut().flatten() {
            let group = keys
                .binary_search(&tensor.spec.group)
                .expect("all keys are listed");
            tensor.group = GroupId(u32::try_from(group).expect("fewer than 2^32 groups"));
            if self.groups[group].placement == Placement::Resident {
                if let Place::Streamed(_) = tensor.place {
                    tensor.place = Place::Nowhere;
                }
                continue;
            }
            if let (Place::Resident(block, offset), Backing::State(store, base)) =
                (&tensor.place, &tensor.spec.backing)
            {
                let from = block.memory().address(*offset);
                // SAFETY:
                // - the tensor's bytes lie inside its block;
                // - the engine is drained and nothing computes: nobody writes them.
                let bytes = unsafe { std::slice::from_raw_parts(from, tensor.spec.span_bytes) };
                // SAFETY:
                // - the store is idle for the same reason;
                // - block and store are different mappings.
                unsafe { store.write(*base, bytes) };
            }
            tensor.place = Place::Streamed(ends[group]);
            ends[group] += tensor.spec.bytes;
        }
    }

    /// Takes memory for what is now resident, and fills it from the backing store.
    fn bring_in(&mut self) -> Result<()> {
        let mut copies = Vec::new();
        for (index, group) in self.groups.iter().enumerate() {
            let mut members: Vec<&mut PagedTensor> = self
                .tensors
                .iter_mut()
                .flatten()
                .filter(|tensor| tensor.group.0 as usize == index)
                .filter(|tensor| matches!(tensor.place, Place::Nowhere))
                .collect();
            if group.placement == Placement::Streamed || members.is_empty() {
                continue;
            }
            let bytes = members.iter().map(|tensor| tensor.spec.bytes).sum();
            let block = Arc::new(new_block(bytes)?);
            let mut offset = 0;
            for tensor in &mut members {
                tensor.place = Place::Resident(Arc::clone(&block), offset);
                let known = tensor.loaded || tensor.spec.backing.is_state();
                if known {
                    copies.push(Copy {
                        from: source_of(&tensor.spec.backing, 0),
                        to: in_memory(block.memory(), offset),
                        bytes: tensor.spec.span_bytes,
                        whole_blocks: false,
                    });
                }
                offset += tensor.spec.bytes;
            }
        }
        if copies.is_empty() {
            return Ok(());
        }
        self.engine
            .submit(Request {
                direction: Direction::In,
                copies,
            })
            .map_err(|(sentence, _refused)| Error::Failed(sentence))?;
        self.drain()
    }
}

fn new_block(bytes: usize) -> Result<Block> {
    Block::new(bytes).map_err(Error::Memory)
}

fn too_small(budget_bytes: u64, shortfall: &Shortfall, states_follow: bool) -> Error {
    let pinned = match shortfall.pinned_bytes {
        0 => String::new(),
        bytes => format!(", {} that cannot be streamed", mib(bytes)),
    };
    let before = if states_follow {
        ", the KV cache not counted"
    } else {
        ""
    };
    Error::Memory(format!(
        "VRAM budget of {} is below the minimum of {}{before} (two slots of a layer: {}{pinned}); \
         raise --vram-budget or lower -c",
        mib(budget_bytes),
        mib(shortfall.minimum_bytes),
        mib(shortfall.ring_bytes),
    ))
}

/// Bytes in MiB, rounded up to the next hundredth, so that the figure given is enough.
fn mib(bytes: u64) -> String {
    let hundredths = (u128::from(bytes) * 100).div_ceil(1 << 20);
    format!("{}.{:02} MiB", hundredths / 100, hundredths % 100)
}
