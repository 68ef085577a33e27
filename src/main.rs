//! The binary: parses, loads the configuration, starts the logs, and runs.

use std::io;
use std::path::{self, Path};
use std::process::ExitCode;

use clap::Parser;
use granary::cli::{Cli, Command, Failure, ServeArgs};
use granary::config::{Config, LogFormat};
use granary::grains::index;
use granary::models::hardware;
use granary::shutdown::{self, Shutdown, Signals};
use granary::telemetry::with_causes;
use granary::{allocator, app, cli, telemetry};

fn main() -> ExitCode {
    shutdown::outlive_signals();
    let ended = match Cli::parse().command {
        Command::Serve(args) => serve(args),
        Command::Verb(verb) => cli::run(verb, &mut io::stdout()),
    };
    ended.map_or_else(
        |error| {
            telemetry::print_last(&format!("granary: {}", with_causes(error.as_ref())));
            shutdown::exit_at_once(1)
        },
        |()| {
            telemetry::flush_log();
            ExitCode::SUCCESS
        },
    )
}

fn serve(args: ServeArgs) -> Result<(), Failure> {
    let config = Config::load(&args.into_sources())?;
    let cores = hardware::cores(config.engine.cores);
    allocator::keep_little(cores);
    let filter = config.telemetry.log_filter.to_env_filter();
    let is_json = config.telemetry.log_format == LogFormat::Json;
    let log = if is_json { telemetry::log_json } else { telemetry::log_text };
    log(filter)?;
    say_where_settings_come_from(&config);
    let ended = run(config, cores);
    if let (Err(error), true) = (&ended, is_json) {
        // Whatever reads JSON may drop the line for people that `main` prints.
        tracing::error!("the server ends: {}", with_causes(error.as_ref()));
    }
    ended
}

fn run(config: Config, cores: usize) -> Result<(), Failure> {
    index::scan_on(cores)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(cores).enable_all().build()?;
    let ended = runtime.block_on(async {
        let (shutdown, drain_delay) = (Shutdown::new(), config.server.drain_delay);
        let mut signals = Signals::listen()?;
        let (app, listener) = app::start(config, shutdown.clone(), &mut signals).await?;
        shutdown.follow(signals, drain_delay);
        Ok(app.run(listener).await?)
    });
    // A load that nobody waits for any more must not hold the exit.
    runtime.shutdown_background();
    ended
}

/// A file that is not where it is looked for, and variables of an image that win over it, would else go unnoticed.
fn say_where_settings_come_from(config: &Config) {
    let absolute = |given: &Path| path::absolute(given).unwrap_or_else(|_| given.to_owned()).display().to_string();
    let file = config.file().map_or_else(|| "none".to_owned(), absolute);
    let variables: Vec<&str> = config.variables().collect();
    let (data_dir, variables) = (absolute(&config.models.data_dir), variables.join(" "));
    tracing::info!(%file, %data_dir, %variables, "the configuration was read");
    // A link that leads nowhere is no missing file, and of a closed folder it cannot be said.
    let is_missing = |file: &Path| file.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    let keys_file = config.auth.keys_file.as_deref().filter(|file| !config.auth.disabled && is_missing(file));
    if let Some(file) = keys_file.map(absolute) {
        tracing::warn!(%file, "there is no file where `auth.keys_file` says that the keys are: it counts as none");
    }
}
