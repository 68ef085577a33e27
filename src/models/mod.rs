//! Which model, in what state.
pub mod ledger;
