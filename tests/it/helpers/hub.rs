//! A hub in this process: it lists a repository, serves its files the way the real one does, and can be made to fail.
//!
//! Weights are redirected to another host (`localhost` where the hub is `127.0.0.1`), as the real hub keeps them with
//! others. What was asked is recorded.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::Response;
use futures::{StreamExt, stream};
use granary::domain::hex_digits;
use parking_lot::Mutex;
use reqwest::{Method, StatusCode};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;

type Request = axum::extract::Request;

/// Bytes that are sent at a time.
const CHUNK_BYTES: usize = 8 << 10;

/// The only repository.
pub const REPOSITORY: &str = "granary/tiny";

/// What the hub does wrong. At first nothing.
#[derive(Clone, Debug, Default)]
pub struct Failing {
    /// Break the connection after so many bytes of a weight file, so many times.
    pub cut_after: Option<(usize, usize)>,
    /// Send whole files whatever part is asked for.
    pub ignores_range: bool,
    /// Send this file's bytes wrong.
    pub wrong_bytes: Option<String>,
    /// Answer everything with this status and `x-error-code`.
    pub refuses: Option<(u16, &'static str)>,
    /// Answer 404 with `EntryNotFound` for this file, though it is listed.
    pub misses: Option<String>,
    /// Answer so many requests with 503 first.
    pub unavailable: usize,
    /// Wait before each piece of a weight file.
    pub slow: Option<Duration>,
    /// Send weight files here.
    pub redirects_to: Option<String>,
}

/// A request that the hub has seen.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    pub host: String,
    pub path: String,
    /// The value of `range`.
    pub range: Option<String>,
    pub authorization: Option<String>,
}

/// A running hub; it ends with the test.
pub struct StandInHub {
    pub url: String,
    shared: Arc<Shared>,
    served: JoinHandle<()>,
}

struct Shared {
    port: u16,
    files: BTreeMap<String, Bytes>,
    commit: Mutex<String>,
    failing: Mutex<Failing>,
    seen: Mutex<Vec<Seen>>,
    /// Bytes of weight files that were sent.
    sent: Mutex<usize>,
}

impl StandInHub {
    /// Serves these files as [`REPOSITORY`], at a commit of `a`s.
    pub async fn start(files: BTreeMap<String, Vec<u8>>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            port,
            files: files.into_iter().map(|(path, content)| (path, content.into())).collect(),
            commit: Mutex::new("a".repeat(40)),
            failing: Mutex::default(),
            seen: Mutex::default(),
            sent: Mutex::default(),
        });
        let router = Router::new().fallback(answer).with_state(shared.clone());
        #[allow(clippy::disallowed_methods, reason = "the handle is this server's owner")]
        let served = tokio::spawn(async move { axum::serve(listener, router).await.expect("served") });
        Self { url: format!("http://127.0.0.1:{port}"), shared, served }
    }

    pub fn fail(&self, failing: Failing) {
        *self.shared.failing.lock() = failing;
    }

    /// Moves the branch.
    pub fn move_to(&self, commit: &str) {
        commit.clone_into(&mut self.shared.commit.lock());
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().clone()
    }

    /// Paths whose contents were asked for, of the hub or of the other host.
    pub fn fetched(&self) -> Vec<String> {
        let seen = self.seen().into_iter().filter(|seen| seen.method == Method::GET);
        let mut paths: Vec<_> =
            seen.filter_map(|seen| Some(seen.path.split_once("/resolve/")?.1.split_once('/')?.1.to_owned())).collect();
        paths.sort();
        paths.dedup();
        paths
    }

    /// Bytes of weight files that were sent so far.
    pub fn sent_bytes(&self) -> usize {
        *self.shared.sent.lock()
    }
}

impl Drop for StandInHub {
    fn drop(&mut self) {
        self.served.abort();
    }
}

/// The SHA-256 of bytes, in hexadecimal digits.
pub fn sha256(content: &[u8]) -> String {
    hex_digits(&Sha256::digest(content))
}

/// Large files are known by their SHA-256, others by a hash of git's, for which any 40 digits stand in.
pub fn etag(path: &str, content: &[u8]) -> String {
    let sha256 = sha256(content);
    if is_large(path) { sha256 } else { sha256[..40].to_owned() }
}

fn is_large(path: &str) -> bool {
    [".onnx", ".onnx_data", ".bin", ".safetensors"].iter().any(|end| path.ends_with(end))
}

async fn answer(State(hub): State<Arc<Shared>>, request: Request) -> Response {
    let header = |name: &str| request.headers().get(name).map(|value| value.to_str().expect("ASCII").to_owned());
    let seen = Seen {
        method: request.method().clone(),
        host: header("host").expect("a host"),
        path: request.uri().path().to_owned(),
        range: header("range"),
        authorization: header("authorization"),
    };
    hub.seen.lock().push(seen.clone());
    let failing = hub.failing.lock().clone();
    if failing.unavailable > 0 {
        hub.failing.lock().unavailable -= 1;
        return empty(503, &[]);
    }
    if let Some((status, code)) = failing.refuses {
        return empty(status, &[("x-error-code", code)]);
    }
    if let Some(revision) = seen.path.strip_prefix(&format!("/api/models/{REPOSITORY}/revision/")) {
        return list(&hub, revision);
    }
    let file = seen.path.strip_prefix(&format!("/{REPOSITORY}/resolve/")).and_then(|rest| rest.split_once('/'));
    let Some((commit, path)) = file else { return empty(404, &[("x-error-code", "RepoNotFound")]) };
    match hub.files.get(path) {
        Some(content) if failing.misses.as_deref() != Some(path) => resolve(&hub, &seen, (commit, path), content),
        _ => empty(404, &[("x-error-code", "EntryNotFound")]),
    }
}

fn list(hub: &Shared, revision: &str) -> Response {
    let commit = hub.commit.lock().clone();
    if revision != "main" && revision != commit {
        return empty(404, &[("x-error-code", "RevisionNotFound")]);
    }
    let siblings: Vec<_> = hub.files.keys().map(|path| json!({ "rfilename": path })).collect();
    let body = json!({ "id": REPOSITORY, "sha": commit, "siblings": siblings, "private": false });
    Response::new(Body::from(body.to_string()))
}

fn resolve(hub: &Arc<Shared>, seen: &Seen, (commit, path): (&str, &str), content: &Bytes) -> Response {
    let etag = format!("\"{}\"", etag(path, content));
    let size = content.len().to_string();
    let failing = hub.failing.lock().clone();
    if is_large(path) && seen.host.starts_with("127.0.0.1") {
        let elsewhere = format!("http://localhost:{}{}?signature=secret", hub.port, seen.path);
        let location = failing.redirects_to.unwrap_or(elsewhere);
        let headers = [("x-linked-etag", &*etag), ("x-linked-size", &size), ("x-repo-commit", commit)];
        return empty(302, &[&headers[..], &[("location", &location), ("content-length", "0")]].concat());
    }
    if seen.method == Method::HEAD {
        return empty(200, &[("etag", &etag), ("x-repo-commit", commit), ("content-length", &size)]);
    }
    send(hub, seen, path, content)
}

fn send(hub: &Arc<Shared>, seen: &Seen, path: &str, content: &Bytes) -> Response {
    let mut failing = hub.failing.lock();
    let asked = seen.range.as_deref().filter(|_| !failing.ignores_range);
    let start = asked.map(|range| range.trim_start_matches("bytes=").trim_end_matches('-').parse().expect("a range"));
    if start.is_some_and(|start: usize| start >= content.len()) {
        return empty(416, &[("content-range", &format!("bytes */{}", content.len()))]);
    }
    let mut part = content.slice(start.unwrap_or(0)..).to_vec();
    if failing.wrong_bytes.as_deref() == Some(path) {
        part[0] ^= 1;
    }
    let n_bytes = part.len();
    let mut is_cut = false;
    if let Some((after, times)) = failing.cut_after.as_mut().filter(|(_, times)| is_large(path) && *times > 0) {
        part.truncate(*after);
        *times -= 1;
        is_cut = true;
    }
    let (slow, hub) = (failing.slow.filter(|_| is_large(path)), hub.clone());
    let is_weights = is_large(path);
    let pieces: Vec<_> = part.chunks(CHUNK_BYTES).map(Bytes::copy_from_slice).collect();
    let pieces = stream::iter(pieces).then(move |piece| {
        let hub = hub.clone();
        async move {
            tokio::time::sleep(slow.unwrap_or_default()).await;
            *hub.sent.lock() += if is_weights { piece.len() } else { 0 };
            Ok::<_, std::io::Error>(piece)
        }
    });
    let cut = stream::iter(is_cut.then_some(())).then(|()| async {
        // What was sent before must be on its way.
        tokio::time::sleep(Duration::from_millis(50)).await;
        Err(std::io::Error::other("cut"))
    });
    let mut answer = Response::builder().header("content-length", n_bytes).header("accept-ranges", "bytes");
    if let Some(start) = start {
        let range = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
        answer = answer.status(StatusCode::PARTIAL_CONTENT).header("content-range", range);
    }
    answer.body(Body::from_stream(pieces.chain(cut))).expect("an answer")
}

fn empty(status: u16, headers: &[(&str, &str)]) -> Response {
    let answer = Response::builder().status(status);
    headers
        .iter()
        .fold(answer, |answer, (name, value)| answer.header(*name, *value))
        .body(Body::empty())
        .expect("an answer")
}

/// The files of one of the models with random weights, as a repository has them.
pub fn files_of(model: &str) -> BTreeMap<String, Vec<u8>> {
    fn add(files: &mut BTreeMap<String, Vec<u8>>, root: &Path, folder: &Path) {
        for entry in fs_err::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                add(files, root, &path);
            } else {
                let name = path.strip_prefix(root).expect("inside").to_str().expect("UTF-8").to_owned();
                files.insert(name, fs_err::read(&path).expect("a file"));
            }
        }
    }
    let root = super::test_model(model);
    let mut files = BTreeMap::new();
    add(&mut files, &root, &root);
    files
}
