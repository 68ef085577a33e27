//! Why a server cannot be built or run.

use crate::api::connections::TlsError;
use crate::api::timeouts::UnknownRoute;
use crate::auth::KeyFileError;
use crate::grains::GrainError;
use crate::grains::store::StoreError;
use crate::models::hub::HubError;
use crate::models::{CatalogError, LedgerError, ModelError};
use crate::telemetry::MetricsError;
use crate::telemetry::traces::TracesError;

/// Why a server cannot be built or run.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The configured models make no catalog.
    #[error("the configuration is refused:\n  {origin}")]
    Catalog {
        /// The file, variable or flag that says so.
        origin: String,
        /// The setting, and what is wrong with it.
        source: CatalogError,
    },
    /// The file of keys.
    #[error("the keys cannot be used")]
    Keys(#[from] KeyFileError),
    /// An open port is a decision, not an accident: beyond loopback it must be written down.
    #[error(
        "the configuration is refused:\n  {origin}: server.host: found {host:?}, which other machines can reach, and there \
         is no key; make one with `granary keys add`, or listen on a loopback address such as \"127.0.0.1\", or set \
         `auth.disabled = true` (GRANARY_AUTH__DISABLED=true) where a reverse proxy or a private network keeps strangers out"
    )]
    OpenPort {
        /// The file, variable or flag that says so.
        origin: String,
        /// The host.
        host: String,
    },
    /// A time for a route that there is not.
    #[error("the configuration is refused:\n  {origin}: server.route_timeouts")]
    Route {
        /// The file, variable or flag that says so.
        origin: String,
        /// What is no route.
        source: UnknownRoute,
    },
    /// The certificate.
    #[error("TLS cannot be served")]
    Tls(#[from] TlsError),
    /// The database.
    #[error("the database cannot be used")]
    Store(#[from] StoreError),
    /// The grains in it.
    #[error("the grains cannot be served")]
    Grains(#[from] GrainError),
    /// The record of what survives a restart.
    #[error("the active model of the last run cannot be known")]
    Ledger(#[from] LedgerError),
    /// A variable that says which hub models come from.
    #[error("the hub cannot be used")]
    Hub(#[source] HubError),
    /// A model with `auto_load`.
    #[error("a model with `auto_load = true` does not load")]
    AutoLoad(#[source] ModelError),
    /// The metrics recorder.
    #[error("metrics cannot be recorded")]
    Metrics(#[from] MetricsError),
    /// The exporter of traces.
    #[error("traces cannot be sent")]
    Traces(#[from] TracesError),
    /// The listening socket.
    #[error("cannot listen on {host}:{port}, which `server.host` and `server.port` say")]
    Bind {
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The server ended by itself.
    #[error("the server stopped")]
    Serve(#[source] std::io::Error),
    /// The time to stop was over, or a second signal came.
    #[error("stopped, but not in order: {} still running", .0.join(", "))]
    Unfinished(Vec<&'static str>),
}
