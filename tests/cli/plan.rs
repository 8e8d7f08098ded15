//! `plan` and `inspect`: what they say, against what a run takes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

use rpaged::calibration::{Calibration, Contention, FORMAT, KindRates, machine, store};
use serde_json::Value;

use super::{MODEL, assert_refused, last_line, program, run, stdout};

/// Runs `plan` for the demo's model with small batches.
fn plan(line: &str) -> std::process::Output {
    let words = ["plan", "-m", MODEL, "-t", "1", "-ub", "16"];
    let words = words.into_iter().chain(line.split_whitespace());
    program().args(words).output().unwrap()
}

fn json(output: &std::process::Output) -> Value {
    assert!(output.status.success(), "{}", last_line(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Rates that no machine has, and every machine can be predicted with.
fn write_rates(path: &Path, storage: f64) {
    let model = Path::new(MODEL);
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let q8_0 = KindRates {
        bytes_per_second: 1e9,
        products_per_second: BTreeMap::from([(16, 1e10)]),
    };
    let none = Contention {
        copy_slowdown: 1.0,
        compute_slowdown: 1.0,
    };
    let rates = Calibration {
        format: FORMAT,
        date: "2026-11-01T00:00:00.000Z".into(),
        date_seconds: now.as_secs(),
        program: store::program(),
        machine: machine(model, (1, 1), 2, false),
        method: "by hand".into(),
        measuring_seconds: 0.0,
        storage_bytes_per_second: Some(storage),
        memory_bytes_per_second: 1e9,
        kinds: BTreeMap::from([("q8_0".into(), q8_0)]),
        refused_kinds: BTreeSet::new(),
        attention_per_second: 1e12,
        attention_batch_per_second: BTreeMap::from([(16, 1e12)]),
        node_seconds: 1e-9,
        element_seconds: 1e-15,
        contention_decode: Some(none),
        contention_prefill: Some(none),
        link: None,
        observed_runs: 0,
    };
    store::write(path, &rates).unwrap();
}

#[test]
fn memory_is_what_a_run_takes() {
    for (budget, context) in [("1500K", 256), ("2M", 512), ("8M", 512), ("400K", 256)] {
        let line = format!("-c {context} --vram-budget {budget}");
        let said = json(&plan(&format!("{line} --json --no-speed")));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("run.jsonl");
        let output = super::complete(&format!(
            "{line} -n {} --ignore-eos --no-context-shift --dynamic-layers --paged-kv \
             --metrics-file {}",
            context - 20,
            file.display()
        ));
        assert!(output.status.success(), "{}", last_line(&output));
        let text = std::fs::read_to_string(&file).unwrap();
        let records: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let last = |kind: &str| {
            let mut of_kind = records.iter().filter(|record| record["type"] == kind);
            of_kind.next_back().unwrap()
        };
        let used = last("token")["vram_used_mb"].as_f64().unwrap() * f64::from(1 << 20);
        let plan = last("plan");
        // Growth that moves nothing is no plan worth a record.
        let is_new = plan["streamed_bytes"].as_u64() > Some(0);
        let minimum = plan["minimum_bytes"].as_f64().filter(|_| is_new);
        let minimum = minimum.unwrap_or_else(|| said["budget_bytes_min"].as_f64().unwrap());
        for (name, taken, said) in [
            ("what is in use", used, &said["memory"]["used_bytes"]),
            ("the minimum", minimum, &said["budget_bytes_min"]),
        ] {
            let said = said.as_f64().unwrap();
            let off = (said / taken - 1.0).abs();
            assert!(off <= 0.03, "{line}: {name} is {taken}, said was {said}");
        }
    }
}

#[test]
fn the_smallest_budget_runs_and_a_smaller_one_does_not() {
    let text = stdout(&plan("-c 256 --smallest"));
    let budget = text.split_whitespace().nth(1).unwrap();
    let kib: u64 = budget.strip_suffix('K').unwrap().parse().unwrap();
    let paged = "-c 256 -n 3 --dynamic-layers --paged-kv";
    let output = super::complete(&format!("{paged} --vram-budget {kib}K"));
    assert!(output.status.success(), "{}", last_line(&output));
    let less = plan(&format!("-c 256 --no-speed --vram-budget {}K", kib - 8));
    assert_refused(&less, 4, &["below the minimum", "--vram-budget"]);
    let answer = json(&plan("-c 256 --smallest --json"));
    assert_eq!(answer["budget_bytes"].as_u64().unwrap().div_ceil(1024), kib);
}

#[test]
fn speed_follows_from_bytes_and_rates() {
    let folder = tempfile::tempdir().unwrap();
    let rates = folder.path().join("rates.json");
    write_rates(&rates, 1e6);
    let flags = format!("-c 256 --vram-budget 1M --calibration {}", rates.display());
    let said = json(&plan(&format!("{flags} --json")));
    let decode = &said["decode"];
    let bytes = decode["pass_bytes"].as_f64().unwrap();
    assert!(bytes > 1e6, "{decode}");
    let speed = decode["tokens_per_second"].as_f64().unwrap();
    assert!((speed * bytes / 1e6 - 1.0).abs() < 0.01, "{decode}");
    let text = stdout(&plan(&flags));
    assert!(text.contains("travel in a pass, and bound it"), "{text}");
    assert!(text.contains("this"), "{text}");

    let wanted = 2.0 * speed;
    let answer = json(&plan(&format!("{flags} --for-speed {wanted} --json")));
    let reached = answer["decode_tokens_per_second"].as_f64().unwrap();
    assert!(reached >= wanted, "{answer}");
    let budget = answer["budget_bytes"].as_u64().unwrap();
    assert!(budget > 1 << 20, "{answer}");
    let output = plan(&format!("{flags} --for-speed 1e9"));
    assert_refused(&output, 2, &["no budget gives", "--for-speed"]);
}

#[test]
fn a_longer_context_wants_a_larger_budget() {
    let bytes = |tokens: u32| {
        let answer = json(&plan(&format!("--for-context {tokens} --json")));
        assert_eq!(answer["context_tokens"], tokens);
        answer["budget_bytes"].as_u64().unwrap()
    };
    assert!(bytes(2048) > bytes(256));
}

#[test]
fn a_calibration_that_cannot_be_kept_is_said_and_used() {
    let folder = tempfile::tempdir().unwrap();
    // A folder where the file should be: neither read nor written.
    let flags = format!(
        "-c 256 --vram-budget 8M --calibration {}",
        folder.path().display()
    );
    let output = plan(&format!("{flags} --json"));
    let said = json(&output);
    assert!(said["decode"]["tokens_per_second"].as_f64().unwrap() > 0.0);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("measured anew"), "{text}");
    assert!(text.contains("could not write the calibration"), "{text}");
}

#[test]
fn what_makes_no_sense_is_said() {
    for (line, code, parts) in [
        ("plan", 2, &["no model given"][..]),
        (
            "plan -m /nonexistent.gguf --no-speed",
            1,
            &["does not exist"],
        ),
        ("plan --demo --for-speed 0", 2, &["--for-speed", "'0'"]),
        ("plan --demo --for-speed fast", 2, &["--for-speed", "fast"]),
        ("plan --demo --for-context 0", 2, &["--for-context"]),
        ("plan --demo --depth", 2, &["--depth", "needs a value"]),
        (
            "plan --demo -c 256 --depth 257 --no-speed",
            2,
            &["--depth", "-c"],
        ),
        ("plan --demo --vram-budget 0", 2, &["--vram-budget"]),
        (
            "plan --demo --vram-budget 1K --no-speed",
            4,
            &["below the minimum"],
        ),
        ("plan --demo --metrics", 2, &["--metrics", "--json"]),
        (
            "plan --demo --smallest --for-speed 4",
            2,
            &["--for-speed", "cannot be combined"],
        ),
        ("plan --demo --nonsense", 2, &["--nonsense"]),
        ("plan --demo --version", 2, &["plan"]),
        ("inspect", 2, &["wants a model"]),
        ("inspect /nonexistent.gguf", 1, &["does not exist"]),
        ("inspect Cargo.toml", 1, &["not a GGUF"]),
    ] {
        assert_refused(&run(line), code, parts);
    }
    assert!(stdout(&run("plan --help")).contains("--for-speed"));
}

#[test]
fn inspect_counts_every_byte() {
    let said = json(&run(&format!("inspect {MODEL} --json -c 256 -ub 16")));
    let sum = |list: &Value, of: &dyn Fn(&Value) -> u64| -> u64 {
        list.as_array().unwrap().iter().map(of).sum()
    };
    let bytes = said["bytes"].as_u64().unwrap();
    assert_eq!(
        sum(&said["tensors"], &|group| group["bytes"].as_u64().unwrap()),
        bytes
    );
    assert_eq!(said["layers"], 12);
    let runs = &said["layer_bytes"];
    assert_eq!(runs.as_array().unwrap().len(), 1, "{runs}");
    // 12 layers of keys and values, one head of 64, in F16.
    assert_eq!(said["context"]["bytes_per_token"], 12 * 2 * 64 * 2);
    let q8 = json(&run(&format!(
        "inspect {MODEL} --json -c 256 -ctk q8_0 -ctv q8_0 -fa on"
    )));
    assert_eq!(q8["context"]["bytes_per_token"], 12 * 2 * 68);
    let text = stdout(&run(&format!("inspect {MODEL}")));
    for part in [
        "blk.N.ffn_down.weight",
        "paged",
        "outside",
        "KV cache, each token",
    ] {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
}

const Q4_K: u32 = 12;
const F32: u32 = 0;

/// The tensors of a model of 70 billion parameters: name, type, columns, rows.
fn tensors() -> Vec<(String, u32, u64, u64)> {
    let (embedding, feed_forward, vocabulary) = (8192, 28_672, 128_256);
    let mut tensors = vec![
        ("token_embd.weight".to_owned(), Q4_K, embedding, vocabulary),
        ("output.weight".to_owned(), Q4_K, embedding, vocabulary),
        ("output_norm.weight".to_owned(), F32, embedding, 1),
    ];
    for layer in 0..80 {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        tensors.extend([
            (name("attn_norm"), F32, embedding, 1),
            (name("ffn_norm"), F32, embedding, 1),
            (name("attn_q"), Q4_K, embedding, embedding),
            (name("attn_k"), Q4_K, embedding, 1024),
            (name("attn_v"), Q4_K, embedding, 1024),
            (name("attn_output"), Q4_K, embedding, embedding),
            (name("ffn_gate"), Q4_K, embedding, feed_forward),
            (name("ffn_up"), Q4_K, embedding, feed_forward),
            (name("ffn_down"), Q4_K, feed_forward, embedding),
        ]);
    }
    tensors
}

/// Writes the header of that model; its data is a hole.
fn write_header(path: &Path) -> u64 {
    let tensors = tensors();
    let mut out: Vec<u8> = Vec::new();
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    };
    let numbers = [
        ("llama.block_count", 80),
        ("llama.context_length", 131_072),
        ("llama.embedding_length", 8192),
        ("llama.feed_forward_length", 28_672),
        ("llama.attention.head_count", 64),
        ("llama.attention.head_count_kv", 8),
        ("llama.vocab_size", 128_256),
    ];
    let texts = [
        ("general.architecture", "llama"),
        ("tokenizer.ggml.model", "none"),
    ];
    out.extend(b"GGUF");
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend(((numbers.len() + texts.len() + 1) as u64).to_le_bytes());
    for (key, value) in texts {
        text(&mut out, key);
        out.extend(8u32.to_le_bytes());
        text(&mut out, value);
    }
    for (key, value) in numbers {
        text(&mut out, key);
        out.extend(4u32.to_le_bytes());
        out.extend(u32::to_le_bytes(value));
    }
    text(&mut out, "llama.attention.layer_norm_rms_epsilon");
    out.extend(6u32.to_le_bytes());
    out.extend(1e-5f32.to_le_bytes());
    let mut offset = 0u64;
    for (name, kind, columns, rows) in &tensors {
        text(&mut out, name);
        out.extend(2u32.to_le_bytes());
        out.extend(columns.to_le_bytes());
        out.extend(rows.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend(offset.to_le_bytes());
        let bytes = match *kind {
            Q4_K => columns * rows / 256 * 144,
            _ => columns * rows * 4,
        };
        offset += bytes.next_multiple_of(32);
    }
    let start = out.len().next_multiple_of(32) as u64;
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(&out).unwrap();
    file.set_len(start + offset).unwrap();
    offset
}

#[test]
fn a_model_of_70_billion_is_planned_by_its_header_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("70b.gguf");
    let bytes = write_header(&path);
    let name = path.display();
    let line = format!("plan -m {name} -c 8192 --vram-budget 16G --json --no-speed");
    let said = json(&run(&line));
    assert_eq!(said["model_bytes"], bytes);
    assert_eq!(said["layers"].as_array().unwrap().len(), 81);
    assert_eq!(said["parameters"], 70_553_706_496u64);
    let used = said["memory"]["used_bytes"].as_u64().unwrap();
    assert!((15 << 30..=16 << 30).contains(&used), "{used}");
    // Eight thousand tokens of 80 layers, eight heads of 128, keys and values in F16.
    let states = said["layers"].as_array().unwrap().iter().map(|layer| {
        let part = |name: &str| layer[name].as_u64().unwrap();
        part("states_resident_bytes") + part("states_streamed_bytes")
    });
    assert_eq!(states.sum::<u64>(), 8192 * 80 * 8 * 128 * 2 * 2);
    #[cfg(target_os = "linux")]
    assert!(resident_bytes(&path) < 64 << 20, "tensor data was read");
    // A hole has no rate.
    let holes = json(&run(&format!(
        "plan -m {name} -c 512 -ub 16 -t 1 --json --vram-budget 16G --calibration {}",
        folder.path().join("rates.json").display()
    )));
    assert_eq!(holes["decode"], Value::Null);
}

/// Bytes of the file that are in the page cache.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "mincore has no safe door")]
fn resident_bytes(path: &Path) -> u64 {
    let file = std::fs::File::open(path).unwrap();
    // SAFETY: nobody changes the file while it is mapped; nothing is read through it.
    let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
    let mut pages = vec![0u8; map.len().div_ceil(4096)];
    // SAFETY: the mapping is live, and the vector has a byte for each of its pages.
    let status = unsafe { libc::mincore(map.as_ptr() as *mut _, map.len(), pages.as_mut_ptr()) };
    assert_eq!(status, 0);
    pages.iter().filter(|page| **page & 1 == 1).count() as u64 * 4096
}
