//! Files that need not be there, files named after others, the folders they are in, and disks that are full.

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// What was found at a path; `None` where nothing is.
///
/// # Errors
/// All but [`ErrorKind::NotFound`].
pub fn if_there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

/// Removes a file, or does nothing where there is none.
///
/// # Errors
/// The file system's.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    if_there(fs_err::remove_file(path)).map(drop)
}

/// The path of a file beside another: its name with `suffix` appended, as SQLite itself does for `-wal`.
#[must_use]
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// The folder that a file is in: the current one for a name alone.
#[must_use]
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a created or renamed file's name durable, which syncing the file alone does not.
///
/// # Errors
/// The file system's.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    fs_err::File::open(folder_of(path))?.sync_all()
}

/// Whether what could not be written could be, were there more room.
#[must_use]
pub fn is_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}
