//! Why a configuration is refused. Each refusal names the file, variable or flag, the key, what was found and what was
//! expected.

use std::fmt;
use std::path::PathBuf;

use figment::error::{Actual, Kind};

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file that was named, or the one in the working directory, cannot be read.
    #[error("the configuration file {} cannot be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not TOML. What stands there is not repeated: it may be a key.
    #[error("the configuration file {} is not TOML: line {line}, column {column}: {problem}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line where it stops to make sense, from 1.
        line: usize,
        /// The character of that line, from 1.
        column: usize,
        /// What was expected there.
        problem: String,
    },
    /// Keys or values are not acceptable.
    #[error("the configuration is refused:\n{}", lines(.0))]
    Refused(Vec<Refusal>),
}

impl ConfigError {
    /// What `toml` says of the text of a file, without the line that it would show.
    pub(super) fn syntax(path: PathBuf, text: &str, error: &toml::de::Error) -> Self {
        let start = error.span().map_or(text.len(), |span| span.start);
        let before = text.get(..start).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |rest| rest.chars().count()) + 1;
        let problem = match error.message() {
            // These name what was found, such as a number that is too large.
            said if said.starts_with("invalid type: ") || said.starts_with("invalid value: ") => {
                "no setting takes such a value"
            }
            said => said,
        };
        Self::Syntax { path, line, column, problem: problem.to_owned() }
    }
}

/// One key that is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The file, environment variable or flag.
    pub origin: String,
    /// The key with its section: `server.port`, `ai.additional_models[0].pooling`.
    pub key: String,
    /// What was found and what was expected.
    pub sentence: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.origin, self.key, self.sentence)
    }
}

fn lines(refusals: &[Refusal]) -> String {
    refusals.iter().map(|refusal| format!("  {refusal}")).collect::<Vec<_>>().join("\n")
}

impl Refusal {
    /// What `figment` says about one section, in our words. `origin` is asked where the error does not know its own.
    pub(super) fn from_figment(section: &str, error: &figment::Error, origin: impl Fn(&str) -> String) -> Self {
        let mut path: Vec<&str> = error.path.iter().map(String::as_str).collect();
        if let Kind::MissingField(field) = &error.kind {
            path.push(field);
        }
        let key = key_of(section, &path);
        let known = error.metadata.as_ref().map(|metadata| metadata.name.to_string());
        Self { origin: known.unwrap_or_else(|| origin(&key)), sentence: sentence(&key, &error.kind), key }
    }
}

fn key_of(section: &str, path: &[&str]) -> String {
    path.iter().fold(section.to_owned(), |key, part| {
        if part.parse::<usize>().is_ok() { format!("{key}[{part}]") } else { format!("{key}.{part}") }
    })
}

/// What [`AuthConfig::keys`](super::AuthConfig) is written as.
pub(super) const LIST_OF_KEYS: &str =
    "a list of tables: [{ name = \"…\", hash = \"sha256:…\", scopes = [\"embed\", \"read\"] }]";

fn sentence(key: &str, kind: &Kind) -> String {
    match kind {
        Kind::InvalidType(..) | Kind::InvalidValue(..) if key == "auth.keys" => {
            format!("found something else, expected {LIST_OF_KEYS}")
        }
        // What was found may be a key, and is not repeated; a number where one is expected is none.
        Kind::InvalidType(found, expected) | Kind::InvalidValue(found, expected)
            if key.starts_with("auth.keys[") && !(is_number(found) && expected == NUMBER_FROM_1) =>
        {
            format!("found something else, expected {}", expected_in_words(expected))
        }
        Kind::InvalidType(found, _) if key == "ai.additional_models" => {
            format!("found {}, expected a list of tables: [{{ name = \"…\", path = \"…\" }}]", found_in_words(found))
        }
        Kind::InvalidType(found, expected) | Kind::InvalidValue(found, expected) => {
            format!("found {}, expected {}", found_in_words(found), expected_in_words(expected))
        }
        Kind::UnknownVariant(found, words) => format!("found {found:?}, expected {}", listed(words)),
        Kind::UnknownField(field, known) => {
            let place = key.strip_suffix(field.as_str()).unwrap_or(key).trim_end_matches('.');
            unknown_key(field, place, known)
        }
        Kind::MissingField(_) => "found nothing, expected a value".to_owned(),
        other => other.to_string(),
    }
}

/// The refusal of a key that `place` does not have, with the known one it resembles.
pub(super) fn unknown_key(key: &str, place: &str, known: &[&str]) -> String {
    let nearest = known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(&key.to_lowercase(), candidate), candidate))
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .filter(|(likeness, _)| *likeness > 0.8);
    let hint = nearest.map(|(_, candidate)| format!("did you mean `{candidate}`? ")).unwrap_or_default();
    format!("found an unknown key; {hint}expected in {place}: {}", known.join(", "))
}

fn listed(words: &[&str]) -> String {
    words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(" or ")
}

fn found_in_words(found: &Actual) -> String {
    match found {
        Actual::Bool(value) => format!("`{value}`"),
        Actual::Unsigned(number) => format!("the number {number}"),
        Actual::Signed(number) => format!("the number {number}"),
        Actual::Float(number) => format!("the number {number:?}"),
        Actual::Str(text) if text.is_empty() => "an empty string".to_owned(),
        Actual::Str(text) => format!("{:?}", text.chars().take(200).collect::<String>()),
        Actual::Seq => "a list".to_owned(),
        Actual::Map => "a table".to_owned(),
        other => other.to_string(),
    }
}

fn is_number(found: &Actual) -> bool {
    matches!(found, Actual::Unsigned(_) | Actual::Signed(_) | Actual::Float(_))
}

/// How serde calls what limits are.
const NUMBER_FROM_1: &str = "a nonzero u32";

/// Serde names Rust types; an operator thinks in values.
fn expected_in_words(expected: &str) -> String {
    match expected {
        "u16" => "a whole number from 0 to 65535".to_owned(),
        "u32" | "u64" | "usize" => "a whole number".to_owned(),
        "f64" => "a number".to_owned(),
        NUMBER_FROM_1 | "a nonzero usize" => "a whole number of at least 1".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a string" | "path string" => "a string in quotes".to_owned(),
        "a sequence" => "a list such as [\"a\", \"b\"]".to_owned(),
        "a map" => "a table".to_owned(),
        other if other.starts_with("struct ") => "a table".to_owned(),
        other => other.to_owned(),
    }
}
