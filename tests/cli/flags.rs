//! Flags: ours, upstream's, unknown ones, wrong values.

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
fn an_unknown_flag_is_met_with_the_nearest_one() {
    assert_refused(
        &run("--tempp 1"),
        2,
        &["'--tempp'", "did you mean '--temp'"],
    );
    assert_refused(&run("--vram-buget 5"), 2, &["did you mean '--vram-budget'"]);
    assert_refused(&run("--top_kk 5"), 2, &["did you mean '--top-k'"]);
    assert_refused(&run("--xyzzyxyzzy"), 2, &["unknown option", "--help"]);
    assert_refused(&run("hello"), 2, &["unexpected argument 'hello'", "-p"]);
    assert_refused(&run("plna -m x"), 2, &["did you mean 'plan'"]);
    assert_refused(&complete("-np 257"), 2, &["-np", "at most 256"]);
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
fn a_value_may_stand_behind_an_equals_sign() {
    for (line, same) in [
        ("-n=3 --seed=7 --temp=0.5", "-n 3 --seed 7 --temp 0.5"),
        ("-n 3 -s 7 --prompt=a=b", "-n 3 -s 7 -p a=b"),
        ("-n 3 --top_k=1", "-n 3 --top-k 1"),
        (
            "-n 1 -ngl=0 --grammar=root::=\"x\"",
            "-n 1 --grammar root::=\"x\"",
        ),
    ] {
        let output = complete(line);
        assert!(output.status.success(), "{line}: {output:?}");
        assert_eq!(stdout(&output), stdout(&complete(same)), "{line}");
    }
    assert_refused(&complete("--verbose=1"), 2, &["'--verbose' takes no value"]);
    assert_refused(&complete("--demo=1"), 2, &["'--demo' takes no value"]);
    let two = complete("--control-vector-layer-range=1");
    assert_refused(
        &two,
        2,
        &["'--control-vector-layer-range' takes two values"],
    );
    assert_refused(&complete("--tempp=1"), 2, &["did you mean '--temp'"]);
}

#[test]
fn a_number_with_something_behind_it_is_no_number() {
    for line in [
        "-n 4x",
        "-n 0x10",
        "-n 2.5",
        "-c 1e3",
        "--temp 0.8.1",
        "--temp 0,8",
        "--top-p nan",
        "-s 12abc",
        "-s 99999999999",
        "--top-k 5%",
        "-ngl 3x",
        "-l 5+1x",
        "-l 5",
        "-ts 1,2x",
        "--override-kv llama.block_count=int:5x",
        "--control-vector-layer-range 1 2x",
        "-t 2k",
        "--lora-scaled f:1x",
        "-Cr 0-3x",
        "--cpu-strict yes",
        "-fitt 5x",
        "--poll 5x",
        "-ptc 1.0",
        "--keep 99999999999",
        "--rope-freq-base 1e4x",
        "-s",
    ] {
        let flag = line.split(' ').next().unwrap();
        assert_refused(&complete(line), 2, &[flag]);
    }
    for line in [
        "--temp .5",
        "--temp 1e-1",
        "-s -1",
        "-s 4294967295",
        "-l 5-1.5",
        "-t 1",
    ] {
        let output = complete(&format!("-n 1 {line}"));
        assert!(output.status.success(), "{line}: {output:?}");
    }
    let mut command = program();
    command.args(["-m", MODEL, "-no-cnv", "-p", "Once"]);
    let output = command.env("LLAMA_ARG_N_PREDICT", "4x").output().unwrap();
    assert_refused(
        &output,
        2,
        &["'LLAMA_ARG_N_PREDICT' is '4x'", "not a number"],
    );
}

#[test]
fn a_wrong_word_is_met_with_the_nearest_that_the_flag_takes() {
    for (line, near) in [
        ("-ctk q8", "q8_0"),
        ("--cache-type-v=f61", "f16"),
        ("-fa of", "off"),
        ("-lm mmapp", "mmap"),
        ("-sm rows", "row"),
        ("--numa isolated", "isolate"),
        ("--rope-scaling liner", "linear"),
        ("--chat-template chatm", "chatml"),
        ("--samplers top_k;tempratur", "temperature"),
        ("-co autoo", "auto"),
        ("--log-colors onn", "on"),
        ("-lzm atuo", "auto"),
    ] {
        let mean = format!("did you mean '{near}'?");
        assert_refused(
            &complete(line),
            2,
            &[line.split([' ', '=']).next().unwrap(), &mean],
        );
    }
    assert_refused(&complete("-fa perhaps"), 2, &["it takes on, off, auto"]);
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
        ("--cold cpu --paged-kv", "--dynamic-layers"),
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
        ("--cold", "gpu"),
        ("--cold", ""),
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
    assert_refused(&complete("--image x"), 3, &["--image", "is refused"]);
    assert_refused(
        &complete("--draft-max 3"),
        3,
        &["--draft-max", "--spec-draft-n-max"],
    );
}

#[test]
fn groups_that_cannot_be_made_are_refused() {
    assert_refused(&complete("-gan 0"), 2, &["--grp-attn-n", "'0'"]);
    assert_refused(&complete("-gan 3"), 2, &["--grp-attn-w", "3", "'512'"]);
    assert_refused(&complete("-gan 4 -gaw 2"), 2, &["--grp-attn-w", "'2'"]);
    assert_refused(&complete("-gan 2 -gaw 0"), 2, &["--grp-attn-w", "'0'"]);
}

#[test]
fn flags_that_contradict_paging_are_refused() {
    let paged = |line: &str| complete(&format!("--dynamic-layers {line}"));
    for flag in [
        "--fit on",
        "-fitt 100",
        "-ts 1,1",
        "-mg 1",
        "-sm row",
        "-sm tensor",
    ] {
        assert_refused(&paged(flag), 2, &["paging"]);
    }
    let nothing = paged("-ot .*=CPU");
    assert_refused(&nothing, 2, &["nothing is left", "--override-tensor"]);
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
    assert_refused(&run("[*]\nn-predict = 4x\n"), 2, &["config.ini", "'4x'"]);
    assert_refused(
        &run("[*]\ncache-type-k = q8\n"),
        2,
        &["config.ini", "'q8_0'"],
    );
}

#[test]
fn a_log_that_cannot_be_opened_is_refused() {
    let output = complete("--log-file /nonexistent/log");
    assert_refused(&output, 1, &["/nonexistent/log", "--log-file"]);
}
