//! How grains are written in JSON.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::refused;
use crate::api::error::ApiError;
use crate::api::extract::{UsualModel, required_space};
use crate::domain::{Content, Grain, hex_digits};
use crate::grains::{Draft, SuppliedVector};
use crate::json::AnyObject;

/// A text record.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Grain)]
pub struct GrainObject {
    #[schema(example = "0197a1b2-7c3d-7e4f-8a5b-6c7d8e9f0a1b")]
    id: String,
    text: String,
    meta: MetaObject,
    /// Counts its changes, from 1.
    version: u64,
    /// RFC 3339, UTC.
    created_at: String,
    /// RFC 3339, UTC.
    updated_at: String,
    /// The vector it is served by, with `include=vector`.
    #[serde(skip_serializing_if = "Option::is_none")]
    vector: Option<Vec<f32>>,
}

/// What is known of a grain besides its text.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = GrainMeta)]
pub struct MetaObject {
    #[schema(required)]
    source: Option<String>,
    tags: Vec<String>,
    #[schema(value_type = std::collections::BTreeMap<String, serde_json::Value>)]
    attributes: Map<String, Value>,
    /// Metadata of version 0.3 that is no JSON object or cannot be read, as it was stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    raw: Option<String>,
    /// The model that made its vector; null when nobody knows.
    #[schema(required)]
    embedding_model: Option<String>,
    #[schema(required)]
    embedding_dimensions: Option<u32>,
    /// The space its vector is in; null when nobody knows, or there is none.
    #[schema(required)]
    space: Option<String>,
    /// `computed`, `supplied` or `adopted`: how it came to its vector.
    #[schema(required)]
    origin: Option<String>,
    /// Tokens its vector was made of.
    #[schema(required)]
    tokens: Option<u32>,
    /// Whether the model took less than the whole text.
    #[schema(required)]
    truncated: Option<bool>,
    /// SHA-256 of the text.
    content_sha256: String,
}

impl GrainObject {
    pub(crate) fn of(grain: Grain) -> Self {
        let Grain { id, content, raw_meta, provenance, unproven, version, created_at, updated_at } = grain;
        let Content { text, source, tags, attributes } = content;
        let (embedding_model, embedding_dimensions) = match (&provenance, &unproven) {
            (Some(made), _) => (made.model.clone(), Some(made.dimensions)),
            (None, Some(old)) => (old.model.clone(), old.dimensions),
            (None, None) => (None, None),
        };
        let meta = MetaObject {
            source,
            tags,
            attributes,
            raw: raw_meta,
            embedding_model,
            embedding_dimensions,
            space: provenance.as_ref().map(|made| made.space.to_string()),
            origin: provenance.as_ref().map(|made| made.origin.as_str().to_owned()),
            tokens: provenance.as_ref().and_then(|made| made.n_tokens),
            truncated: provenance.as_ref().and_then(|made| made.truncated),
            content_sha256: hex_digits(&Sha256::digest(&text)),
        };
        Self { id: id.to_string(), text, meta, version, created_at, updated_at, vector: None }
    }

    pub(crate) fn with_vector(self, vector: Option<Vec<f32>>) -> Self {
        Self { vector, ..self }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }
}

/// A grain to write.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[schema(as = GrainDraft)]
#[serde(deny_unknown_fields)]
pub struct DraftBody {
    /// 1 to 128 of the characters A-Z a-z 0-9 . _ : @ ~ -; a new one when absent.
    #[schema(pattern = "^[A-Za-z0-9._:@~-]{1,128}$", example = json!(null))]
    pub(super) id: Option<String>,
    /// What is searched: not empty, and at most `grains.max_text`.
    #[schema(min_length = 1, example = "Wheat is a grass.")]
    pub(super) text: String,
    /// Where it comes from.
    #[schema(max_length = 1024, example = "encyclopedia")]
    pub(super) source: Option<String>,
    /// Words to filter by.
    #[schema(max_items = 100, example = json!(["plants"]))]
    pub(super) tags: Option<Vec<String>>,
    /// Anything else. Strings, numbers, booleans and lists of them can be filtered by.
    #[schema(value_type = Option<std::collections::BTreeMap<String, serde_json::Value>>, example = json!({"year": 2024}))]
    pub(super) attributes: Option<AnyObject>,
    /// The model to embed it with: its name or an alias. When absent, a text that the grain has not had so far is embedded
    /// with the key's model, or else the active one.
    #[schema(example = json!(null))]
    pub(super) model: Option<String>,
    /// Its vector, brought along; `space` says which space it is in. It is scaled to length 1.
    #[schema(example = json!(null))]
    pub(super) vector: Option<Vec<f32>>,
    /// The space of `vector`.
    #[schema(pattern = "^[0-9a-fA-F]{16}$", example = json!(null))]
    pub(super) space: Option<String>,
    /// Whether to compare `vector` with what the space's model makes of the text, and refuse it below a cosine of 0.999.
    #[schema(example = json!(null))]
    pub(super) verify: Option<bool>,
}

impl DraftBody {
    pub(in crate::api) fn into_draft(self) -> Result<Draft, ApiError> {
        let vector = match (self.vector, self.space) {
            (None, None) => None,
            (Some(vector), Some(space)) => Some(SuppliedVector {
                space: required_space("space", &space)?,
                vector,
                verify: self.verify.unwrap_or_default(),
                known: None,
            }),
            (Some(_), None) => {
                let sentence = "`vector` needs `space`: vectors of different spaces cannot be compared. `GET /spaces` lists \
                                them, and `POST /spaces` declares one";
                return Err(refused("space", sentence));
            }
            (None, Some(_)) => {
                let sentence =
                    "`space` says where `vector` is, which is missing: send it, or `model` to have it computed";
                return Err(refused("vector", sentence));
            }
        };
        if vector.is_some() && self.model.is_some() {
            let sentence = "`vector` and `model` exclude each other: the one is brought along, the other computes it";
            return Err(refused("model", sentence));
        }
        let content = Content {
            text: self.text,
            source: self.source,
            tags: self.tags.unwrap_or_default(),
            attributes: self.attributes.map(|AnyObject(members)| members).unwrap_or_default(),
        };
        Ok(Draft { id: self.id, content, model: self.model, usual_model: None, vector })
    }
}

/// The text of a draft that names no model is embedded with the one of the caller's key, if it is embedded at all.
pub(super) fn with_usual_model(draft: Draft, usual: &UsualModel) -> Draft {
    Draft { usual_model: usual.unless(None), ..draft }
}
