//! Ten thousand connections whose heads drip, straight at the server: others are served as before, and nothing is left of
//! them when their time is over.

use std::time::{Duration, Instant};

use futures::StreamExt;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::helpers::{Caller, Process, folder_with, until, until_seen, with_tiny};

const N_CONNECTIONS: usize = 10_000;

/// Files that each of the two processes opens besides.
const N_OTHER_FILES: u64 = 500;

/// How many connect at the same time: the system's queue holds 1024.
const N_AT_ONCE: usize = 256;

/// The time of a head, in which everything but the end is measured.
const HEADER_TIMEOUT: Duration = Duration::from_mins(1);

/// Requests of which the slowest in twenty counts.
const N_REQUESTS: usize = 400;

/// What is no degradation, however fast the others were before.
const NOTHING: Duration = Duration::from_millis(5);

/// What a connection may take of memory, the system's own buffers aside.
const MOST_BYTES_PER_CONNECTION: u64 = 32 << 10;

/// What may stay of their memory when they have gone.
const MOST_BYTES_LEFT: u64 = 32 << 20;

/// Lets this process, and those that it starts, have so many files open; says why not.
fn raise_limit() -> Result<(), String> {
    let limit = getrlimit(Resource::Nofile);
    let needed = N_CONNECTIONS as u64 + N_OTHER_FILES;
    if limit.maximum.is_some_and(|maximum| maximum < needed) {
        return Err(format!(
            "{N_CONNECTIONS} connections need {needed} open files, and the limit is {:?}",
            limit.maximum
        ));
    }
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).map_err(|error| error.to_string())
}

/// The 95th percentile of the time of a request.
async fn p95(app: &Caller) -> Duration {
    let mut times = Vec::with_capacity(N_REQUESTS);
    for _ in 0..N_REQUESTS {
        let started = Instant::now();
        app.post("/embed", json!({"inputs": "hello"})).await.ok();
        times.push(started.elapsed());
    }
    times.sort_unstable();
    times[N_REQUESTS * 95 / 100]
}

async fn begin_head(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\nx-slow: ").await.expect("sent");
    stream
}

/// Adds a byte to each head in turn, again and again: every five seconds to each, and never to many at once, which would
/// hold up who measures.
async fn drip(connections: &mut [TcpStream]) {
    loop {
        for some in connections.chunks_mut(N_CONNECTIONS / 500) {
            for connection in some {
                connection.write_all(b"x").await.expect("a head has its time");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
#[ignore = "takes minutes: make test-proxy"]
async fn ten_thousand_dripping_heads_hold_nobody_up() {
    if let Err(why) = raise_limit() {
        println!("skipped: {why}");
        return;
    }
    let toml = format!("[server]\nheader_timeout = \"{}s\"\n{}", HEADER_TIMEOUT.as_secs(), with_tiny(&[]));
    let folder = folder_with(&toml);
    let (process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url.clone());
    p95(&app).await;
    let (usual, files, bytes) = (p95(&app).await, process.n_open_files(), process.rss_bytes());

    let address = url.trim_start_matches("http://");
    let opened = Instant::now();
    let opening = futures::stream::iter((0..N_CONNECTIONS).map(|_| begin_head(address)));
    let mut connections: Vec<TcpStream> = opening.buffer_unordered(N_AT_ONCE).collect().await;
    until("the server has them", async || process.n_open_files() >= files + N_CONNECTIONS as u64).await;
    let beside = tokio::select! {
        beside = p95(&app) => beside,
        () = drip(&mut connections) => unreachable!("it does not end"),
    };
    let took = opened.elapsed();
    assert!(took < HEADER_TIMEOUT, "the machine is too slow to measure in time: {took:?}");
    let per_connection = process.rss_bytes().saturating_sub(bytes) / N_CONNECTIONS as u64;
    println!(
        "p95 of a lone request: {usual:?}, beside {N_CONNECTIONS} dripping heads {beside:?}; {per_connection} bytes of \
         memory for each"
    );
    assert!(beside <= usual.max(NOTHING) * 2, "others wait for slow ones");
    assert!(per_connection <= MOST_BYTES_PER_CONNECTION, "{per_connection} bytes for each");

    // The server closes them when their time is over, whatever drips; here they stay open.
    until_seen("they are closed", async || process.n_open_files(), |n_files: &u64| *n_files <= files + 10).await;
    drop(connections);
    p95(&app).await;
    let left = process.rss_bytes().saturating_sub(bytes);
    println!("{} MiB more than before are resident when they are gone", left >> 20);
    assert!(left <= MOST_BYTES_LEFT, "{left} bytes are not given back");
    process.stop();
}
