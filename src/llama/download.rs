//! Who is told of the files that llama.cpp downloads, and where it fetches headers alone.
#![allow(unsafe_code, reason = "calls a C door, which calls back")]

use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::bytes;

/// How a download stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// More is to come.
    GoesOn,
    /// The whole file is here.
    Done,
    /// It could not be had.
    Failed,
}

/// Told of each file: its address, the bytes that are here, all its bytes. Several threads
/// may call at once.
pub type Watcher = Box<dyn Fn(&str, u64, u64, State) + Send + Sync>;

static WATCHER: OnceLock<Watcher> = OnceLock::new();

/// Has `watcher` told of all downloads from now on; the first one stays.
pub fn watch(watcher: Watcher) {
    if WATCHER.set(watcher).is_ok() {
        // SAFETY:
        // - `tell` lives as long as the program, and may be called by several threads.
        unsafe { ggml_sys::rpaged_watch_downloads(Some(tell)) }
    }
}

/// A folder for headers of models, removed with what is in it when it is dropped.
#[derive(Debug)]
pub struct HeaderFolder(PathBuf);

impl HeaderFolder {
    /// Makes one. From now on, of a model that lies elsewhere and not in the cache, only the
    /// header is fetched, into a file there that is otherwise a hole. None when there is no
    /// place for it: models are downloaded whole then, as they are when their server gives
    /// no parts of files.
    pub fn new() -> Option<Self> {
        let name = format!("rpaged-headers-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let text = CString::new(path.to_str()?).ok()?;
        std::fs::create_dir(&path).ok()?;
        let folder = Self(path);
        // SAFETY:
        // - the text lives through the call, which copies it.
        unsafe { ggml_sys::rpaged_fetch_headers_into(text.as_ptr()) };
        Some(folder)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for HeaderFolder {
    fn drop(&mut self) {
        // What cannot be removed is left to the system's own cleaning.
        drop(std::fs::remove_dir_all(&self.0));
    }
}

unsafe extern "C" fn tell(
    address: *const c_char,
    bytes: u64,
    total: u64,
    state: ggml_sys::rpaged_download_state,
) {
    let Some(watcher) = WATCHER.get() else { return };
    // SAFETY:
    // - the shim passes a string of its own that lives through the call.
    let address = unsafe { bytes::text_at(address) }.unwrap_or_default();
    let state = match state {
        ggml_sys::RPAGED_DOWNLOAD_DONE => State::Done,
        ggml_sys::RPAGED_DOWNLOAD_FAILED => State::Failed,
        _ => State::GoesOn,
    };
    // A panic must not unwind into C; a broken progress bar is no reason to stop.
    let call = AssertUnwindSafe(|| watcher(&address, bytes, total, state));
    drop(catch_unwind(call));
}
