//! Speeds beside stock llama.cpp of the same build, in alternation, with the same memory of
//! the GPU.
//!
//! - A **case** is a budget with one kind of test: prefill of a short and a long prompt,
//!   decode at a short context, decode at a long one; and one is decode with a KV cache larger
//!   than the budget, beside stock's in the machine's memory. The most telling come first, each
//!   with an estimate of its time; the file is written after each, and what fails ends no other.
//! - Of **stock**, whatever was fastest of what was tried and took no more of the GPU's memory
//!   than the paged run: whole layers, or all but feed-forward matrices, as many as have room
//!   by what a run of them took (see [`super::placement`]), its memory pinned (`-lm none`),
//!   with small and large ubatches where prompts are read.
//! - **Bars**: see [`super::bars`]. The rate of the link is what calibration measured.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::checks::smallest;
use super::model::{Made, make};
use super::options::Options;
use super::rig::measure::median_and_mad;
use super::run::Runner;
use super::work::{Case, FULL, Failure, Measured, Row, SMOKE, Tried, What, Why, Work, row};

/// A case gets so many times its estimate, and so many seconds at least.
const PATIENCE: f64 = 3.0;
const CASE_SECONDS_MIN: f64 = 60.0;
/// With less than this left, nothing is begun.
const SECONDS_LEFT_MIN: f64 = 5.0;

/// What runs: the program, the model, and what is known so far.
pub struct Rig<'a> {
    pub options: &'a Options,
    pub model: Made,
    pub work: &'static Work,
    pub depths: PathBuf,
    /// Bytes per second into the GPU's memory.
    pub link: Option<f64>,
    /// Prefill with everything resident.
    pub resident: Vec<Row>,
    /// Placements of stock, whatever the budget they were tried for.
    pub stock: Vec<Tried>,
    /// Seconds of runs, by what they were of.
    pub seconds: Vec<(What, f64)>,
}

/// Measures all cases; what is done is handed to `save` after each.
pub fn speed(options: &Options, runner: &Runner, save: &mut dyn FnMut(&Value)) -> Result<Value> {
    let started = Instant::now();
    let model = make(options)?;
    let depths = options.folder.join("depths");
    fs::create_dir_all(&depths)?;
    let mut rig = Rig {
        options,
        work: if options.smoke { &SMOKE } else { &FULL },
        model,
        depths,
        link: None,
        resident: Vec::new(),
        stock: Vec::new(),
        seconds: Vec::new(),
    };
    let mut result = json!({
        "model": rig.model.path.file_name().map(|name| name.to_string_lossy()),
        "model_bytes": rig.model.bytes, "made_seconds": started.elapsed().as_secs_f64(),
        "errors": [],
    });
    let cases = rig.cases();
    result["cases"] = cases.iter().map(|case| rig.planned(case)).collect();
    save(&result);
    match rates(options, runner, &rig.model) {
        Ok(rates) => {
            rig.link = link_rate(&rates);
            result["rates"] = rates;
        }
        Err(error) => note(&mut result, "the machine's rates", &error),
    }
    match rig.bench(runner, What::Prefill, &rig.resident_flags()) {
        Ok(measured) => rig.resident = measured.rows,
        Err(failure) => {
            let error = anyhow::anyhow!(failure.sentence);
            note(&mut result, "prefill with everything resident", &error);
        }
    }
    result["resident"] = rig.resident.iter().map(|row| row.json.clone()).collect();
    for (index, case) in cases.iter().enumerate() {
        result["cases"][index] = rig.run(runner, case);
        save(&result);
    }
    let states = result["cases"].as_array().into_iter().flatten();
    let bad = states.clone().filter(|case| case["ok"] == false).count();
    let good = states.clone().filter(|case| case["ok"] == true).count();
    let done = states.filter(|case| case["state"] == "done").count();
    result["cases_done"] = json!(done);
    result["cases_planned"] = json!(cases.len());
    result["ok"] = json!(bad == 0 && good > 0);
    result["missed"] = json!(missed(&result));
    // Large, and made again in a minute.
    drop(fs::remove_dir_all(&rig.depths));
    Ok(result)
}

/// The bars that were missed, and the tests without a measurement, each in a line.
fn missed(result: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for case in result["cases"].as_array().into_iter().flatten() {
        for test in case["tests"].as_array().into_iter().flatten() {
            if let Some(error) = test["error"].as_str() {
                lines.push(format!(
                    "{}: {error}",
                    case["name"].as_str().unwrap_or_default()
                ));
            }
            let bars = test["bars"].as_array().into_iter().flatten();
            for bar in bars.filter(|bar| bar["met"] == false) {
                lines.push(format!(
                    "{}, {} tokens at {}: {} of {}: {}",
                    case["name"].as_str().unwrap_or_default(),
                    test["n_prompt"],
                    test["n_depth"],
                    bar["value"],
                    bar["least"],
                    bar["bar"].as_str().unwrap_or_default(),
                ));
            }
        }
    }
    lines
}

fn note(result: &mut Value, what: &str, error: &anyhow::Error) {
    if let Some(values) = result["errors"].as_array_mut() {
        values.push(json!(format!("{what}: {error:#}")));
    }
}

/// What `rpaged-cli plan` measures of the machine, as it keeps it.
fn rates(options: &Options, runner: &Runner, model: &Made) -> Result<Value> {
    let path = model.path.to_string_lossy();
    let words = ["plan", "-m", &*path, "--device", &options.device];
    let anew = ["--recalibrate", "--dynamic-layers", "--json"];
    let words = [&words[..], options.threads(), &anew].concat();
    runner.run(&options.program, &words)?.printed()?;
    let folder = options.folder.join("cache").join("rpaged");
    let files = fs::read_dir(&folder)
        .with_context(|| format!("nothing was kept in '{}'", folder.display()))?
        .filter_map(|file| Some(file.ok()?.path()));
    let newest = files.max_by_key(|path| fs::metadata(path).and_then(|meta| meta.modified()).ok());
    let newest = newest.context("no rates were kept")?;
    Ok(serde_json::from_str(&fs::read_to_string(newest)?)?)
}

/// Bytes per second to where it is computed: over the link, from pinned memory where there is
/// such; from storage where the processor computes.
fn link_rate(rates: &Value) -> Option<f64> {
    let link = &rates["link"];
    let pinned = link["pinned_bytes_per_second"].as_f64();
    let over_link = pinned.or_else(|| link["pageable_bytes_per_second"].as_f64());
    over_link.or_else(|| rates["storage_bytes_per_second"].as_f64())
}

impl Rig<'_> {
    /// All cases, the most telling first.
    fn cases(&self) -> Vec<Case> {
        let [short, long] = self.work.depths;
        let kinds = [What::Prefill, What::Decode(short), What::Decode(long)];
        let of_budget = |percent: &u64| {
            let percent = *percent;
            kinds.map(|what| Case { what, percent })
        };
        let mut cases: Vec<Case> = self.options.budgets.iter().flat_map(of_budget).collect();
        let beyond = Case {
            what: What::Beyond(self.work.depth_beyond),
            percent: 0,
        };
        cases.insert(cases.len().min(kinds.len()), beyond);
        cases
    }

    /// Seconds that a case will take, by the runs of its kind so far, or by a guess.
    fn estimate(&self, case: &Case) -> f64 {
        let (runs, guess) = match case.what {
            What::Prefill => (12.0, 7.0),
            What::Decode(depth) if depth <= 4096 => (8.0, 6.0),
            What::Decode(_) => (10.0, 12.0),
            What::Beyond(_) => (6.0, 30.0),
        };
        let guess = if self.options.smoke { 1.0 } else { guess };
        runs * self.typical(case.what).unwrap_or(guess)
    }

    /// Seconds that a run takes, by those of its kind so far.
    fn typical(&self, what: What) -> Option<f64> {
        let of_kind = self.seconds.iter().filter(|(of, _)| *of == what);
        let seconds: Vec<f64> = of_kind.map(|(_, seconds)| *seconds).collect();
        Some(median_and_mad(&seconds).0).filter(|seconds| seconds.is_finite())
    }

    fn planned(&self, case: &Case) -> Value {
        json!({
            "name": case.name(), "percent": case.percent, "state": "planned",
            "estimate_seconds": self.estimate(case), "ok": null,
        })
    }

    /// Runs a case, as far as there is time; what was measured of it stays when it fails.
    fn run(&mut self, runner: &Runner, case: &Case) -> Value {
        let mut record = self.planned(case);
        let left = runner.seconds_left();
        if left < SECONDS_LEFT_MIN {
            record["state"] = json!("no time was left");
            return record;
        }
        let estimate = self.estimate(case);
        eprintln!("  {}: about {estimate:.0} s of {left:.0} s", case.name());
        let began = Instant::now();
        let seconds = (PATIENCE * estimate).max(CASE_SECONDS_MIN);
        let within = runner.until(began + Duration::from_secs_f64(seconds));
        match self.measure(&within, case, &mut record) {
            Ok(ok) => {
                let is_done = record["error"].is_null();
                record["state"] = json!(if is_done { "done" } else { "failed" });
                record["ok"] = ok;
            }
            Err(error) => {
                record["state"] = json!("failed");
                record["error"] = json!(format!("{error:#}"));
                // Where all the time is over, it is no failure of what is measured; a case
                // that took more than its own hangs.
                let takes = self.typical(case.what).unwrap_or(0.0);
                if runner.seconds_left() > takes.max(SECONDS_LEFT_MIN) {
                    record["ok"] = json!(false);
                } else if record["ok"] == true {
                    record["ok"] = Value::Null;
                }
            }
        }
        record["seconds"] = json!(began.elapsed().as_secs_f64());
        record
    }

    /// Paged runs with each number of tokens at once, and what failed of them.
    pub fn ours(
        &mut self,
        runner: &Runner,
        case: &Case,
        record: &mut Value,
    ) -> Result<(Vec<Tried>, Vec<Failure>)> {
        let ubatches = match case.what {
            What::Prefill => &self.work.ubatches[..],
            What::Decode(_) | What::Beyond(_) => &self.work.ubatches[..1],
        };
        let budget = match case.percent {
            // Room for what is computed with, when all of the model is to stay.
            100.. => "400%".to_owned(),
            percent => {
                let percent = if percent == 0 { 100 } else { percent };
                let share = self.model.bytes * percent / 100;
                // What the budget has to cover beside the weights may be more than the share.
                let bytes = share.max(self.smallest(runner, case)?);
                record["budget_bytes"] = json!(bytes);
                format!("{bytes}b")
            }
        };
        let (mut all, mut failures) = (Vec::new(), Vec::new());
        for ubatch in ubatches {
            let flags = ["--vram-budgets", &budget, "-ub", &ubatch.to_string()].map(str::to_owned);
            match self.bench(runner, case.what, &flags) {
                Ok(measured) => all.push(Tried::new(case.what, flags.into(), measured)),
                Err(failure) => failures.push(failure),
            }
        }
        match failures.first() {
            Some(failure) if all.is_empty() => Err(anyhow::anyhow!(failure.sentence.clone())),
            _ => Ok((all, failures)),
        }
    }

    /// A run of `rpaged-cli bench`.
    ///
    /// # Errors
    /// When it was not begun, measured nothing, or ended in another way than it should.
    pub fn bench(
        &mut self,
        runner: &Runner,
        what: What,
        flags: &[String],
    ) -> Result<Measured, Failure> {
        let (left, takes) = (runner.seconds_left(), self.typical(what).unwrap_or(0.0));
        if left < takes.max(SECONDS_LEFT_MIN) {
            return Err(Failure {
                why: Why::Time,
                sentence: format!("{left:.0} s were left for what takes {takes:.0} s"),
            });
        }
        let path = self.model.path.to_string_lossy().into_owned();
        let fixed = ["bench", "-m", &path, "-r", "2", "-o", "jsonl", "-fa", "on"];
        let device = ["-dev", &self.options.device];
        let words = [&fixed[..], &device, self.options.threads()].concat();
        let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
        let words = [words, self.tests(what), flags.to_vec()].concat();
        let output = runner.run(&self.options.program, &words);
        let output = output.map_err(|error| Failure {
            why: Why::Other,
            sentence: format!("{}: {error:#}", flags.join(" ")),
        })?;
        let lines = output.stdout.lines();
        let rows: Vec<Row> = lines.clone().filter_map(row).collect();
        let notes: Vec<String> = lines.filter_map(note_of).collect();
        let (seconds, vram_bytes, code) = (output.seconds, output.vram_bytes, output.code);
        let said = format!("{} {}", output.stderr, notes.join(" / "));
        let ended = output.printed();
        let what_failed = match ended {
            Err(error) => format!("{error:#}, after {} of its tests", rows.len()),
            Ok(_) if rows.is_empty() => format!("nothing was measured: {}", notes.join(" / ")),
            Ok(_) => {
                self.seconds.push((what, seconds));
                return Ok(Measured {
                    rows,
                    notes,
                    vram_bytes,
                });
            }
        };
        let sentence = format!("{}: {what_failed}", flags.join(" "));
        Err(Failure::of_run(code, &said, sentence))
    }

    fn tests(&self, what: What) -> Vec<String> {
        let generated = self.work.generated.to_string();
        match what {
            What::Prefill => {
                let lengths = self.work.prompts.map(|length| length.to_string());
                vec![
                    "-p".to_owned(),
                    lengths.join(","),
                    "-n".to_owned(),
                    "0".to_owned(),
                ]
            }
            What::Decode(depth) | What::Beyond(depth) => {
                let folder = self.depths.to_string_lossy();
                [
                    "-p",
                    "0",
                    "-n",
                    &generated,
                    "-d",
                    &depth.to_string(),
                    "--depth-dir",
                    &folder,
                ]
                .map(str::to_owned)
                .into()
            }
        }
    }

    fn resident_flags(&self) -> Vec<String> {
        let ubatches = self.work.ubatches.map(|ubatch| ubatch.to_string());
        ["--vram-budgets", "400%", "-ub", &ubatches.join(",")]
            .map(str::to_owned)
            .into()
    }

    /// The smallest budget for the case with the smallest ubatch, in bytes.
    fn smallest(&self, runner: &Runner, case: &Case) -> Result<u64> {
        let tokens = match case.what {
            What::Prefill => self.work.prompts[1],
            What::Decode(depth) | What::Beyond(depth) => depth + self.work.generated,
        };
        let path = self.model.path.to_string_lossy();
        let tokens = tokens.next_multiple_of(256).to_string();
        let ubatch = self.work.ubatches[0].to_string();
        let flags = [
            "-m",
            &*path,
            "-c",
            &tokens,
            "-ub",
            &ubatch,
            "-fa",
            "on",
            "--paged-kv",
        ];
        smallest(self.options, runner, &flags)
    }
}

/// Why a test did not run, by a line of the bench.
fn note_of(line: &str) -> Option<String> {
    let json: Value = serde_json::from_str(line).ok()?;
    let note = json["note"].as_str().unwrap_or_default();
    json["median_ts"].is_null().then(|| note.to_owned())
}

/// This file's reading of what others write, on known lines.
pub fn check_arithmetic() {
    let line = json!({
        "n_prompt": 2048, "n_depth": 0, "n_ubatch": 512, "median_ts": 100.0, "note": "",
    });
    assert!(row(&line.to_string()).is_some_and(|row| row.ubatch == 512));
    let failed = json!({"n_prompt": 1, "n_depth": 0, "n_ubatch": 1, "median_ts": null});
    assert!(row(&failed.to_string()).is_none());
    assert!(note_of(&line.to_string()).is_none() && note_of(&failed.to_string()).is_some());
    let why = |code, text| Failure::of_run(code, text, String::new()).why;
    assert_eq!(why(None, "cudaMalloc failed: Out of memory"), Why::Memory);
    assert_eq!(
        why(None, "an illegal memory access was encountered"),
        Why::Other
    );
    assert_eq!(
        (why(Some(4), ""), why(Some(1), "")),
        (Why::Memory, Why::Other)
    );
    let pinned =
        json!({"link": {"pinned_bytes_per_second": 5.0, "pageable_bytes_per_second": 3.0}});
    assert_eq!(link_rate(&pinned), Some(5.0));
    let pageable =
        json!({"link": {"pinned_bytes_per_second": null, "pageable_bytes_per_second": 3.0}});
    assert_eq!(link_rate(&pageable), Some(3.0));
    assert_eq!(
        link_rate(&json!({"storage_bytes_per_second": 2.0})),
        Some(2.0)
    );
}
