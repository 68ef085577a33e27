//! The words of the product as types: models, their encoders' settings, and vector spaces.
//!
//! Owns what is true without a server: how a name is spelled, what makes two vectors comparable. It refuses to know
//! HTTP, SQL, ONNX Runtime and tokio. Start at [`model`], then [`space`].

pub mod model;
pub mod module;
pub mod prompt_choice;
pub mod space;

pub use model::{
    Dimensions, EncoderSettings, ModelInfo, ModelName, ModelNameError, ModelOrigin, ModelSize, ModelSource,
    OutputDimensionsError, Pooling, Prompts, TruncationSide,
};
pub use module::{Activation, DenseShape, HashedModule};
pub use prompt_choice::{InputType, PromptChoice, TwoPromptsError};
pub use space::{Fingerprint, Manifest, SpaceId, SpaceIdError};
