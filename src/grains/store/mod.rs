//! Where grains, and what the models must remember, are kept.
//!
//! Owns every line of SQL in the product, one folder per database; rows become domain types before they leave it. The
//! only database so far is [`sqlite`], an embedded file. Start at [`SqliteStore::open`].

mod error;
pub mod sqlite;

pub use error::StoreError;
pub use sqlite::{FileState, OpenOptions, SqliteStore};
