//! `granary compare`: two models on the grains of a running server, over HTTP.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use reqwest::Method;
use serde_json::{Value, json};

use super::Failure;
use super::client::{Client, Request, ServerArgs, ServerError};
use super::output::{ProcessError, bar, print_answer, printable, table, text, titled};
use super::whole_file::WholeFile;
use crate::shutdown::Signals;

/// Between two looks at a comparison that has not ended.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// How long the server may take to answer who was interrupted.
const PATIENCE: Duration = Duration::from_secs(5);

/// The flags of `granary compare`.
#[derive(Clone, Debug, Args)]
pub struct CompareArgs {
    /// The model in use: its name or an alias
    pub from: String,
    /// The model that may take its place: its name or an alias
    pub to: String,
    /// Which server, and the key for it.
    #[command(flatten)]
    pub server: ServerArgs,
    /// The most grains to compare on
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub sample: u32,
    /// Queries of your users, one a line [default: drawn from the grains]
    #[arg(long, value_name = "FILE")]
    pub queries: Option<PathBuf>,
    /// Grains of an answer
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub k: u32,
    /// Write the report with its plots to this file
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// `granary compare` did not work.
#[derive(Debug, thiserror::Error)]
pub enum CompareCliError {
    /// The file of the queries or of the report.
    #[error("the file cannot be read or written")]
    File(#[source] io::Error),
    /// It was not done.
    #[error("the comparison failed: {0}")]
    Failed(String),
    /// Who waited for it does so no more.
    #[error("interrupted, and the comparison is cancelled")]
    Cancelled,
    /// The same, before anything was known of it.
    #[error("interrupted before the server answered: `GET /comparisons` lists the comparison if it has begun")]
    Unanswered,
    /// The same, and the server is silent.
    #[error(
        "interrupted, and the server does not say that the comparison is cancelled: `DELETE /comparisons/{0}` does it"
    )]
    NotCancelled(String),
}

/// Compares, and prints to `out` what was found.
///
/// # Errors
/// What the server refused, in its own words; [`CompareCliError::Failed`] with the reason.
pub fn run(args: CompareArgs, out: &mut impl Write) -> Result<(), Failure> {
    let client = Client::new(&args.server)?;
    print_answer(carry_out(&client, args), out)
}

async fn carry_out(client: &Client, args: CompareArgs) -> Result<String, Failure> {
    let queries = args.queries.map(fs_err::read_to_string).transpose().map_err(CompareCliError::File)?;
    let lines =
        |text: &String| text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    let queries: Option<Vec<String>> = queries.as_ref().map(lines);
    let body = json!({"from": args.from, "to": args.to, "sample": args.sample, "queries": queries, "k": args.k});
    // Made before there is anything to lose. An earlier report stays until there is a new one.
    let to_write = |path: PathBuf| WholeFile::create(fs_err::canonicalize(&path).unwrap_or(path), 0o666);
    let page = args.html.map(to_write).transpose().map_err(CompareCliError::File)?;
    // Listened for before there is anything to cancel: none can slip through.
    let mut signals = Signals::listen().map_err(ProcessError::Start)?;
    let asked = client.ask(Request::json(Method::POST, &["comparisons"], &body));
    tokio::pin!(asked);
    let begun = tokio::select! {
        begun = &mut asked => begun?,
        _ = signals.recv() => {
            // It may have begun, and its id is on the way.
            let begun = soon(asked, &mut signals).await.ok_or(CompareCliError::Unanswered)??;
            return Err(cancel(client, text(&begun["id"]), &mut signals).await);
        }
    };
    let id = text(&begun["id"]);
    let finish = async {
        let found = follow(client, id).await?;
        if let Some(mut page) = page {
            let report = patiently(async || report(client, id).await).await?;
            page.write_all(&report).and_then(|()| page.finish()).map_err(CompareCliError::File)?;
        }
        Ok::<_, Failure>(printable(&summary(&found["result"])))
    };
    tokio::select! {
        said = finish => said,
        _ = signals.recv() => Err(cancel(client, id, &mut signals).await),
    }
}

/// Cancels a comparison, and says what came of it.
async fn cancel(client: &Client, id: &str, signals: &mut Signals) -> Failure {
    let asked = client.ask(Request::new(Method::DELETE, &["comparisons", id]));
    match soon(asked, signals).await {
        Some(Ok(_)) => CompareCliError::Cancelled.into(),
        Some(Err(error)) => error.into(),
        None => CompareCliError::NotCancelled(id.to_owned()).into(),
    }
}

/// What is answered to somebody who is about to leave; `None` when it takes too long, or another signal comes.
async fn soon<T>(answer: impl Future<Output = T>, signals: &mut Signals) -> Option<T> {
    tokio::select! {
        answer = tokio::time::timeout(PATIENCE, answer) => answer.ok(),
        _ = signals.recv() => None,
    }
}

/// The page of a comparison that has ended.
async fn report(client: &Client, id: &str) -> Result<Vec<u8>, ServerError> {
    let mut page = Vec::new();
    let mut pieces = client.fetch(Request::get(&["comparisons", id, "report"])).await?;
    while let Some(piece) = pieces.next().await? {
        page.extend(piece);
    }
    Ok(page)
}

/// Asks again where the server says when: the rate of the key may be used up.
async fn patiently<T>(ask: impl AsyncFn() -> Result<T, ServerError>) -> Result<T, ServerError> {
    loop {
        match ask().await {
            Err(ServerError::Refused { retry_after: Some(pause), .. }) => tokio::time::sleep(pause).await,
            asked => return asked,
        }
    }
}

/// Waits for the comparison's end, with a bar for whoever watches.
async fn follow(client: &Client, id: &str) -> Result<Value, Failure> {
    let bar = bar("{msg} {wide_bar} {pos}/{len} texts {eta}");
    loop {
        let comparison = patiently(async || client.ask(Request::get(&["comparisons", id])).await).await?;
        match text(&comparison["state"]) {
            "completed" => {
                bar.finish_and_clear();
                return Ok(comparison);
            }
            "failed" => {
                bar.finish_and_clear();
                return Err(CompareCliError::Failed(printable(text(&comparison["reason"]))).into());
            }
            state => bar.set_message(printable(state)),
        }
        bar.set_length(comparison["total"].as_u64().unwrap_or_default());
        bar.set_position(comparison["done"].as_u64().unwrap_or_default());
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// What was found, as tables.
fn summary(result: &Value) -> String {
    let sample = &result["sample"];
    let source = if sample["queries_from"] == "caller" { "of yours" } else { "drawn from the grains" };
    let mut said =
        format!("{} of {} grains, {} queries {source}\n\n", sample["grains"], sample["of"], sample["queries"]);

    let number = |value: &Value, digits: usize| format!("{:.digits$}", value.as_f64().unwrap_or_default());
    let percent = |value: &Value| format!("{:.1} %", 100.0 * value.as_f64().unwrap_or_default());
    let [from, to] = ["from", "to"].map(|side| &result[side]);
    let row = |title: &str, cell: &dyn Fn(&Value) -> String| [title.to_owned(), cell(from), cell(to)];
    let mut rows = vec![
        row("MODEL", &|side| text(&side["name"]).to_owned()),
        row("space", &|side| text(&side["space"]).to_owned()),
        row("bytes per vector", &|side| side["bytes_per_vector"].to_string()),
        row("texts cut", &|side| percent(&side["truncated_share"])),
        row("one text, p50", &|side| number(&side["embed_p50_ms"], 1) + " ms"),
        row("one text, p95", &|side| number(&side["embed_p95_ms"], 1) + " ms"),
        row("texts per second", &|side| number(&side["texts_per_second"], 0)),
    ];
    if !from["own_grain_mrr"].is_null() {
        rows.push(row("own grain, MRR", &|side| number(&side["own_grain_mrr"], 3)));
    }
    said += &table(&rows);

    said += "\n";
    let list = |key: &str| result[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let overlaps = list("overlap").iter().map(|at| [format!("overlap@{}", at["k"]), percent(&at["overlap"])]);
    let agreement = ["rank-biased overlap".to_owned(), number(&result["rank_biased_overlap"], 3)];
    said += &table(&overlaps.chain([agreement]).collect::<Vec<_>>());

    let thresholds = list("thresholds").iter();
    let thresholds = thresholds.map(|at| [number(&at["from"], 1), number(&at["to"], 3), percent(&at["share"])]);
    said += "\n";
    said += &titled(["THRESHOLD", "EQUIVALENT", "SHARE"], thresholds);

    said += "\nqueries whose answers move most:\n";
    let line = |moved: &Value| format!("  {}  {}\n", number(&moved["rank_biased_overlap"], 3), text(&moved["query"]));
    said.extend(list("moved").iter().map(line));
    let cost = &result["reembedding"];
    let seconds = number(&cost["estimated_s"], 0);
    said + &format!("\na switch would embed {} grains anew, in about {seconds} s\n", cost["grains"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_has_both_models_side_by_side() {
        let side = |name: &str| {
            json!({"name": name, "space": "0123456789abcdef", "bytes_per_vector": 1536, "truncated_share": 0.125,
                   "embed_p50_ms": 1.25, "embed_p95_ms": 2.5, "texts_per_second": 812.4, "own_grain_mrr": null})
        };
        let result = json!({
            "sample": {"grains": 3, "of": 5, "queries": 1, "queries_from": "caller"},
            "from": side("old"), "to": side("new-model"),
            "overlap": [{"k": 1, "overlap": 1.0}, {"k": 3, "overlap": 0.5}], "rank_biased_overlap": 0.75,
            "thresholds": [{"from": 0.1, "to": 0.1234, "share": 0.5}],
            "moved": [{"query": "wheat", "rank_biased_overlap": 0.25}],
            "reembedding": {"grains": 5, "estimated_s": 61.2}});
        let said = summary(&result);
        assert!(
            said.starts_with("3 of 5 grains, 1 queries of yours\n\nMODEL             old               new-model\n"),
            "{said}"
        );
        for line in [
            "texts cut         12.5 %            12.5 %",
            "overlap@3            50.0 %",
            "rank-biased overlap  0.750",
            "0.1        0.123       50.0 %",
            "  0.250  wheat",
            "a switch would embed 5 grains anew, in about 61 s",
        ] {
            assert!(said.lines().any(|shown| shown == line), "{line}\n{said}");
        }
    }
}
