//! `soak`: every vector right and no request failed while models come and go, and memory as before.
//!
//! The same load runs twice, first as a warm-up. After each, all models are loaded, embed all texts and are left alone for a
//! moment, and memory is read: what a first load, full pools and the weights that were looked up take is in both figures.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::future::join_all;
use granary::domain::vector::cosine;

use crate::Common;
use crate::checks::{Checks, mib};
use crate::models::{BERT, Client, MINILM, TINY, known};
use crate::support::Failure;
use crate::support::golden::Golden;
use crate::support::process::Usage;
use crate::support::random::Random;
use crate::support::server::{Contender, Server};

const MODELS: [&str; 3] = [MINILM, BERT, TINY];
const N_CALLERS: usize = 16;
const MOST_TEXTS: usize = 4;
/// Between two orders to load, unload or make active: 50 to 150 ms.
const PAUSE_MS: std::ops::Range<usize> = 50..151;
const WARM_UP_AT_MOST: Duration = Duration::from_mins(1);
/// The warm-up's share of the whole, where that is less.
const WARM_UP_SHARE: u32 = 10;
const REST: Duration = Duration::from_secs(5);
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// Vectors of one text by one model differ by what else is in the batch, and by its padding.
const LEAST_COSINE: f64 = 0.999;
/// To sentence-transformers' vectors, for texts sent one by one.
const LEAST_REFERENCE_COSINE: f64 = 0.9999;
/// So many failures are printed; the rest is counted.
const N_PRINTED: usize = 5;

/// The load, with what every caller knows and writes to.
struct Load<'a> {
    address: SocketAddr,
    texts: &'a [String],
    /// Of each model, the vectors of the texts.
    right: &'a BTreeMap<&'static str, Vec<Vec<f32>>>,
    ends: Instant,
    tally: RefCell<Tally>,
}

#[derive(Clone, Copy)]
enum Order {
    Load,
    Unload,
    Activate,
}

const ORDERS: [Order; 3] = [Order::Load, Order::Unload, Order::Activate];

/// What was seen.
#[derive(Debug)]
struct Tally {
    /// Requests answered with right shapes, by the model that answered.
    by_model: BTreeMap<&'static str, ModelTally>,
    n_failed: usize,
    n_loads: usize,
    n_unloads: usize,
    n_switches: usize,
}

#[derive(Debug)]
struct ModelTally {
    n_requests: usize,
    n_texts: usize,
    lowest_cosine: f64,
    slowest: Duration,
}

/// Runs the soak.
pub async fn run(common: &Common, seconds: u64, checks: &mut Checks) -> Result<(), Failure> {
    let entries = [(BERT, BERT, None), (TINY, TINY, None)];
    let settings = vec![known(&entries)?, ("GRANARY_MODELS__LOAD_TIMEOUT", "60s".to_owned())];
    let server = Server::start(Contender::Granary, &common.granary(settings)).await?;
    let golden = Golden::read(Path::new("tests/golden/all-MiniLM-L6-v2.ndjson"))?;
    let mut client = Client::new(server.address);
    let right = embed_all(&mut client, &golden.texts).await?;
    let reference = golden.lowest_cosine(&right[MINILM])?;
    let what = format!("{MINILM} beside sentence-transformers: lowest cosine {reference:.6}");
    checks.line(reference >= LEAST_REFERENCE_COSINE, &format!("{what} (≥ {LEAST_REFERENCE_COSINE} wanted)"));

    let lasts = Duration::from_secs(seconds);
    let warm_up = (lasts / WARM_UP_SHARE).min(WARM_UP_AT_MOST);
    println!("{} texts, {N_CALLERS} callers; warm-up of {warm_up:?}, then {lasts:?} ...", golden.texts.len());
    let mut random = Random::new(common.seed);
    let mut load = Load {
        address: server.address,
        texts: &golden.texts,
        right: &right,
        ends: Instant::now() + warm_up,
        tally: RefCell::new(Tally::new()),
    };
    load.run(server.pid(), &mut random).await;
    let start_bytes = rss_at_rest(&server, &golden.texts).await?;
    let warm = load.tally.replace(Tally::new());
    load.ends = Instant::now() + lasts;
    let peak_bytes = load.run(server.pid(), &mut random).await;
    let end_bytes = rss_at_rest(&server, &golden.texts).await?;
    let tally = load.tally.into_inner();
    server.stop().await?;

    tally.print();
    println!("RSS: {:.0} MiB at the start, {:.0} MiB at most under load", mib(start_bytes), mib(peak_bytes));
    let n_failed = warm.n_failed + tally.n_failed;
    checks.line(n_failed == 0, &format!("{n_failed} failed requests, the warm-up's included (0 wanted)"));
    let lowest = warm.lowest_cosine().min(tally.lowest_cosine());
    checks.line(lowest >= LEAST_COSINE, &format!("lowest cosine {lowest:.6} (≥ {LEAST_COSINE} wanted)"));
    let is_complete = tally.by_model.values().all(|model| model.n_requests > 0);
    checks.line(is_complete, "every model answered");
    checks.no_growth("RSS with all models loaded, at the start and at the end", start_bytes, end_bytes);
    Ok(())
}

/// Of each model, the vectors of the texts, which are sent one by one.
async fn embed_all(client: &mut Client, texts: &[String]) -> Result<BTreeMap<&'static str, Vec<Vec<f32>>>, Failure> {
    let mut by_model = BTreeMap::new();
    for model in MODELS {
        let mut vectors = Vec::new();
        for text in texts {
            vectors.append(&mut client.embed(Some(model), &[text]).await?.vectors);
        }
        by_model.insert(model, vectors);
    }
    Ok(by_model)
}

/// Weights are mapped from files, and a load lets go of their pages: the texts bring them back.
async fn rss_at_rest(server: &Server, texts: &[String]) -> Result<u64, Failure> {
    let mut client = Client::new(server.address);
    for model in MODELS {
        client.load(model).await?;
    }
    embed_all(&mut client, texts).await?;
    tokio::time::sleep(REST).await;
    Ok(Usage::of_tree(server.pid()).rss_bytes)
}

impl Load<'_> {
    /// Runs callers and operator until the time is over; returns the most memory that was resident.
    async fn run(&self, pid: u32, random: &mut Random) -> u64 {
        let callers: Vec<_> = (0..N_CALLERS).map(|_| self.call(random.fork())).collect();
        let load = async { tokio::join!(join_all(callers), self.operate(random.fork())) };
        let mut peak_bytes = 0;
        let mut every = tokio::time::interval(SAMPLE_EVERY);
        let sampling = async {
            loop {
                every.tick().await;
                peak_bytes = peak_bytes.max(Usage::of_tree(pid).rss_bytes);
            }
        };
        tokio::select! {
            _ = load => {}
            () = sampling => {}
        }
        peak_bytes
    }

    /// Embeds and compares until the time is over.
    async fn call(&self, mut random: Random) {
        let mut client = Client::new(self.address);
        while Instant::now() < self.ends {
            let texts: Vec<usize> = (0..=random.below(MOST_TEXTS)).map(|_| random.below(self.texts.len())).collect();
            // One more than there are models: a request that names none.
            let model = MODELS.get(random.below(MODELS.len() + 1)).copied();
            let sent = Instant::now();
            let judged = self.embed(&mut client, model, &texts).await;
            let mut tally = self.tally.borrow_mut();
            match judged {
                Ok((name, cosine)) => tally.count(name, texts.len(), cosine, sent.elapsed()),
                Err(failure) => tally.fail(&failure),
            }
        }
    }

    /// Returns who answered and the lowest cosine to that model's vectors.
    async fn embed(
        &self,
        client: &mut Client,
        model: Option<&'static str>,
        texts: &[usize],
    ) -> Result<(&'static str, f64), Failure> {
        let words: Vec<&str> = texts.iter().map(|&text| self.texts[text].as_str()).collect();
        let answer = client.embed(model, &words).await?;
        let name = MODELS.into_iter().find(|name| answer.model == *name).ok_or("an unknown model answered")?;
        if let Some(model) = model.filter(|model| *model != name) {
            return Err(format!("{name} answered for {model}").into());
        }
        let mut lowest = f64::INFINITY;
        for (&text, vector) in texts.iter().zip(&answer.vectors) {
            let right = &self.right[name][text];
            if right.len() != vector.len() {
                return Err(format!("a vector of {name} has {} dimensions", vector.len()).into());
            }
            lowest = lowest.min(cosine(right, vector));
        }
        Ok((name, lowest))
    }

    /// Loads, unloads and makes active at random until the time is over.
    async fn operate(&self, mut random: Random) {
        let mut client = Client::new(self.address);
        while Instant::now() < self.ends {
            let model = MODELS[random.below(MODELS.len())];
            let order = ORDERS[random.below(ORDERS.len())];
            let done = match order {
                Order::Load => client.load(model).await.map(drop),
                Order::Unload => client.unload(model).await,
                Order::Activate => client.activate(model).await,
            };
            match done {
                Ok(()) => self.tally.borrow_mut().count_order(order),
                Err(failure) => self.tally.borrow_mut().fail(&failure),
            }
            let pause_ms = PAUSE_MS.start + random.below(PAUSE_MS.len());
            tokio::time::sleep(Duration::from_millis(pause_ms as u64)).await;
        }
    }
}

impl Tally {
    fn new() -> Self {
        let nothing =
            || ModelTally { n_requests: 0, n_texts: 0, lowest_cosine: f64::INFINITY, slowest: Duration::ZERO };
        Self {
            by_model: MODELS.map(|model| (model, nothing())).into(),
            n_failed: 0,
            n_loads: 0,
            n_unloads: 0,
            n_switches: 0,
        }
    }

    fn count(&mut self, model: &'static str, n_texts: usize, cosine: f64, took: Duration) {
        if let Some(tally) = self.by_model.get_mut(model) {
            tally.n_requests += 1;
            tally.n_texts += n_texts;
            tally.lowest_cosine = tally.lowest_cosine.min(cosine);
            tally.slowest = tally.slowest.max(took);
        }
    }

    fn count_order(&mut self, order: Order) {
        match order {
            Order::Load => self.n_loads += 1,
            Order::Unload => self.n_unloads += 1,
            Order::Activate => self.n_switches += 1,
        }
    }

    fn fail(&mut self, failure: &Failure) {
        self.n_failed += 1;
        if self.n_failed <= N_PRINTED {
            println!("  failed: {failure}");
        }
    }

    fn lowest_cosine(&self) -> f64 {
        self.by_model.values().map(|model| model.lowest_cosine).fold(f64::INFINITY, f64::min)
    }

    fn print(&self) {
        let n_requests: usize = self.by_model.values().map(|model| model.n_requests).sum();
        println!(
            "{n_requests} requests; {} loads, {} unloads, {} switches were asked for",
            self.n_loads, self.n_unloads, self.n_switches
        );
        for (name, model) in &self.by_model {
            let ModelTally { n_requests, n_texts, lowest_cosine, slowest } = model;
            println!(
                "  {name:20} {n_requests:7} requests {n_texts:7} texts   lowest cosine {lowest_cosine:.6}   slowest {:.1} s",
                slowest.as_secs_f64()
            );
        }
    }
}
