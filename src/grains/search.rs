//! Finding grains by meaning, by words, or by both.
//!
//! Each space that serves grains is searched with its own model, whatever model is active (`nearest`), and what they
//! find becomes one ranking (`merge`).

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytesize::ByteSize;

use super::error::GrainError;
use super::highlight::Wanted;
use super::merge::{N_BEST, SpaceHits, merge};
use super::nearest::SpaceSearch;
use super::service::Grains;
use super::store::{Numbered, Scored};
use crate::domain::{Filter, Grain, ModelName, SpaceId};
use crate::telemetry;
use crate::telemetry::traces::part;

/// The most hits that one request reaches: `offset` and `limit` together.
pub const MAX_DEPTH: usize = 10_000;

/// Each side of a hybrid search brings at least so many candidates into the fusion.
const FUSION_DEPTH: usize = 200;

/// The most bytes of text in one answer.
const MAX_ANSWER_BYTES: u64 = 32 << 20;

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
    /// The least score of a hit; its least raw score in a search by meaning that was fused by rank.
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
    /// By scores of several spaces, put on the scale of the one that serves most grains.
    Anchors,
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
    /// A vector that is none of its space, an unknown space, a query that is too long for a model, a full queue, or the
    /// database. A space whose model is not to be had is reported, not an error.
    pub async fn search(&self, request: SearchRequest) -> Result<SearchResult, GrainError> {
        part("search").named("granary.mode", request.mode.as_str()).around(self.find(request)).await
    }

    async fn find(&self, request: SearchRequest) -> Result<SearchResult, GrainError> {
        let began = Instant::now();
        let mut spent = Spent::default();
        let wanted = request.offset + request.limit;
        let depth = if request.mode == Mode::Hybrid { wanted.max(FUSION_DEPTH) } else { wanted.max(N_BEST) };
        let (mut found, mut spaces) = (Vec::new(), Vec::new());
        if request.mode != Mode::Lexical {
            let searches = self.search_spaces(&request, depth, &mut spent).await?;
            let is_alone = searches.len() < 2;
            for SpaceSearch { space, model, query, hits, best } in searches {
                let reason = query.as_ref().err().or(hits.as_ref().err()).cloned();
                spaces.push(SearchedSpace { space: space.clone(), model, reason });
                if let (Ok(query), Ok(hits)) = (query, hits) {
                    let anchors = if is_alone { Vec::new() } else { self.anchors.scores(&space, &query) };
                    found.push(SpaceHits {
                        n_served: self.indexes.n_served(&space),
                        space,
                        query,
                        hits,
                        best,
                        anchors,
                    });
                }
            }
        }
        let mut words = None;
        if request.mode != Mode::Dense
            && let Query::Text(text) = &request.query
        {
            let began = Instant::now();
            let at_most = u32::try_from(depth).unwrap_or(u32::MAX);
            words = Some(self.store.with_words(text.clone(), request.filter.clone(), at_most).await?);
            spent.words = began.elapsed();
        }
        let guess =
            |of: &SpaceHits, there: &SpaceHits| self.anchors.guess(&of.space, &of.best, &there.space, &there.query);
        let (ranked, merged) = merge(&found, words.as_deref(), guess);
        let raw = raw_scores(&found, words.as_deref());
        let ranked = bounded(ranked, &request, merged, &raw);
        let reading = Instant::now();
        let hits = self.read_hits(&request, &ranked, &raw).await?;
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
        raw: &HashMap<i64, (f64, Option<&SpaceId>)>,
    ) -> Result<Vec<Hit>, GrainError> {
        let shown: Vec<Scored> = ranked.iter().skip(request.offset).take(request.limit).copied().collect();
        let numbers: Vec<i64> = shown.iter().map(|hit| hit.number).collect();
        self.check_size(&numbers).await?;
        let grains = self.store.grains(numbers).await?;
        let mut grains: HashMap<i64, Grain> =
            grains.into_iter().map(|Numbered { number, grain }| (number, grain)).collect();
        let hit = |found: Scored| {
            // Deleted since: it is not found.
            let grain = grains.remove(&found.number)?;
            let (raw_score, space) = raw.get(&found.number).copied().unwrap_or((found.score, None));
            Some(Hit { grain, score: found.score, raw_score, space: space.cloned(), highlight: None })
        };
        let hits = shown.into_iter().filter_map(hit).collect();
        match (&request.query, request.highlights) {
            (Query::Text(text), Highlights::On) => highlighted(hits, Wanted::of(text)).await,
            _ => Ok(hits),
        }
    }

    /// Refuses an answer with more text than anybody reads, before it is read.
    async fn check_size(&self, numbers: &[i64]) -> Result<(), GrainError> {
        if self.limits.max_text_bytes.saturating_mul(numbers.len() as u64) <= MAX_ANSWER_BYTES {
            return Ok(());
        }
        let n_bytes = self.store.size(numbers.to_vec()).await?;
        if n_bytes <= MAX_ANSWER_BYTES {
            return Ok(());
        }
        let message = format!(
            "the {} hits have {} of text together, and an answer has {} at most: ask for fewer, and for the next ones \
             with `offset`",
            numbers.len(),
            ByteSize::b(n_bytes),
            ByteSize::b(MAX_ANSWER_BYTES)
        );
        Err(GrainError::invalid("limit", message))
    }
}

/// Hits that show where the words are.
async fn highlighted(mut hits: Vec<Hit>, wanted: Wanted) -> Result<Vec<Hit>, GrainError> {
    // Texts may be long, and nobody else should wait for that.
    let work = move || {
        for hit in &mut hits {
            hit.highlight = wanted.highlight(&hit.grain.content.text);
        }
        hits
    };
    Ok(tokio::task::spawn_blocking(work).await.unwrap_or_else(|ended| std::panic::resume_unwind(ended.into_panic())))
}

/// The hits that reach the least score. Sums of ranks are no cosines: where a search by meaning has nothing else, the raw
/// scores are what is bounded.
fn bounded(
    ranked: Vec<Scored>,
    request: &SearchRequest,
    merged: Merged,
    raw: &HashMap<i64, (f64, Option<&SpaceId>)>,
) -> Vec<Scored> {
    let Some(min_score) = request.min_score else { return ranked };
    let is_by_raw = request.mode == Mode::Dense && merged == Merged::Rank;
    let score = |hit: &Scored| {
        let raw = raw.get(&hit.number).filter(|_| is_by_raw);
        raw.map_or(hit.score, |(score, _)| *score)
    };
    ranked.into_iter().filter(|hit| score(hit) >= min_score).collect()
}

/// Each found grain's own score and where it is from. Spaces come before words: a grain that was found by both shows its
/// cosine.
fn raw_scores<'a>(spaces: &'a [SpaceHits], words: Option<&[Scored]>) -> HashMap<i64, (f64, Option<&'a SpaceId>)> {
    let mut raw = HashMap::new();
    for hit in words.unwrap_or_default() {
        raw.insert(hit.number, (hit.score, None));
    }
    for SpaceHits { space, hits, .. } in spaces.iter().rev() {
        for hit in hits {
            raw.insert(hit.number, (hit.score, Some(space)));
        }
    }
    raw
}
