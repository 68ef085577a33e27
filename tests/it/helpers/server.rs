//! A server in this process, on a free port, with a database of its own.

use std::cell::Cell;
use std::net::IpAddr;
use std::ops::Deref;

use futures::future::join_all;
use granary::app::{App, AppError};
use granary::config::{Config, ConfigSources};
use granary::shutdown::Shutdown;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::data_dir;

/// Somebody who asks a server at an address.
#[derive(Clone)]
pub struct Caller {
    url: String,
    client: Client,
    key: Option<String>,
}

/// A running server, which is asked as a [`Caller`] does. [`TestApp::stop`] ends it in order.
pub struct TestApp {
    caller: Caller,
    shutdown: Shutdown,
    served: JoinHandle<Result<(), AppError>>,
    folder: TempDir,
}

/// What a server answered.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("{}: not JSON: {}", self.status, self.text))
    }

    /// The body of a request that must have succeeded.
    pub fn ok(&self) -> Value {
        assert!(self.status.is_success(), "{}: {}", self.status, self.text);
        self.json()
    }

    /// A header's value; empty when there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("a header in ASCII"))
    }

    /// The version in the entity tag of a grain.
    pub fn version(&self) -> &str {
        let tag = self.header("etag").strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
        tag.and_then(|tag| tag.split_once('-')).map_or("", |(version, _)| version)
    }

    pub fn content_type(&self) -> &str {
        self.header(CONTENT_TYPE.as_str())
    }

    /// An error's parts in Granary's own words: status, code, detail.
    pub fn problem(&self) -> (u16, String, String) {
        assert_eq!(self.content_type(), "application/problem+json", "{}", self.text);
        let body = self.json();
        let text = |key: &str| body[key].as_str().unwrap_or_else(|| panic!("no `{key}`: {body}")).to_owned();
        assert_eq!(body["status"], self.status.as_u16());
        (self.status.as_u16(), text("code"), text("detail"))
    }

    /// An error's parts in TEI's words: status, type, message.
    pub fn tei_error(&self) -> (u16, String, String) {
        assert_eq!(self.content_type(), "application/json", "{}", self.text);
        let body = self.json();
        let text = |key: &str| body[key].as_str().unwrap_or_else(|| panic!("no `{key}`: {body}")).to_owned();
        (self.status.as_u16(), text("error_type"), text("error"))
    }

    /// An error's parts in OpenAI's words: status, code, message.
    pub fn openai_error(&self) -> (u16, String, String) {
        assert_eq!(self.content_type(), "application/json", "{}", self.text);
        let body = self.json();
        let text = |key: &str| body["error"][key].as_str().unwrap_or_else(|| panic!("no `{key}`: {body}")).to_owned();
        assert!(!text("type").is_empty() && body["error"].get("param").is_some(), "{body}");
        (self.status.as_u16(), text("code"), text("message"))
    }
}

impl TestApp {
    /// Serves the default configuration.
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// Serves a `granary.toml`.
    pub async fn start_with(toml: &str) -> Self {
        Self::try_start_with(toml).await.unwrap_or_else(|error| panic!("the server does not start: {error:?}"))
    }

    /// Serves a `granary.toml`, or says why not.
    pub async fn try_start_with(toml: &str) -> Result<Self, AppError> {
        Self::serve(toml, TempDir::new().expect("a temporary folder")).await
    }

    /// Stops, and serves another `granary.toml` over the same database.
    pub async fn restart_with(self, toml: &str) -> Self {
        let folder = self.stop_and_keep().await;
        Self::start_in(folder, toml).await
    }

    /// Stops, and hands over the folder with `granary.db`.
    pub async fn stop_and_keep(self) -> TempDir {
        let Self { shutdown, served, folder, .. } = self;
        end(shutdown, served).await;
        folder
    }

    /// Serves a `granary.toml` over the database in a folder.
    pub async fn start_in(folder: TempDir, toml: &str) -> Self {
        Self::serve(toml, folder).await.unwrap_or_else(|error| panic!("the server does not start again: {error:?}"))
    }

    async fn serve(toml: &str, folder: TempDir) -> Result<Self, AppError> {
        fs_err::write(folder.path().join("granary.toml"), toml).expect("a configuration file");
        let settings = [
            ("GRANARY_MODELS__DATA_DIR", data_dir().display().to_string()),
            ("GRANARY_GRAINS__DATABASE_URL", format!("sqlite:{}/granary.db", folder.path().display())),
        ];
        let sources = ConfigSources {
            directory: Some(folder.path().to_owned()),
            env: settings.into_iter().map(|(key, value)| (key.into(), value.into())).collect(),
            ..ConfigSources::default()
        };
        let config =
            Config::load(&sources).unwrap_or_else(|error| panic!("the test's configuration is wrong: {error}"));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let shutdown = Shutdown::new();
        let app = App::build(config, shutdown.clone()).await?;
        #[allow(clippy::disallowed_methods, reason = "the handle is this server's owner")]
        let served = tokio::spawn(app.run(listener));
        Ok(Self { caller: Caller::of(url), shutdown, served, folder })
    }

    /// Ends the server in order: it must have nothing left running.
    pub async fn stop(self) {
        end(self.shutdown, self.served).await;
    }
}

impl Caller {
    /// Somebody who asks the server at this address.
    pub fn of(url: String) -> Self {
        Self { url, client: client(), key: None }
    }

    /// The same with this API key.
    pub fn with_key(&self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self.clone() }
    }

    /// The same from another address of this machine.
    pub fn at_address(&self, address: IpAddr) -> Self {
        let client = Client::builder().no_proxy().local_address(address).build().expect("a client");
        Self { client, ..self.clone() }
    }

    /// The server's address, without a path.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A request to be completed by the caller.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.url));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// The sum over a metric's series.
    pub async fn metric(&self, name: &str) -> f64 {
        let metrics = self.get("/metrics").await.text;
        let series = metrics.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        series.map(|line| line.rsplit(' ').next().expect("a value").parse::<f64>().expect("a number")).sum()
    }

    pub async fn get(&self, path: &str) -> Answer {
        send(self.request(Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        send(self.request(Method::POST, path).json(&body)).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        send(self.request(Method::PUT, path).json(&body)).await
    }

    pub async fn patch(&self, path: &str, body: Value) -> Answer {
        send(self.request(Method::PATCH, path).json(&body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        send(self.request(Method::DELETE, path)).await
    }
}

impl Deref for TestApp {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.caller
    }
}

/// So many callers send `/embed` this again and again, and count what a full queue refuses. It does not end.
pub async fn crowd(app: &Caller, n_callers: usize, body: &Value, refusals: &Cell<u32>) {
    join_all((0..n_callers).map(async |_| {
        loop {
            match app.post("/embed", body.clone()).await.status.as_u16() {
                200 => {}
                429 => refusals.set(refusals.get() + 1),
                other => panic!("answered {other}"),
            }
        }
    }))
    .await;
}

/// A client that goes straight to the server, whatever proxy the machine has.
pub fn client() -> Client {
    // The crate of the ciphers is named by the program, not by the client's library. A second time changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy().build().expect("a client")
}

/// Sends a request and reads its whole answer.
pub async fn send(request: RequestBuilder) -> Answer {
    let response = request.send().await.expect("an answer");
    let (status, headers) = (response.status(), response.headers().clone());
    Answer { status, headers, text: response.text().await.expect("a whole answer") }
}

async fn end(shutdown: Shutdown, served: JoinHandle<Result<(), AppError>>) {
    shutdown.begin();
    served.await.expect("no panic").unwrap_or_else(|error| panic!("the server did not stop in order: {error:?}"));
}
