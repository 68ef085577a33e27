//! Which of a model's prompts a request wants before its texts.

/// What a text is in a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputType {
    /// What is searched with.
    Query,
    /// What is searched.
    Document,
}

impl InputType {
    /// The word on the wire, which is the name of its prompt too.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Document => "document",
        }
    }
}

/// Which prompt to put before texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PromptChoice {
    /// None.
    #[default]
    Nothing,
    /// The one of this name, which the model must have.
    Named(String),
    /// The one for such texts, if the model has one: what asks so means the same to every model.
    For(InputType),
}

/// A prompt's name and a type of input that mean different prompts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`input_type` is `{}` and `prompt_name` is `{prompt_name}`, which are two prompts: send one of them",
    input_type.as_str()
)]
pub struct TwoPromptsError {
    /// The type of input.
    pub input_type: InputType,
    /// The prompt's name.
    pub prompt_name: String,
}

impl PromptChoice {
    /// The choice of a request that may give either or both. Where both mean one prompt, the model must have it.
    ///
    /// # Errors
    /// When they mean different prompts.
    pub fn of(prompt_name: Option<String>, input_type: Option<InputType>) -> Result<Self, TwoPromptsError> {
        match (prompt_name, input_type) {
            (None, None) => Ok(Self::Nothing),
            (None, Some(input_type)) => Ok(Self::For(input_type)),
            (Some(name), Some(input_type)) if name != input_type.as_str() => {
                Err(TwoPromptsError { input_type, prompt_name: name.chars().take(64).collect() })
            }
            (Some(name), _) => Ok(Self::Named(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_stricter_than_a_type_and_both_must_agree() {
        let of = |name: Option<&str>, input_type| PromptChoice::of(name.map(str::to_owned), input_type);
        assert_eq!(of(None, None), Ok(PromptChoice::Nothing));
        assert_eq!(of(None, Some(InputType::Query)), Ok(PromptChoice::For(InputType::Query)));
        assert_eq!(of(Some("query"), Some(InputType::Query)), Ok(PromptChoice::Named("query".to_owned())));
        assert_eq!(of(Some("code"), None), Ok(PromptChoice::Named("code".to_owned())));
        let refused = of(Some("document"), Some(InputType::Query)).expect_err("two prompts").to_string();
        assert!(refused.contains("`input_type` is `query` and `prompt_name` is `document`"), "{refused}");
    }
}
