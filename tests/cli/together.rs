//! llama.cpp's options together with paging: the text is that of llama.cpp alone.

use std::path::{Path, PathBuf};

use ggml_sys as sys;

use super::gguf::{self, Encoded, Value};
use super::{MODEL, assert_refused, complete, endless, program, stdout};

/// What the demo model is made of.
const WIDTH: i64 = 128;
const INNER: i64 = 384;
const LAYERS: usize = 12;

/// Paged in ways that leave room for what is kept beside.
const PAGED: [&str; 3] = [
    "--dynamic-layers --vram-budget 2",
    "--dynamic-layers --paged-kv --vram-budget 75%",
    "--paged-kv --kv-page-size 16",
];

/// Short, and the same bits paged or not.
fn text_of(line: &str) -> String {
    let output = complete(&format!("-n 40 -s 7 -c 256 --no-repack {line}"));
    assert!(output.status.success(), "{line}: {output:?}");
    stdout(&output)
}

fn matrix(name: &str, dims: &[i64], size: f32) -> Encoded {
    let count: i64 = dims.iter().product();
    let value = |index: i64| ((index * 37 % 101) as f32 / 50.0 - 1.0) * size;
    let values: Vec<f32> = (0..count).map(value).collect();
    gguf::encode(name, sys::GGML_TYPE_F32, dims, &values)
}

fn write(path: &Path, metadata: &[(&str, Value)], tensors: &[Encoded]) {
    let metadata = metadata.iter();
    let metadata: Vec<_> = metadata
        .map(|(key, value)| ((*key).to_owned(), value.clone()))
        .collect();
    gguf::write(path, &metadata, tensors);
}

/// A LoRA adapter for two matrices of each layer; `size` says how much it changes.
fn lora(folder: &Path, size: f32) -> PathBuf {
    let path = folder.join(format!("lora-{size}.gguf"));
    let mut tensors = Vec::new();
    for layer in 0..LAYERS {
        for (name, rows) in [("attn_q", WIDTH), ("ffn_up", INNER)] {
            let name = format!("blk.{layer}.{name}.weight");
            tensors.push(matrix(&format!("{name}.lora_a"), &[WIDTH, 2], size));
            tensors.push(matrix(&format!("{name}.lora_b"), &[2, rows], size));
        }
    }
    let metadata = [
        ("general.type", Value::Text("adapter")),
        ("general.architecture", Value::Text("llama")),
        ("adapter.type", Value::Text("lora")),
        ("adapter.lora.alpha", Value::F32(4.0)),
    ];
    write(&path, &metadata, &tensors);
    path
}

/// A control vector for all layers but the first.
fn control_vector(folder: &Path, width: i64) -> PathBuf {
    let path = folder.join(format!("vector-{width}.gguf"));
    let vectors = (1..LAYERS).map(|layer| matrix(&format!("direction.{layer}"), &[width], 0.2));
    let metadata = [("general.architecture", Value::Text("controlvector"))];
    write(&path, &metadata, &vectors.collect::<Vec<_>>());
    path
}

#[test]
fn adapters_give_the_same_text_paged_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let (large, small) = (lora(folder.path(), 0.3), lora(folder.path(), 0.2));
    let (large, small) = (large.display(), small.display());
    let vector = control_vector(folder.path(), WIDTH);
    let vector = vector.display();
    let plain = text_of("");
    for line in [
        format!("--lora {large}"),
        format!("--lora {large},{small}"),
        format!("--lora-scaled {large}:0.5,{small}:-2"),
        format!("--control-vector {vector}"),
        format!("--control-vector-scaled {vector}:-1.5 --control-vector-layer-range 3 9"),
        format!("--lora {large} --control-vector {vector} --control-vector-layer-range 1 4"),
    ] {
        let adapted = text_of(&line);
        assert_ne!(adapted, plain, "{line}");
        for paged in PAGED {
            assert_eq!(
                text_of(&format!("{paged} {line}")),
                adapted,
                "{paged} {line}"
            );
        }
    }
}

#[test]
fn an_adapter_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let narrow = control_vector(folder.path(), WIDTH / 2);
    let narrow = narrow.display();
    for paged in ["", PAGED[0]] {
        let with = |line: &str| complete(&format!("-c 256 {paged} {line}"));
        let nowhere = with("--lora /nonexistent");
        assert_refused(&nowhere, 1, &["adapter '/nonexistent'", "--lora"]);
        let nowhere = with("--control-vector /nonexistent");
        assert_refused(&nowhere, 1, &["vector '/nonexistent'", "--control-vector"]);
        let model = with(&format!("--lora {MODEL}"));
        assert_refused(&model, 1, &[MODEL, "general.type", "--lora"]);
        let narrow = with(&format!("--control-vector {narrow}"));
        assert_refused(&narrow, 1, &["64 values", "128", "--control-vector"]);
    }
}

#[test]
fn a_budget_too_small_for_adapters_is_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let path = lora(folder.path(), 0.3);
    let vector = control_vector(folder.path(), WIDTH);
    // Follows the minimum that each refusal names to one that is enough, in KiB.
    let enough = |more: &str| -> f64 {
        let mut kib = 1.0;
        for _ in 0..8 {
            let line = format!("-c 256 -n 1 --dynamic-layers --vram-budget {kib:.0}K {more}");
            let output = complete(&line);
            if output.status.success() {
                return kib;
            }
            assert_refused(&output, 4, &["below the minimum of", "--vram-budget"]);
            let said = super::last_line(&output);
            let (_, after) = said.split_once("minimum of ").unwrap();
            let mib: f64 = after.split(' ').next().unwrap().parse().unwrap();
            assert!(mib * 1024.0 > kib, "{said}");
            kib = (mib * 1024.0).ceil();
        }
        panic!("no minimum that is named is enough for '{more}'");
    };
    let plain = enough("");
    for (flag, path) in [("--lora", path), ("--control-vector", vector)] {
        let file_kib = std::fs::metadata(&path).unwrap().len() as f64 / 1024.0;
        let with = enough(&format!("{flag} {}", path.display()));
        // The file has names as well.
        assert!(
            with > plain + file_kib / 2.0,
            "{flag}: {with} KiB, {plain} without"
        );
    }
}

#[test]
fn options_of_placing_and_loading_change_no_letter() {
    let plain = text_of("");
    for line in [
        "-ot ffn_up=CPU",
        "-ot blk\\.[0-2]\\.=CPU,attn_q=CPU",
        "-cmoe",
        "-ncmoe 3",
        "-ncffn 4",
        "-lm mlock",
        "-lm mmap+mlock",
        "-lm none",
        "-lm dio",
        "--lazy-mode on",
        "--lazy-mode off",
        "--check-tensors",
        "--no-host",
        "--no-op-offload",
        "--op-offload",
        "-np 2",
        "-sm none",
        "-sm layer",
        "--device none",
        "--backend-sampling",
        "--repack",
    ] {
        for paged in PAGED {
            let line = format!("{paged} {line}");
            assert_eq!(text_of(&line), plain, "{line}");
        }
    }
}

#[test]
fn tensors_placed_by_hand_are_counted_by_the_budget() {
    let half = "-n 1 -c 256 --dynamic-layers --vram-budget 55%";
    assert!(complete(half).status.success());
    let placed = complete(&format!("{half} -ot ffn=CPU"));
    assert_refused(&placed, 4, &["below the minimum of", "llama.cpp keeps"]);
    let pinned = complete("--dynamic-layers -ot blk\\.3\\.=CPU --pin-layers 3");
    assert_refused(&pinned, 2, &["'3'", "not paged", "--override-tensor"]);
    for wrong in ["ffn", "[=CPU", "ffn=GPU"] {
        let refused = complete(&format!("--dynamic-layers -ot {wrong}"));
        assert_refused(&refused, 2, &[&format!("-ot {wrong}")]);
    }
}

#[test]
fn damaged_weights_are_found_when_they_are_to_be_checked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.gguf");
    let mut bytes = std::fs::read(MODEL).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4096].fill(0xff);
    std::fs::write(&path, bytes).unwrap();
    for paged in ["", PAGED[0], PAGED[1]] {
        let mut command = program();
        command
            .arg("-m")
            .arg(&path)
            .args(["-no-cnv", "-p", "x", "-n", "1", "-ub", "16"]);
        command
            .args(paged.split_whitespace())
            .arg("--check-tensors");
        assert_refused(
            &command.output().unwrap(),
            1,
            &["damaged.gguf", "invalid data"],
        );
    }
}

#[test]
#[cfg(target_os = "linux")]
fn locked_weights_are_locked() {
    let locked = |line: &str| -> u64 {
        let mut child = endless(&format!("-c 256 -ub 16 {line}")).spawn().unwrap();
        let mut first = [0; 32];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmLck:"))
            .unwrap();
        let kib = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        // Where the system refuses, the user is told.
        if said.contains("not all locked") {
            u64::MAX
        } else {
            kib
        }
    };
    let line = "--dynamic-layers --vram-budget 2";
    assert_eq!(locked(line), 0);
    let kib = locked(&format!("{line} -lm mlock"));
    assert!(kib > 512, "{kib} KiB");
}
