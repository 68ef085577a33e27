//! What a line of an import says: a grain, the manifest of a space, or the end of an export.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use futures::{Stream, StreamExt};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::super::ndjson::{LineReader, RawLine};
use super::super::refused;
use super::super::wire::DraftBody;
use crate::api::error::{ApiError, Code};
use crate::api::extract::{is_list, parse, shortened};
use crate::api::fields::{Object, first_set, optional_object};
use crate::domain::{CreatedAt, Origin, Provenance, hex_digits};
use crate::grains::transfer::{ImportEntry, ImportGrain, ImportLine, ImportSpace, ReadingEnded, UnknownVectors};
use crate::grains::{Refusal, RefusalKind};
use crate::json::{AnyObject, AnyValue, parsed_bytes};

/// What a line may become in memory besides its texts: a vector takes a tenth of it.
const MAX_PARSED_BYTES: usize = 8 << 20;

/// The longest name of a model in a line: that of a repository on a hub is shorter.
const MAX_MODEL_BYTES: usize = 256;

/// How lines are read.
#[derive(Clone, Copy)]
pub(super) struct LineRules {
    pub max_line: u64,
    pub unknown_vectors: UnknownVectors,
}

pub(super) fn lines(
    reader: LineReader,
    rules: LineRules,
) -> impl Stream<Item = Result<ImportLine, ReadingEnded>> + Send {
    let raw_lines = futures::stream::unfold(reader, async |mut reader| Some((reader.next().await?, reader)));
    raw_lines.map(move |line| line.map(|raw| read_line(raw, rules)))
}

/// The lines of a body that arrives in these pieces, for fuzzers.
pub(in crate::api) async fn all_lines(pieces: Vec<Bytes>, max_line_bytes: usize) -> Vec<ImportLine> {
    let pieces = futures::stream::iter(pieces.into_iter().map(Ok::<_, Infallible>));
    let reader = LineReader::new(Body::from_stream(pieces), max_line_bytes);
    let rules = LineRules { max_line: max_line_bytes as u64, unknown_vectors: UnknownVectors::Refuse };
    lines(reader, rules).filter_map(async |line| line.ok()).collect().await
}

fn read_line(raw: RawLine, rules: LineRules) -> ImportLine {
    let RawLine { number, bytes } = raw;
    let Some(bytes) = bytes else {
        let limit = rules.max_line;
        let message = format!("the line has over {limit} bytes: send its text in parts, or raise `grains.max_text`");
        let entry = Err(Refusal { kind: RefusalKind::TooLarge, message });
        return ImportLine { number, size: 0, id: None, entry };
    };
    let n_parsed = parsed_bytes(&bytes);
    if n_parsed > MAX_PARSED_BYTES {
        let message = "the line has more lists, objects and values than a grain may have".to_owned();
        return ImportLine { number, size: 0, id: None, entry: Err(Refusal { kind: RefusalKind::TooLarge, message }) };
    }
    if is_list(&bytes) {
        let message = "the line is a list: a line is a grain, a manifest or the end of an export".to_owned();
        return ImportLine { number, size: 0, id: None, entry: Err(Refusal { kind: RefusalKind::Invalid, message }) };
    }
    let size = bytes.len() + n_parsed;
    // What is wrong with a line is looked for only when something is.
    let read = serde_json::from_slice::<LineBody>(&bytes).or_else(|_| parse::<LineBody>(&bytes));
    match read {
        Ok(body) => {
            let id = body.id.clone();
            let entry = body.into_entry(rules.unknown_vectors);
            ImportLine { number, size, id, entry: entry.map_err(|error| refusal_of(&error)) }
        }
        Err(error) => {
            let id = serde_json::from_slice::<IdOnly>(&bytes).ok().and_then(|only| only.id);
            ImportLine { number, size, id, entry: Err(refusal_of(&error)) }
        }
    }
}

fn refusal_of(error: &ApiError) -> Refusal {
    let kind = match error.code() {
        Code::MalformedJson => RefusalKind::Malformed,
        _ => RefusalKind::Invalid,
    };
    // The parser sees one line, and calls it the body.
    let message =
        error.message().replace("the body is not JSON", "the line is not JSON").replace(" at line 1 ", " at ");
    Refusal { kind, message }
}

/// The id of a line that is wrong elsewhere.
#[derive(Deserialize)]
struct IdOnly {
    id: Option<String>,
}

/// A line: a grain as it is shown or as it is written, a manifest, or the end of an export.
#[derive(Default, Deserialize)]
#[serde(expecting = "a JSON object", deny_unknown_fields)]
struct LineBody {
    id: Option<String>,
    text: Option<String>,
    source: Option<String>,
    tags: Option<Vec<String>>,
    attributes: Option<AnyObject>,
    model: Option<String>,
    vector: Option<Vec<f32>>,
    verify: Option<bool>,
    /// The id of the vector's space, or a manifest.
    space: Option<AnyValue>,
    #[serde(default, deserialize_with = "optional_object")]
    meta: Option<MetaBody>,
    created_at: Option<String>,
    #[serde(default, deserialize_with = "optional_object")]
    end: Option<EndLine>,
    /// What a grain is shown with besides begins anew here.
    version: Option<IgnoredAny>,
    updated_at: Option<IgnoredAny>,
}

/// The `meta` of a grain as it is shown.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct MetaBody {
    source: Option<String>,
    tags: Option<Vec<String>>,
    attributes: Option<AnyObject>,
    raw: Option<String>,
    embedding_model: Option<String>,
    space: Option<String>,
    origin: Option<String>,
    tokens: Option<u32>,
    truncated: Option<bool>,
    /// What follows from the vector is not read.
    #[allow(dead_code, reason = "no other field may stand in `meta`")]
    embedding_dimensions: Option<IgnoredAny>,
    /// Of the text that the vector was made of.
    content_sha256: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EndLine {
    grains: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ManifestBody {
    fingerprint: String,
    manifest: Value,
    /// What follows from the manifest is not read.
    #[allow(dead_code, reason = "no other field may stand beside a manifest")]
    id: Option<IgnoredAny>,
    #[allow(dead_code, reason = "no other field may stand beside a manifest")]
    dimensions: Option<IgnoredAny>,
    #[allow(dead_code, reason = "no other field may stand beside a manifest")]
    name: Option<IgnoredAny>,
}

impl LineBody {
    fn into_entry(self, unknown_vectors: UnknownVectors) -> Result<ImportEntry, ApiError> {
        // Only a grain has these.
        let of_grain = first_set!(
            self; id, text, source, tags, attributes, model, vector, verify, meta, created_at, version, updated_at
        );
        if let Some(end) = self.end {
            let beside = of_grain.or_else(|| self.space.is_some().then_some("space"));
            return beside.map_or(Ok(ImportEntry::End(end.grains)), |field| Err(mixed(field, "the end of an export")));
        }
        let space = match self.space {
            None => None,
            Some(AnyValue(Value::String(id))) => Some(id),
            Some(AnyValue(manifest)) => {
                let body = serde_json::from_value::<Object<ManifestBody>>(manifest).map_err(|error| {
                    let error = shortened(&error.to_string());
                    refused("space", format!("`space` is neither the id of a space nor the manifest of one: {error}"))
                })?;
                if let Some(field) = of_grain {
                    return Err(mixed(field, "the manifest in `space`"));
                }
                let Object(ManifestBody { fingerprint, manifest, .. }) = body;
                return Ok(ImportEntry::Space(ImportSpace { fingerprint, manifest }));
            }
        };
        let Some(text) = self.text else {
            return Err(refused("text", "`text` is missing: a line is a grain, a manifest or the end of an export"));
        };
        let created_at = self.created_at.as_deref().map(|text| {
            let sentence = "`created_at` is not a time such as 2026-01-31T12:00:00Z, of the years 1 to 9999 in UTC";
            CreatedAt::parse(text).ok_or_else(|| refused("created_at", sentence))
        });
        let created_at = created_at.transpose()?;
        let is_shown = self.meta.is_some();
        if is_shown && (space.is_some() || self.source.is_some() || self.tags.is_some() || self.attributes.is_some()) {
            let sentence = "`meta` has the place of `source`, `tags`, `attributes` and `space`: move them into it, or leave it out";
            return Err(refused("meta", sentence));
        }
        let meta = self.meta.unwrap_or_default();
        let space = if is_shown { meta.space } else { space };
        // Without a vector, its space is only where it was.
        let (vector, space) = match (self.vector, space) {
            (None, _) if is_shown => (None, None),
            (Some(_), None) if unknown_vectors == UnknownVectors::Reembed => (None, None),
            both => both,
        };
        // Whoever edits the texts of an export would pair them with the vectors of the old ones.
        let is_edited = meta.content_sha256.is_some_and(|sum| sum != hex_digits(&Sha256::digest(&text)));
        let (vector, space) = match unknown_vectors {
            UnknownVectors::Reembed if is_edited => (None, None),
            UnknownVectors::Refuse if is_edited && vector.is_some() => {
                let sentence = "`meta.content_sha256` is of another text than `text`, and so may `vector` be: leave out \
                                `vector`, or ask for `reembed=true`, to have the text embedded";
                return Err(refused("meta.content_sha256", sentence));
            }
            UnknownVectors::Reembed | UnknownVectors::Refuse => (vector, space),
        };
        let body = DraftBody {
            id: None,
            text,
            source: if is_shown { meta.source } else { self.source },
            tags: if is_shown { meta.tags } else { self.tags },
            attributes: if is_shown { meta.attributes } else { self.attributes },
            model: self.model,
            vector,
            space,
            verify: self.verify,
        };
        let mut draft = body.into_draft()?;
        if meta.embedding_model.as_ref().is_some_and(|model| model.len() > MAX_MODEL_BYTES) {
            let sentence = format!("`meta.embedding_model` takes {MAX_MODEL_BYTES} bytes");
            return Err(refused("meta.embedding_model", sentence));
        }
        if let Some(supplied) = &mut draft.vector
            && let Some(origin) = meta.origin.as_deref()
        {
            let sentence = "`meta.origin` takes computed, supplied or adopted";
            supplied.known = Some(Provenance {
                space: supplied.space.clone(),
                model: meta.embedding_model.clone(),
                dimensions: u32::try_from(supplied.vector.len()).unwrap_or(u32::MAX),
                origin: Origin::parse(origin).ok_or_else(|| refused("meta.origin", sentence))?,
                n_tokens: meta.tokens,
                truncated: meta.truncated,
            });
        }
        let grain = ImportGrain { draft, raw_meta: meta.raw, created_at, made_by: meta.embedding_model };
        Ok(ImportEntry::Grain(Box::new(grain)))
    }
}

/// A line would be taken for another thing than a grain, and the grain in it lost.
fn mixed(field: &str, other: &str) -> ApiError {
    let sentence = format!("`{field}` stands beside {other}: a line is a grain, a manifest or the end of an export");
    refused(field, sentence)
}
