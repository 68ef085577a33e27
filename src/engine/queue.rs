//! Which texts run next: pure bookkeeping, without threads or time.
//!
//! A job is one request's texts, longest first. Jobs wait in three lines: *queries*, which are interactive and small,
//! *requests*, which are interactive and large, and *background* work. Queries and requests lead batches in turns while
//! both wait, and background work leads one in [`BACKGROUND_TURN`], so no line starves and a query need not wait for
//! another caller's two thousand texts. Within a line jobs take turns too.
//!
//! A batch starts with the longest text of the job that leads it, and is filled with texts that fit its width: first
//! from that job, then from others. A query is not joined by a large request's texts, which would make it wait for them;
//! the other way round it may ride along.

use std::collections::VecDeque;
use std::sync::Arc;

use super::job::Job;

/// The widest batch, in tokens, that takes texts of any shorter length, as far as `max_padding` lets it: padding them
/// costs next to nothing there.
const SHORT_WIDTH: usize = 32;

/// A job of this many tokens or fewer is a query: a search, or a passage.
pub const QUERY_TOKENS: usize = 512;

/// Background work leads one batch in so many while interactive work waits.
pub const BACKGROUND_TURN: usize = 8;

/// One in so many of the queue's tokens is out of background work's reach: however much of that waits, a request that
/// somebody waits for finds room beside it.
pub const INTERACTIVE_SHARE: usize = 4;

/// One in so many of the queue's tokens may wait in the background beside a queue that is full.
const BACKGROUND_SHARE: usize = 8;

/// How batches are made.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Padded tokens in one batch; a longer single text makes a batch of its own.
    pub max_batch_tokens: usize,
    /// Texts in one batch.
    pub max_batch_texts: usize,
    /// Tokens waiting; a job that finds the queue empty is always taken.
    pub max_queue_tokens: usize,
    /// Tokens of one job that a request makes.
    pub max_request_tokens: usize,
    /// Widths are multiples of this: a provider that compiles per shape wants few shapes.
    pub width_step: usize,
    /// The widest that a batch may be, even so: the model has no positions beyond.
    pub max_width: usize,
    /// Tokens that a text may be shorter than the longest in its batch, besides what holds for all providers: what a run
    /// of its own would cost.
    pub max_padding: usize,
}

impl BatchLimits {
    /// How many tokens of background work may wait.
    #[must_use]
    pub fn max_background_tokens(&self) -> usize {
        self.max_queue_tokens - self.max_queue_tokens / INTERACTIVE_SHARE
    }

    /// The width of a batch whose longest text has so many tokens.
    #[must_use]
    pub fn width(&self, longest: usize) -> usize {
        longest.next_multiple_of(self.width_step).min(self.max_width).max(longest)
    }
}

/// The line that a job waits in, and that leads a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// Interactive, at most [`QUERY_TOKENS`] tokens.
    Queries,
    /// Interactive, larger.
    Requests,
    /// Nobody waits for it.
    Background,
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
    /// The line that leads it.
    pub line: Line,
    /// Its place in the order in which batches were taken.
    pub serial: u64,
}

/// A job's texts that no worker has taken, shortest first: the longest is popped.
pub(super) struct Waiting {
    job: Arc<Job>,
    by_length: Vec<usize>,
    n_tokens: usize,
}

/// The jobs that wait.
#[derive(Default)]
pub(super) struct Queue {
    queries: VecDeque<Waiting>,
    requests: VecDeque<Waiting>,
    background: VecDeque<Waiting>,
    n_tokens: usize,
    n_texts: usize,
    queries_led_last: bool,
    led_since_background: usize,
    n_batches: u64,
}

impl Queue {
    /// Tokens waiting, padding not counted.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Texts waiting.
    pub fn n_texts(&self) -> usize {
        self.n_texts
    }

    /// Queries waiting, in jobs.
    pub fn n_queries(&self) -> usize {
        self.queries.len()
    }

    /// Whether anything waits besides queries.
    pub fn has_more_than_queries(&self) -> bool {
        !self.requests.is_empty() || !self.background.is_empty()
    }

    /// Whether a job of so many tokens may wait here too. An empty queue takes one of any size.
    pub fn has_room(&self, n_tokens: usize, line: Line, limits: &BatchLimits) -> bool {
        if self.n_tokens == 0 {
            return true;
        }
        let in_background: usize = self.background.iter().map(|waiting| waiting.n_tokens).sum();
        let max_in_background = limits.max_background_tokens();
        let taken = if line == Line::Background {
            if in_background + n_tokens > max_in_background {
                return false;
            }
            // However many wait, a little of it is always let in: small requests take each place that a batch leaves
            // before it asks again.
            if in_background + n_tokens <= limits.max_queue_tokens / BACKGROUND_SHARE {
                return true;
            }
            self.n_tokens
        } else {
            // What found the queue empty may be larger than its share, and does not take the others' for it.
            self.n_tokens - in_background + in_background.min(max_in_background)
        };
        taken + n_tokens <= limits.max_queue_tokens
    }

    /// Puts a job at the end of its line.
    pub fn push(&mut self, job: Arc<Job>, line: Line) {
        let mut by_length: Vec<usize> = (0..job.texts.len()).collect();
        by_length.sort_by_key(|index| job.n_tokens(*index));
        let n_tokens = by_length.iter().map(|index| job.n_tokens(*index)).sum();
        self.n_tokens += n_tokens;
        self.n_texts += by_length.len();
        self.line(line).push_back(Waiting { job, by_length, n_tokens });
    }

    fn line(&mut self, line: Line) -> &mut VecDeque<Waiting> {
        match line {
            Line::Queries => &mut self.queries,
            Line::Requests => &mut self.requests,
            Line::Background => &mut self.background,
        }
    }

    /// Takes a batch led by the line whose turn it is, of at most a `share`th of what waits, so that workers that are
    /// idle have something to run at the same time.
    pub fn take_batch(&mut self, limits: &BatchLimits, share: usize) -> Option<MicroBatch> {
        self.drop_abandoned();
        let line = self.next_line()?;
        self.queries_led_last = line == Line::Queries;
        self.led_since_background = if line == Line::Background { 0 } else { self.led_since_background + 1 };
        self.take_led_by(line, limits, share)
    }

    /// Takes a batch of queries, whoever's turn it is; otherwise as [`Self::take_batch`].
    pub fn take_queries(&mut self, limits: &BatchLimits, share: usize) -> Option<MicroBatch> {
        self.drop_abandoned();
        self.take_led_by(Line::Queries, limits, share)
    }

    fn next_line(&self) -> Option<Line> {
        let background_is_due = self.led_since_background + 1 >= BACKGROUND_TURN;
        match (self.queries.is_empty(), self.requests.is_empty(), self.background.is_empty()) {
            (true, true, true) => None,
            (true, true, false) => Some(Line::Background),
            (_, _, false) if background_is_due => Some(Line::Background),
            (false, true, _) => Some(Line::Queries),
            (true, false, _) => Some(Line::Requests),
            (false, false, _) => Some(if self.queries_led_last { Line::Requests } else { Line::Queries }),
        }
    }

    fn take_led_by(&mut self, line: Line, limits: &BatchLimits, share: usize) -> Option<MicroBatch> {
        let share_of_texts = self.n_texts.div_ceil(share.max(1));
        let mut first = self.line(line).pop_front()?;
        let longest = first.longest()?;
        let width = limits.width(longest);
        let capacity = (limits.max_batch_tokens / width).clamp(1, limits.max_batch_texts).min(share_of_texts);
        let fits = |n_tokens: usize| {
            n_tokens <= width
                && longest.saturating_sub(n_tokens) <= limits.max_padding
                && (width <= SHORT_WIDTH || n_tokens * 4 >= longest * 3)
        };
        let mut items = Vec::with_capacity(capacity);
        // A job's own texts come longest first, so the run stops at the first that would be mostly padding: it leads a
        // narrower batch of its own later.
        first.move_into(&mut items, capacity, fits);
        let joining: &mut [&mut VecDeque<Waiting>] = match line {
            Line::Queries => &mut [&mut self.queries],
            Line::Requests => &mut [&mut self.queries, &mut self.requests],
            Line::Background => &mut [&mut self.queries, &mut self.requests, &mut self.background],
        };
        for other in joining.iter_mut().flat_map(|line| line.iter_mut()) {
            if items.len() == capacity {
                break;
            }
            other.move_into(&mut items, capacity, fits);
        }
        for joined in joining {
            joined.retain(|waiting| !waiting.by_length.is_empty());
        }
        if !first.by_length.is_empty() {
            self.line(line).push_back(first);
        }
        self.n_tokens -= items.iter().map(|item: &BatchItem| item.ids().len()).sum::<usize>();
        self.n_texts -= items.len();
        self.n_batches += 1;
        Some(MicroBatch { items, width, line, serial: self.n_batches })
    }

    /// Forgets the jobs that nobody waits for.
    pub fn drop_abandoned(&mut self) {
        let (n_tokens, n_texts) = (&mut self.n_tokens, &mut self.n_texts);
        for line in [&mut self.queries, &mut self.requests, &mut self.background] {
            line.retain(|waiting| {
                let keep = !waiting.job.is_abandoned();
                if !keep {
                    *n_tokens -= waiting.n_tokens;
                    *n_texts -= waiting.by_length.len();
                }
                keep
            });
        }
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
pub(super) mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::job::{Finish, JobHandle};
    use super::super::tokenize::Tokens;
    use super::*;

    pub(in super::super) const LIMITS: BatchLimits = BatchLimits {
        max_batch_tokens: 256,
        max_batch_texts: 8,
        max_queue_tokens: 2_000,
        max_request_tokens: 50_000,
        width_step: 16,
        max_width: usize::MAX,
        max_padding: usize::MAX,
    };
    pub(in super::super) const FINISH: Finish = Finish { dimensions: 1, normalize: false };

    pub(in super::super) fn texts(lengths: &[usize]) -> Vec<Tokens> {
        lengths.iter().map(|n_tokens| Tokens { ids: vec![7; *n_tokens], truncated: false }).collect()
    }

    /// A job of texts of these lengths in its line; it waits as long as the handle lives.
    fn push(queue: &mut Queue, lengths: &[usize], line: Line) -> JobHandle {
        let (job, handle) = Job::new(texts(lengths), FINISH);
        queue.push(job, line);
        handle
    }

    fn lengths(batch: &MicroBatch) -> Vec<usize> {
        batch.items.iter().map(|item| item.ids().len()).collect()
    }

    #[test]
    fn queries_of_many_callers_share_a_batch() {
        let mut queue = Queue::default();
        let handles: Vec<_> = (5..10).map(|n| push(&mut queue, &[n], Line::Queries)).collect();
        let batch = queue.take_batch(&LIMITS, 1).expect("work");
        assert_eq!((batch.items.len(), batch.width, queue.n_tokens(), queue.n_texts()), (5, 16, 0, 0));
        drop(handles);
    }

    #[test]
    fn no_batch_is_wider_than_the_model_takes() {
        let limits = BatchLimits { max_width: 77, ..LIMITS };
        assert_eq!([1, 64, 65, 77].map(|longest| limits.width(longest)), [16, 64, 77, 77]);
        let mut queue = Queue::default();
        let _job = push(&mut queue, &[77, 70], Line::Requests);
        let batch = queue.take_batch(&limits, 1).expect("work");
        assert_eq!((lengths(&batch), batch.width), (vec![77, 70], 77));
    }

    #[test]
    fn idle_workers_are_left_their_share() {
        let mut queue = Queue::default();
        let handles: Vec<_> = (0..8).map(|_| push(&mut queue, &[10], Line::Queries)).collect();
        assert_eq!(queue.take_batch(&LIMITS, 2).expect("work").items.len(), 4);
        assert_eq!(queue.take_batch(&LIMITS, 1).expect("work").items.len(), 4);
        drop(handles);
    }

    #[test]
    fn a_query_leads_every_other_batch_beside_a_large_request_and_runs_alone() {
        let mut queue = Queue::default();
        let _large = push(&mut queue, &[10; 200], Line::Requests);
        let _first = push(&mut queue, &[12], Line::Queries);
        assert_eq!(lengths(&queue.take_batch(&LIMITS, 1).expect("work")), [12]);
        let _second = push(&mut queue, &[200], Line::Queries);
        assert_eq!(queue.take_batch(&LIMITS, 1).expect("work").line, Line::Requests);
        assert_eq!(lengths(&queue.take_batch(&LIMITS, 1).expect("work")), [200]);
    }

    #[test]
    fn a_query_rides_along_with_a_large_request_of_its_length() {
        let mut queue = Queue { queries_led_last: true, ..Queue::default() };
        let _large = push(&mut queue, &[30, 12, 12], Line::Requests);
        let _query = push(&mut queue, &[20], Line::Queries);
        assert_eq!(lengths(&queue.take_batch(&LIMITS, 1).expect("work")), [30, 12, 12, 20]);
    }

    #[test]
    fn a_text_whose_padding_costs_more_than_a_run_runs_apart() {
        let mut queue = Queue::default();
        let limits = BatchLimits { max_padding: 10, width_step: 1, ..LIMITS };
        let _job = push(&mut queue, &[60, 50, 49, 12, 2, 1], Line::Requests);
        let mut next = || lengths(&queue.take_batch(&limits, 1).expect("work"));
        assert_eq!([next(), next(), next(), next()], [vec![60, 50], vec![49], vec![12, 2], vec![1]]);
    }

    #[test]
    fn background_work_leads_a_small_share_and_all_when_alone() {
        let mut queue = Queue::default();
        let _background = push(&mut queue, &[100; 100], Line::Background);
        let _request = push(&mut queue, &[100; 100], Line::Requests);
        let lines: Vec<Line> = (0..16).map(|_| queue.take_batch(&LIMITS, 1).expect("work").line).collect();
        assert_eq!(lines.iter().filter(|line| **line == Line::Background).count(), 2, "{lines:?}");
        while queue.requests.front().is_some() {
            queue.take_batch(&LIMITS, 1).expect("work");
        }
        assert_eq!(queue.take_batch(&LIMITS, 1).expect("work").line, Line::Background);
    }

    #[test]
    fn background_work_has_three_quarters_of_the_queue_and_all_of_an_empty_one() {
        let mut queue = Queue::default();
        let room = |queue: &Queue, n_tokens: usize, line: Line| queue.has_room(n_tokens, line, &LIMITS);
        assert!(room(&queue, 3_000, Line::Background) && room(&queue, 3_000, Line::Requests));
        let _query = push(&mut queue, &[100], Line::Queries);
        assert!(room(&queue, 1_500, Line::Background) && !room(&queue, 1_501, Line::Background));
        assert!(room(&queue, 1_900, Line::Requests) && !room(&queue, 1_901, Line::Requests));
        let _background = push(&mut queue, &[500], Line::Background);
        assert!(room(&queue, 1_000, Line::Background) && !room(&queue, 1_001, Line::Background));
        assert!(room(&queue, 1_400, Line::Requests) && !room(&queue, 1_401, Line::Requests));
        let _request = push(&mut queue, &[1_000], Line::Requests);
        assert!(room(&queue, 400, Line::Background) && !room(&queue, 401, Line::Background));
    }

    #[test]
    fn an_eighth_in_the_background_has_room_beside_a_full_queue() {
        let mut queue = Queue::default();
        let _requests = push(&mut queue, &[1_000, 1_000], Line::Requests);
        let room = |queue: &Queue, n_tokens: usize, line: Line| queue.has_room(n_tokens, line, &LIMITS);
        assert!(room(&queue, 250, Line::Background) && !room(&queue, 251, Line::Background));
        let _background = push(&mut queue, &[200], Line::Background);
        assert!(room(&queue, 50, Line::Background) && !room(&queue, 51, Line::Background));
        assert!(!room(&queue, 1, Line::Requests));
    }

    #[test]
    fn background_work_larger_than_its_share_takes_none_of_the_others() {
        let mut queue = Queue::default();
        let _background = push(&mut queue, &[1_000; 3], Line::Background);
        let _query = push(&mut queue, &[100], Line::Queries);
        assert!(queue.has_room(400, Line::Queries, &LIMITS) && !queue.has_room(401, Line::Queries, &LIMITS));
        assert!(!queue.has_room(1, Line::Background, &LIMITS));
    }

    #[test]
    fn a_text_over_the_budget_runs_alone() {
        let mut queue = Queue::default();
        let _job = push(&mut queue, &[1_000, 900], Line::Requests);
        assert_eq!(lengths(&queue.take_batch(&LIMITS, 1).expect("work")), [1_000]);
        assert_eq!(lengths(&queue.take_batch(&LIMITS, 1).expect("work")), [900]);
    }

    #[test]
    fn work_whose_caller_has_gone_is_not_run() {
        let mut queue = Queue::default();
        drop(push(&mut queue, &[10; 5], Line::Queries));
        let _stays = push(&mut queue, &[11], Line::Queries);
        assert_eq!(lengths(&queue.take_batch(&LIMITS, 1).expect("work")), [11]);
        assert!(queue.take_batch(&LIMITS, 1).is_none());
        assert_eq!((queue.n_tokens(), queue.n_texts()), (0, 0));
    }

    fn any_line() -> impl Strategy<Value = Line> {
        prop_oneof![Just(Line::Queries), Just(Line::Requests), Just(Line::Background)]
    }

    proptest! {
        #[test]
        fn every_text_runs_once_within_the_budget(
            jobs in prop::collection::vec((any_line(), prop::collection::vec(1_usize..400, 1..30)), 1..8),
            shares in prop::collection::vec(1_usize..4, 1..20),
        ) {
            let mut queue = Queue::default();
            let handles: Vec<_> = jobs.iter().map(|(line, lengths)| push(&mut queue, lengths, *line)).collect();
            let mut shares = shares.into_iter().cycle();
            while let Some(batch) = queue.take_batch(&LIMITS, shares.next().expect("a cycle")) {
                let n = batch.items.len();
                prop_assert!(n == 1 || n * batch.width <= LIMITS.max_batch_tokens && n <= LIMITS.max_batch_texts);
                for item in batch.items {
                    let length = item.ids().len();
                    prop_assert!(length <= batch.width && batch.width % LIMITS.width_step == 0);
                    item.job.complete(item.index, Duration::ZERO, |slot| slot[0] += length as f32);
                }
            }
            prop_assert_eq!((queue.n_tokens(), queue.n_texts()), (0, 0));
            for (mut handle, (_, lengths)) in handles.into_iter().zip(jobs) {
                let vectors = handle.ended().expect("answered").expect("well").vectors;
                let expected: Vec<f32> = lengths.iter().map(|n| *n as f32).collect();
                prop_assert_eq!(vectors, expected);
            }
        }
    }
}
