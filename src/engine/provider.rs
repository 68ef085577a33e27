//! What executes a model, and why that and not another.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What executes a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// ONNX Runtime's own kernels (MLAS), fp32.
    Cpu,
    /// OpenVINO through ONNX Runtime: bf16 where the CPU has instructions for it, fp32 elsewhere.
    OpenVino,
}

impl Provider {
    /// The word used in configuration, headers and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::OpenVino => "openvino",
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The instructions of this CPU that decide between providers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuFeatures {
    /// AMX tiles with bf16 products.
    pub amx_bf16: bool,
    /// AVX-512 with bf16 products (`VDPBF16PS`).
    pub avx512_bf16: bool,
}

impl CpuFeatures {
    /// Reads what the kernel says of the first processor; nothing where it does not say.
    #[must_use]
    pub fn probe() -> Self {
        let cpuinfo = fs_err::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self::from_cpuinfo(&cpuinfo)
    }

    /// Whether the CPU multiplies matrices in bf16 faster than in fp32.
    #[must_use]
    pub fn multiplies_bf16(self) -> bool {
        self.amx_bf16 || self.avx512_bf16
    }

    fn from_cpuinfo(cpuinfo: &str) -> Self {
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
        let has = |wanted| flags.split_ascii_whitespace().any(|flag| flag == wanted);
        Self { amx_bf16: has("amx_bf16"), avx512_bf16: has("avx512_bf16") }
    }
}

/// A provider and the sentence that explains it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProviderChoice {
    /// What will execute the model.
    pub provider: Provider,
    /// Why, for the log and `GET /models/{name}`.
    pub reason: &'static str,
}

/// Chooses for `auto`: OpenVINO where it pays, the plain CPU kernels elsewhere.
///
/// OpenVINO pays where the CPU has instructions for bf16 products. Elsewhere both run in fp32 at about the same speed,
/// and the plain kernels take less memory and start faster.
#[must_use]
pub fn choose_automatically(features: CpuFeatures, has_openvino: bool) -> ProviderChoice {
    let (provider, reason) = match (features, has_openvino) {
        (CpuFeatures { amx_bf16: true, .. }, true) => {
            (Provider::OpenVino, "this CPU has AMX-bf16 and the runtime library has OpenVINO")
        }
        (CpuFeatures { avx512_bf16: true, .. }, true) => {
            (Provider::OpenVino, "this CPU has AVX-512-bf16 and the runtime library has OpenVINO")
        }
        (features, false) if features.multiplies_bf16() => {
            (Provider::Cpu, "this CPU multiplies in bf16, but the runtime library has no OpenVINO to use it")
        }
        _ => (Provider::Cpu, "this CPU does not multiply in bf16, so OpenVINO would only cost memory"),
    };
    ProviderChoice { provider, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openvino_is_chosen_only_where_it_pays() {
        let amx = CpuFeatures::from_cpuinfo("processor\t: 0\nflags\t\t: fpu avx512f amx_bf16 amx_tile\n");
        let avx512 = CpuFeatures::from_cpuinfo("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16\n");
        let plain = CpuFeatures::from_cpuinfo("processor\t: 0\nflags\t\t: fpu avx2\n");
        for features in [amx, avx512] {
            assert_eq!(choose_automatically(features, true).provider, Provider::OpenVino);
            assert_eq!(choose_automatically(features, false).provider, Provider::Cpu);
        }
        assert_eq!(choose_automatically(plain, true).provider, Provider::Cpu);
        assert_eq!(CpuFeatures::from_cpuinfo(""), CpuFeatures::default());
    }
}
