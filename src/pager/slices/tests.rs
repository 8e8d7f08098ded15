#![allow(
    unsafe_code,
    reason = "plays the inner backend, which reads by address"
)]
//! Slices in the cache against the file that they come from: random budgets, sizes that
//! share pages and blocks, delays, failures, ways of reading.

use std::io::Write;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::block::Arena;
use super::super::engine_host::{Faults, HostEngine};
use super::super::storage::{Access, StoreFile};
use super::super::{GroupKey, PagerConfig};
use super::*;

const TENSORS: usize = 4;
const SLICES: usize = 6;

#[derive(Clone, Debug)]
struct Setup {
    slice_bytes: usize,
    access: Access,
    faults: Faults,
}

struct Stage {
    pager: Pager,
    ids: Vec<TensorId>,
    bytes: Vec<u8>,
    slice_bytes: usize,
    _folder: tempfile::TempDir,
}

/// Where the tensors begin in the file: not at a block.
const START: usize = 96;

impl Stage {
    fn new(setup: &Setup) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("experts");
        let bytes: Vec<u8> = (0..START + TENSORS * SLICES * setup.slice_bytes)
            .map(|index| u8::try_from(index / 3 % 251).unwrap())
            .collect();
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(&bytes).unwrap();
        let file = Arc::new(StoreFile::open(&path, setup.access).unwrap());
        let config = PagerConfig {
            poison: true,
            alignment: match setup.access {
                Access::Cached => 64,
                Access::Direct => BLOCK_BYTES,
            },
            ..PagerConfig::of_test(Arena::Host)
        };
        let engine = HostEngine::new(2, setup.faults).unwrap();
        let mut pager = Pager::new(config, Box::new(engine));
        let tensor_bytes = SLICES * setup.slice_bytes;
        let specs = (0..TENSORS).map(|index| TensorSpec {
            group: GroupKey::Layer(u32::try_from(index / 2).unwrap()),
            role: format!("exps{}", index % 2),
            bytes: tensor_bytes,
            span_bytes: tensor_bytes,
            read_behind_bytes: 0,
            slice_bytes: Some(setup.slice_bytes),
            backing: Backing::Weight(super::super::model_index::TensorLocation {
                file: Arc::clone(&file),
                offset: (START + index * tensor_bytes) as u64,
                bytes: tensor_bytes as u64,
            }),
        });
        let ids = pager.add_tensors(specs.collect()).unwrap();
        for (index, id) in ids.iter().enumerate() {
            let start = START + index * tensor_bytes;
            let own = &bytes[start..start + tensor_bytes];
            pager.write(*id, 0, own).unwrap();
        }
        Self {
            pager,
            ids,
            bytes,
            slice_bytes: setup.slice_bytes,
            _folder: folder,
        }
    }

    /// One segment that names these slices of all tensors, or reads one as a whole, while
    /// the next tensor is fetched ahead.
    fn segment(&mut self, tensor: usize, named: Option<&[usize]>, ahead: bool) -> Result<()> {
        let outcome = self.try_segment(tensor, named, ahead);
        self.pager.unpin();
        outcome
    }

    fn try_segment(&mut self, tensor: usize, named: Option<&[usize]>, ahead: bool) -> Result<()> {
        let all = 0..SLICES * self.slice_bytes;
        let id = self.ids[tensor];
        if !self.pager.is_cached(id) {
            self.check(tensor, &(0..SLICES).collect::<Vec<_>>());
            return Ok(());
        }
        match named {
            Some(named) => {
                self.pager.begin_step();
                self.pager.want_named(id, named);
            }
            None => self.pager.want_range(id, &all),
        }
        self.pager.fetch_wanted()?;
        if ahead {
            let next = self.ids[(tensor + 1) % TENSORS];
            self.pager.prefetch_ranges([(next, &all)].into_iter())?;
        }
        self.pager.wait_ready(&[])?;
        let all: Vec<usize> = (0..SLICES).collect();
        self.check(tensor, named.unwrap_or(&all));
        let usage = self.pager.usage();
        assert!(usage.arena_bytes <= usage.budget_bytes, "{usage:?}");
        Ok(())
    }

    fn check(&self, tensor: usize, slices: &[usize]) {
        let (address, _) = self.pager.locate(self.ids[tensor]);
        for slice in slices {
            let start = slice * self.slice_bytes;
            let from = std::ptr::with_exposed_provenance::<u8>(address + start);
            // SAFETY: the slice is pinned and there; nobody writes it meanwhile.
            let found = unsafe { std::slice::from_raw_parts(from, self.slice_bytes) };
            let start = START + tensor * SLICES * self.slice_bytes + start;
            let expected = &self.bytes[start..start + self.slice_bytes];
            assert!(found == expected, "slice {slice} of tensor {tensor}");
        }
    }
}

fn minimum_and_total(setup: &Setup) -> (u64, u64) {
    let stage = Stage::new(&Setup {
        faults: Faults::default(),
        ..setup.clone()
    });
    let usage = stage.pager.usage();
    (usage.minimum_bytes, usage.arena_bytes)
}

#[test]
fn what_was_fetched_is_counted_to_the_byte() {
    for access in [Access::Cached, Access::Direct] {
        let setup = Setup {
            slice_bytes: 10_000,
            access,
            faults: Faults::default(),
        };
        let (minimum, _) = minimum_and_total(&setup);
        let mut stage = Stage::new(&setup);
        stage.pager.set_budget(minimum * 2, false).unwrap();
        stage.pager.start_counting();
        for step in 0..40 {
            let named = [step % SLICES, (step * step + 1) % SLICES];
            let mut named = named.to_vec();
            named.dedup();
            stage.segment(step % TENSORS, Some(&named), false).unwrap();
        }
        let usage = stage.pager.usage();
        assert!(
            usage.expert_hits > 0 && usage.expert_misses > 0,
            "{usage:?}"
        );
        assert_eq!(usage.traffic.storage_bytes, usage.expert_misses * 10_000);
        assert_eq!(stage.pager.missed_bytes(), usage.traffic.storage_bytes);
    }
}

#[test]
fn a_tensor_keeps_what_fits_when_the_budget_falls_and_loads_the_rest_when_it_rises() {
    let setup = Setup {
        slice_bytes: 10_000,
        access: Access::Cached,
        faults: Faults::default(),
    };
    let (minimum, total) = minimum_and_total(&setup);
    let mut stage = Stage::new(&setup);
    stage.pager.start_counting();
    stage.pager.set_budget(total - 1, false).unwrap();
    let usage = stage.pager.usage();
    // Less than two slices had to go, and nothing was read.
    let absent = usage.streamed_weight_bytes;
    assert!((10_000..=20_000).contains(&absent), "{usage:?}");
    assert_eq!(usage.traffic.storage_bytes, 0);
    stage.pager.set_budget(minimum, false).unwrap();
    assert!(stage.pager.usage().arena_bytes <= minimum);
    assert!(stage.pager.set_budget(minimum - 1, false).is_err());
    let absent = stage.pager.usage().streamed_weight_bytes;
    stage.pager.set_budget(total, false).unwrap();
    let usage = stage.pager.usage();
    assert_eq!(usage.streamed_weight_bytes, 0);
    assert_eq!(usage.traffic.storage_bytes, absent);
    assert_eq!(usage.resident_layers, usage.layers);
    for tensor in 0..TENSORS {
        stage.segment(tensor, None, false).unwrap();
    }
}

/// Whole pages inside of a slice, in bytes from the start of its memory.
fn inner_pages(layout: &Layout, index: usize) -> Range<usize> {
    let bytes = layout.bytes_of(&(index..index + 1));
    let start = (layout.lead + bytes.start).next_multiple_of(layout.page);
    start..((layout.lead + bytes.end) / layout.page * layout.page).max(start)
}

#[test]
#[cfg(target_os = "linux")]
fn absent_slices_take_no_memory_and_leave_their_neighbours_alone() {
    for access in [Access::Cached, Access::Direct] {
        let setup = Setup {
            slice_bytes: 20_000,
            access,
            faults: Faults::default(),
        };
        let (minimum, _) = minimum_and_total(&setup);
        let mut stage = Stage::new(&setup);
        stage.pager.set_budget(minimum, false).unwrap();
        let (mut absent, mut there) = (0, 0);
        for tensor in 0..TENSORS {
            let id = stage.ids[tensor];
            let layout = *stage.pager.cache.layout(id);
            let (address, _) = stage.pager.locate(id);
            for index in 0..SLICES {
                if stage.pager.cache.is_there(SliceId { tensor: id, index }) {
                    stage.check(tensor, &[index]);
                    there += 1;
                    continue;
                }
                let pages = inner_pages(&layout, index);
                let from = address - layout.lead + pages.start;
                let from = std::ptr::with_exposed_provenance::<u8>(from);
                // SAFETY: the pages are mapped for as long as the tensor is cached.
                let found = unsafe { std::slice::from_raw_parts(from, pages.len()) };
                assert!(found.len() >= 8192 && found.iter().all(|byte| *byte == 0));
                absent += 1;
            }
        }
        assert!(
            absent > there && there > 0,
            "{absent} absent, {there} there"
        );
    }
}

/// A step: tensor, slices (none: all of them), whether the next tensor is fetched ahead,
/// whether another budget comes first (in percent of the way from the least to all).
type Step = (usize, Vec<usize>, bool, Option<u64>);

fn step() -> impl Strategy<Value = Step> {
    let slices = prop::collection::btree_set(0..SLICES, 0..4);
    let slices = slices.prop_map(|set| set.into_iter().collect::<Vec<_>>());
    let budget = prop::option::weighted(0.1, 0u64..=100);
    (0..TENSORS, slices, prop::bool::ANY, budget)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn every_byte_is_the_files(
        slice_bytes in prop_oneof![Just(8192usize), 500usize..3000, 4000usize..20_000],
        direct in prop::bool::ANY,
        delays in prop::option::of(0u64..1000),
        fails in prop::option::weighted(0.2, 0u64..40),
        start in 0u64..=100,
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let setup = Setup {
            slice_bytes,
            access: if direct { Access::Direct } else { Access::Cached },
            faults: Faults {
                delay_seed: delays,
                delay_us_max: 200,
                fail_request: fails,
                ..Faults::default()
            },
        };
        let (minimum, total) = minimum_and_total(&setup);
        let budget = |percent| minimum + (total - minimum) * percent / 100;
        let mut stage = Stage::new(&setup);
        let mut failed = 0;
        let mut note = |outcome: Result<()>| failed += u32::from(outcome.is_err());
        note(stage.pager.set_budget(budget(start), false));
        for (tensor, slices, ahead, percent) in steps {
            if let Some(percent) = percent {
                note(stage.pager.set_budget(budget(percent), false));
            }
            let named = Some(slices).filter(|slices| !slices.is_empty());
            note(stage.segment(tensor, named.as_deref(), ahead));
        }
        prop_assert!(failed <= u32::from(fails.is_some()), "{failed} failures");
    }
}
