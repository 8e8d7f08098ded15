//! What is run with the fake driver in the place of the real one, by the tests of the
//! module above; alone these do nothing.

use std::ffi::c_void;
use std::ops::Range;

use rpaged::cuda::Context;
use rpaged::ggml::{DeviceBuffer, Event, InnerDevice};
use rpaged::pager::engine_device::cuda_link::CudaLink;
use rpaged::pager::engine_device::link::Link;
use rpaged::pager::memory::HostMemory;

use super::device::device;
use super::driver::Driver;

const BUS_ID: &str = "0000:01:00.0";

fn is_inside() -> bool {
    std::env::var_os(super::INSIDE).is_some()
}

/// Random numbers, seeded as the driver's delays are.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let seed = std::env::var("FAKE_CUDA_SEED").unwrap_or_default();
        let seed: u64 = seed.parse().unwrap_or(7);
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from((self.0 >> 11) % limit as u64).unwrap()
    }

    fn range(&mut self, size: usize) -> Range<usize> {
        let bytes = 1 + self.below(size / 4);
        let start = self.below(size - bytes);
        start..start + bytes
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count)
            .map(|_| self.below(256).to_le_bytes()[0])
            .collect()
    }
}

/// A link, its device, and an event of it.
fn setting() -> (Driver, InnerDevice, CudaLink, Event) {
    let driver = Driver::load();
    let device = device(driver, "CUDA0", BUS_ID);
    let link = CudaLink::new(device).unwrap();
    let event = Event::new(device).unwrap();
    (driver, device, link, event)
}

fn drain(link: &mut CudaLink, event: &Event) {
    link.record(event).unwrap();
    link.synchronize(event).unwrap();
}

/// All bytes of a device's buffer, read by the driver's own copies.
fn contents(driver: Driver, buffer: &DeviceBuffer) -> Vec<u8> {
    let mut bytes = vec![0; buffer.bytes()];
    let to = bytes.as_mut_ptr().cast();
    // SAFETY: as many bytes; they are pageable, so the copy is done on return.
    let status = unsafe { (driver.copy_out)(to, buffer.base(), buffer.bytes(), 0) };
    assert_eq!(status, 0);
    bytes
}

#[test]
#[ignore = "run by a test of the module above"]
fn random_copies() {
    if !is_inside() {
        return;
    }
    let (driver, device, mut link, event) = setting();
    let size = 40_000;
    let buffer = DeviceBuffer::new(device, size).unwrap();
    let pinned = link.pinning().pinned(size).unwrap();
    let pageable = HostMemory::new(size).unwrap();
    let mut random = Random::new();
    // What a copy of one thing after the other makes of them.
    let mut expected = [random.bytes(size), random.bytes(size), vec![0; size]];
    // SAFETY: nobody else knows the memory.
    unsafe { pinned.write(0, &expected[0]) };
    // SAFETY: as above.
    unsafe { pageable.write(0, &expected[1]) };
    // SAFETY: all of the buffer, until the link is drained.
    unsafe { link.fill(&buffer, 0..size, 0) }.unwrap();
    for step in 0..300 {
        let (range, at) = (random.range(size), random.below(size));
        let at = at.min(size - range.len());
        let side = random.below(2);
        let memory = [&pinned, &pageable][side];
        match random.below(5) {
            0 | 1 => {
                let from = memory.address(range.start).cast_const();
                // SAFETY: both lie in memory that lives on; nobody else touches it.
                unsafe { link.copy_in(&buffer, at, from, range.len()) }.unwrap();
                let copied = expected[side][range.clone()].to_vec();
                expected[2][at..at + range.len()].copy_from_slice(&copied);
            }
            2 | 3 => {
                let to = memory.address(at);
                // SAFETY: as above.
                unsafe { link.copy_out(&buffer, range.start, to, range.len()) }.unwrap();
                let copied = expected[2][range.clone()].to_vec();
                expected[side][at..at + range.len()].copy_from_slice(&copied);
            }
            _ => {
                let value = u8::try_from(step % 251).unwrap();
                // SAFETY: as above.
                unsafe { link.fill(&buffer, range.clone(), value) }.unwrap();
                expected[2][range].fill(value);
            }
        }
    }
    drain(&mut link, &event);
    let mut found = [vec![0; size], vec![0; size], contents(driver, &buffer)];
    // SAFETY: the link is drained.
    unsafe { pinned.read(0, &mut found[0]) };
    // SAFETY: as above.
    unsafe { pageable.read(0, &mut found[1]) };
    assert!(found == expected, "bytes differ");
    let counts = driver.counted();
    assert!(counts.pinned > 50 && counts.pageable > 50, "{counts:?}");
    drop(link);
    drop(pinned);
    drop((buffer, event));
    assert_eq!(driver.violations(), "");
}

/// What a computation on the second stream does: adds one to each byte.
struct Computation {
    first: *mut u8,
    bytes: usize,
}

unsafe extern "C" fn compute(argument: *mut c_void) {
    // SAFETY: boxed for this call alone.
    let computation = unsafe { Box::from_raw(argument.cast::<Computation>()) };
    for index in 0..computation.bytes {
        // SAFETY: within the buffer; the events keep others away.
        let byte = unsafe { &mut *computation.first.wrapping_add(index) };
        *byte = byte.wrapping_add(1);
    }
}

#[test]
#[ignore = "run by a test of the module above"]
fn ordered_by_events() {
    if !is_inside() {
        return;
    }
    let (driver, device, mut link, arrived) = setting();
    let size = 5_000;
    let buffer = DeviceBuffer::new(device, size).unwrap();
    let rounds = 40;
    let sources = link.pinning().pinned(size * rounds).unwrap();
    let results = link.pinning().pinned(size * rounds).unwrap();
    let mut random = Random::new();
    let given = random.bytes(size * rounds);
    // SAFETY: nobody else knows the memory.
    unsafe { sources.write(0, &given) };
    let mut stream = 0;
    // SAFETY: a place for the handle.
    assert_eq!(unsafe { (driver.create_stream)(&raw mut stream, 1) }, 0);
    let computed = Event::new(device).unwrap();
    // SAFETY: an address of the driver's memory.
    let first = unsafe { (driver.host_address)(buffer.base()) }.cast::<u8>();
    // What goes out has a stream of its own.
    let mut back = link.another().unwrap();
    let left = Event::new(device).unwrap();
    // The same events again and again: a wait is for their newest recording.
    for round in 0..rounds {
        let from = sources.address(round * size).cast_const();
        // SAFETY: nobody else touches them: the copy was told to wait for the last copy out.
        unsafe { link.copy_in(&buffer, 0, from, size) }.unwrap();
        link.record(&arrived).unwrap();
        // SAFETY: handles of the driver's.
        unsafe { (driver.wait_event)(stream, arrived.handle() as usize, 0) };
        let computation = Box::new(Computation { first, bytes: size });
        let argument = Box::into_raw(computation).cast();
        // SAFETY: the function frees what it gets.
        unsafe { (driver.launch)(stream, compute, argument) };
        // SAFETY: handles of the driver's.
        unsafe { (driver.record_event)(computed.handle() as usize, stream) };
        back.wait(&computed).unwrap();
        // SAFETY: the computation is waited for.
        unsafe { back.copy_out(&buffer, 0, results.address(round * size), size) }.unwrap();
        back.record(&left).unwrap();
        link.wait(&left).unwrap();
    }
    drain(&mut link, &arrived);
    let mut found = vec![0; size * rounds];
    // SAFETY: the link is drained.
    unsafe { results.read(0, &mut found) };
    let expected: Vec<u8> = given.iter().map(|byte| byte.wrapping_add(1)).collect();
    assert!(found == expected, "a copy did not wait");
    // SAFETY: a handle of the driver's.
    unsafe { (driver.destroy_stream)(stream) };
    drop((link, back));
    drop((sources, results, buffer, arrived, computed, left));
    assert_eq!(driver.violations(), "");
}

#[test]
#[ignore = "run by a test of the module above"]
fn pinned_and_pageable() {
    if !is_inside() {
        return;
    }
    let (driver, device, mut link, event) = setting();
    let buffer = DeviceBuffer::new(device, 4096).unwrap();
    let pinned = link.pinning().pinned(8192).unwrap();
    assert!(pinned.is_pinned());
    let pageable = HostMemory::new(4096).unwrap();
    // The context of a thread is its own: ggml's choice stays.
    let mut context = 0;
    // SAFETY: a place for the handle.
    assert_eq!(unsafe { (driver.current)(&raw mut context) }, 0);
    // SAFETY: none is always allowed.
    assert_eq!(unsafe { (driver.set_current)(0) }, 0);
    for (memory, expected) in [(&pinned, (2, 0)), (&pageable, (2, 2))] {
        let address = memory.address(0);
        // SAFETY: nobody else touches the memory until the link is drained.
        unsafe { link.copy_in(&buffer, 0, address, 4096) }.unwrap();
        // SAFETY: as above.
        unsafe { link.copy_out(&buffer, 0, address, 4096) }.unwrap();
        let counts = driver.counted();
        assert_eq!((counts.pinned, counts.pageable), expected);
    }
    drain(&mut link, &event);
    let mut current = 1;
    // SAFETY: a place for the handle.
    assert_eq!(unsafe { (driver.current)(&raw mut current) }, 0);
    assert_eq!(current, 0, "the link left its context behind");
    // It may outlive the link, and is freed in the context that it came from.
    drop(link);
    // SAFETY: nobody else knows it.
    unsafe { pinned.fill(0..8192, 3) };
    drop(pinned);
    // SAFETY: it was the thread's before.
    assert_eq!(unsafe { (driver.set_current)(context) }, 0);
    drop((event, buffer));
    assert_eq!(driver.violations(), "");
}

#[test]
#[ignore = "run by a test of the module above"]
fn without_pinned_memory() {
    if !is_inside() {
        return;
    }
    let (driver, _, link, event) = setting();
    let refused = link.pinning().pinned(3 << 20).unwrap_err();
    let expected = "CUDA0: 'cuMemHostAlloc of 3 MiB' gave 'out of memory \
                    (CUDA_ERROR_OUT_OF_MEMORY, 2)'";
    assert_eq!(refused, expected);
    // It is no end: there is a little left.
    assert!(link.pinning().pinned(4096).is_ok());
    drop((link, event));
    assert_eq!(driver.violations(), "");
}

#[test]
#[ignore = "run by a test of the module above"]
fn devices_by_bus_id() {
    if !is_inside() {
        return;
    }
    let of = |name: &str, bus_id: Option<&str>, ordinal: Option<usize>| {
        Context::new(name, bus_id, ordinal).map(|context| context.ordinal())
    };
    // CUDA_VISIBLE_DEVICES may count in another way: the bus decides, where it is known.
    assert_eq!(of("CUDA0", Some("0000:02:00.0"), Some(0)), Ok(1));
    assert_eq!(of("CUDA3", Some("0000:02:00.0-v3"), Some(3)), Ok(1));
    assert_eq!(of("CUDA1", None, Some(1)), Ok(1));
    let unknown = of("CUDA0", Some("0000:09:00.0"), Some(0)).unwrap_err();
    assert!(
        unknown.contains("'cuDeviceGetByPCIBusId' gave"),
        "{unknown}"
    );
    assert!(unknown.contains("for '0000:09:00.0'"), "{unknown}");
    let unknown = of("CUDA7", None, Some(7)).unwrap_err();
    assert!(unknown.contains("invalid device ordinal"), "{unknown}");
    let other = device(Driver::load(), "Vulkan0", BUS_ID);
    let refused = CudaLink::new(other).unwrap_err();
    assert_eq!(refused, "'Vulkan0' is no device of CUDA's");
}

#[test]
#[ignore = "run by a test of the module above"]
fn refuses() {
    if !is_inside() {
        return;
    }
    let expected = std::env::var("EXPECTED").unwrap();
    for _ in 0..2 {
        let refused = Context::new("CUDA0", Some(BUS_ID), Some(0)).unwrap_err();
        assert!(refused.contains(&expected), "{refused}");
    }
}

#[test]
#[ignore = "run by a test of the module above"]
fn lost_device() {
    if !is_inside() {
        return;
    }
    let (driver, device, mut link, event) = setting();
    let buffer = DeviceBuffer::new(device, 4096).unwrap();
    let pinned = link.pinning().pinned(8192).unwrap();
    let mut sentence = None;
    for _ in 0..20 {
        // SAFETY: nobody else touches the memory.
        let copied = unsafe { link.copy_in(&buffer, 0, pinned.address(0), 4096) };
        let result = copied
            .and_then(|()| link.record(&event))
            .and_then(|()| link.synchronize(&event));
        match (&sentence, result) {
            (None, Err(first)) => sentence = Some(first),
            // The same sentence, whatever is asked for.
            (Some(first), result) => assert_eq!(result.as_ref(), Err(first)),
            (None, Ok(())) => {}
        }
    }
    let sentence = sentence.expect("the device was lost");
    let has = |text: &str| sentence.contains(text);
    assert!(
        has("CUDA0 was lost: '") && has(&std::env::var("EXPECTED").unwrap()),
        "{sentence}"
    );
    assert!(has(&std::env::var("EXPECTED_CODE").unwrap()), "{sentence}");
    assert_eq!(link.wait(&event), Err(sentence.clone()));
    assert_eq!(link.pinning().pinned(10).unwrap_err(), sentence);
    drop((link, pinned, buffer, event));
    assert_eq!(driver.violations(), "");
}
