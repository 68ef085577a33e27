//! What can go wrong in the index of a space.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use crate::files::is_no_room;

/// A vector could not be taken, or the index's files not be used.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The vector has another length than the space's.
    #[error("a vector of {found} dimensions cannot be compared in a space of {expected}")]
    Dimensions {
        /// What the space has.
        expected: usize,
        /// What the vector has.
        found: usize,
    },
    /// The vector cannot be compared with anything.
    #[error("value {position} of a vector is {value}: only finite numbers below 10^15 can be compared")]
    Value {
        /// Which one, from 0.
        position: usize,
        /// The value.
        value: f32,
    },
    /// There is no room, or the quota is spent.
    #[error(
        "the disk of the index file `{path}` is full, so it was not possible to {doing}: make room, and it goes on"
    )]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The file system refused.
    #[error(
        "it was not possible to {doing} in the index file `{path}`: check that this user may read and write its \
         folder; the index is made again from the database at the next start"
    )]
    Files {
        /// The file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A vector read back is not the one that was written.
    #[error(
        "the index file `{path}` was changed by something else, or its disk loses data: vector {slot} is not the one \
         that was written. The index is made again from the database at the next start"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which vector, from 0.
        slot: usize,
    },
    /// A change failed before, so that the index may not be what the database says.
    #[error("`{path}` is not saved, because a change of the index failed before: it is made again at the next start")]
    Incomplete {
        /// The file.
        path: PathBuf,
    },
    /// The quantised scan refused what it was given.
    #[error("the quantised index was not able to {doing}")]
    Codes {
        /// What was tried.
        doing: &'static str,
        /// What it said.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl IndexError {
    /// Whether the files are to blame, and no query.
    #[must_use]
    pub fn is_of_files(&self) -> bool {
        matches!(self, Self::DiskFull { .. } | Self::Files { .. } | Self::Damaged { .. })
    }

    /// The sentence of it that callers may read. The log has its own words: where the files lie is the operator's to know.
    #[must_use]
    pub fn for_callers(&self) -> String {
        match self {
            Self::DiskFull { doing, .. } => {
                format!("the disk of the index is full, so it was not possible to {doing}: make room, and it goes on")
            }
            Self::Files { doing, .. } => format!("it was not possible to {doing} where the index is kept, see the log"),
            Self::Damaged { .. } => {
                "a file of the index was changed by something else, or its disk loses data, see the log".to_owned()
            }
            Self::Incomplete { .. } => "a change of the index failed before, see the log".to_owned(),
            Self::Dimensions { .. } | Self::Value { .. } | Self::Codes { .. } => self.to_string(),
        }
    }

    /// Sorts an error of the file system.
    pub(super) fn files(doing: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        if is_no_room(&source) { Self::DiskFull { path, doing, source } } else { Self::Files { path, doing, source } }
    }
}

/// Why no index was loaded. All but [`Absent`](Self::Absent) deserve a warning, and none stops a start.
#[derive(Debug, thiserror::Error)]
pub enum NotLoaded {
    /// No index was saved: the first start, or the last process was killed.
    #[error("no index of the space was saved")]
    Absent,
    /// The files belong to another state of the database, or to another one.
    #[error("`{path}` was saved for another {what} than the database has now")]
    Stale {
        /// The file.
        path: PathBuf,
        /// What differs.
        what: &'static str,
    },
    /// The files are not as they were saved.
    #[error("`{path}` is damaged: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The files could not be read.
    #[error("`{path}` could not be read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What was said.
        source: io::Error,
    },
}
