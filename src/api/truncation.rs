//! `truncate` on OpenAI's route: Granary's bool, or the words that clients of NVIDIA's and Cohere's APIs send there.

use serde::Deserialize;

use super::fields::word;
use crate::domain::TruncationSide;
use crate::models::Truncation;

/// What to do with texts that are too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "expected true, false, \"NONE\", \"START\" or \"END\"")]
pub enum Truncate {
    /// Whether they are cut, where the model's files have them cut.
    Flag(bool),
    /// The other APIs' word.
    Word(#[serde(deserialize_with = "word")] TruncateWord),
}

/// What is cut off such a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum TruncateWord {
    /// It is refused.
    #[serde(rename = "NONE")]
    Nothing,
    /// Its beginning.
    #[serde(rename = "START")]
    Start,
    /// Its end.
    #[serde(rename = "END")]
    End,
}

impl From<Truncate> for Truncation {
    fn from(truncate: Truncate) -> Self {
        match truncate {
            Truncate::Flag(false) | Truncate::Word(TruncateWord::Nothing) => Self::Never,
            Truncate::Flag(true) => Self::Own,
            Truncate::Word(TruncateWord::Start) => Self::Side(TruncationSide::Left),
            Truncate::Word(TruncateWord::End) => Self::Side(TruncationSide::Right),
        }
    }
}
