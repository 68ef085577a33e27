//! The embedded default: one SQLite file in WAL mode, with `synchronous=FULL`, owned by one process.
//!
//! Opening a file goes through these steps, one module each:
//!
//! 1. `open` finds or creates the file; `lock` makes this process its only Granary.
//! 2. `recognise` decides what the file is, through a `view` that cannot change a byte of it. What is not ours stops
//!    here, untouched.
//! 3. `upgrade` takes a copy (`copy`) of a file of an older schema version, then runs the missing schema migrations,
//!    each in a transaction of its own, and makes the index of words anew where its words were cut by other rules.
//!
//! The migrations are in `migrations/sqlite`, forward only, frozen once landed. `ledger` is what the models remember,
//! `grains` what the product is for. `log` keeps the write-ahead log in bounds, and `replaced` notices that another file is
//! where the open one was.

mod copy;
mod grains;
mod inspect;
mod ledger;
mod lock;
mod log;
mod open;
mod recognise;
mod replaced;
mod restore;
mod upgrade;
mod view;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::SqlitePool;
use sqlx::migrate::Migrator;
use tokio::sync::Semaphore;

use self::grains::Vocabulary;
use self::lock::StoreLock;
use self::log::Log;
use self::replaced::OpenFiles;
use super::StoreError;

pub use self::inspect::{Contents, FileState};
pub use self::log::LogBounds;
pub use self::open::{OpenOptions, real_path};
pub use self::restore::restore;

/// Every schema migration, oldest first.
static MIGRATOR: Migrator = sqlx::migrate!("migrations/sqlite");

/// Where sqlx records the migrations a file has.
const MIGRATIONS_TABLE: &str = "_sqlx_migrations";

/// An open database file. It is this process's alone until [`close`](Self::close), or until it is dropped.
///
/// Readers and the writer have connections of their own: WAL lets them work at the same time, and with one writer
/// nobody is ever told that the database is locked.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    files: OpenFiles,
    readers: SqlitePool,
    /// Places for reads that may take long: fewer than there are readers.
    long_reads: Arc<Semaphore>,
    read_timeout: Duration,
    /// A connection of its own for readiness: a server that is busy reading is not away.
    probe: SqlitePool,
    writer: SqlitePool,
    log: Arc<Log>,
    lock: Mutex<Option<StoreLock>>,
    vocabulary: Vocabulary,
}

impl SqliteStore {
    /// The database file, absolute and without symbolic links.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Answers when the database can be read, for readiness.
    pub async fn check(&self) -> Result<(), StoreError> {
        self.files.database.refuse_another(&self.path)?;
        // A constant would be answered without the file.
        sqlx::query_scalar::<_, i64>("SELECT max(version) FROM schema_version")
            .fetch_one(&self.probe)
            .await
            .map(drop)
            .map_err(self.failed("read the schema version"))
    }

    /// Waits for work in progress, empties the write-ahead log into the file and gives the lock back.
    ///
    /// A store that is dropped instead loses nothing, and leaves the log to the next start.
    pub async fn close(&self) {
        self.readers.close().await;
        self.probe.close().await;
        // Last, because the last connection to close is the one that empties the log.
        self.writer.close().await;
        self.files.set_foreign_log_aside(&self.path);
        self.lock.lock().take();
    }

    /// What writes, unless another file is where this one was: SQLite goes on with the one that is open, and nobody would
    /// find what is written to it.
    fn writer(&self) -> Result<&SqlitePool, StoreError> {
        self.files.database.refuse_another(&self.path)?;
        Ok(&self.writer)
    }

    /// An error of SQLite while doing that.
    fn failed(&self, doing: &'static str) -> impl Fn(sqlx::Error) -> StoreError + '_ {
        move |source| StoreError::sql(doing, &self.path, source)
    }

    /// A stored value that is not one of Granary's.
    fn malformed(&self, what: &'static str, source: Box<dyn std::error::Error + Send + Sync>) -> StoreError {
        StoreError::Value { path: self.path.clone(), what, source }
    }
}

/// The newest schema version this build knows.
fn latest_version() -> i64 {
    MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or_default()
}
