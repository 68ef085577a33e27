//! What is compared: some of the user's own grains, and queries of theirs or drawn from the grains.

use std::collections::HashSet;

use crate::domain::{Filter, GrainId};
use crate::grains::store::lot;
use crate::grains::{GrainError, Grains};

/// Bytes of text that a sample holds in memory: where texts are long, it has fewer grains.
const MAX_TEXT_BYTES: usize = 64 << 20;

/// Grains that are read at once.
const GRAINS_AT_ONCE: usize = 64;

/// Queries that are drawn from grains when the caller sends none.
const MAX_DRAWN: usize = 100;

/// A drawn query is a beginning of its text: a first sentence of so many words that is not most of the text, or else the
/// first half of the text, up to so many words.
const SENTENCE_WORDS: std::ops::RangeInclusive<usize> = 3..=32;
const MOST_OF_A_TEXT: f64 = 0.6;

/// Characters of a drawn query: not every script has spaces between its words. What has none is halved when it is longer
/// than a word.
const MAX_QUERY_CHARS: usize = 200;
const MAX_WORD_CHARS: usize = 20;

/// A sampled grain.
#[derive(Clone, Debug)]
pub(super) struct Sampled {
    pub(super) id: GrainId,
    pub(super) text: String,
}

/// A query, and the place of the grain that it was drawn from, if it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) text: String,
    pub(super) drawn_from: Option<usize>,
}

/// A sample of the grains that is spread evenly over their numbers, and how many grains there are. It is the same one as
/// long as the grains are: two comparisons on it can be compared.
pub(super) async fn sample(grains: &Grains, at_most: usize) -> Result<(Vec<Sampled>, usize), GrainError> {
    let numbers = grains.sample(u32::try_from(at_most).unwrap_or(u32::MAX)).await?;
    let n_counted = grains.count(Filter::default(), Vec::new()).await?.total;
    // Some may have been deleted meanwhile.
    let n_grains = usize::try_from(n_counted).unwrap_or(usize::MAX).max(numbers.len());
    let (mut sampled, mut n_bytes) = (Vec::with_capacity(numbers.len()), 0);
    for numbers in numbers.chunks(GRAINS_AT_ONCE) {
        let mut found = grains.with_numbers(numbers.to_vec()).await?;
        found.sort_unstable_by_key(|found| (lot(found.number), found.number));
        for found in found {
            n_bytes += found.grain.content.text.len();
            if n_bytes > MAX_TEXT_BYTES {
                return Ok((sampled, n_grains));
            }
            sampled.push(Sampled { id: found.grain.id, text: found.grain.content.text });
        }
    }
    Ok((sampled, n_grains))
}

/// Queries from the beginnings of sampled texts, no two alike.
pub(super) fn draw(sampled: &[Sampled]) -> Vec<Query> {
    let mut drawn = HashSet::new();
    let queries = sampled.iter().enumerate().map(|(place, grain)| (place, beginning(&grain.text)));
    let queries = queries.filter(|(_, text)| !text.is_empty() && drawn.insert(text.clone()));
    queries.take(MAX_DRAWN).map(|(place, text)| Query { text, drawn_from: Some(place) }).collect()
}

fn beginning(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().take(2 * SENTENCE_WORDS.end()).collect();
    let n_sentence = words.iter().position(|word| word.ends_with(['.', '!', '?'])).map(|last| last + 1);
    let is_fit = |n: &usize| SENTENCE_WORDS.contains(n) && (*n as f64) < MOST_OF_A_TEXT * words.len() as f64;
    let n_words = n_sentence.filter(is_fit).unwrap_or(words.len().div_ceil(2));
    let drawn = words[..n_words].join(" ");
    let n_chars = drawn.chars().take(2 * MAX_QUERY_CHARS).count();
    let is_halved = words.len() == 1 && n_chars > MAX_WORD_CHARS;
    drawn.chars().take(if is_halved { n_chars / 2 } else { MAX_QUERY_CHARS }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_a_first_sentence_or_half_the_text() {
        let first = "Wheat is a grass. Its seed is a cereal grain, a staple food around the world.";
        assert_eq!(beginning(first), "Wheat is a grass.");
        assert_eq!(beginning("Wheat is a grass that is widely grown."), "Wheat is a grass", "half of one sentence");
        assert_eq!(
            beginning("E. coli lives in the gut of warm animals"),
            "E. coli lives in the",
            "too short a sentence"
        );
        assert_eq!(beginning("小麦"), "小麦");
        assert_eq!(beginning(&"小麦是一种草".repeat(4)), "小麦是一种草小麦是一种草");
        assert_eq!(beginning(" \n "), "");
        assert_eq!(beginning(&"word ".repeat(10_000)).split(' ').count(), *SENTENCE_WORDS.end());
        assert_eq!(beginning(&"草".repeat(10_000)).chars().count(), MAX_QUERY_CHARS);
    }

    #[test]
    fn no_query_is_drawn_twice() {
        let grain = |text: &str| Sampled { id: GrainId::stored(text.to_owned()), text: text.to_owned() };
        let drawn = draw(&[grain("a b"), grain("a c"), grain(""), grain("d e")]);
        let query = |text: &str, place| Query { text: text.to_owned(), drawn_from: Some(place) };
        assert_eq!(drawn, [query("a", 0), query("d", 3)]);
        assert_eq!(draw(&vec![grain("a b"); 3]).len(), 1);
    }
}
