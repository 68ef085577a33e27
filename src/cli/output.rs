//! What verbs print.

use std::io::{self, Write};

/// Columns as wide as their widest cell.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default());
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// Prints a verb's answer. That nobody reads it to its end is no error.
///
/// # Errors
/// When it cannot be printed for another reason.
pub(super) fn print(text: &str, out: &mut impl Write) -> io::Result<()> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_must_be_and_lines_no_longer() {
        let rows = [["A", "LONG"], ["größer", "1"], ["b", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "A       LONG\ngrößer  1\nb\n");
    }
}
