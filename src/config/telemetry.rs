//! `[telemetry]`: what is logged and how.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::spelling;

/// `[telemetry]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TelemetryConfig {
    /// How log lines are written.
    #[serde(deserialize_with = "spelling::word")]
    pub log_format: LogFormat,
    /// Which events are logged.
    #[serde(deserialize_with = "spelling::parsed")]
    pub log_filter: LogFilter,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Directives in the syntax of [`EnvFilter`], known to be valid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct LogFilter(String);

/// A string that is no filter, or one that was surely not meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "found {0:?}, expected `error`, `warn`, `info`, `debug` or `trace`, or directives such as \"info,granary=debug\""
)]
pub struct LogFilterError(String);

impl LogFilter {
    /// The filter to hand to the subscriber.
    #[must_use]
    pub fn to_env_filter(&self) -> EnvFilter {
        EnvFilter::new(&self.0)
    }

    /// The directives as they were written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LogFilter {
    type Err = LogFilterError;

    fn from_str(text: &str) -> Result<Self, LogFilterError> {
        // A lone word is a module's name to EnvFilter: `verbose` would be taken, and silence everything else.
        let is_lone_word = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        let valid = if is_lone_word { text.parse::<LevelFilter>().is_ok() } else { EnvFilter::try_new(text).is_ok() };
        // LevelFilter reads the empty string as `error`.
        if valid && !text.trim().is_empty() { Ok(Self(text.to_owned())) } else { Err(LogFilterError(text.to_owned())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_directives_are_filters() {
        for text in ["off", "INFO", "info,granary=debug", "granary::engine=trace", "info,[request]=debug", "3"] {
            assert!(text.parse::<LogFilter>().is_ok(), "{text}");
        }
        for text in ["", " ", "verbose", "granary=loud", "info,=,=", "granary"] {
            assert!(text.parse::<LogFilter>().is_err(), "{text}");
        }
    }
}
