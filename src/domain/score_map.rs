//! What a score in one space is worth in another, where both have scored the same things.

/// Where a score goes: as many of the things lie below it there as here. Both lists are ascending and of one length. Between
/// two of them it is interpolated, beyond both ends the slope is 1, and the order of two scores is never turned around.
/// Without any it stays as it is.
#[must_use]
pub fn map_score<T: Copy + Into<f64>>(score: f64, from: &[T], to: &[T]) -> f64 {
    let number = |value: &T| -> f64 { (*value).into() };
    let pair = |at: usize| Some((number(from.get(at)?), number(to.get(at)?)));
    let above = from.partition_point(|value| number(value) <= score);
    match (above.checked_sub(1).and_then(pair), pair(above)) {
        (Some(before), Some(next)) => before.1 + (score - before.0) / (next.0 - before.0) * (next.1 - before.1),
        (Some(end), None) | (None, Some(end)) => end.1 + (score - end.0),
        (None, None) => score,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Scores in order, some of them equal.
    fn scores(n: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<f64>> {
        let score = prop_oneof![-1.0_f64..1.0, (-5_i32..5).prop_map(|n| f64::from(n) / 5.0)];
        prop::collection::vec(score, n).prop_map(|mut scores| {
            scores.sort_unstable_by(f64::total_cmp);
            scores
        })
    }

    proptest! {
        #[test]
        fn a_map_to_the_same_scores_changes_nothing(scores in scores(0..50), at in -3.0..3.0) {
            let mapped = map_score(at, &scores, &scores);
            prop_assert!((mapped - at).abs() < 1e-9, "{} became {}", at, mapped);
        }

        #[test]
        fn a_map_never_turns_scores_around(from in scores(20), to in scores(20), a in -1.5..1.5, b in -1.5..1.5) {
            let (low, high): (f64, f64) = if a < b { (a, b) } else { (b, a) };
            let (low, high) = (map_score(low, &from, &to), map_score(high, &from, &to));
            prop_assert!(low <= high + 1e-9 && low.is_finite() && high.is_finite(), "{} and {}", low, high);
        }
    }
}
