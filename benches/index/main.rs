//! The index of a space alone: how fast, how right and how large it is, and where its constants come from.
//!
//! `cargo bench --bench index -- --help`. Vectors are drawn around random centres from a seed, or read from a file.

mod constants;
mod sizes;
#[path = "../support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use granary::domain::space::SpaceId;
use granary::grains::index::{Identity, IndexOptions, scan_on};
use granary::models::hardware;

use self::support::Failure;
use self::support::clusters::Source;
use self::support::machine::Origin;

/// Search spaces of several sizes, and measure what the index's constants were chosen by
#[derive(Debug, Parser)]
struct Options {
    /// Vectors in the index
    #[arg(long, value_delimiter = ',', default_value = "10000,100000,1000000")]
    sizes: Vec<usize>,
    /// Their length
    #[arg(long, default_value_t = 384)]
    dimensions: usize,
    /// Queries of which the share of the nearest 10 that is found is measured
    #[arg(long, default_value_t = 200)]
    queries: usize,
    /// Only the sizes, without the measurement of the constants
    #[arg(long)]
    no_constants: bool,
    /// Vectors to use instead: little-endian f32, `[n][dimensions]`. The last of them are the queries
    #[arg(long, value_name = "FILE")]
    vectors: Option<PathBuf>,
    /// In which folder the index's files get one of their own, which is deleted at the end
    #[arg(long, value_name = "FOLDER", default_value = "target")]
    folder: PathBuf,
    /// What cargo passes to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    fn index(&self, quantise_above: usize) -> Result<IndexOptions, Failure> {
        let identity = Identity {
            database: "benchmark".to_owned(),
            epoch: "only".to_owned(),
            space: SpaceId::parse("0123456789abcdef")?,
        };
        Ok(IndexOptions { quantise_above, ..IndexOptions::new(self.folder.clone(), self.dimensions, identity) })
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    println!("{}", Origin::here().line());
    support::exit_code(run_in_scratch(options))
}

fn run_in_scratch(options: Options) -> Result<(), Failure> {
    fs_err::create_dir_all(&options.folder)?;
    let scratch = tempfile::Builder::new().prefix("bench-index").tempdir_in(&options.folder)?;
    let done = run(&Options { folder: scratch.path().to_owned(), ..options });
    scratch.close()?;
    done
}

fn run(options: &Options) -> Result<(), Failure> {
    scan_on(hardware::cores(0))?;
    let source = Source::open(options.dimensions, options.queries, options.vectors.as_deref())?;
    if !options.no_constants {
        constants::crossover(options, &source)?;
    }
    for &size in &options.sizes {
        sizes::measure(options, &source, size.min(source.len()))?;
    }
    Ok(())
}
