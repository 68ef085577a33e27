//! `[engine]`: what executes models and how texts are batched.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::spelling::{self, Problem, outside};
use crate::domain::ProviderSetting;

const CORES: RangeInclusive<usize> = 0..=1024;
pub(super) const WORKERS: RangeInclusive<usize> = 0..=256;
const MAX_BATCH_TOKENS: RangeInclusive<usize> = 16..=1_048_576;
const MAX_BATCH_TEXTS: RangeInclusive<usize> = 1..=4096;
const MAX_QUEUE_TOKENS: usize = 1 << 32;

/// `[engine]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineConfig {
    /// What executes models, where a model's own entry does not say.
    #[serde(deserialize_with = "spelling::word")]
    pub provider: ProviderSetting,
    /// The ONNX Runtime library. `None`: `ORT_DYLIB_PATH`, then the one in the data directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime_library: Option<PathBuf>,
    /// Cores that the defaults are chosen for, of those that the process may use; 0 is all of them.
    pub cores: usize,
    /// Batches of one model that run at once; 0 is one for each core, at most 32, or at most 4 for models without a query
    /// lane and for those that take longer texts than `max_batch_tokens`; one on a GPU.
    pub workers: usize,
    /// Whether a model has a session of its own for lone queries.
    #[serde(deserialize_with = "spelling::word")]
    pub query_lane: QueryLaneSetting,
    /// Padded tokens in one batch.
    pub max_batch_tokens: usize,
    /// Texts in one batch.
    pub max_batch_texts: usize,
    /// Tokens that may wait for one model.
    pub max_queue_tokens: usize,
    /// Tokens that one request may have, after the cut.
    pub max_request_tokens: usize,
    /// Whether texts longer than the model takes are cut rather than refused, where a request does not say.
    pub auto_truncate: bool,
}

/// Whether a model has a session of its own for lone queries, at the price of a second copy of its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QueryLaneSetting {
    /// Where the weights are small, there are two cores or more, and no GPU runs the model.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

impl EngineConfig {
    pub(super) fn problems(&self) -> Vec<Problem> {
        let number = |n: &usize| n.to_string();
        let library = self.runtime_library.as_deref().filter(|path| *path == Path::new("")).map(|_| {
            Problem::new("engine.runtime_library", "found an empty path, expected the path of an ONNX Runtime library")
        });
        // A batch that the queue cannot hold would never form; one that is refused itself asks nothing of the queue.
        let batch = Some(self.max_batch_tokens).filter(|batch| MAX_BATCH_TOKENS.contains(batch));
        let queue = batch.unwrap_or(*MAX_BATCH_TOKENS.start())..=MAX_QUEUE_TOKENS;
        [
            library,
            outside("engine.cores", &self.cores, &CORES, number),
            outside("engine.workers", &self.workers, &WORKERS, number),
            outside("engine.max_batch_tokens", &self.max_batch_tokens, &MAX_BATCH_TOKENS, number),
            outside("engine.max_batch_texts", &self.max_batch_texts, &MAX_BATCH_TEXTS, number),
            outside("engine.max_queue_tokens", &self.max_queue_tokens, &queue, |n| {
                let is_batch = *n == self.max_batch_tokens;
                if is_batch { format!("{n} (`engine.max_batch_tokens`)") } else { n.to_string() }
            }),
            outside("engine.max_request_tokens", &self.max_request_tokens, &(1..=MAX_QUEUE_TOKENS), number),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}
