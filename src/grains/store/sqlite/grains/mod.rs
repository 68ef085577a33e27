//! Grains in SQLite: `read` and `search` find them, `write` and `delete` change them, `vectors` feeds indexes,
//! `adopt` gives old vectors their space, `reembed` new ones of another space, which `reembeddings` keeps account of;
//! `anchors` makes the scores of two spaces comparable. `rows` is how a grain is read, `filter` how conditions become
//! SQL, `words` how a query becomes one of the full text, `vocabulary` which of its words tell anything.

mod adopt;
mod anchors;
mod delete;
mod filter;
mod insert;
#[cfg(test)]
mod plans;
mod read;
mod reembed;
mod reembeddings;
mod rows;
mod search;
#[cfg(test)]
mod tests;
mod vectors;
mod vocabulary;
mod words;
mod write;

use std::path::Path;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

pub(super) use self::filter::SERVED_SPACE;
pub(super) use self::rows::{bytes_of, vector_of};
pub(super) use self::vocabulary::Vocabulary;
use super::super::StoreError;
use super::super::grain_store::{
    Batch, Committed, Counted, Deletion, Facet, GrainStore, Identity, Lacking, Made, NewVector, Numbered, OnlyIf, Page,
    PageRequest, ProvenVector, Purge, Purged, Receipt, ReceiptKey, Reply, Scored, Unembedded, VectorBatch, Written,
};
use super::SqliteStore;
use crate::domain::{Filter, GrainId, ModelName, Reembedding, ReembeddingFailure, ReembeddingId, SpaceId};
use crate::telemetry::traces::part;

impl GrainStore for SqliteStore {
    fn write(&self, batch: Batch, now_us: i64) -> Reply<'_, Committed> {
        shown("write", self.write_grains(batch, now_us))
    }

    fn delete(&self, filter: Filter, only_if: OnlyIf) -> Reply<'_, Result<Deletion, u64>> {
        shown("delete", self.delete_grains(filter, only_if))
    }

    fn delete_left(&self, filter: Filter, left: Vec<(i64, i64)>) -> Reply<'_, Deletion> {
        shown("delete", self.delete_left_grains(filter, left))
    }

    fn receipt<'a>(&'a self, key: &'a ReceiptKey, since_us: i64) -> Reply<'a, Option<Receipt>> {
        shown("receipt", self.read_receipt(key, since_us))
    }

    fn forget_receipts(&self, before_us: i64) -> Reply<'_, ()> {
        Box::pin(self.delete_receipts(before_us))
    }

    fn grain<'a>(&'a self, id: &'a GrainId) -> Reply<'a, Option<Numbered>> {
        shown("grain", self.read_grain(id))
    }

    fn grain_with_vector<'a>(&'a self, id: &'a GrainId) -> Reply<'a, Option<(Numbered, Option<Vec<f32>>)>> {
        shown("grain_with_vector", self.read_grain_with_vector(id))
    }

    fn grains(&self, numbers: Vec<i64>, filter: Filter) -> Reply<'_, Vec<Numbered>> {
        shown("grains", self.read_grains(numbers, filter))
    }

    fn old_vectors(&self, after: i64, limit: u32) -> Reply<'_, Vec<(Numbered, Vec<u8>)>> {
        Box::pin(self.read_old_vectors(after, limit))
    }

    fn page(&self, request: PageRequest) -> Reply<'_, Page> {
        shown("page", self.read_page(request))
    }

    fn count(&self, filter: Filter, facets: Vec<Facet>) -> Reply<'_, Counted> {
        shown("count", self.count_grains(filter, facets))
    }

    fn numbers(&self, filter: Filter, at_most: u32) -> Reply<'_, Vec<i64>> {
        shown("numbers", self.find_numbers(filter, at_most))
    }

    fn passing(&self, filter: Filter, numbers: Vec<i64>) -> Reply<'_, Vec<i64>> {
        shown("passing", self.find_passing(filter, numbers))
    }

    fn with_words(&self, query: String, filter: Filter, at_most: u32) -> Reply<'_, Vec<Scored>> {
        shown("with_words", self.find_words(query, filter, at_most))
    }

    fn with_each_word(&self, query: String, numbers: Vec<i64>) -> Reply<'_, Vec<Vec<i64>>> {
        shown("with_each_word", self.find_each_word(query, numbers))
    }

    fn size(&self, numbers: Vec<i64>) -> Reply<'_, u64> {
        shown("size", self.read_size(numbers))
    }

    fn space_order(&self) -> Reply<'_, Vec<SpaceId>> {
        Box::pin(self.read_space_order())
    }

    fn write_space_order(&self, order: Vec<SpaceId>) -> Reply<'_, ()> {
        Box::pin(self.update_space_order(order))
    }

    fn served_by_space(&self) -> Reply<'_, Vec<(SpaceId, u64)>> {
        Box::pin(self.count_served())
    }

    fn vector_in<'a>(&'a self, number: i64, space: &'a SpaceId) -> Reply<'a, Option<NewVector>> {
        shown("vector_in", self.read_vector_in(number, space))
    }

    fn vectors_of_space<'a>(&'a self, space: &'a SpaceId, after: i64, limit: u32) -> Reply<'a, VectorBatch> {
        Box::pin(self.read_vectors_of_space(space, after, limit))
    }

    fn adopt(&self, proven: Vec<ProvenVector>, order: Option<Vec<SpaceId>>) -> Reply<'_, Vec<(Written, NewVector)>> {
        Box::pin(self.write_proven(proven, order))
    }

    fn add_reembedding(&self, job: Reembedding, active: Option<ModelName>) -> Reply<'_, Result<(), ReembeddingId>> {
        Box::pin(self.insert_reembedding(job, active))
    }

    fn reembeddings(&self) -> Reply<'_, Vec<Reembedding>> {
        Box::pin(self.read_reembeddings())
    }

    fn record_reembedding(&self, job: Reembedding, order: Option<Vec<SpaceId>>) -> Reply<'_, ()> {
        Box::pin(self.update_reembedding(job, order))
    }

    fn lacking(&self, lacking: Lacking, after: i64, limit: u32) -> Reply<'_, Vec<Unembedded>> {
        Box::pin(self.find_lacking(lacking, after, limit))
    }

    fn count_lacking(&self, lacking: Lacking) -> Reply<'_, u64> {
        Box::pin(self.count_lacking_grains(lacking))
    }

    fn count_withheld_beyond(&self, space: SpaceId, filter: Filter) -> Reply<'_, u64> {
        Box::pin(self.count_grains_withheld_beyond(space, filter))
    }

    fn write_made(&self, made: Made) -> Reply<'_, Vec<i64>> {
        Box::pin(self.write_made_vectors(made))
    }

    fn reembedding_failures<'a>(
        &'a self,
        id: &'a ReembeddingId,
        at_most: u32,
    ) -> Reply<'a, (Vec<ReembeddingFailure>, u64)> {
        Box::pin(self.read_failures(id, at_most))
    }

    fn forget_failures<'a>(&'a self, id: &'a ReembeddingId) -> Reply<'a, ()> {
        Box::pin(self.delete_failures(id))
    }

    fn failed_less_than<'a>(&'a self, id: &'a ReembeddingId, tries: u32) -> Reply<'a, Vec<Unembedded>> {
        Box::pin(self.find_failed_less_than(id, tries))
    }

    fn purge(&self, purge: Purge, after: i64, limit: u32) -> Reply<'_, Option<Purged>> {
        Box::pin(self.delete_superfluous(purge, after, limit))
    }

    fn copy_to<'a>(&'a self, target: &'a Path, stop: &'a CancellationToken) -> Reply<'a, ()> {
        Box::pin(self.write_snapshot(target, stop))
    }

    fn identity(&self) -> Reply<'_, Identity> {
        Box::pin(self.read_identity())
    }

    fn renew_epoch(&self) -> Reply<'_, Identity> {
        Box::pin(self.write_epoch())
    }
}

/// What requests ask of the database is shown in their traces, under the name it has in the trait.
fn shown<'a, T: Send + 'a>(
    operation: &'static str,
    reply: impl Future<Output = Result<T, StoreError>> + Send + 'a,
) -> Reply<'a, T> {
    let part = part("store").named("db.system.name", "sqlite").named("db.operation.name", operation);
    Box::pin(part.around(reply))
}

/// What a column keeps as JSON, or an array that `json_each` takes apart: one parameter, however many values there are.
fn json_text(value: &(impl Serialize + ?Sized)) -> String {
    serde_json::to_string(value).expect("strings, numbers, lists and JSON values are always JSON")
}

/// Counts are never negative.
fn count(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}
