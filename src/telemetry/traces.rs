//! Traces: where the time of a request goes, sent to a collector that speaks OTLP.
//!
//! Off until [`Traces::start`]. Then [`request`] begins the trace of a request, or joins its caller's; [`part`] and
//! [`Trace::record`] show what happens inside it, wherever [`within`] has put it:
//! in the context of OpenTelemetry. A request that is not sampled has no context: nothing finds a trace, and nothing is made for one.
//!
//! A span holds names of the catalog, patterns of routes, counts and codes. It refuses what is a caller's: texts, paths,
//! ids, keys.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::context::FutureExt;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{Span, SpanBuilder, SpanKind, Status, TraceContextExt, TraceId, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider};

use super::collector::Collector;

/// Spans that wait for the collector. More are dropped: a request never waits for one.
const MAX_WAITING_SPANS: usize = 8_192;

/// How long spans gather before they are sent.
const GATHER: Duration = Duration::from_secs(2);

/// How long a collector that does not answer holds up the end of the process.
const LONGEST_FLUSH: Duration = Duration::from_secs(5);

const TRACEPARENT: &str = "traceparent";

/// The tracer of the process; a process has one, however many servers its tests start.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Where traces go, and which.
pub struct TracesSetup {
    /// The collector's address for traces, with its whole path.
    pub address: reqwest::Url,
    /// What the collector knows this server by.
    pub service_name: String,
    /// The share of requests, 0 to 1, that are sampled; one whose caller has decided follows the caller.
    pub share: f64,
}

/// The process sends traces until [`Self::finish`].
pub struct Traces(SdkTracerProvider);

/// Traces cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// Its client.
    #[error("the client of the collector cannot be built")]
    Client(#[from] reqwest::Error),
    /// What turns spans into requests.
    #[error("the exporter of traces cannot be built")]
    Exporter(#[from] ExporterBuildError),
    /// A process has one collector.
    #[error("this process sends traces already")]
    Twice,
}

impl Traces {
    /// Samples requests from here on, and sends their spans in the background.
    ///
    /// # Errors
    /// [`TracesError`].
    ///
    /// # Panics
    /// Outside a tokio runtime, which sends.
    pub fn start(setup: TracesSetup) -> Result<Self, TracesError> {
        let TracesSetup { address, service_name, share } = setup;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_endpoint(address.as_str())
            .with_protocol(Protocol::HttpBinary)
            .with_http_client(Collector::new(address)?)
            .build()?;
        let limits = BatchConfigBuilder::default().with_max_queue_size(MAX_WAITING_SPANS).with_scheduled_delay(GATHER);
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(limits.build()).build();
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(share))))
            .with_resource(Resource::builder().with_service_name(service_name).with_attribute(version).build())
            .build();
        TRACER.set(provider.tracer("granary")).map_err(|_| TracesError::Twice)?;
        Ok(Self(provider))
    }

    /// Sends what is left, for as long as this, and not for long where the collector does not answer.
    pub async fn finish(self, within: Duration) {
        let within = within.min(LONGEST_FLUSH);
        let flushed = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(within)).await;
        if !matches!(flushed, Ok(Ok(()))) {
            tracing::warn!("the last spans of traces did not reach the collector");
        }
    }
}

/// A request whose trace is known: sampled, or with a trace id of its caller's.
pub struct RequestTrace {
    context: Context,
    is_answered: bool,
}

/// Begins the span of a request, as a child of its caller's where `traceparent` names one. A malformed one counts for
/// nothing. `None` when traces are off.
#[must_use]
pub fn request(method: &'static str, route: Option<&str>, traceparent: Option<&str>) -> Option<RequestTrace> {
    let tracer = TRACER.get()?;
    let parent = traceparent.map_or_else(Context::new, |header| {
        let headers = HashMap::from([(TRACEPARENT.to_owned(), header.to_owned())]);
        TraceContextPropagator::new().extract_with_context(&Context::new(), &headers)
    });
    let mut attributes = vec![KeyValue::new("http.request.method", method)];
    let name = match route {
        Some(route) => {
            attributes.push(KeyValue::new("http.route", route.to_owned()));
            format!("{method} {route}")
        }
        None => method.to_owned(),
    };
    let span = SpanBuilder::from_name(name).with_kind(SpanKind::Server).with_attributes(attributes);
    let span = tracer.build_with_context(span, &parent);
    Some(RequestTrace { context: parent.with_span(span), is_answered: false })
}

impl RequestTrace {
    /// The id that logs of every service on the way of the request share.
    #[must_use]
    pub fn id(&self) -> TraceId {
        self.context.span().span_context().trace_id()
    }

    /// What the work of the request is to run [`within`], so that its parts find the trace. `None` when it is not
    /// sampled.
    #[must_use]
    pub fn context(&self) -> Option<Context> {
        is_sampled(&self.context).then(|| self.context.clone())
    }

    /// Notes the status of the answer.
    pub fn answer(&mut self, status: u16) {
        self.is_answered = true;
        let span = self.context.span();
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        if status >= 500 {
            span.set_attribute(KeyValue::new("error.type", status.to_string()));
            span.set_status(Status::error(""));
        }
    }
}

impl Drop for RequestTrace {
    fn drop(&mut self) {
        let span = self.context.span();
        if !self.is_answered {
            span.set_attribute(KeyValue::new("error.type", "caller_left"));
        }
        // Work that goes on without its caller holds the context: the end must not wait for it.
        span.end();
    }
}

/// Runs a future in a context, if there is one.
pub async fn within<F: Future>(context: Option<Context>, future: F) -> F::Output {
    let future = pin!(future);
    match context {
        Some(context) => future.with_context(context).await,
        None => future.await,
    }
}

/// The trace of the request that is worked on.
#[derive(Clone)]
pub struct Trace(Context);

impl Trace {
    /// `None` where there is no request, or its trace is not recorded.
    #[must_use]
    pub fn current() -> Option<Self> {
        TRACER.get()?;
        Context::map_current(is_sampled).then(|| Self(Context::current()))
    }

    /// Shows something that was measured anyway.
    pub fn record(&self, name: &'static str, began: Instant, took: Duration, counts: &[(&'static str, usize)]) {
        let Some(tracer) = TRACER.get() else { return };
        let began = SystemTime::now() - began.elapsed();
        let attributes: Vec<KeyValue> = counts.iter().map(|(key, count)| count_of(key, *count)).collect();
        let span = SpanBuilder::from_name(name).with_start_time(began).with_attributes(attributes);
        tracer.build_with_context(span, &self.0).end_with_timestamp(began + took);
    }
}

/// A part of a request with a span of its own, which ends when this is dropped; it is none where the request is not
/// recorded.
pub struct Part(Option<Context>);

/// Begins a part of the request that is worked on.
#[must_use]
pub fn part(name: &'static str) -> Part {
    let begin = |Trace(parent): Trace| {
        let span = TRACER.get()?.build_with_context(SpanBuilder::from_name(name), &parent);
        Some(parent.with_span(span))
    };
    Part(Trace::current().and_then(begin))
}

impl Part {
    /// Adds a name from a bounded set: of the catalog, of the code.
    #[must_use]
    pub fn named(self, key: &'static str, name: &str) -> Self {
        if let Some(context) = &self.0 {
            context.span().set_attribute(KeyValue::new(key, name.to_owned()));
        }
        self
    }

    /// Adds a count.
    #[must_use]
    pub fn counted(self, key: &'static str, count: usize) -> Self {
        if let Some(context) = &self.0 {
            context.span().set_attribute(count_of(key, count));
        }
        self
    }

    /// Runs a future as this part. Its own parts are shown below it, and it ends with it, dropped or done.
    pub async fn around<F: Future>(self, future: F) -> F::Output {
        within(self.0.clone(), future).await
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(context) = &self.0 {
            context.span().end();
        }
    }
}

fn is_sampled(context: &Context) -> bool {
    context.span().span_context().is_sampled()
}

fn count_of(key: &'static str, count: usize) -> KeyValue {
    KeyValue::new(key, i64::try_from(count).unwrap_or(i64::MAX))
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Trace").field(&self.0.span().span_context().trace_id()).finish()
    }
}
