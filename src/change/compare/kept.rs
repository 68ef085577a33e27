//! The comparisons of the process: one runs at a time, the last ones are kept in memory, each until it is deleted.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::embedding::Progress;
use super::{CompareError, CompareRequest, Comparison, compare};
use crate::domain::{Filter, ModelName};
use crate::grains::Grains;
use crate::models::MultiModelManager;
use crate::telemetry::with_causes;

/// Comparisons that are kept: the oldest that has ended makes room for a new one.
const KEPT: usize = 20;

/// The comparisons of the process. Clones share them.
#[derive(Clone)]
pub struct Comparisons {
    kept: Arc<Mutex<VecDeque<Arc<Entry>>>>,
    /// One at a time: two would only measure each other.
    turn: Arc<Semaphore>,
}

/// Where a comparison is.
///
/// | from | to |
/// |---|---|
/// | `queued` | `running`, `failed` |
/// | `running` | `completed`, `failed` |
///
/// Whoever deletes a comparison cancels it, and then it is in no state.
#[derive(Clone, Debug)]
pub enum State {
    /// Others come first.
    Queued,
    /// It is at work.
    Running,
    /// It is done.
    Completed(Arc<Comparison>),
    /// It could not be done, for this reason.
    Failed(String),
}

impl State {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed(_) => "completed",
            Self::Failed(_) => "failed",
        }
    }

    fn has_ended(&self) -> bool {
        matches!(self, Self::Completed(_) | Self::Failed(_))
    }
}

/// A comparison as it is now.
#[derive(Clone, Debug)]
pub struct Status {
    /// Its id, a UUID.
    pub id: String,
    /// The model in use.
    pub from: ModelName,
    /// The model that may take its place.
    pub to: ModelName,
    /// When it was asked for.
    pub created_at: OffsetDateTime,
    /// Where it is.
    pub state: State,
    /// Texts that were embedded so far.
    pub n_done: u64,
    /// Texts that are to be embedded; 0 before that is known.
    pub n_total: u64,
}

struct Entry {
    id: String,
    request: CompareRequest,
    created_at: OffsetDateTime,
    progress: Progress,
    cancel: CancellationToken,
    state: Mutex<State>,
}

impl Default for Comparisons {
    fn default() -> Self {
        Self { kept: Arc::default(), turn: Arc::new(Semaphore::new(1)) }
    }
}

impl Comparisons {
    /// Begins a comparison, which goes on by itself: [`Self::get`] shows how far it is.
    ///
    /// # Errors
    /// [`CompareError::Empty`], [`CompareError::Full`], or the database's.
    pub async fn start(
        &self,
        grains: &Grains,
        models: &MultiModelManager,
        request: CompareRequest,
    ) -> Result<Status, CompareError> {
        if grains.count(Filter::default(), Vec::new()).await?.total == 0 {
            return Err(CompareError::Empty);
        }
        let entry = Arc::new(Entry {
            id: Uuid::now_v7().to_string(),
            request,
            created_at: OffsetDateTime::now_utc(),
            progress: Progress::default(),
            cancel: grains.shutdown().soft().child_token(),
            state: Mutex::new(State::Queued),
        });
        self.keep(&entry)?;
        let (turn, grains, models) = (Arc::clone(&self.turn), grains.clone(), models.clone());
        let (status, shutdown) = (entry.status(), grains.shutdown().clone());
        shutdown.spawn("compare", async move {
            let ending = Ending(&entry);
            tokio::select! {
                () = entry.cancel.cancelled() => {}
                ended = entry.run(&turn, &grains, &models) => ending.with(ended),
            }
        });
        Ok(status)
    }

    /// All that are kept, the latest first.
    #[must_use]
    pub fn list(&self) -> Vec<Status> {
        self.kept.lock().iter().rev().map(|entry| entry.status()).collect()
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<Status> {
        self.kept.lock().iter().find(|entry| entry.id == id).map(|entry| entry.status())
    }

    /// Cancels a comparison if it has not ended, and forgets it.
    pub fn delete(&self, id: &str) {
        let mut kept = self.kept.lock();
        if let Some(removed) = kept.iter().position(|entry| entry.id == id).and_then(|at| kept.remove(at)) {
            removed.cancel.cancel();
        }
    }

    fn keep(&self, entry: &Arc<Entry>) -> Result<(), CompareError> {
        let mut kept = self.kept.lock();
        if kept.len() >= KEPT {
            let oldest = kept.iter().position(|entry| entry.state.lock().has_ended());
            kept.remove(oldest.ok_or(CompareError::Full(KEPT))?);
        }
        kept.push_back(Arc::clone(entry));
        Ok(())
    }
}

impl Entry {
    async fn run(
        &self,
        turn: &Semaphore,
        grains: &Grains,
        models: &MultiModelManager,
    ) -> Result<Comparison, CompareError> {
        let _turn = turn.acquire().await.expect("the semaphore is never closed");
        *self.state.lock() = State::Running;
        compare(grains, models, &self.request, &self.progress).await
    }

    fn status(&self) -> Status {
        Status {
            id: self.id.clone(),
            from: self.request.from.clone(),
            to: self.request.to.clone(),
            created_at: self.created_at,
            // Read before the counts: what is completed was counted whole.
            state: self.state.lock().clone(),
            n_done: self.progress.done.load(Ordering::Relaxed),
            n_total: self.progress.total.load(Ordering::Relaxed),
        }
    }
}

/// Gives a comparison its last state, one that panicked too: nobody should wait for it.
struct Ending<'a>(&'a Entry);

impl Ending<'_> {
    fn with(&self, ended: Result<Comparison, CompareError>) {
        let CompareRequest { from, to, .. } = &self.0.request;
        *self.0.state.lock() = match ended {
            Ok(comparison) => {
                tracing::info!(%from, %to, id = self.0.id, "a comparison is completed");
                State::Completed(Arc::new(comparison))
            }
            Err(error) => {
                let reason = with_causes(&error);
                tracing::warn!(%from, %to, id = self.0.id, "a comparison failed: {reason}");
                State::Failed(reason)
            }
        };
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        if !state.has_ended() {
            *state = State::Failed("it was cut short".to_owned());
        }
    }
}
