//! The engine alone: what it promises, and each failure that it can be told to have.

mod oracle;

use std::path::PathBuf;

use super::super::engine::{Direction, Source};
use super::super::memory::HostMemory;
use super::super::storage::{Access, StoreFile};
use super::super::trial::*;
use super::*;

/// Small pieces, so that small copies have many, and cuts at every kind of place.
const SMALL: Tuning = Tuning {
    piece_bytes: 2 * BLOCK_BYTES,
    reads_max: 3,
};

fn memory(bytes: usize) -> Arc<HostMemory> {
    Arc::new(HostMemory::new(bytes).unwrap())
}

fn fill(to: &Arc<HostMemory>, value: u8) -> Request {
    let from = Source::Pattern(value);
    request(Direction::In, from, in_memory(to, 0), to.bytes())
}

fn duplicate(from: &Arc<HostMemory>, to: &Arc<HostMemory>) -> Request {
    let from = from_memory(from, 0);
    request(Direction::Out, from, in_memory(to, 0), to.bytes())
}

/// A file system in memory, where there is one.
fn in_ram() -> PathBuf {
    let shm = PathBuf::from("/dev/shm");
    if shm.is_dir() {
        shm
    } else {
        std::env::temp_dir()
    }
}

/// With the kernel's ring, where there is one, and without.
fn both_readers(faults: Faults) -> [Faults; 2] {
    [false, true].map(|no_ring| Faults { no_ring, ..faults })
}

#[test]
fn requests_run_in_order_with_any_number_of_workers() {
    for workers in 1..=4 {
        let faults = Faults {
            delay_seed: Some(7),
            delay_us_max: 50,
            ..Faults::default()
        };
        let mut engine = HostEngine::new(workers, faults).unwrap();
        let (a, b) = (memory(3 << 20), memory(3 << 20));
        for value in 0..20 {
            engine.submit(fill(&a, value)).unwrap();
            engine.submit(duplicate(&a, &b)).unwrap();
        }
        engine.wait(engine.newest()).unwrap();
        assert!(host_bytes(&b).iter().all(|&byte| byte == 19));
        let counters = engine.counters();
        assert_eq!(counters.write_back_bytes, 20 * (3 << 20));
        assert!(counters.write_back_seconds > 0.0);
        let in_bytes = counters.storage_bytes + counters.link_bytes;
        assert_eq!(in_bytes, 0, "patterns are not moved bytes");
    }
}

#[test]
fn a_slow_link_bounds_what_comes_in_and_nothing_else() {
    for workers in [1, 3] {
        let faults = Faults {
            bytes_per_second: Some(64 << 20),
            ..Faults::default()
        };
        let mut engine = HostEngine::new(workers, faults).unwrap();
        let (a, b) = (memory(1 << 20), memory(1 << 20));
        let started = std::time::Instant::now();
        for _ in 0..4 {
            let (from, to) = (from_memory(&a, 0), in_memory(&b, 0));
            engine
                .submit(request(Direction::In, from, to, 1 << 20))
                .unwrap();
        }
        engine.wait(engine.newest()).unwrap();
        assert!(started.elapsed().as_secs_f64() >= 4.0 / 64.0);
        let seconds = engine.counters().link_seconds;
        assert!(seconds > 3.0 / 64.0, "the wait is copying: {seconds}");
        // Nothing waits for a link it does not use: this much would take seconds.
        for _ in 0..400 {
            engine.submit(duplicate(&a, &b)).unwrap();
        }
        engine.wait(engine.newest()).unwrap();
        assert!(started.elapsed().as_secs_f64() < 400.0 / 64.0);
    }
}

#[test]
fn a_failed_request_is_reported_and_later_ones_still_run() {
    let faults = Faults {
        fail_request: Some(0),
        ..Faults::default()
    };
    let mut engine = HostEngine::new(1, faults).unwrap();
    let (a, b) = (memory(100), memory(100));
    let failed = engine.submit(fill(&a, 1)).unwrap();
    let later = engine.submit(fill(&b, 2)).unwrap();
    assert_eq!(engine.wait(failed).unwrap_err().ticket, failed);
    let still = engine.wait(later);
    assert!(still.is_err(), "a failure shows until it is forgotten");
    assert_eq!(engine.forget_failures(), None, "no write-back failed");
    assert!(engine.wait(later).is_ok());
    assert_eq!(host_bytes(&a), [0; 100]);
    assert_eq!(host_bytes(&b), [2; 100]);
    assert_eq!(engine.counters().failed, 1);
}

#[test]
fn a_refused_request_comes_back_and_the_next_is_taken() {
    let faults = Faults {
        refuse_request: Some(0),
        ..Faults::default()
    };
    let mut engine = HostEngine::new(1, faults).unwrap();
    let (_, request) = engine.submit(fill(&memory(10), 1)).unwrap_err();
    let ticket = engine.submit(request).unwrap();
    engine.wait(ticket).unwrap();
}

#[test]
fn dropping_the_engine_finishes_what_was_submitted() {
    let model = Model::new(&on_disk(), 1 << 20);
    let file = model.open(Access::Direct);
    for faults in both_readers(Faults::default()) {
        let to: Vec<_> = (0..20).map(|_| memory(1 << 20)).collect();
        let mut engine = HostEngine::tuned(2, faults, SMALL).unwrap();
        for to in &to {
            let from = from_file(&file, 0);
            let request = request(Direction::In, from, in_memory(to, 0), 1 << 20);
            engine.submit(request).unwrap();
        }
        drop(engine);
        for to in to {
            let found = host_bytes(&to);
            assert!((0..1 << 20).all(|at| found[at] == model_byte(at)));
        }
    }
}

#[test]
fn a_request_frees_what_it_owned_before_it_is_done() {
    let model = Model::new(&on_disk(), 100_000);
    for faults in both_readers(Faults::default()) {
        let mut engine = HostEngine::tuned(3, faults, SMALL).unwrap();
        for access in [Access::Direct, Access::Cached] {
            let (file, to) = (model.open(access), memory(100_000));
            let from = from_file(&file, 0);
            let request = request(Direction::In, from, in_memory(&to, 0), 100_000);
            let ticket = engine.submit(request).unwrap();
            engine.wait(ticket).unwrap();
            assert_eq!((Arc::strong_count(&file), Arc::strong_count(&to)), (1, 1));
            assert!(engine.recycled().capacity() > 0);
        }
    }
}

#[test]
fn a_copy_past_the_end_of_its_memory_is_a_sentence() {
    let mut engine = HostEngine::new(1, Faults::default()).unwrap();
    let (a, b) = (memory(10), memory(20));
    for (from, to) in [(&a, &b), (&b, &a)] {
        let to = in_memory(to, 0);
        let request = request(Direction::In, from_memory(from, 0), to, 11);
        let ticket = engine.submit(request).unwrap();
        let sentence = engine.wait(ticket).unwrap_err().sentence;
        assert!(sentence.contains("outside of its"), "{sentence}");
        engine.forget_failures();
    }
}

/// Reads all of a model's file of 100,003 bytes, twice, on an engine with this fault in
/// the first request; the sentence of the failure, and whether both reads were right.
fn read_twice(faults: Faults, access: Access, whole_blocks: bool) -> (Option<String>, bool) {
    let bytes = 100_003;
    let model = Model::new(&on_disk(), bytes);
    let file = model.open(access);
    let mut engine = HostEngine::tuned(2, faults, SMALL).unwrap();
    let mut failure = None;
    let mut is_right = true;
    for _ in 0..2 {
        let to = memory(bytes);
        let mut request = request(Direction::In, from_file(&file, 0), in_memory(&to, 0), bytes);
        request.copies[0].whole_blocks = whole_blocks;
        let ticket = engine.submit(request).unwrap();
        match engine.wait(ticket) {
            Ok(()) => is_right &= host_bytes(&to) == (0..bytes).map(model_byte).collect::<Vec<_>>(),
            Err(failed) => {
                assert_eq!((failed.ticket, failed.direction), (ticket, Direction::In));
                failure = Some(failed.sentence);
                engine.forget_failures();
            }
        }
    }
    (failure, is_right)
}

#[test]
fn a_short_read_is_read_on() {
    let faults = Faults {
        short_read: Some(0),
        ..Faults::default()
    };
    for faults in both_readers(faults) {
        for access in [Access::Direct, Access::Cached] {
            for whole_blocks in [false, true] {
                assert_eq!(read_twice(faults, access, whole_blocks), (None, true));
            }
        }
    }
}

#[test]
fn a_device_that_cannot_read_is_a_sentence() {
    let faults = Faults {
        failed_read: Some(0),
        ..Faults::default()
    };
    for faults in both_readers(faults) {
        for access in [Access::Direct, Access::Cached] {
            let (sentence, is_right) = read_twice(faults, access, true);
            let sentence = sentence.expect("the first read fails");
            assert!(is_right, "the second one works");
            for part in [
                "8192 bytes at offset 0 of '",
                "model.gguf'",
                "was the model file changed",
            ] {
                assert!(sentence.contains(part), "{sentence}");
            }
        }
    }
}

#[test]
fn what_waits_for_a_failed_read_still_runs() {
    let faults = Faults {
        failed_read: Some(0),
        ..Faults::default()
    };
    let tuning = Tuning {
        reads_max: 1,
        ..SMALL
    };
    let model = Model::new(&on_disk(), MODEL_BYTES);
    let file = model.open(Access::Direct);
    for faults in both_readers(faults) {
        let mut engine = HostEngine::tuned(1, faults, tuning).unwrap();
        let to = memory(MODEL_BYTES);
        let from = from_file(&file, 0);
        let read = request(Direction::In, from, in_memory(&to, 0), MODEL_BYTES);
        engine.submit(read).unwrap();
        let ticket = engine.submit(fill(&to, 3)).unwrap();
        assert!(engine.wait(ticket).is_err());
        engine.forget_failures();
        engine.wait(ticket).unwrap();
        assert_eq!(host_bytes(&to), [3; MODEL_BYTES]);
    }
}

#[test]
fn a_file_system_that_refuses_direct_reads_is_noticed_once() {
    let faults = Faults {
        refused_direct_read: Some(0),
        ..Faults::default()
    };
    for faults in both_readers(faults) {
        let model = Model::new(&on_disk(), MODEL_BYTES);
        let file = model.open(Access::Direct);
        if !file.is_direct() {
            continue;
        }
        let mut engine = HostEngine::tuned(2, faults, SMALL).unwrap();
        for _ in 0..2 {
            let to = memory(MODEL_BYTES);
            let from = from_file(&file, 0);
            let request = request(Direction::In, from, in_memory(&to, 0), MODEL_BYTES);
            let ticket = engine.submit(request).unwrap();
            engine.wait(ticket).unwrap();
            let expected: Vec<u8> = (0..MODEL_BYTES).map(model_byte).collect();
            assert_eq!(host_bytes(&to), expected);
        }
        assert!(!file.is_direct());
        let notices = engine.notices();
        assert_eq!(notices.len(), 1, "{notices:?}");
        assert!(
            notices[0].contains("model.gguf' cannot be read past"),
            "{notices:?}"
        );
        assert_eq!(engine.notices(), [""; 0]);
    }
}

#[test]
fn a_full_disk_is_a_lost_write_back() {
    let faults = Faults {
        full_disk: Some(0),
        ..Faults::default()
    };
    let model = Model::new(&on_disk(), 10);
    let spill = model.spill();
    let mut engine = HostEngine::new(2, faults).unwrap();
    let write = |bytes| {
        let from = from_memory(&memory(bytes), 0);
        request(Direction::Out, from, in_file(&spill, 0), bytes)
    };
    let ticket = engine.submit(write(100)).unwrap();
    let failure = engine.wait(ticket).unwrap_err();
    for part in [
        "100 bytes at offset 0 of the spill file in '",
        "--spill-dir",
    ] {
        assert!(failure.sentence.contains(part), "{failure}");
    }
    assert_eq!(engine.forget_failures(), Some(failure));
    let ticket = engine.submit(write(3 << 20)).unwrap();
    engine.wait(ticket).unwrap();
    assert_eq!(engine.counters().write_back_bytes, 3 << 20);
}

#[test]
fn a_file_that_ends_too_early_is_a_sentence() {
    let model = Model::new(&on_disk(), 5000);
    for faults in both_readers(Faults::default()) {
        for access in [Access::Direct, Access::Cached] {
            // The second one asks for a block in which there is nothing at all.
            for (offset, bytes) in [(4000, 1001), (9000, 10)] {
                let file = model.open(access);
                let mut engine = HostEngine::tuned(2, faults, SMALL).unwrap();
                let to = in_memory(&memory(bytes), 0);
                let request = request(Direction::In, from_file(&file, offset), to, bytes);
                let ticket = engine.submit(request).unwrap();
                let sentence = engine.wait(ticket).unwrap_err().sentence;
                let part = format!("could not read {bytes} bytes at offset {offset} of '");
                assert!(sentence.contains(&part), "{sentence}");
            }
        }
    }
}

#[test]
fn a_file_that_changes_while_it_is_in_use_is_a_sentence() {
    let model = Model::new(&on_disk(), 100_000);
    for faults in both_readers(Faults::default()) {
        for access in [Access::Direct, Access::Cached] {
            let file = model.open(access);
            let mut engine = HostEngine::new(2, faults).unwrap();
            let read = || {
                let to = in_memory(&memory(1000), 0);
                request(Direction::In, from_file(&file, 10), to, 1000)
            };
            let ticket = engine.submit(read()).unwrap();
            engine.wait(ticket).unwrap();
            let handle = std::fs::File::options()
                .write(true)
                .open(&model.path)
                .unwrap();
            handle.set_len(90_000).unwrap();
            let ticket = engine.submit(read()).unwrap();
            let sentence = engine.wait(ticket).unwrap_err().sentence;
            assert!(
                sentence.contains("changed while it is in use"),
                "{sentence}"
            );
            handle.set_len(100_000).unwrap();
        }
    }
}

/// An engine of which a thread died, and which then must not hang: waits say so at once,
/// also those that had begun, or what comes next works.
fn check_after_death(mut engine: HostEngine, first: Request, next: &dyn Fn() -> Request) -> bool {
    let ticket = engine.submit(first).unwrap();
    let failure = engine.wait(ticket).unwrap_err();
    assert_eq!(failure.ticket, ticket);
    assert!(failure.sentence.ends_with("died"), "{failure}");
    assert!(engine.is_done(ticket));
    engine.forget_failures();
    match engine.submit(next()) {
        Ok(ticket) => engine.wait(ticket).is_err(),
        Err((sentence, request)) => {
            assert!(sentence.ends_with("has ended"), "{sentence}");
            assert_eq!(request.copies.len(), 1, "it comes back");
            true
        }
    }
}

#[test]
fn a_coordinator_that_dies_fails_everything_at_once() {
    let faults = Faults {
        dead_worker: Some(0),
        ..Faults::default()
    };
    let to = memory(100);
    let engine = HostEngine::new(1, faults).unwrap();
    assert!(check_after_death(engine, fill(&to, 1), &|| fill(&to, 2)));

    // A write-back that it had not come to is lost, and stays so.
    let mut engine = HostEngine::new(1, faults).unwrap();
    let ticket = engine.submit(duplicate(&to, &memory(100))).unwrap();
    let failure = engine.wait(ticket).unwrap_err();
    assert_eq!(failure.direction, Direction::Out);
    assert_eq!(engine.forget_failures(), Some(failure));
}

#[test]
fn a_worker_that_dies_fails_its_request() {
    let faults = Faults {
        dead_worker: Some(0),
        ..Faults::default()
    };
    for _ in 0..20 {
        // Whoever takes the first piece dies: a helper, or the coordinator.
        let (a, b) = (memory(4 << 20), memory(4 << 20));
        let engine = HostEngine::new(3, faults).unwrap();
        check_after_death(engine, duplicate(&a, &b), &|| duplicate(&a, &b));
    }
}

#[test]
fn a_reader_that_dies_fails_its_request() {
    let faults = Faults {
        dead_worker: Some(0),
        ..Faults::default()
    };
    let model = Model::new(&on_disk(), 1 << 20);
    let file = model.open(Access::Direct);
    let read = || {
        let to = in_memory(&memory(1 << 20), 0);
        request(Direction::In, from_file(&file, 0), to, 1 << 20)
    };
    for faults in both_readers(faults) {
        let engine = HostEngine::tuned(2, faults, SMALL).unwrap();
        // The ring has no threads but the coordinator.
        let has_ring = engine.has_ring();
        let ended = check_after_death(engine, read(), &read);
        assert!(ended == has_ring || !file.is_direct());
    }
}

#[test]
fn a_coordinator_that_dies_waits_for_the_reads_under_way() {
    let faults = Faults {
        dead_worker: Some(1),
        ..Faults::default()
    };
    let model = Model::new(&on_disk(), 8 << 20);
    let file = model.open(Access::Direct);
    for faults in both_readers(faults) {
        let mut engine = HostEngine::new(1, faults).unwrap();
        let to = memory(8 << 20);
        let from = from_file(&file, 0);
        let read = request(Direction::In, from, in_memory(&to, 0), 8 << 20);
        engine.submit(read).unwrap();
        while engine.counters().storage_seconds == 0.0 {
            std::thread::yield_now();
        }
        let ticket = engine.submit(fill(&memory(10), 1)).unwrap();
        assert!(engine.wait(ticket).is_err());
        // Whatever the kernel or a thread was writing to is free by now.
        assert_eq!((Arc::strong_count(&to), Arc::strong_count(&file)), (1, 1));
        // SAFETY: nobody uses the memory.
        unsafe { to.fill(0..to.bytes(), 7) };
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(host_bytes(&to).iter().all(|&byte| byte == 7));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn direct_reads_leave_the_page_cache_alone() {
    let model = Model::new(&on_disk(), 1 << 20);
    let file = model.open(Access::Direct);
    if !file.is_direct() {
        return;
    }
    let cached = std::fs::File::open(&model.path).unwrap();
    for faults in both_readers(Faults::default()) {
        for whole_blocks in [false, true] {
            cached.sync_all().unwrap();
            let advice = rustix::fs::Advice::DontNeed;
            rustix::fs::fadvise(&cached, 0, None, advice).unwrap();
            let mut engine = HostEngine::tuned(1, faults, SMALL).unwrap();
            let to = memory(1 << 20);
            let bytes = (1 << 20) - 200;
            let from = from_file(&file, 100);
            let mut read = request(Direction::In, from, in_memory(&to, 100), bytes);
            read.copies[0].whole_blocks = whole_blocks;
            let ticket = engine.submit(read).unwrap();
            engine.wait(ticket).unwrap();
            let found = host_bytes(&to);
            assert!((100..100 + bytes).all(|at| found[at] == model_byte(at)));
            assert_eq!(pages_in_cache(&cached), 0);
        }
    }
}

/// How many pages of a file of 1 MiB are in the page cache.
#[cfg(target_os = "linux")]
fn pages_in_cache(file: &std::fs::File) -> usize {
    // SAFETY: nobody shortens the file while it is mapped.
    let map = unsafe { memmap2::Mmap::map(file) }.unwrap();
    let mut pages = [0u8; (1 << 20) / 4096];
    // SAFETY:
    // - the mapping is live and begins at a page;
    // - there is a byte for each of its pages.
    let status = unsafe {
        libc::mincore(
            map.as_ptr().cast_mut().cast(),
            map.len(),
            pages.as_mut_ptr(),
        )
    };
    assert_eq!(status, 0);
    pages.iter().filter(|&page| page & 1 == 1).count()
}
