//! API keys for tests.

use granary::domain::KeyHash;

/// The key that tests give this name.
pub fn secret(name: &str) -> String {
    format!("grn_the-key-of-{name}-0123456789")
}

/// A key as the configuration has it, and what else it is to say: `model = "m"`, say.
pub fn key_entry(name: &str, scopes: &[&str], others: &str) -> String {
    format!("{{ name = \"{name}\", hash = \"{}\", scopes = {scopes:?}, {others} }}", KeyHash::of(&secret(name)))
        .replace(",  }", " }")
}

/// An `[auth]` section with these keys.
pub fn with_keys(entries: &[String]) -> String {
    format!("[auth]\nkeys = [{}]\n", entries.join(", "))
}
