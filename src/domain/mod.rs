//! The words of the product as types: models, their encoders' settings, what executes them, vector spaces,
//! grains, and the keys of those who call; and the arithmetic of vectors and of their scores.
//!
//! Owns what is true without a server: how a name is spelled, what makes two vectors comparable. It refuses to know
//! HTTP, SQL, ONNX Runtime and tokio. Start at [`model`], then [`space`].

pub mod caller;
pub mod filter;
pub mod grain;
mod hex;
pub mod hub;
pub mod key;
pub mod model;
pub mod module;
pub mod prompt_choice;
pub mod provider;
pub mod reembedding;
pub mod score_map;
mod slug;
pub mod space;
mod text;
pub mod vector;

pub use caller::Caller;
pub use filter::{AttributeCondition, AttributeValue, Filter, Membership, Range, SpaceCondition};
pub use grain::{Content, CreatedAt, Grain, GrainId, GrainIdError, Origin, Provenance, TimeBound, Unproven};
pub use hex::hex_digits;
pub use hub::{HubFile, HubId, HubNameError, HubRevision, HubSource};
pub use key::{ApiKey, KeyHash, KeyHashError, KeyName, KeyNameError, NoScopeError, Scope, ScopeError, Scopes};
pub use model::{
    Dimensions, EncoderSettings, ModelInfo, ModelName, ModelNameError, ModelOrigin, ModelSize, ModelSource,
    OutputDimensionsError, Pooling, Prompts, Training, TruncationSide,
};
pub use module::{Activation, DenseShape, HashedModule};
pub use prompt_choice::{InputType, PromptChoice, TwoPromptsError};
pub use provider::{Provider, ProviderSetting};
pub use reembedding::{OldVectors, Reembedding, ReembeddingFailure, ReembeddingId, ReembeddingState};
pub use space::{DeclaredSpace, DeclaredSpaceError, ExtraToken, Fingerprint, Manifest, SpaceId, SpaceIdError};
pub(crate) use text::words;
