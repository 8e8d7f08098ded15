//! The prompt cache: what a failure costs, and that paging changes no byte of it.

use std::path::Path;

use super::{assert_refused, complete, last_line, stdout};

const PAGED: &str = "--dynamic-layers --paged-kv --vram-budget 60%";

fn with(cache: &Path, line: &str) -> std::process::Output {
    let line = format!("-s 7 -n 12 -c 256 --no-repack {line} --prompt-cache");
    let output = complete(&format!("{line} {}", cache.display()));
    assert!(output.status.success(), "{line}: {}", last_line(&output));
    output
}

#[test]
fn paging_changes_no_byte_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let read = |name: &str| std::fs::read(path(name)).unwrap();
    for all in ["", "--prompt-cache-all"] {
        let (stock, paged) = (format!("stock{all}"), format!("paged{all}"));
        with(&path(&stock), all);
        with(&path(&paged), &format!("{all} {PAGED}"));
        assert!(read(&stock).len() > 1000);
        assert!(read(&stock) == read(&paged), "the files differ ({all})");
        // Each goes on from what the other has saved.
        let here = stdout(&with(&path(&paged), &format!("{all} --prompt-cache-ro")));
        let there = stdout(&with(
            &path(&stock),
            &format!("{all} --prompt-cache-ro {PAGED}"),
        ));
        assert_eq!(here, there);
    }
}

#[test]
fn what_was_saved_at_any_end_can_be_gone_on_from() {
    let folder = tempfile::tempdir().unwrap();
    for (name, line) in [
        ("all", "-n 0 --prompt-cache-all"),
        // Positions that were moved together are no plain text any more.
        ("moved", "-n 60 -gan 2 -gaw 16 --prompt-cache-all"),
        (
            "drafts",
            "--spec-type ngram-simple --spec-ngram-simple-size-n 2 --prompt-cache-all",
        ),
    ] {
        let cache = folder.path().join(name);
        with(&cache, line);
        // Once more: now the context holds all that is saved, or nothing is decoded.
        with(&cache, line);
        let plain = stdout(&complete("-s 7 -n 12 -c 256 --no-repack --temp 0"));
        let resumed = stdout(&with(&cache, "--prompt-cache-ro --temp 0"));
        assert_eq!(plain, resumed, "{name}");
    }
}

#[test]
fn a_pipe_keeps_no_state() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    super::make_pipe(&pipe);
    let line = format!("-n 2 --prompt-cache {}", pipe.display());
    assert_refused(&complete(&line), 1, &["pipe"]);
}

#[test]
fn nothing_but_the_cache_is_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let real = folder.path().join("real");
    let link = folder.path().join("link");
    std::fs::write(&real, "").unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    with(&link, "");
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(std::fs::metadata(&real).unwrap().len() > 1000);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn a_cache_that_cannot_be_written_is_a_warning_and_the_old_one_stays() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("missing").join("cache");
    let output = with(&cache, "");
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        log.contains("could not save the prompt cache") && log.contains("missing"),
        "{log}"
    );
    assert_eq!(
        stdout(&output),
        stdout(&complete("-s 7 -n 12 -c 256 --no-repack"))
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_that_may_not_grow_leaves_the_old_cache() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    with(&cache, "");
    let before = std::fs::read(&cache).unwrap();
    // Files of at most 8 blocks of 512 bytes.
    let script = format!(
        "ulimit -f 8; exec '{}' -m '{}' -t 1 -s 7 -n 4 -c 256 -p 'Another text' \
         --prompt-cache-all --prompt-cache '{}'",
        assert_cmd::cargo::cargo_bin("rpaged-cli").display(),
        super::MODEL,
        cache.display()
    );
    let output = std::process::Command::new("sh")
        .args(["-c", &script])
        .env("HOME", "/nonexistent")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(log.contains("could not save the prompt cache"), "{log}");
    assert!(std::fs::read(&cache).unwrap() == before);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_cache_that_cannot_be_read_is_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let refused = |parts: &[&str]| {
        for paging in ["", PAGED] {
            let line = format!("-n 4 -c 256 {paging} --prompt-cache {}", cache.display());
            let mut all = vec![cache.to_str().unwrap(), "--prompt-cache"];
            all.extend(parts);
            assert_refused(&complete(&line), 1, &all);
        }
    };
    std::fs::write(&cache, "once upon a time").unwrap();
    refused(&["could not use the prompt cache"]);
    std::fs::remove_file(&cache).unwrap();
    with(&cache, "-ctk f32");
    refused(&["another model's"]);
    std::fs::remove_file(&cache).unwrap();
    with(&cache, "");
    let whole = std::fs::read(&cache).unwrap();
    for size in [3, 9, 13, 40, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&cache, &whole[..size]).unwrap();
        refused(&["damaged"]);
    }
    // Positions stand behind twelve bytes, the tokens, the architecture's name, and the
    // numbers of streams and cells.
    let tokens = usize::from(whole[8]);
    let mut damaged = whole.clone();
    damaged[12 + 4 * tokens + 4 + "llama".len() + 8] = 200;
    std::fs::write(&cache, damaged).unwrap();
    refused(&["position 200"]);
    std::fs::remove_file(&cache).unwrap();
    std::fs::create_dir(&cache).unwrap();
    refused(&["that is a folder"]);
}

#[test]
fn random_damage_to_a_cache_is_a_sentence_or_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    with(&cache, "");
    let whole = std::fs::read(&cache).unwrap();
    // A small generator of our own: the same damage on every machine.
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    for round in 0..24 {
        let mut damaged = whole.clone();
        for _ in 0..4 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let at = usize::try_from(state % 300).unwrap();
            damaged[at] = state.to_le_bytes()[7];
        }
        std::fs::write(&cache, &damaged).unwrap();
        let paging = if round % 2 == 0 { "" } else { PAGED };
        let line = format!("-n 4 -c 256 {paging} --prompt-cache-ro --prompt-cache");
        let output = complete(&format!("{line} {}", cache.display()));
        let code = output.status.code();
        assert!(matches!(code, Some(0 | 1 | 70)), "{round}: {output:?}");
    }
}
