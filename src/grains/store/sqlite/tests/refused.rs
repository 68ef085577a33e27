//! A file that is not ours, or newer: refused, and not one byte of it changed.

use super::super::latest_version;
use super::super::recognise::Stamps;
use super::*;

/// Opens what must be refused; answers with the error's sentences.
async fn refused(path: &Path) -> (StoreError, String) {
    let folder = path.parent().expect("a folder");
    let before = files_in(folder);
    let refused = open(path).await.expect_err("refused");
    assert!(files_in(folder) == before, "the folder is as it was");
    let chain = with_causes(&refused);
    assert!(chain.contains(&*path.to_string_lossy()), "{chain}");
    (refused, chain)
}

async fn refused_as_foreign(path: &Path) -> String {
    let (error, chain) = refused(path).await;
    assert!(matches!(error, StoreError::Foreign { .. }), "{chain}");
    chain
}

#[tokio::test]
async fn other_programs_databases() {
    let v1_and = |sql: &str| format!("{V1};{sql}");
    let v2 = MIGRATOR.iter().nth(1).expect("a migration").sql.as_str();
    let many_tables = ('a'..='z').map(|name| ["CREATE TABLE ", &String::from(name), " (a);"].concat()).collect();
    for (sql, found) in [
        ("CREATE TABLE moz_places (id INTEGER PRIMARY KEY, url TEXT)".to_owned(), "`moz_places`"),
        (v1_and("ALTER TABLE grains ADD COLUMN note TEXT"), "`note TEXT` as column 7, where Granary has nothing"),
        (
            v1_and("ALTER TABLE grains DROP COLUMN vector"),
            "`meta TEXT NOT NULL` as column 3, where Granary has `vector",
        ),
        (v1_and("ALTER TABLE grains DROP COLUMN updated_at"), "nothing as column 6"),
        (v1_and("ALTER TABLE grains ADD COLUMN n AS (length(text))"), "GENERATED"),
        (V1.replace("vector BLOB", "vector TEXT"), "`vector TEXT`"),
        (V1.replace("text TEXT NOT NULL", "text TEXT"), "`text TEXT` as column 2"),
        (V1.replace("id TEXT PRIMARY KEY NOT NULL", "id TEXT NOT NULL"), "`id TEXT NOT NULL` as column 1"),
        (v1_and("CREATE TABLE other (a)"), "`grains`, `other`"),
        (v1_and("CREATE VIEW texts AS SELECT text FROM grains"), "`texts`"),
        (v1_and("CREATE TRIGGER t AFTER INSERT ON grains BEGIN SELECT 1; END"), "`t`"),
        (v1_and("CREATE TABLE schema_version (version, other)"), "`schema_version`"),
        (format!("{V1};{v2}; DELETE FROM schema_version"), "no schema version"),
        (format!("{V1};{v2}; UPDATE schema_version SET version = 1"), "schema version 1"),
        (format!("{V1};{v2}; ALTER TABLE grains DROP COLUMN embedding_dimensions"), "nothing as column 8"),
        ("PRAGMA application_id = 252006674; CREATE TABLE a (a); DROP TABLE a".to_owned(), "application id 252006674"),
        (many_tables, "and 21 more"),
    ] {
        let (_folder, path) = folder();
        write_file(&path, &sql).await;
        let chain = refused_as_foreign(&path).await;
        assert!(chain.contains(found), "{chain}");
        assert!(chain.contains("Expected no file, an empty one, or one that Granary"), "{chain}");
    }
}

#[tokio::test]
async fn another_programs_migrations() {
    let (_folder, path) = folder();
    open(&path).await.expect("created").close().await;
    write_file(&path, "UPDATE _sqlx_migrations SET checksum = x'00' WHERE version = 2").await;
    fs_err::remove_file(path.with_file_name("granary.db.lock")).expect("removed");
    let chain = refused_as_foreign(&path).await;
    assert!(chain.contains("migration 2 is not Granary's"), "{chain}");
}

#[tokio::test]
async fn newer_files() {
    let (_folder, path) = folder();
    open(&path).await.expect("created").close().await;
    let newer = "INSERT INTO _sqlx_migrations SELECT 99, 'later', installed_on, success, x'99', 0 \
                 FROM _sqlx_migrations WHERE version = 1";
    write_file(&path, newer).await;
    fs_err::remove_file(path.with_file_name("granary.db.lock")).expect("removed");
    let (error, chain) = refused(&path).await;
    let StoreError::Newer { version, known, .. } = error else { panic!("{chain}") };
    assert_eq!((version, known), (99, latest_version()));

    let (_folder, path) = folder();
    write_v2(&path, &[]).await;
    write_file(&path, "INSERT INTO schema_version VALUES (7, '', '')").await;
    let (error, chain) = refused(&path).await;
    assert!(matches!(error, StoreError::Newer { version: 7, .. }), "{chain}");
}

#[tokio::test]
async fn files_that_are_no_databases() {
    let (_folder, path) = folder();
    let random: Vec<u8> = (0..25_000_u32).flat_map(|n| (n + 1).wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    for bytes in [&b"# a shopping list\n"[..], b"S", b"SQLite format 3", &random] {
        fs_err::write(&path, bytes).expect("written");
        let chain = refused_as_foreign(&path).await;
        assert!(chain.contains("not an SQLite database, or an encrypted one"), "{chain}");
    }
}

#[tokio::test]
async fn truncated_databases() {
    let (_folder, path) = folder();
    write_v1(&path, &old_grains()).await;
    let whole = fs_err::read(&path).expect("a file");
    for length in [16, 99, 512, 4095, 4096, 8192, whole.len() / 2, whole.len() - 4096] {
        fs_err::write(&path, &whole[..length]).expect("written");
        let (error, chain) = refused(&path).await;
        assert!(matches!(error, StoreError::Damaged { .. } | StoreError::Foreign { .. }), "{length}: {chain}");
    }
}

#[tokio::test]
async fn what_is_not_a_file() {
    let (folder, _) = folder();
    let chain = refused_as_foreign_unchanged(folder.path()).await;
    assert!(chain.contains("a folder"), "{chain}");
    let chain = refused_as_foreign_unchanged(Path::new("/dev/null")).await;
    assert!(chain.contains("not a regular file"), "{chain}");
}

async fn refused_as_foreign_unchanged(path: &Path) -> String {
    let refused = open(path).await.expect_err("refused");
    assert!(matches!(refused, StoreError::Foreign { .. }), "{refused:?}");
    refused.to_string()
}

#[tokio::test]
async fn a_foreign_log_or_journal_is_left_alone() {
    let (_elsewhere, original) = folder();
    let (_folder, path) = folder();
    let mut connection = connect_to(&original).await;
    run(&mut connection, "PRAGMA journal_mode = WAL; CREATE TABLE other (a); INSERT INTO other VALUES (1)").await;
    copy_as_if_crashed(&original, &path);
    connection.close().await.expect("closed");
    assert!(names_in(path.parent().expect("a folder")).contains(&"granary.db-wal".to_owned()));
    refused_as_foreign(&path).await;

    let (_folder, path) = folder();
    let prepare = async |connection: &mut SqliteConnection| {
        let rows = "WITH RECURSIVE row (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM row WHERE n < 200)";
        run(connection, &format!("CREATE TABLE other (a); {rows} INSERT INTO other SELECT zeroblob(1000) FROM row"))
            .await;
    };
    write_with_hot_journal(&path, "UPDATE other SET a = randomblob(1000)", prepare).await;
    let chain = refused_as_foreign(&path).await;
    assert!(chain.contains("`other`"), "{chain}");
}

#[tokio::test]
async fn a_log_without_its_database_is_not_thrown_away() {
    let (_folder, path) = folder();
    write_v1_with_hot_log(&path, &old_grains()).await;
    fs_err::write(&path, "").expect("emptied");
    let chain = refused_as_foreign(&path).await;
    assert!(chain.contains("`-wal` file beside it still holds data"), "{chain}");
}

#[test]
fn a_change_during_the_look_is_seen() {
    let (_folder, path) = folder();
    fs_err::write(&path, "one").expect("written");
    let mut before = Stamps::of(&path).expect("readable");
    assert!(before == Stamps::of(&path).expect("readable"));
    for suffix in ["", "-wal", "-journal"] {
        fs_err::write(beside(&path, suffix), "longer").expect("written");
        let after = Stamps::of(&path).expect("readable");
        assert!(before != after, "{suffix}");
        before = after;
    }
}
