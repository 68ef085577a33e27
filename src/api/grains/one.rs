//! `/grains/{id}`: one grain.

use axum::extract::Query;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;

use super::wire::{DraftBody, GrainObject, with_usual_model};
use super::{
    IdInPath, IfMatch, Kept, OtherVersion, PutPrecondition, UnknownGrain, WriteErrors, etag, refused, unless_known,
};
use crate::api::error::{ApiError, ProblemBody};
use crate::api::extract::{Json, QueryRejected, UsualModel, query_error};
use crate::api::responses::{NativeBodyErrors, NativeErrors, NoRoom};
use crate::grains::store::Vectors;
use crate::grains::{Outcome, Patch, SourceChange};
use crate::json::AnyObject;

const INCLUDE: &str = "`include` takes `vector`, nothing else";

/// The query of reads: what to show besides the grain.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IncludeQuery {
    include: Option<String>,
}

impl IncludeQuery {
    /// Whether vectors are asked for.
    ///
    /// # Errors
    /// When something else is asked for.
    pub fn vector(include: Option<&str>) -> Result<Vectors, ApiError> {
        match include {
            None => Ok(Vectors::Omitted),
            Some("vector") => Ok(Vectors::Included),
            Some(_) => Err(refused("include", INCLUDE)),
        }
    }
}

/// Shows a grain.
#[utoipa::path(
    get, path = "/grains/{id}", tag = "grains", operation_id = "get_grain",
    params(
        ("id" = String, Path, description = "A grain's id"),
        ("include" = Option<String>, Query, description = "`vector`: the vector it is served by too"),
        ("if-none-match" = Option<String>, Header, description = "The `etag` of what the caller has"),
    ),
    responses(
        (status = 200, description = "The grain", body = GrainObject, headers(
            ("etag" = String, description = "Its version, and a digest of what is shown"),
        )),
        (status = 304, description = "The caller has it", headers(
            ("etag" = String, description = "Its version, and a digest of what is shown"),
        )),
        (status = 422, description = "`include` is unknown", content_type = "application/problem+json", body = ProblemBody),
        NativeErrors, UnknownGrain
    )
)]
pub async fn get(
    Kept(grains): Kept,
    IdInPath(id): IdInPath,
    query: Result<Query<IncludeQuery>, QueryRejected>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|error| query_error(&error, "include", INCLUDE))?;
    let (grain, vector) = match IncludeQuery::vector(query.include.as_deref())? {
        Vectors::Included => grains.get_with_vector(&id).await?,
        Vectors::Omitted => (grains.get(&id).await?, None),
    };
    Ok(unless_known(&headers, GrainObject::of(grain).with_vector(vector)))
}

/// Makes a grain what the body says: a new one, or in place of what was there. Doing it again changes nothing.
#[utoipa::path(
    put, path = "/grains/{id}", tag = "grains", operation_id = "put_grain", request_body = DraftBody,
    params(
        ("id" = String, Path, description = "A grain's id"),
        ("if-match" = Option<String>, Header, description = "The version that must be there"),
        ("if-none-match" = Option<String>, Header, description = "`*`: no grain may be there"),
    ),
    responses(
        (status = 200, description = "The grain", body = GrainObject, headers(
            ("etag" = String, description = "Its version, and a digest of what is shown"),
        )),
        (status = 201, description = "It is new", body = GrainObject, headers(
            ("location" = String, description = "Where it is"),
            ("etag" = String, description = "Its version, and a digest of what is shown"),
        )),
        NativeErrors, NativeBodyErrors, WriteErrors, OtherVersion
    )
)]
pub async fn put(
    Kept(grains): Kept,
    IdInPath(id): IdInPath,
    PutPrecondition(only_if): PutPrecondition,
    usual: UsualModel,
    Json(body): Json<DraftBody>,
) -> Result<Response, ApiError> {
    if body.id.as_deref().is_some_and(|other| other != id.as_str()) {
        let message = format!("`id` is another one than the path's, `{id}`: leave it out of the body");
        return Err(refused("id", message));
    }
    let draft = with_usual_model(body.into_draft()?, &usual);
    Ok(written(grains.put(&id, draft, only_if).await?))
}

/// What to change of a grain. What is absent stays, and what is null, but for `source`.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[schema(as = GrainPatch)]
#[serde(deny_unknown_fields)]
pub struct PatchBody {
    /// Another text: its vector is computed anew.
    #[schema(min_length = 1, example = json!(null))]
    text: Option<String>,
    /// Another source; null removes it.
    #[serde(default, deserialize_with = "source_change")]
    #[schema(value_type = Option<String>, max_length = 1024, example = "encyclopedia")]
    source: SourceChange,
    /// All tags; an empty list removes them, and null leaves them.
    #[schema(max_items = 100, example = json!(["plants", "grasses"]))]
    tags: Option<Vec<String>>,
    /// Attributes to set; one that is null is removed. Others stay. null in place of the object leaves all.
    #[schema(value_type = Option<std::collections::BTreeMap<String, serde_json::Value>>, example = json!({"year": 2025}))]
    attributes: Option<AnyObject>,
    /// The model to embed it with. When absent, another text is embedded with the key's model, or else the active one.
    #[schema(example = json!(null))]
    model: Option<String>,
}

/// A source that is there: null removes it.
fn source_change<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SourceChange, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map_or(SourceChange::Remove, SourceChange::Set))
}

/// Changes parts of a grain. Only another text is embedded anew.
#[utoipa::path(
    patch, path = "/grains/{id}", tag = "grains", operation_id = "patch_grain", request_body = PatchBody,
    params(
        ("id" = String, Path, description = "A grain's id"),
        ("if-match" = Option<String>, Header, description = "The version that must be there"),
    ),
    responses(
        (status = 200, description = "The grain", body = GrainObject, headers(
            ("etag" = String, description = "Its version, and a digest of what is shown"),
        )),
        NativeErrors, NativeBodyErrors, WriteErrors, OtherVersion
    )
)]
pub async fn patch(
    Kept(grains): Kept,
    IdInPath(id): IdInPath,
    IfMatch(version): IfMatch,
    usual: UsualModel,
    Json(body): Json<PatchBody>,
) -> Result<Response, ApiError> {
    let PatchBody { text, source, tags, attributes, model } = body;
    let attributes = attributes.map(|AnyObject(members)| members);
    let patch = Patch { text, source, tags, attributes, model, usual_model: usual.unless(None) };
    Ok(written(grains.patch(&id, patch, version).await?))
}

/// Deletes a grain and its vectors.
#[utoipa::path(
    delete, path = "/grains/{id}", tag = "grains", operation_id = "delete_grain",
    params(
        ("id" = String, Path, description = "A grain's id"),
        ("if-match" = Option<String>, Header, description = "The version that must be there"),
    ),
    responses(
        (status = 204, description = "It is gone"),
        (status = 422, description = "`If-Match` is no version", content_type = "application/problem+json",
         body = ProblemBody),
        NativeErrors, UnknownGrain, OtherVersion, NoRoom
    )
)]
pub async fn delete(
    Kept(grains): Kept,
    IdInPath(id): IdInPath,
    IfMatch(version): IfMatch,
) -> Result<StatusCode, ApiError> {
    grains.delete(&id, version).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn written(outcome: Outcome) -> Response {
    let (status, grain) = match outcome {
        Outcome::Created(grain) => (StatusCode::CREATED, grain),
        Outcome::Updated(grain) | Outcome::Unchanged(grain) => (StatusCode::OK, grain),
        Outcome::Refused(refusal) => return ApiError::of_refusal(&refusal).into_response(),
    };
    let grain = GrainObject::of(grain);
    let location = (status == StatusCode::CREATED).then(|| format!("/grains/{}", grain.id()));
    let mut headers = etag(&grain);
    headers.extend(location.and_then(|location| Some((header::LOCATION, location.parse().ok()?))));
    (status, headers, axum::Json(grain)).into_response()
}
