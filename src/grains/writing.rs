//! From what a caller writes to a batch for the store: checked, embedded, committed, and answered.

use std::collections::{HashMap, HashSet};

use metrics::counter;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::error::{GrainError, Refusal};
use super::service::{GrainLimits, Grains, now_us};
use super::store::{
    Applied, Atomicity, Batch, Change, Committed, Expected, NewReceipt, NewVector, Numbered, PageRequest, Receipt,
    ReceiptKey, Sort, SortKey,
};
use super::vector::{check, checked, cosine};
use crate::domain::{
    Content, CreatedAt, Filter, Grain, GrainId, InputType, ModelName, Origin, PromptChoice, Provenance, SpaceId,
    TruncationSide,
};
use crate::engine::{EngineError, Input, OverLong, Priority};
use crate::models::standing::LEAST_COSINE;
use crate::models::{EmbedRequest, Lease, ModelError};
use crate::telemetry;

/// Texts that are embedded together at most: a batch of the greatest size must not fill a model's queue by itself.
pub(super) const TEXTS_AT_ONCE: usize = 256;

/// How often a write is tried again when others change the same grain, or the active model, meanwhile.
pub(super) const TRIES: usize = 5;

const MAX_SOURCE_BYTES: usize = 1024;
const MAX_TAGS: usize = 100;
const MAX_TAG_BYTES: usize = 256;
const MAX_ATTRIBUTES_BYTES: usize = 64 << 10;

/// A grain as a caller writes it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Draft {
    /// The id it is to have; a new one when `None`.
    pub id: Option<String>,
    /// What it is.
    pub content: Content,
    /// The model to embed it with; the active one when `None`.
    pub model: Option<String>,
    /// Its vector, brought along.
    pub vector: Option<SuppliedVector>,
}

/// A vector that a caller brings along.
#[derive(Clone, Debug, PartialEq)]
pub struct SuppliedVector {
    /// The space it is in.
    pub space: SpaceId,
    /// `[dimensions]`; of any length but zero.
    pub vector: Vec<f32>,
    /// Whether to compare it with what the space's model makes of the text.
    pub verify: bool,
    /// What is known of it from an export.
    pub known: Option<Provenance>,
}

/// What a caller changes of a grain. `None` leaves what is there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Patch {
    /// The text.
    pub text: Option<String>,
    /// The source.
    pub source: SourceChange,
    /// All tags.
    pub tags: Option<Vec<String>>,
    /// Attributes to set; null removes one.
    pub attributes: Option<Map<String, Value>>,
    /// The model to embed a changed text with.
    pub model: Option<String>,
}

/// What becomes of a grain's source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SourceChange {
    /// It stays.
    #[default]
    Keep,
    /// It has none any more.
    Remove,
    /// It is this one.
    Set(String),
}

/// What must be stored already for a change to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precondition {
    /// Whatever is there, nothing too.
    #[default]
    Anything,
    /// The grain, in any version.
    Present,
    /// The grain, in this version.
    Version(u64),
}

/// What tells a repeated write from a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Whose write it is.
    pub key: ReceiptKey,
    /// SHA-256 of what is asked.
    pub request: String,
}

/// What became of a grain that was to be written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// It is new.
    Created(Grain),
    /// It has another version now.
    Updated(Grain),
    /// It was like this already.
    Unchanged(Grain),
    /// It was not written.
    Refused(Refusal),
}

/// What texts are embedded for.
#[derive(Clone, Copy, Debug)]
pub struct TextKind {
    /// Which of the model's prompts stands before them.
    pub input_type: InputType,
    /// Whether somebody waits.
    pub priority: Priority,
}

impl TextKind {
    /// The text of a grain that somebody writes.
    pub const DOCUMENT: Self = Self { input_type: InputType::Document, priority: Priority::Interactive };

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
    /// Writes new grains.
    ///
    /// # Errors
    /// The first reason that one of them cannot be written, if all depend on each other: then nothing was written. Else
    /// only what concerns all of them: a model, the database.
    pub async fn create(
        &self,
        drafts: Vec<Draft>,
        atomicity: Atomicity,
        token: Option<Token>,
    ) -> Result<Vec<Outcome>, GrainError> {
        if let Some(outcomes) = self.replay(token.as_ref()).await? {
            return Ok(outcomes);
        }
        match self.create_anew(drafts, atomicity, token.clone()).await {
            // What stood against it may be the same request, which was quicker.
            Err(error) => self.replay(token.as_ref()).await?.ok_or(error),
            created => created,
        }
    }

    async fn create_anew(
        &self,
        drafts: Vec<Draft>,
        atomicity: Atomicity,
        token: Option<Token>,
    ) -> Result<Vec<Outcome>, GrainError> {
        let n_drafts = drafts.len();
        // Which of several it is that cannot be written.
        let among = |at, error| if n_drafts == 1 { error } else { GrainError::Among { at, source: Box::new(error) } };
        let mut planned = self.plan_new(drafts);
        self.refuse_taken(&mut planned).await?;
        for _ in 0..TRIES {
            if atomicity == Atomicity::AllOrNothing
                && let Some(at) = planned.iter().position(Result::is_err)
                && let Err(error) = planned.swap_remove(at)
            {
                return Err(among(at, error));
            }
            let (changes, active) = self.embed(&mut planned, atomicity, Priority::Interactive).await?;
            if atomicity == Atomicity::AllOrNothing && planned.iter().any(Result::is_err) {
                continue;
            }
            let refused: Vec<Option<Refusal>> =
                planned.iter().map(|plan| plan.as_ref().err().map(GrainError::refusal)).collect();
            let ids: Vec<GrainId> = changes.iter().map(|change| change.id.clone()).collect();
            let recorded = (refused.clone(), ids.clone());
            let receipt = token.clone().map(|token| NewReceipt {
                key: token.key,
                request: token.request,
                answer: Box::new(move |applied| {
                    let (refused, ids) = recorded;
                    json(&created(refused, &ids, applied))
                }),
            });
            let batch = Batch { changes, atomicity, while_active: active, receipt, now_us: now_us() };
            match self.commit(batch).await? {
                Committed::ModelMoved => {}
                Committed::Answered(receipt) => return answered(token.as_ref(), &receipt),
                Committed::Applied(applied) => {
                    let stale = applied.iter().position(|applied| matches!(applied, Applied::Stale(_)));
                    if let (Atomicity::AllOrNothing, Some(at)) = (atomicity, stale) {
                        return Err(among(at, GrainError::Exists(ids[at].clone())));
                    }
                    return Ok(created(refused, &ids, &applied));
                }
            }
        }
        Err(self.model_keeps_moving())
    }

    /// Makes a grain what the draft says, whether there is one or not. Doing it again changes nothing.
    ///
    /// # Errors
    /// As [`Self::create`]; [`GrainError::Version`] when it is not in the version that the caller has seen, or
    /// [`GrainError::Absent`].
    pub async fn put(&self, id: &GrainId, draft: Draft, if_match: Precondition) -> Result<Outcome, GrainError> {
        for _ in 0..TRIES {
            let found = self.store.grain(id).await?;
            check_version(id, found.as_ref().map(|found| &found.grain), if_match)?;
            let draft = draft.clone();
            let planned = match found {
                None => {
                    // A new id has the form that ids have; an old one may have any.
                    let id = GrainId::parse(id.as_str())?;
                    let vector = draft.vector.map_or(Plan::Embed(draft.model), Plan::Supplied);
                    Planned { id, expected: Expected::Absent, content: draft.content, created_at: None, vector }
                }
                Some(found) => match self.change_of(found, draft).await? {
                    Ok(planned) => planned,
                    Err(unchanged) => return Ok(Outcome::Unchanged(unchanged)),
                },
            };
            if let Some(outcome) = self.write_one(planned).await? {
                return Ok(outcome);
            }
        }
        Err(GrainError::Contended(id.clone()))
    }

    /// Changes parts of a grain. A text that stays keeps its vectors.
    ///
    /// # Errors
    /// As [`Self::put`], and [`GrainError::NotFound`].
    pub async fn patch(&self, id: &GrainId, patch: Patch, if_match: Precondition) -> Result<Outcome, GrainError> {
        for _ in 0..TRIES {
            let found = self.numbered(id).await?;
            check_version(id, Some(&found.grain), if_match)?;
            let mut content = found.grain.content.clone();
            patch.clone().apply_to(&mut content);
            let draft = Draft { id: None, content, model: patch.model.clone(), vector: None };
            let planned = match self.change_of(found, draft).await? {
                Ok(planned) => planned,
                Err(unchanged) => return Ok(Outcome::Unchanged(unchanged)),
            };
            if let Some(outcome) = self.write_one(planned).await? {
                return Ok(outcome);
            }
        }
        Err(GrainError::Contended(id.clone()))
    }

    /// The outcomes of an earlier write with this key.
    async fn replay(&self, token: Option<&Token>) -> Result<Option<Vec<Outcome>>, GrainError> {
        let Some(token) = token else { return Ok(None) };
        let receipt = self.store.receipt(&token.key).await?;
        receipt.map(|receipt| answered(Some(token), &receipt)).transpose()
    }

    fn plan_new(&self, drafts: Vec<Draft>) -> Vec<Result<Planned, GrainError>> {
        let mut seen = HashSet::new();
        let mut plan = |draft: Draft| {
            let Draft { id, content, model, vector } = draft;
            let id = match id {
                Some(id) => GrainId::parse(&id)?,
                None => GrainId::stored(Uuid::now_v7().to_string()),
            };
            if !seen.insert(id.clone()) {
                return Err(GrainError::Twice(id));
            }
            check_content(&content, self.limits)?;
            let vector = vector.map_or(Plan::Embed(model), Plan::Supplied);
            Ok(Planned { id, expected: Expected::Absent, content, created_at: None, vector })
        };
        drafts.into_iter().map(&mut plan).collect()
    }

    /// Before anything is embedded in vain: which ids are taken.
    async fn refuse_taken(&self, planned: &mut [Result<Planned, GrainError>]) -> Result<(), GrainError> {
        let ids: Vec<GrainId> = planned.iter().flatten().map(|plan| plan.id.clone()).collect();
        let found = self.with_ids(ids).await?;
        let taken: HashSet<GrainId> = found.into_iter().map(|found| found.grain.id).collect();
        for plan in planned {
            if let Ok(Planned { id, .. }) = plan
                && taken.contains(id)
            {
                *plan = Err(GrainError::Exists(id.clone()));
            }
        }
        Ok(())
    }

    /// The grains that have one of these ids.
    pub(super) async fn with_ids(&self, ids: Vec<GrainId>) -> Result<Vec<Numbered>, GrainError> {
        let limit = u32::try_from(ids.len()).unwrap_or(u32::MAX);
        let filter = Filter { ids: Some(ids), ..Filter::default() };
        if self.store.numbers(filter.clone(), 1).await?.is_empty() {
            return Ok(Vec::new());
        }
        let sort = Sort { key: SortKey::Id, descending: false };
        Ok(self.store.page(PageRequest { filter, sort, after: None, limit }).await?.grains)
    }

    /// What must be written so that a stored grain becomes the draft; the grain itself when nothing must.
    pub(super) async fn change_of(&self, found: Numbered, draft: Draft) -> Result<Result<Planned, Grain>, GrainError> {
        let Numbered { number, grain: found } = found;
        let is_same_text = found.content.text == draft.content.text;
        let vector = match (draft.vector, draft.model) {
            (Some(supplied), _) => {
                let has_it = is_same_text && !supplied.verify && self.has_vector(number, &supplied).await?;
                if has_it { Plan::Keep } else { Plan::Supplied(supplied) }
            }
            (None, Some(word)) => {
                let space = self.models.lease(&self.models.resolve(Some(&word))?).await?.facts().fingerprint.space();
                let has_one = is_same_text && self.vector_in(number, &space).await?.is_some();
                if has_one { Plan::Keep } else { Plan::Embed(Some(word)) }
            }
            // Whatever vector it has, none too: only another text is embedded unasked.
            (None, None) if is_same_text => Plan::Keep,
            (None, None) => Plan::Embed(None),
        };
        if matches!(vector, Plan::Keep) && found.content == draft.content {
            return Ok(Err(found));
        }
        let expected = Expected::Version(found.version);
        Ok(Ok(Planned { id: found.id, expected, content: draft.content, created_at: None, vector }))
    }

    /// Whether a grain has this vector of its current text already.
    async fn has_vector(&self, number: i64, supplied: &SuppliedVector) -> Result<bool, GrainError> {
        let Some(stored) = self.vector_in(number, &supplied.space).await? else { return Ok(false) };
        let dimensions = u32::try_from(stored.len()).unwrap_or(u32::MAX);
        Ok(checked(&supplied.vector, dimensions)? == stored)
    }

    /// The vector of a grain's current text in a space.
    async fn vector_in(&self, number: i64, space: &SpaceId) -> Result<Option<Vec<f32>>, GrainError> {
        let batch = self.store.vectors_of_space(space, number - 1, 1).await?;
        Ok(batch.vectors.into_iter().next().filter(|_| batch.numbers == [number]))
    }

    /// Writes one grain; `None` when others were quicker.
    async fn write_one(&self, planned: Planned) -> Result<Option<Outcome>, GrainError> {
        check_content(&planned.content, self.limits)?;
        let is_new = planned.expected == Expected::Absent;
        let mut planned = vec![Ok(planned)];
        let (changes, active) = self.embed(&mut planned, Atomicity::AllOrNothing, Priority::Interactive).await?;
        if let Some(Err(error)) = planned.pop() {
            return Err(error);
        }
        let batch = Batch {
            changes,
            atomicity: Atomicity::AllOrNothing,
            while_active: active,
            receipt: None,
            now_us: now_us(),
        };
        let Committed::Applied(mut applied) = self.commit(batch).await? else { return Ok(None) };
        Ok(match applied.pop() {
            Some(Applied::Written(written)) if is_new => Some(Outcome::Created(written.numbered.grain)),
            Some(Applied::Written(written)) => Some(Outcome::Updated(written.numbered.grain)),
            Some(Applied::Stale(_)) | None => None,
        })
    }

    /// Gives every planned grain its vector. Answers the changes of those that can be written, and the active model if
    /// one of them was embedded with it for being that.
    pub(super) async fn embed(
        &self,
        planned: &mut [Result<Planned, GrainError>],
        atomicity: Atomicity,
        priority: Priority,
    ) -> Result<(Vec<Change>, Option<ModelName>), GrainError> {
        let mut active = None;
        let mut by_model: HashMap<ModelName, Vec<usize>> = HashMap::new();
        for (at, slot) in planned.iter_mut().enumerate() {
            let Ok(plan) = slot else { continue };
            let Plan::Embed(word) = &plan.vector else { continue };
            match self.models.resolve(word.as_deref()) {
                Ok(name) => {
                    if word.is_none() {
                        active = Some(name.clone());
                    }
                    by_model.entry(name).or_default().push(at);
                }
                Err(error) => *slot = Err(error.into()),
            }
        }
        let mut vectors: HashMap<usize, NewVector> = HashMap::new();
        for (name, places) in by_model {
            let lease = self.models.lease(&name).await?;
            lease.check_grain_writes()?;
            for places in places.chunks(TEXTS_AT_ONCE) {
                let kind = TextKind { input_type: InputType::Document, priority };
                match self.embed_texts(&lease, texts_at(planned, places), kind).await {
                    Ok(made) => vectors.extend(places.iter().copied().zip(made)),
                    Err(error) => {
                        let (index, error) = of_one_text(error, &name)?;
                        if atomicity == Atomicity::AllOrNothing {
                            planned[places[index]] = Err(error);
                            return Ok((Vec::new(), active));
                        }
                        // Others may be at fault too: each for itself shows which.
                        for at in places {
                            let text = texts_at(planned, std::slice::from_ref(at));
                            match self.embed_texts(&lease, text, kind).await {
                                Ok(mut made) => vectors.extend(made.pop().map(|vector| (*at, vector))),
                                Err(error) => planned[*at] = Err(of_one_text(error, &name)?.1),
                            }
                        }
                    }
                }
            }
        }
        for (at, slot) in planned.iter_mut().enumerate() {
            if let Ok(Planned { id, content, vector: Plan::Supplied(supplied), .. }) = slot {
                match self.take_supplied(id, &content.text, supplied.clone()).await {
                    Ok(vector) => drop(vectors.insert(at, vector)),
                    Err(error) => *slot = Err(error),
                }
            }
        }
        let change = |(at, plan): (usize, &Planned)| Change {
            id: plan.id.clone(),
            expected: plan.expected,
            content: plan.content.clone(),
            created_at: plan.created_at.clone(),
            vector: vectors.remove(&at),
        };
        let good = planned.iter().enumerate().filter_map(|(at, plan)| Some((at, plan.as_ref().ok()?)));
        Ok((good.map(change).collect(), active))
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
        let over_long = if self.limits.auto_truncate { OverLong::Cut(TruncationSide::Right) } else { OverLong::Refuse };
        let embedded = lease
            .embed(EmbedRequest {
                inputs: texts.into_iter().map(Input::Text).collect(),
                prompt: PromptChoice::For(kind.input_type),
                over_long,
                dimensions: None,
                normalize: None,
                expect_space: Some(lease.facts().fingerprint.space()),
                priority: kind.priority,
            })
            .await?;
        let encoded = embedded.encoded;
        let label = embedded.model.to_string();
        counter!(telemetry::TEXTS, "model" => label.clone()).increment(encoded.n_tokens.len() as u64);
        counter!(telemetry::TOKENS, "model" => label.clone()).increment(encoded.n_tokens.iter().sum::<usize>() as u64);
        counter!(telemetry::TRUNCATED_TEXTS, "model" => label).increment(encoded.truncated.len() as u64);
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

    async fn take_supplied(&self, id: &GrainId, text: &str, supplied: SuppliedVector) -> Result<NewVector, GrainError> {
        let SuppliedVector { space, vector, verify, known } = supplied;
        let record = self.ledger.space(&space).await?.ok_or_else(|| GrainError::UnknownSpace(space.clone()))?;
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
            let made = self.embed_texts(&lease, vec![text.to_owned()], TextKind::DOCUMENT).await?;
            let made = made.into_iter().next().ok_or_else(|| GrainError::NoMaker(space.clone()))?;
            let cosine = cosine(&vector, &made.vector);
            // Not a number is no proof either.
            if !(made.provenance.space == space && cosine >= LEAST_COSINE) {
                let (id, model) = (id.to_string(), name.to_string());
                return Err(GrainError::Unverified { id, model, cosine, least: LEAST_COSINE });
            }
            provenance.model = Some(name.to_string());
            provenance.n_tokens = made.provenance.n_tokens;
            provenance.truncated = made.provenance.truncated;
        }
        Ok(NewVector { provenance, vector })
    }

    pub(super) fn model_keeps_moving(&self) -> GrainError {
        let name = self.models.active();
        GrainError::Model(ModelError::Conflict(format!(
            "the active model was changed at each of {TRIES} tries, and is `{name}` now: try again, or name a `model`"
        )))
    }
}

impl Patch {
    fn apply_to(self, content: &mut Content) {
        if let Some(text) = self.text {
            content.text = text;
        }
        match self.source {
            SourceChange::Keep => {}
            SourceChange::Remove => content.source = None,
            SourceChange::Set(source) => content.source = Some(source),
        }
        if let Some(tags) = self.tags {
            content.tags = tags;
        }
        for (name, value) in self.attributes.into_iter().flatten() {
            if value.is_null() {
                content.attributes.shift_remove(&name);
            } else {
                content.attributes.insert(name, value);
            }
        }
    }
}

fn texts_at(planned: &[Result<Planned, GrainError>], places: &[usize]) -> Vec<String> {
    let text = |at: &usize| planned[*at].as_ref().ok().map(|plan| plan.content.text.clone());
    places.iter().filter_map(text).collect()
}

/// Which of several texts is at fault that they were not embedded, and what is wrong with it; or the error that is
/// nobody's fault.
fn of_one_text(error: GrainError, model: &ModelName) -> Result<(usize, GrainError), GrainError> {
    match error {
        GrainError::Model(ModelError::Engine(EngineError::InputTooLong { index, n_tokens, max_tokens })) => {
            Ok((index, GrainError::TooLong { model: model.clone(), n_tokens, max_tokens }))
        }
        GrainError::Model(ModelError::Engine(EngineError::Tokenize { index, source })) => {
            let message = format!("`text` cannot be split into tokens: {source}");
            Ok((index, GrainError::invalid("text", message)))
        }
        error => Err(error),
    }
}

/// Whether a write of these has reached the database.
pub(super) fn was_committed(applied: &[Applied], atomicity: Atomicity) -> bool {
    atomicity == Atomicity::Each || applied.iter().all(|applied| matches!(applied, Applied::Written(_)))
}

/// The outcomes of a write of new grains, in the order they were sent: what was refused before, and what became of the
/// others.
fn created(refused: Vec<Option<Refusal>>, ids: &[GrainId], applied: &[Applied]) -> Vec<Outcome> {
    let mut written = ids.iter().zip(applied);
    let outcome = |refusal: Option<Refusal>| match refusal {
        Some(refusal) => Outcome::Refused(refusal),
        None => match written.next() {
            Some((_, Applied::Written(written))) => Outcome::Created(written.numbered.grain.clone()),
            Some((id, Applied::Stale(_))) => Outcome::Refused(GrainError::Exists(id.clone()).refusal()),
            // The store answers each change.
            None => Outcome::Refused(GrainError::Empty.refusal()),
        },
    };
    refused.into_iter().map(outcome).collect()
}

fn answered(token: Option<&Token>, receipt: &Receipt) -> Result<Vec<Outcome>, GrainError> {
    match token {
        Some(token) if token.request == receipt.request => {
            serde_json::from_str(&receipt.answer).map_err(GrainError::Receipt)
        }
        other => Err(GrainError::KeyReused(other.map(|token| token.key.key.clone()).unwrap_or_default())),
    }
}

fn check_version(id: &GrainId, found: Option<&Grain>, if_match: Precondition) -> Result<(), GrainError> {
    match (if_match, found.map(|grain| grain.version)) {
        (Precondition::Anything, _) | (Precondition::Present, Some(_)) => Ok(()),
        (Precondition::Version(expected), Some(found)) if found == expected => Ok(()),
        (Precondition::Version(expected), Some(found)) => Err(GrainError::Version { id: id.clone(), expected, found }),
        (Precondition::Present | Precondition::Version(_), None) => Err(GrainError::Absent(id.clone())),
    }
}

pub(super) fn check_content(content: &Content, limits: GrainLimits) -> Result<(), GrainError> {
    let Content { text, source, tags, attributes } = content;
    if text.is_empty() {
        return Err(GrainError::Empty);
    }
    if text.len() as u64 > limits.max_text_bytes {
        return Err(GrainError::invalid(
            "text",
            format!(
                "`text` has {} bytes; a grain takes {}. Send it in parts, or raise `grains.max_text`",
                text.len(),
                limits.max_text_bytes
            ),
        ));
    }
    let without_nul = |field: &'static str, value: &str| {
        let refusal = || GrainError::invalid(field, format!("`{field}` has a NUL character: remove it"));
        if value.contains('\0') { Err(refusal()) } else { Ok(()) }
    };
    without_nul("text", text)?;
    if let Some(source) = source {
        without_nul("source", source)?;
        if source.len() > MAX_SOURCE_BYTES {
            let message = format!("`source` has {} bytes; it takes {MAX_SOURCE_BYTES}", source.len());
            return Err(GrainError::invalid("source", message));
        }
    }
    if tags.len() > MAX_TAGS {
        return Err(GrainError::invalid("tags", format!("there are {} `tags`; a grain takes {MAX_TAGS}", tags.len())));
    }
    for tag in tags {
        without_nul("tags", tag)?;
        if tag.is_empty() || tag.len() > MAX_TAG_BYTES {
            let message = format!("a tag has {} bytes; it takes 1 to {MAX_TAG_BYTES}", tag.len());
            return Err(GrainError::invalid("tags", message));
        }
    }
    let json = json(attributes);
    if json.len() > MAX_ATTRIBUTES_BYTES {
        let message = format!("`attributes` have {} bytes as JSON; they take {MAX_ATTRIBUTES_BYTES}", json.len());
        return Err(GrainError::invalid("attributes", message));
    }
    if attributes.iter().any(|(name, value)| name.contains('\0') || has_nul(value)) {
        return Err(GrainError::invalid("attributes", "`attributes` have a NUL character: remove it"));
    }
    Ok(())
}

/// Whether a string in it has a NUL character.
fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(has_nul),
        Value::Object(members) => members.iter().any(|(name, value)| name.contains('\0') || has_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// # Panics
/// Never: strings, numbers and JSON values are always JSON.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("strings, numbers and JSON values are always JSON")
}
