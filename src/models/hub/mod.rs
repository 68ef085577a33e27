//! Model files from a hub.

mod address;
mod client;
pub mod error;
pub mod redirect;
pub mod settings;
pub use client::Patience;
pub use error::HubError;
