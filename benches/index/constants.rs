//! What the index's constants were chosen by.

use std::fmt::Write;
use std::time::Instant;

use granary::grains::index::{Serving, SpaceIndex};

use crate::Options;
use crate::sizes::recall;
use crate::support::Failure;
use crate::support::clusters::{N_HITS, Source, Truth};
use crate::support::stats::{percentile, sorted_ms};

/// From how many vectors on codes are faster than comparing all.
pub fn crossover(options: &Options, source: &Source) -> Result<(), Failure> {
    println!("\nexact and quantised, p50 (p99) ms of the nearest {N_HITS}, one caller:");
    for n in [2_000, 5_000, 10_000, 20_000, 50_000] {
        let n = n.min(source.len());
        let mut line = format!("  {n:>7}");
        for (name, quantise_above) in [("exact", usize::MAX), ("quantised", 0)] {
            let mut index = SpaceIndex::create(options.index(quantise_above)?)?;
            source.each(n, |first, rows| {
                for (row, number) in rows.chunks_exact(options.dimensions).zip(first..) {
                    index.put(number, row, Serving::Served)?;
                }
                Ok(())
            })?;
            let mut latencies = Vec::new();
            for query in source.queries().chain(source.queries()) {
                let started = Instant::now();
                std::hint::black_box(index.nearest(query, N_HITS)?);
                latencies.push(started.elapsed());
            }
            let sorted = sorted_ms(&latencies);
            write!(line, "  {name} {:.3} ({:.3})", percentile(&sorted, 50), percentile(&sorted, 99))?;
        }
        println!("{line}");
    }
    Ok(())
}

/// How many of the nearest are found when so many candidates are compared.
pub fn candidates(index: &SpaceIndex, source: &Source, truth: &Truth) -> Result<(), Failure> {
    let mut line = "  recall by candidates:".to_owned();
    for n_candidates in [10, 20, 30, 50, 100, 200] {
        let mut total = 0.0;
        for (query, expected) in source.queries().zip(truth) {
            let candidates = index.candidates(query, n_candidates)?;
            let numbers: Vec<i64> = candidates.iter().map(|candidate| candidate.number).collect();
            let mut hits = index.score(query, &numbers)?;
            hits.truncate(N_HITS);
            total += recall(&hits, expected);
        }
        write!(line, "  {n_candidates}: {:.4}", total / truth.len() as f64)?;
    }
    println!("{line}");
    Ok(())
}

/// Until how many listed grains it is faster to read the vectors of all.
pub fn listed(index: &SpaceIndex, source: &Source, n: usize) -> Result<(), Failure> {
    let mut line = "  reading and comparing every listed vector, p50 ms:".to_owned();
    for n_listed in [250, 500, 1_000, 2_000, 4_000, 8_000] {
        let numbers: Vec<i64> = (1..=i64::try_from(n)?).step_by((n / n_listed).max(1)).collect();
        let mut latencies = Vec::new();
        for query in source.queries().take(50) {
            let started = Instant::now();
            std::hint::black_box(index.score(query, &numbers)?);
            latencies.push(started.elapsed());
        }
        write!(line, "  {}: {:.2}", numbers.len(), percentile(&sorted_ms(&latencies), 50))?;
    }
    println!("{line}");
    Ok(())
}
