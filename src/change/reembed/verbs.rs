//! What operators ask of a job.

use uuid::Uuid;

use super::error::ReembedError;
use super::pace::Rate;
use super::{Job, ReembeddingStatus, Reembeddings};
use crate::clock::now_us;
use crate::domain::{Filter, ModelName, OldVectors, Reembedding, ReembeddingId, ReembeddingState};

/// A job that is asked for.
#[derive(Clone, Debug)]
pub struct ReembedRequest {
    /// The model that is to make the vectors.
    pub model: ModelName,
    /// Which grains; its condition on the space says from where.
    pub selection: Filter,
    /// The share of the time that the job may work: above 0, at most 1.
    pub throttle: f64,
    /// The active model that the same request replaced.
    pub previous_model: Option<ModelName>,
}

impl Reembeddings {
    /// Begins a job: the model is loaded, its space noted, and the rest is done by itself.
    ///
    /// # Errors
    /// [`ReembedError::Open`], a model that cannot be loaded or may not write grains, or the database's.
    pub async fn begin(&self, request: ReembedRequest) -> Result<ReembeddingStatus, ReembedError> {
        let ReembedRequest { model, selection, throttle, previous_model } = request;
        let lease = self.models.lease(&model).await?;
        lease.check_grain_writes()?;
        let space = lease.facts().fingerprint.space();
        drop(lease);
        let now_us = now_us();
        let record = Reembedding {
            id: ReembeddingId::of(Uuid::now_v7().to_string()),
            model,
            space,
            selection,
            throttle,
            state: ReembeddingState::Queued,
            reason: None,
            done: 0,
            total: 0,
            previous_model,
            previous_order: None,
            old_vectors: OldVectors::Kept,
            created_us: now_us,
            changed_us: now_us,
            cut_over_us: None,
        };
        let jobs = self.clone();
        let work = async move {
            let _turn = jobs.turn.lock().await;
            let (id, model) = (record.id.clone(), record.model.clone());
            if let Err(id) = jobs.grains.add_reembedding(record.clone()).await? {
                return Err(ReembedError::Open { id, model });
            }
            tracing::info!(%id, %model, space = %record.space, "a re-embedding was asked for");
            jobs.jobs.write().insert(id.clone(), Job { record, n_failed: 0, rate: Rate::default() });
            jobs.wake.notify_one();
            jobs.get(&id)
        };
        self.shutdown.finish("begin a re-embedding", work).await
    }

    /// The open job for a model's space, if there is one: a second one cannot be begun.
    #[must_use]
    pub fn open_for(&self, model: &ModelName) -> Option<ReembeddingId> {
        let jobs = self.jobs.read();
        let is_it = |job: &&Job| job.record.model == *model && job.record.state.is_open();
        jobs.values().find(is_it).map(|job| job.record.id.clone())
    }

    /// Holds a job. What it has done stays done, and it gives its model free.
    ///
    /// # Errors
    /// [`ReembedError::NotFound`], [`ReembedError::State`], or the database's.
    pub async fn pause(&self, id: &ReembeddingId) -> Result<ReembeddingStatus, ReembedError> {
        self.step(id, "paused", |job| move_to(job, ReembeddingState::Paused)).await
    }

    /// Lets a held job go on, or tries one again that failed or left grains out.
    ///
    /// # Errors
    /// As [`Self::pause`].
    pub async fn resume(&self, id: &ReembeddingId) -> Result<ReembeddingStatus, ReembedError> {
        self.step(id, "resumed", |job| move_to(job, ReembeddingState::Queued)).await
    }

    /// Gives a job up. Its vectors serve nothing, and stay until they are purged.
    ///
    /// # Errors
    /// As [`Self::pause`].
    pub async fn cancel(&self, id: &ReembeddingId) -> Result<ReembeddingStatus, ReembedError> {
        self.step(id, "cancelled", |job| move_to(job, ReembeddingState::Cancelled)).await
    }

    /// Lets the old space serve again. Grains written since stay served from the newer one until they have vectors in the
    /// old one, which they get in the background. The active model goes back too if the job's own request changed it.
    ///
    /// # Errors
    /// As [`Self::pause`]; [`ReembedError::TooLate`] when the old vectors are gone, [`ReembedError::Overtaken`] when
    /// another space has taken over since.
    pub async fn roll_back(&self, id: &ReembeddingId) -> Result<ReembeddingStatus, ReembedError> {
        let (jobs, id) = (self.clone(), id.clone());
        let work = async move {
            let turn = jobs.turn.lock().await;
            let record = jobs.record(&id)?;
            let Reembedding { state, old_vectors, .. } = &record;
            if !state.may_become(ReembeddingState::RollingBack) {
                return Err(ReembedError::State { id, state: *state, verb: "rolled back" });
            }
            let status = jobs.get(&id)?;
            if *old_vectors != OldVectors::Kept || status.rollback_until_us.is_none_or(|until_us| now_us() > until_us) {
                return Err(ReembedError::TooLate(id));
            }
            let space = record.space.clone();
            let Some(record) = jobs.grains.roll_back(record).await? else {
                return Err(ReembedError::Overtaken { id, space });
            };
            tracing::info!(%id, model = %record.model, "a re-embedding was rolled back");
            jobs.put(record.clone());
            drop(turn);
            jobs.activate_previous(&record).await?;
            jobs.wake.notify_one();
            jobs.get(&id)
        };
        self.shutdown.finish("roll back a re-embedding", work).await
    }

    /// Deletes the vectors that the job has made superfluous: the old ones after a cut-over, which cannot be taken back
    /// then; its own that serve nothing where there was none.
    ///
    /// # Errors
    /// As [`Self::pause`].
    pub async fn purge(&self, id: &ReembeddingId) -> Result<ReembeddingStatus, ReembedError> {
        self.step(id, "purged", |job| {
            if job.state.is_open() || job.state == ReembeddingState::RollingBack {
                return false;
            }
            if job.old_vectors == OldVectors::Kept {
                job.old_vectors = OldVectors::Purging;
            }
            true
        })
        .await
    }

    /// Makes the model active again that a job's own request replaced, unless another one has become active since.
    pub(super) async fn activate_previous(&self, job: &Reembedding) -> Result<(), ReembedError> {
        if let Some(previous) = &job.previous_model
            && self.models.active() == job.model
        {
            self.models.set_active(previous).await?;
        }
        Ok(())
    }

    /// Changes a job if `change` allows it, records it and wakes whoever works.
    async fn step(
        &self,
        id: &ReembeddingId,
        verb: &'static str,
        change: impl FnOnce(&mut Reembedding) -> bool + Send + 'static,
    ) -> Result<ReembeddingStatus, ReembedError> {
        let (jobs, id) = (self.clone(), id.clone());
        let work = async move {
            jobs.try_step(&id, verb, change).await?;
            tracing::info!(%id, "a re-embedding was {verb}");
            jobs.get(&id)
        };
        self.shutdown.finish("change a re-embedding", work).await
    }

    /// Changes a job if `change` allows it, and records it.
    pub(super) async fn try_step(
        &self,
        id: &ReembeddingId,
        verb: &'static str,
        change: impl FnOnce(&mut Reembedding) -> bool + Send,
    ) -> Result<(), ReembedError> {
        let _turn = self.turn.lock().await;
        let mut record = self.record(id)?;
        let state = record.state;
        if !change(&mut record) {
            return Err(ReembedError::State { id: id.clone(), state, verb });
        }
        record.changed_us = now_us();
        self.grains.record_reembedding(record.clone()).await?;
        self.put(record);
        self.wake.notify_one();
        Ok(())
    }
}

/// Moves a job to a state if the table of states allows it.
pub(super) fn move_to(job: &mut Reembedding, state: ReembeddingState) -> bool {
    let may = job.state.may_become(state);
    if may {
        job.state = state;
        job.reason = None;
    }
    may
}
