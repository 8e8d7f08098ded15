//! The model that is measured with, made on the spot.

use std::path::PathBuf;

use anyhow::{Context, Result};
use ggml_sys as ggml;

use super::options::Options;
use super::rig::model::{Model, Shape};

/// A model on disk.
#[derive(Clone)]
pub struct Made {
    pub path: PathBuf,
    /// Bytes of the file.
    pub bytes: u64,
    pub layers: u32,
}

/// Types of matrices, by the command line's names.
const QUANTS: [(&str, ggml::ggml_type, ggml::llama_ftype); 2] = [
    ("q4_0", ggml::GGML_TYPE_Q4_0, ggml::LLAMA_FTYPE_MOSTLY_Q4_0),
    ("q8_0", ggml::GGML_TYPE_Q8_0, ggml::LLAMA_FTYPE_MOSTLY_Q8_0),
];

/// The shape of an 8B model of the Llama family; or, for a trial, a tiny one.
pub fn make(options: &Options) -> Result<Made> {
    let shape = match options.smoke {
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
    let known = QUANTS.iter().find(|(name, ..)| *name == options.quant);
    let (quant, kind, file_type) = *known.context("it is q4_0 or q8_0; see --quant")?;
    let size = if options.smoke { "smoke" } else { "8b" };
    let model = Model {
        name: format!("cuda-{size}-{quant}"),
        kind,
        file_type,
        shape,
    };
    let path = model.file(&options.folder)?;
    Ok(Made {
        bytes: std::fs::metadata(&path)?.len(),
        path,
        layers,
    })
}
