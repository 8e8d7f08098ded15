//! Random requests among random computations, against a naive world that does everything
//! in order.
//!
//! What computes is a stream of the device like any other: it waits for the arrival of
//! what was submitted, reads and writes some bytes of the device's memory, and records a
//! fence after which later requests begin. Whoever waits too little sees wrong bytes.

use std::ops::Range;

use async_device::Delays;
use proptest::prelude::*;

use super::*;
use crate::ggml::{DeviceBuffer, Events, InnerBackend};
use crate::pager::engine::{Source, Target};
use crate::pager::storage::StoreFile;

const MEMORY_BYTES: usize = 50_001;
const SPILL_BYTES: usize = 40_000;

/// Where bytes of a random copy are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Direct,
    Cached,
    Spill,
    Plain,
    Pinned,
    Device(usize),
    Pattern(u8),
}

/// A copy, with offsets that are made to fit when the sizes are known.
#[derive(Clone, Copy, Debug)]
struct Draft {
    from: Place,
    from_offset: usize,
    to: Place,
    to_offset: usize,
    bytes: usize,
}

/// What happens next.
#[derive(Clone, Debug)]
enum Act {
    /// A request; whether it is one that comes in, and its copies.
    Submit(bool, Vec<Draft>),
    /// Something computes on a range of a buffer.
    Compute(usize, usize, usize, u8),
    /// Everything is waited for and looked at.
    Drain,
}

fn source() -> impl Strategy<Value = Place> {
    prop_oneof![
        3 => Just(Place::Direct),
        1 => Just(Place::Cached),
        2 => Just(Place::Spill),
        2 => Just(Place::Plain),
        2 => Just(Place::Pinned),
        4 => (0usize..2).prop_map(Place::Device),
        1 => any::<u8>().prop_map(Place::Pattern),
    ]
}

fn target() -> impl Strategy<Value = Place> {
    prop_oneof![
        6 => (0usize..2).prop_map(Place::Device),
        1 => Just(Place::Spill),
        1 => Just(Place::Plain),
        1 => Just(Place::Pinned),
    ]
}

fn draft() -> impl Strategy<Value = Draft> {
    let bytes = prop_oneof![0usize..300, 1usize..20_000, Just(2 * BLOCK_BYTES)];
    (source(), any::<usize>(), target(), any::<usize>(), bytes).prop_map(
        |(from, from_offset, to, to_offset, bytes)| Draft {
            from,
            from_offset,
            to,
            to_offset,
            bytes,
        },
    )
}

fn act() -> impl Strategy<Value = Act> {
    let copies = prop::collection::vec(draft(), 0..4);
    prop_oneof![
        6 => (any::<bool>(), copies).prop_map(|(inwards, copies)| Act::Submit(inwards, copies)),
        4 => (0usize..2, any::<usize>(), 1usize..9_000, any::<u8>())
            .prop_map(|(buffer, offset, bytes, value)| Act::Compute(buffer, offset, bytes, value)),
        1 => Just(Act::Drain),
    ]
}

/// What something that computed found, and what it should have: None is anything.
struct Finding {
    found: Box<[u8]>,
    expected: Vec<Option<u8>>,
    // What it wrote, which lives until everything was waited for.
    _wrote: Box<[u8]>,
}

/// A buffer, and a range of it.
type Touched = (usize, Range<usize>);

/// The engine's world, and what it should hold.
struct World {
    compute: InnerBackend,
    events: Events,
    launched: Option<Fence>,
    // Fences that the compute stream was told to wait for, or recorded.
    fences: Vec<Fence>,
    findings: Vec<Finding>,
    model: [Arc<StoreFile>; 2],
    spill: Arc<StoreFile>,
    memories: [Arc<HostMemory>; 2],
    buffers: [Arc<DeviceBuffer>; 2],
    // Of the spill file, the memories and the buffers.
    expected: [Vec<Option<u8>>; 5],
    expected_bytes: [u64; 2],
    // The requests and the buffers' ranges that they touch, since everything was waited for.
    submitted: Vec<(Ticket, Direction, Vec<Touched>)>,
    rig: Rig,
}

fn slot(place: Place) -> usize {
    match place {
        Place::Spill => 0,
        Place::Plain => 1,
        Place::Pinned => 2,
        Place::Device(index) => 3 + index,
        Place::Direct | Place::Cached | Place::Pattern(_) => unreachable!("nobody writes there"),
    }
}

fn size_of(place: Place) -> usize {
    match place {
        Place::Direct | Place::Cached => MODEL_BYTES,
        Place::Spill => SPILL_BYTES,
        Place::Plain | Place::Pinned | Place::Device(_) => MEMORY_BYTES,
        Place::Pattern(_) => usize::MAX,
    }
}

impl World {
    fn new(rig: Rig) -> Self {
        let spill = rig.files.spill();
        spill.reserve(0..SPILL_BYTES as u64).unwrap();
        let buffers = [(); 2].map(|()| rig.buffer(MEMORY_BYTES));
        for buffer in &buffers {
            // SAFETY: nobody else knows the buffer.
            unsafe { buffer.fill(0, MEMORY_BYTES, 0) };
        }
        Self {
            compute: rig.inner.backend().unwrap(),
            events: Events::new(rig.inner),
            launched: None,
            fences: Vec::new(),
            findings: Vec::new(),
            model: [Access::Direct, Access::Cached].map(|access| rig.files.open(access)),
            spill,
            memories: [HostMemory::new(MEMORY_BYTES).unwrap(), pinned(MEMORY_BYTES)].map(Arc::new),
            buffers,
            expected: [
                SPILL_BYTES,
                MEMORY_BYTES,
                MEMORY_BYTES,
                MEMORY_BYTES,
                MEMORY_BYTES,
            ]
            .map(|bytes| vec![Some(0); bytes]),
            expected_bytes: [0; 2],
            submitted: Vec::new(),
            rig,
        }
    }

    fn source(&self, place: Place, offset: usize) -> Source {
        match place {
            Place::Direct => from_file(&self.model[0], offset as u64),
            Place::Cached => from_file(&self.model[1], offset as u64),
            Place::Spill => from_file(&self.spill, offset as u64),
            Place::Plain => from_memory(&self.memories[0], offset),
            Place::Pinned => from_memory(&self.memories[1], offset),
            Place::Device(index) => from_device(&self.buffers[index], offset),
            Place::Pattern(value) => Source::Pattern(value),
        }
    }

    fn target(&self, place: Place, offset: usize) -> Target {
        match place {
            Place::Plain => in_memory(&self.memories[0], offset),
            Place::Pinned => in_memory(&self.memories[1], offset),
            Place::Device(index) => in_device(&self.buffers[index], offset),
            _ => in_file(&self.spill, offset as u64),
        }
    }

    /// Makes the draft fit, does it in the expected world, and gives the copy. A copy that
    /// may fail leaves anything.
    fn copy(
        &mut self,
        direction: Direction,
        draft: Draft,
        may_fail: bool,
        touched: &mut Vec<Touched>,
    ) -> Copy {
        let bytes = draft.bytes;
        let start = draft.from_offset % (size_of(draft.from) - bytes).max(1);
        let end = draft.to_offset % (size_of(draft.to) - bytes).max(1);
        for (place, start) in [(draft.from, start), (draft.to, end)] {
            if let Place::Device(index) = place {
                touched.push((index, start..start + bytes));
            }
        }
        let content: Vec<Option<u8>> = match draft.from {
            _ if may_fail => vec![None; bytes],
            Place::Direct | Place::Cached => (start..start + bytes)
                .map(|at| Some(model_byte(at)))
                .collect(),
            Place::Pattern(value) => vec![Some(value); bytes],
            place => self.expected[slot(place)][start..start + bytes].to_vec(),
        };
        self.expected[slot(draft.to)][end..end + bytes].copy_from_slice(&content);
        let is_counted = !matches!(draft.from, Place::Pattern(_)) && !may_fail;
        let kind = usize::from(direction == Direction::Out);
        // What is read from a file into memory does not cross the link.
        let is_read = matches!(draft.from, Place::Direct | Place::Cached | Place::Spill);
        let is_on_host = !matches!(draft.to, Place::Device(_));
        let is_counted = is_counted && !(direction == Direction::In && is_read && is_on_host);
        self.expected_bytes[kind] += u64::from(is_counted) * bytes as u64;
        Copy {
            from: self.source(draft.from, start),
            to: self.target(draft.to, end),
            bytes,
            whole_blocks: false,
        }
    }

    fn submit(&mut self, inwards: bool, drafts: &[Draft], may_fail: bool) {
        let direction = if inwards {
            Direction::In
        } else {
            Direction::Out
        };
        let mut copies = self.rig.engine.recycled();
        let mut touched = Vec::new();
        for draft in drafts {
            copies.push(self.copy(direction, *draft, may_fail, &mut touched));
        }
        let after = self.launched.clone();
        let request = Request {
            direction,
            copies,
            after,
        };
        let ticket = self.rig.engine.submit(request).unwrap();
        self.submitted.push((ticket, direction, touched));
    }

    /// Has what computes wait for what was submitted and touches a range, and for nothing
    /// else.
    fn await_arrivals(&mut self, buffer: usize, range: &Range<usize>, fails: bool) {
        for direction in [Direction::In, Direction::Out] {
            let meets = |(index, touched): &Touched| {
                *index == buffer && touched.start < range.end && range.start < touched.end
            };
            let newest_first = self.submitted.iter().rev();
            let mut awaited = newest_first
                .filter(|(_, other, touched)| *other == direction && touched.iter().any(meets));
            let Some((ticket, ..)) = awaited.next() else {
                continue;
            };
            match self.rig.engine.arrival(*ticket) {
                Ok(None) => {}
                Ok(Some(fence)) => {
                    self.compute.wait(&fence);
                    self.fences.push(fence);
                }
                Err(failure) => {
                    assert!(fails, "{failure}");
                    self.rig.drain();
                }
            }
        }
    }

    /// Reads what is in a range after all that was submitted, and writes something else.
    fn compute(&mut self, buffer: usize, offset: usize, bytes: usize, value: u8, fails: bool) {
        let offset = offset % (MEMORY_BYTES - bytes);
        let range = offset..offset + bytes;
        self.await_arrivals(buffer, &range, fails);
        let mut finding = Finding {
            found: vec![0; bytes].into(),
            expected: self.expected[3 + buffer][range.clone()].to_vec(),
            _wrote: vec![value; bytes].into(),
        };
        let (to, from) = (finding.found.as_mut_ptr(), finding._wrote.as_ptr());
        let memory = &self.buffers[buffer];
        // SAFETY: the finding's bytes are kept until the stream was waited for; the engine
        // keeps away from the range until the fence has come.
        unsafe { self.compute.read(memory, offset, to, bytes) };
        // SAFETY: as above.
        unsafe { self.compute.write(memory, offset, from, bytes) };
        self.findings.push(finding);
        self.expected[3 + buffer][range].fill(Some(value));
        let fence = self.events.free().unwrap();
        self.compute.record(&fence);
        self.fences.push(Fence::clone(&fence));
        self.launched = Some(fence);
    }

    fn drain(&mut self, fails: bool) {
        let engine = &self.rig.engine;
        let outcome = engine.wait(engine.newest());
        assert!(outcome.is_ok() || fails, "{outcome:?}");
        assert!(engine.is_done(engine.newest()));
        self.compute.synchronize();
        self.launched = None;
        self.submitted.clear();
        self.fences.clear();
        self.rig.engine.forget_failures();
        self.check();
    }

    fn check(&mut self) {
        for finding in self.findings.drain(..) {
            check(&finding.found, &finding.expected, "what computed found");
        }
        let mut spill = vec![0; SPILL_BYTES];
        self.spill.read_exact_at(&mut spill, 0).unwrap();
        check(&spill, &self.expected[0], "the spill file");
        for (memory, expected) in self.memories.iter().zip(&self.expected[1..]) {
            check(&host_bytes(memory), expected, "a memory");
        }
        for (buffer, expected) in self.buffers.iter().zip(&self.expected[3..]) {
            check(&device_bytes(buffer), expected, "a buffer");
        }
        self.rig.check();
    }
}

fn check(found: &[u8], expected: &[Option<u8>], what: &str) {
    let wrong = found
        .iter()
        .zip(expected)
        .position(|(found, expected)| expected.is_some_and(|byte| byte != *found));
    assert_eq!(wrong, None, "the first wrong byte of {what}");
}

/// What goes wrong, if anything, and which request fails then.
fn faults() -> impl Strategy<Value = (Faults, Option<u64>)> {
    let seed = prop::option::of(any::<u64>());
    (seed, 0usize..10, 0u64..8).prop_map(|(delay_seed, which, index)| {
        let when = |fault: usize| (which == fault).then_some(index);
        let faults = Faults {
            delay_seed,
            delay_us_max: 60,
            short_read: when(0),
            refused_direct_read: when(1),
            fail_request: when(2),
            failed_read: when(3),
            full_disk: when(4),
            no_ring: which == 5,
            ..Faults::default()
        };
        (faults, (2..=4).contains(&which).then_some(index))
    })
}

fn delays() -> impl Strategy<Value = Delays> {
    prop_oneof![Just(Delays::None), Just(Delays::Short), Just(Delays::Long)]
}

fn check_random_acts(manner: &Manner) {
    let config = ProptestConfig {
        failure_persistence: None,
        // A race need not show again: what was found counts more than a small case.
        max_shrink_time: 5000,
        ..ProptestConfig::with_cases(150)
    };
    let keep = prop_oneof![Just(0u64), Just(40_000), Just(1 << 20)];
    let acts = prop::collection::vec(act(), 1..24);
    let input = (acts, keep, faults(), delays(), any::<u64>());
    proptest!(config, |((acts, keep_bytes, (faults, unlucky), delays, seed) in input)| {
        let manner = Manner { calls: Arc::default(), ..manner.clone() };
        let setup = Setup { faults, ..setup(keep_bytes) };
        let mut world = World::new(Rig::new(&manner, setup, delays, seed));
        let fails = unlucky.is_some();
        let mut index = 0;
        for act in acts {
            match act {
                Act::Submit(inwards, drafts) => {
                    world.submit(inwards, &drafts, unlucky == Some(index));
                    index += 1;
                }
                Act::Compute(buffer, offset, bytes, value) => {
                    world.compute(buffer, offset, bytes, value, fails);
                }
                Act::Drain => world.drain(fails),
            }
        }
        world.drain(fails);
        let now = world.rig.engine.counters();
        let moved = [now.link_bytes, now.write_back_bytes];
        assert!(moved == world.expected_bytes || fails, "{moved:?}");
    });
}

#[test]
fn random_acts_with_pinned_memory() {
    check_random_acts(&with_pinned());
}

#[test]
fn random_acts_where_little_can_be_pinned() {
    check_random_acts(&Manner {
        pinned_max: Some(3),
        ..Manner::default()
    });
}

#[test]
fn random_acts_without_pinned_memory() {
    check_random_acts(&Manner::default());
}

#[test]
fn random_acts_on_one_stream() {
    check_random_acts(&with_one_stream());
}
