//! The write-ahead log, which may not grow without end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::super::LogBounds;
use super::*;

const BOUND: u64 = 1 << 20;

async fn open_with(path: &Path, log: LogBounds) -> SqliteStore {
    SqliteStore::open(OpenOptions { log, ..OpenOptions::at(path) }).await.expect("created")
}

/// Writes some hundred kilobytes.
async fn write_much(store: &SqliteStore) {
    let written = sqlx::query("UPDATE identity SET epoch = hex(randomblob(50000))").execute(&store.writer).await;
    written.expect("written");
}

fn log_bytes(path: &Path) -> u64 {
    fs_err::metadata(beside(path, "-wal")).expect("a log").len()
}

#[tokio::test]
async fn the_log_stays_short_under_reads_that_overlap_and_nobody_fails() {
    const READ: &str = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000) \
         SELECT count(*) FROM identity, n";
    let (_folder, path) = folder();
    let store = open_with(&path, LogBounds { bytes: BOUND, ..LogBounds::default() }).await;
    let is_written = AtomicBool::new(false);
    let write = async {
        for _ in 0..100 {
            write_much(&store).await;
            assert!(log_bytes(&path) < 2 * BOUND, "the log has {} bytes", log_bytes(&path));
        }
        is_written.store(true, Ordering::Release);
    };
    let read = || async {
        while !is_written.load(Ordering::Acquire) {
            let n: i64 = sqlx::query_scalar(READ).fetch_one(&store.readers).await.expect("read");
            assert_eq!(n, 100_000);
        }
    };
    tokio::join!(write, read(), read(), read());
    store.close().await;
}

#[tokio::test]
async fn a_read_that_takes_long_is_ended_once_the_log_is_far_too_long() {
    const READ: &str = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) \
         SELECT count(*) FROM identity, n";
    let (_folder, path) = folder();
    let log = LogBounds { bytes: BOUND, hold: Duration::from_millis(50), pause: Duration::ZERO };
    let store = open_with(&path, log).await;
    let write = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        for _ in 0..100 {
            write_much(&store).await;
            assert!(log_bytes(&path) < 5 * BOUND, "the log has {} bytes", log_bytes(&path));
        }
    };
    let (ended, ()) = tokio::join!(sqlx::query_scalar::<_, i64>(READ).fetch_one(&store.readers), write);
    let error = StoreError::sql("count", &path, ended.expect_err("it has no end"));
    assert!(matches!(error, StoreError::TooSlow { .. }), "{error:?}");
    let one: i64 = sqlx::query_scalar("SELECT 1").fetch_one(&store.readers).await.expect("reading goes on");
    assert_eq!(one, 1);
    store.close().await;
}

#[tokio::test]
async fn nobody_waits_for_the_log_while_a_copy_is_made() {
    let (_folder, path) = folder();
    let store = open_with(&path, LogBounds { bytes: BOUND, ..LogBounds::default() }).await;
    let copying = store.log.pass().await;
    for _ in 0..30 {
        write_much(&store).await;
    }
    assert!(log_bytes(&path) >= BOUND, "the log has {} bytes", log_bytes(&path));
    let read = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM identity").fetch_one(&store.readers).await;
    assert_eq!(read.expect("read"), 1);
    drop(copying);
    write_much(&store).await;
    assert!(log_bytes(&path) < BOUND, "the log has {} bytes", log_bytes(&path));
    store.close().await;
}
