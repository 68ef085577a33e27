//! The same texts in two spaces: how much of what each space finds alone is left when their hits are merged.
//!
//! Every text is embedded once with each model. For each split a server gets each grain with its vector in one of the two
//! spaces, makes its anchors, and is asked. What the own space alone finds, and what other ways to merge would have found, is
//! counted here, by comparing the query with all vectors.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};

use super::quality::{Pair, read};
use super::store::{BATCH, post, send_all};
use crate::support::client::Connection;
use crate::support::clusters::N_HITS;
use crate::support::random::Random;
use crate::support::server::{Contender, Granary, Server};
use crate::support::stats::{percentile, sorted_ms};
use crate::support::{Failure, data_folder};

const FIRST: &str = "all-MiniLM-L6-v2";

/// Callers that embed and write at a time.
const N_CALLERS: usize = 2;

/// Anchors of a store that has as many grains.
const N_ANCHORS: usize = 2000;

/// How long anchors may take.
const PATIENCE: Duration = Duration::from_mins(10);

/// From the last write to the sample that knows it, at most.
const SETTLED: Duration = Duration::from_secs(3);

/// What to measure
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Grains
    #[arg(long, default_value_t = 50_000)]
    grains: usize,
    /// Queries
    #[arg(long, default_value_t = 2000)]
    queries: usize,
    /// How many in a hundred grains are in the space of all-MiniLM-L6-v2
    #[arg(long, value_delimiter = ',', default_values_t = [50, 10, 90])]
    splits: Vec<usize>,
    /// Who makes the other space: models of `make setup-test`
    #[arg(long, value_delimiter = ',', default_values_t = ["minilm-whitened-256".to_owned(), "minilm-4-layers".to_owned()])]
    second: Vec<String>,
    /// Short and long texts in two columns [default: those of `make setup-bench`]
    #[arg(long, value_name = "FILE")]
    pairs: Option<PathBuf>,
    /// Where vectors are kept from run to run: embedding takes most of the time. For the same texts and models only
    #[arg(long, value_name = "FOLDER")]
    vectors: Option<PathBuf>,
}

/// A model, and what it makes of the texts.
struct Embedded {
    model: String,
    /// Of the grains: `[n_grains][dimensions]`
    grains: Vec<Vec<f32>>,
    /// Of the queries: `[n_queries][dimensions]`
    queries: Vec<Vec<f32>>,
}

/// Sums of reciprocal ranks.
#[derive(Clone, Debug, Default)]
struct Sums {
    n_queries: usize,
    /// In the space of the grain, with every grain in it.
    own: f64,
    /// As the server merges.
    merged: f64,
    /// In the order of cosines, whatever their space.
    raw: f64,
    /// By reciprocal-rank fusion.
    ranks: f64,
}

pub async fn run(options: &Options, granary: impl Fn(Vec<(&'static str, String)>) -> Granary) -> Result<(), Failure> {
    let pairs = read(options.pairs.as_deref(), options.grains)?;
    let mut queries: Vec<usize> = (0..pairs.len()).collect();
    Random::new(2).shuffle(&mut queries);
    queries.truncate(options.queries);
    println!("\n{} package descriptions, {} queries:", pairs.len(), queries.len());
    let mut models = vec![FIRST.to_owned()];
    models.extend(options.second.iter().cloned());
    let server = Server::start(Contender::Granary, &granary(settings(options)?)).await?;
    let mut embedded = Vec::new();
    for model in models {
        let began = Instant::now();
        let kept = options.vectors.as_ref().map(|folder| folder.join(format!("{model}.f32")));
        let made = match kept {
            Some(path) if path.exists() => read_vectors(&path, model, [pairs.len(), queries.len()])?,
            kept => {
                let made = embed(&server, model, &pairs, &queries).await?;
                if let Some(path) = kept {
                    write_vectors(&path, &made)?;
                }
                made
            }
        };
        let (took, alone) = (began.elapsed().as_secs_f64(), alone(&made, &queries));
        println!("  {}: embedded in {took:.0} s; alone its MRR@{N_HITS} is {alone:.4}", made.model);
        embedded.push(made);
    }
    server.stop().await?;
    let (first, others) = embedded.split_first().ok_or("no model")?;
    for second in others {
        for split in &options.splits {
            let is_second: Vec<bool> = (0..pairs.len()).map(|at| at * 100 >= split * pairs.len()).collect();
            let server = Server::start(Contender::Granary, &granary(settings(options)?)).await?;
            let mut sums = compare([first, second], &is_second, &queries);
            println!("  {split} % in {}, the others in {}:", first.model, second.model);
            let began = Instant::now();
            write(&server, [first, second], &is_second, &pairs).await?;
            wait_for_anchors(&server, pairs.len().min(N_ANCHORS)).await?;
            let ready = began.elapsed();
            let asked = search(&server, &pairs, &queries, &mut sums).await?;
            println!("    MRR@{N_HITS} {sums}");
            println!("    {asked}; written, and anchors complete, in {:.0} s", ready.as_secs_f64());
            server.stop().await?;
        }
    }
    Ok(())
}

fn settings(options: &Options) -> Result<Vec<(&'static str, String)>, Failure> {
    let folder = data_folder().join("test/models").canonicalize()?;
    let entry = |name: &String| format!("{{name=\"{name}\",path=\"{}\"}}", folder.join(name).display());
    let entries: Vec<String> = options.second.iter().map(entry).collect();
    Ok(vec![("GRANARY_AI__ADDITIONAL_MODELS", format!("[{}]", entries.join(",")))])
}

async fn embed(server: &Server, model: String, pairs: &[Pair], queries: &[usize]) -> Result<Embedded, Failure> {
    let grains = embed_all(server, &model, pairs.iter().map(|pair| pair.long.as_str()).collect()).await?;
    let queries = embed_all(server, &model, queries.iter().map(|at| pairs[*at].short.as_str()).collect()).await?;
    Ok(Embedded { model, grains, queries })
}

/// Vectors that were written by [`write_vectors`], so many of grains and of queries.
fn read_vectors(path: &Path, model: String, [n_grains, n_queries]: [usize; 2]) -> Result<Embedded, Failure> {
    let bytes = fs_err::read(path)?;
    let numbers: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|number| f32::from_le_bytes(*number)).collect();
    let dimensions = numbers.len() / (n_grains + n_queries);
    if dimensions == 0 || numbers.len() != dimensions * (n_grains + n_queries) {
        return Err(format!("{} does not hold {n_grains} and {n_queries} vectors", path.display()).into());
    }
    let mut grains: Vec<Vec<f32>> = numbers.chunks(dimensions).map(<[f32]>::to_vec).collect();
    let queries = grains.split_off(n_grains);
    Ok(Embedded { model, grains, queries })
}

/// Writes the vectors of grains, then those of queries: 32-bit floats, little-endian.
fn write_vectors(path: &Path, made: &Embedded) -> Result<(), Failure> {
    let numbers = made.grains.iter().chain(&made.queries).flatten();
    let bytes: Vec<u8> = numbers.flat_map(|number| number.to_le_bytes()).collect();
    fs_err::create_dir_all(path.parent().ok_or("no folder")?)?;
    Ok(fs_err::write(path, bytes)?)
}

async fn embed_all(server: &Server, model: &str, texts: Vec<&str>) -> Result<Vec<Vec<f32>>, Failure> {
    let bodies: Vec<Bytes> = texts
        .chunks(BATCH)
        .map(|texts| json!({"model": model, "inputs": texts, "truncate": true}).to_string().into())
        .collect();
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..N_CALLERS {
        let bodies: Vec<(usize, Bytes)> = bodies.iter().cloned().enumerate().skip(caller).step_by(N_CALLERS).collect();
        let address = server.address;
        callers.spawn(async move {
            let mut connection = Connection::open(address).await?;
            let mut answers = Vec::new();
            for (at, body) in bodies {
                let vectors: Vec<Vec<f32>> = serde_json::from_value(post(&mut connection, "/embed", body).await?)?;
                answers.push((at, vectors));
            }
            Ok::<_, Failure>(answers)
        });
    }
    let mut answers = Vec::new();
    while let Some(done) = callers.join_next().await {
        answers.extend(done??);
    }
    answers.sort_by_key(|(at, _)| *at);
    Ok(answers.into_iter().flat_map(|(_, vectors)| vectors).collect())
}

async fn write(server: &Server, models: [&Embedded; 2], is_second: &[bool], pairs: &[Pair]) -> Result<(), Failure> {
    let mut connection = Connection::open(server.address).await?;
    let mut spaces = Vec::new();
    for Embedded { model, .. } in models {
        let loaded = post(&mut connection, &format!("/models/{model}/load"), Bytes::from_static(b"{}")).await?;
        spaces.push(loaded["space"].as_str().ok_or("a loaded model without a space")?.to_owned());
    }
    let grain = |at: usize| {
        let side = usize::from(is_second[at]);
        json!({"id": at.to_string(), "text": pairs[at].long, "space": spaces[side], "vector": models[side].grains[at]})
    };
    // Each body is made when its turn comes: all of them would take a gigabyte.
    let places: Vec<usize> = (0..pairs.len()).collect();
    for places in places.chunks(BATCH * 16) {
        let bodies = places.chunks(BATCH).map(|places| {
            json!({"grains": places.iter().map(|at| grain(*at)).collect::<Vec<Value>>()}).to_string().into()
        });
        send_all(server.address, "/grains", bodies.collect(), N_CALLERS).await?;
    }
    Ok(())
}

async fn wait_for_anchors(server: &Server, expected: usize) -> Result<(), Failure> {
    tokio::time::sleep(SETTLED).await;
    let began = Instant::now();
    loop {
        let gauges = anchors(server).await?;
        let states = ["sampled", "complete"].map(|state| gauges.get(state).copied().unwrap_or_default());
        if states == [expected; 2] {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            return Err(format!("{} of {} anchors are complete after {PATIENCE:?}", states[1], states[0]).into());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The gauge of anchors by its states.
async fn anchors(server: &Server) -> Result<HashMap<String, usize>, Failure> {
    let mut connection = Connection::open(server.address).await?;
    let (_, text) = connection.send_and_keep(http::Method::GET, "/metrics", Bytes::new()).await?;
    let text = String::from_utf8(text)?;
    let gauge = |line: &str| {
        let (state, value) = line.strip_prefix("granary_anchors{state=\"")?.split_once("\"} ")?;
        Some((state.to_owned(), value.parse().ok()?))
    };
    Ok(text.lines().filter_map(gauge).collect())
}

/// What the server's answers were like.
struct Asked {
    n_queries: usize,
    n_by_anchors: usize,
    /// Ascending.
    latencies_ms: Vec<f64>,
}

async fn search(server: &Server, pairs: &[Pair], queries: &[usize], sums: &mut Sums) -> Result<Asked, Failure> {
    let mut connection = Connection::open(server.address).await?;
    let (mut latencies, mut n_by_anchors) = (Vec::new(), 0);
    for at in queries {
        let body = json!({"query": pairs[*at].short, "mode": "dense", "limit": N_HITS}).to_string();
        let asked = Instant::now();
        let answer = post(&mut connection, "/grains/search", body.into()).await?;
        latencies.push(asked.elapsed());
        n_by_anchors += usize::from(answer["merged"] == "anchors");
        let hits = answer["hits"].as_array().ok_or("an answer without `hits`")?;
        let id = Value::from(at.to_string());
        sums.merged += reciprocal(hits.iter().position(|hit| hit["grain"]["id"] == id));
    }
    Ok(Asked { n_queries: queries.len(), n_by_anchors, latencies_ms: sorted_ms(&latencies) })
}

/// What a model finds of the grains when all of them are in its space.
fn alone(model: &Embedded, queries: &[usize]) -> f64 {
    let found = |(query, at): (usize, &usize)| {
        let score = |grain: &Vec<f32>| dot(&model.queries[query], grain);
        reciprocal(rank(model.grains.iter().map(score), score(&model.grains[*at])))
    };
    queries.iter().enumerate().map(found).sum::<f64>() / queries.len() as f64
}

/// What each grain's own space alone finds, and what a merge of raw scores and one of ranks do.
fn compare(models: [&Embedded; 2], is_second: &[bool], queries: &[usize]) -> Sums {
    let mut sums = Sums { n_queries: queries.len(), ..Sums::default() };
    for (query, &at) in queries.iter().enumerate() {
        let scores = models
            .map(|model| model.grains.iter().map(|grain| dot(&model.queries[query], grain)).collect::<Vec<f32>>());
        let side = usize::from(is_second[at]);
        let score = scores[side][at];
        sums.own += reciprocal(rank(scores[side].iter().copied(), score));
        let own_score = |other: usize| scores[usize::from(is_second[other])][other];
        sums.raw += reciprocal(rank((0..is_second.len()).map(own_score), score));
        let mine = (0..is_second.len()).filter(|other| is_second[*other] == is_second[at]).map(own_score);
        // Two lists without a grain in common are fused in turns: before each grain stand as many of the other list as of its
        // own, and of two at the same rank the one with the smaller number.
        let rank_in_space = rank(mine, score);
        sums.ranks += reciprocal(rank_in_space.map(|rank| {
            let mut others: Vec<usize> =
                (0..is_second.len()).filter(|other| is_second[*other] != is_second[at]).collect();
            if others.len() <= rank {
                return rank + others.len();
            }
            let by_score = |a: &usize, b: &usize| own_score(*b).total_cmp(&own_score(*a));
            2 * rank + usize::from(*others.select_nth_unstable_by(rank, by_score).1 < at)
        }));
    }
    sums
}

/// How many are better, if the hits of an answer hold it.
fn rank(scores: impl Iterator<Item = f32>, score: f32) -> Option<usize> {
    let better = scores.filter(|other| *other > score).take(N_HITS).count();
    (better < N_HITS).then_some(better)
}

fn reciprocal(rank: Option<usize>) -> f64 {
    rank.filter(|rank| *rank < N_HITS).map_or(0.0, |rank| 1.0 / (rank + 1) as f64)
}

/// In lanes, which the compiler makes one instruction of.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 16];
    for (a, b) in a.as_chunks::<16>().0.iter().zip(b.as_chunks::<16>().0) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}

impl fmt::Display for Sums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |sum: f64| sum / self.own;
        write!(
            f,
            "{:.4} in each grain's own space alone; as shares of it: merged {:.4}, raw scores {:.4}, reciprocal ranks {:.4}",
            self.own / self.n_queries as f64,
            share(self.merged),
            share(self.raw),
            share(self.ranks)
        )
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { n_queries, n_by_anchors, latencies_ms } = self;
        let [p50, p99] = [50, 99].map(|percent| percentile(latencies_ms, percent));
        write!(f, "{n_by_anchors} of {n_queries} answers were merged by anchors; p50 {p50:.2} ms, p99 {p99:.2} ms")
    }
}
