//! Grains in bulk: `export` reads them out, `import` takes them in, in whatever number. `lines` is what an import
//! reads, `batch` how many of its lines are written together.
//!
//! Nothing here holds more than a few batches or pages at a time.

mod batch;
mod export;
mod import;
mod lines;

pub use export::{ExportItem, ExportRequest};
pub use import::{Declarations, ImportEvent, ImportOptions, ImportStop, OnConflict, Tally, UnknownVectors};
pub use lines::{ImportEntry, ImportGrain, ImportLine, ImportSpace, ReadingEnded};
