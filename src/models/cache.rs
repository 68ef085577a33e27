//! Vectors of texts that were embedded before, for query workloads that repeat.
//!
//! Off unless `models.embedding_cache` gives it bytes. A vector is kept under a hash of everything that decides it: the
//! space, how it is rounded, the prompt and the text. So models that share a space and a provider share its vectors, and a
//! model whose files or provider change does not answer with old ones. One whose files were written over while it was
//! loaded makes vectors that are not of its space: where that is seen, all are forgotten, and so they are where other
//! numbers are accepted as a space's. Texts themselves are not kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::{counter, gauge};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};

use super::error::ModelError;
use crate::domain::{ModelName, SpaceId};
use crate::engine::{EncodeRequest, Encoded, Encoder, EngineError, Input, OverLong};
use crate::telemetry;

/// Bytes of an entry besides its vector: key, counts, pointers, and the cache's own bookkeeping.
const ENTRY_OVERHEAD_BYTES: usize = 128;

/// Expected for sizing the cache's tables: a vector of 384 numbers.
const TYPICAL_ENTRY_BYTES: usize = 384 * size_of::<f32>() + ENTRY_OVERHEAD_BYTES;

type Key = [u8; 32];

/// What is kept of one text.
struct Known {
    vector: Box<[f32]>,
    n_tokens: usize,
    truncated: bool,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<Key, Arc<Known>> for ByBytes {
    fn weight(&self, _key: &Key, known: &Arc<Known>) -> u64 {
        (size_of_val(&*known.vector) + ENTRY_OVERHEAD_BYTES) as u64
    }
}

/// What decides a vector besides prompt and text.
#[derive(Clone, Copy)]
pub(super) struct MadeBy<'a> {
    pub(super) space: &'a SpaceId,
    /// What rounds it: provider, precision and runtime.
    pub(super) numeric_class: &'a str,
}

/// A cache of vectors, bounded in bytes and shared by all models.
pub struct EmbeddingCache {
    known: Cache<Key, Arc<Known>, ByBytes>,
    /// How often it was emptied: what was begun before is not kept.
    n_emptied: AtomicU64,
}

impl EmbeddingCache {
    /// A cache that holds this many bytes; none when there are none.
    #[must_use]
    pub fn with_capacity(bytes: u64) -> Option<Arc<Self>> {
        let n_typical = usize::try_from(bytes).unwrap_or(usize::MAX) / TYPICAL_ENTRY_BYTES;
        let known = || Cache::with_weighter(n_typical, bytes, ByBytes);
        (bytes > 0).then(|| Arc::new(Self { known: known(), n_emptied: AtomicU64::new(0) }))
    }

    /// What it holds, in bytes.
    pub(super) fn size_bytes(&self) -> u64 {
        self.known.weight()
    }

    /// Forgets every vector, and those that are being computed. A key does not tell the space that it was made of.
    pub(super) fn empty(&self) {
        self.n_emptied.fetch_add(1, Ordering::SeqCst);
        self.known.clear();
        gauge!(telemetry::CACHE_BYTES).set(self.known.weight() as f64);
    }

    /// Encodes a request, taking from the cache what it has.
    ///
    /// # Errors
    /// Those of [`Encoder::encode`], with the places of the inputs in the whole request.
    pub(super) async fn encode(
        &self,
        encoder: &Encoder,
        model: &ModelName,
        made: MadeBy<'_>,
        request: EncodeRequest,
    ) -> Result<Encoded, ModelError> {
        let n_emptied = self.n_emptied.load(Ordering::SeqCst);
        let keys: Vec<Option<Key>> =
            request.inputs.iter().map(|input| key_of(made, request.prompt.as_deref(), input)).collect();
        let mut found: Vec<Option<Arc<Known>>> = keys.iter().map(|key| self.find(key.as_ref()?, &request)).collect();
        let missing: Vec<usize> = (0..found.len()).filter(|index| found[*index].is_none()).collect();
        let label = model.to_string();
        counter!(telemetry::CACHE_HITS, "model" => label.clone()).increment((found.len() - missing.len()) as u64);
        counter!(telemetry::CACHE_MISSES, "model" => label).increment(missing.len() as u64);
        let dimensions = request.finish.dimensions;
        let mut times = [Duration::ZERO; 3];
        if !missing.is_empty() {
            let mut inputs = request.inputs;
            let inputs = missing.iter().map(|index| std::mem::replace(&mut inputs[*index], Input::Tokens(Vec::new())));
            let request = EncodeRequest { inputs: inputs.collect(), ..request };
            let computed = encoder.encode(request).await.map_err(|error| in_whole_request(error, &missing))?;
            times = [computed.tokenization_time, computed.queue_time, computed.inference_time];
            let is_kept = self.n_emptied.load(Ordering::SeqCst) == n_emptied;
            for (place, index) in missing.into_iter().enumerate() {
                let known = Arc::new(Known {
                    vector: computed.vectors[place * dimensions..(place + 1) * dimensions].into(),
                    n_tokens: computed.n_tokens[place],
                    truncated: computed.truncated.contains(&place),
                });
                if let Some(key) = keys[index].filter(|_| is_kept) {
                    self.known.insert(key, Arc::clone(&known));
                }
                found[index] = Some(known);
            }
            if is_kept && self.n_emptied.load(Ordering::SeqCst) != n_emptied {
                // It was emptied while these came into it.
                self.known.clear();
            }
            gauge!(telemetry::CACHE_BYTES).set(self.known.weight() as f64);
        }
        let found: Vec<Arc<Known>> = found.into_iter().flatten().collect();
        let [tokenization_time, queue_time, inference_time] = times;
        Ok(Encoded {
            vectors: found.iter().flat_map(|known| known.vector.iter().copied()).collect(),
            dimensions,
            n_tokens: found.iter().map(|known| known.n_tokens).collect(),
            truncated: (0..found.len()).filter(|index| found[*index].truncated).collect(),
            tokenization_time,
            queue_time,
            inference_time,
        })
    }

    /// A cut text is no answer to a request that refuses the cut: the engine has the sentence for it.
    fn find(&self, key: &Key, request: &EncodeRequest) -> Option<Arc<Known>> {
        self.known.get(key).filter(|known| !(known.truncated && request.over_long == OverLong::Refuse))
    }
}

/// Token ids are not looked up: who sends them has computed more than a hash already.
fn key_of(made: MadeBy<'_>, prompt: Option<&str>, input: &Input) -> Option<Key> {
    let Input::Text(text) = input else { return None };
    let prompt = prompt.unwrap_or_default();
    let mut hasher = Sha256::new();
    hasher.update(made.space.as_str());
    hasher.update(made.numeric_class.len().to_le_bytes());
    hasher.update(made.numeric_class);
    // Its length keeps a prompt's end apart from a text's beginning.
    hasher.update(prompt.len().to_le_bytes());
    hasher.update(prompt);
    hasher.update(text);
    Some(hasher.finalize().into())
}

fn in_whole_request(error: EngineError, places: &[usize]) -> ModelError {
    error.with_index(|index| places.get(index).copied().unwrap_or(index)).into()
}
