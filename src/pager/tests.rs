#![allow(
    unsafe_code,
    reason = "plays the inner backend, which reads and writes by address"
)]
//! The pager against an oracle that keeps everything: random budgets, page sizes, delays,
//! changes of the budget and accesses from outside between passes; each byte that a
//! segment sees must be the oracle's.

pub(super) mod trial;

use std::io::Write;
use std::sync::Arc;

use proptest::prelude::*;

use super::block::Arena;
use super::engine_host::{Faults, HostEngine};
use super::storage::{Access, StoreFile};
use super::*;
use crate::device::schedule::{Nodes, Schedule, Shape, Use};
use crate::error::Result;

const LAYERS: usize = 5;
const WEIGHTS: [usize; 2] = [700, 300];
const LAYER_WEIGHT_BYTES: usize = 1000;
const ROW_BYTES: usize = 16;
const ROWS: usize = 40;
const STATE_BYTES: usize = ROWS * ROW_BYTES;

/// What a stage is set up with.
#[derive(Clone, Debug)]
struct Setup {
    budget_bytes: u64,
    page_rows: usize,
    look_ahead: LookAhead,
    spill: bool,
    faults: Faults,
}

impl Setup {
    fn new(budget_bytes: u64) -> Self {
        Self {
            budget_bytes,
            page_rows: 4,
            look_ahead: LookAhead::Layers(1),
            spill: true,
            faults: Faults::default(),
        }
    }
}

/// A pager over weights in a file and states, and what they should hold.
struct Stage {
    pager: Pager,
    schedule: Schedule,
    // By layer: two weights, two states.
    weights: Vec<TensorId>,
    states: Vec<TensorId>,
    file: Vec<u8>,
    oracle: Vec<Vec<u8>>,
    _folder: tempfile::TempDir,
}

impl Stage {
    fn new(setup: &Setup) -> Result<Self> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        let bytes: Vec<u8> = (0..LAYERS * LAYER_WEIGHT_BYTES)
            .map(|index| u8::try_from(index * 7 % 251).unwrap())
            .collect();
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(&bytes).unwrap();
        let file = Arc::new(StoreFile::open(&path, Access::Cached).unwrap());
        let config = PagerConfig {
            budget_bytes: setup.budget_bytes,
            look_ahead: setup.look_ahead,
            states_in: match setup.spill {
                true => StatesIn::Folder(folder.path().to_owned()),
                false => StatesIn::Memory,
            },
            poison: true,
            states_follow: true,
            ..PagerConfig::of_test(Arena::Host)
        };
        let engine = HostEngine::new(1, setup.faults).unwrap();
        let mut pager = Pager::new(config, Box::new(engine));
        let weights = pager.add_tensors(weight_specs(&file))?;
        for (index, id) in weights.iter().enumerate() {
            let place = weight_place(index);
            pager.write(*id, 0, &bytes[place])?;
        }
        let page_bytes = setup.page_rows * ROW_BYTES;
        let states = (0..2 * LAYERS)
            .map(|index| {
                let role = ["cache_k", "cache_v"][index % 2];
                spec(index / 2, role, STATE_BYTES, Backing::State { page_bytes })
            })
            .collect();
        let states = pager.add_tensors(states)?;
        Ok(Self {
            pager,
            schedule: Schedule::default(),
            weights,
            states,
            file: bytes,
            oracle: vec![vec![0; STATE_BYTES]; 2 * LAYERS],
            _folder: folder,
        })
    }

    /// One pass: each layer reads a weight, writes a row of its states and reads them up to
    /// `rows`, reads the other weight.
    fn pass(&mut self, seed: usize, rows: usize, prefetch: bool) -> Result<()> {
        self.pager.check_states()?;
        let row = |index: usize| (seed + index * 3) % rows;
        let states: Vec<TensorId> = self.states.clone();
        for id in &states {
            self.pager.note_use(*id, rows * ROW_BYTES);
        }
        self.pager.settle()?;
        for (index, id) in states.into_iter().enumerate() {
            if !self.pager.is_streamed(id) {
                self.pager.note_written(id, &row_range(row(index)));
            }
        }
        let uses = self.uses(rows, row);
        let (ring_bytes, segment_bytes) = self.pager.ring_shape();
        let shape = Shape {
            ring_bytes,
            segment_bytes,
            ..Shape::default()
        };
        let pager = &self.pager;
        let bytes_of = |id, range: &Range<usize>| pager.ring_bytes_of(id, range);
        let graph = Nodes {
            count: 4 * LAYERS,
            uses: &uses,
            hosts: &[],
        };
        let mut schedule = std::mem::take(&mut self.schedule);
        schedule
            .rebuild(graph, shape, bytes_of, |_| false)
            .expect("the ring holds what one node needs");
        let outcome = self.run(&schedule, seed, rows, prefetch, row);
        self.schedule = schedule;
        self.pager.unpin();
        outcome
    }

    fn run(
        &mut self,
        schedule: &Schedule,
        seed: usize,
        rows: usize,
        prefetch: bool,
        row: impl Fn(usize) -> usize,
    ) -> Result<()> {
        for segment in schedule.segments() {
            self.pager.require(schedule.needs(segment))?;
            if prefetch {
                self.pager.prefetch(schedule.upcoming(segment))?;
            }
            self.pager.wait_ready(schedule.writes(segment))?;
            for node in segment.nodes.clone() {
                let (layer, step) = (node / 4, node % 4);
                match step {
                    0 => self.check_weight(2 * layer),
                    3 => self.check_weight(2 * layer + 1),
                    _ => {
                        let index = 2 * layer + step - 1;
                        self.use_state(index, rows, row(index), seed);
                    }
                }
            }
            self.pager.write_back(schedule.writes(segment))?;
            self.pager.unpin();
        }
        Ok(())
    }

    /// The uses of streamed tensors.
    fn uses(&self, rows: usize, row: impl Fn(usize) -> usize) -> Vec<Use> {
        let mut uses = Vec::new();
        for node in 0..4 * LAYERS {
            let (layer, step) = (node / 4, node % 4);
            let (id, range, written) = match step {
                0 => (self.weights[2 * layer], 0..WEIGHTS[0], None),
                3 => (self.weights[2 * layer + 1], 0..WEIGHTS[1], None),
                _ => {
                    let index = 2 * layer + step - 1;
                    let written = row_range(row(index));
                    (self.states[index], 0..rows * ROW_BYTES, Some(written))
                }
            };
            if self.pager.is_streamed(id) {
                uses.push(Use {
                    node,
                    tensor: id,
                    range: self.pager.unit_of_transfer(id, &range),
                    state: self.pager.state_group(id),
                    written,
                    cache: None,
                });
            }
        }
        uses
    }

    fn check_weight(&self, index: usize) {
        let place = weight_place(index);
        let found = self.bytes_at(self.weights[index], 0..place.len());
        assert!(found == &self.file[place], "weight {index}");
    }

    fn use_state(&mut self, index: usize, rows: usize, row: usize, seed: usize) {
        let id = self.states[index];
        let found = self.bytes_at(id, 0..rows * ROW_BYTES);
        assert_eq!(
            found,
            &self.oracle[index][..rows * ROW_BYTES],
            "state {index}"
        );
        let (address, _) = self.pager.locate(id);
        for byte in row_range(row) {
            let value = u8::try_from((seed + byte) % 256).unwrap();
            self.oracle[index][byte] = value;
            // SAFETY: the state is in the ring, pinned, or resident.
            unsafe { (address.wrapping_add(byte) as *mut u8).write(value) };
        }
    }

    fn bytes_at(&self, id: TensorId, range: Range<usize>) -> &[u8] {
        let (address, _) = self.pager.locate(id);
        let start = address.wrapping_add(range.start) as *const u8;
        // SAFETY: the tensor is in the ring, pinned and waited for, or resident.
        unsafe { std::slice::from_raw_parts(start, range.len()) }
    }

    /// What llama.cpp does between graphs: sets, clears and reads states.
    fn outside(&mut self, seed: usize) -> Result<()> {
        let index = seed % (2 * LAYERS);
        let id = self.states[index];
        let at = (seed * 5) % (STATE_BYTES - 40);
        match seed % 5 {
            0 => {
                let bytes = [u8::try_from(seed % 251).unwrap(); 40];
                self.pager.write(id, at, &bytes)?;
                self.oracle[index][at..at + 40].copy_from_slice(&bytes);
            }
            1 => {
                self.pager.fill(id, at..at + 40, 9)?;
                self.oracle[index][at..at + 40].fill(9);
            }
            2 => {
                self.pager.clear(id, 0)?;
                self.oracle[index].fill(0);
            }
            3 => {
                self.pager.fill(id, at..at + 40, 0)?;
                self.oracle[index][at..at + 40].fill(0);
            }
            _ => {}
        }
        for (id, expected) in self.states.iter().zip(&self.oracle) {
            let mut bytes = vec![1; STATE_BYTES];
            self.pager.read(*id, 0, &mut bytes)?;
            assert!(&bytes == expected, "{id:?}");
        }
        Ok(())
    }

    /// No page is counted twice or lost, and the budget is kept.
    fn check_usage(&self) {
        let usage = self.pager.usage();
        assert!(usage.arena_bytes <= usage.budget_bytes, "{usage:?}");
        let states = self.pager.tensors.iter().flatten();
        let pages: u64 = states
            .filter_map(|tensor| tensor.state.as_ref())
            .map(State::pages_written)
            .sum();
        assert_eq!(usage.kv_pages.resident + usage.kv_pages.stored, pages);
        let weights = usage.resident_weight_bytes + usage.streamed_weight_bytes;
        assert_eq!(weights, (LAYERS * LAYER_WEIGHT_BYTES) as u64);
    }
}

fn weight_specs(file: &Arc<StoreFile>) -> Vec<TensorSpec> {
    let weight = |index: usize| {
        let place = weight_place(index);
        let location = TensorLocation {
            file: Arc::clone(file),
            offset: place.start as u64,
            bytes: place.len() as u64,
        };
        let role = ["ffn_up.weight", "ffn_down.weight"][index % 2];
        spec(index / 2, role, place.len(), Backing::Weight(location))
    };
    (0..2 * LAYERS).map(weight).collect()
}

/// Where a weight lies in the file.
fn weight_place(index: usize) -> Range<usize> {
    let start = index / 2 * LAYER_WEIGHT_BYTES + index % 2 * WEIGHTS[0];
    start..start + WEIGHTS[index % 2]
}

fn row_range(row: usize) -> Range<usize> {
    row * ROW_BYTES..(row + 1) * ROW_BYTES
}

fn spec(layer: usize, role: &str, bytes: usize, backing: Backing) -> TensorSpec {
    TensorSpec {
        group: GroupKey::Layer(u32::try_from(layer).unwrap()),
        role: role.to_owned(),
        bytes,
        span_bytes: bytes,
        read_behind_bytes: 0,
        slice_bytes: None,
        backing,
    }
}

/// Bytes that everything takes in the arena, give or take alignment.
const TOTAL_BYTES: u64 = (LAYERS * (LAYER_WEIGHT_BYTES + 2 * STATE_BYTES)) as u64;
/// Enough for any plan of these tensors: the largest ring, and nothing resident.
const LEAST_BYTES: u64 = 2 * STATE_BYTES as u64 + 1000;

#[derive(Clone, Debug)]
enum Act {
    Pass { seed: usize, rows: usize },
    Outside(usize),
    Budget(u64),
    Scratch(u64),
}

fn acts() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0usize..1000, 1..=ROWS).prop_map(|(seed, rows)| Act::Pass { seed, rows }),
        2 => (0usize..1000).prop_map(Act::Outside),
        2 => (LEAST_BYTES..TOTAL_BYTES * 5 / 4).prop_map(Act::Budget),
        1 => (0u64..300).prop_map(Act::Scratch),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_byte_is_the_oracles(
        budget in LEAST_BYTES..TOTAL_BYTES * 5 / 4,
        acts in prop::collection::vec(acts(), 1..16),
        delay_seed in 0u64..1000,
        page_rows in prop_oneof![Just(1usize), Just(3), Just(8), Just(100)],
        look_ahead in prop_oneof![
            Just(LookAhead::Nothing), Just(LookAhead::Layers(1)), Just(LookAhead::Layers(2))],
        spill in prop::bool::ANY,
    ) {
        let faults =
            Faults { delay_seed: Some(delay_seed), delay_us_max: 60, ..Faults::default() };
        let setup = Setup { budget_bytes: budget, page_rows, look_ahead, spill, faults };
        let mut stage = Stage::new(&setup).unwrap();
        let prefetch = look_ahead != LookAhead::Nothing;
        for act in acts {
            // A budget may turn out too small for what is in use; nothing breaks then.
            let outcome = match act {
                Act::Pass { seed, rows } => stage.pass(seed, rows, prefetch),
                Act::Outside(seed) => stage.outside(seed),
                Act::Budget(bytes) => stage.pager.set_budget(bytes, false),
                Act::Scratch(bytes) => stage.pager.set_outside(bytes),
            };
            match outcome {
                Ok(()) => stage.check_usage(),
                Err(error) => {
                    prop_assert_eq!(error.exit_code(), 4, "{}", error);
                    stage.pager.set_budget(2 * TOTAL_BYTES, false).unwrap();
                }
            }
        }
        stage.outside(4).unwrap();
    }
}

#[test]
fn a_budget_below_the_minimum_names_it() {
    let refused = Stage::new(&Setup::new(700)).err().unwrap();
    assert_eq!(refused.exit_code(), 4);
    let sentence = refused.to_string();
    assert!(
        sentence.contains("minimum") && sentence.contains("--vram-budget"),
        "{sentence}"
    );
}

#[test]
fn each_pass_moves_what_is_streamed_and_writes_back_the_rows() {
    let mut stage = Stage::new(&Setup::new(LEAST_BYTES)).unwrap();
    let rows = 24;
    stage.pass(0, rows, false).unwrap();
    stage.pass(1, rows, false).unwrap();
    stage.pager.drain().unwrap();
    let usage = stage.pager.usage();
    assert!(
        usage.streamed_weight_bytes > 0 && usage.streamed_state_bytes > 0,
        "{usage:?}"
    );
    stage.pager.start_counting();
    stage.pass(2, rows, false).unwrap();
    stage.pager.drain().unwrap();
    let moved = stage.pager.usage().traffic;
    let streamed = stage
        .states
        .iter()
        .filter(|id| stage.pager.is_streamed(**id));
    assert_eq!(
        moved.write_back_bytes,
        (streamed.count() * ROW_BYTES) as u64
    );
    let most = usage.streamed_weight_bytes + usage.streamed_state_bytes;
    assert!(moved.storage_bytes <= most, "{moved:?} of {usage:?}");
    assert!(
        moved.storage_bytes + usage.ring_bytes >= most / 2,
        "{moved:?} of {usage:?}"
    );
}

#[test]
fn memory_is_taken_as_the_context_grows() {
    let mut stage = Stage::new(&Setup::new(2 * TOTAL_BYTES)).unwrap();
    stage.pass(0, 3, true).unwrap();
    // One page of four rows in each of the states.
    let page_bytes = 4 * ROW_BYTES;
    let usage = stage.pager.usage();
    assert_eq!(usage.resident_state_bytes, (2 * LAYERS * page_bytes) as u64);
    stage.pass(0, 17, true).unwrap();
    let usage = stage.pager.usage();
    assert_eq!(
        usage.resident_state_bytes,
        (2 * LAYERS * 5 * page_bytes) as u64
    );
    for id in stage.states.clone() {
        stage.pager.clear(id, 0).unwrap();
    }
    assert_eq!(stage.pager.usage().resident_state_bytes, 0);
}

#[test]
fn weights_make_room_for_a_cache_that_grows() {
    let mut stage = Stage::new(&Setup::new(TOTAL_BYTES * 3 / 5)).unwrap();
    stage.pass(0, 1, true).unwrap();
    let before = stage.pager.usage();
    stage.pass(1, 30, true).unwrap();
    let after = stage.pager.usage();
    assert!(after.streamed_weight_bytes > before.streamed_weight_bytes);
    let evicted = stage
        .pager
        .take_moves()
        .into_iter()
        .filter(|moved| moved.evicted);
    assert!(evicted.count() > 0);
    stage.check_usage();
}

#[test]
fn a_cache_that_grows_takes_back_what_pressure_had_taken() {
    let mut stage = Stage::new(&Setup::new(2 * TOTAL_BYTES)).unwrap();
    stage.pass(0, 1, true).unwrap();
    // The smallest budget for one row; for all of them, a layer's states alone take more.
    let least = stage.pager.usage().minimum_bytes;
    stage.pager.set_budget(least, true).unwrap();
    stage.pass(1, ROWS, true).unwrap();
    let usage = stage.pager.usage();
    assert!(usage.budget_bytes > least, "{usage:?}");
    stage.check_usage();
    stage.outside(4).unwrap();
}

#[test]
fn a_growth_that_is_refused_is_forgotten() {
    let mut stage = Stage::new(&Setup::new(2 * TOTAL_BYTES)).unwrap();
    stage.pass(0, 1, true).unwrap();
    let least = stage.pager.usage().minimum_bytes;
    stage.pager.set_budget(least, false).unwrap();
    let refused = stage.pass(1, ROWS, true).unwrap_err();
    assert_eq!(refused.exit_code(), 4, "{refused}");
    stage.outside(4).unwrap();
    stage.pass(2, 1, true).unwrap();
    stage.check_usage();
}

#[test]
fn a_plan_exceeds_the_budget_by_what_the_driver_took_and_no_more() {
    let mut stage = Stage::new(&Setup::new(2 * TOTAL_BYTES)).unwrap();
    stage.pass(0, 1, true).unwrap();
    let least = stage.pager.usage().minimum_bytes;
    let allowed = least + 200;
    stage.pager.set_budget(allowed, false).unwrap();
    stage.pager.set_budget(least, true).unwrap();
    let driver = |bytes| DriverPart {
        bytes,
        ..DriverPart::default()
    };
    // What pressure has taken of the budget is taken back first.
    stage.pager.set_driver(driver(200)).unwrap();
    let usage = stage.pager.usage();
    assert!(usage.arena_bytes <= usage.budget_bytes, "{usage:?}");
    assert!(usage.budget_bytes <= allowed, "{usage:?}");
    stage.pager.set_driver(driver(5000)).unwrap();
    let usage = stage.pager.usage();
    let most = stage.pager.least_bytes();
    assert_eq!((usage.budget_bytes, usage.arena_bytes), (allowed, most));
    stage.pass(1, 1, true).unwrap();
    let refused = stage.pass(1, ROWS, true).unwrap_err();
    assert_eq!(refused.exit_code(), 4, "{refused}");
    // Who asks for too little hears so, and what was granted stays.
    stage.pager.set_budget(most - 1, false).unwrap_err();
    stage.pass(2, 1, true).unwrap();
    stage.pager.set_budget(most, false).unwrap();
    stage.pass(2, 1, true).unwrap();
}

#[test]
fn what_is_guessed_of_the_driver_yields_and_its_reserve_first() {
    let mut stage = Stage::new(&Setup::new(2 * TOTAL_BYTES)).unwrap();
    stage.pass(0, 1, true).unwrap();
    stage.pager.expect_driver(DriverPart {
        bytes: 100,
        guessed_bytes: 2 * TOTAL_BYTES,
        reserve_bytes: 300,
    });
    stage.pass(0, 1, true).unwrap();
    let usage = stage.pager.usage();
    assert_eq!(usage.arena_bytes, usage.budget_bytes);
    assert_eq!(usage.driver_bytes, 100 + usage.guessed_bytes);
    assert!(usage.guessed_bytes > TOTAL_BYTES, "{usage:?}");
    assert_eq!(usage.reserve_bytes, 0);
    let least = stage.pager.least_bytes();
    stage.pager.set_budget(least, false).unwrap();
    let usage = stage.pager.usage();
    assert_eq!((usage.driver_bytes, usage.guessed_bytes), (100, 0));
    stage.pager.set_budget(least - 1, false).unwrap_err();
}

#[test]
fn a_failed_copy_is_a_sentence_and_the_next_pass_is_right() {
    for request in 0..60 {
        let faults = Faults {
            fail_request: Some(request),
            ..Faults::default()
        };
        let setup = Setup {
            faults,
            ..Setup::new(LEAST_BYTES + 500)
        };
        let mut stage = Stage::new(&setup).unwrap();
        let outcome = (0..4).try_for_each(|seed| stage.pass(seed, 20, true));
        let Err(error) = outcome else { continue };
        assert_eq!(error.exit_code(), 1, "{error}");
        if stage.pager.check_states().is_ok() {
            // A fetch failed: nothing is lost but the pass.
            stage.outside(4).unwrap();
            stage.pass(5, 20, true).unwrap();
        } else {
            assert!(
                stage.pass(5, 20, true).is_err(),
                "lost states are never used"
            );
        }
    }
}

#[test]
fn a_spill_folder_that_cannot_be_written_keeps_the_cache_in_the_arena() {
    let mut stage = Stage::new(&Setup::new(2 * TOTAL_BYTES)).unwrap();
    stage.pass(0, 30, true).unwrap();
    stage.pager.config.states_in = StatesIn::Folder("/nowhere/at/all".into());
    let states = (2 * LAYERS * 32 * ROW_BYTES) as u64;
    // Weights give way, as far as they can.
    stage.pager.set_budget(states + 2000, false).unwrap();
    assert_eq!(stage.pager.usage().streamed_state_bytes, 0);
    let refused = stage.pager.set_budget(states / 2, false).unwrap_err();
    assert_eq!(refused.exit_code(), 4);
    assert!(refused.to_string().contains("--spill-dir"), "{refused}");
    stage.pass(1, 30, true).unwrap();
    stage.check_usage();
}

#[test]
fn the_share_that_is_told_is_the_one_that_is_done() {
    let mut stage = Stage::new(&Setup::new(LEAST_BYTES)).unwrap();
    let pager = &mut stage.pager;
    assert_eq!(pager.host_share(), None);
    let room = Arc::new(room::Room::new(1 << 20));
    pager.keep_copies(CopyMemory {
        room: Arc::clone(&room),
        pinning: None,
    });
    // All layers have some that the processor can compute with; one may lack a small one.
    let (all, layers) = pager.copyable();
    assert_eq!(layers as usize, LAYERS);
    assert_eq!(pager.host_share(), Some(1.0));
    let done = |pager: &Pager| (pager.host_share().unwrap() * all as f64).round();
    // The unit is a layer.
    pager.set_host_share(0.5);
    let sizes = [1700.0, 2000.0, 2700.0, 3000.0];
    assert!(sizes.contains(&done(pager)), "{}", done(pager));
    // What others keep leaves room for two.
    let _kept = room.take((1 << 20) - 2100).unwrap();
    pager.set_host_share(1.0);
    assert!(sizes[..2].contains(&done(pager)), "{}", done(pager));
    assert_eq!(pager.host_layers().len(), 2);
}

#[test]
fn nobody_can_read_the_addresses_that_llama_cpp_knows() {
    let reservation = memory::Reservation::new(10_000).unwrap();
    let region = region::query(reservation.base() as *const u8).unwrap();
    assert_eq!(region.protection(), region::Protection::NONE);
}
