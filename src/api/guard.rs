//! Who may ask a server that has no keys: only this machine's own names, and no foreign page.
//!
//! A page on the web can make its visitor's browser call `http://127.0.0.1:8080`, directly or through a name that
//! resolves there (DNS rebinding). The browser tells on it: `Host` is the page's own name, `Origin` is the page, and
//! without `Origin`, as for an image, `Sec-Fetch-Site` says that the page is another's. On a server with keys the page
//! would need one, and the server may have any name. Behind a trusted proxy the host is the one that the proxy was
//! asked for.

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::{ApiError, Code};
use super::forwarded::Asked;
use super::state::AppState;
use crate::config::{AllowedHost, BindHost, Origin};

/// The hosts that are served.
#[derive(Debug)]
pub struct HostGuard {
    allowed: Vec<AllowedHost>,
    pages: Vec<Origin>,
}

impl HostGuard {
    /// Serves this machine's own names and the configured ones, and besides their own pages those of these origins.
    #[must_use]
    pub fn new(allowed: Vec<AllowedHost>, pages: Vec<Origin>) -> Self {
        Self { allowed, pages }
    }

    /// The other origins whose pages are served.
    #[must_use]
    pub fn pages(&self) -> &[Origin] {
        &self.pages
    }

    fn check(&self, uri: &Uri, headers: &HeaderMap, forwarded: &[String]) -> Result<(), ApiError> {
        // HTTP/2 has the authority in the request line.
        let header = headers.get(header::HOST).map(|value| value.to_str().unwrap_or_default());
        let direct = uri.authority().map(Authority::as_str).or(header).unwrap_or_default();
        let authorities =
            if forwarded.is_empty() { vec![direct] } else { forwarded.iter().map(String::as_str).collect() };
        let origin = headers.get(header::ORIGIN).map(|value| value.to_str().unwrap_or_default());
        authorities.into_iter().try_for_each(|authority| self.check_authority(authority, origin))?;
        if origin.is_none() && is_embedded(headers) {
            return Err(ApiError::new(
                Code::Forbidden,
                "a page of another origin may not have its visitor's browser ask this server, for an image say: \
                 follow a link to it, or call it with `fetch` from an origin in `server.cors_origins`",
            ));
        }
        Ok(())
    }

    fn check_authority(&self, authority: &str, origin: Option<&str>) -> Result<(), ApiError> {
        let host = without_port(authority);
        if !self.serves(host) {
            return Err(ApiError::new(
                Code::Misdirected,
                format!(
                    "this server is not `{}`: it answers as localhost and loopback addresses, and as the names \
                     in `server.allowed_hosts`",
                    host.chars().take(100).collect::<String>()
                ),
            ));
        }
        match origin {
            Some(origin) if !self.serves_page(origin, authority) => Err(ApiError::new(
                Code::Forbidden,
                "a page of another origin may not use this server: call it from the page's own server, serve the \
                 page from here, or name its origin in `server.cors_origins`",
            )),
            _ => Ok(()),
        }
    }

    fn serves_page(&self, origin: &str, authority: &str) -> bool {
        is_same_origin(origin, authority) || self.pages.iter().any(|page| page.as_str() == origin)
    }

    fn serves(&self, host: &str) -> bool {
        // An address of IPv6 stands in brackets here.
        let is_written_well = !host.contains(':') || host.starts_with('[');
        is_written_well && host.parse().is_ok_and(|host: BindHost| host.is_loopback())
            || self.allowed.iter().any(|allowed| allowed.matches(host))
    }
}

/// A page served by this server itself, `/docs`: its host and port are those of the request. The scheme is not
/// compared, for a proxy may have taken TLS off.
fn is_same_origin(origin: &str, authority: &str) -> bool {
    origin.split_once("://").is_some_and(|(_, origin)| origin.eq_ignore_ascii_case(authority))
}

/// Whether a page of another origin has a browser ask, and not for a page that its visitor then sees in its place. What
/// is fetched ahead (`Sec-Purpose`) nobody may ever see. Clients that are no browsers say nothing of this.
fn is_embedded(headers: &HeaderMap) -> bool {
    let says = |name: &str, word: &str| headers.get(name).is_some_and(|value| value.as_bytes() == word.as_bytes());
    let is_foreign = ["cross-site", "same-site"].into_iter().any(|site| says("sec-fetch-site", site));
    let is_opened = says("sec-fetch-mode", "navigate") && says("sec-fetch-dest", "document");
    is_foreign && (!is_opened || headers.contains_key("sec-purpose"))
}

fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !host.ends_with(':') => host,
        _ => authority,
    }
}

/// Refuses foreign hosts (421) and foreign pages (403), on a server without keys.
pub async fn refuse_foreign(State(state): State<AppState>, request: Request, next: Next) -> Response {
    if state.access.needs_keys() {
        return next.run(request).await;
    }
    let forwarded = request.extensions().get::<Asked>().map_or(&[][..], |asked| asked.hosts.as_slice());
    match state.guard.check(request.uri(), request.headers(), forwarded) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const PAGE: &str = "https://app.example";

    fn check(host: Option<&str>, origin: Option<&str>) -> Result<(), Code> {
        check_forwarded(host, origin, &[])
    }

    fn check_forwarded(host: Option<&str>, origin: Option<&str>, forwarded: &[&str]) -> Result<(), Code> {
        let guard =
            HostGuard::new(vec![AllowedHost::try_from("granary.example.org".to_owned()).expect("a host")], Vec::new());
        let mut headers = HeaderMap::new();
        for (name, value) in [(header::HOST, host), (header::ORIGIN, origin)] {
            if let Some(value) = value {
                headers.insert(name, value.parse().expect("a header"));
            }
        }
        let forwarded: Vec<String> = forwarded.iter().map(|&host| host.to_owned()).collect();
        guard.check(&Uri::from_static("/embed"), &headers, &forwarded).map_err(|error| error.code())
    }

    #[test]
    fn own_names_are_served_with_any_port() {
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1:1",
            "127.8.8.8",
            "[::1]:8080",
            "[::1]",
            "granary.example.org:443",
        ] {
            assert_eq!(check(Some(host), None), Ok(()), "{host}");
        }
    }

    #[test]
    fn foreign_names_are_not() {
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:8080",
            "128.0.0.1",
            "",
            "::1",
            "a:b@localhost",
        ] {
            assert_eq!(check(Some(host), None), Err(Code::Misdirected), "{host}");
        }
        assert_eq!(check(None, None), Err(Code::Misdirected));
    }

    #[test]
    fn a_forwarded_host_is_checked_in_place_of_the_proxys_own() {
        let (own, page) = (Some("granary:8080"), Some("https://granary.example.org"));
        assert_eq!(check_forwarded(own, page, &["granary.example.org"]), Ok(()));
        assert_eq!(check_forwarded(own, page, &["granary.example.org", "localhost"]), Err(Code::Forbidden));
        for forwarded in [&["evil.example"][..], &["localhost", "evil.example"], &[""]] {
            assert_eq!(check_forwarded(Some("localhost"), None, forwarded), Err(Code::Misdirected), "{forwarded:?}");
        }
    }

    #[test]
    fn other_pages_may_link_here_and_embed_nothing() {
        let check = |words: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static("localhost"))]);
            for &(name, word) in words {
                headers.insert(name, word.parse().expect("a header"));
            }
            let guard = HostGuard::new(Vec::new(), vec![Origin::try_from(PAGE.to_owned()).expect("an origin")]);
            guard.check(&Uri::from_static("/models/x/info"), &headers, &[]).map_err(|error| error.code())
        };
        let opened = [("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
        for site in ["cross-site", "same-site"] {
            let site = ("sec-fetch-site", site);
            assert_eq!(check(&[site]), Err(Code::Forbidden));
            assert_eq!(check(&[site, ("sec-fetch-dest", "image")]), Err(Code::Forbidden));
            assert_eq!(check(&[site, opened[0], ("sec-fetch-dest", "iframe")]), Err(Code::Forbidden));
            assert_eq!(check(&[site, opened[0], opened[1], ("sec-purpose", "prefetch")]), Err(Code::Forbidden));
            assert_eq!(check(&[site, opened[0], opened[1]]), Ok(()));
            // The origin says more.
            assert_eq!(check(&[site, ("origin", PAGE)]), Ok(()));
            assert_eq!(check(&[site, opened[0], opened[1], ("origin", "null")]), Err(Code::Forbidden));
        }
        for site in ["same-origin", "none"] {
            assert_eq!(check(&[("sec-fetch-site", site), ("sec-fetch-dest", "image")]), Ok(()), "{site}");
        }
    }

    #[test]
    fn only_pages_of_this_server_may_call() {
        assert_eq!(check(Some("localhost:8080"), Some("http://localhost:8080")), Ok(()));
        for origin in ["http://evil.example", "null", "http://localhost:3000", "http://localhost", ""] {
            assert_eq!(check(Some("localhost:8080"), Some(origin)), Err(Code::Forbidden), "{origin}");
        }
    }
}
