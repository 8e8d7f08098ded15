//! Points in a device's streams that others wait for.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

use ggml_sys as sys;

use super::InnerDevice;

/// An event of the inner device, owned. It comes when what was queued on a stream before
/// its newest recording is done; one that was never recorded has come.
#[derive(Debug)]
pub struct Event(NonNull<sys::ggml_backend_event>);

// SAFETY: ggml does not tie an event to a thread.
unsafe impl Send for Event {}
// SAFETY: recording, waiting and synchronising are calls into the device, which orders them.
unsafe impl Sync for Event {}

/// An event that was recorded, shared by those who wait for it. It is recorded again only
/// when nobody holds it any more. So whoever has a stream wait for it holds it until that
/// wait is over, and who recorded it until it has come: a driver may wait for the event as
/// it is by then (ggml-vulkan does).
pub type Fence = Arc<Event>;

impl Event {
    /// A new event.
    ///
    /// # Errors
    /// A sentence, when the device has none.
    pub fn new(device: InnerDevice) -> Result<Self, String> {
        // SAFETY: the device is live.
        let raw = unsafe { sys::ggml_backend_event_new(device.as_ptr()) };
        NonNull::new(raw)
            .map(Self)
            .ok_or_else(|| "the device gives no event to wait for; see --device".to_owned())
    }

    /// The event, for calls into ggml.
    pub fn as_ptr(&self) -> sys::ggml_backend_event_t {
        self.0.as_ptr()
    }

    /// What the device knows it by: ggml-cuda keeps CUDA's own event there.
    pub fn handle(&self) -> *mut c_void {
        // SAFETY: the event is live, and nobody changes it.
        unsafe { (*self.as_ptr()).context }
    }

    /// Blocks until it has come.
    pub fn synchronize(&self) {
        // SAFETY: the event is live.
        unsafe { sys::ggml_backend_event_synchronize(self.as_ptr()) };
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `ggml_backend_event_new`, freed once.
        unsafe { sys::ggml_backend_event_free(self.as_ptr()) };
    }
}

/// Events to be recorded, used again when nobody waits for them any more.
#[derive(Debug)]
pub struct Events {
    device: InnerDevice,
    made: Vec<Fence>,
    next: usize,
}

impl Events {
    /// None made yet.
    pub fn new(device: InnerDevice) -> Self {
        Self {
            device,
            made: Vec::new(),
            next: 0,
        }
    }

    /// One that nobody holds, and that has come. Only the thread that records them asks.
    ///
    /// # Errors
    /// A sentence, when the device gives no more of them.
    pub fn free(&mut self) -> Result<Fence, String> {
        for _ in 0..self.made.len() {
            self.next = (self.next + 1) % self.made.len();
            let event = &mut self.made[self.next];
            if Arc::get_mut(event).is_some() {
                // Nothing is left to wait for; ggml-vulkan takes back here what belongs to
                // the last recording.
                event.synchronize();
                return Ok(Arc::clone(event));
            }
        }
        let event = Arc::new(Event::new(self.device)?);
        self.made.push(Arc::clone(&event));
        Ok(event)
    }
}
