//! Connections: how many there are at once, how long one may keep the server waiting, and how they end.
//!
//! Takes connections until it is told to stop, then waits for those that there are. A connection that keeps silent is
//! closed: it has a short time for each head of a request, a long one between two requests, and no limit while a request
//! is being answered and the answer is taken. What the system does not give (a file descriptor, say) is waited for; it never ends the server.

mod accept;
mod activity;
mod tls;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::accept::Door;
use self::activity::{Activity, Answer, Silence, Watched};
pub use self::tls::{Tls, TlsError, TlsFiles};

/// The largest head of a request, in bytes. Hyper answers 431 beyond it.
const MAX_HEAD_BYTES: u32 = 64 << 10;

/// What connections may cost.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Connections at once.
    pub max_connections: usize,
    /// Time for the head of a request.
    pub header_timeout: Duration,
    /// Time between two requests.
    pub idle_timeout: Duration,
    /// Time in which nobody takes anything of an answer.
    pub body_timeout: Duration,
}

/// What is served, and how.
#[derive(Clone)]
pub struct Serving {
    /// What answers requests.
    pub router: Router,
    /// What connections may cost.
    pub limits: ConnectionLimits,
    /// The certificate; `None` for plain HTTP.
    pub tls: Option<Arc<Tls>>,
}

/// Serves connections until `stop`, then finishes those that there are.
pub async fn serve(listener: TcpListener, serving: Serving, stop: CancellationToken) {
    let connections = TaskTracker::new();
    let mut door = Door::new(listener, serving.limits.max_connections);
    while let Some(accepted) = stop.run_until_cancelled(door.next()).await {
        let (serving, stop) = (serving.clone(), stop.clone());
        connections.spawn(async move {
            welcome(accepted.stream, serving, stop).await;
            drop(accepted.place);
        });
    }
    // From here on nobody can connect.
    drop(door);
    connections.close();
    connections.wait().await;
}

/// Serves one connection to its end, inside TLS where there is a certificate.
async fn welcome(stream: TcpStream, serving: Serving, stop: CancellationToken) {
    let Serving { router, limits, tls } = serving;
    // Small answers must not wait for the acknowledgement of the last ones.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection keeps Nagle's algorithm");
    }
    let Some(tls) = tls else { return carry(stream, router, limits, stop).await };
    let shaken = stop.run_until_cancelled(tls.shake_hands(stream, limits.header_timeout)).await;
    if let Some(Some(stream)) = shaken {
        carry(stream, router, limits, stop).await;
    }
}

/// Serves one connection to its end.
async fn carry<S>(stream: S, router: Router, limits: ConnectionLimits, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = Arc::new(Activity::new(Instant::now()));
    let io = TokioIo::new(Watched::new(stream, Arc::clone(&activity)));
    let router = TowerToHyperService::new(router);
    let service = {
        let activity = Arc::clone(&activity);
        service_fn(move |request: Request<Incoming>| {
            let begun = activity.begin(request.version());
            let answer = router.call(request);
            async move {
                let Ok(response) = answer.await;
                Ok::<_, Infallible>(response.map(|body| Answer::new(body, begun)))
            }
        })
    };
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().max_buf_size(MAX_HEAD_BYTES as usize);
    builder.http2().max_header_list_size(MAX_HEAD_BYTES);
    let mut connection = pin!(builder.serve_connection(io, service));
    let mut is_ending = false;
    loop {
        let silence = activity.silence();
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(error, "a connection broke off");
                }
                return;
            }
            () = stop.cancelled(), if !is_ending => {
                is_ending = true;
                connection.as_mut().graceful_shutdown();
            }
            () = activity.changed() => {}
            () = until(silence, &limits, is_ending) => {
                // Something may have come at the last moment.
                if silence.is_none() || activity.silence() != silence {
                    continue;
                }
                // Who is between two requests is told; who is in the middle of a head, or does not listen, is left.
                if is_ending || !matches!(silence, Some(Silence::Between(_))) {
                    tracing::debug!(?limits, "a connection was silent for too long");
                    return;
                }
                is_ending = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Ends when the silence has lasted too long, or it is time to look whether there is one. A connection that is ending has
/// the time of a head in addition, to send what it still has.
async fn until(silence: Option<Silence>, limits: &ConnectionLimits, is_ending: bool) {
    let end = match silence {
        None => Instant::now() + limits.body_timeout,
        Some(Silence::Unread(since)) => since + limits.body_timeout,
        Some(Silence::InHead(since)) => since + limits.header_timeout,
        Some(Silence::Between(since)) if is_ending => since + limits.idle_timeout + limits.header_timeout,
        Some(Silence::Between(since)) => since + limits.idle_timeout,
    };
    tokio::time::sleep_until(end).await;
}
