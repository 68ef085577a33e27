//! `[grains]`: the database, and what grains may be like.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use super::spelling::{self, Problem, outside};

const MAX_TEXT: RangeInclusive<ByteSize> = ByteSize::kib(1)..=ByteSize::mib(64);
const SLOW_SEARCH: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_hours(1);
const ROLLBACK_WINDOW: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(24 * 365);

/// `[grains]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrainsConfig {
    /// Whether a database is opened.
    pub enabled: bool,
    /// Where the database is. `None`: `granary.db` in the data directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database_url: Option<DatabaseUrl>,
    /// Bytes of a grain's text.
    #[serde(with = "spelling::size")]
    pub max_text: ByteSize,
    /// Searches that take longer are logged.
    #[serde(with = "spelling::duration")]
    pub slow_search: Duration,
    /// How long a re-embedding can be rolled back.
    #[serde(with = "spelling::duration")]
    pub rollback_window: Duration,
}

impl GrainsConfig {
    pub(super) fn problems(&self) -> Vec<Problem> {
        [
            outside("grains.max_text", &self.max_text, &MAX_TEXT, |size| spelling::size::spell(*size)),
            outside("grains.slow_search", &self.slow_search, &SLOW_SEARCH, spelling::duration::spell),
            outside("grains.rollback_window", &self.rollback_window, &ROLLBACK_WINDOW, spelling::duration::spell),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// A URL of the form `sqlite:///absolute/path.db` or `sqlite:relative.db`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DatabaseUrl(PathBuf);

/// A URL that names no database of this version. None of the messages repeats the URL, which may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseUrlError {
    /// PostgreSQL.
    #[error("found a PostgreSQL URL, which this version does not support; expected `sqlite:///absolute/path.db`")]
    Postgres,
    /// A database that would be gone with the process.
    #[error(
        "found an in-memory database, which a restart would lose; expected a file, or `grains.enabled = false` to keep \
         no database"
    )]
    InMemory,
    /// Options behind the path.
    #[error("found options behind a `?`, which the server sets itself; expected `sqlite:///absolute/path.db`")]
    Options,
    /// Another database, or none.
    #[error(
        "found no `sqlite:` at its start, expected `sqlite:///absolute/path.db`, or `sqlite:path.db` relative to the \
         working directory"
    )]
    Foreign,
    /// No path, or that of a folder.
    #[error(
        "found no file behind `sqlite:`, expected `sqlite:///absolute/path.db`, or `sqlite:path.db` relative to the \
         working directory"
    )]
    NoFile,
}

impl DatabaseUrl {
    /// The database file; a relative path starts at the working directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl TryFrom<String> for DatabaseUrl {
    type Error = DatabaseUrlError;

    fn try_from(text: String) -> Result<Self, DatabaseUrlError> {
        let (scheme, rest) = text.split_once(':').ok_or(DatabaseUrlError::Foreign)?;
        match scheme.to_ascii_lowercase().as_str() {
            "sqlite" => {}
            "postgres" | "postgresql" => return Err(DatabaseUrlError::Postgres),
            _ => return Err(DatabaseUrlError::Foreign),
        }
        let path = rest.strip_prefix("//").unwrap_or(rest);
        if path.starts_with(":memory:") {
            Err(DatabaseUrlError::InMemory)
        } else if path.contains('?') {
            Err(DatabaseUrlError::Options)
        } else if path.is_empty() || path.ends_with('/') {
            Err(DatabaseUrlError::NoFile)
        } else {
            Ok(Self(PathBuf::from(path)))
        }
    }
}

impl From<DatabaseUrl> for String {
    fn from(url: DatabaseUrl) -> Self {
        let slashes = if url.0.is_absolute() { "//" } else { "" };
        format!("sqlite:{slashes}{}", url.0.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_and_relative_files_are_read_and_written_back() {
        for (text, path) in [
            ("sqlite:///var/lib/g.db", "/var/lib/g.db"),
            ("sqlite:g.db", "g.db"),
            ("sqlite:data/g.db", "data/g.db"),
            ("sqlite:/var/g.db", "/var/g.db"),
            ("SQLite://g.db", "g.db"),
        ] {
            let url = DatabaseUrl::try_from(text.to_owned()).expect(text);
            assert_eq!(url.path(), Path::new(path));
            assert_eq!(DatabaseUrl::try_from(String::from(url.clone())), Ok(url));
        }
    }

    #[test]
    fn other_databases_are_refused_without_repeating_the_url() {
        for (text, error) in [
            ("postgres://u:secret@db/x", DatabaseUrlError::Postgres),
            ("postgresql://u:secret@db/x", DatabaseUrlError::Postgres),
            ("mysql://u:secret@db/x", DatabaseUrlError::Foreign),
            ("sqlite::memory:", DatabaseUrlError::InMemory),
            ("sqlite://:memory:", DatabaseUrlError::InMemory),
            ("sqlite:g.db?mode=ro", DatabaseUrlError::Options),
            ("sqlite:", DatabaseUrlError::NoFile),
            ("sqlite:///", DatabaseUrlError::NoFile),
            ("/var/g.db", DatabaseUrlError::Foreign),
        ] {
            assert_eq!(DatabaseUrl::try_from(text.to_owned()), Err(error), "{text}");
            assert!(!error.to_string().contains("secret"));
        }
    }
}
