//! `granary models`: the models of a running server, over HTTP.

use std::io::Write;
use std::time::Duration;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};

use super::Failure;
use super::client::{Client, Request, ServerArgs, ServerError};
use super::output::{bar, print_answer, printable, text, titled};
use crate::domain::ModelName;

/// Between two looks at a download that has not begun.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The flags of `granary models`.
#[derive(Clone, Debug, Args)]
pub struct ModelsArgs {
    /// Which server, and the key for it.
    #[command(flatten)]
    pub server: ServerArgs,
    /// What to do
    #[command(subcommand)]
    pub verb: ModelsVerb,
}

/// What `granary models` does.
#[derive(Clone, Debug, Subcommand)]
pub enum ModelsVerb {
    /// List the models and their states
    List,
    /// Show all that is known of a model, as JSON
    Show {
        /// A model's name or alias
        model: String,
    },
    /// Download a model from the hub and load it
    Pull(PullArgs),
    /// Load a model, and enable it if it was disabled
    Load {
        /// A model's name or alias
        model: String,
    },
    /// Unload a model; the next request loads it again
    Unload {
        /// A model's name or alias
        model: String,
        /// Keep requests from loading it again
        #[arg(long)]
        disable: bool,
    },
    /// Register a model whose files are in the server's models directory; later runs know it too
    Register {
        /// The name that requests are to call it by
        name: String,
        /// Its folder or .onnx file, relative to the models directory
        path: String,
    },
    /// Make a model the one that requests without a model use
    Activate {
        /// A model's name or alias, or `auto`: the one that suits the server's machine best
        model: String,
        /// Have the grains follow, in the background: `granary reembed` follows the job and takes it back
        #[arg(long)]
        reembed: bool,
    },
    /// Accept that a model makes another space since its files or settings changed
    Accept {
        /// A model's name or alias
        model: String,
        /// Accept as well that its vectors have moved within their space
        #[arg(long)]
        numerics: bool,
    },
    /// Delete a model that was registered while the server ran
    Delete {
        /// A model's name or alias
        model: String,
        /// Delete it even if grains need it
        #[arg(long)]
        force: bool,
    },
}

/// The flags of `granary models pull`.
#[derive(Clone, Debug, Args)]
pub struct PullArgs {
    /// A model that the server knows, or a repository on the hub: `intfloat/e5-small-v2`
    pub model: String,
    /// The name to register the repository under [default: its last part]
    #[arg(long)]
    pub name: Option<String>,
    /// A branch, tag or commit of the repository [default: main]
    #[arg(long)]
    pub revision: Option<String>,
    /// The ONNX file in the repository [default: onnx/model.onnx]
    #[arg(long)]
    pub file: Option<String>,
}

/// `granary models` did not work.
#[derive(Debug, thiserror::Error)]
pub enum ModelsError {
    /// A repository whose last part cannot name a model.
    #[error("`{0}` cannot be the name of a model here: choose one with --name")]
    Name(String),
    /// A name that means another model.
    #[error("the server has `{0}` already, and that is no model of this repository: choose another --name")]
    Taken(String),
    /// A model that is known already, and is another one.
    #[error(
        "the server has `{name}` already, with another {flag}: leave --{flag} out, delete it with `granary models delete \
         {name}` first, or pull its repository under a --name of its own"
    )]
    Known {
        /// The model.
        name: String,
        /// What was asked for.
        flag: &'static str,
    },
}

/// Does what `args` say and prints to `out` what came of it.
///
/// # Errors
/// What the server refused, in its own words.
pub fn run(args: ModelsArgs, out: &mut impl Write) -> Result<(), Failure> {
    let client = Client::new(&args.server)?;
    print_answer(carry_out(&client, args.verb), out)
}

async fn carry_out(client: &Client, verb: ModelsVerb) -> Result<String, Failure> {
    let post = async |path: &[&str], body: Value| client.ask(Request::json(Method::POST, path, &body)).await;
    Ok(match verb {
        ModelsVerb::List => listed(&client.ask(Request::get(&["models"])).await?),
        ModelsVerb::Show { model } => {
            let shown = client.ask(Request::get(&["models", &model])).await?;
            format!("{shown:#}\n")
        }
        ModelsVerb::Pull(args) => pull(client, args).await?,
        ModelsVerb::Load { model } => said(&post(&["models", &model, "load"], json!({})).await?),
        ModelsVerb::Unload { model, disable } => {
            said(&post(&["models", &model, "unload"], json!({"disable": disable})).await?)
        }
        ModelsVerb::Register { name, path } => said(&post(&["models"], json!({"name": name, "path": path})).await?),
        ModelsVerb::Activate { model, reembed } => {
            let body = json!({"name": model, "reembed": reembed});
            switched(&client.ask(Request::json(Method::PUT, &["models", "active"], &body)).await?)
        }
        ModelsVerb::Accept { model, numerics } => {
            let accepted = post(&["models", &model, "accept"], json!({"numerics": numerics})).await?;
            format!("{} writes grains to space {}\n", text(&accepted["name"]), text(&accepted["space"]))
        }
        ModelsVerb::Delete { model, force } => {
            delete(client, &model, force).await?;
            format!("{model} is deleted\n")
        }
    })
}

/// Registers the repository if need be, then has it loaded and shows how far its download is.
async fn pull(client: &Client, args: PullArgs) -> Result<String, Failure> {
    let name = match known(client, &args).await? {
        Some(name) => name,
        None => register(client, &args).await?,
    };
    let bar = bar("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    let show = |model: &Value| {
        let download = &model["download"];
        if let (Some(done), Some(total)) = (download["done_bytes"].as_u64(), download["total_bytes"].as_u64()) {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(printable(text(&download["file"])));
        } else {
            bar.set_message(printable(text(&model["state"])));
        }
    };
    let loaded = tokio::select! {
        loaded = load(client, &name) => loaded?,
        ended = follow(client, &name, show) => match ended {
            Err(error) => return Err(error.into()),
        },
    };
    bar.finish_and_clear();
    Ok(said(&loaded))
}

/// The name of the model that is meant, if the server has it; `None` for a repository that is to be registered.
async fn known(client: &Client, args: &PullArgs) -> Result<Option<String>, Failure> {
    let is_repository = args.model.contains('/');
    // There may be several models of a repository, and its id means one of them.
    let word = match &args.name {
        Some(name) if is_repository && ModelName::parse(name).is_err() => {
            return Err(ModelsError::Name(name.clone()).into());
        }
        Some(name) if is_repository => name,
        _ => &args.model,
    };
    let model = match client.ask(Request::get(&["models", word])).await {
        Err(error) if error.is("model_not_found") && is_repository => return Ok(None),
        answer => answer?,
    };
    let (name, hub) = (text(&model["name"]).to_owned(), &model["hub"]);
    // One of local files may have the repository's id as an alias.
    let aliases = model["aliases"].as_array().into_iter().flatten();
    let mut ids = aliases.chain([&hub["repository"]]);
    if is_repository && !ids.any(|id| text(id).eq_ignore_ascii_case(&args.model)) {
        return Err(ModelsError::Taken(word.clone()).into());
    }
    let differs = |wanted: Option<&str>, held: &Value| wanted.is_some_and(|wanted| *held != wanted);
    let others = [
        ("name", args.name.as_deref().is_some_and(|wanted| !wanted.eq_ignore_ascii_case(&name))),
        ("revision", differs(args.revision.as_deref(), &hub["revision"])),
        ("file", differs(args.file.as_deref(), &hub["file"])),
    ];
    match others.into_iter().find(|(_, is_other)| *is_other) {
        Some((flag, _)) => Err(ModelsError::Known { name, flag }.into()),
        None => Ok(Some(name)),
    }
}

/// Asks for the model until it is there: a request waits for a while only, and a download may take longer.
async fn load(client: &Client, name: &str) -> Result<Value, ServerError> {
    loop {
        match client.ask(Request::new(Method::POST, &["models", name, "load"])).await {
            Err(error) if error.is("model_loading") => {}
            ended => return ended,
        }
    }
}

async fn follow(
    client: &Client,
    name: &str,
    mut show: impl FnMut(&Value),
) -> Result<std::convert::Infallible, ServerError> {
    loop {
        let mut lines = client.open(Request::get(&["models", name, "events"])).await?;
        while let Some(model) = lines.next_event().await? {
            show(&model);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn delete(client: &Client, name: &str, force: bool) -> Result<(), ServerError> {
    let mut request = Request::new(Method::DELETE, &["models", name]);
    if force {
        request = request.with_query("force", "true");
    }
    client.ask(request).await.map(drop)
}

async fn register(client: &Client, args: &PullArgs) -> Result<String, Failure> {
    let last = args.model.rsplit('/').next().unwrap_or_default().to_owned();
    let name = args.name.clone().unwrap_or(last);
    if ModelName::parse(&name).is_err() {
        return Err(ModelsError::Name(name).into());
    }
    let entry = json!({"name": name, "repository": args.model, "revision": args.revision, "file": args.file});
    client.ask(Request::json(Method::POST, &["models"], &entry)).await?;
    Ok(name)
}

/// What a switch did, and how the grains that are elsewhere come along.
fn switched(switch: &Value) -> String {
    let name = text(&switch["name"]);
    let said = format!("{name} is active; before it was {}\n", text(&switch["previous"]));
    let job = &switch["reembedding"];
    let id = text(&job["id"]);
    let follows = match switch["grains_elsewhere"].as_u64().unwrap_or_default() {
        _ if job.is_object() => format!("the re-embedding {id} has begun: `granary reembed watch {id}` follows it\n"),
        0 => String::new(),
        n => format!("grains in other spaces: {n}. `granary reembed begin {name}` brings them along\n"),
    };
    printable(&(said + &follows))
}

fn said(model: &Value) -> String {
    printable(&format!("{} is {}\n", text(&model["name"]), text(&model["state"])))
}

/// One line a model, under a line of titles.
fn listed(models: &Value) -> String {
    let rows = models["models"].as_array().into_iter().flatten().map(|model| {
        let number = |key: &str| model[key].as_u64().map_or_else(|| "-".to_owned(), |n| n.to_string());
        let mark = if model["active"] == true { "*" } else { "" };
        [
            format!("{}{mark}", text(&model["name"])),
            if model["disabled"] == true { "disabled".to_owned() } else { text(&model["state"]).to_owned() },
            number("dimensions"),
            text(&model["provider"]["name"]).to_owned(),
            model["memory_bytes"].as_u64().map_or_else(|| "-".to_owned(), |bytes| format!("{} MiB", bytes >> 20)),
            text(&model["space"]).to_owned(),
        ]
    });
    titled(["NAME", "STATE", "DIMENSIONS", "PROVIDER", "MEMORY", "SPACE"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_each_model_and_marks_the_active_one() {
        let models = json!({"models": [
            {"name": "a", "state": "ready", "active": true, "dimensions": 32, "memory_bytes": 3_145_728,
             "provider": {"name": "cpu"}, "space": "0123456789abcdef"},
            {"name": "long-name", "state": "unloaded", "disabled": true}]});
        assert_eq!(
            listed(&models),
            "NAME       STATE     DIMENSIONS  PROVIDER  MEMORY  SPACE\n\
             a*         ready     32          cpu       3 MiB   0123456789abcdef\n\
             long-name  disabled  -           -         -       -\n"
        );
    }
}
