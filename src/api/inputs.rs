//! What a caller sends to be embedded, in every shape that TEI's and OpenAI's clients write it.

use std::fmt;

use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};

use super::error::{ApiError, Code};
use super::state::Limits;
use crate::config::MOST_INPUTS;
use crate::engine::Input;

/// What a caller wants embedded: one text, several, or token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inputs {
    items: Vec<Input>,
    shape: Shape,
}

/// How inputs were written. TEI's metrics tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One text, or the token ids of one.
    Single,
    /// A list, of one text too.
    List,
}

impl Inputs {
    /// Several texts.
    #[must_use]
    pub fn list(texts: Vec<String>) -> Self {
        Self { items: texts.into_iter().map(Input::Text).collect(), shape: Shape::List }
    }

    fn single(input: Input) -> Self {
        Self { items: vec![input], shape: Shape::Single }
    }

    /// How they were written.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Whether some of them are token ids. An empty list is none.
    #[must_use]
    pub fn has_token_ids(&self) -> bool {
        self.items.iter().any(|input| matches!(input, Input::Tokens(ids) if !ids.is_empty()))
    }

    /// The inputs, when there are some, none of them empty or too large, and no more than a request may have. `field` is
    /// what the route calls them.
    ///
    /// # Errors
    /// With the code of the rule that is broken.
    pub fn checked(self, field: &str, limits: &Limits) -> Result<Vec<Input>, ApiError> {
        let max_inputs = limits.max_inputs;
        if self.items.is_empty() {
            return Err(ApiError::new(Code::EmptyInput, format!("`{field}` is empty: send at least one text"))
                .with_param(field));
        }
        if self.items.len() > max_inputs {
            return Err(ApiError::new(
                Code::TooManyInputs,
                format!(
                    "`{field}` has {} texts; a request takes {max_inputs}. Send fewer, or raise `server.max_inputs`",
                    self.items.len()
                ),
            )
            .with_param(field));
        }
        for (index, input) in self.items.iter().enumerate() {
            if let Input::Text(text) = input {
                limits.check_text(text, || format!("{field}[{index}]"))?;
            }
        }
        let is_empty = |input: &Input| match input {
            Input::Text(text) => text.is_empty(),
            Input::Tokens(ids) => ids.is_empty(),
        };
        match self.items.iter().position(is_empty) {
            Some(index) => Err(ApiError::new(Code::EmptyInput, format!("`{field}[{index}]` is empty"))
                .with_param(format!("{field}[{index}]"))),
            None => Ok(self.items),
        }
    }
}

/// A token id. What no vocabulary reaches becomes the greatest one, so that the model's own check answers for it, in
/// words that are true of all of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenId(pub u32);

impl<'de> Deserialize<'de> for TokenId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let id = u64::deserialize(deserializer)?;
        Ok(Self(u32::try_from(id).unwrap_or(u32::MAX)))
    }
}

impl PartialSchema for TokenId {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).build().into()
    }
}

impl ToSchema for TokenId {}

/// One element of a list of inputs.
enum Element {
    Text(String),
    Ids(Vec<u32>),
    Id(u32),
}

struct ElementVisitor;

impl<'de> Visitor<'de> for ElementVisitor {
    type Value = Element;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a token id or a list of token ids")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Element, E> {
        Ok(Element::Text(text.to_owned()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Element, E> {
        Ok(Element::Text(text))
    }

    fn visit_u64<E: de::Error>(self, id: u64) -> Result<Element, E> {
        TokenId::deserialize(de::value::U64Deserializer::new(id)).map(|id| Element::Id(id.0))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Element, A::Error> {
        let mut ids = Vec::new();
        while let Some(TokenId(id)) = sequence.next_element()? {
            ids.push(id);
        }
        Ok(Element::Ids(ids))
    }
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ElementVisitor)
    }
}

struct InputsVisitor;

impl<'de> Visitor<'de> for InputsVisitor {
    type Value = Inputs;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a list of texts, a list of token ids or a list of such lists")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Inputs, E> {
        Ok(Inputs::single(Input::Text(text.to_owned())))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Inputs, E> {
        Ok(Inputs::single(Input::Text(text)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Inputs, A::Error> {
        let (mut inputs, mut single_ids) = (Vec::new(), Vec::new());
        while let Some(element) = sequence.next_element()? {
            match element {
                Element::Text(text) => inputs.push(Input::Text(text)),
                Element::Ids(ids) => inputs.push(Input::Tokens(ids)),
                Element::Id(id) => single_ids.push(id),
            }
            // What is nothing in a body takes room here: empty texts, say.
            if inputs.len() > MOST_INPUTS {
                return Err(de::Error::custom(format_args!("a request takes at most {MOST_INPUTS} inputs")));
            }
            if !single_ids.is_empty() && !inputs.is_empty() {
                return Err(de::Error::custom("a list of token ids cannot hold texts or other lists"));
            }
        }
        if !single_ids.is_empty() {
            return Ok(Inputs::single(Input::Tokens(single_ids)));
        }
        Ok(Inputs { items: inputs, shape: Shape::List })
    }
}

impl<'de> Deserialize<'de> for Inputs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InputsVisitor)
    }
}

/// What `POST /` may be about: texts to embed, or a sentence to compare with others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootInputs {
    /// As for `/embed`.
    Embed(Inputs),
    /// As for `/similarity`.
    Compare(SentencePair),
}

/// A sentence and the sentences it is compared with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SentencePair {
    /// The sentence.
    #[schema(example = "How do I reset my password?", min_length = 1)]
    pub source_sentence: String,
    /// What it is compared with; at least one.
    #[schema(example = json!(["Password recovery", "Shipping costs"]), min_items = 1)]
    pub sentences: Vec<String>,
}

struct RootVisitor;

impl<'de> Visitor<'de> for RootVisitor {
    type Value = RootInputs;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("texts or token ids to embed, or an object with `source_sentence` and `sentences`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<RootInputs, E> {
        InputsVisitor.visit_str(text).map(RootInputs::Embed)
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<RootInputs, E> {
        InputsVisitor.visit_string(text).map(RootInputs::Embed)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, sequence: A) -> Result<RootInputs, A::Error> {
        InputsVisitor.visit_seq(sequence).map(RootInputs::Embed)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RootInputs, A::Error> {
        SentencePair::deserialize(de::value::MapAccessDeserializer::new(map)).map(RootInputs::Compare)
    }
}

impl<'de> Deserialize<'de> for RootInputs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RootVisitor)
    }
}

pub(super) fn text_schema() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).min_length(Some(1))
}

pub(super) fn ids_schema() -> ArrayBuilder {
    ArrayBuilder::new().items(TokenId::schema()).min_items(Some(1))
}

/// One of these, or a list of at least one.
pub(super) fn one_or_many(item: impl Into<RefOr<Schema>>) -> OneOfBuilder {
    let item = item.into();
    OneOfBuilder::new().item(item.clone()).item(ArrayBuilder::new().items(item).min_items(Some(1)))
}

fn inputs_schema() -> OneOfBuilder {
    one_or_many(text_schema()).item(ids_schema()).item(ArrayBuilder::new().items(ids_schema()).min_items(Some(1)))
}

impl PartialSchema for Inputs {
    fn schema() -> RefOr<Schema> {
        inputs_schema()
            .description(Some("One text, several texts, the token ids of one text, or those of several."))
            .examples([serde_json::json!("hello world")])
            .into()
    }
}

impl ToSchema for Inputs {}

impl PartialSchema for RootInputs {
    fn schema() -> RefOr<Schema> {
        inputs_schema()
            .item(Ref::from_schema_name("SentencePair"))
            .description(Some("Texts or token ids to embed, or sentences to compare."))
            .into()
    }
}

impl ToSchema for RootInputs {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push(("SentencePair".to_owned(), SentencePair::schema()));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytesize::ByteSize;

    use super::super::extract::parse;
    use super::*;

    fn inputs(json: &str) -> Result<Vec<Input>, ApiError> {
        let limits = Limits {
            max_body: ByteSize::kib(1),
            max_inputs: 3,
            max_text: ByteSize::b(20),
            max_concurrent_requests: 1,
            body_timeout: Duration::ZERO,
            auto_truncate: true,
        };
        parse::<Inputs>(json.as_bytes())?.checked("inputs", &limits)
    }

    fn text(text: &str) -> Input {
        Input::Text(text.to_owned())
    }

    #[test]
    fn every_shape_of_input_is_read() {
        assert_eq!(inputs(r#""a""#), Ok(vec![text("a")]));
        assert_eq!(inputs(r#"["a", "b"]"#), Ok(vec![text("a"), text("b")]));
        assert_eq!(inputs("[1, 2]"), Ok(vec![Input::Tokens(vec![1, 2])]));
        assert_eq!(inputs("[[1], [2, 3]]"), Ok(vec![Input::Tokens(vec![1]), Input::Tokens(vec![2, 3])]));
        assert_eq!(inputs("[99999999999]"), Ok(vec![Input::Tokens(vec![u32::MAX])]));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refusal = |json: &str| {
            let error = inputs(json).expect_err(json);
            (error.code(), format!("{error:?}"))
        };
        for (json, code, said) in [
            ("[]", Code::EmptyInput, "at least one"),
            (r#""""#, Code::EmptyInput, "inputs[0]"),
            (r#"["a", ""]"#, Code::EmptyInput, "inputs[1]"),
            ("[[]]", Code::EmptyInput, "inputs[0]"),
            (r#"["a", "b", "c", "d"]"#, Code::TooManyInputs, "takes 3"),
            (r#"["a", "twenty-one bytes, now"]"#, Code::InputTooLong, "inputs[1]` has 21 bytes; a text takes 20"),
            ("5", Code::InvalidRequest, "a text"),
            (r#"["a", 5]"#, Code::InvalidRequest, "token ids"),
            (r#"["a", null]"#, Code::InvalidRequest, "[1]"),
            ("[[-1]]", Code::InvalidRequest, "-1"),
            ("{}", Code::InvalidRequest, "a text"),
            (r#"["a""#, Code::MalformedJson, "EOF"),
            (r#""\ud800""#, Code::MalformedJson, "hex escape"),
            (r#"["a", "b \ud83d"]"#, Code::MalformedJson, "`[1]` holds half of a surrogate pair"),
            (r#""a" x"#, Code::MalformedJson, "trailing"),
        ] {
            let (found, sentence) = refusal(json);
            assert_eq!(found, code, "{json}: {sentence}");
            assert!(sentence.contains(said), "{json}: {sentence}");
        }
        let endless = format!("[{}[]", "[], ".repeat(MOST_INPUTS + 1));
        let (found, sentence) = refusal(&endless);
        assert!(found == Code::InvalidRequest && sentence.contains("at most 1000000 inputs"), "{sentence}");
        let deep = "[".repeat(100_000);
        assert_eq!(refusal(&deep).0, Code::InvalidRequest);
    }
}
