//! Grains go, with their vectors and words.

use sqlx::QueryBuilder;

use super::super::super::StoreError;
use super::super::super::grain_store::OnlyIf;
use super::super::SqliteStore;
use super::filter::{self, Plan};
use super::{count, json_text};
use crate::domain::Filter;

/// Grains that one statement deletes.
const DELETED_AT_ONCE: usize = 500;

impl SqliteStore {
    pub(super) async fn delete_grains(
        &self,
        filter: Filter,
        only_if: OnlyIf,
    ) -> Result<Result<Vec<i64>, u64>, StoreError> {
        let failed = self.failed("delete grains");
        let mut transaction = self.writer.begin().await.map_err(&failed)?;
        let mut query = QueryBuilder::new("SELECT g.number, g.version FROM grains AS g WHERE TRUE");
        filter::push(&mut query, &filter, Plan::Enumerate);
        let found: Vec<(i64, i64)> = query.build_query_as().fetch_all(&mut *transaction).await.map_err(&failed)?;
        let refused = match only_if {
            OnlyIf::Always => None,
            OnlyIf::Count(expected) => Some(found.len() as u64).filter(|n| *n != expected),
            OnlyIf::Version(expected) => {
                found.first().map(|(_, version)| count(*version)).filter(|version| *version != expected)
            }
        };
        if let Some(found) = refused {
            transaction.rollback().await.map_err(&failed)?;
            return Ok(Err(found));
        }
        let numbers: Vec<i64> = found.into_iter().map(|(number, _)| number).collect();
        // Many in a statement take a quarter of the time of one in each. SQLite keeps what a statement changes in a file of
        // its own, as long as it runs: hence not all in one.
        for numbers in numbers.chunks(DELETED_AT_ONCE) {
            sqlx::query("DELETE FROM grains WHERE number IN (SELECT value FROM json_each(?))")
                .bind(json_text(numbers))
                .execute(&mut *transaction)
                .await
                .map_err(&failed)?;
        }
        transaction.commit().await.map_err(&failed)?;
        Ok(Ok(numbers))
    }

    pub(super) async fn delete_receipts(&self, before_us: i64) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM idempotency_keys WHERE recorded_us < ?")
            .bind(before_us)
            .execute(&self.writer)
            .await
            .map(drop)
            .map_err(self.failed("forget earlier answers"))
    }
}
