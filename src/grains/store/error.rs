//! What can go wrong between Granary and its database.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use crate::files::is_no_room;

/// SQLite's result codes that mean something of their own here: <https://www.sqlite.org/rescode.html>.
mod result_code {
    pub(super) const NOT_PERMITTED: i32 = 3;
    pub(super) const BUSY: i32 = 5;
    pub(super) const LOCKED: i32 = 6;
    pub(super) const READ_ONLY: i32 = 8;
    pub(super) const INTERRUPTED: i32 = 9;
    pub(super) const CORRUPT: i32 = 11;
    pub(super) const FULL: i32 = 13;
    pub(super) const CANNOT_OPEN: i32 = 14;
    pub(super) const NOT_A_DATABASE: i32 = 26;
    /// An extended code: the shared memory beside the file cannot grow. In practice that is for want of room.
    pub(super) const NO_SHARED_MEMORY: i32 = 10 + 256 * 19;
}

/// The database could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process works on the database.
    #[error(
        "`{path}` is in use by {holder}, which holds `{lock}`: stop that process, or set another `grains.database_url`"
    )]
    InUse {
        /// The database.
        path: PathBuf,
        /// The lock file beside it.
        lock: PathBuf,
        /// Who holds the lock, as far as the lock file tells.
        holder: String,
    },
    /// The file is not Granary's.
    #[error(
        "`{path}` was left untouched because it is not a Granary database: it is {found}. Expected no file, an empty \
         one, or one that Granary 0.3 or later wrote; set another `grains.database_url`, or move the file away"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is instead, in words.
        found: String,
    },
    /// What was given to restore is nothing that a database can be made of.
    #[error(
        "`{path}` is no snapshot that can be restored: it is {found}. Name one that `POST /snapshots` made, or another \
         whole database of Granary's"
    )]
    NoSnapshot {
        /// The file.
        path: PathBuf,
        /// What it is instead, in words.
        found: String,
        /// What SQLite said; `None` where it was not asked.
        source: Option<sqlx::Error>,
    },
    /// A snapshot was to take the place of the database, and the restore did not come to its end.
    #[error(
        "`{path}` is missing because the restore of a snapshot was cut off: repeat `granary snapshot restore FILE`. What \
         was there before is beside it, under a name with `.replaced`; to begin without both, delete `{copy}`"
    )]
    CutOff {
        /// The database.
        path: PathBuf,
        /// The copy of the snapshot, which may be a part of it.
        copy: PathBuf,
    },
    /// The file has schema migrations this build does not know.
    #[error(
        "`{path}` was left untouched because a newer Granary wrote it: its schema version is {version}, and this build \
         knows versions up to {known}. Start that newer Granary, or restore the copy it made before its upgrade with \
         `granary snapshot restore FILE`"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The schema version the file has.
        version: i64,
        /// The newest schema version this build knows.
        known: i64,
    },
    /// SQLite found pages that contradict each other, or some are missing.
    #[error("`{path}` is damaged, so it was not possible to {doing}: restore it from a copy or a snapshot")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What SQLite said.
        source: sqlx::Error,
    },
    /// Another file, or none, is where the one that is open was.
    #[error(
        "`{path}` was moved, replaced or deleted while it was in use, and nothing is written any more: move it back, or stop \
         the server to begin with the file that is there now. Unless it ends with status 0, move `{path}-wal` away before \
         the next start: it is the old file's"
    )]
    Replaced {
        /// Where it was.
        path: PathBuf,
    },
    /// A program that does not respect the lock, such as Granary 0.3 or the `sqlite3` shell, works on the file.
    #[error("another program is working on `{path}`, so it was not possible to {doing}: stop that program")]
    Busy {
        /// The file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What SQLite said; `None` when the file was seen changing.
        source: Option<sqlx::Error>,
    },
    /// It took too long, and others wait.
    #[error("`{path}` took too long to {doing}, and was interrupted: ask for less, with a narrower filter")]
    TooSlow {
        /// The file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What SQLite said.
        source: sqlx::Error,
    },
    /// Others have kept all connections for as long as anybody waits for one.
    #[error(
        "`{path}` had no free connection to {doing}: others kept all of them for as long as a request waits. Try again"
    )]
    Overloaded {
        /// The file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
    },
    /// There is no room, or the quota is spent.
    #[error(
        "the disk of `{path}` is full, so it was not possible to {doing}: make room; a server that runs goes on by itself \
         then, and anything else is to be started again"
    )]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The file system has no shared memory, as many network shares.
    #[error(
        "`{path}` cannot use a write-ahead log (SQLite kept the journal mode `{mode}`): \
         put the database on a local disk"
    )]
    NoWriteAheadLog {
        /// The file.
        path: PathBuf,
        /// The journal mode SQLite stayed in.
        mode: String,
    },
    /// The file system refused.
    #[error(
        "it was not possible to {doing} for `{path}`: check that this user may read and write it and its folder, and that \
         file descriptors are left (`ulimit -n`)"
    )]
    Files {
        /// The database.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// SQLite refused, for a reason that has no variant of its own.
    #[error(
        "it was not possible to {doing} in `{path}`: stop every Granary, then `sqlite3 FILE 'PRAGMA integrity_check'` tells whether the file is whole"
    )]
    Sql {
        /// The file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What SQLite said.
        source: sqlx::Error,
    },
    /// A stored value is not one that Granary writes.
    #[error("`{path}` holds {what} that Granary does not write: correct or delete it by hand")]
    Value {
        /// The file.
        path: PathBuf,
        /// Which value, in words.
        what: &'static str,
        /// Why it is not one.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl StoreError {
    /// Sorts an error of SQLite: what the caller can act on gets a variant of its own.
    pub(super) fn sql(doing: &'static str, path: &Path, source: sqlx::Error) -> Self {
        let path = path.to_owned();
        if matches!(source, sqlx::Error::PoolTimedOut) {
            return Self::Overloaded { path, doing };
        }
        if extended_code(&source) == Some(result_code::NO_SHARED_MEMORY) {
            return Self::DiskFull { path, doing, source: source.into() };
        }
        match primary_code(&source) {
            Some(result_code::BUSY | result_code::LOCKED) => Self::Busy { path, doing, source: Some(source) },
            Some(result_code::CORRUPT | result_code::NOT_A_DATABASE) => Self::Damaged { path, doing, source },
            Some(result_code::INTERRUPTED) => Self::TooSlow { path, doing, source },
            Some(result_code::FULL) => Self::DiskFull { path, doing, source: source.into() },
            Some(result_code::NOT_PERMITTED | result_code::READ_ONLY | result_code::CANNOT_OPEN) => {
                Self::Files { path, doing, source: io::Error::other(source) }
            }
            _ => Self::Sql { path, doing, source },
        }
    }

    /// The same for a file that nothing was known of yet.
    pub(super) fn sql_of_unknown_file(doing: &'static str, path: &Path, source: sqlx::Error) -> Self {
        if primary_code(&source) == Some(result_code::NOT_A_DATABASE) {
            Self::not_a_database(path)
        } else {
            Self::sql(doing, path, source)
        }
    }

    /// The file does not begin as an SQLite file does.
    pub(super) fn not_a_database(path: &Path) -> Self {
        Self::Foreign { path: path.to_owned(), found: "not an SQLite database, or an encrypted one".to_owned() }
    }

    /// The same error of a file that was given to restore.
    pub(super) fn of_snapshot(self) -> Self {
        match self {
            Self::Foreign { path, found } => Self::NoSnapshot { path, found, source: None },
            Self::Damaged { path, source, .. } => {
                Self::NoSnapshot { path, found: "damaged".to_owned(), source: Some(source) }
            }
            error => error,
        }
    }

    /// Sorts an error of the file system.
    pub(super) fn files(doing: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        if is_no_room(&source) {
            Self::DiskFull { path, doing, source: source.into() }
        } else {
            Self::Files { path, doing, source }
        }
    }
}

fn extended_code(error: &sqlx::Error) -> Option<i32> {
    error.as_database_error()?.code()?.parse().ok()
}

/// The primary result code; the extended one carries it in its lowest byte.
fn primary_code(error: &sqlx::Error) -> Option<i32> {
    Some(extended_code(error)? & 0xff)
}
