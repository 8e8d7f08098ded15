//! What the budget covers, and a plan within it.
//!
//! ```text
//!  budget | arena: what stays, the ring | outside: scratch | the driver's | its reserve |
//! ```
//! The reserve is left free as far as the smallest plan does not need it, and so is what the
//! driver is only guessed to take. Where it takes more while the model runs, the smallest plan
//! goes on, beyond the budget by what that takes and no more.

use super::block::Arena;
use super::usage::Usage;
use super::{DriverPart, GroupKey, Pager};
use crate::cuda::Holding;
use crate::error::{Error, Result};
use crate::planner::{self, Item, Limits, Plan, Shortfall};

impl Pager {
    /// Has the budget cover this many bytes that lie outside the pager.
    ///
    /// # Errors
    /// `Memory` when no plan leaves them: they are not covered then.
    pub fn set_outside(&mut self, bytes: u64) -> Result<()> {
        let before = std::mem::replace(&mut self.outside_bytes, bytes);
        if bytes <= before {
            self.stale |= bytes < before;
            self.note_held();
            return Ok(());
        }
        let outcome = self.replan_within_what_is_allowed();
        if outcome.is_err() {
            self.outside_bytes = before;
            self.note_held();
        }
        outcome
    }

    /// Has the budget cover what the driver takes from the next plan on.
    pub fn expect_driver(&mut self, driver: DriverPart) {
        self.driver = driver;
        self.stale = true;
    }

    /// Has the budget cover what the driver takes, with a plan for it: within the user's
    /// budget, or else the smallest.
    ///
    /// # Errors
    /// As for `set_budget`: it is covered as before then.
    pub fn set_driver(&mut self, driver: DriverPart) -> Result<()> {
        let before = (self.driver, self.overrun_bytes);
        self.driver = driver;
        let mut outcome = self.replan_within_what_is_allowed();
        if matches!(outcome, Err(Error::Memory(_))) {
            let part = self.config.budget_bytes;
            self.config.budget_bytes = part.max(self.allowed_bytes);
            let over = self.least_bytes.saturating_sub(self.config.budget_bytes);
            self.overrun_bytes = self.overrun_bytes.max(over);
            outcome = self.replan();
            if outcome.is_err() {
                self.config.budget_bytes = part;
            }
        }
        if outcome.is_err() {
            (self.driver, self.overrun_bytes) = before;
            // If that fails too, the next graph tries again and says why.
            let _ = self.replan_within_what_is_allowed();
        }
        outcome
    }

    /// Tells others of this process, from now on, what is held here of the arena's card.
    pub fn keep_account(&mut self, holding: Holding) {
        self.holding = Some(holding);
        self.note_held();
    }

    /// What is held has changed.
    pub(super) fn note_held(&self) {
        if let Some(holding) = &self.holding {
            let usage = self.usage();
            holding.set(usage.arena_bytes - usage.driver_bytes);
        }
    }

    /// Counts what of the budget is left for what is not known of the driver.
    pub(super) fn count_left_for_driver(&self, usage: &mut Usage) {
        let mut left = usage.budget_bytes.saturating_sub(usage.arena_bytes);
        usage.guessed_bytes = self.driver.guessed_bytes.min(left);
        left -= usage.guessed_bytes;
        usage.arena_bytes += usage.guessed_bytes;
        usage.driver_bytes += usage.guessed_bytes;
        usage.reserve_bytes = self.driver.reserve_bytes.min(left);
    }

    /// Says that the smallest plan takes more than the budget leaves beside the driver: for a
    /// guess once, and for what is measured whenever it is more than was said.
    pub(super) fn tell_overrun(&mut self) {
        let Arena::Device(device, _) = &self.config.arena else {
            return;
        };
        let (usage, name) = (self.usage(), device.name());
        let over = usage.arena_bytes.saturating_sub(usage.budget_bytes);
        let lack = self.driver.guessed_bytes - usage.guessed_bytes;
        if over.min(self.overrun_bytes) > self.overrun_told_bytes {
            self.overrun_told_bytes = over;
            self.notes.push(format!(
                "the driver of {name} takes {} of the budget of {}, which leaves less than the \
                 smallest plan needs; the run goes on with that, {} over the budget; raise \
                 --vram-budget or lower -c or -ub",
                mib(usage.driver_bytes),
                mib(usage.budget_bytes),
                mib(over),
            ));
        } else if lack > 0 && self.overrun_told_bytes == 0 {
            self.overrun_told_bytes = lack;
            self.notes.push(format!(
                "the budget of {} leaves {} for the driver of {name}, which is taken to need {}; \
                 the process may take more than the budget; raise --vram-budget or lower -c or -ub",
                mib(usage.budget_bytes),
                mib(usage.guessed_bytes),
                mib(self.driver.guessed_bytes),
            ));
        }
    }

    /// The planner's answer for the tensors as they are.
    pub(super) fn plan(&mut self) -> Result<Plan> {
        let mut keys: Vec<GroupKey> = self
            .tensors
            .iter()
            .flatten()
            .map(|tensor| tensor.spec.group)
            .collect();
        keys.sort_unstable();
        keys.dedup();
        let items: Vec<Item<'_>> = self
            .tensors
            .iter()
            .flatten()
            .map(|tensor| self.item_of(tensor, &keys))
            .collect();
        let plan_within = |budget_bytes| {
            let limits = Limits {
                budget_bytes,
                resident_groups_max: self.config.resident_groups_max,
                look_ahead: self.config.look_ahead,
                ring_bytes_min: self.ring_bytes_min,
            };
            planner::plan(&items, keys.len(), &limits)
        };
        let (budget, driver) = (self.config.budget_bytes, self.driver);
        let room = budget.saturating_sub(self.outside_bytes);
        let mut outcome = plan_within(room.saturating_sub(driver.most_bytes()));
        if let Err(Shortfall { minimum_bytes, .. }) = outcome
            && minimum_bytes + self.outside_bytes + driver.bytes <= budget + self.overrun_bytes
        {
            outcome = plan_within(minimum_bytes);
        }
        let least = match &outcome {
            Ok(plan) => plan.minimum_bytes,
            Err(shortfall) => shortfall.minimum_bytes,
        };
        self.least_bytes = least + self.outside_bytes + driver.bytes;
        outcome.map_err(|shortfall| self.too_small(&shortfall))
    }

    fn too_small(&self, shortfall: &Shortfall) -> Error {
        let states_follow = self.config.states_follow && !self.has_states();
        let before = match states_follow {
            true => ", the KV cache not counted",
            false => "",
        };
        let ring = match shortfall.ring_bytes {
            0 => String::new(),
            bytes => format!("{} for what is streamed", mib(bytes)),
        };
        let outside = match self.outside_bytes {
            0 => String::new(),
            bytes => format!("{} for what llama.cpp keeps and computes with", mib(bytes)),
        };
        let driver = match self.driver.bytes {
            0 => String::new(),
            bytes => format!("{} for what the GPU's driver takes", mib(bytes)),
        };
        let parts: Vec<&str> = [&*ring, &*outside, &*driver]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect();
        let parts = match parts.is_empty() {
            true => String::new(),
            false => format!(" ({})", parts.join(", ")),
        };
        let stuck = match self.stuck_reason() {
            Some(sentence) => format!("; {sentence}"),
            None => String::new(),
        };
        Error::Memory(format!(
            "VRAM budget of {} is below the minimum of {}{before}{parts}; raise --vram-budget or \
             lower -c or -ub{stuck}",
            mib(self.config.budget_bytes),
            mib(shortfall.minimum_bytes + self.outside_bytes + self.driver.bytes),
        ))
    }
}

/// Bytes in MiB, rounded up to the next hundredth, so that the figure given is enough.
pub fn mib(bytes: u64) -> String {
    let hundredths = (u128::from(bytes) * 100).div_ceil(1 << 20);
    format!("{}.{:02} MiB", hundredths / 100, hundredths % 100)
}
