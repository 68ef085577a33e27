//! One ranking of several.
//!
//! Spaces are merged by their anchors: for one query, the scores of the same texts in two spaces, each sorted, say what a
//! score in one is worth in the other. In a great store hardly an anchor is as near to a query as the best hits are: what
//! these would score in the other space is guessed, in both directions, so that the errors of the guesses cancel out. What
//! has no common scale, as words and vectors, or spaces without anchors, is fused by rank: Cormack, Clarke and Büttcher,
//! "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods", SIGIR 2009.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::search::Merged;
use super::store::Scored;
use crate::domain::SpaceId;
use crate::domain::score_map::map_score;

/// How little the first ranks stand out; the paper has 60. `make bench-quality` chose it on one half of its queries.
const K: f64 = 5.0;

/// How much the ranking by words counts in a hybrid search, beside 1 for the ranking by vectors: chosen with [`K`].
const WORDS_WEIGHT: f64 = 1.5;

/// The least BM25 of words that say something. A word that at least half of the grains have gets from FTS5, in place of its
/// inverse frequency, 1e-6, and a grain at most 2.2 times that for it: 32 words stay below this.
const LEAST_TELLING: f64 = 1e-4;

/// How much the ranking by other words counts: it has no order but that of numbers. So little that it changes none of the
/// others, and that what is in no other comes last.
const COMMON_WEIGHT: f64 = 1e-9;

/// Anchors that two spaces must have in common: with fewer the map between their scores is too coarse.
pub(super) const MIN_ANCHORS: usize = 200;

/// So many hits of each space are the best.
pub(super) const N_BEST: usize = 10;

/// What was found in a space.
#[derive(Clone, Debug)]
pub(super) struct SpaceHits {
    pub(super) space: SpaceId,
    /// Grains that the space serves.
    pub(super) n_served: usize,
    /// The query there.
    pub(super) query: Vec<f32>,
    /// Best first.
    pub(super) hits: Vec<Scored>,
    /// The vectors of the first [`N_BEST`] of them, as far as they are at hand.
    pub(super) best: Vec<Vec<f32>>,
    /// The scores of the query against the anchors, in the order of their numbers.
    pub(super) anchors: Vec<Scored>,
}

/// What words found.
#[derive(Clone, Copy, Debug)]
pub(super) struct WordHits<'a> {
    /// Best first, of those that have words that say something, and of the others behind them.
    pub(super) hits: &'a [Scored],
    /// So many of them, the first, have words that say something.
    pub(super) n_telling: usize,
}

/// How many of what words found, best first, have some that less than half of all grains have.
pub(super) fn n_telling(by_words: &[Scored]) -> usize {
    by_words.partition_point(|hit| hit.score >= LEAST_TELLING)
}

/// One ranking of what spaces found and what words did. A lone one keeps its scores; hits of several spaces get scores on
/// the scale of the searched space that serves most grains; what words found is fused with that by rank, as far as they say
/// something: what is found by others is kept, behind everything else. `guess` says what the best hits of one space would
/// score in another, if it can.
pub(super) fn merge(
    spaces: &[SpaceHits],
    words: Option<WordHits<'_>>,
    guess: impl Fn(&SpaceHits, &SpaceHits) -> Option<Vec<f64>>,
) -> (Vec<Scored>, Merged) {
    let (by_meaning, merged) = match spaces {
        [] => (Vec::new(), Merged::Score),
        [only] => (only.hits.clone(), Merged::Score),
        several => match on_one_scale(several, guess) {
            Some(hits) => (hits, Merged::Anchors),
            None => (fuse(&several.iter().map(|space| Ranking::of(&space.hits)).collect::<Vec<_>>()), Merged::Rank),
        },
    };
    match words {
        None => (by_meaning, merged),
        Some(words) if spaces.is_empty() => (words.hits.to_vec(), Merged::Score),
        Some(words) => {
            let (telling, common) = words.hits.split_at(words.n_telling);
            let rankings = [
                Ranking::of(&by_meaning),
                Ranking { hits: telling, weight: WORDS_WEIGHT },
                Ranking { hits: common, weight: COMMON_WEIGHT },
            ];
            (fuse(&rankings), Merged::Rank)
        }
    }
}

/// The hits of all spaces, with scores on the scale of the one that serves most grains; `None` when a space has too few
/// anchors in common with it.
fn on_one_scale(
    spaces: &[SpaceHits],
    guess: impl Fn(&SpaceHits, &SpaceHits) -> Option<Vec<f64>>,
) -> Option<Vec<Scored>> {
    // The first of equals, which is the first in the order of spaces.
    let (at, reference) = spaces.iter().enumerate().min_by_key(|(_, space)| Reverse(space.n_served))?;
    let mut merged = reference.hits.clone();
    for (_, space) in spaces.iter().enumerate().filter(|(other, _)| *other != at) {
        let mut map = ScoreMap::between(&space.anchors, &reference.anchors)?;
        // In a small store there are as many anchors among the best, and nothing need be guessed.
        let is_beyond = space.hits.iter().take(N_BEST).next_back().is_some_and(|hit| map.n_from(hit.score) < N_BEST);
        if is_beyond
            && let (Some(there), Some(back)) = (guess(space, reference), guess(reference, space))
            && let Some((score, shift)) = shift_of_the_best((&space.hits, &there), (&reference.hits, &back))
        {
            map.go_through(score, shift);
        }
        merged.extend(space.hits.iter().map(|hit| Scored { number: hit.number, score: map.score(hit.score) }));
    }
    merged.sort_by(best_first);
    Some(merged)
}

/// From where on scores of one space are worth so much more in another: by its best hits with what they would score there,
/// and by those of the other with what they would score here. The first count most, as they do for who reads the answer: by
/// their reciprocal ranks. `None` when one has no hits.
fn shift_of_the_best((hits, there): (&[Scored], &[f64]), (others, back): (&[Scored], &[f64])) -> Option<(f64, f64)> {
    let (last, _) = hits.iter().zip(there).next_back()?;
    others.iter().zip(back).next()?;
    let mine = hits.iter().zip(there).map(|(hit, there)| there - hit.score).enumerate();
    let theirs = others.iter().zip(back).map(|(hit, back)| hit.score - back).enumerate();
    let (mut sum, mut weights) = (0.0, 0.0);
    for (rank, shift) in mine.chain(theirs) {
        let weight = 1.0 / (rank + 1) as f64;
        sum += weight * shift;
        weights += weight;
    }
    Some((last.score, sum / weights))
}

/// From the scores of one space to those of another, for one query. Never turns the order of two scores around.
struct ScoreMap {
    /// Of the anchors in the one space, ascending.
    from: Vec<f64>,
    /// Of the same anchors in the other, ascending.
    to: Vec<f64>,
}

impl ScoreMap {
    /// The map, if the two have [`MIN_ANCHORS`] in common. Both are in the order of their numbers.
    fn between(from: &[Scored], to: &[Scored]) -> Option<Self> {
        let mut map = Self { from: Vec::with_capacity(from.len()), to: Vec::with_capacity(from.len()) };
        let mut others = to.iter().peekable();
        for anchor in from {
            while others.next_if(|other| other.number < anchor.number).is_some() {}
            if let Some(other) = others.next_if(|other| other.number == anchor.number) {
                map.from.push(anchor.score);
                map.to.push(other.score);
            }
        }
        map.from.sort_by(f64::total_cmp);
        map.to.sort_by(f64::total_cmp);
        (map.from.len() >= MIN_ANCHORS).then_some(map)
    }

    /// How many anchors have this score, or a better one.
    fn n_from(&self, score: f64) -> usize {
        self.from.len() - self.from.partition_point(|anchor| *anchor < score)
    }

    /// From this score on, all are worth so much more, whatever anchors there are.
    fn go_through(&mut self, score: f64, shift: f64) {
        let is_before = |(from, to): &(&f64, &f64)| **from < score && **to < score + shift;
        let n_before = self.from.iter().zip(&self.to).take_while(is_before).count();
        self.from.truncate(n_before);
        self.to.truncate(n_before);
        self.from.push(score);
        self.to.push(score + shift);
    }

    /// What a score in the one space is worth in the other.
    fn score(&self, score: f64) -> f64 {
        map_score(score, &self.from, &self.to)
    }
}

/// A ranking, best first, and how much it counts.
#[derive(Clone, Copy, Debug)]
struct Ranking<'a> {
    hits: &'a [Scored],
    weight: f64,
}

impl<'a> Ranking<'a> {
    fn of(hits: &'a [Scored]) -> Self {
        Self { hits, weight: 1.0 }
    }
}

/// All grains of the rankings, best first. Equals of a ranking are in the order of their numbers, which says nothing of them:
/// they share the mean of what their ranks are worth, and another ranking tells them apart.
fn fuse(rankings: &[Ranking<'_>]) -> Vec<Scored> {
    let mut scores: HashMap<i64, f64> = HashMap::new();
    for Ranking { hits, weight } in rankings {
        let mut n_before = 0;
        for equals in hits.chunk_by(|a, b| a.score.total_cmp(&b.score).is_eq()) {
            let n_so_far = n_before + equals.len();
            let worth: f64 = (n_before + 1..=n_so_far).map(|rank| weight / (K + rank as f64)).sum();
            for hit in equals {
                *scores.entry(hit.number).or_default() += worth / equals.len() as f64;
            }
            n_before = n_so_far;
        }
    }
    let mut fused: Vec<Scored> = scores.into_iter().map(|(number, score)| Scored { number, score }).collect();
    fused.sort_by(best_first);
    fused
}

/// The order of what was found: of equals, the first written first.
pub(super) fn best_first(a: &Scored, b: &Scored) -> std::cmp::Ordering {
    b.score.total_cmp(&a.score).then(a.number.cmp(&b.number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(numbers: &[i64]) -> Vec<Scored> {
        numbers.iter().zip(0..).map(|(number, rank)| Scored { number: *number, score: 1.0 - f64::from(rank) }).collect()
    }

    fn numbers(hits: &[Scored]) -> Vec<i64> {
        hits.iter().map(|hit| hit.number).collect()
    }

    /// Anchors with these numbers and scores.
    fn anchors(numbers: impl Iterator<Item = i64>, score: impl Fn(f64) -> f64) -> Vec<Scored> {
        numbers.map(|number| Scored { number, score: score(number as f64 / 1000.0) }).collect()
    }

    fn space(n: u64, n_served: usize, hits: &[(i64, f64)], anchors: Vec<Scored>) -> SpaceHits {
        let hits = hits.iter().map(|(number, score)| Scored { number: *number, score: *score }).collect();
        let space = SpaceId::parse(&format!("{n:016x}")).expect("an id");
        SpaceHits { space, n_served, query: Vec::new(), hits, best: Vec::new(), anchors }
    }

    fn by_words(hits: &[Scored]) -> WordHits<'_> {
        WordHits { hits, n_telling: n_telling(hits) }
    }

    #[test]
    fn equals_share_what_their_ranks_are_worth_and_another_ranking_tells_them_apart() {
        let scored =
            |of: &[(i64, f64)]| of.iter().map(|(number, score)| Scored { number: *number, score: *score }).collect();
        let (by_words, by_meaning): (Vec<_>, Vec<_>) =
            (scored(&[(1, 2.0), (2, 2.0), (3, 2.0), (4, 1.0)]), scored(&[(4, 0.9), (3, 0.8), (2, 0.7)]));
        let fused = fuse(&[Ranking { hits: &by_words, weight: WORDS_WEIGHT }, Ranking::of(&by_meaning)]);
        assert_eq!(numbers(&fused), [3, 2, 4, 1]);
        let worth = |rank: f64| 1.0 / (K + rank);
        let of_three = WORDS_WEIGHT * (worth(1.0) + worth(2.0) + worth(3.0)) / 3.0;
        for (number, score) in [
            (1, of_three),
            (2, of_three + worth(3.0)),
            (3, of_three + worth(2.0)),
            (4, WORDS_WEIGHT * worth(4.0) + worth(1.0)),
        ] {
            let found = fused.iter().find(|hit| hit.number == number).expect("it was found");
            assert!((found.score - score).abs() < 1e-9, "{number}: {fused:?}");
        }
    }

    fn no_guess(_: &SpaceHits, _: &SpaceHits) -> Option<Vec<f64>> {
        None
    }

    #[test]
    fn the_best_hits_go_by_what_they_would_score_in_the_other_space() {
        let same = || anchors(0..300, |score| score);
        let small = space(1, 5, &[(1, 0.9), (2, 0.8)], same());
        let great = space(2, 90, &[(3, 0.75), (4, 0.65)], same());
        let best =
            |of: &SpaceHits, _: &SpaceHits| Some(if of.n_served == 5 { vec![0.7, 0.6] } else { vec![0.95, 0.85] });
        let (merged, how) = merge(&[small.clone(), great.clone()], None, best);
        assert_eq!((numbers(&merged), how), (vec![3, 1, 4, 2], Merged::Anchors));
        let score = |n: i64| merged.iter().find(|hit| hit.number == n).expect("found").score;
        assert!((score(1) - 0.7).abs() < 1e-9 && (score(2) - 0.6).abs() < 1e-9, "{merged:?}");

        // Where there are anchors among the best, these say it.
        let near = || anchors(0..300, |score| score + 0.75);
        let (merged, _) = merge(
            &[SpaceHits { anchors: near(), ..small.clone() }, SpaceHits { anchors: near(), ..great.clone() }],
            None,
            best,
        );
        assert_eq!(numbers(&merged), [1, 2, 3, 4]);

        // Of one side alone the guesses are one-sided too.
        let (merged, _) = merge(&[small, space(2, 90, &[], same())], None, best);
        assert!((merged[0].score - 0.9 - 0.001).abs() < 0.002, "{merged:?}");
    }

    #[test]
    fn the_first_hits_say_most_and_of_one_side_alone_nothing_is_known() {
        let scores = |of: &[f64]| of.iter().map(|score| Scored { number: 1, score: *score }).collect::<Vec<_>>();
        let (mine, theirs) = (scores(&[0.5, 0.4]), scores(&[0.6]));
        let (score, shift) = shift_of_the_best((&mine, &[0.8, 0.4]), (&theirs, &[0.1])).expect("both have hits");
        assert!((score - 0.4).abs() < 1e-9 && (shift - (0.3 + 0.5) / 2.5).abs() < 1e-9, "{score}, {shift}");
        assert_eq!(shift_of_the_best((&mine, &[0.8, 0.4]), (&[], &[])), None);
        assert_eq!(shift_of_the_best((&[], &[]), (&theirs, &[0.1])), None);
    }

    #[test]
    fn a_map_through_a_point_keeps_every_order() {
        let (from, to) = (anchors(0..700, |score| score), anchors(0..700, |score| score.powi(3) - 0.2));
        for (score, shift) in [(0.5, -0.5), (0.5, 0.3), (-1.0, 0.0), (2.0, -3.0), (0.0, -0.2)] {
            let mut map = ScoreMap::between(&from, &to).expect("enough");
            map.go_through(score, shift);
            let mapped: Vec<f64> = (-100..900).map(|n| map.score(f64::from(n) / 1000.0)).collect();
            assert!(mapped.is_sorted() && mapped.iter().all(|score| score.is_finite()), "{score}, {shift}");
            assert!((map.score(score + 0.1) - (score + shift + 0.1)).abs() < 1e-9, "{score}, {shift}");
        }
    }

    #[test]
    fn a_map_through_a_point_is_the_old_one_below_the_anchor_before_it() {
        let all = anchors(0..500, |score| score);
        let mut map = ScoreMap::between(&all, &all).expect("enough");
        map.go_through(0.4, 0.3);
        assert!((map.score(0.3) - 0.3).abs() < 1e-9 && (map.score(0.4) - 0.7).abs() < 1e-9);
    }

    #[test]
    fn what_both_rankings_have_comes_first() {
        let (words, vectors) = (hits(&[1, 2, 3]), hits(&[4, 3, 1]));
        let fused = fuse(&[Ranking::of(&words), Ranking::of(&vectors)]);
        assert_eq!(numbers(&fused), [1, 3, 4, 2]);
        assert!((fused[0].score - (1.0 / 6.0 + 1.0 / 8.0)).abs() < 1e-12);
        assert!(fuse(&[]).is_empty());
    }

    #[test]
    fn words_that_most_grains_have_change_no_order_and_what_only_they_find_comes_last() {
        let found: Vec<(i64, f64)> = (0..10_000).map(|n| (n, 0.9 - n as f64 * 1e-5)).collect();
        let spaces = [space(1, 10_000, &found, Vec::new())];
        let words = |of: &[(i64, f64)]| -> Vec<Scored> {
            of.iter().map(|(number, score)| Scored { number: *number, score: *score }).collect()
        };
        let (by_meaning, _) = merge(&spaces, None, no_guess);
        let weak = |numbers: std::ops::Range<i64>| numbers.map(|n| (n, 1.6e-6));
        let common: Vec<(i64, f64)> =
            [(20_000, 1.6e-6)].into_iter().chain(weak(5_000..10_000)).chain([(20_001, 1e-6)]).collect();
        let common = words(&common);
        let (merged, how) = merge(&spaces, Some(by_words(&common)), no_guess);
        assert_eq!((numbers(&merged[..10_000]), how), (numbers(&by_meaning), Merged::Rank));
        assert_eq!(numbers(&merged[10_000..]), [20_000, 20_001]);
        assert!(merged[10_000].score > 0.0);

        let telling = [&words(&[(5, 0.4)])[..], &common].concat();
        let (merged, _) = merge(&spaces, Some(by_words(&telling)), no_guess);
        assert_eq!(numbers(&merged[..4]), [5, 0, 1, 2]);

        // Where no space was searched they are all there is.
        let (merged, how) = merge(&[], Some(by_words(&common)), no_guess);
        assert_eq!((merged, how), (common, Merged::Score));
    }

    #[test]
    fn of_what_words_found_the_first_hits_count_as_far_as_they_say_something() {
        let found: Vec<(i64, f64)> = (0..16).map(|n| (n, 0.5 - n as f64 / 100.0)).collect();
        let sixteen = [space(1, 16, &found, Vec::new())];
        let words = hits(&[12, 13, 14, 15]);
        for (n_telling, best) in [(4, [12, 13, 14]), (2, [12, 13, 0]), (0, [0, 1, 2])] {
            let words = WordHits { hits: &words, n_telling };
            let (merged, _) = merge(&sixteen, Some(words), no_guess);
            assert_eq!(numbers(&merged[..3]), best, "{n_telling}");
        }
    }

    #[test]
    fn the_map_goes_through_the_anchors_and_on_with_slope_one() {
        // Half the scores, and an order of its own: sorting puts the same texts' scores side by side.
        let (from, to) = (anchors(0..500, |score| score), anchors(0..500, |score| 0.5 * (0.499 - score)));
        let map = ScoreMap::between(&from, &to).expect("enough");
        for (score, expected) in
            [(0.1, 0.05), (0.1005, 0.05025), (0.0, 0.0), (0.499, 0.2495), (0.6, 0.3505), (-0.2, -0.2)]
        {
            assert!((map.score(score) - expected).abs() < 1e-9, "{score}: {} for {expected}", map.score(score));
        }
    }

    #[test]
    fn only_common_anchors_count_and_few_make_no_map() {
        let (from, to) = (anchors(0..400, |score| score), anchors(200..600, |score| score + 1.0));
        let map = ScoreMap::between(&from, &to).expect("200 in common");
        assert!((map.score(0.3) - 1.3).abs() < 1e-9);
        assert!(ScoreMap::between(&from, &to[1..]).is_none());
    }

    #[test]
    fn scores_are_on_the_scale_of_the_space_that_serves_most() {
        let low = || anchors(0..300, |score| score);
        let high = || anchors(0..300, |score| score + 10.0);
        let small = space(1, 5, &[(1, 0.25), (2, 0.15)], low());
        let great = space(2, 90, &[(3, 10.2), (4, 10.1)], high());
        let (merged, how) = merge(&[small.clone(), great.clone()], None, no_guess);
        assert_eq!((numbers(&merged), how), (vec![1, 3, 2, 4], Merged::Anchors));
        assert!((merged[0].score - 10.25).abs() < 1e-9 && (merged[1].score - 10.2).abs() < 1e-9, "{merged:?}");

        // The scale is the same when the greatest space finds nothing.
        let (merged, _) = merge(&[small.clone(), space(2, 90, &[], high())], None, no_guess);
        assert!((merged[0].score - 10.25).abs() < 1e-9, "{merged:?}");

        let (merged, how) = merge(&[small.clone(), great.clone()], Some(by_words(&hits(&[4]))), no_guess);
        assert_eq!((numbers(&merged), how), (vec![4, 1, 3, 2], Merged::Rank));

        let (merged, how) = merge(&[small, space(2, 90, &[(3, 10.2), (4, 10.1)], Vec::new())], None, no_guess);
        assert_eq!((numbers(&merged), how), (vec![1, 3, 2, 4], Merged::Rank));
        assert!((merged[0].score - 1.0 / 6.0).abs() < 1e-12, "{merged:?}");
    }
}
