//! A snapshot takes the place of a database.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::super::StoreError;
use super::copy::{discard, write_copy};
use super::lock::StoreLock;
use super::open::{is_database_path, real_path};
use super::recognise::{Recognised, recognise, refuse_other_files};
use super::replaced::FileId;
use super::view::{JOURNAL, LOG, View, has_hot_journal, has_log};
use crate::files::{beside, folder_of, sync_folder_of};
use crate::ownership::{behind_links, hand_over};

/// What the name of the database has appended for the copy of a snapshot until that takes its place. While there is no
/// database and this is there, a restore was cut off, or goes on.
pub(super) const RESTORING: &str = ".restoring";

const DOING: &str = "put a snapshot in place of the database";

/// Puts a snapshot in place of a database that no process uses, and answers where the database is now, if there was one,
/// also when an earlier restore that was cut off has moved it away.
///
/// The snapshot stays as it is, and whoever may read it, the database is its owner's alone: who had the one before, or has
/// the folder. A snapshot is any database of Granary's that is not in use: what a crash left in its log or journal counts.
/// What was there before is kept beside the new database, with its write-ahead log. A link to the database leads to the
/// new one, if root or this user has made it.
///
/// # Errors
/// When the snapshot is not Granary's, from a newer one, or the database itself, the database is none of SQLite's, either
/// is in use, for a snapshot with a log by another restore too, there is no room for the copy, or it cannot be given to its
/// owner: then the database is where it was. When the file system refuses later than that, it may have its other name
/// already, and so it may after a crash: then no database is opened until the restore has been repeated.
pub async fn restore(database: &Path, snapshot: &Path) -> Result<Option<PathBuf>, StoreError> {
    let own = behind_links(database).map_err(|source| StoreError::files(DOING, database, source))?;
    let (real_database, real_snapshot) = (real_path(&own)?, real_path(snapshot)?);
    let (database, snapshot) = (real_database.as_path(), real_snapshot.as_path());
    // The settings may be another user's, and name any file of the system. A damaged database, which a snapshot is for,
    // begins as one.
    if is_database_path(database)? {
        refuse_other_files(database)?;
    }
    if !is_database_path(snapshot).map_err(StoreError::of_snapshot)? {
        let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
        return Err(StoreError::files("find the snapshot", snapshot, missing));
    }
    if is_same_file(snapshot, database).is_ok_and(|is_same| is_same) {
        return Err(no_snapshot(snapshot, "the database itself"));
    }
    fs_err::create_dir_all(folder_of(database)).map_err(|source| StoreError::files(DOING, database, source))?;
    let _lock = StoreLock::acquire(database)?;
    let lock_of_snapshot = lock_to_copy(snapshot)?;
    let replaced = replace(database, snapshot).await;
    if let Some(lock) = lock_of_snapshot {
        lock.withdraw();
    }
    replaced
}

/// Keeps others from writing to a snapshot. What has a log or a journal is looked at in a folder beside it, which has one
/// name for all: so by one at a time.
fn lock_to_copy(snapshot: &Path) -> Result<Option<StoreLock>, StoreError> {
    if has_log(snapshot) || has_hot_journal(snapshot) {
        StoreLock::acquire(snapshot).map(Some)
    } else {
        StoreLock::acquire_if_any(snapshot)
    }
}

/// Puts a snapshot in place of a database. The caller holds the locks of both.
async fn replace(database: &Path, snapshot: &Path) -> Result<Option<PathBuf>, StoreError> {
    let refused = |source| StoreError::files(DOING, database, source);
    let whole = beside(database, RESTORING);
    let partial = beside(&whole, ".partial");
    for left in [&whole, &partial] {
        if fs_err::exists(left).map_err(refused)? && is_same_file(snapshot, left).map_err(refused)? {
            let found = "what a restore that was cut off has copied of a snapshot, and the next one writes over";
            return Err(no_snapshot(snapshot, found));
        }
    }
    if recognise(snapshot).await.map_err(StoreError::of_snapshot)? == Recognised::Blank {
        return Err(no_snapshot(snapshot, "an empty file"));
    }
    // What an earlier restore left stays until then: it may be all that tells that the database is away.
    discard(&partial).map_err(refused)?;
    // While the database is away, what an earlier restore left is its owner's.
    let owned = if fs_err::exists(database).map_err(refused)? { database } else { whole.as_path() };
    let was_cut_off = fs_err::exists(&whole).map_err(refused)?;
    let copied = copy(snapshot, &partial)
        .await
        .and_then(|copy| hand_over(&copy, owned).and_then(|()| copy.sync_all()).map_err(refused));
    if let Err(error) = copied {
        // The error that matters is the first one.
        let _ = discard(&partial);
        return Err(error);
    }
    fs_err::rename(&partial, &whole).and_then(|()| sync_folder_of(&whole)).map_err(refused)?;
    let replaced = move_away(database).map_err(refused)?;
    fs_err::rename(&whole, database).and_then(|()| sync_folder_of(database)).map_err(refused)?;
    Ok(replaced.or_else(|| was_cut_off.then(|| last_replaced(database)).flatten()))
}

/// Copies what the next reader of a snapshot would see, and answers with the file.
async fn copy(snapshot: &Path, partial: &Path) -> Result<fs_err::File, StoreError> {
    let mut view = View::open(snapshot).await.map_err(StoreError::of_snapshot)?;
    let written = write_copy(&mut view.connection, snapshot, partial, DOING).await;
    view.close().await;
    written.map_err(|error| match error.of_snapshot() {
        // The snapshot may be on another one.
        StoreError::DiskFull { doing, source, .. } => StoreError::DiskFull { path: partial.to_owned(), doing, source },
        error => error,
    })
}

fn no_snapshot(path: &Path, found: &str) -> StoreError {
    StoreError::NoSnapshot { path: path.to_owned(), found: found.to_owned(), source: None }
}

/// Whether two paths, whatever links they go by, lead to one file.
fn is_same_file(one: &Path, other: &Path) -> std::io::Result<bool> {
    Ok(FileId::at(one)? == FileId::at(other)?)
}

/// Gives a database another name, with what SQLite keeps beside it; `None` when there was none, but for what an earlier
/// restore that was cut off has left.
fn move_away(database: &Path) -> std::io::Result<Option<PathBuf>> {
    let parts = parts_of(database)?;
    if parts.is_empty() {
        return Ok(None);
    }
    let mut names = names_of_replaced(database);
    let replaced = loop {
        match names.next() {
            Some(name) if !parts_of(&name)?.is_empty() => {}
            Some(name) => break name,
            None => unreachable!("the numbers do not run out before the disk does"),
        }
    };
    for part in &parts {
        fs_err::rename(beside(database, part), beside(&replaced, part))?;
    }
    Ok(parts.contains(&"").then_some(replaced))
}

/// The database that had its other name last; `None` where none is here any more. Numbers become free, so they do not say.
fn last_replaced(database: &Path) -> Option<PathBuf> {
    let there = names_of_replaced(database).take_while(|name| parts_of(name).is_ok_and(|parts| !parts.is_empty()));
    let since = there.filter_map(|name| {
        let found = fs_err::metadata(&name).ok()?;
        Some(((found.ctime(), found.ctime_nsec()), name))
    });
    since.max().map(|(_, name)| name)
}

fn names_of_replaced(database: &Path) -> impl Iterator<Item = PathBuf> {
    (1..).map(|n| beside(database, &format!(".replaced.{n}")))
}

/// What there is of a database, as suffixes of its name. The file comes first: a log without its file is refused, but a
/// file without its log would be opened, and its last commits lost.
fn parts_of(database: &Path) -> std::io::Result<Vec<&'static str>> {
    let mut parts = Vec::new();
    for suffix in ["", LOG, JOURNAL] {
        if fs_err::exists(beside(database, suffix))? {
            parts.push(suffix);
        }
    }
    Ok(parts)
}
