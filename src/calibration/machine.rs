//! Whose rates a calibration has: what a run is on, as far as rates depend on it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::device::PagingConfig;
use crate::ggml::InnerDevice;
use crate::llama::Settings;

/// What a calibration is of; another one is measured anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// Threads that the system offers this process.
    pub processors: u32,
    /// Threads that compute tokens one by one.
    pub threads: u32,
    /// Threads that compute batches.
    pub threads_batch: u32,
    /// Threads that copy.
    pub copy_threads: u32,
    /// The file system that the model lies on.
    pub file_system: String,
    /// Whether files are read past the page cache.
    pub direct: bool,
    /// The device that computes; absent where the processor does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,
}

/// A device that computes, as far as rates depend on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Its name, which says by what ggml reaches it, e.g. `Vulkan0`.
    pub name: String,
    /// What it is, e.g. the name of a GPU.
    pub description: String,
    /// All of its memory, in bytes.
    pub memory_bytes: u64,
}

impl Device {
    /// As ggml says it.
    pub fn of(inner: InnerDevice) -> Self {
        Self {
            name: inner.name(),
            description: inner.description(),
            memory_bytes: inner.memory_bytes().1,
        }
    }
}

/// What of a run names the machine whose rates it goes by.
#[derive(Clone, Debug)]
pub struct Run {
    model: PathBuf,
    threads: (u32, u32),
    copy_threads: u32,
    device: Option<InnerDevice>,
}

impl Run {
    /// Of a run with these settings.
    pub fn new(paging: &PagingConfig, settings: &Settings) -> Self {
        Self::with_threads(paging, (settings.n_threads, settings.n_threads_batch))
    }

    /// Of a run with so many threads: by one token, and by batches.
    pub fn with_threads(paging: &PagingConfig, threads: (i32, i32)) -> Self {
        let count = |threads: i32| u32::try_from(threads).unwrap_or(1).max(1);
        Self {
            model: paging.model.clone(),
            threads: (count(threads.0), count(threads.1)),
            copy_threads: u32::try_from(paging.prefetch_threads).unwrap_or(1),
            device: paging.inner,
        }
    }

    /// Threads: by one token, and by batches.
    pub fn threads(&self) -> (u32, u32) {
        self.threads
    }

    /// The device that computes; None: the processor.
    pub fn device(&self) -> Option<InnerDevice> {
        self.device
    }

    /// The model's first file.
    pub fn model(&self) -> &Path {
        &self.model
    }

    /// The machine as it is now; `direct`: files are read past the page cache.
    pub fn machine(&self, direct: bool) -> Machine {
        Machine {
            device: self.device.map(Device::of),
            ..machine(&self.model, self.threads, self.copy_threads, direct)
        }
    }
}

/// The machine as it is now, for a model that lies at `model`, where the processor computes.
pub fn machine(model: &Path, threads: (u32, u32), copy_threads: u32, direct: bool) -> Machine {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Machine {
        processor: processor_name(),
        processors: u32::try_from(processors).unwrap_or(u32::MAX),
        threads: threads.0,
        threads_batch: threads.1,
        copy_threads,
        file_system: file_system(model),
        direct,
        device: None,
    }
}

#[cfg(target_os = "linux")]
fn processor_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| line.split_once(':'));
    name.map_or_else(
        || std::env::consts::ARCH.to_owned(),
        |(_, name)| name.trim().to_owned(),
    )
}

#[cfg(not(target_os = "linux"))]
fn processor_name() -> String {
    std::env::consts::ARCH.to_owned()
}

#[cfg(unix)]
fn file_system(path: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    let device = std::fs::metadata(path).map_or(0, |meta| meta.dev());
    format!("device {device}")
}

#[cfg(not(unix))]
fn file_system(path: &Path) -> String {
    let first = path.components().next();
    first.map_or_else(String::new, |part| {
        part.as_os_str().to_string_lossy().into_owned()
    })
}
