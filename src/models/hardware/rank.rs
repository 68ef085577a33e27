//! Which model suits a machine best, and why: a pure function, [`rank`].
//!
//! In this order: a model that can be had before one that cannot, one that fits in memory before one that does not, one
//! whose files are there before one to be fetched, one that runs at useful speed before a slow one, and then the better
//! one. The better one is of the larger size class; but a general pretrained encoder, which nobody trained for
//! embeddings, stands behind the embedding models of the next smaller class.

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::num::NonZeroUsize;

use bytesize::ByteSize;
use serde::Serialize;

use super::footprint::{Footprint, libraries_bytes};
use super::probe::Machine;
use crate::config::EngineConfig;
use crate::domain::{ModelName, ModelSize, Provider, Training};
use crate::engine::{ProviderFacts, ProviderWish, provider};
use crate::models::loader::running;

/// Tokens a second below which filling an index takes days: a million passages of 128 tokens take 18 hours at this speed.
const USEFUL_TOKENS_PER_SECOND: u64 = 2_000;

/// Whether a model's files can be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Files {
    /// They are there and were understood.
    Present,
    /// They can be fetched when the model is loaded.
    Fetchable,
    /// They are missing or wrong, for this reason.
    Unusable(String),
}

/// A model that may be chosen.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its name.
    pub name: ModelName,
    /// The class of machine it is meant for.
    pub size: ModelSize,
    /// What it was trained for, as far as anybody says.
    pub training: Option<Training>,
    /// Whether its files can be had.
    pub files: Files,
    /// The size of its weights, from its files or as they are expected.
    pub weights_bytes: Option<u64>,
    /// What of them is expected to be mapped.
    pub mapped_bytes: u64,
    /// The length of its vectors.
    pub dimensions: Option<u32>,
    /// The longest text it takes.
    pub max_tokens: Option<u32>,
    /// The provider asked for, and where.
    pub provider: ProviderWish,
    /// Batches that run at once, where its own entry says.
    pub workers: Option<NonZeroUsize>,
    /// Whether the operator has disabled it.
    pub disabled: bool,
}

/// What decides besides machine and models.
#[derive(Clone, Copy, Debug)]
pub struct RankFacts<'a> {
    /// Whether the runtime library was built with OpenVINO.
    pub has_openvino: bool,
    /// Whether the runtime library was built with CUDA.
    pub has_cuda: bool,
    /// How models are run.
    pub engine: &'a EngineConfig,
    /// The length of vectors that the operator expects.
    pub dimensions: Option<u32>,
    /// What the operator lets models take; `None`: what the machine has.
    pub memory_budget: Option<u64>,
}

/// A model, and how well it suits the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ranked {
    /// The model.
    pub model: ModelName,
    /// Whether its files are there, or can be fetched, its vectors have the length that is expected, and it is not disabled.
    pub available: bool,
    /// Why it cannot be had.
    pub obstacle: Option<String>,
    /// Whether the operator has disabled it, which is an obstacle too.
    pub disabled: bool,
    /// Whether it fits in the memory that models may take.
    pub fits: bool,
    /// What it is expected to take once it serves; of the GPU's memory where that executes it.
    pub expected_memory_bytes: Option<u64>,
    /// What would execute it.
    pub provider: Provider,
    /// How fast it is expected to run in bulk, within a factor of two or so.
    pub tokens_per_second: Option<u64>,
    /// The greater the better. Its size means nothing beyond that order.
    pub score: u32,
    /// Why, in sentences: of its files first, then of its memory.
    pub reasons: Vec<String>,
}

/// Orders models by how well they suit the machine, the best first. Equals stay in the order they came in.
#[must_use]
pub fn rank(machine: &Machine, models: &[Candidate], facts: RankFacts<'_>) -> Vec<Ranked> {
    let judged = |model| (judge(machine, model, facts), quality(model));
    let mut ranked: Vec<(Ranked, u32)> = models.iter().map(judged).collect();
    // Among slow models the fastest is the best, whatever its class.
    ranked.sort_by_key(|(model, quality)| Reverse((model.score, model.tokens_per_second, *quality)));
    ranked.into_iter().map(|(model, _)| model).collect()
}

fn judge(machine: &Machine, model: &Candidate, facts: RankFacts<'_>) -> Ranked {
    let cost = Cost::of(machine, model, facts);
    let room = cost.room(machine, facts);
    let obstacle = obstacle(model, facts);
    let available = obstacle.is_none();
    let fits = cost.fits(room, machine);
    let useful =
        model.size == ModelSize::Small || cost.tokens_per_second.is_some_and(|speed| speed >= USEFUL_TOKENS_PER_SECOND);

    let mut reasons = vec![obstacle.clone().unwrap_or_else(|| reason_of_files(&model.files).to_owned())];
    reasons.push(cost.reason_of_memory(room, fits));
    reasons.extend(cost.reason_of_speed(machine, useful));
    reasons.push(format!("`{}`: {}", cost.provider.provider, cost.provider.reason));
    reasons.push(reason_of_quality(model));

    // Each stands before all that follow it together.
    let weights = [
        (available, 1000),
        (fits, 400),
        (model.files == Files::Present, 200),
        (useful, 100),
        (useful, 10 * quality(model)),
    ];
    Ranked {
        model: model.name.clone(),
        available,
        obstacle,
        disabled: model.disabled,
        fits,
        expected_memory_bytes: cost.memory_bytes,
        provider: cost.provider.provider,
        tokens_per_second: cost.tokens_per_second,
        score: weights.iter().filter(|(holds, _)| *holds).map(|(_, weight)| weight).sum(),
        reasons,
    }
}

/// What a model would cost on a machine.
struct Cost {
    footprint: Option<Footprint>,
    provider: provider::ProviderChoice,
    memory_bytes: Option<u64>,
    tokens_per_second: Option<u64>,
}

impl Cost {
    fn of(machine: &Machine, model: &Candidate, facts: RankFacts<'_>) -> Self {
        let footprint = model.weights_bytes.map(|weights_bytes| Footprint {
            weights_bytes,
            mapped_bytes: model.mapped_bytes,
            max_tokens: model.max_tokens.unwrap_or(512),
            dimensions: model.dimensions.unwrap_or(768),
        });
        let provider = provider::choose(
            model.provider,
            &ProviderFacts {
                features: machine.features,
                has_openvino: facts.has_openvino,
                has_cuda: facts.has_cuda,
                gpu: machine.gpus.first().cloned(),
                gpu_bytes: footprint.map_or(0, Footprint::gpu_bytes),
            },
        );
        let executed_by = provider.provider;
        let bytes = |footprint: Footprint| {
            let running = running(facts.engine, model.workers, executed_by, footprint, machine.cores);
            footprint.bytes(executed_by, running)
        };
        Self {
            footprint,
            memory_bytes: footprint.map(bytes),
            tokens_per_second: footprint
                .map(|model| model.tokens_per_second(executed_by, machine.features, machine.cores)),
            provider,
        }
    }

    /// The memory there is for it where it runs; `None` when nobody knows.
    fn room(&self, machine: &Machine, facts: RankFacts<'_>) -> Option<u64> {
        if self.provider.provider.is_gpu() {
            return machine.gpus.first().map(|gpu| gpu.free_bytes);
        }
        host_room(machine, facts).map(|room| room.saturating_sub(libraries_bytes(self.provider.provider)))
    }

    fn fits(&self, room: Option<u64>, machine: &Machine) -> bool {
        let beside =
            |model: Footprint| machine.memory.is_none_or(|memory| model.bytes_beside_gpu() <= memory.for_models());
        let fits_beside = !self.provider.provider.is_gpu() || self.footprint.is_none_or(beside);
        // A room that is not known is not held against a model.
        fits_beside && self.memory_bytes.is_some_and(|needed| room.is_none_or(|room| needed <= room))
    }

    fn reason_of_memory(&self, room: Option<u64>, fits: bool) -> String {
        let place = if self.provider.provider.is_gpu() { "the GPU has free" } else { "that models may take" };
        match (self.memory_bytes, room) {
            (None, _) => "nobody knows how much memory it takes before its files are there".to_owned(),
            (Some(needed), None) => format!("takes about {}", in_words(needed)),
            (Some(needed), Some(room)) if fits => {
                format!("takes about {} of the {} {place}", in_words(needed), in_words(room))
            }
            (Some(needed), Some(room)) => {
                let way_out = if self.provider.provider == Provider::OpenVino {
                    "; `provider = \"cpu\"` and `engine.query_lane = \"off\"` take less"
                } else {
                    ""
                };
                format!("takes about {}, more than the {} {place}{way_out}", in_words(needed), in_words(room))
            }
        }
    }

    fn reason_of_speed(&self, machine: &Machine, useful: bool) -> Option<String> {
        let speed = in_two_digits(self.tokens_per_second?);
        let place = match (self.provider.provider, machine.cores) {
            (Provider::Cuda, _) => "the GPU".to_owned(),
            (_, 1) => "one core".to_owned(),
            (_, cores) => format!("{cores} cores"),
        };
        let end = if useful { "" } else { ", too slow to fill an index with" };
        Some(format!("runs at some {speed} tokens a second on {place}, by estimate{end}"))
    }
}

fn host_room(machine: &Machine, facts: RankFacts<'_>) -> Option<u64> {
    let of_machine = machine.memory.map(super::probe::Memory::for_models);
    match (of_machine, facts.memory_budget) {
        (Some(machine), Some(budget)) => Some(machine.min(budget)),
        (one, other) => one.or(other),
    }
}

/// Two for each size class; a general encoder stands one below the class beneath its own.
fn quality(model: &Candidate) -> u32 {
    let of_class: u32 = match model.size {
        ModelSize::Small => 2,
        ModelSize::Medium => 4,
        ModelSize::Large => 6,
    };
    if model.training == Some(Training::General) { of_class.saturating_sub(3) } else { of_class }
}

fn reason_of_files(files: &Files) -> &'static str {
    match files {
        Files::Fetchable => "its files are not there yet, and can be fetched",
        Files::Present | Files::Unusable(_) => "its files are there",
    }
}

fn obstacle(model: &Candidate, facts: RankFacts<'_>) -> Option<String> {
    if model.disabled {
        return Some("it is disabled until it is loaded by hand".to_owned());
    }
    if let Files::Unusable(reason) = &model.files {
        return Some(format!("its files cannot be used: {reason}"));
    }
    let (expected, known) = facts.dimensions.zip(model.dimensions).filter(|(expected, known)| expected != known)?;
    Some(format!("its vectors have {known} numbers, and `ai.embedding_dim` is {expected}"))
}

fn reason_of_quality(model: &Candidate) -> String {
    let size = model.size.as_str();
    match model.training {
        Some(Training::Embeddings) => format!("an embedding model of size {size}; larger ones tell texts apart better"),
        Some(Training::General) => format!(
            "a general pretrained encoder of size {size}, not trained for embeddings: any embedding model of the next \
             smaller size is preferred"
        ),
        None => format!("of size {size}; nothing says whether it was trained for embeddings, so it is believed to be"),
    }
}

fn in_words(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// A number of which only the first two digits are believed.
fn in_two_digits(number: u64) -> u64 {
    let unit = 10_u64.pow(number.checked_ilog10().unwrap_or(0).saturating_sub(1));
    number / unit * unit
}
