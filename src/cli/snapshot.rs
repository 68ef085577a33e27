//! `granary snapshot restore`: a snapshot takes the place of the database. It opens files only, under the database's lock.

use std::io::Write;
use std::path::{self, PathBuf};

use clap::{Args, Subcommand};

use super::output::{self, ProcessError};
use crate::config::{Config, ConfigError, ConfigSources, Overrides};
use crate::grains::store::{StoreError, restore};

/// The arguments of `granary snapshot`.
#[derive(Clone, Debug, Args)]
pub struct SnapshotArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Debug, Subcommand)]
enum Verb {
    /// Put a snapshot in place of the database of a server that is stopped; what was there is kept beside it
    Restore(RestoreArgs),
}

#[derive(Clone, Debug, Args)]
struct RestoreArgs {
    /// The snapshot, as `POST /snapshots` made it, or another database file of Granary's that is not in use
    file: PathBuf,
    /// Read this configuration file [default: granary.toml, if there is one]
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
    /// The database is in this directory (`models.data_dir`)
    #[arg(long, value_name = "PATH")]
    data_dir: Option<PathBuf>,
}

/// Nothing was restored, or nobody can be told.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotCliError {
    /// The configuration says not where the database is.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The snapshot or the database.
    #[error("nothing was restored")]
    Store(#[from] StoreError),
    /// The process.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Nobody takes the output.
    #[error("the snapshot is restored, but nobody is told so")]
    Print(#[source] ProcessError),
}

/// Restores, and prints to `out` what was done.
///
/// # Errors
/// [`SnapshotCliError`].
pub fn run(args: SnapshotArgs, out: &mut impl Write) -> Result<(), SnapshotCliError> {
    let Verb::Restore(RestoreArgs { file, config, data_dir }) = args.verb;
    let overrides = Overrides { data_dir, ..Overrides::default() };
    let database = Config::load(&ConfigSources::from_process(config, overrides))?.database_path();
    let replaced = output::runtime()?.block_on(restore(&database, &file))?;
    // Absolute, because another folder than the server's is the usual mistake.
    let database = path::absolute(&database).unwrap_or(database);
    let (database, file) = (database.display(), file.display());
    let said = match replaced {
        Some(old) => format!("`{database}` is `{file}` now; what it was before is `{}`\n", old.display()),
        None => format!("`{database}` is `{file}` now; there was no database there before\n"),
    };
    output::print(&said, out).map_err(SnapshotCliError::Print)
}
