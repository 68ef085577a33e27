//! Files of every age and kind, opened.

mod inspected;
mod interrupted;
mod log;
mod opened;
mod refused;
mod restored;
mod upgraded;
mod written;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, FromRow, SqliteConnection};

use super::{MIGRATOR, OpenOptions, SqliteStore, StoreError};
use crate::files::beside;
use crate::telemetry::with_causes;

/// Version 0.3's table, written out again: the migration may not drift from it.
const V1: &str = "
CREATE TABLE grains (
  id TEXT PRIMARY KEY NOT NULL, text TEXT NOT NULL,
  vector BLOB,                          -- little-endian f32, or NULL
  meta TEXT NOT NULL DEFAULT '{}',      -- JSON: source, tags, anything else
  created_at TEXT NOT NULL, updated_at TEXT NOT NULL);   -- RFC 3339, UTC
";

/// A grain as version 0.3 stored it, in the bytes it stored.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
struct OldGrain {
    id: Vec<u8>,
    text: Vec<u8>,
    vector: Option<Vec<u8>>,
    meta: Vec<u8>,
    created_at: Vec<u8>,
    updated_at: Vec<u8>,
}

/// Fifty grains with what people really store.
fn old_grains() -> Vec<OldGrain> {
    let metas = [
        "{}",
        r#"{"source":"mail","tags":["a","b"],"year":2019}"#,
        "{ \"tags\" : \"not a list\", \"source\":null , \"tags\":2 }",
        "[1, 2, 3]",
        "not JSON at all {",
        "",
        r#""a string""#,
        "{\"emoji\":\"🌾\",\"escaped\":\"\\ud83c\\udf3e\"}",
        "null",
        "{\"n\":1e400,\"big\":123456789012345678901234567890}",
    ];
    let texts = ["plain", "Grüße, 世界 🌾👩‍👩‍👧", "", "line\nline\r\n\ttab", "quote ' and \" and ; DROP TABLE grains;--"];
    (0..50_u16)
        .map(|n| {
            let text = match n {
                17 => "long text ".repeat(100_000),
                _ => format!("{} {n}", texts[usize::from(n) % texts.len()]),
            };
            let vector = (n % 3 != 0).then(|| (0..384).flat_map(|d| (f32::from(n) + d as f32).to_le_bytes()).collect());
            // Versions before 0.3 were careless about times, too.
            let created_at =
                if n == 5 { "yesterday".to_owned() } else { format!("2024-01-{:02}T00:00:00Z", n % 28 + 1) };
            OldGrain {
                id: format!("grain/{n} ü").into_bytes(),
                text: text.into_bytes(),
                vector,
                meta: metas[usize::from(n) % metas.len()].as_bytes().to_vec(),
                created_at: created_at.into_bytes(),
                updated_at: b"2024-06-01T12:00:00.123456+00:00".to_vec(),
            }
        })
        .collect()
}

/// A connection of some other program.
async fn connect_to(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path).create_if_missing(true).connect().await.expect("a connection")
}

/// Makes a file with these statements.
async fn write_file(path: &Path, sql: &str) {
    let mut connection = connect_to(path).await;
    run(&mut connection, sql).await;
    connection.close().await.expect("closed");
}

async fn run(connection: &mut SqliteConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.expect("valid SQL");
}

async fn insert(connection: &mut SqliteConnection, grains: &[OldGrain]) {
    let mut transaction = connection.begin().await.expect("begun");
    for grain in grains {
        sqlx::query(
            "INSERT INTO grains (id, text, vector, meta, created_at, updated_at) VALUES \
             (CAST(? AS TEXT), CAST(? AS TEXT), ?, CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT))",
        )
        .bind(&grain.id)
        .bind(&grain.text)
        .bind(&grain.vector)
        .bind(&grain.meta)
        .bind(&grain.created_at)
        .bind(&grain.updated_at)
        .execute(&mut *transaction)
        .await
        .expect("inserted");
    }
    transaction.commit().await.expect("committed");
}

async fn write_v1(path: &Path, grains: &[OldGrain]) {
    write_file(path, V1).await;
    let mut connection = connect_to(path).await;
    insert(&mut connection, grains).await;
    connection.close().await.expect("closed");
}

/// Version 2 as a build without sqlx would have left it.
async fn write_v2(path: &Path, grains: &[OldGrain]) {
    write_v1(path, grains).await;
    let second = MIGRATOR.iter().nth(1).expect("there are two migrations");
    write_file(path, second.sql.as_str()).await;
}

/// Every grain in the order of insertion, in the bytes that are stored.
async fn read_grains(path: &Path) -> Vec<OldGrain> {
    let mut connection = connect_to(path).await;
    let is_numbered = "SELECT count(*) FROM pragma_table_info('grains') WHERE name = 'number'";
    let is_numbered: i64 = sqlx::query_scalar(is_numbered).fetch_one(&mut connection).await.expect("readable");
    let (vector, meta) = if is_numbered == 1 { ("old_vector", "old_meta") } else { ("vector", "meta") };
    let sql = format!(
        "SELECT CAST(id AS BLOB) AS id, CAST(text AS BLOB) AS text, {vector} AS vector, CAST({meta} AS BLOB) AS meta, \
         CAST(created_at AS BLOB) AS created_at, CAST(updated_at AS BLOB) AS updated_at FROM grains ORDER BY rowid"
    );
    let grains = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(&mut connection).await.expect("readable");
    connection.close().await.expect("closed");
    grains
}

async fn scalar(path: &Path, sql: &'static str) -> i64 {
    let mut connection = connect_to(path).await;
    let value = sqlx::query_scalar(sql).fetch_one(&mut connection).await.expect("readable");
    connection.close().await.expect("closed");
    value
}

/// The bytes of every file in a folder.
fn files_in(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fs_err::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry"))
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), fs_err::read(entry.path()).expect("a file")))
        .collect()
}

fn names_in(folder: &Path) -> Vec<String> {
    files_in(folder).into_keys().collect()
}

/// What is in a folder that no test uses but this one. The folder goes with the first value.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().canonicalize().expect("a path").join("granary.db");
    (folder, path)
}

async fn open(path: &Path) -> Result<SqliteStore, StoreError> {
    SqliteStore::open(OpenOptions::at(path)).await
}

/// Copies a database with its log and journal, as a crash would leave them, while a program has it open.
fn copy_as_if_crashed(from: &Path, to: &Path) {
    for suffix in ["", "-wal", "-journal"] {
        let original = beside(from, suffix);
        if original.exists() {
            fs_err::copy(original, beside(to, suffix)).expect("copied");
        }
    }
}

/// A version 1 file whose last grains are only in its write-ahead log.
async fn write_v1_with_hot_log(path: &Path, grains: &[OldGrain]) {
    let (_elsewhere, original) = folder();
    let options = SqliteConnectOptions::new().filename(&original).create_if_missing(true);
    let options = options.journal_mode(SqliteJournalMode::Wal).pragma("wal_autocheckpoint", "0");
    let mut connection = options.connect().await.expect("a connection");
    run(&mut connection, V1).await;
    insert(&mut connection, grains).await;
    copy_as_if_crashed(&original, path);
    connection.close().await.expect("closed");
}

/// A file whose last transaction was cut off when every page was overwritten, and only the journal was left to finish.
async fn write_with_hot_journal(path: &Path, overwrite: &str, prepare: impl AsyncFnOnce(&mut SqliteConnection)) {
    const JOURNAL_HEADER_BYTES: usize = 28;
    let (_elsewhere, original) = folder();
    let mut connection = connect_to(&original).await;
    prepare(&mut connection).await;
    // Without syncing, the journal's header is whole from the beginning; in this mode the commit only wipes it out.
    run(&mut connection, "PRAGMA synchronous = OFF; PRAGMA journal_mode = PERSIST; BEGIN;").await;
    run(&mut connection, overwrite).await;
    let journal = beside(&original, "-journal");
    let header = fs_err::read(&journal).expect("a journal")[..JOURNAL_HEADER_BYTES].to_vec();
    run(&mut connection, "COMMIT").await;
    let mut bytes = fs_err::read(&journal).expect("a journal");
    assert_eq!(bytes[..JOURNAL_HEADER_BYTES], [0; JOURNAL_HEADER_BYTES]);
    bytes[..JOURNAL_HEADER_BYTES].copy_from_slice(&header);
    fs_err::copy(&original, path).expect("copied");
    fs_err::write(beside(path, "-journal"), bytes).expect("written");
    connection.close().await.expect("closed");
}
