//! Every form in which a model can come gives vectors, and each pooling those it stands for.

use serde_json::json;
use tempfile::TempDir;

use crate::helpers::{TestApp, copy_folder, norm, test_model, vectors_of, with_tiny};

const POOLINGS: [&str; 5] = ["mean", "cls", "last_token", "max", "mean_sqrt_len"];

/// Entries for one model's files, each with a pooling of its own and unscaled vectors.
fn one_model_pooled_five_ways() -> String {
    let path = test_model("tiny");
    let entries = POOLINGS.map(|pooling| {
        format!(
            "[[ai.additional_models]]\nname = \"by-{pooling}\"\npath = \"{}\"\npooling = \"{pooling}\"\nnormalize = false\n",
            path.display()
        )
    });
    format!("[ai]\nmodel_name = \"by-mean\"\n{}", entries.concat())
}

#[tokio::test]
async fn each_pooling_combines_the_tokens_as_its_name_says_and_ignores_padding() {
    let app = TestApp::start_with(&one_model_pooled_five_ways()).await;
    // Two tokens, and a longer neighbour so that they are padded.
    let body = json!({"inputs": [[101, 102], [101, 40, 41, 42, 43, 44, 45, 102]], "normalize": false});
    let mut pooled = Vec::new();
    for pooling in POOLINGS {
        pooled.push(
            vectors_of(&app.post(&format!("/models/by-{pooling}/embed"), body.clone()).await.ok()).swap_remove(0),
        );
    }
    let [mean, first, last, max, by_root] = &pooled[..] else { unreachable!("five poolings") };
    assert_ne!(first, last);
    for index in 0..first.len() {
        let (a, b) = (first[index], last[index]);
        assert!((mean[index] - f32::midpoint(a, b)).abs() < 1e-4, "mean[{index}]: {} of {a} and {b}", mean[index]);
        assert!((max[index] - a.max(b)).abs() < 1e-4, "max[{index}]: {} of {a} and {b}", max[index]);
        let expected = (a + b) / 2.0_f32.sqrt();
        assert!((by_root[index] - expected).abs() < 2e-4, "mean_sqrt_len[{index}]: {}, not {expected}", by_root[index]);
    }
    app.stop().await;
}

#[tokio::test]
async fn one_model_pooled_differently_is_in_different_spaces() {
    let app = TestApp::start_with(&one_model_pooled_five_ways()).await;
    let mut spaces = Vec::new();
    for pooling in POOLINGS {
        let answer = app.post(&format!("/models/by-{pooling}/embed"), json!({"inputs": "hello"})).await;
        answer.ok();
        spaces.push(answer.header("x-space").to_owned());
    }
    spaces.sort_unstable();
    spaces.dedup();
    assert_eq!(spaces.len(), POOLINGS.len(), "{spaces:?}");
    app.stop().await;
}

#[tokio::test]
async fn every_form_of_a_model_is_read_from_its_own_files() {
    let forms = [
        ("tiny", "mean", true),
        ("tiny-cls", "cls", false),
        ("tiny-last", "last_token", false),
        ("tiny-max", "max", false),
        ("tiny-no-types", "mean", false),
        ("tiny-token-embeddings", "mean", false),
        ("tiny-shape", "mean", false),
        ("tiny-flat", "mean", false),
    ];
    let others: Vec<&str> = forms.iter().map(|(name, ..)| *name).filter(|name| *name != "tiny").collect();
    let app = TestApp::start_with(&with_tiny(&others)).await;
    let mut seen = Vec::new();
    for (name, pooling, is_normalized) in forms {
        let model = app.post(&format!("/models/{name}/load"), json!(null)).await.ok();
        assert_eq!((&model["pooling"], &model["normalize"]), (&json!(pooling), &json!(is_normalized)), "{name}");
        assert_eq!((&model["dimensions"], &model["max_tokens"]), (&json!(32), &json!(128)), "{name}");
        let vectors =
            vectors_of(&app.post(&format!("/models/{name}/embed"), json!({"inputs": ["hello", "a b"]})).await.ok());
        assert!(vectors.iter().all(|vector| vector.len() == 32 && (norm(vector) - 1.0).abs() < 1e-5), "{name}");
        assert!(!seen.contains(&vectors), "{name} answers as another model does");
        seen.push(vectors);
    }
    app.stop().await;
}

#[tokio::test]
async fn the_root_of_a_texts_length_is_taken_where_the_files_say_so() {
    let folder = TempDir::new().expect("a folder");
    copy_folder(&test_model("tiny"), folder.path());
    let mode = r#"{"pooling_mode_mean_tokens": false, "pooling_mode_mean_sqrt_len_tokens": true}"#;
    fs_err::write(folder.path().join("1_Pooling/config.json"), mode).expect("written");
    let entry = format!("[[ai.additional_models]]\nname = \"by-root\"\npath = \"{}\"\n", folder.path().display());
    let app = TestApp::start_with(&format!("{}{entry}", with_tiny(&[]))).await;
    assert_eq!(app.post("/models/by-root/load", json!(null)).await.ok()["pooling"], "mean_sqrt_len");
    let body = json!({"inputs": "the quick brown fox", "normalize": false});
    let embed = async |model: &str| app.post(&format!("/models/{model}/embed"), body.clone()).await;
    let (by_root, mean) = (embed("by-root").await, embed("tiny").await);
    // [CLS] and [SEP] are tokens too.
    let length = 6.0_f32;
    for (found, mean) in vectors_of(&by_root.ok())[0].iter().zip(&vectors_of(&mean.ok())[0]) {
        assert!((found - mean * length.sqrt()).abs() < 1e-2, "{found} of {mean}");
    }
    assert_ne!(by_root.header("x-space"), mean.header("x-space"));
    app.stop().await;
}

#[tokio::test]
async fn a_graph_that_pools_by_itself_needs_no_pooling() {
    let app = TestApp::start_with(&with_tiny(&["tiny-sentence"])).await;
    let model = app.post("/models/tiny-sentence/load", json!(null)).await.ok();
    assert_eq!(model["dimensions"], 32);
    let vectors =
        vectors_of(&app.post("/models/tiny-sentence/embed", json!({"inputs": ["hello", "a b c"]})).await.ok());
    assert!(vectors.len() == 2 && vectors[0] != vectors[1]);
    app.stop().await;
}

#[tokio::test]
async fn a_length_that_the_files_have_vectors_cut_to_is_offered() {
    let folder = TempDir::new().expect("a folder");
    copy_folder(&test_model("tiny"), folder.path());
    let config = r#"{"truncate_dim": 8}"#;
    fs_err::write(folder.path().join("config_sentence_transformers.json"), config).expect("written");
    let entry = format!("[[ai.additional_models]]\nname = \"short\"\npath = \"{}\"\n", folder.path().display());
    let app = TestApp::start_with(&format!("{}{entry}", with_tiny(&[]))).await;
    let whole = app.post("/models/short/embed", json!({"inputs": "hello"})).await;
    let tiny = app.post("/models/tiny/embed", json!({"inputs": "hello"})).await;
    assert_eq!((whole.header("x-dimensions"), whole.header("x-space")), ("32", tiny.header("x-space")));
    let cut = app.post("/models/short/embed", json!({"inputs": "hello", "dimensions": 8})).await;
    assert_eq!((vectors_of(&cut.ok())[0].len(), cut.header("x-dimensions")), (8, "8"));
    app.stop().await;
}

#[tokio::test]
async fn settings_win_over_the_files_and_offer_shorter_vectors() {
    let entry = format!(
        "[ai]\nmodel_name = \"short\"\n[[ai.additional_models]]\nname = \"short\"\npath = \"{}\"\nmatryoshka_dims = [16, 8]\nmax_tokens = 10\n",
        test_model("tiny").display()
    );
    let app = TestApp::start_with(&entry).await;
    let whole = app.post("/embed", json!({"inputs": "a b c d e f g h i j k l m n"})).await;
    assert_eq!(whole.header("x-truncated"), "1; 0");
    assert_eq!(whole.header("x-compute-tokens"), "10");
    let cut = app.post("/embed", json!({"inputs": "a b c d e f g h i j k l m n", "dimensions": 8})).await;
    let (whole_vector, cut_vector) = (&vectors_of(&whole.ok())[0], &vectors_of(&cut.ok())[0]);
    let length = norm(&whole_vector[..8]);
    for (cut, whole) in cut_vector.iter().zip(whole_vector) {
        assert!((f64::from(*cut) - f64::from(*whole) / length).abs() < 1e-5, "the beginning, scaled to length 1 again");
    }
    assert_eq!((cut_vector.len(), cut.header("x-dimensions")), (8, "8"));
    assert_ne!(cut.header("x-space"), whole.header("x-space"));
    app.stop().await;
}

#[tokio::test]
async fn a_bare_onnx_file_takes_the_tokenizer_beside_it() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let tiny = test_model("tiny");
    fs_err::copy(tiny.join("onnx/model.onnx"), folder.path().join("mine.onnx")).expect("copied");
    fs_err::copy(tiny.join("tokenizer.json"), folder.path().join("mine.tokenizer.json")).expect("copied");
    let toml = format!(
        "[ai]\nmodel_name = \"mine\"\n[[ai.additional_models]]\nname = \"mine\"\npath = \"{}\"\npooling = \"mean\"\n\
         normalize = true\nmax_tokens = 128\n[[ai.additional_models]]\nname = \"tiny\"\npath = \"{}\"\n",
        folder.path().join("mine.onnx").display(),
        tiny.display()
    );
    let app = TestApp::start_with(&toml).await;
    let own = app.post("/embed", json!({"inputs": "hello"})).await;
    let same = app.post("/models/tiny/embed", json!({"inputs": "hello"})).await;
    assert_eq!(own.ok(), same.ok());
    assert_eq!(own.header("x-space"), same.header("x-space"), "the same bytes and settings make the same space");
    app.stop().await;
}
