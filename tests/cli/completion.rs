//! Completions: what stands on standard output, and that it is the same again.

use super::{MODEL, assert_refused, complete, last_line, program, run, stdout};

#[test]
fn a_seed_gives_the_same_text_again_and_another_one_another() {
    let first = complete("-n 40 -s 7");
    assert!(first.status.success());
    let text = stdout(&first);
    assert!(
        text.starts_with("Once upon a time") && text.ends_with("\n\n"),
        "{text}"
    );
    assert_eq!(text, stdout(&complete("-n 40 -s 7")));
    assert_ne!(text, stdout(&complete("-n 40 -s 8")));
}

#[test]
fn paging_changes_no_byte() {
    let stock = stdout(&complete("-n 60 -s 7 -c 128 --no-repack"));
    for flags in [
        "--dynamic-layers --vram-budget 50%",
        "--paged-kv --vram-budget 1",
        "--dynamic-layers --paged-kv --vram-budget 70%",
        "--dynamic-layers --paged-kv --vram-budget 1G",
        "--dynamic-layers --vram-budget 50% --no-async-prefetch",
        "--dynamic-layers --vram-budget 80% -ngl 0 --prefetch-threads 1",
        "--dynamic-layers --vram-budget 60% --load-mode dio",
        "--dynamic-layers --vram-budget 60% --load-mode none --prefetch-depth 3",
        "--dynamic-layers --vram-budget 70% --pin-layers 0,5-6 --mem-pressure 1",
        "--dynamic-layers --paged-kv --vram-budget 60% --kv-page-size 16 --spill-dir .",
        "--dynamic-layers --paged-kv --vram-budget 60% --mem-pressure 0",
    ] {
        let paged = complete(&format!("-n 60 -s 7 -c 128 {flags}"));
        assert!(paged.status.success(), "{flags}: {}", last_line(&paged));
        assert_eq!(stdout(&paged), stock, "{flags}");
    }
}

#[test]
fn the_closing_lines_are_upstreams() {
    let output = complete("-n 5");
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    for part in [
        "prompt eval time =",
        "        eval time =",
        "sampler seed:",
        "sampler chain:",
    ] {
        assert!(log.contains(part), "no '{part}' in: {log}");
    }
}

#[test]
fn the_prompt_is_shown_unless_it_is_not_wanted() {
    assert!(!stdout(&complete("-n 5 -s 1 --no-display-prompt")).contains("Once upon"));
    // The prompt itself ends in the string that ends the text.
    // Nothing to generate: not even the prompt is shown.
    assert_eq!(stdout(&complete("-n 0")), "\n\n");
    assert_eq!(
        stdout(&complete("-n 1 -s 1 -r time")),
        "Once upon a time\n\n"
    );
}

#[test]
fn the_end_of_a_story_is_marked() {
    assert!(stdout(&complete("-n 400 -s 2")).ends_with(" [end of text]\n\n\n"));
    let endless = stdout(&complete("-n 300 -s 2 --ignore-eos -c 128 --context-shift"));
    assert!(!endless.contains("[end of text]"));
}

#[test]
fn a_full_context_stops_or_is_shifted() {
    let length = |line: &str| stdout(&complete(&format!("-s 2 --ignore-eos -c 256 {line}"))).len();
    assert!(length("-n 400") < length("-n 400 --context-shift"));
    assert!(length("-n -1") < length("-n 400 --context-shift --keep -1"));
}

#[test]
fn a_prompt_comes_from_a_file_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt");
    std::fs::write(&file, "Once upon a time\n").unwrap();
    let mut command = program();
    command
        .args(["-m", MODEL, "-t", "1", "-n", "20", "-s", "3", "-f"])
        .arg(&file);
    let output = command.output().unwrap();
    assert_eq!(stdout(&output), stdout(&complete("-n 20 -s 3")));
}

#[test]
fn a_prompt_too_long_is_refused() {
    let prompt = "the fox ran ".repeat(100);
    let mut command = program();
    let output = command
        .args(["-m", MODEL, "-c", "256", "-p", &prompt])
        .output()
        .unwrap();
    assert_refused(&output, 1, &["prompt is too long", "max 252", "-c"]);
}

#[test]
fn a_prompt_between_the_context_asked_for_and_its_rounded_size_is_decoded() {
    // The demo's tokenizer makes more than 300 and fewer than 508 tokens of this.
    let prompt = "owl kite ".repeat(70);
    for paging in [&[][..], &["--dynamic-layers", "--paged-kv"]] {
        let output = program()
            .args([
                "-m", MODEL, "-no-cnv", "-c", "300", "-n", "2", "-p", &prompt,
            ])
            .args(paging)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(stdout(&output).starts_with(&prompt));
    }
}

#[test]
fn standard_input_is_never_waited_for() {
    let output = program()
        .args(["-m", MODEL, "-no-cnv", "-n", "3", "-s", "1"])
        .write_stdin("this is not read")
        .output()
        .unwrap();
    assert!(output.status.success());
    assert!(!stdout(&output).contains("this is not read"));
}

#[test]
fn the_show_tells_a_story_and_closes_with_three_lines() {
    let output = run("--demo");
    assert!(output.status.success(), "{}", last_line(&output));
    let story = stdout(&output);
    assert!(
        story.starts_with("Once upon a time, there was a"),
        "{story}"
    );
    assert!(story.contains("The end."), "{story}");
    let lines = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<_> = lines.lines().collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(
        lines[0].starts_with("model:   2.5") && lines[1].contains("50 %"),
        "{lines:?}"
    );
    assert!(lines[2].contains("per second"), "{lines:?}");
    // Whatever of it is paged, there is a budget in which it runs.
    for part in ["--dynamic-layers", "--paged-kv"] {
        let output = run(&format!("--demo {part}"));
        assert_eq!(stdout(&output), story, "{part}: {}", last_line(&output));
    }
    let loud = run("--demo -v -n 3 -s 4");
    assert!(String::from_utf8_lossy(&loud.stderr).contains("eval time"));
}

#[test]
fn the_demo_model_stands_for_a_model_file() {
    let flags = "-n 20 -s 5 -t 1 -no-cnv -p Once";
    let from_file = run(&format!("-m {MODEL} {flags}"));
    let built_in = run(&format!("--demo {flags}"));
    assert!(built_in.status.success());
    assert_eq!(stdout(&built_in), stdout(&from_file));
    let paged = run(&format!(
        "--demo {flags} -c 256 -ub 16 --dynamic-layers --vram-budget 50%"
    ));
    assert!(paged.status.success(), "{}", last_line(&paged));
}
