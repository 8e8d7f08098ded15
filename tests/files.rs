//! Files that go wrong while a model runs: each ends in a sentence, and no wrong bit.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use rpaged::device::{Budget, Faults, PagedDevice, PagingConfig, Storage};

use crate::equivalence::{Paging, budgets, config, minimum_budget};
use crate::harness::{
    LlamaContext, LlamaModel, Placement, RunSpec, Step, difference, run_paged, run_steps, stock,
};
use crate::models::{Model, prompt};

fn spec() -> RunSpec {
    RunSpec {
        ubatch: 8,
        ..RunSpec::new(Model::Tiny, 20, 4)
    }
}

/// Loads a copy of the model, decodes a prompt, does something to the file, goes on; the
/// sentence of the failure, if there was one.
fn disturb(storage: Storage, act: impl Fn(&Path)) -> Option<String> {
    let spec = spec();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("model.gguf");
    fs::copy(&spec.model.file().path, &path).unwrap();
    let config = PagingConfig {
        model: path.clone(),
        storage,
        resident_layers_max: Some(0),
        ..config(spec.model, Paging::Weights, Budget::Bytes(64 << 20))
    };
    let device = PagedDevice::new(config).unwrap();
    let model = LlamaModel::load(&path, Placement::Paged(&device)).unwrap();
    let mut context = LlamaContext::new(&model, &spec).unwrap();
    let steps = [Step::feed(0, 0, &prompt(7, 20)), Step::generate(0, 20, 4)];
    let expected = stock(&RunSpec {
        steps: steps.to_vec(),
        ..spec
    });
    let mut found = run_steps(&mut context, &steps[..1]).unwrap();
    act(&path);
    for position in 20..24 {
        let token = crate::harness::likeliest(found.last().unwrap());
        match run_steps(&mut context, &[Step::feed(0, position, &[token])]) {
            Ok(rows) => found.extend(rows),
            Err(_) => {
                let error = device.take_error().expect("a failure has a reason");
                assert_eq!(error.exit_code(), 1, "{error}");
                return Some(error.to_string());
            }
        }
    }
    assert_eq!(difference(&expected, &found), None);
    None
}

#[test]
fn a_model_that_is_overwritten_truncated_or_replaced_is_noticed() {
    for storage in [Storage::Cached, Storage::Direct] {
        let overwritten = disturb(storage, |path| {
            let mut file = fs::File::options().write(true).open(path).unwrap();
            file.seek(SeekFrom::End(-5000)).unwrap();
            file.write_all(&[0x55; 4000]).unwrap();
        });
        let sentence = overwritten.expect("another content is noticed");
        assert!(sentence.contains("changed"), "{sentence}");

        let truncated = disturb(storage, |path| {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_len(1000).unwrap();
        });
        let sentence = truncated.expect("a cut is noticed");
        assert!(sentence.contains("model.gguf"), "{sentence}");
    }
}

#[test]
fn a_model_that_is_deleted_or_renamed_goes_on() {
    for storage in [Storage::Cached, Storage::Direct] {
        assert_eq!(
            disturb(storage, |path| fs::remove_file(path).unwrap()),
            None
        );
        let renamed = disturb(storage, |path| {
            fs::rename(path, path.with_extension("old")).unwrap();
            fs::write(path, b"something else").unwrap();
        });
        assert_eq!(renamed, None);
    }
}

/// One fault in the n-th request, for each n until none is struck any more.
fn check_faults(paging: Paging, fault: fn(u64) -> Faults, harmless: bool) {
    let spec = spec();
    let expected = stock(&spec);
    let mut failed = 0;
    for request in 0..120 {
        let budget = Budget::Bytes(minimum_budget(&spec, paging));
        let config = PagingConfig {
            faults: fault(request),
            ..config(spec.model, paging, budget)
        };
        match run_paged(&config, &spec) {
            Ok(found) => assert_eq!(difference(&expected, &found), None, "request {request}"),
            Err(sentence) => {
                failed += 1;
                assert!(
                    !sentence.contains('\n') && !sentence.ends_with('.'),
                    "{sentence}"
                );
            }
        }
    }
    assert_eq!(failed == 0, harmless, "{failed} of 120 requests failed");
}

#[test]
fn short_reads_are_harmless() {
    let fault = |request| Faults {
        short_read: Some(request),
        ..Faults::default()
    };
    check_faults(Paging::Both, fault, true);
}

#[test]
fn failed_reads_are_sentences() {
    let fault = |request| Faults {
        failed_read: Some(request),
        ..Faults::default()
    };
    check_faults(Paging::Both, fault, false);
}

#[test]
fn a_worker_that_dies_is_a_sentence_and_nothing_hangs() {
    let fault = |request| Faults {
        dead_worker: Some(request),
        ..Faults::default()
    };
    check_faults(Paging::Both, fault, false);
}

#[test]
fn a_full_disk_is_a_sentence_or_a_smaller_plan() {
    let fault = |request| Faults {
        full_disk: Some(request),
        ..Faults::default()
    };
    check_faults(Paging::Both, fault, false);
    check_faults(Paging::States, fault, false);
}

#[test]
fn a_spill_folder_that_is_not_there_keeps_the_cache_in_the_arena_while_it_fits() {
    let spec = spec();
    let (minimum, everything) = budgets(&spec, Paging::Both);
    let nowhere = |budget| PagingConfig {
        spill_folder: Some("/nowhere/at/all".into()),
        ..config(spec.model, Paging::Both, Budget::Bytes(budget))
    };
    let found = run_paged(&nowhere(everything - 1000), &spec).unwrap();
    assert_eq!(difference(&stock(&spec), &found), None);
    let sentence = run_paged(&nowhere(minimum), &spec).unwrap_err();
    assert!(sentence.contains("--spill-dir"), "{sentence}");
}
