//! `granary health`: the exit status is what a container's health check goes by.

use std::path::Path;
use std::process::{Command, Output};

use rustix::process::Signal;
use serde_json::json;

use crate::helpers::{Process, TestApp, folder_with, key_entry, secret, until_seen, with_keys, with_tiny};

/// Asks from this folder, with nothing but these variables.
pub fn health(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_granary"));
    command.current_dir(folder).arg("health").args(arguments).env_clear().envs(variables.iter().copied());
    command.output().expect("it runs")
}

pub fn said(output: &Output) -> String {
    [output.stdout.as_slice(), &output.stderr].map(String::from_utf8_lossy).concat()
}

fn port_of(url: &str) -> &str {
    url.rsplit_once(':').expect("a port").1
}

#[test]
fn a_server_is_found_by_its_configuration_and_is_ready() {
    let folder = folder_with(&format!("[server]\nbase_path = '/granary'\n{}", with_tiny(&[])));
    let (process, url) = Process::serve(folder.path(), &[]);
    let port = port_of(&url);
    // A proxy for downloads has nothing to do with it.
    for variables in [
        &[("GRANARY_SERVER__PORT", port)][..],
        &[("GRANARY_SERVER__PORT", port), ("GRANARY_SERVER__HOST", "0.0.0.0"), ("http_proxy", "http://127.0.0.1:9")],
    ] {
        let output = health(folder.path(), &[], variables);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        assert!(said(&output).starts_with("ready: the active model, `tiny`, is "), "{}", said(&output));
    }
    let log = process.stop();
    assert!(!log.contains("panicked"), "{log}");
    let output = health(folder.path(), &[], &[("GRANARY_SERVER__PORT", port)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains(&format!("no Granary answers at http://127.0.0.1:{port}/granary")), "{output:?}");
}

#[test]
fn a_server_with_an_address_that_is_no_name_of_its_own_is_asked_by_one_that_is() {
    let folder = folder_with(&format!("[server]\nhost = '127.0.0.2'\n{}", with_tiny(&[])));
    let (process, url) = Process::serve(folder.path(), &[]);
    let output = health(folder.path(), &[], &[("GRANARY_SERVER__PORT", port_of(&url))]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    process.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_ready_says_why() {
    let broken = with_tiny(&[]).replacen("path = \"", "path = \"/no/such", 1);
    let app = TestApp::start_with(&broken).await;
    let folder = folder_with("");
    // The active model is loaded in the background, and fails.
    let look = async || health(folder.path(), &["--url", app.url()], &[]);
    let output = until_seen("it is not ready", look, |output: &Output| !output.status.success()).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("`tiny` cannot be loaded"), "{}", said(&output));
}

#[tokio::test]
async fn a_database_that_is_moved_away_is_written_no_more_until_it_is_back() {
    let folder = folder_with("");
    let (database, elsewhere) = (folder.path().join("granary.db"), folder.path().join("elsewhere.db"));
    let app = TestApp::start_in(folder, &with_tiny(&[])).await;
    let write = async |id: &str| app.post("/grains", json!({"id": id, "text": "hello"})).await;
    write("before").await.ok();
    fs_err::rename(&database, &elsewhere).expect("moved");
    for other in [None, Some(b"another file")] {
        if let Some(bytes) = other {
            fs_err::write(&database, bytes).expect("written");
        }
        let refused = write("meanwhile").await;
        assert_eq!(refused.header("retry-after"), "5");
        let (status, code, _) = refused.problem();
        assert_eq!((status, code.as_str()), (503, "store_unavailable"));
        let declared = app.post("/spaces", json!({"name": "elsewhere", "dimensions": 3})).await;
        assert_eq!(declared.status.as_u16(), 503, "{}", declared.text);
        assert_eq!(app.post("/snapshots", json!({})).await.status.as_u16(), 503);
        assert_eq!(app.get("/health/ready").await.status.as_u16(), 503);
    }
    assert_eq!(app.get("/grains/before").await.ok()["text"], "hello");
    fs_err::rename(&elsewhere, &database).expect("moved back");
    write("after").await.ok();
    assert_eq!(app.get("/health/ready").await.status.as_u16(), 200);
    app.stop().await;
}

#[tokio::test]
async fn a_database_that_took_the_place_of_another_does_not_get_its_log() {
    let with_grain = async |id: &str| {
        let app = TestApp::start_with(&with_tiny(&[])).await;
        app.post("/grains", json!({"id": id, "text": "hello"})).await.ok();
        app
    };
    let other = with_grain("other").await.stop_and_keep().await;
    let folder = with_grain("own").await.stop_and_keep().await;
    let database = folder.path().join("granary.db");
    let app = TestApp::start_in(folder, &with_tiny(&[])).await;
    app.post("/grains", json!({"id": "logged", "text": "hello"})).await.ok();
    fs_err::rename(other.path().join("granary.db"), &database).expect("replaced");
    // More at a time than there are readers: each new one would open the other file, and not stay.
    let reads = futures::future::join_all((0..8).map(|_| app.get("/grains/logged"))).await;
    assert!(reads.iter().any(|answer| answer.status.is_success()), "{reads:?}");
    let folder = app.stop_and_keep().await;
    assert!(folder.path().join("granary.db-wal.of-another.1").exists(), "the log is lost");
    let app = TestApp::start_in(folder, &with_tiny(&[])).await;
    assert_eq!(app.get("/grains/other").await.ok()["text"], "hello");
    assert_eq!(app.post("/grains/count", json!({})).await.ok()["count"], 1);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_health_needs_a_key_gets_one() {
    let keys = with_keys(&[key_entry("probe", &["read"], "")]);
    let app = TestApp::start_with(&format!("{keys}open = []\n{}", with_tiny(&[]))).await;
    let folder = folder_with("");
    let file = folder.path().join("probe.key");
    fs_err::write(&file, secret("probe")).expect("written");
    let url = app.url().to_owned();
    let without = health(folder.path(), &["--url", &url], &[]);
    assert_eq!(without.status.code(), Some(1));
    assert!(said(&without).contains("--api-key-file"), "{}", said(&without));
    let file = file.to_str().expect("UTF-8");
    let with = health(folder.path(), &["--url", &url, "--api-key-file", file], &[]);
    assert_eq!(with.status.code(), Some(0), "{}", said(&with));
    let with = health(folder.path(), &["--url", &url], &[("GRANARY_API_KEY_FILE", file)]);
    assert_eq!(with.status.code(), Some(0), "{}", said(&with));
}

#[test]
fn a_server_that_stands_still_is_not_ready() {
    let folder = folder_with(&with_tiny(&[]));
    let (process, url) = Process::serve(folder.path(), &[]);
    process.signal(Signal::STOP);
    let output = health(folder.path(), &["--url", &url], &[]);
    process.signal(Signal::CONT);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("has not said within 5 s how it is"), "{}", said(&output));
    process.stop();
}
