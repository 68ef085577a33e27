//! One line of JSON for each request, with all that a collector asks of it.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;

use reqwest::{Method, RequestBuilder};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::helpers::{Caller, MINILM, Process, folder_with, key_entry, secret, send, until, with_keys, with_tiny};

/// The lines that carry the id of a request.
fn lines_of_requests(log: &str) -> BTreeMap<String, Vec<Value>> {
    let mut lines: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
        if let Some(id) = line["spans"][0]["id"].as_str() {
            lines.entry(id.to_owned()).or_default().push(line);
        }
    }
    lines
}

#[tokio::test]
async fn each_request_has_exactly_one_line_with_all_that_is_known_of_it() {
    let toml = format!(
        "[telemetry]\nlog_format = \"json\"\n{}{}",
        with_keys(&[key_entry("ops", &["admin"], ""), key_entry("embedder", &["embed"], "")]),
        with_tiny(&[])
    );
    let folder = folder_with(&toml);
    let (process, url) = Process::serve(folder.path(), &[]);
    let nobody = Caller::of(url);
    let (ops, embedder) = (nobody.with_key(&secret("ops")), nobody.with_key(&secret("embedder")));
    ops.post("/models/tiny/load", json!({})).await.ok();

    let embed = |app: &Caller, body: Value| app.request(Method::POST, "/embed").json(&body);
    let cases: Vec<(RequestBuilder, &str, &str, u16, Option<&str>)> = vec![
        (embed(&embedder, json!({"inputs": "a"})), "POST", "/embed", 200, Some("embedder")),
        (embed(&embedder, json!({"inputs": []})), "POST", "/embed", 400, Some("embedder")),
        (embed(&nobody, json!({"inputs": "a"})), "POST", "/embed", 401, None),
        (embedder.request(Method::GET, "/models"), "GET", "/models", 403, Some("embedder")),
        (ops.request(Method::GET, "/models?a=b"), "GET", "/models", 200, Some("ops")),
        (ops.request(Method::GET, "/nothing"), "GET", "/nothing", 404, Some("ops")),
        (ops.request(Method::GET, "/embed"), "GET", "/embed", 405, Some("ops")),
        (ops.request(Method::DELETE, "/grains/a%0Ab"), "DELETE", "/grains/a%0Ab", 404, Some("ops")),
    ];
    let mut expected = Vec::new();
    for (n, (request, method, path, status, key)) in cases.into_iter().enumerate() {
        let id = format!("case-{n}");
        let answer = send(request.header("x-request-id", &id)).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-request-id")), (status, id.as_str()), "{}", answer.text);
        expected.push((id, method, path, status, key));
    }
    let log = process.stop();
    let lines = lines_of_requests(&log);
    for (id, method, path, status, key) in expected {
        let [line] = lines.get(&id).map_or(&[][..], Vec::as_slice) else { panic!("not one line of {id}:\n{log}") };
        let span = &line["spans"][0];
        assert_eq!((&span["method"], &line["status"]), (&json!(method), &json!(status)), "{line}");
        assert_eq!(span["path"], path, "{line}");
        assert_eq!(span.get("key").and_then(Value::as_str), key, "{line}");
        assert_eq!(span.get("trace_id"), None, "{line}");
        assert_eq!(line.get("code").is_some(), status >= 400, "{line}");
        assert!(line["elapsed_ms"].as_f64().is_some_and(|elapsed| elapsed > 0.0), "{line}");
        assert!(line["timestamp"].is_string() && line["level"] == "INFO" && line["message"] == "answered", "{line}");
    }
    assert_eq!(log.matches("\"answered\"").count(), 9, "{log}");
    assert!(log.contains("\"code\":\"empty_input\"") && log.contains("\"code\":\"unauthorized\""), "{log}");
}

#[tokio::test]
async fn a_caller_who_leaves_has_a_line_too() {
    let folder = folder_with("[telemetry]\nlog_format = \"json\"\n");
    let (mut process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url.clone());
    app.post(&format!("/models/{MINILM}/load"), json!({})).await.ok();

    let text = "so much that this is at work for seconds ".repeat(30);
    let body = json!({"inputs": vec![text; 500]}).to_string();
    let mut leaver = TcpStream::connect(url.trim_start_matches("http://")).expect("connected");
    write!(
        leaver,
        "POST /embed HTTP/1.1\r\nhost: localhost\r\nx-request-id: leaver\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("sent");
    let counted = "te_request_count{method=\"batch\"} 1";
    until("the request has arrived", async || app.get("/metrics").await.text.contains(counted)).await;
    drop(leaver);
    process.wait_for("\"leaver\"");
    let lines = lines_of_requests(&process.stop());
    let [line] = lines["leaver"].as_slice() else { panic!("not one line: {lines:?}") };
    assert_eq!((&line["status"], &line["message"]), (&json!(499), &json!("the caller left before the answer")));
    assert_eq!((&line["spans"][0]["path"], &line["spans"][0]["method"]), (&json!("/embed"), &json!("POST")));
}

/// A line of the log whose spans have their names once: `Value` would keep the last of two.
#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    spans: Vec<Span>,
}

#[derive(Deserialize)]
struct Span {
    name: String,
    task: Option<String>,
}

#[tokio::test]
async fn an_import_that_is_given_up_is_no_bug_and_the_log_names_its_task() {
    let folder = folder_with(&format!("[telemetry]\nlog_format = \"json\"\n{}", with_tiny(&[])));
    let (process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url);
    app.post("/models/tiny/unload", json!({"disable": true})).await.ok();
    let import = app.request(Method::POST, "/grains/import").header("content-type", "application/x-ndjson");
    let answer = send(import.body("{\"text\": \"a\"}\n")).await;
    assert!(answer.text.contains("model_disabled"), "{}", answer.text);
    let log = process.stop();
    assert!(!log.contains("a bug"), "{log}");
    let lines = log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")));
    let spans: Vec<Span> = lines.flat_map(|Line { spans }| spans).collect();
    let names_task = |span: &Span| span.name == "task" && span.task.is_some();
    assert!(spans.iter().any(names_task), "{log}");
}
