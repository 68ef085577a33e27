//! The binary: parses, loads the configuration, starts the logs, and runs.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use granary::app::{self, App};
use granary::cli::{Cli, Command, ServeArgs};
use granary::config::{Config, LogFormat};
use granary::models::error::with_causes;
use granary::shutdown::{self, Shutdown};
use granary::{api, cli, telemetry};

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let ended = match Cli::parse().command {
        Command::Serve(args) => serve(args),
        Command::Config(args) => cli::config::run(args, &mut io::stdout()).map_err(Failure::from),
        Command::Doctor(args) => cli::doctor::run(args, &mut io::stdout()).map_err(Failure::from),
        Command::Models(args) => cli::models::run(args, &mut io::stdout()).map_err(Failure::from),
        Command::Snapshot(args) => cli::snapshot::run(args, &mut io::stdout()).map_err(Failure::from),
        Command::Keys(args) => cli::keys::run(args, &mut io::stdout()).map_err(Failure::from),
        Command::Grains(args) => cli::grains::run(args, &mut io::stdout()).map_err(Failure::from),
        Command::Compare(args) => cli::compare::run(args, &mut io::stdout()).map_err(Failure::from),
        Command::Reembed(args) => cli::reembed::run(args, &mut io::stdout()).map_err(Failure::from),
        Command::Openapi => io::stdout().write_all(api::openapi::json().as_bytes()).map_err(Failure::from),
    };
    ended.map_or_else(
        |error| {
            eprintln!("granary: {}", with_causes(error.as_ref()));
            shutdown::exit_at_once(1)
        },
        |()| ExitCode::SUCCESS,
    )
}

fn serve(args: ServeArgs) -> Result<(), Failure> {
    let config = Config::load(&args.into_sources())?;
    let filter = config.telemetry.log_filter.to_env_filter();
    let log = if config.telemetry.log_format == LogFormat::Json { telemetry::log_json } else { telemetry::log_text };
    log(filter)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let shutdown = Shutdown::new();
        shutdown.on_signals(config.server.drain_delay)?;
        let (listener, address) = app::bind(&config).await?;
        let app = App::build(config, shutdown).await?;
        tracing::info!("serving on http://{address}");
        Ok(app.run(listener).await?)
    });
    // A load that nobody waits for any more must not hold the exit.
    runtime.shutdown_background();
    ended
}
