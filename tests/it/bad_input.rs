//! What is wrong with a request is named, in the words of the route's family, and harms nobody else.

use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use serde_json::{Value, json};

use crate::helpers::{Answer, MINILM, TINY, TestApp, send, test_model, vectors_of, with_tiny};

/// Status, code or type, and a word of the sentence.
type Refusal = (u16, &'static str, &'static str);

/// An error in whatever family the route is of: status, code or type, sentence.
fn refusal(path: &str, answer: &Answer) -> (u16, String, String) {
    if path.starts_with("/v1") {
        answer.openai_error()
    } else if path.ends_with("/embed") || path == "/similarity" || path == "/" {
        answer.tei_error()
    } else {
        answer.problem()
    }
}

async fn assert_serves(app: &TestApp) {
    assert_eq!(vectors_of(&app.post("/embed", json!({"inputs": "hello"})).await.ok()).len(), 1);
}

#[tokio::test]
async fn inputs_that_cannot_be_embedded_are_refused_by_every_family() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let many: Vec<&str> = vec!["a"; 2049];
    // Input, then status, code and a word of the sentence: as TEI's clients and as OpenAI's read them.
    let cases: [(Value, Refusal, Refusal); 12] = [
        (json!(""), (400, "Empty", "inputs[0]"), (400, "empty_input", "input[0]")),
        (json!([]), (400, "Empty", "at least one"), (400, "empty_input", "at least one")),
        (json!([""]), (400, "Empty", "inputs[0]"), (400, "empty_input", "input[0]")),
        (json!(["a", ""]), (400, "Empty", "inputs[1]"), (400, "empty_input", "input[1]")),
        (json!(5), (422, "Validation", "a text"), (400, "invalid_request", "a text")),
        (json!(null), (422, "Validation", "a text"), (400, "invalid_request", "a text")),
        (json!({"a": 1}), (422, "Validation", "a text"), (400, "invalid_request", "a text")),
        (json!(["a", 5]), (422, "Validation", "token ids"), (400, "invalid_request", "token ids")),
        (json!(many), (422, "Validation", "2049"), (400, "too_many_inputs", "2048")),
        (
            json!(["a", "a".repeat((4 << 20) + 1)]),
            (422, "Validation", "`inputs[1]` has 4194305 bytes; a text takes 4194304"),
            (400, "input_too_long", "`server.max_text`"),
        ),
        (
            json!([[99_999]]),
            (400, "Tokenizer", "check_embedding_ctx_length=False"),
            (400, "token_ids", "check_embedding_ctx_length=False"),
        ),
        (json!([4_294_967_296_u64]), (400, "Tokenizer", "vocabulary"), (400, "token_ids", "text")),
    ];
    for (input, tei, openai) in cases {
        for path in ["/embed", "/", "/models/tiny/embed"] {
            if path == "/" && input.is_object() {
                continue; // an object is a sentence pair there
            }
            let (status, kind, sentence) = app.post(path, json!({"inputs": input})).await.tei_error();
            assert_eq!((status, kind.as_str()), (tei.0, tei.1), "{path}: {sentence}");
            let said = if path == "/" && tei.2 == "a text" { "texts" } else { tei.2 };
            assert!(sentence.contains(said), "{path}: {sentence}");
        }
        let (status, code, sentence) = app.post("/v1/embeddings", json!({"input": input})).await.openai_error();
        assert_eq!((status, code.as_str()), (openai.0, openai.1), "{sentence}");
        assert!(sentence.contains(openai.2) && !sentence.contains("`inputs"), "{sentence}");
    }
    let empty = app.post("/v1/embeddings", json!({"input": [[]]})).await.openai_error();
    assert_eq!((empty.1.as_str(), empty.2.as_str()), ("empty_input", "`input[0]` is empty"));
    // Any token ids are foreign to OpenAI's route, whatever the vocabulary.
    assert_eq!(app.post("/v1/embeddings", json!({"input": [1, 2]})).await.openai_error().1, "token_ids");
    assert_serves(&app).await;
    app.stop().await;
}

#[tokio::test]
async fn the_callers_own_words_come_back_as_they_were() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let pair = json!({"source_sentence": "a", "sentences": ["b"]});
    for (field, said) in [("model", "no model is called `inputs[3]`"), ("prompt_name", "has no prompt `inputs[3]`")] {
        for (path, body) in [
            ("/similarity", json!({"inputs": pair, "parameters": {field: "inputs[3]"}})),
            ("/v1/embeddings", json!({"input": "a", field: "inputs[3]"})),
        ] {
            let (_, _, sentence) = refusal(path, &app.post(path, body).await);
            assert!(sentence.contains(said), "{path}: {sentence}");
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn a_list_is_not_taken_for_the_fields_of_an_object() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    for (path, body) in [
        ("/grains/count", json!([null, null])),
        ("/models/tiny/accept", json!([null, null])),
        ("/reembeddings", json!(["tiny", null, null, null])),
    ] {
        let (status, code, sentence) = app.post(path, body).await.problem();
        assert_eq!((status, code.as_str()), (422, "invalid_request"), "{path}: {sentence}");
        assert!(sentence.contains("list"), "{path}: {sentence}");
    }
    for (path, status) in [("/embed", 422), ("/similarity", 422), ("/v1/embeddings", 400), ("/grains/count", 422)] {
        for body in [json!([]), json!([1]), json!([{"inputs": "a"}])] {
            let (refused_with, _, sentence) = refusal(path, &app.post(path, body).await);
            assert_eq!((refused_with, sentence.as_str()), (status, "the body is a list: send an object"), "{path}");
        }
        // A body that is needed nowhere may be `null`.
        let null = if path == "/grains/count" { json!(true) } else { json!(null) };
        for body in [null, json!(""), json!(5)] {
            let (refused_with, _, sentence) = refusal(path, &app.post(path, body).await);
            assert_eq!((refused_with, sentence.as_str()), (status, "the body is not an object: send one"), "{path}");
        }
        let broken = app.request(Method::POST, path).header(CONTENT_TYPE, "application/json").body("[");
        assert_eq!(refusal(path, &send(broken).await).0, 400, "{path}");
    }
    let import = app.request(Method::POST, "/grains/import").header(CONTENT_TYPE, "application/x-ndjson");
    let answer =
        send(import.body("[\"a\", \"a text\", null, null, null, null, null, null, null, null, null, null]")).await;
    assert!(answer.text.contains("the line is a list") && answer.text.contains("\"failed\":1"), "{}", answer.text);
    let twice = app.post("/grains/export", json!({"include": ["vector", "vector"]})).await.problem();
    assert_eq!((twice.0, twice.1.as_str()), (422, "invalid_request"), "{}", twice.2);
    app.stop().await;
}

#[tokio::test]
async fn nor_is_one_inside_a_body() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    // Each list has a value for every field, in their order.
    let filter = json!([["a"], null, null, null, null, null, null]);
    let times = json!([null, "2026-01-31T12:00:00Z", null, null]);
    let draft = json!(["a", "a text", null, null, null, null, null, null, null]);
    let options = json!([true, null, null, null, null, null, null, null, null]);
    for (path, body, place) in [
        ("/grains", json!({"grains": [{"text": "a text"}, draft]}), "grains[1]"),
        ("/grains/search", json!({"query": "a", "filter": filter}), "filter"),
        ("/grains/count", json!({"filter": filter}), "filter"),
        ("/grains/delete", json!({"filter": filter}), "filter"),
        ("/grains/export", json!({"filter": filter}), "filter"),
        ("/reembeddings", json!({"to": "tiny", "filter": filter}), "filter"),
        ("/grains/count", json!({"filter": {"created_at": times}}), "filter.created_at"),
        ("/grains/count", json!({"filter": {"updated_at": times}}), "filter.updated_at"),
        ("/similarity", json!({"inputs": ["a", ["b"]]}), "inputs"),
        (
            "/similarity",
            json!({"inputs": {"source_sentence": "a", "sentences": ["b"]}, "parameters": options}),
            "parameters",
        ),
        ("/", json!({"inputs": {"source_sentence": "a", "sentences": ["b"]}, "parameters": options}), "parameters"),
        ("/models", json!({"name": "other", "path": "tiny", "prompts": ["a: ", "b: "]}), "prompts"),
    ] {
        let (status, _, sentence) = refusal(path, &app.post(path, body).await);
        assert_eq!((status, sentence), (422, format!("`{place}`: it is a list: send an object")), "{path}");
    }
    for (tags, found) in [
        (json!(["rye"]), "it is a list: send an object"),
        (json!([["x"], null, null]), "it is a list: send an object"),
        (json!("rye"), "invalid type: string \"rye\", expected an object"),
    ] {
        let (_, _, sentence) = app.post("/grains/count", json!({"filter": {"tags": tags}})).await.problem();
        assert_eq!(sentence, format!("`filter.tags`: {found} such as {{\"any\": [\"rye\"]}}"));
    }
    // What is a condition on an attribute is a value or an object, and says so.
    let condition = json!([[1], null, null, null, null, null, null, null]);
    let answer = app.post("/grains/count", json!({"filter": {"attributes": {"year": condition}}})).await;
    let (status, _, sentence) = answer.problem();
    assert!(status == 422 && sentence.contains("expected a string, a number or a boolean"), "{sentence}");
    let lines = [
        json!({"text": "a text", "meta": [null, null, null, null, null, null, null, null]}),
        json!({"space": ["a fingerprint", {}]}),
        json!({"end": [3]}),
    ];
    let lines = lines.map(|line| line.to_string()).join("\n");
    let import = app.request(Method::POST, "/grains/import").header(CONTENT_TYPE, "application/x-ndjson");
    let answer = send(import.body(lines)).await;
    let n_lists = answer.text.matches("it is a list: send an object").count();
    assert!(n_lists == 3 && answer.text.contains("\"failed\":3"), "{}", answer.text);
    app.stop().await;
}

#[tokio::test]
async fn unknown_fields_are_refused_on_granarys_own_routes() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    app.post("/grains", json!({"id": "kept", "text": "kept", "source": "s"})).await.ok();
    let of_many = json!({"grains": [{"text": "a"}], "model": TINY});
    for (method, path, body, field) in [
        (Method::POST, "/grains", json!({"text": "a", "tag": ["x"]}), "tag"),
        (Method::POST, "/grains", json!({"grains": [{"text": "a", "metadata": {}}]}), "metadata"),
        (Method::POST, "/grains", of_many, "model"),
        (Method::PUT, "/grains/kept", json!({"text": "a", "meta": {"source": "x"}}), "meta"),
        (Method::PATCH, "/grains/kept", json!({"tag": []}), "tag"),
        (Method::POST, "/grains/search", json!({"query": "kept", "filters": {}}), "filters"),
        (Method::POST, "/grains/count", json!({"filters": {}}), "filters"),
        (Method::POST, "/grains/delete", json!({"filter": {"source": "s"}, "expect_count": 5}), "expect_count"),
        (Method::POST, "/grains/export", json!({"filters": {}}), "filters"),
        (Method::POST, "/reembeddings", json!({"to": TINY, "filters": {}}), "filters"),
        (Method::POST, "/comparisons", json!({"to": TINY, "samples": 5}), "samples"),
        (Method::POST, "/spaces", json!({"name": "ours", "dimensions": 3, "model": TINY}), "model"),
        (Method::POST, "/spaces/adopt", json!({"models": TINY}), "models"),
        (Method::POST, "/models", json!({"name": "other", "path": TINY, "poolings": "cls"}), "poolings"),
        (Method::POST, "/models/tiny/accept", json!({"numeric": true}), "numeric"),
        (Method::POST, "/models/tiny/unload", json!({"disabled": true}), "disabled"),
        (Method::PUT, "/models/active", json!({"name": TINY, "reembedding": true}), "reembedding"),
    ] {
        let (status, code, sentence) = send(app.request(method, path).json(&body)).await.problem();
        assert_eq!((status, code.as_str()), (422, "invalid_request"), "{path}: {sentence}");
        assert!(sentence.contains(&format!("unknown field `{field}`, expected ")), "{path}: {sentence}");
    }
    for (method, path, name, expected) in [
        (Method::GET, "/grains?tags=rye", "tags", "one of `limit`, `cursor`, `sort`, `filter`, `include`"),
        (Method::GET, "/grains/kept?includes=vector", "includes", "`include`"),
        (Method::POST, "/grains?partly=true", "partly", "`partial`"),
        (Method::POST, "/grains/import?on-conflict=skip", "on-conflict", "`on_conflict` or `reembed`"),
        (Method::DELETE, "/models/tiny?forced=true", "forced", "`force`"),
    ] {
        let (status, code, sentence) = send(app.request(method, path).json(&json!({"text": "a"}))).await.problem();
        assert_eq!((status, code.as_str()), (422, "invalid_request"), "{path}: {sentence}");
        assert_eq!(sentence, format!("unknown parameter `{name}` in the query, expected {expected}"), "{path}");
    }
    let kept = app.get("/grains").await.ok();
    assert_eq!((&kept["grains"][0]["version"], &kept["grains"][1]), (&json!(1), &Value::Null), "{kept}");
    app.stop().await;
}

#[tokio::test]
async fn a_field_that_is_null_is_absent_in_one_grain_and_beside_many() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let mut body = json!({"grains": null, "text": "one"});
    for field in ["id", "source", "tags", "attributes", "model", "vector", "space", "verify"] {
        body[field] = Value::Null;
    }
    assert_eq!(app.post("/grains", body.clone()).await.ok()["text"], "one");
    body["grains"] = json!([{"id": "many", "text": "many"}]);
    body["text"] = Value::Null;
    assert_eq!(app.post("/grains", body.clone()).await.ok()["grains"][0]["id"], "many");
    body["verify"] = json!(false);
    let (status, _, sentence) = app.post("/grains", body).await.problem();
    assert_eq!((status, sentence.as_str()), (422, "`verify`: unknown field `verify`, expected `grains`"));
    let (status, _, sentence) = app.post("/grains", json!({"grains": null, "text": null})).await.problem();
    assert_eq!((status, sentence.as_str()), (422, "missing field `text`"));
    app.stop().await;
}

#[tokio::test]
async fn and_ignored_where_clients_of_other_servers_send_them() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let pair = json!({"source_sentence": "a", "sentences": ["b"]});
    for (path, mut body) in [
        ("/embed", json!({"inputs": "a"})),
        ("/", json!({"inputs": "a"})),
        ("/models/tiny/embed", json!({"inputs": "a"})),
        ("/similarity", json!({"inputs": pair})),
        ("/tokenize", json!({"inputs": "a"})),
        ("/decode", json!({"ids": [7]})),
        ("/v1/embeddings", json!({"input": "a"})),
    ] {
        body["something_new"] = json!({"a": [1, null]});
        app.post(&format!("{path}?something=new"), body).await.ok();
    }
    app.stop().await;
}

#[tokio::test]
async fn bodies_that_are_not_json_are_refused_by_every_family() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    for path in ["/embed", "/", "/models/tiny/embed", "/v1/embeddings", "/models/active"] {
        let request = |body: &str| {
            let method = if path == "/models/active" { Method::PUT } else { Method::POST };
            app.request(method, path).body(body.to_owned())
        };
        let typed = |body: &str| request(body).header(CONTENT_TYPE, "application/json");
        let field = match path {
            "/models/active" => "name",
            "/v1/embeddings" => "input",
            _ => "inputs",
        };
        let malformed = [
            String::new(),
            "{".to_owned(),
            format!("{{\"{field}\": \"a\""),
            "\u{feff}{}".to_owned(),
            format!("{{\"{field}\": \"\\ud800\"}}"),
        ];
        for body in &malformed {
            let (status, code, sentence) = refusal(path, &send(typed(body)).await);
            let expected = if code == "Validation" { "Validation" } else { "malformed_json" };
            assert_eq!((status, code.as_str()), (400, expected), "{path} {body:?}: {sentence}");
            assert_eq!(sentence.contains("byte order mark"), body.starts_with('\u{feff}'), "{path}: {sentence}");
            let names_half = sentence.contains(&format!("`{field}` holds half of a surrogate pair"));
            assert_eq!(names_half, body.contains("ud800"), "{path}: {sentence}");
        }
        let deep = format!("{{\"{field}\": {}}}", "[".repeat(100_000));
        let (status, _, sentence) = refusal(path, &send(typed(&deep)).await);
        assert!((400..=422).contains(&status), "{path}: {status} {sentence}");
        let (status, _, sentence) = refusal(path, &send(request("{}")).await);
        assert_eq!(status, 415, "{path}: {sentence}");
        assert!(sentence.contains("application/json"), "{sentence}");
        let strange = request("{}").header(CONTENT_TYPE, HeaderValue::from_bytes(b"\xc3\xa4").expect("a value"));
        let (status, _, sentence) = refusal(path, &send(strange).await);
        assert!(status == 415 && sentence.starts_with("the content type is `ä`"), "{path}: {status} {sentence}");
        let as_form = request("a=b").header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        assert_eq!(refusal(path, &send(as_form).await).0, 415, "{path}");
        let (status, _, sentence) = refusal(path, &send(typed("{}")).await);
        let missing = if path.starts_with("/v1") {
            (400, "`input`")
        } else if path == "/models/active" {
            (422, "`name`")
        } else {
            (422, "`inputs`")
        };
        assert_eq!(status, missing.0, "{path}: {sentence}");
        assert!(sentence.contains(missing.1), "{path}: {sentence}");
    }
    assert_serves(&app).await;
    app.stop().await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_and_the_limit_named() {
    let app = TestApp::start_with(&format!("[server]\nmax_body = \"1MiB\"\n{}", with_tiny(&[]))).await;
    let large = "x".repeat(4 << 20);
    for (path, field) in [("/embed", "inputs"), ("/v1/embeddings", "input"), ("/models/tiny/embed", "inputs")] {
        let (status, _, sentence) = refusal(path, &app.post(path, json!({field: large})).await);
        assert_eq!(status, 413, "{path}: {sentence}");
        assert!(sentence.contains("1.0 MiB") && sentence.contains("server.max_body"), "{sentence}");
    }
    assert_serves(&app).await;
    app.stop().await;
}

#[tokio::test]
async fn three_megabytes_in_one_text_are_cut_and_said_so() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let answer = app.post("/embed", json!({"inputs": "word ".repeat(600_000)})).await;
    answer.ok();
    assert_eq!((answer.header("x-truncated"), answer.header("x-compute-tokens")), ("1; 0", "128"));
    app.stop().await;
}

#[tokio::test]
async fn fields_of_the_wrong_kind_are_named() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let cases = [
        ("truncate", json!("yes")),
        ("normalize", json!(1)),
        ("truncation_direction", json!("up")),
        ("truncation_direction", json!(1)),
        ("input_type", json!(1)),
        ("priority", json!(["background"])),
        ("dimensions", json!(-1)),
        ("dimensions", json!("32")),
        ("dimensions", json!(1.5)),
        ("model", json!(7)),
        ("prompt_name", json!([])),
        ("prompt_name", json!("query")),
        ("expect_space", json!("short")),
        ("expect_space", json!("zzzzzzzzzzzzzzzz")),
    ];
    for (field, value) in cases {
        let (status, kind, sentence) = app.post("/embed", json!({"inputs": "a", field: value})).await.tei_error();
        assert_eq!((status, kind.as_str()), (422, "Validation"), "{field}: {sentence}");
        assert!(sentence.contains(field), "{field}: {sentence}");
        if field == "normalize" || field == "truncation_direction" {
            continue; // not OpenAI's
        }
        let answer = app.post("/v1/embeddings", json!({"input": "a", field: value})).await;
        let (status, _, sentence) = answer.openai_error();
        assert_eq!(status, 400, "{field}: {sentence}");
        assert_eq!(answer.json()["error"]["param"], field, "{sentence}");
    }
    for format in [json!("int8"), json!(1)] {
        let answer = app.post("/v1/embeddings", json!({"input": "a", "encoding_format": format})).await;
        let (status, code, sentence) = answer.openai_error();
        assert_eq!((status, code.as_str()), (400, "invalid_request"), "{sentence}");
        assert_eq!(answer.json()["error"]["param"], "encoding_format", "{sentence}");
    }
    app.stop().await;
}

#[tokio::test]
async fn dimensions_that_a_model_does_not_offer_are_refused_and_its_own_always_legal() {
    let shortened = format!(
        "[[ai.additional_models]]\nname = \"short\"\npath = \"{}\"\nmatryoshka_dims = [16, 8]\n",
        test_model("tiny").display()
    );
    let app = TestApp::start_with(&format!("{}{shortened}", with_tiny(&[]))).await;
    for (model, dimensions, offered) in
        [("tiny", 0, "32"), ("tiny", 16, "32"), ("tiny", 9999, "32"), ("short", 9, "16, 8"), ("short", 33, "32 and 16")]
    {
        let tei =
            app.post("/embed", json!({"inputs": "a", "model": model, "dimensions": dimensions})).await.tei_error();
        assert_eq!((tei.0, tei.1.as_str()), (422, "Validation"), "{}", tei.2);
        assert!(tei.2.contains(offered) && tei.2.contains(&dimensions.to_string()), "{}", tei.2);
        let body = json!({"input": "a", "model": model, "dimensions": dimensions});
        let openai = app.post("/v1/embeddings", body).await.openai_error();
        assert_eq!((openai.0, openai.1.as_str()), (400, "dimensions"), "{}", openai.2);
    }
    for (model, dimensions) in [("tiny", 32), ("short", 32), ("short", 16), ("short", 8)] {
        let answer = app.post("/embed", json!({"inputs": "a", "model": model, "dimensions": dimensions})).await;
        assert_eq!(vectors_of(&answer.ok())[0].len(), dimensions);
    }
    app.stop().await;
}

#[tokio::test]
async fn models_that_are_not_known_are_not_found_by_any_family() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let long = "m".repeat(10_000);
    for name in ["gpt-4", "auto", "active2", "../tiny", "tiny/..", "\u{0}", "tiny\n", "%2e%2e", long.as_str()] {
        let tei = app.post("/embed", json!({"inputs": "a", "model": name})).await.tei_error();
        assert_eq!((tei.0, tei.1.as_str()), (404, "NotFound"), "{name:?}: {}", tei.2);
        assert!(tei.2.contains("`tiny`") && tei.2.len() < 1_000, "{}", tei.2);
        let openai = app.post("/v1/embeddings", json!({"input": "a", "model": name})).await.openai_error();
        assert_eq!((openai.0, openai.1.as_str()), (404, "model_not_found"), "{name:?}");
        // There it is no name: the machine chooses.
        if name != "auto" {
            let native = app.put("/models/active", json!({"name": name})).await.problem();
            assert_eq!((native.0, native.1.as_str()), (404, "model_not_found"), "{name:?}");
        }
    }
    // On TEI's and OpenAI's routes a blank name is none; a switch needs one.
    for blank in ["", " "] {
        let native = app.put("/models/active", json!({"name": blank})).await.problem();
        assert_eq!((native.0, native.1.as_str()), (404, "model_not_found"), "{blank:?}");
    }
    for path in ["/models/gpt-4", "/models/..%2f..%2fetc", "/models/%00", "/models/%ff"] {
        assert_eq!(app.get(path).await.problem().0, 404, "{path}");
    }
    app.stop().await;
}

#[tokio::test]
async fn unknown_paths_and_methods_are_answered_in_json() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    for path in ["/nothing", "/models/tiny/nothing", "/docs2", "/grains/x/y"] {
        let (status, code, _) = app.get(path).await.problem();
        assert_eq!((status, code.as_str()), (404, "not_found"), "{path}");
    }
    assert_eq!(app.get("/v1/nothing").await.openai_error().0, 404);
    let (status, code, _) = send(app.request(Method::DELETE, "/models")).await.problem();
    assert_eq!((status, code.as_str()), (405, "method_not_allowed"));
    assert_eq!(app.get("/v1/embeddings").await.openai_error().0, 405);
    app.stop().await;
}

const SHORT_QUEUE: &str = "[engine]\nmax_batch_tokens = 64\nmax_queue_tokens = 256\nworkers = 1\n";

#[tokio::test]
async fn a_full_queue_refuses_without_reading_the_texts() {
    let app = TestApp::start_with(SHORT_QUEUE).await;
    let ask = async || app.post("/embed", json!({"inputs": [[u32::MAX]]})).await.tei_error().1;
    assert_eq!(ask().await, "Tokenizer");
    tokio::select! {
        _ = app.post("/embed", json!({"inputs": vec![vec![2023; 200]; 32]})) => panic!("no id was refused unread"),
        () = async { while ask().await != "Overloaded" {} } => {}
    }
    app.stop().await;
}

#[tokio::test]
async fn a_full_queue_refuses_with_a_time_and_no_accepted_request_is_lost() {
    let app = TestApp::start_with(&format!("{SHORT_QUEUE}{}", with_tiny(&[]))).await;
    let texts: Vec<String> = (0..64).map(|n| format!("{n} {}", "words ".repeat(100))).collect();
    let answers = futures::future::join_all((0..32).map(|_| app.post("/embed", json!({"inputs": texts})))).await;
    let (accepted, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status.is_success());
    assert!(!accepted.is_empty() && !refused.is_empty(), "{} accepted, {} refused", accepted.len(), refused.len());
    for answer in refused {
        let (status, kind, sentence) = answer.tei_error();
        assert_eq!((status, kind.as_str()), (429, "Overloaded"), "{sentence}");
        assert!(sentence.contains("256") && sentence.contains("engine.max_queue_tokens"), "{sentence}");
        assert!(answer.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds >= 1));
    }
    assert!(accepted.iter().all(|answer| vectors_of(&answer.ok()).len() == 64));
    assert_serves(&app).await;
    app.stop().await;
}

#[tokio::test]
async fn one_callers_bad_tokens_do_not_fail_the_requests_beside_it() {
    let app = TestApp::start().await;
    let bad = (0..8).map(|_| app.post("/embed", json!({"inputs": [[7592], [30_521], [30_522]]})));
    let good = (0..8).map(|n| app.post("/embed", json!({"inputs": format!("good {n}"), "model": MINILM})));
    let (bad, good) = tokio::join!(futures::future::join_all(bad), futures::future::join_all(good));
    for answer in bad {
        let (status, kind, sentence) = answer.tei_error();
        assert_eq!((status, kind.as_str()), (400, "Tokenizer"));
        assert!(sentence.contains("inputs[2]") && sentence.contains("30522"), "{sentence}");
    }
    for answer in good {
        answer.ok();
    }
    app.stop().await;
}
