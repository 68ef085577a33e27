//! What executes a model, and why that and not another.
//!
//! Owns the choice, as a function of what is asked for and what there is: [`choose`]. It reads nothing but
//! `/proc/cpuinfo`, and only when it is told to.

use serde::{Serialize, Serializer};

use crate::domain::{Provider, ProviderSetting, words};

/// An instruction set that says how fast matrices are multiplied, and by which provider. Those of integer products
/// decide nothing here: they are only shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuFeature {
    /// x86-64: products of 8 floats.
    Avx2,
    /// x86-64: products of 16 floats.
    Avx512f,
    /// x86-64: integer dot products of 64 bytes.
    Avx512Vnni,
    /// x86-64: integer dot products of 32 bytes.
    AvxVnni,
    /// x86-64: bf16 products (`VDPBF16PS`).
    Avx512Bf16,
    /// x86-64: tiles with bf16 products.
    AmxBf16,
    /// ARM: products of 4 floats.
    Neon,
    /// ARM: bf16 products.
    ArmBf16,
    /// ARM: integer matrix products.
    ArmI8mm,
}

words! {
    /// The word it is shown by: the kernel's, but `neon` for what it calls `asimd` on aarch64.
    CpuFeature {
        Avx2 => "avx2",
        Avx512f => "avx512f",
        Avx512Vnni => "avx512_vnni",
        AvxVnni => "avx_vnni",
        Avx512Bf16 => "avx512_bf16",
        AmxBf16 => "amx_bf16",
        Neon => "neon",
        ArmBf16 => "bf16",
        ArmI8mm => "i8mm",
    }
}

/// The instruction sets of a CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuFeatures(u16);

impl CpuFeatures {
    /// Reads what the kernel says of the first processor; nothing where it does not say.
    #[must_use]
    pub fn probe() -> Self {
        Self::from_cpuinfo(&fs_err::read_to_string("/proc/cpuinfo").unwrap_or_default())
    }

    /// Reads the text of `/proc/cpuinfo`.
    #[must_use]
    pub fn from_cpuinfo(cpuinfo: &str) -> Self {
        // x86-64 says `flags`, ARM `Features`.
        let line = cpuinfo.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
        let words = line.and_then(|line| line.split_once(':')).map_or("", |(_, words)| words);
        let feature = |word: &str| CpuFeature::parse(if word == "asimd" { "neon" } else { word });
        words.split_ascii_whitespace().filter_map(feature).collect()
    }

    /// Whether the CPU has it.
    #[must_use]
    pub fn has(self, feature: CpuFeature) -> bool {
        self.0 & bit(feature) != 0
    }

    /// All that the CPU has.
    pub fn iter(self) -> impl Iterator<Item = CpuFeature> {
        CpuFeature::ALL.into_iter().filter(move |feature| self.has(*feature))
    }

    /// Whether the CPU multiplies matrices in bf16 faster than in fp32, with a provider that uses it.
    #[must_use]
    pub fn multiplies_bf16(self) -> bool {
        self.has(CpuFeature::AmxBf16) || self.has(CpuFeature::Avx512Bf16)
    }

    /// Whether the provider rounds products to bf16 on this CPU.
    #[must_use]
    pub fn rounds_to_bf16(self, provider: Provider) -> bool {
        provider == Provider::OpenVino && self.multiplies_bf16()
    }
}

impl FromIterator<CpuFeature> for CpuFeatures {
    fn from_iter<T: IntoIterator<Item = CpuFeature>>(features: T) -> Self {
        Self(features.into_iter().map(bit).fold(0, |all, one| all | one))
    }
}

impl Serialize for CpuFeatures {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter().map(CpuFeature::as_str))
    }
}

fn bit(feature: CpuFeature) -> u16 {
    1 << feature as u16
}

/// A GPU that CUDA could use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// What its maker calls it.
    pub name: String,
    /// Its memory.
    pub memory_bytes: u64,
    /// What nobody uses of it at the moment.
    pub free_bytes: u64,
    /// The version of the driver.
    pub driver: Option<String>,
    /// Its generation, such as `9.0`.
    pub compute_capability: Option<String>,
}

/// What a provider is chosen from, for one model.
#[derive(Clone, Debug, Default)]
pub struct ProviderFacts {
    /// What the CPU can do.
    pub features: CpuFeatures,
    /// Whether the runtime library was built with OpenVINO.
    pub has_openvino: bool,
    /// Whether the runtime library was built with CUDA.
    pub has_cuda: bool,
    /// The GPU that CUDA would use, if the driver shows one.
    pub gpu: Option<Gpu>,
    /// What the model is expected to take of a GPU's memory.
    pub gpu_bytes: u64,
}

/// What an operator asks for, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProviderWish {
    /// The wish.
    pub setting: ProviderSetting,
    /// The setting that says so, as code: `` `engine.provider` ``.
    pub said_by: &'static str,
}

/// A provider and the sentence that explains it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderChoice {
    /// What will execute the model.
    pub provider: Provider,
    /// Why, for the log and `GET /models/{name}`; what was lost, where another one was asked for.
    pub reason: String,
    /// The provider that was asked for or chosen first, where another one executes the model.
    pub wanted: Option<Provider>,
}

/// Chooses what executes a model: what was asked for if the runtime library has it, else what the machine does best.
#[must_use]
pub fn choose(wish: ProviderWish, facts: &ProviderFacts) -> ProviderChoice {
    let ProviderWish { setting, said_by } = wish;
    match setting.named() {
        None => choose_automatically(facts),
        Some(wanted) if facts.has(wanted) => {
            ProviderChoice { provider: wanted, reason: format!("{said_by} says so"), wanted: None }
        }
        Some(wanted) => fall_back(wanted, &format!("{said_by} asks for it, but {}", missing(wanted)), facts),
    }
}

/// Chooses for a model whose session did not open on `choice`; `None` when there is nothing left to fall back to.
///
/// `failure` is what the runtime said.
#[must_use]
pub fn choose_after(choice: &ProviderChoice, failure: &str, facts: &ProviderFacts) -> Option<ProviderChoice> {
    let failed = choice.provider;
    if failed == Provider::Cpu {
        return None;
    }
    let has_openvino = facts.has_openvino && failed != Provider::OpenVino;
    let without = ProviderFacts { has_openvino, ..facts.clone() };
    Some(fall_back(
        choice.wanted.unwrap_or(failed),
        &format!("the model does not open on `{failed}` ({failure})"),
        &without,
    ))
}

/// Chooses among what a CPU can do: from CUDA to OpenVINO, from OpenVINO to the plain kernels, never up to a GPU.
fn fall_back(wanted: Provider, why: &str, facts: &ProviderFacts) -> ProviderChoice {
    let instead = choose_automatically(&ProviderFacts { has_cuda: false, ..facts.clone() });
    let provider = instead.provider;
    let rounding = if facts.features.rounds_to_bf16(provider) { "bf16" } else { "fp32" };
    let lost = what_is_lost(wanted, provider, facts.features);
    let reason = format!("not `{wanted}`: {why}; it runs on `{provider}` in {rounding} instead, {lost}");
    ProviderChoice { provider, reason, wanted: Some(wanted) }
}

impl ProviderFacts {
    /// Whether the runtime library has the provider.
    #[must_use]
    pub fn has(&self, provider: Provider) -> bool {
        match provider {
            Provider::Cpu => true,
            Provider::OpenVino => self.has_openvino,
            Provider::Cuda => self.has_cuda,
        }
    }
}

fn missing(provider: Provider) -> &'static str {
    match provider {
        Provider::Cpu => "the runtime library has no CPU provider",
        Provider::OpenVino => "the runtime library has no OpenVINO",
        Provider::Cuda => "the runtime library has no CUDA",
    }
}

/// The end of the sentence that says what a fallback costs.
fn what_is_lost(wanted: Provider, provider: Provider, features: CpuFeatures) -> &'static str {
    match (wanted, provider) {
        (Provider::Cuda, _) => "much slower in bulk than a GPU",
        (Provider::OpenVino, Provider::Cpu) if features.multiplies_bf16() => {
            "a half to a quarter of the speed in bulk, because fp32 leaves this CPU's bf16 products unused"
        }
        (Provider::OpenVino, Provider::Cpu) if features.has(CpuFeature::ArmBf16) => {
            "which may be slower: OpenVINO with bf16 products is for x86-64 only"
        }
        (Provider::OpenVino, Provider::Cpu) => "at about the same speed, because this CPU has no bf16 products",
        _ => "which may be slower",
    }
}

/// Chooses for `auto`: a GPU with room, OpenVINO where it pays, the plain CPU kernels elsewhere.
///
/// OpenVINO pays where the CPU has instructions for bf16 products. Elsewhere both run in fp32 at about the same speed,
/// and the plain kernels take less memory and start faster.
fn choose_automatically(facts: &ProviderFacts) -> ProviderChoice {
    let features = facts.features;
    let gpu = facts.gpu.as_ref().filter(|_| facts.has_cuda);
    let (provider, reason) = match gpu {
        Some(gpu) if gpu.free_bytes >= facts.gpu_bytes => {
            let reason = format!("the runtime library has CUDA and the GPU ({}) has room", gpu.name);
            (Provider::Cuda, reason)
        }
        _ if features.has(CpuFeature::AmxBf16) && facts.has_openvino => {
            (Provider::OpenVino, "this CPU has AMX-bf16 and the runtime library has OpenVINO".to_owned())
        }
        _ if features.has(CpuFeature::Avx512Bf16) && facts.has_openvino => {
            (Provider::OpenVino, "this CPU has AVX-512-bf16 and the runtime library has OpenVINO".to_owned())
        }
        _ if features.multiplies_bf16() => {
            let reason = "this CPU multiplies in bf16, but the runtime library has no OpenVINO to use it";
            (Provider::Cpu, reason.to_owned())
        }
        _ if features.has(CpuFeature::ArmBf16) => {
            let reason = "this CPU multiplies in bf16, but OpenVINO, which would use that, is for x86-64 only";
            (Provider::Cpu, reason.to_owned())
        }
        _ => (Provider::Cpu, "this CPU does not multiply in bf16, so OpenVINO would only cost memory".to_owned()),
    };
    let full = gpu.filter(|_| provider != Provider::Cuda);
    let reason =
        full.map_or(reason.clone(), |gpu| format!("the GPU ({}) has no room for the model; {reason}", gpu.name));
    ProviderChoice { provider, reason, wanted: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn cpu(features: &[CpuFeature]) -> CpuFeatures {
        features.iter().copied().collect()
    }

    fn gpu(free_bytes: u64) -> Gpu {
        let name = "NVIDIA H100".to_owned();
        Gpu { name, memory_bytes: 80 * GIB, free_bytes, driver: None, compute_capability: None }
    }

    fn chosen(setting: ProviderSetting, facts: &ProviderFacts) -> ProviderChoice {
        choose(ProviderWish { setting, said_by: "`engine.provider`" }, facts)
    }

    #[test]
    fn what_the_kernel_says_of_a_cpu_is_understood() {
        let amx = CpuFeatures::from_cpuinfo("processor\t: 0\nflags\t\t: fpu avx512f amx_bf16 amx_tile\n");
        assert_eq!(amx, cpu(&[CpuFeature::Avx512f, CpuFeature::AmxBf16]));
        assert!(amx.multiplies_bf16());
        let arm = CpuFeatures::from_cpuinfo("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n");
        assert_eq!(arm, cpu(&[CpuFeature::Neon, CpuFeature::ArmBf16, CpuFeature::ArmI8mm]));
        // OpenVINO's bf16 is x86-64's.
        assert!(!arm.multiplies_bf16());
        assert_eq!(arm.iter().map(CpuFeature::as_str).collect::<Vec<_>>(), ["neon", "bf16", "i8mm"]);
        assert_eq!(CpuFeatures::from_cpuinfo(""), CpuFeatures::default());
    }

    #[test]
    fn each_wish_meets_what_there_is() {
        use Provider::{Cpu, Cuda, OpenVino};
        use ProviderSetting as Asked;

        let (amx, plain) = (cpu(&[CpuFeature::AmxBf16]), cpu(&[CpuFeature::Avx2]));
        let avx512 = cpu(&[CpuFeature::Avx512Bf16]);
        let arm = cpu(&[CpuFeature::Neon, CpuFeature::ArmBf16]);
        let facts = |features, library: &str, gpu| ProviderFacts {
            features,
            has_openvino: library.contains("openvino"),
            has_cuda: library.contains("cuda"),
            gpu,
            gpu_bytes: 2 * GIB,
        };
        for (asked, facts, provider, wanted, said) in [
            (Asked::Auto, facts(amx, "openvino", None), OpenVino, None, "this CPU has AMX-bf16"),
            (Asked::Auto, facts(avx512, "openvino", None), OpenVino, None, "this CPU has AVX-512-bf16"),
            (Asked::Auto, facts(amx, "", None), Cpu, None, "has no OpenVINO to use it"),
            (Asked::Auto, facts(plain, "openvino", None), Cpu, None, "does not multiply in bf16"),
            (Asked::Auto, facts(arm, "", None), Cpu, None, "multiplies in bf16, but OpenVINO"),
            (Asked::Auto, facts(amx, "openvino cuda", Some(gpu(40 * GIB))), Cuda, None, "(NVIDIA H100) has room"),
            (Asked::Auto, facts(amx, "openvino cuda", Some(gpu(GIB))), OpenVino, None, "(NVIDIA H100) has no room"),
            (Asked::Auto, facts(amx, "openvino cuda", None), OpenVino, None, "this CPU has AMX-bf16"),
            (Asked::Auto, facts(plain, "", Some(gpu(40 * GIB))), Cpu, None, "does not multiply in bf16"),
            (Asked::Cpu, facts(amx, "openvino cuda", Some(gpu(40 * GIB))), Cpu, None, "`engine.provider` says so"),
            (Asked::Openvino, facts(plain, "openvino", None), OpenVino, None, "`engine.provider` says so"),
            (Asked::Cuda, facts(plain, "cuda", None), Cuda, None, "`engine.provider` says so"),
            (
                Asked::Cuda,
                facts(amx, "openvino", Some(gpu(40 * GIB))),
                OpenVino,
                Some(Cuda),
                "on `openvino` in bf16 instead",
            ),
            (Asked::Cuda, facts(plain, "", None), Cpu, Some(Cuda), "on `cpu` in fp32 instead, much slower in bulk"),
            (Asked::Openvino, facts(amx, "", None), Cpu, Some(OpenVino), "a half to a quarter of the speed"),
            (Asked::Openvino, facts(plain, "", None), Cpu, Some(OpenVino), "at about the same speed"),
            (Asked::Openvino, facts(arm, "", None), Cpu, Some(OpenVino), "is for x86-64 only"),
            (
                Asked::Openvino,
                facts(plain, "cuda", Some(gpu(40 * GIB))),
                Cpu,
                Some(OpenVino),
                "library has no OpenVINO",
            ),
        ] {
            let choice = chosen(asked, &facts);
            assert_eq!((choice.provider, choice.wanted), (provider, wanted), "{asked:?} {facts:?}: {choice:?}");
            assert!(choice.reason.contains(said), "{choice:?}");
        }
    }

    #[test]
    fn a_session_that_does_not_open_is_tried_on_the_next_provider_down_to_the_cpu() {
        let facts = ProviderFacts {
            features: cpu(&[CpuFeature::AmxBf16]),
            has_openvino: true,
            has_cuda: true,
            gpu: Some(gpu(40 * GIB)),
            gpu_bytes: GIB,
        };
        let first = chosen(ProviderSetting::Cuda, &facts);
        let second = choose_after(&first, "no driver", &facts).expect("another");
        assert_eq!((second.provider, second.wanted), (Provider::OpenVino, Some(Provider::Cuda)));
        assert!(second.reason.contains("does not open on `cuda` (no driver)"), "{second:?}");
        let third = choose_after(&second, "bad operator", &facts).expect("another");
        assert_eq!((third.provider, third.wanted), (Provider::Cpu, Some(Provider::Cuda)));
        assert_eq!(choose_after(&third, "no memory", &facts), None);
    }
}
