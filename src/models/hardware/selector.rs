//! The choice of a model for this machine: probe, files and runtime library gathered, then ranked.

use std::num::NonZeroU32;
use std::path::PathBuf;

use serde::Serialize;

use super::probe::Machine;
use super::rank::{Candidate, Files, RankFacts, Ranked, rank};
use crate::config::EngineConfig;
use crate::domain::{EncoderSettings, ModelInfo, ModelName, Provider, Training};
use crate::engine::Runtime;
use crate::models::error::LoadError;
use crate::models::files;
use crate::models::folder::ModelFiles;
use crate::models::hub::Hub;
use crate::models::loader::{Loader, mapped_bytes, weights_bytes, wish};
use crate::telemetry::with_causes;

/// Chooses among models by this machine.
#[derive(Clone, Debug)]
pub struct Selector {
    /// The ONNX Runtime library.
    pub runtime_library: PathBuf,
    /// `[engine]`.
    pub engine: EngineConfig,
    /// Cores this process is to use.
    pub cores: usize,
    /// The length of vectors that the operator expects of the chosen model.
    pub dimensions: Option<NonZeroU32>,
    /// Where models come from that are not here yet.
    pub hub: Hub,
    /// What models may take of memory together, in bytes, where something says so.
    pub memory_budget: Option<u64>,
}

/// A runtime library that was loaded.
#[derive(Clone, Debug, Serialize)]
pub struct RuntimeFacts {
    /// Its file.
    pub library: PathBuf,
    /// Its version, as it says itself.
    pub version: Option<String>,
    /// What it was built with.
    pub providers: Vec<Provider>,
}

/// A machine, and how well each model suits it.
#[derive(Clone, Debug)]
pub struct Selection {
    /// The machine.
    pub machine: Machine,
    /// The runtime library, or why it cannot be used.
    pub runtime: Result<RuntimeFacts, String>,
    /// The models, the best first.
    pub ranked: Vec<Ranked>,
}

impl Selection {
    /// The model that `auto` takes: the best one that is not disabled; `None` where all are.
    #[must_use]
    pub fn best(&self) -> Option<&Ranked> {
        self.ranked.iter().find(|model| !model.disabled)
    }
}

impl Selector {
    /// How a server with this loader chooses.
    #[must_use]
    pub fn of(loader: &Loader, dimensions: Option<NonZeroU32>, memory_budget: Option<u64>) -> Self {
        let (runtime_library, engine) = (loader.runtime_library.clone(), loader.engine.clone());
        Self { runtime_library, engine, cores: loader.cores, dimensions, hub: loader.hub.clone(), memory_budget }
    }

    /// Looks at the machine, the runtime library and each model's files, and ranks the models, of which the operator has
    /// disabled some. Blocks.
    #[must_use]
    pub fn survey<'a>(&self, models: impl IntoIterator<Item = &'a ModelInfo>, disabled: &[ModelName]) -> Selection {
        let machine = Machine { cores: self.cores, ..Machine::probe() };
        let runtime =
            Runtime::load(&self.runtime_library).map_err(|error| with_causes(&error)).map(|runtime| RuntimeFacts {
                library: runtime.library().to_owned(),
                version: runtime.version(),
                providers: runtime.providers(),
            });
        let has = |provider| runtime.as_ref().is_ok_and(|runtime| runtime.providers.contains(&provider));
        let facts = RankFacts {
            has_openvino: has(Provider::OpenVino),
            has_cuda: has(Provider::Cuda),
            engine: &self.engine,
            dimensions: self.dimensions.map(NonZeroU32::get),
            memory_budget: self.memory_budget,
        };
        let candidates: Vec<Candidate> = models.into_iter().map(|info| self.candidate(info, disabled)).collect();
        let ranked = rank(&machine, &candidates, facts);
        Selection { machine, runtime, ranked }
    }

    fn candidate(&self, info: &ModelInfo, disabled: &[ModelName]) -> Candidate {
        let read = files::read(info, &self.hub);
        let approximate_bytes = info.approximate_size_bytes;
        // Only of a hub are there files to come.
        let mapped_bytes = read.as_ref().map_or(approximate_bytes.unwrap_or(0), mapped_bytes);
        let of_files = read.as_ref().map(|files| files.settings.clone()).unwrap_or_default();
        let settings = info.configured.or(&of_files).or(&info.built_in);
        // A folder that says how to pool was written by whoever trained the model to be pooled.
        let trained_to_be_pooled = of_files.pooling.map(|_| Training::Embeddings);
        Candidate {
            name: info.name.clone(),
            size: info.size,
            training: trained_to_be_pooled.or(info.training),
            weights_bytes: read.as_ref().ok().map(weights_bytes).or(approximate_bytes),
            mapped_bytes,
            dimensions: settings
                .dimensions
                .map(NonZeroU32::get)
                .or(read.as_ref().ok().and_then(|files| files.hidden_size)),
            max_tokens: settings.max_tokens.map(NonZeroU32::get),
            files: match read {
                Ok(files) => match unexpected_length(&files, &settings) {
                    Some(sentence) => Files::Unusable(sentence),
                    None => Files::Present,
                },
                Err(LoadError::NotDownloaded(_)) if !self.hub.is_offline() => Files::Fetchable,
                Err(error) => Files::Unusable(with_causes(&error)),
            },
            provider: wish(info, self.engine.provider),
            workers: info.workers,
            disabled: disabled.contains(&info.name),
        }
    }
}

/// Whether by its files a model makes vectors of another length than its settings expect. What dense layers make of them, a
/// load finds out.
fn unexpected_length(files: &ModelFiles, settings: &EncoderSettings) -> Option<String> {
    let made = files.hidden_size.filter(|_| files.modules.is_empty())?;
    let expected = settings.dimensions.filter(|expected| expected.get() != made)?;
    Some(format!("its vectors have {made} numbers, and `ai.embedding_dim` or its `dimensions` is {expected}"))
}
