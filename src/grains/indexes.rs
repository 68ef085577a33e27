//! The indexes of all spaces that hold vectors, in step with the database.
//!
//! Whoever changes grains holds the gate of [`Grains`](super::Grains) and tells the indexes right after the commit. An
//! index that could not be told is broken: it finds nothing until it is made again from the database.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::RwLock;

use super::error::GrainError;
use super::index::{self, IndexError, IndexOptions, NotLoaded, Serving, SpaceIndex};
use super::store::{GrainStore, Identity, NewVector, Scored, TextFate, Written};
use super::vector::unit;
use crate::domain::SpaceId;
use crate::models::error::with_causes;
use crate::telemetry;

/// Vectors that are read from the database at once when an index is made.
const ROWS_AT_ONCE: u32 = 4096;

/// The indexes, in the order of their spaces.
pub struct Indexes {
    folder: PathBuf,
    identity: Identity,
    all: RwLock<Vec<SharedIndex>>,
}

/// The index of one space. Clones share it.
#[derive(Clone)]
pub(super) struct SharedIndex {
    space: SpaceId,
    state: Arc<RwLock<State>>,
}

enum State {
    Whole(Box<SpaceIndex>),
    /// Why it is not in step with the database, and the dimensions to make it with.
    Broken(String, usize),
}

impl Indexes {
    /// Loads the indexes that the last process saved, and makes those that it did not.
    ///
    /// # Errors
    /// The database's, or when an index cannot be made.
    pub async fn open(store: &dyn GrainStore, folder: PathBuf) -> Result<Self, GrainError> {
        let last = store.identity().await?;
        // From here on, what is in the files is known to nobody but this process.
        let identity = store.renew_epoch().await?;
        let mut all = Vec::new();
        for space in store.space_order().await? {
            let Some(dimensions) = dimensions_of(store, &space).await? else { continue };
            let options = |identity: &Identity| IndexOptions::new(folder.clone(), dimensions, mark(identity, &space));
            let began = Instant::now();
            let to_load = options(&last);
            let index = match blocking(move || SpaceIndex::load(to_load)).await {
                Ok(mut index) => {
                    index.set_epoch(identity.epoch.clone())?;
                    index
                }
                Err(reason) => {
                    if !matches!(reason, NotLoaded::Absent) {
                        tracing::warn!(%space, reason = with_causes(&reason), "a saved index is not used");
                    }
                    build(store, &space, options(&identity)).await?
                }
            };
            tracing::info!(%space, n_vectors = index.len(), took = ?began.elapsed(), "the index of a space is ready");
            all.push(SharedIndex { space, state: Arc::new(RwLock::new(State::Whole(Box::new(index)))) });
        }
        let indexes = Self { folder, identity, all: RwLock::new(all) };
        indexes.measure();
        Ok(indexes)
    }

    /// The spaces that serve grains, in their order.
    pub(super) fn serving(&self) -> Vec<SpaceId> {
        self.all.read().iter().filter(|index| index.n_served() > 0).map(|index| index.space.clone()).collect()
    }

    /// The spaces that hold vectors, and how many grains each serves; `None` while one of them is broken.
    pub(super) fn served(&self) -> Option<Vec<(SpaceId, u64)>> {
        let all = self.all.read();
        let served = |index: &SharedIndex| match &*index.state.read() {
            State::Whole(whole) => Some((index.space.clone(), whole.n_served() as u64)),
            State::Broken(..) => None,
        };
        all.iter().map(served).collect()
    }

    /// The index of a space that holds vectors.
    pub(super) fn of(&self, space: &SpaceId) -> Option<SharedIndex> {
        self.all.read().iter().find(|index| index.space == *space).cloned()
    }

    /// Notes what was committed. The caller holds the gate.
    pub(super) fn apply(&self, written: &Written, vector: Option<&NewVector>) {
        let number = written.numbered.number;
        let served = written.numbered.grain.provenance.as_ref().map(|provenance| &provenance.space);
        let serving = |space: &SpaceId| if served == Some(space) { Serving::Served } else { Serving::Withheld };
        if let Some(NewVector { provenance, vector }) = vector {
            self.of_new(&provenance.space, vector.len());
        }
        for index in self.all.read().iter() {
            index.change(|whole| match vector {
                Some(new) if new.provenance.space == index.space => {
                    whole.put(number, &unit(&new.vector), serving(&index.space))
                }
                _ if written.text == TextFate::Replaced => whole.remove(number),
                _ => whole.set_serving(number, serving(&index.space)),
            });
        }
    }

    /// Forgets deleted grains. The caller holds the gate.
    pub(super) fn remove(&self, numbers: &[i64]) {
        for index in self.all.read().iter() {
            index.change(|whole| numbers.iter().try_for_each(|number| whole.remove(*number)));
        }
    }

    /// Forgets what a space had of a grain. The caller holds the gate.
    pub(super) fn remove_from(&self, space: &SpaceId, number: i64) {
        if let Some(index) = self.of(space) {
            index.change(|whole| whole.remove(number));
        }
    }

    /// Makes broken indexes again. The caller holds the gate.
    pub(super) async fn repair(&self, store: &dyn GrainStore) {
        let all = self.all.read().clone();
        for index in all {
            let State::Broken(_, dimensions) = *index.state.read() else { continue };
            let options = IndexOptions::new(self.folder.clone(), dimensions, mark(&self.identity, &index.space));
            match build(store, &index.space, options).await {
                Ok(whole) => {
                    tracing::info!(space = %index.space, n_vectors = whole.len(), "a broken index was made again");
                    *index.state.write() = State::Whole(Box::new(whole));
                }
                Err(error) => {
                    tracing::error!(space = %index.space, "an index stays broken: {}", with_causes(&error));
                }
            }
        }
    }

    /// Whether an index is not in step with the database.
    pub(super) fn has_broken(&self) -> bool {
        self.all.read().iter().any(|index| matches!(*index.state.read(), State::Broken(..)))
    }

    /// Writes every index to its files. What cannot be written is made again at the next start.
    pub(super) async fn save(&self) {
        let all = self.all.read().clone();
        for index in all {
            let state = Arc::clone(&index.state);
            let saved = blocking(move || match &mut *state.write() {
                State::Whole(whole) => whole.save(),
                State::Broken(..) => Ok(()),
            });
            if let Err(error) = saved.await {
                tracing::warn!(space = %index.space, "the index is not saved: {}", with_causes(&error));
            }
        }
    }

    /// Sets the gauges.
    pub(super) fn measure(&self) {
        for index in self.all.read().iter() {
            let State::Whole(whole) = &*index.state.read() else { continue };
            let (space, size) = (index.space.to_string(), whole.size());
            metrics::gauge!(telemetry::GRAINS, "space" => space.clone()).set(whole.n_served() as f64);
            metrics::gauge!(telemetry::INDEX_BYTES, "space" => space.clone(), "where" => "memory")
                .set(size.memory as f64);
            metrics::gauge!(telemetry::INDEX_BYTES, "space" => space, "where" => "disk").set(size.disk as f64);
        }
    }

    /// The index of a space that may hold its first vector now.
    fn of_new(&self, space: &SpaceId, dimensions: usize) {
        if self.of(space).is_some() {
            return;
        }
        let options = IndexOptions::new(self.folder.clone(), dimensions, mark(&self.identity, space));
        let state = match SpaceIndex::create(options) {
            Ok(index) => State::Whole(Box::new(index)),
            Err(error) => State::Broken(with_causes(&error), dimensions),
        };
        self.all.write().push(SharedIndex { space: space.clone(), state: Arc::new(RwLock::new(state)) });
    }
}

impl SharedIndex {
    /// The nearest grains that the space serves, best first.
    pub(super) async fn nearest(&self, query: Vec<f32>, n: usize) -> Result<Vec<Scored>, GrainError> {
        self.search(move |index| Ok(index.nearest(&query, n)?.into_iter().map(scored).collect())).await
    }

    /// The nearest of these grains, best first.
    pub(super) async fn nearest_among(
        &self,
        query: Vec<f32>,
        mut numbers: Vec<i64>,
        n: usize,
    ) -> Result<Vec<Scored>, GrainError> {
        self.search(move |index| {
            numbers.sort_unstable();
            Ok(index.nearest_among(&query, &numbers, n)?.into_iter().map(scored).collect())
        })
        .await
    }

    /// Grains that may be the nearest, best first by an estimate.
    pub(super) async fn candidates(&self, query: Vec<f32>, n: usize) -> Result<Vec<i64>, GrainError> {
        self.search(move |index| Ok(index.candidates(&query, n)?.into_iter().map(|hit| hit.number).collect())).await
    }

    async fn search<T: Send + 'static>(
        &self,
        look: impl FnOnce(&SpaceIndex) -> Result<T, IndexError> + Send + 'static,
    ) -> Result<T, GrainError> {
        let (state, space) = (Arc::clone(&self.state), self.space.clone());
        blocking(move || match &*state.read() {
            State::Whole(index) => Ok(look(index)?),
            State::Broken(reason, _) => Err(GrainError::BrokenIndex { space, reason: reason.clone() }),
        })
        .await
    }

    fn n_served(&self) -> usize {
        match &*self.state.read() {
            State::Whole(index) => index.n_served(),
            // As far as anybody knows; the search says why it finds nothing.
            State::Broken(..) => 1,
        }
    }

    fn change(&self, change: impl FnOnce(&mut SpaceIndex) -> Result<(), IndexError>) {
        let mut state = self.state.write();
        let State::Whole(index) = &mut *state else { return };
        if let Err(error) = change(index) {
            let (reason, dimensions) = (with_causes(&error), index.dimensions());
            tracing::error!(space = %self.space, "the index is out of step, and is made again: {reason}");
            *state = State::Broken(reason, dimensions);
        }
    }
}

/// Whether the saved index of a space is the one that the next start would use, and how many vectors it has. Reads the
/// files whole, and changes nothing.
///
/// # Errors
/// The reason why the index would be made again.
pub fn check_saved(
    folder: PathBuf,
    identity: &Identity,
    space: &SpaceId,
    dimensions: usize,
) -> Result<usize, NotLoaded> {
    SpaceIndex::load(IndexOptions::new(folder, dimensions, mark(identity, space))).map(|index| index.len())
}

/// Makes an index of what the database has.
async fn build(store: &dyn GrainStore, space: &SpaceId, options: IndexOptions) -> Result<SpaceIndex, GrainError> {
    let mut index = blocking(move || SpaceIndex::create(options)).await?;
    let mut after = 0;
    loop {
        let batch = store.vectors_of_space(space, after, ROWS_AT_ONCE).await?;
        let Some(last) = batch.numbers.last() else { return Ok(index) };
        after = *last;
        index = blocking(move || -> Result<SpaceIndex, IndexError> {
            for ((number, vector), served) in batch.numbers.iter().zip(&batch.vectors).zip(&batch.served) {
                let serving = if *served { Serving::Served } else { Serving::Withheld };
                index.put(*number, &unit(vector), serving)?;
            }
            Ok(index)
        })
        .await?;
    }
}

async fn dimensions_of(store: &dyn GrainStore, space: &SpaceId) -> Result<Option<usize>, GrainError> {
    Ok(store.vectors_of_space(space, 0, 1).await?.vectors.first().map(Vec::len))
}

fn mark(identity: &Identity, space: &SpaceId) -> index::Identity {
    index::Identity { database: identity.database.clone(), epoch: identity.epoch.clone(), space: space.clone() }
}

fn scored(hit: index::Scored) -> Scored {
    Scored { number: hit.number, score: f64::from(hit.score) }
}

/// Runs what computes off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let span = tracing::Span::current();
    let done = tokio::task::spawn_blocking(move || span.in_scope(work)).await;
    done.unwrap_or_else(|ended| std::panic::resume_unwind(ended.into_panic()))
}
