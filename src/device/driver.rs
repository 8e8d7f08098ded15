//! What the driver of the inner device takes of its memory for this process: the context,
//! kernels, handles and workspaces of its libraries, pools of the backend's. The budget covers
//! that.
//!
//! Much of it comes with the first graphs. Until they load nothing more a reserve is left free
//! for it, so that the process stays within the budget meanwhile:
//!
//! ```text
//!  budget | arena, scratch                 | reserve | context |    the device is made
//!         | arena, scratch                    | kernels, context |  graphs load nothing more
//! ```
//! What is measured only ever grows, in steps: a plan is not made anew for nothing.

use std::time::{Duration, Instant};

use super::report::Reason;
use super::shared::{Paged, Shared};
use crate::cuda::{Footprint, Usage};
use crate::error::{Error, Result};
use crate::ggml::InnerDevice;
use crate::pager::engine_device::CudaLink;
use crate::pager::{DriverPart, mib};
use crate::telemetry::memory::Level;
use crate::telemetry::pressure::{
    DEVICE_OVERHEAD_BYTES, DEVICE_THRESHOLD, DriverIs, automatic_device_budget,
};

/// What is measured is rounded up to a multiple of this.
const STEP_BYTES: u64 = 4 << 20;
/// The reserve takes at most this part of the budget.
const RESERVE_PART: u64 = 4;
/// After so many questions in a row without an answer none are asked.
const UNANSWERED_MAX: u32 = 8;
/// Graphs in a row that load nothing more before the reserve is given up.
const CALM_GRAPHS: u32 = 4;
/// Afterwards the driver is asked no more often than this, and ever less while nothing changes.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
const INTERVAL_MAX: Duration = Duration::from_secs(5);

/// How the driver's part is known.
#[derive(Clone, Debug)]
enum Source {
    /// The driver says it, at any time.
    Asked(Usage),
    /// It was measured when the device was made; what comes later is not seen.
    Once,
    /// It is not said: a constant stands for it.
    Constant,
}

/// Measures what the driver takes.
#[derive(Debug)]
pub struct Meter {
    source: Source,
    // What was measured, and what stands for that where nothing can be.
    bytes: u64,
    guessed_bytes: u64,
    reserve_bytes: u64,
    // Graphs in a row that loaded nothing more, as far as that is known.
    calm: u32,
    unanswered: u32,
    interval: Duration,
    asked: Instant,
    // Whether the plan does not cover yet what was measured.
    pending: bool,
}

/// Whether it is the budget's business what the driver of `device` takes of its memory: it is
/// told of all that this process holds there, and measures the rest.
pub fn covers_driver(device: InnerDevice) -> bool {
    CudaLink::is_for(device)
}

/// The budget in the memory of `device` when the user names none, as things are now.
pub fn automatic_budget(device: InnerDevice, threshold: f64) -> u64 {
    // First this: asking CUDA for it makes the context.
    let memory = Level::of_device(device);
    let (own_bytes, driver) = match Meter::of(device) {
        // A guess says nothing of what is in use.
        Some((meter, _)) => (meter.bytes, DriverIs::Covered),
        None => (0, DriverIs::Beside),
    };
    automatic_device_budget(memory, threshold, own_bytes, driver)
}

/// The same with the usual threshold.
pub fn automatic_budget_now(device: InnerDevice) -> u64 {
    automatic_budget(device, DEVICE_THRESHOLD)
}

impl Meter {
    /// For a device that has a context, and what is to be said of it; None where its driver's
    /// part is not the budget's business: for other devices than CUDA's.
    pub fn of(device: InnerDevice) -> Option<(Self, Option<String>)> {
        if !covers_driver(device) {
            return None;
        }
        let usage = device.bus_id().and_then(|bus_id| Usage::at(&bus_id));
        let found = usage.as_ref().map(|usage| usage.of_driver());
        let constant = (Source::Constant, 0, 0);
        let ((source, bytes, reserve_bytes), why) = match (found, usage) {
            (Some(Footprint::Listed(bytes)), Some(usage)) => {
                let asked = Source::Asked(usage);
                ((asked, stepped(bytes), DEVICE_OVERHEAD_BYTES), None)
            }
            (Some(Footprint::Grown(bytes)), _) => (
                (Source::Once, stepped(bytes), DEVICE_OVERHEAD_BYTES),
                Some("can be measured once only, for NVML does not show this process"),
            ),
            (Some(Footprint::NotListed), _) => (
                constant,
                Some(
                    "cannot be measured: which of the processes on it is this one, NVML does \
                     not say (in a container it counts them otherwise)",
                ),
            ),
            (Some(Footprint::NotSaid), _) => (
                constant,
                Some("cannot be measured: NVML does not say what a process takes"),
            ),
            (None, _) | (_, None) => (constant, None),
        };
        let guessed_bytes = match source {
            Source::Constant => DEVICE_OVERHEAD_BYTES,
            Source::Asked(_) | Source::Once => 0,
        };
        let notice = why.map(|why| {
            let name = device.name();
            let guessed = match source {
                Source::Once => format!("what comes later is taken to be {}", mib(reserve_bytes)),
                _ => format!("it is taken to be {}", mib(guessed_bytes)),
            };
            format!("what CUDA's driver takes of {name} {why}; {guessed} of the budget")
        });
        let meter = Self {
            source,
            bytes,
            guessed_bytes,
            reserve_bytes,
            calm: 0,
            unanswered: 0,
            interval: INTERVAL_MIN,
            asked: Instant::now(),
            pending: false,
        };
        Some((meter, notice))
    }

    /// For a budget: the reserve takes no more than a part of it.
    pub fn within(self, budget_bytes: u64) -> Self {
        Self {
            reserve_bytes: self.reserve_bytes.min(budget_bytes / RESERVE_PART),
            ..self
        }
    }

    /// What of the budget it takes.
    pub fn part(&self) -> DriverPart {
        DriverPart {
            bytes: self.bytes,
            guessed_bytes: self.guessed_bytes,
            reserve_bytes: self.reserve_bytes,
        }
    }

    /// Whether it is time to ask.
    fn is_due(&self) -> bool {
        matches!(self.source, Source::Asked(_))
            && (self.calm < CALM_GRAPHS || self.asked.elapsed() >= self.interval)
    }

    /// Asks the driver; whether another part of the budget has to be covered.
    fn ask(&mut self) -> bool {
        let Source::Asked(usage) = &self.source else {
            return false;
        };
        self.asked = Instant::now();
        let answer = match usage.of_driver() {
            Footprint::Listed(bytes) => Some(stepped(bytes)),
            Footprint::Grown(_) | Footprint::NotListed | Footprint::NotSaid => None,
        };
        self.note_answer(answer)
    }

    /// Where there is no answer, nothing is known to have changed.
    fn note_answer(&mut self, bytes: Option<u64>) -> bool {
        self.unanswered = match bytes {
            Some(_) => 0,
            None => self.unanswered + 1,
        };
        if self.unanswered == UNANSWERED_MAX {
            self.source = Source::Once;
        }
        self.note(bytes.unwrap_or(self.bytes))
    }

    fn note(&mut self, bytes: u64) -> bool {
        if bytes > self.bytes {
            let more = bytes - self.bytes;
            self.bytes = bytes;
            self.reserve_bytes = self.reserve_bytes.saturating_sub(more);
            self.calm = 0;
            self.interval = INTERVAL_MIN;
            return true;
        }
        if self.calm < CALM_GRAPHS {
            self.calm += 1;
            let is_over = self.calm == CALM_GRAPHS && self.reserve_bytes > 0;
            if is_over {
                self.reserve_bytes = 0;
            }
            return is_over;
        }
        self.interval = (2 * self.interval).min(INTERVAL_MAX);
        false
    }
}

fn stepped(bytes: u64) -> u64 {
    bytes.next_multiple_of(STEP_BYTES)
}

impl Shared {
    /// Before a graph: looks at what the driver takes, and has the budget cover it. A run does
    /// not end for it: where not even the smallest plan fits beside it, that goes on.
    ///
    /// # Errors
    /// When a tensor's bytes could not be moved, as for any plan.
    pub fn cover_driver(&self, paged: &mut Paged) -> Result<()> {
        let Some(meter) = paged.driver.as_mut().filter(|meter| meter.is_due()) else {
            return Ok(());
        };
        if !meter.ask() {
            return Ok(());
        }
        meter.pending = true;
        self.follow_driver(paged)
    }

    /// Has the budget cover what was measured, if it does not yet. Where that is refused, the
    /// next change of the budget tries again.
    ///
    /// # Errors
    /// As for `cover_driver`.
    pub fn follow_driver(&self, paged: &mut Paged) -> Result<()> {
        let Some(meter) = paged.driver.as_mut().filter(|meter| meter.pending) else {
            return Ok(());
        };
        match paged.pager.set_driver(meter.part()) {
            Ok(()) => {
                meter.pending = false;
                self.note_change(Reason::Driver, paged);
            }
            Err(Error::Memory(sentence)) => {
                let name = self.inner.name();
                self.note_once(&format!(
                    "the plan does not follow what the driver of {name} takes: {sentence}"
                ));
            }
            Err(other) => return Err(other),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn meter(bytes: u64) -> Meter {
        Meter {
            source: Source::Constant,
            bytes,
            guessed_bytes: 0,
            reserve_bytes: 256 * MIB,
            calm: 0,
            unanswered: 0,
            interval: INTERVAL_MIN,
            asked: Instant::now(),
            pending: false,
        }
    }

    #[test]
    fn what_grows_comes_out_of_the_reserve_which_goes_when_nothing_grows_any_more() {
        let mut meter = meter(400 * MIB);
        assert!(!meter.note(400 * MIB) && !meter.note(400 * MIB));
        assert!(meter.note(500 * MIB));
        assert_eq!((meter.bytes, meter.reserve_bytes), (500 * MIB, 156 * MIB));
        // Less is none.
        let calm: Vec<bool> = (0..6).map(|_| meter.note(450 * MIB)).collect();
        assert_eq!(calm, [false, false, false, true, false, false]);
        assert_eq!((meter.bytes, meter.reserve_bytes), (500 * MIB, 0));
        // More than the reserve ever was.
        assert!(meter.note(900 * MIB));
        assert_eq!((meter.bytes, meter.reserve_bytes), (900 * MIB, 0));
    }

    #[test]
    fn who_does_not_answer_is_asked_less_and_then_no_more() {
        let mut meter = meter(400 * MIB);
        let changes: Vec<bool> = (0..4).map(|_| meter.note_answer(None)).collect();
        assert_eq!(changes, [false, false, false, true]);
        assert_eq!((meter.bytes, meter.reserve_bytes), (400 * MIB, 0));
        meter.note_answer(None);
        assert_eq!(meter.interval, 2 * INTERVAL_MIN);
        // An answer begins the count anew.
        meter.note_answer(Some(400 * MIB));
        assert_eq!(meter.unanswered, 0);
        for _ in 0..UNANSWERED_MAX {
            assert!(matches!(meter.source, Source::Constant));
            meter.note_answer(None);
        }
        assert!(matches!(meter.source, Source::Once));
    }

    #[test]
    fn while_nothing_changes_it_is_asked_less_and_less() {
        let mut meter = meter(0);
        for _ in 0..CALM_GRAPHS {
            assert_eq!(meter.interval, INTERVAL_MIN);
            meter.note(0);
        }
        meter.note(0);
        assert_eq!(meter.interval, 2 * INTERVAL_MIN);
        for _ in 0..20 {
            meter.note(0);
        }
        assert_eq!(meter.interval, INTERVAL_MAX);
        meter.note(1);
        assert_eq!(meter.interval, INTERVAL_MIN);
    }

    #[test]
    fn the_reserve_is_a_part_of_a_small_budget() {
        let within = |bytes| meter(8 * MIB).within(bytes);
        assert_eq!(within(100 * MIB).part().reserve_bytes, 25 * MIB);
        assert_eq!(within(u64::MAX).part().reserve_bytes, 256 * MIB);
        assert_eq!(
            (stepped(0), stepped(1), stepped(4 * MIB)),
            (0, 4 * MIB, 4 * MIB)
        );
    }
}
