//! Model files from a hub: downloaded once, pinned to a commit, checked against what they should be.
//!
//! Owns the cache folder, which it shares with other tools of the hub, and `models.lock`. It loads no model and reads no
//! environment: [`HubSettings::from_variables`] is given the variables. [`Hub::local`] never uses the network;
//! [`Hub::obtain`] downloads what is missing and no more.

mod address;
mod cache;
mod client;
mod download;
pub mod error;
mod lock;
mod needs;
pub mod redirect;
pub mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;
use tracing::Span;

use self::cache::{RepositoryCache, is_sha256};
use self::client::{Client, FileAt, Listing};
use self::download::{Download, Wanted};
use self::lock::{LockFile, LockedModel};
use self::needs::TOKENIZER;
use crate::domain::hub::has_extension;
use crate::domain::{HubId, HubSource};

pub(crate) use self::cache::free_bytes;
pub(super) use self::cache::sha256_of;
pub use self::client::Patience;
pub use self::error::HubError;
pub use self::redirect::RedirectError;
pub use self::settings::{HubProxies, HubSettings, HubToken};

/// How far a download is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The file that is being downloaded, as the repository names it.
    pub file: String,
    /// Bytes that are here, of all files together. Falls when a server cannot continue a file.
    pub done_bytes: u64,
    /// Bytes of all files that are known to be needed. Grows once, when the ONNX file has named its weights.
    pub total_bytes: u64,
}

/// A model whose files are all here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubModel {
    /// The root of the commit's files.
    pub folder: PathBuf,
    /// The `.onnx` file.
    pub onnx: PathBuf,
    /// The commit they are of.
    pub commit: String,
    /// Path in the repository, and the SHA-256 recorded for it when it was first downloaded.
    pub files: BTreeMap<String, String>,
    lock_file: PathBuf,
}

impl HubModel {
    /// Reads every file and compares it with what was recorded. Blocks for about a second per gigabyte.
    ///
    /// # Errors
    /// [`HubError::Changed`] for the first that differs.
    pub fn verify(&self) -> Result<(), HubError> {
        self.files.keys().try_for_each(|path| self.check(path, &sha256_of(&self.folder.join(path))?))
    }

    /// The SHA-256 recorded of one of the files, in small hexadecimal digits.
    pub(super) fn recorded(&self, file: &Path) -> Option<String> {
        let path = file.strip_prefix(&self.folder).ok()?.to_str()?;
        self.files.get(path).map(|sha256| sha256.to_ascii_lowercase())
    }

    /// Compares the SHA-256 that a file has now, whose path is as the repository names it, with the recorded one.
    ///
    /// # Errors
    /// [`HubError::Changed`] when they differ, or when nothing is recorded of the file.
    pub fn check(&self, path: &str, sha256: &str) -> Result<(), HubError> {
        match self.files.get(path) {
            Some(recorded) if recorded.eq_ignore_ascii_case(sha256) => Ok(()),
            recorded => Err(HubError::Changed {
                file: path.to_owned(),
                path: self.folder.join(path),
                expected: recorded.cloned().unwrap_or_else(|| "not recorded".to_owned()),
                found: sha256.to_owned(),
                lock_file: self.lock_file.clone(),
            }),
        }
    }
}

/// A hub, and the cache of its files.
#[derive(Clone, Debug)]
pub struct Hub {
    settings: HubSettings,
    lock: LockFile,
    patience: Patience,
}

impl Hub {
    /// A hub whose models are pinned in `lock_file`. Touches neither network nor disk.
    #[must_use]
    pub fn new(settings: HubSettings, lock_file: PathBuf) -> Self {
        Self { settings, lock: LockFile::new(lock_file), patience: Patience::default() }
    }

    /// Which hub it is, and how it is reached.
    #[must_use]
    pub fn settings(&self) -> &HubSettings {
        &self.settings
    }

    /// Whether the network may not be used.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        self.settings.offline
    }

    /// Bytes of a model's files that a download which was cut off has left. Blocks.
    #[must_use]
    pub fn unfinished_bytes(&self, source: &HubSource) -> u64 {
        let entries = fs_err::read_dir(self.cache(&source.repository).blobs());
        let left = entries
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "incomplete"));
        left.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
    }

    /// The same with other times to wait.
    #[must_use]
    pub fn with_patience(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    /// The model, if all its files are here. Blocks, and uses no network.
    ///
    /// A model that is not in the lock file is only taken from the cache when the network may not be used: what other
    /// tools have put there may lack files that this one needs. It is hashed and pinned then, which takes as long as
    /// reading it.
    ///
    /// # Errors
    /// When the lock file cannot be understood, or the cache not be read or written.
    pub fn local(&self, source: &HubSource) -> Result<Option<HubModel>, HubError> {
        let cache = self.cache(&source.repository);
        let locked = match self.lock.find(source)? {
            Some(locked) => locked,
            None if self.settings.offline => match adopted(&cache, source)? {
                Some(found) => self.lock.record(found)?,
                None => return Ok(None),
            },
            None => return Ok(None),
        };
        let snapshot = cache.snapshot(&locked.commit);
        if !locked.files.keys().all(|path| snapshot.join(path).is_file()) {
            return Ok(None);
        }
        self.finished(&cache, locked).map(Some)
    }

    /// The model, downloaded as far as it is not here. Dropping the future, or cancelling, keeps what has come.
    ///
    /// # Errors
    /// [`HubError`]; [`HubError::is_permanent`] says whether trying again can help.
    pub async fn obtain(
        &self,
        source: &HubSource,
        progress: &(dyn Fn(Progress) + Send + Sync),
        cancel: &CancellationToken,
    ) -> Result<HubModel, HubError> {
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(HubError::Cancelled),
            model = self.find_or_download(source, progress) => model,
        }
    }

    async fn find_or_download(
        &self,
        source: &HubSource,
        report: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<HubModel, HubError> {
        let (hub, asked) = (self.clone(), source.clone());
        if let Some(model) = blocking(move || hub.local(&asked)).await? {
            return Ok(model);
        }
        if self.settings.offline {
            let (model, cache_dir) = (Box::new(source.clone()), self.settings.cache_dir.clone());
            return Err(HubError::Offline { model, cache_dir });
        }
        let client = Client::new(&self.settings, self.patience)?;
        let cache = self.cache(&source.repository);
        let pinned = self.lock.find(source)?;
        let listing = match &pinned {
            Some(pinned) => Listing { commit: pinned.commit.clone(), files: Vec::new() },
            None => client.list(&source.repository, &source.revision).await?,
        };
        let repository = &source.repository;
        let mut download = Download {
            client: &client,
            cache: &cache,
            repository,
            commit: &listing.commit,
            report,
            done_bytes: 0,
            total_bytes: 0,
        };
        let locked = if let Some(pinned) = pinned {
            fetch_all(&mut download, pinned.files.keys().cloned().collect(), &pinned.files).await?;
            pinned
        } else {
            let files = download_new(&mut download, source, &listing).await?;
            let (lock, cache, source, commit) = (self.lock.clone(), cache.clone(), source.clone(), listing.commit);
            blocking(move || {
                cache.write_ref(&source.revision, &commit)?;
                lock.record(LockedModel { source, commit, files })
            })
            .await?
        };
        let hub = self.clone();
        blocking(move || hub.finished(&cache, locked)).await
    }

    fn cache(&self, repository: &HubId) -> RepositoryCache {
        RepositoryCache::new(&self.settings.cache_dir, repository)
    }

    fn finished(&self, cache: &RepositoryCache, locked: LockedModel) -> Result<HubModel, HubError> {
        // What the runtime opens beside the ONNX file: it follows no link out of the folder. Of other files a link is as good,
        // and a cache that cannot be written, or has no hard links, holds them all the same.
        let is_external_data = |path: &&String| {
            !has_extension(path, "json")
                && path.as_str() != locked.source.file.as_str()
                && !needs::is_of_module(path, &locked.files)
        };
        for path in locked.files.keys().filter(is_external_data) {
            cache.settle(&locked.commit, path)?;
        }
        let folder = cache.snapshot(&locked.commit);
        let onnx = folder.join(locked.source.file.as_str());
        let lock_file = self.lock.path().to_owned();
        Ok(HubModel { folder, onnx, commit: locked.commit, files: locked.files, lock_file })
    }
}

/// Downloads a model of which nothing is recorded: first what names other files, then those.
async fn download_new(
    download: &mut Download<'_>,
    source: &HubSource,
    listing: &Listing,
) -> Result<BTreeMap<String, String>, HubError> {
    let known: BTreeSet<&str> = listing.files.iter().map(String::as_str).collect();
    for required in [source.file.as_str(), TOKENIZER] {
        if !known.contains(required) {
            return Err(missing(source, listing, required));
        }
    }
    let nothing = BTreeMap::new();
    let described = needs::descriptions().filter(|path| known.contains(path));
    let first = described.chain([source.file.as_str(), TOKENIZER]).map(str::to_owned).collect();
    let mut files = fetch_all(download, first, &nothing).await?;

    let snapshot = download.cache.snapshot(&listing.commit);
    let (onnx, asked) = (snapshot.join(source.file.as_str()), source.clone());
    let mut further = blocking(move || needs::external_data(&onnx, &asked)).await?;
    further.extend(needs::files_of_modules(&snapshot, source, |path| known.contains(path))?);
    further.retain(|path| !files.contains_key(path));
    if let Some(unknown) = further.iter().find(|path| !known.contains(path.as_str())) {
        return Err(missing(source, listing, unknown));
    }
    files.append(&mut fetch_all(download, further, &nothing).await?);
    Ok(files)
}

fn missing(source: &HubSource, listing: &Listing, file: &str) -> HubError {
    let models: Vec<_> = listing.files.iter().filter(|path| has_extension(path, "onnx")).take(10).cloned().collect();
    let wants_model = file == source.file.as_str() && !models.is_empty();
    HubError::FileNotFound {
        repository: source.repository.clone(),
        commit: listing.commit.clone(),
        file: file.to_owned(),
        available: wants_model.then(|| format!("; its ONNX files are {}", models.join(", "))),
    }
}

async fn fetch_all(
    download: &mut Download<'_>,
    paths: Vec<String>,
    recorded: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, HubError> {
    let mut wanted = Vec::new();
    for path in paths {
        let file = FileAt { repository: download.repository, commit: download.commit, path: &path };
        let facts = download.client.facts(file).await?;
        wanted.push(Wanted::new(path.clone(), facts, recorded.get(&path).cloned()));
    }
    download.plan(&wanted)?;
    let mut found = BTreeMap::new();
    for file in wanted {
        let sha256 = download.fetch(&file).await?;
        found.insert(file.path, sha256);
    }
    Ok(found)
}

/// A model that another tool has put into the cache; `None` when it is not whole.
fn adopted(cache: &RepositoryCache, source: &HubSource) -> Result<Option<LockedModel>, HubError> {
    let Some(commit) = cache.commit_of(&source.revision)? else { return Ok(None) };
    let snapshot = cache.snapshot(&commit);
    let is_there = |path: &str| snapshot.join(path).is_file();
    if !is_there(source.file.as_str()) || !is_there(TOKENIZER) {
        return Ok(None);
    }
    let mut paths = needs::external_data(&snapshot.join(source.file.as_str()), source)?;
    paths.extend(needs::files_of_modules(&snapshot, source, is_there)?);
    if !paths.iter().all(|path| is_there(path)) {
        return Ok(None);
    }
    let described = needs::descriptions().filter(|path| is_there(path));
    paths.extend(described.chain([source.file.as_str(), TOKENIZER]).map(str::to_owned));
    let mut files = BTreeMap::new();
    for path in paths {
        let sha256 = sha256_of(&snapshot.join(&path))?;
        refuse_damaged(&snapshot.join(&path), source, &path, &sha256)?;
        files.insert(path, sha256);
    }
    Ok(Some(LockedModel { source: source.clone(), commit, files }))
}

/// The blob that a link leads to has the SHA-256 of a large file as its name.
fn refuse_damaged(entry: &Path, source: &HubSource, path: &str, found: &str) -> Result<(), HubError> {
    let blob = fs_err::canonicalize(entry)?;
    match blob.file_name().and_then(|name| name.to_str()) {
        Some(name) if is_sha256(name) && name != found => Err(HubError::Malformed {
            repository: source.repository.clone(),
            file: path.to_owned(),
            problem: format!("{} should have the SHA-256 of its name and has {found}; remove it", blob.display()),
        }),
        _ => Ok(()),
    }
}

/// Runs work that waits for the disk where it holds up nobody.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HubError> + Send + 'static,
) -> Result<T, HubError> {
    let span = Span::current();
    let task = tokio::task::spawn_blocking(move || span.in_scope(work));
    task.await.map_err(|ended| HubError::Cache(std::io::Error::other(ended)))?
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn only_what_the_runtime_opens_beside_the_graph_becomes_a_hard_link() {
        let root = tempfile::TempDir::new().expect("a folder");
        let source: HubSource = serde_json::from_str(r#"{"repository": "a/b"}"#).expect("a source");
        let cache_dir = root.path().display().to_string();
        let settings = HubSettings::from_variables(&|name: &str| (name == "HF_HUB_CACHE").then(|| cache_dir.clone()));
        let hub = Hub::new(settings.expect("a folder is enough"), root.path().join("models.lock"));
        let cache = hub.cache(&source.repository);
        fs_err::create_dir_all(cache.blobs()).expect("made");
        let links = [
            ("onnx/model.onnx", true),
            ("onnx/model.onnx_data", false),
            ("onnx/model.safetensors", false),
            ("tokenizer.json", true),
            ("2_Dense/config.json", true),
            ("2_Dense/model.safetensors", true),
        ];
        for (number, (path, _)) in links.iter().enumerate() {
            let (blob, entry) = (cache.blob(&number.to_string()), cache.snapshot(COMMIT).join(path));
            fs_err::write(&blob, path).expect("written");
            fs_err::create_dir_all(entry.parent().expect("a folder")).expect("made");
            symlink(blob, entry).expect("linked");
        }
        let files = links.iter().map(|(path, _)| ((*path).to_owned(), String::new())).collect();
        let locked = LockedModel { source: source.clone(), commit: COMMIT.to_owned(), files };
        hub.lock.record(locked).expect("written");
        let model = hub.local(&source).expect("readable").expect("all files are here");
        for (path, stays_a_link) in links {
            assert_eq!(model.folder.join(path).is_symlink(), stays_a_link, "{path}");
        }
    }
}
