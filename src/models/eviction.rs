//! Who must leave when memory is short, or when nobody has used it for long.
//!
//! A model that is to be loaded finds room, or is refused before it has driven anybody out for nothing. Which one is
//! needed least is in `memory.rs`; how it leaves, in `loading.rs`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use metrics::counter;

use super::entry::{Entry, NextUnload};
use super::lifecycle::Phase;
use super::loaded::LoadedModel;
use super::manager::MultiModelManager;
use super::memory::{Candidate, DoesNotFit, Expected, Memory, Others, first_to_go};
use crate::shutdown::blocking;
use crate::telemetry::{self, eviction, with_causes};

/// How often idle models and the memory in use are looked at.
const WATCH_EVERY: Duration = Duration::from_millis(500);

impl MultiModelManager {
    /// Unloads models until there is room for one that is to be loaded. What would not fit either once all had gone that
    /// may go drives nobody out.
    pub(super) async fn make_room(&self, entry: &Arc<Entry>, expected: Expected) -> Result<(), DoesNotFit> {
        loop {
            let others = self.in_memory();
            if others.n_models == 0 {
                self.look_at_memory(Memory::note_residue).await;
            }
            let Err(refusal) = self.check(entry, expected, others).await else { return Ok(()) };
            let left_bytes = self.memory.left_bytes(others);
            if refusal.needed_bytes.saturating_add(left_bytes) > refusal.budget_bytes {
                return Err(DoesNotFit { used_bytes: left_bytes, ..refusal });
            }
            if !self.evict_one(entry).await {
                // One that was being unloaded may have gone meanwhile.
                return self.check(entry, expected, self.in_memory()).await;
            }
        }
    }

    /// Whether a model fits beside those in memory.
    async fn check(&self, entry: &Entry, expected: Expected, others: Others) -> Result<(), DoesNotFit> {
        let info = Arc::clone(&entry.info);
        self.look_at_memory(move |memory| memory.check(&info.name, expected, others)).await
    }

    /// Looks at the memory in use off the async threads: the allocator takes its time to give back what it keeps.
    pub(super) async fn look_at_memory<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Memory) -> T + Send + 'static,
    ) -> T {
        let memory = Arc::clone(&self.memory);
        blocking(move || look(&memory)).await
    }

    /// The models in memory.
    fn in_memory(&self) -> Others {
        let mut others = Others::default();
        for entry in self.every_entry() {
            let Some(health) = entry.health() else { continue };
            // What one takes that is being unloaded is not known any more.
            let facts = entry.loaded().map(|model| Arc::clone(&model.facts));
            others.n_models += 1;
            let (grown_bytes, memory_bytes) =
                facts.as_ref().map_or((0, 0), |facts| (facts.grown_bytes, facts.memory_bytes));
            others.grown_bytes += grown_bytes;
            others.bytes += memory_bytes;
            if entry.is_pinned() || health.is_stuck() {
                others.n_staying += 1;
                others.staying_bytes += memory_bytes;
            }
        }
        others
    }

    /// Unloads models until what is loaded fits the budget again; `kept` stays, which takes `needed_bytes`. What would not fit
    /// alone drives nobody out.
    pub(super) async fn shrink(&self, kept: &Arc<Entry>, needed_bytes: u64) -> Result<(), DoesNotFit> {
        let budget_bytes = self.memory.budget_bytes().unwrap_or(u64::MAX);
        if needed_bytes > budget_bytes && self.look_at_memory(Memory::is_exceeded).await {
            // The estimate was too low.
            return Err(DoesNotFit {
                needed_bytes,
                is_estimate: false,
                used_bytes: self.memory.left_bytes(self.in_memory()),
                budget_bytes,
                others_stay: false,
                is_doubtful: self.memory.is_doubtful(&kept.info.name),
            });
        }
        while self.look_at_memory(Memory::is_exceeded).await && self.evict_one(kept).await {}
        Ok(())
    }

    /// Unloads the model that is needed least, once its requests have ended. Says whether there was one.
    async fn evict_one(&self, kept: &Arc<Entry>) -> bool {
        let mut candidates = self.candidates().await;
        candidates.retain(|candidate| !Arc::ptr_eq(&candidate.model, kept));
        if let Some(entry) = first_to_go(candidates) {
            self.evict(&entry, entry.claim_drain(), eviction::BUDGET).await;
            return true;
        }
        self.wait_for_a_drain().await
    }

    /// The loaded models that may be unloaded to make room.
    async fn candidates(&self) -> Vec<Candidate<Arc<Entry>>> {
        // Asked anew each time: grains are written, re-embedded and deleted while the server runs.
        let held = self.ledger.spaces_of_grains().await.unwrap_or_else(|error| {
            tracing::warn!("a model may be unloaded that grains need: {}", with_causes(&error));
            HashSet::new()
        });
        let active = self.active();
        let entries = self.every_entry();
        let candidate = |entry: Arc<Entry>| {
            // What is stuck would not go.
            let model = entry.loaded().filter(|model| !model.health.is_stuck())?;
            Some(Candidate {
                is_busy: !model.leases.is_empty() || model.health.is_running() || entry.is_waited_for(),
                is_active: entry.info.name == active,
                holds_grains: held.contains(&model.facts.fingerprint.space()),
                last_used: model.last_used(),
                model: entry,
            })
        };
        entries.into_iter().filter(|entry| !entry.is_pinned()).filter_map(candidate).collect()
    }

    /// Waits until one of the models that are being unloaded has gone, or is found not to go. Says whether there was one.
    async fn wait_for_a_drain(&self) -> bool {
        for entry in self.every_entry() {
            let mut changes = entry.watch();
            if entry.status().phase == Phase::Draining && !entry.is_stuck() {
                changes.next().await;
                return true;
            }
        }
        false
    }

    /// Unloads a model that nobody asked to unload, if it was still there to be claimed.
    async fn evict(&self, entry: &Arc<Entry>, claimed: NextUnload, reason: &'static str) {
        let NextUnload::Drain(model) = claimed else { return };
        tracing::info!(model = %entry.info.name, reason, "evicting a model");
        counter!(telemetry::MODEL_EVICTIONS, "model" => entry.info.name.to_string(), "reason" => reason).increment(1);
        self.drain(entry, model).await;
    }

    /// Unloads models that nobody used for `models.idle_unload`, and idle ones when memory has grown past the budget.
    /// Forgets deleted ones that have gone. Begins when grains can be asked what they take
    /// ([`Self::ask_for_memory_of_grains`]): before, it would count as models'.
    pub fn watch_memory(&self) {
        let manager = self.clone();
        self.shutdown.every("memory", WATCH_EVERY, move || {
            let manager = manager.clone();
            async move {
                manager.leaving.write().retain(|entry| !entry.has_gone());
                manager.memory.show();
                manager.unload_idle().await;
            }
        });
    }

    async fn unload_idle(&self) {
        let entries = self.every_entry();
        let limit = self.timing.idle_unload;
        let is_idle = |entry: &Arc<Entry>| {
            // A batch whose caller has left may be one that does not end.
            let is_at_rest = |model: Arc<LoadedModel>| {
                model.leases.is_empty() && !model.health.is_running() && model.last_used().elapsed() >= limit
            };
            !entry.is_pinned() && !entry.is_waited_for() && entry.loaded().is_some_and(is_at_rest)
        };
        for entry in entries.iter().filter(|entry| !limit.is_zero() && is_idle(entry)) {
            self.evict(entry, entry.claim_drain_of_idle(), eviction::IDLE).await;
        }
        // The last one stays: without it there would be nothing to serve.
        let n_loaded = entries.iter().filter(|entry| entry.loaded().is_some() && !entry.is_stuck()).count();
        if n_loaded > 1
            && self.memory.seems_exceeded()
            && let Ok(_turn) = self.load_turn.try_acquire()
        {
            let mut candidates = self.candidates().await;
            candidates.retain(|candidate| !candidate.is_busy);
            // Where none can go, what the allocator keeps need not be given back: that would be tried at each look.
            if let Some(entry) = first_to_go(candidates)
                && self.look_at_memory(Memory::is_exceeded).await
            {
                self.evict(&entry, entry.claim_drain_of_idle(), eviction::BUDGET).await;
            }
        }
    }
}
