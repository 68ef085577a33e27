//! Slugs: how models, keys and declared spaces are called.

/// The longest slug, in bytes.
pub(super) const MAX_SLUG_BYTES: usize = 64;

/// Whether a text is `[A-Za-z0-9][A-Za-z0-9._-]{0,63}`.
pub(super) fn is_slug(text: &str) -> bool {
    text.len() <= MAX_SLUG_BYTES
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}
