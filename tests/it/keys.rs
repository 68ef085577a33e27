//! API keys: who is let in, to what, how often, and where keys never show.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use granary::api::access::{Need, listed};
use granary::domain::Scope;
use reqwest::header::{AUTHORIZATION, HOST, ORIGIN};
use reqwest::{Body, Method};
use serde_json::{Value, json};

use crate::helpers::{
    Answer, Caller, Process, TINY, TestApp, entry_of, folder_with, key_entry, secret, send, until_seen, with_keys,
    with_tiny,
};
use crate::openapi::{Operation, assert_error};

/// A server with one key for each scope, of the scope's name, and one for all but it: `not-embed`, say.
async fn app_with_all_scopes() -> TestApp {
    let words = ["embed", "read", "write", "admin"];
    let alone = words.map(|word| key_entry(word, &[word], ""));
    let others = ["embed", "read", "write"].map(|word| {
        let others: Vec<&str> = words.into_iter().filter(|other| ![word, "admin"].contains(other)).collect();
        key_entry(&format!("not-{word}"), &others, "")
    });
    let not_admin = key_entry("not-admin", &["embed", "read", "write"], "");
    let keys = [&alone[..], &others[..], &[not_admin]].concat();
    TestApp::start_with(&format!("{}{}", with_keys(&keys), with_tiny(&[]))).await
}

/// An operation as a caller asks for it who does not get as far as its body.
async fn ask(caller: &Caller, operation: &Operation) -> Answer {
    send(caller.request(operation.method.clone(), &operation.path_of(TINY))).await
}

fn need(operation: &Operation) -> Need {
    listed(&operation.method, &operation.pattern())
        .unwrap_or_else(|| panic!("{} {} is not in the table of api/access.rs", operation.method, operation.path))
}

fn assert_unauthorized(answer: &Answer, operation: &Operation) {
    let name = format!("{} {}: {}", operation.method, operation.path, answer.text);
    assert_eq!((answer.status.as_u16(), answer.header("www-authenticate")), (401, "Bearer"), "{name}");
    assert_error(answer, operation.family());
    assert!(answer.text.contains("nauthorized"), "{name}");
}

#[test]
fn every_operation_is_in_the_table_of_scopes() {
    for operation in Operation::all() {
        need(&operation);
    }
}

#[tokio::test]
async fn every_route_refuses_who_has_no_key_and_whom_it_does_not_know() {
    let app = app_with_all_scopes().await;
    for operation in Operation::all() {
        let request = || app.request(operation.method.clone(), &operation.path_of(TINY));
        if need(&operation) == Need::Unless(granary::config::OpenRoutes::Health) {
            assert_eq!(send(request()).await.status, 200, "{}", operation.path);
            continue;
        }
        let known = secret("admin");
        for refused in [
            request(),
            request().bearer_auth("grn_somebody-elses-key-0123456789"),
            request().bearer_auth(""),
            request().bearer_auth(&known[1..]),
            request().bearer_auth(format!("{known}x")),
            request().bearer_auth(known.to_uppercase()),
            request().header("x-api-key", "admin"),
            request().header("x-api-key", granary::domain::KeyHash::of(&known).to_string()),
            request().basic_auth("admin", Some(&known)),
            request().bearer_auth(&known).header(AUTHORIZATION, "Bearer other"),
            app.request(
                operation.method.clone(),
                &format!("{}?api_key={known}&x-api-key={known}", operation.path_of(TINY)),
            ),
            request().header("cookie", format!("x-api-key={known}")),
        ] {
            assert_unauthorized(&send(refused).await, &operation);
        }
    }
    for path in
        ["/openapi.json", "/docs", "/docs/", "/docs/index.html", "/nothing", "/models/tiny/nothing", "/grains/a/b"]
    {
        let (status, code, _) = app.get(path).await.problem();
        assert_eq!((status, code.as_str()), (401, "unauthorized"), "{path}");
    }
    app.stop().await;
}

#[tokio::test]
async fn every_route_refuses_keys_without_its_scope_and_takes_those_with_it() {
    let app = app_with_all_scopes().await;
    for operation in Operation::all() {
        let scope = match need(&operation) {
            Need::Scope(scope) => scope,
            Need::Unless(granary::config::OpenRoutes::Health) => continue,
            Need::Unless(_) => Scope::Read,
        };
        let name = format!("{} {}", operation.method, operation.path);
        let refused = ask(&app.with_key(&secret(&format!("not-{scope}"))), &operation).await;
        assert_eq!(refused.status, 403, "{name}: {}", refused.text);
        assert_error(&refused, operation.family());
        assert!(refused.text.contains("orbidden") && refused.text.contains(&format!("`{scope}`")), "{}", refused.text);

        for key in [scope, Scope::Admin] {
            let taken = ask(&app.with_key(&secret(key.as_str())), &operation).await;
            assert!(![401, 403].contains(&taken.status.as_u16()), "{name}: {} {}", taken.status, taken.text);
        }
    }
    // The document does not have this one.
    for (key, status) in [("embed", 200), ("not-embed", 403)] {
        let answer = app.with_key(&secret(key)).post("/models/tiny/", json!({"inputs": "a"})).await;
        assert_eq!(answer.status, status, "{key}: {}", answer.text);
    }
    let embeds = app.with_key(&secret("embed"));
    assert_eq!(embeds.get("/nothing").await.problem().0, 404, "any key learns that there is nothing");
    assert_eq!(embeds.get("/docs").await.problem().0, 403);
    assert_eq!(app.with_key(&secret("read")).get("/docs").await.status, 200);
    app.stop().await;
}

#[tokio::test]
async fn a_wrong_method_is_told_to_every_key_and_to_nobody_without_one() {
    let app = app_with_all_scopes().await;
    let all = Operation::all();
    let paths: BTreeMap<_, _> = all.iter().map(|operation| (operation.path_of(TINY), operation.pattern())).collect();
    for (path, pattern) in &paths {
        let methods = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::TRACE];
        for method in methods.into_iter().filter(|method| listed(method, pattern).is_none()) {
            let name = format!("{method} {path}");
            for key in ["embed", "not-embed", "admin"] {
                let refused = send(app.with_key(&secret(key)).request(method.clone(), path)).await;
                assert_eq!(refused.status, 405, "{name} with `{key}`: {}", refused.text);
                assert_ne!(refused.header("allow"), "", "{name}");
            }
            let without = app.request(method.clone(), path);
            let unknown = app.request(method, path).bearer_auth("grn_nobodys-key-0123456789");
            for request in [without, unknown] {
                let refused = send(request).await;
                assert_eq!(refused.status, 401, "{name}: {}", refused.text);
            }
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn what_is_refused_is_not_done() {
    let app = app_with_all_scopes().await;
    let admin = app.with_key(&secret("admin"));
    admin.post("/grains", json!({"id": "kept", "text": "kept"})).await.ok();
    for caller in [app.with_key(&secret("not-write")), app.with_key("grn_nobodys-key-0123456789")] {
        caller.delete("/grains/kept").await.problem();
        caller.post("/grains", json!({"id": "new", "text": "new"})).await.problem();
        caller.post("/grains/delete", json!({"filter": {}})).await.problem();
    }
    assert_eq!(admin.post("/grains/count", json!({})).await.ok()["count"], 1);
    assert_eq!(admin.get("/grains/new").await.problem().0, 404);
    app.stop().await;
}

#[tokio::test]
async fn a_key_is_taken_from_every_place_where_clients_put_it() {
    let app = app_with_all_scopes().await;
    let key = secret("embed");
    let embed = || app.request(Method::POST, "/embed").json(&json!({"inputs": "a"}));
    for request in [
        embed().bearer_auth(&key),
        embed().header(AUTHORIZATION, format!("bearer  {key}")),
        embed().header(AUTHORIZATION, &key),
        embed().header("x-api-key", &key),
        embed().header("x-api-key", &key).basic_auth("proxy", Some("password")),
    ] {
        send(request).await.ok();
    }
    // A server with keys may have any name, and a page must have one too.
    let foreign = embed().bearer_auth(&key).header(HOST, "granary.example.org").header(ORIGIN, "http://page.example");
    send(foreign).await.ok();
    assert_eq!(send(embed().header(HOST, "granary.example.org")).await.tei_error().0, 401);
    app.stop().await;
}

#[tokio::test]
async fn a_server_without_keys_ignores_what_is_sent_as_one() {
    let disabled = format!("{}disabled = true\n", with_keys(&[key_entry("a", &["read"], "")]));
    for toml in ["", &disabled] {
        let app = TestApp::start_with(&format!("{toml}{}", with_tiny(&[]))).await;
        let embed = || app.request(Method::POST, "/embed").json(&json!({"inputs": "a"}));
        for request in [
            embed(),
            embed().bearer_auth(""),
            embed().bearer_auth("unused"),
            embed().basic_auth("a", Some("b")),
            embed().header("x-api-key", "x").header("x-api-key", "y"),
        ] {
            send(request).await.ok();
        }
        assert_eq!(send(embed().header(HOST, "evil.example")).await.tei_error().0, 421);
        app.stop().await;
    }
}

#[tokio::test]
async fn the_configuration_says_what_is_open() {
    let keys = with_keys(&[key_entry("reader", &["read"], ""), key_entry("embedder", &["embed"], "")]);
    let app = TestApp::start_with(&format!("{keys}open = [\"metrics\", \"docs\"]\n{}", with_tiny(&[]))).await;
    for path in ["/metrics", "/openapi.json", "/docs"] {
        assert_eq!(app.get(path).await.status, 200, "{path}");
    }
    for path in ["/health", "/", "/ping", "/health/live", "/health/ready", "/models/tiny/health", "/models"] {
        assert_eq!(app.get(path).await.status, 401, "{path}");
        assert_eq!(app.with_key(&secret("embedder")).get(path).await.status, 403, "{path}");
        assert_eq!(app.with_key(&secret("reader")).get(path).await.status, 200, "{path}");
    }
    app.stop().await;
}

#[tokio::test]
async fn no_cache_on_the_way_keeps_an_answer_for_who_has_no_key() {
    let keys = with_keys(&[key_entry("reader", &["read"], "")]);
    let app = TestApp::start_with(&format!("{keys}{}", with_tiny(&[]))).await;
    for path in ["/models", "/models/tiny/events", "/grains", "/health/ready", "/openapi.json", "/docs/"] {
        let answer = send(app.request(Method::GET, path).header("x-api-key", secret("reader"))).await;
        // A stream of events may be kept, but not given to anybody unasked.
        let expected = if path.ends_with("/events") { "no-cache" } else { "no-store" };
        assert_eq!(answer.header("cache-control"), expected, "{path}: {}", answer.status);
    }
    assert_eq!(app.get("/models").await.header("cache-control"), "no-store", "a refusal");
    app.stop().await;
}

#[tokio::test]
async fn who_asks_for_health_without_a_key_learns_no_reasons_and_no_models() {
    let keys = with_keys(&[key_entry("embedder", &["embed"], "rate = 1")]);
    // The active model's folder is missing.
    let models = with_tiny(&["tiny-cls"]).replacen("path = \"", "path = \"/no/such", 1);
    let app = TestApp::start_with(&format!("{keys}{models}")).await;
    until(&app, "/health/ready", 503).await;
    let knows = app.with_key(&secret("embedder"));
    let by_header = app.request(Method::GET, "/health").header("x-api-key", secret("embedder"));
    assert!(send(by_header).await.text.contains("/no/such"));
    let kind = |answer: &Answer| {
        let body = answer.json();
        (answer.status.as_u16(), body["code"].clone(), body["error_type"].clone())
    };
    for path in ["/health/ready", "/health", "/", "/ping", "/models/tiny/health"] {
        let full = knows.get(path).await;
        assert!(full.text.contains("`tiny` cannot be loaded: ") && full.text.contains("/no/such"), "{}", full.text);
        let refused = [app.get(path).await, app.with_key(&secret("nobody")).get(path).await];
        let basic = send(app.request(Method::GET, path).basic_auth("probe", Some("password"))).await;
        for answer in refused.into_iter().chain([basic]) {
            assert_eq!((kind(&answer), answer.status.as_u16()), (kind(&full), 503), "{path}");
            let text = &answer.text;
            assert!(text.contains("`tiny` cannot be loaded; the reason is in the server's log"), "{text}");
            assert!(!text.contains("/no/such"), "{text}");
        }
    }
    assert_eq!(app.get("/models/tiny-cls/health").await.status, 200);
    let full = knows.get("/models/other/health").await;
    assert!(full.text.contains("`tiny-cls`"), "{}", full.text);
    let short = app.get("/models/other/health").await;
    assert_eq!((kind(&short), short.status.as_u16()), (kind(&full), 404));
    assert!(short.text.contains("no model is called `other`") && !short.text.contains("tiny"), "{}", short.text);
    app.stop().await;
}

#[tokio::test]
async fn a_key_brings_its_model() {
    let keys = [key_entry("plain", &["admin"], ""), key_entry("other", &["admin"], "model = \"tiny-cls\"")];
    let app = TestApp::start_with(&format!("{}{}", with_keys(&keys), with_tiny(&["tiny-cls"]))).await;
    for (name, model) in [("plain", "tiny"), ("other", "tiny-cls")] {
        let caller = app.with_key(&secret(name));
        for (path, body) in [
            ("/embed", json!({"inputs": "a"})),
            ("/", json!({"inputs": "a"})),
            ("/embed", json!({"inputs": "a", "model": null})),
            ("/similarity", json!({"inputs": {"source_sentence": "a", "sentences": ["b"]}})),
            ("/v1/embeddings", json!({"input": "a"})),
        ] {
            let answer = caller.post(path, body).await;
            answer.ok();
            assert_eq!(answer.header("x-model"), model, "{path}");
        }
        let named = caller.post("/embed", json!({"inputs": "a", "model": "tiny"})).await;
        assert_eq!(named.header("x-model"), "tiny", "the model of the request counts first");
        let in_path = caller.post("/models/tiny/embed", json!({"inputs": "a"})).await;
        assert_eq!(in_path.header("x-model"), "tiny");
        assert_eq!(caller.get("/info").await.ok()["served_model_name"], model);
        let written = caller.post("/grains", json!({"text": "a"})).await.ok();
        assert_eq!(written["meta"]["embedding_model"], model);
        let put = caller.put(&format!("/grains/{name}"), json!({"text": "a"})).await.ok();
        assert_eq!(put["meta"]["embedding_model"], model);
        let path = format!("/grains/patched-by-{name}");
        caller.put(&path, json!({"text": "a", "model": "tiny"})).await.ok();
        let patched = caller.patch(&path, json!({"source": "s"})).await.ok();
        assert_eq!(patched["meta"]["embedding_model"], "tiny", "only another text is embedded unasked");
        let version = &patched["version"];
        let again = json!({"text": "a", "source": "s"});
        for same in [caller.put(&path, again.clone()).await.ok(), caller.patch(&path, again).await.ok()] {
            assert_eq!((&same["meta"]["embedding_model"], &same["version"]), (&json!("tiny"), version), "{same}");
        }
        let patched = caller.patch(&path, json!({"text": "b"})).await.ok();
        assert_eq!(patched["meta"]["embedding_model"], model);
        let patched = caller.patch(&path, json!({"text": "c", "model": "tiny"})).await.ok();
        assert_eq!(patched["meta"]["embedding_model"], "tiny");
        let supplied = json!({"text": "b", "vector": vec![1.0; 32], "space": written["meta"]["space"]});
        caller.post("/grains", supplied).await.ok();
    }
    // Whoever switches learns who used the model before, by the names of their keys.
    let switch = app.with_key(&secret("plain")).put("/models/active", json!({"name": "tiny-cls"})).await.ok();
    let callers: Vec<_> =
        switch["recent_callers"].as_array().expect("callers").iter().map(|seen| &seen["caller"]).collect();
    assert!(callers.contains(&&json!("plain")) && callers.contains(&&json!("other")), "{switch}");
    app.stop().await;
}

#[tokio::test]
async fn a_key_that_is_used_too_often_is_told_when_to_come_back() {
    let keys: Vec<String> = ["native", "tei", "openai"].map(|name| key_entry(name, &["admin"], "rate = 1")).into();
    let keys = [keys, vec![key_entry("free", &["admin"], "")]].concat();
    let app = TestApp::start_with(&format!("{}{}", with_keys(&keys), with_tiny(&[]))).await;
    for (name, path) in [("native", "/models"), ("tei", "/info"), ("openai", "/v1/models")] {
        let limited = app.with_key(&secret(name));
        limited.get(path).await.ok();
        let refused = limited.get(path).await;
        let (status, code, sentence) = match name {
            "native" => refused.problem(),
            "tei" => refused.tei_error(),
            _ => refused.openai_error(),
        };
        assert_eq!((status, code.to_lowercase().as_str()), (429, "overloaded"), "{sentence}");
        assert!(sentence.contains(&format!("`{name}` allows 1 requests a minute")), "{sentence}");
        let seconds: u64 = refused.header("retry-after").parse().expect("seconds");
        assert!((1..=60).contains(&seconds), "{seconds}");
        app.with_key(&secret("free")).get(path).await.ok();
        assert_eq!(limited.get("/health/ready").await.status, 200, "what is open does not count");
    }
    app.stop().await;
}

#[tokio::test]
async fn tokens_that_a_key_has_used_up_are_owed() {
    let keys = ["embeds", "writes", "imports", "searches"].map(|name| key_entry(name, &["admin"], "tokens = 30"));
    let app = TestApp::start_with(&format!("{}{}", with_keys(&keys), with_tiny(&[]))).await;
    let text = "a text of some words and then some more of them, so that it has over thirty tokens, for which a key of \
                thirty tokens a minute has to wait";
    let line = json!({"id": "imported", "text": text}).to_string();
    for name in ["embeds", "writes", "imports", "searches"] {
        let caller = app.with_key(&secret(name));
        // A text that is looked at and not embedded costs nothing.
        caller.post("/tokenize", json!({"inputs": text})).await.ok();
        match name {
            "embeds" => drop(caller.post("/embed", json!({"inputs": text})).await.ok()),
            "writes" => drop(caller.post("/grains", json!({"text": text})).await.ok()),
            "searches" => drop(caller.post("/grains/search", json!({"query": text})).await.ok()),
            _ => {
                let import = caller.request(reqwest::Method::POST, "/grains/import");
                let import = import.header("content-type", "application/x-ndjson").body(line.clone());
                assert!(send(import).await.text.contains("\"created\":1"), "it is imported");
            }
        }
        let refused = caller.get("/models").await;
        let (status, code, sentence) = refused.problem();
        assert_eq!((status, code.as_str()), (429, "overloaded"), "{name}: {sentence}");
        assert!(sentence.contains(&format!("`{name}` allows 30 tokens a minute (its `tokens`)")), "{sentence}");
        let seconds: u64 = refused.header("retry-after").parse().expect("seconds");
        assert!((1..=120).contains(&seconds), "{seconds}");
    }
    app.stop().await;
}

#[tokio::test]
async fn what_is_refused_takes_no_tokens_of_a_key() {
    let keys = with_keys(&[key_entry("embeds", &["embed"], "tokens = 30")]);
    let app = TestApp::start_with(&format!("[engine]\nmax_request_tokens = 20\n{keys}{}", with_tiny(&[]))).await;
    let caller = app.with_key(&secret("embeds"));
    // More tokens than the key has for a minute.
    let many = json!({"inputs": vec!["a text of some words"; 20]});
    for _ in 0..3 {
        let (status, kind, message) = caller.post("/embed", many.clone()).await.tei_error();
        assert_eq!((status, kind.as_str()), (422, "Validation"), "{message}");
    }
    caller.post("/embed", json!({"inputs": "hello"})).await.ok();
    app.stop().await;
}

#[tokio::test]
async fn who_may_write_may_not_declare_spaces_by_an_import() {
    let keys = [("writes", "write"), ("declares", "admin")].map(|(name, scope)| key_entry(name, &[scope], ""));
    let app = TestApp::start_with(&format!("{}{}", with_keys(&keys), with_tiny(&[]))).await;
    let admin = app.with_key(&secret("declares"));
    let declared = admin.post("/spaces", json!({"name": "known", "dimensions": 2})).await.ok();
    let line = |space: &Value, id: &str| {
        let manifest = json!({"space": {"fingerprint": space["fingerprint"], "manifest": space["manifest"]}});
        let grain = json!({"id": id, "text": "hello", "vector": [1.0, 0.0], "space": space["id"]});
        format!("{manifest}\n{grain}")
    };
    let import = async |name: &str, lines: String| {
        let request = app.with_key(&secret(name)).request(reqwest::Method::POST, "/grains/import");
        send(request.header("content-type", "application/x-ndjson").body(lines)).await.text
    };
    let known = import("writes", line(&declared, "a")).await;
    assert!(known.contains("\"created\":1"), "{known}");
    let manifest = json!({"declared": "new", "dimensions": 2});
    let fingerprint = granary::domain::Fingerprint::of_canonical(&manifest.to_string());
    let new = json!({"fingerprint": fingerprint.as_str(), "manifest": manifest, "id": fingerprint.space().to_string()});
    let refused = import("writes", line(&new, "b")).await;
    assert!(refused.contains("the space `new` is not declared here") && refused.contains("\"created\":0"), "{refused}");
    let taken = import("declares", line(&new, "b")).await;
    assert!(taken.contains("\"created\":1"), "{taken}");
    app.stop().await;
}

#[tokio::test]
async fn two_callers_may_choose_the_same_idempotency_key() {
    let keys = ["one", "other"].map(|name| key_entry(name, &["write"], ""));
    let app = TestApp::start_with(&format!("{}{}", with_keys(&keys), with_tiny(&[]))).await;
    let write = async |name: &str| {
        let request = app.with_key(&secret(name)).request(Method::POST, "/grains").header("idempotency-key", "load-1");
        send(request.json(&json!({"text": "a"}))).await.ok()["id"].clone()
    };
    let first = write("one").await;
    assert_eq!(write("one").await, first);
    assert_ne!(write("other").await, first);
    app.stop().await;
}

/// Runs `granary keys …` in a folder.
fn keys(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_granary"));
    command.current_dir(folder).arg("keys").args(arguments).env_clear().output().expect("it runs")
}

/// The same, which must succeed; and what it prints to standard output.
fn said(folder: &Path, arguments: &[&str]) -> String {
    let output = keys(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Asks until the answer has this status.
async fn until(caller: &Caller, path: &str, status: u16) {
    let what = format!("{path} is answered {status}");
    until_seen(&what, async || caller.get(path).await, |answer: &Answer| answer.status == status).await;
}

#[test]
fn a_key_that_nobody_sees_is_not_kept() {
    let folder = folder_with("[auth]\nkeys_file = \"keys.toml\"");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_granary"));
    command.current_dir(folder.path()).args(["keys", "add", "ops", "--scope", "admin"]).env_clear().stdout(writer);
    let output = command.output().expect("it runs");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("granary: the key cannot be printed, so `ops` is removed again: "), "{stderr}");
    let list = said(folder.path(), &["list"]);
    assert!(!list.contains("ops"), "{list}");
}

#[test]
fn who_cannot_leave_the_file_to_its_owner_does_not_change_it() {
    let folder = folder_with("[auth]\nkeys_file = \"keys.toml\"");
    said(folder.path(), &["add", "ops", "--scope", "admin"]);
    let file = folder.path().join("keys.toml");
    let names = || fs_err::read_dir(folder.path()).expect("a folder").count();
    let before = (fs_err::read_to_string(&file).expect("a file"), names());
    if std::os::unix::fs::chown(&file, Some(7), Some(7)).is_err() {
        println!("skipped: only root can give files to other users");
        return;
    }
    // Root gives up that it may do so.
    let mut command = Command::new("/usr/bin/setpriv");
    command.args(["--bounding-set=-chown", env!("CARGO_BIN_EXE_granary"), "keys", "remove", "ops"]);
    let refused = command.current_dir(folder.path()).env_clear().output().expect("it runs");
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("belongs to the user 7") && stderr.contains("`sudo -u '#7' …`"), "{stderr}");
    assert_eq!((fs_err::read_to_string(&file).expect("a file"), names()), before, "nothing is changed or left behind");
    said(folder.path(), &["remove", "ops"]);
    assert_eq!(fs_err::metadata(&file).expect("a file").uid(), 7);
}

#[test]
fn who_cannot_leave_the_file_to_its_group_changes_it_where_others_read_it_anyway() {
    let folder = folder_with("[auth]\nkeys_file = \"keys.toml\"");
    said(folder.path(), &["add", "ops", "--scope", "admin"]);
    let file = folder.path().join("keys.toml");
    if std::os::unix::fs::chown(&file, None, Some(4242)).is_err() {
        println!("skipped: only root can give files to groups it is not in");
        return;
    }
    // Root gives up that it may do so.
    let remove = || {
        let mut command = Command::new("/usr/bin/setpriv");
        command.args(["--bounding-set=-chown", env!("CARGO_BIN_EXE_granary"), "keys", "remove", "ops"]);
        command.current_dir(folder.path()).env_clear().output().expect("it runs")
    };
    fs_err::set_permissions(&file, PermissionsExt::from_mode(0o640)).expect("shown to the group");
    let before = fs_err::read_to_string(&file).expect("a file");
    let refused = remove();
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success(), "{stderr}");
    assert!(stderr.contains("the group 4242 may read them") && stderr.contains("with `chmod g-r`"), "{stderr}");
    assert_eq!(fs_err::read_to_string(&file).expect("a file"), before, "nothing is changed");

    fs_err::set_permissions(&file, PermissionsExt::from_mode(0o644)).expect("shown to all");
    let done = remove();
    assert!(done.status.success(), "{done:?}");
    assert_eq!(fs_err::metadata(&file).expect("a file").mode() & 0o777, 0o644);
}

#[tokio::test]
async fn keys_come_and_go_while_the_server_runs() {
    let folder = folder_with(&format!("[auth]\nkeys_file = \"keys.toml\"\n{}", with_tiny(&[])));
    let (mut process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url);
    app.get("/models").await.ok();
    process.wait_for("there is no file where `auth.keys_file` says that the keys are");

    let ops = said(folder.path(), &["add", "ops", "--scope", "admin"]);
    let ops = app.with_key(ops.trim_end());
    until(&app, "/models", 401).await;
    ops.get("/models").await.ok();
    let file = folder.path().join("keys.toml");
    let mode = || fs_err::metadata(&file).expect("a file").permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);

    let reader = said(folder.path(), &["add", "reader", "--scope", "read,embed", "--rate", "1000000"]);
    assert!(reader.starts_with("grn_") && reader.trim_end().len() == 47, "{reader}");
    let reader = app.with_key(reader.trim_end());
    until(&reader, "/models", 200).await;
    let list = said(folder.path(), &["list"]);
    assert!(list.contains("reader  embed,read  -      1000000/min  -       file"), "{list}");
    said(folder.path(), &["remove", "reader"]);
    until(&reader, "/models", 401).await;
    ops.get("/models").await.ok();

    // What is not understood changes nothing, and nobody edits it.
    let good = fs_err::read_to_string(&file).expect("the file");
    assert!(!good.contains("grn_"), "{good}");
    fs_err::write(&file, format!("{good}\n[[keys")).expect("written");
    let log = process.wait_for("the keys stay as they were");
    assert!(log.contains("`keys.toml` is not understood from line"), "{log}");
    ops.get("/models").await.ok();
    let refused = keys(folder.path(), &["add", "more", "--scope", "read"]);
    assert!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("not understood"),
        "{refused:?}"
    );
    fs_err::write(&file, good).expect("written");

    // Who takes the last key away does not open the server, nor the next start.
    said(folder.path(), &["remove", "ops"]);
    until(&ops, "/models", 401).await;
    app.get("/models").await.problem();
    process.wait_for("there is no key, and the server stays closed: make one with `granary keys add`");
    assert_eq!(process.log().matches("the keys stay as they were").count(), 1, "a bad file is told of once");
    process.stop();
    let (process, url) = Process::serve(folder.path(), &[]);
    assert_eq!(Caller::of(url).get("/models").await.status, 401);
    process.stop();
    fs_err::remove_file(&file).expect("deleted");
    let (process, url) = Process::serve(folder.path(), &[]);
    Caller::of(url).get("/models").await.ok();
    process.stop();
}

#[tokio::test]
async fn a_first_file_that_is_not_understood_is_to_be_mended() {
    let folder = folder_with(&format!("[auth]\nkeys_file = \"keys.toml\"\n{}", with_tiny(&[])));
    let (mut process, url) = Process::serve(folder.path(), &[]);
    fs_err::write(folder.path().join("keys.toml"), "[[keys").expect("written");
    process.wait_for("there is no key, and the server stays closed: mend `keys.toml`, or delete");
    assert_eq!(Caller::of(url).get("/models").await.status, 401);
    process.stop();
}

#[tokio::test]
async fn an_import_ends_when_its_key_is_taken_away() {
    let folder = folder_with(&format!("[auth]\nkeys_file = \"keys.toml\"\n{}", with_tiny(&[])));
    let ops = said(folder.path(), &["add", "ops", "--scope", "admin"]);
    let writer = said(folder.path(), &["add", "writer", "--scope", "read,write"]);
    let (process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url);
    let (ops, writer) = (app.with_key(ops.trim_end()), app.with_key(writer.trim_end()));
    let (sender, receiver) = futures::channel::mpsc::unbounded::<Result<String, std::io::Error>>();
    let request = writer.request(Method::POST, "/grains/import").header("content-type", "application/x-ndjson");
    let answer = send(request.body(Body::wrap_stream(receiver)));
    let line = |id: &str| Ok(format!("{}\n", json!({"id": id, "text": "wheat"})));
    let taken_away = async {
        sender.unbounded_send(line("before")).expect("sent");
        until(&ops, "/grains/before", 200).await;
        said(folder.path(), &["remove", "writer"]);
        until(&writer, "/grains", 401).await;
        sender.unbounded_send(line("after")).expect("sent");
        drop(sender);
    };
    let (answer, ()) = futures::join!(answer, taken_away);
    assert!(answer.text.contains("\"unauthorized\"") && answer.text.contains("\"complete\":false"), "{}", answer.text);
    assert_eq!(ops.get("/grains/after").await.status, 404);
    process.stop();
}

#[test]
fn the_command_line_refuses_what_makes_no_key() {
    let configured = with_keys(&[key_entry("ops", &["admin"], "")]);
    let folder = folder_with(&format!("{configured}keys_file = \"keys.toml\"\n"));
    for (arguments, says) in [
        (&["add", "a b", "--scope", "read"][..], "the name of a key takes"),
        (&["add", "a", "--scope", "all"], "a scope is `embed`, `read`, `write` or `admin`"),
        (&["add", "a"], "--scope"),
        (&["add", "a", "--scope", "read", "--rate", "0"], "--rate"),
        (&["add", "ops", "--scope", "read"], "`ops` is a key of the configuration (granary.toml)"),
        (&["remove", "ops"], "`ops` is a key of the configuration (granary.toml), and the file has none of this name"),
        (&["remove", "a"], "no key in `keys.toml` is named `a`"),
    ] {
        let refused = keys(folder.path(), arguments);
        let stderr = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && stderr.contains(says), "{arguments:?}: {stderr}");
        assert_eq!(refused.stdout, b"");
    }
    said(folder.path(), &["add", "a", "--scope", "read"]);
    let again = keys(folder.path(), &["add", "a", "--scope", "write"]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("there is a key named `a` already"), "{again:?}");
    assert!(said(folder.path(), &["list"]).contains("ops   admin"));
}

#[tokio::test]
async fn a_key_of_the_file_that_is_left_out_is_told_of_once_a_start() {
    let folder = folder_with("[auth]\nkeys_file = \"keys.toml\"\n");
    said(folder.path(), &["add", "a", "--scope", "read"]);
    let configured = format!("{}keys_file = \"keys.toml\"\n", with_keys(&[key_entry("a", &["admin"], "")]));
    fs_err::write(folder.path().join("granary.toml"), format!("{configured}{}", with_tiny(&[]))).expect("written");
    let log = Process::serve(folder.path(), &[]).0.stop();
    assert_eq!(log.matches("the one of the file is left out").count(), 1, "{log}");
}

#[tokio::test]
async fn a_key_whose_model_there_is_not_is_told_of_at_the_start() {
    let keys = ["tiny", "nope"].map(|model| key_entry(model, &["embed"], &format!("model = \"{model}\"")));
    let folder = folder_with(&format!("{}{}", with_keys(&keys), with_tiny(&[])));
    let log = Process::serve(folder.path(), &[]).0.stop();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("a key has a model that there is not")).collect();
    assert!(told.len() == 1 && told[0].contains("key=nope") && told[0].contains("model=nope"), "{log}");
}

#[test]
fn a_key_of_the_file_is_removed_from_behind_one_of_the_configuration_that_has_its_name() {
    let folder = folder_with("[auth]\nkeys_file = \"keys.toml\"\n");
    said(folder.path(), &["add", "a", "--scope", "read"]);
    let configured = format!("{}keys_file = \"keys.toml\"\n", with_keys(&[key_entry("a", &["admin"], "")]));
    fs_err::write(folder.path().join("granary.toml"), configured).expect("written");
    let removed = said(folder.path(), &["remove", "a"]);
    assert_eq!(removed, "`a` is removed from `keys.toml`; that of the configuration (granary.toml) stays\n");
    let listed = said(folder.path(), &["list"]);
    assert!(listed.contains("configuration") && !listed.contains("file"), "{listed}");
}

#[tokio::test]
async fn a_key_that_somebody_chose_is_configured_by_its_hash() {
    let folder = folder_with("");
    let hash = |key: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_granary"));
        command.current_dir(folder.path()).args(["keys", "hash"]).env_clear();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it runs");
        child.stdin.take().expect("a pipe").write_all(key.as_bytes()).expect("written");
        child.wait_with_output().expect("it ends")
    };
    let hashed = hash("chosen-by-somebody\n");
    let hashed = String::from_utf8(hashed.stdout).expect("UTF-8");
    let keys = format!("[auth]\nkeys = [{{ name = \"a\", hash = \"{}\", scopes = [\"read\"] }}]\n", hashed.trim_end());
    let app = TestApp::start_with(&format!("{keys}{}", with_tiny(&[]))).await;
    app.with_key("chosen-by-somebody").get("/models").await.ok();
    assert_eq!(app.with_key("chosen-by-somebodY").get("/models").await.problem().0, 401);
    app.stop().await;

    for (key, says) in [("secret", "has 6 characters"), ("chosen by somebody", "that no header carries"), ("", "has 0")]
    {
        let refused = hash(key);
        let stderr = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && stderr.contains(says), "{stderr}");
        assert!(key.is_empty() || !stderr.contains(key), "{stderr}");
    }
}

#[tokio::test]
async fn the_client_verbs_send_the_key_of_a_file() {
    let folder = folder_with(&format!("{}{}", with_keys(&[key_entry("ops", &["admin"], "")]), with_tiny(&[])));
    let (process, url) = Process::serve(folder.path(), &[]);
    let run_with = |variables: &[(&str, &str)], arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_granary"));
        command.current_dir(folder.path()).args(arguments).args(["--url", &url]).env_clear();
        command.envs(variables.iter().copied()).output().expect("it runs")
    };
    let run = |arguments: &[&str]| run_with(&[], arguments);
    fs_err::write(folder.path().join("good"), format!("{}\n", secret("ops"))).expect("written");
    fs_err::write(folder.path().join("wrong"), secret("nobody")).expect("written");
    fs_err::write(folder.path().join("empty"), "\n").expect("written");
    let listed = run(&["models", "list", "--api-key-file", "good"]);
    assert!(String::from_utf8_lossy(&listed.stdout).contains("tiny*"), "{listed:?}");
    assert!(run(&["grains", "count", "--api-key-file", "good"]).status.success());
    for (file, arguments, is_taken) in [
        ("good", &["models", "list"][..], true),
        ("wrong", &["models", "list"], false),
        ("wrong", &["models", "list", "--api-key-file", "good"], true),
    ] {
        let output = run_with(&[("GRANARY_API_KEY_FILE", file)], arguments);
        assert_eq!(output.status.success(), is_taken, "{file}: {output:?}");
    }
    for (arguments, says) in [
        (&["models", "list"][..], "this server needs a key"),
        (&["embed", "wheat"], "this server needs a key"),
        (&["models", "list", "--api-key-file", "wrong"], "does not know the key"),
        (&["models", "list", "--api-key-file", "empty"], "`empty` begins with no key"),
        (&["models", "list", "--api-key-file", "missing"], "the key in `missing` cannot be read"),
    ] {
        let refused = run(arguments);
        let stderr = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && stderr.contains(says), "{arguments:?}: {stderr}");
        assert!(!stderr.contains(&secret("nobody")), "{stderr}");
    }
    process.stop();
}

#[tokio::test]
async fn keys_are_in_no_log_and_in_no_answer() {
    for format in ["text", "json"] {
        let toml = format!(
            "[telemetry]\nlog_filter = \"trace,ort=info\"\nlog_format = \"{format}\"\n{}{}",
            with_keys(&[key_entry("ops", &["admin"], ""), key_entry("embedder", &["embed"], "rate = 1")]),
            with_tiny(&[])
        );
        let folder = folder_with(&toml);
        let (process, url) = Process::serve(folder.path(), &[]);
        let app = Caller::of(url);
        let wrong = secret("nobody");
        for key in [secret("ops"), secret("embedder"), wrong.clone()] {
            for request in [
                app.request(Method::GET, "/models").bearer_auth(&key),
                app.request(Method::GET, "/models").header(AUTHORIZATION, &key),
                app.request(Method::GET, "/models").header("x-api-key", &key),
                app.request(Method::GET, "/models").basic_auth("user", Some(&key)),
                app.request(Method::POST, "/embed").header("x-api-key", &key).json(&json!({"inputs": "a"})),
                app.request(Method::POST, "/v1/embeddings").header("x-api-key", &key).json(&json!({"input": "a"})),
                app.request(Method::POST, "/v1/embeddings").bearer_auth(&key).body("{"),
                app.request(Method::GET, "/nothing").bearer_auth(&key),
            ] {
                let answer = send(request).await;
                let shown = format!("{} {:?}", answer.text, answer.headers);
                assert!(!shown.contains("-0123456789"), "{shown}");
            }
        }
        let document = app.with_key(&secret("ops")).get("/openapi.json").await.text;
        assert!(!document.contains("grn_"), "an example of a key");
        let log = process.stop();
        assert!(log.contains("ops") && log.contains("answered"), "{log}");
        for secret in [secret("ops"), secret("embedder"), wrong] {
            let basic = base64_of(&format!("user:{secret}"));
            assert!(!log.contains(&secret) && !log.contains(&basic), "a key is in the log");
        }
    }
}

fn base64_of(text: &str) -> String {
    use base64::Engine;
    base64::prelude::BASE64_STANDARD.encode(text)
}

#[tokio::test]
async fn beyond_loopback_the_server_wants_a_key_or_a_word() {
    let folder = folder_with(&format!("[auth]\nkeys_file = \"keys.toml\"\n{}", with_tiny(&[])));
    let mut refused = Process::start_server(folder.path(), &["--host", "0.0.0.0"]);
    assert_eq!(refused.wait().code(), Some(1));
    let log = refused.log();
    assert!(log.contains("--host: server.host: found \"0.0.0.0\"") && log.contains("`granary keys add`"), "{log}");

    let key = said(folder.path(), &["add", "ops", "--scope", "admin"]);
    let (process, url) = Process::serve(folder.path(), &["--host", "0.0.0.0"]);
    let app = Caller::of(url.replace("0.0.0.0", "127.0.0.1"));
    assert_eq!(app.get("/models").await.status, 401);
    app.with_key(key.trim_end()).get("/models").await.ok();
    process.stop();
}

#[test]
fn a_file_of_keys_that_cannot_be_trusted_stops_the_start() {
    let toml = format!("[auth]\nkeys_file = \"keys.toml\"\n{}", entry_of(TINY));
    for (text, mode, says) in [
        ("[[keys]]\nname = 'a'\nkey = 'grn_plain-0123456789'\n", 0o600, "`keys.toml` is not understood from line"),
        ("keys = []\n", 0o666, "others than its owner may write `keys.toml`"),
    ] {
        let folder = folder_with(&toml);
        let file = folder.path().join("keys.toml");
        fs_err::write(&file, text).expect("written");
        fs_err::set_permissions(&file, PermissionsExt::from_mode(mode)).expect("set");
        let mut refused = Process::start_server(folder.path(), &[]);
        assert_eq!(refused.wait().code(), Some(1), "{}", refused.log());
        let log = refused.log();
        assert!(log.contains("granary: the keys cannot be used: ") && log.contains(says), "{log}");
        assert!(!log.contains("0123456789"), "{log}");
    }
    let folder = folder_with(&toml);
    std::os::unix::fs::symlink("nowhere.toml", folder.path().join("keys.toml")).expect("linked");
    let mut refused = Process::start_server(folder.path(), &[]);
    assert_eq!(refused.wait().code(), Some(1), "{}", refused.log());
    let log = refused.log();
    assert!(log.contains("the keys in `keys.toml` cannot be read") && !log.contains("counts as none"), "{log}");
}
