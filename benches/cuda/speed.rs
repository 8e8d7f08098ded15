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

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::bars::{self, Test, all_met, bar, prefill_seconds};
use super::checks::smallest;
use super::model::{Made, make};
use super::options::Options;
use super::rig::measure::median_and_mad;
use super::run::Runner;
use super::work::{Case, FULL, Measured, ROUNDS, Row, SMOKE, Tried, What, Work, row};

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
        Err(error) => note(&mut result, "prefill with everything resident", &error),
    }
    result["resident"] = rig.resident.iter().map(|row| row.json.clone()).collect();
    for (index, case) in cases.iter().enumerate() {
        result["cases"][index] = rig.run(runner, case);
        save(&result);
    }
    let states = result["cases"].as_array().into_iter().flatten();
    let bad = states.clone().filter(|case| case["ok"] == false).count();
    let done = states.filter(|case| case["state"] == "done").count();
    result["cases_done"] = json!(done);
    result["cases_planned"] = json!(cases.len());
    result["ok"] = json!(bad == 0 && done > 0);
    result["missed"] = json!(missed(&result));
    // Large, and made again in a minute.
    drop(fs::remove_dir_all(&rig.depths));
    Ok(result)
}

/// The bars that were missed, each in a line.
fn missed(result: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for case in result["cases"].as_array().into_iter().flatten() {
        for test in case["tests"].as_array().into_iter().flatten() {
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
            What::Prefill => (8.0, 7.0),
            What::Decode(depth) if depth <= 4096 => (6.0, 6.0),
            What::Decode(_) => (6.0, 12.0),
            What::Beyond(_) => (4.0, 30.0),
        };
        let of_kind = self.seconds.iter().filter(|(what, _)| *what == case.what);
        let seconds: Vec<f64> = of_kind.map(|(_, seconds)| *seconds).collect();
        match seconds.is_empty() {
            true if self.options.smoke => runs,
            true => runs * guess,
            false => runs * median_and_mad(&seconds).0,
        }
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
            Ok(()) => record["state"] = json!("done"),
            Err(error) => {
                record["state"] = json!("failed");
                record["error"] = json!(format!("{error:#}"));
                // Without time it is no failure of what is measured.
                record["ok"] = if within.seconds_left() > 1.0 {
                    json!(false)
                } else {
                    Value::Null
                };
            }
        }
        record["seconds"] = json!(began.elapsed().as_secs_f64());
        record
    }

    fn measure(&mut self, runner: &Runner, case: &Case, record: &mut Value) -> Result<()> {
        let mut ours = self.ours(runner, case, record)?;
        record["ours"] = ours.iter().map(Tried::json).collect();
        let limit = ours.iter().filter_map(Tried::vram_bytes).max();
        record["vram_limit_bytes"] = json!(limit);
        let stock = self.best_of_stock(runner, case, limit, record);
        let fitting = stock.iter().map(|index| self.stock[*index].json());
        record["stock"] = fitting.collect();
        ensure!(
            !stock.is_empty(),
            "no placement of stock takes so little memory"
        );
        // For each test the fastest of both; they run once more, in turn.
        let rows: Vec<Row> = ours
            .first()
            .map_or_else(Vec::new, |tried| tried.runs[0].rows.clone());
        let mut pairs = Vec::new();
        for row in &rows {
            let speed = |tried: &Tried| median_and_mad(&tried.speeds(row)).0;
            let of_ours =
                (0..ours.len()).max_by(|a, b| speed(&ours[*a]).total_cmp(&speed(&ours[*b])));
            let of_stock = stock
                .iter()
                .copied()
                .max_by(|a, b| speed(&self.stock[*a]).total_cmp(&speed(&self.stock[*b])));
            pairs.extend(of_ours.zip(of_stock));
        }
        for _ in 1..ROUNDS {
            let (mut of_ours, mut of_stock): (Vec<_>, Vec<_>) = pairs.iter().copied().unzip();
            of_ours.dedup();
            of_stock.dedup();
            for turn in 0..of_ours.len().max(of_stock.len()) {
                if let Some(index) = of_ours.get(turn) {
                    let again = self.bench(runner, case.what, &ours[*index].flags)?;
                    ours[*index].runs.push(again);
                }
                if let Some(index) = of_stock.get(turn) {
                    let again = self.bench(runner, case.what, &self.stock[*index].flags.clone())?;
                    self.stock[*index].runs.push(again);
                }
            }
        }
        let tests = rows.iter().zip(pairs);
        let tests = tests.map(|(row, (a, b))| self.compare(case, row, &ours[a], &self.stock[b]));
        let tests: Vec<Value> = tests.collect();
        let bars: Vec<Value> = tests
            .iter()
            .flat_map(|test| test["bars"].as_array().cloned().unwrap_or_default())
            .collect();
        record["ok"] = all_met(&bars);
        record["tests"] = json!(tests);
        Ok(())
    }

    /// Paged runs with each number of tokens at once.
    fn ours(&mut self, runner: &Runner, case: &Case, record: &mut Value) -> Result<Vec<Tried>> {
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
        let (mut all, mut failure) = (Vec::new(), None);
        for ubatch in ubatches {
            let flags = ["--vram-budgets", &budget, "-ub", &ubatch.to_string()].map(str::to_owned);
            match self.bench(runner, case.what, &flags) {
                Ok(measured) => all.push(Tried {
                    what: case.what,
                    placement: None,
                    flags: flags.into(),
                    runs: vec![measured],
                }),
                Err(error) => failure = Some(error),
            }
        }
        match (all.is_empty(), failure) {
            (true, Some(error)) => Err(error),
            (_, failure) => {
                record["failed_of_ours"] = json!(failure.map(|error| format!("{error:#}")));
                Ok(all)
            }
        }
    }

    /// A run of `rpaged-cli bench`.
    pub fn bench(&mut self, runner: &Runner, what: What, flags: &[String]) -> Result<Measured> {
        let path = self.model.path.to_string_lossy().into_owned();
        let fixed = ["bench", "-m", &path, "-r", "2", "-o", "jsonl", "-fa", "on"];
        let device = ["-dev", &self.options.device];
        let words = [&fixed[..], &device, self.options.threads()].concat();
        let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
        let words = [words, self.tests(what), flags.to_vec()].concat();
        let output = runner.run(&self.options.program, &words)?;
        self.seconds.push((what, output.seconds));
        let vram_bytes = output.vram_bytes;
        let lines = output.stdout.lines();
        let rows: Vec<Row> = lines.clone().filter_map(row).collect();
        if rows.is_empty() {
            let said: Vec<Value> = lines
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect();
            let why = said
                .first()
                .and_then(|row| row["note"].as_str().map(str::to_owned));
            output.printed()?;
            anyhow::bail!("nothing was measured: {}", why.unwrap_or_default());
        }
        Ok(Measured { rows, vram_bytes })
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

    /// A test of ours beside stock's: speeds, ratio, and whether it is above its bars.
    fn compare(&self, case: &Case, row: &Row, ours: &Tried, stock: &Tried) -> Value {
        let (a, b) = (ours.speeds(row), stock.speeds(row));
        let ratios: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a / b).collect();
        let (ratio, spread) = median_and_mad(&ratios);
        let rows = ours.runs.last().into_iter().flat_map(|run| &run.rows);
        let mut rows = rows.filter(|other| (other.prompt, other.depth) == (row.prompt, row.depth));
        let row = rows.next_back().unwrap_or(row);
        let bound = self.bound(row);
        let of_bound = bound.map(|bound| median_and_mad(&a).0 / bound);
        let number = |name: &str| row.json[name].as_f64().unwrap_or(0.0);
        let test = Test {
            percent: case.percent,
            is_prefill: row.prompt > 0,
            ratio: Some(ratio),
            of_bound,
            link_bytes: number("bytes_per_token"),
            processor_bytes: number("host_bytes_per_token"),
        };
        let bars = match case.what {
            What::Beyond(_) => vec![bar("5x of -nkvo", 5.0, Some(ratio))],
            What::Prefill | What::Decode(_) => test.bars(),
        };
        let finite = |value: f64| value.is_finite().then_some(value);
        json!({
            "n_prompt": row.prompt, "n_depth": row.depth, "ours_ts": a, "stock_ts": b,
            "ratio": finite(ratio), "ratio_mad": finite(spread), "bound_ts": bound,
            "share_of_bound": of_bound, "shares_the_work": test.is_shared(), "bars": bars,
            "ok": all_met(&bars), "ours_flags": ours.flags.join(" "),
            "stock_flags": stock.flags.join(" "), "ours_vram_bytes": ours.vram_bytes(),
            "stock_vram_bytes": stock.vram_bytes(), "ours": row.json,
        })
    }

    /// What a prefill could be: tokens per second with link or computation busy all the time.
    fn bound(&self, row: &Row) -> Option<f64> {
        let streamed = row.json["streamed_bytes"].as_f64()?;
        let mut known = self.resident.iter();
        let resident = known.find(|known| {
            (known.prompt, known.ubatch) == (row.prompt, row.ubatch) && row.prompt > 0
        })?;
        let speed = resident.tokens_per_second;
        let seconds = prefill_seconds(row.prompt, row.ubatch, streamed, self.link?, speed);
        Some(f64::from(u32::try_from(row.prompt).ok()?) / seconds)
    }
}

/// This file's reading of what others write, on known lines.
pub fn check_arithmetic() {
    bars::check_arithmetic();
    let line = json!({
        "n_prompt": 2048, "n_depth": 0, "n_ubatch": 512, "median_ts": 100.0, "note": "",
    });
    assert!(row(&line.to_string()).is_some_and(|row| row.ubatch == 512));
    let failed = json!({"n_prompt": 1, "n_depth": 0, "n_ubatch": 1, "median_ts": null});
    assert!(row(&failed.to_string()).is_none());
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
