//! Models from an address: a server of our own serves the demo's model, or fails.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{MODEL, assert_refused, program, stdout};

/// How the server answers.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Well,
    /// Goes away after so many bytes of each answer.
    CutsAfter(usize),
    /// Serves so many bytes less than there are.
    LacksBytes(usize),
    /// With this status, and nothing else.
    Status(u16),
    /// Sends so many bytes of each answer, and nothing more for as long as the test runs.
    StopsAfter(usize),
}

/// A server on this machine, for as long as the test runs.
struct Server {
    address: String,
    /// The heads of all requests.
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/m.gguf", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let heads = Arc::clone(&requests);
        std::thread::spawn(move || {
            let model = std::fs::read(MODEL).unwrap();
            for stream in listener.incoming().flatten() {
                // That the other side goes away is its own affair.
                drop(answer(&stream, manner, &model, &heads));
            }
        });
        Self { address, requests }
    }

    fn heads(&self) -> String {
        self.requests.lock().unwrap().join("\n")
    }
}

/// Answers one request, then closes.
fn answer(
    mut stream: &TcpStream,
    manner: Manner,
    model: &[u8],
    heads: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut head = String::new();
    let mut reader = BufReader::new(stream);
    while reader.read_line(&mut head)? > 2 {}
    heads.lock().unwrap().push(head.clone());
    let range = head
        .lines()
        .find_map(|line| line.strip_prefix("Range: bytes="));
    let range = range.and_then(|range| range.split_once('-'));
    let start: Option<usize> = range.and_then(|(start, _)| start.parse().ok());
    let end = range.and_then(|(_, end)| end.trim().parse::<usize>().ok());
    let status = match manner {
        Manner::Status(status) => status,
        _ if start.is_some() => 206,
        _ => 200,
    };
    let end = end.map_or(model.len(), |last| model.len().min(last + 1));
    let mut body = &model[start.unwrap_or(0)..end];
    match manner {
        Manner::LacksBytes(count) => body = &body[..body.len() - count],
        Manner::Status(_) => body = &[],
        _ => {}
    }
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status} x\r\nContent-Length: {length}\r\nAccept-Ranges: bytes\r\n\
         ETag: \"1\"\r\nConnection: close\r\n\r\n"
    )?;
    if head.starts_with("HEAD") {
        return Ok(());
    }
    match manner {
        Manner::CutsAfter(count) => stream.write_all(&body[..count.min(length)]),
        Manner::StopsAfter(count) => {
            stream.write_all(&body[..count.min(length)])?;
            std::thread::park();
            Ok(())
        }
        _ => stream.write_all(body),
    }
}

/// A short completion by the model at `address`, with downloads going to `cache`.
fn fetch(address: &str, cache: &Path, flags: &[&str]) -> Output {
    let mut command = program();
    command.env("LLAMA_CACHE", cache);
    command.args(["-no-cnv", "-t", "1", "-n", "4", "-s", "7", "-p", "Once"]);
    command.args(["-mu", address]).args(flags).output().unwrap()
}

fn without_download() -> String {
    let mut command = program();
    command.args(["-no-cnv", "-t", "1", "-n", "4", "-s", "7", "-p", "Once"]);
    stdout(&command.args(["-m", MODEL]).output().unwrap())
}

#[test]
fn a_model_is_downloaded_once_and_told_in_one_line() {
    let server = Server::start(Manner::Well);
    let cache = tempfile::tempdir().unwrap();
    let first = fetch(&server.address, cache.path(), &["--hf-token", "secret"]);
    assert_eq!(stdout(&first), without_download());
    let said = String::from_utf8_lossy(&first.stderr).into_owned();
    let line = format!("downloading '{}', 2.6 MiB", server.address);
    assert!(said.contains(&line), "{said}");
    // No bar where nobody sees it.
    assert!(!said.contains('\r') && !said.contains('\x1b'), "{said}");
    assert!(server.heads().contains("Authorization: Bearer secret"));
    let second = fetch(&server.address, cache.path(), &[]);
    assert_eq!(stdout(&second), without_download());
    assert_eq!(server.heads().matches("GET ").count(), 1);
    let offline = fetch(&server.address, cache.path(), &["--offline"]);
    assert_eq!(stdout(&offline), without_download());
}

#[test]
fn a_plan_fetches_the_header_alone() {
    let server = Server::start(Manner::Well);
    let cache = tempfile::tempdir().unwrap();
    let temporary = tempfile::tempdir().unwrap();
    for what in ["plan", "inspect"] {
        let ask = |model: [&str; 2]| {
            let mut command = program();
            command.env("LLAMA_CACHE", cache.path());
            command.env("TMPDIR", temporary.path());
            command.arg(what).args(model).args(["--json", "-c", "256"]);
            if what == "plan" {
                command.args(["--no-speed", "--vram-budget", "2M", "-ub", "16"]);
            }
            let output = command.output().unwrap();
            let mut said: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
            let name = said["model"].take();
            (said, name)
        };
        let (elsewhere, name) = ask(["-mu", &server.address]);
        assert_eq!(elsewhere, ask(["-m", MODEL]).0, "{what}");
        assert_eq!(name, "m.gguf");
    }
    assert!(server.heads().contains("Range: bytes=0-1048575"));
    for folder in [&cache, &temporary] {
        let left = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 0, "neither model nor header is left");
    }
}

#[cfg(unix)]
#[test]
fn a_signal_takes_the_folder_of_headers_away() {
    let server = Server::start(Manner::StopsAfter(1000));
    let [cache, temporary] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let is_empty = || temporary.path().read_dir().unwrap().next().is_none();
    let mut command = Command::new(program().get_program());
    command.env("LLAMA_CACHE", cache.path());
    command.env("TMPDIR", temporary.path());
    command.args(["inspect", "-mu", &server.address]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    while is_empty() {
        assert_eq!(child.try_wait().unwrap(), None, "it fetches a header");
        std::thread::sleep(Duration::from_millis(10));
    }
    let id = child.id().to_string();
    let told = Command::new("kill").args(["-TERM", &id]).status().unwrap();
    assert!(told.success());
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(is_empty(), "the folder was left behind");
}

#[test]
fn with_metrics_a_download_is_told_in_objects() {
    let server = Server::start(Manner::Well);
    let cache = tempfile::tempdir().unwrap();
    let output = fetch(&server.address, cache.path(), &["--metrics"]);
    assert_eq!(stdout(&output), without_download());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.lines().all(|line| line.starts_with('{')), "{said}");
    assert!(said.contains("downloading"), "{said}");
}

#[test]
fn an_answer_that_is_no_file_is_a_sentence() {
    let cache = tempfile::tempdir().unwrap();
    for (status, said) in [
        (404, "there is nothing at"),
        (401, "--hf-token"),
        (500, "status 500"),
    ] {
        let server = Server::start(Manner::Status(status));
        let output = fetch(&server.address, cache.path(), &[]);
        assert_refused(&output, 1, &[&server.address, said]);
    }
    let nobody = fetch("http://127.0.0.1:1/m.gguf", cache.path(), &[]);
    assert_refused(&nobody, 1, &["no answer from 'http://127.0.0.1:1/m.gguf'"]);
    let secret = fetch("http://me:word@127.0.0.1:1/m.gguf", cache.path(), &[]);
    assert_refused(&secret, 1, &["'http://127.0.0.1:1/m.gguf'"]);
    let strange = fetch("gopher://127.0.0.1/m.gguf", cache.path(), &[]);
    assert_refused(&strange, 1, &["gopher"]);
}

#[test]
fn a_download_that_breaks_off_is_gone_on_with() {
    let cache = tempfile::tempdir().unwrap();
    let cut = Server::start(Manner::CutsAfter(500_000));
    let output = fetch(&cut.address, cache.path(), &[]);
    let part = "m.gguf.downloadInProgress";
    assert_refused(&output, 1, &["broke off after 1.4 of 2.6 MiB", part]);
    assert!(!cache.path().join("m.gguf").exists());
    // What is there is the beginning, and nothing lies beside it.
    let begun = std::fs::read(cache.path().join(part)).unwrap();
    assert!(std::fs::read(MODEL).unwrap()[..1_500_000] == begun);
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 1);
    let well = Server::start(Manner::Well);
    assert_eq!(
        stdout(&fetch(&well.address, cache.path(), &[])),
        without_download()
    );
    assert!(
        well.heads().contains("Range: bytes=1500000-"),
        "{}",
        well.heads()
    );
    assert!(!cache.path().join(part).exists());
}

#[test]
fn the_piece_that_breaks_off_is_the_one_that_is_named() {
    let cache = tempfile::tempdir().unwrap();
    let cut = Server::start(Manner::CutsAfter(500_000));
    let address = cut.address.replace("m.gguf", "m-00001-of-00002.gguf");
    let whole = cache.path().join("whole.gguf");
    let output = fetch(&address, cache.path(), &["-m", whole.to_str().unwrap()]);
    assert_refused(
        &output,
        1,
        &["broke off", "-of-00002.gguf.downloadInProgress"],
    );
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains("whole.gguf"), "{said}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_part_that_may_not_grow_is_told_and_keeps_its_bytes() {
    let cache = tempfile::tempdir().unwrap();
    let part = cache.path().join("m.gguf.downloadInProgress");
    let begun = std::fs::read(MODEL).unwrap()[..1_000_000].to_vec();
    std::fs::write(&part, &begun).unwrap();
    let server = Server::start(Manner::Well);
    // Files of at most 2048 blocks of 512 bytes: the probe fits, the model does not.
    let script = format!(
        "ulimit -f 2048; exec '{}' -no-cnv -n 4 -p Once -mu '{}'",
        assert_cmd::cargo::cargo_bin("rpaged-cli").display(),
        server.address
    );
    let output = std::process::Command::new("sh")
        .args(["-c", &script])
        .env("HOME", "/nonexistent")
        .env("LLAMA_CACHE", cache.path())
        .output()
        .unwrap();
    let name = part.display().to_string();
    assert_refused(&output, 1, &[&name, "cannot be written", "File too large"]);
    let left = std::fs::read(&part).unwrap();
    assert!(left.starts_with(&begun));
    assert!(std::fs::read(MODEL).unwrap().starts_with(&left));
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 1);
}

#[test]
fn a_file_that_is_too_short_is_cut_off() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(Manner::LacksBytes(1000));
    let output = fetch(&server.address, cache.path(), &[]);
    assert_refused(&output, 1, &["m.gguf", "is cut off"]);
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let server = Server::start(Manner::Well);
    // A file stands where the folder should be made.
    let output = fetch(&server.address, &file, &[]);
    assert_refused(
        &output,
        1,
        &["could not get the model", "cache directory", "file"],
    );
}
