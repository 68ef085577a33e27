//! Whole copies of a database: the one that is kept before a file is upgraded, snapshots, and what becomes of these.

use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use fs_err::os::unix::fs::OpenOptionsExt;
use sqlx::{Connection, SqliteConnection};
use tokio_util::sync::CancellationToken;

use super::super::StoreError;
use super::super::grain_store::GrainStore;
use super::SqliteStore;
use super::open::connect;
use super::view::JOURNAL;
use crate::files::{beside, remove_if_there, sync_folder_of};
use crate::shutdown::blocking;

const SNAPSHOT: &str = "write a snapshot of the database";

const BEFORE_UPGRADE: &str = "keep a copy of the database before upgrading it";

/// Instructions of SQLite's machine between two looks at whether to stop: those that copy some twenty rows.
const INSTRUCTIONS_BETWEEN_LOOKS: i32 = 100;

/// Writes a copy of the database beside it and returns its path: `granary.db.before-v10` for an upgrade to version 10.
///
/// A copy has its name only once it is whole and on disk, and is never overwritten. When the name is taken by a copy of
/// another state (the database was restored, used and upgraded again), the new one is numbered; when it is taken by a
/// copy of this very state, left by an upgrade that was cut off, that one serves.
pub(super) async fn keep_copy(
    connection: &mut SqliteConnection,
    path: &Path,
    target_version: i64,
) -> Result<PathBuf, StoreError> {
    let finished = beside(path, &format!(".before-v{target_version}"));
    let partial = beside(&finished, ".partial");
    let refused = |source| StoreError::files(BEFORE_UPGRADE, path, source);

    discard(&partial).map_err(refused)?;
    let written = write_copy(connection, path, &partial, BEFORE_UPGRADE).await;
    if let Err(error) = written {
        // The error that matters is the first one.
        let _ = discard(&partial);
        return Err(error);
    }
    // Off the async threads: a copy that has another one in its way is read whole.
    blocking(move || give_name(&partial, &finished)).await.map_err(refused)
}

/// Gives a copy the first of its names that is free, unless one of those before it is of the same state.
fn give_name(partial: &Path, finished: &Path) -> std::io::Result<PathBuf> {
    let numbered = |n: u32| if n == 1 { finished.to_owned() } else { beside(finished, &format!(".{n}")) };
    for candidate in (1..).map(numbered) {
        if !fs_err::exists(&candidate)? {
            fs_err::rename(partial, &candidate)?;
            sync_folder_of(&candidate)?;
            return Ok(candidate);
        }
        if is_same(&candidate, partial)? {
            discard(partial)?;
            return Ok(candidate);
        }
    }
    unreachable!("the numbers do not run out before the disk does")
}

#[async_trait]
impl GrainStore for SqliteStore {
    /// Writes it under a temporary name, syncs it, and gives it its own.
    async fn copy_to(&self, target: &Path, stop: &CancellationToken) -> Result<(), StoreError> {
        let partial = beside(target, ".partial");
        let refused = |source| StoreError::files(SNAPSHOT, target, source);
        discard(&partial).map_err(refused)?;
        let _reading = self.log.pass().await;
        self.files.database.refuse_another(&self.path)?;
        // A reader would do, but readers may not write, and to them this is writing.
        let mut connection = connect(&self.path).await?;
        interrupt_at(&mut connection, stop.clone()).await.map_err(self.failed(SNAPSHOT))?;
        let mut written = write_copy(&mut connection, target, &partial, SNAPSHOT).await.map(drop);
        // The log could not be emptied meanwhile. Here no writer waits for it to be copied to the file.
        let _ = sqlx::raw_sql("PRAGMA wal_checkpoint(PASSIVE)").execute(&mut connection).await;
        // Nothing was written through it that a failed close could lose.
        let _ = connection.close().await;
        if written.is_ok() {
            written = begin_epoch(&partial).await;
        }
        if let Err(error) = written {
            // The error that matters is the first one.
            let _ = discard(&partial);
            return Err(error);
        }
        fs_err::rename(&partial, target).and_then(|()| sync_folder_of(target)).map_err(refused)
    }
}

/// Interrupts what a connection does once the token is cancelled.
async fn interrupt_at(connection: &mut SqliteConnection, stop: CancellationToken) -> Result<(), sqlx::Error> {
    let mut handle = connection.lock_handle().await?;
    handle.set_progress_handler(INSTRUCTIONS_BETWEEN_LOOKS, move || !stop.is_cancelled());
    Ok(())
}

/// Once it is restored, the copy must not believe the indexes of what the database has become since.
async fn begin_epoch(copy: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::sql(SNAPSHOT, copy, source);
    let mut connection = connect(copy).await?;
    let begun = sqlx::query("UPDATE identity SET epoch = lower(hex(randomblob(16)))").execute(&mut connection).await;
    connection.close().await.map_err(failed)?;
    begun.map(drop).map_err(failed)
}

/// Writes a whole copy to a file that is not there yet, syncs it, and answers with the file.
pub(super) async fn write_copy(
    connection: &mut SqliteConnection,
    path: &Path,
    partial: &Path,
    doing: &'static str,
) -> Result<fs_err::File, StoreError> {
    let refused = |source| StoreError::files(doing, path, source);
    // SQLite takes an empty file as its target, and this one nobody else may read.
    let copy = fs_err::OpenOptions::new().write(true).create_new(true).mode(0o600).open(partial).map_err(refused)?;
    // The path was given to SQLite as UTF-8 when the database was opened.
    sqlx::query("VACUUM INTO ?")
        .bind(partial.to_string_lossy())
        .execute(connection)
        .await
        .map_err(|source| StoreError::sql(doing, path, source))?;
    blocking(move || copy.sync_all().map(|()| copy)).await.map_err(refused)
}

/// Removes what an interrupted copy left.
pub(super) fn discard(partial: &Path) -> std::io::Result<()> {
    for leftover in [partial.to_owned(), beside(partial, JOURNAL)] {
        remove_if_there(&leftover)?;
    }
    Ok(())
}

/// Whether two copies are of the same state: `VACUUM` writes the same bytes for the same content. Only in the header it
/// counts how often the database was vacuumed, and a copy that was restored has been once more.
fn is_same(one: &Path, other: &Path) -> std::io::Result<bool> {
    const HEADER_BYTES: u64 = 100;
    let (mut one, mut other) = (fs_err::File::open(one)?, fs_err::File::open(other)?);
    one.seek(SeekFrom::Start(HEADER_BYTES))?;
    other.seek(SeekFrom::Start(HEADER_BYTES))?;
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut one, mut other) = (BufReader::new(one), BufReader::new(other));
    loop {
        let (left, right) = (one.fill_buf()?, other.fill_buf()?);
        let n = left.len().min(right.len());
        if n == 0 || left[..n] != right[..n] {
            return Ok(left.len() == right.len() && n == 0);
        }
        one.consume(n);
        other.consume(n);
    }
}
