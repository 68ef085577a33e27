//! `[telemetry]`: what is logged and how, and where traces go.

use std::ops::RangeInclusive;
use std::str::FromStr;

use reqwest::Url;
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::spelling::{self, Problem, outside};

const TRACE_SHARE: RangeInclusive<Share> = Share(0.0)..=Share(1.0);

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
    /// The collector of traces; none are made when `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<CollectorUrl>,
    /// What the collector knows this server by.
    pub service_name: String,
    /// The share of requests that are sampled, where their callers have not decided.
    pub trace_share: Share,
}

impl TelemetryConfig {
    pub(super) fn problems(&self) -> Vec<Problem> {
        let nameless = self.service_name.trim().is_empty().then(|| {
            Problem::new("telemetry.service_name", "found an empty name, expected what the collector calls this server")
        });
        let share = outside("telemetry.trace_share", &self.trace_share, &TRACE_SHARE, |share| share.0.to_string());
        nameless.into_iter().chain(share).collect()
    }
}

/// A share of a whole, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Share(f64);

/// What is no number is outside the limits, so that no configuration has it.
impl Eq for Share {}

impl Share {
    /// 0 to 1.
    #[must_use]
    pub fn get(self) -> f64 {
        self.0
    }
}

/// The address of a collector that speaks OTLP over HTTP, without the path of one kind of signal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CollectorUrl(Url);

/// A string that is no such address. What was found is not repeated: it may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CollectorUrlError {
    /// A user name or a password.
    #[error("found a user name or a password; expected an address without, and the key in OTEL_EXPORTER_OTLP_HEADERS")]
    Credentials,
    /// The path of traces.
    #[error("found the path of one kind of signal; expected the address without `/v1/traces`, which the server adds")]
    Path,
    /// Anything else.
    #[error("expected the address of a collector that speaks OTLP over HTTP, such as \"http://localhost:4318\"")]
    Malformed,
}

impl CollectorUrl {
    /// Where traces are sent.
    #[must_use]
    pub fn for_traces(&self) -> Url {
        let mut url = self.0.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["v1", "traces"]);
        }
        url
    }
}

impl TryFrom<String> for CollectorUrl {
    type Error = CollectorUrlError;

    fn try_from(text: String) -> Result<Self, CollectorUrlError> {
        let url = Url::parse(&text).map_err(|_| CollectorUrlError::Malformed)?;
        if !matches!(url.scheme(), "http" | "https") || url.query().is_some() || url.fragment().is_some() {
            return Err(CollectorUrlError::Malformed);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(CollectorUrlError::Credentials);
        }
        if url.path().trim_end_matches('/').ends_with("/v1/traces") {
            return Err(CollectorUrlError::Path);
        }
        Ok(Self(url))
    }
}

impl From<CollectorUrl> for String {
    fn from(url: CollectorUrl) -> Self {
        url.0.into()
    }
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
    fn traces_go_below_the_address_of_the_collector() {
        for (text, traces) in [
            ("http://localhost:4318", "http://localhost:4318/v1/traces"),
            ("http://localhost:4318/", "http://localhost:4318/v1/traces"),
            ("https://otel.example/in/", "https://otel.example/in/v1/traces"),
        ] {
            assert_eq!(CollectorUrl::try_from(text.to_owned()).expect(text).for_traces().as_str(), traces);
        }
        for (text, error) in [
            ("localhost:4318", CollectorUrlError::Malformed),
            ("grpc://localhost:4317", CollectorUrlError::Malformed),
            ("http://otel.example?key=secret", CollectorUrlError::Malformed),
            ("https://user:secret@otel.example", CollectorUrlError::Credentials),
            ("http://localhost:4318/v1/traces", CollectorUrlError::Path),
        ] {
            assert_eq!(CollectorUrl::try_from(text.to_owned()), Err(error), "{text}");
            assert!(!error.to_string().contains("secret"));
        }
    }

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
