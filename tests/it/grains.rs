//! Grains are written, read, changed and deleted by their ids, one or many at a time.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tempfile::TempDir;

use crate::helpers::{
    Answer, Caller, Chance, TINY, TestApp, cosine, norm, percent_encoded, send, sha256, vector_of, vectors_of,
    with_tiny,
};

/// The space of a model.
async fn space_of(app: &Caller, model: &str) -> String {
    let model = app.post(&format!("/models/{model}/load"), json!({})).await.ok();
    model["space"].as_str().expect("a space").to_owned()
}

async fn state_of(app: &Caller, model: &str) -> String {
    app.get(&format!("/models/{model}")).await.ok()["state"].as_str().expect("a state").to_owned()
}

/// How many grains there are.
async fn count(app: &Caller) -> u64 {
    app.post("/grains/count", json!({})).await.ok()["count"].as_u64().expect("a count")
}

async fn embed(app: &Caller, text: &str) -> Vec<f32> {
    vectors_of(&app.post("/embed", json!({"inputs": text})).await.ok()).remove(0)
}

async fn vector_of_grain(app: &Caller, id: &str) -> Vec<f32> {
    vector_of(&app.get(&format!("/grains/{id}?include=vector")).await.ok()["vector"])
}

fn assert_same(a: &[f32], b: &[f32]) {
    assert!(cosine(a, b) >= 0.9999, "cosine {}", cosine(a, b));
}

async fn with_header(app: &Caller, method: Method, path: &str, header: (&str, &str), body: Value) -> Answer {
    send(app.request(method, path).header(header.0, header.1).json(&body)).await
}

fn refused(answer: &Answer, status: u16, code: &str, sentence: &str) {
    let (found_status, found_code, detail) = answer.problem();
    assert_eq!((found_status, found_code.as_str()), (status, code), "{detail}");
    assert!(detail.contains(sentence), "`{detail}` does not say `{sentence}`");
}

#[tokio::test]
async fn a_grain_is_read_back_with_what_made_its_vector() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let text = "Wheat is a grass. 🌾";
    let body = json!({"id": "wheat", "text": text, "source": "encyclopedia", "tags": ["plants", "food"],
                      "attributes": {"year": 2024, "nested": {"a": [1, null]}}});
    let created = app.post("/grains", body).await;
    assert_eq!((created.status.as_u16(), created.header("location"), created.version()), (201, "/grains/wheat", "1"));
    let embedded = app.post("/embed", json!({"inputs": text})).await;
    let n_tokens = app.post("/tokenize", json!({"inputs": text})).await.ok()[0].as_array().map(Vec::len);
    let grain = created.ok();
    assert_eq!((&grain["text"], &grain["version"], grain.get("vector")), (&json!(text), &json!(1), None));
    assert_eq!(
        grain["meta"],
        json!({
            "source": "encyclopedia", "tags": ["plants", "food"],
            "attributes": {"year": 2024, "nested": {"a": [1, null]}},
            "embedding_model": TINY, "embedding_dimensions": 32, "space": embedded.header("x-space"),
            "origin": "computed", "tokens": n_tokens, "truncated": false, "content_sha256": sha256(text.as_bytes()),
        })
    );
    assert_eq!(grain["created_at"], grain["updated_at"]);
    assert!(grain["created_at"].as_str().is_some_and(|time| time.starts_with("20") && time.ends_with('Z')));

    let read = app.get("/grains/wheat").await;
    assert_eq!((read.version(), read.ok()), ("1", grain));
    let vector = vector_of_grain(&app, "wheat").await;
    assert_same(&vector, &vectors_of(&embedded.ok())[0]);
    let listed = app.get("/grains?include=vector").await.ok();
    assert_eq!(vector_of(&listed["grains"][0]["vector"]), vector);
    refused(&app.get("/grains/wheat?include=everything").await, 422, "invalid_request", "`include` takes `vector`");
    let twice = app.get("/grains/wheat?include=vector&include=vector").await;
    refused(&twice, 422, "invalid_request", "`include` stands twice");
    let twice = app.post("/grains?partial=true&partial=true", json!({"text": "t"})).await;
    refused(&twice, 422, "invalid_request", "`partial` stands twice");
    let twice = app.post("/grains/import?reembed=true&reembed=true", json!({"text": "t"})).await;
    refused(&twice, 422, "invalid_request", "`reembed` stands twice");
    let twice = app.delete("/models/tiny?force=true&force=true").await;
    refused(&twice, 422, "invalid_request", "`force` stands twice");
    refused(&app.get("/grains/rye").await, 404, "grain_not_found", "there is no grain `rye`");
    app.stop().await;
}

#[tokio::test]
async fn numbers_of_attributes_are_kept_to_their_last_bit() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let mut chance = Chance::seeded(17);
    let numbers: Vec<f64> = std::iter::repeat_with(|| f64::from_bits(chance.next()))
        .filter(|number| number.is_finite())
        .take(500)
        .collect();
    let body = json!({"text": "t", "attributes": {"n": numbers, "least": i64::MIN, "most": u64::MAX}});
    app.put("/grains/n", body.clone()).await.ok();
    assert_eq!(app.put("/grains/n", body).await.ok()["version"], 1, "the same numbers change nothing");
    let attributes = app.get("/grains/n").await.ok()["meta"]["attributes"].clone();
    let bits = |value: &Value| value.as_f64().expect("a number").to_bits();
    let read: Vec<u64> = attributes["n"].as_array().expect("numbers").iter().map(bits).collect();
    assert_eq!(read, numbers.iter().map(|number| number.to_bits()).collect::<Vec<_>>());
    assert_eq!((&attributes["least"], &attributes["most"]), (&json!(i64::MIN), &json!(u64::MAX)));
    app.stop().await;
}

#[tokio::test]
async fn new_ids_are_uuids_in_the_order_of_time_and_given_ones_have_a_form() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let mut ids = Vec::new();
    for n in 0..3 {
        let grain = app.post("/grains", json!({"text": format!("text {n}"), "id": null})).await.ok();
        ids.push(grain["id"].as_str().expect("an id").to_owned());
    }
    assert!(ids.is_sorted() && ids.iter().all(|id| id.len() == 36 && id.as_bytes()[14] == b'7'), "{ids:?}");
    let longest = "x".repeat(128);
    for id in ["a", "A.b_c:d@e~f-9", "...", &longest] {
        let created = app.post("/grains", json!({"id": id, "text": "t"})).await;
        assert_eq!((created.status.as_u16(), created.ok()["id"].as_str()), (201, Some(id)));
        app.get(&format!("/grains/{id}")).await.ok();
    }
    let n_before = count(&app).await;
    let too_long = "x".repeat(129);
    for id in ["", "a b", "a/b", "ü", "a\0", &too_long] {
        refused(
            &app.post("/grains", json!({"id": id, "text": "t"})).await,
            422,
            "invalid_request",
            "is not a grain id",
        );
    }
    for id in [".", "..", "search", "import", "export", "delete", "count"] {
        let answer = app.post("/grains", json!({"id": id, "text": "t"})).await;
        refused(&answer, 422, "invalid_request", "stands for something else");
    }
    refused(&app.put("/grains/a%20b", json!({"text": "t"})).await, 422, "invalid_request", "is not a grain id");
    let other = app.put("/grains/a", json!({"id": "b", "text": "t"})).await;
    refused(&other, 422, "invalid_request", "`id` is another one than the path's, `a`");
    assert_eq!(count(&app).await, n_before);
    app.stop().await;
}

/// A file of version 0.3 with a grain for each id.
async fn old_file(ids: &[&str], meta: &str) -> TempDir {
    let folder = TempDir::new().expect("a folder");
    let database = folder.path().join("granary.db");
    let mut connection =
        SqliteConnectOptions::new().filename(&database).create_if_missing(true).connect().await.expect("open");
    let table = "CREATE TABLE grains (id TEXT PRIMARY KEY NOT NULL, text TEXT NOT NULL, vector BLOB, \
                 meta TEXT NOT NULL DEFAULT '{}', created_at TEXT NOT NULL, updated_at TEXT NOT NULL)";
    sqlx::query(table).execute(&mut connection).await.expect("made");
    for id in ids {
        let sql = "INSERT INTO grains VALUES (?, 'an old text', x'0000803f00000040', ?, '2024-01-01T00:00:00Z', \
                   '2024-01-01T00:00:00Z')";
        sqlx::query(sql).bind(*id).bind(meta).execute(&mut connection).await.expect("written");
    }
    connection.close().await.expect("closed");
    folder
}

#[tokio::test]
async fn old_attributes_that_cannot_be_read_stay_until_others_take_their_place() {
    for stored in [r#"{"n":1e400,"k":"v"}"#, r#"{"n":{"$serde_json::private::RawValue":"[]"},"k":"v"}"#] {
        let app = TestApp::start_in(old_file(&["old", "imported"], stored).await, &with_tiny(&[])).await;
        let shown = |grain: &Value| (grain["meta"]["raw"].clone(), grain["meta"]["attributes"].clone());
        let unread = (json!(stored), json!({}));
        assert_eq!(shown(&app.get("/grains/old").await.ok()), unread);
        let tagged = app.patch("/grains/old", json!({"tags": ["a"]})).await.ok();
        assert_eq!((&tagged["meta"]["tags"], shown(&tagged)), (&json!(["a"]), unread.clone()));
        assert_eq!(shown(&app.patch("/grains/old", json!({"text": "a new text"})).await.ok()), unread);
        let put = app.put("/grains/old", json!({"text": "a new text", "tags": ["b"], "attributes": {}})).await.ok();
        assert_eq!((&put["version"], shown(&put)), (&json!(4), unread.clone()));
        for attributes in [json!({"x": 1}), json!({"n": null})] {
            let answer = app.patch("/grains/old", json!({"attributes": attributes})).await;
            refused(&answer, 422, "invalid_request", "an earlier version stored them: `PUT /grains/old` with all");
        }
        for (attributes, expected) in
            [(json!({}), unread.clone()), (json!({"k": "w"}), (json!(null), json!({"k": "w"})))]
        {
            let line = json!({"id": "imported", "text": "an old text", "tags": ["a"], "attributes": attributes});
            let import = app.request(Method::POST, "/grains/import?on_conflict=replace");
            let import = import.header("content-type", "application/x-ndjson").body(line.to_string());
            let answer = send(import).await;
            assert_eq!(shown(&app.get("/grains/imported").await.ok()), expected, "{}", answer.text);
        }
        let found = app.post("/grains/count", json!({"filter": {"attributes": {"k": "v"}}})).await.ok();
        assert_eq!(found["count"], 1);
        let replaced = app.put("/grains/old", json!({"text": "a new text", "attributes": {"k": "w"}})).await.ok();
        assert_eq!(shown(&replaced), (json!(null), json!({"k": "w"})));
        assert_eq!(app.patch("/grains/old", json!({"attributes": {"x": 1}})).await.ok()["version"], 6);
        app.stop().await;
    }
}

#[tokio::test]
async fn a_line_with_metadata_that_is_shown_raw_is_refused_where_that_would_be_lost() {
    let app = TestApp::start_in(old_file(&["old"], "not JSON").await, &with_tiny(&[])).await;
    let import = async |app: &TestApp, lines: &str| {
        let import = app.request(Method::POST, "/grains/import?on_conflict=replace");
        send(import.header("content-type", "application/x-ndjson").body(lines.to_owned())).await.text
    };
    let exported = app.post("/grains/export", json!({})).await.text;
    assert!(exported.contains("\"raw\":\"not JSON\""), "{exported}");
    let answer = import(&app, &exported).await;
    assert!(answer.contains("\"unchanged\":1,"), "it has the same: {answer}");
    let answer = import(&app, &exported.replace("not JSON", "no JSON")).await;
    assert!(answer.contains("`meta.raw`") && answer.contains("\"failed\":1,"), "{answer}");
    let other = TestApp::start_with(&with_tiny(&[])).await;
    let answer = import(&other, &exported).await;
    assert!(answer.contains("`meta.raw`") && answer.contains("\"failed\":1,"), "{answer}");
    assert_eq!(count(&other).await, 0);
    app.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn a_page_of_long_old_metadata_ends_early_and_an_answer_of_too_much_is_refused() {
    let raw = format!("\"{}\"", "x".repeat(5 << 20));
    let ids = ["a", "b", "c", "d", "e", "f", "g"];
    let app = TestApp::start_in(old_file(&ids, &raw).await, &with_tiny(&[])).await;
    let page = app.get("/grains?limit=1000&sort=id").await.ok();
    assert_eq!(page["grains"].as_array().map(Vec::len), Some(4), "16 MiB, and the grain with which they are full");
    assert_eq!(page["grains"][3]["meta"]["raw"].as_str().map(str::len), Some(raw.len()));
    let app = app.restart_with(&format!("{}[grains]\nmax_text = \"8 MiB\"\n", with_tiny(&[]))).await;
    let search = json!({"query": "old text", "mode": "lexical"});
    refused(&app.post("/grains/search", search).await, 422, "invalid_request", "7 hits take 35.0 MiB");
    app.stop().await;
}

#[tokio::test]
async fn an_old_source_and_old_tags_that_cannot_be_read_are_shown_as_they_are_and_hide_no_other_grain() {
    for (meta, attributes) in [
        (r#"{"source":"a\ud83d"}"#, json!({})),
        (r#"{"tags":["\ud83d","b"],"x":1}"#, json!({"x": 1})),
        (r#"{"source":"\udc00","tags":["\ud83d"],"x":1}"#, json!({"x": 1})),
    ] {
        let app = TestApp::start_in(old_file(&["old", "other"], meta).await, &with_tiny(&[])).await;
        let grain = app.get("/grains/old").await.ok();
        let shown = &grain["meta"];
        assert_eq!((&shown["source"], &shown["tags"], &shown["raw"]), (&json!(null), &json!([]), &json!(meta)));
        assert_eq!(shown["attributes"], attributes);
        assert_eq!(app.get("/grains").await.ok()["grains"].as_array().map(Vec::len), Some(2), "{meta}");
        let found = app.post("/grains/search", json!({"query": "text", "mode": "lexical"})).await.ok();
        assert_eq!(found["hits"].as_array().map(Vec::len), Some(2), "{meta}");
        let counted = app.post("/grains/count", json!({"facets": ["source", "tags"]})).await.ok();
        assert_eq!(counted["count"], 2, "{meta}");

        let changed = app.patch("/grains/old", json!({"source": "s", "attributes": {"y": 2}})).await.ok();
        let shown = &changed["meta"];
        assert_eq!((&shown["source"], &shown["tags"], &shown["raw"]), (&json!("s"), &json!([]), &json!(null)));
        assert_eq!((&shown["attributes"]["x"], &shown["attributes"]["y"]), (&attributes["x"], &json!(2)));
        app.stop().await;
    }
}

#[tokio::test]
async fn old_attributes_deeper_or_larger_than_a_grain_takes_stay_when_something_else_changes() {
    let deep = json!({"a": (1..100).fold(json!(0), |inner, _| json!([inner]))});
    let large = json!({"a": "b".repeat(65_536)});
    for attributes in [deep, large] {
        let folder = old_file(&["old"], &attributes.to_string()).await;
        let app = TestApp::start_in(folder, &with_tiny(&[])).await;
        let tagged = app.patch("/grains/old", json!({"tags": ["a"]})).await.ok();
        assert_eq!((&tagged["version"], &tagged["meta"]["attributes"]), (&json!(2), &attributes));
        let put = app.put("/grains/old", json!({"text": "a new text", "attributes": attributes})).await.ok();
        assert_eq!((&put["version"], &put["meta"]["attributes"]), (&json!(3), &attributes));
        let answer = app.patch("/grains/old", json!({"attributes": {"b": 1}})).await;
        refused(&answer, 422, "invalid_request", "`attributes` ");
        app.stop().await;
    }
}

#[tokio::test]
async fn what_a_grain_takes_no_more_stays_when_something_else_changes() {
    let tags: Vec<String> = (0..101).map(|n| if n == 0 { String::new() } else { n.to_string() }).collect();
    let (source, text) = ("s".repeat(1025), "x".repeat(2048));
    let folder = old_file(&["old"], &json!({"source": source, "tags": tags}).to_string()).await;
    let app = TestApp::start_in(folder, &with_tiny(&[])).await;
    app.patch("/grains/old", json!({"text": text})).await.ok();
    let app = app.restart_with(&format!("{}[grains]\nmax_text = \"1 KiB\"\n", with_tiny(&[]))).await;
    let changed = app.patch("/grains/old", json!({"attributes": {"x": 1}})).await.ok();
    let meta = &changed["meta"];
    assert_eq!((&changed["text"], &meta["source"], &meta["tags"]), (&json!(text), &json!(source), &json!(tags)));
    assert_eq!((&meta["attributes"], &changed["version"]), (&json!({"x": 1}), &json!(3)));
    let put = app.put("/grains/old", json!({"text": text, "source": source, "tags": tags})).await.ok();
    assert_eq!((&put["version"], &put["meta"]["attributes"]), (&json!(4), &json!({})));
    for (body, sentence) in [
        (json!({"text": "y".repeat(1025)}), "`text` has 1025 bytes"),
        (json!({"source": "t".repeat(1025)}), "`source` has 1025 bytes"),
        (json!({"tags": [""]}), "a tag has 0 bytes"),
    ] {
        refused(&app.patch("/grains/old", body).await, 422, "invalid_request", sentence);
    }
    app.stop().await;
}

#[tokio::test]
async fn old_ids_of_any_form_are_reached_through_percent_encoding() {
    let ids = ["old id/1", "ü%41", "search", "?#", "'; DROP TABLE grains; --", "count", "\u{1f33e}", "\"\\"];
    let app = TestApp::start_in(old_file(&ids, r#"{"source": "s", "x": 1}"#).await, &with_tiny(&[])).await;
    for id in ids {
        let path = format!("/grains/{}", percent_encoded(id));
        let grain = app.get(&path).await.ok();
        assert_eq!(
            (&grain["id"], &grain["meta"]["space"], &grain["meta"]["source"]),
            (&json!(id), &json!(null), &json!("s"))
        );
        assert_eq!(grain["meta"]["attributes"], json!({"x": 1}));
        let found = app.post("/grains/count", json!({"filter": {"ids": [id]}})).await.ok();
        assert_eq!(found["count"], 1, "{id}");
        let tagged = app.patch(&path, json!({"tags": ["seen"]})).await.ok();
        assert_eq!((&tagged["version"], &tagged["meta"]["origin"]), (&json!(2), &json!(null)), "a tag embeds nothing");
        let changed = app.put(&path, json!({"text": "a new text", "id": id})).await.ok();
        assert_eq!((&changed["version"], &changed["meta"]["origin"]), (&json!(3), &json!("computed")));
        let deleted = app.delete(&path).await;
        assert_eq!((deleted.status.as_u16(), app.get(&path).await.status.as_u16()), (204, 404), "{id}");
    }
    app.stop().await;
}

#[tokio::test]
async fn many_grains_are_written_all_or_none() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let three =
        json!({"grains": [{"id": "a", "text": "one"}, {"text": "two", "tags": ["t"]}, {"id": "c", "text": "three"}]});
    let created = app.post("/grains", three).await;
    assert_eq!(created.status.as_u16(), 201);
    let grains = created.ok()["grains"].as_array().expect("grains").clone();
    let texts: Vec<&str> = grains.iter().filter_map(|grain| grain["text"].as_str()).collect();
    assert_eq!(texts, ["one", "two", "three"], "in the order they were sent");
    for (text, grain) in texts.iter().zip(&grains) {
        let id = grain["id"].as_str().expect("an id");
        assert_same(&vector_of_grain(&app, id).await, &embed(&app, text).await);
    }

    let good = json!({"id": "x", "text": "good"});
    for (bad, status, code, sentence) in [
        (json!({"id": "a", "text": "taken"}), 409, "conflict", "`grains[1]`: there is a grain `a` already"),
        (json!({"id": "x", "text": "twice"}), 409, "conflict", "`grains[1]`: the id `x` stands twice"),
        (json!({"text": ""}), 400, "empty_input", "`grains[1]`: `text` is empty"),
        (json!({"id": "a/b", "text": "t"}), 422, "invalid_request", "`grains[1]`: `a/b` is not a grain id"),
        (json!({"text": "t", "model": "nobody"}), 404, "model_not_found", "nobody"),
        (json!({"text": "t", "tags": [""]}), 422, "invalid_request", "`grains[1]`: a tag has 0 bytes"),
        (json!({"text": "t", "vector": [1.0]}), 422, "invalid_request", "`grains[1]`: `vector` needs `space`"),
        (json!({"text": 7}), 422, "invalid_request", "`grains[1].text`"),
        (json!({"id": "y"}), 422, "invalid_request", "missing field `text`"),
    ] {
        refused(&app.post("/grains", json!({"grains": [good, bad]})).await, status, code, sentence);
        assert_eq!(count(&app).await, 3);
    }
    refused(&app.post("/grains", json!({"grains": []})).await, 400, "empty_input", "`grains` is empty");
    let both = json!({"text": "t", "grains": [good]});
    refused(&app.post("/grains", both).await, 422, "invalid_request", "send one of them");
    let many = vec![json!({"text": "t"}); 2049];
    let answer = app.post("/grains", json!({"grains": many})).await;
    refused(&answer, 422, "too_many_inputs", "`grains` has 2049 grains; a request takes 2048");
    assert_eq!(count(&app).await, 3);
    app.stop().await;
}

#[tokio::test]
async fn of_many_those_that_can_be_written_are_when_that_is_asked_for() {
    let app = TestApp::start_with(&format!("{}[engine]\nauto_truncate = false\n", with_tiny(&[]))).await;
    let space = space_of(&app, TINY).await;
    app.post("/grains", json!({"id": "a", "text": "here"})).await.ok();
    let sent = json!({"grains": [
        {"id": "a", "text": "taken"}, {"id": "b", "text": "good"}, {"id": "b", "text": "twice"}, {"text": ""},
        {"id": "c", "text": "other model", "model": "nobody"}, {"id": "long", "text": "word ".repeat(400)},
        {"id": "d", "text": "supplied", "space": space, "vector": vec![1.0; 31]},
        {"id": "e", "text": "supplied", "space": space, "vector": vec![1.0; 32]}, {"id": "f", "text": "good too"},
    ]});
    let answer = app.post("/grains?partial=true", sent).await;
    assert_eq!(answer.status.as_u16(), 207);
    let results = answer.ok()["results"].as_array().expect("results").clone();
    let said: Vec<(u64, &str)> = results
        .iter()
        .map(|result| {
            let word = &result["problem"]["code"];
            (
                result["status"].as_u64().expect("a status"),
                word.as_str().or(result["grain"]["id"].as_str()).expect("one"),
            )
        })
        .collect();
    let expected = [
        (409, "conflict"),
        (201, "b"),
        (409, "conflict"),
        (400, "empty_input"),
        (404, "model_not_found"),
        (422, "input_too_long"),
        (422, "invalid_request"),
        (201, "e"),
        (201, "f"),
    ];
    assert_eq!(said, expected);
    assert_eq!(results[0]["problem"]["status"], 409);
    let sentence = results[5]["problem"]["detail"].as_str().expect("a sentence");
    assert!(sentence.contains("402 tokens") && sentence.contains("takes 128"), "{sentence}");
    assert_eq!(count(&app).await, 4);
    assert_same(&vector_of_grain(&app, "f").await, &embed(&app, "good too").await);
    refused(&app.post("/grains?partial=perhaps", json!({"text": "t"})).await, 422, "invalid_request", "`partial` is");
    app.stop().await;
}

#[tokio::test]
async fn a_grain_that_is_refused_takes_its_id_from_no_other_of_the_request() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let sent = json!({"grains": [{"id": "a", "text": ""}, {"id": "a", "text": "good"}, {"id": "a", "text": "twice"}]});
    let answer = app.post("/grains?partial=true", sent).await.ok();
    let statuses: Vec<_> =
        answer["results"].as_array().expect("results").iter().map(|result| &result["status"]).collect();
    assert_eq!(statuses, [&json!(400), &json!(201), &json!(409)], "{answer}");
    assert_eq!(app.get("/grains/a").await.ok()["text"], "good");
    app.stop().await;
}

#[tokio::test]
async fn a_model_that_some_of_many_name_and_that_cannot_be_used_stops_only_those() {
    let app = TestApp::start_with(&with_tiny(&["tiny-cls", "tiny-bad-vocab"])).await;
    app.post("/models/tiny-cls/unload", json!({"disable": true})).await.ok();
    let sent = json!({"grains": [
        {"id": "a", "text": "good"}, {"id": "b", "text": "broken", "model": "tiny-bad-vocab"},
        {"id": "c", "text": "disabled", "model": "tiny-cls"}, {"id": "d", "text": "named", "model": TINY},
    ]});
    let answer = app.post("/grains?partial=true", sent.clone()).await;
    assert_eq!(answer.status.as_u16(), 207, "{}", answer.text);
    let answer = answer.ok();
    let results = answer["results"].as_array().expect("results");
    let said: Vec<_> = results.iter().map(|result| (&result["status"], &result["problem"]["code"])).collect();
    let (written, refused_with) = (json!(201), json!(503));
    let expected = [
        (&written, &Value::Null),
        (&refused_with, &json!("model_failed")),
        (&refused_with, &json!("model_disabled")),
        (&written, &Value::Null),
    ];
    assert_eq!(said, expected, "{answer}");
    assert_eq!(count(&app).await, 2);

    // Together none of them is written: for a name that no model has, whatever others would meet. The active model is
    // everybody's.
    let unknown = json!({"grains": [sent["grains"][1], {"text": "x", "model": "nobody"}]});
    refused(&app.post("/grains", unknown).await, 404, "model_not_found", "`grains[1]`: no model is called `nobody`");
    assert_eq!(app.post("/grains", json!({"grains": [{"text": "x"}, sent["grains"][2]]})).await.status.as_u16(), 503);
    app.post("/models/tiny/unload", json!({"disable": true})).await.ok();
    let all = app.post("/grains?partial=true", json!({"grains": [{"text": "x"}, {"text": "y"}]})).await;
    refused(&all, 503, "model_disabled", "`tiny` is disabled");
    assert_eq!(count(&app).await, 2);
    app.stop().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_text_is_said_of_it_also_where_others_are_refused_together() {
    let engine = "[engine]\nauto_truncate = false\nmax_request_tokens = 2000\n";
    let app = TestApp::start_with(&format!("{engine}{}", with_tiny(&[]))).await;
    // They are embedded by 256: of the first ones a single text is too long, the others have too many tokens together.
    let text = |n: usize| match n {
        3 => "word ".repeat(400),
        0..256 => "short".to_owned(),
        _ => "word ".repeat(100),
    };
    let grain = |n: usize| json!({"text": text(n), "model": TINY});
    let sent = json!({"grains": (0..300).map(grain).collect::<Vec<_>>()});
    let answer = app.post("/grains?partial=true", sent).await.ok();
    let detail = |n: usize| answer["results"][n]["problem"]["detail"].as_str().unwrap_or_default().to_owned();
    assert!(detail(3).contains("has 402 tokens"), "{}", detail(3));
    for n in [0, 255, 256, 299] {
        assert!(detail(n).contains("a request takes 2000"), "{n}: {}", detail(n));
    }
    assert_eq!(count(&app).await, 0);
    app.stop().await;
}

#[tokio::test]
async fn put_makes_a_grain_what_it_says_and_doing_it_again_changes_nothing() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let wheat = json!({"text": "Wheat is a grass.", "source": "s", "tags": ["a"], "attributes": {"n": 1}});
    let first = app.put("/grains/w", wheat.clone()).await;
    assert_eq!((first.status.as_u16(), first.header("location"), first.version()), (201, "/grains/w", "1"));
    let again = app.put("/grains/w", wheat.clone()).await;
    assert_eq!((again.status.as_u16(), again.version(), again.ok()), (200, "1", first.ok()));
    let vector = vector_of_grain(&app, "w").await;

    // Metadata alone: no model is needed.
    app.post("/models/tiny/unload", json!({})).await.ok();
    let mut other = wheat.clone();
    other["tags"] = json!(["b"]);
    let changed = app.put("/grains/w", other).await.ok();
    assert_eq!((&changed["version"], &changed["meta"]["tags"]), (&json!(2), &json!(["b"])));
    assert!(changed["updated_at"].as_str() > changed["created_at"].as_str());
    assert_eq!(state_of(&app, TINY).await, "unloaded", "a change of metadata embeds nothing");
    assert_eq!(vector_of_grain(&app, "w").await, vector);

    let changed = app.put("/grains/w", json!({"text": "Rye is a grass too."})).await.ok();
    assert_eq!(
        (&changed["version"], &changed["meta"]["source"], &changed["meta"]["tags"]),
        (&json!(3), &json!(null), &json!([]))
    );
    assert_same(&vector_of_grain(&app, "w").await, &embed(&app, "Rye is a grass too.").await);
    assert_eq!(changed["meta"]["content_sha256"], json!(sha256(b"Rye is a grass too.")));
    app.stop().await;
}

#[tokio::test]
async fn put_again_changes_nothing_with_another_model_or_a_vector_of_ones_own_either() {
    let app = TestApp::start_with(&with_tiny(&["tiny-cls"])).await;
    let (tiny, class) = (space_of(&app, TINY).await, space_of(&app, "tiny-cls").await);
    app.put("/grains/w", json!({"text": "Wheat"})).await.ok();
    // A vector elsewhere is added; the grain stays where it is served.
    let elsewhere = json!({"text": "Wheat", "model": "tiny-cls"});
    let added = app.put("/grains/w", elsewhere.clone()).await.ok();
    assert_eq!((&added["version"], &added["meta"]["space"]), (&json!(2), &json!(tiny)));
    assert_eq!(app.put("/grains/w", elsewhere).await.ok(), added);

    let mut own = vec![0.0; 32];
    own[3] = 2.0;
    let own = json!({"text": "Rye", "space": class, "vector": own, "tags": ["x"]});
    let first = app.put("/grains/r", own.clone()).await.ok();
    assert_eq!((&first["meta"]["origin"], &first["meta"]["space"]), (&json!("supplied"), &json!(class)));
    assert_eq!(app.put("/grains/r", own.clone()).await.ok(), first);
    let mut other = own;
    other["vector"][4] = json!(2.0);
    assert_eq!(app.put("/grains/r", other).await.ok()["version"], 2);
    let vector = vector_of_grain(&app, "r").await;
    assert!((vector[3] - 0.5f32.sqrt()).abs() < 1e-6 && (vector[3] - vector[4]).abs() < 1e-6, "{vector:?}");
    app.stop().await;
}

#[tokio::test]
async fn patch_changes_what_it_names_and_null_removes() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let body = json!({"id": "w", "text": "Wheat", "source": "s", "tags": ["a", "b"], "attributes": {"n": 1, "m": [1, 2], "k": "v"}});
    let first = app.post("/grains", body).await.ok();
    let vector = vector_of_grain(&app, "w").await;
    app.post("/models/tiny/unload", json!({})).await.ok();
    for nothing in [
        json!({}),
        json!({"text": "Wheat"}),
        json!({"tags": ["a", "b"]}),
        json!({"text": null, "tags": null, "attributes": null}),
        json!({"attributes": {"absent": null, "n": 1}}),
    ] {
        assert_eq!(app.patch("/grains/w", nothing).await.ok(), first);
    }
    let changed =
        app.patch("/grains/w", json!({"source": null, "attributes": {"n": null, "m": 3, "new": {"x": null}}})).await;
    assert_eq!(changed.version(), "2");
    let meta = &changed.ok()["meta"];
    assert_eq!((&meta["source"], &meta["tags"]), (&json!(null), &json!(["a", "b"])));
    assert_eq!(meta["attributes"], json!({"m": 3, "k": "v", "new": {"x": null}}));
    let changed = app.patch("/grains/w", json!({"source": "t", "tags": []})).await.ok();
    assert_eq!(
        (&changed["meta"]["source"], &changed["meta"]["tags"], &changed["version"]),
        (&json!("t"), &json!([]), &json!(3))
    );
    assert_eq!((state_of(&app, TINY).await.as_str(), vector_of_grain(&app, "w").await), ("unloaded", vector));

    let changed = app.patch("/grains/w", json!({"text": "Rye"})).await.ok();
    assert_eq!((&changed["version"], &changed["meta"]["source"]), (&json!(4), &json!("t")));
    assert_same(&vector_of_grain(&app, "w").await, &embed(&app, "Rye").await);
    refused(&app.patch("/grains/w", json!({"text": ""})).await, 400, "empty_input", "`text` is empty");
    refused(&app.patch("/grains/w", json!({"tags": [7]})).await, 422, "invalid_request", "`tags[0]`");
    refused(&app.patch("/grains/nobody", json!({"text": "t"})).await, 404, "grain_not_found", "`nobody`");
    assert_eq!(app.get("/grains/w").await.version(), "4");
    app.stop().await;
}

#[tokio::test]
async fn a_version_that_is_not_there_any_more_is_refused() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    app.put("/grains/w", json!({"text": "one"})).await.ok();
    let stale = ("if-match", "\"1\"");
    let changed = with_header(&app, Method::PUT, "/grains/w", stale, json!({"text": "two"})).await;
    assert_eq!(changed.version(), "2");
    for tag in [changed.header("etag"), &format!("W/{}", changed.header("etag"))] {
        with_header(&app, Method::PUT, "/grains/w", ("if-match", tag), json!({"text": "two"})).await.ok();
    }
    for (method, body) in [
        (Method::PUT, json!({"text": "three"})),
        (Method::PATCH, json!({"tags": ["x"]})),
        (Method::DELETE, json!(null)),
    ] {
        let answer = with_header(&app, method, "/grains/w", stale, body).await;
        refused(&answer, 412, "version_mismatch", "`w` is in version 2, not in 1");
    }
    let absent = with_header(&app, Method::PUT, "/grains/new", stale, json!({"text": "t"})).await;
    refused(&absent, 412, "version_mismatch", "`new`");
    let any = with_header(&app, Method::PUT, "/grains/new", ("if-match", "*"), json!({"text": "t"})).await;
    refused(&any, 412, "version_mismatch", "`new`");
    // What would fail without a condition fails in the same way with it (RFC 9110, 13.2.1).
    for (method, header) in [(Method::PATCH, stale), (Method::DELETE, stale), (Method::DELETE, ("if-match", "*"))] {
        let answer = with_header(&app, method, "/grains/new", header, json!({"tags": ["x"]})).await;
        refused(&answer, 404, "grain_not_found", "`new`");
    }
    // What is wrong in any version is said first.
    for method in [Method::PUT, Method::PATCH] {
        let answer = with_header(&app, method, "/grains/w", stale, json!({"text": "t", "tags": vec!["x"; 101]})).await;
        refused(&answer, 422, "invalid_request", "tags");
    }
    let odd = with_header(&app, Method::PATCH, "/grains/w", ("if-match", "\"x\""), json!({"tags": ["x"]})).await;
    refused(&odd, 422, "invalid_request", "send the `etag` of an earlier answer");
    let list = with_header(&app, Method::PATCH, "/grains/w", ("if-match", "\"1\",\"2\""), json!({"tags": ["x"]})).await;
    refused(&list, 422, "invalid_request", "more than one version");
    let lines = app.request(Method::PATCH, "/grains/w").header("if-match", "\"2\"").header("if-match", "\"1\"");
    refused(&send(lines.json(&json!({"tags": ["x"]}))).await, 422, "invalid_request", "more than one version");
    assert_eq!(app.get("/grains/w").await.ok()["text"], "two");
    with_header(&app, Method::PATCH, "/grains/w", ("if-match", "*"), json!({"tags": ["x"]})).await.ok();
    let deleted = with_header(&app, Method::DELETE, "/grains/w", ("if-match", "\"3\""), json!(null)).await;
    assert_eq!(deleted.status.as_u16(), 204);
    refused(&app.delete("/grains/w").await, 404, "grain_not_found", "`w`");
    assert_eq!(count(&app).await, 0);
    // The id is free again, and begins anew.
    assert_eq!(app.post("/grains", json!({"id": "w", "text": "again"})).await.ok()["version"], 1);
    app.stop().await;
}

#[tokio::test]
async fn who_has_a_grain_as_it_is_shown_is_not_sent_it_again() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let created = app.put("/grains/w", json!({"text": "one"})).await;
    let get = async |path: &str, known: &str| send(app.request(Method::GET, path).header("if-none-match", known)).await;
    let tag = created.header("etag");
    for known in [tag, &format!("W/{tag}"), &format!("\"2-ab\", {tag}"), "*"] {
        let answer = get("/grains/w", known).await;
        assert_eq!((answer.status.as_u16(), answer.header("etag"), answer.text.as_str()), (304, tag, ""), "{known}");
    }
    let lines = app.request(Method::GET, "/grains/w").header("if-none-match", "\"x\"").header("if-none-match", tag);
    assert_eq!(send(lines).await.status.as_u16(), 304);
    for known in ["\"1\"", "\"1-0123456789abcdef\"", &tag.replace('"', ""), ""] {
        let answer = get("/grains/w", known).await;
        assert_eq!((answer.header("etag"), answer.ok()), (tag, created.ok()), "{known}");
    }
    refused(&get("/grains/nobody", "*").await, 404, "grain_not_found", "`nobody`");
    // What is shown besides has a tag of its own.
    let whole = get("/grains/w?include=vector", tag).await;
    assert!(whole.ok()["vector"].is_array());
    assert_eq!(get("/grains/w?include=vector", whole.header("etag")).await.status.as_u16(), 304);

    // Of the same version, and another grain.
    app.delete("/grains/w").await;
    let anew = app.put("/grains/w", json!({"text": "two"})).await;
    assert_eq!(anew.version(), "1");
    assert_eq!(get("/grains/w", tag).await.ok()["text"], "two");
    app.stop().await;
}

#[tokio::test]
async fn a_grain_that_is_to_be_new_replaces_none() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let new = ("if-none-match", "*");
    let created = with_header(&app, Method::PUT, "/grains/w", new, json!({"text": "one"})).await;
    assert_eq!((created.status.as_u16(), created.version()), (201, "1"));
    // Not even with what is there already.
    for text in ["one", "two"] {
        let answer = with_header(&app, Method::PUT, "/grains/w", new, json!({"text": text})).await;
        refused(&answer, 412, "version_mismatch", "there is a grain `w` already");
    }
    for other in ["\"1\"", "\"2\"", "\"1\", *", ""] {
        let answer =
            with_header(&app, Method::PUT, "/grains/w", ("if-none-match", other), json!({"text": "two"})).await;
        refused(&answer, 422, "invalid_request", "`If-None-Match` takes `*`");
    }
    let both = app.request(Method::PUT, "/grains/w").header("if-match", "\"1\"").header("if-none-match", "*");
    refused(&send(both.json(&json!({"text": "two"}))).await, 422, "invalid_request", "exclude each other");
    let read = app.get("/grains/w").await.ok();
    assert_eq!((&read["text"], &read["version"]), (&json!("one"), &json!(1)));

    // Of several at once one is the first.
    let puts = (0..8).map(|n| {
        let app = &app;
        async move { with_header(app, Method::PUT, "/grains/x", new, json!({"text": n.to_string()})).await }
    });
    let statuses: Vec<u16> =
        futures::future::join_all(puts).await.iter().map(|answer| answer.status.as_u16()).collect();
    let n_with = |status: u16| statuses.iter().filter(|found| **found == status).count();
    assert_eq!((n_with(201), n_with(412)), (1, 7), "{statuses:?}");
    assert_eq!(app.get("/grains/x").await.ok()["version"], 1);
    app.stop().await;
}

#[tokio::test]
async fn a_request_with_an_idempotency_key_is_carried_out_once() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let key = ("idempotency-key", "7f3a");
    let post = async |app: &Caller, body: Value| with_header(app, Method::POST, "/grains", key, body).await;
    let body = json!({"text": "once", "tags": ["t"]});
    let first = post(&app, body.clone()).await;
    assert_eq!(first.status.as_u16(), 201);
    let again = post(&app, body.clone()).await;
    assert_eq!(
        (again.status.as_u16(), again.header("location"), again.ok()),
        (201, first.header("location"), first.ok())
    );
    refused(&post(&app, json!({"text": "other"})).await, 422, "invalid_request", "was used for another request");
    let elsewhere = with_header(&app, Method::POST, "/grains?partial=true", key, body.clone()).await;
    refused(&elsewhere, 422, "invalid_request", "was used for another request");
    assert_eq!(count(&app).await, 1);

    // What was refused may be sent again with the same key.
    let other = ("idempotency-key", "other");
    let bad = with_header(&app, Method::POST, "/grains", other, json!({"text": ""})).await;
    refused(&bad, 400, "empty_input", "`text` is empty");
    with_header(&app, Method::POST, "/grains", other, json!({"id": "o", "text": "good"})).await.ok();
    // Unchanged too, once nothing stands against it any more. Only that answer is kept.
    let taken = ("idempotency-key", "taken");
    let send_taken =
        async || with_header(&app, Method::POST, "/grains", taken, json!({"id": "o", "text": "new"})).await;
    refused(&send_taken().await, 409, "conflict", "there is a grain `o` already");
    assert_eq!(app.delete("/grains/o").await.status.as_u16(), 204);
    let written = send_taken().await;
    assert_eq!((written.status.as_u16(), written.ok()), (201, send_taken().await.ok()));
    // Of many, each in its order, refusals too.
    let many = ("idempotency-key", "many");
    let mixed = json!({"grains": [{"id": "o", "text": "taken"}, {"text": "new"}]});
    let one = with_header(&app, Method::POST, "/grains?partial=true", many, mixed.clone()).await;
    let two = with_header(&app, Method::POST, "/grains?partial=true", many, mixed).await;
    assert_eq!((one.status.as_u16(), one.ok()), (207, two.ok()));
    let long = "k".repeat(256);
    let answer = with_header(&app, Method::POST, "/grains", ("idempotency-key", &long), body.clone()).await;
    refused(&answer, 422, "invalid_request", "1 to 255");
    let twice = app.request(Method::POST, "/grains").header("idempotency-key", "a").header("idempotency-key", "b");
    refused(&send(twice.json(&body)).await, 422, "invalid_request", "more than once");
    assert_eq!(count(&app).await, 3);

    let id = first.ok()["id"].as_str().expect("an id").to_owned();
    let app = app.restart_with(&with_tiny(&[])).await;
    assert_eq!(post(&app, body.clone()).await.ok(), first.ok(), "it is remembered over a restart");
    assert_eq!(app.delete(&format!("/grains/{id}")).await.status.as_u16(), 204);
    assert_eq!(post(&app, body).await.ok(), first.ok(), "what was answered stays what was answered");
    assert_eq!(count(&app).await, 2);
    app.stop().await;
}

#[tokio::test]
async fn what_may_pass_is_not_kept_as_the_answer_to_an_idempotency_key() {
    let other = "tiny-cls";
    let app = TestApp::start_with(&with_tiny(&[other])).await;
    let space = space_of(&app, other).await;
    let post = async |key: &str, body: &Value| {
        with_header(&app, Method::POST, "/grains?partial=true", ("idempotency-key", key), body.clone()).await
    };
    let named = json!({"grains": [
        {"text": "of the active model"}, {"text": ""}, {"text": "one", "model": other}, {"text": "two", "model": other},
    ]});
    let verified = json!({"grains": [
        {"text": "of the active model"}, {"text": "a", "vector": vec![1.0; 32], "space": space, "verify": true},
    ]});
    app.post(&format!("/models/{other}/unload"), json!({"disable": true})).await.ok();
    for (key, body, sentence) in [
        ("named", &named, "`grains[2]`: `tiny-cls` is disabled"),
        ("verified", &verified, "`grains[1]`: `tiny-cls` is disabled"),
    ] {
        let answer = post(key, body).await;
        refused(&answer, 503, "model_disabled", sentence);
        assert_eq!(answer.header("retry-after"), "60");
        assert_eq!(count(&app).await, 0, "none is written");
    }
    app.post(&format!("/models/{other}/load"), json!({})).await.ok();
    let answer = post("named", &named).await.ok();
    let results = answer["results"].as_array().expect("results");
    let statuses: Vec<&Value> = results.iter().map(|result| &result["status"]).collect();
    assert_eq!(statuses, [&json!(201), &json!(400), &json!(201), &json!(201)], "{answer}");
    // What does not pass is kept.
    assert_eq!(post("named", &named).await.ok(), answer);
    assert_eq!(count(&app).await, 3);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_sent_many_times_at_once_is_carried_out_once() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    for (round, body) in [json!({"text": "once"}), json!({"id": "given", "text": "once"})].into_iter().enumerate() {
        let key = format!("round {round}");
        let sent = (0..8).map(|_| with_header(&app, Method::POST, "/grains", ("idempotency-key", &key), body.clone()));
        let answers = futures::future::join_all(sent).await;
        for answer in &answers {
            assert_eq!((answer.status.as_u16(), answer.ok()), (201, answers[0].ok()));
        }
        assert_eq!(count(&app).await, round as u64 + 1);
    }
    app.stop().await;
}

#[tokio::test]
async fn a_write_whose_caller_leaves_before_its_turn_is_not_made() {
    let folder = TempDir::new().expect("a folder");
    let database = folder.path().join("granary.db");
    let app = TestApp::start_in(folder, &with_tiny(&[])).await;
    app.post("/models/tiny/load", json!({})).await.ok();
    let mut other = SqliteConnectOptions::new().filename(&database).connect().await.expect("a connection");
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut other).await.expect("nobody else writes from here on");
    let write = |n: usize| {
        let request = app.request(Method::POST, "/grains").json(&json!({"text": n.to_string()}));
        request.timeout(Duration::from_secs(1)).send()
    };
    let answers = futures::future::join_all((0..4).map(write)).await;
    assert!(answers.iter().all(Result::is_err), "somebody could write");
    // Nothing says that the server has noticed that they left.
    tokio::time::sleep(Duration::from_millis(500)).await;
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.expect("ended");
    other.close().await.expect("closed");
    let app = app.restart_with(&with_tiny(&[])).await;
    assert_eq!(count(&app).await, 1, "what was let in goes on, and nothing else is written");
    app.stop().await;
}

#[tokio::test]
async fn a_text_longer_than_the_model_takes_is_kept_whole_and_marked() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let text = "word ".repeat(400);
    let grain = app.post("/grains", json!({"id": "long", "text": text})).await.ok();
    assert_eq!(
        (&grain["text"], &grain["meta"]["truncated"], &grain["meta"]["tokens"]),
        (&json!(text), &json!(true), &json!(128))
    );
    assert_eq!(grain["meta"]["content_sha256"], json!(sha256(text.as_bytes())));
    let app = app.restart_with(&format!("{}[engine]\nauto_truncate = false\n", with_tiny(&[]))).await;
    let answer = app.post("/grains", json!({"text": text})).await;
    refused(&answer, 422, "input_too_long", "has 402 tokens");
    assert!(answer.problem().2.contains("takes 128") && !answer.problem().2.contains("inputs"), "{}", answer.text);
    let (vector, space) = (vector_of_grain(&app, "long").await, &grain["meta"]["space"]);
    let verified = json!({"text": text, "vector": vector, "space": space, "verify": true});
    refused(&app.post("/grains", verified).await, 422, "input_too_long", "`text` has 402 tokens; `tiny` takes 128");
    let answer = app.post("/grains/search", json!({"query": text})).await;
    refused(&answer, 422, "input_too_long", "`query` has 402 tokens; `tiny` takes 128");
    assert_eq!(count(&app).await, 1);
    app.stop().await;
}

#[tokio::test]
async fn limits_are_named_by_what_they_refuse() {
    let app = TestApp::start_with(&format!("{}[grains]\nmax_text = \"2 KiB\"\n", with_tiny(&[]))).await;
    let text = |n_bytes: usize| json!({"text": "x".repeat(n_bytes)});
    let with = |key: &str, value: Value| {
        let mut body = json!({"text": "t"});
        body[key] = value;
        body
    };
    let nested = |n_levels: usize| json!({"a": (1..n_levels).fold(json!(0), |inner, _| json!([inner]))});
    let many = |n: usize| json!((0..n).map(|n| n.to_string()).collect::<Vec<_>>());
    for (field, good, bad, sentence) in [
        ("text", text(2048), text(2049), "`text` has 2049 bytes; a grain takes 2048"),
        (
            "source",
            with("source", json!("s".repeat(1024))),
            with("source", json!("s".repeat(1025))),
            "`source` has 1025 bytes; it takes 1024",
        ),
        ("tags", with("tags", many(100)), with("tags", many(101)), "there are 101 `tags`; a grain takes 100"),
        (
            "tag",
            with("tags", json!(["t".repeat(256)])),
            with("tags", json!(["t".repeat(257)])),
            "a tag has 257 bytes; it takes 1 to 256",
        ),
        (
            "attributes",
            with("attributes", json!({"a": "b".repeat(65_000)})),
            with("attributes", json!({"a": "b".repeat(65_536)})),
            "`attributes` have",
        ),
        (
            "nesting",
            with("attributes", nested(64)),
            with("attributes", nested(65)),
            "`attributes` are nested 65 levels deep; they take 64",
        ),
    ] {
        let created = app.post("/grains", good).await;
        assert_eq!(created.status.as_u16(), 201, "{field}: {}", created.text);
        refused(&app.post("/grains", bad.clone()).await, 422, "invalid_request", sentence);
        refused(&app.put("/grains/p", bad).await, 422, "invalid_request", sentence);
    }
    for (field, bad) in [
        ("text", json!({"text": "a\0b"})),
        ("source", with("source", json!("\0"))),
        ("tags", with("tags", json!(["a\0"]))),
        ("attributes", with("attributes", json!({"a": ["\0"]}))),
        ("attributes", with("attributes", json!({"\0": 1}))),
    ] {
        refused(&app.post("/grains", bad).await, 422, "invalid_request", &format!("`{field}` "));
    }
    app.post("/grains", json!({"id": "deep", "text": "t"})).await.ok();
    let answer = app.patch("/grains/deep", json!({"attributes": nested(65)})).await;
    refused(&answer, 422, "invalid_request", "65 levels deep");
    // What is written is answered a second time, as deep as it is.
    let key = ("idempotency-key", "deep");
    let sent = || with_header(&app, Method::POST, "/grains", key, with("attributes", nested(64)));
    assert_eq!(sent().await.ok(), sent().await.ok());
    // Six characters that only look like one.
    app.post("/grains", with("attributes", json!({"a": "\\u0000"}))).await.ok();
    refused(&app.post("/grains", json!({"text": ""})).await, 400, "empty_input", "`text` is empty");
    let answer = app.post("/grains", json!({"text": "t", "model": "nobody"})).await;
    refused(&answer, 404, "model_not_found", "`nobody`");
    let answer = send(app.request(Method::POST, "/grains").body("{}")).await;
    refused(&answer, 415, "content_type", "application/json");
    let answer = send(app.request(Method::POST, "/grains").header("content-type", "application/json").body("{")).await;
    refused(&answer, 400, "malformed_json", "not JSON");
    app.stop().await;
}

#[tokio::test]
async fn a_condition_may_have_as_many_values_as_it_says() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let (numbers, words): (Vec<u32>, Vec<String>) = (0..1000).map(|n| (n, format!("w{n}"))).unzip();
    let tags: Vec<&String> = words.iter().take(20).collect();
    let grain = json!({"text": "hello", "tags": tags, "attributes": {"number": 7, "words": words[..50], "yes": true}});
    app.post("/grains", grain).await.ok();
    app.post("/grains", json!({"text": "others"})).await.ok();
    let mixed: Vec<Value> =
        numbers.iter().take(500).map(|n| json!(n)).chain(words[..499].iter().map(|w| json!(w))).collect();
    let of_each = |condition: &Value| (0..20).map(|n| (format!("a{n}"), condition.clone())).collect::<Value>();
    for (filter, found) in [
        (json!({"tags": {"any": words}}), 1),
        (json!({"tags": {"all": tags}}), 1),
        (json!({"tags": {"all": words}}), 0),
        (json!({"tags": {"none": words}}), 1),
        (json!({"attributes": {"number": {"any": numbers}}}), 1),
        (json!({"attributes": {"number": {"none": numbers}}}), 1),
        (json!({"attributes": {"words": {"all": words[..50]}}}), 1),
        (json!({"attributes": {"words": {"all": words}}}), 0),
        (json!({"attributes": {"yes": {"any": [true, "true", 1]}}}), 1),
        (json!({"attributes": {"words": {"any": mixed, "none": ["w50", false]}}}), 1),
        (json!({"attributes": of_each(&json!({"any": mixed, "all": mixed, "none": mixed}))}), 0),
        (json!({"attributes": of_each(&json!({"none": mixed}))}), 2),
    ] {
        let counted = app.post("/grains/count", json!({"filter": filter})).await.ok();
        assert_eq!(counted["count"], found, "{}", filter.to_string().chars().take(100).collect::<String>());
        let query = json!({"query": "hello", "filter": filter});
        let hits = app.post("/grains/search", query).await.ok();
        assert_eq!(hits["hits"].as_array().map(Vec::len), Some(found));
    }
    app.stop().await;
}

#[tokio::test]
async fn vectors_that_are_brought_along_are_taken_when_they_can_be() {
    let app = TestApp::start_with(&with_tiny(&["tiny-cls"])).await;
    let space = space_of(&app, TINY).await;
    let own = embed(&app, "Wheat is a grass.").await;
    let body = |vector: Value, verify: Value| json!({"text": "Wheat is a grass.", "space": space, "vector": vector, "verify": verify});
    let scaled: Vec<f32> = own.iter().map(|x| x * 3.0).collect();
    let grain = app.post("/grains", body(json!(scaled), json!(null))).await.ok();
    let meta = &grain["meta"];
    assert_eq!(
        (&meta["origin"], &meta["space"], &meta["embedding_dimensions"]),
        (&json!("supplied"), &json!(space), &json!(32))
    );
    assert_eq!(
        (&meta["embedding_model"], &meta["tokens"], &meta["truncated"]),
        (&json!(null), &json!(null), &json!(null))
    );
    let stored = vector_of_grain(&app, grain["id"].as_str().expect("an id")).await;
    assert!((norm(&stored) - 1.0).abs() < 1e-6);
    assert_same(&stored, &own);

    let proved = app.post("/grains", body(json!(scaled), json!(true))).await.ok();
    assert_eq!((&proved["meta"]["origin"], &proved["meta"]["embedding_model"]), (&json!("supplied"), &json!(TINY)));
    let turned: Vec<f32> = own.iter().rev().copied().collect();
    refused(
        &app.post("/grains", body(json!(turned), json!(true))).await,
        422,
        "invalid_request",
        "is not what `tiny` makes of the text",
    );
    app.post("/grains", body(json!(turned), json!(false))).await.ok();

    for (vector, sentence) in [
        (json!(vec![1.0; 31]), "`vector` has 31 numbers; its space has 32 dimensions"),
        (json!([]), "`vector` has 0 numbers"),
        (json!(vec![0.0; 32]), "all zeros"),
        (json!(vec![1e39; 32]), "not finite"),
        (json!("AACAPw=="), "`vector`"),
    ] {
        refused(&app.post("/grains", body(vector, json!(null))).await, 422, "invalid_request", sentence);
    }
    // JSON has numbers of any size, and none that is no number.
    for (fields, status, code, sentence) in [
        ("\"vector\": [NaN]", 400, "malformed_json", "not JSON"),
        ("\"vector\": [1e999]", 422, "invalid_request", "`vector[0]`: the number is not finite"),
        ("\"attributes\": {\"n\": 1e999}", 422, "invalid_request", "`attributes"),
    ] {
        let text = format!("{{\"text\": \"t\", \"space\": \"{space}\", {fields}}}");
        let answer =
            send(app.request(Method::POST, "/grains").header("content-type", "application/json").body(text)).await;
        refused(&answer, status, code, sentence);
    }
    let elsewhere = |space: &str| json!({"text": "t", "space": space, "vector": [1.0]});
    refused(&app.post("/grains", elsewhere("0123456789abcdef")).await, 422, "invalid_request", "`GET /spaces` lists");
    refused(&app.post("/grains", elsewhere("nowhere")).await, 422, "invalid_request", "`space`");
    refused(
        &app.post("/grains", json!({"text": "t", "vector": [1.0]})).await,
        422,
        "invalid_request",
        "`vector` needs `space`",
    );
    refused(
        &app.post("/grains", json!({"text": "t", "space": space})).await,
        422,
        "invalid_request",
        "which is missing",
    );
    let mut both = body(json!(own), json!(null));
    both["model"] = json!(TINY);
    refused(&app.post("/grains", both).await, 422, "invalid_request", "exclude each other");
    // A new text without a vector is the model's again.
    let id = grain["id"].as_str().expect("an id");
    let changed = app.patch(&format!("/grains/{id}"), json!({"text": "Rye"})).await.ok();
    assert_eq!(changed["meta"]["origin"], "computed");
    assert_eq!(count(&app).await, 3);
    app.stop().await;
}

#[tokio::test]
async fn a_vector_that_is_verified_again_changes_nothing() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let space = space_of(&app, TINY).await;
    let own = embed(&app, "Wheat is a grass.").await;
    let text = "Wheat is a grass.";
    let body = |vector: &[f32], verify: bool| json!({"text": text, "space": space, "vector": vector, "verify": verify});
    assert_eq!(app.put("/grains/a", body(&own, false)).await.ok()["meta"]["embedding_model"], json!(null));
    let before = app.metric("granary_texts_total").await;
    let proved = app.put("/grains/a", body(&own, true)).await.ok();
    let embedded = app.metric("granary_texts_total").await - before;
    assert!((embedded - 1.0).abs() < 0.5, "{embedded} times");
    assert_eq!((&proved["version"], &proved["meta"]["embedding_model"]), (&json!(2), &json!(TINY)));
    assert_eq!(app.put("/grains/a", body(&own, true)).await.ok(), proved);
    let line = json!({"id": "a", "text": "Wheat is a grass.", "space": space, "vector": own, "verify": true});
    let import = app.request(Method::POST, "/grains/import?on_conflict=replace");
    let import = import.header("content-type", "application/x-ndjson");
    let answer = send(import.body(line.to_string())).await.text;
    assert!(answer.contains("\"unchanged\":1,"), "{answer}");

    let turned: Vec<f32> = own.iter().rev().copied().collect();
    app.put("/grains/a", body(&turned, false)).await.ok();
    let answer = app.put("/grains/a", body(&turned, true)).await;
    refused(&answer, 422, "invalid_request", "is not what `tiny` makes of the text");
    app.stop().await;
}

#[tokio::test]
async fn a_vector_that_is_verified_again_changes_nothing_where_another_space_serves() {
    let other = "tiny-cls";
    let app = TestApp::start_with(&with_tiny(&[other])).await;
    let text = "Wheat is a grass.";
    app.put("/grains/a", json!({"text": text})).await.ok();
    let space = space_of(&app, other).await;
    let own = vectors_of(&app.post("/embed", json!({"inputs": text, "model": other})).await.ok()).remove(0);
    let body = json!({"text": text, "space": space, "vector": own, "verify": true});
    let taken = app.put("/grains/a", body.clone()).await.ok();
    assert_eq!((&taken["version"], &taken["meta"]["embedding_model"]), (&json!(2), &json!(TINY)));
    assert_eq!(app.put("/grains/a", body).await.ok(), taken);
    app.stop().await;
}

#[tokio::test]
async fn without_a_database_there_are_no_grains() {
    let app = TestApp::start_with(&format!("{}[grains]\nenabled = false\n", with_tiny(&[]))).await;
    let answer = app.post("/grains", json!({"text": "t"})).await;
    refused(&answer, 503, "store_unavailable", "`grains.enabled` is false");
    assert_eq!(answer.header("x-should-retry"), "false");
    refused(&app.get("/grains").await, 503, "store_unavailable", "keeps no grains");
    app.stop().await;
}
