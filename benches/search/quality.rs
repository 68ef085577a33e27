//! Real texts: package descriptions. The short one of a package is the query, its long one the grain it must find.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};

use super::store::{BATCH, found, post};
use crate::support::client::Connection;
use crate::support::clusters::N_HITS;
use crate::support::process::CpuMeter;
use crate::support::random::Random;
use crate::support::server::{Contender, Granary, Server};
use crate::support::stats::{percentile, sorted_ms};
use crate::support::{Failure, data_folder};

/// Callers that write at a time.
const N_WRITERS: usize = 2;

const MODES: [&str; 3] = ["dense", "lexical", "hybrid"];

/// What to measure
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Grains
    #[arg(long, default_value_t = 50_000)]
    grains: usize,
    /// Queries: the fusion was chosen by those of odd places, and those of even places are reported
    #[arg(long, default_value_t = 2000)]
    queries: usize,
    /// Short and long texts in two columns [default: those of `make setup-bench`]
    #[arg(long, value_name = "FILE")]
    pairs: Option<PathBuf>,
}

/// A package.
pub struct Pair {
    /// What it is in a few words.
    pub short: String,
    /// What it is at length.
    pub long: String,
}

pub async fn run(options: &Options, granary: impl Fn(Vec<(&'static str, String)>) -> Granary) -> Result<(), Failure> {
    let pairs = read(options.pairs.as_deref(), options.grains)?;
    let server = Server::start(Contender::Granary, &granary(Vec::new())).await?;
    println!("\n{} package descriptions:", pairs.len());
    engine(&server, &pairs).await?;
    write(&server, &pairs).await?;
    let mut places: Vec<usize> = (0..pairs.len()).collect();
    Random::new(2).shuffle(&mut places);
    places.truncate(options.queries);
    search(&server, &pairs, &places).await?;
    recall(&server, &pairs, &places).await?;
    server.stop().await
}

/// So many packages, in an order that is the same in every run.
pub fn read(path: Option<&Path>, n: usize) -> Result<Vec<Pair>, Failure> {
    let path = path.map_or_else(|| data_folder().join("bench/pairs.tsv"), Path::to_owned);
    let text = fs_err::read_to_string(path)?;
    let pair = |line: &str| {
        let (short, long) = line.split_once('\t')?;
        Some(Pair { short: short.to_owned(), long: long.to_owned() })
    };
    let mut pairs: Vec<Pair> = text.lines().filter_map(pair).collect();
    Random::new(1).shuffle(&mut pairs);
    if pairs.len() < n {
        return Err(format!("there are {} pairs, not {n}", pairs.len()).into());
    }
    pairs.truncate(n);
    Ok(pairs)
}

/// What the engine does with the same texts when nothing is stored.
async fn engine(server: &Server, pairs: &[Pair]) -> Result<(), Failure> {
    let some = &pairs[..pairs.len().min(4096)];
    let bodies = some.chunks(BATCH).map(|pairs| {
        json!({"inputs": pairs.iter().map(|pair| pair.long.as_str()).collect::<Vec<_>>()}).to_string().into()
    });
    let before = tokens(server).await?;
    let meter = CpuMeter::start(server.pid());
    let took = in_turns(server, "/embed", bodies.collect()).await?;
    let rate = (tokens(server).await? - before) / took.as_secs_f64();
    println!(
        "  embedding alone: {rate:.0} tokens/s; others had {:.0} % of the machine",
        100.0 * meter.read().others_share()
    );
    Ok(())
}

async fn write(server: &Server, pairs: &[Pair]) -> Result<(), Failure> {
    let grains: Vec<Value> =
        pairs.iter().enumerate().map(|(n, pair)| json!({"id": n.to_string(), "text": pair.long})).collect();
    let bodies = grains.chunks(BATCH).map(|grains| json!({"grains": grains}).to_string().into());
    let before = tokens(server).await?;
    let meter = CpuMeter::start(server.pid());
    let took = in_turns(server, "/grains", bodies.collect()).await?;
    let rate = (tokens(server).await? - before) / took.as_secs_f64();
    println!(
        "  writing: {rate:.0} tokens/s, {:.0} grains/s; others had {:.0} % of the machine",
        pairs.len() as f64 / took.as_secs_f64(),
        100.0 * meter.read().others_share()
    );
    Ok(())
}

async fn in_turns(server: &Server, path: &'static str, bodies: Vec<Bytes>) -> Result<Duration, Failure> {
    Ok(super::store::send_all(server.address, path, bodies, N_WRITERS).await?.elapsed)
}

/// Tokens that the server has embedded.
async fn tokens(server: &Server) -> Result<f64, Failure> {
    let mut connection = Connection::open(server.address).await?;
    let (_, text) = connection.send_and_keep(http::Method::GET, "/metrics", Bytes::new()).await?;
    let text = String::from_utf8(text)?;
    let values = text.lines().filter(|line| line.starts_with("granary_tokens_total{"));
    Ok(values.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
}

async fn search(server: &Server, pairs: &[Pair], places: &[usize]) -> Result<(), Failure> {
    let mut connection = Connection::open(server.address).await?;
    for mode in MODES {
        let mut sums = [0.0; 2];
        let mut latencies = Vec::new();
        for (n, place) in places.iter().enumerate() {
            let body = json!({"query": pairs[*place].short, "mode": mode, "limit": N_HITS}).to_string();
            let asked = Instant::now();
            let hits = found(&mut connection, body.into()).await?;
            latencies.push(asked.elapsed());
            let rank = hits.iter().position(|hit| usize::try_from(*hit).is_ok_and(|hit| hit == *place));
            sums[n % 2] += rank.map_or(0.0, |rank| 1.0 / (rank + 1) as f64);
        }
        let (sorted, half) = (sorted_ms(&latencies), places.len() as f64 / 2.0);
        println!(
            "  {mode:>7}: MRR@{N_HITS} {:.4} (on the half that the fusion was chosen by: {:.4}); p50 {:.2} ms, p99 {:.2} ms",
            sums[0] / half,
            sums[1] / half,
            percentile(&sorted, 50),
            percentile(&sorted, 99),
        );
    }
    Ok(())
}

/// Of the nearest, those that the server finds: compared with every vector that it has.
async fn recall(server: &Server, pairs: &[Pair], places: &[usize]) -> Result<(), Failure> {
    let mut connection = Connection::open(server.address).await?;
    let vectors = all_vectors(&mut connection).await?;
    let places = &places[..places.len().min(500)];
    let mut total = 0.0;
    for place in places {
        let body = json!({"inputs": pairs[*place].short}).to_string();
        let query: Vec<Vec<f32>> = serde_json::from_value(post(&mut connection, "/embed", body.into()).await?)?;
        let product = |vector: &[f32]| query[0].iter().zip(vector).map(|(a, b)| a * b).sum::<f32>();
        let mut scored: Vec<(f32, i64)> = vectors.iter().map(|(number, vector)| (product(vector), *number)).collect();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0));
        let body = json!({"query": pairs[*place].short, "mode": "dense", "limit": N_HITS}).to_string();
        let hits = found(&mut connection, body.into()).await?;
        total += scored[..N_HITS].iter().filter(|(_, number)| hits.contains(number)).count() as f64 / N_HITS as f64;
    }
    let n = places.len() as f64;
    println!("  recall@{N_HITS} of the quantised index against all vectors: {:.4} ({n} queries)", total / n);
    Ok(())
}

async fn all_vectors(connection: &mut Connection) -> Result<HashMap<i64, Vec<f32>>, Failure> {
    let mut vectors = HashMap::new();
    let mut path = "/grains?include=vector&limit=1000".to_owned();
    loop {
        let page = connection.get(&path).await?;
        for grain in page["grains"].as_array().ok_or("a page without `grains`")? {
            let id = grain["id"].as_str().ok_or("a grain without an id")?.parse()?;
            vectors.insert(id, serde_json::from_value(grain["vector"].clone())?);
        }
        let Some(next) = page["next"].as_str() else { return Ok(vectors) };
        path = format!("/grains?include=vector&limit=1000&cursor={next}");
    }
}
