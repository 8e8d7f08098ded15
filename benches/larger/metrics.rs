//! What a run says of itself in its metrics file: the sizes of its last plan, and the
//! bytes each token moved.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

/// Sizes of a plan, in bytes, named as in the metrics.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    pub resident_bytes: u64,
    pub streamed_bytes: u64,
    pub kv_resident_bytes: u64,
    pub kv_streamed_bytes: u64,
    pub scratch_bytes: u64,
}

/// Bytes moved for one token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moved {
    /// From storage and over the link.
    pub bytes_in: u64,
    /// Written back.
    pub bytes_back: u64,
}

/// All that is read of a metrics file.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// The last plan that took effect.
    pub plan: Plan,
    /// The tokens in order, without the first, whose record covers the prompt.
    pub tokens: Vec<Moved>,
}

impl Metrics {
    /// Reads the file at `path`.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("the run left no metrics in '{}'", path.display()))?;
        Self::parse(&text).with_context(|| format!("in '{}'", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let mut plan = None;
        let mut tokens = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let record: Value = serde_json::from_str(line)
                .with_context(|| format!("line {} is not a record", index + 1))?;
            let bytes = |name: &str| {
                record[name]
                    .as_u64()
                    .with_context(|| format!("line {} has no number of bytes '{name}'", index + 1))
            };
            match record["type"].as_str() {
                Some("plan") => {
                    plan = Some(Plan {
                        resident_bytes: bytes("resident_bytes")?,
                        streamed_bytes: bytes("streamed_bytes")?,
                        kv_resident_bytes: bytes("kv_resident_bytes")?,
                        kv_streamed_bytes: bytes("kv_streamed_bytes")?,
                        scratch_bytes: bytes("scratch_bytes")?,
                    });
                }
                Some("token") => tokens.push(Moved {
                    bytes_in: bytes("bytes_storage")? + bytes("bytes_link")?,
                    bytes_back: bytes("bytes_write_back")?,
                }),
                _ => {}
            }
        }
        if !tokens.is_empty() {
            tokens.remove(0);
        }
        let plan = plan.context("no record of a plan")?;
        Ok(Self { plan, tokens })
    }
}

/// This file's reading on a known text.
pub fn check_reading() -> Result<()> {
    let plan = |streamed: u64| {
        format!(
            "{{\"type\":\"plan\",\"resident_bytes\":7,\"streamed_bytes\":{streamed},\
             \"kv_resident_bytes\":1,\"kv_streamed_bytes\":2,\"scratch_bytes\":3}}\n"
        )
    };
    let token = |storage: u64| {
        format!(
            "{{\"type\":\"token\",\"bytes_storage\":{storage},\"bytes_link\":1,\
             \"bytes_write_back\":9}}\n"
        )
    };
    let text = [plan(4), token(100), plan(5), token(10)].concat() + "{\"type\":\"log\"}\n";
    let read = Metrics::parse(&text)?;
    assert_eq!(read.plan.streamed_bytes, 5);
    let moved = Moved {
        bytes_in: 11,
        bytes_back: 9,
    };
    assert_eq!(read.tokens, [moved]);
    assert!(Metrics::parse(&token(1)).is_err(), "no plan");
    assert!(Metrics::parse("{\"type\":\"plan\"}").is_err(), "no sizes");
    Ok(())
}
