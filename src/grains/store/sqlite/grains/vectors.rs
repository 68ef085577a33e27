//! Vectors: what indexes are built from, which of them count, and how old ones get the space they were proved to be in.

use async_trait::async_trait;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite};

use super::super::super::StoreError;
use super::super::super::grain_store::{
    Identity, NewVector, Numbered, ProvenVector, TextFate, VectorBatch, VectorStore, Written,
};
use super::super::SqliteStore;
use super::anchors::forget_anchor;
use super::filter::{SERVED, SERVED_SPACE};
use super::insert::put_vector;
use super::rows::{select_grains, select_grains_and, vector_of};
use super::write::{order_spaces, write_order};
use super::{count, shown};
use crate::domain::SpaceId;

#[async_trait]
impl VectorStore for SqliteStore {
    async fn old_vectors(&self, after: i64, limit: u32) -> Result<Vec<(Numbered, Vec<u8>)>, StoreError> {
        let failed = self.failed("read old vectors");
        // One statement for both: were a grain changed between two, those behind it would get each other's vectors.
        let mut query = select_grains_and(", g.old_vector");
        query.push(" WHERE g.old_vector IS NOT NULL AND g.number > ").push_bind(after);
        query.push(" ORDER BY g.number LIMIT ").push_bind(i64::from(limit));
        let rows = query.build().fetch_all(&self.readers).await.map_err(&failed)?;
        let old_vector = |row: &SqliteRow| row.try_get::<Vec<u8>, _>("old_vector").map_err(&failed);
        rows.iter().map(|row| Ok((self.grain_of(row)?, old_vector(row)?))).collect()
    }

    async fn space_order(&self) -> Result<Vec<SpaceId>, StoreError> {
        let spaces: String = sqlx::query_scalar("SELECT spaces FROM space_order")
            .fetch_one(&self.readers)
            .await
            .map_err(self.failed("read the order of spaces"))?;
        serde_json::from_str(&spaces)
            .map_err(|source| self.malformed("an order of spaces (table `space_order`)", source.into()))
    }

    async fn write_space_order(&self, order: Vec<SpaceId>) -> Result<(), StoreError> {
        let failed = self.failed("write the order of spaces");
        let mut transaction = self.writer()?.begin().await.map_err(&failed)?;
        write_order(&mut transaction, &order).await.map_err(&failed)?;
        transaction.commit().await.map_err(failed)
    }

    async fn served_by_space(&self) -> Result<Vec<(SpaceId, u64)>, StoreError> {
        let failed = self.failed("count served grains");
        let rows: Vec<(String, i64)> =
            select_served().build_query_as().fetch_all(&self.readers).await.map_err(failed)?;
        rows.into_iter().map(|(space, n)| Ok((self.space_id(&space)?, count(n)))).collect()
    }

    async fn vector_in(&self, number: i64, space: &SpaceId) -> Result<Option<NewVector>, StoreError> {
        let _shown = shown("vector_in");
        let failed = self.failed("read a grain's vector in a space");
        let row = sqlx::query(
            "SELECT e.vector, e.space, e.model, e.origin, e.tokens, e.truncated, length(e.vector) / 4 AS dimensions \
             FROM embeddings AS e JOIN grains AS g ON g.number = e.grain \
             WHERE e.grain = ? AND e.space = ? AND e.text_version = g.text_version",
        )
        .bind(number)
        .bind(space.to_string())
        .fetch_optional(&self.readers)
        .await
        .map_err(&failed)?;
        let Some(row) = row else { return Ok(None) };
        let Some(provenance) = self.provenance_of(&row)? else { return Ok(None) };
        let vector = vector_of(row.try_get::<&[u8], _>("vector").map_err(&failed)?);
        Ok(Some(NewVector { provenance, vector }))
    }

    async fn vectors_of_space(&self, space: &SpaceId, after: i64, limit: u32) -> Result<VectorBatch, StoreError> {
        let failed = self.failed("read the vectors of a space");
        let mut query = QueryBuilder::new("SELECT e.grain, e.vector, e.rowid = ");
        query.push(SERVED).push(
            " AS served FROM embeddings AS e JOIN grains AS g ON g.number = e.grain \
             WHERE e.text_version = g.text_version AND e.space = ",
        );
        query.push_bind(space.to_string()).push(" AND e.grain > ").push_bind(after);
        query.push(" ORDER BY e.grain LIMIT ").push_bind(i64::from(limit));
        let rows = query.build().fetch_all(&self.readers).await.map_err(&failed)?;
        let mut batch = VectorBatch::default();
        for row in rows {
            batch.numbers.push(row.try_get("grain").map_err(&failed)?);
            batch.served.push(row.try_get("served").map_err(&failed)?);
            batch.vectors.push(vector_of(row.try_get::<&[u8], _>("vector").map_err(&failed)?));
        }
        Ok(batch)
    }

    async fn adopt(
        &self,
        proven: Vec<ProvenVector>,
        order: Option<Vec<SpaceId>>,
    ) -> Result<Vec<(Written, NewVector)>, StoreError> {
        let failed = self.failed("adopt vectors");
        let mut transaction = self.writer()?.begin().await.map_err(&failed)?;
        if let Some(order) = order {
            write_order(&mut transaction, &order).await.map_err(&failed)?;
        }
        let spaces = proven.iter().map(|proven| proven.vector.provenance.space.to_string()).collect();
        order_spaces(&mut transaction, spaces).await.map_err(&failed)?;
        let mut written = Vec::with_capacity(proven.len());
        for ProvenVector { number, version, from, vector } in proven {
            let text_version: Option<i64> =
                sqlx::query_scalar("SELECT text_version FROM grains WHERE number = ? AND version = ?")
                    .bind(number)
                    .bind(i64::try_from(version).unwrap_or(i64::MAX))
                    .fetch_optional(&mut *transaction)
                    .await
                    .map_err(&failed)?;
            let Some(text_version) = text_version else { continue };
            put_vector(&mut transaction, &vector, number, text_version).await.map_err(&failed)?;
            forget_anchor(&mut transaction, number, &vector.provenance.space).await.map_err(&failed)?;
            let done = match from {
                None => sqlx::query("UPDATE grains SET old_vector = NULL WHERE number = ?").bind(number),
                Some(space) => sqlx::query("DELETE FROM embeddings WHERE grain = ? AND space = ?")
                    .bind(number)
                    .bind(space.to_string()),
            };
            done.execute(&mut *transaction).await.map_err(&failed)?;
            let mut query = select_grains();
            query.push(" WHERE g.number = ").push_bind(number);
            let row = query.build().fetch_one(&mut *transaction).await.map_err(&failed)?;
            written.push((Written { numbered: self.grain_of(&row)?, text: TextFate::Kept, staged: None }, vector));
        }
        transaction.commit().await.map_err(&failed)?;
        Ok(written)
    }

    async fn identity(&self) -> Result<Identity, StoreError> {
        let (database, epoch) = sqlx::query_as("SELECT database, epoch FROM identity")
            .fetch_one(&self.readers)
            .await
            .map_err(self.failed("read which database this is"))?;
        Ok(Identity { database, epoch })
    }

    async fn renew_epoch(&self) -> Result<Identity, StoreError> {
        let (database, epoch) = sqlx::query_as(
            "UPDATE identity SET epoch = lower(hex(randomblob(16))) WHERE only = 1 RETURNING database, epoch",
        )
        .fetch_one(self.writer()?)
        .await
        .map_err(self.failed("begin a new epoch"))?;
        Ok(Identity { database, epoch })
    }
}

/// The spaces that hold vectors of grains, and how many each serves.
pub(super) fn select_served() -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new(
        "SELECT held.space, coalesce(counts.n, 0) FROM (SELECT DISTINCT space FROM embeddings) AS held LEFT JOIN (SELECT ",
    );
    query.push(SERVED_SPACE).push(
        " AS space, count(*) AS n FROM grains AS g GROUP BY 1) AS counts ON counts.space = held.space ORDER BY held.space",
    );
    query
}
