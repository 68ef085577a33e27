//! `[auth]`: who may use the server.

use serde::{Deserialize, Serialize};

use super::server::ServerConfig;
use super::spelling::Problem;

/// `[auth]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthConfig {
    /// Whether the operator says that whoever reaches the port may use it.
    pub disabled: bool,
}

impl AuthConfig {
    /// An open port is a decision, not an accident: beyond loopback it must be written down.
    pub(super) fn problems(&self, server: &ServerConfig) -> Vec<Problem> {
        if self.disabled || server.host.is_loopback() {
            return Vec::new();
        }
        let sentence = format!(
            "found {:?}, which other machines can reach, and this version has no keys; expected a loopback address such \
             as \"127.0.0.1\", or `auth.disabled = true` (GRANARY_AUTH__DISABLED=true) where a reverse proxy or a private \
             network keeps strangers out",
            server.host.as_str()
        );
        vec![Problem::new("server.host", sentence)]
    }
}
