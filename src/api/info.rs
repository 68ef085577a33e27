//! `GET /info` and `GET /health`: what TEI's clients ask before they embed.

use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::access::Asker;
use super::error::ApiError;
use super::extract::{ModelWord, UsualModel};
use super::operations::{check_loadable, check_ready, refusal};
use super::responses::{TeiErrors, TeiNoRoom};
use super::state::AppState;
use crate::domain::Pooling;

/// A model and the limits of the server, in TEI's words.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Info {
    /// The hub repository, or the model's name.
    #[schema(example = "sentence-transformers/all-MiniLM-L6-v2")]
    model_id: String,
    /// The commit of the hub repository; null for a model of local files.
    #[schema(required)]
    model_sha: Option<String>,
    /// `float32` or `bfloat16`.
    model_dtype: String,
    /// The name to use in requests to this server.
    served_model_name: String,
    model_type: ModelType,
    /// Requests of all callers that are answered at once; others get 429.
    max_concurrent_requests: usize,
    /// Tokens a text keeps, special tokens included.
    max_input_length: u32,
    max_batch_tokens: usize,
    max_batch_requests: usize,
    /// Inputs of one request.
    max_client_batch_size: usize,
    auto_truncate: bool,
    tokenization_workers: usize,
    version: String,
    #[schema(required)]
    sha: Option<String>,
    #[schema(required)]
    docker_label: Option<String>,
}

/// What kind of model it is: Granary serves embedding models only.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ModelType {
    embedding: EmbeddingType,
}

/// How an embedding model pools.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct EmbeddingType {
    /// `mean`, `mean_sqrt_len`, `cls`, `last_token`, `max`, or `graph` when the model's graph pools by itself.
    pooling: String,
}

/// Says what the active model is and what a request may hold. Loads the model if it is not loaded.
#[utoipa::path(
    get, path = "/info", tag = "tei", operation_id = "info",
    responses((status = 200, description = "The active model and the server's limits", body = Info), TeiErrors, TeiNoRoom)
)]
pub async fn info(State(state): State<AppState>, usual: UsualModel) -> Result<axum::Json<Info>, ApiError> {
    info_of(state, usual.unless(None).as_deref()).await
}

/// Says what the model in the path is and what a request may hold. Loads the model if it is not loaded.
#[utoipa::path(
    get, path = "/models/{name}/info", tag = "tei", operation_id = "info_of_model",
    params(("name" = String, Path, description = "A model's name or alias")),
    responses((status = 200, description = "The model and the server's limits", body = Info), TeiErrors, TeiNoRoom)
)]
pub async fn info_of_model(
    State(state): State<AppState>,
    ModelWord(model): ModelWord,
) -> Result<axum::Json<Info>, ApiError> {
    info_of(state, Some(&model)).await
}

async fn info_of(state: AppState, model: Option<&str>) -> Result<axum::Json<Info>, ApiError> {
    let name = state.models.resolve(model)?;
    let status = state.models.status(&name)?;
    let lease = state.models.lease(&name).await?;
    let facts = lease.facts();
    Ok(axum::Json(Info {
        model_id: status.info.hub_repository.clone().unwrap_or_else(|| name.to_string()),
        model_sha: facts.commit.clone(),
        model_dtype: facts.precision.to_owned(),
        served_model_name: name.to_string(),
        model_type: ModelType {
            embedding: EmbeddingType { pooling: facts.pooling.map_or("graph", Pooling::as_str).to_owned() },
        },
        max_concurrent_requests: state.limits.max_concurrent_requests,
        max_input_length: facts.max_tokens,
        max_batch_tokens: state.engine.max_batch_tokens,
        max_batch_requests: state.engine.max_batch_texts,
        max_client_batch_size: state.limits.max_inputs,
        auto_truncate: state.limits.auto_truncate,
        tokenization_workers: state.engine.cores,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        sha: None,
        docker_label: None,
    }))
}

/// Answers 200 when the server is ready: the same as `/health/ready`, in TEI's words.
#[utoipa::path(
    get, path = "/health", tag = "tei", operation_id = "health",
    responses((status = 200, description = "Ready"), TeiErrors)
)]
pub async fn health(State(state): State<AppState>, asker: Asker) -> Result<StatusCode, ApiError> {
    check_ready(&state, asker).await.map(|_| StatusCode::OK)
}

/// The same as `/health`, for load balancers that ask for the root.
#[utoipa::path(
    get, path = "/", tag = "tei", operation_id = "health_at_root",
    responses((status = 200, description = "Ready"), TeiErrors)
)]
pub async fn health_at_root(state: State<AppState>, asker: Asker) -> Result<StatusCode, ApiError> {
    health(state, asker).await
}

/// The same as `/health`, where Amazon's `SageMaker` asks.
#[utoipa::path(
    get, path = "/ping", tag = "tei", operation_id = "ping",
    responses((status = 200, description = "Ready"), TeiErrors)
)]
pub async fn ping(state: State<AppState>, asker: Asker) -> Result<StatusCode, ApiError> {
    health(state, asker).await
}

/// Answers 200 when the model in the path is loaded or its last load did not fail.
#[utoipa::path(
    get, path = "/models/{name}/health", tag = "tei", operation_id = "health_of_model",
    params(("name" = String, Path, description = "A model's name or alias")),
    responses((status = 200, description = "The model answers, or will be loaded by the next request"), TeiErrors)
)]
pub async fn health_of_model(
    State(state): State<AppState>,
    asker: Asker,
    ModelWord(model): ModelWord,
) -> Result<StatusCode, ApiError> {
    let status = state.models.resolve(Some(&model)).and_then(|name| state.models.status(&name));
    let status = status.map_err(|error| refusal(error, asker))?;
    check_loadable(&status, asker).map(|()| StatusCode::OK)
}
