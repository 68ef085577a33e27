//! A database file that is moved, replaced or deleted while it is open: SQLite goes on with the one it has, and nobody would
//! find what is written to it.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::super::StoreError;
use crate::files::beside;

/// Which file is open, whatever is at its path by now: its device and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpenFile(u64, u64);

/// The database and its log, as they were opened.
#[derive(Debug)]
pub(super) struct OpenFiles {
    pub(super) database: OpenFile,
    /// It is there as long as a connection is.
    log: Option<OpenFile>,
}

impl OpenFile {
    pub(super) fn at(path: &Path) -> std::io::Result<Self> {
        fs_err::metadata(path).map(|found| Self(found.dev(), found.ino()))
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
    pub(super) fn with_log(database: OpenFile, path: &Path) -> Self {
        Self { database, log: OpenFile::at(&beside(path, "-wal")).ok() }
    }

    /// SQLite leaves the log of a file that was replaced under its name, where it would be taken for the other file's. To be
    /// called when no connection is open any more.
    pub(super) fn set_foreign_log_aside(&self, path: &Path) {
        let log = beside(path, "-wal");
        let is_ours = self.log.is_some_and(|ours| OpenFile::at(&log).is_ok_and(|found| found == ours));
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
