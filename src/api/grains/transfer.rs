//! `POST /grains/export` and `POST /grains/import`: grains in bulk, one JSON document a line.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::extract::Query;
use axum::http::{HeaderMap, Version};
use axum::response::Response;
use futures::{Stream, StreamExt};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::Receiver;
use tokio::sync::oneshot;
use utoipa::ToSchema;

use super::filter::FilterBody;
use super::ndjson::{LineReader, RawLine, answer, check_content_type, line};
use super::wire::{DraftBody, GrainObject};
use super::{Kept, refused};
use crate::api::access::Leave;
use crate::api::bodies::SlowBody;
use crate::api::error::{ApiError, Code, ProblemBody};
use crate::api::extract::{
    Object, OptionalJson, QueryRejected, awaits_continue, is_list, optional_object, optional_words, parse, query_error,
    shortened,
};
use crate::api::responses::{NativeBodyErrors, NativeErrors};
use crate::domain::{CreatedAt, Origin, Provenance, Scope};
use crate::grains::store::Vectors;
use crate::grains::transfer::{
    Declarations, ExportItem, ExportRequest, ImportEntry, ImportEvent, ImportGrain, ImportLine, ImportOptions,
    ImportSpace, ImportStop, OnConflict, ReadingEnded, Tally, UnknownVectors,
};
use crate::grains::{Refusal, RefusalKind};
use crate::json::parsed_bytes;
use crate::models::ledger::SpaceRecord;

/// Bytes of JSON that one byte of a text may take: control characters, and others where all but ASCII is escaped.
const JSON_BYTES_PER_BYTE: u64 = 6;

/// Bytes of a line besides its text: metadata and a vector.
const REST_BYTES: u64 = 1 << 20;

/// What a line may become in memory besides its texts: a vector takes a tenth of it.
const MAX_PARSED_BYTES: usize = 8 << 20;

/// The body of `POST /grains/export`, which needs none.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportBody {
    #[serde(default, deserialize_with = "optional_object")]
    filter: Option<FilterBody>,
    /// `vector`: the vectors they are served by too, so that an import elsewhere need not embed the texts.
    #[schema(max_items = 1)]
    #[serde(default, deserialize_with = "optional_words")]
    include: Option<Vec<IncludeWord>>,
}

/// Something to export besides.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema, PartialEq, Eq)]
#[schema(as = ExportInclude)]
#[serde(rename_all = "lowercase")]
pub enum IncludeWord {
    /// The vectors that grains are served by.
    Vector,
}

/// One JSON document a line. For the document it is bytes, which generated clients send and keep as they are.
#[derive(Serialize, ToSchema)]
#[schema(value_type = String, format = Binary, example = "{\"id\": \"a\", \"text\": \"Wheat is a grass.\"}\n")]
#[allow(dead_code, reason = "utoipa reads the type")]
pub struct Ndjson(String);

/// A manifest, as a line of an export.
#[derive(Serialize)]
struct SpaceLine {
    id: String,
    fingerprint: String,
    manifest: Value,
    dimensions: u32,
    name: Option<String>,
}

/// Exports the grains that meet a filter, oldest first.
///
/// Each line is a JSON document: `{"space": {"id", "fingerprint", "manifest", "dimensions", "name"}}` for each space that
/// grains are served from, before these; the grains as `GET /grains/{id}` shows them; then `{"end": {"grains": N}}`. An
/// export without that last line was cut; if the server is at fault, the line before says `{"error": {"problem": {…}}}`.
#[utoipa::path(
    post, path = "/grains/export", tag = "grains", operation_id = "export_grains", request_body = Option<ExportBody>,
    responses(
        (status = 200, description = "The grains, one a line", content_type = "application/x-ndjson", body = Ndjson),
        NativeErrors, NativeBodyErrors
    )
)]
pub async fn export(
    Kept(grains): Kept,
    leave: Leave,
    OptionalJson(body): OptionalJson<ExportBody>,
) -> Result<Response, ApiError> {
    let filter = body.filter.unwrap_or_default().into_filter()?;
    let include = body.include.unwrap_or_default();
    if include.len() > 1 {
        return Err(refused("include", "`include` takes `vector`, once"));
    }
    let includes_vectors = include.contains(&IncludeWord::Vector);
    let vectors = if includes_vectors { Vectors::Included } else { Vectors::Omitted };
    let items = grains.export(ExportRequest { filter, vectors }).await?;
    let lines = items.map(|item| item.map_or_else(|error| stopped(error.into()), exported));
    Ok(answer(while_allowed(lines, move || leave.allows(Scope::Read))))
}

/// The lines as long as they may be told, and then why there are no others.
fn while_allowed(
    lines: impl Stream<Item = Vec<u8>> + Send + 'static,
    is_allowed: impl Fn() -> bool + Send + 'static,
) -> impl Stream<Item = Vec<u8>> + Send + 'static {
    lines.scan(false, move |has_ended, line| {
        let had_ended = std::mem::replace(has_ended, !is_allowed());
        let line = if *has_ended { stopped(taken_away()) } else { line };
        std::future::ready((!had_ended).then_some(line))
    })
}

fn taken_away() -> ApiError {
    ApiError::new(
        Code::Unauthorized,
        "the request would not be let in any more: its key was taken away or does not allow this, or a key is needed by now",
    )
}

fn exported(item: ExportItem) -> Vec<u8> {
    match item {
        ExportItem::Space(record) => line(&json!({"space": SpaceLine::of(*record)})),
        ExportItem::Grain(grain, vector) => line(&GrainObject::of(*grain).with_vector(vector)),
        ExportItem::End(n_grains) => line(&json!({"end": {"grains": n_grains}})),
    }
}

impl SpaceLine {
    fn of(record: SpaceRecord) -> Self {
        let SpaceRecord { fingerprint, manifest, dimensions, declared_name, .. } = record;
        Self {
            id: fingerprint.space().to_string(),
            fingerprint: fingerprint.as_str().to_owned(),
            manifest: serde_json::from_str(&manifest).unwrap_or(Value::String(manifest)),
            dimensions,
            name: declared_name,
        }
    }
}

/// The query of `POST /grains/import`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportQuery {
    on_conflict: Option<String>,
    reembed: Option<String>,
}

/// Imports grains of any number: an export of this or another server, or lines as `POST /grains` takes them.
///
/// Ids are kept, and times of creation of grains that are new here. A vector whose space is known here is kept with all
/// that is known of it; any other text is embedded, in the background of other requests. One line's error does not stop
/// the others. The answer goes on while the lines are read, one JSON document a line; behind a proxy it begins when
/// they have been read. About once a second
/// `{"progress": {"read", "created", "replaced", "unchanged", "skipped", "failed"}}`, for each line that was not taken
/// (up to 5000) `{"error": {"line", "id", "problem"}}`, and last `{"end": {…}}` with the same counts and `complete`.
/// What stops everything is an `error` without `line`, and `complete` is false: send the same lines again with
/// `on_conflict=skip` to go on. A line without an `id` is written once more then.
#[utoipa::path(
    post, path = "/grains/import", tag = "grains", operation_id = "import_grains",
    params(
        ("on_conflict" = Option<String>, Query, description = "What becomes of a line whose id is taken: `error` (when \
         absent), `skip`, or `replace`, which writes only what differs and leaves the stored grain its time of creation",
         pattern = "^(error|skip|replace)$"),
        ("reembed" = Option<bool>, Query, description = "Embed the text of a line whose vector is in a space that is not \
         known here, instead of refusing the line"),
    ),
    request_body(content = Ndjson, content_type = "application/x-ndjson", description = "One grain a line"),
    responses(
        (status = 200, description = "What becomes of the lines", content_type = "application/x-ndjson", body = Ndjson),
        (status = 415, description = "The body is not declared as `application/x-ndjson`",
         content_type = "application/problem+json", body = ProblemBody),
        (status = 422, description = "A parameter is out of its range", content_type = "application/problem+json",
         body = ProblemBody),
        NativeErrors
    )
)]
pub async fn import(
    Kept(grains): Kept,
    query: Result<Query<ImportQuery>, QueryRejected>,
    leave: Leave,
    version: Version,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|error| query_error(&error, "on_conflict", ON_CONFLICT))?;
    let mut options = query.options()?;
    // As for `POST /spaces`.
    if !leave.allows(Scope::Admin) {
        options.declarations = Declarations::Refused;
    }
    check_content_type(&headers)?;
    let max_line = grains.limits().max_text_bytes.saturating_mul(JSON_BYTES_PER_BYTE).saturating_add(REST_BYTES);
    let (body, has_begun) = begun(body);
    let reader = LineReader::new(body, usize::try_from(max_line).unwrap_or(usize::MAX));
    let lines = lines(reader, LineRules { max_line, unknown_vectors: options.unknown_vectors });
    let allowed = move |line| if leave.allows(Scope::Write) { line } else { Err(ReadingEnded::Refused) };
    let import = grains.import(lines.map(allowed), options)?;
    // Over HTTP/2 nobody is told so, and none waits.
    if version < Version::HTTP_2 && awaits_continue(&headers) {
        // Nobody tells when the body is given up unread.
        let _ = has_begun.await;
    }
    Ok(answer(events(import)))
}

/// The body, and what says that its first piece or its end has come.
fn begun(body: Body) -> (Body, oneshot::Receiver<()>) {
    let (has_begun, told) = oneshot::channel();
    let mut has_begun = Some(has_begun);
    let pieces = body.into_data_stream().inspect(move |_| {
        // Whoever does not wait for it has dropped the other end.
        has_begun.take().map(|has_begun| has_begun.send(()));
    });
    (Body::from_stream(pieces), told)
}

/// The longest name of a model in a line: that of a repository on a hub is shorter.
const MAX_MODEL_BYTES: usize = 256;

const ON_CONFLICT: &str = "`on_conflict` takes error, skip or replace";

impl ImportQuery {
    fn options(&self) -> Result<ImportOptions, ApiError> {
        let on_conflict = match self.on_conflict.as_deref() {
            None | Some("error") => OnConflict::Error,
            Some("skip") => OnConflict::Skip,
            Some("replace") => OnConflict::Replace,
            Some(_) => return Err(refused("on_conflict", ON_CONFLICT)),
        };
        let unknown_vectors = match self.reembed.as_deref() {
            None | Some("false") => UnknownVectors::Refuse,
            Some("true") => UnknownVectors::Reembed,
            Some(_) => return Err(refused("reembed", "`reembed` is `true` or `false`")),
        };
        Ok(ImportOptions { on_conflict, unknown_vectors, declarations: Declarations::Taken })
    }
}

/// How lines are read.
#[derive(Clone, Copy)]
struct LineRules {
    max_line: u64,
    unknown_vectors: UnknownVectors,
}

fn lines(reader: LineReader, rules: LineRules) -> impl Stream<Item = Result<ImportLine, ReadingEnded>> + Send {
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
    attributes: Option<Map<String, Value>>,
    model: Option<String>,
    vector: Option<Vec<f32>>,
    verify: Option<bool>,
    /// The id of the vector's space, or a manifest.
    space: Option<Value>,
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
    attributes: Option<Map<String, Value>>,
    raw: Option<String>,
    embedding_model: Option<String>,
    space: Option<String>,
    origin: Option<String>,
    tokens: Option<u32>,
    truncated: Option<bool>,
    /// What follows from the vector and the text is not read.
    #[allow(dead_code, reason = "no other field may stand in `meta`")]
    embedding_dimensions: Option<IgnoredAny>,
    #[allow(dead_code, reason = "no other field may stand in `meta`")]
    content_sha256: Option<IgnoredAny>,
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
        let of_grain = self.field_of_grain();
        if let Some(end) = self.end {
            let beside = of_grain.or_else(|| self.space.is_some().then_some("space"));
            return beside.map_or(Ok(ImportEntry::End(end.grains)), |field| Err(mixed(field, "the end of an export")));
        }
        let space = match self.space {
            None => None,
            Some(Value::String(id)) => Some(id),
            Some(manifest) => {
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
            let sentence = "`created_at` is not a time such as 2026-01-31T12:00:00Z";
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

    /// The first field that is set of those that only a grain has.
    fn field_of_grain(&self) -> Option<&'static str> {
        let Self { id, text, source, tags, attributes, model, vector, verify, meta, created_at, .. } = self;
        let fields = [
            ("id", id.is_some()),
            ("text", text.is_some()),
            ("source", source.is_some()),
            ("tags", tags.is_some()),
            ("attributes", attributes.is_some()),
            ("model", model.is_some()),
            ("vector", vector.is_some()),
            ("verify", verify.is_some()),
            ("meta", meta.is_some()),
            ("created_at", created_at.is_some()),
            ("version", self.version.is_some()),
            ("updated_at", self.updated_at.is_some()),
        ];
        fields.into_iter().find_map(|(name, is_set)| is_set.then_some(name))
    }
}

/// A line would be taken for another thing than a grain, and the grain in it lost.
fn mixed(field: &str, other: &str) -> ApiError {
    let sentence = format!("`{field}` stands beside {other}: a line is a grain, a manifest or the end of an export");
    refused(field, sentence)
}

/// The counts of an import.
#[derive(Serialize)]
struct Counts {
    read: u64,
    created: u64,
    replaced: u64,
    unchanged: u64,
    skipped: u64,
    failed: u64,
}

impl From<Tally> for Counts {
    fn from(tally: Tally) -> Self {
        let Tally { read, created, replaced, unchanged, skipped, failed } = tally;
        Self { read, created, replaced, unchanged, skipped, failed }
    }
}

/// The last line of an import's answer.
#[derive(Serialize)]
struct End {
    #[serde(flatten)]
    counts: Counts,
    /// Failed lines that were only counted.
    unreported: u64,
    complete: bool,
}

fn events(receiver: Receiver<ImportEvent>) -> impl Stream<Item = Vec<u8>> + Send {
    futures::stream::unfold(receiver, async |mut receiver| {
        let event = receiver.recv().await?;
        Some((event_line(event), receiver))
    })
}

fn event_line(event: ImportEvent) -> Vec<u8> {
    match event {
        ImportEvent::Progress(tally) => line(&json!({"progress": Counts::from(tally)})),
        ImportEvent::Failed { line: number, id, refusal } => {
            let problem = ApiError::of_refusal(&refusal).problem();
            line(&json!({"error": {"line": number, "id": id, "problem": problem}}))
        }
        ImportEvent::Stopped(stop) => stopped(stop.into()),
        ImportEvent::End { tally, unreported, complete } => {
            line(&json!({"end": End { counts: tally.into(), unreported, complete }}))
        }
    }
}

/// The line that says why there will be no others but the end.
#[allow(clippy::needless_pass_by_value, reason = "an error is read out once")]
fn stopped(error: ApiError) -> Vec<u8> {
    line(&json!({"error": {"problem": error.problem()}}))
}

impl From<ImportStop> for ApiError {
    fn from(stop: ImportStop) -> Self {
        match stop {
            ImportStop::Grains(error) => error.into(),
            ImportStop::Cut => Self::new(Code::MalformedJson, "the body could not be read to its end"),
            ImportStop::Slow(limit) => SlowBody(limit).into(),
            ImportStop::Refused => taken_away(),
            ImportStop::ShuttingDown => Self::new(
                Code::StoreUnavailable,
                "the server is stopping: send the lines again with `on_conflict=skip` to go on where it stopped; those \
                 without an `id` are written once more then",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn an_export_whose_key_is_taken_away_says_so_and_ends() {
        let n_asked = AtomicUsize::new(0);
        let lines = futures::stream::iter((0..5).map(|n| line(&json!(n))));
        let told: Vec<Vec<u8>> =
            while_allowed(lines, move || n_asked.fetch_add(1, Ordering::Relaxed) != 2).collect().await;
        let told: Vec<Value> = told.iter().map(|line| serde_json::from_slice(line).expect("JSON")).collect();
        assert_eq!((told.len(), &told[..2]), (3, &[json!(0), json!(1)][..]), "{told:?}");
        assert_eq!(told[2]["error"]["problem"]["code"], "unauthorized");
    }
}
