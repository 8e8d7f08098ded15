//! The page cache: emptied before each run, and looked into, so that no run finds there
//! what an earlier one has read.
#![allow(unsafe_code, reason = "asks the kernel which pages are in memory")]

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use memmap2::Mmap;
use rustix::fs::{Advice, fadvise};

/// The share of a file that may be left in the cache.
const LEFT_MAX: f64 = 0.01;

/// Empties the page cache, or at least takes the file at `path` out of it.
pub fn empty(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("could not open '{}'", path.display()))?;
    // Only pages that are on the disk can be dropped.
    file.sync_all()?;
    fadvise(&file, 0, None, Advice::DontNeed)?;
    // For root only; for others the advice has to do.
    drop(fs::write("/proc/sys/vm/drop_caches", "3"));
    let left = cached_share(&file)?;
    ensure!(
        left <= LEFT_MAX,
        "{:.0} % of '{}' stay in the page cache; does another program map it?",
        left * 100.0,
        path.display()
    );
    Ok(())
}

/// The share of `file` that is in the page cache, 0 to 1.
fn cached_share(file: &File) -> Result<f64> {
    // SAFETY:
    // - the mapping is never read: only its address is given to the kernel.
    let mapping = unsafe { Mmap::map(file)? };
    // SAFETY: takes nothing but a constant.
    let page_bytes = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) })?;
    let mut pages = vec![0_u8; mapping.len().div_ceil(page_bytes)];
    let address = mapping.as_ptr().cast_mut().cast();
    // SAFETY:
    // - `address` is the page-aligned start of a mapping of that length;
    // - `pages` has one byte for each of its pages.
    let result = unsafe { libc::mincore(address, mapping.len(), pages.as_mut_ptr()) };
    ensure!(result == 0, std::io::Error::last_os_error());
    let cached = pages.iter().filter(|page| **page & 1 == 1).count();
    Ok(cached as f64 / pages.len().max(1) as f64)
}
