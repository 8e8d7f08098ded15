//! Synthetic models of the Llama architecture: random weights from a fixed seed.
//!
//! Speed does not depend on what the weights are, as long as they are neither all equal
//! nor outlandish. So a few hundred rows are quantised and written in random order, which
//! takes seconds instead of minutes and never holds more than one tensor.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ggml_sys as ggml;

use super::gguf::{Header, quantize, row_bytes};

/// Rows that are quantised for each width; the tensors are mixtures of them.
const POOL_ROWS: usize = 256;

/// Sizes of a model, in elements and counts.
#[derive(Clone)]
pub struct Shape {
    pub layers: u32,
    pub embedding: u32,
    pub feed_forward: u32,
    pub heads: u32,
    pub heads_kv: u32,
    /// Elements of one head.
    pub head: u32,
    /// At least 512: one token for each byte, and a few more.
    pub vocabulary: u32,
    /// Tokens that the model claims to be trained with.
    pub context: u32,
}

/// A model to be measured with.
#[derive(Clone)]
pub struct Model {
    /// Name of the model in tables, and of its file.
    pub name: String,
    pub kind: ggml::ggml_type,
    pub file_type: ggml::llama_ftype,
    pub shape: Shape,
}

struct Tensor {
    name: String,
    kind: ggml::ggml_type,
    columns: i64,
    rows: i64,
}

impl Model {
    /// The model's file in `folder`, made if it is not there yet.
    pub fn file(&self, folder: &Path) -> Result<PathBuf> {
        let path = folder.join(format!("{}.gguf", self.name));
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

        let (embedding, feed_forward) = (self.shape.embedding, self.shape.feed_forward);
        let mut random = Random(0x5eed);
        let narrow = self.pool(&mut random, embedding)?;
        let wide = self.pool(&mut random, feed_forward)?;
        let mut file = BufWriter::new(OpenOptions::new().append(true).open(path)?);
        for tensor in &tensors {
            let pool = if tensor.columns == i64::from(embedding) {
                &narrow
            } else {
                &wide
            };
            write_tensor(&mut file, tensor, pool, &mut random)?;
        }
        let file = file.into_inner()?;
        // What is still to be written would be written while the first run is measured.
        file.sync_all()?;
        Ok(())
    }

    /// Quantised rows of `columns` elements, one after another.
    fn pool(&self, random: &mut Random, columns: u32) -> Result<Vec<u8>> {
        let columns = usize::try_from(columns)?;
        // Matrices of this spread keep the activations of all layers near 1.
        let spread = 1.0 / (columns as f32).sqrt();
        let weights: Vec<f32> = (0..POOL_ROWS * columns)
            .map(|_| random.normal() * spread)
            .collect();
        quantize(self.kind, &weights, columns)
    }

    fn tensors(&self) -> Vec<Tensor> {
        let shape = &self.shape;
        let (embedding, feed_forward) = (shape.embedding, shape.feed_forward);
        let (q, kv) = (shape.heads * shape.head, shape.heads_kv * shape.head);
        let matrix = |name: String, columns: u32, rows: u32| Tensor {
            name,
            kind: self.kind,
            columns: i64::from(columns),
            rows: i64::from(rows),
        };
        let norm = |name: String| Tensor {
            name,
            kind: ggml::GGML_TYPE_F32,
            columns: i64::from(embedding),
            rows: 1,
        };
        let mut tensors = vec![
            matrix("token_embd.weight".into(), embedding, shape.vocabulary),
            norm("output_norm.weight".into()),
            matrix("output.weight".into(), embedding, shape.vocabulary),
        ];
        for layer in 0..shape.layers {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            tensors.extend([
                norm(name("attn_norm")),
                matrix(name("attn_q"), embedding, q),
                matrix(name("attn_k"), embedding, kv),
                matrix(name("attn_v"), embedding, kv),
                matrix(name("attn_output"), q, embedding),
                norm(name("ffn_norm")),
                matrix(name("ffn_gate"), embedding, feed_forward),
                matrix(name("ffn_up"), embedding, feed_forward),
                matrix(name("ffn_down"), feed_forward, embedding),
            ]);
        }
        tensors
    }

    fn describe(&self, header: &mut Header) -> Result<()> {
        let shape = &self.shape;
        header.set_text("general.architecture", "llama")?;
        header.set_text("general.name", &format!("synthetic {}", self.name))?;
        header.set_u32("general.file_type", self.file_type)?;
        header.set_u32("llama.block_count", shape.layers)?;
        header.set_u32("llama.context_length", shape.context)?;
        header.set_u32("llama.embedding_length", shape.embedding)?;
        header.set_u32("llama.feed_forward_length", shape.feed_forward)?;
        header.set_u32("llama.attention.head_count", shape.heads)?;
        header.set_u32("llama.attention.head_count_kv", shape.heads_kv)?;
        header.set_u32("llama.rope.dimension_count", shape.head)?;
        header.set_u32("llama.vocab_size", shape.vocabulary)?;
        header.set_f32("llama.rope.freq_base", 10_000.0)?;
        header.set_f32("llama.attention.layer_norm_rms_epsilon", 1e-5)?;
        describe_tokenizer(header, usize::try_from(shape.vocabulary)?)
    }
}

/// A byte-level tokenizer: one token per byte, then words that no text can reach.
fn describe_tokenizer(header: &mut Header, count: usize) -> Result<()> {
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
