//! The modules that a model folder lists behind pooling are applied, are part of the space, and are refused when unknown.

use std::path::Path;

use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::helpers::{TINY, TestApp, norm, test_model, vectors_of, with_tiny};

const TINY_DENSE: &str = "tiny-dense";
const DENSE_WEIGHTS: &str = "2_Dense/model.safetensors";
const TEXTS: [&str; 3] = ["hello world", "a quick brown fox jumps over the lazy dog", "z"];

/// `tanh(W · vector + b)` of the layer in a file, in double precision.
fn dense_of(folder: &Path, vector: &[f32]) -> Vec<f64> {
    let bytes = fs_err::read(folder.join(DENSE_WEIGHTS)).expect("weights");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let numbers = |name: &str| -> Vec<f64> {
        let (numbers, _) = tensors.tensor(name).expect("a tensor").data().as_chunks();
        numbers.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect()
    };
    let (weights, bias) = (numbers("linear.weight"), numbers("linear.bias"));
    let rows = weights.chunks_exact(vector.len()).zip(bias);
    rows.map(|(row, bias)| (row.iter().zip(vector).map(|(w, x)| w * f64::from(*x)).sum::<f64>() + bias).tanh())
        .collect()
}

fn assert_near(found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} is not {expected}");
    }
}

fn scaled(vector: &[f64]) -> Vec<f64> {
    let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    vector.iter().map(|x| x / length).collect()
}

#[tokio::test]
async fn a_dense_layer_comes_behind_pooling_and_before_the_cut() {
    let folder = test_model(TINY_DENSE);
    let toml = with_tiny(&[TINY_DENSE]) + "matryoshka_dims = [8]\n";
    // Its rounding must not hide a wrong sum.
    let app = TestApp::start_with(&(toml + "[engine]\nprovider = \"cpu\"\n")).await;
    let model = app.post("/models/tiny-dense/load", json!({})).await.ok();
    assert_eq!(
        (&model["dimensions"], &model["normalize"], &model["pooling"]),
        (&json!(24), &json!(true), &json!("mean"))
    );
    let pooled = vectors_of(&app.post("/models/tiny/embed", json!({"inputs": TEXTS, "normalize": false})).await.ok());
    let expected: Vec<Vec<f64>> = pooled.iter().map(|vector| dense_of(&folder, vector)).collect();

    let whole = app.post("/models/tiny-dense/embed", json!({"inputs": TEXTS})).await;
    let raw = app.post("/models/tiny-dense/embed", json!({"inputs": TEXTS, "normalize": false})).await;
    let cut = app.post("/models/tiny-dense/embed", json!({"inputs": TEXTS, "dimensions": 8})).await;
    assert_eq!((whole.header("x-dimensions"), cut.header("x-dimensions")), ("24", "8"));
    let (whole, raw, cut) = (vectors_of(&whole.ok()), vectors_of(&raw.ok()), vectors_of(&cut.ok()));
    for (index, expected) in expected.iter().enumerate() {
        assert_near(&raw[index], expected);
        assert_near(&whole[index], &scaled(expected));
        assert_near(&cut[index], &scaled(&expected[..8]));
        assert!((norm(&cut[index]) - 1.0).abs() < 1e-5);
    }
    app.stop().await;
}

/// A copy of `tiny-dense` whose files a test may change.
fn own_copy() -> TempDir {
    let (folder, source) = (TempDir::new().expect("a folder"), test_model(TINY_DENSE));
    for file in [
        "onnx/model.onnx",
        "tokenizer.json",
        "config.json",
        "modules.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        DENSE_WEIGHTS,
    ] {
        let target = folder.path().join(file);
        fs_err::create_dir_all(target.parent().expect("a parent")).expect("made");
        fs_err::copy(source.join(file), target).expect("copied");
    }
    folder
}

fn replace(folder: &TempDir, file: &str, from: &str, to: &str) {
    let path = folder.path().join(file);
    let text = fs_err::read_to_string(&path).expect("text");
    assert!(text.contains(from), "{file} has no {from}");
    fs_err::write(path, text.replacen(from, to, 1)).expect("written");
}

fn entry(name: &str, folder: &TempDir) -> String {
    format!("[[ai.additional_models]]\nname = \"{name}\"\npath = \"{}\"\n", folder.path().display())
}

#[tokio::test]
async fn dense_weights_activations_and_order_make_other_spaces() {
    let (same, byte, relu, before) = (own_copy(), own_copy(), own_copy(), own_copy());
    let weights = byte.path().join(DENSE_WEIGHTS);
    let mut bytes = fs_err::read(&weights).expect("weights");
    *bytes.last_mut().expect("a byte") ^= 1;
    fs_err::write(weights, bytes).expect("written");
    replace(&relu, "2_Dense/config.json", "activation.Tanh", "activation.ReLU");
    let listed = |path: &str, kind: &str| json!({"path": path, "type": format!("sentence_transformers.models.{kind}")});
    let normalized_before = json!([
        listed("", "Transformer"),
        listed("1_Pooling", "Pooling"),
        listed("2_Normalize", "Normalize"),
        listed("2_Dense", "Dense"),
        listed("4_Normalize", "Normalize"),
    ]);
    fs_err::write(before.path().join("modules.json"), normalized_before.to_string()).expect("written");
    let entries: String = [("same", &same), ("byte", &byte), ("relu", &relu), ("before", &before)]
        .map(|(name, folder)| entry(name, folder))
        .concat();
    let app = TestApp::start_with(&(with_tiny(&[TINY_DENSE]) + &entries)).await;
    let mut spaces = Vec::new();
    for name in [TINY_DENSE, "same", TINY, "byte", "relu", "before"] {
        let model = app.post(&format!("/models/{name}/load"), json!({})).await.ok();
        spaces.push(model["space"].as_str().expect("a space").to_owned());
    }
    assert_eq!(spaces[0], spaces[1], "the same bytes make the same space");
    let mut distinct = spaces[1..].to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), 5, "{spaces:?}");

    let all = app.get("/spaces").await.ok();
    let of_dense = all["spaces"].as_array().expect("spaces").iter().find(|space| space["id"] == json!(spaces[0]));
    let modules = &of_dense.expect("listed")["manifest"]["modules"];
    assert_eq!((&modules[0]["type"], &modules[0]["activation"]), (&json!("dense"), &json!("tanh")), "{modules}");
    let of_tiny = all["spaces"].as_array().expect("spaces").iter().find(|space| space["id"] == json!(spaces[2]));
    assert_eq!(
        of_tiny.expect("listed")["manifest"].get("modules"),
        None::<&Value>,
        "models without them keep their space"
    );
    app.stop().await;
}

#[tokio::test]
async fn modules_that_are_unknown_or_do_not_fit_are_refused_by_name() {
    let (unknown, wide, pooled) = (own_copy(), own_copy(), own_copy());
    replace(&unknown, "modules.json", "models.Dense", "models.LSTM");
    replace(&wide, "2_Dense/config.json", "\"in_features\": 32", "\"in_features\": 31");
    let graph = test_model("tiny-sentence").join("onnx/model.onnx");
    fs_err::copy(graph, pooled.path().join("onnx/model.onnx")).expect("copied");
    let entries =
        [("unknown", &unknown), ("wide", &wide), ("pooled", &pooled)].map(|(name, folder)| entry(name, folder));
    let app = TestApp::start_with(&(with_tiny(&[]) + &entries.concat())).await;
    for (name, said) in [
        ("unknown", "asks for the module `2_Dense` (LSTM), which Granary does not have"),
        ("wide", "its tensor `linear.weight` has the shape [24, 32], and config.json makes it [24, 31]"),
        ("pooled", "is pooled, so that nobody can tell whether the Dense modules"),
    ] {
        let answer = app.post(&format!("/models/{name}/embed"), json!({"inputs": "hello"})).await;
        assert!(!answer.status.is_success(), "{name}");
        let body = &answer.text;
        assert!(body.contains(said), "{name}: {body}");
    }
    app.stop().await;
}
