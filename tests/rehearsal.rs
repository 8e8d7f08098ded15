//! What a rehearsal says of memory is what a run takes, for every architecture.

use std::ffi::CString;
use std::path::Path;

use async_device::{AsyncDevice, Options};
use rpaged::device::rehearsal::Rehearsal;
use rpaged::device::{Budget, Cold, PagedDevice, PagingConfig, Storage};
use rpaged::forecast::ubatch::{self, Given};
use rpaged::llama::{self, Decoded, Params, Session};
use rpaged::session::demo::DemoModel;

use crate::harness::inner_of;
use crate::models::{Model, prompt};

const CONTEXT: usize = 512;
/// By how much a figure may be off.
const TOLERANCE: f64 = 0.03;

fn params(path: &Path, more: &[&str]) -> Params {
    llama::log::start();
    let path = path.to_str().unwrap();
    let words = [
        "test", "-m", path, "-c", "512", "-ub", "64", "-t", "1", "-lv", "0",
    ];
    let words = words.iter().chain(more);
    let words = words.map(|word| CString::new(*word).unwrap()).collect();
    Params::parse(words, &[]).unwrap()
}

fn config(path: &Path, budget: u64) -> PagingConfig {
    PagingConfig {
        inner: None,
        model: path.to_owned(),
        weights: true,
        kv: true,
        budget: Budget::Bytes(budget),
        prefetch: true,
        prefetch_threads: 1,
        prefetch_depth: 1,
        pinned_layers: Vec::new(),
        kv_page_tokens: 64,
        spill_folder: None,
        storage: Storage::Cached,
        lock: false,
        lazy_bytes_min: None,
        cold: Cold::Stream,
        resident_layers_max: None,
        poison: false,
        faults: rpaged::device::Faults::default(),
    }
}

#[allow(clippy::cast_precision_loss, reason = "shares of sizes")]
fn assert_near(what: &str, model: Model, said: u64, taken: u64) {
    // Bytes of alignment weigh something in models of some hundred kilobytes.
    let slack = TOLERANCE * taken as f64 + 16_384.0;
    assert!(
        (said as f64 - taken as f64).abs() <= slack,
        "{model:?}: {what} is {taken}, said was {said}"
    );
}

/// Rehearses, runs with the same budget, and compares.
fn compare(model: Model, share: u64, tokens: usize, more: &[&str]) {
    let path = model.file().path.as_path();
    let rehearsal = Rehearsal::new(config(path, 1 << 40)).unwrap();
    let facts = llama::rehearse(params(path, more), &rehearsal, "model").unwrap();
    let notes = rehearsal.notes();
    let outside = facts.device_compute_bytes + notes.inner_bytes + notes.unpaged_bytes;
    rehearsal.imagine_context(
        tokens.next_multiple_of(256),
        facts.flash_attention as u8 == 0,
    );
    let least = rehearsal.minimum_bytes(outside);
    let whole = rehearsal.outlook(1 << 40, outside).unwrap().used_bytes();
    let budget = least + (whole - least) * share / 100;
    let outlook = rehearsal.outlook(budget, outside).unwrap();

    let device = PagedDevice::new(config(path, budget)).unwrap();
    let mut session = Session::new(params(path, more), Some(device), "model").unwrap();
    assert_eq!(session.n_ctx(), facts.n_ctx as usize);
    if session.has_encoder() {
        return;
    }
    for batch in prompt(5, tokens).chunks(64) {
        assert_eq!(session.decode(batch).unwrap(), Decoded::Done);
    }
    let report = session.device().unwrap().report();
    assert_near("scratch", model, outside, report.scratch_bytes);
    assert_near(
        "the minimum",
        model,
        outlook.minimum_bytes,
        report.minimum_bytes,
    );
    assert_near(
        "what is in use",
        model,
        outlook.used_bytes(),
        report.arena_bytes_used,
    );
}

#[test]
fn memory_is_what_a_run_takes() {
    for model in Model::ALL {
        for share in [0, 50, 100] {
            compare(model, share, 100, &["-fa", "on"]);
        }
    }
}

#[test]
fn memory_is_what_a_run_takes_with_other_caches() {
    for model in [Model::Dense, Model::SlidingWindow, Model::Hybrid] {
        compare(
            model,
            60,
            CONTEXT - 64,
            &["-fa", "on", "-ctk", "q8_0", "-ctv", "q8_0"],
        );
        compare(model, 60, 100, &["-fa", "off"]);
    }
}

const STORY: &str = "Once upon a time, there was a little owl. ";

/// The ubatch after 8 tokens of it might be raised, for a story of twelve sentences and four
/// tokens after it.
pub fn raised(path: &Path, paging: &PagingConfig, given: Given, more: &[&str]) -> (i32, Params) {
    let text = STORY.repeat(12);
    let words = [&["-ub", "8", "-n", "4", "-p", &text][..], more].concat();
    let mut params = params(path, &words);
    let mut settings = params.settings().unwrap();
    let found = ubatch::raise(&mut params, &mut settings, paging, given, "demo").unwrap();
    let after = params.settings().unwrap();
    assert_eq!(
        (settings.n_ubatch, settings.n_batch),
        (after.n_ubatch, after.n_batch)
    );
    assert_eq!(found.is_some(), after.n_ubatch != 8, "{found:?}");
    (after.n_ubatch, params)
}

/// The smallest budget that does when the context holds so many tokens.
#[cfg(target_os = "linux")]
pub fn least(path: &Path, paging: &PagingConfig, tokens: usize, more: &[&str]) -> u64 {
    let rehearsal = Rehearsal::new(paging.clone()).unwrap();
    let facts = llama::rehearse(params(path, more), &rehearsal, "model").unwrap();
    let notes = rehearsal.notes();
    rehearsal.imagine_context(tokens, !facts.flash_attention);
    rehearsal.minimum_bytes(facts.device_compute_bytes + notes.inner_bytes + notes.unpaged_bytes)
}

/// With a device for tests that has memory of its own, and the demo's model.
#[test]
fn a_prompt_is_computed_in_fewer_passes_where_weights_cross_a_link() {
    let demo = DemoModel::new().unwrap();
    let path = Path::new(demo.path().to_str().unwrap());
    let on = AsyncDevice::new(Options::default()).unwrap();
    let half = PagingConfig {
        inner: Some(inner_of(&on)),
        ..config(path, 1_600_000)
    };
    let raised = |paging: &PagingConfig, given, more: &[&str]| raised(path, paging, given, more);
    let (ubatch, params) = raised(&half, Given::default(), &[]);
    assert!(ubatch > 8, "{ubatch}");
    let device = PagedDevice::new(half.clone()).unwrap();
    let session = Session::new(params, Some(device), "demo").unwrap();
    assert_eq!(i32::try_from(session.n_ubatch()).unwrap(), ubatch);
    assert!(session.device().unwrap().report().streamed_bytes > 0);
    drop(session);

    let explicit = Given {
        ubatch: true,
        batch: false,
    };
    let batch = Given {
        ubatch: false,
        batch: true,
    };
    assert_eq!(raised(&half, explicit, &[]).0, 8);
    assert_eq!(raised(&half, batch, &["-b", "16"]).0, 16);
    assert_eq!(raised(&half, batch, &["-b", "8"]).0, 8);
    assert_eq!(raised(&half, Given::default(), &["-p", "Once"]).0, 8);
    let of = |more: &[&str]| raised(&half, Given::default(), more).0;
    assert_eq!(of(&["-n", "1000000"]), 8, "each token streams more");
    assert_eq!(
        of(&["-n", "-1", "-c", "65536"]),
        8,
        "as many as there is room for"
    );
    assert_eq!(
        of(&["--prompt-cache", "states.bin"]),
        8,
        "a saved state fits the ubatch that it was saved with"
    );
    let ample = PagingConfig {
        budget: Budget::Bytes(1 << 30),
        ..half.clone()
    };
    assert_eq!(
        raised(&ample, Given::default(), &[]).0,
        8,
        "nothing streams"
    );
    let on_processor = PagingConfig {
        inner: None,
        ..half.clone()
    };
    assert_eq!(raised(&on_processor, Given::default(), &[]).0, 8);
    let complaints = on.take_complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
}

/// A configuration file leaves no word on the command line.
#[test]
fn sizes_that_are_not_the_usual_ones_were_given() {
    llama::log::start();
    let given = |words: &[&str]| {
        let words = ["test", "-m", "model", "-lv", "0"].iter().chain(words);
        let words = words.map(|word| CString::new(*word).unwrap()).collect();
        let settings = Params::parse(words, &[]).unwrap().settings().unwrap();
        let given = Given::default().or_by(&settings);
        (given.batch, given.ubatch)
    };
    assert_eq!(given(&[]), (false, false), "llama.cpp's defaults");
    assert_eq!(given(&["-b", "1024"]), (true, false));
    assert_eq!(given(&["-ub", "256"]), (false, true));
}
