//! `POST /embed`, `POST /`, which is `/invocations` too, and the same below `/models/{name}`: TEI's embedding routes.

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::ApiError;
use super::extract::{Json, ModelWord, UsualModel, expected_space};
use super::fields::optional_word;
use super::inputs::{Inputs, RootInputs};
use super::measured;
use super::parameters::Parameters;
use super::prompt::{self, InputTypeWord};
use super::responses::{TeiBodyErrors, TeiErrors, Vectors, VectorsOrSimilarities};
use super::similarity;
use super::state::{AppState, Limits};
use super::vectors;
use crate::domain::TruncationSide;
use crate::engine::Priority;
use crate::models::{EmbedRequest, Truncation};

/// The fields of a TEI request besides its inputs, in a struct behind its own: flattened into a body, they would not
/// say any more which of them is wrong.
#[rustfmt::skip]
macro_rules! options {
    ($(#[$attribute:meta])* $name:ident { $($own:tt)* }) => {
        #[derive(Clone, Debug, Deserialize, ToSchema)]
        $(#[$attribute])*
        pub struct $name {
            $($own)*
            /// Whether to cut texts that are longer than the model takes; `engine.auto_truncate` when absent.
            pub truncate: Option<bool>,
            /// The end that is cut off; when absent the one that the model's files name, which mostly is the right one.
            #[serde(default, deserialize_with = "optional_word")]
            pub truncation_direction: Option<Direction>,
            /// Whether to scale vectors to length 1; true when absent.
            pub normalize: Option<bool>,
            /// The model's prompt to put before each text: `query`, `document` or another of its files.
            #[schema(example = json!(null))]
            pub prompt_name: Option<String>,
            /// What the texts are in a search: the model's prompt for such texts is put before each, if it has one.
            #[schema(example = json!(null))]
            #[serde(default, deserialize_with = "optional_word")]
            pub input_type: Option<InputTypeWord>,
            /// The length of the vectors: the model's own, or one it was trained to be cut to.
            #[schema(example = 384, minimum = 1)]
            pub dimensions: Option<u64>,
            /// A model's name or alias; when absent or empty the key's model, or else the active one.
            #[schema(example = "all-MiniLM-L6-v2")]
            pub model: Option<String>,
            /// The space the vectors must be in: 412 if they would be in another.
            #[schema(example = json!(null), pattern = "^[0-9a-fA-F]{16}$")]
            pub expect_space: Option<String>,
            /// Whether somebody waits for the answer: `interactive` when absent.
            #[serde(default, deserialize_with = "optional_word")]
            pub priority: Option<PriorityWord>,
        }
    };
}

/// A body of TEI's: its inputs and, beside them, the fields of [`EmbedOptions`]. In the document each has the name by
/// which generated clients know it.
#[rustfmt::skip]
macro_rules! body {
    ($(#[$attribute:meta])* $name:ident of $inputs:ident { $($own:tt)* }) => {
        options! {
            $(#[$attribute])*
            $name {
                inputs: $inputs,
                $($own)*
            }
        }

        impl $name {
            fn into_parts(self) -> ($inputs, EmbedOptions) {
                let options = EmbedOptions {
                    truncate: self.truncate,
                    truncation_direction: self.truncation_direction,
                    normalize: self.normalize,
                    prompt_name: self.prompt_name,
                    input_type: self.input_type,
                    dimensions: self.dimensions,
                    model: self.model,
                    expect_space: self.expect_space,
                    priority: self.priority,
                };
                (self.inputs, options)
            }
        }
    };
}

options! {
    /// How the inputs of a TEI request are to be embedded: the fields of [`EmbedBody`] besides its inputs, and the
    /// `parameters` of sentences to compare.
    #[derive(Default)]
    EmbedOptions {}
}

body! {
    /// The body of `/embed`.
    #[schema(as = EmbedBody_Inputs)]
    EmbedBody of Inputs {}
}

body! {
    /// The body of `POST /`: texts to embed, or sentences to compare.
    #[schema(as = EmbedBody_RootInputs)]
    RootBody of RootInputs {
        /// How sentences to compare are to be embedded, as for `/similarity`; the fields beside it say what it leaves
        /// out. For texts it may be anything, and says nothing: TEI does not know it.
        #[schema(value_type = Option<EmbedOptions>)]
        parameters: Option<Parameters>,
    }
}

impl RootBody {
    /// The inputs, and how they are to be embedded.
    ///
    /// # Errors
    /// When sentences have parameters that are none.
    fn settled(mut self) -> Result<(RootInputs, EmbedOptions), ApiError> {
        let parameters = self.parameters.take();
        let (inputs, options) = self.into_parts();
        let is_pair = matches!(inputs, RootInputs::Compare(_));
        match parameters.filter(|_| is_pair) {
            Some(parameters) => Ok((inputs, parameters.read()?.or(options))),
            None => Ok((inputs, options)),
        }
    }
}

/// The answer of `POST /`. It is written straight from the vectors; this is its shape for the document.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "utoipa reads the variants")]
pub enum RootAnswer {
    /// One vector per input.
    Vectors(Vec<Vec<f32>>),
    /// One cosine similarity per sentence.
    Similarities(Vec<f32>),
}

/// The end of an over-long text that is cut off.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
pub enum Direction {
    /// The beginning is cut off.
    #[serde(alias = "left")]
    Left,
    /// The end is cut off.
    #[serde(alias = "right")]
    Right,
}

/// Whether somebody waits for an answer.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PriorityWord {
    /// Somebody does.
    #[default]
    Interactive,
    /// Nobody does: it goes on beside what is interactive, in a small share of the machine.
    Background,
}

impl From<PriorityWord> for Priority {
    fn from(word: PriorityWord) -> Self {
        match word {
            PriorityWord::Interactive => Self::Interactive,
            PriorityWord::Background => Self::Background,
        }
    }
}

impl EmbedOptions {
    /// These options, and where they are silent the others.
    fn or(self, others: Self) -> Self {
        Self {
            truncate: self.truncate.or(others.truncate),
            truncation_direction: self.truncation_direction.or(others.truncation_direction),
            normalize: self.normalize.or(others.normalize),
            prompt_name: self.prompt_name.or(others.prompt_name),
            input_type: self.input_type.or(others.input_type),
            dimensions: self.dimensions.or(others.dimensions),
            model: self.model.filter(|name| !name.trim().is_empty()).or(others.model),
            expect_space: self.expect_space.or(others.expect_space),
            priority: self.priority.or(others.priority),
        }
    }

    /// What to do with texts that are too long.
    #[must_use]
    pub fn truncation(&self, limits: &Limits) -> Truncation {
        if !self.truncate.unwrap_or(limits.auto_truncate) {
            return Truncation::Never;
        }
        match self.truncation_direction {
            Some(Direction::Left) => Truncation::Side(TruncationSide::Left),
            Some(Direction::Right) => Truncation::Side(TruncationSide::Right),
            None => Truncation::Own,
        }
    }

    /// The service call for these inputs.
    ///
    /// # Errors
    /// When an input is empty, there are too many, or a field is malformed.
    pub fn request(&self, inputs: Inputs, limits: &Limits) -> Result<EmbedRequest, ApiError> {
        Ok(EmbedRequest {
            inputs: inputs.checked("inputs", limits)?,
            prompt: prompt::choice(self.prompt_name.clone(), self.input_type)?,
            truncation: self.truncation(limits),
            dimensions: self.dimensions,
            normalize: Some(self.normalize.unwrap_or(true)),
            expect_space: expected_space(self.expect_space.as_deref())?,
            priority: self.priority.unwrap_or_default().into(),
        })
    }
}

/// Embeds texts with the active model, or with the one that `model` names.
///
/// The answer holds one vector per input, in their order. Its headers name the model (`x-model`), the vectors' space
/// (`x-space`), their length (`x-dimensions`) and the inputs that were cut (`x-truncated`).
#[utoipa::path(
    post, path = "/embed", tag = "tei", operation_id = "embed", request_body = EmbedBody,
    responses(Vectors, TeiErrors, TeiBodyErrors)
)]
pub async fn embed(
    State(state): State<AppState>,
    usual: UsualModel,
    Json(body): Json<EmbedBody>,
) -> Result<Response, ApiError> {
    let (inputs, options) = body.into_parts();
    answer(&state, inputs, &EmbedOptions { model: usual.unless(options.model), ..options }).await
}

/// Embeds texts with the model in the path.
#[utoipa::path(
    post, path = "/models/{name}/embed", tag = "tei", operation_id = "embed_with_model", request_body = EmbedBody,
    params(("name" = String, Path, description = "A model's name or alias")),
    responses(Vectors, TeiErrors, TeiBodyErrors)
)]
pub async fn embed_with_model(
    State(state): State<AppState>,
    ModelWord(model): ModelWord,
    Json(body): Json<EmbedBody>,
) -> Result<Response, ApiError> {
    let (inputs, options) = body.into_parts();
    answer(&state, inputs, &EmbedOptions { model: Some(model), ..options }).await
}

/// What `InferenceClient` posts to when it is given this server's URL: texts to embed, or sentences to compare.
#[utoipa::path(
    post, path = "/", tag = "tei", operation_id = "infer", request_body = RootBody,
    responses(VectorsOrSimilarities, TeiErrors, TeiBodyErrors)
)]
pub async fn infer(
    State(state): State<AppState>,
    usual: UsualModel,
    Json(body): Json<RootBody>,
) -> Result<Response, ApiError> {
    let (inputs, options) = body.settled()?;
    answer_root(&state, inputs, &EmbedOptions { model: usual.unless(options.model), ..options }).await
}

/// The same as `POST /`, where Amazon's `SageMaker` posts to.
#[utoipa::path(
    post, path = "/invocations", tag = "tei", operation_id = "invocations", request_body = RootBody,
    responses(VectorsOrSimilarities, TeiErrors, TeiBodyErrors)
)]
pub async fn invocations(
    state: State<AppState>,
    usual: UsualModel,
    body: Json<RootBody>,
) -> Result<Response, ApiError> {
    infer(state, usual, body).await
}

/// What `InferenceClient` posts to when it is given a model's URL.
#[utoipa::path(
    post, path = "/models/{name}", tag = "tei", operation_id = "infer_with_model", request_body = RootBody,
    params(("name" = String, Path, description = "A model's name or alias")),
    responses(VectorsOrSimilarities, TeiErrors, TeiBodyErrors)
)]
pub async fn infer_with_model(
    State(state): State<AppState>,
    ModelWord(model): ModelWord,
    Json(body): Json<RootBody>,
) -> Result<Response, ApiError> {
    let (inputs, options) = body.settled()?;
    answer_root(&state, inputs, &EmbedOptions { model: Some(model), ..options }).await
}

async fn answer_root(state: &AppState, inputs: RootInputs, options: &EmbedOptions) -> Result<Response, ApiError> {
    match inputs {
        RootInputs::Embed(inputs) => answer(state, inputs, options).await,
        RootInputs::Compare(pair) => similarity::answer(state, pair, options).await,
    }
}

async fn answer(state: &AppState, inputs: Inputs, options: &EmbedOptions) -> Result<Response, ApiError> {
    let shape = inputs.shape();
    measured::count(shape);
    let request = options.request(inputs, &state.limits)?;
    let answer = measured::embed(state, options.model.as_deref(), request, shape).await?;
    Ok(vectors::response(vectors::nested(&answer.embedded.encoded), answer.headers))
}
