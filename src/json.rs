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

/// Any other value, in a document of any shape.
const VALUE_BYTES: usize = size_of::<Value>();

/// One of a vector's numbers: four of these bytes, and room for more.
const NUMBER_BYTES: usize = 16;

/// About as many bytes as a JSON document takes of memory once it is read, besides its own length: `[[],[],…]` takes a
/// hundred times as much. What is no JSON is counted all the same. A vector is what stands as `vector` in the document
/// itself, or in an object of its list `grains`: no document of any shape begins there, but that of a registration, which
/// only an operator sends.
#[must_use]
pub fn parsed_bytes(json: &[u8]) -> usize {
    counted(json, Nesting::default())
}

/// The same of JSON that has no vectors, whatever it calls so.
#[must_use]
pub fn parsed_bytes_of_any_shape(json: &[u8]) -> usize {
    counted(json, Nesting { depth: WITHOUT_VECTORS, ..Nesting::default() })
}

fn counted(json: &[u8], mut nesting: Nesting) -> usize {
    let (mut n_lists, mut n_strings, mut n_values, mut n_numbers) = (0, 0, 0, 0);
    let mut rest = json.iter();
    while let Some(byte) = rest.next() {
        match byte {
            b'[' | b'{' => {
                n_lists += 1;
                nesting.open(*byte == b'[');
            }
            b']' | b'}' => nesting.close(),
            b',' => {
                nesting.after = Key::Other;
                *if nesting.is_in_vector() { &mut n_numbers } else { &mut n_values } += 1;
            }
            b'"' => {
                n_strings += 1;
                let text = rest.as_slice();
                while let Some(byte) = rest.next() {
                    match byte {
                        b'"' => break,
                        // Whatever is escaped, a quotation mark say, ends nothing.
                        b'\\' => drop(rest.next()),
                        _ => {}
                    }
                }
                nesting.after = if text.starts_with(b"vector\"") {
                    Key::Vector
                } else if text.starts_with(b"grains\"") {
                    Key::Grains
                } else {
                    Key::Other
                };
            }
            b':' | b' ' | b'\t' | b'\n' | b'\r' => {}
            _ => nesting.after = Key::Other,
        }
    }
    n_lists * LIST_BYTES + n_strings * STRING_BYTES + n_values * VALUE_BYTES + n_numbers * NUMBER_BYTES
}

/// So deep no vector begins.
const WITHOUT_VECTORS: usize = 8;

/// Where in a document a byte stands.
#[derive(Default)]
struct Nesting {
    /// Lists and objects around it.
    depth: usize,
    /// Whether what is at depth 2, or was last, is a list called `grains`, and what is at depth 3 an object.
    is_in_grains: [bool; 2],
    /// The last string, where nothing but a colon has come since.
    after: Key,
    /// How deep the vector is in which it stands.
    vector: Option<usize>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Key {
    Vector,
    Grains,
    #[default]
    Other,
}

impl Nesting {
    fn open(&mut self, is_list: bool) {
        self.depth += 1;
        let after = std::mem::take(&mut self.after);
        match self.depth {
            2 => self.is_in_grains[0] = is_list && after == Key::Grains,
            3 => self.is_in_grains[1] = !is_list,
            _ => {}
        }
        let is_expected = self.depth == 2 || (self.depth == 4 && self.is_in_grains == [true, true]);
        if is_list && after == Key::Vector && is_expected && self.vector.is_none() {
            self.vector = Some(self.depth);
        }
    }

    fn close(&mut self) {
        if self.is_in_vector() {
            self.vector = None;
        }
        self.depth = self.depth.saturating_sub(1);
        self.after = Key::Other;
    }

    fn is_in_vector(&self) -> bool {
        self.vector == Some(self.depth)
    }
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
    fn only_vectors_where_grains_and_searches_have_them_are_counted_as_such() {
        let numbers = "0,".repeat(9);
        for (json, lists, strings) in [
            (format!(r#"{{"vector": [{numbers}0]}}"#), 2, 1),
            (format!(r#"{{"grains": [{{"vector" :[{numbers}0]}}]}}"#), 4, 2),
        ] {
            let expected = lists * LIST_BYTES + strings * STRING_BYTES + 9 * NUMBER_BYTES;
            assert_eq!(parsed_bytes(json.as_bytes()), expected, "{json}");
        }
        for json in [
            format!("[{numbers}0]"),
            format!(r#"{{"a": [{numbers}0]}}"#),
            format!(r#"{{"a": {{"vector": [{numbers}0]}}}}"#),
            format!(r#"{{"a": {{"b": {{"vector": [{numbers}0]}}}}}}"#),
            format!(r#"{{"a": {{"b": [{{"vector": [{numbers}0]}}]}}}}"#),
            format!(r#"{{"vector": {{"b": [{numbers}0]}}}}"#),
            format!(r#"{{"inputs": [{{"vector": [{numbers}0]}}]}}"#),
            format!(r#"{{"grains": {{"vector": [{numbers}0]}}}}"#),
            format!(r#"{{"grains": [[{{"vector": [{numbers}0]}}]]}}"#),
            format!(r#"{{"vector": [[{numbers}0]]}}"#),
            format!(r#"{{"vector": 0, "a": [{numbers}0]}}"#),
            format!(r#"{{"grains": [{{"a": "vector"}}, [{numbers}0]]}}"#),
        ] {
            assert!(parsed_bytes(json.as_bytes()) >= 9 * VALUE_BYTES, "{json}");
        }
        let attributes = format!(r#"{{"vector": [{numbers}0]}}"#);
        assert!(parsed_bytes_of_any_shape(attributes.as_bytes()) >= 9 * VALUE_BYTES);
        let two = format!(
            r#"{{"grains": [{{"vector": [{numbers}0], "attributes": {{"a": [{numbers}0]}}}}, {{"vector": [0]}}]}}"#
        );
        let n_other = 2 + 9;
        let expected = 8 * LIST_BYTES + 5 * STRING_BYTES + 9 * NUMBER_BYTES + n_other * VALUE_BYTES;
        assert_eq!(parsed_bytes(two.as_bytes()), expected);
    }

    #[test]
    fn a_document_takes_no_more_than_is_counted() {
        let numbers = format!("[{}0]", "0,".repeat(1_000));
        let value: Value = serde_json::from_str(&numbers).expect("JSON");
        let taken = value.as_array().expect("a list").capacity() * size_of::<Value>();
        assert!(taken <= parsed_bytes(numbers.as_bytes()) * 3 / 2, "{taken} bytes of numbers");
        let nested = format!("[{}0]", "[0],".repeat(1_000));
        let value: serde_json::Value = serde_json::from_str(&nested).expect("JSON");
        let lists = value.as_array().expect("a list");
        let inner = lists[..1_000].iter().map(|list| list.as_array().expect("a list").capacity());
        let n_values = lists.capacity() + inner.sum::<usize>();
        let taken = n_values * size_of::<serde_json::Value>();
        assert!(taken <= parsed_bytes(nested.as_bytes()) * 3 / 2, "{taken} bytes, {nested:.20}");
    }
}
