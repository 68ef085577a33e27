//! What executes a model, and what an operator may ask for.

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
    /// An NVIDIA GPU through ONNX Runtime: products in TensorFloat-32 where the GPU has it, fp32 elsewhere.
    Cuda,
}

impl Provider {
    /// The word used in configuration, headers and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::OpenVino => "openvino",
            Self::Cuda => "cuda",
        }
    }

    /// Whether a GPU does the work.
    #[must_use]
    pub fn is_gpu(self) -> bool {
        self == Self::Cuda
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The provider that an operator asks for, for all models or for one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProviderSetting {
    /// The fastest the machine has.
    #[default]
    Auto,
    /// ONNX Runtime in fp32.
    Cpu,
    /// `OpenVINO`, in bf16 where the CPU has instructions for it.
    Openvino,
    /// An NVIDIA GPU.
    Cuda,
}

impl ProviderSetting {
    /// The provider that is named; `None` leaves it to the machine.
    #[must_use]
    pub fn named(self) -> Option<Provider> {
        match self {
            Self::Auto => None,
            Self::Cpu => Some(Provider::Cpu),
            Self::Openvino => Some(Provider::OpenVino),
            Self::Cuda => Some(Provider::Cuda),
        }
    }
}
