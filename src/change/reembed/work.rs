//! The one task that works on jobs, one after the other, oldest first, and of ways back the last first. While one rests,
//! what purges of others ask for is deleted: it may go on for days.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;

use super::after::GIVEN_UP;
use super::error::{Errors, ReembedError, cooldown, is_of_load, is_stuck, may_pass};
use super::pace::Pace;
use super::verbs::{move_to, refused};
use super::{Job, Reembeddings};
use crate::domain::{ModelName, OldVectors, Reembedding, ReembeddingId, ReembeddingState, SpaceId};
use crate::grains::store::{Lacking, Made, NewVector, Unembedded};
use crate::grains::{CutOver, GrainError, Target};
use crate::models::Lease;
use crate::telemetry::with_causes;

/// How often it is looked at whether the time to roll a job back is over, and during a rest whether vectors are to be
/// deleted.
pub(super) const UPKEEP: Duration = Duration::from_mins(1);

/// How long to wait after an error that may pass by itself.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// How often a job is tried again after such errors in a row: two minutes.
const TRIES: u32 = 120;

/// How often a grain is tried that the model cannot embed.
const TRIES_OF_A_GRAIN: u32 = 3;

/// Grains that writes have left to the job and that are looked at together: each may have a text of a megabyte.
const MISSED_AT_ONCE: usize = 64;

/// Each grain, and its vector or why there is none.
type Vectors = Vec<(Unembedded, Result<NewVector, String>)>;

/// What vectors are made for: a job, as long as it is in a state, and a model and its space.
#[derive(Clone, Copy)]
pub(super) struct Work<'a> {
    pub(super) id: &'a ReembeddingId,
    pub(super) state: ReembeddingState,
    pub(super) model: &'a ModelName,
    pub(super) space: &'a SpaceId,
}

/// Why work on a job stopped before its end.
pub(super) enum Stopped {
    /// Somebody holds it or has given it up.
    ByHand,
    /// Something went wrong.
    Error(ReembedError),
}

impl<E: Into<ReembedError>> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

impl Reembeddings {
    /// Works until the process stops.
    pub(super) fn work_on(&self) {
        let (jobs, soft) = (self.clone(), self.shutdown.soft().clone());
        self.shutdown.spawn("re-embeddings", async move {
            let mut errors = Errors::default();
            loop {
                tokio::select! {
                    biased;
                    () = soft.cancelled() => return,
                    () = jobs.work(&mut errors) => {}
                }
            }
        });
    }

    /// Works on the next job, or waits for one.
    async fn work(&self, errors: &mut Errors) {
        let Some(record) = self.next_job() else {
            // One that was held begins anew when it comes back.
            *errors = Errors::default();
            // What woke it may have come before it waited: the notification is kept. What was put off wakes nobody.
            let _ = tokio::time::timeout(UPKEEP, self.wake.notified()).await;
            return;
        };
        let (id, n_errors) = (record.id.clone(), errors.of(&record));
        // A panic that went on would end the work on every job.
        let done = or_panicked(Box::pin(self.work_at(&record, n_errors))).await;
        self.grains.end_staging();
        match done {
            Ok(()) | Err(Stopped::ByHand) => *n_errors = 0,
            Err(Stopped::Error(error)) if record.old_vectors == OldVectors::Purging => {
                self.put_off(&record, &error).await;
            }
            Err(Stopped::Error(error)) if is_stuck(&error) || leaves_way_back(&record, &error, *n_errors) => {
                *n_errors = 0;
                self.leave(&id, &error);
            }
            Err(Stopped::Error(error)) if may_pass(&error) && *n_errors < TRIES => {
                if *n_errors == 0 {
                    tracing::warn!(%id, "a re-embedding waits: {}", with_causes(&error));
                }
                *n_errors += 1;
                self.change(&id, |job| job.waits = Some(error.for_callers()));
                tokio::time::sleep(PAUSE).await;
            }
            Err(Stopped::Error(error)) => {
                *n_errors = 0;
                self.fail(&record, &error).await;
            }
        }
    }

    async fn work_at(&self, record: &Reembedding, n_errors: &mut u32) -> Result<(), Stopped> {
        match record.state {
            _ if record.old_vectors == OldVectors::Purging => self.delete_superfluous(record).await,
            ReembeddingState::RollingBack => self.bring_back(record, n_errors).await,
            _ => self.embed_all(record, n_errors).await,
        }
    }

    fn next_job(&self) -> Option<Reembedding> {
        next_of(&self.jobs.read()).map(|job| job.record.clone())
    }

    /// Leaves a job whose model has an inference that does not end, or a way back, for a minute or until a job has
    /// changed: others go on meanwhile. It is not given up: the next process finds the model well, or a later try.
    fn leave(&self, id: &ReembeddingId, error: &ReembedError) {
        let how = if is_stuck(error) { "the job goes on by itself then" } else { "it is tried again by itself" };
        let waits = format!("{}: {how}", error.for_callers());
        let mut is_news = false;
        self.change(id, |job| {
            is_news = job.waits.as_ref() != Some(&waits);
            job.waits = Some(waits);
            job.due_at = Some(Instant::now() + UPKEEP.max(cooldown(error)));
        });
        if is_news {
            tracing::warn!(%id, "a re-embedding waits, and others go on: {}", with_causes(error));
        }
    }

    /// Gives the selected grains their vectors, and lets the space take over.
    async fn embed_all(&self, job: &Reembedding, n_errors: &mut u32) -> Result<(), Stopped> {
        let Reembedding { id, model, space, .. } = job;
        let work = Work { id, state: ReembeddingState::Running, model, space };
        if job.state != ReembeddingState::Running {
            self.try_step(id, |job| move_to(job, ReembeddingState::Running, "run")).await.map_err(by_hand)?;
        }
        // Loaded before writes are told to make vectors with it.
        let n_workers = self.lease(model, space).await?.encoder().n_bulk_workers();
        self.check_start(job).await?;
        self.grains
            .begin_staging(Target {
                model: model.clone(),
                space: space.clone(),
                selection: Arc::new(job.selection.clone()),
            })
            .await?;
        self.grains.account().forget_failures(id).await?;
        self.change(id, |job| job.n_failed = 0);
        let n_left = self.grains.account().count_lacking(lacking(job)).await?;
        self.try_step(id, move |job| {
            job.total = job.done + n_left;
            Ok(())
        })
        .await?;
        let mut pace = Pace::new(job.throttle, n_workers, self.models.interactive());
        let mut after = 0;
        loop {
            self.check(id, work.state)?;
            if self.grains.take_moved() {
                // A grain that was passed over may be one of the selection now.
                after = 0;
            }
            let at_most = pace.begin(self.models.interactive());
            let mut grains = self.grains.account().lacking(lacking(job), after, at_most).await?;
            if let Some(last) = grains.last() {
                after = last.number;
            } else {
                grains = self.grains.account().failed_less_than(id, TRIES_OF_A_GRAIN).await?;
            }
            if grains.is_empty() {
                grains = self.missed(job).await?;
            }
            if grains.is_empty() && self.end(job).await? {
                return Ok(());
            }
            for grains in grains.chunks(at_most as usize) {
                self.embed_batch(work, grains).await?;
                *n_errors = 0;
                self.rest(id, work.state, pace.rest(self.models.interactive())).await?;
                pace.begin(self.models.interactive());
            }
        }
    }

    /// What writes have left to the job since it was last asked.
    async fn missed(&self, job: &Reembedding) -> Result<Vec<Unembedded>, Stopped> {
        loop {
            let missed = self.grains.take_missed(MISSED_AT_ONCE);
            if missed.is_empty() {
                return Ok(Vec::new());
            }
            let at_most = u32::try_from(missed.len()).unwrap_or(u32::MAX);
            let lacking = Lacking { among: Some(missed), ..lacking(job) };
            let grains = self.grains.account().lacking(lacking, 0, at_most).await?;
            if !grains.is_empty() {
                return Ok(grains);
            }
        }
    }

    /// Ends a job that has nothing left to do. Answers whether it has ended: a write may have come in between.
    async fn end(&self, job: &Reembedding) -> Result<bool, Stopped> {
        let id = &job.id;
        let (_, n_failed) = self.grains.account().reembedding_failures(id, 0).await?;
        self.change(id, |job| job.n_failed = n_failed);
        if n_failed > 0 {
            let serves = self.grains.is_first(&job.space).await?;
            let reason = format!(
                "{n_failed} grain{} could not be embedded, {}: `GET /reembeddings/{id}/failures` says why. Edit or delete \
                 what it names, and resume the job",
                if n_failed == 1 { "" } else { "s" },
                if serves { "and what was done is served" } else { "so that nothing was cut over" },
            );
            let step = move |job: &mut Reembedding| {
                move_to(job, ReembeddingState::CompletedWithFailures, "ended")?;
                job.reason = Some(reason);
                Ok(())
            };
            self.try_step(id, step).await.map_err(by_hand)?;
            tracing::warn!(%id, model = %job.model, n_failed, "a re-embedding is done but for some grains");
            return Ok(true);
        }
        self.try_step(id, |job| move_to(job, ReembeddingState::CuttingOver, "cut over")).await.map_err(by_hand)?;
        if self.cut_over(id).await? {
            return Ok(true);
        }
        self.try_step(id, |job| move_to(job, ReembeddingState::Running, "run")).await.map_err(by_hand)?;
        Ok(false)
    }

    /// Lets the space of a job take over. Answers whether it has: a write may have come in between. Goes on when the
    /// process stops: else what is asked of the job in that moment would write over the record of the cut-over.
    async fn cut_over(&self, id: &ReembeddingId) -> Result<bool, Stopped> {
        let (jobs, id) = (self.clone(), id.clone());
        let work = async move {
            // Nobody holds the job or gives it up from here on until its record is whole.
            let _turn = jobs.turn.lock().await;
            let record = jobs.record(&id)?;
            if record.state != ReembeddingState::CuttingOver {
                return Err(Stopped::ByHand);
            }
            match or_taken_over(jobs.grains.cut_over(record), jobs.read_again(&id)).await? {
                CutOver::Done(record, took) => {
                    let took_ms = took.as_secs_f64() * 1e3;
                    tracing::info!(%id, model = %record.model, space = %record.space, n_grains = record.done, took_ms,
                        "a re-embedding is done: its space serves from now on");
                    jobs.put(*record);
                    Ok(true)
                }
                CutOver::TooEarly => Ok(false),
            }
        };
        self.shutdown.finish("cut over a re-embedding", work).await
    }

    /// Takes over what is recorded of a job, behind which memory may lag: else the next step would write over it. The
    /// caller holds the turn, and keeps it until the database answers or the process stops.
    pub(super) async fn read_again(&self, id: &ReembeddingId) {
        loop {
            match self.grains.account().reembeddings().await {
                Ok(records) => {
                    if let Some(record) = records.into_iter().find(|record| record.id == *id) {
                        self.put(record);
                    }
                    self.wake.notify_one();
                    return;
                }
                Err(error) => {
                    tracing::error!(%id, "what is recorded of a re-embedding cannot be read: {}", with_causes(&error));
                }
            }
            if self.shutdown.soft().run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
                return;
            }
        }
    }

    /// Embeds some grains and writes their vectors, or why there are none.
    async fn embed_batch(&self, work: Work<'_>, grains: &[Unembedded]) -> Result<(), Stopped> {
        let vectors = self.make(work, grains).await?;
        let has_failed = vectors.iter().any(|(_, vector)| vector.is_err());
        let n_written = self.grains.write_made(Made { job: Some(work.id.clone()), vectors }).await?;
        let n_failed =
            if has_failed { Some(self.grains.account().reembedding_failures(work.id, 0).await?.1) } else { None };
        self.change(work.id, |job| {
            job.record.done += n_written;
            job.record.total = job.record.total.max(job.record.done);
            job.n_failed = n_failed.unwrap_or(job.n_failed);
            job.rate.note(job.record.done);
            job.waits = None;
        });
        Ok(())
    }

    /// Makes the vectors of some grains. While the model's queue is full or it is being unloaded, this waits; for an
    /// inference no longer than the job is worked on, and not for one that does not end: others wait behind it.
    pub(super) async fn make(&self, work: Work<'_>, grains: &[Unembedded]) -> Result<Vectors, Stopped> {
        loop {
            let lease = self.lease(work.model, work.space).await?;
            let vectors = tokio::select! {
                vectors = self.vectors(&lease, grains) => vectors,
                stopped = self.stopped(work) => return Err(stopped),
            };
            let pause = match vectors {
                Ok(vectors) => return Ok(vectors),
                Err(error) => error.pause_before_retry().ok_or(error)?,
            };
            drop(lease);
            self.rest(work.id, work.state, pause).await?;
        }
    }

    /// The vectors of some grains, or why there is none.
    async fn vectors(&self, lease: &Lease, grains: &[Unembedded]) -> Result<Vectors, GrainError> {
        let texts = grains.iter().map(|grain| grain.text.clone()).collect();
        let made = self.grains.embed_each(lease, texts).await?;
        Ok(grains.iter().cloned().zip(made.into_iter().map(|made| made.map_err(|error| with_causes(&error)))).collect())
    }

    /// Holds the model of a job for a batch.
    async fn lease(&self, model: &ModelName, space: &SpaceId) -> Result<Lease, ReembedError> {
        // Before anything is recorded of the job: that would have jobs that were put off tried again at once.
        self.models.check_answers(model)?;
        let lease = self.models.lease(model).await?;
        let found = lease.facts().fingerprint.space();
        if found != *space {
            return Err(ReembedError::OtherSpace { model: model.clone(), expected: space.clone(), found });
        }
        lease.check_grain_writes()?;
        Ok(lease)
    }

    /// Rests, unless somebody holds the job or gives it up: others wait behind it. What is to be deleted for others does
    /// not wait for its end: it is looked for at once, and again each minute.
    pub(super) async fn rest(
        &self,
        id: &ReembeddingId,
        state: ReembeddingState,
        time: Duration,
    ) -> Result<(), Stopped> {
        let until = tokio::time::Instant::now() + time;
        let mut changes = self.changes.subscribe();
        let mut upkeep = tokio::time::Instant::now();
        loop {
            self.check(id, state)?;
            if upkeep <= tokio::time::Instant::now() {
                self.delete_for_others(id).await;
                upkeep = tokio::time::Instant::now() + UPKEEP;
            }
            match tokio::time::timeout_at(until.min(upkeep), changes.changed()).await {
                Ok(Ok(())) => {}
                // The rest goes on behind the next look.
                Err(_) if upkeep < until => {}
                // The time is over, or nothing changes any more.
                Ok(Err(_)) | Err(_) => return self.check(id, state),
            }
        }
    }

    /// Waits until somebody holds a job or gives it up.
    async fn stopped(&self, work: Work<'_>) -> Stopped {
        let mut changes = self.changes.subscribe();
        loop {
            if let Err(stopped) = self.check(work.id, work.state) {
                return stopped;
            }
            // What sends changes is here: they do not end.
            let _ = changes.changed().await;
        }
    }

    /// Whether a job is still in the state in which it is worked on.
    pub(super) fn check(&self, id: &ReembeddingId, state: ReembeddingState) -> Result<(), Stopped> {
        if self.record(id)?.state == state { Ok(()) } else { Err(Stopped::ByHand) }
    }

    /// Ends a job that cannot go on. One that is being rolled back has its order already, and is left at that.
    pub(super) async fn fail(&self, job: &Reembedding, error: &ReembedError) {
        let mut reason = error.for_callers();
        tracing::error!(id = %job.id, model = %job.model, "a re-embedding cannot go on: {}", with_causes(error));
        let is_purging = job.old_vectors == OldVectors::Purging;
        if is_purging {
            reason.insert_str(0, GIVEN_UP);
        } else if job.state == ReembeddingState::RollingBack {
            reason.push_str(&self.way_out(job).await);
        } else if self.grains.is_first(&job.space).await.unwrap_or(false) {
            reason.push_str("; what was done is served");
        }
        let step = move |job: &mut Reembedding| {
            // Held or given up meanwhile: that stays so.
            if !is_purging && !job.state.is_at_work() {
                return Err(refused(job, "ended"));
            }
            if is_purging {
                job.old_vectors = OldVectors::Kept;
            } else if job.state == ReembeddingState::RollingBack {
                job.state = ReembeddingState::RolledBack;
            } else {
                job.state = ReembeddingState::Failed;
            }
            job.reason = match job.reason.take() {
                // It has met the same before.
                Some(earlier) if earlier.contains(&reason) => Some(earlier),
                Some(earlier) => Some(format!("{earlier}; {reason}")),
                None => Some(reason),
            };
            Ok(())
        };
        if let Err(Stopped::Error(error)) = self.try_step(&job.id, step).await.map_err(by_hand) {
            tracing::error!(id = %job.id, "the end of a re-embedding cannot be recorded: {}", with_causes(&error));
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Awaits work on a job. A panic ends it as an error does, and goes no further.
pub(super) async fn or_panicked(work: impl Future<Output = Result<(), Stopped>>) -> Result<(), Stopped> {
    let done = AssertUnwindSafe(work).catch_unwind().await;
    done.unwrap_or(Err(Stopped::Error(ReembedError::Panicked)))
}

/// Awaits a change that is recorded before all of it is done. After a panic it may be recorded or not, and what is so
/// is taken over.
pub(super) async fn or_taken_over<T>(
    change: impl Future<Output = Result<T, GrainError>>,
    take_over: impl Future<Output = ()>,
) -> Result<T, ReembedError> {
    if let Ok(changed) = AssertUnwindSafe(change).catch_unwind().await {
        return Ok(changed?);
    }
    take_over.await;
    Err(ReembedError::Panicked)
}

fn lacking(job: &Reembedding) -> Lacking {
    Lacking {
        space: job.space.clone(),
        filter: job.selection.clone(),
        unless_failed_in: Some(job.id.clone()),
        among: None,
    }
}

/// A step that the table of states does not allow: somebody was quicker.
pub(super) fn by_hand(error: ReembedError) -> Stopped {
    match error {
        ReembedError::State { .. } | ReembedError::NotFound(_) => Stopped::ByHand,
        error => Stopped::Error(error),
    }
}

/// The oldest job that there is work on. Of those on their way back it is the one that took over last: what it brings
/// back may be in a space that an earlier one goes back from, which waits while that one is put off.
fn next_of(jobs: &BTreeMap<ReembeddingId, Job>) -> Option<&Job> {
    let goes_back = |job: &&Job| job.record.state == ReembeddingState::RollingBack;
    let last_back = jobs.values().filter(goes_back).max_by_key(|job| job.record.cut_over_us);
    let has_turn = |job: &&Job| job.is_due() && (!goes_back(job) || last_back.is_some_and(Job::is_due));
    let oldest = jobs.values().find(has_turn)?;
    last_back.filter(|_| goes_back(&oldest)).or(Some(oldest))
}

/// Whether a way back is left for a while after an error. What may pass does not end it: nothing else brings the model
/// before and what was written since.
fn leaves_way_back(job: &Reembedding, error: &ReembedError, n_errors: u32) -> bool {
    let is_kept = job.state == ReembeddingState::RollingBack && may_pass(error);
    // What meets a bug each time comes to an end.
    is_kept && !matches!(error, ReembedError::Panicked) && (is_of_load(error) || n_errors >= TRIES)
}
