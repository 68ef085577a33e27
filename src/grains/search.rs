//! Finding grains by meaning, by words, or by both.
//!
//! Each space that serves grains is searched with its own model, whatever model is active (`nearest`), and what they
//! find becomes one ranking (`merge`).

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use bytesize::ByteSize;

use super::error::GrainError;
use super::highlight::Wanted;
use super::merge::{SpaceHits, merge};
use super::nearest::{LOOK_PER_HIT, Nearest, SpaceSearch, WIDEST_LOOK};
use super::service::Grains;
use super::store::{Numbered, Scored};
use crate::domain::{Filter, Grain, ModelName, SpaceId};
use crate::shutdown::blocking;
use crate::telemetry;
use crate::telemetry::traces::part;

/// The most hits that one request reaches: `offset` and `limit` together.
pub const MAX_DEPTH: usize = 10_000;

/// Each side of a hybrid search brings at least so many candidates into the fusion.
pub(super) const FUSION_DEPTH: usize = 200;

/// The depths to which lists are searched, whatever page is asked for: the best of lists to the first depth, behind them
/// the best of what lists to the next depth have besides, and so on as far as the page reaches.
///
/// What is fused, and what is found through codes, depends on the depth: were it where a page ends, each page would be cut
/// out of another ranking, and hits would come twice or never. A single depth would have to be the last one, and cost a
/// first page, which is nearly always the only one, fifty times the candidates.
///
/// For 50 hits the index compares half as many vectors again as it does at least; 1,000 is the longest page; and 2,000 is
/// as deep as candidates reach under a broad filter: for more hits, all that meets it is read.
const DEPTHS: [usize; 5] = [50, FUSION_DEPTH, 1_000, WIDEST_LOOK / LOOK_PER_HIT, MAX_DEPTH];

/// The most memory for the texts and attributes in one answer of several hits.
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
    /// The least score of a hit; its least raw score in a search by meaning whose spaces have no common scale, or that has
    /// one space.
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

/// A space that was to be searched, and whether it was.
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
    /// Every space that was to be searched.
    pub spaces: Vec<SearchedSpace>,
    /// How the order came about.
    pub merged: Merged,
}

/// A place in the ranking.
#[derive(Debug)]
struct Ranked {
    number: i64,
    score: f64,
    raw_score: f64,
    space: Option<SpaceId>,
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
        part("search").named("granary.mode", request.mode.as_str()).around(Box::pin(self.find(request))).await
    }

    async fn find(&self, request: SearchRequest) -> Result<SearchResult, GrainError> {
        let began = Instant::now();
        let mut spent = Spent::default();
        let wanted = request.offset + request.limit;
        let min_score = request.min_score.unwrap_or(f64::NEG_INFINITY);
        let depths = depths_to(wanted, request.mode);
        let (mut found, mut lists, mut spaces) = (Vec::new(), Vec::new(), Vec::new());
        let mut passing = None;
        if request.mode != Mode::Lexical {
            let (searches, looked_up) = self.search_spaces(&request, &depths, &mut spent).await?;
            passing = looked_up;
            let is_alone = searches.len() < 2;
            for SpaceSearch { space, model, query, nearest } in searches {
                let reason = query.as_ref().err().or(nearest.as_ref().err()).cloned();
                spaces.push(SearchedSpace { space: space.clone(), model, reason });
                if let (Ok(query), Ok(nearest)) = (query, nearest) {
                    let anchors = if is_alone { Vec::new() } else { self.anchors.scores(&space, &query) };
                    found.push(SpaceHits {
                        n_served: self.indexes.n_served(&space),
                        space,
                        query,
                        hits: Vec::new(),
                        best: Vec::new(),
                        anchors,
                    });
                    lists.push(nearest.into_iter());
                }
            }
        }
        let mut words = None;
        if request.mode != Mode::Dense
            && let Query::Text(text) = &request.query
        {
            let began = Instant::now();
            let nearest = lists.iter().filter_map(|lists| lists.as_slice().first()).flat_map(|first| &first.hits);
            let nearest = (!found.is_empty()).then(|| nearest.map(|hit| hit.number).collect());
            let at_most = depths.last().copied().unwrap_or(MAX_DEPTH);
            words = Some(self.find_words(text, &request.filter, at_most, nearest, passing.as_ref()).await?);
            spent.words = began.elapsed();
        }
        let guess =
            |of: &SpaceHits, there: &SpaceHits| self.anchors.guess(&of.space, &of.best, &there.space, &there.query);
        let (mut ranking, mut merged) = (Vec::new(), Merged::Score);
        for depth in depths {
            for (of, lists) in found.iter_mut().zip(&mut lists) {
                if let Some(Nearest { hits, best }) = lists.next() {
                    (of.hits, of.best) = (hits, best);
                }
            }
            let words = words.as_ref().map(|words| words.to_depth(depth));
            let (mut hits, how) = merge(&found, words, guess);
            merged = how;
            let raw = raw_scores(&found, words.map(|words| words.hits));
            let n = depth.min(wanted);
            let mut is_whole = hits.len() < n;
            // In a search by meaning cosines are bounded: sums of ranks are none, and of many vectors a deeper list may have
            // a better one than is shown. The hits of deeper lists stay behind those of the lists before.
            if request.mode == Mode::Dense && merged != Merged::Anchors {
                hits.retain(|hit| raw.get(&hit.number).is_some_and(|(score, _)| *score >= min_score));
                extend(&mut ranking, hits, &raw, n);
            } else {
                extend(&mut ranking, hits, &raw, n);
                // As they are shown: deeper lists may have made scores better than that.
                ranking.truncate(ranking.partition_point(|hit| hit.score >= min_score));
                is_whole |= ranking.len() < n;
            }
            // Deeper lists have nothing more, or nothing that reaches the bound.
            if is_whole {
                break;
            }
        }
        let reading = Instant::now();
        let hits = self.read_hits(&request, ranking).await?;
        spent.reading = reading.elapsed();
        let took = began.elapsed();
        metrics::histogram!(telemetry::SEARCH_DURATION, "mode" => request.mode.as_str()).record(took);
        if took > self.limits.slow_search {
            let ms = |time: Duration| time.as_secs_f64() * 1e3;
            tracing::warn!(
                mode = request.mode.as_str(),
                took_ms = ms(took),
                embedding_ms = ms(spent.embedding),
                vectors_ms = ms(spent.vectors),
                words_ms = ms(spent.words),
                reading_ms = ms(spent.reading),
                filtered = !request.filter.is_empty(),
                wanted,
                n_hits = hits.len(),
                "a search was slow (`grains.slow_search`)"
            );
        }
        Ok(SearchResult { hits, spaces, merged })
    }

    async fn read_hits(&self, request: &SearchRequest, ranking: Vec<Ranked>) -> Result<Vec<Hit>, GrainError> {
        let shown: Vec<Ranked> = ranking.into_iter().skip(request.offset).take(request.limit).collect();
        let numbers: Vec<i64> = shown.iter().map(|hit| hit.number).collect();
        self.check_size(&numbers).await?;
        // What was changed since may be for other eyes. Only its space is as it was seen: the score is of that moment.
        let filter = Filter { space: None, ..request.filter.clone() };
        let grains = self.store.grains(numbers, filter).await?;
        let mut grains: HashMap<i64, Grain> =
            grains.into_iter().map(|Numbered { number, grain }| (number, grain)).collect();
        let hit = |Ranked { number, score, raw_score, space }| {
            // Deleted since, or changed so that it does not meet the filter: it is not found.
            let grain = grains.remove(&number)?;
            Some(Hit { grain, score, raw_score, space, highlight: None })
        };
        let hits = shown.into_iter().filter_map(hit).collect();
        match (&request.query, request.highlights) {
            (Query::Text(text), Highlights::On) => highlighted(hits, Wanted::of(text)).await,
            _ => Ok(hits),
        }
    }

    /// Refuses an answer with more text than anybody reads, before it is read.
    async fn check_size(&self, numbers: &[i64]) -> Result<(), GrainError> {
        // Fewer than one cannot be asked for. Of several the setting proves nothing: texts may be older than it is.
        if numbers.len() < 2 {
            return Ok(());
        }
        let n_bytes = self.store.size(numbers.to_vec()).await?;
        if n_bytes <= MAX_ANSWER_BYTES {
            return Ok(());
        }
        let message = format!(
            "the {} hits take {} of memory together, and those of an answer take {} at most: ask for fewer, and for the next ones \
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
    Ok(blocking(work).await)
}

/// The depths that the first so many hits need.
fn depths_to(wanted: usize, mode: Mode) -> Vec<usize> {
    let least = match mode {
        // Words have one order, however many of it are read.
        Mode::Lexical => return vec![wanted],
        Mode::Dense => 0,
        Mode::Hybrid => FUSION_DEPTH,
    };
    let mut depths: Vec<usize> = DEPTHS.into_iter().filter(|depth| *depth >= least).collect();
    let n_short = depths.iter().filter(|depth| **depth < wanted).count();
    depths.truncate(n_short + 1);
    depths
}

/// Puts the hits that a ranking does not have behind it, until it has `n`. Deeper lists may have made a score better than
/// those before it: it is no better than the last one, so that scores go with the order.
fn extend(ranking: &mut Vec<Ranked>, hits: Vec<Scored>, raw: &HashMap<i64, (f64, Option<&SpaceId>)>, n: usize) {
    let known: HashSet<i64> = ranking.iter().map(|hit| hit.number).collect();
    let most = ranking.last().map_or(f64::INFINITY, |last| last.score);
    let place = |Scored { number, score }| {
        let (raw_score, space) = raw.get(&number).copied().unwrap_or((score, None));
        Ranked { number, score: score.min(most), raw_score, space: space.cloned() }
    };
    let n_missing = n.saturating_sub(ranking.len());
    ranking.extend(hits.into_iter().filter(|hit| !known.contains(&hit.number)).take(n_missing).map(place));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_made_of_the_same_depths_as_far_as_they_reach() {
        for (mode, wanted, depths) in [
            (Mode::Hybrid, 1, &[200][..]),
            (Mode::Hybrid, 200, &[200]),
            (Mode::Hybrid, 201, &[200, 1_000]),
            (Mode::Hybrid, 2_001, &[200, 1_000, 2_000, 10_000]),
            (Mode::Dense, 10, &[50]),
            (Mode::Dense, 51, &[50, 200]),
            (Mode::Dense, 1_001, &[50, 200, 1_000, 2_000]),
            (Mode::Dense, 2_000, &[50, 200, 1_000, 2_000]),
            (Mode::Dense, MAX_DEPTH, &[50, 200, 1_000, 2_000, 10_000]),
            (Mode::Lexical, 777, &[777]),
        ] {
            assert_eq!(depths_to(wanted, mode), depths, "{mode:?} {wanted}");
        }
    }

    #[test]
    fn what_deeper_lists_have_besides_comes_behind_and_scores_no_better() {
        let hits = |of: &[(i64, f64)]| -> Vec<Scored> {
            of.iter().map(|(number, score)| Scored { number: *number, score: *score }).collect()
        };
        let raw = HashMap::from([(7, (0.25, None))]);
        let mut ranking = Vec::new();
        extend(&mut ranking, hits(&[(1, 0.9), (2, 0.5), (3, 0.4)]), &raw, 2);
        extend(&mut ranking, hits(&[(2, 0.8), (7, 0.7), (1, 0.6), (3, 0.3), (4, 0.2), (5, 0.1)]), &raw, 5);
        let found: Vec<(i64, f64, f64)> = ranking.iter().map(|hit| (hit.number, hit.score, hit.raw_score)).collect();
        assert_eq!(found, [(1, 0.9, 0.9), (2, 0.5, 0.5), (7, 0.5, 0.25), (3, 0.3, 0.3), (4, 0.2, 0.2)]);
        extend(&mut ranking, hits(&[(6, 0.1)]), &raw, 5);
        assert_eq!(ranking.len(), 5, "it is long enough");
    }
}
