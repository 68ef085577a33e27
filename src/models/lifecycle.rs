//! The states of a model and the moves between them.

use std::fmt;
use std::time::{Duration, Instant};

use crate::domain::words;

/// Where a model is in its life. The moves that exist, and nothing else, are in [`Phase::next_phases`]:
///
/// | from          | to                                     | when                                            |
/// |---------------|----------------------------------------|-------------------------------------------------|
/// | `unloaded`    | `downloading`, `loading`               | a request or a caller wants it                  |
/// | `downloading` | `loading`, `failed`, `unloaded`        | its files are there; they cannot be had; given up |
/// | `loading`     | `ready`, `failed`, `unloaded`          | the runtime has it; the runtime refuses it; given up |
/// | `ready`       | `draining`                             | it is to be unloaded                            |
/// | `draining`    | `unloaded`                             | the last request that leased it has ended       |
/// | `failed`      | `downloading`, `loading`, `unloaded`   | it is tried again; its failure is forgotten     |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Known, and not in memory.
    Unloaded,
    /// Its files are being fetched.
    Downloading,
    /// The runtime is reading it.
    Loading,
    /// It answers requests.
    Ready,
    /// It finishes the requests it has and takes no more.
    Draining,
    /// Its last load failed.
    Failed,
}

/// A move that the table does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a model cannot go from `{from}` to `{to}`")]
pub struct IllegalMove {
    /// Where it is.
    pub from: Phase,
    /// Where it was to go.
    pub to: Phase,
}

words! {
    /// The word used on the wire and in metrics.
    Phase {
        Unloaded => "unloaded",
        Downloading => "downloading",
        Loading => "loading",
        Ready => "ready",
        Draining => "draining",
        Failed => "failed",
    }
}

impl Phase {
    /// The transition table.
    #[must_use]
    pub fn next_phases(self) -> &'static [Self] {
        match self {
            Self::Unloaded => &[Self::Downloading, Self::Loading],
            Self::Downloading => &[Self::Loading, Self::Failed, Self::Unloaded],
            Self::Loading => &[Self::Ready, Self::Failed, Self::Unloaded],
            Self::Ready => &[Self::Draining],
            Self::Draining => &[Self::Unloaded],
            Self::Failed => &[Self::Downloading, Self::Loading, Self::Unloaded],
        }
    }

    /// Whether a model stays there until somebody wants something of it.
    #[must_use]
    pub fn lasts(self) -> bool {
        matches!(self, Self::Unloaded | Self::Ready | Self::Failed)
    }

    /// Checks a move against the table.
    ///
    /// # Errors
    /// When the table does not have it.
    pub fn check_move(self, to: Self) -> Result<(), IllegalMove> {
        if self.next_phases().contains(&to) { Ok(()) } else { Err(IllegalMove { from: self, to }) }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a load failed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The model's files, its settings, or the runtime.
    Model,
    /// Other models take the memory it needs.
    Memory,
    /// There is no room on the disk for its files.
    Disk,
}

/// Why a load failed and when the next request may try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// A sentence for the operator, with the chain of causes.
    pub reason: String,
    /// What it failed on.
    pub kind: FailureKind,
    /// When it failed: who waited for it gets the reason, whatever the pause.
    pub failed_at: Instant,
    /// Until then requests are answered with the reason; a load by hand is tried at once.
    pub retry_at: Instant,
    /// Whether trying again is pointless until somebody changes a file or a setting.
    pub permanent: bool,
}

impl Failure {
    /// How long requests are still answered with the reason.
    #[must_use]
    pub fn retry_after(&self, now: Instant) -> Duration {
        self.retry_at.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_life_without_trouble_is_legal() {
        let life =
            [Phase::Unloaded, Phase::Downloading, Phase::Loading, Phase::Ready, Phase::Draining, Phase::Unloaded];
        for pair in life.windows(2) {
            assert_eq!(pair[0].check_move(pair[1]), Ok(()));
        }
    }

    #[test]
    fn every_phase_can_be_left_and_reached() {
        for phase in Phase::ALL {
            assert!(!phase.next_phases().is_empty(), "{phase} cannot be left");
            assert!(Phase::ALL.iter().any(|from| from.next_phases().contains(&phase)), "{phase} cannot be reached");
        }
    }

    proptest! {
        #[test]
        fn a_model_that_is_ready_was_loading_and_one_that_goes_was_drained(
            steps in prop::collection::vec(prop::sample::select(Phase::ALL.to_vec()), 1..40)) {
            let mut phase = Phase::Unloaded;
            for to in steps {
                let before = phase;
                if phase.check_move(to).is_ok() {
                    phase = to;
                    prop_assert!(phase != Phase::Ready || before == Phase::Loading);
                    prop_assert!(before != Phase::Ready || phase == Phase::Draining);
                }
            }
        }
    }
}
