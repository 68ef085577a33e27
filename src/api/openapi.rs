//! The OpenAPI document: what `routes!` gathers, under this head.

use std::collections::BTreeMap;

use axum::http::Method;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::schema::Schema;
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::server::Server;
use utoipa::openapi::{HeaderBuilder, Ref, RefOr};
use utoipa::{Modify, OpenApi, ToSchema};

use super::access::{self, Need};
use super::embed::RootAnswer;
use super::error::{OpenAiError, ProblemBody, TeiError};
use super::forwarded::Asked;
use super::grains::filter::{FilterBody, MAX_ATTRIBUTES};
use super::openai::EmbeddingList;
use super::requests::REQUEST_ID;
use crate::config::BasePath;
use crate::domain::Scope;

/// The document without its routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Granary",
        description = "Text embeddings from several models in one process, and a store that knows which model made \
                       each vector. Speaks the languages of text-embeddings-inference and OpenAI too.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    tags(
        (name = "models", description = "Which models there are, and which are loaded"),
        (name = "spaces", description = "Which vectors may be compared, and what proves it"),
        (name = "comparisons", description = "What a change of the model would do, before it is made"),
        (name = "grains", description = "Text records, found by meaning and by words"),
        (name = "reembeddings", description = "Jobs that give grains vectors in another space, which then takes over"),
        (name = "snapshots", description = "Whole copies of the database"),
        (name = "tei", description = "The routes of text-embeddings-inference, at the root and for each model"),
        (name = "openai", description = "The routes of OpenAI's embeddings API"),
        (name = "operations", description = "Health and metrics"),
    ),
    components(schemas(ProblemBody, TeiError, OpenAiError, RootAnswer, EmbeddingList)),
    modifiers(&KeySchemes),
    servers((url = "/"))
)]
pub struct Head;

/// `Authorization: Bearer KEY`.
const BEARER: &str = "bearer";

/// `x-api-key: KEY`.
const HEADER: &str = "api_key";

/// The ways to present a key.
struct KeySchemes;

impl Modify for KeySchemes {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(
            "An API key of this server. A server without keys asks for none, and ignores what is sent.",
        ));
        let header = ApiKeyValue::with_description("x-api-key", "The same key; it counts where both are sent.");
        let schemes =
            [(BEARER, SecurityScheme::Http(bearer.build())), (HEADER, SecurityScheme::ApiKey(ApiKey::Header(header)))];
        document.components.get_or_insert_default().add_security_schemes_from_iter(schemes);
    }
}

/// Completes what `routes!` gathered: says which scope each operation needs, which header each answer has, and how many
/// attributes a filter takes, and writes the paths without wildcards, which OpenAPI does not have.
#[must_use]
pub fn complete(mut document: utoipa::openapi::OpenApi) -> utoipa::openapi::OpenApi {
    let gathered = std::mem::take(&mut document.paths.paths);
    document.paths.paths = gathered
        .into_iter()
        .map(|(path, mut item)| {
            for (method, operation) in operations(&mut item) {
                operation.security = access::listed(&method, &path).map(security);
                name_request_id(operation);
            }
            (access::documented(&path), item)
        })
        .collect();
    let description = "The request's id, under which the log has it: the caller's own where it sent one";
    let request_id = RefOr::T(HeaderBuilder::new().description(Some(description)).build());
    let components = document.components.get_or_insert_default();
    components.headers.insert(REQUEST_ID.to_string(), request_id);
    bound_attributes(&mut components.schemas);
    document
}

/// Says how many attributes a filter takes: `utoipa` has no attribute of a field for that.
fn bound_attributes(schemas: &mut BTreeMap<String, RefOr<Schema>>) {
    if let Some(RefOr::T(Schema::Object(filter))) = schemas.get_mut(&*FilterBody::name())
        && let Some(RefOr::T(Schema::Object(attributes))) = filter.properties.get_mut("attributes")
    {
        attributes.max_properties = Some(MAX_ATTRIBUTES);
    }
}

/// Every answer has this header, whichever route and layer it comes from.
fn name_request_id(operation: &mut Operation) {
    for response in operation.responses.responses.values_mut() {
        if let RefOr::T(response) = response {
            let header = Ref::new(format!("#/components/headers/{REQUEST_ID}"));
            response.headers.insert(REQUEST_ID.to_string(), RefOr::Ref(header));
        }
    }
}

/// The document of a server at this address.
#[must_use]
pub fn at(mut document: utoipa::openapi::OpenApi, url: String) -> utoipa::openapi::OpenApi {
    document.servers = Some(vec![Server::new(url)]);
    document
}

/// Where the paths of the document are: whole where trusted proxies say so, else a path on the server that it came from.
#[must_use]
pub fn url(asked: Option<&Asked>, base: &BasePath) -> String {
    let (origin, prefix) = asked.map_or((None, None), |asked| (asked.origin.as_deref(), Some(&asked.prefix)));
    let url = format!("{}{}{base}", origin.unwrap_or_default(), prefix.map(ToString::to_string).unwrap_or_default());
    if url.is_empty() { "/".to_owned() } else { url }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (Method, &mut Operation)> {
    let PathItem { get, post, put, patch, delete, .. } = item;
    let all = [
        (Method::GET, get),
        (Method::POST, post),
        (Method::PUT, put),
        (Method::PATCH, patch),
        (Method::DELETE, delete),
    ];
    all.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

/// Either way to present a key, with the scope it must have, as OpenAPI 3.1 lists roles; or no key, where the
/// configuration may leave the operation open.
fn security(need: Need) -> Vec<SecurityRequirement> {
    let (scope, is_optional) = match need {
        Need::Scope(scope) => (scope, false),
        Need::Unless(_) => (Scope::Read, true),
    };
    let with_a_key = [BEARER, HEADER].map(|scheme| SecurityRequirement::new(scheme, [scope.as_str()]));
    is_optional.then(SecurityRequirement::default).into_iter().chain(with_a_key).collect()
}

/// The whole document as it is committed: pretty JSON with a last newline.
///
/// # Panics
/// Never: the document is built from this crate's own types.
#[must_use]
pub fn json() -> String {
    let document = complete(super::routes().into_openapi());
    let mut text = document.to_pretty_json().expect("the document is plain data");
    text.push('\n');
    text
}
