//! A snapshot takes the place of a database.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::super::StoreError;
use super::beside;
use super::lock::StoreLock;
use super::open::{is_database_path, sync_folder_of};
use super::recognise::{Recognised, recognise};
use super::view::{JOURNAL, LOG};

const DOING: &str = "put a snapshot in place of the database";

/// Puts a snapshot in place of a database that no process uses, and answers where the database is now, if there was one.
///
/// The snapshot stays where it is, and whoever may read it, the database is its owner's alone. What was there before is
/// kept beside it, with its write-ahead log.
///
/// # Errors
/// When the snapshot is not Granary's or from a newer one, the database is in use, or the file system refuses. Then the
/// database is where it was.
pub async fn restore(database: &Path, snapshot: &Path) -> Result<Option<PathBuf>, StoreError> {
    let refused = |source| StoreError::files(DOING, database, source);
    if !is_database_path(snapshot)? {
        let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
        return Err(StoreError::files("find the snapshot", snapshot, missing));
    }
    if let Some(folder) = database.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs_err::create_dir_all(folder).map_err(refused)?;
    }
    let _lock = StoreLock::acquire(database)?;
    if recognise(snapshot).await? == Recognised::Blank {
        return Err(StoreError::Foreign { path: snapshot.to_owned(), found: "an empty file".to_owned() });
    }
    let whole = beside(database, ".restoring");
    fs_err::copy(snapshot, &whole).map_err(refused)?;
    // A copy has the mode of what was copied; SQLite gives that of the database to its log and journal.
    fs_err::set_permissions(&whole, PermissionsExt::from_mode(0o600)).map_err(refused)?;
    fs_err::File::open(&whole).and_then(|copy| copy.sync_all()).map_err(refused)?;
    let replaced =
        if fs_err::exists(database).map_err(refused)? { Some(move_away(database).map_err(refused)?) } else { None };
    fs_err::rename(&whole, database).and_then(|()| sync_folder_of(database)).map_err(refused)?;
    Ok(replaced)
}

/// Gives a database another name, with what SQLite keeps beside it.
fn move_away(database: &Path) -> std::io::Result<PathBuf> {
    let numbered = |n: u32| beside(database, &format!(".replaced.{n}"));
    let mut free = (1..).map(numbered);
    let replaced = loop {
        match free.next() {
            Some(name) if fs_err::exists(&name)? => {}
            Some(name) => break name,
            None => unreachable!("the numbers do not run out before the disk does"),
        }
    };
    for suffix in [LOG, JOURNAL, ""] {
        let file = beside(database, suffix);
        if fs_err::exists(&file)? {
            fs_err::rename(&file, beside(&replaced, suffix))?;
        }
    }
    Ok(replaced)
}
