//! How much the holder of a key may ask for.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::domain::{ApiKey, KeyName};

/// The time in which a key's rates are counted.
const MINUTE: Duration = Duration::from_mins(1);

/// A request is one too many.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the key `{name}` allows {most} {unit} a minute (its `{}`): the next request is taken in {} s",
    .unit.setting(),
    .wait.as_secs_f64().ceil()
)]
pub struct RateExceeded {
    /// The key.
    pub name: KeyName,
    /// What is used up.
    pub unit: Unit,
    /// How many it allows in a minute.
    pub most: u32,
    /// When the next request is taken.
    pub wait: Duration,
}

/// What a key's holder has so many of in a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Requests.
    Requests,
    /// Tokens of texts that are embedded.
    Tokens,
}

impl Unit {
    /// The field of a key that says how many.
    fn setting(self) -> &'static str {
        match self {
            Self::Requests => "rate",
            Self::Tokens => "tokens",
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
        })
    }
}

/// What is left of the rates of all keys, by their names: a key that is read anew begins no new minute.
#[derive(Debug, Default)]
pub(super) struct Rates(Mutex<HashMap<(KeyName, Unit), Bucket>>);

/// What may be used at once: as much as in a minute at first, then more as its share of a minute passes. What a request
/// uses beyond that is owed.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Rates {
    /// Counts a request, unless it is one too many. How many tokens it will have is not known yet: it is taken while any
    /// are left.
    pub(super) fn count_request(&self, key: &ApiKey, now: Instant) -> Result<(), RateExceeded> {
        let mut all = self.0.lock();
        let exceeded =
            |unit, most: NonZeroU32, wait| Err(RateExceeded { name: key.name.clone(), unit, most: most.get(), wait });
        if let Some(most) = key.tokens {
            let bucket = filled(&mut all, (key.name.clone(), Unit::Tokens), most, now);
            if bucket.left < 1.0 {
                return exceeded(Unit::Tokens, most, time_for(1.0 - bucket.left, most));
            }
        }
        if let Some(most) = key.rate {
            let bucket = filled(&mut all, (key.name.clone(), Unit::Requests), most, now);
            if bucket.left < 1.0 {
                return exceeded(Unit::Requests, most, time_for(1.0 - bucket.left, most));
            }
            bucket.left -= 1.0;
        }
        Ok(())
    }

    /// Takes away tokens that were embedded.
    pub(super) fn count_tokens(&self, key: &ApiKey, n_tokens: u64, now: Instant) {
        let Some(most) = key.tokens else { return };
        let mut all = self.0.lock();
        filled(&mut all, (key.name.clone(), Unit::Tokens), most, now).left -= n_tokens as f64;
    }
}

/// The bucket of a key, with what it has gained since it was last looked at.
fn filled(
    all: &mut HashMap<(KeyName, Unit), Bucket>,
    of: (KeyName, Unit),
    most: NonZeroU32,
    now: Instant,
) -> &mut Bucket {
    let most = f64::from(most.get());
    let bucket = all.entry(of).or_insert(Bucket { left: most, at: now });
    let gained = now.saturating_duration_since(bucket.at).as_secs_f64() * most / MINUTE.as_secs_f64();
    *bucket = Bucket { left: (bucket.left + gained).min(most), at: now.max(bucket.at) };
    bucket
}

/// How long it takes to gain so much.
fn time_for(lacking: f64, most: NonZeroU32) -> Duration {
    MINUTE.mul_f64(lacking / f64::from(most.get()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{KeyHash, Scope, Scopes};

    fn key(rate: Option<u32>) -> ApiKey {
        let scopes = Scopes::of([Scope::Embed]).expect("a scope");
        let rate = rate.and_then(std::num::NonZeroU32::new);
        ApiKey { name: "a".parse().expect("a name"), hash: KeyHash::of("x"), scopes, model: None, rate, tokens: None }
    }

    #[test]
    fn a_minutes_requests_at_once_then_one_for_each_share_of_it() {
        let (rates, start) = (Rates::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        for _ in 0..6 {
            assert_eq!(rates.count_request(&key(Some(6)), start), Ok(()));
        }
        let refused = rates.count_request(&key(Some(6)), after(4)).expect_err("one too many");
        assert!(
            refused.wait > Duration::from_millis(5900) && refused.wait < Duration::from_millis(6100),
            "{refused:?}"
        );
        assert!(refused.to_string().contains("`a` allows 6 requests a minute"), "{refused}");
        assert_eq!(rates.count_request(&key(Some(6)), after(11)), Ok(()));
        assert!(rates.count_request(&key(Some(6)), after(11)).is_err());
        assert!(rates.count_request(&key(Some(6)), start).is_err(), "a clock that is read late gives nothing back");
    }

    #[test]
    fn who_was_away_has_one_minutes_requests_and_no_more() {
        let (rates, start) = (Rates::default(), Instant::now());
        assert_eq!(rates.count_request(&key(Some(2)), start), Ok(()));
        let later = start + Duration::from_hours(1);
        assert_eq!((0..5).filter(|_| rates.count_request(&key(Some(2)), later).is_ok()).count(), 2);
        assert!((0..1000).all(|_| rates.count_request(&key(None), later).is_ok()), "a key without a rate");
    }

    #[test]
    fn a_lower_rate_counts_at_once() {
        let (rates, start) = (Rates::default(), Instant::now());
        assert_eq!(rates.count_request(&key(Some(100)), start), Ok(()));
        assert_eq!((0..5).filter(|_| rates.count_request(&key(Some(1)), start).is_ok()).count(), 1);
    }
    #[test]
    fn a_request_is_taken_while_a_token_is_left_and_what_it_uses_beyond_is_owed() {
        let (rates, start) = (Rates::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let key = ApiKey { tokens: NonZeroU32::new(60), ..key(None) };
        assert_eq!(rates.count_request(&key, start), Ok(()));
        rates.count_tokens(&key, 59, start);
        assert_eq!(rates.count_request(&key, start), Ok(()));
        rates.count_tokens(&key, 11, start);
        let refused = rates.count_request(&key, start).expect_err("ten are owed");
        assert_eq!((refused.unit, refused.wait), (Unit::Tokens, Duration::from_secs(11)));
        assert!(refused.to_string().contains("allows 60 tokens a minute (its `tokens`)"), "{refused}");
        assert!(rates.count_request(&key, after(10)).is_err());
        assert_eq!(rates.count_request(&key, after(12)), Ok(()));
    }
}
