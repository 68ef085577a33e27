//! What JSON costs, and whether something is JSON.

use std::fmt::{self, Formatter};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

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

/// Whether these bytes are one JSON document, its strings included. However large it is, nothing of it is kept.
#[must_use]
pub fn is_document(bytes: &[u8]) -> bool {
    serde_json::from_slice::<Checked>(bytes).is_ok()
}

/// A value that was read and forgotten. `serde::de::IgnoredAny` would be so too, but `serde_json` skips its strings without
/// a look at their escapes and their UTF-8.
struct Checked;

impl<'de> Deserialize<'de> for Checked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Checked {
    type Value = Self;

    fn expecting(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str("any JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self, A::Error> {
        while list.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self, A::Error> {
        while object.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_document_is_what_can_be_read_to_its_end() {
        let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n)).into_bytes();
        let (deep, too_deep) = (deep(100), deep(200));
        for (json, is_one) in [
            (&br#" {"a": [null, true, -1, 1, 1.5e3, "\u00fc\ud83c\udf3e"], "": {}} "#[..], true),
            (br#""only a string""#, true),
            (&deep, true),
            (&too_deep, false),
            (b"", false),
            (b"[1] [", false),
            (b"[1, ]", false),
            (br#"{"a" 1}"#, false),
            (b"{1: 1}", false),
            (b"1e999", false),
            // What is skipped is not looked at: these are why it is read.
            (br#"{"a": ["\ud800"]}"#, false),
            (br#"{"\ud800": 1}"#, false),
            (b"[\"\xff\"]", false),
            (b"{\"\xff\": 1}", false),
        ] {
            let shown = String::from_utf8_lossy(&json[..json.len().min(60)]);
            assert_eq!(is_document(json), is_one, "{shown}");
            assert_eq!(serde_json::from_slice::<serde_json::Value>(json).is_ok(), is_one, "{shown}");
        }
    }
}
