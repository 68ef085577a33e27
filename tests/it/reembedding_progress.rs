//! What those learn who follow a re-embedding: how fast it is and how long it still takes, while it runs.

use std::time::Instant;

use futures::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};

use crate::helpers::{TestApp, send, with_tiny};
use crate::reembeddings::{OTHER, begin, verb, write};

/// Grains for several batches, however many workers there are.
const N_GRAINS: usize = 2_000;

fn events_of(job: &Value) -> String {
    format!("/reembeddings/{}/events", job["id"].as_str().expect("an id"))
}

/// The events in what has come of a stream. The last one may have come in part.
fn events_in(text: &str) -> Vec<Value> {
    let (whole, _) = text.rsplit_once("\n\n").unwrap_or_default();
    let data = whole.split("\n\n").filter_map(|event| event.strip_prefix("event: reembedding\ndata: "));
    data.map(|data| serde_json::from_str(data).expect("JSON")).collect()
}

#[tokio::test]
async fn a_job_is_shown_while_it_runs_with_its_rate_and_the_time_that_is_left() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    write(&app, N_GRAINS).await;
    // So slow that it does not end before it is paused.
    let job = begin(&app, json!({"to": OTHER, "throttle": 0.01})).await;
    let answer = app.request(Method::GET, &events_of(&job)).send().await.expect("an answer");
    assert_eq!(answer.headers()["x-accel-buffering"], "no", "proxies keep nothing back either");
    let (mut stream, mut text) = (answer.bytes_stream(), String::new());
    let moving = loop {
        let piece = stream.next().await.expect("it goes on").expect("read");
        text.push_str(&String::from_utf8_lossy(&piece));
        if let Some(moving) = events_in(&text).into_iter().find(|event| event["rate"].is_number()) {
            break moving;
        }
    };
    assert_eq!(moving["state"], "running", "{moving}");
    let number = |key: &str| moving[key].as_f64().unwrap_or_else(|| panic!("no `{key}`: {moving}"));
    let n_left = number("total") - number("done") - number("failed");
    assert!(number("rate") > 0.0 && (number("eta_s") * number("rate") - n_left).abs() < 1e-6, "{moving}");

    // It would be refused if the stream had come when all was done.
    let paused = verb(&app, &job, "pause").await;
    assert_eq!((&paused["rate"], &paused["eta_s"]), (&Value::Null, &Value::Null), "{paused}");
    while let Some(piece) = stream.next().await {
        text.push_str(&String::from_utf8_lossy(&piece.expect("the stream ends in order")));
    }
    let events = events_in(&text);
    let last = events.last().expect("events");
    assert_eq!((&last["state"], &last["rate"], &last["eta_s"]), (&json!("paused"), &Value::Null, &Value::Null));
    app.stop().await;
}

#[tokio::test]
async fn a_job_is_shown_at_most_four_times_a_second() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    write(&app, N_GRAINS).await;
    let job = begin(&app, json!({"to": OTHER})).await;
    let began = Instant::now();
    let answer = send(app.request(Method::GET, &events_of(&job))).await;
    // A slow machine only allows for more: this has taken longer than the stream.
    let at_most = 4.0 * began.elapsed().as_secs_f64() + 2.0;
    let events = events_in(&answer.text);
    assert!((events.len() as f64) <= at_most, "{} are more than {at_most}", events.len());
    let last = events.last().expect("events");
    assert_eq!((&last["state"], &last["done"]), (&json!("completed"), &json!(N_GRAINS)), "{last}");
    app.stop().await;
}
