//! Vectors in another space: made beside the ones that serve, until that space takes over.
//!
//! While a re-embedding runs, whoever writes a text also makes its vector for the job, and what could not be made is
//! noted, so that the job knows what it has left to do without looking at every grain again. The cut-over and the way
//! back change one row under the gate, after which the indexes serve from the new order.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::embedding::{Planned, TEXTS_AT_ONCE, TextKind, texts_at};
use super::error::GrainError;
use super::indexes::GrainChange;
use super::service::Grains;
use super::store::{Lacking, Made, NewVector, Purge, ReembeddingStore, Staged, TextFate};
use crate::clock::now_us;
use crate::domain::{Filter, InputType, ModelName, OldVectors, Reembedding, ReembeddingState, SpaceId};
use crate::engine::Priority;
use crate::models::ModelError;
use crate::telemetry::with_causes;

/// How long a write that somebody waits for waits for the model of a re-embedding. What that has not made by then, the
/// job makes again: a slow model should come to the end of most writes.
const PATIENCE: Duration = Duration::from_secs(10);

/// The re-embedding that writes help, if one runs.
#[derive(Clone, Default)]
pub(super) struct Staging(Arc<Mutex<Option<Running>>>);

struct Running {
    target: Target,
    /// Cancelled when writes help it no more.
    ended: CancellationToken,
    /// Grains that were written without a vector in its space.
    missed: BTreeSet<i64>,
    /// Whether grains have moved between spaces, so that others may be selected now.
    has_moved: bool,
}

/// Where a re-embedding puts which grains.
#[derive(Clone, Debug)]
pub struct Target {
    /// The model.
    pub model: ModelName,
    /// Its space.
    pub space: SpaceId,
    /// What the grains meet.
    pub selection: Arc<Filter>,
}

/// What became of a cut-over.
#[derive(Clone, Debug)]
pub enum CutOver {
    /// The space serves. The job as it is recorded now, and for how long writes waited.
    Done(Box<Reembedding>, Duration),
    /// Some grains have no vector in the space yet.
    TooEarly,
}

impl Staging {
    fn begin(&self, target: Target) {
        let ended = CancellationToken::new();
        *self.0.lock() = Some(Running { target, ended, missed: BTreeSet::new(), has_moved: false });
    }

    fn end(&self) {
        let running = self.0.lock().take();
        if let Some(running) = running {
            running.ended.cancel();
        }
    }

    /// Where vectors go, and what is cancelled when they are not wanted any more.
    fn target(&self) -> Option<(Target, CancellationToken)> {
        self.0.lock().as_ref().map(|running| (running.target.clone(), running.ended.clone()))
    }

    fn take_missed(&self, at_most: usize) -> Vec<i64> {
        let mut staging = self.0.lock();
        let Some(Running { missed, .. }) = &mut *staging else { return Vec::new() };
        std::iter::from_fn(|| missed.pop_first()).take(at_most).collect()
    }

    /// The grains that were written without a vector, and whether others have moved between spaces.
    fn left(&self) -> (Vec<i64>, bool) {
        let staging = self.0.lock();
        let left = |running: &Running| (running.missed.iter().copied().collect(), running.has_moved);
        staging.as_ref().map(left).unwrap_or_default()
    }

    /// Notes that grains have moved between spaces. The caller holds the gate.
    fn note_moved(&self) {
        if let Some(running) = &mut *self.0.lock() {
            running.has_moved = true;
        }
    }

    /// Notes that a grain was written, and which vectors it got. The caller holds the gate.
    pub(super) fn note(&self, number: i64, vectors: &[NewVector]) {
        if let Some(Running { target, missed, .. }) = &mut *self.0.lock()
            && !vectors.iter().any(|vector| vector.provenance.space == target.space)
        {
            missed.insert(number);
        }
    }
}

impl Grains {
    /// From now on writes make vectors for a re-embedding, and what they miss is noted. Its space goes behind the others,
    /// as far as it may.
    ///
    /// # Errors
    /// The database's: then nothing has changed.
    pub async fn begin_staging(&self, target: Target) -> Result<(), GrainError> {
        let grains = self.clone();
        let work = async move {
            grains.stand_last(&target.space).await?;
            grains.staging.begin(target);
            Ok(())
        };
        // No write is between its commit and its note.
        self.behind_gate("begin to stage", work).await
    }

    /// Writes make no vectors for a re-embedding any more.
    pub fn end_staging(&self) {
        self.staging.end();
    }

    /// Some of the grains that were written without a vector for the re-embedding. They are not named again.
    #[must_use]
    pub fn take_missed(&self, at_most: usize) -> Vec<i64> {
        self.staging.take_missed(at_most)
    }

    /// Whether grains have moved between spaces since this was last asked.
    #[must_use]
    pub fn take_moved(&self) -> bool {
        self.staging.0.lock().as_mut().is_some_and(|running| std::mem::take(&mut running.has_moved))
    }

    /// Vectors of planned grains for the re-embedding that runs, by their places. What cannot be made now, or not soon
    /// enough for whoever waits, is left to the job, which says why.
    pub(super) async fn stage(
        &self,
        planned: &[Result<Planned, GrainError>],
        vectors: &HashMap<usize, NewVector>,
        priority: Priority,
    ) -> HashMap<usize, Staged> {
        let Some((Target { model, space, selection }, ended)) = self.staging.target() else { return HashMap::new() };
        let is_new = |at: &usize| vectors.get(at).is_some_and(|vector| vector.provenance.space != space);
        let places: Vec<usize> = (0..planned.len()).filter(is_new).collect();
        // A write does not wait for a model of the job's that is known not to answer: it may never do.
        let answers = self.models.status(&model).is_ok_and(|status| status.is_ready() && status.ailment.is_none());
        if places.is_empty() || !answers {
            return HashMap::new();
        }
        let mut staged = HashMap::new();
        let work = async {
            let Ok(lease) = self.models.lease(&model).await else { return };
            if let Err(error) = lease.check_grain_writes() {
                tracing::debug!(%model, "a write leaves vectors to a re-embedding: {}", with_causes(&error));
                return;
            }
            for places in places.chunks(TEXTS_AT_ONCE) {
                let kind = TextKind { input_type: InputType::Document, priority };
                match self.embed_texts(&lease, texts_at(planned, places), kind).await {
                    Ok(made) if lease.facts().fingerprint.space() == space => {
                        let made = made.into_iter().map(|vector| Staged { vector, selection: Arc::clone(&selection) });
                        staged.extend(places.iter().copied().zip(made));
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::debug!(%model, "a write leaves vectors to a re-embedding: {}", with_causes(&error));
                    }
                }
            }
        };
        let patience = (priority == Priority::Interactive).then_some(PATIENCE);
        tokio::select! {
            () = work => {}
            why = out_of_patience(&ended, self.models.found_stuck(&model), patience) => {
                tracing::debug!(%model, "a write leaves vectors to a re-embedding: {why}");
            }
        }
        staged
    }

    /// Writes vectors that were made in the background, and answers how many were still wanted.
    ///
    /// # Errors
    /// The database's: then none was written.
    pub async fn write_made(&self, made: Made) -> Result<u64, GrainError> {
        let grains = self.clone();
        let mut vectors: HashMap<i64, NewVector> = made
            .vectors
            .iter()
            .filter_map(|(grain, vector)| Some((grain.number, vector.as_ref().ok()?.clone())))
            .collect();
        let work = async move {
            let written = grains.store.write_made(made).await?;
            let spaces = vectors.values().map(|vector| &vector.provenance.space);
            grains.indexes.learn(grains.store.as_ref(), spaces).await;
            let change = |number: &i64| {
                let vector = vectors.remove(number)?;
                Some(GrainChange { number: *number, text: TextFate::Kept, vectors: vec![vector] })
            };
            grains.indexes.apply(written.iter().filter_map(change).collect()).await;
            grains.indexes.measure();
            Ok(written.len() as u64)
        };
        self.behind_gate("write vectors", work).await
    }

    /// Makes the space of a re-embedding the first one, if every selected grain has a vector there.
    ///
    /// # Errors
    /// The database's: then nothing has changed.
    pub async fn cut_over(&self, job: Reembedding) -> Result<CutOver, GrainError> {
        let grains = self.clone();
        let work = async move {
            let mut job = job;
            let began = Instant::now();
            let (missed, has_moved) = grains.staging.left();
            if has_moved {
                return Ok(CutOver::TooEarly);
            }
            if !missed.is_empty() {
                let lacking = Lacking {
                    space: job.space.clone(),
                    filter: job.selection.clone(),
                    unless_failed_in: None,
                    among: Some(missed),
                };
                if !grains.store.lacking(lacking, 0, 1).await?.is_empty() {
                    return Ok(CutOver::TooEarly);
                }
            }
            let before = grains.store.space_order().await?;
            let mut order = vec![job.space.clone()];
            order.extend(before.iter().filter(|space| **space != job.space).cloned());
            job.state = ReembeddingState::Completed;
            job.reason = None;
            // What the space serves already is not its own to give back.
            job.previous_order = Some(before).filter(|before| before.first() != Some(&job.space));
            job.old_vectors = OldVectors::Kept;
            job.total = job.done;
            job.changed_us = now_us();
            job.cut_over_us = Some(job.changed_us);
            grains.store.record_with_order(job.clone(), order.clone()).await?;
            grains.indexes.reorder(&order).await;
            grains.anchors.look_again();
            grains.end_staging();
            grains.indexes.measure();
            Ok(CutOver::Done(Box::new(job), began.elapsed()))
        };
        self.behind_gate("cut over", work).await
    }

    /// Puts the space of a re-embedding behind those again that it has passed at the cut-over. These stay as they stand
    /// now: another job may have moved one since, and what has come between them stays behind it where it would serve the
    /// same grains. `None` when another space has become the first: then nothing has changed.
    ///
    /// # Errors
    /// The database's: then nothing has changed.
    pub async fn roll_back(&self, job: Reembedding) -> Result<Option<Reembedding>, GrainError> {
        let grains = self.clone();
        let work = async move {
            let mut job = job;
            let mut order = grains.store.space_order().await?;
            if order.first() != Some(&job.space) {
                return Ok(None);
            }
            let before: Vec<SpaceId> = job.spaces_before().cloned().collect();
            let last_before = order.iter().rposition(|space| before.contains(space)).unwrap_or_default();
            let behind = order.split_off(last_before + 1);
            let is_passed =
                |space: &SpaceId| before.contains(space) || !grains.indexes.share_one(&job.space, space, &before);
            let (passed, between): (Vec<SpaceId>, Vec<SpaceId>) = order.drain(1..).partition(is_passed);
            let order = [passed, vec![job.space.clone()], between, behind].concat();
            job.state = ReembeddingState::RollingBack;
            job.reason = None;
            job.changed_us = now_us();
            grains.store.record_with_order(job.clone(), order.clone()).await?;
            grains.indexes.reorder(&order).await;
            grains.anchors.look_again();
            grains.staging.note_moved();
            grains.indexes.measure();
            Ok(Some(job))
        };
        self.behind_gate("roll back", work).await
    }

    /// Deletes superfluous vectors of the next grains after a number. Answers the last grain that was looked at; `None`
    /// when there are no more.
    ///
    /// # Errors
    /// The database's: then none was deleted.
    pub async fn purge(&self, purge: Purge, after: i64, limit: u32) -> Result<Option<i64>, GrainError> {
        let grains = self.clone();
        let work = async move {
            let Some(purged) = grains.store.purge(purge, after, limit).await? else { return Ok(None) };
            let mut by_space: HashMap<SpaceId, Vec<i64>> = HashMap::new();
            for (space, number) in purged.vectors {
                by_space.entry(space).or_default().push(number);
            }
            for (space, numbers) in by_space {
                grains.indexes.remove_from(&space, &numbers).await;
            }
            grains.indexes.measure();
            Ok(Some(purged.last))
        };
        self.behind_gate("purge vectors", work).await
    }

    /// The account of re-embeddings. It reaches nothing that takes the gate: no vectors, and not the order of spaces.
    #[must_use]
    pub fn account(&self) -> &dyn ReembeddingStore {
        &*self.store
    }

    /// Whether a space is the first one, so that each vector in it serves at once.
    ///
    /// # Errors
    /// The database's.
    pub async fn is_first(&self, space: &SpaceId) -> Result<bool, GrainError> {
        Ok(self.store.space_order().await?.first() == Some(space))
    }

    /// What a purge of a re-embedding's superfluous vectors deletes: those of the spaces before, where it has cut over,
    /// else its own that serve nothing.
    ///
    /// # Errors
    /// The database's.
    pub async fn superfluous(&self, job: &Reembedding) -> Result<Purge, GrainError> {
        if job.state != ReembeddingState::Completed || job.old_vectors == OldVectors::Purged {
            return Ok(Purge::Unserved(job.space.clone()));
        }
        // A later job may have brought one of them before this one again.
        let order = self.store.space_order().await?;
        let behind = order.into_iter().skip_while(|space| *space != job.space).skip(1);
        // Where the space was the first one before, all that is behind it was so then.
        let was_before =
            |space: &SpaceId| job.previous_order.is_none() || job.spaces_before().any(|before| before == space);
        Ok(Purge::Replaced { kept: job.space.clone(), spaces: behind.filter(was_before).collect() })
    }
}

/// Waits until a write should wait for the model of a re-embedding no longer, and answers why.
async fn out_of_patience(
    ended: &CancellationToken,
    stuck: impl Future<Output = ModelError>,
    patience: Option<Duration>,
) -> String {
    let is_over = async {
        match patience {
            Some(patience) => tokio::time::sleep(patience).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = ended.cancelled() => "nobody works on it any more".to_owned(),
        error = stuck => with_causes(&error),
        () = is_over => "its model takes too long".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    fn target() -> Target {
        Target {
            model: ModelName::parse("tiny").expect("a name"),
            space: SpaceId::parse("0123456789abcdef").expect("an id"),
            selection: Arc::default(),
        }
    }

    #[tokio::test]
    async fn a_write_waits_for_no_model_that_is_stuck_or_slow_or_that_no_job_needs_any_more() {
        let staging = Staging::default();
        staging.begin(target());
        let (_, ended) = staging.target().expect("a job runs");
        let never = || std::future::pending::<ModelError>();
        let mut of_an_import = pin!(out_of_patience(&ended, never(), None));
        assert!(futures::poll!(of_an_import.as_mut()).is_pending(), "nobody waits for it");
        let why = out_of_patience(&ended, never(), Some(Duration::ZERO)).await;
        assert_eq!(why, "its model takes too long");
        let stuck = std::future::ready(ModelError::Conflict("it is stuck".to_owned()));
        assert_eq!(out_of_patience(&ended, stuck, None).await, "it is stuck");
        staging.end();
        assert_eq!(of_an_import.await, "nobody works on it any more");
        assert!(staging.target().is_none());
    }

    #[test]
    fn what_is_not_taken_is_still_missed() {
        let staging = Staging::default();
        staging.note(7, &[]);
        assert!(staging.take_missed(10).is_empty(), "no job runs");
        staging.begin(target());
        for number in [3, 1, 2, 1] {
            staging.note(number, &[]);
        }
        staging.note_moved();
        assert_eq!(staging.take_missed(2), [1, 2]);
        assert_eq!(staging.left(), (vec![3], true));
        assert_eq!(staging.take_missed(2), [3]);
        assert!(staging.take_missed(2).is_empty());
    }
}
