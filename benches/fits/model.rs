//! Synthetic models of about 1 GB: Llama architecture, random weights from a fixed seed.
//!
//! Speed does not depend on what the weights are, as long as they are neither all equal
//! nor outlandish. So a few hundred rows are quantised and written in random order, which
//! takes seconds instead of minutes and never holds more than one tensor.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ggml_sys as ggml;

use crate::gguf::{Header, quantize, row_bytes};

const EMBEDDING: i64 = 2048;
const FEED_FORWARD: i64 = 5632;
const HEADS: u32 = 32;
const HEADS_KV: u32 = 4;
const HEAD: u32 = 64;
const VOCABULARY: i64 = 32_000;
const CONTEXT: u32 = 4096;

/// Rows that are quantised for each width; the tensors are mixtures of them.
const POOL_ROWS: usize = 256;

/// A model to be measured with.
pub struct Model {
    /// Name of the quantisation, and of the model in tables.
    pub name: &'static str,
    kind: ggml::ggml_type,
    file_type: ggml::llama_ftype,
    layers: u32,
}

/// About 1.1 GB and 1.0 GB.
pub const MODELS: [Model; 2] = [
    Model {
        name: "q8_0",
        kind: ggml::GGML_TYPE_Q8_0,
        file_type: ggml::LLAMA_FTYPE_MOSTLY_Q8_0,
        layers: 20,
    },
    Model {
        name: "q4_k",
        kind: ggml::GGML_TYPE_Q4_K,
        file_type: ggml::LLAMA_FTYPE_MOSTLY_Q4_K_S,
        layers: 36,
    },
];

struct Tensor {
    name: String,
    kind: ggml::ggml_type,
    columns: i64,
    rows: i64,
}

impl Model {
    /// The model's file in `folder`, made if it is not there yet.
    pub fn file(&self, folder: &Path) -> Result<PathBuf> {
        let path = folder.join(format!("fits-{}.gguf", self.name));
        if !path.exists() {
            // A file under its own name is whole: it is written under another.
            let part = path.with_extension("part");
            self.write(&part)
                .with_context(|| format!("could not make '{}'", path.display()))?;
            fs::rename(&part, &path)?;
        }
        Ok(path)
    }

    fn write(&self, path: &Path) -> Result<()> {
        let tensors = self.tensors();
        let mut header = Header::new(tensors.len())?;
        self.describe(&mut header)?;
        for tensor in &tensors {
            header.add_tensor(&tensor.name, tensor.kind, tensor.columns, tensor.rows)?;
        }
        header.write(path)?;

        let mut random = Random(0x5eed);
        let narrow = self.pool(&mut random, EMBEDDING)?;
        let wide = self.pool(&mut random, FEED_FORWARD)?;
        let mut file = BufWriter::new(OpenOptions::new().append(true).open(path)?);
        for tensor in &tensors {
            let pool = if tensor.columns == EMBEDDING {
                &narrow
            } else {
                &wide
            };
            write_tensor(&mut file, tensor, pool, &mut random)?;
        }
        file.flush()?;
        Ok(())
    }

    /// Quantised rows of `columns` elements, one after another.
    fn pool(&self, random: &mut Random, columns: i64) -> Result<Vec<u8>> {
        let columns = usize::try_from(columns)?;
        // Matrices of this spread keep the activations of all layers near 1.
        let spread = 1.0 / (columns as f32).sqrt();
        let weights: Vec<f32> = (0..POOL_ROWS * columns)
            .map(|_| random.normal() * spread)
            .collect();
        quantize(self.kind, &weights, columns)
    }

    fn tensors(&self) -> Vec<Tensor> {
        let kv = i64::from(HEADS_KV * HEAD);
        let matrix = |name: String, columns, rows| Tensor {
            name,
            kind: self.kind,
            columns,
            rows,
        };
        let norm = |name: String| Tensor {
            name,
            kind: ggml::GGML_TYPE_F32,
            columns: EMBEDDING,
            rows: 1,
        };
        let mut tensors = vec![
            matrix("token_embd.weight".into(), EMBEDDING, VOCABULARY),
            norm("output_norm.weight".into()),
            matrix("output.weight".into(), EMBEDDING, VOCABULARY),
        ];
        for layer in 0..self.layers {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            tensors.extend([
                norm(name("attn_norm")),
                matrix(name("attn_q"), EMBEDDING, EMBEDDING),
                matrix(name("attn_k"), EMBEDDING, kv),
                matrix(name("attn_v"), EMBEDDING, kv),
                matrix(name("attn_output"), EMBEDDING, EMBEDDING),
                norm(name("ffn_norm")),
                matrix(name("ffn_gate"), EMBEDDING, FEED_FORWARD),
                matrix(name("ffn_up"), EMBEDDING, FEED_FORWARD),
                matrix(name("ffn_down"), FEED_FORWARD, EMBEDDING),
            ]);
        }
        tensors
    }

    fn describe(&self, header: &mut Header) -> Result<()> {
        header.set_text("general.architecture", "llama")?;
        header.set_text("general.name", &format!("synthetic {}", self.name))?;
        header.set_u32("general.file_type", self.file_type)?;
        header.set_u32("llama.block_count", self.layers)?;
        header.set_u32("llama.context_length", CONTEXT)?;
        header.set_u32("llama.embedding_length", u32::try_from(EMBEDDING)?)?;
        header.set_u32("llama.feed_forward_length", u32::try_from(FEED_FORWARD)?)?;
        header.set_u32("llama.attention.head_count", HEADS)?;
        header.set_u32("llama.attention.head_count_kv", HEADS_KV)?;
        header.set_u32("llama.rope.dimension_count", HEAD)?;
        header.set_u32("llama.vocab_size", u32::try_from(VOCABULARY)?)?;
        header.set_f32("llama.rope.freq_base", 10_000.0)?;
        header.set_f32("llama.attention.layer_norm_rms_epsilon", 1e-5)?;
        describe_tokenizer(header)
    }
}

/// A byte-level tokenizer: one token per byte, then words that no text can reach.
fn describe_tokenizer(header: &mut Header) -> Result<()> {
    let count = usize::try_from(VOCABULARY)?;
    let (begin, end) = (count - 2, count - 1);
    let mut tokens: Vec<String> = (0..=u8::MAX)
        .map(|byte| visible(byte).to_string())
        .collect();
    // gguf's readers want at least one merge.
    let (first, second) = (visible(0), visible(1));
    tokens.push(format!("{first}{second}"));
    tokens.extend((tokens.len()..begin).map(|index| format!("word{index}")));
    tokens.extend(["<|bos|>".to_owned(), "<|eos|>".to_owned()]);
    let mut kinds = vec![1; count];
    kinds[begin..].fill(3);
    header.set_text("tokenizer.ggml.model", "gpt2")?;
    header.set_text("tokenizer.ggml.pre", "gpt-2")?;
    header.set_texts("tokenizer.ggml.tokens", &tokens)?;
    header.set_i32s("tokenizer.ggml.token_type", &kinds)?;
    header.set_texts("tokenizer.ggml.merges", &[format!("{first} {second}")])?;
    header.set_u32("tokenizer.ggml.bos_token_id", u32::try_from(begin)?)?;
    header.set_u32("tokenizer.ggml.eos_token_id", u32::try_from(end)?)?;
    header.set_bool("tokenizer.ggml.add_bos_token", true)
}

/// The character by which byte-level tokenizers show a byte: itself where it is visible,
/// otherwise the next free one from 256 on.
fn visible(byte: u8) -> char {
    let is_visible = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    if is_visible(byte) {
        return char::from(byte);
    }
    let hidden_before = (0..byte).filter(|&other| !is_visible(other)).count();
    u32::try_from(hidden_before)
        .ok()
        .and_then(|n| char::from_u32(256 + n))
        .unwrap_or('?')
}

fn write_tensor(
    file: &mut BufWriter<File>,
    tensor: &Tensor,
    pool: &[u8],
    random: &mut Random,
) -> Result<()> {
    let bytes = row_bytes(tensor.kind, tensor.columns);
    let rows = usize::try_from(tensor.rows)?;
    for _ in 0..rows {
        if tensor.kind == ggml::GGML_TYPE_F32 {
            file.write_all(&1f32.to_le_bytes().repeat(bytes / 4))?;
        } else {
            let start = random.below(POOL_ROWS) * bytes;
            file.write_all(&pool[start..start + bytes])?;
        }
    }
    let alignment = usize::try_from(ggml::GGUF_DEFAULT_ALIGNMENT)?;
    let written = rows * bytes;
    file.write_all(&vec![0; written.next_multiple_of(alignment) - written])?;
    Ok(())
}

/// SplitMix64: small, seeded, good enough for weights that mean nothing.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap_or(0) % bound
    }

    /// Nearly normal, with variance 1: the sum of twelve uniform numbers.
    fn normal(&mut self) -> f32 {
        let uniform = |bits: u64| (bits >> 40) as f32 / (1u32 << 24) as f32;
        (0..12).map(|_| uniform(self.next())).sum::<f32>() - 6.0
    }
}
