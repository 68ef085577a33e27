use std::sync::LazyLock;

use super::super::probe::Memory;
use super::*;
use crate::config::Config;
use crate::domain::ProviderSetting;
use crate::engine::{CpuFeature, Gpu};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

static ENGINE: LazyLock<EngineConfig> = LazyLock::new(|| Config::default().engine);

/// A machine on which everything else takes a tenth of the memory.
fn machine(cores: usize, memory_bytes: u64, features: &[CpuFeature]) -> Machine {
    Machine {
        architecture: "x86_64".to_owned(),
        cpu: None,
        features: features.iter().copied().collect(),
        cores,
        cpu_quota: None,
        memory: Some(Memory { limit_bytes: memory_bytes, available_bytes: memory_bytes / 10 * 9 }),
        gpus: Vec::new(),
    }
}

fn phone(cores: usize) -> Machine {
    machine(cores, 2 * GIB, &[CpuFeature::Neon])
}

fn laptop() -> Machine {
    machine(8, 8 * GIB, &[CpuFeature::Avx2])
}

fn server() -> Machine {
    let features = [CpuFeature::Avx2, CpuFeature::Avx512f, CpuFeature::Avx512Bf16, CpuFeature::AmxBf16];
    machine(32, 64 * GIB, &features)
}

fn gpu_machine() -> Machine {
    let gpu = Gpu {
        name: "NVIDIA H100 80GB".to_owned(),
        memory_bytes: 80 * GIB,
        free_bytes: 79 * GIB,
        driver: Some("550.54".to_owned()),
        compute_capability: Some("9.0".to_owned()),
    };
    Machine { gpus: vec![gpu], ..machine(16, 128 * GIB, &[CpuFeature::Avx2, CpuFeature::Avx512f]) }
}

fn candidate(name: &str, size: ModelSize, weights_mb: u64, dimensions: u32, max_tokens: u32) -> Candidate {
    Candidate {
        name: ModelName::parse(name).expect("a name"),
        size,
        training: Some(Training::Embeddings),
        files: Files::Present,
        weights_bytes: Some(weights_mb * 1_000_000),
        mapped_bytes: 0,
        dimensions: Some(dimensions),
        max_tokens: Some(max_tokens),
        provider: ProviderWish { setting: ProviderSetting::Auto, said_by: "`engine.provider`" },
        workers: None,
        disabled: false,
    }
}

fn minilm() -> Candidate {
    candidate("minilm", ModelSize::Small, 91, 384, 256)
}

fn bert() -> Candidate {
    Candidate { training: Some(Training::General), ..candidate("bert", ModelSize::Medium, 438, 768, 512) }
}

fn bge() -> Candidate {
    candidate("bge", ModelSize::Medium, 438, 768, 512)
}

fn nomic() -> Candidate {
    candidate("nomic", ModelSize::Large, 547, 768, 8192)
}

/// The runtime library of the wheel for this kind of machine.
fn facts(machine: &Machine) -> RankFacts<'static> {
    RankFacts {
        has_openvino: !machine.features.has(CpuFeature::Neon),
        has_cuda: !machine.gpus.is_empty(),
        engine: &ENGINE,
        dimensions: None,
        memory_budget: None,
    }
}

fn ranked(machine: &Machine, models: &[Candidate]) -> Vec<Ranked> {
    rank(machine, models, facts(machine))
}

fn names(ranked: &[Ranked]) -> Vec<&str> {
    ranked.iter().map(|model| model.model.as_str()).collect()
}

#[test]
fn each_class_of_machine_gets_the_model_made_for_it() {
    let container = machine(1, 512 * MIB, &[CpuFeature::Avx2]);
    let squeezed =
        Machine { cpu_quota: Some(2.0), cores: 2, ..machine(2, GIB, &[CpuFeature::Avx2, CpuFeature::Avx512f]) };
    for (what, machine, expected, provider) in [
        ("a phone of two cores", phone(2), ["minilm", "bge", "bert", "nomic"], Provider::Cpu),
        ("a phone of four cores", phone(4), ["minilm", "bge", "bert", "nomic"], Provider::Cpu),
        ("a laptop", laptop(), ["bge", "minilm", "bert", "nomic"], Provider::Cpu),
        ("a server", server(), ["nomic", "bge", "minilm", "bert"], Provider::OpenVino),
        ("a GPU", gpu_machine(), ["nomic", "bge", "minilm", "bert"], Provider::Cuda),
        ("a container of 512 MiB", container, ["minilm", "bge", "bert", "nomic"], Provider::Cpu),
        ("a large host with a narrow group", squeezed, ["minilm", "bge", "bert", "nomic"], Provider::Cpu),
    ] {
        let ranked = ranked(&machine, &[bert(), nomic(), bge(), minilm()]);
        assert_eq!(names(&ranked), expected, "{what}: {ranked:#?}");
        assert_eq!(ranked[0].provider, provider, "{what}");
        assert!(ranked[0].fits && ranked[0].available, "{what}: {ranked:#?}");
    }
}

#[test]
fn a_general_encoder_is_not_chosen_over_an_embedding_model_of_the_next_smaller_class() {
    let medium = ranked(&laptop(), &[bert(), minilm()]);
    assert_eq!(names(&medium), ["minilm", "bert"]);
    assert!(medium[1].reasons.iter().any(|reason| reason.contains("not trained for embeddings")), "{medium:#?}");
    let general = Candidate { training: Some(Training::General), ..nomic() };
    assert_eq!(names(&ranked(&server(), &[general.clone(), bge(), minilm()])), ["bge", "nomic", "minilm"]);
    // What nobody says anything of is what its operator put there for a purpose.
    let unknown = Candidate { training: None, ..bge() };
    assert_eq!(names(&ranked(&laptop(), &[minilm(), unknown])), ["bge", "minilm"]);
}

#[test]
fn files_that_are_there_come_before_files_to_be_fetched_and_those_before_none() {
    let fetchable = Candidate { files: Files::Fetchable, ..nomic() };
    let missing = Candidate { files: Files::Unusable("the ONNX file is missing".to_owned()), ..bge() };
    let order = ranked(&server(), &[missing.clone(), fetchable.clone(), minilm()]);
    assert_eq!(names(&order), ["minilm", "nomic", "bge"]);
    assert_eq!(order.iter().map(|model| model.available).collect::<Vec<_>>(), [true, true, false]);
    assert!(order[2].reasons[0].contains("the ONNX file is missing"), "{order:#?}");
    assert_eq!(names(&ranked(&server(), &[missing.clone(), fetchable])), ["nomic", "bge"]);
    // Present, but it does not fit: still better than what cannot be had at all.
    assert_eq!(names(&ranked(&phone(2), &[missing, nomic()])), ["nomic", "bge"]);
}

#[test]
fn what_is_disabled_comes_last_and_says_so() {
    let disabled = Candidate { disabled: true, ..nomic() };
    let order = ranked(&server(), &[disabled, bge(), minilm()]);
    assert_eq!(names(&order), ["bge", "minilm", "nomic"]);
    assert_eq!(order.iter().map(|model| model.available).collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(order[2].reasons[0], "it is disabled until it is loaded by hand");
}

#[test]
fn the_length_of_vectors_that_is_expected_decides_before_all_else() {
    let facts = RankFacts { dimensions: Some(384), ..facts(&server()) };
    let order = rank(&server(), &[nomic(), bge(), minilm()], facts);
    assert_eq!(order[0].model.as_str(), "minilm");
    assert!(!order[1].available);
    assert!(order[1].reasons.iter().any(|reason| reason.contains("768") && reason.contains("384")), "{order:#?}");
}

#[test]
fn a_budget_is_kept_and_a_machine_that_does_not_say_is_trusted() {
    let narrow = RankFacts { memory_budget: Some(300 * MIB), ..facts(&laptop()) };
    assert_eq!(names(&rank(&laptop(), &[bge(), minilm()], narrow)), ["minilm", "bge"]);
    let silent = Machine { memory: None, ..laptop() };
    assert!(ranked(&silent, &[bge(), nomic()]).iter().all(|model| model.fits));
}

#[test]
fn each_worker_takes_memory_and_fewer_can_be_had() {
    let of = |workers| {
        let own = |model: Candidate| Candidate { workers: NonZeroUsize::new(workers), ..model };
        [bge(), minilm()].map(|model| ranked(&laptop(), &[own(model)])[0].expected_memory_bytes)
    };
    assert_eq!(of(0), [of(4)[0], of(8)[1]], "one for each core, but of a large model");
    assert!(of(2)[0] < of(4)[0] && of(2)[1] < of(8)[1]);
}

#[test]
fn reasons_are_sentences_with_the_numbers() {
    let laptop = ranked(&laptop(), &[minilm(), nomic()]);
    let said = laptop[0].reasons.join("\n");
    assert!(said.contains("takes about 265.1 MiB of the 6.3 GiB that models may take"), "{said}");
    assert!(said.contains("runs at some 19000 tokens a second on 8 cores, by estimate"), "{said}");
    assert!(said.contains("`cpu`: this CPU does not multiply in bf16"), "{said}");
    let said = laptop[1].reasons.join("\n");
    assert!(said.contains("takes about 6.6 GiB, more than the 6.3 GiB that models may take"), "{said}");
    let said = ranked(&gpu_machine(), &[nomic()])[0].reasons.join("\n");
    assert!(said.contains("of the 79.0 GiB the GPU has free"), "{said}");
    let tight = ranked(&machine(2, 512 * MIB, &[CpuFeature::AmxBf16]), &[minilm()]);
    assert!(!tight[0].fits && tight[0].reasons.iter().any(|reason| reason.contains("take less")), "{tight:#?}");
}
