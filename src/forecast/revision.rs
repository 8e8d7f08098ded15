//! When a run is slower than foretold: another share of the cold weights for the processor,
//! once; and an end to the paged plan where the static one is faster. A state machine over
//! values, driven between tokens.
//!
//! ```text
//!              slower than foretold              32 tokens later
//!  Foretold ──────────────────────► Revised ────────────────────► Trial (share 1)
//!                                      │ share is 1 already          │ 32 tokens later
//!                                      ▼                             ▼
//!                                   Settled ◄──── kept, or given up: whichever was faster
//! ```
//!
//! With another share another processor computes a product, which may round differently: so
//! this is for `--cold auto` alone. A run on the host has nothing to revise, for rates change
//! no plan there: what a token took, and what it should have, is in its metrics anyway.

use crate::planner::cold::{self, Choice, Load, Rates, Shares};

/// So many tokens together say how fast a plan is.
pub const WINDOW_TOKENS: u32 = 32;
/// So many after a change say nothing: weights are read for the first time.
const WARM_TOKENS: u32 = 4;
/// Slower than foretold by more than this share is too slow.
const LATE_MAX: f64 = 0.25;
/// A plan that has changed keeps its share unless another one is faster by more than this.
const GAIN_MIN: f64 = 0.02;

/// What a token took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Passage {
    /// Wall time, in seconds.
    pub seconds: f64,
    /// Bytes over the link, and the time it was at work on them or they waited in its stream,
    /// in seconds.
    pub link_bytes: u64,
    /// See `link_bytes`.
    pub link_seconds: f64,
    /// Bytes that the processor computed with, and the time it took, in seconds.
    pub processor_bytes: u64,
    /// See `processor_bytes`.
    pub processor_seconds: f64,
}

/// Who was slower than foretold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The processor, with its products.
    Processor,
    /// The link.
    Link,
    /// The device, or what is between it and the processor.
    Device,
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A share, by the calibrated rates.
    Chosen,
    /// Another one, by what was observed.
    Revised(Cause),
    /// All for the processor, to see whether that is faster.
    Tried,
    /// It is: the paged plan is given up for it.
    GivenUp,
    /// It is not: the share of before.
    Kept,
}

/// A decision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// What was decided.
    pub what: What,
    /// The share before, and from now on.
    pub share_before: f64,
    /// See `share_before`.
    pub share_after: f64,
    /// What a token is foretold to take with it, in seconds.
    pub predicted_seconds: f64,
    /// What a token took before, in seconds; None when nothing was observed.
    pub observed_seconds: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    /// By the calibrated rates.
    Foretold,
    /// By what was observed.
    Revised,
    /// All on the processor; what the paged plan took, and its share.
    Trial {
        paged_seconds: f64,
        share: f64,
    },
    Settled,
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Revision {
    load: Load,
    // What the device took longer than foretold, which no rate explains; in seconds.
    lost_seconds: f64,
    rates: Rates,
    choice: Choice,
    stage: Stage,
    // Of WINDOW_TOKENS at most.
    window: Vec<Passage>,
    warm: u32,
}

impl Revision {
    /// The best share for a load, by calibrated rates.
    pub fn new(load: Load, rates: Rates) -> (Self, Decision) {
        let choice = cold::best(&load, &rates);
        let revision = Self {
            load,
            lost_seconds: 0.0,
            rates,
            choice,
            stage: Stage::Foretold,
            window: Vec::with_capacity(WINDOW_TOKENS as usize),
            warm: WARM_TOKENS,
        };
        // The device begins with everything on the processor.
        let decision = revision.decision(What::Chosen, 1.0, None);
        (revision, decision)
    }

    /// The share at the moment.
    pub fn share(&self) -> f64 {
        self.choice.share
    }

    /// What shares there are to choose from.
    pub fn shares(&self) -> Shares {
        cold::shares(&self.load, &self.rates)
    }

    /// What a token is foretold to take, in seconds.
    pub fn predicted_seconds(&self) -> f64 {
        self.choice.seconds
    }

    /// The plan has changed, and with it what is cold. Chooses anew as long as nothing was
    /// revised; None when the share stays, as it does where another one hardly gains.
    pub fn reload(&mut self, mut load: Load) -> Option<Decision> {
        load.other_seconds += self.lost_seconds;
        self.load = load;
        let foretold = self.choice.seconds;
        self.choice = self.at(self.choice.share);
        let change = self.choice.seconds / foretold.max(f64::MIN_POSITIVE) - 1.0;
        if change.abs() > GAIN_MIN {
            self.begin_window();
        }
        if self.stage != Stage::Foretold {
            return None;
        }
        let best = cold::best(&load, &self.rates);
        if best.seconds * (1.0 + GAIN_MIN) >= self.choice.seconds {
            return None;
        }
        let before = std::mem::replace(&mut self.choice, best).share;
        self.begin_window();
        self.warm = WARM_TOKENS;
        Some(self.decision(What::Chosen, before, None))
    }

    /// A token was generated, by a pass for it alone.
    pub fn token(&mut self, passage: &Passage) -> Option<Decision> {
        if self.stage == Stage::Settled {
            return None;
        }
        if self.warm > 0 {
            self.warm -= 1;
            return None;
        }
        self.window.push(*passage);
        if self.window.len() < WINDOW_TOKENS as usize {
            return None;
        }
        let mean = middle(&mut self.window);
        self.begin_window();
        self.judge(&mean)
    }

    /// What is in a window is for nothing: something else took the time.
    pub fn begin_window(&mut self) {
        self.window.clear();
    }

    fn judge(&mut self, mean: &Mean) -> Option<Decision> {
        let before = self.choice.share;
        match self.stage {
            Stage::Settled => None,
            Stage::Foretold => {
                if mean.seconds <= self.choice.seconds * (1.0 + LATE_MAX) {
                    return None;
                }
                let cause = self.learn(mean);
                self.choice = cold::best(&self.load, &self.rates);
                self.stage = match self.choice.share < 1.0 {
                    true => Stage::Revised,
                    false => Stage::Settled,
                };
                self.warm = WARM_TOKENS;
                Some(self.decision(What::Revised(cause), before, Some(mean.seconds)))
            }
            Stage::Revised => {
                self.stage = Stage::Trial {
                    paged_seconds: mean.seconds,
                    share: before,
                };
                self.choice = self.at(1.0);
                self.warm = WARM_TOKENS;
                Some(self.decision(What::Tried, before, Some(mean.seconds)))
            }
            Stage::Trial {
                paged_seconds,
                share,
            } => {
                self.stage = Stage::Settled;
                let what = match mean.seconds < paged_seconds {
                    true => What::GivenUp,
                    false => What::Kept,
                };
                if what == What::Kept {
                    self.choice = self.at(share);
                }
                Some(self.decision(what, before, Some(mean.seconds)))
            }
        }
    }

    /// Takes the rate of who was late from what was observed: the processor, if it took most
    /// of what was lost; else the link, if anything crossed it; else the device. A copy's time
    /// in the link's stream counts as the link's, so its rate errs towards a larger share,
    /// which is the static plan's way. Where nothing overlaps ([`cold::in_turn`]) the link has
    /// no rate of its own, for the device's contains it.
    fn learn(&mut self, mean: &Mean) -> Cause {
        let late = mean.seconds - self.choice.seconds;
        let bytes = units(self.load.may_bytes) * self.choice.share;
        let segments = f64::from(self.load.segments) * self.choice.share;
        let fixed = segments * self.rates.segment_seconds;
        let foretold = bytes / self.rates.processor + fixed;
        let observed = mean.processor_seconds;
        if observed > 0.0 && observed - foretold >= late / 2.0 {
            let products = (observed - fixed).max(observed / 2.0);
            self.rates.processor = mean.processor_bytes / products;
            self.rates.processor_slowdown = 1.0;
            return Cause::Processor;
        }
        let has_rate = self.rates.link.is_finite();
        if has_rate && mean.link_bytes > 0.0 && mean.link_seconds > 0.0 {
            let seen = mean.link_bytes / mean.link_seconds;
            let calibrated = self.rates.link / self.rates.link_slowdown.max(1.0);
            if seen < calibrated {
                self.rates.link = seen;
                self.rates.link_slowdown = 1.0;
                return Cause::Link;
            }
        }
        self.lost_seconds += late;
        self.load.other_seconds += late;
        Cause::Device
    }

    fn at(&self, share: f64) -> Choice {
        Choice {
            share,
            seconds: cold::seconds(&self.load, &self.rates, share),
        }
    }

    fn decision(&self, what: What, before: f64, observed_seconds: Option<f64>) -> Decision {
        Decision {
            what,
            share_before: before,
            share_after: self.choice.share,
            predicted_seconds: self.choice.seconds,
            observed_seconds,
        }
    }
}

/// The mean of the half of a window that lies in the middle by time: a token during which the
/// machine slept, or the terminal stood still, says nothing about a plan.
fn middle(window: &mut [Passage]) -> Mean {
    window.sort_unstable_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let quarter = window.len() / 4;
    let half = &window[quarter..window.len() - quarter];
    let mut sum = Passage::default();
    half.iter().for_each(|passage| sum.add(passage));
    sum.by(u32::try_from(half.len()).unwrap_or(u32::MAX))
}

/// The mean of a window, by token.
struct Mean {
    seconds: f64,
    link_bytes: f64,
    link_seconds: f64,
    processor_bytes: f64,
    processor_seconds: f64,
}

impl Passage {
    fn add(&mut self, other: &Self) {
        self.seconds += other.seconds;
        self.link_bytes += other.link_bytes;
        self.link_seconds += other.link_seconds;
        self.processor_bytes += other.processor_bytes;
        self.processor_seconds += other.processor_seconds;
    }

    fn by(&self, tokens: u32) -> Mean {
        let count = f64::from(tokens.max(1));
        Mean {
            seconds: self.seconds / count,
            link_bytes: units(self.link_bytes) / count,
            link_seconds: self.link_seconds / count,
            processor_bytes: units(self.processor_bytes) / count,
            processor_seconds: self.processor_seconds / count,
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "a rate")]
fn units(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests;
