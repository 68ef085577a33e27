//! Jobs that select grains, into spaces that have vectors of others already.

use serde_json::{Value, json};

use crate::helpers::{Caller, TINY, TestApp, with_tiny};
use crate::reembedding_rules::{THIRD, n_in, write_with};
use crate::reembeddings::{OTHER, assert_embedded, begin, space_of, verb, wait_for, wait_until, write};

/// Asks for a job that is refused, and answers why.
async fn not_begun(app: &Caller, body: Value) -> String {
    let (status, code, detail) = app.post("/reembeddings", body.clone()).await.problem();
    assert_eq!((status, code.as_str()), (409, "conflict"), "{body}: {detail}");
    detail
}

#[tokio::test]
async fn what_was_moved_away_does_not_come_back_with_a_selection() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    write(&app, 20).await;
    let old = space_of(&app, TINY).await;
    let job = begin(&app, json!({"to": OTHER})).await;
    let job = wait_until(&app, &job, "completed").await;
    for (body, n_others) in [
        (json!({"to": TINY, "filter": {"ids": ["0"]}}), 19),
        (json!({"to": TINY, "from": job["space"], "filter": {"ids": ["0"]}}), 19),
        (json!({"to": TINY, "from": old}), 20),
    ] {
        let detail = not_begun(&app, body).await;
        assert!(detail.contains(&format!("({n_others})")), "{detail}");
        assert!(detail.contains(old.as_str().expect("a space")), "{detail}");
        assert!(detail.contains(&format!("/reembeddings/{}/purge", job["id"].as_str().expect("an id"))), "{detail}");
    }
    assert_eq!(n_in(&app, &job["space"]).await, 20);

    verb(&app, &job, "purge").await;
    wait_for(&app, &job, |job| job["old_vectors"] == "purged").await;
    let one = begin(&app, json!({"to": TINY, "filter": {"ids": ["0"]}})).await;
    wait_until(&app, &one, "completed").await;
    assert_eq!((n_in(&app, &old).await, n_in(&app, &job["space"]).await), (1, 19));
    app.stop().await;
}

#[tokio::test]
async fn what_an_earlier_job_has_left_moves_where_it_is_selected() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    write(&app, 20).await;
    let job = begin(&app, json!({"to": OTHER})).await;
    let job = wait_until(&app, &job, "completed").await;
    verb(&app, &job, "rollback").await;
    wait_until(&app, &job, "rolled_back").await;
    let ids: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    let detail = not_begun(&app, json!({"to": OTHER, "filter": {"ids": ids[1..]}})).await;
    assert!(detail.contains("(1)") && detail.contains(job["id"].as_str().expect("an id")), "{detail}");
    let again = begin(&app, json!({"to": OTHER, "filter": {"ids": ids}})).await;
    let again = wait_until(&app, &again, "completed").await;
    assert_eq!((&again["done"], n_in(&app, &again["space"]).await), (&json!(0), 20), "{again}");
    app.stop().await;
}

#[tokio::test]
async fn what_a_job_ahead_in_the_queue_has_moved_does_not_come_back_with_a_selection() {
    let app = TestApp::start_with(&with_tiny(&[OTHER, THIRD])).await;
    write(&app, 300).await;
    write_with(&app, "native", OTHER, 5).await;
    let whole = begin(&app, json!({"to": THIRD, "throttle": 0.05})).await;
    wait_for(&app, &whole, |job| job["done"].as_u64() > Some(0)).await;
    // So far its space serves all that it has.
    let one = begin(&app, json!({"to": OTHER, "filter": {"ids": ["0"]}})).await;
    wait_until(&app, &whole, "completed").await;
    let one = wait_until(&app, &one, "failed").await;
    let reason = one["reason"].as_str().expect("a reason");
    assert!(reason.contains("(5)"), "{reason}");
    assert_embedded(&app, "native-0", THIRD).await;
    assert_eq!(n_in(&app, &space_of(&app, THIRD).await).await, 305);

    for (job, word) in [(&one, "cancel"), (&whole, "purge")] {
        let path = format!("/reembeddings/{}/{word}", job["id"].as_str().expect("an id"));
        assert!(reason.contains(&path), "no {path}: {reason}");
        verb(&app, job, word).await;
    }
    wait_for(&app, &whole, |job| job["old_vectors"] == "purged").await;
    let again = begin(&app, json!({"to": OTHER, "filter": {"ids": ["0"]}})).await;
    let again = wait_until(&app, &again, "completed").await;
    assert_eq!(n_in(&app, &again["space"]).await, 1, "{again}");
    app.stop().await;
}

#[tokio::test]
async fn what_another_job_has_moved_during_a_pause_does_not_come_back_with_a_selection() {
    let app = TestApp::start_with(&with_tiny(&[OTHER, THIRD])).await;
    write(&app, 300).await;
    write_with(&app, "native", OTHER, 5).await;
    let ids: Vec<String> = (0..300).map(|n| n.to_string()).collect();
    let held = begin(&app, json!({"to": OTHER, "throttle": 0.02, "filter": {"ids": ids}})).await;
    wait_for(&app, &held, |job| job["done"].as_u64() > Some(0)).await;
    let held = verb(&app, &held, "pause").await;
    assert_eq!(held["state"], "paused", "{held}");
    let whole = begin(&app, json!({"to": THIRD})).await;
    wait_until(&app, &whole, "completed").await;
    verb(&app, &held, "resume").await;
    let held = wait_until(&app, &held, "failed").await;
    assert!(held["reason"].as_str().is_some_and(|reason| reason.contains("(5)")), "{held}");
    assert_embedded(&app, "native-0", THIRD).await;
    assert_eq!(n_in(&app, &space_of(&app, THIRD).await).await, 305);
    app.stop().await;
}

#[tokio::test]
async fn what_a_write_has_left_is_deleted_with_a_job_that_is_rolled_back() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    write(&app, 5).await;
    write_with(&app, "native", OTHER, 1).await;
    let text = app.get("/grains/0").await.ok()["text"].clone();
    app.patch("/grains/0", json!({"text": text, "model": OTHER})).await.ok();
    assert_embedded(&app, "0", TINY).await;
    let one = json!({"to": OTHER, "filter": {"ids": ["1"]}});
    let detail = not_begun(&app, one.clone()).await;
    assert!(detail.contains("(1)") && detail.contains("cancel it or roll it back, and purge it"), "{detail}");

    let all = begin(&app, json!({"to": OTHER})).await;
    wait_until(&app, &all, "completed").await;
    verb(&app, &all, "rollback").await;
    wait_until(&app, &all, "rolled_back").await;
    verb(&app, &all, "purge").await;
    wait_for(&app, &all, |job| job["old_vectors"] == "purged").await;
    let one = begin(&app, one).await;
    let one = wait_until(&app, &one, "completed").await;
    assert_eq!(n_in(&app, &one["space"]).await, 2, "{one}");
    app.stop().await;
}
