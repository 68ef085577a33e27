//! Several models in one process: found by name, loaded once for all who ask, unloaded when nobody holds them.
//!
//! Requests take a [`Lease`] on a model and keep it to the end, so that neither a switch nor an unload can take it from
//! under them. No lock is held across an `.await` or an inference: states change in short critical sections
//! (`entry.rs`), and whoever must wait watches for the next change. How a load and an unload go is in `loading.rs`, who
//! must leave for lack of memory in `eviction.rs`, a change of the active model in `switching.rs`, of the catalog in
//! `registration.rs`, of a model's space in `spaces.rs`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::callers::Callers;
use super::catalog::Catalog;
use super::entry::{Eagerness, Entry, Next, NextUnload};
use super::error::ModelError;
use super::hardware::Selector;
use super::interactive::Interactive;
use super::ledger::{Ledger, LedgerError};
use super::lifecycle::Phase;
use super::loaded::{EmbedRequest, Embedded, Lease};
use super::loader::Loader;
use super::loading::hand_over;
use super::memory::{BudgetOf, Memory};
use super::starting::starting_model;
use super::status::ModelStatus;
use crate::config::ModelChoice;
use crate::domain::{ModelInfo, ModelName};
use crate::shutdown::Shutdown;

/// How often a stop looks whether somebody still waits for a load.
const LOOK_FOR_WAITERS_EVERY: Duration = Duration::from_millis(20);

/// What the manager is told of time.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long a request waits for a model that is loading, once those have ended that hold it while it is unloaded.
    pub load_timeout: Duration,
    /// How long requests are answered with the reason of a failed load.
    pub failed_load_cooldown: Duration,
    /// After how long without a request a model is unloaded; never when zero.
    pub idle_unload: Duration,
}

/// What [`MultiModelManager::start`] needs.
pub struct ManagerParts {
    /// The models.
    pub catalog: Catalog,
    /// Where relative paths of registered models start; none may lead out of it.
    pub models_dir: PathBuf,
    /// Whether models can be registered.
    pub takes_registrations: bool,
    /// What models may take of memory together, in bytes; `None` without a limit.
    pub memory_budget: Option<u64>,
    /// Whom that is for.
    pub budget_of: BudgetOf,
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

/// The models of the process. Clones share them.
#[derive(Clone)]
pub struct MultiModelManager {
    pub(super) entries: Arc<RwLock<HashMap<ModelName, Arc<Entry>>>>,
    /// Models that were deleted, until they are seen to be out of memory.
    pub(super) leaving: Arc<RwLock<Vec<Arc<Entry>>>>,
    /// Names in the order of the catalog.
    pub(super) order: Arc<RwLock<Vec<ModelName>>>,
    pub(super) active: Arc<RwLock<ModelName>>,
    pub(super) loader: Arc<Loader>,
    pub(super) selector: Selector,
    pub(super) ledger: Arc<dyn Ledger>,
    pub(super) memory: Arc<Memory>,
    pub(super) shutdown: Shutdown,
    pub(super) timing: Timing,
    pub(super) models_dir: Arc<Path>,
    pub(super) takes_registrations: bool,
    /// One load at a time: two that each fit in memory need not fit together.
    pub(super) load_turn: Arc<Semaphore>,
    /// One change of the active model or of the catalog at a time, so that the ledger and what is in memory cannot end
    /// on different models. No request waits here.
    pub(super) change_turn: Arc<Semaphore>,
    /// The same for what is recorded of a model by its name: that it is disabled, its space, and what it takes of memory.
    /// Nothing may be recorded of one that is deleted, for its name may be another's. The other turns are kept while a model
    /// loads, and whoever disables that calls the load off: who has this turn waits for neither of them.
    record_turn: Arc<Semaphore>,
    /// Who used each model lately.
    pub(super) callers: Arc<Callers>,
}

impl MultiModelManager {
    /// Knows the catalog's models, those registered in earlier runs, and which is active; loads nothing.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn start(parts: ManagerParts) -> Result<Self, LedgerError> {
        let selector = Selector::of(&parts.loader, parts.catalog.expected_dimensions(), parts.memory_budget);
        let mut catalog = parts.catalog;
        if parts.takes_registrations {
            for entry in parts.ledger.registered_models().await? {
                if let Err(error) = catalog.add_registered(&entry, &parts.models_dir) {
                    tracing::warn!(
                        model = %entry.name,
                        "a model registered earlier is left out, until `POST /models` replaces it or the configuration \
                         changes: {error}"
                    );
                }
            }
        }
        let active = starting_model(&catalog, parts.first_active, selector.clone(), parts.ledger.as_ref()).await?;
        catalog.decide(&active);
        let infos: Vec<ModelInfo> = catalog.into_models().collect();
        let order = infos.iter().map(|info| info.name.clone()).collect();
        let entries: HashMap<_, _> =
            infos.into_iter().map(|info| (info.name.clone(), Arc::new(Entry::new(info)))).collect();
        for name in parts.ledger.disabled_models().await? {
            if let Some(entry) = entries.get(&name) {
                tracing::info!(model = %name, "the model is disabled, as it was before");
                entry.set_disabled(true);
            }
        }
        let memory = Memory::new(parts.memory_budget, parts.budget_of);
        if let Some(cache) = parts.loader.cache.clone() {
            memory.ask(move || cache.size_bytes());
        }
        let manager = Self {
            entries: Arc::new(RwLock::new(entries)),
            leaving: Arc::default(),
            order: Arc::new(RwLock::new(order)),
            active: Arc::new(RwLock::new(active)),
            loader: Arc::new(parts.loader),
            selector,
            ledger: parts.ledger,
            memory: Arc::new(memory),
            shutdown: parts.shutdown,
            timing: parts.timing,
            models_dir: parts.models_dir.into(),
            takes_registrations: parts.takes_registrations,
            load_turn: Arc::new(Semaphore::new(1)),
            change_turn: Arc::new(Semaphore::new(1)),
            record_turn: Arc::new(Semaphore::new(1)),
            callers: Arc::default(),
        };
        manager.say_which_makers_are_unknown().await?;
        manager.say_what_was_cut_off();
        manager.probe_loaded();
        Ok(manager)
    }

    /// Asks this, whenever it looks at the memory of the process, what grains take of it, in bytes: that is none of the
    /// models'. It must not wait for a change of the indexes.
    pub fn ask_for_memory_of_grains(&self, taken_bytes: impl Fn() -> u64 + Send + Sync + 'static) {
        self.memory.ask(taken_bytes);
    }

    /// The same of what requests take.
    pub fn ask_for_memory_of_requests(&self, taken_bytes: impl Fn() -> u64 + Send + Sync + 'static) {
        self.memory.ask_of_passing(taken_bytes);
    }

    /// The requests that somebody waits for.
    #[must_use]
    pub fn interactive(&self) -> &Interactive {
        &self.loader.interactive
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
    /// [`ModelError::Failed`] with the reason, [`ModelError::Loading`] when it takes longer than a request waits,
    /// [`ModelError::Draining`] when requests hold it for longer than that while it is being unloaded, or
    /// [`ModelError::Stopping`].
    pub async fn load_model(&self, name: &ModelName) -> Result<ModelStatus, ModelError> {
        let entry = self.entry(name)?;
        self.enable(&entry).await?;
        drop(self.lease_entry(&entry, Eagerness::ByHand).await?);
        Ok(entry.status())
    }

    /// Unloads a model and keeps requests from loading it again, in later runs too, until it is loaded by hand. Goes on
    /// when the caller leaves, so that the record and what is in memory cannot part.
    ///
    /// # Errors
    /// [`ModelError::NotFound`] or [`ModelError::Ledger`]: then nothing has changed. [`ModelError::Conflict`] when an inference
    /// does not end: the model stays in memory, and is disabled all the same.
    pub async fn disable_model(&self, name: &ModelName) -> Result<ModelStatus, ModelError> {
        let entry = self.entry(name)?;
        let manager = self.clone();
        let work = async move {
            manager.disable_in_turn(&entry).await?;
            manager.unload_entry(&entry).await;
            entry.check_unload().map_err(|stuck| {
                ModelError::Conflict(format!(
                    "{stuck}. It is disabled from now on and takes no requests; its memory comes back with the next start"
                ))
            })?;
            Ok(entry.status())
        };
        self.shutdown.finish("disable", work).await
    }

    async fn disable_in_turn(&self, entry: &Entry) -> Result<(), ModelError> {
        let _turn = self.turn_to_record(entry).await?;
        self.ledger.record_disabled(&entry.info.name).await?;
        entry.set_disabled(true);
        tracing::info!(model = %entry.info.name, "the model was disabled");
        Ok(())
    }

    /// Lets requests load a model again that was disabled. Goes on when the caller leaves.
    pub(super) async fn enable(&self, entry: &Arc<Entry>) -> Result<(), ModelError> {
        let (manager, entry) = (self.clone(), Arc::clone(entry));
        self.shutdown.finish("enable", async move { manager.enable_in_turn(&entry).await }).await
    }

    async fn enable_in_turn(&self, entry: &Entry) -> Result<(), ModelError> {
        let _turn = self.turn_to_record(entry).await?;
        if entry.status().disabled {
            self.ledger.forget_disabled(&entry.info.name).await?;
            entry.set_disabled(false);
            tracing::info!(model = %entry.info.name, "the model was enabled");
        }
        Ok(())
    }

    /// Unloads a model when the requests that hold it have ended; the next request for it loads it again. Goes on when
    /// the caller leaves.
    ///
    /// # Errors
    /// [`ModelError::NotFound`], or [`ModelError::Stuck`] when an inference does not end.
    pub async fn unload_model(&self, name: &ModelName) -> Result<ModelStatus, ModelError> {
        let entry = self.entry(name)?;
        entry.check_unload()?;
        let (manager, leaving) = (self.clone(), Arc::clone(&entry));
        // A stop unloads every model by itself: it need not wait for this where the caller does not.
        let unload = self.shutdown.spawn_unawaited(async move { manager.unload_entry(&leaving).await });
        // Whatever came of it is in the entry.
        let _ = unload.await;
        entry.check_unload()?;
        Ok(entry.status())
    }

    pub(super) async fn unload_entry(&self, entry: &Arc<Entry>) {
        loop {
            // Else a model that is unloaded again and again would never be there for those who wait for it.
            hand_over(entry).await;
            let mut changes = entry.watch();
            match entry.claim_drain() {
                NextUnload::Done => return,
                NextUnload::Wait if entry.is_stuck() => return,
                NextUnload::Wait => changes.next().await,
                // One try: a request that wants the model all the same may begin its download anew.
                NextUnload::GiveUp => {
                    while entry.download_cancel().is_some_and(|cancel| cancel.is_cancelled()) {
                        changes.next().await;
                    }
                    return;
                }
                NextUnload::Drain(model) => return self.drain(entry, model).await,
            }
        }
    }

    /// Unloads every model, for the end of the process. What is stuck is left in memory.
    pub async fn unload_all(&self) {
        for entry in self.every_entry() {
            self.unload_entry(&entry).await;
        }
    }

    /// Whether an inference does not end, so that a model stays in memory for good.
    #[must_use]
    pub fn is_any_stuck(&self) -> bool {
        self.every_entry().iter().any(|entry| entry.is_stuck())
    }

    /// Holds a model for a request, loading it when needed.
    ///
    /// # Errors
    /// [`ModelError::NotFound`], [`ModelError::Disabled`], [`ModelError::Failed`], [`ModelError::Loading`] or
    /// [`ModelError::Stopping`].
    pub async fn lease(&self, name: &ModelName) -> Result<Lease, ModelError> {
        let entry = self.entry(name)?;
        self.lease_entry(&entry, Eagerness::Request).await
    }

    /// Has the next request try a model whose load has failed, whatever is left of the pause.
    pub fn end_pause(&self, name: &ModelName) {
        if let Ok(entry) = self.entry(name) {
            entry.end_pause(Instant::now());
        }
    }

    /// Embeds with the named model.
    ///
    /// # Errors
    /// As [`Self::lease`] and [`Lease::embed`].
    pub async fn embed_with_model(&self, request: EmbedRequest, name: &ModelName) -> Result<Embedded, ModelError> {
        self.lease(name).await?.embed(request).await
    }

    /// Waits for the caller's turn to change the active model or the catalog.
    pub(super) async fn turn_to_change(&self) -> SemaphorePermit<'_> {
        self.change_turn.acquire().await.expect("the semaphore is never closed")
    }

    /// Waits for the caller's turn to record something of a model by its name.
    ///
    /// # Errors
    /// [`ModelError::NotFound`] when the model was deleted.
    pub(super) async fn turn_to_record(&self, entry: &Entry) -> Result<SemaphorePermit<'_>, ModelError> {
        let turn = self.record_turn.acquire().await.expect("the semaphore is never closed");
        if entry.is_deleted() { Err(self.not_found(entry.info.name.as_str())) } else { Ok(turn) }
    }

    /// The models of the catalog, and those that were deleted and may be in memory, in no order.
    pub(super) fn every_entry(&self) -> Vec<Arc<Entry>> {
        let (entries, leaving) = (self.entries.read(), self.leaving.read());
        entries.values().chain(leaving.iter()).cloned().collect()
    }

    pub(super) fn entry(&self, name: &ModelName) -> Result<Arc<Entry>, ModelError> {
        let known = self.entries.read().get(name).cloned();
        known.ok_or_else(|| self.not_found(name.as_str()))
    }

    pub(super) fn not_found(&self, word: &str) -> ModelError {
        ModelError::NotFound {
            // A caller's megabyte must not come back in the error and the log.
            word: word.chars().take(64).collect(),
            known: self.order.read().iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
        }
    }

    pub(super) async fn lease_entry(&self, entry: &Arc<Entry>, eagerness: Eagerness) -> Result<Lease, ModelError> {
        let name = &entry.info.name;
        let _waiting = entry.wait();
        let mut deadline = tokio::time::Instant::now() + self.timing.load_timeout;
        let since = Instant::now();
        // Who gives an order may hold the model, and the drain would wait for that: an order has one time for all.
        let waits_for_drains = eagerness == Eagerness::Request;
        let mut eagerness = eagerness;
        let mut has_tried = false;
        loop {
            let mut changes = entry.watch();
            match entry.lease_or_claim_load(eagerness, since, Instant::now()) {
                Next::Use(lease) => return Ok(lease),
                Next::GiveUp(failure) => {
                    return Err(ModelError::Failed {
                        name: name.clone(),
                        reason: failure.reason.clone(),
                        retry_after: failure.retry_after(Instant::now()),
                        permanent: failure.permanent,
                        kind: failure.kind,
                    });
                }
                Next::Disabled => return Err(ModelError::Disabled { name: name.clone() }),
                Next::Deleted => return Err(self.not_found(name.as_str())),
                // One try shows whether its files are here.
                Next::Load if has_tried && self.gives_up_at_once(entry) => {
                    return Err(ModelError::Stopping { name: name.clone() });
                }
                // Owned by the tracker and not by this request: others wait for it when this one has gone.
                Next::Load => {
                    has_tried = true;
                    self.begin_load(entry);
                }
                Next::Wait => {}
            }
            // By hand means one try now, not a try at each failure.
            eagerness = Eagerness::Request;
            // How long the requests take that still hold the model says nothing of how long its load takes.
            if waits_for_drains && entry.status().phase == Phase::Draining {
                changes.next().await;
                deadline = tokio::time::Instant::now() + self.timing.load_timeout;
            } else if tokio::time::timeout_at(deadline, changes.next()).await.is_err() {
                let (name, waited) = (name.clone(), self.timing.load_timeout);
                return Err(if entry.status().phase == Phase::Draining {
                    ModelError::Draining { name, waited }
                } else {
                    ModelError::Loading { name, waited }
                });
            }
        }
    }

    /// Begins a claimed load, as a task that the stop waits for as long as somebody waits for the model. The load itself goes
    /// on beside the rest of the stop: nothing ends the runtime's part of it, and [`Self::unload_all`] finds what it leaves.
    fn begin_load(&self, entry: &Arc<Entry>) {
        let (manager, entry) = (self.clone(), Arc::clone(entry));
        self.shutdown.spawn("load", async move {
            let (loading, loaded) = (manager.clone(), Arc::clone(&entry));
            let load = manager.shutdown.spawn_unawaited(async move { loading.load(&loaded).await });
            tokio::select! {
                // Whatever came of it is in the entry.
                _ = load => {}
                () = manager.wanted_no_more(&entry) => {}
            }
        });
    }

    /// Waits until the server is stopping and nobody waits for the model.
    pub(super) async fn wanted_no_more(&self, entry: &Entry) {
        self.shutdown.soft().cancelled().await;
        while entry.is_waited_for() {
            tokio::time::sleep(LOOK_FOR_WAITERS_EVERY).await;
        }
    }
}

#[cfg(test)]
mod tests;
