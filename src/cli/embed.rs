//! `granary embed`: texts as vectors, by a model of a running server.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use clap::Args;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::Failure;
use super::client::{Client, Request, ServerArgs, ServerError};
use super::output;

/// Texts of a request, and the bytes of text with which it is full before that.
const BATCH_TEXTS: usize = 32;
const BATCH_BYTES: usize = 256 << 10;

/// How long a server that has too much to do, or loads the model, is asked again about the same texts.
const PATIENCE: Duration = Duration::from_mins(2);

/// The flags of `granary embed`.
#[derive(Clone, Debug, Args)]
pub struct EmbedArgs {
    /// Which server, and the key for it.
    #[command(flatten)]
    pub server: ServerArgs,
    /// The texts, or `-` for the lines of standard input
    #[arg(required = true, value_name = "TEXT")]
    pub texts: Vec<String>,
    /// A model's name or alias; the server's active one when absent
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// What the texts are in a search: the model's prompt for such texts is put before each
    #[arg(long, value_parser = ["query", "document"])]
    pub input_type: Option<String>,
    /// The length of the vectors; the model's own when absent
    #[arg(long, value_name = "N")]
    pub dimensions: Option<u64>,
    /// Leave vectors as long as the model makes them: where it does not scale them to length 1 itself, that is its own space
    #[arg(long)]
    pub no_normalize: bool,
    /// The space that the vectors must be in
    #[arg(long, value_name = "SPACE")]
    pub expect_space: Option<String>,
}

/// `granary embed` did not work.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// Standard input.
    #[error("text {number} cannot be read")]
    Read {
        /// Which it would be, from 1.
        number: usize,
        /// What the system said.
        source: io::Error,
    },
    /// One text.
    #[error("text {number} {reason}")]
    Text {
        /// Which, from 1.
        number: usize,
        /// What the server said of it.
        reason: String,
    },
    /// Another model answers than before.
    #[error(
        "text {number} and those behind it would be in another space, as the model was switched meanwhile: name one with \
         --model"
    )]
    Switched {
        /// The first, from 1.
        number: usize,
    },
    /// One request of several.
    #[error("the texts {first} to {last} were not embedded")]
    Batch {
        /// The first of its texts, from 1.
        first: usize,
        /// The last.
        last: usize,
        /// What the server said.
        source: ServerError,
    },
}

impl EmbedError {
    /// Why the texts from `first` to `last` were not embedded, beside others or not.
    fn of(source: ServerError, first: usize, last: usize, is_only: bool) -> Failure {
        let ServerError::Refused { detail, .. } = &source else {
            return if is_only { source.into() } else { Self::Batch { first, last, source }.into() };
        };
        let of_text = detail.strip_prefix("`inputs[").and_then(|rest| rest.split_once("]` "));
        let of_text = of_text.and_then(|(index, reason)| Some((index.parse::<usize>().ok()?, reason.to_owned())));
        match of_text {
            Some((index, reason)) => Self::Text { number: first + index, reason }.into(),
            None if first > 1 && detail.starts_with("`expect_space`") => Self::Switched { number: first }.into(),
            None if is_only => source.into(),
            None => Self::Batch { first, last, source }.into(),
        }
    }
}

/// Prints a line of JSON for each text, as in an export of grains: with its vector, the model and the space.
///
/// # Errors
/// [`EmbedError`], and what the server refused, in its own words. The vectors of the batches before are printed.
pub fn run(args: EmbedArgs, out: &mut impl Write) -> Result<(), Failure> {
    let client = Client::new(&args.server)?;
    let runtime = output::runtime()?;
    let ended = runtime.block_on(embed(&client, args, out));
    // Standard input may never end.
    runtime.shutdown_background();
    ended
}

async fn embed(client: &Client, args: EmbedArgs, out: &mut impl Write) -> Result<(), Failure> {
    let EmbedArgs { server: _, texts, model, input_type, dimensions, no_normalize, expect_space } = args;
    let mut body = json!({
        "model": model, "input_type": input_type, "dimensions": dimensions, "normalize": !no_normalize,
        "expect_space": expect_space,
    });
    let mut texts = if texts == ["-"] { lines_of_input() } else { stream::iter(texts.into_iter().map(Ok)).boxed() };
    let (mut batch, mut n_bytes, mut n_embedded, mut n_cut) = (Vec::new(), 0, 0, 0);
    loop {
        let number = n_embedded + batch.len() + 1;
        let text = texts.try_next().await.map_err(|source| EmbedError::Read { number, source })?;
        let is_last = text.is_none();
        n_bytes += text.as_ref().map_or(0, String::len);
        batch.extend(text);
        if !batch.is_empty() && (is_last || batch.len() == BATCH_TEXTS || n_bytes >= BATCH_BYTES) {
            let is_only = n_embedded == 0 && is_last;
            let (first, last) = (n_embedded + 1, n_embedded + batch.len());
            let embedded = embed_batch(client, &mut body, std::mem::take(&mut batch)).await;
            let embedded = embedded.map_err(|source| EmbedError::of(source, first, last, is_only))?;
            if !output::print_part(&embedded.lines, out)? {
                break;
            }
            n_cut += embedded.n_cut;
            (n_bytes, n_embedded) = (0, last);
        }
        if is_last {
            break;
        }
    }
    if n_cut > 0 {
        let said =
            format!("{n_cut} of {n_embedded} texts are longer than the model takes, and were cut to its maximum\n");
        // Nobody reads it: the vectors are there.
        io::stderr().write_all(said.as_bytes()).unwrap_or_default();
    }
    Ok(())
}

/// What became of the texts of a request.
struct Embedded {
    lines: String,
    n_cut: usize,
}

/// Sends texts with the other fields of a body. The active model may be switched before the next ones: these are to be in
/// the same space.
async fn embed_batch(client: &Client, body: &mut Value, batch: Vec<String>) -> Result<Embedded, ServerError> {
    body["inputs"] = json!(batch);
    let begun = Instant::now();
    let (headers, answer) = loop {
        match client.ask_with_headers(Request::json(Method::POST, &["embed"], body)).await {
            Err(ServerError::Refused { retry_after: Some(pause), .. }) if begun.elapsed() + pause < PATIENCE => {
                tokio::time::sleep(pause).await;
            }
            asked => break asked?,
        }
    };
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let vectors = match answer {
        Value::Array(vectors) if vectors.len() == batch.len() => vectors,
        _ => return Err(client.foreign(StatusCode::OK.as_u16())),
    };
    let (model, space) = (header("x-model"), header("x-space"));
    body["expect_space"] = json!(space);
    let meta = json!({"embedding_model": model, "space": space});
    let line = |(text, vector)| format!("{}\n", json!({"text": text, "meta": meta, "vector": vector}));
    let lines = batch.into_iter().zip(vectors).map(line).collect();
    // How many, and then which.
    let n_cut = header("x-truncated").split(';').next().and_then(|count| count.parse().ok()).unwrap_or_default();
    Ok(Embedded { lines, n_cut })
}

fn lines_of_input() -> BoxStream<'static, io::Result<String>> {
    let lines = BufReader::new(tokio::io::stdin()).lines();
    stream::try_unfold(lines, |mut lines| async { Ok(lines.next_line().await?.map(|line| (line, lines))) }).boxed()
}
