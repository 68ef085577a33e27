//! Granary: text embeddings from several models in one process, and a store that knows what made each vector.
pub mod cli;
pub mod config;
pub mod domain;
pub mod models;
pub mod shutdown;
pub mod telemetry;
