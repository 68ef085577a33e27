//! Connections: how many there are at once, how long one may keep the server waiting, and how they end.
//!
//! Takes connections until it is told to stop, then waits for those that there are. A connection that keeps silent is
//! closed: it has a short time for each head of a request, a long one between two requests, and no limit while a request
//! is being answered and the answer is taken, or while its body is still read. What the system does not give (a file
//! descriptor, say) is waited for; it never ends the server.

mod accept;
mod activity;
pub mod files;
mod rest;
mod tls;

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, Version, header};
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use self::accept::{Accepted, Door};
use self::activity::{Activity, Answer, Arriving, Begun, MAX_PIECE_BYTES, Silence, Watched};
use self::rest::Rest;
pub use self::tls::{Ending, Tls, TlsError, TlsFiles};
use super::crowd::Crowd;
use super::forwarded::Peer;
use crate::shutdown::Shutdown;

/// The largest head of a request, in bytes. Hyper answers 431 beyond it.
const MAX_HEAD_BYTES: u32 = 64 << 10;

/// The most requests at once on one HTTP/2 connection. Each holds a place of `server.max_concurrent_requests`: with
/// hyper's 200 a handful of connections would have all of them.
const MAX_STREAMS: u32 = 64;

/// So many connections at once take some 20 MiB.
const CROWD: u64 = 1_000;

/// The system takes no more of an answer while so much of what it has taken waits to be sent. Left alone, it takes megabytes,
/// and then nothing for as long as a slow caller needs for a third of them: as if nobody took anything.
#[cfg(target_os = "linux")]
const MAX_UNSENT_BYTES: u32 = 128 << 10;

/// How long connections are still taken that the system has accepted on the server's behalf when it stops: requests may
/// have come on them.
const LAST_ACCEPTS: Duration = Duration::from_millis(50);

/// How long a connection on which no request has come yet is left open when the server stops, for one that is on its way.
const LAST_HEADS: Duration = Duration::from_secs(1);

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

/// Serves connections until the shutdown begins, then finishes those that there are. While the server is leaving, each
/// connection ends with its next answer.
pub async fn serve(listener: TcpListener, serving: Serving, shutdown: Shutdown) {
    let connections = TaskTracker::new();
    let mut door = Door::new(listener, serving.limits.max_connections);
    let crowd = Arc::new(Crowd::of(CROWD));
    let take = |accepted: Accepted| {
        let (serving, shutdown) = (serving.clone(), shutdown.clone());
        let (tracker, its_crowd) = (connections.clone(), Arc::clone(&crowd));
        connections.spawn(async move {
            welcome(accepted.stream, accepted.peer, serving, shutdown).await;
            drop(accepted.place);
            its_crowd.went(tracker.len() as u64 - 1).await;
        });
        crowd.came(connections.len() as u64);
    };
    while let Some(accepted) = shutdown.soft().run_until_cancelled(door.next()).await {
        take(accepted);
    }
    let end = Instant::now() + LAST_ACCEPTS;
    while let Ok(accepted) = tokio::time::timeout_at(end, door.next()).await {
        take(accepted);
    }
    // From here on nobody can connect.
    drop(door);
    connections.close();
    connections.wait().await;
}

/// Serves one connection to its end, inside TLS where there is a certificate.
async fn welcome(stream: TcpStream, peer: IpAddr, serving: Serving, shutdown: Shutdown) {
    let Serving { router, limits, tls } = serving;
    // Small answers must not wait for the acknowledgement of the last ones.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection keeps Nagle's algorithm");
    }
    #[cfg(target_os = "linux")]
    if let Err(error) = socket2::SockRef::from(&stream).set_tcp_notsent_lowat(MAX_UNSENT_BYTES) {
        tracing::debug!(%error, "a connection shows late that its answer is taken");
    }
    let Some(tls) = tls else { return carry(stream, peer, router, limits, shutdown).await };
    let shaken = shutdown.soft().run_until_cancelled(tls.shake_hands(stream, limits.header_timeout)).await;
    if let Some(Some(stream)) = shaken {
        carry(stream, peer, router, limits, shutdown).await;
    }
}

/// Serves one connection to its end.
async fn carry<S>(stream: S, peer: IpAddr, router: Router, limits: ConnectionLimits, shutdown: Shutdown)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let opened = Instant::now();
    let activity = Arc::new(Activity::new(opened));
    let io = TokioIo::new(Watched::new(stream, Arc::clone(&activity)));
    let router = TowerToHyperService::new(router);
    let service = {
        let (activity, shutdown) = (Arc::clone(&activity), Arc::new(shutdown.clone()));
        service_fn(move |mut request: Request<Incoming>| {
            let version = request.version();
            let begun = activity.begin(version);
            request.extensions_mut().insert(Peer(peer));
            let (request, rest) = rest::keep(request);
            let request = request.map(|body| Arriving::new(body, &begun));
            let (answer, shutdown) = (router.call(request), Arc::clone(&shutdown));
            async move {
                let Ok(mut response) = answer.await;
                read_to_end(rest, &begun, &shutdown);
                // HTTP/2 knows no such header: its connections are told when the shutdown begins.
                if shutdown.leaving().is_cancelled() && version != Version::HTTP_2 {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response.map(|body| Answer::new(body, begun)))
            }
        })
    };
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().max_buf_size(MAX_HEAD_BYTES as usize);
    builder.http2().max_header_list_size(MAX_HEAD_BYTES).max_concurrent_streams(MAX_STREAMS);
    // What waits in hyper for a client that does not read holds no place. A stream takes a piece while it has less than
    // this, so that two pieces may wait; with hyper's 400 KiB most answers would be there whole.
    builder.http2().max_send_buf_size(MAX_PIECE_BYTES);
    let mut connection = pin!(builder.serve_connection(io, service));
    let mut stopping = pin!(shutdown.soft().cancelled());
    let mut look = pin!(tokio::time::sleep_until(opened + limits.header_timeout));
    let mut ending = None;
    loop {
        let silence = activity.silence();
        let end = end_of(silence, &limits, ending);
        // A look is never put off, but may be in vain: most requests then leave the timer alone.
        if end < look.deadline() || look.is_elapsed() {
            look.as_mut().reset(end);
        }
        tokio::select! {
            // First what has come: a request that came in time is not cut off by a time that is over.
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(error, "a connection broke off");
                }
                return;
            }
            () = last_request(stopping.as_mut(), silence), if ending.is_none() => {
                ending = Some(Instant::now());
                connection.as_mut().graceful_shutdown();
            }
            () = activity.changed() => {}
            () = look.as_mut() => {
                // Something may have come at the last moment.
                if silence.is_none() || Instant::now() < end || activity.silence() != silence {
                    continue;
                }
                if matches!(silence, Some(Silence::Unread(_))) {
                    let Some(are_others) = activity.give_up_unread(limits.body_timeout) else { continue };
                    tracing::info!(
                        %peer,
                        "an answer was given up: nobody took any of it for {} s (`server.body_timeout`)",
                        limits.body_timeout.as_secs_f64()
                    );
                    if are_others {
                        // Its stream is taken until the client takes the rest: who asks more is to open another connection.
                        if ending.is_none() {
                            ending = Some(Instant::now());
                            connection.as_mut().graceful_shutdown();
                        }
                        continue;
                    }
                }
                // Who is between two requests is told; who is in the middle of a head, or does not listen, is left.
                if ending.is_some() || !matches!(silence, Some(Silence::Between(_))) {
                    tracing::debug!(?limits, "a connection was silent for too long");
                    return;
                }
                ending = Some(Instant::now());
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Reads what is left of a request that is answered, while the answer is sent.
fn read_to_end(rest: Rest, begun: &Begun, shutdown: &Shutdown) {
    let Some(left) = rest.left() else { return };
    shutdown.spawn("read the rest of a request", rest::discard(Arriving::new(left, begun)));
}

/// Ends when the shutdown begins; on a connection that owes a head, somewhat later: told to end, it would lose a request
/// that has come and is not read yet.
async fn last_request(stopping: impl Future<Output = ()>, silence: Option<Silence>) {
    stopping.await;
    if let Some(Silence::InHead(since)) = silence {
        tokio::time::sleep_until(since + LAST_HEADS).await;
    }
}

/// When the silence will have lasted too long, or it is time to look whether there is one. A connection that is ending has
/// the time of a head, from then on, to send what it still has: the client may never take it, as the rest of an answer that
/// was given up.
fn end_of(silence: Option<Silence>, limits: &ConnectionLimits, ending: Option<Instant>) -> Instant {
    match silence {
        None => Instant::now() + limits.body_timeout,
        Some(Silence::Unread(since)) => since + limits.body_timeout,
        Some(Silence::InHead(since)) => since + limits.header_timeout,
        Some(Silence::Between(since)) => match ending {
            Some(ending) => since.max(ending) + limits.header_timeout,
            None => since + limits.idle_timeout,
        },
    }
}
