//! A client of a running server: JSON or lines there, JSON, lines or a problem document back.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use futures::StreamExt;
use futures::stream::BoxStream;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Body, Method, Url};
use rustls::CertificateError;
use serde_json::Value;

use super::output::printable;
use crate::config::BindHost;
use crate::tls::tls;

/// Says whether to ask again, whatever `Retry-After` says.
const SHOULD_RETRY: &str = "x-should-retry";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The flags that say which server is meant.
#[derive(Clone, Debug, Args)]
pub struct ServerArgs {
    /// The server's address
    #[arg(
        long,
        global = true,
        env = "GRANARY_URL",
        hide_env_values = true,
        default_value = "http://127.0.0.1:8080",
        help_heading = "Which server"
    )]
    pub url: String,
    /// The file whose first line is the API key to send. On the command line itself, others could see the key
    #[arg(long, global = true, value_name = "PATH", env = "GRANARY_API_KEY_FILE", help_heading = "Which server")]
    pub api_key_file: Option<PathBuf>,
}

/// The server at an address.
pub(super) struct Client {
    http: reqwest::Client,
    /// Where requests go, with the user's name and password, where it has them.
    base: Url,
    /// The same without these.
    shown: Url,
}

/// Why the server did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address is none.
    #[error("`{0}` is not the address of a server: write it like http://127.0.0.1:8080")]
    Address(String),
    /// The file with the key.
    #[error("the key in `{}` cannot be read", path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// What is in it could not be sent.
    #[error("`{}` begins with no key: its first line takes visible characters of ASCII", .0.display())]
    NoKey(PathBuf),
    /// The server asks for a key, or does not know the one that was sent.
    #[error("{0}. Here: put the key into a file and name it with --api-key-file")]
    Unauthorized(String),
    /// Nobody answers.
    #[error("no Granary answers at {base}: start one with `granary serve`, or name another with --url")]
    Unreachable {
        /// The address.
        base: Url,
        /// What the network said.
        source: reqwest::Error,
    },
    /// Somebody answers whom this machine does not believe to be the server.
    #[error(
        "{base} shows a certificate that this machine does not trust: name the file of the authority that signed it in the \
         variable SSL_CERT_FILE, or another server with --url"
    )]
    Untrusted {
        /// The address.
        base: Url,
        /// What is wrong with the certificate.
        source: reqwest::Error,
    },
    /// The certificate is that of another server.
    #[error("{base} shows a certificate for another name: write one that it is for into --url")]
    OtherName {
        /// The address.
        base: Url,
        /// Which names it has.
        source: reqwest::Error,
    },
    /// The certificate is one of those that sign others, as `openssl req -x509` makes them, and no server's.
    #[error(
        "{base} shows a certificate of an authority as its own, which is not taken even where it is trusted: make one with \
         `openssl req -x509 -addext basicConstraints=CA:FALSE -addext subjectAltName=DNS:HOST`, and name its file in the \
         variable SSL_CERT_FILE"
    )]
    Authority {
        /// The address.
        base: Url,
        /// What is wrong with the certificate.
        source: reqwest::Error,
    },
    /// Somebody was there, and left in the middle.
    #[error("the connection to {base} broke")]
    Broken {
        /// The address.
        base: Url,
        /// What the network said, or whoever gives the body.
        source: reqwest::Error,
    },
    /// It is elsewhere.
    #[error("{base} redirects to {to}: name that with --url")]
    Redirected {
        /// The address.
        base: String,
        /// Where that sends who asks.
        to: String,
    },
    /// The answer is not Granary's.
    #[error("{base} does not answer like Granary: {status}")]
    Foreign {
        /// The address.
        base: Url,
        /// The status of the answer.
        status: u16,
    },
    /// It cannot be asked for: these mean something else in an address.
    #[error("nothing is called `{0}`")]
    NoName(String),
    /// The server says no.
    #[error("{detail}")]
    Refused {
        /// The stable word for it, or TEI's.
        code: String,
        /// The sentence.
        detail: String,
        /// When to ask again, where the server says that that makes sense.
        retry_after: Option<Duration>,
    },
}

impl ServerError {
    /// A request without an answer, or an answer without an end.
    fn of(shown: &Url, source: reqwest::Error) -> Self {
        let base = shown.clone();
        let (is_connect, refused) = (source.is_connect(), refused_certificate(&source).cloned());
        let source = source.without_url();
        match refused {
            Some(refused) if is_of_authority(&refused) => Self::Authority { base, source },
            Some(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }) => {
                Self::OtherName { base, source }
            }
            Some(_) => Self::Untrusted { base, source },
            None if is_connect => Self::Unreachable { base, source },
            None => Self::Broken { base, source },
        }
    }

    /// Whether the server refused with this code.
    pub(super) fn is(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { code, .. } if code == wanted)
    }
}

impl Client {
    pub(super) fn new(server: &ServerArgs) -> Result<Self, ServerError> {
        Self::with_tls(server, tls())
    }

    /// A client that trusts others than the system does.
    pub(super) fn with_tls(server: &ServerArgs, tls: rustls::ClientConfig) -> Result<Self, ServerError> {
        let url = server.url.as_str();
        let headers = server.api_key_file.as_deref().map(key_header).transpose()?.unwrap_or_default();
        let base = Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let base = base.ok_or_else(|| ServerError::Address(behind_password(url).to_owned()))?;
        let shown = without_password(&base);
        let http = reqwest::Client::builder()
            .user_agent(concat!("granary-cli/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT_TIMEOUT)
            // Behind one, a POST may become a GET, and the key stays behind.
            .redirect(Policy::none())
            .default_headers(headers);
        // A proxy that the environment names, for downloads say, cannot reach a loopback address of this machine.
        let http = if is_loopback(&base) { http.no_proxy() } else { http };
        http.build()
            .map(|http| Self { http, base, shown: shown.clone() })
            .map_err(|source| ServerError::Unreachable { base: shown, source })
    }

    /// The address, for people.
    pub(super) fn shown(&self) -> &Url {
        &self.shown
    }

    /// Sends a request and reads its answer; `Null` when that is empty.
    pub(super) async fn ask(&self, request: Request) -> Result<Value, ServerError> {
        self.ask_with_headers(request).await.map(|(_, answer)| answer)
    }

    /// The same with the headers of the answer.
    pub(super) async fn ask_with_headers(&self, request: Request) -> Result<(HeaderMap, Value), ServerError> {
        let response = self.send(request).await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.map_err(|source| ServerError::of(&self.shown, source))?;
        let answer = if text.is_empty() {
            Ok(Value::Null)
        } else {
            serde_json::from_str(&text).map_err(|_| self.foreign(status))
        };
        Ok((headers, answer?))
    }

    /// Sends a request whose answer is read line by line.
    pub(super) async fn open(&self, request: Request) -> Result<Lines, ServerError> {
        Ok(Lines { pieces: self.fetch(request).await?, read: Vec::new(), searched: 0 })
    }

    /// Sends a request whose answer is taken piece by piece, as it comes.
    pub(super) async fn fetch(&self, request: Request) -> Result<Pieces, ServerError> {
        let response = self.send(request).await?;
        let stream = response.bytes_stream().map(|piece| piece.map(Vec::from)).boxed();
        Ok(Pieces { stream, shown: self.shown.clone() })
    }

    /// The answer to a request that was not refused.
    async fn send(&self, request: Request) -> Result<reqwest::Response, ServerError> {
        let Request { method, path, query, body, content_type, host } = request;
        if let Some(name) = path.iter().find(|name| matches!(name.as_str(), "" | "." | "..")) {
            return Err(ServerError::NoName(name.clone()));
        }
        let mut url = self.base.clone();
        // It has a host, so it has a path.
        if let Ok(mut parts) = url.path_segments_mut() {
            parts.pop_if_empty().extend(&path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut sent = self.http.request(method, url);
        if let Some(body) = body {
            sent = sent.header(CONTENT_TYPE, content_type).body(body);
        }
        if let Some(host) = host {
            sent = sent.header(HOST, host);
        }
        let response = sent.send().await.map_err(|source| ServerError::of(&self.shown, source))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        if let Some(to) = redirected(&response, &path).filter(|_| status.is_redirection()) {
            return Err(ServerError::Redirected { base: self.shown.to_string(), to });
        }
        let helps = response.headers().get(SHOULD_RETRY).is_none_or(|value| value != "false");
        let seconds = response.headers().get(RETRY_AFTER).filter(|_| helps);
        let seconds = seconds.and_then(|value| value.to_str().ok()?.parse().ok());
        let retry_after = seconds.map(Duration::from_secs);
        let text = response.text().await.map_err(|source| ServerError::of(&self.shown, source))?;
        let answer: Value = serde_json::from_str(&text).map_err(|_| self.foreign(status.as_u16()))?;
        let words = |code: &str, detail: &str| Some((answer[code].as_str()?, printable(answer[detail].as_str()?)));
        // A problem document, or an error in TEI's form.
        Err(match words("code", "detail").or_else(|| words("error_type", "error")) {
            Some(("unauthorized" | "Unauthorized", detail)) => ServerError::Unauthorized(detail),
            Some((code, detail)) => ServerError::Refused { code: code.to_owned(), detail, retry_after },
            None => self.foreign(status.as_u16()),
        })
    }

    /// The answer is not one of Granary's.
    pub(super) fn foreign(&self, status: u16) -> ServerError {
        ServerError::Foreign { base: self.shown.clone(), status }
    }
}

/// What is wrong with the certificate that the other side showed, where an error is about that.
fn refused_certificate<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e CertificateError> {
    if let Some(rustls::Error::InvalidCertificate(refused)) = error.downcast_ref() {
        return Some(refused);
    }
    // What is inside an error of the system is not its source.
    let inside = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref).map(|inside| inside as &dyn Error);
    inside.or_else(|| error.source()).and_then(refused_certificate)
}

/// Whether a certificate is refused because it may sign others. There is only a word for it.
fn is_of_authority(refused: &CertificateError) -> bool {
    matches!(refused, CertificateError::Other(why) if why.to_string() == "CaUsedAsEndEntity")
}

/// An address without who asks, to be shown.
fn without_password(url: &Url) -> Url {
    let mut shown = url.clone();
    // Only what has no host refuses this.
    let _ = shown.set_password(None).and_then(|()| shown.set_username(""));
    shown
}

/// The part of a text that is no address where no password can be.
fn behind_password(text: &str) -> &str {
    text.rsplit_once('@').map_or(text, |(_, rest)| rest)
}

/// Whether an address is a loopback address, at which nobody but this machine answers.
pub(super) fn is_loopback(url: &Url) -> bool {
    url.host_str().is_some_and(|host| host.parse::<BindHost>().is_ok_and(|host| host.is_loopback()))
}

/// Where an answer sends who asks, as the address of a server: without the path that was asked for there.
fn redirected(response: &reqwest::Response, path: &[String]) -> Option<String> {
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    let mut target = response.url().join(location).ok()?;
    target.set_query(None);
    let asked = format!("/{}", path.join("/"));
    let target = target.as_str().trim_end_matches('/');
    Some(target.strip_suffix(asked.as_str()).unwrap_or(target).to_owned())
}

/// The header that presents the key in a file.
fn key_header(path: &Path) -> Result<HeaderMap, ServerError> {
    let text = fs_err::read_to_string(path)
        .map_err(|source| ServerError::KeyFile { path: path.to_owned(), source: source.kind().into() })?;
    let key = text.lines().next().unwrap_or_default().trim();
    let value = HeaderValue::from_str(&format!("Bearer {key}")).ok().filter(|_| !key.is_empty());
    let mut value = value.ok_or_else(|| ServerError::NoKey(path.to_owned()))?;
    // Kept out of what the client's library logs.
    value.set_sensitive(true);
    Ok(HeaderMap::from_iter([(AUTHORIZATION, value)]))
}

/// What is asked of a server.
pub(super) struct Request {
    method: Method,
    path: Vec<String>,
    query: Vec<(&'static str, String)>,
    body: Option<Body>,
    content_type: &'static str,
    host: Option<&'static str>,
}

impl Request {
    /// A request without a body.
    pub(super) fn new(method: Method, path: &[&str]) -> Self {
        let path = path.iter().map(|part| (*part).to_owned()).collect();
        Self { method, path, query: Vec::new(), body: None, content_type: "", host: None }
    }

    pub(super) fn get(path: &[&str]) -> Self {
        Self::new(Method::GET, path)
    }

    /// A request with a JSON body.
    pub(super) fn json(method: Method, path: &[&str], body: &Value) -> Self {
        Self::new(method, path).with_body("application/json", body.to_string().into())
    }

    pub(super) fn with_body(self, content_type: &'static str, body: Body) -> Self {
        Self { body: Some(body), content_type, ..self }
    }

    /// A request to a server that is called so, whatever its address.
    pub(super) fn with_host(self, host: &'static str) -> Self {
        Self { host: Some(host), ..self }
    }

    pub(super) fn with_query(mut self, key: &'static str, value: &str) -> Self {
        self.query.push((key, value.to_owned()));
        self
    }
}

/// An answer as it comes.
pub(super) struct Pieces {
    stream: BoxStream<'static, reqwest::Result<Vec<u8>>>,
    shown: Url,
}

impl Pieces {
    /// The next piece; `None` after the last. An answer that is shorter than the server said is an error.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, ServerError> {
        self.stream.next().await.transpose().map_err(|source| ServerError::of(&self.shown, source))
    }
}

/// An answer that is read line by line.
pub(super) struct Lines {
    pieces: Pieces,
    read: Vec<u8>,
    /// Bytes of `read` in which no line ends.
    searched: usize,
}

impl Lines {
    /// The next line with its end; `None` after the last. What stands after the last line's end is none.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, ServerError> {
        loop {
            if let Some(end) = self.read[self.searched..].iter().position(|byte| *byte == b'\n') {
                let rest = self.read.split_off(self.searched + end + 1);
                self.searched = 0;
                return Ok(Some(std::mem::replace(&mut self.read, rest)));
            }
            self.searched = self.read.len();
            let Some(piece) = self.pieces.next().await? else { return Ok(None) };
            self.read.extend_from_slice(&piece);
        }
    }

    /// The next event of an answer that is a stream of them, each with JSON; `None` after the last.
    pub(super) async fn next_event(&mut self) -> Result<Option<Value>, ServerError> {
        while let Some(line) = self.next().await? {
            if let Some(event) = line.strip_prefix(b"data:").and_then(|data| serde_json::from_slice(data).ok()) {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }
}
