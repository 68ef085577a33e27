//! `server.base_path`: what stands before every path.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The path below which everything is served, without a slash at its end; empty at the root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BasePath(String);

/// A string that is no path of plain segments.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "found {0:?}, expected \"/\" or a path such as \"/granary\", of letters, digits and `-`, `.`, `_`, `~` between slashes"
)]
pub struct BasePathError(String);

impl BasePath {
    /// Whether everything is served at the root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// A path as it is below this one; `None` where it is not below.
    #[must_use]
    pub fn strip<'a>(&self, path: &'a str) -> Option<&'a str> {
        match path.strip_prefix(&self.0)? {
            "" => Some("/"),
            rest if rest.starts_with('/') => Some(rest),
            _ => None,
        }
    }
}

impl TryFrom<String> for BasePath {
    type Error = BasePathError;

    fn try_from(text: String) -> Result<Self, BasePathError> {
        let path = text.strip_suffix('/').unwrap_or(&text);
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        // Clients resolve `.` and `..` before they ask.
        let is_segment = |segment: &str| !matches!(segment, "" | "." | "..") && segment.bytes().all(is_plain);
        let is_path = match path.strip_prefix('/') {
            Some(segments) => segments.split('/').all(is_segment),
            None => text == "/",
        };
        if is_path { Ok(Self(path.to_owned())) } else { Err(BasePathError(text.chars().take(80).collect())) }
    }
}

impl From<BasePath> for String {
    fn from(path: BasePath) -> Self {
        if path.is_root() { "/".to_owned() } else { path.0 }
    }
}

/// As it stands before a path: nothing at the root.
impl fmt::Display for BasePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(text: &str) -> Result<BasePath, BasePathError> {
        BasePath::try_from(text.to_owned())
    }

    #[test]
    fn a_slash_at_the_end_says_nothing() {
        assert_eq!(base("/a/b/"), base("/a/b"));
        assert!(base("/").expect("the root").is_root());
        assert_eq!(base("/a/b/").expect("a path").to_string(), "/a/b");
    }

    #[test]
    fn what_is_below_is_told_from_what_only_looks_like_it() {
        let base = base("/granary").expect("a path");
        for (path, below) in [
            ("/granary", Some("/")),
            ("/granary/", Some("/")),
            ("/granary/v1/models", Some("/v1/models")),
            ("/granary//x", Some("//x")),
            ("/granaryx", None),
            ("/Granary/embed", None),
            ("/embed", None),
            ("/", None),
            ("*", None),
        ] {
            assert_eq!(base.strip(path), below, "{path}");
        }
    }

    #[test]
    fn other_strings_are_refused() {
        for text in ["", "granary", "//", "/a//b", "/a/..", "/.", "/a b", "/a?b", "/a%20b", "/ä", "http://a/b"] {
            assert!(base(text).is_err(), "{text}");
        }
    }
}
