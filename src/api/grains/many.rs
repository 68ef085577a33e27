//! `GET /grains`, `POST /grains/count` and `POST /grains/delete`: grains by what they are.

use axum::extract::Query;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::filter::FilterBody;
use super::one::IncludeQuery;
use super::wire::GrainObject;
use super::{Kept, refused};
use crate::api::error::{ApiError, ProblemBody};
use crate::api::extract::{Json, OptionalJson, QueryRejected, query_error};
use crate::api::fields::{object, optional_object, optional_words};
use crate::api::responses::{Conflict, NativeBodyErrors, NativeErrors, NoRoom};
use crate::domain::{Filter, hex_digits};
use crate::grains::store::{Facet, Numbered, PageRequest, Position, Sort, SortKey};

const DEFAULT_LIMIT: u32 = 100;
const MAX_LIMIT: u32 = 1000;

/// The query of `GET /grains`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageQuery {
    limit: Option<u32>,
    cursor: Option<String>,
    sort: Option<String>,
    filter: Option<String>,
    include: Option<String>,
}

/// A page of grains.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = GrainPage)]
pub struct Grains {
    grains: Vec<GrainObject>,
    /// The `cursor` of the next page; null when this is the last.
    #[schema(required)]
    next: Option<String>,
}

/// Where a page begins, in which order, and of which grains.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cursor {
    sort: String,
    /// Tells one filter from another; `None` without one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    filter: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    us: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    number: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    id: Option<String>,
}

/// Lists grains page by page. A grain that stays where it is in the order comes exactly once, whatever is written
/// meanwhile.
#[utoipa::path(
    get, path = "/grains", tag = "grains", operation_id = "list_grains",
    params(
        ("limit" = Option<u32>, Query, description = "Grains of a page: 1 to 1000, 100 when absent; a page of long texts ends after 16 MiB", minimum = 1, maximum = 1000),
        ("cursor" = Option<String>, Query, description = "`next` of the page before. It knows its `sort`; a `filter` is sent again with it"),
        ("sort" = Option<String>, Query, description = "`created_at`, `updated_at` or `id`, with `-` before it to reverse; \
         `created_at` when absent"),
        ("filter" = Option<String>, Query, description = "A filter as JSON, as in the body of a search"),
        ("include" = Option<String>, Query, description = "`vector`: the vectors they are served by too"),
    ),
    responses(
        (status = 200, description = "A page", body = Grains),
        (status = 422, description = "A parameter is out of its range", content_type = "application/problem+json",
         body = ProblemBody),
        NativeErrors
    )
)]
pub async fn list(
    Kept(grains): Kept,
    query: Result<Query<PageQuery>, QueryRejected>,
) -> Result<axum::Json<Grains>, ApiError> {
    let Query(query) = query.map_err(|error| query_error(&error, "limit", "`limit` is a number from 1 to 1000"))?;
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(refused("limit", format!("`limit` is {limit}; a page has 1 to {MAX_LIMIT} grains")));
    }
    let vectors = IncludeQuery::vector(query.include.as_deref())?;
    let cursor = query.cursor.as_deref().map(read_cursor).transpose()?;
    let word = query.sort.or_else(|| cursor.as_ref().map(|cursor| cursor.sort.clone()));
    let word = word.unwrap_or_else(|| "created_at".to_owned());
    let sort = read_sort(&word)?;
    let filter = FilterBody::of_parameter(query.filter.as_deref())?;
    let hash = hash_of(&filter);
    if cursor.as_ref().is_some_and(|cursor| cursor.filter != hash) {
        let sentence = "`cursor` is of pages with another `filter`: send that again with it, or begin without a cursor";
        return Err(refused("cursor", sentence));
    }
    let after = cursor.map(|cursor| position(cursor, &word, sort.key)).transpose()?;
    let mut page = grains.page(PageRequest { filter, sort, after, limit, vectors }).await?;
    let next = page.next.map(|next| write_cursor(next, word, hash));
    let object = |found: Numbered| GrainObject::of(found.grain).with_vector(page.vectors.remove(&found.number));
    Ok(axum::Json(Grains { grains: page.grains.into_iter().map(object).collect(), next }))
}

fn read_sort(word: &str) -> Result<Sort, ApiError> {
    let (name, descending) = word.strip_prefix('-').map_or((word, false), |name| (name, true));
    let key = match name {
        "created_at" => SortKey::Created,
        "updated_at" => SortKey::Updated,
        "id" => SortKey::Id,
        _ => return Err(refused("sort", "`sort` takes created_at, updated_at or id, with - before it to reverse")),
    };
    Ok(Sort { key, descending })
}

/// What tells a filter from others; `None` for one without conditions.
fn hash_of(filter: &Filter) -> Option<String> {
    let json = serde_json::to_vec(filter).unwrap_or_default();
    (!filter.is_empty()).then(|| hex_digits(&Sha256::digest(json)[..8]))
}

fn write_cursor(next: Position, sort: String, filter: Option<String>) -> String {
    let cursor = match next {
        Position::Time { us, number } => Cursor { sort, filter, us: Some(us), number: Some(number), id: None },
        Position::Id(id) => Cursor { sort, filter, us: None, number: None, id: Some(id) },
    };
    BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(&cursor).unwrap_or_default())
}

fn read_cursor(text: &str) -> Result<Cursor, ApiError> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok();
    let cursor = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    cursor.ok_or_else(|| refused("cursor", "`cursor` is not the `next` of an earlier page: begin without one"))
}

fn position(cursor: Cursor, word: &str, key: SortKey) -> Result<Position, ApiError> {
    if cursor.sort != word {
        return Err(refused("cursor", format!("`cursor` is of pages sorted by {}: begin without one", cursor.sort)));
    }
    let position = match (key, cursor) {
        (SortKey::Id, Cursor { id: Some(id), .. }) => Some(Position::Id(id)),
        (SortKey::Created | SortKey::Updated, Cursor { us: Some(us), number: Some(number), .. }) => {
            Some(Position::Time { us, number })
        }
        _ => None,
    };
    position.ok_or_else(|| refused("cursor", "`cursor` is not the `next` of an earlier page: begin without one"))
}

/// Something to count by.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema, PartialEq, Eq)]
#[schema(as = Facet)]
#[serde(rename_all = "lowercase")]
pub enum FacetWord {
    /// Their source.
    Source,
    /// Each of their tags.
    Tags,
    /// The space they are served from.
    Space,
}

/// The body of `POST /grains/count`, which needs none.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CountBody {
    #[serde(default, deserialize_with = "optional_object")]
    filter: Option<FilterBody>,
    /// What to count by besides. A word that stands there twice counts once.
    #[serde(default, deserialize_with = "optional_words")]
    facets: Option<Vec<FacetWord>>,
}

/// How many grains there are.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Count {
    count: u64,
    facets: Facets,
}

/// How many grains have each value: the 100 most frequent ones.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Facets {
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<Vec<FacetCount>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tags: Option<Vec<FacetCount>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    space: Option<Vec<FacetCount>>,
}

/// How many grains have a value.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FacetCount {
    /// null: without one.
    #[schema(required)]
    value: Option<String>,
    count: u64,
}

/// Counts the grains that meet a filter, and how they are distributed over sources, tags and spaces.
#[utoipa::path(
    post, path = "/grains/count", tag = "grains", operation_id = "count_grains", request_body = Option<CountBody>,
    responses((status = 200, description = "How many", body = Count), NativeErrors, NativeBodyErrors)
)]
pub async fn count(
    Kept(grains): Kept,
    OptionalJson(body): OptionalJson<CountBody>,
) -> Result<axum::Json<Count>, ApiError> {
    let filter = body.filter.unwrap_or_default().into_filter()?;
    let mut facets: Vec<Facet> = Vec::new();
    for word in body.facets.unwrap_or_default() {
        let facet = match word {
            FacetWord::Source => Facet::Source,
            FacetWord::Tags => Facet::Tags,
            FacetWord::Space => Facet::Space,
        };
        if !facets.contains(&facet) {
            facets.push(facet);
        }
    }
    let counted = grains.count(filter, facets).await?;
    let mut answer = Count { count: counted.total, facets: Facets::default() };
    for (facet, values) in counted.facets {
        let counts = values.into_iter().map(|value| FacetCount { value: value.value, count: value.count }).collect();
        match facet {
            Facet::Source => answer.facets.source = Some(counts),
            Facet::Tags => answer.facets.tags = Some(counts),
            Facet::Space => answer.facets.space = Some(counts),
        }
    }
    Ok(axum::Json(answer))
}

/// The body of `POST /grains/delete`.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteBody {
    #[serde(deserialize_with = "object")]
    filter: FilterBody,
    /// Delete only if exactly so many grains meet the filter: 409 if not. A filter without conditions needs it.
    #[schema(example = json!(null))]
    expected_count: Option<u64>,
}

/// How many grains were deleted.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Deleted {
    deleted: u64,
}

/// Deletes the grains that meet a filter, up to 5,000 of them in one step.
///
/// More are deleted in steps of 5,000, and other writes get their turn in between. A grain is deleted if it met the filter
/// at the beginning, still meets it, and has not been written since. `expected_count` is compared at the beginning. If the
/// disk is full or the server stops in the middle, the steps that are done stay done: the error says how many grains are
/// deleted, and the same request deletes the others.
#[utoipa::path(
    post, path = "/grains/delete", tag = "grains", operation_id = "delete_grains", request_body = DeleteBody,
    responses((status = 200, description = "They are gone", body = Deleted), NativeErrors, NativeBodyErrors, Conflict, NoRoom)
)]
pub async fn delete(Kept(grains): Kept, Json(body): Json<DeleteBody>) -> Result<axum::Json<Deleted>, ApiError> {
    let filter = body.filter.into_filter()?;
    if filter.is_empty() && body.expected_count.is_none() {
        let sentence =
            "`filter` has no condition, which means every grain: send `expected_count` to say that this is meant";
        return Err(refused("expected_count", sentence));
    }
    let deleted = grains.delete_all(filter, body.expected_count).await?;
    Ok(axum::Json(Deleted { deleted }))
}
