//! `/hardware`: what this machine has, and which model suits it best.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::responses::NativeErrors;
use super::state::AppState;
use crate::engine::{CpuFeature, Gpu};
use crate::models::Selection;
use crate::models::hardware::{Machine, Memory, Ranked, RuntimeFacts};

/// The machine, and how well each model suits it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Hardware {
    machine: HardwareMachine,
    runtime: HardwareRuntime,
    /// The model that `PUT /models/active` with `auto` would take; null when all are disabled.
    #[schema(required, example = "all-MiniLM-L6-v2")]
    auto: Option<String>,
    /// The active model.
    active: String,
    /// Every model, the one that suits the machine best first.
    models: Vec<RankedModel>,
}

/// What this process may use of its machine.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct HardwareMachine {
    #[schema(example = "x86_64")]
    architecture: String,
    /// What its maker calls the processor; null where the kernel does not say.
    #[schema(required)]
    cpu: Option<String>,
    /// Instruction sets that decide how fast models run.
    #[schema(example = json!(["avx2", "avx512f", "amx_bf16"]))]
    features: Vec<String>,
    /// Threads that can run at once, within affinity, control groups and `engine.cores`.
    cores: usize,
    /// The quota of the control groups, in cores' worth of time; null without one.
    #[schema(required)]
    cpu_quota: Option<f64>,
    /// Null where the kernel does not say.
    #[schema(required)]
    memory: Option<HardwareMemory>,
    gpus: Vec<HardwareGpu>,
}

/// Memory that this process can have.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[allow(clippy::struct_field_names, reason = "the names say the unit to clients")]
pub struct HardwareMemory {
    /// The machine's, or the least that a control group allows.
    limit_bytes: u64,
    /// What is free of it or can be freed, with what this process holds already.
    available_bytes: u64,
    /// What models may take of it.
    for_models_bytes: u64,
}

/// A GPU.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct HardwareGpu {
    name: String,
    memory_bytes: u64,
    free_bytes: u64,
    /// The version of its driver.
    #[schema(required)]
    driver: Option<String>,
    #[schema(required, example = "9.0")]
    compute_capability: Option<String>,
}

/// The ONNX Runtime library.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct HardwareRuntime {
    /// Null when it cannot be used.
    #[schema(required)]
    version: Option<String>,
    /// The providers it was built with, of those that Granary knows.
    providers: Vec<String>,
    /// Why it cannot be used.
    #[schema(required)]
    failure: Option<String>,
}

/// A model, and how well it suits the machine.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct RankedModel {
    name: String,
    /// Whether its files are there or can be fetched, its vectors have the length that is expected, and it is not disabled.
    available: bool,
    /// Whether it fits in the memory that models may take.
    fits: bool,
    /// What it is expected to take once it serves; of the GPU's memory where that executes it.
    #[schema(required)]
    expected_memory_bytes: Option<u64>,
    /// What would execute it.
    provider: String,
    /// How fast it is expected to run in bulk, within a factor of two or so.
    #[schema(required)]
    tokens_per_second: Option<u64>,
    /// The greater the better; it means nothing beyond the order.
    score: u32,
    /// Why, in sentences.
    reasons: Vec<String>,
}

impl Hardware {
    fn of(selection: Selection, active: &str) -> Self {
        Self {
            auto: selection.best().map(|best| best.model.to_string()),
            active: active.to_owned(),
            machine: HardwareMachine::of(selection.machine),
            runtime: HardwareRuntime::of(selection.runtime),
            models: selection.ranked.into_iter().map(RankedModel::of).collect(),
        }
    }
}

impl HardwareMachine {
    fn of(machine: Machine) -> Self {
        Self {
            architecture: machine.architecture,
            cpu: machine.cpu,
            features: machine.features.iter().map(CpuFeature::as_str).map(str::to_owned).collect(),
            cores: machine.cores,
            cpu_quota: machine.cpu_quota,
            memory: machine.memory.map(HardwareMemory::of),
            gpus: machine.gpus.into_iter().map(HardwareGpu::of).collect(),
        }
    }
}

impl HardwareMemory {
    fn of(memory: Memory) -> Self {
        let Memory { limit_bytes, available_bytes } = memory;
        Self { limit_bytes, available_bytes, for_models_bytes: memory.for_models() }
    }
}

impl HardwareGpu {
    fn of(gpu: Gpu) -> Self {
        let Gpu { name, memory_bytes, free_bytes, driver, compute_capability } = gpu;
        Self { name, memory_bytes, free_bytes, driver, compute_capability }
    }
}

impl HardwareRuntime {
    fn of(runtime: Result<RuntimeFacts, String>) -> Self {
        match runtime {
            Ok(facts) => Self {
                version: facts.version,
                providers: facts.providers.iter().map(ToString::to_string).collect(),
                failure: None,
            },
            Err(failure) => Self { version: None, providers: Vec::new(), failure: Some(failure) },
        }
    }
}

impl RankedModel {
    fn of(ranked: Ranked) -> Self {
        Self {
            name: ranked.model.to_string(),
            available: ranked.available,
            fits: ranked.fits,
            expected_memory_bytes: ranked.expected_memory_bytes,
            provider: ranked.provider.to_string(),
            tokens_per_second: ranked.tokens_per_second,
            score: ranked.score,
            reasons: ranked.reasons,
        }
    }
}

/// Shows this machine, how well each model suits it, and why.
#[utoipa::path(
    get, path = "/hardware", tag = "models", operation_id = "hardware",
    responses((status = 200, description = "The machine and the ranked models", body = Hardware), NativeErrors)
)]
pub async fn get(State(state): State<AppState>) -> axum::Json<Hardware> {
    let selection = state.models.survey().await;
    axum::Json(Hardware::of(selection, state.models.active().as_str()))
}
