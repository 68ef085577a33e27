//! `GET` and `POST /spaces`, and `POST /models/{name}/accept`: which vectors may be compared, and what proves it.

use std::collections::HashMap;

use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::ApiError;
use super::extract::{Json, ModelWord, OptionalJson, space_in};
use super::grains::Kept;
use super::models::Model;
use super::responses::{Conflict, NativeBodyErrors, NativeErrors, NoRoom, UnknownModel};
use super::state::AppState;
use crate::domain::{DeclaredSpace, DeclaredSpaceError, ModelName, SpaceId};
use crate::models::{Acceptance, Space};

/// A vector space that a model of this server has made, or that was declared.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct SpaceObject {
    /// The first 16 hex digits of the fingerprint.
    id: String,
    /// The SHA-256 of the manifest.
    fingerprint: String,
    /// The name it was declared under; null for a model's space.
    #[schema(required)]
    name: Option<String>,
    /// The length of its vectors.
    dimensions: u32,
    /// Everything that decides where a text lands in it.
    #[schema(value_type = std::collections::BTreeMap<String, serde_json::Value>)]
    manifest: serde_json::Value,
    /// Provider, precision and runtime library that its canary texts were first embedded with; null for a declared space.
    #[schema(required)]
    numeric_class: Option<String>,
    /// The loaded models whose own space it is.
    models: Vec<String>,
    /// The models that are not loaded, and whose grains are written to it.
    unloaded_models: Vec<String>,
    /// Grains that are served from it.
    grains: u64,
}

/// All spaces.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = SpaceList)]
pub struct Spaces {
    spaces: Vec<SpaceObject>,
}

impl SpaceObject {
    fn of(space: Space, served: &HashMap<SpaceId, u64>) -> Self {
        let Space { record, models, unloaded_models } = space;
        let names = |models: Vec<ModelName>| models.iter().map(ToString::to_string).collect();
        let id = record.fingerprint.space();
        Self {
            grains: served.get(&id).copied().unwrap_or_default(),
            id: id.to_string(),
            fingerprint: record.fingerprint.to_string(),
            dimensions: record.dimensions,
            numeric_class: record.declared_name.is_none().then_some(record.numeric_class),
            name: record.declared_name,
            // It was written as JSON; one that is damaged is shown as it is.
            manifest: serde_json::from_str(&record.manifest).unwrap_or(serde_json::Value::String(record.manifest)),
            models: names(models),
            unloaded_models: names(unloaded_models),
        }
    }
}

/// Lists every space that a model of this server has made or that was declared, oldest first.
#[utoipa::path(
    get, path = "/spaces", tag = "spaces", operation_id = "list_spaces",
    responses((status = 200, description = "All spaces", body = Spaces), NativeErrors)
)]
pub async fn list(State(state): State<AppState>) -> Result<axum::Json<Spaces>, ApiError> {
    let spaces = state.models.spaces().await?;
    let served = match &state.keeping {
        Some(keeping) => keeping.grains.served_by_space().await?.into_iter().collect(),
        None => HashMap::new(),
    };
    Ok(axum::Json(Spaces { spaces: spaces.into_iter().map(|space| SpaceObject::of(space, &served)).collect() }))
}

/// A space to declare.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeclareBody {
    /// A letter or digit, then up to 63 of the characters A-Z a-z 0-9 . _ -
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", example = "our-image-vectors")]
    name: String,
    /// The length of its vectors.
    #[schema(minimum = 1, maximum = 16384, example = 512)]
    dimensions: u64,
}

/// Declares a space whose vectors are made elsewhere: they are brought along, and searched by vector. Words find their texts.
///
/// Its id follows from the name and the dimensions, so the same declaration makes the same space on every server.
#[utoipa::path(
    post, path = "/spaces", tag = "spaces", operation_id = "declare_space", request_body = DeclareBody,
    responses(
        (status = 200, description = "It was declared before", body = SpaceObject),
        (status = 201, description = "The space", body = SpaceObject),
        NativeErrors, NativeBodyErrors, Conflict, NoRoom
    )
)]
pub async fn declare(
    Kept(grains): Kept,
    Json(body): Json<DeclareBody>,
) -> Result<(StatusCode, axum::Json<SpaceObject>), ApiError> {
    let space = DeclaredSpace::new(&body.name, body.dimensions).map_err(|error| {
        let field = match error {
            DeclaredSpaceError::Name(_) => "name",
            DeclaredSpaceError::Dimensions(_) => "dimensions",
        };
        ApiError::invalid(field, error.to_string())
    })?;
    let (is_new, record) = grains.declare_space(&space).await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    let served = grains.served_by_space().await?.into_iter().collect();
    let space = Space { record, models: Vec::new(), unloaded_models: Vec::new() };
    Ok((status, axum::Json(SpaceObject::of(space, &served))))
}

/// The body of `…/accept`, which needs none.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
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
