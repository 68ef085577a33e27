//! The folder of downloaded files, laid out as every tool of the hub does it.
//!
//! `models--organisation--name/` holds `blobs/<etag>` (contents), `refs/<revision>` (a commit each) and
//! `snapshots/<commit>/…`, whose entries are relative symbolic links to blobs. ONNX Runtime refuses weights that lie
//! outside the model's folder once links are followed, so they become hard links: see [`RepositoryCache::settle`].

use std::fs::TryLockError;
use std::io::{self, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use crate::domain::{HubId, HubRevision, hex_digits};
use crate::files::{folder_of, if_there, remove_if_there, sync_folder_of};

/// Makes the names of temporary files differ within the process.
static N_TEMPORARY: AtomicU64 = AtomicU64::new(0);

/// Bytes that are hashed at a time.
const HASH_CHUNK_BYTES: usize = 1 << 20;

/// The folder of one repository.
#[derive(Clone, Debug)]
pub(super) struct RepositoryCache {
    folder: PathBuf,
    locks: PathBuf,
}

impl RepositoryCache {
    pub(super) fn new(root: &Path, repository: &HubId) -> Self {
        let name = format!("models--{}", repository.as_str().replace('/', "--"));
        Self { folder: root.join(&name), locks: root.join(".locks").join(&name) }
    }

    /// The root of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    pub(super) fn blobs(&self) -> PathBuf {
        self.folder.join("blobs")
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.blobs().join(etag)
    }

    /// Where a blob stands until it is whole.
    pub(super) fn incomplete(&self, etag: &str) -> PathBuf {
        self.blobs().join(format!("{etag}.incomplete"))
    }

    /// The file that is locked while a blob is written; the Python library locks the same one.
    pub(super) fn blob_lock(&self, etag: &str) -> PathBuf {
        self.locks.join(format!("{etag}.lock"))
    }

    /// The commit that a revision stood for when it was last downloaded.
    pub(super) fn commit_of(&self, revision: &HubRevision) -> io::Result<Option<String>> {
        if revision.is_commit() {
            return Ok(Some(revision.to_string()));
        }
        let text = if_there(fs_err::read_to_string(self.folder.join("refs").join(revision.as_str())))?;
        let commit = text.map(|text| text.trim().to_owned());
        Ok(commit.filter(|commit| HubRevision::parse(commit).is_ok_and(|commit| commit.is_commit())))
    }

    pub(super) fn write_ref(&self, revision: &HubRevision, commit: &str) -> io::Result<()> {
        if revision.is_commit() {
            return Ok(());
        }
        write_atomically(&self.folder.join("refs").join(revision.as_str()), commit.as_bytes())
    }

    /// Makes a blob the file at `path` of a commit, by a relative symbolic link, or by moving it where there are none.
    pub(super) fn place(&self, etag: &str, commit: &str, path: &str) -> io::Result<()> {
        let entry = self.snapshot(commit).join(path);
        let folder = entry.parent().unwrap_or(&self.folder);
        fs_err::create_dir_all(folder)?;
        // A link whose blob was removed by hand is still there.
        remove_if_there(&entry)?;
        let to_folder = "../".repeat(2 + path.matches('/').count());
        match symlink(format!("{to_folder}blobs/{etag}"), &entry) {
            Err(error) if is_unsupported(&error) => fs_err::rename(self.blob(etag), &entry),
            // Another download of the same file was a moment faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            done => done,
        }
    }

    /// Turns a commit's symbolic link into a hard one, which lies in its folder for all who look.
    pub(super) fn settle(&self, commit: &str, path: &str) -> io::Result<()> {
        let entry = self.snapshot(commit).join(path);
        if !fs_err::symlink_metadata(&entry)?.is_symlink() {
            return Ok(());
        }
        let whole = fs_err::canonicalize(&entry)?;
        let temporary = temporary_beside(&entry, "link");
        remove_if_there(&temporary)?;
        fs_err::hard_link(&whole, &temporary)?;
        fs_err::rename(&temporary, &entry)
    }
}

/// Links that the file system does not have.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied)
}

/// A name that no other process or task uses, in the same folder.
fn temporary_beside(path: &Path, what: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let (process, number) = (std::process::id(), N_TEMPORARY.fetch_add(1, Ordering::Relaxed));
    path.with_file_name(format!(".{name}.{process}-{number}.{what}"))
}

/// Replaces a file so that, whatever happens, it is the old one or the new one.
pub(super) fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    fs_err::create_dir_all(folder_of(path))?;
    let temporary = temporary_beside(path, "new");
    let write = || {
        fs_err::write(&temporary, content)?;
        fs_err::File::open(&temporary)?.sync_all()?;
        fs_err::rename(&temporary, path)
    };
    if let Err(error) = write() {
        // Nobody would find it again: the next one has another name.
        let _ = remove_if_there(&temporary);
        return Err(error);
    }
    sync_folder_of(path)
}

/// The SHA-256 of a file's content, in small hexadecimal digits.
pub(in super::super) fn sha256_of(path: &Path) -> io::Result<String> {
    let mut file = fs_err::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; HASH_CHUNK_BYTES];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hex_digits(&hasher.finalize())),
            n_bytes => hasher.update(&chunk[..n_bytes]),
        }
    }
}

/// Whether an etag is itself the SHA-256 of its file, as those of large files are.
pub(super) fn is_sha256(etag: &str) -> bool {
    etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'))
}

/// Bytes that an ordinary user may still write below a folder.
pub(crate) fn free_bytes(folder: &Path) -> io::Result<u64> {
    let facts = rustix::fs::statvfs(folder)?;
    Ok(facts.f_bavail.saturating_mul(facts.f_frsize))
}

/// Opens, or makes, a file whose lock stands for something, and tries to take that lock; `None` when another has it. It
/// is free again when the file is closed, however the process ends.
pub(super) fn try_lock(path: &Path) -> io::Result<Option<fs_err::File>> {
    fs_err::create_dir_all(folder_of(path))?;
    let file = fs_err::OpenOptions::new().create(true).append(true).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Locks a folder against others who do, waiting for them.
pub(super) fn lock_folder(folder: &Path) -> io::Result<fs_err::File> {
    fs_err::create_dir_all(folder)?;
    let file = fs_err::File::open(folder)?;
    file.lock()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_fails_leaves_nothing_beside_the_file() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let path = folder.path().join("models.lock");
        fs_err::create_dir_all(path.join("in the way")).expect("made");
        assert!(write_atomically(&path, b"new").is_err());
        let names: Vec<_> = fs_err::read_dir(folder.path()).expect("a folder").flatten().collect();
        assert_eq!(names.len(), 1, "{names:?}");
        fs_err::remove_dir_all(&path).expect("removed");
        write_atomically(&path, b"new").expect("written");
        assert_eq!(fs_err::read(&path).expect("a file"), b"new");
    }
}
