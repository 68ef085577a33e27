//! `granary grains export`.

use std::io::{self, Write};
use std::path::Path;

use reqwest::Method;
use serde_json::{Value, json};

use super::super::client::{Client, Lines, Request};
use super::super::output::printable;
use super::super::whole_file::WholeFile;
use super::{ExportArgs, Failure, GrainsError, filter};

pub(super) async fn run(client: &Client, args: ExportArgs, out: &mut impl Write) -> Result<(), Failure> {
    let include: &[&str] = if args.vectors { &["vector"] } else { &[] };
    let body = json!({"filter": filter(args.filter)?, "include": include});
    let lines = client.open(Request::json(Method::POST, &["grains", "export"], &body)).await?;
    if args.file == Path::new("-") {
        return copy(lines, out).await;
    }
    let mut file = WholeFile::create(args.file, 0o666).map_err(GrainsError::File)?;
    copy(lines, &mut file).await?;
    match file.finish() {
        // A pipe that nobody reads any more.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        finished => Ok(finished.map_err(GrainsError::File)?),
    }
}

/// Writes the lines of an export, whose last must be its end.
async fn copy(mut lines: Lines, out: &mut impl Write) -> Result<(), Failure> {
    let mut last = Vec::new();
    while let Some(line) = lines.next().await? {
        match out.write_all(&line) {
            Ok(()) => last = line,
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(GrainsError::File(error).into()),
        }
    }
    out.flush().map_err(GrainsError::File)?;
    let last: Value = serde_json::from_slice(&last).unwrap_or_default();
    if last["end"].is_object() {
        return Ok(());
    }
    match last["error"]["problem"]["detail"].as_str() {
        Some(detail) => Err(GrainsError::Export(printable(detail)).into()),
        None => Err(GrainsError::CutExport.into()),
    }
}
