//! The machine's clock, and whether what it says may be acted on.
//!
//! Somebody sets it, the machine sleeps, or the first answer of a time server corrects it: then it jumps. What is given up
//! after days (old vectors, answers to writes) would be given up at once. So nothing is until the clock has gone on as it
//! should for a while, and a machine that has just started may have a clock that nobody has set yet.

use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Less is what time servers correct in passing.
const JUMP: Duration = Duration::from_secs(5);

/// For so long after a jump, and after the start, the clock is not acted on: whoever set it wrong has the time to notice.
const SETTLING: Duration = Duration::from_hours(1);

/// The time, in microseconds since 1970.
#[must_use]
pub fn now_us() -> i64 {
    i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX)
}

/// A time as RFC 3339 writes it; empty in a year beyond 9999, which it cannot write.
#[must_use]
pub fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_default()
}

/// What the machine's clock did since this process began.
#[derive(Debug)]
pub struct Clock(Mutex<Seen>);

#[derive(Clone, Copy, Debug)]
struct Seen {
    /// A clock that nobody sets.
    steady: Instant,
    set: SystemTime,
    /// The last jump, or the start of the process.
    jumped: Instant,
}

/// By how much the clock was set, against a clock that nobody sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Jump {
    Forward(Duration),
    Back(Duration),
}

impl Default for Clock {
    fn default() -> Self {
        let steady = Instant::now();
        Self(Mutex::new(Seen { steady, set: SystemTime::now(), jumped: steady }))
    }
}

impl Clock {
    /// Looks at the clock, and tells of a jump since the last look.
    pub fn look(&self) {
        match self.0.lock().look(Instant::now(), SystemTime::now()) {
            None => {}
            Some(Jump::Forward(by)) => tracing::warn!(
                seconds = by.as_secs(),
                "the clock was set forward, or the machine slept: for an hour nothing is deleted for its age"
            ),
            Some(Jump::Back(by)) => tracing::warn!(
                seconds = by.as_secs(),
                "the clock was set back: for an hour nothing is deleted for its age, and times in records are not in order"
            ),
        }
    }

    /// Whether the clock has gone on for an hour without a jump.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.look();
        self.0.lock().jumped.elapsed() >= SETTLING
    }
}

impl Seen {
    fn look(&mut self, steady: Instant, set: SystemTime) -> Option<Jump> {
        let expected = self.set + steady.saturating_duration_since(self.steady);
        let jump = match set.duration_since(expected) {
            Ok(ahead) => Jump::Forward(ahead),
            Err(behind) => Jump::Back(behind.duration()),
        };
        (self.steady, self.set) = (steady, set);
        let (Jump::Forward(by) | Jump::Back(by)) = jump;
        if by < JUMP {
            return None;
        }
        self.jumped = steady;
        Some(jump)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_goes_as_it_should_is_settled_and_one_that_was_set_is_not() {
        let (steady, set) = (Instant::now(), SystemTime::now());
        let mut seen = Seen { steady, set, jumped: steady };
        let (hour, day) = (Duration::from_hours(1), Duration::from_hours(24));
        assert_eq!(seen.look(steady + hour, set + hour), None);
        assert_eq!(seen.look(steady + hour, set + hour + Duration::from_secs(2)), None);
        assert_eq!(seen.jumped, steady);
        let from = set + hour + Duration::from_secs(2);
        assert_eq!(seen.look(steady + hour, from + day), Some(Jump::Forward(day)));
        assert_eq!(seen.look(steady + hour * 2, from), Some(Jump::Back(day + hour)));
        assert_eq!(seen.jumped, steady + hour * 2);
    }
}
