//! An inspection as text.

use std::fmt::Write;

use super::{Context, Inspection};
use crate::cli::size::show_bytes;
use crate::forecast::table::{lines, show_count, table};

/// The whole text.
pub fn text(inspection: &Inspection) -> String {
    let mut text = String::new();
    for (name, value) in head(inspection) {
        let _ = writeln!(text, "{name:<11}{value}");
    }
    text.push('\n');
    let mut tensors = table(
        &["tensor", "type", "count", "bytes", "each", "paging"],
        &[2, 3, 4],
    );
    for group in &inspection.tensors {
        tensors.add_row([
            group.role.clone(),
            group.kind.clone(),
            group.count.to_string(),
            show_bytes(group.bytes),
            show_bytes(group.bytes_each),
            group.paging.unwrap_or("-").to_owned(),
        ]);
    }
    text.push_str(&lines(&tensors));
    text.push('\n');
    let mut layers = table(&["layers", "bytes each"], &[1]);
    for run in &inspection.layer_bytes {
        let name = match run.first == run.last {
            true => run.first.to_string(),
            false => format!("{} to {}", run.first, run.last),
        };
        layers.add_row([name, show_bytes(run.bytes)]);
    }
    text.push_str(&lines(&layers));
    if let Some(context) = &inspection.context {
        text.push('\n');
        text.push_str(&of_context(context));
    }
    text
}

fn head(inspection: &Inspection) -> Vec<(&'static str, String)> {
    let files = match inspection.files {
        1 => String::new(),
        count => format!(" in {count} files"),
    };
    let mut rows = vec![
        ("model", format!("{}{files}", inspection.model)),
        (
            "size",
            format!(
                "{}: {} parameters, {} layers, {}",
                inspection.architecture,
                show_count(inspection.parameters),
                inspection.layers,
                show_bytes(inspection.bytes)
            ),
        ),
    ];
    if let Some(name) = &inspection.name {
        rows.insert(1, ("name", name.clone()));
    }
    if let Some(tokens) = inspection.context_trained {
        rows.push(("trained", format!("with contexts of {tokens} tokens")));
    }
    if let (Some(heads), Some(width)) = (inspection.heads, inspection.embedding) {
        let kv = inspection.heads_kv;
        let kv = kv.map_or_else(String::new, |kv| format!(", {kv} of them in the KV cache"));
        rows.push(("attention", format!("{heads} heads{kv}; {width} wide")));
    }
    if let (Some(count), Some(used)) = (inspection.experts, inspection.experts_used) {
        let sentence = format!("{count} in a layer, of which a token uses {used}");
        rows.push(("experts", sentence));
    }
    rows
}

fn of_context(context: &Context) -> String {
    let title = format!(
        "a context of {} tokens ({}, {})",
        context.tokens, context.type_k, context.type_v
    );
    let mut table = table(&[&title, "bytes"], &[1]);
    let rows = [
        ("KV cache, each token", context.bytes_per_token),
        ("KV cache and states, when full", context.bytes),
        ("of it sliding windows", context.window_bytes),
        ("of it recurrent states", context.recurrent_bytes),
        ("scratch, to compute with", context.scratch_bytes),
        ("smallest budget that runs", context.budget_bytes_min),
        (
            "budget with which everything stays",
            context.budget_bytes_whole,
        ),
    ];
    for (name, bytes) in rows.into_iter().filter(|(_, bytes)| *bytes > 0) {
        table.add_row([name.to_owned(), show_bytes(bytes)]);
    }
    lines(&table)
}
