//! `/models/active`: the model of requests that name none.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::base::Before;
use super::error::ApiError;
use super::extract::Json;
use super::models::Model;
use super::reembeddings::ReembeddingObject;
use super::responses::{Conflict, NativeBodyErrors, NativeErrors, NoRoom, UnknownModel};
use super::state::AppState;
use crate::change::{Bring, Place, Switched, switch};
use crate::domain::ModelName;
use crate::models::RecentCaller;

/// The body of `PUT /models/active`.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ActiveBody {
    /// A model's name or alias, or `auto` for the one that suits the machine best.
    #[schema(example = "all-MiniLM-L6-v2")]
    name: String,
    /// Whether a re-embedding is to bring the grains of other spaces along.
    #[schema(example = false)]
    reembed: Option<bool>,
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
    /// Grains that are not served from the active model's space. They are still found, each with its own model.
    grains_elsewhere: u64,
    /// Where the grains are served from.
    places: Vec<PlaceObject>,
    /// The call that brings the rest along; null when there is no rest, or when it has begun.
    #[schema(required)]
    bring_along: Option<Call>,
    /// The re-embedding that `reembed` has begun.
    #[schema(required)]
    reembedding: Option<ReembeddingObject>,
}

/// Where grains are served from.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Place)]
pub struct PlaceObject {
    /// The space; null for grains that have no vector whose space is known.
    #[schema(required)]
    space: Option<String>,
    /// The model that makes it.
    #[schema(required)]
    model: Option<String>,
    grains: u64,
}

/// A request to this server.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Call {
    method: &'static str,
    path: String,
    body: CallBody,
}

/// The body of a request that brings grains along.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CallBody {
    to: String,
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
///
/// Grains stay where they are, and are found with their own models. With `reembed` a job begins that brings them along; it
/// is refused (409), and the active model stays, where `POST /reembeddings` would refuse it.
#[utoipa::path(
    put, path = "/models/active", tag = "models", operation_id = "set_active_model", request_body = ActiveBody,
    responses(
        (status = 200, description = "The active model was set", body = SwitchAnswer),
        NativeErrors, NativeBodyErrors, UnknownModel, Conflict, NoRoom
    )
)]
pub async fn put(
    State(state): State<AppState>,
    Before(before): Before,
    Json(body): Json<ActiveBody>,
) -> Result<axum::Json<SwitchAnswer>, ApiError> {
    let name = state.models.choose(&body.name).await?;
    let bring = if body.reembed == Some(true) { Bring::Along } else { Bring::Nothing };
    let kept = state.keeping.as_ref().map(|keeping| (&keeping.grains, &keeping.reembeddings));
    Ok(axum::Json(SwitchAnswer::of(&name, switch(&state.models, kept, &name, bring).await?, &before)))
}

impl SwitchAnswer {
    fn of(name: &ModelName, switched: Switched, before: &str) -> Self {
        let grains_elsewhere = switched.n_elsewhere();
        let Switched { switch, places, reembedding } = switched;
        let has_rest = grains_elsewhere > 0 && reembedding.is_none();
        let path = format!("{before}/reembeddings");
        let call = Call { method: "POST", path, body: CallBody { to: name.to_string() } };
        Self {
            name: name.to_string(),
            previous: switch.previous.to_string(),
            space: switch.space.to_string(),
            recent_callers: switch.recent_callers.iter().map(RecentCallerObject::of).collect(),
            grains_elsewhere,
            places: places.into_iter().map(PlaceObject::of).collect(),
            bring_along: has_rest.then_some(call),
            reembedding: reembedding.map(ReembeddingObject::of),
        }
    }
}

impl PlaceObject {
    fn of(place: Place) -> Self {
        let Place { space, model, n_grains } = place;
        Self {
            space: space.map(|space| space.to_string()),
            model: model.map(|name| name.to_string()),
            grains: n_grains,
        }
    }
}
