#![allow(unsafe_code, reason = "a test that plays a driver's card")]
//! The link to CUDA's devices, on a driver without a card.
//!
//! The driver is a library of this workspace, which lies beside this program, because it is
//! a dependency of the tests. A test copies it into a folder of its own under the driver's
//! name and runs this program again, with that folder on the search path: it has one of the
//! tests of [`inside`] run, which are skipped otherwise.

mod device;
mod driver;
mod growing;
mod inside;
mod paged;
mod platform;
mod taken;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// Says to the tests of [`inside`] that they are run by one of these here.
const INSIDE: &str = "RPAGED_TEST_INSIDE";

/// The driver's library, beside this program.
fn library() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let folder = program.parent().unwrap();
    let is_it = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libfake_cuda") && name.ends_with(".so")
    };
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    let found = entries.map(|entry| entry.path()).filter(is_it);
    let newest = found.max_by_key(|path| path.metadata().unwrap().modified().unwrap());
    newest.expect("cargo builds the fake driver beside the tests")
}

/// What NVIDIA's management library is called.
const NVML: &str = "libnvidia-ml.so.1";

/// A folder in which `library` is the driver, and under another name, for it is one with it,
/// the management library.
fn folder_with(library: &Path) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let driver = folder.path().join("libcuda.so.1");
    std::fs::copy(library, &driver).unwrap();
    std::fs::hard_link(&driver, folder.path().join(NVML)).unwrap();
    folder
}

/// Runs one test of [`inside`] or [`paged`].
fn run(folder: Option<&Path>, test: &str, settings: &[(&str, &str)]) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let name = format!("cuda::{test}");
    command.args([&name, "--exact", "--ignored", "--nocapture"]);
    command.env_remove("LD_LIBRARY_PATH").env(INSIDE, "1");
    if let Some(folder) = folder {
        command.env("LD_LIBRARY_PATH", folder);
    }
    command.envs(settings.iter().copied()).output().unwrap()
}

/// Runs one test of [`inside`] on the fake driver; it must pass, and do nothing wrong.
fn passes(test: &str, settings: &[(&str, &str)]) {
    passes_in(&folder_with(&library()), test, settings);
}

fn passes_in(folder: &TempDir, test: &str, settings: &[(&str, &str)]) {
    let output = run(Some(folder.path()), test, settings);
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{test} with {settings:?}:\n{text}");
    assert!(text.contains("1 passed"), "{test} was not run:\n{text}");
    assert!(!text.contains("violations"), "{test}:\n{text}");
    assert!(!text.contains("panicked"), "{test}:\n{text}");
}

#[test]
fn random_copies_end_where_a_naive_copy_ends() {
    for seed in ["1", "2", "3"] {
        for delay in ["0", "300"] {
            let settings = [("FAKE_CUDA_SEED", seed), ("FAKE_CUDA_DELAY_US", delay)];
            passes("inside::random_copies", &settings);
        }
    }
}

#[test]
fn copies_and_a_computation_wait_for_each_other() {
    for seed in ["1", "2", "3", "4"] {
        let settings = [("FAKE_CUDA_SEED", seed), ("FAKE_CUDA_DELAY_US", "400")];
        passes("inside::ordered_by_events", &settings);
    }
}

#[test]
fn pinned_memory_is_left_to_the_stream_and_pageable_is_not() {
    passes(
        "inside::pinned_and_pageable",
        &[("FAKE_CUDA_DELAY_US", "500")],
    );
}

#[test]
fn without_pinned_memory_a_sentence_says_so() {
    passes(
        "inside::without_pinned_memory",
        &[("FAKE_CUDA_PINNED", "4096")],
    );
}

#[test]
fn a_device_is_found_by_its_place_on_the_bus() {
    passes("inside::devices_by_bus_id", &[("FAKE_CUDA_DEVICES", "2")]);
}

#[test]
fn without_a_device_a_sentence_says_so() {
    let settings = [
        ("FAKE_CUDA_DEVICES", "0"),
        ("EXPECTED", "the CUDA driver has no device"),
    ];
    passes("inside::refuses", &settings);
}

#[test]
fn of_an_old_driver_a_sentence_says_so() {
    let settings = [
        ("FAKE_CUDA_VERSION", "11080"),
        ("EXPECTED", "for CUDA 11.8, which is too old"),
    ];
    passes("inside::refuses", &settings);
}

#[test]
fn of_a_driver_that_does_not_start_a_sentence_says_so() {
    for (code, text) in [
        (
            "999",
            "'cuInit' gave 'unknown error (CUDA_ERROR_UNKNOWN, 999)'",
        ),
        ("12345", "'cuInit' gave 'error 12345'"),
    ] {
        passes(
            "inside::refuses",
            &[("FAKE_CUDA_INIT_ERROR", code), ("EXPECTED", text)],
        );
    }
}

#[test]
fn of_a_lost_device_one_sentence_says_so() {
    for (copy, code, text) in [
        ("1:700", "700", "an illegal memory access was encountered"),
        ("5:999", "999", "unknown error"),
        ("9:719", "719", "unspecified launch failure"),
    ] {
        let settings = [
            ("FAKE_CUDA_FAIL_COPY", copy),
            ("FAKE_CUDA_DELAY_US", "200"),
            ("EXPECTED", text),
            ("EXPECTED_CODE", code),
        ];
        passes("inside::lost_device", &settings);
    }
}

#[test]
fn a_library_that_is_no_driver_gives_a_sentence() {
    // Any library will do that is there for sure: this very program is linked to one.
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let paths = maps
        .lines()
        .filter_map(|line| line.split_whitespace().last());
    let other = paths
        .filter(|path| path.contains("libgcc_s") || path.contains("libm.so"))
        .map(PathBuf::from)
        .next();
    let Some(other) = other else { return };
    let folder = folder_with(&other);
    let settings = [("EXPECTED", "the CUDA driver lacks 'cuInit'")];
    let output = run(Some(folder.path()), "inside::refuses", &settings);
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

#[test]
fn paged_models_compute_what_stock_computes() {
    for (seed, delay) in [("1", "0"), ("2", "50"), ("3", "300")] {
        let settings = [("FAKE_CUDA_SEED", seed), ("FAKE_CUDA_DELAY_US", delay)];
        passes("paged::models", &settings);
    }
}

#[test]
fn a_paged_model_without_pinned_memory_computes_the_same() {
    let settings = [("FAKE_CUDA_PINNED", "0"), ("FAKE_CUDA_DELAY_US", "50")];
    passes("paged::models", &settings);
}

/// The fake driver's unit of memory in tests of states that grow, in bytes.
const GRANULE: (&str, &str) = ("FAKE_CUDA_GRANULE", "4096");

#[test]
fn memory_of_a_state_is_mapped_as_far_as_it_is_in_use() {
    passes("growing::blocks", &[GRANULE]);
    passes(
        "growing::refused",
        &[GRANULE, ("FAKE_CUDA_FAIL_CREATE", "2:3")],
    );
    passes("growing::whole", &[("FAKE_CUDA_GRANULE", "0")]);
}

#[test]
fn paged_states_that_grow_compute_what_stock_computes() {
    passes("growing::models", &[GRANULE, ("FAKE_CUDA_DELAY_US", "50")]);
    passes("paged::models", &[GRANULE]);
    // Where nothing can be mapped, all of a state is there from the start.
    passes("paged::models", &[("FAKE_CUDA_GRANULE", "0")]);
}

#[test]
fn a_larger_ubatch_leaves_room_for_a_full_context() {
    passes("growing::ubatches", &[GRANULE]);
}

#[test]
fn weights_give_way_where_others_have_taken_the_memory() {
    for range in ["3:4", "8:10", "14:1000000"] {
        passes(
            "growing::crowded",
            &[GRANULE, ("FAKE_CUDA_FAIL_CREATE", range)],
        );
    }
}

/// What a context takes in tests of the driver's part, in bytes: a quarter of one less than 24 MiB.
const CONTEXT: (&str, &str) = ("FAKE_CUDA_CONTEXT", "24903680");

#[test]
fn the_driver_s_part_of_a_budget_is_what_nvml_says() {
    let measured = ("24", "");
    let constant = |why| ("256", why);
    let unclear = constant("which of the processes on it is this one, NVML does not say");
    let silent = constant("NVML does not say what a process takes; it is taken to be 256.00 MiB");
    let once = ("24", "what comes later is taken to be 256.00 MiB");
    for (listing, others, version, witness, (mib, sentence)) in [
        ("own", "0", "3", false, measured),
        ("own", "100", "3", false, measured),
        ("own", "3", "35", false, measured),
        ("own", "3", "2", false, measured),
        ("own", "3", "1", false, measured),
        ("own", "3", "0", false, silent),
        ("machine", "0", "3", false, measured),
        ("machine", "3", "3", false, unclear),
        ("machine", "3", "3", true, measured),
        ("taken", "3", "3", true, measured),
        ("unlisted", "0", "3", false, unclear),
        ("unlisted", "3", "3", true, once),
        ("nothing", "3", "3", false, silent),
        ("nothing", "3", "3", true, once),
        ("unknown", "0", "3", false, silent),
    ] {
        let mut settings = vec![
            CONTEXT,
            ("FAKE_NVML_LISTING", listing),
            ("FAKE_NVML_OTHERS", others),
            ("FAKE_NVML_VERSION", version),
            ("EXPECTED_MIB", mib),
            ("EXPECTED", sentence),
        ];
        if witness {
            settings.push(("WITNESS", "1"));
        }
        passes("taken::sources", &settings);
    }
}

#[test]
fn without_nvml_a_constant_stands_for_the_driver_s_part() {
    let folder = folder_with(&library());
    for name in [NVML, "libnvidia-ml.so"] {
        let path = folder.path().join(name);
        // Not over the driver, which has this name too.
        drop(std::fs::remove_file(&path));
        std::fs::write(path, "no library").unwrap();
    }
    let settings = [CONTEXT, ("EXPECTED_MIB", "256"), ("EXPECTED", "")];
    passes_in(&folder, "taken::sources", &settings);
    passes_in(&folder, "taken::guessed", &[CONTEXT, GRANULE]);
}

#[test]
fn a_budget_covers_what_the_driver_takes() {
    // With the third launch, kernels of 8 MiB are loaded.
    let growth = ("FAKE_CUDA_GROWTH", "3:8388608");
    let delay = ("FAKE_CUDA_DELAY_US", "50");
    passes("taken::grows", &[CONTEXT, GRANULE, growth, delay]);
    passes("taken::overruns", &[CONTEXT, GRANULE, growth, delay]);
    passes("taken::refuses", &[CONTEXT, GRANULE]);
    passes("taken::beside", &[CONTEXT, GRANULE]);
}

#[test]
fn a_state_without_addresses_is_planned_as_a_whole() {
    for range in ["1:1000000", "2:3", "4:1000000"] {
        let settings = [CONTEXT, GRANULE, ("FAKE_CUDA_FAIL_RESERVE", range)];
        passes("taken::without_addresses", &settings);
    }
}

#[test]
fn memory_of_a_growth_that_failed_is_counted() {
    for range in ["2:1000000", "4:1000000", "9:1000000"] {
        let granule = ("FAKE_CUDA_GRANULE", "65536");
        let settings = [granule, ("FAKE_CUDA_FAIL_CREATE", range)];
        passes("taken::leftovers", &settings);
    }
}

#[test]
fn a_paged_model_on_a_lost_device_ends_with_one_sentence() {
    for copy in ["1:700", "40:700"] {
        let settings = [("FAKE_CUDA_FAIL_COPY", copy), ("FAKE_CUDA_DELAY_US", "20")];
        passes("paged::lost", &settings);
    }
}

#[test]
fn without_a_driver_a_sentence_says_so() {
    // SAFETY: a C string; a driver may be loaded, and does nothing then.
    let real = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW) };
    if !real.is_null() {
        // This machine has one.
        return;
    }
    let settings = [("EXPECTED", "there is no CUDA driver (libcuda.so.1)")];
    let output = run(None, "inside::refuses", &settings);
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}
