//! Two models on the user's own grains and queries: what would be found after a switch that is not found now.
//!
//! Owns the comparison and what it says. It changes nothing: vectors of the sample are made in memory and forgotten. Start
//! at [`Comparisons::start`], which runs them; `compare` is one of them, `measures` what its numbers mean.

mod embedding;
mod judging;
mod kept;
mod measures;
mod plots;
mod report;
mod sample;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub use self::kept::{Comparisons, State, Status};
pub use self::report::html;

use self::embedding::Progress;
use self::judging::{Basis, judge};
use self::sample::Query;
use crate::domain::{Filter, GrainId, ModelName, SpaceId};
use crate::grains::store::Lacking;
use crate::grains::{GrainError, Grains};
use crate::models::{ModelError, MultiModelManager};

/// Grains of a sample, unless the caller says otherwise.
pub const DEFAULT_SAMPLE: usize = 1_000;
/// The most grains of a sample.
pub const MAX_SAMPLE: usize = 5_000;
/// The most queries of a caller.
pub const MAX_QUERIES: usize = 200;
/// Grains of an answer that are compared, unless the caller says otherwise.
pub const DEFAULT_DEPTH: usize = 10;
/// The most grains of an answer.
pub const MAX_DEPTH: usize = 100;

/// What is to be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompareRequest {
    /// The model that is in use.
    pub from: ModelName,
    /// The model that may take its place.
    pub to: ModelName,
    /// The most grains to compare on.
    pub sample: usize,
    /// The caller's queries; drawn from the grains when `None`.
    pub queries: Option<Vec<String>>,
    /// Grains of an answer.
    pub depth: usize,
}

/// Why two models were not compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// There is nothing to search in.
    #[error("there are no grains: a comparison searches the server's own, so write some first")]
    Empty,
    /// No text of the sample makes a query.
    #[error("no query can be drawn from the grains, whose texts are blank: send `queries`")]
    NoQueries,
    /// Too many wait already.
    #[error("{0} comparisons wait or run already: wait for one, or cancel one with `DELETE /comparisons/{{id}}`")]
    Full(usize),
    /// The model became another meanwhile.
    #[error("`{0}` makes another space than when the comparison began: compare again")]
    Moved(ModelName),
    /// The arithmetic met a bug.
    #[error("the comparison met a bug, see the log")]
    Bug,
    /// A model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The grains.
    #[error(transparent)]
    Grains(#[from] GrainError),
}

/// What a comparison found.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// The model in use.
    pub from: Side,
    /// The model that may take its place.
    pub to: Side,
    /// Grains in the store.
    pub n_grains: usize,
    /// Grains that were searched.
    pub n_sampled: usize,
    /// Queries that were asked.
    pub n_queries: usize,
    /// Whose queries they were.
    pub queries: QuerySource,
    /// Grains of each answer.
    pub depth: usize,
    /// How much of an answer both models have, mean over the queries, by depth.
    pub overlap: Vec<Overlap>,
    /// Rank-biased overlap of both answers, mean over the queries.
    pub rank_biased_overlap: f64,
    /// The queries whose answers differ most, by rank-biased overlap.
    pub moved: Vec<Moved>,
    /// Where thresholds of the first model's scores lie among the second's.
    pub thresholds: Vec<Threshold>,
    /// The least and the greatest score of both models: what [`Side::histogram`] is spread over.
    pub score_range: (f64, f64),
    /// Grains without a current vector in the second model's space.
    pub n_to_reembed: u64,
    /// How long that would take at the speed of this comparison.
    pub estimated: Duration,
}

/// Whose queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuerySource {
    /// The caller's.
    Caller,
    /// Beginnings of sampled texts. Each finds its own grain easily, so that models look more alike than they are.
    Grains,
}

/// What was measured of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Side {
    /// Its name.
    pub model: ModelName,
    /// Its space.
    pub space: SpaceId,
    /// Numbers of a vector.
    pub dimensions: usize,
    /// Bytes of a vector in the database.
    pub bytes_per_vector: usize,
    /// The most tokens it takes.
    pub max_tokens: u32,
    /// The share of the sampled texts that are longer.
    pub truncated_share: f64,
    /// Time to embed one text, in half and in 95 of 100 cases.
    pub p50_ms: f64,
    /// See `p50_ms`.
    pub p95_ms: f64,
    /// Its speed in bulk, in the background of whatever else the server did.
    pub texts_per_second: f64,
    /// The same in tokens.
    pub tokens_per_second: f64,
    /// The mean reciprocal rank of the grain that each query was drawn from, 0 where it is not in the answer; `None` for a
    /// caller's queries.
    pub own_grain_mrr: Option<f64>,
    /// How many scores of queries and sampled grains lie in each equal part of [`Comparison::score_range`].
    pub histogram: Vec<u64>,
}

/// How much of an answer both models have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Overlap {
    /// The first so many.
    pub k: usize,
    /// The share, mean over the queries.
    pub mean: f64,
}

/// A query and both answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Moved {
    /// The query.
    pub query: String,
    /// How much of the whole answer both have.
    pub overlap: f64,
    /// How much both agree, the first ranks most.
    pub rank_biased_overlap: f64,
    /// The first model's answer.
    pub from: Vec<Found>,
    /// The second model's.
    pub to: Vec<Found>,
}

/// A grain of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The grain.
    pub id: GrainId,
    /// The beginning of its text.
    pub snippet: String,
    /// The cosine.
    pub score: f64,
    /// Its rank in the other model's answer, from 1.
    pub other_rank: Option<usize>,
}

/// A threshold of one model's scores and its equivalent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// The first model's score.
    pub from: f64,
    /// The second model's score that the same share of pairs reaches.
    pub to: f64,
    /// That share. Where it is 0, no pair of the sample reaches the threshold, and its equivalent is a guess.
    pub share: f64,
}

/// Compares two models. Nothing is stored; it ends when its future is dropped.
async fn compare(
    grains: &Grains,
    models: &MultiModelManager,
    request: &CompareRequest,
    progress: &Progress,
) -> Result<Comparison, CompareError> {
    let (sampled, n_grains) = sample::sample(grains, request.sample).await?;
    if sampled.is_empty() {
        return Err(CompareError::Empty);
    }
    let (queries, source) = match &request.queries {
        Some(texts) => {
            let query = |text: &String| Query { text: text.clone(), drawn_from: None };
            (texts.iter().map(query).collect(), QuerySource::Caller)
        }
        None => (sample::draw(&sampled), QuerySource::Grains),
    };
    if queries.is_empty() {
        return Err(CompareError::NoQueries);
    }
    progress.total.store(2 * embedding::n_texts(&sampled, &queries), Ordering::Relaxed);
    let asked = (sampled.as_slice(), queries.as_slice());
    // One after the other: no more than one of them needs to fit in memory.
    let from = Arc::new(embedding::embed(models, &request.from, asked, progress).await?);
    let to = if request.from == request.to {
        // One model has one space: a second look would show nothing but rounding.
        progress.done.store(progress.total.load(Ordering::Relaxed), Ordering::Relaxed);
        Arc::clone(&from)
    } else {
        Arc::new(embedding::embed(models, &request.to, asked, progress).await?)
    };
    let lacking = Lacking { space: to.space.clone(), filter: Filter::default(), unless_failed_in: None, among: None };
    let n_to_reembed = grains.account().count_lacking(lacking).await.map_err(GrainError::from)?;
    let depth = request.depth.min(sampled.len());
    let basis = Basis { sampled, queries, source, n_grains, n_to_reembed, depth };
    let judged = grains.shutdown().spawn_blocking("compare answers", move || judge(&basis, [&from, &to]));
    judged.await.map_err(|_| CompareError::Bug)
}
