//! `proxy`: what a small service does all day, behind nginx: embedding, searching, writing and switches of the model. Then
//! a stop, with requests in flight.
//!
//! The load is bounded: each caller waits for its answer and then a while. Grains are written anew after a time, so that
//! there are no more of them at the end than in the third minute.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::future::join_all;

use crate::Common;
use crate::checks::{Checks, mib};
use crate::models::{Client, MINILM, TINY, known};
use crate::proxy_process::{Kind, Proxy};
use crate::support::Failure;
use crate::support::golden::Golden;
use crate::support::process::Usage;
use crate::support::random::Random;
use crate::support::server::{Contender, Server};

/// Callers of each kind.
const N_CALLERS: usize = 2;
/// Between two requests of a caller.
const PAUSE: Duration = Duration::from_millis(25);
/// Between two switches.
const SWITCH_EVERY: Duration = Duration::from_secs(5);
const N_GRAINS: usize = 500;
const MOST_TEXTS: usize = 4;
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// Memory is compared from here on, or from a fifth of the time.
const WARM: Duration = Duration::from_mins(3);
/// So many readings are averaged at either end.
const N_AVERAGED: usize = 30;
/// Connections come and go; what is lost again and again shows.
const MORE_FILES: usize = 20;
/// Requests in flight at the stop, each of so many texts that none is answered before it.
const N_IN_FLIGHT: usize = 4;
const TEXTS_IN_FLIGHT: usize = 50;
/// They are there long before.
const PATIENCE: Duration = Duration::from_secs(30);

/// The load, with what every caller writes to.
struct Load {
    address: SocketAddr,
    texts: Vec<String>,
    is_over: Cell<bool>,
    n_requests: Cell<usize>,
    failures: RefCell<Vec<String>>,
}

/// A reading of the server's process.
#[derive(Clone, Copy)]
struct Sample {
    rss_bytes: u64,
    n_files: usize,
}

#[derive(Clone, Copy)]
enum Task {
    Embed,
    Search,
    Write,
}

/// Runs the load.
pub async fn run(common: &Common, seconds: u64, checks: &mut Checks) -> Result<(), Failure> {
    let settings =
        vec![known(&[(TINY, TINY, None)])?, ("GRANARY_SERVER__TRUSTED_PROXIES", "[\"127.0.0.1\"]".to_owned())];
    let server = Server::start(Contender::Granary, &common.granary(settings)).await?;
    let nginx = Proxy::start(Kind::Nginx, &[&server.address.to_string()]);
    let load = Load {
        address: nginx.address().parse()?,
        texts: Golden::read(Path::new("tests/golden/all-MiniLM-L6-v2.ndjson"))?.texts,
        is_over: Cell::new(false),
        n_requests: Cell::new(0),
        failures: RefCell::default(),
    };
    let lasts = Duration::from_secs(seconds);
    println!("behind nginx for {lasts:?}: {N_CALLERS} callers each that embed, search and write, and switches ...");
    let mut random = Random::new(common.seed);
    let tasks = [Task::Embed, Task::Search, Task::Write].into_iter().cycle().take(3 * N_CALLERS);
    let callers: Vec<_> = tasks.map(|task| load.call(task, random.fork())).collect();
    let (_, (), samples) = tokio::join!(join_all(callers), load.switch(), load.watch(server.pid(), lasts));
    let stop = load.stop_in_flight(server).await?;

    let failures = load.failures.take();
    failures.iter().take(5).for_each(|failure| println!("  failed: {failure}"));
    checks.line(
        failures.is_empty(),
        &format!("{} of {} requests failed (0 wanted)", failures.len(), load.n_requests.get()),
    );
    let warm = usize::try_from(WARM.min(lasts / 5).as_secs()).unwrap_or_default();
    let (first, last) = (mean(samples.iter().skip(warm).take(N_AVERAGED)), mean(samples.iter().rev().take(N_AVERAGED)));
    let peak_bytes = samples.iter().map(|sample| sample.rss_bytes).max().unwrap_or_default();
    println!("RSS at most {:.0} MiB; first read after {warm} s", mib(peak_bytes));
    checks.no_growth("RSS after the first minutes and at the end", first.rss_bytes, last.rss_bytes);
    checks.line(
        last.n_files <= first.n_files + MORE_FILES,
        &format!("{} open files, then {} (at most {MORE_FILES} more wanted)", first.n_files, last.n_files),
    );
    checks.line(
        stop.n_answered == N_IN_FLIGHT,
        &format!("{} of {N_IN_FLIGHT} requests in flight at the stop were answered", stop.n_answered),
    );
    println!("stopped in {:.1} s, in order", stop.took.as_secs_f64());
    Ok(())
}

/// How the server ended.
struct Stop {
    n_answered: usize,
    took: Duration,
}

impl Load {
    async fn call(&self, task: Task, mut random: Random) {
        let mut client = Client::new(self.address);
        while !self.is_over.get() {
            let text = self.texts[random.below(self.texts.len())].as_str();
            let done = match task {
                Task::Embed => {
                    let texts = vec![text; 1 + random.below(MOST_TEXTS)];
                    client.embed([None, Some(MINILM), Some(TINY)][random.below(3)], &texts).await.map(drop)
                }
                Task::Search => client.search(text).await.map(drop),
                Task::Write => client.write(&random.below(N_GRAINS).to_string(), text).await,
            };
            self.count(done);
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Makes the two models active in turns.
    async fn switch(&self) {
        let mut client = Client::new(self.address);
        let mut models = [TINY, MINILM].into_iter().cycle();
        let mut last = Instant::now();
        while !self.is_over.get() {
            if last.elapsed() >= SWITCH_EVERY
                && let Some(model) = models.next()
            {
                last = Instant::now();
                self.count(client.activate(model).await);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn count(&self, done: Result<(), Failure>) {
        self.n_requests.set(self.n_requests.get() + 1);
        if let Err(failure) = done {
            self.failures.borrow_mut().push(failure.to_string());
        }
    }

    /// Reads memory and files once a second, and ends the load.
    async fn watch(&self, pid: u32, lasts: Duration) -> Vec<Sample> {
        let mut samples = Vec::new();
        let mut every = tokio::time::interval(SAMPLE_EVERY);
        let ends = Instant::now() + lasts;
        while Instant::now() < ends {
            every.tick().await;
            samples.push(Sample { rss_bytes: Usage::of_tree(pid).rss_bytes, n_files: Usage::open_files(pid) });
        }
        self.is_over.set(true);
        samples
    }

    /// Stops the server while requests are being answered.
    async fn stop_in_flight(&self, server: Server) -> Result<Stop, Failure> {
        let texts: Vec<&str> = self.texts.iter().cycle().take(TEXTS_IN_FLIGHT).map(String::as_str).collect();
        let requests = (0..N_IN_FLIGHT).map(async |_| Client::new(self.address).embed(Some(MINILM), &texts).await);
        let stopping = async {
            let mut client = Client::new(server.address);
            let sent = Instant::now();
            // All but those that run are in the queue.
            loop {
                if sent.elapsed() > PATIENCE {
                    return Err(Failure::from("the requests that were to be in flight are not"));
                }
                let queued = client.metric("granary_queue_tokens").await?;
                if queued.iter().any(|(labels, tokens)| labels.contains(MINILM) && *tokens > 0.0) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            let began = Instant::now();
            server.stop().await.map(|()| began.elapsed())
        };
        let (answers, took) = tokio::join!(join_all(requests), stopping);
        answers.iter().filter_map(|answer| answer.as_ref().err()).for_each(|failure| println!("  failed: {failure}"));
        Ok(Stop { n_answered: answers.iter().filter(|answer| answer.is_ok()).count(), took: took? })
    }
}

fn mean<'a>(samples: impl Iterator<Item = &'a Sample> + Clone) -> Sample {
    let n_samples = samples.clone().count().max(1);
    let (rss, files) = samples.fold((0, 0), |(rss, files), sample| (rss + sample.rss_bytes, files + sample.n_files));
    Sample { rss_bytes: rss / n_samples as u64, n_files: files / n_samples }
}
