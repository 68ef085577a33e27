//! `prompt_name` and `input_type`: which of the model's prompts a request wants before its texts.

use serde::Deserialize;
use utoipa::ToSchema;

use super::error::ApiError;
use crate::domain::{InputType, PromptChoice};

/// What a text is in a search. Cohere's `search_query` and `search_document` are read too.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum InputTypeWord {
    /// What is searched with.
    #[serde(alias = "search_query")]
    Query,
    /// What is searched.
    #[serde(alias = "search_document")]
    Document,
    /// The same as `document`.
    Passage,
}

impl From<InputTypeWord> for InputType {
    fn from(word: InputTypeWord) -> Self {
        match word {
            InputTypeWord::Query => Self::Query,
            InputTypeWord::Document | InputTypeWord::Passage => Self::Document,
        }
    }
}

/// What the two fields say together.
///
/// # Errors
/// When they mean different prompts.
pub(super) fn choice(prompt_name: Option<String>, input_type: Option<InputTypeWord>) -> Result<PromptChoice, ApiError> {
    PromptChoice::of(prompt_name, input_type.map(InputType::from))
        .map_err(|error| ApiError::invalid("input_type", error.to_string()))
}
