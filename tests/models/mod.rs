//! The test models: a few hundred kilobytes to two megabytes each, written on first use.

mod architectures;
mod gguf;
pub mod random;
mod recipe;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use ggml_sys as sys;

use self::architectures as shapes;
pub use self::architectures::VOCAB;
use self::gguf::{Encoded, Value};
use self::recipe::Recipe;

/// One model of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Model {
    /// Llama with grouped-query attention, Q8_0.
    Dense,
    /// The same in F16.
    DenseF16,
    /// The same in Q4_0.
    DenseQ4,
    /// The same in Q4_K, wider.
    DenseQ4K,
    /// Llama without an output matrix: the embedding serves twice.
    Tied,
    /// `Dense` in three files.
    Split,
    /// Qwen3 MoE: experts.
    Experts,
    /// Gemma 2: every second layer with a sliding window.
    SlidingWindow,
    /// StarCoder2: LayerNorm and biases.
    Biases,
    /// GPT-2: fused attention matrix, F16.
    FusedAttention,
    /// Mamba: recurrent states only.
    Recurrent,
    /// Jamba: recurrent states and attention.
    Hybrid,
    /// LFM2: short convolutions and attention.
    ShortConvolution,
    /// Llama with three small layers, for thousands of runs.
    Tiny,
}

impl Model {
    /// Every model.
    pub const ALL: [Self; 14] = [
        Self::Dense,
        Self::DenseF16,
        Self::DenseQ4,
        Self::DenseQ4K,
        Self::Tied,
        Self::Split,
        Self::Experts,
        Self::SlidingWindow,
        Self::Biases,
        Self::FusedAttention,
        Self::Recurrent,
        Self::Hybrid,
        Self::ShortConvolution,
        Self::Tiny,
    ];

    fn recipe(self) -> Recipe {
        match self {
            Self::Dense | Self::Split => {
                shapes::llama(sys::GGML_TYPE_Q8_0, shapes::DENSE, false, 1)
            }
            Self::DenseF16 => shapes::llama(sys::GGML_TYPE_F16, shapes::DENSE, false, 2),
            Self::DenseQ4 => shapes::llama(sys::GGML_TYPE_Q4_0, shapes::DENSE, false, 3),
            Self::DenseQ4K => shapes::llama(sys::GGML_TYPE_Q4_K, shapes::WIDE, false, 4),
            Self::Tied => shapes::llama(sys::GGML_TYPE_Q8_0, shapes::DENSE, true, 5),
            Self::Tiny => shapes::llama(sys::GGML_TYPE_Q8_0, shapes::TINY, false, 6),
            Self::Experts => shapes::mixture_of_experts(),
            Self::SlidingWindow => shapes::sliding_window(),
            Self::Biases => shapes::biases(),
            Self::FusedAttention => shapes::fused_attention(),
            Self::Recurrent => shapes::recurrent(),
            Self::Hybrid => shapes::hybrid(),
            Self::ShortConvolution => shapes::short_convolution(),
        }
    }

    /// Files that the model is written in.
    fn parts(self) -> usize {
        if self == Self::Split { 3 } else { 1 }
    }

    /// The model's file, the first one when it has several; written on first use.
    pub fn file(self) -> &'static File {
        type Written = Mutex<HashMap<Model, Arc<OnceLock<&'static File>>>>;
        static WRITTEN: OnceLock<Written> = OnceLock::new();
        let written = WRITTEN.get_or_init(Mutex::default);
        // The map is locked for a moment only: two models are written at the same time,
        // one model only once.
        let slot = Arc::clone(written.lock().unwrap().entry(self).or_default());
        slot.get_or_init(|| Box::leak(Box::new(self.write())))
    }

    /// A LoRA adapter for all of the model's matrices, of rank 4; others for other seeds.
    pub fn lora(self, seed: u64) -> PathBuf {
        let path = folder().join(format!("{self:?}-lora-{seed}.gguf"));
        let (metadata, tensors) = self.recipe().encode_lora(seed, 4, 8.0);
        write_file(&path, &metadata, &tensors);
        path
    }

    fn write(self) -> File {
        let (metadata, tensors) = self.recipe().encode();
        let tensor_bytes = tensors.iter().map(|tensor| tensor.bytes.len() as u64).sum();
        let parts = self.parts();
        let path = |part: usize| match parts {
            1 => folder().join(format!("{self:?}.gguf")),
            _ => folder().join(format!("{self:?}-{:05}-of-{parts:05}.gguf", part + 1)),
        };
        if parts == 1 {
            write_file(&path(0), &metadata, &tensors);
        } else {
            let count = i32::try_from(tensors.len()).unwrap();
            for (part, some) in tensors.chunks(tensors.len().div_ceil(parts)).enumerate() {
                let mut keys = if part == 0 {
                    metadata.clone()
                } else {
                    Vec::new()
                };
                let number = |value: usize| Value::U16(u16::try_from(value).unwrap());
                keys.push(("split.no".to_owned(), number(part)));
                keys.push(("split.count".to_owned(), number(parts)));
                keys.push(("split.tensors.count".to_owned(), Value::I32(count)));
                write_file(&path(part), &keys, some);
            }
        }
        File {
            path: path(0),
            tensor_bytes,
        }
    }
}

/// A written model.
#[derive(Debug)]
pub struct File {
    /// The file, or the first part.
    pub path: PathBuf,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
}

/// Where the models are kept: the same place in every run.
fn folder() -> &'static PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("models");
        std::fs::create_dir_all(&folder).unwrap();
        folder
    })
}

/// Writes one file beside its place and moves it there: another run of the tests may have
/// the old file mapped, and has the same bytes in it.
fn write_file(path: &Path, metadata: &[(String, Value)], tensors: &[Encoded]) {
    let thread = std::thread::current().id();
    let beside = path.with_extension(format!("{}-{thread:?}.tmp", std::process::id()));
    gguf::write(&beside, metadata, tensors);
    std::fs::rename(&beside, path).unwrap();
}

/// A prompt of `length` token ids, the same for the same seed.
pub fn prompt(seed: u64, length: usize) -> Vec<i32> {
    let mut random = random::Random::new(seed);
    (0..length)
        .map(|_| i32::try_from(random.below(VOCAB)).unwrap())
        .collect()
}
