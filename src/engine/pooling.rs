//! From token vectors to text vectors: pure functions over slices.
//!
//! The formulas are those of sentence-transformers (`models/Pooling.py`): padding never takes part, since each text's
//! real length is passed beside its padded row.

use crate::domain::Pooling;

/// Pools one text's token vectors into `out`.
///
/// `tokens` is `[width][dimensions]`, of which the first `n_tokens` rows are real; `out` is `[dimensions]` with
/// `dimensions <= ` the model's own, so that a shortened vector costs no more than its length.
pub fn pool(tokens: &[f32], row_dimensions: usize, n_tokens: usize, pooling: Pooling, out: &mut [f32]) {
    debug_assert!(n_tokens > 0 && tokens.len() >= n_tokens * row_dimensions && out.len() <= row_dimensions);
    let kept = out.len();
    let row = |index: usize| &tokens[index * row_dimensions..index * row_dimensions + kept];
    match pooling {
        Pooling::Cls => out.copy_from_slice(row(0)),
        Pooling::LastToken => out.copy_from_slice(row(n_tokens - 1)),
        Pooling::Mean | Pooling::MeanSqrtLen => {
            out.copy_from_slice(row(0));
            for index in 1..n_tokens {
                for (sum, value) in out.iter_mut().zip(row(index)) {
                    *sum += value;
                }
            }
            let number = n_tokens as f32;
            let scale = 1.0 / if pooling == Pooling::Mean { number } else { number.sqrt() };
            for value in out.iter_mut() {
                *value *= scale;
            }
        }
        Pooling::Max => {
            out.copy_from_slice(row(0));
            for index in 1..n_tokens {
                for (max, value) in out.iter_mut().zip(row(index)) {
                    // `max` would take the other number in the place of one that is none, and nobody would see it.
                    *max = if max.is_nan() || value.is_nan() { f32::NAN } else { max.max(*value) };
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "equal inputs in an equal order give equal bits")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Three tokens of two dimensions and one row of padding that must not count.
    const TOKENS: [f32; 8] = [1.0, 2.0, 3.0, -4.0, 5.0, 8.0, 900.0, 900.0];

    fn pooled(pooling: Pooling, dimensions: usize) -> Vec<f32> {
        let mut out = vec![0.0; dimensions];
        pool(&TOKENS, 2, 3, pooling, &mut out);
        out
    }

    #[test]
    fn each_pooling_reads_its_tokens_and_no_padding() {
        assert_eq!(pooled(Pooling::Mean, 2), [3.0, 2.0]);
        assert_eq!(pooled(Pooling::Cls, 2), [1.0, 2.0]);
        assert_eq!(pooled(Pooling::LastToken, 2), [5.0, 8.0]);
        assert_eq!(pooled(Pooling::Max, 2), [5.0, 8.0]);
        assert_eq!(pooled(Pooling::Mean, 1), [3.0]);
        let root = 3.0_f32.sqrt();
        assert_eq!(pooled(Pooling::MeanSqrtLen, 2), [9.0 * (1.0 / root), 6.0 * (1.0 / root)]);
    }

    #[test]
    fn no_pooling_hides_what_is_no_number() {
        for place in 0..3 {
            let mut tokens = TOKENS;
            tokens[2 * place] = f32::NAN;
            for pooling in [Pooling::Mean, Pooling::MeanSqrtLen, Pooling::Max] {
                let mut out = [0.0; 2];
                pool(&tokens, 2, 3, pooling, &mut out);
                assert!(out[0].is_nan() && out[1].is_finite(), "{pooling:?} of {tokens:?}: {out:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn padding_changes_nothing(
            rows in prop::collection::vec(prop::collection::vec(-10.0_f32..10.0, 3), 1..20),
            padding in prop::collection::vec(-1e6_f32..1e6, 0..60),
        ) {
            use Pooling::{Cls, LastToken, Max, Mean, MeanSqrtLen};

            let real: Vec<f32> = rows.concat();
            let padded = [real.clone(), padding].concat();
            for pooling in [Mean, MeanSqrtLen, Cls, LastToken, Max] {
                let (mut alone, mut beside) = ([0.0; 3], [0.0; 3]);
                pool(&real, 3, rows.len(), pooling, &mut alone);
                pool(&padded, 3, rows.len(), pooling, &mut beside);
                prop_assert_eq!(alone, beside);
            }
        }
    }
}
