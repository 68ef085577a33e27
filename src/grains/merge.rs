//! One ranking of several: reciprocal-rank fusion.
//!
//! Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods",
//! SIGIR 2009. Ranks need no common scale, which the scores of words, and of vectors of two spaces, do not have.

use std::collections::HashMap;

use super::store::Scored;

/// How little the first ranks stand out; the paper has 60. `make bench-quality` chose it on one half of its queries.
const K: f64 = 5.0;

/// A ranking, best first, and how much it counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ranking<'a> {
    pub(super) hits: &'a [Scored],
    pub(super) weight: f64,
}

/// All grains of the rankings, best first. Equal ones are in the order of their numbers.
pub(super) fn fuse(rankings: &[Ranking<'_>]) -> Vec<Scored> {
    let mut scores: HashMap<i64, f64> = HashMap::new();
    for Ranking { hits, weight } in rankings {
        for (rank, hit) in hits.iter().enumerate() {
            *scores.entry(hit.number).or_default() += weight / (K + (rank + 1) as f64);
        }
    }
    let mut fused: Vec<Scored> = scores.into_iter().map(|(number, score)| Scored { number, score }).collect();
    fused.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.number.cmp(&b.number)));
    fused
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(numbers: &[i64]) -> Vec<Scored> {
        numbers.iter().map(|number| Scored { number: *number, score: 0.0 }).collect()
    }

    #[test]
    fn what_both_rankings_have_comes_first() {
        let (words, vectors) = (hits(&[1, 2, 3]), hits(&[4, 3, 1]));
        let rankings = [Ranking { hits: &words, weight: 1.0 }, Ranking { hits: &vectors, weight: 1.0 }];
        let fused = fuse(&rankings);
        assert_eq!(fused.iter().map(|hit| hit.number).collect::<Vec<_>>(), [1, 3, 4, 2]);
        assert!((fused[0].score - (1.0 / 6.0 + 1.0 / 8.0)).abs() < 1e-12);
        assert!(fuse(&[]).is_empty());
    }
}
