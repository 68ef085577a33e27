//! What the models must find again after a restart.

use std::collections::HashSet;

use async_trait::async_trait;
use sqlx::{FromRow, QueryBuilder, Sqlite, SqlitePool};

use super::super::StoreError;
use super::SqliteStore;
use super::grains::{SERVED_SPACE, bytes_of, vector_of};
use crate::config::AdditionalModel;
use crate::domain::{DeclaredSpace, Fingerprint, ModelName, ReembeddingId, ReembeddingState, SpaceId};
use crate::models::ledger::{Declared, Ledger, LedgerError, MadeGrains, SpaceRecord};

/// Makes a model the active one. Recording the same model again writes nothing.
pub(super) const RECORD_ACTIVE_MODEL: &str = "INSERT INTO active_model (only, name, changed_at) \
     VALUES (1, ?, strftime('%Y-%m-%dT%H:%M:%SZ', 'now')) \
     ON CONFLICT (only) DO UPDATE SET name = excluded.name, changed_at = excluded.changed_at \
     WHERE name <> excluded.name";

#[async_trait]
impl Ledger for SqliteStore {
    async fn active_model(&self) -> Result<Option<ModelName>, LedgerError> {
        let name: Option<String> = sqlx::query_scalar("SELECT name FROM active_model")
            .fetch_optional(&self.readers)
            .await
            .map_err(self.reading("read the active model"))?;
        name.map(|name| self.parse_name(&name, "a name of the active model (table `active_model`)")).transpose()
    }

    async fn active_since(&self) -> Result<Option<i64>, LedgerError> {
        // No time, where it was written otherwise.
        let since_s: Option<Option<i64>> =
            sqlx::query_scalar("SELECT CAST(strftime('%s', changed_at) AS INTEGER) FROM active_model")
                .fetch_optional(&self.readers)
                .await
                .map_err(self.reading("read since when the active model is that"))?;
        Ok(since_s.flatten())
    }

    async fn record_active_model(&self, name: &ModelName) -> Result<(), LedgerError> {
        self.run("record the active model", sqlx::query(RECORD_ACTIVE_MODEL).bind(name.as_str())).await
    }

    async fn registered_models(&self) -> Result<Vec<AdditionalModel>, LedgerError> {
        let entries: Vec<String> =
            sqlx::query_scalar("SELECT entry FROM registered_models ORDER BY registered_at, name")
                .fetch_all(&self.readers)
                .await
                .map_err(self.reading("read the registered models"))?;
        let parsed = entries.iter().map(|entry| serde_json::from_str(entry));
        let what = "an entry of a registered model (table `registered_models`)";
        parsed.collect::<Result<_, serde_json::Error>>().map_err(|source| self.misread(what, source.into()))
    }

    async fn record_registration(&self, entry: &AdditionalModel) -> Result<(), LedgerError> {
        let json =
            serde_json::to_string(entry).map_err(|source| LedgerError { action: "written", source: source.into() })?;
        let failed = self.writing("register a model");
        let mut transaction = self.ledger_writer()?.begin().await.map_err(&failed)?;
        let put = sqlx::query(
            "INSERT OR REPLACE INTO registered_models (name, entry, registered_at) \
             VALUES (?, ?, strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))",
        );
        put.bind(entry.name.as_str()).bind(json).execute(&mut *transaction).await.map_err(&failed)?;
        let enable = sqlx::query("DELETE FROM disabled_models WHERE name = ?");
        enable.bind(entry.name.as_str()).execute(&mut *transaction).await.map_err(&failed)?;
        transaction.commit().await.map_err(&failed)
    }

    async fn forget_registration(&self, name: &ModelName) -> Result<(), LedgerError> {
        let failed = self.writing("delete a registered model");
        let mut transaction = self.ledger_writer()?.begin().await.map_err(&failed)?;
        for statement in [
            "DELETE FROM registered_models WHERE name = ?",
            "DELETE FROM disabled_models WHERE name = ?",
            "DELETE FROM accepted_spaces WHERE model = ?",
        ] {
            sqlx::query(statement).bind(name.as_str()).execute(&mut *transaction).await.map_err(&failed)?;
        }
        transaction.commit().await.map_err(&failed)
    }

    async fn disabled_models(&self) -> Result<Vec<ModelName>, LedgerError> {
        let names: Vec<String> = sqlx::query_scalar("SELECT name FROM disabled_models")
            .fetch_all(&self.readers)
            .await
            .map_err(self.reading("read the disabled models"))?;
        let parsed = |name: String| self.parse_name(&name, "a name of a disabled model (table `disabled_models`)");
        names.into_iter().map(parsed).collect()
    }

    async fn record_disabled(&self, name: &ModelName) -> Result<(), LedgerError> {
        let statement = sqlx::query(
            "INSERT INTO disabled_models (name, disabled_at) VALUES (?, strftime('%Y-%m-%dT%H:%M:%SZ', 'now')) \
             ON CONFLICT (name) DO NOTHING",
        );
        self.run("record that a model is disabled", statement.bind(name.as_str())).await
    }

    async fn forget_disabled(&self, name: &ModelName) -> Result<(), LedgerError> {
        let statement = sqlx::query("DELETE FROM disabled_models WHERE name = ?");
        self.run("record that a model is enabled", statement.bind(name.as_str())).await
    }

    async fn spaces(&self) -> Result<Vec<SpaceRecord>, LedgerError> {
        let rows: Vec<SpaceRow> = sqlx::query_as(
            "SELECT fingerprint, manifest, dimensions, declared_name, numeric_class, canaries FROM spaces \
             ORDER BY recorded_at, id",
        )
        .fetch_all(&self.readers)
        .await
        .map_err(self.reading("read the spaces"))?;
        rows.into_iter().map(|row| self.record_of(row)).collect()
    }

    async fn space(&self, id: &SpaceId) -> Result<Option<SpaceRecord>, LedgerError> {
        let row: Option<SpaceRow> = sqlx::query_as(
            "SELECT fingerprint, manifest, dimensions, declared_name, numeric_class, canaries FROM spaces \
             WHERE id = ?",
        )
        .bind(id.as_str())
        .fetch_optional(&self.readers)
        .await
        .map_err(self.reading("read a space"))?;
        row.map(|row| self.record_of(row)).transpose()
    }

    async fn record_space(&self, record: &SpaceRecord) -> Result<(), LedgerError> {
        let statement = sqlx::query(
            "INSERT INTO spaces (id, fingerprint, manifest, dimensions, numeric_class, canaries, recorded_at) \
             VALUES (?, ?, ?, ?, ?, ?, strftime('%Y-%m-%dT%H:%M:%SZ', 'now')) \
             ON CONFLICT (id) DO UPDATE SET numeric_class = excluded.numeric_class, canaries = excluded.canaries, \
             recorded_at = excluded.recorded_at",
        );
        let statement = statement
            .bind(record.fingerprint.space().to_string())
            .bind(record.fingerprint.as_str())
            .bind(&record.manifest)
            .bind(record.dimensions)
            .bind(&record.numeric_class)
            .bind(bytes_of(&record.canaries));
        self.run("record a space", statement).await
    }

    async fn declare_space(&self, space: &DeclaredSpace) -> Result<Declared, LedgerError> {
        let failed = self.writing("declare a space");
        let record = SpaceRecord::of_declared(space);
        let inserted = sqlx::query(
            "INSERT INTO spaces \
             (id, fingerprint, manifest, dimensions, declared_name, numeric_class, canaries, recorded_at) \
             VALUES (?, ?, ?, ?, ?, '', x'', strftime('%Y-%m-%dT%H:%M:%SZ', 'now')) ON CONFLICT DO NOTHING",
        )
        .bind(record.fingerprint.space().to_string())
        .bind(record.fingerprint.as_str())
        .bind(&record.manifest)
        .bind(record.dimensions)
        .bind(&record.declared_name)
        .execute(self.ledger_writer()?)
        .await
        .map_err(&failed)?;
        if inserted.rows_affected() > 0 {
            return Ok(Declared::Created);
        }
        let found: u32 = sqlx::query_scalar("SELECT dimensions FROM spaces WHERE declared_name = ?")
            .bind(space.name())
            .fetch_one(self.ledger_writer()?)
            .await
            .map_err(&failed)?;
        Ok(if found == record.dimensions { Declared::Known } else { Declared::Otherwise(found) })
    }

    async fn accepted_space(&self, model: &ModelName) -> Result<Option<SpaceId>, LedgerError> {
        let id: Option<String> = sqlx::query_scalar("SELECT space FROM accepted_spaces WHERE model = ?")
            .bind(model.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(self.reading("read the space of a model"))?;
        let what = "a space of a model (table `accepted_spaces`)";
        id.map(|id| SpaceId::parse(&id)).transpose().map_err(|source| self.misread(what, source.into()))
    }

    async fn accept_space(&self, model: &ModelName, space: &SpaceId) -> Result<(), LedgerError> {
        let statement = sqlx::query(
            "INSERT INTO accepted_spaces (model, space, accepted_at) \
             VALUES (?, ?, strftime('%Y-%m-%dT%H:%M:%SZ', 'now')) \
             ON CONFLICT (model) DO UPDATE SET space = excluded.space, accepted_at = excluded.accepted_at \
             WHERE space <> excluded.space",
        );
        self.run("accept a space", statement.bind(model.as_str()).bind(space.as_str())).await
    }

    async fn spaces_of_grains(&self) -> Result<HashSet<SpaceId>, LedgerError> {
        // One look into the index for each space.
        let ids: Vec<String> = sqlx::query_scalar(
            "SELECT id FROM spaces WHERE EXISTS (SELECT 1 FROM embeddings WHERE embeddings.space = spaces.id)",
        )
        .fetch_all(&self.readers)
        .await
        .map_err(self.reading("read the spaces of grains"))?;
        let parsed: Result<HashSet<_>, _> = ids.iter().map(|id| SpaceId::parse(id)).collect();
        parsed.map_err(|source| self.misread("an id of a space (table `spaces`)", source.into()))
    }

    async fn grains_by_maker(&self) -> Result<Vec<MadeGrains>, LedgerError> {
        self.count_by_maker(select_made()).await
    }

    async fn served_by_maker(&self) -> Result<Vec<MadeGrains>, LedgerError> {
        self.count_by_maker(select_served_by_maker()).await
    }

    async fn open_job_of(&self, model: &ModelName) -> Result<Option<ReembeddingId>, LedgerError> {
        let jobs: Vec<(String, String)> =
            sqlx::query_as("SELECT id, state FROM reembeddings WHERE model = ? COLLATE NOCASE")
                .bind(model.as_str())
                .fetch_all(&self.readers)
                .await
                .map_err(self.reading("read the re-embeddings to a model"))?;
        let is_open = |state: &str| ReembeddingState::parse(state).is_some_and(ReembeddingState::is_open);
        Ok(jobs.into_iter().find(|(_, state)| is_open(state)).map(|(id, _)| ReembeddingId::of(id)))
    }

    async fn check(&self) -> Result<(), LedgerError> {
        self.check().await.map_err(unreadable)
    }
}

/// A statement and its values.
pub(super) type Statement<'a> = sqlx::query::Query<'a, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;

/// A row of `spaces`.
#[derive(FromRow)]
struct SpaceRow {
    fingerprint: String,
    manifest: String,
    dimensions: u32,
    declared_name: Option<String>,
    numeric_class: String,
    canaries: Vec<u8>,
}

impl SqliteStore {
    /// Runs one statement that changes the ledger. Committed, and with `synchronous=FULL` on disk, when it returns.
    async fn run(&self, doing: &'static str, statement: Statement<'_>) -> Result<(), LedgerError> {
        statement.execute(self.ledger_writer()?).await.map(drop).map_err(self.writing(doing))
    }

    async fn count_by_maker(&self, mut query: QueryBuilder<Sqlite>) -> Result<Vec<MadeGrains>, LedgerError> {
        let failed = self.reading("count the grains of each model");
        let (mut reader, _interest) = self.patient_reader().await.map_err(&failed)?;
        let rows: Vec<(Option<String>, String, i64)> =
            query.build_query_as().fetch_all(&mut *reader).await.map_err(&failed)?;
        let made = |(model, space, n): (Option<String>, String, i64)| {
            let space =
                SpaceId::parse(&space).map_err(|source| self.misread("a space (table `embeddings`)", source.into()))?;
            Ok(MadeGrains { model, space, n_grains: u64::try_from(n).unwrap_or_default() })
        };
        rows.into_iter().map(made).collect()
    }

    fn record_of(&self, row: SpaceRow) -> Result<SpaceRecord, LedgerError> {
        let fingerprint = Fingerprint::parse(&row.fingerprint)
            .ok_or_else(|| self.misread("a fingerprint (table `spaces`)", "it is not 64 hexadecimal digits".into()))?;
        Ok(SpaceRecord {
            fingerprint,
            manifest: row.manifest,
            dimensions: row.dimensions,
            declared_name: row.declared_name,
            numeric_class: row.numeric_class,
            canaries: vector_of(&row.canaries),
        })
    }

    fn parse_name(&self, name: &str, what: &'static str) -> Result<ModelName, LedgerError> {
        ModelName::parse(name).map_err(|source| self.misread(what, source.into()))
    }

    /// An error of SQLite while the ledger is read.
    fn reading(&self, doing: &'static str) -> impl Fn(sqlx::Error) -> LedgerError + '_ {
        let failed = self.failed(doing);
        move |source| unreadable(failed(source))
    }

    /// As [`Self::writer`], for the ledger.
    fn ledger_writer(&self) -> Result<&SqlitePool, LedgerError> {
        self.writer().map_err(|source| LedgerError { action: "written", source: source.into() })
    }

    /// An error of SQLite while the ledger is written.
    fn writing(&self, doing: &'static str) -> impl Fn(sqlx::Error) -> LedgerError + '_ {
        let failed = self.failed(doing);
        move |source| LedgerError { action: "written", source: failed(source).into() }
    }

    /// As [`Self::malformed`], in the ledger.
    fn misread(&self, what: &'static str, source: Box<dyn std::error::Error + Send + Sync>) -> LedgerError {
        unreadable(self.malformed(what, source))
    }
}

/// How many vectors each model made in each space.
pub(super) fn select_made() -> QueryBuilder<Sqlite> {
    QueryBuilder::new("SELECT model, space, count(*) FROM embeddings GROUP BY model, space")
}

/// How many grains are served by what each model made in each space. The index is named, and grains come first, because
/// SQLite would rather read the rows, which have the vectors.
pub(super) fn select_served_by_maker() -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new(
        "SELECT e.model, e.space, count(*) FROM grains AS g \
         CROSS JOIN embeddings AS e INDEXED BY embeddings_by_text_version \
         ON e.grain = g.number AND e.text_version = g.text_version AND e.space = ",
    );
    query.push(SERVED_SPACE).push(" GROUP BY e.model, e.space");
    query
}

fn unreadable(source: StoreError) -> LedgerError {
    LedgerError { action: "read", source: source.into() }
}
