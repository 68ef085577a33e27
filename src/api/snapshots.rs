//! `/snapshots`: whole copies of the database, made while it is used.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio_util::io::ReaderStream;
use utoipa::{IntoResponses, ToSchema};

use super::error::{ApiError, Code, ProblemBody};
use super::grains::Kept;
use super::responses::NativeErrors;
use super::state::AppState;
use crate::grains::{Snapshot, SnapshotError, SnapshotName};
use crate::telemetry::with_causes;

/// A snapshot is read in pieces of so many bytes: with small ones, fetching it takes most of a core.
const PIECE_BYTES: usize = 256 << 10;

/// A whole copy of the database.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Snapshot)]
pub struct SnapshotObject {
    #[schema(example = "granary-20261124T120000.000Z.db")]
    name: String,
    size_bytes: u64,
    /// RFC 3339, UTC.
    created_at: String,
}

/// An SQLite file, whole.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[allow(dead_code, reason = "utoipa reads the type")]
pub struct SnapshotFile(Vec<u8>);

/// The copies that are kept.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = SnapshotList)]
pub struct Snapshots {
    /// The latest first.
    snapshots: Vec<SnapshotObject>,
}

/// No snapshot has this name.
#[derive(IntoResponses)]
#[response(status = 404, description = "No snapshot has this name", content_type = "application/problem+json")]
#[allow(dead_code, reason = "utoipa reads the field")]
pub struct UnknownSnapshot(ProblemBody);

/// The name of a snapshot in the path.
pub struct NameInPath(SnapshotName);

impl FromRequestParts<AppState> for NameInPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let name = Path::<String>::from_request_parts(parts, state).await.ok();
        let name = name.and_then(|Path(name)| SnapshotName::parse(&name));
        name.map(Self)
            .ok_or_else(|| ApiError::new(Code::NotFound, "no snapshot has this name: `GET /snapshots` lists them"))
    }
}

/// Lists the snapshots in the data directory, the latest first.
#[utoipa::path(
    get, path = "/snapshots", tag = "snapshots", operation_id = "list_snapshots",
    responses((status = 200, description = "The snapshots", body = Snapshots), NativeErrors)
)]
pub async fn list(Kept(grains): Kept) -> Result<axum::Json<Snapshots>, ApiError> {
    let snapshots = grains.snapshots().list().await?;
    Ok(axum::Json(Snapshots { snapshots: snapshots.into_iter().map(SnapshotObject::of).collect() }))
}

/// Makes a snapshot: a whole copy of the database as of now, kept beside it. Reading and writing go on meanwhile.
///
/// One is made at a time, and `server.request_timeout` does not end it. It goes on when the caller leaves, and
/// `GET /snapshots` lists it once it is whole. A server that stops gives it up, and nothing of it stays.
#[utoipa::path(
    post, path = "/snapshots", tag = "snapshots", operation_id = "create_snapshot",
    responses(
        (status = 201, description = "It is on disk", body = SnapshotObject, headers(
            ("location" = String, description = "Where it can be fetched"),
        )),
        (status = 409, description = "Another one is being made", content_type = "application/problem+json",
         body = ProblemBody),
        (status = 507, description = "There is no room for it", content_type = "application/problem+json",
         body = ProblemBody),
        NativeErrors
    )
)]
pub async fn create(Kept(grains): Kept) -> Result<Response, ApiError> {
    let snapshot = grains.snapshot().await?;
    let location = [(header::LOCATION, format!("/snapshots/{}", snapshot.name))];
    Ok((StatusCode::CREATED, location, axum::Json(SnapshotObject::of(snapshot))).into_response())
}

/// Fetches a snapshot: an SQLite file that `granary snapshot restore` puts in place.
#[utoipa::path(
    get, path = "/snapshots/{name}", tag = "snapshots", operation_id = "get_snapshot",
    params(("name" = String, Path, description = "A snapshot's name")),
    responses(
        (status = 200, description = "The file", content_type = "application/vnd.sqlite3", body = SnapshotFile),
        NativeErrors, UnknownSnapshot
    )
)]
pub async fn get(Kept(grains): Kept, NameInPath(name): NameInPath) -> Result<Response, ApiError> {
    let (file, size_bytes) = grains.snapshots().open(&name).await?;
    let headers = [
        (header::CONTENT_TYPE, "application/vnd.sqlite3".to_owned()),
        (header::CONTENT_LENGTH, size_bytes.to_string()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{name}\"")),
    ];
    Ok((headers, Body::from_stream(ReaderStream::with_capacity(file, PIECE_BYTES))).into_response())
}

/// Deletes a snapshot.
#[utoipa::path(
    delete, path = "/snapshots/{name}", tag = "snapshots", operation_id = "delete_snapshot",
    params(("name" = String, Path, description = "A snapshot's name")),
    responses((status = 204, description = "It is gone"), NativeErrors, UnknownSnapshot)
)]
pub async fn delete(Kept(grains): Kept, NameInPath(name): NameInPath) -> Result<StatusCode, ApiError> {
    grains.snapshots().delete(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl SnapshotObject {
    fn of(snapshot: Snapshot) -> Self {
        let Snapshot { name, size_bytes, created_at } = snapshot;
        Self { name: name.to_string(), size_bytes, created_at }
    }
}

impl From<SnapshotError> for ApiError {
    fn from(error: SnapshotError) -> Self {
        let message = with_causes(&error);
        match error {
            SnapshotError::NotFound(_) => Self::new(Code::NotFound, message),
            SnapshotError::UnderWay { .. } => Self::new(Code::Conflict, message),
            SnapshotError::Stopping => {
                Self::new(Code::StoreUnavailable, message).with_retry_after(Duration::from_secs(5))
            }
            SnapshotError::Store(error) => error.into(),
            SnapshotError::Files { .. } => {
                tracing::error!("{message}");
                Self::new(Code::StoreUnavailable, "the folder of the snapshots cannot be used, see the log")
            }
        }
    }
}
