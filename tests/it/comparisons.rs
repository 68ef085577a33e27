//! Two models compared on the grains of a server: what is told before a switch is what is found after it.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::helpers::{
    Caller, Failing, MINILM, Process, REPOSITORY, StandInHub, TINY, TestApp, entry_of, files_of, own_data_dir,
    repository, until_seen, with_tiny,
};

/// How long a comparison of some hundred texts may take on the slowest machine.
const PATIENCE: Duration = Duration::from_mins(5);

/// MiniLM without its last two layers.
const CUT: &str = "minilm-4-layers";

/// Scores of one text differ by so much with what it was batched with.
const ROUNDING: f64 = 5e-3;

/// What users might search for among the texts.
const QUERIES: [&str; 8] = [
    "an error message of a program",
    "weather and the sea",
    "how to cook a meal",
    "a legal contract",
    "music",
    "numbers and dates",
    "what is said in another language",
    "animals",
];

/// Texts of many kinds, none of them long but the last, which models cut: they are embedded many times.
fn texts() -> Vec<String> {
    let file = fs_err::read_to_string(repository().join("tests/golden/all-MiniLM-L6-v2.ndjson")).expect("the file");
    let text = |line: &str| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        line["text"].as_str().expect("a text").to_owned()
    };
    let short = file.lines().map(text).filter(|text| !text.trim().is_empty() && text.len() <= 200);
    short.chain([format!("Wheat {}", "and rye ".repeat(200))]).collect()
}

async fn write(app: &Caller, texts: &[String]) {
    let grains: Vec<Value> =
        texts.iter().enumerate().map(|(n, text)| json!({"id": format!("g{n}"), "text": text})).collect();
    app.post("/grains", json!({"grains": grains})).await.ok();
}

/// Begins a comparison and answers its path.
async fn begin(app: &Caller, body: Value) -> String {
    let begun = app.post("/comparisons", body).await;
    assert_eq!(begun.status, 202, "{}", begun.text);
    let path = format!("/comparisons/{}", begun.ok()["id"].as_str().expect("an id"));
    assert_eq!(begun.header("location"), path);
    path
}

/// Waits until a comparison has one of these states.
async fn reach(app: &Caller, path: &str, states: &[&str]) -> Value {
    let started = Instant::now();
    loop {
        let comparison = app.get(path).await.ok();
        if states.contains(&comparison["state"].as_str().expect("a state")) {
            return comparison;
        }
        assert!(started.elapsed() < PATIENCE, "it does not end: {comparison}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What a comparison finds.
async fn compare(app: &Caller, body: Value) -> Value {
    let path = begin(app, body).await;
    let ended = reach(app, &path, &["completed", "failed"]).await;
    assert_eq!(ended["state"], "completed", "{ended}");
    assert_eq!((&ended["done"], ended["total"].as_u64() > Some(0)), (&ended["total"], true), "{ended}");
    ended["result"].clone()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("no number: {value}"))
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}"))
}

#[tokio::test]
async fn a_model_agrees_with_itself() {
    let again = format!("[[ai.additional_models]]\nname = \"again\"\npath = \"{MINILM}\"\n");
    let app = TestApp::start_with(&again).await;
    let texts = texts();
    write(&app, &texts).await;
    let found = compare(&app, json!({"to": MINILM})).await;
    let depths: Vec<_> = list(&found["overlap"]).iter().map(|at| at["k"].as_u64()).collect();
    assert_eq!(depths, [Some(1), Some(3), Some(5), Some(10)]);
    for at in list(&found["overlap"]) {
        assert_eq!(at["overlap"], 1.0, "{at}");
    }
    assert_eq!(found["rank_biased_overlap"], 1.0);
    for (n, at) in (1..).zip(list(&found["thresholds"])) {
        assert_eq!((&at["from"], &at["to"]), (&json!(f64::from(n) / 10.0), &json!(f64::from(n) / 10.0)), "{at}");
    }
    assert_eq!(found["reembedding"]["grains"], 0, "all of them are there already");
    let sample = &found["sample"];
    assert_eq!((&sample["grains"], &sample["of"]), (&json!(texts.len()), &json!(texts.len())));
    assert_eq!(sample["queries_from"], "grains");
    // A query that begins a text finds it.
    assert!(number(&found["from"]["own_grain_mrr"]) > 0.8, "{}", found["from"]);

    // The same files under another name are embedded once more, and differ by rounding only.
    let found = compare(&app, json!({"from": "again", "to": MINILM, "queries": QUERIES})).await;
    assert_eq!(found["from"]["space"], found["to"]["space"]);
    assert!(number(&found["rank_biased_overlap"]) > 0.9, "{}", found["rank_biased_overlap"]);
    for at in list(&found["thresholds"]) {
        assert!((number(&at["from"]) - number(&at["to"])).abs() < ROUNDING, "{at}");
    }
    assert_eq!(found["from"]["own_grain_mrr"], Value::Null, "the queries are the caller's");
    app.stop().await;
}

/// Whether a predicted answer is the one that a search gives, where scores are further apart than rounding.
fn assert_found(predicted: &[Value], found: &Value) {
    let hits = list(&found["hits"]);
    assert_eq!(predicted.len(), hits.len());
    let id_of = |of: &Value| of["id"].as_str().expect("an id").to_owned();
    for (rank, (predicted_here, hit)) in predicted.iter().zip(hits).enumerate() {
        let score = number(&hit["raw_score"]);
        let expected = number(&predicted_here["score"]);
        assert!((score - expected).abs() < ROUNDING, "rank {rank}: {predicted_here} and {hit}");
        let among_equals = predicted.iter().filter(|other| (number(&other["score"]) - score).abs() < ROUNDING);
        let among_equals: Vec<String> = among_equals.map(id_of).collect();
        let is_last = number(&predicted[predicted.len() - 1]["score"]) + ROUNDING > score;
        let id = id_of(&hit["grain"]);
        assert!(among_equals.contains(&id) || is_last, "rank {rank}: {id} instead of {among_equals:?}");
    }
}

/// Searches for each query, and compares with what was said of one model.
async fn assert_all_found(app: &Caller, moved: &[Value], side: &str) {
    for moved in moved {
        let search = json!({"query": moved["query"], "mode": "dense", "limit": 7});
        assert_found(list(&moved[side]), &app.post("/grains/search", search).await.ok());
    }
}

#[tokio::test]
async fn answers_after_a_switch_are_those_that_were_predicted() {
    let app = TestApp::start_with(&entry_of(CUT)).await;
    let texts = texts();
    write(&app, &texts).await;
    let found = compare(&app, json!({"to": CUT, "queries": QUERIES, "k": 7})).await;
    assert_eq!((&found["from"]["name"], &found["to"]["name"]), (&json!(MINILM), &json!(CUT)));
    assert_eq!((&found["sample"]["queries"], &found["sample"]["queries_from"]), (&json!(8), &json!("caller")));
    assert_eq!(found["reembedding"]["grains"], texts.len());
    assert_eq!(found["reembedding"]["vector_bytes"], texts.len() * 384 * 4);
    assert!(number(&found["reembedding"]["estimated_s"]) > 0.0);
    assert!(number(&found["rank_biased_overlap"]) < 0.99, "fewer layers find other grains: {found}");
    for side in [&found["from"], &found["to"]] {
        assert_eq!(side["bytes_per_vector"], 384 * 4);
        assert!(number(&side["texts_per_second"]) > 0.0);
        assert!(number(&side["embed_p50_ms"]) > 0.0);
        assert!(number(&side["embed_p95_ms"]) >= number(&side["embed_p50_ms"]));
    }
    // As many texts are cut as the model cuts.
    let embedded = app.post("/embed", json!({"inputs": texts})).await;
    let n_cut: f64 = embedded.header("x-truncated").split(';').next().and_then(|n| n.parse().ok()).expect("a number");
    assert!(n_cut > 0.0, "no text is long enough");
    assert!((number(&found["from"]["truncated_share"]) - n_cut / texts.len() as f64).abs() < 1e-6, "{}", found["from"]);
    // More of the pairs reach a low threshold, and the map never turns around.
    let thresholds = list(&found["thresholds"]);
    for pair in thresholds.windows(2) {
        assert!(number(&pair[0]["share"]) >= number(&pair[1]["share"]), "{thresholds:?}");
        assert!(number(&pair[0]["to"]) <= number(&pair[1]["to"]), "{thresholds:?}");
    }
    let n_pairs = (QUERIES.len() * texts.len()) as u64;
    for side in ["from", "to"] {
        assert_eq!(list(&found["scores"][side]).iter().filter_map(Value::as_u64).sum::<u64>(), n_pairs);
    }

    let moved = list(&found["moved"]);
    assert_eq!(moved.len(), QUERIES.len());
    assert!(moved.is_sorted_by_key(|moved| number(&moved["rank_biased_overlap"])), "most moved first");
    assert!(number(&moved[0]["overlap"]) < 1.0, "{}", moved[0]);
    for moved in moved {
        for (side, other) in [("from", "to"), ("to", "from")] {
            let ids: Vec<&Value> = list(&moved[other]).iter().map(|found| &found["id"]).collect();
            for found in list(&moved[side]) {
                let rank = ids.iter().position(|id| **id == found["id"]).map(|at| at + 1);
                assert_eq!(found["other_rank"], json!(rank), "{found}");
            }
        }
    }

    assert_all_found(&app, moved, "from").await;
    let job = app.post("/reembeddings", json!({"to": CUT})).await.ok();
    let path = format!("/reembeddings/{}", job["id"].as_str().expect("an id"));
    let ended = ["completed", "completed_with_failures", "failed", "cancelled"];
    assert_eq!(reach(&app, &path, &ended).await["state"], "completed");
    assert_all_found(&app, moved, "to").await;
    assert_eq!(compare(&app, json!({"to": CUT, "queries": ["wheat"]})).await["reembedding"]["grains"], 0);
    app.stop().await;
}

#[tokio::test]
async fn a_report_is_one_page_in_which_nothing_of_a_user_is_markup() {
    let app = TestApp::start_with(&with_tiny(&["tiny-cls"])).await;
    let evil = "<script src=\"https://evil.example/x.js\">alert('1')</script>";
    write(&app, &[format!("{evil} first"), "<img src=x onerror=alert(1)> second".to_owned(), "third".to_owned()]).await;
    let path = begin(&app, json!({"to": "tiny-cls", "queries": [evil, "\"><svg onload=alert(1)>"]})).await;
    let completed = reach(&app, &path, &["completed", "failed"]).await;
    assert_eq!(completed["state"], "completed", "{completed}");
    let report = app.get(&format!("{path}/report")).await;
    assert_eq!((report.status.as_u16(), report.content_type()), (200, "text/html; charset=utf-8"));
    let policy = report.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
    let page = report.text.to_lowercase();
    for tag in ["<script", "<img", "<link", "<iframe", "<svg onload", "@import", "url(", "href="] {
        assert!(!page.contains(tag), "{tag}");
    }
    assert!(page.contains("&lt;script src=&quot;https://evil.example/x.js&quot;&gt;"), "what was written is shown");
    assert!(page.contains("&quot;&gt;&lt;svg onload=alert(1)&gt;"));
    // Attributes are the page's own, and none of them loads anything.
    let tags: BTreeSet<&str> = page.split('<').skip(1).filter_map(|rest| rest.split('>').next()).collect();
    for tag in tags.iter().filter(|tag| !tag.starts_with('!')) {
        assert!(!tag.contains("://") && !tag.contains(" src") && !tag.contains(" on"), "<{tag}>");
    }
    assert_eq!(page.matches("<svg viewbox").count(), 3, "the plots are in the page");
    assert!(page.contains("name=\"viewport\"") && page.contains("prefers-color-scheme: dark"));
    app.stop().await;
}

/// A server whose model `slow` takes seven minutes to be downloaded, and the hub that sends it. One download goes on
/// through all comparisons. A hub that is silent for 30 s is asked again, which counts as a failure.
async fn with_slow_model() -> (StandInHub, TempDir, Process, Caller) {
    let hub = StandInHub::start(files_of(TINY)).await;
    hub.fail(Failing { slow: Some(Duration::from_secs(20)), ..Failing::default() });
    let slow = format!("[[ai.additional_models]]\nname = \"slow\"\nrepository = \"{REPOSITORY}\"\nsize = \"small\"\n");
    let folder = own_data_dir(&format!("{}{slow}", with_tiny(&[])));
    let cache = folder.path().join("cache").display().to_string();
    let variables = [("HF_ENDPOINT", hub.url.as_str()), ("HF_HUB_CACHE", cache.as_str())];
    let (process, url) = Process::serve_with(folder.path(), &["--data-dir", "."], &variables);
    (hub, folder, process, Caller::of(url))
}

#[tokio::test]
async fn a_comparison_is_cancelled_and_the_next_has_its_turn() {
    let (_hub, _folder, process, app) = with_slow_model().await;
    write(&app, &["Wheat is a grass.".to_owned(), "Rye is another.".to_owned()]).await;
    let running = begin(&app, json!({"to": "slow"})).await;
    reach(&app, &running, &["running"]).await;
    let (status, code, detail) = app.get(&format!("{running}/report")).await.problem();
    assert_eq!((status, code.as_str()), (409, "conflict"));
    assert!(detail.starts_with("the comparison is running, "), "{detail}");

    let mut waiting = Vec::new();
    for _ in 1..20 {
        waiting.push(begin(&app, json!({"to": TINY})).await);
    }
    assert_eq!(app.get(&waiting[0]).await.ok()["state"], "queued");
    let refused = app.post("/comparisons", json!({"to": TINY})).await;
    assert_eq!(refused.header("retry-after"), "30");
    let (status, code, detail) = refused.problem();
    assert_eq!((status, code.as_str()), (409, "conflict"));
    assert!(detail.starts_with("20 comparisons wait or run already"), "{detail}");

    assert_eq!(app.delete(&waiting[1]).await.status, 204);
    assert_eq!(app.delete(&running).await.status, 204);
    for gone in [&running, &waiting[1]] {
        assert_eq!(app.get(gone).await.problem().1, "not_found");
        assert_eq!(app.delete(gone).await.problem().1, "not_found");
    }
    for path in waiting.iter().filter(|path| **path != waiting[1]) {
        assert_eq!(reach(&app, path, &["completed", "failed"]).await["state"], "completed");
    }

    // The last twenty are kept.
    let mut latest = Vec::new();
    for _ in 0..3 {
        let path = begin(&app, json!({"to": TINY})).await;
        reach(&app, &path, &["completed"]).await;
        latest.insert(0, path);
    }
    let all = app.get("/comparisons").await.ok();
    let ids: Vec<String> = list(&all["comparisons"])
        .iter()
        .map(|comparison| format!("/comparisons/{}", comparison["id"].as_str().expect("an id")))
        .collect();
    assert_eq!((ids.len(), &ids[..3]), (20, latest.as_slice()));
    assert!(!ids.contains(&waiting[0]), "the oldest made room");
    assert!(list(&all["comparisons"])[0].get("result").is_none(), "the list is short");

    // Whoever interrupts the command wants no comparison either.
    let mut command = Command::new(env!("CARGO_BIN_EXE_granary"));
    let command = command.args(["compare", "--url", app.url(), TINY, "slow"]).stderr(Stdio::piped());
    let child = command.spawn().expect("it runs");
    let latest = async || app.get("/comparisons").await.ok()["comparisons"][0].clone();
    let latest = until_seen("the command begins one", latest, |latest: &Value| latest["to"] == "slow").await;
    let path = format!("/comparisons/{}", latest["id"].as_str().expect("an id"));
    kill_process(Pid::from_child(&child), Signal::INT).expect("a signal");
    let output =
        tokio::task::spawn_blocking(move || child.wait_with_output().expect("an end")).await.expect("no panic");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.trim()), (Some(1), "granary: interrupted, and the comparison is cancelled"));
    assert_eq!(app.get(&path).await.problem().1, "not_found");

    // One that runs does not hold up the end of the server.
    let running = begin(&app, json!({"to": "slow"})).await;
    reach(&app, &running, &["running"]).await;
    tokio::task::spawn_blocking(move || process.stop()).await.expect("it stops in order");
}

#[tokio::test]
async fn what_cannot_be_compared_is_refused_with_a_reason() {
    let app = TestApp::start_with(&with_tiny(&["tiny-no-pooling"])).await;
    let refused = async |body: Value| app.post("/comparisons", body).await.problem();
    let (status, _, detail) = refused(json!({"to": TINY})).await;
    assert!(status == 409 && detail.starts_with("there are no grains"), "{status} {detail}");
    write(&app, &["Wheat is a grass.".to_owned(), "Rye is another.".to_owned()]).await;
    for body in [json!({"to": "nope"}), json!({"from": "nope", "to": TINY})] {
        assert_eq!(refused(body).await.1, "model_not_found");
    }
    for (field, bad) in [
        ("sample", json!(0)),
        ("sample", json!(5001)),
        ("sample", json!(-1)),
        ("k", json!(0)),
        ("k", json!(101)),
        ("queries", json!([])),
        ("queries", json!(["wheat", ""])),
        ("queries", json!(vec!["wheat"; 201])),
        ("queries", json!("wheat")),
    ] {
        let (status, code, detail) = refused(json!({"to": TINY, field: bad})).await;
        assert_eq!((status, code.as_str()), (422, "invalid_request"), "{field} {bad}");
        assert!(detail.contains(&format!("`{field}")), "{detail}");
    }
    assert_eq!(list(&app.get("/comparisons").await.ok()["comparisons"]).len(), 0, "nothing began");

    let path = begin(&app, json!({"to": "tiny-no-pooling"})).await;
    let failed = reach(&app, &path, &["completed", "failed"]).await;
    let reason = failed["reason"].as_str().unwrap_or_else(|| panic!("no reason: {failed}"));
    assert!(failed["state"] == "failed" && reason.contains("`tiny-no-pooling` cannot be loaded"), "{reason}");
    let (status, _, detail) = app.get(&format!("{path}/report")).await.problem();
    assert!(status == 409 && detail.contains(reason), "{detail}");

    // Null is as good as absent, and a sample may be smaller than the store.
    let found = compare(&app, json!({"to": TINY, "from": null, "queries": null, "k": null, "sample": 1})).await;
    assert_eq!((&found["sample"]["grains"], &found["sample"]["of"]), (&json!(1), &json!(2)));
    assert_eq!(found["sample"]["k"], 1);
    app.stop().await;

    let app = TestApp::start_with(&format!("[grains]\nenabled = false\n{}", with_tiny(&[]))).await;
    assert_eq!(app.post("/comparisons", json!({"to": TINY})).await.problem().1, "store_unavailable");
    app.stop().await;
}

#[tokio::test]
async fn the_command_line_shows_tables_and_writes_the_report() {
    // Of other dimensions.
    let app = TestApp::start_with(&with_tiny(&["tiny-dense"])).await;
    write(&app, &texts()).await;
    let folder = TempDir::new().expect("a folder");
    let (queries, html) = (folder.path().join("queries.txt"), folder.path().join("report.html"));
    fs_err::write(&queries, "wheat\n\n  rye bread \n").expect("written");
    let command = async |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_granary"));
        command.args(["compare", "--url", app.url()]).args(arguments);
        // The server that it asks runs on this thread.
        tokio::task::spawn_blocking(move || command.output().expect("run")).await.expect("no panic")
    };
    let paths = [&queries, &html].map(|path| path.to_str().expect("UTF-8"));
    // Longer than the one that takes its place.
    let earlier = "an earlier report ".repeat(100_000);
    fs_err::write(&html, &earlier).expect("written");
    let output = command(&[TINY, "nope", "--html", paths[1]]).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.starts_with("granary: no model is called `nope`"), "{said}");
    assert!(fs_err::read_to_string(&html).expect("a report") == earlier, "nothing came in its place");

    let output = command(&[TINY, "tiny-dense", "--sample", "30", "--queries", paths[0], "--html", paths[1]]).await;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for part in [
        "30 of 4",
        "2 queries of yours",
        "tiny-dense",
        "bytes per vector  128               96\n",
        "overlap@10",
        "rank-biased overlap",
        "  rye bread\n",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    let page = fs_err::read_to_string(&html).expect("the report");
    assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
    assert!(page.len() < earlier.len(), "{} bytes", page.len());
    app.stop().await;
}
