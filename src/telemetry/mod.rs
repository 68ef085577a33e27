//! Logs, metrics and traces: how events reach standard error, in `stderr.rs`; the name, labels and buckets of every
//! metric, but those of the process, in `process.rs`; in [`traces`], how spans reach a collector.
//!
//! Names, labels and buckets of `te_*` are those of text-embeddings-inference 1.9 (`router/src/prometheus.rs`,
//! `router/src/lib.rs`, `core/src/infer.rs`, `core/src/queue.rs`), so that dashboards made for it work. Ours are
//! `granary_*`. Labels take a bounded set of values: `model` is a name of the catalog, never a caller's word, and
//! `route` a route's pattern.

mod causes;
mod collector;
mod process;
mod stderr;
pub mod traces;

use std::backtrace::BacktraceStatus;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use metrics::{describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use parking_lot::Mutex;
use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

pub use self::causes::with_causes;
pub use self::process::process_metrics;
pub use self::stderr::{flush_log, print_last};

/// Declares a metric's name with its help, which is its rustdoc too.
macro_rules! metric_names {
    ($($describe:ident $constant:ident = $name:literal: $help:literal;)*) => {
        $(#[doc = $help] pub const $constant: &str = $name;)*

        fn describe_metrics() {
            $($describe!($constant, $help);)*
        }

        #[cfg(test)]
        const NAMES: &[&str] = &[$($name),*];
    };
}

metric_names! {
    describe_counter TE_REQUEST_COUNT = "te_request_count": "Requests to embed of which the body could be read, by `method`: `single` or `batch`.";
    describe_counter TE_REQUEST_SUCCESS = "te_request_success": "Requests to embed whose texts were embedded, by `method`.";
    describe_counter TE_REQUEST_FAILURE = "te_request_failure": "Requests of `te_request_count` that were refused or failed, by the reason in `err`.";
    describe_counter TE_EMBED_COUNT = "te_embed_count": "Texts that were to be embedded.";
    describe_counter TE_EMBED_SUCCESS = "te_embed_success": "Texts that were embedded.";
    describe_histogram TE_REQUEST_DURATION = "te_request_duration": "Seconds a successful request took.";
    describe_histogram TE_REQUEST_TOKENIZATION_DURATION = "te_request_tokenization_duration": "Seconds of tokenization, the mean over a request's texts.";
    describe_histogram TE_REQUEST_QUEUE_DURATION = "te_request_queue_duration": "Seconds in the queue, the mean over a request's texts.";
    describe_histogram TE_REQUEST_INFERENCE_DURATION = "te_request_inference_duration": "Seconds of inference, the mean over a request's texts.";
    describe_histogram TE_REQUEST_INPUT_LENGTH = "te_request_input_length": "Tokens of a text, after truncation.";
    describe_histogram TE_BATCH_NEXT_SIZE = "te_batch_next_size": "Texts in a batch when it was formed.";
    describe_histogram TE_BATCH_NEXT_TOKENS = "te_batch_next_tokens": "Tokens in a batch when it was formed, without padding.";
    describe_gauge TE_QUEUE_SIZE = "te_queue_size": "Texts that wait in the queue, of all models.";

    describe_counter TEXTS = "granary_texts_total": "Texts embedded, by `model`.";
    describe_counter TOKENS = "granary_tokens_total": "Tokens embedded, without padding, by `model`.";
    describe_counter TRUNCATED_TEXTS = "granary_truncated_texts_total": "Texts that were cut to what the model takes, by `model`.";
    describe_histogram EMBED_DURATION = "granary_embed_duration_seconds": "Seconds of a request's embedding, the wait for the model included, by `model`.";
    describe_gauge QUEUE_TOKENS = "granary_queue_tokens": "Tokens that wait for a model, by `model`.";
    describe_counter CACHE_HITS = "granary_embedding_cache_hits_total": "Texts whose vector was in the embedding cache, by `model`.";
    describe_counter CACHE_MISSES = "granary_embedding_cache_misses_total": "Texts whose vector was not in the embedding cache, by `model`.";
    describe_gauge CACHE_BYTES = "granary_embedding_cache_bytes": "Bytes in the embedding cache.";
    describe_counter MODEL_LOADS = "granary_model_loads_total": "Loads that ended, by `model` and `outcome`: `loaded` or `failed`.";
    describe_histogram MODEL_LOAD_DURATION = "granary_model_load_duration_seconds": "Seconds a successful load took, by `model`.";
    describe_counter MODEL_EVICTIONS = "granary_model_evictions_total": "Models unloaded although nobody asked for it, by `model` and `reason`: `budget` or `idle`.";
    describe_gauge MODEL_MEMORY = "granary_model_memory_bytes": "Bytes a `model` takes, as measured at its last load.";
    describe_gauge MEMORY_USED = "granary_models_memory_used_bytes": "Resident bytes of the process over those it has without models, less what indexes, anchors and the embedding cache take, and bodies of requests and answers unless `models.memory_budget` is `auto`.";
    describe_gauge MEMORY_BUDGET = "granary_models_memory_budget_bytes": "What models may take together (`models.memory_budget`); with `auto` less what indexes, anchors and the embedding cache take.";
    describe_gauge MODEL_STATE = "granary_model_state": "1 for the `state` a `model` is in, 0 for the others.";
    describe_gauge MODEL_AILING = "granary_model_ailing": "1 for a `model` that is loaded and does not embed as it did then, by the last look at it, 0 for the others.";
    describe_gauge GRAINS = "granary_grains": "Grains that each `space` serves.";
    describe_histogram GRAIN_WRITE_DURATION = "granary_grain_write_duration_seconds": "Seconds from the gate to the commit, by `kind`: `write` or `delete`.";
    describe_histogram SEARCH_DURATION = "granary_search_duration_seconds": "Seconds of a search, by `mode`.";
    describe_gauge INDEX_BYTES = "granary_index_bytes": "Bytes that the index of each `space` takes in `memory` and on `disk`, by `where`.";
    describe_gauge ANCHORS = "granary_anchors": "Grains by which the scores of spaces are compared, by `state`: `sampled`, or `complete`, with a vector in every live space.";
    describe_counter HTTP_REQUESTS = "granary_http_requests_total": "Answers by `route` (the pattern), `method` and `status`.";
    describe_histogram HTTP_REQUEST_DURATION = "granary_http_request_duration_seconds": "Seconds to an answer's head, by `route` and `method`.";
    describe_gauge TLS_CERTIFICATE_EXPIRES = "granary_tls_certificate_expires_timestamp_seconds": "When the certificate that is served expires, in seconds since 1970.";
    describe_counter LOG_LINES_LOST = "granary_log_lines_lost_total": "Lines of the log that standard error did not take.";
    describe_gauge BUILD_INFO = "granary_build_info": "1, with the `version` of this server.";
}

/// Values of the label `method` of [`TE_REQUEST_COUNT`] and [`TE_REQUEST_SUCCESS`].
pub mod method {
    /// `inputs` is one text.
    pub const SINGLE: &str = "single";
    /// `inputs` is a list, of one text too.
    pub const BATCH: &str = "batch";
}

/// Values of the label `err` of [`TE_REQUEST_FAILURE`], as text-embeddings-inference uses them. Each failed request
/// counts once.
pub mod failure {
    /// The request makes no sense: an empty list, dimensions that are not offered.
    pub const VALIDATION: &str = "validation";
    /// Too many inputs.
    pub const BATCH_SIZE: &str = "batch_size";
    /// A text could not be tokenized, or was too long.
    pub const TOKENIZATION: &str = "tokenization";
    /// There was no room for the request.
    pub const OVERLOADED: &str = "overloaded";
    /// The model failed, or could not be loaded.
    pub const INFERENCE: &str = "inference";
}

/// Values of the label `reason` of [`MODEL_EVICTIONS`].
pub mod eviction {
    /// Another model needed its memory.
    pub const BUDGET: &str = "budget";
    /// Nobody used it for `models.idle_unload`.
    pub const IDLE: &str = "idle";
}

/// The recorder of the process; a process has one, however many servers its tests start.
static INSTALLED: Mutex<Option<PrometheusHandle>> = Mutex::new(None);

/// Metrics cannot be recorded.
#[derive(Debug, thiserror::Error)]
#[error("the metrics recorder cannot be installed")]
pub struct MetricsError(#[from] BuildError);

/// Installs the process's metrics recorder at the first call, and returns a handle to it at every one.
///
/// The owner of the process must call [`PrometheusHandle::run_upkeep`] every few seconds: between two scrapes the
/// recorder keeps every observation of a histogram in memory.
///
/// # Errors
/// When another recorder was installed before.
pub fn install_metrics() -> Result<PrometheusHandle, MetricsError> {
    let mut installed = INSTALLED.lock();
    if let Some(handle) = &*installed {
        return Ok(handle.clone());
    }
    let handle = recorder_builder()?.install_recorder()?;
    describe_metrics();
    metrics::counter!(LOG_LINES_LOST).increment(0);
    metrics::gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    *installed = Some(handle.clone());
    Ok(handle)
}

fn recorder_builder() -> Result<PrometheusBuilder, BuildError> {
    let full = |name: &str| Matcher::Full(name.to_owned());
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("duration".to_owned()), &te_duration_buckets())?
        // TEI leaves out lengths its only model cannot have; with several models the whole sequence serves them all.
        .set_buckets_for_metric(full(TE_REQUEST_INPUT_LENGTH), &powers_of_two(20))?
        .set_buckets_for_metric(full(TE_BATCH_NEXT_SIZE), &powers_of_two(13))?
        .set_buckets_for_metric(full(TE_BATCH_NEXT_TOKENS), &powers_of_two(21))?
        .set_buckets_for_metric(full(MODEL_LOAD_DURATION), &LOAD_SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("duration_seconds".to_owned()), &ANSWER_SECONDS)
}

const ANSWER_SECONDS: [f64; 14] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];
const LOAD_SECONDS: [f64; 10] = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0];

/// 35 steps of 1.5 from 15 µs to about 14.6 s. Multiplied one after the other as TEI does it: the last bits show up in
/// the label `le`, and sums over both servers need them equal.
fn te_duration_buckets() -> Vec<f64> {
    std::iter::successors(Some(0.000_01 * 1.5), |bound| Some(bound * 1.5)).take(35).collect()
}

fn powers_of_two(n_buckets: i32) -> Vec<f64> {
    (0..n_buckets).map(|exponent| 2.0_f64.powi(exponent)).collect()
}

/// Nothing can be logged.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Nobody would write it.
    #[error("the thread that writes the log cannot be started")]
    Thread(#[from] std::io::Error),
    /// The process logs already.
    #[error("the process logs already")]
    Installed(#[from] TryInitError),
}

/// Logs lines for people to standard error, in colour where it is a terminal and `NO_COLOR` is not set.
///
/// # Errors
/// When the process logs already, or can have no thread that writes the log.
pub fn log_text(filter: EnvFilter) -> Result<(), LogError> {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr::start()?)
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal() && !no_color)
        .finish();
    subscriber.try_init()?;
    log_panics();
    Ok(())
}

/// Logs one JSON object a line to standard error. `spans` lists the spans around an event, outermost first, with their
/// fields: a request's id is in the first.
///
/// # Errors
/// When the process logs already, or can have no thread that writes the log.
pub fn log_json(filter: EnvFilter) -> Result<(), LogError> {
    json_subscriber(filter, stderr::start()?).try_init()?;
    log_panics();
    Ok(())
}

fn json_subscriber<W>(filter: EnvFilter, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(true)
        .with_env_filter(filter)
        .with_writer(writer)
        .log_internal_errors(false)
        .finish()
}

/// A panic is logged like any event: in the format that was asked for, with the id of the request it belongs to.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("a value that is not text");
        let location = panic.location().map(ToString::to_string);
        let backtrace = std::backtrace::Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
        tracing::error!(location, backtrace, "a bug: {message}");
        // Where this ends the process, nothing is written any more.
        flush_log();
    }));
}

/// How often [`tell_of_standstills`] looks.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// Shorter delays happen on a machine that is merely busy.
const STANDSTILL: Duration = Duration::from_secs(2);

/// Warns, for ever, of each time in which nothing ran: the process was stopped by a signal or frozen by its container, or
/// something blocked it. What waited is answered late, and the log would not say why.
pub async fn tell_of_standstills() {
    loop {
        let asleep = Instant::now();
        tokio::time::sleep(BETWEEN_LOOKS).await;
        let stood = asleep.elapsed().saturating_sub(BETWEEN_LOOKS);
        if stood >= STANDSTILL {
            tracing::warn!(seconds = stood.as_secs_f64(), "the process stood still; what waited is answered late");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installing_twice_gives_the_same_recorder() {
        let first = install_metrics().expect("a recorder");
        let second = install_metrics().expect("the same recorder");
        metrics::counter!(TEXTS, "model" => "installed-twice").increment(3);
        for handle in [first, second] {
            assert!(handle.render().contains("granary_texts_total{model=\"installed-twice\"} 3"));
        }
    }

    #[test]
    fn the_buckets_are_those_of_tei() {
        let recorder = recorder_builder().expect("valid buckets").build_recorder();
        metrics::with_local_recorder(&recorder, || {
            for name in NAMES {
                metrics::histogram!(*name).record(1.0);
            }
        });
        let text = recorder.handle().render();
        let bounds = |name: &str| -> Vec<&str> {
            let start = format!("{name}_bucket{{le=\"");
            text.lines().filter_map(|line| line.strip_prefix(&start)?.split('"').next()).collect()
        };
        for duration in [TE_REQUEST_DURATION, TE_REQUEST_QUEUE_DURATION, TE_REQUEST_INFERENCE_DURATION] {
            let bounds = bounds(duration);
            assert_eq!(bounds.len(), 36, "{bounds:?}");
            assert_eq!(bounds[..2], ["0.000015000000000000002", "0.000022500000000000005"]);
        }
        let last = |name| bounds(name).into_iter().rev().nth(1);
        assert_eq!(last(TE_REQUEST_INPUT_LENGTH), Some("524288"));
        assert_eq!(last(TE_BATCH_NEXT_SIZE), Some("4096"));
        assert_eq!(last(TE_BATCH_NEXT_TOKENS), Some("1048576"));
        assert_eq!(last(EMBED_DURATION), Some("30"));
        assert_eq!(last(MODEL_LOAD_DURATION), Some("300"));
    }

    #[test]
    fn a_json_line_carries_the_fields_of_every_span_around_it() {
        let log = tempfile::NamedTempFile::new().expect("a temporary file");
        let subscriber = json_subscriber(EnvFilter::new("info"), log.reopen().expect("the same file"));
        tracing::subscriber::with_default(subscriber, || {
            let _request = tracing::info_span!("request", id = "r-1").entered();
            let _embed = tracing::info_span!("embed", model = "m").entered();
            tracing::info!(n_texts = 2, "embedded");
            tracing::debug!("not logged");
        });
        let text = fs_err::read_to_string(log.path()).expect("the log");
        let line: serde_json::Value = serde_json::from_str(&text).expect("one line of JSON");
        assert_eq!((&line["message"], &line["n_texts"]), (&"embedded".into(), &2.into()));
        assert_eq!(line["spans"][0]["id"], "r-1");
        assert_eq!(line["spans"][1]["model"], "m");
    }

    #[test]
    fn every_histogram_has_buckets_and_every_metric_help() {
        let recorder = recorder_builder().expect("valid buckets").build_recorder();
        metrics::with_local_recorder(&recorder, || {
            describe_metrics();
            for name in NAMES {
                metrics::histogram!(*name).record(1.0);
            }
        });
        let text = recorder.handle().render();
        for name in NAMES {
            assert!(text.contains(&format!("# HELP {name} ")), "{name}");
            if name.contains("duration") {
                assert!(text.contains(&format!("# TYPE {name} histogram")), "{name} would be a summary");
            }
        }
    }
}
