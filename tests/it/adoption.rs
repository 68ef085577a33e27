//! A file of version 0.3: every grain reads back as it was, and its vectors get their provenance by proof.

use std::path::Path;
use std::process::Command;

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, FromRow};
use tempfile::TempDir;

use crate::helpers::{TestApp, repository, send, with_tiny};
use crate::reembedding_rules::{THIRD, begin_slowly, write_with};
use crate::reembeddings::{OTHER, begin, verb, wait_for, wait_until, write};

/// Of every ten grains of the file, one has no vector and one has another's.
const GRAINS: usize = 300;

#[derive(Debug, FromRow)]
struct OldGrain {
    id: String,
    text: String,
    vector: Option<Vec<u8>>,
    meta: String,
    created_at: String,
    updated_at: String,
}

/// How many grains the file gets: more by `make test-v03`.
fn n_grains() -> usize {
    std::env::var("GRANARY_TEST_V03_GRAINS").map_or(GRAINS, |text| text.parse().expect("a number"))
}

/// Starts a server over a database of version 0.3 whose vectors its active model has made.
async fn over_old_file(toml: &str) -> (TestApp, Vec<OldGrain>) {
    let maker = TestApp::start_with(toml).await;
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("granary.db");
    let script = repository().join("scripts/make-v03");
    let mut command = Command::new(script);
    command.arg(maker.url()).arg(&file).args(["--grains", &n_grains().to_string()]);
    // The server that it asks runs on this thread.
    let made = tokio::task::spawn_blocking(move || command.output().expect("run")).await.expect("no panic");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    maker.stop().await;
    let old = old_grains(&file).await;
    assert_eq!(old.len(), n_grains());
    (TestApp::start_in(folder, toml).await, old)
}

async fn old_grains(file: &Path) -> Vec<OldGrain> {
    let mut connection = SqliteConnectOptions::new().filename(file).read_only(true).connect().await.expect("open");
    let grains = sqlx::query_as("SELECT * FROM grains ORDER BY rowid").fetch_all(&mut connection).await.expect("read");
    connection.close().await.expect("closed");
    grains
}

async fn get(app: &TestApp, id: &str) -> Value {
    let url = reqwest::Url::parse(app.url()).expect("a URL");
    let mut url = url.join("/grains/").expect("a URL");
    url.path_segments_mut().expect("a path").pop_if_empty().push(id);
    app.get(url.path()).await.ok()
}

/// The lines of an adoption.
async fn adopt(app: &TestApp, body: Value) -> Vec<Value> {
    let answer = send(app.request(Method::POST, "/spaces/adopt").json(&body)).await;
    assert_eq!((answer.status.as_u16(), answer.content_type()), (200, "application/x-ndjson"), "{}", answer.text);
    answer.text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[tokio::test]
async fn old_grains_read_back_as_they_were_and_their_vectors_are_adopted() {
    let (app, old) = over_old_file(&with_tiny(&[])).await;
    for grain in &old {
        let read = get(&app, &grain.id).await;
        assert_eq!(read["text"], grain.text, "{}", grain.id);
        assert_eq!((&read["created_at"], &read["updated_at"]), (&json!(grain.created_at), &json!(grain.updated_at)));
        assert_eq!((&read["meta"]["embedding_model"], &read["meta"]["space"]), (&Value::Null, &Value::Null));
        assert_eq!(read["version"], 1);
        assert_meta(&grain.meta, &read["meta"]);
    }
    let count = app.post("/grains/count", json!({"filter": {"space": "unknown"}})).await.ok();
    assert_eq!(count["count"], n_grains());
    let words = app.post("/grains/search", json!({"query": "wheat flour"})).await.ok();
    assert_eq!(words["hits"].as_array().expect("hits").len(), 10, "old grains are found by words");

    // By the command line first, with a model that made none of them: nothing is lost by that.
    let (code, said) = adopt_by_command(&app, &["--from", "0123456789abcdef"]).await;
    assert!(code != Some(0) && said.contains("there is nothing to join"), "{said}");

    let lines = adopt(&app, json!({})).await;
    let end = &lines.last().expect("an end")["end"];
    let n_made = old.iter().enumerate().filter(|(n, _)| n % 10 != 3 && n % 10 != 9).count();
    let n_others = old.iter().enumerate().filter(|(n, _)| n % 10 == 3).count();
    assert_eq!((&end["model"], &end["adopted"], &end["unknown"]), (&json!("tiny"), &json!(n_made), &json!(n_others)));
    assert_eq!(end["unknown_ids"].as_array().expect("ids").len(), n_others.min(1000));
    assert!(lines[..lines.len() - 1].iter().all(|line| line["progress"]["compared"].is_u64()), "{lines:?}");

    let adopted = &old[1];
    let read = get(&app, &adopted.id).await;
    assert_eq!((&read["meta"]["origin"], &read["meta"]["embedding_model"]), (&json!("adopted"), &json!("tiny")));
    assert_eq!(read["meta"]["space"], end["space"]);
    let page = app.get("/grains?include=vector&filter=%7B%22source%22%3A%22mail%22%7D&limit=1").await.ok();
    assert_eq!(page["grains"][0]["id"], adopted.id);
    let vector: Vec<f32> = serde_json::from_value(page["grains"][0]["vector"].clone()).expect("a vector");
    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(Some(bytes), adopted.vector, "the bytes are the old ones");
    let dense = json!({"query": adopted.text, "mode": "dense", "limit": 1});
    assert_eq!(app.post("/grains/search", dense.clone()).await.ok()["hits"][0]["grain"]["id"], adopted.id);

    // Those that no model made stay, and nothing is left for another try but them.
    let refused = app.post("/spaces/adopt", json!({})).await.problem();
    assert_eq!((refused.0, refused.1.as_str()), (409, "conflict"));
    let again = adopt(&app, json!({"model": "tiny"})).await;
    assert_eq!(again.last().expect("an end")["end"]["adopted"], 0);
    let (code, said) = adopt_by_command(&app, &["--model", "tiny"]).await;
    assert_eq!(code, Some(0));
    assert!(said.contains(&format!("{n_others} compared with tiny: 0 adopted into")), "{said}");

    let app = app.restart_with(&with_tiny(&[])).await;
    assert_eq!(app.post("/grains/search", dense).await.ok()["hits"][0]["grain"]["id"], adopted.id);
    assert_eq!(get(&app, &adopted.id).await["meta"]["origin"], "adopted");
    app.stop().await;
}

/// What `granary grains adopt` says, and its exit code.
async fn adopt_by_command(app: &TestApp, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_granary"));
    command.args(["grains", "adopt", "--url", app.url()]).args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output().expect("run")).await.expect("no panic");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// Keys beyond `source` and `tags` are attributes, and what is no object is shown raw.
fn assert_meta(stored: &str, read: &Value) {
    match serde_json::from_str::<Value>(stored) {
        Ok(Value::Object(mut object)) if stored.matches("\"tags\"").count() < 2 => {
            if let Some(source) = object.get("source").and_then(Value::as_str) {
                assert_eq!(read["source"], source);
                object.shift_remove("source");
            }
            if object.get("tags").is_some_and(Value::is_array) {
                assert_eq!(read["tags"], object["tags"]);
                object.shift_remove("tags");
            }
            assert_eq!(read["attributes"], Value::Object(object), "{stored}");
            assert_eq!(read["raw"], Value::Null);
        }
        Ok(Value::Object(_)) => {}
        // Not JSON, or no object, or numbers that no reader has room for.
        _ => assert_eq!(read["raw"], stored, "{stored:?}"),
    }
}

#[tokio::test]
async fn a_space_is_joined_to_a_models_where_texts_agree() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let refused = app.post("/spaces/adopt", json!({})).await.problem();
    assert_eq!((refused.0, refused.1.as_str()), (409, "conflict"), "there is nothing to adopt");
    let declared = app.post("/spaces", json!({"name": "elsewhere", "dimensions": 32})).await.ok();
    let texts = ["wheat", "barley", "rye"];
    let vectors = app.post("/embed", json!({"inputs": texts})).await.ok();
    for (n, text) in texts.iter().enumerate() {
        // The last one is another text's vector.
        let vector = &vectors[if n == 2 { 0 } else { n }];
        let grain = json!({"id": text, "text": text, "space": declared["id"], "vector": vector});
        app.post("/grains", grain).await.ok();
    }
    let lines = adopt(&app, json!({"from": declared["id"], "model": "tiny"})).await;
    let end = &lines.last().expect("an end")["end"];
    assert_eq!((&end["adopted"], &end["unknown"], &end["unknown_ids"]), (&json!(2), &json!(1), &json!(["rye"])));
    assert_eq!(app.get("/grains/wheat").await.ok()["meta"]["space"], end["space"]);
    assert_eq!(app.get("/grains/rye").await.ok()["meta"]["space"], declared["id"]);
    let nearest = json!({"vector": vectors[0], "space": declared["id"], "limit": 10});
    let hits = app.post("/grains/search", nearest).await.ok();
    assert_eq!(hits["hits"].as_array().expect("hits").len(), 1, "what was joined is no longer in the old space");
    app.stop().await;
}

#[tokio::test]
async fn a_grain_that_is_changed_while_it_is_compared_counts_as_unknown_and_is_adopted_the_next_time() {
    let folder = TempDir::new().expect("a folder");
    let database = folder.path().join("granary.db");
    let app = TestApp::start_in(folder, &with_tiny(&[])).await;
    let declared = app.post("/spaces", json!({"name": "elsewhere", "dimensions": 32})).await.ok();
    let texts = ["wheat", "barley", "rye"];
    let vectors = app.post("/embed", json!({"inputs": texts})).await.ok();
    for (n, text) in texts.iter().enumerate() {
        let grain = json!({"id": text, "text": text, "space": declared["id"], "vector": vectors[n]});
        app.post("/grains", grain).await.ok();
    }
    // With the first of them that is adopted, the last one gets another version.
    let mut outsider = SqliteConnectOptions::new().filename(&database).connect().await.expect("a connection");
    let trigger = "CREATE TRIGGER meanwhile AFTER INSERT ON embeddings BEGIN \
                   UPDATE grains SET version = version + 1 WHERE id = 'rye'; END";
    sqlx::query(trigger).execute(&mut outsider).await.expect("created");
    let body = json!({"from": declared["id"], "model": "tiny"});
    let lines = adopt(&app, body.clone()).await;
    let end = &lines.last().expect("an end")["end"];
    assert_eq!((&end["compared"], &end["adopted"], &end["unknown"]), (&json!(3), &json!(2), &json!(1)), "{end}");
    assert_eq!((&end["unknown_ids"], served_from(&app, "rye").await), (&json!(["rye"]), declared["id"].clone()));

    sqlx::query("DROP TRIGGER meanwhile").execute(&mut outsider).await.expect("dropped");
    outsider.close().await.expect("closed");
    let lines = adopt(&app, body).await;
    let end = &lines.last().expect("an end")["end"];
    assert_eq!((&end["compared"], &end["adopted"], &end["unknown"]), (&json!(1), &json!(1), &json!(0)), "{end}");
    assert_eq!(served_from(&app, "rye").await, end["space"]);
    app.stop().await;
}

/// The space that a grain is served from.
async fn served_from(app: &TestApp, id: &str) -> Value {
    app.get(&format!("/grains/{id}")).await.ok()["meta"]["space"].clone()
}

#[tokio::test]
async fn what_is_joined_to_a_new_space_is_not_served_from_one_that_was_rolled_back() {
    let app = TestApp::start_with(&with_tiny(&["tiny-cls"])).await;
    let declared = declared_with_wheat(&app).await;
    let job = begin(&app, json!({"to": "tiny-cls"})).await;
    wait_until(&app, &job, "completed").await;
    verb(&app, &job, "rollback").await;
    wait_until(&app, &job, "rolled_back").await;
    let served_from = async || app.get("/grains/wheat").await.ok()["meta"]["space"].clone();
    assert_eq!(served_from().await, declared["id"]);
    let lines = adopt(&app, json!({"from": declared["id"], "model": "tiny"})).await;
    assert_eq!(served_from().await, lines.last().expect("an end")["end"]["space"]);
    app.stop().await;
}

/// A declared space with one grain, `wheat`, whose vector is of `tiny`.
async fn declared_with_wheat(app: &TestApp) -> Value {
    let declared = app.post("/spaces", json!({"name": "elsewhere", "dimensions": 32})).await.ok();
    let vectors = app.post("/embed", json!({"inputs": ["wheat"]})).await.ok();
    let grain = json!({"id": "wheat", "text": "wheat", "space": declared["id"], "vector": vectors[0]});
    app.post("/grains", grain).await.ok();
    declared
}

/// A re-embedding of everything to the other model that was rolled back: its vectors are kept.
async fn rolled_back_to_other(app: &TestApp) -> Value {
    let job = begin(app, json!({"to": OTHER})).await;
    wait_until(app, &job, "completed").await;
    verb(app, &job, "rollback").await;
    wait_until(app, &job, "rolled_back").await
}

#[tokio::test]
async fn what_is_joined_to_a_space_behind_one_that_was_rolled_back_is_not_served_from_that_one() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    let declared = declared_with_wheat(&app).await;
    let served_from = async |id: &str| app.get(&format!("/grains/{id}")).await.ok()["meta"]["space"].clone();
    rolled_back_to_other(&app).await;
    // The model's space is there already, behind the one that was given up.
    app.post("/grains", json!({"id": "rye", "text": "rye"})).await.ok();
    let lines = adopt(&app, json!({"from": declared["id"], "model": "tiny"})).await;
    let joined = lines.last().expect("an end")["end"]["space"].clone();
    assert_eq!((served_from("wheat").await, served_from("rye").await), (joined.clone(), joined.clone()));
    let nearest = json!({"query": "wheat", "mode": "dense", "limit": 1});
    let hits = app.post("/grains/search", nearest).await.ok();
    assert_eq!(hits["hits"][0]["space"], joined, "the indexes' order: {hits}");
    let app = app.restart_with(&with_tiny(&[OTHER])).await;
    assert_eq!(app.get("/grains/wheat").await.ok()["meta"]["space"], joined);
    app.stop().await;
}

#[tokio::test]
async fn a_space_is_not_joined_where_a_third_one_would_serve_what_is_joined() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    let declared = declared_with_wheat(&app).await;
    let served_from = async |id: &str| app.get(&format!("/grains/{id}")).await.ok()["meta"]["space"].clone();
    let job = rolled_back_to_other(&app).await;
    // It has vectors in both, and is served from the third space as long as that stands before the model's.
    app.post("/grains", json!({"id": "rye", "text": "rye", "model": OTHER})).await.ok();
    app.patch("/grains/rye", json!({"text": "rye", "model": "tiny"})).await.ok();
    assert_eq!(served_from("rye").await, job["space"]);
    let body = json!({"from": declared["id"], "model": "tiny"});
    let detail = refusal(&app, body.clone()).await;
    assert!(detail.contains(job["space"].as_str().expect("a space")) && detail.contains("/purge"), "{detail}");
    assert_eq!(served_from("wheat").await, declared["id"], "nothing was joined");

    verb(&app, &job, "purge").await;
    wait_for(&app, &job, |job| job["old_vectors"] == "purged").await;
    let lines = adopt(&app, body).await;
    let joined = lines.last().expect("an end")["end"]["space"].clone();
    assert_eq!((served_from("wheat").await, served_from("rye").await), (joined, job["space"].clone()));
    app.stop().await;
}

#[tokio::test]
async fn a_space_is_not_joined_to_one_that_a_job_makes_before_others_that_serve() {
    let app = TestApp::start_with(&with_tiny(&[OTHER, THIRD])).await;
    let declared = declared_with_wheat(&app).await;
    write_with(&app, "rye", "tiny", 300).await;
    // The job that waits behind this one has made nothing, so that its space has no place.
    begin_slowly(&app, THIRD).await;
    let job = begin(&app, json!({"to": OTHER})).await;
    let body = json!({"from": declared["id"], "model": OTHER});
    let detail = refusal(&app, body.clone()).await;
    assert!(detail.contains(job["id"].as_str().expect("an id")) && detail.contains("/cancel"), "{detail}");
    verb(&app, &job, "cancel").await;
    adopt(&app, body).await;
    app.stop().await;
}

/// The sentence with which a join is refused.
async fn refusal(app: &TestApp, body: Value) -> String {
    let (status, code, detail) = app.post("/spaces/adopt", body).await.problem();
    assert_eq!((status, code.as_str()), (409, "conflict"), "{detail}");
    detail
}

#[tokio::test]
async fn what_a_re_embedding_can_be_rolled_back_to_is_not_joined_away_from_it() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    let declared = declared_with_wheat(&app).await;
    let served_from = async || app.get("/grains/wheat").await.ok()["meta"]["space"].clone();
    let job = begin(&app, json!({"to": OTHER})).await;
    wait_until(&app, &job, "completed").await;
    let path = format!("/reembeddings/{}", job["id"].as_str().expect("an id"));
    for from in [&declared["id"], &job["space"]] {
        let detail = refusal(&app, json!({"from": from, "model": "tiny"})).await;
        let ways_out = ["rollback", "purge"].map(|verb| format!("POST {path}/{verb}"));
        assert!(ways_out.iter().all(|way| detail.contains(way)), "{detail}");
    }
    verb(&app, &job, "rollback").await;
    wait_until(&app, &job, "rolled_back").await;
    assert_eq!(served_from().await, declared["id"], "there was something to go back to");
    let lines = adopt(&app, json!({"from": declared["id"], "model": "tiny"})).await;
    let joined = lines.last().expect("an end")["end"]["space"].clone();
    assert_eq!(served_from().await, joined);

    // A purge ends the way back as well.
    let job = begin(&app, json!({"to": OTHER})).await;
    wait_until(&app, &job, "completed").await;
    let detail = refusal(&app, json!({"from": joined, "model": OTHER})).await;
    assert!(detail.contains(job["id"].as_str().expect("an id")), "{detail}");
    verb(&app, &job, "purge").await;
    wait_for(&app, &job, |job| job["old_vectors"] == "purged").await;
    let detail = refusal(&app, json!({"from": joined, "model": OTHER})).await;
    assert!(detail.contains("there is nothing to join"), "{detail}");
    app.stop().await;
}

#[tokio::test]
async fn what_was_written_since_a_re_embedding_is_not_joined_away_from_its_way_back() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    write(&app, 5).await;
    // So slow that it is found on its way back.
    let job = begin(&app, json!({"to": OTHER, "throttle": 0.02})).await;
    wait_until(&app, &job, "completed").await;
    let late = |n: usize| json!({"id": format!("late-{n}"), "text": format!("late number {n}"), "model": OTHER});
    app.post("/grains", json!({"grains": (0..300).map(late).collect::<Vec<_>>()})).await.ok();
    verb(&app, &job, "rollback").await;
    let detail = refusal(&app, json!({"from": job["space"], "model": "tiny"})).await;
    assert!(detail.contains(job["id"].as_str().expect("an id")), "{detail}");
    assert_eq!(verb(&app, &job, "cancel").await["state"], "rolled_back");
    app.stop().await;
}

#[tokio::test]
async fn a_text_on_which_the_model_fails_keeps_no_other_from_being_adopted() {
    const BROKEN: &str = "tiny-broken-token";
    let app = TestApp::start_with(&with_tiny(&[BROKEN])).await;
    let declared = app.post("/spaces", json!({"name": "elsewhere", "dimensions": 32})).await.ok();
    let texts = ["wheat", "barley", "rye ~ cannot be embedded", "oats"];
    let good: Vec<&str> = texts.iter().copied().filter(|text| !text.contains('~')).collect();
    let vectors = app.post(&format!("/models/{BROKEN}/embed"), json!({"inputs": good})).await.ok();
    for text in texts {
        // The bad one has the vector of another text.
        let vector = &vectors[good.iter().position(|good| *good == text).unwrap_or(0)];
        let id = text.split(' ').next().expect("a word");
        let grain = json!({"id": id, "text": text, "space": declared["id"], "vector": vector});
        app.post("/grains", grain).await.ok();
    }
    let lines = adopt(&app, json!({"from": declared["id"], "model": BROKEN})).await;
    let end = &lines.last().expect("an end")["end"];
    assert_eq!((&end["adopted"], &end["unknown"], &end["unknown_ids"]), (&json!(3), &json!(1), &json!(["rye"])));
    app.stop().await;
}
