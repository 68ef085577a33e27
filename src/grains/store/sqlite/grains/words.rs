//! A query in a person's words, as one of FTS5: <https://www.sqlite.org/fts5.html#full_text_query_syntax>.

use std::ops::RangeInclusive;

/// The most words that are looked at.
const MAX_WORDS: usize = 128;

/// Marks on the letter before them, where a text has the two apart. FTS5 leaves them out of its words, as it does where
/// they are one character; those that it does not know end a word for it, and what is quoted is then two in a row.
const MARKS: RangeInclusive<char> = '\u{300}'..='\u{36f}';

/// The most forms of a word that are asked for.
const MAX_FORMS: usize = 4;

/// Where the capitals are that FTS5 leaves as they are: its lower case is that of Unicode 6.1.
const UNFOLDED: [RangeInclusive<char>; 9] = [
    '\u{37f}'..='\u{37f}',
    '\u{528}'..='\u{52f}',
    '\u{13a0}'..='\u{13f5}',
    '\u{1c89}'..='\u{1cbf}',
    '\u{2c2f}'..='\u{2c2f}',
    '\u{a698}'..='\u{a69b}',
    '\u{a796}'..='\u{a79f}',
    '\u{a7ab}'..='\u{a7f5}',
    '\u{104b0}'..='\u{10ffff}',
];

/// A word of a query.
pub(super) struct Word {
    /// In lower case, as the index has most words, and by which words are told apart.
    lower: String,
    /// What is asked for: the word as it was sent, and forms of it that FTS5 takes for other words. What that takes for
    /// one word would count double if it were asked for twice.
    forms: Vec<String>,
}

impl Word {
    /// What it may be in the index, by which it is counted.
    pub(super) fn terms(&self) -> impl Iterator<Item = &str> {
        let unfolded = self.forms.iter().filter(|form| is_unfolded(form));
        std::iter::once(&self.lower).chain(unfolded).map(String::as_str)
    }
}

/// The words of a text, each once, whatever its case.
pub(super) fn distinct(text: &str) -> Vec<Word> {
    let mut words: Vec<Word> = Vec::new();
    let ends_word = |c: char| !c.is_alphanumeric() && !MARKS.contains(&c);
    for sent in text.split(ends_word).filter(|word| word.contains(char::is_alphanumeric)) {
        let lower = sent.to_lowercase();
        let is_other = is_unfolded(sent);
        if let Some(word) = words.iter_mut().find(|word| word.lower == lower) {
            if is_other && word.forms.len() < MAX_FORMS && word.forms.iter().all(|form| form != sent) {
                word.forms.push(sent.to_owned());
            }
            continue;
        }
        let mut forms = vec![sent.to_owned()];
        if is_other {
            forms.push(lower.clone());
        }
        words.push(Word { lower, forms });
        if words.len() == MAX_WORDS {
            break;
        }
    }
    words
}

/// Whether FTS5 takes a word for another one than the same in lower case.
fn is_unfolded(word: &str) -> bool {
    let is_capital = |c: char| c.to_lowercase().ne([c]);
    word.contains(|c: char| UNFOLDED.iter().any(|range| range.contains(&c)) && is_capital(c))
}

/// A query that any of these words meets, each quoted, so that none is taken for an operator. `None` without a word.
pub(super) fn quoted(words: &[Word]) -> Option<String> {
    let forms = words.iter().flat_map(|word| &word.forms);
    let quoted: Vec<String> = forms.map(|form| format!("\"{form}\"")).collect();
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
            ("ÜBUNG Übung МОСКВА Москва", Some(r#""ÜBUNG" OR "МОСКВА""#)),
            ("ᲗᲑᲘᲚᲘᲡᲘ თბილისი", Some(r#""ᲗᲑᲘᲚᲘᲡᲘ" OR "თბილისი""#)),
            ("თბილისი ᲗᲑᲘᲚᲘᲡᲘ ᲗᲑᲘᲚᲘᲡᲘ", Some(r#""თბილისი" OR "ᲗᲑᲘᲚᲘᲡᲘ""#)),
            ("\u{a79e} \u{a7ab}", Some("\"\u{a79e}\" OR \"\u{a79f}\" OR \"\u{a7ab}\" OR \"\u{25c}\"")),
            ("\u{a7a0} \u{a7aa}", Some("\"\u{a7a0}\" OR \"\u{a7aa}\"")),
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
