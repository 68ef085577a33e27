//! What a database file is, for somebody who must not change it.

use std::path::Path;

use sqlx::SqliteConnection;

use super::super::StoreError;
use super::super::grain_store::Identity;
use super::latest_version;
use super::lock::StoreLock;
use super::open::{check_absent, is_database_path, real_path};
use super::recognise::recognise;
use super::view::View;
use crate::domain::SpaceId;
use crate::grains::words::rules;

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
        /// The models that the operator has disabled.
        disabled_models: Vec<String>,
        /// What is in it; `None` in a file of an older version.
        contents: Option<Contents>,
    },
    /// A running Granary works with it.
    InUse {
        /// Who holds its lock, as far as the lock file tells.
        holder: String,
    },
}

/// What is in a database, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// Grains.
    pub n_grains: u64,
    /// Every space that holds vectors: its dimensions, and how many it holds.
    pub spaces: Vec<(SpaceId, u32, u64)>,
    /// Which database it is, and the epoch that saved indexes must name.
    pub identity: Identity,
    /// What contradicts itself, in words. None in a good file.
    pub faults: Vec<String>,
}

impl FileState {
    /// Looks at the file without changing a byte of it. Takes its lock meanwhile, and leaves nothing beside it.
    ///
    /// # Errors
    /// What opening it would be refused with: [`StoreError::Foreign`], [`StoreError::Newer`], [`StoreError::CutOff`], or
    /// what the system says.
    pub async fn of(path: &Path) -> Result<Self, StoreError> {
        let path = real_path(path)?;
        if !is_database_path(&path)? {
            return check_absent(&path).map(|()| Self::Absent);
        }
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
    let name: Result<Option<String>, _> =
        sqlx::query_scalar("SELECT name FROM active_model").fetch_optional(&mut view.connection).await;
    let disabled: Result<Vec<String>, _> =
        sqlx::query_scalar("SELECT name FROM disabled_models").fetch_all(&mut view.connection).await;
    let contents = if version == latest_version() { Some(read(&mut view.connection).await) } else { None };
    view.close().await;
    let (active_model, disabled_models) = if version == latest_version() {
        let failed = |source| StoreError::sql("read which models are active and disabled", path, source);
        (name.map_err(failed)?, disabled.map_err(failed)?)
    } else {
        // Older files have no such tables.
        (name.unwrap_or_default(), disabled.unwrap_or_default())
    };
    let contents = contents.transpose().map_err(|source| StoreError::sql("check the database", path, source))?;
    Ok(FileState::Known { version, latest: latest_version(), active_model, disabled_models, contents })
}

async fn read(connection: &mut SqliteConnection) -> Result<Contents, sqlx::Error> {
    let mut faults: Vec<String> = sqlx::query_scalar("PRAGMA integrity_check(5)").fetch_all(&mut *connection).await?;
    faults.retain(|finding| finding != "ok");
    for (sql, fault) in [
        (
            "SELECT count(*) FROM embeddings WHERE grain NOT IN (SELECT number FROM grains)",
            "vectors belong to no grain",
        ),
        ("SELECT count(*) FROM embeddings WHERE space NOT IN (SELECT id FROM spaces)", "vectors are in no known space"),
        (
            "SELECT count(*) FROM embeddings AS e JOIN spaces AS s ON s.id = e.space \
             WHERE length(e.vector) <> 4 * s.dimensions",
            "vectors have another length than their space",
        ),
        (
            "SELECT count(*) FROM embeddings AS e JOIN grains AS g ON g.number = e.grain \
             WHERE e.text_version > g.text_version",
            "vectors are of a text that their grain has not got yet",
        ),
    ] {
        let n: i64 = sqlx::query_scalar(sql).fetch_one(&mut *connection).await?;
        faults.extend((n > 0).then(|| format!("{n} {fault}")));
    }
    // Where the rules are others the next start makes the index anew.
    let n: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM grains WHERE number NOT IN (SELECT id FROM grain_words_docsize) \
         AND (SELECT version FROM word_rules) = ?",
    )
    .bind(rules())
    .fetch_one(&mut *connection)
    .await?;
    faults.extend((n > 0).then(|| format!("{n} grains are not in the index of words")));
    let held: Vec<(String, u32, i64)> = sqlx::query_as(
        "SELECT e.space, s.dimensions, count(*) FROM embeddings AS e JOIN spaces AS s ON s.id = e.space \
         GROUP BY e.space ORDER BY e.space",
    )
    .fetch_all(&mut *connection)
    .await?;
    let space = |(id, dimensions, n): (String, u32, i64)| {
        Some((SpaceId::parse(&id).ok()?, dimensions, u64::try_from(n).unwrap_or_default()))
    };
    let n_grains: i64 = sqlx::query_scalar("SELECT count(*) FROM grains").fetch_one(&mut *connection).await?;
    let (database, epoch) = sqlx::query_as("SELECT database, epoch FROM identity").fetch_one(&mut *connection).await?;
    Ok(Contents {
        n_grains: u64::try_from(n_grains).unwrap_or_default(),
        spaces: held.into_iter().filter_map(space).collect(),
        identity: Identity { database, epoch },
        faults,
    })
}
