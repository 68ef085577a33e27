//! Behind real nginx, Caddy and `HAProxy`, with the configurations that `docker/proxy/` recommends.
//!
//! These tests need the proxies and minutes: `make test-proxy` sets them up and runs them.

mod restarts;
mod slow;
mod smuggling;

use std::net::IpAddr;

use futures::{Stream, StreamExt};
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::helpers::{
    Caller, Kind, PATIENCE, Process, Proxy, folder_with, key_entry, secret, send, until, with_keys, with_tiny,
};

/// A server behind a proxy.
struct Behind {
    process: Process,
    url: String,
    proxy: Proxy,
    _folder: TempDir,
}

impl Behind {
    fn start(kind: Kind, settings: &str) -> Self {
        Self::start_with(kind, settings, &[])
    }

    fn toml(settings: &str) -> String {
        format!(
            "[server]\ntrusted_proxies = [\"127.0.0.1\"]\n{settings}\n[telemetry]\nlog_format = \"json\"\n{}{}",
            with_keys(&[key_entry("ops", &["admin"], ""), key_entry("victim", &["read"], "")]),
            with_tiny(&["tiny-cls"])
        )
    }

    /// With these lines in `[server]`, and these changes of the proxy's file.
    fn start_with(kind: Kind, settings: &str, changes: &[(&str, &str)]) -> Self {
        let folder = folder_with(&Self::toml(settings));
        let (process, url) = Process::serve(folder.path(), &[]);
        let proxy = Proxy::start_with(kind, &[&url], changes);
        Self { process, url, proxy, _folder: folder }
    }

    /// Who asks the proxy, and may do everything.
    fn ops(&self) -> Caller {
        Caller::of(self.proxy.url()).with_key(&secret("ops"))
    }

    /// Stops the server, and returns what its log says of each request.
    fn spans(self) -> Vec<Value> {
        spans_of(&self.process.stop())
    }
}

/// What a log says of each request.
fn spans_of(log: &str) -> Vec<Value> {
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    lines.filter(|line| line["spans"][0]["method"].is_string()).map(|mut line| line["spans"][0].take()).collect()
}

/// How many connections with this port at one end the system remembers; those that are closed, for a minute.
fn n_connections(port: &str) -> usize {
    let port = format!(":{:04X}", port.parse::<u16>().expect("a port"));
    let table = fs_err::read_to_string("/proc/net/tcp").expect("the system's connections");
    let at_one_end = |line: &str| line.split_whitespace().skip(1).take(2).any(|address| address.ends_with(&port));
    table.lines().filter(|line| at_one_end(line)).count()
}

fn port_of(address: &str) -> &str {
    address.rsplit(':').next().expect("a port")
}

#[tokio::test]
#[ignore = "needs real proxies: make test-proxy"]
async fn embedding_and_search_work_and_connections_are_kept() {
    for kind in Kind::ALL {
        let behind = Behind::start(kind, "");
        let ops = behind.ops();
        ops.post("/grains", json!({"id": "a", "text": "wheat is a grass"})).await.ok();
        for _ in 0..50 {
            ops.post("/embed", json!({"inputs": ["hello", "world"]})).await.ok();
            let found = ops.post("/grains/search", json!({"query": "grass"})).await.ok();
            assert_eq!(found["hits"][0]["grain"]["id"], "a", "{kind:?}");
        }
        // Both ends of a connection count while it is open.
        for address in [behind.proxy.address(), &behind.url] {
            let n_connections = n_connections(port_of(address));
            assert!(n_connections < 25, "{kind:?}: {n_connections} connections to {address} for 101 requests");
        }
        assert_eq!(behind.spans().len(), 101, "{kind:?}");
    }
}

/// The data of the next event of a stream, which need not end; of several that come together the last.
async fn next_event(stream: &mut (impl Stream<Item = reqwest::Result<bytes::Bytes>> + Unpin)) -> Value {
    let mut text = String::new();
    let event = async {
        loop {
            let piece = stream.next().await.expect("the stream goes on").expect("a piece");
            text.push_str(&String::from_utf8_lossy(&piece));
            let whole = text.rsplit_once("\n\n").map_or("", |(whole, _)| whole);
            if let Some(data) = whole.lines().rev().find_map(|line| line.strip_prefix("data:")) {
                return serde_json::from_str(data).expect("JSON");
            }
        }
    };
    let event = tokio::time::timeout(PATIENCE, event).await;
    event.unwrap_or_else(|_| panic!("no event while the stream is open: {text}"))
}

fn is_at_work(job: &Value) -> bool {
    ["queued", "running"].contains(&job["state"].as_str().unwrap_or_default())
}

#[tokio::test]
#[ignore = "needs real proxies: make test-proxy"]
async fn events_come_one_by_one() {
    for kind in Kind::ALL {
        let behind = Behind::start(kind, "");
        let ops = behind.ops();
        let grains: Vec<Value> = (0..1000).map(|n| json!({"text": format!("grain {n}")})).collect();
        ops.post("/grains", json!({ "grains": grains })).await.ok();
        // A job that rests for most of the time: what is kept back until the stream's end would come when it has ended.
        let job = ops.post("/reembeddings", json!({"to": "tiny-cls", "throttle": 0.01})).await.json();
        let path = format!("/reembeddings/{}", job["id"].as_str().expect("an id"));
        let events = ops.request(Method::GET, &format!("{path}/events")).send().await.expect("an answer");
        let mut events = Box::pin(events.bytes_stream());
        for _ in 0..2 {
            let shown = next_event(&mut events).await;
            assert!(is_at_work(&shown) && is_at_work(&ops.get(&path).await.ok()), "{kind:?}: {shown}");
        }
        ops.post(&format!("{path}/cancel"), json!({})).await.ok();
        while is_at_work(&next_event(&mut events).await) {}
        drop(events);
        behind.process.stop();
    }
}

#[tokio::test]
#[ignore = "needs real proxies: make test-proxy"]
async fn a_body_of_30_mb_is_imported() {
    // What is not embedded takes no time.
    let note = "wheat ".repeat(10_000);
    let line = |n: u32| json!({"id": n.to_string(), "text": "grain", "attributes": {"note": note}});
    let lines: Vec<String> = (0..500).map(|n| line(n).to_string()).collect();
    let body = lines.join("\n");
    assert!(body.len() >= 30_000_000);
    for kind in Kind::ALL {
        let behind = Behind::start(kind, "");
        let ops = behind.ops();
        let import = ops.request(Method::POST, "/grains/import").header("content-type", "application/x-ndjson");
        let answer = send(import.body(body.clone())).await;
        assert!(answer.status.is_success(), "{kind:?}: {}", answer.text);
        let end: Value = serde_json::from_str(answer.text.lines().last().unwrap_or_default()).expect("JSON");
        assert_eq!((&end["end"]["created"], &end["end"]["complete"]), (&json!(500), &json!(true)), "{kind:?}: {end}");
        assert_eq!(ops.post("/grains/count", json!({})).await.ok()["count"], 500, "{kind:?}");
        behind.process.stop();
    }
}

#[tokio::test]
#[ignore = "needs real proxies: make test-proxy"]
async fn what_is_below_a_path_names_itself_as_callers_know_it() {
    let takes_off = [
        ("# http-request set-header X-Forwarded-Prefix", "http-request set-header X-Forwarded-Prefix"),
        ("# http-request replace-path", "http-request replace-path"),
    ];
    let cases = Kind::ALL.map(|kind| (kind, "base_path = \"/granary\"", &[][..]));
    for (kind, settings, changes) in cases.into_iter().chain([(Kind::HaProxy, "", &takes_off[..])]) {
        let behind = Behind::start_with(kind, settings, changes);
        let ops = behind.ops();
        let made = ops.post("/granary/grains", json!({"id": "a", "text": "hello"})).await;
        assert_eq!((made.status.as_u16(), made.header("location")), (201, "/granary/grains/a"), "{kind:?}");
        ops.post("/granary/models/tiny/embed", json!({"inputs": "hello"})).await.ok();
        let document = ops.get("/granary/openapi.json").await.ok();
        let url = format!("{}/granary", behind.proxy.url());
        assert_eq!(document["servers"], json!([{ "url": url }]), "{kind:?}");
        let page = ops.get("/granary/docs").await;
        assert!(page.status.is_success() && page.text.contains("swagger"), "{kind:?}: {}", page.text);
        behind.process.stop();
    }
}

#[tokio::test]
#[ignore = "needs real proxies: make test-proxy"]
async fn a_proxys_own_log_has_no_query_and_no_key() {
    for kind in Kind::ALL {
        let behind = Behind::start(kind, "");
        let path = "/grains?limit=7&filter=%7B%22source%22:%22confidential%22%7D";
        let request = Caller::of(behind.proxy.url()).request(Method::GET, path);
        send(request.header("x-api-key", secret("ops"))).await.ok();
        until("there is a line", async || behind.proxy.log().contains("/grains")).await;
        let log = behind.proxy.log();
        assert!(!log.contains("confidential") && !log.contains(&secret("ops")), "{kind:?}:\n{log}");
        behind.process.stop();
    }
}

#[tokio::test]
#[ignore = "needs real proxies: make test-proxy"]
async fn the_log_has_the_callers_address_whatever_the_caller_says() {
    let said = [
        ("x-forwarded-for", "6.6.6.6"),
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-prefix", "/evil"),
        ("forwarded", "for=6.6.6.6;host=evil.example;proto=https"),
        ("x-real-ip", "6.6.6.6"),
    ];
    for kind in Kind::ALL {
        let behind = Behind::start(kind, "");
        let caller = behind.ops().at_address(IpAddr::from([127, 0, 0, 2]));
        caller.get("/models").await.ok();
        let request = caller.request(Method::GET, "/openapi.json");
        let request = said.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let document = send(request).await.ok();
        assert_eq!(document["servers"], json!([{"url": behind.proxy.url()}]), "{kind:?}");
        let spans = behind.spans();
        assert_eq!(spans.len(), 2, "{kind:?}: {spans:?}");
        assert!(spans.iter().all(|span| span["client"] == "127.0.0.2"), "{kind:?}: {spans:?}");
    }
}
