//! The account of re-embeddings: where each is, what it has left to do, and what it could not embed.

use async_trait::async_trait;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite};

use super::super::super::StoreError;
use super::super::super::reembedding_store::{Lacking, ReembeddingStore, Unembedded};
use super::super::SqliteStore;
use super::super::ledger::{RECORD_ACTIVE_MODEL, Statement};
use super::filter::{self, Plan};
use super::{count, json_text};
use crate::domain::{
    Filter, GrainId, ModelName, OldVectors, Reembedding, ReembeddingFailure, ReembeddingId, ReembeddingState,
};

/// Grains that are tried again together: each may have a text of a megabyte.
const RETRIED_AT_ONCE: i64 = 64;

/// What [`SqliteStore::reembedding_of`] reads.
const COLUMNS: &str = "id, model, space, selection, throttle, state, reason, done, total, previous_model, \
     previous_order, old_vectors, created_us, changed_us, cut_over_us";

#[async_trait]
impl ReembeddingStore for SqliteStore {
    async fn add_reembedding(
        &self,
        job: Reembedding,
        active: Option<ModelName>,
    ) -> Result<Result<(), ReembeddingId>, StoreError> {
        let failed = self.failed("record a re-embedding");
        let mut transaction = self.writer()?.begin().await.map_err(&failed)?;
        let of_space: Vec<(String, String)> = sqlx::query_as("SELECT id, state FROM reembeddings WHERE space = ?")
            .bind(job.space.as_str())
            .fetch_all(&mut *transaction)
            .await
            .map_err(&failed)?;
        let is_open = |state: &str| ReembeddingState::parse(state).is_some_and(ReembeddingState::is_open);
        if let Some((id, _)) = of_space.into_iter().find(|(_, state)| is_open(state)) {
            return Ok(Err(ReembeddingId::of(id)));
        }
        sqlx::query(
            "INSERT INTO reembeddings (id, model, space, selection, throttle, state, reason, done, total, \
             previous_model, previous_order, old_vectors, created_us, changed_us, cut_over_us) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, ?, ?, ?, NULL)",
        )
        .bind(job.id.as_str())
        .bind(job.model.as_str())
        .bind(job.space.as_str())
        .bind(json_text(&job.selection))
        .bind(job.throttle)
        .bind(job.state.as_str())
        .bind(&job.reason)
        .bind(signed(job.done))
        .bind(signed(job.total))
        .bind(job.previous_model.as_ref().map(ModelName::as_str))
        .bind(job.old_vectors.as_str())
        .bind(job.created_us)
        .bind(job.changed_us)
        .execute(&mut *transaction)
        .await
        .map_err(&failed)?;
        if let Some(active) = active {
            let statement = sqlx::query(RECORD_ACTIVE_MODEL).bind(active.as_str());
            statement.execute(&mut *transaction).await.map_err(&failed)?;
        }
        transaction.commit().await.map_err(&failed)?;
        Ok(Ok(()))
    }

    async fn reembeddings(&self) -> Result<Vec<Reembedding>, StoreError> {
        let failed = self.failed("read the re-embeddings");
        let query = format!("SELECT {COLUMNS} FROM reembeddings ORDER BY id DESC");
        let rows = sqlx::query(sqlx::AssertSqlSafe(query)).fetch_all(&self.readers).await.map_err(failed)?;
        rows.iter().map(|row| self.reembedding_of(row)).collect()
    }

    async fn record_reembedding(&self, job: Reembedding) -> Result<(), StoreError> {
        let failed = self.failed("record where a re-embedding is");
        update_of(&job).execute(self.writer()?).await.map(drop).map_err(failed)
    }

    async fn lacking(&self, lacking: Lacking, after: i64, limit: u32) -> Result<Vec<Unembedded>, StoreError> {
        let failed = self.failed("find grains that have no vector in a space");
        let (mut reader, _interest) = self.patient_reader().await.map_err(&failed)?;
        let rows: Vec<(i64, String, i64)> =
            select_lacking(&lacking, after, limit).build_query_as().fetch_all(&mut *reader).await.map_err(&failed)?;
        Ok(rows.into_iter().map(unembedded).collect())
    }

    async fn count_lacking(&self, lacking: Lacking) -> Result<u64, StoreError> {
        let failed = self.failed("count grains that have no vector in a space");
        let (mut reader, _interest) = self.patient_reader().await.map_err(&failed)?;
        let n: i64 =
            select_count_of_lacking(&lacking).build_query_scalar().fetch_one(&mut *reader).await.map_err(&failed)?;
        Ok(count(n))
    }

    async fn reembedding_failures(
        &self,
        id: &ReembeddingId,
        at_most: u32,
    ) -> Result<(Vec<ReembeddingFailure>, u64), StoreError> {
        let failed = self.failed("read what a re-embedding could not embed");
        let selection = self.selection_of(id).await?;
        let (mut reader, _interest) = self.callers_reader().await.map_err(&failed)?;
        let mut query = QueryBuilder::new("SELECT count(*)");
        push_failed(&mut query, id, &selection);
        let total: i64 = query.build_query_scalar().fetch_one(&mut *reader).await.map_err(&failed)?;
        let mut query = QueryBuilder::new("SELECT g.id, f.reason, f.tries");
        push_failed(&mut query, id, &selection);
        query.push(" ORDER BY f.grain LIMIT ").push_bind(i64::from(at_most));
        let rows: Vec<(String, String, u32)> = query.build_query_as().fetch_all(&mut *reader).await.map_err(&failed)?;
        let failure = |(grain, reason, tries)| ReembeddingFailure { grain: GrainId::stored(grain), reason, tries };
        Ok((rows.into_iter().map(failure).collect(), count(total)))
    }

    async fn forget_failures(&self, id: &ReembeddingId) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM reembedding_failures WHERE reembedding = ?")
            .bind(id.as_str())
            .execute(self.writer()?)
            .await
            .map(drop)
            .map_err(self.failed("forget what a re-embedding could not embed"))
    }

    async fn failed_less_than(&self, id: &ReembeddingId, tries: u32) -> Result<Vec<Unembedded>, StoreError> {
        let selection = self.selection_of(id).await?;
        let mut query = QueryBuilder::new("SELECT g.number, g.text, g.text_version");
        push_failed(&mut query, id, &selection);
        query.push(" AND f.tries < ").push_bind(i64::from(tries));
        query.push(" ORDER BY g.number LIMIT ").push_bind(RETRIED_AT_ONCE);
        let rows: Vec<(i64, String, i64)> = query
            .build_query_as()
            .fetch_all(&self.readers)
            .await
            .map_err(self.failed("find what is to be tried again"))?;
        Ok(rows.into_iter().map(unembedded).collect())
    }
}

impl SqliteStore {
    /// Which grains a re-embedding is about; all of them when there is no such job.
    async fn selection_of(&self, id: &ReembeddingId) -> Result<Filter, StoreError> {
        let selection: Option<String> = sqlx::query_scalar("SELECT selection FROM reembeddings WHERE id = ?")
            .bind(id.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(self.failed("read what a re-embedding selects"))?;
        selection.map_or_else(|| Ok(Filter::default()), |json| self.selection(&json))
    }

    fn selection(&self, json: &str) -> Result<Filter, StoreError> {
        serde_json::from_str(json).map_err(|source| self.malformed("a selection (table `reembeddings`)", source.into()))
    }

    fn reembedding_of(&self, row: &SqliteRow) -> Result<Reembedding, StoreError> {
        let sql = self.failed("read a re-embedding");
        let text = |column: &str| row.try_get::<String, _>(column).map_err(&sql);
        let number = |column: &str| row.try_get::<i64, _>(column).map(count).map_err(&sql);
        let wrong = |what| move |source: Box<dyn std::error::Error + Send + Sync>| self.malformed(what, source);
        let unknown = || "it is none of the known words".into();
        let (state, old_vectors) = (text("state")?, text("old_vectors")?);
        let previous_model: Option<String> = row.try_get("previous_model").map_err(&sql)?;
        let previous_order: Option<String> = row.try_get("previous_order").map_err(&sql)?;
        let model = |name: &str| {
            ModelName::parse(name).map_err(|source| wrong("a model (table `reembeddings`)")(source.into()))
        };
        Ok(Reembedding {
            id: ReembeddingId::of(text("id")?),
            model: model(&text("model")?)?,
            space: self.space_id(&text("space")?)?,
            selection: self.selection(&text("selection")?)?,
            throttle: row.try_get("throttle").map_err(&sql)?,
            state: ReembeddingState::parse(&state).ok_or_else(|| wrong("a state (table `reembeddings`)")(unknown()))?,
            reason: row.try_get("reason").map_err(&sql)?,
            done: number("done")?,
            total: number("total")?,
            previous_model: previous_model.map(|name| model(&name)).transpose()?,
            previous_order: previous_order
                .map(|order| serde_json::from_str(&order))
                .transpose()
                .map_err(|source| wrong("an order of spaces (table `reembeddings`)")(source.into()))?,
            old_vectors: OldVectors::parse(&old_vectors)
                .ok_or_else(|| wrong("old vectors (table `reembeddings`)")(unknown()))?,
            created_us: row.try_get("created_us").map_err(&sql)?,
            changed_us: row.try_get("changed_us").map_err(&sql)?,
            cut_over_us: row.try_get("cut_over_us").map_err(&sql)?,
        })
    }
}

/// Counts stay far below the greatest number.
fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// What has changed of a re-embedding, but for `done`.
pub(super) fn update_of(job: &Reembedding) -> Statement<'_> {
    sqlx::query(
        "UPDATE reembeddings SET state = ?, reason = ?, total = ?, previous_order = ?, old_vectors = ?, \
         changed_us = ?, cut_over_us = ? WHERE id = ?",
    )
    .bind(job.state.as_str())
    .bind(&job.reason)
    .bind(signed(job.total))
    .bind(job.previous_order.as_ref().map(json_text))
    .bind(job.old_vectors.as_str())
    .bind(job.changed_us)
    .bind(job.cut_over_us)
    .bind(job.id.as_str())
}

fn unembedded((number, text, text_version): (i64, String, i64)) -> Unembedded {
    Unembedded { number, text, text_version }
}

/// The next grains without a current vector, each with its text. That is read of these alone.
pub(super) fn select_lacking(lacking: &Lacking, after: i64, limit: u32) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new(
        "SELECT lacking.number, lacking.text, lacking.text_version FROM grains AS lacking WHERE lacking.number IN \
         (SELECT g.number",
    );
    push_lacking(&mut query, lacking);
    query.push(" AND g.number > ").push_bind(after);
    query.push(" ORDER BY g.number LIMIT ").push_bind(i64::from(limit)).push(") ORDER BY lacking.number");
    query
}

pub(super) fn select_count_of_lacking(lacking: &Lacking) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new("SELECT count(*)");
    push_lacking(&mut query, lacking);
    query
}

/// Appends ` FROM … AS g WHERE …`: the grains without a current vector. The index is named because SQLite would rather read
/// the rows, which have the vectors.
fn push_lacking(query: &mut QueryBuilder<Sqlite>, lacking: &Lacking) {
    let Lacking { space, filter, unless_failed_in, among } = lacking;
    query.push(
        " FROM grains AS g WHERE NOT EXISTS (SELECT 1 FROM embeddings AS e INDEXED BY embeddings_by_text_version \
         WHERE e.grain = g.number AND e.text_version = g.text_version AND e.space = ",
    );
    query.push_bind(space.to_string()).push(")");
    if let Some(job) = unless_failed_in {
        query.push(
            " AND NOT EXISTS (SELECT 1 FROM reembedding_failures AS f \
             WHERE f.grain = g.number AND f.text_version = g.text_version AND f.reembedding = ",
        );
        query.push_bind(job.to_string()).push(")");
    }
    if let Some(numbers) = among {
        query.push(" AND g.number IN (");
        push_numbers(query, numbers);
        query.push(")");
    }
    filter::push(query, filter, if among.is_some() { Plan::Check } else { Plan::Enumerate });
}

/// Appends ` FROM … WHERE …`: the grains `g` that a re-embedding could not embed, each with its row `f`, as far as they
/// are still selected and have no current vector in its space.
fn push_failed(query: &mut QueryBuilder<Sqlite>, id: &ReembeddingId, selection: &Filter) {
    query.push(
        " FROM reembedding_failures AS f JOIN grains AS g ON g.number = f.grain \
         JOIN reembeddings AS r ON r.id = f.reembedding WHERE f.reembedding = ",
    );
    query.push_bind(id.to_string());
    query.push(
        " AND f.text_version = g.text_version AND NOT EXISTS (SELECT 1 FROM embeddings AS e \
         WHERE e.grain = g.number AND e.text_version = g.text_version AND e.space = r.space)",
    );
    filter::push(query, selection, Plan::Check);
}

pub(super) fn push_numbers(query: &mut QueryBuilder<Sqlite>, numbers: &[i64]) {
    query.push("SELECT value FROM json_each(").push_bind(json_text(numbers)).push(")");
}
