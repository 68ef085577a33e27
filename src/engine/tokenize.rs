//! Text to token ids and back, with the model's own `tokenizer.json`.
//!
//! Truncation and padding baked into the file are overridden: the model's maximum length decides, and padding belongs
//! to the batch. Cutting happens here, where it can be counted.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use tokenizers::{Encoding, Tokenizer, TruncationDirection};

use super::error::{Cause, EngineError};
use crate::domain::TruncationSide;

/// What a caller may send to be embedded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A text.
    Text(String),
    /// Token ids of this model's vocabulary, special tokens included, taken as they are.
    Tokens(Vec<u32>),
}

/// Of a text that is cut at its end, so many bytes are read for each token that is kept: a token has four or five.
const BYTES_PER_KEPT_TOKEN: usize = 64;

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
        let encode = |text| unless_it_panics(|| self.inner.encode_fast(text, false)).map_err(failed);
        let beginning = match over_long {
            OverLong::Cut(TruncationSide::Right) => self.beginning(text).map(encode).transpose()?,
            OverLong::Cut(TruncationSide::Left) | OverLong::Refuse => None,
        };
        // With so many tokens left over, what follows cannot change those that are kept.
        let mut encoding = match beginning.filter(|encoding| encoding.len() >= 2 * self.max_tokens) {
            Some(encoding) => encoding,
            None => encode(text)?,
        };
        let n_tokens = encoding.len() + self.n_special_tokens;
        let truncated = n_tokens > self.max_tokens;
        if truncated {
            match over_long {
                OverLong::Refuse => return Err(self.too_long(index, n_tokens)),
                OverLong::Cut(side) => encoding.truncate(self.max_tokens - self.n_special_tokens, 0, direction(side)),
            }
        }
        let encoding = unless_it_panics(|| self.inner.post_process(encoding, None, true)).map_err(failed)?;
        let ids = encoding.get_ids().to_vec();
        if ids.is_empty() {
            return Err(failed("the tokenizer makes no token of it, and adds no special token".into()));
        }
        Ok(Tokens { ids, truncated })
    }

    /// The beginning of a text that is longer than what is kept of one by far, up to the end of a word where words have
    /// spaces between them.
    fn beginning<'a>(&self, text: &'a str) -> Option<&'a str> {
        let n_bytes = self.max_tokens.saturating_mul(BYTES_PER_KEPT_TOKEN);
        let beginning = &text[..text.floor_char_boundary(n_bytes)];
        let end = beginning.rfind(char::is_whitespace).unwrap_or(beginning.len());
        (beginning.len() < text.len()).then(|| &beginning[..end])
    }

    fn tokens_of_ids(&self, index: usize, ids: &[u32], over_long: OverLong) -> Result<Tokens, EngineError> {
        if let Some(id) = self.foreign_id(ids) {
            return Err(EngineError::TokenOutOfVocabulary { index, id, highest_id: self.highest_id });
        }
        if ids.len() <= self.max_tokens {
            return Ok(Tokens { ids: ids.to_vec(), truncated: false });
        }
        let kept = match over_long {
            OverLong::Refuse => return Err(self.too_long(index, ids.len())),
            OverLong::Cut(TruncationSide::Right) => &ids[..self.max_tokens],
            OverLong::Cut(TruncationSide::Left) => &ids[ids.len() - self.max_tokens..],
        };
        Ok(Tokens { ids: kept.to_vec(), truncated: true })
    }

    fn too_long(&self, index: usize, n_tokens: usize) -> EngineError {
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
        let encoding = self
            .inner
            .encode_char_offsets(text, with_special)
            .map_err(|source| EngineError::Tokenize { index, source })?;
        Ok(details_of(&encoding, text))
    }

    /// The text of token ids.
    ///
    /// # Errors
    /// [`EngineError::NotDecodable`] or [`EngineError::Tokenize`].
    pub fn decode(&self, index: usize, ids: &[u32], skip_special: bool) -> Result<String, EngineError> {
        if let Some(id) = self.foreign_id(ids) {
            return Err(EngineError::NotDecodable { id, highest_id: self.highest_id });
        }
        self.inner.decode(ids, skip_special).map_err(|source| EngineError::Tokenize { index, source })
    }
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
