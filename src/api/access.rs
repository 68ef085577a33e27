//! Who may do what: the one table of routes and the scope that each needs, and the check before every request.
//!
//! A server without keys lets everybody through whom `guard` lets through. On one with keys a request presents its key,
//! and the table says what that must allow. A path that is not in the table needs `admin`; a method that is not there with
//! its path is one that the router refuses, for every key alike. Tests hold every operation of the document to be there,
//! and the router to take no other method.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::{ApiError, Code};
use super::state::AppState;
use crate::auth::{Keys, RateExceeded, Unknown};
use crate::config::OpenRoutes;
use crate::domain::{ApiKey, Scope};
use crate::engine::meter::Meter;

/// What a route needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A key that allows this.
    Scope(Scope),
    /// Nothing where the configuration leaves it open, a key that allows to read where it does not.
    Unless(OpenRoutes),
}

const EMBED: Need = Need::Scope(Scope::Embed);
const READ: Need = Need::Scope(Scope::Read);
const WRITE: Need = Need::Scope(Scope::Write);
const ADMIN: Need = Need::Scope(Scope::Admin);
const HEALTH: Need = Need::Unless(OpenRoutes::Health);
const METRICS: Need = Need::Unless(OpenRoutes::Metrics);
const DOCS: Need = Need::Unless(OpenRoutes::Docs);

/// Every route: its method, its pattern and its need. A pattern that ends with `*` stands for all that begin like it; the
/// first that fits counts.
const ROUTES: &[(Method, &str, Need)] = &[
    // Models
    (Method::GET, "/models", READ),
    (Method::POST, "/models", ADMIN),
    (Method::GET, "/models/active", READ),
    (Method::PUT, "/models/active", ADMIN),
    (Method::GET, "/models/{name}", READ),
    (Method::POST, "/models/{name}", EMBED),
    (Method::POST, "/models/{name}/", EMBED),
    (Method::DELETE, "/models/{name}", ADMIN),
    (Method::POST, "/models/{name}/load", ADMIN),
    (Method::POST, "/models/{name}/unload", ADMIN),
    (Method::GET, "/models/{name}/events", READ),
    (Method::POST, "/models/{name}/accept", ADMIN),
    (Method::GET, "/hardware", READ),
    (Method::GET, "/spaces", READ),
    (Method::POST, "/spaces", ADMIN),
    (Method::POST, "/spaces/adopt", ADMIN),
    // A snapshot is the whole database.
    (Method::GET, "/snapshots", ADMIN),
    (Method::POST, "/snapshots", ADMIN),
    (Method::GET, "/snapshots/{name}", ADMIN),
    (Method::DELETE, "/snapshots/{name}", ADMIN),
    // What spans models and grains
    (Method::GET, "/reembeddings", READ),
    (Method::POST, "/reembeddings", ADMIN),
    (Method::GET, "/reembeddings/{id}", READ),
    (Method::GET, "/reembeddings/{id}/events", READ),
    (Method::GET, "/reembeddings/{id}/failures", READ),
    (Method::POST, "/reembeddings/{id}/pause", ADMIN),
    (Method::POST, "/reembeddings/{id}/resume", ADMIN),
    (Method::POST, "/reembeddings/{id}/cancel", ADMIN),
    (Method::POST, "/reembeddings/{id}/rollback", ADMIN),
    (Method::POST, "/reembeddings/{id}/purge", ADMIN),
    (Method::GET, "/comparisons", READ),
    (Method::POST, "/comparisons", ADMIN),
    (Method::GET, "/comparisons/{id}", READ),
    (Method::GET, "/comparisons/{id}/report", READ),
    (Method::DELETE, "/comparisons/{id}", ADMIN),
    // Grains
    (Method::GET, "/grains", READ),
    (Method::POST, "/grains", WRITE),
    (Method::POST, "/grains/search", READ),
    (Method::POST, "/grains/count", READ),
    (Method::POST, "/grains/export", READ),
    (Method::POST, "/grains/delete", WRITE),
    (Method::POST, "/grains/import", WRITE),
    (Method::GET, "/grains/{id}", READ),
    (Method::PUT, "/grains/{id}", WRITE),
    (Method::PATCH, "/grains/{id}", WRITE),
    (Method::DELETE, "/grains/{id}", WRITE),
    // text-embeddings-inference
    (Method::POST, "/", EMBED),
    (Method::POST, "/invocations", EMBED),
    (Method::POST, "/embed", EMBED),
    (Method::POST, "/similarity", EMBED),
    (Method::POST, "/tokenize", EMBED),
    (Method::POST, "/decode", EMBED),
    (Method::GET, "/info", EMBED),
    (Method::GET, "/health", HEALTH),
    (Method::GET, "/", HEALTH),
    (Method::GET, "/ping", HEALTH),
    // … and for one model
    (Method::POST, "/models/{name}/embed", EMBED),
    (Method::POST, "/models/{name}/similarity", EMBED),
    (Method::POST, "/models/{name}/tokenize", EMBED),
    (Method::POST, "/models/{name}/decode", EMBED),
    (Method::GET, "/models/{name}/info", EMBED),
    (Method::GET, "/models/{name}/health", HEALTH),
    // OpenAI
    (Method::POST, "/v1/embeddings", EMBED),
    (Method::POST, "/embeddings", EMBED),
    (Method::POST, "/models/{name}/v1/embeddings", EMBED),
    (Method::POST, "/models/{name}/embeddings", EMBED),
    (Method::GET, "/v1/models", EMBED),
    (Method::GET, "/models/{name}/v1/models", EMBED),
    (Method::GET, "/v1/models/{*name}", EMBED),
    // Operations
    (Method::GET, "/health/live", HEALTH),
    (Method::GET, "/health/ready", HEALTH),
    (Method::GET, "/metrics", METRICS),
    (Method::GET, "/openapi.json", DOCS),
    (Method::GET, "/docs*", DOCS),
];

/// What the table says of a route; `None` where it says nothing.
#[must_use]
pub fn listed(method: &Method, pattern: &str) -> Option<Need> {
    // Axum answers HEAD with the route of GET.
    let method = if method == Method::HEAD { &Method::GET } else { method };
    ROUTES.iter().find(|(known, listed, _)| known == method && fits(listed, pattern)).map(|(_, _, need)| *need)
}

fn fits(listed: &str, pattern: &str) -> bool {
    listed.strip_suffix('*').map_or(listed == pattern, |start| pattern.starts_with(start))
}

/// What a request needs; `None` where nothing answers it, which any key may learn: there is no such path, or it has other
/// methods.
fn need_of(request: &Request) -> Option<Need> {
    let pattern = request.extensions().get::<MatchedPath>()?.as_str();
    let is_known = || ROUTES.iter().any(|(_, listed, _)| fits(listed, pattern));
    listed(request.method(), pattern).or_else(|| (!is_known()).then_some(ADMIN))
}

/// A pattern as the OpenAPI document has it, which knows no wildcards.
#[must_use]
pub fn documented(pattern: &str) -> String {
    pattern.replace("{*", "{")
}

/// Whether the table has exactly this route, written as here or as in the document.
#[must_use]
pub fn is_listed(method: &Method, pattern: &str) -> bool {
    let is_one = |listed: &str| documented(listed) == documented(pattern) && !listed.ends_with('*');
    ROUTES.iter().any(|(known, listed, _)| known == method && is_one(listed))
}

/// Whether a request asks how the server is: it is answered however busy that is, and nobody wants to read of it.
#[must_use]
pub fn is_probe(request: &Request) -> bool {
    let pattern = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    matches!(pattern.and_then(|pattern| listed(request.method(), pattern)), Some(HEALTH | METRICS))
}

/// Whether a request may change something, so that it must not be taken for one that did nothing.
#[must_use]
pub fn may_change_something(request: &Request) -> bool {
    !request.method().is_safe() && matches!(need_of(request), Some(WRITE | ADMIN))
}

/// The keys, and what is answered without one.
#[derive(Clone, Debug)]
pub struct Access {
    keys: Arc<Keys>,
    open: Vec<OpenRoutes>,
}

/// The key that a request came with, among its extensions.
#[derive(Clone, Debug)]
pub struct Holder(pub Arc<ApiKey>);

/// Whom a route answers that may be open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// Who may read all that the server says: anybody where there are no keys, and whoever came with one.
    Known,
    /// Who came without a key to a server that has some. Which models there are is not for them, nor why one fails: the
    /// reasons name folders and hosts.
    Stranger,
}

impl FromRequestParts<AppState> for Asker {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Infallible> {
        let is_known = parts.extensions.get::<Holder>().is_some() || !state.access.needs_keys();
        Ok(if is_known { Self::Known } else { Self::Stranger })
    }
}

/// By what a request was let in, for those that go on for long: keys are taken away meanwhile.
pub struct Leave {
    access: Access,
    key: Option<Arc<ApiKey>>,
}

impl FromRequestParts<AppState> for Leave {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Infallible> {
        let key = parts.extensions.get::<Holder>().map(|Holder(key)| Arc::clone(key));
        Ok(Self { access: state.access.clone(), key })
    }
}

impl Leave {
    /// Whether the request would be let in now to what needs this scope.
    #[must_use]
    pub fn allows(&self, scope: Scope) -> bool {
        match &self.key {
            Some(key) => self.access.keys.still_allow(key, scope),
            None => !self.access.needs_keys(),
        }
    }
}

impl Access {
    /// Lets in whom these keys let in, and everybody to these routes.
    #[must_use]
    pub fn new(keys: Arc<Keys>, open: Vec<OpenRoutes>) -> Self {
        Self { keys, open }
    }

    /// Whether requests need a key.
    #[must_use]
    pub fn needs_keys(&self) -> bool {
        self.keys.are_needed()
    }

    /// The key by which a request may pass; `None` when it needs none and comes with none.
    fn admit(&self, request: &Request, now: Instant) -> Result<Option<Arc<ApiKey>>, ApiError> {
        if !self.needs_keys() {
            return Ok(None);
        }
        let need = need_of(request);
        if let Some(Need::Unless(routes)) = need
            && self.open.contains(&routes)
        {
            return Ok(self.recognized(request));
        }
        let key = self.keys.find(presented(request.headers())?)?;
        // Before anything is refused: whose request it was is wanted then most of all.
        tracing::Span::current().record("key", key.name.as_str());
        self.keys.count_request(&key, now)?;
        let scope = match need {
            Some(Need::Scope(scope)) => scope,
            Some(Need::Unless(_)) => Scope::Read,
            None => return Ok(Some(key)),
        };
        if key.scopes.allow(scope) {
            return Ok(Some(key));
        }
        let message = format!("this needs the scope `{scope}`, and the key `{}` has `{}`", key.name, key.scopes);
        Err(ApiError::new(Code::Forbidden, message))
    }

    /// The key that a request brings where it needs none. One that is not valid counts as none there: a probe must not
    /// fail by it. Nor is it counted, so that a probe does not use up what its key allows.
    fn recognized(&self, request: &Request) -> Option<Arc<ApiKey>> {
        let key = self.keys.find(presented(request.headers()).ok()?).ok()?;
        tracing::Span::current().record("key", key.name.as_str());
        Some(key)
    }
}

/// The key in the headers. `x-api-key` is ours alone and counts first: `Authorization` may be meant for a proxy.
///
/// # Errors
/// When a header is there twice, or says something else than a key.
fn presented(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    if let Some(key) = only_one(headers, &HeaderName::from_static("x-api-key"))? {
        return Ok(Some(key));
    }
    let Some(value) = only_one(headers, &header::AUTHORIZATION)? else { return Ok(None) };
    let (scheme, rest) = value.split_once([' ', '\t']).unwrap_or((value, ""));
    let key = if scheme.eq_ignore_ascii_case("bearer") {
        rest.trim()
    } else if rest.is_empty() {
        // LlamaIndex sends the key without a scheme.
        value
    } else {
        let message = "`Authorization` holds no key: send `Authorization: Bearer KEY` or `x-api-key: KEY`";
        return Err(ApiError::new(Code::Unauthorized, message));
    };
    Ok(Some(key).filter(|key| !key.is_empty()))
}

/// The value of a header; `None` where it is missing or empty.
fn only_one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let (first, second) = (values.next(), values.next());
    if second.is_some() {
        let message = format!("`{name}` is there more than once: send one key");
        return Err(ApiError::new(Code::Unauthorized, message));
    }
    let text = first.map(|value| value.to_str().map(str::trim)).transpose();
    let text = text.map_err(|_| ApiError::new(Code::Unauthorized, format!("`{name}` is not visible ASCII")))?;
    Ok(text.filter(|text| !text.is_empty()))
}

impl From<Unknown> for ApiError {
    fn from(error: Unknown) -> Self {
        Self::new(Code::Unauthorized, error.to_string())
    }
}

impl From<RateExceeded> for ApiError {
    fn from(error: RateExceeded) -> Self {
        Self::new(Code::Overloaded, error.to_string()).with_retry_after(error.wait)
    }
}

/// Refuses who has no key (401), too many requests or tokens of one (429), and what it does not allow (403).
pub async fn check(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let key = match state.access.admit(&request, Instant::now()) {
        Err(error) => return error.into_response(),
        Ok(None) => return next.run(request).await,
        Ok(Some(key)) => key,
    };
    request.extensions_mut().insert(Holder(Arc::clone(&key)));
    if key.tokens.is_none() {
        return next.run(request).await;
    }
    let keys = Arc::clone(&state.access.keys);
    let meter = Meter::new(move |n_tokens| keys.count_tokens(&key, n_tokens, Instant::now()));
    meter.measure(next.run(request)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_in(lines: &[(&'static str, &str)]) -> Result<Option<String>, Code> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().expect("a value"));
        }
        presented(&headers).map(|key| key.map(str::to_owned)).map_err(|error| error.code())
    }

    #[test]
    fn a_key_is_read_from_every_place_where_clients_put_it() {
        for value in ["Bearer k", "bearer k", "BEARER   k ", "Bearer\tk", "k"] {
            assert_eq!(key_in(&[("authorization", value)]), Ok(Some("k".into())), "{value:?}");
        }
        assert_eq!(key_in(&[("x-api-key", "k")]), Ok(Some("k".into())));
        for of_the_proxy in ["Basic dTpw", "Bearer other"] {
            assert_eq!(key_in(&[("authorization", of_the_proxy), ("x-api-key", "k")]), Ok(Some("k".into())));
        }
        assert_eq!(key_in(&[("authorization", "Bearer k"), ("x-api-key", "")]), Ok(Some("k".into())));
    }

    #[test]
    fn empty_headers_hold_no_key_and_others_are_refused() {
        for value in ["", "Bearer", "Bearer ", "bearer  "] {
            assert_eq!(key_in(&[("authorization", value)]), Ok(None), "{value:?}");
        }
        assert_eq!(key_in(&[]), Ok(None));
        for value in ["Basic dTpw", "Digest a=b", "k k"] {
            assert_eq!(key_in(&[("authorization", value)]), Err(Code::Unauthorized), "{value:?}");
        }
        for name in ["authorization", "x-api-key"] {
            assert_eq!(key_in(&[(name, "a"), (name, "b")]), Err(Code::Unauthorized), "{name}");
        }
    }

    #[test]
    fn the_table_tells_routes_apart_by_their_method_and_whole_pattern() {
        assert_eq!(listed(&Method::POST, "/models/{name}"), Some(EMBED));
        assert_eq!(listed(&Method::POST, "/models/{name}/"), Some(EMBED));
        assert_eq!(listed(&Method::DELETE, "/models/{name}"), Some(ADMIN));
        assert_eq!(listed(&Method::HEAD, "/grains/{id}"), Some(READ));
        assert_eq!(listed(&Method::GET, "/docs/{*rest}"), Some(DOCS));
        for (method, pattern) in
            [(Method::TRACE, "/embed"), (Method::GET, "/models/{name}/new"), (Method::POST, "/docs")]
        {
            assert_eq!(listed(&method, pattern), None, "{method} {pattern}");
        }
    }
}
