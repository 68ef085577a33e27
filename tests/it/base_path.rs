//! `server.base_path`: everything below it, nothing elsewhere.

use granary::api::access::{Need, listed};
use granary::config::OpenRoutes;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::helpers::{Answer, Caller, TestApp, key_entry, secret, send, with_keys, with_tiny};
use crate::openapi::{Operation, assert_error};

async fn serve() -> (TestApp, Caller) {
    let keys = with_keys(&[key_entry("operator", &["admin"], "")]);
    let app = TestApp::start_with(&format!("[server]\nbase_path = \"/granary/\"\n{keys}{}", with_tiny(&[]))).await;
    let operator = app.with_key(&secret("operator"));
    (app, operator)
}

async fn ask(caller: &Caller, operation: &Operation, base: &str) -> Answer {
    let request = caller.request(operation.method.clone(), &format!("{base}{}", operation.path_of("tiny")));
    send(if operation.has_body { request.json(&operation.body()) } else { request }).await
}

fn is_nothing(answer: &Answer) -> bool {
    answer.status == StatusCode::NOT_FOUND && answer.text.contains("there is nothing here")
}

#[tokio::test]
async fn every_operation_answers_below_it_and_none_elsewhere() {
    let (app, operator) = serve().await;
    for operation in Operation::all() {
        let name = format!("{} {}", operation.method, operation.path);
        let elsewhere = ask(&operator, &operation, "").await;
        assert!(is_nothing(&elsewhere) && elsewhere.text.contains("`/granary`"), "{name}: {}", elsewhere.text);
        assert!(is_nothing(&ask(&operator, &operation, "/granaryx").await), "{name}");
        // Without its key a request learns what it needs, and with it, it is served, in the words of its family.
        let without = ask(&app, &operation, "/granary").await;
        if listed(&operation.method, &operation.pattern()) != Some(Need::Unless(OpenRoutes::Health)) {
            assert_eq!(without.status, StatusCode::UNAUTHORIZED, "{name}: {}", without.text);
            assert_error(&without, operation.family());
        }
        let answer = ask(&operator, &operation, "/granary").await;
        assert!(!is_nothing(&answer), "{name}: {}", answer.text);
        assert_ne!(answer.status, StatusCode::UNAUTHORIZED, "{name}");
    }
    app.stop().await;
}

#[tokio::test]
async fn answers_name_paths_below_it() {
    let (app, operator) = serve().await;
    let made = operator.post("/granary/grains", json!({"id": "w", "text": "hello"})).await;
    assert_eq!((made.status.as_u16(), made.header("location")), (201, "/granary/grains/w"));
    operator.get(made.header("location")).await.ok();
    operator.post("/granary", json!({"inputs": "hello"})).await.ok();
    operator.get("/granary/grains?limit=1").await.ok();

    let document = operator.get("/granary/openapi.json").await.ok();
    assert_eq!(document["servers"], json!([{"url": "/granary"}]));
    assert!(document["paths"]["/embed"].is_object());
    // The page is redirected to once, and finds the document.
    let page = operator.get("/granary/docs").await;
    assert!(page.status.is_success() && page.text.contains("swagger"), "{}", page.text);
    let script = operator.get("/granary/docs/swagger-initializer.js").await;
    assert!(script.text.contains("\"../openapi.json\""), "{}", script.text);

    let metrics = operator.get("/granary/metrics").await;
    assert!(metrics.text.contains("route=\"/grains/{id}\"") && !metrics.text.contains("route=\"/granary"));
    app.stop().await;
}

#[tokio::test]
async fn the_call_that_brings_grains_along_names_its_whole_path() {
    let server = "[server]\nbase_path = \"/granary\"\ntrusted_proxies = [\"127.0.0.1\"]\n";
    let app = TestApp::start_with(&format!("{server}{}", with_tiny(&["tiny-cls"]))).await;
    app.post("/granary/grains", json!({"text": "hello"})).await.ok();
    let body = json!({"name": "tiny-cls"});
    let switched = app.put("/granary/models/active", body.clone()).await.ok();
    assert_eq!(switched["bring_along"]["path"], "/granary/reembeddings", "{switched}");
    let request = app.request(Method::PUT, "/granary/models/active").header("x-forwarded-prefix", "/outer");
    let switched = send(request.json(&body)).await.ok();
    assert_eq!(switched["bring_along"]["path"], "/outer/granary/reembeddings", "{switched}");
    app.stop().await;
}
