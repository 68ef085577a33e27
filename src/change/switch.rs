//! Changing the active model, with what that means for the grains there are. Whatever can fail is asked before anything
//! moves.

use futures::future::BoxFuture;

use super::reembed::{ReembedError, ReembedRequest, ReembeddingStatus, Reembeddings};
use crate::domain::{Filter, ModelName, SpaceId};
use crate::grains::{GrainError, Grains};
use crate::models::{ModelError, MultiModelManager, Switch};

/// Whether the grains of other spaces are brought along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bring {
    /// They stay where they are, and are searched with their own models.
    Nothing,
    /// A re-embedding begins.
    Along,
}

/// Where grains are served from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The space; `None` for grains that have no vector whose space is known.
    pub space: Option<SpaceId>,
    /// The model that makes the space.
    pub model: Option<ModelName>,
    /// How many.
    pub n_grains: u64,
}

/// What a change of the active model did.
#[derive(Clone, Debug)]
pub struct Switched {
    /// The change.
    pub switch: Switch,
    /// What lies where.
    pub places: Vec<Place>,
    /// The job that brings the rest along.
    pub reembedding: Option<ReembeddingStatus>,
}

impl Switched {
    /// Grains that are not served from the active model's space.
    #[must_use]
    pub fn n_elsewhere(&self) -> u64 {
        let elsewhere = |place: &&Place| place.space.as_ref() != Some(&self.switch.space);
        self.places.iter().filter(elsewhere).map(|place| place.n_grains).sum()
    }
}

/// Makes a model the active one, and begins to bring the grains along if that is wanted. Both are recorded in one
/// transaction: after a crash in between, a job that is asked for again would not know which model was active before.
/// Goes on when the caller leaves.
///
/// # Errors
/// As [`MultiModelManager::set_active`] and [`Reembeddings::begin`]; the active model stays what it was, and no job
/// begins.
pub async fn switch(
    models: &MultiModelManager,
    kept: Option<(&Grains, &Reembeddings)>,
    name: &ModelName,
    bring: Bring,
) -> Result<Switched, ReembedError> {
    let Some((grains, reembeddings)) = kept else {
        if bring == Bring::Along {
            let sentence = "this server keeps no grains (`grains.enabled` is false): leave `reembed` out";
            return Err(ModelError::Conflict(sentence.to_owned()).into());
        }
        let switch = models.set_active(name).await?;
        return Ok(Switched { switch, places: Vec::new(), reembedding: None });
    };
    let shutdown = grains.shutdown().clone();
    let (models, grains, reembeddings, name) = (models.clone(), grains.clone(), reembeddings.clone(), name.clone());
    let work = async move { switch_beside_grains(&models, (&grains, &reembeddings), &name, bring).await };
    shutdown.finish("switch", work).await
}

/// As [`switch`], on a server that keeps grains.
async fn switch_beside_grains(
    models: &MultiModelManager,
    (grains, reembeddings): (&Grains, &Reembeddings),
    name: &ModelName,
    bring: Bring,
) -> Result<Switched, ReembedError> {
    // As a switch does it: one that is disabled, or has failed to load before, too.
    models.load_model(name).await?;
    let prepared = match bring {
        Bring::Nothing => None,
        Bring::Along => Some(reembeddings.prepare(name, &Filter::default()).await?),
    };
    // Asked before anything is moved: an error would hide from the caller that it was, and that a job has begun.
    let places = places(models, grains).await?;
    let (switch, reembedding) = match prepared {
        None => (models.set_active(name).await?, None),
        Some(prepared) => {
            let (reembeddings, model) = (reembeddings.clone(), name.clone());
            let record = move |previous: ModelName| -> BoxFuture<'static, Result<ReembeddingStatus, ReembedError>> {
                let (selection, previous_model) = (Filter::default(), Some(previous));
                let request = ReembedRequest { model, selection, throttle: 1.0, previous_model };
                Box::pin(async move { reembeddings.begin_prepared(request, prepared).await })
            };
            let (switch, reembedding) = models.set_active_with(name, record).await?;
            (switch, Some(reembedding))
        }
    };
    Ok(Switched { switch, places, reembedding })
}

/// What lies where.
async fn places(models: &MultiModelManager, grains: &Grains) -> Result<Vec<Place>, GrainError> {
    let n_all = grains.count(Filter::default(), Vec::new()).await?.total;
    let mut places = Vec::new();
    for (space, n_grains) in grains.served_by_space().await?.into_iter().filter(|(_, n_grains)| *n_grains > 0) {
        places.push(Place { model: models.maker_of(&space).await?, space: Some(space), n_grains });
    }
    let n_unknown = n_all.saturating_sub(places.iter().map(|place| place.n_grains).sum());
    if n_unknown > 0 {
        places.push(Place { space: None, model: None, n_grains: n_unknown });
    }
    Ok(places)
}
