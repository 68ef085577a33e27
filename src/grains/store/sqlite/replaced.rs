//! A database file that is moved, replaced or deleted while it is open: SQLite goes on with the one it has, and nobody would
//! find what is written to it.

use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::super::StoreError;
use crate::files::beside;

/// Which file it is, whatever paths lead to it and whatever is at them by now: its device and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId(u64, u64);

/// The database and its log, as they were opened.
#[derive(Debug)]
pub(super) struct OpenFiles {
    pub(super) database: FileId,
    /// It is there as long as a connection is.
    log: Option<FileId>,
}

impl FileId {
    pub(super) fn at(path: &Path) -> std::io::Result<Self> {
        fs_err::metadata(path).map(|found| Self::by(&found))
    }

    pub(super) fn of(file: &fs_err::File) -> std::io::Result<Self> {
        file.metadata().map(|found| Self::by(&found))
    }

    fn by(found: &Metadata) -> Self {
        Self(found.dev(), found.ino())
    }

    /// Whether that path leads to this file, as far as can be seen.
    pub(super) fn is_at(self, path: &Path) -> bool {
        Self::at(path).is_ok_and(|found| found == self)
    }

    /// Refuses a path at which another file is, or none.
    pub(super) fn refuse_another(self, path: &Path) -> Result<(), StoreError> {
        match Self::at(path) {
            Ok(found) if found == self => Ok(()),
            // Whoever may not look knows nothing.
            Err(error) if error.kind() != ErrorKind::NotFound => Ok(()),
            Ok(_) | Err(_) => Err(StoreError::Replaced { path: path.to_owned() }),
        }
    }
}

impl OpenFiles {
    /// With the log that belongs to the database at that path: a connection to it is open.
    pub(super) fn with_log(database: FileId, path: &Path) -> Self {
        Self { database, log: FileId::at(&beside(path, "-wal")).ok() }
    }

    /// SQLite leaves the log of a file that was replaced under its name, where it would be taken for the other file's. To be
    /// called when no connection is open any more.
    pub(super) fn set_foreign_log_aside(&self, path: &Path) {
        let log = beside(path, "-wal");
        let is_ours = self.log.is_some_and(|ours| ours.is_at(&log));
        if !is_ours || !path.exists() || self.database.refuse_another(path).is_ok() {
            return;
        }
        let mut names = (1..).map(|n| beside(path, &format!("-wal.of-another.{n}")));
        let Some(aside) = names.find(|name| !name.exists()) else { return };
        match fs_err::rename(&log, &aside) {
            Ok(()) => tracing::warn!(log = %aside.display(), "the log of the database that was replaced is set aside"),
            Err(error) => tracing::error!("the log of the database that was replaced spoils the other one: {error}"),
        }
    }
}
