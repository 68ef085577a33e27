//! What must survive a restart, as the models see it. The database implements it; tests and a server without a
//! database use [`VolatileLedger`].

use futures::future::BoxFuture;
use parking_lot::Mutex;

use crate::domain::ModelName;

/// The record of decisions that outlive the process.
pub trait Ledger: Send + Sync {
    /// The model that was active when the last process stopped; `None` on a first start.
    fn active_model(&self) -> BoxFuture<'_, Result<Option<ModelName>, LedgerError>>;

    /// Makes `name` the model the next start begins with. It is durable when the future resolves.
    fn record_active_model<'a>(&'a self, name: &'a ModelName) -> BoxFuture<'a, Result<(), LedgerError>>;

    /// Answers when the ledger can be read, for readiness.
    fn check(&self) -> BoxFuture<'_, Result<(), LedgerError>>;
}

/// The ledger could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("the ledger of models cannot be {action}")]
pub struct LedgerError {
    /// What was tried: `read` or `written`.
    pub action: &'static str,
    /// The database's own error.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Remembers until the process ends: for a server that keeps no database (`grains.enabled = false`).
#[derive(Debug, Default)]
pub struct VolatileLedger {
    active_model: Mutex<Option<ModelName>>,
}

impl Ledger for VolatileLedger {
    fn active_model(&self) -> BoxFuture<'_, Result<Option<ModelName>, LedgerError>> {
        let name = self.active_model.lock().clone();
        Box::pin(async move { Ok(name) })
    }

    fn record_active_model<'a>(&'a self, name: &'a ModelName) -> BoxFuture<'a, Result<(), LedgerError>> {
        *self.active_model.lock() = Some(name.clone());
        Box::pin(async { Ok(()) })
    }

    fn check(&self) -> BoxFuture<'_, Result<(), LedgerError>> {
        Box::pin(async { Ok(()) })
    }
}
