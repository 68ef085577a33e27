//! Pages of a search are parts of one ranking: while nothing is written no hit comes twice, and none is left out.

use std::collections::HashSet;

use reqwest::Method;
use serde_json::{Value, json};

use crate::helpers::{Caller, Chance, TINY, TestApp, send, until, with_tiny};

/// The most hits of one answer.
const LONGEST_PAGE: usize = 1_000;

/// The hits of each page where there are many.
const SHORT_PAGE: usize = 50;

/// A configuration with which a query has the same vector for each page, to the last bit, whatever it is batched with.
fn with_tiny_and_a_cache(others: &[&str]) -> String {
    format!("[models]\nembedding_cache = \"1MiB\"\n{}", with_tiny(others))
}

async fn search(app: &Caller, body: &Value, offset: usize, limit: usize) -> Value {
    let mut body = body.clone();
    body["offset"] = json!(offset);
    body["limit"] = json!(limit);
    app.post("/grains/search", body).await.ok()
}

fn ids(found: &Value) -> Vec<String> {
    let hits = found["hits"].as_array().unwrap_or_else(|| panic!("no hits: {found}"));
    hits.iter().map(|hit| hit["grain"]["id"].as_str().expect("an id").to_owned()).collect()
}

fn scores(found: &Value) -> Vec<f64> {
    let hits = found["hits"].as_array().unwrap_or_else(|| panic!("no hits: {found}"));
    hits.iter().map(|hit| hit["score"].as_f64().expect("a score")).collect()
}

/// The first thousand hits in one page, and in short ones.
async fn both_ways(app: &Caller, body: &Value) -> (Value, Vec<String>) {
    let whole = search(app, body, 0, LONGEST_PAGE).await;
    let mut paged = Vec::new();
    for offset in (0..LONGEST_PAGE).step_by(SHORT_PAGE) {
        paged.extend(ids(&search(app, body, offset, SHORT_PAGE).await));
    }
    (whole, paged)
}

fn assert_one_ranking(whole: &Value, paged: &[String], body: &Value) {
    assert_eq!(paged, ids(whole), "{body}");
    assert_eq!(paged.iter().collect::<HashSet<_>>().len(), paged.len(), "a hit comes twice: {body}");
    assert!(scores(whole).is_sorted_by(|a, b| a >= b), "best first: {body}");
}

/// Checks the first hits of a search, a thousand of them at most. Answers how many there are.
pub async fn assert_pages(app: &Caller, body: &Value) -> usize {
    let (whole, paged) = both_ways(app, body).await;
    assert_one_ranking(&whole, &paged, body);
    let next = ids(&search(app, body, LONGEST_PAGE, SHORT_PAGE).await);
    assert!(next.iter().all(|id| !paged.contains(id)), "a hit comes again: {body}");
    paged.len()
}

/// A server with 900 grains, half of which have a word.
async fn start_with_oats() -> TestApp {
    let app = TestApp::start_with(&with_tiny_and_a_cache(&[])).await;
    let space = app.post("/models/tiny/load", json!({})).await.ok()["space"].clone();
    let mut chance = Chance::seeded(17);
    // Every other one has the word, more or less often, and what its vector says has nothing to do with that.
    let grain = |n: usize| {
        let oats = if n.is_multiple_of(2) { "oats ".repeat(1 + n % 19) } else { String::new() };
        let vector = chance.unit_vector(32);
        json!({"id": n.to_string(), "text": format!("{oats}barley"), "space": space, "vector": vector})
    };
    let grains: Vec<Value> = (0..900).map(grain).collect();
    app.post("/grains", json!({"grains": grains})).await.ok();
    app
}

#[tokio::test]
async fn pages_of_every_mode_are_parts_of_one_ranking() {
    let app = start_with_oats().await;
    for (mode, n_hits) in [("hybrid", 900), ("dense", 900), ("lexical", 450)] {
        let n_found = assert_pages(&app, &json!({"query": "oats", "mode": mode})).await;
        assert_eq!(n_found, n_hits, "{mode}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_bounded_search_is_the_unbounded_one_as_far_as_it_reaches_the_bound() {
    let app = start_with_oats().await;
    for mode in ["hybrid", "dense", "lexical"] {
        let whole = search(&app, &json!({"query": "oats", "mode": mode}), 0, LONGEST_PAGE).await;
        // Fewer than the first lists have, about as many, and more.
        for at in [30, 150, 250, 440] {
            let bound = scores(&whole)[at];
            let n_reach = scores(&whole).iter().filter(|score| **score >= bound).count();
            let body = json!({"query": "oats", "mode": mode, "min_score": bound});
            assert_eq!(assert_pages(&app, &body).await, n_reach, "{body}");
            for limit in [49, 50, 51, 199, 200, 201] {
                let found = search(&app, &body, 0, limit).await;
                assert_eq!(ids(&found), ids(&whole)[..n_reach.min(limit)], "{limit} of {body}");
            }
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn pages_of_two_spaces_are_parts_of_one_ranking() {
    let other = "tiny-cls";
    let app = TestApp::start_with(&with_tiny_and_a_cache(&[other])).await;
    let grain = |n: usize| {
        let model = if n.is_multiple_of(3) { other } else { TINY };
        json!({"id": n.to_string(), "text": format!("{}barley {n}", "oats ".repeat(n % 19)), "model": model})
    };
    app.post("/grains", json!({"grains": (0..450).map(grain).collect::<Vec<_>>()})).await.ok();
    let dense = json!({"query": "oats", "mode": "dense"});
    let hybrid = json!({"query": "oats"});
    let are_one_ranking = async || {
        let before = search(&app, &dense, 0, LONGEST_PAGE).await;
        let pages = [(&dense, both_ways(&app, &dense).await), (&hybrid, both_ways(&app, &hybrid).await)];
        let after = search(&app, &dense, 0, LONGEST_PAGE).await;
        // While anchors are made, each new one changes the ranking.
        let is_settled = before["merged"] == "anchors" && before["hits"] == after["hits"];
        if is_settled {
            for (body, (whole, paged)) in &pages {
                assert_one_ranking(whole, paged, body);
                assert_eq!(paged.len(), 450);
            }
        }
        is_settled
    };
    until("all anchors are made", are_one_ranking).await;
    app.stop().await;
}

#[tokio::test]
async fn pages_of_a_bounded_search_that_was_fused_by_rank_are_parts_of_one_ranking() {
    let other = "tiny-cls";
    let app = TestApp::start_with(&with_tiny_and_a_cache(&[other])).await;
    // One grain less than there have to be anchors, and more in the greater space than the first lists have.
    let grain = |n: usize| {
        let model = if n.is_multiple_of(3) { other } else { TINY };
        json!({"id": n.to_string(), "text": format!("{}barley {n}", "oats ".repeat(n % 19)), "model": model})
    };
    app.post("/grains", json!({"grains": (0..199).map(grain).collect::<Vec<_>>()})).await.ok();
    let whole = search(&app, &json!({"query": "oats", "mode": "dense"}), 0, LONGEST_PAGE).await;
    assert_eq!((ids(&whole).len(), &whole["merged"]), (199, &json!("rank")));
    let raw = |hit: &Value| hit["raw_score"].as_f64().expect("a raw score");
    let hits = whole["hits"].as_array().expect("hits");
    let mut cosines: Vec<f64> = hits.iter().map(raw).collect();
    cosines.sort_by(f64::total_cmp);
    for range in [20..40, 60..80, 110..130] {
        // Between two, so that rounding decides nothing.
        let at = range.max_by(|a, b| (cosines[*a] - cosines[a - 1]).total_cmp(&(cosines[*b] - cosines[b - 1])));
        let at = at.expect("some");
        let bound = f64::midpoint(cosines[at - 1], cosines[at]);
        let body = json!({"query": "oats", "mode": "dense", "min_score": bound});
        let reaching: Vec<&str> =
            hits.iter().filter(|hit| raw(hit) >= bound).filter_map(|hit| hit["grain"]["id"].as_str()).collect();
        assert_eq!(assert_pages(&app, &body).await, reaching.len(), "{body}");
        assert_eq!(ids(&search(&app, &body, 0, LONGEST_PAGE).await), reaching, "{body}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_bounded_search_of_many_vectors_loses_none_that_the_unbounded_one_shows() {
    // So many that codes are compared first, and hardly tell these apart.
    const N_GRAINS: usize = 10_500;
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let declared = app.post("/spaces", json!({"name": "flat", "dimensions": 2})).await.ok();
    let space = declared["id"].as_str().expect("an id");
    let mut chance = Chance::seeded(5);
    let distinct: Vec<Vec<f32>> = (0..240).map(|_| chance.unit_vector(2)).collect();
    let line = |n: usize| format!("{}\n", json!({"text": "x", "vector": distinct[n % 240], "space": space}));
    let lines: String = (0..N_GRAINS).map(line).collect();
    let import = app.request(Method::POST, "/grains/import").header("content-type", "application/x-ndjson");
    let imported = send(import.body(lines)).await;
    assert!(imported.text.contains(&format!("\"created\":{N_GRAINS}")), "{}", imported.text);
    let raw = |hit: &Value| hit["raw_score"].as_f64().expect("a raw score");
    for _ in 0..20 {
        let query = chance.unit_vector(2);
        let body = json!({"vector": query, "space": space});
        let whole = search(&app, &body, 0, LONGEST_PAGE).await;
        let mut cosines: Vec<f64> = whole["hits"].as_array().expect("hits").iter().map(raw).collect();
        cosines.sort_by(|a, b| b.total_cmp(a));
        let bound = cosines[100];
        let bounded =
            search(&app, &json!({"vector": query, "space": space, "min_score": bound}), 0, LONGEST_PAGE).await;
        assert!(bounded["hits"].as_array().expect("hits").iter().all(|hit| raw(hit) >= bound));
        assert!(scores(&bounded).is_sorted_by(|a, b| a >= b), "best first");
        let found: HashSet<String> = ids(&bounded).into_iter().collect();
        let shown = whole["hits"].as_array().expect("hits").iter().filter(|hit| raw(hit) >= bound);
        let lost = shown.filter(|hit| !found.contains(hit["grain"]["id"].as_str().expect("an id"))).count();
        assert_eq!(lost, 0, "of {} found with the bound {bound}", found.len());
    }
    app.stop().await;
}
