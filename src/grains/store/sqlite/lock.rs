//! One Granary per database: an exclusive lock on a file beside it, which only those share that restore a copy of it.
//!
//! SQLite's own locks would let a second process in between two statements; this one is held for as long as the store
//! is. The kernel drops it with the process, so a crash leaves nothing to clean up: the file stays, the lock does not.

use std::fs::TryLockError;
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::OpenOptionsExt;
use time::OffsetDateTime;

use super::super::StoreError;
use super::replaced::FileId;
use crate::clock::rfc3339;
use crate::files::beside;
use crate::ownership::hand_over;

/// The lock, held until it is dropped.
#[derive(Debug)]
pub(super) struct StoreLock {
    file: fs_err::File,
    path: PathBuf,
    origin: Origin,
}

/// Whether the lock file was there before.
#[derive(Clone, Copy, Debug)]
enum Origin {
    Created,
    Found,
}

impl StoreLock {
    /// Takes the lock of that database, without waiting for it.
    pub(super) fn acquire(database: &Path) -> Result<Self, StoreError> {
        let path = beside(database, ".lock");
        let refused = |source| StoreError::files("lock the database", database, source);
        loop {
            let (mut file, origin) = open_or_create(&path).map_err(|error| refused(named(error, &path)))?;
            refuse_if_taken(file.try_lock(), &mut file, database)?;
            // A process that withdrew may have unlinked this very file between the two calls above: a lock on a file
            // without a name would keep nobody out.
            if FileId::of(&file).is_ok_and(|held| held.is_at(&path)) {
                if matches!(origin, Origin::Created) {
                    // Where root restores, the server must be able to open it. Who cannot give it away may be that server.
                    let _ = hand_over(&file, database);
                }
                sign(&mut file);
                return Ok(Self { file, path, origin });
            }
        }
    }

    /// Shares the lock of a database that is only read, and may be where nothing can be written: one that no Granary has
    /// opened under this name has none.
    pub(super) fn acquire_if_any(database: &Path) -> Result<Option<Self>, StoreError> {
        let path = beside(database, ".lock");
        match options().open(&path) {
            Ok(mut file) => {
                refuse_if_taken(file.try_lock_shared(), &mut file, database)?;
                Ok(Some(Self { file, path, origin: Origin::Found }))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::files("lock the database", database, named(source, &path))),
        }
    }

    /// Gives the lock back and leaves no trace beside a file that turned out not to be ours.
    pub(super) fn withdraw(self) {
        if matches!(self.origin, Origin::Created) {
            // A lock file that stays behind is litter, not an error.
            let _ = fs_err::remove_file(&self.path);
        }
    }
}

impl Drop for StoreLock {
    fn drop(&mut self) {
        // Closing the file is not enough while a child process, forked a moment ago, still shares it. Should this fail,
        // the lock goes with the last of them.
        let _ = self.file.unlock();
    }
}

fn refuse_if_taken(
    tried: Result<(), TryLockError>,
    file: &mut fs_err::File,
    database: &Path,
) -> Result<(), StoreError> {
    match tried {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            let (path, lock) = (database.to_owned(), beside(database, ".lock"));
            Err(StoreError::InUse { path, lock, holder: holder(file) })
        }
        Err(TryLockError::Error(source)) => Err(StoreError::files("lock the database", database, source)),
    }
}

/// How a lock file is opened: never through a link, and without waiting for the other end of a pipe. In a folder of
/// somebody else's, a link may lead root to any file of the system, and whoever takes the lock writes to the file.
fn options() -> fs_err::OpenOptions {
    let mut options = fs_err::OpenOptions::new();
    options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options
}

/// The error of opening a lock file, with the way out where a link stands in its place.
fn named(error: std::io::Error, path: &Path) -> std::io::Error {
    if !path.is_symlink() {
        return error;
    }
    let link = path.display();
    std::io::Error::new(error.kind(), format!("`{link}` is a link, and the lock is never one: delete it"))
}

fn open_or_create(path: &Path) -> std::io::Result<(fs_err::File, Origin)> {
    let mut options = options();
    options.write(true);
    loop {
        match options.clone().create_new(true).open(path) {
            Ok(file) => return Ok((file, Origin::Created)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        match options.open(path) {
            Ok(file) => return Ok((file, Origin::Found)),
            // Unlinked since: its owner withdrew.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

/// Writes down who holds the lock, for the one who finds it taken. The lock holds without it: a full disk may not keep
/// a server from starting to read. A file that has another name too is not written to: it may be anybody's.
fn sign(file: &mut fs_err::File) {
    if !may_be_signed(file) {
        return;
    }
    let host = fs_err::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = Some(host.trim()).filter(|host| !host.is_empty()).unwrap_or("this machine");
    let since = rfc3339(OffsetDateTime::now_utc());
    let signature = format!("process {} on {host}, since {since}\n", std::process::id());
    let _ = file.set_len(0).and_then(|()| file.write_all(signature.as_bytes()));
}

fn may_be_signed(file: &fs_err::File) -> bool {
    file.metadata().is_ok_and(|found| found.is_file() && found.nlink() == 1)
}

/// Who holds the lock, as they have signed it. What stands in a file that they do not sign is of somebody before them.
fn holder(file: &mut fs_err::File) -> String {
    const LONGEST_SIGNATURE_BYTES: u64 = 400;
    if !may_be_signed(file) {
        return "another process".to_owned();
    }
    let mut signature = String::new();
    let read = file.rewind().and_then(|()| file.take(LONGEST_SIGNATURE_BYTES).read_to_string(&mut signature));
    match (read, signature.trim()) {
        (Ok(_), known) if !known.is_empty() => known.to_owned(),
        _ => "another process".to_owned(),
    }
}
