//! Arithmetic of single vectors, in double precision.

use super::error::GrainError;

/// A caller's vector at length 1.
///
/// # Errors
/// As [`check`].
pub(super) fn checked(vector: &[f32], dimensions: u32) -> Result<Vec<f32>, GrainError> {
    check(vector, dimensions)?;
    Ok(unit(vector))
}

/// Whether a vector can be one of its space.
///
/// # Errors
/// When it has another length than its space, or points nowhere.
pub(super) fn check(vector: &[f32], dimensions: u32) -> Result<(), GrainError> {
    if vector.len() != dimensions as usize {
        let message = format!("`vector` has {} numbers; its space has {dimensions} dimensions", vector.len());
        return Err(GrainError::invalid("vector", message));
    }
    if vector.iter().any(|value| !value.is_finite()) {
        return Err(GrainError::invalid("vector", "`vector` has a number that is not finite"));
    }
    if norm(vector) == 0.0 {
        return Err(GrainError::invalid("vector", "`vector` is all zeros, which point nowhere"));
    }
    Ok(())
}

/// The vector at length 1; one that points nowhere stays as it is.
#[allow(clippy::cast_possible_truncation, reason = "the values were `f32` and get smaller")]
pub(super) fn unit(vector: &[f32]) -> Vec<f32> {
    let norm = norm(vector);
    if norm == 0.0 { vector.to_vec() } else { vector.iter().map(|value| (f64::from(*value) / norm) as f32).collect() }
}

/// The cosine of the angle between two vectors of one length.
#[must_use]
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let product = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    product / (norm(a) * norm(b))
}

fn norm(vector: &[f32]) -> f64 {
    vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}
