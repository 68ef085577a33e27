//! The bounded queue between the callers of one model and the threads that run it.
//!
//! Which texts run next is [`super::queue`]'s to say; here is who takes them. *Bulk* workers take batches as fast as
//! they can. The *query lane*, where a model has one, is a worker with a session of its own that puts every core on one
//! query: it takes queries when no other worker has some. So an idle server answers one at its fastest, under a load of
//! queries the bulk workers share them out, and while those are busy with large requests a query runs beside them
//! instead of behind them.

use std::collections::BTreeSet;
use std::time::Duration;

use metrics::{Gauge, gauge};
use parking_lot::{Condvar, Mutex};

use super::error::{EngineError, TokenCount};
use super::job::{Finish, Job, JobHandle, Priority};
use super::queue::{BatchLimits, Line, MicroBatch, QUERY_TOKENS, Queue};
use super::tokenize::Tokens;
use crate::telemetry;

/// Assumed until the first batches have been timed, for `Retry-After`.
const UNMEASURED_TOKENS_PER_SECOND: f64 = 5_000.0;

/// What a worker takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Any batch.
    Bulk,
    /// Queries that no bulk worker has taken.
    Queries,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum QueryLane {
    Absent,
    Idle,
    Busy,
}

struct State {
    queue: Queue,
    closed: bool,
    query_lane: QueryLane,
    n_idle_bulk: usize,
    /// Batches led by queries that bulk workers run now.
    n_queries_in_bulk: usize,
    /// Batches that workers of any lane run now, by their serials.
    running: BTreeSet<u64>,
    tokens_per_second: f64,
}

impl State {
    /// Whether the query lane may take a query now. Beside bulk workers that run queries too it would only compete.
    fn query_lane_is_open(&self) -> bool {
        self.query_lane == QueryLane::Idle && self.n_queries_in_bulk == 0
    }

    /// Whether the only work is a query that the query lane answers sooner.
    fn is_left_to_query_lane(&self) -> bool {
        self.query_lane_is_open() && self.queue.n_queries() == 1 && !self.queue.has_more_than_queries()
    }

    fn time_to_half(&self) -> Duration {
        let speed = if self.tokens_per_second > 0.0 { self.tokens_per_second } else { UNMEASURED_TOKENS_PER_SECOND };
        Duration::from_secs_f64((self.queue.n_tokens() as f64 / 2.0 / speed).clamp(1.0, 120.0))
    }
}

/// The bounded queue between callers and workers.
pub struct Batcher {
    state: Mutex<State>,
    bulk_work: Condvar,
    query_work: Condvar,
    limits: BatchLimits,
    tokens_shown: Gauge,
    texts_shown: Gauge,
}

impl Batcher {
    /// An empty queue. `lanes` are those of the workers that will take from it; `label` is the model's, for its metric.
    #[must_use]
    pub fn new(limits: BatchLimits, lanes: &[Lane], label: &str) -> Self {
        let query_lane = if lanes.contains(&Lane::Queries) { QueryLane::Idle } else { QueryLane::Absent };
        Self {
            state: Mutex::new(State {
                queue: Queue::default(),
                closed: false,
                query_lane,
                n_idle_bulk: 0,
                n_queries_in_bulk: 0,
                running: BTreeSet::new(),
                tokens_per_second: 0.0,
            }),
            bulk_work: Condvar::new(),
            query_work: Condvar::new(),
            limits,
            tokens_shown: gauge!(telemetry::QUEUE_TOKENS, "model" => label.to_owned()),
            texts_shown: gauge!(telemetry::TE_QUEUE_SIZE),
        }
    }

    /// Refuses a job of so many tokens for which [`Self::submit`] would have no room now.
    ///
    /// # Errors
    /// [`EngineError::Overloaded`] when the queue is full, [`EngineError::Closed`] when the model is going away.
    pub fn check_room(&self, n_tokens: usize, priority: Priority) -> Result<(), EngineError> {
        // Too many for a request are refused for that, however full the queue is.
        if priority != Priority::Internal && n_tokens > self.limits.max_request_tokens {
            return Ok(());
        }
        self.make_room(&mut self.state.lock(), n_tokens, line_of(n_tokens, priority))
    }

    /// Queues a job of at least one text.
    ///
    /// # Errors
    /// [`EngineError::TooManyTokens`], [`EngineError::Overloaded`] when the queue is full, [`EngineError::Closed`] when the model is going away.
    pub fn submit(&self, texts: Vec<Tokens>, finish: Finish, priority: Priority) -> Result<JobHandle, EngineError> {
        let n_tokens: usize = texts.iter().map(|text| text.ids.len()).sum();
        let line = line_of(n_tokens, priority);
        if priority != Priority::Internal && n_tokens > self.limits.max_request_tokens {
            let (n_tokens, max_request_tokens) = (TokenCount::Exactly(n_tokens), self.limits.max_request_tokens);
            return Err(EngineError::TooManyTokens { n_tokens, max_request_tokens });
        }
        let (job, handle) = Job::new(texts, finish);
        let mut state = self.state.lock();
        self.make_room(&mut state, n_tokens, line)?;
        let n_before = state.queue.n_texts();
        state.queue.push(job, line);
        self.show(&state.queue, n_before);
        if line == Line::Queries && state.query_lane_is_open() {
            self.query_work.notify_one();
        }
        if !state.is_left_to_query_lane() {
            self.bulk_work.notify_one();
        }
        Ok(handle)
    }

    /// Drops what nobody waits for any more, and refuses a job for which there is no room even so.
    fn make_room(&self, state: &mut State, n_tokens: usize, line: Line) -> Result<(), EngineError> {
        if state.closed {
            return Err(EngineError::Closed);
        }
        let n_before = state.queue.n_texts();
        state.queue.drop_abandoned();
        self.show(&state.queue, n_before);
        if state.queue.has_room(n_tokens, line, &self.limits) {
            return Ok(());
        }
        Err(EngineError::Overloaded {
            queued_tokens: state.queue.n_tokens(),
            max_queue_tokens: self.limits.max_queue_tokens,
            max_background_tokens: self.limits.max_background_tokens(),
            retry_after: state.time_to_half(),
        })
    }

    /// Waits for work that is this lane's and takes a batch; `None` when the queue is closed and has none: what is left
    /// is the bulk workers'. Every batch must be given back with [`Self::finish`].
    #[must_use]
    pub fn next_batch(&self, lane: Lane) -> Option<MicroBatch> {
        let mut state = self.state.lock();
        loop {
            let n_before = state.queue.n_texts();
            let share = state.n_idle_bulk + 1;
            let batch = match lane {
                // The query lane may have ended, and the query's caller may have left.
                Lane::Bulk if !state.closed && state.is_left_to_query_lane() => {
                    self.query_work.notify_one();
                    None
                }
                Lane::Bulk => state.queue.take_batch(&self.limits, share),
                Lane::Queries if state.query_lane_is_open() => state.queue.take_queries(&self.limits, share),
                Lane::Queries => None,
            };
            self.show(&state.queue, n_before);
            if let Some(batch) = batch {
                state.running.insert(batch.serial);
                match (lane, batch.line) {
                    (Lane::Queries, _) => state.query_lane = QueryLane::Busy,
                    (Lane::Bulk, Line::Queries) => state.n_queries_in_bulk += 1,
                    (Lane::Bulk, _) => {}
                }
                // One worker wakes the next while there is work: a job's arrival wakes one only.
                if state.queue.n_texts() > 0 && state.n_idle_bulk > 0 {
                    self.bulk_work.notify_one();
                }
                // A query that came while bulk workers ran queries woke nobody in the query lane, and this worker, which
                // may have been the last of those, leaves it behind a whole batch.
                if state.query_lane_is_open() && state.queue.n_queries() > 0 {
                    self.query_work.notify_one();
                }
                drop(state);
                batch.items.iter().for_each(|item| item.job.begin());
                return Some(batch);
            }
            // Nobody would wake it: a bulk worker that finds nothing has emptied the queue.
            if state.closed {
                return None;
            }
            match lane {
                Lane::Bulk => {
                    state.n_idle_bulk += 1;
                    self.bulk_work.wait(&mut state);
                    state.n_idle_bulk -= 1;
                }
                Lane::Queries => self.query_work.wait(&mut state),
            }
        }
    }

    /// Tells that a batch has been run, and how fast, for `Retry-After`.
    pub fn finish(&self, lane: Lane, batch: &MicroBatch, tokens_per_second: f64) {
        let mut state = self.state.lock();
        state.running.remove(&batch.serial);
        match (lane, batch.line) {
            (Lane::Queries, _) => state.query_lane = QueryLane::Idle,
            (Lane::Bulk, Line::Queries) => state.n_queries_in_bulk -= 1,
            (Lane::Bulk, _) => {}
        }
        let known = state.tokens_per_second;
        // A short text makes a batch of few tokens, which says little of how fast a full queue is run.
        let n_tokens: usize = batch.items.iter().map(|item| item.ids().len()).sum();
        let weight = 0.1 * (n_tokens as f64 / self.limits.max_batch_tokens as f64).min(1.0);
        let speed = (1.0 - weight) * known + weight * tokens_per_second;
        state.tokens_per_second = if known > 0.0 { speed } else { tokens_per_second };
    }

    /// The serial of the batch that has been running for longest; `None` when none runs.
    #[must_use]
    pub fn oldest_running(&self) -> Option<u64> {
        self.state.lock().running.first().copied()
    }

    /// Shows the queue in the metrics. Called under its lock, so that an older number cannot replace a newer one.
    fn show(&self, queue: &Queue, n_texts_before: usize) {
        self.tokens_shown.set(queue.n_tokens() as f64);
        // This gauge is of all models, so it moves by differences.
        self.texts_shown.increment(queue.n_texts() as f64 - n_texts_before as f64);
    }

    /// Takes no more jobs; workers end when those queued are done.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.bulk_work.notify_all();
        self.query_work.notify_all();
    }
}

fn line_of(n_tokens: usize, priority: Priority) -> Line {
    match priority {
        Priority::Background | Priority::Internal => Line::Background,
        Priority::Interactive if n_tokens <= QUERY_TOKENS => Line::Queries,
        Priority::Interactive => Line::Requests,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::queue::tests::{FINISH, LIMITS, texts};
    use super::*;

    fn submit(batcher: &Batcher, lengths: &[usize]) -> Result<JobHandle, EngineError> {
        batcher.submit(texts(lengths), FINISH, Priority::Interactive)
    }

    /// What the lane would take now, without waiting.
    fn take(batcher: &Batcher, lane: Lane) -> Option<MicroBatch> {
        let mut state = batcher.state.lock();
        let was_closed = std::mem::replace(&mut state.closed, true);
        let waits = match lane {
            Lane::Bulk => state.is_left_to_query_lane() || state.queue.n_texts() == 0,
            Lane::Queries => !state.query_lane_is_open() || state.queue.n_queries() == 0,
        };
        drop(state);
        let batch = if waits { None } else { batcher.next_batch(lane) };
        batcher.state.lock().closed = was_closed;
        batch
    }

    #[test]
    fn a_lone_query_is_the_query_lanes_and_the_next_ones_are_shared_out() {
        let batcher = Batcher::new(LIMITS, &[Lane::Bulk, Lane::Queries], "m");
        let _lone = submit(&batcher, &[10]).expect("room");
        assert!(take(&batcher, Lane::Bulk).is_none());
        let lone = take(&batcher, Lane::Queries).expect("the query");
        let _second = submit(&batcher, &[10]).expect("room");
        let second = take(&batcher, Lane::Bulk).expect("the lane is busy");
        batcher.finish(Lane::Queries, &lone, 1.0);
        let _third = submit(&batcher, &[10]).expect("room");
        assert!(take(&batcher, Lane::Queries).is_none(), "bulk workers run queries: the lane would only compete");
        batcher.finish(Lane::Bulk, &second, 1.0);
        assert!(take(&batcher, Lane::Queries).is_some());
    }

    #[test]
    fn a_query_runs_beside_large_requests() {
        let batcher = Batcher::new(LIMITS, &[Lane::Bulk, Lane::Queries], "m");
        let _large = submit(&batcher, &[100; 15]).expect("room");
        assert_eq!(take(&batcher, Lane::Bulk).expect("work").line, Line::Requests);
        let _query = submit(&batcher, &[10]).expect("room");
        assert_eq!(take(&batcher, Lane::Queries).expect("the query").items[0].ids().len(), 10);
        assert!(take(&batcher, Lane::Queries).is_none(), "large requests are not the query lane's");
    }

    #[test]
    fn a_query_that_came_while_bulk_workers_ran_queries_does_not_wait_for_a_large_request() {
        let batcher = Arc::new(Batcher::new(LIMITS, &[Lane::Bulk, Lane::Queries], "m"));
        let _first = submit(&batcher, &[10]).expect("room");
        let first = take(&batcher, Lane::Queries).expect("the query");
        let _second = submit(&batcher, &[10]).expect("room");
        let second = take(&batcher, Lane::Bulk).expect("the lane is busy");
        batcher.finish(Lane::Queries, &first, 1.0);
        let _large = submit(&batcher, &[100; 15]).expect("room");
        let _query = submit(&batcher, &[10]).expect("room");
        let (sender, taken) = std::sync::mpsc::channel();
        let lane = std::thread::spawn({
            let batcher = Arc::clone(&batcher);
            move || sender.send(batcher.next_batch(Lane::Queries).map(|batch| batch.line))
        });
        // Woken for nothing once it waits, it has to wait again.
        while !batcher.query_work.notify_one() {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(50));
        batcher.finish(Lane::Bulk, &second, 1.0);
        assert_eq!(batcher.next_batch(Lane::Bulk).expect("work").line, Line::Requests);
        let taken = taken.recv_timeout(Duration::from_secs(10));
        batcher.close();
        lane.join().expect("no panic").expect("the receiver is still there");
        assert_eq!(taken, Ok(Some(Line::Queries)));
    }

    #[test]
    fn without_a_query_lane_bulk_workers_take_everything() {
        let batcher = Batcher::new(LIMITS, &[Lane::Bulk], "m");
        let _query = submit(&batcher, &[10]).expect("room");
        assert_eq!(take(&batcher, Lane::Bulk).expect("the query").line, Line::Queries);
    }

    #[test]
    fn short_texts_say_little_of_the_speed() {
        let batcher = Batcher::new(LIMITS, &[Lane::Bulk], "m");
        let speed_after = |lengths: &[usize], speed| {
            let _job = submit(&batcher, lengths).expect("room");
            let batch = take(&batcher, Lane::Bulk).expect("work");
            batcher.finish(Lane::Bulk, &batch, speed);
            batcher.state.lock().tokens_per_second
        };
        assert!((speed_after(&[200], 1000.0) - 1000.0).abs() < 1e-9);
        assert!((speed_after(&[2], 0.0) - 1000.0).abs() < 1.0);
        assert!(speed_after(&[200], 0.0) < 950.0);
    }

    #[test]
    fn the_batch_that_runs_for_longest_is_known_until_it_ends() {
        let batcher = Batcher::new(LIMITS, &[Lane::Bulk], "m");
        assert_eq!(batcher.oldest_running(), None);
        let _large = submit(&batcher, &[100; 15]).expect("room");
        let [first, second, third] = [(); 3].map(|()| take(&batcher, Lane::Bulk).expect("work"));
        batcher.finish(Lane::Bulk, &second, 1.0);
        assert_eq!(batcher.oldest_running(), Some(first.serial));
        batcher.finish(Lane::Bulk, &first, 1.0);
        assert_eq!(batcher.oldest_running(), Some(third.serial));
        batcher.finish(Lane::Bulk, &third, 1.0);
        assert_eq!(batcher.oldest_running(), None);
    }

    #[test]
    fn a_full_queue_refuses_with_a_time_and_takes_again_when_callers_leave() {
        let batcher = Batcher::new(LIMITS, &[Lane::Bulk], "m");
        let first = submit(&batcher, &[100; 19]).expect("room");
        let refused = submit(&batcher, &[200]).err().expect("no room");
        assert!(matches!(refused, EngineError::Overloaded { queued_tokens: 1_900, .. }), "{refused}");
        drop(first);
        assert!(submit(&batcher, &[200]).is_ok());
        assert_eq!(batcher.state.lock().queue.n_tokens(), 200);
    }

    #[test]
    fn room_is_known_before_there_is_a_job() {
        let batcher = Batcher::new(LIMITS, &[Lane::Bulk], "m");
        let room = |n_tokens| batcher.check_room(n_tokens, Priority::Interactive);
        assert!(room(5_000).is_ok(), "an empty queue takes a job of any size");
        let _first = submit(&batcher, &[100; 19]).expect("room");
        assert!(room(100).is_ok());
        assert!(matches!(room(101), Err(EngineError::Overloaded { queued_tokens: 1_900, .. })));
        assert!(room(LIMITS.max_request_tokens + 1).is_ok(), "not the queue's to refuse");
        batcher.close();
        assert!(matches!(room(1), Err(EngineError::Closed)));
    }

    #[test]
    fn an_empty_queue_takes_a_job_of_any_size() {
        let batcher = Batcher::new(LIMITS, &[Lane::Bulk], "m");
        assert!(submit(&batcher, &[1_000, 1_500]).is_ok());
    }

    #[test]
    fn a_request_has_its_limit_of_tokens_whatever_its_priority() {
        let limits = BatchLimits { max_request_tokens: 100, ..LIMITS };
        let batcher = Batcher::new(limits, &[Lane::Bulk], "m");
        for priority in [Priority::Interactive, Priority::Background] {
            let refused = batcher.submit(texts(&[60, 41]), FINISH, priority).err().expect("too many");
            let is_limit = matches!(
                refused,
                EngineError::TooManyTokens { n_tokens: TokenCount::Exactly(101), max_request_tokens: 100 }
            );
            assert!(is_limit, "{priority:?}: {refused}");
            assert!(batcher.submit(texts(&[60, 40]), FINISH, priority).is_ok(), "{priority:?}");
        }
        assert!(batcher.submit(texts(&[60, 41]), FINISH, Priority::Internal).is_ok());
    }

    #[test]
    fn background_work_leaves_room_in_the_queue_to_what_somebody_waits_for() {
        let batcher = Batcher::new(LIMITS, &[Lane::Bulk], "m");
        let _background = batcher.submit(texts(&[100; 15]), FINISH, Priority::Background).expect("room");
        for priority in [Priority::Background, Priority::Internal] {
            let refused = batcher.submit(texts(&[1]), FINISH, priority).err().expect("no room");
            let EngineError::Overloaded { queued_tokens, max_background_tokens, .. } = refused else {
                panic!("{priority:?}: {refused}");
            };
            assert_eq!((queued_tokens, max_background_tokens), (1_500, 1_500), "{priority:?}");
        }
        let _interactive = submit(&batcher, &[100; 5]).expect("room");
        assert!(submit(&batcher, &[1]).is_err());
    }

    #[test]
    fn a_failed_job_answers_once_and_leaves_the_queue() {
        let batcher = Batcher::new(LIMITS, &[Lane::Bulk], "m");
        let mut handle = submit(&batcher, &[100; 10]).expect("room");
        let batch = take(&batcher, Lane::Bulk).expect("work");
        batch.items[0].job.fail(EngineError::Closed);
        batch.items[1].job.complete(batch.items[1].index, Duration::ZERO, |_| unreachable!("the job has failed"));
        assert!(matches!(handle.ended(), Some(Err(EngineError::Closed))));
        batcher.state.lock().queue.drop_abandoned();
        assert_eq!(batcher.state.lock().queue.n_tokens(), 0);
    }

    #[test]
    fn no_worker_waits_on_a_closed_queue() {
        let closed_with = |lengths: &[usize]| {
            let batcher = Batcher::new(LIMITS, &[Lane::Bulk, Lane::Queries], "m");
            let handle = submit(&batcher, lengths).expect("room");
            batcher.close();
            (batcher, handle)
        };
        let (batcher, abandoned) = closed_with(&[10]);
        drop(abandoned);
        assert!(batcher.next_batch(Lane::Bulk).is_none());
        let (batcher, _large) = closed_with(&[100; 15]);
        assert!(batcher.next_batch(Lane::Queries).is_none());
        let mut n_texts = 0;
        while let Some(batch) = batcher.next_batch(Lane::Bulk) {
            n_texts += batch.items.len();
            batcher.finish(Lane::Bulk, &batch, 1.0);
        }
        assert_eq!(n_texts, 15);
    }

    #[test]
    fn workers_of_both_lanes_run_every_job_and_end_when_the_queue_is_closed() {
        let lanes = [Lane::Bulk, Lane::Bulk, Lane::Queries];
        let batcher = Arc::new(Batcher::new(BatchLimits { max_queue_tokens: usize::MAX, ..LIMITS }, &lanes, "m"));
        let workers = lanes.map(|lane| {
            let batcher = Arc::clone(&batcher);
            std::thread::spawn(move || {
                while let Some(batch) = batcher.next_batch(lane) {
                    for item in &batch.items {
                        item.job.complete(item.index, Duration::ZERO, |slot| slot[0] = 1.0);
                    }
                    batcher.finish(lane, &batch, 1.0);
                }
            })
        });
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        for round in 0..500_usize {
            let sizes = [vec![10], vec![100; 20], vec![10; 3]];
            let priority = if round.is_multiple_of(7) { Priority::Background } else { Priority::Interactive };
            let jobs: Vec<_> = (0..=round % 5)
                .map(|n| batcher.submit(texts(&sizes[(n + round) % 3]), FINISH, priority).expect("room"))
                .collect();
            for job in jobs {
                assert!(
                    runtime.block_on(job.wait()).expect("well").vectors.iter().all(|value| (value - 1.0).abs() < 1e-9)
                );
            }
        }
        batcher.close();
        for worker in workers {
            worker.join().expect("no panic");
        }
    }
}
