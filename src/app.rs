//! The composition root: builds everything from a configuration, and runs it.
//!
//! Nothing imports this module but `main`, which calls [`start()`] and [`App::run`], the command line, which checks a
//! configuration as a start does, and the tests, which call [`App::build`] and [`App::run`] themselves.

mod error;
mod start;
mod upkeep;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

pub use self::error::AppError;
pub use self::start::start;
use crate::api;
use crate::api::access::Access;
use crate::api::answer_memory::AnswerMemory;
use crate::api::body_memory::BodyMemory;
use crate::api::connections::{self, ConnectionLimits, Serving, Tls, TlsFiles};
use crate::api::forwarded::Proxies;
use crate::api::guard::HostGuard;
use crate::api::state::{AppState, EngineFacts, Keeping, Limits, Shared};
use crate::api::timeouts::Timeouts;
use crate::auth::{Keys, KeysSetup, Policy};
use crate::change::compare::Comparisons;
use crate::change::{Reembeddings, ReembeddingsParts};
use crate::clock::Clock;
use crate::config::{BasePath, CollectorUrl, Config, MemoryBudget};
use crate::domain::ModelName;
use crate::engine::{self, CpuFeatures};
use crate::files::beside;
use crate::grains::store::{OpenOptions, SqliteStore};
use crate::grains::{Anchors, GrainLimits, Grains, GrainsParts, Indexes, Snapshots};
use crate::models::hub::{Hub, HubSettings};
use crate::models::{
    BudgetOf, Catalog, EmbeddingCache, Ledger, Loader, ManagerParts, ModelError, MultiModelManager, Timing,
    VolatileLedger, hardware,
};
use crate::shutdown::{Drained, Shutdown};
use crate::telemetry::traces::{Traces, TracesError, TracesSetup};
use crate::telemetry::{self, with_causes};

/// The step of the stop that may not end by itself: a batch that nobody waits for any more may be one that does not end.
const UNLOADING: &str = "unloading the models";

/// What that step has at least, after requests that took all the time there was.
const LEAST_TIME_TO_UNLOAD: Duration = Duration::from_secs(5);

/// A server that is ready to run.
pub struct App {
    state: AppState,
    store: Option<Arc<SqliteStore>>,
    shutdown: Shutdown,
    shutdown_timeout: Duration,
    connections: ConnectionLimits,
    tls: Option<Arc<Tls>>,
    base_path: BasePath,
    traces: Option<Traces>,
}

impl App {
    /// Opens the database, knows the models, loads those with `auto_load` and begins to load the active one.
    ///
    /// # Errors
    /// [`AppError`], with the setting at fault.
    pub async fn build(config: Config, shutdown: Shutdown) -> Result<Self, AppError> {
        let cores = hardware::cores(config.engine.cores);
        engine::allow_turns(cores);
        let keys = Arc::new(keys(&config)?);
        keys.warn_of_left_out();
        if keys.are_needed() {
            tracing::info!(n_keys = keys.count(), "requests need a key");
        }
        let timeouts = timeouts(&config)?;
        let tls = tls(&config)?;
        let metrics = telemetry::install_metrics()?;
        let traces = traces(&config)?;
        let catalog = catalog(&config)?;
        let store = if config.grains.enabled {
            Some(Arc::new(SqliteStore::open(OpenOptions::at(config.database_path()).with_cores(cores)).await?))
        } else {
            None
        };
        let ledger: Arc<dyn Ledger> = match &store {
            Some(store) => Arc::clone(store) as _,
            None => Arc::new(VolatileLedger::default()),
        };
        let models = models(&config, cores, catalog, &ledger, &shutdown).await?;
        let clock = Arc::new(Clock::default());
        let keeping = match &store {
            Some(store) => {
                let grains = grains(&config, store, &models, &clock, &shutdown).await?;
                let parts = ReembeddingsParts {
                    grains: grains.clone(),
                    models: models.clone(),
                    rollback_window: config.grains.rollback_window,
                    clock: Arc::clone(&clock),
                    shutdown: shutdown.clone(),
                };
                Some(Keeping { grains, reembeddings: Reembeddings::start(parts).await? })
            }
            None => None,
        };
        warn_of_unknown_models(&keys, &models);
        let body_memory = Arc::new(BodyMemory::new(config.server.body_memory.max(config.server.max_body)));
        let answer_memory = Arc::new(AnswerMemory::new(config.server.answer_memory));
        let (bodies, answers) = (Arc::clone(&body_memory), Arc::clone(&answer_memory));
        models.ask_for_memory_of_requests(move || bodies.taken_bytes() + answers.taken_bytes());
        models.watch_memory();
        upkeep::keep_active_loadable(&shutdown, models.clone());
        upkeep::keep_keys(&shutdown, Arc::clone(&keys));
        if let Some(tls) = &tls {
            upkeep::keep_tls(&shutdown, Arc::clone(tls));
        }
        upkeep::keep_metrics(&shutdown, metrics.clone());
        upkeep::keep_run_memory(&shutdown);
        upkeep::keep_request_memory(&shutdown, Arc::clone(&body_memory), Arc::clone(&answer_memory));
        upkeep::watch_for_standstills(&shutdown);
        upkeep::watch_clock(&shutdown, clock);
        let state = AppState::from(Shared {
            models,
            keeping,
            comparisons: Comparisons::default(),
            ledger,
            limits: limits(&config),
            timeouts,
            places: Arc::new(Semaphore::new(config.server.max_concurrent_requests)),
            body_memory,
            answer_memory,
            engine: EngineFacts {
                max_batch_tokens: config.engine.max_batch_tokens,
                max_batch_texts: config.engine.max_batch_texts,
                max_request_tokens: config.engine.max_request_tokens,
                cores,
            },
            access: Access::new(keys, config.auth.open.clone()),
            guard: HostGuard::new(config.server.allowed_hosts.clone(), config.server.cors_origins.clone()),
            proxies: Proxies::new(config.server.trusted_proxies.clone()),
            leaving: shutdown.leaving().clone(),
            given_up: shutdown.hard().clone(),
            metrics,
            started_at: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        });
        Ok(Self {
            state,
            store,
            shutdown,
            shutdown_timeout: config.server.shutdown_timeout,
            connections: connection_limits(&config),
            tls,
            base_path: config.server.base_path,
            traces,
        })
    }

    /// How URLs of the server begin.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// All routes, with everything that stands around them.
    pub fn router(&self) -> Router {
        api::router(self.state.clone(), &self.base_path)
    }

    /// Serves until the shutdown begins, then finishes what was begun, unloads the models and closes the database.
    ///
    /// # Errors
    /// [`AppError::Serve`], or [`AppError::Unfinished`] when the time for what was begun was over, or a second signal
    /// came, at whatever point.
    pub async fn run(self, listener: TcpListener) -> Result<(), AppError> {
        let serving = Serving { router: self.router(), limits: self.connections, tls: self.tls.clone() };
        let serve = connections::serve(listener, serving, self.shutdown.clone());
        // A process that serves nobody is no use: however serving ends, the shutdown begins.
        let begin = self.shutdown.soft().clone().drop_guard();
        let server = self.shutdown.spawn("http", async move {
            let _begin = begin;
            serve.await;
        });
        self.shutdown.soft().cancelled().await;
        let deadline = Instant::now() + self.shutdown_timeout;
        match self.shutdown.drain(self.shutdown_timeout).await {
            Drained::Completely => {}
            Drained::TooLate(names) | Drained::GivenUp(names) => return Err(AppError::Unfinished(names)),
        }
        server.await.map_err(|join| AppError::Serve(std::io::Error::other(join)))?;
        let shutdown = &self.shutdown;
        let left = deadline.saturating_duration_since(Instant::now()).max(LEAST_TIME_TO_UNLOAD);
        let unload = tokio::time::timeout(left, self.state.models.unload_all());
        let unloaded = step(shutdown, UNLOADING, unload).await?;
        if let Some(keeping) = &self.state.keeping {
            step(shutdown, "saving the indexes", keeping.grains.save_indexes()).await?;
        }
        if let Some(store) = &self.store {
            step(shutdown, "closing the database", store.close()).await?;
        }
        if let Some(traces) = self.traces {
            let left = deadline.saturating_duration_since(Instant::now());
            step(shutdown, "sending the last traces", traces.finish(left)).await?;
        }
        // What still runs must not meet the end of the runtime library.
        if unloaded.is_err() || self.state.models.is_any_stuck() {
            return Err(AppError::Unfinished(vec![UNLOADING]));
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// Takes a step of the stop to its end, unless a second signal comes. What is cut short then is as after a kill: the
/// database loses nothing, and an index that is not saved is made again.
async fn step<T>(shutdown: &Shutdown, name: &'static str, work: impl Future<Output = T>) -> Result<T, AppError> {
    let done = shutdown.hard().run_until_cancelled(work).await;
    done.ok_or_else(|| AppError::Unfinished(vec![name]))
}

/// Sends traces to the configured collector, if there is one.
fn traces(config: &Config) -> Result<Option<Traces>, TracesError> {
    let telemetry = &config.telemetry;
    let setup = |collector: &CollectorUrl| TracesSetup {
        address: collector.for_traces(),
        service_name: telemetry.service_name.clone(),
        share: telemetry.trace_share.get(),
    };
    telemetry.otlp_endpoint.as_ref().map(setup).map(Traces::start).transpose()
}

/// The models, with those loaded that the configuration wants at the start.
///
/// # Errors
/// [`AppError`], of the database or of a model with `auto_load`.
pub(crate) async fn models(
    config: &Config,
    cores: usize,
    catalog: Catalog,
    ledger: &Arc<dyn Ledger>,
    shutdown: &Shutdown,
) -> Result<MultiModelManager, AppError> {
    let models = MultiModelManager::start(ManagerParts {
        catalog,
        models_dir: config.models.models_dir(),
        takes_registrations: config.ai.multi_model_enabled,
        memory_budget: memory_budget(config),
        budget_of: match config.models.memory_budget {
            MemoryBudget::Auto => BudgetOf::Process,
            MemoryBudget::Bytes(_) => BudgetOf::Models,
        },
        first_active: config.ai.model_name.clone(),
        loader: Loader {
            runtime_library: runtime_library(config),
            engine: config.engine.clone(),
            features: CpuFeatures::probe(),
            cores,
            hub: hub(config)?,
            cache: EmbeddingCache::with_capacity(config.models.embedding_cache.as_u64()),
            interactive: Arc::default(),
        },
        ledger: Arc::clone(ledger),
        shutdown: shutdown.clone(),
        timing: Timing {
            load_timeout: config.models.load_timeout,
            failed_load_cooldown: config.models.failed_load_cooldown,
            idle_unload: config.models.idle_unload,
        },
    })
    .await?;
    for entry in config.ai.additional_models.iter().filter(|entry| entry.auto_load) {
        // With `multi_model_enabled = false` the catalog has left the others out.
        let Ok(status) = models.status(&entry.name) else { continue };
        if status.disabled {
            tracing::warn!(
                model = %entry.name,
                "a model with `auto_load` is not loaded: it is disabled, until `POST /models/{}/load` enables it",
                entry.name
            );
        } else {
            auto_load(&models, &entry.name).await?;
        }
    }
    Ok(models)
}

/// Loads a model, however long that takes: a download may take longer than a request waits.
async fn auto_load(models: &MultiModelManager, name: &ModelName) -> Result<(), AppError> {
    loop {
        match models.load_model(name).await {
            Err(ModelError::Loading { .. } | ModelError::Draining { .. }) => {
                tracing::info!(model = %name, "a model with `auto_load` is still loading: the start waits for it");
            }
            ended => return ended.map(drop).map_err(AppError::AutoLoad),
        }
    }
}

/// What a request may cost.
fn limits(config: &Config) -> Limits {
    Limits {
        max_body: config.server.max_body,
        max_inputs: config.server.max_inputs,
        max_text: config.server.max_text,
        max_concurrent_requests: config.server.max_concurrent_requests,
        body_timeout: config.server.body_timeout,
        auto_truncate: config.engine.auto_truncate,
    }
}

/// What a connection may cost.
fn connection_limits(config: &Config) -> ConnectionLimits {
    ConnectionLimits {
        max_connections: config.server.max_connections,
        header_timeout: config.server.header_timeout,
        idle_timeout: config.server.idle_timeout,
        body_timeout: config.server.body_timeout,
    }
}

/// How long a request may take.
///
/// # Errors
/// [`AppError::Route`], for a time of no route.
pub(crate) fn timeouts(config: &Config) -> Result<Timeouts, AppError> {
    let of_routes = config.server.route_timeouts.iter().map(|(route, time)| (route.clone(), time.0)).collect();
    Timeouts::new(config.server.request_timeout, of_routes)
        .map_err(|source| AppError::Route { origin: config.origin("server.route_timeouts"), source })
}

/// The grains of a database, with the indexes that find them.
async fn grains(
    config: &Config,
    store: &Arc<SqliteStore>,
    models: &MultiModelManager,
    clock: &Arc<Clock>,
    shutdown: &Shutdown,
) -> Result<Grains, AppError> {
    let snapshots = Snapshots::at(snapshots_folder(store.path()));
    // The open database is this process's alone, and so are they.
    if let Err(error) = snapshots.remove_cut_off().await {
        tracing::warn!("{}", with_causes(&error));
    }
    let indexes = Indexes::open(store.as_ref(), index_folder(store.path())).await?;
    Ok(Grains::start(GrainsParts {
        store: Arc::clone(store) as _,
        models: models.clone(),
        ledger: Arc::clone(store) as _,
        indexes,
        anchors: Anchors::open(store.as_ref()).await?,
        snapshots,
        limits: GrainLimits {
            max_text_bytes: config.grains.max_text.as_u64(),
            auto_truncate: config.engine.auto_truncate,
            slow_search: config.grains.slow_search,
        },
        clock: Arc::clone(clock),
        shutdown: shutdown.clone(),
    }))
}

/// Where the indexes of a database are.
#[must_use]
pub fn index_folder(database: &Path) -> PathBuf {
    beside(database, ".index")
}

/// Where the snapshots of a database are.
#[must_use]
pub fn snapshots_folder(database: &Path) -> PathBuf {
    beside(database, ".snapshots")
}

/// The keys of the server.
///
/// # Errors
/// When their file cannot be used; [`AppError::OpenPort`] when there is none and other machines can reach the server.
pub fn keys(config: &Config) -> Result<Keys, AppError> {
    let keys = Keys::open(KeysSetup {
        configured: config.auth.keys.clone(),
        file: config.keys_path(),
        policy: if config.auth.disabled { Policy::Never } else { Policy::WhereThereAreKeys },
    })?;
    let host = &config.server.host;
    if config.auth.disabled || keys.are_needed() || host.is_loopback() {
        return Ok(keys);
    }
    Err(AppError::OpenPort { origin: config.origin("server.host"), host: host.to_string() })
}

/// Tells the log of keys whose model there is not, or not yet: it may be registered while the server runs.
fn warn_of_unknown_models(keys: &Keys, models: &MultiModelManager) {
    for (key, model) in keys.models() {
        if models.resolve(Some(model.as_str())).is_err() {
            tracing::warn!(
                %key,
                %model,
                "a key has a model that there is not: its requests that name none are refused until that is registered"
            );
        }
    }
}

/// The certificate that the configuration names.
///
/// # Errors
/// [`AppError::Tls`].
pub(crate) fn tls(config: &Config) -> Result<Option<Arc<Tls>>, AppError> {
    let (Some(certificate), Some(key)) = (config.server.tls_certificate.clone(), config.server.tls_key.clone()) else {
        return Ok(None);
    };
    Ok(Some(Arc::new(Tls::open(TlsFiles { certificate, key })?)))
}

/// The hub that the usual variables name, with `models.lock` in the models directory.
///
/// # Errors
/// [`AppError::Hub`], naming the variable.
pub fn hub(config: &Config) -> Result<Hub, AppError> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let has_cache = ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"].iter().any(|name| set(name).is_some());
    // Without a home the models directory holds what is downloaded.
    let beside = (!has_cache).then(|| config.models.models_dir().join("hub").display().to_string());
    let variable = |name: &str| set(name).or_else(|| beside.clone().filter(|_| name == "HF_HUB_CACHE"));
    let settings = HubSettings::from_variables(&variable).map_err(AppError::Hub)?;
    Ok(Hub::new(settings, config.models.models_dir().join("models.lock")))
}

/// What models may take of memory together, in bytes; `None` where the system does not say what there is.
#[must_use]
pub fn memory_budget(config: &Config) -> Option<u64> {
    match config.models.memory_budget {
        MemoryBudget::Auto => hardware::Machine::probe().memory.map(hardware::Memory::for_models),
        MemoryBudget::Bytes(bytes) => Some(bytes.as_u64()),
    }
}

/// The models that the configuration makes known.
///
/// # Errors
/// [`AppError::Catalog`].
pub fn catalog(config: &Config) -> Result<Catalog, AppError> {
    Catalog::from_config(&config.ai, &config.models)
        .map_err(|source| AppError::Catalog { origin: config.origin(source.key()), source })
}

/// The ONNX Runtime library: the configured one, that of `ORT_DYLIB_PATH`, or the one that `make setup` has put into the
/// data directory, or an installation into its folder.
#[must_use]
pub fn runtime_library(config: &Config) -> PathBuf {
    let configured = config.engine.runtime_library.clone();
    let of_environment = || std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()).map(PathBuf::from);
    configured.or_else(of_environment).unwrap_or_else(|| {
        let installed = |folder: &Path| folder.join("runtime/libonnxruntime.so");
        let own = installed(&config.models.data_dir);
        // Where neither has it, the data directory is where it should be.
        config
            .models
            .system_dir
            .as_deref()
            .map(installed)
            .filter(|system| !own.exists() && system.exists())
            .unwrap_or(own)
    })
}
