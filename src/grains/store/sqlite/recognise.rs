//! What is this file? Decided by reading, before anything is written.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, SystemTime};

use sqlx::migrate::{AppliedMigration, Migrate};
use sqlx::{FromRow, SqliteConnection};

use super::super::StoreError;
use super::view::{JOURNAL, LOG, View, has_hot_journal, has_log};
use super::{MIGRATIONS_TABLE, MIGRATOR, latest_version};
use crate::files::beside;

/// The first bytes of every SQLite file: <https://www.sqlite.org/fileformat2.html#magic_header_string>.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// The columns of `grains` in version 0.3, as [`Column::declaration`] writes them.
const V1_COLUMNS: [&str; 6] = [
    "id TEXT NOT NULL PRIMARY KEY",
    "text TEXT NOT NULL",
    "vector BLOB",
    "meta TEXT NOT NULL",
    "created_at TEXT NOT NULL",
    "updated_at TEXT NOT NULL",
];

/// The columns that version 2 put after those.
const V2_COLUMNS: [&str; 2] = ["embedding_model TEXT", "embedding_dimensions INTEGER"];

/// How often, and how far apart, a file that keeps changing is looked at.
const LOOKS: u32 = 40;
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// What an existing file turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recognised {
    /// Nothing is in it yet.
    Blank,
    /// Granary's, of a schema version (1 or 2) from before sqlx recorded them in the file.
    Unrecorded(i64),
    /// Granary's, with this schema version recorded in it.
    Recorded(i64),
}

impl Recognised {
    /// The schema version; `None` for a blank file.
    pub(super) fn version(self) -> Option<i64> {
        match self {
            Self::Blank => None,
            Self::Unrecorded(version) | Self::Recorded(version) => Some(version),
        }
    }
}

/// Looks at the file, log and journal included, without changing a byte of it.
///
/// Two kinds of writers do not respect our lock: programs that are not Granary, and a connection of this process whose
/// store was dropped a moment ago. So a look counts only when the files were the same before and after it.
pub(super) async fn recognise(path: &Path) -> Result<Recognised, StoreError> {
    const DOING: &str = "look at the database";
    let stamps = || Stamps::of(path).map_err(|source| StoreError::files(DOING, path, source));
    for _ in 0..LOOKS {
        let before = stamps()?;
        let found = look(path).await;
        if stamps()? == before {
            return found;
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
    Err(StoreError::Busy { path: path.to_owned(), doing: DOING, source: None })
}

/// Refuses a file that is none of SQLite's, by its beginning, however damaged the rest may be.
pub(super) fn refuse_other_files(path: &Path) -> Result<(), StoreError> {
    let header = header_of(path)?;
    // With a hot journal the header may be half written: SQLite decides, once it has rolled back.
    if header.is_empty() || header == MAGIC || has_hot_journal(path) {
        Ok(())
    } else {
        Err(StoreError::not_a_database(path))
    }
}

/// The bytes with which every SQLite file begins, or what stands there.
fn header_of(path: &Path) -> Result<Vec<u8>, StoreError> {
    let mut header = Vec::with_capacity(MAGIC.len());
    fs_err::File::open(path)
        .and_then(|file| file.take(MAGIC.len() as u64).read_to_end(&mut header))
        .map_err(|source| StoreError::files("read the database", path, source))?;
    Ok(header)
}

async fn look(path: &Path) -> Result<Recognised, StoreError> {
    let foreign = |found: &str| StoreError::Foreign { path: path.to_owned(), found: found.to_owned() };
    if header_of(path)?.is_empty() {
        // SQLite would throw that log away; whoever lost or emptied the file may still need it.
        return if has_log(path) {
            Err(foreign("empty, although the `-wal` file beside it still holds data of a database"))
        } else {
            Ok(Recognised::Blank)
        };
    }
    refuse_other_files(path)?;

    let mut view = View::open(path).await?;
    let found = inspect(&mut view.connection).await;
    view.close().await;
    match found {
        Ok(Finding::Ours(recognised)) => Ok(recognised),
        Ok(Finding::Newer(version)) => {
            Err(StoreError::Newer { path: path.to_owned(), version, known: latest_version() })
        }
        Ok(Finding::Foreign(found)) => Err(foreign(&found)),
        Err(source) => Err(StoreError::sql_of_unknown_file("look at the database", path, source)),
    }
}

enum Finding {
    Ours(Recognised),
    Newer(i64),
    Foreign(String),
}

async fn inspect(connection: &mut SqliteConnection) -> Result<Finding, sqlx::Error> {
    let schema = Schema::read(connection).await?;
    if schema.has_table(MIGRATIONS_TABLE) {
        let applied = connection.list_applied_migrations(MIGRATIONS_TABLE).await.map_err(sql_error)?;
        // A process killed before its first migration leaves the table empty, which says nothing.
        if let Some(finding) = recorded(&applied) {
            return Ok(finding);
        }
    }
    if schema.has_table("schema_version") {
        let columns = Column::all_of("schema_version", connection).await?;
        if columns.iter().map(|column| column.name.as_str()).eq(["version", "description", "applied_at"]) {
            return unrecorded_v2(&schema, connection).await;
        }
    }
    match schema.names().as_slice() {
        [] => Ok(blank(connection).await?),
        ["grains"] => Ok(match difference(connection, &V1_COLUMNS).await? {
            None => Finding::Ours(Recognised::Unrecorded(1)),
            Some(difference) => Finding::Foreign(difference),
        }),
        names => Ok(Finding::Foreign(format!("an SQLite database with {}", list(names)))),
    }
}

/// What the recorded migrations say; `None` when none is recorded.
fn recorded(applied: &[AppliedMigration]) -> Option<Finding> {
    let mut known = MIGRATOR.iter();
    for row in applied {
        match known.next() {
            Some(ours) if (ours.version, &ours.checksum) == (row.version, &row.checksum) => {}
            Some(_) => {
                return Some(Finding::Foreign(format!(
                    "a database whose schema migration {} is not Granary's: another program's, or a changed build's",
                    row.version
                )));
            }
            None => return applied.last().map(|newest| Finding::Newer(newest.version)),
        }
    }
    applied.last().map(|newest| Finding::Ours(Recognised::Recorded(newest.version)))
}

async fn unrecorded_v2(schema: &Schema, connection: &mut SqliteConnection) -> Result<Finding, sqlx::Error> {
    let version: Option<i64> = sqlx::query_scalar("SELECT max(CAST(version AS INTEGER)) FROM schema_version")
        .fetch_one(&mut *connection)
        .await?;
    let names = schema.names();
    Ok(match version {
        Some(newer) if newer > 2 && names.contains(&"grains") => Finding::Newer(newer),
        Some(2) if names == ["grains", "schema_version"] => {
            let expected_columns: Vec<_> = V1_COLUMNS.into_iter().chain(V2_COLUMNS).collect();
            match difference(connection, &expected_columns).await? {
                None => Finding::Ours(Recognised::Unrecorded(2)),
                Some(difference) => Finding::Foreign(difference),
            }
        }
        Some(version) => {
            Finding::Foreign(format!("an SQLite database of schema version {version} with {}", list(&names)))
        }
        None => Finding::Foreign(format!("an SQLite database of no schema version with {}", list(&names))),
    })
}

/// An SQLite file without tables is ours to fill, unless its header says whose it is.
async fn blank(connection: &mut SqliteConnection) -> Result<Finding, sqlx::Error> {
    let application: i64 = sqlx::query_scalar("PRAGMA application_id").fetch_one(connection).await?;
    Ok(match application {
        0 => Finding::Ours(Recognised::Blank),
        id => Finding::Foreign(format!("an empty database of another program (application id {id})")),
    })
}

/// The first column of `grains` that is not as expected, in words.
async fn difference(connection: &mut SqliteConnection, expected: &[&str]) -> Result<Option<String>, sqlx::Error> {
    let found: Vec<String> = Column::all_of("grains", connection).await?.iter().map(Column::declaration).collect();
    let as_expected = |(found, expected): (&String, &&str)| found.eq_ignore_ascii_case(expected);
    let n_same = found.iter().zip(expected).take_while(|pair| as_expected(*pair)).count();
    if n_same == found.len() && n_same == expected.len() {
        return Ok(None);
    }
    let quoted = |declaration: Option<&str>| declaration.map_or("nothing".to_owned(), |text| format!("`{text}`"));
    Ok(Some(format!(
        "an SQLite database whose table `grains` has {} as column {}, where Granary has {}",
        quoted(found.get(n_same).map(String::as_str)),
        n_same + 1,
        quoted(expected.get(n_same).copied()),
    )))
}

/// What the file declares, without what SQLite keeps for itself. Indexes hold no data of their own and do not count.
struct Schema(Vec<Declared>);

#[derive(FromRow)]
struct Declared {
    kind: String,
    name: String,
}

impl Schema {
    async fn read(connection: &mut SqliteConnection) -> Result<Self, sqlx::Error> {
        let declared = sqlx::query_as(
            "SELECT type AS kind, name FROM sqlite_schema \
             WHERE type <> 'index' AND name NOT LIKE 'sqlite!_%' ESCAPE '!' ORDER BY name",
        );
        Ok(Self(declared.fetch_all(connection).await?))
    }

    fn has_table(&self, name: &str) -> bool {
        self.0.iter().any(|declared| declared.kind == "table" && declared.name == name)
    }

    /// Tables, views and triggers by name, sorted, without sqlx's table.
    fn names(&self) -> Vec<&str> {
        self.0.iter().map(|declared| declared.name.as_str()).filter(|name| *name != MIGRATIONS_TABLE).collect()
    }
}

/// A column as SQLite reports it.
#[derive(FromRow)]
struct Column {
    name: String,
    r#type: String,
    notnull: bool,
    pk: i64,
    hidden: i64,
}

impl Column {
    async fn all_of(table: &str, connection: &mut SqliteConnection) -> Result<Vec<Self>, sqlx::Error> {
        sqlx::query_as(r#"SELECT name, type, "notnull", pk, hidden FROM pragma_table_xinfo(?) ORDER BY cid"#)
            .bind(table)
            .fetch_all(connection)
            .await
    }

    fn declaration(&self) -> String {
        let Self { name, r#type, .. } = self;
        let not_null = if self.notnull { " NOT NULL" } else { "" };
        let primary_key = if self.pk > 0 { " PRIMARY KEY" } else { "" };
        let generated = if self.hidden > 0 { " GENERATED" } else { "" };
        format!("{name} {type}{not_null}{primary_key}{generated}")
    }
}

/// At most a handful of names: a foreign schema may have hundreds.
fn list(names: &[&str]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    let more = names.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

/// sqlx wraps SQLite's errors once more when they come from its table of migrations.
pub(super) fn sql_error(error: sqlx::migrate::MigrateError) -> sqlx::Error {
    use sqlx::migrate::MigrateError;

    match error {
        MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) => source,
        other => sqlx::Error::Migrate(Box::new(other)),
    }
}

/// Size and time of the last change of the three files that make up a database.
#[derive(PartialEq, Eq)]
pub(super) struct Stamps([Option<(u64, SystemTime)>; 3]);

impl Stamps {
    pub(super) fn of(path: &Path) -> std::io::Result<Self> {
        let stamp = |suffix| match fs_err::metadata(beside(path, suffix)) {
            Ok(metadata) => Ok(Some((metadata.len(), metadata.modified()?))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        Ok(Self([stamp("")?, stamp(LOG)?, stamp(JOURNAL)?]))
    }
}
