//! A server without keys answers to its own names and to no foreign page.

use reqwest::Method;
use reqwest::header::{ACCESS_CONTROL_ALLOW_ORIGIN, HOST, HeaderName, ORIGIN};
use serde_json::json;

use crate::helpers::{Answer, TestApp, send, with_tiny};

/// Asks with one header set.
async fn ask(app: &TestApp, method: Method, path: &str, header: (HeaderName, &str)) -> Answer {
    let request = app.request(method.clone(), path).header(header.0, header.1);
    send(if method == Method::POST { request.json(&json!({"inputs": "hello", "input": "hello"})) } else { request })
        .await
}

/// That each family refuses a header in its own words, whatever the route.
async fn assert_refused(app: &TestApp, header: (HeaderName, &str), status: u16, code: &str, mention: &str) {
    for path in
        ["/models", "/models/tiny", "/health/live", "/health/ready", "/metrics", "/openapi.json", "/docs", "/nope"]
    {
        let (found, word, detail) = ask(app, Method::GET, path, header.clone()).await.problem();
        assert_eq!((found, word.as_str()), (status, code), "{path}");
        assert!(detail.contains(mention), "{path}: {detail}");
    }
    for (method, path) in [(Method::POST, "/embed"), (Method::POST, "/models/tiny"), (Method::GET, "/models/tiny/info")]
    {
        let (found, word, message) = ask(app, method, path, header.clone()).await.tei_error();
        assert_eq!((found, word.as_str()), (status, "Forbidden"), "{path}");
        assert!(message.contains(mention), "{path}: {message}");
    }
    for (method, path) in [(Method::POST, "/v1/embeddings"), (Method::GET, "/v1/models"), (Method::GET, "/v1/nope")] {
        let answer = ask(app, method, path, header.clone()).await;
        let (found, word, message) = answer.openai_error();
        assert_eq!((found, word.as_str()), (status, code), "{path}");
        assert!(message.contains(mention), "{path}: {message}");
        assert_eq!(answer.json()["error"]["type"], "invalid_request_error", "{path}");
    }
}

#[tokio::test]
async fn other_names_are_misdirected() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    for host in ["evil.example", "localhost.evil.example:8080", "0.0.0.0"] {
        let mention = format!("`{}`", host.trim_end_matches(":8080"));
        assert_refused(&app, (HOST, host), 421, "misdirected", &mention).await;
    }
    for host in ["localhost", "LocalHost:8080", "127.0.0.1", "[::1]:80"] {
        ask(&app, Method::POST, "/embed", (HOST, host)).await.ok();
    }
    app.stop().await;
}

#[tokio::test]
async fn foreign_pages_are_forbidden_and_the_servers_own_are_not() {
    let app = TestApp::start_with(&with_tiny(&["tiny-cls"])).await;
    for origin in ["http://evil.example", "null", "http://localhost:1"] {
        assert_refused(&app, (ORIGIN, origin), 403, "forbidden", "another origin").await;
    }
    // What a browser asks before it lets a page send JSON.
    let preflight = app.request(Method::OPTIONS, "/embed").header("access-control-request-method", "POST");
    let preflight = send(preflight.header(ORIGIN, "http://evil.example")).await;
    assert_eq!((preflight.tei_error().0, preflight.header(ACCESS_CONTROL_ALLOW_ORIGIN.as_str())), (403, ""));

    let load = ask(&app, Method::POST, "/models/tiny-cls/load", (ORIGIN, "http://evil.example")).await;
    assert_eq!(load.problem().0, 403);
    assert_eq!(app.get("/models/tiny-cls").await.ok()["state"], "unloaded", "what is refused is not done either");

    let own = app.url().to_owned();
    ask(&app, Method::POST, "/embed", (ORIGIN, &own)).await.ok();
    app.stop().await;
}

#[tokio::test]
async fn what_a_foreign_page_shows_is_not_asked_for_here() {
    let app = TestApp::start_with(&with_tiny(&["tiny-cls"])).await;
    let site = HeaderName::from_static("sec-fetch-site");
    assert_refused(&app, (site.clone(), "cross-site"), 403, "forbidden", "another origin").await;
    // A model's description loads it.
    let image = app.request(Method::GET, "/models/tiny-cls/info").header(&site, "cross-site");
    let image = image.header("sec-fetch-mode", "no-cors").header("sec-fetch-dest", "image");
    assert_eq!(send(image).await.tei_error().0, 403);
    assert_eq!(app.get("/models/tiny-cls").await.ok()["state"], "unloaded");
    // A link, and what the page has that it leads to.
    let link = app.request(Method::GET, "/docs/").header(&site, "cross-site");
    let link = send(link.header("sec-fetch-mode", "navigate").header("sec-fetch-dest", "document")).await;
    assert_eq!(link.status, 200);
    assert_eq!(ask(&app, Method::GET, "/docs/swagger-ui.css", (site, "same-origin")).await.status, 200);
    app.stop().await;
}

#[tokio::test]
async fn allowed_hosts_are_served_with_their_own_pages() {
    let toml = "[server]\nallowed_hosts = [\"Granary.example.org\", \"fd00::1\"]\n[auth]\ndisabled = true\n";
    let app = TestApp::start_with(&format!("{toml}{}", with_tiny(&[]))).await;
    for host in ["granary.example.org", "GRANARY.example.org:443", "[fd00::1]:8080", "localhost"] {
        ask(&app, Method::POST, "/embed", (HOST, host)).await.ok();
    }
    // Behind a proxy that took TLS off.
    let page = app.request(Method::GET, "/models").header(HOST, "granary.example.org");
    send(page.header(ORIGIN, "https://granary.example.org")).await.ok();
    for host in ["example.org", "evil.granary.example.org"] {
        assert_refused(&app, (HOST, host), 421, "misdirected", "`server.allowed_hosts`").await;
    }
    assert_refused(&app, (ORIGIN, "https://granary.example.org"), 403, "forbidden", "another origin").await;
    app.stop().await;
}
