//! Bodies of one JSON document a line, of any length: read and written piece by piece.

use std::convert::Infallible;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt};
use serde::Serialize;

use crate::api::bodies::{SlowBody, UNBUFFERED, cause};
use crate::api::error::{ApiError, Code};
use crate::api::extract::refuse_encoded;
use crate::grains::transfer::ReadingEnded;

/// What such bodies are called.
pub const NDJSON: &str = "application/x-ndjson";

/// Other names that are in use for the same.
const ALIASES: [&str; 4] =
    ["application/ndjson", "application/jsonl", "application/jsonlines", "application/x-jsonlines"];

/// Bytes of lines that are sent together at most, but for a line that is longer.
const PIECE_BYTES: usize = 64 << 10;

/// Refuses a body that is not declared as one document a line.
pub fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    refuse_encoded(headers)?;
    let declared = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = declared.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == NDJSON || ALIASES.contains(&essence.as_str()) {
        return Ok(());
    }
    let sentence = format!("an import is one JSON document a line: send `content-type: {NDJSON}`");
    Err(ApiError::new(Code::ContentType, sentence))
}

/// A line that was read.
#[derive(Debug, PartialEq, Eq)]
pub struct RawLine {
    /// Its number, from 1.
    pub number: u64,
    /// Its bytes, without the line's end; `None` when there were too many.
    pub bytes: Option<Vec<u8>>,
}

/// The lines of a body, empty ones left out.
pub struct LineReader {
    body: BodyDataStream,
    max_line_bytes: usize,
    piece: Bytes,
    line: Vec<u8>,
    is_too_long: bool,
    n_lines: u64,
    has_ended: bool,
}

impl LineReader {
    /// Reads a body, keeping at most so many bytes of a line.
    #[must_use]
    pub fn new(body: Body, max_line_bytes: usize) -> Self {
        let body = body.into_data_stream();
        let (piece, line) = (Bytes::new(), Vec::new());
        Self { body, max_line_bytes, piece, line, is_too_long: false, n_lines: 0, has_ended: false }
    }

    /// The next line. What the connection was cut off in is none. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Result<RawLine, ReadingEnded>> {
        loop {
            if let Some(end) = self.piece.iter().position(|byte| *byte == b'\n') {
                let piece = self.piece.split_to(end + 1);
                self.append(&piece[..end]);
                if let Some(line) = self.end_line() {
                    return Some(Ok(line));
                }
                continue;
            }
            let piece = std::mem::take(&mut self.piece);
            self.append(&piece);
            if self.has_ended {
                return self.end_line().map(Ok);
            }
            match self.body.next().await {
                Some(Ok(piece)) => self.piece = piece,
                Some(Err(error)) => {
                    self.has_ended = true;
                    self.line.clear();
                    self.is_too_long = false;
                    let slow = cause::<SlowBody>(&error).map(|SlowBody(limit)| ReadingEnded::Slow(limit));
                    return Some(Err(slow.unwrap_or(ReadingEnded::Cut)));
                }
                None => self.has_ended = true,
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        if self.line.len() + bytes.len() > self.max_line_bytes {
            self.is_too_long = true;
            self.line = Vec::new();
        }
        if !self.is_too_long {
            self.line.extend_from_slice(bytes);
        }
    }

    /// The line that ends here; `None` when there is nothing in it.
    fn end_line(&mut self) -> Option<RawLine> {
        // The end of a body without a line's end is one only if something stands before it.
        self.n_lines += u64::from(!self.has_ended || self.is_too_long || !self.line.is_empty());
        let bytes = std::mem::take(&mut self.line);
        let is_too_long = std::mem::take(&mut self.is_too_long);
        if !is_too_long && bytes.iter().all(u8::is_ascii_whitespace) {
            return None;
        }
        Some(RawLine { number: self.n_lines, bytes: (!is_too_long).then_some(bytes) })
    }
}

/// A line of an answer.
///
/// # Panics
/// Never: what is answered is always JSON.
pub fn line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("what is answered is always JSON");
    line.push(b'\n');
    line
}

/// An answer of these lines. Those that are ready at the same time are sent together.
pub fn answer(lines: impl Stream<Item = Vec<u8>> + Send + 'static) -> Response {
    let pieces = lines.ready_chunks(PIECE_BYTES / 256).flat_map(|lines| {
        let mut pieces: Vec<Vec<u8>> = Vec::new();
        for line in lines {
            match pieces.last_mut() {
                Some(piece) if piece.len() + line.len() <= PIECE_BYTES => piece.extend(line),
                _ => pieces.push(line),
            }
        }
        futures::stream::iter(pieces)
    });
    let body = Body::from_stream(pieces.map(Ok::<_, Infallible>));
    ([(header::CONTENT_TYPE, NDJSON)], [UNBUFFERED], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(pieces: &[&'static str], max: usize) -> Vec<(u64, Option<String>)> {
        let pieces: Vec<Result<&str, Infallible>> = pieces.iter().map(|piece| Ok(*piece)).collect();
        let mut reader = LineReader::new(Body::from_stream(futures::stream::iter(pieces)), max);
        let mut lines = Vec::new();
        while let Some(line) = reader.next().await {
            let RawLine { number, bytes } = line.expect("whole");
            lines.push((number, bytes.map(|bytes| String::from_utf8(bytes).expect("UTF-8"))));
        }
        assert!(reader.next().await.is_none(), "the end stays the end");
        lines
    }

    #[tokio::test]
    async fn lines_are_put_together_from_pieces() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            read(&["ab", "c\n\n d", "e\r\nf\n", "g"], 100).await,
            [(1, some("abc")), (3, some(" de\r")), (4, some("f")), (5, some("g"))]
        );
        assert_eq!(read(&["a\n", "b\n"], 100).await, [(1, some("a")), (2, some("b"))]);
        assert_eq!(read(&[], 100).await, []);
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_does_not_hide_the_others() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            read(&["abcd\nabcde\nab", "cdef\nabcd\nabcdefg"], 4).await,
            [(1, some("abcd")), (2, None), (3, None), (4, some("abcd")), (5, None)]
        );
    }

    #[tokio::test]
    async fn what_was_cut_off_is_no_line() {
        let pieces = [Ok("a\nb"), Err(std::io::Error::other("cut"))];
        let mut reader = LineReader::new(Body::from_stream(futures::stream::iter(pieces)), 100);
        assert_eq!(reader.next().await, Some(Ok(RawLine { number: 1, bytes: Some(b"a".to_vec()) })));
        assert_eq!(reader.next().await, Some(Err(ReadingEnded::Cut)));
        assert_eq!(reader.next().await, None);
    }
}
