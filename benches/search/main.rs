//! Searching and writing grains over HTTP.
//!
//! `cargo bench --bench search -- --help`. `growth` searches vectors drawn around random centres, as many as asked for,
//! beside sqlite-vec on the same ones; `quality` searches Debian's package descriptions by what they are in short; `spaces`
//! does so with the descriptions in two spaces.

mod growth;
mod peer;
mod quality;
mod spaces;
mod store;
#[path = "../support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::support::machine::Origin;
use self::support::server::Granary;

/// Search grains, and write them
#[derive(Debug, Parser)]
struct Options {
    #[command(subcommand)]
    what: What,
    /// Granary's binary
    #[arg(long, global = true, default_value = env!("CARGO_BIN_EXE_granary"))]
    binary: PathBuf,
    /// What cargo passes to every benchmark
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Latency, throughput, recall and memory as the store grows
    Growth(growth::Options),
    /// How well real texts are found, and how fast they are written
    Quality(quality::Options),
    /// How well real texts are found that lie in two spaces
    Spaces(spaces::Options),
}

fn main() -> ExitCode {
    let options = Options::parse();
    println!("{}", Origin::here().line());
    let granary = |settings| Granary { binary: options.binary.clone(), settings };
    let done = support::run(async {
        match &options.what {
            What::Growth(growth) => growth::run(growth, granary).await,
            What::Quality(quality) => quality::run(quality, granary).await,
            What::Spaces(spaces) => spaces::run(spaces, granary).await,
        }
    });
    support::exit_code(done)
}
