//! From a plan and the machine's rates to seconds, by the terms of `planner::cost`.

use super::Subject;
use crate::calibration::{Calibration, Contention};
use crate::ggml::workload::kind_name;
use crate::pager::outlook::Outlook;
use crate::planner::Placement;
use crate::planner::cost::{self, Pair};

/// Nodes of a layer's graph that are no matrix products: norms, rotations, additions,
/// activation, writing the cache.
const NODES_BY_LAYER: u64 = 14;
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
    let copy_seconds = match pass_bytes {
        0 => 0.0,
        bytes => cost::transfer_seconds(bytes, rates.storage_bytes_per_second?),
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
    match subject.paging.prefetch {
        true => cost::overlap(&pair),
        false => cost::in_turn(&pair),
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

fn decode_seconds(
    subject: &Subject,
    rates: &Calibration,
    rows: u64,
    used_share: f64,
) -> Option<f64> {
    let mut seconds = 0.0;
    for matrix in subject.matrices().filter(|matrix| matrix.rows > 1) {
        let rate = rates.kind(kind_name(matrix.kind)?)?;
        let whole = cost::matrix_seconds(matrix.bytes, rate.bytes_per_second);
        seconds += whole * if matrix.slices > 1 { used_share } else { 1.0 };
    }
    for (width, most) in caches(subject) {
        let rate = rates.attention_per_second;
        seconds += cost::attention_seconds(1, rows.min(most), width, rate);
    }
    let nodes = u64::from(subject.facts.n_layer) * NODES_BY_LAYER;
    Some(seconds + cost::nodes_seconds(nodes, rates.node_seconds, 0, 0.0))
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
