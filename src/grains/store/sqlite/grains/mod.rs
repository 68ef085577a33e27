//! Grains in SQLite: `read` and `search` find them, `write` and `delete` change them, `vectors` feeds indexes and gives
//! old vectors their space, `reembed` gives grains new ones in another space, which `reembeddings` keeps account of;
//! `anchors` makes the scores of two spaces comparable. `rows` is how a grain is read, `filter` how conditions become
//! SQL, `vocabulary` which words of a query tell anything, `index_of_words` how texts get into the full text.

mod anchors;
mod delete;
mod filter;
mod index_of_words;
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
mod write;

use serde::Serialize;

pub(super) use self::filter::SERVED_SPACE;
pub(super) use self::index_of_words::bring_up_to_date;
pub(super) use self::rows::{bytes_of, vector_of};
pub(super) use self::vocabulary::Vocabulary;
use crate::telemetry::traces::{Part, part};

/// What requests ask of the database is shown in their traces, until this is dropped.
fn shown(operation: &'static str) -> Part {
    part("store").named("db.system.name", "sqlite").named("db.operation.name", operation)
}

/// What a column keeps as JSON, or an array that `json_each` takes apart: one parameter, however many values there are.
fn json_text(value: &(impl Serialize + ?Sized)) -> String {
    serde_json::to_string(value).expect("strings, numbers, lists and JSON values are always JSON")
}

/// Counts are never negative.
fn count(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}
