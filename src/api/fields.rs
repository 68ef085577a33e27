//! Reading fields of JSON bodies: objects and words, where serde takes something else for them too; and which of them is
//! set.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// The name of the first of these fields that is set.
macro_rules! first_set {
    ($body:expr; $($field:ident),+) => {
        [$((stringify!($field), $body.$field.is_some())),+].into_iter().find_map(|(name, is_set)| is_set.then_some(name))
    };
}

pub(super) use first_set;

/// An object inside a body. Left alone, serde takes a list there too, for the fields in their order.
#[derive(Clone, Debug)]
pub struct Object<T>(pub T);

/// What is said of a list there, behind its path.
pub(super) const IS_LIST: &str = "it is a list: send an object";

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Object<T>, A::Error> {
        Err(de::Error::custom(IS_LIST))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Object)
    }
}

/// Reads a field as an [`Object`].
pub(super) fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Object::deserialize(deserializer).map(|Object(fields)| fields)
}

/// [`object`] for a field that may be absent.
pub(super) fn optional_object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let found = Option::<Object<T>>::deserialize(deserializer)?;
    Ok(found.map(|Object(fields)| fields))
}

/// A word of an enum. Left alone, serde takes an object there too that has the word as its only key.
struct Word<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Word<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordVisitor(PhantomData))
    }
}

struct WordVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for WordVisitor<T> {
    type Value = Word<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("one of its words, as a string")
    }

    fn visit_str<E: de::Error>(self, word: &str) -> Result<Word<T>, E> {
        T::deserialize(StrDeserializer::new(word)).map(Word)
    }
}

/// Reads a field as one of its enum's words.
pub(super) fn word<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Word::deserialize(deserializer).map(|Word(word)| word)
}

/// [`word`] for a field that may be absent.
pub(super) fn optional_word<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let found = Option::<Word<T>>::deserialize(deserializer)?;
    Ok(found.map(|Word(word)| word))
}

/// [`optional_word`] for a list of them.
pub(super) fn optional_words<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Vec<T>>, D::Error> {
    let found = Option::<Vec<Word<T>>>::deserialize(deserializer)?;
    Ok(found.map(|words| words.into_iter().map(|Word(word)| word).collect()))
}

#[cfg(test)]
mod tests {
    use super::super::error::Code;
    use super::super::extract::parse;
    use super::super::grains::many::CountBody;
    use super::super::grains::transfer::ExportBody;
    use super::super::openai::EmbeddingsBody;

    #[test]
    fn a_word_is_a_string() {
        for (fields, said) in [
            (r#""encoding_format": {"float": null}"#, "`encoding_format`: invalid type: map, expected one of"),
            (r#""encoding_format": ["float"]"#, "`encoding_format`: invalid type: sequence, expected one of its words"),
            (r#""encoding_format": 1"#, "`encoding_format`: invalid type: integer `1`, expected one of its words"),
            (r#""encoding_format": "int8""#, "`encoding_format`: unknown variant `int8`, expected `float` or `base64`"),
            (r#""input_type": {"query": null}"#, "`input_type`: invalid type: map"),
            (r#""priority": {"background": null}"#, "`priority`: invalid type: map"),
            (r#""truncate": {"START": null}"#, "`truncate`: expected true, false, "),
        ] {
            let body = format!(r#"{{"input": "a", {fields}}}"#);
            let error = parse::<EmbeddingsBody>(body.as_bytes()).expect_err("refused");
            assert_eq!(error.code(), Code::InvalidRequest, "{body}: {}", error.message());
            assert!(error.message().starts_with(said), "{body}: {}", error.message());
        }
        let absent = r#"{"input": "a", "encoding_format": null, "priority": null, "input_type": "search_query"}"#;
        assert!(parse::<EmbeddingsBody>(absent.as_bytes()).is_ok());

        let facets = parse::<CountBody>(br#"{"facets": ["tags", {"source": null}]}"#).expect_err("refused");
        assert!(facets.message().starts_with("`facets[1]`: invalid type: map"), "{}", facets.message());
        let include = parse::<ExportBody>(br#"{"include": [{"vector": null}]}"#).expect_err("refused");
        assert!(include.message().starts_with("`include[0]`: invalid type: map"), "{}", include.message());
        assert!(parse::<CountBody>(br#"{"facets": null}"#).is_ok() && parse::<ExportBody>(b"{}").is_ok());
    }
}
