//! `POST /grains/export` and `POST /grains/import`: grains in bulk, one JSON document a line.

mod import_line;

use axum::body::Body;
use axum::extract::Query;
use axum::http::{HeaderMap, Version};
use axum::response::Response;
use futures::{Stream, StreamExt};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc::Receiver;
use tokio::sync::oneshot;
use utoipa::ToSchema;

pub(in crate::api) use self::import_line::all_lines;
use self::import_line::{LineRules, lines};
use super::filter::FilterBody;
use super::ndjson::{LineReader, answer, check_content_type, line};
use super::wire::GrainObject;
use super::{Kept, refused};
use crate::api::access::Leave;
use crate::api::bodies::SlowBody;
use crate::api::error::{ApiError, Code, ProblemBody};
use crate::api::extract::{OptionalJson, QueryRejected, awaits_continue, query_error};
use crate::api::fields::{optional_object, optional_words};
use crate::api::responses::{NativeBodyErrors, NativeErrors};
use crate::domain::Scope;
use crate::grains::store::Vectors;
use crate::grains::transfer::{
    Declarations, ExportItem, ExportRequest, ImportEvent, ImportOptions, ImportStop, OnConflict, ReadingEnded, Tally,
    UnknownVectors,
};
use crate::models::ledger::SpaceRecord;

/// Bytes of JSON that one byte of a text may take: control characters, and others where all but ASCII is escaped.
const JSON_BYTES_PER_BYTE: u64 = 6;

/// Bytes of a line besides its text: metadata and a vector.
const REST_BYTES: u64 = 1 << 20;

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
            fingerprint: fingerprint.to_string(),
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
    on_conflict: Option<ConflictWord>,
    reembed: Option<String>,
}

/// What an import does with an id that is taken.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ConflictWord {
    /// The line fails.
    Error,
    /// The stored grain stays.
    Skip,
    /// The line is written.
    Replace,
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
        ("on_conflict" = inline(Option<ConflictWord>), Query, description = "What becomes of a line whose id is taken: \
         `error` (when absent), `skip`, or `replace`, which writes only what differs and leaves the stored grain its time \
         of creation"),
        ("reembed" = Option<bool>, Query, description = "Embed the text of a line whose vector is in a space that is not \
         known here, or of another text, instead of refusing the line"),
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

const ON_CONFLICT: &str = "`on_conflict` takes error, skip or replace";

impl ImportQuery {
    fn options(&self) -> Result<ImportOptions, ApiError> {
        let on_conflict = match self.on_conflict {
            None | Some(ConflictWord::Error) => OnConflict::Error,
            Some(ConflictWord::Skip) => OnConflict::Skip,
            Some(ConflictWord::Replace) => OnConflict::Replace,
        };
        let unknown_vectors = match self.reembed.as_deref() {
            None | Some("false") => UnknownVectors::Refuse,
            Some("true") => UnknownVectors::Reembed,
            Some(_) => return Err(refused("reembed", "`reembed` is `true` or `false`")),
        };
        Ok(ImportOptions { on_conflict, unknown_vectors, declarations: Declarations::Taken })
    }
}

/// The last line of an import's answer.
#[derive(Serialize)]
struct End {
    #[serde(flatten)]
    tally: Tally,
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
        ImportEvent::Progress(tally) => line(&json!({"progress": tally})),
        ImportEvent::Failed { line: number, id, refusal } => {
            let problem = ApiError::of_refusal(&refusal).problem();
            line(&json!({"error": {"line": number, "id": id, "problem": problem}}))
        }
        ImportEvent::Stopped(stop) => stopped(stop.into()),
        ImportEvent::End { tally, unreported, complete } => line(&json!({"end": End { tally, unreported, complete }})),
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
