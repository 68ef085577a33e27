//! Models that are disabled, registered, deleted and evicted.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, mkfifoat, open};
use rustix::io::{Errno, write};
use rustix::process::Signal;
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tempfile::TempDir;

use crate::helpers::{
    Caller, Process, TINY, TestApp, client, copy_folder, own_data_dir, send, test_model, until, until_seen, vectors_of,
    with_tiny,
};
use crate::{reembedding_rules, reembeddings};

/// A file in whose place is a FIFO: who reads it waits until it is let go.
struct HeldFile {
    path: PathBuf,
    aside: PathBuf,
}

impl HeldFile {
    fn hold(path: PathBuf) -> Self {
        let aside = path.with_extension("aside");
        fs_err::rename(&path, &aside).expect("moved");
        mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).expect("a FIFO");
        Self { path, aside }
    }

    /// Waits for who reads it, and gives it what was there.
    async fn let_go(self) {
        let content = fs_err::read(&self.aside).expect("what was there");
        let what = format!("somebody reads `{}`", self.path.display());
        let look = async || open(&self.path, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty());
        let opened = until_seen(&what, look, |opened: &Result<_, Errno>| !matches!(opened, Err(Errno::NXIO))).await;
        let other_end = opened.expect("a FIFO");
        // Who opens it from here on has the file again.
        fs_err::rename(&self.aside, &self.path).expect("moved back");
        assert_eq!(write(other_end, &content), Ok(content.len()), "it fits into the FIFO");
    }
}

/// Acts each time that somebody reads a file, before it gives the content. Never ends, and leaves a FIFO in its place.
async fn at_each_reading(path: &Path, act: impl Fn()) {
    let content = fs_err::read(path).expect("what is there");
    let next = path.with_extension("next");
    let renew = || {
        mkfifoat(CWD, &next, Mode::RUSR | Mode::WUSR).expect("a FIFO");
        fs_err::rename(&next, path).expect("in its place");
    };
    renew();
    loop {
        let other_end = match open(path, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()) {
            Err(Errno::NXIO) => {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
            opened => opened.expect("a FIFO"),
        };
        act();
        // Who reads it next has one of its own, and does not get this content too.
        renew();
        assert_eq!(write(other_end, &content), Ok(content.len()), "it fits into the FIFO");
    }
}

async fn wait_until_logged(process: &Process, text: &str) {
    until_seen(&format!("it says `{text}`"), async || process.log(), |log: &String| log.contains(text)).await;
}

async fn order(app: &TestApp, path: &str) -> Value {
    app.post(path, json!({})).await.ok()
}

/// Waits until a model has been unloaded because nobody used it.
async fn until_idle(app: &TestApp, model: &str) {
    let counted = format!("granary_model_evictions_total{{model=\"{model}\",reason=\"idle\"}}");
    until("it is found idle", async || app.get("/metrics").await.text.contains(&counted)).await;
}

/// A data directory of its own, with `tiny` and a model folder `mine` in it.
fn with_mine() -> TempDir {
    let toml = "[ai]\nmodel_name = \"tiny\"\n[[ai.additional_models]]\nname = \"tiny\"\npath = \"tiny\"\n";
    let folder = own_data_dir(toml);
    copy_folder(&test_model("tiny-cls"), &folder.path().join("models/mine"));
    copy_folder(&test_model(TINY), &folder.path().join("models/tiny"));
    folder
}

fn serve(folder: &Path) -> (Process, String) {
    Process::serve_with(folder, &["--data-dir", "."], &[])
}

#[tokio::test]
async fn a_disabled_model_is_the_operators_alone_in_later_runs_too() {
    let mut app = TestApp::start_with(&with_tiny(&["tiny-cls"])).await;
    app.post("/models/tiny-cls/embed", json!({"inputs": "a"})).await.ok();
    let model = app.post("/models/tiny-cls/unload", json!({"disable": true})).await.ok();
    assert_eq!((&model["state"], &model["disabled"]), (&json!("unloaded"), &json!(true)));
    let refused = app.post("/models/tiny-cls/embed", json!({"inputs": "a"})).await;
    assert_eq!(refused.header("retry-after"), "60");
    let refused = refused.tei_error();
    assert_eq!((refused.0, refused.1.as_str()), (424, "Backend"));
    assert!(refused.2.contains("`POST /models/tiny-cls/load` enables it"), "{}", refused.2);
    let refused = app.post("/v1/embeddings", json!({"input": "a", "model": "tiny-cls"})).await;
    assert_eq!((refused.header("retry-after"), refused.header("x-should-retry")), ("60", "false"));
    let refused = refused.openai_error();
    assert_eq!((refused.0, refused.1.as_str()), (503, "model_disabled"));
    let refused = app.post("/models/tiny-cls/accept", json!({})).await.problem();
    assert_eq!((refused.0, refused.1.as_str()), (503, "model_disabled"));
    assert_eq!(app.get("/models/tiny-cls").await.ok()["state"], "unloaded", "what is refused is not done either");

    let with_auto_load = format!("{}auto_load = true\n", with_tiny(&["tiny-cls"]));
    for toml in [with_auto_load, with_tiny(&["tiny-cls"])] {
        app = app.restart_with(&toml).await;
        let model = app.get("/models/tiny-cls").await.ok();
        assert_eq!((&model["state"], &model["disabled"]), (&json!("unloaded"), &json!(true)));
    }
    let model = order(&app, "/models/tiny-cls/load").await;
    assert_eq!((&model["state"], &model["disabled"]), (&json!("ready"), &json!(false)));
    app.post("/models/tiny-cls/embed", json!({"inputs": "a"})).await.ok();

    app.post("/models/tiny/unload", json!({"disable": true})).await.ok();
    let unready = app.get("/health/ready").await.problem();
    assert_eq!((unready.0, unready.1.as_str()), (503, "model_disabled"));
    app.put("/models/active", json!({"name": "tiny"})).await.ok();
    app.get("/health/ready").await.ok();
    app.stop().await;
}

#[tokio::test]
async fn a_model_is_registered_survives_a_kill_and_is_deleted() {
    let folder = with_mine();
    let (mut process, url) = serve(folder.path());
    let post = |path: &str, body: Value| send(client().post(format!("{url}{path}")).json(&body));
    let answer = post("/models", json!({"name": "Mine", "path": "mine", "aliases": ["also"], "pooling": null})).await;
    assert_eq!((answer.status.as_u16(), answer.header("location")), (201, "/models/Mine"));
    assert_eq!(answer.ok()["origin"], "registered");
    let mut register = Command::new(env!("CARGO_BIN_EXE_granary"));
    register.args(["models", "register", "by-command", "mine", "--url", &url]).env_clear();
    assert_eq!(String::from_utf8_lossy(&register.output().expect("it runs").stdout), "by-command is unloaded\n");
    let vectors = vectors_of(&post("/models/also/embed", json!({"inputs": "hello"})).await.ok());
    let again = post("/models", json!({"name": "mine", "path": "mine"})).await.problem();
    assert_eq!((again.0, again.1.as_str()), (409, "conflict"));
    let nowhere = post("/models", json!({"name": "nowhere"})).await.problem();
    assert!(nowhere.0 == 422 && nowhere.2.starts_with("`path` and `repository` are missing"), "{}", nowhere.2);
    process.signal(Signal::KILL);
    process.wait();

    let (process, url) = serve(folder.path());
    let embedded = send(client().post(format!("{url}/models/mine/embed")).json(&json!({"inputs": "hello"}))).await;
    assert_eq!(vectors_of(&embedded.ok()), vectors);
    let delete = |name: &str| send(client().delete(format!("{url}/models/{name}")));
    let kept = delete("tiny").await.problem();
    assert_eq!((kept.0, kept.1.as_str()), (409, "conflict"));
    assert!(kept.2.contains("in the configuration"), "{}", kept.2);
    send(client().put(format!("{url}/models/active")).json(&json!({"name": "mine"}))).await.ok();
    assert!(delete("mine").await.problem().2.contains("is the active model"));
    send(client().put(format!("{url}/models/active")).json(&json!({"name": "tiny"}))).await.ok();
    assert_eq!(delete("mine").await.status, 204);
    assert_eq!(delete("mine").await.problem().1, "model_not_found");

    let body = json!({"name": "mine", "path": "mine"});
    assert_eq!(send(client().post(format!("{url}/models")).json(&body)).await.status, 201);
    send(client().put(format!("{url}/models/active")).json(&json!({"name": "mine"}))).await.ok();
    let switch = send(client().put(format!("{url}/models/active")).json(&json!({"name": "tiny"}))).await.ok();
    assert_eq!(switch["recent_callers"], json!([]), "they called another model of that name");
    assert_eq!(delete("mine").await.status, 204);
    assert!(folder.path().join("models/mine/tokenizer.json").is_file(), "files stay");
    drop(process);

    let (_process, url) = serve(folder.path());
    assert_eq!(send(client().get(format!("{url}/models/mine"))).await.status, 404);
}

#[tokio::test]
async fn a_model_that_is_deleted_while_it_loads_leaves_nothing_to_the_next_of_its_name() {
    let folder = with_mine();
    let (process, url) = serve(folder.path());
    // The active model has its turn as soon as the server serves, and the other one after it.
    wait_until_logged(&process, "the model is ready model=tiny").await;
    let post = |path: &str, body: Value| send(client().post(format!("{url}{path}")).json(&body));
    assert_eq!(post("/models", json!({"name": "m", "path": "mine"})).await.status, 201);
    let held = HeldFile::hold(folder.path().join("models/mine/config.json"));
    let delete = async {
        wait_until_logged(&process, "loading a model model=m").await;
        assert_eq!(send(client().delete(format!("{url}/models/m"))).await.status, 204);
    };
    let (refused, ()) = tokio::join!(post("/models/m/load", json!({})), delete);
    assert_eq!(refused.problem().1, "model_not_found");
    held.let_go().await;
    wait_until_logged(&process, "the model was unloaded model=m").await;
    let metrics = send(client().get(format!("{url}/metrics"))).await.text;
    let mut shown = metrics.lines().filter(|line| line.starts_with("granary_model_memory_bytes{model=\"m\"}"));
    assert!(shown.all(|line| line.ends_with(" 0")), "{metrics}");

    assert_eq!(post("/models", json!({"name": "m", "path": "tiny"})).await.status, 201);
    let model = post("/models/m/load", json!({})).await.ok();
    assert_eq!(model["grain_writes"], json!({"allowed": true, "reason": null}));
}

/// Begins to load a model, and leaves when it is at it or waits for its turn.
async fn load_and_leave(process: &Process, app: &Caller, name: &str) {
    let model = format!("/models/{name}");
    let is_loading = until("it is loading", async || app.get(&model).await.ok()["state"] == "loading");
    let path = format!("{model}/load");
    tokio::select! {
        answer = app.post(&path, json!({})) => panic!("it does not take long: {}", answer.text),
        () = is_loading => {}
    }
    let left = format!("path=\"{path}\"}}: granary::api::requests: the caller left");
    wait_until_logged(process, &left).await;
}

#[tokio::test]
async fn a_load_that_nobody_waits_for_does_not_keep_a_stop_from_saving_the_rest() {
    let folder = with_mine();
    copy_folder(&test_model("tiny-cls"), &folder.path().join("models/next"));
    let variables = [("GRANARY_SERVER__SHUTDOWN_TIMEOUT", "1s")];
    let (mut process, url) = Process::serve_with(folder.path(), &["--data-dir", "."], &variables);
    let app = Caller::of(url);
    reembeddings::write(&app, 1).await;
    for name in ["mine", "next"] {
        app.post("/models", json!({"name": name, "path": name})).await.ok();
    }
    let _held = HeldFile::hold(folder.path().join("models/mine/config.json"));
    load_and_leave(&process, &app, "mine").await;
    wait_until_logged(&process, "loading a model model=mine").await;
    // It waits for its turn behind the other one.
    load_and_leave(&process, &app, "next").await;
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(1), "{}", process.log());
    let log = process.log();
    assert!(log.contains("nobody waits for the model: it is not loaded model=next"), "{log}");
    assert!(log.contains("granary: stopped, but not in order: unloading the models still running"), "{log}");
    let saved = fs_err::read_dir(folder.path().join("granary.db.index")).expect("a folder");
    let mut saved = saved.map(|entry| entry.expect("an entry").path());
    assert!(saved.any(|path| path.extension().is_some_and(|ending| ending == "index")), "nothing is saved:\n{log}");
}

#[tokio::test]
async fn a_load_that_nobody_waits_for_and_that_ends_in_time_is_no_disorder() {
    let folder = with_mine();
    let (mut process, url) = serve(folder.path());
    let app = Caller::of(url);
    app.post("/models", json!({"name": "mine", "path": "mine"})).await.ok();
    let held = HeldFile::hold(folder.path().join("models/mine/config.json"));
    load_and_leave(&process, &app, "mine").await;
    wait_until_logged(&process, "loading a model model=mine").await;
    process.signal(Signal::TERM);
    process.wait_for("a second signal gives it up");
    held.let_go().await;
    assert_eq!(process.wait().code(), Some(0), "{}", process.log());
    let log = process.log();
    assert!(log.contains("the model was unloaded model=mine") && log.trim_end().ends_with("stopped"), "{log}");
}

#[tokio::test]
async fn a_vector_in_the_space_of_the_active_model_waits_for_its_first_load() {
    let elsewhere = TestApp::start_with(&with_tiny(&[])).await;
    let space = elsewhere.post("/models/tiny/load", json!({})).await.ok()["space"].clone();
    elsewhere.stop().await;
    let folder = with_mine();
    let held = HeldFile::hold(folder.path().join("models/tiny/config.json"));
    let (process, url) = serve(folder.path());
    let app = Caller::of(url);
    wait_until_logged(&process, "loading a model model=tiny").await;
    let mut vector = vec![0.0; 32];
    vector[0] = 1.0;
    let write = app.post("/grains", json!({"id": "a", "text": "hello", "vector": vector, "space": space}));
    let (written, ()) = tokio::join!(write, held.let_go());
    written.ok();
}

#[tokio::test]
async fn a_model_that_is_deleted_while_it_waits_for_its_turn_is_not_loaded() {
    let folder = with_mine();
    // The active model has its turn as soon as the server serves.
    let held = HeldFile::hold(folder.path().join("models/tiny/config.json"));
    let (process, url) = serve(folder.path());
    let post = |path: &str, body: Value| send(client().post(format!("{url}{path}")).json(&body));
    assert_eq!(post("/models", json!({"name": "waits", "path": "mine"})).await.status, 201);
    wait_until_logged(&process, "loading a model model=tiny").await;
    let delete = async {
        let model = async || send(client().get(format!("{url}/models/waits"))).await.ok();
        until("its load is begun", async || model().await["state"] == "loading").await;
        assert_eq!(send(client().delete(format!("{url}/models/waits"))).await.status, 204);
        held.let_go().await;
    };
    let (refused, ()) = tokio::join!(post("/models/waits/load", json!({})), delete);
    assert_eq!(refused.problem().1, "model_not_found");
    wait_until_logged(&process, "the model was deleted before it was loaded").await;
}

#[tokio::test]
async fn a_file_that_is_replaced_during_a_load_fails_it_and_is_loaded_the_next_time() {
    let folder = with_mine();
    let (_process, url) = serve(folder.path());
    let post = |path: &str, body: Value| send(client().post(format!("{url}{path}")).json(&body));
    assert_eq!(post("/models", json!({"name": "mine", "path": "mine"})).await.status, 201);
    let mine = folder.path().join("models/mine");
    let (config, onnx) = (mine.join("config.json"), mine.join("onnx/model.onnx"));
    let content = fs_err::read(&config).expect("the file");
    // The last time is after the files were looked at, and before they are opened.
    let replace = || {
        let new = onnx.with_extension("new");
        fs_err::copy(&onnx, &new).expect("copied");
        fs_err::rename(new, &onnx).expect("in its place");
    };
    let refused = tokio::select! {
        refused = post("/models/mine/load", json!({})) => refused.problem(),
        () = at_each_reading(&config, replace) => panic!("it never ends"),
    };
    assert_eq!((refused.0, refused.1.as_str()), (503, "model_failed"), "{}", refused.2);
    assert!(refused.2.contains("model.onnx` was replaced or written to"), "{}", refused.2);
    let model = send(client().get(format!("{url}/models/mine"))).await.ok();
    assert_eq!((&model["state"], &model["failure"]["permanent"]), (&json!("failed"), &json!(false)));

    fs_err::remove_file(&config).expect("removed");
    fs_err::write(&config, content).expect("written");
    assert_eq!(post("/models/mine/load", json!({})).await.ok()["state"], "ready");
}

#[tokio::test]
async fn no_registration_leads_out_of_the_models_directory() {
    let folder = with_mine();
    std::os::unix::fs::symlink(test_model("tiny-max"), folder.path().join("models/link")).expect("linked");
    let (_process, url) = serve(folder.path());
    let absolute = test_model("tiny-max").display().to_string();
    for path in ["../models/mine", "/etc", absolute.as_str(), "mine/../../x", "link", "nothing", ""] {
        let body = json!({"name": "bad", "path": path});
        let refused = send(client().post(format!("{url}/models")).json(&body)).await.problem();
        assert_eq!((refused.0, refused.1.as_str()), (422, "invalid_request"), "{path}: {}", refused.2);
    }
    for (body, says) in [
        (json!({"name": "bad name", "path": "mine"}), "is not a model name"),
        (json!({"name": "bad"}), "are missing"),
        (json!({"name": "bad", "path": "mine", "max_tokens": 0}), "nonzero"),
        (json!({"name": "bad", "path": "mine", "color": "red"}), "color"),
        (json!({"name": "bad", "path": "mine", "auto_load": true}), "auto_load"),
        (json!({"name": "bad", "path": "mine", "workers": 100_000}), "256"),
    ] {
        let refused = send(client().post(format!("{url}/models")).json(&body)).await.problem();
        assert_eq!(refused.0, 422, "{body}");
        assert!(refused.2.contains(says), "{body}: {}", refused.2);
    }
    let taken = json!({"name": "other", "path": "mine", "aliases": ["tiny"]});
    assert_eq!(send(client().post(format!("{url}/models")).json(&taken)).await.problem().0, 409);
}

#[tokio::test]
async fn with_one_model_none_is_registered() {
    let toml = with_tiny(&[]).replace("[ai]\n", "[ai]\nmulti_model_enabled = false\n");
    let app = TestApp::start_with(&toml).await;
    let refused = app.post("/models", json!({"name": "mine", "path": "mine"})).await.problem();
    assert_eq!((refused.0, refused.1.as_str()), (409, "conflict"));
    app.stop().await;
}

#[tokio::test]
async fn idle_models_are_unloaded_and_pinned_ones_stay() {
    let toml = format!("[models]\nidle_unload = \"300ms\"\n{}", with_tiny(&["tiny-cls"]));
    let toml = toml.replacen("name = \"tiny-cls\"\n", "name = \"tiny-cls\"\npinned = true\n", 1);
    let app = TestApp::start_with(&toml).await;
    order(&app, "/models/tiny/load").await;
    order(&app, "/models/tiny-cls/load").await;
    until_idle(&app, TINY).await;
    until("it is unloaded", async || app.get("/models/tiny").await.ok()["state"] == "unloaded").await;
    assert_eq!(app.get("/models/tiny-cls").await.ok()["state"], "ready");
    app.post("/embed", json!({"inputs": "a"})).await.ok();
    app.stop().await;
}

#[tokio::test]
async fn a_model_is_not_idle_before_its_load_has_ended() {
    let models = "[models]\nidle_unload = \"3s\"\nload_timeout = \"1ms\"\n";
    let app = TestApp::start_with(&format!("{models}{}", with_tiny(&["tiny-cls"]))).await;
    // For longer than a model may be idle, nobody has wanted this one.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let began = Instant::now();
    // It goes on loading when the caller's time is over, so no request takes it.
    app.post("/models/tiny-cls/load", json!({})).await;
    // Idle models are looked for twice in a second: one that was idle already would be found sooner.
    until_idle(&app, "tiny-cls").await;
    assert!(began.elapsed() >= Duration::from_secs(3), "it was idle {:?} after its load began", began.elapsed());
    app.stop().await;
}

#[tokio::test]
async fn a_model_is_not_idle_before_its_last_request_has_ended() {
    let toml = with_tiny(&["tiny-max"]);
    let app = TestApp::start_with(&toml).await;
    // Once their spaces are recorded, loads write nothing into the database.
    for name in [TINY, "tiny-max"] {
        order(&app, &format!("/models/{name}/load")).await;
    }
    let folder = app.stop_and_keep().await;
    let database = folder.path().join("granary.db");
    let app = TestApp::start_in(folder, &format!("[models]\nidle_unload = \"1s\"\n{toml}")).await;
    // A switch has the model until it is recorded, and that waits for who has locked the database.
    let mut outsider = SqliteConnectOptions::new().filename(&database).connect().await.expect("a connection");
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut outsider).await.expect("locked");
    let switch = app.put("/models/active", json!({"name": "tiny-max"}));
    let release = async {
        until("it is loaded", async || app.get("/models/tiny-max").await.ok()["state"] == "ready").await;
        // Longer than a model may be idle, and not for long: the switch waits for the lock 5 s at most.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let released = Instant::now();
        sqlx::raw_sql("ROLLBACK").execute(&mut outsider).await.expect("released");
        released
    };
    let (switched, released) = tokio::join!(switch, release);
    assert_eq!(switched.ok()["name"], "tiny-max");
    // Idle models are looked for twice in a second: one that was idle already would be found sooner.
    until_idle(&app, "tiny-max").await;
    assert!(released.elapsed() >= Duration::from_secs(1), "it was idle {:?} after its use", released.elapsed());
    outsider.close().await.expect("closed");
    app.stop().await;
}

#[tokio::test]
async fn a_model_beyond_the_budget_is_refused_with_the_numbers() {
    let budget = "[models]\nmemory_budget = \"100MiB\"\n[ai]\nmodel_name = \"bert-base-uncased\"\n";
    let app = TestApp::start_with(&format!("{budget}{}", crate::helpers::entry_of("bert-base-uncased"))).await;
    let answer = app.post("/models/bert-base-uncased/embed", json!({"inputs": "a"})).await;
    assert_eq!(answer.header("x-should-retry"), "false");
    let refused = answer.tei_error();
    assert_eq!((refused.0, refused.1.as_str()), (507, "Backend"));
    assert!(refused.2.contains("of the 100.0 MiB that `models.memory_budget` allows"), "{}", refused.2);
    let model = app.get("/models/bert-base-uncased").await.ok();
    assert_eq!((&model["state"], &model["failure"]["permanent"]), (&json!("failed"), &json!(true)));
    let (status, code, detail) = app.get("/health/ready").await.problem();
    assert_eq!((status, code.as_str()), (503, "model_failed"));
    assert!(detail.contains("`models.memory_budget`"), "{detail}");
    for probe in ["/health", "/", "/ping", "/models/bert-base-uncased/health"] {
        let (status, kind, message) = app.get(probe).await.tei_error();
        assert_eq!((status, kind.as_str()), (503, "Unhealthy"), "{probe}: {message}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_model_that_grains_need_is_deleted_only_by_force_and_missed_at_the_next_start() {
    let folder = with_mine();
    let (process, url) = serve(folder.path());
    let body = json!({"name": "mine", "path": "mine"});
    assert_eq!(send(client().post(format!("{url}/models")).json(&body)).await.status, 201);
    let grain = json!({"text": "some words", "model": "Mine"});
    assert_eq!(send(client().post(format!("{url}/grains")).json(&grain)).await.status, 201);

    let refused = send(client().delete(format!("{url}/models/mine"))).await.problem();
    assert_eq!((refused.0, refused.1.as_str()), (409, "conflict"));
    assert!(
        refused.2.starts_with("1 grains have vectors of `mine`") && refused.2.contains("?force=true"),
        "{}",
        refused.2
    );
    assert_eq!(send(client().delete(format!("{url}/models/mine?force=perhaps"))).await.problem().0, 422);
    assert_eq!(send(client().delete(format!("{url}/models/mine?force=true"))).await.status, 204);
    assert!(!process.log().contains("does not know"), "{}", process.log());
    drop(process);

    let (process, url) = serve(folder.path());
    let log = process.log();
    assert!(
        log.contains("grains have vectors of a model that this server does not know") && log.contains("n_grains=1"),
        "{log}"
    );
    assert!(log.contains("until it is configured again, or registered again and loaded"), "{log}");
    let app = Caller::of(url);
    app.post("/models", body).await.ok();
    app.post("/models/mine/load", json!({})).await.ok();
    let found = app.post("/grains/search", json!({"query": "some words", "mode": "dense"})).await.ok();
    assert_eq!(found["hits"].as_array().map(Vec::len), Some(1), "{found}");
}

#[tokio::test]
async fn a_model_whose_vectors_serve_nothing_can_be_deleted_once_they_are_purged() {
    let folder = with_mine();
    let (_process, url) = serve(folder.path());
    let app = Caller::of(url);
    app.post("/models", json!({"name": "mine", "path": "mine"})).await.ok();
    reembeddings::write(&app, 3).await;
    let job = reembeddings::begin(&app, json!({"to": "mine"})).await;
    let job = reembeddings::wait_until(&app, &job, "completed").await;
    reembeddings::verb(&app, &job, "rollback").await;
    let job = reembeddings::wait_until(&app, &job, "rolled_back").await;

    let (status, code, detail) = app.delete("/models/mine").await.problem();
    assert_eq!((status, code.as_str()), (409, "conflict"));
    assert!(detail.starts_with("3 grains have vectors of `mine`") && !detail.contains("by words only"), "{detail}");
    assert!(detail.contains("/reembeddings/{id}/purge") && detail.contains("?force=true"), "{detail}");
    reembeddings::verb(&app, &job, "purge").await;
    reembeddings::wait_for(&app, &job, |job| job["old_vectors"] == "purged").await;
    assert_eq!(app.delete("/models/mine").await.status, 204);
}

#[tokio::test]
async fn a_model_that_a_job_makes_vectors_of_can_be_deleted_once_that_is_cancelled_and_purged() {
    let folder = with_mine();
    let (_process, url) = serve(folder.path());
    let app = Caller::of(url);
    app.post("/models", json!({"name": "mine", "path": "mine"})).await.ok();
    reembeddings::write(&app, 300).await;
    let job = reembedding_rules::begin_slowly(&app, "mine").await;
    reembeddings::verb(&app, &job, "pause").await;

    let (status, code, detail) = app.delete("/models/mine").await.problem();
    assert_eq!((status, code.as_str()), (409, "conflict"));
    assert!(detail.contains("/reembeddings/{id}/cancel") && detail.contains("/reembeddings/{id}/purge"), "{detail}");
    reembeddings::refused(&app, &job, "purge").await;
    reembeddings::verb(&app, &job, "cancel").await;
    reembeddings::verb(&app, &job, "purge").await;
    reembeddings::wait_for(&app, &job, |job| job["old_vectors"] == "purged").await;
    assert_eq!(app.delete("/models/mine").await.status, 204);
}

#[tokio::test]
async fn a_model_that_a_job_waits_to_move_grains_to_can_be_deleted_once_that_is_cancelled() {
    let folder = with_mine();
    copy_folder(&test_model(reembedding_rules::THIRD), &folder.path().join("models/next"));
    let (_process, url) = serve(folder.path());
    let app = Caller::of(url);
    for name in ["mine", "next"] {
        app.post("/models", json!({"name": name, "path": name})).await.ok();
    }
    reembeddings::write(&app, 300).await;
    reembedding_rules::begin_slowly(&app, "mine").await;
    let job = reembeddings::begin(&app, json!({"to": "next"})).await;

    let (status, code, detail) = app.delete("/models/next").await.problem();
    assert_eq!((status, code.as_str()), (409, "conflict"));
    let way_out = format!("/reembeddings/{}/cancel", job["id"].as_str().expect("an id"));
    assert!(detail.contains(&way_out) && detail.contains("?force=true"), "{detail}");
    reembeddings::verb(&app, &job, "cancel").await;
    assert_eq!(app.delete("/models/next").await.status, 204);
}

#[tokio::test]
async fn a_model_is_needed_by_grains_in_its_space_that_do_not_name_it_while_no_other_makes_that() {
    let folder = with_mine();
    let (process, url) = serve(folder.path());
    let app = Caller::of(url);
    app.post("/models", json!({"name": "mine", "path": "mine"})).await.ok();
    let embedded = app.post("/models/mine/embed", json!({"inputs": "some words", "normalize": false})).await;
    let (space, vector) = (embedded.header("x-space").to_owned(), vectors_of(&embedded.ok()).remove(0));
    app.post("/grains", json!({"text": "some words", "vector": vector, "space": space})).await.ok();

    let (status, code, detail) = app.delete("/models/mine").await.problem();
    assert_eq!((status, code.as_str()), (409, "conflict"));
    assert!(detail.starts_with("1 grains have vectors of `mine`"), "{detail}");
    app.post("/models", json!({"name": "twin", "path": "mine"})).await.ok();
    app.post("/models/twin/load", json!({})).await.ok();
    assert_eq!(app.delete("/models/mine").await.status, 204, "another model makes the space");
    drop(process);

    let (process, url) = serve(folder.path());
    let app = Caller::of(url);
    let said = "grains have vectors of a model that this server does not know";
    assert!(!process.log().contains(said), "{}", process.log());
    assert_eq!(app.delete("/models/twin").await.problem().0, 409, "it need not be loaded");
    assert_eq!(app.delete("/models/twin?force=true").await.status, 204);
    drop(process);

    let (process, _url) = serve(folder.path());
    let log = process.log();
    assert!(log.contains(said) && log.contains(&format!("space={space} n_grains=1")), "{log}");
}

#[tokio::test]
async fn a_registered_model_that_a_start_leaves_out_is_replaced_by_another_of_its_name() {
    let folder = with_mine();
    let (process, url) = serve(folder.path());
    let app = Caller::of(url);
    let with_alias = json!({"name": "Mine", "path": "mine", "aliases": ["also"]});
    app.post("/models", with_alias.clone()).await.ok();
    app.post("/models/mine/unload", json!({"disable": true})).await.ok();
    drop(process);

    let toml = folder.path().join("granary.toml");
    let before = fs_err::read_to_string(&toml).expect("text");
    fs_err::write(&toml, format!("{before}[ai.aliases]\nalso = \"tiny\"\n")).expect("written");
    let (process, url) = serve(folder.path());
    let app = Caller::of(url);
    assert!(process.log().contains("a model registered earlier is left out"), "{}", process.log());
    assert_eq!(app.get("/models/mine").await.problem().0, 404);
    assert_eq!(app.post("/models", with_alias).await.problem().0, 409, "the word is taken");
    app.post("/models", json!({"name": "mine", "path": "mine"})).await.ok();
    drop(process);

    let (_process, url) = serve(folder.path());
    let app = Caller::of(url);
    let model = app.get("/models/mine").await.ok();
    assert_eq!((&model["name"], &model["disabled"]), (&json!("mine"), &json!(false)), "{model}");
    assert_eq!(app.delete("/models/mine").await.status, 204);
}
