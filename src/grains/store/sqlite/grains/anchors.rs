//! Anchors in SQLite.

use async_trait::async_trait;
use sqlx::{Sqlite, Transaction};

use super::super::super::StoreError;
use super::super::super::anchor_store::{Anchor, AnchorStore, NewAnchor, lot_in_sql};
use super::super::SqliteStore;
use super::json_text;
use super::rows::{bytes_of, vector_of};
use crate::domain::SpaceId;

/// Anchors of the current text, with their grain as `g`.
const SELECT_ANCHORS: &str = "SELECT a.grain, a.space, a.vector FROM anchors AS a \
     JOIN grains AS g ON g.number = a.grain AND g.text_version = a.text_version";

#[async_trait]
impl AnchorStore for SqliteStore {
    async fn sample(&self, at_most: u32) -> Result<Vec<i64>, StoreError> {
        // An index has the numbers, so that no text is read.
        let lot = lot_in_sql("number");
        let mut query = sqlx::QueryBuilder::new(format!("SELECT number FROM grains ORDER BY {lot}, number LIMIT "));
        query.push_bind(i64::from(at_most));
        let failed = self.failed("draw a sample of grains");
        let (mut reader, _interest) = self.patient_reader().await.map_err(&failed)?;
        query.build_query_scalar().fetch_all(&mut *reader).await.map_err(failed)
    }

    async fn anchors(&self) -> Result<Vec<Anchor>, StoreError> {
        let rows = sqlx::query_as(SELECT_ANCHORS).fetch_all(&self.readers).await;
        self.anchors_of(rows.map_err(self.failed("read anchors"))?)
    }

    async fn copy_to_anchors(&self, space: &SpaceId, numbers: Vec<i64>) -> Result<Vec<Anchor>, StoreError> {
        let failed = self.failed("copy vectors to anchors");
        let mut transaction = self.writer()?.begin().await.map_err(&failed)?;
        sqlx::query(
            "INSERT OR REPLACE INTO anchors (grain, space, text_version, vector) \
             SELECT e.grain, e.space, e.text_version, e.vector FROM json_each(?) AS place \
             JOIN embeddings AS e ON e.grain = place.value AND e.space = ? \
             JOIN grains AS g ON g.number = e.grain AND g.text_version = e.text_version",
        )
        .bind(json_text(&numbers))
        .bind(space.to_string())
        .execute(&mut *transaction)
        .await
        .map_err(&failed)?;
        let mut query = sqlx::QueryBuilder::new(SELECT_ANCHORS);
        query.push(" WHERE a.space = ").push_bind(space.to_string());
        query.push(" AND a.grain IN (SELECT value FROM json_each(").push_bind(json_text(&numbers)).push("))");
        let rows = query.build_query_as().fetch_all(&mut *transaction).await.map_err(&failed)?;
        transaction.commit().await.map_err(&failed)?;
        self.anchors_of(rows)
    }

    async fn add_anchors(&self, made: Vec<NewAnchor>) -> Result<Vec<Anchor>, StoreError> {
        let failed = self.failed("write anchors");
        let mut transaction = self.writer()?.begin().await.map_err(&failed)?;
        let mut written = Vec::with_capacity(made.len());
        for NewAnchor { anchor, version } in made {
            let done = sqlx::query(
                "INSERT OR REPLACE INTO anchors (grain, space, text_version, vector) \
                 SELECT number, ?, text_version, ? FROM grains WHERE number = ? AND version = ?",
            )
            .bind(anchor.space.to_string())
            .bind(bytes_of(&anchor.vector))
            .bind(anchor.number)
            .bind(i64::try_from(version).unwrap_or(i64::MAX))
            .execute(&mut *transaction)
            .await
            .map_err(&failed)?;
            if done.rows_affected() == 1 {
                written.push(anchor);
            }
        }
        transaction.commit().await.map_err(&failed)?;
        Ok(written)
    }

    async fn keep_anchors(&self, numbers: Vec<i64>, spaces: Vec<SpaceId>) -> Result<(), StoreError> {
        let spaces: Vec<String> = spaces.iter().map(SpaceId::to_string).collect();
        sqlx::query(
            "DELETE FROM anchors WHERE grain NOT IN (SELECT value FROM json_each(?)) \
             OR space NOT IN (SELECT value FROM json_each(?))",
        )
        .bind(json_text(&numbers))
        .bind(json_text(&spaces))
        .execute(self.writer()?)
        .await
        .map(drop)
        .map_err(self.failed("remove anchors"))
    }
}

/// Removes the anchor that a grain has in a space, which may be a copy of a vector that is replaced there.
pub(super) async fn forget_anchor(
    transaction: &mut Transaction<'_, Sqlite>,
    number: i64,
    space: &SpaceId,
) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM anchors WHERE grain = ? AND space = ?")
        .bind(number)
        .bind(space.as_str())
        .execute(&mut **transaction)
        .await
        .map(drop)
}

impl SqliteStore {
    fn anchors_of(&self, rows: Vec<(i64, String, Vec<u8>)>) -> Result<Vec<Anchor>, StoreError> {
        let anchor = |(number, space, bytes): (i64, String, Vec<u8>)| {
            Ok(Anchor { number, space: self.space_id(&space)?, vector: vector_of(&bytes) })
        };
        rows.into_iter().map(anchor).collect()
    }
}
