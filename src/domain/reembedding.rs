//! Re-embeddings: jobs that give grains vectors in another space.

use super::filter::Filter;
use super::model::ModelName;
use super::space::SpaceId;
use super::text::{text_type, words};

/// The name of a re-embedding: a `UUIDv7`, so that names sort by age.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReembeddingId(String);

impl ReembeddingId {
    /// The name as it was given to a job; anybody's other word names none.
    #[must_use]
    pub fn of(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

text_type!(ReembeddingId);

/// Where a re-embedding is.
///
/// | from | to |
/// |---|---|
/// | `queued` | `running`, `paused`, `cancelled`, `failed` |
/// | `running` | `paused`, `cancelled`, `failed`, `cutting_over`, `completed_with_failures` |
/// | `cutting_over` | `running` (a write came in between), `completed`, `paused`, `cancelled`, `failed` |
/// | `paused` | `queued`, `cancelled` |
/// | `completed` | `rolling_back` |
/// | `rolling_back` | `rolled_back` (done, or cancelled) |
/// | `completed_with_failures`, `failed` | `queued` (tried again), `cancelled` |
/// | `cancelled`, `rolled_back` | |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReembeddingState {
    /// It waits for its turn.
    Queued,
    /// Grains get their vectors.
    Running,
    /// Its operator holds it.
    Paused,
    /// Every grain has its vector, and the order of spaces is about to change.
    CuttingOver,
    /// The grains are served from the new space.
    Completed,
    /// Some grains could not be embedded, so that nothing was cut over.
    CompletedWithFailures,
    /// Its operator gave it up.
    Cancelled,
    /// It cannot go on.
    Failed,
    /// The old space serves again; grains written since get vectors in it.
    RollingBack,
    /// That is done.
    RolledBack,
}

words! {
    /// The word on the wire and in the database.
    ReembeddingState {
        Queued => "queued",
        Running => "running",
        Paused => "paused",
        CuttingOver => "cutting_over",
        Completed => "completed",
        CompletedWithFailures => "completed_with_failures",
        Cancelled => "cancelled",
        Failed => "failed",
        RollingBack => "rolling_back",
        RolledBack => "rolled_back",
    }
}

impl ReembeddingState {
    /// Whether the table allows the move.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        use ReembeddingState as S;
        match self {
            S::Queued => matches!(next, S::Running | S::Paused | S::Cancelled | S::Failed),
            S::Running => {
                matches!(next, S::Paused | S::Cancelled | S::Failed | S::CuttingOver | S::CompletedWithFailures)
            }
            S::CuttingOver => matches!(next, S::Running | S::Completed | S::Paused | S::Cancelled | S::Failed),
            S::Paused => matches!(next, S::Queued | S::Cancelled),
            S::Completed => next == S::RollingBack,
            S::RollingBack => next == S::RolledBack,
            S::CompletedWithFailures | S::Failed => matches!(next, S::Queued | S::Cancelled),
            S::Cancelled | S::RolledBack => false,
        }
    }

    /// Whether there is work that goes on by itself.
    #[must_use]
    pub fn is_at_work(self) -> bool {
        matches!(self, Self::Queued | Self::Running | Self::CuttingOver | Self::RollingBack)
    }

    /// Whether it may still give grains vectors, so that there is no second one for its space.
    #[must_use]
    pub fn is_open(self) -> bool {
        matches!(self, Self::Queued | Self::Running | Self::Paused | Self::CuttingOver)
    }
}

/// Whether the vectors that a re-embedding made superfluous are still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldVectors {
    /// They are.
    Kept,
    /// They are being deleted.
    Purging,
    /// They are gone, and there is no way back.
    Purged,
}

words! {
    /// The word on the wire and in the database.
    OldVectors { Kept => "kept", Purging => "purging", Purged => "purged" }
}

/// A job that gives grains vectors in another space.
///
/// Its work is a set: the selected grains that have no current vector in the space. It is done when the set is empty.
#[derive(Clone, Debug, PartialEq)]
pub struct Reembedding {
    /// Its name.
    pub id: ReembeddingId,
    /// The model that makes the vectors.
    pub model: ModelName,
    /// The space of the model when the job was asked for.
    pub space: SpaceId,
    /// Which grains.
    pub selection: Filter,
    /// The share of the time that it may work: above 0, at most 1.
    pub throttle: f64,
    /// Where it is.
    pub state: ReembeddingState,
    /// Why, where that needs words.
    pub reason: Option<String>,
    /// Grains that it gave vectors.
    pub done: u64,
    /// `done` and those that were left when it was last counted.
    pub total: u64,
    /// The active model that the same request replaced.
    pub previous_model: Option<ModelName>,
    /// The order of spaces before the cut-over; `None` also when that changed nothing, since the space was the first one.
    pub previous_order: Option<Vec<SpaceId>>,
    /// Whether the superfluous vectors are still there.
    pub old_vectors: OldVectors,
    /// When it was asked for, in microseconds since 1970.
    pub created_us: i64,
    /// When it last changed its state.
    pub changed_us: i64,
    /// When the new space began to serve.
    pub cut_over_us: Option<i64>,
}

impl Reembedding {
    /// The spaces that stood before its own at the cut-over, in their order: where its way back leads to.
    pub fn spaces_before(&self) -> impl Iterator<Item = &SpaceId> {
        self.previous_order.iter().flatten().take_while(move |space| **space != self.space)
    }

    /// Whether its way back needs the vectors of a space where they are: those of the spaces before, which are to serve
    /// again, and those of its own, by which it is known what was written since.
    #[must_use]
    pub fn needs_for_its_way_back(&self, space: &SpaceId) -> bool {
        let has_way_back = match self.state {
            // What a purge has yet to delete stays where that looks for it.
            ReembeddingState::Completed => self.previous_order.is_some() && self.old_vectors != OldVectors::Purged,
            ReembeddingState::RollingBack => true,
            _ => false,
        };
        has_way_back && (*space == self.space || self.spaces_before().any(|before| before == space))
    }
}

/// A grain that the model could not embed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReembeddingFailure {
    /// The grain's id.
    pub grain: super::GrainId,
    /// What the model said.
    pub reason: String,
    /// How often it was tried.
    pub tries: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_read_as_they_are_written_and_lead_somewhere() {
        for state in ReembeddingState::ALL {
            assert_eq!(ReembeddingState::parse(state.as_str()), Some(state));
            let n_ways = ReembeddingState::ALL.into_iter().filter(|next| state.may_become(*next)).count();
            let ends = matches!(state, ReembeddingState::Cancelled | ReembeddingState::RolledBack);
            assert_eq!(n_ways == 0, ends, "{state:?}");
            assert!(!state.may_become(state), "{state:?}");
        }
        assert_eq!(ReembeddingState::parse("done"), None);
        for fate in OldVectors::ALL {
            assert_eq!(OldVectors::parse(fate.as_str()), Some(fate));
        }
    }

    #[test]
    fn nothing_leads_back_from_a_cut_over_but_a_roll_back() {
        for state in ReembeddingState::ALL {
            assert_eq!(
                ReembeddingState::Completed.may_become(state),
                state == ReembeddingState::RollingBack,
                "{state:?}"
            );
        }
    }
}
