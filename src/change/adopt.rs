//! Giving vectors their provenance by proof: what a model makes of the text must be what is stored.
//!
//! Grains of version 0.3 have vectors of which nobody wrote down what made them. A sample picks the model; then each
//! vector is compared with what that model makes of its text, and takes the model's space only where both agree. The
//! same comparison joins a space to that of a model, when a file of the same weights was exported anew, say.

use std::collections::HashSet;

use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::mpsc;

use crate::domain::vector::cosine;
use crate::domain::{GrainId, ModelName, Origin, Provenance, SpaceId};
use crate::grains::store::{NewVector, Numbered, ProvenVector};
use crate::grains::{GrainError, Grains};
use crate::models::standing::LEAST_COSINE;
use crate::models::{Lease, ModelError, ModelStatus, MultiModelManager};
use crate::telemetry::with_causes;

/// Grains that are read, embedded and written at once.
const BATCH: u32 = 256;

/// Grains by which a model is picked, and the share of them that it must have made.
const SAMPLE: u32 = 64;
const LEAST_SHARE: f64 = 0.5;

/// What two spaces must agree in to be joined: above all that rounding does.
const LEAST_COSINE_OF_SPACES: f64 = 0.9999;

/// Grains that stay unknown and are named; there may be more.
const MAX_NAMED: usize = 1000;

/// Steps that wait for a slow reader.
const STEPS_AHEAD: usize = 4;

/// What is to be adopted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdoptRequest {
    /// The model that is to be proved; the one that most of a sample agrees with when `None`.
    pub model: Option<ModelName>,
    /// The space whose vectors are compared; those without a known space when `None`.
    pub from: Option<SpaceId>,
}

/// How far an adoption is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdoptionCount {
    /// The model.
    pub model: String,
    /// Its space.
    pub space: String,
    /// Vectors that were compared.
    pub compared: u64,
    /// Those that agree, and are in the model's space now.
    pub adopted: u64,
    /// Those that do not, and stay as they were; and those whose grain was changed or deleted meanwhile.
    pub unknown: u64,
    /// Ids of these at the end, at most a thousand.
    pub unknown_ids: Vec<String>,
}

/// A step of an adoption: how far it is, and whether that was all.
#[derive(Debug)]
pub enum Adoption {
    /// It goes on.
    Progress(AdoptionCount),
    /// It is done.
    Done(AdoptionCount),
    /// It was cut short; what was adopted stays so.
    Failed(AdoptionCount, AdoptError),
}

/// Why nothing, or not all, was adopted.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// There is nothing to compare.
    #[error("no grain has a vector of an unknown space: there is nothing to adopt")]
    Nothing,
    /// No grain is in the space.
    #[error("no grain has a vector in space {0}: there is nothing to join")]
    Empty(SpaceId),
    /// The vectors are in the model's space already.
    #[error("space {0} is the model's own: there is nothing to join")]
    Same(SpaceId),
    /// No model agrees.
    #[error(
        "no model made them: of {n_sample} vectors, {best} agree with the best of {tried}, at least half must. Configure the \
         model that made them, with the same files and settings, and name it in `model`"
    )]
    NoModel {
        /// Vectors that were compared.
        n_sample: usize,
        /// Vectors that agree with the best model.
        best: usize,
        /// The models, in words.
        tried: String,
    },
    /// The model makes another space than when the adoption began.
    #[error("`{model}` makes the space {found} now, not {expected}: its files or settings have changed. Adopt again")]
    OtherSpace {
        /// The model.
        model: ModelName,
        /// The space that was to be adopted into.
        expected: SpaceId,
        /// What the model makes.
        found: SpaceId,
    },
    /// A model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The grains.
    #[error(transparent)]
    Grains(#[from] GrainError),
}

/// A grain, and the vector that is to be proved.
struct Candidate {
    numbered: Numbered,
    vector: Option<Vec<f32>>,
}

/// An adoption at work.
struct Work {
    grains: Grains,
    models: MultiModelManager,
    name: ModelName,
    space: SpaceId,
    from: Option<SpaceId>,
    /// Without the ids.
    count: AdoptionCount,
    unknown_ids: Vec<String>,
}

/// Begins an adoption. It ends with its last step, or when its steps are dropped.
///
/// # Errors
/// When there is nothing to adopt, or no model for it, or a re-embedding needs the vectors where they are, or another
/// space would serve what is joined.
pub async fn adopt(
    grains: &Grains,
    models: &MultiModelManager,
    request: AdoptRequest,
) -> Result<BoxStream<'static, Adoption>, AdoptError> {
    if let Some(from) = &request.from {
        grains.check_joinable(from).await?;
    }
    let sample = candidates(grains, request.from.as_ref(), 0, SAMPLE).await?;
    if sample.is_empty() {
        return Err(request.from.map_or(AdoptError::Nothing, AdoptError::Empty));
    }
    let name = match request.model {
        Some(name) => name,
        None => pick(grains, models, &sample, request.from.as_ref()).await?,
    };
    let lease = models.lease(&name).await?;
    lease.check_grain_writes()?;
    let space = lease.facts().fingerprint.space();
    if request.from.as_ref() == Some(&space) {
        return Err(AdoptError::Same(space));
    }
    if let Some(from) = &request.from {
        // Else it would be refused with the first vectors that agree.
        grains.order_for_join(from, &space).await?;
    }
    tracing::info!(model = %name, %space, from = ?request.from, "comparing stored vectors with what the model makes");
    let count = AdoptionCount { model: name.to_string(), space: space.to_string(), ..AdoptionCount::default() };
    let work = Work {
        grains: grains.clone(),
        models: models.clone(),
        name,
        space,
        from: request.from,
        count,
        unknown_ids: Vec::new(),
    };
    let (sender, mut steps) = mpsc::channel(STEPS_AHEAD);
    grains.shutdown().spawn("adopt", work.run(sender));
    Ok(futures::stream::poll_fn(move |context| steps.poll_recv(context)).boxed())
}

impl Work {
    async fn run(mut self, steps: mpsc::Sender<Adoption>) {
        let soft = self.grains.shutdown().soft().clone();
        let mut after = 0;
        let last = loop {
            let batch = tokio::select! {
                () = soft.cancelled() => return,
                batch = self.batch(after) => batch,
            };
            match batch {
                Ok(Some(next)) => after = next,
                Ok(None) => break Adoption::Done(self.counted()),
                Err(error) => break Adoption::Failed(self.counted(), error),
            }
            // Nobody reads on: what is adopted stays so, and the rest is there for the next time.
            if steps.send(Adoption::Progress(self.count.clone())).await.is_err() {
                return;
            }
        };
        if let Adoption::Done(count) = &last {
            let AdoptionCount { model, adopted, unknown, .. } = count;
            tracing::info!(model, adopted, unknown, "an adoption is done");
        }
        let _ = steps.send(last).await;
    }

    /// How far it came, with the ids.
    fn counted(self) -> AdoptionCount {
        AdoptionCount { unknown_ids: self.unknown_ids, ..self.count }
    }

    /// Compares the next grains. Answers the number of the last; `None` when there are no more.
    async fn batch(&mut self, after: i64) -> Result<Option<i64>, AdoptError> {
        let found = candidates(&self.grains, self.from.as_ref(), after, BATCH).await?;
        let Some(last) = found.last().map(|candidate| candidate.numbered.number) else { return Ok(None) };
        let made = self.make(&found).await?;
        let (mut proven, mut agreeing) = (Vec::new(), Vec::new());
        for (candidate, made) in found.into_iter().zip(made) {
            let Candidate { numbered: Numbered { number, grain }, vector } = candidate;
            let threshold = least_cosine(self.from.as_ref());
            let agreed = vector.zip(made).filter(|(vector, made)| agrees(vector, &made.vector, threshold));
            if let Some((vector, made)) = agreed {
                let provenance = Provenance { origin: Origin::Adopted, ..made.provenance };
                let vector = NewVector { provenance, vector };
                proven.push(ProvenVector { number, version: grain.version, from: self.from.clone(), vector });
                agreeing.push((number, grain.id));
            } else {
                self.note_unknown(&grain.id);
            }
        }
        let adopted: HashSet<i64> = self.grains.adopt(proven).await?.into_iter().collect();
        self.count.compared += adopted.len() as u64;
        self.count.adopted += adopted.len() as u64;
        // What was compared is not what is stored any more.
        for (_, id) in agreeing.iter().filter(|(number, _)| !adopted.contains(number)) {
            self.note_unknown(id);
        }
        Ok(Some(last))
    }

    fn note_unknown(&mut self, id: &GrainId) {
        self.count.compared += 1;
        self.count.unknown += 1;
        if self.unknown_ids.len() < MAX_NAMED {
            self.unknown_ids.push(id.to_string());
        }
    }

    /// What the model makes of the texts. While its queue is full, or it is being unloaded or loaded, this waits.
    async fn make(&self, found: &[Candidate]) -> Result<Vec<Option<NewVector>>, AdoptError> {
        loop {
            match self.try_to_make(found).await {
                Err(AdoptError::Model(error)) => error.wait_out().await?,
                Err(AdoptError::Grains(error)) => error.wait_out().await?,
                ended => return ended,
            }
        }
    }

    /// Holds the model for a batch only, so that it can be unloaded between two.
    async fn try_to_make(&self, found: &[Candidate]) -> Result<Vec<Option<NewVector>>, AdoptError> {
        let lease = self.models.lease(&self.name).await?;
        let space = lease.facts().fingerprint.space();
        if space != self.space {
            let (model, expected) = (self.name.clone(), self.space.clone());
            return Err(AdoptError::OtherSpace { model, expected, found: space });
        }
        lease.check_grain_writes()?;
        Ok(embed(&self.grains, &lease, found).await?)
    }
}

/// The model that made most of a sample.
async fn pick(
    grains: &Grains,
    models: &MultiModelManager,
    sample: &[Candidate],
    from: Option<&SpaceId>,
) -> Result<ModelName, AdoptError> {
    let lengths: Vec<usize> = sample.iter().filter_map(|candidate| Some(candidate.vector.as_ref()?.len())).collect();
    let active = models.active();
    // What is not on this machine is not downloaded for a guess.
    let mut names: Vec<ModelName> =
        models.list().into_iter().filter(ModelStatus::is_here).map(|status| status.info.name.clone()).collect();
    names.retain(|name| *name != active);
    names.insert(0, active);
    let (mut best, mut tried): (Option<(usize, ModelName)>, Vec<String>) = (None, Vec::new());
    for name in names {
        // A model that does not load has not made them as far as anybody can tell.
        let Ok(lease) = models.lease(&name).await else { continue };
        tried.push(format!("`{name}`"));
        let facts = lease.facts();
        if !lengths.contains(&(facts.dimensions.native.get() as usize)) || from == Some(&facts.fingerprint.space()) {
            continue;
        }
        let made = embed(grains, &lease, sample).await?;
        let agree = |(candidate, made): &(&Candidate, Option<NewVector>)| {
            let pair = candidate.vector.as_ref().zip(made.as_ref());
            pair.is_some_and(|(vector, made)| agrees(vector, &made.vector, least_cosine(from)))
        };
        let n_agree = sample.iter().zip(made).filter(agree).count();
        if best.as_ref().is_none_or(|(n_best, _)| n_agree > *n_best) {
            best = Some((n_agree, name));
        }
        if n_agree == sample.len() {
            break;
        }
    }
    match best {
        Some((n_agree, name)) if n_agree as f64 >= LEAST_SHARE * sample.len() as f64 => Ok(name),
        best => Err(AdoptError::NoModel {
            n_sample: sample.len(),
            best: best.map_or(0, |(n_agree, _)| n_agree),
            tried: tried.join(", "),
        }),
    }
}

async fn candidates(
    grains: &Grains,
    from: Option<&SpaceId>,
    after: i64,
    limit: u32,
) -> Result<Vec<Candidate>, GrainError> {
    let found = match from {
        None => {
            let old = grains.old_vectors(after, limit).await?;
            old.into_iter().map(|(numbered, bytes)| Candidate { numbered, vector: read(&bytes) }).collect()
        }
        Some(space) => {
            let held = grains.vectors_of_space(space, after, limit).await?;
            held.into_iter().map(|(numbered, vector)| Candidate { numbered, vector: Some(vector) }).collect()
        }
    };
    Ok(found)
}

/// What a model makes of each text; `None` where it fails on that very text.
async fn embed(grains: &Grains, lease: &Lease, found: &[Candidate]) -> Result<Vec<Option<NewVector>>, GrainError> {
    let texts = found.iter().map(|candidate| candidate.numbered.grain.content.text.clone()).collect();
    let made = grains.embed_each(lease, texts).await?;
    let noted = |(candidate, made): (&Candidate, Result<NewVector, GrainError>)| {
        // An id of version 0.3 may be anything, and only a text is escaped in the log.
        let id = candidate.numbered.grain.id.as_str();
        made.inspect_err(|error| tracing::warn!(id, "a grain's vector cannot be proved: {}", with_causes(error))).ok()
    };
    Ok(found.iter().zip(made).map(noted).collect())
}

fn least_cosine(from: Option<&SpaceId>) -> f64 {
    if from.is_some() { LEAST_COSINE_OF_SPACES } else { LEAST_COSINE }
}

/// A vector of zeros agrees with none.
fn agrees(stored: &[f32], made: &[f32], least: f64) -> bool {
    stored.len() == made.len() && cosine(stored, made) >= least
}

/// An old vector from its bytes; `None` when they are no vector.
fn read(bytes: &[u8]) -> Option<Vec<f32>> {
    let (values, rest) = bytes.as_chunks::<4>();
    let vector: Vec<f32> = values.iter().map(|value| f32::from_le_bytes(*value)).collect();
    (rest.is_empty() && vector.iter().all(|value| value.is_finite())).then_some(vector)
}
