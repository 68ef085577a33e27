//! `granary grains`: the grains of a running server, over HTTP.

mod adopt;
mod export;
mod import;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use reqwest::Method;
use serde_json::{Value, json};

use super::Failure;
use super::client::{Client, Request, ServerArgs};
use super::output::{self, printable};

/// Characters of a text that a search shows.
const SHOWN_TEXT: usize = 80;

/// The flags of `granary grains`.
#[derive(Clone, Debug, Args)]
pub struct GrainsArgs {
    /// Which server, and the key for it.
    #[command(flatten)]
    pub server: ServerArgs,
    /// What to do
    #[command(subcommand)]
    pub verb: GrainsVerb,
}

/// What `granary grains` does.
#[derive(Clone, Debug, Subcommand)]
pub enum GrainsVerb {
    /// Write the grains of a file into the server: an export, or one JSON object a line with at least a `text`
    Import(ImportArgs),
    /// Write the server's grains into a file, one a line
    Export(ExportArgs),
    /// Find grains by meaning and by words
    Search(SearchArgs),
    /// Prove which model made vectors of unknown origin, or join a space to a model's
    Adopt(AdoptArgs),
    /// Print grains as JSON, one a line
    Show {
        /// Their ids
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
    /// Count the grains
    Count {
        /// Only those that meet this filter, in JSON
        #[arg(long, value_name = "JSON")]
        filter: Option<String>,
        /// How many have each source, each tag, or are in each space; the hundred most frequent
        #[arg(long, value_parser = ["source", "tags", "space"])]
        by: Option<String>,
    },
    /// Delete the grains that meet a filter
    Delete {
        /// Which, in JSON; `{}`, with --expect, means all of them
        #[arg(long, value_name = "JSON")]
        filter: String,
        /// Delete them only if they are so many, as `granary grains count` says
        #[arg(long, value_name = "N")]
        expect: Option<u64>,
    },
}

/// The flags of `granary grains import`.
#[derive(Clone, Debug, Args)]
pub struct ImportArgs {
    /// The file, or `-` for standard input
    pub file: PathBuf,
    /// What becomes of a line whose id is taken
    #[arg(long, value_enum, default_value_t = Conflict::Error)]
    pub on_conflict: Conflict,
    /// Embed the texts whose vectors are in a space that the server does not know, or of another text, instead of refusing
    /// them
    #[arg(long)]
    pub reembed: bool,
}

/// What becomes of a line whose id is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Conflict {
    /// It fails
    Error,
    /// The stored grain stays: an import that was cut goes on where it stopped
    Skip,
    /// The stored grain becomes what the line says
    Replace,
}

/// The flags of `granary grains export`.
#[derive(Clone, Debug, Args)]
pub struct ExportArgs {
    /// The file, or `-` for standard output
    #[arg(default_value = "-")]
    pub file: PathBuf,
    /// Only the grains that meet this filter, in JSON
    #[arg(long, value_name = "JSON")]
    pub filter: Option<String>,
    /// With vectors, so that they need not be computed again elsewhere
    #[arg(long)]
    pub vectors: bool,
}

/// The flags of `granary grains adopt`.
#[derive(Clone, Debug, Args)]
pub struct AdoptArgs {
    /// The model that made them; the one that most of a sample agrees with when absent
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Join this space to the model's, instead of vectors without one
    #[arg(long, value_name = "SPACE")]
    pub from: Option<String>,
}

/// The flags of `granary grains search`.
#[derive(Clone, Debug, Args)]
pub struct SearchArgs {
    /// What to search for
    pub query: String,
    /// By meaning, by words, or by both
    #[arg(long, value_parser = ["dense", "lexical", "hybrid"], default_value = "hybrid")]
    pub mode: String,
    /// The most hits
    #[arg(long, default_value_t = 10)]
    pub limit: u32,
    /// Only the grains that meet this filter, in JSON
    #[arg(long, value_name = "JSON")]
    pub filter: Option<String>,
}

/// `granary grains` did not work.
#[derive(Debug, thiserror::Error)]
pub enum GrainsError {
    /// A filter that is none.
    #[error("the filter is not JSON, such as '{{\"source\": \"encyclopedia\"}}'")]
    Filter(#[source] serde_json::Error),
    /// The file.
    #[error("the file cannot be read or written")]
    File(#[source] io::Error),
    /// Some lines were not imported.
    #[error("{0} lines were not imported")]
    Failed(u64),
    /// The server gave an import up.
    #[error("the import stopped before its end: {0}. With `--on-conflict skip` it goes on where it stopped")]
    Stopped(String),
    /// An import's answer has no end.
    #[error("the connection was cut. With `--on-conflict skip` an import goes on where it stopped")]
    Cut,
    /// The server gave an export up.
    #[error("the export stopped before its end: {0}. Grains are missing in what is there: ask for it again")]
    Export(String),
    /// An export has no end.
    #[error("the connection was cut. Grains are missing in what is there of the export: ask for it again")]
    CutExport,
    /// The server gave an adoption up.
    #[error(
        "the adoption stopped before its end: {0}. What was adopted stays so, and it goes on when it is asked for again"
    )]
    Adoption(String),
    /// An adoption's answer has no end.
    #[error("the connection was cut. What was adopted stays so, and it goes on when it is asked for again")]
    CutAdoption,
}

/// Does what `args` say and prints to `out` what came of it.
///
/// # Errors
/// What the server refused, in its own words; [`GrainsError::Failed`] when an import did not take every line.
pub fn run(args: GrainsArgs, out: &mut impl Write) -> Result<(), Failure> {
    let client = Client::new(&args.server)?;
    let runtime = output::runtime()?;
    let ended = runtime.block_on(carry_out(&client, args.verb, out));
    // Standard input may never end.
    runtime.shutdown_background();
    ended
}

async fn carry_out(client: &Client, verb: GrainsVerb, out: &mut impl Write) -> Result<(), Failure> {
    match verb {
        GrainsVerb::Import(args) => import::run(client, args, out).await,
        GrainsVerb::Export(args) => export::run(client, args, out).await,
        GrainsVerb::Adopt(args) => adopt::run(client, args, out).await,
        GrainsVerb::Search(args) => {
            let body =
                json!({"query": args.query, "mode": args.mode, "limit": args.limit, "filter": filter(args.filter)?});
            let found = client.ask(Request::json(Method::POST, &["grains", "search"], &body)).await?;
            print(out, &hits(&found))
        }
        GrainsVerb::Show { ids } => {
            for id in ids {
                let grain = client.ask(Request::get(&["grains", &id])).await?;
                output::print(&format!("{grain}\n"), out)?;
            }
            Ok(())
        }
        GrainsVerb::Count { filter: text, by } => {
            let body = json!({"filter": filter(text)?, "facets": by.iter().collect::<Vec<_>>()});
            let counted = client.ask(Request::json(Method::POST, &["grains", "count"], &body)).await?;
            let said = by.map_or_else(|| format!("{}\n", counted["count"]), |by| distributed(&counted["facets"][by]));
            print(out, &said)
        }
        GrainsVerb::Delete { filter: text, expect } => {
            let body = json!({"filter": filter(Some(text))?, "expected_count": expect});
            let gone = client.ask(Request::json(Method::POST, &["grains", "delete"], &body)).await?;
            print(out, &format!("{} deleted\n", gone["deleted"]))
        }
    }
}

fn filter(text: Option<String>) -> Result<Option<Value>, GrainsError> {
    text.map(|text| serde_json::from_str(&text).map_err(GrainsError::Filter)).transpose()
}

/// Prints what the server says in words.
fn print(out: &mut impl Write, text: &str) -> Result<(), Failure> {
    Ok(output::print(&printable(text), out)?)
}

/// One line a value, the most frequent first; `-` is that of grains without one.
fn distributed(values: &Value) -> String {
    let row = |counted: &Value| [counted["count"].to_string(), output::text(&counted["value"]).to_owned()];
    output::table(&values.as_array().into_iter().flatten().map(row).collect::<Vec<_>>())
}

/// One line a hit, best first, and one for each space that was not searched.
fn hits(found: &Value) -> String {
    let hit = |hit: &Value| {
        let text = hit["grain"]["text"].as_str().unwrap_or_default();
        let words: Vec<&str> = text.split_whitespace().collect();
        let shown: String = words.join(" ").chars().take(SHOWN_TEXT).collect();
        format!("{:.4}  {}  {shown}\n", hit["score"].as_f64().unwrap_or_default(), output::text(&hit["grain"]["id"]))
    };
    let missed = |space: &&Value| space["searched"] == false;
    let reason = |space: &Value| {
        format!("space {} was not searched: {}\n", output::text(&space["space"]), output::text(&space["reason"]))
    };
    let list = |key: &str| found[key].as_array().map(Vec::as_slice).unwrap_or_default();
    list("hits").iter().map(hit).chain(list("spaces").iter().filter(missed).map(reason)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_lines_with_how_often_they_are_there() {
        let values = json!([{"value": "wiki", "count": 120}, {"value": null, "count": 3}]);
        assert_eq!(distributed(&values), "120  wiki\n3    -\n");
    }

    #[test]
    fn hits_are_lines_and_spaces_left_out_are_named() {
        let found = json!({
            "hits": [{"grain": {"id": "a", "text": "Wheat\n is a  grass."}, "score": 0.5}],
            "spaces": [{"space": "0123456789abcdef", "searched": false, "reason": "why"}, {"searched": true}]});
        assert_eq!(hits(&found), "0.5000  a  Wheat is a grass.\nspace 0123456789abcdef was not searched: why\n");
    }
}
