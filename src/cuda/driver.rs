//! The driver's functions, looked up once, and what its codes mean.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdeviceptr, CUevent, CUmemAccessDesc,
    CUmemAllocationGranularity_flags, CUmemAllocationProp, CUmemGenericAllocationHandle, CUstream,
};

/// What a call gives back: 0 or an error code. No enumeration: a newer driver has codes
/// that an older list lacks.
pub type Status = c_int;

/// The oldest CUDA version that a driver may be of, as the driver counts.
const VERSION_MIN: c_int = 12_000;

/// What is said when there is no device.
const NO_DEVICE: &str = "the CUDA driver has no device; it may be hidden by \
                             CUDA_VISIBLE_DEVICES, or choose another with --device";

const NOT_FOUND: &str = "there is no CUDA driver (libcuda.so.1) on this machine; install \
                         NVIDIA's driver, or choose another device with --device";

macro_rules! calls {
    ($($(#[$doc:meta])* $field:ident = $name:ident($($argument:ty),*);)*) => {
        /// The functions that are used, by what they do.
        #[derive(Clone, Copy, Debug)]
        pub struct Calls {
            $($(#[$doc])* pub $field: unsafe extern "C" fn($($argument),*) -> Status,)*
        }

        impl Calls {
            /// Looks all of them up.
            fn load() -> Result<Self, String> {
                Ok(Self {
                    // SAFETY: the driver's function of this name has these arguments.
                    $($field: unsafe {
                        symbol(concat!(stringify!($name), "\0"))
                    }.ok_or_else(|| missing(stringify!($name)))?,)*
                })
            }
        }
    };
}

calls! {
    /// Starts the driver.
    init = cuInit(c_uint);
    /// The CUDA version it is of.
    version = cuDriverGetVersion(*mut c_int);
    /// The name of an error.
    error_name = cuGetErrorName(Status, *mut *const c_char);
    /// The text of an error.
    error_text = cuGetErrorString(Status, *mut *const c_char);
    /// How many devices there are.
    device_count = cuDeviceGetCount(*mut c_int);
    /// The device of an ordinal.
    device = cuDeviceGet(*mut CUdevice, c_int);
    /// The device at a place on the bus.
    device_by_bus_id = cuDeviceGetByPCIBusId(*mut CUdevice, *const c_char);
    /// Its place on the bus, in text.
    bus_id = cuDeviceGetPCIBusId(*mut c_char, c_int, CUdevice);
    /// What a device can do.
    device_attribute = cuDeviceGetAttribute(*mut c_int, c_int, CUdevice);
    /// Holds the context that CUDA's runtime uses too.
    retain = cuDevicePrimaryCtxRetain(*mut CUcontext, CUdevice);
    /// Lets go of it.
    release = cuDevicePrimaryCtxRelease_v2(CUdevice);
    /// Its flags, and whether anybody in this process holds it.
    context_state = cuDevicePrimaryCtxGetState(CUdevice, *mut c_uint, *mut c_int);
    /// Makes a context the thread's.
    set_current = cuCtxSetCurrent(CUcontext);
    /// The thread's context.
    current = cuCtxGetCurrent(*mut CUcontext);
    /// Pinned memory.
    allocate_host = cuMemHostAlloc(*mut *mut c_void, usize, c_uint);
    /// Frees it.
    free_host = cuMemFreeHost(*mut c_void);
    /// Queues a copy to the device.
    copy_in = cuMemcpyHtoDAsync_v2(CUdeviceptr, *const c_void, usize, CUstream);
    /// Queues a copy from the device.
    copy_out = cuMemcpyDtoHAsync_v2(*mut c_void, CUdeviceptr, usize, CUstream);
    /// Queues a fill.
    fill = cuMemsetD8Async(CUdeviceptr, u8, usize, CUstream);
    /// The unit in which memory is created and mapped.
    granularity = cuMemGetAllocationGranularity(
        *mut usize, *const CUmemAllocationProp, CUmemAllocationGranularity_flags);
    /// Reserves addresses.
    reserve = cuMemAddressReserve(*mut CUdeviceptr, usize, usize, CUdeviceptr, c_ulonglong);
    /// Gives them back.
    free_addresses = cuMemAddressFree(CUdeviceptr, usize);
    /// Takes memory that has no address yet.
    create = cuMemCreate(
        *mut CUmemGenericAllocationHandle, usize, *const CUmemAllocationProp, c_ulonglong);
    /// Lets go of it: it is given back when it is mapped nowhere.
    release_memory = cuMemRelease(CUmemGenericAllocationHandle);
    /// Maps it at reserved addresses.
    map = cuMemMap(CUdeviceptr, usize, usize, CUmemGenericAllocationHandle, c_ulonglong);
    /// Takes the mapping away.
    unmap = cuMemUnmap(CUdeviceptr, usize);
    /// Lets devices use what is mapped.
    set_access = cuMemSetAccess(CUdeviceptr, usize, *const CUmemAccessDesc, usize);
    /// A new stream.
    create_stream = cuStreamCreate(*mut CUstream, c_uint);
    /// Ends it.
    destroy_stream = cuStreamDestroy_v2(CUstream);
    /// Waits for what is queued on it.
    synchronize_stream = cuStreamSynchronize(CUstream);
    /// Queues a wait for an event.
    wait_event = cuStreamWaitEvent(CUstream, CUevent, c_uint);
    /// Queues the recording of an event.
    record_event = cuEventRecord(CUevent, CUstream);
    /// Waits for an event.
    synchronize_event = cuEventSynchronize(CUevent);
}

/// The driver, started.
#[derive(Clone, Copy, Debug)]
pub struct Driver {
    /// Its functions.
    pub calls: Calls,
}

/// A function of the driver's by its name, which ends with a zero; None where it has none
/// of that name. Only where there is a driver.
///
/// # Safety
/// - `F` is the type of a pointer to that function.
pub unsafe fn symbol<F: Copy>(name: &str) -> Option<F> {
    // SAFETY: loading it runs what NVIDIA put there. Panics without a library; there is
    // one.
    let library = unsafe { sys::culib() };
    // SAFETY: the caller's promise.
    let found = unsafe { library.get::<F>(name.as_bytes()) };
    found.ok().map(|symbol| *symbol)
}

fn missing(name: &str) -> String {
    format!("the CUDA driver lacks '{name}': it is too old; install one for CUDA 12.0 or newer")
}

/// The driver, loaded and started once.
///
/// # Errors
/// A sentence: it is not there, too old, or does not start.
pub fn driver() -> Result<&'static Driver, String> {
    static DRIVER: OnceLock<Result<Driver, String>> = OnceLock::new();
    let found = DRIVER.get_or_init(Driver::start).as_ref();
    found.map_err(String::clone)
}

impl Driver {
    fn start() -> Result<Self, String> {
        // SAFETY: loading it runs what NVIDIA put there.
        if !unsafe { sys::is_culib_present() } {
            return Err(NOT_FOUND.to_owned());
        }
        let calls = Calls::load()?;
        let mut number = 0;
        // SAFETY: a place for the number; the driver need not be started for this.
        calls.check("cuDriverGetVersion", unsafe {
            (calls.version)(&raw mut number)
        })?;
        if number < VERSION_MIN {
            let (major, minor) = (number / 1000, number % 1000 / 10);
            return Err(format!(
                "the CUDA driver is for CUDA {major}.{minor}, which is too old; install one \
                 for CUDA 12.0 or newer, or choose another device with --device"
            ));
        }
        // SAFETY: no preconditions; flags must be zero.
        match unsafe { (calls.init)(0) } {
            100 => return Err(NO_DEVICE.to_owned()),
            status => calls.check("cuInit", status)?,
        }
        Ok(Self { calls })
    }
}

impl Calls {
    /// What a call says by its code.
    ///
    /// # Errors
    /// A sentence with the call's name and CUDA's text.
    pub fn check(&self, call: &str, status: Status) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        Err(format!("'{call}' gave '{}'", self.describe(status)))
    }

    /// CUDA's text for an error, with its name and code.
    fn describe(&self, status: Status) -> String {
        let ask = |function: unsafe extern "C" fn(Status, *mut *const c_char) -> Status| {
            let mut text = std::ptr::null();
            // SAFETY: a place for a pointer; it is left alone, or null, for unknown codes.
            let known = unsafe { function(status, &raw mut text) };
            if known != 0 || text.is_null() {
                return None;
            }
            // SAFETY: the driver gave a C string, which is static.
            Some(
                unsafe { CStr::from_ptr(text) }
                    .to_string_lossy()
                    .into_owned(),
            )
        };
        match (ask(self.error_text), ask(self.error_name)) {
            (Some(text), Some(name)) => format!("{text} ({name}, {status})"),
            _ => format!("error {status}"),
        }
    }
}

/// Whether nothing can be done on the device after this error.
pub fn is_fatal(status: Status) -> bool {
    matches!(
        status,
        46 | 214 | 220 | 700 | 702 | 709 | 710 | 714..=719 | 999
    )
}
