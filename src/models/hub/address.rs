//! Which addresses are a private network's, and looking up names without entering one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::redirect::RedirectError;

/// Looks up names for the connections themselves, so that a name cannot mean one machine when it is checked and another
/// when it is used.
#[derive(Clone)]
pub(super) struct GuardedResolver {
    /// The hub's host: where it is, is the operator's choice.
    endpoint: Arc<str>,
    /// The proxies' hosts: likewise.
    proxies: Arc<[String]>,
}

impl GuardedResolver {
    /// Guards the names of all hosts but the hub's and the proxies'.
    pub(super) fn new(endpoint: &Url, proxies: Vec<String>) -> Self {
        Self { endpoint: host_of(endpoint).into(), proxies: proxies.into() }
    }

    /// Whether the hub itself is in a private network, so that its files may be there too.
    pub(super) async fn allows_private(&self) -> bool {
        match self.endpoint.parse::<IpAddr>() {
            Ok(address) => !is_public(address),
            Err(_) => look_up(&self.endpoint).await.is_ok_and(|found| found.iter().any(|found| !is_public(found.ip()))),
        }
    }

    async fn allowed(self, name: String) -> Result<Addrs, Box<dyn std::error::Error + Send + Sync>> {
        let found = look_up(&name).await?;
        let is_trusted = name.eq_ignore_ascii_case(&self.endpoint)
            || self.proxies.iter().any(|proxy| name.eq_ignore_ascii_case(proxy));
        let all_public = found.iter().all(|found| is_public(found.ip()));
        if is_trusted || all_public || self.allows_private().await {
            return Ok(Box::new(found.into_iter()));
        }
        Err(Box::new(RedirectError::Private(name)))
    }
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(self.clone().allowed(name.as_str().to_owned()))
    }
}

async fn look_up(name: &str) -> std::io::Result<Vec<SocketAddr>> {
    // Port 0 becomes that of the address's scheme.
    Ok(tokio::net::lookup_host((name, 0)).await?.collect())
}

/// A host as a name or a bare IP address: an address writes IPv6 ones in brackets.
pub(super) fn host_of(url: &Url) -> &str {
    url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
}

/// Whether an address that names a machine by number names a public one. Names count as public here.
pub(super) fn is_public_literal(url: &Url) -> bool {
    host_of(url).parse().map_or(true, is_public)
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

/// By the registry of special-purpose addresses (RFC 6890 and what has been added to it).
fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_shared = a == 100 && (64..128).contains(&b);
    let is_protocol = (a, b, c) == (192, 0, 0);
    let is_benchmark = a == 198 && (b == 18 || b == 19);
    !(a == 0
        || a >= 224
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || is_shared
        || is_protocol
        || is_benchmark)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    // Addresses that carry an IPv4 one: mapped, translated (64:ff9b::/96) and tunnelled (2002::/16).
    let parts = address.segments();
    let inner = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match parts {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            is_public_v4(inner(high, low))
        }
        // Unspecified, loopback, and the outdated form of carrying IPv4; and what a network translates for itself (RFC 8215).
        [0, 0, 0, 0, 0, 0, _, _] | [0x64, 0xff9b, 1, ..] => false,
        _ => !(address.is_unique_local() || address.is_unicast_link_local() || address.is_multicast()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_addresses_are_told_apart() {
        for text in ["8.8.8.8", "172.15.0.1", "100.128.0.1", "2606:4700::1", "64:ff9b::808:808", "2002:808:808::1"] {
            assert!(is_public(text.parse().expect(text)), "{text}");
        }
        for text in [
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.1.1",
            "172.16.0.1",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b:1::808:808",
            "64:ff9b:1:ffff::1",
            "2002:a00:1::1",
        ] {
            assert!(!is_public(text.parse().expect(text)), "{text}");
        }
    }

    #[tokio::test]
    async fn hub_names_of_private_machines_are_not_looked_up_for_a_public_hub() {
        let resolver = |endpoint: &str| GuardedResolver::new(&Url::parse(endpoint).expect("an address"), Vec::new());
        let refused = resolver("https://8.8.8.8").allowed("localhost".to_owned()).await.err().expect("refused");
        assert!(refused.downcast_ref::<RedirectError>().is_some(), "{refused}");
        assert!(resolver("http://[fd00::1]").allowed("localhost".to_owned()).await.is_ok(), "as private as the hub");
        assert!(resolver("http://localhost").allowed("localhost".to_owned()).await.is_ok(), "the hub itself");
    }
}
