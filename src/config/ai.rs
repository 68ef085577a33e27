//! `[ai]`: which models there are and what they are called.

use std::collections::{BTreeMap, HashSet};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};

use super::engine::WORKERS;
use super::spelling::{self, Problem, outside};
use crate::domain::{
    EncoderSettings, HubFile, HubId, HubRevision, HubSource, ModelName, ModelSize, ModelSource, Pooling, Prompts,
    ProviderSetting,
};

/// The longest vector and the longest text that are believed to be meant.
const MAX_DIMENSIONS: u32 = 65_536;
const MAX_MODEL_TOKENS: u32 = 1 << 20;
const MAX_ALIAS_BYTES: usize = 256;

/// Faults that are named of one entry that came over HTTP: it may be a megabyte of bad aliases.
const MAX_REFUSED: usize = 8;

/// `[ai]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AiConfig {
    /// The active model of the first start.
    pub model_name: ModelChoice,
    /// The length of vectors the operator expects of the active model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding_dim: Option<NonZeroU32>,
    /// Whether models other than `model_name` can be loaded.
    pub multi_model_enabled: bool,
    /// Models besides the built-in ones, or changes to these.
    #[serde(default)]
    pub additional_models: Vec<AdditionalModel>,
    /// What clients say, and the model it means.
    pub aliases: BTreeMap<String, ModelName>,
}

/// The active model of a first start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelChoice {
    /// The one that suits the machine best.
    Auto,
    /// The one of this name.
    Named(ModelName),
}

impl ModelChoice {
    const AUTO: &str = "auto";

    /// The name, or `auto`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.named().map_or(Self::AUTO, ModelName::as_str)
    }

    /// The name; `None` leaves it to the machine.
    #[must_use]
    pub fn named(&self) -> Option<&ModelName> {
        match self {
            Self::Auto => None,
            Self::Named(name) => Some(name),
        }
    }
}

impl Serialize for ModelChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ModelChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.eq_ignore_ascii_case(Self::AUTO) {
            return Ok(Self::Auto);
        }
        ModelName::parse(&text).map(Self::Named).map_err(de::Error::custom)
    }
}

/// One entry of `[[ai.additional_models]]`. What is `None` comes from the built-in model of that name, then from the
/// model's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdditionalModel {
    /// The model's name.
    pub name: ModelName,
    /// A `.onnx` file or a model folder; relative paths start at the models directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// A repository on a hub, in place of a `path`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<HubId>,
    /// Which state of the repository; its `main` branch, pinned at the first download, when `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<HubRevision>,
    /// The `.onnx` file in the repository; `onnx/model.onnx` when `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<HubFile>,
    /// The class of machine it is meant for.
    #[serde(default, deserialize_with = "spelling::optional_word", skip_serializing_if = "Option::is_none")]
    pub size: Option<ModelSize>,
    /// Whether it is loaded at the start, which fails if the model does.
    #[serde(default)]
    pub auto_load: bool,
    /// Whether it stays loaded, however little it is used.
    #[serde(default, skip_serializing_if = "is_false")]
    pub pinned: bool,
    /// The tokenizer of a `.onnx` file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// Batches of it that run at once; `engine.workers` when `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<NonZeroUsize>,
    /// What executes it; `engine.provider` when `None`.
    #[serde(default, deserialize_with = "spelling::optional_word", skip_serializing_if = "Option::is_none")]
    pub provider: Option<ProviderSetting>,
    /// The vector's length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<NonZeroU32>,
    /// Shorter lengths the model was trained to be cut to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matryoshka_dims: Option<Vec<NonZeroU32>>,
    /// The most tokens a text keeps, special tokens included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<NonZeroU32>,
    /// How token vectors become a text vector.
    #[serde(default, deserialize_with = "spelling::optional_word", skip_serializing_if = "Option::is_none")]
    pub pooling: Option<Pooling>,
    /// Whether vectors are scaled to length 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalize: Option<bool>,
    /// Texts put before queries and documents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompts: Option<Prompts>,
    /// Other names callers may use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
}

impl AdditionalModel {
    /// Where the model's files are, relative paths taken from `models_dir`; `None` without `path` and `repository`.
    #[must_use]
    pub fn source(&self, models_dir: &Path) -> Option<ModelSource> {
        if let Some(repository) = self.repository.clone() {
            let (revision, file) = (self.revision.clone().unwrap_or_default(), self.file.clone().unwrap_or_default());
            return Some(ModelSource::Hub(HubSource { repository, revision, file }));
        }
        let path = self.path.as_ref()?;
        // Joining an absolute path gives that path.
        let located = models_dir.join(path);
        Some(if is_onnx_file(path) {
            ModelSource::File { onnx: located, tokenizer: self.tokenizer.as_ref().map(|file| models_dir.join(file)) }
        } else {
            ModelSource::Folder(located)
        })
    }

    /// What this entry decides about the encoder.
    #[must_use]
    pub fn encoder_settings(&self) -> EncoderSettings {
        EncoderSettings {
            dimensions: self.dimensions,
            matryoshka_dims: self.matryoshka_dims.clone(),
            max_tokens: self.max_tokens,
            pooling: self.pooling,
            normalize: self.normalize,
            prompts: self.prompts.clone(),
        }
    }

    /// What is wrong with this entry as one sentence, for an entry that comes from elsewhere than the configuration. Of
    /// many faults it names the first eight.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        let problems = self.problems("").into_iter().take(MAX_REFUSED);
        let sentences = problems.map(|p| format!("`{}`: {}", &p.key[1..], p.sentence));
        sentences.reduce(|all, sentence| format!("{all}; {sentence}"))
    }

    fn problems(&self, place: &str) -> Vec<Problem> {
        let key = |field: &str| format!("{place}.{field}");
        let number = |n: &u32| n.to_string();
        let ranged = |field, value: Option<NonZeroU32>, most| {
            value.and_then(|value| outside(&key(field), &value.get(), &(1..=most), number))
        };
        let mut problems: Vec<Problem> = [
            ranged("dimensions", self.dimensions, MAX_DIMENSIONS),
            ranged("max_tokens", self.max_tokens, MAX_MODEL_TOKENS),
        ]
        .into_iter()
        .flatten()
        .collect();

        problems.extend(
            self.workers
                .and_then(|workers| outside(&key("workers"), &workers.get(), &(1..=*WORKERS.end()), usize::to_string)),
        );
        let native = self.dimensions.map_or(MAX_DIMENSIONS, NonZeroU32::get);
        for length in self.matryoshka_dims.iter().flatten() {
            problems.extend(outside(&key("matryoshka_dims"), &length.get(), &(1..=native), number));
        }
        for (field, path) in [("path", &self.path), ("tokenizer", &self.tokenizer)] {
            if path.as_deref() == Some(Path::new("")) {
                problems.push(Problem::new(key(field), "found an empty path, expected the path of a file"));
            }
        }
        if self.repository.is_some() && self.path.is_some() {
            let sentence = "found a `path` beside it, expected one of them: where are the model's files?";
            problems.push(Problem::new(key("repository"), sentence));
        }
        if self.repository.is_none() {
            for (field, is_set) in [("revision", self.revision.is_some()), ("file", self.file.is_some())] {
                if is_set {
                    let sentence = "found it without a `repository`, expected the repository of a hub that it is of";
                    problems.push(Problem::new(key(field), sentence));
                }
            }
        }
        if self.tokenizer.is_some() && !self.path.as_deref().is_some_and(is_onnx_file) {
            let sentence =
                "found a tokenizer without a `.onnx` file in `path`; a model folder brings its own tokenizer";
            problems.push(Problem::new(key("tokenizer"), sentence));
        }
        problems.extend(self.aliases.iter().filter_map(|alias| unusable_alias(alias, key("aliases"))));
        problems
    }
}

impl AiConfig {
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self
            .embedding_dim
            .and_then(|n| outside("ai.embedding_dim", &n.get(), &(1..=MAX_DIMENSIONS), ToString::to_string))
            .into_iter()
            .collect();
        for model in &self.additional_models {
            problems.extend(model.problems(&format!("ai.additional_models.{}", model.name)));
        }
        problems.extend(self.aliases.keys().filter_map(|alias| unusable_alias(alias, format!("ai.aliases.{alias:?}"))));
        problems.extend(self.ambiguous_words());
        problems.extend(self.contradicted_length());
        problems
    }

    /// What the active model's own entry says of its vectors wins, so it may not silence `embedding_dim`.
    fn contradicted_length(&self) -> Option<Problem> {
        let expected = self.embedding_dim?;
        let name = self.model_name.named()?;
        let entry = self.additional_models.iter().find(|model| model.name == *name)?;
        let said = entry.dimensions.filter(|said| *said != expected)?;
        let sentence =
            format!("found {expected}, expected {said}, which the entry of `{}` (`ai.model_name`) has", entry.name);
        Some(Problem::new("ai.embedding_dim", sentence))
    }

    /// A word that callers say must mean one model.
    fn ambiguous_words(&self) -> Vec<Problem> {
        let names = self.additional_models.iter().map(|model| ("ai.additional_models", model.name.as_str()));
        let of_models = self
            .additional_models
            .iter()
            .flat_map(|model| model.aliases.iter().map(|alias| ("ai.additional_models", alias.as_str())));
        let of_table = self.aliases.keys().map(|alias| ("ai.aliases", alias.as_str()));
        let mut seen = HashSet::new();
        names
            .chain(of_models)
            .chain(of_table)
            .filter(|(_, word)| !seen.insert(word.to_ascii_lowercase()))
            .map(|(key, word)| {
                Problem::new(key, format!("found {word:?} twice, expected each name and alias once (case is ignored)"))
            })
            .collect()
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

fn is_onnx_file(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("onnx"))
}

fn unusable_alias(alias: &str, key: String) -> Option<Problem> {
    let printable = !alias.is_empty() && !alias.chars().any(|c| c.is_whitespace() || c.is_control());
    let sentence = if ModelName::is_reserved(alias) {
        format!("found {alias:?}, which is reserved, expected another word")
    } else if printable && alias.len() <= MAX_ALIAS_BYTES {
        return None;
    } else {
        let start: String = alias.chars().take(MAX_ALIAS_BYTES).collect();
        format!("found {start:?}, expected 1 to {MAX_ALIAS_BYTES} bytes without spaces")
    };
    Some(Problem::new(key, sentence))
}
