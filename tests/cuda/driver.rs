//! The fake driver's own functions, for a test that plays ggml-cuda on it.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

/// A function that a stream calls.
pub type HostFunction = unsafe extern "C" fn(*mut c_void);

macro_rules! functions {
    ($($field:ident = $name:ident($($argument:ty),*) -> $result:ty;)*) => {
        /// The functions, of the library that the program has loaded as the driver.
        #[derive(Clone, Copy, Debug)]
        #[allow(non_snake_case, reason = "the driver's names")]
        pub struct Driver {
            $(pub $field: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl Driver {
            pub fn load() -> Self {
                // SAFETY: a C string; what is loaded is our own.
                let library = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW) };
                assert!(!library.is_null(), "there is no driver");
                let find = |name: &CStr| {
                    // SAFETY: a loaded library and a C string.
                    let found = unsafe { libc::dlsym(library, name.as_ptr()) };
                    assert!(!found.is_null(), "there is no {name:?}");
                    found
                };
                Self {
                    $($field: {
                        let name = concat!(stringify!($name), "\0").as_bytes();
                        let found = find(CStr::from_bytes_with_nul(name).unwrap());
                        // SAFETY: the fake driver's function of this name is of this type.
                        unsafe {
                            std::mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($argument),*) -> $result,
                            >(found)
                        }
                    },)*
                }
            }
        }
    };
}

functions! {
    init = cuInit(c_uint) -> c_int;
    retain = cuDevicePrimaryCtxRetain(*mut usize, c_int) -> c_int;
    set_current = cuCtxSetCurrent(usize) -> c_int;
    current = cuCtxGetCurrent(*mut usize) -> c_int;
    allocate = cuMemAlloc_v2(*mut usize, usize) -> c_int;
    free = cuMemFree_v2(usize) -> c_int;
    synchronize_stream = cuStreamSynchronize(usize) -> c_int;
    create_stream = cuStreamCreate(*mut usize, c_uint) -> c_int;
    destroy_stream = cuStreamDestroy_v2(usize) -> c_int;
    wait_event = cuStreamWaitEvent(usize, usize, c_uint) -> c_int;
    launch = cuLaunchHostFunc(usize, HostFunction, *mut c_void) -> c_int;
    create_event = cuEventCreate(*mut usize, c_uint) -> c_int;
    destroy_event = cuEventDestroy_v2(usize) -> c_int;
    record_event = cuEventRecord(usize, usize) -> c_int;
    synchronize_event = cuEventSynchronize(usize) -> c_int;
    fill = cuMemsetD8_v2(usize, u8, usize) -> c_int;
    copy_out = cuMemcpyDtoHAsync_v2(*mut c_void, usize, usize, usize) -> c_int;
    host_address = fake_cuda_host_address(usize) -> *mut c_void;
    mapped_address = fake_cuda_mapped_address(usize, usize) -> *mut c_void;
    created_bytes = fake_cuda_created_bytes() -> u64;
    used_bytes = fake_cuda_used_bytes() -> u64;
    peak_bytes = fake_cuda_peak_bytes() -> u64;
    report = fake_cuda_report(*mut c_char, usize) -> u64;
    counts = fake_cuda_counts(*mut [u64; 6]) -> ();
}

/// How copies were done so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    pub pinned: u64,
    pub pageable: u64,
}

impl Driver {
    /// What the program did wrong, a sentence each line.
    pub fn violations(&self) -> String {
        let mut text = [0_u8; 4096];
        // SAFETY: as many bytes as are told.
        unsafe { (self.report)(text.as_mut_ptr().cast(), text.len()) };
        let text = CStr::from_bytes_until_nul(&text).unwrap();
        text.to_string_lossy().into_owned()
    }

    /// How copies were done so far.
    pub fn counted(&self) -> Counts {
        let mut counts = [0; 6];
        // SAFETY: a place for six numbers.
        unsafe { (self.counts)(&raw mut counts) };
        Counts {
            pinned: counts[0],
            pageable: counts[1],
        }
    }
}
