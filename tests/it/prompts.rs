//! A model's prompts: by their names, and by what a text is in a search, which every model takes.

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::helpers::{TINY, TestApp, copy_folder, cosine, entry_of, test_model, vector_of, vectors_of, with_tiny};

/// `tiny`, and the same files with prompts, as `asking`.
fn with_prompts() -> String {
    let asking = entry_of(TINY).replace("name = \"tiny\"", "name = \"asking\"");
    with_tiny(&[]) + &asking + "prompts = { query = \"the question \", document = \"the text \" }\n"
}

async fn embedded(app: &TestApp, model: &str, body: Value) -> Vec<f32> {
    vectors_of(&app.post(&format!("/models/{model}/embed"), body).await.ok()).swap_remove(0)
}

#[tokio::test]
async fn an_input_type_puts_the_models_prompt_before_each_text() {
    let app = TestApp::start_with(&with_prompts()).await;
    let query = embedded(&app, "tiny", json!({"inputs": "the question of grain"})).await;
    let document = embedded(&app, "tiny", json!({"inputs": "the text of grain"})).await;
    let plain = embedded(&app, "tiny", json!({"inputs": "of grain"})).await;
    for (fields, expected) in [
        (json!({}), &plain),
        (json!({"input_type": null}), &plain),
        (json!({"input_type": "query"}), &query),
        (json!({"input_type": "document"}), &document),
        (json!({"input_type": "passage"}), &document),
        (json!({"input_type": "search_query"}), &query),
        (json!({"input_type": "search_document"}), &document),
        (json!({"prompt_name": "query"}), &query),
        (json!({"prompt_name": "document", "input_type": "passage"}), &document),
    ] {
        let with = |field: &str| {
            let mut body = fields.clone();
            body[field] = json!("of grain");
            body
        };
        assert_eq!(&embedded(&app, "asking", with("inputs")).await, expected, "{fields}");
        let root = app.post("/models/asking", with("inputs")).await.ok();
        assert_eq!(&vectors_of(&root)[0], expected, "{fields}");
        let mut body = with("input");
        body["model"] = json!("asking");
        let list = app.post("/v1/embeddings", body).await.ok();
        assert_eq!(&vector_of(&list["data"][0]["embedding"]), expected, "{fields}");
    }
    app.stop().await;
}

#[tokio::test]
async fn similarity_and_tokenize_take_an_input_type_too() {
    let app = TestApp::start_with(&with_prompts()).await;
    let sentences = |source: &str, other: &str| json!({"source_sentence": source, "sentences": [other]});
    let by_hand = json!({"inputs": sentences("the question of grain", "the question of bread")});
    let by_hand = app.post("/models/tiny/similarity", by_hand).await.ok();
    let body = json!({"inputs": sentences("of grain", "of bread"), "parameters": {"input_type": "query"}});
    assert_eq!(app.post("/models/asking/similarity", body).await.ok(), by_hand);
    let body = json!({"inputs": sentences("of grain", "of bread"), "input_type": "query"});
    assert_eq!(app.post("/models/asking", body).await.ok(), by_hand);

    let by_hand = app.post("/models/tiny/tokenize", json!({"inputs": "the text of grain"})).await.ok();
    let tokens = app.post("/models/asking/tokenize", json!({"inputs": "of grain", "input_type": "passage"})).await.ok();
    assert_eq!(tokens, by_hand);
    let tokens = app.post("/models/tiny/tokenize", json!({"inputs": "hello", "input_type": "query"})).await.ok();
    assert_eq!(tokens, app.post("/models/tiny/tokenize", json!({"inputs": "hello"})).await.ok(), "it has no prompts");
    app.stop().await;
}

#[tokio::test]
async fn a_model_without_prompts_takes_an_input_type_and_refuses_a_prompts_name() {
    let app = TestApp::start_with(&with_prompts()).await;
    let plain = embedded(&app, "tiny", json!({"inputs": "grain"})).await;
    for input_type in ["query", "document", "passage"] {
        assert_eq!(embedded(&app, "tiny", json!({"inputs": "grain", "input_type": input_type})).await, plain);
    }
    let cases = [
        (json!({"prompt_name": "query"}), "`tiny` has no prompt `query`"),
        (json!({"prompt_name": "query", "input_type": "query"}), "`tiny` has no prompt `query`"),
        (json!({"prompt_name": "query", "input_type": "document"}), "which are two prompts"),
        (json!({"input_type": "question"}), "input_type"),
    ];
    for (fields, said) in cases {
        let with = |field: &str| {
            let mut body = fields.clone();
            body[field] = json!("grain");
            body
        };
        for route in ["/embed", "/", "/tokenize"] {
            let (status, kind, sentence) = app.post(route, with("inputs")).await.tei_error();
            assert_eq!((status, kind.as_str()), (422, "Validation"), "{route} {fields}: {sentence}");
            assert!(sentence.contains(said), "{route} {fields}: {sentence}");
        }
        let (status, _, sentence) = app.post("/v1/embeddings", with("input")).await.openai_error();
        assert_eq!(status, 400, "{fields}: {sentence}");
        assert!(sentence.contains(said), "{fields}: {sentence}");
    }
    app.stop().await;
}

#[tokio::test]
async fn token_ids_are_refused_where_a_prompt_would_stand_before_them() {
    let app = TestApp::start_with(&with_prompts()).await;
    let tokens = app.post("/tokenize", json!({"inputs": "of grain"})).await.ok();
    let ids: Vec<&Value> = tokens[0].as_array().expect("tokens").iter().map(|token| &token["id"]).collect();
    for (fields, field) in [
        (json!({"prompt_name": "query"}), "prompt_name"),
        (json!({"input_type": "query"}), "input_type"),
        (json!({"prompt_name": "document", "input_type": "passage"}), "prompt_name"),
    ] {
        for inputs in [json!(ids), json!(["of grain"]), json!([ids])] {
            let mut body = fields.clone();
            body["inputs"] = inputs.clone();
            let answer = app.post("/models/asking/embed", body).await;
            if inputs[0].is_string() {
                answer.ok();
                continue;
            }
            let (status, kind, sentence) = answer.tei_error();
            assert_eq!((status, kind.as_str()), (422, "Validation"), "{fields}: {sentence}");
            assert!(sentence.contains("before token ids") && sentence.contains(&format!("`{field}`")), "{sentence}");
        }
    }
    let plain = embedded(&app, "tiny", json!({"inputs": "of grain"})).await;
    for (model, body) in [("tiny", json!({"inputs": ids, "input_type": "query"})), ("asking", json!({"inputs": ids}))] {
        assert!(cosine(&embedded(&app, model, body).await, &plain) >= 0.9999, "{model} puts nothing before them");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_prompt_of_the_models_files_is_known_by_its_name_and_changes_no_space() {
    let folder = TempDir::new().expect("a folder");
    copy_folder(&test_model(TINY), folder.path());
    let prompts = |prompts: Value| {
        let file = folder.path().join("config_sentence_transformers.json");
        fs_err::write(file, json!({"prompts": prompts}).to_string()).expect("written");
    };
    let entry = format!("[[ai.additional_models]]\nname = \"asking\"\npath = \"{}\"\n", folder.path().display());
    let toml = with_tiny(&[]) + &entry;

    prompts(json!({"query": "", "document": "", "clustering": "the group "}));
    let app = TestApp::start_with(&toml).await;
    let plain = embedded(&app, "tiny", json!({"inputs": "of grain"})).await;
    let group = embedded(&app, "tiny", json!({"inputs": "the group of grain"})).await;
    for (name, expected) in [("query", &plain), ("document", &plain), ("clustering", &group)] {
        let answer = app.post("/models/asking/embed", json!({"inputs": "of grain", "prompt_name": name})).await;
        assert_eq!(&vectors_of(&answer.ok())[0], expected, "{name}");
        let space = app.post("/embed", json!({"inputs": "of grain"})).await.header("x-space").to_owned();
        assert_eq!(answer.header("x-space"), space, "{name}");
        let body = json!({"model": "asking", "input": "of grain", "prompt_name": name});
        let list = app.post("/v1/embeddings", body).await.ok();
        assert_eq!(&vector_of(&list["data"][0]["embedding"]), expected, "{name}");
    }
    let body = json!({"inputs": "of grain", "prompt_name": "passage"});
    let (status, _, sentence) = app.post("/models/asking/embed", body).await.tei_error();
    assert_eq!(status, 422, "{sentence}");
    assert!(sentence.contains("it has `clustering`, `document`, `query`"), "{sentence}");
    app.stop().await;

    prompts(json!({"query": "the question ", "passage": "the text "}));
    let app = TestApp::start_with(&toml).await;
    let text = embedded(&app, "tiny", json!({"inputs": "the text of grain"})).await;
    for name in ["passage", "document"] {
        assert_eq!(embedded(&app, "asking", json!({"inputs": "of grain", "prompt_name": name})).await, text, "{name}");
    }
    app.stop().await;
}

#[tokio::test]
async fn both_apis_offer_only_the_lengths_a_model_was_trained_for_and_name_their_spaces() {
    let short = format!(
        "[[ai.additional_models]]\nname = \"short\"\npath = \"{}\"\nmatryoshka_dims = [16, 8]\n\
         prompts = {{ query = \"the question \" }}\n",
        test_model(TINY).display()
    );
    let app = TestApp::start_with(&(with_tiny(&[]) + &short)).await;
    let whole = app.post("/models/short/embed", json!({"inputs": "the question of grain"})).await;
    let whole_vector = vectors_of(&whole.ok()).swap_remove(0);
    let mut spaces = vec![whole.header("x-space").to_owned()];
    for length in [16_usize, 8] {
        let kept = &whole_vector[..length];
        let norm = kept.iter().map(|x| x * x).sum::<f32>().sqrt();
        let expected: Vec<f32> = kept.iter().map(|x| x / norm).collect();
        let tei = json!({"inputs": "of grain", "input_type": "query", "dimensions": length});
        let tei = app.post("/models/short/embed", tei).await;
        let openai = json!({"model": "short", "input": "of grain", "prompt_name": "query", "dimensions": length});
        let openai = app.post("/v1/embeddings", openai).await;
        let found = vectors_of(&tei.ok()).swap_remove(0);
        assert_eq!(vector_of(&openai.ok()["data"][0]["embedding"]), found);
        assert!(found.len() == length && found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "{length}");
        assert_eq!(tei.header("x-space"), openai.header("x-space"));
        spaces.push(tei.header("x-space").to_owned());
    }
    spaces.sort_unstable();
    spaces.dedup();
    assert_eq!(spaces.len(), 3, "{spaces:?}");
    for (model, length, said) in [("short", 12, "its native 32 and 16, 8"), ("tiny", 16, "only its native 32")] {
        let refused =
            app.post("/embed", json!({"inputs": "a", "model": model, "dimensions": length})).await.tei_error();
        assert!(refused.0 == 422 && refused.2.contains(said), "{refused:?}");
        let body = json!({"input": "a", "model": model, "dimensions": length});
        let refused = app.post("/v1/embeddings", body).await.openai_error();
        assert!(refused.0 == 400 && refused.2.contains(said), "{refused:?}");
    }
    for model in ["tiny", "short"] {
        assert_eq!(app.get(&format!("/models/{model}/info")).await.ok()["served_model_name"], model);
        assert_eq!(app.get(&format!("/v1/models/{model}")).await.ok()["id"], model);
    }
    app.stop().await;
}
