//! Hits of several spaces come into one order by anchors: grains that have a vector in every space.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::helpers::{Caller, TINY, TestApp, cosine, entry_of, until_seen, vectors_of, with_tiny};
use crate::reembeddings::{begin, wait_until};

/// Another model of the same size, whose vectors are not normalised.
const OTHER: &str = "tiny-cls";

/// What the rounding of a provider may change of a score.
const TOLERANCE: f64 = 2e-3;

const WORDS: [&str; 24] = [
    "wheat", "barley", "oats", "rye", "river", "mountain", "music", "paper", "light", "engine", "market", "garden",
    "winter", "summer", "bread", "bridge", "castle", "doctor", "letter", "window", "copper", "silver", "sailor",
    "forest",
];

fn text_of(n: usize) -> String {
    let word = |step: usize| WORDS[(n / WORDS.len().pow(u32::try_from(step).expect("few"))) % WORDS.len()];
    format!("{} {} and the {} of number {n}", word(0), word(1), WORDS[(n * 7) % WORDS.len()])
}

/// The model that a grain is written with: every third with the other one.
fn model_of(n: usize) -> &'static str {
    if n.is_multiple_of(3) { OTHER } else { TINY }
}

async fn write(app: &Caller, numbers: std::ops::Range<usize>) {
    let grain = |n: usize| json!({"id": n.to_string(), "text": text_of(n), "model": model_of(n)});
    let grains: Vec<Value> = numbers.map(grain).collect();
    app.post("/grains", json!({"grains": grains})).await.ok();
}

/// Replaces grains by what lines say of them.
async fn import(app: &Caller, lines: &[String]) {
    let import = app
        .request(reqwest::Method::POST, "/grains/import?on_conflict=replace")
        .header("content-type", "application/x-ndjson")
        .body(lines.join("\n"));
    let imported = crate::helpers::send(import).await;
    assert!(imported.status.is_success(), "{}", imported.text);
    assert!(imported.text.contains(&format!("\"replaced\":{}", lines.len())), "{}", imported.text);
}

async fn search(app: &Caller, query: &str) -> Value {
    app.post("/grains/search", json!({"query": query, "mode": "dense", "limit": 1000})).await.ok()
}

/// Searches until the hits are merged that way.
async fn search_until(app: &Caller, query: &str, merged: &str) -> Value {
    let what = format!("hits are merged by {merged}");
    until_seen(&what, async || search(app, query).await, |found: &Value| found["merged"] == merged).await
}

fn hits(found: &Value) -> &[Value] {
    found["hits"].as_array().unwrap_or_else(|| panic!("no hits: {found}"))
}

fn id(hit: &Value) -> &str {
    hit["grain"]["id"].as_str().expect("an id")
}

fn number(hit: &Value, key: &str) -> f64 {
    hit[key].as_f64().unwrap_or_else(|| panic!("no `{key}`: {hit}"))
}

/// The grains that anchors are of, by their ids, as the database has them.
async fn anchors_in(folder: &std::path::Path) -> HashMap<String, HashSet<String>> {
    let url = format!("sqlite:{}?mode=ro", folder.join("granary.db").display());
    let pool = sqlx::SqlitePool::connect(&url).await.expect("the database");
    let rows: Vec<(String, String)> = sqlx::query_as(
        "SELECT g.id, a.space FROM anchors AS a JOIN grains AS g ON g.number = a.grain WHERE a.text_version = g.text_version",
    )
    .fetch_all(&pool)
    .await
    .expect("anchors");
    pool.close().await;
    let mut anchors: HashMap<String, HashSet<String>> = HashMap::new();
    for (id, space) in rows {
        anchors.entry(id).or_default().insert(space);
    }
    anchors
}

#[tokio::test]
async fn scores_of_two_spaces_are_put_on_the_scale_of_the_greater_one() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    write(&app, 0..300).await;
    let query = text_of(141);
    let found = search_until(&app, &query, "anchors").await;
    assert_eq!(hits(&found).len(), 300, "every grain is found once");
    assert!(hits(&found).is_sorted_by(|a, b| number(a, "score") >= number(b, "score")), "best first");
    let space_of = |n: usize| {
        let hit = hits(&found).iter().find(|hit| id(hit) == n.to_string()).expect("found");
        hit["space"].clone()
    };
    let (great, small) = (space_of(1), space_of(0));
    assert_ne!(great, small);

    // The greater space keeps its own scores, and in each space the order is its own.
    for hit in hits(&found) {
        let n: usize = id(hit).parse().expect("a number");
        assert_eq!(hit["space"], if model_of(n) == TINY { great.clone() } else { small.clone() });
        if hit["space"] == great {
            assert!((number(hit, "score") - number(hit, "raw_score")).abs() < 1e-9, "{hit}");
        }
    }
    let of_small: Vec<&Value> = hits(&found).iter().filter(|hit| hit["space"] == small).collect();
    assert_eq!(of_small.len(), 100);
    assert!(of_small.is_sorted_by(|a, b| number(a, "raw_score") >= number(b, "raw_score") - 1e-9));

    // A score of the smaller space is what as good a text has in the greater one: as many texts are below it. When all
    // grains are anchors both scales can be made anew.
    let texts: Vec<String> = (0..300).map(text_of).collect();
    let mut scales = Vec::new();
    for model in [OTHER, TINY] {
        let inputs: Vec<&String> = std::iter::once(&query).chain(&texts).collect();
        let vectors = vectors_of(&app.post("/embed", json!({"inputs": inputs, "model": model})).await.ok());
        let mut scale: Vec<f64> = vectors[1..].iter().map(|vector| cosine(&vectors[0], vector)).collect();
        scale.sort_by(f64::total_cmp);
        scales.push(scale);
    }
    let is_on_scale = |hit: &Value| {
        let below = |score: f64| scales[0].partition_point(|text| *text < score);
        let low = below(number(hit, "raw_score") - TOLERANCE).saturating_sub(1);
        let high = below(number(hit, "raw_score") + TOLERANCE).min(299);
        (scales[1][low] - TOLERANCE..=scales[1][high] + TOLERANCE).contains(&number(hit, "score"))
    };
    let is_right = |found: &Value| hits(found).iter().all(|hit| hit["space"] != small || is_on_scale(hit));
    let found = until_seen("no score is off the scale", async || search(&app, &query).await, is_right).await;
    // The text itself is the best in either space, wherever it is.
    assert_eq!(id(&hits(&found)[0]), "141");
    assert_eq!(id(&hits(&search(&app, &text_of(142)).await)[0]), "142");

    // The bound is one of scores, not of raw scores.
    let bound = number(&hits(&found)[150], "score");
    let body = json!({"query": query, "mode": "dense", "limit": 1000, "min_score": bound});
    let bounded = app.post("/grains/search", body).await.ok();
    assert_eq!((hits(&bounded).len(), &bounded["merged"]), (151, &json!("anchors")));

    // Words have no scale in common with vectors; a space alone needs none.
    assert_eq!(app.post("/grains/search", json!({"query": query})).await.ok()["merged"], "rank");
    let body = json!({"query": query, "mode": "dense", "filter": {"space": small}});
    let alone = app.post("/grains/search", body).await.ok();
    assert_eq!(alone["merged"], "score");
    assert!(hits(&alone).iter().all(|hit| hit["score"] == hit["raw_score"]));
    app.stop().await;
}

#[tokio::test]
async fn fewer_than_two_hundred_anchors_are_not_used() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    write(&app, 0..199).await;
    let found = search(&app, "bread").await;
    assert_eq!((hits(&found).len(), &found["merged"]), (199, &json!("rank")));
    write(&app, 199..201).await;
    search_until(&app, "bread", "anchors").await;
    for n in 0..2 {
        app.delete(&format!("/grains/{n}")).await;
    }
    // At once: anchors go with their grains.
    assert_eq!(search(&app, "bread").await["merged"], "rank");
    let folder = app.stop_and_keep().await;
    assert!(!anchors_in(folder.path()).await.contains_key("0"));
}

#[tokio::test]
async fn anchors_of_edited_texts_are_made_anew_and_outlive_the_process() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    write(&app, 0..240).await;
    search_until(&app, "bread", "anchors").await;
    // All of them at once: none is left that counts.
    let grain = |n: usize| json!({"id": n.to_string(), "text": format!("{} again", text_of(n)), "model": model_of(n)});
    let lines: Vec<String> = (0..240).map(|n| grain(n).to_string()).collect();
    import(&app, &lines).await;
    let found = search_until(&app, "bread", "anchors").await;
    assert_eq!(hits(&found).len(), 240);

    // With nothing to embed with, the next process has what this one made.
    let folder = app.stop_and_keep().await;
    let anchors = anchors_in(folder.path()).await;
    assert!(anchors.values().filter(|spaces| spaces.len() == 2).count() >= 200, "{} anchors", anchors.len());
    let app = TestApp::start_in(folder, &with_tiny(&[OTHER])).await;
    let found = search(&app, "bread").await;
    assert_eq!((hits(&found).len(), &found["merged"]), (240, &json!("anchors")), "at the first search");
    app.stop().await;
}

#[tokio::test]
async fn anchors_are_made_anew_of_vectors_that_were_replaced_under_the_same_texts() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    write(&app, 0..240).await;
    search_until(&app, "bread", "anchors").await;
    let space = app.get("/grains/1").await.ok()["meta"]["space"].clone();
    let texts: Vec<String> = (0..240).map(text_of).collect();
    let vectors = app.post("/embed", json!({"inputs": texts})).await.ok();
    // Each has the vector of another text now.
    let line = |n: usize| json!({"id": n.to_string(), "text": texts[n], "space": space, "vector": vectors[239 - n]});
    let of_tiny = (0..240).filter(|n| model_of(*n) == TINY);
    let lines: Vec<String> = of_tiny.map(|n| line(n).to_string()).collect();
    import(&app, &lines).await;
    search_until(&app, "bread", "anchors").await;

    let folder = app.stop_and_keep().await;
    let url = format!("sqlite:{}?mode=ro", folder.path().join("granary.db").display());
    let pool = sqlx::SqlitePool::connect(&url).await.expect("the database");
    let (n_anchors, n_others): (i64, i64) = sqlx::query_as(
        "SELECT count(*), count(*) FILTER (WHERE a.vector <> e.vector) FROM anchors AS a \
         JOIN embeddings AS e ON e.grain = a.grain AND e.space = a.space",
    )
    .fetch_one(&pool)
    .await
    .expect("anchors");
    pool.close().await;
    assert!(n_anchors >= 200 && n_others == 0, "{n_others} of {n_anchors} have the vectors of before");
}

#[tokio::test]
async fn a_space_that_cannot_be_searched_is_named_and_the_others_are_found() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    write(&app, 0..240).await;
    search_until(&app, "bread", "anchors").await;
    app.post(&format!("/models/{TINY}/unload"), json!({"disable": true})).await.ok();
    let found = search(&app, "bread").await;
    // The space that serves most is not there to give the scale.
    assert_eq!((hits(&found).len(), &found["merged"]), (80, &json!("score")));
    let spaces = found["spaces"].as_array().expect("spaces");
    let reason =
        spaces.iter().find(|space| space["searched"] == false).expect("one that was not searched")["reason"].clone();
    assert!(reason.as_str().is_some_and(|reason| reason.contains("disabled")), "{reason}");
    app.post(&format!("/models/{TINY}/load"), json!({})).await.ok();
    assert_eq!(search(&app, "bread").await["merged"], "anchors", "its anchors were kept");

    // Nobody makes the smaller space any more.
    let app = app.restart_with(&with_tiny(&[])).await;
    let found = search(&app, "bread").await;
    assert_eq!((hits(&found).len(), &found["merged"]), (160, &json!("score")));
    let spaces = found["spaces"].as_array().expect("spaces");
    let lost = spaces.iter().find(|space| space["searched"] == false).expect("one that was not searched");
    let reason = lost["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("no model of this server makes the space"), "{lost}");

    // Its model is there again, and so are the anchors.
    let app = app.restart_with(&with_tiny(&[OTHER])).await;
    let found = search_until(&app, "bread", "anchors").await;
    assert_eq!(hits(&found).len(), 240);
    app.stop().await;
}

#[tokio::test]
async fn a_third_space_gets_its_anchors_while_the_others_keep_theirs() {
    let third = "tiny-max";
    let app = TestApp::start_with(&with_tiny(&[OTHER, third])).await;
    write(&app, 0..240).await;
    search_until(&app, "bread", "anchors").await;
    let grain = |n: usize| json!({"id": format!("third-{n}"), "text": text_of(n + 7), "model": third});
    app.post("/grains", json!({"grains": (0..10).map(grain).collect::<Vec<_>>()})).await.ok();
    let found = search_until(&app, "bread", "anchors").await;
    assert_eq!((hits(&found).len(), found["spaces"].as_array().expect("spaces").len()), (250, 3));
    app.stop().await;
}

#[tokio::test]
async fn anchors_are_made_as_soon_as_a_job_has_some_grains_served_by_another_space() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    let grain =
        |n: usize| json!({"id": n.to_string(), "text": text_of(n), "tags": if n < 100 { ["first"] } else { ["rest"] }});
    app.post("/grains", json!({"grains": (0..240).map(grain).collect::<Vec<_>>()})).await.ok();
    let job = begin(&app, json!({"to": OTHER, "filter": {"tags": {"any": ["first"]}}})).await;
    wait_until(&app, &job, "completed").await;
    let cut_over = Instant::now();
    let found = search_until(&app, "bread", "anchors").await;
    assert_eq!(hits(&found).len(), 240);
    // Without a word it is looked 30 s after the last change.
    assert!(cut_over.elapsed() < Duration::from_secs(25), "nobody told that there is something to do");
    app.stop().await;
}

#[tokio::test]
async fn a_model_that_cannot_be_had_does_not_keep_anchors_from_the_others() {
    let third = "tiny-max";
    let app = TestApp::start_with(&with_tiny(&[OTHER, third])).await;
    let grain = |n: usize| json!({"id": format!("third-{n}"), "text": text_of(n + 7), "model": third});
    app.post("/grains", json!({"grains": (0..10).map(grain).collect::<Vec<_>>()})).await.ok();
    let lost = format!("[[ai.additional_models]]\nname = \"{third}\"\npath = \"/nowhere/at-all\"\n");
    let app = app.restart_with(&format!("{}{lost}", with_tiny(&[OTHER]))).await;
    write(&app, 0..240).await;
    let found = search_until(&app, "bread", "anchors").await;
    assert_eq!(hits(&found).len(), 240);
    let spaces = found["spaces"].as_array().expect("spaces");
    assert_eq!(spaces.iter().filter(|space| space["searched"] == true).count(), 2, "{spaces:?}");
    app.stop().await;
}

#[tokio::test]
async fn many_texts_that_a_model_does_not_take_do_not_keep_anchors_from_the_others() {
    let short = format!("{}max_tokens = 32\n", entry_of(OTHER));
    let app = TestApp::start_with(&format!("{}{short}[engine]\nauto_truncate = false\n", with_tiny(&[]))).await;
    let long = |n: usize| json!({"id": format!("long-{n}"), "text": text_of(n).repeat(4), "model": TINY});
    app.post("/grains", json!({"grains": (0..200).map(long).collect::<Vec<_>>()})).await.ok();
    write(&app, 0..240).await;
    let found = search_until(&app, "bread", "anchors").await;
    assert_eq!(hits(&found).len(), 440);
    app.stop().await;
}

#[tokio::test]
async fn a_bound_of_a_search_that_was_fused_by_rank_is_one_of_cosines() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    write(&app, 0..40).await;
    let found = search(&app, "bread").await;
    assert_eq!((hits(&found).len(), &found["merged"]), (40, &json!("rank")));
    let mut cosines: Vec<f64> = hits(&found).iter().map(|hit| number(hit, "raw_score")).collect();
    cosines.sort_by(f64::total_cmp);
    // Between two, so that rounding decides nothing.
    let at = (15..25).max_by(|a, b| (cosines[*a] - cosines[a - 1]).total_cmp(&(cosines[*b] - cosines[b - 1])));
    let at = at.expect("some");
    let bound = f64::midpoint(cosines[at - 1], cosines[at]);
    let body = json!({"query": "bread", "mode": "dense", "limit": 1000, "min_score": bound});
    let bounded = app.post("/grains/search", body).await.ok();
    assert_eq!((hits(&bounded).len(), &bounded["merged"]), (40 - at, &json!("rank")));
    assert!(hits(&bounded).iter().all(|hit| number(hit, "raw_score") >= bound), "{bounded}");
    assert!(hits(&bounded).is_sorted_by(|a, b| number(a, "score") >= number(b, "score")), "best first");
    app.stop().await;
}
