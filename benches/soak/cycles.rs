//! `cycles`: a large model is loaded and unloaded again and again, and memory comes back each time.

use crate::Common;
use crate::checks::{Checks, mib};
use crate::models::{BERT, Client, TINY, known};
use crate::support::Failure;
use crate::support::golden::Golden;
use crate::support::process::Usage;
use crate::support::server::{Contender, Server};

/// Texts embedded while the model is loaded, in one request.
const N_TEXTS: usize = 32;

/// Memory in one cycle.
struct Cycle {
    loaded_bytes: u64,
    unloaded_bytes: u64,
}

/// Runs the cycles. The active model is a tiny one, which stays loaded: what else is resident belongs to the process.
pub async fn run(common: &Common, n_cycles: usize, checks: &mut Checks) -> Result<(), Failure> {
    let entries = [(BERT, BERT, None), (TINY, TINY, None)];
    let settings = vec![known(&entries)?, ("GRANARY_AI__MODEL_NAME", TINY.to_owned())];
    let server = Server::start(Contender::Granary, &common.granary(settings)).await?;
    let golden = Golden::read(std::path::Path::new("tests/golden/all-MiniLM-L6-v2.ndjson"))?;
    let texts: Vec<&str> = golden.texts.iter().take(N_TEXTS).map(String::as_str).collect();
    let rss = || Usage::of_tree(server.pid()).rss_bytes;
    println!("{BERT}, {} texts a cycle; RSS before the first {:.0} MiB", texts.len(), mib(rss()));
    println!("  cycle   loaded MiB   unloaded MiB   load ms");
    let mut client = Client::new(server.address);
    let mut cycles = Vec::new();
    for number in 1..=n_cycles {
        let load_ms = client.load(BERT).await?["load_ms"].as_u64().unwrap_or_default();
        client.embed(Some(BERT), &texts).await?;
        let loaded_bytes = rss();
        client.unload(BERT).await?;
        let unloaded_bytes = rss();
        println!("  {number:5} {:12.1} {:14.1} {load_ms:9}", mib(loaded_bytes), mib(unloaded_bytes));
        cycles.push(Cycle { loaded_bytes, unloaded_bytes });
    }
    server.stop().await?;
    let [first, .., last] = cycles.as_slice() else { return Err("one cycle compares with none: take two".into()) };
    checks.no_growth("RSS while loaded, first cycle and last", first.loaded_bytes, last.loaded_bytes);
    checks.no_growth("RSS after the unload, first cycle and last", first.unloaded_bytes, last.unloaded_bytes);
    Ok(())
}
