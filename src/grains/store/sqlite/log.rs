//! The write-ahead log, kept from growing without end.
//!
//! SQLite begins its log anew only at a moment when nobody reads from it. Where reads overlap there is no such moment,
//! and the log grows as long as somebody writes. So before a write that finds it too long, new reads wait a little until
//! those that run have ended and the log is empty. Where that is in vain, all go on, and it is tried again later; only
//! once the log is several times too long, reads that take long are ended for it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sqlx::{AssertSqlSafe, SqliteConnection};
use tokio::sync::{RwLock, RwLockReadGuard};

use super::open::BUSY_TIMEOUT;
use super::view::LOG;
use crate::files::beside;

/// How many times too long the log may be before reads are ended for it.
const FORBEARANCE: u64 = 4;

/// How long the log may be, and what it may cost others to empty it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogBounds {
    /// Bytes from which on it is to be emptied.
    pub bytes: u64,
    /// How long new reads wait for that, at most; reads that have run for less are never ended for it.
    pub hold: Duration,
    /// How long nobody waits once that was in vain.
    pub pause: Duration,
}

impl Default for LogBounds {
    fn default() -> Self {
        Self { bytes: 256 << 20, hold: Duration::from_secs(2), pause: Duration::from_secs(10) }
    }
}

/// The log of an open database.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    bounds: LogBounds,
    /// Closed, that is locked for writing, while the log is being emptied.
    gate: RwLock<()>,
    /// Whether reads that take long are ended while the gate is closed.
    is_far_too_long: AtomicBool,
    in_vain_at: Mutex<Option<Instant>>,
}

impl Log {
    pub(super) fn of(database: &Path, bounds: LogBounds) -> Self {
        Self {
            path: beside(database, LOG),
            bounds,
            gate: RwLock::new(()),
            is_far_too_long: AtomicBool::new(false),
            in_vain_at: Mutex::new(None),
        }
    }

    /// Waits while the log is being emptied. As long as the answer is kept, nobody tries to: for what reads so long that
    /// it would be in vain.
    pub(super) async fn pass(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().await
    }

    /// Whether a read that has run for so long is to be ended for the log.
    pub(super) fn ends(&self, ran: Duration) -> bool {
        // The gate is open again, too, when whoever emptied the log was given up.
        self.is_far_too_long.load(Ordering::Relaxed) && ran >= self.bounds.hold && self.gate.try_read().is_err()
    }

    /// Empties the log if it is too long. The connection is the writer's: no other may keep it from writing.
    pub(super) async fn keep_short(&self, writer: &mut SqliteConnection) {
        let n_bytes = fs_err::tokio::metadata(&self.path).await.map_or(0, |log| log.len());
        let in_vain_at = *self.in_vain_at.lock();
        if n_bytes < self.bounds.bytes || in_vain_at.is_some_and(|at| at.elapsed() < self.bounds.pause) {
            return;
        }
        // Should whoever wants to write give up meanwhile, it was in vain too.
        *self.in_vain_at.lock() = Some(Instant::now());
        let emptied = self.empty(writer, n_bytes).await;
        if matches!(emptied, Ok(true)) {
            *self.in_vain_at.lock() = None;
            return;
        }
        *self.in_vain_at.lock() = Some(Instant::now());
        if let Err(error) = emptied {
            tracing::warn!(n_bytes, %error, "the write-ahead log cannot be emptied");
        } else if in_vain_at.is_none() {
            tracing::warn!(n_bytes, "the write-ahead log cannot be emptied yet: reads that take long need it");
        }
    }

    /// Holds reads back and empties the log. Answers whether that was not in vain.
    async fn empty(&self, writer: &mut SqliteConnection, n_bytes: u64) -> Result<bool, sqlx::Error> {
        // Nobody need wait for what can be copied to the file as it is.
        sqlx::raw_sql("PRAGMA wal_checkpoint(PASSIVE)").execute(&mut *writer).await?;
        // Somebody is just passing, or reads for long: the next write looks again.
        let Ok(_closed) = self.gate.try_write() else { return Ok(true) };
        let is_far_too_long = n_bytes >= self.bounds.bytes.saturating_mul(FORBEARANCE);
        self.is_far_too_long.store(is_far_too_long, Ordering::Relaxed);
        // A read that has just begun is ended after `hold`, and needs a moment to notice.
        let wait = if is_far_too_long { self.bounds.hold * 2 } else { self.bounds.hold };
        wait_at_most(writer, wait).await?;
        let is_busy = sqlx::query_scalar::<_, i64>("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut *writer).await;
        wait_at_most(writer, BUSY_TIMEOUT).await?;
        Ok(is_busy? == 0)
    }
}

/// How long statements of a connection wait for others.
async fn wait_at_most(connection: &mut SqliteConnection, time: Duration) -> Result<(), sqlx::Error> {
    let pragma = format!("PRAGMA busy_timeout = {}", time.as_millis());
    sqlx::raw_sql(AssertSqlSafe(pragma)).execute(connection).await.map(drop)
}
