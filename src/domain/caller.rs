//! Who calls: by the name of its key, or by what a caller says of itself where there are no keys.

use super::key::KeyName;
use super::text::text_type;

/// The longest name that is kept of a caller, in characters.
const MAX_CHARS: usize = 100;

/// A caller's name: that of its key, or the beginning of its `User-Agent`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Caller(String);

impl Caller {
    /// The caller of a request with this `User-Agent`.
    #[must_use]
    pub fn of_user_agent(text: Option<&str>) -> Self {
        let text = text.map(str::trim).filter(|text| !text.is_empty()).unwrap_or("unknown");
        Self(text.chars().filter(|c| !c.is_control()).take(MAX_CHARS).collect())
    }

    /// The holder of the key of this name.
    #[must_use]
    pub fn of_key(name: &KeyName) -> Self {
        Self(name.to_string())
    }
}

text_type!(Caller);
