//! What spans models and grains: changes of which model a vector counts for, and what they would do.
//!
//! Owns the work that embeds stored texts anew to prove, to compare or to change something. It refuses to know HTTP and
//! SQL. Start at [`reembed`], then [`adopt`] and [`compare`].

pub mod adopt;
pub mod compare;
pub mod reembed;
pub mod switch;

pub use adopt::{AdoptError, AdoptRequest, Adoption, AdoptionCount};
pub use reembed::{ReembedError, ReembedRequest, ReembeddingStatus, Reembeddings, ReembeddingsParts};
pub use switch::{Bring, Place, Switched, switch};
