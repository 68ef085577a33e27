//! `POST /tokenize` and `POST /decode`: a model's view of a text, and back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema, ToSchema};

use super::error::{ApiError, Code};
use super::extract::{Json, ModelWord, UsualModel};
use super::fields::optional_word;
use super::inputs::{TokenId, ids_schema, one_or_many, text_schema};
use super::prompt::{self, InputTypeWord};
use super::responses::{TeiBodyErrors, TeiErrors};
use super::state::AppState;
use crate::engine::{EngineError, TokenCount, TokenDetail, in_place_or_turns};

/// The most tokens of all texts together that `/tokenize` shows: each takes some hundred bytes, and more in the answer than
/// in the text.
const MAX_SHOWN_TOKENS: usize = 1 << 17;

/// One text or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of texts")]
pub enum Texts {
    /// One text.
    One(String),
    /// Several texts.
    Many(Vec<String>),
}

impl PartialSchema for Texts {
    fn schema() -> RefOr<Schema> {
        one_or_many(text_schema()).description(Some("One text or several.")).into()
    }
}

impl ToSchema for Texts {}

/// The token ids of one text or of several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a list of token ids or a list of such lists")]
pub enum TokenIds {
    /// Of one text.
    One(Vec<TokenId>),
    /// Of several texts.
    Many(Vec<Vec<TokenId>>),
}

impl PartialSchema for TokenIds {
    fn schema() -> RefOr<Schema> {
        one_or_many(ids_schema()).description(Some("The token ids of one text or of several.")).into()
    }
}

impl ToSchema for TokenIds {}

/// The body of `/tokenize`.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct TokenizeBody {
    inputs: Texts,
    /// Whether to show the tokens that are put around each text; true when absent.
    add_special_tokens: Option<bool>,
    /// The model's prompt to put before each text.
    #[schema(example = json!(null))]
    prompt_name: Option<String>,
    /// What the texts are in a search: the model's prompt for such texts is put before each, if it has one.
    #[schema(example = json!(null))]
    #[serde(default, deserialize_with = "optional_word")]
    input_type: Option<InputTypeWord>,
    /// A model's name or alias; when absent or empty the key's model, or else the active one.
    #[schema(example = "all-MiniLM-L6-v2")]
    model: Option<String>,
}

/// The body of `/decode`.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct DecodeBody {
    #[schema(example = json!([[101, 7592, 2088, 102]]))]
    ids: TokenIds,
    /// Whether to leave out the tokens that are put around each text; true when absent.
    skip_special_tokens: Option<bool>,
    /// A model's name or alias; when absent or empty the key's model, or else the active one.
    #[schema(example = "all-MiniLM-L6-v2")]
    model: Option<String>,
}

/// One token of a text.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Token {
    id: u32,
    text: String,
    special: bool,
    /// Where it starts in the text, in characters; text-embeddings-inference 1.9.3 counts bytes.
    #[schema(required)]
    start: Option<usize>,
    /// Where it ends in the text, in characters; text-embeddings-inference 1.9.3 counts bytes.
    #[schema(required)]
    stop: Option<usize>,
}

impl From<TokenDetail> for Token {
    fn from(detail: TokenDetail) -> Self {
        let TokenDetail { id, text, special, start, stop } = detail;
        Self { id, text, special, start, stop }
    }
}

/// Shows the tokens of texts, uncut, with their places.
#[utoipa::path(
    post, path = "/tokenize", tag = "tei", operation_id = "tokenize", request_body = TokenizeBody,
    responses((status = 200, description = "The tokens of each text", body = Vec<Vec<Token>>), TeiErrors, TeiBodyErrors)
)]
pub async fn tokenize(
    State(state): State<AppState>,
    usual: UsualModel,
    Json(body): Json<TokenizeBody>,
) -> Result<axum::Json<Vec<Vec<Token>>>, ApiError> {
    tokens_of(state, TokenizeBody { model: usual.unless(body.model), ..body }).await
}

/// Shows the tokens of texts for the model in the path.
#[utoipa::path(
    post, path = "/models/{name}/tokenize", tag = "tei", operation_id = "tokenize_with_model",
    request_body = TokenizeBody, params(("name" = String, Path, description = "A model's name or alias")),
    responses((status = 200, description = "The tokens of each text", body = Vec<Vec<Token>>), TeiErrors, TeiBodyErrors)
)]
pub async fn tokenize_with_model(
    State(state): State<AppState>,
    ModelWord(model): ModelWord,
    Json(body): Json<TokenizeBody>,
) -> Result<axum::Json<Vec<Vec<Token>>>, ApiError> {
    tokens_of(state, TokenizeBody { model: Some(model), ..body }).await
}

async fn tokens_of(state: AppState, body: TokenizeBody) -> Result<axum::Json<Vec<Vec<Token>>>, ApiError> {
    let texts = match body.inputs {
        Texts::One(text) => vec![text],
        Texts::Many(texts) => texts,
    };
    check("inputs", &texts, String::is_empty, state.limits.max_inputs)?;
    for (index, text) in texts.iter().enumerate() {
        state.limits.check_text(text, || format!("inputs[{index}]"))?;
    }
    let max_request_tokens = state.engine.max_request_tokens.min(MAX_SHOWN_TOKENS);
    let prompt = prompt::choice(body.prompt_name, body.input_type)?;
    let name = state.models.resolve(body.model.as_deref())?;
    let lease = state.models.lease(&name).await?;
    let prompt = lease.prompt(&prompt)?.unwrap_or_default();
    let with_special = body.add_special_tokens.unwrap_or(true);
    let n_bytes: usize = texts.iter().map(|text| prompt.len() + text.len()).sum();
    let (lease, n_tokens) = (Arc::new(lease), Arc::new(AtomicUsize::new(0)));
    let tokens_of = move |index, text: &String| {
        let (tokenizer, text) = (lease.encoder().tokenizer(), format!("{prompt}{text}"));
        let n_left = max_request_tokens.saturating_sub(n_tokens.load(Ordering::Relaxed));
        // A text has hardly more tokens than bytes, and looking reads it once more.
        if text.len() > n_left && tokenizer.has_by_far_more_than(n_left, index, &text)? {
            let n_tokens = TokenCount::MoreThan(max_request_tokens);
            return Err(EngineError::TooManyTokens { n_tokens, max_request_tokens });
        }
        let details = tokenizer.details(index, &text, with_special)?;
        let n_tokens = n_tokens.fetch_add(details.len(), Ordering::Relaxed) + details.len();
        check_tokens(n_tokens, max_request_tokens)?;
        Ok(details.into_iter().map(Token::from).collect())
    };
    let shown = in_place_or_turns(texts, n_bytes, String::len, tokens_of).await;
    shown.map(axum::Json).map_err(|error| match error {
        EngineError::TooManyTokens { n_tokens, max_request_tokens: MAX_SHOWN_TOKENS } => {
            let sentence =
                format!("the texts have {n_tokens} tokens together; at most {MAX_SHOWN_TOKENS} are shown at a time");
            ApiError::new(Code::TooManyTokens, sentence)
        }
        error => error.into(),
    })
}

/// Turns token ids back into text.
#[utoipa::path(
    post, path = "/decode", tag = "tei", operation_id = "decode", request_body = DecodeBody,
    responses((status = 200, description = "The text of each list of ids", body = Vec<String>), TeiErrors, TeiBodyErrors)
)]
pub async fn decode(
    State(state): State<AppState>,
    usual: UsualModel,
    Json(body): Json<DecodeBody>,
) -> Result<axum::Json<Vec<String>>, ApiError> {
    texts_of(state, DecodeBody { model: usual.unless(body.model), ..body }).await
}

/// Turns token ids of the model in the path back into text.
#[utoipa::path(
    post, path = "/models/{name}/decode", tag = "tei", operation_id = "decode_with_model", request_body = DecodeBody,
    params(("name" = String, Path, description = "A model's name or alias")),
    responses((status = 200, description = "The text of each list of ids", body = Vec<String>), TeiErrors, TeiBodyErrors)
)]
pub async fn decode_with_model(
    State(state): State<AppState>,
    ModelWord(model): ModelWord,
    Json(body): Json<DecodeBody>,
) -> Result<axum::Json<Vec<String>>, ApiError> {
    texts_of(state, DecodeBody { model: Some(model), ..body }).await
}

async fn texts_of(state: AppState, body: DecodeBody) -> Result<axum::Json<Vec<String>>, ApiError> {
    let (lists, is_one) = match body.ids {
        TokenIds::One(ids) if ids.is_empty() => (Vec::new(), true),
        TokenIds::One(ids) => (vec![ids], true),
        TokenIds::Many(lists) => (lists, false),
    };
    check("ids", &lists, Vec::is_empty, state.limits.max_inputs)?;
    check_tokens(lists.iter().map(Vec::len).sum(), state.engine.max_request_tokens)?;
    let name = state.models.resolve(body.model.as_deref())?;
    let lease = state.models.lease(&name).await?;
    let skip_special = body.skip_special_tokens.unwrap_or(true);
    let lease = Arc::new(lease);
    let text_of = move |index, ids: &Vec<TokenId>| {
        let ids: Vec<u32> = ids.iter().map(|id| id.0).collect();
        lease.encoder().tokenizer().decode(index, &ids, skip_special)
    };
    let n_bytes_of = |ids: &Vec<TokenId>| size_of_val(ids.as_slice());
    let n_bytes: usize = lists.iter().map(n_bytes_of).sum();
    let texts = in_place_or_turns(lists, n_bytes, n_bytes_of, text_of).await.map_err(ApiError::from);
    // One list stands in the request without a place.
    let in_its_words = |error: ApiError| {
        if is_one { error.reworded(|message| message.replacen("`ids[0]`", "`ids`", 1)) } else { error }
    };
    Ok(axum::Json(texts.map_err(in_its_words)?))
}

fn check_tokens(n_tokens: usize, max_request_tokens: usize) -> Result<(), EngineError> {
    if n_tokens > max_request_tokens {
        let n_tokens = TokenCount::Exactly(n_tokens);
        return Err(EngineError::TooManyTokens { n_tokens, max_request_tokens });
    }
    Ok(())
}

/// Refuses an empty list, an empty element, and more elements than a request may have.
fn check<T>(field: &str, elements: &[T], is_empty: fn(&T) -> bool, max_inputs: usize) -> Result<(), ApiError> {
    if let Some(index) = elements.iter().position(is_empty) {
        return Err(ApiError::new(Code::EmptyInput, format!("`{field}[{index}]` is empty")));
    }
    match elements.len() {
        0 => Err(ApiError::new(Code::EmptyInput, format!("`{field}` is empty"))),
        n if n > max_inputs => Err(ApiError::new(
            Code::TooManyInputs,
            format!(
                "`{field}` has {n} elements; a request takes {max_inputs}. Send fewer, or raise `server.max_inputs`"
            ),
        )),
        _ => Ok(()),
    }
}
