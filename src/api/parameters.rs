//! The `parameters` beside the inputs of `POST /`, which are options only for sentences to compare.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::embed::EmbedOptions;
use super::error::{ApiError, Code};
use super::extract::parse;
use super::fields::object;

/// What may be options: only the inputs, which may come later, say whether it is. Until then it stays as it was sent.
#[derive(Clone, Debug, Deserialize)]
pub struct Parameters(Box<RawValue>);

/// A body of nothing else, so that what is said of it names the field.
#[derive(Deserialize)]
struct Alone {
    #[serde(deserialize_with = "object")]
    parameters: EmbedOptions,
}

impl Parameters {
    /// The options.
    ///
    /// # Errors
    /// When they are none; the message names the field.
    pub(super) fn read(&self) -> Result<EmbedOptions, ApiError> {
        let body = format!(r#"{{"parameters":{}}}"#, self.0.get());
        match parse(body.as_bytes()) {
            Ok(Alone { parameters }) => Ok(parameters),
            Err(error) if error.code() == Code::MalformedJson => Err(error.reworded(without_place)),
            Err(error) => Err(error),
        }
    }
}

/// What is said of broken JSON without its line and column, which are none of the caller's body.
fn without_place(sentence: &str) -> String {
    let Some((what, place)) = sentence.split_once(" at line ") else { return sentence.to_owned() };
    place.split_once(": ").map_or_else(|| what.to_owned(), |(_, rest)| format!("{what}: {rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<EmbedOptions, ApiError> {
        serde_json::from_str::<Parameters>(text).expect("anything will do").read()
    }

    #[test]
    fn what_is_wrong_with_options_is_named_by_its_place_in_the_body() {
        for (text, code, said) in [
            ("[]", Code::InvalidRequest, "`parameters`: it is a list: send an object"),
            (r#""x""#, Code::InvalidRequest, "`parameters`: invalid type: string \"x\", expected an object"),
            (r#"{"dimensions": 1e999}"#, Code::InvalidRequest, "`parameters.dimensions`: the number is not finite"),
            (r#"{"model": "\ud800"}"#, Code::MalformedJson, ": `parameters.model` holds half of a surrogate pair"),
            (r#"{"\udc00": 1}"#, Code::MalformedJson, "holds half of a surrogate pair"),
        ] {
            let error = read(text).expect_err("refused");
            assert!(error.code() == code && error.message().contains(said), "{text}: {}", error.message());
            assert!(!error.message().contains(" at line "), "{text}: {}", error.message());
        }
    }

    #[test]
    fn fields_that_are_none_of_the_options_may_be_anything() {
        let options = read(r#"{"dimensions": 384, "a": 1e999, "b": "\ud800"}"#).expect("options");
        assert_eq!(options.dimensions, Some(384));
    }
}
