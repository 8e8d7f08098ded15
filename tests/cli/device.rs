//! Which device computes below the paging: `--device`, as in llama.cpp.

use super::{MODEL, assert_refused, complete, program, run, stdout};

const TEXT: &str = "-n 20 -s 7 -c 256 --no-repack --dynamic-layers --vram-budget 60%";

#[test]
fn without_a_gpu_the_processor_computes_whatever_is_said() {
    let expected = complete(&format!("{TEXT} --device none"));
    assert!(expected.status.success(), "{expected:?}");
    assert!(!stdout(&expected).is_empty());
    let zero = complete(&format!("{TEXT} -ngl 0 --vram-budget 90%"));
    assert_eq!(stdout(&zero), stdout(&expected), "{zero:?}");
    for output in [&expected, &zero] {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !said.contains(" computes ("),
            "no device is announced: {said}"
        );
    }
    let mut command = program();
    command.env("LLAMA_ARG_DEVICE", "none");
    let prompt = ["-m", MODEL, "-t", "1", "-no-cnv", "-ub", "16"];
    command.args(prompt).args(["-p", "Once upon a time"]);
    let output = command.args(TEXT.split_whitespace()).output().unwrap();
    assert_eq!(stdout(&output), stdout(&expected), "{output:?}");
}

#[test]
fn a_device_that_is_not_there_is_a_sentence() {
    for line in ["", "--dynamic-layers", "--paged-kv"] {
        let output = complete(&format!("{line} --device NoSuchGpu0"));
        assert_refused(&output, 2, &["--device NoSuchGpu0", "invalid device"]);
    }
    // ggml's own name for the processor is not one that llama.cpp takes.
    let output = complete("--dynamic-layers --device CPU");
    assert_refused(&output, 2, &["--device CPU", "invalid device"]);
    let output = complete("--dynamic-layers --main-gpu 0");
    assert_refused(&output, 2, &["'--main-gpu'", "--device"]);
}

#[test]
fn the_list_of_devices_says_which_may_compute_under_paging() {
    let text = stdout(&run("--list-devices"));
    let (list, paged) = text
        .split_once("Under paging one of these computes:\n")
        .unwrap();
    assert!(list.starts_with("Available devices:\n"), "{text}");
    let lines: Vec<&str> = paged.lines().collect();
    let defaults = lines.iter().filter(|line| line.ends_with(" (default)"));
    assert_eq!(defaults.count(), 1, "{text}");
    assert!(
        lines.last().unwrap().starts_with("  none: the processor"),
        "{text}"
    );
    // Whatever llama.cpp lists can be named, and nothing else but the processor.
    for line in &lines[..lines.len() - 1] {
        let name = line.trim().split(' ').next().unwrap();
        assert!(list.contains(&format!("\n  {name}: ")), "{text}");
    }
}

#[test]
fn a_sweep_says_what_is_wrong_with_its_device() {
    let line = "-p 4 -n 0 -r 1 --vram-budgets 90% --dynamic-layers";
    let refused = run(&format!("bench -m {MODEL} {line} -dev NoSuchGpu0"));
    assert_refused(&refused, 2, &["NoSuchGpu0"]);
    let output = run(&format!("bench -m {MODEL} {line} -dev none -o csv"));
    assert!(output.status.success(), "{output:?}");
}

/// With a GPU that Vulkan knows; see `.ci/vulkan`.
#[cfg(feature = "vulkan")]
mod vulkan {
    use super::*;

    /// Whether there is one; otherwise says why nothing is tested.
    fn has_gpu() -> bool {
        let found = stdout(&run("--list-devices")).contains("\n  Vulkan0: ");
        if !found {
            eprintln!("skipped: Vulkan has no device here (see GGML_VK_VISIBLE_DEVICES)");
        }
        found
    }

    fn said(output: &std::process::Output) -> String {
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    #[test]
    fn the_gpu_computes_what_stock_does_under_any_budget() {
        if !has_gpu() {
            return;
        }
        let stock = complete("-n 20 -s 7 -c 256 --device Vulkan0 -ngl 99");
        assert!(stock.status.success(), "{stock:?}");
        // The processor may round differently.
        let text = "-n 20 -s 7 -c 256 --dynamic-layers --paged-kv --cold stream";
        for line in [
            "--vram-budget 60% --device Vulkan0",
            "--vram-budget 60%",
            "--vram-budget 60% --device Vulkan0 -ngl 0",
            "--vram-budget 2G",
            "",
        ] {
            let paged = complete(&format!("{text} {line}"));
            assert_eq!(stdout(&paged), stdout(&stock), "{line}: {}", said(&paged));
            assert!(said(&paged).contains("Vulkan0 computes ("), "{line}");
        }
        for line in ["--device none", "-ngl 0"] {
            let paged = complete(&format!("{text} --vram-budget 60% {line}"));
            assert!(paged.status.success(), "{}", said(&paged));
            assert!(!said(&paged).contains("Vulkan0 computes ("), "{line}");
        }
    }

    #[test]
    fn two_gpus_are_a_sentence() {
        if !has_gpu() {
            return;
        }
        let line = "--dynamic-layers --device Vulkan0,Vulkan1";
        let mut command = program();
        // The same one twice.
        command.env("GGML_VK_VISIBLE_DEVICES", "0,0");
        let prompt = ["-m", MODEL, "-no-cnv", "-p", "Once"];
        let output = command.args(prompt).args(line.split(' ')).output().unwrap();
        assert_refused(&output, 2, &["'--device'", "'Vulkan0' and 'Vulkan1'"]);
    }

    #[test]
    fn a_plan_is_of_the_gpus_memory_and_speed() {
        if !has_gpu() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let rates = folder.path().join("rates.json");
        let line = format!(
            "plan -m {MODEL} --dynamic-layers -c 256 -ub 16 --vram-budget 60% --calibration {}",
            rates.display()
        );
        let plan = run(&format!("{line} --json"));
        assert!(plan.status.success(), "{plan:?}");
        let said: serde_json::Value = serde_json::from_slice(&plan.stdout).unwrap();
        let speed = said["decode"]["tokens_per_second"].as_f64().unwrap();
        assert!(speed > 0.0, "{said}");
        let share = said["cold"]["share"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&share), "{said}");
        let kept = std::fs::read_to_string(&rates).unwrap();
        assert!(
            kept.contains("Vulkan0") && kept.contains("handover_seconds"),
            "{kept}"
        );
        // What was measured is read: the same speed again, to the digit.
        let again = run(&format!("{line} --json"));
        let again: serde_json::Value = serde_json::from_slice(&again.stdout).unwrap();
        assert_eq!(again["calibrated"], said["calibrated"]);
        let asked = run(&format!("{line} --for-speed {}", speed / 2.0));
        assert!(asked.status.success(), "{asked:?}");
    }
}

/// Built with CUDA, on a machine that has no driver for it.
#[cfg(feature = "cuda")]
mod cuda_without_a_driver {
    use super::*;

    #[test]
    fn the_program_starts_and_says_so_once() {
        let listed = run("--list-devices");
        if stdout(&listed).contains("\n  CUDA0: ") {
            eprintln!("skipped: CUDA has a GPU here");
            return;
        }
        assert!(listed.status.success(), "{listed:?}");
        let output = complete("-n 4 -s 7 -c 256 --dynamic-layers");
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            said.matches("CUDA gives no GPU here (").count(),
            1,
            "{said}"
        );
        assert!(!said.contains("ggml_cuda_init"), "{said}");
        for line in ["--device CUDA0", "--device CUDA0 --dynamic-layers"] {
            let output = complete(line);
            assert_refused(&output, 2, &["--device CUDA0", "invalid device"]);
        }
    }
}
