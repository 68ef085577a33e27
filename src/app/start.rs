//! From a configuration to a server that can run, unless a signal ends the process before.

use std::net::SocketAddr;

use tokio::net::TcpListener;

use super::{App, AppError, keys};
use crate::api::connections;
use crate::config::Config;
use crate::shutdown::{Shutdown, Signals, exit_at_once};
use crate::telemetry;

/// Opens the port and builds the server. A signal ends the process at once, with exit status 0: nobody was served yet.
///
/// # Errors
/// [`AppError::Bind`], what stands against the keys, or as [`App::build`].
pub async fn start(config: Config, shutdown: Shutdown, signals: &mut Signals) -> Result<(App, TcpListener), AppError> {
    let mut opening = Box::pin(open(config, shutdown));
    tokio::select! {
        biased;
        opened = &mut opening => opened,
        signal = signals.recv() => {
            // Nothing is lost, whatever the start was at. Each schema migration is one transaction, and the next start
            // goes on from the version that it finds, as it does with the index of words, which it begins anew; a copy of
            // the database and a file of a hub get their names when they are whole; indexes that were saved are believed
            // until all of them are ready.
            tracing::info!(signal, "stopped before it served; the next start goes on where this one was");
            telemetry::flush_log();
            // With the start still there: it holds the lock of the database, where a thread of SQLite, which nobody can
            // interrupt, may write for as long as the process lives.
            exit_at_once(0)
        }
    }
}

async fn open(config: Config, shutdown: Shutdown) -> Result<(App, TcpListener), AppError> {
    let (listener, address) = bind(&config).await?;
    let app = App::build(config, shutdown).await?;
    tracing::info!("serving on {}://{address}", app.scheme());
    Ok((app, listener))
}

/// Opens the socket that the configuration names. No port is opened without the keys that it needs.
async fn bind(config: &Config) -> Result<(TcpListener, SocketAddr), AppError> {
    keys(config)?;
    connections::files::raise_limit(config.server.max_connections);
    let (host, port) = (config.server.host.as_str(), config.server.port);
    let refused = |source| AppError::Bind { host: host.to_owned(), port, source };
    let listener = TcpListener::bind((host, port)).await.map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    Ok((listener, address))
}
