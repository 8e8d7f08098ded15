//! The header of a GGUF file, written by gguf's own writer, and the quantiser.
#![allow(unsafe_code, reason = "gguf and ggml are C libraries")]

use std::ffi::{CString, NulError, c_char};
use std::path::Path;
use std::ptr;

use anyhow::{Context, Result, ensure};
use ggml_sys as ggml;

/// Keys and tensors of a file that is being written; the tensors' bytes follow later.
pub struct Header {
    gguf: *mut ggml::gguf_context,
    /// Owns the tensors' descriptions, which hold no data.
    tensors: *mut ggml::ggml_context,
}

impl Header {
    /// An empty header with room for `tensors` descriptions.
    pub fn new(tensors: usize) -> Result<Self> {
        // SAFETY: takes nothing, reads a constant of the library.
        let overhead = unsafe { ggml::ggml_tensor_overhead() };
        let params = ggml::ggml_init_params {
            mem_size: (tensors + 1) * overhead,
            mem_buffer: ptr::null_mut(),
            no_alloc: true,
        };
        // SAFETY: with no buffer of ours, ggml allocates `mem_size` bytes itself.
        let tensors = unsafe { ggml::ggml_init(params) };
        ensure!(
            !tensors.is_null(),
            "ggml has no memory for the tensors' descriptions"
        );
        // SAFETY: takes nothing; the result is freed in `drop`.
        let gguf = unsafe { ggml::gguf_init_empty() };
        Ok(Self { gguf, tensors })
    }

    /// Sets `key` to an unsigned number.
    pub fn set_u32(&mut self, key: &str, value: u32) -> Result<()> {
        let key = CString::new(key)?;
        // SAFETY:
        // - `gguf` is live until `drop`;
        // - `key` is a C string, copied by the call.
        unsafe { ggml::gguf_set_val_u32(self.gguf, key.as_ptr(), value) };
        Ok(())
    }

    /// Sets `key` to a real number.
    pub fn set_f32(&mut self, key: &str, value: f32) -> Result<()> {
        let key = CString::new(key)?;
        // SAFETY: as in `set_u32`.
        unsafe { ggml::gguf_set_val_f32(self.gguf, key.as_ptr(), value) };
        Ok(())
    }

    /// Sets `key` to a truth value.
    pub fn set_bool(&mut self, key: &str, value: bool) -> Result<()> {
        let key = CString::new(key)?;
        // SAFETY: as in `set_u32`.
        unsafe { ggml::gguf_set_val_bool(self.gguf, key.as_ptr(), value) };
        Ok(())
    }

    /// Sets `key` to a text.
    pub fn set_text(&mut self, key: &str, value: &str) -> Result<()> {
        let (key, value) = (CString::new(key)?, CString::new(value)?);
        // SAFETY: as in `set_u32`; `value` is a C string and copied too.
        unsafe { ggml::gguf_set_val_str(self.gguf, key.as_ptr(), value.as_ptr()) };
        Ok(())
    }

    /// Sets `key` to a list of signed numbers.
    pub fn set_i32s(&mut self, key: &str, values: &[i32]) -> Result<()> {
        let key = CString::new(key)?;
        let data = values.as_ptr().cast();
        // SAFETY:
        // - `gguf` is live, `key` is a C string that is copied;
        // - `data` points to `values.len()` numbers of the type named, copied by the call.
        unsafe {
            let (kind, count) = (ggml::GGUF_TYPE_INT32, values.len());
            ggml::gguf_set_arr_data(self.gguf, key.as_ptr(), kind, data, count);
        }
        Ok(())
    }

    /// Sets `key` to a list of texts.
    pub fn set_texts(&mut self, key: &str, values: &[String]) -> Result<()> {
        let key = CString::new(key)?;
        let texts: Vec<CString> = values
            .iter()
            .map(|text| CString::new(text.as_str()))
            .collect::<Result<_, NulError>>()?;
        let mut pointers: Vec<*const c_char> = texts.iter().map(|text| text.as_ptr()).collect();
        // SAFETY:
        // - `gguf` is live, `key` is a C string that is copied;
        // - `pointers` are `len` C strings that live as long as `texts`, copied by the call.
        unsafe {
            let (data, count) = (pointers.as_mut_ptr(), pointers.len());
            ggml::gguf_set_arr_str(self.gguf, key.as_ptr(), data, count);
        }
        Ok(())
    }

    /// Adds a tensor of `rows` rows with `columns` elements of type `kind`.
    pub fn add_tensor(
        &mut self,
        name: &str,
        kind: ggml::ggml_type,
        columns: i64,
        rows: i64,
    ) -> Result<()> {
        let name = CString::new(name)?;
        // SAFETY: the context is live and `new` made it large enough; it allocates no data.
        let tensor = unsafe { ggml::ggml_new_tensor_2d(self.tensors, kind, columns, rows) };
        ensure!(!tensor.is_null(), "no room for one more tensor");
        // SAFETY: `tensor` was made above, `name` is a C string that is copied.
        unsafe { ggml::ggml_set_name(tensor, name.as_ptr()) };
        // SAFETY: both are live; the tensor's description is copied.
        unsafe { ggml::gguf_add_tensor(self.gguf, tensor) };
        Ok(())
    }

    /// Writes the header to `path`, padded to where the first tensor's bytes begin.
    pub fn write(&self, path: &Path) -> Result<()> {
        let name = CString::new(path.to_str().context("the path is not Unicode")?)?;
        // SAFETY: `gguf` is live, `name` is a C string; no data is asked for.
        let written = unsafe { ggml::gguf_write_to_file(self.gguf, name.as_ptr(), true) };
        ensure!(written, "could not write '{}'", path.display());
        Ok(())
    }
}

impl Drop for Header {
    fn drop(&mut self) {
        // SAFETY: `gguf` came from `gguf_init_empty` and is freed once.
        unsafe { ggml::gguf_free(self.gguf) };
        // SAFETY: `tensors` came from `ggml_init` and is freed once.
        unsafe { ggml::ggml_free(self.tensors) };
    }
}

/// Bytes of one row of `columns` elements of type `kind`.
pub fn row_bytes(kind: ggml::ggml_type, columns: i64) -> usize {
    // SAFETY: `kind` is one of ggml's types; the call computes with numbers only.
    unsafe { ggml::ggml_row_size(kind, columns) }
}

/// `weights`, rows of `columns` elements, as `kind` stores them.
pub fn quantize(kind: ggml::ggml_type, weights: &[f32], columns: usize) -> Result<Vec<u8>> {
    ensure!(weights.len().is_multiple_of(columns), "rows are not whole");
    let (rows, columns) = (
        i64::try_from(weights.len() / columns)?,
        i64::try_from(columns)?,
    );
    let mut bytes = vec![0; row_bytes(kind, columns) * usize::try_from(rows)?];
    let (source, target) = (weights.as_ptr(), bytes.as_mut_ptr().cast());
    // SAFETY:
    // - `source` has rows * columns elements, `target` rows * row_bytes bytes;
    // - the types used here (Q8_0, Q4_K) need no importance matrix.
    let written =
        unsafe { ggml::ggml_quantize_chunk(kind, source, target, 0, rows, columns, ptr::null()) };
    ensure!(
        written == bytes.len(),
        "the quantiser wrote {written} of {} bytes",
        bytes.len()
    );
    Ok(bytes)
}
