//! `granary embed`: a line of JSON for each text, of one space.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Output, Stdio};

use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::helpers::{TestApp, key_entry, secret, send, with_keys, with_tiny};

fn begin(app: &TestApp, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_granary"));
    command.arg("embed").args(arguments).args(["--url", app.url()]).env_clear();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("it runs")
}

async fn granary(app: &TestApp, arguments: &[&str], input: &[u8]) -> Output {
    let (mut child, input) = (begin(app, arguments), input.to_vec());
    let run = move || {
        // It may end before it has read all.
        let _ = child.stdin.take().expect("a pipe").write_all(&input);
        child.wait_with_output().expect("it ends")
    };
    tokio::task::spawn_blocking(run).await.expect("no panic")
}

fn lines(output: &Output) -> Vec<Value> {
    let lines = str::from_utf8(&output.stdout).expect("UTF-8").lines();
    lines.map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn said(output: &Output) -> &str {
    str::from_utf8(&output.stderr).expect("UTF-8")
}

#[tokio::test]
async fn texts_become_lines_with_their_vectors_and_their_space() {
    let app = TestApp::start_with(&with_tiny(&["tiny-cls"])).await;
    let of_queries = ["--model", "tiny-cls", "--input-type", "query", "--no-normalize"];
    for (model, flags, fields) in [
        ("tiny", &[][..], json!({})),
        ("tiny-cls", &of_queries, json!({"model": "tiny-cls", "input_type": "query", "normalize": false})),
    ] {
        let mut body = fields.clone();
        body["inputs"] = json!(["wheat", "rye \"bread\"\n"]);
        let answer = app.post("/embed", body).await;
        let (vectors, meta) = (answer.ok(), json!({"embedding_model": model, "space": answer.header("x-space")}));
        let output = granary(&app, &[flags, &["wheat", "rye \"bread\"\n"]].concat(), b"").await;
        assert!(output.status.success() && said(&output).is_empty(), "{output:?}");
        let expected = [
            json!({"text": "wheat", "meta": meta, "vector": vectors[0]}),
            json!({"text": "rye \"bread\"\n", "meta": meta, "vector": vectors[1]}),
        ];
        assert_eq!(lines(&output), expected, "{flags:?}");
        // They are lines of an import, too.
        let import = app.request(Method::POST, "/grains/import").header("content-type", "application/x-ndjson");
        let imported = send(import.body(output.stdout)).await;
        assert!(imported.text.contains("\"created\":2"), "{}", imported.text);
    }
    app.stop().await;
}

#[tokio::test]
async fn lines_of_input_are_embedded_however_many_there_are() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let mut texts: Vec<String> = (0..150).map(|n| format!("text {n}")).collect();
    texts[70] = "grain ".repeat(1000);
    let output = granary(&app, &["-"], texts.join("\n").as_bytes()).await;
    assert!(output.status.success(), "{output:?}");
    let found = lines(&output);
    assert!(found.iter().map(|line| &line["text"]).eq(&texts), "{found:?}");
    assert_eq!(said(&output), "1 of 150 texts are longer than the model takes, and were cut to its maximum\n");
    let alone = app.post("/embed", json!({"inputs": "text 149"})).await.ok();
    assert_eq!(found[149]["vector"], alone[0]);

    texts[140].clear();
    let output = granary(&app, &["-"], texts.join("\n").as_bytes()).await;
    assert_eq!((output.status.code(), lines(&output).len()), (Some(1), 128));
    assert!(said(&output).starts_with("granary: text 141 is empty"), "{output:?}");
    let output = granary(&app, &["-"], b"wheat\nr\xfce\n").await;
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).starts_with("granary: text 2 cannot be read: "), "{output:?}");
    app.stop().await;
}

#[tokio::test]
async fn a_switch_of_the_active_model_mixes_no_vectors() {
    let app = TestApp::start_with(&with_tiny(&["tiny-cls"])).await;
    let mut child = begin(&app, &["-"]);
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all("wheat\n".repeat(64).as_bytes()).expect("written");
    let output = BufReader::new(child.stdout.take().expect("a pipe"));
    let (child, mut output) = tokio::task::spawn_blocking(move || {
        let mut output = output.lines();
        assert!(output.by_ref().take(64).all(|line| line.is_ok()));
        (child, output)
    })
    .await
    .expect("no panic");
    app.put("/models/active", json!({"name": "tiny-cls"})).await.ok();
    input.write_all(b"rye\n").expect("written");
    drop(input);
    let ended =
        tokio::task::spawn_blocking(move || child.wait_with_output().expect("it ends")).await.expect("no panic");
    assert!(output.next().is_none() && ended.status.code() == Some(1), "{ended:?}");
    assert!(said(&ended).starts_with("granary: text 65 and those behind it would be in another space"), "{ended:?}");
    app.stop().await;
}

#[tokio::test]
async fn what_the_server_refuses_is_said_in_its_words() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    for (arguments, sentence) in [
        (&["--model", "none", "wheat"][..], "`none`"),
        (&["--dimensions", "7", "wheat"], "`dimensions`"),
        (&["--expect-space", "0123456789abcdef", "wheat"], "0123456789abcdef"),
        (&[""], "text 1 is empty"),
    ] {
        let output = granary(&app, arguments, b"").await;
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{output:?}");
        assert!(said(&output).starts_with("granary: ") && said(&output).contains(sentence), "{output:?}");
    }
    let output = granary(&app, &[], b"").await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    app.stop().await;
}

#[tokio::test]
async fn who_is_refused_for_now_asks_again() {
    let keys = [key_entry("ops", &["embed"], "rate = 60")];
    let app = TestApp::start_with(&format!("{}{}", with_keys(&keys), with_tiny(&[]))).await;
    let folder = TempDir::new().expect("a folder");
    let key = folder.path().join("key");
    fs_err::write(&key, secret("ops")).expect("written");
    // Each 32 of them are a request.
    let texts = "wheat\n".repeat(62 * 32);
    let output = granary(&app, &["-", "--api-key-file", key.to_str().expect("UTF-8")], texts.as_bytes()).await;
    assert!(output.status.success() && said(&output).is_empty(), "{}", said(&output));
    assert_eq!(lines(&output).len(), 62 * 32);
    app.stop().await;
}

#[tokio::test]
async fn what_nobody_reads_is_not_embedded() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let mut child = begin(&app, &["-"]);
    let (mut input, output) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
    let run = move || {
        input.write_all("wheat\n".repeat(32).as_bytes()).expect("written");
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).expect("read");
        // It takes more as long as it runs.
        while input.write_all(b"wheat\n").is_ok() {}
        child.wait().expect("it ends")
    };
    let status = tokio::task::spawn_blocking(run).await.expect("no panic");
    assert!(status.success(), "{status}");
    app.stop().await;
}
