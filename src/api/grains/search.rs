//! `POST /grains/search`: by meaning, by words, or by both.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::filter::FilterBody;
use super::wire::GrainObject;
use super::{Kept, refused};
use crate::api::error::{ApiError, Code};
use crate::api::extract::{Json, required_space};
use crate::api::fields::{optional_object, optional_word};
use crate::api::responses::{NativeBodyErrors, NativeErrors};
use crate::grains::search::{Highlights, MAX_DEPTH, Merged, Mode, Query, SearchRequest};
use crate::grains::{Hit, SearchedSpace};

const DEFAULT_LIMIT: usize = 10;
const MAX_LIMIT: usize = 1000;
pub(in crate::api) const MAX_QUERY_BYTES: usize = 64 << 10;

/// How grains are compared with the query.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[schema(as = SearchMode)]
#[serde(rename_all = "lowercase")]
pub enum ModeWord {
    /// By meaning.
    Dense,
    /// By words.
    Lexical,
    /// By both.
    Hybrid,
}

/// A search.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SearchBody {
    /// What is searched for, in words. It has no syntax: quotes, `-`, `*`, `AND`, `OR` and `NOT` mean nothing special.
    #[schema(min_length = 1, example = "cereals")]
    query: Option<String>,
    /// What is searched for, as a vector of `space`. Instead of `query`.
    #[schema(example = json!(null))]
    vector: Option<Vec<f32>>,
    /// The space of `vector`.
    #[schema(pattern = "^[0-9a-fA-F]{16}$", example = json!(null))]
    space: Option<String>,
    /// `hybrid` when absent; `dense` for a vector.
    #[serde(default, deserialize_with = "optional_word")]
    mode: Option<ModeWord>,
    /// The most hits; 10 when absent.
    #[schema(minimum = 1, maximum = 1000)]
    limit: Option<u64>,
    /// Hits to leave out at the beginning.
    #[schema(minimum = 0, maximum = 9999)]
    offset: Option<u64>,
    #[serde(default, deserialize_with = "optional_object")]
    filter: Option<FilterBody>,
    /// The least `score` of a hit; its least `raw_score` when `mode` is `dense`, unless `merged` comes out as `anchors`.
    #[schema(example = json!(null))]
    min_score: Option<f64>,
    /// Whether to show where the words of the query are.
    #[schema(example = false)]
    highlights: Option<bool>,
}

/// What a search found.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct SearchAnswer {
    /// Best first.
    hits: Vec<HitObject>,
    /// Every space that was to be searched, and whether it was; none where `mode` is `lexical`.
    spaces: Vec<SpaceObject>,
    /// `score`: by one score that all hits have. `anchors`: by scores of several spaces, put on the scale of the one that
    /// serves most grains. `rank`: by their ranks in several lists; scores say only the order.
    merged: String,
}

/// A found grain.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Hit)]
pub struct HitObject {
    grain: GrainObject,
    /// What hits are ordered by: a cosine, or what would be one in the space that serves most grains; BM25; or the sum of
    /// reciprocal ranks. Never more than that of the hit before: what is only found for later pages may score less than
    /// that.
    score: f64,
    /// The cosine in its space, or BM25 for a grain that was found by its words only.
    raw_score: f64,
    /// The space it was found in; null for its words only.
    #[schema(required)]
    space: Option<String>,
    /// A part of the text with the query's words between `<mark>` and `</mark>`. The text itself is not escaped.
    #[serde(skip_serializing_if = "Option::is_none")]
    highlight: Option<String>,
}

/// A space, and whether it took part.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = SearchedSpace)]
pub struct SpaceObject {
    space: String,
    /// The model that embedded the query.
    #[schema(required)]
    model: Option<String>,
    /// False where it could not be. True also where the filter leaves out all that it serves.
    searched: bool,
    /// Why it was not searched.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Searches grains. The query is embedded with the model of the space that is searched, whatever model is active.
#[utoipa::path(
    post, path = "/grains/search", tag = "grains", operation_id = "search_grains", request_body = SearchBody,
    responses((status = 200, description = "What was found", body = SearchAnswer), NativeErrors, NativeBodyErrors)
)]
pub async fn search(Kept(grains): Kept, Json(body): Json<SearchBody>) -> Result<axum::Json<SearchAnswer>, ApiError> {
    let found = Box::pin(grains.search(body.into_request()?)).await?;
    Ok(axum::Json(SearchAnswer {
        hits: found.hits.into_iter().map(HitObject::of).collect(),
        spaces: found.spaces.into_iter().map(SpaceObject::of).collect(),
        merged: match found.merged {
            Merged::Score => "score",
            Merged::Anchors => "anchors",
            Merged::Rank => "rank",
        }
        .to_owned(),
    }))
}

impl SearchBody {
    pub(in crate::api) fn into_request(self) -> Result<SearchRequest, ApiError> {
        let bound =
            |field: &'static str, value: Option<u64>, default: usize, range: std::ops::RangeInclusive<usize>| {
                let value = value.map_or(default, |value| usize::try_from(value).unwrap_or(usize::MAX));
                if range.contains(&value) {
                    Ok(value)
                } else {
                    Err(refused(field, format!("`{field}` is {value}; it takes {} to {}", range.start(), range.end())))
                }
            };
        let limit = bound("limit", self.limit, DEFAULT_LIMIT, 1..=MAX_LIMIT)?;
        let offset = bound("offset", self.offset, 0, 0..=MAX_DEPTH - 1)?;
        if offset + limit > MAX_DEPTH {
            let sum = offset + limit;
            return Err(refused(
                "offset",
                format!("`offset` and `limit` are {sum} together; a search reaches {MAX_DEPTH}"),
            ));
        }
        let (query, mode) = match (self.query, self.vector, self.space) {
            (Some(text), None, None) => (text_query(text)?, self.mode.map_or(Mode::Hybrid, Mode::from)),
            (None, Some(vector), Some(space)) => {
                if matches!(self.mode, Some(ModeWord::Lexical | ModeWord::Hybrid)) {
                    return Err(refused("mode", "a vector has no words: `mode` is `dense` for it"));
                }
                (Query::Vector { space: required_space("space", &space)?, vector }, Mode::Dense)
            }
            (None, None, _) => {
                return Err(refused("query", "there is nothing to search for: send `query`, or `vector` and `space`"));
            }
            (Some(_), Some(_), _) => {
                return Err(refused("query", "`query` and `vector` exclude each other: send one of them"));
            }
            (None, Some(_), None) => {
                return Err(refused("space", "`vector` needs `space`, which says which vectors it is compared with"));
            }
            (Some(_), None, Some(_)) => {
                let sentence =
                    "`space` belongs to `vector`; to search one space by text, send `filter: {\"space\": …}`";
                return Err(refused("space", sentence));
            }
        };
        Ok(SearchRequest {
            query,
            mode,
            filter: self.filter.unwrap_or_default().into_filter()?,
            limit,
            offset,
            min_score: self.min_score,
            highlights: if self.highlights.unwrap_or_default() { Highlights::On } else { Highlights::Off },
        })
    }
}

fn text_query(text: String) -> Result<Query, ApiError> {
    if text.trim().is_empty() {
        return Err(ApiError::new(Code::EmptyInput, "`query` is empty: send some words").with_param("query"));
    }
    if text.len() > MAX_QUERY_BYTES {
        return Err(refused("query", format!("`query` has {} bytes; it takes {MAX_QUERY_BYTES}", text.len())));
    }
    Ok(Query::Text(text))
}

impl From<ModeWord> for Mode {
    fn from(word: ModeWord) -> Self {
        match word {
            ModeWord::Dense => Self::Dense,
            ModeWord::Lexical => Self::Lexical,
            ModeWord::Hybrid => Self::Hybrid,
        }
    }
}

impl HitObject {
    fn of(hit: Hit) -> Self {
        Self {
            grain: GrainObject::of(hit.grain),
            score: hit.score,
            raw_score: hit.raw_score,
            space: hit.space.map(|space| space.to_string()),
            highlight: hit.highlight,
        }
    }
}

impl SpaceObject {
    fn of(searched: SearchedSpace) -> Self {
        Self {
            space: searched.space.to_string(),
            model: searched.model.map(|model| model.to_string()),
            searched: searched.reason.is_none(),
            reason: searched.reason,
        }
    }
}
