//! Where each tensor of a model lies: in which part, at which offset.

use std::collections::HashMap;
use std::ffi::CString;
use std::path::Path;
use std::sync::Arc;

use super::storage::{Access, StoreFile};
use crate::error::{Error, Result};
use crate::ggml::Header;

/// A tensor's bytes on disk.
#[derive(Clone, Debug)]
pub struct TensorLocation {
    /// The part it lies in.
    pub file: Arc<StoreFile>,
    /// Where its bytes begin, from the start of the part.
    pub offset: u64,
    /// How many bytes it has.
    pub bytes: u64,
}

/// All tensors of a model, by name.
#[derive(Debug, Default)]
pub struct ModelIndex {
    files: Vec<Arc<StoreFile>>,
    architecture: String,
    experts: (u64, u64),
    tensors: HashMap<String, TensorLocation>,
}

impl ModelIndex {
    /// Reads the headers of the model at `path` and, when it is split, of its other parts;
    /// tensors will be read as `access` says, which is told how many bytes they have.
    ///
    /// # Errors
    /// `Failed`, naming the file which is missing, unreadable or not a GGUF.
    pub fn read(path: &Path, access: impl FnOnce(u64) -> Access) -> Result<Self> {
        let headers = Header::read_all(path)?;
        let tensors = headers.iter().flat_map(Header::tensors);
        let bytes = tensors.map(|tensor| tensor.bytes);
        let access = access(bytes.fold(0, u64::saturating_add));
        let first = headers.first();
        let architecture = first.and_then(|first| first.text(c"general.architecture"));
        let architecture = architecture.unwrap_or_default();
        let mut index = Self {
            experts: first.map_or((0, 0), |first| experts_of(first, &architecture)),
            architecture,
            ..Self::default()
        };
        for header in headers {
            let path = header.path();
            let file = StoreFile::open(path, access).map_err(|error| {
                Error::Failed(format!("could not open '{}' ({error})", path.display()))
            })?;
            let file = Arc::new(file);
            for tensor in header.tensors() {
                let location = TensorLocation {
                    file: Arc::clone(&file),
                    offset: tensor.offset,
                    bytes: tensor.bytes,
                };
                index.tensors.insert(tensor.name, location);
            }
            index.files.push(file);
        }
        Ok(index)
    }

    /// The model's parts, in their order.
    pub fn files(&self) -> &[Arc<StoreFile>] {
        &self.files
    }

    /// The model's architecture, e.g. `llama`; empty when the header does not say.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Experts that a token uses of a layer, and how many there are; (0, 0) without.
    pub fn experts(&self) -> (u64, u64) {
        self.experts
    }

    /// Names of all tensors, and how many bytes they have.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, u64)> {
        let tensors = self.tensors.iter();
        tensors.map(|(name, location)| (name.as_str(), location.bytes))
    }

    /// Where the tensor called `name` lies.
    pub fn find(&self, name: &str) -> Option<&TensorLocation> {
        self.tensors.get(name)
    }

    /// Whether all parts are read past the page cache.
    pub fn is_direct(&self) -> bool {
        self.files.iter().all(|file| file.is_direct())
    }

    /// Bytes of all tensors together.
    pub fn bytes(&self) -> u64 {
        let bytes = self.tensors.values().map(|tensor| tensor.bytes);
        bytes.fold(0, u64::saturating_add)
    }
}

fn experts_of(header: &Header, architecture: &str) -> (u64, u64) {
    let number = |key: &str| {
        let key = CString::new(format!("{architecture}.{key}")).ok()?;
        header.number(&key)
    };
    (
        number("expert_used_count").unwrap_or(0),
        number("expert_count").unwrap_or(0),
    )
}
