//! What of a model lies outside the arena: where llama.cpp puts it by itself, or where the
//! user's flags do.

use std::collections::HashSet;

use super::shared::Shared;
use crate::error::{Error, Result};
use crate::ggml::Tensor;
use crate::pager::{GroupKey, TensorSpec};

/// Read by row where llama.cpp is told to: one row for each token.
const READ_BY_ROW: &str = "per_layer_token_embd.weight";
/// The architectures for which llama.cpp does that.
const READS_BY_ROW: [&str; 2] = ["gemma4", "qwen4exp"];

/// Bytes of the model's weights that llama.cpp keeps to itself in this machine's memory:
/// those that are not among `tensors`, and the token embedding when it is the output as
/// well. What was placed by hand is among them: the budget covers that, too, unless it is
/// of a device's own memory.
pub fn unpaged_bytes(shared: &Shared, tensors: &[Tensor<'_>]) -> u64 {
    if !shared.inner.is_host() {
        return 0;
    }
    let paged: HashSet<String> = tensors.iter().map(|tensor| tensor.name()).collect();
    let tied = tensors
        .iter()
        .find(|tensor| tensor.name() == "token_embd.weight");
    let tied = tied.map_or(0, |tensor| tensor.span_bytes() as u64);
    let kept = shared.index.tensors().filter(|(name, bytes)| {
        let elsewhere = shared.shares_model() && is_of_layers(name);
        !paged.contains(*name) && !elsewhere && !is_read_by_row(shared, name, *bytes)
    });
    kept.fold(tied, |sum, (_, bytes)| sum.saturating_add(bytes))
}

/// Whether llama.cpp maps the tensor and reads its rows when it needs them: they are the
/// page cache's.
fn is_read_by_row(shared: &Shared, name: &str, bytes: u64) -> bool {
    let by_row = READS_BY_ROW.contains(&shared.index.architecture());
    let large = |least| bytes >= least;
    by_row && name == READ_BY_ROW && shared.config.lazy_bytes_min.is_some_and(large)
}

/// Whether the tensor goes to the device that has its layer, or the output; all others are
/// the CPU's.
fn is_of_layers(name: &str) -> bool {
    let of_layers = ["blk.", "enc.blk.", "dec.blk.", "output"];
    of_layers.iter().any(|prefix| name.starts_with(prefix))
}

/// Layers that are to stay have to be there.
///
/// # Errors
/// `Usage` when the model has no such layer, or it is not on this device.
pub fn check_pinned_layers(shared: &Shared, specs: &[TensorSpec]) -> Result<()> {
    let layer = |spec: &TensorSpec| match spec.group {
        GroupKey::Layer(layer) => Some(layer),
        _ => None,
    };
    let layers: HashSet<u32> = specs.iter().filter_map(layer).collect();
    let last = layers.iter().max().copied().unwrap_or(0);
    let pinned = &shared.config.pinned_layers;
    let Some(pinned) = pinned.iter().find(|pinned| !layers.contains(pinned)) else {
        return Ok(());
    };
    Err(Error::Usage(if *pinned > last {
        format!("'--pin-layers' names layer '{pinned}', and the model's layers are 0 to {last}")
    } else {
        format!(
            "'--pin-layers' names layer '{pinned}', which is not paged: --rpc or --override-tensor \
             has placed it elsewhere"
        )
    }))
}

/// Adds to the error of a device's memory in which there is no room what would help where all
/// weights lie there.
pub fn explain_no_room(shared: &Shared, error: Error) -> Error {
    match error {
        Error::Memory(sentence) if !shared.inner.is_host() && !shared.config.weights => {
            let name = shared.inner.name();
            Error::Memory(format!(
                "{sentence}; --paged-kv alone keeps all weights in the memory of {name}: add \
                 --dynamic-layers, or compute on the processor with --device none"
            ))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_and_the_output_go_to_devices() {
        for name in [
            "blk.3.attn_q.weight",
            "output.weight",
            "output_norm.weight",
            "dec.blk.0.x",
        ] {
            assert!(is_of_layers(name), "{name}");
        }
        for name in [
            "token_embd.weight",
            "per_layer_token_embd.weight",
            "rope_freqs.weight",
        ] {
            assert!(!is_of_layers(name), "{name}");
        }
    }
}
