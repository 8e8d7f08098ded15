//! A driver under the device, in the place of its own memory, streams and events.

use std::ffi::CStr;
use std::fmt::Debug;

/// What is done when a stream gets there.
pub type Call = Box<dyn FnOnce() + Send>;

/// A driver's memory, streams and events, by handle; functions that fail say so.
pub trait Platform: Debug + Send + Sync {
    /// What the device is called.
    fn name(&self) -> &CStr;

    /// Its place on the bus.
    fn bus_id(&self) -> &CStr;

    /// Takes memory: the device's address, and where it really is; None when there is no
    /// more.
    fn allocate(&self, bytes: usize) -> Option<(usize, *mut u8)>;

    /// Where bytes really are that lie in no buffer, at addresses to which the program had
    /// the driver map memory; None when they do not.
    fn mapped(&self, _address: usize, _bytes: usize) -> Option<*mut u8> {
        None
    }

    /// Gives memory back, by the device's address.
    fn free(&self, address: usize);

    /// Starts a stream.
    ///
    /// # Errors
    /// A sentence, when it does not start.
    fn start_stream(&self) -> Result<usize, String>;

    /// Ends a stream on which everything is done.
    fn end_stream(&self, stream: usize);

    /// Has a stream make a call.
    fn launch(&self, stream: usize, call: Call);

    /// Blocks until everything on a stream is done.
    fn synchronize(&self, stream: usize);

    /// A new event; None when there is none.
    fn new_event(&self) -> Option<usize>;

    /// Ends an event.
    fn free_event(&self, event: usize);

    /// Records an event at the end of a stream.
    fn record(&self, event: usize, stream: usize);

    /// Has what is queued on a stream from now on wait for the newest recording.
    fn wait(&self, event: usize, stream: usize);

    /// Blocks until an event has come.
    fn wait_here(&self, event: usize);
}
