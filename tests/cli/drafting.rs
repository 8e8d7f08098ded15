//! Drafting from outside: the text is the same, and what cannot be done is a sentence.

use std::path::PathBuf;
use std::process::Output;
use std::sync::LazyLock;

use super::{MODEL, assert_refused, complete, last_line, schema, stdout};

/// The demo model under another name: what it drafts for itself is nearly always right.
static DRAFT: LazyLock<String> = LazyLock::new(|| {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("draft.gguf");
    let beside = path.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::copy(MODEL, &beside).unwrap();
    std::fs::rename(&beside, &path).unwrap();
    path.to_str().unwrap().to_owned()
});

const SIMPLE: &str =
    "--spec-type ngram-simple --spec-ngram-simple-size-n 2 --spec-ngram-simple-size-m 4";
const MAP_K: &str =
    "--spec-type ngram-map-k --spec-ngram-map-k-size-n 1 --spec-ngram-map-k-size-m 4";
const MAP_K4V: &str =
    "--spec-type ngram-map-k4v --spec-ngram-map-k4v-size-n 1 --spec-ngram-map-k4v-size-m 3";
const MOD: &str = "--spec-type ngram-mod --spec-ngram-mod-n-match 2 --spec-ngram-mod-n-min 1";

fn with_model(more: &str) -> String {
    format!("-md {} {more}", *DRAFT)
}

/// All ways to draft.
fn ways() -> Vec<String> {
    let mut ways = [SIMPLE, MAP_K, MAP_K4V, MOD, "--spec-type ngram-cache"].map(str::to_owned);
    let mut all = vec![
        with_model(""),
        with_model("--spec-draft-n-max 12"),
        with_model("--spec-type draft-simple,ngram-simple --spec-ngram-simple-size-n 2"),
        "--spec-default".to_owned(),
    ];
    all.append(&mut ways.as_mut_slice().to_vec());
    all
}

/// The text of a run that has to succeed.
#[track_caller]
fn text(line: &str) -> String {
    let output = complete(line);
    assert!(output.status.success(), "{line}: {}", last_line(&output));
    stdout(&output)
}

#[test]
fn the_likeliest_text_is_the_same_however_it_is_drafted() {
    let line = "--temp 0 -n 150 -c 256";
    let expected = text(line);
    for way in ways() {
        assert_eq!(text(&format!("{line} {way}")), expected, "{way}");
        for paging in [
            "--dynamic-layers --vram-budget 5",
            "--dynamic-layers --paged-kv --vram-budget 5 --kv-page-size 16",
            "--paged-kv --vram-budget 5 --no-async-prefetch",
        ] {
            let found = text(&format!("{line} {way} {paging}"));
            assert_eq!(found, expected, "{way} {paging}");
        }
    }
}

#[test]
fn a_seed_gives_the_same_text_with_drafts_whatever_samples() {
    let folder = tempfile::tempdir().unwrap();
    let grammar = folder.path().join("grammar");
    std::fs::write(&grammar, r#"root ::= [a-zA-Z ,."?!]+"#).unwrap();
    for sampling in [
        "--temp 0.8 -s 5".to_owned(),
        "--temp 1.5 -s 6 --top-k 0".to_owned(),
        "-s 7 --repeat-penalty 1.3 --presence-penalty 0.5 --repeat-last-n 32".to_owned(),
        "-s 8 --dry-multiplier 0.8 --xtc-probability 0.3".to_owned(),
        "-s 9 --mirostat 2".to_owned(),
        "-s 10 -l 40-100 -l 41+3".to_owned(),
        format!("-s 11 --grammar-file {}", grammar.display()),
    ] {
        let line = format!("-n 80 -c 256 {sampling}");
        let expected = text(&line);
        for way in [with_model("--spec-draft-n-max 8"), MAP_K.to_owned()] {
            assert_eq!(text(&format!("{line} {way}")), expected, "{sampling} {way}");
        }
    }
}

#[test]
fn a_text_ends_in_the_middle_of_a_draft() {
    let way = with_model("--spec-draft-n-max 7");
    for tokens in 1..20 {
        let line = format!("--temp 0 -c 256 -n {tokens}");
        assert_eq!(text(&format!("{line} {way}")), text(&line), "-n {tokens}");
    }
    for antiprompt in ["village", "lived", "walk.", "a", "The", "y."] {
        let line = format!("--temp 0 -c 256 -n 100 -r {antiprompt}");
        let expected = text(&line);
        assert!(expected.trim_end().len() < text("--temp 0 -c 256 -n 100").trim_end().len());
        assert_eq!(text(&format!("{line} {way}")), expected, "-r {antiprompt}");
    }
    // The end of the story lies in a draft as well.
    let line = "--temp 0 -c 512 -n 400";
    let story = text(&format!("{line} {way}"));
    assert!(story.ends_with(" [end of text]\n\n\n"), "{story}");
    assert_eq!(story, text(line));
}

#[test]
fn a_context_that_fills_up_is_shifted_or_stops_as_without_drafts() {
    for line in [
        "-c 64 -n 300 --context-shift",
        "-c 64 -n 300 --context-shift --keep 10",
        "-c 64 -n -1",
        "-c 64 -n -2",
        "-c 64 -n 300 -b 8 --context-shift",
    ] {
        let line = format!("--temp 0 --ignore-eos {line}");
        let expected = text(&line);
        for way in [with_model("--spec-draft-n-max 9"), MAP_K.to_owned()] {
            for paging in ["", "--dynamic-layers --paged-kv --vram-budget 5"] {
                let found = text(&format!("{line} {way} {paging}"));
                assert_eq!(found, expected, "{line} {way} {paging}");
            }
        }
    }
}

/// A run with metrics, and its records.
fn measured(line: &str) -> (Output, Vec<serde_json::Value>) {
    let output = complete(&format!("{line} --metrics"));
    let records = schema::records(&String::from_utf8_lossy(&output.stderr));
    (output, records)
}

#[test]
fn metrics_tell_what_was_drafted_and_what_the_draft_model_takes() {
    let way = with_model("--spec-draft-n-max 6");
    let paging = "--dynamic-layers --paged-kv --vram-budget 5";
    let (output, records) = measured(&format!("--temp 0 -c 256 -n 100 {way} {paging}"));
    assert!(output.status.success());
    let sum = |field: &str| -> u64 {
        let tokens = schema::of(&records, "token").into_iter();
        tokens.map(|record| record[field].as_u64().unwrap()).sum()
    };
    let summary = schema::of(&records, "summary")[0];
    assert_eq!(summary["drafted_tokens"], sum("drafted_tokens"));
    assert_eq!(summary["accepted_tokens"], sum("accepted_tokens"));
    let (drafted, accepted) = (sum("drafted_tokens"), sum("accepted_tokens"));
    assert!(
        accepted > 50 && accepted <= drafted,
        "{accepted} of {drafted}"
    );
    // Each pass but the prompt's yields a token and what was accepted.
    let graphs = summary["graphs"].as_u64().unwrap();
    assert!(graphs < 100 - accepted + 8, "{graphs} graphs");
    let plan = schema::of(&records, "plan")[0];
    let bytes = |field: &str| plan[field].as_u64().unwrap();
    assert!(
        bytes("draft_bytes") > 2 << 20,
        "the weights alone are larger"
    );
    assert!(bytes("arena_bytes_used") > bytes("draft_bytes"));
    for record in schema::of(&records, "plan") {
        let used = record["arena_bytes_used"].as_u64().unwrap();
        assert!(used <= record["budget_bytes"].as_u64().unwrap());
    }
    let (_, records) = measured("-n 5");
    assert_eq!(schema::of(&records, "summary")[0]["drafted_tokens"], 0);
}

#[test]
fn a_budget_without_room_for_the_draft_model_says_how_much_it_takes() {
    for paging in ["--dynamic-layers", "--paged-kv --dynamic-layers"] {
        let line = format!("-n 5 -c 256 {} {paging} --vram-budget 3", with_model(""));
        let parts = ["draft model", "MiB", "--vram-budget", "--spec-draft-model"];
        assert_refused(&complete(&line), 4, &parts);
    }
}

#[test]
fn a_way_to_draft_that_does_not_exist_is_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let cut = folder.path().join("cut.gguf");
    std::fs::write(&cut, &std::fs::read(MODEL).unwrap()[..100_000]).unwrap();
    let cut = cut.to_str().unwrap();
    let with = |line: &str| line.to_owned();
    for (line, code, parts) in [
        (
            with("-md /nonexistent"),
            1,
            ["/nonexistent", "--spec-draft-model"],
        ),
        (with("-md Cargo.toml"), 1, ["Cargo.toml", "GGUF"]),
        (format!("-md {cut}"), 1, ["cut.gguf", "cut off"]),
        (
            format!("-md {MODEL}"),
            2,
            ["the model itself", "--spec-draft-model"],
        ),
        (
            with("--spec-type draft-simple"),
            2,
            ["none is given", "--spec-draft-model"],
        ),
        (with("--spec-type draft-mtp"), 3, ["draft-mtp", "ngram"]),
        (with("--spec-type nonsense"), 2, ["--spec-type", "nonsense"]),
        (with_model("-td 600"), 2, ["600", "--spec-draft-threads"]),
        (with_model("-ub 1"), 2, ["-ub", "more than 1"]),
        (
            with_model("--spec-draft-sampling probabilistic"),
            3,
            ["probabilistic", "greedy"],
        ),
        (
            format!("{SIMPLE} --backend-sampling"),
            3,
            ["--backend-sampling", "drafting"],
        ),
        (
            with_model("--spec-synth-len 2"),
            3,
            ["--spec-synth-len", "wrong text"],
        ),
        (
            with_model("--dynamic-layers -ngld 1"),
            2,
            ["'--spec-draft-ngl'", "main memory"],
        ),
    ] {
        assert_refused(&complete(&format!("-n 3 {line}")), code, &parts);
    }
    let output = super::program()
        .args(["-m", MODEL, "-p", "x", "-no-cnv"])
        .env("LLAMA_ARG_SPEC_TYPE", "draft-eagle3")
        .output()
        .unwrap();
    assert_refused(&output, 3, &["draft-eagle3"]);
}

#[test]
fn a_draft_models_own_options_change_how_it_drafts_and_nothing_else() {
    let expected = text("--temp 0 -n 60 -c 256");
    for more in [
        "-td 2 -tbd 1",
        "--spec-draft-type-k q8_0 --spec-draft-type-v q8_0",
        "--spec-draft-p-min 0.95 --spec-draft-n-min 2 --spec-draft-n-max 9",
        "--spec-draft-cpu-range 0-0 --spec-draft-cpu-strict 1 --spec-draft-poll 0",
        "--spec-draft-cpu-mask 1 --spec-draft-prio-batch 0 --spec-draft-cpu-strict-batch 0",
        "--spec-draft-ngl 0 --spec-draft-device none --spec-draft-cpu-moe",
        "-np 2",
    ] {
        let line = format!("--temp 0 -n 60 -c 256 {}", with_model(more));
        assert_eq!(text(&line), expected, "{more}");
    }
    // What it is not sure of it does not draft.
    let drafted = |more: &str| {
        let line = format!("--temp 0.8 -s 3 -n 60 -c 256 {}", with_model(more));
        let (_, records) = measured(&line);
        let summary = schema::of(&records, "summary")[0];
        summary["drafted_tokens"].as_u64().unwrap()
    };
    assert!(drafted("--spec-draft-p-min 0.95") < drafted(""));
    assert!(drafted("--spec-draft-n-max 1") < drafted("--spec-draft-n-max 9"));
}
