//! What a caller is told of a request that came to nothing.

use serde::{Deserialize, Serialize};

use super::store::StoreError;
use crate::engine::EngineError;
use crate::models::lifecycle::FailureKind;
use crate::models::{LedgerError, ModelError};
use crate::telemetry::with_causes;

/// Why a request, or one grain of several in it, came to nothing, as its caller is told it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What kind of reason it is.
    pub kind: RefusalKind,
    /// The sentence that its caller reads.
    pub message: String,
}

/// What is said of a database that is there, and all of whose connections others keep.
const BUSY: &str = "no connection to the database became free in time, because it has more to do than it can or another \
                    program holds it: try again, or ask for less at a time";

impl Refusal {
    /// What the database stands against. The log has its own words: where it lies is the operator's to know.
    #[must_use]
    pub fn of_store(error: &StoreError) -> Self {
        tracing::error!("{}", with_causes(error));
        Self::for_callers(error)
    }

    /// The same of the record of models and spaces, which is in the database.
    #[must_use]
    pub fn of_ledger(error: &LedgerError) -> Self {
        tracing::error!("{}", with_causes(error));
        Self::for_callers_of_ledger(error)
    }

    /// As [`Self::of_ledger`], where the log has been told already.
    #[must_use]
    pub fn for_callers_of_ledger(error: &LedgerError) -> Self {
        match error.source.downcast_ref::<StoreError>().map(Self::for_callers) {
            Some(refusal) if refusal.kind != RefusalKind::Unavailable => refusal,
            // Which record it is says more than that it is in a database.
            _ => {
                let message = format!("{error}: the database does not answer, see the log");
                Self { kind: RefusalKind::Unavailable, message }
            }
        }
    }

    pub(super) fn for_callers(error: &StoreError) -> Self {
        let (kind, message) = match error {
            StoreError::DiskFull { .. } => {
                let sentence = "the disk of the database is full, and nothing was written: reading goes on, and so does \
                                writing once there is room";
                (RefusalKind::DiskFull, sentence.to_owned())
            }
            StoreError::TooSlow { doing, .. } => {
                let sentence = format!(
                    "the database took too long to {doing}, and was interrupted: ask for less, with a narrower filter"
                );
                (RefusalKind::Timeout, sentence)
            }
            StoreError::Overloaded { .. } => (RefusalKind::Overloaded, BUSY.to_owned()),
            _ => (RefusalKind::Unavailable, "the database does not answer, see the log".to_owned()),
        };
        Self { kind, message }
    }
}

/// What kind of reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// There is no such grain.
    NotFound,
    /// There is no such model.
    ModelNotFound,
    /// It contradicts what there is.
    Conflict,
    /// Another version is stored.
    Version,
    /// It has no text.
    Empty,
    /// Its text is longer than the model takes and may not be cut.
    TooLong,
    /// A field is out of its range.
    Invalid,
    /// It is not JSON.
    Malformed,
    /// It is longer than is read.
    TooLarge,
    /// The model is being loaded.
    ModelLoading,
    /// The operator has disabled the model.
    ModelDisabled,
    /// The model cannot be loaded, or does not work.
    ModelFailed,
    /// There is no room in memory for the model.
    MemoryBudget,
    /// There is no room on the disk for the model, or on that of the database.
    DiskFull,
    /// The model's queue is full, or the database has more to do than it can.
    Overloaded,
    /// The database took too long.
    Timeout,
    /// The database is not to be had.
    Unavailable,
}

impl RefusalKind {
    pub(super) fn of_model(error: &ModelError) -> Self {
        match error {
            ModelError::NotFound { .. } => Self::ModelNotFound,
            ModelError::Loading { .. }
            | ModelError::Draining { .. }
            | ModelError::Stopping { .. }
            | ModelError::Engine(EngineError::Closed) => Self::ModelLoading,
            ModelError::Disabled { .. } => Self::ModelDisabled,
            ModelError::Failed { kind, .. } => match kind {
                FailureKind::Model => Self::ModelFailed,
                FailureKind::Memory => Self::MemoryBudget,
                FailureKind::Disk => Self::DiskFull,
            },
            ModelError::GrainWrites { .. } | ModelError::Stuck { .. } | ModelError::Conflict(_) => Self::Conflict,
            ModelError::Engine(EngineError::NoMemory { .. }) => Self::MemoryBudget,
            ModelError::Engine(EngineError::Overloaded { .. }) => Self::Overloaded,
            ModelError::Engine(EngineError::InputTooLong { .. } | EngineError::TooManyTokens { .. }) => Self::TooLong,
            ModelError::Invalid(_)
            | ModelError::SpaceMismatch { .. }
            | ModelError::Dimensions(_)
            | ModelError::UnknownPrompt { .. }
            | ModelError::PromptBeforeIds { .. }
            | ModelError::Engine(
                EngineError::Tokenize { .. }
                | EngineError::TokenOutOfVocabulary { .. }
                | EngineError::NotDecodable { .. }
                | EngineError::Inference { .. }
                | EngineError::NotANumber { .. },
            ) => Self::Invalid,
            ModelError::Engine(_) => Self::ModelFailed,
            ModelError::Ledger(_) => Self::Unavailable,
        }
    }
}
