//! Cold weights of a pass over one token: which share of them the processor computes where
//! they lie, while the link brings the rest to the device. Pure functions over values.
//!
//! ```text
//!  chain   device D | processor H | device | processor | ...   one layer after the other
//!  link    copies C ........................................   beside all of it
//! ```
//!
//! The processor's products are a part of the chain: the device waits for them. Copies go on
//! meanwhile, for what streams is fetched ahead. With a share `s` of the bytes that the
//! processor may compute:
//!
//! ```text
//!  C = (must stream + may (1 - s)) / link
//!  H = may s / processor + segments s x cost of one
//!  without contention: max(D + H, C)
//! ```
//!
//! Link and processor both draw on the machine's memory, so each is slower while the other is
//! at work ([`Rates::link_slowdown`], [`Rates::processor_slowdown`]); the device's own memory
//! is another one. The formula of [`seconds`] accounts for that.
//!
//! # Limits
//!
//! - Decoding of one token: a batch reuses what it streams, and streams all of it.
//! - The chain alternates evenly, as the planner's balance has it; a single cold tensor at
//!   one end of a pass overlaps less.
//! - Rates are those of large products and copies.
//! - A faster link never raises the share, as long as the device is no slower than the
//!   processor.
//! - Segments grow in proportion to the share, and each costs the same.

use std::collections::BTreeMap;

use super::WhenStreamed;

/// How far the processor goes with cold weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Feed-forward blocks: most of a model, and one product follows the other.
    #[default]
    FeedForward,
    /// After these the products of attention and the output too, where the link is too slow
    /// for them: each layer's chain goes to the processor twice more.
    All,
}

impl Reach {
    /// The least with which the processor may compute with weights of this role, a name
    /// without the layer; None where it never does.
    pub fn of(role: &str) -> Option<Self> {
        let has = |is_one: fn(&str) -> bool| role.split('.').any(is_one);
        if has(|part| part.starts_with("ffn_")) {
            Some(Self::FeedForward)
        } else if has(|part| part.starts_with("attn_") || matches!(part, "output" | "token_embd")) {
            Some(Self::All)
        } else {
            None
        }
    }
}

/// How many times the chain goes to the processor and back for cold weights of these layers, by
/// their reach: once for a feed-forward block, for attention's products before and after it
/// are in one chain with it; where only these are cold, twice.
pub fn segments<K: Copy + Ord>(units: impl Iterator<Item = (Reach, K)>) -> u32 {
    let mut least: BTreeMap<K, Reach> = BTreeMap::new();
    for (reach, layer) in units {
        let known = least.entry(layer).or_insert(reach);
        *known = reach.min(*known);
    }
    let of_layer = least.values().map(|reach| match reach {
        Reach::FeedForward => 1,
        Reach::All => 2,
    });
    of_layer.fold(0, u32::saturating_add)
}

/// What becomes of weights of this role that are cold, where the processor computes with
/// feed-forward blocks.
pub fn use_of(role: &str) -> WhenStreamed {
    match Reach::of(role) {
        Some(Reach::FeedForward) if role.contains("_exps") => WhenStreamed::PartOnHost,
        Some(Reach::FeedForward) => WhenStreamed::OnHost,
        _ => WhenStreamed::Fetched,
    }
}

/// What of a model is cold, and what is not.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Cold bytes that the processor may compute with, by its [`Reach`].
    pub may_bytes: u64,
    /// Cold bytes that have to cross the link in each pass.
    pub must_bytes: u64,
    /// Bytes of weights in the device's memory that a pass reads.
    pub resident_bytes: u64,
    /// Seconds that the device takes for all that is no product with weights.
    pub other_seconds: f64,
    /// Times that the chain goes from the device to the processor and back when the processor
    /// computes all it may.
    pub segments: u32,
}

/// How fast they go, in bytes per second unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Over the link into the device's memory.
    pub link: f64,
    /// The processor's products by one token.
    pub processor: f64,
    /// The device's products by one token, from its own memory.
    pub device: f64,
    /// How many times slower the link is while the processor multiplies; at least 1.
    pub link_slowdown: f64,
    /// How many times slower the processor is while the link copies; at least 1.
    pub processor_slowdown: f64,
    /// Seconds that a segment on the processor costs beside its products.
    pub segment_seconds: f64,
}

/// A share, and the time that it takes.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Choice {
    /// The share of the bytes that the processor may compute which it does compute, 0 to 1.
    pub share: f64,
    /// Seconds of a pass with it.
    pub seconds: f64,
}

/// Shares are multiples of one part in so many, unless there are more segments.
const STEPS_MIN: u32 = 64;
/// Shares are tried no finer than this.
const STEPS_MAX: u32 = 1024;

impl Rates {
    /// Slowdowns as they can be: two that share a memory lose no more together than by
    /// taking turns, 1 / link + 1 / processor >= 1. More is an error of measurement.
    fn slowdowns(&self) -> (f64, f64) {
        let sane = |slowdown: f64| match slowdown.is_finite() {
            true => slowdown.max(1.0),
            false => 1.0,
        };
        let (link, processor) = (sane(self.link_slowdown), sane(self.processor_slowdown));
        let together = (1.0 / link + 1.0 / processor).min(1.0);
        (link * together, processor * together)
    }
}

/// Seconds of a pass when the processor computes the share `share` of what it may.
///
/// While the chain is on the device, copies go at the link's own rate; while it is on the
/// processor both are slower. With D, H and C as in the module's documentation, and slowdowns
/// h of the processor and c of the link, the chain takes at most D + H h, in which D + H h / c
/// seconds' worth of copies are done. If there are more, the rest follows alone:
///
/// ```text
///  D + H h + (C - D - H h / c)
/// ```
///
/// If there are fewer, the processor is slowed down only as long as they last:
///
/// ```text
///  D + H + H (h - 1) x C / (D + H h / c)
/// ```
pub fn seconds(load: &Load, rates: &Rates, share: f64) -> f64 {
    let share = share.clamp(0.0, 1.0);
    let may = units(load.may_bytes);
    let copies = (units(load.must_bytes) + may * (1.0 - share)) / rates.link;
    let device = units(load.resident_bytes + load.must_bytes) / rates.device
        + may * (1.0 - share) / rates.device
        + load.other_seconds;
    let processor =
        may * share / rates.processor + f64::from(load.segments) * share * rates.segment_seconds;
    let (link_slowdown, slowdown) = rates.slowdowns();
    let done = device + processor * slowdown / link_slowdown;
    match copies >= done {
        true => device + processor * slowdown + (copies - done),
        false => device + processor + processor * (slowdown - 1.0) * (copies / done),
    }
}

/// The same where nothing overlaps: copies take their turn in the chain, as where nothing is
/// fetched ahead, or the device does not launch by itself.
pub fn in_turn(load: &Load, rates: &Rates) -> (Load, Rates) {
    let load = Load {
        resident_bytes: 0,
        other_seconds: load.other_seconds + units(load.resident_bytes) / rates.device,
        ..*load
    };
    let rates = Rates {
        device: 1.0 / (1.0 / rates.device + 1.0 / rates.link),
        link: f64::INFINITY,
        ..*rates
    };
    (load, rates)
}

/// What is cold, and the rates, as things go: without overlap where there is none.
pub fn as_it_goes(overlaps: bool, load: Load, rates: Rates) -> (Load, Rates) {
    match overlaps {
        true => (load, rates),
        false => in_turn(&load, &rates),
    }
}

/// Seconds of a pass with what stock llama.cpp has for the same memory (`-ngl`,
/// `--n-cpu-ffn`): everything cold is computed on the processor, nothing is streamed.
pub fn static_seconds(load: &Load, rates: &Rates) -> f64 {
    let all = Load {
        may_bytes: load.may_bytes + load.must_bytes,
        must_bytes: 0,
        ..*load
    };
    seconds(&all, rates, 1.0)
}

/// The share with which a pass takes least; of shares that take as long the largest, which
/// moves the fewest bytes. Never slower than to stream everything (0) or to compute on the
/// processor all that may be (1), for both are among those that are tried.
pub fn best(load: &Load, rates: &Rates) -> Choice {
    let of = |share: f64| Choice {
        share,
        seconds: seconds(load, rates, share),
    };
    let steps = load.segments.clamp(STEPS_MIN, STEPS_MAX);
    let shares = (0..steps).map(|step| f64::from(step) / f64::from(steps));
    let choices = shares.chain(std::iter::once(1.0)).map(of);
    let best = choices.reduce(|best, next| match next.seconds <= best.seconds {
        true => next,
        false => best,
    });
    best.unwrap_or_else(|| of(1.0))
}

/// Both ends, and the share that was chosen between them.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Shares {
    /// The best share, or another one that was asked for.
    pub chosen: Choice,
    /// Seconds of a pass that streams everything.
    pub stream_seconds: f64,
    /// Seconds of a pass in which the processor computes all it may.
    pub processor_seconds: f64,
    /// Seconds of a pass with stock's placement in the same memory.
    pub static_seconds: f64,
}

/// See [`Shares`].
pub fn shares(load: &Load, rates: &Rates) -> Shares {
    Shares {
        chosen: best(load, rates),
        stream_seconds: seconds(load, rates, 0.0),
        processor_seconds: seconds(load, rates, 1.0),
        static_seconds: static_seconds(load, rates),
    }
}

#[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
fn units(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests;
