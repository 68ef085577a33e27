//! What survives the end of a process, and what a new one finds.

use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqliteRow};
use sqlx::{ConnectOptions, Connection, Row, SqliteConnection};
use tempfile::TempDir;

use crate::helpers::{MINILM, Process, client, data_dir, folder_with, send, vectors_of, with_tiny};

async fn active(url: &str) -> Value {
    send(client().get(format!("{url}/models/active"))).await.ok()["name"].clone()
}

async fn make_active(url: &str, name: &str) {
    send(client().put(format!("{url}/models/active")).json(&json!({"name": name}))).await.ok();
}

async fn embed(url: &str) -> Vec<Vec<f32>> {
    vectors_of(&send(client().post(format!("{url}/embed")).json(&json!({"inputs": "hello"}))).await.ok())
}

#[tokio::test]
async fn the_active_model_of_the_last_run_wins_over_the_configured_one() {
    let folder = folder_with(&with_tiny(&["tiny-cls"]));
    let (process, url) = Process::serve(folder.path(), &[]);
    assert_eq!(active(&url).await, "tiny");
    make_active(&url, "tiny-cls").await;
    let before = embed(&url).await;
    let log = process.stop();
    assert!(!log.contains("`ai.model_name` counts"), "{log}");

    for arguments in [&[][..], &["--model", "tiny"]] {
        let (process, url) = Process::serve(folder.path(), arguments);
        assert_eq!(active(&url).await, "tiny-cls");
        assert_eq!(embed(&url).await, before);
        let log = process.stop();
        let line =
            log.lines().find(|line| line.contains("stays active; `ai.model_name` counts at the first start only"));
        let line = line.unwrap_or_else(|| panic!("no word of it:\n{log}"));
        assert!(line.contains("active=tiny-cls configured=tiny"), "{line}");
    }

    // It is not known any more.
    fs_err::write(folder.path().join("granary.toml"), with_tiny(&[])).expect("written");
    let (process, url) = Process::serve(folder.path(), &[]);
    assert_eq!(active(&url).await, "tiny");
    send(client().post(format!("{url}/grains")).json(&json!({"text": "written all the same"}))).await.ok();
    let log = process.stop();
    assert!(log.contains("`ai.model_name` is active instead, and stays so stored=tiny-cls active=tiny"), "{log}");

    // When it is known again, grains have been written with the other one.
    fs_err::write(folder.path().join("granary.toml"), with_tiny(&["tiny-cls"])).expect("written");
    let (process, url) = Process::serve(folder.path(), &[]);
    assert_eq!(active(&url).await, "tiny");
    process.stop();
}

#[tokio::test]
async fn a_model_made_active_outlives_a_kill() {
    let folder = folder_with(&with_tiny(&["tiny-cls"]));
    let (mut process, url) = Process::serve(folder.path(), &[]);
    make_active(&url, "tiny-cls").await;
    process.signal(Signal::KILL);
    assert_eq!(process.wait().code(), None);

    let (process, url) = Process::serve(folder.path(), &[]);
    assert_eq!(active(&url).await, "tiny-cls");
    process.stop();
}

#[tokio::test]
async fn without_a_database_the_configured_model_is_active_again() {
    let folder = folder_with(&format!("[grains]\nenabled = false\n{}", with_tiny(&["tiny-cls"])));
    for _ in 0..2 {
        let (process, url) = Process::serve(folder.path(), &[]);
        assert_eq!(active(&url).await, "tiny");
        make_active(&url, "tiny-cls").await;
        process.stop();
    }
    assert!(!folder.path().join("granary.db").exists());
}

#[tokio::test]
async fn a_second_process_on_one_database_is_refused_and_told_who_has_it() {
    let folder = folder_with(&with_tiny(&[]));
    let (first, url) = Process::serve(folder.path(), &[]);
    let holder = fs_err::read_to_string(folder.path().join("granary.db.lock")).expect("a lock file");
    assert!(holder.starts_with("process "), "{holder}");

    let mut second = Process::start_server(folder.path(), &[]);
    assert_eq!(second.wait().code(), Some(1), "{}", second.log());
    let log = second.log();
    let said = log.lines().last().expect("a reason");
    assert!(said.contains(&format!("is in use by {}", holder.trim())), "{said}, not {holder}");
    assert!(said.contains("granary.db.lock`: stop that process, or set another `grains.database_url`"), "{said}");

    assert_eq!(embed(&url).await.len(), 1, "the first one goes on");
    first.stop();
    Process::serve(folder.path(), &[]).0.stop();
}

/// The table of version 0.3, as its files have it.
const V03: &str = "CREATE TABLE grains (id TEXT PRIMARY KEY NOT NULL, text TEXT NOT NULL, vector BLOB, \
                   meta TEXT NOT NULL DEFAULT '{}', created_at TEXT NOT NULL, updated_at TEXT NOT NULL)";

/// What it had then, in the columns that it has now.
const V03_COLUMNS: &str = "id, text, old_vector, old_meta, created_at, updated_at";

/// Writes a file of version 0.3 with one grain.
async fn write_v03(database: &Path) -> SqliteConnection {
    let grain = "INSERT INTO grains VALUES ('old id/1', 'Grüße 🌾', x'0000803f00000040', '{\"source\": 7 , \"x\":1}', \
                 '2024-01-01T00:00:00Z', 'yesterday')";
    let mut connection =
        SqliteConnectOptions::new().filename(database).create_if_missing(true).connect().await.expect("open");
    for sql in [V03, grain] {
        sqlx::query(sql).execute(&mut connection).await.expect("written");
    }
    connection
}

#[tokio::test]
async fn a_file_of_version_0_3_opens_at_the_start_and_a_copy_is_kept() {
    let folder = folder_with(&with_tiny(&[]));
    let database = folder.path().join("granary.db");
    write_v03(&database).await.close().await.expect("closed");
    let before = rows(&database, "*").await;

    for start in ["the first start upgrades", "the second has nothing to do"] {
        let (process, url) = Process::serve(folder.path(), &[]);
        assert_eq!(embed(&url).await.len(), 1, "{start}");
        process.stop();
        assert_eq!(rows(&database, V03_COLUMNS).await, before, "{start}");
    }
    let copy = folder.path().join("granary.db.before-v10");
    assert_eq!(rows(&copy, "*").await, before, "the copy has the columns it had");
    let copies = fs_err::read_dir(folder.path()).expect("a folder").filter(|entry| {
        let name = entry.as_ref().expect("an entry").file_name();
        name.to_string_lossy().contains("before")
    });
    assert_eq!(copies.count(), 1, "one copy for one upgrade");
}

#[tokio::test]
async fn a_signal_ends_a_start_in_the_middle_of_an_upgrade_and_the_next_one_goes_on() {
    for (signal, name) in [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT")] {
        let folder = folder_with(&with_tiny(&[]));
        let database = folder.path().join("granary.db");
        let mut reader = write_v03(&database).await;
        let before = rows(&database, "*").await;
        // The upgrade waits some seconds for who reads the file, and would then fail.
        sqlx::raw_sql("BEGIN; SELECT count(*) FROM grains").execute(&mut reader).await.expect("read");
        let mut process = Process::start_server(folder.path(), &[]);
        process.wait_for("the copy of the database is whole");
        process.signal(signal);
        assert_eq!(process.wait().code(), Some(0), "{}", process.log());
        let log = process.log();
        let said = log.lines().last().expect("a last word");
        assert!(said.contains("stopped before it served") && said.contains(&format!("signal=\"{name}\"")), "{log}");
        reader.close().await.expect("closed");

        let (process, url) = Process::serve(folder.path(), &[]);
        assert_eq!(embed(&url).await.len(), 1);
        process.stop();
        assert_eq!(rows(&database, V03_COLUMNS).await, before);
    }
}

/// The grains of a file, column by column in the bytes that are stored.
async fn rows(database: &Path, columns: &str) -> Vec<Vec<Option<Vec<u8>>>> {
    let mut connection = SqliteConnectOptions::new().filename(database).read_only(true).connect().await.expect("open");
    let sql = sqlx::AssertSqlSafe(format!("SELECT {columns} FROM grains"));
    let rows = sqlx::query(sql).fetch_all(&mut connection).await.expect("read");
    connection.close().await.expect("closed");
    let bytes = |row: &SqliteRow| (0..row.len()).map(|column| row.get_unchecked(column)).collect();
    rows.iter().map(bytes).collect()
}

#[tokio::test]
async fn a_foreign_file_stops_the_start_and_is_left_as_it_is() {
    let folder = folder_with(&with_tiny(&[]));
    let database = folder.path().join("granary.db");
    fs_err::write(&database, "a shopping list\n").expect("written");
    let mut process = Process::start_server(folder.path(), &[]);
    assert_eq!(process.wait().code(), Some(1));
    let log = process.log();
    assert!(log.contains("granary: the database cannot be used: ") && log.contains("was left untouched"), "{log}");
    assert_eq!(fs_err::read_to_string(&database).expect("a file"), "a shopping list\n");
    assert!(!folder.path().join("granary.db.lock").exists());
}

#[tokio::test]
async fn after_set_up_an_empty_environment_will_do() {
    let elsewhere = TempDir::new().expect("a folder");
    let folder = TempDir::new().expect("a folder");
    for part in ["models", "runtime"] {
        let target = data_dir().canonicalize().expect("set up").join(part);
        std::os::unix::fs::symlink(target, elsewhere.path().join(part)).expect("linked");
    }
    std::os::unix::fs::symlink(elsewhere.path(), folder.path().join(".granary")).expect("linked");
    let (process, url) = Process::serve_with(folder.path(), &[], &[]);
    assert_eq!(active(&url).await, MINILM);
    assert_eq!(embed(&url).await[0].len(), 384);
    let log = process.stop();
    let place = folder.path().canonicalize().expect("a folder");
    let read = format!("the configuration was read file=none data_dir={}/.granary variables=", place.display());
    assert!(log.lines().any(|line| line.trim_end().ends_with(&read)), "no `{read}` in:\n{log}");

    fs_err::write(folder.path().join("granary.toml"), "[server]\nmax_inputs = 8\n").expect("written");
    let variables = [("GRANARY_SERVER__MAX_INPUTS", "9"), ("GRANARY_PORT", "tcp://10.0.0.1:80")];
    let (process, _) = Process::serve_with(folder.path(), &["--data-dir", "."], &variables);
    let log = process.stop();
    let place = place.display();
    let read = format!("read file={place}/granary.toml data_dir={place} variables=GRANARY_SERVER__MAX_INPUTS");
    assert!(log.lines().any(|line| line.ends_with(&read)), "no `{read}` in:\n{log}");
    let mode = std::os::unix::fs::MetadataExt::mode(
        &fs_err::metadata(elsewhere.path().join("granary.db")).expect("a database"),
    );
    assert_eq!(mode & 0o777, 0o600);
}
