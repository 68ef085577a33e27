//! Roll-backs over what other jobs have moved and left: the vectors of a job that was given up serve nothing. Roll-backs
//! that wait, and what is chosen meanwhile.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tempfile::TempDir;

use crate::helpers::{Answer, Caller, TINY, TestApp, copy_folder, entry_of, test_model, with_tiny};
use crate::reembedding_rules::{BROKEN, THIRD, begin_slowly, n_in, write_with};
use crate::reembeddings::{OTHER, assert_embedded, begin, space_of, verb, wait_for, wait_until, write};

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
    // The second space goes behind what was left: that has nothing of its grains. It has vectors of these, which are
    // selected for that.
    let second: Vec<String> = (0..5).map(|n| format!("second-{n}")).chain(["bad".to_owned()]).collect();
    let other = take_over(&app, json!({"to": OTHER, "filter": {"ids": second}})).await;
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

#[tokio::test]
async fn a_way_back_stays_open_beside_a_later_job_into_the_space_that_was_emptied_since() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    write(&app, 300).await;
    let job = take_over(&app, json!({"to": OTHER, "filter": {"ids": ["0"]}})).await;
    app.delete("/grains/0").await;
    let later = begin_slowly(&app, OTHER).await;
    let later = verb(&app, &later, "cancel").await;
    assert!(later["reason"].as_str().is_some_and(|reason| reason.contains("what was done is served")), "{later}");
    roll_back(&app, &job).await;
    assert_eq!(n_in(&app, &space_of(&app, TINY).await).await, 299);
    app.stop().await;
}

/// Models, and what the ids of grains begin with that are written with them.
const MAKERS: [(&str, &str); 3] = [("first", TINY), ("second", OTHER), ("third", THIRD)];

/// Writes five grains with each of three models: `first-0`, and so on.
async fn write_with_each(app: &Caller) {
    for (prefix, model) in MAKERS {
        write_with(app, prefix, model, 5).await;
    }
}

/// Each grain is served from the space of the model that it was written with.
async fn assert_each_with_its_own(app: &Caller) {
    for (prefix, model) in MAKERS {
        assert_eq!(n_in(app, &space_of(app, model).await).await, 5, "{model}");
        for n in 0..5 {
            assert_embedded(app, &format!("{prefix}-{n}"), model).await;
        }
    }
}

async fn purge(app: &Caller, job: &Value) {
    verb(app, job, "purge").await;
    wait_for(app, job, |job| job["old_vectors"] == "purged").await;
}

fn conflict(answer: &Answer) -> String {
    let (status, code, detail) = answer.problem();
    assert_eq!((status, code.as_str()), (409, "conflict"), "{detail}");
    detail
}

#[tokio::test]
async fn a_trial_that_could_not_be_rolled_back_for_what_another_has_left_is_refused_until_that_is_purged() {
    let app = TestApp::start_with(&with_tiny(&[OTHER, THIRD])).await;
    write_with_each(&app).await;
    let trial = take_over(&app, json!({"to": OTHER})).await;
    roll_back(&app, &trial).await;
    assert_each_with_its_own(&app).await;

    // The third space cannot go behind the second one, which has vectors of its grains now, and serves five others.
    let switch = json!({"name": THIRD, "reembed": true});
    for answer in [app.post("/reembeddings", json!({"to": THIRD})).await, app.put("/models/active", switch).await] {
        let detail = conflict(&answer);
        let way_out = format!("POST /reembeddings/{}/purge", trial["id"].as_str().expect("an id"));
        assert!(detail.contains("(5)") && detail.contains(&way_out), "{detail}");
    }
    assert_eq!(active(&app).await, TINY);
    let ids = json!(["first-0", "second-0", "second-1"]);
    let detail = conflict(&app.post("/reembeddings", json!({"to": THIRD, "filter": {"ids": ids}})).await);
    assert!(detail.contains("(2)"), "{detail}");
    // What the first space serves comes from before it, and goes back there.
    let some = take_over(&app, json!({"to": THIRD, "from": space_of(&app, TINY).await})).await;
    assert_eq!(n_in(&app, &some["space"]).await, 10, "{some}");
    roll_back(&app, &some).await;
    assert_each_with_its_own(&app).await;

    purge(&app, &trial).await;
    let again = take_over(&app, json!({"to": THIRD})).await;
    assert_eq!((&again["done"], n_in(&app, &again["space"]).await), (&json!(5), 15), "{again}");
    roll_back(&app, &again).await;
    assert_each_with_its_own(&app).await;
    app.stop().await;
}

#[tokio::test]
async fn a_trial_after_another_is_not_refused_where_nothing_is_served_from_what_that_has_left() {
    let app = TestApp::start_with(&with_tiny(&[OTHER, THIRD, BROKEN])).await;
    write_with_each(&app).await;
    for to in [BROKEN, OTHER] {
        let trial = take_over(&app, json!({"to": to})).await;
        assert_eq!(n_in(&app, &trial["space"]).await, 15, "{trial}");
        roll_back(&app, &trial).await;
        assert_each_with_its_own(&app).await;
    }
    app.stop().await;
}

#[tokio::test]
async fn a_trial_is_refused_for_what_is_served_from_behind_the_space_that_it_stays_before_too() {
    let app = TestApp::start_with(&with_tiny(&[OTHER, THIRD, BROKEN])).await;
    let [first, second, third] = MAKERS;
    for (prefix, model) in [first, second] {
        write_with(&app, prefix, model, 5).await;
    }
    let trial = take_over(&app, json!({"to": BROKEN})).await;
    roll_back(&app, &trial).await;
    write_with(&app, third.0, third.1, 5).await;
    let detail = conflict(&app.post("/reembeddings", json!({"to": OTHER})).await);
    let way_out = format!("POST /reembeddings/{}/purge", trial["id"].as_str().expect("an id"));
    assert!(detail.contains("(5)") && detail.contains(&way_out), "{detail}");
    purge(&app, &trial).await;
    let job = take_over(&app, json!({"to": OTHER})).await;
    roll_back(&app, &job).await;
    assert_each_with_its_own(&app).await;
    app.stop().await;
}

#[tokio::test]
async fn a_job_fails_in_its_turn_where_the_one_ahead_has_left_what_its_roll_back_would_stumble_over() {
    let app = TestApp::start_with(&with_tiny(&[OTHER, THIRD])).await;
    for (prefix, model, n_grains) in [("first", TINY, 1), ("third", THIRD, 5), ("second", OTHER, 5)] {
        write_with(&app, prefix, model, n_grains).await;
    }
    write(&app, 300).await;
    let ahead = begin(&app, json!({"to": OTHER, "throttle": 0.02})).await;
    // With that the grains of the third space have vectors in the second one.
    wait_for(&app, &ahead, |job| job["done"].as_u64() > Some(5)).await;
    // It may take over, and then everything is served from its space.
    let job = begin(&app, json!({"to": THIRD})).await;
    verb(&app, &ahead, "pause").await;
    let job = wait_until(&app, &job, "failed").await;
    let reason = job["reason"].as_str().expect("a reason");
    let [ahead_id, id] = [&ahead, &job].map(|job| job["id"].as_str().expect("an id"));
    assert!(reason.contains("(5)") && reason.contains(&format!("`{ahead_id}` come to its end")), "{reason}");
    assert!(reason.contains(&format!("POST /reembeddings/{id}/resume")), "{reason}");
    assert_embedded(&app, "second-0", OTHER).await;

    verb(&app, &ahead, "cancel").await;
    purge(&app, &ahead).await;
    verb(&app, &job, "resume").await;
    let job = wait_for(&app, &job, |job| job["state"] == "completed").await;
    assert_eq!(n_in(&app, &job["space"]).await, 311, "{job}");
    roll_back(&app, &job).await;
    for (model, n_grains) in [(TINY, 301), (OTHER, 5), (THIRD, 5)] {
        assert_eq!(n_in(&app, &space_of(&app, model).await).await, n_grains, "{model}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_trial_that_what_a_write_has_left_stands_against_says_how_that_is_deleted() {
    let app = TestApp::start_with(&with_tiny(&[OTHER, THIRD])).await;
    for (prefix, model) in [MAKERS[0], MAKERS[2], MAKERS[1]] {
        write_with(&app, prefix, model, 5).await;
    }
    let text = app.get("/grains/third-0").await.ok()["text"].clone();
    app.patch("/grains/third-0", json!({"text": text, "model": OTHER})).await.ok();
    assert_embedded(&app, "third-0", THIRD).await;
    let detail = conflict(&app.post("/reembeddings", json!({"to": THIRD})).await);
    assert!(detail.contains("(5)") && detail.contains("cancel it or roll it back, and purge it"), "{detail}");

    let all = take_over(&app, json!({"to": OTHER})).await;
    roll_back(&app, &all).await;
    purge(&app, &all).await;
    let job = take_over(&app, json!({"to": THIRD})).await;
    roll_back(&app, &job).await;
    assert_each_with_its_own(&app).await;
    app.stop().await;
}

/// Makes a model the active one, and brings all grains along.
async fn switch(app: &Caller, to: &str) -> Value {
    let switch = app.put("/models/active", json!({"name": to, "reembed": true})).await.ok();
    wait_until(app, &switch["reembedding"], "completed").await
}

async fn active(app: &Caller) -> Value {
    app.get("/models/active").await.ok()["name"].clone()
}

#[tokio::test]
async fn a_way_back_that_waits_does_not_undo_what_is_chosen_meanwhile() {
    let app = TestApp::start_with(&with_tiny(&[OTHER, THIRD])).await;
    write(&app, 300).await;
    let job = switch(&app, OTHER).await;
    let busy = begin_slowly(&app, THIRD).await;
    verb(&app, &job, "rollback").await;
    assert_eq!(active(&app).await, TINY, "at once");
    app.put("/models/active", json!({"name": OTHER})).await.ok();
    verb(&app, &busy, "cancel").await;
    wait_until(&app, &job, "rolled_back").await;
    assert_eq!(active(&app).await, OTHER);
    app.stop().await;
}

#[tokio::test]
async fn a_way_back_that_was_cut_off_brings_the_model_before_unless_another_was_chosen_since() {
    let toml = with_tiny(&[OTHER, THIRD]);
    for (chosen_at, expected) in [("2001-01-01T00:00:00Z", TINY), ("2999-01-01T00:00:00Z", OTHER)] {
        let app = TestApp::start_with(&toml).await;
        write(&app, 300).await;
        let job = switch(&app, OTHER).await;
        let busy = begin_slowly(&app, THIRD).await;
        verb(&app, &job, "rollback").await;
        let folder = app.stop_and_keep().await;
        // As a process leaves it that was killed before the change, or after a later one.
        let database = SqliteConnectOptions::new().filename(folder.path().join("granary.db"));
        let mut outsider = database.connect().await.expect("a connection");
        let update = sqlx::query("UPDATE active_model SET name = ?, changed_at = ?").bind(OTHER).bind(chosen_at);
        update.execute(&mut outsider).await.expect("written");
        outsider.close().await.expect("closed");
        let app = TestApp::start_in(folder, &toml).await;
        wait_until(&app, &job, "rolled_back").await;
        assert_eq!(active(&app).await, expected, "{chosen_at}");
        verb(&app, &busy, "cancel").await;
        app.stop().await;
    }
}

#[tokio::test]
async fn a_way_back_that_cannot_go_on_says_how_the_rest_still_goes_back() {
    let app = TestApp::start_with(&with_tiny(&[OTHER])).await;
    write(&app, 5).await;
    let job = take_over(&app, json!({"to": OTHER})).await;
    app.put("/models/active", json!({"name": OTHER})).await.ok();
    app.post("/grains", json!({"id": "late", "text": "written in the new space"})).await.ok();
    app.post(&format!("/models/{TINY}/unload"), json!({"disable": true})).await.ok();
    verb(&app, &job, "rollback").await;
    let job = wait_until(&app, &job, "rolled_back").await;
    let reason = job["reason"].as_str().expect("a reason");
    let body = json!({"to": TINY, "from": job["space"]});
    assert!(reason.contains("is disabled"), "{reason}");
    assert!(reason.contains(&format!("`{{\"to\": \"{TINY}\", \"from\": {}}}`", job["space"])), "{reason}");

    app.post(&format!("/models/{TINY}/load"), json!({})).await.ok();
    take_over(&app, body).await;
    assert_embedded(&app, "late", TINY).await;
    app.stop().await;
}

#[tokio::test]
async fn of_two_ways_back_that_wait_the_later_job_goes_first() {
    let app = TestApp::start_with(&with_tiny(&[OTHER, THIRD, BROKEN])).await;
    write(&app, 300).await;
    let (first, second) = (switch(&app, OTHER).await, switch(&app, THIRD).await);
    app.post("/grains", json!({"id": "late", "text": "written in the third space"})).await.ok();
    let busy = begin_slowly(&app, BROKEN).await;
    for job in [&second, &first] {
        assert_eq!(verb(&app, job, "rollback").await["state"], "rolling_back");
    }
    assert_embedded(&app, "late", THIRD).await;
    verb(&app, &busy, "cancel").await;
    for job in [&second, &first] {
        wait_until(&app, job, "rolled_back").await;
    }
    assert_embedded(&app, "late", TINY).await;
    assert_eq!(active(&app).await, TINY);
    app.stop().await;
}

#[tokio::test]
async fn a_way_back_waits_until_the_model_before_can_be_recorded_as_the_active_one() {
    let folder = TempDir::new().expect("a folder");
    let database = folder.path().join("granary.db");
    let app = TestApp::start_in(folder, &with_tiny(&[OTHER])).await;
    write(&app, 5).await;
    let job = switch(&app, OTHER).await;
    let mut outsider = SqliteConnectOptions::new().filename(&database).connect().await.expect("a connection");
    let trigger = "CREATE TRIGGER cut_off BEFORE INSERT ON active_model BEGIN SELECT RAISE(ABORT, 'cut off'); END";
    sqlx::query(trigger).execute(&mut outsider).await.expect("created");
    verb(&app, &job, "rollback").await;
    // Nothing was written since, so that there is nothing else to wait for.
    let waiting = wait_for(&app, &job, |job| job["reason"].is_string()).await;
    assert_eq!((&waiting["state"], &active(&app).await), (&json!("rolling_back"), &json!(OTHER)), "{waiting}");
    sqlx::query("DROP TRIGGER cut_off").execute(&mut outsider).await.expect("dropped");
    outsider.close().await.expect("closed");
    let job = wait_until(&app, &job, "rolled_back").await;
    assert_eq!((&job["reason"], &active(&app).await), (&Value::Null, &json!(TINY)), "{job}");
    app.stop().await;
}

/// A server whose model `own`, of files to be broken, was replaced by the other one. A grain was written since, and the
/// model is not loaded. The job that can be rolled back.
async fn replaced(files: &TempDir) -> (TestApp, Value) {
    copy_folder(&test_model(TINY), files.path());
    let own = format!("[[ai.additional_models]]\nname = \"own\"\npath = \"{}\"\n", files.path().display());
    let others = [OTHER, THIRD].map(entry_of).concat();
    let app = TestApp::start_with(&format!("[ai]\nmodel_name = \"own\"\n{own}{others}")).await;
    write(&app, 5).await;
    let job = switch(&app, OTHER).await;
    app.post("/grains", json!({"id": "late", "text": "written in the new space"})).await.ok();
    app.post("/models/own/unload", json!({})).await.ok();
    (app, job)
}

#[tokio::test]
async fn a_way_back_waits_for_a_model_that_may_be_had_later_and_does_not_load_it_each_second() {
    let files = TempDir::new().expect("a folder");
    let (app, job) = replaced(&files).await;
    // Nobody can tell what will be there when it can be read again.
    let (config, away) = (files.path().join("config.json"), files.path().join("away.json"));
    fs_err::rename(&config, &away).expect("taken away");
    fs_err::create_dir(&config).expect("not to be read");
    verb(&app, &job, "rollback").await;
    let waiting = wait_for(&app, &job, |job| job["reason"].is_string()).await;
    assert!(waiting["reason"].as_str().is_some_and(|reason| reason.contains("cannot be read")), "{waiting}");
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let waiting = app.get(&format!("/reembeddings/{}", job["id"].as_str().expect("an id"))).await.ok();
    assert_eq!((&waiting["state"], &active(&app).await), (&json!("rolling_back"), &json!(OTHER)), "{waiting}");
    let metrics = app.get("/metrics").await.text;
    let series = "granary_model_loads_total{model=\"own\",outcome=\"failed\"} ";
    let n_failed = metrics.lines().find_map(|line| line.strip_prefix(series)).expect("it has failed");
    assert!(["1", "2"].contains(&n_failed), "once by hand, and once by itself at most: {n_failed}");

    fs_err::remove_dir(&config).expect("removed");
    fs_err::rename(&away, &config).expect("brought back");
    app.post("/models/own/load", json!({})).await.ok();
    // Without another job that changes it would be looked at again within a minute.
    take_over(&app, json!({"to": THIRD, "filter": {"ids": ["nobody"]}})).await;
    let job = wait_until(&app, &job, "rolled_back").await;
    assert_eq!((&job["reason"], &active(&app).await), (&Value::Null, &json!("own")), "{job}");
    assert_embedded(&app, "late", "own").await;
    app.stop().await;
}

#[tokio::test]
async fn a_way_back_that_comes_to_an_end_says_of_the_model_before_too_what_became_of_it() {
    let files = TempDir::new().expect("a folder");
    let (app, job) = replaced(&files).await;
    fs_err::remove_file(files.path().join("tokenizer.json")).expect("removed");
    verb(&app, &job, "rollback").await;
    let job = wait_until(&app, &job, "rolled_back").await;
    let reason = job["reason"].as_str().expect("a reason");
    assert!(reason.contains("could not be made active again: `own` cannot be loaded"), "{reason}");
    assert!(reason.contains("brings along what that space serves"), "{reason}");
    app.stop().await;
}

#[tokio::test]
async fn nothing_goes_back_to_a_space_that_serves_nothing() {
    let app = TestApp::start_with(&with_tiny(&[OTHER, THIRD])).await;
    write(&app, 5).await;
    take_over(&app, json!({"to": THIRD, "from": "unknown"})).await;
    let job = switch(&app, OTHER).await;
    app.post("/grains", json!({"id": "late", "text": "written in the new space"})).await.ok();

    // The model before is known no more.
    let others = [OTHER, THIRD].map(entry_of).concat();
    let app = app.restart_with(&format!("[ai]\nmodel_name = \"{OTHER}\"\n{others}")).await;
    roll_back(&app, &job).await;
    assert_embedded(&app, "late", OTHER).await;
    assert_eq!(n_in(&app, &space_of(&app, THIRD).await).await, 0);
    app.stop().await;
}

#[tokio::test]
async fn a_job_that_failed_for_its_model_goes_on_as_soon_as_that_is_repaired() {
    let files = TempDir::new().expect("a folder");
    copy_folder(&test_model(OTHER), files.path());
    let own = format!("[[ai.additional_models]]\nname = \"mine\"\npath = \"{}\"\n", files.path().display());
    let app = TestApp::start_with(&(with_tiny(&[]) + &own)).await;
    write(&app, 100).await;
    let job = begin_slowly(&app, "mine").await;
    verb(&app, &job, "pause").await;
    app.post("/models/mine/unload", json!({})).await.ok();
    let [tokenizer, away] = ["tokenizer.json", "away.json"].map(|name| files.path().join(name));
    fs_err::rename(&tokenizer, &away).expect("taken away");
    verb(&app, &job, "resume").await;
    let failed = wait_until(&app, &job, "failed").await;

    fs_err::rename(&away, &tokenizer).expect("brought back");
    verb(&app, &job, "resume").await;
    wait_for(&app, &job, |job| job["done"].as_u64() > failed["done"].as_u64()).await;
    app.stop().await;
}
