//! Where the words of a query are in a text: the part with most of them, each between two marks.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;

use super::words::{Asked, Word, WordKind, asked, words};

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
    /// Each with its number.
    words: HashMap<String, usize>,
    /// Letters that words may begin with, likewise.
    beginnings: Vec<(String, usize)>,
}

impl Wanted {
    /// The words of a query, as they are searched for.
    pub(super) fn of(query: &str) -> Self {
        let mut wanted = Self { words: HashMap::new(), beginnings: Vec::new() };
        for (number, Asked { term, is_beginning }) in asked(query).into_iter().enumerate() {
            if is_beginning {
                wanted.beginnings.push((term, number));
            } else {
                wanted.words.insert(term, number);
            }
        }
        wanted
    }

    fn n_words(&self) -> usize {
        self.words.len() + self.beginnings.len()
    }

    /// A word of a text, and which of those it is that are wanted.
    fn found(&self, word: Word) -> Found {
        if let Some(number) = self.words.get(&word.term) {
            return Found { place: word.place, word: Some(*number) };
        }
        let begins = |(beginning, _): &&(String, usize)| word.term.starts_with(beginning);
        match self.beginnings.iter().find(begins).filter(|_| word.kind != WordKind::Whole) {
            Some((_, number)) => Found { place: word.place.start..word.first_end, word: Some(*number) },
            None => Found { place: word.place, word: None },
        }
    }

    /// The part of a text in which most different ones of the words are, the first such; `None` when none of them is in
    /// it. Takes time in proportion to the text.
    pub(super) fn highlight(&self, text: &str) -> Option<String> {
        let mut window: VecDeque<Found> = VecDeque::with_capacity(SHOWN_WORDS);
        let mut best: (usize, Vec<Found>) = (0, Vec::new());
        for found in words(text).map(|word| self.found(word)) {
            let is_wanted = found.word.is_some();
            if window.len() == SHOWN_WORDS {
                window.pop_front();
            }
            window.push_back(found);
            if !is_wanted {
                continue;
            }
            let n_different = window.iter().filter_map(|found| found.word).collect::<HashSet<_>>().len();
            if n_different > best.0 {
                best = (n_different, window.iter().cloned().collect());
            }
            if n_different == self.n_words() {
                break;
            }
        }
        let shown = shown(text, &best.1)?;
        Some(self.marked(text, shown))
    }

    /// A part of a text, with the words in it between marks. Those that have a letter in common have one mark.
    fn marked(&self, text: &str, shown: Range<usize>) -> String {
        let part = &text[shown.clone()];
        let mut marked = String::new();
        if shown.start > 0 {
            marked.push(LEFT_OUT);
        }
        let mut places: Vec<Range<usize>> = Vec::new();
        for Found { place, .. } in words(part).map(|word| self.found(word)).filter(|found| found.word.is_some()) {
            match places.last_mut() {
                Some(last) if place.start <= last.end => last.end = last.end.max(place.end),
                _ => places.push(place),
            }
        }
        let mut from = 0;
        for place in places {
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
    let after: Vec<_> = words(&text[found_to..]).take(n_others + 1).map(|word| word.place).collect();
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
            ("कि", "के कि", Some("के <mark>कि</mark>")),
            ("чаи", "чай и чаи", Some("чай и <mark>чаи</mark>")),
            ("か", "が か", Some("が <mark>か</mark>")),
            ("Андрей", "Андреи\u{306} и Андрей", Some("<mark>Андреи\u{306}</mark> и <mark>Андрей</mark>")),
            ("か\u{3099}き", "がき", Some("<mark>がき</mark>")),
            ("οδος", "ΟΔΟΣ", Some("<mark>ΟΔΟΣ</mark>")),
            // Without spaces: what the query has in common with the text, as a whole.
            ("天安门", "北京天安门广场", Some("北京<mark>天安门</mark>广场")),
            ("猫が好き", "犬も猫も好きだ", Some("犬も猫も<mark>好き</mark>だ")),
            ("猫", "黒猫と猫", Some("黒<mark>猫</mark>と<mark>猫</mark>")),
            ("도서관", "도서관에서 책을", Some("<mark>도서관</mark>에서 책을")),
            ("a", "abc a", Some("abc <mark>a</mark>")),
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
            assert_eq!(Wanted::of(query).n_words(), n_words, "{query}");
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
