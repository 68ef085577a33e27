//! The figures: each round's, their medians, the ratios to the peer, a table for people and JSON for programs.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::support::load::Outcome;
use crate::support::machine::Origin;
use crate::support::process::{CpuTimes, NOISY_SHARE, Usage};
use crate::support::stats::{median, percentile, sorted_ms};

/// What the ratios are to.
const BASELINE: &str = "fastembed";

/// Everything that a run has found.
#[derive(Debug, Serialize)]
pub struct Report {
    #[serde(flatten)]
    origin: Origin,
    rounds: u32,
    seconds: f64,
    warm_up_s: f64,
    texts: TextFacts,
    servers: Vec<ServerFacts>,
    workloads: Vec<WorkloadResult>,
}

/// What was embedded.
#[derive(Debug, Serialize)]
pub struct TextFacts {
    /// Texts in the file.
    pub n_texts: usize,
    /// Of the file.
    pub sha256: String,
}

/// A server, before it has work.
#[derive(Debug, Serialize)]
pub struct ServerFacts {
    /// Its name in this report.
    pub server: &'static str,
    /// Of its parts; of Granary the provider too.
    pub versions: BTreeMap<String, String>,
    /// From the start of the process to the first vector.
    pub started_in_s: f64,
    /// With the model loaded.
    pub rss_bytes_at_start: u64,
    /// The lowest cosine to the golden vectors.
    pub lowest_cosine: f64,
}

impl ServerFacts {
    /// Whether both are Granary on one provider, so that one of them says it all.
    pub fn runs_like(&self, other: &Self) -> bool {
        self.versions.contains_key("provider") && self.versions == other.versions
    }

    /// One line for the head of the table.
    pub fn line(&self) -> String {
        let versions: Vec<String> = self.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        format!(
            "{}: {}; first vector after {:.2} s, {:.0} MiB, cosine ≥ {:.6}",
            self.server,
            versions.join(", "),
            self.started_in_s,
            mib(self.rss_bytes_at_start),
            self.lowest_cosine
        )
    }
}

/// One workload, each server.
#[derive(Debug, Serialize)]
pub struct WorkloadResult {
    workload: &'static str,
    clients: usize,
    texts_per_request: usize,
    mean_tokens: f64,
    servers: Vec<ServerResult>,
}

#[derive(Debug, Serialize)]
struct ServerResult {
    server: &'static str,
    median: Figures,
    /// The medians of each round's ratio to the peer in that round.
    #[serde(skip_serializing_if = "Option::is_none")]
    to_fastembed: Option<Ratios>,
    rounds: Vec<Round>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Figures {
    texts_per_s: f64,
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
    /// User and system time of the whole turn.
    server_cpu_s: f64,
    server_cpu_ms_per_text: f64,
    rss_bytes: f64,
    /// Since the server's start.
    peak_rss_bytes: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Ratios {
    texts_per_s: f64,
    p50: f64,
    p99: f64,
}

/// One turn of one server.
#[derive(Debug, Serialize)]
pub struct Round {
    #[serde(flatten)]
    figures: Figures,
    n_requests: usize,
    n_refused: usize,
    n_errors: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<String>,
    /// Whether the texts were used up before the time was.
    ended_early: bool,
    elapsed_s: f64,
    client_cpu_s: f64,
    /// Of the machine's CPU time, what neither the server nor the client had.
    others_share: f64,
}

impl Round {
    /// `n_texts` were sent in this turn, those of the warm-up included.
    pub fn new(outcome: &Outcome, usage: Usage, times: CpuTimes, n_texts: usize) -> Self {
        let latencies = sorted_ms(&outcome.latencies);
        Self {
            figures: Figures {
                texts_per_s: outcome.texts_per_s,
                p50_ms: percentile(&latencies, 50),
                p95_ms: percentile(&latencies, 95),
                p99_ms: percentile(&latencies, 99),
                server_cpu_s: times.server.as_secs_f64(),
                server_cpu_ms_per_text: times.server.as_secs_f64() * 1e3 / n_texts as f64,
                rss_bytes: usage.rss_bytes as f64,
                peak_rss_bytes: usage.peak_rss_bytes as f64,
            }
            .rounded(),
            n_requests: outcome.latencies.len(),
            n_refused: outcome.n_refused,
            n_errors: outcome.n_errors,
            last_error: outcome.last_error.clone(),
            ended_early: outcome.ended_early,
            elapsed_s: thousandths(times.elapsed.as_secs_f64()),
            client_cpu_s: thousandths(times.client.as_secs_f64()),
            others_share: thousandths(times.others_share()),
        }
    }
}

impl Figures {
    fn rounded(self) -> Self {
        Self {
            texts_per_s: thousandths(self.texts_per_s),
            p50_ms: thousandths(self.p50_ms),
            p95_ms: thousandths(self.p95_ms),
            p99_ms: thousandths(self.p99_ms),
            server_cpu_s: thousandths(self.server_cpu_s),
            server_cpu_ms_per_text: thousandths(self.server_cpu_ms_per_text),
            ..self
        }
    }

    fn median(rounds: &[Round]) -> Self {
        let of = |figure: fn(&Self) -> f64| median(rounds.iter().map(|round| figure(&round.figures)));
        Self {
            texts_per_s: of(|f| f.texts_per_s),
            p50_ms: of(|f| f.p50_ms),
            p95_ms: of(|f| f.p95_ms),
            p99_ms: of(|f| f.p99_ms),
            server_cpu_s: of(|f| f.server_cpu_s),
            server_cpu_ms_per_text: of(|f| f.server_cpu_ms_per_text),
            rss_bytes: of(|f| f.rss_bytes),
            peak_rss_bytes: of(|f| f.peak_rss_bytes),
        }
        .rounded()
    }
}

impl Ratios {
    fn median(rounds: &[Round], baseline: &[Round]) -> Self {
        let of = |figure: fn(&Figures) -> f64| {
            let ratio = |(one, base): (&Round, &Round)| figure(&one.figures) / figure(&base.figures);
            thousandths(median(rounds.iter().zip(baseline).map(ratio)))
        };
        Self { texts_per_s: of(|f| f.texts_per_s), p50: of(|f| f.p50_ms), p99: of(|f| f.p99_ms) }
    }
}

impl WorkloadResult {
    /// Of a workload's name, clients and texts in a request, and each server's rounds.
    pub fn new(
        workload: (&'static str, usize, usize),
        mean_tokens: f64,
        rounds: Vec<(&'static str, Vec<Round>)>,
    ) -> Self {
        let (workload, clients, texts_per_request) = workload;
        let ratios: Vec<Option<Ratios>> = {
            let baseline = rounds.iter().find(|(server, _)| *server == BASELINE).map(|(_, rounds)| rounds);
            rounds.iter().map(|(_, rounds)| baseline.map(|baseline| Ratios::median(rounds, baseline))).collect()
        };
        let result = |((server, rounds), to_fastembed): ((&'static str, Vec<Round>), Option<Ratios>)| ServerResult {
            server,
            median: Figures::median(&rounds),
            to_fastembed,
            rounds,
        };
        let servers = rounds.into_iter().zip(ratios).map(result).collect();
        Self { workload, clients, texts_per_request, mean_tokens: thousandths(mean_tokens), servers }
    }
}

impl Report {
    /// A report without figures; `turns` are the rounds, the seconds that count and those of the warm-up.
    pub fn new(origin: Origin, texts: TextFacts, servers: Vec<ServerFacts>, turns: (u32, f64, f64)) -> Self {
        let (rounds, seconds, warm_up_s) = turns;
        Self { origin, rounds, seconds, warm_up_s, texts, servers, workloads: Vec::new() }
    }

    /// Adds a workload.
    pub fn add(&mut self, result: WorkloadResult) {
        self.workloads.push(result);
    }

    /// Requests that failed, in all.
    pub fn n_errors(&self) -> usize {
        self.all_rounds().map(|round| round.n_errors).sum()
    }

    fn all_rounds(&self) -> impl Iterator<Item = &Round> {
        self.workloads.iter().flat_map(|workload| &workload.servers).flat_map(|server| &server.rounds)
    }

    /// Prints the table of the workload added last.
    pub fn print_last(&self) {
        let Some(result) = self.workloads.last() else { return };
        println!(
            "\n{}: requests at once {}, texts a request {}, tokens a text {:.1}",
            result.workload, result.clients, result.texts_per_request, result.mean_tokens
        );
        println!(
            "  {:<17}{:>9}{:>7}{:>10}{:>7}{:>10}{:>10}{:>7}{:>10}{:>9}{:>9}{:>7}",
            "", "texts/s", "ratio", "p50 ms", "ratio", "p95 ms", "p99 ms", "ratio", "CPU ms", "RSS MiB", "peak", "n"
        );
        for ServerResult { server, median, to_fastembed, rounds } in &result.servers {
            let ratio = |of: fn(&Ratios) -> f64| {
                to_fastembed.as_ref().map_or_else(String::new, |all| format!("{:.2}", of(all)))
            };
            println!(
                "  {server:<17}{:>9.1}{:>7}{:>10.2}{:>7}{:>10.2}{:>10.2}{:>7}{:>10.2}{:>9.0}{:>9.0}{:>7}",
                median.texts_per_s,
                ratio(|all| all.texts_per_s),
                median.p50_ms,
                ratio(|all| all.p50),
                median.p95_ms,
                median.p99_ms,
                ratio(|all| all.p99),
                median.server_cpu_ms_per_text,
                median.rss_bytes / MIB,
                median.peak_rss_bytes / MIB,
                rounds.iter().map(|round| round.n_requests).sum::<usize>(),
            );
            for round in rounds.iter().filter(|round| round.n_errors + round.n_refused > 0) {
                let what = round.last_error.as_deref().unwrap_or("status 429");
                println!("    {} requests failed, {} refused: {what}", round.n_errors, round.n_refused);
            }
        }
    }

    /// Prints what to think of the figures and where they are.
    pub fn print_end(&self, path: &Path) {
        let noisy = |round: &&Round| round.others_share > NOISY_SHARE;
        let (n_noisy, n_rounds) = (self.all_rounds().filter(noisy).count(), self.all_rounds().count());
        println!(
            "\nratio: to {BASELINE}, the median of the rounds' ratios. CPU ms: the server's, per text. n: requests counted."
        );
        if n_noisy > 0 {
            println!(
                "NOISY: in {n_noisy} of {n_rounds} turns other processes had over 5 % of the machine; do not quote."
            );
        }
        if self.all_rounds().any(|round| round.ended_early) {
            println!("Some turns ended early because the texts were used up: their figures are over less time.");
        }
        println!("{}", path.display());
    }
}

const MIB: f64 = 1_048_576.0;

fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB
}

fn thousandths(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}
