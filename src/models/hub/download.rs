//! One file from the hub to its place in the cache: kept and continued when the connection breaks, checked when whole.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};

use super::cache::{RepositoryCache, free_bytes, is_sha256, sha256_of, try_lock};
use super::client::{Client, FileAt, FileFacts, Retries, broken, host};
use super::error::HubError;
use super::{Progress, blocking};
use crate::domain::HubId;
use crate::files::{is_no_room, remove_if_there};

/// Bytes that are written at a time.
const WRITE_BYTES: usize = 256 << 10;

/// A try that brings this much begins the counting of tries anew.
const PROGRESS_BYTES: u64 = 1 << 20;

/// How often a blob that another process writes is looked at.
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// A file that is wanted.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub path: String,
    pub facts: FileFacts,
    /// What it must hold, if that is known.
    pub sha256: Option<String>,
}

impl Wanted {
    pub(super) fn new(path: String, facts: FileFacts, recorded: Option<String>) -> Self {
        let sha256 = recorded.or_else(|| is_sha256(&facts.etag).then(|| facts.etag.clone()));
        Self { path, facts, sha256 }
    }
}

/// The download of one model.
pub(super) struct Download<'a> {
    pub client: &'a Client,
    pub cache: &'a RepositoryCache,
    pub repository: &'a HubId,
    pub commit: &'a str,
    pub report: &'a (dyn Fn(Progress) + Send + Sync),
    /// Bytes of files that are whole.
    pub done_bytes: u64,
    /// Bytes of all files that are known to be needed.
    pub total_bytes: u64,
}

/// A blob that is being written. Its lock goes with the last write, not with the caller's patience.
struct Blob {
    file: fs_err::File,
    path: PathBuf,
    _lock: fs_err::File,
}

impl Download<'_> {
    /// Adds files to what is to come, and refuses them when the disk has no room.
    pub(super) fn plan(&mut self, files: &[Wanted]) -> Result<(), HubError> {
        let blobs = self.cache.blobs();
        fs_err::create_dir_all(&blobs)?;
        let mut needed_bytes = 0_u64;
        for file in files {
            self.total_bytes = self.total_bytes.saturating_add(file.facts.size_bytes);
            let whole = [self.cache.blob(&file.facts.etag), self.entry(&file.path)];
            if !whole.iter().any(|path| path.is_file()) {
                let begun = fs_err::metadata(self.cache.incomplete(&file.facts.etag)).map_or(0, |begun| begun.len());
                needed_bytes = needed_bytes.saturating_add(file.facts.size_bytes.saturating_sub(begun));
            }
        }
        if needed_bytes > free_bytes(&blobs)? {
            return Err(HubError::DiskFull { path: blobs, needed_bytes });
        }
        Ok(())
    }

    /// Puts a file into its place, unless it is there, and returns its SHA-256.
    pub(super) async fn fetch(&mut self, wanted: &Wanted) -> Result<String, HubError> {
        self.say(wanted, 0);
        let etag = &wanted.facts.etag;
        let entry = self.entry(&wanted.path);
        let blob = self.cache.blob(etag);
        let found = if let Some(sha256) = self.whole(&entry, wanted).await? {
            sha256
        } else {
            let lock = self.lock(etag).await?;
            let sha256 = match self.whole(&blob, wanted).await? {
                Some(sha256) => sha256,
                None => self.download(wanted, lock).await?,
            };
            self.cache.place(etag, self.commit, &wanted.path)?;
            sha256
        };
        self.say(wanted, wanted.facts.size_bytes);
        self.done_bytes += wanted.facts.size_bytes;
        Ok(found)
    }

    fn entry(&self, path: &str) -> PathBuf {
        self.cache.snapshot(self.commit).join(path)
    }

    fn say(&self, wanted: &Wanted, done_bytes: u64) {
        let done_bytes = self.done_bytes + done_bytes;
        (self.report)(Progress { file: wanted.path.clone(), done_bytes, total_bytes: self.total_bytes });
    }

    /// The SHA-256 of a file that is there and right. One that is there and wrong is removed: it can be had again.
    async fn whole(&self, path: &Path, wanted: &Wanted) -> Result<Option<String>, HubError> {
        let path = path.to_owned();
        let (size_bytes, expected) = (wanted.facts.size_bytes, wanted.sha256.clone());
        blocking(move || {
            if !path.is_file() {
                return Ok(None);
            }
            let found = sha256_of(&path)?;
            let is_right = fs_err::metadata(&path)?.len() == size_bytes
                && expected.as_ref().is_none_or(|expected| *expected == found);
            if !is_right {
                tracing::warn!(file = %path.display(), "a file of the cache is damaged and is downloaded again");
                remove_if_there(&path)?;
            }
            Ok(is_right.then_some(found))
        })
        .await
    }

    async fn lock(&self, etag: &str) -> Result<fs_err::File, HubError> {
        let path = self.cache.blob_lock(etag);
        loop {
            if let Some(lock) = try_lock(&path)? {
                return Ok(lock);
            }
            tokio::time::sleep(LOCK_PAUSE).await;
        }
    }

    async fn download(&self, wanted: &Wanted, lock: fs_err::File) -> Result<String, HubError> {
        let path = self.cache.incomplete(&wanted.facts.etag);
        let file = fs_err::OpenOptions::new().create(true).append(true).open(&path)?;
        let blob = Arc::new(Blob { file, path, _lock: lock });
        let mut retries = Retries::new(self.client.patience);
        let mut had = blob.file.metadata()?.len();
        while let Err(error) = self.go_on(wanted, &blob).await {
            let has = blob.file.metadata()?.len();
            if has >= had.saturating_add(PROGRESS_BYTES) {
                retries.got_on();
            }
            had = has;
            retries.again(error).await?;
        }
        let (whole, wanted) = (self.cache.blob(&wanted.facts.etag), wanted.clone());
        blocking(move || {
            blob.file.sync_all().map_err(|error| blob.refused(error, 0))?;
            let found = sha256_of(&blob.path)?;
            if let Some(expected) = wanted.sha256.filter(|expected| *expected != found) {
                remove_if_there(&blob.path)?;
                return Err(HubError::WrongHash { file: wanted.path, expected, found });
            }
            fs_err::rename(&blob.path, whole)?;
            Ok(found)
        })
        .await
    }

    /// One connection: writes what comes, from where the file ends.
    async fn go_on(&self, wanted: &Wanted, blob: &Arc<Blob>) -> Result<(), HubError> {
        let size_bytes = wanted.facts.size_bytes;
        let mut has = blob.file.metadata()?.len();
        if has > size_bytes {
            blob.file.set_len(0)?;
            has = 0;
        }
        if has == size_bytes {
            return Ok(());
        }
        let file = FileAt { repository: self.repository, commit: self.commit, path: &wanted.path };
        let mut response = self.client.open(file, has).await?;
        if !continues_at(&response, has) {
            // The whole file comes, or the hub knows no such part of it.
            blob.file.set_len(0)?;
            has = 0;
            if response.status() != StatusCode::OK {
                return Err(broke_off(&response));
            }
        }
        let mut waiting = Vec::new();
        loop {
            let chunk = response.chunk().await;
            if let Ok(Some(bytes)) = &chunk {
                waiting.extend_from_slice(bytes);
            }
            let ends = !matches!(chunk, Ok(Some(_)));
            if has + waiting.len() as u64 > size_bytes {
                blob.file.set_len(0)?;
                let problem = format!("`{}` is longer than the {size_bytes} bytes it should have", wanted.path);
                return Err(HubError::Unexpected { host: host(response.url()), problem });
            }
            if ends || waiting.len() >= WRITE_BYTES {
                has += waiting.len() as u64;
                let (blob, left) = (blob.clone(), size_bytes - has);
                let bytes = std::mem::take(&mut waiting);
                let written = move || {
                    (&blob.file).write_all(&bytes).map_err(|error| blob.refused(error, left + bytes.len() as u64))
                };
                blocking(written).await?;
                self.say(wanted, has);
            }
            match chunk {
                Err(error) => return Err(broken(response.url(), error)),
                Ok(None) if has < size_bytes => return Err(broke_off(&response)),
                Ok(None) => return Ok(()),
                Ok(Some(_)) => {}
            }
        }
    }
}

/// An answer that ended too early.
fn broke_off(response: &Response) -> HubError {
    HubError::Broken { host: host(response.url()), n_tries: 1, source: None }
}

impl Blob {
    fn refused(&self, error: io::Error, needed_bytes: u64) -> HubError {
        if is_no_room(&error) {
            HubError::DiskFull { path: self.path.clone(), needed_bytes }
        } else {
            HubError::Cache(error)
        }
    }
}

/// Whether an answer begins with the byte that was asked for.
fn continues_at(response: &Response, byte: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
    let start = range.and_then(|range| range.strip_prefix("bytes ")?.split_once('-')?.0.parse::<u64>().ok());
    match response.status() {
        StatusCode::OK => byte == 0,
        StatusCode::PARTIAL_CONTENT => start == Some(byte),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::hub::{HubSettings, Patience};

    #[test]
    fn sizes_that_no_disk_has_are_refused() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let find = |name: &str| (name == "HF_HUB_CACHE").then(|| folder.path().display().to_string());
        let settings = HubSettings::from_variables(&find).expect("a folder is enough");
        let client = Client::new(&settings, Patience::default()).expect("a client");
        let repository = HubId::parse("a/b").expect("a repository");
        let cache = RepositoryCache::new(folder.path(), &repository);
        let mut download = Download {
            client: &client,
            cache: &cache,
            repository: &repository,
            commit: "c",
            report: &|_| (),
            done_bytes: 0,
            total_bytes: 0,
        };
        let wanted = ["a", "b"].map(|name| {
            let facts = FileFacts { etag: name.to_owned(), size_bytes: u64::MAX };
            Wanted::new(name.to_owned(), facts, None)
        });
        let error = download.plan(&wanted).expect_err("it is too much");
        assert!(matches!(error, HubError::DiskFull { needed_bytes: u64::MAX, .. }), "{error}");
    }
}
