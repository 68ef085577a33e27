//! `/models`: what there is, and what is loaded.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::ApiError;
use super::extract::{ModelWord, OptionalJson};
use super::responses::{Conflict, NativeBodyErrors, NativeErrors, NoRoom, UnknownModel};
use super::state::AppState;
use crate::domain::{EncoderSettings, ModelName, ModelSource};
use crate::models::hub::Progress;
use crate::models::{LoadedFacts, ModelStatus};

/// A model and its state.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Model {
    #[schema(example = "all-MiniLM-L6-v2")]
    name: String,
    /// Other names that requests may use.
    aliases: Vec<String>,
    /// `small`, `medium` or `large`: the class of machine it is meant for.
    size: String,
    /// `unloaded`, `downloading`, `loading`, `ready`, `draining` or `failed`.
    #[schema(example = "ready")]
    state: String,
    /// `built_in`, `configured` or `registered`: how the server came to know it.
    origin: String,
    /// Whether requests that name no model use this one.
    active: bool,
    /// Whether it stays loaded, however little it is used.
    pinned: bool,
    /// Whether requests may not load it; `…/load` enables it.
    disabled: bool,
    /// The length of its vectors; before the first load, what is expected.
    #[schema(required)]
    dimensions: Option<u32>,
    /// Shorter lengths it was trained to be cut to.
    matryoshka_dims: Vec<u32>,
    /// Tokens a text keeps, special tokens included.
    #[schema(required)]
    max_tokens: Option<u32>,
    /// `mean`, `mean_sqrt_len`, `cls`, `last_token`, `max`, or null when its graph pools by itself or it is not known yet.
    #[schema(required)]
    pooling: Option<String>,
    /// Whether its own vectors have length 1.
    #[schema(required)]
    normalize: Option<bool>,
    prompts: ModelPrompts,
    /// The space of its vectors as it is configured; null until it is loaded.
    #[schema(required)]
    space: Option<String>,
    /// The SHA-256 of everything that makes this space; null until it is loaded.
    #[schema(required)]
    fingerprint: Option<String>,
    /// Where on a hub it comes from; null for a model of local files.
    #[schema(required)]
    hub: Option<ModelHub>,
    /// How far its files are here, while it is `downloading`.
    #[schema(required)]
    download: Option<ModelDownload>,
    /// Whether grains may be written with it; null until it is loaded.
    #[schema(required)]
    grain_writes: Option<GrainWrites>,
    /// What executes it; null until it is loaded.
    #[schema(required)]
    provider: Option<ModelProvider>,
    /// The size of its weight files in bytes; before the first load, what is expected.
    #[schema(required)]
    size_bytes: Option<u64>,
    /// Bytes it takes in memory, by what was measured when it was last loaded in this run.
    #[schema(required)]
    memory_bytes: Option<u64>,
    /// How long its load took.
    #[schema(required)]
    load_ms: Option<u64>,
    /// Why its last load failed; null once one has succeeded, or the model was unloaded.
    #[schema(required)]
    failure: Option<ModelFailure>,
}

/// Texts that a model puts before others.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ModelPrompts {
    #[schema(required)]
    query: Option<String>,
    #[schema(required)]
    document: Option<String>,
}

/// What executes a model, and why.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ModelProvider {
    /// `cpu`, `openvino` or `cuda`.
    name: String,
    /// `float32`, `bfloat16` or `tensorfloat32`: what products may be rounded to.
    precision: String,
    /// Why it was chosen; where another one was wanted, why that one does not run the model and what is lost.
    reason: String,
    /// The provider that was asked for or chosen first, where another one executes the model; else null.
    #[schema(required)]
    wanted: Option<String>,
}

/// A model's place on a hub.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ModelHub {
    repository: String,
    /// The branch, tag or commit that was asked for.
    revision: String,
    /// The ONNX file in the repository.
    file: String,
    /// The commit it is pinned to; null until it is loaded.
    #[schema(required)]
    commit: Option<String>,
}

/// A download that is under way.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ModelDownload {
    /// The file that is being fetched.
    file: String,
    /// Bytes that are here, of all files together.
    done_bytes: u64,
    /// Bytes of all files that are known to be needed.
    total_bytes: u64,
}

/// Whether grains may be written with a model.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct GrainWrites {
    allowed: bool,
    /// What stands against it, and the way out.
    #[schema(required)]
    reason: Option<String>,
}

impl GrainWrites {
    /// What is known of a loaded model.
    pub(super) fn of(status: &ModelStatus) -> Option<Self> {
        let reason = status.standing.as_ref()?.refusal(&status.info.name);
        Some(Self { allowed: reason.is_none(), reason })
    }

    /// The same with another reason, where something stands against it.
    pub(super) fn with_reason(self, reason: &str) -> Self {
        Self { allowed: self.allowed, reason: self.reason.map(|_| reason.to_owned()) }
    }
}

/// A failed load.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ModelFailure {
    reason: String,
    /// Seconds until a request tries again; `…/load` tries at once.
    retry_after_s: f64,
    /// Whether trying again is pointless until somebody changes a file or a setting.
    permanent: bool,
}

/// All models.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ModelList)]
pub struct Models {
    /// The name of the active one.
    active: String,
    models: Vec<Model>,
}

impl Model {
    /// A model as the routes show it.
    #[must_use]
    pub fn of(status: &ModelStatus, active: &ModelName) -> Self {
        let known = Known::of(status);
        let loaded = status.loaded.as_deref();
        let number = |n: std::num::NonZeroU32| n.get();
        let settings = known.settings;
        let prompts = settings.prompts.unwrap_or_default();
        Self {
            name: status.info.name.to_string(),
            aliases: status.info.aliases.clone(),
            size: status.info.size.as_str().to_owned(),
            state: status.phase.to_string(),
            origin: status.info.origin.as_str().to_owned(),
            active: status.info.name == *active,
            pinned: status.info.pinned,
            disabled: status.disabled,
            dimensions: settings.dimensions.map(number),
            matryoshka_dims: settings.matryoshka_dims.unwrap_or_default().into_iter().map(number).collect(),
            max_tokens: settings.max_tokens.map(number),
            pooling: settings.pooling.map(|pooling| pooling.as_str().to_owned()),
            normalize: settings.normalize,
            prompts: ModelPrompts { query: prompts.query, document: prompts.document },
            space: loaded.map(|facts| facts.fingerprint.space().to_string()),
            fingerprint: loaded.map(|facts| facts.fingerprint.to_string()),
            hub: match &status.info.source {
                ModelSource::Hub(source) => Some(ModelHub {
                    repository: source.repository.to_string(),
                    revision: source.revision.to_string(),
                    file: source.file.to_string(),
                    commit: loaded.and_then(|facts| facts.commit.clone()),
                }),
                ModelSource::Folder(_) | ModelSource::File { .. } => None,
            },
            download: status.download.clone().map(|Progress { file, done_bytes, total_bytes }| ModelDownload {
                file,
                done_bytes,
                total_bytes,
            }),
            grain_writes: GrainWrites::of(status),
            provider: loaded.map(|facts| ModelProvider {
                name: facts.provider.provider.to_string(),
                precision: facts.precision.to_owned(),
                reason: facts.provider.reason.clone(),
                wanted: facts.provider.wanted.map(|wanted| wanted.to_string()),
            }),
            size_bytes: known.size_bytes,
            memory_bytes: loaded.map(|facts| facts.memory_bytes),
            load_ms: loaded.map(|facts| u64::try_from(facts.load_time.as_millis()).unwrap_or(u64::MAX)),
            failure: status.failure.as_ref().map(|failure| ModelFailure {
                reason: failure.reason.clone(),
                retry_after_s: failure.retry_after(std::time::Instant::now()).as_secs_f64(),
                permanent: failure.permanent,
            }),
        }
    }
}

/// The facts of a loaded model, the expectations of another.
struct Known {
    settings: EncoderSettings,
    size_bytes: Option<u64>,
}

impl Known {
    fn of(status: &ModelStatus) -> Self {
        match status.loaded.as_deref() {
            Some(facts) => Self { settings: settings_of(facts), size_bytes: Some(facts.weights_bytes) },
            None => Self { settings: status.info.expected(), size_bytes: status.info.approximate_size_bytes },
        }
    }
}

fn settings_of(facts: &LoadedFacts) -> EncoderSettings {
    EncoderSettings {
        dimensions: Some(facts.dimensions.native),
        matryoshka_dims: Some(facts.dimensions.matryoshka.clone()),
        max_tokens: std::num::NonZeroU32::new(facts.max_tokens),
        pooling: facts.pooling,
        normalize: Some(facts.normalize),
        prompts: Some(facts.prompts.clone()),
    }
}

/// Lists every model the server knows, loaded or not.
#[utoipa::path(
    get, path = "/models", tag = "models", operation_id = "list_models",
    responses((status = 200, description = "All models", body = Models), NativeErrors)
)]
pub async fn list(State(state): State<AppState>) -> axum::Json<Models> {
    let active = state.models.active();
    let models = state.models.list().iter().map(|status| Model::of(status, &active)).collect();
    axum::Json(Models { active: active.to_string(), models })
}

/// Shows one model.
#[utoipa::path(
    get, path = "/models/{name}", tag = "models", operation_id = "get_model",
    params(("name" = String, Path, description = "A model's name or alias")),
    responses((status = 200, description = "The model", body = Model), NativeErrors, UnknownModel)
)]
pub async fn get(State(state): State<AppState>, ModelWord(word): ModelWord) -> Result<axum::Json<Model>, ApiError> {
    let name = state.models.resolve(Some(&word))?;
    Ok(axum::Json(Model::of(&state.models.status(&name)?, &state.models.active())))
}

/// Loads a model, or joins a load that is under way. A model that is ready stays as it is.
#[utoipa::path(
    post, path = "/models/{name}/load", tag = "models", operation_id = "load_model",
    params(("name" = String, Path, description = "A model's name or alias")),
    responses((status = 200, description = "The loaded model", body = Model), NativeErrors, UnknownModel, NoRoom)
)]
pub async fn load(State(state): State<AppState>, ModelWord(word): ModelWord) -> Result<axum::Json<Model>, ApiError> {
    let name = state.models.resolve(Some(&word))?;
    let status = state.models.load_model(&name).await?;
    Ok(axum::Json(Model::of(&status, &state.models.active())))
}

/// The body of `…/unload`, which needs none.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UnloadBody {
    /// true: requests may not load it again, in later runs too, until `…/load` does.
    #[schema(example = false)]
    disable: Option<bool>,
}

/// Unloads a model when the requests that use it have ended. The next request for it loads it again, unless the body
/// disables it.
#[utoipa::path(
    post, path = "/models/{name}/unload", tag = "models", operation_id = "unload_model",
    request_body = Option<UnloadBody>,
    params(("name" = String, Path, description = "A model's name or alias")),
    responses(
        (status = 200, description = "The model", body = Model),
        NativeErrors, NativeBodyErrors, UnknownModel, Conflict, NoRoom
    )
)]
pub async fn unload(
    State(state): State<AppState>,
    ModelWord(word): ModelWord,
    OptionalJson(body): OptionalJson<UnloadBody>,
) -> Result<axum::Json<Model>, ApiError> {
    let name = state.models.resolve(Some(&word))?;
    let status = if body.disable.unwrap_or_default() {
        state.models.disable_model(&name).await?
    } else {
        state.models.unload_model(&name).await?
    };
    Ok(axum::Json(Model::of(&status, &state.models.active())))
}
