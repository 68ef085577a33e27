//! Taking connections: one after the other, as long as there is a place, and whatever the system says.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// How long the system is left alone after it has refused.
const PAUSE: Duration = Duration::from_millis(100);

/// How often the log says the same.
const SAY_EVERY: Duration = Duration::from_mins(1);

/// The listening socket, and the places there are.
pub(super) struct Door {
    listener: TcpListener,
    places: Arc<Semaphore>,
    max_connections: usize,
    full: Seldom,
    refused: Seldom,
}

/// A connection and its place, which another takes when this one is dropped.
pub(super) struct Accepted {
    pub(super) stream: TcpStream,
    pub(super) peer: IpAddr,
    pub(super) place: OwnedSemaphorePermit,
}

impl Door {
    pub(super) fn new(listener: TcpListener, max_connections: usize) -> Self {
        let places = Arc::new(Semaphore::new(max_connections));
        Self { listener, places, max_connections, full: Seldom::default(), refused: Seldom::default() }
    }

    /// The next connection. Those for which there is no place wait in the system's backlog until one ends.
    pub(super) async fn next(&mut self) -> Accepted {
        let place = self.place().await;
        loop {
            let error = match self.listener.accept().await {
                Ok((stream, peer)) => return Accepted { stream, peer: peer.ip(), place },
                Err(error) => error,
            };
            // The other side has left before its turn: that is its own business.
            if is_of_the_connection(&error) {
                continue;
            }
            if self.refused.is_due(Instant::now()) {
                tracing::error!("{}", sentence(&error));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn place(&mut self) -> OwnedSemaphorePermit {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return place;
        }
        if self.full.is_due(Instant::now()) {
            tracing::warn!(
                "there are {} connections, as many as `server.max_connections` allows: others wait until one ends",
                self.max_connections
            );
        }
        Arc::clone(&self.places).acquire_owned().await.expect("the semaphore is never closed")
    }
}

fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

fn sentence(error: &io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(Errno::MFILE | Errno::NFILE) => format!(
            "no file descriptors are left, and new connections wait: raise the limit of open files (`ulimit -n`, \
             `LimitNOFILE=`), or lower `server.max_connections` ({error})"
        ),
        _ => format!("no connection can be taken at the moment, and new ones wait: {error}"),
    }
}

/// Something that is said once in a while.
#[derive(Default)]
struct Seldom(Option<Instant>);

impl Seldom {
    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.0.is_none_or(|last| now.duration_since(last) >= SAY_EVERY);
        if is_due {
            self.0 = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once_a_minute() {
        let (mut said, now) = (Seldom::default(), Instant::now());
        assert!(said.is_due(now) && !said.is_due(now));
        assert!(!said.is_due(now + SAY_EVERY / 2));
        assert!(said.is_due(now + SAY_EVERY) && !said.is_due(now + SAY_EVERY));
    }

    #[test]
    fn a_lack_of_file_descriptors_is_named() {
        let lack = sentence(&io::Error::from(Errno::MFILE));
        assert!(lack.starts_with("no file descriptors are left") && lack.contains("ulimit -n"), "{lack}");
        assert!(!sentence(&io::Error::from(Errno::NOMEM)).contains("descriptors"));
    }
}
