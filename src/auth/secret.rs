//! New keys: made of chance, or chosen by somebody and read from a file.

use crate::domain::KeyHash;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

/// How a key that was made here begins, so that a scanner for secrets can tell it.
const PREFIX: &str = "grn_";

/// Random bytes in a key.
const KEY_BYTES: usize = 32;

/// The fewest characters of a key. It keeps out words, not all that is weak: keys that are made here have 47.
pub const MIN_KEY_CHARS: usize = 16;

/// A key that nobody has seen yet.
pub struct NewKey(String);

/// Why there is no new key.
#[derive(Debug, thiserror::Error)]
pub enum NewKeyError {
    /// The system has no chance to give.
    #[error("the system gives no random bytes")]
    Random(#[source] getrandom::Error),
    /// Somebody chose a word.
    #[error(
        "the key has {0} characters, and a key has at least {MIN_KEY_CHARS}: take one that `granary keys add` makes, or \
         the output of `openssl rand -hex 32`"
    )]
    TooShort(usize),
    /// It could not be sent.
    #[error("the key has characters that no header carries: it takes visible characters of ASCII, without spaces")]
    Unsendable,
}

impl NewKey {
    /// A key of 256 random bits.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn random() -> Result<Self, NewKeyError> {
        let mut bytes = [0; KEY_BYTES];
        getrandom::fill(&mut bytes).map_err(NewKeyError::Random)?;
        Ok(Self(format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(bytes))))
    }

    /// A key that somebody chose.
    ///
    /// # Errors
    /// When it is too short, or could not be sent in a header.
    pub fn chosen(text: &str) -> Result<Self, NewKeyError> {
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(NewKeyError::Unsendable);
        }
        if text.len() < MIN_KEY_CHARS {
            return Err(NewKeyError::TooShort(text.len()));
        }
        Ok(Self(text.to_owned()))
    }

    /// What is kept of it.
    #[must_use]
    pub fn hash(&self) -> KeyHash {
        KeyHash::of(&self.0)
    }

    /// The key itself, to be shown once.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_keys_are_long_and_different() {
        let (one, other) = (NewKey::random().expect("a key"), NewKey::random().expect("a key"));
        assert_ne!(one.reveal(), other.reveal());
        assert_eq!(one.reveal().len(), 47);
        assert!(one.reveal().starts_with(PREFIX) && NewKey::chosen(one.reveal()).is_ok());
    }

    #[test]
    fn words_are_no_keys() {
        assert!(matches!(NewKey::chosen("correct-horse"), Err(NewKeyError::TooShort(13))));
        for text in ["sixteen chars ok", "sixteen-chars-ö", "sixteen-chars-ok\n"] {
            assert!(matches!(NewKey::chosen(text), Err(NewKeyError::Unsendable)), "{text:?}");
        }
        assert_eq!(NewKey::chosen("sixteen-chars-ok").expect("a key").hash(), KeyHash::of("sixteen-chars-ok"));
    }
}
