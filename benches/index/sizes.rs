//! One index of one size: speed, recall, memory and files.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use granary::grains::index::{QUANTISE_ABOVE, Scored, Serving, SpaceIndex};

use crate::support::Failure;
use crate::support::clusters::{N_HITS, Source, Truth};
use crate::support::process::Usage;
use crate::support::stats::{milliseconds, percentile, sorted_ms};
use crate::{Options, constants};

/// Filters keep the numbers that are a multiple of: all, 10 %, 1 %, 0.1 %. So spread, no part of a scan can be left out.
const STEPS: [i64; 4] = [1, 10, 100, 1_000];

/// Callers at once, for the throughput.
const N_CALLERS: usize = 8;

/// How long throughput is measured.
const THROUGHPUT: Duration = Duration::from_secs(3);

pub fn measure(options: &Options, source: &Source, n: usize) -> Result<(), Failure> {
    println!("\n{n} vectors of {} dimensions:", options.dimensions);
    let truths = source.truths(n, &STEPS)?;
    let rss_before = rss();
    let mut index = SpaceIndex::create(options.index(QUANTISE_ABOVE)?)?;
    let mut adding = Duration::ZERO;
    source.each(n, |first, rows| {
        let started = Instant::now();
        for (row, number) in rows.chunks_exact(options.dimensions).zip(first..) {
            index.put(number, row, Serving::Served)?;
        }
        adding += started.elapsed();
        Ok(())
    })?;
    println!("  adding: {:.1} s, {:.1} us each", adding.as_secs_f64(), adding.as_secs_f64() * 1e6 / n as f64);
    size(&index, n, rss_before);
    searches(&index, source, &truths, n)?;
    if !options.no_constants && n > QUANTISE_ABOVE {
        constants::candidates(&index, source, &truths[0])?;
        constants::listed(&index, source, n)?;
    }
    throughput(&index, source)?;
    let index = changes(index, source, n)?;
    files(options, index, source, rss_before)
}

fn size(index: &SpaceIndex, n: usize, rss_before: u64) {
    let per_vector = |bytes: u64| bytes as f64 / n as f64;
    println!(
        "  bytes a vector: {:.0} in memory, {:.0} on disk; RSS {} MB more than before, {} MB in all",
        per_vector(index.size().memory),
        per_vector(index.size().disk),
        rss().saturating_sub(rss_before) / 1_000_000,
        rss() / 1_000_000
    );
}

/// Latency of one caller and recall, of all and under filters.
fn searches(index: &SpaceIndex, source: &Source, truths: &[Truth], n: usize) -> Result<(), Failure> {
    for (step, truth) in STEPS.into_iter().zip(truths) {
        let kept: Vec<i64> = (1..=i64::try_from(n)?).filter(|number| number % step == 0).collect();
        let (mut latencies, mut total) = (Vec::new(), 0.0);
        for (query, expected) in source.queries().zip(truth) {
            let started = Instant::now();
            let hits = match step {
                1 => index.nearest(query, N_HITS)?,
                _ => index.nearest_among(query, &kept, N_HITS)?,
            };
            latencies.push(started.elapsed());
            total += recall(&hits, expected);
        }
        let sorted = sorted_ms(&latencies);
        println!(
            "  nearest {N_HITS} of {:>7}: p50 {:.2} ms, p99 {:.2} ms, recall {:.4}",
            kept.len(),
            percentile(&sorted, 50),
            percentile(&sorted, 99),
            total / truth.len() as f64
        );
    }
    Ok(())
}

fn throughput(index: &SpaceIndex, source: &Source) -> Result<(), Failure> {
    let queries: Vec<&[f32]> = source.queries().collect();
    let next = AtomicUsize::new(0);
    let started = Instant::now();
    let latencies = thread::scope(|scope| {
        let caller = || {
            let mut latencies = Vec::new();
            while started.elapsed() < THROUGHPUT {
                let query = queries[next.fetch_add(1, Ordering::Relaxed) % queries.len()];
                let asked = Instant::now();
                std::hint::black_box(index.nearest(query, N_HITS)?);
                latencies.push(asked.elapsed());
            }
            Ok::<_, Failure>(latencies)
        };
        let callers: Vec<_> = (0..N_CALLERS).map(|_| scope.spawn(caller)).collect();
        let done = callers.into_iter().map(|caller| caller.join().map_err(|_| "a caller panicked")?);
        done.collect::<Result<Vec<_>, Failure>>()
    })?;
    let elapsed = started.elapsed();
    let sorted = sorted_ms(&latencies.concat());
    println!(
        "  {N_CALLERS} callers: {:.0} searches/s, p50 {:.2} ms, p99 {:.2} ms",
        sorted.len() as f64 / elapsed.as_secs_f64(),
        percentile(&sorted, 50),
        percentile(&sorted, 99)
    );
    Ok(())
}

/// Changes with a search after each, which must not pay for them.
fn changes(mut index: SpaceIndex, source: &Source, n: usize) -> Result<SpaceIndex, Failure> {
    let (mut changing, mut searching) = (Vec::new(), Vec::new());
    for (query, number) in source.queries().zip((1..=i64::try_from(n)?).step_by(n / 200 + 1)) {
        let started = Instant::now();
        index.put(number, query, Serving::Served)?;
        changing.push(started.elapsed());
        let started = Instant::now();
        let hits = index.nearest(query, N_HITS)?;
        searching.push(started.elapsed());
        if hits.first().is_none_or(|hit| hit.number != number) {
            return Err(format!("grain {number} was not found right after its change").into());
        }
    }
    println!(
        "  replacing: p50 {:.3} ms; the search right after it: p50 {:.2} ms",
        percentile(&sorted_ms(&changing), 50),
        percentile(&sorted_ms(&searching), 50)
    );
    Ok(index)
}

fn files(options: &Options, mut index: SpaceIndex, source: &Source, rss_before: u64) -> Result<(), Failure> {
    let started = Instant::now();
    index.save()?;
    let saving = started.elapsed();
    let n = index.len();
    drop(index);
    let started = Instant::now();
    let index = SpaceIndex::load(options.index(QUANTISE_ABOVE)?)?;
    let loading = started.elapsed();
    let query = source.queries().next().ok_or("no queries")?;
    let started = Instant::now();
    index.nearest(query, N_HITS)?;
    println!(
        "  save {:.2} s, load {:.2} s, first search {:.1} ms",
        saving.as_secs_f64(),
        loading.as_secs_f64(),
        milliseconds(started.elapsed())
    );
    size(&index, n, rss_before);
    Ok(())
}

fn rss() -> u64 {
    Usage::of_tree(std::process::id()).rss_bytes
}

/// The share of `expected` that was found.
pub fn recall(hits: &[Scored], expected: &[i64]) -> f64 {
    let n_found = expected.iter().filter(|&&number| hits.iter().any(|hit| hit.number == number)).count();
    n_found as f64 / expected.len().max(1) as f64
}
