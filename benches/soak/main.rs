//! Granary over time: models that come and go under load, again and again, within a memory budget, and behind nginx.
//!
//! `cargo bench --bench soak -- --help`. Each subcommand starts a server of its own, prints its figures, and ends with
//! exit code 1 when a line is broken. benches/README.md says what the lines are.

mod budget;
mod checks;
mod cycles;
mod models;
mod proxy;
#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../../tests/it/helpers/proxy.rs"]
mod proxy_process;
mod soak;
#[path = "../support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use self::checks::Checks;
use self::support::machine::Origin;
use self::support::server::Granary;

/// Run Granary for long, and see whether anything breaks or leaks
#[derive(Debug, Parser)]
struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Three models under load while they are loaded, unloaded and made active at random
    Soak {
        /// How long the load lasts after the warm-up
        #[arg(long, default_value_t = 600)]
        seconds: u64,
        #[command(flatten)]
        common: Common,
    },
    /// One large model, loaded and unloaded again and again
    Cycles {
        /// How often
        #[arg(long, default_value_t = 20)]
        cycles: usize,
        #[command(flatten)]
        common: Common,
    },
    /// Everything at once behind nginx, and a stop in the middle of it
    Proxy {
        /// How long the load lasts
        #[arg(long, default_value_t = 900)]
        seconds: u64,
        #[command(flatten)]
        common: Common,
    },
    /// Three models in a budget that holds any two
    Budget {
        /// Requests in all
        #[arg(long, default_value_t = 200)]
        requests: usize,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Args)]
struct Common {
    /// Granary's binary
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_granary"))]
    binary: PathBuf,
    /// Another seed draws other texts, models and orders
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What cargo passes to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

impl Common {
    /// The server, with these settings.
    fn granary(&self, settings: Vec<(&'static str, String)>) -> Granary {
        Granary { binary: self.binary.clone(), settings }
    }
}

fn main() -> ExitCode {
    let Options { what } = Options::parse();
    println!("{}", Origin::here().line());
    let mut checks = Checks::default();
    let done = support::run(async {
        match &what {
            What::Soak { seconds, common } => soak::run(common, *seconds, &mut checks).await,
            What::Cycles { cycles, common } => cycles::run(common, *cycles, &mut checks).await,
            What::Proxy { seconds, common } => proxy::run(common, *seconds, &mut checks).await,
            What::Budget { requests, common } => budget::run(common, *requests, &mut checks).await,
        }
    });
    support::exit_code(done.and_then(|()| checks.verdict()))
}
