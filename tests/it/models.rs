//! Models are listed, loaded, switched and unloaded over HTTP.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tempfile::TempDir;

use crate::helpers::{Answer, TINY, TestApp, cosine, let_pass, send, until, vectors_of, with_tiny};

async fn state(app: &TestApp, name: &str) -> String {
    let model = app.get(&format!("/models/{name}")).await.ok();
    model["state"].as_str().expect("a state").to_owned()
}

/// Posts nothing.
async fn order(app: &TestApp, path: &str) -> Answer {
    send(app.request(Method::POST, path)).await
}

/// Asks, and leaves when the server has had the time to answer; says whether it did.
async fn is_answered(app: &TestApp, request: impl Future<Output = Answer>) -> bool {
    tokio::select! {
        _ = request => true,
        () = let_pass(app, Duration::from_millis(150)) => false,
    }
}

#[tokio::test]
async fn the_catalog_is_listed_with_what_is_known_of_each_model() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    order(&app, "/models/tiny/load").await.ok();
    let list = app.get("/models").await.ok();
    assert_eq!(list["active"], TINY);
    let names: Vec<&str> =
        list["models"].as_array().expect("models").iter().filter_map(|model| model["name"].as_str()).collect();
    assert_eq!(names, ["all-MiniLM-L6-v2", "bert-base-uncased", "nomic-embed-text-v1.5", TINY]);
    let nomic = &list["models"][2];
    assert_eq!((&nomic["size"], &nomic["state"], &nomic["space"]), (&json!("large"), &json!("unloaded"), &json!(null)));
    assert_eq!(nomic["matryoshka_dims"], json!([512, 256, 128, 64]));
    assert_eq!(nomic["prompts"], json!({"query": "search_query: ", "document": "search_document: "}));
    let tiny = app.get("/models/tiny").await.ok();
    assert_eq!((&tiny["state"], &tiny["active"]), (&json!("ready"), &json!(true)));
    assert_eq!(tiny["space"].as_str().map(str::len), Some(16));
    assert_eq!(tiny["fingerprint"].as_str().map(str::len), Some(64));
    assert!(tiny["provider"]["reason"].as_str().is_some_and(|reason| !reason.is_empty()));
    app.stop().await;
}

#[tokio::test]
async fn load_and_unload_answer_with_the_model_however_often_they_are_asked() {
    let app = TestApp::start_with(&with_tiny(&["tiny-cls"])).await;
    for _ in 0..2 {
        let model = order(&app, "/models/tiny-cls/load").await.ok();
        assert_eq!((&model["name"], &model["state"]), (&json!("tiny-cls"), &json!("ready")));
    }
    for _ in 0..2 {
        let model = order(&app, "/models/tiny-cls/unload").await.ok();
        assert_eq!((&model["name"], &model["state"]), (&json!("tiny-cls"), &json!("unloaded")));
    }
    app.stop().await;
}

#[tokio::test]
async fn the_next_request_loads_an_unloaded_model_the_active_one_too() {
    let app = TestApp::start_with(&with_tiny(&["tiny-cls"])).await;
    assert_eq!(state(&app, "tiny-cls").await, "unloaded");
    let first = app.post("/models/tiny-cls/embed", json!({"inputs": "hello"})).await;
    assert_eq!(state(&app, "tiny-cls").await, "ready");
    order(&app, "/models/tiny-cls/unload").await.ok();
    let second = app.post("/models/tiny-cls/embed", json!({"inputs": "hello"})).await;
    assert_eq!(first.ok(), second.ok());

    order(&app, "/models/tiny/unload").await.ok();
    assert_eq!(app.get("/models/active").await.ok()["state"], "unloaded");
    assert!(app.get("/health/ready").await.status.is_success(), "what can be loaded is ready");
    app.post("/embed", json!({"inputs": "hello"})).await.ok();
    assert_eq!(state(&app, TINY).await, "ready");
    app.stop().await;
}

#[tokio::test]
async fn a_switch_answers_with_both_models_and_moves_requests_that_name_none() {
    let app = TestApp::start_with(&with_tiny(&["tiny-cls"])).await;
    let before = app.post("/embed", json!({"inputs": "hello"})).await;
    assert_eq!(before.header("x-model"), TINY);
    let switch = app.put("/models/active", json!({"name": "TINY-cls"})).await.ok();
    assert_eq!((&switch["name"], &switch["previous"]), (&json!("tiny-cls"), &json!(TINY)));
    let after = app.post("/embed", json!({"inputs": "hello"})).await;
    assert_eq!(
        (after.header("x-model"), switch["space"].as_str()),
        ("tiny-cls", app.get("/models/active").await.ok()["space"].as_str())
    );
    assert_ne!(after.ok(), before.ok());
    assert_eq!(state(&app, TINY).await, "ready", "the previous model stays");
    let unknown = app.put("/models/active", json!({"name": "nothing"})).await.problem();
    assert_eq!((unknown.0, unknown.1.as_str()), (404, "model_not_found"));
    assert_eq!(app.get("/models").await.ok()["active"], "tiny-cls");
    app.stop().await;
}

#[tokio::test]
async fn a_switch_names_the_recent_callers_of_the_model_that_was_active() {
    let app = TestApp::start_with(&with_tiny(&["tiny-cls"])).await;
    let by = |agent: &str, path: &str| {
        send(app.request(Method::POST, path).header("user-agent", agent).json(&json!({"inputs": "a"})))
    };
    by("search/1.0", "/embed").await.ok();
    by("search/1.0", "/embed").await.ok();
    by("other/2.0", "/models/tiny-cls/embed").await.ok();
    let switch = app.put("/models/active", json!({"name": "tiny-cls"})).await.ok();
    let callers = switch["recent_callers"].as_array().expect("callers");
    assert_eq!(callers.len(), 1, "{switch}");
    assert_eq!((&callers[0]["caller"], &callers[0]["requests"]), (&json!("search/1.0"), &json!(2)));
    assert_eq!(switch["grains_elsewhere"], 0);
    app.stop().await;
}

#[tokio::test]
async fn callers_of_a_model_that_loads_share_one_load() {
    let app = TestApp::start_with(&with_tiny(&["tiny-max"])).await;
    let requests = (0..16).map(|_| app.post("/models/tiny-max/embed", json!({"inputs": "hello"})));
    let answers = futures::future::join_all(requests).await;
    let vectors: Vec<_> = answers.iter().map(|answer| vectors_of(&answer.ok()).remove(0)).collect();
    // What a text is batched with shows in the last bits; another model's vector points elsewhere.
    assert!(vectors.iter().all(|vector| cosine(vector, &vectors[0]) > 0.9999), "{vectors:?}");
    assert!(answers.iter().all(|answer| answer.header("x-model") == "tiny-max"));
    let metrics = app.get("/metrics").await.text;
    let loads = "granary_model_loads_total{model=\"tiny-max\",outcome=\"loaded\"} 1";
    assert!(metrics.lines().any(|line| line == loads), "{metrics}");
    app.stop().await;
}

/// Loads a model, however often that takes longer than one order waits.
async fn load_patiently(app: &TestApp, name: &str) {
    for _ in 0..30 {
        let answer = order(app, &format!("/models/{name}/load")).await;
        if answer.status != 503 || answer.problem().1 != "model_loading" {
            answer.ok();
            return;
        }
    }
    panic!("`{name}` is still loading");
}

/// Has a model unloaded that a request holds, or is about to hold; returns once the unload waits for that.
async fn begin_to_unload(app: &TestApp, name: &str) {
    let path = format!("/models/{name}/unload");
    for _ in 0..20 {
        // One that is answered came before the model was held. One that is not goes on when its caller leaves.
        if !is_answered(app, order(app, &path)).await && state(app, name).await == "draining" {
            return;
        }
    }
    panic!("nothing holds `{name}`");
}

#[tokio::test]
async fn the_time_for_a_load_begins_when_the_last_request_has_left_the_model() {
    let folder = TempDir::new().expect("a folder");
    let database = folder.path().join("granary.db");
    let toml = format!("[models]\nload_timeout = \"2s\"\n{}", with_tiny(&["tiny-cls"]));
    let app = TestApp::start_in(folder, &toml).await;
    for name in [TINY, "tiny-cls"] {
        load_patiently(&app, name).await;
    }
    // A switch holds the model until it is recorded, and that waits for who has locked the database.
    let mut outsider = SqliteConnectOptions::new().filename(&database).connect().await.expect("a connection");
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut outsider).await.expect("locked");
    let switch = app.put("/models/active", json!({"name": "tiny-cls"}));
    let meanwhile = async {
        begin_to_unload(&app, "tiny-cls").await;
        let embed = app.post("/models/tiny-cls/embed", json!({"inputs": "hello"}));
        let release = async {
            // An order has one time for all, since who gives it may be the one who holds the model.
            let refused = order(&app, "/models/tiny-cls/load").await;
            assert_eq!(refused.header("retry-after"), "5");
            let refused = refused.problem();
            assert_eq!((refused.0, refused.1.as_str()), (503, "model_loading"), "{}", refused.2);
            assert!(refused.2.starts_with("`tiny-cls` is still being unloaded after 2.0 s"), "{}", refused.2);
            // The other request was sent before the order. Not for long: the switch waits for the lock 5 s at most.
            let_pass(&app, Duration::from_millis(100)).await;
            assert_eq!(state(&app, "tiny-cls").await, "draining");
            sqlx::raw_sql("ROLLBACK").execute(&mut outsider).await.expect("released");
        };
        tokio::join!(embed, release).0
    };
    let (switched, embedded) = tokio::join!(switch, meanwhile);
    assert_eq!(switched.ok()["name"], "tiny-cls");
    assert_eq!(vectors_of(&embedded.ok()).len(), 1, "it has waited for longer than a load may take");
    outsider.close().await.expect("closed");
    app.stop().await;
}

#[tokio::test]
async fn a_model_is_disabled_and_enabled_to_the_end_though_its_caller_has_left() {
    let folder = TempDir::new().expect("a folder");
    let database = folder.path().join("granary.db");
    let toml = with_tiny(&["tiny-cls"]);
    let app = TestApp::start_in(folder, &toml).await;
    order(&app, "/models/tiny-cls/load").await.ok();
    let mut outsider = SqliteConnectOptions::new().filename(&database).connect().await.expect("a connection");
    for (verb, body, is_disabled) in [("unload", json!({"disable": true}), true), ("load", json!({}), false)] {
        sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut outsider).await.expect("locked");
        let path = format!("/models/tiny-cls/{verb}");
        let answered = is_answered(&app, app.post(&path, body)).await;
        assert!(!answered, "{verb} is recorded, and that waits for who has locked the database");
        // The server learns that nobody waits for the answer any more.
        let_pass(&app, Duration::from_millis(150)).await;
        sqlx::raw_sql("ROLLBACK").execute(&mut outsider).await.expect("released");
        until("it goes on", async || app.get("/models/tiny-cls").await.ok()["disabled"] == is_disabled).await;
    }
    outsider.close().await.expect("closed");
    let app = app.restart_with(&toml).await;
    assert_eq!(app.get("/models/tiny-cls").await.ok()["disabled"], false, "what was recorded is the same");
    app.stop().await;
}

#[tokio::test]
async fn with_one_model_the_others_are_not_there() {
    let toml = with_tiny(&["tiny-cls"]).replace("[ai]\n", "[ai]\nmulti_model_enabled = false\n");
    let app = TestApp::start_with(&toml).await;
    let list = app.get("/models").await.ok();
    assert_eq!(list["models"].as_array().map(Vec::len), Some(1));
    let refused = app.post("/embed", json!({"inputs": "hello", "model": "tiny-cls"})).await.tei_error();
    assert_eq!((refused.0, refused.1.as_str()), (404, "NotFound"));
    assert!(refused.2.contains("`tiny`"), "{}", refused.2);
    assert_eq!(vectors_of(&app.post("/embed", json!({"inputs": "hello"})).await.ok()).len(), 1);
    app.stop().await;
}
