//! The composition root: builds everything from a configuration, and runs it.
//!
//! Nothing imports this module but `main` and the tests, which call [`App::build`] and [`App::run`] as `main` does.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::api;
use crate::api::access::Access;
use crate::api::connections::{self, ConnectionLimits};
use crate::api::guard::HostGuard;
use crate::api::state::{AppState, EngineFacts, Limits};
use crate::auth::{KeyFileError, Keys, KeysSetup, Policy};
use crate::change::compare::Comparisons;
use crate::change::{Reembeddings, ReembeddingsParts};
use crate::config::{BasePath, Config, MemoryBudget};
use crate::engine::CpuFeatures;
use crate::grains::store::{OpenOptions, SqliteStore, StoreError};
use crate::grains::{Anchors, GrainError, GrainLimits, Grains, GrainsParts, Indexes, Snapshots};
use crate::models::hub::{Hub, HubError, HubSettings};
use crate::models::lifecycle::Phase;
use crate::models::{
    Catalog, CatalogError, EmbeddingCache, Ledger, LedgerError, Loader, ManagerParts, ModelError, MultiModelManager,
    Timing, VolatileLedger, hardware,
};
use crate::shutdown::{Drained, Shutdown};
use crate::telemetry::{self, MetricsError};

/// How often histograms are folded: between two folds the recorder keeps every observation.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// How often the file of keys is looked at.
const REFRESH_KEYS: Duration = Duration::from_secs(1);

/// How often a failed load of the active model is looked at.
const RETRY_ACTIVE: Duration = Duration::from_secs(1);

/// A server that is ready to run.
pub struct App {
    state: AppState,
    store: Option<Arc<SqliteStore>>,
    shutdown: Shutdown,
    shutdown_timeout: Duration,
    connections: ConnectionLimits,
    base_path: BasePath,
}

/// Why a server cannot be built or run.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The configured models make no catalog.
    #[error("the configuration is refused:\n  {origin}")]
    Catalog {
        /// The file, variable or flag that says so.
        origin: String,
        /// The setting, and what is wrong with it.
        source: CatalogError,
    },
    /// The file of keys.
    #[error("the keys cannot be used")]
    Keys(#[from] KeyFileError),
    /// An open port is a decision, not an accident: beyond loopback it must be written down.
    #[error(
        "the configuration is refused:\n  {origin}: server.host: found {host:?}, which other machines can reach, and there \
         is no key; make one with `granary keys add`, or listen on a loopback address such as \"127.0.0.1\", or set \
         `auth.disabled = true` (GRANARY_AUTH__DISABLED=true) where a reverse proxy or a private network keeps strangers out"
    )]
    OpenPort {
        /// The file, variable or flag that says so.
        origin: String,
        /// The host.
        host: String,
    },
    /// The database.
    #[error("the database cannot be used")]
    Store(#[from] StoreError),
    /// The grains in it.
    #[error("the grains cannot be served")]
    Grains(#[from] GrainError),
    /// The record of what survives a restart.
    #[error("the active model of the last run cannot be known")]
    Ledger(#[from] LedgerError),
    /// A variable that says which hub models come from.
    #[error("the hub cannot be used")]
    Hub(#[source] HubError),
    /// A model with `auto_load`.
    #[error("a model with `auto_load = true` does not load")]
    AutoLoad(#[source] ModelError),
    /// The metrics recorder.
    #[error("metrics cannot be recorded")]
    Metrics(#[from] MetricsError),
    /// The listening socket.
    #[error("cannot listen on {host}:{port}, which `server.host` and `server.port` say")]
    Bind {
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The server ended by itself.
    #[error("the server stopped")]
    Serve(#[source] std::io::Error),
    /// The time to stop was over.
    #[error("stopped, but not in order: {} still running", .0.join(", "))]
    Unfinished(Vec<&'static str>),
}

impl App {
    /// Opens the database, knows the models, loads those with `auto_load` and begins to load the active one.
    ///
    /// # Errors
    /// [`AppError`], with the setting at fault.
    pub async fn build(config: Config, shutdown: Shutdown) -> Result<Self, AppError> {
        let keys = Arc::new(keys(&config)?);
        if keys.are_needed() {
            tracing::info!(n_keys = keys.count(), "requests need a key");
        }
        let metrics = telemetry::install_metrics()?;
        let catalog = catalog(&config)?;
        let store = if config.grains.enabled {
            Some(Arc::new(SqliteStore::open(OpenOptions::at(config.database_path())).await?))
        } else {
            None
        };
        let ledger: Arc<dyn Ledger> = match &store {
            Some(store) => Arc::clone(store) as _,
            None => Arc::new(VolatileLedger::default()),
        };
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        let models = MultiModelManager::start(ManagerParts {
            catalog,
            models_dir: config.models.models_dir(),
            takes_registrations: config.ai.multi_model_enabled,
            memory_budget: memory_budget(&config),
            first_active: config.ai.model_name.clone(),
            loader: Loader {
                runtime_library: runtime_library(&config),
                engine: config.engine.clone(),
                features: CpuFeatures::probe(),
                cores,
                hub: hub(&config)?,
                cache: EmbeddingCache::with_capacity(config.models.embedding_cache.as_u64()),
                interactive: Arc::default(),
            },
            ledger: Arc::clone(&ledger),
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
            if models.status(&entry.name).is_ok() {
                models.load_model(&entry.name).await.map_err(AppError::AutoLoad)?;
            }
        }
        let grains = match &store {
            Some(store) => Some(grains(&config, store, &models, &shutdown).await?),
            None => None,
        };
        let reembeddings = match &grains {
            Some(grains) => Some(
                Reembeddings::start(ReembeddingsParts {
                    grains: grains.clone(),
                    models: models.clone(),
                    rollback_window: config.grains.rollback_window,
                    shutdown: shutdown.clone(),
                })
                .await?,
            ),
            None => None,
        };
        keep_active_loadable(&shutdown, models.clone());
        keep_keys(&shutdown, Arc::clone(&keys));
        keep_metrics(&shutdown, metrics.clone());
        watch_for_standstills(&shutdown);
        let state = AppState {
            models,
            grains,
            reembeddings,
            comparisons: Comparisons::default(),
            ledger,
            limits: limits(&config),
            places: Arc::new(Semaphore::new(config.server.max_concurrent_requests)),
            engine: EngineFacts {
                max_batch_tokens: config.engine.max_batch_tokens,
                max_batch_texts: config.engine.max_batch_texts,
                cores,
            },
            access: Access::new(keys, config.auth.open.clone()),
            guard: Arc::new(HostGuard::new(config.server.allowed_hosts.clone(), config.server.cors_origins.clone())),
            metrics,
            started_at: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        };
        Ok(Self {
            state,
            store,
            shutdown,
            shutdown_timeout: config.server.shutdown_timeout,
            connections: ConnectionLimits {
                max_connections: config.server.max_connections,
                header_timeout: config.server.header_timeout,
                idle_timeout: config.server.idle_timeout,
            },
            base_path: config.server.base_path,
        })
    }

    /// All routes, with everything that stands around them.
    pub fn router(&self) -> Router {
        api::router(self.state.clone(), &self.base_path)
    }

    /// Serves until the shutdown begins, then finishes what was begun, unloads the models and closes the database.
    ///
    /// # Errors
    /// [`AppError::Serve`], or [`AppError::Unfinished`] when the time to stop was over or a second signal came.
    pub async fn run(self, listener: TcpListener) -> Result<(), AppError> {
        let router = self.router();
        let soft = self.shutdown.soft().clone();
        let server = self.shutdown.spawn("http", connections::serve(listener, router, self.connections, soft));
        self.shutdown.soft().cancelled().await;
        match self.shutdown.drain(self.shutdown_timeout).await {
            Drained::Completely => {}
            Drained::TooLate(names) | Drained::GivenUp(names) => return Err(AppError::Unfinished(names)),
        }
        server.await.map_err(|join| AppError::Serve(std::io::Error::other(join)))?;
        self.state.models.unload_all().await;
        if let Some(grains) = &self.state.grains {
            grains.save_indexes().await;
        }
        if let Some(store) = &self.store {
            store.close().await;
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// What a request may cost.
fn limits(config: &Config) -> Limits {
    Limits {
        max_body: config.server.max_body,
        max_inputs: config.server.max_inputs,
        max_concurrent_requests: config.server.max_concurrent_requests,
        request_timeout: config.server.request_timeout,
        body_timeout: config.server.body_timeout,
        auto_truncate: config.engine.auto_truncate,
    }
}

/// The grains of a database, with the indexes that find them.
async fn grains(
    config: &Config,
    store: &Arc<SqliteStore>,
    models: &MultiModelManager,
    shutdown: &Shutdown,
) -> Result<Grains, AppError> {
    let indexes = Indexes::open(store.as_ref(), index_folder(store.path())).await?;
    Ok(Grains::start(GrainsParts {
        store: Arc::clone(store) as _,
        models: models.clone(),
        ledger: Arc::clone(store) as _,
        indexes,
        anchors: Anchors::open(store.as_ref()).await?,
        snapshots: Snapshots::at(snapshots_folder(store.path())),
        limits: GrainLimits {
            max_text_bytes: config.grains.max_text.as_u64(),
            auto_truncate: config.engine.auto_truncate,
            slow_search: config.grains.slow_search,
        },
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

fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(suffix);
    path.into()
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

/// Opens the socket that the configuration names.
///
/// # Errors
/// [`AppError::Bind`], or what stands against the keys: no port is opened without them.
pub async fn bind(config: &Config) -> Result<(TcpListener, SocketAddr), AppError> {
    keys(config)?;
    let (host, port) = (config.server.host.as_str(), config.server.port);
    let refused = |source| AppError::Bind { host: host.to_owned(), port, source };
    let listener = TcpListener::bind((host, port)).await.map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    Ok((listener, address))
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

/// Loads the active model in the background: the port opens at once, and the first request waits for the load. A
/// failed load is tried again when it has cooled down, since a server that is not ready gets no request that would.
fn keep_active_loadable(shutdown: &Shutdown, models: MultiModelManager) {
    let soft = shutdown.soft().clone();
    shutdown.spawn("preload", async move {
        let mut every = tokio::time::interval(RETRY_ACTIVE);
        let mut first = true;
        loop {
            tokio::select! {
                () = soft.cancelled() => return,
                _ = every.tick() => {}
            }
            let active = models.active();
            let has_failed = models.status(&active).is_ok_and(|status| status.phase == Phase::Failed);
            if std::mem::take(&mut first) || has_failed {
                // Requests get the reason of a failure, and the log has it already.
                let _ = models.lease(&active).await;
            }
        }
    });
}

/// Takes over what `granary keys` changes.
fn keep_keys(shutdown: &Shutdown, keys: Arc<Keys>) {
    let (soft, blocking) = (shutdown.soft().clone(), shutdown.clone());
    shutdown.spawn("keys", async move {
        let mut every = tokio::time::interval(REFRESH_KEYS);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = soft.cancelled() => return,
                _ = every.tick() => {}
            }
            let keys = Arc::clone(&keys);
            if let Err(panic) = blocking.spawn_blocking("keys", move || keys.refresh()).await {
                tracing::error!("a bug: the keys could not be looked at: {panic}");
            }
        }
    });
}

fn keep_metrics(shutdown: &Shutdown, metrics: PrometheusHandle) {
    let soft = shutdown.soft().clone();
    shutdown.spawn("metrics", async move {
        let mut every = tokio::time::interval(METRICS_UPKEEP);
        loop {
            tokio::select! {
                () = soft.cancelled() => return,
                _ = every.tick() => metrics.run_upkeep(),
            }
        }
    });
}

fn watch_for_standstills(shutdown: &Shutdown) {
    let soft = shutdown.soft().clone();
    shutdown.spawn("standstills", async move {
        tokio::select! {
            () = soft.cancelled() => {}
            () = telemetry::tell_of_standstills() => {}
        }
    });
}
