//! A look at loaded models from time to time: does each still embed a batch of texts as requests have them?
//!
//! A probe of one short word stays green while every real request fails for want of memory. What is seen is kept, so
//! that readiness answers at once, and shown in the metrics, for a model that is not the active one too. The texts are the
//! canaries, so what could not be compared when the model was loaded, because the database did not answer, is compared now.

use std::sync::Arc;
use std::time::Duration;

use super::canary;
use super::entry::Entry;
use super::error::ModelError;
use super::health::{Ailment, Health, stuck};
use super::loaded::Lease;
use super::manager::MultiModelManager;
use crate::domain::ModelName;
use crate::engine::EngineError;

/// How often loaded models are looked at.
pub(super) const PROBE_EVERY: Duration = Duration::from_secs(30);

/// How long a look waits for the vectors: longer, and the model has much to do, or does not get on at all. A slow model that
/// never rests takes its time, for canaries are background work.
const PATIENCE: Duration = Duration::from_mins(5);

impl MultiModelManager {
    /// Probes every loaded model from time to time. Each was probed when it was loaded, by its canaries.
    pub(super) fn probe_loaded(&self) {
        let manager = self.clone();
        self.shutdown.every("probe", PROBE_EVERY, move || {
            for entry in manager.every_entry() {
                manager.look(&entry);
            }
            std::future::ready(())
        });
    }

    /// Waits until a look finds that an inference of a model does not end, and answers what that stands against. It answers
    /// at once when the model is not known any more.
    pub async fn found_stuck(&self, name: &ModelName) -> ModelError {
        match self.entry(name) {
            Ok(entry) => {
                entry.found_stuck().await;
                stuck(name, "does not embed")
            }
            Err(error) => error,
        }
    }

    /// Does work with a model, which is given up when a look finds that an inference of it does not end.
    ///
    /// # Errors
    /// The work's, and those of [`Self::found_stuck`].
    pub async fn unless_stuck<T, E: From<ModelError>>(
        &self,
        name: &ModelName,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        tokio::select! {
            done = work => done,
            error = self.found_stuck(name) => Err(error.into()),
        }
    }

    /// Refuses a model of which a look has found that an inference does not end.
    ///
    /// # Errors
    /// [`ModelError::Stuck`], or [`ModelError::NotFound`].
    pub fn check_answers(&self, name: &ModelName) -> Result<(), ModelError> {
        if self.entry(name)?.is_stuck() { Err(stuck(name, "does not embed")) } else { Ok(()) }
    }

    /// Looks at a model. Its vectors are waited for in a task of their own: a model that has much to do delays neither the
    /// looks at the others nor the next look at its batch.
    fn look(&self, entry: &Arc<Entry>) {
        // One that is being unloaded too, which ends with its last batch.
        let Some(health) = entry.health() else { return };
        if health.look_at_batch() {
            return self.note(entry, &health, Some(Ailment::stuck()));
        }
        if health.is_stuck() {
            // Its batch has ended after all. The vectors may be long in coming, of a model that has much to catch up with, and
            // never come of one that is being unloaded.
            self.note(entry, &health, None);
        }
        let Some(lease) = entry.loaded().map(|model| Lease::of_look(&model)) else { return };
        let Some(turn) = health.begin_look() else { return };
        let (manager, entry, soft) = (self.clone(), Arc::clone(entry), self.shutdown.soft().clone());
        self.shutdown.spawn("look", async move {
            let _turn = turn;
            tokio::select! {
                () = soft.cancelled() => {}
                () = manager.probe(&entry, &lease) => {}
            }
        });
    }

    async fn probe(&self, entry: &Entry, lease: &Lease) {
        let model = lease.model();
        let seen = match tokio::time::timeout(PATIENCE, canary::embed(model)).await {
            Ok(Ok(canaries)) => self.look_at(entry, lease, &canaries).await,
            // Neither says anything of the model: it has much to do, or it is going.
            Err(_) | Ok(Err(EngineError::Overloaded { .. } | EngineError::Closed)) => return,
            Ok(Err(error)) => Some(Ailment::does_not_embed(&error)),
        };
        // Its vectors are not of the space that it stands for, and must not be written into it.
        if let Some(ailment) = seen.as_ref().filter(|ailment| ailment.is_move()) {
            lease.standing().write().unknown = Some(format!("it {}: {}", ailment.what, ailment.reason));
        }
        // These vectors are another worker's than the one that does not get on.
        if !model.health.has_endless_batch() {
            self.note(entry, &model.health, seen);
        }
    }

    /// Keeps what was seen of a model, and says what is new of it.
    fn note(&self, entry: &Entry, health: &Arc<Health>, seen: Option<Ailment>) {
        let before = entry.note_ailment(health, seen.as_ref());
        // Some of what was made since the look before is of the weights that there were then.
        let has_moved = [&before, &seen].into_iter().flatten().any(Ailment::is_move);
        if let Some(cache) = self.loader.cache.as_ref().filter(|_| has_moved) {
            cache.empty();
        }
        match (before, seen) {
            (before, Some(now))
                if before.as_ref().is_none_or(|before| (before.what, before.kind) != (now.what, now.kind)) =>
            {
                let Ailment { what, reason, .. } = now;
                tracing::error!(model = %entry.info.name, "the model {what}: {reason}");
            }
            (Some(_), None) => tracing::info!(model = %entry.info.name, "the model embeds again as it should"),
            _ => {}
        }
    }

    /// What is wrong with a model that makes these canaries now.
    async fn look_at(&self, entry: &Entry, lease: &Lease, canaries: &[f32]) -> Option<Ailment> {
        let Some(cosine) = canary::moved_since_load(lease.model(), canaries) else {
            self.compare_again(entry, lease, canaries).await;
            return None;
        };
        Some(Ailment::has_moved(lease.name(), cosine))
    }

    /// Compares with the ledger what could not be compared so far.
    async fn compare_again(&self, entry: &Entry, lease: &Lease, canaries: &[f32]) {
        let is_known = lease.standing().read().unknown.is_none();
        if is_known {
            return;
        }
        let standing = self.standing(entry, lease.model(), canaries).await;
        let mut known = lease.standing().write();
        // An operator may have accepted the model's space meanwhile.
        if standing.unknown.is_some() || known.unknown.is_none() {
            return;
        }
        match standing.refusal(lease.name()) {
            None => tracing::info!(model = %lease.name(), "it is known again that the model makes its space"),
            Some(refusal) => {
                tracing::warn!(model = %lease.name(), "no grains can be written with the model: {refusal}");
            }
        }
        *known = standing;
    }
}
