//! What a plan costs in time: one function for each term, each pure, with its formula and
//! where it ends to hold. Bytes and seconds in, seconds out; nothing is measured here.
//!
//! ```text
//!   bytes that travel ─► transfer ─┐
//!                                  ├─► overlap ─► seconds of a pass ─► drafting ─► tokens/s
//!   matrices, attention, nodes ────┘
//! ```

/// A rate of something, alone and while the other of copying and computing goes on too:
/// they share processors and memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Units per second with nothing beside it.
    pub alone: f64,
    /// Units per second while the other one goes on.
    pub contended: f64,
}

impl Rate {
    /// By how much the other one slows it down; at least 1.
    pub fn slowdown(&self) -> f64 {
        (self.alone / self.contended).max(1.0)
    }
}

/// Two things that go on at the same time: how long each takes alone, and how much slower
/// it is beside the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// Seconds of copying, alone.
    pub copy_seconds: f64,
    /// How many times slower copying is while something computes.
    pub copy_slowdown: f64,
    /// Seconds of computing, alone.
    pub compute_seconds: f64,
    /// How many times slower computing is while something is copied.
    pub compute_slowdown: f64,
}

/// Seconds until `bytes` are copied: bytes / rate.
///
/// Holds for requests that are large (a tensor's share of a layer) and many: a single one
/// also waits for the disk's latency, which is below a millisecond.
pub fn transfer_seconds(bytes: u64, bytes_per_second: f64) -> f64 {
    units(bytes) / bytes_per_second
}

/// Seconds of a matrix product by one token: bytes of the matrix / rate of its type, for
/// each byte is read once and used once.
///
/// Holds for matrices larger than the processor's caches together: a model that fits them
/// is faster, and bound by [`nodes_seconds`].
pub fn matrix_seconds(bytes: u64, bytes_per_second: f64) -> f64 {
    units(bytes) / bytes_per_second
}

/// Seconds of a matrix product by a batch: elements x tokens / rate of its type at such
/// batches.
///
/// The rate grows with the batch until the processor is busy, so it is measured at the
/// batch in question; between two sizes there is no formula.
pub fn batch_seconds(elements: u64, tokens: u64, products_per_second: f64) -> f64 {
    units(elements) * units(tokens) / products_per_second
}

/// Seconds of attention in one layer: tokens x rows of the cache x width of all heads / rate.
///
/// Rows beyond the last token, up to llama.cpp's padding, are computed too; those that a
/// sliding window hides are not rows of its cache. Quantised caches are taken to be as
/// fast as F16 ones.
pub fn attention_seconds(tokens: u64, rows: u64, width: u64, products_per_second: f64) -> f64 {
    units(tokens) * units(rows) * units(width) / products_per_second
}

/// Seconds of all that is no matrix product: nodes of the graph x what each costs at
/// least, for threads meet at its end, and elements x what one costs.
pub fn nodes_seconds(nodes: u64, node_seconds: f64, elements: u64, element_seconds: f64) -> f64 {
    units(nodes) * node_seconds + units(elements) * element_seconds
}

/// Seconds of a pass in which copying and computing overlap.
///
/// Both go on, each slowed down by the other, until the shorter is done; then the other
/// goes on alone:
///
/// ```text
///   shorter slowed down + (1 - share of the longer done by then) x longer alone
/// ```
///
/// Without slowdowns that is the larger of the two. Holds when every layer moves the same
/// bytes, which the planner sees to; without prefetching it is the sum ([`in_turn`]).
pub fn overlap(pair: &Pair) -> f64 {
    let copy = pair.copy_seconds * pair.copy_slowdown;
    let compute = pair.compute_seconds * pair.compute_slowdown;
    let (shorter, longer, longer_alone) = match copy < compute {
        true => (copy, compute, pair.compute_seconds),
        false => (compute, copy, pair.copy_seconds),
    };
    if longer <= 0.0 {
        return 0.0;
    }
    shorter + (1.0 - shorter / longer) * longer_alone
}

/// The least that a pass takes: [`overlap`] of two that do not slow each other down. None
/// when something travels, or is computed, and the rate of it is not known.
pub fn least_seconds(
    travelling_bytes: u64,
    bytes_per_second: Option<f64>,
    compute_seconds: Option<f64>,
) -> Option<f64> {
    if travelling_bytes == 0 {
        return compute_seconds;
    }
    let rate = bytes_per_second.filter(|rate| *rate > 0.0)?;
    Some(overlap(&Pair {
        copy_seconds: transfer_seconds(travelling_bytes, rate),
        copy_slowdown: 1.0,
        // Until something was computed, the copies alone are the estimate.
        compute_seconds: compute_seconds.unwrap_or(0.0),
        compute_slowdown: 1.0,
    }))
}

/// Seconds of a pass that copies only when something is needed: the sum.
pub fn in_turn(pair: &Pair) -> f64 {
    pair.copy_seconds + pair.compute_seconds
}

/// Share of a layer's experts that `tokens` tokens use, each `used` of `count`, when all are
/// equally likely: 1 - (1 - used / count)^tokens.
///
/// Routers have favourites, so it is an upper bound.
pub fn experts_share(tokens: u64, used: u64, count: u64) -> f64 {
    if count == 0 || used >= count {
        return 1.0;
    }
    let exponent = i32::try_from(tokens).unwrap_or(i32::MAX);
    1.0 - (1.0 - units(used) / units(count)).powi(exponent)
}

/// Bytes of experts that a pass fetches: those that are used and absent from the cache.
///
/// Equally likely experts are taken to be in the cache as often as others, an upper bound
/// as [`experts_share`] is.
pub fn missed_bytes(experts_bytes: u64, cache_bytes: u64, used_share: f64) -> f64 {
    let absent = units(experts_bytes.saturating_sub(cache_bytes));
    absent * used_share
}

/// Tokens that a pass yields when `drafted` tokens are checked in it and each is accepted
/// with probability `acceptance`: 1 + a + a^2 + ... + a^drafted.
///
/// Takes acceptances to be independent; a pass over more than one token costs more only
/// where computing is what bounds it.
pub fn drafted_tokens(drafted: u32, acceptance: f64) -> f64 {
    let acceptance = acceptance.clamp(0.0, 1.0);
    let powers = (0..=drafted).map(|power| acceptance.powi(i32::try_from(power).unwrap_or(0)));
    powers.sum()
}

#[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
fn units(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair(copy: f64, compute: f64, slowdowns: (f64, f64)) -> Pair {
        Pair {
            copy_seconds: copy,
            copy_slowdown: slowdowns.0,
            compute_seconds: compute,
            compute_slowdown: slowdowns.1,
        }
    }

    fn close(left: f64, right: f64) -> bool {
        (left - right).abs() <= 1e-9 * left.abs().max(right.abs()).max(1e-12)
    }

    #[test]
    fn without_contention_the_larger_rules() {
        assert!(close(overlap(&pair(3.0, 1.0, (1.0, 1.0))), 3.0));
        assert!(close(overlap(&pair(1.0, 4.0, (1.0, 1.0))), 4.0));
        assert!(close(overlap(&pair(0.0, 0.0, (2.0, 2.0))), 0.0));
    }

    #[test]
    fn the_least_is_the_slower_of_copying_and_computing() {
        assert_eq!(least_seconds(1000, Some(100.0), Some(3.0)), Some(10.0));
        assert_eq!(least_seconds(1000, Some(1000.0), Some(3.0)), Some(3.0));
        assert_eq!(least_seconds(0, None, Some(3.0)), Some(3.0));
        assert_eq!(least_seconds(1000, Some(100.0), None), Some(10.0));
    }

    #[test]
    fn without_rates_the_least_is_unknown() {
        assert_eq!(least_seconds(1000, None, Some(3.0)), None);
        assert_eq!(least_seconds(1000, Some(0.0), Some(3.0)), None);
        assert_eq!(least_seconds(0, Some(1.0), None), None);
    }

    #[test]
    fn one_processor_for_both_gives_the_sum() {
        // Each gets half of it: twice as slow beside the other.
        assert!(close(overlap(&pair(3.0, 1.0, (2.0, 2.0))), 4.0));
        assert!(close(overlap(&pair(1.0, 1.0, (2.0, 2.0))), 2.0));
        assert!(close(in_turn(&pair(1.0, 1.0, (2.0, 2.0))), 2.0));
    }

    #[test]
    fn experts_are_shared_by_tokens() {
        assert!(close(experts_share(1, 8, 64), 0.125));
        assert!(close(experts_share(5, 8, 8), 1.0));
        assert!(experts_share(512, 8, 64) > 0.999);
        assert!(close(missed_bytes(100, 60, 0.5), 20.0));
        assert!(close(missed_bytes(100, 200, 0.5), 0.0));
    }

    #[test]
    fn drafts_pay_by_their_acceptance() {
        assert!(close(drafted_tokens(0, 0.9), 1.0));
        assert!(close(drafted_tokens(3, 0.0), 1.0));
        assert!(close(drafted_tokens(3, 1.0), 4.0));
        assert!(close(drafted_tokens(2, 0.5), 1.75));
    }

    proptest! {
        #[test]
        fn a_pass_takes_as_long_as_the_longer_and_no_longer_than_both_slowed(
            copy in 0.0f64..10.0, compute in 0.0f64..10.0,
            slow_copy in 1.0f64..4.0, slow_compute in 1.0f64..4.0,
        ) {
            let pair = pair(copy, compute, (slow_copy, slow_compute));
            let seconds = overlap(&pair);
            prop_assert!(seconds >= copy.max(compute) - 1e-9);
            prop_assert!(seconds <= copy * slow_copy + compute * slow_compute + 1e-9);
        }

        #[test]
        fn less_to_move_never_takes_longer(
            copy in 0.0f64..10.0, less in 0.0f64..1.0, compute in 0.0f64..10.0,
        ) {
            let slow = (1.3, 1.2);
            let with = |copy| overlap(&pair(copy, compute, slow));
            prop_assert!(with(copy * less) <= with(copy) + 1e-9);
        }
    }
}
