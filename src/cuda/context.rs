//! The context in which everything on a device is done: the one that CUDA's runtime, and
//! with it ggml, uses.

use std::ffi::{CString, c_int};
use std::sync::{Arc, OnceLock};

use cudarc::driver::sys::{CUcontext, CUdevice};

use super::driver::{Calls, Status, driver, is_fatal};
use super::holding::card_of;

/// A device's primary context, held.
#[derive(Debug)]
pub struct Context {
    pub(super) calls: &'static Calls,
    raw: CUcontext,
    device: CUdevice,
    name: String,
    lost: OnceLock<String>,
}

// SAFETY: CUDA ties contexts to no thread: each makes them current for itself.
unsafe impl Send for Context {}
// SAFETY: as above; the driver's functions may be called from any thread.
unsafe impl Sync for Context {}

impl Context {
    /// Of the device at a place on the bus (`0000:01:00.0`), where that is known, else of
    /// an ordinal. `name` is what messages call it.
    ///
    /// # Errors
    /// A sentence, when there is no driver or no such device.
    pub fn new(
        name: &str,
        bus_id: Option<&str>,
        ordinal: Option<usize>,
    ) -> Result<Arc<Self>, String> {
        let calls = &driver()?.calls;
        let device = match (bus_id, ordinal) {
            (Some(bus_id), _) => by_bus_id(calls, bus_id),
            (None, Some(ordinal)) => by_ordinal(calls, ordinal),
            (None, None) => Err("ggml does not say which of CUDA's devices it is".to_owned()),
        };
        let device = device.map_err(|error| format!("{name}: {error}"))?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: a place for the handle, and a device.
        let status = unsafe { (calls.retain)(&raw mut raw, device) };
        let held = calls.check("cuDevicePrimaryCtxRetain", status);
        held.map_err(|error| format!("{name}: {error}"))?;
        Ok(Arc::new(Self {
            calls,
            raw,
            device,
            name: name.to_owned(),
            lost: OnceLock::new(),
        }))
    }

    /// What messages call the device.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The driver's number of the device.
    pub fn ordinal(&self) -> i32 {
        self.device
    }

    /// Does something in this context, and leaves the thread's own as it was.
    ///
    /// # Errors
    /// A sentence, when the device was lost, or `call` fails.
    pub(super) fn within(
        &self,
        what: &str,
        call: impl FnOnce(&Calls) -> Status,
    ) -> Result<(), String> {
        if let Some(sentence) = self.lost.get() {
            return Err(sentence.clone());
        }
        let _entered = self.enter()?;
        self.check(what, call(self.calls))
    }

    fn enter(&self) -> Result<Entered<'_>, String> {
        let mut before = std::ptr::null_mut();
        // SAFETY: a place for the handle.
        let status = unsafe { (self.calls.current)(&raw mut before) };
        self.check("cuCtxGetCurrent", status)?;
        if before != self.raw {
            // SAFETY: the context is held.
            let status = unsafe { (self.calls.set_current)(self.raw) };
            self.check("cuCtxSetCurrent", status)?;
        }
        Ok(Entered {
            context: self,
            before,
        })
    }

    fn check(&self, what: &str, status: Status) -> Result<(), String> {
        let name = &self.name;
        self.calls.check(what, status).map_err(|error| {
            if !is_fatal(status) {
                return format!("{name}: {error}");
            }
            let lost = format!(
                "{name} was lost: {error}; what was in its memory is gone, start again, or \
                 choose another device with --device"
            );
            self.lost.get_or_init(|| lost).clone()
        })
    }

    /// What the driver says of a device's attribute; 0 where it does not know it.
    pub(super) fn attribute(&self, attribute: c_int) -> c_int {
        let mut value: c_int = 0;
        // SAFETY: a place for the number, and a device.
        let status =
            unsafe { (self.calls.device_attribute)(&raw mut value, attribute, self.device) };
        if status == 0 { value } else { 0 }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once by `new`. What it says is nobody's business any more.
        let _ = unsafe { (self.calls.release)(self.device) };
    }
}

/// While it lives, the context is the thread's.
struct Entered<'a> {
    context: &'a Context,
    before: CUcontext,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if self.before != self.context.raw {
            // SAFETY: it was the thread's before.
            let _ = unsafe { (self.context.calls.set_current)(self.before) };
        }
    }
}

fn by_bus_id(calls: &Calls, bus_id: &str) -> Result<CUdevice, String> {
    let card = card_of(bus_id);
    let text = CString::new(card).map_err(|_| format!("'{card}' is no place on a bus"))?;
    let mut device = 0;
    // SAFETY: a place for the number, and a C string.
    let status = unsafe { (calls.device_by_bus_id)(&raw mut device, text.as_ptr()) };
    let found = calls.check("cuDeviceGetByPCIBusId", status);
    found.map_err(|error| format!("{error} for '{card}'"))?;
    Ok(device)
}

fn by_ordinal(calls: &Calls, ordinal: usize) -> Result<CUdevice, String> {
    let number = c_int::try_from(ordinal).map_err(|_| format!("no device {ordinal}"))?;
    let mut device = 0;
    // SAFETY: a place for the number.
    let status = unsafe { (calls.device)(&raw mut device, number) };
    let found = calls.check("cuDeviceGet", status);
    found.map_err(|error| format!("{error} for device {ordinal}"))?;
    Ok(device)
}
