//! Reading a database that may be anybody's, without changing a byte of it or leaving a file beside it.
//!
//! Opening an SQLite file is not harmless, even read-only: SQLite makes `-wal` and `-shm` files for a file in WAL mode,
//! and rolls a crashed transaction back into the file. Ignoring both would show a state that never was. So:
//!
//! | beside the file | the view |
//! |---|---|
//! | nothing that counts | the file itself, opened `immutable` |
//! | a `-wal` with content | hard links to the file and the log in a folder of their own, opened read-only |
//! | a hot `-journal` | copies of everything in a folder of their own, where SQLite may roll back |
//!
//! A log may be as long as a database, and a disk full. SQLite opens it for writing, too, but through a connection that
//! reads only it never does: what the last connection does with a log when it closes needs a lock that the kernel gives
//! nobody on a file that is open for reading.

use std::io::Read;
use std::path::{Path, PathBuf};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};

use super::super::StoreError;
use crate::files::{beside, if_there};

/// What SQLite appends to a database's name for its write-ahead log, and for its rollback journal.
pub(super) const LOG: &str = "-wal";
pub(super) const JOURNAL: &str = "-journal";

/// A database as its next reader would see it.
#[derive(Debug)]
pub(super) struct View {
    /// A connection that cannot write to the file.
    pub(super) connection: SqliteConnection,
    scratch: Option<Scratch>,
}

impl View {
    /// Opens the view. Whether the file is a database at all shows at the first query. The caller holds its lock, and
    /// shares it with nobody where there is a log or a journal.
    pub(super) async fn open(path: &Path) -> Result<Self, StoreError> {
        const DOING: &str = "look at the database without changing it";
        let options = SqliteConnectOptions::new().disable_statement_logging();
        let (options, scratch) = if has_hot_journal(path) {
            let scratch = Scratch::create(path).and_then(|scratch| scratch.copy_all(path).map(|()| scratch));
            let scratch = scratch.map_err(|source| StoreError::files(DOING, path, source))?;
            (options.filename(scratch.database()), Some(scratch))
        } else if has_log(path) {
            let scratch = Scratch::create(path).and_then(|scratch| scratch.link_with_log(path).map(|()| scratch));
            let scratch = scratch.map_err(|source| StoreError::files(DOING, path, source))?;
            (options.filename(scratch.database()).read_only(true), Some(scratch))
        } else {
            (options.filename(path).read_only(true).immutable(true), None)
        };
        let connection = options.connect().await.map_err(|source| StoreError::sql(DOING, path, source))?;
        Ok(Self { connection, scratch })
    }

    /// Closes the connection, then removes what was made for it.
    pub(super) async fn close(self) {
        // Nothing was written, so there is nothing a failed close could lose.
        let _ = self.connection.close().await;
        drop(self.scratch);
    }
}

/// Whether committed data may be waiting in a write-ahead log.
pub(super) fn has_log(path: &Path) -> bool {
    fs_err::metadata(beside(path, LOG)).is_ok_and(|log| log.len() > 0)
}

/// Whether a transaction was cut off and must be rolled back. A journal that was merely finished with is empty or
/// begins with a zero: <https://www.sqlite.org/fileformat2.html#the_rollback_journal>.
pub(super) fn has_hot_journal(path: &Path) -> bool {
    let mut first = [0];
    fs_err::File::open(beside(path, JOURNAL)).and_then(|mut journal| journal.read_exact(&mut first)).is_ok()
        && first != [0]
}

/// A folder beside the database, because hard links do not reach other file systems. Removed when dropped.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Scratch {
    /// The name is fixed: under the lock there is one such view at a time, and what a killed process left is found again.
    fn create(path: &Path) -> std::io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;

        let folder = beside(path, ".view");
        remove_folder(&folder)?;
        std::fs::DirBuilder::new().mode(0o700).create(&folder)?;
        Ok(Self(folder))
    }

    fn database(&self) -> PathBuf {
        self.0.join("db")
    }

    fn link_with_log(&self, path: &Path) -> std::io::Result<()> {
        for suffix in ["", LOG] {
            let (original, link) = (beside(path, suffix), beside(&self.database(), suffix));
            // File systems without hard links pay for a copy.
            fs_err::hard_link(&original, &link).or_else(|_| fs_err::copy(&original, &link).map(drop))?;
        }
        Ok(())
    }

    /// Never a link: SQLite will write to this one.
    fn copy_all(&self, path: &Path) -> std::io::Result<()> {
        for suffix in ["", JOURNAL, LOG] {
            let original = beside(path, suffix);
            if fs_err::exists(&original)? {
                fs_err::copy(&original, beside(&self.database(), suffix))?;
            }
        }
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = remove_folder(&self.0) {
            tracing::warn!(%error, "a folder made to look at the database stays behind; the next start removes it");
        }
    }
}

fn remove_folder(folder: &Path) -> std::io::Result<()> {
    if_there(fs_err::remove_dir_all(folder)).map(drop)
}
