//! What a few numbers say together.

/// The mean; zero when there are none.
#[allow(clippy::cast_precision_loss, reason = "a count of measurements")]
pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    values.iter().sum::<f64>() / values.len() as f64
}

/// The standard deviation of a sample; zero when there are fewer than two.
#[allow(clippy::cast_precision_loss, reason = "a count of measurements")]
pub fn deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let middle = mean(values);
    let squares: f64 = values.iter().map(|value| (value - middle).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

/// The median; None when there are no values.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    Some(if sorted.len() % 2 == 1 {
        upper
    } else {
        f64::midpoint(sorted[sorted.len() / 2 - 1], upper)
    })
}

/// A median with the median of the distances from it (MAD).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The median of the distances from it.
    pub mad: f64,
}

/// Median and MAD; None when there are no values.
pub fn spread(values: &[f64]) -> Option<Spread> {
    let middle = median(values)?;
    let distances: Vec<f64> = values.iter().map(|value| (value - middle).abs()).collect();
    let mad = median(&distances)?;
    Some(Spread {
        median: middle,
        mad,
    })
}

/// Measurements from which an outlier can be told: with fewer, two of them are half.
const OUTLIERS_COUNT_MIN: usize = 4;
/// Distances from the median, in MADs, above which a measurement is an outlier: 3.5 of the
/// standard deviations that a MAD stands for.
const OUTLIER_MADS: f64 = 3.5 * 1.4826;
/// Shares of the median below which no distance counts: runs that are nearly equal.
const OUTLIER_SHARE_MIN: f64 = 0.05;

/// The indices of the values that are far from the others.
pub fn outliers(values: &[f64]) -> Vec<usize> {
    let Some(Spread { median, mad }) = spread(values) else {
        return Vec::new();
    };
    if values.len() < OUTLIERS_COUNT_MIN {
        return Vec::new();
    }
    let bound = (OUTLIER_MADS * mad).max(OUTLIER_SHARE_MIN * median.abs());
    let far = |(index, value): (usize, &f64)| ((value - median).abs() > bound).then_some(index);
    values.iter().enumerate().filter_map(far).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_deviations_are_those_of_a_sample() {
        assert_eq!(mean(&[]), 0.0);
        assert_eq!(mean(&[1.0, 2.0, 6.0]), 3.0);
        assert_eq!(deviation(&[5.0]), 0.0);
        assert!((deviation(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]) - 2.138_09).abs() < 1e-5);
    }

    #[test]
    fn medians_stand_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        let four = spread(&[3.0, 1.0, 2.0, 10.0]).unwrap();
        assert_eq!((four.median, four.mad), (2.5, 1.0));
    }

    #[test]
    fn an_outlier_is_far_from_the_others() {
        assert_eq!(outliers(&[1.0, 1.01, 0.99, 1.0, 3.0]), [4]);
        assert!(outliers(&[1.0, 1.01, 0.99, 1.0, 1.03]).is_empty());
        assert!(outliers(&[1.0, 3.0, 1.0]).is_empty(), "too few to tell");
        assert!(outliers(&[]).is_empty());
    }
}
