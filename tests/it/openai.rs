//! The routes that OpenAI's clients use.

use base64::Engine as _;
use serde_json::{Value, json};

use crate::helpers::{MINILM, TestApp, cosine, key_entry, secret, vector_of, vectors_of, with_keys, with_tiny};

fn decoded(value: &Value) -> Vec<f32> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(value.as_str().expect("a text")).expect("base64");
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[tokio::test]
async fn numbers_and_base64_hold_the_same_vectors() {
    let app = TestApp::start().await;
    let body =
        |format: Value| json!({"model": MINILM, "input": ["hello world", "good morning"], "encoding_format": format});
    let numbers = app.post("/v1/embeddings", body(json!("float"))).await;
    let text = app.post("/v1/embeddings", body(json!("base64"))).await.ok();
    let list = numbers.ok();
    for index in 0..2 {
        assert_eq!(vector_of(&list["data"][index]["embedding"]), decoded(&text["data"][index]["embedding"]));
        assert_eq!(list["data"][index]["index"], index);
        assert_eq!(list["data"][index]["object"], "embedding");
    }
    assert_eq!((&list["object"], &list["model"]), (&json!("list"), &json!(MINILM)));
    // Special tokens count, as in OpenAI's own bills.
    assert_eq!(list["usage"], json!({"prompt_tokens": 8, "total_tokens": 8}));
    assert_eq!(app.post("/v1/embeddings", body(json!(null))).await.ok(), list, "`null` means absent");
    let embedded = vectors_of(&app.post("/embed", json!({"inputs": "hello world"})).await.ok());
    assert!(cosine(&embedded[0], &vector_of(&list["data"][0]["embedding"])) > 0.99999);
    for name in ["x-model", "x-space", "x-dimensions", "x-truncated"] {
        assert!(!numbers.header(name).is_empty(), "{name}");
    }
    app.stop().await;
}

#[tokio::test]
async fn what_clients_send_besides_is_taken_or_ignored() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let body =
        json!({"input": "hello", "model": null, "user": "u-1", "dimensions": null, "prefix": "x", "truncate": null});
    let answer = app.post("/v1/embeddings", body).await;
    assert_eq!(answer.ok()["model"], "tiny");
    let space = answer.header("x-space").to_owned();
    app.post("/v1/embeddings", json!({"input": "hello", "expect_space": space})).await.ok();
    let other = app.post("/v1/embeddings", json!({"input": "hello", "expect_space": "0123456789abcdef"})).await;
    assert_eq!(other.openai_error().0, 412);
    assert_eq!(other.openai_error().1, "space_mismatch");
    // Open WebUI sends an empty key when it has none.
    let request = app.request(reqwest::Method::POST, "/v1/embeddings").header("authorization", "Bearer ");
    assert!(request.json(&json!({"input": ["hello"]})).send().await.expect("an answer").status().is_success());
    app.stop().await;
}

#[tokio::test]
async fn embeddings_are_found_without_the_version_and_below_a_model() {
    let app = TestApp::start_with(&with_tiny(&["tiny-cls"])).await;
    let plain = app.post("/v1/embeddings", json!({"input": "hello"})).await.ok();
    assert_eq!(app.post("/embeddings", json!({"input": "hello"})).await.ok(), plain);
    let named = json!({"input": "hello", "model": "tiny-cls"});
    let of_other = app.post("/v1/embeddings", named.clone()).await.ok();
    assert_eq!(app.post("/embeddings", named).await.ok(), of_other);
    // As below every other `/models/{name}`, the model of the path counts.
    for model in [json!("tiny-cls"), json!("tiny"), json!("gpt-4"), json!(null)] {
        let body = json!({"input": "hello", "model": model});
        for path in ["/models/tiny-cls/v1/embeddings", "/models/tiny-cls/embeddings"] {
            let answer = app.post(path, body.clone()).await;
            assert_eq!((answer.ok(), answer.header("x-model")), (of_other.clone(), "tiny-cls"), "{path}: {model}");
        }
    }
    for path in ["/models/gpt-4/v1/embeddings", "/models/gpt-4/embeddings"] {
        let unknown = app.post(path, json!({"input": "hello"})).await.openai_error();
        assert_eq!((unknown.0, unknown.1.as_str()), (404, "model_not_found"), "{path}");
    }
    for path in ["/embeddings", "/models/tiny/v1/embeddings", "/models/tiny/embeddings"] {
        let empty = app.post(path, json!({"input": []})).await.openai_error();
        assert_eq!((empty.0, empty.1.as_str()), (400, "empty_input"), "{path}");
        assert_eq!(app.get(path).await.openai_error().0, 405, "{path}");
    }
    app.stop().await;
}

#[tokio::test]
async fn what_teis_clients_call_any_model_is_no_name_unless_a_model_answers_to_it() {
    let others = with_tiny(&["tiny-cls"]);
    let app = TestApp::start_with(&others).await;
    for path in ["/v1/embeddings", "/embeddings"] {
        for word in ["text-embeddings-inference", "tei", "TEI", "", " "] {
            let answer = app.post(path, json!({"input": "hello", "model": word})).await;
            assert_eq!((&answer.ok()["model"], answer.header("x-model")), (&json!("tiny"), "tiny"), "{path}: {word}");
        }
    }
    for word in ["tei2", "text-embedding-3-small"] {
        let unknown = app.post("/v1/embeddings", json!({"input": "hello", "model": word})).await.openai_error();
        assert_eq!((unknown.0, unknown.1.as_str()), (404, "model_not_found"), "{word}");
    }
    app.stop().await;

    let keys = with_keys(&[key_entry("other", &["embed"], "model = \"tiny-cls\"")]);
    let app = TestApp::start_with(&format!("{keys}{others}")).await;
    let caller = app.with_key(&secret("other"));
    for word in ["tei", ""] {
        let of_key = caller.post("/v1/embeddings", json!({"input": "hello", "model": word})).await;
        assert_eq!(of_key.ok()["model"], "tiny-cls", "the key's model counts where the request names none");
    }
    app.stop().await;

    let app = TestApp::start_with(&others.replacen("[[ai", "aliases = { tei = \"tiny-cls\" }\n[[ai", 1)).await;
    let of_alias = app.post("/v1/embeddings", json!({"input": "hello", "model": "tei"})).await;
    assert_eq!(of_alias.ok()["model"], "tiny-cls");
    app.stop().await;
}

#[tokio::test]
async fn the_words_of_other_apis_say_which_end_of_a_long_text_is_cut() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let text = format!("{}{}", "begin ".repeat(200), "finish ".repeat(200));
    let body = |truncate: Value| json!({"input": text, "truncate": truncate});
    for (truncate, direction) in
        [(json!(true), "right"), (json!("END"), "right"), (json!(null), "right"), (json!("START"), "left")]
    {
        let list = app.post("/v1/embeddings", body(truncate.clone())).await;
        let tei = app.post("/embed", json!({"inputs": text, "truncation_direction": direction})).await;
        let vector = vector_of(&list.ok()["data"][0]["embedding"]);
        assert_eq!(vector, vectors_of(&tei.ok())[0], "{truncate}");
        assert_eq!(list.header("x-space"), tei.header("x-space"), "{truncate}");
        assert_eq!(list.header("x-truncated"), "1; 0", "{truncate}");
    }
    for truncate in [json!(false), json!("NONE")] {
        let (status, code, sentence) = app.post("/v1/embeddings", body(truncate)).await.openai_error();
        assert_eq!((status, code.as_str()), (400, "input_too_long"), "{sentence}");
    }
    for truncate in [json!("MIDDLE"), json!(1), json!({})] {
        let refused = app.post("/v1/embeddings", body(truncate)).await;
        let (status, code, sentence) = refused.openai_error();
        assert_eq!((status, code.as_str()), (400, "invalid_request"), "{sentence}");
        assert_eq!(refused.json()["error"]["param"], "truncate", "{sentence}");
        assert!(sentence.contains("\"START\""), "{sentence}");
    }
    // As langchain-nvidia and llama-index send it.
    let mut nvidia = json!({"input": ["hello"], "model": "tiny", "encoding_format": "float"});
    nvidia["input_type"] = json!("passage");
    nvidia["truncate"] = json!("NONE");
    app.post("/v1/embeddings", nvidia).await.ok();
    // It is a word of OpenAI's route alone: TEI's field is a bool.
    assert_eq!(app.post("/embed", json!({"inputs": "hello", "truncate": "NONE"})).await.tei_error().0, 422);
    app.stop().await;
}

#[tokio::test]
async fn models_answer_to_their_names_hub_ids_and_aliases() {
    let toml = with_tiny(&[]).replace("[[ai", "aliases = { text-embedding-3-small = \"tiny\" }\n[[ai");
    let app = TestApp::start_with(&toml).await;
    let by_alias = app.post("/v1/embeddings", json!({"input": "hello", "model": "text-embedding-3-small"})).await;
    assert_eq!(by_alias.header("x-model"), "tiny");
    let by_case = app.post("/v1/embeddings", json!({"input": "hello", "model": "TINY"})).await;
    assert_eq!(by_case.ok()["model"], "tiny", "names are compared without case and answered as they are written");

    let listed = app.get("/v1/models").await.ok();
    assert_eq!(listed["object"], "list");
    let ids: Vec<&str> = listed["data"].as_array().expect("models").iter().filter_map(|m| m["id"].as_str()).collect();
    assert!(ids.contains(&"tiny") && ids.contains(&MINILM), "{ids:?}");
    let by_hub_id = app.get("/v1/models/sentence-transformers/all-MiniLM-L6-v2").await.ok();
    assert_eq!((&by_hub_id["id"], &by_hub_id["owned_by"]), (&json!(MINILM), &json!("sentence-transformers")));
    let of_path = app.get("/models/TINY/v1/models").await.ok();
    let tiny = app.get("/v1/models/tiny").await.ok();
    assert_eq!(of_path, json!({"object": "list", "data": [tiny]}), "below a model there is that one alone");
    for path in ["/v1/models/gpt-4", "/models/gpt-4/v1/models"] {
        let unknown = app.get(path).await.openai_error();
        assert_eq!((unknown.0, unknown.1.as_str()), (404, "model_not_found"), "{path}");
    }
    let unknown = app.post("/v1/embeddings", json!({"input": "hello", "model": "gpt-4"})).await;
    assert_eq!(unknown.json()["error"]["type"], "not_found_error");
    assert_eq!(unknown.json()["error"]["param"], "model");
    app.stop().await;
}
