//! Health and metrics, for whoever runs the server.

use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::ToSchema;

use super::access::Asker;
use super::error::{ApiError, Code};
use super::models::GrainWrites;
use super::responses::NativeErrors;
use super::state::AppState;
use crate::models::lifecycle::Phase;
use crate::models::{Ailment, ModelError, ModelStatus};
use crate::telemetry;

/// When to ask a server again that is stopping: whoever takes its place may be there by then.
const STOPPING: Duration = Duration::from_secs(5);

/// The content type of the Prometheus text format.
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a stranger reads in place of a reason.
const UNTOLD: &str = "the reason is in the server's log, and in this answer to a request with a key";

/// A sign of life.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Live {
    /// Always `live`.
    status: String,
    version: String,
}

/// What readiness rests on.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Ready {
    /// Always `ready`.
    status: String,
    /// The active model.
    model: String,
    /// Its state: a model that is unloaded or loading is ready to be used, unless its last load failed.
    model_state: String,
    /// Whether grains may be written with it; null until it is loaded.
    #[schema(required)]
    grain_writes: Option<GrainWrites>,
}

/// Answers as long as the process can.
#[utoipa::path(
    get, path = "/health/live", tag = "operations", operation_id = "live",
    responses((status = 200, description = "The process answers", body = Live), NativeErrors)
)]
pub async fn live() -> axum::Json<Live> {
    axum::Json(Live { status: "live".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() })
}

/// Answers 200 when the database answers and the active model is loaded or can be.
#[utoipa::path(
    get, path = "/health/ready", tag = "operations", operation_id = "ready",
    responses((status = 200, description = "Requests can be answered", body = Ready), NativeErrors)
)]
pub async fn ready(State(state): State<AppState>, asker: Asker) -> Result<axum::Json<Ready>, ApiError> {
    check_ready(&state, asker).await.map(axum::Json)
}

/// What readiness rests on, or why the server is not ready.
///
/// # Errors
/// When the server is stopping, the database does not answer, or the active model's last load failed.
pub(super) async fn check_ready(state: &AppState, asker: Asker) -> Result<Ready, ApiError> {
    if state.leaving.is_cancelled() {
        let sentence = "the server is stopping: it finishes what is running, and others should be asked";
        return Err(ApiError::new(Code::StoreUnavailable, sentence).with_retry_after(STOPPING));
    }
    state.ledger.check().await.map_err(|error| match ApiError::from(error) {
        // Only looks such as this one use its connection: the last one has had no answer yet.
        busy if busy.code() == Code::Overloaded => {
            ApiError::new(Code::StoreUnavailable, "the database does not answer")
                .with_retry_after(Duration::from_secs(5))
        }
        error => error,
    })?;
    let active = state.models.active();
    let status = state.models.status(&active).map_err(|error| refusal(error, asker))?;
    check_loadable(&status, asker)?;
    let writes = GrainWrites::of(&status);
    Ok(Ready {
        status: "ready".to_owned(),
        model: active.to_string(),
        model_state: status.phase.to_string(),
        grain_writes: match asker {
            Asker::Known => writes,
            Asker::Stranger => writes.map(|writes| writes.with_reason(UNTOLD)),
        },
    })
}

/// Whether the next request to a model would be answered, as far as its last load tells that has ended: one that is
/// tried again after a failure has still failed.
///
/// # Errors
/// When the load failed, the model does not embed as it should, or it is disabled.
pub(super) fn check_loadable(status: &ModelStatus, asker: Asker) -> Result<(), ApiError> {
    let name = &status.info.name;
    let told = |what: &str, reason: &str| match asker {
        Asker::Known => format!("`{name}` {what}: {reason}"),
        Asker::Stranger => format!("`{name}` {what}; {UNTOLD}"),
    };
    if let Some(failure) = &status.failure {
        // For want of room too, for which requests are answered 507: probes know what is not ready by 503.
        return Err(ApiError::new(Code::ModelFailed, told("cannot be loaded", &failure.reason)));
    }
    // The next request loads a model anew that is being unloaded, unless that does not end.
    let lasts = |ailment: &&Ailment| status.phase != Phase::Draining || ailment.is_stuck();
    if let Some(ailment) = status.ailment.as_ref().filter(lasts) {
        let what = format!("is loaded and {}", ailment.what);
        return Err(ApiError::new(Code::ModelFailed, told(&what, &ailment.reason)));
    }
    if status.disabled {
        return Err(ModelError::Disabled { name: name.clone() }.into());
    }
    Ok(())
}

/// The error of a model that is not there. A stranger is not told which are.
pub(super) fn refusal(error: ModelError, asker: Asker) -> ApiError {
    match (error, asker) {
        (ModelError::NotFound { word, .. }, Asker::Stranger) => {
            let message = format!("no model is called `{word}`; a request with a key is told which there are");
            ApiError::new(Code::ModelNotFound, message).with_param("model")
        }
        (error, _) => error.into(),
    }
}

/// The metrics of the process in Prometheus's text format: TEI's `te_*`, our own `granary_*` and the usual `process_*`.
#[utoipa::path(
    get, path = "/metrics", tag = "operations", operation_id = "metrics",
    responses((status = 200, description = "All metrics", body = String, content_type = "text/plain"), NativeErrors)
)]
pub async fn metrics(State(state): State<AppState>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, PROMETHEUS_TEXT)], state.metrics.render() + &telemetry::process_metrics())
}
