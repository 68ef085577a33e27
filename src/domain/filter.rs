//! Which grains are meant: conditions on what a grain is besides its text. All of them must hold.

use serde::{Deserialize, Serialize};

use super::grain::GrainId;
use super::space::SpaceId;

/// Conditions that a grain meets or not. Without any, every grain does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Filter {
    /// Its id is one of these.
    pub ids: Option<Vec<GrainId>>,
    /// Its source is one of these; `None` is one that has none.
    pub sources: Option<Vec<Option<String>>>,
    /// Its tags.
    pub tags: Membership<String>,
    /// Its attributes, each by name.
    pub attributes: Vec<(String, AttributeCondition)>,
    /// When it was created, in microseconds since 1970.
    pub created_us: Range<i64>,
    /// When it was last changed, in microseconds since 1970.
    pub updated_us: Range<i64>,
    /// The space it is served from.
    pub space: Option<SpaceCondition>,
}

/// Which members a set must have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Membership<T> {
    /// At least one of these, when there are some.
    pub any: Vec<T>,
    /// Every one of these.
    pub all: Vec<T>,
    /// None of these.
    pub none: Vec<T>,
}

impl<T> Default for Membership<T> {
    fn default() -> Self {
        Self { any: Vec::new(), all: Vec::new(), none: Vec::new() }
    }
}

impl<T> Membership<T> {
    /// Whether every set meets it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.any.is_empty() && self.all.is_empty() && self.none.is_empty()
    }
}

/// Bounds of a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range<T> {
    /// Greater than this.
    pub gt: Option<T>,
    /// At least this.
    pub gte: Option<T>,
    /// Less than this.
    pub lt: Option<T>,
    /// At most this.
    pub lte: Option<T>,
}

impl<T> Default for Range<T> {
    fn default() -> Self {
        Self { gt: None, gte: None, lt: None, lte: None }
    }
}

impl<T> Range<T> {
    /// Whether every value is within.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.gt.is_none() && self.gte.is_none() && self.lt.is_none() && self.lte.is_none()
    }
}

/// What an attribute may be compared with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum AttributeValue {
    /// A string; strings are ordered by their bytes.
    Text(String),
    /// A whole number, exact to its last digit.
    Integer(i64),
    /// Any other number.
    Number(f64),
    /// true or false.
    Boolean(bool),
}

/// What an attribute must be. Of an attribute that is a list, each element counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AttributeCondition {
    /// The values it has.
    pub members: Membership<AttributeValue>,
    /// Its bounds.
    pub range: Range<AttributeValue>,
    /// Whether there is such an attribute, other than null.
    pub exists: Option<bool>,
}

/// Where a grain is served from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SpaceCondition {
    /// This space.
    Is(SpaceId),
    /// None: it has no vector whose space is known.
    Unknown,
}

impl SpaceCondition {
    /// Whether a grain that is served from this space meets it.
    #[must_use]
    pub fn is(&self, space: &SpaceId) -> bool {
        matches!(self, Self::Is(wanted) if wanted == space)
    }
}

impl Filter {
    /// Whether every grain meets it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_stored_conditions_are_read_whichever_number_they_were_written_as() {
        for (stored, value) in [
            (r#"{"Number":2020.0}"#, AttributeValue::Number(2020.0)),
            (r#"{"Integer":9007199254740993}"#, AttributeValue::Integer(9_007_199_254_740_993)),
        ] {
            assert_eq!(serde_json::from_str::<AttributeValue>(stored).expect("a value"), value);
            assert_eq!(serde_json::to_string(&value).expect("JSON"), stored);
        }
    }
}
