//! What an import reads, one line at a time.

use std::time::Duration;

use serde_json::Value;

use super::super::draft::Draft;
use super::super::error::GrainError;
use super::super::refusal::Refusal;
use crate::domain::{CreatedAt, DeclaredSpace, Fingerprint};

/// A line of an import.
#[derive(Debug)]
pub struct ImportLine {
    /// Its number, from 1.
    pub number: u64,
    /// Its bytes, and about as many as they become.
    pub size: usize,
    /// The id that it says, as far as it could be read.
    pub id: Option<String>,
    /// What it is, or why it is nothing.
    pub entry: Result<ImportEntry, Refusal>,
}

/// What a line is.
#[derive(Debug)]
pub enum ImportEntry {
    /// A grain.
    Grain(Box<ImportGrain>),
    /// A space that vectors of later lines are in.
    Space(ImportSpace),
    /// The end of an export, with the number of its grains.
    End(u64),
}

/// A grain to take in.
#[derive(Debug, Default)]
pub struct ImportGrain {
    /// The grain. What is known of its vector stands there.
    pub draft: Draft,
    /// Metadata that it was shown with raw.
    pub raw_meta: Option<String>,
    /// When it was created.
    pub created_at: Option<CreatedAt>,
    /// The model that is said to have made its vector: it may make the space known.
    pub made_by: Option<String>,
}

/// The manifest of a space, as an export has it.
#[derive(Clone, Debug, PartialEq)]
pub struct ImportSpace {
    /// The SHA-256 of the manifest's canonical JSON.
    pub fingerprint: String,
    /// The manifest, its keys in their order.
    pub manifest: Value,
}

/// No more lines will come, though this is not the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadingEnded {
    /// The sender has left.
    Cut,
    /// The sender sent nothing for so long.
    Slow(Duration),
    /// The sender may not write any more.
    Refused,
}

impl ImportGrain {
    /// Whether it brings a vector with all that was known of it.
    pub(super) fn is_of_export(&self) -> bool {
        self.draft.vector.as_ref().is_some_and(|supplied| supplied.known.is_some())
    }
}

impl ImportSpace {
    /// The declared space that this is; `None` for a model's, which only a model can make known.
    ///
    /// # Errors
    /// [`GrainError::ForeignManifest`].
    pub fn declared(&self) -> Result<Option<DeclaredSpace>, GrainError> {
        let canonical = self.manifest.to_string();
        let actual = Fingerprint::of_canonical(&canonical);
        if actual.as_str() != self.fingerprint {
            let fingerprint = self.fingerprint.chars().take(64).collect();
            return Err(GrainError::ForeignManifest { fingerprint, actual });
        }
        let (name, dimensions) = (self.manifest["declared"].as_str(), self.manifest["dimensions"].as_u64());
        let declared = name.zip(dimensions).and_then(|(name, dimensions)| DeclaredSpace::new(name, dimensions).ok());
        Ok(declared.filter(|space| space.canonical() == canonical))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_manifest_declares_a_space_only_under_its_own_fingerprint() {
        let space = DeclaredSpace::new("ours", 3).expect("a space");
        let line = |manifest: Value, fingerprint: &str| ImportSpace { manifest, fingerprint: fingerprint.to_owned() };
        let manifest = json!({"declared": "ours", "dimensions": 3});
        let fingerprint = space.fingerprint();
        assert_eq!(line(manifest.clone(), fingerprint.as_str()).declared().expect("whole"), Some(space));
        assert!(matches!(line(manifest, &"0".repeat(64)).declared(), Err(GrainError::ForeignManifest { .. })));
        let of_model = json!({"weights": [], "dimensions": 3});
        let fingerprint = Fingerprint::of_canonical(&of_model.to_string());
        assert_eq!(line(of_model, fingerprint.as_str()).declared().expect("whole"), None);
    }
}
