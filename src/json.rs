//! What JSON costs.

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
