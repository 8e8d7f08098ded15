//! A first look at a model's file, so that what is wrong with it can be said in a
//! sentence before llama.cpp spends time on it.
#![allow(unsafe_code, reason = "reads the header through gguf's C functions")]

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// What the header of a model's file says.
#[derive(Clone, Debug)]
pub struct ModelFile {
    /// Whether the model brings a chat template.
    pub has_template: bool,
    /// The model's architecture, e.g. `llama`; empty when the header does not say.
    pub architecture: String,
    /// Bytes of all parts' tensors.
    pub tensor_bytes: u64,
}

/// Looks at the file at `path`, and at the other parts when the model is split.
///
/// # Errors
/// `Failed`, naming the file, when one is missing, unreadable, empty, not a GGUF, damaged
/// or shorter than its header says.
pub fn inspect(path: &Path) -> Result<ModelFile> {
    let first = Header::read(path)?;
    let mut found = ModelFile {
        has_template: [
            "tokenizer.chat_template",
            "tokenizer.chat_template.tool_use",
        ]
        .iter()
        .any(|key| first.find(key).is_some()),
        architecture: first.text("general.architecture").unwrap_or_default(),
        tensor_bytes: first.tensor_bytes,
    };
    let parts = first.parts();
    for part in 1..parts {
        let other = part_path(path, part, parts)
            .ok_or_else(|| fault(path, "is the first of several parts, but not named so"))?;
        found.tensor_bytes += Header::read(&other)?.tensor_bytes;
    }
    Ok(found)
}

fn fault(path: &Path, what: &str) -> Error {
    Error::Failed(format!("the model file '{}' {what}", path.display()))
}

/// The path of part `part` (counted from 0) of a model whose first part is at `first`:
/// `NAME-00001-of-00003.gguf`.
fn part_path(first: &Path, part: u16, parts: u16) -> Option<PathBuf> {
    let name = first.file_name()?.to_str()?;
    let stem = name.strip_suffix(&format!("-00001-of-{parts:05}.gguf"))?;
    Some(first.with_file_name(format!("{stem}-{:05}-of-{parts:05}.gguf", part + 1)))
}

struct Header {
    raw: *mut ggml_sys::gguf_context,
    tensor_bytes: u64,
}

impl Header {
    fn read(path: &Path) -> Result<Self> {
        let size = check_magic(path)?;
        let name = CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| fault(path, "has a NUL in its name"))?;
        let params = ggml_sys::gguf_init_params {
            no_alloc: true,
            ctx: std::ptr::null_mut(),
        };
        // SAFETY:
        // - `name` is a C string that lives through the call;
        // - with `no_alloc` and without a place for a ggml context, only the header is read.
        let raw = unsafe { ggml_sys::gguf_init_from_file(name.as_ptr(), params) };
        if raw.is_null() {
            return Err(fault(path, "has a damaged or cut off GGUF header"));
        }
        let mut header = Self {
            raw,
            tensor_bytes: 0,
        };
        let needed = header.measure();
        if size < needed {
            return Err(fault(
                path,
                &format!("is cut off: it has {size} bytes, its header promises {needed}"),
            ));
        }
        Ok(header)
    }

    /// Counts the tensors' bytes; returns how long the file must be.
    fn measure(&mut self) -> u64 {
        // SAFETY:
        // - `raw` is alive as long as `self`; so for the calls below.
        let count = unsafe { ggml_sys::gguf_get_n_tensors(self.raw) };
        if count == 0 {
            return 0;
        }
        // SAFETY:
        // - `raw` is alive.
        let start = unsafe { ggml_sys::gguf_get_data_offset(self.raw) } as u64;
        let mut end = 0;
        for index in 0..count {
            // SAFETY:
            // - `raw` is alive and `index` is below the count of tensors.
            let offset = unsafe { ggml_sys::gguf_get_tensor_offset(self.raw, index) } as u64;
            // SAFETY:
            // - `raw` is alive and `index` is below the count of tensors.
            let bytes = unsafe { ggml_sys::gguf_get_tensor_size(self.raw, index) } as u64;
            self.tensor_bytes = self.tensor_bytes.saturating_add(bytes);
            end = end.max(offset.saturating_add(bytes));
        }
        start.saturating_add(end)
    }

    fn find(&self, key: &str) -> Option<i64> {
        let key = CString::new(key).ok()?;
        // SAFETY:
        // - `raw` is alive; `key` is a C string that lives through the call.
        let index = unsafe { ggml_sys::gguf_find_key(self.raw, key.as_ptr()) };
        (index >= 0).then_some(index)
    }

    fn kind(&self, index: i64) -> ggml_sys::gguf_type {
        // SAFETY:
        // - `raw` is alive and `index` was found in it.
        unsafe { ggml_sys::gguf_get_kv_type(self.raw, index) }
    }

    fn text(&self, key: &str) -> Option<String> {
        let index = self.find(key)?;
        if self.kind(index) != ggml_sys::GGUF_TYPE_STRING {
            return None;
        }
        // SAFETY:
        // - `raw` is alive, `index` was found in it, and its value is a string.
        let text = unsafe { ggml_sys::gguf_get_val_str(self.raw, index) };
        // SAFETY:
        // - the header's own string, ended by NUL, alive as long as `raw`.
        let text = unsafe { CStr::from_ptr(text) };
        Some(text.to_string_lossy().into_owned())
    }

    /// Into how many files the model is split.
    fn parts(&self) -> u16 {
        let Some(index) = self.find("split.count") else {
            return 1;
        };
        if self.kind(index) != ggml_sys::GGUF_TYPE_UINT16 {
            return 1;
        }
        // SAFETY:
        // - `raw` is alive, `index` was found in it, and its value is an unsigned 16 bit
        //   integer.
        unsafe { ggml_sys::gguf_get_val_u16(self.raw, index) }
    }
}

impl Drop for Header {
    fn drop(&mut self) {
        // SAFETY:
        // - `raw` came from `gguf_init_from_file` and is freed once.
        unsafe { ggml_sys::gguf_free(self.raw) }
    }
}

/// Opens the file and looks at its first four bytes; returns its size in bytes.
fn check_magic(path: &Path) -> Result<u64> {
    let problem = |error: &std::io::Error| match error.kind() {
        ErrorKind::NotFound => fault(path, "does not exist"),
        ErrorKind::PermissionDenied => fault(path, "may not be read"),
        _ => fault(path, &format!("cannot be read: {error}")),
    };
    let mut file = File::open(path).map_err(|error| problem(&error))?;
    let meta = file.metadata().map_err(|error| problem(&error))?;
    if meta.is_dir() {
        return Err(fault(path, "is a folder"));
    }
    if !meta.is_file() {
        return Err(fault(path, "is not a regular file"));
    }
    if meta.len() == 0 {
        return Err(fault(path, "is empty"));
    }
    let mut magic = [0; 4];
    match file.read_exact(&mut magic) {
        Err(error) if error.kind() != ErrorKind::UnexpectedEof => Err(problem(&error)),
        Ok(()) if &magic == b"GGUF" => Ok(meta.len()),
        _ => Err(fault(path, "is not a GGUF file")),
    }
}
