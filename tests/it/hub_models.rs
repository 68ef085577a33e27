//! A server whose models come from a hub: pulled, followed, killed in the middle, and checked at each load.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::helpers::{
    Failing, Process, REPOSITORY, StandInHub, StandInProxy, TINY, client, files_of, own_data_dir, send, sha256,
    test_model, until, until_seen, vectors_of, with_tiny,
};

const COMMIT: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// A data directory of its own with the runtime library and `tiny`, and a cache.
fn folder() -> TempDir {
    own_data_dir(&format!("{}[models]\nfailed_load_cooldown = \"0s\"\n", with_tiny(&[])))
}

fn start(folder: &Path, hub: &str, others: &[(&str, &str)]) -> Process {
    let cache = folder.join("cache").display().to_string();
    let variables = [&[("HF_ENDPOINT", hub), ("HF_HUB_CACHE", cache.as_str())], others].concat();
    Process::start(folder, &["serve", "--port", "0", "--data-dir", "."], &variables)
}

fn serve(folder: &Path, hub: &str, others: &[(&str, &str)]) -> (Process, String) {
    let mut process = start(folder, hub, others);
    let url = process.wait_until_serving();
    (process, url)
}

/// Runs `granary models …` against a server, off this test's thread: the hub runs on it.
async fn models(url: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_granary"));
    command.args(["models", "--url", url]).args(arguments).env_clear();
    tokio::task::spawn_blocking(move || command.output().expect("it runs")).await.expect("no panic")
}

async fn said(url: &str, arguments: &[&str]) -> String {
    let output = models(url, arguments).await;
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

async fn hub() -> StandInHub {
    StandInHub::start(files_of(TINY)).await
}

async fn model(url: &str, name: &str) -> Value {
    send(client().get(format!("{url}/models/{name}"))).await.ok()
}

#[tokio::test]
async fn a_repository_is_pulled_and_is_a_model_like_any_other() {
    let (hub, folder) = (hub().await, folder());
    let (process, url) = serve(folder.path(), &hub.url, &[]);
    assert_eq!(said(&url, &["pull", REPOSITORY, "--name", "pulled"]).await, "pulled is ready\n");
    let pulled = model(&url, "pulled").await;
    assert_eq!(
        pulled["hub"],
        json!({"repository": REPOSITORY, "revision": "main", "file": "onnx/model.onnx", "commit": COMMIT})
    );
    assert_eq!(pulled["space"], send(client().post(format!("{url}/models/tiny/load"))).await.ok()["space"]);
    let info = send(client().get(format!("{url}/models/pulled/info"))).await.ok();
    assert_eq!((&info["model_id"], &info["model_sha"]), (&json!(REPOSITORY), &json!(COMMIT)));
    assert_eq!(said(&url, &["pull", REPOSITORY]).await, "pulled is ready\n", "a repository is known by its id");
    let other = models(&url, &["pull", REPOSITORY, "--revision", "other"]).await;
    let stderr = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(stderr.starts_with("granary: the server has `pulled` already, with another revision: "), "{stderr}");
    let other = models(&url, &["pull", TINY, "--name", "small"]).await;
    let stderr = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(stderr.starts_with("granary: the server has `tiny` already, with another name: "), "{stderr}");
    let again = ["pull", REPOSITORY, "--name", "again", "--revision", "main"];
    assert_eq!(said(&url, &again).await, "again is ready\n", "another model of the same repository");
    for (repeated, name) in [
        (["pull", REPOSITORY, "--name", "again"], "again"),
        (["pull", REPOSITORY, "--name", "Again"], "again"),
        (["pull", REPOSITORY, "--name", "PULLED"], "pulled"),
        (["pull", TINY, "--name", "Tiny"], TINY),
    ] {
        assert_eq!(said(&url, &repeated).await, format!("{name} is ready\n"), "it is there already: {repeated:?}");
    }
    for (repository, name) in [("granary/other", "again"), (REPOSITORY, TINY)] {
        let other = models(&url, &["pull", repository, "--name", name]).await;
        let stderr = String::from_utf8_lossy(&other.stderr).into_owned();
        let taken = format!("granary: the server has `{name}` already, and that is no model of this repository");
        assert!(stderr.starts_with(&taken), "{stderr}");
    }
    assert_eq!(said(&url, &["delete", "again"]).await, "again is deleted\n");
    let list = said(&url, &["list"]).await;
    assert!(list.lines().any(|line| line.starts_with("pulled ") && line.contains("ready")), "{list}");
    assert_eq!(said(&url, &["activate", "pulled"]).await, "pulled is active; before it was tiny\n");
    assert_eq!(said(&url, &["activate", "tiny"]).await, "tiny is active; before it was pulled\n");
    assert_eq!(said(&url, &["unload", "pulled", "--disable"]).await, "pulled is unloaded\n");
    assert_eq!(said(&url, &["load", "pulled"]).await, "pulled is ready\n");
    drop(process);

    // The hub is gone, and what is here is enough.
    let nowhere = "http://127.0.0.1:9";
    let (process, url) = serve(folder.path(), nowhere, &[]);
    send(client().post(format!("{url}/models/pulled/embed")).json(&json!({"inputs": "a"}))).await.ok();
    assert_eq!(said(&url, &["delete", "pulled"]).await, "pulled is deleted\n");
    let unknown = models(&url, &["show", "pulled"]).await;
    let stderr = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(!unknown.status.success() && stderr.starts_with("granary: no model is called `pulled`"), "{stderr}");
    drop(process);
    let gone = models(nowhere, &["list"]).await;
    assert!(String::from_utf8_lossy(&gone.stderr).contains("no Granary answers at"), "{gone:?}");
}

async fn register(url: &str, body: Value) {
    send(client().post(format!("{url}/models")).json(&body)).await.ok();
}

fn register_body() -> Value {
    json!({"name": "pulled", "repository": REPOSITORY})
}

/// Most repositories have a model's weights within its `.onnx` file.
#[tokio::test]
async fn weights_within_a_pulled_graph_stay_in_its_file_and_make_the_same_vectors() {
    let providers: &[&str] = if cfg!(target_arch = "x86_64") { &["cpu", "openvino"] } else { &["cpu"] };
    let path = test_model("minilm-1-layer").display().to_string();
    let entry = |provider: &str, name: &str, from: &str, source: &str| {
        format!(
            "[[ai.additional_models]]\nname = \"{name}-{provider}\"\n{from} = \"{source}\"\nprovider = \"{provider}\"\n"
        )
    };
    let entries = providers.iter().flat_map(|provider| {
        [entry(provider, "whole", "path", &path), entry(provider, "pulled", "repository", REPOSITORY)]
    });
    let folder = own_data_dir(&(with_tiny(&[]) + &entries.collect::<String>()));
    let hub = StandInHub::start(files_of("minilm-1-layer")).await;
    let (process, url) = serve(folder.path(), &hub.url, &[]);
    let blob = sha256(&files_of("minilm-1-layer")["onnx/model.onnx"]);
    let inputs = ["hello", "vectors of different models never mix"];
    for provider in providers {
        let mut vectors = Vec::new();
        for (name, is_mapped) in [(format!("whole-{provider}"), false), (format!("pulled-{provider}"), true)] {
            let loaded = send(client().post(format!("{url}/models/{name}/load"))).await.ok();
            assert_eq!((&loaded["state"], &loaded["provider"]["name"]), (&json!("ready"), &json!(provider)));
            let answer =
                send(client().post(format!("{url}/models/{name}/embed")).json(&json!({"inputs": inputs}))).await;
            vectors.push(vectors_of(&answer.ok()));
            let (mapped, resident) = process.mapped_bytes(&blob);
            assert_eq!(mapped > 0, is_mapped, "{name}");
            assert!(resident <= mapped / 4 * 3, "{name}: {resident} of {mapped} bytes");
            send(client().post(format!("{url}/models/{name}/unload"))).await.ok();
        }
        assert_eq!(vectors[0], vectors[1], "{provider}");
    }
}

#[tokio::test]
async fn a_download_is_followed_called_off_and_goes_on() {
    let (hub, folder) = (hub().await, folder());
    hub.fail(Failing { slow: Some(Duration::from_millis(150)), ..Failing::default() });
    let (_process, url) = serve(folder.path(), &hub.url, &[]);
    register(&url, register_body()).await;
    let load = send(client().post(format!("{url}/models/pulled/load")));
    let follow = async {
        let is_shown = |model: &Value| !model["download"].is_null();
        let shown = until_seen("the download is shown", async || model(&url, "pulled").await, is_shown).await;
        assert_eq!(shown["state"], "downloading");
        assert!(shown["download"]["total_bytes"].as_u64() > Some(0), "{shown}");
        // A request that waits for it begins it anew, as for any model that is unloaded.
        send(client().post(format!("{url}/models/pulled/unload")).json(&json!({}))).await.ok();
        hub.fail(Failing::default());
        let events = send(client().get(format!("{url}/models/pulled/events"))).await;
        assert_eq!(events.content_type(), "text/event-stream");
        events.text
    };
    let (loaded, events) = tokio::join!(load, follow);
    assert_eq!(loaded.ok()["state"], "ready");
    assert!(events.contains("event: model\ndata: {"), "{events}");
    assert!(events.trim_end().ends_with('}'), "{events}");
}

#[tokio::test]
async fn a_file_that_comes_wrong_is_not_fetched_again_at_once_but_by_hand() {
    let (hub, folder) = (hub().await, folder());
    let file = "onnx/model.onnx";
    hub.fail(Failing { wrong_bytes: Some(file.to_owned()), ..Failing::default() });
    let (_process, url) = serve(folder.path(), &hub.url, &[]);
    register(&url, register_body()).await;
    for _ in 0..3 {
        let refused = send(client().post(format!("{url}/models/pulled/embed")).json(&json!({"inputs": "a"}))).await;
        assert!(refused.text.contains("came with wrong contents"), "{}", refused.text);
        let seconds: u64 = refused.header("retry-after").parse().expect("a number");
        assert!((31..=60).contains(&seconds), "{seconds}");
    }
    assert_eq!(hub.sent_bytes(), files_of(TINY)[file].len(), "it was sent once");
    hub.fail(Failing::default());
    assert_eq!(send(client().post(format!("{url}/models/pulled/load"))).await.ok()["state"], "ready");
}

#[tokio::test]
async fn a_server_downloads_through_the_proxy_that_its_variables_name() {
    let (hub, folder) = (hub().await, folder());
    let proxy = StandInProxy::start(&hub.url).await;
    // Nobody but the proxy knows this host.
    let (_process, url) = serve(folder.path(), "http://hub.invalid", &[("http_proxy", proxy.url.as_str())]);
    register(&url, register_body()).await;
    assert_eq!(send(client().post(format!("{url}/models/pulled/load"))).await.ok()["state"], "ready");
    let asked = proxy.take_asked();
    assert!(asked.iter().any(|line| line.starts_with("GET http://hub.invalid/api/models/")), "{asked:?}");
}

#[tokio::test]
async fn nothing_is_downloaded_that_no_runtime_library_could_load() {
    let (hub, folder) = (hub().await, folder());
    let (_process, url) = serve(folder.path(), &hub.url, &[("ORT_DYLIB_PATH", "/nowhere/lib.so")]);
    register(&url, register_body()).await;
    let (status, _, sentence) = send(client().post(format!("{url}/models/pulled/load"))).await.problem();
    assert_eq!(status, 503);
    assert!(sentence.contains("no ONNX Runtime library at `/nowhere/lib.so`: run `make setup`"), "{sentence}");
    assert_eq!(hub.seen().len(), 0, "the hub is not asked");
}

#[tokio::test]
async fn a_kill_in_the_middle_of_a_download_costs_nothing_but_the_time() {
    let mut files = files_of(TINY);
    // Some megabytes of documentation inside the model: `doc_string`, field 6 of a model.
    let model_file = files.get_mut("onnx/model.onnx").expect("a model");
    model_file.extend([6 << 3 | 2, 0x80, 0x80, 0x80, 0x02]);
    model_file.extend(vec![b'x'; 4 << 20]);
    let (hub, folder) = (StandInHub::start(files).await, folder());
    hub.fail(Failing { slow: Some(Duration::from_millis(5)), ..Failing::default() });
    let (mut process, url) = serve(folder.path(), &hub.url, &[]);
    register(&url, register_body()).await;
    let load = client().post(format!("{url}/models/pulled/load")).send();
    let kill = async {
        let n_done = async || model(&url, "pulled").await["download"]["done_bytes"].as_u64();
        until("a quarter of it is there", async || n_done().await >= Some(1 << 20)).await;
        process.signal(Signal::KILL);
    };
    let (answer, ()) = tokio::join!(load, kill);
    assert!(answer.is_err());
    process.wait();

    hub.fail(Failing::default());
    let (process, url) = serve(folder.path(), &hub.url, &[]);
    assert_eq!(model(&url, "pulled").await["state"], "unloaded", "the registration is there, whole");
    send(client().post(format!("{url}/models/pulled/load"))).await.ok();
    assert!(hub.seen().iter().any(|seen| seen.range.is_some()), "it went on where it was");
    assert!(process.log().contains("unfinished download"), "{}", process.log());
}

/// The same folder, for a server that loads a model of the hub before it serves.
fn folder_with_auto_load() -> TempDir {
    let folder = folder();
    let file = folder.path().join("granary.toml");
    let toml = fs_err::read_to_string(&file).expect("a configuration");
    let entry = format!("name = \"pulled\"\nrepository = \"{REPOSITORY}\"\nauto_load = true\n");
    fs_err::write(&file, format!("{toml}load_timeout = \"50ms\"\n[[ai.additional_models]]\n{entry}")).expect("written");
    folder
}

/// The hub runs beside this test's thread, which waits for the server.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_waits_for_a_download_however_long_it_takes() {
    let (hub, folder) = (hub().await, folder_with_auto_load());
    hub.fail(Failing { slow: Some(Duration::from_millis(20)), ..Failing::default() });
    let (process, url) = serve(folder.path(), &hub.url, &[]);
    assert!(process.log().contains("the start waits for it"), "{}", process.log());
    assert_eq!(model(&url, "pulled").await["state"], "ready");
}

/// The hub runs beside this test's thread, which waits for the server.
#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_a_start_that_waits_for_a_download() {
    let (hub, folder) = (hub().await, folder_with_auto_load());
    hub.fail(Failing { slow: Some(Duration::from_hours(1)), ..Failing::default() });
    // Who was not served yet need not be sent elsewhere.
    let mut process = start(folder.path(), &hub.url, &[("GRANARY_SERVER__DRAIN_DELAY", "1h")]);
    process.wait_for("the start waits for it");
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(0), "{}", process.log());
    assert!(process.log().contains("stopped before it served"), "{}", process.log());

    hub.fail(Failing::default());
    let (_process, url) = serve(folder.path(), &hub.url, &[]);
    assert_eq!(model(&url, "pulled").await["state"], "ready");
}

#[tokio::test]
async fn a_stop_calls_a_download_off_and_begins_no_other() {
    let (hub, folder) = (hub().await, folder());
    hub.fail(Failing { slow: Some(Duration::from_mins(1)), ..Failing::default() });
    let (mut process, url) = serve(folder.path(), &hub.url, &[]);
    register(&url, register_body()).await;
    let load = send(client().post(format!("{url}/models/pulled/load")));
    let stop = async {
        until("it is downloaded", async || model(&url, "pulled").await["state"] == "downloading").await;
        process.signal(Signal::TERM);
    };
    let (refused, ()) = tokio::join!(load, stop);
    assert_eq!(refused.header("retry-after"), "5");
    let (status, code, sentence) = refused.problem();
    assert_eq!((status, code.as_str()), (503, "model_loading"));
    assert!(sentence.contains("the server is stopping"), "{sentence}");
    assert_eq!(process.wait().code(), Some(0), "{}", process.log());
    assert_eq!(process.log().matches("the download was given up").count(), 1, "{}", process.log());
}

#[tokio::test]
async fn a_file_that_changed_on_disk_is_not_loaded() {
    let (hub, folder) = (hub().await, folder());
    let (_process, url) = serve(folder.path(), &hub.url, &[]);
    register(&url, register_body()).await;
    send(client().post(format!("{url}/models/pulled/load"))).await.ok();
    send(client().post(format!("{url}/models/pulled/unload"))).await.ok();
    let snapshot = folder.path().join("cache/models--granary--tiny/snapshots").join(COMMIT);
    let tokenizer = snapshot.join("tokenizer.json");
    let text = fs_err::read_to_string(&tokenizer).expect("a tokenizer");
    fs_err::write(&tokenizer, text.replacen("\"granary\"", "\"granarx\"", 1)).expect("written");
    let refused = send(client().post(format!("{url}/models/pulled/embed")).json(&json!({"inputs": "a"}))).await;
    assert_eq!(refused.header("x-should-retry"), "false");
    let refused = refused.tei_error();
    assert_eq!((refused.0, refused.1.as_str()), (424, "Backend"));
    assert!(refused.2.contains("`tokenizer.json` has changed since it was downloaded"), "{}", refused.2);
}

#[tokio::test]
async fn what_the_hub_refuses_is_said_in_its_words() {
    let (hub, folder) = (hub().await, folder());
    let (_process, url) = serve(folder.path(), &hub.url, &[]);
    for (status, code, says) in [(401, "", "HF_TOKEN"), (404, "RepoNotFound", "has no repository")] {
        hub.fail(Failing { refuses: Some((status, code)), ..Failing::default() });
        let pulled = models(&url, &["pull", REPOSITORY, "--name", "pulled"]).await;
        let stderr = String::from_utf8_lossy(&pulled.stderr).into_owned();
        assert!(!pulled.status.success() && stderr.contains(says), "{status}: {stderr}");
        let failure = model(&url, "pulled").await["failure"].clone();
        assert_eq!(failure["permanent"], true, "{failure}");
    }
    let files: BTreeMap<_, _> = files_of(TINY);
    assert!(files.contains_key("tokenizer.json"));
}
