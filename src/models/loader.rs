//! From a catalog entry to a model in memory.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::RwLock;
use tokio_util::task::TaskTracker;

use super::cache::EmbeddingCache;
use super::error::LoadError;
use super::fingerprint::{ModelIdentity, SpaceChoice};
use super::folder::{self, ModelFiles};
use super::loaded::{LoadedFacts, LoadedModel};
use super::memory::WeightsInMemory;
use super::modules::{self, ModuleFile};
use crate::config::{EngineConfig, ProviderSetting, QueryLaneSetting};
use crate::domain::{Dimensions, EncoderSettings, ModelInfo, TruncationSide};
use crate::engine::provider::choose_automatically;
use crate::engine::{
    BatchLimits, CpuFeatures, Encoder, EncoderOptions, EncoderSpec, OutputKind, Provider, ProviderChoice, Runtime,
    SessionOptions,
};

/// Batches that one model runs at once unless the configuration says otherwise.
const MAX_DEFAULT_WORKERS: usize = 4;

/// Threads that work on one query together: more wait for each other longer than they help.
const MAX_QUERY_THREADS: usize = 4;

/// The largest weights of which `engine.query_lane = "auto"` keeps a second copy.
const MAX_QUERY_LANE_WEIGHTS_BYTES: u64 = 256 << 20;

/// Widths of `openvino` batches are multiples of this: a shape that was not seen before costs half a millisecond.
const OPENVINO_WIDTH_STEP: usize = 16;

/// What every load on this machine shares.
#[derive(Clone)]
pub struct Loader {
    /// The ONNX Runtime library.
    pub runtime_library: PathBuf,
    /// `[engine]`.
    pub engine: EngineConfig,
    /// What the CPU can do.
    pub features: CpuFeatures,
    /// Cores this process may use.
    pub cores: usize,
    /// Vectors of texts that were embedded before.
    pub cache: Option<Arc<EmbeddingCache>>,
}

impl Loader {
    /// Loads a model: reads its files, hashes them, opens sessions and runs a trial. Blocks.
    ///
    /// # Errors
    /// [`LoadError`], naming the file or the setting.
    pub fn load(&self, info: &ModelInfo) -> Result<LoadedModel, LoadError> {
        let started = Instant::now();
        let files = folder::read(&info.source)?;
        let settings = info.configured.or(&files.settings).or(&info.built_in);
        let max_tokens = max_tokens(&settings, &files)?;
        let (modules, hashed_modules) = modules::open(&files.modules)?;
        let runtime = Runtime::load(&self.runtime_library)?;
        let choice = self.choose_provider(&runtime);
        let spec = EncoderSpec {
            label: info.name.to_string(),
            onnx: files.onnx.clone(),
            tokenizer: files.tokenizer.clone(),
            pooling: settings.pooling,
            modules: modules.into(),
            hidden_size: files.hidden_size,
            expected_dimensions: settings.dimensions.map(NonZeroU32::get),
            vocabulary_size: files.vocabulary_size,
            max_tokens: max_tokens.get() as usize,
            runs_alone: files.quantizes_per_batch,
        };
        let weights_bytes = weights_bytes(&files);
        let encoder = Encoder::open(&runtime, &spec, self.options(info, choice, weights_bytes))?;
        let dimensions = dimensions(&settings, &encoder)?;
        let normalize = normalize(&settings, &encoder)?;
        let prompts = settings.prompts.unwrap_or_default();
        let native =
            SpaceChoice { dimensions: dimensions.native.get(), normalize, truncation_side: TruncationSide::Right };
        let identity = ModelIdentity::of(&files, &encoder, native, prompts.clone(), hashed_modules)?;
        let precision = if self.rounds_to_bf16(choice.provider) { "bfloat16" } else { "float32" };
        let facts = LoadedFacts {
            fingerprint: identity.native(),
            dimensions,
            max_tokens: max_tokens.get(),
            pooling: encoder.pooling(),
            normalize,
            prompts,
            provider: choice,
            precision,
            numeric_class: format!("{}, {precision}, ONNX Runtime {}", choice.provider, runtime.version()),
            weights_bytes,
            memory_bytes: 0,
            load_time: started.elapsed(),
        };
        Ok(LoadedModel {
            name: info.name.clone(),
            encoder,
            cache: self.cache.clone(),
            identity,
            facts: Arc::new(facts),
            standing: RwLock::default(),
            ailment: RwLock::default(),
            leases: TaskTracker::new(),
        })
    }

    /// Loads the runtime library, so that its memory is not counted as a model's. Blocks.
    ///
    /// # Errors
    /// When it is missing or cannot be used.
    pub fn load_runtime(&self) -> Result<(), LoadError> {
        Runtime::load(&self.runtime_library)?;
        Ok(())
    }

    /// What a model's weights will take, from its files alone. Blocks for some milliseconds.
    ///
    /// # Errors
    /// When a file is missing or malformed.
    pub(super) fn weights_of(&self, info: &ModelInfo) -> Result<WeightsInMemory, LoadError> {
        let file_bytes = weights_bytes(&folder::read(&info.source)?);
        Ok(WeightsInMemory { file_bytes, n_sessions: 1 + u64::from(self.has_query_lane(file_bytes)) })
    }

    fn has_query_lane(&self, weights_bytes: u64) -> bool {
        match self.engine.query_lane {
            QueryLaneSetting::Auto => weights_bytes <= MAX_QUERY_LANE_WEIGHTS_BYTES && self.cores > 1,
            QueryLaneSetting::On => true,
            QueryLaneSetting::Off => false,
        }
    }

    fn choose_provider(&self, runtime: &Runtime) -> ProviderChoice {
        let configured = "`engine.provider` says so";
        match self.engine.provider {
            ProviderSetting::Auto => choose_automatically(self.features, runtime.has(Provider::OpenVino)),
            ProviderSetting::Cpu => ProviderChoice { provider: Provider::Cpu, reason: configured },
            ProviderSetting::Openvino => ProviderChoice { provider: Provider::OpenVino, reason: configured },
        }
    }

    fn rounds_to_bf16(&self, provider: Provider) -> bool {
        provider == Provider::OpenVino && self.features.multiplies_bf16()
    }

    fn options(&self, info: &ModelInfo, choice: ProviderChoice, weights_bytes: u64) -> EncoderOptions {
        let provider = choice.provider;
        let bf16 = self.rounds_to_bf16(provider);
        let workers = match (info.workers, self.engine.workers) {
            (Some(workers), _) => workers.get(),
            (None, 0) => self.cores.clamp(1, MAX_DEFAULT_WORKERS),
            (None, workers) => workers,
        };
        let threads = match provider {
            // The threads that run batches work too: the session's own ones fill up the cores they leave.
            Provider::Cpu => self.cores.saturating_sub(workers) + 1,
            Provider::OpenVino => self.cores.max(workers),
        };
        EncoderOptions {
            bulk: SessionOptions { provider, threads, streams: workers, bf16 },
            queries: self.has_query_lane(weights_bytes).then_some(SessionOptions {
                provider,
                threads: self.cores.clamp(1, MAX_QUERY_THREADS),
                streams: 1,
                bf16,
            }),
            batch: BatchLimits {
                max_batch_tokens: self.engine.max_batch_tokens,
                max_batch_texts: self.engine.max_batch_texts,
                max_queue_tokens: self.engine.max_queue_tokens,
                width_step: match provider {
                    Provider::Cpu => 1,
                    Provider::OpenVino => OPENVINO_WIDTH_STEP,
                },
            },
        }
    }
}

fn max_tokens(settings: &EncoderSettings, files: &ModelFiles) -> Result<NonZeroU32, LoadError> {
    let limit = settings.max_tokens.or_else(|| files.max_positions.and_then(NonZeroU32::new)).ok_or_else(|| {
        LoadError::Setting(
            "nothing says how many tokens the model takes: set its `max_tokens`, or use a model folder \
             with its sentence_bert_config.json, tokenizer_config.json or config.json"
                .to_owned(),
        )
    })?;
    match files.max_positions {
        Some(positions) if limit.get() > positions => Err(LoadError::Setting(format!(
            "`max_tokens` is {limit}, but by its config.json the model has positions for {positions} tokens"
        ))),
        _ => Ok(limit),
    }
}

fn dimensions(settings: &EncoderSettings, encoder: &Encoder) -> Result<Dimensions, LoadError> {
    let native = u32::try_from(encoder.dimensions()).ok().and_then(NonZeroU32::new);
    let native = native.ok_or_else(|| LoadError::Setting("the model's vectors have no length".to_owned()))?;
    if let Some(expected) = settings.dimensions
        && expected != native
    {
        return Err(LoadError::Setting(format!(
            "the configuration expects vectors of {expected} numbers (`ai.embedding_dim` or the model's `dimensions`), \
             but the model makes {native}"
        )));
    }
    let mut matryoshka = settings.matryoshka_dims.clone().unwrap_or_default();
    matryoshka.retain(|length| *length < native);
    matryoshka.sort_unstable_by(|left, right| right.cmp(left));
    Ok(Dimensions { native, matryoshka })
}

/// Whether the model's own vectors are normalised. A graph that pools has normalised or not, and nobody can tell from
/// outside: scaling to length 1 keeps every direction, so it is the default there.
fn normalize(settings: &EncoderSettings, encoder: &Encoder) -> Result<bool, LoadError> {
    let by_graph = encoder.output().kind == OutputKind::Texts;
    settings.normalize.or(by_graph.then_some(true)).ok_or_else(|| {
        LoadError::Setting(
            "nothing says whether the model's vectors have length 1: set its `normalize` to true or false, or use a \
             model folder with its modules.json"
                .to_owned(),
        )
    })
}

fn weights_bytes(files: &ModelFiles) -> u64 {
    std::iter::once(&files.onnx)
        .map(PathBuf::as_path)
        .chain(files.external_data.iter().map(|(_, path)| path.as_path()))
        .chain(files.modules.iter().filter_map(ModuleFile::weights))
        .filter_map(|path| fs_err::metadata(path).ok())
        .map(|metadata| metadata.len())
        .sum()
}
