//! What a caller's vector must be, and vectors at length 1.

use super::error::GrainError;
use crate::domain::vector::{norm, normalize};

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
pub(super) fn unit(vector: &[f32]) -> Vec<f32> {
    let mut unit = vector.to_vec();
    normalize(&mut unit);
    unit
}
