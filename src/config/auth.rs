//! `[auth]`: who may use the server.

use std::path::PathBuf;

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};

use super::layers::repeated_name;
use super::spelling::Problem;
use crate::domain::ApiKey;

/// `[auth]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthConfig {
    /// Whether the operator says that whoever reaches the port may use it.
    pub disabled: bool,
    /// What is answered without a key on a server that needs one.
    pub open: Vec<OpenRoutes>,
    /// Where the other keys are; `keys.toml` in the data directory when `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys_file: Option<PathBuf>,
    /// Keys, as their hashes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<ApiKey>,
}

/// Routes that may be left open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OpenRoutes {
    /// `/health` and what is below it, `GET /` and `/ping`, which are the same, and the health of each model.
    Health,
    /// `/metrics`.
    Metrics,
    /// `/docs` and `/openapi.json`.
    Docs,
}

impl<'de> Deserialize<'de> for OpenRoutes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "health" => Ok(Self::Health),
            "metrics" => Ok(Self::Metrics),
            "docs" => Ok(Self::Docs),
            other => Err(de::Error::invalid_value(de::Unexpected::Str(other), &"\"health\", \"metrics\" or \"docs\"")),
        }
    }
}

impl AuthConfig {
    pub(super) fn problems(&self) -> Vec<Problem> {
        let repeated = repeated_name(&self.keys, |key| &key.name)
            .map(|name| Problem::new("auth.keys", format!("found two keys named \"{name}\", expected one")));
        let empty = self
            .keys_file
            .as_deref()
            .filter(|path| path.as_os_str().is_empty())
            .map(|_| Problem::new("auth.keys_file", "found an empty path, expected the path of a file"));
        repeated.into_iter().chain(empty).collect()
    }
}
