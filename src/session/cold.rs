//! `--cold auto`, in a run: the machine's rates are read or measured before the model takes a
//! device's memory; when the generation begins they give the share of the cold weights that the
//! processor computes with; and between tokens it is looked whether they hold.

use std::time::Instant;

use super::progress::Measuring;
use crate::calibration::store::{self, Origin};
use crate::calibration::{Calibration, Kinds, Run, Wanted};
use crate::cli::size::show_bytes;
use crate::device::{self, Budget, Cold, PagedDevice, PagingConfig, Report};
use crate::error::Result;
use crate::forecast::NODES_BY_LAYER;
use crate::forecast::advice::show_speed;
use crate::forecast::revision::{Cause, Decision, Passage, Revision, What};
use crate::ggml::workload::is_measurable;
use crate::ggml::{Header, InnerDevice};
use crate::llama::log;
use crate::planner::cold::{self, Load, Rates, Reach};
use crate::planner::cost;
use crate::telemetry::memory::share_of;

/// A type of which a model has less than this share is not measured.
const KIND_SHARE_MIN: f64 = 0.005;
/// Elements of an attention head, where the header does not say.
const HEAD: u32 = 128;
/// Bytes of an element of the KV cache, at most.
const CACHED_BYTES_MAX: u64 = 4;

/// What is known of a run before it begins, as far as it bounds what has room for it.
#[derive(Clone, Copy, Debug)]
pub struct Ahead {
    /// The smallest budget to come.
    pub budget: Budget,
    /// Tokens that a context has room for, at most; 0: as many as the model was trained with.
    pub context_tokens: u64,
}

/// What of a model's header matters here.
#[derive(Clone, Debug, Default)]
struct Matrices {
    /// All in layers.
    all: Kinds,
    /// Those that the processor may compute with.
    cold: Kinds,
    /// Elements of an attention head.
    head: u32,
    /// The share of the experts that a token uses; 1 without experts.
    used_share: f64,
    /// Bytes of all tensors.
    tensor_bytes: u64,
    /// Bytes that the KV cache takes of each token, at most; None: nobody knows.
    cached_bytes: Option<u64>,
    /// Tokens that the model was trained with.
    context_tokens: Option<u64>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Shares {
    /// None where nothing was to be cold when the run began, and nobody had measured before.
    rates: Option<Calibration>,
    matrices: Matrices,
    /// Host memory that may keep what is streamed, as it was before any was taken.
    keep_bytes: u64,
    /// Whether copies go on while the device computes.
    overlaps: bool,
    revision: Option<Revision>,
    /// The plan that was looked at last.
    seen: Option<Plan>,
    /// When the last token came, and how things stood then.
    last: Option<(Instant, Report)>,
    /// What the user was told once.
    told: bool,
}

/// What of a report changes with the plan, and with nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    budget_bytes: u64,
    weights: [u64; 2],
    states: [u64; 2],
    moved: [u64; 2],
}

impl Plan {
    fn of(report: &Report) -> Self {
        Self {
            budget_bytes: report.budget_bytes,
            weights: [report.resident_bytes, report.streamed_bytes],
            states: [report.kv_resident_bytes, report.kv_streamed_bytes],
            moved: [report.layers_evicted, report.layers_loaded],
        }
    }
}

impl Shares {
    /// For a run that leaves the choice to us, on a device with memory of its own; None for
    /// any other, and, with a sentence, where the rates cannot be had. `shows`: what is
    /// measured is shown; `ahead`: None where the budget may become any.
    pub fn of_run(
        paging: &PagingConfig,
        run: &Run,
        ahead: Option<Ahead>,
        shows: bool,
    ) -> Option<Self> {
        let device = paging.device_with_memory()?;
        if paging.cold != Cold::Auto || !paging.weights {
            return None;
        }
        match Self::measured(paging, run, device, ahead, shows) {
            Ok(shares) => shares,
            Err(error) => {
                log::warn(format!(
                    "{error}; the processor computes with all cold weights that it can, as with \
                     --cold cpu\n"
                ));
                None
            }
        }
    }

    fn measured(
        paging: &PagingConfig,
        run: &Run,
        device: InnerDevice,
        ahead: Option<Ahead>,
        shows: bool,
    ) -> Result<Option<Self>> {
        let matrices = Matrices::read(paging)?;
        // Of experts the processor reads the few that a token uses, and the link would move
        // them all: nothing is to be weighed.
        if matrices.cold.is_empty() || matrices.used_share < 1.0 {
            return Ok(None);
        }
        let total = matrices.all.bytes();
        let kinds = matrices.all.most_first().into_iter();
        let kinds = kinds.filter(|(kind, bytes)| {
            is_measurable(*kind) && *bytes >= share_of(total, KIND_SHARE_MIN)
        });
        let wanted = Wanted {
            machine: run.machine(device::is_direct(paging)?),
            model: paging.model.clone(),
            kinds: kinds.map(|(kind, _)| kind).collect(),
            // A short one: prompts are not foretold here.
            ubatch: None,
            head: matrices.head,
            device: Some(device),
        };
        let automatic = || device::automatic_budget_now(device);
        if ahead.is_some_and(|ahead| matrices.fit(&ahead, automatic)) {
            // Nothing will be cold: measuring would be for nothing.
            let known = store::known(&wanted);
            return Ok(Some(Self::with(known, matrices, paging.overlaps())));
        }
        let bar = Measuring::new(shows);
        let found = store::rates(&wanted, &Origin::default(), |what| bar.say(what));
        bar.end();
        let (rates, notices) = found?;
        for notice in notices {
            log::warn(format!("{notice}\n"));
        }
        Ok(Some(Self::with(Some(rates), matrices, paging.overlaps())))
    }

    fn with(rates: Option<Calibration>, matrices: Matrices, overlaps: bool) -> Self {
        Self {
            rates,
            matrices,
            keep_bytes: device::keep_bytes(),
            overlaps,
            revision: None,
            seen: None,
            last: None,
            told: false,
        }
    }

    /// For a model whose header is at hand, by known rates, if there are any.
    ///
    /// # Errors
    /// `Failed` when the header cannot be read.
    pub fn by(rates: Option<Calibration>, paging: &PagingConfig) -> Result<Self> {
        Ok(Self::with(
            rates,
            Matrices::read(paging)?,
            paging.overlaps(),
        ))
    }

    /// The model is loaded: chooses a share, if something is cold that the processor may
    /// compute with.
    pub fn begin(&mut self, device: &PagedDevice) -> Option<Decision> {
        (self.last, self.seen) = (None, None);
        let report = device.report();
        // With rates whatever is slower over the link than on the processor.
        device.set_host_reach(match self.load(device, &report) {
            Some(_) => Reach::All,
            None => Reach::FeedForward,
        });
        self.look(device, &report)
    }

    /// Chooses anew, whatever was chosen and revised before; where there is nothing to choose
    /// all is the processor's again, as at the start.
    pub fn begin_anew(&mut self, device: &PagedDevice) -> Option<Decision> {
        self.revision = None;
        let decision = self.begin(device);
        if decision.is_none() {
            device.set_host_share(1.0);
        }
        decision
    }

    /// What comes next was not generated without a break.
    pub fn pause(&mut self) {
        self.last = None;
    }

    /// A token was generated at `now`; `alone`: by a pass for it alone.
    pub fn token(&mut self, device: &PagedDevice, now: Instant, alone: bool) -> Option<Decision> {
        let report = device.report();
        if let Some(decision) = self.look(device, &report) {
            self.last = None;
            return Some(decision);
        }
        let (then, before) = self.last.replace((now, report))?;
        let revision = self.revision.as_mut().filter(|_| alone)?;
        let passage = Passage {
            seconds: now.saturating_duration_since(then).as_secs_f64(),
            link_bytes: report.traffic.link_bytes - before.traffic.link_bytes,
            link_seconds: report.traffic.link_seconds - before.traffic.link_seconds,
            processor_bytes: report.host_bytes - before.host_bytes,
            processor_seconds: report.host_seconds - before.host_seconds,
        };
        let decision = revision.token(&passage)?;
        Some(self.carry_out(device, decision))
    }

    /// What there was to choose from, in the state of the last decision.
    pub fn shares(&self) -> Option<cold::Shares> {
        self.revision.as_ref().map(Revision::shares)
    }

    /// Looks whether the plan has changed, and chooses anew if so.
    fn look(&mut self, device: &PagedDevice, report: &Report) -> Option<Decision> {
        let plan = Plan::of(report);
        if self.seen.replace(plan) == Some(plan) {
            return None;
        }
        self.tell_of_rates(device);
        let (load, rates) = self.load(device, report)?;
        let decision = match &mut self.revision {
            Some(revision) => revision.reload(load),
            None if load.may_bytes == 0 => None,
            None => {
                let (revision, decision) = Revision::new(load, rates);
                self.revision = Some(revision);
                Some(decision)
            }
        }?;
        Some(self.carry_out(device, decision))
    }

    /// Has the device do what was decided. It does that in whole layers, and no more than
    /// memory has room for: the decision tells of that share.
    fn carry_out(&self, device: &PagedDevice, mut decision: Decision) -> Decision {
        let done = |otherwise| device.host_share().unwrap_or(otherwise);
        decision.share_before = done(decision.share_before);
        device.set_host_share(decision.share_after);
        decision.share_after = done(decision.share_after);
        decision
    }

    /// Something is cold, and nobody knows how fast the machine is: measuring would take the
    /// device's memory now.
    fn tell_of_rates(&mut self, device: &PagedDevice) {
        let lacks = self.rates.is_none() && device.cold_weights().0 > 0;
        if lacks && !std::mem::replace(&mut self.told, true) {
            log::warn(
                "weights have no room in the device's memory, and how fast the machine is was not \
                 measured, for all were to have room when the run began: the processor computes \
                 with all of them that it can, as with --cold cpu; 'rpaged-cli plan' measures\n",
            );
        }
    }

    /// What is cold now, and how fast that goes.
    fn load(&self, device: &PagedDevice, report: &Report) -> Option<(Load, Rates)> {
        let known = self.rates.as_ref()?;
        let link = known.link.as_ref()?;
        let (may_bytes, segments) = device.cold_weights();
        let streamed = report.streamed_bytes.saturating_sub(may_bytes);
        // Of experts a token reads a few.
        let streamed = share_of(streamed, self.matrices.used_share);
        let must_bytes = streamed + report.kv_streamed_bytes;
        let rate_of_device = rate(&self.matrices.all, |name| {
            Some(known.kind(name)?.bytes_per_second)
        })?;
        let nodes = u64::from(report.layers) * NODES_BY_LAYER;
        let load = Load {
            may_bytes,
            must_bytes,
            resident_bytes: share_of(report.resident_bytes, self.matrices.used_share),
            // One token's attention reads the cache once.
            other_seconds: cost::nodes_seconds(nodes, known.node_seconds, 0, 0.0)
                + cost::matrix_seconds(report.kv_resident_bytes, rate_of_device),
            segments,
        };
        let processor = rate(&self.matrices.cold, |name| link.processor(name))?;
        let crossing = (may_bytes + must_bytes, self.keep_bytes);
        let rates = known.cold_rates(crossing, processor, rate_of_device)?;
        Some(cold::as_it_goes(self.overlaps, load, rates))
    }
}

/// Bytes per second over matrices of several types.
fn rate(kinds: &Kinds, of: impl Fn(&str) -> Option<f64>) -> Option<f64> {
    let (bytes, seconds) = (kinds.bytes(), kinds.seconds(of)?);
    (bytes > 0).then(|| units(bytes) / seconds.max(1e-12))
}

impl Matrices {
    fn read(paging: &PagingConfig) -> Result<Self> {
        let headers = Header::read_all(&paging.model)?;
        let mut found = Self {
            head: HEAD,
            used_share: 1.0,
            ..Self::default()
        };
        let entries = || headers.iter().flat_map(Header::tensors);
        let has_output = entries().any(|entry| entry.name == "output.weight");
        for entry in entries() {
            found.tensor_bytes = found.tensor_bytes.saturating_add(entry.bytes);
            let name = entry.name.as_str();
            let of_layer = name
                .strip_prefix("blk.")
                .and_then(|name| name.split_once('.'));
            let role = of_layer.map_or(name, |(_, role)| role);
            // The token embedding is read row by row, unless it is the output too.
            let is_used = match of_layer {
                Some(_) => role.ends_with(".weight"),
                None if has_output => name == "output.weight",
                None => name == "token_embd.weight",
            };
            if !is_used {
                continue;
            }
            found.all.add(entry.kind, entry.bytes);
            let is_matrix = !role.contains("_exps") && !role.contains("norm");
            if is_matrix && Reach::of(role).is_some() {
                found.cold.add(entry.kind, entry.bytes);
            }
        }
        if let Some(first) = headers.first() {
            let facts = first.facts();
            found.head = facts.head.unwrap_or(HEAD);
            let bytes = |elements: u64| elements.saturating_mul(CACHED_BYTES_MAX);
            found.cached_bytes = facts.cached.map(bytes);
            found.context_tokens = facts.context;
            if let Some((used, count)) = facts.experts {
                found.used_share = cost::experts_share(1, used, count);
            }
        }
        Ok(found)
    }

    /// Whether a budget has room for all weights and the KV cache, and for as much beside them
    /// as computing mostly takes: nothing would be cold then. Not where the cache's size is
    /// not known.
    fn fit(&self, ahead: &Ahead, automatic_bytes: impl FnOnce() -> u64) -> bool {
        let tokens = match ahead.context_tokens {
            0 => self.context_tokens,
            tokens => Some(tokens),
        };
        let Some((bytes, tokens)) = self.cached_bytes.zip(tokens) else {
            return false;
        };
        let wanted = self.tensor_bytes.saturating_add(self.tensor_bytes / 4);
        let wanted = wanted.saturating_add(bytes.saturating_mul(tokens));
        ahead.budget.bytes(self.tensor_bytes, automatic_bytes) > wanted
    }
}

/// A decision as a line for the user.
pub fn sentence(decision: &Decision, shares: &cold::Shares, may_bytes: u64) -> String {
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    let speed = |seconds: f64| show_speed(1.0 / seconds.max(1e-9));
    let after = percent(decision.share_after);
    let observed = decision.observed_seconds.map_or_else(String::new, speed);
    match decision.what {
        What::Chosen => format!(
            "the processor computes with {after} of {} of cold weights, the others cross the \
             link; foretold are {}, {} with all on the processor, {} with all over the link",
            show_bytes(may_bytes),
            speed(decision.predicted_seconds),
            speed(shares.processor_seconds),
            speed(shares.stream_seconds),
        ),
        What::Revised(cause) => {
            let whose = match cause {
                Cause::Processor => "the processor is",
                Cause::Link => "the link is",
                Cause::Device => "the device is",
            };
            let before = percent(decision.share_before);
            let so = match before == after {
                true => format!("{after} of the cold weights for the processor is still best"),
                false => format!(
                    "the processor computes with {after} of the cold weights from now on, and \
                     not with {before}"
                ),
            };
            format!(
                "a token takes longer than foretold ({observed}), for {whose} slower than \
                 measured: {so}"
            )
        }
        What::Tried => format!(
            "{observed} so far; for a while the processor computes with all cold weights that it \
             can, to see whether that is faster"
        ),
        What::GivenUp => format!(
            "it is ({observed}): the processor computes with all cold weights that it can from now \
             on"
        ),
        What::Kept => format!(
            "it is not ({observed}): the processor computes with {after} of the cold weights again"
        ),
    }
}

#[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
fn units(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::cold::Choice;

    #[test]
    fn nothing_is_measured_where_all_weights_have_room() {
        let matrices = Matrices {
            tensor_bytes: 1 << 30,
            cached_bytes: Some(1 << 10),
            context_tokens: Some(1 << 20),
            ..Matrices::default()
        };
        let (gib, quarter) = (1u64 << 30, 1u64 << 28);
        let with = |matrices: &Matrices, budget, context_tokens, automatic| {
            let ahead = Ahead {
                budget,
                context_tokens,
            };
            matrices.fit(&ahead, || automatic)
        };
        // A cache of a quarter, of a GiB, and of a size that nobody knows.
        let cache = |tokens, budget| with(&matrices, Budget::Bytes(budget), tokens, 0);
        assert!(cache(1 << 18, gib + 2 * quarter + 1) && !cache(1 << 18, gib + 2 * quarter));
        assert!(cache(0, 2 * gib + quarter + 1) && !cache(0, 2 * gib + quarter));
        for unknown in [
            Matrices {
                cached_bytes: None,
                ..matrices.clone()
            },
            Matrices {
                context_tokens: None,
                ..matrices.clone()
            },
        ] {
            assert!(!with(&unknown, Budget::Bytes(u64::MAX), 0, 0));
        }
        let matrices = Matrices {
            cached_bytes: Some(0),
            ..matrices
        };
        let fit = |budget, automatic| with(&matrices, budget, 0, automatic);
        assert!(fit(Budget::Bytes(gib + quarter + 1), 0));
        assert!(!fit(Budget::Bytes(gib + quarter), u64::MAX));
        assert!(fit(Budget::ModelShare(1.26), 0) && !fit(Budget::ModelShare(1.25), u64::MAX));
        assert!(fit(Budget::Auto, 2 * gib) && !fit(Budget::Auto, gib));
    }

    #[test]
    fn a_plan_that_stays_is_looked_at_once() {
        let report = Report::default();
        let mut counted = report;
        (counted.graphs, counted.host_bytes, counted.compute_seconds) = (1, 2, 3.0);
        counted.traffic.link_bytes = 4;
        assert_eq!(Plan::of(&counted), Plan::of(&report));
        let changes: [fn(&mut Report); 7] = [
            |report| report.budget_bytes += 1,
            |report| report.resident_bytes += 1,
            |report| report.streamed_bytes += 1,
            |report| report.kv_resident_bytes += 1,
            |report| report.kv_streamed_bytes += 1,
            |report| report.layers_evicted += 1,
            |report| report.layers_loaded += 1,
        ];
        for change in changes {
            let mut other = report;
            change(&mut other);
            assert_ne!(Plan::of(&other), Plan::of(&report));
        }
    }

    #[test]
    fn a_share_that_stays_is_not_told_as_another_one() {
        let shares = cold::Shares {
            chosen: Choice {
                share: 1.0,
                seconds: 0.1,
            },
            stream_seconds: 0.2,
            processor_seconds: 0.1,
            static_seconds: 0.1,
        };
        let said = |share_before, share_after| {
            let decision = Decision {
                what: What::Revised(Cause::Link),
                share_before,
                share_after,
                predicted_seconds: 0.1,
                observed_seconds: Some(0.2),
            };
            sentence(&decision, &shares, 1 << 30)
        };
        let why = "a token takes longer than foretold (";
        let link = "for the link is slower than measured: ";
        for (share_before, share_after, so) in [
            (
                1.0,
                1.0,
                "100 % of the cold weights for the processor is still best",
            ),
            (
                0.5,
                0.75,
                "the processor computes with 75 % of the cold weights from now on, and not with \
                 50 %",
            ),
        ] {
            let text = said(share_before, share_after);
            assert!(text.starts_with(why) && text.contains(link), "{text}");
            assert!(text.ends_with(so), "{text}");
        }
    }
}
