//! Making the index of a space from what the database has, and looking at a saved one.

use std::path::PathBuf;

use super::super::error::GrainError;
use super::super::index::{self, IndexError, IndexOptions, NotLoaded, Serving, SpaceIndex};
use super::super::store::{GrainStore, Identity};
use super::super::vector::unit;
use super::taken::Taken;
use crate::domain::SpaceId;
use crate::shutdown::blocking;

/// Vectors that are read from the database at once.
const ROWS_AT_ONCE: u32 = 4096;

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

/// Makes an index of what the database has, and notes what it takes so far.
pub(super) async fn build(
    store: &dyn GrainStore,
    space: &SpaceId,
    options: IndexOptions,
    taken: &Taken,
) -> Result<SpaceIndex, GrainError> {
    let mut index = blocking(move || SpaceIndex::create(options)).await?;
    let mut after = 0;
    loop {
        let batch = store.vectors_of_space(space, after, ROWS_AT_ONCE).await?;
        let Some(last) = batch.numbers.last() else { return Ok(index) };
        after = *last;
        index = blocking(move || -> Result<SpaceIndex, IndexError> {
            let units: Vec<Vec<f32>> = batch.vectors.iter().map(|vector| unit(vector)).collect();
            let servings = batch.served.iter().map(|served| if *served { Serving::Served } else { Serving::Withheld });
            let grains = batch.numbers.iter().zip(&units).zip(servings);
            let grains = grains.map(|((number, vector), serving)| (*number, vector.as_slice(), serving));
            index.put_all(&grains.collect::<Vec<_>>())?;
            Ok(index)
        })
        .await?;
        taken.note_unfinished(index.size().memory);
    }
}

pub(super) async fn dimensions_of(store: &dyn GrainStore, space: &SpaceId) -> Result<Option<usize>, GrainError> {
    Ok(store.vectors_of_space(space, 0, 1).await?.vectors.first().map(Vec::len))
}

pub(super) fn mark(identity: &Identity, space: &SpaceId) -> index::Identity {
    index::Identity { database: identity.database.clone(), epoch: identity.epoch.clone(), space: space.clone() }
}
