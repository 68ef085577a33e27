//! Finding grains by meaning, by words, or by both.
//!
//! Each space that serves grains is searched with its own model, whatever model is active (`nearest`), and what they
//! find becomes one ranking (`merge`).

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::error::GrainError;
use super::merge::{Ranking, fuse};
use super::nearest::SpaceSearch;
use super::service::Grains;
use super::store::{Numbered, Scored};
use crate::domain::{Filter, Grain, ModelName, SpaceId};
use crate::telemetry;

/// The most hits that one request reaches: `offset` and `limit` together.
pub const MAX_DEPTH: usize = 10_000;

/// Each side of a hybrid search brings at least so many candidates into the fusion.
const FUSION_DEPTH: usize = 200;

/// How much the ranking by words counts in a hybrid search, beside 1 for the ranking by vectors: chosen with `merge::K`.
const WORDS_WEIGHT: f64 = 1.5;

/// What is searched for.
#[derive(Clone, Debug, PartialEq)]
pub enum Query {
    /// A text.
    Text(String),
    /// A vector of a space.
    Vector {
        /// The space.
        space: SpaceId,
        /// `[dimensions]`
        vector: Vec<f32>,
    },
}

/// How grains are compared with the query.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// By meaning: the cosine of the angle between vectors.
    Dense,
    /// By words: BM25.
    Lexical,
    /// By both, fused by rank.
    #[default]
    Hybrid,
}

impl Mode {
    /// The word on the wire, and the label of metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Lexical => "lexical",
            Self::Hybrid => "hybrid",
        }
    }
}

/// A search.
#[derive(Clone, Debug, PartialEq)]
pub struct SearchRequest {
    /// What is searched for.
    pub query: Query,
    /// How.
    pub mode: Mode,
    /// Which grains may be found.
    pub filter: Filter,
    /// The most hits.
    pub limit: usize,
    /// Hits to leave out at the beginning.
    pub offset: usize,
    /// The least score of a hit.
    pub min_score: Option<f64>,
    /// Whether to show where the words of the query are.
    pub highlights: Highlights,
}

/// Whether to show where the words of the query are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Highlights {
    /// No.
    #[default]
    Off,
    /// For each hit that has such words.
    On,
}

/// A found grain.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    /// The grain.
    pub grain: Grain,
    /// What the hits are ordered by; more is better.
    pub score: f64,
    /// The cosine, in the space that the grain is served from; else the BM25 of the words.
    pub raw_score: f64,
    /// The space it was found in; `None` when only its words were.
    pub space: Option<SpaceId>,
    /// Where the words of the query are.
    pub highlight: Option<String>,
}

/// A space that serves grains, and whether it took part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchedSpace {
    /// The space.
    pub space: SpaceId,
    /// The model that made its query.
    pub model: Option<ModelName>,
    /// Why it was not searched; `None` when it was.
    pub reason: Option<String>,
}

/// How the hits of a search came into one order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// By one score that all of them have.
    Score,
    /// By their ranks in several lists: the scores say nothing but the order.
    Rank,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq)]
pub struct SearchResult {
    /// Best first.
    pub hits: Vec<Hit>,
    /// Every space that serves grains.
    pub spaces: Vec<SearchedSpace>,
    /// How the order came about.
    pub merged: Merged,
}

/// One ranking and where it is from.
struct List {
    space: Option<SpaceId>,
    hits: Vec<Scored>,
}

/// Where a search spends its time.
#[derive(Debug, Default)]
pub(super) struct Spent {
    pub(super) embedding: Duration,
    pub(super) vectors: Duration,
    words: Duration,
    reading: Duration,
}

impl Grains {
    /// Searches.
    ///
    /// # Errors
    /// A vector that is none of its space, an unknown space, or the database. A space whose model is not to be had is
    /// reported, not an error.
    pub async fn search(&self, request: SearchRequest) -> Result<SearchResult, GrainError> {
        let began = Instant::now();
        let mut spent = Spent::default();
        let wanted = request.offset + request.limit;
        let depth = if request.mode == Mode::Hybrid { wanted.max(FUSION_DEPTH) } else { wanted };
        let (mut lists, mut spaces) = (Vec::new(), Vec::new());
        if request.mode != Mode::Lexical {
            for SpaceSearch { space, model, query, hits } in self.search_spaces(&request, depth, &mut spent).await? {
                let found = query.and(hits);
                spaces.push(SearchedSpace { space: space.clone(), model, reason: found.as_ref().err().cloned() });
                lists.extend(found.ok().map(|hits| List { space: Some(space), hits }));
            }
        }
        if request.mode != Mode::Dense
            && let Query::Text(text) = &request.query
        {
            let began = Instant::now();
            let at_most = u32::try_from(depth).unwrap_or(u32::MAX);
            let hits = self.store.with_words(text.clone(), request.filter.clone(), at_most).await?;
            spent.words = began.elapsed();
            lists.push(List { space: None, hits });
        }
        let (ranked, merged) = merge(&lists);
        let min_score = request.min_score.unwrap_or(f64::NEG_INFINITY);
        let ranked: Vec<Scored> = ranked.into_iter().take_while(|hit| hit.score >= min_score).collect();
        let reading = Instant::now();
        let hits = self.read_hits(&request, &ranked, &lists).await?;
        spent.reading = reading.elapsed();
        let took = began.elapsed();
        metrics::histogram!(telemetry::SEARCH_DURATION, "mode" => request.mode.as_str()).record(took);
        if took > self.limits.slow_search {
            tracing::warn!(
                mode = request.mode.as_str(), ?took, embedding = ?spent.embedding, vectors = ?spent.vectors,
                words = ?spent.words, reading = ?spent.reading, filtered = !request.filter.is_empty(),
                wanted, n_hits = hits.len(),
                "a search was slow (`grains.slow_search`)"
            );
        }
        Ok(SearchResult { hits, spaces, merged })
    }

    async fn read_hits(
        &self,
        request: &SearchRequest,
        ranked: &[Scored],
        lists: &[List],
    ) -> Result<Vec<Hit>, GrainError> {
        let shown: Vec<Scored> = ranked.iter().skip(request.offset).take(request.limit).copied().collect();
        let numbers: Vec<i64> = shown.iter().map(|hit| hit.number).collect();
        let grains = self.store.grains(numbers.clone()).await?;
        let mut grains: HashMap<i64, Grain> =
            grains.into_iter().map(|Numbered { number, grain }| (number, grain)).collect();
        let mut highlights: HashMap<i64, String> = match (&request.query, request.highlights) {
            (Query::Text(text), Highlights::On) => {
                self.store.highlights(text.clone(), numbers).await?.into_iter().collect()
            }
            _ => HashMap::new(),
        };
        let mut raw: HashMap<i64, (f64, Option<&SpaceId>)> = HashMap::new();
        // Spaces come before words: a grain that was found by both shows its cosine.
        for List { space, hits } in lists {
            for hit in hits {
                raw.entry(hit.number).or_insert((hit.score, space.as_ref()));
            }
        }
        let hit = |found: Scored| {
            // Deleted since: it is not found.
            let grain = grains.remove(&found.number)?;
            let (raw_score, space) = raw.get(&found.number).copied().unwrap_or((found.score, None));
            let highlight = highlights.remove(&found.number);
            Some(Hit { grain, score: found.score, raw_score, space: space.cloned(), highlight })
        };
        Ok(shown.into_iter().filter_map(hit).collect())
    }
}

/// One ranking keeps its scores; several are fused by rank. Of spaces the order among them is fused first, since each
/// grain is in one of them only.
fn merge(lists: &[List]) -> (Vec<Scored>, Merged) {
    match lists {
        [] => (Vec::new(), Merged::Score),
        [only] => (only.hits.clone(), Merged::Score),
        several => {
            let of_spaces: Vec<Ranking<'_>> = several
                .iter()
                .filter(|list| list.space.is_some())
                .map(|list| Ranking { hits: &list.hits, weight: 1.0 })
                .collect();
            let by_meaning = fuse(&of_spaces);
            let Some(by_words) = several.iter().find(|list| list.space.is_none()) else {
                return (by_meaning, Merged::Rank);
            };
            let both =
                [Ranking { hits: &by_meaning, weight: 1.0 }, Ranking { hits: &by_words.hits, weight: WORDS_WEIGHT }];
            (fuse(&both), Merged::Rank)
        }
    }
}
