//! What two rankings have in common, and how the scores of two models relate. Pure functions of numbers.

use std::collections::HashSet;
use std::hash::Hash;

use crate::domain::score_map::map_score;

/// How much less each rank counts than the one before: nine tenths, so that the first ten carry 86 % of the weight.
pub const PERSISTENCE: f64 = 0.9;

/// Depths at which the overlap is told, as far as the lists reach.
const DEPTHS: [usize; 7] = [1, 3, 5, 10, 20, 50, 100];

/// Bars of a histogram.
pub const BARS: usize = 40;

/// The share of the first `k` of each list that both have there. Lists that end before `k` count up to their end.
#[must_use]
pub fn overlap<T: Eq + Hash>(a: &[T], b: &[T], k: usize) -> f64 {
    let k = k.min(a.len()).min(b.len());
    if k == 0 {
        return 1.0;
    }
    let first: HashSet<&T> = a[..k].iter().collect();
    b[..k].iter().filter(|item| first.contains(item)).count() as f64 / k as f64
}

/// The depths at which lists of that length are compared: the usual ones, and their end.
#[must_use]
pub fn depths(length: usize) -> Vec<usize> {
    let mut depths: Vec<usize> = DEPTHS.into_iter().filter(|depth| *depth <= length).collect();
    if depths.last() != Some(&length) && length > 0 {
        depths.push(length);
    }
    depths
}

/// Rank-biased overlap of two lists of one length without repetitions: 1 for the same list, 0 for lists that share
/// nothing; the first ranks count most. Extrapolated beyond the end of the lists, as if they agreed there as much as at
/// their end: the extrapolated form of Webber, Moffat and Zobel, "A Similarity Measure for Indefinite Rankings", ACM
/// Transactions on Information Systems 28 (4), 2010.
#[must_use]
pub fn rank_biased_overlap<T: Eq + Hash>(a: &[T], b: &[T]) -> f64 {
    let p = PERSISTENCE;
    let (mut seen_a, mut seen_b): (HashSet<&T>, HashSet<&T>) = (HashSet::new(), HashSet::new());
    let (mut n_common, mut sum, mut weight, mut agreement) = (0_usize, 0.0, 1.0, 1.0);
    for (depth, (item_a, item_b)) in (1_usize..).zip(a.iter().zip(b)) {
        seen_a.insert(item_a);
        seen_b.insert(item_b);
        n_common += usize::from(seen_b.contains(item_a));
        n_common += usize::from(item_a != item_b && seen_a.contains(item_b));
        agreement = n_common as f64 / depth as f64;
        sum += weight * agreement;
        weight *= p;
    }
    (1.0 - p) * sum + weight * agreement
}

/// The places of the greatest scores, greatest first; of equal ones the first place first.
#[must_use]
pub fn greatest(scores: &[f32], n: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..scores.len()).collect();
    let order = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
    if n < places.len() {
        places.select_nth_unstable_by(n, order);
        places.truncate(n);
    }
    places.sort_unstable_by(order);
    places
}

/// The value that a share of the values does not exceed, by nearest rank; 0 of none.
#[must_use]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a length is a place in it")]
pub fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1).min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// The mean; 0 of none.
#[must_use]
pub fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len();
    if n == 0 { 0.0 } else { values.sum::<f64>() / n as f64 }
}

/// A map from one model's scores to another's: a score goes where the same share of the pairs lies below it.
///
/// Both models have scored the same pairs, so the sorted scores stand across from each other.
pub struct QuantileMap {
    from: Vec<f32>,
    to: Vec<f32>,
}

impl QuantileMap {
    /// The map that these scores make, `[n_pairs]` both.
    #[must_use]
    pub fn of(mut from: Vec<f32>, mut to: Vec<f32>) -> Self {
        from.sort_unstable_by(f32::total_cmp);
        to.sort_unstable_by(f32::total_cmp);
        Self { from, to }
    }

    /// Where a score goes.
    #[must_use]
    pub fn map(&self, score: f64) -> f64 {
        map_score(score, &self.from, &self.to)
    }

    /// The share of the pairs that reach a score of the first model.
    #[must_use]
    pub fn share_from(&self, score: f64) -> f64 {
        let below = self.from.partition_point(|value| f64::from(*value) < score);
        if self.from.is_empty() { 0.0 } else { (self.from.len() - below) as f64 / self.from.len() as f64 }
    }

    /// The least and the greatest score of both.
    #[must_use]
    pub fn range(&self) -> (f64, f64) {
        let ends = |scores: &[f32]| Some((f64::from(*scores.first()?), f64::from(*scores.last()?)));
        let (Some(from), Some(to)) = (ends(&self.from), ends(&self.to)) else { return (0.0, 1.0) };
        (from.0.min(to.0), from.1.max(to.1))
    }

    /// How many pairs lie in each of [`BARS`] equal parts of [`Self::range`], by the first and by the second model.
    #[must_use]
    pub fn histograms(&self) -> (Vec<u64>, Vec<u64>) {
        let range = self.range();
        (histogram(&self.from, range), histogram(&self.to, range))
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a length is a place in it")]
fn histogram(scores: &[f32], (low, high): (f64, f64)) -> Vec<u64> {
    let mut counts = vec![0; BARS];
    let width = (high - low).max(f64::MIN_POSITIVE);
    for score in scores {
        let bar = ((f64::from(*score) - low) / width * BARS as f64) as usize;
        counts[bar.min(BARS - 1)] += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn overlap_counts_what_both_have_among_the_first() {
        let (a, b) = ([1, 2, 3, 4], [2, 1, 9, 3]);
        assert!(is_near(overlap(&a, &b, 1), 0.0) && is_near(overlap(&a, &b, 2), 1.0));
        assert!(is_near(overlap(&a, &b, 3), 2.0 / 3.0) && is_near(overlap(&a, &b, 100), 0.75));
        assert!(is_near(overlap::<u8>(&[], &[], 3), 1.0));
        assert_eq!((depths(10), depths(7), depths(2)), (vec![1, 3, 5, 10], vec![1, 3, 5, 7], vec![1, 2]));
        assert_eq!(depths(0), Vec::<usize>::new());
    }

    #[test]
    fn rank_biased_overlap_is_that_of_the_paper() {
        assert!(is_near(rank_biased_overlap(&[1, 2, 3], &[1, 2, 3]), 1.0));
        assert!(is_near(rank_biased_overlap(&[1, 2, 3], &[4, 5, 6]), 0.0));
        // By hand: agreements 0, 1, 1 at depths 1, 2, 3.
        let by_hand = 0.1 * (0.9 + 0.81) + 0.729;
        assert!(is_near(rank_biased_overlap(&[1, 2, 3], &[2, 1, 3]), by_hand));
        // A change at the top weighs more than one at the end.
        let (top, end) = (rank_biased_overlap(&[1, 2, 3], &[9, 2, 3]), rank_biased_overlap(&[1, 2, 3], &[1, 2, 9]));
        assert!(top < end, "{top} {end}");
    }

    #[test]
    fn the_greatest_come_first_and_equal_ones_in_their_order() {
        assert_eq!(greatest(&[0.1, 0.9, 0.5, 0.9], 3), [1, 3, 2]);
        assert_eq!(greatest(&[0.1, 0.9], 5), [1, 0]);
        assert!(is_near(percentile(&[4.0, 1.0, 3.0, 2.0], 0.5), 2.0) && is_near(percentile(&[4.0, 1.0], 0.95), 4.0));
        assert!(is_near(percentile(&[], 0.5), 0.0));
    }

    #[test]
    fn a_score_goes_where_as_many_pairs_lie_below() {
        let map = QuantileMap::of(vec![0.25, 0.0, 0.5], vec![0.75, 0.5, 1.0]);
        assert!(is_near(map.map(0.25), 0.75) && is_near(map.map(0.125), 0.625), "{}", map.map(0.125));
        assert!(is_near(map.map(0.75), 1.25) && is_near(map.map(-0.25), 0.25), "slope 1 beyond both ends");
        assert!(is_near(map.share_from(0.25), 2.0 / 3.0) && is_near(map.share_from(0.9), 0.0));
        let (from, to) = map.histograms();
        assert_eq!((from[0], from[10], from[20], to[20], to[30], to[BARS - 1]), (1, 1, 1, 1, 1, 1));
    }

    proptest! {
        #[test]
        fn rank_biased_overlap_is_between_0_and_1_and_the_same_both_ways(order in Just((0..20).collect::<Vec<u8>>()).prop_shuffle()) {
            let (first, second) = order.split_at(10);
            let other: Vec<u8> = first.iter().rev().take(5).chain(second.iter().take(5)).copied().collect();
            let (there, back) = (rank_biased_overlap(first, &other), rank_biased_overlap(&other, first));
            prop_assert!((0.0..=1.0).contains(&there) && (there - back).abs() < 1e-12);
        }
    }
}
