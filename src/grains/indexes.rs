//! The indexes of all spaces that hold vectors, in step with the database.
//!
//! Whoever changes grains holds the gate of [`Grains`](super::Grains) and tells the indexes right after the commit. All
//! of them stand behind one lock, so that a search sees every space at one moment: a grain that moves from one space to
//! another is found in exactly one of them. An index that could not be told is broken: it finds nothing until it is made
//! again from the database.

mod all;
mod changing;
mod making;
mod taken;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{RwLock, RwLockReadGuard};

use self::all::{All, OneIndex, State};
use self::changing::Changing;
use self::making::{build, dimensions_of, mark};
use self::taken::Taken;
use super::error::GrainError;
use super::index::{self, IndexError, IndexOptions, NotLoaded, Serving, SpaceIndex};
use super::store::{GrainStore, Identity, NewVector, TextFate};
use crate::domain::SpaceId;
use crate::shutdown::blocking;
use crate::telemetry::with_causes;

pub(super) use self::all::Moment;
pub use self::making::check_saved;

/// Grains whose vectors are changed while searches wait, and with them whoever asks which spaces serve, on an async thread
/// too: in a large space each costs a code, a row read and a row written.
const CHANGED_AT_ONCE: usize = 64;

/// The indexes, in the order of their spaces.
pub struct Indexes {
    folder: PathBuf,
    identity: Identity,
    all: Arc<RwLock<All>>,
    taken: Arc<Taken>,
}

/// What was committed of a grain.
pub(super) struct GrainChange {
    /// Its number.
    pub(super) number: i64,
    /// What became of its text.
    pub(super) text: TextFate,
    /// The vectors it got.
    pub(super) vectors: Vec<NewVector>,
}

impl Indexes {
    /// Loads the indexes that the last process saved, and makes those that it did not.
    ///
    /// # Errors
    /// The database's, or when an index cannot be made.
    pub async fn open(store: &dyn GrainStore, folder: PathBuf) -> Result<Self, GrainError> {
        let last = store.identity().await?;
        let mut ready = Vec::new();
        let order = store.space_order().await?;
        for space in order.clone() {
            let Some(dimensions) = dimensions_of(store, &space).await? else { continue };
            let options = IndexOptions::new(folder.clone(), dimensions, mark(&last, &space));
            let began = Instant::now();
            let to_load = options.clone();
            let index = match blocking(move || SpaceIndex::load(to_load)).await {
                Ok(index) => index,
                Err(reason) => {
                    if !matches!(reason, NotLoaded::Absent) {
                        tracing::warn!(%space, reason = with_causes(&reason), "a saved index is not used");
                    }
                    build(store, &space, options, &Taken::default()).await?
                }
            };
            tracing::info!(%space, n_vectors = index.len(), took_ms = began.elapsed().as_secs_f64() * 1e3, "the index of a space is ready");
            ready.push((space, index));
        }
        // From here on, what is in the files is known to nobody but this process. No sooner: a start that is ended before
        // has changed no grain, and leaves the indexes that were saved to the next one.
        let identity = store.renew_epoch().await?;
        // Others than those spaces may have files of vectors that are deleted, or of a database that was here before.
        let kept: Vec<SpaceId> = ready.iter().map(|(space, _)| space.clone()).collect();
        let in_folder = folder.clone();
        if let Err(error) = blocking(move || index::discard_others(&in_folder, &kept)).await {
            tracing::warn!("files of indexes that are no more needed are still there: {}", with_causes(&error));
        }
        let mut in_order = Vec::with_capacity(ready.len());
        for (space, mut index) in ready {
            index.set_epoch(identity.epoch.clone())?;
            in_order.push(OneIndex { space, state: State::Whole(Box::new(index)) });
        }
        let mut all = All { in_order, order, ..All::default() };
        // An index that was saved while another one was broken serves grains of that one, too.
        all.settle_all();
        let indexes = Self::of(all, folder, identity);
        indexes.measure();
        Ok(indexes)
    }

    fn of(all: All, folder: PathBuf, identity: Identity) -> Self {
        all.note_taken();
        let taken = Arc::clone(&all.taken);
        Self { folder, identity, all: Arc::new(RwLock::new(all)), taken }
    }

    /// The spaces that serve grains, in their order.
    pub(super) fn serving(&self) -> Vec<SpaceId> {
        Moment(&self.glance()).serving()
    }

    /// The spaces that hold vectors, in their order, whether they serve grains or not.
    pub(super) fn holding(&self) -> Vec<SpaceId> {
        let holds = |index: &&OneIndex| index.whole().is_none_or(|whole| !whole.is_empty());
        self.glance().in_order.iter().filter(holds).map(|index| index.space.clone()).collect()
    }

    /// How many grains a space serves.
    pub(super) fn n_served(&self, space: &SpaceId) -> usize {
        self.glance().find(space).map_or(0, OneIndex::n_served)
    }

    /// Whether a space has vectors of grains that others serve; as far as anybody knows, when its index is broken.
    pub(super) fn withholds(&self, space: &SpaceId) -> bool {
        let withholds = |index: &OneIndex| index.whole().is_none_or(|whole| whole.len() > whole.n_served());
        self.glance().find(space).is_some_and(withholds)
    }

    /// Whether two spaces have vectors of a grain that has none in these; as far as anybody knows, when an index is
    /// broken.
    pub(super) fn share_one(&self, space: &SpaceId, other: &SpaceId, unless_in: &[SpaceId]) -> bool {
        let all = self.glance();
        // What holds no vectors may have no index.
        let (Some(index), Some(other)) = (all.find(space), all.find(other)) else { return false };
        let unless_in: Vec<&SpaceIndex> = unless_in.iter().filter_map(|space| all.find(space)?.whole()).collect();
        index.whole().zip(other.whole()).is_none_or(|(index, other)| index.shares_one(other, &unless_in))
    }

    /// Whether it is known which grains a space has vectors of.
    ///
    /// # Errors
    /// [`GrainError::BrokenIndex`].
    pub(super) fn check_whole(&self, space: &SpaceId) -> Result<(), GrainError> {
        let all = self.glance();
        match all.find(space).map(|index| &index.state) {
            Some(State::Broken(reason, _)) => {
                Err(GrainError::BrokenIndex { space: space.clone(), reason: reason.clone() })
            }
            Some(State::Whole(_)) | None => Ok(()),
        }
    }

    /// How often grains have moved from one space to another.
    pub(super) fn n_moves(&self) -> u64 {
        self.glance().n_moves
    }

    /// The spaces that hold vectors, and how many grains each serves; `None` while one of them is broken.
    pub(super) fn served(&self) -> Option<Vec<(SpaceId, u64)>> {
        let all = self.glance();
        let served = |index: &OneIndex| index.whole().map(|whole| (index.space.clone(), whole.n_served() as u64));
        all.in_order.iter().map(served).collect()
    }

    /// All indexes, for what takes a moment, on an async thread too. Who only glances passes a change that waits for a long
    /// look to end: as many who waited with it as there are threads would stop the process. One glance is not so long that
    /// the change would not get its turn between two.
    fn glance(&self) -> RwLockReadGuard<'_, All> {
        self.all.read_recursive()
    }

    /// Looks at all indexes at one moment, off the async threads.
    pub(super) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Moment<'_>) -> Result<T, GrainError> + Send + 'static,
    ) -> Result<T, GrainError> {
        let all = Arc::clone(&self.all);
        blocking(move || look(&Moment(&all.read()))).await
    }

    /// Learns where spaces stand that are new. Whoever has committed their first vectors holds the gate, and tells of them
    /// afterwards.
    pub(super) async fn learn(&self, store: &dyn GrainStore, spaces: impl IntoIterator<Item = &SpaceId>) {
        let is_new = {
            let all = self.glance();
            spaces.into_iter().any(|space| !all.order.contains(space))
        };
        if !is_new {
            return;
        }
        match store.space_order().await {
            Ok(order) => self.reorder(&order).await,
            Err(error) => {
                tracing::warn!("a new space is taken for the last one until it is written to: {}", with_causes(&error));
            }
        }
    }

    /// Notes what was committed, off the async threads. The caller holds the gate to the end. Of many grains searches have
    /// their turn in between.
    pub(super) async fn apply(&self, changes: Vec<GrainChange>) {
        let (all, folder, identity) = (Arc::clone(&self.all), self.folder.clone(), self.identity.clone());
        blocking(move || {
            let options = |new: &NewVector| {
                let mark = mark(&identity, &new.provenance.space);
                IndexOptions::new(folder.clone(), new.vector.len(), mark)
            };
            for changes in changes.chunks(CHANGED_AT_ONCE) {
                let mut all = Changing(all.write());
                for change in changes {
                    all.apply(change, options);
                }
            }
        })
        .await;
    }

    /// Forgets deleted grains. The caller holds the gate to the end. Searches see all of them go at one moment; what is
    /// left of them, which no search finds, is taken out in pieces, and searches have their turn in between.
    pub(super) async fn remove(&self, numbers: &[i64]) {
        // Else a search in between would spend its hits on grains that the database has no more.
        self.change_each(numbers, |index, number| index.set_serving(number, Serving::Withheld)).await;
        for numbers in numbers.chunks(CHANGED_AT_ONCE) {
            self.change_each(numbers, SpaceIndex::remove).await;
        }
    }

    /// Makes a change for each of these grains in every index, off the async threads, while searches wait.
    async fn change_each(&self, numbers: &[i64], change: fn(&mut SpaceIndex, i64) -> Result<(), IndexError>) {
        let (all, numbers) = (Arc::clone(&self.all), numbers.to_vec());
        blocking(move || {
            for index in &mut Changing(all.write()).in_order {
                index.change(|whole| numbers.iter().try_for_each(|number| change(whole, *number)));
            }
        })
        .await;
    }

    /// Forgets what a space had of grains, off the async threads. The caller holds the gate to the end. Of many grains
    /// searches have their turn in between.
    pub(super) async fn remove_from(&self, space: &SpaceId, numbers: &[i64]) {
        for numbers in numbers.chunks(CHANGED_AT_ONCE) {
            let (all, space, numbers) = (Arc::clone(&self.all), space.clone(), numbers.to_vec());
            blocking(move || {
                let mut all = Changing(all.write());
                let Some(index) = all.find_mut(&space) else { return };
                index.change(|whole| numbers.iter().try_for_each(|number| whole.remove(*number)));
                for number in numbers {
                    all.settle(number);
                }
            })
            .await;
        }
    }

    /// Notes a new order of spaces, off the async threads: each grain is served from the first that holds it. The caller
    /// holds the gate.
    pub(super) async fn reorder(&self, order: &[SpaceId]) {
        let (all, order) = (Arc::clone(&self.all), order.to_vec());
        blocking(move || Changing(all.write()).reorder(order)).await;
    }

    /// Makes broken indexes again. The caller holds the gate.
    pub(super) async fn repair(&self, store: &dyn GrainStore) {
        let broken: Vec<(SpaceId, usize)> = self.glance().in_order.iter().filter_map(OneIndex::broken).collect();
        for (space, dimensions) in broken {
            let options = IndexOptions::new(self.folder.clone(), dimensions, mark(&self.identity, &space));
            match build(store, &space, options, &self.taken).await {
                Ok(whole) => {
                    tracing::info!(%space, n_vectors = whole.len(), "a broken index was made again");
                    let all = Arc::clone(&self.all);
                    blocking(move || {
                        let mut all = Changing(all.write());
                        if let Some(index) = all.find_mut(&space) {
                            index.state = State::Whole(Box::new(whole));
                        }
                        // While it was broken, other spaces served what it holds.
                        all.settle_all();
                        all.n_moves += 1;
                    })
                    .await;
                }
                Err(error) => tracing::error!(%space, "an index stays broken: {}", with_causes(&error)),
            }
            self.taken.note_unfinished(0);
        }
    }

    /// Notes, off the async threads, that an index was looked into and could not be read: it is broken until it is made
    /// again.
    pub(super) async fn note_unreadable(&self, space: &SpaceId, error: &IndexError) {
        let (all, space) = (Arc::clone(&self.all), space.clone());
        let (reason, for_log) = (error.for_callers(), with_causes(error));
        blocking(move || {
            let mut all = Changing(all.write());
            if let Some(index) = all.find_mut(&space) {
                index.break_as(reason, &for_log);
            }
        })
        .await;
    }

    /// Whether an index is not in step with the database.
    pub(super) fn has_broken(&self) -> bool {
        self.glance().in_order.iter().any(|index| index.broken().is_some())
    }

    /// Writes every index to its files. What cannot be written is made again at the next start.
    ///
    /// They get an epoch of their own. A copy of the database that something else made while this process ran has the one
    /// of the opening, and would believe them otherwise, with all that was changed since.
    pub(super) async fn save(&self, store: &dyn GrainStore) {
        let epoch = match store.renew_epoch().await {
            Ok(identity) => identity.epoch,
            Err(error) => {
                tracing::warn!("the indexes are not saved: {}", with_causes(&error));
                return;
            }
        };
        let all = Arc::clone(&self.all);
        blocking(move || {
            for OneIndex { space, state } in &mut all.write().in_order {
                let State::Whole(whole) = state else { continue };
                let saved = whole.set_epoch(epoch.clone()).and_then(|()| whole.save());
                if let Err(error) = saved {
                    tracing::warn!(%space, "the index is not saved: {}", with_causes(&error));
                }
            }
        })
        .await;
    }
}
