//! What the models must find again after a restart.

use std::collections::HashSet;

use sqlx::{FromRow, QueryBuilder, Sqlite};

use super::super::StoreError;
use super::SqliteStore;
use super::grains::{SERVED_SPACE, bytes_of, vector_of};
use crate::config::AdditionalModel;
use crate::domain::{DeclaredSpace, Fingerprint, ModelName, ReembeddingId, ReembeddingState, SpaceId};
use crate::models::ledger::{Declared, Ledger, LedgerError, MadeGrains, Recall, SpaceRecord};

/// Makes a model the active one. Recording the same model again writes nothing.
pub(super) const RECORD_ACTIVE_MODEL: &str = "INSERT INTO active_model (only, name, changed_at) \
     VALUES (1, ?, strftime('%Y-%m-%dT%H:%M:%SZ', 'now')) \
     ON CONFLICT (only) DO UPDATE SET name = excluded.name, changed_at = excluded.changed_at \
     WHERE name <> excluded.name";

impl Ledger for SqliteStore {
    fn active_model(&self) -> Recall<'_, Option<ModelName>> {
        Box::pin(async { self.read_active_model().await.map_err(unreadable) })
    }

    fn active_since(&self) -> Recall<'_, Option<i64>> {
        Box::pin(async { self.read_active_since().await.map_err(unreadable) })
    }

    fn record_active_model<'a>(&'a self, name: &'a ModelName) -> Recall<'a, ()> {
        self.write("record the active model", sqlx::query(RECORD_ACTIVE_MODEL).bind(name.as_str()))
    }

    fn registered_models(&self) -> Recall<'_, Vec<AdditionalModel>> {
        Box::pin(async { self.read_registered_models().await.map_err(unreadable) })
    }

    fn record_registration<'a>(&'a self, entry: &'a AdditionalModel) -> Recall<'a, ()> {
        Box::pin(async move {
            let json = serde_json::to_string(entry)
                .map_err(|source| LedgerError { action: "written", source: source.into() })?;
            self.put_registration(&entry.name, json).await.map_err(unwritable)
        })
    }

    fn forget_registration<'a>(&'a self, name: &'a ModelName) -> Recall<'a, ()> {
        Box::pin(async move { self.delete_registration(name).await.map_err(unwritable) })
    }

    fn disabled_models(&self) -> Recall<'_, Vec<ModelName>> {
        Box::pin(async {
            let names: Result<Vec<String>, _> =
                sqlx::query_scalar("SELECT name FROM disabled_models").fetch_all(&self.readers).await;
            let names = names.map_err(self.failed("read the disabled models"));
            let parsed = |name: String| self.parse_name(&name, "a name of a disabled model (table `disabled_models`)");
            names.map_err(unreadable)?.into_iter().map(parsed).collect::<Result<_, _>>().map_err(unreadable)
        })
    }

    fn record_disabled<'a>(&'a self, name: &'a ModelName) -> Recall<'a, ()> {
        let statement = sqlx::query(
            "INSERT INTO disabled_models (name, disabled_at) VALUES (?, strftime('%Y-%m-%dT%H:%M:%SZ', 'now')) \
             ON CONFLICT (name) DO NOTHING",
        );
        self.write("record that a model is disabled", statement.bind(name.as_str()))
    }

    fn forget_disabled<'a>(&'a self, name: &'a ModelName) -> Recall<'a, ()> {
        let statement = sqlx::query("DELETE FROM disabled_models WHERE name = ?");
        self.write("record that a model is enabled", statement.bind(name.as_str()))
    }

    fn spaces(&self) -> Recall<'_, Vec<SpaceRecord>> {
        Box::pin(async { self.read_spaces().await.map_err(unreadable) })
    }

    fn space<'a>(&'a self, id: &'a SpaceId) -> Recall<'a, Option<SpaceRecord>> {
        Box::pin(async move { self.read_space(id).await.map_err(unreadable) })
    }

    fn record_space<'a>(&'a self, record: &'a SpaceRecord) -> Recall<'a, ()> {
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
        self.write("record a space", statement)
    }

    fn declare_space<'a>(&'a self, space: &'a DeclaredSpace) -> Recall<'a, Declared> {
        Box::pin(async move { self.insert_declared(space).await.map_err(unwritable) })
    }

    fn accepted_space<'a>(&'a self, model: &'a ModelName) -> Recall<'a, Option<SpaceId>> {
        Box::pin(async move { self.read_accepted_space(model).await.map_err(unreadable) })
    }

    fn accept_space<'a>(&'a self, model: &'a ModelName, space: &'a SpaceId) -> Recall<'a, ()> {
        let statement = sqlx::query(
            "INSERT INTO accepted_spaces (model, space, accepted_at) \
             VALUES (?, ?, strftime('%Y-%m-%dT%H:%M:%SZ', 'now')) \
             ON CONFLICT (model) DO UPDATE SET space = excluded.space, accepted_at = excluded.accepted_at \
             WHERE space <> excluded.space",
        );
        self.write("accept a space", statement.bind(model.as_str()).bind(space.as_str()))
    }

    fn spaces_of_grains(&self) -> Recall<'_, HashSet<SpaceId>> {
        Box::pin(async { self.read_spaces_of_grains().await.map_err(unreadable) })
    }

    fn grains_by_maker(&self) -> Recall<'_, Vec<MadeGrains>> {
        Box::pin(async { self.count_by_maker(select_made()).await.map_err(unreadable) })
    }

    fn served_by_maker(&self) -> Recall<'_, Vec<MadeGrains>> {
        Box::pin(async { self.count_by_maker(select_served_by_maker()).await.map_err(unreadable) })
    }

    fn open_job_of<'a>(&'a self, model: &'a ModelName) -> Recall<'a, Option<ReembeddingId>> {
        Box::pin(async move { self.read_open_job_of(model).await.map_err(unreadable) })
    }

    fn check(&self) -> Recall<'_, ()> {
        Box::pin(async { self.check().await.map_err(unreadable) })
    }
}

type Statement<'a> = sqlx::query::Query<'a, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;

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
    fn write<'a>(&'a self, doing: &'static str, statement: Statement<'a>) -> Recall<'a, ()> {
        Box::pin(async move {
            let done = statement.execute(&self.writer).await;
            done.map(drop).map_err(|source| unwritable(StoreError::sql(doing, &self.path, source)))
        })
    }

    async fn read_active_model(&self) -> Result<Option<ModelName>, StoreError> {
        let name: Option<String> = sqlx::query_scalar("SELECT name FROM active_model")
            .fetch_optional(&self.readers)
            .await
            .map_err(self.failed("read the active model"))?;
        name.map(|name| self.parse_name(&name, "a name of the active model (table `active_model`)")).transpose()
    }

    async fn read_active_since(&self) -> Result<Option<i64>, StoreError> {
        // No time, where it was written otherwise.
        let since_s: Option<Option<i64>> =
            sqlx::query_scalar("SELECT CAST(strftime('%s', changed_at) AS INTEGER) FROM active_model")
                .fetch_optional(&self.readers)
                .await
                .map_err(self.failed("read since when the active model is that"))?;
        Ok(since_s.flatten())
    }

    async fn read_registered_models(&self) -> Result<Vec<AdditionalModel>, StoreError> {
        let entries: Vec<String> =
            sqlx::query_scalar("SELECT entry FROM registered_models ORDER BY registered_at, name")
                .fetch_all(&self.readers)
                .await
                .map_err(self.failed("read the registered models"))?;
        let parsed = entries.iter().map(|entry| serde_json::from_str(entry));
        let what = "an entry of a registered model (table `registered_models`)";
        parsed.collect::<Result<_, serde_json::Error>>().map_err(|source| self.malformed(what, source.into()))
    }

    async fn put_registration(&self, name: &ModelName, entry: String) -> Result<(), StoreError> {
        let failed = self.failed("register a model");
        let mut transaction = self.writer.begin().await.map_err(&failed)?;
        let put = sqlx::query(
            "INSERT OR REPLACE INTO registered_models (name, entry, registered_at) \
             VALUES (?, ?, strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))",
        );
        put.bind(name.as_str()).bind(entry).execute(&mut *transaction).await.map_err(&failed)?;
        let enable = sqlx::query("DELETE FROM disabled_models WHERE name = ?");
        enable.bind(name.as_str()).execute(&mut *transaction).await.map_err(&failed)?;
        transaction.commit().await.map_err(&failed)
    }

    async fn delete_registration(&self, name: &ModelName) -> Result<(), StoreError> {
        let failed = self.failed("delete a registered model");
        let mut transaction = self.writer.begin().await.map_err(&failed)?;
        for statement in [
            "DELETE FROM registered_models WHERE name = ?",
            "DELETE FROM disabled_models WHERE name = ?",
            "DELETE FROM accepted_spaces WHERE model = ?",
        ] {
            sqlx::query(statement).bind(name.as_str()).execute(&mut *transaction).await.map_err(&failed)?;
        }
        transaction.commit().await.map_err(&failed)
    }

    async fn read_spaces(&self) -> Result<Vec<SpaceRecord>, StoreError> {
        let rows: Vec<SpaceRow> = sqlx::query_as(
            "SELECT fingerprint, manifest, dimensions, declared_name, numeric_class, canaries FROM spaces \
             ORDER BY recorded_at, id",
        )
        .fetch_all(&self.readers)
        .await
        .map_err(self.failed("read the spaces"))?;
        rows.into_iter().map(|row| self.record_of(row)).collect()
    }

    async fn read_space(&self, id: &SpaceId) -> Result<Option<SpaceRecord>, StoreError> {
        let row: Option<SpaceRow> = sqlx::query_as(
            "SELECT fingerprint, manifest, dimensions, declared_name, numeric_class, canaries FROM spaces \
             WHERE id = ?",
        )
        .bind(id.as_str())
        .fetch_optional(&self.readers)
        .await
        .map_err(self.failed("read a space"))?;
        row.map(|row| self.record_of(row)).transpose()
    }

    async fn read_spaces_of_grains(&self) -> Result<HashSet<SpaceId>, StoreError> {
        // One look into the index for each space.
        let ids: Vec<String> = sqlx::query_scalar(
            "SELECT id FROM spaces WHERE EXISTS (SELECT 1 FROM embeddings WHERE embeddings.space = spaces.id)",
        )
        .fetch_all(&self.readers)
        .await
        .map_err(self.failed("read the spaces of grains"))?;
        let parsed: Result<HashSet<_>, _> = ids.iter().map(|id| SpaceId::parse(id)).collect();
        parsed.map_err(|source| self.malformed("an id of a space (table `spaces`)", source.into()))
    }

    async fn count_by_maker(&self, mut query: QueryBuilder<Sqlite>) -> Result<Vec<MadeGrains>, StoreError> {
        let failed = self.failed("count the grains of each model");
        let (mut reader, _interest) = self.patient_reader().await.map_err(&failed)?;
        let rows: Vec<(Option<String>, String, i64)> =
            query.build_query_as().fetch_all(&mut *reader).await.map_err(&failed)?;
        let made = |(model, space, n): (Option<String>, String, i64)| {
            let space = SpaceId::parse(&space)
                .map_err(|source| self.malformed("a space (table `embeddings`)", source.into()))?;
            Ok(MadeGrains { model, space, n_grains: u64::try_from(n).unwrap_or_default() })
        };
        rows.into_iter().map(made).collect()
    }

    async fn insert_declared(&self, space: &DeclaredSpace) -> Result<Declared, StoreError> {
        let failed = self.failed("declare a space");
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
        .execute(&self.writer)
        .await
        .map_err(&failed)?;
        if inserted.rows_affected() > 0 {
            return Ok(Declared::Created);
        }
        let found: u32 = sqlx::query_scalar("SELECT dimensions FROM spaces WHERE declared_name = ?")
            .bind(space.name())
            .fetch_one(&self.writer)
            .await
            .map_err(&failed)?;
        Ok(if found == record.dimensions { Declared::Known } else { Declared::Otherwise(found) })
    }

    async fn read_accepted_space(&self, model: &ModelName) -> Result<Option<SpaceId>, StoreError> {
        let id: Option<String> = sqlx::query_scalar("SELECT space FROM accepted_spaces WHERE model = ?")
            .bind(model.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(self.failed("read the space of a model"))?;
        let what = "a space of a model (table `accepted_spaces`)";
        id.map(|id| SpaceId::parse(&id)).transpose().map_err(|source| self.malformed(what, source.into()))
    }

    async fn read_open_job_of(&self, model: &ModelName) -> Result<Option<ReembeddingId>, StoreError> {
        let jobs: Vec<(String, String)> =
            sqlx::query_as("SELECT id, state FROM reembeddings WHERE model = ? COLLATE NOCASE")
                .bind(model.as_str())
                .fetch_all(&self.readers)
                .await
                .map_err(self.failed("read the re-embeddings to a model"))?;
        let is_open = |state: &str| ReembeddingState::parse(state).is_some_and(ReembeddingState::is_open);
        Ok(jobs.into_iter().find(|(_, state)| is_open(state)).map(|(id, _)| ReembeddingId::of(id)))
    }

    fn record_of(&self, row: SpaceRow) -> Result<SpaceRecord, StoreError> {
        let fingerprint = Fingerprint::parse(&row.fingerprint).ok_or_else(|| {
            self.malformed("a fingerprint (table `spaces`)", "it is not 64 hexadecimal digits".into())
        })?;
        Ok(SpaceRecord {
            fingerprint,
            manifest: row.manifest,
            dimensions: row.dimensions,
            declared_name: row.declared_name,
            numeric_class: row.numeric_class,
            canaries: vector_of(&row.canaries),
        })
    }

    fn parse_name(&self, name: &str, what: &'static str) -> Result<ModelName, StoreError> {
        ModelName::parse(name).map_err(|source| self.malformed(what, source.into()))
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

fn unwritable(source: StoreError) -> LedgerError {
    LedgerError { action: "written", source: source.into() }
}
