//! Grains move to another model's space: beside what is served, at once, and back again.

use std::process::Command;
use std::time::{Duration, Instant};

use futures::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tempfile::TempDir;

use crate::helpers::{Caller, TestApp, cosine, send, until, vector_of, vectors_of, with_tiny};

/// How long a job may take that is done in a second on an idle machine. A throttled one rests for up to 99 times as long
/// as a batch took, a stall of the machine included.
pub const PATIENCE: Duration = Duration::from_mins(10);

/// The model that grains are moved to.
pub const OTHER: &str = "tiny-cls";

/// Waits until a job is in a state that says this of it.
pub async fn wait_for(app: &Caller, job: &Value, is_there: impl Fn(&Value) -> bool) -> Value {
    let path = format!("/reembeddings/{}", job["id"].as_str().expect("an id"));
    let look = async {
        loop {
            let job = app.get(&path).await.ok();
            if is_there(&job) {
                return job;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let Ok(job) = tokio::time::timeout(PATIENCE, look).await else {
        panic!("it does not get there: {}", app.get(&path).await.text);
    };
    job
}

pub async fn wait_until(app: &Caller, job: &Value, state: &str) -> Value {
    wait_for(app, job, |job| {
        let ended = ["completed", "completed_with_failures", "failed", "cancelled", "rolled_back"];
        let found = job["state"].as_str().expect("a state");
        assert!(found == state || !ended.contains(&found) || state == "rolled_back", "not {state}: {job}");
        found == state
    })
    .await
}

pub async fn begin(app: &Caller, body: Value) -> Value {
    let answer = app.post("/reembeddings", body).await;
    assert_eq!(answer.status.as_u16(), 202, "{}", answer.text);
    let job = answer.json();
    assert_eq!(answer.header("location"), format!("/reembeddings/{}", job["id"].as_str().expect("an id")));
    job
}

pub async fn verb(app: &Caller, job: &Value, verb: &str) -> Value {
    app.post(&format!("/reembeddings/{}/{verb}", job["id"].as_str().expect("an id")), json!({})).await.ok()
}

pub async fn refused(app: &Caller, job: &Value, verb: &str) -> String {
    let path = format!("/reembeddings/{}/{verb}", job["id"].as_str().expect("an id"));
    let (status, code, detail) = app.post(&path, json!({})).await.problem();
    assert_eq!((status, code.as_str()), (409, "conflict"), "{detail}");
    detail
}

pub async fn write(app: &Caller, n_grains: usize) {
    let grains: Vec<Value> =
        (0..n_grains).map(|n| json!({"id": n.to_string(), "text": format!("the text of number {n}")})).collect();
    app.post("/grains", json!({ "grains": grains })).await.ok();
}

pub async fn space_of(app: &Caller, model: &str) -> Value {
    app.post(&format!("/models/{model}/load"), json!({})).await.ok()["space"].clone()
}

/// How many grains are served from each space.
pub async fn served(app: &Caller) -> Vec<(Option<String>, u64)> {
    let counted = app.post("/grains/count", json!({"facets": ["space"]})).await.ok();
    let values = counted["facets"]["space"].as_array().unwrap_or_else(|| panic!("{counted}")).clone();
    let value =
        |value: &Value| (value["value"].as_str().map(str::to_owned), value["count"].as_u64().expect("a number"));
    values.iter().map(value).collect()
}

pub async fn found(app: &Caller, query: &str) -> Vec<String> {
    let body = json!({"query": query, "mode": "dense", "limit": 1000});
    let found = app.post("/grains/search", body).await.ok();
    found["hits"]
        .as_array()
        .expect("hits")
        .iter()
        .map(|hit| hit["grain"]["id"].as_str().expect("an id").into())
        .collect()
}

/// A grain's vector is what its space's model makes of its text.
pub async fn assert_embedded(app: &Caller, id: &str, model: &str) {
    let grain = app.get(&format!("/grains/{id}?include=vector")).await.ok();
    let made = app.post(&format!("/models/{model}/embed"), json!({"inputs": grain["text"]})).await.ok();
    let cosine = cosine(&vector_of(&grain["vector"]), &vectors_of(&made)[0]);
    assert!(cosine > 0.9999, "{cosine}: {grain}");
    assert_eq!(grain["meta"]["embedding_model"], model, "{grain}");
}

#[tokio::test]
async fn grains_move_at_once_and_back_again_with_what_was_edited_in_between() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    write(&app, 50).await;
    let (old, new) = (space_of(&app, "tiny").await, space_of(&app, OTHER).await);
    let [old, new] = [old, new].map(|space| space.as_str().expect("a space").to_owned());
    let before = found(&app, "number 7").await;

    let job = begin(&app, json!({"to": OTHER})).await;
    assert_eq!((&job["to"], &job["space"], &job["previous"]), (&json!(OTHER), &json!(new), &Value::Null), "{job}");
    let job = wait_until(&app, &job, "completed").await;
    assert_eq!((&job["done"], &job["total"], &job["failed"]), (&json!(50), &json!(50), &json!(0)), "{job}");
    assert!(job["cut_over_at"].is_string() && job["rollback_until"].is_string(), "{job}");
    assert_eq!(served(&app).await, [(Some(new.clone()), 50)]);
    for id in ["0", "7", "49"] {
        assert_embedded(&app, id, OTHER).await;
    }
    assert_eq!(found(&app, "number 7").await.len(), 50);

    // Edited, deleted and written while the new space serves, with the model that is still active.
    app.put("/grains/1", json!({"text": "another text"})).await.ok();
    app.put("/grains/2", json!({"text": "in the new space", "model": OTHER})).await.ok();
    app.delete("/grains/3").await;
    app.post("/grains", json!({"id": "late", "text": "written late", "model": OTHER})).await.ok();
    assert_eq!(served(&app).await, [(Some(new.clone()), 49), (Some(old.clone()), 1)]);
    assert_eq!(found(&app, "number 7").await.len(), 50);

    let job = verb(&app, &job, "rollback").await;
    assert!(["rolling_back", "rolled_back"].contains(&job["state"].as_str().expect("a state")), "{job}");
    // At once: only what exists in no old space is still in the new one.
    assert_eq!(app.get("/grains/7").await.ok()["meta"]["space"], json!(old));
    let job = wait_until(&app, &job, "rolled_back").await;
    assert_eq!(served(&app).await, [(Some(old.clone()), 50)]);
    for id in ["0", "1", "2", "7", "late"] {
        assert_embedded(&app, id, "tiny").await;
    }
    let unedited = |ids: &[String]| -> Vec<String> {
        ids.iter().filter(|id| !["1", "2", "3", "late"].contains(&id.as_str())).cloned().collect()
    };
    assert_eq!(unedited(&found(&app, "number 7").await), unedited(&before), "the old space's answers");
    assert_eq!(app.get("/grains/1").await.ok()["text"], "another text");
    assert_eq!(app.get("/grains/3").await.status.as_u16(), 404);
    assert!(refused(&app, &job, "rollback").await.contains("rolled_back"));

    // What the new space had is deleted when it is purged, and nothing else.
    verb(&app, &job, "purge").await;
    wait_for(&app, &job, |job| job["old_vectors"] == "purged").await;
    assert_eq!(served(&app).await, [(Some(old), 50)]);
    let body = json!({"vector": vec![1.0; 32], "space": new});
    assert!(app.post("/grains/search", body).await.ok()["hits"].as_array().expect("hits").is_empty());
    app.stop().await;
}

#[tokio::test]
async fn a_switch_says_what_lies_where_and_brings_the_rest_along() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    write(&app, 20).await;
    let old = space_of(&app, "tiny").await;
    let switch = app.put("/models/active", json!({"name": OTHER})).await.ok();
    assert_eq!(switch["grains_elsewhere"], 20, "{switch}");
    assert_eq!(switch["places"], json!([{"space": old, "model": "tiny", "grains": 20}]));
    let call = &switch["bring_along"];
    assert_eq!(*call, json!({"method": "POST", "path": "/reembeddings", "body": {"to": OTHER}}), "{switch}");
    app.put("/models/active", json!({"name": "tiny"})).await.ok();

    let switch = app.put("/models/active", json!({"name": OTHER, "reembed": true})).await.ok();
    let job = &switch["reembedding"];
    assert_eq!((&job["to"], &job["previous"]), (&json!(OTHER), &json!("tiny")), "{switch}");
    assert_eq!(switch["bring_along"], Value::Null);
    app.post("/grains", json!({"id": "new", "text": "written by the new model"})).await.ok();
    let job = wait_until(&app, job, "completed").await;
    assert_eq!(served(&app).await, [(job["space"].as_str().map(str::to_owned), 21)]);

    // The way back makes the old model active again, and moves what is new to its space.
    verb(&app, &job, "rollback").await;
    wait_until(&app, &job, "rolled_back").await;
    assert_eq!(app.get("/models/active").await.ok()["name"], "tiny");
    assert_eq!(served(&app).await, [(old.as_str().map(str::to_owned), 21)]);
    let switch = app.put("/models/active", json!({"name": "tiny"})).await.ok();
    assert_eq!((&switch["grains_elsewhere"], &switch["bring_along"]), (&json!(0), &Value::Null), "{switch}");
    app.stop().await;
}

#[tokio::test]
async fn a_switch_that_cannot_say_where_the_grains_are_moves_nothing() {
    let folder = TempDir::new().expect("a folder");
    let database = folder.path().join("granary.db");
    let app = TestApp::start_in(folder, &with_tiny(&[OTHER])).await;
    write(&app, 5).await;
    let mut outsider = SqliteConnectOptions::new().filename(&database).connect().await.expect("a connection");
    // What says where the grains are reads the table; what moves the model does not.
    sqlx::query("ALTER TABLE grains RENAME TO grains_elsewhere").execute(&mut outsider).await.expect("renamed");
    let (status, code, _) = app.put("/models/active", json!({"name": OTHER, "reembed": true})).await.problem();
    assert_eq!((status, code.as_str()), (503, "store_unavailable"));
    assert_eq!(app.get("/models/active").await.ok()["name"], "tiny");
    assert_eq!(app.get("/reembeddings").await.ok()["reembeddings"], json!([]));

    // So it is not the caller's own job that the next try meets.
    sqlx::query("ALTER TABLE grains_elsewhere RENAME TO grains").execute(&mut outsider).await.expect("renamed");
    outsider.close().await.expect("closed");
    let switch = app.put("/models/active", json!({"name": OTHER, "reembed": true})).await.ok();
    assert_eq!(switch["grains_elsewhere"], 5, "{switch}");
    wait_until(&app, &switch["reembedding"], "completed").await;
    app.stop().await;
}

#[tokio::test]
async fn a_switch_that_was_cut_off_beside_its_job_is_repeated_and_rolled_back_to_the_model_before() {
    let toml = with_tiny(&[OTHER]);
    let folder = TempDir::new().expect("a folder");
    let database = folder.path().join("granary.db");
    let mut app = TestApp::start_in(folder, &toml).await;
    write(&app, 20).await;
    // Each keeps one half from being written, as a crash before it would.
    for trigger in [
        "CREATE TRIGGER cut_off BEFORE INSERT ON reembeddings BEGIN SELECT RAISE(ABORT, 'cut off'); END",
        "CREATE TRIGGER cut_off BEFORE INSERT ON active_model BEGIN SELECT RAISE(ABORT, 'cut off'); END",
    ] {
        let mut outsider = SqliteConnectOptions::new().filename(&database).connect().await.expect("a connection");
        sqlx::query(trigger).execute(&mut outsider).await.expect("created");
        let (status, code, _) = app.put("/models/active", json!({"name": OTHER, "reembed": true})).await.problem();
        assert_eq!((status, code.as_str()), (503, "store_unavailable"), "{trigger}");
        assert_eq!(app.get("/models/active").await.ok()["name"], "tiny", "{trigger}");
        sqlx::query("DROP TRIGGER cut_off").execute(&mut outsider).await.expect("dropped");
        outsider.close().await.expect("closed");
        app = app.restart_with(&toml).await;
        assert_eq!(app.get("/models/active").await.ok()["name"], "tiny", "{trigger}");
        assert_eq!(app.get("/reembeddings").await.ok()["reembeddings"], json!([]), "{trigger}");
    }

    let switch = app.put("/models/active", json!({"name": OTHER, "reembed": true})).await.ok();
    assert_eq!((&switch["previous"], &switch["reembedding"]["previous"]), (&json!("tiny"), &json!("tiny")), "{switch}");
    // Both halves are found again.
    let app = app.restart_with(&toml).await;
    assert_eq!(app.get("/models/active").await.ok()["name"], OTHER);
    let job = wait_until(&app, &switch["reembedding"], "completed").await;
    verb(&app, &job, "rollback").await;
    wait_until(&app, &job, "rolled_back").await;
    assert_eq!(app.get("/models/active").await.ok()["name"], "tiny");
    app.post("/grains", json!({"id": "new", "text": "written after the way back"})).await.ok();
    assert_embedded(&app, "new", "tiny").await;

    // What is active already is recorded as such, and replaces nothing.
    let switch = app.put("/models/active", json!({"name": "tiny", "reembed": true})).await.ok();
    assert_eq!(switch["reembedding"]["previous"], Value::Null, "{switch}");
    wait_until(&app, &switch["reembedding"], "completed").await;
    app.stop().await;
}

#[tokio::test]
async fn a_job_is_paused_resumed_and_cancelled() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    write(&app, 400).await;
    // So slow that it does not end before it is paused.
    let job = begin(&app, json!({"to": OTHER, "throttle": 0.01})).await;
    let (status, code, detail) = app.post("/reembeddings", json!({"to": OTHER})).await.problem();
    assert_eq!((status, code.as_str()), (409, "conflict"), "{detail}");
    assert!(detail.contains(job["id"].as_str().expect("an id")), "{detail}");
    let (status, ..) = app.put("/models/active", json!({"name": OTHER, "reembed": true})).await.problem();
    assert_eq!((status, &app.get("/models/active").await.ok()["name"]), (409, &json!("tiny")), "nothing has changed");
    wait_for(&app, &job, |job| job["done"].as_u64() > Some(0)).await;
    let paused = verb(&app, &job, "pause").await;
    assert_eq!((&paused["state"], paused["done"].as_u64() < Some(400)), (&json!("paused"), true), "{paused}");
    assert!(refused(&app, &job, "pause").await.contains("is paused"));
    assert!(refused(&app, &job, "purge").await.contains("is paused"));
    assert!(refused(&app, &job, "rollback").await.contains("is paused"));
    // What is done stays done, and a restart does not let it go on.
    let app = app.restart_with(&with_tiny(&[OTHER])).await;
    let kept = app.get(&format!("/reembeddings/{}", job["id"].as_str().expect("an id"))).await.ok();
    assert_eq!(kept["state"], "paused", "{kept}");
    assert!(kept["done"].as_u64() >= paused["done"].as_u64(), "{kept}");
    assert_eq!(served(&app).await.len(), 1);
    verb(&app, &job, "resume").await;
    wait_for(&app, &job, |job| job["done"].as_u64() > kept["done"].as_u64()).await;
    let cancelled = verb(&app, &job, "cancel").await;
    assert_eq!(cancelled["state"], "cancelled", "{cancelled}");
    assert!(refused(&app, &job, "resume").await.contains("is cancelled"));
    let old = served(&app).await;
    assert_eq!((old.len(), old[0].1), (1, 400), "nothing was cut over");

    // A second job finds what the first has done.
    let again = begin(&app, json!({"to": OTHER})).await;
    let again = wait_until(&app, &again, "completed").await;
    let n_before = cancelled["done"].as_u64().expect("a number");
    assert!(again["done"].as_u64() <= Some(400 - n_before), "{again} after {cancelled}");
    let listed = app.get("/reembeddings").await.ok();
    let ids: Vec<&Value> = listed["reembeddings"].as_array().expect("jobs").iter().map(|job| &job["id"]).collect();
    assert_eq!(ids, [&again["id"], &job["id"]], "newest first");
    app.stop().await;
}

#[tokio::test]
async fn what_a_job_selects_moves_and_nothing_else() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    for n in 0..20 {
        let source = if n % 2 == 0 { "even" } else { "odd" };
        let body = json!({"id": n.to_string(), "text": format!("the text of number {n}"), "source": source});
        app.post("/grains", body).await.ok();
    }
    let old = space_of(&app, "tiny").await;
    let job = begin(&app, json!({"to": OTHER, "from": old, "filter": {"source": "even"}})).await;
    let job = wait_until(&app, &job, "completed").await;
    assert_eq!(job["done"], 10, "{job}");
    for n in 0..20 {
        let grain = app.get(&format!("/grains/{n}")).await.ok();
        let expected = if n % 2 == 0 { &job["space"] } else { &old };
        assert_eq!(grain["meta"]["space"], *expected, "{grain}");
    }
    assert_eq!(found(&app, "number").await.len(), 20, "both spaces are searched");
    for (body, wrong) in [
        (json!({"to": OTHER, "throttle": 0}), "throttle"),
        (json!({"to": OTHER, "throttle": 1.5}), "throttle"),
        (json!({"to": OTHER, "from": "somewhere"}), "from"),
        (json!({"to": OTHER, "from": old, "filter": {"space": old}}), "from"),
        (json!({"from": old}), "to"),
    ] {
        let (status, code, detail) = app.post("/reembeddings", body.clone()).await.problem();
        assert_eq!((status, code.as_str()), (422, "invalid_request"), "{body}");
        assert!(detail.contains(wrong), "{body}: {detail}");
    }
    assert_eq!(app.post("/reembeddings", json!({"to": "nobody"})).await.problem().1, "model_not_found");
    assert_eq!(app.get("/reembeddings/nobody").await.problem().1, "not_found");
    app.stop().await;
}

#[tokio::test]
async fn a_model_that_fails_on_some_grains_cuts_nothing_over_and_says_which() {
    const BROKEN: &str = "tiny-broken-token";
    let app = TestApp::start_with(&with_tiny(&[BROKEN])).await;
    write(&app, 100).await;
    for id in ["5", "50", "95"] {
        app.put(&format!("/grains/{id}"), json!({"text": format!("number {id} ~ cannot be embedded")})).await.ok();
    }
    let old = served(&app).await;
    let job = begin(&app, json!({"to": BROKEN})).await;
    let job = wait_until(&app, &job, "completed_with_failures").await;
    assert_eq!((&job["done"], &job["failed"], &job["cut_over_at"]), (&json!(97), &json!(3), &Value::Null), "{job}");
    assert!(job["reason"].as_str().expect("a reason").contains("3 grains"), "{job}");
    assert_eq!(served(&app).await, old, "nothing was cut over");
    let id = job["id"].as_str().expect("an id");
    let failures = app.get(&format!("/reembeddings/{id}/failures")).await.ok();
    assert_eq!(failures["total"], 3);
    for (failure, id) in failures["failures"].as_array().expect("failures").iter().zip(["5", "50", "95"]) {
        assert_eq!((&failure["grain"], &failure["tries"]), (&json!(id), &json!(3)), "{failures}");
        assert!(failure["reason"].as_str().expect("a reason").contains("no number to compare by"), "{failures}");
    }
    // One is mended, one is deleted; what is left is tried again.
    app.put("/grains/5", json!({"text": "mended"})).await.ok();
    app.delete("/grains/50").await;
    verb(&app, &job, "resume").await;
    let job = wait_for(&app, &job, |job| job["state"] == "completed_with_failures" && job["failed"] == 1).await;
    app.delete("/grains/95").await;
    verb(&app, &job, "resume").await;
    let job = wait_until(&app, &job, "completed").await;
    assert_eq!(served(&app).await, [(job["space"].as_str().map(str::to_owned), 98)]);
    app.stop().await;
}

#[tokio::test]
async fn of_many_grains_on_which_a_model_fails_each_is_tried_as_often() {
    const BROKEN: &str = "tiny-broken-token";
    let app = TestApp::start_with(&with_tiny(&[BROKEN])).await;
    let grain = |n: usize| json!({"id": format!("bad{n}"), "text": format!("number {n} ~ cannot be embedded")});
    app.post("/grains", json!({"grains": (0..150).map(grain).collect::<Vec<_>>()})).await.ok();
    write(&app, 3).await;
    let job = begin(&app, json!({"to": BROKEN})).await;
    let job = wait_until(&app, &job, "completed_with_failures").await;
    assert_eq!((&job["done"], &job["failed"]), (&json!(3), &json!(150)), "{job}");
    let failures = app.get(&format!("/reembeddings/{}/failures", job["id"].as_str().expect("an id"))).await.ok();
    assert_eq!(failures["total"], 150);
    let listed = failures["failures"].as_array().expect("failures");
    assert!(!listed.is_empty() && listed.iter().all(|failure| failure["tries"] == 3), "{failures}");
    app.stop().await;
}

#[tokio::test]
async fn a_job_whose_model_makes_another_space_stops_with_the_reason() {
    let toml = |extra: &str| format!("{}{extra}", with_tiny(&[OTHER]));
    let app = TestApp::start_with(&toml("")).await;
    write(&app, 300).await;
    let job = begin(&app, json!({"to": OTHER, "throttle": 0.01})).await;
    wait_for(&app, &job, |job| job["done"].as_u64() > Some(0)).await;
    verb(&app, &job, "pause").await;
    let app = app.restart_with(&toml("max_tokens = 16\n")).await;
    verb(&app, &job, "resume").await;
    let job = wait_until(&app, &job, "failed").await;
    let reason = job["reason"].as_str().expect("a reason");
    assert!(reason.contains("files or settings have changed"), "{reason}");
    // And one whose model is not known any more.
    let app = app.restart_with(&with_tiny(&[])).await;
    verb(&app, &job, "resume").await;
    let job = wait_until(&app, &job, "failed").await;
    assert!(job["reason"].as_str().expect("a reason").contains("tiny-cls"), "{job}");
    app.stop().await;
}

#[tokio::test]
async fn a_job_waits_while_it_is_not_known_whether_its_model_makes_its_space() {
    let folder = TempDir::new().expect("a folder");
    let database = folder.path().join("granary.db");
    let app = TestApp::start_in(folder, &with_tiny(&[OTHER])).await;
    write(&app, 300).await;
    let job = begin(&app, json!({"to": OTHER, "throttle": 0.01})).await;
    wait_for(&app, &job, |job| job["done"].as_u64() > Some(0)).await;
    verb(&app, &job, "pause").await;
    let mut outsider = SqliteConnectOptions::new().filename(&database).connect().await.expect("a connection");
    for sql in [
        "DELETE FROM accepted_spaces WHERE model = 'tiny-cls'",
        "CREATE TRIGGER cut_off BEFORE INSERT ON accepted_spaces BEGIN SELECT RAISE(ABORT, 'cut off'); END",
    ] {
        sqlx::query(sql).execute(&mut outsider).await.expect("written");
    }
    app.post(&format!("/models/{OTHER}/unload"), json!({})).await.ok();
    verb(&app, &job, "resume").await;
    // The job loads the model, which cannot be recorded to make its space.
    let model = async || app.get(&format!("/models/{OTHER}")).await.ok();
    until("the job loads its model", async || model().await["grain_writes"]["allowed"] == false).await;

    sqlx::query("DROP TRIGGER cut_off").execute(&mut outsider).await.expect("dropped");
    outsider.close().await.expect("closed");
    // Without a word the next look at the model would do, half a minute later.
    app.post(&format!("/models/{OTHER}/accept"), json!({"numerics": true})).await.ok();
    wait_until(&app, &job, "completed").await;
    app.stop().await;
}

#[tokio::test]
async fn a_job_that_waits_for_the_database_says_so_and_not_where_that_lies() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().display().to_string();
    let database = folder.path().join("granary.db");
    let app = TestApp::start_in(folder, &with_tiny(&[OTHER])).await;
    write(&app, 300).await;
    let mut outsider = SqliteConnectOptions::new().filename(&database).connect().await.expect("a connection");
    let trigger = "CREATE TRIGGER cut_off BEFORE INSERT ON embeddings BEGIN SELECT RAISE(ABORT, 'cut off'); END";
    sqlx::query(trigger).execute(&mut outsider).await.expect("created");
    let job = begin(&app, json!({"to": OTHER})).await;
    let waiting = wait_for(&app, &job, |job| job["reason"].is_string()).await;
    assert_eq!((&waiting["state"], &waiting["rate"]), (&json!("running"), &Value::Null), "{waiting}");
    let reason = waiting["reason"].as_str().expect("a reason");
    assert!(reason.contains("the database does not answer") && !reason.contains(&path), "{reason}");
    // It is tried again each second.
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(2_500) {
        let waiting = app.get(&format!("/reembeddings/{}", job["id"].as_str().expect("an id"))).await.ok();
        assert_eq!(waiting["reason"], reason, "it waits on: {waiting}");
    }

    sqlx::query("DROP TRIGGER cut_off").execute(&mut outsider).await.expect("dropped");
    outsider.close().await.expect("closed");
    let job = wait_until(&app, &job, "completed").await;
    assert_eq!((&job["done"], &job["reason"]), (&json!(300), &Value::Null), "{job}");
    app.stop().await;
}

#[tokio::test]
async fn a_purge_that_waits_says_so_beside_what_is_said_of_its_job() {
    let folder = TempDir::new().expect("a folder");
    let database = folder.path().join("granary.db");
    let app = TestApp::start_in(folder, &with_tiny(&["tiny-broken-token"])).await;
    write(&app, 5).await;
    app.post("/grains", json!({"id": "bad", "text": "it ~ cannot be embedded"})).await.ok();
    let job = begin(&app, json!({"to": "tiny-broken-token"})).await;
    wait_until(&app, &job, "completed_with_failures").await;
    let mut outsider = SqliteConnectOptions::new().filename(&database).connect().await.expect("a connection");
    let trigger = "CREATE TRIGGER cut_off BEFORE DELETE ON embeddings BEGIN SELECT RAISE(ABORT, 'cut off'); END";
    sqlx::query(trigger).execute(&mut outsider).await.expect("created");
    outsider.close().await.expect("closed");
    verb(&app, &job, "purge").await;
    let has = |job: &Value, sentence: &str| job["reason"].as_str().is_some_and(|reason| reason.contains(sentence));
    let job = wait_for(&app, &job, |job| has(job, "the database does not answer")).await;
    assert!(has(&job, "1 grain could not be embedded") && job["old_vectors"] == "purging", "{job}");
    app.stop().await;
}

#[tokio::test]
async fn old_vectors_go_when_they_are_purged_and_with_them_the_way_back() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    write(&app, 30).await;
    let old = space_of(&app, "tiny").await;
    let job = begin(&app, json!({"to": OTHER})).await;
    let job = wait_until(&app, &job, "completed").await;
    let in_old = async |app: &Caller| {
        let spaces = app.get("/grains/0?include=vector").await.ok();
        let body = json!({"vector": spaces["vector"], "space": old});
        app.post("/grains/search", body).await.ok()["hits"].as_array().expect("hits").len()
    };
    assert_eq!(in_old(&app).await, 0, "the old space serves nothing");
    verb(&app, &job, "purge").await;
    let changed_at = job["changed_at"].clone();
    let job = wait_for(&app, &job, |job| job["old_vectors"] == "purged").await;
    assert_eq!((&job["rollback_until"], &job["changed_at"]), (&Value::Null, &changed_at), "its state is what it was");
    assert!(refused(&app, &job, "rollback").await.contains("old vectors are gone"));
    assert_eq!(found(&app, "number 3").await.len(), 30);
    let app = app.restart_with(&with_tiny(&[OTHER])).await;
    assert_eq!(found(&app, "number 3").await.len(), 30);

    // A window of no length closes by itself, and lets nothing be taken back before.
    let toml = format!("[grains]\nrollback_window = \"0s\"\n{}", with_tiny(&[OTHER]));
    let app = app.restart_with(&toml).await;
    let job = begin(&app, json!({"to": "tiny"})).await;
    let job = wait_until(&app, &job, "completed").await;
    assert!(refused(&app, &job, "rollback").await.contains("cannot be rolled back"));
    wait_for(&app, &job, |job| job["old_vectors"] == "purged").await;
    assert_eq!(found(&app, "number 3").await.len(), 30);
    app.stop().await;
}

#[tokio::test]
async fn a_job_is_followed_until_it_ends() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    write(&app, 200).await;
    let job = begin(&app, json!({"to": OTHER, "throttle": 0.2})).await;
    let path = format!("/reembeddings/{}/events", job["id"].as_str().expect("an id"));
    let answer = send(app.request(Method::GET, &path)).await;
    assert_eq!(answer.content_type(), "text/event-stream");
    let events: Vec<Value> = answer
        .text
        .split("\n\n")
        .filter_map(|event| event.strip_prefix("event: reembedding\ndata: "))
        .map(|data| serde_json::from_str(data).expect("JSON"))
        .collect();
    let last = events.last().expect("events");
    assert_eq!((&last["state"], &last["done"]), (&json!("completed"), &json!(200)), "{last}");
    let done: Vec<u64> = events.iter().map(|event| event["done"].as_u64().expect("a number")).collect();
    assert!(done.is_sorted() && events.len() > 1, "{done:?}");
    assert_eq!(app.get("/reembeddings/nobody/events").await.problem().1, "not_found");
    app.stop().await;
}

#[tokio::test]
async fn a_server_stops_though_somebody_follows_a_job() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    write(&app, 300).await;
    let job = begin(&app, json!({"to": OTHER, "throttle": 0.01})).await;
    let path = format!("/reembeddings/{}/events", job["id"].as_str().expect("an id"));
    let mut events = app.request(Method::GET, &path).send().await.expect("an answer").bytes_stream();
    events.next().await.expect("an event").expect("read");
    let folder = app.stop_and_keep().await;
    while let Some(rest) = events.next().await {
        rest.expect("the stream ends in order");
    }
    // It goes on by itself.
    let app = TestApp::start_in(folder, &with_tiny(&[OTHER])).await;
    let now = app.get(&format!("/reembeddings/{}", job["id"].as_str().expect("an id"))).await.ok();
    assert!(["queued", "running"].contains(&now["state"].as_str().expect("a state")), "{now}");
    app.stop().await;
}

#[tokio::test]
async fn the_command_moves_grains_and_says_how_far_it_is() {
    let app = TestApp::start_with(&with_tiny(&[OTHER, "tiny-broken-token"])).await;
    write(&app, 20).await;
    app.put("/grains/1", json!({"text": "one ~ that fails"})).await.ok();
    let of = async |group: &str, arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_granary"));
        command.arg(group).args(arguments).args(["--url", app.url()]).env_clear();
        // The server is in this process: waiting for the command must not hold it.
        let output = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("it runs");
        let [out, error] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).expect("UTF-8"));
        (output.status.success(), out, error)
    };
    let granary = async |arguments: &[&str]| of("reembed", arguments).await;
    let (succeeded, out, error) =
        granary(&["begin", OTHER, "--watch", "--filter", r#"{"ids": ["0", "1", "2"]}"#]).await;
    assert!(succeeded && out.contains("(to tiny-cls) is completed"), "{out}{error}");
    let id = out.split(' ').next().expect("an id").to_owned();
    assert!(error.starts_with(&format!("{id} (to tiny-cls) is ")), "named before it is watched: {error}");
    let (succeeded, out, _) = granary(&["list"]).await;
    assert!(succeeded && out.contains(&id) && out.contains("3/3"), "{out}");
    let (succeeded, out, _) = granary(&["rollback", &id]).await;
    assert!(succeeded && out.contains("is roll"), "{out}");
    let (succeeded, out, error) = granary(&["begin", "tiny-broken-token", "--watch"]).await;
    assert!(
        !succeeded && out.is_empty() && error.contains("the job is completed_with_failures: 1 grain"),
        "{out}{error}"
    );
    let newest = app.get("/reembeddings").await.ok()["reembeddings"][0]["id"].as_str().expect("an id").to_owned();
    let (succeeded, out, _) = granary(&["failures", &newest]).await;
    assert!(succeeded && out.starts_with("1  "), "{out}");
    let (succeeded, _, error) = granary(&["pause", "nobody"]).await;
    assert!(!succeeded && error.contains("there is no re-embedding `nobody`"), "{error}");

    let (succeeded, out, error) = of("models", &["activate", OTHER]).await;
    let elsewhere = "grains in other spaces: 20. `granary reembed begin tiny-cls` brings them along\n";
    assert!(succeeded && out == format!("tiny-cls is active; before it was tiny\n{elsewhere}"), "{out}{error}");
    of("models", &["activate", "tiny"]).await;
    let (succeeded, out, error) = of("models", &["activate", OTHER, "--reembed"]).await;
    assert!(succeeded && out.starts_with("tiny-cls is active; before it was tiny\nthe re-embedding "), "{out}{error}");
    let id = out.lines().nth(1).and_then(|line| line.split(' ').nth(2)).expect("an id").to_owned();
    let (succeeded, out, error) = granary(&["watch", &id]).await;
    assert!(succeeded && out.contains("is completed"), "{out}{error}");
    app.stop().await;
}
