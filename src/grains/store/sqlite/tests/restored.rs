//! A snapshot in place of a database.

use super::super::restore::RESTORING;
use super::super::{FileState, restore};
use super::*;

#[tokio::test]
async fn a_database_whose_restore_was_cut_off_is_not_opened_without_its_log_and_lends_it_to_no_other() {
    let (folder, path) = folder();
    let snapshot = folder.path().join("snapshot.db");
    open(&snapshot).await.expect("created").close().await;
    write_v1_with_hot_log(&path, &old_grains()).await;
    let log = fs_err::read(beside(&path, "-wal")).expect("a log");
    // The file has its other name already, and its log is still here.
    fs_err::rename(&path, beside(&path, ".replaced.1")).expect("moved");
    let before = names_in(folder.path());
    let refused = open(&path).await.expect_err("the log is of a database that is not here");
    assert!(refused.to_string().contains("missing, although the `-wal`"), "{refused}");
    assert_eq!(names_in(folder.path()), before, "nothing was made in its place");

    assert_eq!(restore(&path, &snapshot).await.expect("restored"), None);
    assert!(!names_in(folder.path()).contains(&"granary.db-wal".to_owned()), "SQLite would read it");
    assert!(fs_err::read(beside(&path, ".replaced.2-wal")).expect("kept") == log);
    assert_eq!(read_grains(&path).await, []);
    open(&path).await.expect("a database").close().await;
}

#[tokio::test]
async fn what_was_there_before_is_kept_with_its_log() {
    let (folder, path) = folder();
    let snapshot = folder.path().join("snapshot.db");
    open(&snapshot).await.expect("created").close().await;
    let grains = old_grains();
    write_v1_with_hot_log(&path, &grains).await;
    let replaced = restore(&path, &snapshot).await.expect("restored").expect("there was one");
    assert_eq!(replaced, beside(&path, ".replaced.1"));
    assert!(read_grains(&replaced).await == grains, "the last of them are in the log");
    assert_eq!(read_grains(&path).await, []);
}

#[tokio::test]
async fn a_restored_database_belongs_to_whoever_had_the_one_before_it() {
    use std::os::unix::fs::{MetadataExt, chown};
    let (folder, path) = folder();
    let snapshot = folder.path().join("snapshot.db");
    open(&snapshot).await.expect("created").close().await;
    if chown(folder.path(), Some(7), Some(8)).is_err() {
        println!("skipped: only root can give files to other users");
        return;
    }
    let lock = beside(&path, ".lock");
    let owner_of = |path: &Path| {
        let metadata = fs_err::metadata(path).expect("it is there");
        (metadata.uid(), metadata.gid())
    };
    assert_eq!(restore(&path, &snapshot).await.expect("restored"), None);
    assert_eq!((owner_of(&path), owner_of(&lock)), ((7, 8), (7, 8)), "the folder's owner");

    chown(&path, Some(9), Some(10)).expect("given away");
    fs_err::remove_file(&lock).expect("removed");
    let replaced = restore(&path, &snapshot).await.expect("restored").expect("there was one");
    assert_eq!([&path, &replaced, &lock].map(|path| owner_of(path)), [(9, 10); 3], "the old database's owner");
    open(&path).await.expect("a database").close().await;

    // Cut off after the old one had its other name.
    fs_err::rename(&path, beside(&path, RESTORING)).expect("moved");
    restore(&path, &snapshot).await.expect("restored");
    assert_eq!(owner_of(&path), (9, 10), "the owner of what the restore before it has copied");
}

#[tokio::test]
async fn a_restore_that_was_cut_off_leaves_the_old_database_or_none_and_never_a_new_one() {
    let (folder, path) = folder();
    let snapshot = folder.path().join("snapshot.db");
    open(&snapshot).await.expect("created").close().await;
    // Stopped in order: there is no log that would tell.
    open(&path).await.expect("created").close().await;
    fs_err::write(beside(&path, RESTORING), "the beginning of a snapshot").expect("written");
    open(&path).await.expect("it is whole, and the copy is not").close().await;

    fs_err::rename(&path, beside(&path, ".replaced.1")).expect("moved");
    let before = names_in(folder.path());
    let refused = open(&path).await.expect_err("the database is away");
    assert!(matches!(refused, StoreError::CutOff { .. }), "{refused}");
    let refused = FileState::of(&path).await.expect_err("the same");
    assert!(refused.to_string().contains("repeat `granary snapshot restore FILE`"), "{refused}");
    assert_eq!(names_in(folder.path()), before, "nothing was made in its place");

    let replaced = restore(&path, &snapshot).await.expect("restored");
    assert_eq!(replaced, Some(beside(&path, ".replaced.1")), "it was moved by the restore that was cut off");
    assert!(!names_in(folder.path()).contains(&"granary.db.restoring".to_owned()));
    open(&path).await.expect("a database").close().await;

    // Somebody has deleted the first, and its number is given again.
    fs_err::rename(beside(&path, ".replaced.1"), beside(&path, ".replaced.2")).expect("moved");
    tokio::time::sleep(std::time::Duration::from_millis(50)).await; // the clock of files has ticked
    fs_err::rename(&path, beside(&path, ".replaced.1")).expect("moved");
    fs_err::write(beside(&path, RESTORING), "the beginning of a snapshot").expect("written");
    let replaced = restore(&path, &snapshot).await.expect("restored");
    assert_eq!(replaced, Some(beside(&path, ".replaced.1")), "the last one");
    // Whoever deletes the database themselves is told of no other.
    fs_err::remove_file(&path).expect("deleted");
    assert_eq!(restore(&path, &snapshot).await.expect("restored"), None);
}

#[tokio::test]
async fn what_a_restore_has_copied_is_not_written_over_by_itself() {
    let (folder, path) = folder();
    let link = folder.path().join("link.db");
    for copy in [beside(&path, RESTORING), beside(&path, ".restoring.partial")] {
        open(&copy).await.expect("created").close().await;
        let whole = fs_err::read(&copy).expect("a copy");
        std::os::unix::fs::symlink(&copy, &link).expect("linked");
        for snapshot in [&copy, &link] {
            let refused = restore(&path, snapshot).await.expect_err("it would be copied onto itself");
            assert!(matches!(refused, StoreError::NoSnapshot { .. }), "{refused}");
            assert!(fs_err::read(&copy).expect("still here") == whole);
        }
        fs_err::remove_file(&link).expect("removed");
    }
}

#[tokio::test]
async fn what_no_database_can_be_made_of_is_refused_in_words_that_fit_it() {
    let (folder, path) = folder();
    let [junk, empty, truncated] = ["junk.pem", "empty.db", "truncated.db"].map(|name| folder.path().join(name));
    fs_err::write(&junk, "-----BEGIN CERTIFICATE-----").expect("written");
    fs_err::write(&empty, "").expect("written");
    write_v1(&truncated, &old_grains()).await;
    let whole = fs_err::read(&truncated).expect("a file");
    fs_err::write(&truncated, &whole[..whole.len() / 2]).expect("written");
    for (file, found) in [
        (junk.as_path(), "it is not an SQLite database"),
        (&empty, "it is an empty file"),
        (&truncated, "it is damaged"),
        (folder.path(), "it is a folder"),
    ] {
        let refused = restore(&path, file).await.expect_err("no snapshot");
        let sentence = refused.to_string();
        assert!(sentence.contains("is no snapshot that can be restored: ") && sentence.contains(found), "{sentence}");
        assert!(!sentence.contains("grains.database_url") && !sentence.contains("restore it from"), "{sentence}");
    }
    assert!(!fs_err::exists(&path).expect("looked at"));
}

#[tokio::test]
async fn a_snapshot_with_a_log_is_restored_by_one_at_a_time() {
    let (folder, path) = folder();
    let [logged, other] = ["logged.db", "other.db"].map(|name| folder.path().join(name));
    let grains = old_grains();
    write_v1_with_hot_log(&logged, &grains).await;
    let (first, second) = tokio::join!(restore(&path, &logged), restore(&other, &logged));
    first.expect("restored");
    let refused = second.expect_err("both would look at it in one folder");
    assert!(matches!(&refused, StoreError::InUse { path, .. } if path.ends_with("logged.db")), "{refused}");
    restore(&other, &logged).await.expect("restored, once the first was");
    assert!(read_grains(&path).await == grains && read_grains(&other).await == grains);
    assert!(names_in(folder.path()).iter().all(|name| !name.starts_with("logged.db.")), "nothing stays beside it");
}

#[tokio::test]
async fn what_a_crash_left_beside_a_snapshot_is_restored_with_it() {
    let (folder, path) = folder();
    let grains = old_grains();
    let (logged, cut_off) = (folder.path().join("logged.db"), folder.path().join("cut_off.db"));
    write_v1_with_hot_log(&logged, &grains).await;
    let prepare = async |connection: &mut SqliteConnection| {
        run(connection, V1).await;
        insert(connection, &grains).await;
    };
    write_with_hot_journal(&cut_off, "UPDATE grains SET text = 'lost', vector = zeroblob(5000)", prepare).await;
    let link = folder.path().join("link.db");
    std::os::unix::fs::symlink(&logged, &link).expect("linked");
    let before = files_in(folder.path());
    for snapshot in [&logged, &cut_off, &link] {
        restore(&path, snapshot).await.expect("restored");
        assert!(read_grains(&path).await == grains, "{}", snapshot.display());
    }
    let mut after = files_in(folder.path());
    after.retain(|name, _| !name.starts_with("granary.db"));
    assert!(after == before, "the snapshots are as they were, and nothing is beside them");
}

#[tokio::test]
async fn a_database_in_use_is_no_snapshot() {
    let (folder, path) = folder();
    let other = folder.path().join("other.db");
    let store = open(&other).await.expect("created");
    let refused = restore(&path, &other).await.expect_err("a server writes to it");
    assert!(matches!(&refused, StoreError::InUse { path, .. } if path.ends_with("other.db")), "{refused}");
    assert!(!fs_err::exists(&path).expect("looked at"));
    store.close().await;
    restore(&path, &other).await.expect("restored");
}

#[tokio::test]
async fn a_database_does_not_take_its_own_place() {
    let (folder, path) = folder();
    open(&path).await.expect("created").close().await;
    let link = folder.path().join("link.db");
    std::os::unix::fs::symlink(&path, &link).expect("linked");
    let before = names_in(folder.path());
    for snapshot in [&path, &link] {
        let refused = restore(&path, snapshot).await.expect_err("nothing would be other than before");
        assert!(refused.to_string().contains("it is the database itself"), "{refused}");
    }
    assert_eq!(names_in(folder.path()), before, "nothing has another name or is left behind");
}

#[tokio::test]
async fn a_pipe_in_the_place_of_a_lock_keeps_nobody_waiting() {
    use rustix::fs::{CWD, Mode, mkfifoat};
    let (folder, path) = folder();
    let snapshot = folder.path().join("snapshot.db");
    open(&snapshot).await.expect("created").close().await;
    for locked in [&path, &snapshot] {
        let lock = beside(locked, ".lock");
        let _ = fs_err::remove_file(&lock);
        mkfifoat(CWD, &lock, Mode::RUSR | Mode::WUSR).expect("a pipe");
    }
    restore(&path, &snapshot).await.expect("a lock can be had on it as on any file");
}

#[tokio::test]
async fn a_database_that_a_link_leads_to_is_replaced_where_it_is() {
    let (folder, path) = folder();
    let snapshot = folder.path().join("snapshot.db");
    open(&snapshot).await.expect("created").close().await;
    let link = folder.path().join("link.db");
    std::os::unix::fs::symlink("granary.db", &link).expect("linked");
    let store = open(&link).await.expect("created where the link leads to");
    let refused = restore(&link, &snapshot).await.expect_err("a server has it");
    assert!(matches!(refused, StoreError::InUse { .. }), "{refused}");
    store.close().await;

    assert_eq!(restore(&link, &snapshot).await.expect("restored"), Some(beside(&path, ".replaced.1")));
    assert!(fs_err::symlink_metadata(&link).expect("still here").is_symlink());
    open(&link).await.expect("a database").close().await;

    // Cut off: the file has its other name already.
    fs_err::rename(&path, beside(&path, ".replaced.2")).expect("moved");
    fs_err::write(beside(&path, RESTORING), "the snapshot").expect("written");
    let refused = open(&link).await.expect_err("the database is away");
    assert!(matches!(refused, StoreError::CutOff { .. }), "{refused}");
    let refused = FileState::of(&link).await.expect_err("the same");
    assert!(matches!(refused, StoreError::CutOff { .. }), "{refused}");
}

#[tokio::test]
async fn what_is_no_database_of_sqlite_is_not_moved_away() {
    let (folder, path) = folder();
    let snapshot = folder.path().join("snapshot.db");
    open(&snapshot).await.expect("created").close().await;
    fs_err::write(&path, "of the system, and none of Granary's").expect("written");
    let before = names_in(folder.path());
    let refused = restore(&path, &snapshot).await.expect_err("the settings may name any file");
    let sentence = refused.to_string();
    assert!(sentence.contains("not an SQLite database") && sentence.contains("move the file away"), "{sentence}");
    assert_eq!(names_in(folder.path()), before, "nothing has another name or is left behind");
    fs_err::remove_file(&path).expect("removed");
    fs_err::create_dir(&path).expect("made");
    let refused = restore(&path, &snapshot).await.expect_err("a folder");
    assert!(matches!(refused, StoreError::Foreign { .. }), "{refused}");
    fs_err::remove_dir(&path).expect("it is where it was");

    // What a snapshot is for.
    for damaged in [&b"SQLite format 3\0, and no more of it"[..], b""] {
        fs_err::write(&path, damaged).expect("written");
        let replaced = restore(&path, &snapshot).await.expect("restored").expect("there was one");
        assert_eq!(fs_err::read(&replaced).expect("kept"), damaged);
    }
    // Cut off while its first page was written.
    fs_err::write(&path, "half a page").expect("written");
    fs_err::write(beside(&path, "-journal"), "what it was").expect("written");
    let replaced = restore(&path, &snapshot).await.expect("restored").expect("there was one");
    assert_eq!(fs_err::read(beside(&replaced, "-journal")).expect("kept"), b"what it was");
}

#[tokio::test]
async fn a_link_to_the_database_that_somebody_else_has_made_is_not_followed() {
    use std::os::unix::fs::lchown;
    let (folder, path) = folder();
    let snapshot = folder.path().join("snapshot.db");
    open(&snapshot).await.expect("created").close().await;
    let other = folder.path().join("other");
    fs_err::write(&other, "of the system").expect("written");
    std::os::unix::fs::symlink(&other, &path).expect("linked");
    if lchown(&path, Some(7), None).is_err() {
        println!("skipped: only root can give files to other users");
        return;
    }
    let before = names_in(folder.path());
    let refused = restore(&path, &snapshot).await.expect_err("it may lead anywhere");
    let sentence = with_causes(&refused);
    assert!(sentence.contains("granary.db` is a link of the user 7"), "{sentence}");
    assert_eq!(names_in(folder.path()), before, "nothing has another name");
    assert_eq!(fs_err::read_to_string(&other).expect("it is there"), "of the system");
}
