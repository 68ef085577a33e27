//! What an operator's bad day does to a server: each fault ends in a state that docs/operating.md names, a sentence in
//! the log, and with every grain where it was.
//!
//! `CHAOS_SECONDS` stops the server for longer than usual: see `make chaos`.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::helpers::{
    Caller, Process, TINY, copy_folder, cosine, data_dir, folder_with, number_from_env, test_model, until, vectors_of,
    with_tiny,
};
use crate::reembeddings::{begin, verb, wait_until};

async fn embed(app: &Caller, model: &str) -> Vec<Vec<f32>> {
    vectors_of(&app.post(&format!("/models/{model}/embed"), json!({"inputs": "hello"})).await.ok())
}

async fn write(app: &Caller, id: &str) {
    app.post("/grains", json!({"id": id, "text": format!("the grain {id}")})).await.ok();
}

/// Every grain that was written can be read and found, and no other is there.
async fn assert_all_there(app: &Caller, ids: &[&str]) {
    assert_eq!(app.post("/grains/count", json!({})).await.ok()["count"], ids.len());
    for id in ids {
        assert_eq!(app.get(&format!("/grains/{id}")).await.ok()["text"], format!("the grain {id}"));
        let query = json!({"query": format!("the grain {id}"), "mode": "dense", "limit": 1});
        let found = app.post("/grains/search", query).await.ok();
        assert_eq!(found["hits"].as_array().map(Vec::len), Some(1), "{found}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_meet_a_stopped_server_are_answered_when_it_goes_on() {
    let folder = folder_with(&with_tiny(&[]));
    let (process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url);
    write(&app, "before").await;
    process.signal(Signal::STOP);
    let embeds = futures::future::join_all((0..20).map(|_| embed(&app, TINY)));
    let writes = write(&app, "meanwhile");
    let going_on = async {
        // Longer than the server takes for a delay of a busy machine.
        tokio::time::sleep(Duration::from_secs(number_from_env("CHAOS_SECONDS", 4))).await;
        process.signal(Signal::CONT);
    };
    let (vectors, (), ()) = tokio::join!(embeds, writes, going_on);
    // What a text is batched with shows in the last bits; another model's vector points elsewhere.
    assert!(vectors.iter().all(|made| made.len() == 1 && cosine(&made[0], &vectors[0][0]) > 0.9999), "{vectors:?}");
    assert_all_there(&app, &["before", "meanwhile"]).await;
    let log = process.stop();
    assert!(log.contains("the process stood still; what waited is answered late"), "{log}");
}

#[tokio::test]
async fn a_model_whose_file_is_replaced_serves_on_and_waits_for_a_word_after_its_next_load() {
    let folder = TempDir::new().expect("a folder");
    let own = folder.path().join("own");
    copy_folder(&test_model(TINY), &own);
    let toml = "[ai]\nmodel_name = \"own\"\n[[ai.additional_models]]\nname = \"own\"\npath = \"";
    fs_err::write(folder.path().join("granary.toml"), format!("{toml}{}\"\n", own.display())).expect("written");
    let (process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url);
    write(&app, "before").await;
    let (vectors, space) = (embed(&app, "own").await, app.get("/models/own").await.ok()["space"].clone());

    // Once in the file's place, and once into it.
    let (weights, others) = (own.join("onnx/model.onnx"), test_model("tiny-max").join("onnx/model.onnx"));
    let beside = own.join("onnx/new.onnx");
    fs_err::copy(test_model("tiny-cls").join("onnx/model.onnx"), &beside).expect("copied");
    fs_err::rename(&beside, &weights).expect("replaced");
    assert_eq!(embed(&app, "own").await, vectors);
    fs_err::copy(others, &weights).expect("overwritten");
    assert_eq!(embed(&app, "own").await, vectors);
    write(&app, "meanwhile").await;

    app.post("/models/own/unload", json!({})).await.ok();
    let loaded = app.post("/models/own/load", json!({})).await.ok();
    assert_ne!(loaded["space"], space);
    assert_ne!(embed(&app, "own").await, vectors);
    let (status, code, detail) = app.post("/grains", json!({"text": "refused"})).await.problem();
    assert_eq!((status, code.as_str()), (409, "conflict"));
    assert!(detail.contains("`POST /models/own/accept`"), "{detail}");
    assert_eq!(app.post("/grains/count", json!({})).await.ok()["count"], 2);
    app.post("/models/own/accept", json!({})).await.ok();
    write(&app, "after").await;
    assert_all_there(&app, &["before", "meanwhile", "after"]).await;
    let log = process.stop();
    assert!(log.contains("no grains can be written with the model"), "{log}");
}

#[tokio::test]
async fn without_its_runtime_library_a_server_serves_on_and_loads_again_when_it_is_back() {
    let folder = TempDir::new().expect("a folder");
    let (runtime, away) = (folder.path().join("runtime"), folder.path().join("away"));
    copy_folder(&data_dir().canonicalize().expect("set up").join("runtime"), &runtime);
    let toml = format!("[models]\nfailed_load_cooldown = \"0s\"\n{}", with_tiny(&["tiny-cls"]));
    fs_err::write(folder.path().join("granary.toml"), toml).expect("written");
    let (process, url) = Process::serve_with(folder.path(), &["--data-dir", "."], &[]);
    let app = Caller::of(url);
    write(&app, "before").await;
    let vectors = embed(&app, TINY).await;

    fs_err::rename(&runtime, &away).expect("taken away");
    assert_eq!(embed(&app, TINY).await, vectors);
    write(&app, "meanwhile").await;
    let refused = app.post("/models/tiny-cls/load", json!({})).await;
    let (status, code, detail) = refused.problem();
    assert_eq!((status, code.as_str()), (503, "model_failed"), "{detail}");
    assert!(detail.contains("no ONNX Runtime library at") && detail.contains("`make setup`"), "{detail}");
    assert_eq!(embed(&app, TINY).await, vectors);
    app.get("/health/ready").await.ok();

    fs_err::rename(&away, &runtime).expect("brought back");
    assert_eq!(app.post("/models/tiny-cls/load", json!({})).await.ok()["state"], "ready");
    embed(&app, "tiny-cls").await;
    assert_all_there(&app, &["before", "meanwhile"]).await;
    let log = process.stop();
    assert!(log.contains("no ONNX Runtime library at"), "{log}");
}

#[tokio::test]
async fn a_runtime_library_that_set_up_replaces_is_for_the_next_start() {
    let folder = TempDir::new().expect("a folder");
    let runtime = folder.path().join("runtime");
    copy_folder(&data_dir().canonicalize().expect("set up").join("runtime"), &runtime);
    fs_err::write(folder.path().join("granary.toml"), with_tiny(&["tiny-cls", "tiny-max"])).expect("written");
    let (process, url) = Process::serve_with(folder.path(), &["--data-dir", "."], &[]);
    let app = Caller::of(url);
    embed(&app, TINY).await;

    // It could not be loaded: nobody tries.
    let link = runtime.join("libonnxruntime.so");
    fs_err::write(runtime.join("newer.so"), "").expect("written");
    fs_err::remove_file(&link).expect("removed");
    std::os::unix::fs::symlink("newer.so", &link).expect("linked");
    for model in ["tiny-cls", "tiny-max"] {
        assert_eq!(app.post(&format!("/models/{model}/load"), json!({})).await.ok()["state"], "ready");
        embed(&app, model).await;
    }
    let log = process.stop();
    assert_eq!(log.matches("there is another ONNX Runtime library now: a restart takes it").count(), 1, "{log}");
}

/// Files that nobody can write, not even who has opened them before, as on a file system that was made read-only.
struct ReadOnly(Vec<PathBuf>);

impl ReadOnly {
    /// `None`, with a word of it on standard output, where that is not possible: it takes root, and ext4 or its like. A
    /// mount cannot be made read-only while a file on it is open for writing.
    fn make(files: Vec<PathBuf>) -> Option<Self> {
        let read_only = Self(files);
        if read_only.change("+i") {
            return Some(read_only);
        }
        println!("skipped: only root can make files immutable, and not on every file system");
        None
    }

    fn change(&self, attribute: &str) -> bool {
        let changed = Command::new("chattr").arg(attribute).args(&self.0).output();
        changed.is_ok_and(|output| output.status.success())
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        self.change("-i");
    }
}

#[tokio::test]
async fn a_database_that_cannot_be_written_is_read_and_loses_nothing() {
    let folder = folder_with(&with_tiny(&[]));
    let (process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url);
    for id in ["a", "b"] {
        write(&app, id).await;
    }
    let files = ["granary.db", "granary.db-wal"].map(|name| folder.path().join(name));
    let Some(read_only) = ReadOnly::make(files.into()) else { return };
    for _ in 0..3 {
        for answer in [
            app.post("/grains", json!({"id": "refused", "text": "refused"})).await,
            app.patch("/grains/a", json!({"text": "refused"})).await,
            app.delete("/grains/b").await,
        ] {
            let (status, code, detail) = answer.problem();
            assert_eq!((status, code.as_str()), (503, "store_unavailable"), "{detail}");
            assert!(detail.contains("see the log"), "{detail}");
        }
    }
    assert_all_there(&app, &["a", "b"]).await;
    app.get("/health/ready").await.ok();
    drop(read_only);

    write(&app, "c").await;
    assert_all_there(&app, &["a", "b", "c"]).await;
    let log = process.stop();
    assert!(log.contains("ERROR") && log.contains("granary.db"), "{log}");
    let (process, url) = Process::serve(folder.path(), &[]);
    assert_all_there(&Caller::of(url), &["a", "b", "c"]).await;
    process.stop();
}

#[tokio::test]
async fn a_model_that_is_loaded_while_the_database_cannot_be_written_writes_by_itself_once_it_can() {
    let folder = folder_with(&with_tiny(&["tiny-cls"]));
    let (process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url);
    write(&app, "before").await;
    let files = ["granary.db", "granary.db-wal"].map(|name| folder.path().join(name));
    let Some(read_only) = ReadOnly::make(files.into()) else { return };
    // Its space is new, and cannot be recorded.
    app.post("/models/tiny-cls/load", json!({})).await.ok();
    embed(&app, "tiny-cls").await;
    let grain = json!({"id": "meanwhile", "text": "the grain meanwhile", "model": "tiny-cls"});
    let (status, code, detail) = app.post("/grains", grain.clone()).await.problem();
    assert_eq!((status, code.as_str()), (409, "conflict"));
    assert!(detail.contains("it is not known whether the model still makes its space"), "{detail}");
    drop(read_only);

    // Models are looked at every 30 s.
    until("it writes again", async || app.post("/grains", grain.clone()).await.status != 409).await;
    assert_all_there(&app, &["before", "meanwhile"]).await;
    let log = process.stop();
    assert!(log.contains("it is known again that the model makes its space"), "{log}");
}

#[tokio::test]
async fn a_server_without_a_file_to_open_answers_again_when_there_is_one() {
    let folder = folder_with(&with_tiny(&[]));
    let (mut process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url.clone());
    write(&app, "before").await;
    let vectors = embed(&app, TINY).await;

    process.limit_files(Some(process.n_open_files() + 8));
    let address = url.trim_start_matches("http://");
    // The system accepts them on the server's behalf, which then cannot take them over.
    let connections: Vec<TcpStream> =
        (0..40).map(|_| TcpStream::connect(address).expect("in the system's queue")).collect();
    process.wait_for("Too many open files");
    drop(connections);

    let newcomer = Caller::of(url);
    assert_eq!(embed(&newcomer, TINY).await, vectors);
    write(&newcomer, "after").await;
    assert_all_there(&newcomer, &["before", "after"]).await;
    process.stop();
}

/// A server whose clock the test sets, by the file `clock` in its folder: a difference to the true time, such as `+30d`.
fn serve_with_a_clock(folder: &Path) -> (Process, Caller) {
    let library = data_dir().join("test/clients/libfaketime/vendor/libfaketime/src/libfaketime.so.1");
    let library = library.canonicalize().expect("`make setup-test` installs it").display().to_string();
    let (data, clock) = (data_dir().display().to_string(), folder.join("clock").display().to_string());
    set_clock(folder, "+0");
    let variables = [
        ("GRANARY_MODELS__DATA_DIR", data.as_str()),
        ("GRANARY_GRAINS__DATABASE_URL", "sqlite:granary.db"),
        ("LD_PRELOAD", library.as_str()),
        ("FAKETIME_TIMESTAMP_FILE", clock.as_str()),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    let (process, url) = Process::serve_with(folder, &[], &variables);
    (process, Caller::of(url))
}

fn set_clock(folder: &Path, difference: &str) {
    // Replaced as a whole: the server may read it at any time.
    fs_err::write(folder.join("clock.new"), difference).expect("written");
    fs_err::rename(folder.join("clock.new"), folder.join("clock")).expect("renamed");
}

async fn re_embed(app: &Caller, to: &str) -> Value {
    let job = begin(app, json!({"to": to})).await;
    wait_until(app, &job, "completed").await
}

#[tokio::test]
async fn a_clock_that_jumps_is_told_of_and_nothing_is_deleted_for_its_age() {
    if !cfg!(target_arch = "x86_64") {
        return println!("skipped: the library that shows a process another time is there for x86-64 alone");
    }
    let folder = folder_with(&with_tiny(&["tiny-cls", "tiny-max"]));
    let (mut process, app) = serve_with_a_clock(folder.path());
    write(&app, "before").await;
    let first = re_embed(&app, "tiny-cls").await;

    // A month: longer than a re-embedding can be rolled back.
    set_clock(folder.path(), "+30d");
    process.wait_for("the clock was set forward");
    write(&app, "meanwhile").await;
    let roll_back = format!("/reembeddings/{}/rollback", first["id"].as_str().expect("an id"));
    assert_eq!(app.post(&roll_back, json!({})).await.status, 409);
    // Whoever begins a job wakes those who look for what is too old.
    let second = re_embed(&app, "tiny-max").await;

    set_clock(folder.path(), "-1d");
    process.wait_for("the clock was set back");
    write(&app, "after").await;
    for job in [second, first] {
        assert_eq!(wait_until(&app, &job, "completed").await["old_vectors"], "kept");
        verb(&app, &job, "rollback").await;
        wait_until(&app, &job, "rolled_back").await;
    }
    assert_all_there(&app, &["before", "meanwhile", "after"]).await;
    process.stop();
}

/// The table of docs/operating.md names every fault of this file.
#[test]
fn the_page_on_operating_says_what_each_of_these_ends_in() {
    let page: &str = include_str!("../../docs/operating.md");
    for fault in ["SIGSTOP", "model file", "runtime library", "read-only", "Too many open files", "the clock jumps"] {
        let row = page.lines().find(|line| line.starts_with("| ") && line.contains(fault));
        assert!(row.is_some(), "no row of the table in docs/operating.md names {fault}");
    }
}
