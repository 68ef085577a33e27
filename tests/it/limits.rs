//! What a connection and a request may cost, and that nobody else pays for it.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::{Read, Write};
use std::time::Duration;

use bytes::Bytes;
use granary::telemetry::with_causes;
use h2::client::SendRequest;
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use http::Request;
use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::helpers::{Answer, Process, TestApp, crowd, folder_with, send, until, until_seen, with_tiny};

const ASK: &str = "GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n";
const BODY: &str = r#"{"inputs": "hello"}"#;

async fn serve(limits: &str) -> TestApp {
    TestApp::start_with(&format!("[server]\n{limits}\n{}", with_tiny(&[]))).await
}

async fn is_full(app: &TestApp) -> bool {
    app.get("/models").await.status == StatusCode::TOO_MANY_REQUESTS
}

/// A connection of which every byte is in the test's hand.
struct Raw(TcpStream);

impl Raw {
    async fn open(app: &TestApp) -> Self {
        Self(TcpStream::connect(app.url().trim_start_matches("http://")).await.expect("a connection"))
    }

    async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.expect("sent");
    }

    /// What comes until this text has.
    async fn read_until(&mut self, text: &str) -> String {
        let mut read = String::new();
        while !read.contains(text) {
            let byte = self.0.read_u8().await.unwrap_or_else(|error| panic!("no `{text}`: {error}\n{read}"));
            read.push(char::from(byte));
        }
        read
    }

    /// What comes until the server closes the connection.
    async fn read_to_end(&mut self) -> String {
        let mut read = String::new();
        self.0.read_to_string(&mut read).await.expect("closed in order");
        read
    }

    /// Asks whether the server lives, and keeps the connection.
    async fn ask(&mut self) {
        self.send(ASK).await;
        assert!(self.read_until("\r\n\r\n").await.starts_with("HTTP/1.1 200"));
        self.read_until("}").await;
    }

    /// A request to embed of which the server has the head and waits for the body.
    async fn begin(&mut self) {
        let length = BODY.len();
        self.send(&format!(
            "POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n\
             content-length: {length}\r\nexpect: 100-continue\r\n\r\n"
        ))
        .await;
        assert_eq!(self.read_until("\r\n\r\n").await.trim(), "HTTP/1.1 100 Continue");
    }
}

/// An HTTP/2 connection of which every window is in the test's hand.
struct Multiplexed {
    requests: SendRequest<Bytes>,
    pings: PingPong,
    _carried: JoinSet<Result<(), h2::Error>>,
}

impl Multiplexed {
    /// A connection that takes so many bytes of each answer before it gives any back.
    async fn open(app: &TestApp, window_bytes: u32) -> Self {
        let stream = Raw::open(app).await.0;
        let (requests, mut connection) = h2::client::Builder::new()
            .initial_window_size(window_bytes)
            .handshake::<_, Bytes>(stream)
            .await
            .expect("an HTTP/2 connection");
        let pings = connection.ping_pong().expect("nobody else pings");
        let mut carried = JoinSet::new();
        carried.spawn(connection);
        Self { requests, pings, _carried: carried }
    }

    /// Asks, and has the head of the answer.
    async fn get(&mut self, app: &TestApp, path: &str) -> RecvStream {
        self.try_get(app, path).await.expect("an answer")
    }

    /// Asks on a connection that may take no more requests.
    async fn try_get(&mut self, app: &TestApp, path: &str) -> Result<RecvStream, h2::Error> {
        let request = Request::get(format!("{}{path}", app.url())).body(()).expect("a request");
        let (answer, _) = self.requests.send_request(request, true)?;
        let answer = answer.await?;
        assert_eq!(answer.status(), StatusCode::OK);
        Ok(answer.into_body())
    }

    /// Sends the head of a request, and has all of its answer before any of its body is sent.
    async fn refused(&mut self, method: Method, url: String) -> (StatusCode, SendStream<Bytes>) {
        let request = Request::builder().method(method).uri(url).header("content-type", "text/plain");
        let (answer, body) =
            self.requests.send_request(request.body(()).expect("a request"), false).expect("a stream is free");
        let answer = answer.await.expect("an answer");
        let status = answer.status();
        let mut answer = answer.into_body();
        while take(&mut answer).await.is_some() {}
        (status, body)
    }

    /// Waits until the server has said that it takes no more requests here.
    async fn until_refused(&self) {
        until("the connection takes no new requests", async || self.requests.clone().ready().await.is_err()).await;
    }
}

/// The next piece of an answer, for which there is room again then; `None` at its end.
async fn take(answer: &mut RecvStream) -> Option<Bytes> {
    let piece = answer.data().await?.unwrap_or_else(|error| panic!("cut off: {error}"));
    answer.flow_control().release_capacity(piece.len()).expect("it was taken");
    Some(piece)
}

/// Sends a body as there is room for it.
async fn send_whole(body: &mut SendStream<Bytes>, mut left: Bytes) {
    while !left.is_empty() {
        body.reserve_capacity(left.len());
        let room = poll_fn(|context| body.poll_capacity(context)).await.expect("it was reset").expect("room");
        body.send_data(left.split_to(room.min(left.len())), false).expect("sent");
    }
    body.send_data(left, true).expect("its end");
}

#[tokio::test]
async fn who_asks_before_sending_too_large_a_body_need_not_send_it() {
    let app = serve("max_body = \"1KiB\"").await;
    let mut large = Raw::open(&app).await;
    large
        .send(
            "POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n\
             content-length: 1025\r\nexpect: 100-continue\r\n\r\n",
        )
        .await;
    let answer = large.read_to_end().await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("`server.max_body`"), "{answer}");
    let mut small = Raw::open(&app).await;
    small.begin().await;
    small.send(BODY).await;
    let answer = small.read_to_end().await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    app.stop().await;
}

#[tokio::test]
async fn who_sends_all_first_finds_the_answer_to_what_is_refused_unread() {
    let app = serve("").await;
    let piece = "x".repeat(64 << 10);
    for (request, host, status) in [
        ("POST /embed", "localhost", 415),
        ("POST /nothing", "localhost", 404),
        ("PUT /embed", "localhost", 405),
        ("POST /embed", "evil.example", 421),
    ] {
        for length in ["content-length: 1048576", "transfer-encoding: chunked"] {
            let mut raw = Raw::open(&app).await;
            let head = format!("{request} HTTP/1.1\r\nhost: {host}\r\ncontent-type: text/plain\r\n{length}");
            raw.send(&format!("{head}\r\nconnection: close\r\n\r\n")).await;
            for _ in 0..16 {
                // The answer is there before it.
                tokio::time::sleep(Duration::from_millis(10)).await;
                let is_chunked = length.ends_with("chunked");
                raw.send(&if is_chunked { format!("10000\r\n{piece}\r\n") } else { piece.clone() }).await;
            }
            if length.ends_with("chunked") {
                raw.send("0\r\n\r\n").await;
            }
            let answer = raw.read_to_end().await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request} {length}: {answer}");
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn what_is_left_of_a_refused_request_is_not_waited_for_long() {
    let app = serve("").await;
    // One that never comes, and one that is too long to be read.
    for length in [1_000, 5 << 20] {
        let mut raw = Raw::open(&app).await;
        raw.send(&format!("POST /nothing HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n")).await;
        let answer = tokio::time::timeout(Duration::from_secs(30), raw.read_to_end()).await.expect("it is closed");
        assert!(answer.starts_with("HTTP/1.1 404"), "{length}: {answer}");
    }
    app.stop().await;
}

#[tokio::test]
async fn what_is_left_of_a_refused_request_is_no_head() {
    let app = serve("header_timeout = \"400ms\"").await;
    let mut raw = Raw::open(&app).await;
    raw.send("POST /nothing HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n").await;
    raw.read_until("HTTP/1.1 404").await;
    raw.send("x").await;
    // Longer than a head may take, and by far shorter than what is left is waited for, which is 2 s.
    tokio::time::sleep(Duration::from_millis(600)).await;
    raw.send(&format!("x{ASK}")).await;
    raw.read_until("HTTP/1.1 200").await;
    drop(raw);
    app.stop().await;
}

#[tokio::test]
async fn a_stream_is_not_reset_while_its_caller_sends_what_is_refused_unread() {
    let app = serve("").await;
    let mut connection = Multiplexed::open(&app, 64 << 10).await;
    for (method, url, expected) in [
        (Method::POST, format!("{}/embed", app.url()), StatusCode::UNSUPPORTED_MEDIA_TYPE),
        (Method::POST, format!("{}/nothing", app.url()), StatusCode::NOT_FOUND),
        (Method::PUT, format!("{}/embed", app.url()), StatusCode::METHOD_NOT_ALLOWED),
        (Method::POST, "http://evil.example/embed".to_owned(), StatusCode::MISDIRECTED_REQUEST),
    ] {
        let (status, mut body) = connection.refused(method, url).await;
        assert_eq!(status, expected);
        // More than a stream has room for before something of it is read.
        let sent = send_whole(&mut body, vec![b'x'; 2 << 20].into());
        tokio::time::timeout(Duration::from_secs(30), sent).await.expect("it is read");
        // What had been sent before would have come before this.
        connection.pings.ping(Ping::opaque()).await.expect("an answer to a ping");
        let reset = futures::poll!(poll_fn(|context| body.poll_reset(context)));
        assert!(reset.is_pending(), "{expected}: {reset:?}");
    }
    drop(connection);
    app.stop().await;
}

#[tokio::test]
async fn a_stream_that_is_refused_and_does_not_end_is_reset_and_holds_up_no_other() {
    let app = serve("").await;
    let mut connection = Multiplexed::open(&app, 64 << 10).await;
    let (status, mut body) = connection.refused(Method::POST, format!("{}/nothing", app.url())).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let mut other = connection.get(&app, "/health/live").await;
    while take(&mut other).await.is_some() {}
    let reset = poll_fn(|context| body.poll_reset(context));
    let reason = tokio::time::timeout(Duration::from_secs(30), reset).await.expect("it is reset");
    assert_eq!(reason.expect("a reason"), Reason::NO_ERROR);
    drop(connection.get(&app, "/health/live").await);
    drop(connection);
    app.stop().await;
}

#[tokio::test]
async fn a_head_has_its_time_and_so_has_a_connection_that_asks_nothing() {
    let app = serve("header_timeout = \"2s\"").await;
    let mut kept = Raw::open(&app).await;
    kept.ask().await;
    let (mut silent, mut slow) = (Raw::open(&app).await, Raw::open(&app).await);
    slow.send("GET /health/live HTTP/1.1\r\nhost: loc").await;
    assert_eq!(silent.read_to_end().await, "");
    assert_eq!(slow.read_to_end().await, "");
    // Between two requests there is more time, but not within the next head.
    kept.ask().await;
    kept.send("GET /health/live HT").await;
    assert_eq!(kept.read_to_end().await, "");
    assert_eq!(app.get("/health/live").await.status, StatusCode::OK);
    app.stop().await;
}

#[tokio::test]
async fn between_two_requests_a_connection_has_its_time_too() {
    let app = serve("idle_timeout = \"100ms\"").await;
    let mut kept = Raw::open(&app).await;
    kept.ask().await;
    assert_eq!(kept.read_to_end().await, "");
    app.stop().await;
}

#[tokio::test]
async fn a_request_in_flight_is_not_silent() {
    let app = serve("header_timeout = \"2s\"\nidle_timeout = \"100ms\"").await;
    let mut request = Raw::open(&app).await;
    request.begin().await;
    // By then the request would have been over any limit of silence.
    assert_eq!(Raw::open(&app).await.read_to_end().await, "");
    request.send(BODY).await;
    assert!(request.read_to_end().await.contains("[["));
    app.stop().await;
}

#[tokio::test]
async fn a_head_has_its_size() {
    let app = serve("").await;
    let long = "x".repeat(70 << 10);
    let answer =
        app.request(reqwest::Method::GET, "/health/live").header("x-long", long).send().await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    let fits = "x".repeat(40 << 10);
    let answer =
        app.request(reqwest::Method::GET, "/health/live").header("x-long", fits).send().await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
    app.stop().await;
}

#[tokio::test]
async fn many_that_ask_nothing_hold_nobody_up() {
    let app = serve("header_timeout = \"10m\"").await;
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(Raw::open(&app).await);
        idle.push(Raw::open(&app).await);
        idle.last_mut().expect("one").send("GET /").await;
    }
    app.post("/embed", json!({"inputs": "hello"})).await.ok();
    drop(idle);
    app.stop().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_a_place() {
    let app = serve("max_connections = 2").await;
    let (mut first, mut second) = (Raw::open(&app).await, Raw::open(&app).await);
    first.ask().await;
    second.ask().await;
    let mut third = Raw::open(&app).await;
    third.send(ASK).await;
    let early = tokio::time::timeout(Duration::from_millis(200), third.0.read_u8()).await;
    assert!(early.is_err(), "it is served though there is no place");
    second.ask().await;
    drop(first);
    assert!(third.read_until("\r\n\r\n").await.starts_with("HTTP/1.1 200"));
    drop((second, third));
    app.stop().await;
}

#[tokio::test]
async fn requests_beyond_the_limit_are_told_to_come_again() {
    let app = serve("max_concurrent_requests = 1").await;
    let mut request = Raw::open(&app).await;
    request.begin().await;
    let refused = app.post("/embed", json!({"inputs": "hello"})).await;
    assert_eq!(refused.header("retry-after"), "1");
    let (status, kind, message) = refused.tei_error();
    assert_eq!((status, kind.as_str()), (429, "Overloaded"));
    assert!(
        message.contains("answering 1 requests") && message.contains("`server.max_concurrent_requests`"),
        "{message}"
    );
    assert_eq!(app.get("/models").await.problem().1, "overloaded");
    assert_eq!(app.get("/v1/models").await.openai_error().1, "overloaded");
    for probe in ["/health", "/", "/ping", "/health/live", "/health/ready", "/models/tiny/health", "/metrics"] {
        assert_eq!(app.get(probe).await.status, StatusCode::OK, "{probe}");
    }
    request.send(BODY).await;
    assert!(request.read_to_end().await.contains("[["));
    app.post("/embed", json!({"inputs": "hello"})).await.ok();
    // Who leaves in the middle gives the place back.
    let mut request = Raw::open(&app).await;
    request.begin().await;
    drop(request);
    until("its place is given back", async || !is_full(&app).await).await;
    app.get("/models").await.ok();
    app.stop().await;
}

#[tokio::test]
async fn bodies_share_the_memory_that_there_is() {
    let app = serve("max_body = \"64KiB\"\nbody_memory = \"1KiB\"").await;
    let mut unfinished = Raw::open(&app).await;
    let begun = format!("{{\"inputs\": \"{}", "a".repeat(60_000));
    unfinished
        .send(&format!(
            "POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 65000\r\n\r\n\
             {begun}"
        ))
        .await;
    let large = json!({"inputs": "a ".repeat(5_000), "truncate": true});
    let is_refused = |answer: &Answer| answer.status == StatusCode::TOO_MANY_REQUESTS;
    let refused = until_seen("all of it has come", async || app.post("/embed", large.clone()).await, is_refused).await;
    assert_eq!(refused.header("retry-after"), "1");
    let (_, kind, message) = refused.tei_error();
    assert_eq!(kind, "Overloaded");
    assert!(message.contains("more than 64.0 KiB") && message.contains("`server.body_memory`"), "{message}");
    assert_eq!(app.post("/v1/embeddings", json!({"input": "a ".repeat(5_000)})).await.openai_error().1, "overloaded");
    app.post("/embed", json!({"inputs": "hello"})).await.ok();
    let lines =
        format!("{{\"id\": \"a\", \"text\": \"hello\", \"metadata\": {{\"note\": \"{}\"}}}}\n", "a".repeat(10_000));
    let import = app.request(Method::POST, "/grains/import").header("content-type", "application/x-ndjson").body(lines);
    assert_eq!(import.send().await.expect("an answer").status(), StatusCode::OK, "imports are read line by line");
    // Who leaves in the middle takes nothing along.
    drop(unfinished);
    let is_taken = |answer: &Answer| !is_refused(answer);
    until_seen("there is room again", async || app.post("/embed", large.clone()).await, is_taken).await.ok();
    app.stop().await;
}

#[tokio::test]
async fn what_a_body_becomes_counts_too() {
    let app = serve("max_body = \"1MiB\"\nbody_memory = \"1MiB\"").await;
    let lists = |n: usize| format!("[{}[0]]", "[0],".repeat(n));
    let numbers = format!("[{}0]", "0,".repeat(20_000));
    for (path, body) in [
        ("/grains/count", format!("{{\"filter\": {{\"attributes\": {{\"a\": {numbers}}}}}}}")),
        ("/grains", format!("{{\"text\": \"x\", \"attributes\": {{\"a\": {numbers}}}}}")),
        ("/decode", format!("{{\"ids\": {}}}", lists(10_000))),
        ("/grains/count", format!("{{\"filter\": {{\"attributes\": {{\"a\": {}}}}}}}", lists(10_000))),
        ("/grains", format!("{{\"text\": \"x\", \"attributes\": {{\"a\": {}}}}}", lists(10_000))),
    ] {
        let request = app.request(Method::POST, path).header("content-type", "application/json").body(body);
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE, "{path}");
        let answer = answer.text().await.expect("text");
        assert!(answer.contains("more than 1.0 MiB of memory") && answer.contains("server.body_memory"), "{answer}");
    }
    let body = format!("{{\"ids\": {}}}", lists(1_000));
    let request = app.request(Method::POST, "/decode").header("content-type", "application/json").body(body);
    assert_eq!(request.send().await.expect("an answer").status(), StatusCode::OK);
    app.stop().await;
}

#[tokio::test]
async fn answers_that_are_not_yet_taken_share_the_memory_that_there_is() {
    let app = serve("answer_memory = \"600KiB\"").await;
    let text = "many words ".repeat(50_000);
    app.post("/grains", json!({"id": "a", "text": text})).await.ok();
    let mut connection = Multiplexed::open(&app, 1).await;
    let untaken = connection.get(&app, "/grains/a").await;
    let refused = app.get("/grains/a").await;
    assert_eq!(refused.header("retry-after"), "1");
    let (status, code, message) = refused.problem();
    assert_eq!((status, code.as_str()), (429, "overloaded"));
    assert!(message.contains("`server.answer_memory`"), "{message}");
    // What was done is told.
    let patched = app.patch("/grains/a", json!({"tags": ["b"]})).await.ok();
    assert_eq!(patched["text"], text);
    app.post("/embed", json!({"inputs": "hello"})).await.ok();
    // What is withheld has been embedded.
    let (_, kind, _) = app.post("/embed", json!({"inputs": vec!["hello"; 500]})).await.tei_error();
    assert_eq!(kind, "Overloaded");
    assert_eq!((app.metric("te_request_success").await, app.metric("te_request_failure").await), (2.0, 0.0));
    drop((untaken, connection));
    until("there is room again", async || app.get("/grains/a").await.status == StatusCode::OK).await;
    app.stop().await;
}

#[tokio::test]
async fn an_answer_that_is_larger_than_the_memory_for_all_is_sent_alone() {
    let app = serve("answer_memory = \"1KiB\"").await;
    let text = "many words ".repeat(50_000);
    app.post("/grains", json!({"id": "a", "text": text})).await.ok();
    assert_eq!(app.get("/grains/a").await.ok()["text"], text);
    let mut connection = Multiplexed::open(&app, 1).await;
    let untaken = connection.get(&app, "/grains/a").await;
    assert_eq!(app.get("/grains/a").await.status, StatusCode::TOO_MANY_REQUESTS);
    drop((untaken, connection));
    app.stop().await;
}

/// A token takes some hundred bytes of memory, and every byte of a text may be one.
#[tokio::test]
async fn a_text_of_by_far_too_many_tokens_is_refused_before_all_of_it_is_read() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let text = "!".repeat((4 << 20) - 8);
    for (path, body, said) in [
        ("/embed", json!({"inputs": text, "truncate": false}), "`inputs[0]` has more than "),
        ("/tokenize", json!({"inputs": text}), "have more than 131072 tokens together; at most 131072 are shown"),
    ] {
        let (status, kind, message) = app.post(path, body).await.tei_error();
        assert_eq!((status, kind.as_str()), (422, "Validation"), "{path}: {message}");
        assert!(message.contains(said), "{path}: {message}");
    }
    for side in ["left", "right"] {
        let body = json!({"inputs": text, "truncation_direction": side});
        assert_eq!(app.post("/embed", body).await.header("x-truncated"), "1; 0", "{side}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_route_may_have_a_time_of_its_own() {
    let app = serve("request_timeout = \"1h\"\nroute_timeouts = { \"POST /grains/search\" = \"300ms\" }").await;
    let slow_body = "content-type: application/json\r\ncontent-length: 100\r\n\r\n{";
    let mut search = Raw::open(&app).await;
    search.send(&format!("POST /grains/search HTTP/1.1\r\nhost: localhost\r\n{slow_body}")).await;
    let answer = search.read_until("route_timeouts").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("longer than 0.3 s"), "{answer}");
    let mut embed = Raw::open(&app).await;
    embed.send(&format!("POST /embed HTTP/1.1\r\nhost: localhost\r\n{slow_body}")).await;
    let early = tokio::time::timeout(Duration::from_millis(600), embed.0.read_u8()).await;
    assert!(early.is_err(), "the time of another route counts");
    drop(embed);
    app.stop().await;
}

#[tokio::test]
async fn who_took_too_long_is_told_so_in_the_words_of_each_family() {
    let app = serve("request_timeout = \"300ms\"").await;
    let head = "host: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{";
    for (path, status, word) in [
        ("/embed", "504", "\"Backend\""),
        ("/models/tiny", "504", "\"Backend\""),
        ("/v1/embeddings", "503", "\"timeout\""),
        ("/grains/search", "503", "\"timeout\""),
    ] {
        let mut connection = Raw::open(&app).await;
        connection.send(&format!("POST {path} HTTP/1.1\r\n{head}")).await;
        let answer = connection.read_until(word).await;
        let is_answered = answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains("retry-after: 5\r\n");
        assert!(is_answered && answer.contains("longer than 0.3 s"), "{path}: {answer}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_time_for_what_is_no_route_refuses_the_start() {
    let toml = "[server]\nroute_timeouts = { \"POST /grains/serch\" = \"5s\" }";
    let error = with_causes(&TestApp::try_start_with(toml).await.err().expect("refused"));
    assert!(error.contains("granary.toml: server.route_timeouts: found \"POST /grains/serch\""), "{error}");
}

#[tokio::test]
async fn the_tokens_of_a_request_have_a_limit_of_their_own() {
    let app = TestApp::start_with(&format!("[engine]\nmax_request_tokens = 20\n{}", with_tiny(&[]))).await;
    let few = json!(["one", "two"]);
    let many = json!(vec!["a text of some words"; 10]);
    app.post("/embed", json!({"inputs": few})).await.ok();
    for priority in ["interactive", "background"] {
        let body = json!({"inputs": many, "priority": priority});
        let (status, kind, message) = app.post("/embed", body).await.tei_error();
        assert_eq!((status, kind.as_str()), (422, "Validation"), "{priority}");
        assert!(message.contains("a request takes 20") && message.contains("`engine.max_request_tokens`"), "{message}");
        let body = json!({"input": many, "priority": priority});
        let (status, code, _) = app.post("/v1/embeddings", body).await.openai_error();
        assert_eq!((status, code.as_str()), (400, "too_many_tokens"), "{priority}");
    }
    for (path, body) in [("/tokenize", json!({"inputs": many})), ("/decode", json!({"ids": vec![vec![1; 5]; 5]}))] {
        let (status, kind, message) = app.post(path, body).await.tei_error();
        assert_eq!((status, kind.as_str()), (422, "Validation"), "{path}");
        assert!(message.contains("a request takes 20"), "{path}: {message}");
    }
    let grains: Vec<_> = (0..10).map(|n| json!({"text": format!("a text of some words, {n}")})).collect();
    let (status, code, _) = app.post("/grains", json!({"grains": grains})).await.problem();
    assert_eq!((status, code.as_str()), (422, "too_many_tokens"));
    // An import is read line by line, and the server embeds as many at a time as it likes.
    let line = |n: usize| json!({"id": n.to_string(), "text": format!("a text of some words, {n}")}).to_string();
    let lines = (0..10).map(line).collect::<Vec<_>>().join("\n");
    let import = async |lines: String| {
        let import = app.request(Method::POST, "/grains/import?on_conflict=replace");
        send(import.header("content-type", "application/x-ndjson").body(lines)).await.text
    };
    let imported = import(lines).await;
    assert!(imported.contains("\"created\":10"), "{imported}");
    // Nor is that of anybody who waits which is compared with a vector.
    let text = "a text of some words ".repeat(10);
    let imported = import(json!({"id": "long", "text": text}).to_string()).await;
    assert!(imported.contains("\"created\":1,"), "{imported}");
    let long = app.get("/grains/long?include=vector").await.ok();
    for (id, fate) in [("new", "created"), ("long", "replaced")] {
        let line =
            json!({"id": id, "text": text, "vector": long["vector"], "space": long["meta"]["space"], "verify": true});
        let imported = import(line.to_string()).await;
        assert!(imported.contains(&format!("\"{fate}\":1,")), "{imported}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_search_whose_model_has_a_full_queue_is_told_to_come_back() {
    let engine = "[engine]\nmax_batch_tokens = 64\nmax_queue_tokens = 256\nworkers = 1\n";
    let app = TestApp::start_with(&format!("{engine}{}", with_tiny(&[]))).await;
    app.post("/grains", json!({"text": "wheat"})).await.ok();
    let texts: Vec<String> = (0..64).map(|n| format!("{n} {}", "words ".repeat(100))).collect();
    let body = json!({"inputs": texts});
    let refusals = Cell::new(0);
    let crowd = crowd(&app, 4, &body, &refusals);
    let refused = async {
        for n in 0.. {
            let answer = app.post("/grains/search", json!({"query": format!("wheat {n}")})).await;
            if answer.status != 200 {
                return answer;
            }
            assert_eq!(answer.ok()["spaces"][0]["searched"], true, "{}", answer.text);
        }
        unreachable!("the numbers do not run out before the queue is full")
    };
    let answer = tokio::select! {
        () = crowd => unreachable!("it does not end"),
        answer = refused => answer,
    };
    let (status, code, sentence) = answer.problem();
    assert_eq!((status, code.as_str()), (429, "overloaded"), "{sentence}");
    assert!(answer.header("retry-after").parse::<u64>().is_ok(), "{sentence}");
    app.stop().await;
}

#[tokio::test]
async fn background_work_that_fills_the_queue_leaves_room_for_what_somebody_waits_for() {
    let engine = "[engine]\nmax_batch_tokens = 64\nmax_queue_tokens = 256\nworkers = 1\n";
    let app = TestApp::start_with(&format!("{engine}{}", with_tiny(&[]))).await;
    let texts: Vec<String> = (0..64).map(|n| format!("{n} {}", "words ".repeat(100))).collect();
    let body = json!({"inputs": texts, "priority": "background"});
    let refusals = Cell::new(0);
    let crowd = crowd(&app, 4, &body, &refusals);
    let waited_for = async {
        while refusals.get() < 20 {
            app.post("/embed", json!({"inputs": "hello"})).await.ok();
        }
    };
    tokio::select! {
        () = crowd => unreachable!("it does not end"),
        () = waited_for => {}
    }
    app.stop().await;
}

#[tokio::test]
async fn a_body_that_stops_coming_is_given_up() {
    let app = serve("body_timeout = \"500ms\"").await;
    for (path, code) in [("/grains/search", "slow_body"), ("/embed", "Validation"), ("/v1/embeddings", "slow_body")] {
        for (length, body) in [("content-length: 100", "{\"in"), ("transfer-encoding: chunked", "4\r\n{\"in\r\n")] {
            let mut raw = Raw::open(&app).await;
            let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{length}");
            raw.send(&format!("{head}\r\n\r\n{body}")).await;
            let answer = raw.read_until("body_timeout").await;
            assert!(answer.starts_with("HTTP/1.1 408"), "{path}: {answer}");
            assert!(answer.contains(code) || raw.read_to_end().await.contains(code), "{path}: {answer}");
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn an_answer_that_nobody_takes_is_given_up() {
    // So long that a slow machine sees the place taken before it is given back.
    let app = serve("body_timeout = \"2s\"\nmax_concurrent_requests = 1").await;
    // More than the system takes in for somebody who does not read.
    let text = "many words ".repeat(50_000);
    for n in 0..40 {
        app.post("/grains", json!({"id": n.to_string(), "text": text})).await.ok();
    }
    // One that is made while it is sent, and one that is whole before.
    for (request, end) in [("POST /grains/export", "0\r\n\r\n"), ("GET /grains", "}")] {
        let mut unread = Raw::open(&app).await;
        unread.send(&format!("{request} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n")).await;
        unread.read_until("HTTP/1.1 200").await;
        assert!(is_full(&app).await, "{request}");
        until(&format!("the place of {request} is given back"), async || !is_full(&app).await).await;
        let mut rest = Vec::new();
        let _ = unread.0.read_to_end(&mut rest).await;
        assert!(!rest.ends_with(end.as_bytes()), "{request}: it was sent to its end");
    }
    app.stop().await;
}

#[tokio::test]
async fn an_answer_that_is_taken_slowly_is_not_given_up() {
    let app = serve("body_timeout = \"2s\"").await;
    // More than the system takes in for somebody who does not read.
    let text = "many words ".repeat(50_000);
    for n in 0..20 {
        app.post("/grains", json!({"id": n.to_string(), "text": text})).await.ok();
    }
    let mut slow = Raw::open(&app).await;
    slow.send("GET /grains HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    let mut piece = vec![0; 100 << 10];
    for _ in 0..25 {
        slow.0.read_exact(&mut piece).await.expect("it goes on");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(slow.read_to_end().await.ends_with('}'));
    app.stop().await;
}

#[tokio::test]
async fn an_import_goes_on_while_its_caller_sends_and_reads_nothing_yet() {
    // So long that a slow machine sends something within it.
    let app = serve("header_timeout = \"1s\"\nbody_timeout = \"2s\"").await;
    let socket = TcpSocket::new_v4().expect("a socket");
    // Else the system may take in more and more for somebody who does not read.
    socket.set_recv_buffer_size(64 << 10).expect("a size");
    let address = app.url().trim_start_matches("http://").parse().expect("an address");
    let mut raw = Raw(socket.connect(address).await.expect("a connection"));
    raw.send(
        "POST /grains/import HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-ndjson\r\nconnection: close\r\n\
         transfer-encoding: chunked\r\n\r\n",
    )
    .await;
    // Without a text each fails, and more is said of them than the system takes in.
    let line = format!("{{\"id\": \"{}\"}}\n", "\\u0001".repeat(256));
    let chunk = format!("{:x}\r\n{line}\r\n", line.len());
    raw.send(&chunk.repeat(5_000)).await;
    for _ in 0..25 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        raw.send(&chunk).await;
    }
    raw.send("0\r\n\r\n").await;
    let answer = raw.read_to_end().await;
    let end = &answer[answer.len().saturating_sub(300)..];
    assert!(answer.len() > 8_000_000, "the system may have taken all {} bytes in", answer.len());
    assert!(end.contains("\"failed\":5025,\"unreported\":25,\"complete\":true"), "{end}");
    app.stop().await;
}

#[tokio::test]
async fn an_answer_over_http2_holds_its_place_until_it_is_taken() {
    let app = serve("max_concurrent_requests = 1").await;
    app.post("/grains", json!({"id": "a", "text": "many words ".repeat(50_000)})).await.ok();
    let mut connection = Multiplexed::open(&app, 1).await;
    let mut answer = connection.get(&app, "/grains/a").await;
    assert_eq!(answer.data().await.expect("not the end").expect("data").len(), 1);
    for _ in 0..10 {
        assert!(is_full(&app).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop((answer, connection));
    until("its place is given back", async || !is_full(&app).await).await;
    app.stop().await;
}

#[tokio::test]
async fn an_answer_over_http2_that_is_taken_slowly_is_not_cut_off() {
    let app = serve("header_timeout = \"1s\"\nidle_timeout = \"100ms\"").await;
    let text = "many words ".repeat(50_000);
    app.post("/grains", json!({"id": "a", "text": text})).await.ok();
    let mut connection = Multiplexed::open(&app, 32 << 10).await;
    let mut answer = connection.get(&app, "/grains/a").await;
    let began = std::time::Instant::now();
    let mut taken = Vec::new();
    while let Some(piece) = answer.data().await {
        let piece = piece.unwrap_or_else(|error| panic!("cut off after {} bytes: {error}", taken.len()));
        taken.extend_from_slice(&piece);
        tokio::time::sleep(Duration::from_millis(80)).await;
        answer.flow_control().release_capacity(piece.len()).expect("it was taken");
    }
    assert!(began.elapsed() > Duration::from_millis(1500), "it was taken too fast to tell");
    let grain: serde_json::Value = serde_json::from_slice(&taken).expect("a whole answer");
    assert_eq!(grain["text"], text);
    app.stop().await;
}

#[tokio::test]
async fn pings_do_not_keep_an_answer_that_nobody_takes() {
    // So long that a slow machine sees the place taken before it is given back.
    let app = serve("body_timeout = \"2s\"\nmax_concurrent_requests = 1").await;
    app.post("/grains", json!({"id": "a", "text": "hello"})).await.ok();
    let mut connection = Multiplexed::open(&app, 0).await;
    let _answer = connection.get(&app, "/grains/a").await;
    assert!(is_full(&app).await);
    let is_given_back = async || {
        // An error says that the connection is closed.
        let _ = connection.pings.ping(Ping::opaque()).await;
        !is_full(&app).await
    };
    until("its place is given back", is_given_back).await;
    app.stop().await;
}

#[tokio::test]
async fn other_answers_do_not_keep_one_that_nobody_takes_nor_are_they_cut_off() {
    // So long that a slow machine takes something of the other answer within it, which takes longer as a whole.
    let app = serve("header_timeout = \"1s\"\nbody_timeout = \"4s\"\nmax_concurrent_requests = 2").await;
    let text = "many words ".repeat(50_000);
    app.post("/grains", json!({"id": "a", "text": text})).await.ok();
    let mut connection = Multiplexed::open(&app, 32 << 10).await;
    let mut unread = connection.get(&app, "/grains/a").await;
    let mut other = connection.get(&app, "/grains/a").await;
    let mut taken = Vec::new();
    while is_full(&app).await {
        taken.extend(take(&mut other).await.expect("its place is given back before the other answer ends"));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // What was given up keeps its stream, and there are so many: the next request goes to another connection.
    connection.until_refused().await;
    // Whoever takes it now is told that it is not whole.
    let error = loop {
        match unread.data().await.expect("not the end") {
            Ok(piece) => unread.flow_control().release_capacity(piece.len()).expect("it was taken"),
            Err(error) => break error,
        }
    };
    assert!(error.is_reset(), "{error}");
    while let Some(piece) = take(&mut other).await {
        taken.extend(piece);
    }
    let grain: serde_json::Value = serde_json::from_slice(&taken).expect("a whole answer");
    assert_eq!(grain["text"], text);
    app.stop().await;
}

#[tokio::test]
async fn what_is_left_of_an_answer_that_was_given_up_does_not_hold_up_a_stop() {
    let app = serve("header_timeout = \"2s\"\nbody_timeout = \"500ms\"\nmax_concurrent_requests = 1").await;
    app.post("/grains", json!({"id": "a", "text": "many words ".repeat(50_000)})).await.ok();
    let mut connection = Multiplexed::open(&app, 32 << 10).await;
    let unread = connection.get(&app, "/grains/a").await;
    let is_given_back = async || {
        // Others share the connection, so that it is kept; once the answer is given up it takes none.
        if let Ok(mut other) = connection.try_get(&app, "/health/live").await {
            other.data().await.expect("not the end").expect("data");
        }
        !is_full(&app).await
    };
    until("its place is given back", is_given_back).await;
    app.stop().await;
    drop((unread, connection));
}

#[tokio::test]
async fn a_connection_has_so_many_streams_at_once() {
    let app = serve("").await;
    let mut connection = Multiplexed::open(&app, 32 << 10).await;
    let _answer = connection.get(&app, "/health/live").await;
    assert_eq!(connection.requests.current_max_send_streams(), 64);
    drop(connection);
    app.stop().await;
}

#[tokio::test]
async fn an_import_that_pauses_is_cut_with_a_sentence() {
    let app = serve("body_timeout = \"500ms\"").await;
    let line = "{\"id\": \"a\", \"text\": \"hello\"}\n";
    let mut raw = Raw::open(&app).await;
    raw.send(&format!(
        "POST /grains/import HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-ndjson\r\nconnection: close\r\n\
         transfer-encoding: chunked\r\n\r\n{:x}\r\n{line}\r\n",
        line.len()
    ))
    .await;
    let answer = raw.read_until("\"complete\"").await;
    assert!(answer.contains("slow_body") && answer.contains("`server.body_timeout`"), "{answer}");
    // The lines that came before are taken.
    app.get("/grains/a").await.ok();
    app.stop().await;
}

#[tokio::test]
async fn a_stop_closes_connections_that_ask_nothing_and_answers_the_others() {
    let app = serve("").await;
    let (mut kept, mut fresh, mut request) = (Raw::open(&app).await, Raw::open(&app).await, Raw::open(&app).await);
    kept.ask().await;
    request.begin().await;
    let stopped = async {
        assert_eq!(kept.read_to_end().await, "");
        assert_eq!(fresh.read_to_end().await, "");
        request.send(BODY).await;
        assert!(request.read_to_end().await.contains("[["));
    };
    tokio::join!(app.stop(), stopped);
}

#[tokio::test]
async fn a_request_on_its_way_when_the_server_stops_is_answered() {
    let app = serve("").await;
    // Connections that the server has, one of them in the middle of a head.
    let (mut fresh, mut begun) = (Raw::open(&app).await, Raw::open(&app).await);
    let ask = ASK.replace("\r\n\r\n", "\r\nconnection: keep-alive\r\n\r\n");
    let (head, rest) = ask.split_at(20);
    begun.send(head).await;
    let asked = async {
        fresh.send(&ask).await;
        begun.send(rest).await;
        for raw in [&mut fresh, &mut begun] {
            let answer = raw.read_to_end().await;
            assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
        }
    };
    tokio::join!(app.stop(), asked);
}

#[test]
fn without_file_descriptors_connections_wait_and_the_log_says_so() {
    let folder = folder_with(&with_tiny(&[]));
    let (mut process, url) = Process::serve(folder.path(), &[]);
    let usual = process.limit_files(Some(3));
    let mut waiting = std::net::TcpStream::connect(url.trim_start_matches("http://")).expect("the system takes it");
    waiting.write_all(ASK.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n").as_bytes()).expect("sent");
    process.wait_for("no file descriptors are left");
    process.limit_files(usual);
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let log = process.stop();
    assert_eq!(log.matches("no file descriptors are left").count(), 1, "{log}");
}
