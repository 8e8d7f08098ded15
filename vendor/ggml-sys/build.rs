//! Bindings and C++ shim over the llama.cpp that `llama-cpp-sys-2` has just built.
//!
//! That crate tells where its build lies (`DEP_LLAMA_GGML_CMAKE_DIR`); CMake's cache
//! there tells where the sources are, and which optional libraries it found.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, Result};

/// The C doors.
const SOURCES: &[&str] = &[
    "shim.cpp",
    "shim_adapters.cpp",
    "shim_bench.cpp",
    "shim_chat.cpp",
    "shim_console.cpp",
    "shim_devices.cpp",
    "shim_download.cpp",
    "shim_grammar.cpp",
    "shim_headers.cpp",
    "shim_options.cpp",
    "shim_params.cpp",
    "shim_rehearsal.cpp",
    "shim_session.cpp",
    "shim_speculative.cpp",
    "shim_values.cpp",
];

fn main() -> Result<()> {
    let headers = ["wrapper.h", "shim.h", "shim_internal.h", "build.rs"];
    for file in SOURCES.iter().chain(&headers) {
        println!("cargo:rerun-if-changed={file}");
    }
    println!("cargo:rerun-if-env-changed=DEP_LLAMA_GGML_CMAKE_DIR");

    let cmake_dir = env::var_os("DEP_LLAMA_GGML_CMAKE_DIR")
        .context("llama-cpp-sys-2 did not say where it built ggml")?;
    let build = PathBuf::from(cmake_dir)
        .ancestors()
        .nth(2)
        .context("the ggml CMake folder has no build folder above it")?
        .join("build");
    let cache_path = build.join("CMakeCache.txt");
    let cache = fs::read_to_string(&cache_path)
        .with_context(|| format!("could not read '{}'", cache_path.display()))?;
    let source = cache_value(&cache, "CMAKE_HOME_DIRECTORY")
        .map(PathBuf::from)
        .with_context(|| format!("'{}' does not name the sources", cache_path.display()))?;

    let includes = [
        "include",
        "src",
        "ggml/include",
        "ggml/src",
        "common",
        "vendor",
    ]
    .map(|folder| source.join(folder));
    generate_bindings(&includes)?;
    build_shim(&includes);
    link_dependencies_of_common(&build, &cache);
    check_rpc(&cache);

    let ggml_version = ggml_version(&source)?;
    println!("cargo:rustc-env=GGML_SYS_GGML_VERSION={ggml_version}");
    Ok(())
}

/// The value of `key` in the text of a `CMakeCache.txt`.
fn cache_value<'a>(cache: &'a str, key: &str) -> Option<&'a str> {
    cache.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name.split(':').next() == Some(key)).then_some(value)
    })
}

/// Without RPC all builds and runs, only `--rpc` is refused: a warning will do. A folder
/// that an older configuration has built does not notice the new one.
fn check_rpc(cache: &str) {
    if cache_value(cache, "GGML_RPC") != Some("ON") {
        println!(
            "cargo:warning=llama.cpp is built without RPC (GGML_RPC=ON, see .cargo/config.toml), \
             so --rpc will be refused; `cargo clean --release -p llama-cpp-sys-2` has it built anew"
        );
    }
}

/// ggml's version as its `CMakeLists.txt` sets it, e.g. `0.26.0`.
fn ggml_version(source: &Path) -> Result<String> {
    let path = source.join("ggml/CMakeLists.txt");
    let text = fs::read_to_string(&path)
        .with_context(|| format!("could not read '{}'", path.display()))?;
    let part = |name: &str| {
        let prefix = format!("set(GGML_VERSION_{name} ");
        text.lines()
            .find_map(|line| line.strip_prefix(prefix.as_str())?.strip_suffix(')'))
            .unwrap_or("?")
    };
    Ok([part("MAJOR"), part("MINOR"), part("PATCH")].join("."))
}

fn generate_bindings(includes: &[PathBuf]) -> Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?);
    bindgen::Builder::default()
        .header("wrapper.h")
        .clang_args(includes.iter().map(|path| format!("-I{}", path.display())))
        .allowlist_function("(ggml|gguf|llama|rpaged)_.*")
        .allowlist_type("(ggml|gguf|llama|rpaged)_.*")
        .allowlist_var("(GGML|GGUF|LLAMA|RPAGED)_.*")
        .prepend_enum_name(false)
        .derive_default(false)
        .layout_tests(true)
        .generate_comments(false)
        .generate()
        .context("bindgen could not read llama.cpp's headers")?
        .write_to_file(out.join("bindings.rs"))
        .context("could not write the bindings")
}

fn build_shim(includes: &[PathBuf]) {
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .files(SOURCES)
        .includes(includes)
        .warnings(false)
        .compile("ggml_sys_shim");
}

/// llama.cpp's `common/` needs cpp-httplib, and OpenSSL where CMake found it, for
/// model downloads. Its own crate does not link them. The whole archive is taken:
/// libraries of this crate come before `llama-common` on the link line.
fn link_dependencies_of_common(build: &Path, cache: &str) {
    let httplib = build.join("vendor/cpp-httplib");
    println!("cargo:rustc-link-search=native={}", httplib.display());
    println!(
        "cargo:rustc-link-search=native={}",
        httplib.join("Release").display()
    );
    println!("cargo:rustc-link-lib=static:+whole-archive=cpp-httplib");
    for (key, name) in [
        ("OPENSSL_SSL_LIBRARY", "ssl"),
        ("OPENSSL_CRYPTO_LIBRARY", "crypto"),
    ] {
        if let Some(path) = cache_value(cache, key).filter(|path| !path.ends_with("NOTFOUND")) {
            if let Some(folder) = Path::new(path).parent() {
                println!("cargo:rustc-link-search=native={}", folder.display());
            }
            println!("cargo:rustc-link-lib=dylib={name}");
        }
    }
}
