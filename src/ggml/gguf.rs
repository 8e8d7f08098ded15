//! The headers of a model's files, checked, so that what is wrong with one can be said in
//! a sentence before llama.cpp spends time on it. No tensor data is read.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use ggml_sys as sys;

use crate::error::{Error, Result};

/// Where a tensor's bytes lie in its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// Where its bytes begin, from the start of the file.
    pub offset: u64,
    /// How many bytes it has.
    pub bytes: u64,
    /// ggml's number of its element type.
    pub kind: u32,
}

/// Numbers of a model's architecture, as far as its header has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelFacts {
    /// Elements of an attention head.
    pub head: Option<u32>,
    /// Experts that a token uses of a layer, and how many there are.
    pub experts: Option<(u64, u64)>,
    /// Elements that the KV cache has of each token in all layers, at most.
    pub cached: Option<u64>,
    /// Tokens of the context that it was trained with.
    pub context: Option<u64>,
}

/// The header of one GGUF file.
#[derive(Debug)]
pub struct Header {
    raw: NonNull<sys::gguf_context>,
    path: PathBuf,
}

impl Header {
    /// Reads the headers of the model at `path` and, when it is split, of its other parts.
    ///
    /// # Errors
    /// `Failed`, naming the file, when one is missing, unreadable, empty, not a GGUF,
    /// damaged or shorter than its header says.
    pub fn read_all(path: &Path) -> Result<Vec<Self>> {
        let first = Self::read(path)?;
        let parts = first.parts();
        let mut headers = vec![first];
        for part in 1..parts {
            let other =
                part_path(path, part, parts).ok_or_else(|| fault(path, &not_first(parts)))?;
            headers.push(Self::read(&other)?);
        }
        Ok(headers)
    }

    fn read(path: &Path) -> Result<Self> {
        let size = check_magic(path)?;
        let name = CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| fault(path, "has a NUL in its name"))?;
        let params = sys::gguf_init_params {
            no_alloc: true,
            ctx: std::ptr::null_mut(),
        };
        // SAFETY:
        // - `name` is a C string that lives through the call;
        // - with `no_alloc` and without a place for a ggml context, only the header is read.
        let raw = unsafe { sys::gguf_init_from_file(name.as_ptr(), params) };
        let raw =
            NonNull::new(raw).ok_or_else(|| fault(path, "has a damaged or cut off GGUF header"))?;
        let path = path.to_owned();
        let header = Self { raw, path };
        let ends = header
            .tensors()
            .map(|tensor| tensor.offset.saturating_add(tensor.bytes));
        let needed = ends.max().unwrap_or(0);
        if size < needed {
            let what = format!("is cut off: it has {size} bytes, its header promises {needed}");
            return Err(fault(&header.path, &what));
        }
        Ok(header)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its tensors, in the order of the header.
    pub fn tensors(&self) -> impl Iterator<Item = TensorEntry> {
        // SAFETY: the context is live until `self` is dropped.
        let count = unsafe { sys::gguf_get_n_tensors(self.raw.as_ptr()) };
        (0..count).map(|index| self.tensor(index))
    }

    fn tensor(&self, index: i64) -> TensorEntry {
        let raw = self.raw.as_ptr();
        // SAFETY: the context is live, the index below its tensor count; so in the rest.
        let name = unsafe { sys::gguf_get_tensor_name(raw, index) };
        // SAFETY: gguf's names are NUL-terminated and live as long as the context.
        let name = unsafe { CStr::from_ptr(name) };
        // SAFETY: as above.
        let data = unsafe { sys::gguf_get_data_offset(raw) } as u64;
        // SAFETY: as above.
        let offset = unsafe { sys::gguf_get_tensor_offset(raw, index) } as u64;
        // SAFETY: as above.
        let bytes = unsafe { sys::gguf_get_tensor_size(raw, index) } as u64;
        // SAFETY: as above.
        let kind = unsafe { sys::gguf_get_tensor_type(raw, index) };
        TensorEntry {
            name: name.to_string_lossy().into_owned(),
            offset: data.saturating_add(offset),
            bytes,
            kind,
        }
    }

    /// Whether the header has a value for `key`.
    pub fn has(&self, key: &CStr) -> bool {
        self.find(key).is_some()
    }

    /// The text for `key`; None when there is none, or it is no text.
    pub fn text(&self, key: &CStr) -> Option<String> {
        let index = self.find_of_kind(key, sys::GGUF_TYPE_STRING)?;
        // SAFETY: the context is live, and the value at `index` is a string.
        let text = unsafe { sys::gguf_get_val_str(self.raw.as_ptr(), index) };
        // SAFETY: the header's own string, NUL-terminated, live as long as the context.
        let text = unsafe { CStr::from_ptr(text) };
        Some(text.to_string_lossy().into_owned())
    }

    /// The whole number for `key`; None when there is none, or it is no whole number of at
    /// least zero.
    pub fn number(&self, key: &CStr) -> Option<u64> {
        let index = self.find(key)?;
        let raw = self.raw.as_ptr();
        // SAFETY: the context is live, the index was found in it; so below, where the value
        // has the type that is asked for.
        match unsafe { sys::gguf_get_kv_type(raw, index) } {
            // SAFETY: as above.
            sys::GGUF_TYPE_UINT32 => Some(u64::from(unsafe { sys::gguf_get_val_u32(raw, index) })),
            // SAFETY: as above.
            sys::GGUF_TYPE_UINT64 => Some(unsafe { sys::gguf_get_val_u64(raw, index) }),
            // SAFETY: as above.
            sys::GGUF_TYPE_UINT16 => Some(u64::from(unsafe { sys::gguf_get_val_u16(raw, index) })),
            sys::GGUF_TYPE_INT32 => {
                // SAFETY: as above.
                u64::try_from(unsafe { sys::gguf_get_val_i32(raw, index) }).ok()
            }
            _ => None,
        }
    }

    /// Numbers of the model's architecture.
    pub fn facts(&self) -> ModelFacts {
        let architecture = self.text(c"general.architecture").unwrap_or_default();
        let number = |key: &str| {
            let key = CString::new(format!("{architecture}.{key}")).ok()?;
            self.number(&key).filter(|number| *number > 0)
        };
        let heads = number("attention.head_count");
        let head = number("embedding_length").zip(heads);
        let head = head.map(|(width, heads)| width / heads);
        let key = number("attention.key_length").or(head);
        let value = number("attention.value_length").or(head);
        let cached_heads = number("attention.head_count_kv").or(heads);
        let factors = [
            number("block_count"),
            cached_heads,
            key.zip(value)
                .and_then(|(key, value)| key.checked_add(value)),
        ];
        let product = |all: Option<u64>, factor: Option<u64>| all?.checked_mul(factor?);
        ModelFacts {
            head: key.and_then(|head| u32::try_from(head).ok()),
            experts: number("expert_used_count").zip(number("expert_count")),
            cached: factors.into_iter().fold(Some(1), product),
            context: number("context_length"),
        }
    }

    /// In how many files the model comes.
    fn parts(&self) -> u16 {
        let found = self.find_of_kind(c"split.count", sys::GGUF_TYPE_UINT16);
        found.map_or(1, |index| {
            // SAFETY: the context is live, and the value at `index` a 16-bit number.
            unsafe { sys::gguf_get_val_u16(self.raw.as_ptr(), index) }
        })
    }

    fn find(&self, key: &CStr) -> Option<i64> {
        // SAFETY: the context is live, the key a C string.
        let index = unsafe { sys::gguf_find_key(self.raw.as_ptr(), key.as_ptr()) };
        (index >= 0).then_some(index)
    }

    fn find_of_kind(&self, key: &CStr, kind: sys::gguf_type) -> Option<i64> {
        self.find(key).filter(|index| {
            // SAFETY: the context is live, the index was found in it.
            kind == unsafe { sys::gguf_get_kv_type(self.raw.as_ptr(), *index) }
        })
    }
}

impl Drop for Header {
    fn drop(&mut self) {
        // SAFETY: made by `gguf_init_from_file`, freed once.
        unsafe { sys::gguf_free(self.raw.as_ptr()) };
    }
}

fn fault(path: &Path, what: &str) -> Error {
    Error::Failed(format!("the model file '{}' {what}", path.display()))
}

fn not_first(parts: u16) -> String {
    format!(
        "is one of {parts} parts; give the first with -m, named '…-00001-of-{parts:05}.gguf', \
         with the others beside it"
    )
}

/// The path of part `part` (counted from 0) of a model whose first part is at `first`:
/// `NAME-00001-of-00003.gguf`.
fn part_path(first: &Path, part: u16, parts: u16) -> Option<PathBuf> {
    let name = first.file_name()?.to_str()?;
    let stem = name.strip_suffix(&format!("-00001-of-{parts:05}.gguf"))?;
    Some(first.with_file_name(format!("{stem}-{:05}-of-{parts:05}.gguf", part + 1)))
}

/// Opens the file and looks at its first four bytes; returns its size in bytes.
fn check_magic(path: &Path) -> Result<u64> {
    let problem = |error: &std::io::Error| match error.kind() {
        ErrorKind::NotFound => fault(path, "does not exist"),
        ErrorKind::PermissionDenied => fault(path, "may not be read"),
        _ => fault(path, &format!("cannot be read: {error}")),
    };
    // Before it is opened: opening a pipe waits for whoever writes to it.
    let meta = std::fs::metadata(path).map_err(|error| problem(&error))?;
    if meta.is_dir() {
        return Err(fault(path, "is a folder"));
    }
    if !meta.is_file() {
        return Err(fault(path, "is not a regular file"));
    }
    if meta.len() == 0 {
        return Err(fault(path, "is empty"));
    }
    let mut file = File::open(path).map_err(|error| problem(&error))?;
    let mut magic = [0; 4];
    match file.read_exact(&mut magic) {
        Err(error) if error.kind() != ErrorKind::UnexpectedEof => Err(problem(&error)),
        Ok(()) if &magic == b"GGUF" => Ok(meta.len()),
        _ => Err(fault(path, "is not a GGUF file")),
    }
}
