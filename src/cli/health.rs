//! `granary health`: is the server of this configuration ready? For the health check of a container, in whose image no
//! other client is.

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use reqwest::Url;
use serde_json::Value;

use super::client::{Client, Request, ServerArgs, ServerError, is_loopback};
use super::output::{ProcessError, print_answer, printable};
use super::pinned::{self, NoCertificate};
use crate::config::{Config, ConfigError, ConfigSources, Overrides, ServerConfig};
use crate::tls::tls;

/// A server that takes longer to say how it is counts as not ready.
const PATIENCE: Duration = Duration::from_secs(5);

/// A name that every server without keys answers to, which the one address that it listens on need not be.
const OWN_NAME: &str = "localhost";

/// The flags of `granary health`.
#[derive(Clone, Debug, Default, Args)]
pub struct HealthArgs {
    /// Read this configuration file to know where the server listens [default: granary.toml, if there is one]
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
    /// Ask the server at this address [default: where the configuration says that it listens]
    #[arg(long, env = "GRANARY_URL", hide_env_values = true)]
    pub url: Option<String>,
    /// The file whose first line is the API key to send, where `auth.open` leaves "health" out
    #[arg(long, value_name = "PATH", env = "GRANARY_API_KEY_FILE")]
    pub api_key_file: Option<PathBuf>,
}

/// The server is not ready, or cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// The configuration says not where the server listens.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The server would not know its own certificate.
    #[error(transparent)]
    Certificate(#[from] NoCertificate),
    /// The server shows another one.
    #[error(
        "{base} shows another certificate than the one in `{}`: a server that cannot take a new one goes on with the one \
         before, and its log says why",
        path.display()
    )]
    OtherCertificate {
        /// The address.
        base: Url,
        /// The file.
        path: PathBuf,
        /// What is wrong with the certificate.
        source: reqwest::Error,
    },
    /// What the server says, or that it says nothing of the kind.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// It takes too long.
    #[error("the server at {url} has not said within {} s how it is", PATIENCE.as_secs())]
    Silent {
        /// The address.
        url: String,
    },
    /// The process.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

impl HealthError {
    /// An error of a client that trusts nothing but the certificate in this file, where there is one.
    fn of(error: ServerError, pinned: Option<&Path>) -> Self {
        match (error, pinned) {
            (ServerError::Untrusted { base, source }, Some(path)) => {
                Self::OtherCertificate { base, path: path.to_owned(), source }
            }
            (error, _) => Self::Server(error),
        }
    }
}

/// Prints to `out` that the server is ready, and with which model.
///
/// # Errors
/// [`HealthError::Server`] when it is not, in its own words.
pub fn run(args: HealthArgs, out: &mut impl Write) -> Result<(), HealthError> {
    let mut request = Request::get(&["health", "ready"]);
    let mut pinned: Option<PathBuf> = None;
    let (url, tls) = if let Some(url) = args.url {
        (url, tls())
    } else {
        let server = Config::load(&ConfigSources::from_process(args.config, Overrides::default()))?.server;
        request = request.with_host(OWN_NAME);
        let url = address(&server);
        let tells_no_secret = args.api_key_file.is_none() && Url::parse(&url).is_ok_and(|url| is_loopback(&url));
        let tls = match server.tls_certificate {
            None => tls(),
            // Half renewed, the one in the file is not the one that a ready server shows.
            Some(_) if tells_no_secret => pinned::trusting_any(),
            // It is made out to a name, and the server is asked by its address.
            Some(path) => pinned::trusting(pinned.insert(path))?,
        };
        (url, tls)
    };
    let client = Client::with_tls(&ServerArgs { url, api_key_file: args.api_key_file }, tls)?;
    let said = async {
        let asked = tokio::time::timeout(PATIENCE, client.ask(request)).await;
        let answer = asked
            .map_err(|_| HealthError::Silent { url: client.shown().to_string() })?
            .map_err(|error| HealthError::of(error, pinned.as_deref()))?;
        let word = |key: &str| answer.get(key).and_then(Value::as_str).unwrap_or("unknown").to_owned();
        let text = format!("{}: the active model, `{}`, is {}\n", word("status"), word("model"), word("model_state"));
        Ok::<_, HealthError>(printable(&text))
    };
    print_answer(said, out)
}

/// Where this machine reaches a server of this configuration.
fn address(server: &ServerConfig) -> String {
    let host = match server.host.as_str().parse::<IpAddr>() {
        // What listens on every address listens on the machine's own.
        Ok(IpAddr::V4(every)) if every.is_unspecified() => "127.0.0.1".to_owned(),
        Ok(IpAddr::V6(every)) if every.is_unspecified() => "[::1]".to_owned(),
        Ok(IpAddr::V6(one)) => format!("[{one}]"),
        _ => server.host.to_string(),
    };
    let scheme = if server.tls_certificate.is_some() { "https" } else { "http" };
    format!("{scheme}://{host}:{}{}", server.port, server.base_path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_asked_where_it_listens() {
        for (host, port, base_path, expected) in [
            ("127.0.0.1", 8080, "/", "http://127.0.0.1:8080"),
            ("0.0.0.0", 80, "/", "http://127.0.0.1:80"),
            ("[::]", 8080, "/granary", "http://[::1]:8080/granary"),
            ("fd00::1", 8080, "/", "http://[fd00::1]:8080"),
            ("granary.example", 8080, "/a/b/", "http://granary.example:8080/a/b"),
        ] {
            let mut server = Config::default().server;
            server.host = host.parse().expect("a host");
            server.port = port;
            server.base_path = base_path.to_owned().try_into().expect("a path");
            assert_eq!(address(&server), expected);
            server.tls_certificate = Some("tls.crt".into());
            assert_eq!(address(&server), expected.replace("http:", "https:"));
        }
    }
}
