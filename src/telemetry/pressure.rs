//! Memory pressure: when memory gets scarce the budget shrinks, and grows again later.
//!
//! Between tokens a [`Source`] says how full memory is, the arena included; the
//! [`Governor`] says what the budget becomes:
//!
//! ```text
//!  share in use
//!  1.0 ─────────────────────────────────────────────────────────────
//!       above: the budget shrinks by what is over the threshold
//!  threshold ───────────────────────────────────────────────────────
//!       between: nothing changes
//!  threshold - 0.05 ────────────────────────────────────────────────
//!       below, for a while: the budget grows, never beyond this line
//!  0.0 ─────────────────────────────────────────────────────────────
//! ```
//!
//! A growth ends below the lower line, so it never causes the next shrinking: under a
//! constant load the budget settles. It never leaves the range from what the loaded model
//! needs at least to what the user allowed; where even the least is too much, the run goes
//! on with that.

use std::time::{Duration, Instant};

use super::memory::{Level, Memory, Reader, share_of};
use crate::ggml::InnerDevice;

/// The share of memory in use above which the budget shrinks, unless the user says.
pub const THRESHOLD: f64 = 0.85;
/// The same where the budget is of a device's own memory, which no system shares with
/// anything that it could swap.
pub const DEVICE_THRESHOLD: f64 = 0.95;
/// How far below the threshold a growth has to stay.
const MARGIN: f64 = 0.05;
/// The budget moves in steps of this part of what the user allowed.
const STEPS: u64 = 32;
/// A growth takes this many steps at most: the memory may be somebody else's soon.
const GROWTH_STEPS_MAX: u64 = 4;
/// Samples between one shrinking and the next, for the first to show.
const REST: u32 = 2;
/// Calm samples in a row before a growth.
const PATIENCE: u32 = 16;
/// The same after refusals by the device, at most.
const PATIENCE_MAX: u32 = 1024;
/// Memory is not asked more often than this.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(5);
/// Nor is that of a device, whose driver has to be asked.
const DEVICE_INTERVAL: Duration = Duration::from_millis(100);

/// The share of what is available that a budget takes by itself.
const AUTOMATIC: f64 = 0.85;
/// What the process takes beside its budget.
const OVERHEAD_BYTES: u64 = 64 << 20;
/// What stays free of a device's memory beside its budget: a pool of CUDA's own ends the
/// process when it cannot grow.
const DEVICE_FREE_BYTES: u64 = 512 << 20;
const DEVICE_FREE_SHARE: f64 = 0.05;
/// What a device's driver is taken to need for itself where that is not measured.
pub const DEVICE_OVERHEAD_BYTES: u64 = 256 << 20;

/// What a budget of a device's memory has to do with what its driver takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverIs {
    /// The budget covers it.
    Covered,
    /// It lies beside the budget.
    Beside,
}

/// The budget when the user names none: most of what is available, and no more than stays
/// below the threshold, or the governor would take it back at once. `own_bytes` of what is
/// in use are the budget's already.
pub fn automatic_budget(memory: &Memory, threshold: f64, own_bytes: u64) -> u64 {
    let available = memory.available_bytes.saturating_add(own_bytes);
    let levels = [Some(memory.machine), memory.group];
    let levels = levels.into_iter().flatten();
    let room = levels
        .filter(|level| level.total_bytes > 0)
        .map(|level| {
            let others = level.used_bytes.saturating_sub(own_bytes);
            share_of(level.total_bytes, threshold).saturating_sub(others + OVERHEAD_BYTES)
        })
        .min();
    let most = share_of(available, AUTOMATIC);
    // Where others hold nearly everything, a start with something is better than none.
    room.unwrap_or(most).clamp(most / 4, most)
}

/// The budget in a device's own memory when the user names none: what is free, but for what
/// its driver and others may still want, and no more than stays below the threshold.
/// `own_bytes` of what is in use are the budget's already.
pub fn automatic_device_budget(
    memory: Level,
    threshold: f64,
    own_bytes: u64,
    driver: DriverIs,
) -> u64 {
    let beside = match driver {
        DriverIs::Covered => OVERHEAD_BYTES,
        DriverIs::Beside => DEVICE_OVERHEAD_BYTES,
    };
    let total = memory.total_bytes;
    let others = memory.used_bytes.saturating_sub(own_bytes);
    let free = total.saturating_sub(others);
    let kept = DEVICE_FREE_BYTES.max(share_of(total, DEVICE_FREE_SHARE));
    let room = share_of(total, threshold).saturating_sub(others + beside);
    // A small device is better used than not.
    free.saturating_sub(kept).min(room).max(free / 4)
}

/// Says how full memory is.
pub trait Source {
    /// How full it is now; None when it was asked a moment ago.
    fn sample(&mut self) -> Option<Level>;
}

/// The fuller one of machine and control group.
#[derive(Debug)]
pub struct Sampler {
    reader: Reader,
    sampled: Option<Instant>,
}

impl Sampler {
    /// Opens what it reads.
    #[allow(clippy::new_without_default, reason = "it opens files")]
    pub fn new() -> Self {
        Self {
            reader: Reader::new(),
            sampled: None,
        }
    }
}

impl Source for Sampler {
    fn sample(&mut self) -> Option<Level> {
        let now = Instant::now();
        if self
            .sampled
            .is_some_and(|sampled| now - sampled < SAMPLE_INTERVAL)
        {
            return None;
        }
        self.sampled = Some(now);
        // A machine that does not say how much memory it has is never under pressure.
        Some(self.reader.read().tightest()).filter(|level| level.total_bytes > 0)
    }
}

/// The memory of a device.
#[derive(Debug)]
pub struct DeviceSampler {
    device: InnerDevice,
    sampled: Option<Instant>,
}

impl DeviceSampler {
    /// Asks `device`.
    pub fn new(device: InnerDevice) -> Self {
        Self {
            device,
            sampled: None,
        }
    }
}

impl Source for DeviceSampler {
    fn sample(&mut self) -> Option<Level> {
        let asked = self.sampled;
        if asked.is_some_and(|asked| asked.elapsed() < DEVICE_INTERVAL) {
            return None;
        }
        self.sampled = Some(Instant::now());
        // A device that does not say how much memory it has is never under pressure.
        Some(Level::of_device(self.device)).filter(|level| level.total_bytes > 0)
    }
}

/// What a governor decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The budget becomes smaller.
    Shrink,
    /// The budget becomes larger.
    Grow,
    /// Memory is scarce, and the budget is the smallest that works: it stays.
    Exhausted,
}

/// A decision, and what it was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What happens.
    pub action: Action,
    /// The sample.
    pub level: Level,
    /// The budget until now, in bytes.
    pub before_bytes: u64,
    /// The budget from now on, in bytes.
    pub after_bytes: u64,
}

/// The budget as it stands when a sample is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The budget, in bytes.
    pub budget_bytes: u64,
    /// What the arena takes of it, and what is kept free for the device's driver, in bytes.
    pub used_bytes: u64,
    /// The smallest budget that works, in bytes.
    pub minimum_bytes: u64,
}

/// Decides on the budget, sample by sample. Knows no clock and touches nothing.
#[derive(Clone, Debug)]
pub struct Governor {
    threshold: f64,
    wanted_bytes: u64,
    /// Samples in a row below the lower line.
    calm: u32,
    /// Calm samples that a growth takes.
    patience: u32,
    /// Samples before the next shrinking may come.
    rest: u32,
    /// Whether it has been said that nothing is left to give.
    exhausted: bool,
}

impl Governor {
    /// A governor that keeps memory below `threshold` (0.0 to 1.0) with a budget of at
    /// most `wanted_bytes`.
    pub fn new(threshold: f64, wanted_bytes: u64) -> Self {
        Self {
            threshold,
            wanted_bytes,
            calm: 0,
            patience: PATIENCE,
            rest: 0,
            exhausted: false,
        }
    }

    /// The share of memory above which the budget shrinks.
    pub fn threshold(&self) -> f64 {
        self.threshold
    }

    /// The user allows another budget from now on.
    pub fn want(&mut self, bytes: u64) {
        *self = Self::new(self.threshold, bytes);
    }

    /// The device refused the last decision: the next one has to wait longer.
    pub fn refused(&mut self) {
        self.patience = (self.patience * 2).min(PATIENCE_MAX);
        self.rest = self.patience;
    }

    /// What follows from a sample; None when nothing does.
    pub fn decide(&mut self, level: Level, standing: Standing) -> Option<Decision> {
        let upper = share_of(level.total_bytes, self.threshold);
        if level.used_bytes > upper {
            self.calm = 0;
            return self.shrink(level, level.used_bytes - upper, standing);
        }
        self.rest = 0;
        self.exhausted = false;
        let lower = share_of(level.total_bytes, self.threshold - MARGIN);
        let room = lower.saturating_sub(level.used_bytes);
        if room == 0 || standing.budget_bytes >= self.wanted_bytes {
            self.calm = 0;
            return None;
        }
        self.calm += 1;
        if self.calm < self.patience {
            return None;
        }
        self.calm = 0;
        self.grow(level, room, standing)
    }

    fn step_bytes(&self) -> u64 {
        (self.wanted_bytes / STEPS).max(1)
    }

    fn shrink(&mut self, level: Level, over: u64, standing: Standing) -> Option<Decision> {
        if self.rest > 0 {
            self.rest -= 1;
            return None;
        }
        self.rest = REST;
        let step = self.step_bytes();
        let less = over.div_ceil(step).saturating_mul(step);
        // What the arena does not take, it cannot give.
        let from = standing.budget_bytes.min(standing.used_bytes);
        let after_bytes = from.saturating_sub(less).max(standing.minimum_bytes);
        if after_bytes < standing.budget_bytes {
            self.exhausted = false;
            return Some(decision(Action::Shrink, level, standing, after_bytes));
        }
        if self.exhausted {
            return None;
        }
        self.exhausted = true;
        let stays = standing.budget_bytes;
        Some(decision(Action::Exhausted, level, standing, stays))
    }

    fn grow(&self, level: Level, room: u64, standing: Standing) -> Option<Decision> {
        let step = self.step_bytes();
        let most = room.min(step.saturating_mul(GROWTH_STEPS_MAX));
        let missing = self.wanted_bytes - standing.budget_bytes;
        let more = if missing <= most {
            missing
        } else {
            most / step * step
        };
        // Less than what works would be refused. An arena beyond its budget has some already.
        let least = standing.minimum_bytes.min(self.wanted_bytes);
        let held = standing.budget_bytes.max(standing.used_bytes);
        if least.saturating_sub(held) > room {
            return None;
        }
        let after_bytes = (standing.budget_bytes + more).max(least);
        let is_more = after_bytes > standing.budget_bytes;
        is_more.then(|| decision(Action::Grow, level, standing, after_bytes))
    }
}

fn decision(action: Action, level: Level, standing: Standing, after_bytes: u64) -> Decision {
    Decision {
        action,
        level,
        before_bytes: standing.budget_bytes,
        after_bytes,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOTAL: u64 = 10_000;

    fn level(used_bytes: u64) -> Level {
        Level {
            used_bytes,
            total_bytes: TOTAL,
        }
    }

    /// An arena that takes all of its budget, in a machine where others use `load`.
    struct Machine {
        governor: Governor,
        budget: u64,
        minimum: u64,
        load: u64,
    }

    impl Machine {
        fn new(wanted: u64, minimum: u64, load: u64) -> Self {
            Self {
                governor: Governor::new(THRESHOLD, wanted),
                budget: wanted,
                minimum,
                load,
            }
        }

        fn token(&mut self) -> Option<Decision> {
            let standing = Standing {
                budget_bytes: self.budget,
                used_bytes: self.budget,
                minimum_bytes: self.minimum,
            };
            let sample = level(self.load + self.budget);
            let decision = self.governor.decide(sample, standing)?;
            assert_eq!(decision.before_bytes, self.budget);
            self.budget = decision.after_bytes;
            Some(decision)
        }

        fn tokens(&mut self, count: usize) -> Vec<Action> {
            (0..count)
                .filter_map(|_| self.token().map(|decision| decision.action))
                .collect()
        }
    }

    #[test]
    fn the_automatic_budget_leaves_the_governor_nothing_to_do() {
        let gib = |count: u64| count << 30;
        let machine = |used, total| Memory {
            machine: Level {
                used_bytes: gib(used),
                total_bytes: gib(total),
            },
            group: None,
            available_bytes: gib(total - used),
        };
        let budget = automatic_budget(&machine(10, 100), 0.85, 0);
        assert_eq!(budget, gib(75) - OVERHEAD_BYTES);
        // What is in use already does not count twice.
        let again = automatic_budget(&machine(10 + 60, 100), 0.85, gib(60));
        assert_eq!(again, budget);
        assert_eq!(
            automatic_budget(&machine(10, 100), 1.0, 0),
            share_of(gib(90), 0.85)
        );
        let full = automatic_budget(&machine(90, 100), 0.85, 0);
        assert_eq!(full, share_of(gib(10), 0.85) / 4);
        let grouped = Memory {
            group: Some(Level {
                used_bytes: gib(1),
                total_bytes: gib(11),
            }),
            available_bytes: gib(10),
            ..machine(10, 100)
        };
        let budget = automatic_budget(&grouped, 0.5, 0);
        assert_eq!(budget, share_of(gib(11), 0.5) - gib(1) - OVERHEAD_BYTES);
        assert_eq!(automatic_budget(&Memory::default(), 0.85, 0), 0);
    }

    #[test]
    fn the_automatic_budget_of_a_device_leaves_its_driver_and_the_governor_room() {
        let budget = |memory, threshold, own| {
            automatic_device_budget(memory, threshold, own, DriverIs::Beside)
        };
        let mib = |count: u64| count << 20;
        let level = |used, total| Level {
            used_bytes: mib(used),
            total_bytes: mib(total),
        };
        // 5 % are more than 512 MiB; below the threshold lies still less.
        let large = budget(level(1000, 80_000), 0.95, 0);
        assert_eq!(large, share_of(mib(80_000), 0.95) - mib(1000) - mib(256));
        let at_ease = budget(level(1000, 80_000), 1.0, 0);
        assert_eq!(at_ease, mib(80_000 - 1000 - 4000));
        // What is in use already does not count twice.
        let again = budget(level(1000 + 60_000, 80_000), 0.95, mib(60_000));
        assert_eq!(again, large);
        let small = budget(level(0, 4000), 1.0, 0);
        assert_eq!(small, mib(4000 - 512));
        let full = budget(level(3900, 4000), 0.95, 0);
        assert_eq!(full, mib(25));
        assert_eq!(budget(Level::default(), 0.95, 0), 0);
    }

    #[test]
    fn what_the_driver_takes_is_a_part_of_an_automatic_budget_that_covers_it() {
        let mib = |count: u64| count << 20;
        for (total, used, driver) in [(80_000, 1000, 400), (6_000, 700, 300), (80_000, 400, 400)] {
            let level = Level {
                used_bytes: mib(used),
                total_bytes: mib(total),
            };
            let budget = automatic_device_budget(level, 0.95, mib(driver), DriverIs::Covered);
            // All of it in use, and what others had before.
            let full = budget + mib(used - driver);
            let free = mib(total) - full;
            assert!(free >= mib(512).max(share_of(mib(total), 0.05)), "{free}");
            assert!(full <= share_of(mib(total), 0.95), "{full}");
            // Nor is more left free than that and a little.
            assert!(
                free <= mib(512 + 64).max(share_of(mib(total), 0.05) + mib(65)),
                "{free}"
            );
            let later = Level {
                used_bytes: full,
                ..level
            };
            let again = automatic_device_budget(later, 0.95, budget, DriverIs::Covered);
            assert_eq!(again, budget);
        }
    }

    #[test]
    fn a_device_is_asked_now_and_then_and_says_how_full_it_is() {
        let device = InnerDevice::cpu().unwrap();
        let mut sampler = DeviceSampler::new(device);
        let level = sampler.sample().unwrap();
        assert!(level.total_bytes > 0 && level.used_bytes <= level.total_bytes);
        assert_eq!(sampler.sample(), None, "asked a moment ago");
    }

    #[test]
    fn pressure_takes_what_is_over_the_threshold_and_calm_gives_it_back() {
        let mut machine = Machine::new(3200, 500, 1000);
        assert_eq!(machine.tokens(50), []);
        machine.load = 7000;
        assert_eq!(machine.tokens(50), [Action::Shrink]);
        // 1700 are over the threshold of 8500, in steps of 100.
        assert_eq!(machine.budget, 1500);
        machine.load = 1000;
        let actions = machine.tokens(200);
        assert!(actions.iter().all(|action| *action == Action::Grow));
        assert_eq!(actions.len(), 5, "1700 in steps of 400");
        assert_eq!(machine.budget, 3200);
    }

    #[test]
    fn growth_waits_for_calm_and_stays_below_the_lower_line() {
        let mut machine = Machine::new(3200, 500, 7000);
        machine.tokens(10);
        machine.load = 5990;
        // 8000 is the lower line: 510 of room, of which one growth may take 400.
        assert_eq!(machine.tokens(15), []);
        assert_eq!(machine.tokens(100), [Action::Grow, Action::Grow]);
        assert_eq!(machine.budget, 2000);
    }

    #[test]
    fn what_cannot_be_given_is_said_once_and_the_smallest_plan_goes_on() {
        let mut machine = Machine::new(3200, 500, 9900);
        assert_eq!(machine.tokens(1), [Action::Shrink]);
        assert_eq!(machine.budget, 500);
        assert_eq!(machine.tokens(100), [Action::Exhausted]);
        machine.load = 100;
        assert_eq!(machine.tokens(16), [Action::Grow]);
        machine.load = 9900;
        assert_eq!(machine.tokens(100), [Action::Shrink, Action::Exhausted]);
    }

    #[test]
    fn what_the_arena_does_not_take_it_cannot_give() {
        let mut governor = Governor::new(0.5, 3200);
        let standing = Standing {
            budget_bytes: 3200,
            used_bytes: 1000,
            minimum_bytes: 100,
        };
        let decision = governor.decide(level(5100), standing).unwrap();
        assert_eq!(decision.after_bytes, 900);
    }

    #[test]
    fn a_growth_reaches_what_works_or_waits() {
        let mut governor = Governor::new(THRESHOLD, 3200);
        let mut last = |used_bytes, minimum_bytes| {
            let standing = Standing {
                budget_bytes: 1000,
                used_bytes,
                minimum_bytes,
            };
            let decisions = (0..PATIENCE).map(|_| governor.decide(level(7000), standing));
            decisions
                .last()
                .flatten()
                .map(|decision| decision.after_bytes)
        };
        // 1000 of room, of which one growth may take 400.
        assert_eq!(last(1000, 500), Some(1400));
        assert_eq!(last(1000, 1900), Some(1900));
        assert_eq!(last(1000, 2500), None);
        // The arena has it already, but for as much as there is room for.
        assert_eq!(last(2400, 2500), Some(2500));
        assert_eq!(last(5000, 5000), Some(3200));
    }

    #[test]
    fn a_refusal_makes_it_wait() {
        let mut machine = Machine::new(3200, 500, 7000);
        machine.tokens(1);
        machine.governor.refused();
        machine.load = 100;
        assert_eq!(machine.tokens(31), []);
        assert_eq!(machine.tokens(1), [Action::Grow]);
    }

    #[test]
    fn another_budget_by_the_user_is_the_new_bound() {
        let mut machine = Machine::new(3200, 500, 0);
        machine.budget = 1600;
        machine.governor.want(1600);
        assert_eq!(machine.tokens(100), []);
        machine.governor.want(1700);
        assert_eq!(machine.tokens(100), [Action::Grow]);
        assert_eq!(machine.budget, 1700);
    }

    #[test]
    fn the_ends_of_the_range_of_thresholds_work() {
        for (threshold, load, expected) in [(1.0, 9999, 3200), (0.0, 0, 500)] {
            let mut machine = Machine::new(3200, 500, load);
            machine.governor = Governor::new(threshold, 3200);
            machine.load = load.saturating_sub(3200);
            machine.tokens(100);
            assert_eq!(machine.budget, expected, "{threshold}");
        }
    }

    proptest! {
        #[test]
        fn the_budget_stays_between_minimum_and_what_the_user_allowed(
            wanted in 1_u64..20_000,
            minimum in 1_u64..20_000,
            threshold in 0.0..=1.0,
            samples in proptest::collection::vec(
                (0_u64..20_000, 0_u64..20_000, any::<bool>()),
                200,
            ),
        ) {
            prop_assume!(minimum <= wanted);
            let mut governor = Governor::new(threshold, wanted);
            let mut budget_bytes = wanted;
            for (used, arena, refuse) in samples {
                let standing = Standing {
                    budget_bytes,
                    used_bytes: arena.min(budget_bytes),
                    minimum_bytes: minimum,
                };
                let Some(decision) = governor.decide(level(used), standing) else { continue };
                prop_assert!((minimum..=wanted).contains(&decision.after_bytes));
                match decision.action {
                    Action::Shrink => prop_assert!(decision.after_bytes < budget_bytes),
                    Action::Grow => prop_assert!(decision.after_bytes > budget_bytes),
                    Action::Exhausted => prop_assert_eq!(decision.after_bytes, budget_bytes),
                }
                if refuse {
                    governor.refused();
                } else {
                    budget_bytes = decision.after_bytes;
                }
            }
        }

        #[test]
        fn under_constant_load_it_settles_and_never_swings(
            wanted in 1_u64..20_000,
            minimum in 1_u64..20_000,
            start in 0.0..=1.0,
            load in 0_u64..12_000,
        ) {
            prop_assume!(minimum <= wanted);
            let mut machine = Machine::new(wanted, minimum, load);
            machine.budget = minimum + share_of(wanted - minimum, start);
            let actions = machine.tokens(2000);
            let settled = machine.budget;
            prop_assert_eq!(machine.tokens(500), []);
            prop_assert_eq!(machine.budget, settled);
            let grown = actions.iter().position(|action| *action == Action::Grow);
            let after = &actions[grown.unwrap_or(actions.len())..];
            prop_assert!(after.iter().all(|action| *action == Action::Grow), "{:?}", actions);
            prop_assert!(actions.len() as u64 <= STEPS + 3, "{:?}", actions);
        }
    }
}
