//! Layers on other machines, by llama.cpp's own engine: here on a server beside the test.
#![allow(unsafe_code, reason = "starts llama.cpp's own server")]

use std::ffi::{CString, c_char};
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ggml_sys as sys;

use super::{MODEL, assert_refused, complete, endless, program, run, stdout};

/// Names the endpoint to the process that serves.
const ENDPOINT: &str = "RPAGED_TEST_RPC_ENDPOINT";

/// A server in a process of its own.
struct Server {
    child: Child,
    endpoint: String,
}

impl Server {
    fn start() -> Self {
        // The port is free a moment later, too, unless somebody is very quick.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        drop(listener);
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["rpc::serve", "--exact", "--ignored", "--nocapture"])
            .env(ENDPOINT, &endpoint)
            .stdout(Stdio::null())
            .spawn();
        let mut server = Self {
            child: child.unwrap(),
            endpoint,
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(&server.endpoint).is_err() {
            let ended = server.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "no server: {ended:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
#[ignore = "what a server's process does; it never ends by itself"]
fn serve() {
    type StartServer = unsafe extern "C" fn(
        *const c_char,
        *const c_char,
        usize,
        usize,
        *mut sys::ggml_backend_dev_t,
    );
    let Ok(endpoint) = std::env::var(ENDPOINT) else {
        return;
    };
    // SAFETY: no preconditions; so for the next call.
    let registry = unsafe { sys::ggml_backend_reg_by_name(c"RPC".as_ptr()) };
    assert!(
        !registry.is_null(),
        "llama.cpp is built without RPC: see .cargo/config.toml"
    );
    // SAFETY: see above.
    let mut device = unsafe { sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU) };
    let name = c"ggml_backend_rpc_start_server".as_ptr();
    // SAFETY: the registry is static, the name ends with NUL.
    let start = unsafe { sys::ggml_backend_reg_get_proc_address(registry, name) };
    assert!(!start.is_null());
    // SAFETY: this is the signature of the function of that name.
    let start: StartServer = unsafe { std::mem::transmute(start) };
    let endpoint = CString::new(endpoint).unwrap();
    // SAFETY: the endpoint ends with NUL, there is no cache, one device is listed.
    unsafe { start(endpoint.as_ptr(), std::ptr::null(), 1, 1, &raw mut device) };
}

/// Short, and the same bits wherever they are computed.
const TEXT: &str = "-n 30 -s 7 -c 256 --no-repack";

#[test]
fn layers_on_a_server_give_the_same_text() {
    let server = Server::start();
    let local = complete(TEXT);
    assert!(local.status.success());
    let rpc = format!("--rpc {}", server.endpoint);
    for line in [
        "-ngl 99",
        "-ngl 4 --fit off",
        "-ngl 99 --device RPC0",
        "--device none",
    ] {
        let remote = complete(&format!("{TEXT} {rpc} {line}"));
        assert_eq!(stdout(&remote), stdout(&local), "{line}: {remote:?}");
    }
    let used = complete(&format!("{TEXT} {rpc} -ngl 99 -lv 4"));
    let said = String::from_utf8_lossy(&used.stderr).into_owned();
    assert!(said.contains("using device RPC0"), "{said}");
}

#[test]
fn a_server_takes_layers_and_what_is_left_is_paged() {
    let server = Server::start();
    let local = complete(TEXT);
    let folder = tempfile::tempdir().unwrap();
    let metrics = folder.path().join("metrics");
    let rpc = format!(
        "--rpc {} --metrics-file {}",
        server.endpoint,
        metrics.display()
    );
    // Bytes of weights on the paged device.
    let paged = |line: &str| -> u64 {
        let output = complete(&format!("{TEXT} {rpc} {line}"));
        assert_eq!(stdout(&output), stdout(&local), "{line}: {output:?}");
        let text = std::fs::read_to_string(&metrics).unwrap();
        let records = text.lines().map(|line| serde_json::from_str(line).unwrap());
        let plan = records
            .into_iter()
            .find(|record: &serde_json::Value| record["type"] == "plan");
        let plan = plan.unwrap();
        let used = plan["arena_bytes_used"].as_u64().unwrap();
        assert!(used <= plan["budget_bytes"].as_u64().unwrap(), "{plan}");
        plan["resident_bytes"].as_u64().unwrap() + plan["streamed_bytes"].as_u64().unwrap()
    };
    let all = paged("--dynamic-layers --device none --vram-budget 60%");
    let half = paged("--dynamic-layers -ts 1,1 --vram-budget 45%");
    let both = paged("--dynamic-layers --paged-kv -ts 1,1 --vram-budget 45%");
    let some = paged("--dynamic-layers -ts 3,1 --vram-budget 45%");
    assert!(half > all / 3 && half < all * 2 / 3, "{half} of {all}");
    assert_eq!(half, both);
    assert!(some > 0 && some < half, "{some} of {all}");
    paged("--dynamic-layers");
    let kept = complete(&format!("{TEXT} {rpc} --paged-kv -ts 1,1"));
    assert_eq!(stdout(&kept), stdout(&local), "{kept:?}");

    let refused = |line: &str| complete(&format!("{TEXT} {rpc} {line}"));
    let nothing = refused("--dynamic-layers -ts 1,0");
    assert_refused(&nothing, 2, &["nothing is left to page", "--rpc"]);
    let one = refused("--dynamic-layers -sm none");
    assert_refused(&one, 2, &["'--split-mode none'", "--rpc"]);
    let by_hand = refused("--dynamic-layers -ot ffn_up=CPU");
    assert_refused(&by_hand, 3, &["--override-tensor", "--tensor-split"]);
    let pinned = refused("--dynamic-layers -ts 1,1 --pin-layers 0");
    assert_refused(&pinned, 2, &["'--pin-layers'", "'0'", "not paged"]);
}

#[test]
fn devices_of_servers_are_listed() {
    let server = Server::start();
    let text = stdout(&run(&format!("--rpc {} --list-devices", server.endpoint)));
    let line = format!("\n  RPC0: {} (", server.endpoint);
    assert!(text.contains(&line), "{text}");
    let mut command = program();
    command.env("LLAMA_ARG_RPC", &server.endpoint);
    let text = stdout(&command.arg("--list-devices").output().unwrap());
    assert!(text.contains(&line), "{text}");
}

#[test]
fn a_server_that_is_not_there_is_a_sentence() {
    for server in ["nowhere", "nowhere:", "nowhere:x", ":50052", "a:1,b"] {
        let output = complete(&format!("--rpc {server}"));
        let named = server.rsplit(',').next().unwrap();
        assert_refused(&output, 2, &[&format!("'{named}'"), "HOST:PORT", "--rpc"]);
    }
    // Nobody listens at the first port.
    for line in ["--rpc 127.0.0.1:1", "--dynamic-layers --rpc 127.0.0.1:1"] {
        assert_refused(
            &complete(line),
            1,
            &["'127.0.0.1:1'", "rpc-server", "--rpc"],
        );
    }
    let listed = run("--rpc 127.0.0.1:1 --list-devices");
    assert_refused(&listed, 1, &["'127.0.0.1:1'"]);
    let mut command = program();
    command.env("LLAMA_ARG_RPC", "nowhere");
    let output = command.args(["-m", MODEL, "-no-cnv", "-p", "x"]).output();
    assert_refused(&output.unwrap(), 2, &["'nowhere'"]);
}

#[test]
fn somebody_else_at_the_port_is_a_sentence() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        // Hangs up on everybody.
        listener.incoming().for_each(drop);
    });
    let output = complete(&format!("--rpc {endpoint}"));
    assert_refused(&output, 1, &["RPC server", "--rpc"]);
}

#[test]
fn a_server_that_dies_amid_the_text_is_a_sentence() {
    for paging in ["", "--dynamic-layers -ts 1,1"] {
        let server = Server::start();
        let line = format!("-c 512 -ngl 99 --rpc {} {paging}", server.endpoint);
        let mut child = endless(&line).spawn().unwrap();
        let mut first = [0; 32];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut first)
            .unwrap();
        drop(server);
        let output = child.wait_with_output().unwrap();
        assert_refused(&output, 1, &["RPC server", "--rpc"]);
    }
}
