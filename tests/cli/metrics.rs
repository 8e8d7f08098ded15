//! Metrics of real runs: every line is a record of the format, however the run ends, and
//! what is generated is the same.

use serde_json::Value;

use super::schema::{of, records};
use super::{MODEL, complete, program, run, stdout};

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

// So small that the KV cache is streamed as well.
const PAGED: &str = "-n 30 -s 7 -c 256 --dynamic-layers --paged-kv --vram-budget 30%";

#[test]
fn a_paged_run_gives_records_and_the_same_text() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.jsonl");
    let silent = complete(PAGED);
    let line = format!("{PAGED} --metrics --metrics-file {}", file.display());
    let output = complete(&line);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stdout(&output), stdout(&silent));

    let text = stderr(&output);
    let all = records(&text);
    let tokens = of(&all, "token");
    assert_eq!(tokens.len(), 30);
    for (index, token) in tokens.iter().enumerate() {
        assert_eq!(token["generated_tokens"], index + 1);
        assert!(token["prompt_tokens"].as_u64() > Some(2));
        let layers = |key: &str| token[key].as_u64().unwrap();
        assert_eq!(
            layers("gpu_layers_active") + layers("cpu_layers_active"),
            13
        );
        assert!(token["vram_used_mb"].as_f64() <= token["vram_total_mb"].as_f64());
    }
    let moved = |field: &str| -> u64 { tokens.iter().map(|t| t[field].as_u64().unwrap()).sum() };
    assert!(moved("bytes_storage") + moved("bytes_link") > 0);
    assert!(moved("bytes_write_back") > 0);
    assert!(tokens[29]["seconds_per_token_predicted"].is_number());
    assert_eq!(of(&all, "plan")[0]["reason"], "start");
    assert!(!of(&all, "log").is_empty());
    let summary = all.last().unwrap();
    assert_eq!(summary["exit_reason"], "done");
    assert_eq!(summary["generated_tokens"], 30);
    assert!(summary["bytes_storage"].as_u64().unwrap() >= moved("bytes_storage"));

    let in_file = std::fs::read_to_string(&file).unwrap();
    records(&in_file);
    let without_log: String = text
        .split_inclusive('\n')
        .filter(|line| !line.starts_with(r#"{"type":"log""#))
        .collect();
    assert_eq!(in_file, without_log, "the file gets the same records");
}

#[test]
fn a_stock_run_can_be_compared() {
    let output = complete("-n 10 -s 7 --metrics");
    let all = records(&stderr(&output));
    assert_eq!(of(&all, "plan").len(), 0);
    for token in of(&all, "token") {
        for field in [
            "vram_used_mb",
            "bytes_storage",
            "gpu_layers_active",
            "compute_ms",
        ] {
            assert_eq!(token[field].as_f64(), Some(0.0), "{field}");
        }
        assert_eq!(token["seconds_per_token_predicted"], Value::Null);
        assert!(token["ram_used_mb"].as_f64() > Some(5.0));
        assert!(token["tokens_per_sec"].as_f64() > Some(0.0));
    }
    assert_eq!(stdout(&output), stdout(&complete("-n 10 -s 7")));
}

#[test]
fn a_record_can_tell_of_several_tokens_and_can_be_indented() {
    let all = records(&stderr(&complete(
        "-n 20 --ignore-eos --metrics --metrics-interval 8",
    )));
    let generated: Vec<_> = of(&all, "token")
        .iter()
        .map(|token| token["generated_tokens"].as_u64().unwrap())
        .collect();
    assert_eq!(generated, [8, 16, 20]);
    let text = stderr(&complete("-n 3 --ignore-eos --metrics --metrics-pretty"));
    let stream = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
    let all: Vec<_> = stream.map(Result::unwrap).collect();
    assert_eq!(of(&all, "token").len(), 3);
    assert!(text.contains("\n  \"type\": \"summary\",\n"), "{text}");
}

#[test]
fn the_show_with_metrics_closes_with_objects() {
    let output = run("--demo --metrics");
    let all = records(&stderr(&output));
    let said: Vec<_> = of(&all, "log")
        .iter()
        .map(|log| log["text"].clone())
        .collect();
    assert_eq!(said.len(), 3, "{said:?}");
    assert_eq!(stdout(&output), stdout(&run("--demo")));
}

#[test]
fn metrics_can_be_asked_for_by_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.jsonl");
    let mut command = program();
    command.args([
        "-m",
        MODEL,
        "-t",
        "1",
        "-no-cnv",
        "-p",
        "Once",
        "-n",
        "6",
        "--ignore-eos",
    ]);
    command
        .env("LLAMA_ARG_METRICS", "1")
        .env("LLAMA_ARG_METRICS_FILE", &file)
        .env("LLAMA_ARG_METRICS_INTERVAL", "3");
    let output = command.output().unwrap();
    assert_eq!(of(&records(&stderr(&output)), "token").len(), 2);
    let in_file = std::fs::read_to_string(&file).unwrap();
    assert_eq!(of(&records(&in_file), "token").len(), 2);
}

/// Asserts that the run failed with one `error` record; returns all records.
#[track_caller]
fn assert_fails(line: &str, code: u8, reason: &str, part: &str) -> Vec<Value> {
    let output = run(line);
    assert_eq!(output.status.code(), Some(i32::from(code)), "{line}");
    let all = records(&stderr(&output));
    let errors = of(&all, "error");
    assert_eq!(errors.len(), 1, "{line}: {all:?}");
    let sentence = errors[0]["sentence"].as_str().unwrap();
    assert!(sentence.contains(part), "{sentence}");
    assert_eq!(errors[0]["exit_code"], code);
    let summary = all.last().unwrap();
    assert_eq!(summary["exit_reason"], reason);
    assert_eq!(summary["exit_code"], code);
    all
}

#[test]
fn what_ends_a_run_is_an_object_as_well() {
    let model = format!("-m {MODEL} -no-cnv -p Once -n 2");
    assert_fails("--metrics --nonsense", 2, "usage", "--nonsense");
    assert_fails("--nonsense --metrics", 2, "usage", "--nonsense");
    assert_fails("--metrics --metrics-interval", 2, "usage", "needs a value");
    assert_fails("--metrics --mem-pressure 2", 2, "usage", "--mem-pressure");
    assert_fails("--metrics -p x", 2, "usage", "no model given");
    assert_fails(
        "--metrics -m /nonexistent -p x",
        1,
        "failed",
        "does not exist",
    );
    let image = format!("{model} --metrics --image x");
    assert_fails(&image, 3, "not built", "--image");
    let small = format!("{model} -c 256 --dynamic-layers --vram-budget 1K --metrics");
    assert_fails(&small, 4, "memory", "minimum");
    let unwritable = format!("{model} --metrics --metrics-file /nonexistent/f");
    assert_fails(&unwritable, 1, "failed", "--metrics-file");
}

#[test]
fn an_abort_of_llama_is_an_object_as_well() {
    let model = format!("-m {MODEL} -no-cnv -p Once -n 2 --metrics --override-kv");
    for (key, part) in [
        // While the model loads; while it computes, on several threads at once.
        ("llama.expert_count=int:1000", "n_expert"),
        (
            "llama.attention.layer_norm_rms_epsilon=float:-1 -t 4",
            "eps",
        ),
    ] {
        let all = assert_fails(&format!("{model} {key}"), 1, "failed", part);
        assert!(!of(&all, "log").is_empty(), "what came before is not lost");
    }
}

#[test]
fn without_metrics_on_standard_error_a_file_tells_of_the_end_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.jsonl");
    let output = run(&format!(
        "-m /nonexistent -p x --metrics-file {}",
        file.display()
    ));
    super::assert_refused(&output, 1, &["does not exist"]);
    let all = records(&std::fs::read_to_string(&file).unwrap());
    let kinds: Vec<_> = all.iter().map(|record| record["type"].clone()).collect();
    assert_eq!(kinds, ["error", "summary"]);
    // What is wrong with the command line itself is told there as well.
    for line in [
        "--vram_buget 1G",
        "-n",
        "-n x",
        "--vram-budget 1G",
        "--grammar x",
        "x",
    ] {
        let path = file.display();
        for line in [
            format!("--metrics-file {path} {line}"),
            format!("-p Once --metrics-file={path} {line}"),
        ] {
            std::fs::remove_file(&file).unwrap();
            let output = run(&line);
            assert_eq!(output.status.code(), Some(2), "{line}");
            let all = records(&std::fs::read_to_string(&file).unwrap());
            assert_eq!(all[0]["type"], "error", "{line}");
            let sentence = format!("error: {}", all[0]["sentence"].as_str().unwrap());
            assert_eq!(sentence, super::last_line(&output), "{line}");
            assert_eq!(all[1]["exit_reason"], "usage", "{line}");
        }
    }
}

#[test]
fn a_line_that_is_not_understood_costs_no_file_its_content() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.jsonl");
    let wanted = format!("--metrics-file {}", file.display());
    let text = || std::fs::read_to_string(&file).unwrap();
    assert!(complete(&format!("-n 2 {wanted}")).status.success());
    let before = text();
    // One that is no line, and one whose model is not there.
    for (line, reason) in [("--typo", "usage"), ("-m /nonexistent -p x", "failed")] {
        let from = text().len();
        assert!(!run(&format!("{wanted} {line}")).status.success());
        assert!(text().starts_with(&before), "{line}");
        let added = records(&text()[from..]);
        assert_eq!(added.len(), 2, "{line}");
        assert_eq!(added[0]["type"], "error", "{line}");
        assert_eq!(added[1]["exit_reason"], reason, "{line}");
    }
    // A run begins anew.
    assert!(complete(&format!("-n 2 {wanted}")).status.success());
    let anew = records(&text());
    assert!(of(&anew, "error").is_empty() && of(&anew, "summary").len() == 1);
    // What is of another kind is left alone.
    std::fs::write(&file, "GGUF, say").unwrap();
    assert!(!run(&format!("{wanted} --typo")).status.success());
    assert!(!run(&format!("{wanted} -p x")).status.success());
    assert_eq!(text(), "GGUF, say");
}

#[test]
fn texts_that_are_printed_have_no_metrics() {
    let output = run("--metrics --version");
    assert_eq!(stderr(&output), "");
    assert_eq!(stdout(&output), stdout(&run("--version")));
    // A value is no flag.
    let prompt = complete("-n 1 -r --metrics");
    assert!(!stderr(&prompt).contains("\"type\""));
}

#[test]
fn a_line_that_is_printed_past_the_log_is_an_object() {
    // llama.cpp's parser prints this itself.
    const LINE: &str = "Read 4 bytes from binary file";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt");
    std::fs::write(&file, "Once").unwrap();
    let line = format!("-n 1 -bf {}", file.display());
    let plain = stderr(&complete(&line));
    let count = plain.matches(LINE).count();
    assert!(count > 0, "{plain}");
    let all = records(&stderr(&complete(&format!("{line} --metrics"))));
    let logs = of(&all, "log");
    let is_it = |log: &&&Value| log["text"].as_str().unwrap().contains(LINE);
    assert_eq!(logs.iter().filter(is_it).count(), count);
    let seed = logs
        .iter()
        .find(|log| log["text"].as_str().unwrap().starts_with("sampler seed:"));
    assert_eq!(seed.unwrap()["level"], "info");
}

#[test]
fn the_log_file_is_as_without_metrics() {
    let folder = tempfile::tempdir().unwrap();
    let log = |name: &str, more: &str| {
        let path = folder.path().join(name);
        let line = format!("-n 3 -s 1 --log-file {} {more}", path.display());
        assert!(complete(&line).status.success());
        let text = std::fs::read_to_string(path).unwrap();
        // Without times and durations.
        let lines = text.lines().map(|line| {
            let line = line.split(" = ").next().unwrap_or_default();
            let words = line.split(' ');
            let words = words.filter(|word| !word.starts_with(|c: char| c.is_ascii_digit()));
            words.collect::<Vec<_>>().join(" ")
        });
        lines.collect::<Vec<_>>()
    };
    let plain = log("plain", "");
    assert!(plain.iter().any(|line| line.starts_with("I sampler seed")));
    assert_eq!(log("metrics", "--metrics"), plain);
}

#[test]
fn the_examples_of_the_readme_run() {
    let has_jq = std::process::Command::new("jq").arg("--version").output();
    if !has_jq.is_ok_and(|output| output.status.success()) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let readme = include_str!("../../README.md").replace("\r\n", "\n");
    let (_, section) = readme.split_once("\n## Metrics\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let mut program = program();
    program.current_dir(folder.path());
    let output = program
        .args(["--demo", "-n", "20", "--metrics-file", "run.jsonl"])
        .output()
        .unwrap();
    assert!(output.status.success());
    let mut examples = 0;
    for example in section.lines().filter(|line| line.starts_with("jq ")) {
        let output = std::process::Command::new("sh")
            .args(["-c", example])
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{example}: {output:?}");
        assert!(!output.stdout.is_empty(), "{example} says nothing");
        examples += 1;
    }
    assert!((3..=5).contains(&examples), "{examples} examples");
}
