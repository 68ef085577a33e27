//! `/models/active`: the model of requests that name none.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::ApiError;
use super::extract::Json;
use super::models::Model;
use super::responses::{NativeBodyErrors, NativeErrors, NoRoom, UnknownModel};
use super::state::AppState;
use crate::models::RecentCaller;

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
    /// Who used the previous model within the last hour. Those that name no model get vectors of another space now.
    recent_callers: Vec<RecentCallerObject>,
    /// Grains that have vectors of other models.
    grains_elsewhere: u64,
}

/// A caller of a model.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = RecentCaller)]
pub struct RecentCallerObject {
    /// The beginning of its `User-Agent`.
    caller: String,
    requests: u64,
    /// Seconds since its last request.
    last_seen_s: f64,
}

impl RecentCallerObject {
    fn of(seen: &RecentCaller) -> Self {
        Self {
            caller: seen.caller.to_string(),
            requests: seen.n_requests,
            last_seen_s: seen.last_seen.elapsed().as_secs_f64(),
        }
    }
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
        recent_callers: switch.recent_callers.iter().map(RecentCallerObject::of).collect(),
        grains_elsewhere: switch.grains_elsewhere,
    }))
}
