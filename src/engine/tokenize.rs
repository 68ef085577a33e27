//! Text to token ids and back, with the model's own `tokenizer.json`.
//!
//! Truncation and padding baked into the file are overridden: the model's maximum length decides, and padding belongs
//! to the batch; which end of a text is cut stays what it says, unless another file of the model does. Cutting happens here,
//! where it can be counted.

mod cut;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use tokenizers::{AddedToken, Encoding, Tokenizer, TruncationDirection};

use self::cut::{MOST_RUN_BYTES, end_of_beginning, start_of_end};
use super::error::{Cause, EngineError, TokenCount};
use crate::domain::{ExtraToken, TruncationSide};

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

/// The bytes of a part, whatever is looked for, but for a run at its cut. Each may be a token, and a token takes some
/// hundred bytes of memory.
const LEAST_PART_BYTES: usize = 8 << 10;
const MOST_PART_BYTES: usize = MOST_RUN_BYTES;

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
    truncation_side: TruncationSide,
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
        let truncation_side = match inner.get_truncation().map(|baked_in| baked_in.direction) {
            Some(TruncationDirection::Left) => TruncationSide::Left,
            Some(TruncationDirection::Right) | None => TruncationSide::Right,
        };
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
        Ok(Self { inner, path: path.to_owned(), max_tokens, truncation_side, n_special_tokens, highest_id })
    }

    /// The same with tokens that the file does not have. Each gets the id that its text has in the vocabulary, else the next free
    /// one.
    ///
    /// # Errors
    /// [`EngineError::LoadTokenizer`] when the library cannot add them.
    pub fn with_extra(mut self, tokens: &[ExtraToken]) -> Result<Self, EngineError> {
        if tokens.is_empty() {
            return Ok(self);
        }
        let added: Vec<AddedToken> = tokens
            .iter()
            .map(|token| AddedToken {
                content: token.content.clone(),
                single_word: token.single_word,
                lstrip: token.lstrip,
                rstrip: token.rstrip,
                normalized: token.normalized,
                special: token.special,
            })
            .collect();
        unless_it_panics(|| Ok(self.inner.add_tokens(&added)))
            .map_err(|source| EngineError::LoadTokenizer { path: self.path.clone(), source })?;
        self.highest_id = self.inner.get_vocab(true).into_values().max().unwrap_or(self.highest_id);
        Ok(self)
    }

    /// The same for a model that has so many rows in its embedding table. A token that was only added to the vocabulary may
    /// be beyond them, such as one that stands for an image: a text with it is refused.
    ///
    /// # Errors
    /// [`EngineError::TokenizerMismatch`] when the vocabulary itself has more tokens, or each text gets one that is beyond.
    pub fn for_rows(mut self, rows: u32) -> Result<Self, EngineError> {
        let highest_id = self.highest_id;
        if highest_id < rows {
            return Ok(self);
        }
        self.highest_id = rows.saturating_sub(1);
        let own = self.inner.get_vocab(false).into_values().max();
        let around = self.details(0, "a", true).unwrap_or_default().into_iter().map(|token| token.id).max();
        if own.is_none_or(|id| id >= rows) || around.is_some_and(|id| id >= rows) {
            return Err(EngineError::TokenizerMismatch {
                path: self.path,
                highest_id,
                model_limit: format!("has {rows} rows"),
            });
        }
        Ok(self)
    }

    /// The file it was read from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The end that the file has cut off a longer text.
    #[must_use]
    pub fn truncation_side(&self) -> TruncationSide {
        self.truncation_side
    }

    /// The greatest token id that a text may have.
    #[must_use]
    pub fn highest_id(&self) -> u32 {
        self.highest_id
    }

    /// Whether it is seen not to add the special token to a text.
    #[must_use]
    pub fn leaves_out(&self, token: &str) -> bool {
        let adds = |details: &[TokenDetail]| details.iter().any(|detail| detail.special && detail.text == token);
        self.details(0, "a", true).is_ok_and(|details| !adds(&details))
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
        if let Some(id) = ids.iter().find(|id| **id > self.highest_id) {
            let token = self.inner.id_to_token(*id).unwrap_or_default();
            return Err(failed(format!("it has the token `{token}`, which the model has no row for").into()));
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::*;

    const MAX_TOKENS: usize = 100;

    /// Of so many bytes is a part that has as many tokens and one more.
    const PART_BYTES: usize = LEAST_PART_BYTES;

    fn tokenizer(model: &Value) -> TextTokenizer {
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": null, "model": model,
        });
        let folder = TempDir::new().expect("a folder");
        let path = folder.path().join("tokenizer.json");
        fs_err::write(&path, file.to_string()).expect("written");
        TextTokenizer::open(&path, MAX_TOKENS).expect("a tokenizer")
    }

    fn ids(tokenizer: &TextTokenizer, text: &str) -> Vec<u32> {
        tokenizer.details(0, text, false).expect("tokens").into_iter().map(|token| token.id).collect()
    }

    fn cut(tokenizer: &TextTokenizer, text: &str, side: TruncationSide) -> Vec<u32> {
        let input = Input::Text(text.to_owned());
        tokenizer.tokens(0, &input, None, OverLong::Cut(side)).expect("tokens").ids
    }

    #[test]
    fn the_end_of_a_run_has_the_tokens_that_follow_from_its_beginning() {
        // It merges from the left.
        let tokenizer = tokenizer(&json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": {"a": 0, "b": 1, " ": 2, "aa": 3, "aaaa": 4, "ab": 5, "abab": 6},
            "merges": ["a a", "aa aa", "a b", "ab ab"],
        }));
        let last = |ids: Vec<u32>| ids[ids.len() - MAX_TOKENS..].to_vec();
        for run in ["a".repeat(20_003), "ab".repeat(10_001)] {
            let text = "b ".repeat(10_000) + &run;
            let of_all = last(ids(&tokenizer, &text));
            assert_ne!(last(ids(&tokenizer, &text[text.len() - PART_BYTES..])), of_all, "the cut decides");
            assert_eq!(cut(&tokenizer, &text, TruncationSide::Left), of_all, "{run:.8}");
        }
    }

    #[test]
    fn the_beginning_of_a_run_has_the_tokens_that_follow_from_its_end() {
        // Of equal scores it takes the longest last token.
        let tokenizer = tokenizer(&json!({
            "type": "Unigram", "unk_id": 0, "byte_fallback": false,
            "vocab": [["<unk>", -9.0], ["a", -2.0], ["b", -2.0], [" ", -2.0], ["aaaa", -4.0]],
        }));
        let text = "a".repeat(20_003) + &" b".repeat(10_000);
        let first = |ids: Vec<u32>| ids[..MAX_TOKENS].to_vec();
        let of_all = first(ids(&tokenizer, &text));
        assert_ne!(first(ids(&tokenizer, &text[..PART_BYTES])), of_all, "the cut decides");
        assert_eq!(cut(&tokenizer, &text, TruncationSide::Right), of_all);
    }
}
