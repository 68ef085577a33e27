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
use super::standing::LEAST_COSINE;
use crate::domain::ModelName;
use crate::engine::EngineError;

/// How often loaded models are looked at.
const PROBE_EVERY: Duration = Duration::from_secs(30);

/// How long a look waits for the vectors: longer, and the model has much to do, or does not get on at all.
const PATIENCE: Duration = Duration::from_secs(30);

/// Looks in a row at the same batch, about [`PROBE_EVERY`] apart: no text takes so long. They are counted, and not the
/// time, because a process that was stopped meanwhile has looked but once.
const LOOKS_AT_ONE_BATCH: u32 = 10;

/// What is wrong with a loaded model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ailment {
    /// The end of a sentence that begins with the model.
    pub what: &'static str,
    /// How that shows, and the way out where there is one.
    pub reason: String,
}

impl Ailment {
    fn does_not_embed(error: &EngineError) -> Self {
        Self { what: "does not embed any more", reason: with_causes(error) }
    }

    fn stuck() -> Self {
        Self {
            what: "does not embed any more",
            reason: "the runtime has been running one batch for more than five minutes. What waits behind it is not \
                     embedded, and the model cannot be unloaded: start the server anew"
                .to_owned(),
        }
    }

    fn has_moved(model: &ModelName, cosine: f64) -> Self {
        Self {
            what: "makes other vectors than when it was loaded",
            reason: format!(
                "canary texts have a cosine of only {cosine:.4} to those of its load (at least {LEAST_COSINE} is needed). \
                 Somebody has written into its files, and the runtime reads large weights from there as it uses them. Put \
                 the old files back, or unload it, `POST /models/{model}/unload`: the next load sees what is there"
            ),
        }
    }
}

/// How often in a row a model was found running the same batch.
#[derive(Debug, Default)]
pub(super) struct Looks {
    batch: Option<u64>,
    n_looks: u32,
}

impl Looks {
    /// Takes note of the batch that has been running for longest. Says whether it does not end.
    fn note(&mut self, batch: Option<u64>) -> bool {
        if batch.is_none() || self.batch != batch {
            *self = Self { batch, n_looks: 0 };
        }
        self.n_looks += 1;
        batch.is_some() && self.n_looks > LOOKS_AT_ONE_BATCH
    }
}

impl MultiModelManager {
    /// Probes every loaded model from time to time. Each was probed when it was loaded, by its canaries.
    pub(super) fn probe_loaded(&self) {
        let manager = self.clone();
        let soft = self.shutdown.soft().clone();
        self.shutdown.spawn("probe", async move {
            let mut every = tokio::time::interval(PROBE_EVERY);
            // Looks that were missed say nothing when they come all at once.
            every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
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
        let model = lease.model();
        let is_stuck = model.looks.lock().note(model.encoder.oldest_batch());
        let seen = if is_stuck {
            Some(Ailment::stuck())
        } else {
            match tokio::time::timeout(PATIENCE, canary::embed(model)).await {
                Ok(Ok(canaries)) => self.look_at(lease, &canaries).await,
                // Neither says anything of the model: it has much to do, or it is going.
                Err(_) | Ok(Err(EngineError::Overloaded { .. } | EngineError::Closed)) => return,
                Ok(Err(error)) => Some(Ailment::does_not_embed(&error)),
            }
        };
        let before = entry.note_ailment(lease.model(), seen.clone());
        match (before, seen) {
            (before, Some(now)) if before.as_ref().is_none_or(|before| before.what != now.what) => {
                let Ailment { what, reason } = now;
                tracing::error!(model = %lease.name(), "the model {what}: {reason}");
            }
            (Some(_), None) => tracing::info!(model = %lease.name(), "the model embeds again as it should"),
            _ => {}
        }
    }

    /// What is wrong with a model that makes these canaries now.
    async fn look_at(&self, lease: &Lease, canaries: &[f32]) -> Option<Ailment> {
        let Some(cosine) = canary::moved_since_load(lease.model(), canaries) else {
            self.compare_again(lease, canaries).await;
            return None;
        };
        let ailment = Ailment::has_moved(lease.name(), cosine);
        // Its vectors are not of the space that it stands for, and must not be written into it.
        lease.standing().write().unknown = Some(format!("it {}: {}", ailment.what, ailment.reason));
        Some(ailment)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_does_not_end_is_told_from_many_that_do() {
        let mut looks = Looks::default();
        for serial in 1..100 {
            assert!(!looks.note(Some(serial)), "each is another one");
        }
        for _ in 0..100 {
            assert!(!looks.note(None), "nothing runs");
        }
        let n_patient = (0..100).take_while(|_| !looks.note(Some(100))).count();
        assert_eq!(n_patient, LOOKS_AT_ONE_BATCH as usize);
        assert!(looks.note(Some(100)), "it still runs");
        assert!(!looks.note(Some(101)), "it has ended");
    }
}
