//! Arithmetic of vectors, in double precision, so that long ones do not lose digits.

/// Scales a vector to length 1. The zero vector stays as it is: it has no direction to keep.
#[allow(clippy::cast_possible_truncation, reason = "a component of a unit vector fits any float")]
pub fn normalize(vector: &mut [f32]) {
    let length = norm(vector);
    if length > 0.0 {
        for value in vector {
            *value = (f64::from(*value) / length) as f32;
        }
    }
}

/// The Euclidean length.
#[must_use]
pub fn norm(vector: &[f32]) -> f64 {
    vector.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>().sqrt()
}

/// The cosine of the angle between two vectors of one length; 0 when either is zero.
#[must_use]
pub fn cosine(left: &[f32], right: &[f32]) -> f64 {
    let dot: f64 = left.iter().zip(right).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    let lengths = norm(left) * norm(right);
    if lengths > 0.0 { dot / lengths } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    #[allow(clippy::float_cmp, reason = "nothing is computed")]
    fn the_zero_vector_is_not_divided() {
        let mut zero = [0.0, 0.0];
        normalize(&mut zero);
        assert_eq!(zero, [0.0, 0.0]);
        assert_eq!(cosine(&zero, &[1.0, 0.0]), 0.0);
    }

    proptest! {
        #[test]
        fn normalized_vectors_have_length_one(mut vector in prop::collection::vec(-1e3_f32..1e3, 1..800)) {
            prop_assume!(norm(&vector) > 1e-3);
            let original = vector.clone();
            normalize(&mut vector);
            prop_assert!((norm(&vector) - 1.0).abs() < 1e-5);
            prop_assert!(cosine(&original, &vector) > 0.99999);
        }
    }
}
