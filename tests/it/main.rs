//! The behaviour of Granary as its users see it: HTTP to a real server with real models and a real database.
//!
//! `make setup-test` (which `make test` calls) puts the models into `.granary/`. One file per behaviour; `helpers` starts
//! servers.

mod helpers;

mod adoption;
mod arrows;
mod attacks;
mod bad_input;
mod base_path;
mod batching;
mod broken_models;
mod chaos;
mod comparisons;
mod config_refusals;
mod cors;
mod dashboards;
mod doctor;
mod golden;
mod grain_crash;
mod grain_model;
mod grain_pages;
mod grain_search;
mod grain_transfer;
mod grains;
mod guard;
mod hardware;
mod hub;
mod hub_models;
mod keys;
mod lifecycle;
mod limits;
mod logs;
mod memory;
mod merged_search;
mod metrics;
mod models;
mod modules;
mod openai;
mod openapi;
mod poolings;
mod prompts;
mod providers;
mod reembedding_crash;
mod reembedding_load;
mod reembedding_rules;
mod reembeddings;
mod restart;
mod shutdown;
mod snapshots;
mod spaces;
mod tei;
mod under_fire;
