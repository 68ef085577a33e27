//! The OpenAPI document: what `routes!` gathers, under this head.

use utoipa::OpenApi;

use super::error::{OpenAiError, ProblemBody, TeiError};

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
    components(schemas(ProblemBody, TeiError, OpenAiError)),
    servers((url = "/"))
)]
pub struct Head;

/// Completes what `routes!` gathered: OpenAPI's paths have no wildcards.
#[must_use]
pub fn complete(mut document: utoipa::openapi::OpenApi) -> utoipa::openapi::OpenApi {
    let gathered = std::mem::take(&mut document.paths.paths);
    document.paths.paths = gathered.into_iter().map(|(path, item)| (path.replace("{*", "{"), item)).collect();
    document
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
