//! `[server]`: where the server listens and what a request may cost.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use super::base_path::BasePath;
use super::origin::Origin;
use super::proxy::TrustedProxy;
use super::spelling::{self, Problem, outside};

const MAX_BODY: RangeInclusive<ByteSize> = ByteSize::kib(1)..=ByteSize::gib(2);
const BODY_MEMORY: RangeInclusive<ByteSize> = ByteSize::kib(1)..=ByteSize::tib(1);
const MAX_TEXT: RangeInclusive<ByteSize> = ByteSize::b(1)..=ByteSize::gib(2);
/// The most inputs of a request that any configuration allows.
pub const MOST_INPUTS: usize = 1_000_000;
const MAX_INPUTS: RangeInclusive<usize> = 1..=MOST_INPUTS;
const REQUEST_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_hours(24);
const MAX_CONNECTIONS: RangeInclusive<usize> = 1..=1_000_000;
const MAX_CONCURRENT_REQUESTS: RangeInclusive<usize> = 1..=1_000_000;
/// Of a head, of a pause in a body, and between two requests.
const SILENCE: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_hours(24);
const DRAIN_DELAY: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(1);
const SHUTDOWN_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_hours(1);

/// `[server]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// The address or host name to listen on.
    #[serde(deserialize_with = "spelling::parsed")]
    pub host: BindHost,
    /// The port to listen on; 0 takes a free one.
    pub port: u16,
    /// The certificates that TLS shows, in PEM, the server's own first; plain HTTP when `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_certificate: Option<PathBuf>,
    /// The key of the first of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// The path below which everything is served.
    pub base_path: BasePath,
    /// Host names that are served besides `localhost`, `127.0.0.1` and `[::1]`.
    pub allowed_hosts: Vec<AllowedHost>,
    /// Pages of other origins that may use the server.
    pub cors_origins: Vec<Origin>,
    /// Reverse proxies that are believed when they say for whom they ask.
    pub trusted_proxies: Vec<TrustedProxy>,
    /// The largest request body.
    #[serde(with = "spelling::size")]
    pub max_body: ByteSize,
    /// Memory for the bodies of all requests together, and for what JSON becomes when it is read; never less than
    /// `max_body`.
    #[serde(with = "spelling::size")]
    pub body_memory: ByteSize,
    /// Memory for answers that are made and not yet sent.
    #[serde(with = "spelling::size")]
    pub answer_memory: ByteSize,
    /// The most texts in one request.
    pub max_inputs: usize,
    /// The most bytes of one text, but for those of grains.
    #[serde(with = "spelling::size")]
    pub max_text: ByteSize,
    /// The most connections at once; more wait in the system's backlog.
    pub max_connections: usize,
    /// The most requests at once, but for those that ask how the server is.
    pub max_concurrent_requests: usize,
    /// How long the head of a request may take.
    #[serde(with = "spelling::duration")]
    pub header_timeout: Duration,
    /// How long no byte of a body may come, nor one of an answer be taken.
    #[serde(with = "spelling::duration")]
    pub body_timeout: Duration,
    /// How long a connection may ask nothing between two requests.
    #[serde(with = "spelling::duration")]
    pub idle_timeout: Duration,
    /// How long one request may take.
    #[serde(with = "spelling::duration")]
    pub request_timeout: Duration,
    /// How long requests of single routes may take, by method and pattern.
    pub route_timeouts: BTreeMap<String, RouteTimeout>,
    /// How long requests are taken after the first signal to stop.
    #[serde(with = "spelling::duration")]
    pub drain_delay: Duration,
    /// How long requests may finish after that.
    #[serde(with = "spelling::duration")]
    pub shutdown_timeout: Duration,
}

/// How long a request of a route may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RouteTimeout(#[serde(with = "spelling::duration")] pub Duration);

impl ServerConfig {
    pub(super) fn problems(&self) -> Vec<Problem> {
        [
            outside("server.max_body", &self.max_body, &MAX_BODY, |size| spelling::size::spell(*size)),
            outside("server.body_memory", &self.body_memory, &BODY_MEMORY, |size| spelling::size::spell(*size)),
            outside("server.answer_memory", &self.answer_memory, &BODY_MEMORY, |size| spelling::size::spell(*size)),
            outside("server.max_inputs", &self.max_inputs, &MAX_INPUTS, ToString::to_string),
            outside("server.max_text", &self.max_text, &MAX_TEXT, |size| spelling::size::spell(*size)),
            outside("server.max_connections", &self.max_connections, &MAX_CONNECTIONS, ToString::to_string),
            outside(
                "server.max_concurrent_requests",
                &self.max_concurrent_requests,
                &MAX_CONCURRENT_REQUESTS,
                ToString::to_string,
            ),
            outside("server.header_timeout", &self.header_timeout, &SILENCE, spelling::duration::spell),
            outside("server.body_timeout", &self.body_timeout, &SILENCE, spelling::duration::spell),
            outside("server.idle_timeout", &self.idle_timeout, &SILENCE, spelling::duration::spell),
            outside("server.request_timeout", &self.request_timeout, &REQUEST_TIMEOUT, spelling::duration::spell),
            outside("server.drain_delay", &self.drain_delay, &DRAIN_DELAY, spelling::duration::spell),
            outside("server.shutdown_timeout", &self.shutdown_timeout, &SHUTDOWN_TIMEOUT, spelling::duration::spell),
        ]
        .into_iter()
        .flatten()
        .chain(self.half_of_tls())
        .chain(self.route_timeouts.iter().filter_map(|(route, time)| {
            let key = format!("server.route_timeouts.{route:?}");
            outside(&key, &time.0, &REQUEST_TIMEOUT, spelling::duration::spell)
        }))
        .collect()
    }

    /// A certificate is of no use without its key, nor a key without its certificate.
    fn half_of_tls(&self) -> Option<Problem> {
        let (there, missing) = match (&self.tls_certificate, &self.tls_key) {
            (Some(_), None) => ("server.tls_certificate", "server.tls_key"),
            (None, Some(_)) => ("server.tls_key", "server.tls_certificate"),
            _ => return None,
        };
        Some(Problem::new(there, format!("found a path, and none in `{missing}`, expected both for TLS, or neither")))
    }
}

/// What the server binds to: an IP address, or a name that is resolved when it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct BindHost(String);

/// A string that is neither an address nor a host name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// There is a port behind the host.
    #[error("found {0:?}, expected a host without a port")]
    WithPort(String),
    /// The string is empty or has characters that no host name has.
    #[error("found {0:?}, expected an IP address or a host name, such as \"granary.example.org\"")]
    Malformed(String),
}

impl BindHost {
    /// The host as `(host, port)` addresses of the standard library take it: IPv6 without brackets.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether only this machine can reach it. A name other than `localhost` counts as reachable: what it resolves to
    /// may change after the start.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.0
            .parse::<IpAddr>()
            .map_or_else(|_| self.0.eq_ignore_ascii_case("localhost"), |address| address.to_canonical().is_loopback())
    }
}

impl FromStr for BindHost {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(inner) if inner.contains(':') && inner.parse::<IpAddr>().is_ok() => Ok(Self(inner.to_owned())),
            _ if text.parse::<IpAddr>().is_ok() => Ok(Self(text.to_owned())),
            _ => parse_name(text).map(|()| Self(text.to_owned())),
        }
    }
}

impl fmt::Display for BindHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A host as a request's `Host` header names it: lower case, IPv6 in brackets, no port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AllowedHost(String);

impl AllowedHost {
    /// Whether the host part of a `Host` header, without its port, is this one. Case is ignored.
    #[must_use]
    pub fn matches(&self, host: &str) -> bool {
        self.0.eq_ignore_ascii_case(host)
    }
}

impl TryFrom<String> for AllowedHost {
    type Error = HostError;

    fn try_from(text: String) -> Result<Self, HostError> {
        let host = BindHost::from_str(&text)?;
        let is_ipv6 = host.as_str().contains(':');
        Ok(Self(if is_ipv6 { format!("[{host}]") } else { host.0 }.to_ascii_lowercase()))
    }
}

impl From<AllowedHost> for String {
    fn from(host: AllowedHost) -> Self {
        host.0
    }
}

fn parse_name(text: &str) -> Result<(), HostError> {
    let without_port = text.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map(|(host, _)| host);
    if without_port.is_some_and(|host| host.parse::<BindHost>().is_ok()) {
        return Err(HostError::WithPort(text.to_owned()));
    }
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    if text.len() <= 253 && text.split('.').all(is_label) {
        Ok(())
    } else {
        Err(HostError::Malformed(text.chars().take(80).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_what_only_this_machine_reaches() {
        for host in ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost", "LOCALHOST", "::ffff:127.0.0.1"] {
            assert!(host.parse::<BindHost>().expect(host).is_loopback(), "{host}");
        }
        for host in ["0.0.0.0", "::", "192.168.1.5", "granary", "localhost.example.org"] {
            assert!(!host.parse::<BindHost>().expect(host).is_loopback(), "{host}");
        }
    }

    #[test]
    fn hosts_with_ports_schemes_or_wildcards_are_refused() {
        for host in ["localhost:8080", "0.0.0.0:80", "[::1]:80"] {
            assert_eq!(host.parse::<BindHost>(), Err(HostError::WithPort(host.into())));
        }
        for host in ["", "*", "*.example.org", "http://a", "a/b", "a b", "a..b", "[127.0.0.1]", "[x]", ":80"] {
            assert_eq!(host.parse::<BindHost>(), Err(HostError::Malformed(host.into())));
        }
    }

    #[test]
    fn allowed_hosts_compare_as_the_header_spells_them() {
        let allowed = |text: &str| AllowedHost::try_from(text.to_owned()).expect("a host");
        assert!(allowed("Granary.Example.ORG").matches("granary.example.org"));
        assert!(allowed("fd00::1").matches("[fd00::1]"));
        assert!(!allowed("example.org").matches("evil.example.org"));
    }
}
