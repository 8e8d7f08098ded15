//! What is in a model's files, by role, type and layer, from their headers alone; and what
//! a context of it takes, as llama.cpp would make it.

pub mod table;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::error::Result;
use crate::forecast::Subject;
use crate::ggml::workload::{kind_name, row_bytes};
use crate::ggml::{Header, TensorEntry};

/// What `inspect --json` prints. Sizes are bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// The model, as it was named.
    pub model: String,
    /// Its own name; null when it has none.
    pub name: Option<String>,
    /// Its architecture.
    pub architecture: String,
    /// In how many files it comes.
    pub files: usize,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Layers, as the tensors' names count them.
    pub layers: u32,
    /// Tokens of the context that it was trained with; null when the header does not say.
    pub context_trained: Option<u64>,
    /// Width of a token.
    pub embedding: Option<u64>,
    /// Heads, and heads of the KV cache.
    pub heads: Option<u64>,
    /// See `heads`; null too where layers differ.
    pub heads_kv: Option<u64>,
    /// Experts of a layer.
    pub experts: Option<u64>,
    /// Experts that a token uses of a layer.
    pub experts_used: Option<u64>,
    /// The tensors by role and type, in the order of the file.
    pub tensors: Vec<Group>,
    /// Runs of layers of equal bytes, in order.
    pub layer_bytes: Vec<Run>,
    /// What a context takes; null when llama.cpp cannot make one.
    pub context: Option<Context>,
}

/// The tensors of one role and type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// The name, with `N` for the layer.
    pub role: String,
    /// The element type.
    #[serde(rename = "type")]
    pub kind: String,
    /// How many there are.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of one: the largest, where they differ.
    pub bytes_each: u64,
    /// What paging does with them: `paged`, or `expert by expert`, or `stays`: always in
    /// memory, for they are small or used all over; `outside`: llama.cpp keeps them to
    /// itself, and the budget covers them; null without a context.
    pub paging: Option<&'static str>,
}

/// Layers that follow each other and have the same bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Run {
    /// The first.
    pub first: u32,
    /// The last.
    pub last: u32,
    /// Bytes of each.
    pub bytes: u64,
}

/// What a context takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Context {
    /// Tokens that it can hold.
    pub tokens: u32,
    /// The type of keys, and of values.
    pub type_k: String,
    /// See `type_k`.
    pub type_v: String,
    /// Bytes that another token takes in the caches that grow with the context.
    pub bytes_per_token: u64,
    /// Bytes of all caches when the context is full.
    pub bytes: u64,
    /// Bytes of caches with a sliding window, within `bytes`.
    pub window_bytes: u64,
    /// Bytes of recurrent states, within `bytes`.
    pub recurrent_bytes: u64,
    /// Bytes that llama.cpp computes with, at this batch.
    pub scratch_bytes: u64,
    /// The smallest budget in which it runs.
    pub budget_bytes_min: u64,
    /// The smallest budget with which everything stays.
    pub budget_bytes_whole: u64,
}

/// Reads the headers of the model at `path`.
///
/// # Errors
/// `Failed`, naming the file, when one cannot be read.
pub fn inspect(path: &Path, model: String) -> Result<Inspection> {
    let headers = Header::read_all(path)?;
    let first = &headers[0];
    let architecture = first.text(c"general.architecture").unwrap_or_default();
    let number = |key: &str| {
        let key = std::ffi::CString::new(format!("{architecture}.{key}")).ok()?;
        first.number(&key)
    };
    let tensors: Vec<TensorEntry> = headers.iter().flat_map(Header::tensors).collect();
    let layers = layer_sums(&tensors);
    Ok(Inspection {
        model,
        name: first.text(c"general.name"),
        files: headers.len(),
        parameters: tensors.iter().map(elements).sum(),
        bytes: tensors.iter().map(|tensor| tensor.bytes).sum(),
        layers: layers.keys().last().map_or(0, |last| last + 1),
        context_trained: number("context_length"),
        embedding: number("embedding_length"),
        heads: number("attention.head_count"),
        heads_kv: number("attention.head_count_kv"),
        experts: number("expert_count").filter(|count| *count > 0),
        experts_used: number("expert_used_count").filter(|count| *count > 0),
        tensors: groups(&tensors),
        layer_bytes: runs(&layers),
        context: None,
        architecture,
    })
}

fn elements(tensor: &TensorEntry) -> u64 {
    // A row of 256 elements is whole blocks of any type.
    let row = row_bytes(tensor.kind, 256).unwrap_or(256).max(1);
    u64::try_from(u128::from(tensor.bytes) * 256 / u128::from(row)).unwrap_or(u64::MAX)
}

/// The role of a tensor: its name, with `N` for the layer.
fn role(name: &str) -> (String, Option<u32>) {
    let mut layer = None;
    let parts = name.split('.').map(|part| match part.parse::<u32>() {
        Ok(number) => {
            layer = layer.or(Some(number));
            "N"
        }
        Err(_) => part,
    });
    let role = parts.collect::<Vec<_>>().join(".");
    (role, layer)
}

fn groups(tensors: &[TensorEntry]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for tensor in tensors {
        let (role, _) = role(&tensor.name);
        let kind = kind_name(tensor.kind).unwrap_or("unknown");
        let same = |group: &&mut Group| group.role == role && group.kind == kind;
        match groups.iter_mut().find(same) {
            Some(group) => {
                group.count += 1;
                group.bytes += tensor.bytes;
                group.bytes_each = group.bytes_each.max(tensor.bytes);
            }
            None => groups.push(Group {
                role,
                kind: kind.to_owned(),
                count: 1,
                bytes: tensor.bytes,
                bytes_each: tensor.bytes,
                paging: None,
            }),
        }
    }
    groups
}

fn layer_sums(tensors: &[TensorEntry]) -> BTreeMap<u32, u64> {
    let mut sums = BTreeMap::new();
    for tensor in tensors {
        let is_layer = ["blk.", "dec.blk."];
        if let (_, Some(layer)) = role(&tensor.name)
            && is_layer
                .iter()
                .any(|prefix| tensor.name.starts_with(prefix))
        {
            *sums.entry(layer).or_insert(0) += tensor.bytes;
        }
    }
    sums
}

fn runs(layers: &BTreeMap<u32, u64>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (layer, bytes) in layers {
        match runs.last_mut() {
            Some(run) if run.bytes == *bytes && run.last + 1 == *layer => run.last = *layer,
            _ => runs.push(Run {
                first: *layer,
                last: *layer,
                bytes: *bytes,
            }),
        }
    }
    runs
}

impl Inspection {
    /// Adds what a context takes, and what paging does with each group.
    pub fn add_context(&mut self, subject: &Subject) {
        let tokens = usize::try_from(subject.facts.n_ctx).unwrap_or(usize::MAX);
        let facts = &subject.facts;
        let name = |kind: i32| {
            let kind = u32::try_from(kind).ok().and_then(kind_name);
            kind.unwrap_or("unknown").to_owned()
        };
        let mut context = Context {
            tokens: facts.n_ctx,
            type_k: name(facts.kv_type_k),
            type_v: name(facts.kv_type_v),
            bytes_per_token: 0,
            bytes: 0,
            window_bytes: 0,
            recurrent_bytes: 0,
            scratch_bytes: subject.scratch_bytes(),
            budget_bytes_min: subject.minimum_bytes(tokens),
            budget_bytes_whole: subject.whole_bytes(tokens),
        };
        for state in subject.states() {
            context.bytes += state.bytes;
            let is_cache = ["cache_k_l", "cache_v_l"];
            if !is_cache.iter().any(|prefix| state.name.starts_with(prefix)) {
                context.recurrent_bytes += state.bytes;
            } else if state.rows < u64::from(facts.n_ctx) {
                context.window_bytes += state.bytes;
            } else {
                context.bytes_per_token += state.bytes / state.rows.max(1);
            }
        }
        self.context = Some(context);
        for group in &mut self.tensors {
            group.paging = Some(paging(subject, &group.role));
        }
    }
}

/// What paging does with the tensors of a role.
fn paging(subject: &Subject, of_role: &str) -> &'static str {
    let found = subject.notes.paged.iter();
    let mut found = found.filter(|matrix| role(&matrix.name).0 == of_role);
    match found.next() {
        None => "outside",
        Some(matrix) if matrix.slices > 1 && matrix.name.ends_with("exps.weight") => {
            "expert by expert"
        }
        Some(matrix) if matrix.rows <= 1 => "stays",
        Some(_) => "paged",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, bytes: u64) -> TensorEntry {
        TensorEntry {
            name: name.into(),
            offset: 0,
            bytes,
            kind: ggml_sys::GGML_TYPE_Q8_0,
        }
    }

    #[test]
    fn roles_are_names_without_the_layer() {
        assert_eq!(
            role("blk.12.attn_q.weight"),
            ("blk.N.attn_q.weight".into(), Some(12))
        );
        assert_eq!(role("output.weight"), ("output.weight".into(), None));
    }

    #[test]
    fn layers_of_equal_bytes_are_one_run() {
        let tensors: Vec<TensorEntry> = [(0, 5), (1, 5), (2, 7), (3, 5), (4, 5)]
            .iter()
            .map(|(layer, bytes)| entry(&format!("blk.{layer}.ffn.weight"), *bytes))
            .chain([entry("output.weight", 99)])
            .collect();
        let runs = runs(&layer_sums(&tensors));
        let shown: Vec<(u32, u32, u64)> = runs.iter().map(|r| (r.first, r.last, r.bytes)).collect();
        assert_eq!(shown, [(0, 1, 5), (2, 2, 7), (3, 4, 5)]);
        let groups = groups(&tensors);
        assert_eq!(groups[0].count, 5);
        assert_eq!((groups[0].bytes, groups[0].bytes_each), (27, 7));
    }

    #[test]
    fn elements_follow_from_bytes_and_type() {
        assert_eq!(elements(&entry("x", 34 * 8)), 256);
    }
}
