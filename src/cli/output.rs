//! What verbs print.

use std::io::{self, Write};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

/// What keeps any verb from its work.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// There is nothing to wait on.
    #[error("cannot start")]
    Start(#[source] io::Error),
    /// Nobody takes the output.
    #[error("the answer cannot be printed")]
    Print(#[source] io::Error),
}

/// What a server says as a terminal may have it: a character that would control one is U+FFFD, but for the ends of lines
/// and tabs. JSON is printed as it is, for programs.
pub(super) fn printable(text: &str) -> String {
    let is_harmless = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().map(|c| if is_harmless(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
}

/// The words of a field of an answer; `-` where it has none.
pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

/// Columns as wide as their widest cell.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default());
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        printable(cells.join("  ").trim_end()) + "\n"
    };
    rows.iter().map(line).collect()
}

/// The same under a line of titles.
pub(super) fn titled<const N: usize>(titles: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    table(&std::iter::once(titles.map(str::to_owned)).chain(rows).collect::<Vec<_>>())
}

/// A bar on standard error for whoever watches; hidden where that is no terminal.
pub(super) fn bar(template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::no_length().with_style(style)
}

/// What a verb that must wait for something waits on: this thread.
pub(super) fn runtime() -> Result<Runtime, ProcessError> {
    Builder::new_current_thread().enable_all().build().map_err(ProcessError::Start)
}

/// Waits for a verb's answer and prints it.
pub(super) fn print_answer<E: From<ProcessError>>(
    answer: impl Future<Output = Result<String, E>>,
    out: &mut impl Write,
) -> Result<(), E> {
    let answer = runtime()?.block_on(answer)?;
    Ok(print(&answer, out)?)
}

/// Prints a verb's answer. That nobody reads it to its end is no error.
///
/// # Errors
/// When it cannot be printed for another reason.
pub(super) fn print(text: &str, out: &mut impl Write) -> Result<(), ProcessError> {
    print_part(text, out).map(drop)
}

/// Prints a part of a verb's answer, and says whether anybody reads on.
///
/// # Errors
/// As [`print()`].
pub(super) fn print_part(text: &str, out: &mut impl Write) -> Result<bool, ProcessError> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(ProcessError::Print(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_controls_a_terminal_is_not_printed() {
        assert_eq!(printable("größer\t1\n"), "größer\t1\n");
        assert_eq!(printable("\u{1b}[2J\r\u{7f}\u{9b}31m"), "\u{fffd}[2J\u{fffd}\u{fffd}\u{fffd}31m");
    }

    #[test]
    fn columns_are_as_wide_as_they_must_be_and_lines_no_longer() {
        let rows = [["A", "LONG"], ["größer", "1"], ["b", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "A       LONG\ngrößer  1\nb\n");
    }
}
