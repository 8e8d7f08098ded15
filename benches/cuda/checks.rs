//! The parts that measure nothing: the same bits as stock, no wrong access, and CUDA graphs
//! that stay valid.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::options::Options;
use super::run::{Runner, find};
use super::trial;

/// A text whose tokens the demo's model knows.
const PROMPT: &str = "Once upon a time, there was a";
/// Tokens at once: so small a model is smaller than the scratch of more.
const UBATCH: &str = "16";
/// What ggml-cuda logs, whatever it was built with.
const WARM: &str = "CUDA graph warmup complete";
const RESET: &str = "CUDA graph warmup reset";
const REUSED: &str = "CUDA Graph id";

/// Logits by the tests, texts by the program.
pub fn identity(options: &Options, runner: &Runner) -> Result<Value> {
    let texts = texts(options, runner);
    let tests = tests(options, runner);
    let flat = |result: Result<Value>| {
        result.unwrap_or_else(|error| json!({"ok": false, "error": format!("{error:#}")}))
    };
    let (texts, tests) = (flat(texts), flat(tests));
    let ok = texts["ok"] == true && tests["ok"] == true;
    Ok(json!({"ok": ok, "texts": texts, "logits": tests}))
}

/// Whether texts under several budgets are stock's, with the GPU computing all: the processor
/// may round differently.
fn texts(options: &Options, runner: &Runner) -> Result<Value> {
    let stock = demo(options, runner, &["-n", "96"])?.stdout;
    ensure!(!stock.trim().is_empty(), "stock wrote nothing");
    let mut different = Vec::new();
    let mut runs = 0;
    for budget in &budgets(options, runner)? {
        for more in [
            &["--dynamic-layers"][..],
            &["--dynamic-layers", "--paged-kv"],
        ] {
            let fixed = ["-n", "96", "--vram-budget", budget, "--cold", "stream"];
            let words = [&fixed[..], more].concat();
            let found = demo(options, runner, &words)?.stdout;
            runs += 1;
            if found != stock {
                different.push(json!({"flags": words.join(" "), "text": found}));
            }
        }
    }
    Ok(json!({"ok": different.is_empty(), "runs": runs, "stock": stock, "different": different}))
}

/// The demo's model, greedy.
fn demo(options: &Options, runner: &Runner, more: &[&str]) -> Result<super::run::Output> {
    let words = [
        &["--demo", "-no-cnv", "--no-repack", "--temp", "0", "-s", "1"][..],
        &["--ignore-eos", "-c", "512", "-fa", "on", "-p", PROMPT],
        &["-ub", UBATCH, "-t", "1", "--device", &options.device],
        more,
    ];
    let output = runner.run(&options.program, &words.concat())?;
    output.printed().context("rpaged-cli --demo")
}

/// The smallest budget for the demo's model with all of its KV cache, one in between, and one
/// for everything.
fn budgets(options: &Options, runner: &Runner) -> Result<[String; 3]> {
    let words = ["--demo", "-c", "512", "-fa", "on", "-ub", UBATCH];
    let least = smallest(options, runner, &words)?;
    let all = 8 << 20;
    Ok([least, least + (1 << 20), least + all].map(|bytes| format!("{bytes}b")))
}

/// The smallest budget that runs with these flags, in bytes.
pub fn smallest(options: &Options, runner: &Runner, flags: &[&str]) -> Result<u64> {
    let fixed = ["plan", "--smallest", "--json", "--dynamic-layers"];
    let device = ["--device", options.device.as_str()];
    let words = [&fixed[..], &device, flags].concat();
    let text = runner.run(&options.program, &words)?.printed()?.stdout;
    let answer: Value = serde_json::from_str(&text)?;
    answer["budget_bytes"]
        .as_u64()
        .context("a plan without a budget")
}

/// The integration tests that have a GPU compute.
fn tests(options: &Options, runner: &Runner) -> Result<Value> {
    let program = options.tests.as_ref().context(
        "the tests' program was not named; build it with cargo test --release --features cuda \
         --test main --no-run, and add --tests PATH",
    )?;
    // Without a GPU, a few that compute on the processor: whether this part runs.
    let filter: &[&str] = match options.device.as_str() {
        "none" | trial::DEVICE => &["equivalence::captured"],
        _ => &["gpu::"],
    };
    let words = [filter, &["--test-threads=1"]].concat();
    let variables = [("RPAGED_TEST_DEVICE", options.device.as_str())];
    let output = runner.run_with(program, &words, &variables)?;
    let lines = output.stdout.lines();
    let failed = lines
        .clone()
        .filter(|line| line.ends_with("... FAILED"))
        .map(|line| line.trim_start_matches("test ").to_owned());
    let failed: Vec<String> = failed.collect();
    let summary = lines
        .rev()
        .find(|line| line.starts_with("test result:"))
        .context("the tests said no result")?;
    let passed = summary.split_once("ok. ").map(|(_, rest)| rest);
    let passed = passed.and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    let skipped = output.stderr.matches("skipped: ").count();
    Ok(json!({
        "ok": output.code == Some(0) && passed.unwrap_or(0) > 0 && skipped == 0,
        "filter": filter, "passed": passed, "failed": failed, "skipped": skipped,
        "seconds": output.seconds,
        "panics": panics(&output.stdout),
    }))
}

/// What the tests that failed said first, a line each.
fn panics(stdout: &str) -> Vec<&str> {
    let lines: Vec<&str> = stdout.lines().collect();
    let after = lines.windows(2);
    let said = after
        .filter(|two| two[0].contains(" panicked at "))
        .map(|two| two[1]);
    said.take(20).collect()
}

/// A short run under NVIDIA's checker of memory accesses.
pub fn sanitizer(options: &Options, runner: &Runner) -> Result<Value> {
    let Some(checker) = find("compute-sanitizer") else {
        return Ok(json!({
            "ok": null,
            "note": "compute-sanitizer is not on the path: it is part of the CUDA toolkit",
        }));
    };
    let program = options.program.to_string_lossy().into_owned();
    let [_, budget, _] = budgets(options, runner)?;
    let words = [
        &["--tool", "memcheck", "--error-exitcode", "9", &program][..],
        &["--demo", "-no-cnv", "-p", PROMPT, "-n", "4", "-c", "256"],
        &[
            "--device",
            &options.device,
            "--dynamic-layers",
            "--paged-kv",
        ],
        &["-ub", UBATCH, "--vram-budget", &budget, "--cold", "cpu"],
    ];
    let output = runner.run(&checker, &words.concat())?;
    let errors = [&output.stdout, &output.stderr].map(|text| text.lines());
    let summary = errors.into_iter().flatten();
    let summary = summary.filter(|line| line.contains("ERROR SUMMARY"));
    let summary: Vec<&str> = summary.collect();
    Ok(json!({"ok": output.code == Some(0), "exit_code": output.code, "summary": summary}))
}

/// Counts what ggml-cuda says of its graphs in a shorter and a longer run: the tokens between
/// the two must capture nothing anew.
pub fn graphs(options: &Options, runner: &Runner) -> Result<Value> {
    let mut ok = true;
    let mut of_budgets = Vec::new();
    for budget in &self::budgets(options, runner)? {
        let short = counts(options, runner, "24", budget)?;
        let long = counts(options, runner, "88", budget)?;
        let valid = long.warm > 0 && long.warm == short.warm && long.reset == short.reset;
        ok &= valid;
        of_budgets.push(json!({
            "vram_budget": budget, "ok": valid,
            "at_24_tokens": short.json(), "at_88_tokens": long.json(),
        }));
    }
    // The processor has no such graphs.
    let is_gpu = options.device != "none" && !options.trial;
    let ok = is_gpu.then_some(ok);
    Ok(json!({"ok": ok, "budgets": of_budgets}))
}

struct Counts {
    warm: usize,
    reset: usize,
    reused: usize,
}

impl Counts {
    fn json(&self) -> Value {
        json!({
            "warmup_complete": self.warm, "warmup_reset": self.reset, "id_reused": self.reused,
        })
    }
}

fn counts(options: &Options, runner: &Runner, tokens: &str, budget: &str) -> Result<Counts> {
    let words = [
        "-n",
        tokens,
        "-lv",
        "5",
        "--dynamic-layers",
        "--vram-budget",
        budget,
        "--cold",
        "stream",
    ];
    let log = demo(options, runner, &words)?.stderr;
    let count = |what: &str| log.lines().filter(|line| line.contains(what)).count();
    Ok(Counts {
        warm: count(WARM),
        reset: count(RESET),
        reused: count(REUSED),
    })
}
