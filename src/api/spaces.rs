//! `GET /spaces` and `POST /models/{name}/accept`: which vectors may be compared, and what proves it.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::ApiError;
use super::extract::{ModelWord, OptionalJson, space_in};
use super::models::Model;
use super::responses::{Conflict, NativeBodyErrors, NativeErrors, NoRoom, UnknownModel};
use super::state::AppState;
use crate::models::{Acceptance, Space};

/// A vector space that a model of this server has made.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct SpaceObject {
    /// The first 16 hex digits of the fingerprint.
    id: String,
    /// The SHA-256 of the manifest.
    fingerprint: String,
    /// The length of its vectors.
    dimensions: u32,
    /// Everything that decides where a text lands in it.
    #[schema(value_type = Object)]
    manifest: serde_json::Value,
    /// Provider, precision and runtime library that its canary texts were first embedded with.
    numeric_class: String,
    /// The loaded models whose own space it is.
    models: Vec<String>,
}

/// All spaces.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Spaces {
    spaces: Vec<SpaceObject>,
}

impl SpaceObject {
    fn of(space: Space) -> Self {
        let Space { record, models } = space;
        Self {
            id: record.fingerprint.space().to_string(),
            fingerprint: record.fingerprint.as_str().to_owned(),
            dimensions: record.dimensions,
            // It was written as JSON; one that is damaged is shown as it is.
            manifest: serde_json::from_str(&record.manifest).unwrap_or(serde_json::Value::String(record.manifest)),
            numeric_class: record.numeric_class,
            models: models.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Lists every space that a model of this server has made, oldest first.
#[utoipa::path(
    get, path = "/spaces", tag = "spaces", operation_id = "list_spaces",
    responses((status = 200, description = "All spaces", body = Spaces), NativeErrors)
)]
pub async fn list(State(state): State<AppState>) -> Result<axum::Json<Spaces>, ApiError> {
    let spaces = state.models.spaces().await?;
    Ok(axum::Json(Spaces { spaces: spaces.into_iter().map(SpaceObject::of).collect() }))
}

/// The body of `…/accept`, which needs none.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct AcceptBody {
    /// The space that is meant: 412 if the model makes another by now.
    #[schema(example = json!(null), pattern = "^[0-9a-fA-F]{16}$")]
    space: Option<String>,
    /// true: accept as well that vectors have moved within their space.
    #[schema(example = false)]
    numerics: Option<bool>,
}

/// Accepts the space that a model makes since its files or settings changed: its grains are written there from now on.
#[utoipa::path(
    post, path = "/models/{name}/accept", tag = "spaces", operation_id = "accept_space",
    request_body = Option<AcceptBody>,
    params(("name" = String, Path, description = "A model's name or alias")),
    responses(
        (status = 200, description = "The model", body = Model),
        (status = 412, description = "The model makes another space", content_type = "application/problem+json",
         body = super::error::ProblemBody),
        NativeErrors, NativeBodyErrors, UnknownModel, Conflict, NoRoom
    )
)]
pub async fn accept(
    State(state): State<AppState>,
    ModelWord(word): ModelWord,
    OptionalJson(body): OptionalJson<AcceptBody>,
) -> Result<axum::Json<Model>, ApiError> {
    let acceptance =
        Acceptance { space: space_in("space", body.space.as_deref())?, numerics: body.numerics.unwrap_or_default() };
    let name = state.models.resolve(Some(&word))?;
    let status = state.models.accept(&name, acceptance).await?;
    Ok(axum::Json(Model::of(&status, &state.models.active())))
}
