#![allow(unsafe_code, reason = "the header is read by gguf's own reader")]
//! Where each tensor of a model lies: in which part, at which offset.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;

use ggml_sys as sys;

use super::memory::ModelFile;

/// A tensor's bytes on disk.
#[derive(Clone, Debug)]
pub struct TensorLocation {
    /// The part it lies in.
    pub file: Arc<ModelFile>,
    /// Where its bytes begin, from the start of the part.
    pub offset: u64,
    /// How many bytes it has.
    pub bytes: u64,
}

/// All tensors of a model, by name.
#[derive(Debug, Default)]
pub struct ModelIndex {
    tensors: HashMap<String, TensorLocation>,
}

impl ModelIndex {
    /// Reads the headers of the model at `path` and, when it is split, of its other parts.
    ///
    /// # Errors
    /// A sentence that names the file which is missing, unreadable or not a GGUF.
    pub fn read(path: &Path) -> Result<Self, String> {
        let mut index = Self::default();
        let first = Header::read(path)?;
        let parts = first.split_count();
        index.add(path, &first)?;
        if parts > 1 {
            let prefix = split_prefix(path, parts)?;
            for part in 1..parts {
                let path = split_path(&prefix, part, parts)?;
                index.add(&path, &Header::read(&path)?)?;
            }
        }
        Ok(index)
    }

    /// Where the tensor called `name` lies.
    pub fn find(&self, name: &str) -> Option<&TensorLocation> {
        self.tensors.get(name)
    }

    /// Bytes of all tensors together.
    pub fn bytes(&self) -> u64 {
        self.tensors.values().map(|tensor| tensor.bytes).sum()
    }

    fn add(&mut self, path: &Path, header: &Header) -> Result<(), String> {
        let file = ModelFile::open(path)
            .map_err(|error| format!("could not open '{}' ({error})", path.display()))?;
        let file = Arc::new(file);
        for index in 0..header.tensor_count() {
            let (name, offset, bytes) = header.tensor(index);
            let location = TensorLocation {
                file: Arc::clone(&file),
                offset,
                bytes,
            };
            self.tensors.insert(name, location);
        }
        Ok(())
    }
}

/// An open GGUF header; no tensor data is read.
struct Header(NonNull<sys::gguf_context>);

impl Header {
    fn read(path: &Path) -> Result<Self, String> {
        let c_path = c_path(path)?;
        let params = sys::gguf_init_params {
            no_alloc: true,
            ctx: std::ptr::null_mut(),
        };
        // SAFETY:
        // - the path is a NUL-terminated string that outlives the call;
        // - no tensor context is asked for.
        let raw = unsafe { sys::gguf_init_from_file(c_path.as_ptr(), params) };
        NonNull::new(raw)
            .map(Self)
            .ok_or_else(|| format!("could not read '{}' as a GGUF model", path.display()))
    }

    fn tensor_count(&self) -> i64 {
        // SAFETY: the context is live until `self` is dropped.
        unsafe { sys::gguf_get_n_tensors(self.0.as_ptr()) }
    }

    /// Name, offset from the start of the file, and size of the tensor at `index`.
    fn tensor(&self, index: i64) -> (String, u64, u64) {
        let context = self.0.as_ptr();
        // SAFETY: the context is live, the index below its tensor count; so in the rest.
        let name = unsafe { sys::gguf_get_tensor_name(context, index) };
        // SAFETY: gguf's names are NUL-terminated and live as long as the context.
        let name = unsafe { CStr::from_ptr(name) }
            .to_string_lossy()
            .into_owned();
        // SAFETY: as above.
        let data = unsafe { sys::gguf_get_data_offset(context) };
        // SAFETY: as above.
        let offset = unsafe { sys::gguf_get_tensor_offset(context, index) };
        // SAFETY: as above.
        let bytes = unsafe { sys::gguf_get_tensor_size(context, index) };
        (name, (data + offset) as u64, bytes as u64)
    }

    /// In how many parts the model comes; 1 when it is not split.
    fn split_count(&self) -> u16 {
        let context = self.0.as_ptr();
        // SAFETY: the context is live, the key a NUL-terminated string.
        let key = unsafe { sys::gguf_find_key(context, c"split.count".as_ptr()) };
        if key < 0 {
            return 1;
        }
        // SAFETY: the key was found just now.
        if unsafe { sys::gguf_get_kv_type(context, key) } != sys::GGUF_TYPE_UINT16 {
            return 1;
        }
        // SAFETY: the key holds a 16-bit number.
        unsafe { sys::gguf_get_val_u16(context, key) }.max(1)
    }
}

impl Drop for Header {
    fn drop(&mut self) {
        // SAFETY: made by `gguf_init_from_file`, freed once.
        unsafe { sys::gguf_free(self.0.as_ptr()) };
    }
}

fn c_path(path: &Path) -> Result<CString, String> {
    path.to_str()
        .and_then(|text| CString::new(text).ok())
        .ok_or_else(|| format!("the path '{}' is not valid text", path.display()))
}

/// Bytes enough for any path that llama.cpp makes.
const PATH_BYTES: usize = 4096;

fn split_prefix(path: &Path, parts: u16) -> Result<CString, String> {
    let c_path = c_path(path)?;
    let mut buffer = vec![0u8; PATH_BYTES];
    // SAFETY:
    // - the buffer is as large as said;
    // - the path is NUL-terminated.
    let length = unsafe {
        sys::llama_split_prefix(
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            c_path.as_ptr(),
            0,
            i32::from(parts),
        )
    };
    if length <= 0 {
        return Err(format!(
            "'{}' is not named like the first part of a model in {parts} parts \
             ('…-00001-of-{parts:05}.gguf'); give the first part with -m",
            path.display()
        ));
    }
    text_in(buffer)
}

fn split_path(prefix: &CStr, part: u16, parts: u16) -> Result<PathBuf, String> {
    let mut buffer = vec![0u8; PATH_BYTES];
    // SAFETY: as in `split_prefix`.
    unsafe {
        sys::llama_split_path(
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            prefix.as_ptr(),
            i32::from(part),
            i32::from(parts),
        )
    };
    let text = text_in(buffer)?;
    Ok(PathBuf::from(text.to_string_lossy().into_owned()))
}

fn text_in(buffer: Vec<u8>) -> Result<CString, String> {
    CStr::from_bytes_until_nul(&buffer)
        .map(CStr::to_owned)
        .map_err(|_| "a path of the split model is too long".to_owned())
}
