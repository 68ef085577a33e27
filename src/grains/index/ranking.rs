//! The best of many scores.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// A grain and how near it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// The grain's number in the database.
    pub number: i64,
    /// The dot product of its vector and the query: the cosine, since vectors have length 1.
    pub score: f32,
}

/// Nearer first, then by number, so that equal scores always come in one order.
impl Ord for Scored {
    fn cmp(&self, other: &Self) -> Ordering {
        other.score.total_cmp(&self.score).then(self.number.cmp(&other.number))
    }
}

impl PartialOrd for Scored {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Eq for Scored {}

/// Keeps the nearest `n` of what it is shown.
pub(super) struct Nearest {
    n: usize,
    /// The farthest kept is on top.
    kept: BinaryHeap<Scored>,
}

impl Nearest {
    /// Keeps `n`, of at most `n_shown`.
    pub(super) fn new(n: usize, n_shown: usize) -> Self {
        Self { n, kept: BinaryHeap::with_capacity(n.min(n_shown)) }
    }

    pub(super) fn show(&mut self, scored: Scored) {
        if self.kept.len() < self.n {
            self.kept.push(scored);
        } else if let Some(mut farthest) = self.kept.peek_mut()
            && scored < *farthest
        {
            *farthest = scored;
        }
    }

    /// Best first.
    pub(super) fn into_vec(self) -> Vec<Scored> {
        self.kept.into_sorted_vec()
    }
}

/// The nearest `n`, best first.
pub(super) fn nearest(mut scored: Vec<Scored>, n: usize) -> Vec<Scored> {
    scored.sort_unstable();
    scored.truncate(n);
    scored
}
