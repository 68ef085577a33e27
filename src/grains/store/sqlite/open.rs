//! From a path to a [`SqliteStore`]: the file, the steps in their order, the connections.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fs_err::os::unix::fs::OpenOptionsExt;
use parking_lot::Mutex;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Sqlite, SqliteConnection, SqlitePool};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::super::StoreError;
use super::SqliteStore;
use super::grains::Vocabulary;
use super::lock::StoreLock;
use super::log::{Log, LogBounds};
use super::recognise::recognise;
use super::replaced::{FileId, OpenFiles};
use super::restore::RESTORING;
use super::upgrade::upgrade;
use super::view::{has_hot_journal, has_log};
use crate::files::{beside, folder_of, sync_folder_of};

/// How long a statement waits for a program outside Granary, a backup tool say, to let go of the file.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a caller waits for a free connection before it is told that there are too many.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a read may hold its connection: a few long ones would keep all others waiting.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Instructions of SQLite's machine between two looks at the time: about a millisecond.
const INSTRUCTIONS_BETWEEN_LOOKS: i32 = 100_000;

/// The file of the write-ahead log is cut back to this size when the log begins anew.
const LOG_SIZE_LIMIT_BYTES: u32 = 64 << 20;

/// Reads that run at the same time, at least: one that waits for the disk needs no core.
const MIN_READERS: NonZeroU32 = NonZeroU32::new(4).expect("four is not zero");

/// The same at most: each has a thread and a cache of pages.
const MAX_READERS: NonZeroU32 = NonZeroU32::new(32).expect("thirty-two is not zero");

/// Somebody's interest in a long read, and its place among those. When all clones are dropped, the read is interrupted.
pub(super) type Interest = Arc<OwnedSemaphorePermit>;

/// Which file to open, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// The database file; it and its folder are created when missing.
    pub path: PathBuf,
    /// How many reads run at the same time.
    pub readers: NonZeroU32,
    /// How long one of them may take.
    pub read_timeout: Duration,
    /// How long the write-ahead log may be.
    pub log: LogBounds,
}

impl OpenOptions {
    /// The file at that path, with the fewest readers.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), readers: MIN_READERS, read_timeout: READ_TIMEOUT, log: LogBounds::default() }
    }

    /// With a reader for each of these cores.
    #[must_use]
    pub fn with_cores(self, cores: usize) -> Self {
        let cores = u32::try_from(cores).ok().and_then(NonZeroU32::new);
        Self { readers: cores.map_or(MIN_READERS, |cores| cores.clamp(MIN_READERS, MAX_READERS)), ..self }
    }
}

impl SqliteStore {
    /// Opens the database, creating it when there is none and upgrading it when an older Granary wrote it.
    ///
    /// A file that is not Granary's, or is from a newer one, is refused with not one byte of it changed. Before the
    /// first upgrade a copy is kept beside the file: `granary.db.before-v10`, say.
    ///
    /// # Errors
    /// Every variant of [`StoreError`] that a path can lead to. A failed upgrade leaves some whole schema version, and
    /// the next call goes on from there.
    pub async fn open(options: OpenOptions) -> Result<Self, StoreError> {
        let path = find_or_create(&options.path)?;
        let lock = StoreLock::acquire(&path)?;
        let found = match recognise(&path).await {
            Ok(found) => found,
            Err(refusal) => {
                lock.withdraw();
                return Err(refusal);
            }
        };

        let mut connection = connect(&path).await?;
        let upgraded = upgrade(&mut connection, &path, found).await;
        // Waited for even after a failure, so that nothing writes once the lock is gone.
        let closed = connection.close().await;
        upgraded?;
        closed.map_err(|source| StoreError::sql("finish the upgrade", &path, source))?;

        let file = FileId::at(&path).map_err(|source| StoreError::files("look at the database", &path, source))?;
        // Should a statement of a reader ever try to write, it fails instead of fighting the writer for the lock.
        let (time, log) = (options.read_timeout, Arc::new(Log::of(&path, options.log)));
        let (for_new, for_idle, for_writer) = (Arc::clone(&log), Arc::clone(&log), Arc::clone(&log));
        let opened = path.clone();
        let readers = pool(options.readers.get())
            .after_connect(move |connection, _| {
                // Opened when there are more reads than before, it would be of whatever is at the path now.
                let (log, is_same) = (Arc::clone(&for_new), file.refuse_another(&opened));
                Box::pin(async move {
                    is_same.map_err(|error| sqlx::Error::Configuration(error.into()))?;
                    begin_read(connection, time, log).await
                })
            })
            .before_acquire(move |connection, _| {
                let log = Arc::clone(&for_idle);
                Box::pin(async move { begin_read(connection, time, log).await.map(|()| true) })
            });
        let reading = options_without_a_look(&path).pragma("query_only", "ON");
        let readers = open_pool(readers, &path, reading.clone()).await?;
        let probe = open_pool(pool(1), &path, reading).await?;
        let writer = pool(1).before_acquire(move |connection, _| {
            let log = Arc::clone(&for_writer);
            Box::pin(async move {
                log.keep_short(connection).await;
                can_write(connection).await
            })
        });
        let writer = open_pool(writer, &path, connect_options(&path)).await?;
        let (read_timeout, lock, vocabulary) = (options.read_timeout, Mutex::new(Some(lock)), Vocabulary::new());
        let files = OpenFiles::with_log(file, &path);
        let n_long_reads = options.readers.get().saturating_sub(1).max(1);
        let long_reads = Arc::new(Semaphore::new(n_long_reads as usize));
        Ok(Self { path, files, readers, long_reads, read_timeout, probe, writer, log, lock, vocabulary })
    }

    /// A reader for what may take long; one reader is always left to what does not. What it does is interrupted when its time
    /// is over, as that of all readers is, and before that once that which comes with it is dropped: in the middle of a
    /// statement nobody notices otherwise that its caller has left.
    pub(super) async fn callers_reader(&self) -> Result<(PoolConnection<Sqlite>, Interest), sqlx::Error> {
        self.reader_for(self.read_timeout).await
    }

    /// The same for what no caller waits for: its time is not limited.
    pub(super) async fn patient_reader(&self) -> Result<(PoolConnection<Sqlite>, Interest), sqlx::Error> {
        self.reader_for(Duration::MAX).await
    }

    async fn reader_for(&self, time: Duration) -> Result<(PoolConnection<Sqlite>, Interest), sqlx::Error> {
        let acquired = async {
            let turn = Arc::clone(&self.long_reads).acquire_owned().await.map_err(|_| sqlx::Error::PoolClosed)?;
            Ok::<_, sqlx::Error>((turn, self.readers.acquire().await?))
        };
        let acquired = tokio::time::timeout(ACQUIRE_TIMEOUT, acquired).await;
        let (turn, mut reader) = acquired.map_err(|_| sqlx::Error::PoolTimedOut)??;
        let (begun, log, interest) = (Instant::now(), Arc::clone(&self.log), Arc::new(turn));
        let wanted = Arc::downgrade(&interest);
        let mut handle = reader.lock_handle().await?;
        handle.set_progress_handler(INSTRUCTIONS_BETWEEN_LOOKS, move || {
            let ran = begun.elapsed();
            wanted.strong_count() > 0 && ran < time && !log.ends(ran)
        });
        drop(handle);
        Ok((reader, interest))
    }
}

/// The file's absolute path without symbolic links, so that one file has one lock whatever it is called by.
fn find_or_create(path: &Path) -> Result<PathBuf, StoreError> {
    let refused = |doing| move |source| StoreError::files(doing, path, source);
    fs_err::create_dir_all(folder_of(path)).map_err(refused("create the folder"))?;
    let path = real_path(path)?;
    if !is_database_path(&path)? {
        check_absent(&path)?;
        // SQLite gives its log and journal the mode of the database, so this one decides for all of them.
        let created = fs_err::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        created.and_then(|_| sync_folder_of(&path)).map_err(refused("create the database"))?;
    }
    fs_err::canonicalize(&path).map_err(refused("find the database"))
}

/// Where the file is that a path leads to, without symbolic links; where it would be, when it is not there.
///
/// # Errors
/// What the system says where links lead round in a circle, or a folder may not be looked into.
pub fn real_path(path: &Path) -> Result<PathBuf, StoreError> {
    match fs_err::canonicalize(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => match fs_err::read_link(path) {
            // A restore that was cut off leaves such a link, and what tells of it is where the link leads to.
            Ok(target) => real_path(&path.parent().unwrap_or(path).join(target)),
            Err(_) => Ok(path.to_owned()),
        },
        found => found.map_err(|source| StoreError::files("find the database", path, source)),
    }
}

/// Refuses to begin anew where a database was, and what is left of it says so.
pub(super) fn check_absent(path: &Path) -> Result<(), StoreError> {
    let copy = beside(path, RESTORING);
    if fs_err::exists(&copy).map_err(|source| StoreError::files("look for the database", path, source))? {
        return Err(StoreError::CutOff { path: path.to_owned(), copy });
    }
    // With an empty file in its place, SQLite would throw them away.
    if has_log(path) || has_hot_journal(path) {
        let found = "missing, although the `-wal` or `-journal` file beside it still holds data of a database";
        return Err(StoreError::Foreign { path: path.to_owned(), found: found.to_owned() });
    }
    Ok(())
}

/// Whether a file is there. What is not a file cannot become a database.
pub(super) fn is_database_path(path: &Path) -> Result<bool, StoreError> {
    match fs_err::metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(true),
        Ok(metadata) => {
            let kind = if metadata.is_dir() { "a folder" } else { "not a regular file" };
            Err(StoreError::Foreign { path: path.to_owned(), found: kind.to_owned() })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(StoreError::files("look for the database", path, source)),
    }
}

/// What connections that write have in common. The journal mode is a property of the file: `upgrade` sees to it once.
pub(super) fn connect_options(path: &Path) -> SqliteConnectOptions {
    options_without_a_look(path).synchronous(SqliteSynchronous::Full)
}

/// What every connection has in common. None of it has SQLite look into the file, as `synchronous` does: a connection to
/// another file than the one that is open would take this one's log for its own, and write it into that file.
fn options_without_a_look(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .pragma("journal_size_limit", LOG_SIZE_LIMIT_BYTES.to_string())
        .thread_name(|id| format!("sqlite-{id}"))
}

/// The connection that upgrades. It recovers what a crashed process left in the log or the journal.
pub(super) async fn connect(path: &Path) -> Result<SqliteConnection, StoreError> {
    // A copy of a large file is slow by nature and logged by name; sqlx need not warn of it.
    let options = connect_options(path).disable_statement_logging();
    options.connect().await.map_err(|source| StoreError::sql("open the database", path, source))
}

/// Connections that stay: without these settings sqlx closes them after ten idle minutes.
fn pool(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .min_connections(1)
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // It would be said of every caller who reads an export slowly.
        .acquire_slow_threshold(Duration::MAX)
        .idle_timeout(None)
        .max_lifetime(None)
        .after_release(|connection, _| Box::pin(is_between_transactions(connection)))
}

async fn open_pool(
    pool: SqlitePoolOptions,
    path: &Path,
    options: SqliteConnectOptions,
) -> Result<SqlitePool, StoreError> {
    pool.connect_with(options).await.map_err(|source| StoreError::sql("open the database", path, source))
}

/// Whether a connection that comes back to its pool may be used again.
///
/// SQLite ends a transaction by itself when the disk is full, say. sqlx, whose rollback then fails, goes on to count a
/// transaction that is not there, takes the next one for a savepoint inside it, and never commits. Closing the connection
/// ends the matter.
async fn is_between_transactions(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    // A rollback that was begun by a drop is over when the connection answers.
    connection.ping().await?;
    Ok(!connection.is_in_transaction())
}

/// Lets a connection read, once the log is not being emptied, and interrupts what it does when its time is over.
async fn begin_read(connection: &mut SqliteConnection, time: Duration, log: Arc<Log>) -> Result<(), sqlx::Error> {
    drop(log.pass().await);
    let begun = Instant::now();
    let mut handle = connection.lock_handle().await?;
    handle.set_progress_handler(INSTRUCTIONS_BETWEEN_LOOKS, move || {
        let ran = begun.elapsed();
        ran < time && !log.ends(ran)
    });
    Ok(())
}

/// Whether a connection that waits in the writer's pool can still write.
///
/// SQLite opens a file that it may not write for reading alone, and stays so. A connection that took the place of one
/// that failed on a read-only file system would refuse every write until the next start, however writable that becomes.
async fn can_write(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    // Takes the lock of writers and gives it back: it says no to a connection that only reads, and writes nothing.
    Ok(sqlx::raw_sql("BEGIN IMMEDIATE; ROLLBACK").execute(connection).await.is_ok())
}
