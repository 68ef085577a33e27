//! What a request costs in tokens, told to whoever asked to know.
//!
//! The meter goes with the task of the request: an encoder tells it what its queue has taken, whatever lies between.

use std::fmt;
use std::sync::Arc;

tokio::task_local! {
    static METER: Meter;
}

/// Takes note of tokens that are to be embedded.
#[derive(Clone)]
pub struct Meter(Arc<dyn Fn(u64) + Send + Sync>);

impl Meter {
    /// A meter that tells this.
    pub fn new(tell: impl Fn(u64) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    /// Runs a future, and tells what is embedded in it.
    pub async fn measure<F: Future>(self, future: F) -> F::Output {
        METER.scope(self, future).await
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Meter")
    }
}

/// The future with the meter of this task, to be run in another.
pub fn carried<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let meter = METER.try_with(Meter::clone).ok();
    async move {
        match meter {
            Some(meter) => meter.measure(future).await,
            None => future.await,
        }
    }
}

/// So many tokens are about to be embedded.
pub(super) fn note(n_tokens: usize) {
    // Work that nobody pays for has no meter.
    let _ = METER.try_with(|meter| (meter.0)(n_tokens as u64));
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[tokio::test]
    async fn what_is_embedded_for_a_request_is_told_in_other_tasks_too() {
        let seen = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&seen);
        let meter = Meter::new(move |n| {
            counted.fetch_add(n, Ordering::Relaxed);
        });
        note(1);
        let request = async {
            note(20);
            #[allow(clippy::disallowed_methods, reason = "another task is what is tested")]
            tokio::spawn(carried(async { note(300) })).await.expect("no panic");
        };
        meter.measure(request).await;
        note(4000);
        assert_eq!(seen.load(Ordering::Relaxed), 320);
    }
}
