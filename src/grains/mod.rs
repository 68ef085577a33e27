//! Grains: small text records, each kept with its vector and the knowledge of which model made it.
//!
//! Owns what is stored and how it is found. It refuses to know HTTP, and leaves switching models and re-embedding to
//! `change`. Start at [`service`], then [`search`] and [`store`].
//!
//! `indexes` follow the database, `anchors` make scores comparable, `staging` and `places` move spaces, `transfer` and
//! `snapshots` carry grains in bulk.

mod anchors;
mod by_words;
mod draft;
mod embedding;
pub mod error;
mod highlight;
pub mod index;
mod indexes;
mod merge;
mod nearest;
mod places;
mod refusal;
pub mod search;
pub mod service;
mod snapshots;
mod spaces;
mod staging;
pub mod store;
pub mod transfer;
mod vector;
mod words;
mod writing;

pub use anchors::Anchors;
pub use draft::{Draft, Outcome, Patch, Precondition, PutIf, SourceChange, SuppliedVector, Token};
pub use embedding::TextKind;
pub use error::GrainError;
pub use indexes::{Indexes, check_saved};
pub use refusal::{Refusal, RefusalKind};
pub use search::{Hit, Mode, Query, SearchRequest, SearchResult, SearchedSpace};
pub use service::{GrainLimits, Grains, GrainsParts};
pub use snapshots::{Snapshot, SnapshotError, SnapshotName, Snapshots};
pub use staging::{CutOver, Target};
