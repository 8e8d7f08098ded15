//! The model inside this program, as a file that llama.cpp can open.
//!
//! On Linux the file lies in memory and has no name; elsewhere it is a private temporary
//! file that is removed as soon as the model is loaded, and at the latest at the end.
#![cfg_attr(
    target_os = "linux",
    allow(unsafe_code, reason = "makes a file in memory")
)]

use std::ffi::{CStr, CString};
use std::io::Write;

use crate::cli::size::show_bytes;
use crate::error::{Error, Result};

/// Its weights are Q8_0, its story grammar and its maker lie beside it.
const MODEL: &[u8] = include_bytes!("../demo/stories-q8_0.gguf");

/// What the show adds to the command line, unless the option is given.
pub const SHOW: &[(&str, &[&CStr])] = &[
    ("--prompt", &[c"-p", c"Once upon a time, there was a"]),
    ("--predict", &[c"-n", c"400"]),
    ("--ctx-size", &[c"-c", c"512"]),
    ("--temp", &[c"--temp", c"0.6"]),
    ("--seed", &[c"--seed", c"7"]),
    ("--conversation", &[c"-no-cnv"]),
    // So small a model computes for less time than threads need to meet.
    ("--threads", &[c"-t", c"1"]),
    // The budget covers what llama.cpp computes with; that grows with the batch.
    ("--ubatch-size", &[c"-ub", c"16"]),
];

/// The demo model's file.
pub struct DemoModel {
    path: CString,
    /// Kept open: the file lives as long.
    #[cfg(target_os = "linux")]
    _file: std::fs::File,
}

fn failed(error: &std::io::Error) -> Error {
    Error::Failed(format!(
        "could not write the demo model, {}, to a temporary file: {error}",
        show_bytes(MODEL.len() as u64)
    ))
}

impl DemoModel {
    /// Makes the file.
    ///
    /// # Errors
    /// `Failed` when there is no room for it.
    #[cfg(target_os = "linux")]
    pub fn new() -> Result<Self> {
        use rustix::fs::{MemfdFlags, memfd_create};
        use std::os::fd::AsRawFd;
        let descriptor = memfd_create(c"rpaged-demo", MemfdFlags::CLOEXEC)
            .map_err(|error| failed(&error.into()))?;
        let mut file = std::fs::File::from(descriptor);
        file.write_all(MODEL).map_err(|error| failed(&error))?;
        let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))
            .map_err(|_| Error::Bug("a number with a NUL".into()))?;
        Ok(Self { path, _file: file })
    }

    /// Makes the file.
    ///
    /// # Errors
    /// `Failed` when there is no room for it.
    #[cfg(not(target_os = "linux"))]
    pub fn new() -> Result<Self> {
        let name = format!("rpaged-demo-{}.gguf", std::process::id());
        let path = std::env::temp_dir().join(name);
        let mut options = std::fs::OpenOptions::new();
        // Never follows or overwrites what someone else has put there.
        options.write(true).create_new(true);
        let mut file = options.open(&path).map_err(|error| failed(&error))?;
        let written = file.write_all(MODEL);
        let path = CString::new(path.into_os_string().into_encoded_bytes())
            .map_err(|_| Error::Failed("the temporary folder's name contains a NUL".into()))?;
        let model = Self { path };
        written.map_err(|error| failed(&error))?;
        Ok(model)
    }

    /// The file's path.
    pub fn path(&self) -> &CStr {
        &self.path
    }

    /// The model is loaded: the name is no longer needed, only what is open and mapped.
    pub fn loaded(&self) {
        #[cfg(all(unix, not(target_os = "linux")))]
        self.remove();
    }

    #[cfg(not(target_os = "linux"))]
    fn remove(&self) {
        drop(std::fs::remove_file(&*self.path.to_string_lossy()));
    }
}

#[cfg(not(target_os = "linux"))]
impl Drop for DemoModel {
    fn drop(&mut self) {
        self.remove();
    }
}
