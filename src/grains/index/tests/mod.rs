//! What an index finds, compared with looking at every vector.

mod files;
mod model;

use std::path::Path;

use super::{Identity, IndexError, IndexOptions, Scored, Serving, SpaceIndex};
use crate::domain::space::SpaceId;

/// Numbers from a seed (`SplitMix64`), the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }

    /// About normal: the sum of four uniform numbers.
    #[allow(clippy::cast_possible_truncation)] // 16 bits fit
    fn normal(&mut self) -> f32 {
        let bits = self.next();
        (0..4).map(|i| f32::from((bits >> (i * 16)) as u16) / 65_536.0 - 0.5).sum::<f32>() * 1.73
    }

    fn vector(&mut self, dimensions: usize) -> Vec<f32> {
        unit((0..dimensions).map(|_| self.normal()).collect())
    }

    /// Vectors around `n_centres` centres.
    fn clusters(&mut self, n: usize, n_centres: usize, dimensions: usize) -> Vec<Vec<f32>> {
        let centres: Vec<_> = (0..n_centres).map(|_| self.vector(dimensions)).collect();
        (0..n)
            .map(|i| {
                let noise = self.vector(dimensions);
                unit(centres[i % n_centres].iter().zip(noise).map(|(centre, noise)| centre + 0.7 * noise).collect())
            })
            .collect()
    }
}

fn unit(vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    vector.into_iter().map(|value| value / length).collect()
}

fn options(folder: &Path, dimensions: usize, quantise_above: usize) -> IndexOptions {
    let space = SpaceId::parse("0123456789abcdef").expect("16 digits");
    let identity = Identity { database: "one".to_owned(), epoch: "first".to_owned(), space };
    IndexOptions { quantise_above, ..IndexOptions::new(folder.to_owned(), dimensions, identity) }
}

/// An index of these vectors, which get the numbers from 1.
fn index_of(vectors: &[Vec<f32>], options: IndexOptions) -> SpaceIndex {
    let mut index = SpaceIndex::create(options).expect("created");
    for (vector, number) in vectors.iter().zip(1..) {
        index.put(number, vector, Serving::Served).expect("put");
    }
    index
}

/// What looking at every vector finds.
fn brute_force<'a>(query: &[f32], vectors: impl IntoIterator<Item = (i64, &'a Vec<f32>)>, n: usize) -> Vec<i64> {
    let score = |vector: &[f32]| vector.iter().zip(query).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    let mut scored: Vec<_> = vectors.into_iter().map(|(number, vector)| (score(vector), number)).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    scored.into_iter().take(n).map(|(_, number)| number).collect()
}

fn numbers(hits: &[Scored]) -> Vec<i64> {
    hits.iter().map(|hit| hit.number).collect()
}

/// The share of `expected` that was found.
fn recall(found: &[Scored], expected: &[i64]) -> f64 {
    let n_found = expected.iter().filter(|&&number| found.iter().any(|hit| hit.number == number)).count();
    n_found as f64 / expected.len() as f64
}

#[test]
fn a_small_space_is_searched_exactly() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut random = Random(1);
    let vectors = random.clusters(500, 20, 50);
    let index = index_of(&vectors, options(folder.path(), 50, 1_000));
    for query in random.clusters(20, 20, 50) {
        let hits = index.nearest(&query, 10).expect("searched");
        assert_eq!(numbers(&hits), brute_force(&query, (1..).zip(&vectors), 10));
        assert!(hits.is_sorted_by(|a, b| a.score >= b.score));
        let odd: Vec<i64> = (1..=500).filter(|number| number % 2 == 1).collect();
        let among = index.nearest_among(&query, &odd, 10).expect("searched");
        assert_eq!(numbers(&among), brute_force(&query, (1..).zip(&vectors).filter(|(n, _)| n % 2 == 1), 10));
    }
}

#[test]
fn a_large_space_is_searched_almost_exactly() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut random = Random(2);
    let vectors = random.clusters(20_000, 200, 64);
    let index = index_of(&vectors, options(folder.path(), 64, 1_000));
    assert_eq!(index.size().disk, 20_000 * 64 * 4);
    let third: Vec<i64> = (1..=20_000).filter(|number| number % 3 == 0).collect();
    let few: Vec<i64> = (1..=20_000).filter(|number| number % 20 == 0).collect();
    let (mut of_all, mut of_third) = (0.0, 0.0);
    let queries: Vec<_> = (0..20).map(|i| vectors[i * 997].clone()).chain(random.clusters(20, 200, 64)).collect();
    for query in &queries {
        let all = index.nearest(query, 10).expect("searched");
        of_all += recall(&all, &brute_force(query, (1..).zip(&vectors), 10));
        assert_eq!(index.score(query, &numbers(&all)).expect("scored"), all, "scores are of the vectors");
        let among = index.nearest_among(query, &third, 10).expect("searched");
        assert!(among.iter().all(|hit| hit.number % 3 == 0));
        of_third += recall(&among, &brute_force(query, (1..).zip(&vectors).filter(|(n, _)| n % 3 == 0), 10));
        let among = index.nearest_among(query, &few, 10).expect("searched");
        assert_eq!(numbers(&among), brute_force(query, (1..).zip(&vectors).filter(|(n, _)| n % 20 == 0), 10));
        let candidates = index.candidates(query, 100).expect("searched");
        assert!((recall(&candidates, &numbers(&all)) - 1.0).abs() < 1e-9, "what is found was a candidate");
    }
    let n_queries = queries.len() as f64;
    assert!(of_all / n_queries >= 0.99, "recall of all: {}", of_all / n_queries);
    assert!(of_third / n_queries >= 0.99, "recall of a third: {}", of_third / n_queries);
}

#[test]
fn lengths_that_are_no_multiple_of_8_are_quantised_too() {
    for dimensions in [1, 3, 13, 30] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut random = Random(3);
        let vectors = random.clusters(300, 30, dimensions);
        let index = index_of(&vectors, options(folder.path(), dimensions, 10));
        let query = random.vector(dimensions);
        let hits = index.nearest(&query, 300).expect("searched");
        let expected = brute_force(&query, (1..).zip(&vectors), 300);
        assert_eq!(hits.len(), 300);
        assert!((recall(&hits, &expected) - 1.0).abs() < 1e-9, "every vector is found, once");
        assert!(hits.is_sorted_by(|a, b| a.score >= b.score));
    }
}

#[test]
fn growing_past_the_crossover_loses_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut random = Random(4);
    let vectors = random.clusters(120, 4, 16);
    let mut index = SpaceIndex::create(options(folder.path(), 16, 100)).expect("created");
    for (vector, number) in vectors.iter().zip(1..) {
        index.put(number, vector, Serving::Served).expect("put");
        assert_eq!(index.size().disk > 0, number > 100, "quantised from the first above the crossover on");
        let hits = index.nearest(vector, 5).expect("searched");
        let known = (1..=number).zip(&vectors);
        assert_eq!(numbers(&hits), brute_force(vector, known, 5), "after {number}");
    }
}

#[test]
fn what_is_put_at_once_is_found_as_what_is_put_one_by_one() {
    let mut random = Random(6);
    let vectors = random.clusters(300, 10, 13);
    for quantise_above in [0, 100, 150, 1_000] {
        let (folder, other_folder) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let one_by_one = index_of(&vectors, options(folder.path(), 13, quantise_above));
        let mut index = SpaceIndex::create(options(other_folder.path(), 13, quantise_above)).expect("created");
        let grains: Vec<(i64, &[f32], Serving)> =
            (1..).zip(&vectors).map(|(number, vector)| (number, vector.as_slice(), Serving::Served)).collect();
        for grains in grains.chunks(150) {
            index.put_all(grains).expect("put");
            let is_quantised = index.size().disk > 0;
            assert_eq!(is_quantised, index.len() > quantise_above);
        }
        for query in random.clusters(20, 10, 13) {
            let (found, expected) = (index.candidates(&query, 20), one_by_one.candidates(&query, 20));
            assert_eq!(found.expect("searched"), expected.expect("searched"));
            let (found, expected) = (index.nearest(&query, 20), one_by_one.nearest(&query, 20));
            assert_eq!(found.expect("searched"), expected.expect("searched"));
        }
        // Again: they are replaced.
        index.put_all(&grains[290..]).expect("put");
        assert_eq!((index.len(), index.size().disk), (300, one_by_one.size().disk));
        assert_eq!(index.vector(291).expect("read"), Some(vectors[290].clone()));
    }
}

#[test]
fn withheld_grains_are_kept_and_not_found() {
    for quantise_above in [0, 1_000] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut random = Random(5);
        let vectors = random.clusters(200, 10, 16);
        let mut index = index_of(&vectors, options(folder.path(), 16, quantise_above));
        let nearest = numbers(&index.nearest(&vectors[0], 3).expect("searched"));
        assert_eq!(nearest[0], 1);
        index.set_serving(1, Serving::Withheld).expect("withheld");
        index.set_serving(1, Serving::Withheld).expect("withheld again");
        index.set_serving(999, Serving::Withheld).expect("unknown");
        assert_eq!((index.len(), index.n_served(), index.serving(1)), (200, 199, Some(Serving::Withheld)));
        assert_eq!(index.nearest(&vectors[0], 2).expect("searched")[0].number, nearest[1]);
        assert!(index.nearest_among(&vectors[0], &[1], 10).expect("searched").is_empty());
        assert!(index.score(&vectors[0], &[1, 1]).expect("scored").is_empty());
        assert_eq!(index.vector(1).expect("read"), Some(vectors[0].clone()));
        index.set_serving(1, Serving::Served).expect("served");
        assert_eq!(numbers(&index.nearest(&vectors[0], 3).expect("searched")), nearest);
        assert_eq!(index.score(&vectors[0], &[1, 1]).expect("scored").len(), 1, "each grain once");
    }
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    for quantise_above in [0, 10] {
        let mut index = SpaceIndex::create(options(folder.path(), 8, quantise_above)).expect("created");
        assert!(index.nearest(&[0.5; 8], 10).expect("nothing is an answer").is_empty());
        index.put(7, &[0.35; 8], Serving::Served).expect("put");
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30] {
            let vector = [0.1, bad, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1];
            let refused = [index.nearest(&vector, 1).err(), index.put(7, &vector, Serving::Served).err()];
            assert!(refused.iter().all(|e| matches!(e, Some(IndexError::Value { position: 1, .. }))), "{refused:?}");
        }
        let refused = index.nearest_among(&[0.5; 7], &[7], 1).err();
        assert!(matches!(refused, Some(IndexError::Dimensions { expected: 8, found: 7 })), "{refused:?}");
        assert!(index.nearest(&[0.5; 8], 0).expect("none wanted").is_empty());
        assert_eq!(index.nearest(&[0.5; 8], usize::MAX).expect("all wanted").len(), 1);
        assert_eq!(index.nearest(&[0.0; 8], 1).expect("no direction").len(), 1);
        assert_eq!(index.candidates(&[0.5; 8], usize::MAX).expect("all wanted").len(), 1);
        assert_eq!(index.nearest_among(&[0.5; 8], &[i64::MIN, -1, 0, 7, i64::MAX], 5).expect("searched").len(), 1);
        index.set_serving(7, Serving::Withheld).expect("withheld");
        assert!(index.nearest(&[0.5; 8], 5).expect("none served").is_empty());
        assert!(index.candidates(&[0.5; 8], 5).expect("none served").is_empty());
    }
}
