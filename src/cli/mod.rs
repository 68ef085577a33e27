//! The command line: what it accepts, and the verbs besides `serve`: some ask a running server, the others need none.
//!
//! Owns the flags. It refuses to judge values that the configuration can judge, so that a flag and a file give the same
//! message. Start at [`Command`].

mod client;
pub mod compare;
pub mod config;
pub mod doctor;
pub mod embed;
pub mod grains;
pub mod health;
pub mod keys;
pub mod manual;
pub mod models;
mod output;
mod pinned;
pub mod reembed;
pub mod snapshot;
pub mod spaces;
mod whole_file;

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub use self::client::{ServerArgs, ServerError};
pub use self::doctor::DoctorArgs;
pub use self::output::ProcessError;
use crate::api;
use crate::config::{ConfigSources, Overrides};

/// The arguments of the process.
#[derive(Debug, Parser)]
#[command(name = "granary", version, about, arg_required_else_help = true)]
#[command(
    after_help = "Settings come from granary.toml in the working directory, from variables such as GRANARY_SERVER__PORT, \
                  and from flags. `granary config --default` prints them all, with comments."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the process does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve embeddings over HTTP
    Serve(ServeArgs),
    /// What ends by itself.
    #[command(flatten)]
    Verb(Verb),
}

/// What the process does besides serving.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Print the effective configuration as TOML, or what is wrong with it: printing is the check
    Config(ConfigArgs),
    /// Check whether serving would work here, and say what to do if not; what it prints belongs into a bug report
    Doctor(DoctorArgs),
    /// Ask a running server whether it is ready; the exit status says it too
    Health(health::HealthArgs),
    /// List, pull, register, load, switch and delete the models of a running server
    Models(models::ModelsArgs),
    /// Embed texts with a model of a running server: a line of JSON for each
    Embed(embed::EmbedArgs),
    /// Import, export, search, show, count and delete the grains of a running server
    Grains(grains::GrainsArgs),
    /// Add, list and remove the API keys of a server on this machine
    Keys(keys::KeysArgs),
    /// Compare two models on the grains of a running server, before one takes the other's place
    Compare(compare::CompareArgs),
    /// Move the grains of a running server to another model, and back
    Reembed(reembed::ReembedArgs),
    /// List the spaces of a running server, and what made their vectors, and declare one
    Spaces(spaces::SpacesArgs),
    /// Make, list, fetch and delete snapshots of a running server, and restore one to a server that is stopped
    Snapshot(snapshot::SnapshotArgs),
    /// Print the OpenAPI document as JSON
    Openapi,
    /// Print the manual page, or write those of all commands
    Man(manual::ManArgs),
    /// Print the script by which a shell completes commands and flags
    Completions(manual::CompletionsArgs),
}

/// Why a verb did not work, in its own words.
pub type Failure = Box<dyn std::error::Error>;

/// Does what `verb` says, and prints to `out` what came of it.
///
/// # Errors
/// Those of the verb.
pub fn run(verb: Verb, out: &mut impl Write) -> Result<(), Failure> {
    match verb {
        Verb::Config(args) => config::run(args, out),
        Verb::Doctor(args) => doctor::run(args, out).map_err(Failure::from),
        Verb::Health(args) => health::run(args, out).map_err(Failure::from),
        Verb::Models(args) => models::run(args, out),
        Verb::Embed(args) => embed::run(args, out),
        Verb::Grains(args) => grains::run(args, out),
        Verb::Keys(args) => keys::run(args, out),
        Verb::Compare(args) => compare::run(args, out),
        Verb::Reembed(args) => reembed::run(args, out),
        Verb::Spaces(args) => spaces::run(args, out),
        Verb::Snapshot(args) => snapshot::run(args, out).map_err(Failure::from),
        Verb::Openapi => output::print(&api::openapi::json(), out).map_err(Failure::from),
        Verb::Man(args) => manual::man(args, out),
        Verb::Completions(args) => manual::completions(&args, out),
    }
}

/// The flags of `granary serve`: each wins over the environment and the file.
#[derive(Clone, Debug, Default, Args)]
pub struct ServeArgs {
    /// Read this configuration file [default: granary.toml, if there is one]
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
    /// Listen on this address or host name (`server.host`)
    #[arg(long)]
    pub host: Option<String>,
    /// Listen on this port, 0 for a free one (`server.port`)
    #[arg(long, allow_negative_numbers = true)]
    pub port: Option<String>,
    /// Begin with this model if none was made active before (`ai.model_name`)
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Keep models and the database in this directory (`models.data_dir`)
    #[arg(long, value_name = "PATH")]
    pub data_dir: Option<PathBuf>,
    /// Write logs as `text` or `json` (`telemetry.log_format`)
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
}

impl ServeArgs {
    /// Where the server's configuration comes from: these flags over the process's environment over the file.
    #[must_use]
    pub fn into_sources(self) -> ConfigSources {
        let overrides = Overrides {
            host: self.host,
            port: self.port,
            model: self.model,
            data_dir: self.data_dir,
            log_format: self.log_format,
        };
        ConfigSources::from_process(self.config, overrides)
    }
}

/// The flags of `granary config`.
#[derive(Clone, Debug, Default, Args)]
pub struct ConfigArgs {
    /// Print the commented default instead
    #[arg(long, conflicts_with = "config")]
    pub default: bool,
    /// Read this configuration file [default: granary.toml, if there is one]
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_of_serve_become_overrides() {
        let line = "granary serve --config c.toml --host h --port 0 --model m --data-dir d --log-format json";
        let Command::Serve(serve) = Cli::try_parse_from(line.split(' ')).expect("valid flags").command else {
            panic!("not `serve`");
        };
        let sources = serve.into_sources();
        assert_eq!(sources.file, Some("c.toml".into()));
        assert_eq!(
            sources.overrides,
            Overrides {
                host: Some("h".into()),
                port: Some("0".into()),
                model: Some("m".into()),
                data_dir: Some("d".into()),
                log_format: Some("json".into()),
            }
        );
    }

    #[test]
    fn no_verb_prints_help() {
        let error = Cli::try_parse_from(["granary"]).expect_err("help");
        assert!(error.to_string().contains("Usage: granary <COMMAND>"), "{error}");
    }
}
