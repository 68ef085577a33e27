//! A file that an older version wrote.

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::recognise::{Recognised, recognise};
use super::super::{MIGRATOR, latest_version, restore};
use super::*;
use crate::grains::store::VectorStore;

fn copy_of(path: &Path) -> PathBuf {
    beside(path, &format!(".before-v{}", latest_version()))
}

async fn assert_upgraded(path: &Path, grains: &[OldGrain]) {
    assert_eq!(recognise(path).await.expect("ours"), Recognised::Recorded(latest_version()));
    assert!(read_grains(path).await == *grains, "every byte of every grain is as it was");
    let labelled = "SELECT count(*) FROM grains WHERE old_model IS NOT NULL OR old_dimensions IS NOT NULL";
    assert_eq!(scalar(path, labelled).await, 0, "nobody knows which model made an old vector");
    assert_eq!(scalar(path, "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check <> 'ok'").await, 0);
}

/// How many grains have a word.
async fn n_with(path: &Path, term: &str) -> i64 {
    let query = sqlx::query_scalar("SELECT ifnull(sum(doc), 0) FROM grain_vocabulary WHERE term = ?").bind(term);
    query.fetch_one(&mut connect_to(path).await).await.expect("counted")
}

#[tokio::test]
async fn a_v1_file_is_copied_and_upgraded_once() {
    let (folder, path) = folder();
    let grains = old_grains();
    write_v1(&path, &grains).await;
    assert_eq!(recognise(&path).await.expect("ours"), Recognised::Unrecorded(1));

    open(&path).await.expect("upgraded").close().await;
    assert_upgraded(&path, &grains).await;
    let copy = copy_of(&path);
    assert_eq!(names_in(folder.path()), ["granary.db", "granary.db.before-v10", "granary.db.lock"]);
    assert_eq!(fs_err::metadata(&copy).expect("a copy").permissions().mode() & 0o777, 0o600);
    assert_eq!(recognise(&copy).await.expect("ours"), Recognised::Unrecorded(1));
    assert!(read_grains(&copy).await == grains);

    let mut before = files_in(folder.path());
    open(&path).await.expect("opened").close().await;
    let mut after = files_in(folder.path());
    // It says since when the file is in use.
    before.remove("granary.db.lock");
    after.remove("granary.db.lock");
    assert!(before == after, "the second start does nothing");
}

#[tokio::test]
async fn a_v2_file_is_upgraded_with_the_labels_it_has() {
    let (_folder, path) = folder();
    let grains = old_grains();
    write_v2(&path, &grains).await;
    write_file(&path, "UPDATE grains SET embedding_model = 'm', embedding_dimensions = 384 WHERE rowid = 2").await;
    assert_eq!(recognise(&path).await.expect("ours"), Recognised::Unrecorded(2));
    open(&path).await.expect("upgraded").close().await;
    assert!(read_grains(&path).await == grains);
    let labelled = "SELECT count(*) FROM grains WHERE old_model = 'm' AND old_dimensions = 384";
    assert_eq!(scalar(&path, labelled).await, 1);
    assert_eq!(recognise(&path).await.expect("ours"), Recognised::Recorded(latest_version()));
}

#[tokio::test]
async fn a_recorded_older_version_is_copied_and_upgraded() {
    let (_folder, path) = folder();
    let mut connection = connect_to(&path).await;
    MIGRATOR.run_to(2, &mut connection).await.expect("migrated");
    insert(&mut connection, &old_grains()).await;
    connection.close().await.expect("closed");
    assert_eq!(recognise(&path).await.expect("ours"), Recognised::Recorded(2));

    open(&path).await.expect("upgraded").close().await;
    assert_upgraded(&path, &old_grains()).await;
    assert_eq!(recognise(&copy_of(&path)).await.expect("ours"), Recognised::Recorded(2));
}

#[tokio::test]
async fn words_get_into_their_index_and_again_when_the_rules_are_others() {
    let (_folder, path) = folder();
    write_v1(&path, &old_grains()).await;
    write_file(&path, "UPDATE grains SET text = CAST(x'68656c6c6fff20e4b8ade69687' AS TEXT) WHERE rowid = 3").await;
    // Longer than what is cut at once.
    let long = "UPDATE grains SET text = 'long ' || replace(hex(zeroblob(2500000)), '00', 'a ') WHERE rowid IN (4, 9)";
    write_file(&path, long).await;
    open(&path).await.expect("upgraded").close().await;
    for (term, n) in [("世界", 10), ("grusse", 10), ("plain", 10), ("hello", 1), ("中文", 1), ("long", 3), ("lost", 0)]
    {
        assert_eq!(n_with(&path, term).await, n, "{term}");
    }

    let of_other_rules = "DELETE FROM grain_words; INSERT INTO grain_words (rowid, terms) VALUES (1, 'lost'); UPDATE word_rules SET version = 0";
    write_file(&path, of_other_rules).await;
    assert_eq!((n_with(&path, "lost").await, n_with(&path, "世界").await), (1, 0));
    open(&path).await.expect("opened").close().await;
    assert_eq!((n_with(&path, "lost").await, n_with(&path, "世界").await, n_with(&path, "hello").await), (0, 10, 1));
}

#[tokio::test]
async fn indexes_and_statistics_do_not_make_a_file_foreign() {
    let (_folder, path) = folder();
    write_v1(&path, &old_grains()).await;
    write_file(&path, "CREATE INDEX grains_by_time ON grains (created_at); ANALYZE;").await;
    open(&path).await.expect("upgraded").close().await;
    assert_upgraded(&path, &old_grains()).await;
}

#[tokio::test]
async fn what_only_the_write_ahead_log_holds_is_kept() {
    let (folder, path) = folder();
    let grains = old_grains();
    write_v1_with_hot_log(&path, &grains).await;
    let before = files_in(folder.path());
    assert_eq!(recognise(&path).await.expect("ours"), Recognised::Unrecorded(1));
    assert!(files_in(folder.path()) == before, "looking changes nothing and leaves nothing");

    open(&path).await.expect("upgraded").close().await;
    assert_upgraded(&path, &grains).await;
    assert!(read_grains(&copy_of(&path)).await == grains, "the copy has them too");
}

#[tokio::test]
async fn a_transaction_that_was_cut_off_is_rolled_back() {
    let (folder, path) = folder();
    let grains = old_grains();
    let prepare = async |connection: &mut SqliteConnection| {
        run(connection, V1).await;
        insert(connection, &old_grains()).await;
    };
    write_with_hot_journal(&path, "UPDATE grains SET text = 'lost', vector = zeroblob(5000)", prepare).await;
    let before = files_in(folder.path());
    assert!(before["granary.db"].windows(4).any(|bytes| bytes == b"lost"), "the file itself is half way");
    assert_eq!(recognise(&path).await.expect("ours"), Recognised::Unrecorded(1));
    assert!(files_in(folder.path()) == before, "looking changes nothing and leaves nothing");

    open(&path).await.expect("upgraded").close().await;
    assert_upgraded(&path, &grains).await;
}

#[tokio::test]
async fn a_finished_copy_is_never_overwritten() {
    let (folder, path) = folder();
    write_v1(&path, &old_grains()).await;
    open(&path).await.expect("upgraded").close().await;
    let first = fs_err::read(copy_of(&path)).expect("a copy");

    // Restored, upgraded again: the same copy serves.
    fs_err::copy(copy_of(&path), &path).expect("restored");
    open(&path).await.expect("upgraded").close().await;
    assert_eq!(names_in(folder.path()), ["granary.db", "granary.db.before-v10", "granary.db.lock"]);

    // Restored, used by version 0.3, upgraded again: both states are kept.
    fs_err::copy(copy_of(&path), &path).expect("restored");
    write_file(&path, "DELETE FROM grains WHERE rowid > 40").await;
    let used = read_grains(&path).await;
    open(&path).await.expect("upgraded").close().await;
    assert!(fs_err::read(copy_of(&path)).expect("a copy") == first);
    assert!(read_grains(&folder.path().join("granary.db.before-v10.2")).await == used);
}

#[tokio::test]
async fn the_copy_is_restored_as_it_was_although_a_crash_left_the_log_of_the_upgraded_file() {
    let (_elsewhere, original) = folder();
    let (folder, path) = folder();
    let grains = old_grains();
    write_v1(&original, &grains).await;
    let store = open(&original).await.expect("upgraded");
    sqlx::query("UPDATE grains SET old_vector = NULL").execute(&store.writer).await.expect("written");
    copy_as_if_crashed(&original, &path);
    fs_err::rename(copy_of(&original), copy_of(&path)).expect("moved");
    store.close().await;
    let log = fs_err::read(beside(&path, "-wal")).expect("a log");
    assert!(!log.is_empty());

    let replaced = restore(&path, &copy_of(&path)).await.expect("restored").expect("there was one");
    assert!(!names_in(folder.path()).contains(&"granary.db-wal".to_owned()), "SQLite would read it");
    assert_eq!(recognise(&path).await.expect("ours"), Recognised::Unrecorded(1));
    assert!(read_grains(&path).await == grains);
    assert!(fs_err::read(beside(&replaced, "-wal")).expect("kept") == log);
    assert_eq!(scalar(&replaced, "SELECT count(*) FROM grains WHERE old_vector IS NOT NULL").await, 0);

    open(&path).await.expect("upgraded again").close().await;
    assert_upgraded(&path, &grains).await;
    assert!(!names_in(folder.path()).contains(&"granary.db.before-v10.2".to_owned()), "the same copy serves");
}

#[tokio::test]
async fn an_interrupted_copy_is_made_again() {
    let (folder, path) = folder();
    write_v1(&path, &old_grains()).await;
    for leftover in ["granary.db.before-v10.partial", "granary.db.before-v10.partial-journal"] {
        fs_err::write(folder.path().join(leftover), "half a copy").expect("written");
    }
    fs_err::create_dir(folder.path().join("granary.db.view")).expect("created");
    fs_err::write(folder.path().join("granary.db.view/db"), "half a view").expect("written");
    write_file(&path, "PRAGMA journal_mode = WAL").await;
    open(&path).await.expect("upgraded").close().await;
    assert!(read_grains(&copy_of(&path)).await == old_grains());
    assert_eq!(
        fs_err::read_dir(folder.path())
            .expect("a folder")
            .filter(|entry| {
                let name = entry.as_ref().expect("an entry").file_name();
                name.to_string_lossy().contains("partial")
            })
            .count(),
        0
    );
}

#[tokio::test]
async fn a_damaged_file_is_not_upgraded() {
    let (folder, path) = folder();
    write_v1(&path, &old_grains()).await;
    let mut bytes = fs_err::read(&path).expect("a file");
    // The first page declares the table, and the pages of its rows are gone.
    bytes[4096..40_960].fill(0xa5);
    fs_err::write(&path, &bytes).expect("written");
    let refused = open(&path).await.expect_err("damaged");
    assert!(matches!(refused, StoreError::Damaged { .. }), "{refused:?}");
    assert!(fs_err::read(&path).expect("a file") == bytes);
    assert_eq!(names_in(folder.path()), ["granary.db", "granary.db.lock"], "no copy of a damaged file");
}

#[tokio::test]
async fn a_file_that_another_program_is_reading_is_not_upgraded() {
    let (_folder, path) = folder();
    write_v1(&path, &old_grains()).await;
    let before = fs_err::read(&path).expect("a file");
    let mut other = connect_to(&path).await;
    run(&mut other, "BEGIN; SELECT count(*) FROM grains").await;
    let refused = open(&path).await.expect_err("in use");
    assert!(matches!(refused, StoreError::Busy { source: Some(_), .. }), "{refused:?}");
    assert!(fs_err::read(&path).expect("a file") == before);
    run(&mut other, "COMMIT").await;
    other.close().await.expect("closed");
    open(&path).await.expect("upgraded").close().await;
    assert_upgraded(&path, &old_grains()).await;
}

#[tokio::test]
async fn an_old_vector_is_read_with_its_own_grain_while_others_lose_theirs() {
    let (_folder, path) = folder();
    let grains = old_grains();
    write_v1(&path, &grains).await;
    let store = open(&path).await.expect("upgraded");
    let is_written = AtomicBool::new(false);
    let write = async {
        for number in 1..=50_i64 {
            let adopted = sqlx::query("UPDATE grains SET old_vector = NULL WHERE number = ?").bind(number);
            adopted.execute(&store.writer).await.expect("written");
        }
        is_written.store(true, Ordering::Release);
    };
    let read = async {
        while !is_written.load(Ordering::Acquire) {
            for (numbered, vector) in store.old_vectors(0, 256).await.expect("read") {
                let id = numbered.grain.id.as_str();
                let own = grains.iter().find(|grain| grain.id == id.as_bytes()).expect("a grain of the file");
                assert!(own.vector.as_ref() == Some(&vector), "the vector of `{id}` is another's");
            }
        }
    };
    tokio::join!(write, read);
    store.close().await;
}
