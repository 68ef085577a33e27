//! `server.cors_origins`: pages of other origins that may use the server.

use serde::{Deserialize, Serialize};

use super::server::BindHost;

/// An origin as browsers write it: scheme, host, and a port other than the scheme's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Origin(String);

/// A string that no browser sends as an origin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "found {0:?}, expected an origin such as \"https://app.example\" or \"http://localhost:3000\": lower case, no path, \
     and no port 80 or 443 where it is the usual one"
)]
pub struct OriginError(String);

impl Origin {
    /// As the header `Origin` has it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Origin {
    type Error = OriginError;

    fn try_from(text: String) -> Result<Self, OriginError> {
        if is_origin(&text) { Ok(Self(text)) } else { Err(OriginError(text.chars().take(80).collect())) }
    }
}

impl From<Origin> for String {
    fn from(origin: Origin) -> Self {
        origin.0
    }
}

fn is_origin(text: &str) -> bool {
    let usual = match text.split_once("://") {
        Some(("http", _)) => "80",
        Some(("https", _)) => "443",
        _ => return false,
    };
    let authority = text.split_once("://").map_or("", |(_, authority)| authority);
    let port = authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']'));
    let (host, port) = port.map_or((authority, None), |(host, port)| (host, Some(port)));
    // A browser writes a number without zeros before it, and an IPv6 address in brackets.
    let is_port = |port: &str| port != usual && port.parse::<u16>().is_ok_and(|number| number.to_string() == port);
    let is_bracketed = host.contains(':') == host.starts_with('[');
    let is_lower_case = !text.bytes().any(|byte| byte.is_ascii_uppercase());
    host.parse::<BindHost>().is_ok() && is_bracketed && is_lower_case && port.is_none_or(is_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_browser_sends_is_an_origin_and_nothing_else_is() {
        for text in [
            "https://app.example",
            "http://localhost:3000",
            "https://app.example:8443",
            "http://[::1]:3000",
            "http://[::1]",
        ] {
            assert!(Origin::try_from(text.to_owned()).is_ok(), "{text}");
        }
        for text in [
            "",
            "*",
            "null",
            "app.example",
            "ftp://app.example",
            "https://app.example/",
            "https://app.example/a",
            "https://App.example",
            "https://app.example:443",
            "http://app.example:80",
            "http://app.example:08",
            "https://*.example",
            "https://",
            "https://a@b",
        ] {
            assert!(Origin::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
