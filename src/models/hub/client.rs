//! Asking the hub: one request with its redirects, what its answers mean, and how often it is asked again.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, CONTENT_LENGTH, ETAG, HeaderMap, LOCATION, RANGE, RETRY_AFTER};
use reqwest::{Method, NoProxy, Proxy, Response, StatusCode, Url};
use serde::Deserialize;

use super::address::{GuardedResolver, host_of};
use super::error::HubError;
use super::redirect::{Chain, RedirectError, next_hop};
use super::settings::HubSettings;
use crate::domain::hub::is_inside;
use crate::domain::{HubId, HubRevision};
use crate::tls::tls;

/// The longest list of a repository's files that is read.
const MAX_LIST_BYTES: usize = 16 << 20;

/// How long and how often a hub is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// To open a connection.
    pub connect: Duration,
    /// Between two pieces of an answer.
    pub idle: Duration,
    /// Before the second try; each further one waits twice as long.
    pub first_pause: Duration,
    /// The longest wait between two tries, whatever the hub asks for.
    pub longest_pause: Duration,
    /// Tries that get nowhere, one after the other, until it is given up.
    pub tries: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(30),
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(30),
            tries: 5,
        }
    }
}

/// What the hub says of a repository at a revision.
#[derive(Debug)]
pub(super) struct Listing {
    /// The commit that the revision stands for.
    pub commit: String,
    /// Every file in it.
    pub files: Vec<String>,
}

/// What the hub says of one file.
#[derive(Clone, Debug)]
pub(super) struct FileFacts {
    /// Its SHA-256 or its git hash; safe as a file's name.
    pub etag: String,
    pub size_bytes: u64,
}

/// One file of one commit.
#[derive(Clone, Copy, Debug)]
pub(super) struct FileAt<'a> {
    pub repository: &'a HubId,
    pub commit: &'a str,
    pub path: &'a str,
}

pub(super) struct Client {
    http: reqwest::Client,
    resolver: GuardedResolver,
    settings: HubSettings,
    pub patience: Patience,
}

impl Client {
    pub(super) fn new(settings: &HubSettings, patience: Patience) -> Result<Self, HubError> {
        let setting = |variable, problem: &str| HubError::Setting { variable, problem: problem.to_owned() };
        let (mut proxies, mut proxy_hosts) = (Vec::new(), Vec::new());
        let named = [("HTTPS_PROXY", &settings.proxies.https), ("http_proxy", &settings.proxies.http)];
        for (variable, address) in named.into_iter().filter_map(|(variable, set)| Some((variable, set.as_ref()?))) {
            let with_scheme = if address.contains("://") { address.clone() } else { format!("http://{address}") };
            let bad = |_| setting(variable, "is not the address of a proxy");
            let url = Url::parse(&with_scheme).map_err(|_| setting(variable, "is not the address of a proxy"))?;
            proxy_hosts.push(host_of(&url).to_owned());
            let proxy = if variable == "HTTPS_PROXY" { Proxy::https(url) } else { Proxy::http(url) };
            let except = settings.proxies.except.as_deref().and_then(NoProxy::from_string);
            proxies.push(proxy.map_err(bad)?.no_proxy(except));
        }
        let resolver = GuardedResolver::new(&settings.endpoint, proxy_hosts);
        let builder = reqwest::Client::builder()
            .user_agent(concat!("granary/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .tls_backend_preconfigured(tls())
            .connect_timeout(patience.connect)
            .read_timeout(patience.idle)
            .dns_resolver(Arc::new(resolver.clone()))
            .no_proxy();
        let http = proxies.into_iter().fold(builder, reqwest::ClientBuilder::proxy).build();
        let http = http.map_err(|source| HubError::Connect { host: host(&settings.endpoint), source })?;
        Ok(Self { http, resolver, settings: settings.clone(), patience })
    }

    /// Asks what a revision is and which files it has.
    pub(super) async fn list(&self, repository: &HubId, revision: &HubRevision) -> Result<Listing, HubError> {
        let mut url = self.url(&["api", "models"], repository)?;
        push(&mut url, ["revision", revision.as_str()])?;
        let mut retries = Retries::new(self.patience);
        loop {
            match self.try_list(&url, repository, revision).await {
                Ok(listing) => return Ok(listing),
                Err(error) => retries.again(error).await?,
            }
        }
    }

    async fn try_list(&self, url: &Url, repository: &HubId, revision: &HubRevision) -> Result<Listing, HubError> {
        #[derive(Deserialize)]
        struct Model {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let mut response = self.follow(Method::GET, url, None).await?;
        match (response.status(), error_code(&response)) {
            (StatusCode::OK, _) => {}
            (StatusCode::NOT_FOUND, "RevisionNotFound") => {
                return Err(HubError::RevisionNotFound { repository: repository.clone(), revision: revision.clone() });
            }
            (StatusCode::NOT_FOUND, _) => return Err(self.no_repository(repository)),
            _ => return Err(self.refusal(&response, repository)),
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| broken(url, error))? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_LIST_BYTES {
                return Err(self.unexpected("its list of files is too long".to_owned()));
            }
        }
        let Model { sha, siblings } = serde_json::from_slice(&body)
            .map_err(|error| self.unexpected(format!("its list of files cannot be understood: {error}")))?;
        if HubRevision::parse(&sha).is_ok_and(|revision| revision.is_commit()) {
            // A name that leads out of the folder is no file anybody needs.
            let files = siblings.into_iter().map(|sibling| sibling.rfilename).filter(|path| is_inside(path)).collect();
            return Ok(Listing { commit: sha, files });
        }
        Err(self.unexpected("its list of files names no commit".to_owned()))
    }

    /// Asks for a file's hash and size.
    pub(super) async fn facts(&self, file: FileAt<'_>) -> Result<FileFacts, HubError> {
        let mut retries = Retries::new(self.patience);
        loop {
            match self.try_facts(file).await {
                Ok(facts) => return Ok(facts),
                Err(error) => retries.again(error).await?,
            }
        }
    }

    async fn try_facts(&self, file: FileAt<'_>) -> Result<FileFacts, HubError> {
        let response = self.follow(Method::HEAD, &self.file_url(file)?, None).await?;
        if !(response.status().is_success() || response.status().is_redirection()) {
            return Err(self.file_refusal(&response, file));
        }
        let headers = response.headers();
        let commit = text(headers, "x-repo-commit").unwrap_or(file.commit);
        if commit != file.commit {
            return Err(self.unexpected(format!("it serves commit {commit} where {} was asked for", file.commit)));
        }
        let is_linked = headers.contains_key("x-linked-etag");
        let names =
            if is_linked { ["x-linked-etag", "x-linked-size"] } else { [ETAG.as_str(), CONTENT_LENGTH.as_str()] };
        let etag = text(headers, names[0]).map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
        let is_name = |etag: &&str| {
            (1..=128).contains(&etag.len()) && etag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        let size =
            text(headers, names[1]).or_else(|| text(headers, "x-linked-size")).and_then(|size| size.parse().ok());
        match (etag.filter(is_name), size) {
            (Some(etag), Some(size_bytes)) => Ok(FileFacts { etag: etag.to_owned(), size_bytes }),
            _ => Err(self.unexpected(format!("it does not say the hash and the size of `{}`", file.path))),
        }
    }

    /// Opens a file's contents, from this byte on: status 200 (from the start), 206 or 416.
    pub(super) async fn open(&self, file: FileAt<'_>, from_byte: u64) -> Result<Response, HubError> {
        let range = (from_byte > 0).then_some(from_byte);
        let response = self.follow(Method::GET, &self.file_url(file)?, range).await?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => Ok(response),
            _ => Err(self.file_refusal(&response, file)),
        }
    }

    /// One request and its redirects. A `HEAD` ends where the hub says what a file is: what others would say does not
    /// count.
    async fn follow(&self, method: Method, url: &Url, from_byte: Option<u64>) -> Result<Response, HubError> {
        let (mut url, mut with_token, mut n_followed) = (url.clone(), true, 0);
        loop {
            let mut request = self.http.request(method.clone(), url.clone()).header(ACCEPT_ENCODING, "identity");
            if let Some(from_byte) = from_byte {
                request = request.header(RANGE, format!("bytes={from_byte}-"));
            }
            if let (true, Some(token)) = (with_token, &self.settings.token) {
                request = request.bearer_auth(token.secret());
            }
            let response = request.send().await.map_err(|error| self.failure(&url, error))?;
            let status = response.status();
            let is_foreign = url.origin() != self.settings.endpoint.origin();
            // Others' refusals are those of signed addresses that have run out: the hub gives a new one.
            if status == StatusCode::TOO_MANY_REQUESTS
                || status == StatusCode::REQUEST_TIMEOUT
                || status.is_server_error()
                || is_foreign && status.is_client_error() && status != StatusCode::RANGE_NOT_SATISFIABLE
            {
                let retry_after = text(response.headers(), RETRY_AFTER.as_str()).and_then(|text| text.parse().ok());
                let retry_after = retry_after.map(Duration::from_secs);
                return Err(HubError::Unavailable {
                    host: host(&url),
                    status: status.as_u16(),
                    n_tries: 1,
                    retry_after,
                });
            }
            let is_head = method == Method::HEAD;
            if !status.is_redirection() || is_head && response.headers().contains_key("x-linked-etag") {
                return Ok(response);
            }
            let location = text(response.headers(), LOCATION.as_str()).unwrap_or_default();
            let allows_private = self.resolver.allows_private().await;
            let chain = Chain { endpoint: &self.settings.endpoint, from: &url, n_followed, allows_private };
            let hop = next_hop(chain, location)
                .map_err(|source| HubError::Redirect { file: url.path().to_owned(), source })?;
            if is_head && !hop.with_token {
                return Err(self.unexpected(format!("it sends {} elsewhere without saying its hash", url.path())));
            }
            (url, with_token) = (hop.url, hop.with_token);
            n_followed += 1;
        }
    }

    fn failure(&self, url: &Url, error: reqwest::Error) -> HubError {
        let error = error.without_url();
        let mut source: Option<&dyn Error> = error.source();
        while let Some(cause) = source {
            if let Some(refused) = cause.downcast_ref::<RedirectError>() {
                return HubError::Redirect { file: host(&self.settings.endpoint), source: refused.clone() };
            }
            source = cause.source();
        }
        if error.is_connect() { HubError::Connect { host: host(url), source: error } } else { broken(url, error) }
    }

    fn file_refusal(&self, response: &Response, file: FileAt<'_>) -> HubError {
        match (response.status(), error_code(response)) {
            (StatusCode::NOT_FOUND, "RepoNotFound") => self.no_repository(file.repository),
            (StatusCode::NOT_FOUND, _) => HubError::FileNotFound {
                repository: file.repository.clone(),
                commit: file.commit.to_owned(),
                file: file.path.to_owned(),
                available: None,
            },
            _ => self.refusal(response, file.repository),
        }
    }

    fn refusal(&self, response: &Response, repository: &HubId) -> HubError {
        let has_token = self.settings.token.is_some();
        match (response.status(), error_code(response)) {
            // To those without a token the hub does not tell what is hidden from what is not there.
            (StatusCode::UNAUTHORIZED, "RepoNotFound") => self.no_repository(repository),
            (status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN), _) => {
                HubError::Access { repository: repository.clone(), status: status.as_u16(), has_token }
            }
            (status, _) => self.unexpected(format!("status {status}")),
        }
    }

    fn no_repository(&self, repository: &HubId) -> HubError {
        HubError::RepositoryNotFound { endpoint: self.settings.endpoint.to_string(), repository: repository.clone() }
    }

    fn unexpected(&self, problem: String) -> HubError {
        HubError::Unexpected { host: host(&self.settings.endpoint), problem }
    }

    fn file_url(&self, file: FileAt<'_>) -> Result<Url, HubError> {
        let mut url = self.url(&[], file.repository)?;
        push(&mut url, ["resolve", file.commit].into_iter().chain(file.path.split('/')))?;
        Ok(url)
    }

    fn url(&self, prefix: &[&str], repository: &HubId) -> Result<Url, HubError> {
        let mut url = self.settings.endpoint.clone();
        push(&mut url, prefix.iter().copied().chain(repository.as_str().split('/')))?;
        Ok(url)
    }
}

/// Adds parts of a path, each with its `/` and what else has a meaning written as `%2F`.
fn push<'a>(url: &mut Url, parts: impl IntoIterator<Item = &'a str>) -> Result<(), HubError> {
    let not_a_base = |()| HubError::Setting { variable: "HF_ENDPOINT", problem: "is not a web address".to_owned() };
    url.path_segments_mut().map_err(not_a_base)?.pop_if_empty().extend(parts);
    Ok(())
}

/// An error from the middle of an answer.
pub(super) fn broken(url: &Url, error: reqwest::Error) -> HubError {
    HubError::Broken { host: host(url), n_tries: 1, source: Some(error.without_url()) }
}

/// A server without path and query, which may hold a signature.
pub(super) fn host(url: &Url) -> String {
    url.origin().ascii_serialization()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn error_code(response: &Response) -> &str {
    text(response.headers(), "x-error-code").unwrap_or_default()
}

/// Counts tries that got nowhere, and waits between them.
pub(super) struct Retries {
    patience: Patience,
    n_tries: u32,
}

impl Retries {
    pub(super) fn new(patience: Patience) -> Self {
        Self { patience, n_tries: 0 }
    }

    /// Begins counting anew: the last try brought something.
    pub(super) fn got_on(&mut self) {
        self.n_tries = 0;
    }

    /// Waits before the next try, or returns the error when it will not pass or has been seen often enough.
    pub(super) async fn again(&mut self, mut error: HubError) -> Result<(), HubError> {
        self.n_tries += 1;
        let mut asked_for = Duration::ZERO;
        match &mut error {
            HubError::Unavailable { n_tries, retry_after, .. } => {
                *n_tries = self.n_tries;
                asked_for = retry_after.unwrap_or_default();
            }
            HubError::Broken { n_tries, .. } => *n_tries = self.n_tries,
            HubError::Connect { .. } => {}
            _ => return Err(error),
        }
        if self.n_tries >= self.patience.tries {
            return Err(error);
        }
        let pause = self.patience.first_pause * 2_u32.saturating_pow(self.n_tries - 1);
        tracing::debug!(try_ = self.n_tries, error = &error as &dyn Error, "asking the hub again");
        tokio::time::sleep(pause.max(asked_for).min(self.patience.longest_pause)).await;
        Ok(())
    }
}
