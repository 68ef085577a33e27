//! Granary under more load than it can serve, and beside a request of two thousand texts.
//!
//! `cargo bench --bench overload -- --help`. In order: what it serves at best; twice that, sent on time whether answers
//! come or not; lone queries before and at once after; lone queries while one bulk request runs. benches/README.md says
//! what the figures should be.

mod open_loop;
#[path = "../support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use serde::Serialize;
use tokio::task::JoinSet;

use self::open_loop::{Overload, RAMP};
use self::support::client::Connection;
use self::support::corpus::{Corpus, Feed, Form, Stream};
use self::support::load::{ClosedLoop, Outcome, Target, Verdict};
use self::support::machine::Origin;
use self::support::process::{CpuMeter, NOISY_SHARE};
use self::support::server::{Contender, Granary, Server};
use self::support::stats::{milliseconds, percentile, sorted_ms};
use self::support::{Failure, data_folder};

/// Lone queries go on this long, before, after, and at most beside the bulk request.
const LONE: Duration = Duration::from_secs(3);
const BESIDE_BULK: Duration = Duration::from_secs(100);
const PASSAGE_TOKENS: f64 = 128.0;
/// `engine.max_batch_tokens`: no smaller queue is accepted.
const LEAST_QUEUE_TOKENS: usize = 1024;
const N_BULK_TEXTS: usize = 2_000;

/// Measure Granary under twice the load it can serve
#[derive(Debug, Parser)]
struct Options {
    /// Seconds that count at the best and at the overload
    #[arg(long, default_value_t = 8.0)]
    seconds: f64,
    /// How many times the best rate is sent
    #[arg(long, default_value_t = 2.0)]
    factor: f64,
    /// `engine.max_queue_tokens` of the overloaded server [default: what it serves in a second; its own default would
    /// take minutes to fill]
    #[arg(long)]
    max_queue_tokens: Option<usize>,
    /// The texts, one a line
    #[arg(long, value_name = "FILE")]
    texts: Option<PathBuf>,
    /// Granary's binary
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_granary"))]
    binary: PathBuf,
    /// Where the results go, as JSON
    #[arg(long, value_name = "FILE", default_value = "benches/results/overload.json")]
    output: PathBuf,
    /// What cargo passes to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    origin: Origin,
    max_queue_tokens: usize,
    /// Before the overload and after it.
    best_texts_per_s: (f64, f64),
    idle: Lone,
    overload: Overload,
    /// The first lone query after the last answer of the overload.
    first_after_ms: f64,
    after: Lone,
    beside_bulk: BesideBulk,
    /// Of the machine's CPU time, what neither the server nor the client had.
    others_share: f64,
}

/// Lone queries, one after the other.
#[derive(Debug, Serialize)]
struct Lone {
    n: usize,
    p50_ms: f64,
    p95_ms: f64,
}

#[derive(Debug, Serialize)]
struct BesideBulk {
    n_texts: usize,
    bulk_s: f64,
    lone: Lone,
    /// The same server's before.
    idle: Lone,
}

fn main() -> ExitCode {
    support::exit_code(support::run(measure(&Options::parse())))
}

async fn measure(options: &Options) -> Result<(), Failure> {
    let origin = Origin::here();
    println!("{}", origin.line());
    let texts = options.texts.clone().unwrap_or_else(|| data_folder().join("bench/texts.txt"));
    let corpus = Corpus::read(&texts, &data_folder().join("models/all-MiniLM-L6-v2/tokenizer.json"))?;
    let mut texts = Texts {
        queries: corpus.stream(Form::Query),
        passages: corpus.stream(Form::Passage),
        natural: corpus.stream(Form::Natural),
    };
    let measured = Duration::try_from_secs_f64(options.seconds)?;

    let mut granary = Granary { binary: options.binary.clone(), settings: Vec::new() };
    let server = Server::start(Contender::Granary, &granary).await?;
    println!("with the default queue: a request of {N_BULK_TEXTS} texts ...");
    let roughly = best(&server, &mut texts.passages, LONE).await?;
    let idle = Lone::of(&lone_queries(&server, &mut texts.queries).await)?;
    let beside_bulk = beside_bulk(&server, &mut texts, idle).await?;
    server.stop().await?;

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive number of tokens")]
    let a_second = (roughly * PASSAGE_TOKENS) as usize;
    let max_queue_tokens = options.max_queue_tokens.unwrap_or(a_second.max(LEAST_QUEUE_TOKENS));
    granary.settings.push(("GRANARY_ENGINE__MAX_QUEUE_TOKENS", max_queue_tokens.to_string()));
    let server = Server::start(Contender::Granary, &granary).await?;
    println!("with a queue of {max_queue_tokens} tokens: the best, the overload, the best again ...");
    let cpu = CpuMeter::start(server.pid());
    let best_before = best(&server, &mut texts.passages, measured).await?;
    let idle = Lone::of(&lone_queries(&server, &mut texts.queries).await)?;
    let overload = Overload::measure(&server, &mut texts.passages, best_before * options.factor, measured).await?;
    let after = lone_queries(&server, &mut texts.queries).await;
    let best_after = best(&server, &mut texts.passages, measured).await?;
    let report = Report {
        origin,
        max_queue_tokens,
        best_texts_per_s: (best_before, best_after),
        idle,
        overload,
        first_after_ms: after.latencies.first().copied().map_or(f64::NAN, milliseconds),
        after: Lone::of(&after)?,
        beside_bulk,
        others_share: cpu.read().others_share(),
    };
    server.stop().await?;
    support::write_json(&options.output, &report)?;
    report.print();
    println!("{}", options.output.display());
    Ok(())
}

struct Texts {
    queries: Stream,
    passages: Stream,
    natural: Stream,
}

async fn lone_queries(server: &Server, queries: &mut Stream) -> Outcome {
    let one = ClosedLoop { n_clients: 1, texts_per_request: 1, warm_up: Duration::ZERO, measured: LONE };
    one.run(server.into(), &Arc::new(Feed::new(queries.take(10_000)))).await
}

impl Lone {
    fn of(outcome: &Outcome) -> Result<Self, Failure> {
        if let Some(error) = &outcome.last_error {
            return Err(format!("a lone query failed: {error}").into());
        }
        let latencies = sorted_ms(&outcome.latencies);
        Ok(Self { n: latencies.len(), p50_ms: percentile(&latencies, 50), p95_ms: percentile(&latencies, 95) })
    }
}

async fn best(server: &Server, passages: &mut Stream, measured: Duration) -> Result<f64, Failure> {
    let clients = ClosedLoop { n_clients: 32, texts_per_request: 1, warm_up: RAMP, measured };
    let outcome = clients.run(server.into(), &Arc::new(Feed::new(passages.take(20_000)))).await;
    match outcome.last_error {
        Some(error) => Err(format!("a request failed before the overload: {error}").into()),
        None => Ok(outcome.texts_per_s),
    }
}

/// One request of many texts, and lone queries from its start to its answer.
async fn beside_bulk(server: &Server, texts: &mut Texts, idle: Lone) -> Result<BesideBulk, Failure> {
    let bulk = texts.natural.take(N_BULK_TEXTS);
    let n_texts = bulk.len();
    let target = Target::from(server);
    let mut connection = Connection::open(target.address).await?;
    let body = target.dialect.body(&bulk);
    let started = Instant::now();
    let mut running = JoinSet::new();
    running.spawn(async move {
        let reply = connection.post(target.dialect.path(), body).await;
        (reply, started.elapsed())
    });
    let mut lone = Outcome::default();
    let queries = Feed::new(texts.queries.take(20_000));
    let mut connection = Connection::open(target.address).await?;
    let (reply, took) = loop {
        if let Some(done) = running.try_join_next() {
            break done.expect("the bulk request does not panic");
        }
        let Some(query) = queries.take(1).filter(|_| started.elapsed() < BESIDE_BULK) else {
            return Err(format!("{n_texts} texts took longer than {BESIDE_BULK:?}").into());
        };
        let sent = Instant::now();
        match Verdict::of(connection.post(target.dialect.path(), target.dialect.body(query)).await?, 1) {
            Verdict::Answered => lone.latencies.push(sent.elapsed()),
            _ => return Err("a lone query beside the bulk request was not answered 200".into()),
        }
    };
    match Verdict::of(reply?, n_texts) {
        Verdict::Answered => Ok(BesideBulk { n_texts, bulk_s: took.as_secs_f64(), lone: Lone::of(&lone)?, idle }),
        Verdict::Refused => Err("the bulk request was refused".into()),
        Verdict::Wrong(what) => Err(format!("the bulk request failed: {what}").into()),
    }
}

impl Report {
    fn print(&self) {
        let Self { idle, overload, after, beside_bulk, best_texts_per_s: (before, again), .. } = self;
        let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
        println!("\npassages, 32 clients:  {before:.1} texts/s before, {again:.1} after");
        println!(
            "passages, {:.0} sent/s:  {:.1} texts/s, {:.2} of the best (≥ 0.90 wanted)",
            overload.sent_per_s,
            overload.answered_per_s,
            overload.answered_per_s / f64::midpoint(*before, *again)
        );
        println!(
            "  {} answered (p50 {:.0} ms), {} refused (p99 {:.1} ms), sent at most {:.0} ms late",
            overload.n_answered,
            overload.answered_p50_ms,
            overload.n_refused,
            overload.refused_p99_ms,
            overload.latest_ms
        );
        match overload.retry_after_s {
            Some((least, most)) => println!("  Retry-After {least} to {most} s"),
            None => println!("  no Retry-After was seen"),
        }
        println!(
            "  {} refused without it, {} other failures (0 wanted) {}",
            overload.n_refused_without_retry_after,
            overload.n_errors,
            overload.last_error.as_deref().unwrap_or_default()
        );
        println!(
            "  RSS {:.0} MiB before, {:.0} at most, {:.0} after (flat wanted)",
            mib(overload.rss_bytes_before),
            mib(overload.rss_bytes_most),
            mib(overload.rss_bytes_after)
        );
        println!(
            "lone queries: idle p50 {:.2} ms, p95 {:.2} ms; after the overload the first {:.2} ms, p50 {:.2} ms, p95 {:.2} ms",
            idle.p50_ms, idle.p95_ms, self.first_after_ms, after.p50_ms, after.p95_ms
        );
        println!(
            "beside {} texts ({:.1} s): p50 {:.2} ms, p95 {:.2} ms, {:.1} of the idle p95 (≤ 5 wanted; {} queries)",
            beside_bulk.n_texts,
            beside_bulk.bulk_s,
            beside_bulk.lone.p50_ms,
            beside_bulk.lone.p95_ms,
            beside_bulk.lone.p95_ms / beside_bulk.idle.p95_ms,
            beside_bulk.lone.n
        );
        if overload.n_refused == 0 {
            println!("NO OVERLOAD: nothing was refused, so the queue never filled (--seconds, --factor).");
        }
        if self.others_share > NOISY_SHARE {
            println!("NOISY: other processes had {:.0} % of the machine; do not quote.", self.others_share * 100.0);
        }
    }
}
