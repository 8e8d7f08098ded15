//! Stamps the version: our own, the commit, what carries llama.cpp, features.
//!
//! That everything is there which llama.cpp's build needs is checked in
//! `vendor/preflight`: this script may run late.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Sets `RPAGED_VERSION_STAMP` for the crate.
fn main() {
    // What the binary is made of; the stamp says `-dirty` when any of it was changed.
    let sources = [
        "src",
        "vendor/ggml-sys",
        "vendor/preflight",
        "build.rs",
        "Cargo.toml",
        "Cargo.lock",
        ".cargo",
    ];
    for path in sources {
        println!("cargo::rerun-if-changed={path}");
    }
    let mut parts = Vec::new();
    parts.extend(commit(&sources).map(|commit| format!("commit {commit}")));
    let lock = std::fs::read_to_string("Cargo.lock").unwrap_or_default();
    let carrier = locked_version(&lock, "llama-cpp-sys-2").unwrap_or("of unknown version");
    parts.push(format!("llama.cpp of llama-cpp-sys-2 {carrier}"));
    let features = features();
    if !features.is_empty() {
        parts.push(format!("features {}", features.join(" ")));
    }
    let version = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    println!(
        "cargo::rustc-env=RPAGED_VERSION_STAMP={version} ({})",
        parts.join(", ")
    );
}

/// The commit that is checked out, with `-dirty` when `sources` differ from it; none
/// outside a checkout of this very repository.
fn commit(sources: &[&str]) -> Option<String> {
    let top = git(&["rev-parse", "--show-toplevel"])?;
    let here = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from)?;
    if Path::new(&top).canonicalize().ok()? != here.canonicalize().ok()? {
        return None;
    }
    // A commit or a checkout writes to one of these; a missing file would be taken for
    // a changed one on each build.
    let branch = git(&["symbolic-ref", "-q", "HEAD"]);
    let watched = ["HEAD", "logs/HEAD", "packed-refs"].map(str::to_owned);
    for name in watched.into_iter().chain(branch) {
        if let Some(path) = git(&["rev-parse", "--git-path", &name])
            && Path::new(&path).exists()
        {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let commit = git(&["rev-parse", "--short", "HEAD"])?;
    let changes = git(&[&["status", "--porcelain", "--"], sources].concat())?;
    Some(if changes.is_empty() {
        commit
    } else {
        commit + "-dirty"
    })
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success().then_some(text)
}

/// The version of `package` in the text of a `Cargo.lock`.
fn locked_version<'a>(lock: &'a str, package: &str) -> Option<&'a str> {
    let (_, after) = lock.split_once(&format!("name = \"{package}\"\nversion = \""))?;
    after.split('"').next()
}

/// Our own features that are switched on, in lower case.
fn features() -> Vec<String> {
    env::vars()
        .filter_map(|(name, _)| Some(name.strip_prefix("CARGO_FEATURE_")?.to_lowercase()))
        .filter(|name| name != "default")
        .collect()
}
