//! Whole copies of the database, made while it is used.

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use sqlx::sqlite::{SqliteConnectOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection};
use tempfile::TempDir;

use crate::helpers::{Process, TestApp, client, data_dir, send, until, with_tiny};

/// 128 MiB of rows, for a copy that takes some tenths of a second.
const PADDING: [&str; 2] = [
    "CREATE TABLE padding (bytes BLOB)",
    "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 8192) \
     INSERT INTO padding SELECT zeroblob(16384) FROM n",
];

/// A folder with a large database.
async fn folder_with_much() -> TempDir {
    let folder = TestApp::start_with(&with_tiny(&[])).await.stop_and_keep().await;
    let options = SqliteConnectOptions::new().filename(folder.path().join("granary.db"));
    let mut connection = options.synchronous(SqliteSynchronous::Off).connect().await.expect("a connection");
    for sql in PADDING {
        sqlx::query(sql).execute(&mut connection).await.expect("written");
    }
    connection.close().await.expect("closed");
    folder
}

/// Where the snapshots of a folder's database are.
fn snapshots_in(folder: &TempDir) -> PathBuf {
    folder.path().join("granary.db.snapshots")
}

/// The names of the files there, of which there are none before the first snapshot.
fn names_in(snapshots: &Path) -> Vec<String> {
    let Ok(entries) = fs_err::read_dir(snapshots) else { return Vec::new() };
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

/// Waits until a snapshot is being written.
async fn until_one_is_begun(snapshots: &Path) {
    let is_begun = async || names_in(snapshots).iter().any(|name| name.ends_with(".partial"));
    until("a snapshot is begun", is_begun).await;
}

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

#[tokio::test]
async fn snapshots_are_made_listed_fetched_and_deleted_by_command() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let here = TempDir::new().expect("a folder");
    let granary = async |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_granary"));
        command.arg("snapshot").args(arguments).args(["--url", app.url()]).env_clear();
        let output = tokio::task::spawn_blocking(move || command.output().expect("run")).await.expect("no panic");
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).expect("UTF-8"))
    };
    let (code, said) = granary(&["create"]).await;
    let name = said.trim_end();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(app.get("/snapshots").await.ok()["snapshots"][0]["name"], name);
    let (_, list) = granary(&["list"]).await;
    assert!(list.starts_with("NAME ") && list.lines().nth(1).is_some_and(|line| line.starts_with(name)), "{list}");
    let file = here.path().join("copy.db");
    let copy = file.to_str().expect("UTF-8");
    assert_eq!(granary(&["fetch", name, copy]).await, (Some(0), String::new()));
    let answer = client().get(format!("{}/snapshots/{name}", app.url())).send().await.expect("an answer");
    assert_eq!(fs_err::read(&file).expect("fetched"), answer.bytes().await.expect("a file"));
    assert_eq!(fs_err::metadata(&file).expect("fetched").permissions().mode() & 0o777, 0o600);
    fs_err::write(&file, "an earlier one").expect("written");
    let (code, said) = granary(&["fetch", "granary-19700101T000000.000Z.db", copy]).await;
    assert!(code == Some(1) && said.starts_with("granary: there is no snapshot `"), "{said}");
    assert_eq!(fs_err::read(&file).expect("kept"), b"an earlier one");
    assert_eq!(names_in(here.path()), ["copy.db"], "nothing of the other stays");
    assert_eq!(granary(&["delete", name]).await, (Some(0), format!("{name} is deleted\n")));
    let (code, said) = granary(&["delete", name]).await;
    assert!(code == Some(1) && said.starts_with(&format!("granary: there is no snapshot `{name}`")), "{said}");
    assert_eq!(app.get("/snapshots").await.ok()["snapshots"], json!([]));
    app.stop().await;
}

#[tokio::test]
async fn a_copy_that_something_else_made_while_the_server_ran_believes_no_index_that_was_saved_later() {
    let folder = TempDir::new().expect("a folder");
    let [database, copy] = ["granary.db", "copy.db"].map(|name| folder.path().join(name));
    let app = TestApp::start_in(folder, &with_tiny(&[])).await;
    app.post("/grains", json!({"id": "before", "text": "wheat"})).await.ok();
    let mut connection = SqliteConnectOptions::new().filename(&database).connect().await.expect("a connection");
    let target = copy.display().to_string();
    sqlx::query("VACUUM INTO ?").bind(target).execute(&mut connection).await.expect("copied");
    connection.close().await.expect("closed");
    app.post("/grains", json!({"id": "after", "text": "barley"})).await.ok();
    assert_eq!(app.delete("/grains/before").await.status, 204);
    let folder = app.stop_and_keep().await;

    fs_err::copy(&copy, &database).expect("put in place");
    let app = TestApp::start_in(folder, &with_tiny(&[])).await;
    let found = app.post("/grains/search", json!({"query": "wheat", "mode": "dense"})).await.ok();
    assert_eq!(found["hits"].as_array().map(Vec::len), Some(1), "{found}");
    assert_eq!(found["hits"][0]["grain"]["id"], "before");
    app.stop().await;
}

#[tokio::test]
async fn one_snapshot_is_made_at_a_time_however_long_it_takes() {
    let toml = format!(
        "[server]\nrequest_timeout = \"100ms\"\n[server.route_timeouts]\n\"GET /snapshots\" = \"1m\"\n{}",
        with_tiny(&[])
    );
    let app = TestApp::start_in(folder_with_much().await, &toml).await;
    let make = || send(app.request(reqwest::Method::POST, "/snapshots"));
    let (one, other) = tokio::join!(make(), make());
    let (first, refused) = if one.status == 201 { (one, other) } else { (other, one) };
    assert_eq!(first.status, 201, "{}", first.text);
    let (status, code, detail) = refused.problem();
    assert_eq!((status, code.as_str()), (409, "conflict"));
    assert!(detail.contains("has been under way since 20"), "{detail}");
    assert_eq!(app.get("/snapshots").await.ok()["snapshots"], json!([first.json()]));
    app.stop().await;
}

#[tokio::test]
async fn a_snapshot_goes_on_when_its_caller_leaves() {
    let folder = folder_with_much().await;
    let snapshots = snapshots_in(&folder);
    let app = TestApp::start_in(folder, &with_tiny(&[])).await;
    tokio::select! {
        answer = send(app.request(reqwest::Method::POST, "/snapshots")) => panic!("answered already: {}", answer.text),
        () = until_one_is_begun(&snapshots) => {}
    }
    assert_eq!(send(app.request(reqwest::Method::POST, "/snapshots")).await.problem().0, 409, "the first one goes on");
    until("the snapshot is whole", async || app.get("/snapshots").await.ok()["snapshots"] != json!([])).await;
    app.stop().await;
}

#[tokio::test]
async fn a_stop_gives_a_snapshot_up_and_nothing_of_it_stays() {
    let folder = folder_with_much().await;
    let snapshots = snapshots_in(&folder);
    let app = TestApp::start_in(folder, &with_tiny(&[])).await;
    let asked = send(app.request(reqwest::Method::POST, "/snapshots"));
    let stop = async {
        until_one_is_begun(&snapshots).await;
        app.stop_and_keep().await
    };
    let (answer, _folder) = tokio::join!(asked, stop);
    let (status, code, detail) = answer.problem();
    assert_eq!((status, code.as_str()), (503, "store_unavailable"));
    assert!(detail.contains("the server is stopping"), "{detail}");
    assert_eq!(names_in(&snapshots), Vec::<String>::new());
}

/// Restores without the right of root to give files away.
fn who_cannot_leave_it_to_its_owner_does_not_replace_a_database(folder: &Path, file: &str, env: &[(&str, &str)]) {
    let database = folder.join("granary.db");
    let owner = fs_err::metadata(&database).expect("a database").uid();
    if chown(&database, Some(owner + 7), None).is_err() {
        println!("skipped: only root can give files to other users");
        return;
    }
    let names = || names_in(folder).into_iter().collect::<BTreeSet<_>>();
    let before = names();
    let mut restore = Command::new("/usr/bin/setpriv");
    restore.args(["--bounding-set=-chown", env!("CARGO_BIN_EXE_granary"), "snapshot", "restore", file]);
    let refused = restore.current_dir(folder).env_clear().envs(env.iter().copied()).output().expect("it runs");
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{stderr}");
    let user = format!("belongs to the user {}", owner + 7);
    assert!(stderr.contains("nothing was restored") && stderr.contains(&user), "{stderr}");
    assert_eq!(names(), before, "nothing has another name or is left behind");
    chown(&database, Some(owner), None).expect("given back");
}

/// A running server would go on with the old file, and lose what it writes.
#[tokio::test]
async fn a_restore_waits_for_no_server_and_loses_nothing() {
    let folder = TempDir::new().expect("a folder");
    fs_err::write(folder.path().join("granary.toml"), with_tiny(&[])).expect("written");
    let database = format!("sqlite:{}/granary.db", folder.path().display());
    let env =
        [("GRANARY_MODELS__DATA_DIR", data_dir().display().to_string()), ("GRANARY_GRAINS__DATABASE_URL", database)];
    let env: Vec<(&str, &str)> = env.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let granary = |arguments: &[&str]| {
        let mut process = Process::start(folder.path(), arguments, &env);
        let code = process.wait().code();
        (code, process.log())
    };
    let (mut server, url) = Process::serve_with(folder.path(), &[], &env);
    let post = |path: &str, body| client().post(format!("{url}{path}")).json(&body);
    send(post("/grains", json!({"id": "before", "text": "wheat"}))).await.ok();
    let snapshot = send(client().post(format!("{url}/snapshots"))).await.ok();
    let file =
        format!("{}/granary.db.snapshots/{}", folder.path().display(), snapshot["name"].as_str().expect("a name"));
    send(post("/grains", json!({"id": "after", "text": "barley"}))).await.ok();

    let (code, said) = granary(&["snapshot", "restore", &file]);
    assert_eq!(code, Some(1));
    assert!(said.contains("is in use by process"), "{said}");
    server.signal(rustix::process::Signal::TERM);
    assert!(server.wait().success());

    who_cannot_leave_it_to_its_owner_does_not_replace_a_database(folder.path(), &file, &env);

    // A snapshot that others may read makes no database that they may.
    fs_err::set_permissions(&file, PermissionsExt::from_mode(0o444)).expect("shown to others");
    let cut_off = format!("{file}.partial");
    fs_err::write(&cut_off, "half a snapshot").expect("written");
    // Nobody reads what it says.
    let (reader, said) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut restore = Command::new(env!("CARGO_BIN_EXE_granary"));
    restore.current_dir(folder.path()).args(["snapshot", "restore", &file]).env_clear().envs(env.iter().copied());
    assert!(restore.stdout(said).status().expect("it runs").success());
    let mode = fs_err::metadata(folder.path().join("granary.db")).expect("a database").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(folder.path().join("granary.db.replaced.1").is_file(), "what was there is kept");
    let (server, url) = Process::serve_with(folder.path(), &[], &env);
    assert!(!fs_err::exists(&cut_off).expect("looked at"), "what was cut off is removed at the start");
    assert_eq!(send(client().get(format!("{url}/grains/before"))).await.status, 200);
    assert_eq!(send(client().get(format!("{url}/grains/after"))).await.status, 404);
    // The index that the first server saved has `after` too, and is of another epoch.
    let search = json!({"query": "barley", "mode": "dense"});
    let hits = send(client().post(format!("{url}/grains/search")).json(&search)).await.ok();
    assert_eq!(hits["hits"].as_array().expect("hits").len(), 1);
    assert!(server.log().contains("was saved for another"), "{}", server.log());
}

#[tokio::test]
async fn a_restore_says_where_the_database_is_and_whether_there_was_one() {
    let stopped = TestApp::start_with(&with_tiny(&[])).await.stop_and_keep().await;
    let (folder, snapshot) = (TempDir::new().expect("a folder"), stopped.path().join("granary.db"));
    let restore = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_granary"));
        command.args(["snapshot", "restore"]).arg(&snapshot).args(["--data-dir", "data"]);
        let output = command.current_dir(folder.path()).env_clear().output().expect("it runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let database = fs_err::canonicalize(folder.path()).expect("a folder").join("data/granary.db");
    // A file as large as the process may make it is an error like others.
    let mut limited = Command::new("/bin/sh");
    limited.args(["-c", "ulimit -f 20; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_granary"), "snapshot", "restore"]);
    limited.arg(&snapshot).args(["--data-dir", "data"]);
    let refused = limited.current_dir(folder.path()).env_clear().output().expect("it runs");
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && stderr.contains("nothing was restored"), "{refused:?}");
    assert!(!fs_err::exists(&database).expect("looked at"));

    let database = database.display();
    let first = restore();
    assert!(first.starts_with(&format!("`{database}` is `")), "{first}");
    assert!(first.ends_with(" now; there was no database there before\n"), "{first}");
    let second = restore();
    assert!(second.ends_with(&format!("; what it was before is `{database}.replaced.1`\n")), "{second}");
}
