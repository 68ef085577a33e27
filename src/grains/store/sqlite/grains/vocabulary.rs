//! Which words of a query are worth searching for.
//!
//! BM25 as FTS5 has it gives a word that more than half of the grains have no weight, and such words have the longest
//! lists to read.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::super::super::StoreError;
use super::super::SqliteStore;
use super::search::quoted;
use super::{count, json_text};
use crate::grains::words::{Asked, asked};

/// The most words that are searched for: a pasted page would ask for every grain. `merge::LEAST_TELLING` goes by it.
const MAX_WORDS: usize = 32;

/// Among fewer grains a word is soon in half of them, and no search is slow.
const FEWEST_GRAINS: u64 = 1_000;

/// How long a count is good for: counting a word reads all places where it is.
const COUNTED_FOR: Duration = Duration::from_mins(1);

/// The most words whose counts are kept.
const MOST_KEPT: usize = 10_000;

/// Bytes of the longest word whose count is kept: what is longer is no word that many would ask for.
const LONGEST_KEPT: usize = 100;

/// In how many grains words are, as counted lately.
#[derive(Debug)]
pub(in super::super) struct Vocabulary(Mutex<Counted>);

#[derive(Debug)]
struct Counted {
    since: Instant,
    all: Option<All>,
    words: HashMap<Asked, u64>,
}

/// How many grains there are, and the greatest of their numbers: none is ever given the number of another, so that no more
/// have come since than that has grown by.
#[derive(Clone, Copy, Debug)]
struct All {
    n_grains: u64,
    greatest: u64,
}

impl Vocabulary {
    /// Nothing is counted yet.
    pub(in super::super) fn new() -> Self {
        Self(Mutex::new(Counted { since: Instant::now(), all: None, words: HashMap::new() }))
    }

    /// What is known of these words, and which of them must be counted first.
    fn known<'a>(&self, words: &'a [Asked]) -> (Known, Vec<&'a Asked>) {
        let mut counted = self.0.lock();
        if counted.since.elapsed() > COUNTED_FOR || counted.words.len() > MOST_KEPT {
            *counted = Counted { since: Instant::now(), all: None, words: HashMap::new() };
        }
        let mut known = Known { all: counted.all, words: HashMap::new() };
        let mut uncounted = Vec::new();
        for word in words {
            match counted.words.get(word) {
                Some(n) => {
                    known.words.insert(word.clone(), *n);
                }
                None => uncounted.push(word),
            }
        }
        (known, uncounted)
    }

    /// Notes of these words in how many grains they are.
    fn note(&self, all: All, counts: &HashMap<Asked, u64>) {
        let mut counted = self.0.lock();
        counted.all = Some(all);
        let kept = counts.iter().filter(|(word, _)| word.term.len() <= LONGEST_KEPT);
        counted.words.extend(kept.map(|(word, n)| (word.clone(), *n)));
    }
}

/// In how many grains the words of one query are. Its own: those that are kept may be forgotten meanwhile.
struct Known {
    all: Option<All>,
    words: HashMap<Asked, u64>,
}

impl Known {
    /// The words that tell most of what is looked for.
    fn choose(&self, words: Vec<Asked>) -> Vec<Asked> {
        let known = words.into_iter().map(|word| (self.words.get(&word).copied().unwrap_or_default(), word));
        choose(known.collect(), self.all.map_or(0, |all| all.n_grains))
    }
}

/// Of words with the number of grains that they are in: the rarest, without those that most grains have. Where there are no
/// others, these count after all. Words in no grain come last.
fn choose<T>(mut words: Vec<(u64, T)>, n_grains: u64) -> Vec<T> {
    let is_common = |n: u64| n_grains >= FEWEST_GRAINS && n > n_grains / 2;
    if words.iter().any(|(n, _)| (1..=n_grains).contains(n) && !is_common(*n)) {
        words.retain(|(n, _)| !is_common(*n));
    }
    words.sort_by_key(|(n, _)| (*n == 0, *n));
    words.truncate(MAX_WORDS);
    words.into_iter().map(|(_, word)| word).collect()
}

impl SqliteStore {
    /// The words that are searched for, of a query in a person's words.
    pub(super) async fn words_to_find(&self, query: &str) -> Result<Vec<Asked>, StoreError> {
        let words = asked(query);
        let (mut known, uncounted) = self.vocabulary.known(&words);
        if !uncounted.is_empty() {
            let failed = self.failed("count the grains that have a word");
            let all = self.count_all(known.all).await.map_err(&failed)?;
            let counts = self.count_words(&uncounted).await.map_err(failed)?;
            self.vocabulary.note(all, &counts);
            known.all = Some(all);
            known.words.extend(counts);
        }
        Ok(known.choose(words))
    }

    /// How many grains there are: counted, or at most so many since an earlier count, which reads an entry for each grain.
    async fn count_all(&self, earlier: Option<All>) -> Result<All, sqlx::Error> {
        let (mut reader, _interest) = self.callers_reader().await?;
        let greatest = sqlx::query_scalar("SELECT max(number) FROM grains").fetch_one(&mut *reader).await?;
        let greatest = count(Option::<i64>::unwrap_or_default(greatest));
        let n_grains = match earlier {
            Some(All { n_grains, greatest: before }) => n_grains + greatest.saturating_sub(before),
            None => count(sqlx::query_scalar("SELECT count(*) FROM grains").fetch_one(&mut *reader).await?),
        };
        Ok(All { n_grains, greatest })
    }

    /// In how many grains words are, or those that begin with them where these are asked for.
    pub(super) async fn count_words(&self, words: &[&Asked]) -> Result<HashMap<Asked, u64>, sqlx::Error> {
        // None where the database has none.
        let mut counts: HashMap<Asked, u64> = words.iter().map(|word| ((*word).clone(), 0)).collect();
        let (beginnings, whole): (Vec<&Asked>, Vec<&Asked>) = words.iter().partition(|word| word.is_beginning);
        let terms: Vec<&str> = whole.iter().map(|word| word.term.as_str()).collect();
        let (mut reader, _interest) = self.callers_reader().await?;
        let found: Vec<(String, i64)> =
            sqlx::query_as("SELECT term, doc FROM grain_vocabulary WHERE term IN (SELECT value FROM json_each(?))")
                .bind(json_text(&terms))
                .fetch_all(&mut *reader)
                .await?;
        counts.extend(found.into_iter().map(|(term, n)| (Asked { term, is_beginning: false }, count(n))));
        // A grain may have several words that begin alike.
        for word in beginnings {
            let n: i64 = sqlx::query_scalar("SELECT count(*) FROM grain_words WHERE grain_words MATCH ?")
                .bind(quoted(std::slice::from_ref(word)))
                .fetch_one(&mut *reader)
                .await?;
            counts.insert(word.clone(), count(n));
        }
        Ok(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(words: &[(u64, &str)], n_grains: u64) -> Vec<String> {
        choose(words.iter().map(|(n, word)| (*n, (*word).to_owned())).collect(), n_grains)
    }

    #[test]
    fn what_most_grains_have_is_left_out_beside_other_words() {
        let words = [(9_000, "the"), (5_000, "a"), (20, "fox"), (0, "grüße"), (3, "quick")];
        assert_eq!(chosen(&words, 10_000), ["quick", "fox", "a", "grüße"]);
        assert_eq!(chosen(&[(9_000, "the"), (8_000, "and")], 10_000), ["and", "the"]);
        assert_eq!(chosen(&[(9_000, "the"), (0, "unheard")], 10_000), ["the", "unheard"], "one is in no grain");
        assert_eq!(chosen(&[(900, "the"), (2, "fox")], 999), ["fox", "the"]);
    }

    #[test]
    fn of_many_words_the_rarest_are_searched_for() {
        let words: Vec<(u64, String)> = (0..100).rev().map(|n| (n, format!("word{n}"))).collect();
        let chosen = choose(words, 10_000);
        assert_eq!((chosen.len(), chosen[0].as_str(), chosen[31].as_str()), (MAX_WORDS, "word1", "word32"));
    }

    const ALL: All = All { n_grains: 2_000, greatest: 2_000 };

    fn whole(term: &str) -> Asked {
        Asked { term: term.to_owned(), is_beginning: false }
    }

    fn counts(counts: &[(&str, u64)]) -> HashMap<Asked, u64> {
        counts.iter().map(|(word, n)| (whole(word), *n)).collect()
    }

    fn uncounted(vocabulary: &Vocabulary, query: &str) -> Vec<String> {
        vocabulary.known(&asked(query)).1.into_iter().map(|word| word.term.clone()).collect()
    }

    #[test]
    fn words_are_counted_once_a_while() {
        let vocabulary = Vocabulary::new();
        assert_eq!(uncounted(&vocabulary, "a b"), ["a", "b"]);
        vocabulary.note(ALL, &counts(&[("a", 2_000), ("b", 0)]));
        assert!(uncounted(&vocabulary, "a b").is_empty(), "a word that is nowhere is known too");
        vocabulary.note(ALL, &counts(&[("c", 1), ("猫", 1)]));
        let words = asked("a C");
        let (known, _) = vocabulary.known(&words);
        assert_eq!(uncounted(&vocabulary, "猫 a"), ["猫"], "what begins with it is more");
        let longer = COUNTED_FOR + Duration::from_secs(1);
        vocabulary.0.lock().since = Instant::now().checked_sub(longer).expect("the clock has run as long");
        assert_eq!(uncounted(&vocabulary, "a b"), ["a", "b"]);
        assert_eq!(known.choose(words), [whole("c")], "what another forgot stays known");
    }

    #[test]
    fn what_is_longer_than_words_are_is_counted_each_time() {
        let (vocabulary, longest) = (Vocabulary::new(), "a".repeat(LONGEST_KEPT));
        let beyond = longest.clone() + "a";
        vocabulary.note(ALL, &counts(&[(longest.as_str(), 1), (beyond.as_str(), 1)]));
        assert!(uncounted(&vocabulary, &longest).is_empty());
        assert_eq!(uncounted(&vocabulary, &beyond), [beyond.as_str()]);
        assert_eq!(vocabulary.0.lock().words.len(), 1);
    }
}
