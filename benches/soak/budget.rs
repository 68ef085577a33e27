//! `budget`: three models share a budget that holds any two, and every request is answered all the same.
//!
//! What models take is counted as the server does it: resident memory over that of the process before its first load,
//! so that the runtime library counts too. No model is loaded at the start because the active one, a tiny one, was
//! disabled in an earlier run over the same database.

use std::cell::Cell;
use std::time::{Duration, Instant};

use futures::future::join_all;

use crate::Common;
use crate::checks::{Checks, mib};
use crate::models::{BERT, Client, MINILM, TINY, known};
use crate::support::Failure;
use crate::support::golden::Golden;
use crate::support::process::Usage;
use crate::support::random::Random;
use crate::support::server::{Contender, Server};

/// The folder of `BERT` under another name, pooled in another way: another model to the server.
const BERT_CLS: &str = "bert-cls";
const MODELS: [&str; 3] = [MINILM, BERT, BERT_CLS];
const N_CALLERS: usize = 4;
const MOST_TEXTS: usize = 4;
/// After a load, before memory is read.
const SETTLE: Duration = Duration::from_secs(2);
const POLL_EVERY: Duration = Duration::from_millis(50);
/// By how much what models take may pass the budget after a load.
const TOLERANCE: f64 = 1.1;

/// Runs the programme.
pub async fn run(common: &Common, n_requests: usize, checks: &mut Checks) -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let entries = [(BERT, BERT, None), (BERT_CLS, BERT, Some("cls")), (TINY, TINY, None)];
    let mut settings = vec![
        known(&entries)?,
        ("GRANARY_AI__MODEL_NAME", TINY.to_owned()),
        ("GRANARY_MODELS__LOAD_TIMEOUT", "60s".to_owned()),
        ("GRANARY_GRAINS__DATABASE_URL", format!("sqlite:{}", folder.path().join("granary.db").display())),
    ];
    let server = Server::start(Contender::Granary, &common.granary(settings.clone())).await?;
    Client::new(server.address).disable(TINY).await?;
    server.stop().await?;

    let server = Server::start_without_vector(&common.granary(settings.clone())).await?;
    let budget_bytes = learn_budget(&server).await?;
    server.stop().await?;

    settings.push(("GRANARY_MODELS__MEMORY_BUDGET", format!("{budget_bytes}B")));
    let server = Server::start_without_vector(&common.granary(settings)).await?;
    tokio::time::sleep(SETTLE).await;
    let golden = Golden::read(std::path::Path::new("tests/golden/all-MiniLM-L6-v2.ndjson"))?;
    let mut random = Random::new(common.seed);
    let mut order: Vec<&str> = MODELS.into_iter().cycle().take(n_requests).collect();
    random.shuffle(&mut order);
    let requests = Requests { order, next: Cell::new(0), n_failed: Cell::new(0), texts: golden.texts };
    let mut watch = Watch::start(&server);
    println!("{n_requests} requests of {N_CALLERS} callers in the budget ...");
    let started = Instant::now();
    let done = Cell::new(false);
    let callers: Vec<_> = (0..N_CALLERS).map(|_| requests.call(Client::new(server.address), random.fork())).collect();
    let calling = async {
        join_all(callers).await;
        done.set(true);
        started.elapsed()
    };
    let (took, watched) = tokio::join!(calling, watch.until(&done));
    watched?;
    let mut client = Client::new(server.address);
    let n_evictions = total(&client.metric("granary_model_evictions_total").await?, "reason=\"budget\"");
    let n_failed_loads = total(&client.metric("granary_model_loads_total").await?, "outcome=\"failed\"");
    server.stop().await?;

    println!(
        "{:.1} s; {:.0} loads, {n_evictions:.0} evictions; {:.0} MiB at most at any time, loads included",
        took.as_secs_f64(),
        watch.n_loads,
        mib(watch.peak_bytes)
    );
    println!("  then: {}", watch.at_peak);
    let n_failed = requests.n_failed.get();
    checks.line(n_failed == 0, &format!("{n_failed} failed requests of {n_requests} (0 wanted)"));
    checks.line(n_failed_loads < 1.0, &format!("{n_failed_loads:.0} failed loads (0 wanted)"));
    checks.line(n_evictions > 0.0, &format!("{n_evictions:.0} evictions for the budget (> 0 wanted)"));
    let most = watch.most_ready;
    checks.line(most == 2, &format!("at most {most} models loaded at once (2 wanted: any two fit, three do not)"));
    let highest = |samples: &mut dyn Iterator<Item = &Sample>| samples.map(|sample| sample.bytes).max().unwrap_or(0);
    let in_peace = highest(&mut watch.samples.iter().filter(|sample| !sample.during_load));
    let over = watch.samples.iter().filter(|sample| sample.bytes > budget_bytes).count();
    println!("{over} readings after loads above the budget; outside of later loads at most {:.0} MiB", mib(in_peace));
    let highest = highest(&mut watch.samples.iter());
    let share = highest as f64 / budget_bytes as f64;
    checks.line(
        share <= TOLERANCE && !watch.samples.is_empty(),
        &format!(
            "{SETTLE:?} after {} loads: at most {:.0} MiB, {share:.3} of the budget (≤ {TOLERANCE} wanted)",
            watch.samples.len(),
            mib(highest)
        ),
    );
    Ok(())
}

/// Loads each model alone, and chooses a budget half-way between the most that two take and what three take.
async fn learn_budget(server: &Server) -> Result<u64, Failure> {
    let rss = || Usage::of_tree(server.pid()).rss_bytes;
    tokio::time::sleep(SETTLE).await;
    let empty_bytes = rss();
    println!("without models {:.0} MiB resident; over that, each model alone:", mib(empty_bytes));
    let mut client = Client::new(server.address);
    let mut costs = Vec::new();
    for model in MODELS {
        let cost_bytes = client.load(model).await?["memory_bytes"].as_u64().ok_or("a load without `memory_bytes`")?;
        tokio::time::sleep(SETTLE).await;
        let (cost, alone) = (mib(cost_bytes), mib(rss().saturating_sub(empty_bytes)));
        println!("  {model:20} {cost:5.0} MiB by the server's measure, {alone:5.0} MiB by RSS {SETTLE:?} later");
        client.unload(model).await?;
        costs.push(cost_bytes);
    }
    let library_bytes = rss().saturating_sub(empty_bytes);
    costs.sort_unstable();
    let three: u64 = costs.iter().sum();
    let two = three - costs[0];
    let budget_bytes = library_bytes + u64::midpoint(two, three);
    println!(
        "  with none again {:.0} MiB, the runtime library; so two take at most {:.0} MiB, three {:.0} MiB, and the budget \
         is {:.0} MiB",
        mib(library_bytes),
        mib(library_bytes + two),
        mib(library_bytes + three),
        mib(budget_bytes)
    );
    Ok(budget_bytes)
}

/// What the callers take turns at.
struct Requests {
    order: Vec<&'static str>,
    next: Cell<usize>,
    n_failed: Cell<usize>,
    texts: Vec<String>,
}

impl Requests {
    /// Sends the next request until there is none.
    async fn call(&self, mut client: Client, mut random: Random) {
        while let Some(&model) = self.order.get(self.next.replace(self.next.get() + 1)) {
            let texts: Vec<&str> =
                (0..=random.below(MOST_TEXTS)).map(|_| self.texts[random.below(self.texts.len())].as_str()).collect();
            let failure = match client.embed(Some(model), &texts).await {
                Ok(answer) if answer.model == model => continue,
                Ok(answer) => format!("{} answered for {model}", answer.model),
                Err(failure) => failure.to_string(),
            };
            println!("  failed: {failure}");
            self.n_failed.set(self.n_failed.get() + 1);
        }
    }
}

/// Watches loads and memory from outside.
struct Watch {
    client: Client,
    pid: u32,
    empty_bytes: u64,
    n_loads: f64,
    most_ready: usize,
    peak_bytes: u64,
    /// What each model was doing then.
    at_peak: String,
    /// What models took some time after each load.
    samples: Vec<Sample>,
}

#[derive(Clone, Copy)]
struct Sample {
    bytes: u64,
    /// Whether another load was under way, which takes more than its model will.
    during_load: bool,
}

impl Watch {
    /// Takes what is resident now for the size without models.
    fn start(server: &Server) -> Self {
        let empty_bytes = Usage::of_tree(server.pid()).rss_bytes;
        println!("without models {:.0} MiB resident", mib(empty_bytes));
        Self {
            client: Client::new(server.address),
            pid: server.pid(),
            empty_bytes,
            n_loads: 0.0,
            most_ready: 0,
            peak_bytes: 0,
            at_peak: String::new(),
            samples: Vec::new(),
        }
    }

    /// Watches until the callers are done and memory was read after the last load.
    async fn until(&mut self, done: &Cell<bool>) -> Result<(), Failure> {
        let mut due: Vec<Instant> = Vec::new();
        let mut every = tokio::time::interval(POLL_EVERY);
        while !done.get() || !due.is_empty() {
            every.tick().await;
            let n_loads = total(&self.client.metric("granary_model_loads_total").await?, "outcome=\"loaded\"");
            if n_loads > self.n_loads {
                self.n_loads = n_loads;
                due.push(Instant::now() + SETTLE);
            }
            let states = self.client.metric("granary_model_state").await?;
            let n_in = |state: &str| states.iter().filter(|(labels, on)| labels.contains(state) && *on > 0.0).count();
            self.most_ready = self.most_ready.max(n_in("state=\"ready\""));
            let models_bytes = Usage::of_tree(self.pid).rss_bytes.saturating_sub(self.empty_bytes);
            if models_bytes > self.peak_bytes {
                self.peak_bytes = models_bytes;
                let current = states.iter().filter(|(labels, on)| *on > 0.0 && !labels.contains("unloaded"));
                self.at_peak = current.map(|(labels, _)| labels.as_str()).collect::<Vec<_>>().join("; ");
            }
            let n_due = due.len();
            due.retain(|at| *at > Instant::now());
            if due.len() < n_due {
                self.samples.push(Sample { bytes: models_bytes, during_load: n_in("state=\"loading\"") > 0 });
            }
        }
        Ok(())
    }
}

/// The sum over the series whose labels hold this one.
fn total(series: &[(String, f64)], label: &str) -> f64 {
    series.iter().filter(|(labels, _)| labels.contains(label)).fold(0.0, |sum, (_, value)| sum + value)
}
