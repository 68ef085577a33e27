//! What stands against a job before it makes vectors.

use super::error::{Left, ReembedError};
use super::verbs::deleted_from;
use super::{Job, ReembeddingStatus, Reembeddings};
use crate::domain::{Filter, OldVectors, Reembedding, ReembeddingId, ReembeddingState, SpaceId};
use crate::grains::GrainError;

impl Reembeddings {
    /// Whether a job may begin to make vectors. Looked at again if, since it was asked for, another job may have left some
    /// or have moved what a space served; else not, since what it has made itself was selected then.
    pub(super) async fn check_start(&self, job: &Reembedding) -> Result<(), ReembedError> {
        let is_later = |other: &Reembedding| other.space == job.space && other.id > job.id;
        // Into the first space grains move without a cut-over; a way back changes what serves, too.
        let has_moved_some = |other: &Reembedding| {
            let may_have = other.done > 0 || other.cut_over_us.is_some();
            other.id != job.id && may_have && other.changed_us > job.created_us
        };
        let may_hold_others = job.done == 0
            || self.jobs.read().values().any(|Job { record, .. }| is_later(record) || has_moved_some(record));
        if !may_hold_others {
            return Ok(());
        }
        self.check_selection(Some(&job.id), &job.space, &job.selection).await?;
        self.check_none_served_early(Some(&job.id), &job.space, &job.selection).await
    }

    /// Whether a space that takes over for a selection comes to serve no other grains. The job that asks is named
    /// once it is recorded.
    pub(super) async fn check_selection(
        &self,
        asker: Option<&ReembeddingId>,
        space: &SpaceId,
        selection: &Filter,
    ) -> Result<(), ReembedError> {
        if *selection == Filter::default() {
            return Ok(());
        }
        let n_grains = self.grains.count_withheld_beyond(space, selection).await?;
        if n_grains == 0 {
            return Ok(());
        }
        let left_by = self.who_left(asker, space).await?;
        Err(ReembedError::Beyond { space: space.clone(), n_grains, asker: asker.cloned(), left_by })
    }

    /// Whether a job that is asked for now would come to an order of spaces in which what it makes waits for its cut-over.
    /// While another one is ahead of it, nobody knows: that may move all there is, and it is looked at in the job's turn.
    pub(super) async fn check_none_served_early_if_next(
        &self,
        space: &SpaceId,
        selection: &Filter,
    ) -> Result<(), ReembedError> {
        let is_ahead = |job: &Job| job.record.state.is_open() && job.record.state.is_at_work();
        let is_next = !self.jobs.read().values().any(is_ahead);
        if is_next { self.check_none_served_early(None, space, selection).await } else { Ok(()) }
    }

    /// Whether nothing that is made in a space for a selection serves before its cut-over: a roll-back would not bring
    /// back what another space serves now. The job that asks is named once it is recorded.
    async fn check_none_served_early(
        &self,
        asker: Option<&ReembeddingId>,
        space: &SpaceId,
        selection: &Filter,
    ) -> Result<(), ReembedError> {
        let Some((before, n_grains)) = self.grains.count_served_early(space, selection).await? else { return Ok(()) };
        let left = self.left_in(&before).await?;
        // No call would delete what is there: it is told of when the job begins.
        if left == Left::ByOthers && self.models.maker_of(&before).await.map_err(GrainError::Ledger)?.is_none() {
            return Ok(());
        }
        Err(ReembedError::ServedEarly { space: space.clone(), before, n_grains, asker: asker.cloned(), left })
    }

    /// Who has left vectors in a space that stand in the way of another.
    async fn left_in(&self, space: &SpaceId) -> Result<Left, ReembedError> {
        if let Some(id) = self.who_left(None, space).await? {
            return Ok(if has_way_back(&self.record(&id)?) { Left::ForWayBack(id) } else { Left::By(id) });
        }
        let jobs = self.jobs.read();
        let may_make_more = |job: &&Reembedding| {
            let may_go_on = job.state.is_open() || job.state.may_become(ReembeddingState::Queued);
            job.space == *space && (may_go_on || job.state == ReembeddingState::RollingBack)
        };
        let maker = jobs.values().map(|job| &job.record).find(may_make_more);
        Ok(maker.map_or(Left::ByOthers, |job| Left::ByOpen(job.id.clone())))
    }

    /// The newest job whose purge deletes vectors of a space and may be asked for, once the job that asks is cancelled: one
    /// that cannot be rolled back any more, if there is one. It may be the one that asks.
    async fn who_left(
        &self,
        asker: Option<&ReembeddingId>,
        space: &SpaceId,
    ) -> Result<Option<ReembeddingId>, ReembedError> {
        let jobs = self.list().into_iter().map(|ReembeddingStatus { record, .. }| record);
        let (with_way_back, others): (Vec<_>, Vec<_>) = jobs.partition(has_way_back);
        for job in others.into_iter().chain(with_way_back) {
            let has_ended = !job.state.is_open() && job.state != ReembeddingState::RollingBack;
            let may_be_purged = has_ended || asker == Some(&job.id);
            if !may_be_purged || job.old_vectors != OldVectors::Kept {
                continue;
            }
            let purge = self.grains.superfluous(&job).await?;
            if deleted_from(&purge).contains(space) && self.check_unneeded_but_by(asker, &job, &purge).is_ok() {
                return Ok(Some(job.id));
            }
        }
        Ok(None)
    }
}

/// Whether a job has moved grains that a roll-back would move back.
fn has_way_back(job: &Reembedding) -> bool {
    job.state == ReembeddingState::Completed && job.previous_order.is_some()
}
