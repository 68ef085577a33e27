//! Roll-backs over what other jobs have moved and left: the vectors of a job that was given up serve nothing.

use serde_json::{Value, json};

use crate::helpers::{Caller, TINY, TestApp, with_tiny};
use crate::reembedding_rules::{BROKEN, THIRD, n_in, write_with};
use crate::reembeddings::{OTHER, assert_embedded, begin, space_of, verb, wait_until, write};

/// A grain that [`BROKEN`] cannot embed, so that a job with it does not take over.
async fn write_bad(app: &Caller) {
    app.post("/grains", json!({"id": "bad", "text": "it ~ cannot be embedded"})).await.ok();
}

/// A job that leaves the vectors it has made where they are.
async fn give_up(app: &Caller, filter: Value) {
    let job = begin(app, json!({"to": BROKEN, "filter": filter})).await;
    let job = wait_until(app, &job, "completed_with_failures").await;
    assert!(job["done"].as_u64() > Some(0), "{job}");
    verb(app, &job, "cancel").await;
}

async fn take_over(app: &Caller, body: Value) -> Value {
    let job = begin(app, body).await;
    wait_until(app, &job, "completed").await
}

async fn roll_back(app: &Caller, job: &Value) {
    verb(app, job, "rollback").await;
    wait_until(app, job, "rolled_back").await;
}

#[tokio::test]
async fn a_space_that_serves_nothing_now_keeps_its_place_before_what_a_cancelled_job_has_left() {
    let app = TestApp::start_with(&with_tiny(&[OTHER, THIRD, BROKEN])).await;
    write_bad(&app).await;
    write_with(&app, "second", OTHER, 5).await;
    give_up(&app, Value::Null).await;
    let job = take_over(&app, json!({"to": THIRD})).await;
    assert_eq!(n_in(&app, &job["space"]).await, 6);
    // While the third space serves everything, a job for the second one comes and goes.
    let other = take_over(&app, json!({"to": OTHER})).await;
    roll_back(&app, &other).await;
    roll_back(&app, &job).await;
    assert_eq!(n_in(&app, &space_of(&app, OTHER).await).await, 5);
    assert_embedded(&app, "second-0", OTHER).await;
    app.stop().await;
}

#[tokio::test]
async fn a_space_goes_back_before_what_a_cancelled_job_has_left_of_its_own_grains() {
    let app = TestApp::start_with(&with_tiny(&[OTHER, THIRD, BROKEN])).await;
    write_bad(&app).await;
    write_with(&app, "second", OTHER, 5).await;
    write_with(&app, "third", THIRD, 5).await;
    let own: Vec<String> = (0..5).map(|n| format!("third-{n}")).chain(["bad".to_owned()]).collect();
    give_up(&app, json!({"ids": own})).await;
    let job = take_over(&app, json!({"to": THIRD})).await;
    // The second space goes behind what was left: that has nothing of its grains.
    let other = take_over(&app, json!({"to": OTHER, "filter": {"ids": ["bad"]}})).await;
    roll_back(&app, &other).await;
    roll_back(&app, &job).await;
    for (prefix, model) in [("second", OTHER), ("third", THIRD)] {
        assert_eq!(n_in(&app, &space_of(&app, model).await).await, 5, "{model}");
        assert_embedded(&app, &format!("{prefix}-0"), model).await;
    }
    app.stop().await;
}

#[tokio::test]
async fn a_job_for_the_space_before_leaves_it_where_a_roll_back_leads() {
    let app = TestApp::start_with(&with_tiny(&[OTHER, THIRD])).await;
    write(&app, 5).await;
    let first = take_over(&app, json!({"to": OTHER})).await;
    let second = take_over(&app, json!({"to": THIRD})).await;
    let other = take_over(&app, json!({"to": OTHER})).await;
    roll_back(&app, &other).await;
    roll_back(&app, &second).await;
    assert_eq!(n_in(&app, &first["space"]).await, 5, "not the one before it");
    roll_back(&app, &first).await;
    assert_eq!(n_in(&app, &space_of(&app, TINY).await).await, 5);
    app.stop().await;
}
