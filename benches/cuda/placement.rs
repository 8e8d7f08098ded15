//! How stock llama.cpp divides a model between the GPU and the processor, and the search for
//! the division that leaves as little on the processor as a bound on memory allows.

use super::model::Made;

/// What stays with the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The first layers, whole (`-ngl`).
    Layers,
    /// The feed-forward matrices of the first layers, as `--n-cpu-ffn` does it.
    FeedForward,
    /// The first layers, whole, and all of the KV cache with its attention (`-nkvo`).
    LayersWithoutKv,
}

impl Kind {
    /// The most that can be given to the GPU.
    pub fn most(self, model: &Made) -> u64 {
        match self {
            // The output counts as a layer.
            Self::Layers | Self::LayersWithoutKv => u64::from(model.layers) + 1,
            Self::FeedForward => u64::from(model.layers),
        }
    }

    /// Flags that give the GPU `count` of them.
    pub fn flags(self, model: &Made, count: u64) -> Vec<String> {
        let cold = self.most(model).saturating_sub(count);
        match self {
            Self::Layers => ["-ngl", &count.to_string()].map(str::to_owned).into(),
            Self::LayersWithoutKv => {
                let flags = ["-ngl", &count.to_string(), "-nkvo", "1"];
                flags.map(str::to_owned).into()
            }
            Self::FeedForward => {
                let mut flags = ["-ngl", "99"].map(str::to_owned).to_vec();
                if cold > 0 {
                    let numbers: Vec<String> = (0..cold).map(|layer| layer.to_string()).collect();
                    let blocks = numbers.join("|");
                    flags.push("-ot".to_owned());
                    flags.push(format!("blk\\.({blocks})\\.ffn_(up|down|gate)\\.=CPU"));
                }
                flags
            }
        }
    }
}

/// A count that was tried, and the memory of the GPU that it took, in bytes.
pub type Found = (u64, u64);

/// Which count to try next of those up to `most`, so that the largest one that takes no more
/// than `limit` is found; None when it is known, by what was found or by what a step takes.
/// Counts that are `too_large` for all the memory there is bound it, and tell no sizes.
pub fn next(
    found: &[Found],
    too_large: &[u64],
    limit: u64,
    most: u64,
    step_guess: u64,
) -> Option<u64> {
    let fits = found.iter().filter(|(_, bytes)| *bytes <= limit).max();
    let over = found.iter().filter(|(_, bytes)| *bytes > limit).min();
    let least = fits.map_or(0, |(count, _)| count + 1);
    let ends = over.map(|(count, _)| *count).into_iter();
    let end = ends.chain(too_large.iter().copied()).min();
    let is_nothing_known = found.is_empty() && too_large.is_empty();
    let end = end.unwrap_or(most + 1);
    if least >= end || is_nothing_known {
        return None;
    }
    let measured = step(found);
    let step = measured.unwrap_or(step_guess).max(1);
    let target = match (fits, over) {
        (Some((count, bytes)), _) => count + (limit - bytes) / step,
        (None, Some((count, bytes))) => count.saturating_sub((bytes - limit).div_ceil(step)),
        (None, None) => end / 2,
    };
    match fits {
        // What is left is less than a step: the next one has no room.
        Some(_) if target < least && measured.is_some() => None,
        _ => Some(target.clamp(least, end - 1)),
    }
}

/// Bytes of a step, by the two outermost counts that were tried.
fn step(found: &[Found]) -> Option<u64> {
    let (first, last) = (found.iter().min()?, found.iter().max()?);
    (first.0 < last.0).then(|| last.1.saturating_sub(first.1) / (last.0 - first.0))
}

/// The search on memory that grows by the step: it ends at the largest count that fits.
pub fn check_arithmetic() {
    let (base, most) = (700_u64, 33);
    for step in [90_u64, 130, 170] {
        for limit in (500..7000).step_by(61) {
            let takes = |count: u64| base + count * step;
            let best = (0..=most).filter(|count| takes(*count) <= limit).max();
            for start in [0, 7, 33] {
                let mut found = vec![(start, takes(start))];
                while let Some(count) = next(&found, &[], limit, most, 130) {
                    assert!(found.iter().all(|(other, _)| *other != count));
                    found.push((count, takes(count)));
                }
                let fitting = found.iter().filter(|(_, bytes)| *bytes <= limit).max();
                assert_eq!(
                    fitting.map(|(count, _)| *count),
                    best,
                    "{step} {limit} {start}"
                );
                assert!(found.len() <= 4, "{found:?}");
            }
        }
    }
    // All the memory there is may be less than the limit, or than the first guess.
    for room in (800..5000).step_by(97) {
        let takes = |count: u64| base + count * 130;
        let best = (0..=most).filter(|count| takes(*count) <= room).max();
        let (mut found, mut too_large) = (Vec::new(), vec![33]);
        while let Some(count) = next(&found, &too_large, 6000, most, 90) {
            assert!(found.len() + too_large.len() < 40);
            match takes(count) <= room {
                true => found.push((count, takes(count))),
                false => too_large.push(count),
            }
        }
        assert_eq!(found.iter().max().map(|(count, _)| *count), best);
    }
    // What had no room is no size: a step is still what was measured.
    assert_eq!(
        next(&[(10, 2000), (12, 2260)], &[30], 4000, 33, 1),
        Some(25)
    );
    assert_eq!(next(&[], &[], 4000, 33, 130), None);
}
