//! Which model, in what state.
//!
//! Owns the catalog, the life of each model, and the proof of what made a vector ([`fingerprint`]). It knows no HTTP
//! and no SQL: what must survive a restart goes through [`ledger::Ledger`]. Start at [`manager`].
//!
//! `loader`, and the readers of files beside it, make a model of a folder, which `hub` may have fetched. `canary`,
//! `standing`, `probe` and `health` watch a model that is loaded.

pub mod cache;
pub mod callers;
pub mod canary;
pub mod catalog;
pub mod counts;
mod descriptions;
mod entry;
pub mod error;
mod eviction;
mod files;
pub mod fingerprint;
pub mod folder;
pub mod following;
pub mod hardware;
mod health;
pub mod hub;
pub mod interactive;
pub mod ledger;
pub mod lifecycle;
pub mod loaded;
pub mod loader;
mod loading;
pub mod manager;
mod memory;
pub mod modules;
pub mod onnx_file;
mod pooling_file;
mod probe;
pub mod registration;
pub mod spaces;
pub mod standing;
mod starting;
mod status;
pub mod switching;
mod tokenizer_files;

pub use cache::EmbeddingCache;
pub use callers::RecentCaller;
pub use catalog::{Catalog, CatalogError};
pub use error::{LoadError, ModelError};
pub use following::Following;
pub use hardware::{Selection, Selector};
pub use health::Ailment;
pub use interactive::Interactive;
pub use ledger::{Declared, Ledger, LedgerError, VolatileLedger};
pub use loaded::{EmbedRequest, Embedded, Lease, LoadedFacts, Truncation};
pub use loader::Loader;
pub use manager::{ManagerParts, MultiModelManager, Timing};
pub use memory::BudgetOf;
pub use registration::NeededGrains;
pub use spaces::{Acceptance, Space};
pub use standing::Standing;
pub use status::ModelStatus;
pub use switching::Switch;
