//! A forecast as text: tables whose numbers stand below each other.

use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};

use super::record::{Forecast, Layer, Role};
use super::{Memory, Speed};
use crate::cli::size::show_bytes;

/// A table without lines: columns in `right` are numbers.
pub fn table(head: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(head);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// The table's lines, with no blanks at their ends.
pub fn lines(table: &Table) -> String {
    let mut text = String::new();
    for line in table.to_string().lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A number of things, in three digits: `1.24 B`.
#[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
pub fn show_count(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["", " K", " M", " B"] {
        if value < 1000.0 {
            let digits = usize::from(!unit.is_empty() && value < 100.0)
                + usize::from(!unit.is_empty() && value < 10.0);
            return format!("{value:.digits$}{unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.1} T")
}

/// Tokens per second in three digits.
fn show_speed(tokens_per_second: Option<f64>) -> String {
    match tokens_per_second {
        None => "-".to_owned(),
        Some(speed) if speed >= 100.0 => format!("{speed:.0}"),
        Some(speed) if speed >= 10.0 => format!("{speed:.1}"),
        Some(speed) if speed >= 1.0 => format!("{speed:.2}"),
        Some(speed) => format!("{speed:.3}"),
    }
}

/// The whole text.
pub fn text(forecast: &Forecast) -> String {
    let mut text = String::new();
    head(&mut text, forecast);
    text.push('\n');
    text.push_str(&lines(&roles(&forecast.roles)));
    text.push('\n');
    text.push_str(&lines(&layers(&forecast.layers)));
    text.push('\n');
    text.push_str(&lines(&memory(&forecast.memory, forecast.depth_tokens)));
    text.push('\n');
    speeds(&mut text, forecast);
    text.push_str(&lines(&budgets(forecast)));
    text
}

fn head(text: &mut String, forecast: &Forecast) {
    let layers = forecast.layers.iter();
    let layers = layers.filter(|layer| layer.layer.is_some()).count();
    let streaming = forecast.layers.iter().filter(|layer| {
        layer.streamed_bytes + layer.states_streamed_bytes + layer.cached_bytes > 0
    });
    let rows = [
        (
            "model",
            format!(
                "{}: {}, {} parameters, {} in {layers} layers",
                forecast.model,
                forecast.architecture,
                show_count(forecast.parameters),
                show_bytes(forecast.model_bytes),
            ),
        ),
        (
            "context",
            format!(
                "{} of {} tokens in use, batches of {}",
                forecast.depth_tokens, forecast.context_tokens, forecast.ubatch_tokens
            ),
        ),
        (
            "budget",
            format!(
                "{}; the smallest that runs is {}, everything stays from {}",
                show_bytes(forecast.budget_bytes),
                show_bytes(forecast.budget_bytes_min),
                show_bytes(forecast.budget_bytes_whole),
            ),
        ),
        (
            "plan",
            match streaming.count() {
                0 => "everything stays in memory".to_owned(),
                count => format!("something of {count} layers travels, the output counted as one"),
            },
        ),
    ];
    for (name, value) in rows {
        let _ = writeln!(text, "{name:<9}{value}");
    }
}

fn roles(roles: &[Role]) -> Table {
    let head = [
        "tensor", "type", "count", "bytes", "stays", "travels", "cached",
    ];
    let mut table = table(&head, &[2, 3, 4, 5, 6]);
    let dash = |count: u64| match count {
        0 => "-".to_owned(),
        count => count.to_string(),
    };
    for role in roles {
        table.add_row([
            role.role.trim_end_matches(".weight").to_owned(),
            role.types.join(", "),
            role.count.to_string(),
            show_bytes(role.bytes),
            dash(role.resident),
            dash(role.streamed),
            dash(role.cached),
        ]);
    }
    table
}

/// Layers that follow each other and are alike are one row.
fn layers(layers: &[Layer]) -> Table {
    let head = ["layer", "stays", "travels", "cached"];
    let mut table = table(&head, &[1, 2, 3]);
    let sums = |layer: &Layer| {
        let stays = layer.resident_bytes + layer.states_resident_bytes;
        let travels = layer.streamed_bytes + layer.states_streamed_bytes;
        (layer.part, stays, travels, layer.cached_bytes)
    };
    let dash = |bytes: u64| match bytes {
        0 => "-".to_owned(),
        bytes => show_bytes(bytes),
    };
    for alike in layers.chunk_by(|one, next| sums(one) == sums(next)) {
        let (part, stays, travels, cached) = sums(&alike[0]);
        let numbers = alike[0].layer.zip(alike.last().and_then(|last| last.layer));
        let name = match numbers {
            None => part.to_owned(),
            Some((first, last)) => {
                let encoder = if part == "encoder" { "encoder " } else { "" };
                match first == last {
                    true => format!("{encoder}{first}"),
                    false => format!("{encoder}{first} to {last}"),
                }
            }
        };
        table.add_row([name, dash(stays), dash(travels), dash(cached)]);
    }
    table
}

fn memory(memory: &Memory, tokens: usize) -> Table {
    let mut table = table(&["memory", "bytes"], &[1]);
    let states = format!("KV cache and states, {tokens} tokens");
    let rows = [
        ("weights that stay", memory.weights_bytes),
        (&*states, memory.states_bytes),
        ("ring, for what travels", memory.ring_bytes),
        ("cache of experts", memory.experts_bytes),
        ("scratch, to compute with", memory.scratch_bytes),
        ("the GPU's driver, about", memory.driver_bytes),
        ("token embedding", memory.unpaged_bytes),
        ("in use of the budget", memory.used_bytes),
        ("beside the budget", memory.beside_bytes),
    ];
    for (name, bytes) in rows.into_iter().filter(|(_, bytes)| *bytes > 0) {
        table.add_row([name.to_owned(), show_bytes(bytes)]);
    }
    table
}

fn speeds(text: &mut String, forecast: &Forecast) {
    let line = |speed: &Speed, what: &str| {
        let bound = match (speed.pass_bytes, speed.is_bound_by_transfers()) {
            (0, _) => "nothing travels".to_owned(),
            (bytes, true) => format!("{} travel in a pass, and bound it", show_bytes(bytes)),
            (bytes, false) => format!(
                "{} travel in a pass; computing bounds it",
                show_bytes(bytes)
            ),
        };
        format!(
            "{what:<9}{} tokens/s: {bound}\n",
            show_speed(Some(speed.tokens_per_second))
        )
    };
    let both = [(forecast.decode, "decode"), (forecast.prefill, "prefill")];
    let known = both
        .iter()
        .filter_map(|(speed, what)| Some((speed.as_ref()?, *what)));
    let mut any = false;
    for (speed, what) in known {
        text.push_str(&line(speed, what));
        any = true;
    }
    if let Some(cold) = &forecast.cold {
        let percent = 100.0 * cold.share;
        let _ = writeln!(
            text,
            "cold     the processor computes {percent:.0} % of the cold weights that it can: {} \
             tokens/s; all over the link {}, all on the processor {}",
            show_speed(Some(cold.tokens_per_second)),
            show_speed(Some(cold.stream_tokens_per_second)),
            show_speed(Some(cold.processor_tokens_per_second)),
        );
    }
    if any {
        text.push('\n');
    }
}

fn budgets(forecast: &Forecast) -> Table {
    let has_shares = forecast
        .budgets
        .iter()
        .any(|other| other.cold_share.is_some());
    let mut head = vec!["budget", "travels", "prefill/s", "decode/s", "decode x"];
    head.extend(has_shares.then_some("CPU's"));
    let mut table = table(&head, &[0, 1, 2, 3, 4, 5]);
    for other in &forecast.budgets {
        let ratio = match other.decode_ratio {
            Some(_) if other.budget_bytes == forecast.budget_bytes => "this".to_owned(),
            Some(ratio) => format!("{ratio:.2}"),
            None => "-".to_owned(),
        };
        let mut row = vec![
            show_bytes(other.budget_bytes),
            show_bytes(other.pass_bytes),
            show_speed(other.prefill_tokens_per_second),
            show_speed(other.decode_tokens_per_second),
            ratio,
        ];
        let share = |share: f64| format!("{:.0} %", 100.0 * share);
        let share = other.cold_share.map_or_else(|| "-".to_owned(), share);
        row.extend(has_shares.then_some(share));
        table.add_row(row);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_shown_with_three_digits() {
        assert_eq!(show_count(999), "999");
        assert_eq!(show_count(1_240_000_000), "1.24 B");
        assert_eq!(show_count(70_600_000_000), "70.6 B");
        assert_eq!(show_count(405_000_000_000), "405 B");
        assert_eq!(show_count(1_500_000_000_000), "1.5 T");
    }

    #[test]
    fn numbers_stand_below_each_other() {
        let mut table = table(&["name", "bytes"], &[1]);
        table.add_row(["a", "1.00 MiB"]);
        table.add_row(["longer", "100 MiB"]);
        let text = lines(&table);
        let ends: Vec<usize> = text.lines().map(str::len).collect();
        assert!(ends.windows(2).all(|pair| pair[0] == pair[1]), "{text}");
    }
}
