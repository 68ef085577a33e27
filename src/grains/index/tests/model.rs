//! Random changes, compared with a map after each.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{Random, brute_force, numbers, options};
use crate::grains::index::{Serving, SpaceIndex};

const DIMENSIONS: usize = 9;

#[derive(Clone, Debug)]
enum Change {
    Put {
        number: i64,
        seed: u64,
        serving: Serving,
    },
    Remove {
        number: i64,
    },
    SetServing {
        number: i64,
        serving: Serving,
    },
    /// Saves and loads.
    Restart,
}

fn change() -> impl Strategy<Value = Change> {
    let number = prop_oneof![1..40_i64, 1_000..1_030_i64, Just(i64::MAX)];
    let serving = prop_oneof![3 => Just(Serving::Served), 1 => Just(Serving::Withheld)];
    prop_oneof![
        6 => (number.clone(), any::<u64>(), serving.clone())
            .prop_map(|(number, seed, serving)| Change::Put { number, seed, serving }),
        2 => number.clone().prop_map(|number| Change::Remove { number }),
        2 => (number, serving).prop_map(|(number, serving)| Change::SetServing { number, serving }),
        1 => Just(Change::Restart),
    ]
}

type Model = BTreeMap<i64, (Vec<f32>, Serving)>;

fn is_as(index: &SpaceIndex, model: &Model, query: &[f32]) -> Result<(), TestCaseError> {
    let served = || model.iter().filter(|(_, (_, serving))| *serving == Serving::Served);
    prop_assert_eq!(index.len(), model.len());
    prop_assert_eq!(index.n_served(), served().count());
    // With as many candidates as grains, codes miss nothing.
    let expected = brute_force(query, served().map(|(&number, (vector, _))| (number, vector)), 15);
    prop_assert_eq!(numbers(&index.nearest(query, 15).expect("searched")), &expected[..]);
    let even: Vec<i64> = model.keys().copied().filter(|number| number % 2 == 0).collect();
    let expected = served().filter(|(number, _)| *number % 2 == 0).map(|(&number, (vector, _))| (number, vector));
    let expected = brute_force(query, expected, 5);
    prop_assert_eq!(numbers(&index.nearest_among(query, &even, 5).expect("searched")), expected);
    for (&number, (vector, serving)) in model {
        prop_assert_eq!(index.serving(number), Some(*serving));
        prop_assert_eq!(index.vector(number).expect("read"), Some(vector.clone()));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn an_index_is_always_what_was_put_into_it(
        changes in prop::collection::vec(change(), 1..120),
        quantise_above in prop_oneof![Just(0_usize), Just(20), Just(1_000)],
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let options = options(folder.path(), DIMENSIONS, quantise_above);
        let mut index = SpaceIndex::create(options.clone()).expect("created");
        let mut model = Model::new();
        for (change, seed) in changes.into_iter().zip(0..) {
            match change {
                Change::Put { number, seed, serving } => {
                    let vector = Random(seed).vector(DIMENSIONS);
                    index.put(number, &vector, serving).expect("put");
                    model.insert(number, (vector, serving));
                }
                Change::Remove { number } => {
                    index.remove(number).expect("removed");
                    model.remove(&number);
                }
                Change::SetServing { number, serving } => {
                    index.set_serving(number, serving).expect("set");
                    if let Some(known) = model.get_mut(&number) {
                        known.1 = serving;
                    }
                }
                Change::Restart => {
                    index.save().expect("saved");
                    index = SpaceIndex::load(options.clone()).expect("loaded");
                }
            }
            is_as(&index, &model, &Random(seed).vector(DIMENSIONS))?;
        }
    }
}
