//! `POST /similarity`: how like a sentence others are.

use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use utoipa::ToSchema;

use super::embed::EmbedOptions;
use super::error::{ApiError, Code};
use super::extract::{Json, ModelWord, UsualModel};
use super::fields::{object, optional_object};
use super::inputs::{Inputs, SentencePair, Shape};
use super::measured;
use super::responses::{Similarities, TeiBodyErrors, TeiErrors};
use super::state::AppState;
use super::vectors;
use crate::domain::vector::cosine;

/// The body of `/similarity`.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct SimilarityBody {
    #[serde(deserialize_with = "object")]
    inputs: SentencePair,
    /// How the sentences are to be embedded.
    #[serde(default, deserialize_with = "optional_object")]
    parameters: Option<EmbedOptions>,
}

/// Compares a sentence with others: one cosine similarity per sentence, in their order.
///
/// In `x-truncated` the source sentence is 0, and the first of the others 1.
#[utoipa::path(
    post, path = "/similarity", tag = "tei", operation_id = "similarity", request_body = SimilarityBody,
    responses(Similarities, TeiErrors, TeiBodyErrors)
)]
pub async fn similarity(
    State(state): State<AppState>,
    usual: UsualModel,
    Json(body): Json<SimilarityBody>,
) -> Result<Response, ApiError> {
    let options = body.parameters.unwrap_or_default();
    answer(&state, body.inputs, &EmbedOptions { model: usual.unless(options.model), ..options }).await
}

/// Compares sentences with the model in the path.
#[utoipa::path(
    post, path = "/models/{name}/similarity", tag = "tei", operation_id = "similarity_with_model",
    request_body = SimilarityBody, params(("name" = String, Path, description = "A model's name or alias")),
    responses(Similarities, TeiErrors, TeiBodyErrors)
)]
pub async fn similarity_with_model(
    State(state): State<AppState>,
    ModelWord(model): ModelWord,
    Json(body): Json<SimilarityBody>,
) -> Result<Response, ApiError> {
    let options = EmbedOptions { model: Some(model), ..body.parameters.unwrap_or_default() };
    answer(&state, body.inputs, &options).await
}

/// Embeds the sentences and answers their cosines to the first.
///
/// # Errors
/// When a sentence is empty, there are too many, or embedding fails.
pub(super) async fn answer(state: &AppState, pair: SentencePair, options: &EmbedOptions) -> Result<Response, ApiError> {
    measured::count(Shape::List);
    if pair.sentences.is_empty() {
        return Err(ApiError::new(Code::EmptyInput, "`inputs.sentences` is empty: send at least one sentence"));
    }
    let (n_sentences, max_inputs) = (pair.sentences.len(), state.limits.max_inputs);
    if n_sentences >= max_inputs {
        let sentence = format!(
            "`inputs.sentences` has {n_sentences} sentences; with the source sentence a request takes {max_inputs}. \
             Send fewer, or raise `server.max_inputs`"
        );
        return Err(ApiError::new(Code::TooManyInputs, sentence).with_param("inputs"));
    }
    let texts = Inputs::list(std::iter::once(pair.source_sentence).chain(pair.sentences).collect());
    let of_pair = |error: ApiError| if error.is_of_inputs() { error.reworded(in_words_of_pair) } else { error };
    let request = options.request(texts, &state.limits).map_err(of_pair)?;
    let answer = measured::embed(state, options.model.as_deref(), request, Shape::List).await.map_err(of_pair)?;
    let encoded = &answer.embedded.encoded;
    let mut rows = encoded.vectors.chunks_exact(encoded.dimensions);
    let source = rows.next().unwrap_or_default();
    #[allow(clippy::cast_possible_truncation, reason = "a cosine fits any float")]
    let similarities: Vec<f32> = rows.map(|sentence| cosine(source, sentence) as f32).collect();
    let mut body = Vec::new();
    vectors::write_array(&similarities, &mut body);
    Ok(vectors::response(body, answer.headers))
}

/// A sentence about one of the texts, by the name under which the caller sent it: there is no list of all of them.
fn in_words_of_pair(message: &str) -> String {
    let found = message.split_once("`inputs[").and_then(|(before, rest)| {
        let (index, after) = rest.split_once(']')?;
        Some((before, index.parse::<usize>().ok()?, after))
    });
    match found {
        Some((before, 0, after)) => format!("{before}`inputs.source_sentence{after}"),
        Some((before, index, after)) => format!("{before}`inputs.sentences[{}]{after}", index - 1),
        None => message.to_owned(),
    }
}
