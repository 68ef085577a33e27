//! Where the words of a query are in a text: the part with most of them, each between two marks.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

use super::folding;

/// Words of the part that is shown.
const SHOWN_WORDS: usize = 32;

/// The most that it has on either side of the words that were found: of what is not written in words, one may be the text.
const SIDE_BYTES: usize = 512;

const BEFORE: &str = "<mark>";
const AFTER: &str = "</mark>";
const LEFT_OUT: char = '…';

/// Words to look for.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// The forms of all words, each with the number of its word.
    forms: HashMap<String, usize>,
    n_words: usize,
}

impl Wanted {
    /// The words of a query, with marks on their letters and with marks apart, as both are searched for.
    pub(super) fn of(query: &str) -> Self {
        let mut wanted = Self { forms: HashMap::new(), n_words: 0 };
        for place in words(query) {
            let word = &query[place];
            let forms = [folded(word), folded(&word.nfc().to_string()), folded(&word.nfd().to_string())];
            let known = forms.iter().find_map(|form| wanted.forms.get(form).copied());
            let number = known.unwrap_or(wanted.n_words);
            wanted.n_words = wanted.n_words.max(number + 1);
            for form in forms {
                wanted.forms.entry(form).or_insert(number);
            }
        }
        wanted
    }

    /// The part of a text in which most different ones of the words are, the first such; `None` when none of them is in
    /// it. Takes time in proportion to the text.
    pub(super) fn highlight(&self, text: &str) -> Option<String> {
        let mut window: VecDeque<Found> = VecDeque::with_capacity(SHOWN_WORDS);
        let mut best: (usize, Vec<Found>) = (0, Vec::new());
        for place in words(text) {
            let word = self.forms.get(&folded(&text[place.clone()])).copied();
            let is_wanted = word.is_some();
            if window.len() == SHOWN_WORDS {
                window.pop_front();
            }
            window.push_back(Found { place, word });
            if !is_wanted {
                continue;
            }
            let n_different = window.iter().filter_map(|found| found.word).collect::<HashSet<_>>().len();
            if n_different > best.0 {
                best = (n_different, window.iter().cloned().collect());
            }
            if n_different == self.n_words {
                break;
            }
        }
        let shown = shown(text, &best.1)?;
        Some(self.marked(text, shown))
    }

    /// A part of a text, with the words in it between marks.
    fn marked(&self, text: &str, shown: Range<usize>) -> String {
        let part = &text[shown.clone()];
        let mut marked = String::new();
        if shown.start > 0 {
            marked.push(LEFT_OUT);
        }
        let mut from = 0;
        for place in words(part).filter(|place| self.forms.contains_key(&folded(&part[place.clone()]))) {
            marked.extend([&part[from..place.start], BEFORE, &part[place.clone()], AFTER]);
            from = place.end;
        }
        marked.push_str(&part[from..]);
        if shown.end < text.len() {
            marked.push(LEFT_OUT);
        }
        marked
    }
}

/// A word of a text, and which of those that are wanted it is.
#[derive(Clone, Debug)]
struct Found {
    place: Range<usize>,
    word: Option<usize>,
}

/// The part of a text with these words, from the first that is wanted to the last, and as many before as after them.
fn shown(text: &str, found: &[Found]) -> Option<Range<usize>> {
    let first = found.iter().position(|found| found.word.is_some())?;
    let n_others = SHOWN_WORDS - (found.len() - first);
    let found_to = found.last()?.place.end;
    let after: Vec<_> = words(&text[found_to..]).take(n_others + 1).collect();
    let n_after = after.len().min(n_others - first.min(n_others / 2));
    let n_before = first.min(n_others - n_after);
    let is_begun = n_before < first || words(&text[..found.first()?.place.start]).next().is_some();
    let start = if is_begun { found[first - n_before].place.start } else { 0 };
    let end = if n_after < after.len() {
        found_to + after[..n_after].last().map_or(0, |place| place.end)
    } else {
        text.len()
    };
    let least = text.floor_char_boundary(found[first].place.start.saturating_sub(SIDE_BYTES));
    Some(start.max(least)..end.min(text.ceil_char_boundary(found_to.saturating_add(SIDE_BYTES))))
}

/// The places of the words of a text: what stands between letters, digits and their marks ends one.
fn words(text: &str) -> impl Iterator<Item = Range<usize>> {
    let mut characters = text.char_indices().peekable();
    std::iter::from_fn(move || {
        let is_part = |c: char| c.is_alphanumeric() || is_combining_mark(c);
        let (start, first) = characters.by_ref().find(|(_, c)| is_part(*c))?;
        let mut end = start + first.len_utf8();
        while let Some((at, c)) = characters.next_if(|(_, c)| is_part(*c)) {
            end = at + c.len_utf8();
        }
        Some(start..end)
    })
}

/// A word with its letters folded. Other than in the index, all capitals are small, and marks that end a word there stay.
fn folded(word: &str) -> String {
    if word.is_ascii() {
        return word.to_ascii_lowercase();
    }
    word.chars().flat_map(folding::folded).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn highlight(query: &str, text: &str) -> Option<String> {
        Wanted::of(query).highlight(text)
    }

    #[test]
    fn words_are_marked_as_they_stand_in_the_text() {
        for (query, text, expected) in [
            ("cat", "The cat sat.", Some("The <mark>cat</mark> sat.")),
            (
                "CAFE zurich",
                "Grüße aus dem Café in Zürich!",
                Some("Grüße aus dem <mark>Café</mark> in <mark>Zürich</mark>!"),
            ),
            ("cafe\u{301}", "Cafe\u{301}s and a café", Some("Cafe\u{301}s and a <mark>café</mark>")),
            ("(c++) rust?", "C++, Rust", Some("<mark>C</mark>++, <mark>Rust</mark>")),
            // What the index tells apart.
            ("कि", "के कि", Some("के <mark>कि</mark>")),
            ("чаи", "чай и чаи", Some("чай и <mark>чаи</mark>")),
            ("か", "が か", Some("が <mark>か</mark>")),
            ("Андрей", "Андреи\u{306} и Андрей", Some("<mark>Андреи\u{306}</mark> и <mark>Андрей</mark>")),
            ("か\u{3099}き", "がき", Some("<mark>がき</mark>")),
            ("οδος", "ΟΔΟΣ", Some("<mark>ΟΔΟΣ</mark>")),
            ("cat", "concatenate", None),
            ("", "a text", None),
            ("a", "", None),
        ] {
            assert_eq!(highlight(query, text).as_deref(), expected, "{query}");
        }
    }

    #[test]
    fn of_a_long_text_the_part_with_most_of_the_words_is_shown() {
        let filling = "word ".repeat(100);
        let text = format!("fox {filling} the quick brown fox jumps {filling}");
        let shown = highlight("quick fox", &text).expect("both are there");
        assert!(shown.starts_with('…') && shown.ends_with('…'), "{shown}");
        assert!(shown.contains("the <mark>quick</mark> brown <mark>fox</mark> jumps word"), "{shown}");
        assert_eq!(words(&shown.replace(BEFORE, "").replace(AFTER, "")).count(), SHOWN_WORDS, "{shown}");
        let first = highlight("fox", &text).expect("it is there");
        assert!(first.starts_with("<mark>fox</mark> word") && first.ends_with("word…"), "{first}");
    }

    #[test]
    fn what_is_no_word_beside_the_found_ones_is_shown_in_part() {
        let text = format!("{} key {}", "ü".repeat(10_000), "x".repeat(10_000));
        let shown = highlight("key", &text).expect("it is there");
        assert!(shown.starts_with("…ü") && shown.contains("ü <mark>key</mark> x") && shown.ends_with("x…"), "{shown}");
        assert!(shown.len() < 2 * SIDE_BYTES + 40, "{}", shown.len());
    }

    #[test]
    fn all_forms_of_a_word_are_one() {
        for (query, n_words) in [("Андрей Сергеев", 2), ("Андрей андреи\u{306}", 1), ("か\u{3099}き がき Cat cat", 2)]
        {
            assert_eq!(Wanted::of(query).n_words, n_words, "{query}");
        }
        let text = format!("Андрей, Андреи\u{306} {}Андрей, кот", "слово ".repeat(100));
        let shown = highlight("Андрей кот", &text).expect("both are there");
        assert!(shown.ends_with("<mark>Андрей</mark>, <mark>кот</mark>"), "{shown}");
    }

    #[test]
    fn a_text_of_nothing_but_such_words_takes_no_longer() {
        let text = "zq ".repeat(1 << 18);
        let began = std::time::Instant::now();
        assert!(highlight("zq", &text).expect("it is there").ends_with("</mark>…"));
        assert!(began.elapsed() < std::time::Duration::from_mins(1), "{:?}", began.elapsed());
    }
}
