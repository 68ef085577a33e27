//! How much of the machine a job takes, and how fast it is.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use crate::models::Interactive;

/// Texts that are embedded together while nobody waits for a model: with two workers, and with many. Each may be of a
/// megabyte.
const TEXTS_ALONE: RangeInclusive<u32> = 64..=256;

/// Texts that are embedded together while somebody does: a batch that has begun is not interrupted.
const TEXTS_BESIDE_OTHERS: RangeInclusive<u32> = 8..=64;

/// How long a job rests beside others, as a multiple of how long it has worked: searches keep half of the time to
/// themselves.
const REST_BESIDE_OTHERS: f64 = 1.0;

/// For so long after the last request somebody is expected to come again.
const EXPECTED_AGAIN: Duration = Duration::from_secs(1);

/// Over how long the rate is measured.
const MEASURED_OVER: Duration = Duration::from_secs(30);

/// When a job works and rests.
pub(super) struct Pace {
    throttle: f64,
    n_workers: u32,
    began: Instant,
    n_begun: u64,
    last_seen: Option<Instant>,
}

impl Pace {
    /// The pace of a job that may work this share of the time, with a model that runs so many batches at once: all of them
    /// are to have texts.
    pub(super) fn new(throttle: f64, n_workers: usize, interactive: &Interactive) -> Self {
        let n_workers = u32::try_from(n_workers).unwrap_or(u32::MAX);
        Self { throttle, n_workers, began: Instant::now(), n_begun: interactive.n_begun(), last_seen: None }
    }

    /// Begins a batch, and says how many texts it may have.
    pub(super) fn begin(&mut self, interactive: &Interactive) -> u32 {
        self.look(interactive);
        self.began = Instant::now();
        let texts = if self.is_beside_others() { TEXTS_BESIDE_OTHERS } else { TEXTS_ALONE };
        (texts.start().saturating_mul(self.n_workers) / 2).clamp(*texts.start(), *texts.end())
    }

    /// How long to rest after the batch.
    pub(super) fn rest(&mut self, interactive: &Interactive) -> Duration {
        self.look(interactive);
        let worked = self.began.elapsed();
        let by_throttle = (1.0 - self.throttle) / self.throttle;
        let beside_others = if self.is_beside_others() { REST_BESIDE_OTHERS } else { 0.0 };
        worked.mul_f64(by_throttle.max(beside_others))
    }

    fn look(&mut self, interactive: &Interactive) {
        if interactive.has_any_since(self.n_begun) {
            self.last_seen = Some(Instant::now());
        }
        self.n_begun = interactive.n_begun();
    }

    fn is_beside_others(&self) -> bool {
        self.last_seen.is_some_and(|seen| seen.elapsed() < EXPECTED_AGAIN)
    }
}

/// How many grains a job did lately.
#[derive(Clone, Debug, Default)]
pub(super) struct Rate(VecDeque<(Instant, u64)>);

impl Rate {
    /// Notes that so many are done.
    pub(super) fn note(&mut self, n_done: u64) {
        // An outage lies between, which says nothing of the pace.
        if self.0.len() > 1 && !self.is_lately() {
            self.0.clear();
        }
        let now = Instant::now();
        self.0.push_back((now, n_done));
        while self.0.len() > 2 && self.0.front().is_some_and(|(at, _)| now.duration_since(*at) > MEASURED_OVER) {
            self.0.pop_front();
        }
    }

    /// Grains a second; `None` before two batches, and when the last one is longer ago than any rest explains.
    pub(super) fn per_second(&self) -> Option<f64> {
        let ((began, first), (ended, last)) = (self.0.front()?, self.0.back()?);
        let took = ended.duration_since(*began);
        (self.is_lately() && !took.is_zero()).then(|| last.saturating_sub(*first) as f64 / took.as_secs_f64())
    }

    /// Whether the last batch is no longer ago than a rest explains.
    fn is_lately(&self) -> bool {
        let (Some((began, _)), Some((ended, _))) = (self.0.front(), self.0.back()) else { return false };
        ended.elapsed() <= MEASURED_OVER.max(ended.duration_since(*began) * 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_makes_room_while_somebody_waits() {
        let interactive = Interactive::default();
        let mut pace = Pace::new(1.0, 2, &interactive);
        assert_eq!(pace.begin(&interactive), 64);
        assert_eq!(pace.rest(&interactive), Duration::ZERO);
        drop(interactive.begin());
        assert_eq!(pace.begin(&interactive), 8);
        pace.began = Instant::now().checked_sub(Duration::from_millis(100)).expect("a clock that has run");
        assert!(pace.rest(&interactive) >= Duration::from_millis(100));
    }

    #[test]
    fn each_worker_has_texts_within_bounds() {
        for (n_workers, alone, beside_others) in [(1, 64, 8), (2, 64, 8), (6, 192, 24), (32, 256, 64)] {
            let interactive = Interactive::default();
            let mut pace = Pace::new(1.0, n_workers, &interactive);
            assert_eq!(pace.begin(&interactive), alone, "{n_workers} workers");
            drop(interactive.begin());
            assert_eq!(pace.begin(&interactive), beside_others, "{n_workers} workers");
        }
    }

    #[test]
    fn a_throttled_job_works_its_share_of_the_time() {
        let interactive = Interactive::default();
        let mut pace = Pace::new(0.25, 2, &interactive);
        pace.began = Instant::now().checked_sub(Duration::from_millis(100)).expect("a clock that has run");
        assert!(pace.rest(&interactive) >= Duration::from_millis(300));
    }

    #[test]
    fn the_rate_is_that_of_the_noted_batches() {
        let mut rate = Rate::default();
        assert_eq!(rate.per_second(), None);
        rate.note(10);
        assert_eq!(rate.per_second(), None);
        std::thread::sleep(Duration::from_millis(20));
        rate.note(20);
        let per_second = rate.per_second().expect("two batches");
        assert!(per_second > 0.0 && per_second <= 500.0, "{per_second}");
        for (at, _) in &mut rate.0 {
            *at = at.checked_sub(2 * MEASURED_OVER).expect("a clock that has run");
        }
        assert_eq!(rate.per_second(), None, "that was long ago");
        rate.note(30);
        assert_eq!(rate.per_second(), None, "what was made since an outage took none of it");
        std::thread::sleep(Duration::from_millis(20));
        rate.note(40);
        assert!(rate.per_second().is_some_and(|per_second| per_second > 10.0), "the pace since");
    }
}
