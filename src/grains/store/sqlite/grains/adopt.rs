//! Vectors get the space they were proved to be in.

use super::super::super::StoreError;
use super::super::super::grain_store::{NewVector, ProvenVector, TextFate, Written};
use super::super::SqliteStore;
use super::insert::put_vector;
use super::rows::select_grains;
use super::write::{order_spaces, write_order};
use crate::domain::SpaceId;

impl SqliteStore {
    pub(super) async fn write_proven(
        &self,
        proven: Vec<ProvenVector>,
        order: Option<Vec<SpaceId>>,
    ) -> Result<Vec<(Written, NewVector)>, StoreError> {
        let failed = self.failed("adopt vectors");
        let mut transaction = self.writer.begin().await.map_err(&failed)?;
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
}
