//! What a database must do for grains.
//!
//! Grains have a *number* inside one database, by which indexes and full text refer to them; it is never used twice and
//! never leaves the process.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::StoreError;
use super::anchor_store::AnchorStore;
use super::reembedding_store::{ReembeddingStore, StagingStore};
use crate::domain::{Content, CreatedAt, Filter, Grain, GrainId, ModelName, Provenance, SpaceId};

/// Grains in a database. Everything that was written is durable when the future resolves.
#[async_trait]
pub trait GrainStore:
    AnchorStore + ReadStore + SearchStore + WriteStore + DeleteStore + VectorStore + ReembeddingStore + StagingStore
{
    /// Writes a whole copy of the database, as of now, to a file that does not exist yet. Once `stop` is cancelled it
    /// is interrupted ([`StoreError::TooSlow`]), and nothing of it stays.
    async fn copy_to(&self, target: &Path, stop: &CancellationToken) -> Result<(), StoreError>;
}

/// Grains as they are read: one, some, in pages, or counted.
#[async_trait]
pub trait ReadStore: Send + Sync {
    /// One grain.
    async fn grain(&self, id: &GrainId) -> Result<Option<Numbered>, StoreError>;

    /// One grain, and the vector that it is served by if it has one, as they are at the same moment.
    async fn grain_with_vector(&self, id: &GrainId) -> Result<Option<(Numbered, Option<Vec<f32>>)>, StoreError>;

    /// The grains that have these numbers and meet the filter, in no particular order.
    async fn grains(&self, numbers: Vec<i64>, filter: Filter) -> Result<Vec<Numbered>, StoreError>;

    /// Grains in an order that stays the same while pages are read.
    async fn page(&self, request: PageRequest) -> Result<Page, StoreError>;

    /// How many grains meet the filter, and how they are distributed over each facet's values.
    async fn count(&self, filter: Filter, facets: Vec<Facet>) -> Result<Counted, StoreError>;

    /// Bytes that the texts and attributes of these grains take, about.
    async fn size(&self, numbers: Vec<i64>) -> Result<u64, StoreError>;

    /// The answer of an earlier write that carried this key, unless it was recorded before that time, in microseconds
    /// since 1970.
    async fn receipt(&self, key: &ReceiptKey, since_us: i64) -> Result<Option<Receipt>, StoreError>;
}

/// Numbers of grains, found by filters and by words.
#[async_trait]
pub trait SearchStore: Send + Sync {
    /// The numbers of grains that meet the filter, at most that many of them.
    async fn numbers(&self, filter: Filter, at_most: u32) -> Result<Vec<i64>, StoreError>;

    /// Those of the numbers whose grains meet the filter, in their order.
    async fn passing(&self, filter: Filter, numbers: Vec<i64>) -> Result<Vec<i64>, StoreError>;

    /// The grains whose text has words of the query, best first by BM25, which is positive here: more is better.
    async fn with_words(&self, query: String, filter: Filter, at_most: u32) -> Result<Vec<Scored>, StoreError>;

    /// Of these grains those whose text has words of the query, with the same score, in any order.
    async fn words_of(&self, query: String, numbers: Vec<i64>) -> Result<Vec<Scored>, StoreError>;

    /// For each word of the query that is searched for, those of the grains that have it.
    async fn with_each_word(&self, query: String, numbers: Vec<i64>) -> Result<Vec<Vec<i64>>, StoreError>;
}

/// Grains that come and change.
#[async_trait]
pub trait WriteStore: Send + Sync {
    /// Writes grains and their vectors in one transaction, as of this time, in microseconds since 1970.
    async fn write(&self, batch: Batch, now_us: i64) -> Result<Committed, StoreError>;
}

/// Grains that go, and answers that are forgotten.
#[async_trait]
pub trait DeleteStore: Send + Sync {
    /// Deletes the grains that meet the filter, with their vectors; of many some, and answers which are left.
    async fn delete(&self, filter: Filter, only_if: OnlyIf) -> Result<Result<Deletion, u64>, StoreError>;

    /// Deletes some of the grains that were left, as far as they have not been written since and still meet the filter.
    async fn delete_left(&self, filter: Filter, left: Vec<(i64, i64)>) -> Result<Deletion, StoreError>;

    /// Forgets answers that were recorded before this time, in microseconds since 1970.
    async fn forget_receipts(&self, before_us: i64) -> Result<(), StoreError>;
}

/// Vectors that indexes are built from, and the order of spaces, which says which of them count.
#[async_trait]
pub trait VectorStore: Send + Sync {
    /// Spaces from the one that grains are served from first to the last.
    async fn space_order(&self) -> Result<Vec<SpaceId>, StoreError>;

    /// Makes this the order of spaces.
    async fn write_space_order(&self, order: Vec<SpaceId>) -> Result<(), StoreError>;

    /// The spaces that hold vectors of grains, and how many each serves.
    async fn served_by_space(&self) -> Result<Vec<(SpaceId, u64)>, StoreError>;

    /// The vector of a grain's current text in a space, whether the grain is served by it or not.
    async fn vector_in(&self, number: i64, space: &SpaceId) -> Result<Option<NewVector>, StoreError>;

    /// Vectors of a space in the order of their grains' numbers, those after a number.
    async fn vectors_of_space(&self, space: &SpaceId, after: i64, limit: u32) -> Result<VectorBatch, StoreError>;

    /// The vectors as version 0.3 stored them, of those grains that still have one, as bytes.
    async fn old_vectors(&self, after: i64, limit: u32) -> Result<Vec<(Numbered, Vec<u8>)>, StoreError>;

    /// Gives vectors their provenance, in one transaction: of those grains that are still in the version that was
    /// compared. Answers these. With an order, the order of spaces becomes that in the same transaction.
    async fn adopt(
        &self,
        proven: Vec<ProvenVector>,
        order: Option<Vec<SpaceId>>,
    ) -> Result<Vec<(Written, NewVector)>, StoreError>;

    /// Which database this is, and the epoch that the index files beside it must name to be believed.
    async fn identity(&self) -> Result<Identity, StoreError>;

    /// Begins a new epoch, so that no index file of an earlier one is believed.
    async fn renew_epoch(&self) -> Result<Identity, StoreError>;
}

/// A grain and its number.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbered {
    /// Its number.
    pub number: i64,
    /// The grain.
    pub grain: Grain,
}

/// Grains to write.
pub struct Batch {
    /// What is to be written.
    pub changes: Vec<Change>,
    /// What one that cannot be written means for the others.
    pub atomicity: Atomicity,
    /// What made the vectors.
    pub makers: Makers,
    /// What to record of the answer.
    pub receipt: Option<NewReceipt>,
}

/// The models that vectors of a batch were made with. Nothing is written once one of them is not what it was then.
/// Vectors that were brought along have none.
#[derive(Clone, Debug, Default)]
pub struct Makers {
    /// The one that was meant as the active model, if one was.
    pub active: Option<ModelName>,
    /// Each, and the space that it made.
    pub spaces: Vec<(ModelName, SpaceId)>,
}

/// The record of a write's answer.
pub struct NewReceipt {
    /// The caller's key.
    pub key: ReceiptKey,
    /// SHA-256 of what was asked.
    pub request: String,
    /// An answer that was recorded before this time, in microseconds since 1970, does not count any more.
    pub since_us: i64,
    /// Writes the answer.
    pub answer: WriteAnswer,
}

/// Writes down what became of a batch.
pub type WriteAnswer = Box<dyn FnOnce(&[Applied]) -> String + Send>;

/// One grain to write.
#[derive(Clone, Debug)]
pub struct Change {
    /// Its id.
    pub id: GrainId,
    /// What must be stored under the id for the change to be made.
    pub expected: Expected,
    /// What the grain becomes.
    pub content: Content,
    /// When it was created, if that was elsewhere. A grain that is stored already keeps its own time.
    pub created_at: Option<CreatedAt>,
    /// Its new vector. Without one, vectors of an unchanged text stay, and those of a changed one go.
    pub vector: Option<NewVector>,
    /// Its vector for the re-embedding that runs, so that the job need not come back for it.
    pub staged: Option<Staged>,
}

/// A vector in the space of a re-embedding.
#[derive(Clone, Debug)]
pub struct Staged {
    /// The vector.
    pub vector: NewVector,
    /// It is written if the grain meets this and has no vector of its text in the space yet, and the job has not ended
    /// without taking over.
    pub selection: Arc<Filter>,
}

/// What is stored under an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Nothing.
    Absent,
    /// The grain with this number in this version: one that was deleted and made anew has another number.
    Version {
        /// Its number.
        number: i64,
        /// The version.
        version: u64,
    },
}

/// A vector to store.
#[derive(Clone, Debug)]
pub struct NewVector {
    /// What made it.
    pub provenance: Provenance,
    /// `[dimensions]`
    pub vector: Vec<f32>,
}

/// A vector of which is known by now what made it.
#[derive(Clone, Debug)]
pub struct ProvenVector {
    /// Its grain.
    pub number: i64,
    /// The version of the grain whose text was compared.
    pub version: u64,
    /// The space that it was in; `None` for a vector of version 0.3.
    pub from: Option<SpaceId>,
    /// The vector and what made it.
    pub vector: NewVector,
}

/// What one change that cannot be made means for the others of its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Atomicity {
    /// None is made.
    AllOrNothing,
    /// They are made.
    Each,
}

/// What became of a batch.
#[derive(Clone, Debug)]
pub enum Committed {
    /// What became of each change, in their order. When all depend on each other and one is stale, none was made.
    Applied(Vec<Applied>),
    /// Nothing was written: another model is active by now, or grains of one are written to another space, or it was
    /// deleted.
    ModelMoved,
    /// Nothing was written: the key has been used.
    Answered(Receipt),
}

/// What became of a change.
#[derive(Clone, Debug)]
pub enum Applied {
    /// It was made.
    Written(Box<Written>),
    /// Another grain or version is stored than was expected, in this version; `None`: no grain.
    Stale(Option<u64>),
}

/// A change that was made.
#[derive(Clone, Debug)]
pub struct Written {
    /// The grain as it is now.
    pub numbered: Numbered,
    /// What became of its text, and with it of vectors it had before.
    pub text: TextFate,
    /// The staged vector that was written too.
    pub staged: Option<NewVector>,
}

/// What a change did to a grain's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextFate {
    /// It is new, as the grain is.
    New,
    /// It is the same; vectors of it still count.
    Kept,
    /// It is another one, and no vector made before counts.
    Replaced,
}

/// When a deletion is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnlyIf {
    /// In any case.
    Always,
    /// When exactly so many grains meet the filter. Else the store answers how many do.
    Count(u64),
    /// When the one grain that meets it is in this version. Else the store answers which it is in.
    Version(u64),
}

/// Grains that were to be deleted.
#[derive(Clone, Debug)]
pub struct Deletion {
    /// The numbers of those that are gone.
    pub gone: Vec<i64>,
    /// The numbers and versions of those to which nothing has been done yet.
    pub left: Vec<(i64, i64)>,
}

/// Whose write it is, by the caller's own word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiptKey {
    /// The name of the caller's API key; empty without one.
    pub caller: String,
    /// The `Idempotency-Key`.
    pub key: String,
}

/// The record of an earlier answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// SHA-256 of what was asked.
    pub request: String,
    /// What was answered, as [`NewReceipt::answer`] wrote it.
    pub answer: String,
}

/// Vectors for an index.
#[derive(Clone, Debug, Default)]
pub struct VectorBatch {
    /// The grains' numbers, ascending.
    pub numbers: Vec<i64>,
    /// Whether each is served from this space.
    pub served: Vec<bool>,
    /// Each vector: `[dimensions]`
    pub vectors: Vec<Vec<f32>>,
}

/// What grains are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SortKey {
    /// The time they were created.
    Created,
    /// The time they were last changed.
    Updated,
    /// The bytes of their ids.
    Id,
}

/// An order of grains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sort {
    /// What decides.
    pub key: SortKey,
    /// Whether the greatest comes first.
    pub descending: bool,
}

/// A place between two grains of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Position {
    /// After the grain of that number, created or changed at that time, in microseconds since 1970.
    Time {
        /// The time.
        us: i64,
        /// The number.
        number: i64,
    },
    /// After the grain of that id.
    Id(String),
}

/// Whether grains are read with the vectors that they are served by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Vectors {
    /// Texts and what is known of them.
    #[default]
    Omitted,
    /// The vector of each grain that has one.
    Included,
}

/// A page to read.
#[derive(Clone, Debug)]
pub struct PageRequest {
    /// Which grains.
    pub filter: Filter,
    /// In which order.
    pub sort: Sort,
    /// Where to go on; `None` begins.
    pub after: Option<Position>,
    /// The most grains.
    pub limit: u32,
    /// Whether with vectors.
    pub vectors: Vectors,
}

/// Grains in order.
#[derive(Clone, Debug)]
pub struct Page {
    /// The grains.
    pub grains: Vec<Numbered>,
    /// By their numbers the vectors that they are served by, if these are asked for: `[dimensions]` each.
    pub vectors: HashMap<i64, Vec<f32>>,
    /// Where the next page begins; `None` when this was the last. A page of long texts may have fewer grains than its limit.
    pub next: Option<Position>,
}

/// Something grains are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Facet {
    /// Their source.
    Source,
    /// Each of their tags.
    Tags,
    /// The space they are served from.
    Space,
}

/// How many grains have a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FacetValue {
    /// The value; `None` for grains without one.
    pub value: Option<String>,
    /// How many.
    pub count: u64,
}

/// Counted grains.
#[derive(Clone, Debug)]
pub struct Counted {
    /// All of them.
    pub total: u64,
    /// The most frequent values of each facet, most frequent first.
    pub facets: Vec<(Facet, Vec<FacetValue>)>,
}

/// A grain's number and how well it suits a query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// The number.
    pub number: i64,
    /// More is better.
    pub score: f64,
}

/// Which database, and which state of it index files may be of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Given to the database once.
    pub database: String,
    /// Given anew at each opening for writing, and again when indexes are saved.
    pub epoch: String,
}
