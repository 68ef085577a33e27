//! The queue of one model: jobs of many callers become micro-batches of texts of like length.
//!
//! A job is one request's texts, longest first. Workers take turns over the waiting jobs, so that one text need not
//! wait for another caller's two thousand: a batch starts with the longest waiting text of the next job in turn and is
//! filled, first from that job and then from the others, with texts that fit its width, until it holds the budget of
//! padded tokens. The bound is counted in tokens. A job whose caller has gone gives up its place.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use metrics::{Gauge, gauge};
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::error::EngineError;
use super::tokenize::Tokens;
use crate::telemetry;

/// The widest batch, in tokens, that takes texts of any shorter length: padding them costs next to nothing there.
const SHORT_WIDTH: usize = 32;

/// Assumed until the first batches have been timed, for `Retry-After`.
const UNMEASURED_TOKENS_PER_SECOND: f64 = 5_000.0;

/// How batches are made.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Padded tokens in one batch; a longer single text makes a batch of its own.
    pub max_batch_tokens: usize,
    /// Texts in one batch.
    pub max_batch_texts: usize,
    /// Tokens waiting; a job that finds the queue empty is always taken.
    pub max_queue_tokens: usize,
    /// Widths are multiples of this: a provider that compiles per shape wants few shapes.
    pub width_step: usize,
}

/// What a caller wants done with each vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finish {
    /// The length to keep, at most the model's own.
    pub dimensions: usize,
    /// Whether to scale it to length 1.
    pub normalize: bool,
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
    /// Whether nobody waits for it any more: its caller has gone, or another of its texts has failed.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    fn n_tokens(&self, index: usize) -> usize {
        self.texts[index].ids.len()
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
}

impl JobHandle {
    /// Waits for the job's end.
    ///
    /// # Errors
    /// What the engine met, or [`EngineError::Closed`].
    pub async fn wait(mut self) -> Result<JobResult, EngineError> {
        (&mut self.reply).await.unwrap_or(Err(EngineError::Closed))
    }
}

impl Drop for JobHandle {
    fn drop(&mut self) {
        self.job.cancelled.store(true, Ordering::Relaxed);
    }
}

/// A text of a job, to be run.
pub struct BatchItem {
    /// The job it belongs to.
    pub job: Arc<Job>,
    /// Its place in the job.
    pub index: usize,
}

impl BatchItem {
    /// The text's token ids.
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        &self.job.texts[self.index].ids
    }
}

/// Texts to run together.
pub struct MicroBatch {
    /// At least one.
    pub items: Vec<BatchItem>,
    /// Tokens per row, padding included.
    pub width: usize,
}

/// A job's texts that no worker has taken, shortest first: the longest is popped.
struct Waiting {
    job: Arc<Job>,
    by_length: Vec<usize>,
    n_tokens: usize,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    n_tokens: usize,
    closed: bool,
    tokens_per_second: f64,
}

/// The bounded queue between callers and workers.
pub struct Batcher {
    queue: Mutex<Queue>,
    work_arrived: Condvar,
    limits: BatchLimits,
    tokens_shown: Gauge,
}

impl Batcher {
    /// An empty queue; `label` is the model's, for its metric.
    #[must_use]
    pub fn new(limits: BatchLimits, label: &str) -> Self {
        let tokens_shown = gauge!(telemetry::QUEUE_TOKENS, "model" => label.to_owned());
        Self { queue: Mutex::default(), work_arrived: Condvar::new(), limits, tokens_shown }
    }

    /// Queues a job of at least one text.
    ///
    /// # Errors
    /// [`EngineError::Overloaded`] when the queue is full, [`EngineError::Closed`] when the model is going away.
    pub fn submit(&self, texts: Vec<Tokens>, finish: Finish) -> Result<JobHandle, EngineError> {
        let (sender, reply) = oneshot::channel();
        let n_texts = texts.len();
        let n_tokens: usize = texts.iter().map(|text| text.ids.len()).sum();
        let mut by_length: Vec<usize> = (0..n_texts).collect();
        by_length.sort_by_key(|index| texts[*index].ids.len());
        let job = Arc::new(Job {
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
        let mut queue = self.queue.lock();
        if queue.closed {
            return Err(EngineError::Closed);
        }
        queue.drop_abandoned();
        self.show(&queue);
        if queue.n_tokens > 0 && queue.n_tokens + n_tokens > self.limits.max_queue_tokens {
            return Err(EngineError::Overloaded {
                queued_tokens: queue.n_tokens,
                max_queue_tokens: self.limits.max_queue_tokens,
                retry_after: queue.time_to_half(),
            });
        }
        queue.n_tokens += n_tokens;
        gauge!(telemetry::TE_QUEUE_SIZE).increment(n_texts as f64);
        queue.waiting.push_back(Waiting { job: Arc::clone(&job), by_length, n_tokens });
        self.show(&queue);
        drop(queue);
        if n_texts > 1 {
            self.work_arrived.notify_all();
        } else {
            self.work_arrived.notify_one();
        }
        Ok(JobHandle { job, reply })
    }

    /// Waits for work and takes a batch; `None` when the queue is closed and empty.
    #[must_use]
    pub fn next_batch(&self) -> Option<MicroBatch> {
        let mut queue = self.queue.lock();
        loop {
            let batch = queue.take_batch(&self.limits);
            self.show(&queue);
            if batch.is_some() {
                return batch;
            }
            if queue.closed {
                return None;
            }
            self.work_arrived.wait(&mut queue);
        }
    }

    /// Shows the queue in the metrics. Called under its lock, so that an older number cannot replace a newer one.
    fn show(&self, queue: &Queue) {
        self.tokens_shown.set(queue.n_tokens as f64);
    }

    /// Tells how fast a batch of real tokens ran, for `Retry-After`.
    pub fn record_speed(&self, n_tokens: usize, elapsed: Duration, n_workers: usize) {
        let speed = n_tokens as f64 * n_workers as f64 / elapsed.as_secs_f64().max(1e-6);
        let mut queue = self.queue.lock();
        queue.tokens_per_second =
            if queue.tokens_per_second > 0.0 { 0.9 * queue.tokens_per_second + 0.1 * speed } else { speed };
    }

    /// Takes no more jobs; workers end when those queued are done.
    pub fn close(&self) {
        self.queue.lock().closed = true;
        self.work_arrived.notify_all();
    }
}

impl Queue {
    fn take_batch(&mut self, limits: &BatchLimits) -> Option<MicroBatch> {
        self.drop_abandoned();
        let mut first = self.waiting.pop_front()?;
        let longest = first.longest()?;
        let width = longest.next_multiple_of(limits.width_step);
        let capacity = (limits.max_batch_tokens / width).clamp(1, limits.max_batch_texts);
        let mut items = Vec::with_capacity(capacity);
        let fits = |n_tokens: usize| n_tokens <= width && (width <= SHORT_WIDTH || n_tokens * 4 >= longest * 3);
        // A job's own texts come longest first, so the run stops at the first that would be mostly padding: it leads a
        // narrower batch of its own later.
        first.move_into(&mut items, capacity, fits);
        for other in &mut self.waiting {
            if items.len() == capacity {
                break;
            }
            other.move_into(&mut items, capacity, fits);
        }
        self.waiting.push_back(first);
        self.waiting.retain(|waiting| !waiting.by_length.is_empty());
        self.n_tokens -= items.iter().map(|item: &BatchItem| item.ids().len()).sum::<usize>();
        gauge!(telemetry::TE_QUEUE_SIZE).decrement(items.len() as f64);
        for item in &items {
            let mut progress = item.job.progress.lock();
            progress.queue_time.get_or_insert_with(|| item.job.submitted.elapsed());
        }
        Some(MicroBatch { items, width })
    }

    fn drop_abandoned(&mut self) {
        let n_tokens = &mut self.n_tokens;
        self.waiting.retain(|waiting| {
            let keep = !waiting.job.is_abandoned();
            if !keep {
                *n_tokens -= waiting.n_tokens;
                gauge!(telemetry::TE_QUEUE_SIZE).decrement(waiting.by_length.len() as f64);
            }
            keep
        });
    }

    fn time_to_half(&self) -> Duration {
        let speed = if self.tokens_per_second > 0.0 { self.tokens_per_second } else { UNMEASURED_TOKENS_PER_SECOND };
        Duration::from_secs_f64((self.n_tokens as f64 / 2.0 / speed).clamp(1.0, 120.0))
    }
}

impl Waiting {
    fn longest(&self) -> Option<usize> {
        self.by_length.last().map(|index| self.job.n_tokens(*index))
    }

    /// Moves texts that fit into the batch, longest first, while there is room.
    fn move_into(&mut self, items: &mut Vec<BatchItem>, capacity: usize, fits: impl Fn(usize) -> bool) {
        while items.len() < capacity && self.longest().is_some_and(&fits) {
            let Some(index) = self.by_length.pop() else { return };
            self.n_tokens -= self.job.n_tokens(index);
            items.push(BatchItem { job: Arc::clone(&self.job), index });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: BatchLimits =
        BatchLimits { max_batch_tokens: 256, max_batch_texts: 8, max_queue_tokens: 2_000, width_step: 16 };
    const FINISH: Finish = Finish { dimensions: 1, normalize: false };

    fn text(n_tokens: usize) -> Tokens {
        Tokens { ids: vec![7; n_tokens], truncated: false }
    }

    fn texts(lengths: &[usize]) -> Vec<Tokens> {
        lengths.iter().copied().map(text).collect()
    }

    fn take(batcher: &Batcher) -> MicroBatch {
        batcher.queue.lock().take_batch(&LIMITS).expect("work is waiting")
    }

    #[test]
    fn callers_with_short_texts_share_a_batch() {
        let batcher = Batcher::new(LIMITS, "m");
        let handles: Vec<_> = (5..10).map(|n| batcher.submit(texts(&[n]), FINISH).expect("room")).collect();
        let batch = take(&batcher);
        assert_eq!((batch.items.len(), batch.width), (5, 16));
        assert_eq!(batcher.queue.lock().n_tokens, 0);
        drop(handles);
    }

    #[test]
    fn a_lone_text_waits_for_one_batch_of_a_large_job() {
        let batcher = Batcher::new(LIMITS, "m");
        let _large = batcher.submit(texts(&[100; 15]), FINISH).expect("room");
        let _lone = batcher.submit(texts(&[10]), FINISH).expect("room");
        assert!(take(&batcher).items.iter().all(|item| item.ids().len() == 100));
        assert_eq!(take(&batcher).items[0].ids().len(), 10);
    }

    #[test]
    fn a_text_over_the_budget_runs_alone() {
        let batcher = Batcher::new(LIMITS, "m");
        let _job = batcher.submit(texts(&[1_000, 900]), FINISH).expect("an empty queue takes any job");
        assert_eq!(take(&batcher).items.len(), 1);
        assert_eq!(take(&batcher).items.len(), 1);
    }

    #[test]
    fn a_full_queue_refuses_with_a_time_and_takes_again_when_callers_leave() {
        let batcher = Batcher::new(LIMITS, "m");
        let first = batcher.submit(texts(&[100; 19]), FINISH).expect("room");
        let refused = batcher.submit(texts(&[200]), FINISH).err().expect("no room");
        assert!(matches!(refused, EngineError::Overloaded { queued_tokens: 1_900, .. }), "{refused}");
        drop(first);
        assert!(batcher.submit(texts(&[200]), FINISH).is_ok());
        assert_eq!(batcher.queue.lock().n_tokens, 200);
    }

    #[test]
    fn a_failed_job_answers_once_and_leaves_the_queue() {
        let batcher = Batcher::new(LIMITS, "m");
        let mut handle = batcher.submit(texts(&[100; 10]), FINISH).expect("room");
        let batch = take(&batcher);
        batch.items[0].job.fail(EngineError::Closed);
        batch.items[1].job.complete(batch.items[1].index, Duration::ZERO, |_| unreachable!("the job has failed"));
        assert!(matches!(handle.reply.try_recv(), Ok(Err(EngineError::Closed))));
        assert!(batcher.queue.lock().take_batch(&LIMITS).is_none());
        assert_eq!(batcher.queue.lock().n_tokens, 0);
    }

    proptest! {
        #[test]
        fn every_text_runs_once_within_the_budget(jobs in prop::collection::vec(
            prop::collection::vec(1_usize..400, 1..30), 1..8)) {
            let batcher = Batcher::new(BatchLimits { max_queue_tokens: usize::MAX, ..LIMITS }, "m");
            let handles: Vec<_> =
                jobs.iter().map(|lengths| batcher.submit(texts(lengths), FINISH).expect("room")).collect();
            while let Some(batch) = batcher.queue.lock().take_batch(&LIMITS) {
                let n = batch.items.len();
                prop_assert!(n == 1 || n * batch.width <= LIMITS.max_batch_tokens && n <= LIMITS.max_batch_texts);
                for item in batch.items {
                    let length = item.ids().len();
                    prop_assert!(length <= batch.width && batch.width % LIMITS.width_step == 0);
                    item.job.complete(item.index, Duration::ZERO, |slot| slot[0] += length as f32);
                }
            }
            prop_assert_eq!(batcher.queue.lock().n_tokens, 0);
            for (mut handle, lengths) in handles.into_iter().zip(jobs) {
                let vectors = handle.reply.try_recv().expect("answered").expect("well").vectors;
                let expected: Vec<f32> = lengths.iter().map(|n| *n as f32).collect();
                prop_assert_eq!(vectors, expected);
            }
        }
    }
}
