//! A client of the model routes: JSON there, JSON or a problem document back.

use std::time::Duration;

use futures::StreamExt;
use reqwest::{Method, Url};
use serde_json::Value;

use crate::models::hub::tls;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The server at an address.
pub(super) struct Client {
    http: reqwest::Client,
    base: Url,
}

/// Why the server did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address is none.
    #[error("`{0}` is not the address of a server: write it like http://127.0.0.1:8080")]
    Address(String),
    /// Nobody answers.
    #[error("no Granary answers at {base}: start one with `granary serve`, or name another with --url")]
    Unreachable {
        /// The address.
        base: Url,
        /// What the network said.
        source: reqwest::Error,
    },
    /// The answer is not Granary's.
    #[error("{base} does not answer like Granary: {status}")]
    Foreign {
        /// The address.
        base: Url,
        /// The status of the answer.
        status: u16,
    },
    /// The server says no.
    #[error("{detail}")]
    Refused {
        /// The stable word for it.
        code: String,
        /// The sentence.
        detail: String,
    },
}

impl ServerError {
    /// Whether the server refused with this code.
    pub(super) fn is(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { code, .. } if code == wanted)
    }
}

impl Client {
    pub(super) fn new(url: &str) -> Result<Self, ServerError> {
        let base = Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let base = base.ok_or_else(|| ServerError::Address(url.to_owned()))?;
        let built = reqwest::Client::builder()
            .user_agent(concat!("granary-cli/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(tls())
            .connect_timeout(CONNECT_TIMEOUT)
            .build();
        built.map(|http| Self { http, base: base.clone() }).map_err(|source| ServerError::Unreachable { base, source })
    }

    /// Sends a request to `models/…` and reads its answer; `Null` when that is empty.
    pub(super) async fn ask(&self, method: Method, path: &[&str], body: Option<&Value>) -> Result<Value, ServerError> {
        let request = self.http.request(method, self.url(path));
        self.read(if let Some(body) = body { request.json(body) } else { request }).await
    }

    async fn read(&self, request: reqwest::RequestBuilder) -> Result<Value, ServerError> {
        let response = request.send().await.map_err(|source| self.unreachable(source))?;
        let status = response.status();
        let text = response.text().await.map_err(|source| self.unreachable(source))?;
        if status.is_success() && text.is_empty() {
            return Ok(Value::Null);
        }
        let answer: Value = serde_json::from_str(&text).map_err(|_| self.foreign(status.as_u16()))?;
        if status.is_success() {
            return Ok(answer);
        }
        let word = |key: &str| answer[key].as_str().map(str::to_owned);
        match (word("code"), word("detail")) {
            (Some(code), Some(detail)) => Err(ServerError::Refused { code, detail }),
            _ => Err(self.foreign(status.as_u16())),
        }
    }

    /// Deletes a model.
    pub(super) async fn delete(&self, name: &str, force: bool) -> Result<(), ServerError> {
        let mut url = self.url(&[name]);
        if force {
            url.set_query(Some("force=true"));
        }
        self.read(self.http.delete(url)).await.map(drop)
    }

    /// Calls `each` with a model's states until one that lasts.
    pub(super) async fn follow(&self, name: &str, mut each: impl FnMut(&Value)) -> Result<(), ServerError> {
        let request = self.http.get(self.url(&[name, "events"]));
        let response = request.send().await.map_err(|source| self.unreachable(source))?;
        let mut pieces = response.bytes_stream();
        let mut read = Vec::new();
        while let Some(piece) = pieces.next().await {
            read.extend_from_slice(&piece.map_err(|source| self.unreachable(source))?);
            while let Some(end) = read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = read.drain(..=end).collect();
                if let Some(model) = line.strip_prefix(b"data:").and_then(|data| serde_json::from_slice(data).ok()) {
                    each(&model);
                }
            }
        }
        Ok(())
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        // It has a host, so it has a path.
        if let Ok(mut parts) = url.path_segments_mut() {
            parts.pop_if_empty().push("models").extend(path);
        }
        url
    }

    fn unreachable(&self, source: reqwest::Error) -> ServerError {
        ServerError::Unreachable { base: self.base.clone(), source: source.without_url() }
    }

    fn foreign(&self, status: u16) -> ServerError {
        ServerError::Foreign { base: self.base.clone(), status }
    }
}
