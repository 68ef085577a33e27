//! `server.cors_origins`: pages of other origins that may use the server.

use serde::{Deserialize, Serialize};

use super::server::BindHost;

/// An origin as browsers write it: scheme, host, and a port other than the scheme's own. Extensions of browsers, and
/// desktop programs that show pages, have schemes of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Origin(String);

/// A string that no browser sends as an origin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "found {0:?}, expected an origin such as \"https://app.example\", \"http://localhost:3000\" or \
     \"app://obsidian.md\": lower case, no path, and no port 80 or 443 where it is the usual one"
)]
pub struct OriginError(String);

/// Schemes of which browsers show no pages, or call their origin `null`.
const SCHEMES_OF_NO_PAGES: [&str; 8] = ["about", "blob", "data", "file", "ftp", "javascript", "ws", "wss"];

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
    let Some((scheme, authority)) = text.split_once("://") else { return false };
    let usual = match scheme {
        "http" => Some("80"),
        "https" => Some("443"),
        _ => None,
    };
    let port = authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']'));
    let (host, port) = port.map_or((authority, None), |(host, port)| (host, Some(port)));
    // A browser writes a number without zeros before it, and an IPv6 address in brackets.
    let is_port =
        |port: &str| Some(port) != usual && port.parse::<u16>().is_ok_and(|number| number.to_string() == port);
    let is_bracketed = host.contains(':') == host.starts_with('[');
    // Of schemes that they do not know browsers leave the host as it is: Safari's extensions have large letters there.
    let is_as_sent = usual.is_none() || !host.bytes().any(|byte| byte.is_ascii_uppercase());
    is_scheme(scheme) && host.parse::<BindHost>().is_ok() && is_bracketed && is_as_sent && port.is_none_or(is_port)
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'+' | b'-' | b'.'))
        && !SCHEMES_OF_NO_PAGES.contains(&text)
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
            "app://obsidian.md",
            "capacitor://localhost",
            "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
            "moz-extension://0197a1b2-7c3d-7e4f-8a5b-6c7d8e9f0a1b",
            "safari-web-extension://0197A1B2-7C3D-7E4F-8A5B-6C7D8E9F0A1B",
            "tauri://localhost",
            "vscode-webview://0i1ag3nd8fkuhkkpvfo9d2ov7t4jd2e0v4tp2qs9bvqmjm8ejcbn",
        ] {
            assert!(Origin::try_from(text.to_owned()).is_ok(), "{text}");
        }
        for text in [
            "",
            "*",
            "null",
            "app.example",
            "ftp://app.example",
            "ws://app.example",
            "file://app.example",
            "file://",
            "data:text/html,x",
            "blob:https://app.example",
            "blob://app.example",
            "javascript://app.example",
            "about:blank",
            "://app.example",
            "APP://obsidian.md",
            "a_b://obsidian.md",
            "1app://obsidian.md",
            "app://",
            "app://obsidian.md/",
            "app://obsidian.md:0x",
            "chrome-extension://*",
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
