//! Every model the server knows when it starts: built in, configured, and registered in earlier runs.

use std::num::NonZeroU32;
use std::path::Path;

use crate::config::{AdditionalModel, AiConfig, ModelChoice, ModelsConfig};
use crate::domain::{
    EncoderSettings, HubFile, HubId, HubRevision, HubSource, ModelInfo, ModelName, ModelOrigin, ModelSize, ModelSource,
    Pooling, Prompts, Training,
};

const MODELS_KEY: &str = "ai.additional_models";

/// The models of the server, in the order they are listed. Names and aliases are unique, case ignored.
#[derive(Clone, Debug)]
pub struct Catalog {
    models: Vec<ModelInfo>,
    undecided: Option<Undecided>,
}

/// What waits for `ai.model_name = "auto"` to become a name.
#[derive(Clone, Copy, Debug)]
struct Undecided {
    /// `ai.embedding_dim`.
    dimensions: Option<NonZeroU32>,
    /// `ai.multi_model_enabled`.
    keeps_others: bool,
}

/// Why a configuration does not make a catalog.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// A new model without files.
    #[error("{MODELS_KEY}: `{0}` is no built-in model, so its entry needs a `path` or a `repository`")]
    NoPath(ModelName),
    /// A model that does not exist is meant.
    #[error("{key}: no model is called `{name}`; there are {known}")]
    Unknown {
        /// The setting.
        key: String,
        /// What it says.
        name: String,
        /// What it could say.
        known: String,
    },
    /// One word would mean two models.
    #[error("{key}: `{alias}` is an alias of `{model}`, but it already means `{taken_by}`")]
    Ambiguous {
        /// The setting.
        key: &'static str,
        /// The word.
        alias: String,
        /// The model it was to mean.
        model: ModelName,
        /// The model it means.
        taken_by: ModelName,
    },
}

impl CatalogError {
    /// The setting at fault, for whoever knows which file, variable or flag it stood in.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::NoPath(_) => MODELS_KEY,
            Self::Unknown { key, .. } => key,
            Self::Ambiguous { key, .. } => key,
        }
    }
}

impl Catalog {
    /// The built-in models and the configured ones, which are looked for where `[models]` says.
    ///
    /// # Errors
    /// When an entry has no files, or a word means two models or none.
    pub fn from_config(config: &AiConfig, places: &ModelsConfig) -> Result<Self, CatalogError> {
        let mut catalog = Self { models: built_in(places), undecided: None };
        for entry in &config.additional_models {
            catalog.add(entry, &places.models_dir())?;
        }
        let undecided = Undecided { dimensions: config.embedding_dim, keeps_others: config.multi_model_enabled };
        match &config.model_name {
            ModelChoice::Named(name) => {
                catalog.named("ai.model_name", name)?;
                catalog.apply(undecided, name);
            }
            ModelChoice::Auto => catalog.undecided = Some(undecided),
        }
        for (alias, name) in &config.aliases {
            match catalog.named(&format!("ai.aliases.{alias:?}"), name) {
                Ok(model) => model.aliases.push(alias.clone()),
                // A word for a model that may not be loaded means nothing, and the operator has said so.
                Err(_) if !config.multi_model_enabled => {}
                Err(error) => return Err(error),
            }
        }
        catalog.check_words(config)?;
        Ok(catalog)
    }

    /// Whether a model of that name is known.
    #[must_use]
    pub fn has(&self, name: &ModelName) -> bool {
        self.models.iter().any(|model| model.name == *name)
    }

    /// The length of vectors that is expected of a model still to be chosen.
    #[must_use]
    pub fn expected_dimensions(&self) -> Option<NonZeroU32> {
        self.undecided.and_then(|undecided| undecided.dimensions)
    }

    /// Applies to the model that is active what the configuration says of it, where `auto` had left its name open.
    pub fn decide(&mut self, active: &ModelName) {
        if let Some(undecided) = self.undecided.take() {
            self.apply(undecided, active);
        }
    }

    fn apply(&mut self, undecided: Undecided, active: &ModelName) {
        if !undecided.keeps_others {
            self.models.retain(|model| model.name == *active);
        }
        let model = self.models.iter_mut().find(|model| model.name == *active);
        if let (Some(model), Some(length)) = (model, undecided.dimensions) {
            model.configured.dimensions.get_or_insert(length);
        }
    }

    /// The models in the order they are listed.
    pub fn iter(&self) -> impl Iterator<Item = &ModelInfo> {
        self.models.iter()
    }

    /// The models in the order they are listed.
    pub fn into_models(self) -> impl Iterator<Item = ModelInfo> {
        self.models.into_iter()
    }

    fn add(&mut self, entry: &AdditionalModel, models_dir: &Path) -> Result<(), CatalogError> {
        let source = entry.source(models_dir);
        if let Some(at) = self.models.iter().position(|model| model.name == entry.name) {
            let mut known = self.models[at].clone();
            known.origin = ModelOrigin::Configured;
            known.pinned = entry.pinned;
            if let Some(source) = source {
                // Files of one's own are not those of the repository, whatever they were made from.
                let repository = repository_of(&source);
                if repository.is_some() && repository != known.hub_repository {
                    known.built_in.max_tokens = None;
                }
                known.hub_repository = repository;
                known.source = source;
            }
            known.size = entry.size.unwrap_or(known.size);
            known.workers = entry.workers;
            known.provider = entry.provider;
            known.configured = entry.encoder_settings();
            known.aliases.extend(entry.aliases.iter().cloned());
            add_hub_alias(&mut known, |word| self.meaning_of(word).is_some());
            self.models[at] = known;
            return Ok(());
        }
        let model = new_model(entry, models_dir, ModelOrigin::Configured);
        self.push(model.ok_or_else(|| CatalogError::NoPath(entry.name.clone()))?);
        Ok(())
    }

    /// Adds a model that was registered in an earlier run; what the configuration says by now wins.
    pub fn add_registered(&mut self, entry: &AdditionalModel, models_dir: &Path) -> Result<(), CatalogError> {
        let model = new_model(entry, models_dir, ModelOrigin::Registered);
        let model = model.ok_or_else(|| CatalogError::NoPath(entry.name.clone()))?;
        for word in model.words() {
            if let Some(other) = self.meaning_of(word) {
                return Err(CatalogError::Ambiguous {
                    key: MODELS_KEY,
                    alias: word.to_owned(),
                    model: model.name.clone(),
                    taken_by: other.name.clone(),
                });
            }
        }
        self.push(model);
        Ok(())
    }

    /// Adds a model that has no place yet.
    fn push(&mut self, mut model: ModelInfo) {
        add_hub_alias(&mut model, |word| self.meaning_of(word).is_some());
        self.models.push(model);
    }

    /// The model that a caller's word means so far.
    fn meaning_of(&self, word: &str) -> Option<&ModelInfo> {
        self.models.iter().find(|model| model.answers_to(word))
    }

    fn named(&mut self, key: &str, name: &ModelName) -> Result<&mut ModelInfo, CatalogError> {
        let known = self.models.iter().map(|model| format!("`{}`", model.name)).collect::<Vec<_>>().join(", ");
        self.models.iter_mut().find(|model| model.name == *name).ok_or_else(|| CatalogError::Unknown {
            key: key.to_owned(),
            name: name.to_string(),
            known,
        })
    }

    fn check_words(&self, config: &AiConfig) -> Result<(), CatalogError> {
        for model in &self.models {
            for alias in &model.aliases {
                let other = self.models.iter().find(|other| other.name != model.name && other.answers_to(alias));
                if let Some(other) = other {
                    return Err(CatalogError::Ambiguous {
                        key: if config.aliases.contains_key(alias) { "ai.aliases" } else { MODELS_KEY },
                        alias: alias.clone(),
                        model: model.name.clone(),
                        taken_by: other.name.clone(),
                    });
                }
            }
        }
        Ok(())
    }
}

/// A model that is neither built in nor known yet; `None` when the entry names no files.
pub(super) fn new_model(entry: &AdditionalModel, models_dir: &Path, origin: ModelOrigin) -> Option<ModelInfo> {
    let source = entry.source(models_dir)?;
    Some(ModelInfo {
        name: entry.name.clone(),
        origin,
        size: entry.size.unwrap_or(ModelSize::Medium),
        aliases: entry.aliases.clone(),
        hub_repository: repository_of(&source),
        source,
        approximate_size_bytes: None,
        training: None,
        workers: entry.workers,
        provider: entry.provider,
        pinned: entry.pinned,
        configured: entry.encoder_settings(),
        built_in: EncoderSettings::default(),
    })
}

/// The hub repository that files come from; `None` for files that were here.
fn repository_of(source: &ModelSource) -> Option<String> {
    match source {
        ModelSource::Hub(source) => Some(source.repository.to_string()),
        ModelSource::Folder(_) | ModelSource::File { .. } => None,
    }
}

/// Lets a hub id name its model, unless the word is taken: a repository may be known at two revisions.
pub(super) fn add_hub_alias(model: &mut ModelInfo, is_taken: impl Fn(&str) -> bool) {
    if let Some(repository) = model.hub_repository.clone().filter(|word| !model.answers_to(word) && !is_taken(word)) {
        model.aliases.push(repository);
    }
}

/// What is built in of a model besides its name.
struct BuiltIn {
    name: &'static str,
    size: ModelSize,
    repository: &'static str,
    /// The ONNX file in the repository.
    file: &'static str,
    size_bytes: u64,
    training: Training,
    dimensions: u32,
    matryoshka_dims: &'static [u32],
    max_tokens: u32,
    normalize: bool,
    prompts: Option<(&'static str, &'static str)>,
}

/// The product card's models, all of them pooled by the mean. Sizes are those of the fp32 files.
const BUILT_IN: [BuiltIn; 3] = [
    BuiltIn {
        name: "all-MiniLM-L6-v2",
        size: ModelSize::Small,
        repository: "sentence-transformers/all-MiniLM-L6-v2",
        file: "onnx/model.onnx",
        size_bytes: 90_900_000,
        training: Training::Embeddings,
        dimensions: 384,
        matryoshka_dims: &[],
        max_tokens: 256,
        normalize: true,
        prompts: None,
    },
    BuiltIn {
        name: "bert-base-uncased",
        size: ModelSize::Medium,
        repository: "google-bert/bert-base-uncased",
        file: "model.onnx",
        size_bytes: 438_000_000,
        training: Training::General,
        dimensions: 768,
        matryoshka_dims: &[],
        max_tokens: 512,
        normalize: false,
        prompts: None,
    },
    BuiltIn {
        name: "nomic-embed-text-v1.5",
        size: ModelSize::Large,
        repository: "nomic-ai/nomic-embed-text-v1.5",
        file: "onnx/model.onnx",
        size_bytes: 547_000_000,
        training: Training::Embeddings,
        dimensions: 768,
        matryoshka_dims: &[512, 256, 128, 64],
        max_tokens: 8192,
        normalize: true,
        prompts: Some(("search_query: ", "search_document: ")),
    },
];

fn built_in(places: &ModelsConfig) -> Vec<ModelInfo> {
    BUILT_IN.iter().map(|model| model.info(places)).collect()
}

impl BuiltIn {
    /// Its folder where set-up, the operator or an installation has put one, else the hub.
    fn source(&self, places: &ModelsConfig) -> ModelSource {
        let mut folders = places.built_in_dirs().map(|models_dir| models_dir.join(self.name));
        if let Some(folder) = folders.find(|folder| folder.is_dir()) {
            return ModelSource::Folder(folder);
        }
        ModelSource::Hub(HubSource {
            repository: HubId::parse(self.repository).expect("built-in repositories are well formed"),
            revision: HubRevision::default(),
            file: HubFile::parse(self.file).expect("built-in files are well formed"),
        })
    }

    fn info(&self, places: &ModelsConfig) -> ModelInfo {
        let prompts = self.prompts.map_or_else(Prompts::default, |(query, document)| Prompts {
            query: Some(query.to_owned()),
            document: Some(document.to_owned()),
        });
        ModelInfo {
            name: ModelName::parse(self.name).expect("built-in names are slugs"),
            origin: ModelOrigin::BuiltIn,
            size: self.size,
            aliases: vec![self.repository.to_owned()],
            source: self.source(places),
            hub_repository: Some(self.repository.to_owned()),
            approximate_size_bytes: Some(self.size_bytes),
            training: Some(self.training),
            workers: None,
            pinned: false,
            provider: None,
            configured: EncoderSettings::default(),
            built_in: EncoderSettings {
                dimensions: NonZeroU32::new(self.dimensions),
                matryoshka_dims: Some(self.matryoshka_dims.iter().copied().filter_map(NonZeroU32::new).collect()),
                max_tokens: NonZeroU32::new(self.max_tokens),
                pooling: Some(Pooling::Mean),
                normalize: Some(self.normalize),
                prompts: Some(prompts),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, ConfigSources};

    fn config(toml: &str) -> Config {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs_err::write(file.path(), toml).expect("written");
        let sources = ConfigSources { file: Some(file.path().to_owned()), ..ConfigSources::default() };
        Config::load(&sources).expect("a good file")
    }

    fn catalog(toml: &str) -> Result<Vec<ModelInfo>, CatalogError> {
        let mut config = config(toml);
        config.models.data_dir = "/".into();
        Catalog::from_config(&config.ai, &config.models).map(|catalog| catalog.into_models().collect())
    }

    #[test]
    fn an_entry_of_a_built_in_name_inherits_what_it_leaves_out() {
        let models =
            catalog("[[ai.additional_models]]\nname = \"BERT-base-uncased\"\npath = \"b.onnx\"\nmax_tokens = 128")
                .expect("a catalog");
        let bert = models.iter().find(|model| model.answers_to("bert-base-uncased")).expect("listed");
        let settings = bert.expected();
        assert_eq!(models.len(), 3);
        assert_eq!(bert.source, ModelSource::File { onnx: "/models/b.onnx".into(), tokenizer: None });
        assert_eq!((settings.pooling, settings.max_tokens), (Some(Pooling::Mean), NonZeroU32::new(128)));
        assert!(bert.answers_to("google-bert/bert-base-uncased"));
    }

    #[test]
    fn a_built_in_model_names_the_repository_that_its_files_are_from() {
        let repository = |setting: &str| {
            let entry = format!("[[ai.additional_models]]\nname = \"bert-base-uncased\"\n{setting}");
            let models = catalog(&entry).expect("a catalog");
            models.into_iter().find(|model| model.answers_to("bert-base-uncased")).expect("listed").hub_repository
        };
        assert_eq!(repository("pinned = true").as_deref(), Some("google-bert/bert-base-uncased"));
        assert_eq!(repository("repository = \"mine/bert\"").as_deref(), Some("mine/bert"));
        assert_eq!(repository("path = \"bert.onnx\""), None);
    }

    #[test]
    fn a_new_model_needs_files() {
        let refused = catalog("[[ai.additional_models]]\nname = \"mine\"").expect_err("no path");
        assert_eq!(refused, CatalogError::NoPath(ModelName::parse("mine").expect("a name")));
    }

    #[test]
    fn a_word_means_one_model_that_exists() {
        let unknown = catalog("[ai.aliases]\n\"text-embedding-3-small\" = \"nothing\"").expect_err("unknown");
        assert!(unknown.to_string().contains("all-MiniLM-L6-v2"), "{unknown}");
        let taken = catalog("[ai.aliases]\n\"nomic-embed-text-v1.5\" = \"all-MiniLM-L6-v2\"").expect_err("taken");
        assert!(matches!(taken, CatalogError::Ambiguous { .. }), "{taken}");
        assert!(catalog("[ai]\nmodel_name = \"nothing\"").is_err());
    }

    #[test]
    fn one_model_alone_is_known_when_several_are_not_wanted() {
        let models = catalog("[ai]\nmulti_model_enabled = false").expect("a catalog");
        assert_eq!(models.iter().map(|model| model.name.as_str()).collect::<Vec<_>>(), ["all-MiniLM-L6-v2"]);
    }

    #[test]
    fn what_an_installation_brings_is_taken_where_the_data_directory_has_none() {
        let [own, system] = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
        let mut config = config("");
        config.models.data_dir = own.path().to_owned();
        config.models.system_dir = Some(system.path().to_owned());
        let folder = |of: &tempfile::TempDir, name: &str| of.path().join("models").join(name);
        for brought in ["all-MiniLM-L6-v2", "bert-base-uncased"] {
            fs_err::create_dir_all(folder(&system, brought)).expect("made");
        }
        fs_err::create_dir_all(folder(&own, "bert-base-uncased")).expect("made");
        let catalog = Catalog::from_config(&config.ai, &config.models).expect("a catalog");
        let source = |name: &str| {
            let found = catalog.iter().find(|model| model.answers_to(name)).expect("listed");
            found.source.clone()
        };
        assert_eq!(source("all-MiniLM-L6-v2"), ModelSource::Folder(folder(&system, "all-MiniLM-L6-v2")));
        assert_eq!(source("bert-base-uncased"), ModelSource::Folder(folder(&own, "bert-base-uncased")));
        assert!(matches!(source("nomic-embed-text-v1.5"), ModelSource::Hub(_)));
    }
}
