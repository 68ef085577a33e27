//! `/comparisons`: two models on the server's own grains, before one takes the other's place.

use std::time::Duration;

use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoResponses, ToSchema};

use super::comparison::ComparisonResult;
use super::error::{ApiError, Code, ProblemBody};
use super::extract::Json;
use super::grains::Kept;
use super::grains::search::MAX_QUERY_BYTES;
use super::responses::{Conflict, NativeBodyErrors, NativeErrors, UnknownModel};
use super::state::AppState;
use crate::change::compare::{
    self, CompareError, CompareRequest, DEFAULT_DEPTH, DEFAULT_SAMPLE, MAX_DEPTH, MAX_QUERIES, MAX_SAMPLE,
};
use crate::clock::rfc3339;
use crate::telemetry::with_causes;

/// A browser that shows a report runs nothing and fetches nothing, and shows it within no other page.
const REPORT_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What is to be compared.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CompareBody {
    /// The model in use: its name or an alias; the active one when absent.
    #[schema(example = json!(null))]
    from: Option<String>,
    /// The model that may take its place: its name or an alias.
    #[schema(example = "all-MiniLM-L6-v2")]
    to: String,
    /// Grains to compare on, spread evenly over all; fewer where there are fewer, or where their texts are over 64 MiB.
    #[schema(minimum = 1, maximum = 5000, example = 1000)]
    sample: Option<usize>,
    /// What users search for; drawn from the sampled texts when absent.
    #[schema(min_items = 1, max_items = 200, example = json!(["what grows where it rains a lot"]))]
    queries: Option<Vec<String>>,
    /// Grains of an answer.
    #[schema(minimum = 1, maximum = 100, example = 10)]
    k: Option<usize>,
}

/// A comparison of two models.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Comparison)]
pub struct ComparisonObject {
    #[schema(example = "0197a1b2-7c3d-7e4f-8a5b-6c7d8e9f0a1b")]
    id: String,
    /// The model in use.
    from: String,
    /// The model that may take its place.
    to: String,
    /// RFC 3339, UTC.
    created_at: String,
    /// `queued`, `running`, `completed` or `failed`.
    state: String,
    /// Texts embedded so far.
    done: u64,
    /// Texts to embed; 0 before that is known.
    total: u64,
    /// Why it failed.
    #[schema(required)]
    reason: Option<String>,
    /// What was found, once it is completed; left out of the list.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<ComparisonResult>,
}

/// A page. For the document it is bytes, as a stream is.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[allow(dead_code, reason = "utoipa reads the type")]
pub struct ReportPage(String);

/// The comparisons that are kept.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ComparisonList)]
pub struct Comparisons {
    /// The latest first.
    comparisons: Vec<ComparisonObject>,
}

/// No comparison has this id.
#[derive(IntoResponses)]
#[response(status = 404, description = "No comparison has this id", content_type = "application/problem+json")]
#[allow(dead_code, reason = "utoipa reads the field")]
pub struct UnknownComparison(ProblemBody);

/// The comparison in the path.
pub struct InPath(compare::Status);

impl FromRequestParts<AppState> for InPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let id = Path::<String>::from_request_parts(parts, state).await.ok();
        let found = id.and_then(|Path(id)| state.comparisons.get(&id));
        found.map(Self).ok_or_else(|| {
            let sentence = "no comparison has this id: the last 20 are kept until the server stops, and `GET /comparisons` \
                            lists them";
            ApiError::new(Code::NotFound, sentence)
        })
    }
}

/// Lists the comparisons since the server started, the latest first: the last 20 are kept.
#[utoipa::path(
    get, path = "/comparisons", tag = "comparisons", operation_id = "list_comparisons",
    responses((status = 200, description = "The comparisons", body = Comparisons), NativeErrors)
)]
pub async fn list(State(state): State<AppState>) -> axum::Json<Comparisons> {
    let comparisons = state.comparisons.list().into_iter().map(ComparisonObject::without_result).collect();
    axum::Json(Comparisons { comparisons })
}

/// Begins to compare two models on grains of this server.
///
/// Both embed a sample and the queries in memory, in the background of other requests, and nothing is stored or switched.
/// The answer comes at once; the comparison says how far it is. One runs at a time.
#[utoipa::path(
    post, path = "/comparisons", tag = "comparisons", operation_id = "create_comparison", request_body = CompareBody,
    responses(
        (status = 202, description = "It is under way", body = ComparisonObject, headers(
            ("location" = String, description = "Where it is followed"),
        )),
        NativeErrors, NativeBodyErrors, UnknownModel, Conflict
    )
)]
pub async fn create(
    State(state): State<AppState>,
    Kept(grains): Kept,
    Json(body): Json<CompareBody>,
) -> Result<Response, ApiError> {
    let request = CompareRequest {
        from: state.models.resolve(body.from.as_deref()).map_err(|error| ApiError::from(error).with_param("from"))?,
        to: state.models.resolve(Some(&body.to)).map_err(|error| ApiError::from(error).with_param("to"))?,
        sample: within("sample", body.sample.unwrap_or(DEFAULT_SAMPLE), MAX_SAMPLE)?,
        queries: body.queries.map(checked_queries).transpose()?,
        depth: within("k", body.k.unwrap_or(DEFAULT_DEPTH), MAX_DEPTH)?,
    };
    let status = state.comparisons.start(&grains, &state.models, request).await?;
    let location = [(header::LOCATION, format!("/comparisons/{}", status.id))];
    Ok((StatusCode::ACCEPTED, location, axum::Json(ComparisonObject::of(status))).into_response())
}

/// Shows a comparison: how far it is, and what it found.
#[utoipa::path(
    get, path = "/comparisons/{id}", tag = "comparisons", operation_id = "get_comparison",
    params(("id" = String, Path, description = "A comparison's id")),
    responses((status = 200, description = "The comparison", body = ComparisonObject), NativeErrors, UnknownComparison)
)]
pub async fn get(InPath(status): InPath) -> axum::Json<ComparisonObject> {
    axum::Json(ComparisonObject::of(status))
}

/// Shows what a comparison found as a page with plots, which needs nothing but itself.
#[utoipa::path(
    get, path = "/comparisons/{id}/report", tag = "comparisons", operation_id = "get_comparison_report",
    params(("id" = String, Path, description = "A comparison's id")),
    responses(
        (status = 200, description = "The page", content_type = "text/html", body = ReportPage),
        NativeErrors, UnknownComparison, Conflict
    )
)]
pub async fn report(InPath(status): InPath) -> Result<Response, ApiError> {
    let found = match &status.state {
        compare::State::Completed(found) => found,
        compare::State::Failed(reason) => {
            return Err(ApiError::new(Code::Conflict, format!("the comparison failed, and has no report: {reason}")));
        }
        compare::State::Queued | compare::State::Running => {
            let sentence = format!(
                "the comparison is {}, {} of {} texts are embedded: its report is there when it is completed",
                status.state.as_str(),
                status.n_done,
                status.n_total
            );
            return Err(ApiError::new(Code::Conflict, sentence));
        }
    };
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, REPORT_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    Ok((headers, compare::html(found)).into_response())
}

/// Cancels a comparison if it has not ended, and forgets it.
#[utoipa::path(
    delete, path = "/comparisons/{id}", tag = "comparisons", operation_id = "delete_comparison",
    params(("id" = String, Path, description = "A comparison's id")),
    responses((status = 204, description = "It is gone"), NativeErrors, UnknownComparison)
)]
pub async fn delete(State(state): State<AppState>, InPath(status): InPath) -> StatusCode {
    // Gone is gone, if somebody else was faster too.
    state.comparisons.delete(&status.id);
    StatusCode::NO_CONTENT
}

fn within(field: &str, value: usize, most: usize) -> Result<usize, ApiError> {
    if (1..=most).contains(&value) {
        return Ok(value);
    }
    Err(ApiError::invalid(field, format!("`{field}` is {value}; it goes from 1 to {most}")))
}

fn checked_queries(queries: Vec<String>) -> Result<Vec<String>, ApiError> {
    let refused = |sentence: String| Err(ApiError::invalid("queries", sentence));
    if queries.is_empty() {
        return refused("`queries` is empty: leave it out to have them drawn from the grains".to_owned());
    }
    if queries.len() > MAX_QUERIES {
        return refused(format!("`queries` has {}; a comparison takes {MAX_QUERIES}", queries.len()));
    }
    if let Some((at, query)) = queries.iter().enumerate().find(|(_, query)| query.len() > MAX_QUERY_BYTES) {
        return refused(format!("`queries[{at}]` has {} bytes; it takes {MAX_QUERY_BYTES}", query.len()));
    }
    if let Some(at) = queries.iter().position(String::is_empty) {
        return refused(format!("`queries[{at}]` is empty: a query is a text"));
    }
    Ok(queries)
}

impl ComparisonObject {
    fn of(status: compare::Status) -> Self {
        let result = match &status.state {
            compare::State::Completed(found) => Some(ComparisonResult::of(found)),
            _ => None,
        };
        Self { result, ..Self::without_result(status) }
    }

    fn without_result(status: compare::Status) -> Self {
        let state = status.state.as_str().to_owned();
        Self {
            id: status.id,
            from: status.from.to_string(),
            to: status.to.to_string(),
            created_at: rfc3339(status.created_at),
            state,
            done: status.n_done,
            total: status.n_total,
            reason: match status.state {
                compare::State::Failed(reason) => Some(reason),
                _ => None,
            },
            result: None,
        }
    }
}

impl From<CompareError> for ApiError {
    fn from(error: CompareError) -> Self {
        let message = with_causes(&error);
        match error {
            CompareError::Empty | CompareError::NoQueries | CompareError::Moved(_) => {
                Self::new(Code::Conflict, message)
            }
            CompareError::Full(_) => Self::new(Code::Conflict, message).with_retry_after(Duration::from_secs(30)),
            CompareError::Bug => Self::internal(),
            CompareError::Model(error) => error.into(),
            CompareError::Grains(error) => error.into(),
        }
    }
}
