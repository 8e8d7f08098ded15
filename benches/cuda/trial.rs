//! A trial without a GPU: this program in the place of `rpaged-cli`, on the device of the
//! tests, which computes like the processor, asynchronously, in memory of its own.
#![allow(unsafe_code, reason = "ggml is told of the device")]

use std::process::ExitCode;

use async_device::{AsyncDevice, Options};
use ggml_sys as ggml;

/// The variable that makes this program `rpaged-cli`.
pub const VARIABLE: &str = "RPAGED_BENCH_TRIAL";
/// The device's name.
pub const DEVICE: &str = "ASYNC0";

/// Whether this process is to be `rpaged-cli`.
pub fn is_asked() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// Does what the command line asks `rpaged-cli` for.
pub fn run() -> ExitCode {
    let options = Options {
        pinned: true,
        padded: true,
        memory_bytes: 4 << 30,
        ..Options::default()
    };
    let device = match AsyncDevice::new(options) {
        Ok(device) => Box::leak(Box::new(device)),
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    // SAFETY: the device was leaked: it lives as long as the process.
    unsafe { ggml::ggml_backend_device_register(device.raw()) };
    let ended = rpaged::cli::run(std::env::args_os().skip(1));
    for complaint in device.take_complaints() {
        eprintln!("{DEVICE}: {complaint}");
    }
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
