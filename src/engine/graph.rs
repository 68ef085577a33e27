//! Where a model's graph and its weights are, and which of its numbers bf16 cannot bear, with what takes their place.

use std::path::PathBuf;

use half::bf16;

/// Where a graph and its weights are.
#[derive(Clone, Debug)]
pub struct GraphFiles {
    /// The `.onnx` file.
    pub onnx: PathBuf,
    /// Weights outside it.
    pub external_data: Vec<PathBuf>,
    /// Where numbers stand in the `.onnx` file that are unfit for bf16 (see [`is_unfit_for_bf16`]).
    pub unfit_for_bf16: Vec<u64>,
    /// The same graph without its weights, where these are within that file and nobody changes it.
    pub apart: Option<GraphApart>,
}

/// A graph whose weights lie in a file.
#[derive(Clone, Debug)]
pub struct GraphApart {
    /// What an `.onnx` file holds, with the places of weights in place of them.
    pub graph: Vec<u8>,
    /// Where numbers stand in it that are unfit for bf16.
    pub unfit_for_bf16: Vec<u64>,
    /// The file that they are in, no link.
    pub weights: PathBuf,
}

/// Larger numbers are as good as infinite in a graph, and are written where attention is masked: 1 less the mask, times such
/// a number. A runtime that rounds to bf16 may take that apart, round only one of the two parts, and has a difference left
/// where nothing is masked, beside which the scores of attention are nothing; or it has infinity, and infinity times 0.
const LARGE: f32 = 16_777_216.0;

/// What stands for the largest: bf16 has it exactly, and room for sums of several.
const LARGEST_IN_BF16: f32 = 1.267_650_6e30;

/// What stands for a number in a graph that is run in bf16.
fn in_bf16(number: f32) -> f32 {
    if !number.is_finite() || number.abs() <= LARGE {
        return number;
    }
    bf16::from_f32(number).to_f32().clamp(-LARGEST_IN_BF16, LARGEST_IN_BF16)
}

/// Whether another number must stand for this one in a graph that is run in bf16.
#[must_use]
pub fn is_unfit_for_bf16(number: f32) -> bool {
    number.is_finite() && in_bf16(number).total_cmp(&number).is_ne()
}

/// Puts numbers that bf16 has exactly in place of those at these places.
pub(super) fn fit_for_bf16(graph: &mut [u8], places: &[u64]) {
    for place in places.iter().filter_map(|place| usize::try_from(*place).ok()) {
        // The file may be another by now, which the load finds out.
        if let Some(bytes) = graph.get_mut(place..).and_then(|rest| rest.first_chunk_mut::<4>()) {
            *bytes = in_bf16(f32::from_le_bytes(*bytes)).to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_are_made_such_as_bf16_has_and_others_stay() {
        let largest = 2.0_f32.powi(100);
        for (number, fit) in [
            (f32::MIN, -largest),
            (f32::MAX, largest),
            (-3.38e38, -largest),
            (-1e9, -998_244_352.0),
            (-1e6, -1e6),
            (-65_504.0, -65_504.0),
            (1e-12, 1e-12),
            (f32::NEG_INFINITY, f32::NEG_INFINITY),
        ] {
            let mut graph = [&[7; 3], &number.to_le_bytes()[..]].concat();
            fit_for_bf16(&mut graph, &[3, 5, 1_000, u64::MAX]);
            assert_eq!(graph, [&[7; 3], &fit.to_le_bytes()[..]].concat(), "{number}");
            assert_eq!(is_unfit_for_bf16(number), fit.to_bits() != number.to_bits(), "{number}");
        }
    }
}
