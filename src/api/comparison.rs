//! What a comparison found, as it is written in JSON.

use serde::Serialize;
use utoipa::ToSchema;

use crate::change::compare::{Comparison, Found, Moved, QuerySource, Side};

/// What was found on the sample.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ComparisonResult {
    /// What was searched, and with what.
    sample: ComparedSample,
    /// The model in use.
    from: ComparedModel,
    /// The model that may take its place.
    to: ComparedModel,
    /// How much of the answers both models have, by depth.
    overlap: Vec<OverlapAtK>,
    /// Rank-biased overlap of the answers, extrapolated, mean over the queries: 1 for the same answers.
    #[schema(example = 0.93)]
    rank_biased_overlap: f64,
    /// The queries whose answers differ most, with both.
    moved: Vec<MovedQuery>,
    /// Where thresholds of `from`'s scores lie among `to`'s.
    thresholds: Vec<MappedThreshold>,
    /// How the scores of all queries with all sampled grains are distributed.
    scores: ScoreDistributions,
    /// What a switch would cost.
    reembedding: ReembeddingEstimate,
}

/// What was searched, and with what.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ComparedSample {
    /// Grains that were embedded with both models.
    grains: usize,
    /// Grains in the database.
    of: usize,
    /// Queries.
    queries: usize,
    /// `caller`, or `grains`: drawn from the sampled texts. These find their own grain easily.
    queries_from: String,
    /// Grains of an answer.
    k: usize,
}

/// What was measured of one model.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ComparedModel {
    name: String,
    space: String,
    dimensions: usize,
    bytes_per_vector: usize,
    max_tokens: u32,
    /// The share of the sampled texts that are longer than it takes.
    truncated_share: f64,
    /// Time to embed one text: half of them took no longer.
    embed_p50_ms: f64,
    /// Time to embed one text: 95 of 100 took no longer.
    embed_p95_ms: f64,
    /// In bulk, in the background of whatever else the server did.
    texts_per_second: f64,
    tokens_per_second: f64,
    /// Mean reciprocal rank of the grain that a query was drawn from; null for a caller's queries.
    #[schema(required)]
    own_grain_mrr: Option<f64>,
}

/// How much of the answers both models have.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct OverlapAtK {
    /// The first so many of each answer.
    k: usize,
    /// The share that both have, mean over the queries.
    overlap: f64,
}

/// A query whose answers differ.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct MovedQuery {
    query: String,
    overlap: f64,
    rank_biased_overlap: f64,
    /// The answer of the model in use, best first.
    from: Vec<FoundGrain>,
    /// The answer of the model that may take its place, best first.
    to: Vec<FoundGrain>,
}

/// A grain of an answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FoundGrain {
    id: String,
    /// The beginning of its text.
    snippet: String,
    /// The cosine.
    score: f64,
    /// Its rank in the other model's answer, from 1; null where it is not in it.
    #[schema(required)]
    other_rank: Option<usize>,
}

/// A threshold of one model's scores, and the other's that as many pairs of a query and a grain reach.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct MappedThreshold {
    from: f64,
    to: f64,
    /// The share of pairs that reach it. Where it is 0, none does, and `to` is a guess.
    share: f64,
}

/// Two histograms over one range.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ScoreDistributions {
    /// Where the first part begins.
    low: f64,
    /// Where the last part ends.
    high: f64,
    /// Scores in each equal part, of the model in use.
    from: Vec<u64>,
    /// The same of the model that may take its place.
    to: Vec<u64>,
}

/// What a switch would cost.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ReembeddingEstimate {
    /// Grains that have no vector in `to`'s space, which `POST /reembeddings` would give them.
    grains: u64,
    /// How long embedding them would take, at the speed of this comparison.
    estimated_s: f64,
    /// Bytes that their vectors would have in the database.
    vector_bytes: u64,
}

impl ComparisonResult {
    pub(super) fn of(found: &Comparison) -> Self {
        let estimated_s = rounded(found.estimated.as_secs_f64());
        let vector_bytes = found.n_to_reembed.saturating_mul(found.to.bytes_per_vector as u64);
        Self {
            sample: ComparedSample {
                grains: found.n_sampled,
                of: found.n_grains,
                queries: found.n_queries,
                queries_from: match found.queries {
                    QuerySource::Caller => "caller",
                    QuerySource::Grains => "grains",
                }
                .to_owned(),
                k: found.depth,
            },
            from: ComparedModel::of(&found.from),
            to: ComparedModel::of(&found.to),
            overlap: found.overlap.iter().map(|at| OverlapAtK { k: at.k, overlap: rounded(at.mean) }).collect(),
            rank_biased_overlap: rounded(found.rank_biased_overlap),
            moved: found.moved.iter().map(MovedQuery::of).collect(),
            thresholds: found
                .thresholds
                .iter()
                .map(|at| MappedThreshold { from: rounded(at.from), to: rounded(at.to), share: rounded(at.share) })
                .collect(),
            scores: ScoreDistributions {
                low: rounded(found.score_range.0),
                high: rounded(found.score_range.1),
                from: found.from.histogram.clone(),
                to: found.to.histogram.clone(),
            },
            reembedding: ReembeddingEstimate { grains: found.n_to_reembed, estimated_s, vector_bytes },
        }
    }
}

impl ComparedModel {
    fn of(side: &Side) -> Self {
        Self {
            name: side.model.to_string(),
            space: side.space.to_string(),
            dimensions: side.dimensions,
            bytes_per_vector: side.bytes_per_vector,
            max_tokens: side.max_tokens,
            truncated_share: rounded(side.truncated_share),
            embed_p50_ms: rounded(side.p50_ms),
            embed_p95_ms: rounded(side.p95_ms),
            texts_per_second: rounded(side.texts_per_second),
            tokens_per_second: rounded(side.tokens_per_second),
            own_grain_mrr: side.own_grain_mrr.map(rounded),
        }
    }
}

impl MovedQuery {
    fn of(moved: &Moved) -> Self {
        Self {
            query: moved.query.clone(),
            overlap: rounded(moved.overlap),
            rank_biased_overlap: rounded(moved.rank_biased_overlap),
            from: moved.from.iter().map(FoundGrain::of).collect(),
            to: moved.to.iter().map(FoundGrain::of).collect(),
        }
    }
}

impl FoundGrain {
    fn of(found: &Found) -> Self {
        Self {
            id: found.id.to_string(),
            snippet: found.snippet.clone(),
            score: rounded(found.score),
            other_rank: found.other_rank,
        }
    }
}

/// Six digits behind the point: the rest is rounding, and would make 1 look like less.
fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}
