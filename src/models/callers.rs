//! Who used each model lately: whoever changes the active model learns whom that concerns.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::domain::{Caller, ModelName};

/// How long a caller counts as recent.
const RECENT: Duration = Duration::from_hours(1);

/// Callers that are kept of one model; the one that was seen longest ago makes room.
const MAX_CALLERS: usize = 32;

/// A caller of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecentCaller {
    /// Who it is.
    pub caller: Caller,
    /// Its requests since it was first seen.
    pub n_requests: u64,
    /// When its last one was answered.
    pub last_seen: Instant,
}

/// The recent callers of every model.
#[derive(Debug, Default)]
pub(super) struct Callers(Mutex<HashMap<ModelName, Vec<RecentCaller>>>);

impl Callers {
    /// Notes that a model has answered a caller.
    pub(super) fn note(&self, model: &ModelName, caller: Caller, now: Instant) {
        let mut all = self.0.lock();
        let known = all.entry(model.clone()).or_default();
        if let Some(seen) = known.iter_mut().find(|seen| seen.caller == caller) {
            seen.n_requests += 1;
            seen.last_seen = now;
            return;
        }
        if known.len() == MAX_CALLERS
            && let Some(oldest) = (0..known.len()).min_by_key(|at| known[*at].last_seen)
        {
            known.swap_remove(oldest);
        }
        known.push(RecentCaller { caller, n_requests: 1, last_seen: now });
    }

    /// Forgets a model's callers: another one may get its name.
    pub(super) fn forget(&self, model: &ModelName) {
        self.0.lock().remove(model);
    }

    /// The recent callers of a model, the latest first.
    pub(super) fn recent(&self, model: &ModelName, now: Instant) -> Vec<RecentCaller> {
        let is_recent = |seen: &&RecentCaller| now.saturating_duration_since(seen.last_seen) < RECENT;
        let all = self.0.lock();
        let mut recent: Vec<_> = all.get(model).into_iter().flatten().filter(is_recent).cloned().collect();
        recent.sort_by_key(|seen| std::cmp::Reverse(seen.last_seen));
        recent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_counted_bounded_and_forgotten() {
        let (callers, model, start) = (Callers::default(), ModelName::parse("m").expect("a name"), Instant::now());
        let caller = |n: u64| Caller::of_user_agent(Some(&format!("client-{n}")));
        for n in 0..40 {
            callers.note(&model, caller(n), start + Duration::from_secs(n));
            callers.note(&model, caller(0), start + Duration::from_secs(n));
        }
        let recent = callers.recent(&model, start + Duration::from_secs(40));
        assert_eq!(recent.len(), MAX_CALLERS);
        let first = recent.iter().find(|seen| seen.caller == caller(0)).expect("it called all the time");
        assert_eq!(first.n_requests, 41);
        assert!(callers.recent(&model, start + RECENT + Duration::from_secs(40)).is_empty());
        assert!(callers.recent(&ModelName::parse("other").expect("a name"), start).is_empty());
        callers.forget(&model);
        assert!(callers.recent(&model, start + Duration::from_secs(40)).is_empty());
    }
}
