//! HTTP: the only place that knows it.
//!
//! Owns the routes, how requests are read and errors written, and the OpenAPI document. Handlers hold no logic: they
//! extract, parse, call one service method and convert. Start at [`routes()`], which reads as a table of contents.

pub mod access;
pub mod active;
pub mod adoption;
pub mod answer_memory;
pub mod base;
pub mod bodies;
pub mod body_memory;
mod callers;
pub mod code;
pub mod comparison;
pub mod comparisons;
pub mod connections;
mod cors;
mod crowd;
pub mod embed;
pub mod error;
pub mod events;
pub mod extract;
mod fields;
pub mod forwarded;
#[doc(hidden)]
pub mod fuzzing;
pub mod grains;
pub mod guard;
pub mod hardware;
pub mod info;
pub mod inputs;
mod measured;
pub mod models;
pub mod openai;
pub mod openapi;
pub mod operations;
mod parameters;
pub mod prompt;
pub mod reembeddings;
pub mod registration;
pub mod relayed;
pub mod requests;
pub mod responses;
pub mod similarity;
pub mod snapshots;
pub mod spaces;
pub mod state;
pub mod timeouts;
pub mod tokens;
pub mod truncation;
mod vectors;

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderValue, Method, Uri, header};
use axum::middleware::{from_fn, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::{Config, SwaggerUi};

use self::error::{ApiError, Code};
use self::forwarded::Asked;
use self::state::AppState;
use crate::config::BasePath;

/// Every route of the server.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(openapi::Head::openapi())
        // Models
        .routes(routes!(models::list, registration::register))
        .routes(routes!(active::get, active::put))
        .routes(routes!(models::get, embed::infer_with_model, registration::delete))
        .routes(routes!(models::load))
        .routes(routes!(models::unload))
        .routes(routes!(events::follow))
        .routes(routes!(spaces::accept))
        .routes(routes!(spaces::list, spaces::declare))
        .routes(routes!(adoption::adopt_space))
        .routes(routes!(comparisons::list, comparisons::create))
        .routes(routes!(comparisons::get, comparisons::delete))
        .routes(routes!(comparisons::report))
        .routes(routes!(snapshots::list, snapshots::create))
        .routes(routes!(snapshots::get, snapshots::delete))
        .routes(routes!(hardware::get))
        // Changing the model
        .routes(routes!(reembeddings::list, reembeddings::begin))
        .routes(routes!(reembeddings::get))
        .routes(routes!(reembeddings::follow))
        .routes(routes!(reembeddings::failures))
        .routes(routes!(reembeddings::pause))
        .routes(routes!(reembeddings::resume))
        .routes(routes!(reembeddings::cancel))
        .routes(routes!(reembeddings::roll_back))
        .routes(routes!(reembeddings::purge))
        // Grains
        .routes(routes!(grains::many::list, grains::batch::create))
        .routes(routes!(grains::search::search))
        .routes(routes!(grains::many::count))
        .routes(routes!(grains::many::delete))
        .routes(routes!(grains::transfer::export))
        .routes(routes!(grains::transfer::import))
        .routes(routes!(grains::one::get, grains::one::put, grains::one::patch, grains::one::delete))
        // text-embeddings-inference
        .routes(routes!(embed::infer, info::health_at_root))
        .routes(routes!(embed::invocations))
        .routes(routes!(embed::embed))
        .routes(routes!(similarity::similarity))
        .routes(routes!(tokens::tokenize))
        .routes(routes!(tokens::decode))
        .routes(routes!(info::info))
        .routes(routes!(info::health))
        .routes(routes!(info::ping))
        // … and for one model
        .routes(routes!(embed::embed_with_model))
        .routes(routes!(similarity::similarity_with_model))
        .routes(routes!(tokens::tokenize_with_model))
        .routes(routes!(tokens::decode_with_model))
        .routes(routes!(info::info_of_model))
        .routes(routes!(info::health_of_model))
        // OpenAI
        .routes(routes!(openai::embeddings))
        .routes(routes!(openai::embeddings_without_version))
        .routes(routes!(openai::embeddings_with_model))
        .routes(routes!(openai::embeddings_without_version_with_model))
        .routes(routes!(openai::models))
        .routes(routes!(openai::models_with_model))
        .routes(routes!(openai::model))
        // Operations
        .routes(routes!(operations::live))
        .routes(routes!(operations::ready))
        .routes(routes!(operations::metrics))
}

/// The routes with everything that stands around them, the outermost first, below a path.
pub fn router(state: AppState, base: &BasePath) -> Router {
    let (router, document) = routes().split_for_parts();
    let max_body = usize::try_from(state.limits.max_body.as_u64()).unwrap_or(usize::MAX);
    let router = router
        .merge(docs(openapi::complete(document), base))
        // `InferenceClient` posts to a model's URL as it was given. The document has no path twice, for that slash alone.
        .route("/models/{name}/", post(embed::infer_with_model))
        .fallback(async |method: Method, uri: Uri| not_served(&method, uri.path()))
        .method_not_allowed_fallback(|| async {
            ApiError::new(Code::MethodNotAllowed, "this path has other methods; the `allow` header lists them")
        });
    // As one layer: each alone would be boxed, and copied with all that it stands around, several times for each request.
    let inner = (
        from_fn(error::render),
        CatchPanicLayer::custom(requests::answer_panic),
        from_fn_with_state(state.clone(), guard::refuse_foreign),
        from_fn_with_state(state.clone(), access::check),
        from_fn_with_state(state.clone(), requests::limit_number),
        from_fn_with_state(state.clone(), answer_memory::bound),
        from_fn_with_state(state.clone(), body_memory::share),
        from_fn_with_state(state.clone(), timeouts::limit),
        from_fn_with_state(state.clone(), callers::note),
        DefaultBodyLimit::max(max_body),
    );
    let observe = from_fn_with_state(state.given_up.clone(), requests::observe);
    let router = match cors::layer(state.guard.pages()) {
        Some(cors) => router.layer((observe, cors, inner)),
        None => router.layer((observe, inner)),
    };
    base::below(base, router.with_state(state.clone()), &state.given_up)
        .layer((from_fn_with_state(state, forwarded::note), from_fn(relayed::answer_when_read)))
}

/// The page sends requests: no other page may lay itself around it and have its visitor press a button unseen.
const DOCS_POLICY: &str = "frame-ancestors 'none'";

/// The document, with the address under which the caller knows the server, and a page that shows it. The page's own answer
/// to an unknown file is an empty one, and to a name that is not UTF-8 plain text.
fn docs(document: utoipa::openapi::OpenApi, base: &BasePath) -> Router<AppState> {
    let (document, base) = (Arc::new(document), base.clone());
    let document = get(async move |asked: Option<Extension<Asked>>| {
        let url = openapi::url(asked.as_deref(), &base);
        Json(openapi::at(document.as_ref().clone(), url))
    });
    // The page finds the document whatever stands before both of them. By default it sends the document's address to a
    // validator on the web.
    let config = Config::new(["../openapi.json"]).validator_url("none");
    let page = Router::from(SwaggerUi::new("/docs").config(config));
    let page = page.layer(map_response(async |mut response: Response| {
        if response.status().is_client_error() {
            return nothing_here().into_response();
        }
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(DOCS_POLICY));
        response
    }));
    Router::new().route("/openapi.json", document).merge(page)
}

/// The answer where there is no route.
fn not_served(method: &Method, path: &str) -> ApiError {
    if method == Method::POST && code::is_of_another_kind(path) {
        let sentence = "Granary makes one vector of each text, and does nothing else with models: no re-ranking, no \
                        classification, no sparse vectors and no vectors of single tokens";
        return ApiError::new(Code::Unsupported, sentence);
    }
    if let ["models", owner, name, _, ..] = path.split('/').skip(1).collect::<Vec<_>>().as_slice()
        && ![owner, name].iter().any(|part| part.is_empty() || part.contains('%'))
    {
        let sentence = format!(
            "there is nothing here; `/docs` lists what there is. If `{owner}/{name}` is a model, write its name in a path \
             as `{owner}%2F{name}`"
        );
        return ApiError::new(Code::NotFound, sentence);
    }
    nothing_here()
}

fn nothing_here() -> ApiError {
    ApiError::new(Code::NotFound, "there is nothing here; `/docs` lists what there is")
}
