//! How often the holder of a key may ask.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::domain::{ApiKey, KeyName};

/// The time in which a key's rate is counted.
const MINUTE: Duration = Duration::from_mins(1);

/// A request is one too many.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the key `{name}` allows {rate} requests a minute (its `rate`): the next is taken in {} s", .wait.as_secs_f64().ceil())]
pub struct RateExceeded {
    /// The key.
    pub name: KeyName,
    /// What it allows in a minute.
    pub rate: u32,
    /// When the next request is taken.
    pub wait: Duration,
}

/// What is left of the rates of all keys, by their names: a key that is read anew begins no new minute.
#[derive(Debug, Default)]
pub(super) struct Rates(Mutex<HashMap<KeyName, Bucket>>);

/// Requests that may be made at once: as many as in a minute at first, then one more each time its share of a minute is
/// over.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Rates {
    pub(super) fn count(&self, key: &ApiKey, now: Instant) -> Result<(), RateExceeded> {
        let Some(rate) = key.rate else { return Ok(()) };
        let most = f64::from(rate.get());
        let per_second = most / MINUTE.as_secs_f64();
        let mut all = self.0.lock();
        let bucket = all.entry(key.name.clone()).or_insert(Bucket { left: most, at: now });
        let gained = now.saturating_duration_since(bucket.at).as_secs_f64() * per_second;
        *bucket = Bucket { left: (bucket.left + gained).min(most), at: now.max(bucket.at) };
        if bucket.left >= 1.0 {
            bucket.left -= 1.0;
            return Ok(());
        }
        let wait = Duration::from_secs_f64((1.0 - bucket.left) / per_second);
        Err(RateExceeded { name: key.name.clone(), rate: rate.get(), wait })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{KeyHash, Scope, Scopes};

    fn key(rate: Option<u32>) -> ApiKey {
        let scopes = Scopes::of([Scope::Embed]).expect("a scope");
        let rate = rate.and_then(std::num::NonZeroU32::new);
        ApiKey { name: "a".parse().expect("a name"), hash: KeyHash::of("x"), scopes, model: None, rate }
    }

    #[test]
    fn a_minutes_requests_at_once_then_one_for_each_share_of_it() {
        let (rates, start) = (Rates::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        for _ in 0..6 {
            assert_eq!(rates.count(&key(Some(6)), start), Ok(()));
        }
        let refused = rates.count(&key(Some(6)), after(4)).expect_err("one too many");
        assert!(
            refused.wait > Duration::from_millis(5900) && refused.wait < Duration::from_millis(6100),
            "{refused:?}"
        );
        assert!(refused.to_string().contains("`a` allows 6 requests a minute"), "{refused}");
        assert_eq!(rates.count(&key(Some(6)), after(11)), Ok(()));
        assert!(rates.count(&key(Some(6)), after(11)).is_err());
        assert!(rates.count(&key(Some(6)), start).is_err(), "a clock that is read late gives nothing back");
    }

    #[test]
    fn who_was_away_has_one_minutes_requests_and_no_more() {
        let (rates, start) = (Rates::default(), Instant::now());
        assert_eq!(rates.count(&key(Some(2)), start), Ok(()));
        let later = start + Duration::from_hours(1);
        assert_eq!((0..5).filter(|_| rates.count(&key(Some(2)), later).is_ok()).count(), 2);
        assert!((0..1000).all(|_| rates.count(&key(None), later).is_ok()), "a key without a rate");
    }

    #[test]
    fn a_lower_rate_counts_at_once() {
        let (rates, start) = (Rates::default(), Instant::now());
        assert_eq!(rates.count(&key(Some(100)), start), Ok(()));
        assert_eq!((0..5).filter(|_| rates.count(&key(Some(1)), start).is_ok()).count(), 1);
    }
}
