//! Re-embeddings: grains get vectors in another space, which then takes over, and may be taken back.
//!
//! Owns the jobs: what their operators may ask of them (here and in `verbs`), the one task that works on them (`work`; in
//! `before` what stands against that, and in `after` what follows a cut-over), and how much of the machine it takes
//! (`pace`). A job's work is a set, the selected grains that have no current vector in the space, so that nothing but the
//! account of the jobs must survive a restart. The vectors wait in a space of lower priority; the cut-over, and the way
//! back, change one row (`grains::staging`).

mod after;
mod before;
mod error;
mod pace;
mod verbs;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::Stream;
use parking_lot::RwLock;
use tokio::sync::{Mutex, Notify, watch};

use self::pace::Rate;
use crate::clock::Clock;
use crate::domain::{OldVectors, Reembedding, ReembeddingFailure, ReembeddingId, ReembeddingState};
use crate::grains::{GrainError, Grains};
use crate::models::MultiModelManager;
use crate::shutdown::Shutdown;

pub use self::error::ReembedError;
pub use self::verbs::{Prepared, ReembedRequest};

/// How often a followed job is shown at most.
const SHOWN_EVERY: Duration = Duration::from_millis(250);

/// What [`Reembeddings::start`] needs.
pub struct ReembeddingsParts {
    /// The grains.
    pub grains: Grains,
    /// What embeds them.
    pub models: MultiModelManager,
    /// How long a cut-over can be taken back; then the old vectors are deleted.
    pub rollback_window: Duration,
    /// Whether the window may be measured.
    pub clock: Arc<Clock>,
    /// Owns the task that works and the one that closes windows.
    pub shutdown: Shutdown,
}

/// The re-embeddings of the process. Clones share them.
#[derive(Clone)]
pub struct Reembeddings {
    grains: Grains,
    models: MultiModelManager,
    rollback_window: Duration,
    clock: Arc<Clock>,
    shutdown: Shutdown,
    jobs: Arc<RwLock<BTreeMap<ReembeddingId, Job>>>,
    /// One change of a job's state at a time, so that the database and the memory cannot part. Nobody waits here for a
    /// change of the active model, which may wait for this turn.
    turn: Arc<Mutex<()>>,
    /// Jobs whose way back is done with the active model, so that it does not undo what is chosen afterwards. Held during
    /// the change, which is waited for by another try of the same job.
    chosen: Arc<Mutex<BTreeSet<ReembeddingId>>>,
    wake: Arc<Notify>,
    changes: watch::Sender<u64>,
}

/// A job, and what is not recorded of it.
#[derive(Clone, Debug)]
struct Job {
    record: Reembedding,
    n_failed: u64,
    rate: Rate,
    /// Who needed its old vectors when they were to be deleted.
    needed_by: Option<ReembeddingId>,
    /// Why it waits, as callers are told.
    waits: Option<String>,
    /// Until when it was put off, or its purge was.
    due_at: Option<Instant>,
}

impl Job {
    fn new(record: Reembedding, n_failed: u64) -> Self {
        Self { record, n_failed, rate: Rate::default(), needed_by: None, waits: None, due_at: None }
    }

    /// Takes over what was recorded of it. Its worker alone counts what is done, and knows that a wait is over while
    /// the state stays.
    fn take_over(&mut self, record: Reembedding) {
        if (record.state, record.old_vectors) != (self.record.state, self.record.old_vectors) {
            self.waits = None;
        }
        if record.state != self.record.state {
            // A pause took no work.
            self.rate = Rate::default();
        }
        self.record = Reembedding { done: self.record.done, ..record };
    }

    /// Whether something of it is to be done now.
    fn is_due(&self) -> bool {
        goes_on(&self.record) && self.due_at.is_none_or(|at| at <= Instant::now())
    }
}

/// A job as it is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct ReembeddingStatus {
    /// What is recorded of it.
    pub record: Reembedding,
    /// Grains that could not be embedded.
    pub n_failed: u64,
    /// Grains a second lately, while it runs.
    pub rate: Option<f64>,
    /// Seconds until it is done at that rate.
    pub eta_s: Option<f64>,
    /// Until when it can be rolled back, in microseconds since 1970.
    pub rollback_until_us: Option<i64>,
}

impl Reembeddings {
    /// Goes on with the jobs of the last process.
    ///
    /// # Errors
    /// The database's.
    pub async fn start(parts: ReembeddingsParts) -> Result<Self, GrainError> {
        let ReembeddingsParts { grains, models, rollback_window, clock, shutdown } = parts;
        let (mut jobs, mut chosen) = (BTreeMap::new(), BTreeSet::new());
        let (active, active_since) = (models.active(), models.active_since().await?);
        for record in grains.account().reembeddings().await? {
            let (_, n_failed) = grains.account().reembedding_failures(&record.id, 0).await?;
            if record.state.is_at_work() {
                tracing::info!(id = %record.id, model = %record.model, state = record.state.as_str(),
                    "a re-embedding goes on where the last process left it");
            }
            // Who has chosen since the roll-back means that. The record is to the second: one of the same is the older.
            let is_newer = active_since.is_some_and(|since_s| since_s > record.changed_us / 1_000_000);
            if record.state == ReembeddingState::RollingBack && (active != record.model || is_newer) {
                chosen.insert(record.id.clone());
            }
            jobs.insert(record.id.clone(), Job::new(record, n_failed));
        }
        let reembeddings = Self {
            grains,
            models,
            rollback_window,
            clock,
            shutdown,
            jobs: Arc::new(RwLock::new(jobs)),
            turn: Arc::default(),
            chosen: Arc::new(Mutex::new(chosen)),
            wake: Arc::default(),
            changes: watch::Sender::new(0),
        };
        reembeddings.work_on();
        reembeddings.close_windows_in_time();
        Ok(reembeddings)
    }

    /// Every job, newest first.
    #[must_use]
    pub fn list(&self) -> Vec<ReembeddingStatus> {
        self.jobs.read().values().rev().map(|job| self.status_of(job)).collect()
    }

    /// One job.
    ///
    /// # Errors
    /// [`ReembedError::NotFound`].
    pub fn get(&self, id: &ReembeddingId) -> Result<ReembeddingStatus, ReembedError> {
        let jobs = self.jobs.read();
        jobs.get(id).map(|job| self.status_of(job)).ok_or_else(|| ReembedError::NotFound(id.clone()))
    }

    /// The first grains that a job could not embed, and how many there are.
    ///
    /// # Errors
    /// [`ReembedError::NotFound`], or the database's.
    pub async fn failures(
        &self,
        id: &ReembeddingId,
        at_most: u32,
    ) -> Result<(Vec<ReembeddingFailure>, u64), ReembedError> {
        self.get(id)?;
        Ok(self.grains.account().reembedding_failures(id, at_most).await?)
    }

    /// A job now and after each change, until nothing goes on any more or the process stops.
    ///
    /// # Errors
    /// [`ReembedError::NotFound`].
    pub fn follow(&self, id: &ReembeddingId) -> Result<impl Stream<Item = ReembeddingStatus> + use<>, ReembedError> {
        self.get(id)?;
        let (jobs, id, changes) = (self.clone(), id.clone(), self.changes.subscribe());
        // The state that was shown last; its stream has ended when nothing follows it.
        Ok(futures::stream::unfold((changes, None), move |(mut changes, shown)| {
            let (jobs, id) = (jobs.clone(), id.clone());
            async move {
                let soft = jobs.shutdown.soft();
                // A change that came while the last one was shown is not shown at once either.
                if shown.as_ref().is_some_and(|status: &ReembeddingStatus| goes_on(&status.record)) {
                    soft.run_until_cancelled(tokio::time::sleep(SHOWN_EVERY)).await?;
                }
                loop {
                    // From here on a change is noticed, also one that comes while this one is shown.
                    changes.borrow_and_update();
                    let status = jobs.get(&id).ok()?;
                    if shown.as_ref() != Some(&status) {
                        return Some((status.clone(), (changes, Some(status))));
                    }
                    if !goes_on(&status.record) {
                        return None;
                    }
                    soft.run_until_cancelled(changes.changed()).await?.ok()?;
                }
            }
        }))
    }

    fn status_of(&self, job: &Job) -> ReembeddingStatus {
        let Job { record, n_failed, rate, waits, .. } = job;
        let is_moving = record.state == ReembeddingState::Running && waits.is_none();
        let rate = rate.per_second().filter(|_| is_moving);
        let n_left = record.total.saturating_sub(record.done + n_failed);
        let waits = waits.clone().filter(|_| goes_on(record));
        let reason = match (record.reason.clone(), waits) {
            (Some(reason), Some(waits)) => Some(format!("{reason}; {waits}")),
            (reason, waits) => reason.or(waits),
        };
        ReembeddingStatus {
            record: Reembedding { reason, ..record.clone() },
            n_failed: *n_failed,
            rate,
            eta_s: rate.filter(|rate| *rate > 0.0).map(|rate| n_left as f64 / rate),
            rollback_until_us: self.window_end_us(record),
        }
    }

    /// Until when the old vectors of a job that has cut over are kept; `None` when there are none to keep, or nothing to
    /// roll back: then only somebody's word deletes what is behind its space.
    fn window_end_us(&self, record: &Reembedding) -> Option<i64> {
        let window_us = i64::try_from(self.rollback_window.as_micros()).unwrap_or(i64::MAX);
        let has_old = record.state == ReembeddingState::Completed && record.old_vectors == OldVectors::Kept;
        let has_window = has_old && record.previous_order.is_some();
        record.cut_over_us.filter(|_| has_window).map(|us| us.saturating_add(window_us))
    }

    /// Notes who needs the old vectors of a job that are to be deleted. Answers whether that is news.
    fn note_needed(&self, id: &ReembeddingId, by: &ReembeddingId) -> bool {
        let mut jobs = self.jobs.write();
        jobs.get_mut(id).is_some_and(|job| job.needed_by.replace(by.clone()).as_ref() != Some(by))
    }

    fn record(&self, id: &ReembeddingId) -> Result<Reembedding, ReembedError> {
        let jobs = self.jobs.read();
        jobs.get(id).map(|job| job.record.clone()).ok_or_else(|| ReembedError::NotFound(id.clone()))
    }

    /// Changes what is known of a job, and tells those who follow it.
    fn change(&self, id: &ReembeddingId, change: impl FnOnce(&mut Job)) {
        if let Some(job) = self.jobs.write().get_mut(id) {
            change(job);
        }
        self.changes.send_modify(|n_changes| *n_changes += 1);
    }

    /// Takes over what was recorded of a job.
    fn put(&self, record: Reembedding) {
        let id = record.id.clone();
        // What stood against a purge may have gone.
        for job in self.jobs.write().values_mut() {
            job.due_at = None;
        }
        self.change(&id, |job| job.take_over(record));
    }
}

/// Whether something of a job changes by itself.
fn goes_on(record: &Reembedding) -> bool {
    record.state.is_at_work() || record.old_vectors == OldVectors::Purging
}
