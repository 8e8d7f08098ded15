//! The metrics' format, checked strictly: a key that is unknown, missing, out of place or
//! of another type fails.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

use rpaged::telemetry::metrics::FORMAT;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

/// Kind of record → its fields in order, with their types.
type Schema = BTreeMap<String, Vec<(String, String)>>;

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| read(FORMAT));

fn read(format: &str) -> Schema {
    let mut schema = Schema::new();
    for section in format.split("### ").skip(1) {
        let (heading, text) = section.split_once('\n').unwrap();
        let rows = text.lines().filter(|line| line.starts_with("| `"));
        let fields: Vec<_> = rows
            .map(|row| {
                let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
                (cells[0].trim_matches('`').to_owned(), cells[1].to_owned())
            })
            .collect();
        assert!(!fields.is_empty(), "no fields: {heading}");
        for kind in heading.split(", ") {
            schema.insert(kind.trim_matches('`').to_owned(), fields.clone());
        }
    }
    schema
}

/// An object with its keys as they are written: in order, and twice if they are there
/// twice.
struct Object(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Object;

            fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
                out.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Object(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

fn has_type(value: &Value, kind: &str) -> bool {
    kind.split(" or ").any(|kind| match kind {
        "string" => value.is_string(),
        "integer" => value.is_u64(),
        "number" => value.is_number() && value.as_f64().is_some_and(|number| number >= 0.0),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("the format has a type '{other}'"),
    })
}

/// ISO 8601, UTC, milliseconds: `2026-11-21T11:54:35.155Z`.
fn is_timestamp(value: &Value) -> bool {
    let pattern = "dddd-dd-ddTdd:dd:dd.dddZ";
    let fits = |(found, wanted): (char, char)| match wanted {
        'd' => found.is_ascii_digit(),
        wanted => found == wanted,
    };
    let text = value.as_str().unwrap_or_default();
    text.len() == pattern.len() && text.chars().zip(pattern.chars()).all(fits)
}

/// What is wrong with a line; nothing when it is a record.
fn flaw(line: &str) -> Option<String> {
    let object: Object = match serde_json::from_str(line) {
        Ok(object) => object,
        Err(error) => return Some(format!("{error}")),
    };
    let Some((_, Value::String(kind))) = object.0.first() else {
        return Some("no type in front".into());
    };
    let Some(fields) = SCHEMA.get(kind) else {
        return Some(format!("there is no kind '{kind}'"));
    };
    let found: Vec<_> = object.0.iter().map(|(key, _)| key).collect();
    let expected: Vec<_> = fields.iter().map(|(key, _)| key).collect();
    if found != expected {
        return Some(format!("keys {found:?}, not {expected:?}"));
    }
    for ((key, value), (_, wanted)) in object.0.iter().zip(fields) {
        if !has_type(value, wanted) {
            return Some(format!("'{key}' is {value}, not {wanted}"));
        }
        if key == "timestamp" && !is_timestamp(value) {
            return Some(format!("'{value}' is no time"));
        }
    }
    None
}

/// The records in `text`, one a line; panics when something else is in it.
#[track_caller]
pub fn records(text: &str) -> Vec<Value> {
    let mut records: Vec<Value> = Vec::new();
    for line in text.lines() {
        if let Some(flaw) = flaw(line) {
            panic!("{flaw}: {line}");
        }
        records.push(serde_json::from_str(line).unwrap());
    }
    assert!(text.is_empty() || text.ends_with('\n'), "a line is cut off");
    let last = records
        .iter()
        .position(|record| record["type"] == "summary");
    assert!(
        last.is_none_or(|last| last + 1 == records.len()),
        "the summary is not the last"
    );
    records
}

/// Those of one kind.
pub fn of<'a>(records: &'a [Value], kind: &str) -> Vec<&'a Value> {
    assert!(SCHEMA.contains_key(kind), "there is no kind '{kind}'");
    let those = records.iter().filter(|record| record["type"] == kind);
    those.collect()
}

#[test]
fn the_format_names_the_kinds_and_the_fields_that_were_agreed_on() {
    let kinds: Vec<_> = SCHEMA.keys().map(String::as_str).collect();
    let expected = [
        "error", "evict", "load", "log", "plan", "pressure", "summary", "token",
    ];
    assert_eq!(kinds, expected);
    let token = "type timestamp token prompt_tokens generated_tokens gpu_layers_active \
                 cpu_layers_active layers_evicted layers_loaded kv_pages_gpu kv_pages_cpu \
                 kv_pages_evicted kv_pages_prefetched vram_used_mb vram_total_mb ram_used_mb \
                 gpu_memory_pressure cpu_memory_pressure tokens_per_sec avg_tokens_per_sec \
                 prefetch_pending prefetch_completed prefetch_failed bytes_storage bytes_link \
                 bytes_write_back stall_storage_ms stall_link_ms stall_write_back_ms compute_ms \
                 resident_bytes streamed_bytes seconds_per_token seconds_per_token_predicted \
                 drafted_tokens accepted_tokens host_bytes host_ms";
    let expected: Vec<_> = token.split_whitespace().collect();
    let found: Vec<_> = SCHEMA["token"]
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn what_is_not_of_the_format_is_found() {
    let good =
        r#"{"type":"error","timestamp":"2026-11-21T11:54:35.155Z","sentence":"x","exit_code":1}"#;
    assert_eq!(flaw(good), None);
    for (from, to) in [
        ("\"error\"", "\"eror\""),
        ("\"sentence\":\"x\",", ""),
        ("\"exit_code\":1", "\"exit_code\":1,\"more\":2"),
        ("\"exit_code\":1", "\"exit_code\":1,\"exit_code\":1"),
        ("\"exit_code\":1", "\"exit_code\":\"1\""),
        ("\"exit_code\":1", "\"exit_code\":1.5"),
        ("\"exit_code\":1", "\"exit_code\":-1"),
        ("\"exit_code\":1", "\"exit_code\":null"),
        ("\"x\"", "7"),
        ("T11", " 11"),
        ("}", ""),
        ("\"type\":\"error\",", ""),
    ] {
        let bad = good.replace(from, to);
        assert_ne!(bad, good);
        assert!(flaw(&bad).is_some(), "{bad}");
    }
    let swapped =
        r#"{"type":"error","timestamp":"2026-11-21T11:54:35.155Z","exit_code":1,"sentence":"x"}"#;
    assert!(flaw(swapped).is_some());
    assert!(flaw("").is_some() && flaw("[]").is_some() && flaw("{}").is_some());
}
