//! Whole runs of the demo model with memory that gets scarce on cue: the same tokens come
//! out, and the counters are the device's.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::sync::{Arc, Mutex};

use async_device::{AsyncDevice, Options};
use serde_json::Value;

use super::boundary::{Boundary, Paging};
use super::cold::Shares;
use super::{completion, loading};
use crate::calibration;
use crate::cli::{self, Command};
use crate::device::{Cold, PagedDevice, Report};
use crate::forecast::tests::by_hand;
use crate::ggml::InnerDevice;
use crate::llama;
use crate::telemetry::memory::Level;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::pressure::Source;

/// Keeps what is written.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Says that so much of a hundred is in use, token by token; the last number stays.
struct Series(Vec<u64>);

impl Source for Series {
    fn sample(&mut self) -> Option<Level> {
        let used = if self.0.len() > 1 {
            self.0.remove(0)
        } else {
            self.0[0]
        };
        // So large that steps of the budget do not move it: others make the pressure.
        Some(Level {
            used_bytes: used << 30,
            total_bytes: 100 << 30,
        })
    }
}

/// What a run gave.
struct Run {
    records: Vec<Value>,
    report: Option<Report>,
}

impl Run {
    fn of(&self, kind: &str) -> Vec<&Value> {
        let records = self.records.iter();
        records.filter(|record| record["type"] == kind).collect()
    }

    fn tokens(&self) -> Vec<i64> {
        let tokens = self.of("token").into_iter();
        tokens
            .map(|record| record["token"].as_i64().unwrap())
            .collect()
    }

    /// The sum of a field over all tokens.
    fn sum(&self, field: &str) -> f64 {
        let tokens = self.of("token").into_iter();
        tokens.map(|record| record[field].as_f64().unwrap()).sum()
    }

    fn summary(&self) -> &Value {
        let last = self.records.last().unwrap();
        assert_eq!(last["type"], "summary");
        last
    }
}

/// Completes by the demo model with the flags of `line`, under the pressure of `series`.
fn run(line: &str, series: &[u64]) -> Run {
    run_on(None, line, series)
}

/// The same on a device, where there is one: with rates of a link and of a processor, in
/// bytes per second, by which cold weights are shared.
fn run_on(device: Option<(&AsyncDevice, f64, f64)>, line: &str, series: &[u64]) -> Run {
    // Standard output is the test runner's: nothing is shown.
    let line = format!("--demo -no-cnv -p Once -t 1 -s 5 -c 256 -ub 16 --log-disable {line}");
    llama::log::start();
    let metrics: &'static Metrics = Box::leak(Box::new(Metrics::new()));
    let kept = Kept::default();
    metrics.add_stderr(Box::new(kept.clone()));
    let words = line.split_whitespace().map(OsString::from);
    let command = cli::parse(words, llama::options().unwrap()).unwrap();
    let Command::Run(request) = command else {
        panic!("nothing to print is asked for");
    };
    let mut config = request.resolve(metrics).unwrap();
    let shares = device.map(|(device, link, processor)| {
        let paging = config.paging.as_mut().unwrap();
        paging.inner = InnerDevice::of_test(device.raw());
        paging.cold = Cold::Auto;
        let machine = calibration::Run::new(paging, &config.settings).machine(false);
        Shares::by(Some(by_hand(machine, link, processor)), paging).unwrap()
    });
    let paging = config.paging.as_ref().map(|_| Paging {
        budget_file: None,
        mem_pressure: config.mem_pressure,
        source: Box::new(Series(series.to_vec())),
        governor: None,
    });
    let mut boundary = Boundary::new(paging, metrics);
    boundary.choose_shares(shares);
    let (mut session, job, _demo) = loading::load(config).unwrap();
    boundary.begin(session.device(), job.prompt_tokens());
    completion::complete(&mut session, job, &mut boundary).unwrap();
    boundary.finish(session.device());
    let report = session.device().map(PagedDevice::report);
    drop(session);
    metrics.end(None);
    let bytes = kept.0.lock().unwrap().clone();
    let text = String::from_utf8(bytes).unwrap();
    let records = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    Run { records, report }
}

const PAGED: &str = "-n 40 --dynamic-layers --paged-kv --vram-budget 90%";

#[test]
fn pressure_shrinks_the_plan_calm_grows_it_and_the_tokens_are_the_same() {
    let calm = run(PAGED, &[10]);
    assert_eq!(calm.of("pressure").len(), 0);
    // Scarce for five tokens, then free: the budget comes back in steps.
    let mut series = vec![10, 10, 10];
    series.extend([99; 5]);
    series.push(10);
    let line = PAGED.replace("-n 40", "-n 200 --ignore-eos");
    let pressed = run(&line, &series);
    assert_eq!(pressed.tokens()[..20], calm.tokens()[..20]);
    let unpressed = run(&line, &[10]);
    assert_eq!(pressed.tokens(), unpressed.tokens());

    let decisions = pressed.of("pressure");
    let actions: Vec<_> = decisions
        .iter()
        .map(|decision| decision["action"].as_str().unwrap())
        .collect();
    assert_eq!(actions[..2], ["shrink", "exhausted"], "{actions:?}");
    assert!(actions[2..].iter().all(|action| *action == "grow"));
    assert!(actions.len() > 2, "{actions:?}");
    assert_eq!(decisions[0]["budget_before_bytes"], first_budget(&pressed));
    let least = &decisions[0]["budget_after_bytes"];
    assert_eq!(least, &decisions[0]["minimum_bytes"]);
    let last = decisions.last().unwrap();
    assert_eq!(last["budget_after_bytes"], first_budget(&pressed));
    assert_eq!(
        pressed.report.unwrap().budget_bytes,
        last["budget_after_bytes"].as_u64().unwrap()
    );
    let reasons: Vec<_> = pressed.of("plan");
    let reasons: Vec<_> = reasons
        .iter()
        .map(|plan| plan["reason"].as_str().unwrap())
        .collect();
    let count = |reason: &str| reasons.iter().filter(|found| **found == reason).count();
    assert_eq!(count("pressure"), 1, "{reasons:?}");
    assert_eq!(count("calm"), actions.len() - 2, "{reasons:?}");
    assert_eq!(pressed.summary()["pressure_decisions"], actions.len());
}

/// The budget with which the generation began.
fn first_budget(run: &Run) -> Value {
    let plans = run.of("plan");
    let start = plans.iter().find(|plan| plan["reason"] == "start");
    start.unwrap()["budget_bytes"].clone()
}

#[test]
fn the_smallest_plan_goes_on_when_even_that_is_too_much() {
    let free = run(PAGED, &[10]);
    let scarce = run(PAGED, &[100]);
    assert_eq!(scarce.tokens(), free.tokens());
    let decisions = scarce.of("pressure");
    assert_eq!(decisions[0]["action"], "shrink");
    assert_eq!(decisions[1]["action"], "exhausted");
    assert_eq!(
        decisions[0]["budget_after_bytes"],
        decisions[0]["minimum_bytes"]
    );
    assert!(scarce.report.unwrap().budget_bytes < free.report.unwrap().budget_bytes);
    assert_eq!(scarce.summary()["exit_code"], 0);
}

#[test]
fn counters_are_those_of_the_device() {
    let line = "-n 30 --dynamic-layers --paged-kv --vram-budget 60% --no-async-prefetch";
    let run = run(line, &[10]);
    let report = run.report.unwrap();
    let (traffic, stalls) = (report.traffic, report.stalls);
    let summary = run.summary();
    #[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
    let expected: BTreeMap<&str, f64> = [
        ("bytes_storage", traffic.storage_bytes as f64),
        ("bytes_link", traffic.link_bytes as f64),
        ("bytes_write_back", traffic.write_back_bytes as f64),
        ("stall_storage_ms", stalls.storage_seconds * 1e3),
        ("stall_link_ms", stalls.link_seconds * 1e3),
        ("stall_write_back_ms", stalls.write_back_seconds * 1e3),
        ("compute_ms", report.compute_seconds * 1e3),
        ("host_bytes", report.host_bytes as f64),
        ("host_ms", report.host_seconds * 1e3),
    ]
    .into();
    for (field, expected) in expected {
        // Times are rounded to the microsecond in each record.
        let slack = if field.contains("bytes") { 0.0 } else { 0.02 };
        let sum = run.sum(field);
        assert!(
            (sum - expected).abs() <= slack,
            "{field}: {sum}, {expected}"
        );
        let total = summary[field].as_f64().unwrap();
        assert!((total - expected).abs() <= slack, "{field}: {total}");
    }
    let tokens = run.of("token");
    let last = tokens.last().unwrap();
    assert_eq!(last["layers_evicted"], report.layers_evicted);
    assert_eq!(last["layers_loaded"], report.layers_loaded);
    assert_eq!(last["kv_pages_gpu"], report.kv_pages.resident);
    assert_eq!(last["kv_pages_cpu"], report.kv_pages.stored);
    assert_eq!(last["kv_pages_evicted"], report.kv_pages.evicted);
    assert_eq!(last["kv_pages_prefetched"], report.kv_pages.prefetched);
    assert_eq!(last["prefetch_completed"], report.prefetches.completed);
    assert_eq!(last["prefetch_failed"], report.prefetches.failed);
    assert_eq!(last["resident_bytes"], report.resident_bytes);
    assert_eq!(last["streamed_bytes"], report.streamed_bytes);
    assert_eq!(last["gpu_layers_active"], report.resident_layers);
    assert_eq!(summary["graphs"], report.graphs);
    assert_eq!(tokens.len(), 30);
    assert!(traffic.storage_bytes + traffic.link_bytes > 0);
}

#[test]
fn without_paging_there_are_tokens_and_a_summary() {
    let run = run("-n 10 --no-repack", &[99]);
    assert_eq!(run.of("token").len(), 10);
    assert_eq!(run.records.len(), 11);
    assert!(run.report.is_none());
    assert!(run.sum("ram_used_mb") > 10.0);
    assert!(run.sum("cpu_memory_pressure") > 0.0);
    assert_eq!(run.sum("vram_total_mb"), 0.0);
    assert_eq!(run.summary()["bytes_storage"], 0);
    assert!(run.summary()["link_memory"].is_null());
    assert!(run.summary()["link_bytes_per_second"].is_null());
}

const COLD: &str = "-n 150 --ignore-eos --dynamic-layers --paged-kv --vram-budget 1200K";

#[test]
fn a_run_that_is_slower_than_foretold_is_revised_once_and_writes_the_same() {
    let expected = run(COLD, &[10]).tokens();
    let device = AsyncDevice::new(Options::default()).unwrap();
    // No machine is as fast as that.
    let revised = run_on(Some((&device, 1e13, 1e13)), COLD, &[10]);
    assert_eq!(revised.tokens(), expected);
    let events = revised.of("share");
    let word = |index: usize| events[index]["event"].as_str().unwrap();
    let share = |index: usize| events[index]["share_after"].as_f64().unwrap();
    assert_eq!((word(0), word(1)), ("chosen", "revised"));
    let cause = events[1]["cause"].as_str().unwrap();
    assert!(["processor", "link", "device"].contains(&cause), "{cause}");
    let (observed, foretold) = (
        events[1]["seconds_per_token_observed"].as_f64().unwrap(),
        events[0]["seconds_per_token_predicted"].as_f64().unwrap(),
    );
    assert!(observed > foretold * 1.25, "{observed} {foretold}");
    if share(1) < 1.0 {
        assert_eq!((word(2), share(2)), ("tried", 1.0));
        match word(3) {
            "kept" => assert_eq!(share(3), share(1)),
            other => assert_eq!((other, share(3)), ("given_up", 1.0)),
        }
        assert_eq!(events.len(), 4, "{events:?}");
    } else {
        assert_eq!(events.len(), 2, "{events:?}");
    }
    // The device does what was decided last, in twelve layers and the output.
    let last = share(events.len() - 1);
    let layers = revised.report.unwrap().host_layers;
    let expected = match last {
        0.0 => 0..=0,
        1.0 => 12..=13,
        _ => 1..=13,
    };
    assert!(expected.contains(&layers), "{layers} {last}");
    assert!(revised.summary()["link_memory"].is_string());
    assert!(revised.summary()["link_bytes_per_second"].as_f64().unwrap() > 0.0);
    assert_eq!(device.take_complaints(), Vec::<String>::new());
}

#[test]
fn a_run_as_fast_as_foretold_keeps_its_share() {
    let device = AsyncDevice::new(Options::default()).unwrap();
    for (link, processor) in [(1e3, 1.0), (1.0, 1e3), (1e3, 1e3)] {
        let run = run_on(
            Some((&device, link, processor)),
            "-n 50 --dynamic-layers --paged-kv \
            --vram-budget 1200K",
            &[10],
        );
        let events = run.of("share");
        // Nothing but choices: at the start, and when the plan has changed with the context.
        assert!(
            events.iter().all(|event| event["event"] == "chosen"),
            "{events:?}"
        );
        assert!((1..4).contains(&events.len()), "{events:?}");
        let share = events[0]["share_after"].as_f64().unwrap();
        let report = run.report.unwrap();
        // The device does as it was told.
        assert_eq!(report.host_bytes > 0, share > 0.05, "{share}");
        assert_eq!(share < 0.05, processor < link, "{share}");
    }
}

#[test]
fn other_runs_have_no_share() {
    assert!(run(PAGED, &[10]).of("share").is_empty());
    let all = AsyncDevice::new(Options::default()).unwrap();
    let line = "-n 10 --dynamic-layers --paged-kv --vram-budget 100M";
    let nothing_cold = run_on(Some((&all, 1e9, 1e9)), line, &[10]);
    assert!(nothing_cold.of("share").is_empty());
}
