//! Grains come and change, each with its vector, in one transaction.

use std::collections::{BTreeSet, HashSet};

use async_trait::async_trait;
use sqlx::{QueryBuilder, Sqlite, Transaction};
use time::format_description::FormatItem;
use time::macros::format_description;

use super::super::super::StoreError;
use super::super::super::grain_store::{
    Applied, Atomicity, Batch, Change, Committed, Expected, Makers, NewReceipt, Receipt, Staged, TextFate, WriteStore,
    Written,
};
use super::super::SqliteStore;
use super::anchors::forget_anchor;
use super::filter;
use super::insert::{insert, put_unless_late, put_vector};
use super::rows::select_grains;
use super::{count, index_of_words, json_text, shown};
use crate::domain::grain::time_of_us;
use crate::domain::{Filter, ReembeddingState};
use crate::json::AnyObject;

/// The grain that is stored under an id.
struct Found {
    number: i64,
    version: i64,
    text_version: i64,
    is_same_text: bool,
    /// As they are stored.
    attributes: String,
}

#[async_trait]
impl WriteStore for SqliteStore {
    async fn write(&self, batch: Batch, now_us: i64) -> Result<Committed, StoreError> {
        let _shown = shown("write");
        let failed = self.failed("write grains");
        let Batch { mut changes, atomicity, makers, receipt } = batch;
        // A lone reader of the write-ahead log would not be upgraded to a writer while others commit; there are none.
        let mut transaction = self.writer()?.begin().await.map_err(&failed)?;
        if !have_stayed(&mut transaction, &makers).await.map_err(&failed)? {
            return Ok(Committed::ModelMoved);
        }
        if let Some(NewReceipt { key, since_us, .. }) = &receipt {
            let earlier: Option<(String, String)> = sqlx::query_as(
                "SELECT request, answer FROM idempotency_keys WHERE caller = ? AND key = ? AND recorded_us >= ?",
            )
            .bind(&key.caller)
            .bind(&key.key)
            .bind(*since_us)
            .fetch_optional(&mut *transaction)
            .await
            .map_err(&failed)?;
            if let Some((request, answer)) = earlier {
                return Ok(Committed::Answered(Receipt { request, answer }));
            }
        }
        drop_unwanted(&mut transaction, &mut changes).await.map_err(&failed)?;
        let staged =
            |change: &'_ Change| change.staged.as_ref().map(|staged| staged.vector.provenance.space.to_string());
        let vectors = changes.iter().filter_map(|change| change.vector.as_ref());
        let spaces = vectors.map(|vector| vector.provenance.space.to_string());
        let spaces = spaces.chain(changes.iter().filter_map(staged)).collect();
        order_spaces(&mut transaction, spaces).await.map_err(&failed)?;
        let applied = self.apply_all(&mut transaction, changes, now_us).await?;
        let is_stale = |applied: &Applied| matches!(applied, Applied::Stale(_));
        if atomicity == Atomicity::AllOrNothing && applied.iter().any(is_stale) {
            transaction.rollback().await.map_err(&failed)?;
            return Ok(Committed::Applied(applied));
        }
        if let Some(NewReceipt { key, request, answer, .. }) = receipt {
            // In place of one that does not count any more and was not forgotten yet.
            sqlx::query(
                "INSERT OR REPLACE INTO idempotency_keys (caller, key, request, answer, recorded_us) \
                 VALUES (?, ?, ?, ?, ?)",
            )
            .bind(key.caller)
            .bind(key.key)
            .bind(request)
            .bind(answer(&applied))
            .bind(now_us)
            .execute(&mut *transaction)
            .await
            .map_err(&failed)?;
        }
        transaction.commit().await.map_err(&failed)?;
        Ok(Committed::Applied(applied))
    }
}

impl SqliteStore {
    /// Makes the changes in their order, but that grains that are new go together.
    async fn apply_all(
        &self,
        transaction: &mut Transaction<'_, Sqlite>,
        changes: Vec<Change>,
        now_us: i64,
    ) -> Result<Vec<Applied>, StoreError> {
        let failed = self.failed("write new grains");
        let ids: Vec<&str> = changes.iter().map(|change| change.id.as_str()).collect();
        let taken = sqlx::query_scalar("SELECT id FROM grains WHERE id IN (SELECT value FROM json_each(?))")
            .bind(json_text(&ids))
            .fetch_all(&mut **transaction)
            .await
            .map_err(&failed)?;
        let mut taken: HashSet<String> = taken.into_iter().collect();
        let (mut new, mut others, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for (place, change) in changes.into_iter().enumerate() {
            let is_new = change.expected == Expected::Absent && change.staged.is_none();
            if taken.insert(change.id.as_str().to_owned()) && is_new {
                places.push(place);
                new.push(change);
            } else {
                others.push((place, change));
            }
        }
        let written = insert(transaction, new, now_us).await.map_err(&failed)?;
        let written = written
            .into_iter()
            .map(|numbered| Applied::Written(Box::new(Written { numbered, text: TextFate::New, staged: None })));
        let mut applied: Vec<(usize, Applied)> = places.into_iter().zip(written).collect();
        for (place, change) in others {
            applied.push((place, self.apply(transaction, change, now_us).await?));
        }
        applied.sort_unstable_by_key(|(place, _)| *place);
        Ok(applied.into_iter().map(|(_, applied)| applied).collect())
    }

    async fn apply(
        &self,
        transaction: &mut Transaction<'_, Sqlite>,
        mut change: Change,
        now_us: i64,
    ) -> Result<Applied, StoreError> {
        let failed = self.failed("write a grain");
        let staged = change.staged.take();
        let found: Option<(i64, i64, i64, bool, String)> =
            sqlx::query_as("SELECT number, version, text_version, text = ?, attributes FROM grains WHERE id = ?")
                .bind(&change.content.text)
                .bind(change.id.as_str())
                .fetch_optional(&mut **transaction)
                .await
                .map_err(&failed)?;
        let found = found.map(|(number, version, text_version, is_same_text, attributes)| Found {
            number,
            version,
            text_version,
            is_same_text,
            attributes,
        });
        let (number, text_version, text) = match (found, change.expected) {
            (None, Expected::Absent) => {
                let written = insert(transaction, vec![change], now_us).await.map_err(&failed)?;
                (written.first().map_or(0, |numbered| numbered.number), 1, TextFate::New)
            }
            (Some(found), Expected::Version { number, version })
                if (found.number, count(found.version)) == (number, version) =>
            {
                let text_version = update(transaction, &change, &found, now_us).await.map_err(&failed)?;
                (found.number, text_version, if found.is_same_text { TextFate::Kept } else { TextFate::Replaced })
            }
            (found, _) => return Ok(Applied::Stale(found.map(|found| count(found.version)))),
        };
        let staged = match staged {
            Some(Staged { vector, selection }) if self.meets(transaction, &selection, number).await? => {
                // One that is there already may be the caller's own, and may serve.
                let is_written = put_unless_late(transaction, &vector, number, text_version).await.map_err(&failed)?;
                is_written.then_some(vector)
            }
            _ => None,
        };
        let mut query = select_grains();
        query.push(" WHERE g.number = ").push_bind(number);
        let row = query.build().fetch_one(&mut **transaction).await.map_err(&failed)?;
        Ok(Applied::Written(Box::new(Written { numbered: self.grain_of(&row)?, text, staged })))
    }

    /// Whether a grain meets a filter as it is written now.
    async fn meets(
        &self,
        transaction: &mut Transaction<'_, Sqlite>,
        filter: &Filter,
        number: i64,
    ) -> Result<bool, StoreError> {
        if filter.is_empty() {
            return Ok(true);
        }
        let mut query = QueryBuilder::new("SELECT g.number");
        filter::push_from_numbers(&mut query, filter, &[number]);
        let found: Option<i64> = query
            .build_query_scalar()
            .fetch_optional(&mut **transaction)
            .await
            .map_err(self.failed("check a grain by a filter"))?;
        Ok(found.is_some())
    }
}

/// Whether models are what they were when vectors were made with them.
async fn have_stayed(transaction: &mut Transaction<'_, Sqlite>, makers: &Makers) -> Result<bool, sqlx::Error> {
    if let Some(model) = &makers.active {
        let active: Option<String> =
            sqlx::query_scalar("SELECT name FROM active_model").fetch_optional(&mut **transaction).await?;
        if active.is_some_and(|active| !active.eq_ignore_ascii_case(model.as_str())) {
            return Ok(false);
        }
    }
    for (model, space) in &makers.spaces {
        // That of a deleted model goes with it.
        let accepted: Option<String> = sqlx::query_scalar("SELECT space FROM accepted_spaces WHERE model = ?")
            .bind(model.as_str())
            .fetch_optional(&mut **transaction)
            .await?;
        if accepted.as_deref() != Some(space.as_str()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes what a grain becomes, and answers the version of its text.
async fn update(
    transaction: &mut Transaction<'_, Sqlite>,
    change: &Change,
    found: &Found,
    now_us: i64,
) -> Result<i64, sqlx::Error> {
    let attributes = &change.content.attributes;
    // What was shown raw, since it cannot be read, stays until other attributes take its place.
    let stays = attributes.is_empty() && serde_json::from_str::<AnyObject>(&found.attributes).is_err();
    let attributes = if stays { found.attributes.clone() } else { json_text(attributes) };
    let version = found.version + 1;
    let text_version = if found.is_same_text { found.text_version } else { version };
    sqlx::query(
        "UPDATE grains SET text = ?, source = ?, tags = ?, attributes = ?, version = ?, text_version = ?, \
         updated_at = ?, updated_us = ?, \
         old_vector = CASE WHEN ? THEN old_vector END, old_model = CASE WHEN ? THEN old_model END, \
         old_dimensions = CASE WHEN ? THEN old_dimensions END WHERE number = ?",
    )
    .bind(&change.content.text)
    .bind(&change.content.source)
    .bind(json_text(&change.content.tags))
    .bind(attributes)
    .bind(version)
    .bind(text_version)
    .bind(stored_time(now_us))
    .bind(now_us)
    .bind(found.is_same_text)
    .bind(found.is_same_text)
    .bind(found.is_same_text)
    .bind(found.number)
    .execute(&mut **transaction)
    .await?;
    if !found.is_same_text {
        sqlx::query("DELETE FROM embeddings WHERE grain = ?").bind(found.number).execute(&mut **transaction).await?;
        index_of_words::put(transaction, vec![(found.number, change.content.text.clone())]).await?;
    }
    if let Some(vector) = &change.vector {
        put_vector(transaction, vector, found.number, text_version).await?;
        forget_anchor(transaction, found.number, &vector.provenance.space).await?;
    }
    Ok(text_version)
}

/// Gives spaces a place in the order that have none. They come last: grains that have a vector elsewhere stay where they
/// are served. Only those of open re-embeddings that are last already stay so: they serve nothing before their time.
pub(super) async fn order_spaces(
    transaction: &mut Transaction<'_, Sqlite>,
    spaces: BTreeSet<String>,
) -> Result<(), sqlx::Error> {
    let mut order = read_order(transaction).await?;
    let new: Vec<String> = spaces.into_iter().filter(|space| !order.contains(space)).collect();
    if new.is_empty() {
        return Ok(());
    }
    let targets = open_targets(transaction).await?;
    let waits = |space: &str| targets.contains(space);
    let (waiting, new): (Vec<String>, Vec<String>) = new.into_iter().partition(|space| waits(space));
    // The first one serves in any case.
    let n_waiting = order.iter().skip(1).rev().take_while(|space| waits(space)).count();
    let last = order.split_off(order.len() - n_waiting);
    write_order(transaction, &[order, new, last, waiting].concat()).await
}

/// Leaves out vectors for a re-embedding that has ended since they were made: a purge of it may be over, and they would
/// stay for good. In the space that comes first they serve.
async fn drop_unwanted(transaction: &mut Transaction<'_, Sqlite>, changes: &mut [Change]) -> Result<(), sqlx::Error> {
    if changes.iter().all(|change| change.staged.is_none()) {
        return Ok(());
    }
    let mut wanted = open_targets(transaction).await?;
    wanted.extend(read_order(transaction).await?.into_iter().next());
    for change in changes {
        if let Some(staged) = &change.staged
            && !wanted.contains(staged.vector.provenance.space.as_str())
        {
            change.staged = None;
        }
    }
    Ok(())
}

/// The spaces of open re-embeddings.
async fn open_targets(transaction: &mut Transaction<'_, Sqlite>) -> Result<HashSet<String>, sqlx::Error> {
    let jobs: Vec<(String, String)> =
        sqlx::query_as("SELECT space, state FROM reembeddings").fetch_all(&mut **transaction).await?;
    let is_open = |state: &str| ReembeddingState::parse(state).is_some_and(ReembeddingState::is_open);
    Ok(jobs.into_iter().filter_map(|(space, state)| is_open(&state).then_some(space)).collect())
}

async fn read_order(transaction: &mut Transaction<'_, Sqlite>) -> Result<Vec<String>, sqlx::Error> {
    let order: String = sqlx::query_scalar("SELECT spaces FROM space_order").fetch_one(&mut **transaction).await?;
    serde_json::from_str(&order).map_err(|error| sqlx::Error::Decode(error.into()))
}

pub(super) async fn write_order(
    transaction: &mut Transaction<'_, Sqlite>,
    order: &[impl serde::Serialize],
) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE space_order SET spaces = ?").bind(json_text(&order)).execute(&mut **transaction).await.map(drop)
}

/// RFC 3339 with all six digits, so that times sort as text too.
const STORED_TIME: &[FormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

/// A time as it is stored.
pub(super) fn stored_time(us: i64) -> String {
    time_of_us(us).and_then(|time| time.format(STORED_TIME).ok()).unwrap_or_default()
}
