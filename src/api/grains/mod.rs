//! `/grains`: text records and their vectors. `wire` is how they are written, `filter` which are meant; `batch` writes
//! new ones, `one` is a single grain by its id, `many` reads, counts and deletes by filter, `search` finds, `transfer`
//! takes them in and out in bulk, as the lines of `ndjson`.

pub mod batch;
pub mod filter;
pub mod many;
pub mod ndjson;
pub mod one;
pub mod search;
pub mod transfer;
pub mod wire;

use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::extract::Path;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use utoipa::IntoResponses;

use self::wire::GrainObject;
use super::error::{ApiError, Code, ProblemBody};
use super::state::AppState;
use crate::domain::{GrainId, hex_digits};
use crate::grains::{GrainError, Grains, Precondition, PutIf, Refusal, RefusalKind};
use crate::telemetry::with_causes;

/// The grains of a server that keeps some.
pub struct Kept(pub Grains);

impl FromRequestParts<AppState> for Kept {
    type Rejection = ApiError;

    async fn from_request_parts(_parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        state.keeping().map(|keeping| Self(keeping.grains.clone()))
    }
}

/// The id of a grain in the path. Old ids may have any form.
pub struct IdInPath(pub GrainId);

impl FromRequestParts<AppState> for IdInPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let id = Path::<String>::from_request_parts(parts, state).await;
        id.map(|Path(id)| Self(GrainId::stored(id)))
            .map_err(|_| ApiError::new(Code::GrainNotFound, "the grain's id in the path is not UTF-8"))
    }
}

/// An `If-Match` header: one entity tag as answers carry it, or `*` for any version.
pub struct IfMatch(pub Precondition);

impl FromRequestParts<AppState> for IfMatch {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &AppState) -> Result<Self, ApiError> {
        let mut lines = parts.headers.get_all(header::IF_MATCH).iter();
        let Some(value) = lines.next() else { return Ok(Self(Precondition::Anything)) };
        let text = value.to_str().unwrap_or_default().trim();
        if lines.next().is_some() || text.contains(',') {
            let sentence = "`If-Match` names more than one version: send the one that you have seen";
            return Err(refused("If-Match", sentence));
        }
        if text == "*" {
            return Ok(Self(Precondition::Present));
        }
        let tag = text.strip_prefix("W/").unwrap_or(text).trim_matches('"');
        // What a grain shows besides what its owner wrote keeps nobody from changing it.
        let tag = tag.split_once('-').map_or(tag, |(version, _)| version);
        let sentence = "`If-Match` is not the version of a grain: send the `etag` of an earlier answer, such as \"3\"";
        tag.parse().map(|version| Self(Precondition::Version(version))).map_err(|_| refused("If-Match", sentence))
    }
}

/// What a `PUT` needs: an `If-Match` header, or `If-None-Match: *` where no grain may be.
pub struct PutPrecondition(pub PutIf);

impl FromRequestParts<AppState> for PutPrecondition {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let IfMatch(precondition) = IfMatch::from_request_parts(parts, state).await?;
        let Some(value) = parts.headers.get(header::IF_NONE_MATCH) else { return Ok(Self(PutIf::Met(precondition))) };
        if value.as_bytes().trim_ascii() != b"*" {
            let sentence = "`If-None-Match` takes `*` on a `PUT`, nothing else: no grain may be there then";
            return Err(refused("If-None-Match", sentence));
        }
        if precondition != Precondition::Anything {
            let sentence = "`If-Match` and `If-None-Match` exclude each other: a grain is there, or it is not";
            return Err(refused("If-None-Match", sentence));
        }
        Ok(Self(PutIf::Absent))
    }
}

/// [`ApiError::invalid`], of which these files have many.
fn refused(param: &str, sentence: impl Into<String>) -> ApiError {
    ApiError::invalid(param, sentence)
}

/// Digits of the digest in an entity tag.
const DIGEST_DIGITS: usize = 16;

/// The header by which a caller learns, and later says, which version it has seen. A digest of all that is shown stands
/// behind the version: a re-embedding leaves that what it is, and a grain that is made anew begins again at 1.
fn etag(grain: &GrainObject) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let digest = serde_json::to_vec(grain).map(|shown| hex_digits(&Sha256::digest(shown)));
    if let Ok(digest) = digest
        && let Ok(tag) = format!("\"{}-{}\"", grain.version(), &digest[..DIGEST_DIGITS]).parse()
    {
        headers.insert(header::ETAG, tag);
    }
    headers
}

/// A grain for a caller who may have it: 304 where an `If-None-Match` header lists its entity tag (RFC 9110, 13.1.2).
fn unless_known(asked: &HeaderMap, grain: GrainObject) -> Response {
    let headers = etag(&grain);
    let tag = headers.get(header::ETAG).and_then(|tag| tag.to_str().ok());
    let lines = asked.get_all(header::IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok());
    // Weak tags count too, as proxies make them that compress answers. No tag of a grain has a comma in it.
    let mut listed = lines.flat_map(|line| line.split(',')).map(|one| one.trim().trim_start_matches("W/"));
    if listed.any(|one| one == "*" || Some(one) == tag) {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    (headers, axum::Json(grain)).into_response()
}

impl From<GrainError> for ApiError {
    fn from(error: GrainError) -> Self {
        let message = with_causes(&error);
        match error {
            GrainError::Among { at, source } => Self::from(*source).within(&format!("grains[{at}]")),
            GrainError::Invalid { field, .. } => Self::invalid(field, message),
            GrainError::TooLong { field, .. } => Self::new(Code::InputTooLong, message).with_param(field),
            GrainError::UnknownSpace(_) | GrainError::NoMaker(_) => Self::invalid("space", message),
            GrainError::TooManyImports => {
                Self::new(Code::Overloaded, message).with_retry_after(Duration::from_secs(10))
            }
            GrainError::Contended(_) | GrainError::ModelKeepsMoving { .. } => {
                Self::of_refusal(&error.refusal()).with_retry_after(Duration::from_secs(1))
            }
            GrainError::Halfway { .. } => Self::of_database(&error.refusal()),
            GrainError::Model(error) => error.into(),
            GrainError::Ledger(error) => error.into(),
            GrainError::Store(error) => error.into(),
            GrainError::Index(_) | GrainError::Receipt(_) => {
                tracing::error!("{message}");
                Self::internal()
            }
            error => Self::of_refusal(&error.refusal()),
        }
    }
}

impl ApiError {
    /// The error of a request, or of one grain among several.
    pub(super) fn of_refusal(refusal: &Refusal) -> Self {
        let code = match refusal.kind {
            RefusalKind::NotFound => Code::GrainNotFound,
            RefusalKind::ModelNotFound => Code::ModelNotFound,
            RefusalKind::Conflict => Code::Conflict,
            RefusalKind::Version => Code::VersionMismatch,
            RefusalKind::Empty => Code::EmptyInput,
            RefusalKind::TooLong => Code::InputTooLong,
            RefusalKind::Invalid => Code::InvalidRequest,
            RefusalKind::Malformed => Code::MalformedJson,
            RefusalKind::TooLarge => Code::BodyTooLarge,
            RefusalKind::ModelLoading => Code::ModelLoading,
            RefusalKind::ModelDisabled => Code::ModelDisabled,
            RefusalKind::ModelFailed => Code::ModelFailed,
            RefusalKind::MemoryBudget => Code::MemoryBudget,
            RefusalKind::DiskFull => Code::DiskFull,
            RefusalKind::Overloaded => Code::Overloaded,
            RefusalKind::Timeout => Code::Timeout,
            RefusalKind::Unavailable => Code::StoreUnavailable,
        };
        Self::new(code, refusal.message.clone())
    }
}

/// The grain in the path does not exist.
#[derive(IntoResponses)]
#[response(status = 404, description = "No grain has this id", content_type = "application/problem+json")]
#[allow(dead_code, reason = "utoipa reads the field")]
pub struct UnknownGrain(ProblemBody);

/// What can stand against a write of grains, besides what any route answers.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "utoipa reads the variants")]
pub enum WriteErrors {
    /// No model has the name.
    #[response(status = 404, content_type = "application/problem+json")]
    UnknownModel(ProblemBody),
    /// A grain has the id, others change it, or the model may not write grains now.
    #[response(status = 409, content_type = "application/problem+json")]
    Conflict(ProblemBody),
    /// The model's queue is full, or the key's rate is used up.
    #[response(status = 429, content_type = "application/problem+json", headers(
        ("retry-after" = u64, description = "Seconds until there should be room"),
    ))]
    Overloaded(ProblemBody),
    /// The disk is full, or there is no room for the model.
    #[response(status = 507, content_type = "application/problem+json", headers(
        ("retry-after" = u64, description = "Seconds until trying again makes sense"),
        ("x-should-retry" = String, description = "`false` when trying again is pointless"),
    ))]
    NoRoom(ProblemBody),
}

/// The grain is in another version than `If-Match` says, or there against `If-None-Match`.
#[derive(IntoResponses)]
#[response(status = 412, description = "The precondition is not met", content_type = "application/problem+json")]
#[allow(dead_code, reason = "utoipa reads the field")]
pub struct OtherVersion(ProblemBody);
