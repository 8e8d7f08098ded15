//! Times by logarithmic classes: quantiles to within 1 %, in memory that does not grow.

/// The shortest time that has a class of its own, in seconds.
const SHORTEST: f64 = 1e-6;
/// How much longer the times of a class are than those of the one before.
const RATIO: f64 = 1.01;
/// Classes: from a microsecond to more than a day.
const CLASSES: usize = 2600;

/// A histogram of times in seconds.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// Empty until the first time comes.
    classes: Vec<u32>,
    count: u64,
    longest: f64,
}

impl Histogram {
    /// Counts a time.
    pub fn add(&mut self, seconds: f64) {
        self.classes.resize(CLASSES, 0);
        let class = (seconds.max(SHORTEST) / SHORTEST).ln() / RATIO.ln();
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "not negative, as the time is not below the shortest"
        )]
        let class = (class as usize).min(CLASSES - 1);
        self.classes[class] = self.classes[class].saturating_add(1);
        self.count += 1;
        self.longest = self.longest.max(seconds);
    }

    /// The time that `share` (0.0 to 1.0) of all do not exceed; None when there are none.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a count of tokens"
        )]
        let rank = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut sum = 0;
        let class = self.classes.iter().position(|count| {
            sum += u64::from(*count);
            sum >= rank
        })?;
        // The middle of the class; the longest time is known exactly.
        let class = f64::from(u32::try_from(class).unwrap_or(u32::MAX));
        Some((SHORTEST * RATIO.powf(class + 0.5)).min(self.longest))
    }

    /// The longest time; None when there are none.
    pub fn longest(&self) -> Option<f64> {
        (self.count > 0).then_some(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_one_percent() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        assert_eq!(histogram.longest(), None);
        for thousandth in 1..=1000 {
            histogram.add(f64::from(thousandth) / 1000.0);
        }
        for share in [0.01, 0.25, 0.5, 0.9, 0.99] {
            let quantile = histogram.quantile(share).unwrap();
            assert!((quantile / share - 1.0).abs() < 0.01, "{share}: {quantile}");
        }
        assert_eq!(histogram.longest(), Some(1.0));
        assert_eq!(histogram.quantile(1.0), Some(1.0));
    }

    #[test]
    fn extremes_are_counted() {
        let mut histogram = Histogram::default();
        histogram.add(0.0);
        histogram.add(1e9);
        assert_eq!(histogram.longest(), Some(1e9));
        assert!(histogram.quantile(0.5).unwrap() < 2e-6);
        assert!(histogram.quantile(1.0).unwrap() > 86_400.0);
    }
}
