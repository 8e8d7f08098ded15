//! What a token should take: the law that holds while weights stream.
//!
//! ```text
//!  seconds per pass  = max( bytes that travel / rate of the copies, seconds of computing )
//!  seconds per token = seconds per pass / tokens that a pass yields
//! ```
//!
//! because copies and computing overlap. A pass yields one token, and with drafting those
//! drafted ones besides that were right; the time of drafting is computing. It is a floor:
//! where copies and computation share processors or memory bandwidth, or where nothing is
//! fetched ahead, a token takes longer, up to the sum. Rates are of the past, so a change of
//! the plan shows one token later; sampling and printing are not in it.

use crate::planner::cost::least_seconds;

/// The newest value's part in an average.
const WEIGHT: f64 = 0.25;

/// What is left of a count with each token: that of some dozen passes, with drafting.
const FADING: f64 = 0.98;

/// An average in which old values fade.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Average(Option<f64>);

impl Average {
    fn add(&mut self, value: f64) {
        self.0 = Some(self.0.map_or(value, |old| old + WEIGHT * (value - old)));
    }
}

/// What some tokens took, and what was moved and computed for them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Passage {
    /// Tokens generated.
    pub tokens: u32,
    /// Passes over the model for them; a token that was drafted takes none.
    pub passes: u64,
    /// Wall time, in seconds.
    pub seconds: f64,
    /// Bytes copied into the arena.
    pub bytes: u64,
    /// Time the copy engine spent on them, summed over its threads, in seconds.
    pub copy_seconds: f64,
    /// Time the inner device computed, in seconds.
    pub compute_seconds: f64,
}

/// The rates as far as they are known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    bytes_per_second: Average,
    compute_seconds: Average,
    /// Tokens and the passes they took; old ones fade.
    tokens: f64,
    passes: f64,
    /// Whether a rate was taken from passes: it replaces that of loading.
    from_passes: bool,
}

impl Rates {
    /// A first estimate: the rate at which the model was read while loading.
    pub fn from_load(bytes: u64, seconds: f64) -> Self {
        let mut rates = Self::default();
        if let Some(rate) = rate(bytes, seconds) {
            rates.bytes_per_second.add(rate);
        }
        rates
    }

    /// Learns from a passage.
    pub fn learn(&mut self, passage: &Passage) {
        if passage.tokens == 0 {
            return;
        }
        // Threads that copy at the same time count their seconds each; together they are
        // not slower than the wall clock says.
        let seconds = passage.copy_seconds.min(passage.seconds);
        // Between two passes nothing is waited for: a copy that ends there was begun before.
        let of_a_pass = Some(passage.bytes).filter(|_| passage.passes > 0);
        if let Some(rate) = of_a_pass.and_then(|bytes| rate(bytes, seconds)) {
            if !self.from_passes {
                self.bytes_per_second = Average::default();
                self.from_passes = true;
            }
            self.bytes_per_second.add(rate);
        }
        #[allow(clippy::cast_precision_loss, reason = "a rate")]
        let passes = passage.passes as f64;
        if passes > 0.0 {
            self.compute_seconds.add(passage.compute_seconds / passes);
        }
        let tokens = f64::from(passage.tokens);
        let left = FADING.powf(tokens);
        self.tokens = self.tokens * left + tokens;
        self.passes = self.passes * left + passes;
    }

    /// What the next token should take when so many bytes travel in a pass.
    pub fn predict(&self, travelling_bytes: u64) -> Option<f64> {
        let (rate, compute) = (self.bytes_per_second.0, self.compute_seconds.0);
        let pass = least_seconds(travelling_bytes, rate, compute)?;
        let yields = if self.passes > 0.0 {
            (self.tokens / self.passes).max(1.0)
        } else {
            1.0
        };
        Some(pass / yields)
    }
}

#[allow(clippy::cast_precision_loss, reason = "a rate")]
fn rate(bytes: u64, seconds: f64) -> Option<f64> {
    (bytes > 0 && seconds > 0.0).then(|| bytes as f64 / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_rates_nothing_is_predicted() {
        assert_eq!(Rates::default().predict(10), None);
        assert_eq!(Rates::from_load(0, 0.0).predict(10), None);
    }

    fn passage(bytes: u64, copy_seconds: f64) -> Passage {
        Passage {
            tokens: 2,
            passes: 2,
            seconds: 4.0,
            bytes,
            copy_seconds,
            compute_seconds: 1.0,
        }
    }

    #[test]
    fn loading_gives_the_first_rate_and_passes_replace_it() {
        let mut rates = Rates::from_load(1000, 1.0);
        assert_eq!(rates.predict(500), Some(0.5));
        rates.learn(&passage(400, 4.0));
        assert_eq!(rates.predict(500), Some(5.0));
        rates.learn(&passage(800, 4.0));
        assert_eq!(
            rates.predict(500),
            Some(4.0),
            "100 and a quarter of 100 more"
        );
    }

    #[test]
    fn threads_side_by_side_are_as_fast_as_the_clock_says() {
        let mut rates = Rates::default();
        rates.learn(&passage(400, 8.0));
        assert_eq!(rates.predict(100), Some(1.0));
    }

    #[test]
    fn a_pass_that_yields_several_tokens_makes_each_cheaper() {
        let mut rates = Rates::default();
        for passes in [1, 0, 0, 0].repeat(100) {
            rates.learn(&Passage {
                tokens: 1,
                passes,
                bytes: 400 * passes,
                copy_seconds: if passes > 0 { 4.0 } else { 0.0 },
                ..passage(0, 0.0)
            });
        }
        let predicted = rates.predict(400).unwrap();
        assert!((predicted - 1.0).abs() < 0.04, "{predicted}");
        assert!(rates.predict(0).unwrap() < 0.3);
    }

    #[test]
    fn computing_is_counted_by_pass() {
        let mut rates = Rates::default();
        rates.learn(&passage(0, 0.0));
        assert_eq!(rates.predict(0), Some(0.5));
        assert_eq!(rates.predict(1), None);
    }
}
