//! Text to token ids and back, with the model's own `tokenizer.json`.
//!
//! Truncation and padding baked into the file are overridden: the model's maximum length decides, and padding belongs
//! to the batch. Cutting happens here, where it can be counted.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use tokenizers::{Encoding, Tokenizer, TruncationDirection};

use super::error::{Cause, EngineError, TokenCount};
use crate::domain::TruncationSide;

/// What a caller may send to be embedded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A text.
    Text(String),
    /// Token ids of this model's vocabulary, special tokens included, taken as they are.
    Tokens(Vec<u32>),
}

/// Of a long text a part is read first, of so many bytes for each token that is looked for: a token has four or five.
const BYTES_PER_TOKEN: usize = 64;

/// The bytes of a part, whatever is looked for. Each may be a token, and a token takes some hundred bytes of memory.
const LEAST_PART_BYTES: usize = 8 << 10;
const MOST_PART_BYTES: usize = 128 << 10;

/// So many tokens at either end of a part may be others than in the whole text: those of a word that was cut in two.
/// The longest that tokenizers split has 100 characters.
const EDGE_TOKENS: usize = 128;

/// What to do with an input that is longer than the model takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverLong {
    /// Cut the given side and say so in the result.
    Cut(TruncationSide),
    /// Refuse the request.
    Refuse,
}

/// Token ids ready for the model, special tokens included: at least one, at most the model's maximum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Ids in the order of the text.
    pub ids: Vec<u32>,
    /// Whether the input was longer and was cut.
    pub truncated: bool,
}

/// One token as the TEI `/tokenize` route shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenDetail {
    /// Its id.
    pub id: u32,
    /// The text it stands for, or its own name for a special token.
    pub text: String,
    /// Whether it was added around the text.
    pub special: bool,
    /// Where it starts in the text, in characters; `None` for special tokens.
    pub start: Option<usize>,
    /// Where it ends in the text, in characters; `None` for special tokens.
    pub stop: Option<usize>,
}

/// A tokenizer with the limits of its model.
pub struct TextTokenizer {
    inner: Tokenizer,
    path: PathBuf,
    max_tokens: usize,
    n_special_tokens: usize,
    highest_id: u32,
}

impl TextTokenizer {
    /// Reads `tokenizer.json`, for a model that takes `max_tokens` tokens, special tokens included.
    ///
    /// # Errors
    /// [`EngineError::LoadTokenizer`] when the file is missing, malformed, empty, or adds more special tokens than the
    /// model takes tokens.
    pub fn open(path: &Path, max_tokens: usize) -> Result<Self, EngineError> {
        let refused = |source| EngineError::LoadTokenizer { path: path.to_owned(), source };
        let bytes = fs_err::read(path).map_err(|error| refused(error.into()))?;
        let mut inner = unless_it_panics(|| Tokenizer::from_bytes(bytes)).map_err(refused)?;
        inner.with_truncation(None).map_err(refused)?;
        inner.with_padding(None);
        let n_special_tokens = inner.get_post_processor().map_or(0, |p| {
            use tokenizers::PostProcessor;
            p.added_tokens(false)
        });
        if n_special_tokens >= max_tokens {
            return Err(refused(
                format!("it adds {n_special_tokens} special tokens, and the model takes {max_tokens} tokens in all")
                    .into(),
            ));
        }
        let highest_id = inner.get_vocab(true).into_values().max().ok_or_else(|| refused("it has no tokens".into()))?;
        Ok(Self { inner, path: path.to_owned(), max_tokens, n_special_tokens, highest_id })
    }

    /// The file it was read from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The greatest token id it can make.
    #[must_use]
    pub fn highest_id(&self) -> u32 {
        self.highest_id
    }

    /// The most tokens an input keeps, special tokens included.
    #[must_use]
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Tokenizes one input; `index` is its place in the request, for errors.
    ///
    /// # Errors
    /// [`EngineError::InputTooLong`], [`EngineError::TokenOutOfVocabulary`] or [`EngineError::Tokenize`].
    pub fn tokens(
        &self,
        index: usize,
        input: &Input,
        prompt: Option<&str>,
        over_long: OverLong,
    ) -> Result<Tokens, EngineError> {
        match input {
            Input::Text(text) => match prompt {
                Some(prompt) => self.tokens_of_text(index, &format!("{prompt}{text}"), over_long),
                None => self.tokens_of_text(index, text, over_long),
            },
            Input::Tokens(ids) => self.tokens_of_ids(index, ids, over_long),
        }
    }

    fn tokens_of_text(&self, index: usize, text: &str, over_long: OverLong) -> Result<Tokens, EngineError> {
        let failed = |source| EngineError::Tokenize { index, source };
        let n_kept = self.max_tokens - self.n_special_tokens;
        let side = match over_long {
            OverLong::Cut(side) => side,
            OverLong::Refuse => TruncationSide::Right,
        };
        let part = self.part(text, side, n_kept + 1).map_err(failed)?;
        if let (Some(part), OverLong::Refuse) = (&part, over_long) {
            let at_least = part.n_certain + self.n_special_tokens;
            return Err(self.too_long(index, TokenCount::MoreThan(at_least - 1)));
        }
        let mut encoding = match part {
            Some(Part { encoding: Some(encoding), .. }) => encoding,
            part => self.encoded(part.map_or(text, |part| part.text)).map_err(failed)?,
        };
        let truncated = encoding.len() > n_kept;
        if truncated {
            match over_long {
                OverLong::Refuse => {
                    let n_tokens = encoding.len() + self.n_special_tokens;
                    return Err(self.too_long(index, TokenCount::Exactly(n_tokens)));
                }
                OverLong::Cut(side) => encoding.truncate(n_kept, 0, direction(side)),
            }
        }
        let encoding = unless_it_panics(|| self.inner.post_process(encoding, None, true)).map_err(failed)?;
        let ids = encoding.get_ids().to_vec();
        if ids.is_empty() {
            return Err(failed("the tokenizer makes no token of it, and adds no special token".into()));
        }
        Ok(Tokens { ids, truncated })
    }

    /// The part of a long text, without its cut side, that has so many tokens whatever the rest is; `None` when none is
    /// found, for then all of the text has few enough to be read at once.
    fn part<'a>(&self, text: &'a str, cut: TruncationSide, n_wanted: usize) -> Result<Option<Part<'a>>, Cause> {
        let n_bytes = n_wanted.saturating_mul(BYTES_PER_TOKEN).clamp(LEAST_PART_BYTES, MOST_PART_BYTES);
        let (mut n_read, mut n_certain) = (0, 0);
        while text.len() - n_read > n_bytes {
            let (rest, piece) = match cut {
                TruncationSide::Right => {
                    let rest = &text[n_read..];
                    (rest, &rest[..end_of_beginning(rest, n_bytes)])
                }
                TruncationSide::Left => {
                    let rest = &text[..text.len() - n_read];
                    (rest, &rest[start_of_end(rest, n_bytes)..])
                }
            };
            let encoding = self.encoded(piece)?;
            n_certain += encoding.len().saturating_sub(2 * EDGE_TOKENS);
            n_read += piece.len();
            if n_certain >= n_wanted {
                let encoding = (rest.len() == text.len()).then_some(encoding);
                let text = match cut {
                    TruncationSide::Right => &text[..n_read],
                    TruncationSide::Left => &text[text.len() - n_read..],
                };
                return Ok(Some(Part { text, n_certain, encoding }));
            }
        }
        Ok(None)
    }

    fn encoded(&self, text: &str) -> Result<Encoding, Cause> {
        unless_it_panics(|| self.inner.encode_fast(text, false))
    }

    /// Whether a text is seen to have more than so many tokens when it is read in parts, which takes little memory. One
    /// of which that is not seen may have a few more.
    ///
    /// # Errors
    /// [`EngineError::Tokenize`].
    pub fn has_by_far_more_than(&self, n_tokens: usize, index: usize, text: &str) -> Result<bool, EngineError> {
        let part = self.part(text, TruncationSide::Right, n_tokens.saturating_add(1));
        Ok(part.map_err(|source| EngineError::Tokenize { index, source })?.is_some())
    }

    fn tokens_of_ids(&self, index: usize, ids: &[u32], over_long: OverLong) -> Result<Tokens, EngineError> {
        if let Some(id) = self.foreign_id(ids) {
            return Err(EngineError::TokenOutOfVocabulary { index, id, highest_id: self.highest_id });
        }
        if ids.len() <= self.max_tokens {
            return Ok(Tokens { ids: ids.to_vec(), truncated: false });
        }
        let kept = match over_long {
            OverLong::Refuse => return Err(self.too_long(index, TokenCount::Exactly(ids.len()))),
            OverLong::Cut(TruncationSide::Right) => &ids[..self.max_tokens],
            OverLong::Cut(TruncationSide::Left) => &ids[ids.len() - self.max_tokens..],
        };
        Ok(Tokens { ids: kept.to_vec(), truncated: true })
    }

    fn too_long(&self, index: usize, n_tokens: TokenCount) -> EngineError {
        EngineError::InputTooLong { index, n_tokens, max_tokens: self.max_tokens }
    }

    /// The first id that is not of this vocabulary.
    fn foreign_id(&self, ids: &[u32]) -> Option<u32> {
        let is_known = |id: u32| id <= self.highest_id && self.inner.id_to_token(id).is_some();
        ids.iter().copied().find(|id| !is_known(*id))
    }

    /// The tokens of a text with their places in it, uncut.
    ///
    /// # Errors
    /// [`EngineError::Tokenize`].
    pub fn details(&self, index: usize, text: &str, with_special: bool) -> Result<Vec<TokenDetail>, EngineError> {
        let encoding = unless_it_panics(|| self.inner.encode_char_offsets(text, with_special))
            .map_err(|source| EngineError::Tokenize { index, source })?;
        Ok(details_of(&encoding, text))
    }

    /// The text of token ids.
    ///
    /// # Errors
    /// [`EngineError::NotDecodable`] or [`EngineError::Tokenize`].
    pub fn decode(&self, index: usize, ids: &[u32], skip_special: bool) -> Result<String, EngineError> {
        if let Some(id) = self.foreign_id(ids) {
            return Err(EngineError::NotDecodable { index, id, highest_id: self.highest_id });
        }
        unless_it_panics(|| self.inner.decode(ids, skip_special))
            .map_err(|source| EngineError::Tokenize { index, source })
    }
}

/// The beginning of a text, or its end.
struct Part<'a> {
    text: &'a str,
    /// Tokens that it has whatever the rest of the text is, give or take one or two: some tokenizers divide a run of spaces
    /// in another way where it is cut.
    n_certain: usize,
    /// Its tokens, if it was read at once.
    encoding: Option<Encoding>,
}

/// Where the beginning of a text ends that has at most so many bytes, and at least half as many: before the last space
/// between words that is there, if one is. The text has more bytes.
fn end_of_beginning(text: &str, n_bytes: usize) -> usize {
    let (middle, end) = (text.floor_char_boundary(n_bytes / 2), text.floor_char_boundary(n_bytes));
    text[middle..end].rfind(char::is_whitespace).map_or(end, |at| middle + at)
}

/// Where the end of such a text starts, in the same way: with the first space.
fn start_of_end(text: &str, n_bytes: usize) -> usize {
    let start = text.ceil_char_boundary(text.len() - n_bytes);
    let middle = text.ceil_char_boundary(text.len() - n_bytes / 2);
    text[start..middle].find(char::is_whitespace).map_or(start, |at| start + at)
}

/// What the library makes of a file that somebody else wrote. On some malformed ones it panics.
fn unless_it_panics<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, Cause> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_panic| Err("the library of tokenizers cannot make sense of it".into()))
}

fn direction(side: TruncationSide) -> TruncationDirection {
    match side {
        TruncationSide::Right => TruncationDirection::Right,
        TruncationSide::Left => TruncationDirection::Left,
    }
}

fn details_of(encoding: &Encoding, text: &str) -> Vec<TokenDetail> {
    // Offsets count characters: one pass over the text beats a walk from its start for each token.
    let byte_of_char: Vec<usize> = text.char_indices().map(|(byte, _)| byte).chain([text.len()]).collect();
    let n_tokens = encoding.len();
    (0..n_tokens)
        .map(|i| {
            let id = encoding.get_ids()[i];
            let special = encoding.get_special_tokens_mask()[i] == 1;
            if special {
                let text = encoding.get_tokens()[i].clone();
                return TokenDetail { id, text, special, start: None, stop: None };
            }
            let (start, stop) = encoding.get_offsets()[i];
            let slice = match (byte_of_char.get(start), byte_of_char.get(stop)) {
                (Some(&from), Some(&to)) if from <= to => text[from..to].to_owned(),
                _ => encoding.get_tokens()[i].clone(),
            };
            TokenDetail { id, text: slice, special, start: Some(start), stop: Some(stop) }
        })
        .collect()
}
