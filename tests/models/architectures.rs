//! The recipes: one small model per way in which llama.cpp's graphs differ.
//!
//! All have a vocabulary of [`VOCAB`] token ids without texts.

use ggml_sys as sys;

use super::gguf::Value;
use super::recipe::{Fill, Recipe};

/// Token ids of every model.
pub const VOCAB: u32 = 256;
/// Context length of every model, in tokens.
const CONTEXT: u32 = 1024;

/// Sizes of a transformer.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub layers: u32,
    pub width: i64,
    /// Values of one attention head: a quantised cache has blocks of 32.
    pub head: i64,
    pub heads: i64,
    pub kv_heads: i64,
    pub feed_forward: i64,
}

/// The dense models: four query heads share two KV heads.
pub const DENSE: Sizes = Sizes {
    layers: 6,
    width: 128,
    head: 32,
    heads: 4,
    kv_heads: 2,
    feed_forward: 256,
};
/// K-quants come in blocks of 256 values. With heads of 64 values llama.cpp rotates the
/// keys and values that it quantises.
pub const WIDE: Sizes = Sizes {
    layers: 4,
    width: 256,
    head: 64,
    heads: 4,
    kv_heads: 2,
    feed_forward: 512,
};
/// The smallest, for thousands of runs.
pub const TINY: Sizes = Sizes {
    layers: 3,
    width: 64,
    head: 32,
    heads: 2,
    kv_heads: 1,
    feed_forward: 96,
};

fn count(value: i64) -> u32 {
    u32::try_from(value).unwrap()
}

/// Metadata that every architecture reads, embedding, final norm and, unless the
/// embedding serves twice, output.
fn skeleton(recipe: &mut Recipe, sizes: Sizes, tied: bool) {
    recipe.set_all(&[
        ("vocab_size", VOCAB),
        ("context_length", CONTEXT),
        ("block_count", sizes.layers),
        ("embedding_length", count(sizes.width)),
        ("feed_forward_length", count(sizes.feed_forward)),
    ]);
    let vocab = i64::from(VOCAB);
    recipe.tensor("token_embd.weight", &[sizes.width, vocab], Fill::Matrix);
    if !tied {
        recipe.tensor("output.weight", &[sizes.width, vocab], Fill::Matrix);
    }
}

/// Metadata of attention with the same heads in every layer.
fn heads(recipe: &mut Recipe, sizes: Sizes) {
    recipe.set_all(&[
        ("attention.head_count", count(sizes.heads)),
        ("attention.head_count_kv", count(sizes.kv_heads)),
        ("attention.key_length", count(sizes.head)),
        ("attention.value_length", count(sizes.head)),
        ("rope.dimension_count", count(sizes.head)),
    ]);
}

fn rms_norm(recipe: &mut Recipe) {
    recipe.set("attention.layer_norm_rms_epsilon", Value::F32(1e-5));
}

fn attention(recipe: &mut Recipe, layer: u32, sizes: Sizes) {
    let (query, kv) = (sizes.head * sizes.heads, sizes.head * sizes.kv_heads);
    recipe.layer(layer, "attn_q.weight", &[sizes.width, query], Fill::Matrix);
    recipe.layer(layer, "attn_k.weight", &[sizes.width, kv], Fill::Matrix);
    recipe.layer(layer, "attn_v.weight", &[sizes.width, kv], Fill::Matrix);
    recipe.layer(
        layer,
        "attn_output.weight",
        &[query, sizes.width],
        Fill::Matrix,
    );
}

fn head_norms(recipe: &mut Recipe, layer: u32, sizes: Sizes) {
    recipe.layer(layer, "attn_q_norm.weight", &[sizes.head], Fill::Norm);
    recipe.layer(layer, "attn_k_norm.weight", &[sizes.head], Fill::Norm);
}

fn gated_feed_forward(recipe: &mut Recipe, layer: u32, sizes: Sizes) {
    let (width, inner) = (sizes.width, sizes.feed_forward);
    recipe.layer(layer, "ffn_norm.weight", &[width], Fill::Norm);
    recipe.layer(layer, "ffn_gate.weight", &[width, inner], Fill::Matrix);
    recipe.layer(layer, "ffn_up.weight", &[width, inner], Fill::Matrix);
    recipe.layer(layer, "ffn_down.weight", &[inner, width], Fill::Matrix);
}

/// Llama: grouped-query attention, RMS norms, a gated feed-forward block.
pub fn llama(kind: sys::ggml_type, sizes: Sizes, tied: bool, seed: u64) -> Recipe {
    let mut recipe = Recipe::new("llama", kind, seed);
    skeleton(&mut recipe, sizes, tied);
    heads(&mut recipe, sizes);
    rms_norm(&mut recipe);
    recipe.tensor("output_norm.weight", &[sizes.width], Fill::Norm);
    for layer in 0..sizes.layers {
        recipe.layer(layer, "attn_norm.weight", &[sizes.width], Fill::Norm);
        attention(&mut recipe, layer, sizes);
        gated_feed_forward(&mut recipe, layer, sizes);
    }
    recipe
}

/// Qwen3 MoE: two of eight experts per token, norms on query and key heads.
pub fn mixture_of_experts() -> Recipe {
    let sizes = Sizes { layers: 4, ..DENSE };
    let (experts, inner) = (8, 64);
    let mut recipe = Recipe::new("qwen3moe", sys::GGML_TYPE_Q8_0, 20);
    skeleton(&mut recipe, sizes, false);
    heads(&mut recipe, sizes);
    rms_norm(&mut recipe);
    recipe.set_all(&[
        ("expert_count", count(experts)),
        ("expert_used_count", 2),
        ("expert_feed_forward_length", count(inner)),
    ]);
    recipe.tensor("output_norm.weight", &[sizes.width], Fill::Norm);
    for layer in 0..sizes.layers {
        let width = sizes.width;
        recipe.layer(layer, "attn_norm.weight", &[width], Fill::Norm);
        attention(&mut recipe, layer, sizes);
        head_norms(&mut recipe, layer, sizes);
        recipe.layer(layer, "ffn_norm.weight", &[width], Fill::Norm);
        recipe.layer(layer, "ffn_gate_inp.weight", &[width, experts], Fill::Plain);
        recipe.layer(
            layer,
            "ffn_gate_exps.weight",
            &[width, inner, experts],
            Fill::Matrix,
        );
        recipe.layer(
            layer,
            "ffn_up_exps.weight",
            &[width, inner, experts],
            Fill::Matrix,
        );
        recipe.layer(
            layer,
            "ffn_down_exps.weight",
            &[inner, width, experts],
            Fill::Matrix,
        );
    }
    recipe
}

/// Gemma 2: every second layer sees a window of 8 tokens; logits are capped; tied.
pub fn sliding_window() -> Recipe {
    let sizes = Sizes { layers: 4, ..DENSE };
    let mut recipe = Recipe::new("gemma2", sys::GGML_TYPE_Q8_0, 30);
    skeleton(&mut recipe, sizes, true);
    heads(&mut recipe, sizes);
    rms_norm(&mut recipe);
    recipe.set("attention.sliding_window", Value::U32(8));
    recipe.set("attn_logit_softcapping", Value::F32(50.0));
    recipe.set("final_logit_softcapping", Value::F32(30.0));
    recipe.tensor("output_norm.weight", &[sizes.width], Fill::Norm);
    for layer in 0..sizes.layers {
        recipe.layer(layer, "attn_norm.weight", &[sizes.width], Fill::Norm);
        attention(&mut recipe, layer, sizes);
        recipe.layer(
            layer,
            "post_attention_norm.weight",
            &[sizes.width],
            Fill::Norm,
        );
        gated_feed_forward(&mut recipe, layer, sizes);
        recipe.layer(layer, "post_ffw_norm.weight", &[sizes.width], Fill::Norm);
    }
    recipe
}

/// StarCoder2: LayerNorm with bias, and a bias on every matrix.
pub fn biases() -> Recipe {
    let sizes = Sizes { layers: 4, ..DENSE };
    let (width, kv, inner) = (sizes.width, sizes.head * sizes.kv_heads, sizes.feed_forward);
    let mut recipe = Recipe::new("starcoder2", sys::GGML_TYPE_Q8_0, 40);
    skeleton(&mut recipe, sizes, true);
    heads(&mut recipe, sizes);
    recipe.set("attention.layer_norm_epsilon", Value::F32(1e-5));
    recipe.tensor("output_norm.weight", &[width], Fill::Norm);
    recipe.tensor("output_norm.bias", &[width], Fill::Bias);
    for layer in 0..sizes.layers {
        attention(&mut recipe, layer, sizes);
        recipe.layer(layer, "ffn_up.weight", &[width, inner], Fill::Matrix);
        recipe.layer(layer, "ffn_down.weight", &[inner, width], Fill::Matrix);
        for (name, length) in [
            ("attn_norm", width),
            ("attn_q", width),
            ("attn_k", kv),
            ("attn_v", kv),
            ("attn_output", width),
            ("ffn_norm", width),
            ("ffn_up", inner),
            ("ffn_down", width),
        ] {
            recipe.layer(layer, &format!("{name}.bias"), &[length], Fill::Bias);
        }
        recipe.layer(layer, "attn_norm.weight", &[width], Fill::Norm);
        recipe.layer(layer, "ffn_norm.weight", &[width], Fill::Norm);
    }
    recipe
}

/// GPT-2: one fused matrix for query, key and value, and a table of positions.
pub fn fused_attention() -> Recipe {
    let sizes = Sizes {
        layers: 3,
        kv_heads: 4,
        ..DENSE
    };
    let (width, inner) = (sizes.width, sizes.feed_forward);
    let mut recipe = Recipe::new("gpt2", sys::GGML_TYPE_F16, 50);
    skeleton(&mut recipe, sizes, false);
    heads(&mut recipe, sizes);
    recipe.set("attention.layer_norm_epsilon", Value::F32(1e-5));
    recipe.tensor(
        "position_embd.weight",
        &[width, i64::from(CONTEXT)],
        Fill::Plain,
    );
    recipe.tensor("output_norm.weight", &[width], Fill::Norm);
    recipe.tensor("output_norm.bias", &[width], Fill::Bias);
    for layer in 0..sizes.layers {
        for (name, columns, rows) in [
            ("attn_qkv", width, 3 * width),
            ("attn_output", width, width),
            ("ffn_up", width, inner),
            ("ffn_down", inner, width),
        ] {
            recipe.layer(
                layer,
                &format!("{name}.weight"),
                &[columns, rows],
                Fill::Matrix,
            );
            recipe.layer(layer, &format!("{name}.bias"), &[rows], Fill::Bias);
        }
        for name in ["attn_norm", "ffn_norm"] {
            recipe.layer(layer, &format!("{name}.weight"), &[width], Fill::Norm);
            recipe.layer(layer, &format!("{name}.bias"), &[width], Fill::Bias);
        }
    }
    recipe
}

/// Values of a state-space model's state per channel, length of its convolution, and rank
/// of its time step.
const STATE: i64 = 16;
const CONVOLUTION: i64 = 4;
const TIME_STEP_RANK: i64 = 32;

fn state_space_metadata(recipe: &mut Recipe, width: i64) {
    recipe.set_all(&[
        ("ssm.conv_kernel", count(CONVOLUTION)),
        ("ssm.inner_size", count(2 * width)),
        ("ssm.state_size", count(STATE)),
        ("ssm.time_step_rank", count(TIME_STEP_RANK)),
    ]);
}

fn state_space(recipe: &mut Recipe, layer: u32, width: i64) {
    let inner = 2 * width;
    recipe.layer(layer, "ssm_in.weight", &[width, 2 * inner], Fill::Matrix);
    recipe.layer(
        layer,
        "ssm_conv1d.weight",
        &[CONVOLUTION, inner],
        Fill::Plain,
    );
    recipe.layer(layer, "ssm_conv1d.bias", &[inner], Fill::Bias);
    recipe.layer(
        layer,
        "ssm_x.weight",
        &[inner, TIME_STEP_RANK + 2 * STATE],
        Fill::Matrix,
    );
    recipe.layer(
        layer,
        "ssm_dt.weight",
        &[TIME_STEP_RANK, inner],
        Fill::Matrix,
    );
    recipe.layer(layer, "ssm_dt.bias", &[inner], Fill::TimeStep);
    recipe.layer(layer, "ssm_a", &[STATE, inner], Fill::Decay);
    recipe.layer(layer, "ssm_d", &[inner], Fill::Norm);
    recipe.layer(layer, "ssm_out.weight", &[inner, width], Fill::Matrix);
}

/// Mamba: recurrent states and no attention at all.
pub fn recurrent() -> Recipe {
    let sizes = Sizes {
        layers: 4,
        heads: 0,
        kv_heads: 0,
        feed_forward: 0,
        ..DENSE
    };
    let mut recipe = Recipe::new("mamba", sys::GGML_TYPE_Q8_0, 60);
    skeleton(&mut recipe, sizes, true);
    rms_norm(&mut recipe);
    recipe.set("attention.head_count", Value::U32(0));
    state_space_metadata(&mut recipe, sizes.width);
    recipe.tensor("output_norm.weight", &[sizes.width], Fill::Norm);
    for layer in 0..sizes.layers {
        recipe.layer(layer, "attn_norm.weight", &[sizes.width], Fill::Norm);
        state_space(&mut recipe, layer, sizes.width);
    }
    recipe
}

/// KV heads by layer, 0 for the layers that keep a recurrent state instead.
fn alternate_heads(recipe: &mut Recipe, sizes: Sizes) {
    let kv_heads = (0..sizes.layers).map(|layer| (layer % 2) * count(sizes.kv_heads));
    recipe.set("attention.head_count", Value::U32(count(sizes.heads)));
    recipe.set("attention.head_count_kv", Value::U32s(kv_heads.collect()));
}

/// Jamba: a state-space layer, then an attention layer, and so on.
pub fn hybrid() -> Recipe {
    let sizes = Sizes { layers: 4, ..DENSE };
    let mut recipe = Recipe::new("jamba", sys::GGML_TYPE_Q8_0, 70);
    skeleton(&mut recipe, sizes, true);
    rms_norm(&mut recipe);
    alternate_heads(&mut recipe, sizes);
    state_space_metadata(&mut recipe, sizes.width);
    recipe.tensor("output_norm.weight", &[sizes.width], Fill::Norm);
    for layer in 0..sizes.layers {
        recipe.layer(layer, "attn_norm.weight", &[sizes.width], Fill::Norm);
        if layer % 2 == 0 {
            state_space(&mut recipe, layer, sizes.width);
            recipe.layer(layer, "ssm_dt_norm.weight", &[TIME_STEP_RANK], Fill::Norm);
            recipe.layer(layer, "ssm_b_norm.weight", &[STATE], Fill::Norm);
            recipe.layer(layer, "ssm_c_norm.weight", &[STATE], Fill::Norm);
        } else {
            attention(&mut recipe, layer, sizes);
        }
        gated_feed_forward(&mut recipe, layer, sizes);
    }
    recipe
}

/// LFM2: short convolutions with a rolling state, and attention, in turn.
pub fn short_convolution() -> Recipe {
    let sizes = Sizes { layers: 4, ..DENSE };
    let (width, window) = (sizes.width, 3);
    let mut recipe = Recipe::new("lfm2", sys::GGML_TYPE_Q8_0, 80);
    skeleton(&mut recipe, sizes, true);
    rms_norm(&mut recipe);
    alternate_heads(&mut recipe, sizes);
    recipe.set("shortconv.l_cache", Value::U32(count(window)));
    recipe.tensor("token_embd_norm.weight", &[width], Fill::Norm);
    for layer in 0..sizes.layers {
        recipe.layer(layer, "attn_norm.weight", &[width], Fill::Norm);
        if layer % 2 == 0 {
            recipe.layer(
                layer,
                "shortconv.conv.weight",
                &[window, width],
                Fill::Plain,
            );
            recipe.layer(
                layer,
                "shortconv.in_proj.weight",
                &[width, 3 * width],
                Fill::Matrix,
            );
            recipe.layer(
                layer,
                "shortconv.out_proj.weight",
                &[width, width],
                Fill::Matrix,
            );
        } else {
            attention(&mut recipe, layer, sizes);
            head_norms(&mut recipe, layer, sizes);
        }
        gated_feed_forward(&mut recipe, layer, sizes);
    }
    recipe
}
