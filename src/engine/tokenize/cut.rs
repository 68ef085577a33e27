//! Where a long text is cut, of which a part is read first: between words, and not within a run of one piece that stands
//! again and again.

/// The longest piece of text that makes a run, where it stands again and again: two characters of four bytes. Tokens of a
/// run follow from where it begins or ends, so that a cut within it would move them all. A part takes in what goes on of
/// the run at its cut, unless that is more than [`MOST_RUN_BYTES`]: then its tokens may be others than in the whole text.
const MOST_PIECE_BYTES: usize = 8;

/// A shorter run has no more tokens than may be others anyhow. A run is cut off with so many bytes beside it, for they
/// may share a token with its first or last ones.
const LEAST_RUN_BYTES: usize = 256;

/// So much of a run is taken in beyond a cut.
pub(super) const MOST_RUN_BYTES: usize = 128 << 10;

/// Where the beginning of a text ends that has at most so many bytes, and at least half as many: before the last space
/// between words that is there, if one is. It is longer where that would be within a run. The text has more bytes.
pub(super) fn end_of_beginning(text: &str, n_bytes: usize) -> usize {
    let (middle, end) = (text.floor_char_boundary(n_bytes / 2), text.floor_char_boundary(n_bytes));
    let end = text[middle..end].rfind(char::is_whitespace).map_or(end, |at| middle + at);
    let (before, behind) = text.as_bytes().split_at(end);
    let run = &before[before.len() - LEAST_RUN_BYTES..];
    let Some(piece) = period(run).map(|n_bytes| &run[run.len() - n_bytes..]) else { return end };
    let end_of_run = text.ceil_char_boundary(end + n_more_of_run(behind.iter().zip(piece.iter().cycle())));
    let end = text.ceil_char_boundary(text.len().min(end_of_run + LEAST_RUN_BYTES));
    text[end_of_run..end].find(char::is_whitespace).map_or(end, |at| end_of_run + at)
}

/// Where the end of such a text starts, in the same way: with the first space.
pub(super) fn start_of_end(text: &str, n_bytes: usize) -> usize {
    let start = text.ceil_char_boundary(text.len() - n_bytes);
    let middle = text.ceil_char_boundary(text.len() - n_bytes / 2);
    let start = text[start..middle].find(char::is_whitespace).map_or(start, |at| start + at);
    let (before, behind) = text.as_bytes().split_at(start);
    let run = &behind[..LEAST_RUN_BYTES];
    let Some(piece) = period(run).map(|n_bytes| &run[..n_bytes]) else { return start };
    let n_more = n_more_of_run(before.iter().rev().zip(piece.iter().rev().cycle()));
    let start_of_run = text.floor_char_boundary(start - n_more);
    let start = text.floor_char_boundary(start_of_run.saturating_sub(LEAST_RUN_BYTES));
    text[start..start_of_run].rfind(char::is_whitespace).map_or(start, |at| start + at)
}

/// The length of the shortest piece that stands again and again in these bytes, if one does.
fn period(bytes: &[u8]) -> Option<usize> {
    (1..=MOST_PIECE_BYTES).find(|n_bytes| bytes[*n_bytes..] == bytes[..bytes.len() - n_bytes])
}

/// How many bytes a run goes on for beyond a cut, by those that are there and those it would have; none of one that goes on
/// for too long.
fn n_more_of_run<'a>(beyond: impl Iterator<Item = (&'a u8, &'a u8)>) -> usize {
    let n_more = beyond.take(MOST_RUN_BYTES + 1).take_while(|(found, expected)| found == expected).count();
    if n_more > MOST_RUN_BYTES { 0 } else { n_more }
}

#[cfg(test)]
mod tests {
    use super::*;

    const N_BYTES: usize = 8 << 10;

    #[test]
    fn a_part_takes_in_a_run_up_to_a_bound() {
        let smiles = "🙂".repeat(5_000);
        assert_eq!((end_of_beginning(&smiles, N_BYTES), start_of_end(&smiles, N_BYTES)), (smiles.len(), 0));
        let endless = "a".repeat(1 << 20);
        let longer = N_BYTES + LEAST_RUN_BYTES;
        assert_eq!(end_of_beginning(&endless, N_BYTES), longer);
        assert_eq!(start_of_end(&endless, N_BYTES), endless.len() - longer);
        let words = "no run of any piece, ".repeat(1_000);
        assert!(end_of_beginning(&words, N_BYTES) <= N_BYTES);
        assert!(start_of_end(&words, N_BYTES) >= words.len() - N_BYTES);
    }
}
