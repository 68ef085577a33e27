//! What a database must do for re-embeddings: their account, and vectors beside the ones that serve.

use async_trait::async_trait;

use super::StoreError;
use super::grain_store::NewVector;
use crate::domain::{Filter, ModelName, Reembedding, ReembeddingFailure, ReembeddingId, SpaceId};

/// The account of re-embeddings: where each is, what it has left to do, and what it could not embed. No vector that serves
/// changes by it, nor which do.
#[async_trait]
pub trait ReembeddingStore: Send + Sync {
    /// Records a new re-embedding, unless there is an open one for its space: then it answers which. With a model, the
    /// active one becomes that in the same transaction.
    async fn add_reembedding(
        &self,
        job: Reembedding,
        active: Option<ModelName>,
    ) -> Result<Result<(), ReembeddingId>, StoreError>;

    /// Every re-embedding, newest first.
    async fn reembeddings(&self) -> Result<Vec<Reembedding>, StoreError>;

    /// Records what has changed of a re-embedding; `done` is [`StagingStore::write_made`]'s.
    async fn record_reembedding(&self, job: Reembedding) -> Result<(), StoreError>;

    /// Grains that have no current vector in a space, in the order of their numbers.
    async fn lacking(&self, lacking: Lacking, after: i64, limit: u32) -> Result<Vec<Unembedded>, StoreError>;

    /// How many grains have no current vector in a space.
    async fn count_lacking(&self, lacking: Lacking) -> Result<u64, StoreError>;

    /// Selected grains that a re-embedding could not embed and that still have no vector in its space, in the order of
    /// their numbers, and how many there are.
    async fn reembedding_failures(
        &self,
        id: &ReembeddingId,
        at_most: u32,
    ) -> Result<(Vec<ReembeddingFailure>, u64), StoreError>;

    /// Forgets what a re-embedding could not embed, so that it is tried anew.
    async fn forget_failures(&self, id: &ReembeddingId) -> Result<(), StoreError>;

    /// Some grains that a re-embedding could not embed, after fewer tries than that; none when there are no more.
    async fn failed_less_than(&self, id: &ReembeddingId, tries: u32) -> Result<Vec<Unembedded>, StoreError>;
}

/// Vectors in another space: how grains get one, are served by it, and lose the one before.
#[async_trait]
pub trait StagingStore: Send + Sync {
    /// As [`ReembeddingStore::record_reembedding`], and makes this the order of spaces in the same transaction.
    async fn record_with_order(&self, job: Reembedding, order: Vec<SpaceId>) -> Result<(), StoreError>;

    /// How many grains have a current vector in a space, are served from another, and do not meet the filter.
    async fn count_withheld_beyond(&self, space: SpaceId, filter: Filter) -> Result<u64, StoreError>;

    /// Writes vectors that were made in the background, of those grains that still have the text and got no vector in
    /// the space meanwhile. Answers the numbers of these.
    async fn write_made(&self, made: Made) -> Result<Vec<i64>, StoreError>;

    /// Deletes superfluous vectors of the next grains after a number. `None` when there are no more grains.
    async fn purge(&self, purge: Purge, after: i64, limit: u32) -> Result<Option<Purged>, StoreError>;
}

/// Grains without a current vector in a space.
#[derive(Clone, Debug)]
pub struct Lacking {
    /// The space.
    pub space: SpaceId,
    /// What the grains meet besides.
    pub filter: Filter,
    /// A re-embedding: what it could not embed is left out.
    pub unless_failed_in: Option<ReembeddingId>,
    /// Only these grains.
    pub among: Option<Vec<i64>>,
}

/// A grain that is to get a vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unembedded {
    /// Its number.
    pub number: i64,
    /// Its text.
    pub text: String,
    /// Which of its texts that is.
    pub text_version: i64,
}

/// What was made of some grains in the background.
#[derive(Clone, Debug)]
pub struct Made {
    /// The re-embedding that made them, if one did: it counts them, and keeps what failed.
    pub job: Option<ReembeddingId>,
    /// Each grain, and its vector or why there is none.
    pub vectors: Vec<(Unembedded, Result<NewVector, String>)>,
}

/// Vectors that are superfluous.
#[derive(Clone, Debug)]
pub enum Purge {
    /// Those in `spaces`, of grains that have a current vector in `kept`.
    Replaced {
        /// The space that stays.
        kept: SpaceId,
        /// The spaces before it.
        spaces: Vec<SpaceId>,
    },
    /// Those in this space that do not serve their grain.
    Unserved(SpaceId),
}

/// What a purge deleted.
#[derive(Clone, Debug, Default)]
pub struct Purged {
    /// The last grain that was looked at.
    pub last: i64,
    /// Each vector: its space and its grain's number.
    pub vectors: Vec<(SpaceId, i64)>,
}
