//! The engine on a device of streams: what it promises, and what goes wrong.

mod keeping;
mod lanes;
mod oracle;
mod rig;
mod shared_blocks;

use async_device::Delays;

use self::rig::*;
use super::*;
use crate::pager::engine::{Direction, Source};
use crate::pager::storage::Access;
use crate::pager::tests::trial::*;

#[test]
fn a_file_comes_in_pieces_and_goes_out_again() {
    for access in [Access::Direct, Access::Cached] {
        let mut rig = Rig::plain();
        let model = rig.files.open(access);
        let spill = rig.files.spill();
        let buffer = rig.buffer(MODEL_BYTES);
        let bytes = MODEL_BYTES - 100;
        let (from, to) = (from_file(&model, 77), in_device(&buffer, 13));
        let coming = request(Direction::In, from, to, bytes);
        let (from, to) = (from_device(&buffer, 13), in_file(&spill, 5));
        let going = request(Direction::Out, from, to, bytes);
        rig.engine.submit(coming).unwrap();
        let ticket = rig.engine.submit(going).unwrap();
        rig.engine.wait(ticket).unwrap();
        let found = device_bytes(&buffer);
        assert!((0..bytes).all(|at| found[13 + at] == model_byte(77 + at)));
        let mut spilled = vec![0; bytes];
        spill.read_exact_at(&mut spilled, 5).unwrap();
        assert_eq!(spilled, found[13..13 + bytes]);
        let counters = rig.engine.counters();
        assert_eq!(counters.storage_bytes, bytes as u64);
        assert_eq!(counters.link_bytes, bytes as u64);
        assert_eq!(counters.write_back_bytes, bytes as u64);
        assert!(counters.storage_seconds > 0.0 && counters.link_seconds > 0.0);
        assert!(counters.write_back_seconds > 0.0);
        rig.check();
    }
}

#[test]
fn an_arrival_is_known_before_the_copies_have_come() {
    let manner = with_pinned();
    let mut rig = Rig::new(&manner, setup(0), Delays::None, 1);
    let (memory, buffer) = (Arc::new(pinned(1000)), rig.buffer(1000));
    manner.gate.shut();
    let copy = request(
        Direction::In,
        from_memory(&memory, 0),
        in_device(&buffer, 0),
        1000,
    );
    let first = rig.engine.submit(copy).unwrap();
    // Nobody has blocked for an event yet, and nobody can.
    let fence = rig.engine.arrival(first).unwrap();
    assert!(fence.is_some());
    assert!(!rig.engine.is_done(first));
    manner.gate.open();
    rig.engine.wait(first).unwrap();
    assert!(rig.engine.is_done(first));
    assert!(rig.engine.arrival(first).unwrap().is_none());
}

#[test]
fn fences_are_recorded_again_only_when_nobody_holds_them() {
    let mut rig = Rig::plain();
    let buffer = rig.buffer(1000);
    let mut held: Vec<Fence> = Vec::new();
    for value in 0..20 {
        let fill = request(
            Direction::In,
            Source::Pattern(value),
            in_device(&buffer, 0),
            1000,
        );
        let ticket = rig.engine.submit(fill).unwrap();
        if let Some(fence) = rig.engine.arrival(ticket).unwrap() {
            assert!(held.iter().all(|other| !Arc::ptr_eq(other, &fence)));
            held.push(fence);
        }
        rig.engine.wait(ticket).unwrap();
    }
    let events = rig.device.counters().events;
    held.clear();
    for value in 0..20 {
        let fill = request(
            Direction::In,
            Source::Pattern(value),
            in_device(&buffer, 0),
            1000,
        );
        let ticket = rig.engine.submit(fill).unwrap();
        rig.engine.wait(ticket).unwrap();
    }
    let made = rig.device.counters().events - events;
    assert!(made <= 1, "{made} more events for what was done before");
}

#[test]
fn a_failed_read_fails_its_request_and_no_other() {
    let faults = Faults {
        failed_read: Some(1),
        ..Faults::default()
    };
    for keep_bytes in [0, 1 << 20] {
        let setup = Setup {
            faults,
            ..setup(keep_bytes)
        };
        let mut rig = Rig::new(&with_pinned(), setup, Delays::Short, 3);
        let model = rig.files.open(Access::Cached);
        let buffers = [(); 3].map(|()| rig.buffer(20_000));
        let tickets = buffers.each_ref().map(|buffer| {
            let (from, to) = (from_file(&model, 0), in_device(buffer, 0));
            let request = request(Direction::In, from, to, 20_000);
            rig.engine.submit(request).unwrap()
        });
        rig.engine.wait(tickets[0]).unwrap();
        let failure = rig.engine.arrival(tickets[1]).unwrap_err();
        assert_eq!(failure.ticket, tickets[1]);
        assert!(failure.sentence.contains("could not read"), "{failure}");
        assert_eq!(rig.engine.wait(tickets[2]).unwrap_err(), failure);
        assert_eq!(rig.engine.forget_failures(), None, "nothing is lost");
        rig.engine.wait(tickets[2]).unwrap();
        for buffer in [&buffers[0], &buffers[2]] {
            let found = device_bytes(buffer);
            assert!((0..20_000).all(|at| found[at] == model_byte(at)));
        }
        assert_eq!(rig.engine.counters().failed, 1);
        assert_eq!(rig.engine.counters().link_bytes, 40_000);
        rig.check();
    }
}

#[test]
fn a_file_that_ends_too_soon_fails_each_request_that_needs_it() {
    let mut rig = Rig::new(&with_pinned(), setup(1 << 20), Delays::Short, 3);
    let model = rig.files.open(Access::Cached);
    let buffer = rig.buffer(20_000);
    for _ in 0..3 {
        let start = MODEL_BYTES as u64 - 10_000;
        let (from, to) = (from_file(&model, start), in_device(&buffer, 0));
        let ticket = rig
            .engine
            .submit(request(Direction::In, from, to, 20_000))
            .unwrap();
        let failure = rig.engine.wait(ticket).unwrap_err();
        assert_eq!(failure.ticket, ticket);
        rig.engine.forget_failures();
    }
    // What was not read is not kept.
    let start = MODEL_BYTES - 10_000;
    let (from, to) = (from_file(&model, start as u64), in_device(&buffer, 0));
    let ticket = rig
        .engine
        .submit(request(Direction::In, from, to, 10_000))
        .unwrap();
    rig.engine.wait(ticket).unwrap();
    let found = device_bytes(&buffer);
    assert!((0..10_000).all(|at| found[at] == model_byte(start + at)));
    // Nor is that it was not.
    assert_eq!(rig.engine.reads.lock().failures, []);
}

#[test]
fn a_full_disk_loses_what_was_to_be_written_back() {
    let faults = Faults {
        full_disk: Some(0),
        ..Faults::default()
    };
    let setup = Setup { faults, ..setup(0) };
    let mut rig = Rig::new(&with_pinned(), setup, Delays::Short, 3);
    let (spill, buffer) = (rig.files.spill(), rig.buffer(30_000));
    let (from, to) = (from_device(&buffer, 0), in_file(&spill, 0));
    let ticket = rig
        .engine
        .submit(request(Direction::Out, from, to, 30_000))
        .unwrap();
    let failure = rig.engine.wait(ticket).unwrap_err();
    assert!(failure.sentence.contains("--spill-dir"), "{failure}");
    let (from, to) = (from_device(&buffer, 0), in_file(&spill, 0));
    let next = rig
        .engine
        .submit(request(Direction::Out, from, to, 30_000))
        .unwrap();
    assert_eq!(rig.engine.wait(next).unwrap_err().ticket, ticket);
    assert_eq!(rig.engine.forget_failures(), Some(failure));
    rig.engine.wait(next).unwrap();
}

#[test]
fn a_lost_device_ends_the_engine_wherever_it_was() {
    for fails_at in 0..30 {
        let manner = Manner {
            fails_at: Some(fails_at),
            ..with_pinned()
        };
        let mut rig = Rig::new(&manner, setup(0), Delays::Short, 3);
        let (model, spill) = (rig.files.open(Access::Direct), rig.files.spill());
        let buffer = rig.buffer(40_000);
        for _ in 0..4 {
            let (from, to) = (from_file(&model, 0), in_device(&buffer, 0));
            let coming = request(Direction::In, from, to, 40_000);
            let (from, to) = (from_device(&buffer, 0), in_file(&spill, 0));
            let going = request(Direction::Out, from, to, 40_000);
            if rig.engine.submit(coming).is_err() || rig.engine.submit(going).is_err() {
                break;
            }
        }
        let newest = rig.engine.newest();
        let failure = rig.engine.wait(newest).unwrap_err();
        let said = "copies of TEST0 failed: the device was lost";
        assert!(failure.sentence.contains(said), "{failure}");
        assert_eq!(
            rig.engine.arrival(newest).unwrap_err().sentence,
            failure.sentence
        );
        let lost = rig
            .engine
            .forget_failures()
            .map(|failure| failure.direction);
        assert_eq!(
            lost,
            Some(Direction::Out),
            "what was to be written back is lost"
        );
        rig.check();
    }
}

#[test]
fn a_dead_reader_is_a_sentence_and_no_hang() {
    let faults = Faults {
        dead_worker: Some(1),
        ..Faults::default()
    };
    let setup = Setup { faults, ..setup(0) };
    let mut rig = Rig::new(&with_pinned(), setup, Delays::None, 3);
    let (model, buffer) = (rig.files.open(Access::Cached), rig.buffer(40_000));
    for _ in 0..3 {
        let (from, to) = (from_file(&model, 0), in_device(&buffer, 0));
        let _ = rig.engine.submit(request(Direction::In, from, to, 40_000));
    }
    let failure = rig.engine.wait(rig.engine.newest()).unwrap_err();
    assert!(failure.sentence.contains("died"), "{failure}");
}

#[test]
fn a_request_can_be_refused_and_comes_back() {
    let faults = Faults {
        refuse_request: Some(0),
        ..Faults::default()
    };
    let setup = Setup { faults, ..setup(0) };
    let mut rig = Rig::new(&with_pinned(), setup, Delays::None, 3);
    let buffer = rig.buffer(10);
    let pattern = Source::Pattern(9);
    let fill = request(Direction::In, pattern, in_device(&buffer, 0), 10);
    let (_, refused) = rig.engine.submit(fill).unwrap_err();
    let ticket = rig.engine.submit(refused).unwrap();
    rig.engine.wait(ticket).unwrap();
    assert_eq!(device_bytes(&buffer), [9; 10]);
    let counters = rig.engine.counters();
    assert_eq!(counters.link_bytes, 0, "patterns are not moved bytes");
}

#[test]
fn what_lands_in_a_file_is_read_when_all_of_it_has_landed() {
    for seed in 0..40 {
        let mut rig = Rig::new(&with_pinned(), setup(0), Delays::Long, seed);
        let spill = rig.files.spill();
        let [one, other] = [(); 2].map(|()| rig.buffer(60_000));
        // SAFETY: nobody else knows the buffer.
        unsafe { one.fill(0, 60_000, 7) };
        let (from, to) = (from_device(&one, 0), in_file(&spill, 0));
        let going = request(Direction::Out, from, to, 60_000);
        rig.engine.submit(going).unwrap();
        // The end of it, which is the last to land.
        let (from, to) = (from_file(&spill, 50_000), in_device(&other, 0));
        let coming = request(Direction::In, from, to, 10_000);
        let ticket = rig.engine.submit(coming).unwrap();
        rig.engine.wait(ticket).unwrap();
        assert_eq!(device_bytes(&other)[..10_000], [7; 10_000]);
        rig.check();
    }
}

#[test]
fn a_copy_on_the_host_comes_after_the_links_in_its_request() {
    for seed in 0..40 {
        let mut rig = Rig::new(&with_pinned(), setup(0), Delays::Long, seed);
        let buffer = rig.buffer(30_000);
        // SAFETY: nobody else knows the buffer.
        unsafe { buffer.fill(0, 30_000, 7) };
        let first = Arc::new(pinned(30_000));
        let second = Arc::new(HostMemory::new(30_000).unwrap());
        let copy = |from, to| Copy {
            from,
            to,
            bytes: 10_000,
            whole_blocks: false,
        };
        let mut copies = Vec::new();
        for start in [0, 10_000, 20_000] {
            copies.push(copy(from_device(&buffer, start), in_memory(&first, start)));
        }
        copies.push(copy(from_memory(&first, 20_000), in_memory(&second, 0)));
        let (direction, after) = (Direction::Out, None);
        let submitted = rig.engine.submit(Request {
            direction,
            copies,
            after,
        });
        rig.engine.wait(submitted.unwrap()).unwrap();
        assert_eq!(host_bytes(&second)[..10_000], [7; 10_000]);
        rig.check();
    }
}

#[test]
fn dropping_the_engine_finishes_what_was_submitted() {
    let mut rig = Rig::new(&with_pinned(), setup(0), Delays::Long, 3);
    let (model, buffer) = (rig.files.open(Access::Direct), rig.buffer(MODEL_BYTES));
    let (from, to) = (from_file(&model, 0), in_device(&buffer, 0));
    rig.engine
        .submit(request(Direction::In, from, to, MODEL_BYTES))
        .unwrap();
    let Rig { engine, device, .. } = rig;
    drop(engine);
    let found = device_bytes(&buffer);
    assert!((0..MODEL_BYTES).all(|at| found[at] == model_byte(at)));
    drop(buffer);
    let left = device.counters();
    assert_eq!((left.buffers, left.streams, left.events), (0, 0, 0));
}

#[test]
fn a_device_without_pinned_memory_is_told_of() {
    let mut rig = Rig::new(&Manner::default(), setup(0), Delays::None, 3);
    let notices = rig.engine.notices();
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert!(notices[0].contains("ordinary memory"), "{notices:?}");
    assert_eq!(rig.engine.notices(), [""; 0]);
}
