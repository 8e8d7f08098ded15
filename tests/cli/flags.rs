//! Flags: ours, upstream's, unknown ones, and those that print something and end.

use super::{MODEL, assert_refused, complete, program, run, stdout};

#[test]
fn under_paging_gpu_layers_bound_resident_layers_without_a_word_about_gpus() {
    let variable = |value: &str| {
        let mut command = program();
        command.args(["-m", MODEL, "-no-cnv", "-p", "Once", "-n", "2"]);
        command.arg("--dynamic-layers");
        command
            .env("LLAMA_ARG_N_GPU_LAYERS", value)
            .output()
            .unwrap()
    };
    for value in ["0", "3", "all", "auto"] {
        let output = variable(value);
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!said.contains("no usable GPU"), "{said}");
    }
    let paged = [
        "-m",
        MODEL,
        "-no-cnv",
        "-p",
        "Once",
        "-n",
        "2",
        "--dynamic-layers",
    ];
    for value in ["0", "3", "all", "auto"] {
        let output = program()
            .args(paged)
            .args(["-ngl", value])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!said.contains("no usable GPU"), "{said}");
    }
    let output = program()
        .args(paged)
        .args(["-ngl", "some"])
        .output()
        .unwrap();
    assert_refused(&output, 2, &["'-ngl'", "'some'", "'auto'"]);
}

#[test]
fn help_fits_80_columns_and_shows_ours_first() {
    let output = run("--help");
    assert!(output.status.success());
    let text = stdout(&output);
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    let place = |what: &str| text.find(what).unwrap_or_else(|| panic!("no '{what}'"));
    assert!(place("--vram-budget SIZE") < place("----- common params -----"));
    assert!(place("----- sampling params -----") < place("--top-k"));
    for flag in [
        "--dynamic-layers",
        "--paged-kv",
        "--demo",
        "--mirostat",
        "-no-cnv",
        "--lora",
    ] {
        place(flag);
    }
    assert_eq!(text, stdout(&run("-h")));
    assert_eq!(text, stdout(&run("--usage -m nothing")));
}

#[test]
fn version_names_us_and_what_we_carry() {
    let text = stdout(&run("--version"));
    assert!(
        text.starts_with(concat!("rpaged-cli ", env!("CARGO_PKG_VERSION"))),
        "{text}"
    );
    assert!(
        text.contains("llama.cpp ") && text.contains("ggml "),
        "{text}"
    );
}

#[test]
fn lists_and_completion_script_are_printed() {
    assert!(stdout(&run("--list-devices")).starts_with("Available devices:\n"));
    assert!(stdout(&run("--cache-list")).starts_with("number of models in cache: 0"));
    let script = stdout(&run("--completion-bash"));
    assert!(script.contains("--dynamic-layers") && script.contains("--no-conversation"));
    assert!(script.contains("complete -o filenames -F _rpaged_cli rpaged-cli"));
}

#[test]
fn an_unknown_flag_is_met_with_the_nearest_one() {
    assert_refused(
        &run("--tempp 1"),
        2,
        &["'--tempp'", "did you mean '--temp'"],
    );
    assert_refused(&run("--vram-buget 5"), 2, &["did you mean '--vram-budget'"]);
    assert_refused(&run("--top_kk 5"), 2, &["did you mean '--top-k'"]);
    assert_refused(&run("--xyzzyxyzzy"), 2, &["unknown option", "--help"]);
    assert_refused(&run("--temp=0.5"), 2, &["'--temp 0.5'"]);
    assert_refused(&run("hello"), 2, &["unexpected argument 'hello'", "-p"]);
}

#[test]
fn a_missing_or_wrong_value_is_a_usage_error() {
    assert_refused(&run("-p"), 2, &["'-p' needs a value"]);
    assert_refused(&run("--vram-budget"), 2, &["'--vram-budget' needs a value"]);
    assert_refused(
        &run("--control-vector-layer-range 1"),
        2,
        &["needs a value"],
    );
    assert_refused(&complete("-n abc"), 2, &["'-n abc'", "not a number"]);
    assert_refused(&complete("-fa perhaps"), 2, &["-fa perhaps"]);
    assert_refused(&complete("-ctk q99"), 2, &["q99"]);
    assert_refused(
        &complete("-f /nonexistent/prompt"),
        2,
        &["/nonexistent/prompt"],
    );
    assert_refused(&complete("-b 0"), 2, &["'-b' must be at least 1"]);
    assert_refused(&complete("-ub -3"), 2, &["'-ub' must be at least 1"]);
    assert_refused(&complete("-tb 100000"), 2, &["'-tb' must be at most 512"]);
    assert_refused(&complete("-c -1"), 2, &["'-c' must not be negative"]);
    assert_refused(&complete("-n -7"), 2, &["'-n' must be"]);
    assert_refused(&complete("--mirostat 3"), 2, &["'--mirostat' must be"]);
    assert_refused(&complete("-ncmoe 2147483647"), 2, &["-ncmoe", "layers"]);
    assert_refused(&run("-p x"), 2, &["no model given", "-m", "--demo"]);
}

#[test]
fn flags_of_paging_without_paging_say_what_is_missing() {
    for flag in [
        "--vram-budget 5",
        "--vram-budget=50%",
        "--prefetch-threads 2",
        "--async-prefetch",
        "--no_async_prefetch",
    ] {
        assert_refused(
            &complete(flag),
            2,
            &["needs paging", "--dynamic-layers", "--paged-kv"],
        );
    }
}

#[test]
fn flags_that_lack_another_one_say_which() {
    for (flags, missing) in [
        ("--mem-pressure 0.5", "--dynamic-layers"),
        ("--vram-budget-file x", "--dynamic-layers"),
        ("--prefetch-depth 2", "--dynamic-layers"),
        ("--pin-layers 1 --paged-kv", "--dynamic-layers"),
        ("--kv-page-size 64 --dynamic-layers", "--paged-kv"),
        ("--spill-dir . --dynamic-layers", "--paged-kv"),
        ("--metrics-interval 2", "--metrics-file"),
        ("--metrics-pretty", "--metrics"),
    ] {
        let flag = flags.split(' ').next().unwrap();
        assert_refused(&complete(flags), 2, &[flag, "needs", missing]);
    }
    // A variable sets a default; a run without use for it goes on.
    for name in ["KV_PAGE_SIZE", "MEM_PRESSURE", "METRICS_INTERVAL"] {
        let mut command = program();
        command.args(["-m", MODEL, "-no-cnv", "-p", "Once", "-n", "0"]);
        let value = if name == "MEM_PRESSURE" { "1" } else { "16" };
        command.env(format!("LLAMA_ARG_{name}"), value);
        assert!(command.output().unwrap().status.success(), "{name}");
    }
}

#[test]
fn wrong_values_of_our_flags_are_refused() {
    let paged = |line: &str| complete(&format!("--dynamic-layers --paged-kv {line}"));
    for (flag, value) in [
        ("--mem-pressure", "1.5"),
        ("--mem-pressure", "-1"),
        ("--mem-pressure", "much"),
        ("--pin-layers", "3-1"),
        ("--pin-layers", "a"),
        ("--prefetch-depth", "0"),
        ("--prefetch-depth", "65"),
        ("--kv-page-size", "15"),
        ("--kv-page-size", "8193"),
        ("--metrics-interval", "0"),
    ] {
        assert_refused(&paged(&format!("{flag} {value}")), 2, &[flag, value]);
    }
    assert_refused(
        &paged("--vram-budget-file /nonexistent"),
        1,
        &["/nonexistent", "--vram-budget-file"],
    );
    assert_refused(
        &paged("--vram-budget-file x --vram-budget 5"),
        2,
        &["'--vram-budget'", "'--vram-budget-file'", "one of them"],
    );
    assert_refused(&paged("--pin-layers 12"), 2, &["'12'", "12 layers"]);
    assert_refused(
        &paged("--spill-dir /nonexistent"),
        1,
        &["/nonexistent", "--spill-dir"],
    );
}

#[test]
fn a_wrong_value_in_the_environment_names_the_variable() {
    for (name, value) in [
        ("MEM_PRESSURE", "2"),
        ("KV_PAGE_SIZE", "1"),
        ("PREFETCH_DEPTH", "x"),
        ("PIN_LAYERS", "x"),
        ("METRICS_INTERVAL", "0"),
        ("ASYNC_PREFETCH", "maybe"),
        ("N_GPU_LAYERS", "some"),
    ] {
        let name = format!("LLAMA_ARG_{name}");
        let mut command = program();
        command.args(["-m", MODEL, "-no-cnv", "-p", "Once", "-n", "1"]);
        command.args(["--dynamic-layers", "--paged-kv"]);
        let output = command.env(&name, value).output().unwrap();
        assert_refused(&output, 2, &[&name, value]);
    }
}

#[test]
fn the_flags_of_paging_are_taken_by_the_environment() {
    let text = stdout(&complete("-n 20 -s 7 -c 256"));
    for variables in [
        &[("DYNAMIC_LAYERS", "1"), ("VRAM_BUDGET", "60%")][..],
        &[("PAGED_KV", "1"), ("KV_PAGE_SIZE", "64")],
        &[("DYNAMIC_LAYERS", "1"), ("MEM_PRESSURE", "1")],
        &[("DYNAMIC_LAYERS", "on"), ("ASYNC_PREFETCH", "0")],
        &[("DYNAMIC_LAYERS", "on"), ("PIN_LAYERS", "0,2-3")],
    ] {
        let mut command = program();
        command.args(["-m", MODEL, "-t", "1", "-no-cnv", "-p", "Once upon a time"]);
        command.args(["-n", "20", "-s", "7", "-c", "256", "-ub", "16"]);
        for (name, value) in variables {
            command.env(format!("LLAMA_ARG_{name}"), value);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{variables:?}: {output:?}");
        assert_eq!(stdout(&output), text, "{variables:?}");
    }
}

#[test]
fn the_budget_can_lie_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("budget");
    let with = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let path = file.display();
        complete(&format!(
            "-n 5 -s 7 -c 256 --dynamic-layers --vram-budget-file {path}"
        ))
    };
    assert!(with("\n 60 % \n").status.success());
    assert_refused(&with("1K"), 4, &["minimum"]);
    assert_refused(&with("lots"), 2, &["'lots'", "--vram-budget-file"]);
    assert_refused(&with(""), 2, &["--vram-budget-file"]);
}

#[test]
fn a_sampler_that_does_not_exist_is_refused() {
    assert_refused(&complete("--samplers zzz"), 2, &["--samplers", "'zzz'"]);
    assert_refused(&complete("--samplers top_k;zz"), 2, &["'zz'"]);
    assert_refused(&complete("--sampler-seq k!"), 2, &["'!'"]);
    let all = complete("-n 1 --samplers top_k;Temperature;min-p");
    assert!(all.status.success());
}

#[test]
fn the_demo_and_another_model_contradict_each_other() {
    for other in ["-m x.gguf", "-hf a/b", "-mu http://localhost/x"] {
        let word = other.split(' ').next().unwrap();
        let output = run(&format!("--demo {other}"));
        assert_refused(&output, 2, &[word, "--demo"]);
    }
    // A variable only sets a default, and the flag wins.
    let mut command = program();
    command.args(["--demo", "-n", "2"]);
    command.env("LLAMA_ARG_HF_REPO", "a/b");
    assert!(command.output().unwrap().status.success());
}

#[test]
fn senseless_budgets_are_refused() {
    for budget in ["0", "-1", "0%", "abc", "5X", "99999999T"] {
        let line = format!("--dynamic-layers --vram-budget {budget}");
        assert_refused(&complete(&line), 2, &["'--vram-budget'", budget]);
    }
    let threads = complete("--dynamic-layers --prefetch-threads 0");
    assert_refused(&threads, 2, &["'--prefetch-threads'", "'0'"]);
}

#[test]
fn a_budget_below_the_minimum_says_the_minimum() {
    let output = complete("-c 256 --dynamic-layers --vram-budget 1K");
    assert_refused(&output, 4, &["below the minimum of", "--vram-budget"]);
}

#[test]
fn what_is_not_built_is_refused() {
    for flag in ["-i", "-if", "--prompt-cache x", "-gan 2", "--spec-draft-p-split 0.2"] {
        let word = flag.split(' ').next().unwrap_or(flag);
        assert_refused(&complete(flag), 3, &[word, "not built yet"]);
    }
    let chat = |line: &str| {
        let words = line.split_whitespace();
        program()
            .args(["-m", MODEL, "-p", "x"])
            .args(words)
            .output()
            .unwrap()
    };
    for flag in [
        "-cnv",
        "-sys Hello",
        "-st",
        "--chat-template chatml",
        "-mli",
    ] {
        assert_refused(&chat(flag), 3, &["not built yet", "-no-cnv"]);
    }
    assert!(chat("-st -no-cnv -n 1").status.success());
    assert_refused(&chat("-st -no-cnv -cnv"), 3, &["-no-cnv"]);
}

#[test]
fn flags_that_contradict_paging_are_refused() {
    let paged = |line: &str| complete(&format!("--dynamic-layers {line}"));
    for flag in [
        "--fit on",
        "-fitt 100",
        "-dev none",
        "-ts 1,1",
        "-mg 1",
        "-sm row",
    ] {
        assert_refused(&paged(flag), 2, &["paging"]);
    }
    for flag in [
        "-ot x=CPU",
        "-cmoe",
        "-ncffn 2",
        "-lm mlock",
        "--lora x",
        "-bs",
    ] {
        assert_refused(&paged(flag), 3, &["paging", "not built yet"]);
    }
    assert_refused(
        &complete("--paged-kv -nkvo"),
        2,
        &["--no-kv-offload", "--paged-kv"],
    );
}

#[test]
fn environment_variables_are_read_and_flags_win() {
    let with = |name: &str, value: &str, line: &str| {
        let words = line.split_whitespace();
        let mut command = program();
        command
            .args(["-m", MODEL, "-no-cnv", "-p", "Once"])
            .args(words);
        command.env(name, value).output().unwrap()
    };
    assert_refused(
        &with("LLAMA_ARG_N_PREDICT", "x", ""),
        2,
        &["LLAMA_ARG_N_PREDICT"],
    );
    assert_eq!(stdout(&with("LLAMA_ARG_N_PREDICT", "0", "")), "\n\n");
    assert_refused(
        &with("LLAMA_ARG_VRAM_BUDGET", "0", "-n 1"),
        2,
        &["'LLAMA_ARG_VRAM_BUDGET' is '0'"],
    );
    assert_refused(
        &with("LLAMA_ARG_DYNAMIC_LAYERS", "perhaps", "-n 1"),
        2,
        &["'LLAMA_ARG_DYNAMIC_LAYERS' is 'perhaps'"],
    );
    let small = with(
        "LLAMA_ARG_VRAM_BUDGET",
        "1K",
        "-n 1 -c 256 --dynamic-layers",
    );
    assert_refused(&small, 4, &["minimum"]);
    let flag_wins = with(
        "LLAMA_ARG_VRAM_BUDGET",
        "1K",
        "-n 1 -c 256 --dynamic-layers --vram-budget 64",
    );
    assert!(flag_wins.status.success());
    let on = with(
        "LLAMA_ARG_DYNAMIC_LAYERS",
        "1",
        "-n 1 -c 256 --vram-budget 1K",
    );
    assert_refused(&on, 4, &["minimum"]);
    assert!(
        with("LLAMA_ARG_DYNAMIC_LAYERS", "0", "-n 1")
            .status
            .success()
    );
    // For every program of llama.cpp's at once; here it only sets a default.
    assert!(
        with("LLAMA_ARG_NO_KV_OFFLOAD", "1", "-n 1")
            .status
            .success()
    );
}

#[test]
fn a_configuration_file_cannot_end_the_program() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("llama.cpp");
    std::fs::create_dir(&folder).unwrap();
    let run = |text: &str| {
        std::fs::write(folder.join("config.ini"), text).unwrap();
        let mut command = program();
        command.env("XDG_CONFIG_HOME", home.path());
        command
            .args(["-m", MODEL, "-no-cnv", "-p", "Once"])
            .output()
            .unwrap()
    };
    assert_eq!(stdout(&run("[*]\nn-predict = 0\n")), "\n\n");
    let ends = run("[*]\nlist-devices = true\n");
    assert_refused(&ends, 2, &["config.ini", "--list-devices"]);
    assert_refused(&run("[*]\nn-predict = x\n"), 2, &["config.ini"]);
}
