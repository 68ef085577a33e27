//! A batch of an import's lines on its way to the store: looked up, embedded, committed.

use std::collections::{HashMap, HashSet};

use tokio::sync::Mutex;

use super::super::draft::{Draft, SuppliedVector, check_content};
use super::super::embedding::{Plan, Planned, TEXTS_AT_ONCE};
use super::super::error::GrainError;
use super::super::refusal::Refusal;
use super::super::service::Grains;
use super::super::store::{Applied, Atomicity, Batch, Change, Committed, Expected, Makers, Numbered, Page, Vectors};
use super::super::writing::TRIES;
use super::import::{ImportOptions, OnConflict, UnknownVectors};
use super::lines::ImportGrain;
use crate::domain::{Grain, GrainId, SpaceId};
use crate::engine::Priority;

/// Lines that are written together at most.
pub(super) const BATCH_LINES: usize = TEXTS_AT_ONCE;

/// Bytes of lines, and of what they become, from which on a batch is full, however few they are.
const BATCH_BYTES: usize = 16 << 20;

/// A grain to take in, with the id it is to have.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) number: u64,
    pub(super) id: GrainId,
    pub(super) grain: ImportGrain,
}

/// Lines to be written together.
#[derive(Default)]
pub(super) struct Lines {
    lines: Vec<Line>,
    n_bytes: usize,
}

impl Lines {
    pub(super) fn push(&mut self, line: Line, size: usize) {
        self.lines.push(line);
        self.n_bytes += size;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.lines.len() >= BATCH_LINES || self.n_bytes >= BATCH_BYTES
    }

    pub(super) fn take(&mut self) -> Vec<Line> {
        self.n_bytes = 0;
        std::mem::take(&mut self.lines)
    }
}

/// What became of a line.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) number: u64,
    pub(super) id: GrainId,
    pub(super) fate: Fate,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Created,
    Replaced,
    Unchanged,
    Skipped,
    Failed(Refusal),
}

/// Lines with their vectors, to be committed.
pub(super) struct Prepared {
    groups: Vec<Group>,
    verdicts: Vec<Verdict>,
    /// Their ids are those of earlier lines: they come after them, one by one.
    repeated: Vec<Line>,
}

/// The most spaces that one import has looked for.
const MAX_SOUGHT: usize = 1000;

/// Lines whose vectors come from one place.
#[derive(Default)]
struct Group {
    lines: Vec<Line>,
    planned: Vec<Result<Planned, GrainError>>,
    changes: Vec<Change>,
    makers: Makers,
}

/// Where vectors come from.
#[derive(PartialEq, Eq, Hash)]
enum VectorSource {
    /// No model: they are there.
    AtHand,
    /// The active model.
    Active,
    /// The model that the line names.
    Named(String),
}

/// Writes the batches of one import.
pub(super) struct Writer {
    pub(super) grains: Grains,
    pub(super) options: ImportOptions,
    /// Spaces that were looked for, with the model that was said to make each: models are loaded once for that, and
    /// whoever asks meanwhile waits for the answer.
    pub(super) sought: Mutex<HashSet<(SpaceId, Option<String>)>>,
}

impl Writer {
    /// Looks the lines up and makes their vectors. `ahead` are the ids of lines before them that are not written yet.
    ///
    /// # Errors
    /// What concerns all lines, not one: the database, the active model.
    pub(super) async fn prepare(&self, lines: Vec<Line>, mut ahead: HashSet<GrainId>) -> Result<Prepared, GrainError> {
        let (first, repeated): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| ahead.insert(line.id.clone()));
        let ids = first.iter().map(|line| line.id.clone()).collect();
        // A line of an export may bring the vector that is stored.
        let is_compared =
            self.options.on_conflict == OnConflict::Replace && first.iter().any(|line| line.grain.is_of_export());
        let vectors = if is_compared { Vectors::Included } else { Vectors::Omitted };
        let Page { grains, mut vectors, .. } = self.grains.with_ids(ids, vectors).await?;
        let mut found: HashMap<GrainId, Found> = grains
            .into_iter()
            .map(|stored| (stored.grain.id.clone(), Found { vector: vectors.remove(&stored.number), stored }))
            .collect();
        let mut prepared = Prepared { groups: Vec::new(), verdicts: Vec::new(), repeated };
        let mut groups: HashMap<VectorSource, Group> = HashMap::new();
        for mut line in first {
            let found = found.remove(&line.id);
            match self.plan(&mut line, found).await? {
                Ok(planned) => {
                    let group = groups.entry(VectorSource::of(&planned.vector)).or_default();
                    group.lines.push(line);
                    group.planned.push(Ok(planned));
                }
                Err(fate) => prepared.verdicts.push(Verdict { number: line.number, id: line.id, fate }),
            }
        }
        for mut group in groups.into_values() {
            self.embed(&mut group).await?;
            prepared.groups.push(group);
        }
        Ok(prepared)
    }

    /// Commits what was prepared. Nothing else of this import is committed meanwhile.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub(super) async fn write(&self, mut prepared: Prepared) -> Result<Vec<Verdict>, GrainError> {
        let mut one_by_one = std::mem::take(&mut prepared.repeated);
        let (mut verdicts, stale) = self.commit(prepared).await?;
        one_by_one.extend(stale);
        one_by_one.sort_by_key(|line| line.number);
        for line in one_by_one {
            verdicts.push(self.write_alone(line).await?);
        }
        Ok(verdicts)
    }

    /// Writes a line on what is there by now.
    async fn write_alone(&self, mut line: Line) -> Result<Verdict, GrainError> {
        for _ in 0..TRIES {
            let prepared = self.prepare(vec![line], HashSet::new()).await?;
            let (mut verdicts, mut stale) = self.commit(prepared).await?;
            match (verdicts.pop(), stale.pop()) {
                (_, Some(again)) => line = again,
                (Some(verdict), None) => return Ok(verdict),
                // Each line has a verdict or is stale.
                (None, None) => return Err(self.grains.model_keeps_moving()),
            }
        }
        let refusal = GrainError::Contended(line.id.clone()).refusal();
        Ok(line.failed(refusal))
    }

    /// What must be written for a line, or what becomes of it without a write.
    async fn plan(&self, line: &mut Line, found: Option<Found>) -> Result<Result<Planned, Fate>, GrainError> {
        let refused = |error: GrainError| Ok(Err(Fate::Failed(error.refusal())));
        match (&found, self.options.on_conflict) {
            (Some(_), OnConflict::Skip) => return Ok(Err(Fate::Skipped)),
            (Some(_), OnConflict::Error) => return refused(GrainError::Taken(line.id.clone())),
            (Some(_), OnConflict::Replace) => {}
            // A new id has the form that ids have; an old one may have any.
            (None, _) => {
                if let Err(error) = GrainId::parse(line.id.as_str()) {
                    return refused(error.into());
                }
            }
        }
        let stored_raw = found.as_ref().and_then(|found| found.stored.grain.raw_meta.as_ref());
        if line.grain.raw_meta.is_some() && line.grain.raw_meta.as_ref() != stored_raw {
            let message = "`meta.raw` is metadata of version 0.3, which no grain can be given: write what it says as \
                           `source`, `tags` and `attributes`, and leave it out";
            return refused(GrainError::invalid("meta.raw", message));
        }
        let stored_content = found.as_ref().map(|found| &found.stored.grain.content);
        if let Err(error) = check_content(&line.grain.draft.content, stored_content, self.grains.limits) {
            return refused(error);
        }
        if let Some(space) = line.grain.draft.vector.as_ref().map(|supplied| supplied.space.clone())
            && !self.is_known(&space, line.grain.made_by.as_deref()).await?
        {
            match self.options.unknown_vectors {
                UnknownVectors::Refuse => return refused(GrainError::UnknownSpace(space)),
                UnknownVectors::Reembed => line.grain.draft.vector = None,
            }
        }
        let draft = line.grain.draft.clone();
        let Some(Found { stored, vector }) = found else {
            return Ok(Ok(Planned {
                id: line.id.clone(),
                expected: Expected::Absent,
                content: draft.content,
                created_at: line.grain.created_at.clone(),
                vector: draft.vector.map_or(Plan::Embed(draft.model), Plan::Supplied),
            }));
        };
        if let Some(supplied) = &draft.vector
            && draft.content == stored.grain.content
            && is_same_vector(supplied, &stored.grain, vector.as_deref())
        {
            return Ok(Err(Fate::Unchanged));
        }
        loop {
            let error = match self.grains.change_of(stored.clone(), draft.clone(), Priority::Internal).await {
                Ok(changed) => return Ok(changed.map_err(|_| Fate::Unchanged)),
                Err(error) => error,
            };
            match error.wait_out().await {
                Ok(()) => {}
                Err(error) if is_of_database(&error) || is_of_active_model(&error, &draft) => return Err(error),
                Err(error) => return refused(error),
            }
        }
    }

    /// Whether vectors of a space can be kept: it is recorded, or a model that makes it is here.
    async fn is_known(&self, space: &SpaceId, made_by: Option<&str>) -> Result<bool, GrainError> {
        if self.grains.ledger.space(space).await?.is_some() {
            return Ok(true);
        }
        let mut sought = self.sought.lock().await;
        if sought.len() >= MAX_SOUGHT || !sought.insert((space.clone(), made_by.map(str::to_owned))) {
            return Ok(self.grains.ledger.space(space).await?.is_some());
        }
        // A model that was never loaded has not shown its space yet.
        let models = &self.grains.models;
        for name in made_by.into_iter().filter_map(|word| models.resolve(Some(word)).ok()).chain([models.active()]) {
            while let Err(error) = models.lease(&name).await {
                if error.wait_out().await.is_err() {
                    break;
                }
            }
            if self.grains.ledger.space(space).await?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes a group's vectors, waiting while the model is loading or its queue is full.
    ///
    /// # Errors
    /// As [`Self::prepare`], though it is met at one line alone.
    async fn embed(&self, group: &mut Group) -> Result<(), GrainError> {
        loop {
            match self.grains.embed(&mut group.planned, Atomicity::Each, Priority::Internal).await {
                Ok((changes, makers)) => {
                    let failed = |planned: &Result<Planned, GrainError>| planned.as_ref().is_err_and(is_of_database);
                    if let Some(at) = group.planned.iter().position(failed) {
                        return group.planned.swap_remove(at).map(drop);
                    }
                    (group.changes, group.makers) = (changes, makers);
                    return Ok(());
                }
                Err(error) => error.wait_out().await?,
            }
        }
    }

    /// Commits each group. Answers what became of the lines, and those that others were quicker with.
    async fn commit(&self, prepared: Prepared) -> Result<(Vec<Verdict>, Vec<Line>), GrainError> {
        let Prepared { groups, mut verdicts, repeated: mut stale } = prepared;
        for mut group in groups {
            let applied = self.commit_group(&mut group).await?;
            let mut applied = applied.into_iter();
            for (line, planned) in group.lines.into_iter().zip(group.planned) {
                let fate = match planned {
                    Err(error) => Fate::Failed(error.refusal()),
                    Ok(planned) => match applied.next() {
                        Some(Applied::Written(_)) if planned.expected == Expected::Absent => Fate::Created,
                        Some(Applied::Written(_)) => Fate::Replaced,
                        Some(Applied::Stale(_)) | None => {
                            stale.push(line);
                            continue;
                        }
                    },
                };
                verdicts.push(Verdict { number: line.number, id: line.id, fate });
            }
        }
        Ok((verdicts, stale))
    }

    async fn commit_group(&self, group: &mut Group) -> Result<Vec<Applied>, GrainError> {
        for _ in 0..TRIES {
            if group.changes.is_empty() {
                return Ok(Vec::new());
            }
            let batch = Batch {
                changes: std::mem::take(&mut group.changes),
                atomicity: Atomicity::Each,
                makers: std::mem::take(&mut group.makers),
                receipt: None,
            };
            if let Committed::Applied(applied) = self.grains.commit(batch).await? {
                return Ok(applied);
            }
            // Another model is active by now, or one has changed.
            self.embed(group).await?;
        }
        Err(self.grains.model_keeps_moving())
    }
}

/// A stored grain, and the vector it is served by if lines bring some.
struct Found {
    stored: Numbered,
    vector: Option<Vec<f32>>,
}

impl VectorSource {
    fn of(plan: &Plan) -> Self {
        match plan {
            Plan::Keep | Plan::Supplied(_) => Self::AtHand,
            Plan::Embed(None) => Self::Active,
            Plan::Embed(Some(word)) => Self::Named(word.clone()),
        }
    }
}

impl Line {
    fn failed(self, refusal: Refusal) -> Verdict {
        Verdict { number: self.number, id: self.id, fate: Fate::Failed(refusal) }
    }
}

/// Whether a grain is served by the vector of an export's line, and the same is known of it.
fn is_same_vector(supplied: &SuppliedVector, grain: &Grain, stored: Option<&[f32]>) -> bool {
    supplied.known.is_some()
        && supplied.known == grain.provenance
        && stored == Some(supplied.vector.as_slice())
        && !supplied.verify
}

/// Whether an error is of the active model, which other lines need too: not of one that a line has to do with alone.
fn is_of_active_model(error: &GrainError, draft: &Draft) -> bool {
    let has_own = draft.model.is_some() || draft.vector.as_ref().is_some_and(|supplied| supplied.verify);
    !has_own && matches!(error, GrainError::Model(_))
}

/// Whether an error would meet any other line too, whatever it brings along.
fn is_of_database(error: &GrainError) -> bool {
    matches!(error, GrainError::Store(_) | GrainError::Ledger(_) | GrainError::Index(_))
}
