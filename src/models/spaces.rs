//! The spaces this server has made, and whether a model may add grains to its own.

use std::collections::HashSet;
use std::sync::Arc;

use super::canary;
use super::entry::{Eagerness, Entry};
use super::error::ModelError;
use super::health::stuck;
use super::ledger::{LedgerError, MadeGrains, SpaceRecord};
use super::loaded::LoadedModel;
use super::manager::MultiModelManager;
use super::standing::Standing;
use super::status::ModelStatus;
use crate::domain::{ModelName, SpaceId};
use crate::engine::EngineError;
use crate::telemetry::with_causes;

/// What an operator accepts of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acceptance {
    /// The space that is meant, so that a model which changed again is not accepted unseen.
    pub space: Option<SpaceId>,
    /// Whether vectors that have moved within their space are accepted too.
    pub numerics: bool,
}

/// A recorded space and the models that make it now.
#[derive(Clone, Debug, PartialEq)]
pub struct Space {
    /// What is recorded.
    pub record: SpaceRecord,
    /// Loaded models whose own space it is.
    pub models: Vec<ModelName>,
    /// Models that are not loaded, and whose grains are written to it.
    pub unloaded_models: Vec<ModelName>,
}

/// The grains that have vectors of a model.
pub(super) struct GrainsOf {
    /// How many there are.
    pub(super) n_grains: u64,
    /// How many of them are served by such a vector.
    pub(super) n_served: u64,
}

/// How well a maker of a space can be had, the best first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Readiness {
    Loaded,
    /// Loaded, and its vectors are not known to be those of the space.
    Moved,
    Unloaded,
    /// Disabled, or it failed when it was last loaded or looked at.
    Doubtful,
}

impl Readiness {
    fn of(status: &ModelStatus) -> Self {
        if status.disabled || status.failure.is_some() || status.ailment.is_some() {
            return Self::Doubtful;
        }
        match &status.standing {
            None => Self::Unloaded,
            Some(standing) if standing.makes_its_space() => Self::Loaded,
            Some(_) => Self::Moved,
        }
    }
}

/// Compares a loaded model with what is recorded of its space, and says what is new of that.
fn note_drift(model: &LoadedModel, record: &SpaceRecord) {
    let drift = canary::compare(record, &model.canaries, &model.facts.numeric_class);
    let mut standing = model.standing.write();
    if standing.drift == drift {
        return;
    }
    standing.drift = drift;
    if let Some(refusal) = standing.refusal(&model.name).filter(|_| standing.drift.is_some()) {
        tracing::warn!(model = %model.name, "no grains can be written with the model: {refusal}");
    }
}

impl SpaceRecord {
    /// What is to be recorded of a model's space.
    pub(super) fn of(model: &LoadedModel, canaries: Vec<f32>) -> Self {
        Self {
            fingerprint: model.facts.fingerprint.clone(),
            manifest: model.identity.manifest().canonical(),
            dimensions: model.facts.dimensions.native.get(),
            declared_name: None,
            numeric_class: model.facts.numeric_class.clone(),
            canaries,
        }
    }
}

impl MultiModelManager {
    /// Every recorded space, oldest first.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn spaces(&self) -> Result<Vec<Space>, LedgerError> {
        let records = self.ledger.spaces().await?;
        let known = self.list();
        let mut unloaded = Vec::new();
        for status in known.iter().filter(|status| status.loaded.is_none()) {
            let name = &status.info.name;
            unloaded.extend(self.ledger.accepted_space(name).await?.map(|space| (space, name.clone())));
        }
        let described = |record: SpaceRecord| {
            let of_space = |status: &&ModelStatus| {
                status.loaded.as_ref().is_some_and(|facts| facts.fingerprint == record.fingerprint)
            };
            let models = known.iter().filter(of_space).map(|status| status.info.name.clone()).collect();
            let id = record.fingerprint.space();
            let unloaded_models =
                unloaded.iter().filter(|(space, _)| *space == id).map(|(_, name)| name.clone()).collect();
            Space { record, models, unloaded_models }
        };
        Ok(records.into_iter().map(described).collect())
    }

    /// The model whose own space this is: a loaded one, or else one that grains of the space were written with. Of several
    /// it is one that can be had, if there is one. `None` for a declared space, and when the model is no longer known.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn maker_of(&self, space: &SpaceId) -> Result<Option<ModelName>, LedgerError> {
        let known = self.list();
        let makes_it =
            |status: &&ModelStatus| status.loaded.as_ref().is_some_and(|facts| facts.fingerprint.space() == *space);
        let mut makers: Vec<&ModelStatus> = known.iter().filter(makes_it).collect();
        // The ledger is asked only where that may find a better one: every search passes here.
        if makers.iter().all(|status| Readiness::of(status) > Readiness::Unloaded) {
            for status in known.iter().filter(|status| status.loaded.is_none()) {
                if self.ledger.accepted_space(&status.info.name).await?.as_ref() == Some(space) {
                    makers.push(status);
                }
            }
        }
        Ok(makers.into_iter().min_by_key(|status| Readiness::of(status)).map(|status| status.info.name.clone()))
    }

    /// Makes the space a model has now the one its grains are written to. Loads the model if it is not loaded. Goes on
    /// when the caller leaves, so that the record and what is in memory cannot part.
    ///
    /// # Errors
    /// As [`Self::load_model`]; [`ModelError::Disabled`], for this does not enable the model; [`ModelError::SpaceMismatch`]
    /// when another space was meant; [`ModelError::GrainWrites`] when its vectors have moved within the space and that was
    /// not accepted; [`ModelError::Conflict`] when they have moved since it was loaded, [`ModelError::Stuck`] when an
    /// inference does not end.
    pub async fn accept(&self, name: &ModelName, acceptance: Acceptance) -> Result<ModelStatus, ModelError> {
        let entry = self.entry(name)?;
        let manager = self.clone();
        self.shutdown.finish("accept", async move { manager.accept_in_turn(&entry, acceptance).await }).await
    }

    async fn accept_in_turn(&self, entry: &Arc<Entry>, acceptance: Acceptance) -> Result<ModelStatus, ModelError> {
        let _turn = self.turn_to_change().await;
        let name = &entry.info.name;
        // Before the load: one by hand would begin all the same.
        if entry.status().disabled {
            return Err(ModelError::Disabled { name: name.clone() });
        }
        let lease = self.lease_entry(entry, Eagerness::ByHand).await?;
        let space = lease.facts().fingerprint.space();
        if let Some(expected) = acceptance.space.filter(|expected| *expected != space) {
            let (field, name) = ("space", name.clone());
            return Err(ModelError::SpaceMismatch { field, name, expected, actual: space });
        }
        let standing = lease.standing().read().clone();
        if !standing.makes_its_space() {
            if !acceptance.numerics {
                lease.check_grain_writes()?;
            }
            let canaries = tokio::select! {
                canaries = canary::embed(lease.model()) => canaries,
                // It would keep the turn for good.
                () = entry.found_stuck() => return Err(stuck(name, "does not embed")),
            };
            let canaries = match canaries {
                Ok(canaries) => Some(canaries),
                // Weights that make no number have been written over, as those have that make others.
                Err(EngineError::NotANumber { .. }) => None,
                Err(error) => return Err(error.into()),
            };
            let is_as_loaded = |canaries: &Vec<f32>| canary::moved_since_load(lease.model(), canaries).is_none();
            let Some(canaries) = canaries.filter(is_as_loaded) else {
                return Err(ModelError::Conflict(format!(
                    "`{name}` makes other vectors than when it was loaded, so they are not of the space that it was loaded \
                     for: unload it first, `POST /models/{name}/unload`"
                )));
            };
            let record = SpaceRecord::of(lease.model(), canaries);
            self.ledger.record_space(&record).await?;
            self.compare_loaded(&record);
        }
        self.ledger.accept_space(name, &space).await?;
        *lease.standing().write() = Standing::default();
        tracing::info!(model = %name, %space, "the model's space was accepted");
        drop(lease);
        Ok(entry.status())
    }

    /// Compares the loaded models of a space with what is recorded of it from now on, and forgets what was kept of it before.
    fn compare_loaded(&self, record: &SpaceRecord) {
        for model in self.every_entry().iter().filter_map(|entry| entry.loaded()) {
            if model.facts.fingerprint == record.fingerprint {
                note_drift(&model, record);
            }
        }
        if let Some(cache) = &self.loader.cache {
            cache.empty();
        }
    }

    /// Compares a model that has just become ready with what is recorded of its space by now: who accepted other numbers while
    /// it was loading has compared only those that were ready.
    pub(super) async fn compare_ready(&self, entry: &Entry) {
        let Some(facts) = entry.status().loaded else { return };
        let space = facts.fingerprint.space();
        let mut compared: Option<Option<Vec<u32>>> = None;
        loop {
            let recorded = self.ledger.space(&space).await;
            // Held only as long as nothing is waited for: it may be unloaded meanwhile.
            let Some(model) = entry.loaded() else { return };
            match recorded {
                Ok(recorded) => {
                    // As bits: what is no number equals nothing.
                    let bits = recorded.as_ref().map(|record| record.canaries.iter().map(|n| n.to_bits()).collect());
                    // Other numbers may have been accepted between the look before and its comparison.
                    if compared.replace(bits.clone()) == Some(bits) {
                        return;
                    }
                    if let Some(record) = &recorded {
                        note_drift(&model, record);
                    }
                }
                Err(error) => {
                    tracing::warn!(model = %model.name, "{}", with_causes(&error));
                    model.standing.write().unknown = Some(error.to_string());
                    return;
                }
            }
        }
    }

    /// The grains that have vectors of a model: made by it, or in a space of it that is no other known model's.
    pub(super) async fn grains_of(&self, model: &ModelStatus) -> Result<GrainsOf, LedgerError> {
        let mut spaces = self.spaces_of(model).await?;
        for other in self.list() {
            if other.info.name != model.info.name {
                let theirs = self.spaces_of(&other).await?;
                spaces.retain(|space| !theirs.contains(space));
            }
        }
        let is_of_it = |made: &MadeGrains| {
            made.model.as_ref().is_some_and(|maker| model.info.answers_to(maker)) || spaces.contains(&made.space)
        };
        let n_in = |all: &[MadeGrains]| all.iter().filter(|made| is_of_it(made)).map(|made| made.n_grains).sum::<u64>();
        let n_grains = n_in(&self.ledger.grains_by_maker().await?);
        let n_served = if n_grains == 0 { 0 } else { n_in(&self.ledger.served_by_maker().await?) };
        Ok(GrainsOf { n_grains, n_served })
    }

    /// The space that a model makes, while it is loaded, and the one that its grains are written to.
    async fn spaces_of(&self, model: &ModelStatus) -> Result<Vec<SpaceId>, LedgerError> {
        let own = model.loaded.as_ref().map(|facts| facts.fingerprint.space());
        Ok(own.into_iter().chain(self.ledger.accepted_space(&model.info.name).await?).collect())
    }

    /// Warns of grains whose vectors no model of the catalog made, nor makes their space.
    pub(super) async fn say_which_makers_are_unknown(&self) -> Result<(), LedgerError> {
        let mut known = HashSet::new();
        for model in self.list() {
            known.extend(self.spaces_of(&model).await?);
        }
        for MadeGrains { model, space, n_grains } in self.ledger.grains_by_maker().await? {
            let is_known = model.as_ref().is_some_and(|maker| self.resolve(Some(maker)).is_ok());
            if is_known || known.contains(&space) {
                continue;
            }
            let record = self.ledger.space(&space).await?;
            // A declared one has no model.
            if record.is_none_or(|record| record.declared_name.is_none()) {
                tracing::warn!(
                    %space,
                    model,
                    n_grains,
                    "grains have vectors of a model that this server does not know: they cannot be searched by meaning \
                     until it is configured again, or registered again and loaded"
                );
            }
        }
        Ok(())
    }
}
