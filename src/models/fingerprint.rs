//! From a model's files to its spaces: hashes once per load, a manifest per way of asking.

use std::path::Path;

use super::folder::{FolderError, ModelFiles};
use super::hub::sha256_of;
use crate::domain::space::HashedFile;
use crate::domain::{Fingerprint, HashedModule, Manifest, Pooling, Prompts, TruncationSide};
use crate::engine::Encoder;

/// The part of a manifest that a request cannot change.
#[derive(Clone, Debug)]
pub struct ModelIdentity {
    manifest: Manifest,
    /// That of the manifest: most requests get the model's own space.
    native: Fingerprint,
}

/// What an open model is read by.
struct Reading {
    output: String,
    pooling: Option<Pooling>,
    max_tokens: u32,
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
    /// Hashes the model's files: `modules` have been, and files of a hub are verified. Blocks for about a second per
    /// gigabyte.
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
        let reading = Reading {
            output: encoder.output().name.clone(),
            pooling: encoder.pooling(),
            max_tokens: u32::try_from(encoder.tokenizer().max_tokens()).unwrap_or(u32::MAX),
        };
        Self::of_reading(files, reading, native, prompts, modules)
    }

    fn of_reading(
        files: &ModelFiles,
        reading: Reading,
        native: SpaceChoice,
        prompts: Prompts,
        modules: Vec<HashedModule>,
    ) -> Result<Self, FolderError> {
        let mut weights = vec![HashedFile { role: "model".to_owned(), sha256: sha256(files, &files.onnx)? }];
        for (location, path) in &files.external_data {
            weights.push(HashedFile { role: location.clone(), sha256: sha256(files, path)? });
        }
        weights.sort_by(|left, right| left.role.cmp(&right.role));
        let manifest = Manifest {
            weights,
            tokenizer: sha256(files, &files.tokenizer)?,
            output: reading.output,
            pooling: reading.pooling,
            normalize: native.normalize,
            dimensions: native.dimensions,
            prompts,
            max_tokens: reading.max_tokens,
            truncation_side: native.truncation_side,
            modules,
            extra_tokens: files.extra_tokens.clone(),
        };
        Ok(Self { native: manifest.fingerprint(), manifest })
    }

    /// The manifest of the model as it is configured.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The fingerprint of the model as it is configured.
    #[must_use]
    pub fn native(&self) -> Fingerprint {
        self.native.clone()
    }

    /// The fingerprint of the vectors a request gets.
    #[must_use]
    pub fn chosen(&self, choice: SpaceChoice) -> Fingerprint {
        let SpaceChoice { dimensions, normalize, truncation_side } = choice;
        let own = &self.manifest;
        if (dimensions, normalize, truncation_side) == (own.dimensions, own.normalize, own.truncation_side) {
            return self.native();
        }
        Manifest { normalize, dimensions, truncation_side, ..self.manifest.clone() }.fingerprint()
    }
}

/// Verified files hold what is recorded of them, and are not read again.
fn sha256(files: &ModelFiles, path: &Path) -> Result<String, FolderError> {
    match files.hub.as_ref().and_then(|model| model.recorded(path)) {
        Some(sha256) => Ok(sha256),
        None => sha256_of(path).map_err(FolderError::Read),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;
    use tempfile::TempDir;

    use super::*;
    use crate::domain::{Activation, DenseShape, EncoderSettings};
    use crate::models::modules::{self, ModuleFile};

    /// The bytes of everything a model is made of.
    #[derive(Clone, Debug)]
    struct Content {
        onnx: Vec<u8>,
        external: Vec<u8>,
        tokenizer: Vec<u8>,
        /// Three numbers.
        dense: Vec<u8>,
        query: Vec<u8>,
        document: Vec<u8>,
    }

    impl Content {
        fn parts(&mut self) -> [&mut Vec<u8>; 6] {
            let Self { onnx, external, tokenizer, dense, query, document } = self;
            [onnx, external, tokenizer, dense, query, document]
        }
    }

    fn fingerprint(content: &Content) -> Fingerprint {
        identity(content).native()
    }

    /// A model of this content, written to a folder of its own.
    fn identity(content: &Content) -> ModelIdentity {
        let folder = TempDir::new().expect("a folder");
        let write = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            fs_err::write(&path, bytes).expect("written");
            path
        };
        let tensor = TensorView::new(Dtype::F32, vec![1, 3], &content.dense).expect("three numbers");
        let dense = safetensors::serialize([("linear.weight", tensor)], None).expect("serialized");
        let shape = DenseShape { in_features: 3, out_features: 1, bias: false, activation: Activation::Tanh };
        let files = ModelFiles {
            onnx: write("model.onnx", &content.onnx),
            external_data: vec![("model.onnx_data".to_owned(), write("model.onnx_data", &content.external))],
            tokenizer: write("tokenizer.json", &content.tokenizer),
            modules: vec![ModuleFile::Dense { weights: write("model.safetensors", &dense), shape }],
            settings: EncoderSettings::default(),
            named_prompts: BTreeMap::new(),
            truncate_dim: None,
            hidden_size: None,
            vocabulary_size: None,
            max_positions: None,
            positions: None,
            infers_max_tokens: false,
            truncation_side: None,
            extra_tokens: Vec::new(),
            added_tokens: Vec::new(),
            hub: None,
            quantizes_per_batch: false,
            unfit_for_bf16: Vec::new(),
        };
        let text = |bytes: &[u8]| Some(String::from_utf8(bytes.to_vec()).expect("ASCII"));
        let prompts = Prompts { query: text(&content.query), document: text(&content.document) };
        let reading = Reading { output: "out".to_owned(), pooling: Some(Pooling::Mean), max_tokens: 128 };
        let native = SpaceChoice { dimensions: 1, normalize: true, truncation_side: TruncationSide::Right };
        let (_, hashed) = modules::open(&files.modules).expect("opened");
        ModelIdentity::of_reading(&files, reading, native, prompts, hashed).expect("hashed")
    }

    fn contents() -> impl Strategy<Value = Content> {
        let bytes = || prop::collection::vec(any::<u8>(), 1..200);
        let prompt = || "[ -~]{1,20}".prop_map(String::into_bytes);
        let dense = prop::collection::vec(any::<u8>(), 12);
        (bytes(), bytes(), bytes(), dense, prompt(), prompt()).prop_map(
            |(onnx, external, tokenizer, dense, query, document)| Content {
                onnx,
                external,
                tokenizer,
                dense,
                query,
                document,
            },
        )
    }

    proptest! {
        #[test]
        fn equal_content_is_one_space_wherever_it_lies(content in contents()) {
            prop_assert_eq!(fingerprint(&content), fingerprint(&content));
        }

        #[test]
        fn what_a_request_chooses_is_hashed_like_the_model_as_it_is_configured(
            content in contents(),
            dimensions in 1..3_u32,
            normalize in any::<bool>(),
            is_left in any::<bool>(),
        ) {
            let identity = identity(&content);
            let truncation_side = if is_left { TruncationSide::Left } else { TruncationSide::Right };
            let manifest = Manifest { normalize, dimensions, truncation_side, ..identity.manifest().clone() };
            let choice = SpaceChoice { dimensions, normalize, truncation_side };
            prop_assert_eq!(identity.chosen(choice), manifest.fingerprint());
        }

        #[test]
        fn one_changed_byte_of_a_file_or_a_prompt_is_another_space(
            content in contents(),
            part in 0..6_usize,
            place in any::<prop::sample::Index>(),
            bit in 0..7_u32,
        ) {
            let mut changed = content.clone();
            let bytes = &mut changed.parts()[part][..];
            // The seven low bits, so that a prompt stays text.
            bytes[place.index(bytes.len())] ^= 1 << bit;
            prop_assert_ne!(fingerprint(&content).space(), fingerprint(&changed).space());
        }
    }
}
