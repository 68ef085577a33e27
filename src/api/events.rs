//! `GET /models/{name}/events`: a model's way to a state that lasts, as it happens.

use std::convert::Infallible;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive};
use axum::response::{IntoResponse, Sse};
use futures::Stream;
use utoipa::ToSchema;

use super::bodies::UNBUFFERED;
use super::error::ApiError;
use super::extract::ModelWord;
use super::models::Model;
use super::responses::{NativeErrors, UnknownModel};
use super::state::AppState;

/// An answer of events, with a sign of life where there are none for a while.
pub(super) fn answer(events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static) -> impl IntoResponse {
    ([UNBUFFERED], Sse::new(events).keep_alive(KeepAlive::default()))
}

/// Server-sent events: text, as it is sent. For the document it is bytes, which generated clients keep as they are.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary, example = "event: model\ndata: {\"name\": \"tiny\"}\n\n")]
#[allow(dead_code, reason = "utoipa reads the type")]
pub struct EventStream(String);

/// Follows a model: its state now, then at each change, with the progress of its download.
///
/// Server-sent events: `event` is `model`, and `data` the model as `GET /models/{name}` shows it. The stream ends with a
/// state that lasts: `ready`, `failed` or `unloaded`.
#[utoipa::path(
    get, path = "/models/{name}/events", tag = "models", operation_id = "follow_model",
    params(("name" = String, Path, description = "A model's name or alias")),
    responses(
        (status = 200, description = "Events of the type `model`", content_type = "text/event-stream", body = EventStream),
        NativeErrors, UnknownModel
    )
)]
pub async fn follow(State(state): State<AppState>, ModelWord(word): ModelWord) -> Result<impl IntoResponse, ApiError> {
    let name = state.models.resolve(Some(&word))?;
    let changes = state.models.follow(&name)?;
    let events = futures::stream::unfold((state, changes), async |(state, mut changes)| {
        let status = changes.next().await?;
        let model = Model::of(&status, &state.models.active());
        // A model is plain data, which is always JSON.
        let event = Event::default().event("model").json_data(model).unwrap_or_default();
        Some((Ok(event), (state, changes)))
    });
    Ok(answer(events))
}
