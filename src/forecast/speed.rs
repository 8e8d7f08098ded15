//! From a plan and the machine's rates to seconds, by the terms of `planner::cost` and, where
//! a device computes, of `planner::cold`.

use super::Subject;
use crate::calibration::{Calibration, Contention, Kinds, LinkRates};
use crate::device::{Cold, keep_bytes};
use crate::ggml::workload::kind_name;
use crate::pager::GroupKey;
use crate::pager::outlook::{Outlook, Placed};
use crate::planner::Placement;
use crate::planner::cold::{self, Choice, Load, Rates, Reach, Shares};
use crate::planner::cost::{self, Pair};
use crate::telemetry::memory::share_of;

/// Nodes of a layer's graph that are no matrix products: norms, rotations, additions,
/// activation, writing the cache.
pub const NODES_BY_LAYER: u64 = 14;
/// Elements that are touched beside a matrix product for each element of its output.
const ELEMENTS_BY_OUTPUT: u64 = 2;

/// A pass over the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// One token, when the context holds so many.
    Decode {
        /// Tokens in the context.
        tokens: usize,
    },
    /// A prompt from an empty context on.
    Prefill {
        /// Tokens of the prompt.
        tokens: usize,
    },
}

/// What a step takes.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Speed {
    /// Tokens per second.
    pub tokens_per_second: f64,
    /// Bytes that travel in one pass.
    pub pass_bytes: u64,
    /// Seconds of one pass.
    pub pass_seconds: f64,
    /// Seconds in which those bytes would travel, with nothing beside.
    pub copy_seconds: f64,
    /// Seconds in which it would be computed, with nothing beside.
    pub compute_seconds: f64,
}

impl Speed {
    /// Whether transfers bound it.
    pub fn is_bound_by_transfers(&self) -> bool {
        self.copy_seconds > self.compute_seconds
    }
}

/// How fast a step goes with a plan; None when bytes travel and their rate is not known.
pub fn speed(
    subject: &Subject,
    outlook: &Outlook,
    rates: &Calibration,
    step: Step,
) -> Option<Speed> {
    let (tokens_all, batch, contention) = match step {
        Step::Decode { .. } => (1, 1, rates.contention_decode),
        Step::Prefill { tokens } => {
            let batch = u64::from(subject.batch_tokens());
            let all = tokens.max(1) as u64;
            (all, batch.min(all), rates.contention_prefill)
        }
    };
    let passes = tokens_all.div_ceil(batch);
    let used_share = cost::experts_share(batch, subject.experts.0, subject.experts.1);
    let pass_bytes = pass_bytes(subject, outlook, batch);
    if let (Step::Decode { tokens }, Some(_)) = (step, &rates.link) {
        return decode_on_device(subject, outlook, rates, tokens);
    }
    let copy_seconds = match pass_bytes {
        0 => 0.0,
        bytes => rates.travel_seconds(bytes, keep_bytes())?,
    };
    let compute = |rows: u64| match batch {
        1 => decode_seconds(subject, rates, rows, used_share),
        _ => batch_seconds(subject, rates, batch, rows),
    };
    let mut seconds = 0.0;
    let mut compute_seconds = 0.0;
    for pass in 0..passes {
        let held = match step {
            Step::Decode { tokens } => tokens,
            Step::Prefill { .. } => usize::try_from((pass + 1) * batch).unwrap_or(usize::MAX),
        };
        let rows = subject.rows(held) as u64;
        let computing = compute(rows)?;
        compute_seconds += computing;
        seconds += pass_seconds(subject, copy_seconds, computing, contention);
    }
    if matches!(step, Step::Prefill { .. }) {
        // Nothing has been fetched when a prompt begins.
        seconds += copy_seconds / layers(subject);
    }
    #[allow(clippy::cast_precision_loss, reason = "counts of tokens and passes")]
    let (count, passes) = (tokens_all as f64, passes as f64);
    Some(Speed {
        tokens_per_second: count / seconds.max(1e-9),
        pass_bytes,
        pass_seconds: seconds / passes,
        copy_seconds,
        compute_seconds: compute_seconds / passes,
    })
}

/// Bytes that travel in a pass over `tokens` tokens.
pub fn pass_bytes(subject: &Subject, outlook: &Outlook, tokens: u64) -> u64 {
    let used_share = cost::experts_share(tokens, subject.experts.0, subject.experts.1);
    outlook.streamed_bytes() + missed_bytes(outlook, used_share)
}

fn layers(subject: &Subject) -> f64 {
    f64::from(subject.facts.n_layer.max(1))
}

fn pass_seconds(
    subject: &Subject,
    copy_seconds: f64,
    compute_seconds: f64,
    contention: Option<Contention>,
) -> f64 {
    let pair = Pair {
        copy_seconds,
        copy_slowdown: contention.map_or(1.0, |both| both.copy_slowdown),
        compute_seconds,
        compute_slowdown: contention.map_or(1.0, |both| both.compute_slowdown),
    };
    match subject.paging.overlaps() {
        true => cost::overlap(&pair),
        false => cost::in_turn(&pair),
    }
}

/// How fast one token is on a device, with the share of the cold weights for the processor
/// that the run would have.
fn decode_on_device(
    subject: &Subject,
    outlook: &Outlook,
    rates: &Calibration,
    tokens: usize,
) -> Option<Speed> {
    let (load, cold_rates) = cold(subject, outlook, rates, tokens)?;
    let overlaps = subject.paging.overlaps();
    let (timed_load, timed_rates) = cold::as_it_goes(overlaps, load, cold_rates);
    let Choice { share, seconds } = choice(subject, &timed_load, &timed_rates);
    let free = Rates {
        link: f64::INFINITY,
        ..cold_rates
    };
    let streamed = 1.0 - share;
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "bytes of a model, at least zero"
    )]
    let bytes = load.must_bytes + (load.may_bytes as f64 * streamed) as u64;
    Some(Speed {
        tokens_per_second: 1.0 / seconds.max(1e-9),
        pass_bytes: bytes,
        pass_seconds: seconds,
        copy_seconds: match bytes {
            0 => 0.0,
            bytes => rates.travel_seconds(bytes, keep_bytes())?,
        },
        compute_seconds: cold::seconds(&load, &free, share),
    })
}

/// The share that a run would have, by `--cold`.
fn choice(subject: &Subject, load: &Load, rates: &Rates) -> Choice {
    let at = |share| Choice {
        share,
        seconds: cold::seconds(load, rates, share),
    };
    match subject.paging.cold {
        Cold::Cpu => at(1.0),
        Cold::Stream => at(0.0),
        // Of experts the processor reads the few that a token uses, and the link would move
        // them all: nothing is weighed.
        Cold::Auto if used_share(subject) < 1.0 => at(1.0),
        Cold::Auto => cold::best(load, rates),
    }
}

/// The share of the experts that a token uses; 1 without experts.
fn used_share(subject: &Subject) -> f64 {
    cost::experts_share(1, subject.experts.0, subject.experts.1)
}

/// The shares there are of the cold weights for the processor, where a device computes, and
/// something is cold that the processor may compute with.
pub fn shares(
    subject: &Subject,
    outlook: &Outlook,
    rates: &Calibration,
    tokens: usize,
) -> Option<Shares> {
    let (load, rates) = cold(subject, outlook, rates, tokens)?;
    let (load, rates) = cold::as_it_goes(subject.paging.overlaps(), load, rates);
    (load.may_bytes > 0).then(|| Shares {
        chosen: choice(subject, &load, &rates),
        ..cold::shares(&load, &rates)
    })
}

/// What is cold where a device computes, and how fast that goes.
fn cold(
    subject: &Subject,
    outlook: &Outlook,
    rates: &Calibration,
    tokens: usize,
) -> Option<(Load, Rates)> {
    let link = rates.link.as_ref()?;
    let crossing = pass_bytes(subject, outlook, 1);
    let used_share = used_share(subject);
    let may = candidates(subject, outlook, used_share);
    let may_bytes = may.bytes.min(crossing);
    let (products, other_seconds) =
        decode_parts(subject, rates, subject.rows(tokens) as u64, used_share)?;
    let load = Load {
        may_bytes,
        must_bytes: crossing - may_bytes,
        resident_bytes: products
            .bytes
            .saturating_sub(crossing - may_bytes + may.used.bytes()),
        other_seconds,
        segments: may.segments,
    };
    let crossing = (crossing, keep_bytes());
    let cold_rates = rates.cold_rates(crossing, may.processor_rate(link)?, products.rate())?;
    Some((load, cold_rates))
}

/// The cold weights that the processor may compute with.
struct Candidates {
    bytes: u64,
    /// How many times a pass goes to the processor and back for them.
    segments: u32,
    /// Those that a token uses.
    used: Kinds,
}

impl Candidates {
    /// Bytes per second of the processor's products with them, those of experts counted that
    /// it need not read.
    fn processor_rate(&self, link: &LinkRates) -> Option<f64> {
        let seconds = self.used.seconds(|name| link.processor(name))?;
        // Where there are none the rate is of no use.
        let all = link.processor_bytes_per_second.values().copied();
        match self.bytes {
            0 => Some(all.fold(1.0, f64::max)),
            bytes => Some(units(bytes) / seconds.max(1e-12)),
        }
    }
}

fn candidates(subject: &Subject, outlook: &Outlook, used_share: f64) -> Candidates {
    let mut found = Candidates {
        bytes: 0,
        segments: 0,
        used: Kinds::default(),
    };
    if outlook.streamed_bytes() == 0 {
        return found;
    }
    let most = reach(subject);
    let is_cold = |tensor: &Placed| tensor.placement == Placement::Streamed && !tensor.state;
    let mut units: Vec<(Reach, GroupKey)> = Vec::new();
    for (tensor, matrix) in outlook.tensors.iter().zip(&subject.notes.paged) {
        let reach = Reach::of(&tensor.role).filter(|reach| is_cold(tensor) && *reach <= most);
        let Some(reach) = reach else {
            continue;
        };
        found.bytes += tensor.bytes;
        units.push((reach, tensor.group));
        // Of experts a part.
        let used_bytes = match matrix.slices > 1 {
            true => share_of(tensor.bytes, used_share),
            false => tensor.bytes,
        };
        found.used.add(matrix.kind, used_bytes);
    }
    found.segments = cold::segments(units.into_iter());
    found
}

/// How far a run's processor would go.
fn reach(subject: &Subject) -> Reach {
    match subject.paging.cold {
        Cold::Auto if used_share(subject) >= 1.0 => Reach::All,
        Cold::Auto | Cold::Cpu | Cold::Stream => Reach::FeedForward,
    }
}

/// Bytes of experts that a pass fetches into the cache.
fn missed_bytes(outlook: &Outlook, used_share: f64) -> u64 {
    let experts = outlook.sum(Placement::Cached, |tensor| tensor.bytes);
    let missed = cost::missed_bytes(experts, outlook.cache_bytes, used_share);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "bytes of a model, at least zero"
    )]
    let missed = missed as u64;
    missed
}

/// Products by one token: what they read, and how long they take.
struct Products {
    bytes: u64,
    seconds: f64,
}

impl Products {
    /// Bytes per second.
    fn rate(&self) -> f64 {
        units(self.bytes.max(1)) / self.seconds.max(1e-12)
    }
}

fn decode_seconds(
    subject: &Subject,
    rates: &Calibration,
    rows: u64,
    used_share: f64,
) -> Option<f64> {
    let (products, others) = decode_parts(subject, rates, rows, used_share)?;
    Some(products.seconds + others)
}

/// The products with weights, and the seconds of all else.
fn decode_parts(
    subject: &Subject,
    rates: &Calibration,
    rows: u64,
    used_share: f64,
) -> Option<(Products, f64)> {
    let mut products = Products {
        bytes: 0,
        seconds: 0.0,
    };
    for matrix in subject.matrices().filter(|matrix| matrix.rows > 1) {
        let rate = rates.kind(kind_name(matrix.kind)?)?;
        let whole = cost::matrix_seconds(matrix.bytes, rate.bytes_per_second);
        let (bytes, part) = match matrix.slices > 1 {
            true => (share_of(matrix.bytes, used_share), used_share),
            false => (matrix.bytes, 1.0),
        };
        products.bytes += bytes;
        products.seconds += whole * part;
    }
    let mut seconds = 0.0;
    for (width, most) in caches(subject) {
        let rate = rates.attention_per_second;
        seconds += cost::attention_seconds(1, rows.min(most), width, rate);
    }
    let nodes = u64::from(subject.facts.n_layer) * NODES_BY_LAYER;
    seconds += cost::nodes_seconds(nodes, rates.node_seconds, 0, 0.0);
    Some((products, seconds))
}

#[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
fn units(count: u64) -> f64 {
    count as f64
}

fn batch_seconds(subject: &Subject, rates: &Calibration, batch: u64, rows: u64) -> Option<f64> {
    let size = subject.batch_tokens();
    let (mut seconds, mut outputs) = (0.0, 0);
    for matrix in subject.matrices().filter(|matrix| matrix.rows > 1) {
        let rates = &rates.kind(kind_name(matrix.kind)?)?.products_per_second;
        let rate = rates.get(&size).or_else(|| rates.values().next())?;
        // Of experts, as many as a token uses; of the output, only the last token's row.
        let slices = match matrix.slices {
            0 | 1 => 1,
            slices => subject.experts.0.clamp(1, slices),
        };
        let is_output =
            matrix.name.starts_with("output.") || matrix.name.starts_with("token_embd.");
        let tokens = if is_output { 1 } else { batch };
        let elements = matrix.columns * matrix.rows * slices;
        seconds += cost::batch_seconds(elements, tokens, *rate);
        outputs += matrix.rows * slices * tokens;
    }
    let rates_of_attention = &rates.attention_batch_per_second;
    let rate = rates_of_attention.get(&size);
    let rate = *rate.or_else(|| rates_of_attention.values().next())?;
    for (width, most) in caches(subject) {
        seconds += cost::attention_seconds(batch, rows.min(most), width, rate);
    }
    let nodes = u64::from(subject.facts.n_layer) * NODES_BY_LAYER;
    let elements = outputs * ELEMENTS_BY_OUTPUT;
    let (node, element) = (rates.node_seconds, rates.element_seconds);
    Some(seconds + cost::nodes_seconds(nodes, node, elements, element))
}

/// The KV cache of each layer: the width of all heads that read it, and its rows.
fn caches(subject: &Subject) -> impl Iterator<Item = (u64, u64)> {
    let facts = &subject.facts;
    let heads_by_cache = u64::from(facts.n_head / facts.n_head_kv.max(1)).max(1);
    let keys = subject.states();
    let keys = keys.filter(|matrix| matrix.name.starts_with("cache_k_l"));
    keys.map(move |matrix| (matrix.columns * heads_by_cache, matrix.rows))
}
