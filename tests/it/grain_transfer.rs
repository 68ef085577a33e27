//! Grains move from one server to another, and come in from files of any length, line by line.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use futures::stream;
use reqwest::{Body, Method};
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::helpers::{
    Answer, Caller, Process, TINY, TestApp, client, cosine, folder_with, send, until, until_seen, vector_of, with_tiny,
};

const NDJSON: &str = "application/x-ndjson";

/// What an import answered.
#[derive(Debug)]
struct Imported {
    /// Failed lines: number, id, code, detail.
    failed: Vec<(u64, Option<String>, String, String)>,
    /// Why it stopped, by code.
    stopped: Option<String>,
    end: Value,
}

impl Imported {
    fn of(answer: &Answer) -> Self {
        assert_eq!((answer.status.as_u16(), answer.content_type()), (200, NDJSON), "{}", answer.text);
        let (mut failed, mut stopped, mut end) = (Vec::new(), None, Value::Null);
        for line in answer.text.lines() {
            assert!(end.is_null(), "a line after the end: {line}");
            let said: Value = serde_json::from_str(line).expect("JSON");
            let word = |value: &Value| value.as_str().map(str::to_owned);
            let problem = &said["error"]["problem"];
            if let Some(number) = said["error"]["line"].as_u64() {
                let code = word(&problem["code"]).expect("a code");
                failed.push((number, word(&said["error"]["id"]), code, word(&problem["detail"]).expect("a sentence")));
            } else if said["error"].is_object() {
                stopped = word(&problem["code"]);
            } else if said["end"].is_object() {
                end = said["end"].clone();
            } else {
                assert!(said["progress"]["read"].is_u64(), "{line}");
            }
        }
        assert!(!end.is_null(), "no end: {}", answer.text);
        Self { failed, stopped, end }
    }

    /// Lines read, created, replaced, unchanged, skipped, failed.
    fn counts(&self) -> [u64; 6] {
        ["read", "created", "replaced", "unchanged", "skipped", "failed"]
            .map(|word| self.end[word].as_u64().unwrap_or_else(|| panic!("no `{word}`: {}", self.end)))
    }

    fn assert_whole(self, counts: [u64; 6]) {
        assert_eq!(
            (self.counts(), &self.end["complete"], self.stopped),
            (counts, &json!(true), None),
            "{:?}",
            self.failed
        );
    }
}

async fn import(app: &TestApp, query: &str, body: impl Into<Body>) -> Imported {
    let request = app.request(Method::POST, &format!("/grains/import{query}")).header("content-type", NDJSON);
    Imported::of(&send(request.body(body)).await)
}

async fn export(app: &TestApp, body: Value) -> String {
    let answer = app.post("/grains/export", body).await;
    assert_eq!((answer.status.as_u16(), answer.content_type()), (200, NDJSON), "{}", answer.text);
    let last: Value = serde_json::from_str(answer.text.lines().last().expect("a line")).expect("JSON");
    let n_grains = answer.text.lines().filter(|line| line.starts_with("{\"id\"")).count();
    assert_eq!(last, json!({"end": {"grains": n_grains}}));
    answer.text
}

/// All grains with their vectors, by id, without what another server may have otherwise: versions and times of changes.
async fn grains(app: &TestApp) -> Vec<Value> {
    let exported = export(app, json!({"include": ["vector"]})).await;
    let lines = exported.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let mut grains: Vec<Value> = lines.filter(|line| line["id"].is_string()).collect();
    for grain in &mut grains {
        let grain = grain.as_object_mut().expect("a grain");
        assert!(grain.remove("version").is_some() && grain.remove("updated_at").is_some());
    }
    grains.sort_by_key(|grain| grain["id"].as_str().map(str::to_owned));
    grains
}

fn lines(values: impl IntoIterator<Item = Value>) -> String {
    values.into_iter().map(|value| value.to_string() + "\n").collect()
}

fn numbered(numbers: std::ops::Range<usize>) -> impl Iterator<Item = Value> {
    numbers.map(|n| json!({"id": format!("g{n}"), "text": format!("text number {n}"), "tags": ["numbered"]}))
}

async fn count(app: &Caller) -> u64 {
    app.post("/grains/count", json!({})).await.ok()["count"].as_u64().expect("a count")
}

/// Texts that were embedded for grains in this process, whichever server it was.
async fn texts_embedded(app: &TestApp) -> f64 {
    app.metric("granary_texts_total").await
}

async fn start() -> TestApp {
    TestApp::start_with(&with_tiny(&[])).await
}

#[tokio::test]
async fn a_text_on_which_the_model_fails_is_a_line_that_fails() {
    const BROKEN: &str = "tiny-broken-token";
    let toml = with_tiny(&[BROKEN]).replacen("model_name = \"tiny\"", &format!("model_name = \"{BROKEN}\""), 1);
    let app = TestApp::start_with(&toml).await;
    let bad = |id: &str| json!({"id": id, "text": format!("{id} ~ cannot be embedded")});
    let sent = lines(numbered(0..3).chain([bad("x")]).chain(numbered(3..6)).chain([bad("y")]));
    let mut imported = import(&app, "", sent).await;
    imported.failed.sort();
    let failed: Vec<(u64, Option<&str>, &str)> =
        imported.failed.iter().map(|(line, id, code, _)| (*line, id.as_deref(), code.as_str())).collect();
    assert_eq!(failed, [(4, Some("x"), "invalid_request"), (8, Some("y"), "invalid_request")]);
    let detail = &imported.failed[0].3;
    assert!(detail.contains(BROKEN) && detail.contains("no number to compare by"), "{detail}");
    imported.assert_whole([8, 6, 0, 0, 0, 2]);

    let grains: Vec<Value> = [bad("z")].into_iter().chain(numbered(6..8)).collect();
    let answer = app.post("/grains?partial=true", json!({"grains": grains})).await;
    assert_eq!(answer.status.as_u16(), 207, "{}", answer.text);
    let answer = answer.ok();
    let statuses: Vec<_> =
        answer["results"].as_array().expect("results").iter().map(|result| &result["status"]).collect();
    assert_eq!(statuses, [&json!(422), &json!(201), &json!(201)]);
    let (status, code, detail) = app.post("/grains", bad("z")).await.problem();
    assert_eq!((status, code.as_str()), (422, "invalid_request"), "{detail}");
    assert_eq!(count(&app).await, 8);
    app.stop().await;
}

#[tokio::test]
async fn an_export_with_vectors_makes_another_server_the_same_without_embedding() {
    let from = start().await;
    let space = from.post("/spaces", json!({"name": "ours", "dimensions": 3})).await.ok()["id"].clone();
    let tiny = from.post("/models/tiny/load", json!({})).await.ok()["space"].clone();
    import(&from, "", lines(numbered(0..300))).await.assert_whole([300, 300, 0, 0, 0, 0]);
    let deep = (1..64).fold(json!(0), |inner, _| json!([inner]));
    let attributes = json!({"year": 2024, "ratio": 0.1, "nested": {"b": [1, "ü", null], "a": true}, "deep": deep});
    let others = [
        json!({"id": "rich", "text": "\u{1F33E} wheat\n\"quoted\" \\ \u{7}", "source": "s", "attributes": attributes}),
        json!({"id": "long", "text": "word ".repeat(500), "created_at": "2001-02-03T04:05:06.5Z"}),
        json!({"id": "ours", "text": "made elsewhere", "vector": [1.0, -2.5, 3.25], "space": space}),
        json!({"id": "given", "text": "brought along", "vector": vec![0.3; 32], "space": tiny}),
    ];
    import(&from, "", lines(others)).await.assert_whole([4, 4, 0, 0, 0, 0]);
    let before = grains(&from).await;
    assert_eq!(before.len(), 304);
    let by_id = |id: &str| before.iter().find(|grain| grain["id"] == id).expect("a grain");
    assert_eq!(
        (&by_id("long")["meta"]["truncated"], &by_id("g0")["meta"]["origin"]),
        (&json!(true), &json!("computed"))
    );
    assert_eq!((&by_id("ours")["meta"]["space"], &by_id("given")["meta"]["origin"]), (&space, &json!("supplied")));
    assert_eq!(by_id("long")["created_at"], "2001-02-03T04:05:06.5Z");
    let exported = export(&from, json!({"include": ["vector"]})).await;
    let head: Vec<Value> = exported.lines().take(2).map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let mut names: Vec<_> =
        head.iter().map(|line| (line["space"]["id"].clone(), line["space"]["name"].clone())).collect();
    names.sort_by_key(|(id, _)| *id == space);
    assert_eq!(names, [(tiny, Value::Null), (space.clone(), json!("ours"))]);
    from.stop().await;

    // Its model makes the space, though it may not be loaded yet.
    let to = start().await;
    let n_before = texts_embedded(&to).await;
    import(&to, "", exported.clone()).await.assert_whole([304, 304, 0, 0, 0, 0]);
    assert!((texts_embedded(&to).await - n_before).abs() < 0.5, "texts were embedded again");
    assert_eq!(grains(&to).await, before);

    // A second time, nothing differs; and they are found.
    import(&to, "?on_conflict=replace", exported).await.assert_whole([304, 0, 0, 304, 0, 0]);
    assert!((texts_embedded(&to).await - n_before).abs() < 0.5, "texts were embedded again");
    let query = json!({"vector": [1.0, -2.5, 3.25], "space": space, "mode": "dense"});
    let found = to.post("/grains/search", query).await.ok();
    assert_eq!(found["hits"][0]["grain"]["id"], "ours");
    to.stop().await;
}

#[tokio::test]
async fn a_vector_of_another_length_than_1_is_known_again_where_another_space_serves() {
    let app = TestApp::start_with(&with_tiny(&["tiny-cls"])).await;
    import(&app, "", lines(numbered(0..1))).await.assert_whole([1, 1, 0, 0, 0, 0]);
    let grain = |model: &str| json!({"text": "made by two models", "model": model});
    app.put("/grains/both", grain("tiny-cls")).await.ok();
    let exported = export(&app, json!({"filter": {"ids": ["both"]}, "include": ["vector"]})).await;
    app.put("/grains/both", grain(TINY)).await.ok();
    assert_eq!(app.get("/grains/both").await.ok()["meta"]["embedding_model"], TINY);
    import(&app, "?on_conflict=replace", exported).await.assert_whole([1, 0, 0, 1, 0, 0]);
    app.stop().await;
}

#[tokio::test]
async fn what_is_known_of_a_vector_that_is_there_already_is_replaced_too() {
    let app = start().await;
    import(&app, "", lines(numbered(0..1))).await.assert_whole([1, 1, 0, 0, 0, 0]);
    let meta = async || app.get("/grains/g0").await.ok()["meta"].clone();
    let computed = meta().await;
    let exported = export(&app, json!({"include": ["vector"]})).await;
    let line = exported.lines().find(|line| line.starts_with("{\"id\"")).expect("a grain");
    let mut line: Value = serde_json::from_str(line).expect("JSON");
    line["meta"]["origin"] = json!("supplied");
    for field in ["embedding_model", "tokens", "truncated"] {
        line["meta"][field] = Value::Null;
    }
    let changed = lines([line]);
    import(&app, "?on_conflict=replace", changed.clone()).await.assert_whole([1, 0, 1, 0, 0, 0]);
    let supplied = meta().await;
    assert_eq!((&supplied["origin"], &supplied["embedding_model"]), (&json!("supplied"), &Value::Null));
    import(&app, "?on_conflict=replace", changed).await.assert_whole([1, 0, 0, 1, 0, 0]);
    import(&app, "?on_conflict=replace", exported).await.assert_whole([1, 0, 1, 0, 0, 0]);
    assert_eq!(meta().await, computed);
    app.stop().await;
}

#[tokio::test]
async fn an_export_without_vectors_is_embedded_again_and_a_filter_chooses() {
    let from = start().await;
    import(&from, "", lines(numbered(0..5))).await.assert_whole([5, 5, 0, 0, 0, 0]);
    import(&from, "", lines([json!({"id": "other", "text": "other"})])).await.assert_whole([1, 1, 0, 0, 0, 0]);
    let space = from.post("/spaces", json!({"name": "ours", "dimensions": 3})).await.ok()["id"].clone();
    import(&from, "", lines([json!({"id": "ours", "text": "other", "vector": [1, 2, 3], "space": space})]))
        .await
        .assert_whole([1, 1, 0, 0, 0, 0]);
    let exported = export(&from, json!({"filter": {"tags": {"any": ["numbered"]}}})).await;
    let spaces: Vec<bool> = exported.lines().map(|line| line.starts_with("{\"space\"")).collect();
    assert_eq!(spaces, [true, false, false, false, false, false, false], "the space of these grains, and no other");
    assert!(!exported.contains("\"vector\"") && !exported.contains("\"other\""), "{exported}");
    from.stop().await;
    let to = start().await;
    import(&to, "", exported).await.assert_whole([5, 5, 0, 0, 0, 0]);
    let grain = to.get("/grains/g3?include=vector").await.ok();
    assert_eq!((&grain["meta"]["embedding_model"], &grain["meta"]["tags"]), (&json!(TINY), &json!(["numbered"])));
    assert_eq!(vector_of(&grain["vector"]).len(), 32);
    to.stop().await;
}

#[tokio::test]
async fn a_vector_of_an_unknown_space_is_refused_or_embedded_again() {
    let app = start().await;
    let shown = json!({"id": "a", "text": "a text", "vector": [1.0, 2.0], "meta": {"space": "0123456789abcdef",
        "origin": "computed", "embedding_model": "unknown", "tags": ["t"]}});
    let flat = json!({"id": "b", "text": "another", "vector": [1.0, 2.0], "space": "0123456789abcdef"});
    let body = lines([shown, flat]);
    let refused = import(&app, "", body.clone()).await;
    assert_eq!(refused.counts(), [2, 0, 0, 0, 0, 2]);
    let (line, id, code, detail) = &refused.failed[0];
    assert_eq!((*line, id.as_deref(), code.as_str()), (1, Some("a"), "invalid_request"));
    assert!(detail.contains("0123456789abcdef") && detail.contains("reembed=true"), "{detail}");
    import(&app, "?reembed=true", body).await.assert_whole([2, 2, 0, 0, 0, 0]);
    let grain = app.get("/grains/a").await.ok();
    assert_eq!((&grain["meta"]["embedding_model"], &grain["meta"]["tags"]), (&json!(TINY), &json!(["t"])));
    app.stop().await;
}

#[tokio::test]
async fn manifests_make_declared_spaces_known_if_they_are_whole() {
    let app = start().await;
    let manifest = json!({"declared": "theirs", "dimensions": 2});
    let line = |fingerprint: &str| json!({"space": {"fingerprint": fingerprint, "manifest": manifest}});
    let declared = app.post("/spaces", json!({"name": "elsewhere", "dimensions": 2})).await;
    assert_eq!(declared.status, 201);
    let again = app.post("/spaces", json!({"name": "elsewhere", "dimensions": 2})).await;
    assert_eq!((again.status.as_u16(), again.json()), (200, declared.json()));
    let otherwise = app.post("/spaces", json!({"name": "elsewhere", "dimensions": 3})).await.problem();
    assert_eq!((otherwise.0, otherwise.1.as_str()), (409, "conflict"));
    assert_eq!(app.post("/spaces", json!({"name": "no good", "dimensions": 3})).await.problem().0, 422);
    assert_eq!(app.post("/spaces", json!({"name": "good", "dimensions": 0})).await.problem().0, 422);

    let refused = import(&app, "", lines([line(&"0".repeat(64))])).await;
    assert_eq!((refused.failed[0].0, refused.failed[0].2.as_str()), (1, "invalid_request"));
    assert_eq!(refused.counts(), [1, 0, 0, 0, 0, 1]);
    let fingerprint = crate::helpers::sha256(manifest.to_string().as_bytes());
    let grain = json!({"id": "a", "text": "a text", "vector": [3.0, 4.0], "space": fingerprint[..16]});
    import(&app, "", lines([line(&fingerprint), grain])).await.assert_whole([1, 1, 0, 0, 0, 0]);
    let spaces = app.get("/spaces").await.ok();
    let theirs = spaces["spaces"].as_array().expect("spaces").iter().find(|space| space["name"] == "theirs");
    assert_eq!(theirs.map(|space| (&space["grains"], &space["models"])), Some((&json!(1), &json!([]))), "{spaces}");

    // It is searched by vector; a text has no way into it.
    let query = json!({"query": "a text", "mode": "dense"});
    let found = app.post("/grains/search", query).await.ok();
    assert_eq!((&found["hits"], &found["spaces"][0]["searched"]), (&json!([]), &json!(false)), "{found}");
    assert!(found["spaces"][0]["reason"].as_str().is_some_and(|reason| reason.contains("send a vector")), "{found}");
    let wrong = json!({"id": "b", "text": "a text", "vector": [3.0], "space": fingerprint[..16]});
    assert_eq!(import(&app, "", lines([wrong])).await.failed[0].2, "invalid_request");
    app.stop().await;
}

#[tokio::test]
async fn a_taken_id_is_an_error_or_skipped_or_replaced() {
    let app = start().await;
    import(&app, "", lines(numbered(0..3))).await.assert_whole([3, 3, 0, 0, 0, 0]);
    let body = || {
        let mut values: Vec<Value> = numbered(0..4).collect();
        values[1]["tags"] = json!(["changed"]);
        values[2]["text"] = json!("another text");
        lines(values)
    };
    let refused = import(&app, "", body()).await;
    assert_eq!(refused.counts(), [4, 1, 0, 0, 0, 3]);
    assert!(refused.failed.iter().all(|(.., code, _)| code == "conflict"), "{:?}", refused.failed);
    import(&app, "?on_conflict=skip", body()).await.assert_whole([4, 0, 0, 0, 4, 0]);
    assert_eq!(app.get("/grains/g2").await.ok()["version"], 1);

    let n_before = texts_embedded(&app).await;
    import(&app, "?on_conflict=replace", body()).await.assert_whole([4, 0, 2, 2, 0, 0]);
    assert!((texts_embedded(&app).await - n_before - 1.0).abs() < 0.5, "only the changed text is embedded");
    let changed = app.get("/grains/g1").await.ok();
    assert_eq!((&changed["version"], &changed["meta"]["tags"]), (&json!(2), &json!(["changed"])));
    assert_eq!(app.get("/grains/g2").await.ok()["text"], "another text");
    let space = app.get("/models/tiny").await.ok()["space"].clone();
    let short = json!({"id": "g0", "text": "text number 0", "vector": [1.0], "space": space});
    let refused = import(&app, "?on_conflict=replace", lines([short].into_iter().chain(numbered(3..4)))).await;
    assert_eq!((refused.counts(), refused.failed[0].2.as_str()), ([2, 0, 0, 1, 0, 1], "invalid_request"));
    assert_eq!(refused.end["complete"], true);
    for (query, param) in [("?on_conflict=maybe", "on_conflict"), ("?reembed=1", "reembed")] {
        let request = app.request(Method::POST, &format!("/grains/import{query}")).header("content-type", NDJSON);
        let (status, _, detail) = send(request.body("")).await.problem();
        assert!(status == 422 && detail.contains(param), "{detail}");
    }
    app.stop().await;
}

#[tokio::test]
async fn an_export_that_a_stop_cuts_short_says_so() {
    let app = start().await;
    let space = app.post("/models/tiny/load", json!({})).await.ok()["space"].clone();
    // More than the system takes in for somebody who does not read.
    let grain = json!({"text": "many words ".repeat(10_000), "vector": vec![1.0; 32], "space": space});
    for _ in 0..25 {
        app.post("/grains", json!({"grains": vec![&grain; 8]})).await.ok();
    }
    let exported = app.request(Method::POST, "/grains/export").json(&json!({"include": ["vector"]}));
    let mut exported = exported.send().await.expect("an answer");
    let mut read = exported.chunk().await.expect("a piece").expect("some").to_vec();
    let ((), rest) = tokio::join!(app.stop(), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        exported.bytes().await.expect("the rest")
    });
    read.extend_from_slice(&rest);
    let text = String::from_utf8(read).expect("UTF-8");
    let last: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    assert_eq!(last["error"]["problem"]["code"], "store_unavailable", "{last}");
}

#[tokio::test]
async fn an_edited_text_does_not_take_over_the_vector_of_the_old_one() {
    let app = start().await;
    let old = "Wheat is a grass.";
    app.post("/grains", json!({"id": "a", "text": old})).await.ok();
    let edited = export(&app, json!({"include": ["vector"]})).await.replace(old, "Barley is one too.");
    let imported = import(&app, "?on_conflict=replace", edited).await;
    let (_, _, code, detail) = &imported.failed[0];
    assert!(code == "invalid_request" && detail.contains("leave out `vector`"), "{imported:?}");
    assert_eq!(app.get("/grains/a").await.ok()["text"], old);
    let edited = export(&app, json!({})).await.replace(old, "Barley is one too.");
    import(&app, "?on_conflict=replace", edited).await.assert_whole([1, 0, 1, 0, 0, 0]);
    let made = app.post("/embed", json!({"inputs": "Barley is one too."})).await.ok();
    let grain = app.get("/grains/a?include=vector").await.ok();
    assert!(cosine(&vector_of(&made[0]), &vector_of(&grain["vector"])) > 0.9999, "{grain}");
    app.stop().await;
}

#[tokio::test]
async fn what_a_grain_takes_no_more_is_left_in_it_by_a_line_that_has_it_too() {
    let app = start().await;
    let (text, longer) = ("x".repeat(2048), "x".repeat(2049));
    let line = |text: &str, tags: Value| lines([json!({"id": "long", "text": text, "tags": tags})]);
    import(&app, "", line(&text, json!([]))).await.assert_whole([1, 1, 0, 0, 0, 0]);
    let app = app.restart_with(&format!("[grains]\nmax_text = \"1 KiB\"\n{}", with_tiny(&[]))).await;
    import(&app, "?on_conflict=replace", line(&text, json!([]))).await.assert_whole([1, 0, 0, 1, 0, 0]);
    import(&app, "?on_conflict=replace", line(&text, json!(["a"]))).await.assert_whole([1, 0, 1, 0, 0, 0]);
    let refused = import(&app, "?on_conflict=replace", line(&longer, json!(["a"]))).await;
    assert_eq!((refused.counts(), refused.failed[0].2.as_str()), ([1, 0, 0, 0, 0, 1], "invalid_request"));
    app.stop().await;
}

#[tokio::test]
async fn of_lines_with_one_id_the_later_comes_after_the_earlier() {
    let app = start().await;
    import(&app, "", lines([json!({"id": "x", "text": "first"})])).await.assert_whole([1, 1, 0, 0, 0, 0]);
    // Among others, so that they stand in different batches too; the last is what is stored already.
    let line = |text: &str| json!({"id": "x", "text": text});
    let values = || {
        let first = [line("second"), line("third")].into_iter().chain(numbered(0..300)).chain([line("fourth")]);
        first.chain(numbered(300..600)).chain([line("first")])
    };
    import(&app, "?on_conflict=replace", lines(values())).await.assert_whole([604, 600, 4, 0, 0, 0]);
    let grain = app.get("/grains/x").await.ok();
    assert_eq!((&grain["text"], &grain["version"]), (&json!("first"), &json!(5)));
    let found = app.post("/grains/search", json!({"query": "fourth", "mode": "lexical"})).await.ok();
    assert_eq!(found["hits"], json!([]));
    let twice = import(&app, "", lines([json!({"id": "y", "text": "a"}), json!({"id": "y", "text": "b"})])).await;
    assert_eq!((twice.counts(), twice.failed[0].0), ([2, 1, 0, 0, 0, 1], 2));
    app.stop().await;
}

#[tokio::test]
async fn bad_lines_are_reported_by_number_and_the_others_are_written() {
    let app = TestApp::start_with(&format!("[grains]\nmax_text = \"1KiB\"\n{}", with_tiny(&["tiny-bad-vocab"]))).await;
    let body = [
        r#"{"id": "good", "text": "good"}"#.to_owned(),
        "not JSON".to_owned(),
        String::new(),
        r#"{"id": "no good", "text": "a bad id"}"#.to_owned(),
        r#"{"id": "no-text"}"#.to_owned(),
        r#"{"id": "typed", "text": 7}"#.to_owned(),
        json!({"id": "long", "text": "x".repeat(1025)}).to_string(),
        json!({"id": "longer", "text": "x".repeat(2 << 20)}).to_string(),
        r#"{"id": "half", "text": "a vector without its space", "vector": [1]}"#.to_owned(),
        r#"{"id": "nobody", "text": "a model that is not there", "model": "nobody"}"#.to_owned(),
        r#"{"id": "broken", "text": "a model that cannot be loaded", "model": "tiny-bad-vocab"}"#.to_owned(),
        r#"{"end": {"grains": 7}}"#.to_owned(),
        format!(r#"{{"id": "lists", "text": "x", "attributes": {{"a": [{}0]}}}}"#, "[], ".repeat(30_000)),
        r#"{"id": "late", "text": "of the year 10000 in UTC", "created_at": "9999-12-31T23:59:59-01:00"}"#.to_owned(),
        json!({"id": "nul", "text": "a time with a NUL", "created_at": "2026-01-31\u{0}12:00:00Z"}).to_string(),
        r#"{"id": "both", "text": "tags beside meta", "tags": ["a"], "meta": {"source": "b"}}"#.to_owned(),
        r#"{"id": "last", "text": "the last, without an end of its line"}"#.to_owned(),
    ];
    let mut imported = import(&app, "", body.join("\n")).await;
    imported.failed.sort();
    let failed: Vec<_> =
        imported.failed.iter().map(|(line, id, code, _)| (*line, id.as_deref(), code.as_str())).collect();
    assert_eq!(
        failed,
        [
            (2, None, "malformed_json"),
            (4, Some("no good"), "invalid_request"),
            (5, Some("no-text"), "invalid_request"),
            (6, Some("typed"), "invalid_request"),
            (7, Some("long"), "invalid_request"),
            (8, None, "body_too_large"),
            (9, Some("half"), "invalid_request"),
            (10, Some("nobody"), "model_not_found"),
            (11, Some("broken"), "model_failed"),
            (12, None, "invalid_request"),
            (13, None, "body_too_large"),
            (14, Some("late"), "invalid_request"),
            (15, Some("nul"), "invalid_request"),
            (16, Some("both"), "invalid_request"),
        ],
        "{imported:?}"
    );
    assert_eq!((imported.counts(), &imported.end["complete"]), ([16, 2, 0, 0, 0, 14], &json!(true)));
    assert_eq!(count(&app).await, 2);
    let refused = send(app.request(Method::POST, "/grains/import").json(&json!({"text": "a"}))).await.problem();
    assert_eq!((refused.0, refused.1.as_str()), (415, "content_type"));
    app.stop().await;
}

#[tokio::test]
async fn a_time_of_creation_is_shown_as_it_is_counted() {
    let app = start().await;
    let times = [
        ("short", "2024-01-01T00:00:00.5Z", Some("2024-01-01T00:00:00.5Z")),
        ("own", "2024-01-01T00:00:00.123450Z", Some("2024-01-01T00:00:00.123450Z")),
        ("blank", "2024-01-01 00:00:00.1234567Z", Some("2024-01-01T00:00:00.123456Z")),
        ("small", "2024-01-01t00:00:00z", Some("2024-01-01T00:00:00Z")),
        ("leap", "2016-12-31T23:59:60Z", Some("2016-12-31T23:59:59.999999Z")),
        ("first", "0001-01-01T00:00:00Z", Some("0001-01-01T00:00:00Z")),
        ("before", "0000-01-01T00:00:00Z", None),
    ];
    let sent = times.map(|(id, written, _)| json!({"id": id, "text": id, "created_at": written}));
    let imported = import(&app, "", lines(sent)).await;
    let failed: Vec<_> =
        imported.failed.iter().map(|(line, id, code, _)| (*line, id.as_deref(), code.as_str())).collect();
    assert_eq!(failed, [(7, Some("before"), "invalid_request")]);
    assert!(imported.failed[0].3.contains("of the years 1 to 9999"), "{imported:?}");
    for (id, _, shown) in times {
        let Some(shown) = shown else { continue };
        assert_eq!(app.get(&format!("/grains/{id}")).await.ok()["created_at"], shown, "{id}");
        // No other grain is of this moment.
        let filter = json!({"created_at": {"gte": shown, "lte": shown}});
        assert_eq!(app.post("/grains/count", json!({"filter": filter})).await.ok()["count"], 1, "{id}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_line_with_fields_that_would_be_lost_is_refused() {
    let app = start().await;
    let sent = [
        json!({"id": "point", "text": "a text", "vector": [1.0], "payload": {"city": "Jena"}}),
        json!({"id": "typo", "text": "a text", "tag": "x"}),
        json!({"id": "shown", "text": "a text", "meta": {"author": "x"}}),
    ];
    let imported = import(&app, "", lines(sent)).await;
    assert_eq!(imported.counts(), [3, 0, 0, 0, 0, 3]);
    for ((_, id, code, detail), (expected, said)) in imported.failed.iter().zip([
        ("point", "unknown field `payload`, expected one of `id`, `text`, `source`, `tags`, `attributes`, `model`"),
        ("typo", "unknown field `tag`, expected one of `id`"),
        ("shown", "unknown field `author`, expected one of `source`, `tags`"),
    ]) {
        assert_eq!((id.as_deref(), code.as_str()), (Some(expected), "invalid_request"));
        assert!(detail.contains(said), "{detail}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_line_is_a_grain_or_a_manifest_or_the_end_of_an_export_and_no_two_of_them() {
    let app = start().await;
    let manifest = json!({"declared": "theirs", "dimensions": 2});
    let fingerprint = crate::helpers::sha256(manifest.to_string().as_bytes());
    let space = json!({"fingerprint": fingerprint, "manifest": manifest, "name": null});
    let sent = [
        json!({"id": "a", "text": "a text", "vector": [3.0, 4.0], "space": space}),
        json!({"text": "a text", "end": {"grains": 0}}),
        json!({"space": space, "end": {"grains": 0}}),
        json!({"version": 3, "space": space}),
        json!({"space": {"fingerprint": fingerprint, "manifest": manifest, "text": "a text"}}),
        json!({"end": {"grains": 0, "texts": 0}}),
    ];
    let imported = import(&app, "", lines(sent)).await;
    assert_eq!(imported.counts(), [6, 0, 0, 0, 0, 6]);
    let said = [
        "`id` stands beside the manifest in `space`: a line is a grain, a manifest or the end of an export",
        "`text` stands beside the end of an export",
        "`space` stands beside the end of an export",
        "`version` stands beside the manifest in `space`",
        "unknown field `text`",
        "unknown field `texts`",
    ];
    for ((line, (_, _, code, detail)), said) in imported.failed.iter().enumerate().zip(said) {
        assert!(code == "invalid_request" && detail.contains(said), "{line}: {detail}");
    }
    // What has another meaning only where it is set may stand there as null.
    let absent = [json!({"space": space, "text": null, "end": null}), json!({"end": {"grains": 0}, "space": null})];
    import(&app, "", lines(absent)).await.assert_whole([0, 0, 0, 0, 0, 0]);
    app.stop().await;
}

#[tokio::test]
async fn a_line_and_one_of_many_grains_say_what_is_wrong_with_their_model() {
    let app = TestApp::start_with(&with_tiny(&["tiny-cls"])).await;
    let space = app.post("/models/tiny-cls/load", json!({})).await.ok()["space"].clone();
    app.post("/models/tiny-cls/unload", json!({"disable": true})).await.ok();
    let imported = import(&app, "", lines([json!({"id": "x", "text": "a", "model": "tiny-cls"})])).await;
    assert_eq!(imported.counts(), [1, 0, 0, 0, 0, 1]);
    let (_, _, code, detail) = &imported.failed[0];
    assert!(code == "model_disabled" && detail.contains("`tiny-cls` is disabled"), "{imported:?}");

    let verified = json!({"text": "a", "vector": vec![1.0; 32], "space": space, "verify": true});
    let answer = app.post("/grains?partial=true", json!({"grains": [verified, {"text": "b"}]})).await.ok();
    let (refused, written) = (&answer["results"][0], &answer["results"][1]);
    assert_eq!((&refused["status"], &refused["problem"]["code"]), (&json!(503), &json!("model_disabled")), "{answer}");
    assert_eq!(written["status"], 201, "{answer}");
    app.stop().await;
}

#[tokio::test]
async fn lines_whose_vectors_are_verified_wait_for_a_model_that_is_loading() {
    let other = "tiny-cls";
    let app = TestApp::start_with(&format!("[models]\nload_timeout = \"1ms\"\n{}", with_tiny(&[other]))).await;
    let reach = async |state: &str| {
        until(&format!("it is {state}"), async || app.get("/models/tiny-cls").await.ok()["state"] == state).await;
    };
    // It goes on loading when the caller's time is over.
    app.post("/models/tiny-cls/load", json!({})).await;
    reach("ready").await;
    let space = app.get("/models/tiny-cls").await.ok()["space"].clone();
    let own = app.post("/embed", json!({"inputs": "a text", "model": other})).await.ok()[0].clone();
    app.post("/models/tiny-cls/unload", json!({})).await;
    reach("unloaded").await;
    let line = |n: usize| json!({"id": n.to_string(), "text": "a text", "vector": own, "space": space, "verify": true});
    let before = texts_embedded(&app).await;
    import(&app, "", lines((0..3).map(line))).await.assert_whole([3, 3, 0, 0, 0, 0]);
    assert!((texts_embedded(&app).await - before - 3.0).abs() < 0.5, "texts were embedded again");
    app.stop().await;
}

#[tokio::test]
async fn a_database_that_fails_at_a_line_with_a_model_of_its_own_stops_the_import() {
    let folder = TempDir::new().expect("a folder");
    let database = folder.path().join("granary.db");
    let app = TestApp::start_in(folder, &with_tiny(&["tiny-cls"])).await;
    let space = app.post("/models/tiny-cls/load", json!({})).await.ok()["space"].clone();
    let line = |id: &str| json!({"id": id, "text": "a", "vector": vec![1.0; 32], "space": space, "verify": true});
    let mut stored = line("stored");
    stored["verify"] = json!(false);
    app.post("/grains", stored).await.ok();
    app.post("/models/tiny-cls/unload", json!({})).await.ok();
    until("it is unloaded", async || app.get("/models/tiny-cls").await.ok()["state"] == "unloaded").await;
    // Which model makes the space is not to be found out any more.
    let mut outsider = SqliteConnectOptions::new().filename(&database).connect().await.expect("a connection");
    let rename = "ALTER TABLE accepted_spaces RENAME TO elsewhere";
    sqlx::query(rename).execute(&mut outsider).await.expect("renamed");
    outsider.close().await.expect("closed");
    for id in ["stored", "new"] {
        let imported = import(&app, "?on_conflict=replace", lines([line(id)])).await;
        assert_eq!((imported.failed.len(), &imported.end["complete"]), (0, &json!(false)), "{id}: {imported:?}");
        assert!(imported.stopped.is_some(), "{id}: {imported:?}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_body_may_be_larger_than_other_bodies_and_goes_on_where_it_was_cut() {
    let app = TestApp::start_with(&format!("[server]\nmax_body = \"4KiB\"\n{}", with_tiny(&[]))).await;
    let whole = lines(numbered(0..2000));
    assert!(whole.len() > 100 << 10);
    // The connection breaks in the middle of a line, once something of what came before is written.
    let half = whole[..whole.len() / 2 + 7].to_owned();
    let (sender, receiver) = futures::channel::mpsc::unbounded::<Result<String, std::io::Error>>();
    let request = app.request(Method::POST, "/grains/import").header("content-type", NDJSON);
    let sent = async {
        match request.body(Body::wrap_stream(receiver)).send().await {
            Ok(response) => response.text().await.is_err(),
            Err(_) => true,
        }
    };
    let cut = async {
        sender.unbounded_send(Ok(half)).expect("sent");
        until("something is written", async || count(&app).await > 0).await;
        sender.unbounded_send(Err(std::io::Error::other("cut"))).expect("sent");
    };
    let (is_cut, ()) = futures::join!(sent, cut);
    assert!(is_cut, "the client's own connection broke");
    // What had arrived is written, or not, as far as the server was when its caller had gone.
    let (mut n_written, mut n_same) = (0, 0);
    while n_same < 30 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = count(&app).await;
        n_same = if now == n_written { n_same + 1 } else { 0 };
        n_written = now;
    }
    assert!((1..1100).contains(&n_written), "{n_written}");
    let n_before = texts_embedded(&app).await;
    import(&app, "?on_conflict=skip", whole).await.assert_whole([2000, 2000 - n_written, 0, 0, n_written, 0]);
    assert!(
        (texts_embedded(&app).await - n_before - (2000 - n_written) as f64).abs() < 0.5,
        "nothing is embedded twice"
    );
    app.stop().await;
}

/// As curl sends files with `-T`, and any body over 1 MiB.
#[tokio::test]
async fn who_waits_until_the_server_asks_for_the_lines_is_asked() {
    let app = start().await;
    let address = app.url().trim_start_matches("http://").to_owned();
    let connection = TcpStream::connect(address).await.expect("a connection");
    let mut connection = BufReader::new(connection);
    let head = "POST /grains/import HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-ndjson\r\n\
                transfer-encoding: chunked\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n";
    connection.write_all(head.as_bytes()).await.expect("sent");
    let mut first = String::new();
    connection.read_line(&mut first).await.expect("an answer");
    assert_eq!(first, "HTTP/1.1 100 Continue\r\n");
    let line = lines(numbered(0..1));
    let body = format!("{:x}\r\n{line}\r\n0\r\n\r\n", line.len());
    connection.write_all(body.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.contains("HTTP/1.1 200 OK") && answer.contains("\"complete\":true"), "{answer}");
    assert_eq!(count(&app).await, 1);
}

#[tokio::test]
async fn lines_that_come_slowly_are_written_while_the_body_goes_on() {
    let app = start().await;
    let (sender, receiver) = futures::channel::mpsc::unbounded::<Result<String, std::io::Error>>();
    let request = app.request(Method::POST, "/grains/import").header("content-type", NDJSON);
    let answer = send(request.body(Body::wrap_stream(receiver)));
    let writer = async {
        sender.unbounded_send(Ok(lines(numbered(0..3)))).expect("sent");
        until("the first lines are written", async || count(&app).await == 3).await;
        sender.unbounded_send(Ok(lines(numbered(3..4)))).expect("sent");
        drop(sender);
    };
    let (answer, ()) = futures::join!(answer, writer);
    assert!(answer.text.contains("\"progress\""), "{}", answer.text);
    Imported::of(&answer).assert_whole([4, 4, 0, 0, 0, 0]);
    app.stop().await;
}

#[tokio::test]
async fn a_server_that_stops_ends_its_imports_in_order() {
    let app = start().await;
    let (sender, receiver) = futures::channel::mpsc::unbounded::<Result<String, std::io::Error>>();
    let request = app.request(Method::POST, "/grains/import").header("content-type", NDJSON);
    let answer = send(request.body(Body::wrap_stream(receiver)));
    let stop = async {
        sender.unbounded_send(Ok(lines(numbered(0..300)))).expect("sent");
        until("the first lines are written", async || count(&app).await >= 256).await;
        app.stop().await;
        drop(sender);
    };
    let (answer, ()) = futures::join!(answer, stop);
    let imported = Imported::of(&answer);
    assert_eq!((imported.counts(), imported.stopped.as_deref()), ([300, 300, 0, 0, 0, 0], Some("store_unavailable")));
    assert_eq!(imported.end["complete"], false);
}

/// As most programs do, which read no answer before all is sent.
#[tokio::test]
async fn who_sends_all_first_is_told_that_the_server_stops() {
    let app = start().await;
    let address = app.url().trim_start_matches("http://").to_owned();
    let mut connection = TcpStream::connect(address).await.expect("a connection");
    let head = "POST /grains/import HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-ndjson\r\n\
                transfer-encoding: chunked\r\n\r\n";
    connection.write_all(head.as_bytes()).await.expect("sent");
    let chunk = |numbers: std::ops::Range<usize>| {
        let lines = lines(numbered(numbers));
        format!("{:x}\r\n{lines}\r\n", lines.len())
    };
    connection.write_all(chunk(0..300).as_bytes()).await.expect("sent");
    until("the first lines are written", async || count(&app).await >= 256).await;
    let rest = async {
        // The import has ended by then.
        tokio::time::sleep(Duration::from_millis(500)).await;
        for n in 3..20 {
            connection.write_all(chunk(n * 100..n * 100 + 100).as_bytes()).await.expect("sent");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        connection.write_all(b"0\r\n\r\n").await.expect("sent");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.expect("an answer");
        answer
    };
    let (answer, ()) = futures::join!(rest, app.stop());
    for said in ["`on_conflict=skip`", "\"created\":300,", "\"complete\":false"] {
        assert!(answer.contains(said), "{answer}");
    }
}

/// A server as a process of its own, and the command line against it.
struct Server {
    url: String,
    _process: Process,
    folder: TempDir,
}

impl Server {
    fn start() -> Self {
        let folder = folder_with(&with_tiny(&[]));
        let (process, url) = Process::serve(folder.path(), &[]);
        Self { url, _process: process, folder }
    }

    /// Runs `granary grains …` with this standard input.
    fn run(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_granary"));
        command.current_dir(self.folder.path()).arg("grains").args(arguments).env_clear().env("GRANARY_URL", &self.url);
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = pipes.spawn().expect("it starts");
        // One that does not read it need not.
        let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
        child.wait_with_output().expect("it ends")
    }

    fn ok(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run(arguments, input);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }
}

#[tokio::test]
async fn the_command_line_moves_grains_from_one_server_to_another() {
    let (from, to) = (Server::start(), Server::start());
    fs_err::write(from.folder.path().join("in.ndjson"), lines(numbered(0..400))).expect("written");
    assert_eq!(from.ok(&["import", "in.ndjson"], ""), "400 read: 400 created\n");
    let failed = from.run(&["import", "-"], "{\"id\": \"g7\", \"text\": \"taken\"}\nnot JSON\n{\"text\": \"new\"}\n");
    let stderr = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert_eq!(
        (failed.status.code(), failed.stdout.as_slice()),
        (Some(1), b"3 read: 1 created, 2 failed\n".as_slice())
    );
    assert!(stderr.contains("line 1 (g7): there is a grain `g7` already") && stderr.contains("line 2: "), "{stderr}");
    assert!(stderr.contains("granary: 2 lines were not imported"), "{stderr}");

    let filter = r#"{"tags": {"any": ["numbered"]}}"#;
    assert_eq!(from.ok(&["count"], ""), "401\n");
    assert_eq!(from.ok(&["count", "--filter", filter], ""), "400\n");
    assert_eq!(from.ok(&["count", "--by", "tags", "--filter", r#"{"ids": ["g7", "g8"]}"#], ""), "2  numbered\n");
    let shown = from.ok(&["show", "g7", "g8"], "");
    let shown: Vec<Value> = shown.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((&shown[0]["id"], &shown[1]["text"], shown.len()), (&json!("g7"), &json!("text number 8"), 2));
    assert_eq!(from.ok(&["export", "out.ndjson", "--vectors", "--filter", filter], ""), "");
    let out = from.folder.path().join("out.ndjson");
    assert!(!from.folder.path().join("out.ndjson.part").exists());
    let exported = fs_err::read_to_string(&out).expect("written");
    let link = from.folder.path().join("link.ndjson");
    std::os::unix::fs::symlink("linked.ndjson", &link).expect("linked");
    from.ok(&["export", "link.ndjson", "--vectors", "--filter", filter], "");
    assert!(link.is_symlink(), "the export took the link's place");
    let linked = fs_err::read_to_string(from.folder.path().join("linked.ndjson")).expect("written");
    assert_eq!(linked.lines().count(), exported.lines().count());
    assert_eq!(to.ok(&["import", out.to_str().expect("UTF-8")], ""), "400 read: 400 created\n");
    assert_eq!(to.ok(&["import", "-", "--on-conflict", "skip"], &exported), "400 read: 400 skipped\n");
    assert_eq!(to.ok(&["import", "-", "--on-conflict", "replace"], &exported), "400 read: 400 unchanged\n");
    let texts = |text: &str| -> Vec<String> {
        text.lines()
            .filter(|line| line.starts_with("{\"id\""))
            .map(|line| line.split("\"version\"").next().expect("a part").to_owned())
            .collect()
    };
    assert_eq!(texts(&to.ok(&["export"], "")), texts(&from.ok(&["export", "-", "--filter", filter], "")));
    let found = to.ok(&["search", "text number 7", "--mode", "lexical", "--limit", "3"], "");
    assert!(found.lines().count() == 3 && found.contains("  g7  text number 7\n"), "{found}");
    let cut = to.run(&["export", "--filter", "{"], "");
    assert!(!cut.status.success() && String::from_utf8_lossy(&cut.stderr).contains("the filter is not JSON"));
    let refused = |arguments: &[&str]| {
        let output = to.run(arguments, "");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).expect("UTF-8")
    };
    let few = r#"{"ids": ["g1", "g2"]}"#;
    let said = refused(&["delete", "--filter", few, "--expect", "3"]);
    assert!(said.contains('2') && said.contains('3') && to.ok(&["count"], "") == "400\n", "{said}");
    assert_eq!(to.ok(&["delete", "--filter", few, "--expect", "2"], ""), "2 deleted\n");
    assert!(refused(&["show", "g1"]).contains("`g1`"));
    assert_eq!(refused(&["show", ".."]), "granary: nothing is called `..`\n");
    let said = refused(&["delete", "--filter", "{}"]);
    assert!(said.contains("`filter` has no condition"), "{said}");
    assert_eq!(to.ok(&["delete", "--filter", filter], ""), "398 deleted\n");
    drop(send(client().get(format!("{}/health/live", to.url))).await);
}

#[tokio::test]
async fn so_many_imports_run_at_once_and_no_more() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let begin = || {
        let lines = stream::pending::<Result<Vec<u8>, std::io::Error>>();
        app.request(Method::POST, "/grains/import").header("content-type", NDJSON).body(Body::wrap_stream(lines))
    };
    let mut running = Vec::new();
    for _ in 0..4 {
        let answer = begin().send().await.expect("an answer begins");
        assert_eq!(answer.status(), 200);
        running.push(answer);
    }
    let refused = app.request(Method::POST, "/grains/import").header("content-type", NDJSON).body("{}");
    let refused = send(refused).await;
    assert_eq!(refused.header("retry-after"), "10");
    let (status, code, sentence) = refused.problem();
    assert_eq!((status, code.as_str()), (429, "overloaded"));
    assert!(sentence.contains("4 imports are running"), "{sentence}");
    drop(running);
    let line = json!({"id": "a", "text": "hello"}).to_string();
    let again = || app.request(Method::POST, "/grains/import").header("content-type", NDJSON).body(line.clone());
    let is_taken = |answer: &Answer| answer.status != 429;
    let answer = until_seen("there is room for one more", async || send(again()).await, is_taken).await;
    Imported::of(&answer).assert_whole([1, 1, 0, 0, 0, 0]);
    app.stop().await;
}

/// Who does not read keeps an answer where it is, and no connection to the database.
#[tokio::test]
async fn exports_that_nobody_reads_leave_the_database_to_others() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    // Pages of these are short, so that they come to stand still at the beginning of one.
    let attributes = json!({"a": vec![0; 15_000]});
    for _ in 0..12 {
        let grains: Vec<Value> = (0..50).map(|_| json!({"text": "zq", "attributes": attributes})).collect();
        app.post("/grains", json!({"grains": grains})).await.ok();
    }
    let mut unread = Vec::new();
    for _ in 0..12 {
        let answer = app.request(Method::POST, "/grains/export").send().await.expect("an answer begins");
        assert_eq!(answer.status(), 200);
        unread.push(answer);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    for _ in 0..5 {
        app.get("/grains?limit=1").await.ok();
    }
    app.post("/grains", json!({"text": "hello"})).await.ok();
    drop(unread);
    app.stop().await;
}
