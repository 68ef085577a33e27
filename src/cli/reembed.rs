//! `granary reembed`: moving the grains of a running server to another model, over HTTP.

use std::io::{self, Write};

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};

use super::Failure;
use super::client::{Client, Request, ServerArgs, ServerError};
use super::output::{bar, print_answer, printable, text, titled};

/// The flags of `granary reembed`.
#[derive(Clone, Debug, Args)]
pub struct ReembedArgs {
    /// Which server, and the key for it.
    #[command(flatten)]
    pub server: ServerArgs,
    /// What to do
    #[command(subcommand)]
    pub verb: ReembedVerb,
}

/// What `granary reembed` does.
#[derive(Clone, Debug, Subcommand)]
pub enum ReembedVerb {
    /// Give grains vectors of another model, in the background; its space takes over when all have them
    Begin(BeginArgs),
    /// List the jobs and their states
    List,
    /// Show all that is known of a job, as JSON
    Show {
        /// The job's id
        id: String,
    },
    /// Show how far a job is until it ends or is held
    Watch {
        /// The job's id
        id: String,
    },
    /// List the grains that a job could not embed, and why
    Failures {
        /// The job's id
        id: String,
    },
    /// Hold a job; what it has done stays done
    Pause {
        /// The job's id
        id: String,
    },
    /// Let a held job go on, or try one again that failed
    Resume {
        /// The job's id
        id: String,
    },
    /// Give a job up
    Cancel {
        /// The job's id
        id: String,
    },
    /// Let the old space serve again
    Rollback {
        /// The job's id
        id: String,
    },
    /// Delete the vectors that a job has made superfluous: there is no way back then
    Purge {
        /// The job's id
        id: String,
    },
}

/// The flags of `granary reembed begin`.
#[derive(Clone, Debug, Args)]
pub struct BeginArgs {
    /// The model that is to make the vectors: its name or an alias
    pub to: String,
    /// Only grains of this space, or `unknown` for those whose space nobody knows
    #[arg(long, value_name = "SPACE")]
    pub from: Option<String>,
    /// Only grains that meet this filter, as JSON
    #[arg(long, value_name = "JSON", value_parser = parse_json)]
    pub filter: Option<Value>,
    /// The share of the time that the job may work, up to 1
    #[arg(long, value_name = "SHARE")]
    pub throttle: Option<f64>,
    /// Show how far it is until it ends
    #[arg(long)]
    pub watch: bool,
}

/// `granary reembed` did not work.
#[derive(Debug, thiserror::Error)]
pub enum ReembedCliError {
    /// The job has ended otherwise than it should.
    #[error("the job is {state}{reason}")]
    Ended {
        /// Where it is.
        state: String,
        /// Why, after a colon.
        reason: String,
    },
    /// Nothing is heard any more of a job that was watched.
    #[error("the job is out of sight and goes on: `granary reembed watch {id}` shows how far it is")]
    Lost {
        /// The job's id.
        id: String,
        /// What the server or the network said.
        source: Box<ServerError>,
    },
}

/// Does what `args` say and prints to `out` what came of it.
///
/// # Errors
/// What the server refused, in its own words; a watched job that has failed.
pub fn run(args: ReembedArgs, out: &mut impl Write) -> Result<(), Failure> {
    let client = Client::new(&args.server)?;
    print_answer(carry_out(&client, args.verb), out)
}

async fn carry_out(client: &Client, verb: ReembedVerb) -> Result<String, Failure> {
    let step = async |id: &str, verb: &str| -> Result<String, Failure> {
        let path = ["reembeddings", id, verb];
        Ok(said(&client.ask(Request::json(Method::POST, &path, &json!({}))).await?))
    };
    match verb {
        ReembedVerb::Begin(args) => begin(client, args).await,
        ReembedVerb::List => Ok(listed(&client.ask(Request::get(&["reembeddings"])).await?)),
        ReembedVerb::Show { id } => Ok(format!("{:#}\n", client.ask(Request::get(&["reembeddings", &id])).await?)),
        ReembedVerb::Watch { id } => watch(client, &id).await,
        ReembedVerb::Failures { id } => {
            let failures = client.ask(Request::get(&["reembeddings", &id, "failures"])).await?;
            let line =
                |failure: &Value| printable(&format!("{}  {}\n", text(&failure["grain"]), text(&failure["reason"])));
            Ok(failures["failures"].as_array().into_iter().flatten().map(line).collect())
        }
        ReembedVerb::Pause { id } => step(&id, "pause").await,
        ReembedVerb::Resume { id } => step(&id, "resume").await,
        ReembedVerb::Cancel { id } => step(&id, "cancel").await,
        ReembedVerb::Rollback { id } => step(&id, "rollback").await,
        ReembedVerb::Purge { id } => step(&id, "purge").await,
    }
}

async fn begin(client: &Client, args: BeginArgs) -> Result<String, Failure> {
    let BeginArgs { to, from, filter, throttle, watch: is_watched } = args;
    let body = json!({"to": to, "from": from, "filter": filter, "throttle": throttle});
    let job = client.ask(Request::json(Method::POST, &["reembeddings"], &body)).await?;
    if !is_watched {
        return Ok(said(&job));
    }
    // Whoever stops watching needs its id. Standard output is for the end.
    let _ = write!(io::stderr(), "{}", said(&job));
    watch(client, text(&job["id"])).await
}

/// Follows a job to its end.
async fn watch(client: &Client, id: &str) -> Result<String, Failure> {
    let bar = bar("{msg} {wide_bar} {pos}/{len}");
    let mut lines = client.open(Request::get(&["reembeddings", id, "events"])).await?;
    let lost = |source: ServerError| ReembedCliError::Lost { id: id.to_owned(), source: source.into() };
    while let Some(job) = lines.next_event().await.map_err(lost)? {
        bar.set_length(job["total"].as_u64().unwrap_or_default());
        bar.set_position(job["done"].as_u64().unwrap_or_default());
        bar.set_message(printable(&progress(&job)));
    }
    bar.finish_and_clear();
    // The stream ends when the server stops, too.
    let job = client.ask(Request::get(&["reembeddings", id])).await.map_err(lost)?;
    match text(&job["state"]) {
        "completed" | "rolled_back" => Ok(said(&job)),
        state => {
            let hint = match state {
                "paused" => Some(format!("`granary reembed resume {id}` lets it go on")),
                "queued" | "running" | "cutting_over" | "rolling_back" => {
                    Some(format!("the server has ended the watch, and the job goes on: `granary reembed watch {id}`"))
                }
                _ => None,
            };
            let reason = job["reason"].as_str().map(str::to_owned).or(hint);
            let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
            Err(ReembedCliError::Ended { state: printable(state), reason: printable(&reason) }.into())
        }
    }
}

/// Where a job is, how fast it is, and how long it takes.
fn progress(job: &Value) -> String {
    let rate = job["rate"].as_f64().map(|rate| format!("{rate:.1} grains/s"));
    let eta = job["eta_s"].as_f64().map(|eta| format!("{eta:.0} s left"));
    let failed = job["failed"].as_u64().filter(|n_failed| *n_failed > 0).map(|n_failed| format!("{n_failed} failed"));
    let parts = [Some(text(&job["state"]).to_owned()), rate, eta, failed];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn said(job: &Value) -> String {
    printable(&format!("{} (to {}) is {}\n", text(&job["id"]), text(&job["to"]), progress(job)))
}

/// One line a job, under a line of titles.
fn listed(jobs: &Value) -> String {
    let rows = jobs["reembeddings"].as_array().into_iter().flatten().map(|job| {
        let [id, to, state] = [&job["id"], &job["to"], &job["state"]].map(|value| text(value).to_owned());
        [id, to, state, format!("{}/{}", job["done"], job["total"])]
    });
    titled(["ID", "TO", "STATE", "DONE"], rows)
}

fn parse_json(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_and_the_sentences_say_where_jobs_are() {
        let job = json!({"id": "1", "to": "bert", "state": "running", "done": 5, "total": 120, "failed": 2, "rate": 2.5,
                         "eta_s": 45.2});
        assert_eq!(said(&job), "1 (to bert) is running, 2.5 grains/s, 45 s left, 2 failed\n");
        let done =
            json!({"id": "02", "to": "a", "state": "completed", "done": 7, "total": 7, "failed": 0, "rate": null});
        assert_eq!(said(&done), "02 (to a) is completed\n");
        assert_eq!(
            listed(&json!({"reembeddings": [job, done]})),
            "ID  TO    STATE      DONE\n\
             1   bert  running    5/120\n\
             02  a     completed  7/7\n"
        );
    }
}
