//! What the models must find again after a restart.

use futures::future::BoxFuture;

use super::super::StoreError;
use super::SqliteStore;
use crate::domain::ModelName;
use crate::models::ledger::{Ledger, LedgerError};

impl Ledger for SqliteStore {
    fn active_model(&self) -> BoxFuture<'_, Result<Option<ModelName>, LedgerError>> {
        Box::pin(async { self.read_active_model().await.map_err(unreadable) })
    }

    fn record_active_model<'a>(&'a self, name: &'a ModelName) -> BoxFuture<'a, Result<(), LedgerError>> {
        Box::pin(async { self.write_active_model(name).await.map_err(unwritable) })
    }

    fn check(&self) -> BoxFuture<'_, Result<(), LedgerError>> {
        Box::pin(async { self.check().await.map_err(unreadable) })
    }
}

impl SqliteStore {
    async fn read_active_model(&self) -> Result<Option<ModelName>, StoreError> {
        let name: Option<String> = sqlx::query_scalar("SELECT name FROM active_model")
            .fetch_optional(&self.readers)
            .await
            .map_err(|source| StoreError::sql("read the active model", &self.path, source))?;
        name.map(|name| ModelName::parse(&name)).transpose().map_err(|source| StoreError::Value {
            path: self.path.clone(),
            what: "a name of the active model (table `active_model`)",
            source: source.into(),
        })
    }

    /// Committed, and with `synchronous=FULL` on disk, when it returns. Recording the same model again writes nothing.
    async fn write_active_model(&self, name: &ModelName) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO active_model (only, name, changed_at) \
             VALUES (1, ?, strftime('%Y-%m-%dT%H:%M:%SZ', 'now')) \
             ON CONFLICT (only) DO UPDATE SET name = excluded.name, changed_at = excluded.changed_at \
             WHERE name <> excluded.name",
        )
        .bind(name.as_str())
        .execute(&self.writer)
        .await
        .map(drop)
        .map_err(|source| StoreError::sql("record the active model", &self.path, source))
    }
}

fn unreadable(source: StoreError) -> LedgerError {
    LedgerError { action: "read", source: source.into() }
}

fn unwritable(source: StoreError) -> LedgerError {
    LedgerError { action: "written", source: source.into() }
}
