//! The model that is measured with, made on the spot.

use std::path::{Path, PathBuf};

use anyhow::Result;
use ggml_sys as ggml;

use super::rig::model::{Model, Shape};

/// A model on disk.
#[derive(Clone)]
pub struct Made {
    pub path: PathBuf,
    /// Bytes of the file.
    pub bytes: u64,
    pub layers: u32,
}

/// The shape of an 8B model of the Llama family, in Q4_0; or, for a trial, a tiny one.
pub fn make(folder: &Path, smoke: bool) -> Result<Made> {
    let shape = match smoke {
        true => Shape {
            layers: 8,
            embedding: 256,
            feed_forward: 768,
            heads: 4,
            heads_kv: 2,
            head: 64,
            vocabulary: 1024,
            context: 65_536,
        },
        false => Shape {
            layers: 32,
            embedding: 4096,
            feed_forward: 14_336,
            heads: 32,
            heads_kv: 8,
            head: 128,
            vocabulary: 32_000,
            context: 65_536,
        },
    };
    let layers = shape.layers;
    let model = Model {
        name: if smoke { "cuda-smoke" } else { "cuda-8b-q4_0" }.to_owned(),
        kind: ggml::GGML_TYPE_Q4_0,
        file_type: ggml::LLAMA_FTYPE_MOSTLY_Q4_0,
        shape,
    };
    let path = model.file(folder)?;
    Ok(Made {
        bytes: std::fs::metadata(&path)?.len(),
        path,
        layers,
    })
}
