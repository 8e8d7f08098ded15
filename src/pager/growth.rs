//! States that take memory of a device as they come into use, and what happens when it has
//! less than the budget says, because others have taken it: weights give way.

use std::sync::Arc;

use super::block::Block;
use super::limits::mib;
use super::replan::Halt;
use super::{Pager, Place, TensorId};
use crate::error::{Error, Result};
use crate::planner::{Placement, Plan};

/// Memory that a device did not give.
#[derive(Debug)]
pub(super) struct NoRoom {
    bytes: u64,
    why: String,
}

/// How far the plan has gone back behind the budget.
#[derive(Debug)]
pub(super) struct Retreat {
    given_up_bytes: u64,
    room: NoRoom,
}

/// Takes memory for the first `in_use` bytes of a state.
pub(super) fn grow(block: &Block, in_use: usize) -> std::result::Result<(), Halt> {
    let bytes = block.missing_bytes(in_use) as u64;
    let grown = block.grow(in_use);
    grown.map_err(|why| Halt::NoRoom(NoRoom { bytes, why }))
}

impl Pager {
    /// Tensors that stay and share a block with one that leaves. Where memory is given back by
    /// whole blocks only, they are placed anew, so that what is counted is what is taken.
    pub(super) fn fellows_of_leaving(&self, moving: &[(TensorId, Placement)]) -> Vec<TensorId> {
        if self.config.arena.gives_back_parts() {
            return Vec::new();
        }
        let block_of = |id: TensorId| match &self.tensor(id).place {
            Place::Resident(block, _) => Some(Arc::as_ptr(block)),
            _ => None,
        };
        let leaving = moving.iter().filter_map(|(id, _)| block_of(*id));
        let leaving: Vec<*const Block> = leaving.collect();
        let stays = |id: &TensorId| moving.iter().all(|(other, _)| other != id);
        let shares = |id: &TensorId| block_of(*id).is_some_and(|block| leaving.contains(&block));
        match leaving.is_empty() {
            true => Vec::new(),
            false => self.ids().filter(stays).filter(shares).collect(),
        }
    }

    /// Takes memory for what is in use of the states that stay.
    pub(super) fn grow_states(&self) -> std::result::Result<(), Halt> {
        let states = self.tensors.iter().flatten();
        let states = states.filter_map(|tensor| match (&tensor.place, &tensor.state) {
            (Place::Resident(block, _), Some(state)) => Some((block, state.bytes_in_use())),
            _ => None,
        });
        let missing = states.clone();
        let missing = missing.map(|(block, in_use)| block.missing_bytes(in_use) as u64);
        let bytes = missing.sum();
        for (block, in_use) in states {
            let grown = block.grow(in_use);
            grown.map_err(|why| Halt::NoRoom(NoRoom { bytes, why }))?;
        }
        Ok(())
    }

    /// Lowers the budget below what `plan` takes, each time by twice as much.
    pub(super) fn retreat(&mut self, before: &mut Option<Retreat>, plan: &Plan, room: NoRoom) {
        let twice = before.take().map_or(0, |before| 2 * before.given_up_bytes);
        let given_up_bytes = twice.max(room.bytes).max(1);
        let driver = self.driver.most_bytes();
        let taken = plan.arena_bytes() + self.outside_bytes + driver;
        let left = taken.saturating_sub(given_up_bytes);
        self.config.budget_bytes = self.config.budget_bytes.min(left);
        *before = Some(Retreat {
            given_up_bytes,
            room,
        });
    }

    /// Says what a retreat has come to. When no plan was small enough, the budget is again
    /// what it was before.
    ///
    /// # Errors
    /// Those of `outcome`; `Memory` with the device's reason, when that is why no plan fits.
    pub(super) fn end_retreat(
        &mut self,
        retreat: Option<Retreat>,
        budget_bytes: u64,
        outcome: Result<()>,
    ) -> Result<()> {
        let Some(Retreat { room, .. }) = retreat else {
            return outcome;
        };
        let (missing, why) = (mib(room.bytes), room.why);
        match outcome {
            Ok(()) => {
                let left = mib(self.config.budget_bytes);
                self.notes.push(format!(
                    "no room for {missing} more of KV cache ({why}): weights give way, and the \
                     budget is {left} from now on"
                ));
                Ok(())
            }
            Err(error) => {
                self.config.budget_bytes = budget_bytes;
                match error {
                    Error::Memory(_) => Err(Error::Memory(format!(
                        "no room for {missing} more of KV cache ({why}), and no smaller plan \
                         makes any; lower -c, or end what else uses the device"
                    ))),
                    other => Err(other),
                }
            }
        }
    }
}
