//! Why files of the hub are not there.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::redirect::RedirectError;
use crate::domain::{HubId, HubRevision, HubSource};
use crate::files::is_no_room;

/// Why a model could not be had from the hub, or may not be used.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// A variable of the environment cannot be used.
    #[error("{variable} {problem}")]
    Setting {
        /// The variable.
        variable: &'static str,
        /// What is wrong with it; never its value.
        problem: String,
    },
    /// The hub wants a token, or another one.
    #[error(
        "the hub refuses `{repository}` with status {status}: if it is private or gated, ask for access on its page and \
         set HF_TOKEN to a token of an account that has it (a token is {} now)", if *.has_token { "set" } else { "not set" }
    )]
    Access {
        /// The repository.
        repository: HubId,
        /// What the hub answered: 401 or 403.
        status: u16,
        /// Whether a token was sent.
        has_token: bool,
    },
    /// No such repository.
    #[error("the hub at {endpoint} has no repository `{repository}`, or shows it only to those who set HF_TOKEN")]
    RepositoryNotFound {
        /// The hub.
        endpoint: String,
        /// The repository.
        repository: HubId,
    },
    /// No such branch, tag or commit.
    #[error("`{repository}` has no revision `{revision}`")]
    RevisionNotFound {
        /// The repository.
        repository: HubId,
        /// What was asked for.
        revision: HubRevision,
    },
    /// A needed file is not in the repository.
    #[error("`{repository}` has no file `{file}` at commit {commit}{}", .available.as_deref().unwrap_or_default())]
    FileNotFound {
        /// The repository.
        repository: HubId,
        /// The commit.
        commit: String,
        /// The file.
        file: String,
        /// What could have been meant, as the end of the sentence.
        available: Option<String>,
    },
    /// The network may not be used, and the cache does not hold the model.
    #[error(
        "`{model}` is not complete in {}, and HF_HUB_OFFLINE forbids to download it: unset that, or fill the cache \
         elsewhere and copy it here", cache_dir.display()
    )]
    Offline {
        /// The model.
        model: Box<HubSource>,
        /// Where it was looked for.
        cache_dir: PathBuf,
    },
    /// The hub cannot be reached.
    #[error(
        "no connection to {host}: see that this machine reaches it, set HF_ENDPOINT to a mirror, or set HF_HUB_OFFLINE=1 \
         to use what is in the cache"
    )]
    Connect {
        /// The host, with its scheme.
        host: String,
        /// What the network said.
        #[source]
        source: reqwest::Error,
    },
    /// The connection breaks again and again, or stands still.
    #[error("the connection to {host} broke {n_tries} times: what has come is kept, and the next try goes on there")]
    Broken {
        /// The host, with its scheme.
        host: String,
        /// How often it was tried without getting on.
        n_tries: u32,
        /// What the network said last.
        #[source]
        source: Option<reqwest::Error>,
    },
    /// The hub does not serve now.
    #[error("{host} answers with status {status}, {n_tries} times in a row: try again later")]
    Unavailable {
        /// The host, with its scheme.
        host: String,
        /// 429 or 5xx.
        status: u16,
        /// How often it was asked.
        n_tries: u32,
        /// How long it wants to be left alone, if it said so.
        retry_after: Option<Duration>,
    },
    /// A redirect that is not followed.
    #[error("the hub sends `{file}` elsewhere, and there Granary does not go")]
    Redirect {
        /// The file, or the address of the list of files.
        file: String,
        /// Why not.
        source: RedirectError,
    },
    /// The answer is not that of a hub.
    #[error("{host} does not answer like a hub: {problem}")]
    Unexpected {
        /// The host, with its scheme.
        host: String,
        /// What was wrong.
        problem: String,
    },
    /// There is not enough room.
    #[error("the disk is full: {} needs {needed_bytes} bytes more", path.display())]
    DiskFull {
        /// The folder or file being written.
        path: PathBuf,
        /// What is missing to the end of the download.
        needed_bytes: u64,
    },
    /// There is no room for something small: a folder, a link, a lock or a list.
    #[error("the disk is full, or the share of it that this user may have: the cache of the hub cannot be written")]
    NoRoom(#[source] io::Error),
    /// What was downloaded is not what the hub, or the lock file, says it is.
    #[error("`{file}` came with wrong contents and was removed: its SHA-256 should be {expected} and is {found}")]
    WrongHash {
        /// The file.
        file: String,
        /// The SHA-256 it should have.
        expected: String,
        /// The SHA-256 it had.
        found: String,
    },
    /// A file is no longer what was recorded when it was downloaded.
    #[error(
        "`{file}` has changed since it was downloaded: its SHA-256 was {expected} and is {found}; remove {} to have it \
         downloaded again, or remove the model's entry from {} to accept it", path.display(), lock_file.display()
    )]
    Changed {
        /// The file, as the repository names it.
        file: String,
        /// Where it is.
        path: PathBuf,
        /// The recorded SHA-256.
        expected: String,
        /// The SHA-256 now.
        found: String,
        /// Where it is recorded.
        lock_file: PathBuf,
    },
    /// The list of what was downloaded cannot be understood.
    #[error("{} cannot be understood and is left as it is: correct it, or remove it to pin every model anew", path.display())]
    LockFile {
        /// The list.
        path: PathBuf,
        /// What the parser said.
        source: Box<toml::de::Error>,
    },
    /// A file of the model is not what its name promises.
    #[error("`{file}` of `{repository}` cannot be used: {problem}")]
    Malformed {
        /// The repository.
        repository: HubId,
        /// The file.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// The cache cannot be read or written.
    #[error("the cache of the hub cannot be used")]
    Cache(#[source] io::Error),
    /// It was called off.
    #[error("the download was cancelled: what has come is kept, and the next try goes on there")]
    Cancelled,
}

impl HubError {
    /// Whether trying again is pointless until somebody changes a setting, a file or the repository.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        !matches!(
            self,
            Self::Connect { .. }
                | Self::Broken { .. }
                | Self::Unavailable { .. }
                | Self::Unexpected { .. }
                | Self::DiskFull { .. }
                | Self::NoRoom(_)
                | Self::WrongHash { .. }
                | Self::Cache(_)
                | Self::Cancelled
        )
    }
}

impl From<io::Error> for HubError {
    fn from(error: io::Error) -> Self {
        if is_no_room(&error) { Self::NoRoom(error) } else { Self::Cache(error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::LoadError;
    use crate::models::lifecycle::FailureKind;

    #[test]
    fn a_full_disk_is_told_from_one_that_cannot_be_used() {
        for (kind, expected) in [
            (io::ErrorKind::StorageFull, FailureKind::Disk),
            (io::ErrorKind::QuotaExceeded, FailureKind::Disk),
            (io::ErrorKind::PermissionDenied, FailureKind::Model),
        ] {
            let error = LoadError::from(HubError::from(io::Error::from(kind)));
            assert_eq!(error.kind(), expected, "{error}");
            assert!(!error.is_permanent(), "{error}");
        }
    }
}
