//! What `/metrics` shows after real requests. Each test has a process of its own, for a process has one recorder.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use reqwest::Method;
use reqwest::header::HOST;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::helpers::{Answer, Process, client, data_dir, folder_with, send, with_tiny};

struct Server {
    url: String,
    _process: Process,
    _folder: TempDir,
}

impl Server {
    fn start(toml: &str) -> Self {
        let folder = folder_with(toml);
        let data_dir = data_dir().display().to_string();
        let variables = [("GRANARY_MODELS__DATA_DIR", data_dir.as_str()), ("GRANARY_GRAINS__ENABLED", "false")];
        let (process, url) = Process::serve_with(folder.path(), &[], &variables);
        Self { url, _process: process, _folder: folder }
    }

    /// The same with grains.
    fn start_with_grains(toml: &str) -> Self {
        let folder = folder_with(toml);
        let (process, url) = Process::serve(folder.path(), &[]);
        Self { url, _process: process, _folder: folder }
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        send(client().post(format!("{}{path}", self.url)).json(&body)).await
    }

    async fn metrics(&self) -> Metrics {
        let answer = send(client().get(format!("{}/metrics", self.url))).await;
        assert!(answer.content_type().starts_with("text/plain; version=0.0.4"), "{}", answer.content_type());
        let samples =
            answer.text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
        let samples = samples.map(|(series, value)| (series.to_owned(), value.parse().expect("a number"))).collect();
        Metrics { samples, text: answer.text }
    }
}

struct Metrics {
    text: String,
    samples: BTreeMap<String, f64>,
}

impl Metrics {
    /// The value of a series; zero when it is not there.
    fn value(&self, series: &str) -> f64 {
        self.samples.get(series).copied().unwrap_or_default()
    }

    fn assert(&self, expected: &[(&str, f64)]) {
        for (series, value) in expected {
            let found = self.value(series);
            let name = series.split('{').next().expect("a name");
            let others: Vec<_> =
                self.samples.range(name.to_owned()..).take_while(|(it, _)| it.starts_with(name)).collect();
            assert!((found - value).abs() < 1e-9, "{series} is {found}, expected {value}: {others:?}");
        }
    }

    /// The upper bounds of a histogram's buckets.
    fn bounds(&self, name: &str) -> Vec<&str> {
        let start = format!("{name}_bucket{{le=\"");
        self.text.lines().filter_map(|line| line.strip_prefix(&start)?.split('"').next()).collect()
    }

    /// The failures of each kind that TEI counts.
    fn failures(&self) -> BTreeMap<&str, f64> {
        self.samples
            .iter()
            .filter_map(|(series, value)| {
                Some((series.strip_prefix("te_request_failure{err=\"")?.strip_suffix("\"}")?, *value))
            })
            .collect()
    }
}

#[tokio::test]
async fn dashboards_made_for_tei_find_its_names_labels_and_buckets() {
    let server = Server::start(&with_tiny(&["tiny-cls"]));
    for model in ["tiny", "tiny-cls"] {
        server.post(&format!("/models/{model}/load"), json!({})).await.ok();
    }
    // Texts that each load embeds to see that the model still makes its space: batches, but nobody's requests.
    let after_loads = server.metrics().await;
    let canaries = |series: &str| after_loads.value(series);
    server.post("/embed", json!({"inputs": "a b"})).await.ok();
    server.post("/embed", json!({"inputs": ["a", "a b c", "a"]})).await.ok();
    server.post("/models/tiny-cls/embed", json!({"inputs": ["a b"]})).await.ok();
    server.post("/v1/embeddings", json!({"input": "a"})).await.ok();
    server.post("/similarity", json!({"inputs": {"source_sentence": "a", "sentences": ["a", "b"]}})).await.ok();
    let metrics = server.metrics().await;
    // Two special tokens each.
    let (n_texts, n_tokens) = (9.0, 13.0 + 2.0 * 9.0);
    metrics.assert(&[
        ("te_request_count{method=\"single\"}", 2.0),
        ("te_request_count{method=\"batch\"}", 3.0),
        ("te_request_success{method=\"single\"}", 2.0),
        ("te_request_success{method=\"batch\"}", 3.0),
        ("te_embed_count", n_texts),
        ("te_embed_success", n_texts),
        ("te_request_duration_count", 5.0),
        ("te_request_tokenization_duration_count", 5.0),
        ("te_request_queue_duration_count", 5.0),
        ("te_request_inference_duration_count", 5.0),
        ("te_request_input_length_count", n_texts),
        ("te_request_input_length_sum", n_tokens),
        ("te_request_input_length_bucket{le=\"4\"}", 8.0),
        ("te_batch_next_size_sum", n_texts + canaries("te_batch_next_size_sum")),
        ("te_batch_next_tokens_sum", n_tokens + canaries("te_batch_next_tokens_sum")),
        ("te_queue_size", 0.0),
    ]);
    assert!(metrics.samples.contains_key("te_queue_size") && metrics.failures().is_empty(), "{}", metrics.text);
    for name in ["te_request_duration", "te_request_queue_duration", "te_request_inference_duration"] {
        let bounds = metrics.bounds(name);
        assert_eq!((bounds.len(), bounds[0], bounds[35]), (36, "0.000015000000000000002", "+Inf"), "{name}");
    }
    for (name, last) in
        [("te_request_input_length", "524288"), ("te_batch_next_size", "4096"), ("te_batch_next_tokens", "1048576")]
    {
        let bounds = metrics.bounds(name);
        assert_eq!((bounds[0], bounds[1], bounds[bounds.len() - 2]), ("1", "2", last), "{name}");
    }
}

#[tokio::test]
async fn each_failed_request_counts_once_under_teis_reason() {
    let broken = "[[ai.additional_models]]\nname = \"broken\"\npath = \"no-such-folder\"\n";
    let server = Server::start(&format!("[server]\nmax_inputs = 3\nmax_body = \"1KiB\"\n{}{broken}", with_tiny(&[])));
    let long = "long ".repeat(150);
    let mut failures: BTreeMap<&str, f64> = BTreeMap::new();
    for (path, body, reason) in [
        ("/embed", json!({"inputs": []}), "validation"),
        ("/", json!({"inputs": "a", "dimensions": 7}), "validation"),
        ("/embed", json!({"inputs": "a", "model": "nope"}), "validation"),
        ("/embed", json!({"inputs": "a", "expect_space": "0123456789abcdef"}), "validation"),
        ("/similarity", json!({"inputs": {"source_sentence": "a", "sentences": []}}), "validation"),
        ("/embed", json!({"inputs": ["a", "a", "a", "a"]}), "batch_size"),
        ("/v1/embeddings", json!({"input": ["a", "a", "a", "a"]}), "batch_size"),
        ("/embed", json!({"inputs": long, "truncate": false}), "tokenization"),
        ("/embed", json!({"inputs": [4_000_000]}), "tokenization"),
        ("/v1/embeddings", json!({"input": [7, 8]}), "tokenization"),
        ("/models/broken/embed", json!({"inputs": "a"}), "inference"),
        ("/v1/embeddings", json!({"input": "a", "model": "broken"}), "inference"),
    ] {
        let answer = server.post(path, body).await;
        assert!(answer.status.as_u16() >= 400, "{path}: {}", answer.text);
        *failures.entry(reason).or_default() += 1.0;
        assert_eq!(server.metrics().await.failures(), failures, "{path}: {}", answer.text);
    }
    // Not in TEI's numbers: what is no request to embed, or cannot be read as one.
    for (path, body) in [
        ("/embed", json!({"inputs": 7})),
        ("/embed", json!({"inputs": "a".repeat(2000)})),
        ("/tokenize", json!({"inputs": []})),
        ("/decode", json!({"ids": [4_000_000]})),
        ("/rerank", json!({})),
        ("/v1/nope", json!({})),
        ("/models/nope/load", json!({})),
    ] {
        let answer = server.post(path, body).await;
        assert!(answer.status.as_u16() >= 400, "{path}: {}", answer.text);
    }
    let embed = format!("{}/embed", server.url);
    assert_eq!(send(client().get(&embed)).await.status, 405);
    assert_eq!(send(client().get(&embed).header(HOST, "evil.example")).await.status, 421);
    let metrics = server.metrics().await;
    assert_eq!(metrics.failures(), failures);
    metrics.assert(&[("te_request_success{method=\"single\"}", 0.0), ("te_embed_success", 0.0)]);
    let counted = ["single", "batch"].map(|method| metrics.value(&format!("te_request_count{{method=\"{method}\"}}")));
    let n_failed = failures.values().sum::<f64>();
    assert!((counted.iter().sum::<f64>() - n_failed).abs() < 1e-9, "{counted:?}, {n_failed}: {}", metrics.text);
}

#[tokio::test]
async fn granarys_own_metrics_tell_models_and_routes_apart() {
    let broken = "[[ai.additional_models]]\nname = \"broken\"\npath = \"no-such-folder\"\n";
    let server = Server::start(&format!("{}{broken}", with_tiny(&["tiny-cls"])));
    server.post("/embed", json!({"inputs": ["a", "long ".repeat(500)], "model": "TINY"})).await.ok();
    server.post("/models/tiny-cls/embed", json!({"inputs": "a b"})).await.ok();
    server.post("/models/broken/load", json!(null)).await.problem();
    server.post("/models/tiny-cls/unload", json!(null)).await.ok();
    server.post("/embed", json!({"inputs": "a", "model": "a-callers-word"})).await.tei_error();
    server.post("/a-callers-path", json!(null)).await.problem();
    let invented = Method::from_bytes(b"INVENTED").expect("a method");
    send(client().request(invented, format!("{}/models", server.url))).await.problem();
    let metrics = server.metrics().await;
    metrics.assert(&[
        ("granary_texts_total{model=\"tiny\"}", 2.0),
        ("granary_texts_total{model=\"tiny-cls\"}", 1.0),
        ("granary_tokens_total{model=\"tiny\"}", 3.0 + 128.0),
        ("granary_tokens_total{model=\"tiny-cls\"}", 4.0),
        ("granary_truncated_texts_total{model=\"tiny\"}", 1.0),
        ("granary_truncated_texts_total{model=\"tiny-cls\"}", 0.0),
        ("granary_embed_duration_seconds_count{model=\"tiny\"}", 1.0),
        ("granary_embed_duration_seconds_bucket{model=\"tiny\",le=\"+Inf\"}", 1.0),
        ("granary_queue_tokens{model=\"tiny\"}", 0.0),
        ("granary_model_state{model=\"tiny\",state=\"ready\"}", 1.0),
        ("granary_model_state{model=\"tiny\",state=\"unloaded\"}", 0.0),
        ("granary_model_state{model=\"tiny-cls\",state=\"ready\"}", 0.0),
        ("granary_model_state{model=\"tiny-cls\",state=\"unloaded\"}", 1.0),
        ("granary_model_state{model=\"broken\",state=\"failed\"}", 1.0),
        ("granary_model_state{model=\"bert-base-uncased\",state=\"unloaded\"}", 1.0),
        ("granary_model_loads_total{model=\"tiny\",outcome=\"loaded\"}", 1.0),
        ("granary_model_loads_total{model=\"broken\",outcome=\"failed\"}", 1.0),
        ("granary_model_load_duration_seconds_count{model=\"tiny\"}", 1.0),
        ("granary_model_load_duration_seconds_count{model=\"broken\"}", 0.0),
        ("granary_http_requests_total{route=\"/embed\",method=\"POST\",status=\"200\"}", 1.0),
        ("granary_http_requests_total{route=\"/embed\",method=\"POST\",status=\"404\"}", 1.0),
        ("granary_http_requests_total{route=\"/models/{name}/embed\",method=\"POST\",status=\"200\"}", 1.0),
        ("granary_http_requests_total{route=\"unknown\",method=\"POST\",status=\"404\"}", 1.0),
        ("granary_http_requests_total{route=\"/models\",method=\"other\",status=\"405\"}", 1.0),
        ("granary_http_request_duration_seconds_count{route=\"/embed\",method=\"POST\"}", 2.0),
        (concat!("granary_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1.0),
    ]);
    for series in [
        "granary_queue_tokens{model=\"tiny\"}",
        "granary_model_state{model=\"tiny\",state=\"loading\"}",
        "granary_model_ailing{model=\"tiny\"}",
        "granary_model_ailing{model=\"broken\"}",
    ] {
        assert!(metrics.samples.contains_key(series), "{series}:\n{}", metrics.text);
    }
    assert!(!metrics.text.contains("a-callers") && !metrics.text.contains("INVENTED"), "labels are a bounded set");
    for line in metrics.text.lines().filter(|line| line.starts_with("# TYPE ")) {
        let name = line.split(' ').nth(2).expect("a name");
        assert!(metrics.text.contains(&format!("# HELP {name} ")), "{name} has no help");
    }
}

#[tokio::test]
async fn grains_and_searches_are_measured_apart_from_requests_to_embed() {
    let server = Server::start_with_grains(&with_tiny(&[]));
    for id in ["a", "b"] {
        server.post("/grains", json!({"id": id, "text": "wheat"})).await.ok();
    }
    for mode in ["dense", "lexical", "hybrid", "hybrid"] {
        server.post("/grains/search", json!({"query": "wheat", "mode": mode})).await.ok();
    }
    assert_eq!(send(client().delete(format!("{}/grains/a", server.url))).await.status, 204);
    let metrics = server.metrics().await;
    metrics.assert(&[
        ("granary_grain_write_duration_seconds_count{kind=\"write\"}", 2.0),
        ("granary_grain_write_duration_seconds_count{kind=\"delete\"}", 1.0),
        ("granary_search_duration_seconds_count{mode=\"dense\"}", 1.0),
        ("granary_search_duration_seconds_count{mode=\"lexical\"}", 1.0),
        ("granary_search_duration_seconds_count{mode=\"hybrid\"}", 2.0),
        ("granary_embed_duration_seconds_count{model=\"tiny\"}", 0.0),
    ]);
    // A batch is one whoever asks; all else that TEI counts is of requests to embed.
    let counted = metrics.samples.iter().filter(|(it, _)| it.starts_with("te_") && !it.starts_with("te_batch_next_"));
    assert!(counted.clone().all(|(_, value)| *value == 0.0), "{:?}", counted.collect::<Vec<_>>());

    server.post("/embed", json!({"inputs": "wheat"})).await.ok();
    server.metrics().await.assert(&[
        ("granary_embed_duration_seconds_count{model=\"tiny\"}", 1.0),
        ("te_request_count{method=\"single\"}", 1.0),
        ("te_embed_success", 1.0),
    ]);
}

#[tokio::test]
async fn the_process_is_measured_by_the_names_of_prometheus() {
    let server = Server::start(&with_tiny(&[]));
    let metrics = server.metrics().await;
    for (name, kind) in [
        ("process_cpu_seconds_total", "counter"),
        ("process_resident_memory_bytes", "gauge"),
        ("process_open_fds", "gauge"),
        ("process_max_fds", "gauge"),
        ("process_threads", "gauge"),
        ("process_start_time_seconds", "gauge"),
    ] {
        assert!(metrics.text.contains(&format!("# TYPE {name} {kind}\n{name} ")), "{name}: {}", metrics.text);
        assert!(metrics.value(name) > 0.0, "{name}: {}", metrics.text);
    }
    assert!(metrics.value("process_resident_memory_bytes") > f64::from(1 << 20), "{}", metrics.text);
    assert!(metrics.value("process_open_fds") <= metrics.value("process_max_fds"), "{}", metrics.text);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
    // The system rounds when it was started, and so do we.
    assert!((now - metrics.value("process_start_time_seconds")).abs() < 3_600.0, "{now}: {}", metrics.text);
}
