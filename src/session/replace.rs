//! Replaces a file in one step: whatever happens meanwhile, it is the old one or the new one.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Has `write` write a file beside `path`, and moves it there with the permissions of the
/// one that was there. What is no regular file (a device, a pipe) stays what it is: `write`
/// writes to it.
///
/// # Errors
/// `Failed` when that cannot be done, or what `write` returned; what was there is still there.
pub(crate) fn replace_file(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let path = followed(path);
    let about = fs::metadata(&path).ok();
    if about.as_ref().is_some_and(|about| !about.is_file()) {
        return write(&path);
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let beside = Beside(path.with_file_name(name));
    let file = fs::File::create(&beside.0).map_err(failed)?;
    write(&beside.0)?;
    if let Some(about) = about {
        file.set_permissions(about.permissions()).map_err(failed)?;
    }
    file.sync_all().map_err(failed)?;
    fs::rename(&beside.0, &path).map_err(failed)
}

/// What the system says, as it is.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(crate) fn failed(error: std::io::Error) -> Error {
    Error::Failed(error.to_string())
}

/// Where a link leads: that file is replaced, not the link.
fn followed(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| match fs::read_link(path) {
        // Nothing is there yet.
        Ok(target) => path.parent().unwrap_or(Path::new("")).join(target),
        Err(_) => path.to_owned(),
    })
}

/// A file that is gone at the end, unless it was moved away.
struct Beside(PathBuf);

impl Drop for Beside {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn replace(path: &Path, text: &str) -> Result<()> {
        replace_file(path, |path| fs::write(path, text).map_err(failed))
    }

    #[test]
    fn a_link_stays_and_its_file_keeps_its_permissions() {
        let folder = tempfile::tempdir().unwrap();
        let [real, link] = ["real", "link"].map(|name| folder.path().join(name));
        symlink("real", &link).unwrap();
        replace(&link, "made").unwrap();
        assert_eq!(fs::read(&real).unwrap(), b"made");
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
        replace(&link, "replaced").unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&real).unwrap(), b"replaced");
        let mode = fs::metadata(&real).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_failure_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "old").unwrap();
        let broken = replace_file(&path, |path| {
            fs::write(path, "ne").map_err(failed)?;
            Err(Error::Failed("broken".into()))
        });
        assert_eq!(broken.unwrap_err().to_string(), "broken");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_device_is_written_to() {
        use std::os::unix::fs::FileTypeExt;
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("null");
        symlink("/dev/null", &link).unwrap();
        replace(&link, "text").unwrap();
        assert!(link.is_symlink());
        let about = fs::metadata("/dev/null").unwrap();
        assert!(about.file_type().is_char_device());
    }
}
