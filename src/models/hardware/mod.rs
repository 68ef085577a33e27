//! What the machine has.

mod gpu;

pub use gpu::gpus;

/// What a process takes of a GPU before its first model: the CUDA context and cuBLAS's workspace.
const CUDA_CONTEXT_BYTES: u64 = 1 << 30;

/// What a model with these weights is expected to take of a GPU's memory: its weights, batches of a few times their
/// size at most, and the context. Not measured.
#[must_use]
pub fn gpu_bytes(weights_bytes: u64) -> u64 {
    CUDA_CONTEXT_BYTES.saturating_add(weights_bytes.saturating_mul(2))
}
