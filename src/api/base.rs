//! Everything below `server.base_path`: the one place that knows it. It is taken off before a request is routed and put
//! before the paths that answers name, so that routes, families and scopes are the same wherever the server stands.

use std::convert::Infallible;

use axum::Router;
use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderValue, Uri, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::Response;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio_util::sync::CancellationToken;

use super::error::{ApiError, Code};
use super::forwarded::Asked;
use super::{error, requests};
use crate::config::BasePath;

/// Serves these routes below a path, and nothing elsewhere. `given_up` is as [`requests::observe`] has it.
pub fn below(base: &BasePath, routes: Router, given_up: &CancellationToken) -> Router {
    if base.is_root() {
        return routes;
    }
    let sentence = format!("there is nothing here: this server answers below `{base}` (`server.base_path`)");
    let elsewhere = Router::new()
        .fallback(async || ApiError::new(Code::NotFound, sentence))
        .layer(from_fn(error::render))
        .layer(from_fn_with_state(given_up.clone(), requests::observe));
    let (base, routes, elsewhere) =
        (base.clone(), TowerToHyperService::new(routes), TowerToHyperService::new(elsewhere));
    Router::new().fallback(async move |mut request: Request| -> Response {
        let Some(uri) = taken_off(&base, request.uri()) else {
            let Ok(response) = elsewhere.call(request).await;
            return response;
        };
        *request.uri_mut() = uri;
        request.extensions_mut().insert(base.clone());
        let Ok(mut response) = routes.call(request).await;
        put_before_location(&base, &mut response);
        response
    })
}

/// What stands before the paths that an answer's body names: what a proxy has taken off, then `server.base_path`.
pub struct Before(pub String);

impl<S: Sync> FromRequestParts<S> for Before {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        let prefix = parts.extensions.get::<Asked>().map(|asked| asked.prefix.to_string()).unwrap_or_default();
        let base = parts.extensions.get::<BasePath>().map(ToString::to_string).unwrap_or_default();
        Ok(Self(prefix + &base))
    }
}

/// The address without the path before it; `None` where that is not there.
fn taken_off(base: &BasePath, uri: &Uri) -> Option<Uri> {
    let path = base.strip(uri.path())?;
    let target = uri.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(target).ok()?);
    Uri::from_parts(parts).ok()
}

/// Puts a path before the one that an answer names in `Location`.
pub(super) fn put_before_location(base: &BasePath, response: &mut Response) {
    if base.is_root() {
        return;
    }
    let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
    let Some(path) = location.filter(|location| location.starts_with('/')) else { return };
    if let Ok(whole) = HeaderValue::try_from(format!("{base}{path}")) {
        response.headers_mut().insert(header::LOCATION, whole);
    }
}
