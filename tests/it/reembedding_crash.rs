//! A server that re-embeds is killed again and again: it goes on by itself, and nothing is lost, doubled or half-moved.
//!
//! `REEMBED_CRASH_KILLS` chooses more kills than the usual: see `make reembed-crash`.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

use crate::helpers::{
    Caller, Chance, Process, TINY, cosine, folder_with, number_from_env, send, vector_of, vectors_of, with_tiny,
};
use crate::reembeddings::PATIENCE;

const OTHER: &str = "tiny-cls";

/// Grains that nobody edits.
const N_STILL: usize = 300;

/// So slow that a kill finds a job at work.
const THROTTLE: f64 = 0.05;

/// Texts that a job embeds at once.
const BATCH: u64 = 64;

async fn newest(app: &Caller) -> Option<Value> {
    app.get("/reembeddings").await.ok()["reembeddings"].as_array().expect("jobs").first().cloned()
}

/// Brings something about that a kill may cut off: a job, a way back, a purge.
async fn stir(app: &Caller, chance: &mut Chance) {
    let job = newest(app).await;
    let state = job.as_ref().map_or("none", |job| job["state"].as_str().expect("a state")).to_owned();
    let verb = |job: Option<Value>, verb: &str| {
        let id = job.expect("a job")["id"].as_str().expect("an id").to_owned();
        send(app.request(Method::POST, &format!("/reembeddings/{id}/{verb}")).json(&json!({})))
    };
    match (state.as_str(), chance.below(3)) {
        ("completed", 0 | 1) => drop(verb(job, "rollback").await),
        ("queued" | "running" | "cutting_over" | "rolling_back", _) => {}
        _ => {
            let to = if app.get("/grains/0").await.ok()["meta"]["embedding_model"] == TINY { OTHER } else { TINY };
            let throttle = *chance.pick(&[1.0, 1.0, THROTTLE]);
            app.post("/reembeddings", json!({"to": to, "throttle": throttle})).await;
        }
    }
}

/// What must hold after every start, whatever was cut off.
async fn check(app: &Caller, written: &BTreeSet<String>) {
    let mut ids = BTreeSet::new();
    let mut spaces = BTreeSet::new();
    let mut cursor = String::new();
    loop {
        let page = app.get(&format!("/grains?limit=1000{cursor}")).await.ok();
        for grain in page["grains"].as_array().expect("grains") {
            let id = grain["id"].as_str().expect("an id").to_owned();
            if !id.starts_with('w') {
                spaces.insert(grain["meta"]["space"].as_str().expect("a space").to_owned());
            }
            assert!(ids.insert(id), "twice in the list: {grain}");
        }
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(spaces.len(), 1, "half of the grains have moved: {spaces:?}");
    assert!(ids.is_superset(written), "lost: {:?}", written.difference(&ids).collect::<Vec<_>>());
    assert_eq!(ids.iter().filter(|id| !id.starts_with('w')).count(), N_STILL);
    let body = json!({"query": "number 7", "mode": "dense", "limit": 1000});
    let found = app.post("/grains/search", body).await.ok();
    let hits: Vec<&str> =
        found["hits"].as_array().expect("hits").iter().map(|hit| hit["grain"]["id"].as_str().expect("an id")).collect();
    let distinct: BTreeSet<&str> = hits.iter().copied().collect();
    assert_eq!((hits.len(), distinct.len()), (ids.len(), ids.len()), "each is found once");
    for id in ["0", "150", "299"] {
        let grain = app.get(&format!("/grains/{id}?include=vector")).await.ok();
        let model = grain["meta"]["embedding_model"].as_str().expect("a model");
        let made = app.post(&format!("/models/{model}/embed"), json!({"inputs": grain["text"]})).await.ok();
        assert!(cosine(&vector_of(&grain["vector"]), &vectors_of(&made)[0]) > 0.9999, "{grain}");
    }
}

/// What the database says that the newest job has done, while no server runs.
async fn done_so_far(database: &Path) -> (u64, String) {
    let mut connection = SqliteConnectOptions::new().filename(database).connect().await.expect("a connection");
    let (done, state): (i64, String) = sqlx::query_as("SELECT done, state FROM reembeddings ORDER BY id DESC LIMIT 1")
        .fetch_one(&mut connection)
        .await
        .expect("a job");
    connection.close().await.expect("closed");
    (u64::try_from(done).expect("a count"), state)
}

/// Texts that a model has embedded for grains in this process.
async fn n_embedded(app: &Caller, model: &str) -> u64 {
    let metrics = app.get("/metrics").await.text;
    let label = format!("model=\"{model}\"");
    let line = metrics.lines().find(|line| line.starts_with("granary_texts_total{") && line.contains(&label));
    line.and_then(|line| line.rsplit(' ').next()).map_or(0, |count| count.parse().expect("a count"))
}

#[tokio::test]
async fn a_killed_reembedding_goes_on_by_itself_and_loses_nothing() {
    let n_kills = number_from_env("REEMBED_CRASH_KILLS", 5);
    let folder = folder_with(&with_tiny(&[OTHER]));
    let mut chance = Chance::seeded(6);
    let mut written = BTreeSet::new();
    let mut cut_off = Vec::new();
    let (mut process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url);
    let grains: Vec<Value> =
        (0..N_STILL).map(|n| json!({"id": n.to_string(), "text": format!("the text of number {n}")})).collect();
    app.post("/grains", json!({ "grains": grains })).await.ok();
    process.signal(Signal::KILL);
    process.wait();

    for n_kill in 0..n_kills {
        let (mut process, url) = Process::serve(folder.path(), &[]);
        let app = Caller::of(url);
        check(&app, &written).await;
        // Some that the way back must bring along.
        let id = format!("w{n_kill}");
        let body = json!({"id": id, "text": format!("written before kill {n_kill}"), "model": OTHER});
        if app.post("/grains", body).await.status.is_success() {
            written.insert(id);
        }
        let until = tokio::time::Instant::now() + Duration::from_millis(chance.below(700));
        while tokio::time::Instant::now() < until {
            stir(&app, &mut chance).await;
            tokio::time::sleep(Duration::from_millis(chance.below(30))).await;
        }
        let state = newest(&app).await.map_or(Value::Null, |job| job["state"].clone());
        process.signal(Signal::KILL);
        assert_eq!(process.wait().code(), None, "it was killed");
        cut_off.push(state.as_str().unwrap_or("none").to_owned());
    }

    // The last job is finished by itself, and what was done is not done again.
    let (process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url);
    check(&app, &written).await;
    let begun = app.post("/reembeddings", json!({"to": "tiny-dense", "throttle": THROTTLE})).await;
    assert_eq!(begun.problem().1, "model_not_found");
    wait_for_end(&app).await;
    // All into one space: while two serve, anchors are embedded too, and would be counted.
    let from = app.get("/grains/0").await.ok()["meta"]["embedding_model"].clone();
    app.post("/reembeddings", json!({"to": from})).await.ok();
    assert_eq!(wait_for_end(&app).await["state"], "completed");
    drop(process);
    let toml = folder.path().join("granary.toml");
    let with_third = with_tiny(&[OTHER, "tiny-max"]);
    fs_err::write(&toml, with_third).expect("written");
    let (mut process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url);
    let n_grains = app.post("/grains/count", json!({})).await.ok()["count"].as_u64().expect("a count");
    app.post("/reembeddings", json!({"to": "tiny-max", "throttle": THROTTLE})).await.ok();
    let begun = async {
        while newest(&app).await.expect("the job")["done"].as_u64() < Some(BATCH) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, begun).await.expect("a first batch");
    process.signal(Signal::KILL);
    process.wait();
    let (done, state) = done_so_far(&folder.path().join("granary.db")).await;
    assert!(done >= BATCH && done < n_grains && state == "running", "{done} of {n_grains}, {state} (from {from})");
    let (process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url);
    let job = wait_for_end(&app).await;
    assert_eq!((&job["state"], &job["done"]), (&json!("completed"), &json!(n_grains)), "{job}");
    let n_embedded = n_embedded(&app, "tiny-max").await;
    assert_eq!(n_embedded, n_grains - done, "what was done is not done again");
    check(&app, &written).await;
    println!(
        "{n_kills} kills, of jobs that were {cut_off:?}; then {done} of {n_grains} were done, and {n_embedded} left"
    );
    process.stop();
}

/// Waits until nothing goes on by itself any more, and answers the newest job.
async fn wait_for_end(app: &Caller) -> Value {
    let look = async {
        loop {
            let job = newest(app).await.expect("a job");
            if !["queued", "running", "cutting_over", "rolling_back"].contains(&job["state"].as_str().expect("a state"))
            {
                return job;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.expect("an end")
}
