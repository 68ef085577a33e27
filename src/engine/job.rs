//! One request's texts on their way through the queue of a model, and the answer that its caller waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::error::EngineError;
use super::tokenize::Tokens;
use crate::telemetry::traces::Trace;

/// What a caller wants done with each vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finish {
    /// The length to keep, at most the model's own.
    pub dimensions: usize,
    /// Whether to scale it to length 1.
    pub normalize: bool,
}

/// Whether somebody waits for the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Priority {
    /// Somebody does.
    #[default]
    Interactive,
    /// Nobody does: the work goes on beside what is interactive, in a small share of the batches.
    Background,
    /// The server's own work: as [`Self::Background`], but it comes in parts of the server's own making, so what one
    /// request may have does not limit them.
    Internal,
}

/// A finished job.
#[derive(Debug)]
pub struct JobResult {
    /// `[n_texts][dimensions]`, in the request's order.
    pub vectors: Vec<f32>,
    /// From submission until the first of its batches was taken.
    pub queue_time: Duration,
    /// Its share of the time in the runtime, summed over its batches.
    pub inference_time: Duration,
}

/// One request's texts on their way through the queue.
pub struct Job {
    /// The texts' tokens, in the request's order.
    pub texts: Vec<Tokens>,
    /// What becomes of each vector.
    pub finish: Finish,
    submitted: Instant,
    cancelled: AtomicBool,
    progress: Mutex<Progress>,
}

struct Progress {
    vectors: Vec<f32>,
    n_left: usize,
    queue_time: Option<Duration>,
    inference_time: Duration,
    reply: Option<oneshot::Sender<Result<JobResult, EngineError>>>,
}

impl Job {
    /// A job of at least one text, and its caller's end.
    pub(super) fn new(texts: Vec<Tokens>, finish: Finish) -> (Arc<Self>, JobHandle) {
        let (sender, reply) = oneshot::channel();
        let n_texts = texts.len();
        let job = Arc::new(Self {
            texts,
            finish,
            submitted: Instant::now(),
            cancelled: AtomicBool::new(false),
            progress: Mutex::new(Progress {
                vectors: vec![0.0; n_texts * finish.dimensions],
                n_left: n_texts,
                queue_time: None,
                inference_time: Duration::ZERO,
                reply: Some(sender),
            }),
        });
        (Arc::clone(&job), JobHandle { job, reply, trace: Trace::current() })
    }

    /// Whether nobody waits for it any more: its caller has gone, or another of its texts has failed.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Tokens of text `index`, special tokens included.
    pub(super) fn n_tokens(&self, index: usize) -> usize {
        self.texts[index].ids.len()
    }

    /// A batch was taken that has texts of it.
    pub(super) fn begin(&self) {
        self.progress.lock().queue_time.get_or_insert_with(|| self.submitted.elapsed());
    }

    /// Shows how long it waited and how long it was run, however it ended.
    fn show(&self, trace: &Trace) {
        let elapsed = self.submitted.elapsed();
        let queue_time = self.progress.lock().queue_time;
        trace.record("queue", self.submitted, queue_time.unwrap_or(elapsed), &[]);
        if let Some(queue_time) = queue_time {
            let n_tokens = (0..self.texts.len()).map(|index| self.n_tokens(index)).sum();
            let counts = [("granary.texts", self.texts.len()), ("granary.tokens", n_tokens)];
            trace.record("infer", self.submitted + queue_time, elapsed.saturating_sub(queue_time), &counts);
        }
    }

    /// Lets `write` fill the vector of text `index`; the last one sends the job's result.
    pub fn complete(&self, index: usize, inference_time: Duration, write: impl FnOnce(&mut [f32])) {
        let mut progress = self.progress.lock();
        let start = index * self.finish.dimensions;
        // A failed job's vectors have been given up.
        let Some(slot) = progress.vectors.get_mut(start..start + self.finish.dimensions) else { return };
        write(slot);
        progress.inference_time += inference_time;
        progress.n_left -= 1;
        if progress.n_left > 0 {
            return;
        }
        let Some(reply) = progress.reply.take() else { return };
        let result = JobResult {
            vectors: std::mem::take(&mut progress.vectors),
            queue_time: progress.queue_time.unwrap_or_default(),
            inference_time: progress.inference_time,
        };
        // Released before the reply: its receiver may drop the job at once, on another core.
        drop(progress);
        // Nobody listens when the caller has gone in this very moment.
        let _ = reply.send(Ok(result));
    }

    /// Ends the job with an error; the texts still waiting are dropped.
    pub fn fail(&self, error: EngineError) {
        self.cancelled.store(true, Ordering::Relaxed);
        let mut progress = self.progress.lock();
        progress.vectors = Vec::new();
        if let Some(reply) = progress.reply.take() {
            let _ = reply.send(Err(error));
        }
    }
}

/// Cancels its job when dropped: the caller has its answer or has gone.
pub struct JobHandle {
    job: Arc<Job>,
    reply: oneshot::Receiver<Result<JobResult, EngineError>>,
    trace: Option<Trace>,
}

impl JobHandle {
    /// Waits for the job's end.
    ///
    /// # Errors
    /// What the engine met, or [`EngineError::Closed`].
    pub async fn wait(mut self) -> Result<JobResult, EngineError> {
        (&mut self.reply).await.unwrap_or(Err(EngineError::Closed))
    }

    /// The job's end, if it has come.
    #[cfg(test)]
    pub(super) fn ended(&mut self) -> Option<Result<JobResult, EngineError>> {
        self.reply.try_recv().ok()
    }
}

impl Drop for JobHandle {
    fn drop(&mut self) {
        self.job.cancelled.store(true, Ordering::Relaxed);
        if let Some(trace) = &self.trace {
            self.job.show(trace);
        }
    }
}
