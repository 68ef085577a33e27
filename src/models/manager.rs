//! Several models in one process: found by name, loaded once for all who ask, unloaded when nobody holds them.
//!
//! Requests take a [`Lease`] on a model and keep it to the end, so that neither a switch nor an unload can take it from
//! under them. No lock is held across an `.await` or an inference: states change in short critical sections
//! (`entry.rs`), and whoever must wait watches for the next change.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{counter, histogram};
use parking_lot::RwLock;
use tokio::sync::Semaphore;

use super::catalog::Catalog;
use super::entry::{Eagerness, Entry, ModelStatus, Next, NextUnload};
use super::error::{LoadError, ModelError, with_causes};
use super::hardware::{Selection, Selector};
use super::ledger::{Ledger, LedgerError};
use super::lifecycle::{Failure, IllegalMove, Phase};
use super::loaded::{EmbedRequest, Embedded, Lease, LoadedModel};
use super::loader::Loader;
use super::memory;
use super::starting::{self, starting_model};
use crate::config::ModelChoice;
use crate::domain::{ModelInfo, ModelName, SpaceId};
use crate::shutdown::Shutdown;
use crate::telemetry;

/// What the manager is told of time.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long a request waits for a model that is loading.
    pub load_timeout: Duration,
    /// How long requests are answered with the reason of a failed load.
    pub failed_load_cooldown: Duration,
}

/// What [`MultiModelManager::start`] needs.
pub struct ManagerParts {
    /// The models.
    pub catalog: Catalog,
    /// The active model of a first start.
    pub first_active: ModelChoice,
    /// How models are loaded.
    pub loader: Loader,
    /// What survives a restart.
    pub ledger: Arc<dyn Ledger>,
    /// Owns the tasks that load and unload.
    pub shutdown: Shutdown,
    /// Deadlines.
    pub timing: Timing,
}

/// What a change of the active model did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switch {
    /// The model that was active before; the same one when nothing changed.
    pub previous: ModelName,
    /// The space of the model that is active now.
    pub space: SpaceId,
}

/// The models of the process. Clones share them.
#[derive(Clone)]
pub struct MultiModelManager {
    entries: Arc<RwLock<HashMap<ModelName, Arc<Entry>>>>,
    /// Names in the order of the catalog.
    order: Arc<RwLock<Vec<ModelName>>>,
    active: Arc<RwLock<ModelName>>,
    loader: Arc<Loader>,
    selector: Selector,
    ledger: Arc<dyn Ledger>,
    shutdown: Shutdown,
    timing: Timing,
    /// One load at a time: two that each fit in memory need not fit together.
    load_turn: Arc<Semaphore>,
    /// One switch at a time, so that the ledger and the pointer cannot end on different models. No request waits here.
    switch_turn: Arc<Semaphore>,
}

impl MultiModelManager {
    /// Knows the catalog's models and which is active; loads nothing.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn start(parts: ManagerParts) -> Result<Self, LedgerError> {
        let selector = Selector::of(&parts.loader, parts.catalog.expected_dimensions());
        let mut catalog = parts.catalog;
        let active = starting_model(&catalog, parts.first_active, selector.clone(), parts.ledger.as_ref()).await?;
        catalog.decide(&active);
        let infos: Vec<ModelInfo> = catalog.into_models().collect();
        let order = infos.iter().map(|info| info.name.clone()).collect();
        let entries: HashMap<_, _> =
            infos.into_iter().map(|info| (info.name.clone(), Arc::new(Entry::new(info)))).collect();
        Ok(Self {
            entries: Arc::new(RwLock::new(entries)),
            order: Arc::new(RwLock::new(order)),
            active: Arc::new(RwLock::new(active)),
            loader: Arc::new(parts.loader),
            selector,
            ledger: parts.ledger,
            shutdown: parts.shutdown,
            timing: parts.timing,
            load_turn: Arc::new(Semaphore::new(1)),
            switch_turn: Arc::new(Semaphore::new(1)),
        })
    }

    /// The active model's name.
    #[must_use]
    pub fn active(&self) -> ModelName {
        self.active.read().clone()
    }

    /// The model a caller's word means: a name or an alias, or the active model when there is none.
    ///
    /// # Errors
    /// [`ModelError::NotFound`].
    pub fn resolve(&self, word: Option<&str>) -> Result<ModelName, ModelError> {
        let Some(word) = word else { return Ok(self.active()) };
        let entries = self.entries.read();
        let by_name = ModelName::parse(word).ok().and_then(|name| entries.get(&name));
        let found = by_name.or_else(|| entries.values().find(|entry| entry.info.answers_to(word)));
        found.map(|entry| entry.info.name.clone()).ok_or_else(|| self.not_found(word))
    }

    /// Every model and its state, in the order of the catalog.
    #[must_use]
    pub fn list(&self) -> Vec<ModelStatus> {
        let entries = self.entries.read();
        self.order.read().iter().filter_map(|name| entries.get(name)).map(|entry| entry.status()).collect()
    }

    /// One model and its state.
    ///
    /// # Errors
    /// [`ModelError::NotFound`].
    pub fn status(&self, name: &ModelName) -> Result<ModelStatus, ModelError> {
        Ok(self.entry(name)?.status())
    }

    /// Loads a model, or joins a load that is under way. A model that is ready stays as it is.
    ///
    /// # Errors
    /// [`ModelError::Failed`] with the reason, or [`ModelError::Loading`] when it takes longer than a request waits.
    pub async fn load_model(&self, name: &ModelName) -> Result<ModelStatus, ModelError> {
        let entry = self.entry(name)?;
        drop(self.lease_entry(&entry, Eagerness::ByHand).await?);
        Ok(entry.status())
    }

    /// Unloads a model when the requests that hold it have ended; the next request for it loads it again. Goes on when
    /// the caller leaves.
    ///
    /// # Errors
    /// [`ModelError::NotFound`].
    pub async fn unload_model(&self, name: &ModelName) -> Result<ModelStatus, ModelError> {
        let entry = self.entry(name)?;
        loop {
            let mut changes = entry.watch();
            match entry.claim_drain() {
                NextUnload::Done => return Ok(entry.status()),
                NextUnload::Wait => changes.next().await,
                NextUnload::Drain(model) => {
                    let drain = self.shutdown.spawn("unload", drain(Arc::clone(&entry), model));
                    // The task is owned by the shutdown tracker and does not panic; what counts is that it has ended.
                    let _ = drain.await;
                    return Ok(entry.status());
                }
            }
        }
    }

    /// Unloads every model, for the end of the process.
    pub async fn unload_all(&self) {
        for status in self.list() {
            if let Err(error) = self.unload_model(&status.info.name).await {
                tracing::error!("{error}");
            }
        }
    }

    /// Makes a model the one used by requests that name none. It is loaded first and recorded before the pointer moves.
    /// Goes on when the caller leaves, so that the record and the pointer cannot part.
    ///
    /// # Errors
    /// As [`Self::load_model`], or [`ModelError::Ledger`]; the active model stays what it was.
    pub async fn set_active(&self, name: &ModelName) -> Result<Switch, ModelError> {
        let entry = self.entry(name)?;
        let manager = self.clone();
        let switch = self.shutdown.spawn("switch", async move { manager.switch_to(&entry).await });
        match switch.await {
            Ok(switched) => switched,
            // The runtime ends the task only when the process ends; a panic in it is passed on.
            Err(ended) => std::panic::resume_unwind(ended.into_panic()),
        }
    }

    async fn switch_to(&self, entry: &Arc<Entry>) -> Result<Switch, ModelError> {
        let _turn = self.switch_turn.acquire().await.expect("the semaphore is never closed");
        // Held until the pointer has moved: an unload in between would send the first request back to loading.
        let lease = self.lease_entry(entry, Eagerness::ByHand).await?;
        self.ledger.record_active_model(&entry.info.name).await?;
        let previous = std::mem::replace(&mut *self.active.write(), entry.info.name.clone());
        tracing::info!(%previous, active = %entry.info.name, "the active model was set");
        Ok(Switch { previous, space: lease.facts().fingerprint.space() })
    }

    /// Looks at this machine, and ranks the models by how well they suit it.
    ///
    /// # Panics
    /// Never, unless the look itself does.
    pub async fn survey(&self) -> Selection {
        let (selector, models) = (self.selector.clone(), self.list());
        let look = move || selector.survey(models.iter().map(|status| status.info.as_ref()));
        tokio::task::spawn_blocking(look).await.unwrap_or_else(|ended| std::panic::resume_unwind(ended.into_panic()))
    }

    /// The model that suits this machine best. Changes nothing.
    pub async fn auto_select(&self) -> ModelName {
        let selection = self.survey().await;
        // There are always models, and the active one is one of them.
        let Some(best) = selection.best() else { return self.active() };
        starting::announce(best);
        best.model.clone()
    }

    /// The model that a change of the active one means: as [`Self::resolve`], or by [`Self::auto_select`] for `auto`.
    ///
    /// # Errors
    /// [`ModelError::NotFound`].
    pub async fn choose(&self, word: &str) -> Result<ModelName, ModelError> {
        if word.eq_ignore_ascii_case("auto") { Ok(self.auto_select().await) } else { self.resolve(Some(word)) }
    }

    /// Holds a model for a request, loading it when needed.
    ///
    /// # Errors
    /// [`ModelError::NotFound`], [`ModelError::Failed`] or [`ModelError::Loading`].
    pub async fn lease(&self, name: &ModelName) -> Result<Lease, ModelError> {
        let entry = self.entry(name)?;
        self.lease_entry(&entry, Eagerness::Request).await
    }

    /// Embeds with the named model.
    ///
    /// # Errors
    /// As [`Self::lease`] and [`Lease::embed`].
    pub async fn embed_with_model(&self, request: EmbedRequest, name: &ModelName) -> Result<Embedded, ModelError> {
        self.lease(name).await?.embed(request).await
    }

    /// Embeds with the active model.
    ///
    /// # Errors
    /// As [`Self::embed_with_model`].
    pub async fn embed_auto(&self, request: EmbedRequest) -> Result<Embedded, ModelError> {
        self.embed_with_model(request, &self.active()).await
    }

    fn entry(&self, name: &ModelName) -> Result<Arc<Entry>, ModelError> {
        let known = self.entries.read().get(name).cloned();
        known.ok_or_else(|| self.not_found(name.as_str()))
    }

    fn not_found(&self, word: &str) -> ModelError {
        ModelError::NotFound {
            // A caller's megabyte must not come back in the error and the log.
            word: word.chars().take(64).collect(),
            known: self.order.read().iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
        }
    }

    async fn lease_entry(&self, entry: &Arc<Entry>, eagerness: Eagerness) -> Result<Lease, ModelError> {
        let name = &entry.info.name;
        let deadline = tokio::time::Instant::now() + self.timing.load_timeout;
        let mut eagerness = eagerness;
        loop {
            let mut changes = entry.watch();
            match entry.lease_or_claim_load(eagerness, Instant::now()) {
                Next::Use(lease) => return Ok(lease),
                Next::GiveUp(failure) => {
                    return Err(ModelError::Failed {
                        name: name.clone(),
                        reason: failure.reason.clone(),
                        retry_after: failure.retry_after(Instant::now()),
                        permanent: failure.permanent,
                    });
                }
                Next::Load => {
                    // Owned by the tracker and not by this request: others wait for it when this one has gone.
                    let manager = self.clone();
                    let entry = Arc::clone(entry);
                    self.shutdown.spawn("load", async move { manager.load(&entry).await });
                }
                Next::Wait => {}
            }
            // By hand means one try now, not a try at each failure.
            eagerness = Eagerness::Request;
            if tokio::time::timeout_at(deadline, changes.next()).await.is_err() {
                return Err(ModelError::Loading { name: name.clone(), waited: self.timing.load_timeout });
            }
        }
    }

    /// Carries out a claimed load and logs how it ended.
    async fn load(&self, entry: &Entry) {
        let _turn = self.load_turn.acquire().await.expect("the semaphore is never closed");
        let name = &entry.info.name;
        tracing::info!(model = %name, "loading a model");
        let (loader, info) = (Arc::clone(&self.loader), Arc::clone(&entry.info));
        let started = Instant::now();
        let result = tokio::task::spawn_blocking(move || loader.load(&info))
            .await
            .unwrap_or_else(|panic| Err(LoadError::Panicked(panic.to_string())));
        let label = name.to_string();
        if result.is_ok() {
            histogram!(telemetry::MODEL_LOAD_DURATION, "model" => label.clone())
                .record(started.elapsed().as_secs_f64());
        }
        let outcome = if result.is_ok() { "loaded" } else { "failed" };
        counter!(telemetry::MODEL_LOADS, "model" => label, "outcome" => outcome).increment(1);
        let moved = entry.finish_load(result.map(announce).map_err(|error| {
            let reason = with_causes(&error);
            tracing::error!(model = %name, "the model cannot be loaded: {reason}");
            let retry_at = Instant::now() + self.timing.failed_load_cooldown;
            Failure { reason, retry_at, permanent: error.is_permanent() }
        }));
        report(moved, name);
        // What the load needed and the model does not, its file's pages and the graph before it was optimised.
        memory::give_back();
    }
}

fn announce(model: LoadedModel) -> LoadedModel {
    let facts = &model.facts;
    tracing::info!(
        model = %model.name,
        space = %facts.fingerprint.space(),
        provider = %facts.provider.provider,
        reason = %facts.provider.reason,
        dimensions = facts.dimensions.native,
        max_tokens = facts.max_tokens,
        load_ms = facts.load_time.as_secs_f64() * 1e3,
        "the model is ready"
    );
    model
}

/// Waits for the leases of a claimed drain to end, then frees the model.
async fn drain(entry: Arc<Entry>, model: Arc<LoadedModel>) {
    model.leases.close();
    model.leases.wait().await;
    // Joining its threads and freeing its weights takes a moment.
    let freed = tokio::task::spawn_blocking(move || {
        drop(model);
        memory::give_back();
    })
    .await;
    if let Err(error) = freed {
        tracing::error!(model = %entry.info.name, %error, "freeing the model failed");
    }
    report(entry.finish_drain(), &entry.info.name);
    tracing::info!(model = %entry.info.name, "the model was unloaded");
}

fn report(moved: Result<(), IllegalMove>, name: &ModelName) {
    if let Err(error) = moved {
        tracing::error!(model = %name, %error, "a bug: a model's state changed in a way it cannot");
    }
}

impl ModelStatus {
    /// Whether it is in memory and answers.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }
}
