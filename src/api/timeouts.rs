//! How long a request may take: the usual time, and that of single routes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::access;
use super::bodies::Impatient;
use super::error::{ApiError, Code};
use super::state::AppState;

/// The time that each route has.
#[derive(Clone, Debug)]
pub struct Timeouts {
    usual: Duration,
    /// By method and pattern as the OpenAPI document has it, such as `POST /grains/search`.
    of_routes: BTreeMap<String, Duration>,
}

/// The configuration gives a time to something that is no route.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "found {0:?}, expected a route as the OpenAPI document has it, such as \"POST /grains/search\" or \"GET /grains/{{id}}\""
)]
pub struct UnknownRoute(String);

impl Timeouts {
    /// These times for these routes, and the usual one for all others.
    ///
    /// # Errors
    /// [`UnknownRoute`] with the first that is none.
    pub fn new(usual: Duration, of_routes: BTreeMap<String, Duration>) -> Result<Self, UnknownRoute> {
        if let Some(route) = of_routes.keys().find(|route| !is_route(route)) {
            return Err(UnknownRoute(route.clone()));
        }
        let of_routes = of_routes.into_iter().map(|(route, time)| (access::documented(&route), time)).collect();
        Ok(Self { usual, of_routes })
    }

    /// The time of a request, and the setting that says so.
    fn of(&self, request: &Request) -> (Duration, Cow<'static, str>) {
        let usual = (self.usual, "server.request_timeout".into());
        if self.of_routes.is_empty() {
            return usual;
        }
        let Some(pattern) = request.extensions().get::<MatchedPath>() else { return usual };
        // Axum answers HEAD with the route of GET.
        let method = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
        let route = access::documented(&format!("{method} {}", pattern.as_str()));
        match self.of_routes.get(&route) {
            Some(time) => (*time, format!("server.route_timeouts.{route:?}").into()),
            None => usual,
        }
    }
}

fn is_route(text: &str) -> bool {
    let route = text.split_once(' ').and_then(|(method, pattern)| Some((method.parse::<Method>().ok()?, pattern)));
    route.is_some_and(|(method, pattern)| access::is_listed(&method, pattern))
}

/// Gives up on a request after its time, and on a body that stops coming.
pub async fn limit(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let (time, setting) = state.timeouts.of(&request);
    let request = request.map(|body| Body::new(Impatient::new(body, state.limits.body_timeout)));
    tokio::time::timeout(time, next.run(request)).await.unwrap_or_else(|_| {
        let message = format!(
            "the request took longer than {} s and was given up; ask for less at a time, or raise `{setting}`",
            time.as_secs_f64()
        );
        ApiError::new(Code::Timeout, message).with_retry_after(Duration::from_secs(5)).into_response()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_given_to_routes_that_there_are() {
        let with = |route: &str| Timeouts::new(Duration::ZERO, BTreeMap::from([(route.to_owned(), Duration::ZERO)]));
        for route in ["POST /embed", "GET /models/{name}", "POST /v1/embeddings", "GET /v1/models/{name}"] {
            assert!(with(route).expect("a route").of_routes.contains_key(route), "{route}");
        }
        assert!(with("GET /v1/models/{*name}").expect("a route").of_routes.contains_key("GET /v1/models/{name}"));
        for other in ["", "/embed", "GET /embed", "post /embed", "POST /embed/", "GET /models/x", "GET /docs*", "A B C"]
        {
            assert_eq!(with(other).err(), Some(UnknownRoute(other.to_owned())), "{other}");
        }
    }
}
