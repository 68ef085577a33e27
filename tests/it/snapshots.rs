//! Whole copies of the database, made while it is used.

use serde_json::json;
use tempfile::TempDir;

use crate::helpers::{TestApp, client, send, with_tiny};

#[tokio::test]
async fn a_snapshot_is_listed_fetched_restored_and_deleted() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    app.post("/grains", json!({"id": "before", "text": "wheat"})).await.ok();
    let made = send(app.request(reqwest::Method::POST, "/snapshots")).await;
    assert_eq!(made.status, 201, "{}", made.text);
    let (location, snapshot) = (made.header("location").to_owned(), made.json());
    app.post("/grains", json!({"id": "after", "text": "barley"})).await.ok();
    assert_eq!(app.get("/snapshots").await.ok()["snapshots"], json!([snapshot]));

    let fetched = client().get(format!("{}{location}", app.url())).send().await.expect("an answer");
    assert_eq!(fetched.headers()["content-type"], "application/vnd.sqlite3");
    let bytes = fetched.bytes().await.expect("a file");
    assert_eq!(snapshot["size_bytes"], bytes.len());

    // The file is a database, and a server begins with it where it was.
    let folder = TempDir::new().expect("a folder");
    fs_err::write(folder.path().join("granary.db"), &bytes).expect("written");
    let restored = TestApp::start_in(folder, &with_tiny(&[])).await;
    assert_eq!(restored.get("/grains/before").await.ok()["text"], "wheat");
    assert_eq!(restored.get("/grains/after").await.status, 404);
    let found = restored.post("/grains/search", json!({"query": "wheat", "mode": "dense"})).await.ok();
    assert_eq!(found["hits"][0]["grain"]["id"], "before");
    restored.stop().await;

    assert_eq!(send(app.request(reqwest::Method::DELETE, &location)).await.status, 204);
    assert_eq!(app.get(&location).await.problem().0, 404);
    assert_eq!(app.get("/snapshots/..%2Fgranary.db").await.problem().0, 404);
    assert_eq!(app.get("/snapshots").await.ok()["snapshots"], json!([]));
    app.stop().await;
}
