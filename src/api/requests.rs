//! Around every request: an id, one line in the log, one count, and its place among the others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use metrics::{SharedString, counter, histogram};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use uuid::Uuid;

use super::access;
use super::bodies::Held;
use super::error::{ApiError, Code};
use super::forwarded::Asked;
use super::state::AppState;
use crate::telemetry;
use crate::telemetry::traces::{self, RequestTrace};

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The route of a path that has none, as a label.
const UNKNOWN_ROUTE: &str = "unknown";

/// The longest request id taken over from a caller.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// The most of a path that is logged: strangers choose it.
const MAX_LOGGED_PATH_BYTES: usize = 256;

/// Gives the request its id, the caller's when it is fit to be logged, logs how it ended, and has no cache keep the
/// answer. `given_up` is cancelled when the stop gives up what runs.
pub async fn observe(State(given_up): State<CancellationToken>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request.headers().get(&REQUEST_ID).filter(|id| is_fit(id)).cloned().unwrap_or_else(new_id);
    let method = request.method().clone();
    let is_routine = access::is_probe(&request);
    let route: Arc<str> = request.extensions().get::<MatchedPath>().map_or(UNKNOWN_ROUTE, MatchedPath::as_str).into();
    // Probes and scrapes come every few seconds and say nothing when they succeed.
    let mut trace = if is_routine { None } else { trace(&request, &route) };
    let client = request.extensions().get::<Asked>().map(|asked| tracing::field::display(asked.client));
    // As a string, so that the log's format escapes it: strangers choose it.
    let span = tracing::info_span!(
        "request",
        id = id.to_str().unwrap_or_default(),
        client,
        %method,
        path = beginning(request.uri().path()),
        key = tracing::field::Empty,
        trace_id = trace.as_ref().map(|trace| tracing::field::display(trace.id()))
    );
    async move {
        let mut waiting = Waiting { started, given_up, is_answered: false };
        let context = trace.as_ref().and_then(RequestTrace::context);
        let mut response = traces::within(context, next.run(request)).await;
        waiting.is_answered = true;
        let status = response.status();
        if let Some(trace) = &mut trace {
            trace.answer(status.as_u16());
        }
        let elapsed = started.elapsed();
        let method = known_method(method.as_str());
        let (route, status_label) = (SharedString::from(route), status.as_str().to_owned());
        counter!(telemetry::HTTP_REQUESTS, "route" => route.clone(), "method" => method, "status" => status_label)
            .increment(1);
        histogram!(telemetry::HTTP_REQUEST_DURATION, "route" => route, "method" => method)
            .record(elapsed.as_secs_f64());
        let elapsed_ms = elapsed.as_secs_f64() * 1e3;
        if is_routine && status.is_success() {
            tracing::debug!(status = status.as_u16(), elapsed_ms, "answered");
        } else {
            let code = response.extensions().get::<Code>().map(|code| code.as_str());
            tracing::info!(status = status.as_u16(), code, elapsed_ms, "answered");
        }
        let headers = response.headers_mut();
        headers.insert(REQUEST_ID, id);
        // Caches keep answers that say nothing of it, and would give them to callers without a key.
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        response
    }
    .instrument(span)
    .await
}

/// The trace of a request, or what its caller has begun; `None` when traces are off.
fn trace(request: &Request, route: &str) -> Option<RequestTrace> {
    // Where there are two, neither counts.
    let mut parents = request.headers().get_all(TRACEPARENT).iter();
    let parent = parents.next().filter(|_| parents.next().is_none()).and_then(|parent| parent.to_str().ok());
    traces::request(
        known_method(request.method().as_str()),
        Some(route).filter(|route| *route != UNKNOWN_ROUTE),
        parent,
    )
}

/// The status of nginx's log for a request whose caller did not wait. No answer has it.
const CALLER_LEFT: u16 = 499;

/// The status of nginx's log for a request whose connection the server closed without an answer. No answer has it.
const GIVEN_UP: u16 = 444;

/// A request that waits for its answer. Dropped before that, its caller has left, or the stop has given it up: it gets its
/// line in the log too.
struct Waiting {
    started: Instant,
    given_up: CancellationToken,
    is_answered: bool,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.is_answered {
            return;
        }
        let elapsed_ms = self.started.elapsed().as_secs_f64() * 1e3;
        if self.given_up.is_cancelled() {
            tracing::info!(status = GIVEN_UP, elapsed_ms, "the stop gave it up before the answer");
        } else {
            tracing::info!(status = CALLER_LEFT, elapsed_ms, "the caller left before the answer");
        }
    }
}

/// Answers so many requests at once and refuses more (429), but for those that ask how the server is. A request counts
/// until its answer is sent.
pub async fn limit_number(State(state): State<AppState>, request: Request, next: Next) -> Response {
    if access::is_probe(&request) {
        return next.run(request).await;
    }
    let Ok(place) = Arc::clone(&state.places).try_acquire_owned() else {
        let message = format!(
            "the server is answering {} requests, as many at once as `server.max_concurrent_requests` allows; try again \
             in a moment",
            state.limits.max_concurrent_requests
        );
        return ApiError::new(Code::Overloaded, message).with_retry_after(Duration::from_secs(1)).into_response();
    };
    next.run(request).await.map(|body| Body::new(Held::new(body, place)))
}

/// Makes a panic a 500 in the route's own format.
#[must_use]
#[allow(clippy::needless_pass_by_value, reason = "the layer hands the panic over")]
pub fn answer_panic(panic: Box<dyn std::any::Any + Send>) -> Response {
    let message = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    tracing::error!("a bug: a handler panicked: {}", message.unwrap_or("no message"));
    ApiError::internal().into_response()
}

/// As much of a path as the log takes.
fn beginning(path: &str) -> &str {
    &path[..path.floor_char_boundary(MAX_LOGGED_PATH_BYTES)]
}

fn is_fit(id: &HeaderValue) -> bool {
    let bytes = id.as_bytes();
    (1..=MAX_REQUEST_ID_BYTES).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
}

fn new_id() -> HeaderValue {
    HeaderValue::from_str(&Uuid::now_v7().to_string()).expect("a UUID is ASCII")
}

/// Methods as a bounded label: a caller may invent its own.
fn known_method(method: &str) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];
    KNOWN.into_iter().find(|known| *known == method).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is logged of a request that is dropped before its answer.
    fn logged(given_up: CancellationToken) -> String {
        let log = tempfile::NamedTempFile::new().expect("a temporary file");
        let file = log.reopen().expect("the same file");
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(file).finish();
        tracing::subscriber::with_default(subscriber, || {
            drop(Waiting { started: Instant::now(), given_up, is_answered: false });
        });
        fs_err::read_to_string(log.path()).expect("the log")
    }

    #[test]
    fn a_request_without_an_answer_was_left_by_its_caller_or_given_up_by_the_stop() {
        let given_up = CancellationToken::new();
        let line = logged(given_up.clone());
        assert!(line.contains("the caller left before the answer status=499"), "{line}");
        given_up.cancel();
        let line = logged(given_up);
        assert!(line.contains("the stop gave it up before the answer status=444"), "{line}");
    }
}
