//! Vectors in another space: how grains get one, are served by it, and lose the one before.

use async_trait::async_trait;
use sqlx::{QueryBuilder, Sqlite, Transaction};

use super::super::super::StoreError;
use super::super::super::reembedding_store::{Made, Purge, Purged, StagingStore, Unembedded};
use super::super::SqliteStore;
use super::filter::{self, SERVED, SERVED_SPACE};
use super::insert::put_unless_late;
use super::reembeddings::{push_numbers, update_of};
use super::write::{order_spaces, write_order};
use super::{count, json_text};
use crate::domain::{Filter, Reembedding, ReembeddingId, SpaceId};

#[async_trait]
impl StagingStore for SqliteStore {
    async fn record_with_order(&self, job: Reembedding, order: Vec<SpaceId>) -> Result<(), StoreError> {
        let failed = self.failed("record where a re-embedding is");
        let mut transaction = self.writer()?.begin().await.map_err(&failed)?;
        write_order(&mut transaction, &order).await.map_err(&failed)?;
        update_of(&job).execute(&mut *transaction).await.map_err(&failed)?;
        transaction.commit().await.map_err(failed)
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
        let mut transaction = self.writer()?.begin().await.map_err(&failed)?;
        let made = vectors.iter().filter_map(|(_, made)| made.as_ref().ok());
        let spaces = made.map(|vector| vector.provenance.space.to_string()).collect();
        order_spaces(&mut transaction, spaces).await.map_err(&failed)?;
        let mut written = Vec::with_capacity(vectors.len());
        let mut embedded = Vec::with_capacity(vectors.len());
        for (grain, made) in vectors {
            match (made, &job) {
                (Ok(vector), _) => {
                    let Unembedded { number, text_version, .. } = grain;
                    embedded.push(number);
                    if put_unless_late(&mut transaction, &vector, number, text_version).await.map_err(&failed)? {
                        written.push(number);
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

    async fn purge(&self, purge: Purge, after: i64, limit: u32) -> Result<Option<Purged>, StoreError> {
        let failed = self.failed("delete superfluous vectors");
        let mut transaction = self.writer()?.begin().await.map_err(&failed)?;
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
