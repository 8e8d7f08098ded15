//! Says in one sentence which package is missing, before llama.cpp's own build fails
//! with something obscure.
//!
//! Where it is not sure whether a tool is there, it says nothing and lets the build go on.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

/// A tool that building llama.cpp needs, and the packages that bring it.
struct Tool {
    name: &'static str,
    debian: &'static str,
    fedora: &'static str,
    macos: &'static str,
}

const CMAKE: Tool = Tool {
    name: "cmake",
    debian: "cmake",
    fedora: "cmake",
    macos: "brew install cmake",
};

const MAKE: Tool = Tool {
    name: "make",
    debian: "make",
    fedora: "make",
    macos: "xcode-select --install",
};

const COMPILER: Tool = Tool {
    name: "a C++ compiler",
    debian: "g++",
    fedora: "gcc-c++",
    macos: "xcode-select --install",
};

const LIBCLANG: Tool = Tool {
    name: "libclang",
    debian: "libclang-dev",
    fedora: "clang-devel",
    macos: "brew install llvm",
};

const GLSLC: Tool = Tool {
    name: "glslc",
    debian: "glslc",
    fedora: "glslc",
    macos: "brew install shaderc",
};

const VULKAN: Tool = Tool {
    name: "Vulkan's headers and loader",
    debian: "libvulkan-dev",
    fedora: "vulkan-loader-devel",
    macos: "brew install vulkan-headers vulkan-loader",
};

const SPIRV: Tool = Tool {
    name: "SPIR-V's headers",
    debian: "spirv-headers",
    fedora: "spirv-headers-devel",
    macos: "brew install spirv-headers",
};

fn main() {
    if is_known_host() {
        let cuda = cfg!(feature = "cuda") && !has_nvcc();
        let sentences = [
            missing_sentence(&missing_tools()),
            cuda.then(|| nvcc_sentence(&entries(Path::new("/usr/local")))),
        ];
        let sentences: Vec<String> = sentences.into_iter().flatten().collect();
        if !sentences.is_empty() {
            eprintln!("\n    {}\n", sentences.join("\n    "));
            exit(1);
        }
    }
    // A check that failed is run again anyway.
    println!("cargo::rerun-if-changed=build.rs");
}

/// Elsewhere (Windows, the BSDs, cross-compilation from them) tools are not found by name on
/// the path, and Nix gives each build its own.
fn is_known_host() -> bool {
    cfg!(any(target_os = "linux", target_os = "macos")) && !Path::new("/nix/store").exists()
}

/// The tools that are surely not there.
fn missing_tools() -> Vec<Tool> {
    let mut missing = Vec::new();
    if !is_set("CMAKE") && !on_path(&["cmake"]) {
        missing.push(CMAKE);
    }
    if !is_set("CMAKE_GENERATOR") && !on_path(&["make", "gmake"]) {
        missing.push(MAKE);
    }
    if !is_set("CXX") && !on_path(&["c++", "g++", "clang++"]) {
        missing.push(COMPILER);
    }
    if !has_libclang() {
        missing.push(LIBCLANG);
    }
    if cfg!(feature = "vulkan") && !is_set("VULKAN_SDK") {
        missing.extend(missing_for_vulkan());
    }
    missing
}

/// What `--features vulkan` needs beside the rest.
fn missing_for_vulkan() -> Vec<Tool> {
    let mut missing = Vec::new();
    if !on_path(&["glslc"]) {
        missing.push(GLSLC);
    }
    if !has_header("vulkan/vulkan_core.h") {
        missing.push(VULKAN);
    }
    if !has_header("spirv/unified1/spirv.hpp") {
        missing.push(SPIRV);
    }
    missing
}

/// Whether CMake finds NVIDIA's compiler: where it is told to look, on the path, or in
/// `CUDA_PATH`, and nowhere else.
fn has_nvcc() -> bool {
    let told = ["CUDACXX", "CMAKE_CUDA_COMPILER", "CMAKE_PREFIX_PATH"];
    told.into_iter().any(is_set)
        || on_path(&["nvcc"])
        || env::var_os("CUDA_PATH").is_some_and(|root| nvcc_of(Path::new(&root)).is_file())
}

fn nvcc_of(root: &Path) -> PathBuf {
    root.join("bin/nvcc")
}

/// What to do about a missing `nvcc`; `usual` are folders that a toolkit may be in.
fn nvcc_sentence(usual: &[PathBuf]) -> String {
    let named = |root: &&PathBuf| root.file_name().is_some_and(|name| name == "cuda");
    let there: Vec<_> = usual
        .iter()
        .filter(|root| nvcc_of(root).is_file())
        .collect();
    // NVIDIA's installer has a link of this name lead to the newest.
    match there.iter().find(|root| named(root)).or(there.first()) {
        Some(root) => format!(
            "`--features cuda` needs nvcc, which is in '{0}/bin', where CMake does not look: set \
             `CUDA_PATH={0}`, and build again",
            root.display()
        ),
        None => {
            "`--features cuda` needs nvcc, NVIDIA's compiler, not found here: install the CUDA \
                 toolkit (`apt install nvidia-cuda-toolkit` on Debian and Ubuntu, elsewhere from \
                 https://developer.nvidia.com/cuda-downloads) and put its folder into CUDA_PATH, \
                 or build without `--features cuda`"
                .to_owned()
        }
    }
}

/// Whether a C++ compiler finds the header in one of the usual folders.
fn has_header(name: &str) -> bool {
    let usual = [
        "/usr/include",
        "/usr/local/include",
        "/opt/homebrew/include",
        "/opt/local/include",
    ];
    let given = ["CPATH", "CPLUS_INCLUDE_PATH"].map(|name| env::var_os(name).unwrap_or_default());
    let given = given.iter().flat_map(env::split_paths);
    let mut folders = usual.iter().map(PathBuf::from).chain(given);
    folders.any(|folder| folder.join(name).is_file())
}

/// One sentence that names what is missing and the packages of three systems.
fn missing_sentence(missing: &[Tool]) -> Option<String> {
    if missing.is_empty() {
        return None;
    }
    let join = |field: fn(&Tool) -> &'static str, separator: &str| {
        let mut words: Vec<_> = missing.iter().map(field).collect();
        words.dedup();
        words.join(separator)
    };
    Some(format!(
        "building llama.cpp needs {}, not found here: install with `apt install {}` (Debian, \
         Ubuntu), `dnf install {}` (Fedora), `{}` (macOS), and build again",
        join(|tool| tool.name, " and "),
        join(|tool| tool.debian, " "),
        join(|tool| tool.fedora, " "),
        join(|tool| tool.macos, " && "),
    ))
}

fn is_set(name: &str) -> bool {
    env::var_os(name).is_some_and(|value| !value.is_empty())
}

fn on_path(names: &[&str]) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| names.iter().any(|name| folder.join(name).is_file()))
}

/// Whether libclang is anywhere that bindgen looks, or a little beyond.
fn has_libclang() -> bool {
    is_set("LIBCLANG_PATH")
        || is_set("LLVM_CONFIG_PATH")
        || libclang_folders()
            .iter()
            .any(|folder| holds_libclang(folder))
        || ["ldconfig", "/sbin/ldconfig"]
            .iter()
            .filter_map(|program| output_of(program, &["-p"]))
            .any(|list| list.split_whitespace().any(is_libclang))
}

fn libclang_folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = [
        "/usr/lib",
        "/usr/lib64",
        "/usr/local/lib",
        "/usr/local/lib64",
        "/usr/local/llvm/lib",
        "/opt/homebrew/lib",
        "/opt/homebrew/opt/llvm/lib",
        "/usr/local/opt/llvm/lib",
        "/opt/local/lib",
        "/Library/Developer/CommandLineTools/usr/lib",
        "/Applications/Xcode.app/Contents/Developer/Toolchains/XcodeDefault.xctoolchain/usr/lib",
    ]
    .map(PathBuf::from)
    .into();
    folders.extend(output_of("llvm-config", &["--libdir"]).map(|text| text.trim().into()));
    folders.extend(
        env::var_os("LD_LIBRARY_PATH")
            .iter()
            .flat_map(env::split_paths),
    );
    // `/usr/lib/x86_64-linux-gnu`, `/usr/lib/llvm-14/lib`, `/usr/lib64/llvm19/lib`.
    for parent in ["/usr/lib", "/usr/lib64", "/opt/local/libexec"] {
        for folder in entries(Path::new(parent)) {
            folders.push(folder.join("lib"));
            folders.push(folder);
        }
    }
    folders
}

fn holds_libclang(folder: &Path) -> bool {
    let names = entries(folder);
    names
        .iter()
        .filter_map(|path| path.file_name().and_then(OsStr::to_str))
        .any(is_libclang)
}

/// Whether this is the name of libclang's dynamic library, e.g. `libclang-14.so.13`.
fn is_libclang(name: &str) -> bool {
    let dynamic = name.contains(".so") || name.ends_with(".dylib");
    let named = name.starts_with("libclang.") || name.starts_with("libclang-");
    dynamic && named && !name.starts_with("libclang-cpp")
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let listing = folder.read_dir().into_iter().flatten();
    listing.flatten().map(|entry| entry.path()).collect()
}

fn output_of(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_missing_is_no_sentence() {
        assert_eq!(missing_sentence(&[]), None);
    }

    #[test]
    fn the_sentence_names_each_package_once() {
        let sentence = missing_sentence(&[CMAKE, MAKE, COMPILER, LIBCLANG]).unwrap();
        assert_eq!(
            sentence,
            "building llama.cpp needs cmake and make and a C++ compiler and libclang, not found \
             here: install with `apt install cmake make g++ libclang-dev` (Debian, Ubuntu), \
             `dnf install cmake make gcc-c++ clang-devel` (Fedora), `brew install cmake && \
             xcode-select --install && brew install llvm` (macOS), and build again"
        );
    }

    #[test]
    fn what_vulkan_needs_is_named_with_the_rest() {
        assert_eq!(
            missing_sentence(&[GLSLC, VULKAN, SPIRV]).unwrap(),
            "building llama.cpp needs glslc and Vulkan's headers and loader and SPIR-V's headers, \
             not found here: install with `apt install glslc libvulkan-dev spirv-headers` (Debian, \
             Ubuntu), `dnf install glslc vulkan-loader-devel spirv-headers-devel` (Fedora), `brew \
             install shaderc && brew install vulkan-headers vulkan-loader && brew install \
             spirv-headers` (macOS), and build again"
        );
        assert!(!has_header("rpaged/has-no-such-header.h"));
        assert_eq!(
            has_header("stdio.h"),
            Path::new("/usr/include/stdio.h").is_file()
        );
    }

    #[test]
    fn a_cuda_compiler_that_cmake_does_not_find_is_named() {
        let folder = env::temp_dir().join(format!("preflight-cuda-{}", std::process::id()));
        for version in ["cuda-12.4", "cuda"] {
            std::fs::create_dir_all(folder.join(version).join("bin")).unwrap();
        }
        assert!(nvcc_sentence(&entries(&folder)).contains("cuda-downloads"));
        std::fs::write(folder.join("cuda-12.4/bin/nvcc"), "").unwrap();
        let sentence = nvcc_sentence(&entries(&folder));
        assert!(sentence.contains("/cuda-12.4`"), "{sentence}");
        std::fs::write(folder.join("cuda/bin/nvcc"), "").unwrap();
        let sentence = nvcc_sentence(&entries(&folder));
        assert!(sentence.contains("/cuda`"), "{sentence}");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn libclang_is_told_from_its_neighbours() {
        for name in [
            "libclang.so",
            "libclang-14.so.13",
            "libclang.so.19.1",
            "libclang.dylib",
        ] {
            assert!(is_libclang(name), "{name}");
        }
        for name in [
            "libclang-cpp.so.14",
            "libclangAST.a",
            "libclang.a",
            "libclangd.so",
        ] {
            assert!(!is_libclang(name), "{name}");
        }
    }

    #[test]
    fn libclang_is_seen_in_a_folder() {
        let folder = env::temp_dir().join(format!("preflight-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        assert!(!holds_libclang(&folder));
        std::fs::write(folder.join("libclang-14.so.1"), "").unwrap();
        assert!(holds_libclang(&folder));
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(!holds_libclang(&folder), "a folder that is not there");
    }

    #[test]
    fn a_program_is_sought_on_the_path_alone() {
        assert!(on_path(&["rpaged-has-no-such-program", "cargo"]));
        assert!(!on_path(&["rpaged-has-no-such-program"]));
    }
}
