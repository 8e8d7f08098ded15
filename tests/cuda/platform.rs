//! The fake driver under the device for tests, as the real one is under ggml-cuda.

use std::ffi::{CStr, c_void};

use async_device::{Call, Platform};

use super::driver::Driver;

/// A card of the fake driver's.
#[derive(Debug)]
pub struct Card {
    driver: Driver,
    context: usize,
}

impl Card {
    /// The first one.
    pub fn new() -> Self {
        let driver = Driver::load();
        let mut context = 0;
        // SAFETY: no preconditions.
        assert_eq!(unsafe { (driver.init)(0) }, 0);
        // SAFETY: a place for the handle.
        assert_eq!(unsafe { (driver.retain)(&raw mut context, 0) }, 0);
        Self { driver, context }
    }

    /// Makes the context the thread's, as CUDA's runtime does.
    fn entered(&self) -> &Driver {
        // SAFETY: held as long as the process runs.
        unsafe { (self.driver.set_current)(self.context) };
        &self.driver
    }
}

/// ggml-cuda ends the process for any error. Here a lost device is passed over: that the
/// engine says so is what a test wants to see.
fn check(status: i32) {
    assert!(matches!(status, 0 | 700), "the driver gave {status}");
}

unsafe extern "C" fn call(argument: *mut c_void) {
    // SAFETY: boxed by `launch`, for one call.
    let call = unsafe { Box::from_raw(argument.cast::<Call>()) };
    call();
}

impl Platform for Card {
    fn name(&self) -> &CStr {
        c"CUDA0"
    }

    fn bus_id(&self) -> &CStr {
        c"0000:01:00.0"
    }

    fn allocate(&self, bytes: usize) -> Option<(usize, *mut u8)> {
        let driver = self.entered();
        let mut address = 0;
        // SAFETY: a place for the address.
        let status = unsafe { (driver.allocate)(&raw mut address, bytes.max(1)) };
        // SAFETY: no preconditions.
        (status == 0).then(|| (address, unsafe { (driver.host_address)(address) }.cast()))
    }

    fn mapped(&self, address: usize, bytes: usize) -> Option<*mut u8> {
        // SAFETY: no preconditions.
        let found = unsafe { (self.driver.mapped_address)(address, bytes) };
        (!found.is_null()).then_some(found.cast())
    }

    fn free(&self, address: usize) {
        // SAFETY: allocated above.
        check(unsafe { (self.entered().free)(address) });
    }

    fn start_stream(&self) -> Result<usize, String> {
        let mut stream = 0;
        // SAFETY: a place for the handle. Not blocking, as ggml-cuda's.
        let status = unsafe { (self.entered().create_stream)(&raw mut stream, 1) };
        (status == 0)
            .then_some(stream)
            .ok_or_else(|| format!("the driver gave {status}"))
    }

    fn end_stream(&self, stream: usize) {
        // SAFETY: started above.
        check(unsafe { (self.entered().destroy_stream)(stream) });
    }

    fn launch(&self, stream: usize, work: Call) {
        let argument = Box::into_raw(Box::new(work)).cast();
        // SAFETY: the call frees what it gets.
        check(unsafe { (self.entered().launch)(stream, call, argument) });
    }

    fn synchronize(&self, stream: usize) {
        // SAFETY: a handle of the driver's.
        check(unsafe { (self.entered().synchronize_stream)(stream) });
    }

    fn new_event(&self) -> Option<usize> {
        let mut event = 0;
        // SAFETY: a place for the handle. Without time, as ggml-cuda's.
        let status = unsafe { (self.entered().create_event)(&raw mut event, 2) };
        (status == 0).then_some(event)
    }

    fn free_event(&self, event: usize) {
        // SAFETY: a handle of the driver's.
        check(unsafe { (self.entered().destroy_event)(event) });
    }

    fn record(&self, event: usize, stream: usize) {
        // SAFETY: handles of the driver's.
        check(unsafe { (self.entered().record_event)(event, stream) });
    }

    fn wait(&self, event: usize, stream: usize) {
        // SAFETY: handles of the driver's.
        check(unsafe { (self.entered().wait_event)(stream, event, 0) });
    }

    fn wait_here(&self, event: usize) {
        // SAFETY: a handle of the driver's.
        check(unsafe { (self.entered().synchronize_event)(event) });
    }
}
