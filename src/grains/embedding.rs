//! The vectors of grains on their way to the store: computed by a model, or brought along and checked.

use std::collections::{HashMap, HashSet};

use super::draft::SuppliedVector;
use super::error::GrainError;
use super::service::Grains;
use super::store::{Atomicity, Change, Expected, Makers, NewVector};
use super::vector::{check, checked};
use crate::domain::vector::cosine;
use crate::domain::{Content, CreatedAt, GrainId, InputType, ModelName, Origin, PromptChoice, Provenance, SpaceId};
use crate::engine::{EngineError, Input, Priority};
use crate::models::ledger::SpaceRecord;
use crate::models::standing::LEAST_COSINE;
use crate::models::{EmbedRequest, Lease, ModelError, Truncation};

/// Texts that are embedded together at most: a batch of the greatest size must not fill a model's queue by itself.
pub(super) const TEXTS_AT_ONCE: usize = 256;

/// What texts are embedded for.
#[derive(Clone, Copy, Debug)]
pub struct TextKind {
    /// Which of the model's prompts stands before them.
    pub input_type: InputType,
    /// Whether somebody waits.
    pub priority: Priority,
}

impl TextKind {
    /// The text of a grain, in work that nobody waits for.
    pub const BACKGROUND: Self = Self { input_type: InputType::Document, priority: Priority::Internal };

    /// The text of a search.
    pub const QUERY: Self = Self { input_type: InputType::Query, priority: Priority::Interactive };
}

/// A grain on its way to the store.
pub(super) struct Planned {
    pub(super) id: GrainId,
    pub(super) expected: Expected,
    pub(super) content: Content,
    pub(super) created_at: Option<CreatedAt>,
    pub(super) vector: Plan,
}

/// Where a grain's vector comes from.
pub(super) enum Plan {
    /// It stays as it is.
    Keep,
    /// A model makes it: the named one, or the active one.
    Embed(Option<String>),
    /// The caller brought it.
    Supplied(SuppliedVector),
}

impl Grains {
    /// Gives every planned grain its vector. Answers the changes of those that can be written, and the models that they
    /// were embedded with.
    pub(super) async fn embed(
        &self,
        planned: &mut [Result<Planned, GrainError>],
        atomicity: Atomicity,
        priority: Priority,
    ) -> Result<(Vec<Change>, Makers), GrainError> {
        let mut makers = Makers::default();
        let mut by_model: HashMap<ModelName, Vec<usize>> = HashMap::new();
        for (at, slot) in planned.iter_mut().enumerate() {
            let Ok(plan) = slot else { continue };
            let Plan::Embed(word) = &plan.vector else { continue };
            match self.models.resolve(word.as_deref()) {
                Ok(name) => {
                    if word.is_none() {
                        makers.active = Some(name.clone());
                    }
                    by_model.entry(name).or_default().push(at);
                }
                Err(error) => {
                    *slot = Err(error.into());
                    // No other one is loaded and embeds in vain.
                    if atomicity == Atomicity::AllOrNothing {
                        return Ok((Vec::new(), makers));
                    }
                }
            }
        }
        let mut vectors: HashMap<usize, NewVector> = HashMap::new();
        for (name, places) in by_model {
            let is_active = makers.active.as_ref() == Some(&name);
            match self.embed_places(planned, &places, &name, (atomicity, priority)).await {
                Ok(made) => {
                    makers.spaces.extend(made.first().map(|(_, vector)| (name, vector.provenance.space.clone())));
                    vectors.extend(made);
                }
                // A model that only some of them name is their matter, unless all may be sent again in a moment.
                Err(error) if atomicity == Atomicity::Each && !is_active && error.pause_before_retry().is_none() => {
                    let refusal = error.refusal();
                    let mut first = Some(error);
                    for at in places {
                        // What is wrong with a text itself stays said of it.
                        if planned[at].is_ok() {
                            let again = || GrainError::Refused(refusal.clone());
                            planned[at] = Err(first.take().unwrap_or_else(again));
                        }
                    }
                }
                Err(error) => return Err(error),
            }
            if atomicity == Atomicity::AllOrNothing && planned.iter().any(Result::is_err) {
                return Ok((Vec::new(), makers));
            }
        }
        for (at, slot) in planned.iter_mut().enumerate() {
            if let Ok(Planned { id, content, vector: Plan::Supplied(supplied), .. }) = slot {
                match self.take_supplied(id, &content.text, supplied.clone(), priority).await {
                    Ok(taken) => {
                        if supplied.verify {
                            // When all are sent again, this one is not embedded a second time.
                            let NewVector { vector, provenance } = taken.clone();
                            (supplied.vector, supplied.verify, supplied.known) = (vector, false, Some(provenance));
                        }
                        vectors.insert(at, taken);
                    }
                    // As above: all may be sent again in a moment.
                    Err(error) if error.pause_before_retry().is_some() => return Err(error),
                    Err(error) => *slot = Err(error),
                }
            }
        }
        let mut staged = self.stage(planned, &vectors, priority).await;
        let change = |(at, plan): (usize, &Planned)| Change {
            id: plan.id.clone(),
            expected: plan.expected,
            content: plan.content.clone(),
            created_at: plan.created_at.clone(),
            vector: vectors.remove(&at),
            staged: staged.remove(&at),
        };
        let good = planned.iter().enumerate().filter_map(|(at, plan)| Some((at, plan.as_ref().ok()?)));
        Ok((good.map(change).collect(), makers))
    }

    /// Embeds the texts in these places with a model, and answers the vector of each. A text that the model does not take
    /// has its error in its place.
    ///
    /// # Errors
    /// What is no text's fault.
    async fn embed_places(
        &self,
        planned: &mut [Result<Planned, GrainError>],
        places: &[usize],
        name: &ModelName,
        (atomicity, priority): (Atomicity, Priority),
    ) -> Result<Vec<(usize, NewVector)>, GrainError> {
        let lease = self.models.lease(name).await?;
        lease.check_grain_writes()?;
        let kind = TextKind { input_type: InputType::Document, priority };
        let mut vectors = Vec::with_capacity(places.len());
        for places in places.chunks(TEXTS_AT_ONCE) {
            match self.embed_texts(&lease, texts_at(planned, places), kind).await {
                Ok(made) => vectors.extend(places.iter().copied().zip(made)),
                // Where all depend on each other, a runtime that fails is no fault of what was sent.
                Err(error) if atomicity == Atomicity::AllOrNothing && is_of_runtime(&error) => return Err(error),
                Err(error) => {
                    let (index, error) = of_one_text(error, name)?;
                    if atomicity == Atomicity::AllOrNothing {
                        planned[places[index]] = Err(error);
                        return Ok(vectors);
                    }
                    // Others may be at fault too: each for itself shows which.
                    for at in places {
                        let text = texts_at(planned, std::slice::from_ref(at));
                        match self.embed_texts(&lease, text, kind).await {
                            Ok(mut made) => vectors.extend(made.pop().map(|vector| (*at, vector))),
                            Err(error) => planned[*at] = Err(of_one_text(error, name)?.1),
                        }
                    }
                }
            }
        }
        Ok(vectors)
    }

    /// Embeds texts into a model's own space.
    ///
    /// # Errors
    /// The model's.
    pub async fn embed_texts(
        &self,
        lease: &Lease,
        texts: Vec<String>,
        kind: TextKind,
    ) -> Result<Vec<NewVector>, GrainError> {
        let truncation = if self.limits.auto_truncate { Truncation::Own } else { Truncation::Never };
        let embedded = lease
            .embed(EmbedRequest {
                inputs: texts.into_iter().map(Input::Text).collect(),
                prompt: PromptChoice::For(kind.input_type),
                truncation,
                dimensions: None,
                normalize: None,
                expect_space: Some(lease.facts().fingerprint.space()),
                priority: kind.priority,
            })
            .await?;
        let encoded = embedded.encoded;
        embedded.counts.record(&encoded);
        let truncated: HashSet<usize> = encoded.truncated.into_iter().collect();
        let vectors = encoded.vectors.chunks(encoded.dimensions).zip(encoded.n_tokens).enumerate();
        let made = |(at, (vector, n_tokens)): (usize, (&[f32], usize))| NewVector {
            provenance: Provenance {
                space: embedded.space.clone(),
                model: Some(embedded.model.to_string()),
                dimensions: u32::try_from(vector.len()).unwrap_or(u32::MAX),
                origin: Origin::Computed,
                n_tokens: u32::try_from(n_tokens).ok(),
                truncated: Some(truncated.contains(&at)),
            },
            vector: vector.to_vec(),
        };
        Ok(vectors.map(made).collect())
    }

    /// Embeds texts for work that nobody waits for, and that goes on without them when an inference does not end.
    ///
    /// # Errors
    /// The model's.
    pub(super) async fn embed_in_background(
        &self,
        lease: &Lease,
        texts: Vec<String>,
    ) -> Result<Vec<NewVector>, GrainError> {
        let work = Box::pin(self.embed_texts(lease, texts, TextKind::BACKGROUND));
        self.models.unless_stuck(lease.name(), work).await
    }

    /// Embeds texts for such work. Where the model fails on one, each is tried alone: the others are not to blame.
    ///
    /// # Errors
    /// What would meet any text.
    pub async fn embed_each(
        &self,
        lease: &Lease,
        texts: Vec<String>,
    ) -> Result<Vec<Result<NewVector, GrainError>>, GrainError> {
        match self.embed_in_background(lease, texts.clone()).await {
            Ok(made) => return Ok(made.into_iter().map(Ok).collect()),
            Err(error) if error.is_of_a_text() => {}
            Err(error) => return Err(error),
        }
        let mut vectors = Vec::with_capacity(texts.len());
        for text in texts {
            match self.embed_in_background(lease, vec![text]).await {
                Ok(made) => vectors.extend(made.into_iter().map(Ok)),
                Err(error) if error.is_of_a_text() => vectors.push(Err(said_of_text(error, lease.name()))),
                Err(error) => return Err(error),
            }
        }
        Ok(vectors)
    }

    /// What is recorded of the space of a vector that was brought along. Where nothing is, and the active model was never
    /// loaded, the space may be its own: it is loaded first, as it is for texts.
    pub(super) async fn known_space(&self, space: &SpaceId) -> Result<SpaceRecord, GrainError> {
        if let Some(record) = self.ledger.space(space).await? {
            return Ok(record);
        }
        let active = self.models.active();
        if self.ledger.accepted_space(&active).await?.is_none() {
            match self.models.lease(&active).await {
                Ok(_) | Err(ModelError::Disabled { .. } | ModelError::Failed { permanent: true, .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.ledger.space(space).await?.ok_or_else(|| GrainError::UnknownSpace(space.clone()))
    }

    /// What is stored of a vector that was brought along, verified if that is asked for.
    pub(super) async fn take_supplied(
        &self,
        id: &GrainId,
        text: &str,
        supplied: SuppliedVector,
        priority: Priority,
    ) -> Result<NewVector, GrainError> {
        let SuppliedVector { space, vector, verify, known } = supplied;
        let record = self.known_space(&space).await?;
        // What an export says of a vector is of that very vector, so it stays as it is, whatever its length.
        let vector = match &known {
            Some(_) => check(&vector, record.dimensions).map(|()| vector)?,
            None => checked(&vector, record.dimensions)?,
        };
        let mut provenance = known.unwrap_or(Provenance {
            space: space.clone(),
            model: None,
            dimensions: record.dimensions,
            origin: Origin::Supplied,
            n_tokens: None,
            truncated: None,
        });
        if verify {
            let name = self.models.maker_of(&space).await?.ok_or_else(|| GrainError::NoMaker(space.clone()))?;
            let lease = self.models.lease(&name).await?;
            // One that has moved would bear out its own vectors, and refuse those of the space.
            lease.check_grain_writes()?;
            let kind = TextKind { input_type: InputType::Document, priority };
            let made = self.embed_texts(&lease, vec![text.to_owned()], kind).await;
            let made = made.map_err(|error| said_of_text(error, &name))?;
            let made = made.into_iter().next().ok_or_else(|| GrainError::NoMaker(space.clone()))?;
            let cosine = cosine(&vector, &made.vector);
            if made.provenance.space != space || cosine < LEAST_COSINE {
                let (id, model) = (id.to_string(), name.to_string());
                return Err(GrainError::Unverified { id, model, cosine, least: LEAST_COSINE });
            }
            provenance.model = Some(name.to_string());
            provenance.n_tokens = made.provenance.n_tokens;
            provenance.truncated = made.provenance.truncated;
        }
        Ok(NewVector { provenance, vector })
    }
}

pub(super) fn texts_at(planned: &[Result<Planned, GrainError>], places: &[usize]) -> Vec<String> {
    let text = |at: &usize| planned[*at].as_ref().ok().map(|plan| plan.content.text.clone());
    places.iter().filter_map(text).collect()
}

/// Which of several texts is at fault that they were not embedded, and what is wrong with it; or the error that is
/// nobody's fault.
fn of_one_text(error: GrainError, model: &ModelName) -> Result<(usize, GrainError), GrainError> {
    match error {
        GrainError::Model(ModelError::Engine(EngineError::InputTooLong { index, n_tokens, max_tokens })) => {
            Ok((index, GrainError::TooLong { field: "text", model: model.clone(), n_tokens, max_tokens }))
        }
        GrainError::Model(ModelError::Engine(EngineError::Tokenize { index, source })) => {
            let message = format!("`text` cannot be split into tokens: {source}");
            Ok((index, GrainError::invalid("text", message)))
        }
        GrainError::Model(ModelError::Engine(EngineError::Inference { index, source })) => {
            tracing::warn!(%model, "a model fails on the text of a grain: {source}");
            Ok((index, GrainError::invalid("text", format!("`{model}` fails on `text`: {source}"))))
        }
        GrainError::Model(ModelError::Engine(EngineError::NoMemory { index, source })) => {
            tracing::warn!(%model, "no memory is left to run a model on the text of a grain: {source}");
            Ok((index, GrainError::NoMemory { model: model.clone(), source }))
        }
        GrainError::Model(ModelError::Engine(EngineError::NotANumber { index, found })) => {
            let message = format!("what `{model}` makes of `text` holds {found}, which is no number to compare by");
            Ok((index, GrainError::invalid("text", message)))
        }
        error => Err(error),
    }
}

/// The same error in the words of grains, when it is of the text that was sent alone.
fn said_of_text(error: GrainError, model: &ModelName) -> GrainError {
    of_one_text(error, model).map_or_else(|error| error, |(_, said)| said)
}

fn is_of_runtime(error: &GrainError) -> bool {
    matches!(error, GrainError::Model(ModelError::Engine(EngineError::Inference { .. })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grains::refusal::RefusalKind;

    #[test]
    fn a_text_for_which_no_memory_is_left_is_refused_alone() {
        let model = ModelName::parse("m").expect("a name");
        let error = GrainError::from(ModelError::Engine(EngineError::of_run(3, "std::bad_alloc".into())));
        assert!(error.is_of_a_text());
        let (index, error) = of_one_text(error, &model).expect("one text's");
        assert_eq!((index, error.refusal().kind), (3, RefusalKind::MemoryBudget));
        assert!(error.to_string().contains("run `m` on `text`"), "{error}");
    }
}
