//! Why something with a re-embedding was not done.

use std::time::Duration;

use crate::domain::{ModelName, OldVectors, Reembedding, ReembeddingId, ReembeddingState, SpaceId};
use crate::grains::store::StoreError;
use crate::grains::{GrainError, Refusal};
use crate::models::ModelError;
use crate::telemetry::with_causes;

/// Who has left vectors where they stand in the way, which says how they are deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    /// A job whose purge deletes them.
    By(ReembeddingId),
    /// One whose purge does, and closes its way back.
    ForWayBack(ReembeddingId),
    /// One that has not ended, or may go on.
    ByOpen(ReembeddingId),
    /// No job that there is: writes, say.
    ByOthers,
}

/// Why something with a re-embedding was not done.
#[derive(Debug, thiserror::Error)]
pub enum ReembedError {
    /// No job has the name.
    #[error("there is no re-embedding `{:.64}`: `GET /reembeddings` lists them", .0.as_str())]
    NotFound(ReembeddingId),
    /// There is a job for the space.
    #[error(
        "the re-embedding `{id}` gives grains vectors of `{model}` already: wait for it, or cancel it with `POST \
         /reembeddings/{id}/cancel`"
    )]
    Open {
        /// The job.
        id: ReembeddingId,
        /// The model.
        model: ModelName,
    },
    /// The job is in a state in which it cannot be done.
    #[error("the re-embedding `{id}` is {}: it cannot be {verb}", .state.as_str())]
    State {
        /// The job.
        id: ReembeddingId,
        /// Where it is.
        state: ReembeddingState,
        /// What was asked: `paused`, say.
        verb: &'static str,
    },
    /// Its vectors are being deleted.
    #[error(
        "the vectors of the re-embedding `{0}` are being deleted: resume it when its `old_vectors` are `purged`, or ask \
         for a new one"
    )]
    Purging(ReembeddingId),
    /// Another job needs the vectors that are to be deleted.
    #[error(
        "what a purge of the re-embedding `{id}` would delete is kept: the re-embedding `{other}` needs it. Cancel, \
         roll back or purge that one first"
    )]
    Needed {
        /// The job.
        id: ReembeddingId,
        /// Who needs them.
        other: ReembeddingId,
    },
    /// More grains would move than are selected.
    #[error(
        "the space {space} would serve more grains than are selected, for it has vectors of others already \
         ({n_grains}): select them too, or leave `filter` and `from` out{}",
        or_purge(.asker.as_ref(), .left_by.as_ref())
    )]
    Beyond {
        /// The space of the job.
        space: SpaceId,
        /// How many.
        n_grains: u64,
        /// The job, once it is recorded: no purge takes what it may go on from until it is cancelled.
        asker: Option<ReembeddingId>,
        /// A job whose purge deletes such vectors, where there is one. It may be the same.
        left_by: Option<ReembeddingId>,
    },
    /// Grains would be served from its space before it takes over.
    #[error(
        "the space {space} would serve grains before the job has made all of them, and after a roll-back still \
         ({n_grains}): it cannot go behind the space {before}, which has vectors of grains that {space} serves, or is to \
         serve after another roll-back{}",
        out_of_the_way(.left, .before, .asker.as_ref())
    )]
    ServedEarly {
        /// The space of the job.
        space: SpaceId,
        /// The space that it stays before.
        before: SpaceId,
        /// How many.
        n_grains: u64,
        /// The job, once it is recorded.
        asker: Option<ReembeddingId>,
        /// Who has left the vectors in the space that it stays before.
        left: Left,
    },
    /// There is nothing to take back.
    #[error(
        "the re-embedding `{id}` cannot be rolled back: the space {space} was the first one before it, and the job only \
         brought more grains into it"
    )]
    FirstBefore {
        /// The job.
        id: ReembeddingId,
        /// Its space.
        space: SpaceId,
    },
    /// The time to take it back is over.
    #[error("the re-embedding `{0}` cannot be rolled back any more: its old vectors are gone, or the window is over")]
    TooLate(ReembeddingId),
    /// Another space has taken over since.
    #[error(
        "the re-embedding `{id}` cannot be rolled back: the space {space} is not the first one any more. Roll back the \
         later one first"
    )]
    Overtaken {
        /// The job.
        id: ReembeddingId,
        /// Its space.
        space: SpaceId,
    },
    /// A later job has made the space the first one again.
    #[error(
        "the re-embedding `{id}` cannot be rolled back: the later re-embedding `{later}` has made its space the first \
         one again. Roll back that one instead"
    )]
    Repeated {
        /// The job.
        id: ReembeddingId,
        /// The later one.
        later: ReembeddingId,
    },
    /// The model makes another space than when the job was asked for.
    #[error(
        "`{model}` makes the space {found} now, not {expected}: its files or settings have changed since the job was asked \
         for. Ask for a new one"
    )]
    OtherSpace {
        /// The model.
        model: ModelName,
        /// The space of the job.
        expected: SpaceId,
        /// What the model makes.
        found: SpaceId,
    },
    /// The work on a job met a bug.
    #[error("the work on it was cut short by a bug, see the log")]
    Panicked,
    /// A model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The grains.
    #[error(transparent)]
    Grains(#[from] GrainError),
}

impl From<StoreError> for ReembedError {
    fn from(error: StoreError) -> Self {
        Self::Grains(error.into())
    }
}

impl ReembedError {
    /// The sentence of it that whoever reads jobs is told. The log has the rest: where the database lies is the operator's
    /// to know.
    pub(super) fn for_callers(&self) -> String {
        match self {
            Self::Grains(error) => error.for_callers(),
            Self::Model(ModelError::Ledger(error)) => Refusal::for_callers_of_ledger(error).message,
            _ => with_causes(self),
        }
    }
}

/// How many errors that may pass a job has met in a row.
#[derive(Default)]
pub(super) struct Errors {
    met_by: Option<ReembeddingId>,
    n: u32,
}

impl Errors {
    /// Those of the job that has its turn; none where the last were another's. A purge meets none that count: where it is
    /// put off again and again, the job that it comes in between keeps its own.
    pub(super) fn of(&mut self, job: &Reembedding) -> &mut u32 {
        if job.old_vectors != OldVectors::Purging && self.met_by.as_ref() != Some(&job.id) {
            *self = Self { met_by: Some(job.id.clone()), n: 0 };
        }
        &mut self.n
    }
}

/// How else a job comes to move no more than it selects, as the end of a sentence.
fn or_purge(asker: Option<&ReembeddingId>, left_by: Option<&ReembeddingId>) -> String {
    let Some(left_by) = left_by else {
        // Writes leave such vectors too, and only a purge of a job deletes them.
        let way_out = ", or delete those vectors: ask for a job with neither `filter` nor `from`, cancel it or roll it back, and purge it";
        return way_out.to_owned();
    };
    let purge = format!("delete what the re-embedding `{left_by}` has left: `POST /reembeddings/{left_by}/purge`");
    match asker {
        Some(id) => format!(", or cancel this one (`POST /reembeddings/{id}/cancel`), {purge}, and ask for a new one"),
        None => format!(", or {purge}"),
    }
}

/// How else a job comes to serve nothing before its time, as the end of a sentence.
fn out_of_the_way(left: &Left, before: &SpaceId, asker: Option<&ReembeddingId>) -> String {
    let purge = |id: &ReembeddingId| format!("`POST /reembeddings/{id}/purge`");
    let way_out = match left {
        Left::By(id) => format!("delete what the re-embedding `{id}` has left there ({})", purge(id)),
        Left::ForWayBack(id) => {
            format!("roll the re-embedding `{id}` back, or purge it, which closes its way back ({})", purge(id))
        }
        Left::ByOpen(id) => {
            format!("let the re-embedding `{id}` come to its end, or cancel it and purge it ({})", purge(id))
        }
        Left::ByOthers => format!(
            "delete those vectors: ask for a job for the model of {before} with neither `filter` nor `from`, cancel it or \
             roll it back, and purge it"
        ),
    };
    match asker {
        Some(id) => format!(": {way_out}, and resume this one (`POST /reembeddings/{id}/resume`)"),
        None => format!(": select others (`from`, `filter`), or {way_out}"),
    }
}

/// Whether an inference of a model does not end, which nothing but another process changes.
pub(super) fn is_stuck(error: &ReembedError) -> bool {
    matches!(of_model(error), Some(ModelError::Stuck { .. }))
}

/// Whether a model cannot be had, which takes longer to find out than anything else.
pub(super) fn is_of_load(error: &ReembedError) -> bool {
    let error = of_model(error);
    matches!(error, Some(ModelError::Failed { .. } | ModelError::Loading { .. } | ModelError::Draining { .. }))
}

/// How long requests leave the model alone that could not be loaded.
pub(super) fn cooldown(error: &ReembedError) -> Duration {
    match of_model(error) {
        Some(ModelError::Failed { retry_after, .. }) => *retry_after,
        _ => Duration::ZERO,
    }
}

fn of_model(error: &ReembedError) -> Option<&ModelError> {
    match error {
        ReembedError::Model(error) | ReembedError::Grains(GrainError::Model(error)) => Some(error),
        _ => None,
    }
}

/// Whether an error may pass by itself.
pub(super) fn may_pass(error: &ReembedError) -> bool {
    match error {
        // What was in memory may have been at fault, such as an index, which is made again within a minute.
        ReembedError::Panicked => true,
        ReembedError::Model(error) | ReembedError::Grains(GrainError::Model(error)) => match error {
            ModelError::Failed { permanent, .. } | ModelError::GrainWrites { permanent, .. } => !permanent,
            ModelError::Loading { .. }
            | ModelError::Draining { .. }
            | ModelError::Stopping { .. }
            | ModelError::Engine(_)
            | ModelError::Ledger(_) => true,
            _ => false,
        },
        ReembedError::Grains(error) => {
            // A broken index is made again within a minute.
            use GrainError as E;
            matches!(error, E::Store(_) | E::Ledger(_) | E::Index(_) | E::BrokenIndex { .. })
        }
        _ => false,
    }
}
