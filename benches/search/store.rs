//! Grains through HTTP, as the benchmarks write and search them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::Failure;
use crate::support::client::Connection;

/// Grains of one request.
pub const BATCH: usize = 256;

/// What a body of requests took.
pub struct Sent {
    /// Each request's time.
    pub latencies: Vec<Duration>,
    /// On the clock.
    pub elapsed: Duration,
}

/// Posts JSON, and returns what is answered with a success.
pub async fn post(connection: &mut Connection, path: &str, body: Bytes) -> Result<Value, Failure> {
    let (status, answer) = connection.send_and_keep(Method::POST, path, body).await?;
    if !status.is_success() {
        return Err(format!("POST {path} was answered {status}: {}", String::from_utf8_lossy(&answer)).into());
    }
    Ok(serde_json::from_slice(&answer)?)
}

/// Declares a space, and returns its id.
pub async fn declare(address: SocketAddr, dimensions: usize) -> Result<String, Failure> {
    let body = json!({"name": "benchmark", "dimensions": dimensions}).to_string();
    let space = post(&mut Connection::open(address).await?, "/spaces", body.into()).await?;
    Ok(space["id"].as_str().ok_or("a space without an id")?.to_owned())
}

/// The numbers of the grains that a search finds, best first: their ids are numbers here.
pub async fn found(connection: &mut Connection, body: Bytes) -> Result<Vec<i64>, Failure> {
    let answer = post(connection, "/grains/search", body).await?;
    let hits = answer["hits"].as_array().ok_or("an answer without `hits`")?;
    let id = |hit: &Value| Ok(hit["grain"]["id"].as_str().ok_or("a grain without an id")?.parse()?);
    hits.iter().map(id).collect()
}

/// Sends each of the bodies once, by so many callers at a time.
pub async fn send_all(
    address: SocketAddr,
    path: &'static str,
    bodies: Vec<Bytes>,
    n_callers: usize,
) -> Result<Sent, Failure> {
    let n = bodies.len();
    send(address, path, bodies, n_callers, move |at| at < n).await
}

/// Sends the bodies again and again for so long.
pub async fn send_for(
    address: SocketAddr,
    path: &'static str,
    bodies: Vec<Bytes>,
    n_callers: usize,
    time: Duration,
) -> Result<Sent, Failure> {
    let deadline = Instant::now() + time;
    send(address, path, bodies, n_callers, move |_| Instant::now() < deadline).await
}

async fn send(
    address: SocketAddr,
    path: &'static str,
    bodies: Vec<Bytes>,
    n_callers: usize,
    goes_on: impl Fn(usize) -> bool + Clone + Send + 'static,
) -> Result<Sent, Failure> {
    let (bodies, next, started) = (Arc::new(bodies), Arc::new(AtomicUsize::new(0)), Instant::now());
    let mut callers = JoinSet::new();
    for _ in 0..n_callers {
        let (bodies, next, goes_on) = (Arc::clone(&bodies), Arc::clone(&next), goes_on.clone());
        callers.spawn(async move {
            let mut connection = Connection::open(address).await?;
            let mut latencies = Vec::new();
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if !goes_on(at) {
                    return Ok::<_, Failure>(latencies);
                }
                let sent = Instant::now();
                let reply = connection.post(path, bodies[at % bodies.len()].clone()).await?;
                if !matches!(reply.status, StatusCode::OK | StatusCode::CREATED) {
                    return Err(format!("POST {path} was answered {}", reply.status).into());
                }
                latencies.push(sent.elapsed());
            }
        });
    }
    let mut latencies = Vec::new();
    while let Some(done) = callers.join_next().await {
        latencies.extend(done??);
    }
    Ok(Sent { latencies, elapsed: started.elapsed() })
}
