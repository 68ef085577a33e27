//! Traces of requests, as a collector gets them.

use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::helpers::{
    Answer, Caller, Mood, Process, SeenSpan, StandInCollector, data_dir, folder_with, key_entry, secret, send,
    with_keys, with_tiny,
};

/// The span of the caller.
const CALLER: &str = "00f067aa0ba902b7";

/// Which decision a caller has made.
#[derive(Clone, Copy)]
enum Flags {
    Sampled,
    NotSampled,
}

/// The trace id of a caller's `n`th trace.
fn trace_id(n: u8) -> String {
    format!("4bf92f3577b34da6a3ce929d0e0e47{n:02x}")
}

fn traceparent(n: u8, flags: Flags) -> String {
    let flags = match flags {
        Flags::Sampled => "01",
        Flags::NotSampled => "00",
    };
    format!("00-{}-{CALLER}-{flags}", trace_id(n))
}

fn telemetry(collector: &str, more: &str) -> String {
    format!("[telemetry]\nlog_format = \"json\"\notlp_endpoint = \"{collector}\"\n{more}\n")
}

async fn ask(app: &Caller, parent: &str, method: Method, path: &str, body: Value) -> Answer {
    let request = app.request(method, path).header("traceparent", parent);
    send(if body.is_null() { request } else { request.json(&body) }).await
}

async fn embed(app: &Caller, parent: &str) -> Answer {
    ask(app, parent, Method::POST, "/embed", json!({"inputs": "a text"})).await
}

fn of_trace<'a>(spans: &'a [SeenSpan], trace: &str) -> Vec<&'a SeenSpan> {
    spans.iter().filter(|span| span.trace == trace).collect()
}

/// Names of the spans below one, with what they hold in parentheses, in alphabetical order.
fn tree(spans: &[&SeenSpan], parent: &str) -> Vec<String> {
    let below = spans.iter().filter(|span| span.parent == parent);
    let mut names: Vec<String> = below
        .map(|span| match tree(spans, &span.id).join(" ") {
            within if within.is_empty() => span.name.clone(),
            within => format!("{}({within})", span.name),
        })
        .collect();
    names.sort();
    names
}

/// The ids of traces that the lines of requests name, by the requests' ids.
fn trace_of_request(log: &str, request: &str) -> Option<String> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut of_request = lines.filter(|line| line["spans"][0]["id"] == request);
    let line = of_request.next().unwrap_or_else(|| panic!("no line of {request}:\n{log}"));
    line["spans"][0]["trace_id"].as_str().map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_request_does_is_shown_below_its_caller() {
    let collector = StandInCollector::start().await;
    let keys = with_keys(&[key_entry("name-of-key", &["admin"], "")]);
    let folder = folder_with(&format!("{}{keys}{}", telemetry(&collector.url, ""), with_tiny(&[])));
    let (process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url).with_key(&secret("name-of-key"));

    let embedded = embed(&app, &traceparent(1, Flags::Sampled)).await;
    embedded.ok();
    let grain = json!({"id": "secret-id", "text": "secret text", "source": "secret source"});
    ask(&app, &traceparent(2, Flags::Sampled), Method::POST, "/grains", grain).await.ok();
    let query = json!({"query": "secret text", "filter": {"source": "secret source"}});
    ask(&app, &traceparent(3, Flags::Sampled), Method::POST, "/grains/search", query).await.ok();
    ask(&app, &traceparent(4, Flags::Sampled), Method::GET, "/grains/secret-id", Value::Null).await.ok();
    let missing = ask(&app, &traceparent(5, Flags::Sampled), Method::GET, "/secret/path", Value::Null).await;
    assert_eq!(missing.status, 404);
    app.get("/health/ready").await.ok();
    for quiet in ["/", "/ping", "/metrics"] {
        assert_eq!(app.get(quiet).await.status, 200, "{quiet}");
    }
    let log = process.stop();

    let spans = collector.spans();
    let of = |n: u8| of_trace(&spans, &trace_id(n));
    assert_eq!(tree(&of(1), CALLER), ["POST /embed(embed(infer queue tokenize))"]);
    assert_eq!(tree(&of(2), CALLER), ["POST /grains(embed(infer queue tokenize) store store)"]);
    // All grains have the words, so that each word is looked for in what was found. How many may be found is known.
    assert_eq!(
        tree(&of(3), CALLER),
        ["POST /grains/search(search(embed(infer queue tokenize) nearest(store) store store store))"]
    );
    assert_eq!(tree(&of(4), CALLER), ["GET /grains/{id}(store)"]);
    assert_eq!(tree(&of(5), CALLER), ["GET"]);
    for span in &spans {
        let is_routine = ["health", "metrics", "ping"].iter().any(|word| span.name.contains(word));
        assert!(!is_routine && span.name != "GET /", "{span:?}");
        assert!(!span.whole.contains("secret") && !span.whole.contains("name-of-key"), "{span:?}");
        assert_eq!(span.resource["service.name"], "granary");
        assert!(span.duration_ns >= 0, "{span:?}");
    }
    let named = |n: u8, name: &str| of(n).into_iter().find(|span| span.name == name).expect(name).clone();
    let request = named(1, "POST /embed").attributes;
    assert_eq!((&*request["http.request.method"], &*request["http.route"]), ("POST", "/embed"));
    assert_eq!(request["http.response.status_code"], "200");
    assert_eq!(named(5, "GET").attributes["http.response.status_code"], "404");
    assert_eq!(named(1, "embed").attributes["granary.model"], "tiny");
    assert_eq!(named(1, "infer").attributes["granary.texts"], "1");
    assert_eq!(named(3, "search").attributes["granary.mode"], "hybrid");
    assert_eq!(trace_of_request(&log, embedded.header("x-request-id")), Some(trace_id(1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_share_a_batch_each_have_their_wait_and_their_run() {
    let collector = StandInCollector::start().await;
    let folder = folder_with(&format!("{}{}", telemetry(&collector.url, ""), with_tiny(&[])));
    let (process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url);
    embed(&app, &traceparent(0, Flags::Sampled)).await.ok();
    let parents: Vec<String> = (1..=16).map(|n| traceparent(n, Flags::Sampled)).collect();
    for answer in join_all(parents.iter().map(|parent| embed(&app, parent))).await {
        answer.ok();
    }
    process.stop();
    let spans = collector.spans();
    for n in 1..=16 {
        assert_eq!(tree(&of_trace(&spans, &trace_id(n)), CALLER), ["POST /embed(embed(infer queue tokenize))"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_parent_counts_for_nothing() {
    let collector = StandInCollector::start().await;
    let folder = folder_with(&format!("[telemetry]\nlog_format = \"json\"\n{}", with_tiny(&[])));
    // The standard variables do as well as the configuration.
    let data_dir = data_dir().display().to_string();
    let variables = [
        ("GRANARY_MODELS__DATA_DIR", data_dir.as_str()),
        ("GRANARY_GRAINS__DATABASE_URL", "sqlite:granary.db"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str()),
        ("OTEL_SERVICE_NAME", "of the variable"),
    ];
    let (process, url) = Process::serve_with(folder.path(), &[], &variables);
    let app = Caller::of(url);
    let mut ids = Vec::new();
    for parent in [
        "",
        "nonsense",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
    ] {
        let answer = embed(&app, parent).await;
        answer.ok();
        ids.push(answer.header("x-request-id").to_owned());
    }
    let two = [traceparent(1, Flags::Sampled), traceparent(2, Flags::Sampled)];
    let request =
        two.iter().fold(app.request(Method::POST, "/embed"), |request, two| request.header("traceparent", two));
    let answer = send(request.json(&json!({"inputs": "a text"}))).await;
    answer.ok();
    ids.push(answer.header("x-request-id").to_owned());
    let log = process.stop();
    let spans = collector.spans();
    for id in ids {
        let trace = trace_of_request(&log, &id).expect("a trace of its own");
        assert!(!trace.starts_with("4bf92f"), "{trace}");
        assert_eq!(tree(&of_trace(&spans, &trace), ""), ["POST /embed(embed(infer queue tokenize))"], "{id}");
    }
    assert!(spans.iter().all(|span| span.resource["service.name"] == "of the variable"), "{spans:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traces_bring_the_headers_of_the_variable_and_use_no_proxy() {
    let collector = StandInCollector::start().await;
    let folder = folder_with(&format!("{}{}", telemetry(&collector.url, ""), with_tiny(&[])));
    let data_dir = data_dir().display().to_string();
    // Nobody listens on the first port.
    let proxies = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"].map(|name| (name, "http://127.0.0.1:1"));
    let variables = [
        ("GRANARY_MODELS__DATA_DIR", data_dir.as_str()),
        ("GRANARY_GRAINS__DATABASE_URL", "sqlite:granary.db"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=farm,authorization=Bearer%20of-the-collector"),
    ];
    let (process, url) = Process::serve_with(folder.path(), &[], &[&variables[..], &proxies[..]].concat());
    embed(&Caller::of(url), &traceparent(1, Flags::Sampled)).await.ok();
    process.stop();
    assert!(!of_trace(&collector.spans(), &trace_id(1)).is_empty(), "{:?}", collector.spans());
    for headers in collector.headers() {
        assert_eq!(headers["x-tenant"], "farm");
        assert_eq!(headers["authorization"], "Bearer of-the-collector");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_sampled_is_not_sent() {
    let collector = StandInCollector::start().await;
    let folder = folder_with(&format!("{}{}", telemetry(&collector.url, "trace_share = 0.0"), with_tiny(&[])));
    let (process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url);
    let alone = app.post("/embed", json!({"inputs": "a text"})).await;
    alone.ok();
    let unsampled = embed(&app, &traceparent(1, Flags::NotSampled)).await;
    unsampled.ok();
    embed(&app, &traceparent(2, Flags::Sampled)).await.ok();
    let log = process.stop();
    let spans = collector.spans();
    assert!(!spans.is_empty() && spans.iter().all(|span| span.trace == trace_id(2)), "{spans:?}");
    // Logs can be joined with those of the caller all the same.
    assert_eq!(trace_of_request(&log, unsampled.header("x-request-id")), Some(trace_id(1)));
    assert!(trace_of_request(&log, alone.header("x-request-id")).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_is_told_of_once_and_keeps_nobody_waiting() {
    let collector = StandInCollector::start().await;
    collector.becomes(Mood::Refuses);
    let folder = folder_with(&format!("{}{}", telemetry(&collector.url, ""), with_tiny(&[])));
    let (mut process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url);
    let refused = "the collector does not take traces";
    embed(&app, &traceparent(1, Flags::Sampled)).await.ok();
    process.wait_for(refused);
    collector.becomes(Mood::Takes);
    embed(&app, &traceparent(2, Flags::Sampled)).await.ok();
    process.wait_for("the collector takes traces again");

    collector.becomes(Mood::Refuses);
    for n in 3..=40 {
        embed(&app, &traceparent(n, Flags::Sampled)).await.ok();
    }
    let log = process.stop();
    assert_eq!(log.matches(refused).count(), 2, "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_not_there_fails_no_request() {
    // Nobody listens on the first port.
    let folder = folder_with(&format!("{}{}", telemetry("http://127.0.0.1:1", ""), with_tiny(&[])));
    let (process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url);
    for n in 1..=20 {
        embed(&app, &traceparent(n, Flags::Sampled)).await.ok();
    }
    let log = process.stop();
    assert_eq!(log.matches("the collector does not take traces").count(), 1, "{log}");
    assert!(log.contains("Connection refused"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_does_not_answer_does_not_hold_up_the_end() {
    let collector = StandInCollector::start().await;
    collector.becomes(Mood::Hangs);
    let folder = folder_with(&format!("{}{}", telemetry(&collector.url, ""), with_tiny(&[])));
    let (process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url);
    for n in 1..=20 {
        embed(&app, &traceparent(n, Flags::Sampled)).await.ok();
    }
    // Exit code 0, within the patience for a process.
    let log = process.stop();
    assert!(log.contains("the last spans of traces did not reach the collector"), "{log}");
}
