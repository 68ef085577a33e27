//! From whatever schema version a file has to the newest one.

use std::path::Path;

use sqlx::migrate::{Migrate, MigrateError};
use sqlx::{Connection, SqliteConnection};

use super::super::StoreError;
use super::copy::keep_copy;
use super::grains::bring_up_to_date;
use super::recognise::{Recognised, sql_error};
use super::{MIGRATIONS_TABLE, MIGRATOR, latest_version};

/// Copies an older file, then runs the schema migrations it lacks. A blank file gets all of them, without a copy. Words are
/// put into their index last, where that was made by other rules.
///
/// Each migration is one transaction, and so is the record of those an old file already has: whenever this is cut off,
/// the file has some whole version, and the next call goes on from there.
pub(super) async fn upgrade(
    connection: &mut SqliteConnection,
    path: &Path,
    found: Recognised,
) -> Result<(), StoreError> {
    let latest = latest_version();
    let older = found.version().filter(|version| *version < latest);
    if let Some(version) = older {
        tracing::info!(path = %path.display(), from = version, to = latest, "copying the database before its upgrade");
        let copy = keep_copy(connection, path, latest).await?;
        tracing::info!(copy = %copy.display(), "the copy of the database is whole");
    }
    // After the copy: until then the old file is read, and recovered if its last process crashed, but not changed.
    use_write_ahead_log(connection, path).await?;
    if let Recognised::Unrecorded(version) = found {
        record(connection, version)
            .await
            .map_err(|source| StoreError::sql("record its schema version", path, source))?;
    }
    if found != Recognised::Recorded(latest) {
        migrate(connection, found.version().unwrap_or_default())
            .await
            .map_err(|error| StoreError::sql("run a schema migration", path, sql_error(error)))?;
        let from = older.unwrap_or_default();
        tracing::info!(path = %path.display(), from, to = latest, "the database has the newest schema version");
    }
    bring_up_to_date(connection).await.map_err(|source| StoreError::sql("make the index of words", path, source))
}

async fn use_write_ahead_log(connection: &mut SqliteConnection, path: &Path) -> Result<(), StoreError> {
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode = WAL")
        .fetch_one(connection)
        .await
        .map_err(|source| StoreError::sql("turn on the write-ahead log", path, source))?;
    if mode == "wal" { Ok(()) } else { Err(StoreError::NoWriteAheadLog { path: path.to_owned(), mode }) }
}

/// Writes down which migrations an old file already has, in the form that sqlx gives them.
async fn record(connection: &mut SqliteConnection, version: i64) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    transaction.ensure_migrations_table(MIGRATIONS_TABLE).await.map_err(sql_error)?;
    for migration in MIGRATOR.iter().filter(|migration| migration.version <= version) {
        transaction.skip(MIGRATIONS_TABLE, migration).await.map_err(sql_error)?;
    }
    transaction.commit().await
}

/// Runs the migrations after that version. What was applied before has been checked when the file was recognised.
async fn migrate(connection: &mut SqliteConnection, from: i64) -> Result<(), MigrateError> {
    // Not `Migrator::run`: its future is not `Send` inside another one ("`Acquire` is not general enough").
    connection.ensure_migrations_table(MIGRATIONS_TABLE).await?;
    for migration in MIGRATOR.iter().filter(|migration| migration.version > from) {
        connection.apply(MIGRATIONS_TABLE, migration).await?;
        tracing::info!(version = migration.version, what = %migration.description, "ran a schema migration");
    }
    Ok(())
}
