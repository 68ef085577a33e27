//! What an attacker tries first: paths that lead elsewhere, bodies that are too deep or too small to be true, statements
//! in strings, lines in logs. None gets in, and the server goes on.

use granary::api::code::Family;
use reqwest::Method;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, USER_AGENT};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::helpers::{
    Caller, Process, TINY, TestApp, folder_with, key_entry, percent_encoded, secret, send, with_keys, with_tiny,
};
use crate::openapi::{Operation, assert_error};

/// The largest head of a request.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// Sends a path as it stands here: clients tidy up `..` before they send it. Returns the status and the rest.
async fn raw(caller: &Caller, method: &str, path: &str) -> (u16, String) {
    let head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    raw_head(caller, &head).await
}

/// The same of a whole head, or of one that has no end.
async fn raw_head(caller: &Caller, head: &str) -> (u16, String) {
    let address = caller.url().trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(head.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("an answer");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
    (status.unwrap_or_else(|| panic!("{head:.80}: {answer}")), answer)
}

async fn n_grains(caller: &Caller) -> Value {
    caller.post("/grains/count", json!({})).await.ok()["count"].clone()
}

#[tokio::test]
async fn no_path_leads_to_a_file() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    app.post("/grains", json!({"id": "kept", "text": "kept"})).await.ok();
    app.post("/snapshots", json!({})).await.ok();
    for path in [
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/models/../../etc/passwd",
        "/models/%2e%2e/%2e%2e/etc/passwd",
        "/models/..%2f..%2fetc%2fpasswd",
        "/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/models/%2fetc%2fpasswd",
        "/models/tiny%00",
        "/models/tiny%2f..%2ftiny",
        "/models/..%5c..%5ctiny",
        "/models/..",
        "/models/%2e%2e",
        "/models/%252e%252e",
        "/v1/models/../../etc/passwd",
        "/v1/models//etc/passwd",
        "/v1/models/%2e%2e%2fetc%2fpasswd",
        "/docs/../Cargo.toml",
        "/docs/%2e%2e/Cargo.toml",
        "/docs/..%2f..%2fCargo.toml",
        "/docs//etc/passwd",
        "/docs/%ff",
        "/snapshots/../granary.db",
        "/snapshots/..%2fgranary.db",
        "/snapshots/%2e%2e%2fgranary.db",
        "/snapshots/..%00",
        "/grains/..",
        "/grains/..%2f..%2fetc%2fpasswd",
    ] {
        for method in ["GET", "DELETE"] {
            let (status, answer) = raw(&app, method, path).await;
            let is_known_route = method == "DELETE" && [404, 405].contains(&status);
            assert!(status == 404 || is_known_route, "{method} {path}: {answer}");
            assert!(answer.contains("json") && !answer.contains("root:") && !answer.contains("SQLite"), "{answer}");
        }
    }
    assert_eq!(n_grains(&app).await, 1);
    app.stop().await;
}

#[tokio::test]
async fn no_registration_names_a_file_outside() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    for path in [
        "..",
        "../",
        "../models/tiny",
        "tiny/../../x",
        "./../x",
        "/etc",
        "/etc/passwd",
        "//etc",
        "%2e%2e",
        "%2e%2e%2fetc",
        "..%2f",
        "..\\..\\etc",
        "\u{0}",
        "tiny\u{0}",
        "../\u{0}",
        "file:///etc/passwd",
        "~/x",
        "~root",
        "nothing\n",
        "nothing\u{1b}[31m",
    ] {
        for field in ["path", "tokenizer"] {
            let mut body = json!({"name": "bad", "path": "tiny.onnx", "tokenizer": "tiny.json"});
            body[field] = json!(path);
            let refused = app.post("/models", body).await.problem();
            assert_eq!((refused.0, refused.1.as_str()), (422, "invalid_request"), "{field} {path:?}: {}", refused.2);
        }
    }
    for repository in
        ["../x", "a/..", "../../etc", "/etc/passwd", "a/b/c", "a/b\u{0}", "file:///etc", "http://evil/x", "a/%2e%2e"]
    {
        let refused = app.post("/models", json!({"name": "bad", "repository": repository})).await.problem();
        assert_eq!(refused.0, 422, "{repository:?}: {}", refused.2);
    }
    for (field, value) in [
        ("file", "../x.onnx"),
        ("file", "/etc/x.onnx"),
        ("file", "a/../../x.onnx"),
        ("revision", "../x"),
        ("revision", "a b"),
    ] {
        let mut body = json!({"name": "bad", "repository": "a/b"});
        body[field] = json!(value);
        let refused = app.post("/models", body).await.problem();
        assert_eq!(refused.0, 422, "{field} {value:?}: {}", refused.2);
    }
    assert_eq!(app.get("/models/bad").await.problem().0, 404);
    app.stop().await;
}

#[tokio::test]
async fn a_refused_registration_does_not_repeat_what_was_sent() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let long = "x".repeat(1 << 20);
    let mut with_unknown_field = json!({"name": "bad", "path": "tiny"});
    with_unknown_field[long.as_str()] = json!(1);
    for body in [
        json!({"name": long, "path": "tiny"}),
        json!({"name": "bad", "path": long}),
        json!({"name": "bad", "repository": long}),
        json!({"name": "bad", "path": "tiny", "size": long}),
        json!({"name": "bad", "path": "tiny", "pooling": long}),
        json!({"name": "bad", "path": "tiny", "aliases": vec![" "; 10_000]}),
        with_unknown_field,
    ] {
        let (status, code, detail) = app.post("/models", body).await.problem();
        assert_eq!((status, code.as_str()), (422, "invalid_request"));
        assert!(detail.len() < 4_096, "{} bytes: {}", detail.len(), &detail[..256]);
    }
    app.stop().await;
}

#[tokio::test]
async fn what_is_not_there_is_not_named_at_any_length() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let long = "y".repeat(10_000);
    let mut requests: Vec<_> = ["/reembeddings", "/comparisons", "/snapshots", "/grains", "/models", "/v1/models"]
        .map(|path| app.request(Method::GET, &format!("{path}/{long}")))
        .into();
    let put = app.request(Method::PUT, &format!("/grains/{long}")).json(&json!({"text": "a"}));
    requests.push(put.header("if-match", "\"1\""));
    for request in requests {
        let answer = send(request).await;
        assert!(answer.status.is_client_error() && answer.text.len() < 1_024, "{}: {:.99}", answer.status, answer.text);
    }
    app.stop().await;
}

#[tokio::test]
async fn bodies_that_are_nested_too_deep_are_refused_by_every_route() {
    const DEPTH: usize = 100_000;
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let (open, close) = ("[".repeat(DEPTH), "]".repeat(DEPTH));
    let objects = "{\"a\":".repeat(DEPTH);
    let of = |field: &str| format!("{{\"{field}\":{open}{close}}}");
    let bodies = [
        open.clone(),
        format!("{open}{close}"),
        objects.clone(),
        of("inputs"),
        of("input"),
        of("filter"),
        format!("{{\"text\":\"a\",\"attributes\":{objects}1{}}}", "}".repeat(DEPTH)),
        format!("{{\"filter\":{{\"attributes\":{{\"a\":{open}{close}}}}}}}"),
        format!("{{\"grains\":{open}{close}}}"),
    ];
    for operation in Operation::all().into_iter().filter(|operation| operation.has_body) {
        let is_import = operation.path == "/grains/import";
        let content_type = if is_import { "application/x-ndjson" } else { "application/json" };
        for body in &bodies {
            let request = app.request(operation.method.clone(), &operation.path_of(TINY));
            let answer = send(request.header(CONTENT_TYPE, content_type).body(body.clone())).await;
            let start: String = body.chars().take(40).collect();
            let name =
                format!("{} {} with {start}: {} {}", operation.method, operation.path, answer.status, answer.text);
            if is_import {
                assert!(answer.status == 200 && answer.text.contains("\"failed\":1"), "{name}");
            } else if answer.status.is_success() {
                // What a route does not know it skips, however deep.
                assert!(body.starts_with("{\"") && operation.family() == Family::Native, "{name}");
            } else {
                assert!(answer.status.is_client_error(), "{name}");
                assert_error(&answer, operation.family());
            }
        }
    }
    let long = app.get(&format!("/grains?filter={}", percent_encoded(&"[".repeat(10_000)))).await;
    assert!(long.status.is_client_error(), "{}", long.status);
    assert_eq!(n_grains(&app).await, 0);
    app.post("/embed", json!({"inputs": "still there"})).await.ok();
    app.stop().await;
}

#[tokio::test]
async fn no_string_becomes_a_document_that_nobody_counted() {
    const RESERVED: &str = "$serde_json::private::RawValue";
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let nested = json!({"a": {"b": [{"c": null}], "d": RESERVED}});
    app.put("/grains/kept", json!({"text": "kept", "attributes": nested})).await.ok();
    let sent = async |method: Method, path: &str, content_type: &str, body: String| {
        send(app.request(method, path).header(CONTENT_TYPE, content_type).body(body)).await
    };
    for name in [RESERVED, r"\u0024serde_json\u003a:private::RawValue"] {
        let hidden = format!(r#"{{"{name}": "[[], []]"}}"#);
        let grain = format!(r#"{{"text": "a", "attributes": {{"a": [{hidden}]}}}}"#);
        let filter = format!(r#"{{"attributes": {{"a": {hidden}}}}}"#);
        let said = |place: &str| format!("`{place}`: `{RESERVED}` is a name that");
        for (method, path, body, place) in [
            (Method::POST, "/grains", format!(r#"{{"grains": [{grain}]}}"#), "grains[0].attributes.a[0]"),
            (Method::POST, "/grains", grain.clone(), "attributes.a[0]"),
            (Method::PUT, "/grains/new", grain.clone(), "attributes.a[0]"),
            (Method::PATCH, "/grains/kept", format!(r#"{{"attributes": {hidden}}}"#), "attributes"),
            (Method::POST, "/grains/count", format!(r#"{{"filter": {filter}}}"#), "filter.attributes.a"),
            (Method::POST, "/models", format!(r#"{{"name": "bad", "prompts": {hidden}}}"#), "prompts"),
        ] {
            let (status, code, detail) = sent(method, path, "application/json", body).await.problem();
            assert_eq!((status, code.as_str()), (422, "invalid_request"), "{path}: {detail}");
            assert!(detail.starts_with(&said(place)), "{path}: {detail}");
        }
        let (status, _, detail) = app.get(&format!("/grains?filter={}", percent_encoded(&filter))).await.problem();
        assert!(status == 422 && detail.contains("is a name that"), "{status}: {detail}");
        let lines = [
            grain,
            format!(r#"{{"text": "a", "meta": {{"attributes": {{"a": {hidden}}}}}}}"#),
            format!(r#"{{"space": {{"fingerprint": "f", "manifest": {hidden}}}}}"#),
        ];
        let import = sent(Method::POST, "/grains/import", "application/x-ndjson", lines.join("\n")).await.text;
        assert!(import.contains("\"failed\":3"), "{import}");
        for place in ["attributes.a[0]", "meta.attributes.a", "space.manifest"] {
            assert!(import.contains(&said(place)), "{place}: {import}");
        }
    }
    assert_eq!(n_grains(&app).await, 1);
    assert_eq!(app.get("/grains/kept").await.ok()["meta"]["attributes"], nested);
    app.stop().await;
}

#[tokio::test]
async fn compressed_bodies_are_refused_by_every_route() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    // The beginning of a stream that would become gibibytes.
    let bomb = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 0xff][..], &[0xed; 1000]].concat();
    for operation in Operation::all().into_iter().filter(|operation| operation.has_body) {
        for encoding in ["gzip", "GZIP", "deflate", "br", "zstd", "gzip, gzip", "identity, gzip", ""] {
            let request = app.request(operation.method.clone(), &operation.path_of(TINY));
            let content_type =
                if operation.path == "/grains/import" { "application/x-ndjson" } else { "application/json" };
            let request = request.header(CONTENT_TYPE, content_type).header(CONTENT_ENCODING, encoding);
            let answer = send(request.body(bomb.clone())).await;
            let name = format!("{} {} in {encoding:?}: {}", operation.method, operation.path, answer.text);
            assert_eq!(answer.status, 415, "{name}");
            assert_error(&answer, operation.family());
        }
    }
    let plain = app.request(Method::POST, "/embed").header(CONTENT_ENCODING, "identity").json(&json!({"inputs": "a"}));
    send(plain).await.ok();
    app.stop().await;
}

/// What means something to SQL, to full-text search, to JSON paths, or to a terminal.
const STATEMENTS: [&str; 34] = [
    "'; DROP TABLE grains; --",
    "\"; DELETE FROM grains; --",
    "' OR '1'='1",
    "') OR ('1'='1' --",
    "1; ATTACH DATABASE '/tmp/x' AS x",
    "' UNION SELECT name FROM sqlite_master --",
    "x' || (SELECT text FROM grains) || '",
    "%",
    "_%",
    "*",
    "a*",
    "\"",
    "\"unbalanced",
    "'",
    "(",
    ")",
    "a AND b OR NOT c",
    "NOT",
    "NEAR(a b, 5)",
    "text : secret",
    "{text tags} : a",
    "^first",
    "- a",
    "+ a",
    "$.a",
    "$[0]",
    "a.b",
    "\\",
    "?1",
    ":name",
    "[x]",
    "/* a */",
    "\u{202e}txet",
    "\u{1b}[31mred\r\n",
];

#[tokio::test]
async fn statements_in_strings_stay_strings() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    app.post("/grains", json!({"id": "bystander", "text": "bystander", "source": "s", "tags": ["t"]})).await.ok();
    let mut n_written = 1;
    for words in STATEMENTS {
        let draft = json!({"text": format!("{words} marker"), "source": words, "tags": [words],
                           "attributes": {words: words, "plain": words, "list": [words]}});
        let written = app.post("/grains", draft.clone()).await.ok();
        n_written += 1;
        let id = written["id"].as_str().expect("an id");
        let read = app.get(&format!("/grains/{id}")).await.ok();
        assert_eq!(read["text"], draft["text"]);
        for field in ["source", "tags", "attributes"] {
            assert_eq!(read["meta"][field], draft[field], "{words:?}");
        }
        for filter in [
            json!({"source": words}),
            json!({"tags": {"all": [words]}}),
            json!({"attributes": {words: words}}),
            json!({"attributes": {"plain": words}}),
            json!({"attributes": {"list": {"all": [words]}}}),
        ] {
            let counted = app.post("/grains/count", json!({"filter": filter})).await.ok();
            assert_eq!(counted["count"], 1, "{filter}");
        }
        for mode in ["lexical", "hybrid", "dense"] {
            app.post("/grains/search", json!({"query": words, "mode": mode})).await.ok();
            let filtered = json!({"query": "marker", "mode": mode, "filter": {"source": words}});
            let found = app.post("/grains/search", filtered).await.ok();
            assert_eq!(found["hits"][0]["grain"]["id"], id, "{words:?}");
        }
        // Where a string means something it is refused, or finds nothing.
        let encoded = percent_encoded(words);
        for answer in [
            app.get(&format!("/grains/{encoded}")).await,
            app.get(&format!("/grains?sort={encoded}")).await,
            app.get(&format!("/grains?cursor={encoded}")).await,
            app.get(&format!("/grains?filter={encoded}")).await,
            app.get(&format!("/snapshots/{encoded}")).await,
            app.get(&format!("/models/{encoded}")).await,
            app.delete(&format!("/grains/{encoded}")).await,
            app.post("/grains", json!({"text": "a", "id": words})).await,
            app.post("/grains", json!({"text": "a", "model": words})).await,
            app.post("/grains/search", json!({"query": "a", "mode": words})).await,
            app.post("/grains/count", json!({"filter": {"space": words}})).await,
            app.post("/grains/count", json!({"filter": {"created_at": {"gte": words}}})).await,
            app.post("/grains/count", json!({"facets": [words]})).await,
            app.post("/spaces", json!({"name": words, "dimensions": 3})).await,
            app.post("/models", json!({"name": words, "path": "tiny"})).await,
        ] {
            // The id is one that a grain may have, the name one that a space may have.
            if answer.status == 201 && [&answer.json()["id"], &answer.json()["name"]].contains(&&json!(words)) {
                n_written += usize::from(answer.json()["id"] == words);
                continue;
            }
            let (status, _, sentence) = answer.problem();
            assert!([400, 404, 422].contains(&status), "{words:?}: {status} {sentence}");
        }
    }
    assert_eq!(n_grains(&app).await, n_written);
    assert_eq!(app.post("/grains/delete", json!({"filter": {"source": STATEMENTS[2]}})).await.ok()["deleted"], 1);
    assert_eq!(n_grains(&app).await, n_written - 1);
    assert_eq!(app.get("/grains/bystander").await.ok()["text"], "bystander");
    app.stop().await;
}

#[tokio::test]
async fn nobody_writes_lines_into_the_log() {
    const FORGED: &str = "x\nFORGED\r\n2026-01-01T00:00:00Z ERROR \u{1b}[31mFORGED";
    for format in ["text", "json"] {
        let toml = format!(
            "[telemetry]\nlog_format = \"{format}\"\nlog_filter = \"debug,ort=warn\"\n[grains]\nslow_search = \"1ms\"\n{}{}",
            with_keys(&[key_entry("ops", &["admin"], "")]),
            with_tiny(&[])
        );
        let folder = folder_with(&toml);
        let (process, url) = Process::serve(folder.path(), &[]);
        let app = Caller::of(url).with_key(&secret("ops"));
        let path = percent_encoded(FORGED);
        for request in [
            app.request(Method::GET, &format!("/models/{path}")),
            app.request(Method::GET, &format!("/grains/{path}?include={path}")),
            app.request(Method::GET, &format!("/{path}")),
            app.request(Method::POST, "/embed").json(&json!({"inputs": FORGED, "model": FORGED})),
            app.request(Method::POST, "/v1/embeddings").json(&json!({"input": FORGED, "model": FORGED})),
            app.request(Method::POST, "/models").json(&json!({"name": FORGED, "path": FORGED})),
            app.request(Method::POST, "/models").json(&json!({"name": "bad", "path": FORGED})),
            app.request(Method::POST, "/models").json(&json!({"name": "bad", "repository": FORGED})),
            app.request(Method::POST, "/spaces").json(&json!({"name": FORGED, "dimensions": 3})),
            app.request(Method::POST, "/grains").json(&json!({"text": FORGED, "source": FORGED, "tags": [FORGED]})),
            app.request(Method::POST, "/grains").json(&json!({"text": FORGED, "id": FORGED})),
            // The load makes the search slow, on any machine.
            app.request(Method::POST, "/models/tiny/unload"),
            app.request(Method::POST, "/grains/search").json(&json!({"query": FORGED, "filter": {"source": FORGED}})),
            app.request(Method::GET, "/models").header("x-request-id", "x FORGED"),
            app.request(Method::GET, "/models").header("x-request-id", "x\u{9b}31mFORGED"),
            app.request(Method::POST, "/embed").json(&json!({"inputs": "a"})).header(USER_AGENT, "x\tFORGED\u{9b}31m"),
            app.request(Method::GET, "/models").header("x-api-key", format!("{} FORGED", secret("ops"))),
        ] {
            let answer = send(request).await;
            assert!(answer.status.as_u16() < 500, "{}", answer.text);
        }
        raw(&app, "FORGED", "/models").await;
        let log = process.stop();
        assert!(log.contains("answered"), "{log}");
        assert!(!log.contains(['\u{1b}', '\u{9b}', '\r']), "{log}");
        let slow = log.lines().find(|line| line.contains("a search was slow")).unwrap_or_else(|| panic!("{log}"));
        for time in ["took_ms", "embedding_ms", "vectors_ms", "words_ms", "reading_ms"] {
            assert!(slow.contains(time), "{time}: {slow}");
            let is_number = |line: Value| line[time].is_number();
            assert!(format == "text" || serde_json::from_str(slow).is_ok_and(is_number), "{time}: {slow}");
        }
        for line in log.lines() {
            if format == "json" {
                assert!(serde_json::from_str::<Value>(line).is_ok_and(|line| line.is_object()), "{line}");
            } else {
                assert!(line.starts_with("20") && !line.contains("Z ERROR FORGED"), "{line}");
                assert!(!line.starts_with("2026-01-01T00:00:00Z"), "{line}");
            }
        }
    }
}

#[tokio::test]
async fn heads_that_are_too_large_are_refused_and_the_server_goes_on() {
    let app =
        TestApp::start_with(&format!("{}{}", with_keys(&[key_entry("ops", &["admin"], "")]), with_tiny(&[]))).await;
    let ops = app.with_key(&secret("ops"));
    let begun = "GET /models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nx-api-key: ";
    let whole = |n_bytes: usize| format!("{begun}{}\r\n\r\n", "k".repeat(n_bytes - begun.len() - 4));
    for n_bytes in [10_000, MAX_HEAD_BYTES - 1] {
        assert_eq!(raw_head(&app, &whole(n_bytes)).await.0, 401, "{n_bytes} bytes");
    }
    // All that is sent is read, so the answer is not lost. A longer one may be cut off before it has come.
    let endless = format!("{begun}{}", "k".repeat(MAX_HEAD_BYTES - begun.len()));
    assert_eq!(raw_head(&app, &endless).await.0, 431);
    let request = app.request(Method::GET, "/models").header("x-api-key", "k".repeat(1_000_000));
    if let Ok(answer) = request.send().await {
        assert_eq!(answer.status().as_u16(), 431);
    }
    for (n_lines, status) in [(100, 200), (101, 431)] {
        let more = "x-more: a\r\n".repeat(n_lines - 2);
        let head = format!("GET /health/live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{more}\r\n");
        assert_eq!(raw_head(&app, &head).await.0, status, "{n_lines} lines");
    }
    ops.get("/models").await.ok();
    app.stop().await;
}
