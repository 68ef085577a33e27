//! Closed-loop load: a number of clients, each of which sends its next request when it has the answer to the last.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use tokio::task::JoinSet;

use super::client::{Connection, Reply};
use super::corpus::Feed;
use super::server::{Dialect, Server};

/// A client that was refused waits this long, so that it does not spin.
const PAUSE_AFTER_REFUSAL: Duration = Duration::from_millis(10);
/// However slow the server is, each client counts as many requests.
const LEAST_COUNTED: usize = 2;
/// A number of a vector in JSON has at least two characters with its comma, and at most about thirty.
const BYTES_PER_NUMBER: std::ops::Range<usize> = 2..32;
const DIMENSIONS: usize = 384;

/// Where requests go and in which shape.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The server's address.
    pub address: SocketAddr,
    /// Its shape of requests.
    pub dialect: Dialect,
}

impl From<&Server> for Target {
    fn from(server: &Server) -> Self {
        Self { address: server.address, dialect: server.dialect() }
    }
}

/// Clients and how long they go on.
#[derive(Clone, Copy, Debug)]
pub struct ClosedLoop {
    /// Clients, each with a connection of its own.
    pub n_clients: usize,
    /// Texts in a request.
    pub texts_per_request: usize,
    /// Requests sent before this has passed are not counted.
    pub warm_up: Duration,
    /// How long requests are counted after that. Each client finishes its last one, and counts two at least.
    pub measured: Duration,
}

/// What the clients saw.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Texts answered in a second: the sum over the clients, each over its own time.
    pub texts_per_s: f64,
    /// Of each request that was answered 200.
    pub latencies: Vec<Duration>,
    /// Answers with status 429.
    pub n_refused: usize,
    /// Answers with another status or an implausible length, and broken connections.
    pub n_errors: usize,
    /// What the last of these was.
    pub last_error: Option<String>,
    /// Whether the texts were used up before the time was.
    pub ended_early: bool,
}

/// What an answer is worth.
pub enum Verdict {
    /// Vectors.
    Answered,
    /// 429.
    Refused,
    /// Anything else.
    Wrong(String),
}

impl Verdict {
    /// Judges by status and length, without reading the numbers.
    pub fn of(reply: Reply, n_texts: usize) -> Self {
        let n_numbers = n_texts * DIMENSIONS;
        let plausible = n_numbers * BYTES_PER_NUMBER.start..n_numbers * BYTES_PER_NUMBER.end;
        match reply.status {
            StatusCode::OK if plausible.contains(&reply.n_bytes) => Self::Answered,
            StatusCode::OK => Self::Wrong(format!("{n_texts} texts were answered with {} bytes", reply.n_bytes)),
            StatusCode::TOO_MANY_REQUESTS => Self::Refused,
            status => Self::Wrong(format!("status {status}")),
        }
    }
}

impl ClosedLoop {
    /// Runs all clients to their ends.
    pub async fn run(self, target: Target, feed: &Arc<Feed>) -> Outcome {
        let started = Instant::now();
        let mut clients = JoinSet::new();
        for _ in 0..self.n_clients {
            clients.spawn(self.client(target, Arc::clone(feed), started));
        }
        let mut total = Outcome::default();
        while let Some(client) = clients.join_next().await {
            let one = client.expect("a client does not panic");
            total.texts_per_s += one.texts_per_s;
            total.latencies.extend(one.latencies);
            total.n_refused += one.n_refused;
            total.n_errors += one.n_errors;
            total.last_error = one.last_error.or(total.last_error);
            total.ended_early |= one.ended_early;
        }
        total
    }

    async fn client(self, target: Target, feed: Arc<Feed>, started: Instant) -> Outcome {
        let mut log = Outcome::default();
        let mut connection = None;
        let (mut counted_from, mut n_counted) = (None, 0);
        while started.elapsed() < self.warm_up + self.measured || n_counted < LEAST_COUNTED {
            let Some(texts) = feed.take(self.texts_per_request) else {
                log.ended_early = true;
                break;
            };
            let body = target.dialect.body(texts);
            let sent = Instant::now();
            let reply = match &mut connection {
                Some(open) => Connection::post(open, target.dialect.path(), body).await,
                closed => match Connection::open(target.address).await {
                    Ok(open) => closed.insert(open).post(target.dialect.path(), body).await,
                    Err(failure) => Err(failure),
                },
            };
            let latency = sent.elapsed();
            let counts = sent.duration_since(started) >= self.warm_up;
            if counts {
                counted_from.get_or_insert(sent);
                n_counted += 1;
            }
            match reply.map(|reply| Verdict::of(reply, self.texts_per_request)) {
                Ok(Verdict::Answered) if counts => log.latencies.push(latency),
                Ok(Verdict::Answered) => {}
                Ok(Verdict::Refused) => {
                    log.n_refused += 1;
                    tokio::time::sleep(PAUSE_AFTER_REFUSAL).await;
                }
                Ok(Verdict::Wrong(what)) => log.fail(what),
                Err(failure) => {
                    connection = None;
                    log.fail(failure.to_string());
                    tokio::time::sleep(PAUSE_AFTER_REFUSAL).await;
                }
            }
        }
        let counted = counted_from.map_or(Duration::ZERO, |from| from.elapsed()).as_secs_f64();
        if counted > 0.0 {
            log.texts_per_s = (log.latencies.len() * self.texts_per_request) as f64 / counted;
        }
        log
    }
}

impl Outcome {
    fn fail(&mut self, what: String) {
        self.n_errors += 1;
        self.last_error = Some(what);
    }
}
