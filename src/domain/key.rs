//! API keys: what they are called, what they may do, and what is kept of them, which is never the key itself.

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};
use sha2::{Digest, Sha256};

use super::hex::hex_digits;
use super::model::ModelName;
use super::slug::{MAX_SLUG_BYTES, is_slug};
use super::text::{text_type, words};

/// How the hash of a key begins.
const HASH_PREFIX: &str = "sha256:";

/// A key as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// What it is called, in the log too.
    pub name: KeyName,
    /// What a presented key is compared with.
    pub hash: KeyHash,
    /// What its holder may do.
    pub scopes: Scopes,
    /// The model of its holder's requests that name none; the active one when `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelName>,
    /// Requests that its holder may make in a minute; any number when `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<NonZeroU32>,
    /// Tokens that may be embedded for its holder in a minute; any number when `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<NonZeroU32>,
}

/// The name of a key: `[A-Za-z0-9][A-Za-z0-9._-]{0,63}`. It is no secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct KeyName(String);

/// A string is not the name of a key. It is not repeated: somebody may have written the key there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the name of a key takes 1 to {MAX_SLUG_BYTES} of the characters A-Z, a-z, 0-9, `.`, `_` and `-`, the first a letter or \
     a digit"
)]
pub struct KeyNameError;

impl KeyName {
    /// Reads a name, keeping its case.
    ///
    /// # Errors
    /// When the text is not a slug of at most 64 bytes.
    pub fn parse(text: &str) -> Result<Self, KeyNameError> {
        if is_slug(text) { Ok(Self(text.to_owned())) } else { Err(KeyNameError) }
    }
}

text_type!(KeyName, KeyNameError);

/// The SHA-256 of a key, written `sha256:` and 64 hex digits. A key of 256 random bits needs no salt and no slow hash.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyHash([u8; 32]);

/// A string is not the hash of a key. It is not repeated: somebody may have written the key there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the hash of a key is written `sha256:` and 64 hex digits, as `granary keys hash` prints it")]
pub struct KeyHashError;

impl KeyHash {
    /// The hash of a key.
    #[must_use]
    pub fn of(key: &str) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// What is compared.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for KeyHash {
    type Err = KeyHashError;

    fn from_str(text: &str) -> Result<Self, KeyHashError> {
        let digits = text.strip_prefix(HASH_PREFIX).filter(|digits| digits.len() == 64).ok_or(KeyHashError)?;
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            let (Some(high), Some(low)) = (digit(0), digit(1)) else { return Err(KeyHashError) };
            *byte = high << 4 | low;
        }
        Ok(Self(hash))
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{HASH_PREFIX}{}", hex_digits(&self.0))
    }
}

/// Not the hash: a key that somebody chose can be guessed from it.
impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(…)")
    }
}

impl Serialize for KeyHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Something that a key may allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// To have texts embedded, compared and tokenized.
    Embed,
    /// To see models and spaces, and to read and search grains.
    Read,
    /// To write and delete grains.
    Write,
    /// Everything: to change models and spaces, to make and fetch snapshots, and what the others allow.
    Admin,
}

/// A word is no scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a scope is `embed`, `read`, `write` or `admin`")]
pub struct ScopeError;

words! {
    /// The word in files, on the command line and in errors.
    Scope { Embed => "embed", Read => "read", Write => "write", Admin => "admin" }
}

impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        Self::parse(text).ok_or(ScopeError)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a key allows: one scope at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scopes(BTreeSet<Scope>);

/// A key that allows nothing is a mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key needs at least one scope: `embed`, `read`, `write` or `admin`")]
pub struct NoScopeError;

impl Scopes {
    /// These scopes; one that is there twice counts once.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(scopes: impl IntoIterator<Item = Scope>) -> Result<Self, NoScopeError> {
        let scopes: BTreeSet<Scope> = scopes.into_iter().collect();
        if scopes.is_empty() { Err(NoScopeError) } else { Ok(Self(scopes)) }
    }

    /// Whether they allow what needs this one. `admin` allows everything.
    #[must_use]
    pub fn allow(&self, needed: Scope) -> bool {
        self.0.contains(&needed) || self.0.contains(&Scope::Admin)
    }
}

/// With commas between, as the command line takes them.
impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> = self.0.iter().map(|scope| scope.as_str()).collect();
        f.write_str(&words.join(","))
    }
}

impl Serialize for Scopes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|scope| scope.as_str()))
    }
}

impl<'de> Deserialize<'de> for Scopes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let words = Vec::<String>::deserialize(deserializer)?;
        let scopes: Vec<Scope> =
            words.iter().map(|word| word.parse()).collect::<Result<_, _>>().map_err(de::Error::custom)?;
        Self::of(scopes).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_read_as_they_are_written() {
        let hash = KeyHash::of("abc");
        let text = hash.to_string();
        // The digest of "abc" in FIPS 180-2.
        assert_eq!(text, "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(text.parse(), Ok(hash.clone()));
        assert_eq!(text.to_ascii_uppercase().replace("SHA", "sha").parse(), Ok(hash));
        let digits = &text[HASH_PREFIX.len()..];
        for other in [digits, "sha256:", "sha256:ab", "md5:00", &text.replace('b', "g"), &format!("{text}0"), "abc"] {
            assert_eq!(other.parse::<KeyHash>(), Err(KeyHashError), "{other}");
        }
        let wide = format!("sha256:{}", "é".repeat(32));
        assert_eq!(wide.parse::<KeyHash>(), Err(KeyHashError), "64 bytes that are no digits");
    }

    #[test]
    fn a_hash_is_not_shown_by_accident() {
        assert_eq!(format!("{:?}", KeyHash::of("abc")), "KeyHash(…)");
    }

    #[test]
    fn admin_allows_everything_and_no_other_does() {
        for held in Scope::ALL {
            let scopes = Scopes::of([held]).expect("one scope");
            for needed in Scope::ALL {
                assert_eq!(scopes.allow(needed), held == needed || held == Scope::Admin, "{held} for {needed}");
            }
        }
        assert_eq!(Scopes::of([]), Err(NoScopeError));
    }

    #[test]
    fn a_key_is_read_with_what_it_needs_and_refused_without() {
        let text = format!("name = 'a'\nhash = '{}'\nscopes = ['read', 'embed', 'read']", KeyHash::of("x"));
        let key: ApiKey = toml::from_str(&text).expect("a key");
        assert_eq!((key.scopes.to_string().as_str(), key.model, key.rate), ("embed,read", None, None));
        for wrong in ["scopes = []", "scopes = ['all']", "scopes = [0]", "key = 'x'", "rate = 0", "model = 'a/b'"] {
            let line = wrong.split(' ').next().expect("a word");
            let kept = text.lines().filter(|kept| !kept.starts_with(line));
            let text: Vec<&str> = kept.chain([wrong]).collect();
            assert!(toml::from_str::<ApiKey>(&text.join("\n")).is_err(), "{wrong}");
        }
        for name in ["", "-a", "a b", "a/b", "é", &"a".repeat(65), "a\n"] {
            assert_eq!(name.parse::<KeyName>(), Err(KeyNameError), "{name:?}");
        }
    }
}
