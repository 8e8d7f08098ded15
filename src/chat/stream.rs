//! Bytes of an answer as they come: what may be shown of them yet, and where they stop.

/// The bytes so far, and the texts that end them.
#[derive(Debug, Default)]
pub(super) struct Stream {
    bytes: Vec<u8>,
    stops: Vec<Vec<u8>>,
    stopped: bool,
}

impl Stream {
    /// Nothing yet; any of `stops` will end it.
    pub fn new(stops: Vec<Vec<u8>>) -> Self {
        Self {
            stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(),
            ..Self::default()
        }
    }

    /// Takes what comes next; whether a text that ends the answer is complete. It and what
    /// follows it are dropped.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        let before = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        let first = self.stops.iter().filter_map(|stop| {
            let from = before.saturating_sub(stop.len() - 1);
            let mut windows = self.bytes[from..].windows(stop.len());
            windows
                .position(|window| window == stop)
                .map(|at| from + at)
        });
        if let Some(at) = first.min() {
            self.bytes.truncate(at);
            self.stopped = true;
        }
        self.stopped
    }

    /// The text that no later byte can change: without the beginning of a text that would
    /// end it, and without a part of a character.
    pub fn settled(&self) -> String {
        if self.stopped {
            return self.all();
        }
        let held = self
            .stops
            .iter()
            .map(|stop| overlap(&self.bytes, stop))
            .max();
        let end = self.bytes.len() - held.unwrap_or(0);
        let end = end - partial_character(&self.bytes[..end]);
        String::from_utf8_lossy(&self.bytes[..end]).into_owned()
    }

    /// All of it; what is no UTF-8 is replaced.
    pub fn all(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// How many bytes at the end of `bytes` may become `stop`.
fn overlap(bytes: &[u8], stop: &[u8]) -> usize {
    let most = bytes.len().min(stop.len() - 1);
    let fits = |count: &usize| bytes.ends_with(&stop[..*count]);
    (1..=most).rev().find(fits).unwrap_or(0)
}

/// How many bytes at the end are the beginning of a character.
fn partial_character(bytes: &[u8]) -> usize {
    let tail = &bytes[bytes.len().saturating_sub(3)..];
    let starts = (0..tail.len()).rev();
    for at in starts {
        let needed = match tail[at] {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            0x80..=0xbf => continue,
            _ => return 0,
        };
        let have = tail.len() - at;
        let incomplete = std::str::from_utf8(&tail[at..])
            .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none());
        return if have < needed && incomplete { have } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream(stops: &[&str]) -> Stream {
        Stream::new(stops.iter().map(|stop| stop.as_bytes().to_vec()).collect())
    }

    #[test]
    fn half_a_character_is_held() {
        let mut all = stream(&[]);
        let text = "aé€😀b";
        for (index, byte) in text.bytes().enumerate() {
            all.push(&[byte]);
            let settled = all.settled();
            assert!(text.starts_with(&settled), "{settled:?}");
            assert_eq!(settled.len() == index + 1, text.is_char_boundary(index + 1));
        }
        // What can never become a character is not waited for.
        let mut broken = stream(&[]);
        broken.push(b"a\xff");
        assert_eq!(broken.settled(), "a\u{fffd}");
        broken.push(b"\xe2\x28");
        assert_eq!(broken.settled(), "a\u{fffd}\u{fffd}(");
    }

    #[test]
    fn a_stop_is_not_shown_nor_its_beginning() {
        let mut text = stream(&["User:", "<end>"]);
        assert!(!text.push(b"Hi <e"));
        assert_eq!(text.settled(), "Hi ");
        assert!(!text.push(b"m> Us"));
        assert_eq!(text.settled(), "Hi <em> ");
        assert!(text.push(b"er: and more"));
        assert_eq!(text.settled(), "Hi <em> ");
        assert_eq!(text.all(), "Hi <em> ");
    }

    #[test]
    fn the_first_of_two_stops_counts() {
        let mut text = stream(&["b", "abc", ""]);
        assert!(text.push(b"xabc"));
        assert_eq!(text.all(), "x");
    }

    proptest! {
        #[test]
        fn what_was_shown_stays(parts in prop::collection::vec("[ab<>é]{0,3}", 0..20)) {
            let mut text = stream(&["<a>", "bb<"]);
            let mut shown = String::new();
            for part in parts {
                let stopped = text.push(part.as_bytes());
                let settled = text.settled();
                prop_assert!(settled.starts_with(&shown), "{shown:?} {settled:?}");
                prop_assert!(!settled.contains("<a>") && !settled.contains("bb<"));
                shown = settled;
                if stopped {
                    break;
                }
            }
        }
    }
}
