//! Whether somebody waits for a model: work that nobody waits for steps aside then.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts the requests that somebody waits for, of all models: they share the processor.
#[derive(Debug, Default)]
pub struct Interactive {
    n_begun: AtomicU64,
    n_running: AtomicU64,
}

/// One such request; it ends when this is dropped.
#[derive(Debug)]
pub struct Running<'a>(&'a Interactive);

impl Interactive {
    /// A request begins.
    pub fn begin(&self) -> Running<'_> {
        self.n_begun.fetch_add(1, Ordering::Relaxed);
        self.n_running.fetch_add(1, Ordering::Relaxed);
        Running(self)
    }

    /// How many have begun so far.
    #[must_use]
    pub fn n_begun(&self) -> u64 {
        self.n_begun.load(Ordering::Relaxed)
    }

    /// Whether one runs, or has begun since there were so many.
    #[must_use]
    pub fn has_any_since(&self, n_begun: u64) -> bool {
        self.n_running.load(Ordering::Relaxed) > 0 || self.n_begun() > n_begun
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.n_running.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_seen_while_it_runs_and_afterwards() {
        let interactive = Interactive::default();
        assert!(!interactive.has_any_since(0));
        let running = interactive.begin();
        assert!(interactive.has_any_since(interactive.n_begun()));
        drop(running);
        assert!(!interactive.has_any_since(interactive.n_begun()));
        assert!(interactive.has_any_since(0));
    }
}
