//! Waiting for what a server does in its own time.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use super::Caller;

/// How long anything may take that is waited for, on a machine that does much else.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// Lets at least so much time pass in which the server works: while it stands still on a busy machine, none passes.
pub async fn let_pass(app: &Caller, time: Duration) {
    for _ in 0..time.as_millis() / 10 {
        app.get("/health/live").await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Looks again and again until it is so. What is waited for is a sentence: "the model is unloaded".
pub async fn until(what: &str, is_so: impl AsyncFnMut() -> bool) {
    until_seen(what, is_so, |is_so: &bool| *is_so).await;
}

/// The same of something that can be seen: returns it when it is as it should be, and shows it when it never is.
pub async fn until_seen<T: Debug>(what: &str, mut look: impl AsyncFnMut() -> T, is_so: impl Fn(&T) -> bool) -> T {
    let began = Instant::now();
    loop {
        let seen = look().await;
        if is_so(&seen) {
            return seen;
        }
        let waited = began.elapsed();
        assert!(waited < PATIENCE, "in {waited:.0?} it did not come that {what}; last seen: {seen:?}");
        // What comes at once is seen at once, and what takes long is not slowed down by looks.
        tokio::time::sleep((waited / 10).clamp(Duration::from_millis(2), Duration::from_millis(50))).await;
    }
}
