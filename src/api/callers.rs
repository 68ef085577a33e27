//! Around every request: who was answered by which model.

use axum::extract::{Request, State};
use axum::http::header::USER_AGENT;
use axum::middleware::Next;
use axum::response::Response;

use super::access::Holder;
use super::state::AppState;
use super::vectors::MODEL_HEADER;
use crate::domain::{Caller, ModelName};

/// Notes the callers of models by the header that every embedding has.
pub async fn note(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let agent = request.headers().get(USER_AGENT).and_then(|value| value.to_str().ok());
    let holder = request.extensions().get::<Holder>();
    let caller = holder.map_or_else(|| Caller::of_user_agent(agent), |Holder(key)| Caller::of_key(&key.name));
    let response = next.run(request).await;
    let model = response.headers().get(MODEL_HEADER).and_then(|value| value.to_str().ok());
    if let Some(model) = model.and_then(|name| ModelName::parse(name).ok()) {
        state.models.note_caller(&model, caller);
    }
    response
}
