//! What a vector of one space would score in another, by least squares over the anchors.
//!
//! For one query, the anchors have a score in the other space and a vector in this one: the linear function that comes
//! nearest to the scores is a guess for any vector. It is shrunk towards zero (ridge regression: Hoerl and Kennard, 1970), and
//! its guesses are spread again as far as the scores are.

use nalgebra::linalg::Cholesky;
use nalgebra::{DMatrix, DVector, Dyn};

use super::super::index::dot;

/// The longest vectors that are fitted: the matrix has as many rows and columns.
const MAX_DIMENSIONS: usize = 2_048;

/// How much the function is shrunk, as a share of the average spread of the vectors along a direction. With 0.01 to 0.3 the
/// merged ranking was as good.
const SHRINKAGE: f32 = 0.1;

/// How the anchors of a space lie, for every query: the same until they change.
#[derive(Debug)]
pub(super) struct Fit {
    factor: Cholesky<f32, Dyn>,
}

impl Fit {
    /// Looks at these vectors, `[n][dimensions]`. `None` when they are too long.
    pub(super) fn of(vectors: &[&[f32]]) -> Option<Self> {
        let dimensions = vectors.first()?.len();
        if dimensions > MAX_DIMENSIONS {
            return None;
        }
        let n = vectors.len();
        let rows = DMatrix::from_iterator(dimensions, n, vectors.iter().flat_map(|vector| vector.iter().copied()));
        let mut spread = &rows * rows.transpose() / n as f32;
        let shrinkage = SHRINKAGE * spread.trace() / dimensions as f32;
        for at in 0..dimensions {
            spread[(at, at)] += shrinkage;
        }
        Cholesky::new(spread).map(|factor| Self { factor })
    }

    /// Guesses the scores of these vectors, where anchors with such vectors have such scores.
    #[allow(clippy::cast_possible_truncation, reason = "a score was made from numbers of 32 bits")]
    pub(super) fn guess(&self, anchors: &[(&[f32], f64)], vectors: &[Vec<f32>]) -> Vec<f64> {
        let n = anchors.len();
        let mut sums = DVector::zeros(self.factor.l_dirty().nrows());
        for (vector, score) in anchors {
            let weight = *score as f32 / n as f32;
            sums.iter_mut().zip(*vector).for_each(|(sum, value)| *sum += weight * value);
        }
        self.factor.solve_mut(&mut sums);
        let direction = sums.as_slice();
        let guessed: Vec<f64> = anchors.iter().map(|(vector, _)| dot(direction, vector).into()).collect();
        let scores: Vec<f64> = anchors.iter().map(|(_, score)| *score).collect();
        let (guessed, scores) = (Moments::of(&guessed), Moments::of(&scores));
        let stretch = if guessed.deviation > 0.0 { scores.deviation / guessed.deviation } else { 1.0 };
        let guess = |vector: &Vec<f32>| scores.mean + (f64::from(dot(direction, vector)) - guessed.mean) * stretch;
        vectors.iter().map(guess).collect()
    }
}

struct Moments {
    mean: f64,
    deviation: f64,
}

impl Moments {
    fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n;
        Self { mean, deviation: variance.sqrt() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of no pattern between -1 and 1.
    fn noise(n: usize) -> impl Iterator<Item = f32> {
        let mut state = 1_u32;
        std::iter::repeat_with(move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .take(n)
    }

    #[test]
    fn scores_that_are_linear_in_the_vectors_are_guessed() {
        let values: Vec<f32> = noise(8 * 500).collect();
        let vectors: Vec<&[f32]> = values.chunks(8).collect();
        let score = |vector: &[f32]| f64::from(0.3 + 0.5 * vector[0] - 0.25 * vector[5]);
        let fit = Fit::of(&vectors).expect("short vectors");
        let anchors: Vec<(&[f32], f64)> = vectors.iter().map(|vector| (*vector, score(vector))).collect();
        let unseen: Vec<Vec<f32>> =
            noise(8 * 510).collect::<Vec<_>>()[8 * 500..].chunks(8).map(<[f32]>::to_vec).collect();
        for (vector, guess) in unseen.iter().zip(fit.guess(&anchors, &unseen)) {
            assert!((guess - score(vector)).abs() < 0.05, "{guess} for {}", score(vector));
        }
    }

    #[test]
    fn guesses_of_what_nothing_tells_are_as_far_spread_as_the_scores() {
        let values: Vec<f32> = noise(4 * 1_000).collect();
        let vectors: Vec<&[f32]> = values.chunks(4).collect();
        let fit = Fit::of(&vectors).expect("short vectors");
        let scores = noise(5_000).skip(4_000).map(f64::from);
        let anchors: Vec<(&[f32], f64)> = vectors.iter().copied().zip(scores).collect();
        let all: Vec<Vec<f32>> = vectors.iter().map(|vector| vector.to_vec()).collect();
        let (guessed, scores) =
            (fit.guess(&anchors, &all), anchors.iter().map(|(_, score)| *score).collect::<Vec<_>>());
        assert!((Moments::of(&guessed).deviation - Moments::of(&scores).deviation).abs() < 1e-3);
        assert!((Moments::of(&guessed).mean - Moments::of(&scores).mean).abs() < 1e-3);
    }

    #[test]
    fn vectors_that_are_equal_or_too_long_do_no_harm() {
        let one = vec![0.5_f32; 4];
        let fit = Fit::of(&[&one, &one]).expect("shrunk, they can be fitted");
        let guess = fit.guess(&[(&one, 0.7), (&one, 0.7)], std::slice::from_ref(&one));
        assert!((guess[0] - 0.7).abs() < 1e-6, "{guess:?}");
        assert!(Fit::of(&[&vec![0.0; MAX_DIMENSIONS + 1]]).is_none());
        assert!(Fit::of(&[]).is_none());
    }
}
