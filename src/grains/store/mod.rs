//! Where grains, and what the models must remember, are kept.
//!
//! Owns every line of SQL in the product, one folder per database; rows become domain types before they leave it. What a
//! database must do for grains is the trait [`GrainStore`], for models the [`Ledger`](crate::models::Ledger). The only
//! database so far is [`sqlite`], an embedded file. Start at [`GrainStore`], then [`SqliteStore::open`].

mod anchor_store;
mod error;
mod grain_store;
mod reembedding_store;
pub mod sqlite;

pub use anchor_store::{Anchor, AnchorStore, NewAnchor, lot};
pub use error::StoreError;
pub use grain_store::{
    Applied, Atomicity, Batch, Change, Committed, Counted, DeleteStore, Deletion, Expected, Facet, FacetValue,
    GrainStore, Identity, Makers, NewReceipt, NewVector, Numbered, OnlyIf, Page, PageRequest, Position, ProvenVector,
    ReadStore, Receipt, ReceiptKey, Scored, SearchStore, Sort, SortKey, Staged, TextFate, VectorBatch, VectorStore,
    Vectors, WriteStore, Written,
};
pub use reembedding_store::{Lacking, Made, Purge, Purged, ReembeddingStore, StagingStore, Unembedded};
pub use sqlite::{Contents, FileState, LogBounds, OpenOptions, SqliteStore, real_path, restore};
