//! `POST /grains`: new grains, one or many.

use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::openapi::schema::OneOfBuilder;
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::wire::{DraftBody, GrainObject, with_usual_model};
use super::{Kept, WriteErrors, etag, refused};
use crate::api::error::{ApiError, Code, ProblemBody};
use crate::api::extract::{Keyed, QueryRejected, UsualModel, query_error, value_error};
use crate::api::fields::{Object, first_set};
use crate::api::responses::{NativeBodyErrors, NativeErrors};
use crate::api::state::AppState;
use crate::grains::store::Atomicity;
use crate::grains::{Draft, Outcome};
use crate::json::AnyObject;

/// One grain, or many in `grains`. Read as one struct: a choice between two shapes would lose which field is wrong.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateBody {
    id: Option<String>,
    text: Option<String>,
    source: Option<String>,
    tags: Option<Vec<String>>,
    attributes: Option<AnyObject>,
    model: Option<String>,
    vector: Option<Vec<f32>>,
    space: Option<String>,
    verify: Option<bool>,
    grains: Option<Vec<Object<DraftBody>>>,
}

/// The shape of many.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[schema(as = GrainDrafts)]
#[allow(dead_code, reason = "utoipa reads the field")]
#[serde(deny_unknown_fields)]
pub struct DraftsBody {
    /// At least one.
    #[schema(min_items = 1)]
    grains: Vec<DraftBody>,
}

impl PartialSchema for CreateBody {
    fn schema() -> RefOr<Schema> {
        Schema::from(
            OneOfBuilder::new().item(Ref::from_schema_name("GrainDraft")).item(Ref::from_schema_name("GrainDrafts")),
        )
        .into()
    }
}

impl ToSchema for CreateBody {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push(("GrainDrafts".to_owned(), DraftsBody::schema()));
        DraftsBody::schemas(schemas);
    }
}

/// Many new grains.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CreatedGrains {
    /// In the order they were sent.
    grains: Vec<GrainObject>,
}

/// A new grain, or many.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, clippy::large_enum_variant, reason = "utoipa reads the variants; none is ever made")]
pub enum Created {
    /// The grain.
    One(GrainObject),
    /// The grains.
    Many(CreatedGrains),
}

/// What became of each grain.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct GrainResults {
    /// In the order they were sent.
    results: Vec<GrainResult>,
}

/// What became of one grain.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct GrainResult {
    /// The status it would have got alone.
    status: u16,
    /// The grain, if it was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    grain: Option<GrainObject>,
    /// Why it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ProblemBody>)]
    problem: Option<Value>,
}

/// The query of `POST /grains`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateQuery {
    partial: Option<bool>,
}

/// Writes new grains: one, or many in `grains`. Their vectors are computed unless they bring them along.
///
/// All of `grains` are written, or none. With `partial=true` each is written or refused for itself (207).
///
/// A request that was answered 201 or 207 may be sent again with the same `Idempotency-Key` within 24 hours: it is answered
/// as the first time, and nothing is written twice. Errors are not kept: after one, the same request is carried out. With a
/// key, `partial=true` writes no grain while a model is not available: the 207 would be kept, and outlast that problem.
#[utoipa::path(
    post, path = "/grains", tag = "grains", operation_id = "create_grains", request_body = CreateBody,
    params(
        ("partial" = Option<bool>, Query, description = "Of many, write those that can be written"),
        ("idempotency-key" = Option<String>, Header, description = "1 to 255 characters, new for each new request"),
    ),
    responses(
        (status = 201, description = "They were written", body = Created, headers(
            ("location" = String, description = "Where the one grain is"),
            ("etag" = String, description = "Its version, and a digest of what is shown"),
        )),
        (status = 207, description = "What became of each", body = GrainResults),
        NativeErrors, NativeBodyErrors, WriteErrors
    )
)]
pub async fn create(
    State(state): State<AppState>,
    Kept(grains): Kept,
    usual: UsualModel,
    query: Result<Query<CreateQuery>, QueryRejected>,
    request: Keyed<CreateBody>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|error| query_error(&error, "partial", "`partial` is `true` or `false`"))?;
    let Keyed { body, token } = request;
    let is_one = body.grains.is_none();
    let drafts: Vec<_> = drafts(body)?.into_iter().map(|draft| with_usual_model(draft, &usual)).collect();
    if drafts.is_empty() {
        return Err(ApiError::new(Code::EmptyInput, "`grains` is empty: send at least one").with_param("grains"));
    }
    let max = state.limits.max_inputs;
    if drafts.len() > max {
        let message = format!(
            "`grains` has {} grains; a request takes {max}. Send fewer, or raise `server.max_inputs`",
            drafts.len()
        );
        return Err(ApiError::new(Code::TooManyInputs, message).with_param("grains"));
    }
    let is_partial = query.partial.unwrap_or_default() && !is_one;
    let atomicity = if is_partial { Atomicity::Each } else { Atomicity::AllOrNothing };
    let outcomes = grains.create(drafts, atomicity, token).await?;
    let mut results: Vec<GrainResult> = outcomes.into_iter().map(GrainResult::of).collect();
    if is_partial {
        return Ok((StatusCode::MULTI_STATUS, axum::Json(GrainResults { results })).into_response());
    }
    if !is_one {
        let grains = results.into_iter().filter_map(|result| result.grain).collect();
        return Ok((StatusCode::CREATED, axum::Json(CreatedGrains { grains })).into_response());
    }
    let Some(grain) = results.pop().and_then(|result| result.grain) else { return Err(ApiError::internal()) };
    let location = [(header::LOCATION, format!("/grains/{}", grain.id()))];
    Ok((StatusCode::CREATED, etag(&grain), location, axum::Json(grain)).into_response())
}

/// The grains of a body. Beside many, what is of one is absent.
pub(in crate::api) fn drafts(body: CreateBody) -> Result<Vec<Draft>, ApiError> {
    let of_one = first_set!(body; id, source, tags, attributes, model, vector, space, verify);
    let CreateBody { id, text, source, tags, attributes, model, vector, space, verify, grains } = body;
    let Some(grains) = grains else {
        let text = text.ok_or_else(|| refused("text", "missing field `text`"))?;
        let draft = DraftBody { id, text, source, tags, attributes, model, vector, space, verify };
        return Ok(vec![draft.into_draft()?]);
    };
    if text.is_some() {
        return Err(refused("grains", "`text` is one grain and `grains` are many: send one of them"));
    }
    if let Some(name) = of_one {
        return Err(value_error(&format!("unknown field `{name}`, expected `grains`"), name));
    }
    let numbered = grains.into_iter().enumerate();
    numbered
        .map(|(at, Object(draft))| draft.into_draft().map_err(|error| error.within(&format!("grains[{at}]"))))
        .collect()
}

impl GrainResult {
    fn of(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Created(grain) => Self { status: 201, grain: Some(GrainObject::of(grain)), problem: None },
            Outcome::Updated(grain) | Outcome::Unchanged(grain) => {
                Self { status: 200, grain: Some(GrainObject::of(grain)), problem: None }
            }
            Outcome::Refused(refusal) => {
                let error = ApiError::of_refusal(&refusal);
                Self { status: error.status().as_u16(), grain: None, problem: Some(error.problem()) }
            }
        }
    }
}
