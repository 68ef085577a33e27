//! A query in a person's words, as one of FTS5: <https://www.sqlite.org/fts5.html#full_text_query_syntax>.

use std::ops::RangeInclusive;

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

use crate::grains::folding::{folded, is_left_out};

/// The most words that are looked at.
const MAX_WORDS: usize = 128;

/// Marks on the letter before them, where a text has the two apart, and which are no letters for Unicode. Those that end a
/// word for FTS5 make two in a row of what is quoted.
const MARKS: [RangeInclusive<char>; 2] = ['\u{300}'..='\u{36f}', '\u{3099}'..='\u{309a}'];

/// The most forms of a word that are asked for. `merge::LEAST_TELLING` goes by it.
const MAX_FORMS: usize = 4;

/// The most words of the index that are asked for as one: each takes memory and time wherever it is found. A text that has
/// all of them has these, too, unless the last ends at a mark that is newer than those of FTS5 (see [`ends_term`]).
const MAX_TERMS_OF_WORD: usize = 32;

/// The most words of the index that a query asks for.
const MAX_TERMS: usize = 512;

/// Letters that are none for FTS5: those in circles and squares, and some that were marks in Unicode 6.1.
const NO_LETTERS: [RangeInclusive<char>; 7] = [
    '\u{19b0}'..='\u{19c0}',
    '\u{19c8}'..='\u{19c9}',
    '\u{1cf2}'..='\u{1cf3}',
    '\u{24b6}'..='\u{24e9}',
    '\u{1f130}'..='\u{1f149}',
    '\u{1f150}'..='\u{1f169}',
    '\u{1f170}'..='\u{1f189}',
];

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

/// A word of a query, in all forms that are asked for: as it was sent, and others that FTS5 takes for other words, as it does
/// with letters of most scripts when their marks stand apart. What it takes for one word would count double if it were
/// asked for twice.
pub(super) struct Word(Vec<Form>);

struct Form {
    asked: String,
    /// What it is in the index, by which it is counted and told apart: words there, where marks end one.
    term: String,
}

impl Form {
    /// As it was sent, as far as its first [`MAX_TERMS_OF_WORD`] words of the index.
    fn of(mut asked: String) -> Self {
        let (mut terms, mut end) = (Vec::new(), 0);
        for part in asked.split_inclusive(ends_term) {
            end += part.len();
            terms.extend(Some(term(part)).filter(|term| !term.is_empty()));
            if terms.len() == MAX_TERMS_OF_WORD {
                break;
            }
        }
        asked.truncate(end);
        Self { asked, term: terms.join(" ") }
    }

    fn n_terms(&self) -> usize {
        self.term.split(' ').count()
    }
}

impl Word {
    fn of(sent: &str) -> Self {
        let mut word = Self(Vec::new());
        for asked in [sent.to_owned(), sent.nfc().collect(), sent.nfd().collect(), sent.to_lowercase()] {
            word.add(Form::of(asked));
        }
        word
    }

    /// What it may be in the index.
    pub(super) fn terms(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|form| form.term.as_str())
    }

    fn has(&self, term: &str) -> bool {
        self.terms().any(|known| known == term)
    }

    fn add(&mut self, form: Form) {
        if self.0.len() < MAX_FORMS && !self.has(&form.term) {
            self.0.push(form);
        }
    }
}

/// The words of a text, each once, whatever its case and its marks.
pub(super) fn distinct(text: &str) -> Vec<Word> {
    let mut words: Vec<Word> = Vec::new();
    let ends_word = |c: char| !c.is_alphanumeric() && !MARKS.iter().any(|marks| marks.contains(&c));
    for sent in text.split(ends_word).filter(|word| word.contains(char::is_alphanumeric)) {
        let word = Word::of(sent);
        match words.iter_mut().find(|known| word.terms().any(|term| known.has(term))) {
            Some(known) => word.0.into_iter().for_each(|form| known.add(form)),
            None => words.push(word),
        }
        if words.len() == MAX_WORDS {
            break;
        }
    }
    words
}

/// A word of the index, of a part of a text in which at most the last character ends one.
fn term(part: &str) -> String {
    let mut term = String::with_capacity(part.len());
    for c in part.chars().filter(|c| !ends_term(*c)) {
        if is_unfolded(c) {
            term.push(c);
        } else {
            term.extend(folded(c));
        }
    }
    term
}

/// Whether a character of a word ends one in the index. Marks that are newer than Unicode 6.1 are letters for FTS5, and end
/// none there: words with them, which few scripts have, count as more than they are.
fn ends_term(c: char) -> bool {
    (is_combining_mark(c) && !is_left_out(c)) || NO_LETTERS.iter().any(|range| range.contains(&c))
}

/// Whether a character is a capital that FTS5 leaves as it is.
fn is_unfolded(c: char) -> bool {
    UNFOLDED.iter().any(|range| range.contains(&c)) && c.to_lowercase().ne([c])
}

/// A query that any of these words meets, each quoted, so that none is taken for an operator. `None` without a word. Of
/// words that are many in the index, the first ones.
pub(super) fn quoted(words: &[Word]) -> Option<String> {
    let mut n_terms = 0;
    let forms = words.iter().flat_map(|word| &word.0).take_while(|form| {
        n_terms += form.n_terms();
        n_terms <= MAX_TERMS
    });
    let quoted: Vec<String> = forms.map(|form| format!("\"{}\"", form.asked)).collect();
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
            ("Zürich Zurich Zu\u{308}rich", Some(r#""Zürich""#)),
            ("край краи", Some("\"край\" OR \"краи\u{306}\"")),
            ("краи край", Some("\"краи\" OR \"край\"")),
            ("がき", Some("\"がき\" OR \"か\u{3099}き\"")),
            ("か\u{3099}き かき", Some("\"か\u{3099}き\" OR \"がき\" OR \"かき\"")),
            ("\u{9b6}\u{9cb}\u{9a8}", Some("\"\u{9b6}\u{9cb}\u{9a8}\"")),
            ("ΟΔΟΣ οδος", Some(r#""ΟΔΟΣ""#)),
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
        let terms: Vec<String> = distinct("Brücke ᲗᲑᲘᲚᲘᲡᲘ").iter().flat_map(Word::terms).map(str::to_owned).collect();
        assert_eq!(terms, ["brucke", "ᲗᲑᲘᲚᲘᲡᲘ", "თბილისი"]);
        let page = (0..1000).map(|n| format!("word{n}")).collect::<Vec<_>>().join(" ");
        assert_eq!(distinct(&page).len(), MAX_WORDS);
    }

    #[test]
    fn no_word_is_more_than_some_words_of_the_index_and_no_query_more_than_some_of_these() {
        for part in ["a\u{305}", "aⒶ", "か\u{3099}"] {
            let words = distinct(&part.repeat(20_000));
            let asked = &words[0].0[0].asked;
            assert_eq!((words.len(), asked.as_str()), (1, part.repeat(MAX_TERMS_OF_WORD).as_str()));
        }
        let mostly_left_out = "a\u{301}".repeat(100) + "\u{305}\u{305}b";
        assert_eq!(quoted(&distinct(&mostly_left_out)), Some(format!("\"{mostly_left_out}\"")), "it is two");
        let page: Vec<String> = (0..MAX_WORDS).map(|n| n.to_string() + &"a\u{305}".repeat(40)).collect();
        let quoted = quoted(&distinct(&page.join(" "))).expect("words");
        assert_eq!(quoted.matches('a').count(), MAX_TERMS);
        assert_eq!(quoted.split(" OR ").count(), MAX_TERMS / MAX_TERMS_OF_WORD);
    }
}
