//! From the vectors of two models to what is told of them: no model is needed any more.

use std::collections::HashMap;
use std::time::Duration;

use super::embedding::Made;
use super::measures::{QuantileMap, depths, greatest, mean, overlap, percentile, rank_biased_overlap};
use super::sample::{Query, Sampled};
use super::{Comparison, Found, Moved, Overlap, QuerySource, Side, Threshold};
use crate::grains::index::dot;

/// Queries that are shown with both answers.
const SHOWN_QUERIES: usize = 10;

/// Characters of a text that are shown.
const SNIPPET_CHARS: usize = 160;

/// What both models were given, and what is known without them.
pub(super) struct Basis {
    pub(super) sampled: Vec<Sampled>,
    pub(super) queries: Vec<Query>,
    pub(super) source: QuerySource,
    pub(super) n_grains: usize,
    pub(super) n_to_reembed: u64,
    pub(super) depth: usize,
}

/// The scores of a query with every sampled grain, and the best of them.
struct Answer {
    scores: Vec<f32>,
    best: Vec<usize>,
}

fn answer(made: &Made, query: usize, depth: usize) -> Answer {
    let query = &made.queries[query * made.dimensions..][..made.dimensions];
    let scores: Vec<f32> = made.sample.chunks(made.dimensions).map(|vector| dot(query, vector)).collect();
    let best = greatest(&scores, depth);
    Answer { scores, best }
}

/// Judges what two models made of the same texts.
pub(super) fn judge(basis: &Basis, made: [&Made; 2]) -> Comparison {
    let Basis { sampled, queries, depth, .. } = basis;
    let depth = *depth;
    let answers = made.map(|made| (0..queries.len()).map(|query| answer(made, query, depth)).collect::<Vec<_>>());
    let [of_from, of_to] = &answers;
    let pairs = || of_from.iter().zip(of_to);
    let overlaps = depths(depth)
        .into_iter()
        .map(|k| Overlap { k, mean: mean(pairs().map(|(from, to)| overlap(&from.best, &to.best, k))) })
        .collect();
    let agreements: Vec<f64> = pairs().map(|(from, to)| rank_biased_overlap(&from.best, &to.best)).collect();
    let mut most_moved: Vec<usize> = (0..queries.len()).collect();
    most_moved.sort_by(|a, b| agreements[*a].total_cmp(&agreements[*b]));
    let moved = most_moved.into_iter().take(SHOWN_QUERIES).map(|at| Moved {
        query: queries[at].text.clone(),
        overlap: overlap(&of_from[at].best, &of_to[at].best, depth),
        rank_biased_overlap: agreements[at],
        from: list(sampled, &of_from[at], &of_to[at]),
        to: list(sampled, &of_to[at], &of_from[at]),
    });
    let moved = moved.collect();
    let [own_from, own_to] = answers.each_ref().map(|answers| own_grain_mrr(queries, answers));
    let [from_scores, to_scores] =
        answers.each_ref().map(|answers| answers.iter().flat_map(|answer| answer.scores.iter().copied()).collect());
    let map = QuantileMap::of(from_scores, to_scores);
    let threshold = |tenths: u8| f64::from(tenths) / 10.0;
    let thresholds = (1..=9).map(threshold).map(|from| Threshold {
        from,
        to: map.map(from).clamp(-1.0, 1.0),
        share: map.share_from(from),
    });
    let (from_histogram, to_histogram) = map.histograms();
    let n_to_reembed = basis.n_to_reembed;
    let seconds = n_to_reembed as f64 / made[1].texts_per_second;
    Comparison {
        from: side(made[0], own_from, from_histogram),
        to: side(made[1], own_to, to_histogram),
        n_grains: basis.n_grains,
        n_sampled: sampled.len(),
        n_queries: queries.len(),
        queries: basis.source,
        depth,
        overlap: overlaps,
        rank_biased_overlap: mean(agreements.iter().copied()),
        moved,
        thresholds: thresholds.collect(),
        score_range: map.range(),
        n_to_reembed,
        estimated: Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX),
    }
}

fn side(made: &Made, own_grain_mrr: Option<f64>, histogram: Vec<u64>) -> Side {
    let n_sampled = made.sample.len() / made.dimensions;
    Side {
        model: made.model.clone(),
        space: made.space.clone(),
        dimensions: made.dimensions,
        bytes_per_vector: made.dimensions * size_of::<f32>(),
        max_tokens: made.max_tokens,
        truncated_share: made.n_truncated as f64 / n_sampled as f64,
        p50_ms: percentile(&made.times_ms, 0.5),
        p95_ms: percentile(&made.times_ms, 0.95),
        texts_per_second: made.texts_per_second,
        tokens_per_second: made.tokens_per_second,
        own_grain_mrr,
        histogram,
    }
}

fn own_grain_mrr(queries: &[Query], answers: &[Answer]) -> Option<f64> {
    let reciprocal = |(query, answer): (&Query, &Answer)| {
        let own = query.drawn_from?;
        Some(answer.best.iter().position(|place| *place == own).map_or(0.0, |at| 1.0 / (at + 1) as f64))
    };
    let ranks: Option<Vec<f64>> = queries.iter().zip(answers).map(reciprocal).collect();
    ranks.map(|ranks| mean(ranks.into_iter()))
}

fn list(sampled: &[Sampled], answer: &Answer, other: &Answer) -> Vec<Found> {
    let others: HashMap<usize, usize> = other.best.iter().copied().zip(1..).collect();
    let found = |place: &usize| Found {
        id: sampled[*place].id.clone(),
        snippet: snippet(&sampled[*place].text),
        score: f64::from(answer.scores[*place]),
        other_rank: others.get(place).copied(),
    };
    answer.best.iter().map(found).collect()
}

/// The beginning of a text, on one line.
fn snippet(text: &str) -> String {
    let mut words = text.split_whitespace().flat_map(|word| word.chars().chain([' ']));
    let shown: String = words.by_ref().take(SNIPPET_CHARS).collect();
    if words.next().is_some() { format!("{}…", shown.trim_end()) } else { shown.trim_end().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snippet_is_the_beginning_on_one_line() {
        assert_eq!(snippet(" a\n b\tc "), "a b c");
        assert_eq!(snippet(&"word ".repeat(100)).chars().count(), SNIPPET_CHARS);
        assert!(snippet(&"草".repeat(1000)).ends_with("草…"));
    }
}
