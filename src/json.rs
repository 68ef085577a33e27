//! JSON of any shape, and what it costs.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// A name by which a [`Value`] left alone takes an object for the document in its string, where a crate asks for
/// `raw_value`, as axum does. Nobody has counted that document, and it may be nested as deep as a whole one.
const RESERVED: &str = "$serde_json::private::RawValue";

/// JSON of any shape, as it was sent. Objects have any names but the one that a [`Value`] would not keep.
#[derive(Clone, Debug)]
pub struct AnyValue(pub Value);

/// An object of such values.
#[derive(Clone, Debug, Default)]
pub struct AnyObject(pub Map<String, Value>);

impl<'de> Deserialize<'de> for AnyValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValueVisitor)
    }
}

impl<'de> Deserialize<'de> for AnyObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(AnyObjectVisitor)
    }
}

struct AnyValueVisitor;

impl<'de> Visitor<'de> for AnyValueVisitor {
    type Value = AnyValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_unit<E>(self) -> Result<AnyValue, E> {
        Ok(AnyValue(Value::Null))
    }

    fn visit_bool<E>(self, yes: bool) -> Result<AnyValue, E> {
        Ok(AnyValue(Value::from(yes)))
    }

    fn visit_i64<E>(self, number: i64) -> Result<AnyValue, E> {
        Ok(AnyValue(Value::from(number)))
    }

    fn visit_u64<E>(self, number: u64) -> Result<AnyValue, E> {
        Ok(AnyValue(Value::from(number)))
    }

    fn visit_f64<E>(self, number: f64) -> Result<AnyValue, E> {
        Ok(AnyValue(Value::from(number)))
    }

    fn visit_str<E>(self, text: &str) -> Result<AnyValue, E> {
        Ok(AnyValue(Value::from(text)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<AnyValue, A::Error> {
        let mut values = Vec::new();
        while let Some(AnyValue(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(AnyValue(Value::Array(values)))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<AnyValue, A::Error> {
        AnyObjectVisitor.visit_map(map).map(|AnyObject(members)| AnyValue(Value::Object(members)))
    }
}

struct AnyObjectVisitor;

impl<'de> Visitor<'de> for AnyObjectVisitor {
    type Value = AnyObject;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<AnyObject, A::Error> {
        let mut members = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == RESERVED {
                let sentence = "is a name that the server's JSON parser keeps for itself: choose another";
                return Err(de::Error::custom(format_args!("`{RESERVED}` {sentence}")));
            }
            let AnyValue(value) = map.next_value()?;
            members.insert(name, value);
        }
        Ok(AnyObject(members))
    }
}

/// A list or an object, with room for its first elements.
const LIST_BYTES: usize = 300;

/// A string besides its characters, or a key.
const STRING_BYTES: usize = 80;

/// Any other value: four of these bytes where it is one of a vector's numbers, and four times as many in a document of
/// any shape.
const VALUE_BYTES: usize = 16;

/// About as many bytes as a JSON document takes of memory once it is read, besides its own length: `[[],[],…]` takes a
/// hundred times as much. What is no JSON is counted all the same.
#[must_use]
pub fn parsed_bytes(json: &[u8]) -> usize {
    let (mut n_lists, mut n_strings, mut n_values) = (0, 0, 0);
    let mut rest = json.iter();
    while let Some(byte) = rest.next() {
        match byte {
            b'[' | b'{' => n_lists += 1,
            b',' => n_values += 1,
            b'"' => {
                n_strings += 1;
                while let Some(byte) = rest.next() {
                    match byte {
                        b'"' => break,
                        // Whatever is escaped, a quotation mark say, ends nothing.
                        b'\\' => drop(rest.next()),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    n_lists * LIST_BYTES + n_strings * STRING_BYTES + n_values * VALUE_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_shape_is_read_as_it_stands() {
        let json =
            r#"{"b": [null, true, -1, 18446744073709551615, 0.1, "\u0024x", [], {}], "a": {"c": {"d": []}}, "b": 1}"#;
        for json in [json, "[]", "null", "-0", "1e-7", r#"["$serde_json::private::RawValue"]"#] {
            let AnyValue(value) = serde_json::from_str(json).expect("JSON");
            assert_eq!(value.to_string(), serde_json::from_str::<Value>(json).expect("JSON").to_string());
        }
        let AnyObject(members) = serde_json::from_str(json).expect("an object");
        assert_eq!(members, serde_json::from_str::<Map<String, Value>>(json).expect("an object"));
        assert!(serde_json::from_str::<AnyObject>("[]").is_err());
    }

    #[test]
    fn no_string_becomes_a_document() {
        let hidden = format!(r#"{{"{RESERVED}": "[[]]"}}"#);
        let value: Value = serde_json::from_str(&hidden).expect("JSON");
        assert_eq!(value.to_string(), "[[]]", "another name is reserved by now");
        let escaped = hidden.replace('$', r"\u0024");
        for json in [format!("[{hidden}]"), format!(r#"{{"a": 1, "b": {escaped}}}"#), hidden, escaped] {
            let error = serde_json::from_str::<AnyValue>(&json).expect_err("refused").to_string();
            assert!(error.contains("is a name that the server's JSON parser keeps"), "{json}: {error}");
        }
    }

    #[test]
    fn lists_strings_and_values_are_counted_outside_of_strings() {
        for (json, lists, strings, values) in [
            ("", 0, 0, 0),
            ("[1, 2, 3]", 1, 0, 2),
            (r#"{"a": [[], {}], "b": "x"}"#, 4, 3, 2),
            (r#""[{,\",[\\" ,"#, 0, 1, 1),
            (r#""\"#, 0, 1, 0),
        ] {
            let expected = lists * LIST_BYTES + strings * STRING_BYTES + values * VALUE_BYTES;
            assert_eq!(parsed_bytes(json.as_bytes()), expected, "{json}");
        }
    }

    #[test]
    fn a_document_takes_no_more_than_is_counted_of_lists() {
        let nested = format!("[{}0]", "[0],".repeat(1_000));
        let value: serde_json::Value = serde_json::from_str(&nested).expect("JSON");
        let lists = value.as_array().expect("a list");
        let inner = lists[..1_000].iter().map(|list| list.as_array().expect("a list").capacity());
        let n_values = lists.capacity() + inner.sum::<usize>();
        let taken = n_values * size_of::<serde_json::Value>();
        assert!(taken <= parsed_bytes(nested.as_bytes()) * 3 / 2, "{taken} bytes, {nested:.20}");
    }
}
