//! Why something with grains was not done.

use std::time::Duration;

use super::index::IndexError;
use super::refusal::{Refusal, RefusalKind};
use super::service::MAX_IMPORTS;
use super::store::StoreError;
use crate::domain::{Fingerprint, GrainId, GrainIdError, ModelName, ReembeddingId, SpaceId};
use crate::engine::{Cause, EngineError, TokenCount};
use crate::models::{LedgerError, ModelError};
use crate::telemetry::with_causes;

/// Why something with grains was not done.
#[derive(Debug, thiserror::Error)]
pub enum GrainError {
    /// No grain has the id.
    #[error("there is no grain `{:.128}`", .0.as_str())]
    NotFound(GrainId),
    /// The id is taken.
    #[error("there is a grain `{0}` already: `PUT /grains/{0}` replaces it, or leave `id` out")]
    Exists(GrainId),
    /// One grain of a batch stands against all of them.
    #[error("grain {at} of the batch")]
    Among {
        /// Its place in the batch, from 0.
        at: usize,
        /// What is wrong with it.
        source: Box<GrainError>,
    },
    /// The id of an import's line is taken.
    #[error("there is a grain `{0}` already: `on_conflict=skip` leaves it as it is, `on_conflict=replace` replaces it")]
    Taken(GrainId),
    /// One id stands twice in a batch.
    #[error("the id `{0}` stands twice in the batch: send each grain once")]
    Twice(GrainId),
    /// The grain is in another version than the caller has seen.
    #[error(
        "`{id}` is in version {found}, not in {expected}: read it again, and repeat the change on what is there now"
    )]
    Version {
        /// The grain.
        id: GrainId,
        /// The version of `If-Match`.
        expected: u64,
        /// The version it is in.
        found: u64,
    },
    /// The caller has seen a grain where none is.
    #[error(
        "there is no grain `{:.128}`, which `If-Match` expects: leave the header out to write a new one",
        .0.as_str()
    )]
    Absent(GrainId),
    /// There is a grain where the caller expects none.
    #[error("there is a grain `{0}` already, against `If-None-Match: *`: leave the header out to replace it")]
    Present(GrainId),
    /// Others changed the grain again and again.
    #[error("`{0}` was changed by others at each of several tries: try again")]
    Contended(GrainId),
    /// An export that a stop cuts short.
    #[error("the server is stopping, and these are not all grains: export them again when it is back")]
    Stopping,
    /// Each try was made with a model that was the active one no more at its end.
    #[error(
        "the model of the vectors was changed at each of several tries, and the active one is `{active}` now: try again"
    )]
    ModelKeepsMoving {
        /// The active one.
        active: ModelName,
    },
    /// Another number of grains meets a filter than the caller expects.
    #[error("{found} grains meet the filter, not the {expected} of `expected_count`: nothing was deleted")]
    Count {
        /// What the caller expects.
        expected: u64,
        /// How many there are.
        found: u64,
    },
    /// The database refused in the middle of a deletion.
    #[error("{deleted} of the {found} grains that met the filter are deleted")]
    Halfway {
        /// How many are gone.
        deleted: u64,
        /// How many met the filter at the beginning.
        found: u64,
        /// Why the others are not.
        source: StoreError,
    },
    /// The key was used for another write.
    #[error("the `Idempotency-Key` `{0}` was used for another request within the last 24 hours: send a new key")]
    KeyReused(String),
    /// The id has no form of an id.
    #[error(transparent)]
    Id(#[from] GrainIdError),
    /// There is no text.
    #[error("`text` is empty: a grain is a text")]
    Empty,
    /// The text is longer than the model takes, and may not be cut.
    #[error(
        "`{field}` has {n_tokens} tokens; `{model}` takes {max_tokens}: shorten it, or let it be cut by \
         `engine.auto_truncate = true`"
    )]
    TooLong {
        /// Which one: of a grain, or of a search.
        field: &'static str,
        /// The model.
        model: ModelName,
        /// The text's tokens, special tokens included.
        n_tokens: TokenCount,
        /// The most the model takes.
        max_tokens: usize,
    },
    /// No memory was left to run the model on a grain's text.
    #[error(
        "no memory is left to run `{model}` on `text`: try again when the server has less to do, shorten it, set a smaller \
         `max_tokens` for the model, or give the server more memory"
    )]
    NoMemory {
        /// The model.
        model: ModelName,
        /// What the runtime said.
        source: Cause,
    },
    /// A field is out of its range.
    #[error("{message}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is wrong, the limit and the way out.
        message: String,
    },
    /// A space of which nothing is recorded.
    #[error(
        "the space {0} is not known here: `GET /spaces` lists the known ones, `POST /spaces` declares one of your own, and an \
         import finds that of a registered model (`POST /models`) which its lines name, or embeds the texts anew with \
         `reembed=true`"
    )]
    UnknownSpace(SpaceId),
    /// The space has no model that could embed a text into it.
    #[error("no model of this server makes the space {0}: send a vector of it, or configure its model")]
    NoMaker(SpaceId),
    /// A re-embedding could not be rolled back without the vectors of the space.
    #[error(
        "space {space} is not joined to another now: the way back of the re-embedding `{job}` needs its vectors. Try \
         again when that job is `rolled_back` (`POST /reembeddings/{job}/rollback`), or its `old_vectors` are `purged` \
         (`POST /reembeddings/{job}/purge`)"
    )]
    OnWayBack {
        /// The space.
        space: SpaceId,
        /// The job.
        job: ReembeddingId,
    },
    /// What is joined would be served from a space between the two.
    #[error(
        "space {from} is not joined to {to} now: the space {between} stands between them and has vectors of the same \
         grains, so that it would serve what is joined. When the re-embedding that left these has ended, purge it \
         (`GET /reembeddings`, `POST /reembeddings/{{id}}/purge`), and try again"
    )]
    Between {
        /// The space that gives its grains away.
        from: SpaceId,
        /// The one that they are to be in.
        to: SpaceId,
        /// The one that would serve them.
        between: SpaceId,
    },
    /// What a re-embedding makes would be served before its time.
    #[error(
        "no space is joined to {space} now: the re-embedding `{job}` makes it, and what it has made would be served before \
         it has ended. Try again when it has (`GET /reembeddings/{job}`), or cancel it (`POST /reembeddings/{job}/cancel`)"
    )]
    BeingMade {
        /// The space.
        space: SpaceId,
        /// The job.
        job: ReembeddingId,
    },
    /// The vector that was brought along is not what the model makes of the text.
    #[error(
        "the vector of `{id}` is not what `{model}` makes of the text: their cosine is {cosine:.4}, at least {least} is \
         needed. Leave `vector` out to have it computed"
    )]
    Unverified {
        /// The grain.
        id: String,
        /// The model of the vector's space.
        model: String,
        /// What the two have in common.
        cosine: f64,
        /// What they must have in common.
        least: f64,
    },
    /// A declared space has that name and another length.
    #[error("there is a space `{name}` of {found} dimensions already: declare another name")]
    DeclaredOtherwise {
        /// Its name.
        name: String,
        /// Its dimensions.
        found: u32,
    },
    /// An import would declare a space, and whoever sent it may not.
    #[error(
        "the space `{0}` is not declared here, and this key may not declare it: that takes the scope `admin` \
         (`POST /spaces`)"
    )]
    Undeclared(String),
    /// As many imports as may run do.
    #[error("{MAX_IMPORTS} imports are running, as many as may at once: try again when one has ended")]
    TooManyImports,
    /// A manifest and its fingerprint do not belong together.
    #[error(
        "the fingerprint {fingerprint} is not the SHA-256 of its manifest, which is {actual}: the line was changed since \
         it was exported"
    )]
    ForeignManifest {
        /// What the line says.
        fingerprint: String,
        /// What it should say.
        actual: Fingerprint,
    },
    /// An export has another number of grains than it says.
    #[error("the export says that it has {said} grains, and {found} came before its end: it was cut, or edited")]
    Cut {
        /// What its last line says.
        said: u64,
        /// How many there were.
        found: u64,
    },
    /// One reason stands against several grains, and is told of each: the first of them has the error itself.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// A model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The record of models and spaces.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// An index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// An index is out of step with the database.
    #[error("the index of space {space} is out of step, and is made again within a minute: {reason}")]
    BrokenIndex {
        /// The space.
        space: SpaceId,
        /// What happened to it.
        reason: String,
    },
    /// A record of an earlier answer that cannot be read.
    #[error("the earlier answer to this `Idempotency-Key` cannot be read")]
    Receipt(#[source] serde_json::Error),
}

impl GrainError {
    /// Whether an error is of a text, so that others need not suffer from it.
    #[must_use]
    pub fn is_of_a_text(&self) -> bool {
        let Self::Model(ModelError::Engine(error)) = self else { return false };
        !matches!(error, EngineError::Overloaded { .. } | EngineError::Closed | EngineError::Start { .. })
    }

    /// As of the model whose error it is.
    #[must_use]
    pub fn pause_before_retry(&self) -> Option<Duration> {
        match self {
            Self::Model(error) => error.pause_before_retry(),
            _ => None,
        }
    }

    /// As of the model whose error it is.
    ///
    /// # Errors
    /// The error itself, at once, when it will not pass by itself.
    pub async fn wait_out(self) -> Result<(), Self> {
        match self {
            Self::Model(error) => error.wait_out().await.map_err(Self::Model),
            error => Err(error),
        }
    }

    /// Whether nothing is wrong with what is written: a model or the database is not to be had, and may be later.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Store(_) | Self::Ledger(_) | Self::NoMemory { .. } | Self::Model(ModelError::GrainWrites { .. }) => {
                true
            }
            Self::Model(error) => matches!(
                RefusalKind::of_model(error),
                RefusalKind::ModelLoading
                    | RefusalKind::ModelDisabled
                    | RefusalKind::ModelFailed
                    | RefusalKind::MemoryBudget
                    | RefusalKind::DiskFull
                    | RefusalKind::Overloaded
                    | RefusalKind::Unavailable
            ),
            _ => false,
        }
    }

    /// A field that is out of its range.
    pub fn invalid(field: &'static str, message: impl Into<String>) -> Self {
        Self::Invalid { field, message: message.into() }
    }

    /// The sentence of it that callers may read, where the log has been told the rest.
    #[must_use]
    pub fn for_callers(&self) -> String {
        match self {
            Self::Store(error) | Self::Halfway { source: error, .. } => Refusal::for_callers(error).message,
            Self::Ledger(error) | Self::Model(ModelError::Ledger(error)) => {
                Refusal::for_callers_of_ledger(error).message
            }
            Self::Index(error) => error.for_callers(),
            _ => with_causes(self),
        }
    }

    /// The error as its caller is told it: of one grain of several, or of a whole request.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        let kind = match self {
            Self::Among { source, .. } => return source.refusal(),
            Self::Refused(refusal) => return refusal.clone(),
            Self::NotFound(_) => RefusalKind::NotFound,
            Self::Exists(_)
            | Self::Taken(_)
            | Self::Twice(_)
            | Self::Contended(_)
            | Self::ModelKeepsMoving { .. }
            | Self::Count { .. }
            | Self::DeclaredOtherwise { .. }
            | Self::OnWayBack { .. }
            | Self::Between { .. }
            | Self::BeingMade { .. } => RefusalKind::Conflict,
            Self::Version { .. } | Self::Absent(_) | Self::Present(_) => RefusalKind::Version,
            Self::Empty => RefusalKind::Empty,
            Self::TooLong { .. } => RefusalKind::TooLong,
            Self::NoMemory { .. } => RefusalKind::MemoryBudget,
            Self::Store(error) => return Refusal::of_store(error),
            Self::Halfway { source, .. } => {
                let Refusal { kind, message } = Refusal::of_store(source);
                let message = format!(
                    "{message}. {self}, and stay so: the same request deletes the others, with an `expected_count` of \
                     those that are left"
                );
                return Refusal { kind, message };
            }
            Self::Ledger(error) | Self::Model(ModelError::Ledger(error)) => return Refusal::of_ledger(error),
            Self::Index(error) => {
                tracing::error!("{}", with_causes(error));
                return Refusal { kind: RefusalKind::Unavailable, message: error.for_callers() };
            }
            Self::Model(error) => RefusalKind::of_model(error),
            Self::KeyReused(_)
            | Self::Id(_)
            | Self::Invalid { .. }
            | Self::UnknownSpace(_)
            | Self::NoMaker(_)
            | Self::ForeignManifest { .. }
            | Self::Undeclared(_)
            | Self::Cut { .. }
            | Self::Unverified { .. } => RefusalKind::Invalid,
            Self::Stopping | Self::TooManyImports | Self::BrokenIndex { .. } | Self::Receipt(_) => {
                RefusalKind::Unavailable
            }
        };
        Refusal { kind, message: with_causes(self) }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::models::lifecycle::FailureKind;

    #[test]
    fn a_model_that_cannot_be_loaded_is_no_database_that_is_away() {
        let name = ModelName::parse("m").expect("a name");
        let failed = |kind| ModelError::Failed {
            name: name.clone(),
            reason: "it does not".to_owned(),
            retry_after: Duration::ZERO,
            permanent: false,
            kind,
        };
        for (error, kind) in [
            (failed(FailureKind::Model), RefusalKind::ModelFailed),
            (failed(FailureKind::Memory), RefusalKind::MemoryBudget),
            (failed(FailureKind::Disk), RefusalKind::DiskFull),
            (ModelError::Disabled { name: name.clone() }, RefusalKind::ModelDisabled),
            (ModelError::Loading { name: name.clone(), waited: Duration::ZERO }, RefusalKind::ModelLoading),
            (ModelError::Engine(EngineError::Closed), RefusalKind::ModelLoading),
            (ModelError::Engine(EngineError::of_run(0, "bad_alloc".into())), RefusalKind::MemoryBudget),
        ] {
            assert_eq!(GrainError::Model(error).refusal().kind, kind);
        }
    }

    #[test]
    fn a_want_of_memory_may_pass_however_it_is_told() {
        let name = ModelName::parse("m").expect("a name");
        let of_run = || EngineError::of_run(0, "bad_alloc".into());
        assert!(GrainError::Model(of_run().into()).may_pass());
        assert!(GrainError::NoMemory { model: name, source: of_run().into() }.may_pass());
        assert!(!GrainError::invalid("text", "it is empty").may_pass());
    }

    #[test]
    fn who_deletes_is_told_how_many_are_gone_when_the_disk_is_full() {
        let source =
            StoreError::DiskFull { path: PathBuf::from("data/granary.db"), doing: "delete", source: "no room".into() };
        let error = GrainError::Halfway { deleted: 5_000, found: 7_000, source };
        let Refusal { kind, message } = error.refusal();
        assert_eq!(kind, RefusalKind::DiskFull);
        assert!(message.contains("5000 of the 7000 grains that met the filter are deleted"), "{message}");
        assert!(!message.contains("data/") && !error.for_callers().contains("data/"), "{message}");
    }

    #[test]
    fn a_database_is_no_other_reason_for_one_grain_and_neither_its_place_nor_that_of_its_indexes_is_told() {
        let (path, doing) = (|| PathBuf::from("data/granary.db"), "read a space");
        let busy = || StoreError::Overloaded { path: path(), doing };
        let full = || StoreError::DiskFull { path: path(), doing, source: "no room".into() };
        let slow = || StoreError::TooSlow { path: path(), doing, source: std::io::Error::other("interrupted").into() };
        let away = || StoreError::Files { path: path(), doing, source: std::io::Error::other("`data` is gone") };
        let files = || IndexError::Files { path: path(), doing, source: std::io::Error::other("`data` is gone") };
        let no_room = || IndexError::DiskFull { path: path(), doing, source: std::io::Error::other("no room") };
        let ledger = |source: StoreError| LedgerError { action: "read", source: source.into() };
        for (error, kind) in [
            (GrainError::Store(busy()), RefusalKind::Overloaded),
            (GrainError::Store(full()), RefusalKind::DiskFull),
            (GrainError::Store(slow()), RefusalKind::Timeout),
            (GrainError::Store(away()), RefusalKind::Unavailable),
            (GrainError::Index(files()), RefusalKind::Unavailable),
            (GrainError::Index(no_room()), RefusalKind::Unavailable),
            (GrainError::Index(IndexError::Damaged { path: path(), slot: 0 }), RefusalKind::Unavailable),
            (GrainError::Index(IndexError::Incomplete { path: path() }), RefusalKind::Unavailable),
            (GrainError::Ledger(ledger(busy())), RefusalKind::Overloaded),
            (GrainError::Ledger(ledger(full())), RefusalKind::DiskFull),
            (GrainError::Ledger(ledger(slow())), RefusalKind::Timeout),
            (GrainError::Ledger(ledger(away())), RefusalKind::Unavailable),
            (GrainError::Model(ModelError::Ledger(ledger(busy()))), RefusalKind::Overloaded),
            (GrainError::Model(ModelError::Ledger(ledger(full()))), RefusalKind::DiskFull),
            (GrainError::Model(ModelError::Ledger(ledger(away()))), RefusalKind::Unavailable),
        ] {
            let of_a_job = error.for_callers();
            let refusal = GrainError::Among { at: 3, source: Box::new(error) }.refusal();
            assert_eq!(refusal.kind, kind, "{}", refusal.message);
            assert_eq!(refusal.message, of_a_job);
            assert!(!refusal.message.contains("data/") && !refusal.message.contains("`data`"), "{}", refusal.message);
        }
    }
}
