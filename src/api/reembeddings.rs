//! `/reembeddings`: jobs that give grains vectors in another space, which then takes over.

use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::IntoResponse;
use axum::response::sse::Event;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use utoipa::{IntoResponses, ToSchema};

use super::error::{ApiError, Code, ProblemBody};
use super::events::{self, EventStream};
use super::extract::Json;
use super::fields::optional_object;
use super::grains::filter::{FilterBody, space_condition};
use super::responses::{Conflict, NativeBodyErrors, NativeErrors, NoRoom, UnknownModel};
use super::state::AppState;
use crate::change::{ReembedError, ReembedRequest, ReembeddingStatus, Reembeddings};
use crate::clock;
use crate::domain::grain::time_of_us;
use crate::domain::{Filter, Reembedding, ReembeddingFailure, ReembeddingId};
use crate::telemetry::with_causes;

/// Failures that are shown of a job.
const MAX_FAILURES: u32 = 1_000;

/// A job that is asked for.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReembeddingBody {
    /// The model that is to make the vectors: its name or an alias.
    #[schema(example = "all-MiniLM-L6-v2")]
    to: String,
    /// Only grains that are served from this space; `unknown` for those that have no vector whose space is known.
    #[schema(pattern = "^([0-9a-fA-F]{16}|unknown)$", example = json!(null))]
    from: Option<String>,
    #[serde(default, deserialize_with = "optional_object")]
    filter: Option<FilterBody>,
    /// The share of the time that the job may work: 0.01 to 1, which is also what is meant when absent.
    #[schema(minimum = 0.01, maximum = 1, example = 1.0)]
    throttle: Option<f64>,
}

/// A job that gives grains vectors in another space.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Reembedding)]
pub struct ReembeddingObject {
    id: String,
    /// The model that makes the vectors.
    to: String,
    /// Its space.
    space: String,
    /// `queued`, `running`, `paused`, `cutting_over`, `completed`, `completed_with_failures`, `cancelled`, `failed`,
    /// `rolling_back` or `rolled_back`.
    state: String,
    /// Why, where that needs words.
    #[schema(required)]
    reason: Option<String>,
    /// Grains that got their vectors.
    done: u64,
    /// `done` and those that were left when it was last counted.
    total: u64,
    /// Grains that could not be embedded: `GET /reembeddings/{id}/failures` says why.
    failed: u64,
    /// Grains a second lately, while it runs.
    #[schema(required)]
    rate: Option<f64>,
    /// Seconds until it is done at that rate.
    #[schema(required)]
    eta_s: Option<f64>,
    /// The share of the time that it may work.
    throttle: f64,
    /// The active model that the same request replaced: a roll-back makes it active again.
    #[schema(required)]
    previous: Option<String>,
    /// RFC 3339, UTC, as all times here.
    created_at: String,
    /// When its state last changed.
    changed_at: String,
    /// When the new space began to serve.
    #[schema(required)]
    cut_over_at: Option<String>,
    /// Until when it can be rolled back; null where there is nothing to roll back.
    #[schema(required)]
    rollback_until: Option<String>,
    /// Whether the vectors that it makes superfluous are there: `kept`, `purging` or `purged`.
    old_vectors: String,
}

/// All jobs.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ReembeddingList {
    /// Newest first.
    reembeddings: Vec<ReembeddingObject>,
}

/// What a job could not embed.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ReembeddingFailureList)]
pub struct Failures {
    /// How many there are.
    total: u64,
    /// The first thousand.
    failures: Vec<FailureObject>,
}

/// A grain that could not be embedded.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ReembeddingFailure)]
pub struct FailureObject {
    /// The grain's id.
    grain: String,
    /// What the model said.
    reason: String,
    /// How often it was tried.
    tries: u32,
}

/// No job has the id.
#[derive(IntoResponses)]
#[response(status = 404, description = "No job has this id", content_type = "application/problem+json")]
#[allow(dead_code, reason = "utoipa reads the field")]
pub struct UnknownReembedding(ProblemBody);

/// The jobs of a server that keeps grains.
pub struct Jobs(pub Reembeddings);

impl FromRequestParts<AppState> for Jobs {
    type Rejection = ApiError;

    async fn from_request_parts(_parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        state.keeping().map(|keeping| Self(keeping.reembeddings.clone()))
    }
}

/// The id of a job in the path.
pub struct JobId(pub ReembeddingId);

impl FromRequestParts<AppState> for JobId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let id = Path::<String>::from_request_parts(parts, state).await;
        id.map(|Path(id)| Self(ReembeddingId::of(id)))
            .map_err(|_| ApiError::new(Code::NotFound, "the id of the re-embedding in the path is not UTF-8"))
    }
}

/// Lists the jobs, newest first.
#[utoipa::path(
    get, path = "/reembeddings", tag = "reembeddings", operation_id = "list_reembeddings",
    responses((status = 200, description = "The jobs", body = ReembeddingList), NativeErrors)
)]
pub async fn list(Jobs(jobs): Jobs) -> axum::Json<ReembeddingList> {
    axum::Json(ReembeddingList { reembeddings: jobs.list().into_iter().map(ReembeddingObject::of).collect() })
}

/// Begins a job: the selected grains get vectors of the model, in the background and beside what is served. When all have
/// them, its space takes over in one step. The active model stays what it is.
///
/// If the model's space comes first already, as the active model's usually does, each grain is served from it as soon as it
/// has its vector, and there is nothing to roll back.
///
/// A job is refused (409) if
///
/// - another job for the same space is open
/// - it has `from` or a `filter`, and its space has vectors of other grains that another space serves: they would move too
/// - an earlier job has left vectors because of which a roll-back would not bring all grains back
///
/// The error names the job to purge, where there is one.
#[utoipa::path(
    post, path = "/reembeddings", tag = "reembeddings", operation_id = "begin_reembedding",
    request_body = ReembeddingBody,
    responses(
        (status = 202, description = "The job was recorded, and is done in the background", body = ReembeddingObject,
         headers(("location" = String, description = "The job's path"))),
        NativeErrors, NativeBodyErrors, UnknownModel, Conflict, NoRoom
    )
)]
pub async fn begin(
    State(state): State<AppState>,
    Jobs(jobs): Jobs,
    Json(body): Json<ReembeddingBody>,
) -> Result<(StatusCode, HeaderMap, axum::Json<ReembeddingObject>), ApiError> {
    let model = state.models.resolve(Some(&body.to)).map_err(|error| ApiError::from(error).with_param("to"))?;
    let (selection, throttle) = body.into_selection()?;
    let request = ReembedRequest { model, selection, throttle, previous_model: None };
    let job = ReembeddingObject::of(jobs.begin(request).await?);
    Ok((StatusCode::ACCEPTED, location(&job), axum::Json(job)))
}

/// Shows a job.
#[utoipa::path(
    get, path = "/reembeddings/{id}", tag = "reembeddings", operation_id = "get_reembedding",
    params(("id" = String, Path, description = "A job's id")),
    responses((status = 200, description = "The job", body = ReembeddingObject), NativeErrors, UnknownReembedding)
)]
pub async fn get(Jobs(jobs): Jobs, JobId(id): JobId) -> Result<axum::Json<ReembeddingObject>, ApiError> {
    Ok(axum::Json(ReembeddingObject::of(jobs.get(&id)?)))
}

/// Follows a job: now, then at each change, at most four times a second.
///
/// Server-sent events: `event` is `reembedding`, and `data` the job as `GET /reembeddings/{id}` shows it. The stream ends
/// with a state in which nothing goes on by itself, `paused` too, and when the server stops.
#[utoipa::path(
    get, path = "/reembeddings/{id}/events", tag = "reembeddings", operation_id = "follow_reembedding",
    params(("id" = String, Path, description = "A job's id")),
    responses(
        (status = 200, description = "Events of the type `reembedding`", content_type = "text/event-stream",
         body = EventStream),
        NativeErrors, UnknownReembedding
    )
)]
pub async fn follow(Jobs(jobs): Jobs, JobId(id): JobId) -> Result<impl IntoResponse, ApiError> {
    let events = jobs.follow(&id)?.map(|status| {
        // A job is plain data, which is always JSON.
        Ok(Event::default().event("reembedding").json_data(ReembeddingObject::of(status)).unwrap_or_default())
    });
    Ok(events::answer(events))
}

/// Shows the grains that a job could not embed, and why.
#[utoipa::path(
    get, path = "/reembeddings/{id}/failures", tag = "reembeddings", operation_id = "list_reembedding_failures",
    params(("id" = String, Path, description = "A job's id")),
    responses((status = 200, description = "The failures", body = Failures), NativeErrors, UnknownReembedding)
)]
pub async fn failures(Jobs(jobs): Jobs, JobId(id): JobId) -> Result<axum::Json<Failures>, ApiError> {
    let (failures, total) = jobs.failures(&id, MAX_FAILURES).await?;
    Ok(axum::Json(Failures { total, failures: failures.into_iter().map(FailureObject::of).collect() }))
}

/// Holds a job. What it has done stays done.
#[utoipa::path(
    post, path = "/reembeddings/{id}/pause", tag = "reembeddings", operation_id = "pause_reembedding",
    params(("id" = String, Path, description = "A job's id")),
    responses((status = 200, description = "The job", body = ReembeddingObject), NativeErrors, UnknownReembedding, Conflict, NoRoom)
)]
pub async fn pause(Jobs(jobs): Jobs, JobId(id): JobId) -> Result<axum::Json<ReembeddingObject>, ApiError> {
    Ok(axum::Json(ReembeddingObject::of(jobs.pause(&id).await?)))
}

/// Lets a held job go on, or tries one again that failed or left grains out.
#[utoipa::path(
    post, path = "/reembeddings/{id}/resume", tag = "reembeddings", operation_id = "resume_reembedding",
    params(("id" = String, Path, description = "A job's id")),
    responses((status = 200, description = "The job", body = ReembeddingObject), NativeErrors, UnknownReembedding, Conflict, NoRoom)
)]
pub async fn resume(Jobs(jobs): Jobs, JobId(id): JobId) -> Result<axum::Json<ReembeddingObject>, ApiError> {
    Ok(axum::Json(ReembeddingObject::of(jobs.resume(&id).await?)))
}

/// Gives a job up. Its vectors serve nothing, and stay until they are purged. While a job is rolling back, this ends that.
///
/// If the job's space came first already, as the active model's usually does, what the job has done is served.
#[utoipa::path(
    post, path = "/reembeddings/{id}/cancel", tag = "reembeddings", operation_id = "cancel_reembedding",
    params(("id" = String, Path, description = "A job's id")),
    responses((status = 200, description = "The job", body = ReembeddingObject), NativeErrors, UnknownReembedding, Conflict, NoRoom)
)]
pub async fn cancel(Jobs(jobs): Jobs, JobId(id): JobId) -> Result<axum::Json<ReembeddingObject>, ApiError> {
    Ok(axum::Json(ReembeddingObject::of(jobs.cancel(&id).await?)))
}

/// Takes a cut-over back: the old space serves again at once.
///
/// Grains written since are served from the newer space until they have vectors in the old one, which they get in the
/// background; `…/cancel` ends that. If the job's own request changed the active model, the model before is active again. A
/// job whose space came first already cannot be rolled back.
#[utoipa::path(
    post, path = "/reembeddings/{id}/rollback", tag = "reembeddings", operation_id = "roll_back_reembedding",
    params(("id" = String, Path, description = "A job's id")),
    responses((status = 200, description = "The job", body = ReembeddingObject), NativeErrors, UnknownReembedding, Conflict, NoRoom)
)]
pub async fn roll_back(Jobs(jobs): Jobs, JobId(id): JobId) -> Result<axum::Json<ReembeddingObject>, ApiError> {
    Ok(axum::Json(ReembeddingObject::of(jobs.roll_back(&id).await?)))
}

/// Deletes the vectors that a job has made superfluous: after a cut-over the old ones, so that there is no roll-back any
/// more; else those in its space that serve nothing and that no other job needs.
#[utoipa::path(
    post, path = "/reembeddings/{id}/purge", tag = "reembeddings", operation_id = "purge_reembedding",
    params(("id" = String, Path, description = "A job's id")),
    responses((status = 200, description = "The job", body = ReembeddingObject), NativeErrors, UnknownReembedding, Conflict, NoRoom)
)]
pub async fn purge(Jobs(jobs): Jobs, JobId(id): JobId) -> Result<axum::Json<ReembeddingObject>, ApiError> {
    Ok(axum::Json(ReembeddingObject::of(jobs.purge(&id).await?)))
}

impl ReembeddingBody {
    fn into_selection(self) -> Result<(Filter, f64), ApiError> {
        let throttle = self.throttle.unwrap_or(1.0);
        if !(0.01..=1.0).contains(&throttle) {
            let sentence =
                format!("`throttle` is {throttle}; it is the share of the time that the job may work: 0.01 to 1");
            return Err(ApiError::invalid("throttle", sentence));
        }
        let mut selection = self.filter.map(FilterBody::into_filter).transpose()?.unwrap_or_default();
        if let Some(from) = &self.from {
            if selection.space.is_some() {
                return Err(ApiError::invalid("from", "`from` and `filter.space` say the same: send one of them"));
            }
            selection.space = Some(space_condition("from", from)?);
        }
        Ok((selection, throttle))
    }
}

impl ReembeddingObject {
    pub(super) fn of(status: ReembeddingStatus) -> Self {
        let ReembeddingStatus { record, n_failed, rate, eta_s, rollback_until_us } = status;
        let Reembedding { id, model, space, throttle, state, reason, done, total, previous_model, old_vectors, .. } =
            record;
        Self {
            id: id.to_string(),
            to: model.to_string(),
            space: space.to_string(),
            state: state.as_str().to_owned(),
            reason,
            done,
            total,
            failed: n_failed,
            rate,
            eta_s,
            throttle,
            previous: previous_model.map(|name| name.to_string()),
            created_at: rfc3339(record.created_us),
            changed_at: rfc3339(record.changed_us),
            cut_over_at: record.cut_over_us.map(rfc3339),
            rollback_until: rollback_until_us.map(rfc3339),
            old_vectors: old_vectors.as_str().to_owned(),
        }
    }
}

impl FailureObject {
    fn of(failure: ReembeddingFailure) -> Self {
        let ReembeddingFailure { grain, reason, tries } = failure;
        Self { grain: grain.to_string(), reason, tries }
    }
}

fn location(job: &ReembeddingObject) -> HeaderMap {
    let path = format!("/reembeddings/{}", job.id).parse().ok();
    path.into_iter().map(|path| -> (HeaderName, _) { (header::LOCATION, path) }).collect()
}

/// A time in microseconds since 1970.
fn rfc3339(us: i64) -> String {
    time_of_us(us).map(clock::rfc3339).unwrap_or_default()
}

impl From<ReembedError> for ApiError {
    fn from(error: ReembedError) -> Self {
        let message = with_causes(&error);
        match error {
            ReembedError::NotFound(_) => Self::new(Code::NotFound, message),
            ReembedError::Open { .. }
            | ReembedError::State { .. }
            | ReembedError::Purging(_)
            | ReembedError::Needed { .. }
            | ReembedError::Beyond { .. }
            | ReembedError::ServedEarly { .. }
            | ReembedError::FirstBefore { .. }
            | ReembedError::TooLate(_)
            | ReembedError::Overtaken { .. }
            | ReembedError::Repeated { .. }
            | ReembedError::OtherSpace { .. } => Self::new(Code::Conflict, message),
            ReembedError::Panicked => Self::new(Code::Internal, message),
            ReembedError::Model(error) => error.into(),
            ReembedError::Grains(error) => error.into(),
        }
    }
}
