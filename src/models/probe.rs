//! A look at loaded models from time to time: does each still embed a batch of texts as requests have them?
//!
//! A probe of one short word stays green while every real request fails for want of memory. What is seen is kept, so
//! that readiness answers at once, and shown in the metrics, for a model that is not the active one too. The texts are the
//! canaries, so what could not be compared when the model was loaded, because the database did not answer, is compared now.

use std::time::Duration;

use super::canary;
use super::entry::Entry;
use super::error::with_causes;
use super::loaded::Lease;
use super::manager::MultiModelManager;
use crate::engine::EngineError;

/// How often loaded models are looked at.
const PROBE_EVERY: Duration = Duration::from_secs(30);

impl MultiModelManager {
    /// Probes every loaded model from time to time. Each was probed when it was loaded, by its canaries.
    pub(super) fn probe_loaded(&self) {
        let manager = self.clone();
        let soft = self.shutdown.soft().clone();
        self.shutdown.spawn("probe", async move {
            let mut every = tokio::time::interval(PROBE_EVERY);
            loop {
                tokio::select! {
                    () = soft.cancelled() => return,
                    _ = every.tick() => {}
                }
                let entries: Vec<_> = manager.entries.read().values().cloned().collect();
                for entry in entries {
                    // Not as a request: a probe is no use that would keep a model from being unloaded.
                    let Some(lease) = entry.loaded().map(|model| Lease::of(&model)) else { continue };
                    tokio::select! {
                        () = soft.cancelled() => return,
                        () = manager.probe(&entry, &lease) => {}
                    }
                }
            }
        });
    }

    async fn probe(&self, entry: &Entry, lease: &Lease) {
        let seen = match canary::embed(lease.model()).await {
            Ok(canaries) => {
                self.compare_again(lease, &canaries).await;
                None
            }
            // Neither says anything of the model: it has much to do, or it is going.
            Err(EngineError::Overloaded { .. } | EngineError::Closed) => return,
            Err(error) => Some(with_causes(&error)),
        };
        let before = entry.note_ailment(lease.model(), seen.clone());
        match (before, seen) {
            (None, Some(reason)) => {
                tracing::error!(model = %lease.name(), "the model does not embed any more: {reason}");
            }
            (Some(_), None) => tracing::info!(model = %lease.name(), "the model embeds again"),
            _ => {}
        }
    }

    /// Compares with the ledger what could not be compared so far.
    async fn compare_again(&self, lease: &Lease, canaries: &[f32]) {
        let is_known = lease.standing().read().unknown.is_none();
        if is_known {
            return;
        }
        let standing = self.standing(lease.model(), canaries).await;
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
