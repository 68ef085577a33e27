//! Granary and its peers over HTTP, side by side in one run: texts per second, latency, memory and CPU time.
//!
//! `cargo bench --bench serving -- --help`. Every server is a process of its own and only one of them has work at a time.
//! For each workload the servers take turns, round after round, on the same texts. benches/README.md says how to read it.

mod report;
#[path = "../support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;

use self::report::{Report, Round, ServerFacts, TextFacts, WorkloadResult};
use self::support::corpus::{Corpus, Feed, Form, Stream, Text};
use self::support::golden::Golden;
use self::support::load::ClosedLoop;
use self::support::machine::Origin;
use self::support::process::{CpuMeter, Usage};
use self::support::random::Zipf;
use self::support::server::{Contender, Granary, Server};
use self::support::{Failure, data_folder};

/// What every server's vectors must reach against those of sentence-transformers. Below it the work was not the same.
const LOWEST_COSINE: f64 = 0.999;
/// The check is no heavier than the workloads: ONNX Runtime keeps the memory that its largest batch took.
const N_TEXTS_AT_ONCE: usize = 8;
/// Between two servers: the threads of the one that had work stop spinning.
const PAUSE: Duration = Duration::from_millis(200);
const N_ZIPF_TEXTS: usize = 10_000;
const ZIPF_EXPONENT: f64 = 1.0;

const DEFAULT_SERVERS: [&str; 6] = ["granary", "granary-cpu", "fastembed", "fastembed-b1", "infinity", "tei"];

/// Measure Granary beside its peers over HTTP
#[derive(Debug, Parser)]
struct Options {
    /// How often each server takes its turn in each workload
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// Seconds that count in each turn
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Seconds before them that do not count
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// Run only the workloads whose names begin so: query, query-c1, passage, mixed, zipf, …
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Measure these servers
    #[arg(long, value_delimiter = ',', default_values = DEFAULT_SERVERS)]
    servers: Vec<Contender>,
    /// The texts, one a line
    #[arg(long, value_name = "FILE")]
    texts: Option<PathBuf>,
    /// Granary's binary
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_granary"))]
    binary: PathBuf,
    /// Where the results go, as JSON
    #[arg(long, value_name = "FILE", default_value = "benches/results/serving.json")]
    output: PathBuf,
    /// What cargo passes to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug)]
struct Workload {
    name: &'static str,
    form: Form,
    n_clients: usize,
    texts_per_request: usize,
    /// Whether texts come again, by Zipf's law; else each comes once.
    repeats: bool,
}

const fn workload(name: &'static str, form: Form, n_clients: usize, texts_per_request: usize) -> Workload {
    Workload { name, form, n_clients, texts_per_request, repeats: false }
}

const WORKLOADS: [Workload; 9] = [
    workload("query-c1", Form::Query, 1, 1),
    workload("query-c8", Form::Query, 8, 1),
    workload("query-c32", Form::Query, 32, 1),
    workload("passage-c1", Form::Passage, 1, 1),
    workload("passage-c8", Form::Passage, 8, 1),
    workload("passage-c32", Form::Passage, 32, 1),
    workload("mixed-c1", Form::Natural, 1, 32),
    workload("mixed-c4", Form::Natural, 4, 32),
    Workload { repeats: true, ..workload("zipf-c8", Form::Query, 8, 1) },
];

fn main() -> ExitCode {
    support::exit_code(support::run(measure(&Options::parse())))
}

async fn measure(options: &Options) -> Result<(), Failure> {
    let origin = Origin::here();
    println!("{}", origin.line());
    let texts = options.texts.clone().unwrap_or_else(|| data_folder().join("bench/texts.txt"));
    let corpus = Corpus::read(&texts, &data_folder().join("models/all-MiniLM-L6-v2/tokenizer.json"))?;
    let texts = TextFacts { n_texts: corpus.n_texts(), sha256: corpus.sha256.clone() };
    let (servers, facts) = start(options).await?;
    let mut report = Report::new(origin, texts, facts, (options.rounds, options.seconds, options.warm_up));
    let mut bench = Bench {
        servers,
        rounds: options.rounds,
        warm_up: Duration::try_from_secs_f64(options.warm_up)?,
        measured: Duration::try_from_secs_f64(options.seconds)?,
        queries: corpus.stream(Form::Query),
        passages: corpus.stream(Form::Passage),
        natural: corpus.stream(Form::Natural),
    };
    drop(corpus);
    let chosen = |workload: &&Workload| {
        options.only.is_empty() || options.only.iter().any(|prefix| workload.name.starts_with(prefix.as_str()))
    };
    for workload in WORKLOADS.iter().filter(chosen) {
        let result = bench.run(*workload).await;
        report.add(result);
        report.print_last();
        support::write_json(&options.output, &report)?; // after each: a run that is broken off keeps what it has
    }
    report.print_end(&options.output);
    for server in bench.servers {
        server.stop().await?;
    }
    match report.n_errors() {
        0 => Ok(()),
        n => Err(format!("{n} requests failed, so the figures mean nothing; the results say which").into()),
    }
}

/// Starts the servers that are here, and refuses one whose vectors are wrong.
async fn start(options: &Options) -> Result<(Vec<Server>, Vec<ServerFacts>), Failure> {
    let golden = Golden::read("tests/golden/all-MiniLM-L6-v2.ndjson".as_ref())?;
    let texts: Vec<&str> = golden.texts.iter().map(String::as_str).collect();
    let granary = Granary { binary: options.binary.clone(), settings: Vec::new() };
    let (mut servers, mut all_facts) = (Vec::new(), Vec::<ServerFacts>::new());
    for &contender in &options.servers {
        if !contender.is_installed() {
            println!("{} is left out: it is not installed (benches/README.md)", contender.name());
            continue;
        }
        let server = Server::start(contender, &granary).await?;
        let rss_bytes = Usage::of_tree(server.pid()).rss_bytes;
        let mut vectors = Vec::new();
        for few in texts.chunks(N_TEXTS_AT_ONCE) {
            vectors.extend(server.embed(few).await?);
        }
        let lowest_cosine = golden.lowest_cosine(&vectors)?;
        let facts = ServerFacts {
            server: contender.name(),
            versions: server.versions().await?,
            started_in_s: server.started_in.as_secs_f64(),
            rss_bytes_at_start: rss_bytes,
            lowest_cosine,
        };
        if lowest_cosine < LOWEST_COSINE {
            return Err(format!("{} makes other vectors: cosine {lowest_cosine:.5}", contender.name()).into());
        }
        if let Some(same) = all_facts.iter().find(|known| known.runs_like(&facts)) {
            println!("{} is left out: it is what {} takes on this machine", contender.name(), same.server);
            server.stop().await?;
            continue;
        }
        println!("{}", facts.line());
        all_facts.push(facts);
        servers.push(server);
    }
    Ok((servers, all_facts))
}

struct Bench {
    servers: Vec<Server>,
    rounds: u32,
    warm_up: Duration,
    measured: Duration,
    queries: Stream,
    passages: Stream,
    natural: Stream,
}

impl Bench {
    async fn run(&mut self, workload: Workload) -> WorkloadResult {
        let differs = |server: &&Server| server.contender.differs_at(workload.texts_per_request);
        let n_servers = self.servers.iter().filter(differs).count();
        let mut rounds: Vec<Vec<Round>> = (0..n_servers).map(|_| Vec::new()).collect();
        let (mut n_tokens, mut n_used) = (0, 0);
        for round in 0..self.rounds as usize {
            let texts = self.texts(workload);
            let servers: Vec<&Server> = self.servers.iter().filter(differs).collect();
            let mut most_taken = 0;
            for turn in 0..n_servers {
                // Another one begins each round, so that none always has the same neighbour before it.
                let index = (round + turn) % n_servers;
                let feed = Arc::new(Feed::new(texts.clone()));
                rounds[index].push(self.turn(workload, servers[index], &feed).await);
                most_taken = most_taken.max(feed.n_taken());
                tokio::time::sleep(PAUSE).await;
            }
            n_tokens += texts[..most_taken].iter().map(|text| text.n_tokens as usize).sum::<usize>();
            n_used += most_taken;
            if !workload.repeats {
                self.stream(workload.form).discard(most_taken);
            }
        }
        let names = self.servers.iter().filter(differs).map(|server| server.contender.name());
        WorkloadResult::new(
            (workload.name, workload.n_clients, workload.texts_per_request),
            n_tokens as f64 / n_used as f64,
            names.zip(rounds).collect(),
        )
    }

    async fn turn(&self, workload: Workload, server: &Server, feed: &Arc<Feed>) -> Round {
        let clients = ClosedLoop {
            n_clients: workload.n_clients,
            texts_per_request: workload.texts_per_request,
            warm_up: self.warm_up,
            measured: self.measured,
        };
        let cpu = CpuMeter::start(server.pid());
        let outcome = clients.run(server.into(), feed).await;
        Round::new(&outcome, Usage::of_tree(server.pid()), cpu.read(), feed.n_taken())
    }

    /// More texts than the fastest server can take in a turn, as far as there are any.
    fn texts(&mut self, workload: Workload) -> Vec<Arc<Text>> {
        let texts_per_s = match workload.form {
            Form::Query => 8_000.0,
            Form::Passage => 1_500.0,
            Form::Natural => 3_000.0,
        };
        let seconds = (self.warm_up + self.measured).as_secs_f64();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive number of texts")]
        let n_texts = (seconds * texts_per_s) as usize;
        let stream = self.stream(workload.form);
        if !workload.repeats {
            return stream.peek(n_texts);
        }
        // New ones each round: a cache begins cold, and what it gains comes from the repetitions within the turn.
        let distinct = stream.take(N_ZIPF_TEXTS);
        let mut ranks = Zipf::new(distinct.len(), ZIPF_EXPONENT, 2);
        (0..n_texts).filter_map(|_| distinct.get(ranks.draw()).cloned()).collect()
    }

    fn stream(&mut self, form: Form) -> &mut Stream {
        match form {
            Form::Query => &mut self.queries,
            Form::Passage => &mut self.passages,
            Form::Natural => &mut self.natural,
        }
    }
}
