//! Memory comes back when a model goes, and a budget keeps models from taking more than they may.
//!
//! Short forms of the benchmark program `soak`. Each runs the binary as a process of its own: in the tests' process
//! others load models too. Without the session for lone queries, a model takes half.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::helpers::{
    Caller, MINILM, Process, TINY, cosine, folder_with, let_pass, send, until, vectors_of, with_tiny,
};

/// What a process may keep beyond a tenth: pools of the allocator that a first cycle need not have filled.
const SLACK_BYTES: u64 = 8 << 20;

struct Server {
    process: Process,
    app: Caller,
    _folder: TempDir,
}

impl Server {
    /// Serves with a tiny active model, these settings of `[models]`, and these entries.
    fn start(models: &str, entries: &str) -> Self {
        let toml = format!("[models]\n{models}\n[engine]\nquery_lane = \"off\"\n{}{entries}", with_tiny(&[]));
        let folder = folder_with(&toml);
        let (process, url) = Process::serve(folder.path(), &[]);
        Self { process, app: Caller::of(url), _folder: folder }
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        self.app.post(path, body).await.ok()
    }

    async fn embed(&self, model: &str, texts: &[&str]) -> Vec<Vec<f32>> {
        vectors_of(&self.post(&format!("/models/{model}/embed"), json!({"inputs": texts})).await)
    }

    /// What models take, by the server's own measure, once it has looked again: it does so twice in a second.
    async fn used_bytes(&self) -> f64 {
        let_pass(&self.app, Duration::from_secs(1)).await;
        self.app.metric("granary_models_memory_used_bytes").await
    }
}

#[tokio::test]
async fn memory_comes_back_in_every_cycle_of_load_and_unload() {
    let server = Server::start("", "");
    server.embed("tiny", &["hello"]).await;
    let mut after_unload = Vec::new();
    for _ in 0..5 {
        server.post(&format!("/models/{MINILM}/load"), json!({})).await;
        server.embed(MINILM, &["hello"; 16]).await;
        server.post(&format!("/models/{MINILM}/unload"), json!({})).await;
        after_unload.push(server.process.rss_bytes());
    }
    let most = after_unload[0] + after_unload[0] / 10 + SLACK_BYTES;
    // What the allocator keeps for a while differs from cycle to cycle. What is lost is lost in each.
    let last = after_unload[2..].iter().min().expect("there are some");
    assert!(*last <= most, "resident after each unload, in bytes: {after_unload:?}");
}

/// Of weights outside the `.onnx` file, a text needs rows of the embedding table, which is half of this model's.
#[tokio::test]
#[cfg(target_arch = "x86_64")]
async fn what_openvino_read_to_lay_the_weights_out_does_not_stay() {
    let entry = format!("[[ai.additional_models]]\nname = \"mapped\"\npath = \"{MINILM}\"\nprovider = \"openvino\"\n");
    let server = Server::start("", &entry);
    server.embed("mapped", &["hello world"]).await;
    let model = server.app.get("/models/mapped").await.ok();
    assert_eq!(model["provider"]["name"], "openvino");
    let (mapped, resident) = server.process.mapped_bytes("model.onnx_data");
    assert!(resident < mapped / 4 * 3, "{resident} of {mapped} bytes");
}

#[tokio::test]
async fn what_is_shown_of_memory_falls_when_the_last_model_has_gone() {
    let server = Server::start("", "");
    server.embed(MINILM, &["hello"]).await;
    let before = server.used_bytes().await;
    let unloaded = server.post(&format!("/models/{MINILM}/unload"), json!({})).await;
    assert_eq!(unloaded["state"], "unloaded");
    let after = server.used_bytes().await;
    // Its weights are more.
    assert!(after < before - f64::from(32 << 20), "{before} bytes with it and {after} without");
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn what_grains_take_is_not_there_for_models_as_soon_as_they_are_written() {
    let server = Server::start("", "");
    let budget_bytes = async || server.app.metric("granary_models_memory_budget_bytes").await;
    let before = budget_bytes().await;
    server.post("/grains", json!({"text": "hello world"})).await;
    // So few vectors take nothing on disk.
    let taken = server.app.metric("granary_index_bytes").await;
    assert!(taken > 0.0);
    let began = Instant::now();
    until("what the index takes is not there", async || before - budget_bytes().await >= taken).await;
    // Grains look after their own affairs once a minute, which is too late.
    assert!(began.elapsed() < Duration::from_secs(40), "it took {:?}", began.elapsed());
}

/// Nothing that a body brings along is kept for a sentence about it.
#[tokio::test]
async fn a_body_that_is_refused_takes_no_more_memory_than_one_that_is_read() {
    let server = Server::start("", "");
    server.embed("tiny", &["hello"]).await;
    let before = server.process.peak_rss_bytes();
    // As values that are kept, these numbers would take thirty times their length.
    let body = format!(r#"{{"inputs": "a", "x": [{}0], "priority": 1}}"#, "0,".repeat(3 << 20));
    let n_bytes = body.len() as u64;
    let request = server.app.request(Method::POST, "/embed");
    let answer = send(request.header("content-type", "application/json").body(body)).await;
    let (status, _, message) = answer.tei_error();
    assert!(status == 422 && message.contains("`priority`"), "{status}: {message}");
    let taken = server.process.peak_rss_bytes() - before;
    assert!(taken < 8 * n_bytes, "{n_bytes} bytes took {taken}");
}

/// Three models of one size.
const THREE: [&str; 3] = [MINILM, "by-cls", "by-max"];

/// The entries of the second and the third of [`THREE`].
fn entries() -> String {
    let entries = ["cls", "max"].map(|pooling| {
        format!("[[ai.additional_models]]\nname = \"by-{pooling}\"\npath = \"{MINILM}\"\npooling = \"{pooling}\"\n")
    });
    entries.concat()
}

/// The setting of a budget that has room for two of [`THREE`], and the vector of `hello world` of each.
async fn budget_for_two() -> (String, Vec<Vec<f32>>) {
    // None has to go.
    let server = Server::start("memory_budget = \"1TiB\"", &entries());
    let (mut right, mut used, mut takes) = (Vec::new(), Vec::new(), Vec::new());
    for name in THREE {
        right.extend(server.embed(name, &["hello world"]).await);
        used.push(server.used_bytes().await);
        let model = server.app.get(&format!("/models/{name}")).await.ok();
        takes.push(model["memory_bytes"].as_f64().expect("it is loaded"));
    }
    // Room for two, and for what the allocator keeps of one that has gone while another loads. The first one does not take
    // all yet that it will.
    let budget_bytes = used[0] + takes[1] + takes[2] * 0.75;
    assert!(used[1] < budget_bytes, "what one, two and three models take: {used:?}, {takes:?}");
    (format!("memory_budget = \"{budget_bytes:.0}B\""), right)
}

#[tokio::test]
async fn a_model_that_grains_need_goes_after_one_that_was_used_later() {
    let (budget, _) = budget_for_two().await;
    let server = Server::start(&budget, &entries());
    // What a model takes is an estimate, and a high one, until it has been loaded once.
    for name in THREE {
        server.embed(name, &["hello world"]).await;
    }
    // None had any when the server started.
    let needed = THREE[0];
    server.post("/grains", json!({"text": "hello world", "model": needed})).await;
    server.embed(THREE[1], &["hello world"]).await;
    server.embed(THREE[2], &["hello world"]).await;
    let state = async |model: &str| server.app.get(&format!("/models/{model}")).await.ok()["state"].clone();
    let states = (state(needed).await, state(THREE[1]).await);
    let log = server.process.log();
    assert_eq!(states, (json!("ready"), json!("unloaded")), "{log}");
    assert!(log.contains("evicting a model"), "{log}");
}

#[tokio::test]
async fn what_does_not_fit_beside_the_runtime_library_drives_nobody_out() {
    let lone = format!("[[ai.additional_models]]\nname = \"lone\"\npath = \"{MINILM}\"\nworkers = 1\n");
    let refusal = async |budget: &str| {
        let server = Server::start(&format!("memory_budget = \"{budget}\""), &lone);
        let load = async |model: &str| server.app.post(&format!("/models/{model}/load"), json!({})).await;
        let was_loaded = load(TINY).await.status.is_success();
        let (status, code, detail) = load("lone").await.problem();
        assert_eq!((status, code.as_str()), (507, "memory_budget"), "{detail}");
        let model = server.app.get(&format!("/models/{TINY}")).await.ok();
        assert_eq!(model["state"] == "ready", was_loaded, "{detail}");
        (was_loaded, detail)
    };
    let (_, detail) = refusal("16MiB").await;
    let words: Vec<&str> = detail.split_whitespace().collect();
    let mib_before = |rest: [&str; 3]| -> f64 {
        let at = words.windows(3).position(|part| part == rest).expect("how much it is");
        words[at - 1].parse().expect("a number")
    };
    let (needed, in_use) = (mib_before(["MiB", "by", "estimate,"]), mib_before(["MiB", "are", "in"]));
    // Half of what the runtime library takes is left beside it.
    let (was_loaded, detail) = refusal(&format!("{:.0}MiB", needed + in_use / 2.0)).await;
    assert!(was_loaded, "{detail}");
    assert!(detail.contains(" and cannot be freed. Raise the budget"), "{detail}");
}

#[tokio::test]
async fn a_load_waits_for_the_memory_of_a_model_that_was_deleted() {
    let (budget, _) = budget_for_two().await;
    let server = Server::start(&budget, &entries().replacen("pooling = ", "pinned = true\npooling = ", 1));
    server.post("/models", json!({"name": "leaver", "path": MINILM})).await;
    let (stays, comes) = (THREE[1], THREE[2]);
    // What a model takes is an estimate, and a high one, until it has been loaded once.
    for name in [comes, "leaver", stays, "leaver"] {
        server.embed(name, &["hello world"]).await;
    }
    server.post(&format!("/models/{comes}/unload"), json!({})).await;
    let texts: Vec<String> = (0..32).map(|number| format!("{number} {}", "word ".repeat(300))).collect();
    // As long as it is found, so that a request has it when it is deleted.
    let use_it = async || {
        loop {
            let answer = server.app.post("/models/leaver/embed", json!({"inputs": texts})).await;
            if answer.status == 404 {
                return;
            }
            answer.ok();
        }
    };
    let is_waited_for = async || {
        let metrics = server.app.get("/metrics").await.text;
        let mut shown = metrics.lines().filter(|line| line.starts_with("granary_queue_tokens{model=\"leaver\"}"));
        shown.any(|line| !line.ends_with(" 0"))
    };
    let change = async {
        until("somebody uses it", is_waited_for).await;
        assert_eq!(server.app.delete("/models/leaver").await.status, 204);
        server.post(&format!("/models/{comes}/load"), json!({})).await
    };
    let ((), (), loaded) = tokio::join!(use_it(), use_it(), change);
    assert_eq!(loaded["state"], "ready");
}

#[tokio::test]
async fn a_model_costs_its_weights_at_least_whatever_is_unloaded_while_it_loads() {
    let server = Server::start("", &entries());
    server.post(&format!("/models/{}/load", THREE[0]), json!({})).await;
    let path = format!("/models/{}", THREE[1]);
    let unload = async {
        until("its load is begun", async || server.app.get(&path).await.ok()["state"] != "unloaded").await;
        // Soon it has looked at what there was before.
        let_pass(&server.app, Duration::from_millis(30)).await;
        server.post(&format!("/models/{}/unload", THREE[0]), json!({})).await
    };
    let load = format!("{path}/load");
    let (loaded, _) = tokio::join!(server.post(&load, json!({})), unload);
    let (taken, weights) = (loaded["memory_bytes"].as_u64(), loaded["size_bytes"].as_u64());
    assert!(weights.is_some() && taken >= weights, "{loaded}");
}

#[tokio::test]
async fn three_models_in_a_budget_for_two_answer_every_request() {
    let names = THREE;
    let (budget, right) = budget_for_two().await;
    let server = Server::start(&budget, &entries());
    // What a model takes is an estimate, and a high one, until it has been loaded once.
    for name in names {
        server.embed(name, &["hello world"]).await;
    }
    let evicted_before = server.app.metric("granary_model_evictions_total").await;
    let order = (0..30).map(|number: usize| (number * number + number / 4) % 3);
    let callers = [0, 1].map(|caller| {
        let (server, right, order) = (&server, &right, order.clone());
        async move {
            for model in order.skip(caller).step_by(2) {
                let vectors = server.embed(names[model], &["hello world"]).await;
                let cosine = cosine(&vectors[0], &right[model]);
                assert!(cosine >= 0.999, "{}: cosine {cosine}", names[model]);
            }
        }
    });
    futures::future::join_all(callers).await;
    assert!(server.app.metric("granary_model_evictions_total").await > evicted_before, "none was evicted");
    let log = server.process.log();
    assert!(!log.contains("cannot be loaded"), "{log}");
}
