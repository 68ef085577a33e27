//! What a database must do for anchors: sampled grains that have a vector in every live space.

use async_trait::async_trait;

use super::StoreError;
use crate::domain::SpaceId;

/// 2^32 divided by the golden ratio: multiples of it spread evenly over the numbers below 2^32, wherever one begins and
/// in whatever steps one goes (Knuth, "The Art of Computer Programming", volume 3, 6.4).
const GOLDEN: i64 = 2_654_435_769;

/// Numbers below 2^31 times [`GOLDEN`] fit an `i64`.
const SMALL: i64 = 0x7FFF_FFFF;

const DRAWN: i64 = 0xFFFF_FFFF;

/// The lot that a grain's number draws: those with the smallest lots are the sample. It is a sample of all grains at any
/// time, few of it change when grains come and go, and no random source is asked.
#[must_use]
pub fn lot(number: i64) -> i64 {
    ((number & SMALL) * GOLDEN) & DRAWN
}

/// [`lot`] in SQL.
pub(super) fn lot_in_sql(number: &str) -> String {
    format!("((({number} & {SMALL}) * {GOLDEN}) & {DRAWN})")
}

/// Anchors in a database. They go with their grain, and what was made of an earlier text is never answered.
#[async_trait]
pub trait AnchorStore: Send + Sync {
    /// The numbers of the grains that draw the smallest lots, smallest first, at most so many.
    async fn sample(&self, at_most: u32) -> Result<Vec<i64>, StoreError>;

    /// Every anchor.
    async fn anchors(&self) -> Result<Vec<Anchor>, StoreError>;

    /// Makes anchors of the vectors that these grains have in a space already, and answers them.
    async fn copy_to_anchors(&self, space: &SpaceId, numbers: Vec<i64>) -> Result<Vec<Anchor>, StoreError>;

    /// Adds anchors of those grains that are still in the version whose text was embedded, and answers them.
    async fn add_anchors(&self, made: Vec<NewAnchor>) -> Result<Vec<Anchor>, StoreError>;

    /// Removes all anchors but those of these grains in these spaces.
    async fn keep_anchors(&self, numbers: Vec<i64>, spaces: Vec<SpaceId>) -> Result<(), StoreError>;
}

/// The vector of a sampled grain in one space.
#[derive(Clone, Debug, PartialEq)]
pub struct Anchor {
    /// The grain's number.
    pub number: i64,
    /// The space.
    pub space: SpaceId,
    /// `[dimensions]`
    pub vector: Vec<f32>,
}

/// An anchor that was just embedded.
#[derive(Clone, Debug)]
pub struct NewAnchor {
    /// The vector.
    pub anchor: Anchor,
    /// The version of the grain whose text it is of.
    pub version: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The share of the first `n` numbers, in steps of `step`, whose lots are among the smallest tenth.
    fn share(n: i64, step: i64) -> f64 {
        let drawn = (0..n).filter(|at| lot(1 + at * step) < DRAWN / 10).count();
        drawn as f64 / n as f64
    }

    #[test]
    fn lots_are_spread_evenly_whatever_steps_the_numbers_go_in() {
        for step in [1, 2, 3, 10, 64, 1000] {
            assert!((share(10_000, step) - 0.1).abs() < 0.01, "{step}: {}", share(10_000, step));
        }
        assert!(lot(i64::MAX) >= 0);
    }
}
