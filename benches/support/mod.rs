//! What the benchmark programs share: servers as processes, a light HTTP client, texts that do not repeat, and what
//! /proc says of a process and of the machine.
//!
//! Nothing here knows what is measured: the programs decide that. Start at [`load`].

#![allow(dead_code, reason = "each program uses its part")]

pub mod client;
pub mod clusters;
pub mod corpus;
pub mod golden;
pub mod load;
pub mod machine;
pub mod process;
pub mod random;
pub mod server;
pub mod stats;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;
use tokio::signal::unix::SignalKind;

/// Why a benchmark cannot go on, in one sentence.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Runs a benchmark on one thread, as the cores belong to the servers. Ctrl-C and SIGTERM break it off in order, so that
/// no server is left behind.
pub fn run<T>(benchmark: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminated = tokio::signal::unix::signal(SignalKind::terminate())?;
        tokio::select! {
            done = benchmark => done,
            _ = tokio::signal::ctrl_c() => Err("stopped".into()),
            _ = terminated.recv() => Err("stopped".into()),
        }
    })
}

/// How a program ends, with a failure in words.
pub fn exit_code(ended: Result<(), Failure>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{}: {failure}", env!("CARGO_CRATE_NAME"));
            ExitCode::FAILURE
        }
    }
}

/// Writes what was found as JSON.
pub fn write_json(path: &Path, report: &impl Serialize) -> Result<(), Failure> {
    if let Some(folder) = path.parent() {
        fs_err::create_dir_all(folder)?;
    }
    Ok(fs_err::write(path, serde_json::to_string_pretty(report)? + "\n")?)
}

/// The data folder of `make setup`: `.granary`, or the one that `GRANARY_MODELS__DATA_DIR` names.
pub fn data_folder() -> PathBuf {
    std::env::var_os("GRANARY_MODELS__DATA_DIR").unwrap_or_else(|| ".granary".into()).into()
}
