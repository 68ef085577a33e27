//! What searches see while the indexes change.

use std::pin::pin;
use std::sync::Arc;

use super::super::index::SpaceIndex;
use super::super::store::{Identity, NewVector, TextFate};
use super::{Indexes, OneIndex, REMOVED_AT_ONCE};
use crate::domain::{Origin, Provenance, SpaceId};

const VECTOR: [f32; 2] = [1.0, 0.0];

fn vector_in(space: &SpaceId) -> NewVector {
    let provenance = Provenance {
        space: space.clone(),
        model: None,
        dimensions: 2,
        origin: Origin::Supplied,
        n_tokens: None,
        truncated: None,
    };
    NewVector { provenance, vector: VECTOR.to_vec() }
}

/// The numbers of the grains that a search finds in all spaces at one moment, and how many vectors are held then.
async fn look(indexes: &Indexes, at_most: usize) -> (Vec<i64>, usize) {
    let looked = indexes.look(move |moment| {
        let mut found = Vec::new();
        for space in moment.serving() {
            found.extend(moment.nearest(&space, &VECTOR, at_most)?);
        }
        let n_held: usize = moment.0.in_order.iter().filter_map(OneIndex::whole).map(SpaceIndex::len).sum();
        Ok((found.into_iter().map(|hit| hit.number).collect(), n_held))
    });
    looked.await.expect("no index is broken")
}

#[tokio::test]
async fn a_search_waits_for_a_piece_of_a_removal_and_finds_all_of_the_grains_or_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let identity = Identity { database: "one".to_owned(), epoch: "first".to_owned() };
    let indexes = Indexes { folder: folder.path().to_owned(), identity, all: Arc::default() };
    // The second space holds every grain too, and serves none.
    let vectors = ["0123456789abcdef", "fedcba9876543210"].map(|id| vector_in(&SpaceId::parse(id).expect("a space")));
    let numbers: Vec<i64> = (1..).take(8 * REMOVED_AT_ONCE + 1).collect();
    let n_grains = numbers.len();
    for number in &numbers {
        indexes.apply(*number, TextFate::New, &vectors.each_ref());
    }
    let (kept, gone) = numbers.split_last().expect("some");

    let mut removal = pin!(indexes.remove(gone));
    let mut has_looked_in_between = false;
    while futures::poll!(removal.as_mut()).is_pending() {
        let (found, n_held) = look(&indexes, n_grains).await;
        assert!(found == [*kept] || (found.len(), n_held) == (n_grains, 2 * n_grains), "{} of {n_held}", found.len());
        has_looked_in_between |= (3..2 * n_grains).contains(&n_held);
    }
    assert!(has_looked_in_between, "the search waited for all of it");
    assert_eq!(look(&indexes, n_grains).await, (vec![*kept], 2));
}
