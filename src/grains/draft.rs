//! What callers write: new grains, changes, and what becomes of them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::GrainError;
use super::refusal::Refusal;
use super::service::GrainLimits;
use super::store::ReceiptKey;
use crate::domain::{Content, Grain, Provenance, SpaceId};

const MAX_SOURCE_BYTES: usize = 1024;
const MAX_TAGS: usize = 100;
const MAX_TAG_BYTES: usize = 256;
const MAX_ATTRIBUTES_BYTES: usize = 64 << 10;

/// Readers of JSON take 127 levels, and an answer or an export puts attributes some levels down.
const MAX_ATTRIBUTES_LEVELS: usize = 64;

/// A grain as a caller writes it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Draft {
    /// The id it is to have; a new one when `None`.
    pub id: Option<String>,
    /// What it is.
    pub content: Content,
    /// The model to embed it with, even if the text is stored already and embedded with another.
    pub model: Option<String>,
    /// The model for a text that is not stored yet, where `model` is `None`; the active one when this is `None` too.
    pub usual_model: Option<String>,
    /// Its vector, brought along.
    pub vector: Option<SuppliedVector>,
}

/// A vector that a caller brings along.
#[derive(Clone, Debug, PartialEq)]
pub struct SuppliedVector {
    /// The space it is in.
    pub space: SpaceId,
    /// `[dimensions]`; of any length but zero.
    pub vector: Vec<f32>,
    /// Whether to compare it with what the space's model makes of the text.
    pub verify: bool,
    /// What is known of it from an export.
    pub known: Option<Provenance>,
}

/// What a caller changes of a grain. `None` leaves what is there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Patch {
    /// The text.
    pub text: Option<String>,
    /// The source.
    pub source: SourceChange,
    /// All tags.
    pub tags: Option<Vec<String>>,
    /// Attributes to set; null removes one.
    pub attributes: Option<Map<String, Value>>,
    /// The model to embed it with, as in a [`Draft`].
    pub model: Option<String>,
    /// The model for a changed text, as in a [`Draft`].
    pub usual_model: Option<String>,
}

/// What becomes of a grain's source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SourceChange {
    /// It stays.
    #[default]
    Keep,
    /// It has none any more.
    Remove,
    /// It is this one.
    Set(String),
}

/// What must be stored already for a change to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precondition {
    /// Whatever is there, nothing too.
    #[default]
    Anything,
    /// The grain, in any version.
    Present,
    /// The grain, in this version.
    Version(u64),
}

/// What must be stored already for a grain to be put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutIf {
    /// What a change needs.
    Met(Precondition),
    /// Nothing: the grain is to be new.
    Absent,
}

/// What tells a repeated write from a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Whose write it is.
    pub key: ReceiptKey,
    /// SHA-256 of what is asked.
    pub request: String,
}

/// What became of a grain that was to be written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// It is new.
    Created(Grain),
    /// It has another version now.
    Updated(Grain),
    /// It was like this already.
    Unchanged(Grain),
    /// It was not written.
    Refused(Refusal),
}

impl Patch {
    pub(super) fn apply_to(self, content: &mut Content) {
        if let Some(text) = self.text {
            content.text = text;
        }
        match self.source {
            SourceChange::Keep => {}
            SourceChange::Remove => content.source = None,
            SourceChange::Set(source) => content.source = Some(source),
        }
        if let Some(tags) = self.tags {
            content.tags = tags;
        }
        for (name, value) in self.attributes.into_iter().flatten() {
            if value.is_null() {
                content.attributes.shift_remove(&name);
            } else {
                content.attributes.insert(name, value);
            }
        }
    }
}

/// Checks what is to be stored in place of `stored`. What a grain has already stays, whatever it is: older versions took
/// others, and a limit may have been higher.
pub(super) fn check_content(
    content: &Content,
    stored: Option<&Content>,
    limits: GrainLimits,
) -> Result<(), GrainError> {
    let Content { text, source, tags, attributes } = content;
    if stored.is_none_or(|stored| stored.text != *text) {
        check_text(text, limits)?;
    }
    if stored.is_none_or(|stored| stored.source != *source) {
        source.as_deref().map_or(Ok(()), check_source)?;
    }
    if stored.is_none_or(|stored| stored.tags != *tags) {
        check_tags(tags)?;
    }
    if stored.is_none_or(|stored| stored.attributes != *attributes) {
        check_attributes(attributes)?;
    }
    Ok(())
}

fn check_text(text: &str, limits: GrainLimits) -> Result<(), GrainError> {
    if text.is_empty() {
        return Err(GrainError::Empty);
    }
    if text.len() as u64 > limits.max_text_bytes {
        return Err(GrainError::invalid(
            "text",
            format!(
                "`text` has {} bytes; a grain takes {}. Send it in parts, or raise `grains.max_text`",
                text.len(),
                limits.max_text_bytes
            ),
        ));
    }
    without_nul("text", text)
}

fn check_source(source: &str) -> Result<(), GrainError> {
    without_nul("source", source)?;
    if source.len() > MAX_SOURCE_BYTES {
        let message = format!("`source` has {} bytes; it takes {MAX_SOURCE_BYTES}", source.len());
        return Err(GrainError::invalid("source", message));
    }
    Ok(())
}

fn check_tags(tags: &[String]) -> Result<(), GrainError> {
    if tags.len() > MAX_TAGS {
        return Err(GrainError::invalid("tags", format!("there are {} `tags`; a grain takes {MAX_TAGS}", tags.len())));
    }
    for tag in tags {
        without_nul("tags", tag)?;
        if tag.is_empty() || tag.len() > MAX_TAG_BYTES {
            let message = format!("a tag has {} bytes; it takes 1 to {MAX_TAG_BYTES}", tag.len());
            return Err(GrainError::invalid("tags", message));
        }
    }
    Ok(())
}

fn without_nul(field: &'static str, value: &str) -> Result<(), GrainError> {
    if value.contains('\0') {
        return Err(GrainError::invalid(field, format!("`{field}` has a NUL character: remove it")));
    }
    Ok(())
}

fn check_attributes(attributes: &Map<String, Value>) -> Result<(), GrainError> {
    let n_bytes = serde_json::to_vec(attributes).map_or(usize::MAX, |json| json.len());
    if n_bytes > MAX_ATTRIBUTES_BYTES {
        let message = format!("`attributes` have {n_bytes} bytes as JSON; they take {MAX_ATTRIBUTES_BYTES}");
        return Err(GrainError::invalid("attributes", message));
    }
    let n_levels = 1 + attributes.values().map(levels).max().unwrap_or(0);
    if n_levels > MAX_ATTRIBUTES_LEVELS {
        let message = format!(
            "`attributes` are nested {n_levels} levels deep; they take {MAX_ATTRIBUTES_LEVELS}. Make them flatter, or \
             write what is deeper as a string"
        );
        return Err(GrainError::invalid("attributes", message));
    }
    if attributes.iter().any(|(name, value)| name.contains('\0') || has_nul(value)) {
        return Err(GrainError::invalid("attributes", "`attributes` have a NUL character: remove it"));
    }
    Ok(())
}

/// How many lists and objects stand inside each other.
fn levels(value: &Value) -> usize {
    match value {
        Value::Array(values) => 1 + values.iter().map(levels).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(levels).max().unwrap_or(0),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

/// Whether a string in it has a NUL character.
fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(has_nul),
        Value::Object(members) => members.iter().any(|(name, value)| name.contains('\0') || has_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}
