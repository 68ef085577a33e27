//! Embedding for a route: the service call between the metrics and headers that TEI's users know.
//!
//! [`count`] stands before the checks of a request, [`embed`] behind them, as TEI counts.

use std::cell::Cell;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use metrics::{Counter, Histogram, counter, histogram};

use super::error::{ApiError, Code};
use super::inputs::Shape;
use super::state::AppState;
use super::vectors::provenance_headers;
use crate::engine::Input;
use crate::models::{EmbedRequest, Embedded};
use crate::telemetry::{self, method};

/// Vectors, and the headers that say what made them and how long it took.
pub struct Answer {
    /// The vectors.
    pub embedded: Embedded,
    /// `x-model`, `x-space`, … and TEI's `x-compute-*` and `x-*-time`.
    pub headers: HeaderMap,
}

tokio::task_local! {
    /// Whether the request that this task answers was counted, and not yet as a success.
    static IS_OPEN: Cell<bool>;
}

/// Waits for the answer to a request, and says whether the request was counted and is no success: its failure then counts,
/// too, wherever it comes from. Whoever is refused before, at a path or with a body that nobody reads, is in neither number.
pub async fn noting<T>(answer: impl Future<Output = T>) -> (T, bool) {
    let noted = async { (answer.await, IS_OPEN.with(Cell::get)) };
    IS_OPEN.scope(Cell::new(false), noted).await
}

/// Counts a request to embed, before anything in it is checked.
pub fn count(shape: Shape) {
    counter!(telemetry::TE_REQUEST_COUNT, "method" => method_of(shape)).increment(1);
    // Without a task that asks nobody would know.
    let _ = IS_OPEN.try_with(|is_open| is_open.set(true));
}

/// Counts the failure of a request that was counted.
pub fn count_failure(code: Code) {
    counter!(telemetry::TE_REQUEST_FAILURE, "err" => code.failure_label()).increment(1);
}

fn method_of(shape: Shape) -> &'static str {
    match shape {
        Shape::Single => method::SINGLE,
        Shape::List => method::BATCH,
    }
}

/// Embeds with the model that `model` means, the active one when it is `None`.
///
/// # Errors
/// What the model or the engine refuses.
pub async fn embed(
    state: &AppState,
    model: Option<&str>,
    request: EmbedRequest,
    shape: Shape,
) -> Result<Answer, ApiError> {
    let started = Instant::now();
    let n_texts = request.inputs.len() as u64;
    let n_characters = request.inputs.iter().map(n_characters).sum::<usize>();
    counter!(telemetry::TE_EMBED_COUNT).increment(n_texts);

    let name = state.models.resolve(model)?;
    let embedded = state.models.embed_with_model(request, &name).await?;

    counter!(telemetry::TE_REQUEST_SUCCESS, "method" => method_of(shape)).increment(1);
    let _ = IS_OPEN.try_with(|is_open| is_open.set(false));
    record(&embedded, started.elapsed());
    let headers = headers(&embedded, n_characters, started.elapsed());
    Ok(Answer { embedded, headers })
}

fn n_characters(input: &Input) -> usize {
    match input {
        Input::Text(text) => text.chars().count(),
        Input::Tokens(ids) => ids.len(),
    }
}

/// What each answer adds to. Looked up once, at the first: whoever takes requests has installed the recorder before.
static ANSWERED: LazyLock<Answered> = LazyLock::new(|| Answered {
    texts: counter!(telemetry::TE_EMBED_SUCCESS),
    input_length: histogram!(telemetry::TE_REQUEST_INPUT_LENGTH),
    duration: histogram!(telemetry::TE_REQUEST_DURATION),
    tokenization: histogram!(telemetry::TE_REQUEST_TOKENIZATION_DURATION),
    queue: histogram!(telemetry::TE_REQUEST_QUEUE_DURATION),
    inference: histogram!(telemetry::TE_REQUEST_INFERENCE_DURATION),
});

struct Answered {
    texts: Counter,
    input_length: Histogram,
    duration: Histogram,
    tokenization: Histogram,
    queue: Histogram,
    inference: Histogram,
}

fn record(embedded: &Embedded, total: Duration) {
    let encoded = &embedded.encoded;
    embedded.counts.record(encoded);
    embedded.counts.record_duration(total);
    let n_texts = encoded.n_tokens.len();
    ANSWERED.texts.increment(n_texts as u64);
    for n_tokens in &encoded.n_tokens {
        ANSWERED.input_length.record(*n_tokens as f64);
    }
    // TEI records the mean over a request's texts.
    let mean = |duration: Duration| duration.as_secs_f64() / n_texts.max(1) as f64;
    ANSWERED.duration.record(total.as_secs_f64());
    ANSWERED.tokenization.record(mean(encoded.tokenization_time));
    ANSWERED.queue.record(encoded.queue_time.as_secs_f64());
    ANSWERED.inference.record(mean(encoded.inference_time));
}

fn headers(embedded: &Embedded, n_characters: usize, total: Duration) -> HeaderMap {
    let encoded = &embedded.encoded;
    let mut headers = provenance_headers(embedded);
    let compute_type = if embedded.provider.is_gpu() { "gpu" } else { "cpu" };
    headers.insert(HeaderName::from_static("x-compute-type"), HeaderValue::from_static(compute_type));
    let mut put = |name, value: u128| {
        headers.insert(HeaderName::from_static(name), HeaderValue::from(u64::try_from(value).unwrap_or(u64::MAX)));
    };
    put("x-compute-time", total.as_millis());
    put("x-compute-characters", n_characters as u128);
    put("x-compute-tokens", encoded.n_tokens.iter().sum::<usize>() as u128);
    put("x-total-time", total.as_millis());
    put("x-tokenization-time", encoded.tokenization_time.as_millis());
    put("x-queue-time", encoded.queue_time.as_millis());
    put("x-inference-time", encoded.inference_time.as_millis());
    headers
}
