//! Spaces are recorded, and a model that makes another one, or other numbers, writes no grains until that is accepted.

use std::path::Path;
use std::process::Command;

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tempfile::TempDir;

use crate::helpers::{Caller, Process, TINY, TestApp, entry_of, folder_with, send, test_model, with_tiny};

/// A copy of `tiny` whose files a test may change, and a configuration in which it is the active model.
struct OwnModel(TempDir);

impl OwnModel {
    fn new() -> Self {
        let folder = TempDir::new().expect("a folder");
        let tiny = test_model(TINY);
        for file in ["onnx/model.onnx", "tokenizer.json", "config.json", "modules.json", "1_Pooling/config.json"] {
            let target = folder.path().join(file);
            fs_err::create_dir_all(target.parent().expect("a parent")).expect("made");
            fs_err::copy(tiny.join(file), target).expect("copied");
        }
        Self(folder)
    }

    fn toml(&self, settings: &str) -> String {
        let path = self.0.path().display();
        format!("[ai]\nmodel_name = \"own\"\n[[ai.additional_models]]\nname = \"own\"\npath = \"{path}\"\n{settings}")
    }

    fn change(&self, file: &str, from: &str, to: &str) {
        let path = self.0.path().join(file);
        let text = fs_err::read_to_string(&path).expect("text");
        assert!(text.contains(from), "{file} has no {from}");
        fs_err::write(&path, text.replacen(from, to, 1)).expect("written");
    }
}

async fn load(app: &TestApp) -> Value {
    app.post("/models/own/load", json!({})).await.ok()
}

fn space(model: &Value) -> String {
    model["space"].as_str().expect("a space").to_owned()
}

#[tokio::test]
async fn spaces_are_listed_with_what_makes_them() {
    let app = TestApp::start_with(&with_tiny(&["tiny-cls"])).await;
    let first = app.post("/models/tiny/load", json!({})).await.ok();
    app.post("/models/tiny-cls/load", json!({})).await.ok();
    let all = app.get("/spaces").await.ok();
    let spaces = all["spaces"].as_array().expect("spaces");
    assert_eq!(spaces.len(), 2);
    let of_tiny = spaces.iter().find(|space| space["models"] == json!(["tiny"])).expect("listed");
    assert_eq!((&of_tiny["id"], &of_tiny["fingerprint"]), (&first["space"], &first["fingerprint"]));
    assert_eq!((&of_tiny["dimensions"], &of_tiny["manifest"]["pooling"]), (&json!(32), &json!("mean")));
    let class = of_tiny["numeric_class"].as_str().expect("a class");
    assert!(class.contains("float") && class.contains("ONNX Runtime 1."), "{class}");
    assert_eq!(of_tiny["unloaded_models"], json!([]));
    app.post("/models/tiny-cls/unload", json!({})).await.ok();
    let app = app.restart_with(&with_tiny(&["tiny-cls"])).await;
    let all = app.get("/spaces").await.ok();
    let spaces = all["spaces"].as_array().expect("spaces");
    assert_eq!(spaces.len(), 2, "what was recorded stays");
    let unloaded = spaces.iter().find(|space| space["unloaded_models"] == json!(["tiny-cls"])).expect("listed");
    assert_eq!(unloaded["models"], json!([]));
    app.stop().await;
}

#[tokio::test]
async fn spaces_are_listed_and_declared_by_command() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let granary = async |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_granary"));
        command.arg("spaces").args(arguments).args(["--url", app.url()]).env_clear();
        let output = tokio::task::spawn_blocking(move || command.output().expect("run")).await.expect("no panic");
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8"))
    };
    let space = app.post("/grains", json!({"text": "wheat"})).await.ok()["meta"]["space"].clone();
    let (code, said) = granary(&["declare", "elsewhere", "3"]).await;
    let declared = said.trim_end();
    assert_eq!((code, declared.len()), (Some(0), 16), "{said}");
    let (_, list) = granary(&["list"]).await;
    let rows: Vec<Vec<&str>> = list.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    let of_tiny = [space.as_str().expect("a space"), "tiny", "32", "1"];
    // Of those of one second either may come first.
    let of_declared = [declared, "elsewhere", "3", "0"];
    assert!(
        rows.len() == 2 && rows.iter().any(|row| *row == of_tiny) && rows.iter().any(|row| *row == of_declared),
        "{list}"
    );
    let (code, said) = granary(&["declare", "elsewhere", "0"]).await;
    assert!(code == Some(1) && said.starts_with("granary: ") && said.contains("dimensions"), "{said}");
    app.stop().await;
}

#[tokio::test]
async fn changed_files_make_a_new_space_that_waits_to_be_accepted() {
    let own = OwnModel::new();
    let app = TestApp::start_with(&own.toml("")).await;
    let before = load(&app).await;
    assert_eq!(before["grain_writes"], json!({"allowed": true, "reason": null}));

    // One byte of the tokenizer: a word of the vocabulary that no test uses.
    own.change("tokenizer.json", "\"granary\"", "\"granarx\"");
    let app = app.restart_with(&own.toml("")).await;
    let after = load(&app).await;
    assert_ne!(space(&after), space(&before));
    assert_eq!(after["grain_writes"]["allowed"], false);
    let reason = after["grain_writes"]["reason"].as_str().expect("a reason");
    assert!(reason.contains(&space(&before)) && reason.contains("`POST /models/own/accept`"), "{reason}");
    let ready = app.get("/health/ready").await.ok();
    assert_eq!(ready["grain_writes"], after["grain_writes"], "embedding goes on, and readiness says what does not");
    app.post("/embed", json!({"inputs": "hello"})).await.ok();

    let other = app.post("/models/own/accept", json!({"space": space(&before)})).await.problem();
    assert_eq!((other.0, other.1.as_str()), (412, "space_mismatch"));
    let accepted = app.post("/models/own/accept", json!({"space": space(&after)})).await.ok();
    assert_eq!(accepted["grain_writes"]["allowed"], true);
    let app = app.restart_with(&own.toml("")).await;
    assert_eq!(load(&app).await["grain_writes"]["allowed"], true, "it is remembered");

    own.change("tokenizer.json", "\"granarx\"", "\"granary\"");
    let app = app.restart_with(&own.toml("")).await;
    let back = load(&app).await;
    assert_eq!((space(&back), &back["grain_writes"]["allowed"]), (space(&before), &json!(false)));
    app.stop().await;
}

#[tokio::test]
async fn a_model_that_may_not_write_grains_is_not_switched_to_with_them() {
    let own = OwnModel::new();
    let app = TestApp::start_with(&own.toml(&entry_of(TINY))).await;
    load(&app).await;
    app.put("/models/active", json!({"name": TINY})).await.ok();
    own.change("tokenizer.json", "\"granary\"", "\"granarx\"");
    app.post("/models/own/unload", json!({})).await.ok();
    let (status, code, detail) = app.put("/models/active", json!({"name": "own", "reembed": true})).await.problem();
    assert_eq!((status, code.as_str()), (409, "conflict"), "{detail}");
    assert!(detail.contains("`POST /models/own/accept`"), "{detail}");
    assert_eq!(app.get("/models/active").await.ok()["name"], TINY, "nothing has changed");
    assert_eq!(app.get("/reembeddings").await.ok()["reembeddings"], json!([]));
    app.post("/models/own/accept", json!({})).await.ok();
    app.put("/models/active", json!({"name": "own", "reembed": true})).await.ok();
    app.stop().await;
}

#[tokio::test]
async fn a_weight_file_that_was_replaced_under_the_same_name_waits_too() {
    let own = OwnModel::new();
    let app = TestApp::start_with(&own.toml("")).await;
    let before = load(&app).await;
    // The running server learns of it at the next load, without a restart.
    let weights = test_model("tiny-max").join("onnx/model.onnx");
    fs_err::copy(weights, own.0.path().join("onnx/model.onnx")).expect("copied");
    app.post("/models/own/unload", json!({})).await.ok();
    let after = load(&app).await;
    assert_ne!(space(&after), space(&before));
    assert_eq!(after["grain_writes"]["allowed"], false);
    let accepted = app.post("/models/own/accept", json!({})).await.ok();
    assert_eq!(accepted["grain_writes"]["allowed"], true);
    let all = app.get("/spaces").await.ok();
    for (space_id, models) in [(space(&before), json!([])), (space(&after), json!(["own"]))] {
        let recorded = all["spaces"].as_array().expect("spaces").iter().find(|space| space["id"] == space_id.as_str());
        assert_eq!(recorded.expect("both are recorded")["models"], models, "{space_id}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_prompt_and_a_setting_make_other_spaces_and_a_provider_does_not() {
    let own = OwnModel::new();
    let mut spaces = Vec::new();
    for settings in ["", "max_tokens = 64\n", "prompts = { query = \"q: \" }\n", "prompts = { query = \"q; \" }\n"] {
        let app = TestApp::start_with(&own.toml(settings)).await;
        spaces.push(space(&load(&app).await));
        app.stop().await;
    }
    let before = spaces.clone();
    spaces.sort_unstable();
    spaces.dedup();
    assert_eq!(spaces.len(), 4, "{before:?}");
    for provider in ["cpu", "auto"] {
        let app = TestApp::start_with(&own.toml(&format!("[engine]\nprovider = \"{provider}\"\n"))).await;
        assert_eq!(space(&load(&app).await), before[0], "{provider}");
        app.stop().await;
    }
}

/// Replaces the recorded canaries by those of another model, as if this one's numbers had moved.
async fn move_canaries(database: &Path) {
    let mut connection = SqliteConnectOptions::new().filename(database).connect().await.expect("open");
    let changed = sqlx::query("UPDATE spaces SET canaries = randomblob(length(canaries)), numeric_class = 'another'");
    assert_eq!(changed.execute(&mut connection).await.expect("written").rows_affected(), 1);
    connection.close().await.expect("closed");
}

#[tokio::test]
async fn numbers_that_moved_under_an_unchanged_fingerprint_are_caught() {
    let own = OwnModel::new();
    let app = TestApp::start_with(&own.toml("")).await;
    let before = load(&app).await;
    let folder = app.stop_and_keep().await;
    move_canaries(&folder.path().join("granary.db")).await;

    let app = TestApp::start_in(folder, &own.toml("")).await;
    let after = load(&app).await;
    assert_eq!(space(&after), space(&before));
    let reason = after["grain_writes"]["reason"].as_str().expect("a reason");
    assert!(reason.contains("its vectors have moved") && reason.contains("another"), "{reason}");
    let ready = app.get("/health/ready").await.ok();
    assert!(ready["grain_writes"]["reason"].as_str().is_some_and(|text| text.contains("have moved")), "{ready}");

    let refused = app.post("/models/own/accept", json!(null)).await.problem();
    assert_eq!((refused.0, refused.1.as_str()), (409, "conflict"));
    let accepted = app.post("/models/own/accept", json!({"numerics": true})).await.ok();
    assert_eq!(accepted["grain_writes"], json!({"allowed": true, "reason": null}));
    let app = app.restart_with(&own.toml("")).await;
    assert_eq!(load(&app).await["grain_writes"]["allowed"], true);
    app.stop().await;
}

/// How many texts a model has found in the embedding cache, and how many not.
async fn looked_up(app: &Caller, model: &str) -> (u64, u64) {
    let text = app.get("/metrics").await.text;
    let count = |what: &str| {
        let series = format!("granary_embedding_cache_{what}_total{{model=\"{model}\"}} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&series));
        value.map_or(0, |number| number.parse::<u64>().expect("a number"))
    };
    (count("hits"), count("misses"))
}

#[tokio::test]
async fn a_model_whose_numbers_moved_shares_no_vectors_with_others_of_its_space_until_they_are_accepted() {
    let own = OwnModel::new();
    let path = own.0.path().display();
    let twin = format!("[[ai.additional_models]]\nname = \"twin\"\npath = \"{path}\"\n");
    let folder = folder_with(&format!("{}{twin}[models]\nembedding_cache = \"1MiB\"\n", own.toml("")));
    let (_process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url);
    let embed = |model: &str| app.post("/embed", json!({"inputs": "hello", "model": model}));
    app.post("/models/own/load", json!({})).await.ok();
    embed("own").await.ok();
    assert_eq!(looked_up(&app, "own").await, (0, 1));

    move_canaries(&folder.path().join("granary.db")).await;
    let moved = app.post("/models/twin/load", json!({})).await.ok();
    assert_eq!(moved["grain_writes"]["allowed"], false);
    embed("twin").await.ok();
    assert_eq!(looked_up(&app, "twin").await, (0, 0), "it neither takes from the cache nor adds to it");

    app.post("/models/own/unload", json!({})).await.ok();
    let moved = app.post("/models/own/load", json!({})).await.ok();
    assert_eq!(moved["grain_writes"]["allowed"], false);
    app.post("/models/own/accept", json!({"numerics": true})).await.ok();
    let twin = app.get("/models/twin").await.ok();
    assert_eq!(twin["grain_writes"]["allowed"], true, "it makes what is recorded now");
    embed("own").await.ok();
    assert_eq!(looked_up(&app, "own").await, (0, 2), "what was kept is forgotten");
    embed("twin").await.ok();
    assert_eq!(looked_up(&app, "twin").await, (1, 0));
}

#[tokio::test]
async fn models_of_one_space_share_what_is_kept_only_where_it_is_rounded_alike() {
    let own = OwnModel::new();
    let path = own.0.path().display();
    let entry = |name: &str, provider: &str| {
        format!("[[ai.additional_models]]\nname = \"{name}\"\npath = \"{path}\"\nprovider = \"{provider}\"\n")
    };
    let entries = format!("{}{}", entry("exact", "cpu"), entry("fast", "openvino"));
    let folder = folder_with(&format!("{}{entries}[models]\nembedding_cache = \"1MiB\"\n", with_tiny(&[])));
    let (_process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url);
    let mut providers = Vec::new();
    for name in ["exact", "fast"] {
        app.post("/embed", json!({"inputs": "hello", "model": name})).await.ok();
        providers.push(app.get(&format!("/models/{name}")).await.ok()["provider"]["name"].clone());
    }
    // Where there is no OpenVINO, both run on the CPU's.
    let expected = if providers[0] == providers[1] { (1, 0) } else { (0, 1) };
    assert_eq!(looked_up(&app, "fast").await, expected, "{providers:?}");
}

/// Makes a space the one that grains of `tiny-cls` are written to, behind the back of the server.
async fn accept_unseen(database: &Path, space: &str) {
    let mut connection = SqliteConnectOptions::new().filename(database).connect().await.expect("open");
    let changed = sqlx::query("UPDATE accepted_spaces SET space = ? WHERE model = 'tiny-cls'").bind(space);
    assert_eq!(changed.execute(&mut connection).await.expect("written").rows_affected(), 1);
    connection.close().await.expect("closed");
}

/// As when a model is loaded anew from other files and accepted while a grain that it has embedded waits to be written.
#[tokio::test]
async fn a_grain_is_not_written_to_a_space_that_its_model_has_left_meanwhile() {
    let folder = TempDir::new().expect("a folder");
    let database = folder.path().join("granary.db");
    let app = TestApp::start_in(folder, &with_tiny(&["tiny-cls"])).await;
    let [other, own] = [
        space(&app.post("/models/tiny/load", json!({})).await.ok()),
        space(&app.post("/models/tiny-cls/load", json!({})).await.ok()),
    ];
    let grain = |id: &str| json!({"id": id, "text": "wheat", "model": "tiny-cls"});
    app.post("/grains", grain("before")).await.ok();

    accept_unseen(&database, &other).await;
    let answer = app.post("/grains", grain("meanwhile")).await;
    assert_eq!(answer.header("retry-after"), "1");
    let (status, code, detail) = answer.problem();
    assert_eq!((status, code.as_str()), (409, "conflict"), "{detail}");
    assert!(detail.contains("the model of the vectors was changed at each of several tries"), "{detail}");
    let imported = app.request(Method::POST, "/grains/import").header("content-type", "application/x-ndjson");
    let imported = send(imported.body(format!("{}\n", grain("imported")))).await;
    assert!(
        imported.text.contains("at each of several tries") && imported.text.contains("\"created\":0"),
        "{imported:?}"
    );
    let brought = json!({"id": "brought", "text": "rye", "vector": vec![1.0; 32], "space": own});
    app.post("/grains", brought).await.ok();

    accept_unseen(&database, &own).await;
    app.post("/grains", grain("after")).await.ok();
    assert_eq!(app.post("/grains/count", json!({})).await.ok()["count"], 3);
    app.stop().await;
}
