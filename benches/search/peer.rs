//! sqlite-vec on the same vectors, in a Python process: another SQLite that searches vectors.

use std::io::Write;
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::support::clusters::{N_HITS, Source};
use crate::support::{Failure, data_folder};

/// Queries that it gets: it looks at every vector for each.
const N_QUERIES: usize = 20;

#[derive(Deserialize)]
struct Measured {
    version: String,
    p50_ms: f64,
    p99_ms: f64,
    inserts_per_s: f64,
    /// `[n_queries][n_hits]`
    found: Vec<Vec<i64>>,
}

/// Searches the first `n` vectors with it, and prints what that took.
pub fn measure(source: &Source, dimensions: usize, n: usize) -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let (rows, queries) = (folder.path().join("rows"), folder.path().join("queries"));
    let mut file = std::io::BufWriter::new(fs_err::File::create(&rows)?);
    source.each(n, |_, rows| Ok(file.write_all(&bytes_of(rows))?))?;
    file.flush()?;
    let of_queries: Vec<u8> = source.queries().take(N_QUERIES).flat_map(bytes_of).collect();
    fs_err::write(&queries, of_queries)?;
    let mut command = Command::new("python3");
    command.arg("benches/peers/sqlite_vec_search.py").args([&rows, &queries]);
    command.args(["--dimensions", &dimensions.to_string(), "--hits", &N_HITS.to_string()]);
    command.env("PYTHONPATH", data_folder().join("bench/python")).env("PYTHONNOUSERSITE", "1").stderr(Stdio::inherit());
    let output = command.output()?;
    if !output.status.success() {
        return Err("sqlite-vec was not measured: run `make setup-bench`".into());
    }
    let measured: Measured = serde_json::from_slice(&output.stdout)?;
    let truth = source.truths(n, &[1])?.swap_remove(0);
    let n_found = |(found, expected): (&Vec<i64>, &Vec<i64>)| expected.iter().filter(|n| found.contains(n)).count();
    let recall = measured.found.iter().zip(&truth).map(n_found).sum::<usize>() as f64 / (N_QUERIES * N_HITS) as f64;
    println!(
        "  sqlite-vec {} in its own process, without HTTP: p50 {:.2} ms, p99 {:.2} ms, recall {recall:.4}; {:.0} inserts/s",
        measured.version, measured.p50_ms, measured.p99_ms, measured.inserts_per_s
    );
    Ok(())
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
