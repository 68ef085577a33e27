//! A model that is loaded and does not embed any more, or not as it did: who learns of it, and that it is over when the
//! model embeds again.
//!
//! The runtime maps large weights from their file, so what somebody writes into that file a loaded model computes with.
//! Loaded models are looked at every 30 s, and each look that is waited for takes as long.

use std::path::Path;

use fs_err::os::unix::fs::FileExt;
use fs_err::{File, OpenOptions};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::helpers::{Caller, Process, TINY, copy_folder, cosine, folder_with, test_model, until, with_tiny};

/// The file of a model's weights, which a loaded model has mapped.
struct Weights {
    file: File,
    whole: Vec<u8>,
}

impl Weights {
    fn of(model: &Path) -> Self {
        let path = model.join("onnx/model.onnx_data");
        let whole = fs_err::read(&path).expect("weights");
        let file = OpenOptions::new().write(true).open(path).expect("weights");
        Self { file, whole }
    }

    /// Leaves no number in it: four bytes of these are a NaN.
    fn spoil(&self) {
        self.write(&vec![0xff; self.whole.len()]);
    }

    /// Makes other numbers of them all.
    fn negate(&self) {
        // The sign of a number is in the last of its four bytes.
        let negated = self.whole.iter().enumerate().map(|(at, byte)| if at % 4 == 3 { byte ^ 0x80 } else { *byte });
        self.write(&negated.collect::<Vec<u8>>());
    }

    fn mend(&self) {
        self.write(&self.whole);
    }

    fn write(&self, bytes: &[u8]) {
        // Never cut off meanwhile, which would end who has it mapped.
        self.file.write_all_at(bytes, 0).expect("written");
    }
}

/// What the gauge is of a model.
async fn shown(app: &Caller, model: &str) -> String {
    let text = app.get("/metrics").await.text;
    let series = format!("granary_model_ailing{{model=\"{model}\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&series));
    value.unwrap_or_else(|| panic!("nothing is shown of {model}:\n{text}")).to_owned()
}

async fn wait_until_shown(app: &Caller, model: &str, value: &str) {
    until(&format!("it is {value} of {model}"), async || shown(app, model).await == value).await;
}

/// A model whose weights the runtime maps, to be written into.
fn copied() -> TempDir {
    let files = TempDir::new().expect("a folder");
    copy_folder(&test_model("minilm-4-layers"), files.path());
    files
}

/// The entry of a model of these files.
fn entry(name: &str, files: &Path) -> String {
    let path = files.display();
    format!("[[ai.additional_models]]\nname = \"{name}\"\npath = \"{path}\"\nprovider = \"cpu\"\n")
}

/// The vector of one text.
async fn embed(app: &Caller, body: Value) -> Vec<f32> {
    let vectors: Vec<Vec<f32>> = serde_json::from_value(app.post("/embed", body).await.ok()).expect("vectors");
    vectors.into_iter().next().expect("a vector")
}

#[tokio::test]
async fn a_loaded_model_that_makes_other_vectors_is_shown_and_not_ready_and_writes_no_grains() {
    let files = copied();
    let cached = "[models]\nembedding_cache = \"1MiB\"\n";
    let folder = folder_with(&format!("[ai]\nmodel_name = \"kept\"\n{}{cached}", entry("kept", files.path())));
    let (process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url);
    app.post("/grains", json!({"text": "before"})).await.ok();
    // Cut at its other side a short text is the same, in another space: these are not taken from the cache later.
    let mut right = Vec::new();
    for text in ["at once", "later"] {
        right.push(embed(&app, json!({"inputs": text, "truncation_direction": "left"})).await);
    }

    let weights = Weights::of(files.path());
    weights.negate();
    let moved = embed(&app, json!({"inputs": "at once"})).await;
    assert!(cosine(&moved, &right[0]) < 0.999, "the runtime does not use what was written");
    wait_until_shown(&app, "kept", "1").await;
    assert!(cosine(&embed(&app, json!({"inputs": "later"})).await, &right[1]) < 0.999);
    let (status, code, detail) = app.get("/health/ready").await.problem();
    assert_eq!((status, code.as_str()), (503, "model_failed"));
    assert!(detail.contains("`kept` is loaded and makes other vectors than when it was loaded"), "{detail}");
    assert!(detail.contains("`POST /models/kept/unload`"), "{detail}");
    let (status, code, detail) = app.post("/grains", json!({"text": "refused"})).await.problem();
    assert_eq!((status, code.as_str()), (409, "conflict"));
    assert!(detail.contains("it makes other vectors than when it was loaded"), "{detail}");
    let space = app.get("/models/kept").await.ok()["space"].clone();
    let borne_out = json!({"text": "at once", "vector": moved, "space": space, "verify": true});
    let (status, _, detail) = app.post("/grains", borne_out).await.problem();
    assert!(status == 409 && detail.contains("it makes other vectors than when it was loaded"), "{detail}");
    // Its space would get a record of what it never made.
    let (status, _, detail) = app.post("/models/kept/accept", json!({"numerics": true})).await.problem();
    assert!(status == 409 && detail.contains("`POST /models/kept/unload`"), "{detail}");

    // No look sees it mended, after which the cache would be emptied anyway.
    weights.mend();
    app.post("/models/kept/unload", json!({})).await.ok();
    app.post("/models/kept/load", json!({})).await.ok();
    assert_eq!(shown(&app, "kept").await, "0");
    app.get("/health/ready").await.ok();
    app.post("/grains", json!({"text": "after"})).await.ok();
    for (text, right) in ["at once", "later"].into_iter().zip(&right) {
        let made = embed(&app, json!({"inputs": text})).await;
        assert!(cosine(&made, right) > 0.9999, "what was made meanwhile of `{text}` was kept");
    }

    // What is loaded anew is another model to grains, and nothing is wrong with it.
    weights.negate();
    app.post("/models/kept/unload", json!({})).await.ok();
    app.post("/models/kept/load", json!({})).await.ok();
    app.get("/health/ready").await.ok();
    let (_, _, detail) = app.post("/grains", json!({"text": "refused"})).await.problem();
    assert!(detail.contains("`POST /models/kept/accept`"), "{detail}");
    let log = process.stop();
    assert!(log.contains("the model makes other vectors than when it was loaded"), "{log}");
}

#[tokio::test]
async fn a_loaded_model_that_does_not_embed_is_shown_and_not_ready_until_it_embeds_again_or_is_unloaded() {
    let files = copied();
    let (kept, gone) = (entry("kept", files.path()), entry("gone", files.path()));
    let folder = folder_with(&format!("{}{kept}{gone}", with_tiny(&[])));
    let (process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url);
    for model in ["kept", "gone"] {
        app.post(&format!("/models/{model}/load"), json!({})).await.ok();
        assert_eq!(shown(&app, model).await, "0");
    }

    let weights = Weights::of(files.path());
    weights.spoil();
    for model in ["kept", "gone"] {
        wait_until_shown(&app, model, "1").await;
        let (status, _, sentence) =
            app.post(&format!("/models/{model}/embed"), json!({"inputs": "a"})).await.tei_error();
        assert!(status == 424 && sentence.contains("holds NaN"), "{sentence}");
        let (status, kind, sentence) = app.get(&format!("/models/{model}/health")).await.tei_error();
        assert_eq!((status, kind.as_str()), (503, "Unhealthy"));
        assert!(sentence.contains(&format!("`{model}` is loaded and does not embed")), "{sentence}");
        // Another text may give numbers all the same, and they are not of the model's space.
        let (status, code, detail) = app.post("/grains", json!({"text": "a", "model": model})).await.problem();
        assert_eq!((status, code.as_str()), (409, "conflict"), "{detail}");
        assert!(detail.contains("it does not embed any more") && detail.contains("NaN"), "{detail}");
        let accepted = app.post(&format!("/models/{model}/accept"), json!({"numerics": true})).await;
        let (status, _, detail) = accepted.problem();
        assert!(status == 409 && detail.contains(&format!("`POST /models/{model}/unload`")), "{detail}");
    }
    assert_eq!(shown(&app, TINY).await, "0");
    assert_eq!(app.get("/health/ready").await.ok()["model"], TINY);
    app.post("/models/gone/unload", json!({})).await.ok();
    assert_eq!(shown(&app, "gone").await, "0", "what is not loaded is not looked at any more");

    // Once requests that name none are its own, it is the server that is not ready.
    app.put("/models/active", json!({"name": "kept"})).await.ok();
    let (status, code, detail) = app.get("/health/ready").await.problem();
    assert_eq!((status, code.as_str()), (503, "model_failed"));
    assert!(detail.contains("`kept` is loaded and does not embed") && detail.contains("NaN"), "{detail}");
    assert_eq!(app.get("/health").await.status, 503);

    weights.mend();
    wait_until_shown(&app, "kept", "0").await;
    app.post("/embed", json!({"inputs": "a"})).await.ok();
    assert!(app.get("/models/kept/health").await.status.is_success());
    assert_eq!(app.get("/health/ready").await.ok()["model"], "kept");
    app.post("/grains", json!({"text": "a"})).await.ok();
    let log = process.stop();
    for said in ["the model does not embed any more", "the model embeds again"] {
        assert!(log.contains(said), "{log}");
    }
}
