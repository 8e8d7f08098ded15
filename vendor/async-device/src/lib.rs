//! A ggml device for tests that behaves like a GPU, and computes with ggml's CPU backend.
//!
//! - **Memory** of the device is not the host's: addresses are made up, never given twice,
//!   and mapped nowhere. Following one on the host ends the process; a graph or a copy that
//!   uses one that lies in no live buffer is a complaint, as is a canary that was hit.
//! - **Backends** are streams: each has a thread that does what is queued, one thing after
//!   the other, after a seeded delay. A graph is copied when it is launched (tensors,
//!   sources, addresses, parameters): its owner may point the tensors elsewhere at once.
//!   The bytes of an asynchronous write are read when the stream gets there.
//! - **Events** are CUDA's: a wait is for the newest recording at the time of the call.
//! - Copies of a *buffer* (`ggml_backend_tensor_set` and its like) happen at once, whatever
//!   the streams do: as on a GPU, the caller has to have waited.
//!
//! ```text
//!  device.rs   what the device is and can        backend.rs   queues work on a stream
//!  buffer.rs   buffer type and buffers           stream.rs    a thread and its queue
//!  memory.rs   addresses, canaries, poison       executor.rs  does a piece of work
//!  event.rs    recordings that one waits for     snapshot.rs  a graph as it was launched
//!  padding.rs  what kernels read behind rows     captures.rs  graphs that are replayed
//!  platform.rs a driver that takes their place   driven.rs    its streams
//!                                                guard.rs     no panic crosses
//! ```

mod backend;
mod buffer;
mod captures;
mod device;
mod driven;
mod event;
mod executor;
mod guard;
mod memory;
mod padding;
mod platform;
mod random;
mod shared;
mod snapshot;
mod stream;

use std::sync::Arc;

use ggml_sys as sys;

use self::backend::event_of;
use self::event::Recording;

pub use self::platform::{Call, Platform};
use self::shared::Shared;
pub use self::shared::{Counters, Delays, Options};

/// A recording of an event that comes when it is told to, or dropped.
#[derive(Debug)]
pub struct ByHand(Arc<Recording>);

impl ByHand {
    /// It has come.
    pub fn come(&self) {
        self.0.complete();
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        self.come();
    }
}

/// A device of its own. It must outlive every buffer, backend and event made with it.
#[derive(Debug)]
pub struct AsyncDevice {
    shared: Arc<Shared>,
}

impl AsyncDevice {
    /// A device as `options` say.
    ///
    /// # Errors
    /// When llama.cpp was built without its CPU backend.
    pub fn new(options: Options) -> Result<Self, String> {
        Shared::new(options, None).map(|shared| Self { shared })
    }

    /// A device over a driver, whose memory, streams and events it has; delays are the
    /// driver's own.
    ///
    /// # Errors
    /// When llama.cpp was built without its CPU backend.
    pub fn over(options: Options, platform: Arc<dyn Platform>) -> Result<Self, String> {
        Shared::new(options, Some(platform)).map(|shared| Self { shared })
    }

    /// ggml's pointer to the device, valid until `self` is dropped.
    pub fn raw(&self) -> sys::ggml_backend_dev_t {
        self.shared.device_ptr()
    }

    /// Records an event as if a stream had, which gets there when a test says so.
    ///
    /// # Safety
    /// - `event` is a live event of this device, which is over no driver.
    pub unsafe fn record_by_hand(&self, event: sys::ggml_backend_event_t) -> ByHand {
        // SAFETY: the caller's promise.
        let event = unsafe { event_of(event) };
        // No backend has this number.
        ByHand(event.record(0))
    }

    /// What was done so far, and what there is at the moment.
    pub fn counters(&self) -> Counters {
        self.shared.counters()
    }

    /// What was done wrong with the device since this was last asked, oldest first; the
    /// canaries of live buffers are looked at now.
    pub fn take_complaints(&self) -> Vec<String> {
        self.shared.check_canaries();
        self.shared.take_complaints()
    }
}
