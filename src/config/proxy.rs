//! `server.trusted_proxies`: who is believed when it says for whom it asks.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// An address, or a network of them, from which a reverse proxy connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustedProxy(IpNet);

/// A string that is no address and no network, or does not say which.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustedProxyError {
    /// It cannot be read.
    #[error(
        "found {0:?}, expected an IP address or a network, such as \"10.1.2.3\", \"172.16.0.0/12\" or \"fd00::/8\""
    )]
    Malformed(String),
    /// The address has digits beyond the network's length: one of the two is a slip.
    #[error("found \"{found}\", expected the network, \"{network}\", or the one address, \"{address}\"")]
    HostBits {
        /// What was written.
        found: IpNet,
        /// The whole network around it.
        network: IpNet,
        /// The address before the slash.
        address: IpAddr,
    },
}

impl TrustedProxy {
    /// Whether it has this address. An IPv4 address counts as itself however IPv6 spells it.
    #[must_use]
    pub fn holds(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl TryFrom<String> for TrustedProxy {
    type Error = TrustedProxyError;

    fn try_from(text: String) -> Result<Self, TrustedProxyError> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self(address.to_canonical().into()));
        }
        let found: IpNet = text.parse().map_err(|_| TrustedProxyError::Malformed(text.chars().take(80).collect()))?;
        let network = found.trunc();
        if network.addr() == found.addr() {
            Ok(Self(network))
        } else {
            Err(TrustedProxyError::HostBits { found, network, address: found.addr() })
        }
    }
}

impl From<TrustedProxy> for String {
    fn from(proxy: TrustedProxy) -> Self {
        proxy.to_string()
    }
}

/// A single address is written without the length of its network.
impl fmt::Display for TrustedProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() { self.0.addr().fmt(f) } else { self.0.fmt(f) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(text: &str) -> TrustedProxy {
        TrustedProxy::try_from(text.to_owned()).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn a_network_holds_its_addresses_however_they_are_spelled() {
        for (written, address, is_held) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "127.0.0.2", false),
            ("::ffff:127.0.0.1", "127.0.0.1", true),
            ("fd00::/8", "fd12::1", true),
            ("::1", "::1", true),
            ("0.0.0.0/0", "::1", false),
        ] {
            let address: IpAddr = address.parse().expect("an address");
            assert_eq!(proxy(written).holds(address), is_held, "{written} {address}");
        }
    }

    #[test]
    fn it_is_written_as_it_is_read() {
        for text in ["10.0.0.0/8", "10.1.2.3", "fd00::/8", "::1", "0.0.0.0/0"] {
            assert_eq!(proxy(text).to_string(), text);
        }
    }

    #[test]
    fn slips_are_refused() {
        for text in ["", "*", "localhost", "10.0.0.0/33", "10.0.0", "10.0.0.0/", "10.1.2.3:80", "[::1]", "fd00::/8 "] {
            assert_eq!(
                TrustedProxy::try_from(text.to_owned()),
                Err(TrustedProxyError::Malformed(text.into())),
                "{text}"
            );
        }
        let error = TrustedProxy::try_from("10.1.2.3/8".to_owned()).expect_err("bits of a host").to_string();
        assert!(error.contains("\"10.0.0.0/8\"") && error.contains("\"10.1.2.3\""), "{error}");
    }
}
