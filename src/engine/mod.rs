//! Text in, vectors out: tokenizer, queue, micro-batches, ONNX Runtime, pooling.
//!
//! Owns what happens to a text between a request and its vector. It never sees HTTP or SQL, and does not know which
//! models there are. Start at [`encoder`]: behind it, `tokenize` and `turns` make tokens, `queue`, `job` and `batcher` decide
//! what runs when and by whom, `session` runs it, and `head`, `pooling` and `dense` make the vector.

pub mod batcher;
pub mod dense;
pub mod encoder;
pub mod error;
pub mod graph;
mod head;
pub mod job;
mod mapped;
pub mod meter;
pub mod padded;
pub mod pooling;
pub mod provider;
pub mod queue;
pub mod run_memory;
pub mod session;
pub mod tokenize;
mod trials;
mod turns;

pub use dense::{Dense, Module};
pub use encoder::{EncodeRequest, Encoded, Encoder, EncoderOptions, EncoderSpec, OldestBatch};
pub use error::{Cause, EngineError, TokenCount};
pub use graph::{GraphApart, GraphFiles, is_unfit_for_bf16};
pub use job::{Finish, Priority};
pub use padded::Positions;
pub use provider::{CpuFeature, CpuFeatures, Gpu, ProviderChoice, ProviderFacts, ProviderWish};
pub use queue::BatchLimits;
pub use session::{OutputKind, Runtime, SessionOptions};
pub use tokenize::{Input, OverLong, TextTokenizer, TokenDetail, Tokens};
pub use turns::{allow_turns, in_place_or_turns};
