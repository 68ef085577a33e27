//! What a text is batched with, when it is answered, and what was embedded before change nothing in its vector.

use proptest::prelude::*;
use reqwest::StatusCode;
use serde_json::json;

use crate::helpers::{TestApp, cosine, vectors_of, with_tiny};

/// Words of the default model's vocabulary, short and long, and some it must take apart.
const WORDS: [&str; 12] = [
    "the",
    "search",
    "finds",
    "a",
    "record",
    "with",
    "its",
    "meaning",
    "antidisestablishmentarianism",
    "Wörter",
    "42",
    "…",
];

fn text() -> impl Strategy<Value = String> {
    let words = prop::sample::select(&WORDS[..]);
    prop_oneof![
        3 => prop::collection::vec(words.clone(), 1..12),
        1 => prop::collection::vec(words, 12..300),
    ]
    .prop_map(|words| words.join(" "))
}

/// Sends texts alone and all at once, and compares.
async fn compare(app: &TestApp, texts: &[String]) -> Result<(), TestCaseError> {
    let together = vectors_of(&app.post("/embed", json!({"inputs": texts})).await.ok());
    let alone = futures::future::join_all(texts.iter().map(|text| app.post("/embed", json!({"inputs": text})))).await;
    for ((text, together), alone) in texts.iter().zip(&together).zip(alone) {
        let cosine = cosine(together, &vectors_of(&alone.ok())[0]);
        prop_assert!(cosine >= 0.9999, "cosine {} for {:?}", cosine, text);
    }
    Ok(())
}

fn hold_for_any_texts(toml: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let app = runtime.block_on(TestApp::start_with(toml));
    let config = ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() };
    let texts = prop::collection::vec(text(), 1..24);
    let outcome =
        proptest::test_runner::TestRunner::new(config).run(&texts, |texts| runtime.block_on(compare(&app, &texts)));
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
    runtime.block_on(app.stop());
}

#[test]
fn a_vector_does_not_depend_on_its_batch_on_cpu() {
    hold_for_any_texts("[engine]\nprovider = \"cpu\"\n");
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_vector_does_not_depend_on_its_batch_on_openvino() {
    hold_for_any_texts("[engine]\nprovider = \"openvino\"\n");
}

#[tokio::test]
async fn every_arrangement_of_workers_gives_the_same_vectors() {
    let texts: Vec<String> = (1..40).map(|n| format!("text {n} {}", "word ".repeat(n * 3))).collect();
    let mut answers = Vec::new();
    for settings in
        ["query_lane = \"off\"\nworkers = 1", "query_lane = \"on\"\nworkers = 1", "workers = 3", "max_batch_texts = 1"]
    {
        let app = TestApp::start_with(&format!("[engine]\n{settings}\n{}", with_tiny(&[]))).await;
        let whole = vectors_of(&app.post("/embed", json!({"inputs": texts})).await.ok());
        let lone = vectors_of(&app.post("/embed", json!({"inputs": texts[0]})).await.ok());
        assert!(cosine(&whole[0], &lone[0]) > 0.9999, "{settings}");
        answers.push(whole);
        app.stop().await;
    }
    for other in &answers[1..] {
        assert!(other.iter().zip(&answers[0]).all(|(a, b)| cosine(a, b) > 0.9999));
    }
}

#[tokio::test]
async fn background_work_is_done_beside_what_somebody_waits_for() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let many: Vec<String> = (0..300).map(|n| format!("text {n}")).collect();
    let background = json!({"inputs": many, "priority": "background"});
    let (background, lone) = tokio::join!(
        futures::future::join_all((0..4).map(|_| app.post("/embed", background.clone()))),
        futures::future::join_all((0..8).map(|_| app.post("/embed", json!({"inputs": "hello"})))),
    );
    assert!(background.iter().all(|answer| vectors_of(&answer.ok()).len() == 300));
    let lone: Vec<_> = lone.iter().map(|answer| vectors_of(&answer.ok()).remove(0)).collect();
    // What a text is batched with shows in the last bits; another model's vector points elsewhere.
    assert!(lone.iter().all(|vector| cosine(vector, &lone[0]) > 0.9999), "{lone:?}");
    app.post("/v1/embeddings", json!({"input": "hello", "priority": "background"})).await.ok();
    let wrong = app.post("/embed", json!({"inputs": "hello", "priority": "high"})).await.tei_error();
    assert!(wrong.0 == 422 && wrong.2.contains("priority") && wrong.2.contains("background"), "{}", wrong.2);
    app.stop().await;
}

#[tokio::test]
async fn the_embedding_cache_answers_as_the_model_does() {
    let entry = with_tiny(&["tiny-cls"]);
    let cached = TestApp::start_with(&format!("[models]\nembedding_cache = \"1MiB\"\n{entry}")).await;
    let plain = TestApp::start_with(&entry).await;
    let long = "word ".repeat(500);
    for body in [
        json!({"inputs": ["a", "b", long]}),
        json!({"inputs": ["b", "c", "a", "b", [101, 102]]}),
        json!({"inputs": ["c", long], "normalize": false}),
        json!({"inputs": ["a", long], "truncation_direction": "left"}),
        json!({"inputs": "a", "model": "tiny-cls"}),
        json!({"inputs": [long, "a", "new"]}),
    ] {
        let (with, without) = (cached.post("/embed", body.clone()).await, plain.post("/embed", body.clone()).await);
        let pairs = vectors_of(&with.ok()).into_iter().zip(vectors_of(&without.ok()));
        assert!(pairs.into_iter().all(|(a, b)| cosine(&a, &b) > 0.9999), "{body}");
        for header in ["x-space", "x-model", "x-truncated", "x-compute-tokens", "x-dimensions"] {
            assert_eq!(with.header(header), without.header(header), "{header} of {body}");
        }
    }
    let metrics = cached.get("/metrics").await.text;
    assert!(metrics.contains("granary_embedding_cache_hits_total{model=\"tiny\"} "), "{metrics}");
    // A cut text is known, and still refused to who refuses the cut; the place is that of the whole request.
    let refused = cached.post("/embed", json!({"inputs": ["a", long], "truncate": false})).await.tei_error();
    assert!(refused.0 == 422 && refused.2.contains("`inputs[1]`"), "{}", refused.2);
    // Far more texts than fit.
    let many: Vec<String> = (0..2000).map(|n| format!("text {n}")).collect();
    for _ in 0..2 {
        let answer = cached.post("/embed", json!({"inputs": many})).await;
        assert_eq!((answer.status, vectors_of(&answer.ok()).len()), (StatusCode::OK, 2000));
    }
    cached.stop().await;
    plain.stop().await;
}
