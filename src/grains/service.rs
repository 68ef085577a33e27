//! Grains as the rest of the process uses them: read, written, deleted, counted.
//!
//! Everything that changes grains passes one gate, so that a commit and what it means for the indexes are one step for
//! everybody else, and goes on when its caller leaves. Who leaves while that waits there has changed nothing. Embedding
//! happens before the gate: nobody waits there for a model.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, OwnedMutexGuard, Semaphore};
use tokio_util::sync::CancellationToken;

use super::anchors::Anchors;
use super::draft::Precondition;
use super::error::GrainError;
use super::indexes::{GrainChange, Indexes};
use super::snapshots::{OneAtATime, Snapshots};
use super::staging::Staging;
use super::store::{
    Applied, Batch, Committed, Counted, Deletion, Facet, GrainStore, NewVector, Numbered, OnlyIf, Page, PageRequest,
    ProvenVector,
};
use crate::clock::{Clock, now_us};
use crate::domain::{Filter, Grain, GrainId, SpaceId};
use crate::models::{Ledger, MultiModelManager};
use crate::shutdown::Shutdown;
use crate::telemetry;

/// How long the answer to a write with an `Idempotency-Key` is remembered.
pub const RECEIPT_LIFETIME: Duration = Duration::from_hours(24);

/// How often older answers are forgotten, and the gauges of grains are set.
const UPKEEP: Duration = Duration::from_mins(1);

/// What grains may be like.
#[derive(Clone, Copy, Debug)]
pub struct GrainLimits {
    /// Bytes of a text.
    pub max_text_bytes: u64,
    /// Whether texts that are longer than the model takes are cut.
    pub auto_truncate: bool,
    /// From when on a search is logged.
    pub slow_search: Duration,
}

/// Imports that may run at once: each holds some batches of lines with their vectors.
pub(super) const MAX_IMPORTS: usize = 4;

/// What [`Grains::start`] needs.
pub struct GrainsParts {
    /// Where grains are kept.
    pub store: Arc<dyn GrainStore>,
    /// What embeds them.
    pub models: MultiModelManager,
    /// The spaces that are known.
    pub ledger: Arc<dyn Ledger>,
    /// What finds them by their vectors.
    pub indexes: Indexes,
    /// What makes the scores of several spaces comparable.
    pub anchors: Anchors,
    /// Where copies of the database are kept.
    pub snapshots: Snapshots,
    /// What they may be like.
    pub limits: GrainLimits,
    /// Whether what is old may be deleted.
    pub clock: Arc<Clock>,
    /// Owns the tasks that write.
    pub shutdown: Shutdown,
}

/// The grains of the process. Clones share them.
#[derive(Clone)]
pub struct Grains {
    pub(super) store: Arc<dyn GrainStore>,
    pub(super) models: MultiModelManager,
    pub(super) ledger: Arc<dyn Ledger>,
    pub(super) indexes: Arc<Indexes>,
    pub(super) anchors: Arc<Anchors>,
    pub(super) limits: GrainLimits,
    clock: Arc<Clock>,
    pub(super) shutdown: Shutdown,
    pub(super) staging: Staging,
    snapshots: Snapshots,
    pub(super) snapshot_turns: OneAtATime,
    /// Places for imports.
    pub(super) imports: Arc<Semaphore>,
    /// Whoever changes grains holds it, from before the commit until the indexes know.
    pub(super) gate: Arc<Mutex<()>>,
}

impl Grains {
    /// Begins to serve grains.
    #[must_use]
    pub fn start(parts: GrainsParts) -> Self {
        let GrainsParts { store, models, ledger, indexes, anchors, snapshots, limits, clock, shutdown } = parts;
        let grains = Self {
            store,
            models,
            ledger,
            indexes: Arc::new(indexes),
            anchors: Arc::new(anchors),
            limits,
            clock,
            shutdown,
            staging: Staging::default(),
            snapshots,
            snapshot_turns: OneAtATime::default(),
            imports: Arc::new(Semaphore::new(MAX_IMPORTS)),
            gate: Arc::default(),
        };
        let (indexes, anchors) = (Arc::clone(&grains.indexes), Arc::clone(&grains.anchors));
        grains.models.ask_for_memory_of_grains(move || indexes.memory_bytes() + anchors.memory_bytes());
        grains.keep_tidy();
        grains.keep_anchors();
        grains
    }

    /// What grains may be like.
    #[must_use]
    pub fn limits(&self) -> GrainLimits {
        self.limits
    }

    /// Writes the indexes to disk, for the end of the process: the next start need not build them.
    pub async fn save_indexes(&self) {
        self.indexes.save(self.store.as_ref()).await;
    }

    /// One grain.
    ///
    /// # Errors
    /// [`GrainError::NotFound`], or the database's.
    pub async fn get(&self, id: &GrainId) -> Result<Grain, GrainError> {
        Ok(self.numbered(id).await?.grain)
    }

    /// One grain, and the vector that it is served by if it has one.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn get_with_vector(&self, id: &GrainId) -> Result<(Grain, Option<Vec<f32>>), GrainError> {
        let found = self.store.grain_with_vector(id).await?;
        let (Numbered { grain, .. }, vector) = found.ok_or_else(|| GrainError::NotFound(id.clone()))?;
        Ok((grain, vector))
    }

    /// Grains in an order that stays the same while pages are read.
    ///
    /// # Errors
    /// The database's.
    pub async fn page(&self, request: PageRequest) -> Result<Page, GrainError> {
        Ok(self.store.page(request).await?)
    }

    /// How many grains meet the filter, and how they are distributed over the facets' values.
    ///
    /// # Errors
    /// The database's.
    pub async fn count(&self, filter: Filter, facets: Vec<Facet>) -> Result<Counted, GrainError> {
        Ok(self.store.count(filter, facets).await?)
    }

    /// Deletes one grain; in the version that the caller has seen, if it says so.
    ///
    /// # Errors
    /// [`GrainError::NotFound`], with a precondition too: what fails without one fails in the same way with it (RFC 9110,
    /// 13.2.1); [`GrainError::Version`], or the database's.
    pub async fn delete(&self, id: &GrainId, if_match: Precondition) -> Result<(), GrainError> {
        let filter = Filter { ids: Some(vec![id.clone()]), ..Filter::default() };
        let (only_if, expected) = match if_match {
            Precondition::Anything | Precondition::Present => (OnlyIf::Always, 0),
            Precondition::Version(version) => (OnlyIf::Version(version), version),
        };
        match self.remove(filter, only_if).await? {
            Ok(0) => Err(GrainError::NotFound(id.clone())),
            Ok(_) => Ok(()),
            Err(found) => Err(GrainError::Version { id: id.clone(), expected, found }),
        }
    }

    /// Deletes the grains that meet the filter, and answers how many; if there are as many as the caller expects. Many are
    /// not deleted in one step: others write in between, and of what has come to meet the filter since, or meets it no
    /// more, nothing is deleted.
    ///
    /// # Errors
    /// [`GrainError::Count`], [`GrainError::Halfway`], or the database's: then nothing was deleted.
    pub async fn delete_all(&self, filter: Filter, expected: Option<u64>) -> Result<u64, GrainError> {
        let removed = self.remove(filter, expected.map_or(OnlyIf::Always, OnlyIf::Count)).await?;
        removed.map_err(|found| GrainError::Count { expected: expected.unwrap_or_default(), found })
    }

    async fn remove(&self, filter: Filter, only_if: OnlyIf) -> Result<Result<u64, u64>, GrainError> {
        let (grains, began) = (self.clone(), Instant::now());
        let work = move |gate: OwnedMutexGuard<()>| async move {
            let Deletion { gone, mut left } = match grains.store.delete(filter.clone(), only_if).await? {
                Ok(deletion) => deletion,
                Err(found) => return Ok(Err(found)),
            };
            grains.forget(&gone).await;
            drop(gate);
            let found = (gone.len() + left.len()) as u64;
            let mut deleted = gone.len() as u64;
            while !left.is_empty() {
                // Those who wait have their turn first.
                let _gate = grains.gate.lock().await;
                let step = grains.store.delete_left(filter.clone(), left).await;
                let step = step.map_err(|source| GrainError::Halfway { deleted, found, source })?;
                grains.forget(&step.gone).await;
                deleted += step.gone.len() as u64;
                left = step.left;
            }
            grains.indexes.measure();
            metrics::histogram!(telemetry::GRAIN_WRITE_DURATION, "kind" => "delete").record(began.elapsed());
            Ok(Ok(deleted))
        };
        self.with_gate("delete grains", work).await
    }

    /// Tells everybody here who must know of deleted grains. The caller holds the gate.
    async fn forget(&self, numbers: &[i64]) {
        self.indexes.remove(numbers).await;
        self.anchors.forget(numbers);
    }

    /// Owns the tasks that work on grains.
    #[must_use]
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// The vectors as version 0.3 stored them, of grains after a number that still have one.
    ///
    /// # Errors
    /// The database's.
    pub async fn old_vectors(&self, after: i64, limit: u32) -> Result<Vec<(Numbered, Vec<u8>)>, GrainError> {
        Ok(self.store.old_vectors(after, limit).await?)
    }

    /// The vectors of a space, of grains after a number.
    ///
    /// # Errors
    /// The database's.
    pub async fn vectors_of_space(
        &self,
        space: &SpaceId,
        after: i64,
        limit: u32,
    ) -> Result<Vec<(Numbered, Vec<f32>)>, GrainError> {
        let batch = self.store.vectors_of_space(space, after, limit).await?;
        let mut vectors: HashMap<i64, Vec<f32>> = batch.numbers.iter().copied().zip(batch.vectors).collect();
        let mut grains = self.store.grains(batch.numbers, Filter::default()).await?;
        grains.sort_by_key(|grain| grain.number);
        let with_vector = |grain: Numbered| vectors.remove(&grain.number).map(|vector| (grain, vector));
        Ok(grains.into_iter().filter_map(with_vector).collect())
    }

    /// The numbers of at most so many grains, which draw the smallest lots ([`lot`](super::store::lot)), smallest first.
    ///
    /// # Errors
    /// The database's.
    pub async fn sample(&self, at_most: u32) -> Result<Vec<i64>, GrainError> {
        Ok(self.store.sample(at_most).await?)
    }

    /// The grains that have these numbers, in no particular order.
    ///
    /// # Errors
    /// The database's.
    pub async fn with_numbers(&self, numbers: Vec<i64>) -> Result<Vec<Numbered>, GrainError> {
        Ok(self.store.grains(numbers, Filter::default()).await?)
    }

    /// Gives vectors their provenance, and answers the numbers of the grains whose vector got it: those that are still in
    /// the version that was compared.
    ///
    /// # Errors
    /// As [`Self::check_joinable`] and [`Self::order_for_join`] of the space that they were in: then none did.
    pub async fn adopt(&self, proven: Vec<ProvenVector>) -> Result<Vec<i64>, GrainError> {
        let grains = self.clone();
        let work = async move {
            let join = |first: &ProvenVector| Some((first.from.clone()?, first.vector.provenance.space.clone()));
            let joined = proven.first().and_then(join);
            let mut order = None;
            if let Some((from, to)) = &joined {
                // A job may have cut over since the last batch.
                grains.check_joinable(from).await?;
                order = grains.order_for_join(from, to).await?;
            }
            let written = grains.store.adopt(proven, order.clone()).await?;
            if let Some(order) = &order {
                grains.indexes.reorder(order).await;
            }
            let spaces = written.iter().map(|(_, vector)| &vector.provenance.space);
            grains.indexes.learn(grains.store.as_ref(), spaces).await;
            let numbers: Vec<i64> = written.iter().map(|(written, _)| written.numbered.number).collect();
            let changes = written.into_iter().map(|(written, vector)| GrainChange {
                number: written.numbered.number,
                text: written.text,
                vectors: vec![vector],
            });
            grains.apply(changes.collect()).await;
            if let Some((from, _)) = &joined {
                grains.indexes.remove_from(from, &numbers).await;
            }
            grains.indexes.measure();
            Ok(numbers)
        };
        self.behind_gate("adopt vectors", work).await
    }

    /// The copies of the database that are kept.
    #[must_use]
    pub fn snapshots(&self) -> &Snapshots {
        &self.snapshots
    }

    /// Writes a batch, and makes it visible to searches.
    pub(super) async fn commit(&self, batch: Batch) -> Result<Committed, GrainError> {
        let (grains, began) = (self.clone(), Instant::now());
        let work = async move {
            // What the indexes must learn, before the store takes it.
            let vectors: Vec<Option<NewVector>> = batch.changes.iter().map(|change| change.vector.clone()).collect();
            let is_whole = batch.atomicity;
            // The time is taken behind the gate: what is committed later is not the older one by its times.
            let committed = grains.store.write(batch, now_us()).await?;
            if let Committed::Applied(applied) = &committed
                && super::writing::was_committed(applied, is_whole)
            {
                let staged = applied.iter().filter_map(|applied| match applied {
                    Applied::Written(written) => written.staged.as_ref(),
                    Applied::Stale(_) => None,
                });
                let spaces = vectors.iter().flatten().chain(staged).map(|vector| &vector.provenance.space);
                grains.indexes.learn(grains.store.as_ref(), spaces).await;
                let changes = applied.iter().zip(vectors).filter_map(|(applied, vector)| {
                    let Applied::Written(written) = applied else { return None };
                    let vectors = vector.into_iter().chain(written.staged.clone()).collect();
                    Some(GrainChange { number: written.numbered.number, text: written.text, vectors })
                });
                grains.apply(changes.collect()).await;
                grains.indexes.measure();
                metrics::histogram!(telemetry::GRAIN_WRITE_DURATION, "kind" => "write").record(began.elapsed());
            }
            Ok(committed)
        };
        self.behind_gate("write grains", work).await
    }

    /// Does what changes grains, with the gate held to the end; else as [`Self::with_gate`].
    pub(super) async fn behind_gate<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl Future<Output = Result<T, GrainError>> + Send + 'static,
    ) -> Result<T, GrainError> {
        // Else each future around it would have room for it.
        let work = Box::pin(work);
        let held = move |gate: OwnedMutexGuard<()>| async move {
            let _gate = gate;
            work.await
        };
        self.with_gate(name, held).await
    }

    /// Does what changes grains. It is given up when its caller leaves before its turn comes, and goes on when the caller
    /// leaves later. A task waits at the gate, and not the caller, who may read nothing for long: the gate would be kept for
    /// it.
    async fn with_gate<T: Send + 'static, F: Future<Output = Result<T, GrainError>> + Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce(OwnedMutexGuard<()>) -> F + Send + 'static,
    ) -> Result<T, GrainError> {
        let gate = Arc::clone(&self.gate);
        let left = CancellationToken::new();
        let _caller = left.clone().drop_guard();
        let in_turn = async move {
            let gate = left.run_until_cancelled(gate.lock_owned()).await?;
            Some(work(gate).await)
        };
        match self.shutdown.finish(name, in_turn).await {
            Some(done) => done,
            // Only a caller who has left is told so.
            None => std::future::pending().await,
        }
    }

    /// Tells everybody here who must know of a commit. The caller holds the gate.
    async fn apply(&self, changes: Vec<GrainChange>) {
        for GrainChange { number, text, vectors } in &changes {
            self.anchors.apply(*number, *text, vectors);
            self.staging.note(*number, vectors);
        }
        self.indexes.apply(changes).await;
    }

    pub(super) async fn numbered(&self, id: &GrainId) -> Result<Numbered, GrainError> {
        self.store.grain(id).await?.ok_or_else(|| GrainError::NotFound(id.clone()))
    }

    fn keep_tidy(&self) {
        let grains = self.clone();
        self.shutdown.every("grain upkeep", UPKEEP, move || {
            let grains = grains.clone();
            async move { grains.tidy().await }
        });
    }

    /// Since when a write must have been answered for its `Idempotency-Key` to count, in microseconds since 1970. While
    /// the clock cannot be relied on, each key that is still there counts: a write must not be made twice for that.
    pub(super) fn answers_since_us(&self) -> i64 {
        let lifetime_us = i64::try_from(RECEIPT_LIFETIME.as_micros()).unwrap_or(i64::MAX);
        if self.clock.is_settled() { now_us().saturating_sub(lifetime_us) } else { i64::MIN }
    }

    async fn tidy(&self) {
        if self.clock.is_settled()
            && let Err(error) = self.store.forget_receipts(self.answers_since_us()).await
        {
            tracing::warn!(%error, "answers to writes of more than a day ago are still kept");
        }
        if self.indexes.has_broken() {
            let _gate = self.gate.lock().await;
            self.indexes.repair(self.store.as_ref()).await;
        }
        self.indexes.measure();
    }
}
