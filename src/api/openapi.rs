//! The OpenAPI document: what `routes!` gathers, under this head.

use utoipa::OpenApi;

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
        (name = "tei", description = "The routes of text-embeddings-inference, at the root and for each model"),
        (name = "openai", description = "The routes of OpenAI's embeddings API"),
        (name = "operations", description = "Health and metrics"),
    ),
    servers((url = "/"))
)]
pub struct Document;

/// The whole document as it is committed: pretty JSON with a last newline.
///
/// # Panics
/// Never: the document is built from this crate's own types.
#[must_use]
pub fn json() -> String {
    let document = super::routes().into_openapi();
    let mut text = document.to_pretty_json().expect("the document is plain data");
    text.push('\n');
    text
}
