//! The bytes that travel are those of the plan, to the byte.

use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use rpaged::device::{Budget, PagedDevice, PagingConfig, Report};

use crate::equivalence::{AMPLE_BYTES, Paging, budgets, config};
use crate::harness::{
    Cache, Entry, Flash, LlamaContext, LlamaModel, Placement, RunSpec, Step, run_steps,
};
use crate::models::{Model, prompt};

/// The report once nothing has arrived for `quiet_ms`: what is fetched ahead is counted
/// when it arrives, and nobody but the clock says that nothing more will.
fn settled(device: &PagedDevice, quiet_ms: u64) -> Report {
    let mut report = device.report();
    let mut since = Instant::now();
    while since.elapsed() < Duration::from_millis(quiet_ms) {
        sleep(Duration::from_millis(1));
        let now = device.report();
        if (now.bytes_in(), now.bytes_out()) != (report.bytes_in(), report.bytes_out()) {
            since = Instant::now();
        }
        report = now;
    }
    report
}

/// Checks all models at once: most of the time is spent waiting for quiet.
fn for_each_model(check: impl Fn(Model) + Sync) {
    thread::scope(|scope| {
        for model in Model::ALL {
            let check = &check;
            scope.spawn(move || check(model));
        }
    });
}

/// Checks the bytes (in, out) that each of some tokens after a prompt moves. A copy thread
/// that sleeps longer than the quiet shifts bytes from one token to the next: what is
/// wrong is measured again with more patience, and what stays wrong is wrong.
fn assert_moves(
    config: &PagingConfig,
    spec: &RunSpec,
    prompt_tokens: usize,
    expected: impl Fn(&Report) -> (u64, u64),
) {
    let mut last = None;
    for quiet_ms in [10, 100, 1000] {
        let tokens = bytes_by_token(config, spec, prompt_tokens, quiet_ms);
        let wrong = |(report, moved): &&(Report, (u64, u64))| *moved != expected(report);
        last = tokens.iter().find(wrong).copied();
        if last.is_none() {
            return;
        }
    }
    let (report, moved) = last.unwrap();
    panic!(
        "a token moved {moved:?} bytes in and out, not {:?}, of {:?} under {config:?}: {report:?}",
        expected(&report),
        spec.model
    );
}

/// The bytes that some tokens after `prompt_tokens` and two more move, each with the report
/// after it.
fn bytes_by_token(
    config: &PagingConfig,
    spec: &RunSpec,
    prompt_tokens: usize,
    quiet_ms: u64,
) -> Vec<(Report, (u64, u64))> {
    let device = PagedDevice::new(config.clone()).unwrap();
    let model = LlamaModel::load(&spec.model.file().path, Placement::Paged(&device)).unwrap();
    let mut context = LlamaContext::new(&model, spec).unwrap();
    let start = i32::try_from(prompt_tokens).unwrap();
    let warm = [
        Step::feed(0, 0, &prompt(1, prompt_tokens)),
        Step::generate(0, start, 2),
    ];
    run_steps(&mut context, &warm).unwrap();
    let mut before = settled(&device, quiet_ms);
    let mut moved = Vec::new();
    for position in start + 2..start + 5 {
        let entry = Entry {
            token: 17,
            position,
            sequence: 0,
        };
        context.decode(&[entry]).unwrap();
        let now = settled(&device, quiet_ms);
        assert_eq!(now.graphs, before.graphs + 1);
        let bytes_in = now.bytes_in() - before.bytes_in();
        moved.push((now, (bytes_in, now.bytes_out() - before.bytes_out())));
        before = now;
    }
    moved
}

#[test]
fn each_token_moves_exactly_the_streamed_weights() {
    for_each_model(|model| {
        let spec = RunSpec::new(model, 5, 0);
        let (minimum, everything) = budgets(&spec, Paging::Weights);
        for quarter in 0..4 {
            for prefetch in [true, false] {
                let budget = Budget::Bytes(minimum + (everything - minimum) * quarter / 4);
                let config = PagingConfig {
                    prefetch,
                    ..config(model, Paging::Weights, budget)
                };
                // What has a place in the ring to itself does not travel; of experts, what
                // the token names and is absent.
                assert_moves(&config, &spec, 5, |report| {
                    if model == Model::Experts {
                        return (report.pass_bytes, 0);
                    }
                    assert!(report.pass_bytes <= report.streamed_bytes, "{report:?}");
                    let least = report.streamed_bytes.saturating_sub(report.ring_bytes);
                    assert!(report.pass_bytes >= least, "{report:?}");
                    (report.pass_bytes, 0)
                });
            }
        }
    });
}

#[test]
fn whole_model_streamed_when_no_layer_may_stay() {
    for_each_model(|model| {
        let spec = RunSpec::new(model, 5, 0);
        for prefetch in [true, false] {
            let ample = config(model, Paging::Weights, Budget::Bytes(AMPLE_BYTES));
            let nothing_stays = PagingConfig {
                resident_layers_max: Some(0),
                prefetch,
                ..ample
            };
            assert_moves(&nothing_stays, &spec, 5, |report| {
                assert_eq!(report.resident_layers, 0, "{model:?}: {report:?}");
                // Norms and biases stay: each is far smaller than its layer. So does a tensor's
                // worth of experts.
                let small = report.resident_bytes * 30 < report.streamed_bytes;
                let small = small || model == Model::Experts;
                assert!(small, "{model:?}: {report:?}");
                (report.pass_bytes, 0)
            });
        }
    });
}

#[test]
fn nothing_moves_when_everything_stays() {
    for_each_model(|model| {
        for paging in [Paging::Weights, Paging::States, Paging::Both] {
            let spec = RunSpec::new(model, 5, 0);
            let ample = config(model, paging, Budget::Bytes(AMPLE_BYTES));
            assert_moves(&ample, &spec, 5, |report| {
                assert_eq!(report.streamed_bytes, 0, "{report:?}");
                (0, 0)
            });
        }
    });
}

/// Rows of a cache that a graph reads with up to 256 tokens: llama.cpp rounds up to that.
const ROWS: u64 = 256;

#[test]
fn paged_cache_moves_the_rows_in_use_in_and_the_written_rows_out() {
    // Six layers, keys and values each of two heads of 32 values.
    let (tensors, values) = (6 * 2, 2 * 32);
    let rows_by_prompt = [(5, ROWS), (250, ROWS), (300, 2 * ROWS), (800, 4 * ROWS)];
    for (cache, row_bytes) in [(Cache::F16, 2 * values), (Cache::Q8, values / 32 * 34)] {
        for (prompt_tokens, rows) in rows_by_prompt {
            for (paging, prefetch) in [
                (Paging::Both, true),
                (Paging::Both, false),
                (Paging::States, true),
            ] {
                let spec = RunSpec {
                    context: 1024,
                    batch: 1024,
                    flash: Flash::On,
                    cache,
                    ..RunSpec::new(Model::Dense, 1, 0)
                };
                let ample = config(Model::Dense, paging, Budget::Bytes(AMPLE_BYTES));
                let nothing_stays = PagingConfig {
                    resident_layers_max: Some(0),
                    prefetch,
                    ..ample
                };
                let states = tensors * rows * row_bytes;
                assert_moves(&nothing_stays, &spec, prompt_tokens, |report| {
                    assert_eq!(report.kv_streamed_bytes, states, "{report:?}");
                    let most = report.streamed_bytes + states;
                    let least = most - report.ring_bytes;
                    assert!((least..=most).contains(&report.pass_bytes), "{report:?}");
                    (report.pass_bytes, tensors * row_bytes)
                });
            }
        }
    }
}
