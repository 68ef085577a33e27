//! Which pages of other origins may use the server from a browser: none, unless `server.cors_origins` names them.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowHeaders, CorsLayer};

use crate::config::Origin;

/// How long a browser remembers what it may do.
const MAX_AGE: Duration = Duration::from_mins(10);

/// Headers of answers that a page may read.
const EXPOSED: [HeaderName; 9] = [
    header::ETAG,
    header::LOCATION,
    header::RETRY_AFTER,
    HeaderName::from_static("x-dimensions"),
    HeaderName::from_static("x-model"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-should-retry"),
    HeaderName::from_static("x-space"),
    HeaderName::from_static("x-truncated"),
];

/// Answers what browsers ask before they let a page of these origins send a request, without a key, and tells them that
/// its page may read the answer, an error too. `None` where there are no such origins.
pub fn layer(origins: &[Origin]) -> Option<CorsLayer> {
    let values: Vec<HeaderValue> = origins.iter().filter_map(|origin| origin.as_str().parse().ok()).collect();
    let layer = CorsLayer::new()
        .allow_origin(values)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        // Clients send headers of their own, such as OpenAI's `X-Stainless-…`. The origins are listed, and nothing that a
        // browser adds by itself is a key here.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(EXPOSED)
        .max_age(MAX_AGE);
    (!origins.is_empty()).then_some(layer)
}
