//! What one model makes of a sample and its queries, and how fast. Nothing is stored, and no cache of vectors is asked:
//! the times are those of the model.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::CompareError;
use super::sample::{Query, Sampled};
use crate::domain::vector::normalize;
use crate::domain::{InputType, ModelName, PromptChoice, SpaceId};
use crate::engine::{EncodeRequest, Encoded, Finish, Input, OverLong, Priority};
use crate::models::{Lease, ModelError, MultiModelManager};

/// Texts that are embedded at once, so that a comparison in the background has little in the queue.
const TEXTS_AT_ONCE: usize = 64;

/// Texts that are embedded one by one, to see how long a caller waits for one.
const TIMED_TEXTS: usize = 48;

/// How many texts have been embedded, of how many. It is read while it grows.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) done: AtomicU64,
    pub(super) total: AtomicU64,
}

/// What a model made.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) model: ModelName,
    pub(super) space: SpaceId,
    pub(super) dimensions: usize,
    pub(super) max_tokens: u32,
    /// `[n_sampled][dimensions]`, of length 1.
    pub(super) sample: Vec<f32>,
    /// `[n_queries][dimensions]`, of length 1.
    pub(super) queries: Vec<f32>,
    pub(super) n_truncated: usize,
    /// Of single texts.
    pub(super) times_ms: Vec<f64>,
    pub(super) texts_per_second: f64,
    pub(super) tokens_per_second: f64,
}

/// How many texts a model embeds for a comparison.
pub(super) fn n_texts(sampled: &[Sampled], queries: &[Query]) -> u64 {
    (sampled.len() + queries.len() + sampled.len().min(TIMED_TEXTS)) as u64
}

/// Has a model embed a sample and its queries.
pub(super) async fn embed(
    models: &MultiModelManager,
    name: &ModelName,
    (sampled, queries): (&[Sampled], &[Query]),
    progress: &Progress,
) -> Result<Made, CompareError> {
    let lease = lease(models, name).await?;
    let facts = lease.facts();
    let dimensions = facts.dimensions.native.get() as usize;
    let (space, max_tokens, normalize) = (facts.fingerprint.space(), facts.max_tokens, facts.normalize);
    let prompt_of = |input_type| lease.prompt(&PromptChoice::For(input_type));
    let (for_documents, for_queries) = (prompt_of(InputType::Document)?, prompt_of(InputType::Query)?);
    // Not held meanwhile: a model that is to be unloaded need not wait for a comparison of minutes.
    drop(lease);
    let work = Work { models, name, space, finish: Finish { dimensions, normalize }, progress };

    let texts: Vec<&str> = sampled.iter().map(|grain| grain.text.as_str()).collect();
    let began = Instant::now();
    let of_sample = work.embed_all(&texts, for_documents.as_deref()).await?;
    let took = began.elapsed().as_secs_f64().max(1e-9);
    let query_texts: Vec<&str> = queries.iter().map(|query| query.text.as_str()).collect();
    let of_queries = work.embed_all(&query_texts, for_queries.as_deref()).await?;
    let mut times_ms = Vec::with_capacity(TIMED_TEXTS);
    for text in texts.iter().take(TIMED_TEXTS) {
        // As a caller would who waits for it.
        let (encoded, took) = work.embed(&[text], for_documents.as_deref(), Priority::Interactive).await?;
        drop(encoded);
        times_ms.push(took.as_secs_f64() * 1e3);
    }
    Ok(Made {
        model: name.clone(),
        space: work.space,
        dimensions,
        max_tokens,
        sample: of_sample.vectors,
        queries: of_queries.vectors,
        n_truncated: of_sample.n_truncated,
        times_ms,
        texts_per_second: texts.len() as f64 / took,
        tokens_per_second: of_sample.n_tokens as f64 / took,
    })
}

struct Work<'a> {
    models: &'a MultiModelManager,
    name: &'a ModelName,
    space: SpaceId,
    finish: Finish,
    progress: &'a Progress,
}

#[derive(Default)]
struct Bulk {
    vectors: Vec<f32>,
    n_tokens: usize,
    n_truncated: usize,
}

impl Work<'_> {
    async fn embed_all(&self, texts: &[&str], prompt: Option<&str>) -> Result<Bulk, CompareError> {
        let mut bulk = Bulk::default();
        for texts in texts.chunks(TEXTS_AT_ONCE) {
            let (encoded, _) = self.embed(texts, prompt, Priority::Internal).await?;
            bulk.vectors.extend(encoded.vectors);
            bulk.n_tokens += encoded.n_tokens.iter().sum::<usize>();
            bulk.n_truncated += encoded.truncated.len();
        }
        bulk.vectors.chunks_mut(self.finish.dimensions).for_each(normalize);
        Ok(bulk)
    }

    /// Embeds texts together, waiting while the model's queue is full. Answers the time of the try that succeeded.
    async fn embed(
        &self,
        texts: &[&str],
        prompt: Option<&str>,
        priority: Priority,
    ) -> Result<(Encoded, Duration), CompareError> {
        loop {
            let lease = lease(self.models, self.name).await?;
            if lease.facts().fingerprint.space() != self.space {
                return Err(CompareError::Moved(self.name.clone()));
            }
            let request = EncodeRequest {
                inputs: texts.iter().map(|text| Input::Text((*text).to_owned())).collect(),
                prompt: prompt.map(str::to_owned),
                // Where the server refuses long texts, their share is worth knowing all the same.
                over_long: OverLong::Cut(lease.facts().truncation_side),
                finish: self.finish,
                priority,
            };
            let began = Instant::now();
            let work = Box::pin(async { lease.encoder().encode(request).await.map_err(ModelError::Engine) });
            let error = match self.models.unless_stuck(self.name, work).await {
                Ok(encoded) => {
                    self.progress.done.fetch_add(texts.len() as u64, Ordering::Relaxed);
                    return Ok((encoded, began.elapsed()));
                }
                Err(error) => error,
            };
            drop(lease);
            error.wait_out().await?;
        }
    }
}

/// A hold on a model, however long it takes to load: nobody waits for this on a connection.
async fn lease(models: &MultiModelManager, name: &ModelName) -> Result<Lease, ModelError> {
    loop {
        match models.lease(name).await {
            Ok(lease) => return Ok(lease),
            Err(error) => error.wait_out().await?,
        }
    }
}
