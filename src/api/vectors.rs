//! Vectors on the wire: numbers are written straight from the engine's buffer, without a JSON tree.

use std::fmt::Write;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::Response;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::engine::Encoded;
use crate::models::Embedded;

/// Bytes of an f32 in JSON, generously: sign, nine digits, point, exponent, comma.
const BYTES_PER_NUMBER: usize = 14;

/// Headers of an answer, generously.
const MAX_HEADERS: usize = 16;

/// The most bytes of `x-truncated`.
const MAX_TRUNCATED_BYTES: usize = 512;

/// Names the model that made an answer's vectors.
pub const MODEL_HEADER: &str = "x-model";

/// Writes `[x, y, …]`.
pub fn write_array(vector: &[f32], out: &mut Vec<u8>) {
    out.push(b'[');
    let mut buffer = zmij::Buffer::new();
    for (index, value) in vector.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        // The engine hands over finite numbers only.
        out.extend_from_slice(buffer.format_finite(*value).as_bytes());
    }
    out.push(b']');
}

/// Writes the vector's little-endian bytes as a base64 string, quotes included, straight from the vector's memory.
pub fn write_base64(vector: &[f32], out: &mut Vec<u8>) {
    const { assert!(cfg!(target_endian = "little"), "a vector's bytes in memory are those on the wire") };
    let bytes: &[u8] = bytemuck::cast_slice(vector);
    out.push(b'"');
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    // The room is that of the padded text, so nothing is left out.
    let _ = BASE64_STANDARD.encode_slice(bytes, &mut out[start..]);
    out.push(b'"');
}

/// `[[…], […]]`: the answer of `/embed`.
#[must_use]
pub fn nested(encoded: &Encoded) -> Vec<u8> {
    let mut out = Vec::with_capacity(encoded.vectors.len() * BYTES_PER_NUMBER + 2);
    out.push(b'[');
    for (index, vector) in encoded.vectors.chunks_exact(encoded.dimensions).enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_array(vector, &mut out);
    }
    out.push(b']');
    out
}

/// A JSON body with the headers that say what made the vectors.
#[must_use]
pub fn response(body: Vec<u8>, mut headers: HeaderMap) -> Response {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let mut response = Response::new(Body::from(body));
    *response.headers_mut() = headers;
    response
}

/// `x-model`, `x-space`, `x-dimensions` and `x-truncated`.
#[must_use]
pub fn provenance_headers(embedded: &Embedded) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(MAX_HEADERS);
    let values = [
        (MODEL_HEADER, HeaderValue::from_str(embedded.model.as_str())),
        ("x-space", HeaderValue::from_str(embedded.space.as_str())),
        ("x-dimensions", Ok(HeaderValue::from(embedded.encoded.dimensions))),
        ("x-truncated", HeaderValue::try_from(truncated_header(&embedded.encoded.truncated))),
    ];
    for (name, value) in values {
        // Model names, hex digits and numbers are all visible ASCII.
        if let Ok(value) = value {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    headers
}

/// How many inputs were cut, then which: `0`, or `2; 3,17`. Places that do not fit are left out.
fn truncated_header(truncated: &[usize]) -> String {
    let mut value = truncated.len().to_string();
    for (position, index) in truncated.iter().enumerate() {
        let before = value.len();
        let separator = if position == 0 { "; " } else { "," };
        // Writing to a string cannot fail.
        let _ = write!(value, "{separator}{index}");
        if value.len() > MAX_TRUNCATED_BYTES {
            value.truncate(before);
            break;
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_read_back_as_they_were(vector in prop::collection::vec(prop::num::f32::NORMAL | prop::num::f32::ZERO, 1..40)) {
            let mut json = Vec::new();
            write_array(&vector, &mut json);
            prop_assert_eq!(serde_json::from_slice::<Vec<f32>>(&json).expect("JSON"), vector.clone());
            let mut base64 = Vec::new();
            write_base64(&vector, &mut base64);
            let bytes = BASE64_STANDARD.decode(serde_json::from_slice::<String>(&base64).expect("JSON")).expect("base64");
            let read: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            prop_assert_eq!(read, vector);
        }
    }

    #[test]
    fn truncated_places_are_counted_in_full_and_listed_as_far_as_they_fit() {
        assert_eq!(truncated_header(&[]), "0");
        assert_eq!(truncated_header(&[3, 17]), "2; 3,17");
        let many: Vec<usize> = (0..2048).collect();
        let header = truncated_header(&many);
        assert!(header.starts_with("2048; 0,1,2") && header.len() <= MAX_TRUNCATED_BYTES && !header.ends_with(','));
    }
}
