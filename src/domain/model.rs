//! What a model is called, how big it is, and how its token vectors become one text vector.

use std::hash::{Hash, Hasher};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::hub::HubSource;
use super::provider::ProviderSetting;
use super::slug::{MAX_SLUG_BYTES, is_slug};
use super::text::text_type;

/// Names that routes and settings use for themselves.
const RESERVED_NAMES: [&str; 2] = ["active", "auto"];

/// A model's name: `[A-Za-z0-9][A-Za-z0-9._-]{0,63}`.
///
/// Case is kept for display and ignored in comparison, so `BERT` and `bert` are one model.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct ModelName(String);

/// Why a string is not a model name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelNameError {
    /// The characters or the length are not those of a slug.
    #[error(
        "`{0}` is not a model name: it takes 1 to 64 of the characters A-Z, a-z, 0-9, `.`, `_` and `-`, \
         the first a letter or a digit"
    )]
    Malformed(String),
    /// The name means something else in routes and settings.
    #[error("`{0}` cannot name a model: `active` and `auto` are reserved")]
    Reserved(String),
}

impl ModelName {
    /// Reads a name, keeping its case.
    ///
    /// # Errors
    /// When the text is not a slug of at most 64 bytes, or is a reserved word.
    pub fn parse(text: &str) -> Result<Self, ModelNameError> {
        if !is_slug(text) {
            // A caller's megabyte must not come back in the error and the log.
            return Err(ModelNameError::Malformed(text.chars().take(MAX_SLUG_BYTES).collect()));
        }
        if Self::is_reserved(text) {
            return Err(ModelNameError::Reserved(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }

    /// Whether routes and settings use a word for themselves.
    #[must_use]
    pub fn is_reserved(word: &str) -> bool {
        RESERVED_NAMES.iter().any(|reserved| word.eq_ignore_ascii_case(reserved))
    }
}

impl PartialEq for ModelName {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for ModelName {}

impl Hash for ModelName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for byte in self.0.bytes() {
            state.write_u8(byte.to_ascii_lowercase());
        }
    }
}

text_type!(ModelName, ModelNameError);

/// The class of machine a model is meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelSize {
    /// Phones and low-end machines.
    Small,
    /// Laptops.
    Medium,
    /// Servers and GPUs.
    Large,
}

impl ModelSize {
    /// The word used in configuration and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Medium => "medium",
            Self::Large => "large",
        }
    }
}

/// What a model was trained for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Training {
    /// Vectors of texts: near each other where the texts mean the same.
    Embeddings,
    /// Language in general. The mean of its token vectors tells texts apart, and worse than a model for embeddings.
    General,
}

/// How the vectors of a text's tokens become the vector of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The mean over the tokens that are not padding.
    Mean,
    /// Their sum, divided by the square root of their number.
    MeanSqrtLen,
    /// The first token's vector.
    Cls,
    /// The last token's vector, padding excluded.
    LastToken,
    /// The greatest value of each dimension over the tokens that are not padding.
    Max,
}

impl Pooling {
    /// The word used in configuration and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::MeanSqrtLen => "mean_sqrt_len",
            Self::Cls => "cls",
            Self::LastToken => "last_token",
            Self::Max => "max",
        }
    }
}

/// The end of an over-long text that is cut off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TruncationSide {
    /// The end is dropped.
    #[default]
    Right,
    /// The beginning is dropped.
    Left,
}

/// Texts put before every query and every document, for models that were trained with them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompts {
    /// Put before a search query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// Put before a text that is searched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
}

impl Prompts {
    /// The prompt of that name; `None` when the model has no such prompt.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&str> {
        match name {
            "query" => self.query.as_deref(),
            "document" => self.document.as_deref(),
            _ => None,
        }
    }

    /// The names of the prompts this model has.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        [("query", &self.query), ("document", &self.document)]
            .into_iter()
            .filter_map(|(name, prompt)| prompt.is_some().then_some(name))
            .collect()
    }
}

/// What can be known or decided about an encoder before its files are read. `None` leaves it to the next source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncoderSettings {
    /// The vector's length.
    pub dimensions: Option<NonZeroU32>,
    /// Shorter lengths the model was trained to be cut to.
    pub matryoshka_dims: Option<Vec<NonZeroU32>>,
    /// The most tokens a text keeps, special tokens included.
    pub max_tokens: Option<NonZeroU32>,
    /// How token vectors become a text vector.
    pub pooling: Option<Pooling>,
    /// Whether vectors are scaled to length 1.
    pub normalize: Option<bool>,
    /// Prompts by name.
    pub prompts: Option<Prompts>,
}

impl EncoderSettings {
    /// These settings, with `other` filling what they leave open.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        Self {
            dimensions: self.dimensions.or(other.dimensions),
            matryoshka_dims: self.matryoshka_dims.clone().or_else(|| other.matryoshka_dims.clone()),
            max_tokens: self.max_tokens.or(other.max_tokens),
            pooling: self.pooling.or(other.pooling),
            normalize: self.normalize.or(other.normalize),
            prompts: self.prompts.clone().or_else(|| other.prompts.clone()),
        }
    }
}

/// Where a model's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// A folder in the ordinary Hugging Face layout.
    Folder(PathBuf),
    /// One `.onnx` file, with the tokenizer to use or the one found beside it.
    File {
        /// The `.onnx` file.
        onnx: PathBuf,
        /// The tokenizer, when the operator named one.
        tokenizer: Option<PathBuf>,
    },
    /// A repository on a hub, downloaded before the first load.
    Hub(HubSource),
}

/// How the server came to know a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelOrigin {
    /// It is part of the product.
    BuiltIn,
    /// The configuration has an entry for it.
    Configured,
    /// It was registered while the server ran, and can be deleted.
    Registered,
}

impl ModelOrigin {
    /// The word used on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BuiltIn => "built_in",
            Self::Configured => "configured",
            Self::Registered => "registered",
        }
    }
}

/// A model the server knows, whether or not it is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// The model's name.
    pub name: ModelName,
    /// How the server came to know it.
    pub origin: ModelOrigin,
    /// The class of machine it is meant for.
    pub size: ModelSize,
    /// Other names callers may use, the hub id among them.
    pub aliases: Vec<String>,
    /// Where its files are.
    pub source: ModelSource,
    /// The hub repository its files come from, where they come from one.
    pub hub_repository: Option<String>,
    /// What the weights are expected to take on disk, in bytes, before the files have been seen.
    pub approximate_size_bytes: Option<u64>,
    /// What it was trained for, as far as anybody says.
    pub training: Option<Training>,
    /// Batches of it that run at once, where the operator has said so for this model.
    pub workers: Option<NonZeroUsize>,
    /// Whether it stays loaded, however little it is used.
    pub pinned: bool,
    /// What is to execute it, where the operator has said so for this model.
    pub provider: Option<ProviderSetting>,
    /// What the operator set: wins over the model's files.
    pub configured: EncoderSettings,
    /// What is known of a built-in model: used where the files are silent.
    pub built_in: EncoderSettings,
}

impl ModelInfo {
    /// The best knowledge of the encoder before its files are read.
    #[must_use]
    pub fn expected(&self) -> EncoderSettings {
        self.configured.or(&self.built_in)
    }

    /// Whether a caller's word (a name or an alias, case ignored) means this model.
    #[must_use]
    pub fn answers_to(&self, word: &str) -> bool {
        self.words().any(|own| own.eq_ignore_ascii_case(word))
    }

    /// What callers may call it: its name, then its aliases.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.name.as_str()).chain(self.aliases.iter().map(String::as_str))
    }
}

/// The lengths of vector a model offers: its native one and the shorter ones it was trained for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dimensions {
    /// The length of an uncut vector.
    pub native: NonZeroU32,
    /// Shorter lengths, longest first.
    pub matryoshka: Vec<NonZeroU32>,
}

/// A vector length the model does not offer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`dimensions` is {asked}, but this model offers {}", offered_lengths(.offered))]
pub struct OutputDimensionsError {
    /// The length asked for.
    pub asked: u64,
    /// The lengths the model offers.
    pub offered: Dimensions,
}

fn offered_lengths(offered: &Dimensions) -> String {
    let shorter: Vec<String> = offered.matryoshka.iter().map(ToString::to_string).collect();
    if shorter.is_empty() {
        format!("only its native {}", offered.native)
    } else {
        format!("its native {} and {}", offered.native, shorter.join(", "))
    }
}

impl Dimensions {
    /// The length to return for a request: the native one when it asks for none.
    ///
    /// # Errors
    /// When the model was not trained for the length asked for.
    pub fn choose(&self, asked: Option<u64>) -> Result<NonZeroU32, OutputDimensionsError> {
        let Some(asked) = asked else { return Ok(self.native) };
        std::iter::once(&self.native)
            .chain(&self.matryoshka)
            .find(|offered| u64::from(offered.get()) == asked)
            .copied()
            .ok_or_else(|| OutputDimensionsError { asked, offered: self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_case_and_compare_without_it() {
        let name = ModelName::parse("All-MiniLM-L6-v2").expect("a slug");
        assert_eq!(name.as_str(), "All-MiniLM-L6-v2");
        assert_eq!(name, ModelName::parse("all-minilm-l6-V2").expect("a slug"));
    }

    #[test]
    fn names_that_are_paths_words_or_too_long_are_refused() {
        for bad in ["", ".", "..", "-a", "_a", "a/b", "a\\b", "a b", "é", "a\0", "%2e", &"a".repeat(65)] {
            assert!(matches!(ModelName::parse(bad), Err(ModelNameError::Malformed(_))), "{bad:?}");
        }
        for reserved in ["active", "AUTO"] {
            assert!(matches!(ModelName::parse(reserved), Err(ModelNameError::Reserved(_))), "{reserved}");
        }
        assert!(ModelName::parse(&"a".repeat(64)).is_ok());
    }

    #[test]
    fn only_trained_lengths_are_offered() {
        let length = |n| NonZeroU32::new(n).expect("not zero");
        let offered = Dimensions { native: length(768), matryoshka: vec![length(512), length(64)] };
        assert_eq!(offered.choose(None), Ok(length(768)));
        assert_eq!(offered.choose(Some(768)), Ok(length(768)));
        assert_eq!(offered.choose(Some(64)), Ok(length(64)));
        for bad in [0, 65, 9999, u64::MAX] {
            assert_eq!(offered.choose(Some(bad)).expect_err("not offered").asked, bad);
        }
    }

    #[test]
    fn configured_settings_win_and_built_in_ones_fill_in() {
        let configured = EncoderSettings { pooling: Some(Pooling::Cls), ..EncoderSettings::default() };
        let built_in =
            EncoderSettings { pooling: Some(Pooling::Mean), normalize: Some(true), ..EncoderSettings::default() };
        let merged = configured.or(&built_in);
        assert_eq!((merged.pooling, merged.normalize), (Some(Pooling::Cls), Some(true)));
    }
}
