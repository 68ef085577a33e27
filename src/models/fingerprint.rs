//! From a model's files to its spaces: hashes once per load, a manifest per way of asking.

use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::folder::{FolderError, ModelFiles};
use crate::domain::space::{HashedFile, hex_digits};
use crate::domain::{Fingerprint, HashedModule, Manifest, Prompts, TruncationSide};
use crate::engine::Encoder;

const READ_BYTES: usize = 1 << 20;

/// The part of a manifest that a request cannot change.
#[derive(Clone, Debug)]
pub struct ModelIdentity {
    manifest: Manifest,
}

/// What of a space a request decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceChoice {
    /// The length of the vectors.
    pub dimensions: u32,
    /// Whether they are scaled to length 1.
    pub normalize: bool,
    /// The end that is cut off long texts.
    pub truncation_side: TruncationSide,
}

impl ModelIdentity {
    /// Hashes the model's files; `modules` have been. Blocks for about a second per gigabyte.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn of(
        files: &ModelFiles,
        encoder: &Encoder,
        native: SpaceChoice,
        prompts: Prompts,
        modules: Vec<HashedModule>,
    ) -> Result<Self, FolderError> {
        let mut weights = vec![HashedFile { role: "model".to_owned(), sha256: sha256(&files.onnx)? }];
        for (location, path) in &files.external_data {
            weights.push(HashedFile { role: location.clone(), sha256: sha256(path)? });
        }
        weights.sort_by(|left, right| left.role.cmp(&right.role));
        let manifest = Manifest {
            weights,
            tokenizer: sha256(&files.tokenizer)?,
            output: encoder.output().name.clone(),
            pooling: encoder.pooling(),
            normalize: native.normalize,
            dimensions: native.dimensions,
            prompts,
            max_tokens: u32::try_from(encoder.tokenizer().max_tokens()).unwrap_or(u32::MAX),
            truncation_side: native.truncation_side,
            modules,
        };
        Ok(Self { manifest })
    }

    /// The manifest of the model as it is configured.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The fingerprint of the model as it is configured.
    #[must_use]
    pub fn native(&self) -> Fingerprint {
        self.manifest.fingerprint()
    }

    /// The fingerprint of the vectors a request gets.
    #[must_use]
    pub fn chosen(&self, choice: SpaceChoice) -> Fingerprint {
        let SpaceChoice { dimensions, normalize, truncation_side } = choice;
        Manifest { normalize, dimensions, truncation_side, ..self.manifest.clone() }.fingerprint()
    }
}

fn sha256(path: &Path) -> Result<String, FolderError> {
    let mut file = fs_err::File::open(path).map_err(FolderError::Read)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let n_bytes = file.read(&mut buffer).map_err(FolderError::Read)?;
        if n_bytes == 0 {
            return Ok(hex_digits(&hasher.finalize()));
        }
        hasher.update(&buffer[..n_bytes]);
    }
}
