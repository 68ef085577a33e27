//! `granary spaces`: which model made the vectors that a running server keeps, over HTTP.

use std::io::Write;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};

use super::Failure;
use super::client::{Client, Request, ServerArgs};
use super::output::{self, printable, text, titled};

/// The flags of `granary spaces`.
#[derive(Clone, Debug, Args)]
pub struct SpacesArgs {
    /// Which server, and the key for it.
    #[command(flatten)]
    pub server: ServerArgs,
    /// What to do
    #[command(subcommand)]
    pub verb: SpacesVerb,
}

/// What `granary spaces` does.
#[derive(Clone, Debug, Subcommand)]
pub enum SpacesVerb {
    /// List the spaces, with the models that make them and how many grains are served from each
    List,
    /// Declare a space for vectors that no model here makes, and print its id
    Declare {
        /// What it is called
        name: String,
        /// The length of its vectors
        dimensions: u64,
    },
}

/// Does what `args` say and prints to `out` what came of it.
///
/// # Errors
/// What the server refused, in its own words.
pub fn run(args: SpacesArgs, out: &mut impl Write) -> Result<(), Failure> {
    let client = Client::new(&args.server)?;
    let answer = async {
        Ok::<String, Failure>(match args.verb {
            SpacesVerb::List => listed(&client.ask(Request::get(&["spaces"])).await?),
            SpacesVerb::Declare { name, dimensions } => {
                let body = json!({"name": name, "dimensions": dimensions});
                let space = client.ask(Request::json(Method::POST, &["spaces"], &body)).await?;
                printable(text(&space["id"])) + "\n"
            }
        })
    };
    output::print_answer(answer, out)
}

/// One line a space, under a line of titles. A space of no model is called what it was declared as.
fn listed(spaces: &Value) -> String {
    let rows = spaces["spaces"].as_array().into_iter().flatten().map(|space| {
        let number = |key: &str| space[key].as_u64().map_or_else(|| "-".to_owned(), |n| n.to_string());
        let models = ["models", "unloaded_models"].into_iter().filter_map(|key| space[key].as_array()).flatten();
        let models: Vec<&str> = models.map(text).collect();
        let made_by = if models.is_empty() { text(&space["name"]).to_owned() } else { models.join(", ") };
        [text(&space["id"]).to_owned(), made_by, number("dimensions"), number("grains")]
    });
    titled(["SPACE", "MADE BY", "DIMENSIONS", "GRAINS"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_made_each_space() {
        let spaces = json!({"spaces": [
            {"id": "0123456789abcdef", "models": ["a"], "unloaded_models": ["b"], "name": null, "dimensions": 384, "grains": 7},
            {"id": "fedcba9876543210", "models": [], "unloaded_models": [], "name": "elsewhere", "dimensions": 3}]});
        assert_eq!(
            listed(&spaces),
            "SPACE             MADE BY    DIMENSIONS  GRAINS\n\
             0123456789abcdef  a, b       384         7\n\
             fedcba9876543210  elsewhere  3           -\n"
        );
    }
}
