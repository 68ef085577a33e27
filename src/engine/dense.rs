//! From the pooled vector to the text's: dense layers and normalisation, as pure functions over slices.
//!
//! The formulas are those of sentence-transformers (`models/Dense.py`, `models/Normalize.py`) and of `PyTorch`'s
//! `Linear` and activations.

use crate::domain::vector::normalize;
use crate::domain::{Activation, DenseShape};

/// Sums kept side by side in a product: as many as two AVX registers hold, and an order that every machine adds in.
const LANES: usize = 16;

/// A step between pooling and the cut to the length that is returned.
#[derive(Clone, Debug, PartialEq)]
pub enum Module {
    /// A dense layer.
    Dense(Dense),
    /// Scaling to length 1.
    Normalize,
}

/// A dense layer: `activation(weights · vector + bias)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Dense {
    shape: DenseShape,
    weights: Vec<f32>,
    bias: Vec<f32>,
}

/// Weights that do not have the sizes of their layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the weights are {weights} numbers and the bias {bias}, which is not what the layer's sizes say")]
pub struct DenseSizeError {
    /// Numbers in the matrix.
    pub weights: usize,
    /// Numbers in the bias.
    pub bias: usize,
}

impl Dense {
    /// A layer of these weights, `[out_features][in_features]`, and this bias, `[out_features]`, or empty without one.
    ///
    /// # Errors
    /// When a slice has another length, or the layer takes or makes nothing.
    pub fn new(shape: DenseShape, weights: Vec<f32>, bias: Vec<f32>) -> Result<Self, DenseSizeError> {
        let (n_in, n_out) = (shape.in_features as usize, shape.out_features as usize);
        let fits = n_in > 0
            && n_out > 0
            && n_in.checked_mul(n_out) == Some(weights.len())
            && bias.len() == if shape.bias { n_out } else { 0 };
        if fits {
            Ok(Self { shape, weights, bias })
        } else {
            Err(DenseSizeError { weights: weights.len(), bias: bias.len() })
        }
    }

    /// The layer's answer, `[out_features]`, to a vector of `in_features` numbers.
    #[must_use]
    pub fn apply(&self, vector: &[f32]) -> Vec<f32> {
        debug_assert_eq!(vector.len(), self.shape.in_features as usize);
        let products = self.weights.chunks_exact(self.shape.in_features as usize).map(|row| dot(row, vector));
        let mut out: Vec<f32> = products.collect();
        for (sum, bias) in out.iter_mut().zip(&self.bias) {
            *sum += bias;
        }
        for value in &mut out {
            *value = activate(self.shape.activation, *value);
        }
        out
    }
}

/// Puts a pooled vector through the modules in their order.
#[must_use]
pub fn apply_all(modules: &[Module], mut vector: Vec<f32>) -> Vec<f32> {
    for module in modules {
        match module {
            Module::Dense(dense) => vector = dense.apply(&vector),
            Module::Normalize => normalize(&mut vector),
        }
    }
    vector
}

/// The length of the vectors the modules take and of those they make; `None` when no dense layer decides it.
#[must_use]
pub fn sizes(modules: &[Module]) -> Option<(u32, u32)> {
    let mut layers = modules.iter().filter_map(|module| match module {
        Module::Dense(dense) => Some(dense.shape),
        Module::Normalize => None,
    });
    let first = layers.next()?;
    Some((first.in_features, layers.next_back().unwrap_or(first).out_features))
}

/// The scalar product. Its sums run side by side, so that the compiler can put them into vector registers.
fn dot(left: &[f32], right: &[f32]) -> f32 {
    let (left_chunks, left_rest) = left.as_chunks::<LANES>();
    let (right_chunks, right_rest) = right.as_chunks::<LANES>();
    let mut sums = [0.0_f32; LANES];
    for (a, b) in left_chunks.iter().zip(right_chunks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = left_rest.iter().zip(right_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

fn activate(activation: Activation, x: f32) -> f32 {
    match activation {
        Activation::Identity => x,
        Activation::Tanh => x.tanh(),
        // Not `max`, which makes a number of NaN.
        Activation::Relu => {
            if x < 0.0 {
                0.0
            } else {
                x
            }
        }
        Activation::Gelu => 0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2)),
        Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "these sums are exact")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shape(in_features: u32, out_features: u32, activation: Activation) -> DenseShape {
        DenseShape { in_features, out_features, bias: true, activation }
    }

    fn layer(activation: Activation) -> Dense {
        Dense::new(shape(2, 3, activation), vec![1.0, 2.0, 3.0, 4.0, -5.0, 6.0], vec![0.5, -20.0, 0.0]).expect("fits")
    }

    #[test]
    fn rows_of_the_matrix_are_outputs() {
        assert_eq!(layer(Activation::Identity).apply(&[1.0, 2.0]), [5.5, -9.0, 7.0]);
        assert_eq!(layer(Activation::Relu).apply(&[1.0, 2.0]), [5.5, 0.0, 7.0]);
    }

    #[test]
    fn activations_are_those_of_pytorch() {
        // What `torch.nn` answers to 0.5 and to -1.
        for (activation, half, minus_one) in [
            (Activation::Identity, 0.5, -1.0),
            (Activation::Tanh, 0.462_117_16, -0.761_594_2),
            (Activation::Relu, 0.5, 0.0),
            (Activation::Gelu, 0.345_731_23, -0.158_655_25),
            (Activation::Sigmoid, 0.622_459_35, 0.268_941_43),
        ] {
            assert!((activate(activation, 0.5) - half).abs() < 1e-6, "{activation:?}");
            assert!((activate(activation, -1.0) - minus_one).abs() < 1e-6, "{activation:?}");
        }
        assert!(activate(Activation::Relu, f32::NAN).is_nan(), "a broken number stays one");
    }

    #[test]
    fn modules_are_applied_in_their_order() {
        let dense = Module::Dense(layer(Activation::Identity));
        let before = apply_all(&[Module::Normalize, dense.clone()], vec![3.0, 4.0]);
        let after = apply_all(&[dense.clone(), Module::Normalize], vec![3.0, 4.0]);
        assert!((before[0] - (0.6 + 1.6 + 0.5)).abs() < 1e-6);
        assert!((after[0] - 11.5 / (11.5_f32.powi(2) + 5.0_f32.powi(2) + 9.0_f32.powi(2)).sqrt()).abs() < 1e-6);
        let again = Module::Dense(Dense::new(shape(3, 1, Activation::Tanh), vec![0.0; 3], vec![0.0]).expect("fits"));
        assert_eq!(sizes(&[dense.clone(), again]), Some((2, 1)));
        assert_eq!(sizes(&[Module::Normalize, dense]), Some((2, 3)));
        assert_eq!(sizes(&[Module::Normalize]), None);
    }

    #[test]
    fn weights_of_other_sizes_are_refused() {
        let identity = shape(2, 3, Activation::Identity);
        for (sizes, n_weights, n_bias) in
            [(identity, 5, 3), (identity, 6, 2), (identity, 6, 0), (shape(0, 3, Activation::Tanh), 0, 3)]
        {
            let error = Dense::new(sizes, vec![0.0; n_weights], vec![0.0; n_bias]).expect_err("refused");
            assert_eq!((error.weights, error.bias), (n_weights, n_bias));
        }
    }

    proptest! {
        #[test]
        fn the_product_is_the_sum_of_products(pairs in prop::collection::vec((-10.0_f32..10.0, -10.0_f32..10.0), 1..100)) {
            let (left, right): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let exact: f64 = left.iter().zip(&right).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            prop_assert!((f64::from(dot(&left, &right)) - exact).abs() < 1e-2);
        }
    }
}
