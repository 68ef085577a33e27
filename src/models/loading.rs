//! How a claimed load and a claimed unload go.
//!
//! Loads take turns. Before one starts, idle models make room for what it took last time (`eviction.rs`); when it has
//! ended, what it took now is measured and remembered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{counter, histogram};
use parking_lot::Mutex;
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

use super::canary;
use super::entry::Entry;
use super::error::LoadError;
use super::hub::{HubError, Progress};
use super::ledger::{LedgerError, SpaceRecord};
use super::lifecycle::{Failure, IllegalMove};
use super::loaded::{LoadedFacts, LoadedModel};
use super::manager::MultiModelManager;
use super::memory::{Expected, Held, Memory, give_back};
use super::standing::Standing;
use crate::domain::{ModelName, ModelSource};
use crate::engine::Runtime;
use crate::shutdown::blocking;
use crate::telemetry::{self, with_causes};

/// How often who follows a download is told how far it is.
const SHOW_PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// How long a model that has been loaded is kept for those who waited for it, before it may be unloaded again.
const HAND_OVER: Duration = Duration::from_secs(1);

impl MultiModelManager {
    /// Carries out a claimed load and logs how it ended.
    pub(super) async fn load(&self, entry: &Arc<Entry>) {
        if !self.download(entry).await {
            return;
        }
        let name = &entry.info.name;
        let _turn = tokio::select! {
            biased;
            () = self.wanted_no_more(entry) => {
                tracing::info!(model = %name, "the server is stopping and nobody waits for the model: it is not loaded");
                return report(entry.give_up_load(), name);
            }
            turn = self.load_turn.acquire() => turn.expect("the semaphore is never closed"),
        };
        if entry.is_deleted() {
            // Others would have to make room for it.
            tracing::info!(model = %name, "the model was deleted before it was loaded");
            return report(entry.give_up_load(), name);
        }
        tracing::info!(model = %name, "loading a model");
        let started = Instant::now();
        let result = self.load_in_turn(entry).await;
        let label = name.to_string();
        if result.is_ok() {
            histogram!(telemetry::MODEL_LOAD_DURATION, "model" => label.clone())
                .record(started.elapsed().as_secs_f64());
        }
        let outcome = if result.is_ok() { "loaded" } else { "failed" };
        counter!(telemetry::MODEL_LOADS, "model" => label, "outcome" => outcome).increment(1);
        report(entry.finish_load(result.map(announce).map_err(|error| self.failure(entry, &error))), name);
        self.compare_ready(entry).await;
        hand_over(entry).await;
    }

    fn failure(&self, entry: &Entry, error: &LoadError) -> Failure {
        let reason = with_causes(error);
        tracing::error!(model = %entry.info.name, "the model cannot be loaded: {reason}");
        let failed_at = Instant::now();
        let before = entry.status().failure;
        let retry_at = failed_at + error.cooldown(self.timing.failed_load_cooldown, before.as_ref());
        Failure { reason, kind: error.kind(), failed_at, retry_at, permanent: error.is_permanent() }
    }

    /// Tells at the start of downloads that the last run did not end.
    pub(super) fn say_what_was_cut_off(&self) {
        for status in self.list() {
            let ModelSource::Hub(source) = &status.info.source else { continue };
            let bytes = self.loader.hub.unfinished_bytes(source);
            if bytes > 0 {
                let model = &status.info.name;
                tracing::info!(%model, %source, bytes, "there is an unfinished download: the next load goes on with it");
            }
        }
    }

    /// Gives a claimed load up that begins with a download, when the server is stopping and has called one off. Says whether
    /// it did: who waits would else claim the next one, and so on.
    pub(super) fn gives_up_at_once(&self, entry: &Entry) -> bool {
        let is_too_late = self.shutdown.soft().is_cancelled() && entry.download_cancel().is_some();
        if is_too_late {
            report(entry.give_up_load(), &entry.info.name);
        }
        is_too_late
    }

    /// Fetches the files of a claimed load, if it begins with that. Says whether the load goes on.
    async fn download(&self, entry: &Arc<Entry>) -> bool {
        let (ModelSource::Hub(source), Some(cancel)) = (&entry.info.source, entry.download_cancel()) else {
            return true;
        };
        let name = &entry.info.name;
        let shown = Mutex::new(None::<Instant>);
        let show = |progress: Progress| {
            let mut shown = shown.lock();
            let is_due = shown.is_none_or(|at| at.elapsed() >= SHOW_PROGRESS_EVERY);
            if is_due || progress.done_bytes == progress.total_bytes {
                if shown.is_none() {
                    tracing::info!(model = %name, %source, bytes = progress.total_bytes, "downloading a model");
                }
                *shown = Some(Instant::now());
                entry.show_download(progress);
            }
        };
        let (library, hub, asked) = (self.loader.runtime_library.clone(), self.loader.hub.clone(), source.clone());
        let fetch = async {
            let look = move || {
                // Where set-up was never run, nothing that comes could be loaded, and what to do is not the hub's to say.
                Runtime::locate(&library)?;
                hub.local(&asked).map_err(LoadError::from)
            };
            // As the load of a model of a folder, one whose files are here goes on while the server is stopping.
            if blocking(look).await?.is_some() {
                return Ok(());
            }
            tokio::select! {
                biased;
                () = self.shutdown.soft().cancelled() => Err(LoadError::from(HubError::Cancelled)),
                obtained = self.loader.hub.obtain(source, &show, &cancel) => obtained.map(drop).map_err(LoadError::from),
            }
        };
        let obtained = tokio::select! {
            () = cancel.cancelled() => Err(LoadError::from(HubError::Cancelled)),
            obtained = fetch => obtained,
        };
        match obtained {
            Ok(()) => {
                let goes_on = entry.finish_download();
                if goes_on == Ok(false) {
                    tracing::info!(model = %name, "the download was given up when it had ended; what has come is kept");
                }
                report(goes_on.map(|_| ()), name);
                return goes_on != Ok(false);
            }
            Err(LoadError::Hub(HubError::Cancelled)) => {
                tracing::info!(model = %name, "the download was given up; what has come is kept");
                report(entry.give_up_load(), name);
            }
            Err(error) => {
                counter!(telemetry::MODEL_LOADS, "model" => name.to_string(), "outcome" => "failed").increment(1);
                report(entry.finish_load(Err(self.failure(entry, &error))), name);
            }
        }
        false
    }

    async fn load_in_turn(&self, entry: &Arc<Entry>) -> Result<LoadedModel, LoadError> {
        let (loader, info) = (Arc::clone(&self.loader), Arc::clone(&entry.info));
        // Loads the runtime's libraries too: what they take is no model's.
        let expected = in_background(move || loader.expected(&info)).await?;
        self.memory.add_residue(expected.libraries_bytes);
        self.make_room(entry, expected).await?;
        let before = self.look_at_memory(Memory::held).await;
        let (loader, info) = (Arc::clone(&self.loader), Arc::clone(&entry.info));
        let mut model = in_background(move || loader.load(&info).inspect_err(|_| give_back())).await?;
        if let Err(error) = self.take_in(entry, &mut model, expected, before).await {
            if let Err(panic) = free(model).await {
                log_not_freed(&entry.info.name, &panic);
            }
            return Err(error);
        }
        Ok(model)
    }

    /// Looks at a model that was just loaded, notes what it takes, and makes room for it if that is more than expected.
    async fn take_in(
        &self,
        entry: &Arc<Entry>,
        model: &mut LoadedModel,
        expected: Expected,
        before: Held,
    ) -> Result<(), LoadError> {
        self.examine(entry, model).await?;
        let grown_bytes = self.look_at_memory(move |memory| memory.grown_bytes(before));
        let grown_bytes = grown_bytes.await;
        let memory_bytes = memory_of(grown_bytes, &model.facts, expected);
        let facts = Arc::make_mut(&mut model.facts);
        (facts.grown_bytes, facts.memory_bytes) = (grown_bytes, memory_bytes);
        if let Ok(_turn) = self.turn_to_record(entry).await {
            self.memory.record(&entry.info.name, model.facts.weights_bytes, memory_bytes);
        }
        Ok(self.shrink(entry, memory_bytes).await?)
    }

    /// Embeds the canary texts, which warms the model up too, and compares them with what the ledger has of its space.
    async fn examine(&self, entry: &Entry, model: &mut LoadedModel) -> Result<(), LoadError> {
        let canaries = canary::embed(model).await?;
        let standing = self.standing(entry, model, &canaries).await;
        if let Some(refusal) = standing.refusal(&model.name) {
            tracing::warn!(model = %model.name, "no grains can be written with the model: {refusal}");
        }
        *model.standing.write() = standing;
        model.canaries = canaries;
        Ok(())
    }

    /// How a model that makes these canaries stands to what the ledger has of its space.
    pub(super) async fn standing(&self, entry: &Entry, model: &LoadedModel, canaries: &[f32]) -> Standing {
        match self.compare(entry, model, canaries).await {
            Ok(standing) => standing,
            Err(error) => {
                // Where the database lies is the operator's to know; callers read the rest.
                tracing::warn!(model = %model.name, "{}", with_causes(&error));
                Standing { unknown: Some(error.to_string()), ..Standing::default() }
            }
        }
    }

    async fn compare(&self, entry: &Entry, model: &LoadedModel, canaries: &[f32]) -> Result<Standing, LedgerError> {
        let space = model.facts.fingerprint.space();
        let drift = if let Some(record) = self.ledger.space(&space).await? {
            canary::compare(&record, canaries, &model.facts.numeric_class)
        } else {
            self.ledger.record_space(&SpaceRecord::of(model, canaries.to_vec())).await?;
            None
        };
        let accepted = self.ledger.accepted_space(&model.name).await?;
        if accepted.is_none()
            && let Ok(_turn) = self.turn_to_record(entry).await
        {
            self.ledger.accept_space(&model.name, &space).await?;
        }
        Ok(Standing { accepted: accepted.filter(|accepted| *accepted != space), drift, unknown: None })
    }

    /// Carries out a claimed drain: waits for the model's requests and frees it. Goes on when the caller leaves, and when an
    /// inference is found not to end: that is not waited for, and neither does the stop wait.
    pub(super) async fn drain(&self, entry: &Arc<Entry>, model: Arc<LoadedModel>) {
        let soft = self.shutdown.soft().clone();
        let drain = self.shutdown.spawn("unload", drain(Arc::clone(entry), model, soft));
        tokio::select! {
            // The task is owned by the shutdown tracker and does not panic; what counts is that it has ended.
            _ = drain => {}
            () = entry.found_stuck() => {}
        }
    }
}

/// Lets those who waited for a model take it, whatever came of the load.
pub(super) async fn hand_over(entry: &Entry) {
    let deadline = Instant::now() + HAND_OVER;
    while entry.is_waited_for() && entry.loaded().is_some() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LoadError> + Send + 'static,
) -> Result<T, LoadError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| Err(LoadError::Panicked(panic.to_string())))
}

/// What a model takes, by what the process grew by when it was loaded. What will be looked up is an estimate, and takes it
/// no further than the one before the load.
fn memory_of(grown_bytes: u64, facts: &LoadedFacts, expected: Expected) -> u64 {
    let with_table = (grown_bytes + facts.looked_up_bytes).min(expected.bytes);
    grown_bytes.max(with_table).max(facts.least_memory_bytes())
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

/// Waits for the leases of a claimed drain to end, then frees the model. When the server is stopping, what does not end is
/// left to the end of the process.
async fn drain(entry: Arc<Entry>, model: Arc<LoadedModel>, soft: CancellationToken) {
    let is_for_nothing = || async {
        soft.cancelled().await;
        entry.found_stuck().await;
    };
    model.leases.close();
    let has_ended = tokio::select! {
        () = model.leases.wait() => true,
        () = is_for_nothing() => false,
    };
    if !has_ended {
        // Whoever drops the last of it waits for its threads.
        std::mem::forget(model);
        return;
    }
    let freed = tokio::select! {
        freed = free(model) => freed,
        () = is_for_nothing() => return,
    };
    if let Err(error) = freed {
        log_not_freed(&entry.info.name, &error);
    }
    report(entry.finish_drain(), &entry.info.name);
    tracing::info!(model = %entry.info.name, "the model was unloaded");
}

/// Drops a model where it holds up nobody: joining its threads and freeing its weights takes a moment.
fn free(model: impl Send + 'static) -> JoinHandle<()> {
    tokio::task::spawn_blocking(move || {
        drop(model);
        give_back();
    })
}

fn log_not_freed(name: &ModelName, error: &JoinError) {
    tracing::error!(model = %name, %error, "freeing the model failed");
}

fn report(moved: Result<(), IllegalMove>, name: &ModelName) {
    if let Err(error) = moved {
        tracing::error!(model = %name, %error, "a bug: a model's state changed in a way it cannot");
    }
}
