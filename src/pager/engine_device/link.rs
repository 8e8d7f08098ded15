//! What an engine asks of a link between the machine's memory and a device's: copies in
//! order on a stream of their own, events, and memory from which copies overlap.

use std::ops::Range;
use std::sync::Arc;

use super::super::memory::HostMemory;
use crate::ggml::{DeviceBuffer, Event, InnerDevice};

/// A stream of a device that copies. What is queued is done in the order of the calls,
/// fills, recordings and waits included, while the device computes on another stream.
///
/// All calls come from one thread, except that the link may be made on another one. None
/// of them waits for what was queued before, but `synchronize`; a copy from or to memory
/// that is not pinned may.
///
/// Errors are sentences, and the end of the link: nothing more is asked of it, but to be
/// dropped. `drop` waits until nothing that was queued touches memory any more.
pub trait Link: Send + std::fmt::Debug {
    /// What messages call it: the device, and by which means it copies.
    fn name(&self) -> String;

    /// The device, of which events are made.
    fn device(&self) -> InnerDevice;

    /// One more stream of the device: nothing but events orders what is queued on the two.
    ///
    /// # Errors
    /// A sentence, when the device gives none.
    fn another(&self) -> Result<Box<dyn Link>, String>;

    /// Where memory for copies comes from, for any thread.
    fn pinning(&self) -> Arc<dyn Pinning>;

    /// Queues a copy of `bytes` bytes into the device's memory, to `offset` of `to`.
    ///
    /// # Errors
    /// A sentence, when the device fails.
    ///
    /// # Safety
    /// Until an event has come that is recorded afterwards:
    /// - `from` is valid for `bytes` bytes, and nobody writes them but earlier copies of
    ///   this link;
    /// - the buffer lives, the range lies in it, and nobody else touches it, but for what
    ///   this link was told to wait for.
    unsafe fn copy_in(
        &mut self,
        to: &DeviceBuffer,
        offset: usize,
        from: *const u8,
        bytes: usize,
    ) -> Result<(), String>;

    /// Queues a copy of `bytes` bytes out of the device's memory, from `offset` of `from`.
    ///
    /// # Errors
    /// A sentence, when the device fails.
    ///
    /// # Safety
    /// Until an event has come that is recorded afterwards:
    /// - `to` is valid for `bytes` bytes, and nobody touches them but other copies of this
    ///   link;
    /// - the buffer lives, the range lies in it, and nobody writes it, but for what this
    ///   link was told to wait for.
    unsafe fn copy_out(
        &mut self,
        from: &DeviceBuffer,
        offset: usize,
        to: *mut u8,
        bytes: usize,
    ) -> Result<(), String>;

    /// Queues that a range of the device's memory, in bytes, becomes `value`.
    ///
    /// # Errors
    /// A sentence, when the device fails.
    ///
    /// # Safety
    /// Until an event has come that is recorded afterwards:
    /// - the buffer lives, the range lies in it, and nobody else touches it, but for what
    ///   this link was told to wait for.
    unsafe fn fill(
        &mut self,
        to: &DeviceBuffer,
        range: Range<usize>,
        value: u8,
    ) -> Result<(), String>;

    /// Has `event` come when everything queued so far is done, and sees to it that the
    /// device begins with that. Nobody waits for an earlier recording of the event.
    ///
    /// # Errors
    /// A sentence, when the device fails.
    fn record(&mut self, event: &Event) -> Result<(), String>;

    /// Has whatever is queued from now on begin only when `event` has come, which another
    /// stream of the device recorded. It is not recorded again before then.
    ///
    /// # Errors
    /// A sentence, when the device fails.
    fn wait(&mut self, event: &Event) -> Result<(), String>;

    /// Blocks until `event` has come, which this link recorded.
    ///
    /// # Errors
    /// A sentence, when the device failed before.
    fn synchronize(&mut self, event: &Event) -> Result<(), String>;
}

/// Where memory comes from that a link reads and writes while others compute.
pub trait Pinning: Send + Sync + std::fmt::Debug {
    /// Takes `bytes` bytes of it, pinned (`HostMemory::is_pinned`), from an address that
    /// is a multiple of `BLOCK_BYTES`. What is in there is undefined. It may outlive the
    /// link.
    ///
    /// # Errors
    /// A sentence with the reason, when there is none of that kind: ordinary memory does
    /// as well then, but copies do not overlap.
    fn pinned(&self, bytes: usize) -> Result<HostMemory, String>;
}
