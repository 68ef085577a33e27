//! Vectors in another space: which grains lack one, and how they get it and lose the one before.

use async_trait::async_trait;
use sqlx::{QueryBuilder, Sqlite, Transaction};

use super::super::super::StoreError;
use super::super::super::grain_store::NewVector;
use super::super::super::reembedding_store::{Lacking, Made, Purge, Purged, StagingStore, Unembedded};
use super::super::SqliteStore;
use super::filter::{self, Plan, SERVED, SERVED_SPACE};
use super::insert::put_vector;
use super::write::order_spaces;
use super::{count, json_text};
use crate::domain::{Filter, ReembeddingId, SpaceId};

/// Grains that are tried again together: each may have a text of a megabyte.
const RETRIED_AT_ONCE: i64 = 64;

#[async_trait]
impl StagingStore for SqliteStore {
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

    async fn count_withheld_beyond(&self, space: SpaceId, filter: Filter) -> Result<u64, StoreError> {
        let failed = self.failed("count grains that a space would serve too");
        let (mut reader, _interest) = self.patient_reader().await.map_err(&failed)?;
        let n: i64 = select_count_of_withheld_beyond(&space, &filter)
            .build_query_scalar()
            .fetch_one(&mut *reader)
            .await
            .map_err(&failed)?;
        Ok(count(n))
    }

    async fn write_made(&self, made: Made) -> Result<Vec<i64>, StoreError> {
        let failed = self.failed("write vectors in another space");
        let Made { job, vectors } = made;
        let mut transaction = self.writer.begin().await.map_err(&failed)?;
        let made = vectors.iter().filter_map(|(_, made)| made.as_ref().ok());
        let spaces = made.map(|vector| vector.provenance.space.to_string()).collect();
        order_spaces(&mut transaction, spaces).await.map_err(&failed)?;
        let mut written = Vec::with_capacity(vectors.len());
        let mut embedded = Vec::with_capacity(vectors.len());
        for (grain, made) in vectors {
            match (made, &job) {
                (Ok(vector), _) => {
                    embedded.push(grain.number);
                    if put_unless_late(&mut transaction, &grain, &vector).await.map_err(&failed)? {
                        written.push(grain.number);
                    }
                }
                (Err(reason), Some(job)) => {
                    put_failure(&mut transaction, job, &grain, &reason).await.map_err(&failed)?;
                }
                (Err(_), None) => {}
            }
        }
        if let Some(job) = job {
            sqlx::query("UPDATE reembeddings SET done = done + ? WHERE id = ?")
                .bind(i64::try_from(written.len()).unwrap_or(i64::MAX))
                .bind(job.as_str())
                .execute(&mut *transaction)
                .await
                .map_err(&failed)?;
            // Those too whose vector came too late: the model does not fail on them.
            sqlx::query(
                "DELETE FROM reembedding_failures WHERE reembedding = ? \
                 AND grain IN (SELECT value FROM json_each(?))",
            )
            .bind(job.as_str())
            .bind(json_text(&embedded))
            .execute(&mut *transaction)
            .await
            .map_err(&failed)?;
        }
        transaction.commit().await.map_err(&failed)?;
        Ok(written)
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

    async fn purge(&self, purge: Purge, after: i64, limit: u32) -> Result<Option<Purged>, StoreError> {
        let failed = self.failed("delete superfluous vectors");
        let mut transaction = self.writer.begin().await.map_err(&failed)?;
        let space = match &purge {
            Purge::Replaced { kept, .. } => kept,
            Purge::Unserved(space) => space,
        };
        let looked_at: Vec<i64> =
            sqlx::query_scalar("SELECT grain FROM embeddings WHERE space = ? AND grain > ? ORDER BY grain LIMIT ?")
                .bind(space.as_str())
                .bind(after)
                .bind(i64::from(limit))
                .fetch_all(&mut *transaction)
                .await
                .map_err(&failed)?;
        let Some(last) = looked_at.last().copied() else { return Ok(None) };
        let mut query = match &purge {
            Purge::Replaced { kept, spaces } => {
                let mut query = QueryBuilder::new("DELETE FROM embeddings WHERE grain IN (SELECT e.grain ");
                query.push("FROM embeddings AS e JOIN grains AS g ON g.number = e.grain WHERE e.space = ");
                query.push_bind(kept.to_string()).push(" AND e.text_version = g.text_version AND e.grain IN (");
                push_numbers(&mut query, &looked_at);
                query.push(")) AND space IN (SELECT value FROM json_each(").push_bind(json_text(spaces)).push("))");
                query
            }
            Purge::Unserved(space) => {
                let mut query = QueryBuilder::new("DELETE FROM embeddings WHERE rowid IN (SELECT e.rowid ");
                query.push("FROM embeddings AS e JOIN grains AS g ON g.number = e.grain WHERE e.space = ");
                query.push_bind(space.to_string()).push(" AND e.grain IN (");
                push_numbers(&mut query, &looked_at);
                query.push(") AND e.rowid IS NOT ").push(SERVED).push(")");
                query
            }
        };
        query.push(" RETURNING space, grain");
        let deleted: Vec<(String, i64)> = query.build_query_as().fetch_all(&mut *transaction).await.map_err(&failed)?;
        transaction.commit().await.map_err(&failed)?;
        let vectors = deleted.into_iter().map(|(space, grain)| Ok((self.space_id(&space)?, grain)));
        Ok(Some(Purged { last, vectors: vectors.collect::<Result<_, StoreError>>()? }))
    }
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

pub(super) fn select_count_of_withheld_beyond(space: &SpaceId, filter: &Filter) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new(
        "SELECT count(*) FROM grains AS g WHERE EXISTS (SELECT 1 FROM embeddings AS e \
         INDEXED BY embeddings_by_text_version WHERE e.grain = g.number AND e.text_version = g.text_version \
         AND e.space = ",
    );
    query.push_bind(space.to_string()).push(") AND ").push(SERVED_SPACE).push(" <> ").push_bind(space.to_string());
    query.push(" AND g.number NOT IN (SELECT g.number");
    filter::push_from(&mut query, filter);
    query.push(")");
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
pub(super) fn push_failed(query: &mut QueryBuilder<Sqlite>, id: &ReembeddingId, selection: &Filter) {
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

fn push_numbers(query: &mut QueryBuilder<Sqlite>, numbers: &[i64]) {
    query.push("SELECT value FROM json_each(").push_bind(json_text(numbers)).push(")");
}

/// Writes a vector, unless the grain has another text by now or a vector in the space.
async fn put_unless_late(
    transaction: &mut Transaction<'_, Sqlite>,
    grain: &Unembedded,
    vector: &NewVector,
) -> Result<bool, sqlx::Error> {
    let is_wanted: Option<i64> = sqlx::query_scalar(
        "SELECT 1 FROM grains AS g WHERE g.number = ? AND g.text_version = ? AND NOT EXISTS \
         (SELECT 1 FROM embeddings AS e WHERE e.grain = g.number AND e.space = ? AND e.text_version = g.text_version)",
    )
    .bind(grain.number)
    .bind(grain.text_version)
    .bind(vector.provenance.space.as_str())
    .fetch_optional(&mut **transaction)
    .await?;
    if is_wanted.is_some() {
        put_vector(transaction, vector, grain.number, grain.text_version).await?;
    }
    Ok(is_wanted.is_some())
}

async fn put_failure(
    transaction: &mut Transaction<'_, Sqlite>,
    job: &ReembeddingId,
    grain: &Unembedded,
    reason: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO reembedding_failures (reembedding, grain, text_version, reason, tries) \
         SELECT ?, number, text_version, ?, 1 FROM grains WHERE number = ? AND text_version = ? \
         ON CONFLICT (reembedding, grain) DO UPDATE SET reason = excluded.reason, text_version = excluded.text_version, \
         tries = CASE WHEN text_version = excluded.text_version THEN tries + 1 ELSE 1 END",
    )
    .bind(job.as_str())
    .bind(reason)
    .bind(grain.number)
    .bind(grain.text_version)
    .execute(&mut **transaction)
    .await
    .map(drop)
}
