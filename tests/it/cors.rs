//! Pages of other origins: none may use the server, unless `server.cors_origins` names them.

use reqwest::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::helpers::{Answer, Caller, TestApp, key_entry, secret, send, with_keys, with_tiny};

const APP: &str = "https://app.example";
const ORIGINS: &str =
    "[server]\ncors_origins = [\"https://app.example\", \"http://localhost:3000\", \"app://obsidian.md\"]\n";

/// Headers of requests, some of which OpenAI's client for browsers adds.
const ASKED: &str = "authorization,content-type,idempotency-key,traceparent,x-request-id,x-stainless-lang";

async fn preflight(caller: &Caller, origin: &str) -> Answer {
    let request = caller.request(Method::OPTIONS, "/embed").header(ORIGIN, origin);
    let request = request.header(ACCESS_CONTROL_REQUEST_METHOD, "POST");
    send(request.header(ACCESS_CONTROL_REQUEST_HEADERS, ASKED)).await
}

async fn embed(caller: &Caller, origin: &str) -> Answer {
    let request = caller.request(Method::POST, "/embed").json(&json!({"inputs": "hello"})).header(ORIGIN, origin);
    // As browsers say of every such page.
    send(request.header("sec-fetch-site", "cross-site").header("sec-fetch-mode", "cors")).await
}

fn allowed(answer: &Answer) -> &str {
    answer.header(ACCESS_CONTROL_ALLOW_ORIGIN.as_str())
}

#[tokio::test]
async fn named_pages_may_use_the_server_and_others_may_not() {
    let app = TestApp::start_with(&format!("{ORIGINS}{}", with_tiny(&[]))).await;
    for origin in [APP, "http://localhost:3000", "app://obsidian.md"] {
        let answer = embed(&app, origin).await;
        answer.ok();
        assert_eq!(allowed(&answer), origin);
        for header in ["x-space", "x-dimensions", "x-should-retry"] {
            assert!(answer.header(ACCESS_CONTROL_EXPOSE_HEADERS.as_str()).contains(header), "{header}: {answer:?}");
        }
        assert!(answer.header(VARY.as_str()).contains("origin"), "{answer:?}");
    }
    for origin in [
        "https://evil.example",
        "http://app.example",
        "https://app.example:8443",
        "https://obsidian.md",
        "chrome-extension://obsidian.md",
        "null",
    ] {
        let answer = embed(&app, origin).await;
        assert_eq!((answer.status, allowed(&answer)), (StatusCode::FORBIDDEN, ""), "{origin}");
        assert_eq!(allowed(&preflight(&app, origin).await), "", "{origin}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_preflight_needs_no_key_and_the_request_does() {
    let keys = with_keys(&[key_entry("page", &["embed"], "")]);
    let app = TestApp::start_with(&format!("{ORIGINS}{keys}{}", with_tiny(&[]))).await;
    let answer = preflight(&app, APP).await;
    assert_eq!((answer.status, allowed(&answer)), (StatusCode::OK, APP));
    assert!(answer.header(ACCESS_CONTROL_ALLOW_METHODS.as_str()).contains("POST"));
    assert_eq!(answer.header(ACCESS_CONTROL_ALLOW_HEADERS.as_str()), ASKED);
    // The page may read why it is refused.
    let refused = embed(&app, APP).await;
    assert_eq!((refused.status, allowed(&refused)), (StatusCode::UNAUTHORIZED, APP));
    let answer = embed(&app.with_key(&secret("page")), APP).await;
    answer.ok();
    assert_eq!(allowed(&answer), APP);
    app.stop().await;
}

#[tokio::test]
async fn without_the_setting_no_page_is_told_anything() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let answer = preflight(&app, APP).await;
    assert_eq!((answer.status, allowed(&answer)), (StatusCode::FORBIDDEN, ""));
    app.stop().await;
}
