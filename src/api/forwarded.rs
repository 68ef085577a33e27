//! What reverse proxies say of the requests they pass on: for whom they ask, and under which address the caller knows
//! this server.
//!
//! Anybody can write such headers, so they are believed only from the addresses in `server.trusted_proxies`, and only as
//! far as one of these has written them: a chain of proxies is followed from this end, up to the first that is not in the
//! list. What cannot be read is ignored with all that stands before it, for a caller may have written that. Where
//! `X-Forwarded-…` and `Forwarded` contradict each other, one of them came from the caller through a proxy that only
//! knows the other, and neither is believed.

mod standard;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, header};
use axum::middleware::Next;
use axum::response::Response;

use super::base;
use super::state::AppState;
use crate::config::{BasePath, BindHost, TrustedProxy};

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// The address at the other end of the connection, among a request's extensions.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// Who asks, and how they address this server, among a request's extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The caller's address: the last one that is no proxy of ours.
    pub client: IpAddr,
    /// Hosts that proxies of ours say the caller asked for, as they are; none where `Host` says it.
    pub hosts: Vec<String>,
    /// The server's address as the caller knows it, such as `https://granary.example.org`, where the proxies say both.
    pub origin: Option<String>,
    /// The path that a proxy has taken off before it passed the request on.
    pub prefix: BasePath,
}

/// Who is believed.
#[derive(Debug)]
pub struct Proxies {
    trusted: Vec<TrustedProxy>,
    /// Whether the log has it that somebody else sends such headers.
    stranger_told: AtomicBool,
    contradiction_told: AtomicBool,
}

/// What one kind of header says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Said {
    client: Option<IpAddr>,
    host: Option<String>,
    scheme: Option<&'static str>,
}

impl Proxies {
    /// Believes these.
    #[must_use]
    pub fn new(trusted: Vec<TrustedProxy>) -> Self {
        Self { trusted, stranger_told: AtomicBool::default(), contradiction_told: AtomicBool::default() }
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|proxy| proxy.holds(address))
    }

    /// Who asks, on a connection from this address.
    fn read(&self, peer: IpAddr, headers: &HeaderMap) -> Asked {
        // Who listens on `::` is told so of callers over IPv4.
        let peer = peer.to_canonical();
        let mut asked = Asked { client: peer, hosts: Vec::new(), origin: None, prefix: BasePath::default() };
        if !self.trusts(peer) {
            self.tell_of_stranger(peer, headers);
            return asked;
        }
        let (usual, standard) = (self.read_usual(peer, headers), self.read_standard(peer, headers));
        self.tell_of_contradiction(peer, &usual, &standard);
        asked.client = agreed(usual.client, standard.client).unwrap_or(peer);
        let host = agreed(usual.host.as_ref(), standard.host.as_ref());
        let scheme = agreed(usual.scheme, standard.scheme);
        if let (Some(host), Some(scheme)) = (host, scheme)
            && is_authority(host)
        {
            asked.origin = Some(format!("{scheme}://{host}"));
        }
        // Whoever checks them checks each: a caller may have added one.
        asked.hosts = usual.host.into_iter().chain(standard.host).collect();
        asked.prefix =
            last(headers, &PREFIX).and_then(|path| BasePath::try_from(path.to_owned()).ok()).unwrap_or_default();
        asked
    }

    /// `X-Forwarded-For`, to which each proxy adds whom it was asked by; of the others the last value.
    fn read_usual(&self, peer: IpAddr, headers: &HeaderMap) -> Said {
        let lines = headers.get_all(&FOR).iter().rev().map(|line| line.to_str().unwrap_or_default());
        let hops = lines.flat_map(|line| line.rsplit(',')).map(|hop| address(hop.trim()));
        let (mut hop, mut client) = (peer, None);
        for next in hops {
            let Some(next) = next.filter(|_| self.trusts(hop)) else { break };
            (hop, client) = (next, Some(next));
        }
        Said { client, host: last(headers, &HOST).map(str::to_owned), scheme: last(headers, &PROTO).and_then(scheme) }
    }

    /// `Forwarded` of RFC 7239, to which each proxy adds an element.
    fn read_standard(&self, peer: IpAddr, headers: &HeaderMap) -> Said {
        let lines = headers.get_all(header::FORWARDED).iter().rev();
        let (mut hop, mut said) = (peer, Said::default());
        for line in lines {
            let Some(elements) = line.to_str().ok().and_then(standard::elements) else { break };
            for element in elements.into_iter().rev() {
                if !self.trusts(hop) {
                    return said;
                }
                said.host = element.host.or(said.host);
                said.scheme = element.proto.as_deref().and_then(scheme).or(said.scheme);
                let Some(next) = element.client.as_deref().and_then(address) else { return said };
                (hop, said.client) = (next, Some(next));
            }
        }
        said
    }

    /// Says once that headers are ignored: the operator may have forgotten the setting.
    fn tell_of_stranger(&self, peer: IpAddr, headers: &HeaderMap) {
        let sent = [FOR, HOST, PROTO, PREFIX, header::FORWARDED].into_iter().find(|name| headers.contains_key(name));
        if let Some(name) = sent
            && !self.stranger_told.swap(true, Ordering::Relaxed)
        {
            tracing::info!(
                "{peer} sends `{name}`, which is ignored: it is not in `server.trusted_proxies`, where a reverse proxy \
                 belongs. This is said once"
            );
        }
    }

    fn tell_of_contradiction(&self, peer: IpAddr, usual: &Said, standard: &Said) {
        let differ = contradict(usual.client, standard.client)
            || contradict(usual.host.as_ref(), standard.host.as_ref())
            || contradict(usual.scheme, standard.scheme);
        if differ && !self.contradiction_told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the proxy at {peer} passes on `Forwarded` and `X-Forwarded-…` that contradict each other, and neither is \
                 believed: let it write one kind and remove the other. This is said once"
            );
        }
    }
}

/// What both say, or the one that says something.
fn agreed<T: PartialEq>(one: Option<T>, other: Option<T>) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => (one == other).then_some(one),
        (one, other) => one.or(other),
    }
}

fn contradict<T: PartialEq>(one: Option<T>, other: Option<T>) -> bool {
    matches!((one, other), (Some(one), Some(other)) if one != other)
}

/// The last value of a header: the one that the nearest proxy wrote.
fn last<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let line = headers.get_all(name).iter().next_back()?.to_str().ok()?;
    line.rsplit(',').next().map(str::trim).filter(|value| !value.is_empty())
}

/// An address as proxies write it: IPv6 in brackets or without, and a port or none.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().or_else(|_| text.parse().map(|socket: SocketAddr| socket.ip()));
    address.ok().map(|address| address.to_canonical())
}

fn scheme(text: &str) -> Option<&'static str> {
    ["https", "http"].into_iter().find(|scheme| scheme.eq_ignore_ascii_case(text))
}

/// Whether a host, with a port or without, may stand in a URL.
fn is_authority(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let is_bracketed = host.contains(':') == host.starts_with('[');
    is_bracketed && host.parse::<BindHost>().is_ok() && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// Notes who asks, and puts the path that a proxy took off before the paths that answers name.
pub async fn note(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let Some(&Peer(peer)) = request.extensions().get() else { return next.run(request).await };
    let asked = state.proxies.read(peer, request.headers());
    let prefix = asked.prefix.clone();
    request.extensions_mut().insert(asked);
    let mut response = next.run(request).await;
    base::put_before_location(&prefix, &mut response);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads these lines on a connection from the proxy at 10.0.0.1; 10.0.0.2 is another one.
    fn read(lines: &[(&'static str, &str)]) -> Asked {
        read_from("10.0.0.1", lines)
    }

    fn read_from(peer: &str, lines: &[(&'static str, &str)]) -> Asked {
        let trusted = vec![TrustedProxy::try_from("10.0.0.0/30".to_owned()).expect("a network")];
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().expect("a value"));
        }
        Proxies::new(trusted).read(ip(peer), &headers)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn strangers_are_not_believed() {
        let lines = [
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-host", "a.example"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-prefix", "/a"),
            ("forwarded", "for=1.1.1.1;host=a.example;proto=https"),
        ];
        let nothing = Asked { client: ip("9.9.9.9"), hosts: vec![], origin: None, prefix: BasePath::default() };
        assert_eq!(read_from("9.9.9.9", &lines), nothing);
        assert_eq!(read_from("::ffff:9.9.9.9", &lines), nothing);
        assert_eq!(read(&[]), Asked { client: ip("10.0.0.1"), ..nothing });
    }

    #[test]
    fn the_client_is_the_last_address_that_is_no_proxy() {
        for (value, client) in [
            ("1.1.1.1", "1.1.1.1"),
            // What stands before it, the caller has written.
            ("6.6.6.6, 1.1.1.1", "1.1.1.1"),
            ("6.6.6.6, 1.1.1.1, 10.0.0.2", "1.1.1.1"),
            ("10.0.0.2, 1.1.1.1, 10.0.0.2", "1.1.1.1"),
            ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
            ("1.1.1.1:4711", "1.1.1.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:4711", "2001:db8::1"),
            ("::ffff:1.1.1.1", "1.1.1.1"),
            // Whoever cannot be read was asked by nobody we know.
            ("6.6.6.6, nonsense", "10.0.0.1"),
            ("6.6.6.6, unknown, 10.0.0.2", "10.0.0.2"),
            ("6.6.6.6,", "10.0.0.1"),
            ("", "10.0.0.1"),
            ("1.1.1.1\t", "1.1.1.1"),
        ] {
            assert_eq!(read(&[("x-forwarded-for", value)]).client, ip(client), "{value:?}");
        }
        let lines = [("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "10.0.0.2")];
        assert_eq!(read(&lines).client, ip("1.1.1.1"));
    }

    #[test]
    fn the_standard_header_says_the_same() {
        for (value, client, origin) in [
            ("for=1.1.1.1", "1.1.1.1", None),
            ("For=\"[2001:db8::1]:4711\";Proto=HTTPS;Host=a.example", "2001:db8::1", Some("https://a.example")),
            (
                "for=6.6.6.6;host=b.example;proto=http, for=1.1.1.1;host=a.example;proto=https",
                "1.1.1.1",
                Some("https://a.example"),
            ),
            ("for=1.1.1.1;host=a.example;proto=https, for=10.0.0.2", "1.1.1.1", Some("https://a.example")),
            ("proto=https;host=\"a.example:8443\"", "10.0.0.1", Some("https://a.example:8443")),
            ("for=6.6.6.6, for=_hidden;host=a.example;proto=http", "10.0.0.1", Some("http://a.example")),
            ("for=unknown", "10.0.0.1", None),
            ("for=\"6.6.6.6, for=1.1.1.1", "10.0.0.1", None),
        ] {
            let asked = read(&[("forwarded", value)]);
            assert_eq!((asked.client, asked.origin.as_deref()), (ip(client), origin), "{value}");
        }
        // A line that a caller has left open ends before the proxy's own.
        let lines = [("forwarded", "for=\"6.6.6.6"), ("forwarded", "for=1.1.1.1, for=10.0.0.2")];
        assert_eq!(read(&lines).client, ip("1.1.1.1"));
    }

    #[test]
    fn what_contradicts_itself_is_not_believed() {
        let asked = read(&[
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-host", "a.example"),
            ("x-forwarded-proto", "https"),
            ("forwarded", "for=6.6.6.6;host=localhost;proto=https"),
        ]);
        assert_eq!((asked.client, asked.origin), (ip("10.0.0.1"), None));
        assert_eq!(asked.hosts, ["a.example", "localhost"], "both are checked");
        let asked = read(&[("x-forwarded-for", "1.1.1.1"), ("forwarded", "for=1.1.1.1;host=a.example")]);
        assert_eq!((asked.client, asked.hosts), (ip("1.1.1.1"), vec!["a.example".to_owned()]));
    }

    #[test]
    fn urls_are_made_of_hosts_and_schemes_only() {
        let origin = |host: &str, scheme: &str| {
            read(&[("x-forwarded-host", host), ("x-forwarded-proto", scheme)]).origin.unwrap_or_default()
        };
        assert_eq!(origin("a.example", "https"), "https://a.example");
        assert_eq!(origin("b.example, a.example:80", "https, http"), "http://a.example:80");
        assert_eq!(origin("[::1]:80", "http"), "http://[::1]:80");
        for host in ["a.example/x", "a@b.example", "a.example:x", "a b", "::1", "<a>", "a.example?", ""] {
            assert_eq!(origin(host, "https"), "", "{host}");
        }
        assert_eq!(origin("a.example", "javascript"), "");
    }

    #[test]
    fn a_prefix_is_a_path_of_plain_segments() {
        let prefix = |value: &str| read(&[("x-forwarded-prefix", value)]).prefix.to_string();
        for (value, path) in [("/a/b/", "/a/b"), ("/", ""), ("//evil.example", ""), ("/a/..", ""), ("a", ""), ("", "")]
        {
            assert_eq!(prefix(value), path, "{value}");
        }
    }
}
