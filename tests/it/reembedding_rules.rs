//! What a re-embedding leaves where it was, what it may not take from another, and what stands against it from the start.

use std::cell::Cell;
use std::process::Command;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::helpers::{Caller, TINY, TestApp, crowd, entry_of, send, until, until_seen, with_tiny};
use crate::reembeddings::{
    OTHER, PATIENCE, assert_embedded, begin, found, refused, served, space_of, verb, wait_for, wait_until, write,
};

/// A third model.
pub const THIRD: &str = "tiny-max";

/// A model that fails on texts with a `~`.
pub const BROKEN: &str = "tiny-broken-token";

fn id(job: &Value) -> &str {
    job["id"].as_str().expect("an id")
}

/// A job so slow that it is found at work.
pub async fn begin_slowly(app: &Caller, to: &str) -> Value {
    let job = begin(app, json!({"to": to, "throttle": 0.02})).await;
    wait_for(app, &job, |job| job["done"].as_u64() > Some(0)).await
}

/// Writes grains with a model: `a-0`, `a-1`, and so on.
pub async fn write_with(app: &Caller, prefix: &str, model: &str, n_grains: usize) {
    let grain =
        |n: usize| json!({"id": format!("{prefix}-{n}"), "text": format!("{prefix} number {n}"), "model": model});
    app.post("/grains", json!({"grains": (0..n_grains).map(grain).collect::<Vec<_>>()})).await.ok();
}

/// How many grains a space serves.
pub async fn n_in(app: &Caller, space: &Value) -> u64 {
    served(app).await.iter().find(|(of, _)| of.as_deref() == space.as_str()).map_or(0, |(_, n_grains)| *n_grains)
}

#[tokio::test]
async fn a_job_is_not_rolled_back_to_a_space_that_another_one_is_making() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    write(&app, 20).await;
    let job = begin(&app, json!({"to": OTHER})).await;
    wait_until(&app, &job, "completed").await;
    write_with(&app, "late", OTHER, 300).await;
    let back = begin_slowly(&app, TINY).await;
    assert!(refused(&app, &job, "rollback").await.contains(id(&back)), "it would serve what it has so far");
    verb(&app, &back, "cancel").await;
    verb(&app, &job, "rollback").await;
    wait_until(&app, &job, "rolled_back").await;
    app.stop().await;
}

#[tokio::test]
async fn a_space_that_is_the_first_one_serves_what_is_done_and_has_nothing_to_give_back() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    write(&app, 20).await;
    write_with(&app, "other", OTHER, 300).await;
    let (first, second) = (space_of(&app, TINY).await, space_of(&app, OTHER).await);
    let job = begin_slowly(&app, TINY).await;
    let job = verb(&app, &job, "cancel").await;
    assert!(job["reason"].as_str().is_some_and(|reason| reason.contains("what was done is served")), "{job}");
    let n_done = job["done"].as_u64().expect("a number");
    assert!(n_done < 300 && n_in(&app, &first).await >= 20 + n_done, "{job}");

    let job = begin(&app, json!({"to": TINY})).await;
    let job = wait_until(&app, &job, "completed").await;
    assert_eq!((&job["rollback_until"], job["cut_over_at"].is_string()), (&Value::Null, true), "{job}");
    assert_eq!(served(&app).await, [(first.as_str().map(str::to_owned), 320)]);
    assert!(refused(&app, &job, "rollback").await.contains("was the first one before it"));
    assert_eq!(app.get(&format!("/reembeddings/{}", id(&job))).await.ok()["state"], "completed");

    // The vectors behind it are superfluous all the same: a job that wants them again has all to make.
    verb(&app, &job, "purge").await;
    wait_for(&app, &job, |job| job["old_vectors"] == "purged").await;
    let again = begin(&app, json!({"to": OTHER})).await;
    let again = wait_until(&app, &again, "completed").await;
    assert_eq!((&again["done"], n_in(&app, &second).await), (&json!(320), 320), "{again}");
    app.stop().await;
}

#[tokio::test]
async fn a_first_space_that_serves_nothing_takes_over_as_any_other_does() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    write_with(&app, "gone", TINY, 1).await;
    app.delete("/grains/gone-0").await;
    write_with(&app, "kept", OTHER, 300).await;
    let (first, second) = (space_of(&app, TINY).await, space_of(&app, OTHER).await);
    let job = begin_slowly(&app, TINY).await;
    assert_eq!((n_in(&app, &first).await, n_in(&app, &second).await), (0, 300), "{job}");
    let job = verb(&app, &job, "cancel").await;
    assert_eq!(job["reason"], Value::Null, "nothing of it is served: {job}");

    let job = begin(&app, json!({"to": TINY})).await;
    let job = wait_until(&app, &job, "completed").await;
    assert_eq!(n_in(&app, &first).await, 300, "{job}");
    verb(&app, &job, "rollback").await;
    wait_until(&app, &job, "rolled_back").await;
    assert_eq!((n_in(&app, &first).await, n_in(&app, &second).await), (0, 300), "all is where it was");
    app.stop().await;
}

#[tokio::test]
async fn a_job_serves_nothing_before_its_time_though_its_space_stands_before_others() {
    let app = TestApp::start_with(&with_tiny(&[OTHER, THIRD])).await;
    write(&app, 5).await;
    write_with(&app, "middle", OTHER, 5).await;
    write_with(&app, "last", THIRD, 300).await;
    let (middle, last) = (space_of(&app, OTHER).await, space_of(&app, THIRD).await);
    let job = begin(&app, json!({"to": OTHER, "throttle": 0.02})).await;
    let job = wait_for(&app, &job, |job| job["done"].as_u64() > Some(5)).await;
    assert_eq!((n_in(&app, &middle).await, n_in(&app, &last).await), (5, 300), "{job}");
    let body = json!({"query": "last number 3", "mode": "dense", "limit": 1000});
    let hits = app.post("/grains/search", body).await.ok()["hits"].clone();
    let from_middle = hits.as_array().expect("hits").iter().filter(|hit| hit["space"] == middle).count();
    assert_eq!(from_middle, 5, "the indexes' order");
    verb(&app, &job, "cancel").await;
    assert_eq!((n_in(&app, &middle).await, n_in(&app, &last).await), (5, 300), "nothing was cut over");

    let job = begin(&app, json!({"to": OTHER})).await;
    let job = wait_until(&app, &job, "completed").await;
    assert_eq!(n_in(&app, &middle).await, 310, "{job}");
    verb(&app, &job, "rollback").await;
    wait_until(&app, &job, "rolled_back").await;
    assert_eq!((n_in(&app, &middle).await, n_in(&app, &last).await), (5, 300), "all is where it was");
    app.stop().await;
}

#[tokio::test]
async fn jobs_that_are_rolled_back_one_after_the_other_leave_each_grain_where_it_was() {
    let app = TestApp::start_with(&with_tiny(&[OTHER, THIRD, BROKEN])).await;
    let makers = [("first", TINY), ("second", OTHER), ("third", THIRD)];
    for (prefix, model) in makers {
        write_with(&app, prefix, model, 5).await;
    }
    let mut jobs = Vec::new();
    // The second one is put behind the space of the third while it runs.
    for to in [BROKEN, OTHER] {
        let job = begin(&app, json!({"to": to})).await;
        let job = wait_until(&app, &job, "completed").await;
        assert_eq!(n_in(&app, &job["space"]).await, 15, "{job}");
        jobs.push(job);
    }
    for job in jobs.iter().rev() {
        verb(&app, job, "rollback").await;
        wait_until(&app, job, "rolled_back").await;
    }
    for (prefix, model) in makers {
        assert_embedded(&app, &format!("{prefix}-0"), model).await;
        assert_eq!(n_in(&app, &space_of(&app, model).await).await, 5, "{model}");
    }
    app.stop().await;
}

#[tokio::test]
async fn what_is_written_into_a_new_space_while_a_job_runs_is_served_from_there() {
    let app = TestApp::start_with(&with_tiny(&[OTHER, THIRD])).await;
    write(&app, 300).await;
    let job = begin_slowly(&app, OTHER).await;
    write_with(&app, "new", THIRD, 5).await;
    let space = space_of(&app, THIRD).await;
    assert_eq!(n_in(&app, &space).await, 5);
    verb(&app, &job, "cancel").await;
    app.stop().await;
}

#[tokio::test]
async fn a_way_back_takes_what_was_written_since_and_leaves_what_was_there_before() {
    let app = TestApp::start_with(&with_tiny(&[OTHER, THIRD])).await;
    // The first space of the order is not the one of the active model.
    write_with(&app, "third", THIRD, 1).await;
    write(&app, 20).await;
    write_with(&app, "native", OTHER, 5).await;
    let (third, old, new) = (space_of(&app, THIRD).await, space_of(&app, TINY).await, space_of(&app, OTHER).await);
    let job = begin(&app, json!({"to": OTHER})).await;
    let job = wait_until(&app, &job, "completed").await;
    assert_eq!(n_in(&app, &new).await, 26);
    write_with(&app, "late", OTHER, 3).await;
    verb(&app, &job, "rollback").await;
    let job = wait_until(&app, &job, "rolled_back").await;
    assert_eq!(job["reason"], Value::Null, "{job}");
    assert_eq!((n_in(&app, &third).await, n_in(&app, &old).await, n_in(&app, &new).await), (1, 23, 5));
    assert_embedded(&app, "late-0", TINY).await;
    assert_embedded(&app, "native-0", OTHER).await;
    assert_eq!(found(&app, "number 3").await.len(), 29);
    app.stop().await;
}

#[tokio::test]
async fn a_way_back_is_ended_by_hand_and_goes_on_without_the_model_before() {
    let toml = with_tiny(&[OTHER, THIRD]);
    let app = TestApp::start_with(&toml).await;
    write(&app, 5).await;
    write_with(&app, "third", THIRD, 1).await;
    let job = begin(&app, json!({"to": OTHER, "throttle": 0.02})).await;
    let job = wait_until(&app, &job, "completed").await;
    write_with(&app, "late", OTHER, 300).await;
    verb(&app, &job, "rollback").await;
    let job = verb(&app, &job, "cancel").await;
    assert_eq!(job["state"], "rolled_back", "{job}");
    assert!(job["reason"].as_str().is_some_and(|reason| reason.contains("cancelled on its way back")), "{job}");
    assert!(n_in(&app, &space_of(&app, OTHER).await).await > 0, "what had not come back yet");

    // The model before is known no more: what was written since goes to the space that is left.
    let switch = app.put("/models/active", json!({"name": OTHER, "reembed": true})).await.ok();
    let job = wait_until(&app, &switch["reembedding"], "completed").await;
    assert_eq!(job["previous"], TINY);
    app.post("/grains", json!({"id": "new", "text": "written with the new model"})).await.ok();
    let others = [entry_of(OTHER), entry_of(THIRD)].concat();
    let app = app.restart_with(&format!("[ai]\nmodel_name = \"{OTHER}\"\n{others}")).await;
    verb(&app, &job, "rollback").await;
    let job = wait_until(&app, &job, "rolled_back").await;
    let reason = job["reason"].as_str().expect("a reason");
    assert!(reason.contains("could not be made active again") && reason.contains(TINY), "{reason}");
    assert_embedded(&app, "new", THIRD).await;
    app.stop().await;
}

#[tokio::test]
async fn a_failed_job_that_was_purged_is_tried_again_from_the_start() {
    let toml = |extra: &str| format!("{}{extra}{}", with_tiny(&[OTHER]), entry_of(THIRD));
    let app = TestApp::start_with(&toml("")).await;
    write(&app, 120).await;
    let job = begin(&app, json!({"to": OTHER, "throttle": 0.05})).await;
    wait_for(&app, &job, |job| job["done"].as_u64() > Some(0)).await;
    verb(&app, &job, "pause").await;
    let app = app.restart_with(&toml("max_tokens = 16\n")).await;
    verb(&app, &job, "resume").await;
    wait_until(&app, &job, "failed").await;

    // The other job rests for a while before anything is deleted, so that this is seen.
    let other = begin(&app, json!({"to": THIRD, "throttle": 0.01})).await;
    wait_for(&app, &other, |job| job["done"].as_u64() > Some(0)).await;
    assert_eq!(verb(&app, &job, "purge").await["old_vectors"], "purging");
    assert!(refused(&app, &job, "resume").await.contains("being deleted"));
    verb(&app, &other, "cancel").await;
    wait_for(&app, &job, |job| job["old_vectors"] == "purged").await;

    let app = app.restart_with(&toml("")).await;
    let already = app.get(&format!("/reembeddings/{}", id(&job))).await.ok()["done"].as_u64().expect("a number");
    verb(&app, &job, "resume").await;
    let job = wait_for(&app, &job, |job| job["state"] == "completed").await;
    assert_eq!((&job["old_vectors"], &job["done"]), (&json!("kept"), &json!(already + 120)), "{job}");
    let old = space_of(&app, TINY).await;
    verb(&app, &job, "rollback").await;
    wait_until(&app, &job, "rolled_back").await;
    assert_eq!(n_in(&app, &old).await, 120, "there was something to go back to");
    app.stop().await;
}

#[tokio::test]
async fn a_purge_takes_nothing_that_another_job_needs() {
    let app = TestApp::start_with(&with_tiny(&[OTHER, THIRD])).await;
    write(&app, 300).await;
    write_with(&app, "native", OTHER, 5).await;
    let first = begin_slowly(&app, OTHER).await;
    verb(&app, &first, "cancel").await;
    let second = begin_slowly(&app, OTHER).await;
    assert!(refused(&app, &first, "purge").await.contains(id(&second)), "it works on it");
    verb(&app, &second, "pause").await;
    assert!(refused(&app, &first, "purge").await.contains(id(&second)), "it may go on");
    verb(&app, &second, "cancel").await;

    // What the third space has taken over can be given back, to the second one too.
    let ids: Vec<String> = (0..50).map(|n| n.to_string()).chain((0..5).map(|n| format!("native-{n}"))).collect();
    let third = begin(&app, json!({"to": THIRD, "throttle": 0.01, "filter": {"ids": ids}})).await;
    wait_for(&app, &third, |job| job["done"].as_u64() > Some(0)).await;
    // It rests once, after its one batch: nothing is deleted before it has taken over.
    assert_eq!(verb(&app, &first, "purge").await["old_vectors"], "purging", "in its turn");
    let third = wait_until(&app, &third, "completed").await;
    let kept = wait_for(&app, &first, |job| job["old_vectors"] != "purging").await;
    assert_eq!(kept["old_vectors"], "kept", "{kept}");
    assert!(kept["reason"].as_str().is_some_and(|reason| reason.contains(id(&third))), "{kept}");
    assert!(refused(&app, &second, "purge").await.contains(id(&third)));
    verb(&app, &third, "rollback").await;
    wait_until(&app, &third, "rolled_back").await;
    assert_eq!(n_in(&app, &space_of(&app, OTHER).await).await, 5);
    for job in [&first, &second] {
        verb(&app, job, "purge").await;
        let job = wait_for(&app, job, |job| job["old_vectors"] == "purged").await;
        assert_eq!(job["reason"], Value::Null, "nothing is said of the purge before: {job}");
    }
    assert_eq!(n_in(&app, &space_of(&app, OTHER).await).await, 5, "what is served stays");
    app.stop().await;
}

#[tokio::test]
async fn a_purge_that_was_begun_opens_no_way_back_and_waits_for_who_needs_the_vectors() {
    let app = TestApp::start_with(&with_tiny(&[OTHER, THIRD])).await;
    write(&app, 300).await;
    let job = begin(&app, json!({"to": OTHER})).await;
    let job = wait_until(&app, &job, "completed").await;
    let ids: Vec<String> = (0..50).map(|n| n.to_string()).collect();
    let other = begin(&app, json!({"to": THIRD, "throttle": 0.01, "filter": {"ids": ids}})).await;
    wait_for(&app, &other, |job| job["done"].as_u64() > Some(0)).await;
    // It rests once, after its one batch: nothing is deleted before it has taken over.
    assert_eq!(verb(&app, &job, "purge").await["old_vectors"], "purging", "in its turn");
    let other = wait_until(&app, &other, "completed").await;
    let waiting = wait_for(&app, &job, |job| job["reason"].is_string()).await;
    assert!(waiting["reason"].as_str().is_some_and(|reason| reason.contains(id(&other))), "{waiting}");
    assert_eq!(waiting["old_vectors"], "purging", "some of them may be gone: {waiting}");
    assert!(refused(&app, &job, "rollback").await.contains("cannot be rolled back any more"));

    verb(&app, &other, "rollback").await;
    wait_until(&app, &other, "rolled_back").await;
    let job = wait_for(&app, &job, |job| job["old_vectors"] == "purged").await;
    assert_eq!((&job["reason"], n_in(&app, &job["space"]).await), (&Value::Null, 300), "{job}");
    app.stop().await;
}

#[tokio::test]
async fn there_is_one_job_for_a_space_when_an_earlier_one_is_resumed_too() {
    let app = TestApp::start_with(&with_tiny(&[BROKEN])).await;
    write(&app, 300).await;
    app.put("/grains/5", json!({"text": "number 5 ~ cannot be embedded"})).await.ok();
    let first = begin(&app, json!({"to": BROKEN})).await;
    let first = wait_until(&app, &first, "completed_with_failures").await;
    app.put("/grains/5", json!({"text": "mended"})).await.ok();
    write_with(&app, "more", TINY, 300).await;
    let second = begin_slowly(&app, BROKEN).await;
    assert!(refused(&app, &first, "resume").await.contains(id(&second)));
    wait_until(&app, &second, "running").await;
    assert!(refused(&app, &second, "resume").await.contains("is running"));
    verb(&app, &second, "cancel").await;
    verb(&app, &first, "resume").await;
    wait_for(&app, &first, |job| job["state"] == "completed").await;
    app.stop().await;
}

#[tokio::test]
async fn grains_that_another_roll_back_moves_into_a_selection_are_not_passed_over() {
    let app = TestApp::start_with(&with_tiny(&[OTHER, THIRD])).await;
    write(&app, 30).await;
    let old = space_of(&app, TINY).await;
    let earlier = begin(&app, json!({"to": OTHER})).await;
    let earlier = wait_until(&app, &earlier, "completed").await;
    write_with(&app, "more", TINY, 150).await;
    let job = begin(&app, json!({"to": THIRD, "from": old, "throttle": 0.02})).await;
    let job = wait_for(&app, &job, |job| job["done"].as_u64() > Some(0)).await;
    assert_eq!(job["total"], 150, "{job}");
    // From here on the first thirty are served from the old space again, and the job is past them.
    verb(&app, &earlier, "rollback").await;
    let job = wait_until(&app, &job, "completed").await;
    assert_eq!((&job["done"], &job["total"]), (&json!(180), &json!(180)), "{job}");
    assert_eq!(n_in(&app, &job["space"]).await, 180);
    app.stop().await;
}

#[tokio::test]
async fn a_job_says_in_the_end_how_many_it_was_and_begins_from_a_known_space_only() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    write(&app, 300).await;
    let job = begin(&app, json!({"to": OTHER, "throttle": 0.1})).await;
    let job = wait_for(&app, &job, |job| job["done"].as_u64() > Some(0)).await;
    assert_eq!(job["total"], 300, "{job}");
    // In all likelihood before its turn came.
    app.delete("/grains/299").await;
    let job = wait_until(&app, &job, "completed").await;
    assert_eq!(job["done"], job["total"], "{job}");

    let body = json!({"to": TINY, "from": "0123456789abcdef"});
    let (status, code, detail) = app.post("/reembeddings", body).await.problem();
    assert_eq!((status, code.as_str()), (422, "invalid_request"), "{detail}");
    assert!(detail.contains("0123456789abcdef"), "{detail}");
    app.stop().await;
}

#[tokio::test]
async fn whoever_follows_a_job_that_is_held_is_not_left_waiting() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    write(&app, 300).await;
    let job = begin_slowly(&app, OTHER).await;
    verb(&app, &job, "pause").await;
    let events = send(app.request(Method::GET, &format!("/reembeddings/{}/events", id(&job))));
    let events = tokio::time::timeout(PATIENCE, events).await.expect("the stream ends");
    assert!(events.text.contains("\"state\":\"paused\""), "{}", events.text);
    let mut command = Command::new(env!("CARGO_BIN_EXE_granary"));
    command.args(["reembed", "watch", id(&job), "--url", app.url()]).env_clear();
    // The server is in this process: waiting for the command must not hold it.
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("it runs");
    let error = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(!output.status.success() && error.contains("the job is paused: "), "{error}");
    app.stop().await;
}

#[tokio::test]
async fn a_space_that_was_empty_comes_back_to_its_place() {
    let toml = with_tiny(&[OTHER, THIRD]);
    let app = TestApp::start_with(&toml).await;
    for (id, model) in [("one", TINY), ("two", OTHER), ("three", THIRD)] {
        app.post("/grains", json!({"id": id, "text": format!("the text {id}"), "model": model})).await.ok();
    }
    app.delete("/grains/two").await;
    // An index is not opened for a space that holds nothing.
    let app = app.restart_with(&toml).await;
    let second = space_of(&app, OTHER).await;
    app.patch("/grains/three", json!({"text": "the text three", "model": OTHER})).await.ok();
    assert_eq!(app.get("/grains/three").await.ok()["meta"]["space"], second, "the database's order");
    let found = app.post("/grains/search", json!({"query": "the text three", "mode": "dense"})).await.ok();
    let hits = found["hits"].as_array().expect("hits");
    let hit = hits.iter().find(|hit| hit["grain"]["id"] == "three").expect("found");
    assert_eq!(hit["space"], second, "the indexes' order: {found}");
    app.stop().await;
}

#[tokio::test]
async fn a_full_queue_delays_a_job_and_does_not_fail_it() {
    let engine = "[engine]\nmax_batch_tokens = 64\nmax_queue_tokens = 256\nworkers = 1\n";
    let app = TestApp::start_with(&format!("{engine}{}", with_tiny(&[OTHER]))).await;
    for prefix in ["a", "b", "c"] {
        write_with(&app, prefix, TINY, 4).await;
    }
    space_of(&app, OTHER).await;
    let texts: Vec<String> = (0..64).map(|n| format!("{n} {}", "words ".repeat(100))).collect();
    let body = json!({"inputs": texts, "model": OTHER});
    let refusals = Cell::new(0);
    let crowd = crowd(&app, 8, &body, &refusals);
    let work = async {
        until("the queue is full", async || refusals.get() > 0).await;
        let job = begin(&app, json!({"to": OTHER})).await;
        wait_until(&app, &job, "completed").await
    };
    let job = tokio::select! {
        () = crowd => unreachable!("it does not end"),
        job = work => job,
    };
    assert_eq!((&job["done"], &job["failed"]), (&json!(12), &json!(0)), "{job}");
    app.stop().await;
}

#[tokio::test]
async fn a_purge_leaves_what_a_later_job_can_be_rolled_back_to() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    write(&app, 20).await;
    let old = space_of(&app, TINY).await;
    let mut jobs = Vec::new();
    for to in [OTHER, TINY, OTHER] {
        let job = begin(&app, json!({"to": to})).await;
        jobs.push(wait_until(&app, &job, "completed").await);
    }
    let [first, _, last] = &jobs[..] else { panic!("three jobs") };
    assert!(refused(&app, first, "purge").await.contains(id(last)), "the old space is what it goes back to");
    verb(&app, last, "rollback").await;
    wait_until(&app, last, "rolled_back").await;
    assert_eq!(n_in(&app, &old).await, 20);
    verb(&app, first, "purge").await;
    wait_for(&app, first, |job| job["old_vectors"] == "purged").await;
    assert_eq!(n_in(&app, &old).await, 20, "what serves stays");
    app.stop().await;
}

#[tokio::test]
async fn the_end_of_a_window_waits_for_a_job_that_may_go_on() {
    let toml = format!("[grains]\nrollback_window = \"0s\"\n{}", with_tiny(&[OTHER, THIRD]));
    let app = TestApp::start_with(&toml).await;
    write(&app, 300).await;
    let held = begin_slowly(&app, THIRD).await;
    let held = verb(&app, &held, "pause").await;
    let n_done = held["done"].as_u64().expect("a number");
    let job = begin(&app, json!({"to": OTHER})).await;
    let job = wait_until(&app, &job, "completed").await;
    assert!(refused(&app, &job, "purge").await.contains(id(&held)), "it may go on");
    assert_eq!(app.get(&format!("/reembeddings/{}", id(&job))).await.ok()["old_vectors"], "kept");

    verb(&app, &held, "resume").await;
    let held = wait_until(&app, &held, "completed").await;
    assert!(n_done > 0 && held["done"] == 300, "nothing is made again: {held}");
    for job in [&held, &job] {
        wait_for(&app, job, |job| job["old_vectors"] == "purged").await;
    }
    assert_eq!(n_in(&app, &held["space"]).await, 300);
    app.stop().await;
}

#[tokio::test]
async fn a_job_without_a_way_back_has_no_window_that_ends() {
    let toml = format!("[grains]\nrollback_window = \"0s\"\n{}", with_tiny(&[OTHER, THIRD]));
    let app = TestApp::start_with(&toml).await;
    write(&app, 20).await;
    write_with(&app, "other", OTHER, 20).await;
    let job = begin(&app, json!({"to": TINY})).await;
    let job = wait_until(&app, &job, "completed").await;
    let other = begin(&app, json!({"to": THIRD})).await;
    let other = wait_until(&app, &other, "completed").await;
    wait_for(&app, &other, |job| job["old_vectors"] == "purged").await;
    // Windows are looked at each second, all at once.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let job = app.get(&format!("/reembeddings/{}", id(&job))).await.ok();
    assert_eq!(job["old_vectors"], "kept", "nobody has asked for that: {job}");
    app.stop().await;
}

#[tokio::test]
async fn the_end_of_a_window_does_not_wait_for_the_end_of_another_job() {
    let toml = |window: &str| format!("[grains]\nrollback_window = \"{window}\"\n{}", with_tiny(&[OTHER, THIRD]));
    let app = TestApp::start_with(&toml("7days")).await;
    for prefix in ["a", "b", "c"] {
        write_with(&app, prefix, TINY, 300).await;
    }
    let job = begin(&app, json!({"to": OTHER})).await;
    let job = wait_until(&app, &job, "completed").await;
    let other = begin(&app, json!({"to": THIRD, "throttle": 0.01})).await;
    wait_for(&app, &other, |job| job["done"].as_u64() > Some(0)).await;
    // The other one is at work from the first moment on.
    let app = app.restart_with(&toml("0s")).await;
    wait_for(&app, &job, |job| job["old_vectors"] == "purged").await;
    let other = app.get(&format!("/reembeddings/{}", id(&other))).await.ok();
    assert_eq!(other["state"], "running", "{other}");
    verb(&app, &other, "cancel").await;
    app.stop().await;
}

#[tokio::test]
async fn a_way_back_takes_what_was_written_while_the_job_ran_too() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    write(&app, 300).await;
    let old = space_of(&app, TINY).await;
    let job = begin_slowly(&app, OTHER).await;
    app.put("/models/active", json!({"name": OTHER})).await.ok();
    app.post("/grains", json!({"id": "meanwhile", "text": "written before the cut-over"})).await.ok();
    let job = wait_until(&app, &job, "completed").await;
    assert_eq!(job["previous"], Value::Null, "the model was switched without the job: {job}");
    verb(&app, &job, "rollback").await;
    let job = wait_until(&app, &job, "rolled_back").await;
    assert_eq!(job["reason"], Value::Null, "{job}");
    assert_embedded(&app, "meanwhile", TINY).await;
    assert_eq!(n_in(&app, &old).await, 301);
    app.stop().await;
}

#[tokio::test]
async fn a_switch_begins_its_job_though_its_caller_has_left() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    write(&app, 5).await;
    let path = format!("/models/{OTHER}");
    assert_eq!(app.get(&path).await.ok()["state"], "unloaded");
    let switch = app.put("/models/active", json!({"name": OTHER, "reembed": true}));
    let begun = until("its model is being loaded", async || app.get(&path).await.ok()["state"] != "unloaded");
    // Who is not polled any more has left, in all likelihood while the model is loading.
    tokio::select! {
        _ = switch => {}
        () = begun => {}
    }
    until("the other model is active", async || app.get("/models/active").await.ok()["name"] == OTHER).await;
    let jobs = async || app.get("/reembeddings").await.ok()["reembeddings"].clone();
    let jobs = until_seen("its job ends", jobs, |jobs: &Value| jobs[0]["state"] == "completed").await;
    assert_eq!((jobs.as_array().map(Vec::len), &jobs[0]["previous"]), (Some(1), &json!(TINY)), "{jobs}");
    app.stop().await;
}

#[tokio::test]
async fn a_roll_back_is_refused_where_another_job_for_the_space_is_open_or_later() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    write(&app, 20).await;
    let old = space_of(&app, TINY).await;
    let first = begin(&app, json!({"to": OTHER})).await;
    let first = wait_until(&app, &first, "completed").await;
    write_with(&app, "more", TINY, 300).await;
    let open = begin_slowly(&app, OTHER).await;
    assert!(refused(&app, &first, "rollback").await.contains(id(&open)), "it would undo that");
    verb(&app, &open, "cancel").await;

    let back = begin(&app, json!({"to": TINY})).await;
    let back = wait_until(&app, &back, "completed").await;
    assert!(refused(&app, &first, "rollback").await.contains("is not the first one any more"));
    let again = begin(&app, json!({"to": OTHER})).await;
    let again = wait_until(&app, &again, "completed").await;
    assert!(refused(&app, &first, "rollback").await.contains(id(&again)), "that one goes first");
    // One after the other they are all taken back.
    for job in [&again, &back, &first] {
        verb(&app, job, "rollback").await;
        wait_until(&app, job, "rolled_back").await;
    }
    assert_eq!(n_in(&app, &old).await, 320);
    app.stop().await;
}

#[tokio::test]
async fn what_failed_and_is_not_lacking_any_more_does_not_keep_a_job_from_completing() {
    let app = TestApp::start_with(&with_tiny(&[BROKEN])).await;
    let text = |n: usize| format!("the text of number {n}{}", if n < 2 { " ~" } else { "" });
    let grain = |n: usize| json!({"id": n.to_string(), "text": text(n), "source": "selected"});
    app.post("/grains", json!({"grains": (0..300).map(grain).collect::<Vec<_>>()})).await.ok();
    let space = space_of(&app, BROKEN).await;
    let job = begin(&app, json!({"to": BROKEN, "throttle": 0.05, "filter": {"source": "selected"}})).await;
    // They have failed once by then, and are tried again in the end.
    wait_for(&app, &job, |job| job["failed"] == 2).await;
    let with_vector = json!({"text": text(0), "source": "selected", "space": space, "vector": vec![1.0; 32]});
    app.put("/grains/0", with_vector).await.ok();
    app.patch("/grains/1", json!({"source": "elsewhere"})).await.ok();
    let job = wait_until(&app, &job, "completed").await;
    assert_eq!((&job["done"], &job["failed"], &job["reason"]), (&json!(298), &json!(0), &Value::Null), "{job}");
    let failures = app.get(&format!("/reembeddings/{}/failures", id(&job))).await.ok();
    assert_eq!(failures["total"], 0, "{failures}");
    assert_eq!(n_in(&app, &space).await, 299);
    app.stop().await;
}

#[tokio::test]
async fn a_way_back_says_how_many_grains_could_not_be_embedded() {
    let app = TestApp::start_with(&with_tiny(&[BROKEN])).await;
    write_with(&app, "old", BROKEN, 20).await;
    let (old, new) = (space_of(&app, BROKEN).await, space_of(&app, TINY).await);
    let job = begin(&app, json!({"to": TINY})).await;
    let job = wait_until(&app, &job, "completed").await;
    for (id, text) in [("good", "it can be embedded"), ("bad", "it ~ cannot be embedded")] {
        app.post("/grains", json!({"id": id, "text": text})).await.ok();
    }
    verb(&app, &job, "rollback").await;
    let job = wait_until(&app, &job, "rolled_back").await;
    assert_eq!(job["reason"], "1 grain could not be embedded and stays in the new space", "{job}");
    assert_eq!((n_in(&app, &old).await, n_in(&app, &new).await), (21, 1));
    assert_embedded(&app, "good", BROKEN).await;
    app.stop().await;
}

#[tokio::test]
async fn what_a_job_could_not_embed_is_known_until_it_is_purged() {
    let app = TestApp::start_with(&with_tiny(&[BROKEN])).await;
    write(&app, 5).await;
    app.post("/grains", json!({"id": "bad", "text": "it ~ cannot be embedded"})).await.ok();
    let job = begin(&app, json!({"to": BROKEN})).await;
    wait_until(&app, &job, "completed_with_failures").await;
    let path = format!("/reembeddings/{}/failures", id(&job));
    let ended = app.get(&format!("/reembeddings/{}", id(&job))).await.ok();
    assert_eq!((&ended["failed"], &app.get(&path).await.ok()["total"]), (&json!(1), &json!(1)), "{ended}");
    verb(&app, &job, "purge").await;
    let purged = wait_for(&app, &job, |job| job["old_vectors"] == "purged").await;
    assert_eq!((&purged["failed"], &app.get(&path).await.ok()["total"]), (&json!(0), &json!(0)), "{purged}");
    let reason = purged["reason"].as_str().expect("a reason");
    assert!(reason.contains("the purge has forgotten which") && !reason.contains("/failures"), "{reason}");
    app.stop().await;
}

#[tokio::test]
async fn what_a_job_has_made_again_after_a_purge_can_be_purged_too() {
    let app = TestApp::start_with(&with_tiny(&[BROKEN])).await;
    write(&app, 5).await;
    app.post("/grains", json!({"id": "bad", "text": "it ~ cannot be embedded"})).await.ok();
    let job = begin(&app, json!({"to": BROKEN})).await;
    wait_until(&app, &job, "completed_with_failures").await;
    verb(&app, &job, "purge").await;
    wait_for(&app, &job, |job| job["old_vectors"] == "purged").await;
    assert_eq!(verb(&app, &job, "resume").await["old_vectors"], "kept");
    let job = wait_until(&app, &job, "completed_with_failures").await;
    assert_eq!(job["done"], 10, "{job}");
    verb(&app, &job, "cancel").await;
    verb(&app, &job, "purge").await;
    wait_for(&app, &job, |job| job["old_vectors"] == "purged").await;

    // What wants them again has all to make.
    let again = begin(&app, json!({"to": BROKEN})).await;
    let again = wait_until(&app, &again, "completed_with_failures").await;
    assert_eq!(again["done"], 5, "{again}");
    app.stop().await;
}
