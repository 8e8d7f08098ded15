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
    let tensors = headers.iter().flat_map(Header::tensors);
    Ok(ModelFile {
        has_template: templates.iter().any(|key| first.has(key)),
        architecture: first.text(c"general.architecture").unwrap_or_default(),
        tensor_bytes: tensors.fold(0, |sum, tensor| sum.saturating_add(tensor.bytes)),
    })
}
