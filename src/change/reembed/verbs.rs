//! What operators ask of a job.

use uuid::Uuid;

use super::after::without_purge;
use super::error::{ReembedError, may_pass};
use super::work::or_taken_over;
use super::{Job, ReembeddingStatus, Reembeddings};
use crate::clock::now_us;
use crate::domain::{
    Filter, ModelName, OldVectors, Reembedding, ReembeddingId, ReembeddingState, SpaceCondition, SpaceId,
};
use crate::grains::store::Purge;
use crate::models::Lease;
use crate::telemetry::with_causes;

/// A job that is asked for.
#[derive(Clone, Debug)]
pub struct ReembedRequest {
    /// The model that is to make the vectors.
    pub model: ModelName,
    /// Which grains; its condition on the space says from where.
    pub selection: Filter,
    /// The share of the time that the job may work: above 0, at most 1.
    pub throttle: f64,
    /// The model that is active so far, where the same request makes `model` that, which is recorded with the job. It
    /// may be the same one.
    pub previous_model: Option<ModelName>,
}

/// A model that grains may be moved to. It is held, so that this stays so until the job is recorded.
pub struct Prepared {
    lease: Lease,
    asked_us: i64,
}

impl Reembeddings {
    /// Begins a job: the model is loaded, its space noted, and the rest is done by itself.
    ///
    /// # Errors
    /// As [`Self::prepare`]; a selection whose space is not known, or the database's.
    pub async fn begin(&self, request: ReembedRequest) -> Result<ReembeddingStatus, ReembedError> {
        if let Some(SpaceCondition::Is(space)) = &request.selection.space {
            self.grains.check_known(space).await?;
        }
        let prepared = self.prepare(&request.model, &request.selection).await?;
        self.begin_prepared(request, prepared).await
    }

    /// Looks at everything that may stand against a job for a model and the grains it is to select, and changes nothing.
    ///
    /// # Errors
    /// [`ReembedError::Open`], [`ReembedError::Beyond`], [`ReembedError::ServedEarly`], a model that cannot be loaded or may
    /// not write grains, or the database's.
    pub async fn prepare(&self, model: &ModelName, selection: &Filter) -> Result<Prepared, ReembedError> {
        let asked_us = now_us();
        let lease = self.models.lease(model).await?;
        lease.check_grain_writes()?;
        let space = lease.facts().fingerprint.space();
        self.check_alone(None, &space)?;
        self.check_selection(None, &space, selection).await?;
        self.check_none_served_early_if_next(&space, selection).await?;
        Ok(Prepared { lease, asked_us })
    }

    /// Begins a job that nothing stood against.
    ///
    /// # Errors
    /// [`ReembedError::Open`] when another one was quicker, or the database's.
    pub async fn begin_prepared(
        &self,
        request: ReembedRequest,
        prepared: Prepared,
    ) -> Result<ReembeddingStatus, ReembedError> {
        let ReembedRequest { model, selection, throttle, previous_model } = request;
        let Prepared { lease, asked_us } = prepared;
        let active = previous_model.is_some().then(|| model.clone());
        let previous_model = previous_model.filter(|previous| *previous != model);
        let record = Reembedding {
            id: ReembeddingId::of(Uuid::now_v7().to_string()),
            model,
            space: lease.facts().fingerprint.space(),
            selection,
            throttle,
            state: ReembeddingState::Queued,
            reason: None,
            done: 0,
            total: 0,
            previous_model,
            previous_order: None,
            old_vectors: OldVectors::Kept,
            created_us: asked_us,
            changed_us: asked_us,
            cut_over_us: None,
        };
        let jobs = self.clone();
        let work = async move {
            let _turn = jobs.turn.lock().await;
            let (id, model) = (record.id.clone(), record.model.clone());
            let added = jobs.grains.account().add_reembedding(record.clone(), active).await?;
            drop(lease);
            if let Err(id) = added {
                return Err(ReembedError::Open { id, model });
            }
            tracing::info!(%id, %model, space = %record.space, "a re-embedding was asked for");
            jobs.jobs.write().insert(id.clone(), Job::new(record, 0));
            jobs.wake.notify_one();
            jobs.get(&id)
        };
        self.shutdown.finish("begin a re-embedding", work).await
    }

    /// Holds a job. What it has done stays done, and it gives its model free.
    ///
    /// # Errors
    /// [`ReembedError::NotFound`], [`ReembedError::State`], or the database's.
    pub async fn pause(&self, id: &ReembeddingId) -> Result<ReembeddingStatus, ReembedError> {
        self.step(id, "paused", |job| move_to(job, ReembeddingState::Paused, "paused")).await
    }

    /// Lets a held job go on, or tries one again that failed or left grains out.
    ///
    /// # Errors
    /// As [`Self::pause`]; [`ReembedError::Purging`], or [`ReembedError::Open`] when there is another job for the space by
    /// now.
    pub async fn resume(&self, id: &ReembeddingId) -> Result<ReembeddingStatus, ReembedError> {
        let jobs = self.clone();
        let resume = move |job: &mut Reembedding| {
            move_to(job, ReembeddingState::Queued, "resumed")?;
            if job.old_vectors == OldVectors::Purging {
                return Err(ReembedError::Purging(job.id.clone()));
            }
            // It makes vectors anew, which can be purged too.
            job.old_vectors = OldVectors::Kept;
            jobs.check_alone(Some(&job.id), &job.space)?;
            // What was repaired is looked at now, and not when the pause after a failed load is over.
            jobs.models.end_pause(&job.model);
            Ok(())
        };
        self.step(id, "resumed", resume).await
    }

    /// Gives a job up. Its vectors stay until they are purged, and serve nothing unless its space is the first one
    /// already. A way back ends where it is.
    ///
    /// # Errors
    /// As [`Self::pause`].
    pub async fn cancel(&self, id: &ReembeddingId) -> Result<ReembeddingStatus, ReembedError> {
        let serves = self.grains.is_first(&self.record(id)?.space).await?;
        let cancel = move |job: &mut Reembedding| {
            if job.state == ReembeddingState::RollingBack {
                move_to(job, ReembeddingState::RolledBack, "cancelled")?;
                let sentence =
                    "it was cancelled on its way back: some grains written since it was asked for stay in its space";
                job.reason = Some(sentence.to_owned());
                return Ok(());
            }
            move_to(job, ReembeddingState::Cancelled, "cancelled")?;
            if serves {
                job.reason = Some(format!("{} is the first space already: what was done is served", job.space));
            }
            Ok(())
        };
        self.step(id, "cancelled", cancel).await
    }

    /// Lets the old space serve again. Grains that were written with the job's model since it was asked for stay served
    /// from the newer space until they have vectors in the old one, which they get in the background. The active model
    /// goes back too if the job's own request changed it.
    ///
    /// # Errors
    /// As [`Self::pause`]; [`ReembedError::FirstBefore`] when there is nothing to take back, [`ReembedError::TooLate`]
    /// when the old vectors are gone, [`ReembedError::Open`] when another job for the space is open,
    /// [`ReembedError::Repeated`] when a later one has completed, [`ReembedError::Overtaken`] when another space has taken
    /// over since.
    pub async fn roll_back(&self, id: &ReembeddingId) -> Result<ReembeddingStatus, ReembedError> {
        let (jobs, id) = (self.clone(), id.clone());
        let work = async move {
            let turn = jobs.turn.lock().await;
            let record = jobs.record(&id)?;
            let Reembedding { state, old_vectors, .. } = &record;
            if !state.may_become(ReembeddingState::RollingBack) {
                return Err(refused(&record, "rolled back"));
            }
            let space = record.space.clone();
            if record.previous_order.is_none() {
                return Err(ReembedError::FirstBefore { id, space });
            }
            let status = jobs.get(&id)?;
            if *old_vectors != OldVectors::Kept || status.rollback_until_us.is_none_or(|until_us| now_us() > until_us) {
                return Err(ReembedError::TooLate(id));
            }
            // It would make the space the first one again by itself.
            jobs.check_alone(Some(&id), &space)?;
            // Its space goes behind these, and none of them may serve what an open job has made so far.
            record.spaces_before().try_for_each(|before| jobs.check_alone(Some(&id), before))?;
            jobs.check_last(&record)?;
            let rolled_back = or_taken_over(jobs.grains.roll_back(record), jobs.read_again(&id)).await?;
            let Some(record) = rolled_back else {
                return Err(ReembedError::Overtaken { id, space });
            };
            tracing::info!(%id, model = %record.model, "a re-embedding was rolled back");
            jobs.put(record.clone());
            jobs.wake.notify_one();
            drop(turn);
            // The order is what it was, whatever becomes of the model: whoever works tries again, and says why not.
            if let Err(error) = jobs.activate_previous(&record).await {
                tracing::warn!(%id, "the model before is not active yet: {}", with_causes(&error));
            }
            jobs.get(&id)
        };
        self.shutdown.finish("roll back a re-embedding", work).await
    }

    /// Deletes the vectors that the job has made superfluous: the old ones after a cut-over, which cannot be taken back
    /// then; its own that serve nothing where there was none.
    ///
    /// # Errors
    /// As [`Self::pause`], and [`ReembedError::Needed`].
    pub async fn purge(&self, id: &ReembeddingId) -> Result<ReembeddingStatus, ReembedError> {
        let (jobs, id) = (self.clone(), id.clone());
        let work = async move {
            // Nobody comes to need the vectors between the look and the record.
            let _turn = jobs.turn.lock().await;
            let job = jobs.record(&id)?;
            if job.state.is_open() || job.state == ReembeddingState::RollingBack {
                return Err(refused(&job, "purged"));
            }
            if job.old_vectors == OldVectors::Kept {
                jobs.check_unneeded(&job, &jobs.grains.superfluous(&job).await?)?;
                let purge = |job: &mut Reembedding| {
                    job.old_vectors = OldVectors::Purging;
                    // What is said of an earlier purge is not so any more.
                    job.reason = job.reason.take().and_then(|reason| without_purge(&reason));
                    Ok(())
                };
                jobs.step_in_turn(&id, purge).await?;
                tracing::info!(%id, "a re-embedding was purged");
            }
            jobs.get(&id)
        };
        self.shutdown.finish("purge a re-embedding", work).await
    }

    /// Whether there is no other open job for a space.
    fn check_alone(&self, id: Option<&ReembeddingId>, space: &SpaceId) -> Result<(), ReembedError> {
        let jobs = self.jobs.read();
        let is_other =
            |job: &&Reembedding| job.state.is_open() && job.space == *space && id.is_none_or(|id| *id != job.id);
        match jobs.values().map(|job| &job.record).find(is_other) {
            Some(Reembedding { id, model, .. }) => Err(ReembedError::Open { id: id.clone(), model: model.clone() }),
            None => Ok(()),
        }
    }

    /// Whether no later job has made the space of a completed one the first again: the way back would pass over what
    /// that one took over from.
    fn check_last(&self, job: &Reembedding) -> Result<(), ReembedError> {
        let jobs = self.jobs.read();
        let is_later = |other: &&Reembedding| {
            let has_cut_over = other.state == ReembeddingState::Completed && other.previous_order.is_some();
            has_cut_over && other.space == job.space && other.cut_over_us > job.cut_over_us
        };
        match jobs.values().map(|job| &job.record).filter(is_later).max_by_key(|other| other.cut_over_us) {
            Some(later) => Err(ReembedError::Repeated { id: job.id.clone(), later: later.id.clone() }),
            None => Ok(()),
        }
    }

    /// Whether no other job needs what a purge of this one deletes: to go on from, or to be rolled back to.
    pub(super) fn check_unneeded(&self, job: &Reembedding, purge: &Purge) -> Result<(), ReembedError> {
        self.check_unneeded_but_by(None, job, purge)
    }

    /// As [`Self::check_unneeded`], whatever one job needs.
    pub(super) fn check_unneeded_but_by(
        &self,
        but_by: Option<&ReembeddingId>,
        job: &Reembedding,
        purge: &Purge,
    ) -> Result<(), ReembedError> {
        let deleted = deleted_from(purge);
        // A later cut-over is taken back first, so that a purge of it ends the way back of the earlier ones anyhow. One
        // into a space that was the first one already is never taken back.
        let has_own_way = job.state == ReembeddingState::Completed && job.previous_order.is_some();
        let needs = |other: &&Reembedding| {
            let may_go_on = other.state.is_open() || other.state.may_become(ReembeddingState::Queued);
            let can_go_back = other.state == ReembeddingState::Completed
                && other.old_vectors == OldVectors::Kept
                && (!has_own_way || other.cut_over_us > job.cut_over_us);
            // A space behind its own serves nothing after the way back that it does not serve before.
            let goes_back_there = can_go_back && other.spaces_before().any(|space| deleted.contains(space));
            let counts = other.id != job.id && but_by != Some(&other.id);
            counts && ((may_go_on && deleted.contains(&other.space)) || goes_back_there)
        };
        match self.jobs.read().values().map(|job| &job.record).find(needs) {
            Some(other) => Err(ReembedError::Needed { id: job.id.clone(), other: other.id.clone() }),
            None => Ok(()),
        }
    }

    /// Makes the model active again that a job's own request replaced, unless another one has become active since. Does
    /// so once: whoever makes the job's model the active one afterwards means that.
    pub(super) async fn activate_previous(&self, job: &Reembedding) -> Result<(), ReembedError> {
        let Some(previous) = &job.previous_model else { return Ok(()) };
        let mut chosen = self.chosen.lock().await;
        if !chosen.contains(&job.id) {
            self.models.set_active_if(previous, &job.model).await?;
            chosen.insert(job.id.clone());
        }
        Ok(())
    }

    /// Holds the model that is to be made active again, as a request would: an order loads it at each try, however
    /// lately that has failed.
    ///
    /// # Errors
    /// What may pass; the rest is the order's to say, which may enable the model, too.
    pub(super) async fn lease_previous(&self, job: &Reembedding) -> Result<Option<Lease>, ReembedError> {
        let Some(previous) = &job.previous_model else { return Ok(None) };
        let is_chosen = self.chosen.lock().await.contains(&job.id);
        if is_chosen || self.models.active() != job.model {
            return Ok(None);
        }
        match self.models.lease(previous).await.map_err(ReembedError::from) {
            Ok(lease) => Ok(Some(lease)),
            Err(error) if may_pass(&error) => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// Changes a job if `change` allows it, records it and wakes whoever works.
    async fn step(
        &self,
        id: &ReembeddingId,
        verb: &'static str,
        change: impl FnOnce(&mut Reembedding) -> Result<(), ReembedError> + Send + 'static,
    ) -> Result<ReembeddingStatus, ReembedError> {
        let (jobs, id) = (self.clone(), id.clone());
        let work = async move {
            jobs.try_step(&id, change).await?;
            tracing::info!(%id, "a re-embedding was {verb}");
            jobs.get(&id)
        };
        self.shutdown.finish("change a re-embedding", work).await
    }

    /// Changes a job if `change` allows it, and records it.
    pub(super) async fn try_step(
        &self,
        id: &ReembeddingId,
        change: impl FnOnce(&mut Reembedding) -> Result<(), ReembedError> + Send,
    ) -> Result<(), ReembedError> {
        let _turn = self.turn.lock().await;
        self.step_in_turn(id, change).await
    }

    /// As [`Self::try_step`], by whoever holds the turn.
    async fn step_in_turn(
        &self,
        id: &ReembeddingId,
        change: impl FnOnce(&mut Reembedding) -> Result<(), ReembedError> + Send,
    ) -> Result<(), ReembedError> {
        let mut record = self.record(id)?;
        let before = record.state;
        change(&mut record)?;
        if record.state != before {
            record.changed_us = now_us();
        }
        self.grains.account().record_reembedding(record.clone()).await?;
        self.put(record);
        self.wake.notify_one();
        Ok(())
    }
}

/// The spaces that a purge deletes vectors of.
pub(super) fn deleted_from(purge: &Purge) -> &[SpaceId] {
    match purge {
        Purge::Replaced { spaces, .. } => spaces,
        Purge::Unserved(space) => std::slice::from_ref(space),
    }
}

/// Moves a job to a state, which the verb names, if the table of states allows it.
pub(super) fn move_to(job: &mut Reembedding, state: ReembeddingState, verb: &'static str) -> Result<(), ReembedError> {
    if !job.state.may_become(state) {
        return Err(refused(job, verb));
    }
    job.state = state;
    job.reason = None;
    Ok(())
}

/// The job is not in a state for that.
pub(super) fn refused(job: &Reembedding, verb: &'static str) -> ReembedError {
    ReembedError::State { id: job.id.clone(), state: job.state, verb }
}
