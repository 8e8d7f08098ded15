//! What is asked of a measurement, and whether it is met.

use serde_json::{Value, json};

/// What a test of ours is judged by.
#[derive(Clone, Copy, Debug, Default)]
pub struct Test {
    /// The budget, in percent of the model.
    pub percent: u64,
    /// Reading a prompt, or generating.
    pub is_prefill: bool,
    /// Speed by that of stock's best placement.
    pub ratio: Option<f64>,
    /// Speed by what the slower one of link and computation allows.
    pub of_bound: Option<f64>,
    /// Bytes of cold weights for a token: over the link, and with the processor.
    pub link_bytes: f64,
    pub processor_bytes: f64,
}

/// A part of the cold bytes that is none, when it is less than this.
const PART_MIN: f64 = 0.05;

impl Test {
    /// Whether link and processor both have a part in a token.
    pub fn is_shared(&self) -> bool {
        let least = PART_MIN * (self.link_bytes + self.processor_bytes);
        self.link_bytes.min(self.processor_bytes) > least
    }

    /// All bars of the test.
    pub fn bars(&self) -> Vec<Value> {
        if self.percent >= 100 {
            return vec![bar("98 % of stock, all resident", 0.98, self.ratio)];
        }
        let bound = || {
            bar(
                "95 % of what link and computation allow",
                0.95,
                self.of_bound,
            )
        };
        let shared = || bar("1.2x stock, the work being shared", 1.2, self.ratio);
        match (self.is_prefill, self.percent <= 50, self.is_shared()) {
            (true, true, _) => vec![
                bar("1.5x stock, half or more being cold", 1.5, self.ratio),
                bound(),
            ],
            (true, false, _) => vec![bound()],
            (false, _, true) => vec![bar("not below stock", 1.0, self.ratio), shared()],
            (false, _, false) => vec![bar("not below stock", 1.0, self.ratio)],
        }
    }
}

/// One bar; `met` is null where the value is not known.
pub fn bar(what: &str, least: f64, value: Option<f64>) -> Value {
    let value = value.filter(|value| value.is_finite());
    let met = value.map(|value| value >= least);
    json!({"bar": what, "least": least, "value": value, "met": met})
}

/// False when a bar is missed, null when nothing is known of any, true otherwise.
pub fn all_met(bars: &[Value]) -> Value {
    let mut met = bars.iter().filter_map(|bar| bar["met"].as_bool());
    match bars.iter().any(|bar| bar["met"].is_boolean()) {
        true => json!(met.all(|met| met)),
        false => Value::Null,
    }
}

/// Seconds of a prefill when either the link or the computation is busy all the time: what
/// streams crosses the link once for each ubatch.
pub fn prefill_seconds(tokens: u64, ubatch: u64, streamed: f64, link: f64, resident: f64) -> f64 {
    let [tokens, passes] =
        [tokens, tokens.div_ceil(ubatch)].map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    (f64::from(passes) * streamed / link).max(f64::from(tokens) / resident)
}

/// The arithmetic of this file on known values: a bench has no test harness of its own.
pub fn check_arithmetic() {
    let met = |test: Test| -> Vec<bool> {
        let bars = test.bars();
        bars.iter().filter_map(|bar| bar["met"].as_bool()).collect()
    };
    let all = |percent, is_prefill, ratio, of_bound| Test {
        percent,
        is_prefill,
        ratio: Some(ratio),
        of_bound: Some(of_bound),
        ..Test::default()
    };
    assert_eq!(met(all(100, true, 0.985, 0.1)), [true]);
    assert_eq!(met(all(100, false, 0.97, 1.0)), [false]);
    assert_eq!(met(all(50, true, 1.6, 0.94)), [true, false]);
    assert_eq!(met(all(25, true, 1.4, 0.96)), [false, true]);
    assert_eq!(met(all(75, true, 1.1, 0.99)), [true]);
    assert_eq!(met(all(75, false, 0.99, 0.0)), [false]);
    let shared = Test {
        link_bytes: 30.0,
        processor_bytes: 70.0,
        ..all(50, false, 1.1, 0.0)
    };
    assert_eq!(met(shared), [true, false]);
    let hardly = Test {
        link_bytes: 4.0,
        processor_bytes: 96.0,
        ..shared
    };
    assert_eq!(met(hardly), [true]);
    assert_eq!(met(all(25, false, f64::NAN, 0.0)), [true; 0]);
    assert_eq!(all_met(&[bar("", 1.0, None)]), Value::Null);
    assert_eq!(
        all_met(&[bar("", 1.0, None), bar("", 1.0, Some(2.0))]),
        json!(true)
    );
    // Four passes of two seconds each, against one second of computing, and against 32.
    assert!((prefill_seconds(2048, 512, 1000.0, 500.0, 2048.0) - 8.0).abs() < 1e-9);
    assert!((prefill_seconds(2048, 512, 1000.0, 500.0, 64.0) - 32.0).abs() < 1e-9);
}
