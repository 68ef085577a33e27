//! Why a model cannot answer.

use std::path::PathBuf;
use std::time::Duration;

use super::folder::FolderError;
use super::hub::HubError;
use super::ledger::LedgerError;
use super::lifecycle::{Failure, FailureKind};
use super::memory::DoesNotFit;
use crate::domain::{HubSource, ModelName, OutputDimensionsError, SpaceId};
use crate::engine::EngineError;

/// How long a file that came whole and wrong from a hub is left alone after the first time, and at most.
const WRONG_FILE_COOLDOWN: (Duration, Duration) = (Duration::from_mins(1), Duration::from_hours(1));

/// How long a model that had no room in memory is left alone at most.
const NO_ROOM_COOLDOWN: Duration = Duration::from_secs(5);

/// Why a request to a model, or a change of models, was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// No model answers to the word.
    #[error("no model is called `{word}`; this server knows {known}")]
    NotFound {
        /// What the caller wrote.
        word: String,
        /// The names it could have written.
        known: String,
    },
    /// The model was still loading at the deadline.
    #[error("`{name}` is still loading after {}: it goes on loading, try again", seconds(.waited))]
    Loading {
        /// The model.
        name: ModelName,
        /// How long the request waited.
        waited: Duration,
    },
    /// The model was still being unloaded when the time of an order was over.
    #[error(
        "`{name}` is still being unloaded after {}: it is loaded again by the next request for it, once those have ended \
         that still use it; try again",
        seconds(.waited)
    )]
    Draining {
        /// The model.
        name: ModelName,
        /// How long the order waited.
        waited: Duration,
    },
    /// The model would have to be downloaded, and the server is stopping.
    #[error("`{name}` is not loaded, and the server is stopping: it begins no download, try again when it is back")]
    Stopping {
        /// The model.
        name: ModelName,
    },
    /// The model cannot be loaded.
    #[error("`{name}` cannot be loaded: {reason}")]
    Failed {
        /// The model.
        name: ModelName,
        /// The sentence of the failed load, with its causes.
        reason: String,
        /// When a request will try again.
        retry_after: Duration,
        /// Whether trying again is pointless until somebody changes a file or a setting.
        permanent: bool,
        /// What the load failed on.
        kind: FailureKind,
    },
    /// The operator has disabled the model.
    #[error("`{name}` is disabled: `POST /models/{name}/load` enables it")]
    Disabled {
        /// The model.
        name: ModelName,
    },
    /// Grains may not be written with the model.
    #[error("grains cannot be written with `{name}`: {reason}")]
    GrainWrites {
        /// The model.
        name: ModelName,
        /// What stands against it, and the way out.
        reason: String,
        /// Whether it is known that the model does not make its space; else that is looked at again.
        permanent: bool,
    },
    /// An inference of the model does not end.
    #[error(
        "`{name}` {what}: the runtime has been running one batch for more than five minutes, and nothing but the end of \
         the process ends that. Start the server anew"
    )]
    Stuck {
        /// The model.
        name: ModelName,
        /// What it cannot do, as the end of a sentence that begins with it.
        what: &'static str,
    },
    /// A change of models that does not fit what there is.
    #[error("{0}")]
    Conflict(String),
    /// A registration that makes no model.
    #[error("{0}")]
    Invalid(String),
    /// The request's vectors would be in another space than the one it expects.
    #[error("`{field}` is {expected}, but `{name}` answers this request in space {actual}")]
    SpaceMismatch {
        /// The field of the request that says which.
        field: &'static str,
        /// The model.
        name: ModelName,
        /// The space asked for.
        expected: SpaceId,
        /// The space the vectors would have.
        actual: SpaceId,
    },
    /// A vector length that the model does not offer.
    #[error(transparent)]
    Dimensions(#[from] OutputDimensionsError),
    /// A prompt that the model does not have.
    #[error("`{name}` has no prompt `{prompt}`; {offered}")]
    UnknownPrompt {
        /// The model.
        name: ModelName,
        /// The name asked for.
        prompt: String,
        /// What it has, as the end of the sentence.
        offered: String,
    },
    /// A prompt for inputs that are token ids already.
    #[error("a prompt cannot be put before token ids: send the text, or leave `{field}` out")]
    PromptBeforeIds {
        /// The field of the request that asks for the prompt.
        field: &'static str,
    },
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// What must survive a restart could not be read or recorded.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// Why a load failed.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The model's files.
    #[error(transparent)]
    Files(#[from] FolderError),
    /// A file that was replaced or written to meanwhile.
    #[error(
        "`{}` was replaced or written to while the model was being loaded, so that nobody can tell what was loaded. Load \
         it again once its files stay as they are",
        .0.display()
    )]
    Changed(PathBuf),
    /// A model of a hub whose files are not here yet.
    #[error("`{0}` is not downloaded")]
    NotDownloaded(HubSource),
    /// The hub, or what was downloaded from it.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Other models take the memory it needs.
    #[error(transparent)]
    Memory(#[from] DoesNotFit),
    /// A setting that the model's files contradict.
    #[error("{0}")]
    Setting(String),
    /// The load ended without a result.
    #[error("the load was cut short by a bug: {0}")]
    Panicked(String),
}

impl ModelError {
    /// How long work in the background waits before it asks again; `None` when the error will not pass by itself.
    #[must_use]
    pub fn pause_before_retry(&self) -> Option<Duration> {
        match self {
            // Whoever gets one of these has waited already.
            Self::Loading { .. } | Self::Draining { .. } => Some(Duration::from_millis(100)),
            Self::Engine(error) => error.pause_before_retry(),
            _ => None,
        }
    }

    /// Waits for [`Self::pause_before_retry`], after which work in the background asks again.
    ///
    /// # Errors
    /// The error itself, at once, when it will not pass by itself.
    pub async fn wait_out(self) -> Result<(), Self> {
        let pause = self.pause_before_retry().ok_or(self)?;
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

impl LoadError {
    /// Whether trying again is pointless until somebody changes a file or a setting.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Files(FolderError::Read(_))
            | Self::Changed(_)
            | Self::Engine(
                EngineError::Start { .. } | EngineError::NoMemory { .. } | EngineError::NoMemoryToOpen { .. },
            )
            | Self::NotDownloaded(_)
            | Self::Panicked(_) => false,
            Self::Memory(refusal) => refusal.is_permanent(),
            Self::Hub(error) => error.is_permanent(),
            Self::Files(_) | Self::Engine(_) | Self::Setting(_) => true,
        }
    }

    /// How long requests are answered with the reason: `usual`, but for two. Whether there is room in memory is soon looked
    /// at again, which takes no load. A file that came whole and wrong from a hub is fetched from its beginning, so each time
    /// in a row it is left alone for twice as long. `before` is how the load before this one failed.
    #[must_use]
    pub fn cooldown(&self, usual: Duration, before: Option<&Failure>) -> Duration {
        match self {
            Self::Memory(_) => return usual.min(NO_ROOM_COOLDOWN),
            Self::Hub(HubError::WrongHash { .. }) => {}
            _ => return usual,
        }
        let (least, most) = WRONG_FILE_COOLDOWN;
        let twice = before.map_or(Duration::ZERO, |failure| failure.retry_after(failure.failed_at) * 2);
        twice.clamp(least, most).max(usual)
    }

    /// What it failed on.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Memory(_) | Self::Engine(EngineError::NoMemory { .. } | EngineError::NoMemoryToOpen { .. }) => {
                FailureKind::Memory
            }
            Self::Hub(HubError::DiskFull { .. } | HubError::NoRoom(_)) => FailureKind::Disk,
            Self::Files(_)
            | Self::Changed(_)
            | Self::NotDownloaded(_)
            | Self::Hub(_)
            | Self::Engine(_)
            | Self::Setting(_)
            | Self::Panicked(_) => FailureKind::Model,
        }
    }
}

fn seconds(duration: &Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn work_in_the_background_waits_while_a_model_comes_or_goes() {
        let (name, waited) = (ModelName::parse("tiny").expect("a name"), Duration::ZERO);
        assert!(ModelError::Loading { name: name.clone(), waited }.wait_out().await.is_ok());
        assert!(ModelError::Draining { name: name.clone(), waited }.wait_out().await.is_ok());
        assert!(ModelError::Disabled { name }.wait_out().await.is_err());
    }

    #[test]
    fn a_load_that_found_no_memory_may_find_some_later() {
        let failed = LoadError::from(EngineError::of_run(0, "Failed to allocate 3 GB".into()));
        assert!(!failed.is_permanent() && failed.kind() == FailureKind::Memory);
        let failed = LoadError::from(EngineError::of_run(0, "Invalid input name".into()));
        assert!(failed.is_permanent() && failed.kind() == FailureKind::Model);
        for (said, is_permanent, kind) in [
            ("CUDA failure 2: out of memory", false, FailureKind::Memory),
            ("std::bad_alloc", false, FailureKind::Memory),
            ("Protobuf parsing failed", true, FailureKind::Model),
        ] {
            let otherwise = |source| EngineError::OpenSession { path: "model.onnx".into(), source };
            let failed = LoadError::from(EngineError::of_open(Path::new("model.onnx"), said.into(), otherwise));
            assert_eq!((failed.is_permanent(), failed.kind()), (is_permanent, kind), "{failed}");
        }
    }

    #[test]
    fn a_file_that_comes_wrong_again_and_again_is_left_alone_for_longer_and_longer() {
        let minutes = Duration::from_mins;
        let (file, hash) = ("model.onnx".to_owned(), String::new());
        let wrong = LoadError::from(HubError::WrongHash { file, expected: hash.clone(), found: hash });
        let after = |pause: Duration, usual: Duration| {
            let (reason, kind, failed_at) = (String::new(), FailureKind::Model, Instant::now());
            let before = Failure { reason, kind, failed_at, retry_at: failed_at + pause, permanent: false };
            wrong.cooldown(usual, Some(&before))
        };
        let usual = Duration::from_secs(30);
        assert_eq!(wrong.cooldown(usual, None), minutes(1));
        assert_eq!([1, 2, 20, 40, 60].map(|n| after(minutes(n), usual)), [2, 4, 40, 60, 60].map(minutes));
        assert_eq!(after(Duration::ZERO, Duration::ZERO), minutes(1));
        assert_eq!(after(minutes(1), minutes(180)), minutes(180), "who wants a longer pause has it");
        assert_eq!(LoadError::from(HubError::Cancelled).cooldown(usual, None), usual);
    }

    #[test]
    fn room_in_memory_is_soon_looked_for_again() {
        let refusal = DoesNotFit {
            needed_bytes: 1,
            is_estimate: true,
            used_bytes: 2,
            budget_bytes: 2,
            others_stay: true,
            is_doubtful: false,
        };
        let after = |usual: u64| LoadError::from(refusal.clone()).cooldown(Duration::from_secs(usual), None).as_secs();
        assert_eq!([0, 2, 30].map(after), [0, 2, 5]);
    }
}
