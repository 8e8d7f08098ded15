#![allow(
    unsafe_code,
    reason = "tests look at memory of an engine that is drained"
)]
//! What tests of the engines have copied, and between what.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::engine::{Copy, Direction, Request, Source, Target};
use super::memory::HostMemory;
use super::storage::{Access, StoreFile};

/// Ends inside of a block.
pub const MODEL_BYTES: usize = 90_123;

/// The n-th byte of the model's file.
pub fn model_byte(index: usize) -> u8 {
    u8::try_from(index * 31 % 251).unwrap()
}

/// A model's file in a folder that goes with it.
pub struct Model {
    folder: tempfile::TempDir,
    pub path: PathBuf,
}

impl Model {
    pub fn new(place: &Path, bytes: usize) -> Self {
        let folder = tempfile::tempdir_in(place).unwrap();
        let path = folder.path().join("model.gguf");
        let content: Vec<u8> = (0..bytes).map(model_byte).collect();
        std::fs::write(&path, content).unwrap();
        Self { folder, path }
    }

    pub fn open(&self, access: Access) -> Arc<StoreFile> {
        Arc::new(StoreFile::open(&self.path, access).unwrap())
    }

    pub fn spill(&self) -> Arc<StoreFile> {
        Arc::new(StoreFile::spill(self.folder.path()).unwrap())
    }
}

/// Where the build is: a disk.
pub fn on_disk() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.parent().unwrap().to_owned()
}

pub fn host_bytes(memory: &HostMemory) -> Vec<u8> {
    let mut bytes = vec![0; memory.bytes()];
    // SAFETY: the engine has been drained, nobody writes.
    unsafe { memory.read(0, &mut bytes) };
    bytes
}

pub fn from_file(file: &Arc<StoreFile>, offset: u64) -> Source {
    let file = Arc::clone(file);
    Source::File { file, offset }
}

pub fn from_memory(memory: &Arc<HostMemory>, offset: usize) -> Source {
    let memory = Arc::clone(memory);
    Source::Memory { memory, offset }
}

pub fn in_file(file: &Arc<StoreFile>, offset: u64) -> Target {
    let file = Arc::clone(file);
    Target::File { file, offset }
}

pub fn in_memory(memory: &Arc<HostMemory>, offset: usize) -> Target {
    let memory = Arc::clone(memory);
    Target::Memory { memory, offset }
}

pub fn request(direction: Direction, from: Source, to: Target, bytes: usize) -> Request {
    let copies = vec![Copy {
        from,
        to,
        bytes,
        whole_blocks: false,
    }];
    Request {
        direction,
        copies,
        after: None,
    }
}
