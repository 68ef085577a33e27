//! A re-embedding beside callers who search, write, edit and delete: none of them fails, and nothing is ever missed.
//!
//! In `make test` a few hundred grains of the small models. `make reembed-load` takes 20,000 real texts, the default model
//! and one of equal quality, and prints what searches took with and without the job. Since a grain is searched by its whole
//! text, texts are cut to the length of a long question.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::helpers::{
    Caller, Chance, MINILM, Process, cosine, data_dir, entry_of, folder_with, number_from_env, vector_of, vectors_of,
    with_tiny,
};

const N_SEARCHERS: u64 = 8;
const N_WRITERS: u64 = 2;

/// Words of a real text.
const N_WORDS: usize = 32;

/// How long a job may take.
const PATIENCE: Duration = Duration::from_hours(1);

/// What is tried, and with which models.
struct Trial {
    toml: String,
    from: &'static str,
    to: &'static str,
    texts: Vec<String>,
    n_grains: usize,
    /// How long searches are measured without a job.
    alone: Duration,
}

impl Trial {
    fn chosen() -> Self {
        let n_grains = number_from_env("REEMBED_LOAD_GRAINS", 0);
        if n_grains == 0 {
            let texts = (0..1_000).map(|n| format!("the text of number {n}, which is like no other")).collect();
            let toml = with_tiny(&["tiny-cls"]);
            return Self {
                toml,
                from: "tiny",
                to: "tiny-cls",
                texts,
                n_grains: 200,
                alone: Duration::from_millis(500),
            };
        }
        let path = data_dir().join("bench/texts.txt");
        let file = fs_err::read_to_string(path).expect("`make setup-bench` fetches it");
        let cut = |line: &str| line.split_whitespace().take(N_WORDS).collect::<Vec<_>>().join(" ");
        let texts: Vec<String> = file.lines().map(cut).collect();
        let n_grains = usize::try_from(n_grains).expect("a count");
        assert!(texts.len() > n_grains + 2_000, "only {} texts", texts.len());
        Self {
            toml: format!("[ai]\nmodel_name = \"{MINILM}\"\n{}", entry_of("minilm-whitened-256")),
            from: MINILM,
            to: "minilm-whitened-256",
            texts,
            n_grains,
            alone: Duration::from_secs(30),
        }
    }
}

/// What callers have seen.
#[derive(Default)]
struct Seen {
    /// Whether the job has ended, so that they may stop.
    stop: AtomicBool,
    n_searches: AtomicU64,
    n_missed: AtomicU64,
    n_writes: AtomicU64,
    failures: Mutex<Vec<String>>,
    /// How long each search took since this was last emptied.
    took: Mutex<Vec<Duration>>,
}

impl Seen {
    fn p95(&self) -> Duration {
        let mut took = std::mem::take(&mut *self.took.lock());
        assert!(!took.is_empty(), "no search ended");
        took.sort_unstable();
        took[(took.len() * 95 / 100).min(took.len() - 1)]
    }
}

/// Searches for grains that nobody changes, by their own words: each must be found, in any state of any job.
async fn search(app: &Caller, trial: &Trial, seen: &Seen, who: u64) {
    let mut chance = Chance::seeded(who);
    while !seen.stop.load(Ordering::Relaxed) {
        let n = usize::try_from(chance.below(trial.n_grains as u64)).expect("a place");
        let id = format!("still-{n}");
        let began = Instant::now();
        let body = json!({"query": trial.texts[n], "limit": 100, "filter": {"tags": {"all": ["still"]}}});
        // The whole list of ids is the condition half of the time, and no condition the other half.
        let body = if n % 2 == 0 { body } else { json!({"query": trial.texts[n], "limit": 100}) };
        let answer = app.post("/grains/search", body).await;
        seen.took.lock().push(began.elapsed());
        seen.n_searches.fetch_add(1, Ordering::Relaxed);
        if !answer.status.is_success() {
            seen.failures.lock().push(answer.text);
            continue;
        }
        let found = answer.json();
        let hits = found["hits"].as_array().expect("hits");
        let is_searched = found["spaces"].as_array().expect("spaces").iter().all(|space| space["searched"] == true);
        let n_times = hits.iter().filter(|hit| hit["grain"]["id"] == id.as_str()).count();
        if n_times != 1 || !is_searched {
            seen.n_missed.fetch_add(1, Ordering::Relaxed);
            seen.failures.lock().push(format!("{id} was found {n_times} times: {}", found["spaces"]));
        }
    }
}

/// Writes, edits and deletes grains of its own, and looks at once for what it has written. Answers what is there in the
/// end.
async fn write(app: &Caller, trial: &Trial, seen: &Seen, who: u64) -> HashMap<String, String> {
    let mut chance = Chance::seeded(who);
    let mut mine: HashMap<String, String> = HashMap::new();
    let mut n = 0;
    while !seen.stop.load(Ordering::Relaxed) {
        n += 1;
        let at = trial.n_grains
            + usize::try_from(chance.below((trial.texts.len() - trial.n_grains) as u64)).expect("a place");
        let text = format!("{} (by {who}, {n})", trial.texts[at]);
        let known = mine.keys().min().cloned();
        let (answer, id) = match (chance.below(4), known) {
            (0, Some(id)) => {
                mine.remove(&id);
                (app.delete(&format!("/grains/{id}")).await, None)
            }
            (1, Some(id)) => {
                mine.insert(id.clone(), text.clone());
                (app.patch(&format!("/grains/{id}"), json!({"text": text})).await, Some(id))
            }
            _ => {
                let id = format!("by-{who}-{n}");
                mine.insert(id.clone(), text.clone());
                (app.post("/grains", json!({"id": id, "text": text})).await, Some(id))
            }
        };
        seen.n_writes.fetch_add(1, Ordering::Relaxed);
        if !answer.status.is_success() {
            seen.failures.lock().push(answer.text);
            continue;
        }
        let Some(id) = id else { continue };
        let found = app.post("/grains/search", json!({"query": text, "limit": 100})).await;
        let is_found = found.status.is_success()
            && found.json()["hits"].as_array().expect("hits").iter().any(|hit| hit["grain"]["id"] == id.as_str());
        if !is_found {
            seen.n_missed.fetch_add(1, Ordering::Relaxed);
            seen.failures.lock().push(format!("{id} is not found right after it was written: {}", found.text));
        }
    }
    mine
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_beside_a_job_fails_or_misses_a_grain() {
    let trial = Trial::chosen();
    let folder = folder_with(&trial.toml);
    let (process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url);
    for from in (0..trial.n_grains).step_by(200) {
        let until = trial.n_grains.min(from + 200);
        let grain = |n| json!({"id": format!("still-{n}"), "text": trial.texts[n], "tags": ["still"]});
        let grains: Vec<Value> = (from..until).map(grain).collect();
        app.post("/grains", json!({ "grains": grains })).await.ok();
    }
    app.post(&format!("/models/{}/load", trial.to), json!({})).await.ok();

    let seen = Arc::new(Seen::default());
    let searching = futures::future::join_all((0..N_SEARCHERS).map(|who| search(&app, &trial, &seen, who)));
    let writing = futures::future::join_all((0..N_WRITERS).map(|who| write(&app, &trial, &seen, 100 + who)));
    let job = async {
        tokio::time::sleep(trial.alone).await;
        let alone = seen.p95();
        let job = app.post("/reembeddings", json!({"to": trial.to})).await.ok();
        let began = Instant::now();
        let path = format!("/reembeddings/{}", job["id"].as_str().expect("an id"));
        let job = loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let job = app.get(&path).await.ok();
            if job["state"] != "queued" && job["state"] != "running" && job["state"] != "cutting_over" {
                break job;
            }
            assert!(began.elapsed() < PATIENCE, "it does not end: {job}");
        };
        assert_eq!(job["state"], "completed", "{job}");
        let (beside, took) = (seen.p95(), began.elapsed());
        tokio::time::sleep(trial.alone / 2).await;
        seen.stop.store(true, Ordering::Relaxed);
        (job, alone, beside, took)
    };
    let ((job, alone, beside, took), _, written) = tokio::join!(job, searching, writing);
    let failures = std::mem::take(&mut *seen.failures.lock());
    assert!(failures.is_empty(), "{} failed: {:?}", failures.len(), &failures[..failures.len().min(3)]);
    assert_eq!(seen.n_missed.load(Ordering::Relaxed), 0);

    // What is served from the new space is what its model makes of the current text.
    let written: HashMap<String, String> = written.into_iter().flatten().collect();
    let counted = app.post("/grains/count", json!({"facets": ["space"]})).await.ok();
    assert_eq!(counted["count"], trial.n_grains + written.len(), "{counted}");
    let mut lowest: f64 = 1.0;
    let mut n_compared = 0;
    let still =
        (0..trial.n_grains).step_by((trial.n_grains / 1_000).max(1)).map(|n| (format!("still-{n}"), &trial.texts[n]));
    for (id, text) in still.chain(written.iter().map(|(id, text)| (id.clone(), text))) {
        let grain = app.get(&format!("/grains/{id}?include=vector")).await.ok();
        assert_eq!(grain["text"], text.as_str());
        let is_new = grain["meta"]["space"] == job["space"];
        // What is written after the cut-over is the active model's.
        assert!(is_new || !id.starts_with("still"), "{grain}");
        let model = if is_new { trial.to } else { trial.from };
        let made = app.post(&format!("/models/{model}/embed"), json!({"inputs": text})).await.ok();
        lowest = lowest.min(cosine(&vector_of(&grain["vector"]), &vectors_of(&made)[0]));
        n_compared += 1;
    }
    assert!(lowest > 0.9999, "{lowest}");
    let log = process.stop();
    let line = log.lines().find(|line| line.contains("its space serves from now on")).expect("the cut-over is logged");
    println!(
        "{} grains in {took:.1?} ({:.1} a second); p95 of a search {alone:.1?} alone, {beside:.1?} beside the job: {:.2} \
         times; {} searches and {} writes, none failed, none missed; {n_compared} vectors, lowest cosine {lowest:.6}\n{line}",
        job["done"],
        job["done"].as_f64().expect("a number") / took.as_secs_f64(),
        beside.as_secs_f64() / alone.as_secs_f64(),
        seen.n_searches.load(Ordering::Relaxed),
        seen.n_writes.load(Ordering::Relaxed),
    );
}

/// The cut-over of many grains: vectors of two spaces are brought along, so that the job has nothing left to make.
#[tokio::test(flavor = "multi_thread")]
async fn a_cut_over_takes_no_longer_for_many_grains() {
    let n_grains = usize::try_from(number_from_env("REEMBED_CUT_OVER_GRAINS", 2_000)).expect("a count");
    let folder = folder_with(&with_tiny(&["tiny-cls"]));
    let (process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url);
    app.post("/spaces", json!({"name": "old", "dimensions": 8})).await.ok();
    let spaces = app.get("/spaces").await.ok();
    let spaces = spaces["spaces"].as_array().expect("spaces");
    let old = spaces.iter().find(|space| space["name"] == "old").expect("the declared one")["id"].clone();
    let new = app.post("/models/tiny-cls/load", json!({})).await.ok()["space"].clone();
    let mut chance = Chance::seeded(3);
    for (space, dimensions, method) in [(&old, 8, "error"), (&new, 32, "replace")] {
        for from in (0..n_grains).step_by(10_000) {
            let lines: Vec<String> = (from..n_grains.min(from + 10_000))
                .map(|n| {
                    let vector = chance.unit_vector(dimensions);
                    json!({"id": n.to_string(), "text": n.to_string(), "space": space, "vector": vector}).to_string()
                })
                .collect();
            let request = app.request(reqwest::Method::POST, &format!("/grains/import?on_conflict={method}"));
            let answer = request
                .header("content-type", "application/x-ndjson")
                .body(lines.join("\n"))
                .send()
                .await
                .expect("an answer");
            let text = answer.text().await.expect("its lines");
            let last: Value = serde_json::from_str(text.lines().last().expect("a last line")).expect("JSON");
            assert_eq!(last["end"]["failed"], 0, "{last}");
        }
    }
    assert_eq!(app.get("/grains/0").await.ok()["meta"]["space"], old);
    let job = app.post("/reembeddings", json!({"to": "tiny-cls"})).await.ok();
    let path = format!("/reembeddings/{}", job["id"].as_str().expect("an id"));
    let ended = async {
        loop {
            let job = app.get(&path).await.ok();
            if job["state"] == "completed" {
                return job;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let job = tokio::time::timeout(PATIENCE, ended).await.expect("an end");
    assert_eq!(job["done"], 0, "{job}");
    assert_eq!(app.get("/grains/0").await.ok()["meta"]["space"], new);
    app.post(&format!("{path}/rollback"), json!({})).await.ok();
    assert_eq!(app.get("/grains/0").await.ok()["meta"]["space"], old);
    let log = process.stop();
    for line in log.lines().filter(|line| line.contains("serves from now on") || line.contains("was rolled back")) {
        println!("{n_grains} grains: {line}");
    }
}
