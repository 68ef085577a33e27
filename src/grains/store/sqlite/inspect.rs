//! What a database file is, for somebody who must not change it.

use std::path::Path;

use super::super::StoreError;
use super::latest_version;
use super::lock::StoreLock;
use super::open::is_database_path;
use super::recognise::recognise;
use super::view::View;

/// What stands at the path of a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileState {
    /// Nothing: the first start creates it.
    Absent,
    /// A file that the first start fills.
    Blank,
    /// A database that this build opens, upgrading it first where it is older.
    Known {
        /// The schema version it has.
        version: i64,
        /// The schema version it has once it was opened.
        latest: i64,
        /// The active model that it remembers.
        active_model: Option<String>,
    },
    /// A running Granary works with it.
    InUse {
        /// Who holds its lock, as far as the lock file tells.
        holder: String,
    },
}

impl FileState {
    /// Looks at the file without changing a byte of it. Takes its lock meanwhile, and leaves nothing beside it.
    ///
    /// # Errors
    /// What opening it would be refused with: [`StoreError::Foreign`], [`StoreError::Newer`], or what the system says.
    pub async fn of(path: &Path) -> Result<Self, StoreError> {
        if !is_database_path(path)? {
            return Ok(Self::Absent);
        }
        let path = fs_err::canonicalize(path).map_err(|source| StoreError::files("find the database", path, source))?;
        let lock = match StoreLock::acquire(&path) {
            Err(StoreError::InUse { holder, .. }) => return Ok(Self::InUse { holder }),
            lock => lock?,
        };
        let found = look(&path).await;
        lock.withdraw();
        found
    }
}

async fn look(path: &Path) -> Result<FileState, StoreError> {
    let Some(version) = recognise(path).await?.version() else { return Ok(FileState::Blank) };
    let mut view = View::open(path).await?;
    // Older files have no such table.
    let name: Result<Option<String>, _> =
        sqlx::query_scalar("SELECT name FROM active_model").fetch_optional(&mut view.connection).await;
    view.close().await;
    Ok(FileState::Known { version, latest: latest_version(), active_model: name.ok().flatten() })
}
