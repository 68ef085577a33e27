//! Where a download may be sent, and what may be sent along.
//!
//! A hub keeps its large files with others, so redirects must be followed; but what the hub says must not make this
//! machine ask its own network, and the token belongs to the hub alone. [`next_hop`] decides on addresses as they are
//! written; which machine a name stands for is decided when it is looked up, by the resolver.

use reqwest::Url;

use super::address::is_public_literal;

/// Redirects after which a chain is given up.
const MAX_REDIRECTS: usize = 10;

/// Why a redirect is not followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedirectError {
    /// Too many.
    #[error("it sends from one address to the next {MAX_REDIRECTS} times")]
    TooMany,
    /// No address.
    #[error("it names no address to go to")]
    Malformed,
    /// Neither `https` nor `http`.
    #[error("it sends to a `{0}` address")]
    Scheme(String),
    /// From `https` to `http`.
    #[error("it sends from https to http at {0}, where anybody on the way could read and change what is sent")]
    Downgrade(String),
    /// To a machine of the local network.
    #[error("it sends to {0}, an address of this machine's own network")]
    Private(String),
}

/// The next request of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Where to.
    pub url: Url,
    /// Whether the hub's token goes along.
    pub with_token: bool,
}

/// The chain so far.
#[derive(Clone, Copy, Debug)]
pub struct Chain<'a> {
    /// The hub.
    pub endpoint: &'a Url,
    /// Who sent the redirect.
    pub from: &'a Url,
    /// Redirects that were followed before.
    pub n_followed: usize,
    /// Whether the endpoint is itself in a private network, so that its files may be too.
    pub allows_private: bool,
}

/// Decides on one redirect: other hosts by `https` without the token, the hub itself with it; no way from `https` to
/// `http`, to other schemes, or into a private network.
///
/// # Errors
/// [`RedirectError`], without the address's path and query: they may hold a signature.
pub fn next_hop(chain: Chain<'_>, location: &str) -> Result<Hop, RedirectError> {
    if chain.n_followed >= MAX_REDIRECTS {
        return Err(RedirectError::TooMany);
    }
    let mut url = chain.from.join(location).map_err(|_| RedirectError::Malformed)?;
    let host = url.host_str().unwrap_or_default().to_owned();
    match (chain.from.scheme(), url.scheme()) {
        (_, "https") | ("http", "http") => {}
        (_, "http") => return Err(RedirectError::Downgrade(host)),
        (_, other) => return Err(RedirectError::Scheme(other.to_owned())),
    }
    let is_hub = url.origin() == chain.endpoint.origin();
    if !is_hub && !chain.allows_private && !is_public_literal(&url) {
        return Err(RedirectError::Private(host));
    }
    // A name and password would be sent as a header of their own; without them the address means the same.
    if url.set_username("").is_err() || url.set_password(None).is_err() {
        return Err(RedirectError::Malformed);
    }
    Ok(Hop { url, with_token: is_hub })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HUB: &str = "https://huggingface.co/granary/tiny/resolve/main/x";

    #[test]
    fn hub_redirects_are_followed_or_refused_by_a_table() {
        let private = |host: &str| Err(RedirectError::Private(host.to_owned()));
        for (location, expected) in [
            ("/api/other", Ok(("https://huggingface.co/api/other", true))),
            ("https://huggingface.co/y", Ok(("https://huggingface.co/y", true))),
            ("https://huggingface.co:444/y", Ok(("https://huggingface.co:444/y", false))),
            ("https://huggingface.co.evil.example/y", Ok(("https://huggingface.co.evil.example/y", false))),
            ("https://cdn.example/y?sig=1", Ok(("https://cdn.example/y?sig=1", false))),
            ("//cdn.example/y", Ok(("https://cdn.example/y", false))),
            ("https://u:p@cdn.example/y", Ok(("https://cdn.example/y", false))),
            ("http://huggingface.co/y", Err(RedirectError::Downgrade("huggingface.co".into()))),
            ("http://cdn.example/y", Err(RedirectError::Downgrade("cdn.example".into()))),
            ("file:///etc/passwd", Err(RedirectError::Scheme("file".into()))),
            ("ftp://cdn.example/y", Err(RedirectError::Scheme("ftp".into()))),
            ("https://", Err(RedirectError::Malformed)),
            ("https://127.0.0.1/y", private("127.0.0.1")),
            ("https://2130706433/y", private("127.0.0.1")),
            ("https://10.1.2.3/y", private("10.1.2.3")),
            ("https://169.254.169.254/latest", private("169.254.169.254")),
            ("https://[::1]/y", private("[::1]")),
            ("https://[fd00::1]/y", private("[fd00::1]")),
            ("https://[::ffff:192.168.0.1]/y", private("[::ffff:c0a8:1]")),
            ("https://8.8.8.8/y", Ok(("https://8.8.8.8/y", false))),
        ] {
            let url = Url::parse(HUB).expect("an address");
            let chain = Chain { endpoint: &url, from: &url, n_followed: 0, allows_private: false };
            let found = next_hop(chain, location).map(|hop| (hop.url.to_string(), hop.with_token));
            assert_eq!(found, expected.map(|(url, with_token)| (url.to_owned(), with_token)), "{location}");
        }
    }

    #[test]
    fn hub_redirects_from_elsewhere_keep_the_rules() {
        let hub = Url::parse("http://10.0.0.1:8000").expect("an address");
        let cdn = Url::parse("https://cdn.example/x").expect("an address");
        let chain = Chain { endpoint: &hub, from: &cdn, n_followed: 9, allows_private: true };
        assert_eq!(next_hop(chain, "/y").map(|hop| hop.with_token), Ok(false), "relative to who sent it");
        assert_eq!(next_hop(chain, "http://10.0.0.1:8000/y"), Err(RedirectError::Downgrade("10.0.0.1".into())));
        assert_eq!(next_hop(chain, "https://10.0.0.2/y").map(|hop| hop.with_token), Ok(false), "as private as the hub");
        assert_eq!(next_hop(Chain { n_followed: 10, ..chain }, "/y"), Err(RedirectError::TooMany));
        let mirror = Chain { from: &hub, ..chain };
        assert_eq!(next_hop(mirror, "http://10.0.0.2/y").map(|hop| hop.with_token), Ok(false), "http stays http");
        assert_eq!(next_hop(mirror, "/y").map(|hop| hop.with_token), Ok(true));
    }
}
