//! A file that is new, or ours and up to date.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::super::{FileState, MIGRATOR, latest_version};
use super::*;
use crate::domain::{DeclaredSpace, Filter, ModelName, OldVectors, Reembedding, ReembeddingId, ReembeddingState};
use crate::grains::store::{
    AnchorStore, Applied, Atomicity, Batch, Committed, DeleteStore, Facet, GrainStore, Lacking, Makers, NewReceipt,
    ReadStore, ReceiptKey, ReembeddingStore, WriteStore,
};
use crate::models::ledger::Ledger;

#[tokio::test]
async fn a_missing_file_and_its_folder_are_created_for_this_user_only() {
    let (folder, _) = folder();
    let path = folder.path().join("data/deeper/granary.db");
    let store = open(&path).await.expect("created");
    store.check().await.expect("readable");
    for name in ["granary.db", "granary.db-wal", "granary.db-shm"] {
        let mode = fs_err::metadata(path.with_file_name(name)).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    store.close().await;
    assert_eq!(names_in(path.parent().expect("a folder")), ["granary.db", "granary.db.lock"], "no copy of nothing");
    assert_eq!(scalar(&path, "SELECT max(version) FROM schema_version").await, latest_version());
}

#[test]
fn each_core_has_a_reader_within_bounds() {
    for (cores, readers) in [(1, 4), (16, 16), (128, 32)] {
        assert_eq!(OpenOptions::at("granary.db").with_cores(cores).readers.get(), readers, "{cores} cores");
    }
}

#[tokio::test]
async fn opening_an_up_to_date_file_changes_nothing() {
    let (_folder, path) = folder();
    open(&path).await.expect("created").close().await;
    let before = fs_err::read(&path).expect("a file");
    open(&path).await.expect("opened").close().await;
    assert_eq!(fs_err::read(&path).expect("a file"), before);
}

#[tokio::test]
async fn an_empty_file_and_a_database_without_tables_are_filled() {
    let (folder, path) = folder();
    fs_err::write(&path, "").expect("written");
    open(&path).await.expect("filled").close().await;

    let path = folder.path().join("no-tables.db");
    write_file(&path, "CREATE TABLE gone (a); DROP TABLE gone;").await;
    open(&path).await.expect("filled").close().await;
    assert_eq!(read_grains(&path).await, []);
}

#[tokio::test]
async fn the_file_is_locked_until_the_store_is_closed() {
    let (_folder, path) = folder();
    let store = open(&path).await.expect("created");
    let link = path.with_file_name("another-name.db");
    std::os::unix::fs::symlink(&path, &link).expect("linked");
    for name in [&path, &link] {
        let refused = open(name).await.expect_err("locked");
        assert!(matches!(refused, StoreError::InUse { .. }), "{refused:?}");
        let sentence = refused.to_string();
        assert!(sentence.contains(&format!("process {}", std::process::id())), "{sentence}");
        assert!(sentence.contains("granary.db.lock"), "{sentence}");
    }
    store.close().await;
    open(&path).await.expect("free again").close().await;
}

#[tokio::test]
async fn a_link_in_the_place_of_the_lock_costs_no_other_file_anything() {
    let (folder, path) = folder();
    open(&path).await.expect("created").close().await;
    let (lock, other) = (path.with_file_name("granary.db.lock"), folder.path().join("other"));
    fs_err::write(&other, "of the system").expect("written");
    let is_kept = || fs_err::read_to_string(&other).expect("it is there") == "of the system";
    for target in [&other, &folder.path().join("nothing")] {
        fs_err::remove_file(&lock).expect("removed");
        std::os::unix::fs::symlink(target, &lock).expect("linked");
        let opened = open(&path).await.expect_err("a link");
        let looked_at = FileState::of(&path).await.expect_err("a link");
        for refused in [opened, looked_at] {
            let sentence = with_causes(&refused);
            assert!(sentence.contains("granary.db.lock` is a link, and the lock is never one"), "{sentence}");
        }
        assert!(is_kept() && !fs_err::exists(folder.path().join("nothing")).expect("looked at"));
    }
    fs_err::remove_file(&lock).expect("removed");
    fs_err::hard_link(&other, &lock).expect("linked");
    let store = open(&path).await.expect("it locks by any file");
    let refused = open(&path).await.expect_err("locked");
    assert!(matches!(&refused, StoreError::InUse { holder, .. } if holder == "another process"), "{refused}");
    store.close().await;
    assert!(is_kept());
}

#[tokio::test]
async fn a_store_that_is_dropped_can_be_opened_again_at_once() {
    let (_folder, path) = folder();
    for round in 0..20 {
        let store = open(&path).await.expect("opened");
        let name = ModelName::parse(&format!("model-{round}")).expect("a name");
        store.record_active_model(&name).await.expect("recorded");
        drop(store);
    }
    let store = open(&path).await.expect("opened");
    let active = store.active_model().await.expect("readable").expect("recorded");
    assert_eq!(active.as_str(), "model-19");
}

#[tokio::test]
async fn the_active_model_survives_a_restart() {
    let (_folder, path) = folder();
    let store = open(&path).await.expect("created");
    assert_eq!(store.active_model().await.expect("readable"), None);
    for name in ["all-MiniLM-L6-v2", "BERT-base-uncased"] {
        store.record_active_model(&ModelName::parse(name).expect("a name")).await.expect("recorded");
    }
    store.close().await;

    let store = open(&path).await.expect("opened");
    Ledger::check(&store).await.expect("readable");
    let active = store.active_model().await.expect("readable").expect("recorded");
    assert_eq!(active.as_str(), "BERT-base-uncased", "the case is kept");
    store.close().await;
    let closed = store.active_model().await.expect_err("closed");
    assert_eq!(closed.action, "read");
}

#[tokio::test]
async fn a_job_that_comes_too_late_leaves_the_active_model_what_it_is() {
    let (_folder, path) = folder();
    let store = open(&path).await.expect("created");
    let space = DeclaredSpace::new("a-space", 2).expect("a space");
    store.declare_space(&space).await.expect("declared");
    let name = |name: &str| ModelName::parse(name).expect("a name");
    let job = |id: &str, model: &str| Reembedding {
        id: ReembeddingId::of(id),
        model: name(model),
        space: space.fingerprint().space(),
        selection: Filter::default(),
        throttle: 1.0,
        state: ReembeddingState::Queued,
        reason: None,
        done: 0,
        total: 0,
        previous_model: None,
        previous_order: None,
        old_vectors: OldVectors::Kept,
        created_us: 0,
        changed_us: 0,
        cut_over_us: None,
    };
    let added = store.add_reembedding(job("1", "first"), Some(name("first"))).await.expect("recorded");
    assert_eq!(added, Ok(()));
    let added = store.add_reembedding(job("2", "second"), Some(name("second"))).await.expect("answered");
    assert_eq!(added, Err(ReembeddingId::of("1")));
    store.close().await;

    let store = open(&path).await.expect("opened");
    assert_eq!(store.active_model().await.expect("readable"), Some(name("first")));
    assert_eq!(store.reembeddings().await.expect("readable"), [job("1", "first")]);
    store.close().await;
}

#[tokio::test]
async fn a_name_that_was_written_by_hand_is_reported() {
    let (_folder, path) = folder();
    open(&path).await.expect("created").close().await;
    write_file(&path, "INSERT INTO active_model VALUES (1, 'no slug', '2026-01-01T00:00:00Z')").await;
    let store = open(&path).await.expect("opened");
    let error = store.active_model().await.expect_err("not a name");
    let chain = with_causes(&error);
    assert!(chain.contains("`no slug` is not a model name"), "{chain}");
}

#[tokio::test]
async fn readers_work_beside_a_writer_and_cannot_write() {
    let (_folder, path) = folder();
    let store = open(&path).await.expect("created");
    let transaction = store.writer.begin_with("BEGIN IMMEDIATE").await.expect("begun");
    store.check().await.expect("readers do not wait");
    transaction.rollback().await.expect("rolled back");

    let write = "INSERT INTO active_model VALUES (1, 'm', 'now')";
    let refused = sqlx::query(write).execute(&store.readers).await.expect_err("readers only read");
    assert!(refused.to_string().contains("readonly"), "{refused}");
    for (pragma, value) in [("PRAGMA synchronous", 2), ("PRAGMA foreign_keys", 1)] {
        let set: i64 = sqlx::query_scalar(pragma).fetch_one(&store.writer).await.expect("readable");
        assert_eq!(set, value, "{pragma}");
    }
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&store.writer).await.expect("readable");
    assert_eq!(mode, "wal");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_readers_and_a_writer_never_meet_a_lock() {
    const WRITES: u32 = 200;
    let (_folder, path) = folder();
    let store = open(&path).await.expect("created");
    let is_written = std::sync::atomic::AtomicBool::new(false);
    let write = async {
        for n in 0..WRITES {
            let name = ModelName::parse(&format!("model-{n}")).expect("a name");
            store.record_active_model(&name).await.expect("written");
        }
        is_written.store(true, std::sync::atomic::Ordering::Release);
    };
    let read = || async {
        let mut newest = 0;
        while !is_written.load(std::sync::atomic::Ordering::Acquire) {
            let Some(name) = store.active_model().await.expect("read") else { continue };
            let seen: u32 = name.as_str().trim_start_matches("model-").parse().expect("a number");
            assert!(seen >= newest, "a reader went back from {newest} to {seen}");
            newest = seen;
        }
    };
    tokio::join!(write, read(), read());
    let last = store.active_model().await.expect("read").expect("written");
    assert_eq!(last.as_str(), format!("model-{}", WRITES - 1));
}

#[tokio::test]
async fn a_full_disk_is_told_apart() {
    let (_folder, path) = folder();
    let store = open(&path).await.expect("created");
    let mut writer = store.writer.acquire().await.expect("free");
    sqlx::query("PRAGMA max_page_count = 1").execute(&mut *writer).await.expect("set");
    let full = sqlx::query("REPLACE INTO identity (only, database, epoch) VALUES (1, hex(zeroblob(100000)), '')")
        .execute(&mut *writer)
        .await
        .expect_err("full");
    let full = StoreError::sql("write a grain", &path, full);
    assert!(matches!(full, StoreError::DiskFull { .. }), "{full:?}");
    let full = StoreError::files("write", &path, std::io::Error::from(std::io::ErrorKind::StorageFull));
    assert!(matches!(full, StoreError::DiskFull { .. }), "{full:?}");
    // A start or a command has ended when somebody reads that.
    assert!(full.to_string().ends_with("and anything else is to be started again"), "{full}");
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_written_is_not_said_to_be_a_copy_before_an_upgrade() {
    let (folder, path) = folder();
    let store = open(&path).await.expect("created");
    let target = folder.path().join("missing/snapshot.db");
    let refused = store.copy_to(&target, &CancellationToken::new()).await.expect_err("there is no folder");
    assert!(refused.to_string().contains("not possible to write a snapshot of the database"), "{refused}");
    store.close().await;
}

#[test]
fn a_wait_for_a_connection_in_vain_is_no_damage() {
    let busy = StoreError::sql("search for words", Path::new("granary.db"), sqlx::Error::PoolTimedOut);
    assert!(matches!(busy, StoreError::Overloaded { doing: "search for words", .. }), "{busy:?}");
    assert!(busy.to_string().contains("no free connection to search for words"), "{busy}");
}

/// A migration that has landed is in somebody's file: its checksum is recorded there. Add a new one instead.
#[test]
fn landed_migrations_are_frozen() {
    let landed: Vec<(i64, &[u8])> =
        MIGRATOR.iter().map(|migration| (migration.version, &migration.checksum[..4])).collect();
    assert_eq!(
        format!("{landed:x?}"),
        "[(1, [c2, 92, 8a, b]), (2, [a0, e3, 2, 3]), (3, [11, de, a5, 1]), (4, [73, 4f, 60, f2]), (5, [e3, 80, 8e, 0]), \
         (6, [c2, ba, 64, fa]), (7, [99, 3f, 95, 7e]), (8, [9, cc, d0, aa]), \
         (9, [ea, df, 2b, e0]), (a, [1d, b, 1c, 3])]"
    );
}

#[test]
fn opening_can_be_awaited_by_any_task() {
    fn assert_send<T: Send>(_: T) {}
    assert_send(SqliteStore::open(OpenOptions::at("unused")));
}

#[tokio::test]
async fn a_transaction_that_sqlite_ended_by_itself_takes_no_later_one_along() {
    let (folder, _) = folder();
    let store = open(&folder.path().join("granary.db")).await.expect("created");
    let write = "UPDATE space_order SET spaces = ?";
    for round in ["1", "2", "3"] {
        let mut ended = store.writer.begin().await.expect("begun");
        sqlx::query(write).bind("lost").execute(&mut *ended).await.expect("written");
        // What SQLite does when the disk is full.
        sqlx::raw_sql("ROLLBACK").execute(&mut *ended).await.expect("rolled back");
        drop(ended);
        let mut refused = store.writer.begin().await.expect("begun");
        sqlx::query(write).bind("lost").execute(&mut *refused).await.expect("written");
        drop(refused);
        let mut whole = store.writer.begin().await.expect("begun");
        sqlx::query(write).bind(round).execute(&mut *whole).await.expect("written");
        whole.commit().await.expect("committed");
        let found: String =
            sqlx::query_scalar("SELECT spaces FROM space_order").fetch_one(&store.readers).await.expect("read");
        assert_eq!(found, round, "others see what was committed");
    }
    store.close().await;
}

#[tokio::test]
async fn an_answer_of_long_ago_does_not_count_and_is_replaced_or_forgotten() {
    let (_folder, path) = folder();
    let store = open(&path).await.expect("created");
    let key = ReceiptKey { caller: String::new(), key: "key".to_owned() };
    let write = async |now_us: i64, since_us: i64| {
        let answer = Box::new(move |_: &[Applied]| format!("at {now_us}"));
        let receipt = NewReceipt { key: key.clone(), request: "request".to_owned(), since_us, answer };
        let (atomicity, makers) = (Atomicity::Each, Makers::default());
        let batch = Batch { changes: Vec::new(), atomicity, makers, receipt: Some(receipt) };
        match store.write(batch, now_us).await.expect("written") {
            Committed::Answered(earlier) => Some(earlier.answer),
            _ => None,
        }
    };
    assert_eq!(write(100, 0).await, None);
    assert_eq!(write(200, 100).await.as_deref(), Some("at 100"), "as old as it may be");
    assert!(store.receipt(&key, 100).await.expect("read").is_some());
    assert!(store.receipt(&key, 101).await.expect("read").is_none());
    assert_eq!(write(300, 101).await, None, "it is too old");
    let receipt = store.receipt(&key, i64::MIN).await.expect("read").expect("the later one");
    assert_eq!(receipt.answer, "at 300");
    store.forget_receipts(300).await.expect("forgotten");
    assert!(store.receipt(&key, i64::MIN).await.expect("read").is_some(), "as old as it may be");
    store.forget_receipts(301).await.expect("forgotten");
    assert!(store.receipt(&key, i64::MIN).await.expect("read").is_none());
    store.close().await;
}

#[tokio::test]
async fn a_read_that_takes_too_long_is_interrupted_and_the_database_is_not_away_meanwhile() {
    let (folder, _) = folder();
    let path = folder.path().join("granary.db");
    let options = OpenOptions { read_timeout: Duration::from_millis(200), ..OpenOptions::at(&path) };
    let n_readers = options.readers.get();
    let store = SqliteStore::open(options).await.expect("created");
    let endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    let reads = (0..n_readers).map(|_| sqlx::query_scalar::<_, i64>(endless).fetch_one(&store.readers));
    let (ended, is_there) = tokio::join!(futures::future::join_all(reads), store.check());
    is_there.expect("a database that is busy is there");
    for end in ended {
        let error = StoreError::sql("count", &path, end.expect_err("it has no end"));
        assert!(matches!(error, StoreError::TooSlow { .. }), "{error:?}");
    }
    for _ in 0..n_readers {
        let one: i64 = sqlx::query_scalar("SELECT 1").fetch_one(&store.readers).await.expect("reading goes on");
        assert_eq!(one, 1);
    }
    store.close().await;
}

#[tokio::test]
async fn each_connection_keeps_pages_of_its_own() {
    let (_folder, path) = folder();
    let store = open(&path).await.expect("opened");
    let options = sqlx::query_scalar("PRAGMA compile_options").fetch_all(&store.readers).await;
    let options: Vec<String> = options.expect("read");
    assert!(options.iter().any(|option| option == "ENABLE_FTS5"), "{options:?}");
    let shared = options.iter().any(|option| option == "ENABLE_MEMORY_MANAGEMENT");
    assert!(!shared, "`.cargo/config.toml` was not read");
    store.close().await;
}

#[tokio::test]
async fn what_no_caller_waits_for_may_take_its_time() {
    const GRAINS: i64 = 20_000;
    let (_folder, path) = folder();
    open(&path).await.expect("created").close().await;
    write_file(
        &path,
        "INSERT INTO grains (id, text, created_at, updated_at, created_us, updated_us) \
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) SELECT i, '', '', '', 0, 0 FROM n",
    )
    .await;
    let options = OpenOptions { read_timeout: Duration::ZERO, ..OpenOptions::at(&path) };
    let store = SqliteStore::open(options).await.expect("opened");
    let error = store.count(Filter::default(), vec![Facet::Space]).await.expect_err("it has no time");
    assert!(matches!(error, StoreError::TooSlow { .. }), "{error:?}");

    let space = DeclaredSpace::new("a-space", 2).expect("a space").fingerprint().space();
    let lacking = Lacking { space, filter: Filter::default(), unless_failed_in: None, among: None };
    assert_eq!(store.count_lacking(lacking.clone()).await.expect("counted"), GRAINS.unsigned_abs());
    let last = store.lacking(lacking, GRAINS - 1, 64).await.expect("found");
    assert_eq!(last.iter().map(|grain| grain.number).collect::<Vec<_>>(), [GRAINS]);
    assert!(store.served_by_maker().await.expect("counted").is_empty());
    assert_eq!(store.sample(2).await.expect("drawn").len(), 2);

    store.close().await;
}

#[tokio::test]
async fn long_reads_leave_a_reader_to_short_ones() {
    let (_folder, path) = folder();
    let store = open(&path).await.expect("created");
    let mut long = Vec::new();
    while let Ok(reader) = tokio::time::timeout(Duration::from_millis(200), store.callers_reader()).await {
        long.push(reader.expect("a reader"));
    }
    assert_eq!(long.len() + 1, OpenOptions::at(&path).readers.get() as usize);
    assert!(store.spaces().await.expect("read beside them").is_empty());
    drop(long);
    store.close().await;
}

#[tokio::test]
async fn nothing_is_read_for_a_caller_who_has_left() {
    let endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    let (_folder, path) = folder();
    let store = open(&path).await.expect("created");
    for reader in [store.callers_reader().await, store.patient_reader().await] {
        let read = async {
            let (mut reader, _interest) = reader.expect("a reader");
            sqlx::query_scalar::<_, i64>(endless).fetch_one(&mut *reader).await.expect("it has no end")
        };
        tokio::time::timeout(Duration::from_millis(200), read).await.expect_err("it goes on");
    }
    tokio::time::timeout(Duration::from_secs(10), store.close()).await.expect("they were interrupted");
}
