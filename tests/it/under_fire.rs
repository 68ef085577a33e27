//! No request fails because models come and go, and none is answered with another model's vectors.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::Method;
use serde_json::json;

use crate::helpers::{MINILM, TINY, TestApp, cosine, entry_of, send, until, vectors_of, with_tiny};

/// The texts that are embedded under fire: of several lengths, so that batches are padded.
const N_TEXTS: usize = 16;

fn text(number: usize) -> String {
    format!("request {number} {}", "of some length ".repeat(number % 5))
}

/// Of each model the vectors of the texts, embedded alone before anything happens.
type Golden = HashMap<String, Vec<Vec<f32>>>;

async fn golden(app: &TestApp, models: &[&str]) -> Golden {
    let mut golden = Golden::new();
    for model in models {
        for number in 0..N_TEXTS {
            let answer = app.post("/embed", json!({"inputs": text(number), "model": model})).await.ok();
            golden.entry((*model).to_owned()).or_default().extend(vectors_of(&answer));
        }
    }
    golden
}

/// Embeds over and over until told to stop, and compares each vector with that of the model that answered; returns how
/// many requests each model answered.
async fn embed_until(
    app: &TestApp,
    golden: &Golden,
    done: &AtomicBool,
    model: Option<&str>,
    least: usize,
) -> Vec<(String, usize)> {
    let mut answered: Vec<(String, usize)> = Vec::new();
    let mut n_requests = 0;
    while !done.load(Ordering::Relaxed) || n_requests < least {
        let numbers = [n_requests % N_TEXTS, (n_requests + 7) % N_TEXTS];
        let body = json!({"inputs": numbers.map(text), "model": model});
        let answer = app.post("/embed", body).await;
        let vectors = vectors_of(&answer.ok());
        assert_eq!(vectors.len(), 2);
        assert_eq!(vectors[0].len().to_string(), answer.header("x-dimensions"));
        let name = answer.header("x-model").to_owned();
        if let Some(wanted) = model {
            assert_eq!(name, wanted);
        }
        for (number, vector) in numbers.into_iter().zip(&vectors) {
            let cosine = cosine(vector, &golden[&name][number]);
            assert!(cosine >= 0.999, "{name}: cosine {cosine} of text {number}");
        }
        match answered.iter_mut().find(|(known, _)| *known == name) {
            Some((_, n)) => *n += 1,
            None => answered.push((name, 1)),
        }
        n_requests += 1;
    }
    answered
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_model_is_loaded_made_active_and_unloaded_without_a_failed_request() {
    // It is of 435 MB, and must not fail a request on a slow disk.
    let toml = format!("[models]\nload_timeout = \"5m\"\n{}", entry_of("bert-base-uncased"));
    let app = Arc::new(TestApp::start_with(&toml).await);
    let golden = golden(&app, &[MINILM, "bert-base-uncased"]).await;
    app.post("/models/bert-base-uncased/unload", json!({})).await.ok();
    let done = AtomicBool::new(false);
    let steps = async {
        for (method, path, body) in [
            (Method::POST, "/models/bert-base-uncased/load", None),
            (Method::PUT, "/models/active", Some(json!({"name": "bert-base-uncased"}))),
            (Method::POST, "/models/all-MiniLM-L6-v2/unload", None),
            (Method::PUT, "/models/active", Some(json!({"name": MINILM}))),
            (Method::POST, "/models/bert-base-uncased/unload", None),
            (Method::POST, "/models/all-MiniLM-L6-v2/unload", None),
        ] {
            let request = app.request(method, path);
            let request = if let Some(body) = body { request.json(&body) } else { request };
            send(request).await.ok();
            // Some requests of the loop fall between any two steps.
            for _ in 0..3 {
                app.post("/embed", json!({"inputs": "between"})).await.ok();
            }
        }
        done.store(true, Ordering::Relaxed);
    };
    let (answered, ()) = tokio::join!(embed_until(&app, &golden, &done, None, 10), steps);
    let models: Vec<&str> = answered.iter().map(|(name, _)| name.as_str()).collect();
    assert!(models.contains(&MINILM) && models.contains(&"bert-base-uncased"), "{answered:?}");
    Arc::into_inner(app).expect("nobody else holds it").stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_unloaded_again_and_again_answers_every_request_with_its_vectors() {
    let app = TestApp::start_with(&with_tiny(&["tiny-cls", "tiny-max"])).await;
    let golden = golden(&app, &[TINY, "tiny-cls", "tiny-max"]).await;
    let done = AtomicBool::new(false);
    let steps = async {
        let models = [TINY, "tiny-cls", "tiny-max"];
        for round in 0..30 {
            for name in models {
                send(app.request(Method::POST, &format!("/models/{name}/unload"))).await.ok();
            }
            app.put("/models/active", json!({"name": models[round % 3]})).await.ok();
        }
        done.store(true, Ordering::Relaxed);
    };
    let callers = futures::future::join_all([
        embed_until(&app, &golden, &done, None, 20),
        embed_until(&app, &golden, &done, Some(TINY), 20),
        embed_until(&app, &golden, &done, Some("tiny-cls"), 20),
        embed_until(&app, &golden, &done, Some("tiny-max"), 20),
    ]);
    tokio::join!(callers, steps);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_does_not_take_others_along() {
    let app = TestApp::start_with(&with_tiny(&["tiny-cls"])).await;
    // All that wait for the model together are less than its queue takes.
    let texts: Vec<String> = (0..800).map(|n| format!("text {n} {}", "of some length ".repeat(20))).collect();
    let body = json!({"inputs": texts});
    let leavers = futures::future::join_all((0..8).map(|_| app.post("/models/tiny-cls/embed", body.clone())));
    let leave = async {
        let counted = "te_request_count{method=\"batch\"} 8";
        tokio::select! {
            _ = leavers => panic!("all were answered before they left"),
            () = until("all have come", async || app.get("/metrics").await.text.contains(counted)) => {}
        }
    };
    let stayers = (0..8).map(|n| app.post("/models/tiny-cls/embed", json!({"inputs": format!("stay {n}")})));
    let ((), answers) = tokio::join!(leave, futures::future::join_all(stayers));
    for answer in answers {
        answer.ok();
    }
    app.stop().await;
}
