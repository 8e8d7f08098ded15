//! Who is told of the files that llama.cpp downloads, and where it fetches headers alone.
#![allow(unsafe_code, reason = "calls a C door, which calls back")]

use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

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

/// Where headers go, as long as somebody wants them there.
static HEADERS: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Removes the headers that are there; for the end of the process, while another thread may
/// be fetching them. What cannot be removed is left to the system's own cleaning.
pub fn remove_headers() {
    let folder = HEADERS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    let Some(folder) = folder else { return };
    // A file that comes while the others are removed is there for the next time.
    for _ in 0..10 {
        if std::fs::remove_dir_all(&folder).is_ok() || !folder.exists() {
            return;
        }
    }
}

/// A folder for headers of models, made when the first is fetched, and removed with what is
/// in it when this is dropped.
#[derive(Debug)]
pub struct HeaderFolder(PathBuf);

impl HeaderFolder {
    /// From now on, of a model that lies elsewhere and not in the cache, only the header is
    /// fetched, into a file of the folder that is otherwise a hole. Where there is no place
    /// for it, or its server gives no parts of files, the model is downloaded whole. None
    /// when the place cannot be told to llama.cpp.
    pub fn new() -> Option<Self> {
        // A name of its own, also where others with the same number share the folder.
        let now = std::time::UNIX_EPOCH.elapsed();
        let now = now.map_or(0, |now| now.as_nanos());
        let name = format!("rpaged-headers-{}-{now:x}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let text = CString::new(path.to_str()?).ok()?;
        *HEADERS.lock().unwrap_or_else(PoisonError::into_inner) = Some(path.clone());
        // SAFETY:
        // - the text lives through the call, which copies it.
        unsafe { ggml_sys::rpaged_fetch_headers_into(text.as_ptr()) };
        Some(Self(path))
    }

    /// The folder, which is there once something was fetched.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for HeaderFolder {
    fn drop(&mut self) {
        remove_headers();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_nothing_was_fetched_into_is_not_there() {
        let folder = HeaderFolder::new().unwrap();
        assert!(!folder.path().exists());
        std::fs::create_dir(folder.path()).unwrap();
        std::fs::write(folder.path().join("m.gguf"), "GGUF").unwrap();
        let path = folder.path().to_owned();
        drop(folder);
        assert!(!path.exists());
    }
}
