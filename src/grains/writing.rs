//! From what a caller writes to a batch for the store: checked, embedded, committed, and answered.

use std::collections::{HashMap, HashSet};

use serde::Serialize;
use serde::de::IgnoredAny;
use uuid::Uuid;

use super::draft::{Draft, Outcome, Patch, Precondition, PutIf, SuppliedVector, Token, check_content};
use super::embedding::{Plan, Planned};
use super::error::GrainError;
use super::refusal::Refusal;
use super::service::Grains;
use super::store::{
    Applied, Atomicity, Batch, Committed, Expected, NewReceipt, NewVector, Numbered, Page, PageRequest, Receipt, Sort,
    SortKey, Vectors,
};
use super::vector::checked;
use crate::domain::{Filter, Grain, GrainId, Provenance};
use crate::engine::Priority;

/// How often a write is tried again when others change the same grain, or the model, meanwhile.
pub(super) const TRIES: usize = 5;

impl Grains {
    /// Writes new grains.
    ///
    /// # Errors
    /// The first reason that one of them cannot be written, if all depend on each other: then nothing was written. Else
    /// only what concerns all of them: the active model, one that others ask too much of or that is still loading, the
    /// database. With a token, whose answer is kept, also the first reason against one of them that may pass.
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
        let is_whole = atomicity == Atomicity::AllOrNothing;
        if let Some((at, error)) = take_first(&mut planned, |_| is_whole) {
            return Err(among(at, error));
        }
        for _ in 0..TRIES {
            let (changes, makers) = self.embed(&mut planned, atomicity, Priority::Interactive).await?;
            // What may pass would be kept with the answer, and outlast what it is about.
            let ends_all = |error: &GrainError| is_whole || token.is_some() && error.may_pass();
            if let Some((at, error)) = take_first(&mut planned, ends_all) {
                return Err(among(at, error));
            }
            let refused: Vec<Option<Refusal>> =
                planned.iter().map(|plan| plan.as_ref().err().map(GrainError::refusal)).collect();
            let ids: Vec<GrainId> = changes.iter().map(|change| change.id.clone()).collect();
            let recorded = (refused.clone(), ids.clone());
            let receipt = token.clone().map(|token| NewReceipt {
                key: token.key,
                request: token.request,
                since_us: self.answers_since_us(),
                answer: Box::new(move |applied| {
                    let (refused, ids) = recorded;
                    json(&created(refused, &ids, applied))
                }),
            });
            let batch = Batch { changes, atomicity, makers, receipt };
            match self.commit(batch).await? {
                Committed::ModelMoved => {}
                Committed::Answered(receipt) => return answered(token.as_ref(), &receipt),
                Committed::Applied(applied) => {
                    let stale = applied.iter().position(|applied| matches!(applied, Applied::Stale(_)));
                    if let (true, Some(at)) = (is_whole, stale) {
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
    /// As [`Self::create`]; [`GrainError::Version`] when it is not in the version that the caller has seen,
    /// [`GrainError::Absent`], or [`GrainError::Present`].
    pub async fn put(&self, id: &GrainId, draft: Draft, only_if: PutIf) -> Result<Outcome, GrainError> {
        for _ in 0..TRIES {
            let found = self.store.grain(id).await?;
            let grain = found.as_ref().map(|found| &found.grain);
            // What is wrong in any version is said first (RFC 9110, 13.2.1).
            let stored = grain.map(|grain| &grain.content);
            if stored.is_none_or(|stored| *stored != draft.content) {
                check_content(&draft.content, stored, self.limits)?;
            }
            match only_if {
                PutIf::Met(precondition) => check_version(id, grain, precondition)?,
                PutIf::Absent if grain.is_some() => return Err(GrainError::Present(id.clone())),
                PutIf::Absent => {}
            }
            let draft = draft.clone();
            let planned = match found {
                None => {
                    // A new id has the form that ids have; an old one may have any.
                    let id = GrainId::parse(id.as_str())?;
                    let model = draft.model.or(draft.usual_model);
                    let vector = draft.vector.map_or(Plan::Embed(model), Plan::Supplied);
                    Planned { id, expected: Expected::Absent, content: draft.content, created_at: None, vector }
                }
                Some(found) => match self.change_of(found, draft, Priority::Interactive).await? {
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
            if patch.attributes.as_ref().is_some_and(|attributes| !attributes.is_empty()) {
                refuse_unreadable(&found.grain)?;
            }
            let mut content = found.grain.content.clone();
            patch.clone().apply_to(&mut content);
            if content != found.grain.content {
                check_content(&content, Some(&found.grain.content), self.limits)?;
            }
            check_version(id, Some(&found.grain), if_match)?;
            let (model, usual_model) = (patch.model.clone(), patch.usual_model.clone());
            let draft = Draft { id: None, content, model, usual_model, vector: None };
            let planned = match self.change_of(found, draft, Priority::Interactive).await? {
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
        let receipt = self.store.receipt(&token.key, self.answers_since_us()).await?;
        receipt.map(|receipt| answered(Some(token), &receipt)).transpose()
    }

    fn plan_new(&self, drafts: Vec<Draft>) -> Vec<Result<Planned, GrainError>> {
        let mut seen = HashSet::new();
        let mut plan = |draft: Draft| {
            let Draft { id, content, model, usual_model, vector } = draft;
            let id = match id {
                Some(id) => GrainId::parse(&id)?,
                None => GrainId::stored(Uuid::now_v7().to_string()),
            };
            if seen.contains(&id) {
                return Err(GrainError::Twice(id));
            }
            check_content(&content, None, self.limits)?;
            // One that is refused for its content takes the id from no other.
            seen.insert(id.clone());
            let vector = vector.map_or(Plan::Embed(model.or(usual_model)), Plan::Supplied);
            Ok(Planned { id, expected: Expected::Absent, content, created_at: None, vector })
        };
        drafts.into_iter().map(&mut plan).collect()
    }

    /// Before anything is embedded in vain: which ids are taken.
    async fn refuse_taken(&self, planned: &mut [Result<Planned, GrainError>]) -> Result<(), GrainError> {
        let ids: Vec<GrainId> = planned.iter().flatten().map(|plan| plan.id.clone()).collect();
        let found = self.with_ids(ids, Vectors::Omitted).await?;
        let taken: HashSet<GrainId> = found.grains.into_iter().map(|found| found.grain.id).collect();
        for plan in planned {
            if let Ok(Planned { id, .. }) = plan
                && taken.contains(id)
            {
                *plan = Err(GrainError::Exists(id.clone()));
            }
        }
        Ok(())
    }

    /// The grains that have one of these ids, all in one page.
    pub(super) async fn with_ids(&self, ids: Vec<GrainId>, vectors: Vectors) -> Result<Page, GrainError> {
        let limit = u32::try_from(ids.len()).unwrap_or(u32::MAX);
        let filter = Filter { ids: Some(ids), ..Filter::default() };
        let mut all = Page { grains: Vec::new(), vectors: HashMap::new(), next: None };
        if self.store.numbers(filter.clone(), 1).await?.is_empty() {
            return Ok(all);
        }
        let sort = Sort { key: SortKey::Id, descending: false };
        loop {
            let after = all.next.take();
            let page = self.store.page(PageRequest { filter: filter.clone(), sort, after, limit, vectors }).await?;
            all.grains.extend(page.grains);
            all.vectors.extend(page.vectors);
            all.next = page.next;
            if all.next.is_none() {
                return Ok(all);
            }
        }
    }

    /// What must be written so that a stored grain becomes the draft; the grain itself when nothing must.
    pub(super) async fn change_of(
        &self,
        found: Numbered,
        draft: Draft,
        priority: Priority,
    ) -> Result<Result<Planned, Grain>, GrainError> {
        let Numbered { number, grain: found } = found;
        let is_same_text = found.content.text == draft.content.text;
        let vector = match (draft.vector, draft.model) {
            (Some(mut supplied), _) => {
                let stored = if is_same_text { self.stored_as(number, &supplied).await? } else { None };
                if stored.is_some() && supplied.verify {
                    let text = &draft.content.text;
                    let verified = self.take_supplied(&found.id, text, supplied.clone(), priority).await?;
                    // Nothing is embedded a second time for the write.
                    let NewVector { vector, provenance } = verified;
                    supplied = SuppliedVector { vector, verify: false, known: Some(provenance), ..supplied };
                }
                let says_nothing_new = supplied.known.is_none() || supplied.known == stored;
                if stored.is_some() && says_nothing_new { Plan::Keep } else { Plan::Supplied(supplied) }
            }
            (None, Some(word)) => {
                let space = self.models.lease(&self.models.resolve(Some(&word))?).await?.facts().fingerprint.space();
                let has_one = is_same_text && self.store.vector_in(number, &space).await?.is_some();
                if has_one { Plan::Keep } else { Plan::Embed(Some(word)) }
            }
            // Whatever vector it has, none too: only another text is embedded unasked.
            (None, None) if is_same_text => Plan::Keep,
            (None, None) => Plan::Embed(draft.usual_model),
        };
        if matches!(vector, Plan::Keep) && found.content == draft.content {
            return Ok(Err(found));
        }
        let expected = Expected::Version { number, version: found.version };
        Ok(Ok(Planned { id: found.id, expected, content: draft.content, created_at: None, vector }))
    }

    /// What is known of a vector that is brought along, if the grain's current text has it already.
    async fn stored_as(&self, number: i64, supplied: &SuppliedVector) -> Result<Option<Provenance>, GrainError> {
        let stored = self.store.vector_in(number, &supplied.space).await?;
        let Some(NewVector { provenance, vector }) = stored else { return Ok(None) };
        let scaled = checked(&supplied.vector, provenance.dimensions)?;
        // As it is stored: see `take_supplied`.
        let is_same = if supplied.known.is_some() { supplied.vector == vector } else { scaled == vector };
        Ok(is_same.then_some(provenance))
    }

    /// Writes one grain, of which the content is checked; `None` when others were quicker.
    async fn write_one(&self, planned: Planned) -> Result<Option<Outcome>, GrainError> {
        let is_new = planned.expected == Expected::Absent;
        let mut planned = vec![Ok(planned)];
        let (changes, makers) = self.embed(&mut planned, Atomicity::AllOrNothing, Priority::Interactive).await?;
        if let Some(Err(error)) = planned.pop() {
            return Err(error);
        }
        let batch = Batch { changes, atomicity: Atomicity::AllOrNothing, makers, receipt: None };
        let Committed::Applied(mut applied) = self.commit(batch).await? else { return Ok(None) };
        Ok(match applied.pop() {
            Some(Applied::Written(written)) if is_new => Some(Outcome::Created(written.numbered.grain)),
            Some(Applied::Written(written)) => Some(Outcome::Updated(written.numbered.grain)),
            Some(Applied::Stale(_)) | None => None,
        })
    }

    pub(super) fn model_keeps_moving(&self) -> GrainError {
        GrainError::ModelKeepsMoving { active: self.models.active() }
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

/// Takes the first error that is so out of grains of which none will be written then.
fn take_first(
    planned: &mut Vec<Result<Planned, GrainError>>,
    is_so: impl Fn(&GrainError) -> bool,
) -> Option<(usize, GrainError)> {
    let at = planned.iter().position(|plan| plan.as_ref().is_err_and(&is_so))?;
    Some((at, planned.swap_remove(at).err()?))
}

/// Refuses to change single attributes where the others cannot be read: they would be lost.
fn refuse_unreadable(grain: &Grain) -> Result<(), GrainError> {
    let Grain { id, content, raw_meta, .. } = grain;
    // What has a number or a nesting that is beyond any value is an object all the same.
    let is_object = |raw: &str| raw.trim_start().starts_with('{') && serde_json::from_str::<IgnoredAny>(raw).is_ok();
    // What is shown for its source or tags alone has no attributes that could be lost.
    let has_attributes = |raw: &str| match serde_json::from_str::<HashMap<String, Option<IgnoredAny>>>(raw) {
        Ok(members) => members.keys().any(|name| name != "source" && name != "tags"),
        Err(_) => true,
    };
    let is_unread = |raw: &str| is_object(raw) && has_attributes(raw);
    if content.attributes.is_empty() && raw_meta.as_deref().is_some_and(is_unread) {
        let message = format!(
            "the attributes of `{id}` cannot be read, and are shown under `meta.raw` as an earlier version stored \
             them: `PUT /grains/{id}` with all its `attributes` replaces them"
        );
        return Err(GrainError::invalid("attributes", message));
    }
    Ok(())
}

fn check_version(id: &GrainId, found: Option<&Grain>, if_match: Precondition) -> Result<(), GrainError> {
    match (if_match, found.map(|grain| grain.version)) {
        (Precondition::Anything, _) | (Precondition::Present, Some(_)) => Ok(()),
        (Precondition::Version(expected), Some(found)) if found == expected => Ok(()),
        (Precondition::Version(expected), Some(found)) => Err(GrainError::Version { id: id.clone(), expected, found }),
        (Precondition::Present | Precondition::Version(_), None) => Err(GrainError::Absent(id.clone())),
    }
}

/// # Panics
/// Never: strings, numbers and JSON values are always JSON.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("strings, numbers and JSON values are always JSON")
}
