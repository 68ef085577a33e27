//! Vectors in a declared space: how searching them grows with their number.

use std::fmt::Write;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use super::peer;
use super::store::{BATCH, declare, found, send_all, send_for};
use crate::support::Failure;
use crate::support::client::Connection;
use crate::support::clusters::{N_HITS, Source};
use crate::support::process::{CpuMeter, Usage};
use crate::support::server::{Granary, Server};
use crate::support::stats::{percentile, sorted_ms};

/// What filters keep: all, 10 %, 0.1 %. Grains are tagged by what their number is a multiple of.
const STEPS: [i64; 3] = [1, 10, 1000];

/// Callers that write at a time.
const N_WRITERS: usize = 2;

/// Callers at a time, for the throughput, and for how long.
const N_CALLERS: usize = 8;
const THROUGHPUT: Duration = Duration::from_secs(10);

/// What to measure
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Grains, step by step
    #[arg(long, value_delimiter = ',', default_value = "10000,100000,1000000")]
    sizes: Vec<usize>,
    /// The length of their vectors
    #[arg(long, default_value_t = 384)]
    dimensions: usize,
    /// Queries
    #[arg(long, default_value_t = 200)]
    queries: usize,
    /// Without the peer
    #[arg(long)]
    no_peer: bool,
}

pub async fn run(options: &Options, granary: impl Fn(Vec<(&'static str, String)>) -> Granary) -> Result<(), Failure> {
    let source = Source::open(options.dimensions, options.queries, None)?;
    let folder = tempfile::tempdir()?;
    let database = format!("sqlite:{}/granary.db", folder.path().display());
    let granary = granary(vec![("GRANARY_GRAINS__DATABASE_URL", database)]);
    let mut written = 0;
    for &size in &options.sizes {
        println!("\n{size} grains of {} dimensions:", options.dimensions);
        let server = Server::start_without_vector(&granary).await?;
        println!("  ready {:.2} s after the start with {written} grains", server.started_in.as_secs_f64());
        let space = declare(server.address, options.dimensions).await?;
        write(&server, &source, &space, options, written, size).await?;
        written = size;
        server.stop().await?;

        let server = Server::start_without_vector(&granary).await?;
        println!("  ready {:.2} s after the start, from the saved index", server.started_in.as_secs_f64());
        search(&server, &source, &space, size).await?;
        println!("  resident: {} MB", Usage::of_tree(server.pid()).rss_bytes / 1_000_000);
        server.stop().await?;
        if !options.no_peer {
            peer::measure(&source, options.dimensions, size)?;
        }
    }
    Ok(())
}

async fn write(
    server: &Server,
    source: &Source,
    space: &str,
    options: &Options,
    from: usize,
    to: usize,
) -> Result<(), Failure> {
    let (mut elapsed, mut n_written) = (Duration::ZERO, 0);
    for (first, rows) in source.runs(to) {
        let numbered = (first..).zip(rows.chunks_exact(options.dimensions));
        let new: Vec<(i64, &[f32])> =
            numbered.filter(|(number, _)| usize::try_from(*number).is_ok_and(|n| n > from)).collect();
        let bodies: Vec<Bytes> = new.chunks(BATCH).map(|grains| grains_body(grains, space)).collect();
        if !bodies.is_empty() {
            n_written += new.len();
            elapsed += send_all(server.address, "/grains", bodies, N_WRITERS).await?.elapsed;
        }
    }
    let rate = n_written as f64 / elapsed.as_secs_f64();
    println!("  writing {n_written} grains with their vectors: {rate:.0} grains/s");
    Ok(())
}

fn grains_body(grains: &[(i64, &[f32])], space: &str) -> Bytes {
    let grain = |(number, vector): &(i64, &[f32])| {
        let tags: Vec<String> =
            STEPS.iter().filter(|step| number % **step == 0).map(|step| format!("every{step}")).collect();
        json!({"id": number.to_string(), "text": format!("grain {number}"), "tags": tags, "space": space, "vector": vector})
    };
    json!({"grains": grains.iter().map(grain).collect::<Vec<_>>()}).to_string().into()
}

async fn search(server: &Server, source: &Source, space: &str, n: usize) -> Result<(), Failure> {
    let mut connection = Connection::open(server.address).await?;
    for (step, truth) in STEPS.into_iter().zip(source.truths(n, &STEPS)?) {
        let bodies: Vec<Bytes> = source.queries().map(|query| search_body(query, space, step)).collect();
        let mut total = 0.0;
        for (body, expected) in bodies.iter().zip(&truth) {
            let hits = found(&mut connection, body.clone()).await?;
            let n_found = expected.iter().filter(|number| hits.contains(number)).count();
            total += n_found as f64 / expected.len().max(1) as f64;
        }
        let meter = CpuMeter::start(server.pid());
        let sorted = sorted_ms(&send_all(server.address, "/grains/search", bodies.clone(), 1).await?.latencies);
        let mut line = format!(
            "  nearest {N_HITS} of {:>7}: p50 {:.2} ms, p99 {:.2} ms, recall {:.4}",
            i64::try_from(n)? / step,
            percentile(&sorted, 50),
            percentile(&sorted, 99),
            total / truth.len() as f64,
        );
        write!(line, "; others had {:.0} % of the machine", 100.0 * meter.read().others_share())?;
        println!("{line}");
        if step == 1 {
            let sent = send_for(server.address, "/grains/search", bodies, N_CALLERS, THROUGHPUT).await?;
            let sorted = sorted_ms(&sent.latencies);
            println!(
                "  {N_CALLERS} callers: {:.0} searches/s, p50 {:.2} ms, p99 {:.2} ms",
                sorted.len() as f64 / sent.elapsed.as_secs_f64(),
                percentile(&sorted, 50),
                percentile(&sorted, 99),
            );
        }
    }
    Ok(())
}

fn search_body(query: &[f32], space: &str, step: i64) -> Bytes {
    let mut body = json!({"vector": query, "space": space, "limit": N_HITS});
    if step > 1 {
        body["filter"] = json!({"tags": {"all": [format!("every{step}")]}});
    }
    body.to_string().into()
}
