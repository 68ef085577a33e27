//! A model in memory, and a request's hold on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::cache::{EmbeddingCache, MadeBy};
use super::counts::Counts;
use super::error::ModelError;
use super::fingerprint::{ModelIdentity, SpaceChoice};
use super::health::Health;
use super::interactive::Interactive;
use super::standing::Standing;
use crate::domain::{
    Dimensions, Fingerprint, ModelName, Pooling, PromptChoice, Prompts, Provider, SpaceId, TruncationSide,
};
use crate::engine::{EncodeRequest, Encoded, Encoder, Finish, Input, OverLong, Priority, ProviderChoice};
use crate::telemetry::traces::part;

/// What is known of a model once it is loaded.
#[derive(Clone, Debug)]
pub struct LoadedFacts {
    /// The model's own space and its full fingerprint.
    pub fingerprint: Fingerprint,
    /// The lengths of vector it offers.
    pub dimensions: Dimensions,
    /// The most tokens a text keeps.
    pub max_tokens: u32,
    /// The end that is cut off a longer text, unless a request names the other.
    pub truncation_side: TruncationSide,
    /// How token vectors are pooled; `None` when the graph does it.
    pub pooling: Option<Pooling>,
    /// Whether its own vectors have length 1.
    pub normalize: bool,
    /// Its prompts, which are part of its space.
    pub prompts: Prompts,
    /// The prompts of its files by name, empty ones too; none where the operator has set its prompts.
    pub named_prompts: BTreeMap<String, String>,
    /// What executes it and why.
    pub provider: ProviderChoice,
    /// `float32`, `bfloat16` or `tensorfloat32`.
    pub precision: &'static str,
    /// What computes its numbers besides the model itself: provider, precision and runtime library.
    pub numeric_class: String,
    /// The commit of its hub repository; `None` for a model of local files.
    pub commit: Option<String>,
    /// The size of its weight files, in bytes.
    pub weights_bytes: u64,
    /// Of weights that are mapped: the embedding table, in bytes, once for each session. Its rows are read as texts look
    /// them up.
    pub looked_up_bytes: u64,
    /// What the process's resident set grew by when it was loaded and warmed up, in bytes.
    pub grown_bytes: u64,
    /// That, and what will be looked up, no further than was estimated before the load, in bytes; its weights at least.
    pub memory_bytes: u64,
    /// How long the load took.
    pub load_time: Duration,
}

impl LoadedFacts {
    /// What it takes of memory at least, whatever the resident set grew by: another model may have been unloaded meanwhile.
    pub(super) fn least_memory_bytes(&self) -> u64 {
        if self.provider.provider.is_gpu() { 0 } else { self.weights_bytes }
    }

    /// The text of the prompt of that name, which may be empty; `None` when the model has no such prompt.
    fn prompt_named(&self, name: &str) -> Option<&str> {
        self.prompts.named(name).or_else(|| self.named_prompts.get(name).map(String::as_str))
    }

    fn prompt_names(&self) -> BTreeSet<&str> {
        self.prompts.names().into_iter().chain(self.named_prompts.keys().map(String::as_str)).collect()
    }
}

/// What a request says of texts that are too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truncation {
    /// They are cut where the model's files have them cut.
    Own,
    /// They are cut at this end.
    Side(TruncationSide),
    /// The request is refused.
    Never,
}

/// A request to embed, as a service call.
#[derive(Clone, Debug)]
pub struct EmbedRequest {
    /// At least one.
    pub inputs: Vec<Input>,
    /// Which of the model's prompts to put before each text.
    pub prompt: PromptChoice,
    /// What to do with texts that are too long.
    pub truncation: Truncation,
    /// A length of vector the model offers; its native one when `None`.
    pub dimensions: Option<u64>,
    /// Whether to scale vectors to length 1; as the model is configured when `None`.
    pub normalize: Option<bool>,
    /// The space that the vectors must be in.
    pub expect_space: Option<SpaceId>,
    /// Whether somebody waits for the answer.
    pub priority: Priority,
}

/// Vectors and what made them.
#[derive(Clone, Debug)]
pub struct Embedded {
    /// The model.
    pub model: ModelName,
    /// The space of these vectors.
    pub space: SpaceId,
    /// What executed it.
    pub provider: Provider,
    /// The vectors.
    pub encoded: Encoded,
    /// Where they are counted, by whoever asked for them.
    pub counts: Arc<Counts>,
}

/// A model in memory.
pub struct LoadedModel {
    pub(super) name: ModelName,
    pub(super) encoder: Encoder,
    pub(super) cache: Option<Arc<EmbeddingCache>>,
    pub(super) interactive: Arc<Interactive>,
    pub(super) counts: Arc<Counts>,
    pub(super) identity: ModelIdentity,
    pub(super) facts: Arc<LoadedFacts>,
    pub(super) standing: RwLock<Standing>,
    /// The vectors of the canary texts that it made when it was loaded: `[n_texts][dimensions]`.
    pub(super) canaries: Vec<f32>,
    /// What looks at it have found.
    pub(super) health: Arc<Health>,
    /// Counts the requests that hold the model.
    pub(super) leases: TaskTracker,
    /// When a request last had it, or else when it was loaded.
    pub(super) last_used: Mutex<Instant>,
}

impl LoadedModel {
    /// When a request last had it, or else when it was loaded.
    pub(super) fn last_used(&self) -> Instant {
        *self.last_used.lock()
    }

    /// Notes that it is in use now.
    pub(super) fn mark_used(&self) {
        *self.last_used.lock() = Instant::now();
    }
}

/// A request's hold on a loaded model: it is not unloaded before the lease is dropped.
pub struct Lease {
    // Dropped before the token, so that the drain that waits for tokens ends with the last reference.
    model: Arc<LoadedModel>,
    _token: TaskTrackerToken,
    /// Whether it counts as use.
    is_use: bool,
}

impl Lease {
    /// The hold of a request, which counts as use from now to its end.
    pub(super) fn of(model: &Arc<LoadedModel>) -> Self {
        model.mark_used();
        let mut lease = Self::of_look(model);
        lease.is_use = true;
        lease
    }

    /// The hold of a look at the model, which is no use that would keep it from being unloaded.
    pub(super) fn of_look(model: &Arc<LoadedModel>) -> Self {
        Self { model: Arc::clone(model), _token: model.leases.token(), is_use: false }
    }

    pub(super) fn model(&self) -> &LoadedModel {
        &self.model
    }

    pub(super) fn standing(&self) -> &RwLock<Standing> {
        &self.model.standing
    }

    /// The model's name.
    #[must_use]
    pub fn name(&self) -> &ModelName {
        &self.model.name
    }

    /// What is known of the model.
    #[must_use]
    pub fn facts(&self) -> &LoadedFacts {
        &self.model.facts
    }

    /// Whether grains may be written with this model.
    ///
    /// # Errors
    /// [`ModelError::GrainWrites`] with what stands against it and the way out.
    pub fn check_grain_writes(&self) -> Result<(), ModelError> {
        let standing = self.model.standing.read();
        match standing.refusal(self.name()) {
            Some(reason) => {
                let (name, permanent) = (self.name().clone(), standing.unknown.is_none());
                Err(ModelError::GrainWrites { name, reason, permanent })
            }
            None => Ok(()),
        }
    }

    /// The model's engine, for what is not embedding: tokens and their text.
    #[must_use]
    pub fn encoder(&self) -> &Encoder {
        &self.model.encoder
    }

    /// Embeds the request's inputs.
    ///
    /// # Errors
    /// What the request asks and the model does not offer, a space other than the expected one, or the engine's.
    pub async fn embed(&self, request: EmbedRequest) -> Result<Embedded, ModelError> {
        let facts = self.facts();
        let dimensions = facts.dimensions.choose(request.dimensions)?.get();
        let normalize = request.normalize.unwrap_or(facts.normalize);
        let own_side = facts.truncation_side;
        let (over_long, truncation_side) = match request.truncation {
            Truncation::Own => (OverLong::Cut(own_side), own_side),
            Truncation::Side(side) => (OverLong::Cut(side), side),
            // What is refused when too long is whole, as it would be in the model's own space.
            Truncation::Never => (OverLong::Refuse, own_side),
        };
        let space = self.model.identity.chosen(SpaceChoice { dimensions, normalize, truncation_side }).space();
        if let Some(expected) = request.expect_space.filter(|expected| *expected != space) {
            let (field, name) = ("expect_space", self.name().clone());
            return Err(ModelError::SpaceMismatch { field, name, expected, actual: space });
        }
        let prompt = self.prompt(&request.prompt)?;
        let has_ids = || request.inputs.iter().any(|input| matches!(input, Input::Tokens(_)));
        if prompt.as_ref().is_some_and(|prompt| !prompt.is_empty()) && has_ids() {
            let field = if matches!(request.prompt, PromptChoice::Named(_)) { "prompt_name" } else { "input_type" };
            return Err(ModelError::PromptBeforeIds { field });
        }
        let _waits = (request.priority == Priority::Interactive).then(|| self.model.interactive.begin());
        let request = EncodeRequest {
            inputs: request.inputs,
            prompt,
            over_long,
            finish: Finish { dimensions: dimensions as usize, normalize },
            priority: request.priority,
        };
        let embed =
            part("embed").named("granary.model", self.name().as_str()).counted("granary.texts", request.inputs.len());
        let encoded = embed.around(self.encode(&space, request)).await?;
        let (model, counts) = (self.name().clone(), Arc::clone(&self.model.counts));
        Ok(Embedded { model, space, provider: facts.provider.provider, encoded, counts })
    }

    async fn encode(&self, space: &SpaceId, request: EncodeRequest) -> Result<Encoded, ModelError> {
        // Others that make the space share what is kept of it, so one whose vectors have moved, since it was loaded or since
        // the space was recorded, adds nothing.
        let makes_its_space = || !self.model.health.has_moved() && self.standing().read().makes_its_space();
        match self.model.cache.as_ref().filter(|_| makes_its_space()) {
            Some(cache) => {
                let made = MadeBy { space, numeric_class: &self.model.facts.numeric_class };
                cache.encode(self.encoder(), self.name(), made, request).await
            }
            None => Ok(self.encoder().encode(request).await?),
        }
    }

    /// The text of the prompt that a request chooses, if there is one.
    ///
    /// # Errors
    /// [`ModelError::UnknownPrompt`] with the names it has, when the request names another.
    pub fn prompt(&self, choice: &PromptChoice) -> Result<Option<String>, ModelError> {
        let facts = self.facts();
        let name = match choice {
            PromptChoice::Nothing => return Ok(None),
            PromptChoice::For(input_type) => return Ok(facts.prompts.named(input_type.as_str()).map(str::to_owned)),
            PromptChoice::Named(name) => name,
        };
        facts.prompt_named(name).map(|text| Some(text.to_owned())).ok_or_else(|| {
            let names: Vec<String> = facts.prompt_names().into_iter().map(|name| format!("`{name}`")).collect();
            ModelError::UnknownPrompt {
                name: self.name().clone(),
                prompt: name.chars().take(64).collect(),
                offered: if names.is_empty() {
                    "it has none, leave `prompt_name` out".to_owned()
                } else {
                    format!("it has {}", names.join(", "))
                },
            }
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.is_use {
            self.model.mark_used();
        }
    }
}
