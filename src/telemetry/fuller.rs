//! Two memories that are one: that of a device which has none of its own, and the machine's,
//! in which lie what streams to the device and everything else.

use super::memory::Level;
use super::pressure::Source;

/// The fuller one of two, as far as they are known.
#[derive(Debug)]
pub struct Fuller<A, B> {
    one: (A, Option<Level>),
    other: (B, Option<Level>),
}

impl<A: Source, B: Source> Fuller<A, B> {
    /// Neither was asked yet.
    pub fn new(one: A, other: B) -> Self {
        Self {
            one: (one, None),
            other: (other, None),
        }
    }
}

impl<A: Source, B: Source> Source for Fuller<A, B> {
    fn sample(&mut self) -> Option<Level> {
        let samples = [self.one.0.sample(), self.other.0.sample()];
        if samples == [None, None] {
            return None;
        }
        // They are asked at different times: what one said last holds until it says more.
        self.one.1 = samples[0].or(self.one.1);
        self.other.1 = samples[1].or(self.other.1);
        let known = [self.one.1, self.other.1].into_iter().flatten();
        known.max_by(|a, b| a.pressure().total_cmp(&b.pressure()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says these, one after the other.
    struct Said(Vec<Option<u64>>);

    impl Source for Said {
        fn sample(&mut self) -> Option<Level> {
            let used_bytes = self.0.remove(0)?;
            let total_bytes = 100;
            Some(Level {
                used_bytes,
                total_bytes,
            })
        }
    }

    #[test]
    fn the_fuller_memory_counts_whenever_either_is_asked() {
        let device = Said(vec![None, Some(90), None, None, Some(20)]);
        let machine = Said(vec![None, None, Some(40), Some(95), None]);
        let mut source = Fuller::new(device, machine);
        let mut seen = || source.sample().map(|level| level.used_bytes);
        assert_eq!(seen(), None);
        assert_eq!(seen(), Some(90));
        assert_eq!(seen(), Some(90), "the device is as full as before");
        assert_eq!(seen(), Some(95));
        assert_eq!(seen(), Some(95), "the machine is as full as before");
    }
}
