//! What a run takes and does: memory of machine, control group and process.

#[cfg(target_os = "linux")]
mod cgroup;
pub mod memory;
