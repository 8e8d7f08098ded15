//! The page table of a state: which of its pages were ever written, how far it is in use,
//! and where they are kept while they are not in the arena.

use std::ops::Range;
use std::sync::Arc;

use super::engine::{Source, Target};
use super::memory::HostMemory;
use super::storage::StoreFile;

/// Where states that are streamed live.
#[derive(Clone, Debug)]
pub enum Store {
    /// In host memory.
    Memory(Arc<HostMemory>),
    /// In a file, from this offset on.
    File(Arc<StoreFile>, u64),
}

impl Store {
    /// The bytes from `start` on, as a source.
    pub fn source(&self, start: usize) -> Source {
        match self {
            Self::Memory(memory) => Source::Memory {
                memory: Arc::clone(memory),
                offset: start,
            },
            Self::File(file, base) => Source::File {
                file: Arc::clone(file),
                offset: base + start as u64,
            },
        }
    }

    /// The bytes from `start` on, as a target.
    pub fn target(&self, start: usize) -> Target {
        match self {
            Self::Memory(memory) => Target::Memory {
                memory: Arc::clone(memory),
                offset: start,
            },
            Self::File(file, base) => Target::File {
                file: Arc::clone(file),
                offset: base + start as u64,
            },
        }
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct State {
    bytes: usize,
    page_bytes: usize,
    // By page: whether anything was ever written to it. The others are zero.
    written: Vec<bool>,
    pages_in_use: usize,
    // Those that the plan in effect knows of.
    pages_agreed: usize,
    /// Where it is kept while it is streamed.
    pub store: Option<Store>,
    /// Why it cannot leave the arena.
    pub stuck: Option<String>,
    /// Whether it takes all of its memory at once, where others grow: there are no addresses
    /// for it.
    pub whole: bool,
}

impl State {
    /// A state of `bytes` bytes, all zero, in pages of `page_bytes`.
    pub fn new(bytes: usize, page_bytes: usize) -> Self {
        let page_bytes = page_bytes.clamp(1, bytes.max(1));
        Self {
            bytes,
            page_bytes,
            written: vec![false; bytes.div_ceil(page_bytes)],
            pages_in_use: 0,
            pages_agreed: 0,
            store: None,
            stuck: None,
            whole: false,
        }
    }

    /// Bytes of the pages in use: from the start to the last one that a graph touched.
    pub fn bytes_in_use(&self) -> usize {
        (self.pages_in_use * self.page_bytes).min(self.bytes)
    }

    /// Notes that bytes up to `end` are in use; whether that is more than before.
    pub fn extend(&mut self, end: usize) -> bool {
        let pages = end.min(self.bytes).div_ceil(self.page_bytes);
        let grew = pages > self.pages_in_use;
        self.pages_in_use = self.pages_in_use.max(pages);
        grew
    }

    /// Notes that a plan for the pages in use is in effect.
    pub fn agree(&mut self) {
        self.pages_agreed = self.pages_in_use;
    }

    /// Goes back to the pages for which there was a plan.
    pub fn retract(&mut self) {
        self.pages_in_use = self.pages_agreed;
    }

    /// Forgets all pages: they are zero, and not in use.
    pub fn clear(&mut self) {
        self.written.fill(false);
        self.pages_in_use = 0;
        self.pages_agreed = 0;
    }

    /// `range`, made of whole pages.
    pub fn pages_around(&self, range: &Range<usize>) -> Range<usize> {
        let pages = self.page_numbers(range);
        pages.start * self.page_bytes..(pages.end * self.page_bytes).min(self.bytes)
    }

    fn page_numbers(&self, range: &Range<usize>) -> Range<usize> {
        let end = range.end.min(self.bytes).div_ceil(self.page_bytes);
        (range.start / self.page_bytes).min(end)..end
    }

    /// Notes that a range was written.
    pub fn mark_written(&mut self, range: &Range<usize>) {
        if !range.is_empty() {
            let pages = self.page_numbers(range);
            self.written[pages].fill(true);
        }
    }

    /// Whether anything in `range` was ever written.
    pub fn is_written(&self, range: &Range<usize>) -> bool {
        let pages = self.page_numbers(range);
        self.written[pages].contains(&true)
    }

    /// How many pages were ever written.
    pub fn pages_written(&self) -> u64 {
        self.written.iter().filter(|written| **written).count() as u64
    }

    /// `range`, made of whole pages, in runs of pages that were written or were not.
    pub fn runs(&self, range: &Range<usize>) -> impl Iterator<Item = (bool, Range<usize>)> {
        let pages = self.page_numbers(range);
        let mut start = pages.start;
        let runs = self.written[pages].chunk_by(|a, b| a == b);
        runs.map(move |run| {
            let first = start;
            start += run.len();
            let bytes = first * self.page_bytes..(start * self.page_bytes).min(self.bytes);
            (run[0], bytes)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_in_use_from_the_start_and_written_one_by_one() {
        let mut state = State::new(1000, 300);
        assert!(state.extend(700));
        state.retract();
        assert!(state.extend(301) && !state.extend(10));
        assert_eq!(state.bytes_in_use(), 600);
        state.mark_written(&(310..311));
        assert_eq!(state.pages_written(), 1);
        assert!(state.is_written(&(0..601)) && !state.is_written(&(600..1000)));
        let runs: Vec<_> = state.runs(&(10..1000)).collect();
        assert_eq!(
            runs,
            [(false, 0..300), (true, 300..600), (false, 600..1000)]
        );
        assert_eq!(state.pages_around(&(700..950)), 600..1000);
        assert!(state.extend(usize::MAX));
        assert_eq!(state.bytes_in_use(), 1000);
        state.clear();
        assert_eq!((state.bytes_in_use(), state.pages_written()), (0, 0));
    }

    #[test]
    fn a_page_is_never_larger_than_the_state() {
        let mut state = State::new(100, 4096);
        assert!(state.extend(1));
        assert_eq!(state.bytes_in_use(), 100);
    }
}
