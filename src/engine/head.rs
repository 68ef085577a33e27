//! From the graph's output to one text's vector: pooling, the modules behind it, the cut, the scaling to length 1.

use std::sync::Arc;
use std::time::Duration;

use super::dense::{self, Module};
use super::error::EngineError;
use super::job::Finish;
use super::pooling::pool;
use super::queue::BatchItem;
use super::session::RunOutput;
use crate::domain::Pooling;
use crate::domain::vector::normalize;

/// What a model does to its graph's output.
#[derive(Clone, Debug)]
pub(super) struct Head {
    /// How token vectors become one; `None` when the graph has pooled already.
    pub(super) pooling: Option<Pooling>,
    /// What is done to that vector. Mostly nothing.
    pub(super) modules: Arc<[Module]>,
}

impl Head {
    /// Makes the vector of each text of a batch, and hands them over.
    pub(super) fn finish_batch(
        &self,
        items: &[BatchItem],
        output: &RunOutput<'_>,
        width: usize,
        elapsed: Duration,
    ) -> Result<(), EngineError> {
        let (dimensions, row_values) = (output.dimensions, self.row_values(output, width));
        // All are checked before any is handed over: a batch that is tried again must not complete a text twice.
        let vector_of = |(position, item): (usize, &BatchItem)| {
            let row = &output.values[position * row_values..(position + 1) * row_values];
            let vector = self.vector(row, dimensions, item.ids().len(), item.job.finish);
            vector.map_err(|found| EngineError::NotANumber { index: item.index, found })
        };
        let vectors: Vec<Vec<f32>> = items.iter().enumerate().map(vector_of).collect::<Result<_, _>>()?;
        let share = elapsed.div_f64(items.len() as f64);
        for (item, vector) in items.iter().zip(vectors) {
            item.job.complete(item.index, share, |slot| slot.copy_from_slice(&vector));
        }
        Ok(())
    }

    /// The vector of a batch's first text, of so many tokens, uncut and unscaled; or the first number on the way to it that
    /// is none.
    pub(super) fn first(&self, output: &RunOutput<'_>, width: usize, n_tokens: usize) -> Result<Vec<f32>, f32> {
        let finish = Finish { dimensions: usize::MAX, normalize: false };
        self.vector(&output.values[..self.row_values(output, width)], output.dimensions, n_tokens, finish)
    }

    /// Numbers that the graph gives for each text.
    fn row_values(&self, output: &RunOutput<'_>, width: usize) -> usize {
        if self.pooling.is_some() { width * output.dimensions } else { output.dimensions }
    }

    /// The vector of one text, or the first number on the way to it that is none.
    ///
    /// `row` is `[width][dimensions]`, of which the first `n_tokens` are real, or `[dimensions]` where the graph pools.
    fn vector(&self, row: &[f32], dimensions: usize, n_tokens: usize, finish: Finish) -> Result<Vec<f32>, f32> {
        // What will be cut off need not be pooled, unless a module makes something of it.
        let n_pooled = if self.modules.is_empty() { finish.dimensions.min(dimensions) } else { dimensions };
        let mut vector = match self.pooling {
            Some(pooling) => {
                let mut vector = vec![0.0; n_pooled];
                pool(row, dimensions, n_tokens, pooling, &mut vector);
                vector
            }
            None => row[..n_pooled].to_vec(),
        };
        check_finite(&vector)?;
        if !self.modules.is_empty() {
            // Checked before, too: the activations make a good number of infinity.
            vector = dense::apply_all(&self.modules, vector);
            vector.truncate(finish.dimensions);
            check_finite(&vector)?;
        }
        if finish.normalize {
            normalize(&mut vector);
        }
        Ok(vector)
    }
}

fn check_finite(vector: &[f32]) -> Result<(), f32> {
    vector.iter().copied().find(|value| !value.is_finite()).map_or(Ok(()), Err)
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "these sums are exact")]
mod tests {
    use super::*;
    use crate::domain::{Activation, DenseShape};
    use crate::engine::Dense;

    const ROW: [f32; 6] = [1.0, 2.0, 3.0, 4.0, 9.0, 9.0];

    fn head(activation: Activation) -> Head {
        let shape = DenseShape { in_features: 2, out_features: 3, bias: false, activation };
        let dense = Dense::new(shape, vec![1.0, 0.0, 0.0, 2.0, 1.0, 1.0], vec![]).expect("fits");
        Head { pooling: Some(Pooling::Mean), modules: Arc::new([Module::Dense(dense)]) }
    }

    #[test]
    fn the_cut_and_the_scaling_come_last() {
        let finish = Finish { dimensions: 3, normalize: false };
        assert_eq!(head(Activation::Identity).vector(&ROW, 2, 2, finish), Ok(vec![2.0, 6.0, 5.0]));
        let cut = Finish { dimensions: 1, normalize: true };
        assert_eq!(head(Activation::Identity).vector(&ROW, 2, 2, cut), Ok(vec![1.0]));
        let plain = Head { pooling: None, modules: Arc::new([]) };
        assert_eq!(plain.vector(&[5.0, 6.0], 2, 1, Finish { dimensions: 1, normalize: false }), Ok(vec![5.0]));
    }

    #[test]
    fn an_activation_hides_no_broken_number() {
        let finish = Finish { dimensions: 3, normalize: true };
        let broken = [f32::INFINITY, 2.0, 3.0, 4.0];
        assert_eq!(head(Activation::Tanh).vector(&broken, 2, 2, finish), Err(f32::INFINITY));
        let huge = [f32::MAX; 4];
        assert_eq!(head(Activation::Identity).vector(&huge, 2, 1, finish), Err(f32::INFINITY));
    }
}
