//! How a model on a hub is named: a repository, a revision of it, and the `.onnx` file in it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::text::text_type;

/// The longest repository name, in bytes; the hub's own limit.
const MAX_ID_BYTES: usize = 96;

/// The longest revision or path, in bytes.
const MAX_PATH_BYTES: usize = 255;

const DEFAULT_REVISION: &str = "main";

const DEFAULT_FILE: &str = "onnx/model.onnx";

/// A repository on a hub: `organisation/name`, or `name` alone for the oldest ones.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct HubId(String);

/// A branch, a tag, or a commit of 40 hexadecimal digits. The default is `main`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct HubRevision(String);

/// The path of an `.onnx` file in its repository, with `/` between folders. The default is `onnx/model.onnx`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct HubFile(String);

/// Where on a hub a model is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubSource {
    /// The repository.
    pub repository: HubId,
    /// Which state of it.
    #[serde(default)]
    pub revision: HubRevision,
    /// The model in it.
    #[serde(default)]
    pub file: HubFile,
}

/// Why a text does not name something on a hub.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HubNameError {
    /// Not a repository.
    #[error(
        "`{0}` is not a repository of a hub: write `organisation/name`, at most 96 of the characters A-Z, a-z, 0-9, `.`, \
         `_` and `-`, no part beginning with `.` or `-`, and neither `..` nor `--` in it"
    )]
    Id(String),
    /// Not a revision.
    #[error("`{0}` is not a revision: write a branch, a tag, or a commit of 40 hexadecimal digits")]
    Revision(String),
    /// Not an `.onnx` file.
    #[error(
        "`{0}` is not an ONNX file of a repository: write its path in the repository, such as `onnx/model.onnx`, with \
         neither `..` nor `\\` in it"
    )]
    File(String),
}

impl HubId {
    /// Reads a repository's name.
    ///
    /// # Errors
    /// When the text is not one or two parts of `[A-Za-z0-9._-]`, or could be mistaken for a path.
    pub fn parse(text: &str) -> Result<Self, HubNameError> {
        // The cache writes `/` as `--`.
        let well_formed = text.len() <= MAX_ID_BYTES
            && text.split('/').count() <= 2
            && text.split('/').all(|part| is_part(part, b"._-"))
            && !text.contains("..")
            && !text.contains("--");
        if well_formed { Ok(Self(text.to_owned())) } else { Err(HubNameError::Id(shortened(text))) }
    }
}

impl HubRevision {
    /// Reads a revision.
    ///
    /// # Errors
    /// When no branch, tag or commit can be written so.
    pub fn parse(text: &str) -> Result<Self, HubNameError> {
        let well_formed =
            text.len() <= MAX_PATH_BYTES && text.split('/').all(|part| is_part(part, b"._-+")) && !text.contains("..");
        if well_formed { Ok(Self(text.to_owned())) } else { Err(HubNameError::Revision(shortened(text))) }
    }

    /// Whether it names a commit, which never moves.
    #[must_use]
    pub fn is_commit(&self) -> bool {
        self.0.len() == 40 && self.0.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'))
    }
}

impl HubFile {
    /// Reads the path of an `.onnx` file.
    ///
    /// # Errors
    /// When it leaves the repository or does not end in `.onnx`.
    pub fn parse(text: &str) -> Result<Self, HubNameError> {
        let well_formed = text.len() <= MAX_PATH_BYTES && is_inside(text) && has_extension(text, "onnx");
        if well_formed { Ok(Self(text.to_owned())) } else { Err(HubNameError::File(shortened(text))) }
    }
}

/// Whether it is a part between two `/`: letters, digits and these others, and neither `-` nor `.` first.
fn is_part(part: &str, others: &[u8]) -> bool {
    !part.is_empty()
        && !part.starts_with(['-', '.'])
        && part.bytes().all(|b| b.is_ascii_alphanumeric() || others.contains(&b))
}

/// Whether a path, written with `/`, names something below the folder it is relative to on every system.
#[must_use]
pub fn is_inside(path: &str) -> bool {
    path.split('/').all(|part| !matches!(part, "" | "." | ".."))
        && !path.contains(|c: char| c == '\\' || c == ':' || c.is_control())
}

/// Whether a file's name ends so, in just these letters.
#[must_use]
pub fn has_extension(path: &str, extension: &str) -> bool {
    path.strip_suffix(extension).is_some_and(|stem| stem.ends_with('.'))
}

/// A caller's megabyte must not come back in the error and the log.
fn shortened(text: &str) -> String {
    text.chars().take(MAX_PATH_BYTES).collect()
}

impl Default for HubRevision {
    fn default() -> Self {
        Self(DEFAULT_REVISION.to_owned())
    }
}

impl Default for HubFile {
    fn default() -> Self {
        Self(DEFAULT_FILE.to_owned())
    }
}

impl fmt::Display for HubSource {
    /// `organisation/name@revision:file`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}:{}", self.repository, self.revision, self.file)
    }
}

text_type!(HubId, HubNameError);
text_type!(HubRevision, HubNameError);
text_type!(HubFile, HubNameError);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_names_are_read_at_the_edge() {
        for text in ["granary/tiny", "bert-base-uncased", "nomic-ai/nomic-embed-text-v1.5", "a/_b"] {
            assert_eq!(HubId::parse(text).expect(text).to_string(), text);
        }
        let long = "a".repeat(97);
        for text in ["", "/", "a/", "/a", "a/b/c", "../a", "a/..", "a..b", "-a/b", "a/.b", "a b", "a--b", "ä", &long] {
            assert!(HubId::parse(text).is_err(), "{text}");
        }
        for text in ["main", "v1.0+cpu", "refs/pr/7", &"0a".repeat(20)] {
            assert_eq!(HubRevision::parse(text).expect(text).is_commit(), text.len() == 40, "{text}");
        }
        for text in ["", "../main", "a//b", "/a", "a/", "-x", "a b", "a?b", "a%2f", ".git/x"] {
            assert!(HubRevision::parse(text).is_err(), "{text}");
        }
        for text in ["model.onnx", "onnx/model_fp16.onnx", "a b/ü.onnx"] {
            assert_eq!(HubFile::parse(text).expect(text).as_str(), text);
        }
        for text in
            ["", "/m.onnx", "../m.onnx", "a/../m.onnx", "a\\m.onnx", "C:/m.onnx", "m.bin", "a//m.onnx", "./m.onnx"]
        {
            assert!(HubFile::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn hub_sources_leave_out_the_usual() {
        let source: HubSource = serde_json::from_str(r#"{"repository": "granary/tiny"}"#).expect("a source");
        assert_eq!(source.to_string(), "granary/tiny@main:onnx/model.onnx");
        let whole = r#"{"repository":"granary/tiny","revision":"main","file":"onnx/model.onnx"}"#;
        assert_eq!(serde_json::to_string(&source).expect("JSON"), whole);
    }
}
