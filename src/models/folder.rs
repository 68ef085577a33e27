//! A model's files: where they are and what they say.
//!
//! A folder in the ordinary Hugging Face layout decides pooling, normalisation and maximum length by its own files.
//! A bare `.onnx` file says nothing of itself: the configuration must, or the built-in entry of its name.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::descriptions::{Architecture, PromptConfig, PromptTexts, SENTENCE_CONFIGS, SentenceConfig};
use super::hub::HubModel;
use super::modules::{self, ModuleFile};
use super::onnx_file::{self, OnnxFacts};
use super::tokenizer_files::{TokenizerConfig, TokenizerFile};
use crate::domain::{EncoderSettings, ExtraToken, Pooling, Prompts, TruncationSide};
use crate::engine::{GraphApart, Positions};
use crate::files::if_there;

/// A model's files and what they say of it.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    /// The `.onnx` file.
    pub onnx: PathBuf,
    /// Weights outside it: the graph's name for each, and where it is.
    pub external_data: Vec<(String, PathBuf)>,
    /// `tokenizer.json`.
    pub tokenizer: PathBuf,
    /// What is done to a text's vector between pooling and the scaling to length 1, in this order.
    pub modules: Vec<ModuleFile>,
    /// What the files decide.
    pub settings: EncoderSettings,
    /// Every prompt that they have, by its name: empty ones too, and those for neither queries nor documents. They say
    /// nothing of the space.
    pub named_prompts: BTreeMap<String, String>,
    /// How many numbers `config_sentence_transformers.json` has left of a vector. It is only offered.
    pub truncate_dim: Option<NonZeroU32>,
    /// The length of token vectors, from `config.json`.
    pub hidden_size: Option<u32>,
    /// Rows of the embedding table, from `config.json`.
    pub vocabulary_size: Option<u32>,
    /// Rows of the position table, from `config.json`: no text can be longer.
    pub max_positions: Option<u32>,
    /// From which number the model counts tokens, from `config.json`.
    pub positions: Option<Positions>,
    /// Whether the maximum length in `settings` is that of the tokenizer or of the positions, for want of one that is said.
    pub infers_max_tokens: bool,
    /// The end that is cut off a longer text, where `tokenizer_config.json` or sentence-transformers' settings of the tokenizer
    /// name one.
    pub truncation_side: Option<TruncationSide>,
    /// The tokens that `tokenizer_config.json` adds to those of `tokenizer.json`.
    pub extra_tokens: Vec<ExtraToken>,
    /// The tokens that each text is said to get besides its own, each behind the name of the flag in
    /// `tokenizer_config.json` that says so.
    pub added_tokens: Vec<(&'static str, String)>,
    /// Whether a text's vector depends on its neighbours in a batch.
    pub quantizes_per_batch: bool,
    /// Where numbers of fp32 stand in the `.onnx` file that are unfit for bf16.
    pub unfit_for_bf16: Vec<u64>,
    /// What was recorded of the files when they were downloaded.
    pub hub: Option<HubModel>,
}

/// Why a model's files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A needed file is not there.
    #[error("{what} is missing: looked for {}", list(.looked_for))]
    Missing {
        /// What the file is.
        what: &'static str,
        /// Where it was looked for.
        looked_for: Vec<PathBuf>,
    },
    /// A file cannot be read.
    #[error("a file of the model cannot be read")]
    Read(#[source] std::io::Error),
    /// A JSON file is not what its name promises.
    #[error("`{}` cannot be understood", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// The `.onnx` file is no ONNX file.
    #[error("`{}` is not a whole ONNX file", path.display())]
    NotOnnx {
        /// The file.
        path: PathBuf,
        /// Where the walk over it stopped.
        source: std::io::Error,
    },
    /// A file of the model names another one outside the folder they belong in.
    #[error("`{}` keeps a part of the model in `{location}`, which is outside its folder", path.display())]
    OutsideFolder {
        /// The `.onnx` file or `modules.json`.
        path: PathBuf,
        /// The location it names.
        location: String,
    },
    /// Weights that are no safetensors file.
    #[error("`{}` is not a whole safetensors file", path.display())]
    NotSafetensors {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: safetensors::SafeTensorError,
    },
    /// Weights that a Python program makes.
    #[error(
        "`{}` holds weights as a Python pickle, which is a program and not read: save the module as model.safetensors, \
         as recent releases of sentence-transformers do",
        path.display()
    )]
    Pickled {
        /// The file.
        path: PathBuf,
    },
    /// Files that contradict each other.
    #[error("`{}` does not fit the rest of the model: {reason}", path.display())]
    Misfit {
        /// The file.
        path: PathBuf,
        /// What does not fit what.
        reason: String,
    },
    /// A pooling that Granary does not have, and a graph may.
    #[error(
        "`{}` asks for the pooling `{pooling}`, which Granary does not have. If the graph pools so itself and gives \
         `sentence_embedding`, name the .onnx file as the entry's `path`, with its `tokenizer`, `max_tokens` and `normalize`, \
         and no `pooling`",
        path.display()
    )]
    UnsupportedPooling {
        /// The file.
        path: PathBuf,
        /// Its name, or those of several that are joined.
        pooling: String,
    },
    /// A module, a pooling or an activation that Granary does not have.
    #[error("`{}` asks for {what}, which Granary does not have", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The module, pooling or activation.
        what: String,
    },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| format!("`{}`", path.display())).collect::<Vec<_>>().join(" and ")
}

/// Reads a model folder. `onnx` is the model in it, where it has an unusual place, and `pooling` what the operator has set.
///
/// # Errors
/// [`FolderError`], naming the file.
pub fn read_folder(folder: &Path, onnx: Option<&Path>, pooling: Option<Pooling>) -> Result<ModelFiles, FolderError> {
    // First, for some of them have no graph.
    let modules = modules::read(folder, pooling)?;
    let usual = || vec![folder.join("onnx/model.onnx"), folder.join("model.onnx")];
    let onnx = first_existing("the ONNX file", onnx.map_or_else(usual, |path| vec![path.to_owned()]))?;
    let tokenizer = first_existing("the tokenizer", vec![folder.join("tokenizer.json")])?;
    let architecture: Architecture = read_json(&folder.join("config.json"))?.unwrap_or_default();
    let (tokens, extra_tokens) = read_tokenizer_config(folder, &tokenizer, &architecture)?;
    let prompt_config: PromptConfig = read_json(&folder.join("config_sentence_transformers.json"))?.unwrap_or_default();
    let sentence = read_sentence_config(modules.transformer.as_deref(), folder, &tokenizer)?;
    let max_positions = architecture.max_positions();
    // As sentence-transformers does where nothing is said for certain.
    let inferred_tokens = [tokens.limit(), max_positions].into_iter().flatten().min();
    let max_tokens = sentence.max_tokens().or(inferred_tokens);
    let settings = EncoderSettings {
        dimensions: None,
        matryoshka_dims: None,
        max_tokens: max_tokens.and_then(NonZeroU32::new),
        pooling: modules.pooling,
        normalize: modules.normalize,
        // A list of empty ones is written by default. It decides nothing, so that a built-in model keeps its own.
        prompts: prompt_config.prompts.as_ref().map(PromptTexts::known).filter(|known| *known != Prompts::default()),
    };
    files(
        onnx,
        tokenizer,
        ModelFiles {
            settings,
            named_prompts: prompt_config.prompts.map(PromptTexts::named).unwrap_or_default(),
            truncate_dim: prompt_config.truncate_dim.and_then(NonZeroU32::new),
            hidden_size: architecture.token_size(),
            vocabulary_size: architecture.vocab_size,
            max_positions,
            positions: architecture.positions(),
            infers_max_tokens: sentence.max_tokens().is_none(),
            truncation_side: sentence.truncation_side().or(tokens.truncation_side()),
            extra_tokens,
            added_tokens: tokens.added_tokens(),
            modules: modules.between,
            ..ModelFiles::bare()
        },
    )
}

/// Reads a `.onnx` file with the tokenizer that was named or lies beside it.
///
/// # Errors
/// [`FolderError`], naming the file.
pub(super) fn read_bare_file(onnx: &Path, tokenizer: Option<&Path>) -> Result<ModelFiles, FolderError> {
    let found = first_existing("the ONNX file", vec![onnx.to_owned()])?;
    let candidates = match tokenizer {
        Some(named) => vec![named.to_owned()],
        None => vec![onnx.with_extension("tokenizer.json"), onnx.with_file_name("tokenizer.json")],
    };
    files(found, first_existing("the tokenizer", candidates)?, ModelFiles::bare())
}

impl ModelFiles {
    /// The files of weights outside the `.onnx` file.
    pub fn external_data(&self) -> impl Iterator<Item = &Path> {
        self.external_data.iter().map(|(_, path)| path.as_path())
    }

    /// The files of its weights.
    pub fn weights(&self) -> impl Iterator<Item = &Path> {
        let modules = self.modules.iter().filter_map(ModuleFile::weights);
        std::iter::once(self.onnx.as_path()).chain(modules).chain(self.external_data())
    }

    /// The graph without the weights that are in the `.onnx` file, if it has large ones. To be used as long as nobody changes
    /// that file.
    ///
    /// # Errors
    /// [`FolderError::NotOnnx`].
    pub fn graph_apart(&self) -> Result<Option<GraphApart>, FolderError> {
        if !self.external_data.is_empty() {
            return Ok(None);
        }
        let not_onnx = |source| FolderError::NotOnnx { path: self.onnx.clone(), source };
        onnx_file::graph_apart(&self.onnx).map_err(not_onnx)
    }

    fn bare() -> Self {
        Self {
            onnx: PathBuf::new(),
            external_data: Vec::new(),
            tokenizer: PathBuf::new(),
            modules: Vec::new(),
            settings: EncoderSettings::default(),
            named_prompts: BTreeMap::new(),
            truncate_dim: None,
            hidden_size: None,
            vocabulary_size: None,
            max_positions: None,
            positions: None,
            infers_max_tokens: false,
            truncation_side: None,
            extra_tokens: Vec::new(),
            added_tokens: Vec::new(),
            quantizes_per_batch: false,
            unfit_for_bf16: Vec::new(),
            hub: None,
        }
    }
}

/// Adds what the `.onnx` file itself says.
fn files(onnx: PathBuf, tokenizer: PathBuf, said: ModelFiles) -> Result<ModelFiles, FolderError> {
    let OnnxFacts { external_data, quantizes_per_batch, unfit_for_bf16 } =
        onnx_file::scan(&onnx).map_err(|source| FolderError::NotOnnx { path: onnx.clone(), source })?;
    let external_data = external_data
        .into_iter()
        .map(|location| {
            let inside = Path::new(&location).components().all(|part| matches!(part, Component::Normal(_)));
            if !inside {
                return Err(FolderError::OutsideFolder { path: onnx.clone(), location });
            }
            let path = first_existing("a file of external weights", vec![onnx.with_file_name(&location)])?;
            Ok((location, path))
        })
        .collect::<Result<_, _>>()?;
    Ok(ModelFiles { onnx, external_data, tokenizer, quantizes_per_batch, unfit_for_bf16, ..said })
}

/// `tokenizer_config.json`, which must not say other things than `tokenizer.json` where transformers goes by it, and the tokens
/// that it alone has. Without the file, as in a cache that another tool filled, nothing is known of what it says.
fn read_tokenizer_config(
    folder: &Path,
    tokenizer: &Path,
    architecture: &Architecture,
) -> Result<(TokenizerConfig, Vec<ExtraToken>), FolderError> {
    let path = folder.join("tokenizer_config.json");
    let Some(config) = read_json::<TokenizerConfig>(&path)? else {
        return Ok((TokenizerConfig::default(), Vec::new()));
    };
    let file: TokenizerFile = read_json(tokenizer)?.unwrap_or_default();
    if let Some(reason) = config.contradiction(architecture, &file) {
        return Err(FolderError::Misfit { path, reason });
    }
    let extra_tokens = config.extra_tokens(&file);
    Ok((config, extra_tokens))
}

/// What the first of `SENTENCE_CONFIGS` says that is in the Transformer's folder, or else in the model's. To lower the case
/// is the tokenizer's work: where that keeps capitals, the model's vectors would be others.
fn read_sentence_config(
    transformer: Option<&Path>,
    folder: &Path,
    tokenizer: &Path,
) -> Result<SentenceConfig, FolderError> {
    let places = transformer.into_iter().chain([folder]);
    let mut paths = places.flat_map(|place| SENTENCE_CONFIGS.map(|name| place.join(name)));
    let Some(path) = paths.find(|path| path.is_file()) else { return Ok(SentenceConfig::default()) };
    let sentence: SentenceConfig = read_json(&path)?.unwrap_or_default();
    if let Some(key) = sentence.own_length() {
        let reason = format!(
            "its `{key}` cuts texts of one kind alone, and Granary cuts all alike. Take it out if no text is longer, or the model \
             is to see more of it, in a folder of your own where it is a hub's"
        );
        return Err(FolderError::Misfit { path, reason });
    }
    if !sentence.sets_the_tokenizer() {
        return Ok(sentence);
    }
    let file: TokenizerFile = read_json(tokenizer)?.unwrap_or_default();
    if sentence.do_lower_case == Some(true) && !file.lowers_case() {
        return Err(lower_case(path));
    }
    if let Some((below, setting)) = sentence.strange_setting(&file) {
        let reason = format!(
            "its `{below}` hands the tokenizer `{setting}`, and Granary does not. Save a tokenizer.json that reads texts so by \
             itself and take the setting out, or take it out if the model was trained without, in a folder of your own where \
             it is a hub's"
        );
        return Err(FolderError::Misfit { path, reason });
    }
    Ok(sentence)
}

fn lower_case(path: PathBuf) -> FolderError {
    let what = "texts in lower case before a tokenizer that keeps capitals (`do_lower_case`)".to_owned();
    FolderError::Unsupported { path, what }
}

fn first_existing(what: &'static str, looked_for: Vec<PathBuf>) -> Result<PathBuf, FolderError> {
    match looked_for.iter().find(|path| path.is_file()) {
        Some(found) => Ok(found.clone()),
        None => Err(FolderError::Missing { what, looked_for }),
    }
}

/// A JSON file's content; `None` when there is no such file.
pub(super) fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, FolderError> {
    let Some(bytes) = if_there(fs_err::read(path)).map_err(FolderError::Read)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|source| FolderError::Malformed { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests;
