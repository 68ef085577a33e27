//! What a reverse proxy says of a request is believed where it is trusted, and nowhere else.

use reqwest::Method;
use serde_json::{Value, json};

use crate::helpers::{Answer, Caller, Process, TestApp, folder_with, send, with_tiny};

/// A public name, under a path that the proxy takes off.
const AS_PUBLIC: [(&str, &str); 4] = [
    ("x-forwarded-for", "6.6.6.6, 203.0.113.7"),
    ("x-forwarded-host", "api.example.org"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-prefix", "/public"),
];

fn server(settings: &str) -> String {
    format!("[server]\n{settings}\n{}", with_tiny(&[]))
}

const TRUSTING: &str = "trusted_proxies = [\"127.0.0.0/8\"]\nallowed_hosts = [\"api.example.org\"]";

async fn ask(app: &Caller, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
    let request = app.request(method.clone(), path);
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    send(if method == Method::POST { request.json(&json!({"text": "hello"})) } else { request }).await
}

async fn servers(app: &Caller, headers: &[(&str, &str)]) -> Value {
    ask(app, Method::GET, "/openapi.json", headers).await.ok()["servers"].clone()
}

#[tokio::test]
async fn urls_are_those_that_the_caller_knows() {
    let app = TestApp::start_with(&server(TRUSTING)).await;
    assert_eq!(servers(&app, &AS_PUBLIC).await, json!([{"url": "https://api.example.org/public"}]));
    let forwarded = [("forwarded", "for=203.0.113.7;proto=https;host=api.example.org")];
    assert_eq!(servers(&app, &forwarded).await, json!([{"url": "https://api.example.org"}]));
    // A path is right under any name.
    assert_eq!(servers(&app, &AS_PUBLIC[3..]).await, json!([{"url": "/public"}]));
    assert_eq!(servers(&app, &AS_PUBLIC[1..2]).await, json!([{"url": "/"}]));

    let made = ask(&app, Method::POST, "/grains", &AS_PUBLIC).await;
    let location = made.header("location").to_owned();
    assert!(location.starts_with("/public/grains/"), "{location}");
    ask(&app, Method::GET, location.trim_start_matches("/public"), &AS_PUBLIC).await.ok();
    let no_redirects = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
    let page = no_redirects.build().expect("a client").get(format!("{}/docs", app.url()));
    let page = send(page.header("x-forwarded-prefix", "/public")).await;
    assert_eq!(page.header("location"), "/public/docs/");
    app.stop().await;

    let app = TestApp::start_with(&server(&format!("{TRUSTING}\nbase_path = \"/granary\""))).await;
    let document = ask(&app, Method::GET, "/granary/openapi.json", &AS_PUBLIC).await.ok();
    assert_eq!(document["servers"], json!([{"url": "https://api.example.org/public/granary"}]));
    let made = ask(&app, Method::POST, "/granary/grains", &AS_PUBLIC).await;
    assert!(made.header("location").starts_with("/public/granary/grains/"), "{:?}", made.headers);
    app.stop().await;
}

#[tokio::test]
async fn strangers_are_not_believed() {
    let app = TestApp::start_with(&server("trusted_proxies = [\"10.0.0.0/8\"]")).await;
    assert_eq!(servers(&app, &AS_PUBLIC).await, json!([{"url": "/"}]));
    let made = ask(&app, Method::POST, "/grains", &AS_PUBLIC).await;
    assert!(made.header("location").starts_with("/grains/"), "{:?}", made.headers);
    let misdirected = [("host", "evil.example"), ("x-forwarded-host", "localhost")];
    assert_eq!(ask(&app, Method::GET, "/models", &misdirected).await.problem().0, 421);
    app.stop().await;
}

#[tokio::test]
async fn the_host_that_was_asked_for_is_the_one_that_is_checked() {
    let app = TestApp::start_with(&server(TRUSTING)).await;
    let upstream = ("host", "granary:8080");
    ask(&app, Method::GET, "/models", &[upstream, AS_PUBLIC[1]]).await.ok();
    let page = ("origin", "https://api.example.org");
    ask(&app, Method::GET, "/models", &[upstream, AS_PUBLIC[1], page]).await.ok();
    for (header, value) in [
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-host", "localhost, evil.example"),
        ("forwarded", "for=1.1.1.1;host=evil.example"),
    ] {
        let refused = ask(&app, Method::GET, "/models", &[(header, value)]).await;
        assert_eq!(refused.problem().0, 421, "{value}");
    }
    // A proxy that writes one kind and passes the other on.
    let both = [("x-forwarded-host", "evil.example"), ("forwarded", "host=localhost")];
    assert_eq!(ask(&app, Method::GET, "/models", &both).await.problem().0, 421);
    let foreign_page = [AS_PUBLIC[1], ("origin", "http://localhost")];
    assert_eq!(ask(&app, Method::GET, "/models", &foreign_page).await.problem().0, 403);
    app.stop().await;
}

#[tokio::test]
async fn the_log_has_the_callers_address() {
    let json = "[telemetry]\nlog_format = \"json\"\n";
    for (settings, client, told) in [(TRUSTING, "203.0.113.7", 0), ("", "127.0.0.1", 1)] {
        let folder = folder_with(&format!("{}{json}", server(settings)));
        let (process, url) = Process::serve(folder.path(), &[]);
        let app = Caller::of(url);
        for n in 0..2 {
            let id = format!("asked-{n}");
            let headers = [("x-request-id", id.as_str()), AS_PUBLIC[0]];
            ask(&app, Method::GET, "/models", &headers).await.ok();
        }
        let log = process.stop();
        let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let asked: Vec<&Value> =
            lines.iter().map(|line| &line["spans"][0]).filter(|span| span["id"].is_string()).collect();
        assert_eq!(asked.len(), 2, "{log}");
        assert!(asked.iter().all(|span| span["client"] == client), "{log}");
        assert_eq!(log.matches("not in `server.trusted_proxies`").count(), told, "{log}");
    }
}
