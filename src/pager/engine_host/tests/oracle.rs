//! Random requests with random faults, against a naive engine that does everything in order.

use std::path::Path;

use proptest::prelude::*;

use super::*;

const MEMORIES: usize = 2;
const MEMORY_BYTES: usize = 70_001;
const SPILL_BYTES: usize = 50_000;

/// Where bytes of a random copy are.
#[derive(Clone, Copy, Debug)]
enum Place {
    Direct,
    Cached,
    Spill,
    Memory(usize),
    Pattern(u8),
}

/// A copy, with offsets that are made to fit when the sizes are known.
#[derive(Clone, Debug)]
struct Draft {
    from: Place,
    from_offset: usize,
    to: Place,
    to_offset: usize,
    bytes: usize,
    congruent: bool,
    whole_blocks: bool,
}

fn source() -> impl Strategy<Value = Place> {
    prop_oneof![
        4 => Just(Place::Direct),
        1 => Just(Place::Cached),
        2 => Just(Place::Spill),
        3 => (0..MEMORIES).prop_map(Place::Memory),
        1 => any::<u8>().prop_map(Place::Pattern),
    ]
}

fn target() -> impl Strategy<Value = Place> {
    prop_oneof![
        4 => (0..MEMORIES).prop_map(Place::Memory),
        1 => Just(Place::Spill),
    ]
}

fn draft() -> impl Strategy<Value = Draft> {
    let bytes = prop_oneof![
        0usize..300,
        1usize..40_000,
        (1usize..8).prop_map(|blocks| blocks * BLOCK_BYTES),
    ];
    let offset = || prop_oneof![any::<usize>(), (0usize..20).prop_map(|at| at * BLOCK_BYTES)];
    (
        source(),
        offset(),
        target(),
        offset(),
        bytes,
        any::<(bool, bool)>(),
    )
        .prop_map(
            |(from, from_offset, to, to_offset, bytes, (congruent, whole_blocks))| Draft {
                from,
                from_offset,
                to,
                to_offset,
                bytes,
                congruent,
                whole_blocks,
            },
        )
}

fn requests() -> impl Strategy<Value = Vec<(bool, Vec<Draft>)>> {
    let request = (any::<bool>(), prop::collection::vec(draft(), 0..5));
    prop::collection::vec(request, 1..16)
}

/// The engine's world, and what it should hold; None: anything.
struct World {
    model: [Arc<StoreFile>; 2],
    spill: Arc<StoreFile>,
    memories: Vec<Arc<HostMemory>>,
    expected_spill: Vec<Option<u8>>,
    expected: Vec<Vec<Option<u8>>>,
    expected_bytes: [u64; 3],
    _files: Model,
}

impl World {
    fn new(place: &Path) -> Self {
        let files = Model::new(place, MODEL_BYTES);
        let spill = files.spill();
        spill.reserve(0..SPILL_BYTES as u64).unwrap();
        Self {
            model: [Access::Direct, Access::Cached].map(|access| files.open(access)),
            spill,
            memories: (0..MEMORIES).map(|_| memory(MEMORY_BYTES)).collect(),
            expected_spill: vec![Some(0); SPILL_BYTES],
            expected: vec![vec![Some(0); MEMORY_BYTES]; MEMORIES],
            expected_bytes: [0; 3],
            _files: files,
        }
    }

    fn size_of(place: Place) -> usize {
        match place {
            Place::Direct | Place::Cached => MODEL_BYTES,
            Place::Spill => SPILL_BYTES,
            Place::Memory(_) => MEMORY_BYTES,
            Place::Pattern(_) => usize::MAX,
        }
    }

    /// Makes the draft fit, does it in the expected world, and gives the copy. A copy
    /// that may fail leaves anything.
    fn copy(&mut self, direction: Direction, draft: &Draft, may_fail: bool) -> Copy {
        let bytes = draft.bytes;
        let start = draft.from_offset % (Self::size_of(draft.from) - bytes).max(1);
        let room = Self::size_of(draft.to) - bytes;
        let mut end = draft.to_offset % room.max(1);
        let same_place = end / BLOCK_BYTES * BLOCK_BYTES + start % BLOCK_BYTES;
        if draft.congruent && same_place <= room {
            end = same_place;
        }
        let from = match draft.from {
            Place::Direct => from_file(&self.model[0], start as u64),
            Place::Cached => from_file(&self.model[1], start as u64),
            Place::Spill => from_file(&self.spill, start as u64),
            Place::Memory(index) => from_memory(&self.memories[index], start),
            Place::Pattern(value) => Source::Pattern(value),
        };
        let content: Vec<Option<u8>> = match draft.from {
            _ if may_fail => vec![None; bytes],
            Place::Direct | Place::Cached => (start..start + bytes)
                .map(|at| Some(model_byte(at)))
                .collect(),
            Place::Spill => self.expected_spill[start..start + bytes].to_vec(),
            Place::Memory(index) => self.expected[index][start..start + bytes].to_vec(),
            Place::Pattern(value) => vec![Some(value); bytes],
        };
        if let Some(kind) = progress::Kind::of(direction, &from) {
            self.expected_bytes[kind as usize] += bytes as u64;
        }
        let to = match draft.to {
            Place::Memory(index) => {
                if draft.whole_blocks && bytes > 0 {
                    let first = end / BLOCK_BYTES * BLOCK_BYTES;
                    let last = (end + bytes).next_multiple_of(BLOCK_BYTES);
                    self.expected[index][first..last.min(MEMORY_BYTES)].fill(None);
                }
                self.expected[index][end..end + bytes].copy_from_slice(&content);
                in_memory(&self.memories[index], end)
            }
            _ => {
                self.expected_spill[end..end + bytes].copy_from_slice(&content);
                in_file(&self.spill, end as u64)
            }
        };
        Copy {
            from,
            to,
            bytes,
            whole_blocks: draft.whole_blocks,
        }
    }

    fn check(&self) {
        let mut spill = vec![0; SPILL_BYTES];
        self.spill.read_exact_at(&mut spill, 0).unwrap();
        let found = self.memories.iter().map(|memory| host_bytes(memory));
        let expected = self.expected.iter().chain([&self.expected_spill]);
        for (found, expected) in found.chain([spill]).zip(expected) {
            let wrong = found
                .iter()
                .zip(expected)
                .position(|(found, expected)| expected.is_some_and(|byte| byte != *found));
            assert_eq!(wrong, None, "the first wrong byte");
        }
    }
}

/// What goes wrong, if anything, and whether its request fails then.
fn faults() -> impl Strategy<Value = (Faults, bool)> {
    let delays = (prop::option::of(any::<u64>()), Just(80));
    (delays, 0usize..12, 0u64..8).prop_map(|((delay_seed, delay_us_max), which, request)| {
        let when = |index: usize| (which == index).then_some(request);
        let faults = Faults {
            delay_seed,
            delay_us_max,
            short_read: when(0),
            refused_direct_read: when(1),
            fail_request: when(2),
            failed_read: when(3),
            full_disk: when(4),
            dead_worker: when(5),
            ..Faults::default()
        };
        (faults, (2..=5).contains(&which))
    })
}

fn tuning() -> impl Strategy<Value = Tuning> {
    (1usize..4, 1usize..4).prop_map(|(blocks, reads_max)| Tuning {
        piece_bytes: blocks * BLOCK_BYTES,
        reads_max,
    })
}

fn check(place: &Path, no_ring: bool) {
    let config = ProptestConfig {
        failure_persistence: None,
        // A race need not show again: what was found counts more than a small case.
        max_shrink_time: 5000,
        ..ProptestConfig::with_cases(300)
    };
    let input = (requests(), 1usize..=4, faults(), tuning(), any::<u32>());
    proptest!(config, |((requests, workers, (faults, fails), tuning, drains) in input)| {
        let faults = Faults { no_ring, ..faults };
        let mut engine = HostEngine::tuned(workers, faults, tuning).unwrap();
        let mut world = World::new(place);
        let unlucky = [faults.fail_request, faults.failed_read, faults.full_disk];
        for (index, (inwards, drafts)) in (0u64..).zip(&requests) {
            let direction = if *inwards { Direction::In } else { Direction::Out };
            let may_fail = unlucky.contains(&Some(index));
            let mut copies = engine.recycled();
            copies.extend(drafts.iter().map(|draft| world.copy(direction, draft, may_fail)));
            let Ok(ticket) = engine.submit(Request {
                direction,
                copies,
                after: None,
            }) else {
                break;
            };
            if drains >> index & 7 == 0 {
                let outcome = engine.wait(ticket);
                assert!(outcome.is_ok() || fails, "{outcome:?}");
                assert!(engine.is_done(ticket));
                engine.forget_failures();
                if faults.dead_worker.is_none() {
                    world.check();
                }
            }
        }
        let outcome = engine.wait(engine.newest());
        assert!(outcome.is_ok() || fails, "{outcome:?}");
        if faults.dead_worker.is_some() {
            // Nothing hangs.
            return Ok(());
        }
        world.check();
        let now = engine.counters();
        let moved = [now.storage_bytes, now.link_bytes, now.write_back_bytes];
        assert!(moved == world.expected_bytes || now.failed == 1);
        let refused = faults.refused_direct_read.is_some();
        assert!(engine.notices().is_empty() || refused);
    });
}

#[test]
fn random_requests_on_a_disk_with_the_ring() {
    check(&on_disk(), false);
}

#[test]
fn random_requests_on_a_disk_with_threads() {
    check(&on_disk(), true);
}

#[test]
fn random_requests_in_ram_with_the_ring() {
    check(&in_ram(), false);
}

#[test]
fn random_requests_in_ram_with_threads() {
    check(&in_ram(), true);
}
