//! `/v1`: OpenAI's embeddings and models routes. Embeddings are answered without `/v1` too, as TEI does, and both
//! routes stand below `/models/{name}` too.

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::embed::PriorityWord;
use super::error::{ApiError, Code};
use super::extract::{Json, ModelWord, UsualModel, expected_space};
use super::fields::optional_word;
use super::inputs::Inputs;
use super::measured::{self, Answer};
use super::prompt::{self, InputTypeWord};
use super::responses::{ListOfVectors, OpenAiBodyErrors, OpenAiErrors};
use super::state::AppState;
use super::tokens::Texts;
use super::truncation::Truncate;
use super::vectors;
use crate::models::{EmbedRequest, ModelStatus};

/// Who a model is said to be owned by, when it comes from no hub.
const LOCAL_OWNER: &str = "granary";

/// What clients send as the model that were written for TEI, which takes any name: the word of its documentation, and that
/// of others.
const NO_NAMES: [&str; 2] = ["text-embeddings-inference", "tei"];

/// The body of `/v1/embeddings`. Other fields, `user` among them, are ignored.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct EmbeddingsBody {
    /// A model's name or alias; when absent or empty the key's model, or else the active one.
    /// `text-embeddings-inference` and `tei` count as absent where no model answers to them.
    #[schema(example = "all-MiniLM-L6-v2")]
    model: Option<String>,
    // Token ids are read too, for a sentence that helps who sends them. The document does not offer them.
    #[schema(value_type = Texts, example = "hello world")]
    input: Inputs,
    /// How vectors are written: `float` when absent.
    #[serde(default, deserialize_with = "optional_word")]
    encoding_format: Option<EncodingFormat>,
    /// The length of the vectors: the model's own, or one it was trained to be cut to.
    #[schema(example = 384, minimum = 1)]
    dimensions: Option<u64>,
    /// The space the vectors must be in: 412 if they would be in another.
    #[schema(example = json!(null), pattern = "^[0-9a-fA-F]{16}$")]
    expect_space: Option<String>,
    /// The model's prompt to put before each text: `query`, `document` or another of its files.
    #[schema(example = json!(null))]
    prompt_name: Option<String>,
    /// What the texts are in a search: the model's prompt for such texts is put before each, if it has one.
    #[schema(example = json!(null))]
    #[serde(default, deserialize_with = "optional_word")]
    input_type: Option<InputTypeWord>,
    /// Whether to cut texts that are longer than the model takes; `engine.auto_truncate` when absent. `NONE`, `START` and
    /// `END` are read too: such a text is refused, or its beginning or its end is cut.
    #[schema(value_type = Option<bool>)]
    truncate: Option<Truncate>,
    /// Whether somebody waits for the answer: `interactive` when absent.
    #[serde(default, deserialize_with = "optional_word")]
    priority: Option<PriorityWord>,
}

/// How vectors are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EncodingFormat {
    /// A list of numbers.
    #[default]
    Float,
    /// Little-endian 32-bit floats in base64.
    Base64,
}

/// The answer of `/v1/embeddings`. It is written straight from the vectors; this is its shape for the document.
#[derive(ToSchema)]
#[allow(dead_code, reason = "utoipa reads the fields")]
pub struct EmbeddingList {
    /// Always `list`.
    object: String,
    data: Vec<EmbeddingObject>,
    /// The model that made the vectors.
    model: String,
    usage: Usage,
}

/// One vector of an answer.
#[derive(ToSchema)]
#[allow(dead_code, reason = "utoipa reads the fields")]
pub struct EmbeddingObject {
    /// Always `embedding`.
    object: String,
    /// The input's place in the request.
    index: usize,
    embedding: EmbeddingValue,
}

/// A vector, as `encoding_format` asks.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "utoipa reads the variants")]
pub enum EmbeddingValue {
    /// `float`.
    Numbers(Vec<f32>),
    /// `base64`.
    Text(String),
}

/// What was embedded.
#[derive(Serialize, ToSchema)]
pub struct Usage {
    /// Tokens embedded, special tokens included.
    prompt_tokens: usize,
    /// The same: embedding makes no tokens.
    total_tokens: usize,
}

/// Embeds texts.
#[utoipa::path(
    post, path = "/v1/embeddings", tag = "openai", operation_id = "create_embedding", request_body = EmbeddingsBody,
    responses(ListOfVectors, OpenAiErrors, OpenAiBodyErrors)
)]
pub async fn embeddings(
    State(state): State<AppState>,
    usual: UsualModel,
    Json(body): Json<EmbeddingsBody>,
) -> Result<Response, ApiError> {
    answer(&state, EmbeddingsBody { model: usual.unless(named(&state, body.model)), ..body }).await
}

/// The same as `/v1/embeddings`, for clients whose base URL has no `/v1`.
#[utoipa::path(
    post, path = "/embeddings", tag = "openai", operation_id = "create_embedding_without_version",
    request_body = EmbeddingsBody,
    responses(ListOfVectors, OpenAiErrors, OpenAiBodyErrors)
)]
pub async fn embeddings_without_version(
    state: State<AppState>,
    usual: UsualModel,
    body: Json<EmbeddingsBody>,
) -> Result<Response, ApiError> {
    embeddings(state, usual, body).await
}

/// Embeds texts with the model in the path, whichever `model` names.
#[utoipa::path(
    post, path = "/models/{name}/v1/embeddings", tag = "openai", operation_id = "create_embedding_with_model",
    request_body = EmbeddingsBody, params(("name" = String, Path, description = "A model's name or alias")),
    responses(ListOfVectors, OpenAiErrors, OpenAiBodyErrors)
)]
pub async fn embeddings_with_model(
    State(state): State<AppState>,
    ModelWord(model): ModelWord,
    Json(body): Json<EmbeddingsBody>,
) -> Result<Response, ApiError> {
    answer(&state, EmbeddingsBody { model: Some(model), ..body }).await
}

/// The same as `/models/{name}/v1/embeddings`, for clients whose base URL has no `/v1`.
#[utoipa::path(
    post, path = "/models/{name}/embeddings", tag = "openai",
    operation_id = "create_embedding_without_version_with_model", request_body = EmbeddingsBody,
    params(("name" = String, Path, description = "A model's name or alias")),
    responses(ListOfVectors, OpenAiErrors, OpenAiBodyErrors)
)]
pub async fn embeddings_without_version_with_model(
    state: State<AppState>,
    word: ModelWord,
    body: Json<EmbeddingsBody>,
) -> Result<Response, ApiError> {
    embeddings_with_model(state, word, body).await
}

/// The model that a request means by name.
fn named(state: &AppState, model: Option<String>) -> Option<String> {
    let is_name = |word: &str| {
        let stands_for_any = NO_NAMES.iter().any(|other| other.eq_ignore_ascii_case(word));
        !stands_for_any || state.models.resolve(Some(word)).is_ok()
    };
    model.filter(|word| is_name(word))
}

/// Embeds with the model that the body names, the active one when it names none.
async fn answer(state: &AppState, body: EmbeddingsBody) -> Result<Response, ApiError> {
    let shape = body.input.shape();
    measured::count(shape);
    if body.input.has_token_ids() {
        return Err(ApiError::new(
            Code::TokenIds,
            "`input` holds token ids, which are cl100k's in OpenAI's clients and mean nothing to other models. Send \
             text; with LangChain, set `OpenAIEmbeddings(check_embedding_ctx_length=False)`",
        )
        .with_param("input"));
    }
    let truncate = body.truncate.unwrap_or(Truncate::Flag(state.limits.auto_truncate));
    let request = EmbedRequest {
        inputs: body.input.checked("input", &state.limits)?,
        prompt: prompt::choice(body.prompt_name, body.input_type)?,
        truncation: truncate.into(),
        dimensions: body.dimensions,
        // OpenAI's vectors have length 1, and its clients compare them by their product alone.
        normalize: Some(true),
        expect_space: expected_space(body.expect_space.as_deref())?,
        priority: body.priority.unwrap_or_default().into(),
    };
    let answer = measured::embed(state, body.model.as_deref(), request, shape).await?;
    Ok(list(answer, body.encoding_format.unwrap_or_default()))
}

fn list(answer: Answer, format: EncodingFormat) -> Response {
    let Answer { embedded, headers } = answer;
    let encoded = &embedded.encoded;
    let mut out = br#"{"object":"list","data":["#.to_vec();
    for (index, vector) in encoded.vectors.chunks_exact(encoded.dimensions).enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(format!(r#"{{"object":"embedding","index":{index},"embedding":"#).as_bytes());
        match format {
            EncodingFormat::Float => vectors::write_array(vector, &mut out),
            EncodingFormat::Base64 => vectors::write_base64(vector, &mut out),
        }
        out.push(b'}');
    }
    let n_tokens = encoded.n_tokens.iter().sum::<usize>();
    // A model's name is a slug: it needs no escaping.
    let tail =
        format!(r#"],"model":"{}","usage":{{"prompt_tokens":{n_tokens},"total_tokens":{n_tokens}}}}}"#, embedded.model);
    out.extend_from_slice(tail.as_bytes());
    vectors::response(out, headers)
}

/// The models of the server.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = OpenAiModelList)]
pub struct ModelList {
    /// Always `list`.
    object: String,
    data: Vec<OpenAiModel>,
}

/// A model, in OpenAI's words.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct OpenAiModel {
    /// The name to use in requests.
    id: String,
    /// Always `model`.
    object: String,
    /// When this server started, in Unix seconds.
    created: u64,
    /// The owner of its hub repository.
    owned_by: String,
}

impl OpenAiModel {
    fn of(status: &ModelStatus, started_at: u64) -> Self {
        let repository = status.info.hub_repository.as_deref();
        let owner = repository.and_then(|id| id.split('/').next()).unwrap_or(LOCAL_OWNER);
        Self {
            id: status.info.name.to_string(),
            object: "model".to_owned(),
            created: started_at,
            owned_by: owner.to_owned(),
        }
    }
}

/// Lists the models, in OpenAI's words.
#[utoipa::path(
    get, path = "/v1/models", tag = "openai", operation_id = "list_openai_models",
    responses((status = 200, description = "All models", body = ModelList), OpenAiErrors)
)]
pub async fn models(State(state): State<AppState>) -> axum::Json<ModelList> {
    let data = state.models.list().iter().map(|status| OpenAiModel::of(status, state.started_at)).collect();
    axum::Json(ModelList { object: "list".to_owned(), data })
}

/// Lists the model in the path alone: what `/models/{name}/v1` embeds with.
#[utoipa::path(
    get, path = "/models/{name}/v1/models", tag = "openai", operation_id = "list_openai_models_with_model",
    params(("name" = String, Path, description = "A model's name or alias")),
    responses((status = 200, description = "The model", body = ModelList), OpenAiErrors)
)]
pub async fn models_with_model(state: State<AppState>, word: ModelWord) -> Result<axum::Json<ModelList>, ApiError> {
    let axum::Json(model) = model(state, word).await?;
    Ok(axum::Json(ModelList { object: "list".to_owned(), data: vec![model] }))
}

/// Shows one model, in OpenAI's words. A hub id, slash included, names it too.
#[utoipa::path(
    get, path = "/v1/models/{*name}", tag = "openai", operation_id = "get_openai_model",
    params(("name" = String, Path, description = "A model's name or alias")),
    responses((status = 200, description = "The model", body = OpenAiModel), OpenAiErrors)
)]
pub async fn model(
    State(state): State<AppState>,
    ModelWord(word): ModelWord,
) -> Result<axum::Json<OpenAiModel>, ApiError> {
    let name = state.models.resolve(Some(&word))?;
    Ok(axum::Json(OpenAiModel::of(&state.models.status(&name)?, state.started_at)))
}
