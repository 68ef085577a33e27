//! What a crowd of connections, or of the bytes of bodies, leaves behind: memory, which goes back to the system when most
//! of them have gone.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::allocator;

/// A crowd has gone when so few of it are left: one in so many.
const REST: u64 = 4;

/// How many there were at once, since memory was last given back.
pub(super) struct Crowd {
    /// What fewer leave behind is not worth it.
    least: u64,
    most: AtomicU64,
}

impl Crowd {
    /// At least so many are a crowd.
    pub(super) fn of(least: u64) -> Self {
        Self { least, most: AtomicU64::new(0) }
    }

    /// There are more, and so many together.
    pub(super) fn came(&self, n: u64) {
        self.most.fetch_max(n, Ordering::Relaxed);
    }

    /// Some have gone and so many are left. Gives memory back when they are the rest of a crowd.
    pub(super) async fn went(&self, n: u64) {
        if !self.has_gone(n) {
            return;
        }
        let given = tokio::task::spawn_blocking(allocator::give_back).await;
        if let Err(error) = given {
            tracing::error!(%error, "memory was not given back");
        }
    }

    /// Whether these are the rest of a crowd; who is told so first sees to it.
    fn has_gone(&self, n: u64) -> bool {
        let most = self.most.load(Ordering::Relaxed);
        most >= self.least
            && n <= most / REST
            && self.most.compare_exchange(most, n, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_that_has_gone_is_told_of_once() {
        const CROWD: u64 = 1_000;
        let crowd = Crowd::of(CROWD);
        crowd.came(CROWD - 1);
        assert!(!crowd.has_gone(0), "that was none");
        crowd.came(16 * CROWD);
        crowd.came(3);
        assert!(!crowd.has_gone(4 * CROWD + 1));
        assert!(crowd.has_gone(4 * CROWD) && !crowd.has_gone(4 * CROWD - 1));
        assert!(crowd.has_gone(CROWD), "what was left was one too");
        assert!(crowd.has_gone(CROWD / 4) && !crowd.has_gone(0));
    }
}
