//! Requests that are two to one reader and one to the other: none gets past, and nobody's key is used for another's
//! request.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Behind, spans_of};
use crate::helpers::{Caller, Kind, Process, folder_with, secret};

/// How long an attacker listens. What comes later changes nothing of what is checked.
const LISTENS: Duration = Duration::from_millis(300);

/// What the victim asks, again and again.
const VICTIMS_PATH: &str = "/models/active";

/// A request that is hidden in another, and swallows the first line of whatever comes next on its connection.
const HIDDEN: &str = "GET /smuggled HTTP/1.1\r\nhost: localhost\r\nx-swallowed: ";

/// Requests with a body about whose length its readers may disagree.
fn disagreements() -> Vec<(String, String)> {
    let chunked_end = format!("0\r\n\r\n{HIDDEN}");
    let length = chunked_end.len();
    let mut attacks = vec![
        ("both lengths", format!("content-length: {length}\r\ntransfer-encoding: chunked"), chunked_end.clone()),
        (
            "both lengths, the other way round",
            "transfer-encoding: chunked\r\ncontent-length: 4".to_owned(),
            format!("{:x}\r\n{HIDDEN}\r\n0\r\n\r\n", HIDDEN.len()),
        ),
        ("two lengths", format!("content-length: 0\r\ncontent-length: {}", HIDDEN.len()), HIDDEN.to_owned()),
        (
            "two lengths, the other way round",
            format!("content-length: {}\r\ncontent-length: 0", HIDDEN.len()),
            HIDDEN.to_owned(),
        ),
        ("a list of lengths", "content-length: 0, 0".to_owned(), HIDDEN.to_owned()),
    ];
    for value in ["+0", "-1", "0x0", "0 0", "00;0", "1e0", "", "99999999999999999999999"] {
        attacks.push(("an odd length", format!("content-length: {value}"), HIDDEN.to_owned()));
    }
    for line in [
        "transfer-encoding: xchunked",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: identity, chunked",
        "transfer-encoding: identity\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity",
        "transfer-encoding:\tchunked",
        "transfer-encoding: \x0bchunked",
        "transfer-encoding: \"chunked\"",
        "transfer-encoding: chunked\x00",
        "transfer-encoding : chunked",
        "transfer-encoding\t: chunked",
        " transfer-encoding: chunked",
        "transfer-encoding:\r\n chunked",
        "transfer-encoding:\n chunked",
        "transfer_encoding: chunked",
        "x: y\rtransfer-encoding: chunked",
        "x: y\ntransfer-encoding: chunked",
        "x: y\r\rtransfer-encoding: chunked",
        "x: y\0transfer-encoding: chunked",
        "transfer-encoding: chunked\r",
        "tRANSFER-ENCODING: CHUNKED",
    ] {
        attacks.push(("a hidden encoding", format!("content-length: {length}\r\n{line}"), chunked_end.clone()));
        attacks.push(("a hidden encoding, alone", line.to_owned(), chunked_end.clone()));
    }
    for chunk in [
        "0;x\n\r\n",
        "0\n\n",
        "0x0\r\n\r\n",
        "FFFFFFFFFFFFFFFFF0\r\n\r\n",
        " 0\r\n\r\n",
        "0 \r\n\r\n",
        "-0\r\n\r\n",
        "\r\n",
    ] {
        attacks.push(("an odd chunk", "transfer-encoding: chunked".to_owned(), format!("{chunk}{HIDDEN}")));
    }
    let head = "POST /models/active HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    attacks
        .into_iter()
        .map(|(name, lines, body)| (format!("{name}: {lines:?}"), format!("{head}{lines}\r\n\r\n{body}")))
        .collect()
}

/// Heads that are one line to one reader and two to the other, and paths that are two to the other.
fn odd_heads() -> Vec<(String, String)> {
    let end = "\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    [
        format!("GET /models\rHTTP/1.1{end}"),
        format!("GET /models HTTP/1.1\rx: y{end}"),
        format!("GET /models HTTP/1.1\r\nx: a\r\n\r{HIDDEN}"),
        format!("GET /models HTTP/1.1\nhost: localhost\n\n{HIDDEN}"),
        format!("GET /grains/a%0d%0ax-api-key:%20{} HTTP/1.1{end}", secret("ops")),
        format!("GET /grains/a%0d%0a%0d%0aGET%20/smuggled%20HTTP/1.1 HTTP/1.1{end}"),
        format!("GET /grains?limit=1%0d%0aGET%20/smuggled HTTP/1.1{end}"),
        format!("GET /models%2Factive HTTP/1.1{end}"),
        format!("GET /grains/%2e%2e%2fmodels%2factive HTTP/1.1{end}"),
        format!("GET /health/../models/active HTTP/1.1{end}"),
        format!("GET /health/%2e%2e/models/active HTTP/1.1{end}"),
        format!("GET /health/live;/../../models HTTP/1.1{end}"),
        format!("GET //models//active HTTP/1.1{end}"),
        format!("GET http://evil.example/models HTTP/1.1{end}"),
        format!("GET /grains?limit=1&limit=2&limit=3 HTTP/1.1{end}"),
        format!("GET /models HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\n\r\n{HIDDEN}"),
        format!("GET /models HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}"),
        format!("GET /models HTTP/1.1\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\nconnection: upgrade, http2-settings{end}"),
        format!("GET /models HTTP/1.1\r\nconnection: x-forwarded-for, x-api-key, host{end}"),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
    ]
    .into_iter()
    .map(|bytes| (format!("{:?}", bytes.lines().next()), bytes))
    .collect()
}

/// Sends these bytes to the proxy, and returns what comes for a moment.
async fn send(address: &str, bytes: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    // The proxy may have had enough of it before its end.
    let _ = stream.write_all(bytes.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(LISTENS, stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// Sends an attack, which must not be answered well; returns the statuses of what comes.
async fn attack(address: &str, name: &str, bytes: &str) -> String {
    let answer = send(address, bytes).await;
    let heads = answer.lines().filter(|line| line.starts_with("HTTP/1."));
    let statuses: Vec<&str> = heads.filter_map(|line| line.get(9..12)).collect();
    assert!(!statuses.iter().any(|status| status.starts_with('2')), "{name}: {answer}");
    statuses.join(" ")
}

fn assert_not_smuggled(spans: &[Value]) {
    let paths = ["/smuggled", "/grains/a\r\n\r\nGET /smuggled HTTP/1.1"];
    let smuggled: Vec<&Value> =
        spans.iter().filter(|span| paths.iter().any(|path| span["path"] == *path) || span["key"] == "ops").collect();
    assert!(smuggled.is_empty(), "{smuggled:?}");
}

#[tokio::test]
async fn nothing_is_smuggled_past_the_server_itself() {
    let folder = folder_with(&Behind::toml(""));
    let (process, url) = Process::serve(folder.path(), &[]);
    let address = url.trim_start_matches("http://");
    let attacks: Vec<_> = disagreements().into_iter().chain(odd_heads()).collect();
    join_all(attacks.iter().map(|(name, bytes)| attack(address, name, bytes))).await;
    let spans = spans_of(&process.stop());
    assert!(!spans.is_empty() && spans.iter().all(|span| span["key"].is_null()), "{spans:?}");
    assert_not_smuggled(&spans);
}

#[tokio::test]
#[ignore = "needs real proxies: make test-proxy"]
async fn nothing_is_smuggled_through_a_proxy() {
    for kind in Kind::ALL {
        let behind = Behind::start(kind, "");
        let mut n_asked = 0;
        let mut answers = BTreeMap::new();
        for (name, bytes) in disagreements().into_iter().chain(odd_heads()) {
            let name = format!("{kind:?}: {name}");
            *answers.entry(attack(behind.proxy.address(), &name, &bytes).await).or_insert(0) += 1;
            // Somebody else, on a connection of their own to the proxy, which has a kept one to the server. Twice: what is
            // hidden would wait there for the next.
            for _ in 0..2 {
                let victim = Caller::of(behind.proxy.url()).with_key(&secret("victim"));
                assert_eq!(victim.get(VICTIMS_PATH).await.ok()["name"], "tiny", "{name}");
                n_asked += 1;
            }
        }
        println!("{kind:?}: attacks by the status of their answers: {answers:?}");
        let spans = behind.spans();
        let of_victim: Vec<&Value> = spans.iter().filter(|span| span["key"] == "victim").collect();
        assert_eq!(of_victim.len(), n_asked, "{kind:?}");
        assert!(of_victim.iter().all(|span| span["path"] == VICTIMS_PATH), "{kind:?}: {of_victim:?}");
        assert_not_smuggled(&spans);
    }
}
