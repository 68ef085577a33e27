//! Vector spaces: which vectors may be compared.
//!
//! A [`Manifest`] lists everything that decides where a text lands. Its SHA-256 is the [`Fingerprint`], whose first 16
//! hex digits name the space. What only changes rounding (provider, runtime version, precision of the arithmetic) is
//! left out on purpose, so that two machines share a space.

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::hex::hex_digits;
use super::model::{Pooling, Prompts, TruncationSide};
use super::module::HashedModule;
use super::slug::{MAX_SLUG_BYTES, is_slug};
use super::text::text_type;

const SPACE_ID_DIGITS: usize = 16;
const FINGERPRINT_DIGITS: usize = 64;

/// The SHA-256 of a space's canonical manifest, as 64 lower-case hex digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// The fingerprint of a manifest in its canonical form.
    #[must_use]
    pub fn of_canonical(manifest: &str) -> Self {
        Self(hex_digits(&Sha256::digest(manifest)))
    }

    /// The space this fingerprint names.
    #[must_use]
    pub fn space(&self) -> SpaceId {
        SpaceId(self.0[..SPACE_ID_DIGITS].to_owned())
    }

    /// Reads what a fingerprint was written as.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (text.len() == FINGERPRINT_DIGITS && text.bytes().all(is_digit)).then(|| Self(text.to_owned()))
    }
}

text_type!(Fingerprint);

/// The short name of a space: the first 16 hex digits of its fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct SpaceId(String);

/// A string that is not a space id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a space: a space is 16 hexadecimal digits, as `x-space` and `GET /models/{{name}}` give them")]
pub struct SpaceIdError(String);

impl SpaceId {
    /// Reads 16 hex digits; upper case is accepted and lowered.
    ///
    /// # Errors
    /// When the text is anything else.
    pub fn parse(text: &str) -> Result<Self, SpaceIdError> {
        if text.len() == SPACE_ID_DIGITS && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(SpaceIdError(text.chars().take(64).collect()))
        }
    }
}

text_type!(SpaceId, SpaceIdError);

/// Everything that decides where a text lands in a space, in the order it is hashed.
///
/// The canonical form is this struct as compact JSON. Fields are never reordered, renamed or given a default that is
/// skipped: each would rename every space in every database. What a later version must add goes in behind
/// `skip_serializing_if`, absent for the models that do not have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Manifest {
    /// SHA-256 of each weight file (external data too) and its name within the model, sorted by name.
    pub weights: Vec<HashedFile>,
    /// SHA-256 of `tokenizer.json`.
    pub tokenizer: String,
    /// The name of the graph output that is read.
    pub output: String,
    /// How token vectors become one; `None` when the graph has pooled already.
    pub pooling: Option<Pooling>,
    /// Whether vectors are scaled to length 1.
    pub normalize: bool,
    /// The length of the vectors returned.
    pub dimensions: u32,
    /// Prompts the model puts before texts. Queries and documents share one space.
    pub prompts: Prompts,
    /// The most tokens a text keeps, special tokens included.
    pub max_tokens: u32,
    /// The end that is cut off a longer text.
    pub truncation_side: TruncationSide,
    /// What is done to the vector between pooling and the cut to `dimensions`, in this order. Most models have none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modules: Vec<HashedModule>,
    /// Tokens that are read in texts besides those of `tokenizer.json`, or in place of them, in the order they are added. Most
    /// models have none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extra_tokens: Vec<ExtraToken>,
}

/// A file of a model and the hash of its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HashedFile {
    /// What the file is within the model: `model` for the graph, the location the graph names for external data.
    pub role: String,
    /// Lower-case hex.
    pub sha256: String,
}

/// A token that `tokenizer_config.json` has, and `tokenizer.json` not or not so: how it is told from the text around it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(clippy::struct_excessive_bools, reason = "it is so in the file")]
pub struct ExtraToken {
    /// The text that it stands for.
    pub content: String,
    /// Whether it is read as a word of its own only.
    pub single_word: bool,
    /// Whether it takes the spaces before it along.
    pub lstrip: bool,
    /// The same for those behind it.
    pub rstrip: bool,
    /// Whether it is looked for in the text as the tokenizer has changed it, without capitals for example.
    pub normalized: bool,
    /// Whether it is left out where tokens become text again. That moves no vector.
    #[serde(skip)]
    pub special: bool,
}

impl Manifest {
    /// What is hashed: the manifest as compact JSON.
    ///
    /// # Panics
    /// Never: the manifest holds nothing that JSON cannot.
    #[must_use]
    pub fn canonical(&self) -> String {
        serde_json::to_string(self).expect("a manifest of strings and numbers is always JSON")
    }

    /// The manifest's identity.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of_canonical(&self.canonical())
    }
}

/// The most dimensions of a declared space.
pub const MAX_DECLARED_DIMENSIONS: u32 = 16_384;

/// A space that no model of this server makes: somebody else's vectors, under a name that was declared for them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeclaredSpace {
    // The fields are the manifest, in the order they are hashed.
    #[serde(rename = "declared")]
    name: String,
    dimensions: u32,
}

/// What cannot be declared as a space.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeclaredSpaceError {
    /// Characters or a length that names do not have.
    #[error(
        "`{0}` is not the name of a space: a name is a letter or digit, then up to 63 of the characters A-Z a-z 0-9 . _ -"
    )]
    Name(String),
    /// No length, or too great a one.
    #[error("a space has 1 to {MAX_DECLARED_DIMENSIONS} dimensions, not {0}")]
    Dimensions(u64),
}

impl DeclaredSpace {
    /// A space of that name, whose vectors have so many numbers.
    ///
    /// # Errors
    /// When it is no name, or no length.
    pub fn new(name: &str, dimensions: u64) -> Result<Self, DeclaredSpaceError> {
        if !is_slug(name) {
            return Err(DeclaredSpaceError::Name(name.chars().take(MAX_SLUG_BYTES).collect()));
        }
        match u32::try_from(dimensions) {
            Ok(fit @ 1..=MAX_DECLARED_DIMENSIONS) => Ok(Self { name: name.to_owned(), dimensions: fit }),
            _ => Err(DeclaredSpaceError::Dimensions(dimensions)),
        }
    }

    /// The name it was declared under.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The length of its vectors.
    #[must_use]
    pub fn dimensions(&self) -> u32 {
        self.dimensions
    }

    /// What is hashed: `{"declared":NAME,"dimensions":N}`.
    ///
    /// # Panics
    /// Never: a string and a number are always JSON.
    #[must_use]
    pub fn canonical(&self) -> String {
        serde_json::to_string(self).expect("a string and a number are always JSON")
    }

    /// Its identity: two servers that declare the same mean the same.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of_canonical(&self.canonical())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::module::{Activation, DenseShape};

    fn manifest() -> Manifest {
        Manifest {
            weights: vec![HashedFile { role: "model".into(), sha256: "ab".repeat(32) }],
            tokenizer: "cd".repeat(32),
            output: "last_hidden_state".into(),
            pooling: Some(Pooling::Mean),
            normalize: true,
            dimensions: 384,
            prompts: Prompts::default(),
            max_tokens: 256,
            truncation_side: TruncationSide::Right,
            modules: Vec::new(),
            extra_tokens: Vec::new(),
        }
    }

    fn extra_token(special: bool) -> ExtraToken {
        let content = "<e>".to_owned();
        ExtraToken { content, single_word: false, lstrip: true, rstrip: false, normalized: false, special }
    }

    fn dense() -> HashedModule {
        let shape = DenseShape { in_features: 384, out_features: 128, bias: true, activation: Activation::Tanh };
        HashedModule::Dense { sha256: "ef".repeat(32), shape }
    }

    #[test]
    fn the_canonical_form_is_frozen() {
        // Stored vectors are labelled with this value: if it moves, every user's database loses its models.
        assert_eq!(
            serde_json::to_string(&manifest()).expect("JSON"),
            format!(
                r#"{{"weights":[{{"role":"model","sha256":"{}"}}],"tokenizer":"{}","output":"last_hidden_state","#,
                "ab".repeat(32),
                "cd".repeat(32)
            ) + r#""pooling":"mean","normalize":true,"dimensions":384,"prompts":{},"max_tokens":256,"truncation_side":"right"}"#
        );
    }

    #[test]
    fn the_canonical_form_of_modules_is_frozen_too() {
        let manifest = Manifest { modules: vec![HashedModule::Normalize, dense()], ..manifest() };
        let expected = r#""truncation_side":"right","modules":[{"type":"normalize"},{"type":"dense","sha256":""#
            .to_owned()
            + &"ef".repeat(32)
            + r#"","in_features":384,"out_features":128,"bias":true,"activation":"tanh"}]}"#;
        let canonical = manifest.canonical();
        assert!(canonical.ends_with(&expected), "{canonical}");
    }

    #[test]
    fn the_canonical_form_of_extra_tokens_is_frozen_too() {
        let with = |special| Manifest { extra_tokens: vec![extra_token(special)], ..manifest() }.canonical();
        let expected =
            r#""truncation_side":"right","extra_tokens":[{"content":"<e>","single_word":false,"lstrip":true,"#
                .to_owned()
                + r#""rstrip":false,"normalized":false}]}"#;
        assert!(with(true).ends_with(&expected), "{}", with(true));
        assert_eq!(with(true), with(false));
    }

    #[test]
    fn a_pooling_has_in_the_canonical_form_the_word_that_it_has_everywhere() {
        use Pooling::{Cls, LastToken, Max, Mean, MeanSqrtLen};

        for (pooling, word) in
            [(Mean, "mean"), (MeanSqrtLen, "mean_sqrt_len"), (Cls, "cls"), (LastToken, "last_token"), (Max, "max")]
        {
            let canonical = Manifest { pooling: Some(pooling), ..manifest() }.canonical();
            assert!(canonical.contains(&format!(r#""pooling":"{word}","#)), "{canonical}");
            assert_eq!(pooling.as_str(), word);
        }
    }

    #[test]
    fn every_field_moves_the_space() {
        let base = manifest().fingerprint().space();
        let changes: [fn(&mut Manifest); 14] = [
            |m| m.weights[0].sha256.replace_range(0..1, "0"),
            |m| m.tokenizer.replace_range(0..1, "0"),
            |m| m.output = "token_embeddings".into(),
            |m| m.pooling = Some(Pooling::Cls),
            |m| m.pooling = Some(Pooling::MeanSqrtLen),
            |m| m.normalize = false,
            |m| m.dimensions = 256,
            |m| m.prompts.query = Some("query: ".into()),
            |m| m.max_tokens = 128,
            |m| m.truncation_side = TruncationSide::Left,
            |m| m.modules = vec![dense()],
            |m| m.modules = vec![dense(), HashedModule::Normalize],
            |m| m.modules = vec![HashedModule::Normalize, dense()],
            |m| m.extra_tokens = vec![extra_token(true)],
        ];
        for change in changes {
            let mut other = manifest();
            change(&mut other);
            assert_ne!(other.fingerprint().space(), base, "{other:?}");
        }
        assert_eq!(manifest().fingerprint().space(), base);
    }

    #[test]
    fn a_declared_space_is_its_name_and_its_length() {
        let space = DeclaredSpace::new("our-vectors", 3).expect("a space");
        assert_eq!(space.canonical(), r#"{"declared":"our-vectors","dimensions":3}"#);
        assert_eq!(space.fingerprint(), Fingerprint::of_canonical(&space.canonical()));
        assert_ne!(space.fingerprint(), DeclaredSpace::new("our-vectors", 4).expect("a space").fingerprint());
        for bad in ["", "-a", "a b", "ä", &"x".repeat(65)] {
            assert!(matches!(DeclaredSpace::new(bad, 3), Err(DeclaredSpaceError::Name(_))), "{bad:?}");
        }
        for bad in [0, u64::from(MAX_DECLARED_DIMENSIONS) + 1, u64::MAX] {
            assert_eq!(DeclaredSpace::new("a", bad), Err(DeclaredSpaceError::Dimensions(bad)));
        }
    }

    #[test]
    fn space_ids_are_sixteen_hex_digits() {
        let id = manifest().fingerprint().space();
        assert_eq!(SpaceId::parse(&id.as_str().to_ascii_uppercase()), Ok(id));
        for bad in ["", "abc", "0123456789abcdeg", "0123456789abcdef0"] {
            assert!(SpaceId::parse(bad).is_err(), "{bad:?}");
        }
    }
}
