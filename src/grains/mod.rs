//! Grains: small text records, each kept with its vector and the knowledge of which model made it.
//!
//! Owns what is stored. It refuses to know HTTP, and leaves switching models and re-embedding to `change`. Start at
//! [`store`], and at [`index`] for how the nearest vectors are found.

pub mod index;
pub mod store;
