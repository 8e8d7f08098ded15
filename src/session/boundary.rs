//! Between two tokens: the budget follows the user's file and the memory there is; plans
//! and tokens become records.
//!
//! Only here may the budget change: no graph is computing. A budget that cannot be had
//! leaves the old one, and never ends the run.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::closing::Beginning;
use super::cold::{self, Shares};
use super::signal;
use crate::cli::size::{read_budget, show_bytes};
use crate::device::report::Reason;
use crate::device::{Budget, PagedDevice};
use crate::error::Result;
use crate::forecast::revision;
use crate::llama::{Drafting, Token, log};
use crate::telemetry::drafts::Tally;
use crate::telemetry::memory::{ProcessReader, Reader};
use crate::telemetry::metrics::{Facts, Metrics, PressureRecord};
use crate::telemetry::pressure::{
    Action, Decision, Governor, Source, Standing, THRESHOLD, automatic_budget,
    automatic_device_budget,
};

/// Where warnings are logged, in llama.cpp's verbosities.
const WARNINGS: i32 = 2;

/// What a run does between tokens.
pub(crate) struct Boundary {
    paging: Option<Paging>,
    metrics: &'static Metrics,
    /// What the records need; None without metrics.
    readers: Option<(Reader, ProcessReader)>,
    /// What drafting counts; None without it.
    drafts: Option<Arc<Tally>>,
    /// Which cold weights the processor computes with; None where that is not ours to choose.
    shares: Option<Shares>,
    /// The first token's moment; None before it, and without paging.
    pub(super) beginning: Option<Beginning>,
}

/// What is needed when something is paged.
pub(crate) struct Paging {
    /// The file that holds the budget.
    pub budget_file: Option<PathBuf>,
    /// The share of memory in use above which the budget shrinks.
    pub mem_pressure: f64,
    /// Says how full memory is.
    pub source: Box<dyn Source>,
    /// Made when the generation begins, with the budget of that moment.
    pub governor: Option<Governor>,
}

impl Boundary {
    /// Nothing is looked at yet.
    pub fn new(paging: Option<Paging>, metrics: &'static Metrics) -> Self {
        let readers = || (Reader::new(), ProcessReader::new());
        Self {
            paging,
            metrics,
            readers: metrics.is_on().then(readers),
            drafts: None,
            shares: None,
            beginning: None,
        }
    }

    /// Has the share of the cold weights chosen that the processor computes with.
    pub fn choose_shares(&mut self, shares: Option<Shares>) {
        self.shares = shares;
    }

    /// Has records tell of what drafting does.
    pub fn watch(&mut self, drafting: Option<&Drafting>) {
        self.drafts = drafting.map(|drafting| Arc::clone(drafting.tally()));
    }

    /// The model is loaded, a prompt of so many tokens is next.
    pub fn begin(&mut self, device: Option<&PagedDevice>, prompt_tokens: usize) {
        let report = device.map(PagedDevice::report);
        if let (Some(paging), Some(report)) = (&mut self.paging, report) {
            paging.governor = Some(Governor::new(paging.mem_pressure, report.budget_bytes));
        }
        // What changed while loading is in the first plan.
        device.map(PagedDevice::take_changes);
        self.note_changes(device);
        // The first plan tells of the layers that the share leaves to the processor.
        let decision = match (&mut self.shares, device) {
            (Some(shares), Some(device)) => shares.begin(device),
            _ => None,
        };
        let report = device.map(PagedDevice::report);
        self.metrics.begin(prompt_tokens, report);
        if let (Some(decision), Some(device)) = (decision, device) {
            self.tell_share(device, &decision);
        }
        self.complain();
    }

    /// Before a decode: the budget becomes what it has to be.
    pub fn before_decode(&mut self, device: Option<&PagedDevice>) {
        let (Some(paging), Some(device)) = (&mut self.paging, device) else {
            return;
        };
        if signal::take_reload() {
            paging.reload(device);
        }
        paging.govern(device, self.metrics);
        self.note_changes(Some(device));
        self.complain();
    }

    /// A token was generated.
    pub fn token(&mut self, device: Option<&PagedDevice>, token: Token) {
        if self.beginning.is_none() {
            self.beginning = device.map(|device| Beginning::new(device.report()));
        }
        if let Some(readers) = &mut self.readers {
            let drafts = self.drafts.as_deref();
            self.metrics.token(token, || facts(readers, device, drafts));
            self.complain();
        }
        let alone = self.drafts.is_none();
        if let (Some(shares), Some(device)) = (&mut self.shares, device)
            && let Some(decision) = shares.token(device, Instant::now(), alone)
        {
            self.tell_share(device, &decision);
        }
    }

    fn tell_share(&self, device: &PagedDevice, decision: &revision::Decision) {
        let Some(shares) = self.shares.as_ref().and_then(Shares::shares) else {
            return;
        };
        if self.metrics.is_on() {
            self.metrics.share(decision, &shares);
        }
        let (bytes, _) = device.cold_weights();
        log::info(format!("{}\n", cold::sentence(decision, &shares, bytes)));
    }

    /// The user has typed for so long: no token took that time.
    pub fn waited(&mut self, time: Duration) {
        if let Some(shares) = &mut self.shares {
            shares.pause();
        }
        self.metrics.waited(time);
    }

    /// The user wants another budget; returns its bytes.
    ///
    /// # Errors
    /// `Memory` when it cannot be had; the old one stays.
    pub fn set_budget(&mut self, device: &PagedDevice, budget: Budget) -> Result<u64> {
        let mem_pressure = self.paging.as_ref().map(|paging| paging.mem_pressure);
        let bytes = bytes_of(budget, mem_pressure.unwrap_or(THRESHOLD), device);
        device.set_budget(bytes, Reason::Budget)?;
        let governor = self
            .paging
            .as_mut()
            .and_then(|paging| paging.governor.as_mut());
        if let Some(governor) = governor {
            governor.want(bytes);
        }
        self.note_changes(Some(device));
        Ok(bytes)
    }

    /// The generation is over, one way or another.
    pub fn finish(&mut self, device: Option<&PagedDevice>) {
        self.note_changes(device);
        if let Some(readers) = &mut self.readers {
            let drafts = self.drafts.as_deref();
            self.metrics.settle(&facts(readers, device, drafts));
            self.complain();
        }
    }

    fn note_changes(&self, device: Option<&PagedDevice>) {
        let Some(device) = device else { return };
        let changes = device.take_changes();
        if self.metrics.is_on() {
            self.metrics.changes(&changes);
        }
        for sentence in device.take_notices() {
            log::warn(format!("{sentence}\n"));
        }
    }

    fn complain(&self) {
        if let Some(sentence) = self.metrics.take_complaint() {
            log::at_least(WARNINGS, || log::warn(format!("{sentence}\n")));
        }
    }
}

fn facts(
    readers: &mut (Reader, ProcessReader),
    device: Option<&PagedDevice>,
    drafts: Option<&Tally>,
) -> Facts {
    let (memory, process) = readers;
    Facts {
        report: device.map(PagedDevice::report),
        memory_pressure: memory.read().tightest().pressure(),
        process: process.read(),
        drafts: drafts.map(Tally::read),
    }
}

impl Paging {
    /// SIGUSR1: reads the budget's file again.
    fn reload(&mut self, device: &PagedDevice) {
        let Some(path) = &self.budget_file else {
            log::warn(
                "SIGUSR1 has the budget read from its file again, and there is none; give \
                 --vram-budget-file\n",
            );
            return;
        };
        let before = device.report().budget_bytes;
        let changed = read_budget(path).and_then(|budget| {
            let bytes = bytes_of(budget, self.mem_pressure, device);
            device.set_budget(bytes, Reason::Budget)?;
            Ok(bytes)
        });
        match changed {
            Ok(bytes) => {
                if let Some(governor) = &mut self.governor {
                    governor.want(bytes);
                }
                log::info(format!(
                    "the budget changes from {} to {}\n",
                    show_bytes(before),
                    show_bytes(bytes)
                ));
            }
            Err(error) => log::warn(format!(
                "the budget stays at {}: {error}\n",
                show_bytes(before)
            )),
        }
    }

    /// Looks at the memory there is, and changes the budget where that is needed.
    fn govern(&mut self, device: &PagedDevice, metrics: &Metrics) {
        let Some(governor) = &mut self.governor else {
            return;
        };
        let Some(level) = self.source.sample() else {
            return;
        };
        let report = device.report();
        let standing = Standing {
            budget_bytes: report.budget_bytes,
            used_bytes: report.arena_bytes_used + report.reserve_bytes,
            minimum_bytes: report.minimum_bytes,
        };
        let Some(decision) = governor.decide(level, standing) else {
            return;
        };
        let done = carry_out(&decision, device);
        if done.is_err() {
            governor.refused();
        }
        if metrics.is_on() {
            let (refused, threshold) = (done.is_err(), governor.threshold());
            let minimum = device.report().minimum_bytes;
            let record = PressureRecord::new(&decision, refused, threshold, minimum);
            metrics.pressure(record);
        }
        tell(&decision, done, &device.memory_name());
    }
}

fn carry_out(decision: &Decision, device: &PagedDevice) -> Result<()> {
    match decision.action {
        Action::Shrink => device.set_budget(decision.after_bytes, Reason::Pressure),
        Action::Grow => device.set_budget(decision.after_bytes, Reason::Calm),
        Action::Exhausted => Ok(()),
    }
}

/// `whose` names the memory.
fn tell(decision: &Decision, done: Result<()>, whose: &str) {
    let (used, total) = (decision.level.used_bytes, decision.level.total_bytes);
    let memory = format!("{} of {} in use", show_bytes(used), show_bytes(total));
    let (before, after) = (decision.before_bytes, decision.after_bytes);
    let (before, after) = (show_bytes(before), show_bytes(after));
    match (decision.action, done) {
        (_, Err(error)) => log::warn(format!("the budget stays at {before}: {error}\n")),
        (Action::Shrink, _) => log::info(format!(
            "{whose} is scarce ({memory}): the budget shrinks from {before} to {after}\n"
        )),
        (Action::Grow, _) => log::info(format!(
            "{whose} is free again ({memory}): the budget grows from {before} to {after}\n"
        )),
        (Action::Exhausted, _) => log::warn(format!(
            "{whose} is scarce ({memory}), and no budget below {before} would do; the run goes \
             on with that\n"
        )),
    }
}

/// A budget in bytes, while the arena already holds some of the memory there is.
fn bytes_of(budget: Budget, mem_pressure: f64, device: &PagedDevice) -> u64 {
    let report = device.report();
    budget.bytes(report.model_bytes, || match device.memory() {
        Some(memory) => {
            // A guess says nothing of what is in use.
            let used = report.arena_bytes_used - report.guessed_bytes;
            automatic_device_budget(memory, mem_pressure, used, device.driver_is())
        }
        None => {
            let memory = Reader::new().read();
            automatic_budget(&memory, mem_pressure, report.arena_bytes_used)
        }
    })
}
