//! Grains go, with their vectors and words.

use async_trait::async_trait;
use sqlx::{QueryBuilder, Sqlite, Transaction};

use super::super::super::StoreError;
use super::super::super::grain_store::{DeleteStore, Deletion, OnlyIf};
use super::super::SqliteStore;
use super::filter::{self, Plan};
use super::{count, json_text, shown};
use crate::domain::Filter;

/// Grains that one statement deletes.
const DELETED_AT_ONCE: usize = 500;

/// Grains that one transaction deletes. Whoever writes waits as long, for less than a second, and the log grows as long.
pub(super) const DELETED_IN_ONE_STEP: usize = 5_000;

#[async_trait]
impl DeleteStore for SqliteStore {
    async fn delete(&self, filter: Filter, only_if: OnlyIf) -> Result<Result<Deletion, u64>, StoreError> {
        let _shown = shown("delete");
        let failed = self.failed("delete grains");
        let mut transaction = self.writer()?.begin().await.map_err(&failed)?;
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
        let mut left = found;
        let gone: Vec<i64> = step_of(&mut left).into_iter().map(|(number, _)| number).collect();
        delete_each(&mut transaction, &gone).await.map_err(&failed)?;
        transaction.commit().await.map_err(&failed)?;
        Ok(Ok(Deletion { gone, left }))
    }

    async fn delete_left(&self, filter: Filter, mut left: Vec<(i64, i64)>) -> Result<Deletion, StoreError> {
        let _shown = shown("delete");
        let failed = self.failed("delete grains");
        let step = step_of(&mut left);
        let mut transaction = self.writer()?.begin().await.map_err(&failed)?;
        // What was written since has another version.
        let mut query = QueryBuilder::new("SELECT g.number FROM json_each(");
        query.push_bind(json_text(&step));
        query.push(
            ") AS found CROSS JOIN grains AS g ON g.number = found.value ->> 0 AND g.version = found.value ->> 1 WHERE TRUE",
        );
        filter::push(&mut query, &filter, Plan::Check);
        let gone: Vec<i64> = query.build_query_scalar().fetch_all(&mut *transaction).await.map_err(&failed)?;
        delete_each(&mut transaction, &gone).await.map_err(&failed)?;
        transaction.commit().await.map_err(&failed)?;
        Ok(Deletion { gone, left })
    }

    async fn forget_receipts(&self, before_us: i64) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM idempotency_keys WHERE recorded_us < ?")
            .bind(before_us)
            .execute(self.writer()?)
            .await
            .map(drop)
            .map_err(self.failed("forget earlier answers"))
    }
}

/// Takes as many out as one transaction deletes.
fn step_of(left: &mut Vec<(i64, i64)>) -> Vec<(i64, i64)> {
    left.split_off(left.len().saturating_sub(DELETED_IN_ONE_STEP))
}

/// Many in a statement take a quarter of the time of one in each. SQLite keeps what a statement changes in a file of its
/// own, as long as it runs: hence not all in one.
async fn delete_each(transaction: &mut Transaction<'_, Sqlite>, numbers: &[i64]) -> Result<(), sqlx::Error> {
    for numbers in numbers.chunks(DELETED_AT_ONCE) {
        sqlx::query("DELETE FROM grains WHERE number IN (SELECT value FROM json_each(?))")
            .bind(json_text(numbers))
            .execute(&mut **transaction)
            .await?;
    }
    Ok(())
}
