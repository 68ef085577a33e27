//! `granary snapshot`: the snapshots of a running server, over HTTP; and `restore`, by which one takes the place of the
//! database. That opens files only, under the database's lock.

use std::io::{self, Write};
use std::path::{self, Path, PathBuf};

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::Value;

use super::client::{Client, Pieces, Request, ServerArgs, ServerError};
use super::output::{self, ProcessError, printable, text, titled};
use super::whole_file::WholeFile;
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
    /// Have a running server make a snapshot of its database, and print the snapshot's name
    Create(ServerArgs),
    /// List the snapshots of a running server, the latest first
    List(ServerArgs),
    /// Fetch a snapshot of a running server into a file
    Fetch(FetchArgs),
    /// Delete a snapshot of a running server
    Delete(DeleteArgs),
    /// Put a snapshot in place of the database of a server that is stopped; what was there is kept beside it
    Restore(RestoreArgs),
}

#[derive(Clone, Debug, Args)]
struct FetchArgs {
    /// The snapshot's name
    name: String,
    /// Where it goes, in place of what is there: a file, which has its name only when it is whole, or `-` for standard
    /// output
    file: PathBuf,
    /// Which server, and the key for it.
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Clone, Debug, Args)]
struct DeleteArgs {
    /// The snapshot's name
    name: String,
    /// Which server, and the key for it.
    #[command(flatten)]
    server: ServerArgs,
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

/// `granary snapshot` did not work, or nobody can be told what it did.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotCliError {
    /// The server.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The configuration says not where the database is.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The snapshot or the database.
    #[error("nothing was restored")]
    Store(#[from] StoreError),
    /// The file that a snapshot is fetched into.
    #[error("the snapshot cannot be written")]
    File(#[source] io::Error),
    /// The process.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Nobody takes the output.
    #[error("the snapshot is restored, but nobody is told so")]
    Print(#[source] ProcessError),
}

/// Does what `args` say, and prints to `out` what came of it.
///
/// # Errors
/// What the server refused, in its own words; [`SnapshotCliError`].
pub fn run(args: SnapshotArgs, out: &mut impl Write) -> Result<(), SnapshotCliError> {
    match args.verb {
        Verb::Create(server) => {
            let named = |snapshot: &Value| printable(text(&snapshot["name"])) + "\n";
            ask(&server, Request::new(Method::POST, &["snapshots"]), named, out)
        }
        Verb::List(server) => ask(&server, Request::get(&["snapshots"]), listed, out),
        Verb::Fetch(args) => output::runtime()?.block_on(fetch(args, out)),
        Verb::Delete(DeleteArgs { name, server }) => {
            let said = |_: &Value| format!("{name} is deleted\n");
            ask(&server, Request::new(Method::DELETE, &["snapshots", &name]), said, out)
        }
        Verb::Restore(args) => put_in_place(args, out),
    }
}

/// Sends a request, and prints what is said of the answer.
fn ask(
    server: &ServerArgs,
    request: Request,
    said: impl FnOnce(&Value) -> String,
    out: &mut impl Write,
) -> Result<(), SnapshotCliError> {
    let client = Client::new(server)?;
    let answer = output::runtime()?.block_on(client.ask(request))?;
    Ok(output::print(&said(&answer), out)?)
}

async fn fetch(args: FetchArgs, out: &mut impl Write) -> Result<(), SnapshotCliError> {
    let FetchArgs { name, file, server } = args;
    let pieces = Client::new(&server)?.fetch(Request::get(&["snapshots", &name])).await?;
    if file == Path::new("-") {
        return copy(pieces, out).await;
    }
    // As the database itself: for its owner alone.
    let mut file = WholeFile::create(file, 0o600).map_err(SnapshotCliError::File)?;
    copy(pieces, &mut file).await?;
    file.finish().map_err(SnapshotCliError::File)
}

/// Half a snapshot is none: whoever stops reading is told so.
async fn copy(mut pieces: Pieces, out: &mut impl Write) -> Result<(), SnapshotCliError> {
    while let Some(piece) = pieces.next().await? {
        out.write_all(&piece).map_err(SnapshotCliError::File)?;
    }
    out.flush().map_err(SnapshotCliError::File)
}

/// One line a snapshot, under a line of titles.
fn listed(snapshots: &Value) -> String {
    let rows = snapshots["snapshots"].as_array().into_iter().flatten().map(|snapshot| {
        let size =
            snapshot["size_bytes"].as_u64().map_or_else(|| "-".to_owned(), |n| format!("{} MiB", n.div_ceil(1 << 20)));
        [text(&snapshot["name"]).to_owned(), size, text(&snapshot["created_at"]).to_owned()]
    });
    titled(["NAME", "SIZE", "CREATED"], rows)
}

fn put_in_place(args: RestoreArgs, out: &mut impl Write) -> Result<(), SnapshotCliError> {
    let RestoreArgs { file, config, data_dir } = args;
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_says_how_large_each_snapshot_is() {
        let snapshots = json!({"snapshots": [
            {"name": "b.db", "size_bytes": 3_145_729, "created_at": "2026-11-25T12:00:00Z"},
            {"name": "a.db", "size_bytes": 4_096, "created_at": "2026-11-24T12:00:00Z"}]});
        assert_eq!(
            listed(&snapshots),
            "NAME  SIZE   CREATED\n\
             b.db  4 MiB  2026-11-25T12:00:00Z\n\
             a.db  1 MiB  2026-11-24T12:00:00Z\n"
        );
    }
}
