//! What counts as a word, in texts and in queries alike.
//!
//! A word is what stands between two characters that are no letters and no digits, whatever its case and its accents. Some
//! scripts put no spaces between words: of these each two neighbouring letters count as a word, which finds any word of
//! two letters or more wherever it stands, and needs no dictionary that two machines might have in different versions.
//! Korean is taken so, too: its words have endings. The figures are in `benches/README.md`.

use std::collections::HashSet;
use std::iter::Peekable;
use std::ops::Range;

use icu_properties::props::{DefaultIgnorableCodePoint, LineBreak, Script};
use icu_properties::{CodePointMapData, CodePointSetData};
use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::{decompose_compatible, is_combining_mark};

/// The version of the rules by which [`words`] cuts and folds. To be raised whenever it gives anything else for some text.
const RULES: i64 = 1;

/// The most words of a query that are looked at.
const MOST_ASKED: usize = 128;

/// Of a longer word so many characters count.
const MOST_CHARACTERS: usize = 255;

/// What the words of a text go by: the rules, and the versions of Unicode that know its letters. Where an index of words was
/// made by others it is made anew.
pub(super) fn rules() -> i64 {
    let (letters, forms) = (char::UNICODE_VERSION.0, unicode_normalization::UNICODE_VERSION.0);
    (RULES * 1_000 + i64::from(letters)) * 1_000 + i64::from(forms)
}

/// A word of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    /// Where it stands, in bytes.
    pub(super) place: Range<usize>,
    /// Where its first letter ends, if its script puts no spaces between words.
    pub(super) first_end: usize,
    /// What it is compared by.
    pub(super) term: String,
    pub(super) kind: WordKind,
}

/// What a word is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WordKind {
    /// All that stands between two characters of other kinds.
    Whole,
    /// Two neighbouring letters of a script without spaces.
    Pair,
    /// The last letter of such, which is in no pair's first place.
    Last,
    /// A letter of such that has no neighbour.
    Lone,
}

/// The words of a text, in the order in which they stand in it.
pub(super) fn words(text: &str) -> impl Iterator<Item = Word> {
    Words { text, pieces: pieces(text).peekable(), former: None }
}

/// A word of a query.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Asked {
    pub(super) term: String,
    /// Whether words that begin with it are asked for, too: a lone letter of a script without spaces.
    pub(super) is_beginning: bool,
}

/// The words of a query, each once, the first [`MOST_ASKED`] of them.
pub(super) fn asked(query: &str) -> Vec<Asked> {
    let mut seen = HashSet::new();
    // Pairs say where a last letter is.
    let telling = words(query).filter(|word| word.kind != WordKind::Last);
    let distinct = telling.filter(|word| seen.insert(word.term.clone()));
    let asked = distinct.map(|word| Asked { term: word.term, is_beginning: word.kind == WordKind::Lone });
    asked.take(MOST_ASKED).collect()
}

struct Words<'a, I: Iterator<Item = Piece>> {
    text: &'a str,
    pieces: Peekable<I>,
    /// The letter before, of a script without spaces: where it ends.
    former: Option<usize>,
}

impl<I: Iterator<Item = Piece>> Iterator for Words<'_, I> {
    type Item = Word;

    fn next(&mut self) -> Option<Word> {
        loop {
            let Piece { place, is_letter } = self.pieces.next()?;
            let has_former = self.former.take() == Some(place.start);
            let (mut whole, first_end) = (place.clone(), place.end);
            let kind = if is_letter {
                self.former = Some(place.end);
                let next = self.pieces.peek().filter(|next| next.is_letter && next.place.start == place.end);
                if let Some(next) = next {
                    whole.end = next.place.end;
                    WordKind::Pair
                } else if has_former {
                    WordKind::Last
                } else {
                    WordKind::Lone
                }
            } else {
                WordKind::Whole
            };
            let term = folded(&self.text[whole.clone()]);
            if !term.is_empty() {
                return Some(Word { place: whole, first_end, term, kind });
            }
        }
    }
}

/// A word, or a letter of a script without spaces, with its marks.
struct Piece {
    place: Range<usize>,
    is_letter: bool,
}

fn pieces(text: &str) -> impl Iterator<Item = Piece> {
    let mut characters = text.char_indices().peekable();
    std::iter::from_fn(move || {
        let (start, first) = characters.by_ref().find(|(_, c)| c.is_alphanumeric() || is_unspaced(*c))?;
        let is_letter = is_unspaced(first);
        let goes_on = |c: char| match c {
            // Between the letters of a Persian word and its endings.
            '\u{200c}' => script(first) != Script::Arabic,
            _ => goes_with_the_former(c) || !is_letter && c.is_alphanumeric() && !is_unspaced(c),
        };
        let mut end = start + first.len_utf8();
        while let Some((at, c)) = characters.next_if(|(_, c)| goes_on(*c)) {
            end = at + c.len_utf8();
        }
        Some(Piece { place: start..end, is_letter })
    })
}

fn script(c: char) -> Script {
    CodePointMapData::<Script>::new().get(c)
}

/// Whether the script of a letter puts no spaces between words, or, as Korean, none between a word and its endings.
fn is_unspaced(c: char) -> bool {
    !c.is_ascii()
        && (matches!(
            script(c),
            Script::Han | Script::Hiragana | Script::Katakana | Script::Bopomofo | Script::Hangul
        )
        // The long vowel of both kana.
        || matches!(c, 'ー' | 'ｰ')
        // Thai, Lao, Burmese, Khmer and their kin.
        || CodePointMapData::<LineBreak>::new().get(c) == LineBreak::ComplexContext)
}

/// Whether a character is a mark on the letter before it, or nothing that is seen.
fn goes_with_the_former(c: char) -> bool {
    !c.is_ascii()
        && (is_combining_mark(c)
            || is_unseen(c)
            // Marks of half width, and vowels and ends of Korean syllables that are written apart.
            || matches!(c, 'ﾞ' | 'ﾟ' | '\u{1160}'..='\u{11ff}' | '\u{d7b0}'..='\u{d7fb}'))
}

/// Whether a character shows in no word, and ends none.
fn is_unseen(c: char) -> bool {
    // Spaces without width.
    let ends_word = matches!(c, '\u{200b}' | '\u{2060}' | '\u{feff}');
    !ends_word && CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c)
}

/// A word as it is compared: without case, in one form of several that Unicode has for the same, and without accents and
/// vowel marks where the script is read without them.
fn folded(word: &str) -> String {
    if word.is_ascii() {
        let end = word.len().min(MOST_CHARACTERS);
        return word[..end].to_ascii_lowercase();
    }
    let mut apart = String::with_capacity(2 * word.len());
    for c in word.chars().take(MOST_CHARACTERS).filter(|c| !is_unseen(*c)) {
        let start = apart.len();
        decompose_compatible(c, |part| apart.push(part));
        // Half is not twelve.
        if apart[start..].contains('\u{2044}') {
            apart.truncate(start);
            apart.push(c);
        }
    }
    let mut letter = ' ';
    let kept = apart.nfd().filter(|c| {
        if is_combining_mark(*c) {
            return counts(*c, letter);
        }
        letter = *c;
        // The stroke that makes Arabic words longer.
        (c.is_alphanumeric() || is_unspaced(*c)) && *c != 'ـ'
    });
    // By way of capitals: ß is SS, as ẞ is, and ς is Σ.
    let small = kept.flat_map(char::to_lowercase).flat_map(char::to_uppercase).flat_map(char::to_lowercase);
    // Keyboards for Arabic and for Persian have different ones of the same letters.
    let same = small.map(|c| match c {
        'ي' | 'ى' => 'ی',
        'ك' => 'ک',
        'ة' => 'ه',
        c => c,
    });
    same.nfc().collect()
}

/// Whether a mark makes another letter of the one that it is on.
fn counts(mark: char, letter: char) -> bool {
    match script(letter) {
        Script::Latin | Script::Greek | Script::Arabic | Script::Hebrew | Script::Common => false,
        // й and ї are letters of their own, and so are ѓ and ќ. ё is often written е, and a stress is seldom written.
        Script::Cyrillic => match mark {
            '\u{306}' => true,
            '\u{308}' => !matches!(letter, 'е' | 'Е'),
            '\u{301}' => matches!(letter, 'г' | 'Г' | 'к' | 'К'),
            _ => false,
        },
        // The dot of letters that Hindi took from Persian is often left out.
        Script::Devanagari => mark != '\u{93c}',
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn terms(text: &str) -> Vec<String> {
        words(text).map(|word| word.term).collect()
    }

    #[test]
    fn words_are_compared_without_case_accents_and_ways_to_write_the_same() {
        for (text, expected) in [
            ("The C++ code, don't", "the c code don t"),
            ("Straße STRASSE Brücke Zu\u{308}rich GRÜẞE", "strasse strasse brucke zurich grusse"),
            ("İstanbul ısı Søren Łódź ﬁn", "istanbul isi søren łodz fin"),
            ("ΟΔΌΣ οδός ΐ", "οδοσ οδοσ ι"),
            ("Чай чаи\u{306} Ёлка елка Росси\u{301}я Київ", "чай чай елка елка россия київ"),
            ("ᲗᲑᲘᲚᲘᲡᲘ თბილისი", "თბილისი თბილისი"),
            ("مُحَمَّد محمد مـحـمد", "محمد محمد محمد"),
            ("كتاب کتاب علي على مدرسة", "کتاب کتاب علی علی مدرسه"),
            ("ќе кој ѓавол Ѓ", "ќе кој ѓавол ѓ"),
            ("ज़रूर जरूर", "जरूर जरूर"),
            ("foo\u{200b}bar \u{feff}baz", "foo bar baz"),
            ("שָׁלוֹם שלום", "שלום שלום"),
            ("हिन्दी की किताब", "हिन्दी की किताब"),
            ("کتاب\u{200c}ها ക്\u{200c}ക co\u{ad}operate", "کتاب ها ക്ക cooperate"),
            ("Ａｂｃ１２ ① m² ½ 1½", "abc12 1 m2 ½ 1½"),
            ("42 3.14 x_y", "42 3 14 x y"),
            ("\u{301} \u{200d} ー! -:()", "ー"),
            ("", ""),
        ] {
            assert_eq!(terms(text).join(" "), expected, "{text}");
        }
    }

    #[test]
    fn of_scripts_without_spaces_each_two_letters_are_a_word() {
        for (text, expected) in [
            ("我爱北京", "我爱 爱北 北京 京"),
            ("東京タワー", "東京 京タ タワ ワー ー"),
            ("がき か\u{3099}き ｶﾞｷ", "がき き がき き ガキ キ"),
            ("iPhone手机2024年", "iphone 手机 机 2024 年"),
            ("한국어를 \u{1112}\u{1161}\u{11ab}국", "한국 국어 어를 를 한국 국"),
            ("สวัสดี ๒๕๖๗", "สวั วัส สดี ดี ๒๕๖๗"),
            ("葛\u{e0100}城", "葛城 城"),
            ("人、犬", "人 犬"),
            ("⼈生", "人生 生"),
            ("⻑野", "⻑野 野"),
        ] {
            assert_eq!(terms(text).join(" "), expected, "{text}");
        }
        let kinds: Vec<WordKind> = words("犬は猫 a 人").map(|word| word.kind).collect();
        assert_eq!(kinds, [WordKind::Pair, WordKind::Pair, WordKind::Last, WordKind::Whole, WordKind::Lone]);
    }

    #[test]
    fn a_query_asks_for_each_word_once_and_for_what_begins_with_a_lone_letter() {
        let cases: [(&str, &[(&str, bool)]); 5] = [
            ("The cat, the CAT", &[("the", false), ("cat", false)]),
            ("天安门", &[("天安", false), ("安门", false)]),
            ("猫 と2", &[("猫", true), ("と", true), ("2", false)]),
            ("Zürich Zurich Zu\u{308}rich", &[("zurich", false)]),
            (" -:() \"\" \u{301}", &[]),
        ];
        for (query, expected) in cases {
            let asked: Vec<(String, bool)> = asked(query).into_iter().map(|it| (it.term, it.is_beginning)).collect();
            let asked: Vec<(&str, bool)> = asked.iter().map(|(term, begins)| (term.as_str(), *begins)).collect();
            assert_eq!(asked, expected, "{query}");
        }
        let page = (0..1000).map(|n| format!("word{n}")).collect::<Vec<_>>().join(" ");
        assert_eq!(asked(&page).len(), MOST_ASKED);
    }

    #[test]
    fn of_a_longer_word_the_beginning_counts() {
        for letter in ["a", "ü"] {
            let longest = letter.repeat(MOST_CHARACTERS);
            assert_eq!(terms(&(longest.clone() + "b")), terms(&longest));
            assert_ne!(terms(&longest[letter.len()..]), terms(&longest));
        }
    }

    proptest! {
        #[test]
        fn places_are_in_the_text_and_terms_are_what_is_compared(text in "\\PC{0,40}|[a-zß가-힣ก-๛一-三 ぁ-ゖ\u{300}-\u{308}\u{3099}]{0,40}") {
            let mut former = 0;
            for Word { place, first_end, term, kind } in words(&text) {
                prop_assert!(former <= place.start && place.start < first_end && first_end <= place.end);
                former = place.start;
                prop_assert!(!term.is_empty() && !term.contains([' ', '"']), "{term}");
                prop_assert_eq!(kind == WordKind::Pair, first_end < place.end);
                prop_assert_eq!(folded(&text[place]), term);
            }
        }

        #[test]
        fn composed_and_decomposed_texts_have_the_same_words(text in "\\PC{0,40}") {
            let (composed, apart): (String, String) = (text.nfc().collect(), text.nfd().collect());
            prop_assert_eq!(terms(&composed), terms(&apart));
        }
    }
}
