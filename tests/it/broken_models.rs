//! A model that cannot be loaded says why, and the others go on.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::helpers::{TINY, TestApp, copy_folder, cosine, test_model, vectors_of, with_tiny};
use crate::providers::field;

/// A copy of `tiny` to be broken.
fn copied() -> TempDir {
    let folder = TempDir::new().expect("a folder");
    copy_folder(&test_model(TINY), folder.path());
    folder
}

/// An entry called `broken`.
pub fn entry(path: &Path, settings: &str) -> String {
    format!("[[ai.additional_models]]\nname = \"broken\"\npath = \"{}\"\n{settings}", path.display())
}

/// Loads `broken` beside a model that works, and returns the sentence of the refusal.
pub async fn refused(broken: &str) -> String {
    let app = TestApp::start_with(&format!("{}{broken}", with_tiny(&[]))).await;
    let answer = app.post("/embed", json!({"inputs": "hello", "model": "broken"})).await;
    let (status, kind, sentence) = answer.tei_error();
    assert_eq!((status, kind.as_str()), (424, "Backend"), "clients ask again at once after 503: {sentence}");
    assert_eq!(answer.header("x-should-retry"), "false", "only a changed file or setting helps: {sentence}");
    let (_, code, again) = app.post("/models/broken/load", json!(null)).await.problem();
    assert_eq!((code.as_str(), &again), ("model_failed", &sentence));
    let (status, kind, _) = app.get("/models/broken/health").await.tei_error();
    assert_eq!((status, kind.as_str()), (503, "Unhealthy"), "who asks how it is does not work it");
    let model = app.get("/models/broken").await.ok();
    assert_eq!((&model["state"], &model["failure"]["permanent"]), (&json!("failed"), &json!(true)));
    assert!(sentence.contains(model["failure"]["reason"].as_str().expect("a reason")), "{sentence}");
    assert_eq!(vectors_of(&app.post("/embed", json!({"inputs": "hello"})).await.ok()).len(), 1);
    app.stop().await;
    sentence
}

#[tokio::test]
async fn a_model_without_files_says_where_it_looked() {
    let folder = TempDir::new().expect("a folder");
    let sentence = refused(&entry(folder.path(), "")).await;
    assert!(sentence.contains("the ONNX file is missing") && sentence.contains("onnx/model.onnx"), "{sentence}");
    let sentence = refused(&entry(&folder.path().join("bare.onnx"), "pooling = \"mean\"\n")).await;
    assert!(sentence.contains("bare.onnx"), "{sentence}");
}

#[tokio::test]
async fn a_model_without_a_tokenizer_says_so() {
    let folder = copied();
    fs_err::remove_file(folder.path().join("tokenizer.json")).expect("removed");
    let sentence = refused(&entry(folder.path(), "")).await;
    assert!(sentence.contains("the tokenizer is missing") && sentence.contains("tokenizer.json"), "{sentence}");
}

#[tokio::test]
async fn a_truncated_or_foreign_onnx_file_is_no_model() {
    let folder = copied();
    let onnx: PathBuf = folder.path().join("onnx/model.onnx");
    let whole = fs_err::read(&onnx).expect("read");
    for bytes in [&whole[..whole.len() / 2], &whole[..7], b"".as_slice(), b"this is no model".as_slice()] {
        fs_err::write(&onnx, bytes).expect("written");
        let sentence = refused(&entry(folder.path(), "")).await;
        assert!(sentence.contains("onnx/model.onnx"), "{sentence}");
    }
}

#[tokio::test]
async fn a_malformed_file_is_named() {
    for file in ["tokenizer.json", "config.json", "modules.json"] {
        let folder = copied();
        fs_err::write(folder.path().join(file), "{\"oops\"").expect("written");
        let sentence = refused(&entry(folder.path(), "")).await;
        assert!(sentence.contains(file), "{sentence}");
    }
}

#[tokio::test]
async fn a_tokenizer_of_another_vocabulary_is_refused() {
    let sentence = refused(&entry(&test_model("tiny-bad-vocab"), "")).await;
    assert!(sentence.contains("tokenizer.json") && sentence.contains("does not belong to this model"), "{sentence}");
}

/// Gives a model's tokenizer one more token, which stands in texts as it is.
fn add_token(folder: &TempDir, token: &Value) {
    let path = folder.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs_err::read(&path).expect("read")).expect("JSON");
    tokenizer["added_tokens"].as_array_mut().expect("a list").push(token.clone());
    fs_err::write(&path, tokenizer.to_string()).expect("written");
}

#[tokio::test]
async fn a_text_with_an_added_token_that_the_model_has_no_row_for_is_refused_and_others_are_not() {
    let folder = copied();
    let config: Value =
        serde_json::from_slice(&fs_err::read(folder.path().join("config.json")).expect("read")).expect("JSON");
    add_token(
        &folder,
        &json!({"id": config["vocab_size"], "content": "<image>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}),
    );
    let app = TestApp::start_with(&format!("{}{}", with_tiny(&[]), entry(folder.path(), ""))).await;
    let embed =
        async |model: &str, inputs: Value| app.post(&format!("/models/{model}/embed"), json!({"inputs": inputs})).await;
    assert_eq!(embed("broken", json!("hello")).await.ok(), embed("tiny", json!("hello")).await.ok());
    for (inputs, said) in [
        (json!("hello <image>"), "it has the token `<image>`, which the model has no row for"),
        (json!([[config["vocab_size"]]]), "but this model's vocabulary ends at"),
    ] {
        let refused = embed("broken", inputs).await;
        assert!(refused.status.is_client_error() && refused.text.contains(said), "{}", refused.text);
    }
    app.put("/models/active", json!({"name": "broken"})).await.ok();
    app.post("/grains", json!({"text": "hello"})).await.ok();
    for mode in ["dense", "hybrid"] {
        let search = json!({"query": "hello <image>", "mode": mode});
        let (status, code, sentence) = app.post("/grains/search", search).await.problem();
        assert_eq!((status, code.as_str()), (422, "invalid_request"), "{sentence}");
        assert!(sentence.contains("query") && sentence.contains("`<image>`"), "{sentence}");
        assert!(!sentence.contains("inputs"), "the caller sent none: {sentence}");
    }
    app.stop().await;
}

/// What transformers makes of the same files.
#[tokio::test]
async fn tokens_that_only_the_configuration_has_are_read_in_texts() {
    let folder = copied();
    let rows = 367;
    let config = json!({"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": {
        "400": {"content": "<e2>", "normalized": false, "special": true},
        "50": {"content": "<e1>", "normalized": false, "special": true, "lstrip": true},
        "2": {"content": "[CLS]", "normalized": false, "special": true},
        "291": {"content": "Hello", "normalized": false},
        "193": {"content": "the", "normalized": true},
    }});
    fs_err::write(folder.path().join("tokenizer_config.json"), config.to_string()).expect("written");
    let app = TestApp::start_with(&format!("{}{}", with_tiny(&[]), entry(folder.path(), ""))).await;
    let tokens = async |model: &str, text: &str| {
        let answer = app.post(&format!("/models/{model}/tokenize"), json!({"inputs": text})).await.ok();
        let ids = answer[0].as_array().expect("a list").iter().map(|token| token["id"].as_u64().expect("an id"));
        ids.collect::<Vec<_>>()
    };
    assert_eq!(tokens("tiny", "hello world").await, [2, 291, 292, 3]);
    for (text, expected) in [
        ("hello <e1> world", [2, 291, rows, 292, 3].as_slice()),
        ("<e1><e2>", &[2, rows, rows + 2, 3]),
        ("Hello world", &[2, rows + 1, 292, 3]),
        ("HELLO world", &[2, 291, 292, 3]),
        ("thethe", &[2, 193, 193, 3]),
    ] {
        assert_eq!(tokens("broken", text).await, expected, "{text}");
    }
    let embed =
        async |model: &str, text: &str| app.post(&format!("/models/{model}/embed"), json!({"inputs": text})).await;
    let (own, tiny) = (embed("broken", "world").await, embed("tiny", "world").await);
    assert_eq!(own.ok(), tiny.ok());
    assert_ne!(own.header("x-space"), tiny.header("x-space"), "some texts have other vectors");
    assert_eq!(embed("broken", "thethe").await.ok(), embed("tiny", "the the").await.ok());
    let refused = embed("broken", "hello <e1>").await;
    assert!(refused.status.is_client_error(), "{}", refused.text);
    assert!(refused.text.contains("it has the token `<e1>`, which the model has no row for"), "{}", refused.text);
    app.stop().await;
}

#[tokio::test]
async fn a_tokenizer_that_leaves_out_a_token_that_its_configuration_adds_is_refused() {
    let folder = copied();
    let configure = |config: &str| fs_err::write(folder.path().join("tokenizer_config.json"), config).expect("written");
    configure(r#"{"tokenizer_class": "LlamaTokenizer", "add_eos_token": true, "eos_token": {"content": "grain"}}"#);
    let sentence = refused(&entry(folder.path(), "")).await;
    assert!(sentence.contains("tokenizer.json") && sentence.contains("sets `add_eos_token`"), "{sentence}");
    assert!(sentence.contains("adds no `grain`"), "{sentence}");
    configure(
        r#"{"auto_map": {}, "add_bos_token": true, "bos_token": "[CLS]", "add_eos_token": true, "eos_token": "[SEP]"}"#,
    );
    let app = TestApp::start_with(&format!("{}{}", with_tiny(&[]), entry(folder.path(), ""))).await;
    let same = app.post("/models/broken/embed", json!({"inputs": "hello"})).await;
    let tiny = app.post("/models/tiny/embed", json!({"inputs": "hello"})).await;
    assert_eq!((same.ok(), same.header("x-space")), (tiny.ok(), tiny.header("x-space")));
    app.stop().await;
}

#[tokio::test]
async fn a_tokenizer_that_its_configuration_contradicts_is_refused() {
    let folder = copied();
    let configure = |config: &str| fs_err::write(folder.path().join("tokenizer_config.json"), config).expect("written");
    for (config, key) in [
        (r#"{"tokenizer_class": "BertTokenizer", "do_lower_case": false}"#, "`do_lower_case` is false"),
        (r#"{"do_lower_case": true, "split_special_tokens": true}"#, "`split_special_tokens`"),
    ] {
        configure(config);
        let sentence = refused(&entry(folder.path(), "")).await;
        assert!(sentence.contains("tokenizer_config.json") && sentence.contains(key), "{sentence}");
    }
    configure(r#"{"tokenizer_class": "BertTokenizer", "strip_accents": null}"#);
    let app = TestApp::start_with(&format!("{}{}", with_tiny(&[]), entry(folder.path(), ""))).await;
    let same = app.post("/models/broken/embed", json!({"inputs": "Hello"})).await;
    let tiny = app.post("/models/tiny/embed", json!({"inputs": "Hello"})).await;
    assert_eq!((same.ok(), same.header("x-space")), (tiny.ok(), tiny.header("x-space")));
    app.stop().await;
}

#[tokio::test]
async fn settings_that_a_sentence_configuration_hands_the_tokenizer_are_followed_or_refused() {
    let folder = copied();
    let configure =
        |config: &str| fs_err::write(folder.path().join("sentence_bert_config.json"), config).expect("written");
    configure(r#"{"max_seq_length": 128, "processing_kwargs": {"text": {"add_special_tokens": false}}}"#);
    let sentence = refused(&entry(folder.path(), "")).await;
    assert!(sentence.contains("sentence_bert_config.json") && sentence.contains("add_special_tokens"), "{sentence}");
    configure(r#"{"max_seq_length": 128, "processing_kwargs": {"text": {"max_length": 24, "truncation": true}}}"#);
    let app = TestApp::start_with(&format!("{}{}", with_tiny(&[]), entry(folder.path(), ""))).await;
    assert_eq!(app.post("/models/broken/load", json!(null)).await.ok()["max_tokens"], 24);
    app.stop().await;
}

/// A graph without weights whose vectors are of two numbers, the sine and the cosine of a token's id. What it gives for each
/// text or token has the mean of them all in it, padding included.
fn graph_that_reads_padding(output: &str) -> Vec<u8> {
    let attribute = |name: &str, field_of_it: u8, value: u8, kind: u8| {
        field(5, &[field(1, name.as_bytes()), vec![field_of_it << 3, value, 160, 1, kind]].concat())
    };
    let int = |name: &str, value: u8| attribute(name, 3, value, 2);
    let ints = |name: &str, value: u8| attribute(name, 8, value, 7);
    let node = |op: &str, inputs: &[&str], output: &str, attributes: &[Vec<u8>]| {
        let inputs: Vec<u8> = inputs.iter().flat_map(|input| field(1, input.as_bytes())).collect();
        field(1, &[inputs, field(2, output.as_bytes()), field(4, op.as_bytes()), attributes.concat()].concat())
    };
    let tensor = |name: &str, element: u8, sizes: &[&[u8]]| {
        let sizes: Vec<u8> = sizes.iter().flat_map(|size| field(1, &field(2, size))).collect();
        let kind = field(1, &[vec![1 << 3, element], field(2, &sizes)].concat());
        [field(1, name.as_bytes()), field(2, &kind)].concat()
    };
    let sizes: [&[u8]; 3] = [b"texts", b"tokens", b"numbers"];
    let pools = output == "sentence_embedding";
    let sizes_of_output: &[&[u8]] = if pools { &[b"texts", b"numbers"] } else { &sizes };
    let last = if pools {
        node("ReduceMean", &["tokens"], output, &[ints("axes", 1), int("keepdims", 0)])
    } else {
        [
            node("ReduceMean", &["tokens"], "mean", &[ints("axes", 1), int("keepdims", 1)]),
            node("Add", &["tokens", "mean"], output, &[]),
        ]
        .concat()
    };
    let graph = [
        node("Cast", &["input_ids"], "ids", &[int("to", 1)]),
        node("Unsqueeze", &["ids"], "each", &[ints("axes", 2)]),
        node("Sin", &["each"], "sine", &[]),
        node("Cos", &["each"], "cosine", &[]),
        node("Concat", &["sine", "cosine"], "tokens", &[int("axis", 2)]),
        last,
        field(2, b"any"),
        field(11, &tensor("input_ids", 7, &sizes[..2])),
        field(11, &tensor("attention_mask", 7, &sizes[..2])),
        field(12, &tensor(output, 1, sizes_of_output)),
    ];
    [vec![1 << 3, 8], field(7, &graph.concat()), field(8, &[2 << 3, 11])].concat()
}

#[tokio::test]
async fn a_graph_whose_vectors_depend_on_padding_is_refused() {
    let folder = TempDir::new().expect("a folder");
    fs_err::copy(test_model(TINY).join("tokenizer.json"), folder.path().join("tokenizer.json")).expect("copied");
    let settings = "max_tokens = 128\npooling = \"mean\"\nnormalize = true\n";
    for output in ["sentence_embedding", "last_hidden_state"] {
        fs_err::write(folder.path().join("model.onnx"), graph_that_reads_padding(output)).expect("written");
        let sentence = refused(&entry(folder.path(), settings)).await;
        assert!(sentence.contains(&format!("its output `{output}` depends on padding")), "{sentence}");
    }
}

#[tokio::test]
async fn vocabulary_logits_are_no_embeddings() {
    let sentence = refused(&entry(&test_model("tiny-logits"), "")).await;
    assert!(sentence.contains("hidden size"), "{sentence}");
}

#[tokio::test]
async fn an_unknown_pooling_names_the_setting() {
    let sentence = refused(&entry(&test_model("tiny-no-pooling"), "")).await;
    assert!(sentence.contains("`pooling`"), "{sentence}");
    let app = TestApp::start_with(&format!(
        "{}{}",
        with_tiny(&[]),
        entry(&test_model("tiny-no-pooling"), "pooling = \"mean\"\nnormalize = true\n")
    ))
    .await;
    app.post("/models/broken/embed", json!({"inputs": "hello"})).await.ok();
    app.stop().await;
}

#[tokio::test]
async fn a_pooling_that_granary_does_not_have_is_refused_unless_another_is_set() {
    let folder = copied();
    let config = r#"{"pooling_mode": "mean", "include_prompt": false}"#;
    fs_err::write(folder.path().join("1_Pooling/config.json"), config).expect("written");
    let sentence = refused(&entry(folder.path(), "")).await;
    assert!(sentence.contains("`include_prompt`"), "{sentence}");
    let toml = format!("{}{}", with_tiny(&[]), entry(folder.path(), "pooling = \"mean\"\n"));
    let app = TestApp::start_with(&toml).await;
    let pooled = app.post("/models/broken/embed", json!({"inputs": "hello"})).await.ok();
    assert_eq!(pooled, app.post("/models/tiny/embed", json!({"inputs": "hello"})).await.ok());
    app.stop().await;
}

#[tokio::test]
async fn a_pooling_that_only_the_graph_has_is_served_by_the_graph_as_its_refusal_says() {
    let folder = TempDir::new().expect("a folder");
    copy_folder(&test_model("tiny-sentence"), folder.path());
    let settings = "normalize = true\nmax_tokens = 128\n";
    for pooling in [r#"{"pooling_mode": "weightedmean"}"#, r#"{"pooling_mode": ["cls", "mean"]}"#] {
        fs_err::write(folder.path().join("1_Pooling/config.json"), pooling).expect("written");
        let sentence = refused(&entry(folder.path(), settings)).await;
        for named in ["1_Pooling/config.json", "`sentence_embedding`", "`path`", "`tokenizer`", "no `pooling`"] {
            assert!(sentence.contains(named), "{sentence}");
        }
    }
    let tokenizer = format!("tokenizer = \"{}\"\n", folder.path().join("tokenizer.json").display());
    let file = entry(&folder.path().join("onnx/model.onnx"), &format!("{tokenizer}{settings}"));
    let app = TestApp::start_with(&format!("{}{file}", with_tiny(&["tiny-sentence"]))).await;
    let by_file = app.post("/models/broken/embed", json!({"inputs": "hello"})).await.ok();
    assert_eq!(by_file, app.post("/models/tiny-sentence/embed", json!({"inputs": "hello"})).await.ok());
    app.stop().await;
}

#[tokio::test]
async fn settings_that_the_files_contradict_are_refused_with_both_numbers() {
    let sentence = refused(&entry(&test_model(TINY), "dimensions = 31\n")).await;
    assert!(sentence.contains("31") && sentence.contains("32"), "{sentence}");
    assert!(sentence.contains("`matryoshka_dims = [31]`"), "{sentence}");
    let sentence = refused(&entry(&test_model(TINY), "dimensions = 33\n")).await;
    assert!(sentence.contains("33") && !sentence.contains("matryoshka_dims"), "{sentence}");
    let sentence = refused(&entry(&test_model(TINY), "max_tokens = 100000\n")).await;
    assert!(sentence.contains("100000") && sentence.contains("config.json"), "{sentence}");
}

#[tokio::test]
async fn without_a_runtime_library_the_server_runs_and_says_what_to_do() {
    let app =
        TestApp::start_with(&format!("[engine]\nruntime_library = \"/nowhere/lib.so\"\n{}", with_tiny(&[]))).await;
    let (status, kind, sentence) = app.post("/embed", json!({"inputs": "hello"})).await.tei_error();
    assert_eq!((status, kind.as_str()), (424, "Backend"));
    assert!(sentence.contains("/nowhere/lib.so") && sentence.contains("make setup"), "{sentence}");
    assert_eq!(app.get("/health/live").await.status, 200);
    assert_eq!(app.get("/health/ready").await.status, 503);
    app.stop().await;
}

#[tokio::test]
async fn a_repaired_model_loads_by_hand_at_once() {
    let folder = copied();
    let onnx = folder.path().join("onnx/model.onnx");
    let whole = fs_err::read(&onnx).expect("read");
    fs_err::write(&onnx, &whole[..100]).expect("written");
    let app = TestApp::start_with(&format!("{}{}", with_tiny(&[]), entry(folder.path(), ""))).await;
    assert_eq!(app.post("/models/broken/load", json!(null)).await.problem().0, 503);
    fs_err::write(&onnx, &whole).expect("written");
    assert_eq!(app.post("/models/broken/load", json!(null)).await.ok()["state"], "ready");
    app.stop().await;
}

#[tokio::test]
async fn a_model_that_must_load_at_the_start_refuses_it() {
    let folder = TempDir::new().expect("a folder");
    let toml = format!("{}{}", with_tiny(&[]), entry(folder.path(), "auto_load = true\n"));
    let error = TestApp::try_start_with(&toml).await.err().expect("no start");
    let sentence = granary::telemetry::with_causes(&error);
    assert!(sentence.contains("broken") && sentence.contains("the ONNX file is missing"), "{sentence}");
}

/// Exporters mask attention with the least number of fp32, or another large one, times 0 where nothing is masked.
#[tokio::test]
async fn masks_of_large_numbers_are_the_same_on_a_provider_that_rounds() {
    for number in [f32::MIN, -1e12, -1e9] {
        vectors_are_the_same_with_the_mask_of(number).await;
    }
}

async fn vectors_are_the_same_with_the_mask_of(number: f32) {
    let folder = copied();
    let onnx = folder.path().join("onnx/model.onnx");
    let mut graph = fs_err::read(&onnx).expect("read");
    let mask = (-65_504.0_f32).to_le_bytes();
    let places: Vec<usize> = (0..graph.len() - 4).filter(|place| graph[*place..place + 4] == mask).collect();
    let [place] = places[..] else { panic!("the mask's number stands at {places:?}") };
    graph[place..place + 4].copy_from_slice(&number.to_le_bytes());
    fs_err::write(&onnx, graph).expect("written");
    let app = TestApp::start_with(&format!("{}{}", with_tiny(&[]), entry(folder.path(), ""))).await;
    let texts = json!({"inputs": ["hello", "the grain of forty fields was carried up its wooden stairs"]});
    let [masked, same] = ["broken", "tiny"].map(|model| format!("/models/{model}/embed"));
    let (masked, same) = (app.post(&masked, texts.clone()).await.ok(), app.post(&same, texts).await.ok());
    for (masked, same) in vectors_of(&masked).iter().zip(vectors_of(&same)) {
        let cosine = cosine(masked, &same);
        assert!(cosine > 0.9999, "{number}: {cosine}");
    }
    let provider = |model: Value| model["provider"]["name"].clone();
    let [masked, same] = [app.get("/models/broken").await.ok(), app.get("/models/tiny").await.ok()].map(provider);
    assert_eq!(masked, same, "nothing is lost by {number}");
    app.stop().await;
}

/// The numbers of an initializer: behind its name, after their tag and their length.
fn numbers_of<'a>(graph: &'a mut [u8], name: &str) -> &'a mut [u8] {
    let named = [&[0x42, u8::try_from(name.len()).expect("a short name")], name.as_bytes(), &[0x4a]].concat();
    let place = graph.windows(named.len()).position(|part| part == named).expect("an initializer") + named.len();
    let n_length = graph[place..].iter().position(|byte| byte & 0x80 == 0).expect("a length") + 1;
    let length = graph[place..place + n_length].iter().rev().fold(0, |sum, byte| sum << 7 | usize::from(byte & 0x7f));
    &mut graph[place + n_length..][..length]
}

/// Attention so sharp that bf16 tells other tokens to be the ones that count.
#[tokio::test]
async fn a_model_that_does_not_bear_rounding_is_not_rounded() {
    let folder = copied();
    let onnx = folder.path().join("onnx/model.onnx");
    let mut graph = fs_err::read(&onnx).expect("read");
    for (layer, weight) in [(0, "query"), (0, "key"), (1, "query"), (1, "key")] {
        let name = format!("encoder.layer.{layer}.attention.self.{weight}.weight");
        for number in numbers_of(&mut graph, &name).as_chunks_mut::<4>().0 {
            *number = (100.0 * f32::from_le_bytes(*number)).to_le_bytes();
        }
    }
    fs_err::write(&onnx, graph).expect("written");
    let exact = entry(folder.path(), "provider = \"cpu\"\n").replace("broken", "exact");
    let app = TestApp::start_with(&format!("{}{}{exact}", with_tiny(&[]), entry(folder.path(), ""))).await;
    let texts = json!({"inputs": ["hello", "the grain of forty fields was carried up its wooden stairs", "a"]});
    let embed = async |model: &str| app.post(&format!("/models/{model}/embed"), texts.clone()).await.ok();
    for (found, exact) in vectors_of(&embed("broken").await).iter().zip(vectors_of(&embed("exact").await)) {
        let cosine = cosine(found, &exact);
        assert!(cosine > 0.9999, "{cosine}");
    }
    embed("tiny").await;
    let [model, tiny] = [app.get("/models/broken").await.ok(), app.get("/models/tiny").await.ok()];
    if tiny["provider"]["precision"] == "bfloat16" {
        assert_eq!(model["provider"]["name"], "cpu", "{model}");
        let reason = model["provider"]["reason"].as_str().expect("a reason");
        assert!(reason.contains("its vectors in bf16 are not those in fp32 (cosine 0."), "{reason}");
    } else {
        println!("skipped: nothing is rounded on this machine");
    }
    app.stop().await;
}
