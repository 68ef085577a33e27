//! `GET /models/{name}/events`: a model's way to a state that lasts, as it happens.

use std::convert::Infallible;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive};
use axum::response::{IntoResponse, Sse};
use futures::Stream;
use serde::Serialize;
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

/// The stream for the document: text, and to who reads events what each is.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "utoipa reads the variants; none is ever made")]
pub enum ModelEvents {
    /// The whole, as it is sent.
    Whole(String),
    /// One event of it.
    Event(ModelEvent),
}

/// An event of the stream, as it is written; this is its shape for the document.
#[derive(Serialize, ToSchema)]
#[allow(dead_code, reason = "utoipa reads the fields")]
pub struct ModelEvent {
    /// Always `model`.
    event: String,
    /// The model as `GET /models/{name}` shows it, as JSON.
    data: String,
}

/// Follows a model: its state now, then at each change, with the progress of its download.
///
/// Server-sent events of the type `model`, each with the model as `GET /models/{name}` shows it. The stream ends with a
/// state that lasts: `ready`, `failed` or `unloaded`.
#[utoipa::path(
    get, path = "/models/{name}/events", tag = "models", operation_id = "follow_model",
    params(("name" = String, Path, description = "A model's name or alias")),
    responses(
        (status = 200, description = "Events of the type `model`", content_type = "text/event-stream", body = ModelEvents),
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
