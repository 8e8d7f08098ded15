//! What is measured, and what a run of it gave.

use serde_json::{Value, json};

use super::placement::Kind;

/// Rounds of a case: ours, stock, ours, stock.
pub const ROUNDS: usize = 2;

/// What is measured, in tokens.
pub struct Work {
    pub prompts: [u64; 2],
    pub depths: [u64; 2],
    /// A context whose KV cache is larger than the model.
    pub depth_beyond: u64,
    pub generated: u64,
    pub ubatches: [u64; 2],
}

pub const FULL: Work = Work {
    prompts: [2048, 8192],
    depths: [512, 32_768],
    depth_beyond: 61_440,
    generated: 32,
    ubatches: [512, 2048],
};

pub const SMOKE: Work = Work {
    prompts: [64, 128],
    depths: [32, 256],
    depth_beyond: 1024,
    generated: 4,
    ubatches: [32, 64],
};

/// One kind of test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Prefill,
    /// At this depth.
    Decode(u64),
    /// At this depth, whose KV cache has no room.
    Beyond(u64),
}

#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub what: What,
    pub percent: u64,
}

/// One test of a run.
#[derive(Clone, Debug)]
pub struct Row {
    pub prompt: u64,
    pub depth: u64,
    pub ubatch: u64,
    pub tokens_per_second: f64,
    pub json: Value,
}

/// A run of several tests.
#[derive(Clone)]
pub struct Measured {
    pub rows: Vec<Row>,
    pub vram_bytes: Option<u64>,
}

/// Flags, and what runs with them gave.
pub struct Tried {
    pub what: What,
    /// Of stock: what it gives the GPU, and tokens at once.
    pub placement: Option<(Kind, u64, u64)>,
    pub flags: Vec<String>,
    pub runs: Vec<Measured>,
}

impl Case {
    pub fn name(&self) -> String {
        match self.what {
            What::Prefill => format!("prefill, {} %", self.percent),
            What::Decode(depth) => format!("decode at {depth}, {} %", self.percent),
            What::Beyond(depth) => format!("decode at {depth}, KV cache beyond the budget"),
        }
    }
}

impl Tried {
    /// The most memory that a run took, in bytes.
    pub fn vram_bytes(&self) -> Option<u64> {
        self.runs.iter().filter_map(|run| run.vram_bytes).max()
    }

    /// Speeds of the newest runs at the test of `like`.
    pub fn speeds(&self, like: &Row) -> Vec<f64> {
        let newest = self.runs.len().saturating_sub(ROUNDS);
        let rows = self.runs[newest..].iter().flat_map(|run| &run.rows);
        let rows = rows.filter(|row| (row.prompt, row.depth) == (like.prompt, like.depth));
        rows.map(|row| row.tokens_per_second).collect()
    }

    pub fn json(&self) -> Value {
        let rows = self.runs.iter().flat_map(|run| &run.rows);
        let speed = |row: &Row| {
            let speed = row.tokens_per_second;
            json!({"n_prompt": row.prompt, "n_depth": row.depth, "ts": speed})
        };
        json!({
            "flags": self.flags.join(" "), "vram_bytes": self.vram_bytes(),
            "speeds": rows.map(speed).collect::<Vec<_>>(),
        })
    }
}

/// A line of the bench; None when the test did not run.
pub fn row(line: &str) -> Option<Row> {
    let json: Value = serde_json::from_str(line).ok()?;
    Some(Row {
        prompt: json["n_prompt"].as_u64()?,
        depth: json["n_depth"].as_u64()?,
        ubatch: json["n_ubatch"].as_u64()?,
        tokens_per_second: json["median_ts"].as_f64()?,
        json,
    })
}
