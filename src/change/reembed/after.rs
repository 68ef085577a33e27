//! What follows a cut-over: grains that were written since the job was asked for go the way back too, and superfluous
//! vectors are deleted.

use std::cmp::Reverse;
use std::time::Instant;

use super::error::{ReembedError, may_pass};
use super::pace::Pace;
use super::verbs::{move_to, refused};
use super::work::{PAUSE, Stopped, UPKEEP, Work, by_hand, or_panicked};
use super::{Job, Reembeddings};
use crate::clock::now_us;
use crate::domain::{
    Filter, ModelName, OldVectors, Range, Reembedding, ReembeddingId, ReembeddingState, SpaceCondition, SpaceId,
};
use crate::grains::GrainError;
use crate::grains::store::{Lacking, Made};
use crate::telemetry::with_causes;

/// Grains whose superfluous vectors are deleted at once.
const PURGED_AT_ONCE: u32 = 1_000;

/// What is said of a purged job some of whose grains could not be embedded: nobody knows any more which.
const FORGOTTEN: &str = "some grains could not be embedded, so that nothing was cut over, and the purge has forgotten which: resume \
                         the job to try again";

/// What is said of a purge that was given up begins with this.
pub(super) const GIVEN_UP: &str = "the purge was given up: ";

impl Reembeddings {
    /// Gives grains that were written since the job was asked for vectors in a space before, where its model is known.
    /// Those that were in the job's space already stay there, unless they were edited since.
    pub(super) async fn bring_back(&self, job: &Reembedding, n_errors: &mut u32) -> Result<(), Stopped> {
        let not_active = self.activate_or_say_why(job).await?;
        if job.reason != not_active {
            // Recorded at once: an error that ends the way back later adds its own reason, and does not know this one.
            let reason = not_active.clone();
            let step = move |job: &mut Reembedding| {
                if job.state != ReembeddingState::RollingBack {
                    return Err(refused(job, "rolled back"));
                }
                job.reason = reason;
                Ok(())
            };
            self.try_step(&job.id, step).await.map_err(by_hand)?;
        }
        let mut reasons: Vec<String> = not_active.into_iter().collect();
        // A space behind the job's own would not serve what is brought there.
        let before: Vec<&SpaceId> = job.spaces_before().collect();
        match self.way_back(job, &before).await? {
            Some((model, space)) => {
                let n_failed = self.bring_back_to(job, (&model, &space), n_errors).await?;
                if n_failed > 0 {
                    let (s, stay) = if n_failed == 1 { ("", "stays") } else { ("s", "stay") };
                    let sentence = format!("{n_failed} grain{s} could not be embedded and {stay} in the new space");
                    tracing::warn!(id = %job.id, %model, "{sentence}");
                    reasons.push(sentence);
                }
            }
            None if before.is_empty() => {}
            None => reasons.push(
                "no model makes a space before that serves grains any more: what was written since stays".to_owned(),
            ),
        }
        let step = move |job: &mut Reembedding| {
            move_to(job, ReembeddingState::RolledBack, "rolled back")?;
            job.reason = Some(reasons.join("; ")).filter(|reason| !reason.is_empty());
            Ok(())
        };
        self.try_step(&job.id, step).await.map_err(by_hand)
    }

    /// Makes the model before the active one again, or answers why it stays as it is.
    ///
    /// # Errors
    /// What may pass.
    async fn activate_or_say_why(&self, job: &Reembedding) -> Result<Option<String>, ReembedError> {
        let activated = async {
            let _lease = self.lease_previous(job).await?;
            self.activate_previous(job).await
        };
        match activated.await {
            Ok(()) => Ok(None),
            Err(error) if may_pass(&error) => Err(error),
            Err(error) => {
                let sentence = "the model before could not be made active again";
                tracing::warn!(id = %job.id, "{sentence}: {}", with_causes(&error));
                Ok(Some(format!("{sentence}: {}", error.for_callers())))
            }
        }
    }

    /// How the grains still go back that a way back has left where they are, as the end of a sentence.
    pub(super) async fn way_out(&self, job: &Reembedding) -> String {
        let before: Vec<&SpaceId> = job.spaces_before().collect();
        let found = self.way_back(job, &before).await.ok().flatten().map(|(model, _)| model);
        let model = found.or_else(|| job.previous_model.clone()).unwrap_or_else(|| self.models.active());
        let space = &job.space;
        format!(
            "; what was written since the job was asked for stays in its space, but for what had gone back already. `POST \
             /reembeddings` with `{{\"to\": \"{model}\", \"from\": \"{space}\"}}` brings along what that space serves"
        )
    }

    /// Where grains go back to: the space of the model that was active before, or else the one that serves most grains, if
    /// any serves some.
    async fn way_back(&self, job: &Reembedding, before: &[&SpaceId]) -> Result<Option<(ModelName, SpaceId)>, Stopped> {
        let active = job.previous_model.clone().unwrap_or_else(|| self.models.active());
        let mut makers = Vec::new();
        for space in before {
            if let Some(model) = self.models.maker_of(space).await.map_err(GrainError::from)? {
                makers.push((model, (*space).clone()));
            }
        }
        let served = self.grains.served_by_space().await?;
        let n_served = |space: &SpaceId| served.iter().find(|(of, _)| of == space).map_or(0, |(_, n_grains)| *n_grains);
        let candidates = makers.into_iter().filter(|(model, space)| *model == active || n_served(space) > 0);
        Ok(candidates.min_by_key(|(model, space)| (*model != active, Reverse(n_served(space)))))
    }

    /// Brings grains back, and answers how many the model could not embed.
    async fn bring_back_to(
        &self,
        job: &Reembedding,
        (model, space): (&ModelName, &SpaceId),
        n_errors: &mut u32,
    ) -> Result<usize, Stopped> {
        let lacking = Lacking {
            space: space.clone(),
            filter: Filter {
                space: Some(SpaceCondition::Is(job.space.clone())),
                // Not since the cut-over: its model may have become the active one before that.
                updated_us: Range { gte: Some(job.created_us), ..Range::default() },
                ..Filter::default()
            },
            unless_failed_in: None,
            among: None,
        };
        let work = Work { id: &job.id, state: ReembeddingState::RollingBack, model, space };
        // The model is loaded only when there is something to bring back: how many workers it has is not known here.
        let mut pace = Pace::new(job.throttle, 2, self.models.interactive());
        let (mut after, mut n_failed) = (0, 0);
        loop {
            self.check(work.id, work.state)?;
            let at_most = pace.begin(self.models.interactive());
            let grains = self.grains.account().lacking(lacking.clone(), after, at_most).await?;
            let Some(last) = grains.last() else { return Ok(n_failed) };
            after = last.number;
            let vectors = self.make(work, &grains).await?;
            n_failed += vectors.iter().filter(|(_, vector)| vector.is_err()).count();
            self.grains.write_made(Made { job: None, vectors }).await?;
            *n_errors = 0;
            self.change(work.id, |job| job.waits = None);
            self.rest(work.id, work.state, pace.rest(self.models.interactive())).await?;
        }
    }

    /// Deletes what a purge was asked for, unless somebody has come to need it since.
    pub(super) async fn delete_superfluous(&self, job: &Reembedding) -> Result<(), Stopped> {
        let purge = self.grains.superfluous(job).await?;
        self.check_unneeded(job, &purge)?;
        let mut after = 0;
        while let Some(last) = self.grains.purge(purge.clone(), after, PURGED_AT_ONCE).await? {
            after = last;
        }
        // With its vectors goes what is known of those that it could not make.
        self.grains.account().forget_failures(&job.id).await?;
        self.change(&job.id, |job| job.n_failed = 0);
        let step = |job: &mut Reembedding| {
            job.old_vectors = OldVectors::Purged;
            if job.state == ReembeddingState::CompletedWithFailures {
                job.reason = Some(FORGOTTEN.to_owned());
            }
            Ok(())
        };
        self.try_step(&job.id, step).await?;
        tracing::info!(id = %job.id, "the superfluous vectors of a re-embedding are deleted");
        Ok(())
    }

    /// Deletes what purges of other jobs than the one that is worked on ask for.
    pub(super) async fn delete_for_others(&self, id: &ReembeddingId) {
        let is_asked =
            |job: &&Job| job.record.old_vectors == OldVectors::Purging && job.record.id != *id && job.is_due();
        let asked: Vec<Reembedding> =
            self.jobs.read().values().filter(is_asked).map(|job| job.record.clone()).collect();
        for job in asked {
            // A panic that went on would be taken for one of the job that is worked on, and come again at its next rest.
            if let Err(Stopped::Error(error)) = or_panicked(self.delete_superfluous(&job)).await {
                self.put_off(&job, &error).await;
            }
        }
    }

    /// Leaves a purge that met an error for a minute, or until a job has changed. Some vectors may be gone, so that what
    /// they were for is not possible any more: a way back stays closed. Where there is none, the purge is given up if
    /// the error does not pass by itself.
    pub(super) async fn put_off(&self, job: &Reembedding, error: &ReembedError) {
        let had_way_back = job.state == ReembeddingState::Completed && job.previous_order.is_some();
        if !had_way_back && !may_pass(error) {
            return self.fail(job, error).await;
        }
        let is_news = match error {
            ReembedError::Needed { other, .. } => self.note_needed(&job.id, other),
            _ => true,
        };
        if is_news {
            tracing::warn!(id = %job.id, "superfluous vectors are not deleted yet: {}", with_causes(error));
        }
        self.change(&job.id, |job| {
            job.waits = Some(error.for_callers());
            job.due_at = Some(Instant::now() + UPKEEP);
        });
    }

    /// Closes windows at their time, whatever is worked on, until the process stops.
    pub(super) fn close_windows_in_time(&self) {
        let (jobs, soft) = (self.clone(), self.shutdown.soft().clone());
        // One of no length is over at once.
        let pause = self.rollback_window.clamp(PAUSE, UPKEEP);
        self.shutdown.spawn("rollback windows", async move {
            while soft.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
                jobs.close_windows().await;
            }
        });
    }

    /// Begins to delete the old vectors of jobs that cannot be rolled back any more. What another job needs is kept,
    /// and looked at again the next time.
    async fn close_windows(&self) {
        // Where nothing is to be kept, no clock is needed.
        if !self.rollback_window.is_zero() && !self.clock.is_settled() {
            return;
        }
        let now_us = now_us();
        let is_over = |job: &Reembedding| self.window_end_us(job).is_some_and(|end_us| now_us > end_us);
        for status in self.list().into_iter().filter(|status| is_over(&status.record)) {
            let id = &status.record.id;
            // A panic that went on would keep all windows open from here on.
            let purged = or_panicked(async { self.purge(id).await.map(drop).map_err(Stopped::from) }).await;
            let Err(Stopped::Error(error)) = purged else { continue };
            if let ReembedError::Needed { id, other } = &error
                && !self.note_needed(id, other)
            {
                // That has been said.
                continue;
            }
            tracing::warn!(%id, "old vectors are kept for now: {}", with_causes(&error));
        }
    }
}

/// What was said of a job before a purge of it was given up.
pub(super) fn without_purge(reason: &str) -> Option<String> {
    let before = reason.split(GIVEN_UP).next().unwrap_or_default().trim_end_matches("; ");
    (!before.is_empty()).then(|| before.to_owned())
}
