//! `/models/active`: the model of requests that name none.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::ApiError;
use super::extract::Json;
use super::models::Model;
use super::responses::{NativeBodyErrors, NativeErrors, NoRoom, UnknownModel};
use super::state::AppState;

/// The body of `PUT /models/active`.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ActiveBody {
    /// A model's name or alias, or `auto` for the one that suits the machine best.
    #[schema(example = "all-MiniLM-L6-v2")]
    name: String,
}

/// What a change of the active model did.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct SwitchAnswer {
    /// The model that is active now.
    name: String,
    /// The model that was active before.
    previous: String,
    /// The space of the active model's vectors.
    space: String,
}

/// Shows the active model.
#[utoipa::path(
    get, path = "/models/active", tag = "models", operation_id = "get_active_model",
    responses((status = 200, description = "The active model", body = Model), NativeErrors)
)]
pub async fn get(State(state): State<AppState>) -> Result<axum::Json<Model>, ApiError> {
    let active = state.models.active();
    Ok(axum::Json(Model::of(&state.models.status(&active)?, &active)))
}

/// Makes a model the active one. It is loaded first; no request fails because of the change, and it survives a restart.
#[utoipa::path(
    put, path = "/models/active", tag = "models", operation_id = "set_active_model", request_body = ActiveBody,
    responses(
        (status = 200, description = "The active model was set", body = SwitchAnswer),
        NativeErrors, NativeBodyErrors, UnknownModel, NoRoom
    )
)]
pub async fn put(
    State(state): State<AppState>,
    Json(body): Json<ActiveBody>,
) -> Result<axum::Json<SwitchAnswer>, ApiError> {
    let name = state.models.choose(&body.name).await?;
    let switch = state.models.set_active(&name).await?;
    Ok(axum::Json(SwitchAnswer {
        name: name.to_string(),
        previous: switch.previous.to_string(),
        space: switch.space.to_string(),
    }))
}
