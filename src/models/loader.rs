//! From a catalog entry to a model in memory: its files, where a hub's are checked; its settings, the operator's before the
//! files' before the built-in's; a session that is tried; and its identity.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Mutex, RwLock};
use tokio_util::task::TaskTracker;

use super::cache::EmbeddingCache;
use super::counts::Counts;
use super::error::LoadError;
use super::files::{self, Stamps};
use super::fingerprint::{ModelIdentity, SpaceChoice};
use super::folder::{FolderError, ModelFiles};
use super::hardware::{self, Footprint, Running};
use super::health::Health;
use super::hub::Hub;
use super::interactive::Interactive;
use super::loaded::{LoadedFacts, LoadedModel};
use super::memory::{self, Expected};
use super::modules;
use crate::config::{EngineConfig, QueryLaneSetting};
use crate::domain::{Dimensions, EncoderSettings, ModelInfo, ModelSource, Provider, ProviderSetting};
use crate::engine::provider::{self, ProviderFacts, ProviderWish};
use crate::engine::{
    BatchLimits, CpuFeatures, Encoder, EncoderOptions, EncoderSpec, EngineError, GraphFiles, OutputKind,
    ProviderChoice, Runtime, SessionOptions, TextTokenizer, run_memory,
};
use crate::telemetry::with_causes;

/// Batches that one model runs at once unless the configuration says otherwise: each takes memory.
const MAX_DEFAULT_WORKERS: usize = 32;

/// The same where lone texts are run by the bulk workers too, which leave them the other cores, or where one text may take
/// more memory than a full batch of others.
const FEW_DEFAULT_WORKERS: usize = 4;

/// Threads that work on one query together: more wait for each other longer than they help.
const MAX_QUERY_THREADS: usize = 4;

/// The largest weights of which `engine.query_lane = "auto"` keeps a second copy.
const MAX_QUERY_LANE_WEIGHTS_BYTES: u64 = 256 << 20;

/// Widths of `openvino` batches are multiples of this: a shape that was not seen before costs half a millisecond.
const OPENVINO_WIDTH_STEP: usize = 16;

/// Widths of `cuda` batches are multiples of this, because tensor cores want sizes that are:
/// <https://docs.nvidia.com/deeplearning/performance/dl-performance-matrix-multiplication/index.html#requirements-tc>.
const CUDA_WIDTH_STEP: usize = 8;

/// Tokens of padding that save a `cpu` batch nothing: a run costs what this many tokens do, and beyond that a row of its
/// own length costs less than one that is padded. Measured with all-MiniLM-L6-v2, where texts of 96 tokens and more gain
/// nothing by sharing a run.
const CPU_MAX_PADDING: usize = 10;

/// What every load on this machine shares.
#[derive(Clone)]
pub struct Loader {
    /// The ONNX Runtime library.
    pub runtime_library: PathBuf,
    /// `[engine]`.
    pub engine: EngineConfig,
    /// What the CPU can do.
    pub features: CpuFeatures,
    /// Cores this process is to use.
    pub cores: usize,
    /// Where models come from that are not here yet.
    pub hub: Hub,
    /// Vectors of texts that were embedded before.
    pub cache: Option<Arc<EmbeddingCache>>,
    /// Counts the requests that somebody waits for.
    pub interactive: Arc<Interactive>,
}

impl Loader {
    /// Loads a model: reads its files, hashes them, opens sessions and runs a trial. Blocks.
    ///
    /// # Errors
    /// [`LoadError`], naming the file or the setting.
    pub fn load(&self, info: &ModelInfo) -> Result<LoadedModel, LoadError> {
        let started = Instant::now();
        // Which files these are is known once they have been read, and what is said of them must be read after this.
        let stamps = Stamps::of(&files::read(info, &self.hub)?)?;
        let files = files::read(info, &self.hub)?;
        let mut apart = None;
        if let Some(hub) = &files.hub {
            hub.verify()?;
            // What lies in the cache of a hub is named by its content and stays. A folder's files are copied over at times.
            apart = files.graph_apart()?;
        }
        let settings = settings(info, &files);
        let max_tokens = max_tokens(&settings, &files)?;
        let (modules, hashed_modules) = modules::open(&files.modules)?;
        let runtime = Runtime::load(&self.runtime_library)?;
        let spec = EncoderSpec {
            label: info.name.to_string(),
            graph: GraphFiles {
                onnx: files.onnx.clone(),
                external_data: files.external_data().map(Path::to_owned).collect(),
                unfit_for_bf16: files.unfit_for_bf16.clone(),
                apart,
            },
            tokenizer: files.tokenizer.clone(),
            extra_tokens: files.extra_tokens.clone(),
            pooling: settings.pooling,
            modules: modules.into(),
            hidden_size: files.hidden_size,
            expected_dimensions: settings.dimensions.map(NonZeroU32::get),
            vocabulary_size: files.vocabulary_size,
            positions: files.positions.clone(),
            max_tokens: max_tokens.get() as usize,
            runs_alone: files.quantizes_per_batch,
        };
        let (weights_bytes, mapped_bytes) = (weights_bytes(&files), mapped_bytes(&files));
        let (encoder, choice) = self.open(&runtime, info, &spec, weights_bytes)?;
        check_added_tokens(&files, encoder.tokenizer())?;
        let looked_up_bytes =
            if choice.provider.is_gpu() { 0 } else { table_bytes(&files, &encoder).min(mapped_bytes) };
        let dimensions = dimensions(&settings, &encoder)?;
        if info.configured.matryoshka_dims.is_none()
            && let Some(length) = files.truncate_dim.filter(|length| *length < dimensions.native)
        {
            tracing::warn!(
                model = %info.name, %length,
                "config_sentence_transformers.json has vectors cut to their first numbers (`truncate_dim`), and those that \
                 are kept are whole: requests get short ones with `dimensions`"
            );
        }
        let normalize = normalize(&settings, &encoder)?;
        let prompts = settings.prompts.unwrap_or_default();
        let truncation_side = files.truncation_side.unwrap_or(encoder.tokenizer().truncation_side());
        let native = SpaceChoice { dimensions: dimensions.native.get(), normalize, truncation_side };
        let identity = ModelIdentity::of(&files, &encoder, native, prompts.clone(), hashed_modules)?;
        // Else the space of files that came meanwhile would be said of vectors that those before make.
        stamps.check(&files)?;
        let version = runtime.version().unwrap_or_else(|| "of an unknown version".to_owned());
        let numeric_class = format!("{}, {}, ONNX Runtime {version}", choice.provider, self.precision(choice.provider));
        let facts = LoadedFacts {
            fingerprint: identity.native(),
            dimensions,
            max_tokens: max_tokens.get(),
            truncation_side,
            pooling: encoder.pooling(),
            normalize,
            prompts,
            // What the operator sets stands for all that the files have.
            named_prompts: if info.configured.prompts.is_some() { BTreeMap::new() } else { files.named_prompts },
            precision: self.precision(choice.provider),
            provider: choice,
            numeric_class,
            weights_bytes,
            looked_up_bytes: looked_up_bytes * encoder.n_sessions() as u64,
            grown_bytes: 0,
            memory_bytes: 0,
            commit: files.hub.map(|model| model.commit),
            load_time: started.elapsed(),
        };
        let oldest_batch = encoder.oldest_batch();
        Ok(LoadedModel {
            name: info.name.clone(),
            encoder,
            cache: self.cache.clone(),
            interactive: Arc::clone(&self.interactive),
            counts: Arc::new(Counts::of(info.name.clone())),
            identity,
            facts: Arc::new(facts),
            standing: RwLock::default(),
            canaries: Vec::new(),
            health: Arc::new(Health::new(oldest_batch)),
            leases: TaskTracker::new(),
            last_used: Mutex::new(Instant::now()),
        })
    }

    /// What a model is expected to take of memory, by its files. Blocks: loads the runtime library, and OpenVINO's.
    ///
    /// # Errors
    /// When a file is missing or malformed, or the library cannot be used.
    pub(super) fn expected(&self, info: &ModelInfo) -> Result<Expected, LoadError> {
        let files = files::read(info, &self.hub)?;
        let runtime = Runtime::load(&self.runtime_library)?;
        let settings = settings(info, &files);
        let footprint = Footprint {
            weights_bytes: weights_bytes(&files),
            mapped_bytes: mapped_bytes(&files),
            max_tokens: max_tokens(&settings, &files)?.get(),
            dimensions: files.hidden_size.or(settings.dimensions.map(NonZeroU32::get)).unwrap_or(0),
        };
        let facts = self.provider_facts(&runtime, footprint);
        let provider = provider::choose(wish(info, self.engine.provider), &facts).provider;
        // A long text may begin or end meanwhile.
        let held_bytes = || memory::resident_bytes().saturating_sub(run_memory::kept_bytes());
        let before = held_bytes();
        let libraries_came = provider == Provider::OpenVino && runtime.bring_in_openvino();
        let libraries_bytes = if libraries_came { held_bytes().saturating_sub(before) } else { 0 };
        let bytes = if provider.is_gpu() {
            footprint.bytes_beside_gpu()
        } else {
            footprint.bytes(provider, running(&self.engine, info.workers, provider, footprint, self.cores))
        };
        Ok(Expected { weights_bytes: footprint.weights_bytes, bytes, libraries_bytes })
    }

    /// Opens the model on the provider that was asked for or that suits the machine; where it does not open, on the next
    /// best, with one warning that says what was lost.
    fn open(
        &self,
        runtime: &Runtime,
        info: &ModelInfo,
        spec: &EncoderSpec,
        weights_bytes: u64,
    ) -> Result<(Encoder, ProviderChoice), LoadError> {
        let footprint = Footprint {
            weights_bytes,
            // It decides of no option.
            mapped_bytes: 0,
            max_tokens: u32::try_from(spec.max_tokens).unwrap_or(u32::MAX),
            dimensions: spec.hidden_size.or(spec.expected_dimensions).unwrap_or(0),
        };
        let facts = self.provider_facts(runtime, footprint);
        let mut choice = provider::choose(wish(info, self.engine.provider), &facts);
        loop {
            let opened = Encoder::open(runtime, spec, self.options(info, choice.provider, footprint));
            let next = match &opened {
                Err(error) if may_be_the_providers_fault(error) => {
                    provider::choose_after(&choice, &with_causes(error), &facts)
                }
                _ => None,
            };
            match (opened, next) {
                (_, Some(next)) => choice = next,
                (opened, None) => {
                    let encoder = opened?;
                    if let Some(wanted) = choice.wanted {
                        let (model, provider) = (&info.name, choice.provider);
                        tracing::warn!(%model, %wanted, %provider, "the model runs on another provider: {}", choice.reason);
                    }
                    return Ok((encoder, choice));
                }
            }
        }
    }

    fn provider_facts(&self, runtime: &Runtime, footprint: Footprint) -> ProviderFacts {
        let has_cuda = runtime.has(Provider::Cuda);
        ProviderFacts {
            features: self.features,
            has_openvino: runtime.has(Provider::OpenVino),
            has_cuda,
            // Asked anew at each load: what others use of a GPU changes.
            gpu: if has_cuda { hardware::gpus().into_iter().next() } else { None },
            gpu_bytes: footprint.gpu_bytes(),
        }
    }

    fn precision(&self, provider: Provider) -> &'static str {
        match provider {
            Provider::Cuda => "tensorfloat32",
            _ if self.features.rounds_to_bf16(provider) => "bfloat16",
            _ => "float32",
        }
    }

    fn options(&self, info: &ModelInfo, provider: Provider, footprint: Footprint) -> EncoderOptions {
        let bf16 = self.features.rounds_to_bf16(provider);
        let running = running(&self.engine, info.workers, provider, footprint, self.cores);
        let threads = bulk_threads(provider, running.workers, self.cores);
        EncoderOptions {
            bulk: SessionOptions {
                provider,
                threads,
                streams: running.workers,
                stays_awake: false,
                bf16,
                is_tried_once: false,
            },
            queries: running.has_query_lane().then_some(SessionOptions {
                provider,
                threads: self.cores.clamp(1, MAX_QUERY_THREADS),
                streams: 1,
                stays_awake: true,
                bf16,
                is_tried_once: false,
            }),
            batch: BatchLimits {
                max_batch_tokens: self.engine.max_batch_tokens,
                max_batch_texts: self.engine.max_batch_texts,
                max_queue_tokens: self.engine.max_queue_tokens,
                max_request_tokens: self.engine.max_request_tokens,
                width_step: match provider {
                    Provider::Cpu => 1,
                    Provider::OpenVino => OPENVINO_WIDTH_STEP,
                    Provider::Cuda => CUDA_WIDTH_STEP,
                },
                max_width: footprint.max_tokens as usize,
                max_padding: match provider {
                    Provider::Cpu => CPU_MAX_PADDING,
                    Provider::OpenVino | Provider::Cuda => usize::MAX,
                },
            },
        }
    }
}

/// What is asked to execute a model: what its own entry says, else the setting for all.
pub(super) fn wish(info: &ModelInfo, for_all: ProviderSetting) -> ProviderWish {
    match info.provider {
        Some(setting) => ProviderWish { setting, said_by: "the model's `provider`" },
        None => ProviderWish { setting: for_all, said_by: "`engine.provider`" },
    }
}

/// How a model is run. As many batches at once as its own entry says, else the setting for all, else one for each core: in
/// bulk, streams of one thread each beat fewer of more threads.
pub(super) fn running(
    engine: &EngineConfig,
    own_workers: Option<NonZeroUsize>,
    provider: Provider,
    footprint: Footprint,
    cores: usize,
) -> Running {
    let has_query_lane = has_query_lane(engine.query_lane, provider, footprint.weights_bytes, cores);
    let takes_many = has_query_lane && footprint.max_tokens as usize <= engine.max_batch_tokens;
    let workers = match (own_workers, engine.workers) {
        (Some(workers), _) => workers.get(),
        // A GPU runs one batch at a time, and the next one is prepared meanwhile.
        (None, 0) if provider.is_gpu() => 1,
        (None, 0) => cores.clamp(1, if takes_many { MAX_DEFAULT_WORKERS } else { FEW_DEFAULT_WORKERS }),
        (None, workers) => workers,
    };
    Running {
        copies: 1 + u64::from(has_query_lane),
        workers,
        max_batch_tokens: engine.max_batch_tokens,
        max_batch_texts: engine.max_batch_texts,
    }
}

/// Threads that the runs of a model's bulk session share.
fn bulk_threads(provider: Provider, workers: usize, cores: usize) -> usize {
    match provider {
        // The threads that run batches work too: the session's own ones fill up the cores they leave.
        Provider::Cpu => cores.saturating_sub(workers) + 1,
        Provider::OpenVino => cores.max(workers),
        Provider::Cuda => 1,
    }
}

/// Whether a model has a session of its own for lone queries. All cores of a GPU work on any batch anyway.
fn has_query_lane(setting: QueryLaneSetting, provider: Provider, weights_bytes: u64, cores: usize) -> bool {
    match setting {
        QueryLaneSetting::Auto => weights_bytes <= MAX_QUERY_LANE_WEIGHTS_BYTES && cores > 1 && !provider.is_gpu(),
        QueryLaneSetting::On => true,
        QueryLaneSetting::Off => false,
    }
}

/// Whether another provider might open the model. Trial runs that fail count as an unsupported graph. Where a GPU has no
/// memory left, the machine may have some.
fn may_be_the_providers_fault(error: &EngineError) -> bool {
    matches!(
        error,
        EngineError::OpenSession { .. }
            | EngineError::NoMemoryToOpen { .. }
            | EngineError::ProviderMissing { .. }
            | EngineError::UnsupportedGraph { .. }
    )
}

/// Refuses a tokenizer that leaves out a token which its configuration has it add. Where the last token stands for a text,
/// another one would.
fn check_added_tokens(files: &ModelFiles, tokenizer: &TextTokenizer) -> Result<(), FolderError> {
    match files.added_tokens.iter().find(|(_, token)| tokenizer.leaves_out(token)) {
        Some((flag, token)) => Err(FolderError::Misfit {
            path: tokenizer.path().to_owned(),
            reason: format!(
                "tokenizer_config.json sets `{flag}`, and it adds no `{token}` to a text. Save it with a post-processor \
                 that does, or set `{flag}` to false if the model was trained without, in a folder of your own where it is \
                 a hub's"
            ),
        }),
        None => Ok(()),
    }
}

/// What the embedding table takes in fp32.
fn table_bytes(files: &ModelFiles, encoder: &Encoder) -> u64 {
    let row = files.hidden_size.map_or(encoder.dimensions() as u64, u64::from);
    (u64::from(encoder.tokenizer().highest_id()) + 1).saturating_mul(row).saturating_mul(4)
}

/// What the operator has set, else what the files say, else what is built in. A length that the files have vectors cut to
/// is one of those that are offered, unless the operator says which are. In the cache of a hub the file with the maximum
/// length may be missing, where another tool had no need of it: one that is inferred is then at most the built-in one.
fn settings(info: &ModelInfo, files: &ModelFiles) -> EncoderSettings {
    let mut settings = info.configured.or(&files.settings).or(&info.built_in);
    if files.infers_max_tokens && info.configured.max_tokens.is_none() && matches!(info.source, ModelSource::Hub(_)) {
        settings.max_tokens = [settings.max_tokens, info.built_in.max_tokens].into_iter().flatten().min();
    }
    if info.configured.matryoshka_dims.is_none()
        && let Some(length) = files.truncate_dim
    {
        let offered = settings.matryoshka_dims.get_or_insert_default();
        if !offered.contains(&length) {
            offered.push(length);
        }
    }
    settings
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
        let way_out = if expected < native {
            format!(
                ". If it was trained for shorter ones, leave that out, set its `matryoshka_dims = [{expected}]`, and send \
                 `dimensions` in requests"
            )
        } else {
            String::new()
        };
        return Err(LoadError::Setting(format!(
            "the configuration expects vectors of {expected} numbers (`ai.embedding_dim` or the model's `dimensions`), \
             but the model makes {native}{way_out}"
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

/// The size of a model's weight files.
pub(super) fn weights_bytes(files: &ModelFiles) -> u64 {
    size_of_files(files.weights())
}

/// What of that the runtime is expected to map, unless it is for a GPU: what lies outside the `.onnx` file, and that file too
/// in the cache of a hub.
pub(super) fn mapped_bytes(files: &ModelFiles) -> u64 {
    let graph = files.hub.iter().map(|_| files.onnx.as_path());
    size_of_files(files.external_data().chain(graph))
}

fn size_of_files<'a>(paths: impl Iterator<Item = &'a Path>) -> u64 {
    paths.filter_map(|path| fs_err::metadata(path).ok()).map(|metadata| metadata.len()).sum()
}

#[cfg(test)]
mod tests;
