//! The routes that text-embeddings-inference's clients use.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::helpers::{
    MINILM, TINY, TestApp, copy_folder, cosine, norm, send, test_model, vector_of, vectors_of, with_tiny,
};

#[tokio::test]
async fn one_text_gives_one_nested_vector_of_length_one() {
    let app = TestApp::start().await;
    let answer = app.post("/embed", json!({"inputs": "hello world"})).await;
    let vectors = vectors_of(&answer.ok());
    assert_eq!((vectors.len(), vectors[0].len()), (1, 384));
    assert!((norm(&vectors[0]) - 1.0).abs() < 1e-6);
    assert_eq!(answer.header("x-model"), MINILM);
    assert_eq!(answer.header("x-dimensions"), "384");
    assert_eq!(answer.header("x-truncated"), "0");
    assert_eq!(answer.header("x-compute-tokens"), "4");
    assert_eq!(answer.header("x-compute-characters"), "11");
    for name in ["x-compute-type", "x-compute-time", "x-total-time", "x-tokenization-time", "x-queue-time"] {
        assert!(!answer.header(name).is_empty(), "{name}");
    }
    assert!(!answer.header("x-inference-time").is_empty() && !answer.header("x-request-id").is_empty());
    app.stop().await;
}

#[tokio::test]
async fn texts_and_token_ids_come_in_every_shape_and_mean_the_same() {
    let app = TestApp::start().await;
    // What `hello world` is to this tokenizer. Ids are taken as they are, so the special tokens are the caller's to send.
    let ids = [101, 7592, 2088, 102];
    let text = vectors_of(&app.post("/embed", json!({"inputs": "hello world"})).await.ok());
    for inputs in [json!(["hello world"]), json!(ids), json!([ids])] {
        let vectors = vectors_of(&app.post("/embed", json!({"inputs": inputs})).await.ok());
        assert!(vectors.len() == 1 && cosine(&vectors[0], &text[0]) > 0.99999, "{inputs}");
    }
    let many = vectors_of(&app.post("/embed", json!({"inputs": ["a", "hello world", "b"]})).await.ok());
    assert!(many.len() == 3 && cosine(&many[1], &text[0]) > 0.99999);
    let mixed = vectors_of(&app.post("/embed", json!({"inputs": [[101, 1037, 102], ids]})).await.ok());
    assert!(mixed.len() == 2 && cosine(&mixed[1], &text[0]) > 0.99999);
    app.stop().await;
}

#[tokio::test]
async fn null_means_absent_and_unknown_fields_are_ignored() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let plain = app.post("/embed", json!({"inputs": "hello"})).await;
    let nulls = json!({
        "inputs": "hello", "truncate": null, "truncation_direction": null, "prompt_name": null, "normalize": null,
        "dimensions": null, "model": null, "expect_space": null, "something_new": {"a": [1, null]}
    });
    let answer = app.post("/embed", nulls).await;
    assert_eq!(answer.ok(), plain.ok());
    assert_eq!(answer.header("x-space"), plain.header("x-space"));
    for blank in ["", " "] {
        for path in ["/embed", "/", "/tokenize"] {
            let unnamed = app.post(path, json!({"inputs": "hello"})).await.ok();
            assert_eq!(app.post(path, json!({"inputs": "hello", "model": blank})).await.ok(), unnamed, "{path}");
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn long_texts_are_cut_at_the_asked_end_and_the_answer_says_which() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let long = format!("first {} last", "middle ".repeat(500));
    let texts = json!(["short", long, "short", long]);
    let right = app.post("/embed", json!({"inputs": texts})).await;
    assert_eq!(right.header("x-truncated"), "2; 1,3");
    let left = app.post("/embed", json!({"inputs": texts, "truncation_direction": "left"})).await;
    let capital = app.post("/embed", json!({"inputs": texts, "truncation_direction": "Left"})).await;
    assert_eq!(left.ok(), capital.ok());
    let (right_vectors, left_vectors) = (vectors_of(&right.ok()), vectors_of(&left.ok()));
    assert!(cosine(&right_vectors[0], &left_vectors[0]) > 0.9999, "a whole text does not depend on the side");
    assert!(cosine(&right_vectors[1], &left_vectors[1]) < 0.9999, "a cut text does");
    assert_ne!(right.header("x-space"), left.header("x-space"), "vectors of two truncation sides are in two spaces");

    let refused = app.post("/embed", json!({"inputs": texts, "truncate": false})).await.tei_error();
    assert_eq!((refused.0, refused.1.as_str()), (422, "Validation"));
    assert!(refused.2.contains("`inputs[1]` has ") && refused.2.contains("takes 128"), "{}", refused.2);
    app.stop().await;
}

#[tokio::test]
async fn refusing_long_texts_can_be_the_default_and_each_request_may_still_have_them_cut() {
    let app = TestApp::start_with(&format!("{}[engine]\nauto_truncate = false\n", with_tiny(&[]))).await;
    assert_eq!(app.get("/info").await.ok()["auto_truncate"], false);
    let long = "long ".repeat(500);
    // The fields of sentences stand in `parameters`; what stands elsewhere is ignored.
    let body = |inputs: &Value, cut: Value| json!({"inputs": inputs, "truncate": cut, "parameters": {"truncate": cut}});
    let pair = json!({"source_sentence": "short", "sentences": ["short", long]});
    for (path, inputs, said, places) in [
        ("/embed", json!(long), "`inputs[0]` has ", "1; 0"),
        ("/models/tiny/embed", json!(["short", long]), "`inputs[1]` has ", "1; 1"),
        ("/", json!(long), "`inputs[0]` has ", "1; 0"),
        ("/similarity", pair, "`inputs.sentences[1]` has ", "1; 2"),
    ] {
        for silent in [json!({"inputs": inputs}), body(&inputs, Value::Null)] {
            let (status, kind, sentence) = app.post(path, silent).await.tei_error();
            assert_eq!((status, kind.as_str()), (422, "Validation"), "{path}: {sentence}");
            assert!(sentence.starts_with(said) && sentence.contains("takes 128"), "{path}: {sentence}");
        }
        let answer = app.post(path, body(&inputs, json!(true))).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-truncated")), (200, places), "{path}: {}", answer.text);
    }
    for path in ["/v1/embeddings", "/embeddings", "/models/tiny/v1/embeddings"] {
        for silent in [json!({"input": ["short", long]}), json!({"input": ["short", long], "truncate": null})] {
            let refused = app.post(path, silent).await;
            let (status, code, sentence) = refused.openai_error();
            assert_eq!((status, code.as_str()), (400, "input_too_long"), "{path}: {sentence}");
            assert_eq!(refused.json()["error"]["param"], "input[1]", "{path}: {sentence}");
        }
        for truncate in [json!(true), json!("END")] {
            let answer = app.post(path, json!({"input": ["short", long], "truncate": truncate})).await;
            assert_eq!((answer.status.as_u16(), answer.header("x-truncated")), (200, "1; 1"), "{path}: {truncate}");
        }
    }
    app.post("/embed", json!({"inputs": "short"})).await.ok();
    app.stop().await;
}

#[tokio::test]
async fn a_model_whose_files_have_the_beginning_cut_does_so_unless_a_request_says_otherwise() {
    let [by_config, by_tokenizer] = [(); 2].map(|()| {
        let folder = TempDir::new().expect("a folder");
        copy_folder(&test_model("tiny"), folder.path());
        folder
    });
    let config = r#"{"tokenizer_class": "BertTokenizer", "truncation_side": "left"}"#;
    fs_err::write(by_config.path().join("tokenizer_config.json"), config).expect("written");
    let path = by_tokenizer.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs_err::read(&path).expect("read")).expect("JSON");
    tokenizer["truncation"] = json!({"direction": "Left", "max_length": 100, "strategy": "LongestFirst", "stride": 0});
    fs_err::write(path, tokenizer.to_string()).expect("written");
    let entry = |name: &str, folder: &TempDir| {
        format!("[[ai.additional_models]]\nname = \"{name}\"\npath = \"{}\"\n", folder.path().display())
    };
    let entries = [entry("by-config", &by_config), entry("by-tokenizer", &by_tokenizer)].concat();
    let app = TestApp::start_with(&format!("{}{entries}", with_tiny(&[]))).await;
    let long = format!("first {} last", "middle ".repeat(500));
    let embed = async |model: &str, direction: Value| {
        let body = json!({"inputs": ["short", long], "truncation_direction": direction});
        app.post(&format!("/models/{model}/embed"), body).await
    };
    let (left, right) = (embed("tiny", json!("left")).await, embed("tiny", json!("right")).await);
    for model in ["by-config", "by-tokenizer"] {
        for (direction, expected) in [(Value::Null, &left), (json!("left"), &left), (json!("right"), &right)] {
            let answer = embed(model, direction.clone()).await;
            assert_eq!((answer.ok(), answer.header("x-truncated")), (expected.ok(), "1; 1"), "{model}, {direction}");
            if model == "by-config" {
                assert_eq!(answer.header("x-space"), expected.header("x-space"), "{direction}");
            }
        }
    }
    for (truncate, expected) in [(Value::Null, &left), (json!(true), &left), (json!("END"), &right)] {
        let body = json!({"model": "by-config", "input": "short", "truncate": truncate});
        let answer = app.post("/v1/embeddings", body).await;
        assert_eq!(answer.header("x-space"), expected.header("x-space"), "{truncate}");
    }
    let whole = app.post("/models/by-config/embed", json!({"inputs": "short", "truncate": false})).await;
    let own = app.get("/models/by-config").await.ok()["space"].clone();
    assert_eq!((json!(whole.header("x-space")), json!(left.header("x-space"))), (own.clone(), own.clone()));
    let grain = app.post("/grains", json!({"text": long, "model": "by-config"})).await.ok();
    assert_eq!((&grain["meta"]["space"], &grain["meta"]["truncated"]), (&own, &json!(true)));
    let found = app.get(&format!("/grains/{}?include=vector", grain["id"].as_str().expect("an id"))).await.ok();
    let (kept, cut) = (vector_of(&found["vector"]), &vectors_of(&left.ok())[1]);
    assert!(cosine(&kept, cut) > 0.9999, "the end of the text");
    app.stop().await;
}

#[tokio::test]
async fn vectors_need_not_be_normalised() {
    let app = TestApp::start_with(&with_tiny(&["tiny-cls"])).await;
    let body = |normalize: bool| json!({"inputs": "hello", "model": "tiny-cls", "normalize": normalize});
    let raw = vectors_of(&app.post("/embed", body(false)).await.ok());
    let scaled = vectors_of(&app.post("/embed", body(true)).await.ok());
    assert!((norm(&raw[0]) - 1.0).abs() > 0.01 && (norm(&scaled[0]) - 1.0).abs() < 1e-5);
    assert!(cosine(&raw[0], &scaled[0]) > 0.99999);
    app.stop().await;
}

#[tokio::test]
async fn a_space_can_be_insisted_on() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let space = app.post("/embed", json!({"inputs": "hello"})).await.header("x-space").to_owned();
    assert_eq!(space.len(), 16, "{space}");
    assert_eq!(app.get("/models/tiny").await.ok()["space"], space);
    app.post("/embed", json!({"inputs": "hello", "expect_space": space})).await.ok();
    let other = app.post("/embed", json!({"inputs": "hello", "expect_space": "0123456789abcdef"})).await.tei_error();
    assert_eq!((other.0, other.1.as_str()), (412, "Validation"));
    assert!(other.2.contains(&space), "{}", other.2);
    app.stop().await;
}

#[tokio::test]
async fn the_root_takes_texts_and_sentences_as_inference_client_sends_them() {
    let app = TestApp::start_with(&with_tiny(&["tiny-cls"])).await;
    let embedded = app.post("/embed", json!({"inputs": "hello"})).await.ok();
    assert_eq!(app.post("/", json!({"inputs": "hello"})).await.ok(), embedded);
    let named = app.post("/models/tiny-cls", json!({"inputs": "hello"})).await;
    assert_eq!(named.header("x-model"), "tiny-cls");
    assert_eq!(named.ok(), app.post("/models/tiny-cls/embed", json!({"inputs": "hello"})).await.ok());

    let with_slash = app.post("/models/tiny-cls/", json!({"inputs": "hello"})).await;
    assert_eq!((with_slash.ok(), with_slash.header("x-model")), (named.ok(), "tiny-cls"));
    let unknown = app.post("/models/nope/", json!({"inputs": "hello"})).await.tei_error();
    assert_eq!((unknown.0, unknown.1.as_str()), (404, "NotFound"));
    assert_eq!(app.get("/models/tiny-cls/").await.tei_error().0, 405);

    let pair = json!({"inputs": {"source_sentence": "a", "sentences": ["a", "b"]}});
    for path in ["/", "/similarity", "/models/tiny", "/models/tiny/", "/models/tiny/similarity"] {
        let similarities = vector_of(&app.post(path, pair.clone()).await.ok());
        assert!(similarities.len() == 2 && (similarities[0] - 1.0).abs() < 1e-5 && similarities[1] < 1.0, "{path}");
    }
    app.stop().await;
}

#[tokio::test]
async fn the_root_reads_the_parameters_of_sentences_and_only_of_those() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let pair = json!({"source_sentence": "a", "sentences": ["word ".repeat(500)]});
    let compared = vector_of(&app.post("/similarity", json!({"inputs": pair})).await.ok());
    for path in ["/similarity", "/", "/invocations", "/models/tiny", "/models/tiny/"] {
        for parameters in [json!({}), json!(null), json!({"truncate": true})] {
            let answer = app.post(path, json!({"inputs": pair, "parameters": parameters})).await;
            assert_eq!(vector_of(&answer.ok()), compared, "{path}: {parameters}");
        }
        for (parameters, status) in [
            (json!({"truncate": false}), 422),
            (json!({"prompt_name": "nope"}), 422),
            (json!({"expect_space": "0123456789abcdef"}), 412),
            (json!({"model": "no-such-model"}), if path.starts_with("/models") { 200 } else { 404 }),
        ] {
            let answer = app.post(path, json!({"inputs": pair, "parameters": parameters})).await;
            assert_eq!(answer.status, status, "{path}: {parameters}: {}", answer.text);
        }
    }
    let beside = json!({"inputs": pair, "truncate": false, "parameters": {"normalize": true}});
    assert_eq!(app.post("/", beside).await.tei_error().0, 422, "what the parameters do not say is read beside them");
    let both = json!({"inputs": pair, "truncate": false, "parameters": {"truncate": true}});
    assert_eq!(vector_of(&app.post("/", both).await.ok()), compared);
    let blank = json!({"inputs": pair, "model": "no-such-model", "parameters": {"model": ""}});
    assert_eq!(app.post("/", blank).await.status, 404, "a blank name is none there too");

    let texts = json!({"inputs": "hello", "parameters": {"model": "no-such-model"}});
    let embedded = app.post("/embed", json!({"inputs": "hello"})).await.ok();
    for path in ["/", "/invocations", "/models/tiny"] {
        assert_eq!(app.post(path, texts.clone()).await.ok(), embedded, "{path}");
        for parameters in [json!({"truncate": "x"}), json!([]), json!("x")] {
            let beside_texts = json!({"inputs": "hello", "parameters": parameters});
            assert_eq!(app.post(path, beside_texts).await.ok(), embedded, "{path}: {parameters}");
        }
        // No number that is read, and no character.
        for parameters in [r#"{"a": 1e999}"#, r#""\ud800""#] {
            let body = format!(r#"{{"inputs": "hello", "parameters": {parameters}}}"#);
            let request = app.request(Method::POST, path).header("content-type", "application/json").body(body);
            assert_eq!(send(request).await.ok(), embedded, "{path}: {parameters}");
        }
        let beside_sentences = json!({"inputs": pair, "parameters": {"truncate": "x"}});
        let (status, _, sentence) = app.post(path, beside_sentences).await.tei_error();
        let said = "`parameters.truncate`: invalid type: string \"x\", expected a boolean";
        assert_eq!((status, sentence.as_str()), (422, said), "{path}");
    }
    app.stop().await;
}

#[tokio::test]
async fn what_is_wrong_with_sentences_is_named_as_they_were_sent() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let long = "word ".repeat(500);
    for path in ["/similarity", "/", "/models/tiny/similarity"] {
        for (source, sentences, said) in [
            ("", json!(["b"]), "`inputs.source_sentence` is empty"),
            ("a", json!(["b", ""]), "`inputs.sentences[1]` is empty"),
            (long.as_str(), json!(["b"]), "`inputs.source_sentence` has "),
            ("a", json!([long]), "`inputs.sentences[0]` has "),
            ("a", json!(vec!["b"; 2048]), "`inputs.sentences` has 2048 sentences; with the source sentence"),
        ] {
            let pair = json!({"source_sentence": source, "sentences": sentences});
            let body = json!({"inputs": pair, "parameters": {"truncate": false}});
            let (status, _, sentence) = app.post(path, body).await.tei_error();
            assert!([400, 422].contains(&status) && sentence.starts_with(said), "{path}: {status} {sentence}");
        }
    }
    let cut = json!({"inputs": {"source_sentence": "a", "sentences": ["b", long]}});
    assert_eq!(app.post("/similarity", cut).await.header("x-truncated"), "1; 2");
    app.stop().await;
}

#[tokio::test]
async fn tokens_are_shown_with_their_places_and_read_back() {
    let app = TestApp::start().await;
    let tokens = app.post("/tokenize", json!({"inputs": "Hello Wörld"})).await.ok();
    let ids: Vec<u64> =
        tokens[0].as_array().expect("tokens").iter().map(|t| t["id"].as_u64().expect("an id")).collect();
    assert_eq!(ids, [101, 7592, 2088, 102]);
    assert_eq!(tokens[0][2], json!({"id": 2088, "text": "Wörld", "special": false, "start": 6, "stop": 11}));
    assert_eq!(tokens[0][0]["special"], true);
    let bare = app.post("/tokenize", json!({"inputs": ["hello world"], "add_special_tokens": false})).await.ok();
    assert_eq!(bare[0].as_array().map(Vec::len), Some(2));
    assert_eq!(app.post("/decode", json!({"ids": ids})).await.ok(), json!(["hello world"]));
    let with_special = app.post("/decode", json!({"ids": [ids], "skip_special_tokens": false})).await.ok();
    assert_eq!(with_special, json!(["[CLS] hello world [SEP]"]));
    for (empty, said) in
        [(json!([]), "`ids` is empty"), (json!([[]]), "`ids[0]` is empty"), (json!([[101], []]), "`ids[1]` is empty")]
    {
        let refused = app.post("/decode", json!({"ids": empty})).await.tei_error();
        assert_eq!((refused.0, refused.1.as_str(), refused.2.as_str()), (400, "Empty", said));
    }
    for (foreign, said) in [
        (json!([1, 30_522]), "`ids` holds token id 30522,"),
        (json!([[1], [30_522]]), "`ids[1]` holds token id 30522,"),
        (json!([99_999_999_999_u64]), "`ids` holds a token id of 4294967295 or more,"),
    ] {
        let refused = app.post("/decode", json!({"ids": foreign})).await.tei_error();
        assert_eq!((refused.0, refused.1.as_str()), (400, "Tokenizer"), "{}", refused.2);
        assert!(refused.2.contains(said) && !refused.2.contains("inputs"), "{}", refused.2);
    }
    let refused = app.post("/embed", json!({"inputs": [4_294_967_296_u64]})).await.tei_error();
    assert!(refused.2.contains("`inputs[0]` holds a token id of 4294967295 or more,"), "{}", refused.2);
    app.stop().await;
}

#[tokio::test]
async fn info_has_the_fields_of_tei() {
    let app = TestApp::start_with(&with_tiny(&["tiny-cls"])).await;
    app.post("/models/tiny-cls/load", json!(null)).await.ok();
    let info = app.get("/models/tiny-cls/info").await.ok();
    assert_eq!(info["model_id"], "tiny-cls");
    assert_eq!(info["model_type"], json!({"embedding": {"pooling": "cls"}}));
    assert_eq!(info["max_input_length"], 128);
    assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
    let fields = [
        "model_sha",
        "model_dtype",
        "served_model_name",
        "max_concurrent_requests",
        "max_batch_tokens",
        "max_batch_requests",
        "max_client_batch_size",
        "auto_truncate",
        "tokenization_workers",
        "sha",
        "docker_label",
    ];
    for field in fields {
        assert!(info.get(field).is_some(), "{field}");
    }
    assert_eq!(app.get("/info").await.ok()["model_id"], TINY);
    app.stop().await;
}

#[tokio::test]
async fn what_needs_a_model_of_another_kind_is_refused_as_by_tei() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let pair = json!({"query": "What grows here?", "texts": ["Oats do.", "Nothing."]});
    for (route, body) in [
        ("rerank", pair),
        ("predict", json!({"inputs": "hello"})),
        ("embed_sparse", json!({"inputs": "hello"})),
        ("embed_all", json!({"inputs": "hello"})),
    ] {
        for path in [format!("/{route}"), format!("/models/tiny/{route}")] {
            let (status, kind, message) = app.post(&path, body.clone()).await.tei_error();
            assert_eq!((status, kind.as_str()), (424, "Backend"), "{path}: {message}");
            assert!(message.contains("no re-ranking"), "{path}: {message}");
            assert_eq!(app.get(&path).await.tei_error().0, 404, "{path}");
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn the_slash_in_a_models_name_is_said_to_be_written_otherwise_in_a_path() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let (status, _, sentence) = app.post("/models/acme/tiny/embed", json!({"inputs": "a"})).await.tei_error();
    assert!(status == 404 && sentence.contains("`acme%2Ftiny`"), "{status}: {sentence}");
    let answer = app.post("/models/acme/tiny/v1/embeddings", json!({"input": "a"})).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert!(answer.json()["error"]["message"].as_str().is_some_and(|said| said.contains("%2F")), "{}", answer.text);
    app.stop().await;
}

#[tokio::test]
async fn load_balancers_and_sagemaker_find_the_server_as_they_find_tei() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    for probe in ["/", "/ping"] {
        let answer = app.get(probe).await;
        assert_eq!((answer.status, answer.text.as_str()), (StatusCode::OK, ""), "{probe}");
    }
    let embedded = app.post("/embed", json!({"inputs": ["hello", "world"]})).await.ok();
    assert_eq!(app.post("/invocations", json!({"inputs": ["hello", "world"]})).await.ok(), embedded);
    let pair = json!({"inputs": {"source_sentence": "a", "sentences": ["a", "b"]}});
    let similarities = vector_of(&app.post("/invocations", pair).await.ok());
    assert!(similarities.len() == 2 && (similarities[0] - 1.0).abs() < 1e-5 && similarities[1] < 1.0);
    let refused = app.post("/invocations", json!({"inputs": []})).await.tei_error();
    assert_eq!((refused.0, refused.1.as_str()), (400, "Empty"), "{}", refused.2);
    app.stop().await;

    // The active model's folder is missing.
    let broken = with_tiny(&[]).replacen("path = \"", "path = \"/no/such", 1);
    let app = TestApp::start_with(&broken).await;
    app.post("/embed", json!({"inputs": "hello"})).await.tei_error();
    for probe in ["/", "/ping"] {
        let (status, kind, message) = app.get(probe).await.tei_error();
        assert_eq!((status, kind.as_str()), (503, "Unhealthy"), "{probe}: {message}");
    }
    app.stop().await;
}

#[tokio::test]
async fn health_answers_and_unknown_methods_say_which_would_do() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    assert_eq!(app.get("/health").await.status, StatusCode::OK);
    let refused = app.request(Method::PUT, "/embed").send().await.expect("an answer");
    assert_eq!(
        (refused.status(), refused.headers()["allow"].to_str().expect("ASCII")),
        (StatusCode::METHOD_NOT_ALLOWED, "POST")
    );
    assert_eq!(app.get("/embed").await.tei_error().0, 405);
    app.stop().await;
}
