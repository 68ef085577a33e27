//! What a vector of one space would be in another, by least squares over the anchors.
//!
//! Every anchor is the same text in both spaces: the linear map that brings the vectors of the one nearest to those of the
//! other is a guess for any vector. It is shrunk towards zero (ridge regression: Hoerl and Kennard, 1970). Scores are
//! cosines, so only the direction of what it makes counts, which is surer than its length.

use nalgebra::DMatrix;
use nalgebra::linalg::Cholesky;

use super::super::index::dot;

/// The longest vectors that are translated: the matrices have as many rows and columns.
const MAX_DIMENSIONS: usize = 2_048;

/// How much the map is shrunk, as a share of the average spread of the vectors along a direction. With 0.03 and 0.1 the
/// merged ranking was nearly as good.
const SHRINKAGE: f32 = 0.01;

/// From vectors of one space to those of another, for every query: the same until the anchors change.
#[derive(Debug)]
pub(super) struct Translation {
    /// `[dimensions there][dimensions here]`, a column for each dimension there.
    columns: DMatrix<f32>,
}

impl Translation {
    /// From the first of each pair to the second, which are one text. `None` when they are empty or too long.
    pub(super) fn between(pairs: &[(&[f32], &[f32])]) -> Option<Self> {
        let (here, there) = pairs.first()?;
        if here.is_empty() || here.len().max(there.len()) > MAX_DIMENSIONS {
            return None;
        }
        let n = pairs.len();
        let rows = DMatrix::from_iterator(here.len(), n, pairs.iter().flat_map(|(here, _)| here.iter().copied()));
        let others = DMatrix::from_iterator(there.len(), n, pairs.iter().flat_map(|(_, there)| there.iter().copied()));
        let mut spread = &rows * rows.transpose() / n as f32;
        let shrinkage = SHRINKAGE * spread.trace() / here.len() as f32;
        for at in 0..here.len() {
            spread[(at, at)] += shrinkage;
        }
        let columns = Cholesky::new(spread)?.solve(&(rows * others.transpose() / n as f32));
        Some(Self { columns })
    }

    /// What these vectors of the one space would score there, for a query in the other.
    pub(super) fn scores(&self, query: &[f32], vectors: &[Vec<f32>]) -> Vec<f64> {
        let score = |vector: &Vec<f32>| {
            let there: Vec<f32> =
                self.columns.as_slice().chunks_exact(self.columns.nrows()).map(|to| dot(to, vector)).collect();
            let length = dot(&there, &there).sqrt();
            if length > 0.0 { f64::from(dot(query, &there) / length) } else { 0.0 }
        };
        vectors.iter().map(score).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::vector::unit;
    use super::*;

    /// Numbers of no pattern between -1 and 1.
    fn noise(n: usize) -> Vec<f32> {
        let mut state = 1_u32;
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        std::iter::repeat_with(next).take(n).collect()
    }

    /// In another space: fewer dimensions, turned and stretched.
    fn other(vector: &[f32]) -> Vec<f32> {
        unit(&[vector[0] + vector[1], 3.0 * vector[1], vector[2] - vector[0], vector[3], 0.5 * vector[4]])
    }

    #[test]
    fn what_a_vector_scores_in_a_space_that_is_turned_and_stretched_is_guessed() {
        let values = noise(6 * 510);
        let here: Vec<Vec<f32>> = values.chunks(6).map(unit).collect();
        let there: Vec<Vec<f32>> = here.iter().map(|vector| other(vector)).collect();
        let pairs: Vec<(&[f32], &[f32])> =
            here.iter().zip(&there).take(500).map(|(here, there)| (here.as_slice(), there.as_slice())).collect();
        let translation = Translation::between(&pairs).expect("short vectors");
        let query = unit(&[0.3, -0.5, 0.1, 0.7, 0.2]);
        for (guess, there) in translation.scores(&query, &here[500..]).iter().zip(&there[500..]) {
            let score = f64::from(dot(&query, there));
            assert!((guess - score).abs() < 0.1, "{guess} for {score}");
        }
    }

    #[test]
    fn vectors_that_are_equal_or_nothing_or_too_long_do_no_harm() {
        let (here, there) = (vec![0.5_f32; 4], vec![1.0_f32]);
        let translation = Translation::between(&[(&here, &there), (&here, &there)]).expect("shrunk, it can be made");
        let scores = translation.scores(&[1.0], &[here, vec![0.0; 4]]);
        assert!((scores[0] - 1.0).abs() < 1e-6 && scores[1] == 0.0, "{scores:?}");
        let long = vec![0.0; MAX_DIMENSIONS + 1];
        assert!(Translation::between(&[(&there, &long)]).is_none());
        assert!(Translation::between(&[(&long, &there)]).is_none());
        assert!(Translation::between(&[(&[], &there)]).is_none());
        assert!(Translation::between(&[]).is_none());
    }
}
