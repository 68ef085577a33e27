//! Granary: text embeddings from several models in one process, and a store that knows what made each vector.
//!
//! Modules depend on each other in one direction, which a test holds (`tests/it/arrows.rs`):
//!
//! ```text
//! api ► change ► grains ► models ► engine ► domain        an arrow allows everything to its right
//! ```
//!
//! | module | owns |
//! |---|---|
//! | [`domain`] | the words: models, spaces, grains |
//! | [`engine`] | text in, vectors out: tokenizer, queue, ONNX Runtime, pooling |
//! | [`models`] | which model, in what state; the fingerprint of its space |
//! | [`grains`] | text records with their vectors: the database, the indexes, search |
//! | [`change`] | what spans models and grains: old vectors get their provenance, models are compared, grains re-embedded |
//! | [`api`] | HTTP: routes, errors, the OpenAPI document |
//! | [`app`] | builds everything from a configuration and runs it; only `cli` imports it |
//! | [`cli`] | the command line; it may use everything |
//! | [`auth`] | API keys: which there are, who presents one |
//! | [`config`], [`telemetry`], [`shutdown`], [`clock`], [`allocator`], [`json`], [`files`], [`ownership`], [`tls`] | leaves: settings, logs and metrics, stopping, the time, freed memory, JSON of any shape and what it costs, files that need not be there, whose a file is, `https` to others |

pub mod allocator;
pub mod api;
pub mod app;
pub mod auth;
pub mod change;
pub mod cli;
pub mod clock;
pub mod config;
pub mod domain;
pub mod engine;
pub mod files;
pub mod grains;
pub mod json;
pub mod models;
pub mod ownership;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
