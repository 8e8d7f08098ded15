//! Which copies may be done now: a window of those that are not done yet, each with the
//! number of earlier ones it has to wait for.
//!
//! ```text
//!  admitted ──► waits (blockers > 0) ──► ready ──► running ──► removed
//!          └──────── (blockers = 0) ──────┘
//! ```

use super::super::engine::Copy;
use super::super::storage::BLOCK_BYTES;

/// How many copies may be under way or waiting at once. What is behind them waits too.
pub const WINDOW_JOBS: usize = 256;

/// A range of bytes of a memory or a file. Two of these that live at the same time have
/// different addresses, which tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    object: usize,
    start: u64,
    end: u64,
}

impl Extent {
    fn new(object: usize, start: u64, bytes: usize) -> Self {
        Self {
            object,
            start,
            end: start.saturating_add(bytes as u64),
        }
    }

    fn with_whole_blocks(self) -> Self {
        let block = BLOCK_BYTES as u64;
        Self {
            start: self.start / block * block,
            end: self.end.checked_next_multiple_of(block).unwrap_or(u64::MAX),
            ..self
        }
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.object == other.object && self.start < other.end && other.start < self.end
    }
}

/// What a copy reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    pub reads: Option<Extent>,
    pub writes: Extent,
}

impl Footprint {
    pub fn of(copy: &Copy) -> Self {
        let extent = |(object, start)| Extent::new(object, start, copy.bytes);
        let reads = copy.from.place().map(extent);
        let writes = extent(copy.to.place());
        let writes = if copy.whole_blocks {
            writes.with_whole_blocks()
        } else {
            writes
        };
        Self { reads, writes }
    }

    /// Whether the copy reads what it writes: then it cannot be done in pieces.
    pub fn overlaps_itself(&self) -> bool {
        self.reads.is_some_and(|reads| reads.overlaps(&self.writes))
    }

    /// Whether it reads what `earlier` writes.
    pub fn reads_from(&self, earlier: &Self) -> bool {
        self.reads
            .is_some_and(|reads| reads.overlaps(&earlier.writes))
    }

    /// Whether the two have to keep their order.
    pub fn conflicts(&self, other: &Self) -> bool {
        let writes_what_is_read =
            |a: &Self, b: &Self| b.reads.is_some_and(|reads| a.writes.overlaps(&reads));
        self.writes.overlaps(&other.writes)
            || writes_what_is_read(self, other)
            || writes_what_is_read(other, self)
    }
}

/// Names a copy for as long as it is in the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobId(usize);

/// A copy that is not done yet.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// The request it belongs to.
    pub request: u64,
    /// Its place in the request.
    pub copy: usize,
    /// Pieces of it that are not done yet.
    pub pieces: usize,
    footprint: Footprint,
    // Its place in the order of admission.
    order: u64,
    blockers: u32,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Window {
    jobs: Vec<Option<Job>>,
    free: Vec<usize>,
    admitted: u64,
    // What a removal frees; kept so that it allocates nothing.
    freed: Vec<(u64, usize)>,
}

impl Window {
    pub fn is_full(&self) -> bool {
        self.free.is_empty() && self.jobs.len() == WINDOW_JOBS
    }

    /// Takes a copy in; whether it is ready at once.
    ///
    /// # Panics
    /// When the window is full.
    pub fn admit(&mut self, request: u64, copy: usize, footprint: Footprint) -> (JobId, bool) {
        assert!(!self.is_full(), "a copy was admitted to a full window");
        let others = self.jobs.iter().flatten();
        let blockers = others
            .filter(|job| job.footprint.conflicts(&footprint))
            .count();
        let index = self.free.pop().unwrap_or_else(|| {
            self.jobs.push(None);
            self.jobs.len() - 1
        });
        self.jobs[index] = Some(Job {
            request,
            copy,
            pieces: 0,
            footprint,
            order: self.admitted,
            blockers: u32::try_from(blockers).expect("the window is small"),
        });
        self.admitted += 1;
        (JobId(index), blockers == 0)
    }

    /// The copy `id`.
    ///
    /// # Panics
    /// When it is done.
    pub fn job(&mut self, id: JobId) -> &mut Job {
        self.jobs[id.0].as_mut().expect("the job is in the window")
    }

    /// Removes a copy that is done; appends to `ready` what waited for nothing else,
    /// oldest first.
    ///
    /// # Panics
    /// When it has been removed before.
    pub fn remove(&mut self, id: JobId, ready: &mut impl Extend<JobId>) -> Job {
        let done = self.jobs[id.0].take().expect("the job is in the window");
        self.free.push(id.0);
        self.freed.clear();
        for (index, job) in self.jobs.iter_mut().enumerate() {
            let Some(job) = job.as_mut().filter(|job| job.order > done.order) else {
                continue;
            };
            if job.footprint.conflicts(&done.footprint) {
                job.blockers -= 1;
                if job.blockers == 0 {
                    self.freed.push((job.order, index));
                }
            }
        }
        self.freed.sort_unstable();
        ready.extend(self.freed.iter().map(|(_, index)| JobId(*index)));
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extent() -> impl Strategy<Value = Extent> {
        (0usize..2, 0u64..100, 1usize..30)
            .prop_map(|(object, start, bytes)| Extent::new(object, start, bytes))
    }

    fn footprint() -> impl Strategy<Value = Footprint> {
        (prop::option::of(extent()), extent())
            .prop_map(|(reads, writes)| Footprint { reads, writes })
    }

    proptest! {
        #[test]
        fn a_copy_is_ready_when_no_earlier_one_conflicts(
            footprints in prop::collection::vec(footprint(), 1..40),
            picks in prop::collection::vec(0usize..100, 60),
        ) {
            let mut window = Window::default();
            // Not done, in the order of admission: what was admitted, and whether it is ready.
            let mut open: Vec<(JobId, Footprint, bool)> = Vec::new();
            let mut left = footprints.into_iter();
            for pick in picks {
                let next = if pick % 3 > 0 { left.next() } else { None };
                let candidates: Vec<usize> = (0..open.len()).filter(|&at| open[at].2).collect();
                if let Some(footprint) = next {
                    let (id, ready) = window.admit(0, 0, footprint);
                    open.push((id, footprint, ready));
                } else if !candidates.is_empty() {
                    let (id, ..) = open.remove(candidates[pick % candidates.len()]);
                    let mut ready = Vec::new();
                    window.remove(id, &mut ready);
                    let places: Vec<usize> = ready
                        .iter()
                        .map(|id| open.iter().position(|(other, ..)| other == id).unwrap())
                        .collect();
                    prop_assert!(places.is_sorted(), "not in their order: {places:?}");
                    places.into_iter().for_each(|at| open[at].2 = true);
                }
                for at in 0..open.len() {
                    let (_, footprint, ready) = open[at];
                    let blocked = open[..at].iter().any(|job| job.1.conflicts(&footprint));
                    prop_assert_eq!(ready, !blocked);
                }
            }
        }
    }

    #[test]
    fn whole_blocks_belong_to_the_destination() {
        let block = BLOCK_BYTES as u64;
        let extent = Extent::new(1, block + 1, 1).with_whole_blocks();
        assert_eq!((extent.start, extent.end), (block, 2 * block));
        let extent = Extent::new(1, block, BLOCK_BYTES).with_whole_blocks();
        assert_eq!((extent.start, extent.end), (block, 2 * block));
        assert!(!extent.overlaps(&Extent::new(1, 0, BLOCK_BYTES)));
        assert!(!extent.overlaps(&Extent::new(2, block, 1)));
    }

    #[test]
    fn a_full_window_takes_more_when_something_is_done() {
        let mut window = Window::default();
        let footprint = |start| Footprint {
            reads: None,
            writes: Extent::new(0, start, 1),
        };
        for start in 0..WINDOW_JOBS as u64 {
            assert!(!window.is_full());
            assert!(window.admit(0, 0, footprint(start)).1);
        }
        assert!(window.is_full());
        window.remove(JobId(17), &mut Vec::new());
        assert!(!window.is_full());
        assert_eq!(window.admit(0, 0, footprint(17)), (JobId(17), true));
    }
}
