//! Whole copies of the database in a folder beside it.

use std::fmt;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use time::OffsetDateTime;
use time::format_description::FormatItem;
use time::macros::format_description;
use tokio_util::sync::CancellationToken;

use super::service::Grains;
use super::store::StoreError;
use crate::clock::rfc3339;
use crate::files::if_there;
use crate::telemetry::with_causes;

const STAMP: &[FormatItem<'_>] = format_description!("[year][month][day]T[hour][minute][second].[subsecond digits:3]Z");

/// The name of a snapshot's file: `granary-20261124T120000.000Z.db`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SnapshotName(String);

impl SnapshotName {
    /// Reads a name. Nothing else is one, so that none leads out of the folder.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let stamp = text.strip_prefix("granary-")?.strip_suffix(".db")?;
        let is_stamp_byte = |b: u8| b.is_ascii_digit() || b"TZ.".contains(&b);
        (stamp.len() == "20261124T120000.000Z".len() && stamp.bytes().all(is_stamp_byte)).then(|| Self(text.to_owned()))
    }

    fn of(time: OffsetDateTime) -> Self {
        // A time has all the parts that the format asks for.
        Self(format!("granary-{}.db", time.format(STAMP).unwrap_or_default()))
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A whole copy of the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its file's name.
    pub name: SnapshotName,
    /// Its size.
    pub size_bytes: u64,
    /// When it was made: RFC 3339, UTC.
    pub created_at: String,
}

/// A snapshot cannot be made or found.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// There is none of that name.
    #[error("there is no snapshot `{0}`: `GET /snapshots` lists them")]
    NotFound(SnapshotName),
    /// One is made at a time.
    #[error(
        "a snapshot has been under way since {since}, and one is made at a time: `GET /snapshots` lists it once it is \
         whole"
    )]
    UnderWay {
        /// RFC 3339, UTC.
        since: String,
    },
    /// The server stops, and waits for no copy.
    #[error("the server is stopping, so the snapshot was given up, and nothing of it stays: ask again once it is back")]
    Stopping,
    /// The database, or no room for its copy.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file system refused.
    #[error("it was not possible to {doing} in `{folder}`: check that this user may read and write it")]
    Files {
        /// The folder of the snapshots.
        folder: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// The folder of the snapshots.
#[derive(Clone, Debug)]
pub struct Snapshots(PathBuf);

impl Snapshots {
    /// The snapshots in a folder, which is made when the first one is.
    #[must_use]
    pub fn at(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// All of them, the latest first.
    ///
    /// # Errors
    /// The file system's.
    pub async fn list(&self) -> Result<Vec<Snapshot>, SnapshotError> {
        let failed = |source| self.failed("list the snapshots", source);
        let entries = if_there(fs_err::tokio::read_dir(&self.0).await).map_err(failed)?;
        let Some(mut entries) = entries else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        while let Some(entry) = entries.next_entry().await.map_err(failed)? {
            if let Some(name) = entry.file_name().to_str().and_then(SnapshotName::parse) {
                match self.describe(name).await {
                    // It was deleted meanwhile.
                    Err(SnapshotError::NotFound(_)) => {}
                    described => found.push(described?),
                }
            }
        }
        found.sort_by(|a, b| b.name.cmp(&a.name));
        Ok(found)
    }

    /// One of them, to be read, and its size.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`], or the file system's.
    pub async fn open(&self, name: &SnapshotName) -> Result<(fs_err::tokio::File, u64), SnapshotError> {
        let refused = |source| self.of_one(name, "read a snapshot", source);
        let file = fs_err::tokio::File::open(self.0.join(&name.0)).await.map_err(refused)?;
        let size_bytes = file.metadata().await.map_err(refused)?.len();
        Ok((file, size_bytes))
    }

    /// Deletes one of them.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`], or the file system's.
    pub async fn delete(&self, name: &SnapshotName) -> Result<(), SnapshotError> {
        let deleted = fs_err::tokio::remove_file(self.0.join(&name.0)).await;
        deleted.map_err(|source| self.of_one(name, "delete a snapshot", source))
    }

    /// Removes what snapshots left that the end of a process cut off. Whoever calls this holds the database's lock, and
    /// makes no snapshot meanwhile.
    ///
    /// # Errors
    /// The file system's.
    pub async fn remove_cut_off(&self) -> Result<(), SnapshotError> {
        let failed = |source| self.failed("remove what a snapshot that was cut off left", source);
        let entries = if_there(fs_err::tokio::read_dir(&self.0).await).map_err(failed)?;
        let Some(mut entries) = entries else { return Ok(()) };
        while let Some(entry) = entries.next_entry().await.map_err(failed)? {
            if entry.file_name().to_str().is_some_and(is_cut_off) {
                fs_err::tokio::remove_file(entry.path()).await.map_err(failed)?;
            }
        }
        Ok(())
    }

    async fn describe(&self, name: SnapshotName) -> Result<Snapshot, SnapshotError> {
        let metadata = fs_err::tokio::metadata(self.0.join(&name.0)).await;
        let metadata = metadata.map_err(|source| self.of_one(&name, "look at a snapshot", source))?;
        let time = metadata.modified().map_or(OffsetDateTime::UNIX_EPOCH, OffsetDateTime::from);
        Ok(Snapshot { name, size_bytes: metadata.len(), created_at: rfc3339(time) })
    }

    fn of_one(&self, name: &SnapshotName, doing: &'static str, source: std::io::Error) -> SnapshotError {
        match source.kind() {
            ErrorKind::NotFound => SnapshotError::NotFound(name.clone()),
            _ => self.failed(doing, source),
        }
    }

    fn failed(&self, doing: &'static str, source: std::io::Error) -> SnapshotError {
        SnapshotError::Files { folder: self.0.clone(), doing, source }
    }
}

/// Whether a file is a snapshot that is not whole yet, or what SQLite keeps beside it.
fn is_cut_off(file: &str) -> bool {
    let Some((name, rest)) = file.split_once(".partial") else { return false };
    SnapshotName::parse(name).is_some() && ["", "-journal", "-wal", "-shm"].contains(&rest)
}

/// Lets one snapshot be made at a time, and knows since when it is. Clones share that.
#[derive(Clone, Debug, Default)]
pub(super) struct OneAtATime(Arc<Mutex<Option<OffsetDateTime>>>);

/// The turn of the one that is being made, until it is dropped.
#[derive(Debug)]
struct Turn(OneAtATime);

impl OneAtATime {
    fn begin(&self, now: OffsetDateTime) -> Result<Turn, SnapshotError> {
        let mut begun = self.0.lock();
        if let Some(since) = *begun {
            let since = rfc3339(since.truncate_to_second());
            return Err(SnapshotError::UnderWay { since });
        }
        *begun = Some(now);
        Ok(Turn(self.clone()))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0.0.lock() = None;
    }
}

impl Grains {
    /// Makes a snapshot, one at a time. Reading and writing go on meanwhile, and it goes on when the caller leaves. A
    /// shutdown ends it, and nothing of it stays.
    ///
    /// # Errors
    /// [`SnapshotError::UnderWay`], [`SnapshotError::Stopping`], the database's, or when there is no room.
    pub async fn snapshot(&self) -> Result<Snapshot, SnapshotError> {
        let now = OffsetDateTime::now_utc();
        let turn = self.snapshot_turns.begin(now)?;
        let left = CancellationToken::new();
        let _caller = left.clone().drop_guard();
        let grains = self.clone();
        let work = async move {
            let _turn = turn;
            let made = grains.make_snapshot(SnapshotName::of(now)).await;
            // Whoever tells the caller tells the log too; of this one nobody else would.
            if let Err(error) = &made
                && left.is_cancelled()
            {
                tracing::error!("a snapshot whose caller has left was not made: {}", with_causes(error));
            }
            made
        };
        self.shutdown.finish("snapshot", work).await
    }

    async fn make_snapshot(&self, name: SnapshotName) -> Result<Snapshot, SnapshotError> {
        let snapshots = self.snapshots();
        let made = fs_err::tokio::create_dir_all(&snapshots.0).await;
        made.map_err(|source| snapshots.failed("make the folder", source))?;
        let copied = self.store.copy_to(&snapshots.0.join(&name.0), self.shutdown.soft()).await;
        copied.map_err(|error| match error {
            // Nothing else interrupts a copy.
            StoreError::TooSlow { .. } => SnapshotError::Stopping,
            error => error.into(),
        })?;
        let snapshot = snapshots.describe(name).await?;
        tracing::info!(name = %snapshot.name, size_bytes = snapshot.size_bytes, "a snapshot was made");
        Ok(snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_times_and_lead_nowhere_else() {
        let name = SnapshotName::of(OffsetDateTime::UNIX_EPOCH);
        assert_eq!(name.to_string(), "granary-19700101T000000.000Z.db");
        assert_eq!(SnapshotName::parse(&name.to_string()), Some(name));
        for bad in
            ["", "granary.db", "granary-.db", "../granary-19700101T000000.000Z.db", "granary-19700101T0000/0.000Z.db"]
        {
            assert_eq!(SnapshotName::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_next_one_may_be_made_when_one_has_ended() {
        let turns = OneAtATime::default();
        let turn = turns.begin(OffsetDateTime::UNIX_EPOCH).expect("the first");
        let refused = turns.clone().begin(OffsetDateTime::now_utc()).expect_err("the first goes on");
        assert!(refused.to_string().contains("since 1970-01-01T00:00:00Z"), "{refused}");
        drop(turn);
        turns.begin(OffsetDateTime::now_utc()).expect("the first has ended");
    }

    #[tokio::test]
    async fn one_that_goes_while_they_are_listed_is_left_out() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let snapshots = Snapshots::at(folder.path().to_owned());
        let (here, gone) = ("granary-20261124T120000.000Z.db", "granary-20261125T120000.000Z.db");
        fs_err::write(folder.path().join(here), "").expect("written");
        // A name in the folder, and no file behind it.
        std::os::unix::fs::symlink(folder.path().join("nowhere"), folder.path().join(gone)).expect("linked");
        let listed = snapshots.list().await.expect("listed");
        let names: Vec<String> = listed.iter().map(|snapshot| snapshot.name.to_string()).collect();
        assert_eq!(names, [here]);
    }

    #[tokio::test]
    async fn only_what_was_cut_off_is_removed() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let snapshots = Snapshots::at(folder.path().join("snapshots"));
        snapshots.remove_cut_off().await.expect("there is no folder yet");
        fs_err::create_dir(&snapshots.0).expect("a folder");
        let name = "granary-20261124T120000.000Z.db";
        let kept = [name.to_owned(), "other.partial".to_owned(), format!("{name}.partial.kept")];
        let cut_off = ["", "-journal", "-wal", "-shm"].map(|end| format!("{name}.partial{end}"));
        for file in kept.iter().chain(&cut_off) {
            fs_err::write(snapshots.0.join(file), "").expect("written");
        }
        snapshots.remove_cut_off().await.expect("removed");
        let is_there = |file: &String| fs_err::exists(snapshots.0.join(file)).expect("looked at");
        assert!(kept.iter().all(is_there));
        assert!(!cut_off.iter().any(is_there));
    }
}
