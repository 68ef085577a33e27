//! A query in a person's words, as one of FTS5: <https://www.sqlite.org/fts5.html#full_text_query_syntax>.

use std::ops::RangeInclusive;

/// The most words that are looked at.
const MAX_WORDS: usize = 128;

/// Marks on the letter before them, where a text has the two apart. FTS5 leaves them out of its words, as it does where
/// they are one character; those that it does not know end a word for it, and what is quoted is then two in a row.
const MARKS: RangeInclusive<char> = '\u{300}'..='\u{36f}';

/// A word of a query.
pub(super) struct Word {
    /// As it was sent. FTS5 has a lower case of its own, which leaves some scripts as they are.
    sent: String,
    /// In lower case, as the index has most words.
    lower: String,
}

impl Word {
    pub(super) fn lower(&self) -> &str {
        &self.lower
    }
}

/// The words of a text, each once, whatever its case.
pub(super) fn distinct(text: &str) -> Vec<Word> {
    let mut words: Vec<Word> = Vec::new();
    let ends_word = |c: char| !c.is_alphanumeric() && !MARKS.contains(&c);
    for sent in text.split(ends_word).filter(|word| word.contains(char::is_alphanumeric)) {
        let lower = sent.to_lowercase();
        if words.iter().all(|word| word.lower != lower) {
            words.push(Word { sent: sent.to_owned(), lower });
        }
        if words.len() == MAX_WORDS {
            break;
        }
    }
    words
}

/// A query that any of these words meets, each quoted, so that none is taken for an operator. `None` without a word.
pub(super) fn quoted(words: &[Word]) -> Option<String> {
    let quoted: Vec<String> = words.iter().map(|word| format!("\"{}\"", word.sent)).collect();
    (!quoted.is_empty()).then(|| quoted.join(" OR "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_and_nothing_is_an_operator() {
        let cases = [
            ("C++ NOT java", Some(r#""C" OR "NOT" OR "java""#)),
            (r#"say "hi" * ^ NEAR(a b)"#, Some(r#""say" OR "hi" OR "NEAR" OR "a" OR "b""#)),
            ("Grüße, 世界", Some(r#""Grüße" OR "世界""#)),
            ("Zu\u{308}rich, \u{301} e\u{305}", Some("\"Zu\u{308}rich\" OR \"e\u{305}\"")),
            ("the the The", Some(r#""the""#)),
            (" -:() \"\" \u{301}", None),
            ("", None),
        ];
        for (text, query) in cases {
            assert_eq!(quoted(&distinct(text)).as_deref(), query, "{text}");
        }
        let page = (0..1000).map(|n| format!("word{n}")).collect::<Vec<_>>().join(" ");
        assert_eq!(distinct(&page).len(), MAX_WORDS);
    }
}
