//! Decoders that embed, in the forms in which they are exported: one model has the same vectors in all of them.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::broken_models::{entry, refused};
use crate::helpers::{TestApp, copy_folder, cosine, test_model, vectors_of};

const FORMS: [&str; 3] = ["tiny-decoder", "tiny-decoder-past", "tiny-decoder-fused"];

/// How the vectors of texts of 2, 5 and 72 tokens begin, as they were computed in `NumPy`, in double precision, from the weights
/// and the formulas of the architecture: one text at a time, without padding and without a mask.
const BEGINNINGS: [[f32; 6]; 3] = [
    [-0.23592, -0.05767, 0.11503, -0.12381, 0.05511, -0.23887],
    [-0.17793, 0.09189, 0.24831, 0.16607, -0.03899, -0.07536],
    [-0.01457, 0.01494, 0.19283, -0.24723, 0.11771, -0.19552],
];

fn ids() -> [Vec<u32>; 3] {
    [vec![2, 3], vec![2, 40, 41, 42, 3], [2].into_iter().chain(30..100).chain([3]).collect()]
}

/// Entries for these models on one provider, the first one active.
fn on(provider: &str, models: &[&str]) -> String {
    let mut toml = format!("[ai]\nmodel_name = \"{}\"\n", models[0]);
    for name in models {
        let path = test_model(name);
        let keys = format!("name = \"{name}\"\npath = \"{}\"\nprovider = \"{provider}\"\n", path.display());
        write!(toml, "[[ai.additional_models]]\n{keys}").expect("a string takes everything");
    }
    toml
}

async fn embed(app: &TestApp, model: &str, inputs: Value) -> Vec<Vec<f32>> {
    vectors_of(&app.post(&format!("/models/{model}/embed"), json!({"inputs": inputs})).await.ok())
}

#[tokio::test]
async fn a_decoder_has_its_vectors_in_each_form_alone_and_beside_others() {
    let app = TestApp::start_with(&on("cpu", &FORMS)).await;
    for model in FORMS {
        let model_info = app.post(&format!("/models/{model}/load"), json!(null)).await.ok();
        assert_eq!((&model_info["pooling"], &model_info["provider"]["name"]), (&json!("last_token"), &json!("cpu")));
        let together = embed(&app, model, json!(ids())).await;
        for ((ids, beginning), beside) in ids().iter().zip(BEGINNINGS).zip(together) {
            let alone = embed(&app, model, json!([ids])).await.swap_remove(0);
            for (vector, place) in [(&alone, "alone"), (&beside, "beside others")] {
                let far = vector.iter().zip(beginning).any(|(found, expected)| (found - expected).abs() > 2e-5);
                assert!(!far, "{model}, {} tokens {place}: {:?}, not {beginning:?}", ids.len(), &vector[..6]);
            }
        }
    }
    app.stop().await;
}

#[cfg(target_arch = "x86_64")]
#[tokio::test]
async fn a_decoder_has_the_same_vectors_on_openvino() {
    let exact = on("cpu", &FORMS[..1]);
    let others = on("openvino", &FORMS[1..]);
    let app = TestApp::start_with(&format!("{exact}{}", others.split_once("\"\n").expect("a first line").1)).await;
    let texts = json!(["hello", "the quick brown fox jumps over the lazy dog", "a market for grain and seed"]);
    let exact = embed(&app, FORMS[0], texts.clone()).await;
    for model in &FORMS[1..] {
        for (found, exact) in embed(&app, model, texts.clone()).await.iter().zip(&exact) {
            let cosine = cosine(found, exact);
            assert!(cosine > 0.999, "{model}: {cosine}");
        }
        let provider = app.get(&format!("/models/{model}")).await.ok()["provider"].clone();
        assert_eq!(provider["name"], "openvino", "{provider}");
    }
    app.stop().await;
}

#[tokio::test]
async fn vectors_in_half_precision_are_read_whether_their_output_has_its_usual_name_or_not() {
    let renamed = with_config(|_| ());
    copy_folder(&test_model("tiny-decoder-half"), renamed.path());
    rename(&renamed.path().join("onnx/model.onnx"), "last_hidden_state", "last_hidden_stat0");
    for provider in ["cpu", "openvino"] {
        let models = ["tiny-decoder", "tiny-decoder-half", "tiny-decoder-bfloat16"];
        let by_shape = entry(renamed.path(), &format!("provider = \"{provider}\"\n"));
        let app = TestApp::start_with(&format!("{}{by_shape}", on(provider, &models))).await;
        let exact = embed(&app, models[0], json!(ids())).await;
        for model in [models[1], models[2], "broken"] {
            for (found, exact) in embed(&app, model, json!(ids())).await.iter().zip(&exact) {
                let cosine = cosine(found, exact);
                assert!(cosine > 0.9995, "{model} on {provider}: {cosine}");
            }
            let info = app.get(&format!("/models/{model}")).await.ok();
            assert_eq!(info["dimensions"], 32, "{info}");
        }
        app.stop().await;
    }
}

/// A copy of a decoder that takes the places of its tokens, with another `config.json`.
fn with_config(change: impl FnOnce(&mut Value)) -> TempDir {
    let folder = TempDir::new().expect("a folder");
    copy_folder(&test_model("tiny-decoder-past"), folder.path());
    let path = folder.path().join("config.json");
    let mut config = serde_json::from_slice(&fs_err::read(&path).expect("read")).expect("JSON");
    change(&mut config);
    fs_err::write(path, config.to_string()).expect("written");
    folder
}

#[tokio::test]
async fn a_graph_that_is_told_places_is_refused_unless_its_model_counts_them_from_zero() {
    let folder = with_config(|config| {
        config["model_type"] = json!("xlm-roberta");
        config["max_position_embeddings"] = json!(130);
    });
    let sentence = refused(&entry(folder.path(), "")).await;
    for named in ["`position_ids`", "`xlm-roberta`", "export it without that input"] {
        assert!(sentence.contains(named), "{sentence}");
    }
    let folder = with_config(|config| config["model_type"] = Value::Null);
    let unsaid = refused(&entry(folder.path(), "")).await;
    let settings = "pooling = \"last_token\"\nnormalize = true\nmax_tokens = 128\n";
    let tokenizer = format!("tokenizer = \"{}\"\n", folder.path().join("tokenizer.json").display());
    let bare = entry(&folder.path().join("onnx/model.onnx"), &format!("{settings}{tokenizer}"));
    for sentence in [unsaid, refused(&bare).await] {
        assert!(sentence.contains("`position_ids`") && sentence.contains("`model_type`"), "{sentence}");
    }
}

/// Gives an input of a graph another name of the same length.
fn rename(onnx: &Path, from: &str, to: &str) {
    let (from, to) = (from.as_bytes(), to.as_bytes());
    assert_eq!(from.len(), to.len());
    let mut graph = fs_err::read(onnx).expect("read");
    let places: Vec<usize> = (0..graph.len() - from.len()).filter(|at| graph[*at..].starts_with(from)).collect();
    assert!(!places.is_empty());
    for at in places {
        graph[at..at + to.len()].copy_from_slice(to);
    }
    fs_err::write(onnx, graph).expect("written");
}

#[tokio::test]
async fn an_input_that_nobody_knows_is_refused_by_name() {
    let folder = with_config(|_| ());
    rename(&folder.path().join("onnx/model.onnx"), "past_key_values.1.value", "past_key_values.1.conv0");
    let sentence = refused(&entry(folder.path(), "")).await;
    assert!(sentence.contains("an input `past_key_values.1.conv0`"), "{sentence}");
    assert!(sentence.contains("`position_ids`") && sentence.contains("`past_key_values.N.key`"), "{sentence}");
}
