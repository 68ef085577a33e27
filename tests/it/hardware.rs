//! The machine, the model that suits it best, and `auto`, which takes that one.

use std::ops::RangeInclusive;

use serde_json::{Value, json};

use crate::helpers::{MINILM, TestApp, entry_of, vectors_of};

fn of<'a>(hardware: &'a Value, name: &str) -> &'a Value {
    let models = hardware["models"].as_array().expect("models");
    models.iter().find(|model| model["name"] == name).unwrap_or_else(|| panic!("no {name}: {hardware}"))
}

fn reasons(model: &Value) -> String {
    model["reasons"].as_array().expect("reasons").iter().filter_map(Value::as_str).collect::<Vec<_>>().join("; ")
}

/// How many cores a process may be found to have: at least what the standard library makes of affinity and quota, and no
/// more than the kernel lets it run on.
fn usable_cores() -> RangeInclusive<u64> {
    let status = fs_err::read_to_string("/proc/self/status").expect("the kernel's word");
    let allowed =
        status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("a list of processors");
    let number = |text: &str| text.trim().parse::<u64>().expect("the number of a processor");
    let n_processors = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        number(last) - number(first) + 1
    };
    let least = std::thread::available_parallelism().expect("a count").get() as u64;
    least..=allowed.split(',').map(n_processors).sum()
}

#[tokio::test]
async fn the_machine_is_shown_with_every_model_and_the_reasons_for_its_rank() {
    let app = TestApp::start().await;
    let hardware = app.get("/hardware").await.ok();
    let machine = &hardware["machine"];
    assert_eq!(machine["architecture"], std::env::consts::ARCH);
    let cores = machine["cores"].as_u64();
    assert!(cores.is_some_and(|cores| usable_cores().contains(&cores)), "{machine}");
    let memory = &machine["memory"];
    let bytes = |key: &str| memory[key].as_u64().unwrap_or_else(|| panic!("no {key}: {memory}"));
    assert!(bytes("limit_bytes") >= bytes("available_bytes") && bytes("available_bytes") > bytes("for_models_bytes"));
    let runtime = &hardware["runtime"];
    assert!(runtime["version"].as_str().is_some_and(|version| version.starts_with("1.")), "{runtime}");
    assert_eq!((&runtime["providers"][0], &runtime["failure"]), (&json!("cpu"), &json!(null)));

    // Of the built-in models, set-up installs one.
    assert_eq!((&hardware["auto"], &hardware["active"]), (&json!(MINILM), &json!(MINILM)));
    assert_eq!(hardware["models"][0]["name"], MINILM);
    let chosen = of(&hardware, MINILM);
    assert_eq!((&chosen["available"], &chosen["fits"]), (&json!(true), &json!(true)), "{chosen}");
    assert!(reasons(chosen).contains("that models may take"), "{chosen}");
    let absent = of(&hardware, "nomic-embed-text-v1.5");
    assert_eq!(absent["available"], true);
    assert!(reasons(absent).contains("not there yet, and can be fetched"), "{absent}");
    assert!(reasons(of(&hardware, "bert-base-uncased")).contains("not trained for embeddings"), "{hardware}");
    app.stop().await;
}

#[tokio::test]
async fn auto_is_chosen_at_the_first_start_and_stays_until_somebody_chooses_again() {
    // Of size large, it is the best that is there; later it is not.
    let large = format!("{}size = \"large\"\n", entry_of("tiny-cls"));
    let auto = "[ai]\nmodel_name = \"auto\"\n";
    let app = TestApp::start_with(&format!("{auto}{large}")).await;
    assert_eq!(app.get("/models/active").await.ok()["name"], "tiny-cls");
    let first = app.post("/embed", json!({"inputs": "hello"})).await;
    assert_eq!((vectors_of(&first.ok())[0].len(), first.header("x-model")), (32, "tiny-cls"));

    let small = large.replace("large", "small");
    let app = app.restart_with(&format!("{auto}{small}")).await;
    assert_eq!(app.get("/models/active").await.ok()["name"], "tiny-cls", "what was chosen once stays");

    let app = app.restart_with(auto).await;
    assert_eq!(app.get("/models/active").await.ok()["name"], MINILM, "what is not known any more cannot stay");

    let app = app.restart_with(&format!("{auto}{large}")).await;
    let switch = app.put("/models/active", json!({"name": "Auto"})).await.ok();
    assert_eq!((&switch["name"], &switch["previous"]), (&json!("tiny-cls"), &json!(MINILM)));
    app.stop().await;
}

#[tokio::test]
async fn auto_takes_no_model_that_is_disabled() {
    // Of size large, it would be the best that is there.
    let large = format!("{}size = \"large\"\n", entry_of("tiny-cls"));
    let app = TestApp::start_with(&large).await;
    let disable = async |app: &TestApp, name: &str| {
        app.post(&format!("/models/{name}/unload"), json!({"disable": true})).await.ok();
    };
    disable(&app, "tiny-cls").await;
    let app = app.restart_with(&format!("[ai]\nmodel_name = \"auto\"\n{large}")).await;
    assert_eq!(app.get("/models/active").await.ok()["name"], MINILM, "nor is it at the first start");
    let hardware = app.get("/hardware").await.ok();
    assert_eq!(hardware["auto"], MINILM);
    let refused = of(&hardware, "tiny-cls");
    assert_eq!(refused["available"], false);
    assert!(reasons(refused).contains("it is disabled until it is loaded by hand"), "{refused}");
    assert_eq!(app.put("/models/active", json!({"name": "auto"})).await.ok()["name"], MINILM);
    assert_eq!(app.get("/models/tiny-cls").await.ok()["disabled"], true);

    for model in app.get("/models").await.ok()["models"].as_array().expect("models") {
        disable(&app, model["name"].as_str().expect("a name")).await;
    }
    let (status, code, detail) = app.put("/models/active", json!({"name": "auto"})).await.problem();
    assert_eq!((status, code.as_str()), (503, "model_disabled"), "{detail}");
    assert_eq!(app.get("/hardware").await.ok()["auto"], Value::Null);
    let active = app.get("/models/active").await.ok();
    assert_eq!((&active["name"], &active["disabled"]), (&json!(MINILM), &json!(true)));
    app.stop().await;
}

#[tokio::test]
async fn the_operator_sets_how_many_cores_are_used_of_those_there_are() {
    for (setting, expected) in [(1, 1..=1), (1024, usable_cores())] {
        let app = TestApp::start_with(&format!("[engine]\ncores = {setting}\n")).await;
        let (hardware, info) = (app.get("/hardware").await.ok(), app.get("/info").await.ok());
        for shown in [&hardware["machine"]["cores"], &info["tokenization_workers"]] {
            assert!(shown.as_u64().is_some_and(|cores| expected.contains(&cores)), "{setting}: {shown}");
        }
        app.stop().await;
    }
}

#[tokio::test]
async fn with_a_single_model_auto_chooses_among_all_and_keeps_only_that_one() {
    let large = format!("{}size = \"large\"\n", entry_of("tiny-cls"));
    let toml = format!("[ai]\nmodel_name = \"auto\"\nmulti_model_enabled = false\n{large}");
    let app = TestApp::start_with(&toml).await;
    let listed = app.get("/models").await.ok();
    assert_eq!((listed["models"].as_array().map(Vec::len), &listed["active"]), (Some(1), &json!("tiny-cls")));
    app.stop().await;
}

#[tokio::test]
async fn auto_takes_only_a_model_whose_vectors_have_the_expected_length() {
    let large = format!("{}size = \"large\"\n", entry_of("tiny-cls"));
    let app = TestApp::start_with(&format!("[ai]\nmodel_name = \"auto\"\nembedding_dim = 384\n{large}")).await;
    let hardware = app.get("/hardware").await.ok();
    assert_eq!((&hardware["auto"], &hardware["active"]), (&json!(MINILM), &json!(MINILM)));
    let refused = of(&hardware, "tiny-cls");
    assert_eq!(refused["available"], false);
    assert!(reasons(refused).contains("its vectors have 32 numbers, and `ai.embedding_dim` is 384"), "{refused}");
    app.stop().await;
}
