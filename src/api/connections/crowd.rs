//! What a crowd of connections leaves behind: memory, which goes back to the system when most of them have gone.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::allocator;

/// As many connections at once take some 20 MiB.
const CROWD: usize = 1_000;

/// A crowd has gone when so few of it are left: one in so many.
const REST: usize = 4;

/// How many connections there were at once, since memory was last given back.
#[derive(Default)]
pub(super) struct Crowd {
    most: AtomicUsize,
}

impl Crowd {
    /// There is one more, and so many together.
    pub(super) fn came(&self, n_connections: usize) {
        self.most.fetch_max(n_connections, Ordering::Relaxed);
    }

    /// One has gone and so many are left. Gives memory back when they are the rest of a crowd.
    pub(super) async fn went(&self, n_connections: usize) {
        if !self.has_gone(n_connections) {
            return;
        }
        let given = tokio::task::spawn_blocking(allocator::give_back).await;
        if let Err(error) = given {
            tracing::error!(%error, "memory was not given back");
        }
    }

    /// Whether these are the rest of a crowd; who is told so first sees to it.
    fn has_gone(&self, n_connections: usize) -> bool {
        let most = self.most.load(Ordering::Relaxed);
        most >= CROWD
            && n_connections <= most / REST
            && self.most.compare_exchange(most, n_connections, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_that_has_gone_is_told_of_once() {
        let crowd = Crowd::default();
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
