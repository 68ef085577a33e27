//! Letters as the full-text index has them: those of SQLite's tokenizer `unicode61` with `remove_diacritics 2`.

use std::ops::RangeInclusive;

use unicode_normalization::UnicodeNormalization;

/// Marks on the letter before them that FTS5 leaves out of its words. All others end a word for it.
const LEFT_OUT: [RangeInclusive<char>; 8] = [
    '\u{300}'..='\u{304}',
    '\u{306}'..='\u{30c}',
    '\u{30f}'..='\u{30f}',
    '\u{311}'..='\u{311}',
    '\u{31b}'..='\u{31b}',
    '\u{323}'..='\u{328}',
    '\u{32d}'..='\u{32e}',
    '\u{330}'..='\u{331}',
];

/// Whether a character is a mark that is left out of the words of the index.
pub(super) fn is_left_out(c: char) -> bool {
    LEFT_OUT.iter().any(|range| range.contains(&c))
}

/// A letter in lower case, and without its marks if it is one of a to z. Other letters keep theirs where the two are one
/// character, as й is. Another form of a letter is that letter. Nothing, for a mark that the index
/// leaves out.
pub(super) fn folded(c: char) -> impl Iterator<Item = char> {
    let without_marks = |c: char| c.nfd().next().filter(char::is_ascii_alphabetic).unwrap_or(c);
    c.to_lowercase().filter(|c| !is_left_out(*c)).map(move |c| match c {
        // Of these letters with two marks the only one that keeps them.
        'ǡ' => c,
        'ſ' | 'ẛ' => 's',
        '\u{b5}' => 'μ',
        'ς' => 'σ',
        'ϐ' => 'β',
        'ϑ' => 'θ',
        'ϕ' => 'φ',
        'ϖ' => 'π',
        'ϰ' => 'κ',
        'ϱ' => 'ρ',
        'ϵ' => 'ε',
        '\u{1fbe}' => 'ι',
        c => without_marks(c),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_folded_as_in_the_index_and_marks_that_end_words_stay() {
        for (word, in_index) in [
            ("Brücke", "brucke"),
            ("GRÜẞE", "gruße"),
            ("Zu\u{308}rich", "zurich"),
            ("İstanbul", "istanbul"),
            ("Søren Łódź", "søren łodz"),
            ("ậ ǟ Ǡǡ", "a a ǡǡ"),
            ("Чай", "чай"),
            ("чаи\u{306}", "чаи"),
            ("ΟΔΌΣ οδός", "οδόσ οδόσ"),
            ("5\u{b5}F 5\u{3bc}F", "5\u{3bc}f 5\u{3bc}f"),
            ("ſẛ ϐϑϕϖϰϱϵ \u{1fbe}", "ss βθφπκρε \u{3b9}"),
            ("がき", "がき"),
            ("か\u{3099}", "か\u{3099}"),
            ("한국어", "한국어"),
            ("हिन्दी", "हिन्दी"),
        ] {
            assert_eq!(word.chars().flat_map(folded).collect::<String>(), in_index, "{word}");
        }
    }
}
