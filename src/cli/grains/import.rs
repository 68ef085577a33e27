//! `granary grains import`.

use std::io::{self, Read, Write};
use std::path::Path;

use clap::ValueEnum;
use indicatif::ProgressBar;
use reqwest::{Body, Method};
use serde_json::Value;
use tokio::sync::mpsc;

use super::super::client::{Client, Request};
use super::super::output::{self, printable};
use super::{Failure, GrainsError, ImportArgs, print};

/// Bytes that are read from the file at a time, and pieces that wait to be sent.
const PIECE_BYTES: usize = 64 << 10;
const WAITING_PIECES: usize = 4;

pub(super) async fn run(client: &Client, args: ImportArgs, out: &mut impl Write) -> Result<(), Failure> {
    let (source, size): (Box<dyn Read + Send>, _) = if args.file == Path::new("-") {
        (Box::new(io::stdin()), None)
    } else {
        let file = fs_err::File::open(&args.file).map_err(GrainsError::File)?;
        let found = file.metadata().map_err(GrainsError::File)?;
        // It can be opened, and not be read.
        if found.is_dir() {
            let reason = format!("`{}` is a directory", args.file.display());
            return Err(GrainsError::File(io::Error::new(io::ErrorKind::IsADirectory, reason)).into());
        }
        (Box::new(file), Some(found.len()))
    };
    let template = match size {
        Some(_) => "{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}",
        None => "{spinner} {bytes} {bytes_per_sec} {msg}",
    };
    let bar = output::bar(template);
    if let Some(size) = size {
        bar.set_length(size);
    }
    let on_conflict =
        args.on_conflict.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
    let request = Request::new(Method::POST, &["grains", "import"])
        .with_query("on_conflict", &on_conflict)
        .with_query("reembed", if args.reembed { "true" } else { "false" })
        .with_body("application/x-ndjson", body(source, bar.clone()));
    let mut lines = client.open(request).await?;
    let (mut end, mut stopped) = (None, None);
    while let Some(line) = lines.next().await? {
        let said: Value = serde_json::from_slice(&line).unwrap_or_default();
        let problem = output::text(&said["error"]["problem"]["detail"]);
        if let Some(number) = said["error"]["line"].as_u64() {
            let id = said["error"]["id"].as_str().map_or_else(String::new, |id| format!(" ({id})"));
            let line = printable(&format!("line {number}{id}: {problem}\n"));
            // Nobody reads it: the import goes on.
            bar.suspend(|| io::stderr().write_all(line.as_bytes()).unwrap_or_default());
        } else if said["error"].is_object() {
            stopped = Some(printable(problem));
        } else if said["progress"].is_object() {
            bar.set_message(counts(&said["progress"]));
        } else if said["end"].is_object() {
            end = Some(said["end"].clone());
        }
    }
    bar.finish_and_clear();
    let end = end.ok_or(GrainsError::Cut)?;
    print(out, &format!("{}\n", counts(&end)))?;
    match (stopped, end["failed"].as_u64()) {
        (Some(reason), _) => Err(GrainsError::Stopped(reason).into()),
        (None, Some(failed @ 1..)) => Err(GrainsError::Failed(failed).into()),
        _ => Ok(()),
    }
}

/// What became of the lines, as far as anything did.
fn counts(tally: &Value) -> String {
    let words = ["created", "replaced", "unchanged", "skipped", "failed"].into_iter();
    let counted = words.filter_map(|word| Some(format!("{} {word}", tally[word].as_u64().filter(|n| *n > 0)?)));
    let counted: Vec<String> = counted.collect();
    format!("{} read{}{}", tally["read"], if counted.is_empty() { "" } else { ": " }, counted.join(", "))
}

/// The bytes of a source, read by a thread of their own as fast as they are sent.
fn body(mut source: Box<dyn Read + Send>, bar: ProgressBar) -> Body {
    let (sender, receiver) = mpsc::channel::<io::Result<Vec<u8>>>(WAITING_PIECES);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            let read = match source.read(&mut piece) {
                Ok(0) => return,
                Ok(n) => {
                    piece.truncate(n);
                    Ok(piece)
                }
                Err(error) => Err(error),
            };
            let has_failed = read.is_err();
            if sender.blocking_send(read).is_err() || has_failed {
                return;
            }
        }
    });
    Body::wrap_stream(futures::stream::unfold(receiver, move |mut receiver| {
        let bar = bar.clone();
        async move {
            let piece = receiver.recv().await?;
            if let Ok(piece) = &piece {
                bar.inc(piece.len() as u64);
            }
            Some((piece, receiver))
        }
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_happened_is_said() {
        assert_eq!(counts(&json!({"read": 0})), "0 read");
        let tally = json!({"read": 3, "created": 2, "replaced": 0, "failed": 1});
        assert_eq!(counts(&tally), "3 read: 2 created, 1 failed");
    }
}
