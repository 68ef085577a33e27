//! A collector of traces in this process: it takes what OTLP sends over HTTP, and can be made not to.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use granary::domain::hex_digits;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use parking_lot::Mutex;
use prost::Message;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use tokio::task::JoinHandle;

/// How a collector behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// It takes what comes.
    #[default]
    Takes,
    /// It answers 503.
    Refuses,
    /// It does not answer.
    Hangs,
}

/// A span as the collector got it.
#[derive(Clone, Debug)]
pub struct SeenSpan {
    pub name: String,
    pub trace: String,
    pub id: String,
    /// Empty for the first span of a trace.
    pub parent: String,
    /// Its attributes, whatever their types, as text.
    pub attributes: BTreeMap<String, String>,
    /// The attributes of the server that sent it.
    pub resource: BTreeMap<String, String>,
    /// Everything in it, as text.
    pub whole: String,
    pub duration_ns: i128,
}

#[derive(Default)]
struct Shared {
    mood: Mutex<Mood>,
    spans: Mutex<Vec<SeenSpan>>,
    headers: Mutex<Vec<HeaderMap>>,
}

/// A running collector; it ends with the test.
pub struct StandInCollector {
    pub url: String,
    shared: Arc<Shared>,
    served: JoinHandle<()>,
}

impl StandInCollector {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let shared = Arc::new(Shared::default());
        let router = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&shared));
        #[allow(clippy::disallowed_methods, reason = "the handle is this server's owner")]
        let served = tokio::spawn(async move { axum::serve(listener, router).await.expect("served") });
        Self { url, shared, served }
    }

    pub fn becomes(&self, mood: Mood) {
        *self.shared.mood.lock() = mood;
    }

    /// What was taken so far.
    pub fn spans(&self) -> Vec<SeenSpan> {
        self.shared.spans.lock().clone()
    }

    /// The headers of each request that was taken so far.
    pub fn headers(&self) -> Vec<HeaderMap> {
        self.shared.headers.lock().clone()
    }
}

impl Drop for StandInCollector {
    fn drop(&mut self) {
        self.served.abort();
    }
}

async fn take(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> (StatusCode, Vec<u8>) {
    let mood = *shared.mood.lock();
    match mood {
        Mood::Takes => {}
        Mood::Refuses => return (StatusCode::SERVICE_UNAVAILABLE, Vec::new()),
        Mood::Hangs => std::future::pending().await,
    }
    assert_eq!(headers[CONTENT_TYPE], "application/x-protobuf");
    shared.headers.lock().push(headers);
    let request = ExportTraceServiceRequest::decode(body).expect("a request of OTLP");
    for spans in request.resource_spans {
        let resource = texts(&spans.resource.expect("who sends it").attributes);
        let seen = spans.scope_spans.into_iter().flat_map(|spans| spans.spans).map(|span| seen(&span, &resource));
        shared.spans.lock().extend(seen);
    }
    (StatusCode::OK, ExportTraceServiceResponse::default().encode_to_vec())
}

fn seen(span: &Span, resource: &BTreeMap<String, String>) -> SeenSpan {
    SeenSpan {
        name: span.name.clone(),
        trace: hex_digits(&span.trace_id),
        id: hex_digits(&span.span_id),
        parent: hex_digits(&span.parent_span_id),
        attributes: texts(&span.attributes),
        resource: resource.clone(),
        whole: format!("{span:?}"),
        duration_ns: i128::from(span.end_time_unix_nano) - i128::from(span.start_time_unix_nano),
    }
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |attribute: &KeyValue| match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|attribute| (attribute.key.clone(), text(attribute))).collect()
}
