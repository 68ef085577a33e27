//! What a model does to a text's vector behind pooling: the modules of sentence-transformers that Granary has.

use serde::Serialize;

/// The function that a dense layer puts each of its numbers through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// The number itself.
    Identity,
    /// The hyperbolic tangent.
    Tanh,
    /// The number, or 0 when it is negative.
    Relu,
    /// The exact form, with the error function.
    Gelu,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
}

impl Activation {
    /// Every activation.
    pub const ALL: [Self; 5] = [Self::Identity, Self::Tanh, Self::Relu, Self::Gelu, Self::Sigmoid];

    /// The name of its class in `PyTorch`, without the path: sentence-transformers writes that.
    #[must_use]
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::Identity => "Identity",
            Self::Tanh => "Tanh",
            Self::Relu => "ReLU",
            Self::Gelu => "GELU",
            Self::Sigmoid => "Sigmoid",
        }
    }

    /// Reads the name of a class, with or without the path: `torch.nn.modules.activation.Tanh`.
    #[must_use]
    pub fn of_torch(class: &str) -> Option<Self> {
        let name = class.rsplit('.').next().unwrap_or_default();
        Self::ALL.into_iter().find(|activation| activation.torch_name() == name)
    }
}

/// What decides a dense layer, but its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DenseShape {
    /// The length of the vectors it takes.
    pub in_features: u32,
    /// The length of the vectors it makes.
    pub out_features: u32,
    /// Whether it adds a vector of its own before the activation.
    pub bias: bool,
    /// The function at its end.
    pub activation: Activation,
}

/// A module as a space is named by it. Part of the canonical form of a [`Manifest`](super::Manifest): what is said there
/// of its fields holds for these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum HashedModule {
    /// A dense layer.
    Dense {
        /// SHA-256 of the file of its weights, in lower-case hex.
        sha256: String,
        /// What else decides it.
        #[serde(flatten)]
        shape: DenseShape,
    },
    /// Scales the vector to length 1, before a dense layer. At the end it is the manifest's `normalize`.
    Normalize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_are_read_from_their_classes() {
        for (class, activation) in [
            ("torch.nn.modules.activation.Tanh", Some(Activation::Tanh)),
            ("torch.nn.modules.linear.Identity", Some(Activation::Identity)),
            ("torch.nn.modules.activation.ReLU", Some(Activation::Relu)),
            ("GELU", Some(Activation::Gelu)),
            ("torch.nn.modules.activation.Softmax", None),
            ("", None),
        ] {
            assert_eq!(Activation::of_torch(class), activation, "{class}");
        }
    }
}
