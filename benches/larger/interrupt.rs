//! Ctrl-C: noted, so that the run is ended and its group removed before the bench ends.
#![allow(unsafe_code, reason = "signal handlers")]

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};

static ASKED: AtomicBool = AtomicBool::new(false);

/// Notes Ctrl-C, a termination, and the end of the terminal from now on.
pub fn install() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let handler = on_signal as extern "C" fn(i32) as usize;
        // SAFETY:
        // - the handler only stores to an atomic.
        unsafe { libc::signal(signal, handler) };
    }
}

extern "C" fn on_signal(_signal: i32) {
    ASKED.store(true, Ordering::Relaxed);
}

/// An error once somebody has asked to stop.
pub fn check() -> Result<()> {
    ensure!(!ASKED.load(Ordering::Relaxed), "interrupted");
    Ok(())
}
