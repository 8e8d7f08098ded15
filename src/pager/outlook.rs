//! What a plan would be, for tensors that are only known and never moved: no memory is
//! taken, nothing is read.

use super::copies::HostPart;
use super::state::State;
use super::{Backing, GroupKey, PagedTensor, Pager, Place, TensorSpec};
use crate::error::Result;
use crate::planner::Placement;

/// A tensor, and where a plan would have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// What it belongs to.
    pub group: GroupKey,
    /// What it is to its group.
    pub role: String,
    /// Its own bytes; of a state, those in use.
    pub bytes: u64,
    /// Bytes that it takes of the budget when it stays.
    pub arena_bytes: u64,
    /// Whether it is a state (KV cache, recurrent state).
    pub state: bool,
    /// Where it would be.
    pub placement: Placement,
}

/// What a plan would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlook {
    /// The tensors, in the order in which they were noted.
    pub tensors: Vec<Placed>,
    /// The budget, in bytes.
    pub budget_bytes: u64,
    /// The smallest budget that would do, in bytes.
    pub minimum_bytes: u64,
    /// Bytes of the ring.
    pub ring_bytes: u64,
    /// Bytes of the cache of experts.
    pub cache_bytes: u64,
    /// Bytes that the budget covers beside the arena.
    pub outside_bytes: u64,
    /// Bytes of it that the device's driver takes, or may take soon.
    pub driver_bytes: u64,
}

impl Outlook {
    /// Bytes of the budget that would be in use.
    pub fn used_bytes(&self) -> u64 {
        let resident = self.sum(Placement::Resident, |tensor| tensor.arena_bytes);
        resident + self.ring_bytes + self.cache_bytes + self.outside_bytes + self.driver_bytes
    }

    /// Bytes that would be streamed in each pass: all of the ring's, unless everything that
    /// it is for has a place in it to itself.
    pub fn streamed_bytes(&self) -> u64 {
        let streamed = self.sum(Placement::Streamed, |tensor| tensor.arena_bytes);
        match self.ring_bytes >= streamed {
            true => 0,
            false => self.sum(Placement::Streamed, |tensor| tensor.bytes),
        }
    }

    /// The sum over the tensors that would be in one place.
    pub fn sum(&self, placement: Placement, of: impl Fn(&Placed) -> u64) -> u64 {
        let there = self.tensors.iter();
        let there = there.filter(|tensor| tensor.placement == placement);
        there.map(of).sum()
    }
}

impl Pager {
    /// Notes tensors without a plan for them.
    pub fn note(&mut self, specs: Vec<TensorSpec>) {
        for spec in specs {
            let state = match spec.backing {
                Backing::Weight(_) => None,
                Backing::State { page_bytes } => Some(State::new(spec.span_bytes, page_bytes)),
            };
            self.tensors.push(Some(PagedTensor {
                spec,
                place: Place::Nowhere,
                state,
                loaded: false,
                host: HostPart::default(),
            }));
        }
    }

    /// Says how much of each state is in use: its rows up to `tokens` of them, `page_tokens`
    /// to a page, or all of them when `as_a_whole` says so of its role.
    pub fn imagine_context(
        &mut self,
        tokens: usize,
        page_tokens: usize,
        as_a_whole: impl Fn(&str) -> bool,
    ) {
        for tensor in self.tensors.iter_mut().flatten() {
            let (Some(state), Backing::State { page_bytes }) =
                (&mut tensor.state, &tensor.spec.backing)
            else {
                continue;
            };
            let row_bytes = page_bytes / page_tokens.max(1);
            let end = match as_a_whole(&tensor.spec.role) {
                true => usize::MAX,
                false => tokens.saturating_mul(row_bytes),
            };
            state.clear();
            state.extend(end);
        }
    }

    /// What the plan would be for this budget, with so many bytes of it used outside.
    ///
    /// # Errors
    /// `Memory` when no plan fits, as a run would say it.
    pub fn outlook(&mut self, budget_bytes: u64, outside_bytes: u64) -> Result<Outlook> {
        self.config.budget_bytes = budget_bytes;
        self.outside_bytes = outside_bytes;
        let plan = self.plan()?;
        let taken = plan.arena_bytes() + outside_bytes + self.driver.bytes;
        let left = budget_bytes.saturating_sub(taken);
        let driver_bytes = self.driver.most_bytes().min(self.driver.bytes + left);
        let tensors = self.tensors.iter().flatten().zip(&plan.placements);
        let tensors = tensors.map(|(tensor, placement)| Placed {
            group: tensor.spec.group,
            role: tensor.spec.role.clone(),
            bytes: match &tensor.state {
                None => tensor.spec.span_bytes as u64,
                Some(state) => state.bytes_in_use() as u64,
            },
            arena_bytes: self.budget_bytes_of(tensor),
            state: tensor.state.is_some(),
            placement: *placement,
        });
        Ok(Outlook {
            tensors: tensors.collect(),
            budget_bytes,
            minimum_bytes: self.least_bytes,
            ring_bytes: plan.ring_bytes,
            cache_bytes: plan.cache_bytes,
            outside_bytes,
            driver_bytes,
        })
    }

    /// The smallest budget that the last outlook found to do, in bytes.
    pub fn least_bytes(&self) -> u64 {
        self.least_bytes
    }
}
