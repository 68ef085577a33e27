//! What a model is expected to take, and how fast a machine is expected to run it, before it is loaded.
//!
//! Estimates with their measurements beside them. They decide between models that differ by factors, not by percents.

use crate::domain::Provider;
use crate::engine::{CpuFeature, CpuFeatures};

const MIB: u64 = 1 << 20;

/// Rows of the embedding table of the usual English encoders: weights that multiply nothing.
const USUAL_VOCABULARY: u64 = 30_522;

/// Dimensions of one attention head in the usual encoders.
const USUAL_HEAD: u64 = 64;

/// Batches at once when the estimate was fitted.
const WORKERS_OF_THE_FIT: u64 = 2;

/// What the provider's own libraries take beside the runtime's.
#[must_use]
pub fn libraries_bytes(provider: Provider) -> u64 {
    if provider == Provider::OpenVino { 48 * MIB } else { 0 }
}

/// What of a model decides its cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Its weight files.
    pub weights_bytes: u64,
    /// What of them the runtime is expected to map: what lies outside the graph that it is given.
    pub mapped_bytes: u64,
    /// The longest text it takes.
    pub max_tokens: u32,
    /// The length of its vectors, which is that of its token vectors.
    pub dimensions: u32,
}

/// What of the way it is run decides it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// Copies of its weights.
    pub copies: u64,
    /// Batches that run at once, but for lone queries.
    pub workers: usize,
    /// Padded tokens in one batch.
    pub max_batch_tokens: usize,
    /// Texts in one batch.
    pub max_batch_texts: usize,
}

impl Running {
    /// Whether lone queries have a session of their own, on the second copy of the weights.
    #[must_use]
    pub fn has_query_lane(self) -> bool {
        self.copies > 1
    }
}

impl Footprint {
    /// Memory it takes once it serves, beside the libraries that run it.
    ///
    /// Fitted to `all-MiniLM-L6-v2` (87 MiB of weights) on two cores, beside 57 MiB of a process without a model on `cpu`
    /// and 105 on `openvino`: on `cpu` 135 MiB with one copy and 225 with two, on `openvino` 200 and 350, and 155 and 265
    /// where the weights are mapped. The batches of those two workers are in there; those of further
    /// ones are added, by calculation.
    #[must_use]
    pub fn bytes(self, provider: Provider, running: Running) -> u64 {
        let weights = self.weights_bytes.saturating_mul(running.copies);
        let rest = match provider {
            Provider::Cpu => 48 * MIB,
            // It keeps 1.4 bytes of a byte within the graph.
            Provider::OpenVino => {
                let within = self.weights_bytes.saturating_sub(self.mapped_bytes).saturating_mul(running.copies);
                (80 * MIB).saturating_add(within / 5 * 2)
            }
            Provider::Cuda => return self.gpu_bytes(),
        };
        let further_workers = (running.workers as u64).saturating_sub(WORKERS_OF_THE_FIT);
        let batches = self.batch_bytes(running).saturating_mul(further_workers);
        weights.saturating_add(rest).saturating_add(batches).saturating_add(self.attention_bytes())
    }

    /// A batch of ordinary texts in the widest part of a layer: token vectors in fp32, and others of four times their
    /// length before and after the activation.
    fn batch_bytes(self, running: Running) -> u64 {
        let most_of_texts = (running.max_batch_texts as u64).saturating_mul(u64::from(self.max_tokens));
        let tokens = most_of_texts.min(running.max_batch_tokens as u64);
        tokens.saturating_mul(u64::from(self.dimensions)).saturating_mul((1 + 4 + 4) * 4)
    }

    /// Memory it takes of a GPU: weights, batches, the CUDA context and cuBLAS's workspace. Not measured.
    #[must_use]
    pub fn gpu_bytes(self) -> u64 {
        (1024 * MIB).saturating_add(self.weights_bytes.saturating_mul(2)).saturating_add(self.attention_bytes())
    }

    /// Memory it takes beside a GPU: the file while it is read, and CUDA's libraries. Not measured.
    #[must_use]
    pub fn bytes_beside_gpu(self) -> u64 {
        (512 * MIB).saturating_add(self.weights_bytes)
    }

    /// The scores of each token with each other, in fp32, before and after the softmax, for one text of the greatest
    /// length: 6 MiB at 256 tokens and 6 GiB at 8192.
    fn attention_bytes(self) -> u64 {
        let heads = (u64::from(self.dimensions) / USUAL_HEAD).max(1);
        let tokens = u64::from(self.max_tokens);
        tokens.saturating_mul(tokens).saturating_mul(heads * 8)
    }

    /// Tokens a second in bulk, roughly: two operations for each weight that multiplies.
    #[must_use]
    pub fn tokens_per_second(self, provider: Provider, features: CpuFeatures, cores: usize) -> u64 {
        let n_weights = self.weights_bytes / 4;
        let looked_up = USUAL_VOCABULARY * u64::from(self.dimensions);
        let multiplied = n_weights.saturating_sub(looked_up).max(n_weights / 4).max(1);
        // More cores wait for memory instead.
        let cores = cores.min(32) as u64;
        let gigaflops = match provider {
            // Assumed: a small part of what any GPU of a server has.
            Provider::Cuda => 20_000,
            Provider::Cpu | Provider::OpenVino => gigaflops_of_a_core(provider, features) * cores,
        };
        gigaflops * 1_000_000_000 / (2 * multiplied)
    }
}

/// Measured with `all-MiniLM-L6-v2` where a comment says so; the others by the width of their products.
fn gigaflops_of_a_core(provider: Provider, features: CpuFeatures) -> u64 {
    let bf16 = provider == Provider::OpenVino;
    let rates = [
        // Measured: 43,000 tokens/s on two cores.
        (bf16 && features.has(CpuFeature::AmxBf16), 450),
        // Measured: twice the texts a second of fp32.
        (bf16 && features.has(CpuFeature::Avx512Bf16), 230),
        // Measured: 10,900 tokens/s on two cores.
        (features.has(CpuFeature::Avx512f), 115),
        (features.has(CpuFeature::Avx2), 55),
        (features.has(CpuFeature::Neon), 20),
    ];
    rates.iter().find(|(has, _)| *has).map_or(8, |(_, rate)| *rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: Footprint = Footprint { weights_bytes: 87 * MIB, mapped_bytes: 0, max_tokens: 256, dimensions: 384 };
    const TWO_WORKERS: Running = Running { copies: 1, workers: 2, max_batch_tokens: 512, max_batch_texts: 32 };

    #[test]
    fn each_further_worker_takes_a_batch_and_no_longest_text() {
        for provider in [Provider::Cpu, Provider::OpenVino] {
            let bytes = |running| MODEL.bytes(provider, running);
            let two = bytes(TWO_WORKERS);
            assert_eq!(bytes(Running { workers: 1, ..TWO_WORKERS }), two);
            assert_eq!(bytes(Running { workers: 32, ..TWO_WORKERS }) - two, 30 * 512 * 384 * 36);
            // No batch is larger than its texts.
            let large = Running { workers: 3, max_batch_tokens: 1 << 20, ..TWO_WORKERS };
            assert_eq!(bytes(large) - two, 32 * 256 * 384 * 36);
        }
    }
}
