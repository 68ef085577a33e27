//! What spans models and grains: changes of which model a vector counts for.
//!
//! Owns the work that embeds stored texts anew to prove or to change something. It refuses to know HTTP and SQL. Start at
//! [`adopt`].

pub mod adopt;

pub use adopt::{AdoptError, AdoptRequest, Adoption, AdoptionCount};
