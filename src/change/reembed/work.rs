//! The one task that works on jobs, one after the other, oldest first.

use std::sync::Arc;
use std::time::Duration;

use super::Reembeddings;
use super::error::ReembedError;
use super::pace::Pace;
use super::verbs::move_to;
use crate::clock::now_us;
use crate::domain::{
    Filter, ModelName, OldVectors, Reembedding, ReembeddingId, ReembeddingState, SpaceCondition, SpaceId,
};
use crate::engine::EngineError;
use crate::grains::store::{Lacking, Made, NewVector, Unembedded};
use crate::grains::{CutOver, GrainError, Target, TextKind};
use crate::models::error::with_causes;
use crate::models::{Lease, ModelError};

/// How often it is looked at whether the time to roll a job back is over.
const UPKEEP: Duration = Duration::from_mins(1);

/// How long to wait after an error that may pass by itself.
const PAUSE: Duration = Duration::from_secs(1);

/// How often a job is tried again after such errors in a row: two minutes.
const TRIES: u32 = 120;

/// How often a grain is tried that the model cannot embed.
const TRIES_OF_A_GRAIN: u32 = 3;

/// Grains whose superfluous vectors are deleted at once.
const PURGED_AT_ONCE: u32 = 1_000;

/// Why work on a job stopped before its end.
enum Stopped {
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
            let mut n_errors = 0;
            loop {
                tokio::select! {
                    biased;
                    () = soft.cancelled() => return,
                    () = jobs.work(&mut n_errors) => {}
                }
            }
        });
    }

    /// Works on the next job, or waits for one.
    async fn work(&self, n_errors: &mut u32) {
        let next = self
            .jobs
            .read()
            .values()
            .map(|job| job.record.clone())
            .find(|record| record.state.is_at_work() || record.old_vectors == OldVectors::Purging);
        let Some(record) = next else {
            // What woke it may have come before it waited: the notification is kept.
            let _ = tokio::time::timeout(UPKEEP, self.wake.notified()).await;
            return self.close_windows().await;
        };
        let id = record.id.clone();
        let done = match record.state {
            _ if record.old_vectors == OldVectors::Purging => self.delete_superfluous(&record).await,
            ReembeddingState::RollingBack => self.bring_back(&record).await,
            _ => self.embed_all(&record).await,
        };
        self.grains.end_staging();
        match done {
            Ok(()) | Err(Stopped::ByHand) => *n_errors = 0,
            Err(Stopped::Error(error)) if may_pass(&error) && *n_errors < TRIES => {
                if *n_errors == 0 {
                    tracing::warn!(%id, "a re-embedding waits: {}", with_causes(&error));
                }
                *n_errors += 1;
                tokio::time::sleep(PAUSE).await;
            }
            Err(Stopped::Error(error)) => {
                *n_errors = 0;
                self.fail(&record, &error).await;
            }
        }
    }

    /// Gives the selected grains their vectors, and lets the space take over.
    async fn embed_all(&self, job: &Reembedding) -> Result<(), Stopped> {
        let id = &job.id;
        if job.state != ReembeddingState::Running {
            self.try_step(id, "run", |job| move_to(job, ReembeddingState::Running)).await.map_err(by_hand)?;
        }
        // Loaded before writes are told to make vectors with it.
        drop(self.lease(&job.model, &job.space).await?);
        self.grains
            .begin_staging(Target {
                model: job.model.clone(),
                space: job.space.clone(),
                selection: Arc::new(job.selection.clone()),
            })
            .await;
        self.grains.forget_failures(id).await?;
        self.change(id, |job| job.n_failed = 0);
        let n_left = self.grains.count_lacking(lacking(job)).await?;
        self.try_step(id, "counted", move |job| {
            job.total = job.done + n_left;
            true
        })
        .await?;
        let mut pace = Pace::new(job.throttle, self.models.interactive());
        let mut after = 0;
        loop {
            self.check_running(id)?;
            let at_most = pace.begin(self.models.interactive());
            let mut grains = self.grains.lacking(lacking(job), after, at_most).await?;
            if let Some(last) = grains.last() {
                after = last.number;
            } else {
                grains = self.grains.failed_less_than(id, TRIES_OF_A_GRAIN).await?;
            }
            if grains.is_empty() {
                grains = self.missed(job).await?;
            }
            if grains.is_empty() && self.end(job).await? {
                return Ok(());
            }
            for grains in grains.chunks(at_most as usize) {
                self.embed_batch(job, grains).await?;
                self.rest(id, pace.rest(self.models.interactive())).await?;
                pace.begin(self.models.interactive());
            }
        }
    }

    /// What writes have left to the job since it was last asked.
    async fn missed(&self, job: &Reembedding) -> Result<Vec<Unembedded>, Stopped> {
        let missed = self.grains.take_missed();
        if missed.is_empty() {
            return Ok(Vec::new());
        }
        let at_most = u32::try_from(missed.len()).unwrap_or(u32::MAX);
        Ok(self.grains.lacking(Lacking { among: Some(missed), ..lacking(job) }, 0, at_most).await?)
    }

    /// Ends a job that has nothing left to do. Answers whether it has ended: a write may have come in between.
    async fn end(&self, job: &Reembedding) -> Result<bool, Stopped> {
        let id = &job.id;
        let (_, n_failed) = self.grains.reembedding_failures(id, 0).await?;
        if n_failed > 0 {
            let reason = format!(
                "{n_failed} grain{} could not be embedded, so that nothing was cut over: `GET /reembeddings/{id}/failures` \
                 says why. Edit or delete what it names, and resume the job",
                if n_failed == 1 { "" } else { "s" }
            );
            let step = move |job: &mut Reembedding| {
                let may = move_to(job, ReembeddingState::CompletedWithFailures);
                job.reason = Some(reason);
                may
            };
            self.try_step(id, "ended", step).await.map_err(by_hand)?;
            tracing::warn!(%id, model = %job.model, n_failed, "a re-embedding is done but for some grains: nothing was cut over");
            return Ok(true);
        }
        self.try_step(id, "cut over", |job| move_to(job, ReembeddingState::CuttingOver)).await.map_err(by_hand)?;
        // Nobody holds the job or gives it up from here on until its record is whole.
        let turn = self.turn.lock().await;
        let record = self.record(id)?;
        if record.state != ReembeddingState::CuttingOver {
            return Err(Stopped::ByHand);
        }
        match self.grains.cut_over(record).await? {
            CutOver::Done(record, took) => {
                tracing::info!(%id, model = %record.model, space = %record.space, n_grains = record.done, ?took,
                    "a re-embedding is done: its space serves from now on");
                self.put(*record);
                Ok(true)
            }
            CutOver::TooEarly => {
                drop(turn);
                self.try_step(id, "run", |job| move_to(job, ReembeddingState::Running)).await.map_err(by_hand)?;
                Ok(false)
            }
        }
    }

    /// Embeds some grains and writes their vectors, or why there are none.
    async fn embed_batch(&self, job: &Reembedding, grains: &[Unembedded]) -> Result<(), Stopped> {
        let lease = self.lease(&job.model, &job.space).await?;
        let vectors = self.vectors(&lease, grains).await?;
        let has_failed = vectors.iter().any(|(_, vector)| vector.is_err());
        let n_written = self.grains.write_made(Made { job: Some(job.id.clone()), vectors }).await?;
        let n_failed = if has_failed { Some(self.grains.reembedding_failures(&job.id, 0).await?.1) } else { None };
        self.change(&job.id, |job| {
            job.record.done += n_written;
            job.record.total = job.record.total.max(job.record.done);
            job.n_failed = n_failed.unwrap_or(job.n_failed);
            job.rate.note(job.record.done);
        });
        Ok(())
    }

    /// The vectors of some grains. Where the model fails on them, each is tried alone: the others are not to blame.
    async fn vectors(
        &self,
        lease: &Lease,
        grains: &[Unembedded],
    ) -> Result<Vec<(Unembedded, Result<NewVector, String>)>, GrainError> {
        let texts = grains.iter().map(|grain| grain.text.clone()).collect();
        match self.grains.embed_texts(lease, texts, TextKind::BACKGROUND).await {
            Ok(made) => return Ok(grains.iter().cloned().zip(made.into_iter().map(Ok)).collect()),
            Err(error) if is_of_a_text(&error) => {}
            Err(error) => return Err(error),
        }
        let mut vectors = Vec::with_capacity(grains.len());
        for grain in grains {
            let made = self.grains.embed_texts(lease, vec![grain.text.clone()], TextKind::BACKGROUND).await;
            let made = match made {
                Ok(made) => made.into_iter().next().ok_or_else(|| "the model made no vector".to_owned()),
                Err(error) if is_of_a_text(&error) => Err(with_causes(&error)),
                Err(error) => return Err(error),
            };
            vectors.push((grain.clone(), made));
        }
        Ok(vectors)
    }

    /// Gives grains that were written since a cut-over vectors in the space before, where its model is known.
    async fn bring_back(&self, job: &Reembedding) -> Result<(), Stopped> {
        self.activate_previous(job).await?;
        let space = job.previous_order.iter().flatten().find(|space| **space != job.space);
        let mut reason = None;
        if let Some(space) = space {
            match self.models.maker_of(space).await.map_err(GrainError::from)? {
                Some(model) => self.bring_back_to(job, &model, space).await?,
                None => {
                    reason = Some(format!("no model makes {space} any more: what was written since stays as it is"));
                }
            }
        }
        let step = move |job: &mut Reembedding| {
            let may = move_to(job, ReembeddingState::RolledBack);
            job.reason = reason;
            may
        };
        self.try_step(&job.id, "rolled back", step).await.map_err(by_hand)
    }

    async fn bring_back_to(&self, job: &Reembedding, model: &ModelName, space: &SpaceId) -> Result<(), Stopped> {
        let lacking = Lacking {
            space: space.clone(),
            filter: Filter { space: Some(SpaceCondition::Is(job.space.clone())), ..Filter::default() },
            unless_failed_in: None,
            among: None,
        };
        let mut pace = Pace::new(job.throttle, self.models.interactive());
        let mut after = 0;
        loop {
            let at_most = pace.begin(self.models.interactive());
            let grains = self.grains.lacking(lacking.clone(), after, at_most).await?;
            let Some(last) = grains.last() else { return Ok(()) };
            after = last.number;
            let lease = self.lease(model, space).await?;
            let vectors = self.vectors(&lease, &grains).await?;
            self.grains.write_made(Made { job: None, vectors }).await?;
            tokio::time::sleep(pace.rest(self.models.interactive())).await;
        }
    }

    async fn delete_superfluous(&self, job: &Reembedding) -> Result<(), Stopped> {
        let purge = self.grains.superfluous(job).await?;
        let mut after = 0;
        while let Some(last) = self.grains.purge(purge.clone(), after, PURGED_AT_ONCE).await? {
            after = last;
        }
        let step = |job: &mut Reembedding| {
            job.old_vectors = OldVectors::Purged;
            true
        };
        self.try_step(&job.id, "purged", step).await?;
        tracing::info!(id = %job.id, "the superfluous vectors of a re-embedding are deleted");
        Ok(())
    }

    /// Begins to delete the old vectors of jobs that cannot be rolled back any more.
    async fn close_windows(&self) {
        // Where nothing is to be kept, no clock is needed.
        if !self.rollback_window.is_zero() && !self.clock.is_settled() {
            return;
        }
        let now_us = now_us();
        let is_over = |status: &super::ReembeddingStatus| status.rollback_until_us.is_some_and(|until| now_us > until);
        for status in self.list().into_iter().filter(is_over) {
            if let Err(error) = self.purge(&status.record.id).await {
                tracing::warn!(id = %status.record.id, "old vectors are kept for now: {}", with_causes(&error));
            }
        }
    }

    /// Holds the model of a job for a batch.
    async fn lease(&self, model: &ModelName, space: &SpaceId) -> Result<Lease, ReembedError> {
        let lease = self.models.lease(model).await?;
        let found = lease.facts().fingerprint.space();
        if found != *space {
            return Err(ReembedError::OtherSpace { model: model.clone(), expected: space.clone(), found });
        }
        lease.check_grain_writes()?;
        Ok(lease)
    }

    /// Rests, unless somebody holds the job or gives it up: others wait behind it.
    async fn rest(&self, id: &ReembeddingId, time: Duration) -> Result<(), Stopped> {
        let until = tokio::time::Instant::now() + time;
        let mut changes = self.changes.subscribe();
        loop {
            self.check_running(id)?;
            match tokio::time::timeout_at(until, changes.changed()).await {
                Ok(Ok(())) => {}
                // The time is over, or nothing changes any more.
                Ok(Err(_)) | Err(_) => return self.check_running(id),
            }
        }
    }

    fn check_running(&self, id: &ReembeddingId) -> Result<(), Stopped> {
        match self.record(id)?.state {
            ReembeddingState::Running => Ok(()),
            _ => Err(Stopped::ByHand),
        }
    }

    /// Ends a job that cannot go on. One that is being rolled back has its order already, and is left at that.
    async fn fail(&self, job: &Reembedding, error: &ReembedError) {
        let reason = with_causes(error);
        tracing::error!(id = %job.id, model = %job.model, "a re-embedding cannot go on: {reason}");
        let is_purging = job.old_vectors == OldVectors::Purging;
        let step = move |job: &mut Reembedding| {
            // Held or given up meanwhile: that stays so.
            if !is_purging && !job.state.is_at_work() {
                return false;
            }
            if is_purging {
                job.old_vectors = OldVectors::Kept;
            } else if job.state == ReembeddingState::RollingBack {
                job.state = ReembeddingState::RolledBack;
            } else {
                job.state = ReembeddingState::Failed;
            }
            job.reason = Some(reason);
            true
        };
        if let Err(Stopped::Error(error)) = self.try_step(&job.id, "ended", step).await.map_err(by_hand) {
            tracing::error!(id = %job.id, "the end of a re-embedding cannot be recorded: {}", with_causes(&error));
            tokio::time::sleep(PAUSE).await;
        }
    }
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
fn by_hand(error: ReembedError) -> Stopped {
    match error {
        ReembedError::State { .. } | ReembedError::NotFound(_) => Stopped::ByHand,
        error => Stopped::Error(error),
    }
}

/// Whether an error is of a text, so that other grains need not suffer from it.
fn is_of_a_text(error: &GrainError) -> bool {
    let GrainError::Model(ModelError::Engine(error)) = error else { return false };
    !matches!(error, EngineError::Overloaded { .. } | EngineError::Closed | EngineError::Start { .. })
}

/// Whether an error may pass by itself.
fn may_pass(error: &ReembedError) -> bool {
    match error {
        ReembedError::Model(error) | ReembedError::Grains(GrainError::Model(error)) => match error {
            ModelError::Failed { permanent, .. } => !permanent,
            ModelError::Loading { .. } | ModelError::Engine(_) | ModelError::Ledger(_) => true,
            _ => false,
        },
        ReembedError::Grains(error) => {
            matches!(error, GrainError::Store(_) | GrainError::Ledger(_) | GrainError::Index(_))
        }
        _ => false,
    }
}
