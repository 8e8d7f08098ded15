//! `rpaged-cli bench`: formats that llama-bench's readers read, budgets, plots, and going on
//! after an end.

use std::path::{Path, PathBuf};
use std::process::Output;

use super::{MODEL, assert_refused, last_line, program, stdout};

/// llama-bench's fields in its order.
const THEIRS: &str = "build_commit,build_number,cpu_info,gpu_info,backends,model_filename,\
    model_type,model_size,model_n_params,n_batch,n_ubatch,n_threads,cpu_mask,cpu_strict,poll,\
    type_k,type_v,n_gpu_layers,n_cpu_moe,split_mode,main_gpu,no_kv_offload,flash_attn,devices,\
    tensor_split,tensor_buft_overrides,load_mode,lazy_mode,embeddings,no_op_offload,no_host,\
    repack,fit_target,fit_min_ctx,n_prompt,n_gen,n_depth,test_time,avg_ns,stddev_ns,avg_ts,\
    stddev_ts";

/// Runs `bench` on the demo model, with the words of `line`: one thread and small batches,
/// so that what llama.cpp computes with fits a small budget.
fn bench(line: &str) -> Output {
    let small = [
        "bench", "-m", MODEL, "-t", "1", "-ub", "16", "-p", "8", "-n", "4",
    ];
    program()
        .args(small)
        .args(line.split_whitespace())
        .output()
        .unwrap()
}

#[track_caller]
fn done(line: &str) -> String {
    let output = bench(line);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{line}: {}",
        last_line(&output)
    );
    stdout(&output)
}

#[track_caller]
fn rows(text: &str) -> Vec<serde_json::Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn the_table_is_llama_benchs() {
    let text = done("-r 2");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[0],
        "| model                          |       size |     params | backend    | threads | \
         n_ubatch |            test |                  t/s |"
    );
    assert_eq!(
        lines[1],
        "| ------------------------------ | ---------: | ---------: | ---------- | ------: | \
         -------: | --------------: | -------------------: |"
    );
    assert!(lines[2].contains("|             pp8 |") && lines[3].contains("|             tg4 |"));
    assert!(
        lines[2].starts_with("| llama ?B Q8_0                  |   2.54 MiB |     2.49 M | CPU ")
    );
    assert!(lines[5].starts_with("build: "), "{text}");
}

#[test]
fn csv_has_llama_benchs_columns_first() {
    let text = done("-r 2 -o csv -ctk f16,q8_0 -d 0,16 -pg 8,2");
    let mut lines = text.lines();
    let header = lines.next().unwrap();
    let theirs: String = THEIRS.split_whitespace().collect();
    assert!(
        header.starts_with(&format!("{theirs},rpaged_version,")),
        "{header}"
    );
    let count = header.split(',').count();
    let rows: Vec<Vec<&str>> = lines.map(|line| line.split("\",\"").collect()).collect();
    assert_eq!(rows.len(), 2 * 2 * 3);
    assert!(rows.iter().all(|row| row.len() == count));
    let column = |name: &str| header.split(',').position(|other| other == name).unwrap();
    let tests: Vec<_> = rows
        .iter()
        .map(|row| ["type_k", "n_depth", "n_prompt", "n_gen"].map(|name| row[column(name)]))
        .take(6)
        .collect();
    assert_eq!(
        tests,
        [
            ["f16", "0", "8", "0"],
            ["f16", "0", "0", "4"],
            ["f16", "0", "8", "2"],
            ["f16", "16", "8", "0"],
            ["f16", "16", "0", "4"],
            ["f16", "16", "8", "2"],
        ]
    );
}

#[test]
fn json_is_one_array_of_objects_with_samples() {
    let text = done("-r 3 -o json --vram-budgets 60% --stock");
    let rows: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(rows.len(), 4);
    for row in &rows {
        let names: Vec<&str> = THEIRS.split(',').map(str::trim).collect();
        assert!(names.iter().all(|name| row.get(name).is_some()), "{row}");
        let samples = row["samples_ns"].as_array().unwrap();
        let sum: f64 = samples.iter().map(|ns| ns.as_f64().unwrap()).sum();
        assert_eq!(samples.len(), 3);
        assert!(
            (sum / 3.0 - row["avg_ns"].as_f64().unwrap()).abs() <= 1.0,
            "{row}"
        );
    }
    let paged: Vec<_> = rows
        .iter()
        .filter(|row| row["paging"] == "weights+kv")
        .collect();
    assert_eq!(paged.len(), 2);
    for row in paged {
        assert!(row["ratio_to_stock"].as_f64().unwrap() > 0.0);
        assert!(
            row["bytes_per_token"].as_u64().unwrap() > 0,
            "something travels: {row}"
        );
        assert!(row["law_ts"].as_f64().unwrap() > 0.0);
        assert!(row["streamed_bytes"].as_u64() > row["resident_bytes"].as_u64().map(|_| 0));
    }
    assert!(rows[0]["vram_budget"].is_null() && rows[0]["budget_bytes"].is_null());
}

#[test]
fn who_computes_what_is_cold_is_an_axis_of_the_paged_cases() {
    let line = "-r 1 --vram-budgets 60%,90% --stock --cold cpu,stream --dynamic-layers";
    let output = bench(&format!("{line} -o jsonl -oe md"));
    let mut rows = rows(&stdout(&output));
    rows.retain(|row| row["n_gen"] == 0);
    let shown = |row: &serde_json::Value| {
        let of = |name| row[name].as_str().map(str::to_owned);
        (of("vram_budget"), of("cold"))
    };
    let paged = |cold: &str, budget: &str| (Some(budget.to_owned()), Some(cold.to_owned()));
    let shown: Vec<_> = rows.iter().map(shown).collect();
    assert_eq!(
        shown,
        [
            (None, None),
            paged("cpu", "60%"),
            paged("cpu", "90%"),
            paged("stream", "60%"),
            paged("stream", "90%"),
        ]
    );
    assert!(
        rows[1..].iter().all(|row| row["ratio_to_stock"].is_f64()),
        "{rows:?}"
    );
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("| cold   | ") && said.contains("| stream | "),
        "{said}"
    );
    // Each of them is told once.
    for word in ["cpu", "stream"] {
        let sentence = format!("'--cold {word}' changes nothing");
        assert_eq!(said.matches(&sentence).count(), 1, "{said}");
    }
    let text = done("-r 1 -o sql --vram-budgets 60% --cold stream");
    let base = rusqlite::Connection::open_in_memory().unwrap();
    base.execute_batch(&text).unwrap();
    let of_stream = "SELECT COUNT(*) FROM llama_bench WHERE cold = 'stream'";
    let count = base.query_row(of_stream, [], |row| row.get::<_, i64>(0));
    assert_eq!(count.unwrap(), 2);
}

#[test]
fn a_context_is_filled_once_and_read_from_its_file_then() {
    let folder = tempfile::tempdir().unwrap();
    // Whether the depth was computed.
    let computes = |flags: &str| {
        let place = folder.path().display();
        let output = bench(&format!(
            "-r 1 -d 24 -o jsonl --progress {flags} --depth-dir {place}"
        ));
        let rows = rows(&stdout(&output));
        assert!(rows.iter().all(|row| row["avg_ts"].is_f64()), "{rows:?}");
        String::from_utf8_lossy(&output.stderr).contains("depth run")
    };
    assert!(computes("--vram-budgets 60%"));
    let files = || std::fs::read_dir(folder.path()).unwrap();
    let file = files().next().unwrap().unwrap().path();
    let name = file.to_string_lossy();
    assert!(name.ends_with("-d24-f16-f16-fa-auto.state"), "{name}");
    let whole = std::fs::read(&file).unwrap();
    // Paged or not, under any budget it is the same.
    assert!(!computes("--vram-budgets 60%,90%"));
    assert!(!computes(""));
    assert_eq!(std::fs::read(&file).unwrap(), whole);
    // Other types are not, and what was cut is computed anew.
    assert!(computes("-ctk q8_0"));
    assert_eq!(files().count(), 2);
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    assert!(computes("--vram-budgets 60%"));
    assert_eq!(std::fs::read(&file).unwrap().len(), whole.len());
    assert!(!computes("--vram-budgets 60%"));
    assert_refused(
        &bench("-d 8 --depth-dir /nonexistent"),
        1,
        &["/nonexistent", "--depth-dir"],
    );
}

#[test]
fn sql_loads_into_sqlite() {
    let text = done("-r 1 -o sql --vram-budgets 5%,60% --stock");
    let base = rusqlite::Connection::open_in_memory().unwrap();
    base.execute_batch(&text).unwrap();
    // A second sweep goes into the same table.
    base.execute_batch(&text).unwrap();
    let one = |query: &str| {
        base.query_row(query, [], |row| row.get::<_, i64>(0))
            .unwrap()
    };
    assert_eq!(one("SELECT COUNT(*) FROM llama_bench"), 12);
    assert_eq!(one("SELECT COUNT(*) FROM llama_bench WHERE avg_ts > 0"), 8);
    assert_eq!(
        one("SELECT COUNT(*) FROM llama_bench WHERE avg_ts IS NULL AND note != ''"),
        4
    );
    assert_eq!(one("SELECT model_size FROM llama_bench LIMIT 1"), 2_658_816);
}

#[test]
fn a_budget_that_does_not_do_is_a_row_that_says_why() {
    let rows = rows(&done("-r 2 -o jsonl --vram-budgets 2%,60%"));
    assert_eq!(rows.len(), 4);
    assert!(rows[0]["avg_ts"].is_null());
    assert!(
        rows[0]["note"]
            .as_str()
            .unwrap()
            .contains("below the minimum"),
        "{}",
        rows[0]
    );
    assert_eq!(rows[0]["model_size"], 2_658_816);
    assert!(rows[2]["avg_ts"].as_f64().unwrap() > 0.0);
}

#[test]
fn when_nothing_runs_the_first_reason_ends_it() {
    let output = bench("-r 2 --vram-budgets 1%,2%");
    assert_refused(&output, 4, &["below the minimum"]);
    assert!(
        stdout(&output).contains("below the minimum"),
        "the rows are shown, too"
    );
}

#[test]
fn a_plot_shows_every_series() {
    let folder = tempfile::tempdir().unwrap();
    let svg = folder.path().join("curve.svg");
    let line = format!(
        "-r 2 --vram-budgets 2%,60%,90%,150% --stock -d 0,16 --plot {}",
        svg.display()
    );
    done(&line);
    let text = std::fs::read_to_string(&svg).unwrap();
    assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"));
    let shown = text.lines().map(str::trim).collect::<Vec<_>>();
    for label in [
        "pp8 paged",
        "pp8 @ d16 paged",
        "tg4 paged",
        "tg4 @ d16 paged",
        "stock",
        "law",
        "cannot run",
        "tokens per second",
        "memory budget, MiB",
    ] {
        assert!(shown.contains(&label), "'{label}' is not in the picture");
    }
    // Three budgets ran, in two panels of two series each; each legend has a point as well.
    let circles = text.matches("<circle").count();
    assert_eq!(circles, 2 * 2 * (3 + 1));
    let png = folder.path().join("curve.png");
    done(&format!("-r 1 --vram-budgets 60% --plot {}", png.display()));
    assert!(std::fs::read(&png).unwrap().starts_with(b"\x89PNG\r\n"));
}

#[test]
fn what_cannot_be_written_is_found_out_before_the_first_run() {
    // Below a file nothing can be written, not even by root.
    for flag in ["--plot", "--output-file", "--resume"] {
        let path = format!("{MODEL}/results.svg");
        let output = bench(&format!("--vram-budgets 60% {flag} {path}"));
        assert_refused(&output, 1, &["results.svg", flag]);
        assert_eq!(stdout(&output), "");
    }
    assert_refused(
        &bench("--vram-budgets 60% --plot a.gif"),
        2,
        &["a.gif", ".svg"],
    );
    assert_refused(&bench("--plot a.svg"), 2, &["--vram-budgets"]);
}

#[test]
fn bad_input_is_a_sentence() {
    for (line, code, parts) in [
        (
            "--vram-budgets 50%,none",
            2,
            &["'none'", "--vram-budgets"][..],
        ),
        ("--vram-budget -5", 2, &["--vram-budget", "more than zero"]),
        (
            "--n-promts 5",
            2,
            &["--n-promts", "did you mean '--n-prompt'"],
        ),
        ("-ot a=CPU --vram-budgets 50%", 2, &["-ot", "budget"]),
        ("-p 1-5000 -b 1-5000", 2, &["cases"]),
        ("-ctv q8_0 -fa off -n 0", 1, &["flash_attn"]),
        (
            "--pin-layers 99 --vram-budgets 50%",
            2,
            &["99", "--pin-layers"],
        ),
    ] {
        assert_refused(&bench(line), code, parts);
    }
    let words = ["bench", "-m", MODEL, "-p", "0", "-n", "0"];
    let nothing = program().args(words).output().unwrap();
    assert_refused(&nothing, 2, &["nothing to measure", "-pg"]);
    let missing = program()
        .args(["bench", "-m", "none.gguf"])
        .output()
        .unwrap();
    assert_refused(&missing, 1, &["none.gguf"]);
    assert_refused(
        &program().arg("bench").output().unwrap(),
        2,
        &["-m", "--demo"],
    );
}

#[test]
fn a_sweep_goes_on_where_its_journal_ends() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, results) = (folder.path().join("journal"), folder.path().join("a.jsonl"));
    let line = format!(
        "-r 3 --vram-budgets 60%,90% -o none --resume {} --output-file {}",
        journal.display(),
        results.display()
    );
    done(&line);
    let text = std::fs::read_to_string(&journal).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 1 + 3 * 4, "{text}");
    // As after a crash in the middle of a line.
    let cut = lines[..6].join("\n") + "\n" + &lines[6][..20];
    std::fs::write(&journal, cut).unwrap();
    std::fs::remove_file(&results).unwrap();
    done(&line);
    let again = std::fs::read_to_string(&journal).unwrap();
    let again: Vec<&str> = again.lines().collect();
    assert_eq!(again.len(), 1 + 3 * 4);
    assert_eq!(again[..6], lines[..6], "what was measured stays");
    for row in rows(&std::fs::read_to_string(&results).unwrap()) {
        assert_eq!(row["samples_ns"].as_array().unwrap().len(), 3, "{row}");
    }
    let other = bench(&format!("{line} -ctk q8_0"));
    assert_refused(&other, 2, &["another sweep", "--resume"]);
    let cold = bench(&format!("{line} --cold stream"));
    assert_refused(&cold, 2, &["case 1 of 4 is another one"]);
    let fewer = bench(&line.replace("60%,90%", "60%"));
    assert_refused(&fewer, 2, &["it has 4 cases, the command line makes 2"]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_shows_what_was_measured_and_how_to_go_on() {
    use std::process::{Command, Stdio};
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal");
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("rpaged-cli"));
    let child = command
        .args([
            "bench", "-m", MODEL, "-t", "1", "-p", "0", "-n", "64", "-r", "10000",
        ])
        .args(["-o", "jsonl", "--resume"])
        .arg(&journal)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = || std::fs::read_to_string(&journal).map_or(0, |text| text.lines().count());
    while lines() < 3 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let sent = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", last_line(&output));
    let rows = rows(&stdout(&output));
    assert!(rows[0]["samples_ns"].as_array().unwrap().len() >= 2);
    let said = last_line(&output);
    assert!(
        said.contains("of 10000 runs") && said.contains("journal"),
        "{said}"
    );
}

#[test]
fn nothing_but_results_is_written_without_a_terminal() {
    let output = bench("-r 1 -o csv -oe md");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.starts_with("| model "), "{said}");
    let output = bench("-r 1");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let output = bench("-r 1 --progress");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.lines()
            .any(|line| line.starts_with("rpaged-cli bench: run 1/2: ")),
        "{said}"
    );
}

#[test]
fn help_and_versions_are_texts() {
    let text = stdout(&program().args(["bench", "--help"]).output().unwrap());
    for flag in ["-ctk, --cache-type-k", "--vram-budgets", "--resume", "-oe"] {
        assert!(text.contains(flag), "{flag}");
    }
    let text = stdout(&program().args(["bench", "--version"]).output().unwrap());
    assert!(text.starts_with("rpaged-cli "), "{text}");
}

/// Runs a script of `benches/sweeps` on the demo model, in small.
#[cfg(unix)]
fn sweep(name: &str, folder: &Path, flags: &[&str]) -> Output {
    let top = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut command = std::process::Command::new("sh");
    command.arg(top.join("benches/sweeps").join(format!("{name}.sh")));
    command
        .args(["-n", "2", "-o"])
        .arg(folder)
        .arg("--")
        .args(flags);
    command.env("RPAGED_CLI", assert_cmd::cargo::cargo_bin("rpaged-cli"));
    command.output().unwrap()
}

#[cfg(unix)]
#[test]
fn the_sweep_scripts_end_in_a_table_and_a_plot() {
    for (name, flags, columns) in [
        (
            "saturation",
            &["-r", "1"][..],
            "| budget, MiB | tokens/s | to stock | law |",
        ),
        (
            "efficiency",
            &["-r", "1"],
            "| phase | memory, % of the model |",
        ),
        ("long-context", &["-r", "1"], "| tokens in the context |"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let output = sweep(name, folder.path(), flags);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{name} (jq has to be installed): {said}"
        );
        let text = stdout(&output);
        assert!(text.contains(columns), "{name}: {text}");
        let svg = std::fs::read_to_string(folder.path().join(format!("{name}.svg"))).unwrap();
        assert!(
            svg.contains("<svg") && svg.trim_end().ends_with("</svg>"),
            "{name}"
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let output = sweep("saturation", folder.path(), &["--nonsense"]);
    assert!(!output.status.success());
}
