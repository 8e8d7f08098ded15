//! What is measured, and what a run of it gave.

use serde_json::{Value, json};

use super::placement::Kind;

/// Rounds of a case, each of ours and of stock.
pub const ROUNDS: usize = 3;

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

/// A test that a case is to measure, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// None of them when it generates.
    pub prompt: u64,
    pub depth: u64,
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
    /// Why tests did not run.
    pub notes: Vec<String>,
    pub vram_bytes: Option<u64>,
}

/// Why a run gave nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// There is not so much memory, by its own words.
    Memory,
    /// It was not begun: too little time was left.
    Time,
    /// It crashed, or hung, or said something else.
    Other,
}

/// What `rpaged-cli` ends with when there is not so much memory.
const MEMORY_CODE: i32 = 4;

/// A run that gave nothing.
#[derive(Clone, Debug)]
pub struct Failure {
    pub why: Why,
    pub sentence: String,
}

/// Flags, and what runs with them gave.
pub struct Tried {
    pub what: What,
    /// Of stock: what it gives the GPU, and tokens at once.
    pub placement: Option<(Kind, u64, u64)>,
    pub flags: Vec<String>,
    pub runs: Vec<Measured>,
    /// The first of the runs that belongs to the case at hand.
    pub since: usize,
}

impl Work {
    /// The tests of a case.
    pub fn wanted(&self, what: What) -> Vec<Wanted> {
        match what {
            What::Prefill => self
                .prompts
                .map(|prompt| Wanted { prompt, depth: 0 })
                .into(),
            What::Decode(depth) | What::Beyond(depth) => vec![Wanted { prompt: 0, depth }],
        }
    }
}

impl Wanted {
    fn is(self, row: &Row) -> bool {
        (row.prompt, row.depth) == (self.prompt, self.depth)
    }
}

impl Failure {
    /// A program ended with `code`, and all that it said is `text`: why.
    pub fn of_run(code: Option<i32>, text: &str, sentence: String) -> Self {
        const SIGNS: [&str; 4] = [
            "out of memory",
            "not enough memory",
            "insufficient memory",
            "failed to allocate",
        ];
        let text = text.to_lowercase();
        // A budget that does not do is such an end, too.
        let is_refusal = code == Some(MEMORY_CODE);
        let of_memory = is_refusal || SIGNS.iter().any(|sign| text.contains(sign));
        let why = if of_memory { Why::Memory } else { Why::Other };
        Self { why, sentence }
    }
}

impl Measured {
    /// The same, when all of its tests ran.
    pub fn whole(self) -> Result<Self, Failure> {
        match self.notes.is_empty() {
            true => Ok(self),
            false => {
                let text = self.notes.join(" / ");
                let sentence = format!("a test did not run: {text}");
                Err(Failure::of_run(None, &text, sentence))
            }
        }
    }
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

    /// Runs with these flags, one so far.
    pub fn new(what: What, flags: Vec<String>, run: Measured) -> Self {
        Self {
            what,
            placement: None,
            flags,
            runs: vec![run],
            since: 0,
        }
    }

    /// How many of the runs belong to the case at hand.
    pub fn runs_of_case(&self) -> usize {
        self.runs.len() - self.since
    }

    /// Speeds at the test in the case at hand.
    pub fn speeds(&self, wanted: &Wanted) -> Vec<f64> {
        speeds(&self.runs[self.since..], wanted)
    }

    /// The same in all runs.
    pub fn speeds_ever(&self, wanted: &Wanted) -> Vec<f64> {
        speeds(&self.runs, wanted)
    }

    /// The newest row of the test in the case at hand.
    pub fn newest(&self, wanted: &Wanted) -> Option<&Row> {
        let mut rows = self.runs[self.since..].iter().flat_map(|run| &run.rows);
        rows.rfind(|row| wanted.is(row))
    }

    /// One run with these prompts and speeds, for checks.
    pub fn of_speeds(speeds: &[(u64, f64)]) -> Self {
        let row = |&(prompt, tokens_per_second): &(u64, f64)| Row {
            prompt,
            depth: 0,
            ubatch: 1,
            tokens_per_second,
            json: Value::Null,
        };
        let run = Measured {
            rows: speeds.iter().map(row).collect(),
            notes: Vec::new(),
            vram_bytes: None,
        };
        Self::new(What::Prefill, Vec::new(), run)
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

fn speeds(runs: &[Measured], wanted: &Wanted) -> Vec<f64> {
    let rows = runs.iter().flat_map(|run| &run.rows);
    let rows = rows.filter(|row| wanted.is(row));
    rows.map(|row| row.tokens_per_second).collect()
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
