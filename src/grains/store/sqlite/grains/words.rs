//! A query in a person's words, as one of FTS5: <https://www.sqlite.org/fts5.html#full_text_query_syntax>.

/// The most words that are searched for: a pasted page would ask for every grain.
const MAX_WORDS: usize = 64;

/// A query that any of the words meets, each quoted, so that none is taken for an operator. `None` without a word.
pub(super) fn any_word(text: &str) -> Option<String> {
    let mut words: Vec<String> = Vec::new();
    for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        let word = word.to_lowercase();
        if !words.contains(&word) {
            words.push(word);
        }
        if words.len() == MAX_WORDS {
            break;
        }
    }
    let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    (!quoted.is_empty()).then(|| quoted.join(" OR "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_and_nothing_is_an_operator() {
        let cases = [
            ("C++ NOT java", Some(r#""c" OR "not" OR "java""#)),
            (r#"say "hi" * ^ NEAR(a b)"#, Some(r#""say" OR "hi" OR "near" OR "a" OR "b""#)),
            ("Grüße, 世界", Some(r#""grüße" OR "世界""#)),
            ("the the The", Some(r#""the""#)),
            (" -:() \"\" ", None),
            ("", None),
        ];
        for (text, query) in cases {
            assert_eq!(any_word(text).as_deref(), query, "{text}");
        }
        let page = (0..1000).map(|n| format!("word{n}")).collect::<Vec<_>>().join(" ");
        assert_eq!(any_word(&page).expect("words").matches(" OR ").count(), MAX_WORDS - 1);
    }
}
