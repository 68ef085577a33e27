//! What the machine has, and which model suits it best.
//!
//! Owns the probe of this machine ([`Machine::probe`], and [`cores()`] alone), the estimate of what a model costs on it
//! ([`Footprint`]), and the choice with its reasons ([`rank()`], a pure function). [`Selector`] puts them together for the
//! models of a catalog. It loads no model and fetches nothing. Start at [`rank()`].

mod cgroup;
mod footprint;
mod gpu;
mod probe;
mod rank;
mod selector;

pub use footprint::{Footprint, Running, libraries_bytes};
pub use gpu::gpus;
pub(super) use probe::bytes_of;
pub use probe::{Machine, Memory, cores};
pub use rank::{Candidate, Files, RankFacts, Ranked, rank};
pub use selector::{RuntimeFacts, Selection, Selector};
