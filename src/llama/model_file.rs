//! A first look at a model's file.

use std::path::Path;

use crate::error::Result;
use crate::ggml::Header;

/// What the header of a model's file says.
#[derive(Clone, Debug)]
pub struct ModelFile {
    /// Whether the model brings a chat template.
    pub has_template: bool,
    /// The model's architecture, e.g. `llama`; empty when the header does not say.
    pub architecture: String,
    /// Bytes of all parts' tensors.
    pub tensor_bytes: u64,
    /// Layers, as the tensors' names count them; those of an encoder beside a decoder's
    /// are not counted.
    pub layers: u32,
}

/// Looks at the file at `path`, and at the other parts when the model is split.
///
/// # Errors
/// `Failed`, naming the file, when one is missing, unreadable, empty, not a GGUF, damaged
/// or shorter than its header says.
pub fn inspect(path: &Path) -> Result<ModelFile> {
    let headers = Header::read_all(path)?;
    let first = &headers[0];
    let templates = [
        c"tokenizer.chat_template",
        c"tokenizer.chat_template.tool_use",
    ];
    let tensors = || headers.iter().flat_map(Header::tensors);
    let layers = tensors().filter_map(|tensor| layer_of(&tensor.name));
    Ok(ModelFile {
        has_template: templates.iter().any(|key| first.has(key)),
        architecture: first.text(c"general.architecture").unwrap_or_default(),
        layers: layers.max().map_or(0, |last| last.saturating_add(1)),
        tensor_bytes: tensors().fold(0, |sum, tensor| sum.saturating_add(tensor.bytes)),
    })
}

/// The layer that a tensor belongs to, by its name; None for the others.
fn layer_of(name: &str) -> Option<u32> {
    let name = name.strip_prefix("dec.").unwrap_or(name);
    let (number, _) = name.strip_prefix("blk.")?.split_once('.')?;
    number.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_counted_by_names() {
        assert_eq!(layer_of("blk.11.attn_q.weight"), Some(11));
        assert_eq!(layer_of("dec.blk.3.ffn_up.weight"), Some(3));
        for name in ["token_embd.weight", "enc.blk.3.x", "blk.x.y", "blk.3"] {
            assert_eq!(layer_of(name), None, "{name}");
        }
    }
}
