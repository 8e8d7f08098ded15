//! A device of streams to test on, and a link to it that can be held up and broken.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::ThreadId;

use async_device::{AsyncDevice, ByHand, Delays, Options};

use super::super::link::{Link, Pinning};
use super::super::*;
use crate::ggml::{DeviceBuffer, Event, InnerDevice};
use crate::pager::engine::{Source, Target};
use crate::pager::tests::trial::{MODEL_BYTES, Model, on_disk};

/// Small places, so that small copies need many, and cuts at every kind of place.
pub const SMALL: Tuning = Tuning {
    place_bytes: 2 * BLOCK_BYTES,
    places: 3,
    places_out: 2,
    slab_bytes: 3 * BLOCK_BYTES,
};

/// What a link is to be like.
#[derive(Clone, Debug, Default)]
pub struct Manner {
    /// Has memory of which it says that it is pinned, and this often.
    pub pinned_max: Option<u64>,
    /// The call that fails, counted from 0 over all streams.
    pub fails_at: Option<u64>,
    /// Calls so far.
    pub calls: Arc<AtomicU64>,
    /// The device gives one stream of copies and no more.
    pub has_one_stream: bool,
    /// Nobody gets past blocking for an event while it is shut.
    pub gate: Arc<Gate>,
}

/// A gate, open at first.
#[derive(Debug, Default)]
pub struct Gate {
    is_shut: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    pub fn shut(&self) {
        *self.is_shut.lock().unwrap() = true;
    }

    pub fn open(&self) {
        *self.is_shut.lock().unwrap() = false;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let is_shut = self.is_shut.lock().unwrap();
        drop(self.opened.wait_while(is_shut, |is_shut| *is_shut).unwrap());
    }
}

/// A link over ggml's interface that keeps count.
#[derive(Debug)]
pub struct TestLink {
    inner: GgmlLink,
    manner: Manner,
    thread: Option<ThreadId>,
    pinning: Arc<TestPinning>,
}

impl TestLink {
    pub fn new(device: InnerDevice, manner: Manner) -> Self {
        Self {
            inner: GgmlLink::new(device).unwrap(),
            pinning: Arc::new(TestPinning {
                left: AtomicU64::new(manner.pinned_max.unwrap_or(0)),
            }),
            manner,
            thread: None,
        }
    }

    fn call(&mut self) -> Result<(), String> {
        let this = std::thread::current().id();
        assert_eq!(*self.thread.get_or_insert(this), this, "one thread calls");
        let index = self.manner.calls.fetch_add(1, Ordering::Relaxed);
        match self.manner.fails_at == Some(index) {
            true => Err("the device was lost".to_owned()),
            false => Ok(()),
        }
    }
}

impl Link for TestLink {
    fn name(&self) -> String {
        "TEST0".to_owned()
    }

    fn device(&self) -> InnerDevice {
        self.inner.device()
    }

    fn another(&self) -> Result<Box<dyn Link>, String> {
        if self.manner.has_one_stream {
            return Err("the device gives no more of them".to_owned());
        }
        Ok(Box::new(Self {
            inner: GgmlLink::new(self.inner.device())?,
            manner: self.manner.clone(),
            thread: None,
            pinning: Arc::clone(&self.pinning),
        }))
    }

    fn pinning(&self) -> Arc<dyn Pinning> {
        Arc::clone(&self.pinning) as Arc<dyn Pinning>
    }

    unsafe fn copy_in(
        &mut self,
        to: &DeviceBuffer,
        offset: usize,
        from: *const u8,
        bytes: usize,
    ) -> Result<(), String> {
        self.call()?;
        // SAFETY: the caller's promise.
        unsafe { self.inner.copy_in(to, offset, from, bytes) }
    }

    unsafe fn copy_out(
        &mut self,
        from: &DeviceBuffer,
        offset: usize,
        to: *mut u8,
        bytes: usize,
    ) -> Result<(), String> {
        self.call()?;
        // SAFETY: the caller's promise.
        unsafe { self.inner.copy_out(from, offset, to, bytes) }
    }

    unsafe fn fill(
        &mut self,
        to: &DeviceBuffer,
        range: std::ops::Range<usize>,
        value: u8,
    ) -> Result<(), String> {
        self.call()?;
        // SAFETY: the caller's promise.
        unsafe { self.inner.fill(to, range, value) }
    }

    fn record(&mut self, event: &Event) -> Result<(), String> {
        self.call()?;
        self.inner.record(event)
    }

    fn wait(&mut self, event: &Event) -> Result<(), String> {
        self.call()?;
        self.inner.wait(event)
    }

    fn synchronize(&mut self, event: &Event) -> Result<(), String> {
        self.call()?;
        self.manner.gate.pass();
        self.inner.synchronize(event)
    }
}

/// Ordinary memory of which it is said that it is pinned.
#[derive(Debug)]
struct TestPinning {
    left: AtomicU64,
}

impl Pinning for TestPinning {
    fn pinned(&self, bytes: usize) -> Result<HostMemory, String> {
        let take = |left: u64| left.checked_sub(1);
        let order = Ordering::Relaxed;
        if self.left.fetch_update(order, order, take).is_err() {
            return Err("the driver pins no more of it".to_owned());
        }
        Ok(pinned(bytes))
    }
}

/// Ordinary memory of which it is said that it is pinned.
pub fn pinned(bytes: usize) -> HostMemory {
    let owner = HostMemory::new(bytes).unwrap();
    let address = owner.address(0);
    // SAFETY: the mapping is the owner's, who is kept and used by nobody else.
    unsafe { HostMemory::pinned(address, bytes, owner) }
}

/// A device, an engine on it, and a folder with a model's file.
pub struct Rig {
    // In this order: buffers and backends go before their device.
    pub engine: DeviceEngine,
    pub inner: InnerDevice,
    pub files: Model,
    pub device: AsyncDevice,
}

impl Rig {
    pub fn new(manner: &Manner, setup: Setup, delays: Delays, seed: u64) -> Self {
        let device = AsyncDevice::new(Options {
            delays,
            seed,
            ..Options::default()
        })
        .unwrap();
        // SAFETY: the device outlives the engine and what the tests make of it.
        let inner = unsafe { InnerDevice::from_raw(device.raw()) }.unwrap();
        let link = Box::new(TestLink::new(inner, manner.clone()));
        Self {
            engine: DeviceEngine::tuned(link, setup, SMALL).unwrap(),
            inner,
            files: Model::new(&on_disk(), MODEL_BYTES),
            device,
        }
    }

    /// As most tests want it: pinned memory, nothing kept, short delays.
    pub fn plain() -> Self {
        Self::new(&with_pinned(), setup(0), Delays::Short, 7)
    }

    pub fn buffer(&self, bytes: usize) -> Arc<DeviceBuffer> {
        Arc::new(DeviceBuffer::new(self.inner, bytes).unwrap())
    }

    /// A fence that comes when it is told to.
    pub fn by_hand(&self) -> (Fence, ByHand) {
        let event = Event::new(self.inner).unwrap();
        // SAFETY: the event is live, and of this device.
        let recording = unsafe { self.device.record_by_hand(event.as_ptr()) };
        (Arc::new(event), recording)
    }

    /// Waits for everything, and forgets what failed.
    pub fn drain(&mut self) {
        let _ = self.engine.wait(self.engine.newest());
        self.engine.forget_failures();
    }

    /// Nothing was done to the device that must not be.
    pub fn check(&self) {
        assert_eq!(self.device.take_complaints(), [""; 0]);
    }
}

pub fn with_pinned() -> Manner {
    Manner {
        pinned_max: Some(u64::MAX),
        ..Manner::default()
    }
}

/// All in one stream.
pub fn with_one_stream() -> Manner {
    Manner {
        has_one_stream: true,
        ..with_pinned()
    }
}

pub fn setup(keep_bytes: u64) -> Setup {
    Setup {
        workers: 1,
        faults: Faults::default(),
        keep: Arc::new(Room::new(keep_bytes)),
    }
}

pub fn device_bytes(memory: &DeviceBuffer) -> Vec<u8> {
    let mut bytes = vec![0; memory.bytes()];
    // SAFETY: the engine has been drained, nobody writes.
    unsafe { memory.read(0, &mut bytes) };
    bytes
}

pub fn from_device(memory: &Arc<DeviceBuffer>, offset: usize) -> Source {
    let memory = Arc::clone(memory);
    Source::Device { memory, offset }
}

pub fn in_device(memory: &Arc<DeviceBuffer>, offset: usize) -> Target {
    let memory = Arc::clone(memory);
    Target::Device { memory, offset }
}
